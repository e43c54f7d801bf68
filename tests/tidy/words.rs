//! What things may be called. docs/GLOSSARY.md has one word for each thing; here are those other
//! words for it that mean nothing else, so that their use is a mistake wherever it stands. Words
//! that have an honest second meaning (`task`, `list`, `message`) are left to the reader.

use crate::source::{File, Repository};
use crate::{assert_places, report};

/// Not checked: names that come with somebody else's protocol or program.
const FOREIGN: &[&str] = &["server/src/compat", "tests/peers"];

/// Words of a function's name, and what to say instead.
const FUNCTIONS: &[(&str, &str)] = &[
    ("bury", "dead"),
    ("dequeue", "fetch"),
    ("dlq", "dead"),
    ("enqueue", "push"),
    ("morgue", "dead"),
    ("nack", "fail"),
    ("reap", "expire, time out or lose"),
    ("redrive", "revive"),
    ("requeue", "fail, release or revive"),
    ("tube", "queue"),
];

/// Whole names of functions.
const WHOLE_FUNCTIONS: &[(&str, &str)] = &[
    ("kick", "revive"),
    ("ping", "heartbeat"),
    ("reserve_job", "fetch"),
    ("send_job", "push"),
];

/// Words of a type's name.
const TYPES: &[(&str, &str)] = &[
    ("Consumer", "worker"),
    ("Dequeue", "fetch"),
    ("Dlq", "dead"),
    ("Enqueue", "push"),
    ("Helper", "what it helps with"),
    ("Helpers", "what they help with"),
    ("Manager", "what it owns"),
    ("Morgue", "dead"),
    ("Nack", "fail"),
    ("Publisher", "producer"),
    ("Requeue", "fail, release or revive"),
    ("Tenant", "namespace"),
    ("Tube", "queue"),
    ("Util", "what it does"),
    ("Utils", "what they do"),
];

/// Whole names of modules.
const MODULES: &[&str] = &[
    "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils",
];

#[test]
fn things_are_called_by_their_words() {
    report("see docs/GLOSSARY.md", misnamed(&Repository::read().files));
}

#[test]
fn a_wrong_word_is_found() {
    let files = [
        File::new(
            "server/src/driver.rs",
            "fn enqueue_all() {}\n// fn nack\nfn push() {}",
        ),
        File::new(
            "client/rust/src/client.rs",
            "struct Pool;\nstruct JobManager;\nstruct StoreImpl;",
        ),
        File::new(
            "protocol/src/job.rs",
            "fn get_job() {}\nfn get_mut() {}\nfn budget_left() {}",
        ),
        File::new(
            "protocol/src/lib.rs",
            "pub(crate) mod util;\nmod utility { }",
        ),
        File::new("tests/support/helpers.rs", "fn ping() {}\nfn shipping() {}"),
        File::new("server/src/compat/beanstalk.rs", "fn kick() {}"),
    ];
    let expected = [
        "server/src/driver.rs:1",
        "client/rust/src/client.rs:2",
        "client/rust/src/client.rs:3",
        "protocol/src/job.rs:1",
        "protocol/src/lib.rs:1",
        "tests/support/helpers.rs:1",
        "tests/support/helpers.rs:1",
    ];
    assert_places(misnamed(&files), &expected);
}

fn misnamed(files: &[File]) -> Vec<String> {
    let ours = files
        .iter()
        .filter(|file| file.is_rust() && !FOREIGN.iter().any(|place| file.is_in(place)));
    let mut places = Vec::new();
    for file in ours {
        if MODULES.contains(&module(&file.path)) {
            places.push(file.place(1, "a module is named by what it is about"));
        }
        for (line, introducer, name) in file.code().definitions() {
            let instead = match introducer {
                "fn" => function(name),
                "mod" => MODULES.contains(&name).then_some("what it is about"),
                _ => type_name(name),
            };
            if let Some(instead) = instead {
                places.push(file.place(line, &format!("{introducer} {name}: say {instead}")));
            }
        }
    }
    places
}

/// The module that a file holds.
fn module(path: &str) -> &str {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    path.rsplit('/').next().unwrap_or(path)
}

fn function(name: &str) -> Option<&'static str> {
    if name.starts_with("get_") && name != "get_mut" {
        return Some("it without `get_`");
    }
    let whole = WHOLE_FUNCTIONS.iter().find(|(word, _)| *word == name);
    whole
        .or_else(|| {
            FUNCTIONS
                .iter()
                .find(|(word, _)| name.split('_').any(|part| part == *word))
        })
        .map(|(_, instead)| *instead)
}

fn type_name(name: &str) -> Option<&'static str> {
    let parts = camel_words(name);
    if parts.len() > 1 && parts.last() == Some(&"Impl") {
        return Some("what sets this implementation apart");
    }
    TYPES
        .iter()
        .find(|(word, _)| parts.contains(word))
        .map(|(_, instead)| *instead)
}

/// `JobManager` is `Job` and `Manager`.
fn camel_words(name: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = name
        .char_indices()
        .filter(|(at, c)| *at > 0 && c.is_ascii_uppercase())
        .map(|(at, _)| at)
        .collect();
    starts.insert(0, 0);
    starts.push(name.len());
    starts
        .windows(2)
        .map(|pair| &name[pair[0]..pair[1]])
        .collect()
}
