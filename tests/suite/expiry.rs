//! Jobs that wait too long, and pushes that are spread over a time.

use serde_json::{Value, json};
use support::{Connection, InProcess};

use crate::{counters, essence, lease, lease_with};

/// The server's wall time.
fn now(server: &InProcess) -> u64 {
    let (_, hello) = Connection::hello(server.address, json!({}));
    hello["server_time"].as_u64().expect("a time")
}

/// Waits until so many ms have passed by a delayed job of the server itself.
fn pass(worker: &mut Connection, delay_ms: u64) {
    worker.push(json!({ "kind": "k", "queue": "pause", "delay_ms": delay_ms }));
    let job = worker.wait("pause");
    worker.ok("ack", json!({ "leases": [lease(&job)] }));
}

fn expiring(at: u64, fields: Value) -> Value {
    let mut job = json!({ "kind": "k", "expires_at": at });
    for (name, value) in fields.as_object().expect("a map") {
        job[name] = value.clone();
    }
    job
}

#[test]
fn what_waits_until_its_expiry_is_expired_and_not_granted() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let at = now(&server) + 100;
    let ready = worker.push(expiring(at, json!({})));
    let shown = worker.ok("job_get", json!({ "job": ready }));
    assert_eq!(shown["expires_at"], at);
    worker.push(expiring(at, json!({ "delay_ms": 60_000 })));
    pass(&mut worker, 150);
    assert_eq!(worker.fetch("default"), None);
    assert_eq!(
        worker.err("job_get", json!({ "job": ready }))["code"],
        "not_found"
    );
    let counters = counters(&mut worker, "default");
    let row = ["pushed", "expired", "ready", "scheduled", "granted"];
    let row = row.map(|name| counters[name].clone());
    assert_eq!(json!(row), json!([2, 2, 0, 0, 0]));
}

#[test]
fn what_expired_while_the_server_was_away_is_not_granted() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let at = now(&server) + 100;
    worker.push(expiring(at, json!({ "unique": { "key": "once" } })));
    let kept = worker.push(expiring(at + 60_000, json!({})));
    pass(&mut worker, 50);
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    pass(&mut worker, 100);
    assert_eq!(worker.fetch("default").expect("a job")["id"], kept.as_str());
    assert_eq!(worker.fetch("default"), None);
    assert_eq!(counters(&mut worker, "default")["expired"], 1);
    let push = json!({ "jobs": [{ "kind": "k", "unique": { "key": "once" } }] });
    let reply = worker.ok("push", push);
    assert_eq!(reply["results"][0].get("existing"), None);
}

#[test]
fn a_leased_job_does_not_expire_and_a_retry_of_it_does() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let at = now(&server) + 200;
    worker.push(expiring(at, json!({})));
    worker.push(expiring(at, json!({})));
    let first = worker.fetch("default").expect("a job");
    let second = worker.fetch("default").expect("a job");
    let fail = lease_with(&second, json!({ "retry_in_ms": 60_000 }));
    worker.ok("fail", json!({ "leases": [fail] }));
    pass(&mut worker, 250);
    let reply = worker.ok("ack", json!({ "leases": [lease(&first)] }));
    assert_eq!(reply, json!({ "results": [{}] }));
    let counters = counters(&mut worker, "default");
    let row = ["done", "expired", "scheduled"].map(|name| counters[name].clone());
    assert_eq!(json!(row), json!([1, 1, 0]));
}

#[test]
fn a_job_cannot_expire_before_it_may_run() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let job = json!({ "kind": "k", "run_at": 4_102_444_800_000_u64, "expires_at": 5 });
    let reply = connection.ok("push", json!({ "jobs": [job] }));
    let error = &reply["results"][0]["err"];
    assert_eq!(essence(error), ("bad_request", "expires_at", None, None));
}

#[test]
fn a_spread_push_comes_job_by_job_in_its_order() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let jobs = json!([{ "kind": "a" }, { "kind": "b" }, { "kind": "c" }]);
    let reply = worker.ok("push", json!({ "jobs": jobs, "spread_ms": 180_000 }));
    let shown: Vec<Value> = (0..3)
        .map(|at| worker.ok("job_get", json!({ "job": reply["results"][at]["id"] })))
        .collect();
    assert_eq!(shown[0]["state"], "ready");
    let later = |at: usize| {
        let pushed_at = shown[at]["pushed_at"].as_u64().expect("a time");
        shown[at]["run_at"].as_u64().expect("a time") - pushed_at
    };
    assert_eq!((later(1), later(2)), (60_000, 120_000));
    let error = worker.err(
        "push",
        json!({ "jobs": jobs, "spread_ms": 315_619_200_001_u64 }),
    );
    assert_eq!(error["field"], "spread_ms");
}
