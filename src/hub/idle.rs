//! The followers of a resource that have all there is: what comes is written to them by whoever comes by, to many in one go,
//! instead of waking a task for each.
//!
//! A follower that has caught up leaves its connection in a permit and waits there for anything else. Seats come in groups of
//! the same runtime. What is small is written to the first group by the appender's own task, and everything to the others
//! by a task of each group; it is encoded once for all of a group that want the same. A follower whose socket doesn't take
//! all of it at once is called, takes its connection back, and goes on by itself, as does everyone at a change that isn't
//! growth ([`Resource::turns`]). So nobody waits for a slow one, and nothing is queued but the rest of a write.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::runtime::{self, Handle};
use tokio::sync::Notify;
use tokio::task::coop;

use super::Resource;
use super::cursor::STEP;
use crate::buffer::{ByteQueue, Segments};

/// How many followers are served in one go: with a write or two each they are within what a task may do at once. (With 32,
/// 100 followers of messages of 1 KiB wait a tenth longer.)
const GROUP: usize = 64;
/// The appender's own task writes no more than this to anybody. With more, it does better to go on appending.
const SMALL: u64 = 16 * 1024;
/// How many frames of one batch are kept: its followers are at the same place but for a few.
const FRAMES: usize = 4;

/// A follower in its permit.
pub(crate) trait IdleMember: Send + Sync {
    /// Writes what has come, if the follower has left its connection here. If that panics the connection has to be gone.
    fn write(&self, batch: &mut GroupWrite<'_>);
    /// The follower has to look after itself.
    fn wake(&self);
}

/// All seats of a resource.
#[derive(Default)]
pub(super) struct IdleGroups {
    groups: Mutex<Vec<Arc<Group>>>,
}

/// Those who are served in one go.
struct Group {
    /// Where its task runs. Only followers of the same runtime sit here: another one may not go on.
    runtime: runtime::Id,
    seats: Mutex<Seats>,
    /// How many sit here.
    sitting: AtomicUsize,
    /// Its task is gone.
    closed: AtomicBool,
    due: Notify,
}

#[derive(Default)]
struct Seats {
    /// Those that were left go with time.
    all: Vec<Arc<dyn IdleMember>>,
    /// Somebody has taken them out to serve them …
    busy: bool,
    /// … and others have asked for that meanwhile.
    again: bool,
}

/// A permit in a group; it is free again when dropped.
pub(crate) struct Membership(Arc<Group>);

impl Membership {
    /// Whether anybody will come by here.
    pub(crate) fn is_valid(&self) -> bool {
        !self.0.is_closed()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.sitting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl IdleGroups {
    fn groups(&self) -> MutexGuard<'_, Vec<Arc<Group>>> {
        // Nothing that panics runs under this lock.
        self.groups.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a permit.
    pub(super) fn join(resource: &Arc<Resource>, member: Arc<dyn IdleMember>) -> Membership {
        let runtime = Handle::current();
        let mut groups = resource.idle_groups.groups();
        let free = groups.iter().find(|group| group.has_room(runtime.id()) && group.add(&member));
        if let Some(group) = free {
            return Membership(Arc::clone(group));
        }
        let group = Arc::new(Group {
            runtime: runtime.id(),
            seats: Mutex::default(),
            sitting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            due: Notify::new(),
        });
        group.add(&member);
        groups.retain(|group| !group.is_closed());
        groups.push(Arc::clone(&group));
        runtime.spawn(serving(Arc::clone(resource), Task(Arc::clone(&group))));
        Membership(group)
    }

    /// The resource has grown.
    pub(super) fn tell(&self, resource: &Resource) {
        let first = {
            let mut groups = self.groups();
            groups.retain(|group| !group.is_closed());
            let Some((first, others)) = groups.split_first() else { return };
            for other in others {
                other.due.notify_one();
            }
            Arc::clone(first)
        };
        // An empty one is closed by its task.
        if !first.serve(resource, SMALL) || first.is_empty() {
            first.due.notify_one();
        }
    }
}

impl Group {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        // Nothing that panics runs under this lock.
        self.seats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn is_empty(&self) -> bool {
        self.sitting.load(Ordering::Relaxed) == 0
    }

    fn has_room(&self, runtime: runtime::Id) -> bool {
        self.runtime == runtime && self.sitting.load(Ordering::Relaxed) < GROUP
    }

    /// Whether anybody will come by at this permit.
    fn add(&self, member: &Arc<dyn IdleMember>) -> bool {
        let mut seats = self.seats();
        if self.is_closed() {
            return false;
        }
        if seats.all.len() >= GROUP {
            seats.all.retain(is_taken);
        }
        seats.all.push(Arc::clone(member));
        self.sitting.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Writes what has come to all who sit here, but to nobody more than `most`. Whether that is done, or somebody else is
    /// at it.
    fn serve(&self, resource: &Resource, most: u64) -> bool {
        let mut all = {
            let mut seats = self.seats();
            if seats.busy {
                seats.again = true;
                return true;
            }
            seats.busy = true;
            std::mem::take(&mut seats.all)
        };
        let mut batch = GroupWrite { resource, to: resource.len(), most, frames: SmallVec::new(), is_whole: true };
        let mut served = 0;
        for member in &all {
            // A connection that panics is its follower's misfortune, and nobody else's.
            if catch_unwind(AssertUnwindSafe(|| member.write(&mut batch))).is_err() {
                member.wake();
            }
            if !batch.is_whole {
                break;
            }
            served += 1;
        }
        // Whoever had no turn is first next time.
        all.rotate_left(served);
        let mut seats = self.seats();
        all.append(&mut seats.all);
        if all.len() > self.sitting.load(Ordering::Relaxed) {
            all.retain(is_taken);
        }
        seats.all = all;
        seats.busy = false;
        let again = std::mem::take(&mut seats.again);
        drop(seats);
        if self.is_closed() {
            // Its task found nobody here to call.
            self.wake_all();
        }
        batch.is_whole && !again
    }

    /// Nobody will come by any more.
    fn close(&self) {
        {
            // Whoever is about to sit down here comes before this, or finds it closed.
            let _seats = self.seats();
            self.closed.store(true, Ordering::Release);
        }
        self.wake_all();
    }

    /// Closes it if nobody sits here; whether it has.
    fn close_if_empty(&self) -> bool {
        let _seats = self.seats();
        let empty = self.is_empty();
        if empty {
            self.closed.store(true, Ordering::Release);
        }
        empty
    }

    fn wake_all(&self) {
        let all = self.seats().all.clone();
        for member in all {
            member.wake();
        }
    }
}

/// Whether its follower is still there: nobody else has it.
fn is_taken(member: &Arc<dyn IdleMember>) -> bool {
    Arc::strong_count(member) > 1
}

/// What has come, for one group.
pub(crate) struct GroupWrite<'a> {
    resource: &'a Resource,
    to: u64,
    /// Nobody is written more than this.
    most: u64,
    frames: SmallVec<[Frame; 1]>,
    /// Nobody had to be left for later.
    is_whole: bool,
}

/// What goes to all who are at the same place and speak in the same way.
struct Frame {
    from: u64,
    voice: u8,
    /// `None`: each has to make its own.
    bytes: Option<Segments>,
    to: u64,
}

impl GroupWrite<'_> {
    /// Whether there is anything for a follower who is here.
    pub(crate) fn is_behind(&self, at: u64) -> bool {
        at < self.to
    }

    /// Whether it is written here and now to a follower who is there. If not, it and the rest of the group have their turn
    /// later.
    pub(crate) fn may_write_now(&mut self, at: u64) -> bool {
        self.is_whole &= self.to.saturating_sub(at) <= self.most && coop::has_budget_remaining();
        self.is_whole
    }

    /// What is written to those who are here, and where they are then. `encode` makes it of the bytes; `None` if they have to
    /// go on by themselves.
    pub(crate) fn frame(
        &mut self,
        from: u64,
        voice: u8,
        encode: impl FnOnce(ByteQueue) -> Option<ByteQueue>,
    ) -> Option<(&[Bytes], u64)> {
        let known = self.frames.iter().position(|frame| (frame.from, frame.voice) == (from, voice));
        let index = known.unwrap_or_else(|| {
            let to = self.to.min(from.saturating_add(STEP));
            let bytes = self.resource.held().tail.get(from, to);
            let bytes = bytes.and_then(encode).map(|mut pieces| pieces.take_all());
            if self.frames.len() == FRAMES {
                self.frames.remove(0);
            }
            self.frames.push(Frame { from, voice, bytes, to });
            self.frames.len() - 1
        });
        let frame = &self.frames[index];
        Some((frame.bytes.as_deref()?, frame.to))
    }
}

/// A group's task: as long as somebody sits there, and the resource is not at rest.
async fn serving(resource: Arc<Resource>, task: Task) {
    let Task(group) = &task;
    loop {
        tokio::select! {
            biased;
            () = resource.ended.cancelled() => return,
            () = group.due.notified() => {}
        }
        if !group.serve(&resource, u64::MAX) {
            group.due.notify_one();
            tokio::task::yield_now().await;
        } else if group.close_if_empty() {
            return;
        }
    }
}

/// A group's task may go with its runtime, while those who sit there go on in another.
struct Task(Arc<Group>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::resource::Place;
    use crate::key::Key;
    use crate::state::{Life, Stat, State};

    /// Notes what it is told.
    #[derive(Default)]
    struct Follower {
        heard: AtomicUsize,
        called: AtomicUsize,
    }

    impl IdleMember for Follower {
        fn write(&self, batch: &mut GroupWrite<'_>) {
            let at = self.heard.load(Ordering::Relaxed) as u64;
            if batch.is_behind(at) && batch.may_write_now(at) {
                self.heard.store(batch.to as usize, Ordering::Relaxed);
            }
        }

        fn wake(&self) {
            self.called.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn resource() -> Arc<Resource> {
        let stat = Stat::new(Life::from_bits(1), 0, State::Live);
        Arc::new(Resource::new(Key::new("a").unwrap(), &stat, None, Place::Taken, 1 << 20, None))
    }

    fn join(resource: &Arc<Resource>) -> (Arc<Follower>, Membership) {
        let follower = Arc::<Follower>::default();
        let ticket = resource.join_idle_group(Arc::clone(&follower) as _);
        (follower, ticket)
    }

    fn groups(resource: &Resource) -> Vec<usize> {
        resource.idle_groups.groups().iter().map(|group| group.seats().all.len()).collect()
    }

    /// Until all tasks wait.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn seats_that_were_left_are_taken_again_and_empty_groups_go() {
        let resource = resource();
        let mut all: Vec<_> = (0..2 * GROUP + 6).map(|_| join(&resource)).collect();
        assert_eq!(groups(&resource), [GROUP, GROUP, 6]);
        for (len, at_once) in [(SMALL, GROUP), (2 * SMALL, GROUP), (3 * SMALL + 1, 0)] {
            resource.grow(0, &[], len).unwrap();
            let heard = all.iter().filter(|(follower, _)| follower.heard.load(Ordering::Relaxed) as u64 == len);
            assert_eq!(heard.count(), at_once);
            settle().await;
            assert!(all.iter().all(|(follower, _)| follower.heard.load(Ordering::Relaxed) as u64 == len));
        }
        // Most leave, of each group; others take their seats.
        all = all.into_iter().enumerate().filter(|(i, _)| i % 4 == 0).map(|(_, one)| one).collect();
        resource.grow(0, &[], 60_000).unwrap();
        settle().await;
        assert_eq!(groups(&resource), [GROUP / 4, GROUP / 4, 2]);
        all.extend((0..2 * GROUP - 4).map(|_| join(&resource)));
        assert_eq!(groups(&resource)[..2], [GROUP, GROUP]);
        assert_eq!(resource.idle_groups.groups().len(), 3);
        assert!(all.iter().all(|(follower, _)| follower.called.load(Ordering::Relaxed) == 0));
        all.clear();
        for more in 1..3 {
            resource.grow(0, &[], 100_000 + more).unwrap();
            settle().await;
        }
        assert_eq!(groups(&resource), [0; 0]);
        let (one, _ticket) = join(&resource);
        resource.grow(0, &[], 200_000).unwrap();
        settle().await;
        assert_eq!(one.heard.load(Ordering::Relaxed), 200_000);
    }

    #[tokio::test]
    async fn whoever_sits_is_called_when_nobody_comes_by_any_more() {
        let resource = resource();
        let all: Vec<_> = (0..GROUP + 8).map(|_| join(&resource)).collect();
        settle().await;
        resource.ended.cancel();
        settle().await;
        for (follower, ticket) in &all {
            assert!(follower.called.load(Ordering::Relaxed) == 1 && !ticket.is_valid());
        }
        assert!(join(&resource).1.is_valid());
    }

    /// Looks while it is told whether others may join and grow.
    struct Busy(Arc<Resource>, AtomicUsize, Mutex<Option<(Arc<Follower>, Membership)>>);

    impl IdleMember for Busy {
        fn write(&self, batch: &mut GroupWrite<'_>) {
            if self.1.fetch_add(1, Ordering::Relaxed) == 0 {
                self.0.grow(0, &[], batch.to + 1).unwrap();
                *self.2.lock().unwrap() = Some(join(&self.0));
                panic!("as a connection might");
            }
        }

        fn wake(&self) {
            self.1.fetch_add(100, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn what_comes_while_others_are_served_is_told_next() {
        let resource = resource();
        let busy = Arc::new(Busy(Arc::clone(&resource), AtomicUsize::new(0), Mutex::default()));
        let _ticket = resource.join_idle_group(Arc::clone(&busy) as _);
        let (other, _ticket) = join(&resource);
        resource.grow(0, &[], 7).unwrap();
        settle().await;
        assert_eq!(other.heard.load(Ordering::Relaxed), 8);
        // It was called when it panicked, and told again.
        assert_eq!(busy.1.load(Ordering::Relaxed), 102);
        let (joined, _ticket) = busy.2.lock().unwrap().take().unwrap();
        assert_eq!(joined.heard.load(Ordering::Relaxed), 8);
        assert_eq!(joined.called.load(Ordering::Relaxed) + other.called.load(Ordering::Relaxed), 0);
        assert_eq!(groups(&resource), [3]);
    }
}
