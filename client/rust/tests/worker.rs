//! The worker against a scripted server: what rides where, what becomes of each way an attempt can
//! end, and how a worker leaves.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests and their helpers"
)]

mod scripted;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ganger_client::{
    CancelReason, Context, Error, ErrorCode, Failure, LeasedJob, Tally, Worker, WorkerBuilder,
    protocol::{
        DurationMs, LeaseId,
        request::{FailItem, Operation, ReleaseItem},
        response::{HeartbeatReply, LeaseReply, LeaseResult, Notice, ReplyBody},
    },
};
use scripted::*;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// A worker that runs, and the token that stops it.
struct Run {
    stop: CancellationToken,
    task: JoinHandle<Result<Tally, Error>>,
}

impl Run {
    fn start(builder: WorkerBuilder) -> Self {
        let worker = builder.build().unwrap();
        let stop = CancellationToken::new();
        let shutdown = stop.clone();
        let task = tokio::spawn(async move { worker.run(shutdown).await });
        Self { stop, task }
    }

    /// Answers a goodbye and returns what the worker has done.
    async fn end(self, peer: &mut Peer) -> Tally {
        let request = peer.find("goodbye").await;
        peer.done(request.id).await;
        join(self.task).await.unwrap()
    }
}

fn builder(server: &Server, concurrency: usize) -> WorkerBuilder {
    Worker::builder(server.options())
        .queues(["mail"])
        .concurrency(concurrency)
        .handler(by_kind)
}

/// A handler that ends as the kind of the job says.
async fn by_kind(job: LeasedJob, context: Context) -> Result<(), Failure> {
    match job.kind.as_str() {
        "ok" => Ok(()),
        "fail" => Err(Failure::new("smtp", "no answer")),
        "retry" => Err(Failure::new("smtp", "busy").retry_in(Duration::from_secs(3))),
        "dead" => Err(Failure::new("smtp", "no such user").dead()),
        "discard" => Err(Failure::new("smtp", "obsolete").discard()),
        "release" => Err(Failure::release()),
        "panic" => panic!("it broke"),
        "stopped" => {
            let reason = context.cancelled().await;
            Err(Failure::new("stopped", format!("{reason:?}")))
        }
        _ => std::future::pending().await,
    }
}

fn fails(request: &ganger_client::protocol::request::Request) -> &[FailItem] {
    match &request.operation {
        Operation::Fail(fail) => &fail.leases,
        Operation::Fetch(fetch) => &fetch.fails,
        other => panic!("{other:?}"),
    }
}

fn releases(request: &ganger_client::protocol::request::Request) -> &[ReleaseItem] {
    match &request.operation {
        Operation::Release(release) => &release.leases,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_worker_introduces_itself_and_asks_for_as_much_as_it_can_run() {
    let server = Server::start().await;
    let _run = Run::start(builder(&server, 7).name("mailer").label("region", "eu"));
    let (mut peer, hello) = server.open().await;
    let session = hello.session.unwrap();
    assert_eq!(session.name, "mailer");
    assert_eq!(session.pid, std::process::id());
    assert_eq!(session.capacity, 7);
    assert_eq!(session.labels["region"], "eu");
    assert_eq!(hello.producer, None);
    let (_, fetch) = peer.fetch().await;
    assert_eq!(fetch.max, 7);
    assert_eq!(fetch.wait_ms, DurationMs::from_secs(30));
    assert_eq!(fetch.queues, ["mail".parse().unwrap()]);
}

#[tokio::test]
async fn acks_and_fails_ride_in_the_next_fetch() {
    let server = Server::start().await;
    let run = Run::start(builder(&server, 2));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    let jobs = vec![granted(1, "ok"), granted(2, "fail")];
    peer.granted(id, &asked, jobs).await;
    let (id, asked) = peer.fetch().await;
    assert_eq!((asked.max, asked.wait_ms), (2, DurationMs::ZERO));
    assert_eq!(asked.acks.len(), 1);
    assert_eq!(asked.acks[0].lease, LeaseId(1));
    assert_eq!(asked.fails[0].lease, LeaseId(2));
    assert_eq!(asked.fails[0].kind, "smtp");
    peer.granted(id, &asked, vec![granted(3, "ok")]).await;
    let (id, asked) = peer.fetch().await;
    assert_eq!(asked.acks[0].lease, LeaseId(3));
    run.stop.cancel();
    peer.granted(id, &asked, Vec::new()).await;
    let tally = run.end(&mut peer).await;
    assert_eq!((tally.acked_count, tally.failed_count), (2, 1));
}

#[tokio::test]
async fn an_ack_does_not_wait_for_a_fetch_that_waits() {
    let server = Server::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let run = Run::start(builder(&server, 2).handler(move |_job, _context| {
        let opened = Arc::clone(&opened);
        async move {
            opened.acquire().await.unwrap().forget();
            Ok(())
        }
    }));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "ok")]).await;
    let (_, asked) = peer.fetch().await;
    assert_eq!((asked.max, asked.acks.len()), (1, 0));
    gate.add_permits(1);
    let request = peer.expect("ack").await;
    peer.applied(request.id, 1).await;
    run.stop.cancel();
    assert_eq!(run.end(&mut peer).await.acked_count, 1);
}

#[tokio::test]
async fn each_way_to_fail_says_what_follows() {
    let server = Server::start().await;
    let _run = Run::start(builder(&server, 4));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    let jobs = vec![
        granted(1, "retry"),
        granted(2, "dead"),
        granted(3, "discard"),
        granted(4, "panic"),
    ];
    peer.granted(id, &asked, jobs).await;
    let (_, asked) = peer.fetch().await;
    let mut fails = asked.fails;
    fails.sort_by_key(|fail| fail.lease);
    assert_eq!(fails[0].retry_in_ms, Some(DurationMs::from_secs(3)));
    assert_eq!((fails[1].dead, fails[1].discard), (true, false));
    assert_eq!((fails[2].dead, fails[2].discard), (false, true));
    assert_eq!(
        (fails[3].kind.as_str(), fails[3].message.as_str()),
        ("panic", "it broke")
    );
}

#[tokio::test]
async fn a_released_job_is_no_failure() {
    let server = Server::start().await;
    let run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "release")]).await;
    let request = peer.find("release").await;
    assert_eq!(releases(&request)[0].lease, LeaseId(1));
    assert_eq!(releases(&request)[0].delay_ms, None);
    peer.applied(request.id, 1).await;
    run.stop.cancel();
    let tally = run.end(&mut peer).await;
    assert_eq!((tally.failed_count, tally.released_count), (0, 1));
}

#[tokio::test]
async fn a_lost_lease_cancels_its_handler_and_nothing_is_told_about_it() {
    let server = Server::start().await;
    let (reasons, mut told) = mpsc::unbounded_channel();
    let run = Run::start(builder(&server, 1).handler(move |_job, context: Context| {
        let reasons = reasons.clone();
        async move {
            reasons.send(context.cancelled().await).unwrap();
            Ok(())
        }
    }));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "k")]).await;
    let leases = vec![lease(1)];
    peer.notice(&Notice::Lost { leases }).await;
    assert_eq!(told.recv().await, Some(CancelReason::Lost));
    let (_, asked) = peer.fetch().await;
    assert!(asked.acks.is_empty());
    run.stop.cancel();
    let tally = run.end(&mut peer).await;
    assert_eq!((tally.lost_count, tally.acked_count), (1, 0));
}

#[tokio::test]
async fn a_cancelled_job_tells_its_handler_whose_answer_counts() {
    let server = Server::start().await;
    let _run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "stopped")]).await;
    let leases = vec![lease(1)];
    peer.notice(&Notice::Cancel { leases }).await;
    let (_, asked) = peer.fetch().await;
    assert_eq!(asked.fails[0].message, "Cancelled");
}

#[tokio::test]
async fn a_quiet_worker_finishes_and_takes_no_more() {
    let server = Server::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let run = Run::start(builder(&server, 1).handler(move |_job, _context| {
        let opened = Arc::clone(&opened);
        async move {
            opened.acquire().await.unwrap().forget();
            Ok(())
        }
    }));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "k")]).await;
    peer.notice(&Notice::Quiet {}).await;
    // By the second heartbeat the worker has heard of it.
    tokio::time::pause();
    for _ in 0..2 {
        let request = peer.expect("heartbeat").await;
        peer.pulse(request.id).await;
    }
    tokio::time::resume();
    gate.add_permits(1);
    let request = peer.expect("ack").await;
    peer.applied(request.id, 1).await;
    run.stop.cancel();
    assert_eq!(run.end(&mut peer).await.acked_count, 1);
}

#[tokio::test]
async fn a_worker_that_is_told_to_terminate_says_goodbye() {
    let server = Server::start().await;
    let run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    peer.fetch().await;
    peer.notice(&Notice::Terminate {}).await;
    let request = peer.expect("goodbye").await;
    peer.done(request.id).await;
    assert_eq!(join(run.task).await.unwrap().granted_count, 0);
    assert!(peer.next().await.is_none());
}

#[tokio::test]
async fn a_heartbeat_may_tell_a_worker_to_terminate() {
    let server = Server::start().await;
    let run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "stopped")]).await;
    tokio::time::pause();
    let request = peer.expect("heartbeat").await;
    tokio::time::resume();
    let reply = HeartbeatReply {
        terminate: true,
        cancel: vec![lease(1)],
        ..HeartbeatReply::default()
    };
    peer.answer(request.id, ReplyBody::Heartbeat(reply)).await;
    let request = peer.find("fail").await;
    assert_eq!(fails(&request)[0].message, "Cancelled");
    peer.applied(request.id, 1).await;
    assert_eq!(run.end(&mut peer).await.failed_count, 1);
}

#[tokio::test]
async fn an_idle_worker_whose_fetch_waits_is_silent() {
    let server = Server::start().await;
    let _run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    peer.fetch().await;
    tokio::time::pause();
    let silence = tokio::time::timeout(TTL * 4, peer.next());
    assert!(silence.await.is_err());
}

#[tokio::test]
async fn a_shutdown_waits_and_then_gives_back_what_still_runs() {
    let server = Server::start().await;
    let drain = Duration::from_secs(9);
    let run = Run::start(builder(&server, 2).drain_timeout(drain).ttl(TTL));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    let jobs = vec![granted(1, "forever"), granted(2, "stopped")];
    peer.granted(id, &asked, jobs).await;
    // It has been granted for certain once the worker holds on to it.
    tokio::time::pause();
    let request = peer.expect("heartbeat").await;
    peer.pulse(request.id).await;
    let before = tokio::time::Instant::now();
    run.stop.cancel();
    let request = peer.find("release").await;
    assert!(before.elapsed() >= drain);
    let mut given_back = releases(&request).to_vec();
    given_back.sort_by_key(|release| release.lease);
    let given_back: Vec<_> = given_back.iter().map(|item| item.lease.0).collect();
    peer.applied(request.id, given_back.len()).await;
    assert_eq!(given_back, [1, 2]);
    assert_eq!(run.end(&mut peer).await.released_count, 2);
}

#[tokio::test]
async fn a_job_that_arrives_during_a_shutdown_goes_back() {
    let server = Server::start().await;
    let run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    run.stop.cancel();
    let goodbye = peer.expect("goodbye").await;
    peer.granted(id, &asked, vec![granted(1, "ok")]).await;
    let request = peer.expect("release").await;
    assert_eq!(releases(&request)[0].lease, LeaseId(1));
    peer.applied(request.id, 1).await;
    peer.done(goodbye.id).await;
    assert_eq!(join(run.task).await.unwrap().granted_count, 0);
}

#[tokio::test]
async fn a_lease_is_extended_at_half_of_its_time() {
    let server = Server::start().await;
    let run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    let mut job = granted(1, "forever");
    job.timeout_ms = DurationMs::from_secs(60);
    peer.granted(id, &asked, vec![job]).await;
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    for half in 1..=2 {
        let request = peer.find("extend").await;
        let Operation::Extend(extend) = &request.operation else {
            panic!("{request:?}");
        };
        assert_eq!(extend.leases[0].ms, DurationMs::from_secs(60));
        let elapsed = before.elapsed();
        let expected = Duration::from_secs(30) * half;
        assert!(elapsed > expected - Duration::from_secs(2), "{elapsed:?}");
        assert!(elapsed < expected + Duration::from_secs(2), "{elapsed:?}");
        peer.applied(request.id, 1).await;
    }
    run.stop.cancel();
}

#[tokio::test]
async fn a_session_goes_on_over_a_lost_connection() {
    let server = Server::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let run = Run::start(builder(&server, 2).handler(move |_job, _context| {
        let opened = Arc::clone(&opened);
        async move {
            opened.acquire().await.unwrap().forget();
            Ok(())
        }
    }));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "k")]).await;
    peer.fetch().await;
    drop(peer);
    let (mut peer, hello) = server.open().await;
    let resume = hello.session.unwrap().resume.unwrap();
    assert_eq!(resume.held, [lease(1)]);
    peer.fetch().await;
    gate.add_permits(1);
    let request = peer.expect("ack").await;
    // The reply gets lost, and the next one says so.
    drop(peer);
    let (mut peer, hello) = server.open().await;
    assert_eq!(hello.session.unwrap().resume.unwrap().held, [lease(1)]);
    peer.expect("fetch").await;
    let again = peer.expect("ack").await;
    assert_eq!(again.operation, request.operation);
    let results = vec![LeaseResult {
        already: true,
        ..LeaseResult::default()
    }];
    peer.answer(again.id, ReplyBody::Lease(LeaseReply { results }))
        .await;
    run.stop.cancel();
    let tally = run.end(&mut peer).await;
    assert_eq!((tally.acked_count, tally.already_count), (1, 1));
}

#[tokio::test]
async fn a_session_that_ended_is_opened_anew_and_its_leases_are_lost() {
    let server = Server::start().await;
    let lost = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lost);
    let run = Run::start(builder(&server, 2).handler(move |_job, context: Context| {
        let counted = Arc::clone(&counted);
        async move {
            if context.cancelled().await == CancelReason::Lost {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    }));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "k")]).await;
    let (id, _) = peer.fetch().await;
    peer.refuse(id, ErrorCode::NotFound).await;
    assert!(peer.next().await.is_none());
    let (mut peer, hello) = server.open().await;
    assert_eq!(hello.session.unwrap().resume, None);
    peer.fetch().await;
    run.stop.cancel();
    assert_eq!(run.end(&mut peer).await.lost_count, 1);
    assert_eq!(lost.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_draining_server_still_takes_the_acks_that_rode() {
    let server = Server::start().await;
    let _run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    peer.granted(id, &asked, vec![granted(1, "ok")]).await;
    let (id, _) = peer.fetch().await;
    peer.refuse(id, ErrorCode::Draining).await;
    let request = peer.expect("ack").await;
    peer.applied(request.id, 1).await;
    drop(peer);
    let (mut peer, _) = server.open().await;
    peer.fetch().await;
}

#[tokio::test]
async fn a_worker_whose_queue_is_forbidden_ends_with_the_refusal() {
    let server = Server::start().await;
    let run = Run::start(builder(&server, 1));
    let (mut peer, _) = server.open().await;
    let (id, _) = peer.fetch().await;
    peer.refuse(id, ErrorCode::Forbidden).await;
    let request = peer.expect("goodbye").await;
    peer.done(request.id).await;
    let error = expect_err(join(run.task).await);
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn a_worker_whose_token_is_refused_ends_with_the_refusal() {
    let server = Server::start().await;
    let run = Run::start(builder(&server, 1));
    let mut peer = server.accept().await;
    let (id, _) = peer.hello().await;
    peer.refuse(id, ErrorCode::Unauthorized).await;
    let error = expect_err(join(run.task).await);
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
}
