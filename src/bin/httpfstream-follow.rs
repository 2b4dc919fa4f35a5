//! Prints a resource, or keeps it in a file, up to its end.

mod shared;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use httpfstream::client::FollowRequest;
use tokio::fs::OpenOptions;
use tokio::io::{AsyncWriteExt, stdout};

use self::shared::client::ClientArgs;
use self::shared::exit::{FINISHED, Failure, exit_with, report};
use self::shared::record::{Place, Record};

const PROGRAM: &str = "httpfstream-follow";

/// Prints the resource at a URL: what is stored, what arrives, and so on to the end.
///
/// It survives broken connections and restarts of the server, with no byte lost or repeated.
///
/// Exit codes: 0 finished, 1 failed, 2 wrong usage, 3 interrupted (its appender was lost: what was printed is not the
/// whole), 4 absent.
#[derive(Parser, Debug)]
#[command(name = PROGRAM, version)]
struct Args {
    #[command(flatten)]
    client: ClientArgs,

    #[command(flatten)]
    what: What,
}

#[derive(clap::Args, Debug)]
struct What {
    /// Begin at this offset, in bytes
    #[arg(long, value_name = "BYTES", group = "beginning")]
    offset: Option<u64>,

    /// Begin with the last so many bytes
    #[arg(long, value_name = "BYTES", group = "beginning")]
    tail: Option<u64>,

    /// Begin with the last so many lines
    #[arg(long, value_name = "LINES", group = "beginning")]
    lines: Option<u64>,

    /// Append to this file instead of printing, and go on where an earlier start was stopped; what that takes is kept
    /// in FILE.httpfstream
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Wait for an absent resource, for so many seconds or, without a number, for ever
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    wait: Option<Option<u32>>,
}

impl What {
    /// As it is asked for by whoever begins.
    fn ask(&self, mut request: FollowRequest) -> FollowRequest {
        if let Some(offset) = self.offset {
            request = request.offset(offset);
        }
        if let Some(bytes) = self.tail {
            request = request.tail(bytes);
        }
        if let Some(lines) = self.lines {
            request = request.lines(lines);
        }
        self.ask_again(request)
    }

    /// As it is asked for by whoever goes on.
    fn ask_again(&self, request: FollowRequest) -> FollowRequest {
        match self.wait {
            None => request,
            Some(None) => request.wait(Duration::MAX),
            Some(Some(seconds)) => request.wait(Duration::from_secs(seconds.into())),
        }
    }
}

/// How it ended where nothing is wrong with the resource.
enum End {
    Finished {
        read: u64,
    },
    /// Nobody reads what is printed.
    Unread,
}

fn main() {
    let Args { client, what } = shared::args::parse();
    exit_with(PROGRAM, run(&client, &what))
}

async fn run(args: &ClientArgs, what: &What) -> i32 {
    let url = &args.url;
    if args.verbose {
        eprintln!("following data at {url} (ctrl-C to exit)");
    }
    let end = match &what.output {
        Some(path) => keep(args, what, path).await,
        None => tokio::select! {
            end = print(args, what) => end,
            () = unread() => Ok(End::Unread),
        },
    };
    match end {
        Ok(End::Finished { read }) => {
            if args.verbose {
                eprintln!("finished following (read {read} bytes)");
            }
            FINISHED
        }
        Ok(End::Unread) => FINISHED,
        Err(failure) => report(PROGRAM, &format!("could not follow {url}"), &failure),
    }
}

async fn print(args: &ClientArgs, what: &What) -> Result<End, Failure> {
    let mut follower = what.ask(args.client()?.follow(args.url.clone())).await?;
    let began = follower.offset();
    let mut out = stdout();
    while let Some(chunk) = follower.next_chunk().await? {
        let written = match out.write_all(&chunk.bytes).await {
            Ok(()) => out.flush().await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::Unread),
            Err(error) => return Err(Failure::Local(format!("stdout can't be written to: {error}"))),
        }
    }
    Ok(End::Finished { read: follower.offset() - began })
}

/// Sees to it that a file holds the resource.
async fn keep(args: &ClientArgs, what: &What, path: &Path) -> Result<End, Failure> {
    let failed = |error: io::Error| Failure::Local(format!("{} can't be written: {error}", path.display()));
    let url = args.url.to_string();
    let place = Place::beside(path);
    let held = match tokio::fs::metadata(path).await {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(failed(error)),
    };
    let request = args.client()?.follow(args.url.clone());
    let request = match place.load(&url)? {
        // What was begun without a byte may begin elsewhere.
        _ if held == 0 => what.ask(request),
        Some(Record { life: Some(life), base, .. }) => {
            what.ask_again(request).life(life).offset(base.saturating_add(held))
        }
        _ => {
            let detail = format!("{} holds something, and no record tells of what; remove it", path.display());
            return Err(Failure::Local(detail));
        }
    };
    let mut follower = request.await?;
    let began = follower.offset();
    let file = OpenOptions::new().append(true).create(true).open(path).await.map_err(failed)?.into_std().await;
    let taken = matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock));
    if taken || file.metadata().map_err(failed)?.len() != held {
        return Err(Failure::Local(format!("{} is written by another program", path.display())));
    }
    let mut file = tokio::fs::File::from_std(file);
    let copied = async {
        while let Some(chunk) = follower.next_chunk().await? {
            if held == 0 && chunk.next_offset == began + chunk.bytes.len() as u64 {
                // Before the first byte is there, and not earlier: only now the life is certain.
                match follower.life() {
                    Some(life) => {
                        place.save(&Record { url: url.clone(), life: Some(life), base: began, ..Record::default() })?;
                    }
                    // It can't be resumed later, and must not look as if it could.
                    None => place.remove()?,
                }
            }
            file.write_all(&chunk.bytes).await.map_err(failed)?;
            file.flush().await.map_err(failed)?;
        }
        Ok::<_, Failure>(())
    }
    .await;
    // Whatever ended it: what is there stays there.
    file.sync_all().await.map_err(failed)?;
    copied?;
    Ok(End::Finished { read: follower.offset() - began })
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
