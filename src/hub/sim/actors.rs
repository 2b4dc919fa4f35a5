//! Those who use the hub, each as a peer of protocol section 4 would, or as one that uploads by section 5.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::super::{AttachRequest, Attached, Entry, Lease};
use super::world::{World, byte};
use crate::chunk::{Chunk, Update};
use crate::error::{ErrorKind, Result};
use crate::hub::Durability;
use crate::identity::Owner;
use crate::key::Key;
use crate::state::{End, Life, State};
use crate::storage::Open;
use crate::streams::{Follower, Streams};

/// No call may take longer, however slow the storage is.
const BOUND: Duration = Duration::from_secs(60);

/// What an appender remembers, over connections and over the server's deaths.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) id: u8,
    pub(super) key: Key,
    owner: Option<Owner>,
    total: u64,
    starts: Duration,
    seal: bool,
    create: bool,
    pub(super) life: Option<Life>,
    /// Where its first byte goes.
    pub(super) base: u64,
    pub(super) acked: u64,
    /// The end of what it has sent at least once.
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
            // Who shows no id can't tell its own bytes from another's of the same sort.
            key: key(if owner == Some(Owner::ANYONE) { 100 + u64::from(id) } else { inner.draw(keys) }),
            owner,
            total: [0, 40, 200, 500][inner.draw(4) as usize],
            starts: Duration::from_millis(inner.draw(6000)),
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

    /// Goes on without an id, from where the resource ends.
    pub(super) fn is_anyone(&self) -> bool {
        self.owner == Some(Owner::ANYONE)
    }
}

pub(super) fn key(n: u64) -> Key {
    Key::new(&format!("k{n}")).unwrap()
}

/// Nothing hangs.
async fn within<T>(world: &World, what: &str, call: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout(BOUND, call).await.ok();
    world.check(done.is_some(), format_args!("{what} hangs"));
    done
}

enum Next {
    Again,
    Done(&'static str),
    /// The server stops.
    Stop,
}

/// An appender, until it has said all or has to give up.
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
            () = tokio::time::sleep(session.starts.saturating_sub(now)) => {}
        }
        let next = match session.tries {
            ..60 => connect(&world, &streams, index, session).await,
            _ => Next::Done("gave up"),
        };
        let most = match next {
            Next::Done(how) => {
                let mut inner = world.lock();
                inner.sessions[index].done = Some(how);
                inner.say(format_args!("session {index}: {how}"));
                inner.count(how);
                return;
            }
            Next::Stop => return,
            Next::Again if world.chance(60) => 100,
            // Perhaps longer than anybody waits for it.
            Next::Again => 2 * world.plan().grace.as_millis() as u64,
        };
        tokio::select! {
            biased;
            () = hub.shutting_down.cancelled() => return,
            () = world.nap(most) => {}
        }
    }
}

async fn connect(world: &World, streams: &Streams, index: usize, mut session: Session) -> Next {
    let hub = &streams.hub;
    let fresh = session.sent == session.base;
    let offset = match session.is_anyone() {
        true => match ask(world, streams, index, &session, fresh).await {
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
    world.say(format_args!("session {index} comes, {} acked, {} sent", session.acked, session.sent));
    let patience = match world.chance(10) {
        true => Duration::from_millis(world.draw(60)),
        false => Duration::MAX,
    };
    let attached = tokio::select! {
        biased;
        attached = within(world, "attach", hub.attach(&session.key, attach)) => attached,
        () = tokio::time::sleep(patience) => {
            world.say(format_args!("session {index} went before it was let in"));
            if let Some(owner) = session.owner {
                world.lock().went(&session.key, owner);
            }
            return Next::Again;
        }
    };
    let Some(attached) = attached else { return Next::Done("hangs") };
    let (lease, resumed) = match attached {
        Ok(Attached::Open { lease, resumed }) => (lease, resumed),
        Ok(Attached::Finished(stat)) => {
            let mut inner = world.lock();
            inner.check(session.finish_sent, format_args!("session {index} is told finished, and never was"));
            return finished(&mut inner, index, stat.life, stat.len);
        }
        Err(error) => {
            world.say(format_args!("session {index} is refused: {:?}", error.kind()));
            let mut inner = world.lock();
            let session = &mut inner.sessions[index];
            return match error.kind() {
                ErrorKind::Busy => Next::Again,
                // The storage failed, or it has got longer meanwhile: what was parked may be lost from now on.
                kind if kind == ErrorKind::Storage || (kind == ErrorKind::Offset && offset.is_some()) => {
                    let (key, owner) = (session.key.clone(), session.owner);
                    owner.into_iter().for_each(|owner| inner.went(&key, owner));
                    Next::Again
                }
                ErrorKind::Exists => {
                    session.create = false;
                    Next::Again
                }
                ErrorKind::Life if fresh => {
                    session.life = None;
                    Next::Again
                }
                ErrorKind::Life => Next::Done("another life"),
                ErrorKind::Sealed => Next::Done("sealed by somebody else"),
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
        inner.say(format_args!("session {index} is in at {at} of {life:?}, resumed: {resumed}"));
        let knows = match (fresh, resumed) {
            _ if session.is_anyone() => {
                inner.check(offset == Some(at), format_args!("session {index} is let in at {at}, not at {offset:?}"));
                inner.count("went on without an id");
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
            // The spec promises that it was synced before this was told.
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
        if !knows {
            inner.release(hold, session.owner);
            drop(inner);
            drop(lease);
            return Next::Done("can't know");
        }
        session.life = Some(life);
        inner.sessions[index] = session.clone();
        if !lease.revoked().is_cancelled() {
            inner.granted(life, at, session.id, at - session.base);
        }
        if !session.is_anyone() {
            acked(&mut inner, index, life, at);
        }
        hold
    };
    Connection { world, streams, index, hold, at, life, session }.run(lease).await
}

/// Where somebody without an id goes on; what it holds that is not stored it sends again.
async fn ask(world: &World, streams: &Streams, index: usize, session: &Session, fresh: bool) -> Result<u64, Next> {
    let Some(Ok(stat)) = within(world, "stat", streams.hub.stat(&session.key)).await else { return Err(Next::Again) };
    let Some(stat) = stat else {
        return if fresh { Ok(0) } else { Err(Next::Done("deleted meanwhile")) };
    };
    if fresh {
        return Ok(stat.len);
    }
    if session.life != Some(stat.life) || !(session.acked..=session.sent).contains(&stat.len) {
        return Err(Next::Done("can't know"));
    }
    if session.finish_sent && stat.state.is_complete() && stat.len == session.end() {
        return Err(finished(&mut world.lock(), index, stat.life, stat.len));
    }
    Ok(stat.len)
}

/// An acknowledgement came.
fn acked(inner: &mut super::world::Inner, index: usize, life: Life, len: u64) {
    let session = &mut inner.sessions[index];
    if session.life != Some(life) {
        return;
    }
    session.acked = session.acked.max(len);
    let key = session.key.clone();
    let own = len > session.base;
    let durable = inner.store.get(&key).filter(|res| res.life == life).map(|res| res.durable);
    if inner.plan.durability != Durability::Process {
        let kept = !own || durable.is_none_or(|durable| durable >= len);
        inner.check(kept, format_args!("session {index} has {len} acknowledged, and {durable:?} are durable"));
    }
}

/// A finish was answered.
fn finished(inner: &mut super::world::Inner, index: usize, life: Life, len: u64) -> Next {
    let session = &inner.sessions[index];
    let (end, of) = (session.end(), session.life);
    inner.check(
        len == end && Some(life) == of,
        format_args!("session {index} finished at {len} of {life:?}, not {end}"),
    );
    let clean = [State::Finished, State::Sealed].iter().any(|state| inner.has_ended(life, len, *state));
    inner.check(clean, format_args!("session {index} is told finished, and {life:?} didn't at {len}"));
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
                world.check(right, format_args!("session {index} is told that the storage failed, and it didn't"));
                self.lose(lease);
                return gone(why);
            }
            if hub.shutting_down.is_cancelled() {
                return self.stop(lease).await;
            }
            let left = self.session.end() - self.at;
            match world.draw(100) {
                0..6 => {
                    world.say(format_args!("session {index} is lost"));
                    self.lose(lease);
                    return Next::Again;
                }
                6..14 => {
                    self.leave_behind(lease);
                    return Next::Again;
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
                        match within(world, "sync", sync).await {
                            Some(Ok(len)) => acked(&mut world.lock(), index, self.life, len),
                            _ => {
                                self.lose(lease);
                                return Next::Again;
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
                        () = world.nap(400) => {}
                    }
                }
                _ if left == 0 => return self.finish(lease).await,
                _ => match self.append(&mut lease, left).await {
                    Ok(true) => {}
                    Ok(false) => {
                        world.say(format_args!("session {index} breaks off in an append"));
                        self.lose(lease);
                        return Next::Again;
                    }
                    Err(kind) => {
                        world.say(format_args!("session {index} can't append: {kind:?}"));
                        self.lose(lease);
                        return gone(kind);
                    }
                },
            }
        }
    }

    /// `false`: it was given up in the middle.
    async fn append(&mut self, lease: &mut Lease, left: u64) -> Result<bool, ErrorKind> {
        let world = self.world;
        let most = left.min(if world.chance(10) { 200 } else { 24 });
        let more = world.draw(most + 1);
        let data = self.data(self.at, more);
        self.session.sent = self.session.sent.max(self.at + more);
        world.lock().sessions[self.index].sent = self.session.sent;
        let patience = match world.chance(8) {
            true => Duration::from_millis(world.draw(40)),
            false => BOUND,
        };
        let appended = tokio::select! {
            biased;
            appended = lease.append(&data) => appended,
            () = tokio::time::sleep(patience) => {
                world.check(patience < BOUND, format_args!("append hangs"));
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
        let Some(owner) = self.session.owner else { return Next::Again };
        let patience = match world.chance(20) {
            true => Duration::from_millis(world.draw(40)),
            false => Duration::MAX,
        };
        let parked = tokio::select! {
            biased;
            parked = within(world, "park", lease.park()) => parked,
            () = tokio::time::sleep(patience) => None,
        };
        let mut inner = world.lock();
        match parked {
            Some(Ok(stat)) => {
                inner.say(format_args!("session {index} is parked at {}", stat.len));
                inner.count("parked");
                inner.parked(hold, owner);
                acked(&mut inner, index, life, stat.len);
                Next::Again
            }
            parked => {
                let kind = parked.and_then(Result::err).map(|error| error.kind());
                inner.say(format_args!("session {index} can't park: {kind:?}"));
                inner.release(hold, Some(owner));
                kind.map_or(Next::Again, gone)
            }
        }
    }

    async fn stop(self, lease: Lease) -> Next {
        if let Some(Ok(len)) = within(self.world, "the last sync", lease.sync()).await {
            acked(&mut self.world.lock(), self.index, self.life, len);
        }
        self.world.lock().release(self.hold, None);
        within(self.world, "stop", lease.stop()).await;
        Next::Stop
    }

    async fn finish(self, lease: Lease) -> Next {
        let Self { world, index, hold, .. } = self;
        let end = if self.session.seal { End::Sealed } else { End::Finished };
        {
            let mut inner = world.lock();
            inner.sessions[index].finish_sent = true;
            inner.finishing(hold, &self.session.key, self.session.owner);
            inner.say(format_args!("session {index} finishes"));
        }
        let patience = match world.chance(30) {
            true => Duration::from_millis(world.draw(60)),
            false => Duration::MAX,
        };
        let ended = tokio::select! {
            biased;
            ended = within(world, "finish", lease.finish(end)) => ended,
            () = tokio::time::sleep(patience) => {
                world.say(format_args!("session {index} doesn't hear whether it is finished"));
                return Next::Again;
            }
        };
        match ended {
            None => Next::Done("hangs"),
            Some(Ok(stat)) => finished(&mut world.lock(), index, stat.life, stat.len),
            Some(Err(error)) => {
                world.say(format_args!("session {index} can't finish: {:?}", error.kind()));
                gone(error.kind())
            }
        }
    }

    /// The connection breaks, and the server doesn't know: what was on its way still comes.
    fn leave_behind(self, mut lease: Lease) {
        let (world, hub) = (self.world.clone(), std::sync::Arc::clone(&self.streams.hub));
        let left = self.session.end() - self.at;
        let upto = self.at + world.draw(left.min(60) + 1);
        let finishes = upto == self.session.end() && world.chance(50);
        {
            let mut inner = world.lock();
            inner.say(format_args!("session {} leaves a ghost that has up to {upto}", self.index));
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
                () = world.nap(1500) => {}
            }
            world.say(format_args!(
                "the ghost of session {index} ends, {:?}",
                appended.as_ref().err().map(|e| e.kind())
            ));
            if appended.is_ok() && finishes {
                world.lock().finishing(hold, &session.key, owner);
                within(&world, "a ghost's finish", lease.finish(End::Finished)).await;
            } else if hub.shutting_down.is_cancelled() && world.chance(50) {
                world.lock().release(hold, None);
                within(&world, "a ghost's stop", lease.stop()).await;
            } else {
                world.lock().release(hold, owner);
                drop(lease);
            }
        });
    }
}

fn gone(why: ErrorKind) -> Next {
    match why {
        // 4001 is final.
        ErrorKind::Fenced => Next::Done("fenced"),
        ErrorKind::ShuttingDown => Next::Stop,
        _ => Next::Again,
    }
}

/// Somebody with another's id: lets itself in, does nothing, goes.
pub(super) async fn evict(world: World, streams: Streams) {
    world.nap(9000).await;
    let sessions = world.lock().sessions.clone();
    let session = &sessions[world.draw(sessions.len() as u64) as usize];
    let attach = AttachRequest { owner: session.owner, ..AttachRequest::new(Open::Continue) };
    let Some(Ok(Attached::Open { lease, .. })) =
        within(&world, "attach", streams.hub.attach(&session.key, attach)).await
    else {
        return;
    };
    let hold = world.lock().hold(&lease, session.owner);
    world.say(format_args!("session {} is evicted", session.id));
    tokio::select! {
        biased;
        () = streams.hub.shutting_down.cancelled() => {}
        () = world.nap(500) => {}
    }
    world.lock().release(hold, session.owner);
    drop(lease);
}

pub(super) async fn delete(world: World, streams: Streams) {
    world.nap(9000).await;
    let key = world.any_key();
    let patience = match world.chance(40) {
        true => Duration::from_millis(world.draw(60)),
        false => Duration::MAX,
    };
    let deleted = tokio::select! {
        biased;
        deleted = within(&world, "delete", streams.delete(key.as_str())) => deleted,
        () = tokio::time::sleep(patience) => {
            world.say(format_args!("who deletes {key} doesn't wait for it"));
            tokio::time::sleep(if world.plan().slow { BOUND } else { Duration::from_millis(300) }).await;
            None
        }
    };
    world.say(format_args!("delete {key}: {:?}", deleted.map(|done| done.map_err(|error| error.kind()))));
    // The hub has heard of it.
    let open = match streams.hub.entries().get(&key) {
        Some(Entry::Open(resource)) => Some(resource.life),
        _ => None,
    };
    let inner = world.lock();
    let stored = inner.store.get(&key).map(|res| res.life);
    drop(inner);
    if let Some(life) = open {
        let faults = world.plan().faults > 0;
        let right = stored == Some(life) || faults;
        world.check(right, format_args!("{key} is gone, and {life:?} is open"));
    }
}

/// A follower that comes back again and again.
pub(super) async fn follow(world: World, streams: Streams, index: u64, stop: CancellationToken) {
    world.nap(6000).await;
    let key = world.any_key();
    let mut reached: Option<(Life, u64)> = None;
    for _ in 0..60 {
        if stop.is_cancelled() || world.has_failed() {
            return;
        }
        world.turn(index).await;
        let mut request = streams.follow(key.as_str());
        request = match (reached, world.draw(8)) {
            (Some((life, at)), _) => request.life(life).offset(at),
            (None, 0) => request.tail(world.draw(100)),
            (None, 1) => request.lines(world.draw(5)),
            (None, 2) => request.offset(world.draw(200)),
            (None, 3) => request.wait(Duration::from_millis(world.draw(3000))),
            (None, _) => request,
        };
        let Some(found) = within(&world, "follow", async { request.await }).await else { return };
        match found {
            Ok(mut follower) => {
                world.say(format_args!("follower {index} at {} of {:?}", follower.offset(), follower.life()));
                let right = reached.is_none_or(|reached| reached == (follower.life(), follower.offset()));
                world.check(right, format_args!("follower {index} goes on elsewhere"));
                let ended = read(&world, index, &mut follower, &stop, false).await;
                reached = (!ended && world.chance(80)).then(|| (follower.life(), follower.offset()));
            }
            Err(error) => {
                world.say(format_args!("follower {index} of {key}: {:?}", error.kind()));
                match error.kind() {
                    ErrorKind::PastEnd => {
                        world
                            .check(reached.is_none(), format_args!("follower {index} saw more of {key} than there is"));
                    }
                    ErrorKind::ShuttingDown => return,
                    ErrorKind::NotFound | ErrorKind::Life => reached = None,
                    ErrorKind::Storage => {}
                    other => world.fail(format_args!("follower {index} of {key}: {other:?}")),
                }
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = world.nap(800) => {}
        }
    }
}

/// Reads until the end, or until an impatient follower has enough. `true`: it was told the end.
pub(super) async fn read(
    world: &World,
    index: u64,
    follower: &mut Follower,
    stop: &CancellationToken,
    patient: bool,
) -> bool {
    loop {
        let enough = match !patient && world.chance(10) {
            true => Duration::from_millis(world.draw(3000)),
            false => Duration::MAX,
        };
        let from = follower.offset();
        let update = tokio::select! {
            biased;
            () = stop.cancelled() => return false,
            update = follower.next_update() => update,
            () = tokio::time::sleep(enough) => return false,
        };
        if let Some(ended) = told(world, index, follower, from, update) {
            return ended;
        }
        if world.chance(20) {
            world.nap(700).await;
        }
    }
}

/// What a follower is told has to be true. `Some`: that was its end, or a failure.
fn told(world: &World, index: u64, follower: &Follower, from: u64, update: Result<Option<Update>>) -> Option<bool> {
    let (life, at) = (follower.life(), follower.offset());
    let mut inner = world.lock();
    match update {
        Ok(Some(Update::Data(Chunk { bytes: data, .. }))) => {
            let told = inner.lives.get(&life).and_then(|told| told.bytes.get(from as usize..at as usize));
            let right = told.is_some_and(|told| told == data) && !data.is_empty();
            inner.check(right, format_args!("follower {index} got other bytes than {from}..{at} of {life:?}"));
            inner.say(format_args!("follower {index} has {at} of {life:?}"));
            None
        }
        Ok(Some(Update::State(state))) => {
            inner.say(format_args!("follower {index} is told {state} at {at}"));
            inner.check(state.is_open(), format_args!("{state} is no change"));
            None
        }
        Ok(None) => {
            inner.say(format_args!("follower {index} is told {} at {at}", follower.state()));
            inner.count("told the end");
            let clean = matches!(follower.state(), State::Finished | State::Sealed);
            let right = clean && inner.has_ended(life, at, follower.state());
            inner.check(right, format_args!("follower {index} is told an end at {at}: {}", follower.state()));
            Some(true)
        }
        Err(error) => {
            inner.say(format_args!("follower {index} ends at {at}: {:?}", error.kind()));
            if error.kind() == ErrorKind::Interrupted {
                inner.count("told interrupted");
                let right = inner.has_ended(life, at, State::Interrupted);
                inner.check(right, format_args!("follower {index} is told interrupted at {at}"));
            }
            Some(false)
        }
    }
}
