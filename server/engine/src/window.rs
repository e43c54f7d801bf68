//! The heads of one lane that are in memory, and what is known of the rest.
//!
//! Everything of the lane up to `end` is here, leased or gone; behind it there may be more in the
//! store when `is_behind` says so. A window never holds a job twice and never a job out of order.

use std::collections::VecDeque;

use ganger_protocol::{Bytes, JobId, Timestamp, ids::Tag};

use crate::{
    queue::LANE_HEADS_MAX,
    records::{Content, GroupNumber, JobRecord, PackedJob, Place},
};

/// A ready job at hand.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) place: Place,
    pub(crate) id: JobId,
    /// The group that must be durable before the job may be handed out.
    pub(crate) group: GroupNumber,
    pub(crate) job: HeadJob,
}

impl Head {
    /// The key of its job.
    pub(crate) fn key(&self) -> Option<&Tag> {
        self.job.content()?.key.as_ref()
    }

    /// Whether its job is not to be granted any more.
    pub(crate) fn is_expired(&self, wall: Timestamp) -> bool {
        let content = self.job.content();
        content.is_some_and(|content| content.expires_at.is_some_and(|at| at <= wall))
    }
}

/// The job of a head.
#[derive(Debug)]
pub(crate) enum HeadJob {
    /// Nothing has happened to it since its push.
    Packed(PackedJob),
    /// It has a record of its own.
    Record(Box<JobRecord>),
}

impl HeadJob {
    pub(crate) fn content(&self) -> Option<&std::sync::Arc<Content>> {
        match self {
            Self::Packed(job) => job.content.as_ref(),
            Self::Record(record) => record.content.as_ref(),
        }
    }

    /// Grants so far.
    pub(crate) fn grants(&self) -> u32 {
        match self {
            Self::Packed(_) => 0,
            Self::Record(record) => record.attempt,
        }
    }

    /// Where an earlier attempt stopped.
    pub(crate) fn cursor(&self) -> Option<&Bytes> {
        match self {
            Self::Packed(_) => None,
            Self::Record(record) => record.cursor(),
        }
    }

    pub(crate) fn pushed_at(&self) -> Timestamp {
        match self {
            Self::Packed(job) => job.pushed_at,
            Self::Record(record) => record.pushed_at,
        }
    }

    /// About what a head with this job takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let fixed = size_of::<Head>() + size_of::<Content>();
        let cursor = self.cursor().map_or(0, Bytes::len);
        fixed + cursor + self.content().map_or(0, |content| content.bound_bytes())
    }
}

/// The heads of one lane.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) heads: VecDeque<Head>,
    /// None of them expires before; `None`: none expires at all.
    expires_first: Option<Timestamp>,
    /// Whether the store may have entries behind `end`.
    pub(crate) is_behind: bool,
    /// Everything up to here is in `heads`, leased or gone. `None`: nothing is known.
    pub(crate) end: Option<(u64, u8)>,
}

impl Window {
    /// A lane of which nothing is known but that it may have entries.
    pub(crate) fn unknown() -> Self {
        Self {
            is_behind: true,
            ..Self::default()
        }
    }

    /// Whether it must be refilled before `wanted` heads can be taken in order.
    pub(crate) fn is_short_of(&self, wanted: usize) -> bool {
        self.is_behind && self.heads.len() < wanted
    }

    /// Heads are about to be taken in, in the place that is theirs.
    pub(crate) fn note_expiry<'a>(&mut self, heads: impl IntoIterator<Item = &'a Head>) {
        if self.heads.is_empty() {
            self.expires_first = None;
        }
        let contents = { heads.into_iter() }.filter_map(|head| head.job.content());
        for expires_at in contents.filter_map(|content| content.expires_at) {
            let first = self.expires_first.get_or_insert(expires_at);
            *first = expires_at.min(*first);
        }
    }

    /// Whether the window knows when this head of it expires.
    pub(crate) fn knows_expiry(&self, head: &Head) -> bool {
        let expires_at = head.job.content().and_then(|content| content.expires_at);
        expires_at.is_none_or(|at| self.expires_first.is_some_and(|first| first <= at))
    }

    /// How many heads could be granted now, counted up to `wanted`: some may have expired.
    pub(crate) fn live(&self, wanted: usize, wall: Timestamp) -> usize {
        if self.expires_first.is_none_or(|first| first > wall) {
            return self.heads.len().min(wanted);
        }
        let live = self.heads.iter().filter(|head| !head.is_expired(wall));
        live.take(wanted).count()
    }

    /// Whether it should be refilled before `wanted` jobs can be granted in order, so many of its
    /// heads being live. A full window is not.
    pub(crate) fn is_short_of_live(&self, wanted: usize, live: usize) -> bool {
        self.is_behind && live < wanted && self.heads.len() < LANE_HEADS_MAX
    }

    /// Lets go of the last heads when there are more than `max`.
    pub(crate) fn evict(&mut self, max: usize) -> Vec<Head> {
        let mut evicted = Vec::new();
        while self.heads.len() > max
            && let Some(last) = self.heads.pop_back()
        {
            let end = self.heads.back();
            self.is_behind = true;
            self.end = end.map(|head| (head.place.run.position, head.place.index));
            evicted.push(last);
        }
        evicted
    }

    /// Whether a head at the very front can be taken in: it would be read again otherwise.
    pub(crate) fn takes_front(&self) -> bool {
        !self.is_behind || self.end.is_some()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.heads.is_empty() && !self.is_behind
    }
}
