//! Gives each stream its connection: one of its own over HTTP/1.1, a slot of a shared one over HTTP/2.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::builder::{Settings, Version};
use super::close::Failure;
use super::connect::{Connected, Connection, connect};
use super::http2::{SharedConnection, StreamSlot};
use super::url::Target;
use crate::error::{Error, ErrorKind, Result};

/// What carries a stream.
pub(super) enum Transport {
    Http1(Connection),
    Http2(StreamSlot),
}

/// The shared connections, and which HTTP version each server speaks.
#[derive(Default)]
pub(super) struct Pool {
    origins: Mutex<HashMap<Origin, OriginState>>,
}

/// Whether the scheme is https, the host, and the port (RFC 6454).
type Origin = (bool, String, u16);

#[derive(Default)]
struct OriginState {
    /// Weak, since a connection lives as long as its streams.
    connections: Vec<Weak<SharedConnection>>,
    /// The attempt to connect that is under way.
    attempt: Option<watch::Receiver<Option<Outcome>>>,
    version: ServerVersion,
}

/// The HTTP version that a server was found to speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ServerVersion {
    /// HTTP/2 with extended CONNECT, or not known.
    #[default]
    Http2,
    /// It picked HTTP/1.1.
    Http1,
    /// It picks HTTP/2, but allows no WebSockets over it, so that HTTP/1.1 must be asked for.
    Http1Only,
}

/// The outcome of an attempt to connect, for all streams that waited for it.
#[derive(Clone)]
enum Outcome {
    /// Keeps the connection alive until the waiting streams have their slots.
    Http2(Arc<SharedConnection>),
    /// The first stream takes the connection. The others open their own.
    Http1(Arc<Mutex<Option<Connection>>>),
    Failed(Arc<Mutex<Failure>>),
}

/// How a stream gets its connection.
enum Plan {
    UseSlot(StreamSlot),
    /// Wait for the attempt that is under way.
    Wait(watch::Receiver<Option<Outcome>>),
    /// Open a connection that won't be shared.
    Connect(Version),
}

impl Pool {
    /// Acquires a connection for one stream. Streams that need one at the same time wait for the same attempt, and share
    /// its failure.
    pub(super) async fn acquire(settings: &Arc<Settings>, target: &Target) -> Result<Transport> {
        let pool = &settings.pool;
        let may_share = settings.version == Version::Http2 || settings.version == Version::Negotiated && target.tls;
        loop {
            let plan = if may_share { pool.plan(settings, target) } else { Plan::Connect(Version::Http1) };
            let mut attempt = match plan {
                Plan::UseSlot(slot) => return Ok(Transport::Http2(slot)),
                Plan::Connect(version) => match pool.connect(settings, target, version).await? {
                    Connected::Http1(connection) => return Ok(Transport::Http1(connection)),
                    Connected::Http2(connection) => match connection.slot() {
                        Some(slot) => return Ok(Transport::Http2(slot)),
                        None => continue,
                    },
                },
                Plan::Wait(attempt) => attempt,
            };
            // The wait fails if the runtime of the attempt is shut down.
            let outcome = attempt.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            match outcome {
                Some(Outcome::Http1(connection)) => {
                    if let Some(connection) = lock(&connection).take() {
                        return Ok(Transport::Http1(connection));
                    }
                }
                Some(Outcome::Http2(connection)) => {
                    if let Some(slot) = connection.slot() {
                        return Ok(Transport::Http2(slot));
                    }
                }
                Some(Outcome::Failed(failure)) => return Err(lock(&failure).error()),
                None => {}
            }
        }
    }

    /// Remembers that this server asks for HTTP/1.1 although it picks HTTP/2.
    pub(super) fn set_http1_only(&self, target: &Target) {
        self.with_origin(target, |origin| origin.version = ServerVersion::Http1Only);
    }

    fn with_origin<T>(&self, target: &Target, f: impl FnOnce(&mut OriginState) -> T) -> T {
        let mut origins = lock(&self.origins);
        f(origins.entry((target.tls, target.host.clone(), target.port)).or_default())
    }

    fn plan(&self, settings: &Arc<Settings>, target: &Target) -> Plan {
        self.with_origin(target, |origin| {
            match origin.version {
                ServerVersion::Http1 => return Plan::Connect(Version::Negotiated),
                ServerVersion::Http1Only => return Plan::Connect(Version::Http1),
                ServerVersion::Http2 => {}
            }
            origin.connections.retain(|weak| weak.upgrade().is_some_and(|connection| !connection.is_closed()));
            let mut connections = origin.connections.iter().filter_map(Weak::upgrade);
            if let Some(slot) = connections.find_map(|connection| connection.slot()) {
                return Plan::UseSlot(slot);
            }
            // An attempt whose sender is gone was dropped with its runtime.
            let running = origin.attempt.take().filter(|attempt| attempt.has_changed().is_ok());
            let attempt = running.unwrap_or_else(|| {
                let (sender, attempt) = watch::channel(None);
                let (settings, target) = (Arc::clone(settings), target.clone());
                // In a task, so that it outlives the stream that started it.
                tokio::spawn(async move {
                    let outcome = settings.pool.attempt(&settings, &target).await;
                    settings.pool.with_origin(&target, |origin| origin.attempt = None);
                    sender.send_replace(Some(outcome));
                });
                attempt
            });
            origin.attempt = Some(attempt.clone());
            Plan::Wait(attempt)
        })
    }

    async fn attempt(&self, settings: &Settings, target: &Target) -> Outcome {
        match self.connect(settings, target, settings.version).await {
            Ok(Connected::Http2(connection)) => Outcome::Http2(connection),
            Ok(Connected::Http1(connection)) => Outcome::Http1(Arc::new(Mutex::new(Some(connection)))),
            Err(error) => Outcome::Failed(Arc::new(Mutex::new(error.into()))),
        }
    }

    /// Connects, falling back to HTTP/1.1 where HTTP/2 allows no WebSockets, and remembers the server's version.
    async fn connect(&self, settings: &Settings, target: &Target, version: Version) -> Result<Connected> {
        let mut connected = connect(settings, target, version).await;
        let mut found = ServerVersion::Http1;
        if let Ok(None) = connected {
            if version != Version::Negotiated {
                return Err(no_extended_connect());
            }
            tracing::debug!("the server allows no WebSockets over HTTP/2, falling back to HTTP/1.1");
            connected = connect(settings, target, Version::Http1).await;
            found = ServerVersion::Http1Only;
        }
        let connected = connected.and_then(|connected| connected.ok_or_else(no_extended_connect));
        self.with_origin(target, |origin| match &connected {
            Ok(Connected::Http2(connection)) => {
                origin.version = ServerVersion::Http2;
                origin.connections.push(Arc::downgrade(connection));
            }
            Ok(Connected::Http1(_)) if origin.version == ServerVersion::Http2 => origin.version = found,
            Ok(Connected::Http1(_)) => {}
            // The server may be another one next time.
            Err(_) => origin.version = ServerVersion::Http2,
        });
        connected
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_extended_connect() -> Error {
    let detail = "the server allows no WebSockets over HTTP/2: its settings don't enable extended CONNECT (RFC 8441)";
    Error::new(ErrorKind::Protocol).with_detail(detail)
}
