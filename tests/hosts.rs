//! Every host that the layer can stand in, by what is asked of it, and what layers outside do to it. The table in
//! `docs::mounting` is what these tests expect: where it isn't true, they fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "hosts/ask.rs"]
mod ask;
#[path = "hosts/grpc.rs"]
mod grpc;
#[path = "hosts/host.rs"]
mod host;
#[path = "hosts/layers.rs"]
mod layers;
#[path = "hosts/matrix.rs"]
mod matrix;
