//! `ganger jobs`.

use clap::Subcommand;
use ganger_protocol::JobId;

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{self, Format},
    view,
};

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// Show one job
    Get(GetArgs),
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

pub(super) async fn run(command: JobsCommand) -> Result<(), CliError> {
    let JobsCommand::Get(args) = command;
    let job = args.connect.connect().await?.job(args.id).await?;
    if args.format.json {
        return output::line(&output::json(&view::job_json(&job)?)?);
    }
    output::line(view::job_text(&job).trim_end_matches('\n'))
}
