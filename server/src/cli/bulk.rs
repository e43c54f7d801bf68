//! What is done to many jobs from the command line: a task of the server is started and followed;
//! `ganger tasks` shows and cancels them.

use std::time::Duration;

use clap::Subcommand;
use ganger_client::Client;
use ganger_protocol::{
    JobId,
    ids::TaskId,
    job::JobState,
    list::JobFilter,
    task::{TaskStart, TaskState, TaskView},
};

use super::{
    connect::ConnectArgs,
    error::{CliError, Exit},
    filter::{FilterArgs, state},
    output::{self, Align, Format, Table, pairs},
    view,
};

/// How often a task that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Which jobs are meant, and how careful to be.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct BulkArgs {
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    /// Of those in these states, such as ready,scheduled; any that it can be done to when none is named
    #[arg(long = "state", value_name = "STATES", value_delimiter = ',', value_parser = state)]
    pub(super) states: Vec<JobState>,
    /// Only count the jobs that are meant
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

impl BulkArgs {
    /// The filter of these flags.
    pub(super) fn filter(&self) -> JobFilter {
        self.filter.filter(self.states.clone())
    }

    /// Whether many jobs are meant by a filter, and not some by their ids.
    pub(super) fn is_meant(&self, ids: &[JobId]) -> Result<bool, CliError> {
        let filter = self.filter();
        match (ids.is_empty(), filter == JobFilter::default()) {
            (false, true) => Ok(false),
            (false, false) => Err(CliError::usage("either ids or a filter, not both")),
            (true, _) if filter.queue.is_some() => Ok(true),
            (true, _) => Err(CliError::usage("no job is named")
                .hint("name jobs by their ids, or a queue with -q; -q '*' means all queues")),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum TasksCommand {
    /// List tasks that run, and those that ended last
    List(ListArgs),
    /// Show a task
    Get(NameArgs),
    /// Ask a task to end; what it has done stays
    Cancel(NameArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct NameArgs {
    /// The task
    task: TaskId,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(command: TasksCommand) -> Result<(), CliError> {
    match command {
        TasksCommand::List(args) => {
            let tasks = args.connect.connect().await?.tasks().await?;
            args.format.print(&tasks, |tasks| table(tasks))
        }
        TasksCommand::Get(args) => {
            let task = args.connect.connect().await?.task(args.task).await?;
            args.format.print(&task, shown)
        }
        TasksCommand::Cancel(args) => {
            let task = args.connect.connect().await?.cancel_task(args.task).await?;
            args.format.print(&task, shown)
        }
    }
}

/// Does it to all jobs of a filter: counts them first and asks, unless that was waived.
pub(super) async fn change(
    client: &Client,
    bulk: &BulkArgs,
    mut start: TaskStart,
    format: Format,
) -> Result<(), CliError> {
    let verb = start.action.as_str();
    if bulk.dry_run || !bulk.yes {
        start.dry_run = true;
        let counted = follow(client, start.clone()).await?;
        if bulk.dry_run {
            return tell(&counted, format);
        }
        let question = format!("{verb} {} jobs? [y/N] ", counted.matched);
        if !output::watched() || !output::agreed(&question) {
            let message = format!("{} jobs are meant, and none was changed", counted.matched);
            return Err(CliError::usage(message).hint("repeat with --yes, or look with --dry-run"));
        }
        start.dry_run = false;
    }
    let done = follow(client, start).await?;
    tell(&done, format)?;
    match (done.state, done.refused, done.changed) {
        (TaskState::Cancelled, ..) => Err(CliError::new(Exit::Partly, "the task was cancelled")),
        (_, 0, _) => Ok(()),
        (_, refused, changed) => {
            let exit = if changed > 0 {
                Exit::Partly
            } else {
                Exit::Failed
            };
            let error = CliError::new(exit, format!("{refused} jobs were refused"));
            Err(match done.refusals.first() {
                Some(first) => error.hint(format!("such as {}: {}", first.job, first.err.message)),
                None => error,
            })
        }
    }
}

/// Starts a task and waits for its end; a person sees how far it is.
async fn follow(client: &Client, start: TaskStart) -> Result<TaskView, CliError> {
    let mut task = client.start_task(start).await?;
    let watched = output::watched();
    while task.state == TaskState::Running {
        if watched {
            output::pass_on(format!("\r{}", progress(&task)).as_bytes());
        }
        tokio::time::sleep(LOOK_EVERY).await;
        task = client.task(task.id).await?;
    }
    if watched {
        output::pass_on(format!("\r{}\n", progress(&task)).as_bytes());
    }
    Ok(task)
}

fn progress(task: &TaskView) -> String {
    let looked = format!("{} rows looked at, {} jobs", task.scanned, task.matched);
    match task.start.dry_run {
        true => looked,
        false => format!(
            "{looked}, {} changed, {} refused",
            task.changed, task.refused
        ),
    }
}

fn tell(task: &TaskView, format: Format) -> Result<(), CliError> {
    format.print(task, |task| match task.start.dry_run {
        true => format!("{} jobs are meant", task.matched),
        false => format!("{} changed, {} refused", task.changed, task.refused),
    })
}

fn table(tasks: &[TaskView]) -> String {
    let mut table = Table::new(&[
        ("TASK", Align::Left),
        ("STATE", Align::Left),
        ("ACTION", Align::Left),
        ("QUEUE", Align::Left),
        ("BY", Align::Left),
        ("STARTED AT", Align::Left),
        ("SCANNED", Align::Right),
        ("MATCHED", Align::Right),
        ("CHANGED", Align::Right),
        ("REFUSED", Align::Right),
    ]);
    for task in tasks {
        table.row([
            task.id.to_string(),
            task.state.as_str().to_owned(),
            action(task),
            task.start
                .filter
                .queue
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            task.by.clone(),
            view::time(task.started_at),
            task.scanned.to_string(),
            task.matched.to_string(),
            task.changed.to_string(),
            task.refused.to_string(),
        ]);
    }
    table.render()
}

fn action(task: &TaskView) -> String {
    let action = task.start.action.as_str();
    match task.start.dry_run {
        true => format!("{action} (dry run)"),
        false => action.to_owned(),
    }
}

fn shown(task: &TaskView) -> String {
    let filter = serde_json::to_string(&task.start.filter).unwrap_or_default();
    let mut rows = vec![
        ("task", task.id.to_string()),
        ("state", task.state.as_str().to_owned()),
        ("action", action(task)),
        ("filter", filter),
        ("started at", view::time(task.started_at)),
    ];
    if let Some(at) = task.ended_at {
        rows.push(("ended at", view::time(at)));
    }
    if !task.by.is_empty() {
        rows.push(("by", task.by.clone()));
    }
    rows.push(("progress", progress(task)));
    for refusal in &task.refusals {
        let (job, message) = (refusal.job, &refusal.err.message);
        rows.push(("refused", format!("{job}: {message}")));
    }
    pairs(&rows)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use ganger_protocol::{
        ErrorCode, Timestamp, WireError,
        request::Operation,
        response::ReplyBody,
        task::{TaskAction, TaskRefusal},
    };

    use super::*;
    use crate::cli::{
        output::sink,
        peer::{Peer, id},
    };

    fn task(start: TaskStart) -> TaskView {
        TaskView {
            id: TaskId(1_700_000_000_000),
            state: TaskState::Finished,
            start,
            by: "ops".to_owned(),
            started_at: Timestamp(1_700_000_000_000),
            ended_at: Some(Timestamp(1_700_000_001_000)),
            scanned: 20,
            matched: 3,
            changed: 2,
            refused: 1,
            refusals: vec![TaskRefusal {
                job: id(1),
                err: WireError::new(ErrorCode::Conflict, "the job is leased"),
            }],
        }
    }

    fn start() -> TaskStart {
        TaskStart::new(TaskAction::Cancel, JobFilter::of("mail".parse().unwrap()))
    }

    /// A server whose tasks take two looks to end.
    pub(in crate::cli) async fn peer() -> (Peer, Arc<Mutex<Vec<TaskStart>>>) {
        let started = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&started);
        let peer = Peer::start(move |operation| {
            let mut seen = seen.lock().unwrap();
            let running = |start: TaskStart| TaskView {
                state: TaskState::Running,
                ended_at: None,
                ..task(start)
            };
            let view = match operation {
                Operation::TaskStart(start) => {
                    seen.push(*start.clone());
                    running(*start)
                }
                Operation::TaskGet(_) => task(seen.last().unwrap().clone()),
                other => panic!("{other:?}"),
            };
            Ok(ReplyBody::Task(Box::new(view)))
        });
        (peer.await, started)
    }

    #[test]
    fn tasks_are_one_a_line_and_shown_whole() {
        assert_eq!(
            table(&[task(start())]),
            "TASK           STATE     ACTION  QUEUE  BY   STARTED AT            SCANNED  MATCHED  CHANGED  REFUSED\n\
             1700000000000  finished  cancel  mail   ops  2023-11-14T22:13:20Z       20        3        2        1\n"
        );
        assert_eq!(
            shown(&task(start())),
            format!(
                "task        1700000000000\n\
                 state       finished\n\
                 action      cancel\n\
                 filter      {{\"queue\":\"mail\"}}\n\
                 started at  2023-11-14T22:13:20Z\n\
                 ended at    2023-11-14T22:13:21Z\n\
                 by          ops\n\
                 progress    20 rows looked at, 3 jobs, 2 changed, 1 refused\n\
                 refused     {}: the job is leased\n",
                id(1)
            )
        );
    }

    #[tokio::test]
    async fn without_yes_nothing_is_changed_and_what_is_meant_is_counted() {
        let (peer, started) = peer().await;
        let client = Client::connect(peer.options()).await.unwrap();
        let bulk = BulkArgs::default();
        let error = change(&client, &bulk, start(), Format::default()).await;
        let error = error.unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert_eq!(error.message, "3 jobs are meant, and none was changed");
        assert!(started.lock().unwrap().iter().all(|start| start.dry_run));

        let bulk = BulkArgs {
            dry_run: true,
            ..BulkArgs::default()
        };
        sink::take();
        change(&client, &bulk, start(), Format::default())
            .await
            .unwrap();
        assert_eq!(sink::take().0, "3 jobs are meant\n");
        assert_eq!(started.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn with_yes_it_is_done_and_what_was_refused_is_partly_failed() {
        let (peer, started) = peer().await;
        let client = Client::connect(peer.options()).await.unwrap();
        let bulk = BulkArgs {
            yes: true,
            ..BulkArgs::default()
        };
        let error = change(&client, &bulk, start(), Format::default()).await;
        assert_eq!(error.unwrap_err().exit, Exit::Partly);
        assert_eq!(sink::take().0, "2 changed, 1 refused\n");
        let started = started.lock().unwrap();
        assert_eq!(
            started.iter().map(|it| it.dry_run).collect::<Vec<_>>(),
            [false]
        );
    }
}
