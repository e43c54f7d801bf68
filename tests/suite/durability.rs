//! What is answered before anything is durable: over a log that never syncs, a server says hello,
//! hears heartbeats and grants durable jobs, and answers nothing else with ok.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ganger_engine::{
    Options,
    command::{Caller, Command, ConnectionId, Mono, Now, Origin},
};
use ganger_protocol::{
    DurationMs, JobSpec, NamespaceName, SessionId, Timestamp,
    event::EventName,
    queue::QueuePause,
    request::{
        Ack, AckItem, Extend, ExtendItem, Fail, FailItem, Fetch, Goodbye, Heartbeat, Operation,
        Push, QueueNames, Release, ReleaseItem, SessionHello,
    },
    response::ReplyBody,
};
use ganger_server::{
    config::Sync,
    driver::{Core, Released},
    store::{StoreOptions, memory::MemoryDisk},
};
use serde_json::json;
use support::{Connection, InProcess};

const NOW: Now = Now {
    wall: Timestamp(1_000_000),
    mono: Mono(1_000),
};

struct Unsynced {
    core: Core,
    session: SessionId,
    requests: u64,
}

impl Unsynced {
    /// A core with a session and `count` durable jobs, which is never synced from here on.
    fn with_jobs(count: usize) -> Self {
        let (store, recovered) = MemoryDisk::new()
            .open(&StoreOptions::default())
            .expect("an empty disk");
        let core = Core::open(NOW, Options::default(), Arc::new(store), recovered);
        let mut all = Self {
            core,
            session: SessionId(0),
            requests: 0,
        };
        all.sync();
        all.session = all.open_session();
        if count > 0 {
            assert!(all.ask(push(count)).is_empty());
            assert_eq!(all.sync().replies.len(), 1);
        }
        all
    }

    fn sync(&mut self) -> Released {
        self.core.seal(NOW).expect("sealed");
        let durable = self.core.store().sync().expect("synced");
        self.core.synced(durable)
    }

    fn origin(&mut self) -> Origin {
        self.requests += 1;
        Origin {
            caller: Caller {
                connection: ConnectionId(1),
                request: self.requests,
            },
            namespace: NamespaceName::default(),
            session: Some(self.session),
            producer: None,
        }
    }

    fn open_session(&mut self) -> SessionId {
        let origin = Origin {
            session: None,
            ..self.origin()
        };
        let hello = SessionHello::default();
        let released = self.core.apply(NOW, Command::OpenSession { origin, hello });
        released.expect("applied").session.expect("a session").id
    }

    /// What is answered at once.
    fn ask(&mut self, operation: Operation) -> Vec<ReplyBody> {
        let origin = self.origin();
        let released = self.core.apply(NOW, Command::Request(origin, operation));
        let replies = released.expect("applied").replies.into_iter();
        replies.map(|reply| reply.result.expect("ok")).collect()
    }

    fn granted(&mut self) -> Vec<(ganger_protocol::JobId, ganger_protocol::LeaseId)> {
        let fetch = Fetch {
            queues: vec!["default".parse().expect("a name")],
            max: 100,
            ..Fetch::default()
        };
        let replies = self.ask(Operation::Fetch(fetch));
        let [ReplyBody::Fetch(reply)] = &replies[..] else {
            panic!("no jobs at once: {replies:?}");
        };
        reply.jobs.iter().map(|job| (job.id, job.lease)).collect()
    }
}

fn push(count: usize) -> Operation {
    let job = JobSpec::new("k".parse().expect("a name"), &b"payload"[..]);
    Operation::Push(Push {
        jobs: vec![job; count],
        atomic: false,
        spread_ms: None,
        by: None,
        seq: None,
    })
}

#[test]
fn hello_heartbeat_and_grants_of_durable_jobs_wait_for_nothing() {
    let mut unsynced = Unsynced::with_jobs(2);
    unsynced.open_session();
    assert_eq!(unsynced.ask(Operation::Heartbeat(Heartbeat {})).len(), 1);
    assert_eq!(unsynced.granted().len(), 2);
}

#[test]
fn nothing_else_is_answered_before_a_sync() {
    let mut unsynced = Unsynced::with_jobs(5);
    let granted = unsynced.granted();
    let [ack, carried, fail, release, extend] = granted[..] else {
        panic!("five jobs, not {}", granted.len());
    };
    let queues = || QueueNames {
        queues: vec!["default".parse().expect("a name")],
    };
    let ack_item = |(job, lease)| AckItem::of(job, lease);
    let operations = [
        push(1),
        Operation::Ack(Ack {
            leases: vec![ack_item(ack)],
        }),
        Operation::Fetch(Fetch {
            queues: vec!["default".parse().expect("a name")],
            acks: vec![ack_item(carried)],
            max: 0,
            ..Fetch::default()
        }),
        Operation::Fail(Fail {
            leases: vec![FailItem {
                job: fail.0,
                lease: fail.1,
                kind: "error".to_owned(),
                message: String::new(),
                backtrace: String::new(),
                retry_in_ms: None,
                dead: true,
                discard: false,
            }],
        }),
        Operation::Release(Release {
            leases: vec![ReleaseItem {
                job: release.0,
                lease: release.1,
                delay_ms: None,
            }],
        }),
        Operation::Extend(Extend {
            leases: vec![ExtendItem {
                job: extend.0,
                lease: extend.1,
                ms: ganger_protocol::DurationMs::from_hours(2),
            }],
        }),
        Operation::QueuePause(QueuePause {
            queues: queues().queues,
            ..QueuePause::default()
        }),
        Operation::QueueResume(queues()),
        Operation::Goodbye(Goodbye {}),
    ];
    let count = operations.len();
    for operation in operations {
        let op = operation.op();
        let replies = unsynced.ask(operation);
        assert!(replies.is_empty(), "{op} was answered {replies:?}");
        // The group is sealed and written, which is not enough.
        unsynced.core.seal(NOW).expect("sealed");
    }
    assert_eq!(unsynced.sync().replies.len(), count, "after the sync, all");
}

#[test]
fn a_job_that_is_not_durable_is_granted_only_with_its_push() {
    let mut unsynced = Unsynced::with_jobs(0);
    assert!(unsynced.ask(push(1)).is_empty());
    let fetch = Fetch {
        queues: vec!["default".parse().expect("a name")],
        max: 1,
        ..Fetch::default()
    };
    assert!(unsynced.ask(Operation::Fetch(fetch)).is_empty());
    let released = unsynced.sync().replies;
    let bodies: Vec<_> = released.iter().map(|reply| &reply.result).collect();
    assert!(
        matches!(
            bodies[..],
            [Ok(ReplyBody::Push(_)), Ok(ReplyBody::Fetch(_))]
        ),
        "{bodies:?}"
    );
}

#[test]
fn an_already_settled_answer_waits_for_the_sync_of_the_first() {
    let mut unsynced = Unsynced::with_jobs(1);
    let (job, lease) = unsynced.granted()[0];
    let ack = || {
        Operation::Ack(Ack {
            leases: vec![AckItem::of(job, lease)],
        })
    };
    assert!(unsynced.ask(ack()).is_empty());
    assert!(unsynced.ask(ack()).is_empty(), "already, but not durable");
    assert_eq!(unsynced.sync().replies.len(), 2);
    assert_eq!(unsynced.ask(ack()).len(), 1, "already, and durable");
}

#[test]
fn an_event_is_told_with_the_group_in_which_it_happened() {
    let mut unsynced = Unsynced::with_jobs(1);
    let released = unsynced.core.apply(NOW, Command::Watch(true));
    assert!(released.expect("applied").events.is_empty());
    let words = |released: &Released| -> Vec<EventName> {
        let events = released.events.iter();
        events.map(|happened| happened.event.event).collect()
    };
    // A grant is answered at once, and told no sooner than it is durable.
    assert_eq!(unsynced.granted().len(), 1);
    let origin = unsynced.origin();
    let pushed = unsynced.core.apply(NOW, Command::Request(origin, push(1)));
    assert_eq!(words(&pushed.expect("applied")), []);
    unsynced.core.seal(NOW).expect("sealed");
    let origin = unsynced.origin();
    let later = unsynced.core.apply(NOW, Command::Request(origin, push(1)));
    assert_eq!(words(&later.expect("applied")), []);
    // Only the sealed group becomes durable.
    let durable = unsynced.core.store().sync().expect("synced");
    let released = unsynced.core.synced(durable);
    assert_eq!(words(&released), [EventName::Granted, EventName::Pushed]);
    assert_eq!(words(&unsynced.sync()), [EventName::Pushed]);
}

#[test]
fn what_a_failed_sync_was_to_make_durable_is_never_answered() {
    use ganger_server::store::memory::Fault;
    let disk = MemoryDisk::new();
    let (store, recovered) = disk.open(&StoreOptions::default()).expect("an empty disk");
    let core = Core::open(NOW, Options::default(), Arc::new(store), recovered);
    let mut unsynced = Unsynced {
        core,
        session: SessionId(0),
        requests: 0,
    };
    unsynced.sync();
    assert!(unsynced.ask(push(1)).is_empty());
    unsynced.core.seal(NOW).expect("sealed");
    disk.fail_at(0, Fault::Io);
    unsynced.core.store().sync().expect_err("a disk error");
    unsynced.core.store().sync().expect_err("for good");
    let origin = unsynced.origin();
    let _ = unsynced.core.apply(NOW, Command::Request(origin, push(1)));
    unsynced.core.seal(NOW).expect_err("nothing more is taken");
}

#[test]
fn with_a_sync_every_50_ms_there_is_one_although_requests_never_pause() {
    let server = InProcess::with(|config| config.sync = Sync::Interval(DurationMs(50)));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut producer = Connection::open(server.address);
                while !is_over.load(Ordering::Acquire) {
                    producer.push(json!({ "kind": "k", "queue": "other" }));
                }
            });
        }
        let mut worker = Connection::worker(server.address);
        worker.push(json!({ "kind": "k" }));
        let job = worker.wait("default");
        // A fetch with answers waits until they are durable, in this mode, too.
        let acks = json!([crate::lease(&job)]);
        let fetch = json!({ "queues": ["default"], "max": 1, "acks": acks });
        let soon = Some(Duration::from_secs(3));
        worker
            .socket()
            .set_read_timeout(soon)
            .expect("a live socket");
        let id = worker.send("fetch", fetch);
        let frame = worker.try_frame();
        is_over.store(true, Ordering::Release);
        let reply = frame.expect("a reply in time").expect("a live server");
        assert_eq!(support::from_map(&reply).expect("a reply")["id"], id);
    });
}
