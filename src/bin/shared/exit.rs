//! Exit codes, and the error message on stderr.

use std::fmt::Write as _;
use std::process::exit;

use httpfstream::{Error, ErrorKind};

/// Success.
pub(crate) const FINISHED: i32 = 0;
/// Failure.
pub(crate) const FAILED: i32 = 1;
/// Wrong usage: clap's exit code.
pub(crate) const USAGE: i32 = 2;
/// The resource was interrupted, or a signal stopped the program before the end.
pub(crate) const INTERRUPTED: i32 = 3;
/// The resource is absent.
pub(crate) const ABSENT: i32 = 4;

/// The reason why a program failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A local failure, described in a sentence.
    Local(String),
    /// An error of the stream or its connection.
    Stream(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Stream(error)
    }
}

/// Runs a program and exits with the code that it returns.
pub(crate) fn exit_with(program: &str, run: impl Future<Output = i32>) -> ! {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        // Exits without dropping the runtime, which would wait for threads that are blocked on stdin or stdout.
        Ok(runtime) => exit(runtime.block_on(run)),
        Err(error) => {
            eprintln!("{program}: the runtime can't be started: {error}");
            exit(FAILED)
        }
    }
}

/// Prints a failure and a hint to stderr, in one line. Returns the exit code.
pub(crate) fn report(program: &str, doing: &str, failure: &Failure) -> i32 {
    let error = match failure {
        Failure::Local(why) => {
            eprintln!("{program}: {doing}: {why}");
            return FAILED;
        }
        Failure::Stream(error) => error,
    };
    eprintln!("{program}: {}", explanation(doing, error));
    match error.kind() {
        ErrorKind::Interrupted => INTERRUPTED,
        ErrorKind::NotFound => ABSENT,
        _ => FAILED,
    }
}

/// The message for an error, with its causes and a hint.
fn explanation(doing: &str, error: &Error) -> String {
    let mut line = format!("{doing}: {}", causes(error));
    if let Some(hint) = hint(error.kind()) {
        let _ = write!(line, " ({hint})");
    }
    line
}

/// An error with its causes, in one line.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some errors repeat their cause.
        let cause_text = cause.to_string();
        if !line.contains(&cause_text) {
            let _ = write!(line, ": {cause_text}");
        }
        source = cause.source();
    }
    line.replace(|c: char| c.is_control(), " ")
}

fn hint(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::BadRequest | ErrorKind::BadPath | ErrorKind::PathTooLong => "check the URL and the headers",
        ErrorKind::NotFound => "check the URL, or start the appender first",
        ErrorKind::Busy => "wait until the other appender has ended, or append to another URL",
        ErrorKind::Sealed | ErrorKind::Exists | ErrorKind::Conflict => "append to another URL",
        ErrorKind::Unauthorized => "set HTTPFSTREAM_TOKEN, or use --header",
        ErrorKind::Forbidden => "use credentials with permission",
        ErrorKind::Connection => "check that the server is running and reachable, then try again",
        ErrorKind::Overloaded | ErrorKind::ShuttingDown | ErrorKind::TimedOut => "try again later",
        ErrorKind::Redirect => "if you trust that address, use it as the URL",
        ErrorKind::UpgradeRequired | ErrorKind::NotUpgradable => {
            "let the proxies in between forward WebSocket upgrades"
        }
        ErrorKind::Protocol | ErrorKind::Status => "check that the URL belongs to an httpfstream server",
        ErrorKind::Full | ErrorKind::Storage => "see the server's log",
        ErrorKind::TooLarge => "raise the server's limit, or append to another URL",
        ErrorKind::Life | ErrorKind::Diverged | ErrorKind::Offset => {
            "somebody else changed the resource: check its contents, then start again"
        }
        ErrorKind::Fenced => "the resource was deleted, or somebody else appends with the same id",
        ErrorKind::PastEnd => "use a smaller offset",
        ErrorKind::Interrupted => "run the appender again for the complete data",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_explanation_is_one_line_with_all_causes_and_a_hint() {
        let source = std::io::Error::other("first\nsecond");
        let error = Error::new(ErrorKind::Connection).with_detail("no connection").with_source(source);
        let line = explanation("could not follow http://h/", &error);
        assert_eq!(
            line,
            "could not follow http://h/: no connection: first second \
             (check that the server is running and reachable, then try again)"
        );
    }
}
