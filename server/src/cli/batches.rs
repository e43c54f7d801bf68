//! `ganger batches`: list, show, open, commit.
//!
//! A callback is a kind, or a job as a line of `push --spec` is one. What is allowed, the server
//! says. Times are shown in UTC.

use std::collections::BTreeMap;

use clap::Subcommand;
use ganger_protocol::{
    BatchId, JobId, Kind, QueueName,
    batch::{BatchEvent, BatchOpen, BatchView},
    job::JobSpec,
    request::BatchList,
    response::GraphReply,
    workflow::NodeView,
};
use serde::Serialize;

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{self, Align, Format, Table, pairs},
    push, view,
};

#[derive(Debug, Subcommand)]
pub(super) enum BatchesCommand {
    /// List batches that are not settled, in the order in which they were opened
    List(ListArgs),
    /// Show a batch: its members as counted, its callbacks, and the graph of those that wait
    Show(ShowArgs),
    /// Open a batch; prints its id, to push jobs with --batch
    Open(Box<OpenArgs>),
    /// Close a batch: its callbacks come when its jobs are over
    Commit(NameArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Those of the last seven days that are settled, instead
    #[arg(long)]
    settled: bool,
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
pub(super) struct NameArgs {
    /// The batch
    batch: BatchId,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// The batch
    batch: BatchId,
    /// How many jobs of its graph at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Where the last page of its graph ended, as it said
    #[arg(long)]
    cursor: Option<JobId>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct OpenArgs {
    /// What it is, for a person
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// Push this job when every member was tried once: a kind, or {"kind": …, "queue": …, …}
    #[arg(long, value_name = "JOB")]
    on_complete: Option<String>,
    /// Push this job when every member is done
    #[arg(long, value_name = "JOB")]
    on_success: Option<String>,
    /// Push this job when every member is over, whatever became of it
    #[arg(long, value_name = "JOB")]
    on_settled: Option<String>,
    /// The queue of callbacks that name none
    #[arg(short, long, default_value_t)]
    queue: QueueName,
    /// The batch that it is a member of
    #[arg(long, value_name = "BATCH")]
    parent: Option<BatchId>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(command: BatchesCommand) -> Result<(), CliError> {
    match command {
        BatchesCommand::List(args) => list(args).await,
        BatchesCommand::Show(args) => show(args).await,
        BatchesCommand::Open(args) => {
            let open = args.open()?;
            let client = args.connect.connect().await?;
            let batch = client.batch_with(open).await?;
            let id = serde_json::json!({ "id": batch.id() });
            args.format.print(&id, |_json| batch.id().to_string())
        }
        BatchesCommand::Commit(args) => {
            let client = args.connect.connect().await?;
            let batch = client.batch_of(args.batch).commit().await?;
            args.format.print(&batch, text)
        }
    }
}

impl OpenArgs {
    fn open(&self) -> Result<BatchOpen, CliError> {
        let callback = |event: BatchEvent, job: &Option<String>| match job {
            None => Ok(None),
            Some(job) => match self.callback(job) {
                Ok(job) => Ok(Some(Box::new(job))),
                Err(error) => {
                    let flag = event.field().replace('_', "-");
                    Err(error.hint(format!(
                        "--{flag} takes a kind, or a job: '{{\"kind\":\"report\"}}'"
                    )))
                }
            },
        };
        Ok(BatchOpen {
            description: self.description.clone(),
            on_complete: callback(BatchEvent::Complete, &self.on_complete)?,
            on_success: callback(BatchEvent::Success, &self.on_success)?,
            on_settled: callback(BatchEvent::Settled, &self.on_settled)?,
            parent: self.parent,
            by: None,
        })
    }

    fn callback(&self, text: &str) -> Result<JobSpec, CliError> {
        let of_kind = |kind: Kind| JobSpec {
            queue: self.queue.clone(),
            ..JobSpec::new(kind, Vec::new())
        };
        if text.starts_with('{') {
            let unnamed = "unnamed".parse().map(of_kind);
            let defaults = unnamed.map_err(|error| CliError::failed("no job").because(&error))?;
            return push::spec(text, &defaults, false);
        }
        let kind = text.parse().map(of_kind);
        kind.map_err(|error| CliError::usage(format!("{text:?} is no kind of job")).because(&error))
    }
}

/// A batch with its graph: of a graph that is more than a page the jobs of this one.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    batch: BatchView,
    #[serde(flatten)]
    graph: GraphReply,
}

async fn show(args: ShowArgs) -> Result<(), CliError> {
    let client = args.connect.connect().await?;
    let batch = client.batch_of(args.batch);
    let shown = Shown {
        batch: batch.show().await?,
        graph: batch.graph(args.cursor, args.limit).await?,
    };
    if args.format.json {
        return output::line(&output::json(&shown)?);
    }
    output::line(text(&shown.batch).trim_end_matches('\n'))?;
    if !shown.graph.nodes.is_empty() {
        output::line("")?;
        output::line(graph(&shown.graph.nodes).trim_end_matches('\n'))?;
    }
    if let Some(cursor) = shown.graph.cursor {
        output::note(&format!("there are more: --cursor {cursor}"));
    }
    Ok(())
}

/// Jobs with those that they were to wait for, by their names where they have some.
fn graph(nodes: &[NodeView]) -> String {
    let mut table = Table::new(&[
        ("JOB", Align::Left),
        ("NAME", Align::Left),
        ("KIND", Align::Left),
        ("STATE", Align::Left),
        ("AFTER", Align::Left),
    ]);
    let named = |node: &NodeView| Some((node.job, node.name.as_ref()?.to_string()));
    let names: BTreeMap<JobId, String> = nodes.iter().filter_map(named).collect();
    for node in nodes {
        let after = node.after.iter();
        let after = after.map(|job| names.get(job).cloned().unwrap_or_else(|| job.to_string()));
        table.row([
            node.job.to_string(),
            node.name
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            node.kind.to_string(),
            node.state.to_string(),
            after.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.render()
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let list = BatchList {
        settled: args.settled,
        cursor: args.cursor,
        limit: args.limit,
    };
    let page = args.connect.connect().await?.batch_list(list).await?;
    if args.format.json {
        return output::line(&output::json(&page)?);
    }
    output::line(table(&page.batches).trim_end_matches('\n'))?;
    if let Some(cursor) = page.cursor {
        output::note(&format!("there are more: --cursor {cursor}"));
    }
    Ok(())
}

fn table(batches: &[BatchView]) -> String {
    let mut table = Table::new(&[
        ("BATCH", Align::Left),
        ("STATE", Align::Left),
        ("OPENED AT", Align::Left),
        ("TOTAL", Align::Right),
        ("PENDING", Align::Right),
        ("DONE", Align::Right),
        ("DEAD", Align::Right),
        ("OTHER", Align::Right),
        ("DESCRIPTION", Align::Left),
    ]);
    for batch in batches {
        let counters = &batch.counters;
        let other = counters.cancelled + counters.expired + counters.deleted;
        table.row([
            batch.id.to_string(),
            batch.state.as_str().to_owned(),
            view::time(batch.opened_at),
            counters.total.to_string(),
            counters.pending.to_string(),
            counters.done.to_string(),
            counters.dead.to_string(),
            other.to_string(),
            batch.description.clone(),
        ]);
    }
    table.render()
}

/// A batch with everything that is known of it.
fn text(batch: &BatchView) -> String {
    let mut rows = vec![
        ("batch", batch.id.to_string()),
        ("state", batch.state.as_str().to_owned()),
    ];
    if !batch.description.is_empty() {
        rows.push(("description", batch.description.clone()));
    }
    if let Some(parent) = batch.parent {
        rows.push(("parent", parent.to_string()));
    }
    let counters = &batch.counters;
    rows.extend(
        [
            ("total", counters.total),
            ("untried", counters.untried),
            ("pending", counters.pending),
            ("done", counters.done),
            ("dead", counters.dead),
            ("cancelled", counters.cancelled),
            ("expired", counters.expired),
            ("deleted", counters.deleted),
        ]
        .map(|(name, count)| (name, count.to_string())),
    );
    for event in BatchEvent::ALL {
        let Some(callback) = batch.callback(event) else {
            continue;
        };
        let job = callback
            .job
            .map_or_else(|| "to come".to_owned(), |job| job.to_string());
        let callback = format!("{} in {}: {job}", callback.kind, callback.queue);
        rows.push((event.field(), callback));
    }
    rows.push(("opened at", view::time(batch.opened_at)));
    let how = if batch.lapsed { " by the server" } else { "" };
    for (name, at, how) in [
        ("committed at", batch.committed_at, how),
        ("completed at", batch.completed_at, ""),
        ("settled at", batch.settled_at, ""),
    ] {
        rows.extend(at.map(|at| (name, format!("{}{how}", view::time(at)))));
    }
    output::printable(&pairs(&rows))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use ganger_protocol::{Timestamp, batch::BatchCounters};

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Opening {
        #[command(flatten)]
        args: OpenArgs,
    }

    fn arguments(arguments: &[&str]) -> OpenArgs {
        let all = std::iter::once("open").chain(arguments.iter().copied());
        Opening::try_parse_from(all).unwrap().args
    }

    #[test]
    fn a_callback_is_a_kind_or_a_job() {
        let open = arguments(&[
            "--queue",
            "reports",
            "--on-success",
            "report",
            "--on-settled",
            "{\"kind\":\"sweep\",\"priority\":9}",
        ])
        .open()
        .unwrap();
        let success = open.on_success.unwrap();
        assert_eq!(
            (success.kind.as_str(), success.queue.as_str()),
            ("report", "reports")
        );
        let settled = open.on_settled.unwrap();
        assert_eq!(
            (settled.kind.as_str(), settled.queue.as_str()),
            ("sweep", "reports")
        );
        assert_eq!(settled.priority, Some(9));
        assert_eq!(open.on_complete, None);
    }

    #[test]
    fn what_is_neither_is_refused_with_the_flag() {
        for callback in ["no kind", "{\"priority\":1}", "{"] {
            let error = arguments(&["--on-complete", callback]).open().unwrap_err();
            assert!(
                error.hint.unwrap().starts_with("--on-complete"),
                "{callback}"
            );
        }
    }

    #[test]
    fn a_graph_tells_for_whom_each_job_waits_by_their_names() {
        let node = |byte, name: Option<&str>, after: &[u8]| NodeView {
            job: JobId::from_bytes([byte; 24]),
            name: name.map(|name| name.parse().unwrap()),
            queue: "q".parse().unwrap(),
            kind: "k".parse().unwrap(),
            state: ganger_protocol::workflow::NodeState::Blocked,
            after: after
                .iter()
                .map(|byte| JobId::from_bytes([*byte; 24]))
                .collect(),
        };
        let table = graph(&[node(0, Some("first"), &[]), node(4, None, &[0, 255])]);
        let last = table.lines().nth(2).unwrap();
        assert!(last.contains("blocked  first, ____"), "{table}");
    }

    #[test]
    fn a_batch_is_shown_with_all_that_is_known() {
        let batch = BatchView {
            id: BatchId(36),
            state: ganger_protocol::batch::BatchState::Committed,
            description: "tonight".to_owned(),
            parent: None,
            counters: BatchCounters {
                total: 3,
                untried: 1,
                pending: 2,
                expired: 1,
                ..BatchCounters::default()
            },
            on_complete: None,
            on_success: None,
            on_settled: None,
            opened_at: Timestamp(0),
            committed_at: Some(Timestamp(0)),
            lapsed: true,
            completed_at: None,
            settled_at: None,
        };
        let text = text(&batch);
        assert!(
            text.contains("committed at  1970-01-01T00:00:00Z by the server"),
            "{text}"
        );
        let table = table(&[batch]);
        assert!(
            table
                .lines()
                .nth(1)
                .unwrap()
                .starts_with("10     committed"),
            "{table}"
        );
    }
}
