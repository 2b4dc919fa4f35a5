//! Resources in memory, with a log file that makes them survive. A record is a line of text (checksum, kind, life,
//! length of the data, key) and the data. How each clause of the contract in [`httpfstream::storage`] is kept:
//!
//! 1. Exclusive: one process locks the file; within it, a lease is an `Arc` that the appender holds.
//! 2. Fenced: every call compares its lease with the current one, under the log's lock.
//! 3. Committed is durable here: a record is synced before anybody can see it.
//! 4. Final: so a crash can only tear the last record, and nobody has seen that.
//! 5. A record that can't be written or synced is cut off, and the log takes nothing more until it is opened anew. No
//!    call can be cancelled half-way: none awaits anything.
//! 6. Dropping an appender drops its `Arc`. Not the opening but the first record makes the resource.
//! 7. A finish is one record. An appender that is lost leaves none, and so an interrupted resource.
//!
//! Kept short: calls block their thread while the disk works (move them to `spawn_blocking`), space is never given
//! back, `list` is left at its default.
use std::collections::HashMap;
use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use httpfstream::{Error, ErrorKind, Key, Result};
use httpfstream::{
    Life, Stat, State,
    storage::{Append, ByteStream, End, Open, Storage},
};
use sha2::{Digest, Sha256};

#[derive(Clone)]
pub(crate) struct LogStorage(Arc<Mutex<Log>>);

struct Log {
    file: File,
    end: u64,
    broken: bool,
    resources: HashMap<Key, (Life, State, Vec<u8>)>,
    leases: HashMap<Key, Weak<()>>,
}

impl LogStorage {
    pub(crate) fn open(path: &std::path::Path) -> Result<Self> {
        let file = File::options().write(true).create(true).truncate(false).open(path).map_err(Error::storage)?;
        file.try_lock().map_err(|taken| Error::new(ErrorKind::Busy).with_source(taken))?;
        let mut log = Log { file, end: 0, broken: false, resources: HashMap::new(), leases: HashMap::new() };
        let records = std::fs::read(path).map_err(Error::storage)?;
        while log.replay(&records[log.end as usize..]).is_some() {}
        log.file.set_len(log.end).and_then(|()| log.file.sync_all()).map_err(Error::storage)?;
        // A new file's name has to survive as well.
        File::open(path.with_file_name(".")).and_then(|folder| folder.sync_all()).map_err(Error::storage)?;
        Ok(Self(Arc::new(Mutex::new(log))))
    }

    fn lock(&self) -> Result<MutexGuard<'_, Log>> {
        self.0.lock().ok().filter(|log| !log.broken).ok_or_else(|| Error::storage("an earlier write failed"))
    }
}

impl Log {
    fn stat(&self, key: &Key) -> Option<Stat> {
        let (life, state, bytes) = self.resources.get(key)?;
        let live = self.leases.get(key).is_some_and(|lease| lease.strong_count() > 0);
        Some(Stat::new(*life, bytes.len() as u64, if live { State::Live } else { *state }))
    }

    fn write(&mut self, kind: &str, key: &Key, life: Life, data: &[u8]) -> Result<()> {
        // A key has no line breaks in it.
        let line = format!("{kind} {life} {} {key}\n", data.len());
        let record = [sum(&line, data).as_bytes(), b" ", line.as_bytes(), data].concat();
        if let Err(failed) = self.file.write_all_at(&record, self.end).and_then(|()| self.file.sync_data()) {
            // What the kernel failed to write it forgets: no later sync could be believed.
            self.broken = true;
            let _ = self.file.set_len(self.end);
            return Err(Error::storage(failed));
        }
        self.end += record.len() as u64;
        self.apply(kind, key, life, data);
        Ok(())
    }

    /// What a record means, whether it was just written or is read back.
    fn apply(&mut self, kind: &str, key: &Key, life: Life, data: &[u8]) {
        if kind == "deleted" {
            return drop(self.resources.remove(key));
        }
        let (_, state, bytes) = self.resources.entry(key.clone()).or_insert((life, State::Interrupted, Vec::new()));
        bytes.extend_from_slice(data);
        *state = match kind {
            "finished" => State::Finished,
            "sealed" => State::Sealed,
            _ => State::Interrupted,
        };
    }

    /// Reads the next record. `None`: there is none, or it is not whole.
    fn replay(&mut self, mut from: &[u8]) -> Option<()> {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let (written, rest) = line.split_once(' ')?;
        let [kind, life, len, key] = rest.trim_end_matches('\n').splitn(4, ' ').collect::<Vec<_>>().try_into().ok()?;
        let (key, life) = (Key::new(key).ok()?, Life::from_bits(u128::from_str_radix(life, 16).ok()?));
        let data = from.get(..len.parse().ok()?).filter(|data| sum(rest, data) == written)?;
        self.end += (line.len() + data.len()) as u64;
        self.apply(kind, &key, life, data);
        Some(())
    }
}

fn sum(line: &str, data: &[u8]) -> String {
    format!("{:x}", Bytes::copy_from_slice(&Sha256::new().chain_update(line).chain_update(data).finalize()))
}

impl Storage for LogStorage {
    type Appender = LogAppend;

    async fn open(&self, key: &Key, how: Open) -> Result<LogAppend> {
        let mut log = self.lock()?;
        log.leases.retain(|_, lease| lease.strong_count() > 0);
        let found = log.resources.get(key).map(|(life, state, bytes)| (*life, *state, bytes.len() as u64));
        match found {
            _ if log.leases.contains_key(key) && how != Open::Takeover => return Err(ErrorKind::Busy.into()),
            Some(_) if how == Open::Create => return Err(ErrorKind::Exists.into()),
            Some((_, State::Sealed, _)) => return Err(ErrorKind::Sealed.into()),
            _ => {}
        }
        let (life, _, len) = found.unwrap_or((Life::random()?, State::Live, 0));
        let lease = Arc::new(());
        log.leases.insert(key.clone(), Arc::downgrade(&lease));
        Ok(LogAppend { storage: self.clone(), key: key.clone(), lease, stat: Stat::new(life, len, State::Live) })
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        Ok(self.lock()?.stat(key))
    }

    async fn read(&self, key: &Key, life: Life, range: std::ops::Range<u64>) -> Result<ByteStream> {
        let log = self.lock()?;
        let (_, _, bytes) = log.resources.get(key).filter(|found| found.0 == life).ok_or(ErrorKind::NotFound)?;
        let wanted = bytes.get(range.start as usize..range.end as usize).ok_or(ErrorKind::PastEnd)?;
        Ok(Box::pin(futures_util::stream::iter([Ok(Bytes::copy_from_slice(wanted))])))
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let mut log = self.lock()?;
        let life = log.stat(key).ok_or(ErrorKind::NotFound)?.life;
        log.leases.remove(key);
        log.write("deleted", key, life, b"")
    }
}

#[derive(Clone)]
pub(crate) struct LogAppend {
    storage: LogStorage,
    key: Key,
    lease: Arc<()>,
    stat: Stat,
}

impl LogAppend {
    /// The log, if the resource is still ours.
    fn held(&self) -> Result<MutexGuard<'_, Log>> {
        let log = self.storage.lock()?;
        let held = log.leases.get(&self.key).is_some_and(|held| held.as_ptr() == Arc::as_ptr(&self.lease));
        if held { Ok(log) } else { Err(ErrorKind::Fenced.into()) }
    }
}

impl Append for LogAppend {
    type Sync = std::pin::Pin<Box<dyn Future<Output = Result<u64>> + Send>>;

    fn stat(&self) -> Stat {
        self.stat.clone()
    }

    async fn append(&mut self, data: &[Bytes]) -> Result<u64> {
        let (key, life, data) = (&self.key, self.stat.life, data.concat());
        self.held().and_then(|mut log| if data.is_empty() { Ok(()) } else { log.write("data", key, life, &data) })?;
        self.stat.len += data.len() as u64;
        Ok(self.stat.len)
    }

    fn sync(&self) -> Self::Sync {
        let this = self.clone();
        Box::pin(async move { Ok(this.held()?.stat(&this.key).map_or(0, |stat| stat.len)) })
    }

    async fn finish(self, end: End) -> Result<Stat> {
        let mut log = self.held()?;
        if end != End::Interrupted {
            log.write(end.state().as_str(), &self.key, self.stat.life, b"")?;
        }
        log.leases.remove(&self.key);
        Ok(log.stat(&self.key).unwrap_or(Stat::new(self.stat.life, 0, end.state())))
    }
}
