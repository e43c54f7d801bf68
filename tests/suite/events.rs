//! The event stream of a real server: what a subscription is told and in which order, to whom, how a
//! client that is slow or away goes on, and that nothing is told before it is durable.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use ganger_client::{Client, ClientOptions, Followed};
use ganger_protocol::event::{EventFilter, EventName};
use ganger_server::auth::{TokenConfig, TokenHash, Verb};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Connection, InProcess, Process};

use crate::{essence, lease, lease_with};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

/// Subscribes and answers with the reply.
fn subscribe(connection: &mut Connection, filter: Value) -> Value {
    connection.ok("subscribe", json!({ "filter": filter }))
}

fn from(reply: &Value, next: &Value) -> Value {
    json!({ "epoch": reply["epoch"], "offset": next })
}

/// Reads messages until so many events have come; the events.
fn events(connection: &mut Connection, count: usize) -> Vec<Value> {
    let mut all = Vec::new();
    while all.len() < count {
        let message = connection.notice();
        assert_eq!(message["op"], "events", "{message}");
        assert_eq!(message.get("gap"), None);
        all.extend(message["events"].as_array().expect("events").clone());
    }
    assert_eq!(all.len(), count, "{all:?}");
    all
}

fn words(events: &[Value]) -> Vec<&str> {
    let words = events.iter().map(|event| event["event"].as_str());
    words.map(|word| word.expect("a word")).collect()
}

/// Pushes so many jobs to a queue.
fn fill(connection: &mut Connection, queue: &str, jobs: usize) {
    for _ in 0..jobs / 1_000 {
        let jobs = vec![json!({ "kind": "k", "queue": queue }); 1_000];
        connection.ok("push", json!({ "jobs": jobs }));
    }
}

#[test]
fn what_happens_to_a_job_is_told_in_order() {
    let server = InProcess::start();
    let mut follower = Connection::open(server.address);
    let reply = subscribe(&mut follower, json!({}));
    assert_eq!(
        (&reply["subscription"], &reply["offset"]),
        (&json!(1), &json!(0))
    );
    let mut worker = Connection::worker(server.address);
    let id = worker.push(json!({ "kind": "welcome", "queue": "mail", "max_attempts": 2 }));
    let fail = |worker: &mut Connection| {
        let job = worker.wait("mail");
        let error = json!({ "kind": "smtp", "message": "no", "retry_in_ms": 0 });
        worker.ok("fail", json!({ "leases": [lease_with(&job, error)] }));
    };
    fail(&mut worker);
    fail(&mut worker);
    let told = events(&mut follower, 7);
    assert_eq!(
        words(&told),
        [
            "pushed", "granted", "failed", "ready", "granted", "failed", "dead"
        ]
    );
    for (nth, event) in told.iter().enumerate() {
        assert_eq!(event["offset"], nth);
        assert_eq!(
            (&event["queue"], &event["job"], &event["kind"]),
            (&json!("mail"), &json!(id), &json!("welcome"))
        );
        assert!(
            event["at"]
                .as_u64()
                .is_some_and(|at| at > 1_700_000_000_000)
        );
    }
    let [pushed, granted, failed, .., dead] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(pushed["state"], "ready");
    assert_eq!(pushed.get("attempt"), None);
    assert_eq!(
        (&granted["state"], &granted["attempt"]),
        (&json!("leased"), &json!(1))
    );
    assert_eq!(
        (&failed["state"], &failed["error_kind"]),
        (&json!("scheduled"), &json!("smtp"))
    );
    assert!(failed["run_at"].is_u64());
    assert_eq!(
        (&dead["reason"], &dead["error_kind"], &dead["attempt"]),
        (&json!("attempts"), &json!("smtp"), &json!(2))
    );
}

#[test]
fn a_filter_means_what_it_names_and_subscriptions_do_not_mix() {
    let server = InProcess::start();
    let mut client = Connection::worker(server.address);
    let batch = client.ok("batch_open", json!({}))["batch"].clone();
    let batch = match batch {
        Value::Null => client.ok("batch_list", json!({}))["batches"][0]["id"].clone(),
        id => id,
    };
    let first = client.push(json!({ "kind": "k", "queue": "other" }));
    let filters = [
        json!({ "queues": ["mail*"] }),
        json!({ "kinds": ["rare"] }),
        json!({ "job": first }),
        json!({ "batch": batch }),
        json!({ "events": ["queue_paused", "granted"], "queues": ["other"] }),
    ];
    let mut followers: Vec<Connection> = Vec::new();
    for filter in &filters {
        let mut follower = Connection::open(server.address);
        subscribe(&mut follower, filter.clone());
        followers.push(follower);
    }
    let mut both = Connection::open(server.address);
    subscribe(&mut both, filters[0].clone());
    assert_eq!(subscribe(&mut both, filters[1].clone())["subscription"], 2);

    client.push(json!({ "kind": "rare", "queue": "mail.eu" }));
    client.push(json!({ "kind": "k", "queue": "mail" }));
    client.push(json!({ "kind": "k", "queue": "away", "batch": batch }));
    client.ok("batch_commit", json!({ "batch": batch }));
    let job = client.wait("other");
    client.ok("ack", json!({ "leases": [lease(&job)] }));
    client.ok("queue_pause", json!({ "queues": ["other", "mail"] }));

    let expected: [&[&str]; 5] = [
        &["pushed", "pushed", "queue_paused"],
        &["pushed"],
        &["granted", "done"],
        &["pushed", "batch_committed"],
        &["granted", "queue_paused"],
    ];
    for (follower, expected) in followers.iter_mut().zip(expected) {
        assert_eq!(words(&events(follower, expected.len())), expected);
    }
    let mut told = [Vec::new(), Vec::new()];
    while told[0].len() < 3 || told[1].is_empty() {
        let message = both.notice();
        let nth = message["subscription"].as_u64().expect("a number");
        let events = message["events"].as_array().expect("events").clone();
        told[usize::try_from(nth - 1).expect("small")].extend(events);
    }
    assert_eq!(words(&told[0]), expected[0]);
    assert_eq!(words(&told[1]), expected[1]);
}

#[test]
fn an_ended_subscription_is_told_nothing_more() {
    let server = InProcess::start();
    let mut follower = Connection::open(server.address);
    subscribe(&mut follower, json!({ "events": ["pushed"] }));
    let second = subscribe(&mut follower, json!({ "events": ["queue_paused"] }));
    follower.ok("unsubscribe", json!({ "subscription": 1 }));
    follower.push(json!({ "kind": "k" }));
    follower.ok("queue_pause", json!({ "queues": ["default"] }));
    let message = follower.notice();
    assert_eq!(message["subscription"], second["subscription"]);
    assert_eq!(
        words(message["events"].as_array().expect("events")),
        ["queue_paused"]
    );
    let error = follower.err("unsubscribe", json!({ "subscription": 1 }));
    assert_eq!(essence(&error), ("not_found", "subscription", None, None));
}

#[test]
fn a_namespace_sees_and_counts_its_own_events_only() {
    let server = InProcess::start();
    let open = |namespace| Connection::hello(server.address, json!({ "namespace": namespace })).0;
    let (mut one, mut other) = (open("one"), open("other"));
    subscribe(&mut one, json!({}));
    other.push(json!({ "kind": "k", "queue": "secret" }));
    one.push(json!({ "kind": "k", "queue": "own" }));
    let told = events(&mut one, 1);
    assert_eq!(
        (&told[0]["queue"], &told[0]["offset"]),
        (&json!("own"), &json!(0))
    );
    let elsewhere = subscribe(&mut other, json!({}));
    assert_eq!(elsewhere["offset"], 1);
}

#[test]
fn a_token_follows_the_queues_that_it_may_see() {
    const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";
    let token = |id: &str, verbs: &[Verb], queues: Option<&str>| TokenConfig {
        id: id.parse().expect("an id"),
        hash: TokenHash::of(SECRET),
        verbs: verbs.to_vec(),
        namespaces: None,
        queues: queues.map(|queue| vec![queue.parse().expect("a pattern")]),
    };
    let tokens = [
        token("push", &[Verb::Push], None),
        token("mail", &[Verb::Inspect], Some("mail*")),
    ];
    let server = InProcess::with(|config| config.auth.token = tokens.to_vec());
    let open = |id: &str| {
        let mut connection = Connection::connect(server.address);
        let auth = connection.auth(&format!("{id}.{SECRET}"));
        connection
            .say_hello(json!({ "auth": auth }))
            .expect("hello was refused");
        connection
    };
    let (mut push, mut mail) = (open("push"), open("mail"));
    let error = push.err("subscribe", json!({}));
    assert_eq!(error["code"], "forbidden");
    for filter in [
        json!({}),
        json!({ "events": ["batch_settled"] }),
        json!({ "queues": ["mail.eu", "sms"] }),
        json!({ "queues": ["m*"] }),
    ] {
        let error = mail.err("subscribe", json!({ "filter": filter }));
        assert_eq!(error["code"], "forbidden", "{filter}");
    }
    subscribe(&mut mail, json!({ "queues": ["mail.*", "mail"] }));
    push.push(json!({ "kind": "k", "queue": "sms" }));
    push.push(json!({ "kind": "k", "queue": "mail" }));
    assert_eq!(events(&mut mail, 1)[0]["queue"], "mail");
}

#[test]
fn bad_filters_and_offsets_are_refused_by_their_field() {
    let server = InProcess::start();
    let mut follower = Connection::open(server.address);
    let mut refused = |fields: Value| follower.err("subscribe", fields);
    let filter = |filter: Value| json!({ "filter": filter });
    let many: Vec<String> = (0..65).map(|nth| format!("q{nth}")).collect();
    for (fields, expected) in [
        (
            filter(json!({ "events": ["born"] })),
            ("bad_request", "filter.events[0]", None, None),
        ),
        (
            filter(json!({ "events": ["dead", "dead"] })),
            ("bad_request", "filter.events[1]", None, None),
        ),
        (
            filter(json!({ "queues": ["a b"] })),
            ("bad_request", "filter.queues[0]", None, None),
        ),
        (
            filter(json!({ "queues": many })),
            ("too_large", "filter.queues", Some(64), Some(65)),
        ),
        (
            filter(json!({ "kinds": many })),
            ("too_large", "filter.kinds", Some(64), Some(65)),
        ),
        (
            filter(json!({ "job": "x" })),
            ("bad_request", "filter.job", None, None),
        ),
        (
            json!({ "from": { "epoch": 1 } }),
            ("bad_request", "from.offset", None, None),
        ),
    ] {
        assert_eq!(essence(&refused(fields.clone())), expected, "{fields}");
    }
    let reply = subscribe(&mut follower, json!({}));
    let ahead = json!({ "from": from(&reply, &json!(1)) });
    let error = follower.err("subscribe", ahead);
    assert_eq!(essence(&error), ("bad_request", "from.offset", None, None));
    for _ in 1..8 {
        subscribe(&mut follower, json!({}));
    }
    let error = follower.err("subscribe", json!({}));
    assert_eq!(essence(&error), ("too_large", "-", Some(8), Some(9)));
}

#[test]
fn who_comes_back_goes_on_behind_the_last_message() {
    let server = InProcess::start();
    let mut follower = Connection::open(server.address);
    let reply = subscribe(&mut follower, json!({ "events": ["pushed"] }));
    let mut client = Connection::open(server.address);
    client.push(json!({ "kind": "k", "queue": "first" }));
    let message = follower.notice();
    drop(follower);
    client.push(json!({ "kind": "k", "queue": "second" }));
    let mut again = Connection::open(server.address);
    let fields = json!({ "filter": {}, "from": from(&reply, &message["next"]) });
    let resumed = again.ok("subscribe", fields);
    assert_eq!(resumed["offset"], message["next"]);
    assert_eq!(events(&mut again, 1)[0]["queue"], "second");
}

#[test]
fn an_offset_of_before_a_restart_is_a_gap_of_unknown_size() {
    let server = InProcess::start();
    let mut follower = Connection::open(server.address);
    let before = subscribe(&mut follower, json!({}));
    follower.push(json!({ "kind": "k" }));
    let message = follower.notice();
    drop(follower);
    let server = server.restart();
    let mut again = Connection::open(server.address);
    let fields = json!({ "from": from(&before, &message["next"]) });
    let reply = again.ok("subscribe", fields);
    assert!(reply["epoch"].as_u64() > before["epoch"].as_u64());
    assert_eq!(reply["offset"], 0);
    let message = again.notice();
    assert_eq!(
        (&message["gap"], &message["events"]),
        (&json!({}), &json!([]))
    );
    again.push(json!({ "kind": "k" }));
    assert_eq!(events(&mut again, 1)[0]["offset"], 0);
}

#[test]
fn a_slow_subscriber_holds_nobody_up_and_is_told_what_it_missed() {
    let server = InProcess::start();
    let mut slow = Connection::open(server.address);
    subscribe(&mut slow, json!({}));
    let mut quick = Connection::open(server.address);
    subscribe(&mut quick, json!({ "queues": ["last"] }));
    let mut client = Connection::open(server.address);
    // More than the ring keeps and the sockets take, while the slow one reads nothing.
    const JOBS: usize = 100_000;
    fill(&mut client, "many", JOBS);
    client.push(json!({ "kind": "k", "queue": "last" }));
    let last = loop {
        // Messages without events say only how far the stream has come.
        let message = quick.notice();
        if let Some(event) = message["events"].as_array().expect("events").first() {
            break event.clone();
        }
    };
    assert_eq!(last["offset"], JOBS);
    let (mut next, mut missed) = (0, 0);
    while next <= JOBS as u64 {
        let message = slow.notice();
        if let Some(gap) = message.get("gap") {
            let count = gap["missed"].as_u64().expect("known");
            missed += count;
            next += count;
        }
        for event in message["events"].as_array().expect("events") {
            assert_eq!(event["offset"], next, "in order, and none twice");
            next += 1;
        }
        assert_eq!(message["next"], next);
    }
    assert!(missed > 0, "everything fitted");
}

#[test]
fn events_come_between_replies_of_the_same_connection() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    subscribe(&mut worker, json!({}));
    let id = worker.push(json!({ "kind": "k" }));
    let job = worker.wait("default");
    worker.ok("ack", json!({ "leases": [lease(&job)] }));
    let told = events(&mut worker, 3);
    assert_eq!(words(&told), ["pushed", "granted", "done"]);
    assert!(told.iter().all(|event| event["job"] == id));
}

#[test]
fn a_follower_is_not_idle_however_little_happens() {
    let server = InProcess::with(|config| {
        config.limits.idle_timeout = "10s".parse().expect("a duration");
    });
    let mut follower = Connection::open(server.address);
    subscribe(&mut follower, json!({}));
    let mut idle = Connection::open(server.address);
    idle.wait_closed();
    Connection::open(server.address).push(json!({ "kind": "k" }));
    assert_eq!(words(&events(&mut follower, 1)), ["pushed"]);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

async fn connect(address: std::net::SocketAddr) -> Client {
    let options = ClientOptions::from_url(&format!("ganger://{address}")).expect("a url");
    Client::connect(options).await.expect("connected")
}

#[test]
fn the_client_goes_on_over_a_restart_and_hands_the_gap_over() {
    let place = tempfile::tempdir().expect("a directory");
    let start = |listen: &str| {
        let (data, ready) = (place.path().join("data"), place.path().join("ready"));
        let mut command = Command::new(EXECUTABLE);
        command.args(["serve", "--log-format", "json", "--listen", listen]);
        command.arg("--data-dir").arg(data);
        command.arg("--ready-file").arg(&ready);
        Process::run(command, &ready).expect("it starts")
    };
    let server = start("127.0.0.1:0");
    let address = server.address;
    let runtime = runtime();
    let mut followed = runtime.block_on(async {
        let client = connect(address).await;
        let filter = EventFilter {
            events: vec![EventName::Pushed],
            ..EventFilter::default()
        };
        client.subscribe(filter).await.expect("subscribed")
    });
    Connection::open(address).push(json!({ "kind": "before" }));
    let mut next = || runtime.block_on(followed.next()).expect("followed");
    let Followed::Event(event) = next() else {
        panic!("no event");
    };
    assert_eq!(event.kind, Some("before".parse().expect("a kind")));
    server.kill();
    let server = start(&address.to_string());
    let Followed::Gap(gap) = next() else {
        panic!("no gap");
    };
    assert_eq!(gap.missed, None);
    Connection::open(server.address).push(json!({ "kind": "after" }));
    let Followed::Event(event) = next() else {
        panic!("no event");
    };
    assert_eq!(event.kind, Some("after".parse().expect("a kind")));
    assert_eq!(followed.stands().offset, 1);
}

#[test]
fn the_client_is_told_when_it_may_not_follow() {
    let server = InProcess::with(|config| {
        config.auth.token = vec![TokenConfig {
            id: "push".parse().expect("an id"),
            hash: TokenHash::of("secret"),
            verbs: vec![Verb::Push],
            namespaces: None,
            queues: None,
        }];
    });
    let url = format!("ganger://:push.secret@{}", server.address);
    let error = runtime().block_on(async {
        let options = ClientOptions::from_url(&url).expect("a url");
        let client = Client::connect(options).await.expect("connected");
        client.subscribe(EventFilter::default()).await
    });
    match error.expect_err("refused") {
        ganger_client::Error::Refused(error) => {
            assert_eq!(error.code, ganger_client::ErrorCode::Forbidden);
        }
        other => panic!("{other:?}"),
    }
}

fn command(address: std::net::SocketAddr, arguments: &[&str]) -> Child {
    let mut command = Command::new(EXECUTABLE);
    command
        .args(["events", "--url", &format!("ganger://{address}")])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().expect("it runs")
}

#[test]
fn the_command_prints_json_and_ends_after_as_many_events_as_were_asked_for() {
    let server = InProcess::start();
    let mut child = command(
        server.address,
        &[
            "-q",
            "mail*,sms",
            "--event",
            "pushed",
            "--kind",
            "k",
            "--limit",
            "2",
            "--json",
        ],
    );
    let mut client = Connection::open(server.address);
    // It follows from some push on.
    while child.try_wait().expect("a child").is_none() {
        client.push(json!({ "kind": "k", "queue": "other" }));
        client.push(json!({ "kind": "other", "queue": "mail.eu" }));
        client.push(json!({ "kind": "k", "queue": "mail.eu" }));
    }
    let output = child.wait_with_output().expect("it ended");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let lines: Vec<Value> = lines.collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in lines {
        assert_eq!(
            (&line["event"], &line["queue"], &line["kind"]),
            (&json!("pushed"), &json!("mail.eu"), &json!("k"))
        );
    }
}

#[test]
fn the_command_ends_cleanly_when_it_is_interrupted() {
    let server = InProcess::start();
    let mut child = command(server.address, &[]);
    let (sender, line) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    thread::scope(|scope| {
        scope.spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // Nobody listens behind the first one.
                let _ = sender.send(line);
            }
        });
        let mut client = Connection::open(server.address);
        let line = loop {
            match line.try_recv() {
                Ok(line) => break line,
                Err(_) => client.push(json!({ "kind": "k", "queue": "mail" })),
            };
        };
        assert!(line.contains("  pushed           mail  k  "), "{line}");
        let pid = i32::try_from(child.id()).expect("a pid");
        let pid = Pid::from_raw(pid).expect("a pid");
        kill_process(pid, Signal::INT).expect("a live process");
        assert_eq!(child.wait().expect("a child").code(), Some(0));
    });
}

#[path = "../../client/rust/examples/events.rs"]
#[expect(dead_code, reason = "its main is for whoever runs it by hand")]
mod example;

#[test]
fn the_example_counts_the_attempts_that_failed() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let failures = runtime().block_on(example::run(&url)).expect("it runs");
    assert_eq!(failures, 2);
}
