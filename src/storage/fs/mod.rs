//! x
#[derive(Debug)]
/// x
pub struct FsStorage;
#[derive(Debug)]
/// x
pub struct FsStorageBuilder;
