//! `ganger jobs`: list them, show one, wait for one, cancel and change some.

use clap::Subcommand;
use ganger_client::Client;
use ganger_protocol::{
    JobId,
    job::JobState,
    limits::CANCEL_GRACE_DEFAULT,
    request::JobCancel,
    response::CancelResult,
    task::{TaskAction, TaskStart},
};

use super::{
    bulk::{self, BulkArgs},
    change,
    connect::ConnectArgs,
    error::{CliError, Exit},
    filter,
    output::{self, Format},
    view,
};
use crate::config::units::Span;

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// List jobs by queue and state, and by what else is known of them
    List(filter::JobsListArgs),
    /// Show one job
    Get(GetArgs),
    /// Wait until a job is over, and show what came out of it
    Wait(WaitArgs),
    /// Cancel jobs: at once, or when their workers have had time to answer
    Cancel(CancelArgs),
    /// Make jobs that wait ready now
    Start(change::IdsArgs),
    /// Make jobs that wait ready at another time
    Delay(change::DelayArgs),
    /// Move jobs that wait to another queue or priority
    Move(change::MoveArgs),
    /// Remove jobs that are over for good
    Delete(change::IdsArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    /// The job's id, as push printed it
    id: JobId,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    /// Its id, as push printed it
    id: JobId,
    /// Give up after this time
    #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
    time: Span,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    /// Their ids, as push printed them; without any, all jobs that the other options mean
    ids: Vec<JobId>,
    #[command(flatten)]
    bulk: BulkArgs,
    /// How long the worker of a leased job has to answer, 0s to 24h
    #[arg(long, value_name = "DURATION", default_value_t = Span(CANCEL_GRACE_DEFAULT))]
    grace: Span,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(command: JobsCommand) -> Result<(), CliError> {
    match command {
        JobsCommand::List(args) => args.run().await,
        JobsCommand::Get(args) => get(args).await,
        JobsCommand::Wait(args) => {
            let client = args.connect.connect().await?;
            wait(&client, args.id, args.time, args.format).await
        }
        JobsCommand::Cancel(args) => cancel(args).await,
        JobsCommand::Start(args) => args.start().await,
        JobsCommand::Delay(args) => args.run().await,
        JobsCommand::Move(args) => args.run().await,
        JobsCommand::Delete(args) => args.delete().await,
    }
}

/// Waits until a job is over and prints what came out of it; fails unless it is done.
pub(super) async fn wait(
    client: &Client,
    id: JobId,
    time: Span,
    format: Format,
) -> Result<(), CliError> {
    let outcome = client.wait(id, time.duration()).await?.into_inner();
    match format.json {
        true => output::line(&output::json(&view::outcome_json(&outcome)?)?)?,
        false => output::line(view::outcome_text(&outcome).trim_end_matches('\n'))?,
    }
    match outcome.state {
        JobState::Done => Ok(()),
        state if state.is_terminal() => Err(CliError::failed(format!("the job is {state}"))),
        state => Err(CliError::new(
            Exit::TimedOut,
            format!("the job is still {state}"),
        )),
    }
}

/// Cancels jobs and says what became of each; fails when one of them was refused.
async fn cancel(args: CancelArgs) -> Result<(), CliError> {
    let is_bulk = args.bulk.is_meant(&args.ids)?;
    let client = args.connect.connect().await?;
    if is_bulk {
        let mut start = TaskStart::new(TaskAction::Cancel, args.bulk.filter());
        start.grace_ms = Some(args.grace.0);
        return bulk::change(&client, &args.bulk, start, args.format).await;
    }
    let request = JobCancel {
        grace_ms: args.grace.0,
        ..JobCancel::new(args.ids.clone())
    };
    let reply = client.cancel(request).await?;
    if args.format.json {
        output::line(&output::json(&reply)?)?;
    } else {
        for (id, result) in args.ids.iter().zip(&reply.results) {
            output::line(&format!("{id}  {}", told(result)))?;
        }
    }
    let refused = reply.results.iter().filter(|result| result.err.is_some());
    match refused.count() {
        0 => Ok(()),
        count => Err(CliError::failed(format!(
            "{count} of {} jobs could not be cancelled",
            args.ids.len()
        ))),
    }
}

fn told(result: &CancelResult) -> String {
    match (&result.err, result.cancel_at) {
        (Some(error), _) => error.message.clone(),
        (None, Some(at)) => format!("leased, revoked at {}", view::time(at)),
        (None, None) => "cancelled".to_owned(),
    }
}

async fn get(args: GetArgs) -> Result<(), CliError> {
    let job = args.connect.connect().await?.job(args.id).await?;
    if args.format.json {
        return output::line(&output::json(&view::job_json(&job)?)?);
    }
    output::line(view::job_text(&job).trim_end_matches('\n'))
}
