//! The protocol page says what the code does: each operation, notice and error code has its place.

use ganger_protocol::{ErrorCode, request::Operation, response::Notice};
use ganger_server::config::Config;

use super::{Repository, report};

const PAGE: &str = "docs/PROTOCOL.md";
const OPERATIONS: &str = "docs/OPERATIONS.md";

#[test]
fn every_operation_and_notice_has_its_heading() {
    let words = Operation::ALL.iter().chain(Notice::ALL).copied();
    let headings = words.map(|word| format!("### `{word}`"));
    report("document each operation", missing(&page(PAGE), headings));
}

#[test]
fn every_error_code_has_its_row() {
    let rows = ErrorCode::ALL.iter().map(|code| format!("| `{code}` |"));
    report("document each error code", missing(&page(PAGE), rows));
}

#[test]
fn whoever_operates_it_finds_every_error_and_every_setting() {
    let page = page(OPERATIONS);
    let rows = ErrorCode::ALL.iter().map(|code| format!("| `{code}` |"));
    report("say what to do", missing(&page, rows));
    assert!(
        page.contains(Config::ANNOTATED),
        "{OPERATIONS} holds what `ganger config default` prints"
    );
}

#[test]
fn what_the_page_does_not_say_is_found() {
    let wanted = ["### `push`", "### `ack`"].map(str::to_owned);
    assert_eq!(
        missing("# Page\n### `push`\n#### `ack`\n", wanted.into_iter()),
        ["### `ack`"]
    );
}

fn page(path: &str) -> String {
    let files = Repository::read().files;
    let page = files.iter().find(|file| file.path == path);
    page.map(|file| file.text.clone()).unwrap_or_default()
}

/// What no line of the page begins with.
fn missing(page: &str, wanted: impl Iterator<Item = String>) -> Vec<String> {
    wanted
        .filter(|start| !page.lines().any(|line| line.starts_with(start.as_str())))
        .collect()
}
