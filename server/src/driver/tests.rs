//! Who gets on while a shard is busy. What a shard does in order is tested by the simulator.

use std::sync::atomic::AtomicBool;

use ganger_engine::Options;
use ganger_protocol::{
    JobSpec, Kind,
    request::{Operation, Push},
};

use super::{threads::Turn, *};
use crate::{
    clock::ManualClock,
    store::{CheckpointProgress, StoreOptions, memory::MemoryDisk},
};

/// A shard whose threads do not run.
fn shard(options: &StoreOptions) -> (Shard, ManualClock) {
    let clock = ManualClock::default();
    let (store, recovered) = MemoryDisk::new().open(options).unwrap();
    let now = clock.clock().now();
    let core = Core::open(now, Options::default(), Arc::new(store), recovered);
    let fatal = CancellationToken::new();
    let shard = Shard::new(core, clock.clock(), fatal, &Pace::default());
    (shard, clock)
}

fn push(shard: &Shard, job: JobSpec) {
    let origin = Origin {
        caller: Caller {
            connection: ConnectionId(1),
            request: 1,
        },
        namespace: NamespaceName::default(),
        session: None,
        producer: None,
    };
    let push = Operation::Push(Push::of(vec![job]));
    shard.submit([Command::Request(origin, push)]);
}

fn sync(shard: &Shard) {
    let mut inner = shard.lock();
    inner.core.seal(shard.clock.now()).unwrap();
    let durable = shard.store.sync().unwrap();
    inner.core.synced(durable);
}

#[test]
fn whoever_waits_for_the_lock_gets_it_before_one_that_gives_way() {
    let (shard, _) = shard(&StoreOptions::default());
    for _ in 0..100 {
        let is_served = AtomicBool::new(false);
        let inner = shard.lock();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _inner = shard.lock();
                is_served.store(true, Ordering::Release);
            });
            while shard.lock_waiters.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            drop(inner);
            shard.give_way();
            drop(shard.lock());
            assert!(is_served.load(Ordering::Acquire));
        });
    }
}

#[test]
fn jobs_that_are_due_wait_while_the_store_has_little_room_left() {
    let (shard, clock) = shard(&StoreOptions {
        overlay_bytes_max: 64 << 10,
        ..StoreOptions::default()
    });
    let kind = || "mail".parse::<Kind>().unwrap();
    let due = JobSpec {
        delay_ms: Some(DurationMs(10)),
        ..JobSpec::new(kind(), "")
    };
    push(&shard, due);
    while !shard.store.is_filling() {
        push(&shard, JobSpec::new(kind(), vec![0; 1 << 10]));
        sync(&shard);
    }
    assert!(!shard.store.is_full(), "there is room for others");
    clock.advance(DurationMs(10));
    assert!(matches!(shard.timer_turn(), Turn::Rest(Some(_))));
    let is_due = || shard.look(|core| core.next_wakeup(clock.clock().now()) == Some(DurationMs(0)));
    assert!(is_due());
    while shard.store.checkpoint_slice().unwrap() != CheckpointProgress::Done {}
    assert!(!shard.store.is_filling());
    assert_eq!(shard.timer_turn(), Turn::Done);
    assert!(!is_due());
}

#[test]
fn the_second_sync_thread_is_woken_only_while_few_replies_are_under_way() {
    let (shard, _) = shard(&StoreOptions::default());
    let job = || JobSpec::new("mail".parse().unwrap(), "");
    shard.lock().second_sleeps = true;
    shard
        .sending
        .store(LONELY_REPLIES_MAX + 1, Ordering::Release);
    push(&shard, job());
    assert!(shard.lock().second_sleeps);
    shard.sending.store(LONELY_REPLIES_MAX, Ordering::Release);
    push(&shard, job());
    assert!(!shard.lock().second_sleeps);
}

#[test]
fn replies_leave_also_when_a_checkpoint_has_gathered_their_group() {
    let (shard, _) = shard(&StoreOptions::default());
    push(&shard, JobSpec::new("mail".parse().unwrap(), ""));
    shard.lock().core.seal(shard.clock.now()).unwrap();
    // What a checkpoint does first, and it is still writing.
    let _under_way = shard.store.gather().unwrap();
    assert!(shard.sync_once(Part::First).unwrap());
    assert_eq!(shard.look(Core::syncing_replies), 0);
}
