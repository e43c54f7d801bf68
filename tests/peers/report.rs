//! What the runs came to: medians over the undisturbed ones as tables, and every run as JSON.

use std::{collections::BTreeSet, fmt::Write as _, fs::File, path::Path};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::{
    plan::{Peer, Run, Workload},
    probe,
};

/// Columns of the first table of a workload; every other figure goes into a second one.
const COLUMNS: [(&str, &str); 9] = [
    ("jobs_per_s", "jobs/s"),
    ("ratio", "× redis"),
    ("ratio_to_plain", "× plain"),
    ("server_cpu_s_per_million", "server CPU s/M"),
    ("generator_cpu_s_per_million", "generator CPU s/M"),
    ("steal_percent", "steal %"),
    ("foreign_percent", "foreign %"),
    ("peak_mib", "peak MiB"),
    ("sync_us_before", "sync µs"),
];
/// Kept in the JSON, left out of the tables.
const HIDDEN: [&str; 5] = [
    "jobs",
    "seconds",
    "sync_us_after",
    "server_cpu_percent",
    "generator_cpu_percent",
];

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) sync_us_before: f64,
    pub(crate) sync_us_after: f64,
    pub(crate) runs: Vec<Run>,
}

impl Report {
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        Ok(serde_json::to_writer_pretty(File::create(path)?, self)?)
    }

    pub(crate) fn failed(&self) -> bool {
        self.runs.iter().any(|run| run.failure.is_some())
    }

    pub(crate) fn tables(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{}; append of 4 KiB with fdatasync {:.0} µs before, {:.0} µs after",
            self.machine, self.sync_us_before, self.sync_us_after
        );
        for workload in Workload::value_variants() {
            if self.runs.iter().any(|run| run.workload == *workload) {
                self.workload_tables(*workload, &mut out);
            }
        }
        out
    }

    fn workload_tables(&self, workload: Workload, out: &mut String) {
        let known: BTreeSet<&str> = self
            .runs
            .iter()
            .filter(|run| run.workload == workload)
            .flat_map(|run| run.figures.keys().copied())
            .collect();
        let first = COLUMNS.iter().copied().filter(|(figure, _)| match *figure {
            "ratio" => known.contains("jobs_per_s"),
            figure => known.contains(figure),
        });
        let second = known
            .iter()
            .filter(|name| !HIDDEN.contains(name) && COLUMNS.iter().all(|(own, _)| own != *name))
            .map(|name| (*name, *name));
        self.table(workload, &first.collect::<Vec<_>>(), out);
        self.table(workload, &second.collect::<Vec<_>>(), out);
        for run in self.runs.iter().filter(|run| run.workload == workload) {
            if let Some(failure) = &run.failure {
                let _ = writeln!(out, "\n{} failed: {failure}", name(&run.peer));
            }
        }
    }

    fn table(&self, workload: Workload, columns: &[(&str, &str)], out: &mut String) {
        if columns.is_empty() {
            return;
        }
        let redis = self.median(workload, Peer::Redis, "jobs_per_s");
        let titles: String = columns
            .iter()
            .map(|(_, title)| format!(" {title} |"))
            .collect();
        let rule = "---:|".repeat(columns.len());
        let _ = writeln!(
            out,
            "\n| {} |{titles} runs |\n|---|{rule}---|",
            name(&workload)
        );
        for peer in Peer::value_variants() {
            let all = self.of(workload, *peer).count();
            if all == 0 {
                continue;
            }
            let cells: String = columns
                .iter()
                .map(|(figure, _)| match *figure {
                    "ratio" => self.median(workload, *peer, "jobs_per_s") / redis,
                    figure => self.median(workload, *peer, figure),
                })
                .map(|value| format!(" {} |", rounded(value)))
                .collect();
            let counted = self.counted(workload, *peer).len();
            let _ = writeln!(out, "| {} |{cells} {counted} of {all} |", name(peer));
        }
    }

    fn of(&self, workload: Workload, peer: Peer) -> impl Iterator<Item = &Run> {
        self.runs
            .iter()
            .filter(move |run| run.workload == workload && run.peer == peer)
    }

    fn counted(&self, workload: Workload, peer: Peer) -> Vec<&Run> {
        self.of(workload, peer)
            .filter(|run| !run.disturbed && run.failure.is_none())
            .collect()
    }

    /// Not a number where no run counts.
    fn median(&self, workload: Workload, peer: Peer, figure: &str) -> f64 {
        let runs = self.counted(workload, peer);
        let values = runs
            .iter()
            .filter_map(|run| run.figures.get(figure).copied());
        probe::median(&mut values.collect::<Vec<_>>())
    }
}

/// One line about a run that has just ended.
pub(crate) fn progress(run: &Run) -> String {
    let figure = |name| run.figures.get(name).copied().unwrap_or(f64::NAN);
    let mut line = format!(
        "{} {} #{}: {} jobs/s, steal {:.1} %, foreign {:.1} %",
        name(&run.workload),
        name(&run.peer),
        run.round + 1,
        rounded(figure("jobs_per_s")),
        figure("steal_percent"),
        figure("foreign_percent"),
    );
    if run.disturbed {
        line.push_str(", disturbed");
    }
    if let Some(failure) = &run.failure {
        let _ = write!(line, ", FAILED: {failure}");
    }
    line
}

fn name<V: ValueEnum>(value: &V) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

fn rounded(value: f64) -> String {
    match value {
        _ if value.is_nan() => "–".to_owned(),
        _ if value.abs() >= 100.0 => format!("{value:.0}"),
        _ if value.abs() >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
