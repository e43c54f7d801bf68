//! Sessions: they outlive connections and the server, are resumed with what is held, and are lost.

use std::time::Duration;

use ganger_server::clock::Stopwatch;
use serde_json::{Value, json};
use support::{Connection, InProcess};

use crate::lease;

/// The `session` of hello that goes on with one.
fn resumed(session: &Value, held: Value) -> Value {
    json!({ "session": { "resume": {
        "id": session["id"],
        "secret": session["secret"],
        "held": held,
    } } })
}

/// A worker with `count` leases, and what hello said of its session.
fn leased(server: &InProcess, count: usize) -> (Connection, Value, Vec<Value>) {
    let (mut worker, hello) = Connection::hello(server.address, json!({ "session": {} }));
    for number in 0..count {
        worker.push(json!({ "kind": format!("job-{number}") }));
    }
    let reply = worker.ok("fetch", json!({ "queues": ["default"], "max": count }));
    let jobs = reply["jobs"].as_array().expect("jobs").clone();
    assert_eq!(jobs.len(), count);
    (worker, hello["session"].clone(), jobs)
}

#[test]
fn what_a_resumed_session_holds_goes_on_and_what_it_does_not_name_is_released() {
    let server = InProcess::start();
    let (worker, session, jobs) = leased(&server, 2);
    drop(worker);
    let hello = resumed(&session, json!([lease(&jobs[0])]));
    let (mut worker, reply) = Connection::hello(server.address, hello);
    assert_eq!(reply["session"]["id"], session["id"]);
    assert_eq!(reply["session"].get("lost"), None);
    let again = worker.fetch("default").expect("the unnamed one");
    assert_eq!(again["id"], jobs[1]["id"]);
    assert!(again["lease"].as_u64() > jobs[1]["lease"].as_u64());
    let reply = worker.ok("ack", json!({ "leases": [lease(&jobs[0]), lease(&again)] }));
    assert_eq!(reply["results"], json!([{}, {}]));
}

#[test]
fn a_lease_that_the_server_does_not_know_comes_back_as_lost() {
    let server = InProcess::start();
    let (mut worker, session, jobs) = leased(&server, 1);
    worker.ok("ack", json!({ "leases": [lease(&jobs[0])] }));
    drop(worker);
    let hello = resumed(&session, json!([lease(&jobs[0])]));
    let (_, reply) = Connection::hello(server.address, hello);
    assert_eq!(reply["session"]["lost"], json!([lease(&jobs[0])]));
}

#[test]
fn a_session_with_a_wrong_secret_is_a_new_one_and_all_it_holds_is_lost() {
    let server = InProcess::start();
    let (mut rightful, session, jobs) = leased(&server, 1);
    let held = json!([lease(&jobs[0])]);
    for secret in [json!(""), json!("AAAA"), Value::String("x".repeat(1_000))] {
        let mut hello = resumed(&session, held.clone());
        hello["session"]["resume"]["secret"] = secret;
        let (_, reply) = Connection::hello(server.address, hello);
        assert_ne!(reply["session"]["id"], session["id"]);
        assert_eq!(reply["session"]["lost"], held);
    }
    let reply = rightful.ok("ack", json!({ "leases": held }));
    assert_eq!(reply["results"], json!([{}]), "the real one is untouched");
}

#[test]
fn a_session_of_another_namespace_is_not_known() {
    let server = InProcess::start();
    let (_worker, session, jobs) = leased(&server, 1);
    let mut hello = resumed(&session, json!([lease(&jobs[0])]));
    hello["namespace"] = json!("elsewhere");
    let (_, reply) = Connection::hello(server.address, hello);
    assert_ne!(reply["session"]["id"], session["id"]);
    assert_eq!(reply["session"]["lost"], json!([lease(&jobs[0])]));
}

#[test]
fn goodbye_gives_everything_back_and_ends_the_session_but_not_the_connection() {
    let server = InProcess::start();
    let (mut worker, _, jobs) = leased(&server, 1);
    assert_eq!(worker.ok("goodbye", json!({})), json!({}));
    let error = worker.err("fetch", json!({ "queues": ["default"] }));
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("bad_request"), &json!("op"))
    );
    let mut other = Connection::worker(server.address);
    assert_eq!(other.fetch("default").expect("a job")["id"], jobs[0]["id"]);
    worker.ok("stats", json!({}));
}

#[test]
fn a_session_that_says_nothing_is_lost_and_its_jobs_go_to_others() {
    let server = InProcess::start();
    let hello = json!({ "session": { "ttl_ms": 1_000 } });
    let (mut silent, _) = Connection::hello(server.address, hello);
    silent.push(json!({ "kind": "k" }));
    let job = silent.fetch("default").expect("a job");
    let mut other = Connection::worker(server.address);
    let again = other.wait("default");
    assert_eq!(again["id"], job["id"]);
    assert_eq!(again["attempt"], 2);
    assert_eq!(again.get("failures"), None, "a loss is no failure");
    let error = silent.err("heartbeat", json!({}));
    assert_eq!(error["code"], "not_found");
    let error = silent.err("fetch", json!({ "queues": ["default"] }));
    assert_eq!(error["code"], "not_found");
    let late = silent.ok("ack", json!({ "leases": [lease(&job)] }));
    assert_eq!(late["results"][0]["err"]["code"], "lease_lost");
    let shown = other.ok("job_get", json!({ "job": job["id"] }));
    assert_eq!(shown["losses"], 1);
}

#[test]
fn a_session_outlives_a_drained_server_with_its_leases() {
    let server = InProcess::start();
    let (worker, session, jobs) = leased(&server, 1);
    drop(worker);
    let server = server.restart();
    let hello = resumed(&session, json!([lease(&jobs[0])]));
    let (mut worker, reply) = Connection::hello(server.address, hello);
    assert_eq!(reply["session"]["id"], session["id"]);
    assert_eq!(reply["session"].get("lost"), None);
    assert_eq!(worker.fetch("default"), None, "nothing is repeated");
    let reply = worker.ok("ack", json!({ "leases": [lease(&jobs[0])] }));
    assert_eq!(reply["results"], json!([{}]));
}

#[test]
fn a_draining_server_takes_answers_and_nothing_new() {
    let server = InProcess::start();
    let (mut worker, _, jobs) = leased(&server, 1);
    // Unread replies keep the drain going for a moment; each request below is answered in it.
    let acked = worker.send("ack", json!({ "leases": [lease(&jobs[0])] }));
    server.shut_down();
    assert_eq!(
        worker.reply(acked).expect("a reply")["results"],
        json!([{}])
    );
    worker.wait_closed();
}

#[test]
fn a_request_without_a_session_that_needs_one_is_refused_by_name() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let item = json!({ "job": "AAAAAAABBQAAAAAAAAAAgAAAAAAAAAAA", "lease": 1, "ms": 1_000 });
    for op in [
        "fetch",
        "ack",
        "fail",
        "release",
        "extend",
        "heartbeat",
        "goodbye",
    ] {
        let error = connection.err(op, json!({ "queues": ["default"], "leases": [item] }));
        let told = (&error["code"], &error["field"]);
        assert_eq!(told, (&json!("bad_request"), &json!("op")), "{op}");
    }
}

#[test]
fn a_session_that_waits_without_leases_needs_no_heartbeat() {
    let server = InProcess::start();
    let hello = json!({ "session": { "ttl_ms": 1_000 } });
    let (mut worker, _) = Connection::hello(server.address, hello);
    let fetch = json!({ "queues": ["a", "b"], "weights": [3, 1], "wait_ms": 3_500 });
    assert_eq!(worker.ok("fetch", fetch), json!({ "jobs": [] }));
    worker.ok("heartbeat", json!({}));
}

#[test]
fn a_worker_whose_wait_is_over_has_its_whole_ttl_to_say_something() {
    let server = InProcess::start();
    let hello = json!({ "session": { "ttl_ms": 2_000 } });
    let (mut worker, _) = Connection::hello(server.address, hello);
    let mut producer = Connection::open(server.address);
    let waiting = worker.send("fetch", json!({ "queues": ["a"], "wait_ms": 15_000 }));
    // Some moment between two looks at the session, late in its ttl.
    let watch = Stopwatch::start();
    while watch.elapsed() < Duration::from_millis(1_900) {
        producer.ok("stats", json!({}));
    }
    producer.push(json!({ "kind": "k", "queue": "a" }));
    let job = worker.reply(waiting).expect("a reply")["jobs"][0].clone();
    let watch = Stopwatch::start();
    while watch.elapsed() < Duration::from_millis(1_000) {
        producer.ok("stats", json!({}));
    }
    let reply = worker.ok("ack", json!({ "leases": [lease(&job)] }));
    assert_eq!(reply["results"], json!([{}]));
}
