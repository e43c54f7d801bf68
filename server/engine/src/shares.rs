//! Whose turn it is among the queues of a weighted fetch.
//!
//! For each job, every queue that has one earns its weight, and the richest pays for all. So shares
//! follow weights, whatever the length of a request, and nobody starves.

use std::collections::BTreeMap;

use crate::records::{Lane, QueueNumber};

/// The queues that a weighted fetch takes from.
#[derive(Debug)]
pub(crate) struct Shares(Vec<Share>);

/// A queue, and what it has earned.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) queue: QueueNumber,
    weight: i64,
    deficit: i64,
    /// Where its next job stands; `None`: it has none now.
    pub(crate) next: Option<Lane>,
}

impl Shares {
    /// The shares of these queues, with what was left of earlier fetches.
    pub(crate) fn begin(
        candidates: Vec<(QueueNumber, u32)>,
        deficits: &BTreeMap<QueueNumber, i64>,
    ) -> Self {
        let share = |(queue, weight)| Share {
            queue,
            weight: i64::from(weight),
            deficit: deficits.get(&queue).copied().unwrap_or_default(),
            next: None,
        };
        Self(candidates.into_iter().map(share).collect())
    }

    /// The next job of the queue whose turn it is.
    pub(crate) fn next_turn(&mut self) -> Option<Lane> {
        let mut total = 0;
        let mut richest: Option<&mut Share> = None;
        for share in self.0.iter_mut().filter(|share| share.next.is_some()) {
            share.deficit += share.weight;
            total += share.weight;
            if richest.as_ref().is_none_or(|it| share.deficit > it.deficit) {
                richest = Some(share);
            }
        }
        let richest = richest?;
        richest.deficit -= total;
        richest.next
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Share> {
        self.0.iter_mut()
    }

    /// Keeps what is left for later fetches of the same queues, and of those only.
    pub(crate) fn end(self, deficits: &mut BTreeMap<QueueNumber, i64>) {
        let left = self.0.into_iter().map(|share| (share.queue, share.deficit));
        *deficits = left.filter(|(_, deficit)| *deficit != 0).collect();
    }
}
