//! Every rule that memory can show, checked after each step of the simulator.

use std::collections::BTreeMap;

use foldhash::HashMap;
use ganger_protocol::{JobId, batch::BatchEvent, cron::Overlap};

use crate::{
    Engine, batch, cron,
    lease::{Lease, LeaseKey},
    queue::Queue,
    records::{QueueNumber, RunKey},
    window::{Head, HeadJob, Window},
};

/// Every lease with its job. Gathered once: the checks take most of the simulator's time.
type Leases<'a> = [(&'a JobId, &'a Lease)];

impl Engine {
    /// Checks that the parts of the engine agree with each other.
    ///
    /// # Errors
    /// A sentence for the first rule that does not hold.
    pub fn check_invariants(&self) -> Result<(), String> {
        let leases: Vec<_> = self.leases.iter().collect();
        self.check_counters(&leases)?;
        let heads = self.check_windows()?;
        self.check_leases(&leases)?;
        self.check_keys(&leases)?;
        self.check_runs(&heads, &leases)?;
        self.check_waiters()?;
        self.check_limits_of_queues()?;
        self.check_limits_of_keys()?;
        self.check_crons()?;
        self.check_batches(&leases)?;
        self.check_workflows()
    }

    /// I14, as far as memory shows it: counters add up, callbacks that are due are pushed and no
    /// others, and no batch is settled and still here, or left without its deadline.
    fn check_batches(&self, leases: &Leases<'_>) -> Result<(), String> {
        for record in self.batches.iter() {
            let (id, counters) = (record.id, &record.counters);
            if counters.total != counters.pending + counters.settled()
                || counters.untried > counters.pending
            {
                return Err(format!("I14: batch {id} does not add up: {counters:?}"));
            }
            if record.has_come_to(BatchEvent::Settled) || record.settled_at.is_some() {
                return Err(format!("I14: batch {id} is settled and among the others"));
            }
            for event in BatchEvent::ALL {
                let has_come = record.has_come_to(event);
                let pushed = record
                    .callback(event)
                    .map(|callback| callback.pushed.is_some());
                let is_early = event == BatchEvent::Complete && !has_come;
                if pushed == Some(false) && has_come || pushed == Some(true) && is_early {
                    return Err(format!("I14: {} of batch {id} is wrong", event.field()));
                }
            }
            let timer = record.deadline().map(|at| batch::timer(id, at));
            if timer.is_some_and(|timer| self.schedule.misses(&timer)) {
                return Err(format!("batch {id} has no timer"));
            }
            let parent = record.parent;
            if parent.is_some_and(|parent| self.batches.find(parent).is_none()) {
                return Err(format!("I14: batch {id} goes on and its parent does not"));
            }
        }
        let mut of_leases = leases.iter().filter_map(|(_, lease)| lease.batch);
        match of_leases.find(|batch| self.batches.find(*batch).is_none()) {
            Some(batch) => Err(format!("I14: a job of batch {batch} runs, and it is over")),
            None => Ok(()),
        }
    }

    /// I15, as far as memory shows it: a time that may push is behind every time that has, has its
    /// timer, and none comes of an entry that is paused.
    fn check_crons(&self) -> Result<(), String> {
        for record in self.crons.records() {
            let name = &record.name;
            if record
                .next_at
                .is_some_and(|next| Some(next) <= record.last_at)
            {
                return Err(format!("I15: {name} goes back from {:?}", record.last_at));
            }
            if record.queued_at > record.last_at {
                return Err(format!("I15: {name} has queued what has not come"));
            }
            if record.paused && (record.next_at.is_some() || record.queued_at.is_some()) {
                return Err(format!("{name} is paused and goes on"));
            }
            if record.queued_at.is_some() && record.overlap != Overlap::QueueOne {
                return Err(format!("{name} queues against its will"));
            }
            let timer = record.next_at.map(|at| cron::timer(record.number, at));
            if timer.is_some_and(|timer| self.schedule.misses(&timer)) {
                return Err(format!("{name} has no timer"));
            }
        }
        match self.crons.is_consistent() {
            true => Ok(()),
            false => Err("cron entries are misnamed or wait for the wrong jobs".to_owned()),
        }
    }

    /// I12: what was pushed is somewhere. And as many leases as the counters say.
    fn check_counters(&self, leases: &Leases<'_>) -> Result<(), String> {
        let mut leased: BTreeMap<QueueNumber, u64> = BTreeMap::new();
        for (_, lease) in leases {
            *leased.entry(lease.queue).or_default() += 1;
        }
        for queue in self.queues.iter() {
            let counters = &queue.record.counters;
            let over = counters.done + counters.cancelled + counters.expired + counters.deleted;
            let live = counters.scheduled + counters.blocked + counters.ready + counters.leased;
            let name = &queue.record.name;
            let come = counters.pushed + counters.moved_in;
            if come != over + live + counters.dead + counters.moved_out {
                return Err(format!("I12: queue {name} does not add up: {counters:?}"));
            }
            let known = leased
                .get(&queue.record.number)
                .copied()
                .unwrap_or_default();
            if counters.leased != known {
                return Err(format!(
                    "queue {name}: {known} leases, counted {}",
                    counters.leased
                ));
            }
        }
        Ok(())
    }

    /// I13 and I16: heads are in order, ready, at most as many as are counted; none is missing from
    /// a queue whose lanes are all in memory. Answers with how many each run has.
    fn check_windows(&self) -> Result<HashMap<RunKey, u8>, String> {
        let mut heads_of_runs = Vec::new();
        let (mut heads, mut bytes) = (0, 0);
        for queue in self.queues.iter() {
            let name = &queue.record.name;
            let (mut known, mut is_whole) = (0_u64, queue.knows_lanes());
            for (priority, window) in queue.all_windows() {
                is_whole &= !window.is_behind;
                known += window.heads.len() as u64;
                heads += window.heads.len();
                bytes += self
                    .check_window(window, &mut heads_of_runs)
                    .map_err(|error| format!("queue {name}, priority {priority}: {error}"))?;
            }
            let ready = queue.record.counters.ready;
            if known > ready || is_whole && known != ready {
                return Err(format!("I13: queue {name}: {known} heads, {ready} ready"));
            }
        }
        if (heads, bytes) != self.queues.heads() {
            return Err(format!(
                "{heads} heads of {bytes}, counted {:?}",
                self.queues.heads()
            ));
        }
        Ok(heads_of_runs.into_iter().collect())
    }

    /// Checks the heads of one window, counts them by run, and answers with their bytes. A run's heads
    /// stand together in its one window.
    fn check_window(
        &self,
        window: &Window,
        heads_of_runs: &mut Vec<(RunKey, u8)>,
    ) -> Result<usize, String> {
        let mut bytes = 0;
        let mut last: Option<&Head> = None;
        let mut run = None;
        for head in &window.heads {
            if last.is_some_and(|last| last.place > head.place) {
                return Err(format!("I16: {:?} is out of order", head.id));
            }
            if last.is_none_or(|last| last.place.run != head.place.run) {
                run = self.runs.get(&head.place.run);
                heads_of_runs.push((head.place.run, 0));
            }
            if let Some((_, count)) = heads_of_runs.last_mut() {
                *count += 1;
            }
            let has_left = run.is_none_or(|run| run.left.contains(head.place.index));
            if has_left || self.leases.find(&head.id).is_some() {
                return Err(format!("I7: {:?} is leased or gone", head.id));
            }
            if !may_run(head) {
                return Err(format!("I9: {:?} has failed too often", head.id));
            }
            if !window.knows_expiry(head) {
                return Err(format!(
                    "{:?} expires, and its window knows nothing of it",
                    head.id
                ));
            }
            bytes += head.job.bytes();
            last = Some(head);
        }
        Ok(bytes)
    }

    /// I6 and I7: every lease belongs to a session that knows it, and the reverse.
    fn check_leases(&self, leases: &Leases<'_>) -> Result<(), String> {
        let mut parts = BTreeMap::new();
        for (job, lease) in leases {
            let session = self.sessions.find(lease.session);
            if session.is_none_or(|session| session.leases.get(lease.number) != Some(*job)) {
                return Err(format!(
                    "I7: lease {} of {job:?} has no session",
                    lease.number
                ));
            }
            if lease.number.0 >= self.next_number {
                return Err(format!("I6: lease {} was never granted", lease.number));
            }
            match lease.part {
                Some(part) => *parts.entry(part).or_insert(0) += 1,
                None if self.group.grants.get(lease.number).is_some() => {}
                None => return Err(format!("lease {} is written nowhere", lease.number)),
            }
        }
        if parts != self.lease_parts {
            return Err("the records of leases are miscounted".to_owned());
        }
        let of_sessions: usize = self
            .sessions
            .iter()
            .map(|(_, session)| session.leases.len())
            .sum();
        match of_sessions == self.leases.count() {
            true => Ok(()),
            false => Err(format!(
                "I7: sessions hold {of_sessions} of {}",
                self.leases.count()
            )),
        }
    }

    /// I11: no two leases hold one key, and no job that is gone has taken one.
    fn check_keys(&self, leases: &Leases<'_>) -> Result<(), String> {
        let mut held = BTreeMap::new();
        for (job, lease) in leases {
            if let LeaseKey::Held(key) = lease.key
                && let Some(other) = held.insert(key, job)
            {
                return Err(format!("I11: {job:?} and {other:?} hold one key"));
            }
        }
        for lock in self.group.locks().filter(|lock| lock.ends_at.is_none()) {
            if matches!(self.group.jobs.get(&lock.job), Some(None)) {
                return Err(format!("I11: {:?} is gone and holds a key", lock.job));
            }
        }
        Ok(())
    }

    /// Runs know how many of their entries are in windows and leased, and which records of acks
    /// speak of them.
    fn check_runs(&self, heads: &HashMap<RunKey, u8>, leases: &Leases<'_>) -> Result<(), String> {
        let mut leased = HashMap::default();
        for place in leases.iter().filter_map(|(_, lease)| lease.place) {
            *leased.entry(place.run).or_insert(0_u8) += 1;
        }
        let mut parts = BTreeMap::new();
        let mut watched = 0;
        for (key, run) in &self.runs {
            let known = |counts: &HashMap<_, u8>| counts.get(key).copied().unwrap_or_default();
            if run.heads != known(heads) || run.leased != known(&leased) {
                return Err(format!(
                    "{key:?}: {run:?} does not fit its heads and leases"
                ));
            }
            if run.heads == 0 && run.leased == 0 && run.left.count() == 0 {
                return Err(format!("{key:?} is kept for nothing"));
            }
            if run
                .watched
                .is_some_and(|at| !self.stragglers.contains(&(at, *key)))
            {
                return Err(format!("{key:?} is not watched"));
            }
            watched += usize::from(run.watched.is_some());
            for part in &run.acks {
                *parts.entry(*part).or_insert(0) += 1;
            }
        }
        if watched != self.stragglers.len() {
            return Err("runs that are gone are watched".to_owned());
        }
        match parts == self.acks && heads.keys().all(|run| self.runs.contains_key(run)) {
            true => Ok(()),
            false => Err("the records of acks are miscounted".to_owned()),
        }
    }

    /// Whether a queue stands at its limit, and something looks at it again when it does no more: the
    /// end of a lease, or a time.
    fn is_woken_by_its_limit(&self, queue: &Queue) -> bool {
        let Some(limit) = &queue.limit else {
            return false;
        };
        let running = queue.record.counters.leased;
        let is_full = limit
            .max_running
            .is_some_and(|max| running >= u64::from(max));
        let number = queue.record.number;
        is_full || self.queues_at_rate.iter().any(|(_, it)| *it == number)
    }

    /// A fetch waits only where nothing is ready, and stands where its session knows of it.
    fn check_waiters(&self) -> Result<(), String> {
        for (ticket, waiter) in self.waiters.iter() {
            let session = self.sessions.find(waiter.session);
            if !session.is_some_and(|session| session.waiters.contains(&ticket)) {
                return Err(format!("{ticket:?} waits without a session"));
            }
        }
        for queue in self.queues.iter().filter(|queue| !queue.waiters.is_empty()) {
            let has_heads = queue.has_turns() && !self.is_woken_by_its_limit(queue);
            let is_awaited = self.unserved.contains(&queue.record.number);
            if has_heads && !queue.record.paused && !is_awaited {
                return Err(format!(
                    "{} has jobs and waiting fetches",
                    queue.record.name
                ));
            }
            if let Some(ticket) = queue
                .waiters
                .iter()
                .find(|it| self.waiters.find(**it).is_none())
            {
                return Err(format!(
                    "{ticket:?} stands in {} and is gone",
                    queue.record.name
                ));
            }
        }
        let timers = self.schedule.count();
        match timers <= 1 << 20 {
            true => Ok(()),
            false => Err(format!("{timers} timers in memory")),
        }
    }

    /// Checks that an engine without jobs and sessions holds nothing that speaks of them.
    #[cfg(test)]
    pub(crate) fn check_drained(&self) -> Result<(), String> {
        let held = [
            ("runs", self.runs.len()),
            ("acks", self.acks.len()),
            ("lease parts", self.lease_parts.len()),
            ("leases", self.leases.count()),
            ("heads", self.queues.heads().0),
            ("bytes of heads", self.queues.heads().1),
            ("waiters", self.waiters.count()),
            ("waits", self.waits.count()),
            ("stragglers", self.stragglers.len()),
            ("overfull queues", self.overfull.len()),
            ("sessions", self.sessions.count()),
        ];
        match held.iter().find(|(_, count)| *count > 0) {
            Some((what, count)) => Err(format!("{count} {what} are left")),
            None => Ok(()),
        }
    }
}

/// I9: whether a ready job has an attempt left.
fn may_run(head: &Head) -> bool {
    match &head.job {
        HeadJob::Packed(_) => true,
        HeadJob::Record(record) => {
            record.content.is_none() || record.failures < record.max_attempts()
        }
    }
}
