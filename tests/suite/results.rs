//! Progress, results that are kept for a time, and waits for them, over a real server and its
//! restarts.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use support::{Connection, InProcess, Process, bin};

use crate::{counters, essence, lease, lease_with};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

const HOUR: u64 = 3_600_000;

fn wait(connection: &mut Connection, job: &str, wait_ms: u64) -> Value {
    connection.ok("wait", json!({ "job": job, "wait_ms": wait_ms }))
}

fn progress(worker: &mut Connection, job: &Value, fields: Value) {
    let leases = json!([lease_with(job, fields)]);
    let reply = worker.ok("progress", json!({ "leases": leases }));
    assert_eq!(reply["results"], json!([{}]));
}

fn ack(worker: &mut Connection, job: &Value, fields: Value) {
    let reply = worker.ok("ack", json!({ "leases": [lease_with(job, fields)] }));
    assert_eq!(reply["results"], json!([{}]));
}

#[test]
fn a_cursor_is_there_for_the_next_attempt_after_a_restart() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(
        json!({ "kind": "k", "backoff": { "curve": "fixed", "base_ms": 0, "jitter_ms": 0 } }),
    );
    let job = worker.wait("default");
    assert_eq!(job.get("cursor"), None);
    let said = json!({ "percent": 40, "note": "row 400", "cursor": bin(vec![7; 60_000]) });
    progress(&mut worker, &job, said);
    drop(worker);

    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    let view = worker.ok("job_get", json!({ "job": id }));
    assert_eq!(
        (&view["state"], &view["percent"], &view["note"]),
        (&json!("leased"), &json!(40), &json!("row 400"))
    );
    let reply = worker.ok("fail", json!({ "leases": [lease(&job)] }));
    assert_eq!(reply["results"][0]["state"], "scheduled");
    let again = worker.wait("default");
    assert_eq!((&again["id"], &again["attempt"]), (&json!(id), &json!(2)));
    assert_eq!(again["cursor"], bin(vec![7; 60_000]));
    let stale = worker.ok("progress", json!({ "leases": [lease(&job)] }));
    assert_eq!(stale["results"][0]["err"]["code"], "lease_lost");
}

#[test]
fn a_result_is_kept_as_long_as_the_job_over_a_restart() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(json!({ "kind": "k", "retain_ms": HOUR }));
    let job = worker.wait("default");
    ack(
        &mut worker,
        &job,
        json!({ "result": bin(vec![1; 256 << 10]) }),
    );
    drop(worker);
    let server = server.restart();
    let mut other = Connection::open(server.address);
    let reply = wait(&mut other, &id, 60_000);
    assert_eq!(
        (&reply["state"], &reply["result"]),
        (&json!("done"), &bin(vec![1; 256 << 10]))
    );
    let view = other.ok("job_get", json!({ "job": id }));
    let kept =
        view["kept_until"].as_u64().expect("a time") - view["closed_at"].as_u64().expect("a time");
    assert_eq!((&view["state"], kept), (&json!("done"), HOUR));
    let counters = counters(&mut other, "default");
    assert_eq!(
        (&counters["done"], &counters["done_kept"]),
        (&json!(1), &json!(1))
    );
}

#[test]
fn retention_ends_by_itself_also_after_a_restart() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(json!({ "kind": "k" }));
    let job = worker.wait("default");
    ack(
        &mut worker,
        &job,
        json!({ "result": bin(b"r"), "retain_ms": 300 }),
    );
    assert_eq!(worker.ok("job_get", json!({ "job": id }))["state"], "done");
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    // A job that becomes ready behind the end is granted behind it.
    worker.push(json!({ "kind": "k", "queue": "later", "delay_ms": 350 }));
    worker.wait("later");
    assert_eq!(
        worker.err("job_get", json!({ "job": id }))["code"],
        "not_found"
    );
    let counters = counters(&mut worker, "default");
    assert_eq!(
        (&counters["done"], &counters["done_kept"]),
        (&json!(1), &json!(0))
    );
}

#[test]
fn whoever_waits_is_told_in_the_moment_in_which_a_job_ends_that_is_not_kept() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut others = [
        Connection::open(server.address),
        Connection::open(server.address),
    ];
    let id = worker.push(json!({ "kind": "k" }));
    let asked = others
        .each_mut()
        .map(|other| other.send("wait", json!({ "job": id, "wait_ms": 60_000 })));
    let job = worker.wait("default");
    for other in &mut others {
        // What comes behind a wait on its connection does not wait for it.
        other.ok("stats", json!({}));
    }
    let result = json!({ "result": bin(b"42") });
    ack(&mut worker, &job, result);
    for (other, id) in others.iter_mut().zip(asked) {
        let reply = other.reply(id).expect("answered");
        assert_eq!(
            (&reply["state"], &reply["result"]),
            (&json!("done"), &bin(b"42"))
        );
    }
    let [other, _] = &mut others;
    assert_eq!(other.err("wait", json!({ "job": id }))["code"], "not_found");
    assert_eq!(
        other.err("job_get", json!({ "job": id }))["code"],
        "not_found"
    );
}

#[test]
fn a_wait_that_passes_says_how_the_job_stands() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(json!({ "kind": "k" }));
    assert_eq!(wait(&mut worker, &id, 0), json!({ "state": "ready" }));
    let job = worker.wait("default");
    progress(&mut worker, &job, json!({ "percent": 30 }));
    let reply = wait(&mut worker, &id, 50);
    assert_eq!(reply, json!({ "state": "leased", "percent": 30 }));
    worker.ok(
        "fail",
        json!({ "leases": [lease_with(&job, json!({ "dead": true, "message": "no" }))] }),
    );
    let reply = wait(&mut worker, &id, 60_000);
    assert_eq!(
        (
            &reply["state"],
            &reply["reason"],
            &reply["error"]["message"]
        ),
        (&json!("dead"), &json!("worker"), &json!("no"))
    );
}

#[test]
fn cancelled_and_expired_jobs_stay_visible_by_the_default_of_their_queue() {
    let server = InProcess::start();
    let mut client = Connection::open(server.address);
    client.ok("queue_create", json!({ "queue": "default" }));
    let set = json!({ "queue": "default", "retain_ms": HOUR, "retained_max": 2 });
    let reply = client.ok("queue_set", set);
    assert_eq!(
        reply["settings"],
        json!({ "retain_ms": HOUR, "retained_max": 2 })
    );
    let ids: Vec<String> = (0..3)
        .map(|_| client.push(json!({ "kind": "k", "delay_ms": HOUR })))
        .collect();
    for id in &ids {
        client.ok("job_cancel", json!({ "jobs": [id] }));
    }
    let expired = client.push(json!({ "kind": "k", "expires_at": 1 }));
    let mut worker = Connection::worker(server.address);
    assert_eq!(worker.fetch("default"), None);
    assert_eq!(
        client.ok("job_get", json!({ "job": expired }))["state"],
        "expired"
    );
    drop(worker);
    let server = server.restart();
    let mut client = Connection::open(server.address);
    // The oldest has gone before anything else is answered behind it.
    let mut states = ids
        .iter()
        .map(|id| client.ask("job_get", json!({ "job": id })));
    let states: Vec<_> = states
        .by_ref()
        .map(|it| it.map(|view| view["state"].clone()).ok())
        .collect();
    assert_eq!(
        states,
        [None, Some(json!("cancelled")), Some(json!("cancelled"))]
    );
    let counters = counters(&mut client, "default");
    assert_eq!(
        (
            &counters["cancelled"],
            &counters["cancelled_kept"],
            &counters["expired_kept"]
        ),
        (&json!(3), &json!(2), &json!(1))
    );
    assert_eq!(
        client.ok("queue_purge", json!({ "queue": "default" }))["removed"],
        3
    );
}

#[test]
fn figures_out_of_range_are_refused_by_their_field() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.push(json!({ "kind": "k" }));
    let job = worker.wait("default");
    let mut with =
        |op: &str, fields: Value| worker.err(op, json!({ "leases": [lease_with(&job, fields)] }));
    let error = with("progress", json!({ "percent": 101 }));
    assert_eq!(
        essence(&error),
        ("bad_request", "leases[0].percent", Some(100), Some(101))
    );
    let error = with("progress", json!({ "note": "x".repeat(1_025) }));
    assert_eq!(
        essence(&error),
        ("too_large", "leases[0].note", Some(1_024), Some(1_025))
    );
    let error = with("progress", json!({ "cursor": bin(vec![0; 65_537]) }));
    assert_eq!(
        essence(&error),
        ("too_large", "leases[0].cursor", Some(65_536), Some(65_537))
    );
    let error = with("ack", json!({ "result": bin(vec![0; 262_145]) }));
    assert_eq!(
        essence(&error),
        (
            "too_large",
            "leases[0].result",
            Some(262_144),
            Some(262_145)
        )
    );
    let id = job["id"].as_str().expect("an id");
    let error = worker.err("wait", json!({ "job": id, "wait_ms": 60_001 }));
    assert_eq!(
        essence(&error),
        ("bad_request", "wait_ms", Some(60_000), Some(60_001))
    );
}

fn ganger(place: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXECUTABLE);
    command.current_dir(place).args(arguments);
    command.output().expect("it runs")
}

fn json_of(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{errors}"))
}

#[test]
fn an_export_carries_results_cursors_and_retention_over() {
    let place = tempfile::tempdir().expect("a directory");
    let server = Process::start(EXECUTABLE, &place.path().join("data"), &[]).expect("it starts");
    let mut worker = Connection::worker(server.address);
    let done = worker.push(json!({ "kind": "k", "retain_ms": HOUR }));
    let job = worker.wait("default");
    ack(&mut worker, &job, json!({ "result": bin([0, 159, 7]) }));
    let running = worker.push(json!({ "kind": "k" }));
    let job = worker.wait("default");
    progress(
        &mut worker,
        &job,
        json!({ "percent": 5, "note": "n", "cursor": bin([159, 1]) }),
    );
    let shown = |client: &mut Connection, id: &str| client.ok("job_get", json!({ "job": id }));
    let before = shown(&mut worker, &done);
    drop(worker);
    assert_eq!(server.terminate().status.code(), Some(0));

    for arguments in [
        &["export", "lines", "--data-dir", "data"][..],
        &["import", "lines", "--data-dir", "copy"],
        &["doctor", "--repair", "--data-dir", "copy"],
    ] {
        assert!(
            ganger(place.path(), arguments).status.success(),
            "{arguments:?}"
        );
    }
    let health = ganger(place.path(), &["doctor", "--json", "--data-dir", "copy"]);
    assert_eq!(json_of(&health)["ailments_count"], 0);
    let server = Process::start(EXECUTABLE, &place.path().join("copy"), &[]).expect("it starts");
    let mut worker = Connection::worker(server.address);
    assert_eq!(shown(&mut worker, &done), before);
    let again = worker.wait("default");
    assert_eq!(
        (&again["id"], &again["cursor"]),
        (&json!(running), &bin([159, 1]))
    );
    let view = shown(&mut worker, &running);
    assert_eq!((&view["percent"], &view["note"]), (&json!(5), &json!("n")));
    assert_eq!(counters(&mut worker, "default")["done_kept"], 1);
}

#[test]
fn the_command_line_waits_for_a_job_and_shows_what_came_out_of_it() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let place = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| ganger(place.path(), &[arguments, &["--url", &url]].concat());
    let mut worker = Connection::worker(server.address);
    let fetch = worker.send("fetch", json!({ "queues": ["default"], "wait_ms": 30_000 }));
    let pushed = std::thread::scope(|scope| {
        let pushing =
            scope.spawn(|| run(&["push", "sum", "[1,2]", "--retain", "1h", "--wait", "30s"]));
        let job = worker.reply(fetch).expect("a job")["jobs"][0].clone();
        ack(&mut worker, &job, json!({ "result": bin(b"{\"sum\":3}") }));
        pushing.join().expect("it ran")
    });
    let text = String::from_utf8_lossy(&pushed.stdout).into_owned();
    let id = text.lines().next().expect("an id");
    assert!(
        text.contains("state      done") && text.contains("{\"sum\":3}"),
        "{text}"
    );
    let waited = run(&["jobs", "wait", id, "--json"]);
    assert_eq!(json_of(&waited)["result"], json!({ "sum": 3 }));
    assert_eq!(
        json_of(&run(&["jobs", "get", id, "--json"]))["result"],
        json!({ "sum": 3 })
    );

    let waiting = worker.push(json!({ "kind": "k" }));
    let late = run(&["jobs", "wait", &waiting, "--for", "20ms"]);
    assert_eq!(late.status.code(), Some(124));
    worker.ok("job_cancel", json!({ "jobs": [waiting] }));
    assert_eq!(run(&["jobs", "wait", &waiting]).status.code(), Some(3));
}

#[path = "../../client/rust/examples/progress.rs"]
#[expect(dead_code, reason = "its main is for whoever runs it by hand")]
mod example;

#[test]
fn the_example_goes_on_where_it_stopped_and_its_result_is_waited_for() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let imported = runtime.block_on(example::run(&url)).expect("it runs");
    assert_eq!(imported, 500, "the rest of a thousand rows");
}
