//! What a client sees: the behaviour of a whole server over real sockets, one module a subject.
//!
//! Requests and replies are written as JSON and travel as the MessagePack that they are, so that no
//! type of ours stands between a test and the wire. What a single part does is tested beside it.

mod auth;
mod bad_input;
mod batches;
mod cancel;
mod changing;
mod connections;
mod cron;
mod demo;
mod directories;
mod durability;
mod events;
mod expiry;
mod fairness;
mod lifecycle;
mod limits;
mod listing;
mod outcomes;
mod pause;
mod producers;
mod queues;
mod results;
mod secrets;
mod sessions;
mod signals;
mod tasks;
mod unique;
mod upkeep;
mod workflows;

use serde_json::{Value, json};

/// The lease of a granted job, as `ack` and its kin name it.
fn lease(job: &Value) -> Value {
    json!({ "job": job["id"], "lease": job["lease"] })
}

/// The lease of a granted job with further fields.
fn lease_with(job: &Value, fields: Value) -> Value {
    let mut lease = lease(job);
    let more = fields.as_object().expect("a map").clone();
    lease.as_object_mut().expect("a map").extend(more);
    lease
}

/// What an error says besides its message: code, field, limit and actual figure.
fn essence(error: &Value) -> (&str, &str, Option<u64>, Option<u64>) {
    (
        error["code"].as_str().expect("a code"),
        error["field"].as_str().unwrap_or("-"),
        error["limit"].as_u64(),
        error["actual"].as_u64(),
    )
}

/// The counters of a queue.
fn counters(connection: &mut support::Connection, queue: &str) -> Value {
    let reply = connection.ok("queue_list", json!({ "pattern": queue }));
    reply["queues"][0]["counters"].clone()
}
