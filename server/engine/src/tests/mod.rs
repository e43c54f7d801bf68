//! What the engine does, told as a specification: one behaviour a test, over a store in memory.

mod batches;
mod cancel;
mod cron;
mod dead;
mod events;
mod expiry;
mod fetching;
mod invariants;
mod leases;
mod limits;
mod order;
mod producers;
mod progress;
mod purge;
mod reschedule;
mod retention;
mod retries;
mod scheduled;
mod sessions;
mod settings;
mod storage;
mod unique;
mod waits;
mod workflows;

use crate::testing::World;

/// Checks the same in one group, over groups, and over restarts; at the end nothing is left.
fn everywhere(check: impl Fn(&mut World, fn(&mut World))) {
    let pauses = [|_: &mut World| {}, World::commit, World::reopen];
    for (pause, is_followed) in pauses.into_iter().zip([true, false, true]) {
        let mut world = World::new();
        if is_followed {
            world.follow();
        }
        check(&mut world, pause);
        world.commit();
        for session in world.sessions() {
            world.goodbye(session);
        }
        world.commit();
        world.store.check_empty();
        world.engine.check_drained().unwrap();
    }
}
