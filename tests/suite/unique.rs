//! Unique keys as a client sees them, over restarts too.

use serde_json::{Value, json};
use support::{Connection, InProcess};

use crate::{counters, essence, lease, lease_with};

fn job(fields: Value) -> Value {
    let mut job = json!({ "kind": "k", "unique": { "key": "report:42" } });
    for (name, value) in fields.as_object().expect("a map") {
        job[name] = value.clone();
    }
    job
}

/// What a push of one job answers.
fn result(connection: &mut Connection, job: &Value) -> Value {
    let reply = connection.ok("push", json!({ "jobs": [job] }));
    reply["results"][0].clone()
}

#[test]
fn a_second_push_finds_the_first_job_until_that_is_done() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(job(json!({})));
    let again = result(&mut worker, &job(json!({})));
    assert_eq!(again, json!({ "id": id, "existing": true }));
    let shown = worker.ok("job_get", json!({ "job": id }));
    assert_eq!(shown["unique"]["key"], "report:42");
    let granted = worker.fetch("default").expect("a job");
    assert_eq!(result(&mut worker, &job(json!({})))["existing"], true);
    worker.ok("ack", json!({ "leases": [lease(&granted)] }));
    let new = result(&mut worker, &job(json!({})));
    assert_ne!(new["id"], id.as_str());
    assert_eq!(new.get("existing"), None);
    assert_eq!(counters(&mut worker, "default")["pushed"], 2);
}

#[test]
fn a_key_is_held_over_restarts_and_let_go_after_them() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let large = || job(json!({ "payload": support::bin([7; 20_000]) }));
    let id = worker.push(large());
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    assert_eq!(result(&mut worker, &large())["id"], id.as_str());
    let granted = worker.fetch("default").expect("a job");
    let fail = lease_with(&granted, json!({ "retry_in_ms": 0 }));
    worker.ok("fail", json!({ "leases": [fail] }));
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    assert_eq!(result(&mut worker, &large())["id"], id.as_str());
    let granted = worker.wait("default");
    worker.ok("ack", json!({ "leases": [lease(&granted)] }));
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    assert_ne!(result(&mut worker, &large())["id"], id.as_str());
}

#[test]
fn a_key_until_start_is_free_from_the_first_grant_on() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let unique = json!({ "unique": { "key": "sync", "until": "start" } });
    let id = worker.push(job(unique.clone()));
    assert_eq!(result(&mut worker, &job(unique.clone()))["id"], id.as_str());
    worker.fetch("default").expect("a job");
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    assert_ne!(result(&mut worker, &job(unique))["id"], id.as_str());
}

#[test]
fn reject_is_answered_with_a_conflict_that_names_the_holder() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let id = worker.push(job(json!({})));
    let unique = json!({ "unique": { "key": "report:42", "on_conflict": "reject" } });
    let error = result(&mut worker, &job(unique.clone()))["err"].clone();
    assert_eq!(essence(&error), ("conflict", "unique", None, None));
    assert!(error["message"].as_str().expect("a text").contains(&id));
    let push = json!({ "jobs": [{ "kind": "k" }, job(unique)], "atomic": true });
    let error = worker.err("push", push);
    assert_eq!(essence(&error), ("conflict", "jobs[1].unique", None, None));
    assert_eq!(counters(&mut worker, "default")["pushed"], 1);
}

#[test]
fn replace_debounces_and_the_last_payload_runs_once() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let index = |payload: &[u8], delay_ms: u64| {
        job(json!({
            "payload": support::bin(payload),
            "delay_ms": delay_ms,
            "unique": { "key": "index:42", "on_conflict": "replace" },
        }))
    };
    let id = worker.push(index(b"one", 60_000));
    let replaced = json!({ "id": id, "existing": true, "replaced": true });
    assert_eq!(result(&mut worker, &index(b"two", 60_000)), replaced);
    assert_eq!(result(&mut worker, &index(b"three", 0)), replaced);
    let granted = worker.fetch("default").expect("a job");
    assert_eq!(granted["payload"], support::bin(b"three"));
    let late = result(&mut worker, &index(b"four", 0));
    assert_eq!(late, json!({ "id": id, "existing": true }));
    worker.ok("ack", json!({ "leases": [lease(&granted)] }));
    assert_eq!(worker.fetch("default"), None);
}

#[test]
fn a_key_until_ttl_throttles_though_its_job_is_done_and_the_server_was_away() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let mail = |ttl_ms: u64| {
        job(json!({ "unique": { "key": "mail:ada", "until": "ttl", "ttl_ms": ttl_ms } }))
    };
    let id = worker.push(mail(60_000));
    let granted = worker.fetch("default").expect("a job");
    worker.ok("ack", json!({ "leases": [lease(&granted)] }));
    drop(worker);
    let server = server.restart();
    let mut worker = Connection::worker(server.address);
    let again = result(&mut worker, &mail(60_000));
    assert_eq!(again, json!({ "id": id, "existing": true }));
    // Another key is free again once its time is over.
    let brief = || job(json!({ "unique": { "key": "mail:bob", "until": "ttl", "ttl_ms": 1 } }));
    worker.push(brief());
    let pause = job(json!({ "unique": { "key": "pause" }, "queue": "pause", "delay_ms": 20 }));
    worker.push(pause);
    worker.wait("pause");
    assert_eq!(result(&mut worker, &brief()).get("existing"), None);
}

#[test]
fn derived_keys_tell_jobs_apart_by_the_named_fields_alone() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let of = |of: Value, queue: &str, payload: &[u8]| {
        job(json!({
            "unique": { "of": of },
            "queue": queue,
            "payload": support::bin(payload),
        }))
    };
    let kind = worker.push(of(json!(["kind"]), "a", b"1"));
    let again = result(&mut worker, &of(json!(["kind"]), "b", b"2"));
    assert_eq!(again["id"], kind.as_str());
    let all = json!(["payload", "queue", "kind"]);
    let first = worker.push(of(all.clone(), "a", b"1"));
    assert_ne!(worker.push(of(all, "a", b"2")), first);
    let order = json!(["kind", "queue", "payload"]);
    assert_eq!(
        result(&mut worker, &of(order, "a", b"1"))["id"],
        first.as_str()
    );
}

#[test]
fn a_revival_waits_for_its_key() {
    let server = InProcess::start();
    let mut worker = Connection::worker(server.address);
    let dead = worker.push(job(json!({})));
    let granted = worker.fetch("default").expect("a job");
    let fail = lease_with(&granted, json!({ "dead": true }));
    worker.ok("fail", json!({ "leases": [fail] }));
    worker.push(job(json!({})));
    let reply = worker.ok("dead_revive", json!({ "jobs": [dead] }));
    assert_eq!(
        reply,
        json!({ "count": 0, "more": false, "conflicts": [dead] })
    );
    let granted = worker.fetch("default").expect("a job");
    worker.ok("ack", json!({ "leases": [lease(&granted)] }));
    let reply = worker.ok("dead_revive", json!({ "jobs": [dead] }));
    assert_eq!(reply, json!({ "count": 1, "more": false }));
    assert_eq!(result(&mut worker, &job(json!({})))["id"], dead.as_str());
}

#[test]
fn a_numbered_push_sent_again_answers_what_it_found_the_first_time() {
    let server = InProcess::start();
    let hello = json!({ "session": {}, "producer": {} });
    let (mut worker, hello) = Connection::hello(server.address, hello);
    let id = worker.push(job(json!({})));
    let push = json!({ "jobs": [job(json!({}))], "seq": 1 });
    let first = worker.ok("push", push.clone());
    assert_eq!(first["results"][0], json!({ "id": id, "existing": true }));
    let granted = worker.fetch("default").expect("a job");
    worker.ok("ack", json!({ "leases": [lease(&granted)] }));
    drop(worker);
    let server = server.restart();
    let producer = json!({ "producer": { "id": hello["producer"] } });
    let (mut producer, _) = Connection::hello(server.address, producer);
    assert_eq!(producer.ok("push", push), first);
}

#[test]
fn unique_options_that_make_no_sense_are_refused_by_field() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let cases = [
        (json!({}), "unique.key"),
        (json!({ "key": "k", "of": ["kind"] }), "unique.of"),
        (json!({ "of": ["kind", "kind"] }), "unique.of"),
        (json!({ "key": "k", "until": "ttl" }), "unique.ttl_ms"),
        (json!({ "key": "k", "ttl_ms": 5 }), "unique.ttl_ms"),
        (
            json!({ "key": "k", "until": "ttl", "ttl_ms": 0 }),
            "unique.ttl_ms",
        ),
    ];
    for (unique, field) in cases {
        let result = result(&mut connection, &json!({ "kind": "k", "unique": unique }));
        let error = &result["err"];
        let told = (error["code"].as_str(), error["field"].as_str());
        assert_eq!(told, (Some("bad_request"), Some(field)), "{unique}");
    }
    // The shape of a job refuses the whole request.
    for (unique, field) in [
        (json!({ "key": "k".repeat(129) }), "jobs[0].unique.key"),
        (
            json!({ "key": "k", "until": "ever" }),
            "jobs[0].unique.until",
        ),
        (json!({ "of": ["tags"] }), "jobs[0].unique.of[0]"),
    ] {
        let jobs = json!([{ "kind": "k", "unique": unique }]);
        let error = connection.err("push", json!({ "jobs": jobs }));
        let told = (error["code"].as_str(), error["field"].as_str());
        assert_eq!(told, (Some("bad_request"), Some(field)), "{unique}");
    }
}

#[path = "../../client/rust/examples/unique.rs"]
#[expect(dead_code, reason = "its main is for whoever runs it by hand")]
mod example;

#[test]
fn the_example_debounces_and_throttles() {
    let server = InProcess::start();
    let url = format!("ganger://{}", server.address);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let options = ganger_client::ClientOptions::from_url(&url).expect("a url");
        let client = ganger_client::Client::connect(options)
            .await
            .expect("connected");
        example::debounce(&client).await.expect("debounced");
        example::throttle(&client).await.expect("throttled");
        client.close().await;
    });
    let mut worker = Connection::worker(server.address);
    assert_eq!(counters(&mut worker, "search")["pushed"], 1);
    assert_eq!(counters(&mut worker, "mail")["pushed"], 1);
    let job = worker.wait("search");
    let payload = support::bin(b"{\"document\":42,\"revision\":3}");
    assert_eq!(job["payload"], payload);
}
