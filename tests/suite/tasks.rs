//! Tasks of a real server: something is done to all jobs of a filter, counted, followed, cancelled.

use serde_json::{Value, json};
use support::{Connection, InProcess};

use crate::{counters, lease};

/// Starts a task and waits for its end.
fn done(connection: &mut Connection, start: Value) -> Value {
    let mut task = connection.ok("task_start", start);
    while task["state"] == "running" {
        task = connection.ok("task_get", json!({ "task": task["id"] }));
    }
    task
}

fn figures(task: &Value) -> [u64; 3] {
    ["matched", "changed", "refused"].map(|name| task[name].as_u64().expect("a figure"))
}

fn fill(connection: &mut Connection, queue: &str, kind: &str, jobs: usize) {
    for _ in 0..jobs.div_ceil(1_000) {
        let jobs = vec![json!({ "kind": kind, "queue": queue }); jobs.min(1_000)];
        connection.ok("push", json!({ "jobs": jobs }));
    }
}

#[test]
fn all_jobs_of_a_filter_are_cancelled_and_no_others() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    fill(&mut worker, "q", "bad", 2_000);
    fill(&mut worker, "q", "good", 500);
    fill(&mut worker, "other", "bad", 10);
    let scheduled = worker.push(json!({ "kind": "bad", "queue": "q", "delay_ms": 90_000_000 }));
    let held = worker.fetch("q").expect("a job");
    let start = json!({ "action": "cancel", "filter": { "queue": "q", "kind": "bad" } });
    let mut dry = start.clone();
    dry["dry_run"] = json!(true);
    let counted = done(&mut worker, dry);
    assert_eq!(figures(&counted), [2_001, 0, 0]);
    assert_eq!(counters(&mut worker, "q")["cancelled"], 0);

    let task = done(&mut worker, start);
    assert_eq!(task["state"], "finished");
    assert_eq!(figures(&task), [2_001, 2_001, 0]);
    let counted = counters(&mut worker, "q");
    assert_eq!(
        (&counted["cancelled"], &counted["ready"]),
        (&json!(2_000), &json!(500))
    );
    assert_eq!(counters(&mut worker, "other")["ready"], 10);
    let error = worker.err("job_get", json!({ "job": scheduled }));
    assert_eq!(error["code"], "not_found");
    // The worker of the leased one has its grace, and an ack wins.
    assert_eq!(
        worker.ok("heartbeat", json!({}))["cancel"],
        json!([lease(&held)])
    );
    worker.ok("ack", json!({ "leases": [lease(&held)] }));
    assert_eq!(counters(&mut worker, "q")["done"], 1);
}

#[test]
fn members_of_a_batch_and_jobs_of_a_tag_are_found_in_every_queue() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let batch = worker.ok("batch_open", json!({}))["id"].clone();
    for queue in ["a", "b", "c"] {
        worker.push(json!({ "kind": "k", "queue": queue, "batch": batch }));
        worker.push(json!({ "kind": "k", "queue": queue, "tags": ["t"] }));
        worker.push(json!({ "kind": "k", "queue": queue }));
    }
    let of_batch = json!({ "action": "cancel", "filter": { "queue": "*", "batch": batch } });
    assert_eq!(figures(&done(&mut worker, of_batch)), [3, 3, 0]);
    let shown = worker.ok("batch_show", json!({ "batch": batch }));
    assert_eq!(shown["counters"]["cancelled"], 3);
    let of_tag = json!({ "action": "cancel", "filter": { "queue": "*", "tag": "t" } });
    assert_eq!(figures(&done(&mut worker, of_tag)), [3, 3, 0]);
    assert_eq!(worker.ok("stats", json!({}))["counters"]["ready"], 3);
}

#[test]
fn jobs_are_started_delayed_and_moved_once_each_wherever_the_walk_meets_them_again() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let jobs = vec![json!({ "kind": "k", "queue": "q", "delay_ms": 90_000_000 }); 300];
    worker.ok("push", json!({ "jobs": jobs }));
    let change = |to: Value| json!({ "action": "change", "filter": { "queue": "*" }, "to": to });
    // Later than it was: the walk by time comes to each job once more.
    let delayed = done(&mut worker, change(json!({ "delay_ms": 95_000_000 })));
    assert_eq!(figures(&delayed), [300, 300, 0]);
    let started = done(&mut worker, change(json!({ "delay_ms": 0 })));
    assert_eq!(figures(&started), [300, 300, 0]);
    assert_eq!(counters(&mut worker, "q")["ready"], 300);
    worker.ok("queue_create", json!({ "queue": "z" }));
    let moved = done(&mut worker, change(json!({ "queue": "z", "priority": 9 })));
    assert_eq!(figures(&moved), [300, 300, 0]);
    let again = done(&mut worker, change(json!({ "queue": "z" })));
    assert_eq!(figures(&again), [0, 0, 0]);
    let counted = counters(&mut worker, "z");
    assert_eq!(
        (&counted["moved_in"], &counted["ready"]),
        (&json!(300), &json!(300))
    );
}

#[test]
fn dead_jobs_are_revived_or_deleted_and_what_cannot_be_is_told_of() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut kill = |key: Option<&str>| {
        let mut job = json!({ "kind": "k", "queue": "q", "max_attempts": 1 });
        if let Some(key) = key {
            job["unique"] = json!({ "key": key });
        }
        let id = worker.push(job);
        let granted = worker.wait("q");
        let mut fail = lease(&granted);
        fail["kind"] = json!("smtp");
        worker.ok("fail", json!({ "leases": [fail] }));
        id
    };
    for _ in 0..5 {
        kill(None);
    }
    let keyed = kill(Some("k"));
    worker.push(json!({ "kind": "k", "queue": "other", "unique": { "key": "k" } }));
    let filter = json!({ "queue": "q", "error_kind": "smtp" });
    let revived = done(&mut worker, json!({ "action": "revive", "filter": filter }));
    assert_eq!(figures(&revived), [6, 5, 1]);
    assert_eq!(revived["refusals"][0]["job"], keyed.as_str());
    assert_eq!(revived["refusals"][0]["err"]["code"], "conflict");
    let counted = counters(&mut worker, "q");
    assert_eq!(
        (&counted["ready"], &counted["dead"]),
        (&json!(5), &json!(1))
    );
    let deleted = done(
        &mut worker,
        json!({ "action": "delete", "filter": { "queue": "q" } }),
    );
    assert_eq!(figures(&deleted), [1, 1, 0]);
    assert_eq!(counters(&mut worker, "q")["dead"], 0);
}

#[test]
fn a_task_is_listed_and_cancelled_and_ends_with_its_server() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    fill(&mut connection, "q", "k", 20_000);
    let start = json!({ "action": "cancel", "filter": { "queue": "q", "kind": "k" } });
    let task = connection.ok("task_start", start);
    let listed = connection.ok("task_list", json!({}));
    assert_eq!(listed["tasks"][0]["id"], task["id"]);
    let name = json!({ "task": task["id"] });
    connection.ok("task_cancel", name.clone());
    let mut ended = connection.ok("task_get", name.clone());
    while ended["state"] == "running" {
        ended = connection.ok("task_get", name.clone());
    }
    assert_eq!(ended["state"], "cancelled");
    assert!(ended["ended_at"].is_u64());
    let counted = counters(&mut connection, "q");
    assert_eq!(
        counted["cancelled"], ended["changed"],
        "what it has done stays"
    );
    assert!(counted["ready"].as_u64() > Some(0), "it was not through");
    // Once more is harmless.
    assert_eq!(connection.ok("task_cancel", name.clone()), ended);

    let server = server.restart();
    let mut connection = Connection::open(server.address);
    let error = connection.err("task_get", name);
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("not_found"), &json!("task"))
    );
    assert_eq!(
        counters(&mut connection, "q")["cancelled"],
        counted["cancelled"]
    );
}

#[test]
fn a_task_ends_whatever_is_pushed_and_dies_meanwhile() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut other = Connection::open(server.address);
    for _ in 0..200 {
        worker.push(json!({ "kind": "k", "queue": "q", "max_attempts": 1 }));
        let job = worker.wait("q");
        worker.ok("fail", json!({ "leases": [lease(&job)] }));
    }
    // Each revived job fails at once, and is dead behind the others.
    let start = json!({ "action": "revive", "filter": { "queue": "q" } });
    let mut task = other.ok("task_start", start);
    while task["state"] == "running" {
        if let Some(job) = worker.fetch("q") {
            worker.ok("fail", json!({ "leases": [lease(&job)] }));
        }
        task = other.ok("task_get", json!({ "task": task["id"] }));
    }
    assert_eq!(figures(&task), [200, 200, 0]);
}

#[test]
fn what_no_task_can_mean_is_refused_with_its_field() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    for (start, field) in [
        (json!({ "action": "cancel", "filter": {} }), "filter.queue"),
        (
            json!({ "action": "cancel", "filter": { "kind": "k" } }),
            "filter.queue",
        ),
        (json!({ "action": "cancel" }), "filter"),
        (
            json!({ "action": "bury", "filter": { "queue": "*" } }),
            "action",
        ),
        (
            json!({ "action": "cancel", "filter": { "queue": "*", "states": ["ready", "dead"] } }),
            "filter.states[1]",
        ),
        (
            json!({ "action": "revive", "filter": { "queue": "*", "states": ["done"] } }),
            "filter.states[0]",
        ),
        (
            json!({ "action": "change", "filter": { "queue": "*" } }),
            "to",
        ),
        (
            json!({ "action": "change", "filter": { "queue": "*" }, "to": {} }),
            "to",
        ),
        (
            json!({ "action": "change", "filter": { "queue": "*" }, "to": { "priority": 10 } }),
            "to.priority",
        ),
        (
            json!({ "action": "delete", "filter": { "queue": "*" }, "to": { "priority": 1 } }),
            "to",
        ),
        (
            json!({ "action": "cancel", "filter": { "queue": "*" }, "grace_ms": 86_400_001 }),
            "grace_ms",
        ),
        (
            json!({ "action": "revive", "filter": { "queue": "*" }, "grace_ms": 1 }),
            "grace_ms",
        ),
    ] {
        let error = connection.err("task_start", start.clone());
        assert_eq!(
            (&error["code"], &error["field"]),
            (&json!("bad_request"), &json!(field)),
            "{start}"
        );
    }
    assert_eq!(
        connection.ok("task_list", json!({})),
        json!({ "tasks": [] })
    );
    for op in ["task_get", "task_cancel"] {
        let error = connection.err(op, json!({ "task": 1 }));
        assert_eq!(error["code"], "not_found", "{op}");
    }
}

#[test]
fn a_task_is_of_its_namespace() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    fill(&mut connection, "q", "k", 10);
    let (mut elsewhere, _) = Connection::hello(server.address, json!({ "namespace": "n" }));
    let cancel = json!({ "action": "cancel", "filter": { "queue": "*" } });
    let task = done(&mut elsewhere, cancel);
    assert_eq!(figures(&task), [0, 0, 0]);
    let name = json!({ "task": task["id"] });
    assert_eq!(connection.err("task_get", name)["code"], "not_found");
    assert_eq!(
        connection.ok("task_list", json!({})),
        json!({ "tasks": [] })
    );
    assert_eq!(counters(&mut connection, "q")["ready"], 10);
}

#[path = "../../client/rust/examples/jobs.rs"]
#[expect(dead_code, reason = "its main is for whoever runs it by hand")]
mod example;

#[test]
fn the_example_starts_three_jobs_and_cancels_the_others() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cancelled = runtime.block_on(async {
        let options = ganger_client::ClientOptions::from_url(&url).expect("a url");
        let client = ganger_client::Client::connect(options).await;
        let client = client.expect("connected");
        let cancelled = example::tidy_up(&client).await.expect("tidied up");
        client.close().await;
        cancelled
    });
    assert_eq!(cancelled, 17);
    let mut connection = Connection::open(server.address);
    assert_eq!(counters(&mut connection, "reminders")["ready"], 3);
}
