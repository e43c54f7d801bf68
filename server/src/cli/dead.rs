//! `ganger dead`: list, revive, purge.

use clap::Subcommand;
use ganger_client::Client;
use ganger_protocol::{
    JobId, QueueName,
    request::{DeadList, DeadSelect},
    response::CountReply,
};
use serde::Serialize;

use super::{
    connect::ConnectArgs,
    error::{CliError, Exit},
    output::{self, Format},
    view,
};

/// Jobs of one request; a whole queue takes as many requests as it needs.
const SLICE: u32 = 1_000;

#[derive(Debug, Subcommand)]
pub(super) enum DeadCommand {
    /// List the dead jobs of a queue, oldest first
    List(ListArgs),
    /// Make dead jobs ready again; their failures are forgotten
    Revive(SelectArgs),
    /// Remove dead jobs for good
    Purge(PurgeArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// The queue
    #[arg(short, long, default_value_t)]
    queue: QueueName,
    /// Newest first
    #[arg(long)]
    newest_first: bool,
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
pub(super) struct SelectArgs {
    /// The jobs
    #[arg(required_unless_present = "queue", conflicts_with = "queue")]
    ids: Vec<JobId>,
    /// All of this queue
    #[arg(short, long)]
    queue: Option<QueueName>,
    /// Of the queue: so many at most, the oldest
    #[arg(long, requires = "queue")]
    limit: Option<u64>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct PurgeArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Purge a whole queue without being asked again
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Revive,
    Purge,
}

/// What became of a selection.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Changed {
    count: u64,
    not_found: Vec<JobId>,
    /// Not revived: another job holds their unique key, or their `expires_at` has passed.
    conflicts: Vec<JobId>,
}

pub(super) async fn run(command: DeadCommand) -> Result<(), CliError> {
    match command {
        DeadCommand::List(args) => list(args).await,
        DeadCommand::Revive(args) => change(args, Action::Revive).await,
        DeadCommand::Purge(args) => {
            if args.select.queue.is_some() && !args.yes {
                return Err(
                    CliError::usage("purging the dead jobs of a queue cannot be undone")
                        .hint("look with `ganger dead list`, then repeat with --yes"),
                );
            }
            change(args.select, Action::Purge).await
        }
    }
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let client = args.connect.connect().await?;
    let page = client
        .dead_list(DeadList {
            queue: args.queue,
            newest_first: args.newest_first,
            cursor: args.cursor,
            limit: args.limit,
        })
        .await?;
    if args.format.json {
        let jobs = page
            .jobs
            .iter()
            .map(view::job_json)
            .collect::<Result<Vec<_>, _>>()?;
        let page = serde_json::json!({ "jobs": jobs, "cursor": page.cursor });
        return output::line(&output::json(&page)?);
    }
    output::line(view::jobs_table(&page.jobs).trim_end_matches('\n'))?;
    if let Some(cursor) = page.cursor {
        output::note(&format!("there are more: --cursor {cursor}"));
    }
    Ok(())
}

async fn change(args: SelectArgs, action: Action) -> Result<(), CliError> {
    let client = args.connect.connect().await?;
    let changed = match args.queue {
        Some(queue) => change_queue(&client, action, &queue, args.limit).await?,
        None => change_jobs(&client, action, &args.ids).await?,
    };
    let word = match action {
        Action::Revive => "revived",
        Action::Purge => "purged",
    };
    args.format
        .print(&changed, |changed| format!("{word} {}", changed.count))?;
    verdict(&changed)
}

async fn change_queue(
    client: &Client,
    action: Action,
    queue: &QueueName,
    limit: Option<u64>,
) -> Result<Changed, CliError> {
    let mut changed = Changed::default();
    loop {
        let left = limit.unwrap_or(u64::MAX).saturating_sub(changed.count);
        if left == 0 {
            return Ok(changed);
        }
        let limit = u32::try_from(left).map_or(SLICE, |left| left.min(SLICE));
        let reply = ask(
            client,
            action,
            DeadSelect {
                queue: Some(queue.clone()),
                limit: Some(limit),
                ..DeadSelect::default()
            },
        )
        .await?;
        changed.count += reply.count;
        changed.conflicts = reply.conflicts;
        if !reply.more || reply.count == 0 {
            return Ok(changed);
        }
    }
}

async fn change_jobs(client: &Client, action: Action, ids: &[JobId]) -> Result<Changed, CliError> {
    let mut changed = Changed::default();
    for ids in ids.chunks(SLICE as usize) {
        let select = DeadSelect {
            jobs: ids.to_vec(),
            ..DeadSelect::default()
        };
        let reply = ask(client, action, select).await?;
        changed.count += reply.count;
        changed.not_found.extend(reply.not_found);
        changed.conflicts.extend(reply.conflicts);
    }
    Ok(changed)
}

async fn ask(client: &Client, action: Action, select: DeadSelect) -> Result<CountReply, CliError> {
    Ok(match action {
        Action::Revive => client.dead_revive(select).await?,
        Action::Purge => client.dead_purge(select).await?,
    })
}

fn verdict(changed: &Changed) -> Result<(), CliError> {
    let listed = |ids: &[JobId]| {
        ids.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (not_found, conflicts) = (&changed.not_found, &changed.conflicts);
    let exit = match (not_found.is_empty(), conflicts.is_empty()) {
        (true, true) => return Ok(()),
        _ if changed.count > 0 => Exit::Partly,
        (false, true) => Exit::NotFound,
        (_, false) => Exit::Failed,
    };
    if conflicts.is_empty() {
        return Err(CliError::new(
            exit,
            format!("not dead: {}", listed(not_found)),
        ));
    }
    let kept = format!("still dead: {}", listed(conflicts));
    let cause = "another job holds their unique key, or their expires_at has passed";
    let error = CliError {
        cause: Some(cause.to_owned()),
        ..CliError::new(exit, kept)
    }
    .hint("revive them by id once the other job is done, or push them anew");
    Err(match not_found.is_empty() {
        true => error,
        false => CliError {
            message: format!("{}; not dead: {}", error.message, listed(not_found)),
            ..error
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_missing_is_partly_failed_and_all_missing_not_found() {
        let id = JobId::from_bytes([0; 24]);
        let exit = |count, not_found| {
            let changed = Changed {
                count,
                not_found,
                conflicts: Vec::new(),
            };
            verdict(&changed).map_err(|error| error.exit)
        };
        assert_eq!(exit(2, vec![]), Ok(()));
        assert_eq!(exit(0, vec![]), Ok(()));
        assert_eq!(exit(1, vec![id]), Err(Exit::Partly));
        assert_eq!(exit(0, vec![id]), Err(Exit::NotFound));
    }
}
