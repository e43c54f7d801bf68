//! States of a job and the table of legal transitions between them; a job's record as it changes.

use std::sync::Arc;

use ganger_protocol::{
    Bytes, DurationMs, JobId, QueueName, Timestamp,
    job::{DeadReason, JobState, JobView},
    limits::{ERRORS_KEPT, MAX_ATTEMPTS_DEFAULT},
};

use crate::{
    records::{Content, GroupNumber, JobRecord, PackedJob, Place},
    unique::is_held,
};

/// Whether a job may go from one state to another. `None` as a start is the push, `None` as an end
/// the deletion.
///
/// ```text
///            scheduled blocked ready leased done dead cancelled expired deleted
/// push           x        x      x
/// scheduled      x               x                        x         x
/// blocked        x               x                        x         x
/// ready          x                     x                  x         x
/// leased         x               x             x    x     x              x
/// done                                                                   x
/// dead                           x                                       x
/// cancelled                                                              x
/// expired                                                                x
/// ```
pub const fn is_legal(from: Option<JobState>, to: Option<JobState>) -> bool {
    use JobState::{Blocked, Cancelled, Dead, Done, Expired, Leased, Ready, Scheduled};
    match (from, to) {
        (None, Some(Scheduled | Blocked | Ready))
        | (Some(Scheduled), Some(Scheduled | Ready | Cancelled | Expired))
        | (Some(Blocked), Some(Scheduled | Ready | Cancelled | Expired))
        | (Some(Ready), Some(Scheduled | Leased | Cancelled | Expired))
        | (Some(Leased), Some(Scheduled | Ready | Done | Dead | Cancelled) | None)
        | (Some(Done | Cancelled | Expired), None)
        | (Some(Dead), Some(Ready) | None) => true,
        (None, Some(Leased | Done | Dead | Cancelled | Expired) | None)
        | (Some(Scheduled), Some(Blocked | Leased | Done | Dead) | None)
        | (Some(Blocked), Some(Blocked | Leased | Done | Dead) | None)
        | (Some(Ready), Some(Blocked | Ready | Done | Dead) | None)
        | (Some(Leased), Some(Blocked | Leased | Expired))
        | (Some(Done | Cancelled | Expired), Some(_))
        | (Some(Dead), Some(Scheduled | Blocked | Leased | Done | Dead | Cancelled | Expired)) => {
            false
        }
    }
}

impl JobRecord {
    /// The record of a job to which nothing has happened since its push.
    pub fn fresh(id: JobId, place: Place, packed: PackedJob) -> Self {
        let lane = place.run.lane;
        Self {
            id,
            group: GroupNumber(0),
            state: JobState::Ready,
            queue: lane.queue,
            priority: lane.priority,
            lane: lane.lane,
            pushed_at: packed.pushed_at,
            run_at: None,
            place: Some(place),
            closed_at: None,
            reason: None,
            attempt: 0,
            failures: 0,
            losses: 0,
            losses_in_row: 0,
            releases: 0,
            settled_lease: ganger_protocol::LeaseId(0),
            error_parts: Vec::new(),
            error_first: 0,
            spilled_parts: packed.spilled_parts,
            batch: packed.content.as_ref().and_then(|content| content.batch),
            is_node: packed
                .content
                .as_ref()
                .is_some_and(|content| content.node.is_some()),
            content: packed.content,
            cancel_at: None,
            waits_for: 0,
            holds_unique: false,
            holds_key: false,
            progress: None,
            result_parts: 0,
        }
    }

    /// The record of a job that waits for its time in the scheduled run in which it was born.
    pub fn scheduled(id: JobId, place: Place, at: Timestamp, packed: PackedJob) -> Self {
        Self {
            state: JobState::Scheduled,
            lane: 0,
            run_at: Some(at),
            ..Self::fresh(id, place, packed)
        }
    }

    /// Makes room for one more error; its slot, and the parts of the one that was there.
    pub(crate) fn next_error_slot(&mut self, parts: u16) -> (u8, u16) {
        let kept = u8::try_from(self.error_parts.len()).unwrap_or_default();
        let slot = (self.error_first + kept) % 10;
        let mut earlier = 0;
        if self.error_parts.len() >= ERRORS_KEPT {
            earlier = self.error_parts.remove(0);
            self.error_first = (self.error_first + 1) % 10;
        }
        self.error_parts.push(parts);
        (slot, earlier)
    }

    /// The slots of its errors, the oldest first.
    pub fn error_slots(&self) -> impl Iterator<Item = (u8, u16)> {
        let slots = (0_u8..10).map(|nth| (self.error_first + nth) % 10);
        slots.zip(self.error_parts.iter().copied())
    }

    /// What was pushed, when it was read.
    pub(crate) fn max_attempts(&self) -> u32 {
        let named = self
            .content
            .as_ref()
            .and_then(|content| content.max_attempts);
        named.unwrap_or(MAX_ATTEMPTS_DEFAULT)
    }

    /// Where its next attempt goes on, as far as that was read.
    pub fn cursor(&self) -> Option<&Bytes> {
        self.progress.as_ref()?.cursor.as_ref()
    }

    /// Parts of the blob that holds the cursor.
    pub fn cursor_parts(&self) -> u16 {
        self.progress.as_ref().map_or(0, |it| it.cursor_parts)
    }

    /// Turns the record into that of a job that is over, kept until then.
    pub(crate) fn close(&mut self, state: JobState, at: Timestamp, until: Timestamp) {
        self.state = state;
        self.closed_at = Some(at);
        self.run_at = Some(until);
        self.place = None;
        self.cancel_at = None;
        self.waits_for = 0;
        self.holds_key = false;
    }

    /// The record as a person sees it, without payload, cursor, result and errors. The state is that of the
    /// record: whether the job is leased just now only the engine knows.
    pub fn view(&self, queue: QueueName) -> Option<JobView> {
        let content: &Arc<Content> = self.content.as_ref()?;
        let node = content.node.as_deref();
        let waits = node.filter(|_| self.state == JobState::Blocked);
        Some(JobView {
            id: self.id,
            state: self.state,
            queue,
            kind: content.kind.clone(),
            payload: Bytes::new(),
            payload_bytes: content.payload.len() as u64,
            content_type: content.content_type.clone(),
            headers: content.headers.clone(),
            priority: self.priority,
            tags: content.tags.clone(),
            pushed_at: self.pushed_at,
            run_at: self.run_at.filter(|_| !self.state.is_terminal()),
            expires_at: content.expires_at,
            unique: content.unique.clone(),
            batch: content.batch,
            name: node.and_then(|node| node.name.clone()),
            waits_for: self.waits_for,
            after: Vec::new(),
            condition: waits.map(|node| node.condition),
            on_dead: waits.map(|node| node.on_dead),
            awaited_by: Vec::new(),
            key: content.key.clone(),
            lease: None,
            cancel_at: self.cancel_at,
            closed_at: self.closed_at,
            kept_until: self.run_at.filter(|_| self.state.is_terminal()),
            reason: self.reason,
            percent: self.progress.as_ref().and_then(|it| it.percent),
            note: self.progress.as_ref().and_then(|it| it.note.clone()),
            cursor: None,
            result: None,
            attempt: self.attempt,
            failures: self.failures,
            losses: self.losses,
            releases: self.releases,
            max_attempts: self.max_attempts(),
            errors: Vec::new(),
        })
    }

    /// Turns the record into that of a dead job, kept so long.
    pub(crate) fn close_as_dead(
        &mut self,
        reason: DeadReason,
        at: Timestamp,
        retention: DurationMs,
    ) {
        self.state = JobState::Dead;
        self.reason = Some(reason);
        self.closed_at = Some(at);
        self.run_at = Some(at.plus(retention));
        self.place = None;
        let until = self
            .content
            .as_ref()
            .and_then(|content| content.unique.as_deref())
            .map(|unique| unique.until);
        self.holds_unique = until.is_some_and(|until| is_held(until, self.state, self.attempt));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_state_is_left_only_by_revival_or_deletion() {
        for to in JobState::ALL {
            for from in [JobState::Done, JobState::Cancelled, JobState::Expired] {
                assert!(!is_legal(Some(from), Some(to)), "{from} to {to}");
            }
            assert_eq!(
                is_legal(Some(JobState::Dead), Some(to)),
                to == JobState::Ready
            );
        }
    }

    #[test]
    fn only_a_leased_job_can_be_done_or_dead() {
        for from in JobState::ALL {
            let is_leased = from == JobState::Leased;
            assert_eq!(
                is_legal(Some(from), Some(JobState::Done)),
                is_leased,
                "{from}"
            );
            assert_eq!(
                is_legal(Some(from), Some(JobState::Dead)),
                is_leased,
                "{from}"
            );
        }
    }

    #[test]
    fn the_last_ten_errors_are_kept_in_a_ring() {
        let lane = crate::records::Lane {
            queue: crate::records::QueueNumber(1),
            priority: 5,
            lane: 0,
        };
        let place = Place {
            run: crate::records::RunKey { lane, position: 1 },
            index: 0,
        };
        let packed = PackedJob {
            pushed_at: Timestamp(0),
            spilled_parts: 0,
            content: None,
        };
        let mut record = JobRecord::fresh(place.job_id(0), place, packed);
        let slots = (0..12).map(|parts| record.next_error_slot(parts).0);
        let slots: Vec<u8> = slots.collect();
        assert_eq!(slots, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
        let kept: Vec<_> = record.error_slots().collect();
        assert_eq!(kept.first(), Some(&(2, 2)));
        assert_eq!(kept.last(), Some(&(1, 11)));
        assert_eq!(kept.len(), 10);
    }
}
