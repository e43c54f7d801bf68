//! Records for the tests: some fixed, some drawn at random.

use std::sync::Arc;

use ganger_engine::records::{
    Content, Entry, GroupNumber, HeadRecord, Lane, PackedJob, Place, QueueNumber, Run, RunKey,
};
use ganger_protocol::{JobId, JobSpec, Timestamp};

pub(super) fn lane() -> Lane {
    Lane {
        queue: QueueNumber(1),
        priority: 5,
        lane: 0,
    }
}

pub(super) fn run_key(position: u64) -> RunKey {
    RunKey {
        lane: lane(),
        position,
    }
}

pub(super) fn place(position: u64, index: u8) -> Place {
    Place {
        run: run_key(position),
        index,
    }
}

pub(super) fn job_id(position: u64, index: u8) -> JobId {
    place(position, index).job_id(0)
}

pub(super) fn content(payload: Vec<u8>) -> Arc<Content> {
    Arc::new(JobSpec::new("mail".parse().unwrap(), payload).into())
}

pub(super) fn packed(payload: Vec<u8>) -> PackedJob {
    let content = content(payload);
    PackedJob {
        pushed_at: Timestamp(1_700_000_000_000),
        spilled_parts: content.spilled_parts(),
        content: Some(content),
    }
}

pub(super) fn run_of(seed: u8, entries: u8) -> Run {
    let entries = (0..entries).map(|index| Entry::Job(packed(vec![seed, index])));
    Run {
        entries: entries.collect(),
    }
}

pub(super) fn head(seed: u64) -> HeadRecord {
    HeadRecord {
        wall: Timestamp(seed),
        position_high: (1 << 63) + seed,
        position_low: (1 << 63) - seed,
        reserved: seed,
        next_queue: 2,
    }
}

pub(super) fn head_of_group(number: GroupNumber) -> HeadRecord {
    head(number.0)
}
