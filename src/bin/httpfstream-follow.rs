//! Prints a resource, or writes it to a file, up to its end.

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
use self::shared::record::{Record, RecordFile};

const PROGRAM: &str = "httpfstream-follow";

/// Prints the resource at a URL: the stored bytes, then new ones as they arrive, up to the end.
///
/// Broken connections and restarts of the server are survived with no byte lost or repeated.
///
/// Exit codes: 0 finished, 1 failed, 2 wrong usage, 3 interrupted (the appender was lost, so the data is incomplete), 4
/// absent.
#[derive(Parser, Debug)]
#[command(name = PROGRAM, version)]
struct Args {
    #[command(flatten)]
    client: ClientArgs,

    #[command(flatten)]
    follow: FollowArgs,
}

#[derive(clap::Args, Debug)]
struct FollowArgs {
    /// Start at this offset, in bytes
    #[arg(long, value_name = "BYTES", group = "beginning")]
    offset: Option<u64>,

    /// Start with the last BYTES bytes
    #[arg(long, value_name = "BYTES", group = "beginning")]
    tail: Option<u64>,

    /// Start with the last LINES lines
    #[arg(long, value_name = "LINES", group = "beginning")]
    lines: Option<u64>,

    /// Write to this file instead of stdout, and resume where an earlier run stopped. The state is kept in
    /// FILE.httpfstream
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Wait for an absent resource, this long or, without a number, for ever
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    wait: Option<Option<u32>>,
}

impl FollowArgs {
    /// Configures the request of a first run.
    fn configure(&self, mut request: FollowRequest) -> FollowRequest {
        if let Some(offset) = self.offset {
            request = request.offset(offset);
        }
        if let Some(bytes) = self.tail {
            request = request.tail(bytes);
        }
        if let Some(lines) = self.lines {
            request = request.lines(lines);
        }
        self.configure_resumed(request)
    }

    /// Configures the request of a run that resumes.
    fn configure_resumed(&self, request: FollowRequest) -> FollowRequest {
        match self.wait {
            None => request,
            Some(None) => request.wait(Duration::MAX),
            Some(Some(seconds)) => request.wait(Duration::from_secs(seconds.into())),
        }
    }
}

/// The end of a run without a failure.
enum End {
    Finished {
        read: u64,
    },
    /// The reader of stdout is gone.
    ReaderGone,
}

fn main() {
    let Args { client, follow } = shared::args::parse();
    exit_with(PROGRAM, run(&client, &follow))
}

async fn run(args: &ClientArgs, options: &FollowArgs) -> i32 {
    let url = &args.url;
    if args.verbose {
        eprintln!("following data at {url} (ctrl-C to exit)");
    }
    let end = match &options.output {
        Some(path) => save(args, options, path).await,
        None => tokio::select! {
            end = print(args, options) => end,
            () = reader_gone() => Ok(End::ReaderGone),
        },
    };
    match end {
        Ok(End::Finished { read }) => {
            if args.verbose {
                eprintln!("finished following (read {read} bytes)");
            }
            FINISHED
        }
        Ok(End::ReaderGone) => FINISHED,
        Err(failure) => report(PROGRAM, &format!("could not follow {url}"), &failure),
    }
}

async fn print(args: &ClientArgs, options: &FollowArgs) -> Result<End, Failure> {
    let mut follower = options.configure(args.client()?.follow(args.url.clone())).await?;
    let began = follower.offset();
    let mut out = stdout();
    while let Some(chunk) = follower.next_chunk().await? {
        let written = match out.write_all(&chunk.bytes).await {
            Ok(()) => out.flush().await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::ReaderGone),
            Err(error) => return Err(Failure::Local(format!("can't write to stdout: {error}"))),
        }
    }
    Ok(End::Finished { read: follower.offset() - began })
}

/// Writes the resource to a file, or continues a file of an earlier run.
async fn save(args: &ClientArgs, options: &FollowArgs, path: &Path) -> Result<End, Failure> {
    let failed = |error: io::Error| Failure::Local(format!("{} can't be written: {error}", path.display()));
    let url = args.url.to_string();
    let record_file = RecordFile::beside(path);
    let existing = match tokio::fs::metadata(path).await {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(failed(error)),
    };
    let request = args.client()?.follow(args.url.clone());
    let request = match record_file.load(&url)? {
        // Without a byte in the file, an earlier start position doesn't matter.
        _ if existing == 0 => options.configure(request),
        Some(Record { life: Some(life), base, .. }) => {
            options.configure_resumed(request).life(life).offset(base.saturating_add(existing))
        }
        _ => {
            let detail = format!("{} is not empty, and no record says what it holds; remove it", path.display());
            return Err(Failure::Local(detail));
        }
    };
    let mut follower = request.await?;
    let began = follower.offset();
    let file = OpenOptions::new().append(true).create(true).open(path).await.map_err(failed)?.into_std().await;
    let locked = matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock));
    if locked || file.metadata().map_err(failed)?.len() != existing {
        return Err(Failure::Local(format!("{} is being written by another program", path.display())));
    }
    let mut file = tokio::fs::File::from_std(file);
    let copied = async {
        while let Some(chunk) = follower.next_chunk().await? {
            if existing == 0 && chunk.next_offset == began + chunk.bytes.len() as u64 {
                // The record has to exist before the first byte is written. It isn't saved earlier, since the life is
                // certain only now.
                match follower.life() {
                    Some(life) => {
                        record_file.save(&Record {
                            url: url.clone(),
                            life: Some(life),
                            base: began,
                            ..Record::default()
                        })?;
                    }
                    // Without a life the file can't be resumed, so there must be no record.
                    None => record_file.remove()?,
                }
            }
            file.write_all(&chunk.bytes).await.map_err(failed)?;
            file.flush().await.map_err(failed)?;
        }
        Ok::<_, Failure>(())
    }
    .await;
    // Also after a failure, so that a later run can resume.
    file.sync_all().await.map_err(failed)?;
    copied?;
    Ok(End::Finished { read: follower.offset() - began })
}

/// Waits until the reader of stdout is gone. While there is nothing to print, no write would fail for it.
#[cfg(unix)]
async fn reader_gone() {
    use rustix::event::{PollFd, PollFlags, poll};
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // The thread lives as long as the program.
    std::thread::spawn(move || {
        let stdout = io::stdout();
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) if fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => break,
                // Stdout can't be watched.
                _ => return,
            }
        }
        let _ = sender.send(());
    });
    if receiver.await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(not(unix))]
async fn reader_gone() {
    std::future::pending::<()>().await;
}
