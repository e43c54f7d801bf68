//! Bytes that no client should send: each is answered with its own error, and the connection goes
//! on unless nobody knows where the next frame begins.

use serde_json::{Value, json};
use support::{Connection, InProcess, framed, from_map, to_map};

use crate::essence;

/// Sends a frame and answers with the error under this id.
#[track_caller]
fn refused(connection: &mut Connection, id: u64, map: &[u8]) -> Value {
    connection.send_map(map);
    connection.reply(id).expect_err("accepted")
}

/// The connection still works.
#[track_caller]
fn survives(connection: &mut Connection) {
    connection.ok("stats", json!({}));
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_length_and_ends_the_connection() {
    let server = InProcess::start();
    let limit = 8 << 20;
    for (length, actual) in [(8 << 20 | 1, 8 << 20 | 1), (u32::MAX, u64::from(u32::MAX))] {
        let mut connection = Connection::open(server.address);
        connection.send_bytes(&length.to_be_bytes());
        let error = connection.reply(0).expect_err("accepted");
        assert_eq!(
            essence(&error),
            ("too_large", "frame", Some(limit), Some(actual))
        );
        connection.wait_closed();
    }
    // Before hello a stranger has less.
    let mut stranger = Connection::connect(server.address);
    stranger.send_bytes(&(64_u32 << 10 | 1).to_be_bytes());
    let error = stranger.reply(0).expect_err("accepted");
    assert_eq!(
        essence(&error),
        ("too_large", "frame", Some(64 << 10), Some(64 << 10 | 1))
    );
    stranger.wait_closed();
}

#[test]
fn a_frame_at_the_limit_is_read() {
    let server = InProcess::with(|config| {
        config.limits.frame_bytes_max = "128KiB".parse().expect("a size");
        config.limits.payload_bytes_max = "32KiB".parse().expect("a size");
        config.limits.result_bytes_max = "32KiB".parse().expect("a size");
    });
    let mut connection = Connection::open(server.address);
    assert_eq!(connection.welcome["limits"]["frame_bytes_max"], 128 << 10);
    let mut request = json!({ "id": 900, "op": "stats", "pad": "" });
    let bare = to_map(&json!({ "id": 900, "op": "stats", "pad": "x".repeat(100_000) })).len();
    request["pad"] = json!("x".repeat(100_000 + (128 << 10) - bare));
    let map = to_map(&request);
    assert_eq!(map.len(), 128 << 10);
    connection.send_map(&map);
    connection.reply(900).expect("at the limit");
    request["pad"] = json!("x".repeat(100_001 + (128 << 10) - bare));
    connection.send_map(&to_map(&request));
    assert_eq!(
        connection.reply(0).expect_err("accepted")["code"],
        "too_large"
    );
    connection.wait_closed();
}

#[test]
fn a_frame_of_nothing_ends_the_connection() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    connection.send_bytes(&[0; 4]);
    let error = connection.reply(0).expect_err("accepted");
    assert_eq!(essence(&error).0, "bad_request");
    assert_eq!(essence(&error).1, "frame");
    connection.wait_closed();
}

#[test]
fn another_protocol_is_told_that_its_frame_is_too_large() {
    let server = InProcess::start();
    for greeting in [
        "GET / HTTP/1.1\r\n\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "put 0 0 1 1\r\nx\r\n",
    ] {
        let mut connection = Connection::connect(server.address);
        connection.send_bytes(greeting.as_bytes());
        assert_eq!(
            connection.reply(0).expect_err("accepted")["code"],
            "too_large"
        );
        connection.wait_closed();
    }
}

#[test]
fn bytes_that_are_no_map_are_refused_and_the_connection_survives() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let heartbeat = to_map(&json!({ "id": 77, "op": "stats" }));
    let with = |tail: &[u8]| {
        // One entry more than the head says.
        let mut map = heartbeat.clone();
        map[0] += 1;
        map.extend(tail);
        map
    };
    let deep = |depth: usize| {
        let mut tail = b"\xa1x".to_vec();
        tail.extend(std::iter::repeat_n(0x91, depth - 1));
        tail.push(0xc0);
        with(&tail)
    };
    let mut trailing = heartbeat.clone();
    trailing.push(0xc0);
    let cases: &[(&str, u64, Vec<u8>)] = &[
        ("not MessagePack", 0, vec![0xc1]),
        ("an array", 0, vec![0x91, 0x01]),
        ("nil", 0, vec![0xc0]),
        ("a map that ends too early", 0, vec![0x85, 0xa2, b'i']),
        ("4 Gi entries", 0, vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
        ("a trailing byte", 77, trailing),
        ("a key that is a number", 77, with(&[0x01, 0x01])),
        ("a key that is not UTF-8", 77, with(&[0xa1, 0xff, 0x01])),
        ("a key twice", 77, with(b"\xa2op\xa5stats")),
        (
            "a key twice inside",
            77,
            with(b"\xa1x\x82\xa1a\x01\xa1a\x02"),
        ),
        ("an extension", 77, with(b"\xa1x\xd4\x01\x01")),
        ("4 GiB of bin", 77, with(b"\xa1x\xc6\xff\xff\xff\xff")),
        ("65 deep", 77, deep(65)),
        ("a million deep", 77, deep(1_000_000)),
    ];
    for (name, id, map) in cases {
        let error = refused(&mut connection, *id, map);
        assert_eq!(error["code"], "bad_request", "{name}");
        assert_eq!(error["retryable"], false, "{name}");
        survives(&mut connection);
    }
    connection.send_map(&deep(64));
    connection.reply(77).expect("64 are allowed");
}

#[test]
fn ids_and_operations_that_are_none_are_refused_by_their_field() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let bad = |id: Value, op: Value| to_map(&json!({ "id": id, "op": op }));
    let cases = [
        (bad(json!(0), json!("stats")), 0, ("bad_request", "id")),
        (bad(json!(-1), json!("stats")), 0, ("bad_request", "id")),
        (bad(json!(1.5), json!("stats")), 0, ("bad_request", "id")),
        (bad(json!("7"), json!("stats")), 0, ("bad_request", "id")),
        (
            bad(json!(1_u64 << 53), json!("stats")),
            0,
            ("bad_request", "id"),
        ),
        (to_map(&json!({ "op": "stats" })), 0, ("bad_request", "id")),
        (bad(json!(7), json!(7)), 7, ("bad_request", "op")),
        (bad(json!(7), Value::Null), 7, ("bad_request", "op")),
        (to_map(&json!({ "id": 7 })), 7, ("bad_request", "op")),
        (bad(json!(7), json!("")), 7, ("unsupported_op", "-")),
        (bad(json!(7), json!("PUSH")), 7, ("unsupported_op", "-")),
        (bad(json!(7), json!("job_fly")), 7, ("unsupported_op", "-")),
        (
            bad(json!(7), json!("x".repeat(100_000))),
            7,
            ("unsupported_op", "-"),
        ),
    ];
    for (map, id, (code, field)) in cases {
        let error = refused(&mut connection, id, &map);
        assert_eq!(
            (essence(&error).0, essence(&error).1),
            (code, field),
            "{error}"
        );
        survives(&mut connection);
    }
    connection.send_map(&to_map(&json!({ "id": (1_u64 << 53) - 1, "op": "stats" })));
    connection.reply((1 << 53) - 1).expect("the largest id");
}

#[test]
fn values_of_the_wrong_type_are_refused_by_their_path() {
    let server = InProcess::start();
    let mut connection = Connection::worker(server.address);
    let job = |job: Value| json!({ "jobs": [{ "kind": "k" }, job] });
    let cases = [
        ("push", json!({}), "jobs"),
        ("push", json!({ "jobs": {} }), "jobs"),
        ("push", json!({ "jobs": [[]] }), "jobs[0]"),
        ("push", json!({ "jobs": ["k"] }), "jobs[0]"),
        ("push", job(json!({})), "jobs[1].kind"),
        ("push", job(json!({ "kind": 1 })), "jobs[1].kind"),
        (
            "push",
            job(json!({ "kind": "k", "payload": "text" })),
            "jobs[1].payload",
        ),
        (
            "push",
            job(json!({ "kind": "k", "payload": [1, 2] })),
            "jobs[1].payload",
        ),
        (
            "push",
            job(json!({ "kind": "k", "priority": "high" })),
            "jobs[1].priority",
        ),
        (
            "push",
            job(json!({ "kind": "k", "priority": -1 })),
            "jobs[1].priority",
        ),
        (
            "push",
            job(json!({ "kind": "k", "delay_ms": 1.5 })),
            "jobs[1].delay_ms",
        ),
        (
            "push",
            job(json!({ "kind": "k", "headers": { "a": 1 } })),
            "jobs[1].headers.a",
        ),
        (
            "push",
            job(json!({ "kind": "k", "tags": "blue" })),
            "jobs[1].tags",
        ),
        (
            "push",
            json!({ "jobs": [{ "kind": "k" }], "atomic": 1 }),
            "atomic",
        ),
        (
            "push",
            json!({ "jobs": [{ "kind": "k" }], "seq": "1" }),
            "seq",
        ),
        ("fetch", json!({ "queues": "default" }), "queues"),
        ("fetch", json!({ "queues": [1] }), "queues[0]"),
        ("fetch", json!({ "queues": ["a"], "max": -1 }), "max"),
        ("ack", json!({ "leases": [{}] }), "leases[0].job"),
        (
            "ack",
            json!({ "leases": [{ "job": "short", "lease": 1 }] }),
            "leases[0].job",
        ),
        ("job_get", json!({ "job": 7 }), "job"),
        ("job_get", json!({}), "job"),
        ("dead_list", json!({ "limit": "all" }), "limit"),
        ("queue_list", json!({ "pattern": "a*b" }), "pattern"),
    ];
    for (op, fields, field) in cases {
        let error = connection.err(op, fields.clone());
        let told = (essence(&error).0, essence(&error).1);
        assert_eq!(told, ("bad_request", field), "{op} {fields}: {error}");
        connection.ok("heartbeat", json!({}));
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let server = InProcess::start();
    let hello = json!({ "session": { "mood": "good" }, "weather": [1, { "rain": null }] });
    let (mut connection, _) = Connection::hello(server.address, hello);
    let job = json!({ "kind": "k", "colour": "blue" });
    connection.ok("push", json!({ "jobs": [job], "speed": 9 }));
    connection.ok("fetch", json!({ "queues": ["default"], "patience": true }));
}

#[test]
fn before_hello_nothing_else_is_heard() {
    let server = InProcess::start();
    for op in [
        "push",
        "fetch",
        "heartbeat",
        "stats",
        "queue_list",
        "goodbye",
    ] {
        let mut connection = Connection::connect(server.address);
        let fields = json!({ "jobs": [{ "kind": "k" }], "queues": ["default"] });
        let error = connection.err(op, fields);
        assert_eq!(
            (essence(&error).0, essence(&error).1),
            ("bad_request", "op"),
            "{op}"
        );
        connection.wait_closed();
    }
    let mut connection = Connection::connect(server.address);
    assert_eq!(
        connection.err("nonsense", json!({}))["code"],
        "unsupported_op"
    );
    connection.wait_closed();
    let mut connection = Connection::connect(server.address);
    connection.send_map(&[0xc1]);
    assert_eq!(
        connection.reply(0).expect_err("accepted")["code"],
        "bad_request"
    );
    connection.wait_closed();
    let mut watcher = Connection::open(server.address);
    assert_eq!(watcher.ok("stats", json!({}))["counters"]["pushed"], 0);
}

#[test]
fn a_request_that_follows_a_refused_hello_is_not_heard() {
    let server = InProcess::start();
    let mut connection = Connection::connect(server.address);
    let hello = framed(&to_map(&json!({ "id": 1, "op": "hello", "v": 99 })));
    let push = json!({ "id": 2, "op": "push", "jobs": [{ "kind": "k" }] });
    connection.send_bytes(&[hello, framed(&to_map(&push))].concat());
    let error = connection.reply(1).expect_err("accepted");
    assert_eq!((essence(&error).0, essence(&error).1), ("bad_request", "v"));
    connection.wait_closed();
    let mut watcher = Connection::open(server.address);
    assert_eq!(watcher.ok("stats", json!({}))["counters"]["pushed"], 0);
}

#[test]
fn versions_that_are_not_spoken_are_refused_and_no_version_is_none() {
    let server = InProcess::start();
    for v in [json!(0), json!(-1), json!("1"), Value::Null] {
        let mut connection = Connection::connect(server.address);
        let error = connection
            .say_hello(json!({ "v": v }))
            .expect_err("accepted");
        assert_eq!(
            (essence(&error).0, essence(&error).1),
            ("bad_request", "v"),
            "{v}"
        );
        connection.wait_closed();
    }
    let mut connection = Connection::connect(server.address);
    let error = connection.err("hello", json!({}));
    assert_eq!((essence(&error).0, essence(&error).1), ("bad_request", "v"));
    connection.wait_closed();
}

#[test]
fn a_second_hello_is_refused_and_the_connection_goes_on() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let error = connection.say_hello(json!({})).expect_err("accepted");
    assert_eq!(
        (essence(&error).0, essence(&error).1),
        ("bad_request", "op")
    );
    survives(&mut connection);
}

#[test]
fn random_frames_are_each_refused_under_an_id_and_leave_the_server_whole() {
    let seed = std::env::var("GANGER_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("GANGER_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = InProcess::start();
    let mut connection = Connection::worker(server.address);
    let requests = [
        json!({ "id": 5, "op": "push", "jobs": [{ "kind": "k", "headers": { "a": "b" } }] }),
        json!({ "id": 5, "op": "fetch", "queues": ["default"], "wait_ms": 0 }),
        json!({ "id": 5, "op": "dead_list", "queue": "default", "limit": 3 }),
        json!({ "id": 5, "op": "extend", "leases": [{ "job": "x", "lease": 1, "ms": 1 }] }),
    ];
    for _ in 0..2_000 {
        let mut map = to_map(&requests[random.usize(..requests.len())]);
        match random.u8(..3) {
            0 => map = (0..random.usize(1..200)).map(|_| random.u8(..)).collect(),
            1 => {
                let at = random.usize(..map.len());
                map[at] = random.u8(..);
            }
            _ => map.truncate(random.usize(1..map.len())),
        }
        connection.send_map(&map);
        let answer = connection.message();
        let legal = answer.get("err").is_some() || from_map(&map).is_some();
        assert!(legal, "{map:02x?} was answered {answer}");
    }
    survives(&mut connection);
}

#[test]
fn random_streams_end_only_their_own_connections() {
    let server = InProcess::start();
    let mut bystander = Connection::open(server.address);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut connection = Connection::connect(server.address);
        let bytes: Vec<u8> = (0..random.usize(1..2_000)).map(|_| random.u8(..)).collect();
        // The server may be gone before all of it is sent.
        let _ = connection.try_send_bytes(&bytes);
        connection.shut_write();
        connection.wait_closed();
    }
    survives(&mut bystander);
}
