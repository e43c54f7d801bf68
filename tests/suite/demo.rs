//! The demo as whoever tries it first sees it: it shows figures, ends when it is interrupted, and
//! leaves nothing behind.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

#[test]
fn an_interrupted_demo_has_lost_nothing_and_leaves_nothing() {
    let place = tempfile::tempdir().expect("a directory");
    let mut demo = Command::new(EXECUTABLE)
        .args(["demo", "--rate", "500", "--workers", "2", "--failing", "20"])
        .env("TMPDIR", place.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the executable is there");
    let stdout = BufReader::new(demo.stdout.take().expect("a pipe"));
    let mut lines = stdout.lines().map(|line| line.expect("text"));
    let head = lines.next().expect("a head");
    assert!(head.contains("jobs/s"), "{head}");
    let first = lines.next().expect("figures");
    assert_eq!(fs::read_dir(place.path()).expect("a list").count(), 1);
    let pid = Pid::from_raw(i32::try_from(demo.id()).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::INT).expect("a live process");
    let rest: Vec<String> = lines.collect();
    let end = rest.last().expect("an end");
    assert!(end.ends_with("0 lost; 0 wrong"), "{first}\n{end}");
    assert_eq!(demo.wait().expect("a child").code(), Some(0));
    assert_eq!(fs::read_dir(place.path()).expect("a list").count(), 0);
}
