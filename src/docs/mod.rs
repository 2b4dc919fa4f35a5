//! Pages.
pub mod mounting {
    //! m
}
/// x
pub mod surviving {
    //! Surviving.
}
