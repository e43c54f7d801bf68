//! What happens without anybody asking: sessions open and are lost, leases time out, scheduled
//! jobs become due, waits end. One tick does a bounded slice of it.

use std::collections::BTreeMap;

use ganger_protocol::{
    DurationMs, JobId, SessionId, Timestamp, WireError,
    event::EventName,
    job::{JobError, JobState},
    limits::SESSION_TTL_DEFAULT,
    request::{LeaseRef, SessionHello},
    response::{Done, Notice, ReplyBody},
};

use crate::{
    Engine,
    answer::Verdict,
    command::{Mono, Now, Origin, Outcome, SessionOpened},
    facts::{Fact, Facts, Need, RunDue},
    lanes::Ring,
    push::{PRODUCER_IDLE_MAX, idle_timer},
    records::{
        JobRecord, Lane, LeftRun, Place, ProducerNumber, QueueNumber, RunKey, SessionRecord, Timer,
        TimerKind,
    },
    schedule::{self, DueMax},
    session::Session,
    waiters::Waiter,
    workflow::NODES_SLICE,
};

/// Timers, time-outs and waits that one tick handles, each.
const SLICE: usize = 128;

/// Timers that one tick fires.
const TIMERS_SLICE: DueMax = DueMax {
    at_once: NODES_SLICE,
    timed: SLICE,
};

/// Cron entries of these: each may push a hundred jobs, and one tick's changes are one group.
const CRON_SLICE: usize = 4;

/// Scheduled runs of these, since each may have hundreds of jobs that wait for the same time.
const RUN_SLICE: usize = 16;

/// Jobs of one run that become ready together, and bytes of their contents.
const RUN_JOBS_MAX: u32 = 32;
const RUN_BYTES_MAX: u32 = 64 << 10;

/// Leases told of in one notice of a session, and kept for its next heartbeat.
const LOST_MAX: usize = 1000;

impl Engine {
    /// How long until something happens by itself; `None`: never.
    pub fn next_wakeup(&self, now: Now) -> Option<DurationMs> {
        if !self.overfull.is_empty() || !self.unserved.is_empty() || self.keys.has_unread() {
            return Some(DurationMs::ZERO);
        }
        let mono = [
            self.leases.first_deadline(),
            self.sessions.first_check(),
            self.waiters.first_deadline(),
            self.waits.first_deadline(),
            self.stragglers.first().map(|(at, _)| *at),
            self.sweeps.next(),
            self.keys.next(),
            self.queues_at_rate.first().map(|(at, _)| *at),
        ];
        let mono = mono
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.since(now.mono));
        mono.into_iter().chain(self.schedule.next(now.wall)).min()
    }

    pub(crate) fn needs_of_tick(&mut self, now: Now, facts: &Facts) -> Vec<Need> {
        if let Some(after) = self.schedule.refill_after() {
            return vec![Need::Timers {
                after,
                max: schedule::REFILL,
            }];
        }
        let mut needs = Vec::new();
        for timer in self.due_timers(now) {
            needs.extend(self.needs_of_timer(&timer, facts));
        }
        for job in self.leases.timed_out(now.mono, SLICE) {
            needs.extend(self.needs_to_end_lease(job));
        }
        needs.extend(self.needs_of_holds(facts));
        let lost = self.sessions.first_lost(now.mono);
        needs.extend(self.needs_of_session(lost));
        let stragglers = self.stragglers_due(now.mono, SLICE).into_iter();
        let stragglers = stragglers.filter_map(|(_, run)| self.straggler(run));
        needs.extend(stragglers.filter_map(|job| self.need_of_job(job, true)));
        let waits = self.waits.timed_out(now.mono, SLICE).into_iter();
        needs.extend(waits.filter_map(|wait| self.need_of_job(wait.job, false)));
        needs.extend(self.needs_of_overfull(facts));
        needs.extend(self.needs_of_sweep(now, facts));
        for number in &self.unserved {
            let Some(queue) = self.queues.find(*number) else {
                continue;
            };
            // Down to the first priority that has something with a turn.
            for (priority, window) in queue.windows() {
                let lane = Lane {
                    queue: *number,
                    priority,
                    lane: 0,
                };
                needs.extend(self.needs_of_lanes(*number, priority, facts));
                if window.is_short_of(1) {
                    needs.push(self.need_of_heads(lane, window.end));
                }
                if !window.is_idle() || queue.ring(priority).is_some_and(Ring::has_turns) {
                    break;
                }
            }
        }
        needs
    }

    /// The timers that fire now, few of those that do much. What is left is due at once again.
    fn due_timers(&self, now: Now) -> Vec<Timer> {
        let mut timers = self.schedule.due(now.wall, TIMERS_SLICE);
        let is_of_run = |(_, timer): &(usize, &Timer)| timer.what == TimerKind::RunDue;
        // Jobs become ready in the order of their times: nothing goes by the runs that are left.
        if let Some((nth, _)) = timers.iter().enumerate().filter(is_of_run).nth(RUN_SLICE) {
            timers.truncate(nth);
        }
        let mut crons = 0;
        timers.retain(|timer| {
            crons += usize::from(timer.what == TimerKind::Cron);
            timer.what != TimerKind::Cron || crons <= CRON_SLICE
        });
        timers
    }

    fn needs_of_timer(&self, timer: &Timer, facts: &Facts) -> Vec<Need> {
        let job = JobId::from_bytes(timer.id);
        let need = match timer.what {
            TimerKind::Due => self.need_of_job(job, true),
            TimerKind::RunDue => self.need_of_run_due(timer),
            TimerKind::Expire => return self.needs_to_withdraw(job, facts),
            TimerKind::Retention => self.need_of_removal(job, facts),
            TimerKind::UniqueTtl => self.need_of_ttl(timer),
            TimerKind::ProducerIdle => {
                let producer = producer_of(timer);
                let is_known = self.producers.find(producer).is_some();
                (!is_known).then_some(Need::Producer(producer))
            }
            TimerKind::Cron => self.need_of_cron(timer),
            TimerKind::Cancel => self.need_of_job(job, true),
            TimerKind::BatchDeadline => return self.needs_of_batch_timer(timer, facts),
            TimerKind::NodeDone | TimerKind::NodeEnded => {
                return self.needs_of_node_timer(timer, facts);
            }
            TimerKind::PauseEnd => None,
        };
        need.into_iter().collect()
    }

    pub(crate) fn tick(&mut self, now: Now, facts: &Facts, outcome: &mut Outcome) {
        self.wake_at_rates(now);
        // All that is due is looked up first, as `needs_of_tick` did: what one does must not bring
        // in another whose facts were not read.
        let mut timers = self.due_timers(now);
        let late = self.leases.timed_out(now.mono, SLICE);
        let lost = self.sessions.first_lost(now.mono);
        let stragglers = self.stragglers_due(now.mono, SLICE);
        let waits = self.waits.timed_out(now.mono, SLICE);
        let surplus = self.all_surplus(facts);
        let mut touched = Vec::new();
        let runs = timers.iter().filter(|it| it.what == TimerKind::RunDue);
        let runs = runs.map(|timer| (*timer, self.run_due_by(timer, facts)));
        let mut runs: BTreeMap<Timer, Option<RunDue>> = runs.collect();
        // Nothing goes by those of a run that are left for the next tick.
        let is_rest = |it: &Timer| matches!(runs.get(it), Some(Some(due)) if !due.at_end);
        if let Some(nth) = timers.iter().position(is_rest) {
            timers.truncate(nth + 1);
        }
        for timer in timers {
            let due = runs.remove(&timer).flatten();
            touched.extend(self.fire(now, (timer, due), facts, outcome));
        }
        for job in late {
            self.time_out(now, job, facts, outcome);
        }
        if let Some(session) = lost {
            touched.extend(self.lose_session(now, session, facts, outcome));
        }
        for (at, run) in stragglers {
            self.look_at_straggler(at, run, facts);
        }
        for wait in waits {
            self.end_wait_for(wait, facts);
        }
        for (queue, state, rows) in surplus {
            self.trim_closed(now, (queue, state), &rows, facts);
        }
        self.sweep(now, facts);
        touched.extend(std::mem::take(&mut self.unserved));
        touched.extend(std::mem::take(&mut self.awakened));
        self.offer_all(now, touched.into_iter(), outcome);
        self.end_late_waits(now, outcome);
        outcome.lapsed = self.batches.take_lapsed();
    }

    /// Answers the fetches that have waited long enough. While something is being read for their queues
    /// they wait on, since it is known after that whether a job is there.
    fn end_late_waits(&mut self, now: Now, outcome: &mut Outcome) {
        let is_passed = |at: Option<Mono>| at.is_some_and(|at| at <= now.mono);
        if !is_passed(self.waiters.first_deadline()) || is_passed(self.keys.next()) {
            return;
        }
        let unread = self.keys.unread_queues();
        let is_known = |queue: &QueueNumber| {
            let mut open = [&self.unserved, &self.awakened, &unread].into_iter();
            open.all(|queues| !queues.contains(queue))
        };
        let may_end = |waiter: &Waiter| waiter.queues.iter().all(is_known);
        for ticket in self.waiters.timed_out(now.mono, SLICE, may_end) {
            self.end_wait(now, ticket, false, outcome);
        }
    }

    /// Keys and queues whose rates let the next job through are looked at again.
    fn wake_at_rates(&mut self, now: Now) {
        for lane in self.keys.due(now.mono, SLICE) {
            self.wake_key(lane);
        }
        while let Some((at, queue)) = self.queues_at_rate.first().copied()
            && at <= now.mono
        {
            self.queues_at_rate.remove(&(at, queue));
            self.awakened.insert(queue);
        }
        self.keys.forgive(now.mono);
    }

    /// The last entry of a run has been leased for long: when it still is, it is moved out.
    fn look_at_straggler(&mut self, at: Mono, run: RunKey, facts: &Facts) {
        if !self.stragglers.remove(&(at, run)) {
            return;
        }
        if let Some(state) = self.runs.get_mut(&run) {
            state.watched = None;
        }
        if let Some(job) = self.straggler(run) {
            self.move_straggler(job, facts);
        }
    }

    /// A timer is due, and some jobs by it when it is that of a scheduled run; the queue that got a
    /// ready job.
    fn fire(
        &mut self,
        now: Now,
        (timer, due): (Timer, Option<RunDue>),
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> Option<QueueNumber> {
        self.unset_timer(timer);
        match timer.what {
            TimerKind::Due => {
                let record = self.lookup(JobId::from_bytes(timer.id), facts)?;
                if record.state != JobState::Scheduled || record.run_at != Some(timer.at) {
                    return None;
                }
                Some(self.become_ready(now, record))
            }
            TimerKind::RunDue => self.fire_run_due(now, &timer, due),
            TimerKind::Retention => {
                let record = self.lookup(JobId::from_bytes(timer.id), facts)?;
                // A timer of an earlier death, when the job was revived and died again.
                if record.state.is_terminal() && record.run_at == Some(timer.at) {
                    self.delete_closed(now, &record, facts);
                }
                None
            }
            TimerKind::ProducerIdle => {
                self.look_at_producer(now, producer_of(&timer), facts);
                None
            }
            TimerKind::Cron => self.fire_cron(now, &timer, facts),
            TimerKind::Cancel => {
                self.fire_cancel(now, &timer, facts, outcome);
                None
            }
            TimerKind::Expire => {
                self.fire_expiry(now, &timer, facts);
                None
            }
            TimerKind::UniqueTtl => {
                self.end_lock(&timer, facts);
                None
            }
            TimerKind::BatchDeadline => {
                self.fire_batch(now, &timer, facts);
                None
            }
            TimerKind::PauseEnd => self.end_pause(now, &timer),
            TimerKind::NodeDone | TimerKind::NodeEnded => {
                self.fire_node(now, &timer, facts);
                None
            }
        }
    }

    /// A scheduled job is due; its queue.
    fn become_ready(&mut self, now: Now, record: Box<JobRecord>) -> QueueNumber {
        let queue = record.queue;
        self.count(queue, Some(JobState::Scheduled), Some(JobState::Ready));
        let stand = (Some(JobState::Ready), None);
        self.tell(now, EventName::Ready, &*record, stand);
        self.make_ready_at_tail(record);
        queue
    }

    /// What must be read before the jobs of a scheduled run are due, unless it is of the open group.
    fn need_of_run_due(&self, timer: &Timer) -> Option<Need> {
        let run = run_of(timer);
        let is_open = self.group.runs.contains_key(&run);
        (!is_open).then_some(Need::RunDue {
            run,
            at: timer.at,
            passed: self.group.left_of_scheduled(&run),
            jobs_max: RUN_JOBS_MAX,
            bytes_max: RUN_BYTES_MAX,
        })
    }

    /// The jobs that a timer of a scheduled run makes ready, or the first of them.
    fn run_due_by(&self, timer: &Timer, facts: &Facts) -> Option<RunDue> {
        match self.need_of_run_due(timer) {
            Some(need) => match facts.find(&need)? {
                Fact::RunDue(due) => due.clone(),
                _ => None,
            },
            None => Some(self.born_due(run_of(timer), timer.at)),
        }
    }

    /// Jobs of a scheduled run of the open group that wait for a time.
    fn born_due(&self, run: RunKey, at: Timestamp) -> RunDue {
        let max = usize::try_from(RUN_JOBS_MAX).unwrap_or(usize::MAX);
        let left = self.group.left_of_scheduled(&run);
        let born = self.group.born_for(&run, at);
        let mut born = born.filter(|(index, _)| !left.contains(*index));
        let jobs = born.by_ref().take(max);
        let jobs = jobs.map(|(index, job)| (index, job.clone())).collect();
        RunDue {
            left: LeftRun::whole(run, 0),
            jobs,
            at_end: born.next().is_none(),
        }
    }

    /// Jobs of a scheduled run are due that have waited for this time; their queue. Of many, some are
    /// left for the next tick.
    fn fire_run_due(
        &mut self,
        now: Now,
        timer: &Timer,
        due: Option<RunDue>,
    ) -> Option<QueueNumber> {
        let run = run_of(timer);
        // Those of a purged queue are not kept, swept or not.
        self.queues.find(run.lane.queue)?;
        let due = due?;
        if !due.at_end {
            self.set_timer(*timer);
        }
        for (index, job) in due.jobs {
            let place = Place { run, index };
            if self.has_left(&place) {
                continue;
            }
            self.group.leave_scheduled(index, due.left);
            let id = place.job_id(self.options.shard);
            let record = JobRecord::scheduled(id, place, timer.at, job);
            self.become_ready(now, Box::new(record));
        }
        Some(run.lane.queue)
    }

    /// The timer of the jobs of a scheduled run that wait for this time.
    pub(crate) fn run_due(&self, run: RunKey, at: Timestamp) -> Timer {
        Timer::run_due(self.options.shard, run, at)
    }

    fn look_at_producer(&mut self, now: Now, producer: ProducerNumber, facts: &Facts) {
        let stored = match facts.find(&Need::Producer(producer)) {
            Some(Fact::Producer(newest)) => *newest,
            Some(_) | None => None,
        };
        let Some((_, at)) = self.producers.find(producer).or(stored) else {
            return;
        };
        let idle_at = at.plus(PRODUCER_IDLE_MAX);
        if idle_at > now.wall {
            self.set_timer(idle_timer(producer, idle_at));
            return;
        }
        self.producers.forget(producer);
        self.group.forget_producer(producer);
    }

    fn time_out(&mut self, now: Now, job: JobId, facts: &Facts, outcome: &mut Outcome) {
        let record = self.lookup(job, facts);
        let Some(lease) = self.end_lease(job, now.mono) else {
            return;
        };
        self.tell_lost(
            lease.session,
            vec![LeaseRef {
                job,
                lease: lease.number,
            }],
            outcome,
        );
        let Some(record) = record else { return };
        let error = JobError {
            at: now.wall,
            attempt: lease.attempt,
            kind: "timeout".to_owned(),
            message: "the lease passed its deadline".to_owned(),
            backtrace: String::new(),
        };
        self.fail_lease(now, &lease, record, error, Verdict::Backoff);
    }

    /// Tells a session that leases ended without its answer: at once, and with its next heartbeat.
    pub(crate) fn tell_lost(
        &mut self,
        session: SessionId,
        leases: Vec<LeaseRef>,
        outcome: &mut Outcome,
    ) {
        let Some(session) = self.sessions.find_mut(session) else {
            return;
        };
        if session.lost.len() + leases.len() <= LOST_MAX {
            session.lost.extend(&leases);
        }
        if let Some(connection) = session.connection {
            outcome.notices.push((connection, Notice::Lost { leases }));
        }
    }

    /// The ttl of a session has passed: its leases end, its waits end, it is forgotten.
    fn lose_session(
        &mut self,
        now: Now,
        id: SessionId,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> Vec<QueueNumber> {
        let leases = self.refs_of(id);
        self.tell_lost(id, leases.clone(), outcome);
        self.end_waits(id, outcome);
        let mut touched = Vec::new();
        for LeaseRef { job, .. } in leases.into_iter().rev() {
            let record = self.lookup(job, facts);
            if let (Some(lease), Some(record)) = (self.end_lease(job, now.mono), record) {
                touched.push(record.queue);
                self.lose_lease(now, &lease, record);
            }
        }
        self.sessions.remove(id);
        self.group.set_session(id, None);
        touched
    }

    /// The leases of a session, in the order in which their jobs were born.
    fn refs_of(&self, session: SessionId) -> Vec<LeaseRef> {
        let leases = self
            .sessions
            .find(session)
            .into_iter()
            .flat_map(|session| session.leases.iter());
        let refs = leases.map(|(lease, job)| LeaseRef { job: *job, lease });
        let mut refs: Vec<LeaseRef> = refs.collect();
        refs.sort_unstable();
        refs
    }

    pub(crate) fn goodbye(
        &mut self,
        now: Now,
        origin: &Origin,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> Result<ReplyBody, WireError> {
        let id = self.known_session(origin.session)?;
        self.end_waits(id, outcome);
        let leases = self.refs_of(id);
        let touched = self.release_all(now, leases, facts);
        self.sessions.remove(id);
        self.group.set_session(id, None);
        self.offer_all(now, touched.into_iter(), outcome);
        Ok(ReplyBody::Done(Done {}))
    }

    /// Gives leases back, the first of them ending up at the very head.
    fn release_all(&mut self, now: Now, leases: Vec<LeaseRef>, facts: &Facts) -> Vec<QueueNumber> {
        let mut touched = Vec::new();
        for LeaseRef { job, .. } in leases.into_iter().rev() {
            let record = self.lookup(job, facts);
            if let (Some(lease), Some(record)) = (self.end_lease(job, now.mono), record) {
                touched.push(record.queue);
                self.release_lease(now, &lease, record, None);
            }
        }
        touched
    }

    pub(crate) fn needs_to_open(&self, hello: &SessionHello) -> Vec<Need> {
        let Some(resume) = &hello.resume else {
            return Vec::new();
        };
        self.needs_of_session(Some(resume.id))
    }

    /// Opens a session, or goes on with one: what it does not name as held is released at once.
    pub(crate) fn open_session(
        &mut self,
        now: Now,
        origin: &Origin,
        hello: SessionHello,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> SessionOpened {
        let held = hello
            .resume
            .as_ref()
            .map(|resume| resume.held.clone())
            .unwrap_or_default();
        let known = hello.resume.as_ref().map(|resume| resume.id).filter(|id| {
            let session = self.sessions.find(*id);
            session.is_some_and(|session| session.record.namespace == origin.namespace)
        });
        let id = match known {
            Some(id) => id,
            None => self.new_session(now, origin, hello),
        };
        self.end_waits(id, outcome);
        let is_held = |lease: &LeaseRef| held.contains(lease);
        let owned = self.refs_of(id);
        let (kept, dropped): (Vec<_>, Vec<_>) = owned.into_iter().partition(is_held);
        let lost = held
            .iter()
            .filter(|lease| !kept.contains(lease))
            .copied()
            .collect();
        let touched = self.release_all(now, dropped, facts);
        let mut ttl = SESSION_TTL_DEFAULT;
        if let Some(session) = self.sessions.find_mut(id) {
            session.seen(now.mono);
            session.connection = Some(origin.caller.connection);
            session.lost.clear();
            ttl = session.record.ttl;
        }
        self.offer_all(now, touched.into_iter(), outcome);
        SessionOpened { id, ttl, lost }
    }

    fn new_session(&mut self, now: Now, origin: &Origin, hello: SessionHello) -> SessionId {
        let (number, _) = self.take_number();
        let record = SessionRecord {
            id: SessionId(number),
            namespace: origin.namespace.clone(),
            name: hello.name,
            host: hello.host,
            pid: hello.pid,
            labels: hello.labels.into_iter().collect(),
            capacity: hello.capacity,
            ttl: hello.ttl_ms.unwrap_or(SESSION_TTL_DEFAULT),
        };
        self.group
            .set_session(record.id, Some(Box::new(record.clone())));
        let id = record.id;
        self.sessions.insert(Session::opened(record, now.mono));
        id
    }
}

/// The run of a timer of a scheduled run.
fn run_of(timer: &Timer) -> RunKey {
    Place::of_birth(&JobId::from_bytes(timer.id)).run
}

fn producer_of(timer: &Timer) -> ProducerNumber {
    let [.., a, b, c, d, e, f, g, h] = timer.id;
    ProducerNumber(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}
