//! Pages: what doesn't belong to one type.
//!
//! | Page | |
//! |---|---|
//! | [`protocol`] | what is spoken on the wire |
//! | [`mounting`] | where the layer goes: axum, hyper, tower, the order of layers, proxies, shutdown |
//! | [`surviving`] | what survives what, and who is told what |
//! | [`cost`] | what it costs, how that grows, and why the hot path is as it is |
//! | [`browser`] | web pages: the follow module, the viewer and the listing of the server |
//! | [`migrating`] | from the original, sourcegraph/httpfstream |

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("mounting.md")]
pub mod mounting {}

#[doc = include_str!("surviving.md")]
pub mod surviving {}

#[doc = include_str!("cost.md")]
///
/// # How cost grows
///
/// The server's CPU time; median of three runs in turn, with the least and the most. Two shared virtual cores, the server on
/// one of them. How busy the two were is the most of any run with this crate; the readers' side sends as well.
///
#[doc = include_str!("cost_table.md")]
///
#[doc = include_str!("cost.svg")]
pub mod cost {}

#[doc = include_str!("browser.md")]
pub mod browser {}

#[doc = include_str!("migrating.md")]
pub mod migrating {}
