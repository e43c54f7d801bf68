//! `ganger doctor`: what is wrong with a closed data directory, and its repair.

use super::{
    error::{CliError, Exit},
    output::{self, Format, pairs},
    upkeep::{DataDirArgs, Progress},
};
use crate::upkeep::{Diagnosis, examine};

/// Findings that are shown as text; the others are counted. JSON has up to a thousand a shard.
const SHOWN: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// Make what is damaged anew out of what is whole; the damaged data is kept beside it
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    data_dir: DataDirArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let progress = Progress::records();
    let told = |records| progress.at(records);
    let diagnosis = examine(&args.data_dir.data_dir, args.repair, told)?;
    drop(progress);
    args.format.print(&diagnosis, text)?;
    verdict(&diagnosis)
}

fn text(diagnosis: &Diagnosis) -> String {
    let table = pairs(&[
        ("shards", diagnosis.shards.to_string()),
        ("records", diagnosis.records.to_string()),
        ("jobs", diagnosis.jobs.to_string()),
        ("digest", diagnosis.digest.clone()),
        ("damages", diagnosis.ailments_count.to_string()),
    ]);
    let mut lines = vec![table.trim_end().to_owned()];
    lines.extend(diagnosis.ailments.iter().take(SHOWN).map(|ailment| {
        let record = ailment.record.as_deref().unwrap_or("the store");
        format!("shard {}: {record}: {}", ailment.shard, ailment.what)
    }));
    let more = diagnosis.ailments_count.saturating_sub(SHOWN as u64);
    lines.extend((more > 0).then(|| format!("and {more} more")));
    for repair in &diagnosis.repairs {
        lines.push(format!(
            "shard {}: made anew with {} queues, {} jobs and {} cron entries; {} things were lost; the damaged \
             data is kept in {}",
            repair.shard,
            repair.queues,
            repair.jobs,
            repair.crons,
            repair.lost.len(),
            repair.kept_in,
        ));
        let lost = repair.lost.iter();
        lines.extend(lost.map(|lost| format!("shard {}: lost: {lost}", repair.shard)));
    }
    output::printable(&lines.join("\n"))
}

fn verdict(diagnosis: &Diagnosis) -> Result<(), CliError> {
    if diagnosis.ailments_count == 0 {
        return Ok(());
    }
    if diagnosis.repairs.is_empty() {
        return Err(CliError::new(Exit::Storage, "the store is damaged")
            .hint("restore a backup, or save what is whole by `ganger doctor --repair`"));
    }
    let lost: usize = diagnosis.repairs.iter().map(|it| it.lost.len()).sum();
    if lost > 0 {
        return Err(
            CliError::new(Exit::Partly, format!("{lost} things could not be saved"))
                .hint("a backup may still have them"),
        );
    }
    Ok(())
}
