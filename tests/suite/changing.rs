//! Jobs of a real server are started, delayed, moved and deleted, over a restart too.

use serde_json::{Value, json};
use support::{Connection, InProcess};

use crate::{counters, lease};

fn change(connection: &mut Connection, job: &str, to: Value) -> Value {
    let reply = connection.ok("job_change", json!({ "jobs": [job], "to": to }));
    reply["results"][0].clone()
}

#[test]
fn a_scheduled_job_is_started_now_and_wakes_the_worker_that_waits() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mut other = Connection::open(server.address);
    let job = other.push(json!({ "kind": "k", "delay_ms": 90_000_000 }));
    let waiting = worker.send("fetch", json!({ "queues": ["default"], "wait_ms": 15_000 }));
    let started = change(&mut other, &job, json!({ "delay_ms": 0 }));
    assert_eq!(started, json!({ "state": "ready" }));
    let granted = worker.reply(waiting).expect("a reply");
    assert_eq!(granted["jobs"][0]["id"], job.as_str());
    let refused = change(&mut other, &job, json!({ "delay_ms": 0 }));
    assert_eq!(refused["err"]["state"], "leased");
    worker.ok("ack", json!({ "leases": [lease(&granted["jobs"][0])] }));
}

#[test]
fn where_a_job_was_moved_to_it_is_after_a_restart_and_is_counted_there() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let ready = worker.push(json!({ "kind": "k", "queue": "a" }));
    let scheduled = worker.push(json!({ "kind": "k", "queue": "a", "delay_ms": 60_000 }));
    let to = json!({ "queue": "b", "priority": 9 });
    for job in [&ready, &scheduled] {
        assert_eq!(change(&mut worker, job, to.clone()).get("err"), None);
    }
    let later = change(
        &mut worker,
        &scheduled,
        json!({ "run_at": 4_000_000_000_000_u64 }),
    );
    assert_eq!(
        later,
        json!({ "state": "scheduled", "run_at": 4_000_000_000_000_u64 })
    );

    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    let (from, to) = (counters(&mut worker, "a"), counters(&mut worker, "b"));
    assert_eq!(
        (&from["pushed"], &from["moved_out"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(
        (&to["moved_in"], &to["ready"], &to["scheduled"]),
        (&json!(2), &json!(1), &json!(1))
    );
    let shown = worker.ok("job_get", json!({ "job": scheduled }));
    assert_eq!(
        (&shown["queue"], &shown["priority"]),
        (&json!("b"), &json!(9))
    );
    assert_eq!(worker.fetch("a"), None);
    let granted = worker.fetch("b").expect("a job");
    assert_eq!(granted["id"], ready.as_str());
    worker.ok("ack", json!({ "leases": [lease(&granted)] }));
    assert_eq!(counters(&mut worker, "b")["done"], 1);
}

#[test]
fn a_job_that_is_over_is_deleted_and_one_that_waits_is_not() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let dead = worker.push(json!({ "kind": "k", "max_attempts": 1 }));
    let job = worker.wait("default");
    worker.ok("fail", json!({ "leases": [lease(&job)] }));
    let waiting = worker.push(json!({ "kind": "k" }));
    let reply = worker.ok("job_delete", json!({ "jobs": [dead, waiting, dead] }));
    assert_eq!(reply["results"][0], json!({}));
    assert_eq!(reply["results"][1]["err"]["code"], "conflict");
    assert_eq!(reply["results"][2]["err"]["code"], "not_found");
    let counted = counters(&mut worker, "default");
    assert_eq!(
        (&counted["dead"], &counted["deleted"]),
        (&json!(0), &json!(1))
    );
}

#[test]
fn what_no_job_can_be_changed_to_is_refused_with_its_field() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let job = connection.push(json!({ "kind": "k" }));
    let ten_years = 3653_u64 * 86_400_000;
    for (to, field) in [
        (json!({}), "to"),
        (json!({ "delay_ms": ten_years + 1 }), "to.delay_ms"),
        (json!({ "delay_ms": -1 }), "to.delay_ms"),
        (json!({ "delay_ms": 1, "run_at": 1 }), "to.delay_ms"),
        (json!({ "run_at": 1_u64 << 53 }), "to.run_at"),
        (json!({ "priority": 10 }), "to.priority"),
        (json!({ "queue": "a b" }), "to.queue"),
    ] {
        let error = connection.err("job_change", json!({ "jobs": [job], "to": to }));
        assert_eq!(
            (&error["code"], &error["field"]),
            (&json!("bad_request"), &json!(field)),
            "{to}"
        );
    }
    let none = connection.err("job_change", json!({ "jobs": [], "to": { "delay_ms": 0 } }));
    assert_eq!(none["field"], "jobs");
    let many = vec![job.clone(); 1001];
    let many = connection.err("job_delete", json!({ "jobs": many }));
    assert_eq!(
        (&many["code"], &many["field"]),
        (&json!("too_large"), &json!("jobs"))
    );
    let longest = change(&mut connection, &job, json!({ "delay_ms": ten_years }));
    assert_eq!(longest["state"], "scheduled");
}
