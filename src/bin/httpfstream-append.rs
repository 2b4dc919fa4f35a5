//! Appends stdin or a file to a resource.

mod shared;

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::exit;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use clap::Parser;
use httpfstream::client::{AppendRequest, Appender};
use httpfstream::{AppenderId, Error, ErrorKind};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _, ReadBuf, Stdin, stdin};
use tokio::sync::oneshot;
use tokio::time::sleep;

use self::shared::client::ClientArgs;
use self::shared::exit::{FAILED, FINISHED, Failure, INTERRUPTED, exit_with, report};
use self::shared::record::{Record, RecordFile};

const PROGRAM: &str = "httpfstream-append";
/// After a signal, stdin is still read for this long, so that the contents of its pipe are sent.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);
/// How often a file is checked for growth.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The size of reads from a file, in bytes.
const READ_SIZE: usize = 64 * 1024;

/// Appends stdin to the resource at a URL as it arrives, and finishes the resource at the end of stdin.
///
/// Broken connections and restarts of the server are survived with no byte lost or repeated. Ctrl-C sends what was
/// read, finishes the resource and waits for the server's confirmation; a second Ctrl-C stops at once.
///
/// With --resume, appends a file instead, and can be killed and run again. Ctrl-C waits until the server has
/// acknowledged what was sent, and exits with 3; running the same command again resumes. With --follow-file, Ctrl-C
/// finishes the resource at the file's current end, and SIGTERM stops so that a later run resumes.
///
/// Exit codes: 0 finished and confirmed, 1 failed, 2 wrong usage, 3 interrupted (stdin could not be read to its end,
/// or a signal stopped the program before the end was confirmed), 4 absent.
#[derive(Parser, Debug)]
#[command(name = PROGRAM, version)]
struct Args {
    #[command(flatten)]
    client: ClientArgs,

    #[command(flatten)]
    append: AppendArgs,
}

#[derive(clap::Args, Debug)]
struct AppendArgs {
    /// Append only if the resource is absent
    #[arg(long)]
    create: bool,

    /// Append only if the resource ends at this offset, in bytes
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,

    /// Seal the resource at the end, so that nothing can be appended afterwards
    #[arg(long)]
    seal: bool,

    /// Append this file, which may only grow, and resume where an earlier run stopped. The state is kept in
    /// FILE.httpfstream; remove that to append the whole file again
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,

    /// Keep appending while the file grows, until Ctrl-C
    #[arg(long, requires = "resume")]
    follow_file: bool,
}

impl AppendArgs {
    /// Configures the request of a first run.
    fn configure(&self, mut request: AppendRequest) -> AppendRequest {
        if self.create {
            request = request.create_new();
        }
        if let Some(offset) = self.offset {
            request = request.offset(offset);
        }
        self.configure_resumed(request)
    }

    /// Configures the request of a run that resumes.
    fn configure_resumed(&self, request: AppendRequest) -> AppendRequest {
        if self.seal { request.seal_at_end() } else { request }
    }
}

/// The end of a run without a failure.
enum End {
    Finished {
        sent: u64,
    },
    /// A signal stopped it, and a later run resumes.
    Stopped,
}

fn main() {
    let Args { client, append } = shared::args::parse();
    exit_with(PROGRAM, run(&client, &append))
}

async fn run(args: &ClientArgs, options: &AppendArgs) -> i32 {
    let url = &args.url;
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("{PROGRAM}: can't handle signals: {error}");
            return FAILED;
        }
    };
    let source = options.resume.as_ref().map_or("stdin".to_owned(), |file| file.display().to_string());
    if args.verbose {
        eprintln!("appending from {source} to {url}");
    }
    let ended = match &options.resume {
        None => append_stdin(args, options, signals).await,
        Some(file) => append_file(args, options, file, signals).await,
    };
    match ended {
        Ok(End::Finished { sent }) => {
            if args.verbose {
                eprintln!("finished appending to {url} (sent {sent} bytes)");
            }
            FINISHED
        }
        Ok(End::Stopped) => {
            eprintln!("{PROGRAM}: stopped before the end; run the same command again to resume");
            INTERRUPTED
        }
        Err(failure) => report(PROGRAM, &format!("could not append to {url}"), &failure),
    }
}

async fn append_stdin(args: &ClientArgs, options: &AppendArgs, mut signals: Signals) -> Result<End, Failure> {
    let request = options.configure(args.client()?.open_append(args.url.clone()));
    let mut appender = tokio::select! {
        opened = request.into_future() => opened?,
        _ = signals.next() => exit(INTERRUPTED),
    };
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(stop_on_signal(signals, stop));
    let sent = appender.append_reader(Input::new(stopped)).await?;
    appender.finish().await?;
    Ok(End::Finished { sent })
}

async fn append_file(
    args: &ClientArgs,
    options: &AppendArgs,
    path: &Path,
    mut signals: Signals,
) -> Result<End, Failure> {
    let url = args.url.to_string();
    let file = File::open(path).await.map_err(|error| unreadable(path, &error))?;
    let record_file = RecordFile::beside(path);
    let client = args.client()?;
    let (mut record, mut request) = match record_file.load(&url)? {
        Some(Record { id: Some(id), life, base, acknowledged, finishing, .. }) => {
            let record = Record { url, id: Some(id.clone()), life, base, acknowledged, finishing };
            let request = client.open_append(args.url.clone()).appender_id(id);
            let request = match life {
                None => options.configure(request),
                Some(life) => {
                    let request = options.configure_resumed(request).resume(life, acknowledged);
                    match finishing {
                        Some(length) => request.perhaps_finished(length),
                        None => request,
                    }
                }
            };
            (record, request)
        }
        _ => {
            let id = AppenderId::random()?;
            let record = Record { url, id: Some(id.clone()), ..Record::default() };
            record_file.save(&record)?;
            (record, options.configure(client.open_append(args.url.clone()).appender_id(id)))
        }
    };
    let appender = loop {
        let appender = tokio::select! {
            opened = request.into_future() => match opened {
                Ok(appender) => appender,
                Err(error) => {
                    if record.life.is_none() && !error.is_retryable() {
                        // Nothing was sent, so there is nothing to resume.
                        record_file.remove()?;
                    }
                    return Err(error.into());
                }
            },
            _ = signals.next() => return Ok(End::Stopped),
        };
        let (Some(finished), Some(life)) = (record.finishing.filter(|_| appender.is_finished()), record.life) else {
            break appender;
        };
        if record.base.saturating_add(length(&file, path).await?) <= finished {
            break appender;
        }
        // The resource was finished, but the file has grown since.
        (record.acknowledged, record.finishing) = (finished, None);
        record_file.save(&record)?;
        let again = client.open_append(args.url.clone()).appender_id(appender.id().clone());
        request = options.configure_resumed(again).resume(life, finished);
    };
    if appender.is_finished() {
        return Ok(End::Finished { sent: 0 });
    }
    if !appender.is_resumable() {
        record_file.remove()?;
        let detail = "the server doesn't speak httpfstream.v1, which --resume needs";
        return Err(Error::new(ErrorKind::Protocol).with_detail(detail).into());
    }
    let began = appender.offset();
    if record.life.is_none() {
        (record.base, record.acknowledged) = (began, began);
    }
    // Saved before the first byte is sent.
    record.life = appender.life();
    record.finishing = None;
    record_file.save(&record)?;
    let mut upload = Upload { file, path, appender, record, record_file, signals };
    if !upload.send(options.follow_file).await? {
        return upload.stop().await;
    }
    let sent = upload.appender.offset() - began;
    upload.finish().await?;
    Ok(End::Finished { sent })
}

/// The transfer of a file.
struct Upload<'a> {
    file: File,
    path: &'a Path,
    appender: Appender,
    record: Record,
    record_file: RecordFile,
    signals: Signals,
}

impl Upload<'_> {
    /// Sends the rest of the file. Returns false if a signal stopped it before the end.
    async fn send(&mut self, follow: bool) -> Result<bool, Failure> {
        let mut ending = !follow;
        self.seek().await?;
        loop {
            let step = async {
                let mut buf = BytesMut::with_capacity(READ_SIZE);
                let read = self.file.read_buf(&mut buf).await.map_err(|error| unreadable(self.path, &error))?;
                if read > 0 {
                    self.appender.append(buf).await?;
                } else if !ending {
                    tokio::select! {
                        error = self.appender.closed() => return Err(error.into()),
                        () = sleep(POLL_INTERVAL) => {}
                    }
                }
                Ok::<_, Failure>(read)
            };
            let signal = tokio::select! {
                biased;
                signal = self.signals.next() => Some(signal),
                read = step => match read? {
                    0 if ending => return Ok(true),
                    0 => {
                        // Fails if the file was truncated.
                        self.seek().await?;
                        None
                    }
                    _ => None,
                },
            };
            match signal {
                None => {}
                Some(Signal::Interrupt) if !ending => {
                    ending = true;
                    self.seek().await?;
                }
                Some(_) if ending && follow => give_up(),
                Some(_) => return Ok(false),
            }
            if self.record.acknowledged == self.record.base && self.appender.acknowledged() > self.record.base {
                // The first acknowledgement: from now on a resource without these bytes counts as another one.
                self.save_progress()?;
            }
        }
    }

    /// Seeks to the next byte to send.
    async fn seek(&mut self) -> Result<(), Failure> {
        let position = self.appender.offset().checked_sub(self.record.base);
        let length = length(&self.file, self.path).await?;
        let Some(position) = position.filter(|position| *position <= length) else {
            let detail = format!("{} is shorter than the part that was appended before", self.path.display());
            return Err(Failure::Local(detail));
        };
        self.file.seek(SeekFrom::Start(position)).await.map_err(|error| unreadable(self.path, &error))?;
        Ok(())
    }

    /// Saves what is acknowledged.
    fn save_progress(&mut self) -> Result<(), Failure> {
        self.record.life = self.appender.life();
        self.record.acknowledged = self.appender.acknowledged();
        self.record_file.save(&self.record)
    }

    /// Stops so that a later run can resume.
    async fn stop(mut self) -> Result<End, Failure> {
        tokio::select! {
            synced = self.appender.sync() => { synced?; }
            _ = self.signals.next() => give_up(),
        }
        self.save_progress()?;
        Ok(End::Stopped)
    }

    async fn finish(mut self) -> Result<(), Failure> {
        let length = self.appender.offset();
        self.record.finishing = Some(length);
        self.save_progress()?;
        tokio::select! {
            finished = self.appender.finish() => { finished?; }
            _ = self.signals.next() => give_up(),
        }
        // The record is kept, so that a later run finds nothing left to do.
        self.record.acknowledged = length;
        self.record_file.save(&self.record)
    }
}

async fn length(file: &File, path: &Path) -> Result<u64, Failure> {
    file.metadata().await.map(|metadata| metadata.len()).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Local(format!("{} can't be read: {error}", path.display()))
}

/// Exits without waiting for the server.
fn give_up() -> ! {
    eprintln!("{PROGRAM}: stopped before the server confirmed the end");
    exit(INTERRUPTED);
}

/// Ends the input at the first signal, and the program at the second.
async fn stop_on_signal(mut signals: Signals, stop: oneshot::Sender<()>) {
    signals.next().await;
    let _ = stop.send(());
    signals.next().await;
    give_up();
}

/// Stdin up to its end or a signal.
struct Input {
    stdin: Stdin,
    stop: Pin<Box<dyn Future<Output = ()>>>,
    stopped: bool,
}

impl Input {
    fn new(stopped: oneshot::Receiver<()>) -> Self {
        let stop = Box::pin(async {
            let _ = stopped.await;
            sleep(DRAIN_TIMEOUT).await;
        });
        Self { stdin: stdin(), stop, stopped: false }
    }
}

impl AsyncRead for Input {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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

/// A signal to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// Ctrl-C.
    Interrupt,
    Terminate,
}

/// Ctrl-C, and on Unix SIGTERM.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Signal::Interrupt
    }
}
