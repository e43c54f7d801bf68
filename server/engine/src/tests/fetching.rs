//! Long polls, answers that ride along, bounds of a reply, and when it may leave.

use ganger_protocol::{
    DurationMs, ErrorCode, JobSpec, LeaseId,
    job::JobState,
    limits::{Limits, SESSION_WAITERS_MAX},
    request::{Fetch, Operation},
    response::ReplyBody,
};

use crate::{
    Options,
    command::{Command, ConnectionId},
    records::GroupNumber,
    testing::{World, ack_item, fail_item, fetch_of, ids, job, kind, numbered, small},
};

#[test]
fn a_new_job_goes_to_the_oldest_waiting_fetch_and_wakes_only_that_one() {
    let mut world = World::new();
    let workers = [(); 3].map(|()| world.worker());
    let waits = workers.map(|worker| world.wait(worker, &["a"]));
    let id = world.push(job("a"));
    assert_eq!(ids(&world.waited(waits[0]).unwrap()), [id]);
    assert!(world.replies.is_empty(), "nobody else is woken");
    let id = world.push(job("a"));
    assert_eq!(ids(&world.waited(waits[1]).unwrap()), [id]);
}

#[test]
fn a_push_to_two_queues_serves_the_older_fetch_first() {
    let mut world = World::new();
    let (older, younger) = (world.worker(), world.worker());
    let first = world.wait(older, &["a"]);
    let second = world.wait(younger, &["a", "z"]);
    let pushed = world.push_all(vec![job("z"), job("a")]);
    assert_eq!(ids(&world.waited(first).unwrap()), [pushed[1]]);
    assert_eq!(ids(&world.waited(second).unwrap()), [pushed[0]]);
}

#[test]
fn a_fetch_waits_for_queues_that_are_made_later() {
    let mut world = World::new();
    let worker = world.worker();
    for queues in [&["new"][..], &["other.*"]] {
        let wait = world.wait(worker, queues);
        let id = world.push(job(&queues[0].replace('*', "x")));
        assert_eq!(ids(&world.waited(wait).unwrap()), [id]);
    }
}

#[test]
fn a_wait_ends_empty_when_its_time_is_over() {
    let mut world = World::new();
    let worker = world.worker();
    let wait = world.wait(worker, &["a"]);
    world.live(DurationMs(9_999));
    assert_eq!(world.waited(wait), None);
    world.live(DurationMs(1));
    assert_eq!(world.waited(wait), Some(vec![]));
    world.push(job("a"));
    assert!(world.replies.is_empty(), "it stands nowhere any more");
}

#[test]
fn a_fetch_without_a_wait_is_answered_at_once() {
    let mut world = World::new();
    let worker = world.worker();
    assert_eq!(world.fetch(worker, "a", 5).len(), 0);
}

#[test]
fn a_job_that_becomes_due_wakes_a_waiting_fetch() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        delay_ms: Some(DurationMs(500)),
        ..job("a")
    };
    let id = world.push(spec);
    let wait = world.wait(worker, &["a"]);
    world.live(DurationMs(499));
    assert_eq!(world.waited(wait), None);
    world.live(DurationMs(1));
    assert_eq!(ids(&world.waited(wait).unwrap()), [id]);
}

#[test]
fn a_waiting_fetch_goes_on_waiting_over_a_pause() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    assert_eq!(world.fetch(worker, "a", 1).len(), 1);
    let wait = world.wait(worker, &["a"]);
    world.pause("a");
    let id = world.push(job("a"));
    assert_eq!(world.waited(wait), None);
    world.unpause("a");
    assert_eq!(ids(&world.waited(wait).unwrap()), [id]);
}

#[test]
fn resuming_a_queue_serves_waiting_fetches_from_the_disk() {
    let mut world = World::new();
    world.push_all(numbered("a", 0..3));
    world.pause("a");
    world.reopen();
    let worker = world.worker();
    let wait = world.wait(worker, &["a"]);
    world.unpause("a");
    world.tick();
    assert_eq!(world.waited(wait).unwrap().len(), 1);
}

#[test]
fn a_fetch_ends_with_its_connection() {
    let mut world = World::new();
    let worker = world.worker();
    world.wait(worker, &["a"]);
    world.step(Command::Detach {
        connection: ConnectionId(worker.0),
        session: Some(worker),
    });
    let id = world.push(job("a"));
    assert!(world.replies.is_empty());
    assert_eq!(world.state(id), Some(JobState::Ready));
}

#[test]
fn a_session_may_have_only_so_many_fetches_waiting() {
    let mut world = World::new();
    let worker = world.worker();
    for _ in 0..SESSION_WAITERS_MAX {
        world.wait(worker, &["a"]);
    }
    let refused = world.wait(worker, &["a"]);
    let error = world.reply(refused).unwrap().result.unwrap_err();
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert_eq!(error.limit, Some(SESSION_WAITERS_MAX as u64));
}

#[test]
fn a_session_holds_leases_up_to_its_limit_and_not_one_more() {
    let limits = Limits {
        session_leases_max: 3,
        ..Limits::default()
    };
    let mut world = World::with(Options { limits, ..small() });
    let worker = world.worker();
    world.push_all(numbered("a", 0..5));
    assert_eq!(world.fetch(worker, "a", 5).len(), 3);
    let refused = world.send(Some(worker), Operation::Fetch(fetch_of(&["a"], 1)));
    let error = world.reply(refused).unwrap().result.unwrap_err();
    assert_eq!(error.code, ErrorCode::Overloaded);
}

#[test]
fn a_fetch_needs_a_session() {
    let mut world = World::new();
    let caller = world.send(None, Operation::Fetch(fetch_of(&["a"], 1)));
    let error = world.reply(caller).unwrap().result.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[test]
fn a_reply_takes_no_further_job_once_it_is_large() {
    let mut world = World::new();
    let worker = world.worker();
    let large = JobSpec {
        queue: "a".parse().unwrap(),
        ..JobSpec::new(kind(), vec![7; 1 << 20])
    };
    world.push_all(vec![large; 10]);
    world.commit();
    let first = world.fetch(worker, "a", 10).len();
    assert_eq!(first, 4);
    assert_eq!(
        first + world.fetch(worker, "a", 10).len() + world.fetch(worker, "a", 10).len(),
        10
    );
}

#[test]
fn answers_that_ride_along_are_applied_before_jobs_are_taken() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..3));
    world.commit();
    let jobs = world.fetch(worker, "a", 2);
    let fetch = Fetch {
        acks: vec![ack_item(jobs[0].id, jobs[0].lease)],
        fails: vec![fail_item(jobs[1].id, jobs[1].lease)],
        ..fetch_of(&["a"], 5)
    };
    let caller = world.send(Some(worker), Operation::Fetch(fetch));
    let reply = world.reply(caller).unwrap();
    assert_eq!(reply.after, world.engine.open_group(), "durable first");
    let Ok(ReplyBody::Fetch(body)) = reply.result else {
        panic!("{:?}", reply.result);
    };
    assert_eq!(
        (body.jobs.len(), body.acks.len(), body.fails.len()),
        (1, 1, 1)
    );
    assert_eq!(body.fails[0].state, Some(JobState::Scheduled));
    assert_eq!(world.state(jobs[0].id), None);
}

#[test]
fn a_fetch_with_answers_and_no_jobs_is_answered_when_they_are_durable() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    world.commit();
    let job_ = world.fetch(worker, "a", 1).remove(0);
    let fetch = Fetch {
        acks: vec![ack_item(job_.id, job_.lease)],
        wait_ms: DurationMs(60_000),
        ..fetch_of(&["a"], 1)
    };
    let caller = world.send(Some(worker), Operation::Fetch(fetch));
    assert!(world.replies.is_empty());
    let open = world.engine.open_group();
    assert!(world.engine.awaits_durable(open) && world.engine.is_awaited());
    world.seal();
    assert!(world.replies.is_empty());
    world.sync();
    assert_eq!(world.waited(caller), Some(vec![]));
}

#[test]
fn a_fetch_with_answers_gets_a_job_that_comes_before_they_are_durable() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    world.commit();
    let job_ = world.fetch(worker, "a", 1).remove(0);
    let fetch = Fetch {
        acks: vec![ack_item(job_.id, job_.lease)],
        ..fetch_of(&["a"], 1)
    };
    let caller = world.send(Some(worker), Operation::Fetch(fetch));
    let id = world.push(job("a"));
    let reply = world.reply(caller).unwrap();
    assert_eq!(reply.after, world.engine.open_group());
    let Ok(ReplyBody::Fetch(body)) = reply.result else {
        panic!("{:?}", reply.result);
    };
    assert_eq!(ids(&body.jobs), [id]);
    assert_eq!(body.acks.len(), 1);
}

#[test]
fn a_fetch_whose_answers_change_nothing_waits_for_nothing() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.commit();
    world.fetch(worker, "a", 1);
    world.commit();
    let fetch = Fetch {
        acks: vec![ack_item(id, LeaseId(77))],
        ..fetch_of(&["a"], 1)
    };
    let reply = world.fetch_reply(worker, fetch);
    assert_eq!(
        reply.acks[0].err.as_ref().unwrap().code,
        ErrorCode::LeaseLost
    );
}

#[test]
fn a_fetch_for_no_jobs_only_carries_answers() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..2));
    let job_ = world.fetch(worker, "a", 1).remove(0);
    let fetch = Fetch {
        acks: vec![ack_item(job_.id, job_.lease)],
        ..fetch_of(&["a"], 0)
    };
    let reply = world.fetch_reply(worker, fetch);
    assert_eq!((reply.jobs.len(), reply.acks.len()), (0, 1));
}

#[test]
fn a_grant_waits_for_the_push_of_its_job_and_for_nothing_else() {
    let mut world = World::new();
    let worker = world.worker();
    world.commit();
    let after = |world: &mut World| {
        let caller = world.send(Some(worker), Operation::Fetch(fetch_of(&["a"], 1)));
        world.reply(caller).unwrap().after
    };
    world.push(job("a"));
    let open = world.engine.open_group();
    assert_eq!(after(&mut world), open);
    world.push(job("a"));
    world.commit();
    world.push(job("b"));
    assert!(after(&mut world) <= world.durable, "it was durable already");
    assert_eq!(
        after(&mut world),
        GroupNumber(0),
        "nothing waits for nothing"
    );
}

#[test]
fn a_grant_before_the_first_reservation_of_numbers_waits_for_it() {
    let mut world = World::new();
    world.push(job("a"));
    world.commit();
    world.crash_after(world.durable);
    let worker = world.worker();
    let caller = world.send(Some(worker), Operation::Fetch(fetch_of(&["a"], 1)));
    assert_eq!(
        world.reply(caller).unwrap().after,
        world.engine.open_group()
    );
}
