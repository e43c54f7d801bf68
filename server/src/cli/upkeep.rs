//! What the commands on data directories share: naming one, showing progress, and errors.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    error::{CliError, Exit},
    output,
};
use crate::{
    store::{StoreError, archive::ArchiveError},
    upkeep::UpkeepError,
};

/// Which data directory. No server may have it open.
#[derive(Debug, clap::Args)]
pub(super) struct DataDirArgs {
    /// The data directory; no server may have it open
    #[arg(long, env = "GANGER_DATA_DIR", default_value = "./ganger-data")]
    pub(super) data_dir: PathBuf,
}

/// How far something is, for whoever watches stderr.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Bytes, of about so many.
    pub(super) fn bytes(estimate: u64) -> Self {
        let shown = "{bar:32} {bytes} of about {total_bytes}, {bytes_per_sec}, {eta} left";
        Self::styled(Some(estimate), shown)
    }

    /// Bytes of nobody knows how many.
    pub(super) fn unknown_bytes() -> Self {
        Self::styled(None, "{spinner} {bytes}, {bytes_per_sec}")
    }

    /// Records of nobody knows how many.
    pub(super) fn records() -> Self {
        Self::styled(None, "{spinner} {human_pos} records, {per_sec}")
    }

    fn styled(length: Option<u64>, shown: &str) -> Self {
        if !output::watched() {
            return Self(ProgressBar::hidden());
        }
        let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        // A template of ours that is none only shows the usual bar.
        bar.set_style(
            ProgressStyle::with_template(shown)
                .unwrap_or_else(|_none| ProgressStyle::default_bar()),
        );
        Self(bar)
    }

    /// It stands here now.
    pub(super) fn at(&self, position: u64) {
        if self.0.length().is_some_and(|length| length < position) {
            self.0.set_length(position);
        }
        self.0.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl From<UpkeepError> for CliError {
    fn from(error: UpkeepError) -> Self {
        let failed = |exit| Self::new(exit, "nothing was done").because(&error);
        match &error {
            UpkeepError::DataDir { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                failed(Exit::NotFound).hint("name the directory of a server by --data-dir")
            }
            UpkeepError::DataDir { .. } => failed(Exit::Storage)
                .hint("name the directory by --data-dir, as a user who may use it"),
            UpkeepError::NoShards { .. } => {
                failed(Exit::NotFound).hint("name the directory of a server by --data-dir")
            }
            UpkeepError::NotEmpty { .. } => {
                failed(Exit::Conflict).hint("restore into a directory that is empty or not there")
            }
            UpkeepError::Archive(ArchiveError::Io { .. }) => failed(Exit::Failed),
            UpkeepError::Archive(ArchiveError::Foreign | ArchiveError::Version { .. }) => {
                failed(Exit::Usage).hint("name a file that `ganger backup` of this version wrote")
            }
            UpkeepError::Archive(
                ArchiveError::CutOff { .. }
                | ArchiveError::Changed { .. }
                | ArchiveError::TooLong { .. },
            ) => failed(Exit::Storage).hint("take another backup; this one is of no use"),
            UpkeepError::Lines { .. } => failed(Exit::Failed),
            UpkeepError::Store {
                source: StoreError::Locked { .. },
                ..
            } => failed(Exit::Conflict).hint(
                "stop the server that has it open; a running server is backed up by \
                 `ganger backup FILE`",
            ),
            UpkeepError::Store {
                source: StoreError::Format { .. },
                ..
            } => {
                failed(Exit::Usage).hint("use the ganger that wrote it, its export and our import")
            }
            UpkeepError::Store { .. } => failed(Exit::Storage)
                .hint("`ganger doctor` says what is damaged; a backup restores what was"),
        }
    }
}

/// Where a backup or an export goes: stdout, or a file that takes its name once it is whole and durable.
pub(super) struct Target {
    to: Option<(File, PathBuf, PathBuf)>,
}

impl Target {
    pub(super) fn create(file: &Path, force: bool) -> Result<Self, CliError> {
        if file == Path::new("-") {
            return Ok(Self { to: None });
        }
        let refuse = |error: &io::Error| {
            CliError::failed(format!("cannot write {}", file.display())).because(error)
        };
        if !force && file.try_exists().map_err(|error| refuse(&error))? {
            let message = format!("{} is there already", file.display());
            return Err(CliError::new(Exit::Conflict, message)
                .hint("name another file, or replace this one by --force"));
        }
        let mut partial = file.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial);
        let opened = opened.map_err(|error| refuse(&error))?;
        Ok(Self {
            to: Some((opened, partial, file.to_owned())),
        })
    }

    pub(super) fn is_stdout(&self) -> bool {
        self.to.is_none()
    }

    pub(super) fn finish(&self) -> Result<(), CliError> {
        let Some((file, partial, name)) = &self.to else {
            return Ok(());
        };
        file.sync_all()?;
        fs::rename(partial, name)?;
        let folder = name.parent().filter(|path| !path.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        Ok(())
    }

    pub(super) fn discard(&self) {
        if let Some((_, partial, _)) = &self.to {
            // It has failed already; a part of it that stays says so by its name.
            let _ = fs::remove_file(partial);
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            Some((file, ..)) => file.write(bytes),
            None => output::bytes(bytes).map(|()| bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            Some((file, ..)) => file.flush(),
            None => Ok(()),
        }
    }
}

/// Bytes as a person reads them.
pub(super) fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
