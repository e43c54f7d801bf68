//! Limits and fairness of a real server: slots, rates, lanes and sequences, over restarts too, and from
//! the command line.

use std::process::Command;

use ganger_server::clock::Stopwatch;
use serde_json::{Value, json};
use support::{Connection, InProcess, Process};

use crate::{lease, lease_with};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

/// Runs a command to its end; what it said to stdout.
fn run(args: &[&str]) -> String {
    let done = Command::new(EXECUTABLE).args(args).output();
    let done = done.expect("the executable is there");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
    text(&done.stdout)
}

fn push(connection: &mut Connection, key: &str, count: usize) {
    let jobs: Vec<Value> = (0..count)
        .map(|_| json!({ "kind": key, "key": key, "queue": "q" }))
        .collect();
    connection.ok("push", json!({ "jobs": jobs }));
}

/// The keys of what a fetch gets at once.
fn fetched(worker: &mut Connection, max: u32) -> Vec<Value> {
    let reply = worker.ok("fetch", json!({ "queues": ["q"], "max": max }));
    reply["jobs"].as_array().cloned().unwrap_or_default()
}

fn of_key(jobs: &[Value], key: &str) -> usize {
    jobs.iter().filter(|job| job["key"] == key).count()
}

#[test]
fn a_key_at_its_limit_waits_for_a_slot_and_a_restart_gives_none() {
    let server = InProcess::start();
    let hello = json!({ "session": {} });
    let (mut worker, welcomed) = Connection::hello(server.address, hello);
    worker.ok("limit_set", json!({ "key": "t:*", "max_running": 2 }));
    push(&mut worker, "t:a", 5);
    push(&mut worker, "t:b", 1);
    let jobs = fetched(&mut worker, 10);
    assert_eq!((of_key(&jobs, "t:a"), of_key(&jobs, "t:b")), (2, 1));
    assert!(fetched(&mut worker, 10).is_empty());

    let session = &welcomed["session"];
    let held: Vec<Value> = jobs.iter().map(lease).collect();
    let server = server.restart();
    let resume = json!({ "session": { "resume": {
        "id": session["id"],
        "secret": session["secret"],
        "held": held,
    } } });
    let (mut worker, _) = Connection::hello(server.address, resume);
    assert!(fetched(&mut worker, 10).is_empty(), "two are running");
    let first = jobs.iter().find(|job| job["key"] == "t:a").map(lease);
    worker.ok("ack", json!({ "leases": [first] }));
    assert_eq!(of_key(&fetched(&mut worker, 10), "t:a"), 1);
}

#[test]
fn a_waiting_fetch_is_woken_by_a_slot_and_by_a_token() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut other = Connection::worker(server.address);
    worker.ok("limit_set", json!({ "queue": "q", "max_running": 1 }));
    push(&mut worker, "a", 2);
    let job = fetched(&mut worker, 1).remove(0);
    let waiting = other.send("fetch", json!({ "queues": ["q"], "wait_ms": 15_000 }));
    worker.ok("ack", json!({ "leases": [lease(&job)] }));
    let reply = other.reply(waiting).expect("a reply");
    assert_eq!(reply["jobs"][0]["key"], "a");

    worker.ok("limit_delete", json!({ "queue": "q" }));
    let rate = json!({ "n": 1, "per_ms": 200 });
    worker.ok("limit_set", json!({ "key": "r", "rate": rate }));
    push(&mut worker, "r", 2);
    worker.wait("q");
    let begun = Stopwatch::start();
    worker.wait("q");
    assert!(begun.elapsed().as_millis() >= 100, "{:?}", begun.elapsed());
}

#[test]
fn a_key_with_many_jobs_delays_no_others_before_and_after_a_restart() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    push(&mut worker, "big", 500);
    push(&mut worker, "small", 10);
    // The first ones came in order, before it was known how many there would be.
    assert_eq!(of_key(&fetched(&mut worker, 64), "big"), 64);
    let jobs = fetched(&mut worker, 20);
    assert!(of_key(&jobs, "small") >= 9, "{}", of_key(&jobs, "small"));

    push(&mut worker, "late", 10);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    let jobs = fetched(&mut worker, 400);
    let last = jobs.iter().rposition(|job| job["key"] == "late");
    assert_eq!(of_key(&jobs, "late"), 10);
    assert!(last < Some(160), "{last:?}");
}

#[test]
fn a_retrying_job_of_a_sequence_keeps_the_others_back_over_a_restart() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.ok("limit_set", json!({ "key": "s", "sequence": true }));
    push(&mut worker, "s", 3);
    let jobs = fetched(&mut worker, 10);
    assert_eq!(jobs.len(), 1);
    let failed = lease_with(&jobs[0], json!({ "retry_in_ms": 300 }));
    worker.ok("fail", json!({ "leases": [failed] }));
    assert!(fetched(&mut worker, 10).is_empty());
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    let again = worker.wait("q");
    assert_eq!(
        (&again["id"], &again["attempt"]),
        (&jobs[0]["id"], &json!(2))
    );
    worker.ok("ack", json!({ "leases": [lease(&again)] }));
    assert_eq!(worker.wait("q")["attempt"], 1);
}

#[test]
fn wrong_limits_are_refused_by_their_field() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let long = "k".repeat(129);
    for (fields, field) in [
        (json!({ "max_running": 1 }), "queue"),
        (json!({ "key": "a", "queue": "b", "max_running": 1 }), "key"),
        (json!({ "key": "a" }), "max_running"),
        (json!({ "key": "a*b", "weight": 1 }), "key"),
        (json!({ "key": "", "weight": 1 }), "key"),
        (json!({ "key": long, "weight": 1 }), "key"),
        (json!({ "queue": "a b", "max_running": 1 }), "queue"),
        (json!({ "queue": "a", "max_running": -1 }), "max_running"),
        (json!({ "queue": "a", "max_running": 0 }), "max_running"),
        (json!({ "queue": "a", "weight": 2 }), "weight"),
        (
            json!({ "key": "a", "rate": { "n": 0, "per_ms": 1 } }),
            "rate.n",
        ),
        (
            json!({ "key": "a", "rate": { "n": 1, "per_ms": -5 } }),
            "rate.per_ms",
        ),
        (json!({ "key": "a", "rate": { "n": 1 } }), "rate.per_ms"),
        (
            json!({ "key": "a", "sequence": true, "max_running": 2 }),
            "max_running",
        ),
    ] {
        let error = connection.err("limit_set", fields.clone());
        assert_eq!(
            (&error["code"], &error["field"]),
            (&json!("bad_request"), &json!(field))
        );
    }
    let error = connection.err("limit_show", json!({ "key": "none" }));
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("not_found"), &json!("key"))
    );
    let error = connection.err("limit_list", json!({ "cursor": "x" }));
    assert_eq!(error["field"], "cursor");
    let job = json!({ "kind": "k", "key": long });
    let error = connection.err("push", json!({ "jobs": [job] }));
    assert_eq!(error["field"], "jobs[0].key");
}

#[test]
fn limits_and_lanes_survive_export_import_and_the_doctor() {
    let place = tempfile::tempdir().expect("a directory");
    let path = |name: &str| place.path().join(name).to_str().expect("a path").to_owned();
    let (data, file, second) = (path("data"), path("export.jsonl"), path("second"));
    let start = |data: &str| Process::start(EXECUTABLE, data.as_ref(), &[]).expect("started");
    let server = start(&data);
    let mut worker = Connection::worker(server.address);
    worker.ok("limit_set", json!({ "key": "s", "sequence": true }));
    worker.ok("limit_set", json!({ "key": "big", "weight": 3 }));
    worker.ok("limit_set", json!({ "queue": "q*", "max_running": 100 }));
    push(&mut worker, "big", 200);
    push(&mut worker, "s", 3);
    let mut jobs = fetched(&mut worker, 100);
    jobs.retain(|job| job["key"] == "s");
    let failed = lease_with(&jobs[0], json!({ "retry_in_ms": 1 }));
    worker.ok("fail", json!({ "leases": [failed] }));
    server.kill();
    run(&["doctor", "--data-dir", &data]);
    run(&["export", "--data-dir", &data, &file]);
    run(&["import", "--data-dir", &second, &file]);
    run(&["doctor", "--data-dir", &second]);

    let server = start(&second);
    let mut worker = Connection::worker(server.address);
    let limits = worker.ok("limit_list", json!({}));
    assert_eq!(limits["limits"].as_array().map(Vec::len), Some(3));
    let mut order = Vec::new();
    for _ in 0..203 - 99 {
        let job = worker.wait("q");
        worker.ok("ack", json!({ "leases": [lease(&job)] }));
        if job["key"] == "s" {
            order.push(job);
        }
    }
    assert_eq!(
        order[0]["id"], jobs[0]["id"],
        "the one that retries comes first"
    );
}

#[test]
fn limits_are_managed_from_the_command_line() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let limits = |args: &[&str]| run(&[&["limits"], args, &["--url", &url]].concat());
    let json = |text: String| -> Value { serde_json::from_str(&text).expect("JSON") };
    let set = [
        "set",
        "--key",
        "t:*",
        "--max-running",
        "5",
        "--rate",
        "100/1m",
        "--json",
    ];
    let shown = json(limits(&set));
    let rate = json!({ "n": 100, "per_ms": 60_000 });
    assert_eq!(
        shown,
        json!({ "key": "t:*", "max_running": 5, "rate": rate })
    );
    limits(&["set", "-q", "mail", "--max-running", "3"]);
    let shown = limits(&["show", "-q", "mail"]);
    assert!(shown.contains("queue mail"), "{shown}");
    let listed = json(limits(&["list", "--json"]));
    assert_eq!(listed["limits"][1]["key"], "t:*");
    limits(&["delete", "-q", "mail"]);
    let listed = limits(&["list"]);
    assert!(
        !listed.contains("mail") && listed.contains("100/1m"),
        "{listed}"
    );
    run(&["push", "k", "--key", "t:a", "--url", &url]);
    let job = Connection::worker(server.address).wait("default");
    assert_eq!(job["key"], "t:a");
}

#[path = "../../client/rust/examples/limits.rs"]
#[expect(dead_code, reason = "its main is for whoever runs it by hand")]
mod example;

#[test]
fn the_example_sets_shows_and_deletes_limits() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let limits = runtime.block_on(async {
        let options = ganger_client::ClientOptions::from_url(&url).expect("a url");
        let client = ganger_client::Client::connect(options).await;
        let client = client.expect("connected");
        let limits = example::limit(&client).await.expect("limited");
        client.close().await;
        limits
    });
    assert_eq!(limits, 2);
}
