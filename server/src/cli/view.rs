//! How jobs, times and counters are shown, as text and as JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ganger_protocol::{Bytes, Timestamp, job::JobView, progress::WaitReply, response::Counters};
use serde_json::Value;

use super::{
    error::CliError,
    output::{Align, Table, pairs, printable},
};

/// Characters of a payload in a listing.
const PREVIEW_CHARS: usize = 60;

/// A time as RFC 3339 in UTC.
pub(super) fn time(at: Timestamp) -> String {
    let time = i64::try_from(at.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| at.to_string(), |time| time.to_string())
}

/// A job as JSON, its payload readable where it can be: `payload` as JSON or text, else
/// `payload_base64`.
pub(super) fn job_json(job: &JobView) -> Result<Value, CliError> {
    let refused = |error| CliError::failed("cannot write JSON").because(&error);
    let mut value = serde_json::to_value(JobView {
        payload: Bytes::new(),
        cursor: None,
        result: None,
        ..job.clone()
    })
    .map_err(refused)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("payload");
        if let Some(cursor) = &job.cursor {
            let cursor = Value::from(STANDARD.encode(cursor));
            fields.insert("cursor_base64".to_owned(), cursor);
        }
        if let Some(result) = &job.result {
            let (field, result) = result_json(result);
            fields.insert(field.to_owned(), result);
        }
        if !job.payload.is_empty() {
            let (field, payload) = payload_json(job.content_type.as_deref(), &job.payload);
            fields.insert(field.to_owned(), payload);
        }
    }
    Ok(value)
}

/// A payload that can be read, and the field that it is shown in.
pub(super) fn payload_json(content_type: Option<&str>, payload: &Bytes) -> (&'static str, Value) {
    let json = content_type == Some(ganger_client::CONTENT_TYPE_JSON);
    let parsed = json.then(|| serde_json::from_slice(payload).ok()).flatten();
    match (parsed, std::str::from_utf8(payload)) {
        (Some(value), _) => ("payload", value),
        (None, Ok(text)) => ("payload", Value::from(text)),
        (None, Err(_binary)) => ("payload_base64", Value::from(STANDARD.encode(payload))),
    }
}

/// A job with everything that is known of it.
pub(super) fn job_text(job: &JobView) -> String {
    let mut rows = vec![
        ("id", job.id.to_string()),
        ("state", job.state.to_string()),
        ("queue", job.queue.to_string()),
        ("kind", job.kind.to_string()),
        ("priority", job.priority.to_string()),
        ("pushed at", time(job.pushed_at)),
    ];
    if let Some(at) = job.run_at {
        rows.push(("runs at", time(at)));
    }
    if let Some(at) = job.closed_at {
        rows.push(("closed at", time(at)));
    }
    if let Some(at) = job.kept_until {
        rows.push(("kept until", time(at)));
    }
    if let Some(reason) = job.reason {
        rows.push(("reason", format!("{reason:?}").to_lowercase()));
    }
    if let Some(lease) = job.lease {
        rows.push(("lease", lease.to_string()));
    }
    if let Some(at) = job.cancel_at {
        rows.push(("cancelled", format!("its lease is revoked at {}", time(at))));
    }
    rows.extend(progress_rows(job.percent, job.note.as_deref()));
    if let Some(cursor) = &job.cursor {
        rows.push(("cursor", format!("{} bytes", cursor.len())));
    }
    rows.push(("attempts", job.attempt.to_string()));
    rows.push((
        "failures",
        format!("{} of {}", job.failures, job.max_attempts),
    ));
    for (name, count) in [("losses", job.losses), ("releases", job.releases)] {
        if count > 0 {
            rows.push((name, count.to_string()));
        }
    }
    if !job.tags.is_empty() {
        let tags = job.tags.iter().map(ToString::to_string).collect::<Vec<_>>();
        rows.push(("tags", tags.join(", ")));
    }
    if let Some(batch) = job.batch {
        rows.push(("batch", batch.to_string()));
    }
    rows.extend(job.name.iter().map(|name| ("name", name.to_string())));
    if job.waits_for > 0 {
        rows.push(("waits for", job.waits_for.to_string()));
    }
    rows.extend(job.after.iter().map(|job| ("after", job.to_string())));
    let awaited_by = job.awaited_by.iter();
    rows.extend(awaited_by.map(|job| ("awaited by", job.to_string())));
    if let Some(key) = &job.key {
        rows.push(("key", key.to_string()));
    }
    for (name, value) in &job.headers {
        rows.push(("header", format!("{name}: {value}")));
    }
    for error in &job.errors {
        let (at, kind) = (time(error.at), &error.kind);
        rows.push((
            "error",
            format!("{at} attempt {}, {kind}: {}", error.attempt, error.message),
        ));
    }
    rows.push(("payload", payload_text(&job.payload)));
    if let Some(result) = &job.result {
        rows.push(("result", payload_text(result)));
    }
    pairs(&rows)
}

/// How far a worker has come.
fn progress_rows(percent: Option<u8>, note: Option<&str>) -> Vec<(&'static str, String)> {
    let percent = percent.map(|percent| ("progress", format!("{percent} %")));
    let note = note.map(|note| ("note", note.to_owned()));
    percent.into_iter().chain(note).collect()
}

/// What came out of a job, or how it stands.
pub(super) fn outcome_text(outcome: &WaitReply) -> String {
    let mut rows = vec![("state", outcome.state.to_string())];
    if let Some(at) = outcome.closed_at {
        rows.push(("closed at", time(at)));
    }
    rows.extend(progress_rows(outcome.percent, outcome.note.as_deref()));
    if let Some(reason) = outcome.reason {
        rows.push(("reason", format!("{reason:?}").to_lowercase()));
    }
    if let Some(error) = &outcome.error {
        rows.push(("error", format!("{}: {}", error.kind, error.message)));
    }
    if let Some(result) = &outcome.result {
        rows.push(("result", payload_text(result)));
    }
    pairs(&rows)
}

/// The same as JSON.
pub(super) fn outcome_json(outcome: &WaitReply) -> Result<Value, CliError> {
    let refused = |error| CliError::failed("cannot write JSON").because(&error);
    let mut value = serde_json::to_value(WaitReply {
        result: None,
        ..outcome.clone()
    })
    .map_err(refused)?;
    if let Some(fields) = value.as_object_mut()
        && let Some(result) = &outcome.result
    {
        let (field, result) = result_json(result);
        fields.insert(field.to_owned(), result);
    }
    Ok(value)
}

/// A result that can be read, and the field that it is shown in. Nothing says what it is: what reads
/// as JSON is taken for it.
fn result_json(result: &Bytes) -> (&'static str, Value) {
    let parsed = serde_json::from_slice(result).ok();
    match (parsed, std::str::from_utf8(result)) {
        (Some(value), _) => ("result", value),
        (None, Ok(text)) => ("result", Value::from(text)),
        (None, Err(_binary)) => ("result_base64", Value::from(STANDARD.encode(result))),
    }
}

/// A payload as it is, or how long it is.
pub(super) fn payload_text(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if text.chars().any(|c| c.is_control() && !c.is_whitespace()) => {
            format!("{} bytes", payload.len())
        }
        Ok(text) => text.to_owned(),
        Err(_binary) => format!("{} bytes", payload.len()),
    }
}

/// Dead jobs, one a line.
pub(super) fn jobs_table(jobs: &[JobView]) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("KIND", Align::Left),
        ("CLOSED AT", Align::Left),
        ("REASON", Align::Left),
        ("FAILURES", Align::Right),
        ("BYTES", Align::Right),
    ]);
    for job in jobs {
        table.row([
            job.id.to_string(),
            job.kind.to_string(),
            job.closed_at.map_or_else(String::new, time),
            job.reason
                .map_or_else(String::new, |reason| format!("{reason:?}").to_lowercase()),
            job.failures.to_string(),
            job.payload_bytes.to_string(),
        ]);
    }
    table.render()
}

/// The counters that a table shows, in its order.
pub(super) fn counter_rows(counters: &Counters) -> [(&'static str, u64); 19] {
    [
        ("ready", counters.ready),
        ("scheduled", counters.scheduled),
        ("blocked", counters.blocked),
        ("leased", counters.leased),
        ("dead", counters.dead),
        ("done_kept", counters.done_kept),
        ("cancelled_kept", counters.cancelled_kept),
        ("expired_kept", counters.expired_kept),
        ("pushed", counters.pushed),
        ("done", counters.done),
        ("cancelled", counters.cancelled),
        ("expired", counters.expired),
        ("deleted", counters.deleted),
        ("granted", counters.granted),
        ("failed", counters.failed),
        ("lost", counters.lost),
        ("released", counters.released),
        ("moved in", counters.moved_in),
        ("moved out", counters.moved_out),
    ]
}

/// The end of a text from elsewhere, on one line.
pub(super) fn preview(text: &str) -> String {
    let line = printable(text).replace(['\n', '\t'], " ");
    match line.char_indices().nth(PREVIEW_CHARS) {
        None => line,
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ganger_protocol::{
        JobId,
        job::{DeadReason, JobError, JobState},
    };

    use super::*;

    pub(in crate::cli) fn dead_job() -> JobView {
        JobView {
            id: JobId::from_bytes([0; 24]),
            state: JobState::Dead,
            queue: "mail".parse().unwrap(),
            kind: "welcome".parse().unwrap(),
            payload: Bytes::from_static(b"{\"to\":1}"),
            payload_bytes: 8,
            content_type: Some("application/json".into()),
            headers: [("traceparent".to_owned(), "00-1".to_owned())].into(),
            priority: 5,
            tags: vec!["vip".parse().unwrap()],
            batch: Some(ganger_protocol::BatchId(36)),
            name: None,
            waits_for: 0,
            after: Vec::new(),
            condition: None,
            on_dead: None,
            awaited_by: Vec::new(),
            key: Some("tenant:7".parse().unwrap()),
            pushed_at: Timestamp(1_700_000_000_000),
            expires_at: None,
            unique: None,
            run_at: None,
            lease: None,
            cancel_at: None,
            closed_at: Some(Timestamp(1_700_000_060_500)),
            kept_until: Some(Timestamp(1_700_000_120_500)),
            percent: Some(40),
            note: Some("row 4".to_owned()),
            cursor: Some(Bytes::from_static(b"\x04")),
            result: None,
            reason: Some(DeadReason::Attempts),
            attempt: 3,
            failures: 2,
            losses: 1,
            releases: 0,
            max_attempts: 2,
            errors: vec![JobError {
                at: Timestamp(1_700_000_060_500),
                attempt: 3,
                kind: "smtp".to_owned(),
                message: "no route\x1b[2J".to_owned(),
                backtrace: String::new(),
            }],
        }
    }

    #[test]
    fn a_job_is_shown_with_everything_that_is_known() {
        assert_eq!(
            job_text(&dead_job()),
            "id          AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n\
             state       dead\n\
             queue       mail\n\
             kind        welcome\n\
             priority    5\n\
             pushed at   2023-11-14T22:13:20Z\n\
             closed at   2023-11-14T22:14:20.5Z\n\
             kept until  2023-11-14T22:15:20.5Z\n\
             reason      attempts\n\
             progress    40 %\n\
             note        row 4\n\
             cursor      1 bytes\n\
             attempts    3\n\
             failures    2 of 2\n\
             losses      1\n\
             tags        vip\n\
             batch       10\n\
             key         tenant:7\n\
             header      traceparent: 00-1\n\
             error       2023-11-14T22:14:20.5Z attempt 3, smtp: no route\u{fffd}[2J\n\
             payload     {\"to\":1}\n"
        );
    }

    #[test]
    fn a_payload_is_json_or_text_or_base64() {
        let shown = |content_type: Option<&str>, payload: &'static [u8]| {
            let job = JobView {
                content_type: content_type.map(Into::into),
                payload: Bytes::from_static(payload),
                ..dead_job()
            };
            let value = job_json(&job).unwrap();
            (value["payload"].clone(), value["payload_base64"].clone())
        };
        let json = Some("application/json");
        assert_eq!(shown(json, b"[1]"), (serde_json::json!([1]), Value::Null));
        assert_eq!(shown(json, b"[1"), (Value::from("[1"), Value::Null));
        assert_eq!(shown(None, b"text"), (Value::from("text"), Value::Null));
        assert_eq!(shown(None, b"\xff"), (Value::Null, Value::from("/w==")));
        assert_eq!(shown(None, b""), (Value::Null, Value::Null));
    }

    #[test]
    fn a_result_is_json_or_text_or_base64() {
        let shown = |result: &'static [u8]| {
            let outcome = WaitReply {
                state: JobState::Done,
                percent: None,
                note: None,
                closed_at: Some(Timestamp(1_700_000_060_500)),
                result: Some(Bytes::from_static(result)),
                reason: None,
                error: None,
            };
            let job = JobView {
                result: outcome.result.clone(),
                ..dead_job()
            };
            let of_job = job_json(&job).unwrap();
            let value = outcome_json(&outcome).unwrap();
            assert_eq!(value["result"], of_job["result"]);
            let text = outcome_text(&outcome);
            (
                value["result"].clone(),
                value["result_base64"].clone(),
                text,
            )
        };
        let head = "state      done\nclosed at  2023-11-14T22:14:20.5Z\n";
        let json = (serde_json::json!({ "sum": 6 }), Value::Null);
        let (value, base64, text) = shown(b"{\"sum\":6}");
        assert_eq!((value, base64), json);
        assert_eq!(text, format!("{head}result     {{\"sum\":6}}\n"));
        assert_eq!(shown(b"six").0, Value::from("six"));
        assert_eq!(shown(b"\xff").1, Value::from("/w=="));
        assert!(shown(b"\xff").2.ends_with("result     1 bytes\n"));
    }

    #[test]
    fn dead_jobs_are_one_a_line() {
        assert_eq!(
            jobs_table(&[dead_job()]),
            "ID                                KIND     CLOSED AT               REASON    FAILURES  BYTES\n\
             AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA  welcome  2023-11-14T22:14:20.5Z  attempts         2      8\n"
        );
    }

    #[test]
    fn a_preview_is_one_short_line() {
        assert_eq!(preview("a\nb"), "a b");
        assert_eq!(preview(&"x".repeat(61)), format!("{}…", "x".repeat(60)));
    }
}
