//! Backup, restore, compact, export, import and doctor, as a person runs them: what they leave,
//! what they say, and how they end when something is wrong.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use ganger_server::store::{
    keys::{Key, Prefix},
    sled::SledTable,
    table::{Span, Table as _},
};
use serde_json::{Value, json};
use support::{Connection, Process, bin};
use tempfile::TempDir;

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn server(&self, data: &str) -> Process {
        Process::start(EXECUTABLE, &self.path(data), &[]).expect("started")
    }

    /// A closed directory with jobs in every state that lasts.
    fn filled(&self, data: &str) {
        let server = self.server(data);
        let mut client = Connection::open(server.address);
        for at in 0..500 {
            client.push(json!({ "kind": "k", "payload": bin([0, 159, at as u8]) }));
        }
        client.push(json!({ "kind": "later", "delay_ms": 3_600_000, "headers": { "a": "b" } }));
        // Some of those that were pushed for one time have left for another, or for good.
        let later = |at: usize| {
            let payload = bin(vec![b'y'; 1 + at % 3 * 6_000]);
            json!({ "queue": "later", "kind": "k", "delay_ms": 7_200_000, "payload": payload })
        };
        let later: Vec<_> = (0..20).map(later).collect();
        let later = client.ok("push", json!({ "jobs": later }))["results"].clone();
        let id = |at: usize| later[at]["id"].clone();
        client.ok("job_cancel", json!({ "jobs": [id(0), id(1), id(8)] }));
        let to = json!({ "delay_ms": 9_000_000 });
        client.ok("job_change", json!({ "jobs": [id(5), id(17)], "to": to }));
        client.push(json!({ "queue": "bad", "kind": "k", "max_attempts": 1, "priority": 9 }));
        client.push(json!({ "queue": "big", "kind": "k", "payload": bin(vec![b'x'; 50_000]) }));
        let mut worker = Connection::worker(server.address);
        let job = worker.wait("bad");
        let lease = json!({ "job": job["id"], "lease": job["lease"], "message": "it failed" });
        worker.ok("fail", json!({ "leases": [lease] }));
        client.ok("queue_pause", json!({ "queues": ["big"] }));
        let job = json!({ "kind": "k", "payload": bin([0, 159]), "priority": 2 });
        let times = json!({ "name": "leap", "expression": "0 0 29 2 *", "timezone": "Asia/Tokyo" });
        let entry = json!({ "job": job, "overlap": "skip", "misfire": "all" });
        let entry = [times, entry].map(|part| part.as_object().expect("a map").clone());
        client.ok(
            "cron_set",
            Value::Object(entry.into_iter().flatten().collect()),
        );
        assert_eq!(server.terminate().status.code(), Some(0));
    }

    /// Runs a command in this place; its exit code and what it said to stdout and stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let done = Command::new(EXECUTABLE)
            .args(args)
            .current_dir(self.0.path())
            .env_remove("GANGER_DATA_DIR")
            .stdin(Stdio::null())
            .output()
            .expect("the executable is there");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = done.status.code().expect("an exit code");
        (code, text(&done.stdout), text(&done.stderr))
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> Value {
        let (code, stdout, stderr) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {stdout}{stderr}");
        serde_json::from_str(&stdout).unwrap_or(Value::Null)
    }

    #[track_caller]
    fn refused(&self, args: &[&str], code: i32, said: &str) {
        let (actual, stdout, stderr) = self.run(args);
        assert_eq!(actual, code, "{args:?}: {stdout}{stderr}");
        assert!(
            stderr.contains(said) && stderr.contains("hint: "),
            "{stderr}"
        );
        assert!(!stderr.contains("panicked"), "{stderr}");
    }

    fn doctor(&self, data: &str) -> Value {
        self.ok(&["doctor", "--json", "--data-dir", data])
    }
}

fn url(server: &Process) -> String {
    format!("ganger://{}", server.address)
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn a_backup_under_load_restores_to_one_moment() {
    let place = Place::new();
    let server = place.server("data");
    let (pushed, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let (before, after) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut producer = Connection::open(server.address);
            while !over.load(Ordering::Acquire) {
                let number = pushed.load(Ordering::Acquire);
                let payload = bin(number.to_be_bytes());
                producer.push(json!({ "kind": "k", "payload": payload }));
                pushed.store(number + 1, Ordering::Release);
            }
        });
        while pushed.load(Ordering::Acquire) < 300 {
            thread::yield_now();
        }
        let before = pushed.load(Ordering::Acquire);
        place.ok(&["backup", "b", "--url", &url(&server)]);
        // One push may be on its way.
        let after = pushed.load(Ordering::Acquire) + 1;
        over.store(true, Ordering::Release);
        (before, after)
    });
    server.kill();
    place.ok(&["restore", "b", "--data-dir", "copy"]);
    assert_eq!(place.doctor("copy")["ailments_count"], 0);
    let copy = place.server("copy");
    let mut worker = Connection::worker(copy.address);
    let mut found = 0_u64;
    while let Some(job) = worker.fetch("default") {
        assert_eq!(
            job["payload"],
            bin(found.to_be_bytes()),
            "in order, without a gap"
        );
        worker.ok(
            "ack",
            json!({ "leases": [{ "job": job["id"], "lease": job["lease"] }] }),
        );
        found += 1;
    }
    assert!(
        (before..=after).contains(&found),
        "{before} {found} {after}"
    );
}

#[test]
fn a_restored_directory_holds_what_the_backed_up_one_holds() {
    let place = Place::new();
    place.filled("data");
    let sound = place.doctor("data");
    assert_eq!(
        (&sound["ailments_count"], &sound["jobs"]),
        (&json!(0), &json!(520))
    );
    place.ok(&["backup", "b", "--data-dir", "data"]);
    place.ok(&["restore", "b", "--dry-run"]);
    place.ok(&["restore", "b", "--data-dir", "copy"]);
    assert_eq!(place.doctor("copy"), sound);
    // Numbers go on behind those that were given since.
    let server = place.server("copy");
    let mut worker = Connection::worker(server.address);
    let lease = worker.wait("default")["lease"].as_u64().expect("a number");
    assert!(lease > 1 << 32, "{lease}");
}

#[test]
fn a_backup_that_is_cut_off_or_changed_is_refused_and_leaves_nothing() {
    let place = Place::new();
    place.filled("data");
    place.ok(&["backup", "b", "--data-dir", "data"]);
    let whole = fs::read(place.path("b")).expect("read");
    fs::write(place.path("cut"), &whole[..whole.len() - 1]).expect("written");
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 4;
    fs::write(place.path("changed"), changed).expect("written");
    fs::write(
        place.path("foreign"),
        b"this is the text of a thesis, and no backup",
    )
    .expect("written");
    for (file, code, said) in [
        ("cut", 74, "cut off"),
        ("changed", 74, "changed"),
        ("foreign", 2, "no backup of ganger"),
    ] {
        place.refused(&["restore", file, "--data-dir", "copy"], code, said);
        assert!(is_empty(&place.path("copy")), "{file}");
        place.refused(&["restore", file, "--dry-run"], code, said);
    }
    let (code, _, stderr) = place.run(&["restore", "nothing", "--data-dir", "copy"]);
    assert_eq!(code, 2, "{stderr}");
    place.refused(&["restore", "b", "--data-dir", "data"], 6, "not empty");
    place.refused(
        &["backup", "b", "--data-dir", "data"],
        6,
        "is there already",
    );
    place.ok(&["backup", "b", "--force", "--data-dir", "data"]);
}

#[test]
fn a_directory_that_a_server_has_is_left_alone() {
    let place = Place::new();
    let server = place.server("data");
    for command in [
        &["backup", "b"][..],
        &["compact"],
        &["doctor"],
        &["doctor", "--repair"],
        &["export", "x"],
    ] {
        let args = [command, &["--data-dir", "data"]].concat();
        place.refused(&args, 6, "locked");
    }
    assert!(!place.path("b").exists() && !place.path("x").exists());
    place.refused(&["doctor", "--data-dir", "nowhere"], 3, "nowhere");
    drop(server);
}

#[test]
fn a_compacted_directory_is_smaller_and_holds_the_same() {
    let place = Place::new();
    let server = place.server("data");
    let mut client = Connection::open(server.address);
    for _ in 0..20 {
        let job = json!({ "kind": "k", "payload": bin(vec![b'x'; 40_000]) });
        let jobs: Vec<_> = (0..20).map(|_| job.clone()).collect();
        client.ok("push", json!({ "jobs": jobs }));
    }
    let last = client.push(json!({ "kind": "last", "priority": 0 }));
    assert_eq!(server.terminate().status.code(), Some(0));
    // They are in the table now, and leave their space behind.
    let server = place.server("data");
    let mut worker = Connection::worker(server.address);
    for _ in 0..20 {
        let fields = json!({ "queues": ["default"], "max": 20 });
        let jobs = worker.ok("fetch", fields)["jobs"].clone();
        let jobs = jobs.as_array().expect("jobs");
        let lease = |job: &Value| json!({ "job": job["id"], "lease": job["lease"] });
        let leases: Vec<_> = jobs.iter().map(lease).collect();
        worker.ok("ack", json!({ "leases": leases }));
    }
    worker.ok("goodbye", json!({}));
    assert_eq!(server.terminate().status.code(), Some(0));
    let sound = place.doctor("data");
    let compacted = place.ok(&["compact", "--json", "--data-dir", "data"]);
    let bytes = |field: &str| compacted[field].as_u64().expect("bytes");
    assert!(
        bytes("after_bytes") * 4 < bytes("before_bytes"),
        "{compacted}"
    );
    assert_eq!(place.doctor("data")["digest"], sound["digest"]);
    let names: Vec<_> = fs::read_dir(place.path("data/shard-0"))
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.to_string_lossy().starts_with("data-"))
        .collect();
    assert_eq!(names, ["data-000002"]);
    let server = place.server("data");
    let mut worker = Connection::worker(server.address);
    assert_eq!(worker.wait("default")["id"], json!(last));
}

#[test]
fn an_export_imports_to_the_same_jobs_under_the_same_ids() {
    let place = Place::new();
    place.filled("data");
    let exported = place.ok(&["export", "x", "--json", "--data-dir", "data"]);
    assert_eq!(
        exported,
        json!({ "shards": 1, "queues": 4, "jobs": 520, "limits": 0, "crons": 1, "batches": 0 })
    );
    place.ok(&["import", "x", "--data-dir", "copy"]);
    let copy = place.doctor("copy");
    assert_eq!(
        (&copy["ailments_count"], &copy["jobs"]),
        (&json!(0), &json!(520))
    );
    place.ok(&["export", "y", "--data-dir", "copy"]);
    let lines = |name: &str| {
        let text = fs::read_to_string(place.path(name)).expect("text");
        let mut lines: Vec<_> = text.lines().skip(1).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert!(lines("x") == lines("y"), "the export of the import differs");
    let server = place.server("copy");
    let mut worker = Connection::worker(server.address);
    for at in 0..500_u64 {
        let payload = bin([0, 159, at as u8]);
        assert_eq!(worker.wait("default")["payload"], payload, "{at}");
    }
    let dead = worker.ok("dead_list", json!({ "queue": "bad" }))["jobs"][0].clone();
    let dead = worker.ok("job_get", json!({ "job": dead["id"] }));
    assert_eq!(dead["errors"][0]["message"], "it failed");
    assert_eq!(dead["priority"], 9);
    let entry = worker.ok("cron_show", json!({ "name": "leap" }));
    assert_eq!(entry["job"]["payload"], bin([0, 159]));
    assert_eq!(
        (&entry["timezone"], &entry["overlap"]),
        (&json!("Asia/Tokyo"), &json!("skip"))
    );
    assert_eq!(entry["next_at"].as_array().expect("times").len(), 5);
}

#[test]
fn a_line_that_is_wrong_is_named_and_nothing_is_imported() {
    let place = Place::new();
    place.filled("data");
    place.ok(&["export", "x", "--data-dir", "data"]);
    let text = fs::read_to_string(place.path("x")).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    let twice = [&lines[..], &lines[lines.len() - 1..]].concat();
    let cases = [
        ("nonsense", vec![lines[0], "what?"], "line 2"),
        ("headless", lines[1..].to_vec(), "begins with a line"),
        ("empty", vec![], "begins with a line"),
        ("twice", twice, "a second time"),
        ("orphan", vec![lines[0], lines[5]], "did not come before"),
    ];
    for (name, lines, said) in cases {
        fs::write(place.path(name), lines.join("\n")).expect("written");
        let (code, _, stderr) = place.run(&["import", name, "--data-dir", "copy"]);
        assert!(code == 1 || code == 74, "{name}: {code} {stderr}");
        assert!(stderr.contains(said), "{name}: {stderr}");
        assert!(is_empty(&place.path("copy")), "{name}");
    }
}

#[test]
fn a_damaged_record_is_named_and_everything_else_is_saved() {
    let place = Place::new();
    place.filled("data");
    // The large payload lies in parts of its own; one of them is damaged.
    let table = place.path("data/shard-0/data-000001/table");
    let table = SledTable::open(&table, 1 << 20).expect("a table");
    let parts = table
        .scan(&Span::of(Key::of(Prefix::Blob)), 99)
        .expect("rows");
    let (key, value) = parts.last().expect("a part");
    let mut damaged = value.to_vec();
    *damaged.last_mut().expect("a byte") ^= 1;
    table
        .apply(&[(*key, Some(damaged.into()))])
        .expect("written");
    table.flush().expect("flushed");
    drop(table);
    place.refused(&["doctor", "--data-dir", "data"], 74, "damaged");
    let (code, stdout, stderr) = place.run(&["doctor", "--repair", "--json", "--data-dir", "data"]);
    assert_eq!(code, 7, "{stdout}{stderr}");
    let diagnosis: Value = serde_json::from_str(&stdout).expect("JSON");
    let repair = &diagnosis["repairs"][0];
    assert_eq!(repair["jobs"], 519);
    assert!(!repair["lost"].as_array().expect("a list").is_empty());
    assert!(
        place.path("data/shard-0/data-000001").exists(),
        "the damaged data is kept"
    );
    assert_eq!(place.doctor("data")["jobs"], 519);
    let server = place.server("data");
    let mut worker = Connection::worker(server.address);
    worker.wait("default");
}

#[test]
fn a_backup_over_the_wire_belongs_to_its_connection() {
    let place = Place::new();
    let server = place.server("data");
    let mut first = Connection::open(server.address);
    for _ in 0..4 {
        let payload = bin(vec![7; 200_000]);
        first.push(json!({ "kind": "k", "payload": payload }));
    }
    let wrong = first.err("backup", json!({ "offset": 7 }));
    assert_eq!(
        (&wrong["code"], &wrong["field"]),
        (&json!("bad_request"), &json!("offset"))
    );
    let chunk = first.ok("backup", json!({}));
    assert_eq!(chunk["end"], false);
    let mut second = Connection::open(server.address);
    assert_eq!(second.err("backup", json!({}))["code"], "conflict");
    // Begun anew, and read to the end.
    let (mut offset, mut end) = (0, false);
    while !end {
        let chunk = first.ok("backup", json!({ "offset": offset }));
        let bytes = chunk["chunk"]["$bin"].as_str().expect("bytes").len() / 2;
        offset += bytes;
        end = chunk["end"].as_bool().expect("a flag");
    }
    assert!(offset > 800_000, "{offset}");
    assert_eq!(second.ok("backup", json!({}))["end"], false);
    drop(server);
}
