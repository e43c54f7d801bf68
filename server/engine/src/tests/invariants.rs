//! The checks of the invariants themselves: what is broken on purpose is found.

use crate::{
    RunState,
    testing::{World, numbered},
    window::Head,
};

/// Two jobs in a window, and one leased.
fn world() -> World {
    let mut world = World::new();
    world.push_all(numbered("a", 0..1));
    let worker = world.worker();
    world.fetch(worker, "a", 1);
    world.push_all(numbered("a", 1..3));
    world.commit();
    world.engine.check_invariants().unwrap();
    world
}

/// The first head of the window, taken out of it.
fn first(world: &mut World) -> Head {
    let queue = world.engine.queues.iter().next().unwrap();
    let place = queue
        .all_windows()
        .find_map(|(_, window)| window.heads.front())
        .unwrap()
        .place;
    world.engine.queues.take(&place).unwrap()
}

fn broken(world: &World) -> String {
    world.engine.check_invariants().unwrap_err()
}

#[test]
fn heads_out_of_order() {
    let mut world = world();
    let head = first(&mut world);
    assert!(world.engine.queues.push_back(head));
    assert!(broken(&world).contains("I16"));
}

#[test]
fn a_head_of_a_job_that_is_leased() {
    let mut world = world();
    let leased = *world.engine.leases.iter().next().unwrap().0;
    let mut head = first(&mut world);
    head.id = leased;
    world.engine.queues.push_front(head);
    assert!(broken(&world).contains("I7"));
}

#[test]
fn a_head_that_has_left_its_run() {
    let mut world = world();
    let head = first(&mut world);
    let place = head.place;
    world.engine.queues.push_front(head);
    let run = world.engine.runs.get_mut(&place.run).unwrap();
    run.left.insert(place.index);
    assert!(broken(&world).contains("I7"));
}

#[test]
fn runs_that_miscount_their_heads_or_leases() {
    for miscount in [
        |run: &mut RunState| run.heads += 1,
        |run: &mut RunState| run.leased += 1,
    ] {
        let mut world = world();
        world.engine.runs.values_mut().for_each(miscount);
        assert!(broken(&world).contains("does not fit"));
    }
}

#[test]
fn a_ready_job_without_its_head() {
    let mut world = world();
    first(&mut world);
    assert!(broken(&world).contains("I13"));
}
