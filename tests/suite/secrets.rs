//! What must never be in a log: the secret of a token, its hash, secrets of sessions and producers,
//! payloads, whatever the level short of trace.

use std::fs;

use ganger_server::auth::TokenHash;
use serde_json::json;
use support::{Connection, Process, bin, to_hex};

use crate::{lease, lease_with};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

#[test]
fn no_secret_and_no_payload_is_in_the_log() {
    let place = tempfile::tempdir().expect("a directory");
    let secret = "canary-of-the-token-9f4c1e";
    let payload = "canary-of-the-payload-77aa01";
    let hash = TokenHash::of(secret).to_hex();
    let config = place.path().join("ganger.toml");
    let token = format!(
        "[[auth.token]]\nid = \"app\"\nhash = \"{hash}\"\n\
         verbs = [\"push\", \"work\", \"inspect\", \"admin\"]\n"
    );
    fs::write(&config, token).expect("written");
    let config = config.to_str().expect("text");
    let data = place.path().join("data");
    let args = ["--config", config, "--log", "debug"];
    let server = Process::start(EXECUTABLE, &data, &args).expect("started");

    let mut worker = Connection::connect(server.address);
    let auth = worker.auth(&format!("app.{secret}"));
    let fields = json!({ "auth": auth, "session": {}, "producer": {}, "client": "test/1" });
    let hello = worker.say_hello(fields).expect("hello");
    let job = json!({ "kind": "k", "payload": bin(payload) });
    worker.ok("push", json!({ "jobs": vec![job.clone(); 4], "seq": 1 }));
    let granted = worker.ok("fetch", json!({ "queues": ["default"], "max": 4 }));
    let jobs = granted["jobs"].as_array().expect("jobs");
    worker.ok("ack", json!({ "leases": [lease(&jobs[0])] }));
    worker.ok(
        "fail",
        json!({ "leases": [lease_with(&jobs[1], json!({ "dead": true }))] }),
    );
    worker.ok("release", json!({ "leases": [lease(&jobs[2])] }));
    worker.ok("job_get", json!({ "job": jobs[1]["id"] }));
    worker.ok("dead_list", json!({}));
    // Refusals, too.
    worker.err("push", json!({ "jobs": [job, 7] }));
    worker.send_map(payload.as_bytes());
    worker.reply(0).expect_err("no map");
    for auth in [
        json!({ "id": secret, "mac": bin(secret) }),
        json!({ "id": "app" }),
    ] {
        let mut stranger = Connection::connect(server.address);
        stranger
            .say_hello(json!({ "auth": auth }))
            .expect_err("refused");
        stranger.wait_closed();
    }
    let mut resumer = Connection::connect(server.address);
    let auth = resumer.auth(&format!("app.{secret}"));
    let session = json!({ "resume": { "id": hello["session"]["id"], "secret": payload } });
    let _ = resumer.say_hello(json!({ "auth": auth, "session": session }));
    drop((worker, resumer));

    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stderr.contains("hello"), "the log is at debug");
    let canaries = [
        secret.to_owned(),
        hash,
        payload.to_owned(),
        to_hex(payload.as_bytes()),
        hello["session"]["secret"]
            .as_str()
            .expect("text")
            .to_owned(),
        hello["producer"].as_str().expect("text").to_owned(),
    ];
    for canary in canaries {
        let line = ended.stderr.lines().find(|line| line.contains(&canary));
        assert_eq!(line, None, "{canary} is in the log");
    }
}
