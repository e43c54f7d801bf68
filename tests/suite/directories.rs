//! Data directories that cannot be used, and disks that fill up: how the process ends, what it
//! says, and what it still takes.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use support::{Connection, Ended, Process, bin};
use tempfile::TempDir;

use crate::{lease, lease_with};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

/// A server over this directory must not start; answers with its exit code and stderr.
#[track_caller]
fn refused(data: &Path, args: &[&str]) -> (Option<i32>, String) {
    let Ended { status, stderr } = Process::start(EXECUTABLE, data, args).expect_err("it started");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (status.code(), stderr)
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Jobs that a server found, in whatever state.
fn kept(server: &Process) -> u64 {
    let jobs = &server.ready["recovered"]["jobs"];
    let states = ["scheduled", "blocked", "ready", "leased", "dead"];
    states.iter().filter_map(|state| jobs[state].as_u64()).sum()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_directory_that_cannot_be_made_or_written_is_a_storage_error() {
    let place = directory();
    let file = place.path().join("file");
    fs::write(&file, b"").expect("written");
    let (code, stderr) = refused(&file, &[]);
    assert_eq!(code, Some(74), "{stderr}");
    assert!(stderr.contains(&file.display().to_string()), "{stderr}");
    let (code, stderr) = refused(Path::new("/proc/ganger"), &[]);
    assert_eq!(code, Some(74), "{stderr}");
    if !is_root() {
        let closed = place.path().join("closed");
        fs::create_dir(&closed).expect("made");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).expect("closed");
        let (code, stderr) = refused(&closed, &[]);
        assert_eq!(code, Some(74), "{stderr}");
    }
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let place = directory();
    let shard = place.path().join("shard-0");
    fs::create_dir(&shard).expect("made");
    fs::write(shard.join("thesis.doc"), b"mine").expect("written");
    let (code, stderr) = refused(place.path(), &[]);
    assert_eq!(code, Some(74), "{stderr}");
    assert!(stderr.contains("thesis.doc"), "{stderr}");
    let names: Vec<_> = fs::read_dir(&shard).expect("listed").collect();
    assert_eq!(names.len(), 1);
}

#[test]
fn a_directory_that_another_server_has_is_refused_with_its_pid() {
    let place = directory();
    let data = place.path().join("data");
    let first = Process::start(EXECUTABLE, &data, &[]).expect("started");
    let second = Process::command(EXECUTABLE, &data, &[]);
    let ready = place.path().join("second.json");
    let mut second = second;
    second.arg("--log=info");
    let ended = Process::run(second, &ready).expect_err("two servers");
    assert_eq!(ended.status.code(), Some(74), "{}", ended.stderr);
    let pid = first.pid().to_string();
    assert!(ended.stderr.contains(&pid), "{pid}: {}", ended.stderr);
    Connection::open(first.address).ok("stats", json!({}));
    assert_eq!(first.terminate().status.code(), Some(0));
    let third = Process::start(EXECUTABLE, &data, &[]).expect("it is free now");
    third.kill();
    Process::start(EXECUTABLE, &data, &[]).expect("the lock ended with its owner");
}

#[test]
fn another_format_is_refused_with_both_numbers() {
    let place = directory();
    let data = place.path().join("data");
    Process::start(EXECUTABLE, &data, &[])
        .expect("started")
        .terminate();
    let current = data.join("shard-0").join("CURRENT");
    let text = fs::read_to_string(&current).expect("a format");
    fs::write(&current, text.replace("ganger 3", "ganger 4")).expect("written");
    let (code, stderr) = refused(&data, &[]);
    assert_eq!(code, Some(74), "{stderr}");
    assert!(
        stderr.contains('3') && stderr.contains("format"),
        "{stderr}"
    );
    fs::write(&current, text).expect("written");
    Process::start(EXECUTABLE, &data, &[]).expect("nothing was changed");
}

#[test]
fn an_address_beyond_this_machine_without_tokens_is_refused_before_anything_is_made() {
    let place = directory();
    let data = place.path().join("data");
    let mut command = Command::new(EXECUTABLE);
    command
        .args(["serve", "--listen", "0.0.0.0:0", "--data-dir"])
        .arg(&data);
    let output = command.output().expect("ran");
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--insecure-no-auth"), "{stderr}");
    assert!(!data.exists());
}

#[test]
fn an_address_that_is_taken_is_no_storage_error() {
    let place = directory();
    let first = Process::start(EXECUTABLE, &place.path().join("a"), &[]).expect("started");
    let address = first.address.to_string();
    let mut command = Command::new(EXECUTABLE);
    command
        .args(["serve", "--listen", &address, "--data-dir"])
        .arg(place.path().join("b"));
    let output = command.output().expect("ran");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&address));
}

#[test]
fn what_was_answered_survives_a_kill() {
    let place = directory();
    let data = place.path().join("data");
    let server = Process::start(EXECUTABLE, &data, &[]).expect("started");
    let mut worker = Connection::worker(server.address);
    let jobs = vec![json!({ "kind": "k" }); 10];
    worker.ok("push", json!({ "jobs": jobs }));
    let job = worker.fetch("default").expect("a job");
    worker.ok("ack", json!({ "leases": [lease(&job)] }));
    server.kill();
    let server = Process::start(EXECUTABLE, &data, &[]).expect("started again");
    assert_eq!(kept(&server), 9);
    let mut worker = Connection::worker(server.address);
    let reply = worker.ok("fetch", json!({ "queues": ["default"], "max": 100 }));
    let ids: Vec<&Value> = reply["jobs"]
        .as_array()
        .expect("jobs")
        .iter()
        .map(|j| &j["id"])
        .collect();
    assert!(
        !ids.contains(&&job["id"]),
        "an acked job is never granted again"
    );
    assert_eq!(ids.len(), 9);
}

/// A small file system of its own; gone when it is dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` without the right to mount.
    fn mounted(size: &str) -> Option<Self> {
        let place = directory();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(place.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(place)),
            _ => {
                eprintln!("skipped: no right to mount a file system");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it but for so many bytes.
    fn fill_but(&self, rest: u64) -> PathBuf {
        let stat = rustix::fs::statvfs(self.path()).expect("a file system");
        let free = stat.f_bavail * stat.f_frsize;
        let filler = self.path().join("filler");
        let bytes = usize::try_from(free.saturating_sub(rest)).expect("small");
        // The last page may not fit any more.
        let _ = fs::write(&filler, vec![0xff; bytes]);
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// A server on a small disk that takes little of it ahead of need.
fn frugal(data: &Path) -> Process {
    let mut command = Process::command(EXECUTABLE, data, &[]);
    command.env("GANGER_STORE_LOG_SEGMENT_BYTES", "1MiB");
    let ready = data.with_file_name("data.ready.json");
    Process::run(command, &ready).expect("started")
}

#[test]
fn a_nearly_full_disk_refuses_pushes_and_takes_answers_until_there_is_room_again() {
    let Some(disk) = SmallDisk::mounted("300m") else {
        return;
    };
    let server = frugal(&disk.path().join("data"));
    let mut worker = Connection::worker(server.address);
    let jobs = vec![json!({ "kind": "k" }); 100];
    worker.ok("push", json!({ "jobs": jobs }));
    let filler = disk.fill_but(100 << 20);
    // The disk is looked at once a second.
    let error = loop {
        if let Err(error) = worker.ask("push", json!({ "jobs": [{ "kind": "k" }] })) {
            break error;
        }
    };
    assert_eq!(error["code"], "overloaded");
    assert_eq!(error["retryable"], true);
    assert!(error["retry_after_ms"].is_u64(), "{error}");
    for _ in 0..50 {
        let job = worker.fetch("default").expect("a job");
        let reply = worker.ok("ack", json!({ "leases": [lease(&job)] }));
        assert_eq!(reply["results"], json!([{}]));
    }
    let job = worker.fetch("default").expect("a job");
    worker.ok("fail", json!({ "leases": [lease(&job)] }));
    fs::remove_file(filler).expect("removed");
    while worker
        .ask("push", json!({ "jobs": [{ "kind": "k" }] }))
        .is_err()
    {}
    assert_eq!(server.terminate().status.code(), Some(0));
}

#[test]
fn a_full_disk_ends_the_server_with_74_and_loses_nothing_that_was_answered() {
    let Some(disk) = SmallDisk::mounted("320m") else {
        return;
    };
    let data = disk.path().join("data");
    let server = frugal(&data);
    let mut worker = Connection::worker(server.address);
    let payload = bin(vec![0x5a; 100]);
    let pushed = 50;
    let jobs = vec![json!({ "kind": "k", "payload": payload, "max_attempts": 10_000 }); pushed];
    worker.ok("push", json!({ "jobs": jobs }));
    let acked = worker.fetch("default").expect("a job");
    worker.ok("ack", json!({ "leases": [lease(&acked)] }));
    let filler = disk.fill_but(0);
    // Answers are taken until the disk takes nothing; then nothing is answered at all.
    let text = "b".repeat(16 << 10);
    let refused = 'until: loop {
        let Ok(reply) = try_ask(
            &mut worker,
            "fetch",
            json!({ "queues": ["default"], "max": 20 }),
        ) else {
            break 'until true;
        };
        for job in reply["jobs"].as_array().expect("jobs") {
            let more = json!({ "backtrace": text, "retry_in_ms": 0 });
            let fails = json!({ "leases": [lease_with(job, more)] });
            if try_ask(&mut worker, "fail", fails).is_err() {
                break 'until true;
            }
        }
    };
    assert!(refused);
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(74), "{}", ended.stderr);
    fs::remove_file(filler).expect("removed");
    let server = frugal(&data);
    assert_eq!(kept(&server), pushed as u64 - 1);
}

/// Sends a request; an error when the connection ended or the server says that it failed.
fn try_ask(worker: &mut Connection, op: &str, mut fields: Value) -> Result<Value, ()> {
    fields["id"] = json!(1_000_000);
    fields["op"] = json!(op);
    let frame = support::framed(&support::to_map(&fields));
    worker.try_send_bytes(&frame).map_err(|_gone| ())?;
    loop {
        let frame = worker.try_frame().map_err(|_gone| ())?.ok_or(())?;
        let message = support::from_map(&frame).expect("a message");
        if message["id"] == 1_000_000 {
            return message.get("ok").cloned().ok_or(());
        }
    }
}
