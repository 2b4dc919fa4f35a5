//! How a target runs one input.

use std::sync::OnceLock;

pub use libfuzzer_sys::fuzz_target;

/// More than any input may make the crate allocate at once, in bytes: inputs have a few KiB, and what they stand for at
/// most 1 MiB.
const MOST: u64 = 24 << 20;

/// Makes the program of one of the functions in `httpfstream::fuzzing`.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        $crate::fuzz_target!(|data: &[u8]| $crate::check(data, httpfstream::fuzzing::$name));
    };
}

/// Runs an input, and bounds what is allocated for it. With `FUZZ_CANARY` set, an input that gets to where it becomes
/// interesting is a finding: so the script that runs the targets sees that they get there, and that findings are found.
pub fn check(data: &[u8], target: fn(&[u8]) -> bool) {
    static CANARY: OnceLock<bool> = OnceLock::new();
    let mut interesting = false;
    let allocated = allocation_counter::measure(|| interesting = target(data));
    assert!(allocated.bytes_max < MOST, "{} bytes at once", allocated.bytes_max);
    assert!(!(interesting && *CANARY.get_or_init(|| std::env::var_os("FUZZ_CANARY").is_some())), "canary");
}
