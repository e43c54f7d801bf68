//! `ganger compact`: a closed data directory, rewritten.

use super::{
    error::CliError,
    output::{Format, pairs},
    upkeep::{DataDirArgs, Progress, human_bytes},
};
use crate::upkeep::compact;

#[derive(Debug, clap::Args)]
pub(super) struct CompactArgs {
    #[command(flatten)]
    data_dir: DataDirArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run(args: &CompactArgs) -> Result<(), CliError> {
    let progress = Progress::records();
    let compacted = compact(&args.data_dir.data_dir, |records| progress.at(records))?;
    drop(progress);
    args.format.print(&compacted, |compacted| {
        pairs(&[
            ("shards", compacted.shards.to_string()),
            ("records", compacted.records.to_string()),
            ("before", human_bytes(compacted.before_bytes)),
            ("after", human_bytes(compacted.after_bytes)),
        ])
    })
}
