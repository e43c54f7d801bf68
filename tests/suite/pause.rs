//! Pause and resume of queues.

use serde_json::json;
use support::{Connection, InProcess};

use crate::lease;

#[test]
fn a_paused_queue_takes_pushes_and_answers_and_gives_no_leases() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.push(json!({ "kind": "k", "queue": "q" }));
    let job = worker.fetch("q").expect("a job");
    assert_eq!(
        worker.ok("queue_pause", json!({ "queues": ["q"] })),
        json!({})
    );
    let id = worker.push(json!({ "kind": "k", "queue": "q" }));
    assert_eq!(worker.fetch("q"), None);
    worker.ok("ack", json!({ "leases": [lease(&job)] }));
    let shown = worker.ok("queue_list", json!({ "pattern": "q" }));
    assert_eq!(shown["queues"][0]["paused"], true);
    worker.ok("queue_resume", json!({ "queues": ["q"] }));
    assert_eq!(worker.fetch("q").expect("a job")["id"], id.as_str());
}

#[test]
fn a_fetch_that_waits_on_a_paused_queue_goes_on_waiting_until_it_is_resumed() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut other = Connection::open(server.address);
    other.push(json!({ "kind": "k", "queue": "other" }));
    other.push(json!({ "kind": "k", "queue": "q" }));
    other.ok("queue_pause", json!({ "queues": ["q"] }));
    let waiting = worker.send("fetch", json!({ "queues": ["q"], "wait_ms": 15_000 }));
    worker.ok("heartbeat", json!({}));
    other.ok("queue_resume", json!({ "queues": ["q"] }));
    let reply = worker.reply(waiting).expect("a reply");
    assert_eq!(reply["jobs"][0]["queue"], "q");
}

#[test]
fn a_pause_outlives_the_server() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.push(json!({ "kind": "k", "queue": "q" }));
    worker.ok("queue_pause", json!({ "queues": ["q"] }));
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    assert_eq!(worker.fetch("q"), None);
    worker.ok("queue_resume", json!({ "queues": ["q"] }));
    assert!(worker.fetch("q").is_some());
}

#[test]
fn a_queue_that_is_not_there_cannot_be_paused() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let error = connection.err("queue_pause", json!({ "queues": ["nowhere"] }));
    assert_eq!(error["code"], "not_found");
}
