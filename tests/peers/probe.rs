//! What the machine did meanwhile, read from /proc: CPU of the server and of this process, time
//! stolen by the hypervisor, memory; and a probe of what one small sync costs. It judges nothing;
//! `plan.rs` decides which runs count.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::Instant;

/// Unit of the CPU times in /proc: fixed at 1/100 s for every Linux port.
const TICKS_PER_SECOND: f64 = 100.0;
const SYNC_COUNT: usize = 64;
const SYNC_BYTES: usize = 4096;

/// Readings at one instant.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    server: f64,
    generator: f64,
    host: Host,
}

impl Sample {
    pub(crate) fn take(server_pid: u32) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            // The server's children too: Redis rewrites its log in one.
            server: process_ticks(&server_pid.to_string(), 4)?,
            generator: process_ticks("self", 2)?,
            host: Host::read()?,
        })
    }
}

/// What happened between two samples.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Span {
    pub(crate) seconds: f64,
    pub(crate) server_cpu_seconds: f64,
    pub(crate) generator_cpu_seconds: f64,
    /// Share of all CPU time that the hypervisor gave to others.
    pub(crate) steal_percent: f64,
    /// Share of all CPU time that went to neither server nor generator, the kernel's own included.
    pub(crate) foreign_percent: f64,
}

impl Span {
    pub(crate) fn between(before: &Sample, after: &Sample) -> Self {
        let total = (after.host.total - before.host.total).max(1.0);
        let (server, generator) = (
            after.server - before.server,
            after.generator - before.generator,
        );
        let foreign = after.host.busy - before.host.busy - server - generator;
        Self {
            seconds: (after.at - before.at).as_secs_f64(),
            server_cpu_seconds: server / TICKS_PER_SECOND,
            generator_cpu_seconds: generator / TICKS_PER_SECOND,
            steal_percent: 100.0 * (after.host.steal - before.host.steal) / total,
            foreign_percent: (100.0 * foreign / total).max(0.0),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Host {
    busy: f64,
    steal: f64,
    total: f64,
}

impl Host {
    fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        let fields: Vec<f64> = line
            .split_whitespace()
            .skip(1)
            .flat_map(str::parse)
            .collect();
        // user nice system idle iowait irq softirq steal, then guests that user already counts.
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
            anyhow::bail!("/proc/stat has {} fields", fields.len());
        };
        let busy = user + nice + system + irq + softirq;
        Ok(Self {
            busy,
            steal,
            total: busy + idle + iowait + steal,
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident_bytes: u64,
    pub(crate) peak_bytes: u64,
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    Ok(Memory {
        resident_bytes: 1024 * kib("VmRSS:").context("no VmRSS in /proc")?,
        peak_bytes: 1024 * kib("VmHWM:").context("no VmHWM in /proc")?,
    })
}

/// Median time of an append of 4 KiB and its fdatasync, in microseconds.
pub(crate) fn sync_us(dir: &Path) -> Result<f64> {
    let path = dir.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(SYNC_COUNT);
    for _ in 0..SYNC_COUNT {
        let begun = Instant::now();
        file.write_all(&[7; SYNC_BYTES])?;
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(&path)?;
    Ok(median(&mut times))
}

/// Bytes that the files below a directory occupy.
pub(crate) fn disk_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            disk_bytes(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(bytes)
}

/// Cores, processor and kernel, in one line.
pub(crate) fn machine() -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{cores} cores, {model}, Linux {}", kernel.trim()))
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values {
        [] => f64::NAN,
        _ if values.len() % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The first `fields` of: user and system time of a process, then of the children it waited for.
fn process_ticks(pid: &str, fields: usize) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the server is gone")?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("malformed /proc/PID/stat")?;
    Ok(rest
        .split_whitespace()
        .skip(11)
        .take(fields)
        .flat_map(str::parse::<f64>)
        .sum())
}
