//! A job from push to ack, and the long poll between.

use serde_json::json;
use support::{Connection, InProcess, bin};

use crate::{counters, lease};

#[test]
fn a_job_is_granted_as_it_was_pushed_and_is_done_by_its_ack() {
    let server = InProcess::start();
    let mut producer = Connection::open(server.address);
    let mut worker = Connection::worker(server.address);
    let every_byte: Vec<u8> = (0..=255).collect();
    let id = producer.push(json!({
        "kind": "email.send",
        "queue": "mail",
        "payload": bin(&every_byte),
        "content_type": "application/x-test",
        "headers": { "traceparent": "00-abc" },
        "tags": ["blue"],
        "timeout_ms": 60_000,
    }));
    let job = worker.fetch("mail").expect("a job");
    assert_eq!(job["id"], id.as_str());
    assert_eq!(job["payload"], bin(&every_byte));
    assert_eq!(job["kind"], "email.send");
    assert_eq!(job["queue"], "mail");
    assert_eq!(job["content_type"], "application/x-test");
    assert_eq!(job["headers"], json!({ "traceparent": "00-abc" }));
    assert_eq!(job["tags"], json!(["blue"]));
    assert_eq!(job["attempt"], 1);
    assert_eq!(job["timeout_ms"], 60_000);
    let shown = producer.ok("job_get", json!({ "job": id }));
    assert_eq!(
        (&shown["state"], &shown["lease"]),
        (&json!("leased"), &job["lease"])
    );
    let reply = worker.ok("ack", json!({ "leases": [lease(&job)] }));
    assert_eq!(reply, json!({ "results": [{}] }));
    let again = worker.ok("ack", json!({ "leases": [lease(&job)] }));
    assert_eq!(again, json!({ "results": [{ "already": true }] }));
    assert_eq!(worker.fetch("mail"), None);
    let gone = producer.err("job_get", json!({ "job": id }));
    assert_eq!(gone["code"], "not_found");
    let counters = counters(&mut producer, "mail");
    let row = ["pushed", "granted", "done", "ready", "leased"].map(|name| counters[name].clone());
    assert_eq!(json!(row), json!([1, 1, 1, 0, 0]));
}

#[test]
fn a_waiting_fetch_is_answered_by_the_next_push_to_its_queue() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let waiting = worker.send("fetch", json!({ "queues": ["a*"], "wait_ms": 15_000 }));
    // It blocks nothing else on its connection.
    worker.ok("heartbeat", json!({}));
    let mut producer = Connection::open(server.address);
    producer.push(json!({ "kind": "k", "queue": "b1" }));
    let id = producer.push(json!({ "kind": "k", "queue": "a1" }));
    let reply = worker.reply(waiting).expect("a reply");
    assert_eq!(reply["jobs"][0]["id"], id.as_str());
    assert_eq!(reply["jobs"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_wait_ends_without_a_job_when_its_time_has_passed() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let reply = worker.ok("fetch", json!({ "queues": ["a"], "wait_ms": 20 }));
    assert_eq!(reply, json!({ "jobs": [] }));
}

#[test]
fn a_fetch_carries_acks_and_fails_and_is_answered_with_what_is_ready() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let jobs = json!([{ "kind": "k" }, { "kind": "k" }, { "kind": "k" }]);
    worker.ok("push", json!({ "jobs": jobs }));
    let first = worker.ok("fetch", json!({ "queues": ["default"], "max": 2 }));
    let reply = worker.ok(
        "fetch",
        json!({
            "queues": ["default"],
            "max": 5,
            "wait_ms": 15_000,
            "acks": [lease(&first["jobs"][0])],
            "fails": [lease(&first["jobs"][1])],
        }),
    );
    assert_eq!(reply["acks"], json!([{}]));
    assert_eq!(reply["fails"][0]["state"], "scheduled");
    assert_eq!(reply["jobs"].as_array().map(Vec::len), Some(1));
    // Nothing is ready now: answers do not wait for jobs.
    let last = json!([lease(&reply["jobs"][0])]);
    let reply = worker.ok(
        "fetch",
        json!({ "queues": ["default"], "wait_ms": 15_000, "acks": last }),
    );
    assert_eq!(reply, json!({ "jobs": [], "acks": [{}] }));
}

#[test]
fn jobs_come_by_priority_then_in_the_order_of_their_push() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let job = |name: &str, priority: u8| json!({ "kind": name, "priority": priority });
    let jobs = [
        job("low", 0),
        job("first", 5),
        job("second", 5),
        job("high", 9),
    ];
    worker.ok("push", json!({ "jobs": jobs }));
    let reply = worker.ok("fetch", json!({ "queues": ["default"], "max": 10 }));
    let kinds: Vec<&str> = reply["jobs"]
        .as_array()
        .expect("jobs")
        .iter()
        .map(|job| job["kind"].as_str().expect("a kind"))
        .collect();
    assert_eq!(kinds, ["high", "first", "second", "low"]);
}

#[test]
fn queues_are_served_strictly_in_the_order_of_the_fetch() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    for queue in ["b", "a", "b", "a"] {
        worker.push(json!({ "kind": "k", "queue": queue }));
    }
    let reply = worker.ok("fetch", json!({ "queues": ["a", "b"], "max": 3 }));
    let queues: Vec<_> = (0..3)
        .map(|at| reply["jobs"][at]["queue"].clone())
        .collect();
    assert_eq!(json!(queues), json!(["a", "a", "b"]));
}

#[test]
fn a_delayed_job_is_granted_when_its_time_has_come_and_not_before() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(json!({ "kind": "k", "delay_ms": 300 }));
    assert_eq!(worker.fetch("default"), None);
    let shown = worker.ok("job_get", json!({ "job": id }));
    assert_eq!(shown["state"], "scheduled");
    let job = worker.wait("default");
    let (_, hello) = Connection::hello(server.address, json!({}));
    let now = hello["server_time"].as_u64().expect("a time");
    let pushed_at = job["pushed_at"].as_u64().expect("a time");
    assert!(
        now >= pushed_at + 300,
        "{now} is {pushed_at} + 300 at least"
    );
}

#[test]
fn run_at_of_the_past_means_at_once() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.push(json!({ "kind": "k", "run_at": 1 }));
    assert!(worker.fetch("default").is_some());
}

#[test]
fn namespaces_do_not_see_each_other() {
    let server = InProcess::start();
    let mut red = Connection::hello(server.address, json!({ "namespace": "red" })).0;
    let hello = json!({ "namespace": "blue", "session": {} });
    let mut blue = Connection::hello(server.address, hello).0;
    let id = red.push(json!({ "kind": "k" }));
    assert_eq!(blue.fetch("default"), None);
    assert_eq!(
        blue.err("job_get", json!({ "job": id }))["code"],
        "not_found"
    );
    assert_eq!(blue.ok("queue_list", json!({}))["queues"], json!([]));
    assert_eq!(blue.ok("stats", json!({}))["counters"]["pushed"], 0);
    assert_eq!(red.ok("stats", json!({}))["counters"]["pushed"], 1);
}

#[test]
fn results_of_a_push_stand_in_the_order_of_its_jobs() {
    let server = InProcess::start();
    let mut producer = Connection::open(server.address);
    let jobs = json!([{ "kind": "a" }, { "kind": "b", "priority": 10 }, { "kind": "c" }]);
    let reply = producer.ok("push", json!({ "jobs": jobs.clone() }));
    assert!(reply["results"][0]["id"].is_string(), "{reply}");
    assert_eq!(reply["results"][1]["err"]["field"], "priority");
    assert!(reply["results"][2]["id"].is_string(), "{reply}");
    // All or nothing.
    let error = producer.err("push", json!({ "jobs": jobs, "atomic": true }));
    assert_eq!(error["field"], "jobs[1].priority");
    assert_eq!(counters(&mut producer, "default")["pushed"], 2);
}
