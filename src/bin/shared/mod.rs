//! What the programs have in common. None of them uses everything.
#![allow(dead_code)]

pub(crate) mod args;
pub(crate) mod client;
pub(crate) mod exit;
pub(crate) mod record;
