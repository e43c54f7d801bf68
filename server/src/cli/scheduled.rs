//! `ganger scheduled`: jobs that wait for their time. Listing them is `filter`'s, what is done to them
//! `jobs`'.

use clap::Subcommand;
use ganger_protocol::job::JobState;

use super::{
    error::CliError,
    filter::{self, ListArgs},
};

#[derive(Debug, Subcommand)]
pub(super) enum ScheduledCommand {
    /// List jobs that wait for their time, the next first
    List(ListArgs),
}

pub(super) async fn run(command: ScheduledCommand) -> Result<(), CliError> {
    match command {
        ScheduledCommand::List(args) => filter::list(vec![JobState::Scheduled], args).await,
    }
}
