//! How an attempt ends: fail, release, extend, time-out; and what becomes of dead jobs.

use serde_json::{Value, json};
use support::{Connection, InProcess};

use crate::{counters, lease, lease_with};

/// A worker with one lease of a job that was pushed with these fields.
fn leased(server: &InProcess, mut fields: Value) -> (Connection, Value) {
    let mut worker = Connection::worker(server.address);
    fields["kind"] = json!("k");
    worker.push(fields);
    let job = worker.fetch("default").expect("a job");
    (worker, job)
}

#[test]
fn a_failed_job_is_tried_again_after_its_backoff_and_the_reply_says_when() {
    let server = InProcess::start();
    let backoff = json!({ "curve": "fixed", "base_ms": 50, "jitter_ms": 0, "jitter_percent": 0 });
    let (mut worker, job) = leased(&server, json!({ "backoff": backoff }));
    let fail = lease_with(&job, json!({ "kind": "IOError", "message": "no route" }));
    let reply = worker.ok("fail", json!({ "leases": [fail] }));
    assert_eq!(reply["results"][0]["state"], "scheduled");
    assert!(reply["results"][0]["run_at"].is_u64(), "{reply}");
    let again = worker.wait("default");
    assert_eq!(again["id"], job["id"]);
    assert_eq!(
        (&again["attempt"], &again["failures"]),
        (&json!(2), &json!(1))
    );
    assert!(again["lease"].as_u64() > job["lease"].as_u64());
    let shown = worker.ok("job_get", json!({ "job": job["id"] }));
    assert_eq!(shown["errors"][0]["kind"], "IOError");
    assert_eq!(shown["errors"][0]["message"], "no route");
    assert_eq!(shown["errors"][0]["attempt"], 1);
}

#[test]
fn the_last_failure_makes_a_job_dead_and_revive_begins_anew() {
    let server = InProcess::start();
    let (mut worker, job) = leased(&server, json!({ "max_attempts": 1 }));
    let reply = worker.ok("fail", json!({ "leases": [lease(&job)] }));
    assert_eq!(reply["results"][0], json!({ "state": "dead" }));
    let dead = worker.ok("dead_list", json!({}));
    assert_eq!(dead["jobs"][0]["id"], job["id"]);
    assert_eq!(dead["jobs"][0]["reason"], "attempts");
    assert_eq!(worker.fetch("default"), None);
    let reply = worker.ok("dead_revive", json!({ "jobs": [job["id"]] }));
    assert_eq!(reply["count"], 1);
    let again = worker.fetch("default").expect("a revived job");
    assert_eq!(again["id"], job["id"]);
    assert_eq!(again.get("failures"), None, "failures begin at 0");
    assert_eq!(worker.ok("dead_list", json!({}))["jobs"], json!([]));
    let once_more = worker.ok("dead_revive", json!({ "jobs": [job["id"]] }));
    assert_eq!(once_more["not_found"], json!([job["id"]]));
}

#[test]
fn a_worker_may_forbid_further_attempts_or_have_nothing_kept() {
    let server = InProcess::start();
    let (mut worker, job) = leased(&server, json!({}));
    let fail = lease_with(&job, json!({ "dead": true }));
    let reply = worker.ok("fail", json!({ "leases": [fail] }));
    assert_eq!(reply["results"][0]["state"], "dead");
    let shown = worker.ok("job_get", json!({ "job": job["id"] }));
    assert_eq!(shown["reason"], "worker");

    worker.push(json!({ "kind": "k" }));
    let job = worker.fetch("default").expect("a job");
    let fail = lease_with(&job, json!({ "discard": true }));
    let reply = worker.ok("fail", json!({ "leases": [fail] }));
    assert_eq!(reply["results"], json!([{}]));
    let gone = worker.err("job_get", json!({ "job": job["id"] }));
    assert_eq!(gone["code"], "not_found");
    let row = counters(&mut worker, "default");
    assert_eq!((&row["dead"], &row["deleted"]), (&json!(1), &json!(1)));
}

#[test]
fn dead_jobs_are_listed_in_pages_and_purged() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    for _ in 0..5 {
        worker.push(json!({ "kind": "k" }));
        let job = worker.fetch("default").expect("a job");
        worker.ok(
            "fail",
            json!({ "leases": [lease_with(&job, json!({ "dead": true }))] }),
        );
    }
    let mut seen = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let mut fields = json!({ "limit": 2 });
        if !cursor.is_null() {
            fields["cursor"] = cursor;
        }
        let page = worker.ok("dead_list", fields);
        seen.extend(
            page["jobs"]
                .as_array()
                .expect("jobs")
                .iter()
                .map(|job| job["id"].clone()),
        );
        match page.get("cursor") {
            Some(next) => cursor = next.clone(),
            None => break,
        }
    }
    let mut distinct = seen.clone();
    distinct.sort_by_key(Value::to_string);
    distinct.dedup();
    assert_eq!((seen.len(), distinct.len()), (5, 5));
    let newest = worker.ok("dead_list", json!({ "newest_first": true, "limit": 1 }));
    assert_eq!(newest["jobs"][0]["id"], seen[4]);
    let purged = worker.ok("dead_purge", json!({ "queue": "default", "limit": 3 }));
    assert_eq!(
        (&purged["count"], &purged["more"]),
        (&json!(3), &json!(true))
    );
    let purged = worker.ok("dead_purge", json!({ "queue": "default" }));
    assert_eq!(
        (&purged["count"], &purged["more"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(counters(&mut worker, "default")["deleted"], 5);
    let foreign = worker.err("dead_list", json!({ "cursor": "AAAA" }));
    assert_eq!(
        (&foreign["code"], &foreign["field"]),
        (&json!("bad_request"), &json!("cursor"))
    );
}

#[test]
fn a_released_job_is_ready_at_the_head_and_costs_nothing() {
    let server = InProcess::start();
    let (mut worker, job) = leased(&server, json!({}));
    worker.push(json!({ "kind": "younger" }));
    let reply = worker.ok("release", json!({ "leases": [lease(&job)] }));
    assert_eq!(reply["results"][0]["state"], "ready");
    let again = worker.fetch("default").expect("a job");
    assert_eq!(again["id"], job["id"]);
    assert_eq!(again.get("failures"), None);
    let late = lease_with(&again, json!({ "delay_ms": 3_600_000 }));
    let reply = worker.ok("release", json!({ "leases": [late] }));
    assert_eq!(reply["results"][0]["state"], "scheduled");
    assert_eq!(worker.fetch("default").expect("a job")["kind"], "younger");
}

#[test]
fn extend_moves_a_deadline_forward_only() {
    let server = InProcess::start();
    let (mut worker, job) = leased(&server, json!({ "timeout_ms": 60_000 }));
    let mut extend = |ms: u64| {
        let item = lease_with(&job, json!({ "ms": ms }));
        let reply = worker.ok("extend", json!({ "leases": [item] }));
        reply["results"][0]["timeout_ms"]
            .as_u64()
            .expect("a deadline")
    };
    let longer = extend(600_000);
    assert!((590_000..=600_000).contains(&longer), "{longer}");
    let kept = extend(1_000);
    assert!((580_000..=longer).contains(&kept), "{kept}");
}

#[test]
fn an_attempt_that_takes_too_long_is_a_failure_and_its_late_ack_is_refused() {
    let server = InProcess::start();
    let (mut worker, job) = leased(&server, json!({ "timeout_ms": 1_000, "max_attempts": 1 }));
    let notice = worker.notice();
    assert_eq!(notice["op"], "lost");
    assert_eq!(notice["leases"], json!([lease(&job)]));
    let late = worker.ok("ack", json!({ "leases": [lease(&job)] }));
    assert_eq!(late["results"][0]["err"]["code"], "lease_lost");
    assert_eq!(late["results"][0]["err"]["state"], "dead");
    let shown = worker.ok("job_get", json!({ "job": job["id"] }));
    assert_eq!(shown["errors"][0]["kind"], "timeout");
}

#[test]
fn a_stale_lease_is_refused_by_every_answer_and_item_by_item() {
    let server = InProcess::start();
    let (mut worker, stale) = leased(&server, json!({}));
    worker.ok("release", json!({ "leases": [lease(&stale)] }));
    let live = worker.fetch("default").expect("a job");
    assert_eq!(stale["id"], live["id"]);
    for op in ["ack", "fail", "extend"] {
        let item = lease_with(&stale, json!({ "ms": 1_000 }));
        let reply = worker.ok(op, json!({ "leases": [item] }));
        let error = &reply["results"][0]["err"];
        assert_eq!(
            (&error["code"], &error["state"]),
            (&json!("lease_lost"), &json!("leased"))
        );
    }
    let reply = worker.ok("ack", json!({ "leases": [lease(&stale), lease(&live)] }));
    assert_eq!(reply["results"][0]["err"]["code"], "lease_lost");
    assert_eq!(reply["results"][1], json!({}));
    let gone = worker.ok("ack", json!({ "leases": [lease(&stale)] }));
    assert_eq!(gone["results"][0]["err"]["state"], "gone");
}

#[test]
fn a_lease_of_another_namespace_is_not_known() {
    let server = InProcess::start();
    let (mut worker, job) = leased(&server, json!({}));
    let elsewhere = json!({ "namespace": "elsewhere", "session": {} });
    let mut other = Connection::hello(server.address, elsewhere).0;
    for op in ["ack", "fail", "release", "extend"] {
        let item = lease_with(&job, json!({ "ms": 1_000 }));
        let item = match op {
            "extend" => item,
            _ => lease(&job),
        };
        let reply = other.ok(op, json!({ "leases": [item] }));
        let error = &reply["results"][0]["err"];
        assert_eq!(
            (&error["code"], &error["state"]),
            (&json!("lease_lost"), &json!("gone"))
        );
    }
    let reply = worker.ok("ack", json!({ "leases": [lease(&job)] }));
    assert_eq!(reply["results"], json!([{}]));
}

#[test]
fn what_became_of_each_kind_is_counted_since_the_start_of_the_server() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    for kind in ["good", "bad", "good"] {
        worker.push(json!({ "kind": kind, "max_attempts": 1 }));
    }
    for _ in 0..3 {
        let job = worker.wait("default");
        let op = if job["kind"] == "good" { "ack" } else { "fail" };
        worker.ok(op, json!({ "leases": [lease(&job)] }));
    }
    let stats = worker.ok("stats", json!({}));
    assert_eq!(
        stats["kinds"],
        json!([
            { "kind": "bad", "granted": 1, "done": 0, "failed": 1, "dead": 1 },
            { "kind": "good", "granted": 2, "done": 2, "failed": 0, "dead": 0 },
        ])
    );
    let (mut elsewhere, _) = Connection::hello(server.address, json!({ "namespace": "n" }));
    assert_eq!(elsewhere.ok("stats", json!({})).get("kinds"), None);
    let server = server.restart();
    let stats = Connection::open(server.address).ok("stats", json!({}));
    assert_eq!(stats.get("kinds"), None);
    assert_eq!(stats["counters"]["done"], 2);
}
