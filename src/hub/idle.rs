//! Groups of idle followers: followers that have caught up are written to in groups, without waking a task for each.
//!
//! A follower that has caught up joins a group and shares its connection with it; its own task waits for everything else.
//! A group has followers of one runtime only. New bytes are written to the first group by the appender's task, if they are
//! few, and to the other groups by a task of each group. They are encoded once for all members of a group with the same
//! position and encoding.
//!
//! A follower whose socket doesn't take all bytes at once is woken, takes its connection back, and goes on by itself. All
//! followers do so at a change that isn't growth ([`Resource::state_changes`]). A slow follower therefore holds up none of
//! the others, and nothing is queued but the rest of one write.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::runtime::{self, Handle};
use tokio::sync::Notify;
use tokio::task::coop;

use super::Resource;
use super::cursor::MAX_STEP;
use crate::buffer::{ByteQueue, Segments};

/// Members of a group. With a write or two for each, a group stays within tokio's cooperative budget. (With 32 members, 100
/// followers of 1 KiB messages wait a tenth longer.)
const GROUP_SIZE: usize = 64;
/// The appender's task writes at most this many bytes to each member. For more it is better to go on appending.
const MAX_INLINE: u64 = 16 * 1024;
/// How many encoded frames a group write keeps. Few are needed: most members are at the same position.
const MAX_FRAMES: usize = 4;

/// A follower as a member of a group.
pub(crate) trait IdleMember: Send + Sync {
    /// Writes new bytes, unless the follower's own task has its connection at the moment. If this panics the connection must
    /// be closed.
    fn write(&self, batch: &mut GroupWrite<'_>);
    /// Wakes the follower's own task, which has to go on by itself.
    fn wake(&self);
}

/// The groups of a resource.
#[derive(Default)]
pub(super) struct IdleGroups {
    groups: Mutex<Vec<Arc<Group>>>,
}

/// Followers that are written to together.
struct Group {
    /// Where the group's task runs. All members are followers of this runtime, since another one may have stopped.
    runtime: runtime::Id,
    members: Mutex<Members>,
    /// How many memberships there are.
    count: AtomicUsize,
    /// The group's task has ended.
    closed: AtomicBool,
    /// Notified when the group's task has bytes to write.
    due: Notify,
}

#[derive(Default)]
struct Members {
    /// Followers that have left are removed later.
    list: Vec<Arc<dyn IdleMember>>,
    /// A task has taken the list and is writing …
    writing: bool,
    /// … and more bytes came meanwhile.
    again: bool,
}

/// The membership of a follower in a group, until it is dropped.
pub(crate) struct Membership(Arc<Group>);

impl Membership {
    /// Whether the group is still written to.
    pub(crate) fn is_valid(&self) -> bool {
        !self.0.is_closed()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl IdleGroups {
    fn groups(&self) -> MutexGuard<'_, Vec<Arc<Group>>> {
        // No code that panics runs under this lock.
        self.groups.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a follower to a group of its runtime, or to a new one.
    pub(super) fn join(resource: &Arc<Resource>, member: Arc<dyn IdleMember>) -> Membership {
        let runtime = Handle::current();
        let mut groups = resource.idle_groups.groups();
        let free = groups.iter().find(|group| group.has_room(runtime.id()) && group.add(&member));
        if let Some(group) = free {
            return Membership(Arc::clone(group));
        }
        let group = Arc::new(Group {
            runtime: runtime.id(),
            members: Mutex::default(),
            count: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            due: Notify::new(),
        });
        group.add(&member);
        groups.retain(|group| !group.is_closed());
        groups.push(Arc::clone(&group));
        runtime.spawn(run_group(Arc::clone(resource), CloseOnDrop(Arc::clone(&group))));
        Membership(group)
    }

    /// Writes bytes that were just published, or sees to it that the groups' tasks do.
    pub(super) fn notify_growth(&self, resource: &Resource) {
        let first = {
            let mut groups = self.groups();
            groups.retain(|group| !group.is_closed());
            let Some((first, others)) = groups.split_first() else { return };
            for other in others {
                other.due.notify_one();
            }
            Arc::clone(first)
        };
        // An empty group is closed by its task.
        if !first.write_to_members(resource, MAX_INLINE) || first.is_empty() {
            first.due.notify_one();
        }
    }
}

impl Group {
    fn members(&self) -> MutexGuard<'_, Members> {
        // No code that panics runs under this lock.
        self.members.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    fn has_room(&self, runtime: runtime::Id) -> bool {
        self.runtime == runtime && self.count.load(Ordering::Relaxed) < GROUP_SIZE
    }

    /// Adds a member, unless the group is closed. Returns whether it was added.
    fn add(&self, member: &Arc<dyn IdleMember>) -> bool {
        let mut members = self.members();
        if self.is_closed() {
            return false;
        }
        if members.list.len() >= GROUP_SIZE {
            members.list.retain(is_joined);
        }
        members.list.push(Arc::clone(member));
        self.count.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Writes new bytes to all members, at most `max` to each. Returns whether all was written, or another task is writing.
    fn write_to_members(&self, resource: &Resource, max: u64) -> bool {
        let mut list = {
            let mut members = self.members();
            if members.writing {
                members.again = true;
                return true;
            }
            members.writing = true;
            std::mem::take(&mut members.list)
        };
        let mut batch = GroupWrite { resource, to: resource.len(), max, frames: SmallVec::new(), is_complete: true };
        let mut served = 0;
        for member in &list {
            // A panic in one connection must not affect the others.
            if catch_unwind(AssertUnwindSafe(|| member.write(&mut batch))).is_err() {
                member.wake();
            }
            if !batch.is_complete {
                break;
            }
            served += 1;
        }
        // Members that were not written to are first next time.
        list.rotate_left(served);
        let mut members = self.members();
        list.append(&mut members.list);
        if list.len() > self.count.load(Ordering::Relaxed) {
            list.retain(is_joined);
        }
        members.list = list;
        members.writing = false;
        let again = std::mem::take(&mut members.again);
        drop(members);
        if self.is_closed() {
            // The group was closed while the list was taken out of it, so that no member was woken.
            self.wake_all();
        }
        batch.is_complete && !again
    }

    /// Closes the group, which is written to no more, and wakes its members.
    fn close(&self) {
        {
            // Under the lock, so that a follower joins before this and is woken, or finds the group closed.
            let _members = self.members();
            self.closed.store(true, Ordering::Release);
        }
        self.wake_all();
    }

    /// Closes the group if it has no members. Returns whether it did.
    fn close_if_empty(&self) -> bool {
        let _members = self.members();
        let empty = self.is_empty();
        if empty {
            self.closed.store(true, Ordering::Release);
        }
        empty
    }

    fn wake_all(&self) {
        let list = self.members().list.clone();
        for member in list {
            member.wake();
        }
    }
}

/// Whether the follower still follows: otherwise only the group has this member.
fn is_joined(member: &Arc<dyn IdleMember>) -> bool {
    Arc::strong_count(member) > 1
}

/// New bytes of a resource, to be written to the members of a group.
pub(crate) struct GroupWrite<'a> {
    resource: &'a Resource,
    /// The end of the new bytes.
    to: u64,
    /// The most that is written to one member.
    max: u64,
    frames: SmallVec<[Frame; 1]>,
    /// No member had to be postponed.
    is_complete: bool,
}

/// Encoded bytes, for all members with the same position and encoding.
struct Frame {
    from: u64,
    encoding: u8,
    /// `None`: the tail lacks the bytes, or encoding them changes the encoder's state. The members go on by themselves.
    bytes: Option<Segments>,
    to: u64,
}

impl GroupWrite<'_> {
    /// Whether there are bytes for a follower at this position.
    pub(crate) fn is_behind(&self, at: u64) -> bool {
        at < self.to
    }

    /// Whether a follower at this position may be written to now. Otherwise it and the rest of the group are postponed.
    pub(crate) fn may_write_now(&mut self, at: u64) -> bool {
        self.is_complete &= self.to.saturating_sub(at) <= self.max && coop::has_budget_remaining();
        self.is_complete
    }

    /// The bytes to write to followers at this position, encoded, and their position after that. `encoding` identifies what
    /// `encode` does, so that its result is shared. `None`: the follower has to go on by itself.
    pub(crate) fn frame(
        &mut self,
        from: u64,
        encoding: u8,
        encode: impl FnOnce(ByteQueue) -> Option<ByteQueue>,
    ) -> Option<(&[Bytes], u64)> {
        let known = self.frames.iter().position(|frame| (frame.from, frame.encoding) == (from, encoding));
        let index = known.unwrap_or_else(|| {
            let to = self.to.min(from.saturating_add(MAX_STEP));
            let bytes = self.resource.lock().tail.get(from, to);
            let bytes = bytes.and_then(encode).map(|mut pieces| pieces.take_all());
            if self.frames.len() == MAX_FRAMES {
                self.frames.remove(0);
            }
            self.frames.push(Frame { from, encoding, bytes, to });
            self.frames.len() - 1
        });
        let frame = &self.frames[index];
        Some((frame.bytes.as_deref()?, frame.to))
    }
}

/// The task of a group. Runs until the group is empty or the resource is closed.
async fn run_group(resource: Arc<Resource>, guard: CloseOnDrop) {
    let CloseOnDrop(group) = &guard;
    loop {
        tokio::select! {
            biased;
            () = resource.closed.cancelled() => return,
            () = group.due.notified() => {}
        }
        if !group.write_to_members(&resource, u64::MAX) {
            group.due.notify_one();
            tokio::task::yield_now().await;
        } else if group.close_if_empty() {
            return;
        }
    }
}

/// Closes a group when its task ends, also if that is because its runtime is shut down.
struct CloseOnDrop(Arc<Group>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::resource::Holder;
    use crate::key::Key;
    use crate::state::{Life, Stat, State};

    /// Records how far it was written to, and how often it was woken.
    #[derive(Default)]
    struct Follower {
        at: AtomicUsize,
        wakeups: AtomicUsize,
    }

    impl IdleMember for Follower {
        fn write(&self, batch: &mut GroupWrite<'_>) {
            let at = self.at.load(Ordering::Relaxed) as u64;
            if batch.is_behind(at) && batch.may_write_now(at) {
                self.at.store(batch.to as usize, Ordering::Relaxed);
            }
        }

        fn wake(&self) {
            self.wakeups.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn resource() -> Arc<Resource> {
        let stat = Stat::new(Life::from_bits(1), 0, State::Live);
        Arc::new(Resource::new(Key::new("a").unwrap(), &stat, None, Holder::Attached, 1 << 20, None))
    }

    fn join(resource: &Arc<Resource>) -> (Arc<Follower>, Membership) {
        let follower = Arc::<Follower>::default();
        let membership = resource.join_idle_group(Arc::clone(&follower) as _);
        (follower, membership)
    }

    fn groups(resource: &Resource) -> Vec<usize> {
        resource.idle_groups.groups().iter().map(|group| group.members().list.len()).collect()
    }

    /// Runs the other tasks until all are waiting.
    async fn run_tasks() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn groups_are_refilled_and_empty_groups_are_removed() {
        let resource = resource();
        let mut all: Vec<_> = (0..2 * GROUP_SIZE + 6).map(|_| join(&resource)).collect();
        assert_eq!(groups(&resource), [GROUP_SIZE, GROUP_SIZE, 6]);
        for (len, inline) in [(MAX_INLINE, GROUP_SIZE), (2 * MAX_INLINE, GROUP_SIZE), (3 * MAX_INLINE + 1, 0)] {
            resource.grow(0, &[], len).unwrap();
            let written = all.iter().filter(|(follower, _)| follower.at.load(Ordering::Relaxed) as u64 == len);
            assert_eq!(written.count(), inline);
            run_tasks().await;
            assert!(all.iter().all(|(follower, _)| follower.at.load(Ordering::Relaxed) as u64 == len));
        }
        // Most members of each group leave; others fill the groups again.
        all = all.into_iter().enumerate().filter(|(i, _)| i % 4 == 0).map(|(_, one)| one).collect();
        resource.grow(0, &[], 60_000).unwrap();
        run_tasks().await;
        assert_eq!(groups(&resource), [GROUP_SIZE / 4, GROUP_SIZE / 4, 2]);
        all.extend((0..2 * GROUP_SIZE - 4).map(|_| join(&resource)));
        assert_eq!(groups(&resource)[..2], [GROUP_SIZE, GROUP_SIZE]);
        assert_eq!(resource.idle_groups.groups().len(), 3);
        assert!(all.iter().all(|(follower, _)| follower.wakeups.load(Ordering::Relaxed) == 0));
        all.clear();
        for more in 1..3 {
            resource.grow(0, &[], 100_000 + more).unwrap();
            run_tasks().await;
        }
        assert_eq!(groups(&resource), [0; 0]);
        let (one, _membership) = join(&resource);
        resource.grow(0, &[], 200_000).unwrap();
        run_tasks().await;
        assert_eq!(one.at.load(Ordering::Relaxed), 200_000);
    }

    #[tokio::test]
    async fn all_members_are_woken_when_the_resource_closes() {
        let resource = resource();
        let all: Vec<_> = (0..GROUP_SIZE + 8).map(|_| join(&resource)).collect();
        run_tasks().await;
        resource.closed.cancel();
        run_tasks().await;
        for (follower, membership) in &all {
            assert!(follower.wakeups.load(Ordering::Relaxed) == 1 && !membership.is_valid());
        }
        assert!(join(&resource).1.is_valid());
    }

    /// While it is written to for the first time, the resource grows, another follower joins, and it panics.
    struct Reentrant {
        resource: Arc<Resource>,
        /// One for each write, and a hundred for each wakeup.
        calls: AtomicUsize,
        joined: Mutex<Option<(Arc<Follower>, Membership)>>,
    }

    impl IdleMember for Reentrant {
        fn write(&self, batch: &mut GroupWrite<'_>) {
            if self.calls.fetch_add(1, Ordering::Relaxed) == 0 {
                self.resource.grow(0, &[], batch.to + 1).unwrap();
                *self.joined.lock().unwrap() = Some(join(&self.resource));
                panic!("as a connection might");
            }
        }

        fn wake(&self) {
            self.calls.fetch_add(100, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn bytes_that_come_during_a_group_write_are_written_next() {
        let resource = resource();
        let reentrant = Arc::new(Reentrant {
            resource: Arc::clone(&resource),
            calls: AtomicUsize::new(0),
            joined: Mutex::default(),
        });
        let _membership = resource.join_idle_group(Arc::clone(&reentrant) as _);
        let (other, _membership) = join(&resource);
        resource.grow(0, &[], 7).unwrap();
        run_tasks().await;
        assert_eq!(other.at.load(Ordering::Relaxed), 8);
        // Written to, woken since it panicked, and written to again.
        assert_eq!(reentrant.calls.load(Ordering::Relaxed), 102);
        let (joined, _membership) = reentrant.joined.lock().unwrap().take().unwrap();
        assert_eq!(joined.at.load(Ordering::Relaxed), 8);
        assert_eq!(joined.wakeups.load(Ordering::Relaxed) + other.wakeups.load(Ordering::Relaxed), 0);
        assert_eq!(groups(&resource), [3]);
    }
}
