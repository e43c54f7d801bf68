//! Cancelling jobs of a real server: what waits, what runs, and over a restart.

use serde_json::json;
use support::{Connection, InProcess};

use crate::{counters, lease};

#[test]
fn a_waiting_job_is_over_and_a_running_worker_hears_of_it_at_once() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut other = Connection::open(server.address);
    let leased = other.push(json!({ "kind": "k" }));
    let job = worker.wait("default");
    let waiting = other.push(json!({ "kind": "k", "delay_ms": 60_000 }));

    let reply = other.ok("job_cancel", json!({ "jobs": [waiting, leased] }));
    assert_eq!(reply["results"][0], json!({ "state": "cancelled" }));
    assert_eq!(reply["results"][1]["state"], "leased");
    let notice = worker.notice();
    assert_eq!(
        (&notice["op"], &notice["leases"]),
        (&json!("cancel"), &json!([lease(&job)]))
    );
    assert_eq!(
        worker.ok("heartbeat", json!({}))["cancel"],
        json!([lease(&job)])
    );

    let failed = worker.ok("fail", json!({ "leases": [lease(&job)] }));
    assert_eq!(failed["results"], json!([{ "state": "cancelled" }]));
    assert_eq!(
        other.err("job_get", json!({ "job": leased }))["code"],
        "not_found"
    );
    assert_eq!(counters(&mut other, "default")["cancelled"], 2);
}

#[test]
fn a_worker_that_does_not_listen_loses_its_lease_after_the_grace_over_a_restart_too() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(json!({ "kind": "k" }));
    worker.wait("default");
    let cancel = json!({ "jobs": [id], "grace_ms": 200 });
    let reply = worker.ok("job_cancel", cancel);
    let at = &reply["results"][0]["cancel_at"];
    assert_eq!(worker.ok("job_get", json!({ "job": id }))["cancel_at"], *at);

    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    // A job that becomes ready behind the grace is granted behind it.
    worker.push(json!({ "kind": "k", "queue": "later", "delay_ms": 250 }));
    worker.wait("later");
    assert_eq!(
        worker.err("job_get", json!({ "job": id }))["code"],
        "not_found"
    );
    assert_eq!(counters(&mut worker, "default")["cancelled"], 1);
}

#[test]
fn what_is_over_is_refused_by_itself_and_a_grace_that_is_too_long_as_a_whole() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    worker.push(json!({ "kind": "k", "max_attempts": 1 }));
    let job = worker.wait("default");
    worker.ok("fail", json!({ "leases": [lease(&job)] }));
    let waiting = worker.push(json!({ "kind": "k" }));

    let reply = worker.ok("job_cancel", json!({ "jobs": [job["id"], waiting] }));
    let refused = &reply["results"][0]["err"];
    assert_eq!(
        (&refused["code"], &refused["state"]),
        (&json!("conflict"), &json!("dead"))
    );
    assert_eq!(reply["results"][1]["state"], "cancelled");

    let long = worker.err(
        "job_cancel",
        json!({ "jobs": [waiting], "grace_ms": 86_400_001 }),
    );
    assert_eq!(
        (&long["code"], &long["field"]),
        (&json!("bad_request"), &json!("grace_ms"))
    );
    let none = worker.err("job_cancel", json!({ "jobs": [] }));
    assert_eq!(none["field"], "jobs");
}
