//! Prints a resource from its first byte to its end.

mod shared;

use std::io;

use clap::Parser;
use httpfstream::client::Follower;
use httpfstream::{Error, Result};
use tokio::io::{AsyncWriteExt, stdout};

use self::shared::client::ClientArgs;
use self::shared::exit::{FAILED, FINISHED, exit_with, report};

const PROGRAM: &str = "httpfstream-follow";

/// Prints the resource at a URL: what is stored, what arrives, and so on to the end.
///
/// Exit codes: 0 finished, 1 failed, 2 wrong usage, 3 interrupted (its appender was lost: what was printed is not the
/// whole), 4 absent.
#[derive(Parser, Debug)]
#[command(name = PROGRAM, version)]
struct Args {
    #[command(flatten)]
    client: ClientArgs,
}

/// How it ended where nothing is wrong with the resource.
enum End {
    Finished {
        read: u64,
    },
    /// Nobody reads what is printed.
    Unread,
    Unwritable(io::Error),
}

fn main() {
    let Args { client } = shared::args::parse();
    exit_with(PROGRAM, run(&client))
}

async fn run(args: &ClientArgs) -> i32 {
    let url = &args.url;
    if args.verbose {
        eprintln!("following data at {url} (ctrl-C to exit)");
    }
    let following = async {
        let mut follower = args.client()?.follow(url.clone()).await?;
        print(&mut follower).await
    };
    let end = tokio::select! {
        end = following => end,
        () = unread() => Ok(End::Unread),
    };
    match end {
        Ok(End::Finished { read }) => {
            if args.verbose {
                eprintln!("finished following (read {read} bytes)");
            }
            FINISHED
        }
        Ok(End::Unread) => FINISHED,
        Ok(End::Unwritable(error)) => {
            eprintln!("{PROGRAM}: could not write to stdout: {error}");
            FAILED
        }
        Err(error) => report(PROGRAM, &format!("could not follow {url}"), &error),
    }
}

async fn print(follower: &mut Follower) -> Result<End, Error> {
    let mut out = stdout();
    while let Some(chunk) = follower.next_chunk().await? {
        let written = match out.write_all(&chunk.bytes).await {
            Ok(()) => out.flush().await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::Unread),
            Err(error) => return Ok(End::Unwritable(error)),
        }
    }
    Ok(End::Finished { read: follower.offset() })
}

/// Waits until whoever reads stdout is gone, which no write would tell while there is nothing to print.
#[cfg(unix)]
async fn unread() {
    use rustix::event::{PollFd, PollFlags, poll};
    let (gone, told) = tokio::sync::oneshot::channel();
    // A thread that lasts as long as the program.
    std::thread::spawn(move || {
        let stdout = io::stdout();
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => break,
                // It can't be watched.
                _ => return,
            }
        }
        let _ = gone.send(());
    });
    if told.await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(not(unix))]
async fn unread() {
    std::future::pending::<()>().await;
}
