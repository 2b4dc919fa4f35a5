//! Pages.

pub mod mounting;
pub mod surviving;
