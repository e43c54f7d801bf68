//! The flags by which many jobs are meant, and the listing of them: `ganger jobs list`,
//! `ganger scheduled list`.

use ganger_client::Client;
use ganger_protocol::{
    BatchId, Kind, QueuePattern, Timestamp,
    ids::Tag,
    job::{JobState, JobView},
    limits::PAGE_MAX,
    list::{JobFilter, JobList},
};

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{self, Align, Table},
    push::rfc3339,
    view,
};

/// Which jobs are meant: those for which all of it holds.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct FilterArgs {
    /// In this queue: a name, a prefix with a final *, or * for all
    #[arg(short, long)]
    pub(super) queue: Option<QueuePattern>,
    /// Of this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// With this tag
    #[arg(long)]
    tag: Option<Tag>,
    /// With this key
    #[arg(long)]
    key: Option<Tag>,
    /// Members of this batch
    #[arg(long)]
    batch: Option<BatchId>,
    /// With this priority, 0 to 9
    #[arg(long)]
    priority: Option<u8>,
    /// Their last error is of this kind
    #[arg(long)]
    error_kind: Option<String>,
    /// The message of their last error has this in it
    #[arg(long)]
    error_text: Option<String>,
    /// From this time on, as RFC 3339: when a scheduled job runs, when one that is over ended, when
    /// any other was pushed
    #[arg(long, value_name = "TIME", value_parser = rfc3339)]
    since: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = rfc3339)]
    before: Option<Timestamp>,
}

impl FilterArgs {
    /// The filter of these flags, for jobs in these states.
    pub(super) fn filter(&self, states: Vec<JobState>) -> JobFilter {
        JobFilter {
            queue: self.queue.clone(),
            states,
            kind: self.kind.clone(),
            tag: self.tag.clone(),
            key: self.key.clone(),
            batch: self.batch,
            priority: self.priority,
            error_kind: self.error_kind.clone(),
            error_text: self.error_text.clone(),
            since: self.since,
            before: self.before,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Each state from its other end: the newest, the latest or the last first
    #[arg(long)]
    newest_first: bool,
    /// How many at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Where the last listing ended, as it said
    #[arg(long)]
    cursor: Option<String>,
    /// Print one job a line as JSON, as they come
    #[arg(long, conflicts_with = "json")]
    jsonl: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct JobsListArgs {
    /// In these states, such as ready,leased; any when none is named
    #[arg(long = "state", value_name = "STATES", value_delimiter = ',', value_parser = state)]
    states: Vec<JobState>,
    #[command(flatten)]
    list: ListArgs,
}

impl JobsListArgs {
    pub(super) async fn run(self) -> Result<(), CliError> {
        list(self.states, self.list).await
    }
}

/// A state by its word.
pub(super) fn state(text: &str) -> Result<JobState, String> {
    let states = JobState::ALL.into_iter();
    let found = states.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| {
        let words = JobState::ALL.map(JobState::as_str);
        format!("a state is one of {}", words.join(", "))
    })
}

/// Lists jobs in these states, page by page, until there are as many as are wanted.
pub(super) async fn list(states: Vec<JobState>, args: ListArgs) -> Result<(), CliError> {
    let client = args.connect.connect().await?;
    let mut request = JobList {
        newest_first: args.newest_first,
        cursor: args.cursor.clone(),
        ..JobList::of(args.filter.filter(states))
    };
    let mut jobs = Vec::new();
    let mut listed = 0;
    let mut scanned = 0;
    loop {
        let left = args.limit - listed;
        request.limit = u32::try_from(left.min(PAGE_MAX as u64)).unwrap_or(u32::MAX);
        let page = next_page(&client, &request).await?;
        listed += page.jobs.len() as u64;
        scanned += page.scanned;
        request.cursor = page.cursor;
        match args.jsonl {
            true => page.jobs.iter().try_for_each(print_line)?,
            false => jobs.extend(page.jobs),
        }
        if page.is_complete || listed >= args.limit {
            break;
        }
    }
    let cursor = request.cursor;
    if args.json {
        let jobs = jobs.iter().map(view::job_json);
        let jobs = jobs.collect::<Result<Vec<_>, _>>()?;
        let is_complete = cursor.is_none();
        let listing = serde_json::json!({
            "jobs": jobs, "scanned": scanned, "is_complete": is_complete, "cursor": cursor,
        });
        return output::line(&output::json(&listing)?);
    }
    if !args.jsonl {
        output::line(table(&jobs).trim_end_matches('\n'))?;
    }
    if let Some(cursor) = cursor {
        output::note(&format!("there may be more: --cursor {cursor}"));
    }
    Ok(())
}

async fn next_page(
    client: &Client,
    request: &JobList,
) -> Result<ganger_protocol::list::JobListReply, CliError> {
    Ok(client.jobs(request.clone()).await?)
}

fn print_line(job: &JobView) -> Result<(), CliError> {
    output::line(&output::json(&view::job_json(job)?)?)
}

/// Jobs of any state, one a line.
fn table(jobs: &[JobView]) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("STATE", Align::Left),
        ("QUEUE", Align::Left),
        ("KIND", Align::Left),
        ("PRIORITY", Align::Right),
        ("TIME", Align::Left),
        ("ATTEMPTS", Align::Right),
        ("FAILURES", Align::Right),
        ("LAST ERROR", Align::Left),
    ]);
    for job in jobs {
        let at = job.closed_at.or(job.run_at).unwrap_or(job.pushed_at);
        let error = job.errors.last();
        let error = error.map(|error| format!("{}: {}", error.kind, error.message));
        table.row([
            job.id.to_string(),
            job.state.to_string(),
            job.queue.to_string(),
            job.kind.to_string(),
            job.priority.to_string(),
            view::time(at),
            job.attempt.to_string(),
            job.failures.to_string(),
            error.map_or_else(String::new, |error| view::preview(&error)),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use clap::Parser as _;
    use ganger_protocol::{
        ErrorCode, WireError, list::JobListReply, request::Operation, response::ReplyBody,
    };

    use super::*;
    use crate::cli::{error::Exit, output::sink, peer::Peer, view::tests::dead_job};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        list: JobsListArgs,
    }

    fn line(peer: &Peer, words: &[&str]) -> JobsListArgs {
        let url = peer.url();
        let words = [&["list", "--url", &url], words].concat();
        Line::try_parse_from(words).unwrap().list
    }

    /// A server that has so many jobs, three a page at most.
    async fn peer(jobs: u64) -> (Peer, Arc<Mutex<Vec<JobList>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let peer = Peer::start(move |operation| {
            let Operation::JobList(list) = operation else {
                return Err(WireError::new(ErrorCode::UnsupportedOp, "a list"));
            };
            let begin: u64 = list.cursor.as_deref().map_or(0, |it| it.parse().unwrap());
            let end = jobs.min(begin + u64::from(list.limit).min(3));
            seen.lock().unwrap().push(*list);
            Ok(ReplyBody::JobList(JobListReply {
                jobs: (begin..end).map(|_| dead_job()).collect(),
                scanned: 10,
                is_complete: end == jobs,
                cursor: (end < jobs).then(|| end.to_string()),
            }))
        });
        (peer.await, asked)
    }

    #[test]
    fn jobs_are_one_a_line_with_their_time_and_last_error() {
        assert_eq!(
            table(&[dead_job()]),
            "ID                                STATE  QUEUE  KIND     PRIORITY  TIME                    ATTEMPTS  FAILURES  LAST ERROR\n\
             AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA  dead   mail   welcome         5  2023-11-14T22:14:20.5Z         3         2  smtp: no route\u{fffd}[2J\n"
        );
    }

    #[tokio::test]
    async fn pages_are_read_until_there_are_as_many_as_are_wanted() {
        let (peer, asked) = peer(10).await;
        let list = line(
            &peer,
            &[
                "--state",
                "dead,ready",
                "-q",
                "mail*",
                "--limit",
                "7",
                "--json",
            ],
        );
        list.run().await.unwrap();
        let (data, _) = sink::take();
        let listing: serde_json::Value = serde_json::from_str(&data).unwrap();
        assert_eq!(listing["jobs"].as_array().unwrap().len(), 7);
        assert_eq!(listing["scanned"], 30);
        assert_eq!(listing["is_complete"], false);
        assert_eq!(listing["cursor"], "7");
        let asked = asked.lock().unwrap();
        let limits: Vec<u32> = asked.iter().map(|list| list.limit).collect();
        assert_eq!(limits, [7, 4, 1]);
        assert_eq!(asked[0].filter.states, [JobState::Dead, JobState::Ready]);
        assert_eq!(asked[0].filter.queue, Some("mail*".parse().unwrap()));
    }

    #[tokio::test]
    async fn jsonl_is_one_job_a_line_and_the_cursor_is_told_apart() {
        let (peer, _) = peer(5).await;
        line(&peer, &["--jsonl", "--limit", "4"])
            .run()
            .await
            .unwrap();
        let (data, notes) = sink::take();
        assert_eq!(data.lines().count(), 4);
        assert!(data.lines().all(|line| line.starts_with("{\"")));
        assert_eq!(notes, "there may be more: --cursor 4\n");
    }

    #[tokio::test]
    async fn a_refused_cursor_is_a_failure_that_says_so() {
        let refusal = WireError::bad_request("cursor", "the cursor is not one of this list");
        let peer = Peer::start(move |_| Err(refusal.clone())).await;
        let error = line(&peer, &["--cursor", "x"]).run().await.unwrap_err();
        assert_eq!(error.exit, Exit::Failed);
    }

    #[test]
    fn a_state_that_is_none_is_refused_with_those_that_are() {
        let error = Line::try_parse_from(["list", "--state", "failed"]).unwrap_err();
        assert!(
            error.to_string().contains("scheduled, blocked, ready"),
            "{error}"
        );
    }
}
