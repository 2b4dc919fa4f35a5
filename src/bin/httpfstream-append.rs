//! Appends what comes on stdin to a resource.

mod shared;

use std::pin::Pin;
use std::process::exit;
use std::task::{Context, Poll};
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncRead, ReadBuf, Stdin, stdin};
use tokio::sync::oneshot;

use self::shared::client::ClientArgs;
use self::shared::exit::{FAILED, FINISHED, INTERRUPTED, exit_with, report};

const PROGRAM: &str = "httpfstream-append";
/// What is in stdin's pipe when a signal comes is still sent, if it can be read within this time.
const REST: Duration = Duration::from_millis(100);

/// Appends stdin to the resource at a URL, as it comes, and finishes it at the end of stdin.
///
/// Ctrl-C sends what was read, finishes the resource and waits for the server's confirmation; a second one stops at
/// once.
///
/// Exit codes: 0 finished and confirmed, 1 failed, 2 wrong usage, 3 interrupted (stdin could not be read to its end, or a
/// signal stopped it before the end was confirmed), 4 absent.
#[derive(Parser, Debug)]
#[command(name = PROGRAM, version)]
struct Args {
    #[command(flatten)]
    client: ClientArgs,
}

fn main() {
    let Args { client } = shared::args::parse();
    exit_with(PROGRAM, run(&client))
}

async fn run(args: &ClientArgs) -> i32 {
    let url = &args.url;
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("{PROGRAM}: signals can't be awaited: {error}");
            return FAILED;
        }
    };
    if args.verbose {
        eprintln!("appending from stdin to {url}");
    }
    let (stop, stopped) = oneshot::channel();
    let opening = async { args.client()?.open_append(url.clone()).await };
    let opened = tokio::select! {
        opened = opening => opened,
        () = signals.next() => return INTERRUPTED,
    };
    let appending = async {
        let mut appender = opened?;
        tokio::spawn(watch(signals, stop));
        let sent = appender.append_reader(Input::new(stopped)).await?;
        appender.finish().await?;
        Ok(sent)
    };
    match appending.await {
        Ok(sent) => {
            if args.verbose {
                eprintln!("finished appending to {url} (sent {sent} bytes)");
            }
            FINISHED
        }
        Err(error) => report(PROGRAM, &format!("could not append to {url}"), &error),
    }
}

/// The first signal ends the input, the second one the program.
async fn watch(mut signals: Signals, stop: oneshot::Sender<()>) {
    signals.next().await;
    let _ = stop.send(());
    signals.next().await;
    eprintln!("{PROGRAM}: stopped before the server confirmed the end");
    exit(INTERRUPTED);
}

/// Stdin, until its end or a signal.
struct Input {
    stdin: Stdin,
    stop: Pin<Box<dyn Future<Output = ()>>>,
    stopped: bool,
}

impl Input {
    fn new(stopped: oneshot::Receiver<()>) -> Self {
        let stop = Box::pin(async {
            let _ = stopped.await;
            tokio::time::sleep(REST).await;
        });
        Self { stdin: stdin(), stop, stopped: false }
    }
}

impl AsyncRead for Input {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.stopped {
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stdin).poll_read(cx, buf);
        if read.is_pending() && self.stop.as_mut().poll(cx).is_ready() {
            self.stopped = true;
            return Poll::Ready(Ok(()));
        }
        read
    }
}

/// Ctrl-C, and SIGTERM where there is one.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
