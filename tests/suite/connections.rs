//! Connections that are slow, silent, too many, or gone: none of them costs the others anything.

use std::{io::Read, time::Duration};

use ganger_server::clock::Stopwatch;
use serde_json::json;
use support::{Connection, InProcess, bin, framed, to_map};

use crate::counters;

/// A server that waits for nobody longer than it must.
fn impatient() -> InProcess {
    InProcess::with(|config| {
        config.limits.hello_timeout = "300ms".parse().expect("a duration");
        config.limits.frame_timeout = "1s".parse().expect("a duration");
        config.limits.write_stall_timeout = "1s".parse().expect("a duration");
        config.limits.idle_timeout = "10s".parse().expect("a duration");
    })
}

#[test]
fn a_connection_without_hello_is_closed() {
    let server = impatient();
    let mut silent = Connection::connect(server.address);
    let mut half = Connection::connect(server.address);
    half.send_bytes(&framed(&to_map(&json!({ "id": 1, "op": "hello", "v": 1 })))[..9]);
    silent.wait_closed();
    half.wait_closed();
}

#[test]
fn half_a_frame_is_waited_for_only_so_long() {
    let server = impatient();
    let mut bystander = Connection::worker(server.address);
    for bytes in [&[0][..], &[0, 0, 0, 9], &[0, 0, 0, 9, 0x82, 0xa2]] {
        let mut connection = Connection::open(server.address);
        connection.send_bytes(bytes);
        connection.wait_closed();
    }
    bystander.ok("heartbeat", json!({}));
}

#[test]
fn a_frame_may_come_byte_by_byte() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    for byte in framed(&to_map(&json!({ "id": 50, "op": "stats" }))) {
        connection.send_bytes(&[byte]);
    }
    connection.reply(50).expect("a reply");
}

#[test]
fn a_client_that_is_always_in_the_middle_of_its_next_frame_is_not_slow() {
    let server = impatient();
    let mut connection = Connection::open(server.address);
    let frame = framed(&to_map(&json!({ "id": 50, "op": "stats" })));
    let (head, tail) = frame.split_at(7);
    connection.send_bytes(head);
    let watch = Stopwatch::start();
    // Longer than a frame may take, with never a moment between two frames.
    while watch.elapsed() < Duration::from_millis(3_500) {
        connection.send_bytes(&[tail, head].concat());
        connection.reply(50).expect("a reply");
    }
}

#[test]
fn a_client_that_does_not_read_its_replies_is_closed_and_the_others_go_on() {
    let server = impatient();
    let mut pusher = Connection::open(server.address);
    let id = pusher.push(json!({ "kind": "k", "payload": bin(vec![1; 1 << 20]) }));
    let mut deaf = Connection::open(server.address);
    // 64 MiB of replies, more than any socket takes.
    let request = framed(&to_map(&json!({ "id": 50, "op": "job_get", "job": id })));
    deaf.send_bytes(&request.repeat(64));
    let mut other = Connection::open(server.address);
    let watch = Stopwatch::start();
    let mut closed = false;
    while !closed && watch.elapsed() < Duration::from_secs(15) {
        other.ok("stats", json!({}));
        // The server has closed it when sending fails; reading would make it no longer deaf.
        closed = deaf.try_send_bytes(&[0]).is_err();
    }
    assert!(closed, "a deaf client was kept");
    let mut rest = Vec::new();
    let mut socket = deaf.socket();
    let _ = socket.read_to_end(&mut rest);
    assert!(rest.len() < 64 << 20, "not everything was queued for it");
}

#[test]
fn a_client_that_reads_late_gets_every_reply() {
    let server = InProcess::start();
    let mut connection = Connection::worker(server.address);
    let id = connection.push(json!({ "kind": "k", "payload": bin(vec![7; 1 << 20]) }));
    let ids: Vec<u64> = (0..48)
        .map(|_| connection.send("job_get", json!({ "job": id })))
        .collect();
    let other = Connection::open(server.address).ok("stats", json!({}));
    assert_eq!(other["counters"]["pushed"], 1);
    for id in ids {
        let job = connection.reply(id).expect("a reply");
        assert_eq!(job["payload_bytes"], 1 << 20);
    }
}

#[test]
fn a_thousand_idle_connections_cost_a_worker_nothing() {
    let server = InProcess::start();
    let mut idle: Vec<Connection> = (0..1_000)
        .map(|number| match number % 3 {
            0 => Connection::worker(server.address),
            1 => {
                let mut waiting = Connection::worker(server.address);
                waiting.send("fetch", json!({ "queues": ["other"], "wait_ms": 60_000 }));
                waiting
            }
            _ => Connection::open(server.address),
        })
        .collect();
    let mut worker = Connection::worker(server.address);
    let watch = Stopwatch::start();
    for _ in 0..200 {
        worker.push(json!({ "kind": "k" }));
        let job = worker.fetch("default").expect("a job");
        worker.ok("ack", json!({ "leases": [crate::lease(&job)] }));
    }
    assert!(
        watch.elapsed() < Duration::from_secs(20),
        "{:?}",
        watch.elapsed()
    );
    let stats = worker.ok("stats", json!({}));
    assert!(stats["waiting"].as_u64() >= Some(330), "{stats}");
    for connection in idle.iter_mut().step_by(97) {
        connection.ok("stats", json!({}));
    }
}

#[test]
fn connections_past_the_limit_are_told_so_and_closed_and_those_within_it_served() {
    let server = InProcess::with(|config| config.limits.connections_max = 8);
    let mut served: Vec<Connection> = (0..8).map(|_| Connection::open(server.address)).collect();
    for _ in 0..100 {
        let refusal = Connection::try_connect(server.address).expect_err("one too many");
        let refusal = refusal.to_string();
        assert!(refusal.contains("\"code\":\"overloaded\""), "{refusal}");
        assert!(refusal.contains("\"retry_after_ms\":1000"), "{refusal}");
    }
    for connection in &mut served {
        connection.ok("stats", json!({}));
    }
    // A place that becomes free is given again.
    let mut leaving = served.pop().expect("eight");
    leaving.shut_write();
    leaving.wait_closed();
    let watch = Stopwatch::start();
    let mut next = loop {
        match Connection::try_connect(server.address) {
            Ok(connection) => break connection,
            Err(error) => assert!(watch.elapsed() < support::PATIENCE, "{error}"),
        }
    };
    next.say_hello(json!({})).expect("hello");
}

#[test]
fn a_client_that_leaves_while_it_waits_takes_no_job_with_it() {
    let server = InProcess::start();
    let mut producer = Connection::open(server.address);
    for round in 0..50 {
        let mut leaving = Connection::worker(server.address);
        leaving.send("fetch", json!({ "queues": ["default"], "wait_ms": 60_000 }));
        if round % 2 == 0 {
            leaving.ok("heartbeat", json!({}));
        }
        drop(leaving);
    }
    // The server has seen that they are gone when nobody waits any more.
    let watch = Stopwatch::start();
    while producer.ok("stats", json!({}))["waiting"] != 0 {
        assert!(watch.elapsed() < support::PATIENCE, "somebody still waits");
    }
    let id = producer.push(json!({ "kind": "k" }));
    let mut worker = Connection::worker(server.address);
    assert_eq!(worker.fetch("default").expect("the job")["id"], id.as_str());
    assert_eq!(counters(&mut producer, "default")["granted"], 1);
}

#[test]
fn a_client_that_shuts_its_side_still_gets_no_half_replies() {
    let server = InProcess::start();
    for _ in 0..50 {
        let mut connection = Connection::open(server.address);
        let push = json!({ "id": 50, "op": "push", "jobs": [{ "kind": "k" }] });
        connection.send_bytes(&framed(&to_map(&push)).repeat(3));
        connection.shut_write();
        // Whole frames, then the end; a torn one is an error here.
        while connection.try_frame().expect("no torn frame").is_some() {}
    }
    let mut watcher = Connection::open(server.address);
    assert_eq!(counters(&mut watcher, "default")["pushed"], 150);
}
