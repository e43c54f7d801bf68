//! Batches over the wire: what is counted, what is called, over restarts, kills and repairs.

use std::{path::Path, process::Command};

use serde_json::{Value, json};
use support::{Connection, InProcess, Process};

use crate::{counters, essence, lease, lease_with};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

/// Opens a batch that calls the queue `calls` for every event.
fn open(connection: &mut Connection) -> String {
    let call = json!({ "kind": "call", "queue": "calls" });
    let batch = json!({ "on_complete": call, "on_success": call, "on_settled": call });
    let view = connection.ok("batch_open", batch);
    view["id"].as_str().expect("an id").to_owned()
}

fn add(connection: &mut Connection, batch: &str, count: usize) {
    let job = json!({ "kind": "k", "queue": "work", "batch": batch });
    let reply = connection.ok("push", json!({ "jobs": vec![job; count] }));
    let results = reply["results"].as_array().expect("results");
    assert!(
        results.iter().all(|result| result["id"].is_string()),
        "{reply}"
    );
}

fn commit(connection: &mut Connection, batch: &str) -> Value {
    connection.ok("batch_commit", json!({ "batch": batch }))
}

fn show(connection: &mut Connection, batch: &str) -> Value {
    connection.ok("batch_show", json!({ "batch": batch }))
}

fn ack(worker: &mut Connection, job: &Value) {
    worker.ok("ack", json!({ "leases": [lease(job)] }));
}

/// The events whose callbacks wait, in their order; they are acked.
fn called(worker: &mut Connection, batch: &str) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(job) = worker.fetch("calls") {
        ack(worker, &job);
        let header = |name: &str| job["headers"][name].as_str().expect("a header").to_owned();
        assert_eq!(header("ganger-batch"), batch);
        events.push(header("ganger-batch-event"));
    }
    events
}

const ALL: [&str; 3] = ["complete", "success", "settled"];

#[test]
fn callbacks_come_when_all_jobs_are_done_and_wake_who_waits() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let batch = open(&mut worker);
    add(&mut worker, &batch, 3);
    let view = commit(&mut worker, &batch);
    assert_eq!(
        (&view["state"], &view["counters"]["pending"]),
        (&json!("committed"), &json!(3))
    );
    let mut waiting = Connection::worker(server.address);
    let wait = json!({ "queues": ["calls"], "wait_ms": 60_000 });
    let wait = waiting.send("fetch", wait);
    for _ in 0..3 {
        let job = worker.wait("work");
        assert_eq!(job["batch"], batch);
        ack(&mut worker, &job);
    }
    let reply = waiting.reply(wait).expect("a callback");
    let first = &reply["jobs"][0];
    assert_eq!(first["headers"]["ganger-batch-event"], "complete");
    assert_eq!(called(&mut worker, &batch), ALL[1..]);
    let view = show(&mut worker, &batch);
    assert_eq!(view["state"], "settled");
    assert_eq!(view["on_complete"]["job"], first["id"]);
    assert_eq!(view["counters"]["done"], 3);
}

#[test]
fn what_is_wrong_is_named() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let batch = open(&mut worker);
    add(&mut worker, &batch, 1);
    commit(&mut worker, &batch);
    let push = |batch: &str| json!({ "jobs": [{ "kind": "k", "batch": batch }] });
    let refused = |worker: &mut Connection, fields: Value| {
        worker.ok("push", fields)["results"][0]["err"].clone()
    };
    let late = refused(&mut worker, push(&batch));
    assert_eq!(essence(&late), ("conflict", "batch", None, None));
    let unknown = refused(&mut worker, push("zzzz"));
    assert_eq!(essence(&unknown), ("not_found", "batch", None, None));
    let malformed = worker.err("push", push("no batch"));
    assert_eq!(
        essence(&malformed),
        ("bad_request", "jobs[0].batch", None, None)
    );
    let (mut other, _) = Connection::hello(server.address, json!({ "namespace": "other" }));
    let foreign = refused(&mut other, push(&batch));
    assert_eq!(essence(&foreign), ("not_found", "batch", None, None));
    let large = json!({ "kind": "k", "payload": support::bin(vec![0; 6_000]) });
    let error = worker.err("batch_open", json!({ "on_settled": large }));
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("too_large"), &json!("on_settled"))
    );
    let timed = json!({ "kind": "k", "delay_ms": 1 });
    let error = worker.err("batch_open", json!({ "on_success": timed }));
    assert_eq!(
        essence(&error),
        ("bad_request", "on_success.delay_ms", None, None)
    );
}

#[test]
fn only_a_running_job_adds_to_its_batch_after_the_commit() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let batch = open(&mut worker);
    add(&mut worker, &batch, 1);
    commit(&mut worker, &batch);
    let job = worker.wait("work");
    let more = json!({
        "jobs": [{ "kind": "k", "queue": "work", "batch": batch }],
        "by": lease(&job),
    });
    // Any connection may say so: the lease is the proof.
    let mut producer = Connection::open(server.address);
    let reply = producer.ok("push", more.clone());
    assert!(reply["results"][0]["id"].is_string(), "{reply}");
    ack(&mut worker, &job);
    let late = producer.ok("push", more)["results"][0]["err"].clone();
    assert_eq!(essence(&late), ("lease_lost", "by", None, None));
    assert!(called(&mut worker, &batch).is_empty());
    let job = worker.wait("work");
    ack(&mut worker, &job);
    assert_eq!(called(&mut worker, &batch), ALL);
}

#[test]
fn over_kills_each_event_calls_once_and_nothing_is_miscounted() {
    let place = tempfile::tempdir().expect("a directory");
    let start = || Process::start(EXECUTABLE, place.path(), &[]).expect("it starts");
    let mut server = start();
    let mut worker = Connection::worker(server.address);
    let outer = worker.ok("batch_open", json!({}))["id"].clone();
    let call = json!({ "kind": "call", "queue": "calls" });
    let inner = json!({
        "parent": outer, "on_complete": call, "on_success": call, "on_settled": call,
    });
    let inner = worker.ok("batch_open", inner)["id"].clone();
    let (outer, inner) = (
        outer.as_str().expect("an id"),
        inner.as_str().expect("an id"),
    );
    add(&mut worker, inner, 6);
    commit(&mut worker, outer);
    for round in 0..3 {
        let job = worker.wait("work");
        ack(&mut worker, &job);
        // This one comes again: it counts when it is acked.
        worker.wait("work");
        server.kill();
        server = start();
        worker = Connection::worker(server.address);
        let view = show(&mut worker, inner);
        assert_eq!(view["counters"]["done"], round + 1);
        assert_eq!(view["counters"]["total"], 6);
        // The lost sessions of dead workers end within their ttl, and free what they had.
    }
    commit(&mut worker, inner);
    for _ in 0..3 {
        let job = worker.wait("work");
        ack(&mut worker, &job);
    }
    // What was answered is durable, and so is what it led to.
    server.kill();
    server = start();
    let mut worker = Connection::worker(server.address);
    assert_eq!(called(&mut worker, inner), ALL);
    assert_eq!(counters(&mut worker, "calls")["pushed"], 3);
    let view = show(&mut worker, outer);
    assert_eq!(
        (&view["state"], &view["counters"]["done"]),
        (&json!("settled"), &json!(1))
    );
    server.terminate();
    let health = ganger(place.path(), &["doctor", "--json", "--data-dir", "."]);
    assert_eq!(health["ailments_count"], 0, "{health}");
}

#[test]
fn a_revived_job_lets_its_batch_succeed_later_over_a_restart() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let batch = open(&mut worker);
    add(&mut worker, &batch, 2);
    commit(&mut worker, &batch);
    let dead = worker.wait("work");
    let fail = lease_with(&dead, json!({ "dead": true }));
    worker.ok("fail", json!({ "leases": [fail] }));
    let job = worker.wait("work");
    ack(&mut worker, &job);
    assert_eq!(called(&mut worker, &batch), ["complete", "settled"]);
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    let settled = worker.ok("batch_list", json!({ "settled": true }));
    assert_eq!(settled["batches"][0]["id"], batch);
    worker.ok("dead_revive", json!({ "jobs": [dead["id"]] }));
    assert_eq!(show(&mut worker, &batch)["state"], "committed");
    let job = worker.wait("work");
    assert_eq!(job["id"], dead["id"]);
    ack(&mut worker, &job);
    assert_eq!(called(&mut worker, &batch), ["success"]);
}

/// Runs the executable in a directory; its line of JSON.
fn ganger(place: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(EXECUTABLE)
        .current_dir(place)
        .args(arguments)
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{arguments:?}: {text}{errors}"))
}

#[test]
fn an_export_imports_to_batches_that_go_on() {
    let place = tempfile::tempdir().expect("a directory");
    let server = Process::start(EXECUTABLE, &place.path().join("data"), &[]).expect("it starts");
    let mut worker = Connection::worker(server.address);
    let batch = open(&mut worker);
    add(&mut worker, &batch, 3);
    let over = open(&mut worker);
    commit(&mut worker, &over);
    assert_eq!(called(&mut worker, &over), ALL);
    let tried = worker.wait("work");
    let fail = lease_with(&tried, json!({ "retry_in_ms": 0 }));
    worker.ok("fail", json!({ "leases": [fail] }));
    let job = worker.wait("work");
    ack(&mut worker, &job);
    commit(&mut worker, &batch);
    let before = show(&mut worker, &batch);
    worker.ok("goodbye", json!({}));
    server.terminate();
    let exported = ganger(
        place.path(),
        &["export", "x", "--json", "--data-dir", "data"],
    );
    assert_eq!(exported["batches"], 2);
    ganger(
        place.path(),
        &["import", "x", "--json", "--data-dir", "copy"],
    );
    let health = ganger(place.path(), &["doctor", "--json", "--data-dir", "copy"]);
    assert_eq!(health["ailments_count"], 0, "{health}");
    let server = Process::start(EXECUTABLE, &place.path().join("copy"), &[]).expect("it starts");
    let mut worker = Connection::worker(server.address);
    assert_eq!(show(&mut worker, &batch), before);
    assert_eq!(show(&mut worker, &over)["state"], "settled");
    while let Some(job) = worker.fetch("work") {
        ack(&mut worker, &job);
    }
    assert_eq!(called(&mut worker, &batch), ALL);
}

#[test]
fn the_command_line_opens_fills_shows_and_commits_a_batch() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let place = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        let arguments = [arguments, &["--json", "--url", &url]].concat();
        ganger(place.path(), &arguments)
    };
    let opened = run(&[
        "batches",
        "open",
        "--on-success",
        "publish",
        "--description",
        "tonight",
    ]);
    let batch = opened["id"].as_str().expect("an id");
    run(&["push", "render", "1", "--batch", batch]);
    let view = run(&["batches", "commit", batch]);
    assert_eq!(
        (&view["state"], &view["counters"]["total"]),
        (&json!("committed"), &json!(1))
    );
    let listed = run(&["batches", "list"]);
    assert_eq!(listed["batches"][0]["description"], "tonight");
    let mut worker = Connection::worker(server.address);
    let job = worker.wait("default");
    ack(&mut worker, &job);
    assert_eq!(worker.wait("default")["kind"], "publish");
    assert_eq!(run(&["batches", "show", batch])["state"], "settled");
    assert_eq!(
        run(&["batches", "list", "--settled"])["batches"][0]["id"],
        batch
    );
}

#[path = "../../client/rust/examples/batch.rs"]
#[expect(dead_code, reason = "its main is for whoever runs it by hand")]
mod example;

#[test]
fn the_example_renders_all_pages_and_binds_them() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(example::run(&url)).expect("it runs");
    let mut asking = Connection::open(server.address);
    let settled = asking.ok("batch_list", json!({ "settled": true }));
    let batch = &settled["batches"][0];
    assert_eq!(
        (&batch["counters"]["total"], &batch["counters"]["done"]),
        (&json!(4), &json!(4))
    );
    assert!(batch["on_success"]["job"].is_string());
}
