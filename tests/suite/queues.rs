//! Queues as a whole, over the wire: purges, pauses with an end, quotas, and all of it over a
//! SIGKILL; `ganger queues`.

use std::process::Command;

use serde_json::{Value, json};
use support::{Connection, InProcess, Process};

use crate::{counters, lease};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

const JOBS: usize = 3_000;

fn fill(connection: &mut Connection) {
    for _ in 0..JOBS / 1_000 {
        let jobs: Vec<Value> = (0..1_000)
            .map(|_| json!({ "kind": "k", "queue": "q" }))
            .collect();
        connection.ok("push", json!({ "jobs": jobs }));
    }
}

#[test]
fn a_purge_removes_every_job_and_what_is_pushed_behind_it_stays() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    fill(&mut worker);
    let held = worker.fetch("q").expect("a job");
    let removed = worker.ok("queue_purge", json!({ "queue": "q" }));
    assert_eq!(removed, json!({ "removed": JOBS }));
    assert_eq!(worker.fetch("q"), None);
    let error = worker.err("job_get", json!({ "job": held["id"] }));
    assert_eq!(error["code"], "not_found");
    let acked = worker.ok("ack", json!({ "leases": [lease(&held)] }));
    assert_eq!(acked["results"][0]["err"]["state"], "gone");
    let new = worker.push(json!({ "kind": "k", "queue": "q" }));
    assert_eq!(worker.fetch("q").expect("a job")["id"], new.as_str());
    let counted = counters(&mut worker, "q");
    assert_eq!(counted["pushed"], JOBS + 1);
    assert_eq!(counted["deleted"], JOBS);
}

#[test]
fn a_quota_refuses_what_would_pass_it() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    connection.ok("queue_create", json!({ "queue": "q" }));
    let shown = connection.ok("queue_set", json!({ "queue": "q", "jobs_max": 1 }));
    assert_eq!(shown["settings"], json!({ "jobs_max": 1 }));
    connection.push(json!({ "kind": "k", "queue": "q" }));
    let job = json!({ "kind": "k", "queue": "q" });
    let pushed = connection.ok("push", json!({ "jobs": [job] }));
    let error = &pushed["results"][0]["err"];
    assert_eq!(error["code"], "quota_exceeded");
    assert_eq!((&error["limit"], &error["actual"]), (&json!(1), &json!(2)));
    let shown = connection.ok("queue_set", json!({ "queue": "q", "jobs_max": null }));
    assert_eq!(shown["settings"], json!({}));
    connection.push(json!({ "kind": "k", "queue": "q" }));
}

#[test]
fn a_pause_with_an_end_wakes_who_waits() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.push(json!({ "kind": "k", "queue": "q" }));
    worker.ok("queue_pause", json!({ "queues": ["q"], "for_ms": 300 }));
    assert_eq!(worker.fetch("q"), None);
    let waiting = worker.send("fetch", json!({ "queues": ["q"], "wait_ms": 15_000 }));
    let reply = worker.reply(waiting).expect("a reply");
    assert_eq!(reply["jobs"][0]["queue"], "q");
}

/// Runs a command to its end; what it said to stdout.
fn run(args: &[&str]) -> String {
    let done = Command::new(EXECUTABLE).args(args).output();
    let done = done.expect("the executable is there");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
    text(&done.stdout)
}

#[test]
fn a_kill_during_the_sweep_brings_no_job_back_and_leaves_a_sound_store() {
    let place = tempfile::tempdir().expect("a directory");
    let data = place.path().join("data");
    let start = || Process::start(EXECUTABLE, &data, &[]).expect("started");
    let server = start();
    let mut connection = Connection::open(server.address);
    fill(&mut connection);
    connection.ok("queue_purge", json!({ "queue": "q" }));
    let new = connection.push(json!({ "kind": "k", "queue": "q" }));
    server.kill();
    let path = data.to_str().expect("a path");
    for _ in 0..2 {
        let health: Value =
            serde_json::from_str(&run(&["doctor", "--json", "--data-dir", path])).expect("JSON");
        assert_eq!(health["ailments_count"], 0, "{health}");
        let server = start();
        let counted = counters(&mut Connection::open(server.address), "q");
        assert_eq!(counted["ready"], 1);
        assert_eq!(counted["deleted"], JOBS);
        server.kill();
    }
    let file = place.path().join("export.jsonl");
    run(&["export", "--data-dir", path, file.to_str().expect("a path")]);
    let exported = std::fs::read_to_string(file).expect("an export");
    let jobs = exported.lines().filter(|line| line.contains(&new)).count();
    assert_eq!((jobs, exported.matches("\"pushed_at\"").count()), (1, 1));
    let server = start();
    let mut worker = Connection::worker(server.address);
    assert_eq!(worker.fetch("q").expect("a job")["id"], new.as_str());
    assert_eq!(worker.fetch("q"), None);
}

#[test]
fn queues_are_managed_from_the_command_line() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let queues = |args: &[&str]| run(&[&["queues"], args, &["--url", &url]].concat());
    let json = |text: String| -> Value { serde_json::from_str(&text).expect("JSON") };
    queues(&["create", "q"]);
    let shown = json(queues(&[
        "set",
        "q",
        "--jobs-max",
        "5",
        "--timeout",
        "10m",
        "--json",
    ]));
    let settings = json!({ "jobs_max": 5, "timeout_ms": 600_000 });
    assert_eq!(shown["settings"], settings);
    queues(&["pause", "q", "--for", "10m"]);
    let shown = queues(&["show", "q"]);
    assert!(
        shown.contains("paused until") && shown.contains("jobs max"),
        "{shown}"
    );
    queues(&["resume", "q"]);
    Connection::open(server.address).push(json!({ "kind": "k", "queue": "q" }));
    let purged = json(queues(&["purge", "q", "--yes", "--json"]));
    assert_eq!(purged, json!({ "removed": 1 }));
    queues(&["delete", "q"]);
    assert!(!queues(&["list"]).contains('5'));
}

#[path = "../../client/rust/examples/queues.rs"]
#[expect(dead_code, reason = "its main is for whoever runs it by hand")]
mod example;

#[test]
fn the_example_bounds_pauses_and_purges_a_queue() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let removed = runtime.block_on(async {
        let options = ganger_client::ClientOptions::from_url(&url).expect("a url");
        let client = ganger_client::Client::connect(options).await;
        let client = client.expect("connected");
        let removed = example::manage(&client).await.expect("managed");
        client.close().await;
        removed
    });
    assert_eq!(removed, 3);
}
