//! `ganger backup`: a file with everything that a server has, taken while it works, or out of a
//! closed data directory.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ganger_client::Client;
use serde::Serialize;

use super::{
    block_on,
    connect::ConnectArgs,
    error::CliError,
    output::{Format, pairs},
    upkeep::{Progress, Target, human_bytes},
};
use crate::{
    clock::{Clock, Stopwatch},
    store::StoreError,
    upkeep::{BackupStream, UpkeepError, open_stores},
};

/// Bytes that are read of closed stores at once.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// The file to write; - writes to stdout
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Back up this data directory, which no server has open, instead of a running server
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Written {
    bytes: u64,
    seconds: f64,
}

pub(super) fn run(args: &BackupArgs) -> Result<(), CliError> {
    let watch = Stopwatch::start();
    let mut target = Target::create(&args.file, args.force)?;
    let bytes = match &args.data_dir {
        Some(data_dir) => of_directory(data_dir, &mut target),
        None => block_on_value(of_server(&args.connect, &mut target)),
    };
    // What is not whole is not left behind.
    let bytes = bytes.inspect_err(|_| target.discard())?;
    target.finish()?;
    if target.is_stdout() {
        return Ok(());
    }
    let written = Written {
        bytes,
        seconds: watch.elapsed().as_secs_f64(),
    };
    args.format.print(&written, |written| {
        pairs(&[
            ("backup", args.file.display().to_string()),
            ("size", human_bytes(written.bytes)),
            ("took", format!("{:.1} s", written.seconds)),
        ])
    })
}

async fn of_server(connect: &ConnectArgs, target: &mut Target) -> Result<u64, CliError> {
    let client: Client = connect.connect().await?;
    let mut progress = None;
    let mut offset = 0;
    loop {
        let reply = client.backup(offset).await?;
        let progress = progress.get_or_insert_with(|| Progress::bytes(reply.estimate_bytes));
        target.write_all(&reply.chunk)?;
        offset += reply.chunk.len() as u64;
        progress.at(offset);
        if reply.end {
            return Ok(offset);
        }
    }
}

fn of_directory(data_dir: &Path, target: &mut Target) -> Result<u64, CliError> {
    let stores: Vec<_> = open_stores(data_dir)?.into_iter().map(Arc::new).collect();
    let read = |source: StoreError| UpkeepError::Store {
        doing: "read",
        shard: 0,
        source,
    };
    let mut stream = BackupStream::begin(stores.iter().cloned(), Clock::system().now().wall);
    let progress = Progress::bytes(stream.estimate_bytes());
    loop {
        let chunk = stream.next_chunk(CHUNK_BYTES).map_err(read)?;
        target.write_all(&chunk)?;
        progress.at(stream.offset());
        if chunk.len() < CHUNK_BYTES {
            break;
        }
    }
    let bytes = stream.offset();
    drop(stream);
    for store in stores {
        store.settle().map_err(read)?;
    }
    Ok(bytes)
}

fn block_on_value<T>(command: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let mut value = None;
    block_on(async {
        value = Some(command.await?);
        Ok(())
    })?;
    value.ok_or_else(|| CliError::failed("cannot start"))
}
