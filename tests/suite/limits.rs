//! Names, payloads and lists at their limit and one past it, over the wire: the error names the
//! field, the limit and the figure, and the connection goes on.

use ganger_server::config::units::Size;
use serde_json::{Value, json};
use support::{Connection, InProcess, bin};

use crate::essence;

type Refusal<'a> = (&'a str, &'a str, Option<u64>, Option<u64>);

/// A push of one job with these fields is accepted.
#[track_caller]
fn accepted(connection: &mut Connection, mut job: Value) {
    job["kind"].is_null().then(|| job["kind"] = json!("k"));
    connection.push(job);
}

/// A push of one job with these fields is refused so, alone.
#[track_caller]
fn refused(connection: &mut Connection, mut job: Value, expected: Refusal<'_>) {
    job["kind"].is_null().then(|| job["kind"] = json!("k"));
    let reply = connection.ok("push", json!({ "jobs": [job, { "kind": "neighbour" }] }));
    assert_eq!(essence(&reply["results"][0]["err"]), expected);
    assert!(
        reply["results"][1]["id"].is_string(),
        "the neighbour is pushed"
    );
}

#[test]
fn a_payload_of_one_mib_is_taken_and_one_byte_more_is_not() {
    let server = InProcess::start();
    let mut connection = Connection::worker(server.address);
    let largest = bin(vec![0xa5; 1 << 20]);
    accepted(&mut connection, json!({ "payload": largest }));
    assert_eq!(
        connection.fetch("default").expect("a job")["payload"],
        largest
    );
    let expected = ("too_large", "payload", Some(1 << 20), Some(1 << 20 | 1));
    refused(
        &mut connection,
        json!({ "payload": bin(vec![0; 1 << 20 | 1]) }),
        expected,
    );
    accepted(&mut connection, json!({ "payload": bin([]) }));
}

#[test]
fn names_of_128_characters_are_taken_and_longer_or_stranger_ones_are_not() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let longest = "n".repeat(128);
    accepted(
        &mut connection,
        json!({ "kind": longest, "queue": longest, "tags": [longest] }),
    );
    accepted(&mut connection, json!({ "kind": "A-Z.a:z_09" }));
    let too_long = "n".repeat(129);
    for name in [
        "", " ", "a b", "a*", "ü", "a/b", "a\0", "../x", "<b>", &too_long,
    ] {
        for (field, job) in [
            ("jobs[0].kind", json!({ "kind": name })),
            ("jobs[0].queue", json!({ "kind": "k", "queue": name })),
            ("jobs[0].tags[0]", json!({ "kind": "k", "tags": [name] })),
        ] {
            let error = connection.err("push", json!({ "jobs": [job] }));
            assert_eq!(essence(&error).1, field, "{name:?}: {error}");
        }
        let mut stranger = Connection::connect(server.address);
        let error = stranger
            .say_hello(json!({ "namespace": name }))
            .expect_err("accepted");
        assert_eq!(essence(&error).1, "namespace", "{name:?}");
        stranger.wait_closed();
    }
}

#[test]
fn a_request_has_a_thousand_items_and_not_one_more() {
    let server = InProcess::start();
    let mut connection = Connection::worker(server.address);
    let item = json!({ "job": "AAAAAAABBQAAAAAAAAAAgAAAAAAAAAAA", "lease": 1, "ms": 1_000 });
    let job = json!({ "kind": "k" });
    let id = item["job"].clone();
    let cases = [
        ("push", "jobs", &job),
        ("ack", "leases", &item),
        ("fail", "leases", &item),
        ("release", "leases", &item),
        ("extend", "leases", &item),
        ("dead_revive", "jobs", &id),
        ("dead_purge", "jobs", &id),
    ];
    for (op, field, item) in cases {
        let request = |count: usize| json!({ field: vec![item.clone(); count] });
        connection.ok(op, request(1_000));
        let error = connection.err(op, request(1_001));
        assert_eq!(
            essence(&error),
            ("too_large", field, Some(1_000), Some(1_001)),
            "{op}"
        );
        let error = connection.err(op, request(0));
        assert_eq!(essence(&error).0, "bad_request", "{op}");
    }
    let error = connection.err("queue_pause", json!({ "queues": vec!["q"; 1_001] }));
    assert_eq!(
        essence(&error),
        ("too_large", "queues", Some(1_000), Some(1_001))
    );
    connection.ok("heartbeat", json!({}));
}

#[test]
fn the_figures_of_a_job_hold_at_both_ends() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let ten_years = 315_619_200_000_u64;
    let ranges = [
        ("priority", 0, 9),
        ("max_attempts", 1, 10_000),
        ("timeout_ms", 1_000, 86_400_000),
        ("delay_ms", 0, ten_years),
    ];
    for (field, min, max) in ranges {
        accepted(&mut connection, json!({ field: min }));
        accepted(&mut connection, json!({ field: max }));
        let expected = ("bad_request", field, Some(max), Some(max + 1));
        refused(&mut connection, json!({ field: max + 1 }), expected);
        if min > 0 {
            let expected = ("bad_request", field, Some(min), Some(min - 1));
            refused(&mut connection, json!({ field: min - 1 }), expected);
        }
    }
    let headers = |bytes: usize| json!({ "headers": { "name": "v".repeat(bytes - 4) } });
    accepted(&mut connection, headers(4 << 10));
    let expected = ("too_large", "headers", Some(4 << 10), Some(4 << 10 | 1));
    refused(&mut connection, headers(4 << 10 | 1), expected);
    accepted(&mut connection, json!({ "tags": vec!["t"; 8] }));
    let expected = ("too_large", "tags", Some(8), Some(9));
    refused(&mut connection, json!({ "tags": vec!["t"; 9] }), expected);
    let expected = ("too_large", "content_type", Some(128), Some(129));
    refused(
        &mut connection,
        json!({ "content_type": "c".repeat(129) }),
        expected,
    );
    let both = json!({ "run_at": 1, "delay_ms": 1 });
    refused(
        &mut connection,
        both,
        ("bad_request", "delay_ms", None, None),
    );
}

#[test]
fn the_figures_of_a_fetch_hold_at_both_ends() {
    let server = InProcess::start();
    let mut connection = Connection::worker(server.address);
    let fetch = |fields: Value| {
        let mut request = json!({ "queues": ["default"] });
        let map = request.as_object_mut().expect("a map");
        map.extend(fields.as_object().expect("a map").clone());
        request
    };
    connection.ok(
        "fetch",
        fetch(json!({ "queues": vec!["q"; 64], "max": 1_000 })),
    );
    connection.ok("fetch", fetch(json!({ "max": 0, "weights": [1_000] })));
    let cases = [
        (
            json!({ "queues": vec!["q"; 65] }),
            ("too_large", "queues", Some(64), Some(65)),
        ),
        (
            json!({ "queues": [] }),
            ("bad_request", "queues", Some(1), Some(0)),
        ),
        (
            json!({ "max": 1_001 }),
            ("bad_request", "max", Some(1_000), Some(1_001)),
        ),
        (
            json!({ "wait_ms": 60_001 }),
            ("bad_request", "wait_ms", Some(60_000), Some(60_001)),
        ),
        (
            json!({ "weights": [1, 1] }),
            ("bad_request", "weights", None, None),
        ),
        (
            json!({ "weights": [0] }),
            ("bad_request", "weights[0]", Some(1), Some(0)),
        ),
        (
            json!({ "weights": [1_001] }),
            ("bad_request", "weights[0]", Some(1_000), Some(1_001)),
        ),
    ];
    for (fields, expected) in cases {
        let error = connection.err("fetch", fetch(fields));
        assert_eq!(essence(&error), expected);
    }
}

#[test]
fn a_session_waits_with_64_fetches_and_holds_a_thousand_leases() {
    let server = InProcess::start();
    let mut connection = Connection::worker(server.address);
    let waiting = json!({ "queues": ["empty"], "wait_ms": 30_000 });
    for _ in 0..64 {
        connection.send("fetch", waiting.clone());
    }
    let error = connection.err("fetch", waiting);
    assert_eq!(error["code"], "overloaded", "{error}");

    let mut holder = Connection::worker(server.address);
    for _ in 0..2 {
        let jobs = vec![json!({ "kind": "k" }); 1_000];
        holder.ok("push", json!({ "jobs": jobs }));
    }
    let mut held = 0;
    // A reply may hold less than was asked for.
    while held < 1_000 {
        let reply = holder.ok("fetch", json!({ "queues": ["default"], "max": 1_000 }));
        let count = reply["jobs"].as_array().expect("jobs").len();
        assert_ne!(count, 0);
        held += count;
    }
    assert_eq!(held, 1_000);
    let error = holder.err("fetch", json!({ "queues": ["default"] }));
    assert_eq!(error["code"], "overloaded", "{error}");
}

#[test]
fn the_texts_of_hello_hold_at_their_limits() {
    let server = InProcess::start();
    let text = |bytes: usize| "x".repeat(bytes);
    let labels = |count: usize| {
        let pairs = (0..count).map(|n| (format!("l{n}"), json!("v")));
        Value::Object(pairs.collect())
    };
    let largest = json!({ "session": {
        "name": text(256), "host": text(256), "labels": labels(16), "ttl_ms": 3_600_000,
    } });
    Connection::hello(server.address, largest);
    let held = vec![json!({ "job": "AAAAAAABBQAAAAAAAAAAgAAAAAAAAAAA", "lease": 1 }); 1_001];
    let resume = |count: usize| {
        let resume = json!({ "id": "1s", "secret": "x", "held": held[..count] });
        json!({ "resume": resume })
    };
    Connection::hello(server.address, json!({ "session": resume(1_000) }));
    let cases = [
        (
            json!({ "name": text(257) }),
            ("too_large", "session.name", Some(256), Some(257)),
        ),
        (
            json!({ "host": text(257) }),
            ("too_large", "session.host", Some(256), Some(257)),
        ),
        (
            json!({ "labels": labels(17) }),
            ("too_large", "session.labels", Some(16), Some(17)),
        ),
        (
            json!({ "ttl_ms": 999 }),
            ("bad_request", "session.ttl_ms", Some(1_000), Some(999)),
        ),
        (
            json!({ "ttl_ms": 3_600_001 }),
            (
                "bad_request",
                "session.ttl_ms",
                Some(3_600_000),
                Some(3_600_001),
            ),
        ),
        (
            resume(1_001),
            ("too_large", "session.resume.held", Some(1_000), Some(1_001)),
        ),
    ];
    for (session, expected) in cases {
        let mut connection = Connection::connect(server.address);
        let error = connection
            .say_hello(json!({ "session": session }))
            .expect_err("accepted");
        assert_eq!(essence(&error), expected);
        connection.wait_closed();
    }
}

#[test]
fn the_texts_of_a_fail_are_cut_or_refused() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(json!({ "kind": "k" }));
    let job = worker.fetch("default").expect("a job");
    let mut item = crate::lease(&job);
    item["kind"] = json!("e".repeat(101));
    let error = worker.err("fail", json!({ "leases": [item] }));
    assert_eq!(
        essence(&error),
        ("too_large", "leases[0].kind", Some(100), Some(101))
    );
    item["kind"] = json!("e".repeat(100));
    // Cut between characters, not inside of one.
    item["message"] = json!("ü".repeat(4 << 10));
    item["backtrace"] = json!("€".repeat(16 << 10));
    worker.ok("fail", json!({ "leases": [item] }));
    let shown = worker.ok("job_get", json!({ "job": id }));
    let bytes = |field: &str| shown["errors"][0][field].as_str().expect("text").len();
    assert_eq!(bytes("message"), 4 << 10);
    assert_eq!(bytes("backtrace"), (16 << 10) / 3 * 3);
    let both = crate::lease_with(&job, json!({ "dead": true, "discard": true }));
    let error = worker.err("fail", json!({ "leases": [both] }));
    assert_eq!(essence(&error).1, "leases[0].discard");
}

#[test]
fn unfinished_requests_share_a_bound_and_whoever_passes_it_is_told() {
    let server = InProcess::with(|config| config.limits.in_flight_bytes_max = Size::mib(1));
    let mut other = Connection::open(server.address);
    let mut greedy = Connection::open(server.address);
    // A frame of 4 MiB that is never finished.
    greedy.send_bytes(&(4_u32 << 20).to_be_bytes());
    greedy.send_bytes(&vec![0; 1200 << 10]);
    let refused = greedy.message();
    assert_eq!(refused["id"], 0);
    assert_eq!(refused["err"]["code"], "overloaded");
    assert!(refused["err"]["retry_after_ms"].is_u64(), "{refused}");
    greedy.wait_closed();
    // What it held is given back.
    other.push(json!({ "kind": "k", "payload": bin(vec![7; 900 << 10]) }));
}
