//! What became of each job of a demo: the judge of whether anything was lost, came twice, or
//! changed. It believes answers of the server only; it asks nobody and counts no time itself.

use std::{collections::HashSet, ops::Range};

use ganger_protocol::job::JobState;

use super::super::load::Head;

/// The payload of a job.
const PAYLOAD_BYTES: usize = 100;

/// Jobs in one push at most.
const PUSH_MAX: u64 = 1_000;

/// How much is pushed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Jobs a second.
    pub(super) rate: u32,
    /// Jobs altogether; none: without end.
    pub(super) jobs: Option<u64>,
    /// Nothing is pushed after so many seconds; none: without end.
    pub(super) seconds: Option<u64>,
}

/// The jobs of a demo, by number.
#[derive(Debug)]
pub(super) struct Ledger {
    plan: Plan,
    /// The next number to push.
    next: u64,
    /// Whether nothing more is pushed.
    closed: bool,
    /// Pushed, and neither done nor dead.
    open: HashSet<u64>,
    dead: HashSet<u64>,
    totals: Totals,
    /// From push to ack in µs, of jobs that did not fail, since the last look.
    samples: Vec<u64>,
}

/// What has been counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Acked, and the server said so.
    pub(super) done: u64,
    /// Attempts of jobs that had failed before.
    pub(super) retries: u64,
    /// Dead at this moment.
    pub(super) dead: u64,
    /// Grants of jobs that were done, were never pushed, or have another payload.
    pub(super) wrong: u64,
}

impl Ledger {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan,
            next: 0,
            closed: false,
            open: HashSet::new(),
            dead: HashSet::new(),
            totals: Totals::default(),
            samples: Vec::new(),
        }
    }

    /// The numbers to push now, so that the rate is kept; at the end none, for good.
    pub(super) fn reserve(&mut self, now_us: u64) -> Range<u64> {
        let seconds = self.plan.seconds.unwrap_or(u64::MAX);
        let jobs = self.plan.jobs.unwrap_or(u64::MAX);
        self.closed |= now_us / 1_000_000 >= seconds || self.next >= jobs;
        if self.closed {
            return self.next..self.next;
        }
        let due = u128::from(now_us) * u128::from(self.plan.rate) / 1_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX).min(jobs);
        let first = self.next;
        self.next = due.clamp(first, first + PUSH_MAX);
        self.open.extend(first..self.next);
        first..self.next
    }

    /// Notes a grant, and says which job it is; none when it is not what was pushed.
    pub(super) fn granted(&mut self, payload: &[u8], failures: u32) -> Option<Head> {
        let head = Head::of(payload).filter(|head| payload == pushed(*head));
        // A dead job that came back was revived by whoever watches.
        let known = head.filter(|head| {
            self.dead.remove(&head.number) && self.open.insert(head.number)
                || self.open.contains(&head.number)
        });
        match known {
            Some(_) => self.totals.retries += u64::from(failures > 0),
            None => self.totals.wrong += 1,
        }
        known
    }

    /// Notes that the server has taken an ack.
    pub(super) fn acked(&mut self, head: Head, failures: u32, now_us: u64) {
        let known = self.open.remove(&head.number) || self.dead.remove(&head.number);
        self.totals.done += u64::from(known);
        if failures == 0 {
            self.samples.push(now_us.saturating_sub(head.pushed_us));
        }
    }

    /// Notes that the server has taken a failure, and what it made of the job.
    pub(super) fn failed(&mut self, head: Head, state: Option<JobState>) {
        if state == Some(JobState::Dead) && self.open.remove(&head.number) {
            self.dead.insert(head.number);
        }
    }

    /// Whether nothing more is pushed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether every job is done or dead, and none follows.
    pub(super) fn is_over(&self) -> bool {
        self.closed && self.open.is_empty()
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            dead: self.dead.len() as u64,
            ..self.totals
        }
    }

    /// From push to ack in µs, of jobs that did not fail, since the last call.
    pub(super) fn take_samples(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.samples)
    }

    /// What there is to say at the end, when the server has so many jobs that wait or are leased.
    pub(super) fn verdict(&self, live: u64) -> Verdict {
        let open = self.open.len() as u64;
        Verdict {
            pushed: self.next,
            totals: self.totals(),
            waiting: open.min(live),
            lost: open.saturating_sub(live),
        }
    }
}

/// The payload that was pushed under a head.
pub(super) fn pushed(head: Head) -> Vec<u8> {
    head.payload(PAYLOAD_BYTES)
}

/// How a demo ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) pushed: u64,
    pub(super) totals: Totals,
    /// Neither done nor dead when it ended, and still with the server.
    pub(super) waiting: u64,
    /// Neither done nor dead, and the server has them no more.
    pub(super) lost: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Plan = Plan {
        rate: 1_000,
        jobs: None,
        seconds: None,
    };

    /// A ledger that has pushed job 0, and its head.
    fn with_one_job() -> (Ledger, Head) {
        let mut ledger = Ledger::new(EVERYTHING);
        assert_eq!(ledger.reserve(1_000), 0..1);
        let head = Head {
            number: 0,
            pushed_us: 1_000,
        };
        (ledger, head)
    }

    #[test]
    fn the_rate_is_kept_and_what_was_missed_is_made_up_for_in_pieces() {
        let mut ledger = Ledger::new(EVERYTHING);
        assert_eq!(ledger.reserve(500), 0..0);
        assert_eq!(ledger.reserve(10_000), 0..10);
        assert_eq!(ledger.reserve(10_000), 10..10);
        assert_eq!(ledger.reserve(2_000_000), 10..1_010);
        assert_eq!(ledger.reserve(2_000_000), 1_010..2_000);
        assert!(!ledger.is_closed());
    }

    #[test]
    fn it_ends_with_its_jobs_or_its_seconds() {
        let mut by_jobs = Ledger::new(Plan {
            jobs: Some(5),
            ..EVERYTHING
        });
        assert_eq!(by_jobs.reserve(1_000_000), 0..5);
        assert!(!by_jobs.is_closed());
        assert_eq!(by_jobs.reserve(2_000_000), 5..5);
        assert!(by_jobs.is_closed());
        let mut by_time = Ledger::new(Plan {
            seconds: Some(2),
            ..EVERYTHING
        });
        assert_eq!(by_time.reserve(1_999_999), 0..1_000);
        assert_eq!(by_time.reserve(2_000_000), 1_000..1_000);
        assert!(by_time.is_closed());
        assert!(!by_time.is_over(), "its jobs are not over");
    }

    #[test]
    fn a_job_is_over_when_it_is_done_or_dead() {
        let (mut ledger, head) = with_one_job();
        assert_eq!(ledger.granted(&pushed(head), 0), Some(head));
        ledger.failed(head, Some(JobState::Scheduled));
        assert_eq!(ledger.verdict(1).waiting, 1);
        assert_eq!(ledger.granted(&pushed(head), 1), Some(head));
        ledger.failed(head, Some(JobState::Dead));
        let totals = ledger.totals();
        assert_eq!((totals.done, totals.retries, totals.dead), (0, 1, 1));
        // Revived.
        assert_eq!(ledger.granted(&pushed(head), 0), Some(head));
        ledger.acked(head, 0, 1_750);
        let totals = ledger.totals();
        assert_eq!((totals.done, totals.dead, totals.wrong), (1, 0, 0));
        assert_eq!(ledger.take_samples(), [750]);
        assert!(ledger.take_samples().is_empty());
    }

    #[test]
    fn a_job_that_the_server_has_no_more_is_lost() {
        let (ledger, _head) = with_one_job();
        assert_eq!((ledger.verdict(1).waiting, ledger.verdict(1).lost), (1, 0));
        assert_eq!((ledger.verdict(0).waiting, ledger.verdict(0).lost), (0, 1));
    }

    #[test]
    fn a_grant_after_the_ack_or_of_something_else_is_wrong() {
        let (mut ledger, head) = with_one_job();
        ledger.acked(head, 0, 2_000);
        assert_eq!(ledger.granted(&pushed(head), 0), None);
        assert_eq!(ledger.totals().wrong, 1);
        let (mut ledger, head) = with_one_job();
        let mut payload = pushed(head);
        payload[50] ^= 1;
        assert_eq!(ledger.granted(&payload, 0), None);
        assert_eq!(ledger.granted(b"short", 0), None);
        let never = Head { number: 9, ..head };
        assert_eq!(ledger.granted(&pushed(never), 0), None);
        assert_eq!(ledger.totals().wrong, 3);
    }
}
