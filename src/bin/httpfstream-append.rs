//! Appends what comes on stdin, or a file, to a resource.

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
use self::shared::record::{Place, Record};

const PROGRAM: &str = "httpfstream-append";
/// What is in stdin's pipe when a signal comes is still sent, if it can be read within this time.
const REST: Duration = Duration::from_millis(100);
/// How often a file is looked at that may have grown.
const LOOK: Duration = Duration::from_millis(200);
/// How much is read of a file at once, in bytes.
const READ: usize = 64 * 1024;

/// Appends stdin to the resource at a URL, as it comes, and finishes it at the end of stdin.
///
/// It survives broken connections and restarts of the server, with no byte lost or repeated. Ctrl-C sends what was read,
/// finishes the resource and waits for the server's confirmation; a second one stops at once.
///
/// With --resume it appends a file instead, and can be killed and started again. Ctrl-C waits for the server to
/// acknowledge what was sent and exits with 3, for a later start to go on; with --follow-file it finishes the resource
/// with what the file holds, and SIGTERM leaves it for a later start.
///
/// Exit codes: 0 finished and confirmed, 1 failed, 2 wrong usage, 3 interrupted (stdin could not be read to its end, or a
/// signal stopped it before the end was confirmed), 4 absent.
#[derive(Parser, Debug)]
#[command(name = PROGRAM, version)]
struct Args {
    #[command(flatten)]
    client: ClientArgs,

    #[command(flatten)]
    how: How,
}

#[derive(clap::Args, Debug)]
struct How {
    /// Only if the resource is absent
    #[arg(long)]
    create: bool,

    /// Only if the resource ends at this offset, in bytes
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,

    /// Finish for good: nothing can be appended afterwards
    #[arg(long)]
    seal: bool,

    /// Append this file, which may only grow, and go on where an earlier start was stopped; what that takes is kept in
    /// FILE.httpfstream: remove it to append the whole file once more
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,

    /// Go on while the file grows, until Ctrl-C
    #[arg(long, requires = "resume")]
    follow_file: bool,
}

impl How {
    /// As it is asked for by whoever begins.
    fn ask(&self, mut request: AppendRequest) -> AppendRequest {
        if self.create {
            request = request.create_new();
        }
        if let Some(offset) = self.offset {
            request = request.offset(offset);
        }
        self.ask_again(request)
    }

    /// As it is asked for by whoever goes on.
    fn ask_again(&self, request: AppendRequest) -> AppendRequest {
        if self.seal { request.seal_at_end() } else { request }
    }
}

/// How it ended where nothing failed.
enum End {
    Finished {
        sent: u64,
    },
    /// A signal left the rest for a later start.
    Left,
}

fn main() {
    let Args { client, how } = shared::args::parse();
    exit_with(PROGRAM, run(&client, &how))
}

async fn run(args: &ClientArgs, how: &How) -> i32 {
    let url = &args.url;
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("{PROGRAM}: signals can't be awaited: {error}");
            return FAILED;
        }
    };
    let source = how.resume.as_ref().map_or("stdin".to_owned(), |file| file.display().to_string());
    if args.verbose {
        eprintln!("appending from {source} to {url}");
    }
    let ended = match &how.resume {
        None => append_stdin(args, how, signals).await,
        Some(file) => append_file(args, how, file, signals).await,
    };
    match ended {
        Ok(End::Finished { sent }) => {
            if args.verbose {
                eprintln!("finished appending to {url} (sent {sent} bytes)");
            }
            FINISHED
        }
        Ok(End::Left) => {
            eprintln!("{PROGRAM}: stopped before the end; the same command goes on");
            INTERRUPTED
        }
        Err(failure) => report(PROGRAM, &format!("could not append to {url}"), &failure),
    }
}

async fn append_stdin(args: &ClientArgs, how: &How, mut signals: Signals) -> Result<End, Failure> {
    let request = how.ask(args.client()?.open_append(args.url.clone()));
    let mut appender = tokio::select! {
        opened = request.into_future() => opened?,
        _ = signals.next() => exit(INTERRUPTED),
    };
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(watch(signals, stop));
    let sent = appender.append_reader(Input::new(stopped)).await?;
    appender.finish().await?;
    Ok(End::Finished { sent })
}

async fn append_file(args: &ClientArgs, how: &How, path: &Path, mut signals: Signals) -> Result<End, Failure> {
    let url = args.url.to_string();
    let file = File::open(path).await.map_err(|error| unreadable(path, &error))?;
    let place = Place::beside(path);
    let client = args.client()?;
    let (mut record, request) = match place.load(&url)? {
        Some(Record { id: Some(id), life, base, acknowledged, finishing, .. }) => {
            let record = Record { url, id: Some(id.clone()), life, base, acknowledged, finishing };
            let request = client.open_append(args.url.clone()).appender_id(id);
            let request = match life {
                None => how.ask(request),
                Some(life) => {
                    let request = how.ask_again(request).resume(life, acknowledged);
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
            place.save(&record)?;
            (record, how.ask(client.open_append(args.url.clone()).appender_id(id)))
        }
    };
    let mut request = request;
    let appender = loop {
        let appender = tokio::select! {
            opened = request.into_future() => match opened {
                Ok(appender) => appender,
                Err(error) => {
                    if record.life.is_none() && !error.is_retryable() {
                        // Nothing was sent, and nothing is to be resumed.
                        place.remove()?;
                    }
                    return Err(error.into());
                }
            },
            _ = signals.next() => return Ok(End::Left),
        };
        let (Some(finished), Some(life)) = (record.finishing.filter(|_| appender.is_finished()), record.life) else {
            break appender;
        };
        if record.base.saturating_add(length(&file, path).await?) <= finished {
            break appender;
        }
        // It was finished, and the file has grown since.
        (record.acknowledged, record.finishing) = (finished, None);
        place.save(&record)?;
        let again = client.open_append(args.url.clone()).appender_id(appender.id().clone());
        request = how.ask_again(again).resume(life, finished);
    };
    if appender.is_finished() {
        return Ok(End::Finished { sent: 0 });
    }
    if !appender.is_resumable() {
        place.remove()?;
        let detail = "the server doesn't speak httpfstream.v1, which --resume needs";
        return Err(Error::new(ErrorKind::Protocol).with_detail(detail).into());
    }
    let began = appender.offset();
    if record.life.is_none() {
        (record.base, record.acknowledged) = (began, began);
    }
    // Before the first byte is sent.
    record.life = appender.life();
    record.finishing = None;
    place.save(&record)?;
    let mut upload = Upload { file, path, appender, record, place, signals };
    if !upload.send(how.follow_file).await? {
        return upload.leave().await;
    }
    let sent = upload.appender.offset() - began;
    upload.finish().await?;
    Ok(End::Finished { sent })
}

/// A file on its way.
struct Upload<'a> {
    file: File,
    path: &'a Path,
    appender: Appender,
    record: Record,
    place: Place,
    signals: Signals,
}

impl Upload<'_> {
    /// Sends what the server doesn't have up to the file's end; false if a signal came before.
    async fn send(&mut self, follow: bool) -> Result<bool, Failure> {
        let mut ending = !follow;
        self.seek().await?;
        loop {
            let step = async {
                let mut buf = BytesMut::with_capacity(READ);
                let read = self.file.read_buf(&mut buf).await.map_err(|error| unreadable(self.path, &error))?;
                if read > 0 {
                    self.appender.append(buf).await?;
                } else if !ending {
                    tokio::select! {
                        error = self.appender.closed() => return Err(error.into()),
                        () = sleep(LOOK) => {}
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
                        // It may have been cut.
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
                // From now on a resource without these bytes is another one.
                self.note()?;
            }
        }
    }

    /// Goes to where the next byte is.
    async fn seek(&mut self) -> Result<(), Failure> {
        let position = self.appender.offset().checked_sub(self.record.base);
        let length = length(&self.file, self.path).await?;
        let Some(position) = position.filter(|position| *position <= length) else {
            let detail = format!("{} is shorter than what was appended of it before", self.path.display());
            return Err(Failure::Local(detail));
        };
        self.file.seek(SeekFrom::Start(position)).await.map_err(|error| unreadable(self.path, &error))?;
        Ok(())
    }

    /// Keeps what is acknowledged.
    fn note(&mut self) -> Result<(), Failure> {
        self.record.life = self.appender.life();
        self.record.acknowledged = self.appender.acknowledged();
        self.place.save(&self.record)
    }

    /// Stops, for a later start to go on.
    async fn leave(mut self) -> Result<End, Failure> {
        tokio::select! {
            synced = self.appender.sync() => { synced?; }
            _ = self.signals.next() => give_up(),
        }
        self.note()?;
        Ok(End::Left)
    }

    async fn finish(mut self) -> Result<(), Failure> {
        let length = self.appender.offset();
        self.record.finishing = Some(length);
        self.note()?;
        tokio::select! {
            finished = self.appender.finish() => { finished?; }
            _ = self.signals.next() => give_up(),
        }
        // Kept, so that a later start finds that there is nothing left to do.
        self.record.acknowledged = length;
        self.place.save(&self.record)
    }
}

async fn length(file: &File, path: &Path) -> Result<u64, Failure> {
    file.metadata().await.map(|metadata| metadata.len()).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Local(format!("{} can't be read: {error}", path.display()))
}

/// A second signal doesn't wait for the server.
fn give_up() -> ! {
    eprintln!("{PROGRAM}: stopped before the server confirmed the end");
    exit(INTERRUPTED);
}

/// The first signal ends the input, the second one the program.
async fn watch(mut signals: Signals, stop: oneshot::Sender<()>) {
    signals.next().await;
    let _ = stop.send(());
    signals.next().await;
    give_up();
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

/// What was asked for from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// Ctrl-C.
    Interrupt,
    Terminate,
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
