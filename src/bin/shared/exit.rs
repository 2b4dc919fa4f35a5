//! Exit codes and the last line on stderr.

use std::fmt::Write as _;
use std::process::exit;

use httpfstream::{Error, ErrorKind};

/// Everything went well.
pub(crate) const FINISHED: i32 = 0;
/// Something failed.
pub(crate) const FAILED: i32 = 1;
/// The command line is wrong: what clap exits with.
pub(crate) const USAGE: i32 = 2;
/// The resource's appender was lost.
pub(crate) const INTERRUPTED: i32 = 3;
/// There is no such resource.
pub(crate) const ABSENT: i32 = 4;

/// What ended a program before its time.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something on this side, in a sentence.
    Local(String),
    Stream(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Stream(error)
    }
}

/// Runs a program to its end, and exits with the code that it gives.
pub(crate) fn exit_with(program: &str, run: impl Future<Output = i32>) -> ! {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        // Exits while the runtime is there: dropping it would wait for a thread that is blocked in stdin or stdout.
        Ok(runtime) => exit(runtime.block_on(run)),
        Err(error) => {
            eprintln!("{program}: the system gives too little to start: {error}");
            exit(FAILED)
        }
    }
}

/// Says on stderr, in one line, what failed and what to do about it. Returns the exit code.
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

/// What failed, with everything underneath, and what to do.
fn explanation(doing: &str, error: &Error) -> String {
    let mut line = format!("{doing}: {}", causes(error));
    if let Some(hint) = hint(error.kind()) {
        let _ = write!(line, " ({hint})");
    }
    line
}

/// An error with everything underneath, in one line.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some errors repeat what is underneath them.
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
        ErrorKind::Unauthorized => "set HTTPFSTREAM_TOKEN, or give a --header",
        ErrorKind::Forbidden => "use credentials that may do this",
        ErrorKind::Connection => "check that the server is running and reachable, then try again",
        ErrorKind::Overloaded | ErrorKind::ShuttingDown | ErrorKind::TimedOut => "try again later",
        ErrorKind::Redirect => "if you trust that address, give it as the URL",
        ErrorKind::UpgradeRequired | ErrorKind::NotUpgradable => {
            "have the proxies in between pass WebSocket upgrades on"
        }
        ErrorKind::Protocol | ErrorKind::Status => "check that the URL is a httpfstream server's",
        ErrorKind::Full | ErrorKind::Storage => "look into the server's log",
        ErrorKind::TooLarge => "raise the server's limit, or append to another URL",
        ErrorKind::Life | ErrorKind::Diverged | ErrorKind::Offset => {
            "somebody else changed the resource: look at what it holds, then append or follow anew"
        }
        ErrorKind::Fenced => "if it was not deleted, somebody else appends with the same id",
        ErrorKind::PastEnd => "ask for less, or for another offset",
        ErrorKind::Interrupted => "run the appender again to have the whole",
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
