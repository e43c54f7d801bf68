//! The log and the table by themselves: the real ones and the doubles behave alike.

use std::{sync::Arc, thread};

use bytes::Bytes;
use ganger_engine::records::GroupNumber;

use super::options;
use crate::store::{
    keys::Key,
    log::{FileLog, Log, LogError, LogState},
    memory::{Crash, MemoryDisk},
    sled::SledTable,
    table::{Order, Span, Table},
};

/// A log, or a table, that can be opened again after its process was killed.
type Opener<T> = Box<dyn Fn() -> Arc<T>>;

fn each_log(check: impl Fn(&Opener<dyn Log>)) {
    let disk = MemoryDisk::new();
    check(
        &(Box::new(move || {
            disk.crash(&Crash::default());
            let log: Arc<dyn Log> = Arc::new(disk.handles().0);
            log
        }) as Opener<dyn Log>),
    );
    let directory = tempfile::tempdir().unwrap();
    check(
        &(Box::new(move || {
            let log: Arc<dyn Log> =
                Arc::new(FileLog::open(directory.path(), options().log).unwrap());
            log
        }) as Opener<dyn Log>),
    );
}

fn each_table(check: impl Fn(&Opener<dyn Table>)) {
    let disk = MemoryDisk::new();
    check(
        &(Box::new(move || {
            disk.crash(&Crash::default());
            let table: Arc<dyn Table> = Arc::new(disk.handles().1);
            table
        }) as Opener<dyn Table>),
    );
    let directory = tempfile::tempdir().unwrap();
    check(
        &(Box::new(move || {
            let table: Arc<dyn Table> =
                Arc::new(SledTable::open(directory.path(), 1 << 20).unwrap());
            table
        }) as Opener<dyn Table>),
    );
}

fn append(log: &dyn Log, epoch: u64, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let body = Bytes::from(vec![u8::try_from(number % 256).unwrap(); 500]);
        log.append(epoch, GroupNumber(number), body).unwrap();
    }
}

fn numbers(log: &dyn Log, applied: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    let last = log.read_from(GroupNumber(applied), &mut |number, body| {
        assert_eq!(u64::from(body[0]), number.0 % 256);
        assert_eq!(body.len(), 500);
        numbers.push(number.0);
        Ok(())
    });
    assert_eq!(last.unwrap().0, numbers.last().copied().unwrap_or(applied));
    numbers
}

#[test]
fn a_log_gives_back_what_was_synced_and_nothing_else() {
    each_log(|open| {
        let log = open();
        assert_eq!(log.state(), LogState::Absent);
        assert_eq!(log.acquire(GroupNumber(0)).unwrap(), 1);
        assert_eq!(log.state(), LogState::Unused);
        append(&*log, 1, 1..=3);
        assert_eq!(log.sync().unwrap(), GroupNumber(3));
        append(&*log, 1, 4..=5);
        drop(log);
        let log = open();
        assert_eq!(log.state(), LogState::Used);
        assert_eq!(numbers(&*log, 0), [1, 2, 3]);
        assert_eq!(numbers(&*log, 2), [3]);
        assert_eq!(log.acquire(GroupNumber(3)).unwrap(), 2);
        append(&*log, 2, 4..=4);
        log.sync().unwrap();
        let log = open();
        assert_eq!(numbers(&*log, 0), [1, 2, 3, 4]);
    });
}

#[test]
fn a_write_counts_when_those_before_it_are_done() {
    each_log(|open| {
        let log = open();
        let epoch = log.acquire(GroupNumber(0)).unwrap();
        append(&*log, epoch, 1..=2);
        let first = log.gather().unwrap();
        append(&*log, epoch, 3..=3);
        let second = log.gather().unwrap();
        assert_eq!(log.write(second).unwrap(), GroupNumber(0));
        assert_eq!(log.write(first).unwrap(), GroupNumber(3));
        let nothing = log.gather().unwrap();
        assert_eq!(log.write(nothing).unwrap(), GroupNumber(3));
        assert_eq!(numbers(&*open(), 0), [1, 2, 3]);
    });
}

#[test]
fn a_log_ends_before_a_write_that_is_missing_and_goes_on_from_there() {
    each_log(|open| {
        let log = open();
        let epoch = log.acquire(GroupNumber(0)).unwrap();
        append(&*log, epoch, 1..=1);
        log.sync().unwrap();
        append(&*log, epoch, 2..=3);
        let missing = log.gather().unwrap();
        append(&*log, epoch, 4..=4);
        let behind_it = log.gather().unwrap();
        assert_eq!(log.write(behind_it).unwrap(), GroupNumber(1));
        drop((missing, log));
        let log = open();
        assert_eq!(numbers(&*log, 0), [1]);
        let epoch = log.acquire(GroupNumber(1)).unwrap();
        append(&*log, epoch, 2..=2);
        log.sync().unwrap();
        drop(log);
        assert_eq!(numbers(&*open(), 0), [1, 2]);
    });
}

#[test]
fn a_sync_also_waits_for_what_others_write() {
    each_log(|open| {
        let log = open();
        let epoch = log.acquire(GroupNumber(0)).unwrap();
        append(&*log, epoch, 1..=1);
        let other = log.gather().unwrap();
        append(&*log, epoch, 2..=2);
        thread::scope(|scope| {
            let sync = scope.spawn(|| log.sync().unwrap());
            log.write(other).unwrap();
            assert_eq!(sync.join().unwrap(), GroupNumber(2));
        });
    });
}

#[test]
fn a_segment_begins_when_every_write_is_done() {
    each_log(|open| {
        let log = open();
        let epoch = log.acquire(GroupNumber(0)).unwrap();
        append(&*log, epoch, 1..=1);
        let first = log.gather().unwrap();
        // More than any segment of this suite has room for.
        append(&*log, epoch, 2..=200);
        thread::scope(|scope| {
            let rest = scope.spawn(|| log.gather().unwrap());
            log.write(first).unwrap();
            log.write(rest.join().unwrap()).unwrap();
        });
        assert_eq!(log.sync().unwrap(), GroupNumber(200));
        drop(log);
        assert_eq!(numbers(&*open(), 0), (1..=200).collect::<Vec<_>>());
    });
}

#[test]
fn a_log_refuses_another_epoch_and_a_gap() {
    each_log(|open| {
        let log = open();
        let epoch = log.acquire(GroupNumber(0)).unwrap();
        let body = Bytes::from_static(b"body");
        let append = |epoch, number| log.append(epoch, GroupNumber(number), body.clone());
        let (own, newest) = (epoch - 1, epoch);
        match append(own, 1) {
            Err(LogError::Fenced { own: o, newest: n }) => assert_eq!((o, n), (own, newest)),
            other => panic!("{other:?}"),
        }
        match append(epoch, 2) {
            Err(LogError::OutOfOrder { expected, actual }) => {
                assert_eq!((expected, actual), (1, 2));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_log_forgets_what_was_trimmed_and_knows_where_it_stands() {
    each_log(|open| {
        let log = open();
        let epoch = log.acquire(GroupNumber(0)).unwrap();
        // Several segments, and several batches in each.
        for batch in 0..40 {
            append(&*log, epoch, batch * 5 + 1..=batch * 5 + 5);
            log.sync().unwrap();
        }
        log.prepare().unwrap();
        log.trim(GroupNumber(150)).unwrap();
        assert_eq!(numbers(&*log, 150), (151..=200).collect::<Vec<_>>());
        let lost = log.read_from(GroupNumber(3), &mut |_, _| Ok(()));
        assert!(matches!(lost, Err(LogError::Damaged { .. })), "{lost:?}");
        let behind = log.read_from(GroupNumber(201), &mut |_, _| Ok(()));
        assert!(matches!(behind, Err(LogError::Damaged { .. })));
        log.trim(GroupNumber(200)).unwrap();
        drop(log);
        let log = open();
        assert!(numbers(&*log, 200).is_empty());
        assert_eq!(log.acquire(GroupNumber(200)).unwrap(), epoch + 1);
    });
}

fn key(text: &str) -> Key {
    Key::from_slice(text.as_bytes()).unwrap()
}

fn put(text: &str) -> (Key, Option<Bytes>) {
    (key(text), Some(Bytes::copy_from_slice(text.as_bytes())))
}

#[test]
fn a_table_scans_between_bounds_in_both_directions() {
    each_table(|open| {
        let table = open();
        table.apply(&["a", "b1", "b2", "b3", "c"].map(put)).unwrap();
        let scan = |order, max| {
            let span = Span {
                order,
                ..Span::of(key("b"))
            };
            let rows = table.scan(&span, max).unwrap();
            rows.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(scan(Order::Ascending, 2), [key("b1"), key("b2")]);
        assert_eq!(scan(Order::Ascending, 9).len(), 3);
        assert_eq!(scan(Order::Descending, 2), [key("b3"), key("b2")]);
        assert_eq!(scan(Order::Descending, 0), []);
        let span = Span::of(key("b"));
        let nothing = Span {
            from: span.to,
            to: span.from,
            ..span
        };
        assert_eq!(table.scan(&nothing, 9).unwrap(), []);
    });
}

#[test]
fn a_table_has_empty_values_where_it_made_room() {
    each_table(|open| {
        let table = open();
        table.apply(&[put("a")]).unwrap();
        let keys = ["b", "c", "d"].map(key);
        table.make_room(&keys).unwrap();
        for key in &keys {
            assert_eq!(table.read(key).unwrap(), Some(Bytes::new()));
        }
        table.apply(&["b", "c", "d"].map(put)).unwrap();
        for (key, value) in ["b", "c", "d"].map(put) {
            assert_eq!(table.read(&key).unwrap(), value);
        }
    });
}

#[test]
fn a_table_keeps_what_was_flushed() {
    each_table(|open| {
        let table = open();
        table.apply(&[put("a"), put("b")]).unwrap();
        table.apply(&[(key("a"), None), put("c")]).unwrap();
        table.flush().unwrap();
        assert!(table.disk_bytes() > 0);
        drop(table);
        let table = open();
        assert_eq!(table.read(&key("a")).unwrap(), None);
        assert_eq!(table.read(&key("b")).unwrap().as_deref(), Some(&b"b"[..]));
        assert_eq!(table.read(&key("c")).unwrap().as_deref(), Some(&b"c"[..]));
        assert_eq!(table.stray_files(), 0);
    });
}
