//! Appenders, each of which behaves as a peer of protocol section 4, or of section 5 (uploads) if it has no id.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use super::world::{Inner, World, byte};
use crate::error::{ErrorKind, Result};
use crate::hub::{AttachRequest, Attached, Durability, Lease};
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{End, Life, State};
use crate::storage::Open;
use crate::streams::Streams;

/// No call may take longer than this, however slow the storage is.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(60);

/// What an appender remembers over its connections and over the server's processes.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) id: u8,
    pub(super) key: Key,
    pub(super) owner: Option<Owner>,
    total: u64,
    starts_at: Duration,
    seal: bool,
    create: bool,
    pub(super) life: Option<Life>,
    /// The offset of its first byte in the resource.
    pub(super) base: u64,
    pub(super) acked: u64,
    /// The end of the bytes that it has sent at least once.
    sent: u64,
    finish_sent: bool,
    tries: u32,
    pub(super) done: Option<&'static str>,
}

impl Session {
    pub(super) fn draw(world: &World, id: u8) -> Self {
        let keys = world.plan().keys;
        let mut inner = world.lock();
        let owner = match inner.draw(6) {
            0 => None,
            1 => Some(Owner::ANYONE),
            _ => Some(inner.owner()),
        };
        Self {
            id,
            // Appenders without an id can't tell their bytes apart, so each has a key of its own.
            key: key(if owner == Some(Owner::ANYONE) { 100 + u64::from(id) } else { inner.draw(keys) }),
            owner,
            total: [0, 40, 200, 500][inner.draw(4) as usize],
            starts_at: Duration::from_millis(inner.draw(6000)),
            seal: inner.draw(12) == 0,
            create: inner.draw(8) == 0,
            life: None,
            base: 0,
            acked: 0,
            sent: 0,
            finish_sent: false,
            tries: 0,
            done: None,
        }
    }

    fn end(&self) -> u64 {
        self.base + self.total
    }

    /// Whether it shows no id, and goes on from where the resource ends.
    pub(super) fn is_anyone(&self) -> bool {
        self.owner == Some(Owner::ANYONE)
    }
}

pub(super) fn key(n: u64) -> Key {
    Key::new(&format!("k{n}")).unwrap()
}

/// Awaits a call, which must not hang.
pub(super) async fn bounded<T>(world: &World, what: &str, call: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout(CALL_LIMIT, call).await.ok();
    world.check(done.is_some(), format_args!("{what} hangs"));
    done
}

/// What an appender does after a connection.
enum Next {
    Reconnect,
    Done(&'static str),
    /// The server shuts down.
    Stop,
}

/// Runs an appender until it has finished or has to give up.
pub(super) async fn append(world: World, streams: Streams, index: usize) {
    let hub = &streams.hub;
    loop {
        let (session, now) = {
            let mut inner = world.lock();
            let now = inner.now();
            let session = &mut inner.sessions[index];
            session.tries += 1;
            (session.clone(), now)
        };
        if session.done.is_some() {
            return;
        }
        tokio::select! {
            biased;
            () = hub.shutting_down.cancelled() => return,
            () = tokio::time::sleep(session.starts_at.saturating_sub(now)) => {}
        }
        let next = match session.tries {
            ..60 => connect(&world, &streams, index, session).await,
            _ => Next::Done("gave up"),
        };
        let most = match next {
            Next::Done(how) => {
                let mut inner = world.lock();
                inner.sessions[index].done = Some(how);
                inner.log(format_args!("session {index}: {how}"));
                inner.count(how);
                return;
            }
            Next::Stop => return,
            Next::Reconnect if world.chance(60) => 100,
            // This may be longer than its grace.
            Next::Reconnect => 2 * world.plan().grace.as_millis() as u64,
        };
        tokio::select! {
            biased;
            () = hub.shutting_down.cancelled() => return,
            () = world.sleep_up_to(most) => {}
        }
    }
}

async fn connect(world: &World, streams: &Streams, index: usize, mut session: Session) -> Next {
    let hub = &streams.hub;
    let fresh = session.sent == session.base;
    let offset = match session.is_anyone() {
        true => match query_offset(world, streams, index, &session, fresh).await {
            Ok(offset) => Some(offset),
            Err(next) => return next,
        },
        false => None,
    };
    let attach = AttachRequest {
        how: if session.create && session.sent == 0 { Open::Create } else { Open::Continue },
        owner: session.owner,
        offset,
        life: session.life,
        finish: session.finish_sent.then(|| session.end()).filter(|_| !session.is_anyone()),
    };
    world.log(format_args!("session {index} connects, {} acked, {} sent", session.acked, session.sent));
    let limit = match world.chance(10) {
        true => Duration::from_millis(world.draw(60)),
        false => Duration::MAX,
    };
    let attached = tokio::select! {
        biased;
        attached = bounded(world, "attach", hub.attach(&session.key, attach)) => attached,
        () = tokio::time::sleep(limit) => {
            world.log(format_args!("session {index} leaves before it is let in"));
            if let Some(owner) = session.owner {
                world.lock().maybe_lost(&session.key, owner);
            }
            return Next::Reconnect;
        }
    };
    let Some(attached) = attached else { return Next::Done("hangs") };
    let (lease, resumed) = match attached {
        Ok(Attached::Open { lease, resumed }) => (lease, resumed),
        Ok(Attached::Finished(stat)) => {
            let mut inner = world.lock();
            inner.check(
                session.finish_sent,
                format_args!("session {index} is reported finished, and never asked for it"),
            );
            return finished(&mut inner, index, stat.life, stat.len);
        }
        Err(error) => {
            world.log(format_args!("session {index} is refused: {:?}", error.kind()));
            let mut inner = world.lock();
            let session = &mut inner.sessions[index];
            return match error.kind() {
                ErrorKind::Busy => Next::Reconnect,
                // The storage failed, or the resource has grown meanwhile: a parked resource may be lost from now on.
                kind if kind == ErrorKind::Storage || (kind == ErrorKind::Offset && offset.is_some()) => {
                    let (key, owner) = (session.key.clone(), session.owner);
                    owner.into_iter().for_each(|owner| inner.maybe_lost(&key, owner));
                    Next::Reconnect
                }
                ErrorKind::Exists => {
                    session.create = false;
                    Next::Reconnect
                }
                ErrorKind::Life if fresh => {
                    session.life = None;
                    Next::Reconnect
                }
                ErrorKind::Life => Next::Done("another life"),
                ErrorKind::Sealed => Next::Done("sealed by another"),
                ErrorKind::ShuttingDown => Next::Stop,
                other => {
                    inner.fail(format_args!("session {index} is refused as {other:?}"));
                    Next::Done("refused")
                }
            };
        }
    };
    let (at, life) = (lease.resource().len(), lease.resource().life);
    let hold = {
        let mut inner = world.lock();
        let hold = inner.hold(&lease, session.owner);
        inner.log(format_args!("session {index} is let in at {at} of {life:?}, resumed: {resumed}"));
        let certain = match (fresh, resumed) {
            _ if session.is_anyone() => {
                inner.check(offset == Some(at), format_args!("session {index} is let in at {at}, not at {offset:?}"));
                inner.count("resumed without an id");
                if fresh {
                    (session.base, session.acked, session.sent) = (at, at, at);
                }
                fresh || session.life == Some(life)
            }
            (true, _) => {
                inner.check(!resumed, format_args!("session {index} has sent nothing, and is resumed"));
                (session.base, session.acked, session.sent) = (at, at, at);
                true
            }
            // By the protocol it was synced before it was reported.
            (false, true) => {
                inner.count("resumed");
                let (acked, sent) = (session.acked, session.sent);
                inner.check(
                    (acked..=sent).contains(&at),
                    format_args!("session {index} is resumed at {at}, of {acked} acked, {sent} sent"),
                );
                session.acked = at;
                true
            }
            (false, false) => session.life == Some(life) && session.acked == at,
        };
        if !certain {
            inner.release(hold, session.owner);
            drop(inner);
            drop(lease);
            return Next::Done("uncertain");
        }
        session.life = Some(life);
        inner.sessions[index] = session.clone();
        if !lease.revoked().is_cancelled() {
            inner.expect_session(life, at, session.id, at - session.base);
        }
        if !session.is_anyone() {
            acked(&mut inner, index, life, at);
        }
        hold
    };
    Connection { world, streams, index, hold, at, life, session }.run(lease).await
}

/// The offset at which an appender without an id goes on. It sends what lies after that again.
async fn query_offset(
    world: &World,
    streams: &Streams,
    index: usize,
    session: &Session,
    fresh: bool,
) -> Result<u64, Next> {
    let Some(Ok(stat)) = bounded(world, "stat", streams.hub.stat(&session.key)).await else {
        return Err(Next::Reconnect);
    };
    let Some(stat) = stat else {
        return if fresh { Ok(0) } else { Err(Next::Done("deleted meanwhile")) };
    };
    if fresh {
        return Ok(stat.len);
    }
    if session.life != Some(stat.life) || !(session.acked..=session.sent).contains(&stat.len) {
        return Err(Next::Done("uncertain"));
    }
    if session.finish_sent && stat.state.is_complete() && stat.len == session.end() {
        return Err(finished(&mut world.lock(), index, stat.life, stat.len));
    }
    Ok(stat.len)
}

/// The appender got an acknowledgement.
fn acked(inner: &mut Inner, index: usize, life: Life, len: u64) {
    let session = &mut inner.sessions[index];
    if session.life != Some(life) {
        return;
    }
    session.acked = session.acked.max(len);
    let key = session.key.clone();
    let own = len > session.base;
    let durable = inner.store.get(&key).filter(|stored| stored.life == life).map(|stored| stored.durable);
    if inner.plan.durability != Durability::Process {
        let kept = !own || durable.is_none_or(|durable| durable >= len);
        inner.check(kept, format_args!("session {index} has {len} acknowledged, and {durable:?} are durable"));
    }
}

/// The appender learned that it has finished.
fn finished(inner: &mut Inner, index: usize, life: Life, len: u64) -> Next {
    let session = &inner.sessions[index];
    let (end, of) = (session.end(), session.life);
    inner.check(
        len == end && Some(life) == of,
        format_args!("session {index} finished at {len} of {life:?}, not {end}"),
    );
    let clean = [State::Finished, State::Sealed].iter().any(|state| inner.has_ended(life, len, *state));
    inner.check(clean, format_args!("session {index} is reported finished, and {life:?} is not at {len}"));
    acked(inner, index, life, len);
    Next::Done("finished")
}

struct Connection<'a> {
    world: &'a World,
    streams: &'a Streams,
    index: usize,
    hold: u64,
    at: u64,
    life: Life,
    session: Session,
}

impl Connection<'_> {
    async fn run(mut self, mut lease: Lease) -> Next {
        let (world, hub, index) = (self.world, &self.streams.hub, self.index);
        if world.chance(70) {
            lease.sync_on_request();
        }
        loop {
            if world.has_failed() {
                return Next::Stop;
            }
            if lease.revoked().is_cancelled() {
                let why = lease.revocation();
                let plan = world.plan();
                let right = why != ErrorKind::Storage || plan.faults > 0;
                world.check(right, format_args!("session {index} is revoked by a failed storage, and none failed"));
                self.lose(lease);
                return next_after(why);
            }
            if hub.shutting_down.is_cancelled() {
                return self.stop(lease).await;
            }
            let left = self.session.end() - self.at;
            match world.draw(100) {
                0..6 => {
                    world.log(format_args!("session {index} is lost"));
                    self.lose(lease);
                    return Next::Reconnect;
                }
                6..14 => {
                    self.leave_ghost(lease);
                    return Next::Reconnect;
                }
                14..34 => {
                    let sync = lease.sync();
                    if world.chance(50) {
                        let (world, life) = (world.clone(), self.life);
                        tokio::spawn(async move {
                            if let Ok(len) = sync.await {
                                acked(&mut world.lock(), index, life, len);
                            }
                        });
                    } else {
                        match bounded(world, "sync", sync).await {
                            Some(Ok(len)) => acked(&mut world.lock(), index, self.life, len),
                            _ => {
                                self.lose(lease);
                                return Next::Reconnect;
                            }
                        }
                    }
                }
                34..38 if self.session.owner.is_some() => return self.park(lease).await,
                34..44 => {
                    tokio::select! {
                        biased;
                        () = hub.shutting_down.cancelled() => {}
                        () = lease.revoked().cancelled() => {}
                        () = world.sleep_up_to(400) => {}
                    }
                }
                _ if left == 0 => return self.finish(lease).await,
                _ => match self.append(&mut lease, left).await {
                    Ok(true) => {}
                    Ok(false) => {
                        world.log(format_args!("session {index} cancels an append"));
                        self.lose(lease);
                        return Next::Reconnect;
                    }
                    Err(kind) => {
                        world.log(format_args!("session {index} can't append: {kind:?}"));
                        self.lose(lease);
                        return next_after(kind);
                    }
                },
            }
        }
    }

    /// Returns `false` if the append was cancelled.
    async fn append(&mut self, lease: &mut Lease, left: u64) -> Result<bool, ErrorKind> {
        let world = self.world;
        let most = left.min(if world.chance(10) { 200 } else { 24 });
        let more = world.draw(most + 1);
        let data = self.data(self.at, more);
        self.session.sent = self.session.sent.max(self.at + more);
        world.lock().sessions[self.index].sent = self.session.sent;
        let limit = match world.chance(8) {
            true => Duration::from_millis(world.draw(40)),
            false => CALL_LIMIT,
        };
        let appended = tokio::select! {
            biased;
            appended = lease.append(&data) => appended,
            () = tokio::time::sleep(limit) => {
                world.check(limit < CALL_LIMIT, format_args!("append hangs"));
                return Ok(false);
            }
        };
        match appended {
            Ok(len) => {
                self.at += more;
                world.check(len == self.at, format_args!("session {} has {len}, not {}", self.index, self.at));
            }
            Err(error) if error.kind() == ErrorKind::Full => {
                let len = lease.resource().len();
                world.check(len == self.at, format_args!("full, and {len} are stored of {}", self.at));
            }
            Err(error) => return Err(error.kind()),
        }
        Ok(true)
    }

    fn data(&self, at: u64, more: u64) -> Vec<Bytes> {
        let skip = at - self.session.base;
        let all: Vec<u8> = (skip..skip + more).map(|i| byte(self.session.id, i)).collect();
        let (one, two) = all.split_at(self.world.draw(more + 1) as usize);
        vec![Bytes::copy_from_slice(one), Bytes::copy_from_slice(two)]
    }

    fn lose(&self, lease: Lease) {
        self.world.lock().release(self.hold, self.session.owner);
        drop(lease);
    }

    async fn park(self, lease: Lease) -> Next {
        let Self { world, index, hold, life, .. } = self;
        let Some(owner) = self.session.owner else { return Next::Reconnect };
        let limit = match world.chance(20) {
            true => Duration::from_millis(world.draw(40)),
            false => Duration::MAX,
        };
        let parked = tokio::select! {
            biased;
            parked = bounded(world, "park", lease.park()) => parked,
            () = tokio::time::sleep(limit) => None,
        };
        let mut inner = world.lock();
        match parked {
            Some(Ok(stat)) => {
                inner.log(format_args!("session {index} is parked at {}", stat.len));
                inner.count("parked");
                inner.parked(hold, owner);
                acked(&mut inner, index, life, stat.len);
                Next::Reconnect
            }
            parked => {
                let kind = parked.and_then(Result::err).map(|error| error.kind());
                inner.log(format_args!("session {index} can't park: {kind:?}"));
                inner.release(hold, Some(owner));
                kind.map_or(Next::Reconnect, next_after)
            }
        }
    }

    async fn stop(self, lease: Lease) -> Next {
        if let Some(Ok(len)) = bounded(self.world, "the last sync", lease.sync()).await {
            acked(&mut self.world.lock(), self.index, self.life, len);
        }
        self.world.lock().release(self.hold, None);
        bounded(self.world, "stop", lease.stop()).await;
        Next::Stop
    }

    async fn finish(self, lease: Lease) -> Next {
        let Self { world, index, hold, .. } = self;
        let end = if self.session.seal { End::Sealed } else { End::Finished };
        {
            let mut inner = world.lock();
            inner.sessions[index].finish_sent = true;
            inner.finishing(hold, &self.session.key, self.session.owner);
            inner.log(format_args!("session {index} finishes"));
        }
        let limit = match world.chance(30) {
            true => Duration::from_millis(world.draw(60)),
            false => Duration::MAX,
        };
        let ended = tokio::select! {
            biased;
            ended = bounded(world, "finish", lease.finish(end)) => ended,
            () = tokio::time::sleep(limit) => {
                world.log(format_args!("session {index} leaves before it learns whether it has finished"));
                return Next::Reconnect;
            }
        };
        match ended {
            None => Next::Done("hangs"),
            Some(Ok(stat)) => finished(&mut world.lock(), index, stat.life, stat.len),
            Some(Err(error)) => {
                world.log(format_args!("session {index} can't finish: {:?}", error.kind()));
                next_after(error.kind())
            }
        }
    }

    /// The connection breaks, and the server doesn't notice: bytes that were in flight still arrive.
    fn leave_ghost(self, mut lease: Lease) {
        let (world, hub) = (self.world.clone(), std::sync::Arc::clone(&self.streams.hub));
        let left = self.session.end() - self.at;
        let upto = self.at + world.draw(left.min(60) + 1);
        let finishes = upto == self.session.end() && world.chance(50);
        {
            let mut inner = world.lock();
            inner.log(format_args!("session {} leaves a ghost with bytes up to {upto}", self.index));
            let session = &mut inner.sessions[self.index];
            session.sent = session.sent.max(upto);
            session.finish_sent |= finishes;
        }
        let (index, hold, owner, session, mut at) = (self.index, self.hold, self.session.owner, self.session, self.at);
        tokio::spawn(async move {
            let appended: Result<()> = async {
                while at < upto {
                    world.pause().await;
                    let more = 1 + world.draw(upto - at);
                    let skip = at - session.base;
                    let data: Vec<u8> = (skip..skip + more).map(|i| byte(session.id, i)).collect();
                    lease.append(&[data.into()]).await?;
                    at += more;
                }
                Ok(())
            }
            .await;
            tokio::select! {
                biased;
                () = hub.shutting_down.cancelled() => {}
                () = lease.revoked().cancelled() => {}
                () = world.sleep_up_to(1500) => {}
            }
            world.log(format_args!(
                "the ghost of session {index} ends, {:?}",
                appended.as_ref().err().map(|e| e.kind())
            ));
            if appended.is_ok() && finishes {
                world.lock().finishing(hold, &session.key, owner);
                bounded(&world, "a ghost's finish", lease.finish(End::Finished)).await;
            } else if hub.shutting_down.is_cancelled() && world.chance(50) {
                world.lock().release(hold, None);
                bounded(&world, "a ghost's stop", lease.stop()).await;
            } else {
                world.lock().release(hold, owner);
                drop(lease);
            }
        });
    }
}

/// How an appender goes on after an error.
fn next_after(error: ErrorKind) -> Next {
    match error {
        // Close code 4001 is final.
        ErrorKind::Fenced => Next::Done("fenced"),
        ErrorKind::ShuttingDown => Next::Stop,
        _ => Next::Reconnect,
    }
}
