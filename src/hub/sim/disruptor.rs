//! Clients that disturb appenders: one takes over with another's id, one deletes.

use std::time::Duration;

use super::appender::{CALL_LIMIT, bounded};
use super::world::World;
use crate::hub::{AttachRequest, Attached, Entry};
use crate::storage::Open;
use crate::streams::Streams;

/// A client that shows another appender's id: it takes over, does nothing, and leaves.
pub(super) async fn evict(world: World, streams: Streams) {
    world.sleep_up_to(9000).await;
    let sessions = world.lock().sessions.clone();
    let session = &sessions[world.draw(sessions.len() as u64) as usize];
    let attach = AttachRequest { owner: session.owner, ..AttachRequest::new(Open::Continue) };
    let Some(Ok(Attached::Open { lease, .. })) =
        bounded(&world, "attach", streams.hub.attach(&session.key, attach)).await
    else {
        return;
    };
    let hold = world.lock().hold(&lease, session.owner);
    world.log(format_args!("session {} is evicted", session.id));
    tokio::select! {
        biased;
        () = streams.hub.shutting_down.cancelled() => {}
        () = world.sleep_up_to(500) => {}
    }
    world.lock().release(hold, session.owner);
    drop(lease);
}

/// A client that deletes a resource.
pub(super) async fn delete(world: World, streams: Streams) {
    world.sleep_up_to(9000).await;
    let key = world.any_key();
    let limit = match world.chance(40) {
        true => Duration::from_millis(world.draw(60)),
        false => Duration::MAX,
    };
    let deleted = tokio::select! {
        biased;
        deleted = bounded(&world, "delete", streams.delete(key.as_str())) => deleted,
        () = tokio::time::sleep(limit) => {
            world.log(format_args!("the delete of {key} is cancelled"));
            tokio::time::sleep(if world.plan().slow { CALL_LIMIT } else { Duration::from_millis(300) }).await;
            None
        }
    };
    world.log(format_args!("delete {key}: {:?}", deleted.map(|done| done.map_err(|error| error.kind()))));
    // The hub's entry must not be for the deleted life.
    let open = match streams.hub.entries().get(&key) {
        Some(Entry::Open(resource)) => Some(resource.life),
        _ => None,
    };
    let inner = world.lock();
    let stored = inner.store.get(&key).map(|stored| stored.life);
    drop(inner);
    if let Some(life) = open {
        let faults = world.plan().faults > 0;
        let right = stored == Some(life) || faults;
        world.check(right, format_args!("{key} is gone, and {life:?} is open"));
    }
}
