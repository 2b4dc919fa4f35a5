//! What an appender can be opened with.

use std::future::{IntoFuture, poll_fn};
use std::pin::Pin;
use std::sync::Arc;

use super::Appender;
use super::pipe::{Pipe, TaskSide, unspoken};
use super::task::Task;
use crate::client::builder::Settings;
use crate::client::request::{Answer, Dialect, Options, Verb, send};
use crate::client::url::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::state::Life;

/// Opens a resource for appending once it is awaited: see [`Client::open_append`](crate::client::Client::open_append).
///
/// All options but [`appender_id`](Self::appender_id) need a server that speaks `httpfstream.v1`: with any other one
/// opening fails with [`Protocol`](ErrorKind::Protocol).
#[must_use = "nothing is opened before it is awaited"]
#[derive(Debug)]
pub struct AppendRequest {
    at: Result<(Arc<Settings>, Target)>,
    id: Option<AppenderId>,
    offset: Option<u64>,
    create: bool,
    seal: bool,
    resume: Option<(Life, u64)>,
    finished: Option<u64>,
}

impl AppendRequest {
    pub(in crate::client) fn new(at: Result<(Arc<Settings>, Target)>) -> Self {
        Self { at, id: None, offset: None, create: false, seal: false, resume: None, finished: None }
    }

    /// Only if the resource is absent, else [`Exists`](ErrorKind::Exists).
    pub fn create_new(mut self) -> Self {
        self.create = true;
        self
    }

    /// Only if the resource ends at this offset, in bytes, else [`Offset`](ErrorKind::Offset).
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The end is for good: nothing can be appended to the resource after [`finish`](Appender::finish) or a shutdown.
    pub fn seal_at_end(mut self) -> Self {
        self.seal = true;
        self
    }

    /// Who appends. Default: a random one.
    ///
    /// Keep it, secretly, if another process is to go on with [`resume`](Self::resume).
    pub fn appender_id(mut self, id: AppenderId) -> Self {
        self.id = Some(id);
        self
    }

    /// Goes on for an appender that is gone, with its [id](Self::appender_id), the [life](Appender::life) that it
    /// appended to, and the offset up to which it is certain that its bytes are stored:
    /// [acknowledged](Appender::acknowledged) ones, or where it began.
    ///
    /// What has to be appended next is what comes at the new appender's [`offset`](Appender::offset), which may be
    /// more than `acknowledged`. Where nothing was acknowledged at the very start, any life will do. Where somebody else appended in between, or what was acknowledged is gone, opening
    /// fails with [`Diverged`](ErrorKind::Diverged) or [`Life`](ErrorKind::Life).
    pub fn resume(mut self, life: Life, acknowledged: u64) -> Self {
        self.resume = Some((life, acknowledged));
        self
    }

    /// With [`resume`](Self::resume): the appender that is gone had asked for the end at this length, and perhaps the
    /// server has confirmed it. Then nothing is opened, and [`is_finished`](Appender::is_finished) says so.
    pub fn perhaps_finished(mut self, length: u64) -> Self {
        self.finished = Some(length);
        self
    }

    async fn open(self) -> Result<Appender> {
        let Self { at, id, offset, create, seal, resume, finished } = self;
        let (settings, target) = at?;
        let needs = create || seal || offset.is_some() || resume.is_some();
        if finished.is_some() && resume.is_none() || resume.is_some() && id.is_none() {
            let detail = "to go on for another appender takes its id and its life";
            return Err(Error::new(ErrorKind::BadRequest).with_detail(detail));
        }
        let id = id.map_or_else(AppenderId::random, Ok)?;
        let mut options = Options::default();
        options.set_id(&id)?;
        if let Some(offset) = offset {
            options.set("offset", offset);
        }
        if create {
            options.set("create", 1);
        }
        if let Some((life, _)) = resume {
            options.set("life", life);
        }
        if let Some(length) = finished {
            options.set("finish", length);
        }
        let mut answer = Box::pin(send(&settings, &target, Verb::Append, &options)).await;
        let mut any_life = false;
        if let (Err(error), Some((_, 0))) = (&answer, resume)
            && matches!(error.kind(), ErrorKind::Life | ErrorKind::NotFound)
        {
            // An appender that left nothing has left no resource either.
            any_life = true;
            options = Options::default();
            options.set_id(&id)?;
            answer = Box::pin(send(&settings, &target, Verb::Append, &options)).await;
        }
        let (conn, dialect, length) = match answer? {
            Answer::Upgraded { conn, dialect, length, .. } => (conn, dialect, length),
            Answer::Plain { .. } => {
                return Err(Error::new(ErrorKind::Status)
                    .with_detail("the server answered 200 to an APPEND instead of upgrading the connection"));
            }
        };
        let (life, start) = resume.map_or((None, 0), |(life, acknowledged)| (Some(life), acknowledged));
        let pipe = Arc::new(Pipe::new(settings.max_unacknowledged, start, life));
        if dialect != Dialect::Resumable {
            if needs {
                return Err(unspoken("what was asked for"));
            }
            tracing::info!("the server doesn't speak httpfstream.v1: nothing is acknowledged or can be resumed");
            pipe.attach_plain(length);
        }
        let appender = Appender { pipe: Arc::clone(&pipe), id: id.clone(), seal };
        let task = Task { settings, target, id, side: TaskSide(pipe), first: options, finishing: finished, any_life };
        tokio::spawn(task.run(conn, dialect));
        poll_fn(|cx| appender.pipe.poll_attached(cx)).await?;
        Ok(appender)
    }
}

impl IntoFuture for AppendRequest {
    type Output = Result<Appender>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Appender>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}
