//! The client against a scripted server: what it sends, what it sends again, and what it makes of
//! answers that come late, in another order, or not at all.

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

use std::time::Duration;

use ganger_client::{
    Client, ConnectError, Error, ErrorCode, Job, Unknown,
    protocol::{
        limits::PRODUCER_UNANSWERED_MAX,
        request::{AckItem, DeadSelect, Fetch, Operation, SessionHello},
        response::{CountReply, Notice, ReplyBody, StatsReply},
    },
};
use scripted::*;
use tokio::task::JoinHandle;

fn push(client: &Client, kind: &str) -> JoinHandle<Result<ganger_client::JobId, Error>> {
    let (client, job) = (client.clone(), Job::new(kind));
    tokio::spawn(async move { client.push(job).await })
}

fn fetch(client: &Client) -> JoinHandle<Result<Vec<u64>, Error>> {
    let client = client.clone();
    let fetch = Fetch {
        queues: vec!["mail".parse().unwrap()],
        ..Fetch::default()
    };
    tokio::spawn(async move {
        let jobs = client.fetch(fetch).await?.jobs;
        Ok(jobs.into_iter().map(|job| job.lease.0).collect())
    })
}

fn ack(number: u8) -> AckItem {
    AckItem::of(job_id(number), lease(number).lease)
}

#[tokio::test]
async fn a_token_is_proved_and_never_sent() {
    let mut server = Server::start().await;
    server.auth_required = true;
    let options = server.options().token("id.secret").unwrap();
    let options = options.namespace("shop".parse().unwrap());
    let connecting = tokio::spawn(Client::connect(options));
    let (_peer, hello) = server.open().await;
    join(connecting).await.unwrap();
    let auth = hello.auth.unwrap();
    let mac: String = auth.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(auth.id, "id");
    assert_eq!(mac, include_str!("proof.hex").trim());
    assert_eq!(hello.namespace.as_str(), "shop");
}

#[tokio::test]
async fn a_server_that_wants_a_token_is_not_asked_without_one() {
    let mut server = Server::start().await;
    server.auth_required = true;
    let connecting = tokio::spawn(Client::connect(server.options()));
    let mut peer = server.accept().await;
    let error = expect_err(join(connecting).await);
    let Error::Unreachable { cause, .. } = error else {
        panic!("{error:?}");
    };
    assert!(matches!(cause, ConnectError::TokenMissing), "{cause:?}");
    assert!(peer.next().await.is_none());
}

#[tokio::test]
async fn a_refused_hello_refuses_the_client() {
    let server = Server::start().await;
    let connecting = tokio::spawn(Client::connect(server.options()));
    let mut peer = server.accept().await;
    let (id, _) = peer.hello().await;
    peer.refuse(id, ErrorCode::Unauthorized).await;
    let error = expect_err(join(connecting).await);
    let Error::Refused(refusal) = error else {
        panic!("{error:?}");
    };
    assert_eq!(refusal.code, ErrorCode::Unauthorized);
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let server = Server::start().await;
    let options = server.options();
    drop(server);
    let error = expect_err(Client::connect(options).await);
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.is_definite());
}

#[tokio::test]
async fn a_push_whose_answer_was_lost_is_sent_again_under_its_number() {
    let server = Server::start().await;
    let client = server.client();
    let pushed = push(&client, "mail");
    let (mut peer, hello) = server.open().await;
    assert_eq!(hello.producer.unwrap().id, None);
    let (_, first) = peer.push().await;
    assert_eq!(first.seq, Some(1));
    drop(peer);

    let (mut peer, hello) = server.open().await;
    assert_eq!(hello.producer.unwrap().id.as_deref(), Some("p1"));
    let (id, second) = peer.push().await;
    assert_eq!(second, first);
    peer.pushed(id, &[job_id(1)]).await;
    assert_eq!(join(pushed).await.unwrap(), job_id(1));
}

#[tokio::test]
async fn unanswered_pushes_are_sent_again_in_their_order_and_before_new_ones() {
    let server = Server::start().await;
    let client = server.client();
    let mut pushed = vec![push(&client, "k1")];
    let (mut peer, _) = server.open().await;
    peer.push().await;
    for kind in ["k2", "k3"] {
        pushed.push(push(&client, kind));
        peer.push().await;
    }
    drop(peer);
    let (mut peer, _) = server.open().await;
    pushed.push(push(&client, "k4"));
    for (seq, kind) in [(1, "k1"), (2, "k2"), (3, "k3"), (4, "k4")] {
        let (id, push) = peer.push().await;
        assert_eq!((push.seq, push.jobs[0].kind.as_str()), (Some(seq), kind));
        peer.pushed(id, &[job_id(u8::try_from(seq).unwrap())]).await;
    }
    for (number, pushed) in (1..).zip(pushed) {
        assert_eq!(join(pushed).await.unwrap(), job_id(number));
    }
}

#[tokio::test]
async fn replies_in_another_order_find_their_requests() {
    let server = Server::start().await;
    let client = server.client();
    let first = push(&client, "k1");
    let (mut peer, _) = server.open().await;
    let (first_id, _) = peer.push().await;
    let second = push(&client, "k2");
    let (second_id, _) = peer.push().await;
    peer.pushed(second_id, &[job_id(2)]).await;
    peer.pushed(first_id, &[job_id(1)]).await;
    assert_eq!(join(second).await.unwrap(), job_id(2));
    assert_eq!(join(first).await.unwrap(), job_id(1));
}

#[tokio::test]
async fn a_request_too_large_for_a_frame_is_refused_here_and_the_connection_goes_on() {
    let server = Server::start().await;
    let client = server.client();
    let pushed = tokio::spawn({
        let job = Job::new("big").bytes(vec![0; 9 << 20], "application/octet-stream");
        let client = client.clone();
        async move { client.push(job).await }
    });
    let (mut peer, _) = server.open().await;
    let error = expect_err(join(pushed).await);
    let Error::Refused(refusal) = error else {
        panic!("{error:?}");
    };
    assert_eq!(refusal.code, ErrorCode::TooLarge);
    let pushed = push(&client, "small");
    let (id, _) = peer.push().await;
    peer.pushed(id, &[job_id(1)]).await;
    join(pushed).await.unwrap();
}

#[tokio::test]
async fn a_forgotten_push_has_an_unknown_outcome_and_the_next_connection_a_new_producer() {
    let server = Server::start().await;
    let client = server.client();
    let pushed = push(&client, "mail");
    let (mut peer, _) = server.open().await;
    let (id, _) = peer.push().await;
    peer.refuse(id, ErrorCode::UnknownProducer).await;
    let error = expect_err(join(pushed).await);
    let Error::OutcomeUnknown(Unknown::Forgotten(error)) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.code, ErrorCode::UnknownProducer);

    let pushed = push(&client, "mail");
    let mut reply = hello_reply();
    reply.producer = Some("p2".to_owned());
    let (mut peer, hello) = server.open_as(reply).await;
    assert_eq!(hello.producer.unwrap().id, None);
    let (id, push) = peer.push().await;
    assert_eq!(push.seq, Some(1));
    peer.pushed(id, &[job_id(1)]).await;
    join(pushed).await.unwrap();
}

#[tokio::test]
async fn an_expired_number_has_an_unknown_outcome_and_the_connection_goes_on() {
    let server = Server::start().await;
    let client = server.client();
    let pushed = push(&client, "mail");
    let (mut peer, _) = server.open().await;
    let (id, _) = peer.push().await;
    peer.refuse(id, ErrorCode::SequenceExpired).await;
    let error = expect_err(join(pushed).await);
    assert!(
        matches!(error, Error::OutcomeUnknown(Unknown::Forgotten(_))),
        "{error:?}"
    );
    let pushed = push(&client, "mail");
    let (id, push) = peer.push().await;
    assert_eq!(push.seq, Some(2));
    peer.pushed(id, &[job_id(2)]).await;
    join(pushed).await.unwrap();
}

#[tokio::test]
async fn a_new_producer_ends_what_the_old_one_has_sent_and_only_that() {
    let server = Server::start().await;
    let client = server.client();
    let sent = push(&client, "sent");
    let (mut peer, _) = server.open().await;
    peer.push().await;
    drop(peer);
    let mut peer = server.accept().await;
    let unsent = push(&client, "unsent");
    let (id, _) = peer.hello().await;
    let mut reply = hello_reply();
    (reply.producer, reply.session) = (Some("p2".to_owned()), None);
    peer.answer(id, ReplyBody::Hello(Box::new(reply))).await;
    let error = expect_err(join(sent).await);
    assert!(
        matches!(error, Error::OutcomeUnknown(Unknown::Forgotten(_))),
        "{error:?}"
    );
    let (id, push) = peer.push().await;
    assert_eq!((push.seq, push.jobs[0].kind.as_str()), (Some(1), "unsent"));
    peer.pushed(id, &[job_id(1)]).await;
    join(unsent).await.unwrap();
}

#[tokio::test]
async fn unavailable_leaves_the_outcome_of_a_push_unknown() {
    let server = Server::start().await;
    let client = server.client();
    let pushed = push(&client, "mail");
    let (mut peer, _) = server.open().await;
    let (id, _) = peer.push().await;
    peer.refuse(id, ErrorCode::Unavailable).await;
    let error = expect_err(join(pushed).await);
    assert!(
        matches!(error, Error::OutcomeUnknown(Unknown::Unavailable(_))),
        "{error:?}"
    );
    assert!(!error.is_definite());
}

#[tokio::test]
async fn a_push_to_a_draining_server_waits_for_the_next_one() {
    let server = Server::start().await;
    let client = server.client();
    let pushed = push(&client, "mail");
    let (mut peer, _) = server.open().await;
    let (id, _) = peer.push().await;
    peer.refuse(id, ErrorCode::Draining).await;
    drop(peer);
    let (mut peer, _) = server.open().await;
    let (id, push) = peer.push().await;
    assert_eq!(push.seq, Some(1));
    peer.pushed(id, &[job_id(1)]).await;
    join(pushed).await.unwrap();
}

#[tokio::test]
async fn without_numbers_a_lost_answer_is_an_unknown_outcome() {
    let server = Server::start().await;
    let client = Client::lazy(server.options().exactly_once(false));
    let pushed = push(&client, "mail");
    let (mut peer, hello) = server.open().await;
    assert_eq!(hello.producer, None);
    let (_, push) = peer.push().await;
    assert_eq!(push.seq, None);
    drop(peer);
    let error = expect_err(join(pushed).await);
    assert!(
        matches!(error, Error::OutcomeUnknown(Unknown::ConnectionLost)),
        "{error:?}"
    );
}

#[tokio::test]
async fn no_more_pushes_are_unanswered_than_the_server_remembers() {
    let server = Server::start().await;
    let client = server.client();
    let count = PRODUCER_UNANSWERED_MAX;
    let pushed: Vec<_> = (0..=count).map(|_| push(&client, "mail")).collect();
    let (mut peer, _) = server.open().await;
    let mut ids = Vec::new();
    for seq in 1..=count {
        let (id, push) = peer.push().await;
        assert_eq!(push.seq, Some(seq));
        ids.push(id);
    }
    // A request behind the last push shows that it is held back, and is not held back itself.
    let stats = tokio::spawn({
        let client = client.clone();
        async move { client.stats().await }
    });
    let request = peer.expect("stats").await;
    peer.answer(request.id, ReplyBody::Stats(Box::new(stats_reply())))
        .await;
    join(stats).await.unwrap();
    // The number of the second one is free, but it stands behind the first.
    peer.pushed(ids[1], &[job_id(2)]).await;
    peer.pushed(ids[0], &[job_id(1)]).await;
    let (id, push) = peer.push().await;
    assert_eq!(push.seq, Some(count + 1));
    for id in ids.drain(2..).chain([id]) {
        peer.pushed(id, &[job_id(0)]).await;
    }
    for pushed in pushed {
        join(pushed).await.unwrap();
    }
}

#[tokio::test]
async fn a_purge_by_queue_is_not_repeated_and_one_by_id_is() {
    let server = Server::start().await;
    let client = server.client();
    let purge = |select: DeadSelect| {
        let client = client.clone();
        tokio::spawn(async move { client.dead_purge(select).await })
    };
    let by_queue = purge(DeadSelect {
        queue: Some("mail".parse().unwrap()),
        ..DeadSelect::default()
    });
    let (mut peer, _) = server.open().await;
    peer.expect("dead_purge").await;
    let by_id = purge(DeadSelect {
        jobs: vec![job_id(1)],
        ..DeadSelect::default()
    });
    peer.expect("dead_purge").await;
    drop(peer);
    let error = expect_err(join(by_queue).await);
    assert!(
        matches!(error, Error::OutcomeUnknown(Unknown::ConnectionLost)),
        "{error:?}"
    );
    let (mut peer, _) = server.open().await;
    let request = peer.expect("dead_purge").await;
    let count = CountReply {
        count: 1,
        more: false,
        conflicts: Vec::new(),
        not_found: Vec::new(),
    };
    peer.answer(request.id, ReplyBody::Count(count)).await;
    assert_eq!(join(by_id).await.unwrap().count, 1);
}

#[tokio::test]
async fn redirects_are_followed_three_hops_and_no_further() {
    let servers = [
        Server::start().await,
        Server::start().await,
        Server::start().await,
        Server::start().await,
    ];
    let connecting = tokio::spawn(Client::connect(servers[0].options()));
    for hop in 0..3 {
        let mut peer = servers[hop].accept().await;
        peer.hello().await;
        let address = servers[hop + 1].address();
        peer.notice(&Notice::Redirect { address }).await;
    }
    let mut peer = servers[3].accept().await;
    peer.hello().await;
    let address = servers[0].address();
    peer.notice(&Notice::Redirect { address }).await;
    let error = expect_err(join(connecting).await);
    let Error::Unreachable { cause, .. } = error else {
        panic!("{error:?}");
    };
    assert!(matches!(cause, ConnectError::Redirects), "{cause:?}");
}

#[tokio::test]
async fn a_redirect_of_an_open_connection_takes_the_unanswered_along() {
    let (first, second) = (Server::start().await, Server::start().await);
    let client = first.client();
    let pushed = push(&client, "mail");
    let (mut peer, _) = first.open().await;
    peer.push().await;
    let address = second.address();
    peer.notice(&Notice::Redirect { address }).await;
    let (mut peer, _) = second.open().await;
    let (id, push) = peer.push().await;
    assert_eq!(push.seq, Some(1));
    peer.pushed(id, &[job_id(1)]).await;
    join(pushed).await.unwrap();
}

#[tokio::test]
async fn a_push_without_an_answer_in_time_has_an_unknown_outcome_and_a_read_timed_out() {
    let server = Server::start().await;
    let options = server.options().request_timeout(Duration::from_secs(3));
    let client = Client::lazy(options);
    let pushed = push(&client, "mail");
    let (mut peer, _) = server.open().await;
    peer.push().await;
    let stats = tokio::spawn({
        let client = client.clone();
        async move { client.stats().await }
    });
    peer.expect("stats").await;
    tokio::time::pause();
    let error = expect_err(join(pushed).await);
    assert!(
        matches!(error, Error::OutcomeUnknown(Unknown::TimedOut { .. })),
        "{error:?}"
    );
    let error = expect_err(join(stats).await);
    assert!(
        matches!(error, Error::TimedOut { sent: true, .. }),
        "{error:?}"
    );
    // Nothing at all was heard: the connection counts as dead.
    assert!(peer.next().await.is_none());
}

#[tokio::test]
async fn a_session_is_resumed_with_what_it_holds_until_the_ack_is_answered() {
    let server = Server::start().await;
    let client = Client::lazy(server.options().session(SessionHello::default()));
    let fetched = fetch(&client);
    let (mut peer, hello) = server.open().await;
    assert_eq!(hello.session.unwrap().resume, None);
    let (id, asked) = peer.fetch().await;
    let jobs = vec![granted(1, "k"), granted(2, "k"), granted(3, "k")];
    peer.granted(id, &asked, jobs).await;
    assert_eq!(join(fetched).await.unwrap(), [1, 2, 3]);
    let answered = tokio::spawn({
        let client = client.clone();
        async move { client.ack(vec![ack(1)]).await }
    });
    let request = peer.expect("ack").await;
    peer.applied(request.id, 1).await;
    join(answered).await.unwrap();
    let unanswered = tokio::spawn({
        let client = client.clone();
        async move { client.ack(vec![ack(2)]).await }
    });
    peer.expect("ack").await;
    drop(peer);

    let (mut peer, hello) = server.open().await;
    let resume = hello.session.unwrap().resume.unwrap();
    assert_eq!(resume.secret, "s");
    assert_eq!(resume.held, [lease(2), lease(3)]);
    let request = peer.expect("ack").await;
    peer.applied(request.id, 1).await;
    join(unanswered).await.unwrap();
}

#[tokio::test]
async fn leases_for_a_fetch_that_nobody_waits_for_go_back() {
    let server = Server::start().await;
    let client = Client::lazy(server.options().session(SessionHello::default()));
    let fetched = fetch(&client);
    let (mut peer, _) = server.open().await;
    let (id, asked) = peer.fetch().await;
    fetched.abort();
    assert!(fetched.await.unwrap_err().is_cancelled());
    peer.granted(id, &asked, vec![granted(1, "k")]).await;
    let request = peer.expect("release").await;
    let Operation::Release(release) = request.operation else {
        panic!("{request:?}");
    };
    assert_eq!(release.leases[0].lease, lease(1).lease);
}

#[tokio::test]
async fn a_silent_session_says_that_it_is_alive() {
    let server = Server::start().await;
    let options = server.options().session(SessionHello::default());
    let connecting = tokio::spawn(Client::connect(options));
    let (mut peer, _) = server.open().await;
    let _client = join(connecting).await.unwrap();
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    for beat in 1..=3 {
        let request = peer.expect("heartbeat").await;
        peer.pulse(request.id).await;
        let silent = before.elapsed();
        let expected = TTL / 3 * beat;
        assert!(silent >= expected, "{silent:?} < {expected:?}");
        assert!(silent < expected + Duration::from_secs(1), "{silent:?}");
    }
}

#[tokio::test]
async fn a_closed_client_ends_what_waits_and_refuses_the_rest() {
    let server = Server::start().await;
    let client = server.client();
    let pushed = push(&client, "mail");
    let (mut peer, _) = server.open().await;
    peer.push().await;
    client.close().await;
    let error = expect_err(join(pushed).await);
    assert!(
        matches!(error, Error::OutcomeUnknown(Unknown::Closed)),
        "{error:?}"
    );
    assert!(matches!(client.stats().await, Err(Error::Closed)));
    assert!(peer.next().await.is_none());
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_made_again_only_when_needed() {
    let server = Server::start().await;
    let connecting = tokio::spawn(Client::connect(server.options()));
    let (peer, _) = server.open().await;
    let client = join(connecting).await.unwrap();
    drop(peer);
    let pushed = push(&client, "mail");
    let (mut peer, hello) = server.open().await;
    assert_eq!(hello.producer.unwrap().id.as_deref(), Some("p1"));
    let (id, _) = peer.push().await;
    peer.pushed(id, &[job_id(1)]).await;
    join(pushed).await.unwrap();
}

#[tokio::test]
async fn a_producer_that_was_idle_for_long_is_replaced_before_the_server_forgets_it() {
    let server = Server::start().await;
    let connecting = tokio::spawn(Client::connect(server.options()));
    let (peer, _) = server.open().await;
    let client = join(connecting).await.unwrap();
    drop(peer);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2 * 3600)).await;
    tokio::time::resume();
    let pushed = push(&client, "mail");
    let (mut peer, hello) = server.open().await;
    assert_eq!(hello.producer.unwrap().id, None);
    let (id, _) = peer.push().await;
    peer.pushed(id, &[job_id(1)]).await;
    join(pushed).await.unwrap();
}

fn stats_reply() -> StatsReply {
    StatsReply {
        kinds: Vec::new(),
        version: "0".to_owned(),
        uptime_ms: ganger_client::protocol::DurationMs(1),
        queues: 0,
        sessions: 0,
        waiting: 0,
        counters: ganger_client::protocol::response::Counters::default(),
    }
}
