//! Every record reads back as it was written, and stays within its bounds.

use ganger_engine::records::{GroupNumber, VALUE_BYTES_MAX};
use proptest::prelude::*;

use super::samples::*;
use crate::store::{
    batch,
    coding::Malformed,
    cron, limit,
    records::{self, HEADER_BYTES},
    workflow,
};

/// The body of a record.
fn body(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

/// Reads a body that was cut or changed: it may be refused, never more.
fn mangled<T>(body: &[u8], at: usize, read: impl Fn(&[u8]) -> Result<T, Malformed>) {
    let at = at % (body.len() + 1);
    let _ = read(&body[..at]);
    let mut changed = body.to_vec();
    if let Some(byte) = changed.get_mut(at) {
        *byte ^= 0x55;
    }
    let _ = read(&changed);
}

fn fits(body: &[u8]) -> bool {
    body.len() + HEADER_BYTES <= VALUE_BYTES_MAX
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn contents(content in any_content(), at: usize) {
        let body = body(|out| records::put_content(out, &content));
        prop_assert!(body.len() <= content.bound_bytes());
        prop_assert_eq!(records::content_of(&body), Ok(content));
        mangled(&body, at, records::content_of);
    }

    #[test]
    fn runs(run in any_run(), at: usize) {
        let body = body(|out| records::put_run(out, &run));
        let bound: usize = run.entries.iter().map(|entry| entry.bound_bytes()).sum();
        prop_assert!(body.len() <= 1 + bound, "{} {}", body.len(), bound);
        for (index, entry) in (0_u8..).zip(&run.entries) {
            let found = records::run_entry(&body, index).unwrap();
            prop_assert_eq!(&found.1, &Some(entry.clone()));
        }
        prop_assert_eq!(records::run_entry(&body, 255).unwrap().1, None);
        prop_assert_eq!(records::run(&body), Ok(run));
        mangled(&body, at, records::run);
    }

    #[test]
    fn jobs(job in any_job_record(), at: usize) {
        let body = body(|out| records::put_job(out, &job));
        let read = |body: &[u8]| records::job(job.id, GroupNumber(0), body);
        prop_assert_eq!(read(&body), Ok(job.clone()));
        mangled(&body, at, read);
    }

    #[test]
    fn acks(rows in any_acks(), at: usize) {
        let body = body(|out| records::put_acks(out, &rows));
        prop_assert!(fits(&body), "{}", body.len());
        prop_assert_eq!(records::acks(&body), Ok(rows));
        mangled(&body, at, records::acks);
    }

    #[test]
    fn lefts(left in any_left(), at: usize) {
        let body = body(|out| records::put_left(out, &left));
        let read = |body: &[u8]| records::left(left.run, body);
        prop_assert!(fits(&body), "{}", body.len());
        prop_assert_eq!(read(&body), Ok(left));
        mangled(&body, at, read);
    }

    #[test]
    fn leases(rows in any_leases(), at: usize) {
        let body = body(|out| records::put_leases(out, &rows));
        prop_assert!(fits(&body), "{}", body.len());
        prop_assert_eq!(records::leases(&body), Ok(rows));
        mangled(&body, at, records::leases);
    }

    #[test]
    fn sessions(session in any_session(), at: usize) {
        let body = body(|out| records::put_session(out, &session));
        let read = |body: &[u8]| records::session(session.id, body);
        prop_assert!(body.len() <= 2 * records::PART_BYTES);
        prop_assert_eq!(read(&body), Ok(session.clone()));
        mangled(&body, at, read);
    }

    #[test]
    fn outcomes(outcome in any_outcome(), at: usize) {
        let body = body(|out| records::put_outcome(out, &outcome));
        let read = |body: &[u8]| records::outcome(outcome.producer, body);
        prop_assert_eq!(records::outcome_seq(&body), Ok((outcome.seq, outcome.at)));
        prop_assert_eq!(read(&body), Ok(outcome.clone()));
        mangled(&body, at, read);
    }

    #[test]
    fn queues(queue in any_queue(), at: usize) {
        let body = body(|out| records::put_queue(out, &queue));
        let read = |body: &[u8]| records::queue(queue.number, body);
        prop_assert!(fits(&body));
        prop_assert_eq!(read(&body), Ok(queue.clone()));
        mangled(&body, at, read);
    }

    #[test]
    fn crons(cron in any_cron(), at: usize) {
        let body = body(|out| cron::put_cron(out, &cron));
        let read = |body: &[u8]| cron::cron(cron.number, body);
        prop_assert!(fits(&body), "{}", body.len());
        prop_assert_eq!(read(&body), Ok(cron.clone()));
        mangled(&body, at, read);
    }

    #[test]
    fn nodes(record in any_node(), at: usize) {
        let body = body(|out| workflow::put_node(out, &record));
        let read = |body: &[u8]| workflow::node(record.batch, record.job, body);
        prop_assert!(body.len().div_ceil(records::PART_BYTES) <= usize::from(record.parts()));
        prop_assert_eq!(read(&body), Ok(record.clone()));
        mangled(&body, at, read);
    }

    #[test]
    fn limits(record in any_limit(), at: usize) {
        let body = body(|out| limit::put_limit(out, &record));
        prop_assert!(fits(&body), "{}", body.len());
        prop_assert_eq!(limit::limit(&body), Ok(record));
        mangled(&body, at, limit::limit);
    }

    #[test]
    fn batches(record in any_batch(), at: usize) {
        let body = body(|out| batch::put_batch(out, &record));
        let read = |body: &[u8]| batch::batch(record.id, body);
        prop_assert!(fits(&body), "{}", body.len());
        prop_assert_eq!(read(&body), Ok(record.clone()));
        mangled(&body, at, read);
    }

    #[test]
    fn errors(error in any_error(), at: usize) {
        let body = body(|out| records::put_error(out, &error));
        prop_assert_eq!(records::error(&body), Ok(error));
        mangled(&body, at, records::error);
    }

    #[test]
    fn heads(head in any_head(), at: usize) {
        let body = body(|out| records::put_head(out, &head));
        prop_assert_eq!(records::head(&body), Ok(head));
        mangled(&body, at, records::head);
    }

    #[test]
    fn a_changed_bit_of_a_value_is_found(bytes in prop::collection::vec(any::<u8>(), 0..99), bit: usize) {
        let mut value = body(|out| {
            records::put_value(out, b"key", GroupNumber(5), |out| out.extend_from_slice(&bytes));
        });
        let newest = GroupNumber(5);
        prop_assert_eq!(records::open_value(b"key", &value, newest), Ok((newest, &bytes[..])));
        prop_assert!(records::open_value(b"kez", &value, newest).is_err());
        prop_assert!(records::open_value(b"key", &value, GroupNumber(4)).is_err());
        let bit = bit % (value.len() * 8);
        value[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(records::open_value(b"key", &value, newest).is_err());
    }
}
