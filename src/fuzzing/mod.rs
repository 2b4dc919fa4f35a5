//! The fuzz targets of `tests/fuzz`: one function per target, which panics if a property doesn't hold.
//!
//! Built for cargo-fuzz and for tests only. The expected results come from a second, simpler implementation: a decoder
//! that has all bytes at once, a path checked character by character. Each function returns whether the input reached
//! the interesting code, so that a useless corpus is noticed.

mod client;
mod frames;
mod intent;
mod path;
mod peer;
mod request;
mod text;

use std::future::Future;

pub use self::client::{client_append, client_follow};
pub use self::frames::frames;
pub use self::intent::intent;
pub use self::path::path;
pub(crate) use self::peer::dial;
pub use self::request::request;
pub use self::text::text;
#[cfg(unix)]
pub use crate::storage::fuzz::{record, root};

/// A reader of a fuzz input. Beyond the end it returns zeros and empty slices.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        self.0.split_off(..len.min(self.0.len())).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Runs a future on this thread's runtime, whose clock is paused and advances by itself. A future that hangs is a
/// failure.
fn run<F: Future>(future: F) -> F::Output {
    use std::time::Duration;

    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = {
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
        };
    }
    const DAY: Duration = Duration::from_secs(24 * 3600);
    RUNTIME.with(|runtime| runtime.block_on(async { tokio::time::timeout(DAY, future).await.expect("hangs") }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = (&'static str, fn(&[u8]) -> bool);

    const TARGETS: &[Target] = &[
        ("path", super::path),
        ("intent", super::intent),
        ("request", super::request),
        ("frames", super::frames),
        ("client_append", super::client_append),
        ("client_follow", super::client_follow),
        ("text", super::text),
        #[cfg(unix)]
        ("record", super::record),
        #[cfg(unix)]
        ("root", super::root),
    ];

    /// The corpora serve as regression tests without a fuzzer.
    #[test]
    fn all_corpora_hold() {
        for (name, target) in TARGETS {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
            let (mut inputs, mut interesting) = (0, 0);
            for file in corpus.read_dir().expect("a corpus") {
                let path = file.expect("a file").path();
                eprintln!("{}", path.display());
                inputs += 1;
                interesting += usize::from(target(&std::fs::read(&path).expect("an input")));
            }
            assert!(inputs > 10 && interesting > 0, "{name}: {interesting} of {inputs} inputs are interesting");
        }
    }
}
