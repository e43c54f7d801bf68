//! What a worker tells the server and has not yet an answer to.

use std::{future::poll_fn, task::Poll};

use ganger_protocol::{
    DurationMs,
    request::{AckItem, ExtendItem, FailItem, LeaseRef, ReleaseItem},
};
use tokio::time::Instant;

use crate::{client::Pending, error::Error, in_flight::Answer};

/// Attempts that are over.
#[derive(Default)]
pub(super) struct Ended {
    pub(super) acks: Vec<AckItem>,
    pub(super) fails: Vec<FailItem>,
    pub(super) releases: Vec<ReleaseItem>,
}

/// A request without an answer.
pub(super) struct Outstanding {
    pub(super) asked: Asked,
    pub(super) sent_at: Instant,
    pub(super) pending: Pending,
}

/// What an answer is about.
pub(super) enum Asked {
    Fetch {
        acks: Vec<AckItem>,
        fails: Vec<FailItem>,
    },
    Ack(Vec<AckItem>),
    Fail(Vec<FailItem>),
    Release(Vec<ReleaseItem>),
    Extend(Vec<ExtendItem>),
}

impl Ended {
    pub(super) fn release(
        &mut self,
        LeaseRef { job, lease }: LeaseRef,
        delay_ms: Option<DurationMs>,
    ) {
        self.releases.push(ReleaseItem {
            job,
            lease,
            delay_ms,
        });
    }

    /// Keeps what a refused request has told, to tell it again.
    pub(super) fn take_back(&mut self, asked: Asked) {
        match asked {
            Asked::Fetch { acks, fails } => {
                self.acks.extend(acks);
                self.fails.extend(fails);
            }
            Asked::Ack(acks) => self.acks.extend(acks),
            Asked::Fail(fails) => self.fails.extend(fails),
            Asked::Release(releases) => self.releases.extend(releases),
            // It is made again when half of the time that is left has passed.
            Asked::Extend(_) => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.acks.is_empty() && self.fails.is_empty() && self.releases.is_empty()
    }
}

impl Outstanding {
    /// Of a fetch: whether it carries acks or fails, and so does not wait.
    pub(super) fn carries(&self) -> Option<bool> {
        match &self.asked {
            Asked::Fetch { acks, fails } => Some(!acks.is_empty() || !fails.is_empty()),
            Asked::Ack(_) | Asked::Fail(_) | Asked::Release(_) | Asked::Extend(_) => None,
        }
    }
}

impl Asked {
    pub(super) fn op(&self) -> &'static str {
        match self {
            Self::Fetch { .. } => "fetch",
            Self::Ack(_) => "ack",
            Self::Fail(_) => "fail",
            Self::Release(_) => "release",
            Self::Extend(_) => "extend",
        }
    }

    /// The leases that it ends.
    pub(super) fn leases(&self) -> Vec<LeaseRef> {
        match self {
            Self::Fetch { acks, fails } => {
                let acks = acks.iter().map(AckItem::lease_ref);
                acks.chain(fails.iter().map(FailItem::lease_ref)).collect()
            }
            Self::Ack(acks) => acks.iter().map(AckItem::lease_ref).collect(),
            Self::Fail(fails) => fails.iter().map(FailItem::lease_ref).collect(),
            Self::Release(releases) => releases.iter().map(ReleaseItem::lease_ref).collect(),
            Self::Extend(_) => Vec::new(),
        }
    }
}

/// What names a lease.
pub(super) trait OfLease {
    fn lease_ref(&self) -> LeaseRef;
}

impl OfLease for AckItem {
    fn lease_ref(&self) -> LeaseRef {
        let Self { job, lease, .. } = *self;
        LeaseRef { job, lease }
    }
}

impl OfLease for FailItem {
    fn lease_ref(&self) -> LeaseRef {
        let Self { job, lease, .. } = *self;
        LeaseRef { job, lease }
    }
}

impl OfLease for ReleaseItem {
    fn lease_ref(&self) -> LeaseRef {
        let Self { job, lease, .. } = *self;
        LeaseRef { job, lease }
    }
}

/// The next of these requests that is answered; never if there is none.
pub(super) async fn next_answer(
    outstanding: &mut Vec<Outstanding>,
) -> (Outstanding, Result<Answer, Error>) {
    poll_fn(|context| {
        for index in 0..outstanding.len() {
            let Some(candidate) = outstanding.get_mut(index) else {
                break;
            };
            if let Poll::Ready(answer) = candidate.pending.poll(context) {
                return Poll::Ready((outstanding.swap_remove(index), answer));
            }
        }
        Poll::Pending
    })
    .await
}
