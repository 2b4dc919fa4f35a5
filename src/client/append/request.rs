//! The options of an append, and how it is opened.

use std::future::{IntoFuture, poll_fn};
use std::pin::Pin;
use std::sync::Arc;

use super::Appender;
use super::buffer::{SendBuffer, TaskGuard, v1_required};
use super::task::AppendTask;
use crate::client::builder::Settings;
use crate::client::request::{Accepted, Dialect, Parameters, Verb, send};
use crate::client::url::Target;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::AppenderId;
use crate::state::Life;

/// Opens a resource for appending once it is awaited: see [`Client::open_append`](crate::client::Client::open_append).
///
/// All options but [`appender_id`](Self::appender_id) need a server that speaks `httpfstream.v1`; opening fails with
/// [`Protocol`](ErrorKind::Protocol) otherwise.
#[must_use = "nothing is opened before it is awaited"]
#[derive(Debug)]
pub struct AppendRequest {
    destination: Result<(Arc<Settings>, Target)>,
    id: Option<AppenderId>,
    offset: Option<u64>,
    create: bool,
    seal: bool,
    resume: Option<(Life, u64)>,
    perhaps_finished: Option<u64>,
}

impl AppendRequest {
    pub(in crate::client) fn new(destination: Result<(Arc<Settings>, Target)>) -> Self {
        Self { destination, id: None, offset: None, create: false, seal: false, resume: None, perhaps_finished: None }
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

    /// Makes [`finish`](Appender::finish) and a shutdown of the [`AsyncWrite`](tokio::io::AsyncWrite)
    /// [seal](Appender::seal) the resource: nobody can append to it afterwards.
    pub fn seal_at_end(mut self) -> Self {
        self.seal = true;
        self
    }

    /// The appender's id. Default: a random one.
    ///
    /// Store it, as the secret that it is, if another process is to [`resume`](Self::resume) the append.
    pub fn appender_id(mut self, id: AppenderId) -> Self {
        self.id = Some(id);
        self
    }

    /// Resumes the append of an earlier appender, of this or another process, with its [id](Self::appender_id), the
    /// [life](Appender::life) that it appended to, and the offset before which its bytes are certainly stored:
    /// [`acknowledged`](Appender::acknowledged).
    ///
    /// Continue with the byte at the new appender's [`offset`](Appender::offset), which may be more than `acknowledged`.
    /// Any life is accepted if `acknowledged` is 0. Opening fails with [`Diverged`](ErrorKind::Diverged) or
    /// [`Life`](ErrorKind::Life) if somebody else appended in between, or if acknowledged bytes are gone.
    pub fn resume(mut self, life: Life, acknowledged: u64) -> Self {
        self.resume = Some((life, acknowledged));
        self
    }

    /// With [`resume`](Self::resume): the earlier appender had requested the finish at this length, and the server may
    /// have carried it out. If it has, nothing is opened, and [`is_finished`](Appender::is_finished) is true.
    pub fn perhaps_finished(mut self, length: u64) -> Self {
        self.perhaps_finished = Some(length);
        self
    }

    async fn open(self) -> Result<Appender> {
        let Self { destination, id, offset, create, seal, resume, perhaps_finished } = self;
        let (settings, target) = destination?;
        let needs_v1 = create || seal || offset.is_some() || resume.is_some();
        if perhaps_finished.is_some() && resume.is_none() || resume.is_some() && id.is_none() {
            let detail = "resuming an append needs the appender's id and its life";
            return Err(Error::new(ErrorKind::BadRequest).with_detail(detail));
        }
        let id = id.map_or_else(AppenderId::random, Ok)?;
        let mut parameters = Parameters::default();
        parameters.set_id(&id)?;
        if let Some(offset) = offset {
            parameters.set("offset", offset);
        }
        if create {
            parameters.set("create", 1);
        }
        if let Some((life, _)) = resume {
            parameters.set("life", life);
        }
        if let Some(length) = perhaps_finished {
            parameters.set("finish", length);
        }
        let mut accepted = Box::pin(send(&settings, &target, Verb::Append, &parameters)).await;
        let mut any_life = false;
        if let (Err(error), Some((_, 0))) = (&accepted, resume)
            && matches!(error.kind(), ErrorKind::Life | ErrorKind::NotFound)
        {
            // The resource of an appender that stored nothing is gone, or was created anew.
            any_life = true;
            parameters = Parameters::default();
            parameters.set_id(&id)?;
            accepted = Box::pin(send(&settings, &target, Verb::Append, &parameters)).await;
        }
        let (conn, dialect, length) = match accepted? {
            Accepted::WebSocket { conn, dialect, length, .. } => (conn, dialect, length),
            Accepted::Body { .. } => {
                return Err(Error::new(ErrorKind::Status)
                    .with_detail("the server answered 200 to an APPEND instead of upgrading the connection"));
            }
        };
        let (life, start) = resume.map_or((None, 0), |(life, acknowledged)| (Some(life), acknowledged));
        let buffer = Arc::new(SendBuffer::new(settings.max_unacknowledged, start, life));
        if dialect != Dialect::V1 {
            if needs_v1 {
                return Err(v1_required("an option"));
            }
            tracing::info!("the server doesn't speak httpfstream.v1: nothing is acknowledged or can be resumed");
            buffer.attach_without_acks(length);
        }
        let appender = Appender { buffer: Arc::clone(&buffer), id: id.clone(), seal };
        let guard = TaskGuard(buffer);
        let task = AppendTask { settings, target, id, guard, parameters, pending_finish: perhaps_finished, any_life };
        tokio::spawn(task.run(conn, dialect));
        poll_fn(|cx| appender.buffer.poll_attached(cx)).await?;
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
