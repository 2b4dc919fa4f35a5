//! [`Storage`] as an object, so that nothing above it is generic over it.

use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;

use super::{Append, ByteStream, End, EntryStream, Life, Open, Stat, StatStream, Storage};
use crate::error::Result;
use crate::id::Owner;
use crate::key::Key;

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub(crate) trait DynStorage: Send + Sync + 'static {
    fn open<'a>(&'a self, key: &'a Key, how: Open) -> BoxFuture<'a, Result<Box<dyn DynAppend>>>;
    fn stat<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stat>>>;
    fn read<'a>(&'a self, key: &'a Key, life: Life, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>>;
    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>>;
    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream;
    fn file<'a>(&'a self, key: &'a Key, life: Life) -> BoxFuture<'a, Result<Option<File>>>;
    fn lost(&self) -> EntryStream;
    fn list(&self, prefix: &str) -> EntryStream;
}

pub(crate) trait DynAppend: Send + 'static {
    fn stat(&self) -> Stat;
    fn claim(&mut self, owner: Option<Owner>);
    fn append<'a>(&'a mut self, data: &'a [Bytes]) -> BoxFuture<'a, Result<u64>>;
    fn sync(&self) -> BoxFuture<'static, Result<u64>>;
    fn finish(self: Box<Self>, end: End) -> BoxFuture<'static, Result<Stat>>;
}

impl<S: Storage> DynStorage for S {
    fn open<'a>(&'a self, key: &'a Key, how: Open) -> BoxFuture<'a, Result<Box<dyn DynAppend>>> {
        Box::pin(async move { Ok(Box::new(Storage::open(self, key, how).await?) as _) })
    }

    fn stat<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stat>>> {
        Box::pin(Storage::stat(self, key))
    }

    fn read<'a>(&'a self, key: &'a Key, life: Life, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(Storage::read(self, key, life, range))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(Storage::delete(self, key))
    }

    fn follow(&self, key: &Key, life: Life, from: u64) -> StatStream {
        Storage::follow(self, key, life, from)
    }

    fn file<'a>(&'a self, key: &'a Key, life: Life) -> BoxFuture<'a, Result<Option<File>>> {
        Box::pin(Storage::file(self, key, life))
    }

    fn lost(&self) -> EntryStream {
        Storage::lost(self)
    }

    fn list(&self, prefix: &str) -> EntryStream {
        Storage::list(self, prefix)
    }
}

impl<A: Append> DynAppend for A {
    fn stat(&self) -> Stat {
        Append::stat(self)
    }

    fn claim(&mut self, owner: Option<Owner>) {
        Append::claim(self, owner);
    }

    fn append<'a>(&'a mut self, data: &'a [Bytes]) -> BoxFuture<'a, Result<u64>> {
        Box::pin(Append::append(self, data))
    }

    fn sync(&self) -> BoxFuture<'static, Result<u64>> {
        Box::pin(Append::sync(self))
    }

    fn finish(self: Box<Self>, end: End) -> BoxFuture<'static, Result<Stat>> {
        Box::pin(Append::finish(*self, end))
    }
}
