//! Tokens: who gets in, and what each may do. The proof is made here by hand, from the page.

use ganger_server::{
    auth::{TokenConfig, TokenHash, Verb},
    config::{Config, ConfigError},
};
use serde_json::{Value, json};
use support::{Connection, InProcess, bin};

const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";

fn token(id: &str, verbs: &[Verb]) -> TokenConfig {
    TokenConfig {
        id: id.parse().expect("an id"),
        hash: TokenHash::of(SECRET),
        verbs: verbs.to_vec(),
        namespaces: None,
        queues: None,
    }
}

fn server(tokens: &[TokenConfig]) -> InProcess {
    InProcess::with(|config| config.auth.token = tokens.to_vec())
}

/// Says hello with a token of this id and these further fields.
fn hello(server: &InProcess, id: &str, mut fields: Value) -> (Connection, Result<Value, Value>) {
    let mut connection = Connection::connect(server.address);
    fields["auth"] = connection.auth(&format!("{id}.{SECRET}"));
    let reply = connection.say_hello(fields);
    (connection, reply)
}

fn open(server: &InProcess, id: &str, fields: Value) -> Connection {
    let (connection, reply) = hello(server, id, fields);
    reply.expect("hello was refused");
    connection
}

#[test]
fn the_right_proof_gets_in_and_every_wrong_one_is_refused_alike() {
    let server = server(&[token("app", &Verb::ALL)]);
    let mut connection = open(&server, "app", json!({}));
    assert_eq!(connection.welcome["auth_required"], true);
    connection.push(json!({ "kind": "k" }));

    let other_nonce = Connection::connect(server.address).auth(&format!("app.{SECRET}"));
    let wrong = [
        Value::Null,
        json!({ "id": "app", "mac": bin([0; 32]) }),
        json!({ "id": "app", "mac": bin([]) }),
        json!({ "id": "nobody", "mac": bin([0; 32]) }),
        json!({ "id": "", "mac": bin([0; 32]) }),
        other_nonce,
    ];
    for auth in wrong {
        let mut connection = Connection::connect(server.address);
        let error = connection
            .say_hello(json!({ "auth": auth }))
            .expect_err("refused");
        assert_eq!(error["code"], "unauthorized", "{auth}");
        assert_eq!(error["retryable"], false);
        connection.wait_closed();
    }
}

#[test]
fn a_verb_that_a_token_lacks_is_forbidden_and_the_connection_goes_on() {
    let server = server(&[
        token("push", &[Verb::Push]),
        token("work", &[Verb::Work]),
        token("inspect", &[Verb::Inspect]),
        token("admin", &[Verb::Admin]),
    ]);
    let requests = [
        ("push", "push", json!({ "jobs": [{ "kind": "k" }] })),
        ("work", "fetch", json!({ "queues": ["default"] })),
        ("work", "heartbeat", json!({})),
        ("inspect", "queue_list", json!({})),
        ("inspect", "stats", json!({})),
        ("inspect", "dead_list", json!({})),
        ("admin", "queue_pause", json!({ "queues": ["default"] })),
        ("admin", "dead_purge", json!({ "queue": "default" })),
    ];
    // Makes the queue.
    open(&server, "push", json!({})).push(json!({ "kind": "k" }));
    for id in ["push", "work", "inspect", "admin"] {
        let fields = match id {
            "work" => json!({ "session": {} }),
            _ => json!({}),
        };
        let mut connection = open(&server, id, fields);
        for (verb, op, fields) in &requests {
            match connection.ask(op, fields.clone()) {
                Ok(_) => assert_eq!(id, *verb, "{op}"),
                // Without a session the state is refused before the verb.
                Err(error) if *verb == "work" => assert_eq!(error["code"], "bad_request"),
                Err(error) => {
                    assert_ne!(id, *verb, "{op}: {error}");
                    assert_eq!(error["code"], "forbidden", "{op}");
                }
            }
        }
    }
    let (mut connection, reply) = hello(&server, "push", json!({ "session": {} }));
    let error = reply.expect_err("refused");
    assert_eq!(
        (&error["code"], &error["field"]),
        (&json!("forbidden"), &json!("session"))
    );
    connection.wait_closed();
}

#[test]
fn a_token_is_good_for_its_namespaces_and_queues_only() {
    let mut limited = token("mail", &Verb::ALL);
    limited.namespaces = Some(vec!["shop".parse().expect("a name")]);
    limited.queues = Some(vec![
        "mail".parse().expect("a name"),
        "mail.*".parse().expect("a pattern"),
    ]);
    let server = server(&[limited]);
    let (mut connection, reply) = hello(&server, "mail", json!({}));
    assert_eq!(reply.expect_err("refused")["code"], "forbidden");
    connection.wait_closed();

    let fields = json!({ "namespace": "shop", "session": {} });
    let mut connection = open(&server, "mail", fields);
    let push = |queue: &str| json!({ "jobs": [{ "kind": "k", "queue": queue }] });
    let fetch = |queue: &str| json!({ "queues": [queue] });
    for queue in ["mail", "mail.in"] {
        connection.ok("push", push(queue));
        connection.ok("fetch", fetch(queue));
    }
    connection.ok("fetch", fetch("mail.*"));
    connection.ok("queue_list", json!({ "pattern": "mail.*" }));
    let refused = [
        ("push", push("mailbox")),
        ("push", push("mail*").clone()),
        (
            "push",
            json!({ "jobs": [{ "kind": "k", "queue": "mail" }, { "kind": "k" }] }),
        ),
        ("fetch", fetch("mail*")),
        ("fetch", fetch("*")),
        ("fetch", json!({ "queues": ["mail", "other"] })),
        ("queue_list", json!({})),
        ("queue_list", json!({ "pattern": "m*" })),
        ("queue_pause", json!({ "queues": ["mail", "other"] })),
        ("dead_list", json!({ "queue": "other" })),
        ("dead_revive", json!({ "queue": "other" })),
        (
            "dead_purge",
            json!({ "jobs": ["AAAAAAABBQAAAAAAAAAAgAAAAAAAAAAA"] }),
        ),
        ("stats", json!({})),
    ];
    for (op, fields) in refused {
        let error = connection.err(op, fields.clone());
        let code = error["code"].as_str().expect("a code");
        // A pattern is no name of a queue to push to.
        let expected = match fields["jobs"][0]["queue"].as_str() {
            Some("mail*") => "bad_request",
            _ => "forbidden",
        };
        assert_eq!(code, expected, "{op} {fields}");
    }
    connection.ok("heartbeat", json!({}));
}

#[test]
fn an_address_that_guesses_is_not_heard_any_more() {
    let server = server(&[token("app", &Verb::ALL)]);
    // All at once, so that their growing delays pass together.
    let mut guesses: Vec<(Connection, u64)> = (0..20)
        .map(|_| {
            let mut connection = Connection::connect(server.address);
            let auth = json!({ "id": "app", "mac": bin([1; 32]) });
            let id = connection.send("hello", json!({ "v": 1, "auth": auth }));
            (connection, id)
        })
        .collect();
    for (connection, id) in &mut guesses {
        assert_eq!(
            connection.reply(*id).expect_err("refused")["code"],
            "unauthorized"
        );
    }
    let (mut connection, reply) = hello(&server, "app", json!({}));
    let error = reply.expect_err("refused");
    assert_eq!(error["code"], "overloaded");
    assert!(error["retry_after_ms"].as_u64() > Some(0), "{error}");
    connection.wait_closed();
}

#[test]
fn an_address_beyond_this_machine_needs_tokens_or_a_word() {
    let beyond = Config {
        listen: ([0, 0, 0, 0], 0).into(),
        ..Config::default()
    };
    assert!(matches!(beyond.check(), Err(ConfigError::OpenToAll { .. })));
    let insecure = Config {
        insecure_no_auth: true,
        ..beyond.clone()
    };
    insecure.check().expect("said so");
    assert_eq!(insecure.warnings().len(), 1);
    let mut proven = beyond;
    proven.auth.token = vec![token("app", &Verb::ALL)];
    proven.check().expect("tokens");
    assert_eq!(proven.warnings().len(), 1, "there is no TLS");
}
