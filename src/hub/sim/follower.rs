//! Followers.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::appender::bounded;
use super::world::World;
use crate::chunk::{Chunk, Update};
use crate::error::{ErrorKind, Result};
use crate::state::{Life, State};
use crate::streams::{Follower, Streams};

/// A follower that reconnects many times.
pub(super) async fn follow(world: World, streams: Streams, index: u64, stop: CancellationToken) {
    world.sleep_up_to(6000).await;
    let key = world.any_key();
    let mut reached: Option<(Life, u64)> = None;
    for _ in 0..60 {
        if stop.is_cancelled() || world.has_failed() {
            return;
        }
        world.wait_for_own_millisecond(index).await;
        let mut request = streams.follow(key.as_str());
        request = match (reached, world.draw(8)) {
            (Some((life, at)), _) => request.life(life).offset(at),
            (None, 0) => request.tail(world.draw(100)),
            (None, 1) => request.lines(world.draw(5)),
            (None, 2) => request.offset(world.draw(200)),
            (None, 3) => request.wait(Duration::from_millis(world.draw(3000))),
            (None, _) => request,
        };
        let Some(found) = bounded(&world, "follow", async { request.await }).await else { return };
        match found {
            Ok(mut follower) => {
                world.log(format_args!("follower {index} at {} of {:?}", follower.offset(), follower.life()));
                let right = reached.is_none_or(|reached| reached == (follower.life(), follower.offset()));
                world.check(right, format_args!("follower {index} did not go on where it was"));
                let ended = read(&world, index, &mut follower, &stop, false).await;
                reached = (!ended && world.chance(80)).then(|| (follower.life(), follower.offset()));
            }
            Err(error) => {
                world.log(format_args!("follower {index} of {key}: {:?}", error.kind()));
                match error.kind() {
                    ErrorKind::PastEnd => {
                        world.check(
                            reached.is_none(),
                            format_args!("follower {index} got more of {key} than is stored"),
                        );
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
            () = world.sleep_up_to(800) => {}
        }
    }
}

/// Reads until the end, or for a random time if the follower is not `patient`. Returns whether it reached the end.
pub(super) async fn read(
    world: &World,
    index: u64,
    follower: &mut Follower,
    stop: &CancellationToken,
    patient: bool,
) -> bool {
    loop {
        let limit = match !patient && world.chance(10) {
            true => Duration::from_millis(world.draw(3000)),
            false => Duration::MAX,
        };
        let from = follower.offset();
        let update = tokio::select! {
            biased;
            () = stop.cancelled() => return false,
            update = follower.next_update() => update,
            () = tokio::time::sleep(limit) => return false,
        };
        if let Some(ended) = check_update(world, index, follower, from, update) {
            return ended;
        }
        if world.chance(20) {
            world.sleep_up_to(700).await;
        }
    }
}

/// Checks what a follower got. Returns whether it reached the end, if it follows no longer.
fn check_update(
    world: &World,
    index: u64,
    follower: &Follower,
    from: u64,
    update: Result<Option<Update>>,
) -> Option<bool> {
    let (life, at) = (follower.life(), follower.offset());
    let mut inner = world.lock();
    match update {
        Ok(Some(Update::Data(Chunk { bytes: data, .. }))) => {
            let stored = inner.lives.get(&life).and_then(|record| record.bytes.get(from as usize..at as usize));
            let right = stored.is_some_and(|stored| stored == data) && !data.is_empty();
            inner.check(right, format_args!("follower {index} got other bytes than those at {from}..{at} of {life:?}"));
            inner.log(format_args!("follower {index} has {at} of {life:?}"));
            None
        }
        Ok(Some(Update::State(state))) => {
            inner.log(format_args!("follower {index} gets {state} at {at}"));
            inner.check(state.is_open(), format_args!("{state} is not open"));
            None
        }
        Ok(None) => {
            inner.log(format_args!("follower {index} gets {} at {at}", follower.state()));
            inner.count("followed to the end");
            let clean = matches!(follower.state(), State::Finished | State::Sealed);
            let right = clean && inner.has_ended(life, at, follower.state());
            inner.check(right, format_args!("follower {index} gets an end at {at}: {}", follower.state()));
            Some(true)
        }
        Err(error) => {
            inner.log(format_args!("follower {index} ends at {at}: {:?}", error.kind()));
            if error.kind() == ErrorKind::Interrupted {
                inner.count("followed to an interruption");
                let right = inner.has_ended(life, at, State::Interrupted);
                inner.check(right, format_args!("follower {index} gets an interruption at {at}"));
            }
            Some(false)
        }
    }
}
