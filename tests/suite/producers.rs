//! Exactly-once pushes: numbers, slots, and what is sent again on a new connection.

use serde_json::{Value, json};
use support::{Connection, InProcess};

use crate::counters;

fn producer(server: &InProcess) -> (Connection, Value) {
    let (connection, hello) = Connection::hello(server.address, json!({ "producer": {} }));
    (connection, hello["producer"].clone())
}

fn again(server: &InProcess, id: &Value) -> Connection {
    Connection::hello(server.address, json!({ "producer": { "id": id } })).0
}

fn numbered(seq: u64) -> Value {
    json!({ "seq": seq, "jobs": [{ "kind": format!("push-{seq}") }] })
}

#[test]
fn a_push_sent_again_on_a_new_connection_answers_its_first_outcome() {
    let server = InProcess::start();
    let (mut first, id) = producer(&server);
    let outcome = first.ok("push", numbered(1));
    assert_eq!(first.ok("push", numbered(1)), outcome);
    drop(first);
    let mut second = again(&server, &id);
    assert_eq!(second.ok("push", numbered(1)), outcome);
    assert_eq!(counters(&mut second, "default")["pushed"], 1);
    let server = server.restart();
    let mut third = again(&server, &id);
    assert_eq!(
        third.ok("push", numbered(1)),
        outcome,
        "after a restart, too"
    );
    assert_eq!(counters(&mut third, "default")["pushed"], 1);
}

#[test]
fn a_push_whose_reply_was_never_read_is_applied_once() {
    let server = InProcess::start();
    let (mut first, id) = producer(&server);
    for seq in 1..=100 {
        first.send("push", numbered(seq));
    }
    drop(first);
    let mut second = again(&server, &id);
    let ids: Vec<u64> = (1..=100)
        .map(|seq| second.send("push", numbered(seq)))
        .collect();
    for id in ids {
        second.reply(id).expect("a reply");
    }
    assert_eq!(counters(&mut second, "default")["pushed"], 100);
}

#[test]
fn a_number_older_than_its_slot_is_refused_and_changes_nothing() {
    let server = InProcess::start();
    let (mut connection, _) = producer(&server);
    connection.ok("push", numbered(300));
    let error = connection.err("push", numbered(300 - 256));
    assert_eq!(error["code"], "sequence_expired");
    connection.ok("push", numbered(300 - 255));
    assert_eq!(counters(&mut connection, "default")["pushed"], 2);
}

#[test]
fn a_push_that_was_refused_as_a_whole_leaves_its_number_free() {
    let server = InProcess::start();
    let (mut connection, _) = producer(&server);
    connection.err("push", json!({ "seq": 1, "jobs": [] }));
    let job = json!({ "kind": "k", "priority": 10 });
    connection.err("push", json!({ "seq": 1, "jobs": [job], "atomic": true }));
    let reply = connection.ok("push", numbered(1));
    assert!(reply["results"][0]["id"].is_string());
}

#[test]
fn a_numbered_push_needs_a_producer_and_a_made_up_producer_is_unknown() {
    let server = InProcess::start();
    let mut connection = Connection::open(server.address);
    let error = connection.err("push", numbered(1));
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("bad_request"), &json!("seq"))
    );
    for id in ["", "made-up", &"A".repeat(64)] {
        let mut connection = Connection::connect(server.address);
        let error = connection.say_hello(json!({ "producer": { "id": id } }));
        assert_eq!(error.expect_err("refused")["code"], "unknown_producer");
        connection.wait_closed();
    }
}

#[test]
fn two_producers_do_not_share_numbers() {
    let server = InProcess::start();
    let (mut one, _) = producer(&server);
    let (mut two, _) = producer(&server);
    assert_ne!(one.ok("push", numbered(1)), two.ok("push", numbered(1)));
}
