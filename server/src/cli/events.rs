//! `ganger events`: follow what happens, a line an event, until a signal ends it.

use ganger_client::{Followed, shutdown_on_signals};
use ganger_protocol::{
    BatchId, JobId, Kind, QueuePattern,
    event::{Event, EventFilter, EventName, Gap},
    job::DeadReason,
};
use serde_json::json;

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{self, Format},
    view,
};

#[derive(Debug, clap::Args)]
pub(super) struct EventsArgs {
    /// In these queues: names, prefixes with a final *; any when none is named
    #[arg(short, long = "queue", value_name = "QUEUES", value_delimiter = ',')]
    queues: Vec<QueuePattern>,
    /// Only these events, such as failed,dead; any when none is named
    #[arg(long = "event", value_name = "EVENTS", value_delimiter = ',', value_parser = event)]
    events: Vec<EventName>,
    /// Of jobs of these kinds
    #[arg(long = "kind", value_name = "KINDS", value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// About this job
    #[arg(long)]
    job: Option<JobId>,
    /// About this batch or its members
    #[arg(long)]
    batch: Option<BatchId>,
    /// End after so many events
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: EventsArgs) -> Result<(), CliError> {
    let stop = shutdown_on_signals()
        .map_err(|error| CliError::failed("cannot listen to signals").because(&error))?;
    let filter = EventFilter {
        events: args.events,
        queues: args.queues,
        kinds: args.kinds,
        job: args.job,
        batch: args.batch,
    };
    let client = args.connect.connect().await?;
    let mut followed = client.subscribe(filter).await?;
    let mut left = args.limit;
    while left != Some(0) {
        // Cancel-safe: an event that was not taken stays.
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = followed.next() => next?,
        };
        match next {
            Followed::Event(event) => {
                left = left.map(|left| left - 1);
                match args.format.json {
                    true => output::line(&output::json(&event)?)?,
                    false => output::line(&line_of(&event))?,
                }
            }
            Followed::Gap(gap) => match args.format.json {
                true => output::line(&output::json(&json!({ "gap": gap }))?)?,
                false => output::note(&missed(gap)),
            },
            // The client knows of more than this release does.
            _ => {}
        }
    }
    client.close().await;
    Ok(())
}

/// An event by its word.
fn event(text: &str) -> Result<EventName, String> {
    let found = EventName::ALL.into_iter().find(|it| it.as_str() == text);
    found.ok_or_else(|| {
        let words = EventName::ALL.map(EventName::as_str);
        format!("an event is one of {}", words.join(", "))
    })
}

fn because(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Attempts => "out of attempts",
        DeadReason::Worker => "given up by its worker",
        DeadReason::Poison => "poison",
    }
}

fn missed(gap: Gap) -> String {
    match gap.missed {
        Some(missed) => format!("{missed} events were missed"),
        None => "events were missed; nobody knows how many".to_owned(),
    }
}

/// When, what, where and to what; then what else is known of it.
fn line_of(event: &Event) -> String {
    let name = |name: Option<String>| name.unwrap_or_else(|| "-".to_owned());
    let queue = name(event.queue.as_ref().map(ToString::to_string));
    let kind = name(event.kind.as_ref().map(ToString::to_string));
    let about = event.job.map(|job| job.to_string());
    let about = name(about.or_else(|| event.batch.map(|batch| batch.to_string())));
    let more = [
        event.cron.as_ref().map(|cron| format!("cron {cron}")),
        event.attempt.map(|attempt| format!("attempt {attempt}")),
        event.error_kind.clone(),
        event.reason.map(|reason| because(reason).to_owned()),
        event.run_at.map(|at| format!("runs at {}", view::time(at))),
        event.removed.map(|removed| format!("{removed} jobs")),
    ];
    let more: Vec<String> = more.into_iter().flatten().collect();
    let line = format!(
        "{}  {:<15}  {queue}  {kind}  {about}  {}",
        view::time(event.at),
        event.event.as_str(),
        more.join(", "),
    );
    output::printable(line.trim_end()).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use ganger_protocol::Timestamp;

    use super::*;

    #[test]
    fn a_line_says_what_is_known() {
        let event = Event {
            queue: Some("mail".parse().unwrap()),
            job: Some(JobId::from_bytes([0; JobId::BYTES])),
            kind: Some("welcome".parse().unwrap()),
            attempt: Some(26),
            error_kind: Some("sm\x1b\ntp".to_owned()),
            reason: Some(DeadReason::Attempts),
            ..Event::new(EventName::Dead, Timestamp(1_700_000_000_000))
        };
        assert_eq!(
            line_of(&event),
            "2023-11-14T22:13:20Z  dead             mail  welcome  \
             AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA  attempt 26, sm\u{fffd} tp, out of attempts"
        );
        let event = Event {
            batch: Some(BatchId(100)),
            ..Event::new(EventName::BatchSettled, Timestamp(1_700_000_000_000))
        };
        assert_eq!(
            line_of(&event),
            "2023-11-14T22:13:20Z  batch_settled    -  -  2s"
        );
    }

    #[test]
    fn an_unknown_event_is_told_the_known_ones() {
        assert_eq!(event("dead"), Ok(EventName::Dead));
        assert!(event("died").unwrap_err().contains("pushed, scheduled,"));
    }

    #[test]
    fn a_gap_says_how_many_when_that_is_known() {
        let some = Gap { missed: Some(7) };
        assert_eq!(missed(some), "7 events were missed");
        assert!(missed(Gap { missed: None }).contains("nobody knows"));
    }
}
