//! The tests of the storage contract can fail: storages that are broken on purpose, at least one for each clause.
#![cfg(all(unix, feature = "conformance"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use httpfstream::storage::conformance::{Clause, clauses};
use httpfstream::{ErrorKind, Key, Owner, Result};
use httpfstream::{
    Life, Stat, State,
    storage::{Append, ByteStream, End, EntryStream, MemoryStorage, Open, StatStream, Storage},
};
use tokio::task::yield_now;

/// Faults, and the clauses that have to notice each. Makes a test of each.
macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident($test:ident): $($clause:ident)+;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Fault {
            None,
            $($(#[$doc])* $fault,)*
        }

        const NOTICED: &[(Fault, &[&str])] = &[$((Fault::$fault, &[$(stringify!($clause)),+]),)*];

        mod broken {
            $($(#[$doc])*
            // The clock goes on when nothing else does: whoever waits in vain does so at once.
            #[tokio::test(start_paused = true)]
            async fn $test() {
                $(super::is_noticed(super::Fault::$fault, stringify!($clause)).await;)+
            })*
        }
    };
}

faults! {
    /// Whoever finds the resource taken takes it over.
    SecondIsLetIn(a_second_is_let_in):
        clause_1_appenders_never_overlap clause_1_of_many_opens_one_succeeds clause_1_create_continue_and_takeover;
    /// `Create` opens what exists.
    CreateOpensWhatExists(create_opens_what_exists): clause_1_create_continue_and_takeover;
    /// An open that is cancelled holds the resource for ever.
    CancelledOpenHolds(a_cancelled_open_holds): clause_1_a_cancelled_open_leaves_the_resource_free;
    /// An open that is cancelled is done later nevertheless, and ends whoever came meanwhile.
    CancelledOpenGoesOn(a_cancelled_open_goes_on): clause_1_a_cancelled_open_leaves_the_resource_free;
    /// A fenced append says so, but appends.
    ZombieAppends(a_zombie_appends):
        clause_2_a_takeover_fences clause_2_a_delete_fences clause_2_calls_of_a_fenced_appender_have_no_effect;
    /// A fenced append says that it was done.
    ZombieIsTold(a_zombie_is_told_that_all_is_well):
        clause_2_racing_takeovers_keep_exactly_the_acknowledged_bytes clause_2_a_takeover_fences
        clause_2_a_delete_fences clause_2_a_fenced_appender_cannot_change_a_sealed_resource;
    /// Failing appends clean up what is no longer theirs.
    ZombieDeletes(a_zombie_deletes):
        clause_2_a_fenced_appender_cannot_change_a_sealed_resource clause_2_calls_of_a_fenced_appender_have_no_effect;
    /// A fenced appender that is dropped ends its successor.
    ZombieDropEndsTheNext(a_dropped_zombie_ends_the_next):
        clause_2_a_takeover_fences clause_2_calls_of_a_fenced_appender_have_no_effect;
    /// A fenced finish ends the resource.
    ZombieFinishes(a_zombie_finishes):
        clause_2_a_delete_fences clause_2_calls_of_a_fenced_appender_have_no_effect;
    /// A fenced sync says that all is durable.
    ZombieSyncs(a_zombie_syncs):
        clause_2_a_takeover_fences clause_2_a_delete_fences clause_2_calls_of_a_fenced_appender_have_no_effect;
    /// A takeover comes between the two halves of an append.
    TakeoverDoesNotWait(a_takeover_does_not_wait):
        clause_2_a_takeover_waits_for_calls_in_flight clause_2_racing_takeovers_keep_exactly_the_acknowledged_bytes;
    /// The second handle sees the resource as it was when it looked last.
    OtherNodeIsLate(the_other_node_is_late):
        clause_3_committed_bytes_are_visible_on_every_handle clause_3_handles_that_take_turns_see_each_others_bytes;
    /// A sync leaves out the last byte.
    SyncIsShort(a_sync_is_short):
        clause_3_committed_bytes_are_visible_on_every_handle clause_3_handles_that_take_turns_see_each_others_bytes;
    /// Where there are more bytes, ranges are one byte late.
    RangesAreOffByOne(ranges_are_off_by_one):
        clause_4_ranges_are_exact clause_4_ranges_are_exact_while_it_grows;
    /// Whatever is read, it begins with the first byte.
    ReadsBeginAtZero(reads_begin_at_zero):
        clause_4_ranges_are_exact clause_4_ranges_are_exact_while_it_grows
        follow_through_a_burst_reaches_every_byte hub_followers_get_every_byte_and_the_end;
    /// What is past the end is left out instead of refused.
    PastEndIsCut(what_is_past_the_end_is_cut): clause_4_ranges_are_exact;
    /// Whatever life is asked for, the current one is read.
    AnyLifeIsRead(any_life_is_read): clause_4_another_life_is_not_found;
    /// A deleted resource that is created again has the same life.
    LifeRepeats(a_life_repeats): clause_4_a_life_never_repeats clause_4_another_life_is_not_found;
    /// The open file is another one.
    FileIsEmpty(the_file_is_empty): clause_4_a_file_holds_the_committed_bytes;
    /// A cancelled append stores the last slice without the first.
    CancelledStoresTheEnd(a_cancelled_append_stores_the_end): clause_5_a_cancelled_append_leaves_a_prefix;
    /// A cancelled append goes on when somebody else has the resource.
    CancelledGoesOn(a_cancelled_append_goes_on): clause_5_a_cancelled_append_leaves_a_prefix;
    /// After a cancelled append the appender goes on as if nothing had been.
    CancelledIsNotPoisoned(a_cancelled_append_poisons_nothing): clause_5_a_cancelled_append_leaves_a_prefix;
    /// Only as many slices are stored as one system call takes.
    ManySlicesAreCut(many_slices_are_cut): clause_5_slices_are_appended_in_order;
    /// Slices are stored last first.
    SlicesAreReversed(slices_are_reversed): clause_5_slices_are_appended_in_order;
    /// What is full takes as many slices as there is room for.
    FullStoresAPart(full_stores_a_part): clause_5_full_stores_nothing;
    /// Whoever was told that all is full can't go on.
    FullPoisons(full_poisons): clause_5_full_stores_nothing;
    /// Dropped appenders hold the resource for ever.
    DropLeavesItLive(a_drop_leaves_it_live):
        clause_6_a_dropped_appender_interrupts clause_6_opening_without_appending_changes_nothing;
    /// Dropped is as good as finished.
    DropFinishes(a_drop_finishes): clause_6_a_dropped_appender_interrupts follow_begins_at_the_given_length;
    /// What a dropped appender leaves is a copy in another life.
    DropBeginsAnotherLife(a_drop_begins_another_life): clause_6_dropping_and_reopening_loses_nothing;
    /// Opening makes the resource.
    UntouchedLeavesATrace(an_untouched_one_leaves_a_trace): clause_6_opening_without_appending_changes_nothing;
    /// Nobody's claim is kept.
    OwnerIsForgotten(the_owner_is_forgotten):
        clause_6_a_claimed_resource_is_lost_with_its_owner clause_6_the_owner_is_that_of_the_last_append
        lost_lists_exactly_the_lost_resources;
    /// The first owner stays.
    OwnerSticks(the_owner_sticks): clause_6_the_owner_is_that_of_the_last_append;
    /// What is ended is nobody's.
    OwnerIsForgottenAtTheEnd(the_owner_is_forgotten_at_the_end): clause_7_the_owner_is_known_after_the_end;
    /// Whoever comes and goes interrupts what was lost.
    UntouchedInterruptsTheLost(an_untouched_one_interrupts_the_lost):
        clause_6_opening_without_appending_keeps_a_lost_resource_lost;
    /// What is lost can't be given up.
    LostStaysLost(the_lost_stays_lost): clause_7_a_lost_resource_can_be_ended;
    /// Whatever was interrupted is listed as lost.
    InterruptedIsListedAsLost(the_interrupted_are_listed_as_lost): lost_lists_exactly_the_lost_resources;
    /// Finished is for good.
    FinishedIsSealed(the_finished_are_sealed):
        clause_7_ends_and_reopens clause_3_handles_that_take_turns_see_each_others_bytes;
    /// Sealed is not for good.
    SealedReopens(the_sealed_reopen): clause_7_ends_and_reopens;
    /// What its appender gave up looks finished.
    InterruptedIsFinished(the_interrupted_are_finished):
        clause_7_ends_and_reopens hub_followers_get_the_error_of_a_lost_or_deleted_resource;
    /// A finish ends the appender first, and notes how after that.
    FinishHasTwoSteps(a_finish_has_two_steps): clause_7_a_finish_is_atomic;
    /// A cancelled finish is done later nevertheless.
    CancelledFinishGoesOn(a_cancelled_finish_goes_on): clause_7_a_cancelled_finish_ends_or_interrupts;
    /// A follow just stops at the end.
    FollowMissesTheEnd(a_follow_misses_the_end):
        follow_reports_growth_and_the_end follow_begins_at_the_given_length
        follow_through_a_burst_reaches_every_byte hub_followers_get_every_byte_and_the_end;
    /// A follow tells only of what comes after it began.
    FollowBeginsAtTheEnd(a_follow_begins_at_the_end):
        follow_begins_at_the_given_length follow_reports_growth_and_the_end;
    /// A follow promises a byte more than there is.
    FollowPromisesTooMuch(a_follow_promises_too_much):
        follow_through_a_burst_reaches_every_byte follow_begins_at_the_given_length
        follow_reports_growth_and_the_end;
    /// A follow goes on with whatever is at the key.
    FollowGoesOnInTheNextLife(a_follow_goes_on_in_the_next_life): follow_fails_when_the_life_is_over;
    /// A prefix is a folder.
    PrefixIsAFolder(a_prefix_is_a_folder): list_returns_the_keys_with_the_prefix;
    /// Names are folded to lower case.
    NamesAreFolded(names_are_folded): names_are_distinct;
}

fn clause(name: &str) -> Clause<Broken> {
    clauses().into_iter().find(|clause| clause.name() == name).expect("a clause of this name")
}

/// Checks a clause on a fresh store with this fault; what the panic says if it fails.
async fn check(fault: Fault, name: &str) -> Result<(), String> {
    let clause = clause(name);
    let one = Broken { store: MemoryStorage::new(64 << 20), fault, second: false, seen: Arc::default() };
    let two = Broken { second: true, ..one.clone() };
    match tokio::spawn(async move { clause.check(one, two).await }).await {
        Ok(()) => Ok(()),
        Err(failed) => {
            let panic = failed.into_panic();
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
        }
    }
}

async fn is_noticed(fault: Fault, name: &str) {
    match check(fault, name).await {
        Ok(()) => panic!("{name} doesn't notice {fault:?}"),
        Err(how) => println!("{name} notices {fault:?}: {how}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_unbroken_passes() {
    for clause in clauses::<Broken>() {
        if let Err(failed) = check(Fault::None, clause.name()).await {
            panic!("{}: {failed}", clause.name());
        }
    }
}

#[test]
fn each_clause_has_a_fault_that_it_notices() {
    let noticed: Vec<&str> = NOTICED.iter().flat_map(|(_, clauses)| clauses.iter().copied()).collect();
    let blind: Vec<&str> =
        clauses::<Broken>().iter().map(Clause::name).filter(|name| !noticed.contains(name)).collect();
    assert_eq!(blind, [""; 0], "no store is broken so that these would fail");
    // And those that are named do exist.
    for name in noticed {
        clause(name);
    }
}

#[test]
fn groups_are_those_that_the_documentation_names() {
    for (name, group) in [
        ("clause_1_of_many_opens_one_succeeds", "contract"),
        ("lost_lists_exactly_the_lost_resources", "owners"),
        ("list_returns_the_keys_with_the_prefix", "listing"),
        ("names_are_distinct", "names"),
        ("clause_5_full_stores_nothing", "cap"),
    ] {
        assert_eq!(clause(name).group(), group, "{name}");
    }
}

/// Memory, with one fault.
#[derive(Clone)]
struct Broken {
    store: MemoryStorage,
    fault: Fault,
    /// Whether this handle stands for the second node.
    second: bool,
    /// What that saw last.
    seen: Arc<Mutex<HashMap<Key, Stat>>>,
}

impl Broken {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn key(&self, key: &Key) -> Key {
        if self.has(Fault::NamesAreFolded) { Key::new(&key.as_str().to_lowercase()).unwrap() } else { key.clone() }
    }

    fn told(&self, mut stat: Stat) -> Stat {
        if self.has(Fault::LifeRepeats) {
            stat.life = Life::from_bits(1);
        }
        stat
    }

    /// The life that is meant by one that was told.
    async fn meant(&self, key: &Key, life: Life) -> Result<Life> {
        if self.has(Fault::AnyLifeIsRead) || self.has(Fault::LifeRepeats) && life == Life::from_bits(1) {
            return Ok(self.store.stat(key).await?.ok_or(ErrorKind::NotFound)?.life);
        }
        Ok(life)
    }
}

impl Storage for Broken {
    type Appender = BrokenAppend;

    async fn open(&self, key: &Key, how: Open) -> Result<BrokenAppend> {
        let key = &self.key(key);
        let before = self.store.stat(key).await?.map(|stat| stat.state);
        if self.has(Fault::FinishedIsSealed) && before == Some(State::Finished) && how != Open::Create {
            return Err(ErrorKind::Sealed.into());
        }
        let opened = match self.store.open(key, how).await {
            Err(error) if self.has(Fault::SecondIsLetIn) && error.kind() == ErrorKind::Busy => {
                self.store.open(key, Open::Takeover).await
            }
            Err(error) if self.has(Fault::CreateOpensWhatExists) && error.kind() == ErrorKind::Exists => {
                self.store.open(key, Open::Continue).await
            }
            opened => opened,
        };
        let mut appender = BrokenAppend {
            opened: opened.as_ref().ok().map(Append::stat),
            inner: Some(opened?),
            storage: self.clone(),
            key: key.clone(),
            before,
            poisoned: false,
        };
        if self.has(Fault::CancelledOpenHolds) {
            let mut leak = OnDrop(appender.inner.take(), std::mem::forget);
            yield_now().await;
            appender.inner = leak.0.take();
        }
        if self.has(Fault::CancelledOpenGoesOn) {
            let mut guard = OnDrop(Some(self.store.clone()), |store: MemoryStorage| {
                let key = key.clone();
                tokio::spawn(async move { drop(store.open(&key, Open::Takeover).await) });
            });
            yield_now().await;
            guard.0 = None;
        }
        Ok(appender)
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        let key = &self.key(key);
        let stat = self.store.stat(key).await?.map(|stat| self.told(stat));
        if self.has(Fault::OtherNodeIsLate) && self.second {
            let mut seen = self.seen.lock().unwrap();
            let earlier = stat.clone().and_then(|stat| seen.insert(key.clone(), stat));
            return Ok(earlier.or(stat));
        }
        Ok(stat)
    }

    async fn read(&self, key: &Key, life: Life, mut range: Range<u64>) -> Result<ByteStream> {
        let key = &self.key(key);
        let life = self.meant(key, life).await?;
        let len = self.store.stat(key).await?.map_or(0, |stat| stat.len);
        if self.has(Fault::RangesAreOffByOne) && range.end < len {
            range = range.start + 1..range.end + 1;
        }
        if self.has(Fault::ReadsBeginAtZero) && range.end <= len {
            range = 0..range.end.saturating_sub(range.start);
        }
        if self.has(Fault::PastEndIsCut) {
            range = range.start.min(len)..range.end.min(len);
        }
        self.store.read(key, life, range).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.store.delete(&self.key(key)).await
    }

    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream {
        let storage = self.clone();
        match self.fault {
            Fault::FollowMissesTheEnd => {
                let stats = self.store.follow(key, life, from);
                Box::pin(stats.filter(|stat| std::future::ready(stat.as_ref().map_or(true, |s| s.state.is_open()))))
            }
            Fault::FollowBeginsAtTheEnd => self.store.follow(key, life, u64::MAX),
            Fault::FollowPromisesTooMuch => Box::pin(self.store.follow(key, life, from).map(|stat| {
                stat.map(|mut stat| {
                    stat.len += u64::from(stat.state == State::Live);
                    stat
                })
            })),
            Fault::FollowGoesOnInTheNextLife => current(storage, key.clone(), from),
            _ => {
                let meant = self.clone();
                let key = key.clone();
                Box::pin(
                    futures_util::stream::once(async move {
                        let life = meant.meant(&key, life).await.unwrap_or(life);
                        meant.store.follow(&key, life, from)
                    })
                    .flatten()
                    .map(move |stat| stat.map(|stat| storage.told(stat))),
                )
            }
        }
    }

    async fn file(&self, key: &Key, life: Life) -> Result<Option<File>> {
        if self.store.stat(key).await?.is_none_or(|stat| stat.life != life) {
            return Ok(None);
        }
        Ok(if self.has(Fault::FileIsEmpty) { Some(File::open("/dev/null").unwrap()) } else { None })
    }

    fn lost(&self) -> EntryStream {
        if self.has(Fault::InterruptedIsListedAsLost) {
            let unfinished = |stat: &Stat| matches!(stat.state, State::Lost | State::Interrupted);
            return Box::pin(
                self.store.list("").filter(move |entry| std::future::ready(unfinished(&entry.as_ref().unwrap().1))),
            );
        }
        self.store.lost()
    }

    fn list(&self, prefix: &str) -> EntryStream {
        if self.has(Fault::PrefixIsAFolder) && !prefix.is_empty() {
            let folder = format!("{}/", prefix.trim_end_matches('/'));
            let below =
                move |key: &Key| key.as_str().starts_with(&folder) || folder.strip_suffix('/') == Some(key.as_str());
            return Box::pin(
                self.store.list("").filter(move |entry| std::future::ready(below(&entry.as_ref().unwrap().0))),
            );
        }
        self.store.list(prefix)
    }
}

/// Tells of whatever life is at a key, one after the other.
fn current(storage: Broken, key: Key, from: u64) -> StatStream {
    let told = (storage, key, from, false);
    Box::pin(futures_util::stream::unfold(told, |(storage, key, told, asked)| async move {
        let mut asked = asked;
        loop {
            if std::mem::replace(&mut asked, true) {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            match storage.store.stat(&key).await {
                Ok(Some(stat)) if stat.len > told => {
                    let len = stat.len;
                    return Some((Ok(stat), (storage, key, len, true)));
                }
                Ok(Some(_)) => {}
                _ => return Some((Err(ErrorKind::NotFound.into()), (storage, key, told, true))),
            }
        }
    }))
}

struct BrokenAppend {
    /// `None` once it has ended.
    inner: Option<<MemoryStorage as Storage>::Appender>,
    opened: Option<Stat>,
    storage: Broken,
    key: Key,
    before: Option<State>,
    poisoned: bool,
}

/// Does something with a value that is not taken out before.
struct OnDrop<T, F: FnMut(T)>(Option<T>, F);

impl<T, F: FnMut(T)> Drop for OnDrop<T, F> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            (self.1)(value);
        }
    }
}

/// Lets all others run. After a single yield this one may come before them.
async fn others() {
    for _ in 0..3 {
        yield_now().await;
    }
}

/// What memory does it does at once.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory never waits")
}

impl BrokenAppend {
    fn is_fenced(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| at_once(inner.sync()).is_err())
    }

    fn is_touched(&self) -> bool {
        let inner = self.inner.as_ref().unwrap();
        self.opened.as_ref().is_some_and(|opened| opened.len != inner.stat().len)
    }

    fn has(&self, fault: Fault) -> bool {
        self.storage.has(fault)
    }

    async fn append_brokenly(&mut self, data: &[Bytes]) -> Result<u64> {
        let store = self.storage.store.clone();
        let key = self.key.clone();
        let len = self.stat().len;
        let more: u64 = data.iter().map(|data| data.len() as u64).sum();
        let inner = self.inner.as_mut().unwrap();
        match self.storage.fault {
            Fault::TakeoverDoesNotWait => {
                let data = Bytes::from(data.concat());
                inner.append(&[data.slice(..data.len() / 2)]).await?;
                others().await;
                return inner.append(&[data.slice(data.len() / 2..)]).await;
            }
            Fault::CancelledStoresTheEnd => {
                let end = data.last().cloned().unwrap_or_default();
                let mut guard = OnDrop(Some(inner), |inner| drop(at_once(inner.append(std::slice::from_ref(&end)))));
                yield_now().await;
                return guard.0.take().unwrap().append(data).await;
            }
            Fault::CancelledGoesOn => {
                let rest = data.to_vec();
                let mut guard = OnDrop(Some(rest), |rest: Vec<Bytes>| {
                    let (store, key) = (store.clone(), key.clone());
                    tokio::spawn(async move {
                        let _ = store.open(&key, Open::Takeover).await.unwrap().append(&rest).await;
                    });
                });
                yield_now().await;
                guard.0 = None;
            }
            Fault::CancelledIsNotPoisoned => yield_now().await,
            Fault::ManySlicesAreCut if data.len() > 1024 => {
                inner.append(&data[..1024]).await?;
                return Ok(len + more);
            }
            Fault::SlicesAreReversed => {
                let reversed: Vec<Bytes> = data.iter().rev().cloned().collect();
                return inner.append(&reversed).await;
            }
            _ => {}
        }
        let appended = inner.append(data).await;
        let failed = appended.as_ref().err().map(httpfstream::Error::kind);
        match (self.storage.fault, failed) {
            (Fault::ZombieAppends, Some(ErrorKind::Fenced)) => {
                if let Ok(mut forced) = store.open(&key, Open::Takeover).await {
                    let _ = forced.append(&[Bytes::from("forced")]).await;
                }
            }
            (Fault::ZombieIsTold, Some(ErrorKind::Fenced)) => return Ok(len + more),
            (Fault::ZombieDeletes, Some(ErrorKind::Fenced)) => drop(store.delete(&key).await),
            (Fault::FullStoresAPart, Some(ErrorKind::Full)) => drop(inner.append(&data[..1]).await),
            _ => {}
        }
        appended
    }
}

impl Append for BrokenAppend {
    type Sync = Pin<Box<dyn Future<Output = Result<u64>> + Send>>;

    fn stat(&self) -> Stat {
        self.storage.told(self.inner.as_ref().unwrap().stat())
    }

    fn claim(&mut self, owner: Option<Owner>) {
        let earlier = self.opened.as_ref().and_then(|stat| stat.owner);
        let owner = match self.storage.fault {
            Fault::OwnerIsForgotten => None,
            Fault::OwnerSticks => earlier.or(owner),
            _ => owner,
        };
        self.inner.as_mut().unwrap().claim(owner);
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        if self.poisoned {
            return Err(ErrorKind::Poisoned.into());
        }
        // Until it is done; a cancelled one leaves it so.
        self.poisoned = !self.has(Fault::CancelledIsNotPoisoned);
        let appended = self.append_brokenly(data).await;
        let full = appended.as_ref().is_err_and(|error| error.kind() == ErrorKind::Full);
        self.poisoned = full && self.has(Fault::FullPoisons);
        appended
    }

    fn sync(&self) -> Self::Sync {
        let sync = self.inner.as_ref().unwrap().sync();
        let fault = self.storage.fault;
        Box::pin(async move {
            match sync.await {
                Ok(len) if fault == Fault::SyncIsShort => Ok(len.saturating_sub(1)),
                Err(_) if fault == Fault::ZombieSyncs => Ok(0),
                synced => synced,
            }
        })
    }

    async fn finish(mut self, end: End) -> Result<Stat> {
        if self.poisoned {
            return Err(ErrorKind::Poisoned.into());
        }
        let storage = self.storage.clone();
        let key = self.key.clone();
        let (fenced, touched) = (self.is_fenced(), self.is_touched());
        let mut inner = self.inner.take().unwrap();
        let len = inner.stat().len;
        if storage.has(Fault::OwnerIsForgottenAtTheEnd) {
            inner.claim(None);
        }
        let ended = match (storage.fault, end) {
            (Fault::ZombieFinishes, _) if fenced => {
                if let Ok(forced) = storage.store.open(&key, Open::Takeover).await {
                    let _ = forced.finish(End::Finished).await;
                }
                inner.finish(end).await
            }
            (Fault::LostStaysLost, End::Interrupted) if self.before == Some(State::Lost) && !touched => {
                let life = inner.stat().life;
                drop(inner);
                Ok(Stat::new(life, len, State::Interrupted))
            }
            (Fault::InterruptedIsFinished, End::Interrupted) if touched => inner.finish(End::Finished).await,
            (Fault::SealedReopens, End::Sealed) => {
                let mut ended = inner.finish(End::Finished).await?;
                ended.state = State::Sealed;
                Ok(ended)
            }
            (Fault::FinishHasTwoSteps, End::Finished | End::Sealed) if !fenced => {
                inner.finish(End::Interrupted).await?;
                others().await;
                storage.store.open(&key, Open::Continue).await?.finish(end).await
            }
            (Fault::CancelledFinishGoesOn, _) => {
                let mut guard = OnDrop(Some(inner), |inner| {
                    drop(inner);
                    let (storage, key) = (storage.clone(), key.clone());
                    tokio::spawn(async move {
                        let opened = storage.store.open(&key, Open::Takeover).await.unwrap();
                        let _ = opened.finish(end).await;
                    });
                });
                yield_now().await;
                guard.0.take().unwrap().finish(end).await
            }
            _ => inner.finish(end).await,
        };
        ended.map(|stat| storage.told(stat))
    }
}

impl Drop for BrokenAppend {
    fn drop(&mut self) {
        if self.inner.is_none() {
            return;
        }
        let (fenced, touched) = (self.is_fenced(), self.is_touched());
        let Some(inner) = self.inner.take() else { return };
        let store = &self.storage.store;
        match self.storage.fault {
            Fault::ZombieDropEndsTheNext if fenced => drop(at_once(store.open(&self.key, Open::Takeover))),
            _ if fenced => {}
            Fault::DropLeavesItLive => std::mem::forget(inner),
            Fault::DropFinishes if touched => drop(at_once(inner.finish(End::Finished))),
            Fault::UntouchedLeavesATrace if !touched => drop(at_once(inner.finish(End::Finished))),
            Fault::UntouchedInterruptsTheLost if !touched && self.before == Some(State::Lost) => {
                drop(at_once(inner.finish(End::Interrupted)));
            }
            Fault::DropBeginsAnotherLife if touched => {
                let stat = inner.stat();
                let data = at_once(at_once(store.read(&self.key, stat.life, 0..stat.len)).unwrap().collect::<Vec<_>>());
                let data: Vec<Bytes> = data.into_iter().map(Result::unwrap).collect();
                at_once(store.delete(&self.key)).unwrap();
                let mut copy = at_once(store.open(&self.key, Open::Create)).unwrap();
                at_once(copy.append(&data)).unwrap();
            }
            _ => {}
        }
    }
}
