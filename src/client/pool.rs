//! Which connection a stream gets: one of its own over HTTP/1.1, a shared one over HTTP/2.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::builder::{Settings, Version};
use super::close::Failure;
use super::connect::{Connection, Made, connect};
use super::http2::{Place, Shared};
use super::url::Target;
use crate::error::{Error, ErrorKind, Result};

/// What a stream can be asked for on.
pub(super) enum Via {
    /// A connection, and nobody else's.
    Http1(Connection),
    Http2(Place),
}

/// The connections that are shared, and what is known of the servers.
#[derive(Default)]
pub(super) struct Pool {
    origins: Mutex<HashMap<Origin, Known>>,
}

/// Scheme, host and port: who else would be another server (RFC 6454).
type Origin = (bool, String, u16);

#[derive(Default)]
struct Known {
    /// The connections last as long as their streams.
    shared: Vec<Weak<Shared>>,
    attempt: Option<watch::Receiver<Option<Outcome>>>,
    spoken: Spoken,
}

/// What a server was found to speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Spoken {
    /// Not known, or HTTP/2 with extended CONNECT.
    #[default]
    Http2,
    /// It picked HTTP/1.1.
    Http1,
    /// It picks HTTP/2, and then allows no WebSockets.
    Http1Only,
}

/// What came of an attempt to connect, for all who waited for it.
#[derive(Clone)]
enum Outcome {
    /// It lives on in here until those who waited have their places.
    Shared(Arc<Shared>),
    /// For whoever comes first. The others make connections of their own.
    Single(Arc<Mutex<Option<Connection>>>),
    Failed(Arc<Mutex<Failure>>),
}

/// How to come by a connection.
enum Way {
    Place(Place),
    Wait(watch::Receiver<Option<Outcome>>),
    /// Alone, since nothing will be shared.
    Alone(Version),
}

impl Pool {
    /// A connection for one stream. Those who need one at the same time wait for one attempt, whose failure is all
    /// theirs.
    pub(super) async fn via(settings: &Arc<Settings>, target: &Target) -> Result<Via> {
        let pool = &settings.pool;
        let shares = settings.version == Version::Http2 || settings.version == Version::Negotiated && target.tls;
        loop {
            let mut waited = match if shares { pool.way(settings, target) } else { Way::Alone(Version::Http1) } {
                Way::Place(place) => return Ok(Via::Http2(place)),
                Way::Alone(version) => match pool.make(settings, target, version).await? {
                    Made::Http1(connection) => return Ok(Via::Http1(connection)),
                    Made::Http2(shared) => match shared.place() {
                        Some(place) => return Ok(Via::Http2(place)),
                        None => continue,
                    },
                },
                Way::Wait(attempt) => attempt,
            };
            // It is an error if the runtime went away in which the attempt was made.
            let outcome = waited.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            match outcome {
                Some(Outcome::Single(connection)) => {
                    if let Some(connection) = lock(&connection).take() {
                        return Ok(Via::Http1(connection));
                    }
                }
                Some(Outcome::Shared(shared)) => {
                    if let Some(place) = shared.place() {
                        return Ok(Via::Http2(place));
                    }
                }
                Some(Outcome::Failed(failure)) => return Err(lock(&failure).tell()),
                None => {}
            }
        }
    }

    /// A server that was taken for one of HTTP/2 wants HTTP/1.1.
    pub(super) fn wants_http1(&self, target: &Target) {
        self.known(target, |known| known.spoken = Spoken::Http1Only);
    }

    fn known<T>(&self, target: &Target, with: impl FnOnce(&mut Known) -> T) -> T {
        let mut origins = lock(&self.origins);
        with(origins.entry((target.tls, target.host.clone(), target.port)).or_default())
    }

    fn way(&self, settings: &Arc<Settings>, target: &Target) -> Way {
        self.known(target, |known| {
            match known.spoken {
                Spoken::Http1 => return Way::Alone(Version::Negotiated),
                Spoken::Http1Only => return Way::Alone(Version::Http1),
                Spoken::Http2 => {}
            }
            known.shared.retain(|shared| shared.upgrade().is_some_and(|shared| !shared.is_closed()));
            if let Some(place) = known.shared.iter().filter_map(Weak::upgrade).find_map(|shared| shared.place()) {
                return Way::Place(place);
            }
            // An attempt that ended without a word was dropped with its runtime.
            let running = known.attempt.take().filter(|attempt| attempt.has_changed().is_ok());
            let attempt = running.unwrap_or_else(|| {
                let (sender, attempt) = watch::channel(None);
                let (settings, target) = (Arc::clone(settings), target.clone());
                // In a task, since it is not only for whoever began it.
                tokio::spawn(async move {
                    let outcome = settings.pool.attempt(&settings, &target).await;
                    settings.pool.known(&target, |known| known.attempt = None);
                    sender.send_replace(Some(outcome));
                });
                attempt
            });
            known.attempt = Some(attempt.clone());
            Way::Wait(attempt)
        })
    }

    async fn attempt(&self, settings: &Settings, target: &Target) -> Outcome {
        match self.make(settings, target, settings.version).await {
            Ok(Made::Http2(shared)) => Outcome::Shared(shared),
            Ok(Made::Http1(connection)) => Outcome::Single(Arc::new(Mutex::new(Some(connection)))),
            Err(error) => Outcome::Failed(Arc::new(Mutex::new(error.into()))),
        }
    }

    /// Connects, by HTTP/1.1 if HTTP/2 won't do, and keeps in mind what was found.
    async fn make(&self, settings: &Settings, target: &Target, version: Version) -> Result<Made> {
        let mut made = connect(settings, target, version).await;
        let mut spoken = Spoken::Http1;
        if let Ok(None) = made {
            if version != Version::Negotiated {
                return Err(unusable());
            }
            tracing::debug!("the server allows no WebSockets over HTTP/2, falling back to HTTP/1.1");
            made = connect(settings, target, Version::Http1).await;
            spoken = Spoken::Http1Only;
        }
        let made = made.and_then(|made| made.ok_or_else(unusable));
        self.known(target, |known| match &made {
            Ok(Made::Http2(shared)) => {
                known.spoken = Spoken::Http2;
                known.shared.push(Arc::downgrade(shared));
            }
            Ok(Made::Http1(_)) if known.spoken == Spoken::Http2 => known.spoken = spoken,
            Ok(Made::Http1(_)) => {}
            // It may have changed.
            Err(_) => known.spoken = Spoken::Http2,
        });
        made
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

fn unusable() -> Error {
    let detail = "the server allows no WebSockets over HTTP/2: its settings don't enable extended CONNECT (RFC 8441)";
    Error::new(ErrorKind::Protocol).with_detail(detail)
}
