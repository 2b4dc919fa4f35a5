//! Code that the programs share. None of them uses all of it.
#![allow(dead_code)]

pub(crate) mod args;
pub(crate) mod client;
pub(crate) mod exit;
pub(crate) mod record;
