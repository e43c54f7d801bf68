//! Which directories are opened, and which are refused before anything is written.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{Directory, Place, options};
use crate::store::{Store, StoreError};

fn open(path: &Path) -> StoreError {
    Store::open_dir(path, &options()).unwrap_err()
}

#[test]
fn a_second_server_is_told_who_has_the_directory() {
    let place = Directory::new();
    let (store, _) = place.open();
    match open(place.0.path()) {
        StoreError::Locked { pid, .. } => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    place.kill(store);
    place.open();
}

#[test]
fn a_directory_with_something_else_in_it_is_refused_and_left_alone() {
    let place = Directory::new();
    fs::write(place.0.path().join("thesis.doc"), b"mine").unwrap();
    let error = open(place.0.path());
    assert!(error.to_string().contains("thesis.doc"), "{error}");
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 1);
}

#[test]
fn another_format_is_refused() {
    let place = Directory::new();
    place.kill(place.open().0);
    let current = place.0.path().join("CURRENT");
    fs::write(&current, "ganger 4\ndata-000001\n").unwrap();
    let error = open(place.0.path());
    assert!(matches!(error, StoreError::Format { found: 4, known: 3 }));
    for text in ["", "ganger\n", "ganger 3\n../x\n", "ganger 3\ndata-\n"] {
        fs::write(&current, text).unwrap();
        let error = open(place.0.path());
        assert!(matches!(error, StoreError::Foreign { .. }), "{text:?}");
    }
}

#[test]
fn a_creation_that_was_cut_short_begins_again() {
    for leftovers in [
        &["LOCK"][..],
        &["LOCK", "CURRENT.tmp"],
        &["LOCK", "data-000001/"],
    ] {
        let place = Directory::new();
        for name in leftovers {
            let path = place.0.path().join(name);
            if name.ends_with('/') {
                fs::create_dir(path).unwrap();
            } else {
                fs::write(path, b"").unwrap();
            }
        }
        place.kill(place.open().0);
        let current = fs::read_to_string(place.0.path().join("CURRENT")).unwrap();
        assert_eq!(current, "ganger 3\ndata-000001\n");
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let place = Directory::new();
    let file = place.0.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = open(&file.join("data"));
    assert!(matches!(error, StoreError::Directory { .. }), "{error:?}");
    let error = open(Path::new("/proc/self/data"));
    assert!(matches!(error, StoreError::Directory { .. }), "{error:?}");
}

#[test]
fn only_the_owner_may_look_inside() {
    let place = Directory::new();
    let path = place.0.path().join("new");
    Store::open_dir(&path, &options()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("CURRENT")), 0o600);
    assert_eq!(mode(&path.join("LOCK")), 0o600);
    assert_eq!(mode(&path.join("data-000001")), 0o700);
}
