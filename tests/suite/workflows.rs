//! Workflows over the wire: who goes on, who is cancelled, what is shown, over restarts and exports.

use std::{path::Path, process::Command};

use serde_json::{Value, json};
use support::{Connection, InProcess, Process};

use crate::{counters, essence, lease, lease_with};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

/// A job whose name is its queue and its kind.
fn node(name: &str, after: &[&str]) -> Value {
    json!({ "kind": name, "queue": name, "name": name, "after": after })
}

fn with(mut node: Value, more: &Value) -> Value {
    let more = more.as_object().expect("fields");
    let fields = node.as_object_mut().expect("a job");
    fields.extend(more.clone());
    node
}

fn push(connection: &mut Connection, jobs: &Value) -> Vec<String> {
    let reply = connection.ok("push", json!({ "jobs": jobs, "atomic": true }));
    let results = reply["results"].as_array().expect("results");
    let ids = results.iter().map(|result| result["id"].as_str());
    ids.map(|id| id.expect("an id").to_owned()).collect()
}

fn ack(worker: &mut Connection, job: &Value) {
    worker.ok("ack", json!({ "leases": [lease(job)] }));
}

fn run(worker: &mut Connection, queue: &str) {
    let job = worker.wait(queue);
    ack(worker, &job);
}

fn state(connection: &mut Connection, job: &str) -> Value {
    connection.ok("job_get", json!({ "job": job }))["state"].clone()
}

fn states(connection: &mut Connection, batch: &str) -> Vec<String> {
    let graph = connection.ok("batch_graph", json!({ "batch": batch }));
    let nodes = graph["nodes"].as_array().expect("nodes").iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut states: Vec<_> = nodes
        .map(|node| format!("{} {}", text(&node["name"]), text(&node["state"])))
        .collect();
    states.sort();
    states
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

fn is_sound(place: &Path) {
    let health = ganger(place, &["doctor", "--json", "--data-dir", "."]);
    assert_eq!(health["ailments_count"], 0, "{health}");
}

#[test]
fn jobs_go_on_as_those_before_them_are_done_and_wake_who_waits() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let jobs = json!([node("c", &["a", "b"]), node("a", &[]), node("b", &["a"])]);
    let ids = push(&mut worker, &jobs);
    let view = worker.ok("job_get", json!({ "job": ids[0] }));
    assert_eq!(
        (&view["state"], &view["waits_for"], &view["if"]),
        (&json!("blocked"), &json!(2), &json!("success"))
    );
    let view = worker.ok("job_get", json!({ "job": ids[1] }));
    assert_eq!(view["awaited_by"].as_array().expect("ids").len(), 2);
    let mut waiting = Connection::worker(server.address);
    let wait = waiting.send("fetch", json!({ "queues": ["c"], "wait_ms": 60_000 }));
    run(&mut worker, "a");
    run(&mut worker, "b");
    let reply = waiting.reply(wait).expect("a job");
    assert_eq!(reply["jobs"][0]["id"], ids[0]);
}

#[test]
fn what_is_no_graph_is_refused_as_a_whole_with_its_field() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let batch = worker.ok("batch_open", json!({}))["id"].clone();
    let other = worker.ok("batch_open", json!({}))["id"].clone();
    let own = |batch: &Value| json!({ "batch": batch });
    let foreign = push(&mut worker, &json!([with(node("x", &[]), &own(&other))]));
    let alone = push(&mut worker, &json!([node("y", &[])]));
    let gone = "A".repeat(32);
    for (jobs, code, field) in [
        (
            json!([node("a", &["nobody"])]),
            "bad_request",
            "jobs[0].after[0]",
        ),
        (
            json!([node("a", &["a"])]),
            "bad_request",
            "jobs[0].after[0]",
        ),
        (
            json!([node("a", &[]), node("a", &[])]),
            "bad_request",
            "jobs[1].name",
        ),
        (
            json!([node("a", &["b"]), node("b", &["a"])]),
            "bad_request",
            "jobs[0].after[0]",
        ),
        (
            json!([node("a", &[&alone[0]])]),
            "bad_request",
            "jobs[0].after[0]",
        ),
        (
            json!([with(node("a", &[&alone[0]]), &own(&batch))]),
            "bad_request",
            "jobs[0].after[0]",
        ),
        (
            json!([with(node("a", &[&foreign[0]]), &own(&batch))]),
            "bad_request",
            "jobs[0].after[0]",
        ),
        (
            json!([with(node("a", &[&gone]), &own(&batch))]),
            "not_found",
            "jobs[0].after[0]",
        ),
        (
            json!([with(node("a", &[]), &json!({ "if": "settled" }))]),
            "bad_request",
            "jobs[0].if",
        ),
    ] {
        let error = worker.err("push", json!({ "jobs": jobs, "atomic": true }));
        assert_eq!(essence(&error), (code, field, None, None), "{jobs}");
    }
    let loose = json!({ "jobs": [node("a", &[]), node("b", &["a"])] });
    let reply = worker.ok("push", loose);
    let error = &reply["results"][1]["err"];
    assert_eq!(essence(error), ("bad_request", "after", None, None));
    let wide = vec!["a"; 1_001];
    let error = worker.err(
        "push",
        json!({ "jobs": [node("b", &wide)], "atomic": true }),
    );
    let limits = (Some(1_000), Some(1_001));
    assert_eq!(
        essence(&error),
        ("too_large", "jobs[0].after", limits.0, limits.1)
    );
    let unknown = json!([with(node("a", &[]), &json!({ "if": "never" }))]);
    let error = worker.err("push", json!({ "jobs": unknown, "atomic": true }));
    assert_eq!(error["code"], "bad_request", "{error}");
    assert!(counters(&mut worker, "b").is_null(), "nothing was pushed");
}

#[test]
fn a_dead_job_cancels_those_behind_it_and_a_held_one_waits_for_its_revival() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let jobs = json!([
        node("a", &[]),
        node("b", &["a"]),
        node("c", &["b"]),
        with(node("d", &["a"]), &json!({ "on_dead": "hold" })),
        with(node("e", &["c"]), &json!({ "if": "settled" })),
    ]);
    let ids = push(&mut worker, &jobs);
    let job = worker.wait("a");
    let fail = lease_with(&job, json!({ "dead": true }));
    worker.ok("fail", json!({ "leases": [fail] }));
    // It goes on last: by then all between are cancelled.
    run(&mut worker, "e");
    for queue in ["b", "c"] {
        assert_eq!(counters(&mut worker, queue)["cancelled"], 1);
    }
    assert_eq!(state(&mut worker, &ids[3]), "blocked");
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    worker.ok("dead_revive", json!({ "jobs": [ids[0]] }));
    run(&mut worker, "a");
    let job = worker.wait("d");
    assert_eq!(job["id"], ids[3]);
}

#[test]
fn over_kills_a_workflow_ends_as_it_would_have_and_its_graph_tells_so() {
    let place = tempfile::tempdir().expect("a directory");
    let start = || Process::start(EXECUTABLE, place.path(), &[]).expect("it starts");
    let mut server = start();
    let mut worker = Connection::worker(server.address);
    let call = json!({ "kind": "call", "queue": "calls" });
    let batch = worker.ok("batch_open", json!({ "on_settled": call }))["id"].clone();
    let batch = batch.as_str().expect("an id").to_owned();
    let names = ["a", "b", "c", "d"];
    let mut jobs: Vec<Value> = vec![with(node("a", &[]), &json!({ "batch": batch }))];
    for pair in names.windows(2) {
        let member = json!({ "batch": batch });
        jobs.push(with(node(pair[1], &[pair[0]]), &member));
    }
    push(&mut worker, &json!(jobs));
    worker.ok("batch_commit", json!({ "batch": batch }));
    for name in &names[..3] {
        run(&mut worker, name);
        // What was acked is durable, and so is that others wait for it.
        server.kill();
        server = start();
        worker = Connection::worker(server.address);
    }
    assert_eq!(
        states(&mut worker, &batch)[..3],
        ["a done", "b done", "c done"]
    );
    let view = worker.ok("batch_show", json!({ "batch": batch }));
    assert_eq!(view["counters"]["pending"], 1);
    let job = worker.wait("d");
    let fail = lease_with(&job, json!({ "dead": true }));
    worker.ok("fail", json!({ "leases": [fail] }));
    worker.wait("calls");
    assert_eq!(states(&mut worker, &batch)[3], "d dead");
    for name in names {
        assert_eq!(counters(&mut worker, name)["granted"], 1, "{name}");
    }
    server.terminate();
    is_sound(place.path());
}

#[test]
fn an_export_imports_to_workflows_that_go_on() {
    let place = tempfile::tempdir().expect("a directory");
    let server = Process::start(EXECUTABLE, &place.path().join("data"), &[]).expect("it starts");
    let mut worker = Connection::worker(server.address);
    let batch = worker.ok("batch_open", json!({}))["id"].clone();
    let member = json!({ "batch": batch });
    let batch = batch.as_str().expect("an id").to_owned();
    let mut jobs = vec![
        node("a", &[]),
        node("b", &["a"]),
        node("c", &["a", "b"]),
        with(node("d", &["c"]), &json!({ "if": "settled" })),
        node("e", &[]),
        with(node("f", &["e"]), &json!({ "on_dead": "hold" })),
    ];
    for job in &mut jobs {
        *job = with(job.clone(), &member);
    }
    let ids = push(&mut worker, &json!(jobs));
    run(&mut worker, "a");
    let job = worker.wait("e");
    let fail = lease_with(&job, json!({ "dead": true }));
    worker.ok("fail", json!({ "leases": [fail] }));
    worker.ok("goodbye", json!({}));
    server.terminate();
    ganger(
        place.path(),
        &["export", "x", "--json", "--data-dir", "data"],
    );
    ganger(
        place.path(),
        &["import", "x", "--json", "--data-dir", "copy"],
    );
    is_sound(&place.path().join("copy"));
    let server = Process::start(EXECUTABLE, &place.path().join("copy"), &[]).expect("it starts");
    let mut worker = Connection::worker(server.address);
    let view = worker.ok("job_get", json!({ "job": ids[2] }));
    assert_eq!(
        (&view["waits_for"], &view["after"]),
        (&json!(1), &json!([ids[1]]))
    );
    run(&mut worker, "b");
    let job = worker.wait("c");
    let fail = lease_with(&job, json!({ "discard": true }));
    worker.ok("fail", json!({ "leases": [fail] }));
    run(&mut worker, "d");
    worker.ok("dead_revive", json!({ "jobs": [ids[4]] }));
    run(&mut worker, "e");
    run(&mut worker, "f");
    let all = [
        "a done",
        "b done",
        "c deleted",
        "d done",
        "e done",
        "f done",
    ];
    assert_eq!(states(&mut worker, &batch), all);
    server.terminate();
    is_sound(&place.path().join("copy"));
}

#[test]
fn the_command_line_pushes_a_workflow_of_lines_and_shows_its_graph() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let place = tempfile::tempdir().expect("a directory");
    let mut asking = Connection::worker(server.address);
    let batch = asking.ok("batch_open", json!({}))["id"].clone();
    let batch = batch.as_str().expect("an id");
    let lines = place.path().join("lines");
    let text = "{\"kind\":\"import\",\"name\":\"import\"}\n\
                {\"kind\":\"report\",\"name\":\"report\",\"after\":[\"import\"]}\n";
    std::fs::write(&lines, text).expect("it is written");
    let push = |more: &[&str]| {
        let output = Command::new(EXECUTABLE)
            .args(["push", "--spec", "--batch", batch, "--url", &url])
            .args(more)
            .stdin(std::fs::File::open(&lines).expect("it is there"))
            .output();
        output.expect("it runs")
    };
    let pushed = push(&["--atomic"]);
    let ids = String::from_utf8(pushed.stdout).expect("text");
    assert_eq!(
        ids.lines().count(),
        2,
        "{}",
        String::from_utf8_lossy(&pushed.stderr)
    );
    let shown = ganger(
        place.path(),
        &["batches", "show", batch, "--json", "--url", &url],
    );
    assert_eq!(shown["counters"]["pending"], 2);
    assert_eq!(shown["nodes"][1]["state"], "blocked", "{shown}");
    let output = Command::new(EXECUTABLE)
        .args(["batches", "show", batch, "--url", &url])
        .output()
        .expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text.lines().find(|line| line.contains("blocked"));
    assert!(line.is_some_and(|line| line.ends_with("import")), "{text}");
    // One by one they would be pushed without each other.
    let alone = push(&[]);
    assert_eq!(alone.status.code(), Some(7));
    let errors = String::from_utf8_lossy(&alone.stderr);
    assert!(errors.contains("atomic"), "{errors}");
}

#[path = "../../client/rust/examples/workflow.rs"]
#[expect(dead_code, reason = "its main is for whoever runs it by hand")]
mod example;

#[test]
fn the_example_builds_a_book() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(example::run(&url)).expect("it runs");
    let mut asking = Connection::open(server.address);
    let settled = asking.ok("batch_list", json!({ "settled": true }));
    assert_eq!(settled["batches"][0]["counters"]["done"], 4);
}
