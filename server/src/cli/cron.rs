//! `ganger cron`: list, show, set, delete, pause, resume, run.
//!
//! Arguments become the request as they are; what an expression or a zone means, and what is allowed,
//! the server says. Times are shown in UTC.

use clap::Subcommand;
use ganger_protocol::{
    Bytes, CronName, Kind, QueueName,
    cron::{CronSet, CronView, Misfire, Overlap},
    ids::Tag,
    job::JobSpec,
    request::CronList,
};
use serde_json::{Value, value::RawValue};

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{self, Align, Format, Table, pairs},
    push::{header, set_payload},
    view,
};
use crate::config::units::Span;

#[derive(Debug, Subcommand)]
pub(super) enum CronCommand {
    /// List entries with their next times, by name
    List(ListArgs),
    /// Show an entry with its next times
    Show(ShowArgs),
    /// Make an entry, or change the one of this name
    Set(Box<SetArgs>),
    /// Delete entries; jobs that they have pushed stay
    Delete(NamesArgs),
    /// Stop entries from pushing; what passes meanwhile is not made up for
    Pause(NamesArgs),
    /// Let them push again
    Resume(NamesArgs),
    /// Push the job of an entry now; prints its id
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// How many at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Where the last page ended, as it said
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// The entry
    name: CronName,
    /// How many of its next times
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    next: u32,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetArgs {
    /// The entry
    name: CronName,
    /// The kind of its jobs
    kind: Kind,
    /// The payload of its jobs, as JSON
    payload: Option<String>,
    /// Minute, hour, day of month, month, day of week, such as '30 4 * * MON-FRI'
    #[arg(
        short,
        long,
        required_unless_present = "every",
        conflicts_with = "every"
    )]
    expression: Option<String>,
    /// The time zone of the expression, such as Europe/Berlin; default UTC
    #[arg(short = 'z', long, value_name = "ZONE", conflicts_with = "every")]
    timezone: Option<String>,
    /// Instead of an expression: at the multiples of this distance since 1970, such as 5m
    #[arg(long, value_name = "DURATION")]
    every: Option<Span>,
    /// Times missed while the server was down: skip, once (one job) or all
    #[arg(long, default_value = "once", value_parser = misfire)]
    misfire: Misfire,
    /// With --misfire all: for how many of them, the latest; default 10
    #[arg(long, value_name = "COUNT")]
    misfire_max: Option<u32>,
    /// A time at which the last job is not over: allow, skip or queue_one
    #[arg(long, default_value = "allow", value_parser = overlap)]
    overlap: Overlap,
    /// Each job runs up to so much later, always by the same time, such as 30s
    #[arg(long, value_name = "DURATION")]
    jitter: Option<Span>,
    /// Whether it pushes nothing for now; without it an entry stays as it is
    #[arg(long, value_name = "BOOL")]
    paused: Option<bool>,
    /// The queue of its jobs
    #[arg(short, long, default_value_t)]
    queue: QueueName,
    /// 0 to 9, 9 first; default 5
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Failures after which a job is dead; default 26
    #[arg(long)]
    max_attempts: Option<u32>,
    /// The longest attempt, such as 10m; default the queue's
    #[arg(long)]
    timeout: Option<Span>,
    /// A header of its jobs, name=value; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// A name to find its jobs by; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Tag>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct NamesArgs {
    /// The entries
    #[arg(required = true)]
    names: Vec<CronName>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The entry
    name: CronName,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(command: CronCommand) -> Result<(), CliError> {
    match command {
        CronCommand::List(args) => list(args).await,
        CronCommand::Show(args) => {
            let client = args.connect.connect().await?;
            print(args.format, &client.cron(args.name, args.next).await?)
        }
        CronCommand::Set(args) => {
            let (connect, format) = (args.connect.clone(), args.format);
            let entry = args.entry()?;
            print(format, &connect.connect().await?.cron_set(entry).await?)
        }
        CronCommand::Delete(args) => {
            let names = listed(&args.names);
            args.connect
                .connect()
                .await?
                .cron_delete(args.names)
                .await?;
            output::note(&format!("deleted {names}"));
            Ok(())
        }
        CronCommand::Pause(args) => {
            let names = listed(&args.names);
            args.connect.connect().await?.cron_pause(args.names).await?;
            output::note(&format!("paused {names}"));
            Ok(())
        }
        CronCommand::Resume(args) => {
            let names = listed(&args.names);
            args.connect
                .connect()
                .await?
                .cron_resume(args.names)
                .await?;
            output::note(&format!("resumed {names}"));
            Ok(())
        }
        CronCommand::Run(args) => {
            let id = args.connect.connect().await?.cron_run(args.name).await?;
            let id = serde_json::json!({ "id": id });
            let text = |id: &Value| id["id"].as_str().unwrap_or_default().to_owned();
            args.format.print(&id, text)
        }
    }
}

impl SetArgs {
    fn entry(self: Box<Self>) -> Result<CronSet, CliError> {
        let mut job = JobSpec {
            queue: self.queue,
            headers: self.headers.into_iter().collect(),
            priority: self.priority,
            max_attempts: self.max_attempts,
            timeout_ms: self.timeout.map(|timeout| timeout.0),
            tags: self.tags,
            ..JobSpec::new(self.kind, Bytes::new())
        };
        if let Some(payload) = self.payload {
            let payload: &RawValue = serde_json::from_str(&payload).map_err(|error| {
                let hint = "a text needs its own quotes: ganger cron set … '\"world\"'";
                let refused = CliError::usage("the payload is no JSON").because(&error);
                refused.hint(hint)
            })?;
            set_payload(&mut job, payload);
        }
        Ok(CronSet {
            expression: self.expression,
            every_ms: self.every.map(|every| every.0),
            timezone: self.timezone,
            misfire: self.misfire,
            misfire_max: self.misfire_max,
            overlap: self.overlap,
            jitter_ms: self.jitter.map(|jitter| jitter.0).unwrap_or_default(),
            paused: self.paused,
            ..CronSet::new(self.name, job)
        })
    }
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let list = CronList {
        cursor: args.cursor,
        limit: args.limit,
    };
    let page = args.connect.connect().await?.cron_list(list).await?;
    if args.format.json {
        let entries = page.entries.iter().map(entry_json);
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let page = serde_json::json!({ "entries": entries, "cursor": page.cursor });
        return output::line(&output::json(&page)?);
    }
    output::line(table(&page.entries).trim_end_matches('\n'))?;
    if let Some(cursor) = page.cursor {
        output::note(&format!("there are more: --cursor {cursor}"));
    }
    Ok(())
}

fn print(format: Format, entry: &CronView) -> Result<(), CliError> {
    if format.json {
        return output::line(&output::json(&entry_json(entry)?)?);
    }
    output::line(text(entry).trim_end_matches('\n'))
}

/// An entry as JSON, the payload of its job readable where it can be.
fn entry_json(entry: &CronView) -> Result<Value, CliError> {
    let job = &entry.job;
    let mut value = serde_json::to_value(entry)
        .map_err(|error| CliError::failed("cannot write JSON").because(&error))?;
    if let Some(fields) = value.get_mut("job").and_then(Value::as_object_mut) {
        fields.remove("payload");
        if !job.payload.is_empty() {
            let content_type = job.content_type.as_deref();
            let (field, payload) = view::payload_json(content_type, &job.payload);
            fields.insert(field.to_owned(), payload);
        }
    }
    Ok(value)
}

fn table(entries: &[CronView]) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("TIMES", Align::Left),
        ("QUEUE", Align::Left),
        ("KIND", Align::Left),
        ("NEXT AT", Align::Left),
        ("LAST AT", Align::Left),
        ("PUSHED", Align::Right),
        ("SKIPPED", Align::Right),
    ]);
    for entry in entries {
        let next = match entry.next_at.first() {
            Some(at) => view::time(*at),
            None if entry.paused => "paused".to_owned(),
            None => "never".to_owned(),
        };
        let last = entry.last_at.map_or_else(|| "-".to_owned(), view::time);
        table.row([
            entry.name.to_string(),
            times(entry),
            entry.job.queue.to_string(),
            entry.job.kind.to_string(),
            next,
            last,
            entry.pushed.to_string(),
            entry.skipped.to_string(),
        ]);
    }
    table.render()
}

/// An entry with everything that is known of it.
fn text(entry: &CronView) -> String {
    let mut rows = vec![
        ("name", entry.name.to_string()),
        ("times", times(entry)),
        ("queue", entry.job.queue.to_string()),
        ("kind", entry.job.kind.to_string()),
    ];
    let misfire = match entry.misfire_max {
        Some(max) => format!("{}, the latest {max}", entry.misfire.as_str()),
        None => entry.misfire.as_str().to_owned(),
    };
    rows.push(("misfire", misfire));
    rows.push(("overlap", entry.overlap.as_str().to_owned()));
    rows.push(("jitter", Span(entry.jitter_ms).to_string()));
    rows.push(("paused", entry.paused.to_string()));
    if entry.from_file {
        rows.push(("from", "the configuration of the server".to_owned()));
    }
    rows.extend(entry.next_at.iter().map(|at| ("next at", view::time(*at))));
    if let Some(at) = entry.last_at {
        rows.push(("last at", view::time(at)));
    }
    if let Some(job) = entry.last_job {
        rows.push(("last job", job.to_string()));
    }
    if let Some(at) = entry.queued_at {
        rows.push(("queued at", view::time(at)));
    }
    rows.push(("pushed", entry.pushed.to_string()));
    rows.push(("skipped", entry.skipped.to_string()));
    if let Some(reason) = &entry.refused {
        rows.push(("refused", reason.clone()));
    }
    rows.push(("payload", view::payload_text(&entry.job.payload)));
    pairs(&rows)
}

/// When an entry pushes, in one word or six.
fn times(entry: &CronView) -> String {
    match (&entry.expression, &entry.timezone, entry.every_ms) {
        (_, _, Some(every)) => format!("every {}", Span(every)),
        (Some(expression), Some(zone), None) => format!("{expression} {zone}"),
        (Some(expression), None, None) => expression.clone(),
        (None, _, None) => "never".to_owned(),
    }
}

fn listed(names: &[CronName]) -> String {
    let names: Vec<&str> = names.iter().map(CronName::as_str).collect();
    names.join(", ")
}

fn misfire(text: &str) -> Result<Misfire, String> {
    let all = [Misfire::Skip, Misfire::Once, Misfire::All];
    let found = all.into_iter().find(|misfire| misfire.as_str() == text);
    found.ok_or_else(|| "there are skip, once and all".to_owned())
}

fn overlap(text: &str) -> Result<Overlap, String> {
    let all = [Overlap::Allow, Overlap::Skip, Overlap::QueueOne];
    let found = all.into_iter().find(|overlap| overlap.as_str() == text);
    found.ok_or_else(|| "there are allow, skip and queue_one".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ganger_protocol::{DurationMs, Timestamp};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: CronCommand,
    }

    fn set(arguments: &[&str]) -> Result<CronSet, String> {
        let arguments = ["ganger", "set"].iter().chain(arguments);
        let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
        match cli.command {
            CronCommand::Set(args) => args.entry().map_err(|error| error.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    fn nightly() -> CronView {
        CronView {
            name: "nightly".parse().unwrap(),
            expression: Some("30 4 * * *".to_owned()),
            every_ms: None,
            timezone: Some("Europe/Berlin".to_owned()),
            job: JobSpec::new("report".parse().unwrap(), "[1]"),
            misfire: Misfire::All,
            misfire_max: Some(24),
            overlap: Overlap::QueueOne,
            jitter_ms: DurationMs::from_secs(30),
            paused: false,
            from_file: false,
            next_at: vec![Timestamp(1_700_000_000_000)],
            last_at: Some(Timestamp(1_699_913_600_000)),
            last_job: None,
            queued_at: None,
            pushed: 12,
            skipped: 0,
            refused: None,
        }
    }

    #[test]
    fn arguments_are_the_fields_of_an_entry() {
        let arguments = [
            "nightly",
            "report",
            "[1]",
            "-e",
            "30 4 * * *",
            "-z",
            "Europe/Berlin",
            "--misfire",
            "all",
            "--misfire-max",
            "24",
            "--overlap",
            "queue_one",
            "--jitter",
            "30s",
            "--paused",
            "true",
            "--queue",
            "reports",
            "--tag",
            "t",
            "--header",
            "a=b",
        ];
        let entry = set(&arguments).unwrap();
        assert_eq!(entry.timezone.as_deref(), Some("Europe/Berlin"));
        assert_eq!((entry.misfire, entry.misfire_max), (Misfire::All, Some(24)));
        assert_eq!(entry.overlap, Overlap::QueueOne);
        assert_eq!(entry.jitter_ms, DurationMs::from_secs(30));
        assert_eq!(entry.paused, Some(true));
        assert_eq!(entry.job.queue.as_str(), "reports");
        assert_eq!(&entry.job.payload[..], b"[1]");
        let entry = set(&["sweep", "sweep", "--every", "5m"]).unwrap();
        assert_eq!(entry.every_ms, Some(DurationMs::from_mins(5)));
        assert_eq!((entry.misfire, entry.overlap), Default::default());
    }

    #[test]
    fn an_entry_has_one_way_to_tell_its_times() {
        let neither = set(&["sweep", "sweep"]).unwrap_err();
        assert!(neither.contains("--expression"), "{neither}");
        let both = set(&["sweep", "sweep", "--every", "5m", "-e", "* * * * *"]);
        assert!(both.unwrap_err().contains("cannot be used with"));
    }

    #[test]
    fn a_word_that_is_none_is_answered_with_those_that_are() {
        let misfire = ["s", "s", "--every", "5m", "--misfire", "twice"];
        assert!(set(&misfire).unwrap_err().contains("skip, once and all"));
        let payload = ["s", "s", "world", "--every", "5m"];
        assert!(set(&payload).unwrap_err().contains("its own quotes"));
    }

    #[test]
    fn entries_are_an_aligned_table() {
        let paused = CronView {
            name: "sweep".parse().unwrap(),
            expression: None,
            timezone: None,
            every_ms: Some(DurationMs::from_mins(5)),
            next_at: Vec::new(),
            last_at: None,
            paused: true,
            ..nightly()
        };
        assert_eq!(
            table(&[nightly(), paused]),
            "NAME     TIMES                     QUEUE    KIND    NEXT AT               LAST AT               PUSHED  SKIPPED\n\
             nightly  30 4 * * * Europe/Berlin  default  report  2023-11-14T22:13:20Z  2023-11-13T22:13:20Z      12        0\n\
             sweep    every 5m                  default  report  paused                -                         12        0\n"
        );
    }

    #[test]
    fn an_entry_is_shown_with_everything_that_is_known() {
        assert_eq!(
            text(&nightly()),
            "name     nightly\n\
             times    30 4 * * * Europe/Berlin\n\
             queue    default\n\
             kind     report\n\
             misfire  all, the latest 24\n\
             overlap  queue_one\n\
             jitter   30s\n\
             paused   false\n\
             next at  2023-11-14T22:13:20Z\n\
             last at  2023-11-13T22:13:20Z\n\
             pushed   12\n\
             skipped  0\n\
             payload  [1]\n"
        );
    }

    #[test]
    fn json_shows_the_payload_as_it_was_given() {
        let mut entry = nightly();
        entry.job.content_type = Some(ganger_client::CONTENT_TYPE_JSON.into());
        let shown = entry_json(&entry).unwrap();
        assert_eq!(shown["job"]["payload"], serde_json::json!([1]));
        assert_eq!(shown["overlap"], "queue_one");
    }
}
