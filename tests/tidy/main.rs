//! Source hygiene: what the project asks of its own files and a compiler does not check. Here are
//! the rules about files as such; `arrows` holds who may name whom, `words` what things may be
//! called, `docs` which page must keep step with which file. `source` reads the repository, `code`
//! tells code from comments, strings and tests.
//!
//! Each rule is a function from files to offending places, run by one test over the repository
//! and by another over a few lines that break it. It looks at text: a renamed import gets past it,
//! and clippy's `disallowed_methods` is there for that.

mod arrows;
mod code;
mod docs;
mod source;
mod words;

use source::{File, Repository};

/// The folders at the root. Where does a new thing belong? In one of these.
const ROOT_FOLDERS: &[&str] = &["client", "docker", "docs", "protocol", "server", "tests"];

/// The files at the root, beside those whose name starts with a dot.
const ROOT_FILES: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "rustfmt.toml",
];

/// Absolute paths that exist on one machine only. In halves, so that this file may say them.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/")];

#[test]
fn every_source_file_opens_with_what_it_is_for() {
    report(
        "open each file with a `//!` paragraph",
        headerless(&Repository::read().files),
    );
}

#[test]
fn a_file_without_header_is_found() {
    let files = [
        File::new("a.rs", "//! Reads the clock.\n"),
        File::new("b.rs", "use std::fmt;\n"),
        File::new("c.rs", "//!\n//! Too late.\n"),
        File::new("d.md", "Not Rust."),
    ];
    assert_places(headerless(&files), &["b.rs:1", "c.rs:1"]);
}

fn headerless(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.is_rust())
        .filter(|file| {
            let first = file.text.lines().next().unwrap_or_default();
            first
                .strip_prefix("//! ")
                .is_none_or(|words| words.trim().is_empty())
        })
        .map(|file| file.place(1, "no `//!` paragraph on the first line"))
        .collect()
}

#[test]
fn the_root_holds_nothing_new() {
    report(
        "keep the root to its list, or change the list",
        strangers(&Repository::read().root),
    );
}

#[test]
fn a_stranger_at_the_root_is_found() {
    let root = [
        "server/",
        "scripts/",
        ".ci/",
        "README.md",
        "notes.txt",
        "docs",
    ];
    let root: Vec<String> = root.map(str::to_owned).into();
    assert_places(strangers(&root), &["scripts/", "notes.txt", "docs"]);
}

/// Takes the names at the root, folders with a slash at the end.
fn strangers(root: &[String]) -> Vec<String> {
    root.iter()
        .filter(|name| match name.strip_suffix('/') {
            _ if name.starts_with('.') => false,
            Some(folder) => !ROOT_FOLDERS.contains(&folder),
            None => !ROOT_FILES.contains(&name.as_str()),
        })
        .map(|name| format!("{name}: does not belong at the root"))
        .collect()
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    report(
        "write paths relative to the repository",
        machine_paths(&Repository::read().files),
    );
}

#[test]
fn a_path_of_one_machine_is_found() {
    let path = MACHINE_PATHS[0];
    let files = [
        File::new("a.md", &format!("first\nsee `{path}notes`\n")),
        File::new(
            "b.md",
            &format!("one of push{path}inspect, or https://host.example{path}x\n"),
        ),
    ];
    assert_places(machine_paths(&files), &["a.md:2"]);
}

fn machine_paths(files: &[File]) -> Vec<String> {
    let mut places = Vec::new();
    for file in files {
        for (number, line) in (1..).zip(file.text.lines()) {
            for path in MACHINE_PATHS {
                // Inside a longer path or an address it is somebody else's name.
                let alone = line.match_indices(path).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    before.is_none_or(|c| !(c.is_alphanumeric() || "_-.~})".contains(c)))
                });
                if alone {
                    places.push(file.place(number, &format!("names {path}")));
                }
            }
        }
    }
    places
}

/// Fails with every place at once, so that one run shows the whole work.
#[track_caller]
fn report(rule: &str, places: Vec<String>) {
    assert!(places.is_empty(), "{rule}:\n  {}\n", places.join("\n  "));
}

/// The places found are those expected, each given by how its line begins.
#[track_caller]
fn assert_places(found: Vec<String>, expected: &[&str]) {
    let same = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, start)| {
            found
                .strip_prefix(start)
                .is_some_and(|rest| rest.starts_with(':'))
        });
    assert!(same, "expected {expected:#?}, found {found:#?}");
}
