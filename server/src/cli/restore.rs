//! `ganger restore`: a data directory out of a backup.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use ganger_protocol::Timestamp;

use super::{
    error::CliError,
    output::{Format, pairs},
    upkeep::{DataDirArgs, Progress, human_bytes},
    view,
};
use crate::upkeep::{Restored, restore, verify};

#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// The backup; - reads it from stdin
    file: PathBuf,
    /// Only read it to its end, and say whether it is whole
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    data_dir: DataDirArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run(args: &RestoreArgs) -> Result<(), CliError> {
    let (from, progress) = open(&args.file)?;
    let told = |bytes| progress.at(bytes);
    let restored = match args.dry_run {
        true => verify(from, told)?,
        false => restore(from, &args.data_dir.data_dir, told)?,
    };
    drop(progress);
    args.format
        .print(&restored, |restored| table(args, restored))
}

fn open(file: &Path) -> Result<(Box<dyn Read>, Progress), CliError> {
    if file == Path::new("-") {
        return Ok((Box::new(io::stdin().lock()), Progress::unknown_bytes()));
    }
    let failed = |error: io::Error| {
        CliError::usage(format!("cannot read {}", file.display())).because(&error)
    };
    let opened = File::open(file).map_err(failed)?;
    let length = opened.metadata().map_err(failed)?.len();
    Ok((
        Box::new(BufReader::with_capacity(1 << 20, opened)),
        Progress::bytes(length),
    ))
}

fn table(args: &RestoreArgs, restored: &Restored) -> String {
    let into = match args.dry_run {
        true => "nothing: the backup is whole".to_owned(),
        false => args.data_dir.data_dir.display().to_string(),
    };
    pairs(&[
        ("restored", into),
        ("shards", restored.shards.to_string()),
        ("records", restored.records.to_string()),
        ("groups", restored.groups.to_string()),
        ("size", human_bytes(restored.bytes)),
        ("made at", view::time(Timestamp(restored.made_at))),
    ])
}
