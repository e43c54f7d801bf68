//! Is this a ganger server? Sends the vectors of the protocol and a few conversations to any
//! address and says of each whether the answer is the one that `docs/PROTOCOL.md` promises. Works
//! on other implementations, too; it knows nothing but the wire.
//!
//! `--url HOST:PORT` or GANGER_CONFORMANCE_URL names the server, which should be a fresh one;
//! without, one of ours is started. GANGER_TOKEN is used when the server asks for a token.

use std::{
    env, fs, net::SocketAddr, net::ToSocketAddrs as _, panic, path::Path, process::ExitCode,
};

use serde_json::{Value, json};
use support::{Connection, InProcess, bin, from_hex, from_map, to_map};

/// Talks to a server, and panics when it does not say what it should.
type Conversation = fn(SocketAddr);

/// The codes of the page.
const CODES: [&str; 13] = [
    "bad_request",
    "unsupported_op",
    "too_large",
    "unauthorized",
    "forbidden",
    "not_found",
    "conflict",
    "lease_lost",
    "sequence_expired",
    "unknown_producer",
    "overloaded",
    "draining",
    "unavailable",
];

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let named = match args.next().as_deref() {
        Some("--url") => args.next(),
        _ => env::var("GANGER_CONFORMANCE_URL").ok(),
    };
    let ours = named.is_none().then(InProcess::start);
    let address = match (&ours, &named) {
        (Some(server), _) => server.address,
        (None, url) => resolve(url.as_deref().unwrap_or_default()),
    };
    panic::set_hook(Box::new(|_| {}));
    let mut tally = Tally::default();
    tally.hold("welcome", || welcome(address));
    for vector in vectors("malformed.json") {
        tally.hold(&name(&vector), || malformed(address, &vector));
    }
    for file in ["requests.json", "tolerated.json"] {
        for vector in vectors(file) {
            tally.hold(&name(&vector), || understood(address, &vector));
        }
    }
    let conversations: [(&str, Conversation); 5] = [
        ("a worker's conversation", work),
        ("a push sent again", push_again),
        ("a session resumed", resume),
        ("a fetch that waits", wait),
        ("a job that fails for good", die),
    ];
    for (name, conversation) in conversations {
        tally.hold(name, || conversation(address));
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    match tally.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn resolve(url: &str) -> SocketAddr {
    let place = url.trim_start_matches("ganger://").trim_end_matches('/');
    let mut found = place.to_socket_addrs().expect("HOST:PORT");
    found.next().expect("an address")
}

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn hold(&mut self, name: &str, check: impl FnOnce()) {
        match panic::catch_unwind(panic::AssertUnwindSafe(check)) {
            Ok(()) => self.passed += 1,
            Err(cause) => {
                let text = cause.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
                println!("FAIL {name}: {}", text.unwrap_or("it panicked"));
                self.failed += 1;
            }
        }
    }
}

/// The vectors of a file that a client sends.
fn vectors(file: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/vectors");
    let text = fs::read_to_string(folder.join(file)).expect("the vectors");
    let all: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    all.into_iter()
        .filter(|vector| vector["direction"] == "client")
        .collect()
}

fn name(vector: &Value) -> String {
    vector["name"].as_str().expect("a name").to_owned()
}

fn frame(vector: &Value) -> Vec<u8> {
    from_hex(vector["frame"].as_str().expect("a frame"))
}

/// A connection that has said hello with these fields, and the token if there is one.
fn open(address: SocketAddr, mut fields: Value) -> (Connection, Value) {
    let mut connection = Connection::connect(address);
    if connection.welcome["auth_required"] == true {
        let token = env::var("GANGER_TOKEN").expect("the server asks for a token: GANGER_TOKEN");
        fields["auth"] = connection.auth(&token);
    }
    let reply = connection.say_hello(fields).expect("hello was refused");
    (connection, reply)
}

fn open_all(address: SocketAddr) -> (Connection, Value) {
    open(
        address,
        json!({ "session": { "name": "conformance" }, "producer": {} }),
    )
}

fn welcome(address: SocketAddr) {
    let connection = Connection::connect(address);
    let welcome = &connection.welcome;
    assert_eq!(
        (&welcome["id"], &welcome["op"]),
        (&json!(0), &json!("welcome"))
    );
    assert!(welcome["v"].as_u64() >= Some(1), "v: {welcome}");
    assert!(welcome["min_v"].as_u64() <= Some(1), "min_v: {welcome}");
    let nonce = welcome["nonce"]["$bin"].as_str().expect("a nonce");
    assert_eq!(nonce.len(), 64, "a nonce of 32 bytes");
    let other = Connection::connect(address);
    assert_ne!(
        other.welcome["nonce"], welcome["nonce"],
        "a nonce is good for one connection"
    );
    let limits = [
        "frame_bytes_max",
        "payload_bytes_max",
        "items_max",
        "session_leases_max",
    ];
    for limit in limits {
        assert!(welcome["limits"][limit].is_u64(), "{limit}: {welcome}");
    }
}

fn malformed(address: SocketAddr, vector: &Value) {
    // Another limit than this server's.
    if vector.get("limit").is_some() {
        return;
    }
    let (mut connection, _) = open_all(address);
    connection.send_bytes(&frame(vector));
    if vector["incomplete"] == true {
        connection.shut_write();
        assert_eq!(
            connection.try_frame().expect("a clean end"),
            None,
            "half a frame was answered"
        );
        return;
    }
    let expected = &vector["error"];
    let id = expected["id"].as_u64().expect("an id");
    let error = connection.reply(id).expect_err("accepted");
    assert_eq!(error["code"], expected["code"], "{error}");
    assert_eq!(error.get("field"), expected.get("field"), "{error}");
    if expected["closes"] == true {
        connection.wait_closed();
    } else {
        connection.ok("heartbeat", json!({}));
    }
}

/// A legal request is answered under its id, and never as one that cannot be read.
fn understood(address: SocketAddr, vector: &Value) {
    let map = from_map(&frame(vector)[4..]).expect("a map");
    let id = map["id"].as_u64().expect("an id");
    let is_hello = map["op"] == "hello";
    let mut connection = match is_hello {
        true => Connection::connect(address),
        false => open_all(address).0,
    };
    connection.send_bytes(&frame(vector));
    match connection.reply(id) {
        Ok(reply) => assert!(reply.is_object(), "a reply is a map: {reply}"),
        Err(error) => {
            let code = error["code"].as_str().expect("a code");
            assert!(CODES.contains(&code), "an unknown code: {error}");
            assert!(
                error["message"].is_string() && error["retryable"].is_boolean(),
                "{error}"
            );
            let legal = !matches!(code, "bad_request" | "unsupported_op" | "too_large");
            assert!(legal || is_served_later(vector), "{error}");
        }
    }
    if !is_hello && map["op"] != "goodbye" {
        connection.ok("heartbeat", json!({}));
    }
}

/// Fields that the page reserves.
fn is_served_later(vector: &Value) -> bool {
    let reserved = ["expires_at", "unique", "\"key\"", "batch", "after"];
    let text = vector.to_string();
    reserved.iter().any(|field| text.contains(field)) || text.contains("cursor")
}

fn lease(job: &Value) -> Value {
    json!({ "job": job["id"], "lease": job["lease"] })
}

fn work(address: SocketAddr) {
    let (mut worker, hello) = open_all(address);
    assert!(hello["session"]["ttl_ms"].is_u64(), "{hello}");
    let queue = format!("conformance-{}", std::process::id());
    let job = json!({ "kind": "k", "queue": queue, "payload": bin(b"\x00\xff") });
    let id = worker.push(job);
    let job = worker.wait(&queue);
    assert_eq!(
        (&job["id"], &job["payload"]),
        (&json!(id), &bin(b"\x00\xff"))
    );
    assert_eq!((&job["attempt"], &job["kind"]), (&json!(1), &json!("k")));
    let acks = json!([lease(&job)]);
    let carried = json!({ "queues": [queue], "wait_ms": 30_000, "acks": acks });
    let reply = worker.ok("fetch", carried);
    assert_eq!(reply, json!({ "jobs": [], "acks": [{}] }));
    let again = worker.ok("ack", json!({ "leases": acks }));
    assert_eq!(again, json!({ "results": [{ "already": true }] }));
    assert_eq!(worker.ok("heartbeat", json!({})), json!({}));
    assert_eq!(worker.ok("goodbye", json!({})), json!({}));
}

fn push_again(address: SocketAddr) {
    let (mut first, hello) = open(address, json!({ "producer": {} }));
    let push = json!({ "jobs": [{ "kind": "k", "queue": "conformance-seq" }], "seq": 1 });
    let outcome = first.ok("push", push.clone());
    drop(first);
    let producer = json!({ "producer": { "id": hello["producer"] } });
    let (mut second, again) = open(address, producer);
    assert_eq!(again["producer"], hello["producer"]);
    assert_eq!(
        second.ok("push", push),
        outcome,
        "the first outcome is answered again"
    );
}

fn resume(address: SocketAddr) {
    let (mut worker, hello) = open_all(address);
    let queue = format!("conformance-resume-{}", std::process::id());
    for _ in 0..2 {
        worker.push(json!({ "kind": "k", "queue": queue }));
    }
    let (held, dropped) = (worker.wait(&queue), worker.wait(&queue));
    drop(worker);
    let session = &hello["session"];
    let resume = json!({
        "id": session["id"],
        "secret": session["secret"],
        "held": [lease(&held), { "job": held["id"], "lease": 1 }],
    });
    let (mut worker, again) = open(address, json!({ "session": { "resume": resume } }));
    assert_eq!(again["session"]["id"], session["id"]);
    assert_eq!(again["session"]["lost"][0]["lease"], 1, "{again}");
    let back = worker.wait(&queue);
    assert_eq!(back["id"], dropped["id"], "what is not named is released");
    assert!(
        back["lease"].as_u64() > dropped["lease"].as_u64(),
        "lease numbers grow"
    );
    let leases = json!([lease(&held), lease(&back), lease(&dropped)]);
    let reply = worker.ok("ack", json!({ "leases": leases }));
    assert_eq!(reply["results"][0], json!({}));
    assert_eq!(reply["results"][1], json!({}));
    assert_eq!(reply["results"][2]["err"]["code"], "lease_lost");
}

fn wait(address: SocketAddr) {
    let (mut worker, _) = open_all(address);
    let (mut producer, _) = open(address, json!({}));
    let queue = format!("conformance-wait-{}", std::process::id());
    let fetch = json!({ "id": 900, "op": "fetch", "queues": [queue], "wait_ms": 15_000 });
    worker.send_map(&to_map(&fetch));
    worker.ok("heartbeat", json!({}));
    producer.push(json!({ "kind": "k", "queue": queue }));
    let reply = worker.reply(900).expect("a reply");
    assert_eq!(reply["jobs"].as_array().map(Vec::len), Some(1), "{reply}");
    worker.ok("ack", json!({ "leases": [lease(&reply["jobs"][0])] }));
}

fn die(address: SocketAddr) {
    let (mut worker, _) = open_all(address);
    let queue = format!("conformance-die-{}", std::process::id());
    let id = worker.push(json!({ "kind": "k", "queue": queue, "max_attempts": 1 }));
    let job = worker.wait(&queue);
    let reply = worker.ok("fail", json!({ "leases": [lease(&job)] }));
    assert_eq!(reply["results"], json!([{ "state": "dead" }]));
    let shown = worker.ok("job_get", json!({ "job": id }));
    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&json!("dead"), &json!("attempts"))
    );
    let revived = worker.ok("dead_revive", json!({ "jobs": [id] }));
    assert_eq!(revived["count"], 1);
    let again = worker.wait(&queue);
    worker.ok("ack", json!({ "leases": [lease(&again)] }));
}
