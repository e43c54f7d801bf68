//! Who may name whom: between crates as their manifests say it, between modules of the server, and
//! the few things that one file alone may do. A request goes one way, socket to store; nothing
//! points back.

use std::process::Command;

use serde_json::Value;

use crate::code::Named;
use crate::source::{File, Repository, published, root};
use crate::{assert_places, report};

/// Which crate of ours may use which, in any kind of dependency.
const CRATES: &[(&str, &[&str])] = &[
    ("ganger-protocol", &[]),
    ("ganger-engine", &["ganger-protocol"]),
    ("ganger-client", &["ganger-protocol"]),
    (
        "ganger-server",
        &["ganger-protocol", "ganger-engine", "ganger-client"],
    ),
    (
        "ganger-tests",
        &[
            "ganger-protocol",
            "ganger-engine",
            "ganger-client",
            "ganger-server",
        ],
    ),
];

/// All that the engine may link beside the protocol: nothing that waits, reads or guesses. The
/// calendar is docs/decisions/0004-cron-in-the-engine.md.
const ENGINE_USES: &[&str] = &["cronexpr", "foldhash", "hmac", "jiff", "sha2"];

/// What must not be reachable from the engine, however deep.
const ENGINE_NEVER_REACHES: &[&str] = &[
    "fastrand",
    "getrandom",
    "mio",
    "rand",
    "sled",
    "socket2",
    "tokio",
    "tokio-util",
];

/// Which modules of the server a module must not name. What is not listed may name anything but
/// `cli`, which nothing names.
const MODULES: &[(&str, &[&str])] = &[
    (
        "clock",
        &["driver", "http", "compat", "listener", "session", "store"],
    ),
    ("compat", &["http", "session", "store"]),
    (
        "config",
        &["driver", "http", "compat", "listener", "session", "store"],
    ),
    ("driver", &["http", "compat", "listener", "session"]),
    ("http", &["compat", "session", "store"]),
    ("listener", &["store"]),
    (
        "metrics",
        &["driver", "http", "compat", "listener", "session", "store"],
    ),
    ("session", &["http", "compat", "listener", "store"]),
    (
        "store",
        &["driver", "http", "compat", "listener", "session"],
    ),
    (
        "tasks",
        &["driver", "http", "compat", "listener", "session", "store"],
    ),
    (
        "telemetry",
        &["driver", "http", "compat", "listener", "session", "store"],
    ),
];

/// What only some places may name, in published code; test code is free.
const ONLY: &[Only] = &[
    Only {
        paths: &["SystemTime::now", "Instant::now"],
        within: &["server", "protocol"],
        places: &["server/src/clock.rs"],
        reason: "only clock.rs reads the clock; everything else is given `now`",
    },
    Only {
        paths: &[
            "tokio::spawn",
            "task::spawn",
            "task::spawn_blocking",
            "task::spawn_local",
            "task::JoinSet",
            "thread::spawn",
            "thread::Builder",
            "thread::scope",
            "runtime::Handle",
        ],
        within: &["server", "protocol"],
        // The store's suite plays the two threads that write the log.
        places: &["server/src/tasks.rs", "server/src/store/suite/parts.rs"],
        reason: "every task and thread is spawned and joined through tasks.rs",
    },
    Only {
        paths: &["tokio::spawn", "tokio::task::spawn", "thread::spawn"],
        within: &["client/rust"],
        places: &["client/rust/src/task.rs"],
        reason: "the client spawns through task.rs, and its handlers in a set that joins them",
    },
    Only {
        paths: &["ganger_client"],
        within: &["server"],
        places: &["server/src/cli", "server/src/cli.rs"],
        reason: "in the server the client is for the subcommands",
    },
    Only {
        paths: &["tokio_util"],
        within: &["protocol"],
        places: &["protocol/src/codec.rs"],
        reason: "the protocol is sans-IO; codec.rs is a feature",
    },
    Only {
        paths: &[
            "tokio",
            "std::env",
            "std::fs",
            "std::net",
            "std::process",
            "std::thread",
        ],
        within: &["protocol", "server/engine"],
        places: &[],
        reason: "protocol and engine do no IO and know no thread",
    },
    Only {
        paths: &[
            "std::time::Instant",
            "std::time::SystemTime",
            "Instant::now",
            "SystemTime::now",
        ],
        within: &["protocol", "server/engine"],
        places: &[],
        reason: "protocol and engine know no clock; time is an argument",
    },
    Only {
        paths: &["ganger_server", "ganger_client"],
        within: &["server/engine"],
        places: &[],
        reason: "the engine does not know who drives it",
    },
];

struct Only {
    paths: &'static [&'static str],
    /// The folders in which the rule holds.
    within: &'static [&'static str],
    /// The files and folders that are exempt.
    places: &'static [&'static str],
    reason: &'static str,
}

#[test]
fn what_is_for_one_place_is_named_in_that_place() {
    report("move it to its place", misplaced(&Repository::read().files));
}

#[test]
fn what_is_for_one_place_is_found_elsewhere() {
    let files = [
        File::new(
            "server/src/clock.rs",
            "fn now() { std::time::SystemTime::now(); }",
        ),
        File::new(
            "server/src/driver.rs",
            "// Instant::now\nuse tokio::time::Instant::now;",
        ),
        File::new(
            "server/src/http/mod.rs",
            "#[cfg(test)]\nmod tests { fn f() { Instant::now(); } }",
        ),
        File::new("server/src/listener.rs", "use tokio::{net, spawn};"),
        File::new(
            "server/src/cli/bench.rs",
            "fn f() { std::thread::spawn(g); }",
        ),
        File::new("server/src/cli/push.rs", "use ganger_client::Client;"),
        File::new(
            "client/rust/src/worker/mod.rs",
            "fn f() { tokio::spawn(g); }",
        ),
        File::new("server/src/session/mod.rs", "use ganger_client::Client;"),
        File::new("protocol/src/frame.rs", "use tokio_util::codec::Decoder;"),
        File::new("protocol/src/codec.rs", "use tokio_util::codec::Decoder;"),
        File::new(
            "server/engine/src/lease.rs",
            "use std::time::{Duration, Instant};\nuse std::fs;",
        ),
        File::new("server/engine/benches/engine.rs", "use std::time::Instant;"),
    ];
    let expected = [
        "server/src/driver.rs:2",
        "server/src/listener.rs:1",
        "server/src/cli/bench.rs:1",
        "client/rust/src/worker/mod.rs:1",
        "server/src/session/mod.rs:1",
        "protocol/src/frame.rs:1",
        "server/engine/src/lease.rs:1",
        "server/engine/src/lease.rs:2",
    ];
    assert_places(misplaced(&files), &expected);
}

fn misplaced(files: &[File]) -> Vec<String> {
    let mut places = Vec::new();
    for (file, code) in published(files) {
        let rules: Vec<&Only> = ONLY
            .iter()
            .filter(|only| only.within.iter().any(|place| file.is_in(place)))
            .filter(|only| !only.places.iter().any(|place| file.is_in(place)))
            .collect();
        for path in code.paths() {
            let broken = rules
                .iter()
                .find(|only| only.paths.iter().any(|bad| names(&path, bad)));
            if let Some(only) = broken {
                places.push(file.place(path.line, &format!("{}: {}", path.text(), only.reason)));
            }
        }
    }
    places
}

/// A crate is named at the front of a path, anything longer anywhere in it.
fn names(path: &Named, pattern: &str) -> bool {
    if pattern.contains("::") {
        path.names(pattern)
    } else {
        path.starts_with(pattern)
    }
}

#[test]
fn one_file_names_sled() {
    report(
        "go through the store; for the module write `self::sled`",
        sled(&Repository::read().files),
    );
}

#[test]
fn sled_is_found_outside_its_file() {
    let files = [
        File::new("server/src/store/sled.rs", "use sled::Db;"),
        File::new(
            "server/src/store/mod.rs",
            "mod sled;\npub use self::sled::Table;",
        ),
        File::new(
            "server/src/driver.rs",
            "use crate::store::sled::Table;\nfn f(_: sled::Db) {}",
        ),
        File::new(
            "tests/crash/main.rs",
            "fn f() { ::sled::open(\"sled::x\"); } // sled::y",
        ),
        File::new("server/src/store/log.rs", "use sled as tree;"),
    ];
    let expected = [
        "server/src/driver.rs:2",
        "tests/crash/main.rs:1",
        "server/src/store/log.rs:1",
    ];
    assert_places(sled(&files), &expected);
}

/// Test code included: no test reaches around the store.
fn sled(files: &[File]) -> Vec<String> {
    let mut places = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        if file.path != "server/src/store/sled.rs" {
            let paths = file.code().paths();
            let bad = paths.iter().filter(|path| path.starts_with("sled"));
            places.extend(bad.map(|path| file.place(path.line, &path.text())));
        }
    }
    places
}

#[test]
fn no_module_of_the_server_points_back() {
    report(
        "let the caller hand it in",
        backward(&Repository::read().files),
    );
}

#[test]
fn a_module_that_points_back_is_found() {
    let files = [
        File::new(
            "server/src/store/mod.rs",
            "use crate::{clock::Clock, driver::Handle};",
        ),
        File::new(
            "server/src/store/log.rs",
            "use super::super::session;\nuse super::keys;",
        ),
        File::new(
            "server/src/driver.rs",
            "use crate::store::Store;\nuse super::session::state;",
        ),
        File::new(
            "server/src/session/mod.rs",
            "use crate::driver::Handle;\nuse crate::cli::push;",
        ),
        File::new(
            "server/src/lib.rs",
            "pub use crate::cli::main;\nuse crate::driver::Handle;",
        ),
        File::new(
            "server/src/cli/mod.rs",
            "use crate::cli::push;\nuse crate::store::Store;",
        ),
    ];
    let expected = [
        "server/src/store/mod.rs:1",
        "server/src/store/log.rs:1",
        "server/src/driver.rs:2",
        "server/src/session/mod.rs:2",
    ];
    assert_places(backward(&files), &expected);
}

fn backward(files: &[File]) -> Vec<String> {
    let mut places = Vec::new();
    for (file, code) in published(files) {
        let Some(path) = file.path.strip_prefix("server/src/") else {
            continue;
        };
        let mut here: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
        if here.last() == Some(&"mod") {
            here.pop();
        }
        let module = here[0];
        let banned = MODULES
            .iter()
            .find(|(name, _)| *name == module)
            .map_or(&[][..], |row| row.1);
        for path in code.paths() {
            let Some(target) = target(&here, &path) else {
                continue;
            };
            let outside = !matches!(module, "cli" | "lib" | "main") && target == "cli";
            if outside || banned.contains(&target) {
                places.push(file.place(path.line, &format!("{module} names {target}")));
            }
        }
    }
    places
}

/// The module at the top of the crate that a path of the module `here` leads to.
fn target<'a>(here: &[&str], path: &'a Named) -> Option<&'a str> {
    let ups = path
        .segments
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    let to_top = if path.starts_with("crate") { 1 } else { ups };
    let at_top = path.starts_with("crate") || (ups > 0 && ups == here.len());
    at_top
        .then(|| path.segments.get(to_top))
        .flatten()
        .map(String::as_str)
}

#[test]
fn crates_depend_in_one_direction() {
    report("see CRATES in this file", crates(&metadata()));
}

#[test]
fn a_crate_that_depends_the_wrong_way_is_found() {
    let metadata = serde_json::json!({ "packages": [
        { "name": "ganger-server", "dependencies": [
            { "name": "ganger-engine", "kind": null, "features": [] },
            { "name": "sled", "kind": null, "features": [] },
            { "name": "ganger-tests", "kind": "dev", "features": [] },
        ]},
        { "name": "ganger-engine", "dependencies": [
            { "name": "foldhash", "kind": null, "features": [] },
            { "name": "proptest", "kind": "dev", "features": [] },
            { "name": "ganger-protocol", "kind": null, "features": ["codec"] },
            { "name": "tracing", "kind": null, "features": [] },
        ]},
        { "name": "ganger-client", "dependencies": [
            { "name": "sled", "kind": "dev", "features": [] },
        ]},
        { "name": "ganger-extra", "dependencies": [] },
    ]});
    let expected = [
        "ganger-server",
        "ganger-engine",
        "ganger-engine",
        "ganger-client",
        "ganger-extra",
    ];
    assert_places(crates(&metadata), &expected);
}

fn crates(metadata: &Value) -> Vec<String> {
    let mut places = Vec::new();
    for package in list(&metadata["packages"]) {
        let name = text(&package["name"]);
        let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == name) else {
            places.push(format!("{name}: a crate that CRATES does not list"));
            continue;
        };
        for dependency in list(&package["dependencies"]) {
            let used = text(&dependency["name"]);
            let for_tests = text(&dependency["kind"]) == "dev";
            let ours = used.starts_with("ganger-");
            let codec = list(&dependency["features"])
                .iter()
                .any(|feature| feature == "codec");
            let wrong = if ours && !allowed.contains(&used) {
                "wrong way"
            } else if used == "sled" && name != "ganger-server" {
                "only the server's store knows sled"
            } else if name == "ganger-engine" && !for_tests && ours && codec {
                "the engine takes the protocol without its codec"
            } else if name == "ganger-engine" && !for_tests && !ours && !ENGINE_USES.contains(&used)
            {
                "the engine is pure"
            } else {
                continue;
            };
            places.push(format!("{name}: depends on {used}: {wrong}"));
        }
    }
    places
}

#[test]
fn the_engine_reaches_no_runtime_and_no_store() {
    // Its own tree: features that other members of the workspace switch on do not count.
    let tree = cargo(&[
        "tree",
        "-p",
        "ganger-engine",
        "-e",
        "normal",
        "--prefix",
        "none",
    ]);
    assert!(tree.starts_with("ganger-engine "), "no tree: {tree}");
    report("keep the engine pure", reached(&tree));
}

#[test]
fn a_runtime_behind_the_engine_is_found() {
    let tree = "ganger-engine v0.1.0\nfoldhash v0.2.0\ntokio v1.54.1\ntokio-stream v0.1.0\n";
    assert_places(reached(tree), &["tokio"]);
}

fn reached(tree: &str) -> Vec<String> {
    let names = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let bad = names.filter(|name| ENGINE_NEVER_REACHES.contains(name));
    bad.map(|name| format!("{name}: reachable from the engine"))
        .collect()
}

fn metadata() -> Value {
    let text = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    serde_json::from_str(&text).expect("cargo writes JSON")
}

/// Runs cargo on the workspace, without the network: whoever runs this test has built it.
fn cargo(arguments: &[&str]) -> String {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args(arguments)
        .arg("--offline")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
