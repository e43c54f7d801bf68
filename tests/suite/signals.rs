//! What a running server does upon HUP and USR1, as a process with a configuration file.

use std::{fs, os::unix::net::UnixDatagram, path::PathBuf, time::Duration};

use ganger_server::auth::TokenHash;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Connection, Process};
use tempfile::TempDir;

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");
const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";

/// A server with a file of its own.
struct Configured {
    process: Process,
    file: PathBuf,
    _place: TempDir,
}

impl Configured {
    fn start(text: &str) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join("ganger.toml");
        fs::write(&file, text).expect("a file");
        let args = ["--config", file.to_str().expect("text")];
        let process = Process::start(EXECUTABLE, &place.path().join("data"), &args);
        Self {
            process: process.expect("it starts"),
            file,
            _place: place,
        }
    }

    /// Writes the file anew, sends HUP, and waits for a line of the log.
    fn reload(&mut self, text: &str, answer: &str) -> String {
        fs::write(&self.file, text).expect("a file");
        self.process.signal(Signal::HUP);
        self.process.wait_for(answer)
    }

    fn hello(&self, id: &str) -> (Connection, Result<Value, Value>) {
        let mut connection = Connection::connect(self.process.address);
        let auth = connection.auth(&format!("{id}.{SECRET}"));
        let reply = connection.say_hello(json!({ "auth": auth }));
        (connection, reply)
    }
}

fn token(id: &str) -> String {
    let hash = TokenHash::of(SECRET).to_hex();
    format!("[[auth.token]]\nid = \"{id}\"\nhash = \"{hash}\"\nverbs = [\"push\", \"inspect\"]\n")
}

#[test]
fn a_token_that_a_reload_removes_lets_nobody_in_and_ends_its_connections() {
    let mut server = Configured::start(&(token("old") + &token("kept")));
    let (mut old, reply) = server.hello("old");
    reply.expect("it is let in");
    let (mut kept, reply) = server.hello("kept");
    reply.expect("it is let in");
    assert!(server.hello("new").1.is_err());

    server.reload(&(token("kept") + &token("new")), "configuration reloaded");
    old.wait_closed();
    kept.ok("stats", json!({}));
    server.hello("new").1.expect("it is let in");
    let refused = server.hello("old").1.expect_err("it is gone");
    assert_eq!(refused["code"], "unauthorized");
}

#[test]
fn a_file_that_is_wrong_changes_nothing_and_its_place_is_logged() {
    let mut server = Configured::start(&token("app"));
    let (mut open, reply) = server.hello("app");
    reply.expect("it is let in");
    let line = server.reload("lisetn = 5\n", "the configuration stays as it was");
    assert!(line.contains("ganger.toml:1:1: unknown field"), "{line}");
    assert!(line.contains("did you mean `listen`?"), "{line}");
    open.ok("stats", json!({}));
    server.hello("app").1.expect("it is let in");
}

#[test]
fn a_limit_is_reloaded_and_what_needs_a_restart_is_named() {
    let mut server = Configured::start("");
    let mut first = Connection::open(server.process.address);
    server.reload("[limits]\nconnections_max = 1\n", "configuration reloaded");
    Connection::try_connect(server.process.address).expect_err("one connection is there already");
    first.ok("stats", json!({}));
    let line = server.reload("shards = 3\n", "takes effect with a restart");
    assert!(line.contains("\"setting\":\"shards\""), "{line}");
    server.process.wait_for("configuration reloaded");
    Connection::open(server.process.address);
}

#[test]
fn the_state_of_the_server_is_told_on_request() {
    let mut server = Configured::start("");
    let _connection = Connection::open(server.process.address);
    server.process.signal(Signal::USR1);
    let line = server.process.wait_for("state of the server");
    assert!(line.contains("\"connections\":1"), "{line}");
    let line = server.process.wait_for("state of a shard");
    assert!(line.contains("\"leases\":0"), "{line}");
}

#[test]
fn systemd_hears_of_start_life_reload_and_stop() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a live socket");
    let hear = |wanted: &str| loop {
        let mut buffer = [0; 256];
        let count = socket.recv(&mut buffer).expect("a word in time");
        let word = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if word.trim_end() == wanted {
            return;
        }
        // Signs of life come at any time.
        assert_eq!(word.trim_end(), "WATCHDOG=1");
    };
    let data = place.path().join("data");
    let mut command = Process::command(EXECUTABLE, &data, &[]);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "100000")
        .env_remove("WATCHDOG_PID");
    let process = Process::run(command, &place.path().join("data.ready.json"));
    let process = process.expect("it starts");
    hear("READY=1");
    hear("WATCHDOG=1");
    process.signal(Signal::HUP);
    hear("RELOADING=1");
    hear("READY=1");
    process.signal(Signal::TERM);
    hear("STOPPING=1");
    assert!(process.wait().status.success());
}

#[test]
fn a_cron_entry_of_the_file_is_there_until_a_reload_takes_it_out_and_nobody_else_may() {
    let entry = "[[cron]]\nname = \"sweep\"\nevery = \"1h\"\nkind = \"sweep\"\n\
                 payload = { older_than = \"7d\" }\n";
    let mut server = Configured::start(entry);
    let mut connection = Connection::connect(server.process.address);
    connection.say_hello(json!({})).expect("it is let in");
    let shown = connection.ok("cron_show", json!({ "name": "sweep" }));
    assert_eq!(shown["from_file"], true);
    let refused = connection.err("cron_delete", json!({ "names": ["sweep"] }));
    assert_eq!(refused["code"], "conflict");
    connection.ok("cron_run", json!({ "name": "sweep" }));

    server.reload("", "configuration reloaded");
    let gone = connection.err("cron_show", json!({ "name": "sweep" }));
    assert_eq!(gone["code"], "not_found");
}
