//! `ganger export` and `ganger import`: a data directory as lines of JSON, and back.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use super::{
    error::CliError,
    output::{self, Format, pairs},
    upkeep::{DataDirArgs, Progress, Target},
};
use crate::upkeep::{Transferred, export, import};

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// The file to write; - writes to stdout
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    data_dir: DataDirArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// The export; - reads it from stdin
    file: PathBuf,
    #[command(flatten)]
    data_dir: DataDirArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run_export(args: &ExportArgs) -> Result<(), CliError> {
    let mut target = Target::create(&args.file, args.force)?;
    let progress = Progress::records();
    let done = {
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, &mut target);
        let told = |jobs| progress.at(jobs);
        let done = export(&args.data_dir.data_dir, &mut writer, told);
        let done = done.map_err(CliError::from);
        done.and_then(|done| Ok(writer.flush().map(|()| done)?))
    };
    drop(progress);
    // What is not whole is not left behind.
    let done = done.inspect_err(|_| target.discard())?;
    target.finish()?;
    match target.is_stdout() {
        true => Ok(()),
        false => args.format.print(&done, table),
    }
}

pub(super) fn run_import(args: &ImportArgs) -> Result<(), CliError> {
    let progress = Progress::records();
    let from = open(&args.file)?;
    let done = import(from, &args.data_dir.data_dir, |jobs| progress.at(jobs))?;
    drop(progress);
    args.format.print(&done, table)
}

fn open(file: &Path) -> Result<Box<dyn BufRead>, CliError> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let opened = File::open(file).map_err(|error| {
        CliError::usage(format!("cannot read {}", file.display())).because(&error)
    })?;
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, opened)))
}

fn table(done: &Transferred) -> String {
    output::printable(&pairs(&[
        ("shards", done.shards.to_string()),
        ("queues", done.queues.to_string()),
        ("jobs", done.jobs.to_string()),
        ("cron entries", done.crons.to_string()),
        ("limits", done.limits.to_string()),
        ("batches", done.batches.to_string()),
    ]))
}
