//! Cron entries over the wire: their times by a real clock, over restarts and kills.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::{Connection, InProcess, Process};

use crate::{counters, essence, lease};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

/// An entry that pushes every second into the queue `q`.
fn secondly(name: &str) -> Value {
    json!({ "name": name, "every_ms": 1_000, "job": { "kind": "k", "queue": "q" } })
}

/// The entry with further fields.
fn with(mut entry: Value, fields: Value) -> Value {
    let more = fields.as_object().expect("a map").clone();
    entry.as_object_mut().expect("a map").extend(more);
    entry
}

/// The nominal time of a granted job.
fn nominal(job: &Value) -> u64 {
    let at = job["headers"]["ganger-cron-at"].as_str();
    at.expect("a header").parse().expect("a time")
}

/// Waits for the next job of `q`, acks it, and answers with its nominal time.
fn next(worker: &mut Connection) -> u64 {
    let job = worker.wait("q");
    worker.ok("ack", json!({ "leases": [lease(&job)] }));
    nominal(&job)
}

#[test]
fn a_waiting_worker_gets_a_job_at_each_time() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let shown = worker.ok("cron_set", secondly("tick"));
    let expected = shown["next_at"].as_array().expect("times").clone();
    assert_eq!(expected.len(), 5);
    let job = worker.wait("q");
    assert_eq!(job["headers"]["ganger-cron"], "tick");
    assert_eq!(json!(nominal(&job)), expected[0]);
    assert!(
        job["pushed_at"].as_u64() >= Some(nominal(&job)),
        "never early"
    );
    assert_eq!(json!(next(&mut worker)), expected[1]);
    let shown = worker.ok("cron_show", json!({ "name": "tick", "next": 2 }));
    assert_eq!(shown["last_at"], expected[1]);
    assert_eq!(shown["next_at"], json!(expected[2..4]));
    assert_eq!(
        (&shown["pushed"], &shown["skipped"]),
        (&json!(2), &json!(0))
    );
}

#[test]
fn an_entry_outlives_the_server_and_no_time_comes_twice() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.ok("cron_set", secondly("tick"));
    worker.ok(
        "cron_set",
        with(secondly("asleep"), json!({ "paused": true })),
    );
    let first = next(&mut worker);
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    let second = next(&mut worker);
    assert!(second > first && second.is_multiple_of(1_000));
    let asleep = worker.ok("cron_show", json!({ "name": "asleep" }));
    assert_eq!(
        (&asleep["paused"], &asleep["pushed"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(asleep["next_at"], json!([]));
}

#[test]
fn over_kills_each_time_has_one_job() {
    let place = tempfile::tempdir().expect("a directory");
    let start = || Process::start(EXECUTABLE, place.path(), &[]).expect("it starts");
    let mut server = start();
    let entry = with(
        secondly("tick"),
        json!({ "misfire": "all", "misfire_max": 100 }),
    );
    Connection::open(server.address).ok("cron_set", entry);
    let mut jobs: BTreeSet<(u64, String)> = BTreeSet::new();
    for _ in 0..3 {
        let mut worker = Connection::worker(server.address);
        // The last one is not answered: it comes again, as the same job.
        let job = worker.wait("q");
        worker.ok("ack", json!({ "leases": [lease(&job)] }));
        let open = worker.wait("q");
        for job in [&job, &open] {
            let id = job["id"].as_str().expect("an id").to_owned();
            jobs.insert((nominal(job), id));
        }
        server.kill();
        server = start();
    }
    let times: BTreeSet<u64> = jobs.iter().map(|(at, _)| *at).collect();
    assert_eq!(times.len(), jobs.len(), "one job a time: {jobs:?}");
    let mut asking = Connection::open(server.address);
    asking.ok("cron_pause", json!({ "names": ["tick"] }));
    let shown = asking.ok("cron_show", json!({ "name": "tick" }));
    let counters = counters(&mut asking, "q");
    assert_eq!(
        counters["pushed"], shown["pushed"],
        "pushed and advanced are one"
    );
    let first = *times.first().expect("a time");
    let last = shown["last_at"].as_u64().expect("a time");
    assert_eq!(
        shown["pushed"],
        (last - first) / 1_000 + 1,
        "none is left out"
    );
}

#[test]
fn an_entry_is_paused_resumed_run_listed_and_deleted_by_name() {
    let server = InProcess::start();
    let mut asking = Connection::worker(server.address);
    let hourly = json!({
        "name": "hourly",
        "expression": " 0 * * * *",
        "timezone": "europe/berlin",
        "job": { "kind": "k", "queue": "q", "tags": ["t"] },
        "overlap": "queue_one",
    });
    let shown = asking.ok("cron_set", hourly.clone());
    assert_eq!(shown["expression"], "0 * * * *");
    assert_eq!(shown["timezone"], "Europe/Berlin");
    assert_eq!(
        asking.ok("cron_set", hourly),
        shown,
        "again changes nothing"
    );
    asking.ok(
        "cron_set",
        with(secondly("asleep"), json!({ "paused": true })),
    );
    let names = |reply: &Value| -> Vec<Value> {
        let entries = reply["entries"].as_array().expect("entries");
        entries.iter().map(|entry| entry["name"].clone()).collect()
    };
    let page = asking.ok("cron_list", json!({ "limit": 1 }));
    assert_eq!(names(&page), ["asleep"]);
    let page = asking.ok("cron_list", json!({ "cursor": page["cursor"] }));
    assert_eq!(names(&page), ["hourly"]);
    assert_eq!(page.get("cursor"), None);
    asking.ok("cron_pause", json!({ "names": ["hourly"] }));
    let paused = asking.ok("cron_show", json!({ "name": "hourly" }));
    assert_eq!(
        (&paused["paused"], &paused["next_at"]),
        (&json!(true), &json!([]))
    );
    let id = asking.ok("cron_run", json!({ "name": "hourly" }))["id"].clone();
    let job = asking.fetch("q").expect("a job");
    assert_eq!((&job["id"], &job["tags"]), (&id, &json!(["t"])));
    asking.ok("cron_resume", json!({ "names": ["hourly"] }));
    assert_eq!(asking.ok("cron_show", json!({ "name": "hourly" })), shown);
    asking.ok("cron_delete", json!({ "names": ["asleep", "hourly"] }));
    assert_eq!(asking.ok("cron_list", json!({})), json!({ "entries": [] }));
    let error = asking.err("cron_show", json!({ "name": "hourly" }));
    assert_eq!(essence(&error), ("not_found", "name", None, None));
}

#[test]
fn what_cannot_be_an_entry_is_refused_by_its_field_and_with_what_is_allowed() {
    let server = InProcess::start();
    let mut asking = Connection::open(server.address);
    let job = json!({ "kind": "k" });
    let cases = [
        (json!({}), "expression", "every_ms"),
        (
            json!({ "expression": "* * * *" }),
            "expression",
            "five fields",
        ),
        (
            json!({ "every_ms": 1_000, "job": { "kind": "k", "unique": { "key": "u" } } }),
            "job.unique",
            "overlap",
        ),
        (
            json!({ "expression": "61 * * * *" }),
            "expression",
            "0..=59",
        ),
        (
            json!({ "expression": "0 0 30 2 *" }),
            "expression",
            "four years",
        ),
        (
            json!({ "expression": "* * * * *", "timezone": "Mars" }),
            "timezone",
            "Europe/Berlin",
        ),
        (
            json!({ "every_ms": 999 }),
            "every_ms",
            "1000 to 31622400000",
        ),
        (
            json!({ "every_ms": 31_622_400_001_u64 }),
            "every_ms",
            "31622400000",
        ),
        (
            json!({ "every_ms": 1_000, "jitter_ms": 1_001 }),
            "jitter_ms",
            "0 to 1000",
        ),
        (
            json!({ "expression": "* * * * *", "jitter_ms": 86_400_001 }),
            "jitter_ms",
            "0 to 86400000",
        ),
        (
            json!({ "every_ms": 1_000, "misfire": "twice" }),
            "misfire",
            "once",
        ),
        (
            json!({ "every_ms": 1_000, "overlap": "never" }),
            "overlap",
            "queue_one",
        ),
        (
            json!({ "every_ms": 1_000, "misfire": "all", "misfire_max": 101 }),
            "misfire_max",
            "1 to 100",
        ),
        (
            json!({ "every_ms": 1_000, "job": { "kind": "k", "delay_ms": 1 } }),
            "job.delay_ms",
            "jitter_ms",
        ),
        (
            json!({ "every_ms": 1_000, "name": "no name" }),
            "name",
            "A-Z",
        ),
        (
            json!({ "every_ms": 1_000, "job": { "kind": "no kind" } }),
            "job.kind",
            "A-Z",
        ),
    ];
    for (fields, field, allowed) in cases {
        let entry = with(json!({ "name": "n", "job": job }), fields);
        let error = asking.err("cron_set", entry.clone());
        assert_eq!(
            (&error["code"], &error["field"]),
            (&json!("bad_request"), &json!(field))
        );
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(allowed), "{entry}: {message}");
    }
    assert_eq!(asking.ok("cron_list", json!({})), json!({ "entries": [] }));
}
