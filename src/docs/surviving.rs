//! Surviving.
