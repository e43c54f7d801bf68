//! Pages that must keep step with the code: docs/PROTOCOL.md has a heading for every operation of
//! protocol/src/request.rs and names every code of protocol/src/error.rs.
//!
//! The names are read from the source: every string of lower-case letters and underscores that is a
//! side of a `=>`, or stands in the value of a `const` or `static`.

use std::collections::BTreeSet;

use crate::source::{File, Repository};
use crate::{assert_places, report};

const PAGE: &str = "docs/PROTOCOL.md";
const REQUESTS: &str = "protocol/src/request.rs";
const ERRORS: &str = "protocol/src/error.rs";

/// Whether a missing page, or a source without names, is let pass. For the time before the first
/// protocol only: make it `false` with the page's arrival.
const fn the_protocol_page_may_still_be_missing() -> bool {
    false
}

#[test]
fn every_operation_has_its_heading() {
    let files = Repository::read().files;
    report(
        "document each operation",
        operations(&files, the_protocol_page_may_still_be_missing()),
    );
}

#[test]
fn every_error_code_is_documented() {
    let files = Repository::read().files;
    report(
        "document each error code",
        errors(&files, the_protocol_page_may_still_be_missing()),
    );
}

#[test]
fn what_the_page_does_not_say_is_found() {
    let files = [
        File::new(
            REQUESTS,
            "fn op(&self) -> &str { match self { Self::Push => \"push\", Self::Ack => \"ack\" } }\n\
             fn of(op: &str) { match op { \"hello\" | \"fetch\" => f(\"not_a_name\"), _ => g() } }\n\
             fn h(a: &'static str) { if a == \"extra\" || b { let c = \"other\"; } }",
        ),
        File::new(
            ERRORS,
            "const CODES: [(&str, &str); 2] = [(\"not_found\", \"No such job.\"), (\"too_large\", \"\")];",
        ),
        File::new(
            PAGE,
            "# Protocol\n## `push`\n### Ack, `ack`\nhello, push\n| `not_found` |\nnot_too_large\n",
        ),
    ];
    assert_places(operations(&files, false), &["fetch", "hello"]);
    assert_places(errors(&files, false), &["too_large"]);
}

#[test]
fn a_missing_page_or_an_empty_table_is_found() {
    let files = [
        File::new(REQUESTS, "fn f() { g(\"push\") }"),
        File::new(PAGE, ""),
    ];
    assert_places(operations(&files, false), &[REQUESTS]);
    assert_places(errors(&files, false), &[ERRORS]);
    assert_places(operations(&files[..1], false), &[REQUESTS, PAGE]);
    assert_places(operations(&files[..1], true), &[]);
}

fn operations(files: &[File], lenient: bool) -> Vec<String> {
    undocumented(
        files,
        REQUESTS,
        lenient,
        |line| line.starts_with('#'),
        "has no heading",
    )
}

fn errors(files: &[File], lenient: bool) -> Vec<String> {
    undocumented(files, ERRORS, lenient, |_| true, "is not mentioned")
}

/// The names in the tables of `source` that stand in no line of the page that `counts`.
fn undocumented(
    files: &[File],
    source: &str,
    lenient: bool,
    counts: fn(&str) -> bool,
    what: &str,
) -> Vec<String> {
    let text = |path: &str| files.iter().find(|file| file.path == path);
    let names = text(source).map(names).unwrap_or_default();
    let page = text(PAGE);
    let mut places = Vec::new();
    if names.is_empty() && !lenient {
        places.push(format!(
            "{source}: no names found in it; how are they written now?"
        ));
    }
    let Some(page) = page else {
        if !lenient {
            places.push(format!("{PAGE}: missing"));
        }
        return places;
    };
    let said: BTreeSet<&str> = page
        .text
        .lines()
        .filter(|line| counts(line))
        .flat_map(words)
        .collect();
    let missing = names.iter().filter(|name| !said.contains(name.as_str()));
    places.extend(missing.map(|name| format!("{name}: {what} in {PAGE}")));
    places
}

fn names(file: &File) -> BTreeSet<String> {
    let mut code = file.code();
    code.remove_tests();
    let is_name =
        |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    code.tabled_strings()
        .into_iter()
        .filter(is_name)
        .map(str::to_owned)
        .collect()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
}
