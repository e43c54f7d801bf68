//! The pure state machine of a ganger shard.
//!
//! [`Engine::apply`] takes a [`Command`] at a [`Now`] with the [`Facts`] that it asked for by
//! [`Engine::needs`], and returns an [`Outcome`]; what must be persisted gathers in the open group
//! until [`Engine::seal`]. Nothing here reads a clock, touches a disk, spawns, or draws randomness
//! that it was not seeded with: the same inputs give the same outputs, always.
//!
//! | file | concept |
//! |---|---|
//! | `command` | what comes in and goes out |
//! | `records`, `change`, `facts` | what is kept, written and read |
//! | `group` | the open group |
//! | `queue`, `window` | ready jobs in order, heads in memory |
//! | `push`, `fetch`, `answer`, `dead`, `look` | one operation each |
//! | `list` | which jobs a list means, and on which index they are found |
//! | `lease`, `session`, `waiters`, `schedule`, `backoff`, `kinds` | state behind them |
//! | `reschedule` | jobs that wait go to another time, queue or priority; those that are over are deleted |
//! | `progress`, `retention`, `waits` | how far a job has come; how long one that is over is kept; who waits for its end |
//! | `unique`, `expiry`, `cancel` | who holds a key; which jobs are no longer granted, or stopped |
//! | `batch` | jobs that are counted together, and what is pushed when they are over |
//! | `workflow` | jobs that wait for others |
//! | `limits`, `keys`, `lanes` | how many jobs of a queue or key run; whose turn it is within a queue |
//! | `events` | what happens, for those who follow it |
//! | `cron` | entries that push jobs over and over |
//! | `shares` | whose turn it is among the queues of a weighted fetch |
//! | `settings`, `purge` | queues as a whole: settings, pauses, quotas; emptying one at once |
//! | `time` | what happens without anybody asking |
//! | `recover` | from the store to an engine |
//! | `invariants` | what must hold after every step |

mod answer;
mod backoff;
pub mod batch;
mod by_number;
mod cancel;
pub mod change;
pub mod command;
pub mod cron;
mod dead;
mod events;
mod expiry;
pub mod facts;
mod fetch;
mod group;
mod invariants;
pub mod job;
pub mod keys;
mod kinds;
pub mod lanes;
mod lease;
mod limits;
pub mod list;
mod look;
#[cfg(test)]
mod model;
mod move_job;
mod progress;
mod purge;
mod push;
pub mod queue;
pub mod records;
mod recover;
mod reschedule;
mod retention;
mod schedule;
mod session;
pub mod settings;
mod shares;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod time;
pub mod unique;
mod waiters;
mod waits;
mod window;
pub mod workflow;

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;
use ganger_protocol::{
    ErrorCode, LeaseId, SessionId, WireError,
    job::JobState,
    limits::{BATCHES_MAX, LIMITS_MAX, Limits, WAITS_MAX},
    request::Operation,
    response::ReplyBody,
};

use self::{
    backoff::Random,
    batch::Batches,
    change::{Change, Group},
    command::{Caller, Command, Mono, Now, Origin, Outcome, Reply},
    cron::Crons,
    events::Happenings,
    facts::{Fact, Facts, Need},
    group::{OpenGroup, seldom::Seldom},
    keys::Keys,
    kinds::Kinds,
    lanes::SPILLS_MAX,
    lease::{Answer, Leases},
    limits::Limits as JobLimits,
    purge::Sweeps,
    push::Producers,
    queue::Queues,
    records::{
        ACKS_PER_PART, Bits, GroupNumber, HeadRecord, LEASES_PER_PART, LeftRun, PartKey,
        QueueNumber, RunKey,
    },
    schedule::Schedule,
    session::Sessions,
    waiters::Waiters,
    waits::Waits,
    workflow::Workflows,
};
pub use self::{push::PRODUCER_IDLE_MAX, queue::HeadBudget};

/// Numbers of leases are granted from blocks of this size whose reservation is durable.
const RESERVED_BLOCK: u64 = 1 << 20;

/// Positions start in the middle, so that they can grow and shrink.
pub const POSITION_START: u64 = 1 << 63;

/// What an engine is told once.
#[derive(Debug, Clone)]
pub struct Options {
    /// The number of the shard; part of every id.
    pub shard: u16,
    /// Limits of what is pushed.
    pub limits: Limits,
    /// Bounds of the heads in memory.
    pub heads: HeadBudget,
    /// Losses in a row after which a job is poison; 0 turns that off. Default 5.
    pub poison_losses: u32,
    /// Ended leases whose answers are remembered. Default 2²⁰.
    pub settled_max: usize,
    /// Queues of the shard at most. Default 65 536.
    pub queues_max: usize,
    /// Namespaces of the shard at most. Default 256.
    pub namespaces_max: usize,
    /// Cron entries of the shard at most. Default 10 000, of up to 6 KiB each.
    pub crons_max: usize,
    /// Limits of the shard at most. Default 200 000, of up to 300 bytes each.
    pub limits_max: usize,
    /// Waits for the end of jobs, of the shard. Default 65 536.
    pub waits_max: usize,
    /// Batches of the shard that are not settled at most. Default 10 000, of up to 6 KiB each.
    pub batches_max: usize,
    /// Seed of the jitter.
    pub seed: u64,
    /// The secret of the store, under which unique keys are hashed.
    pub secret: [u8; 32],
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shard: 0,
            limits: Limits::default(),
            heads: HeadBudget::default(),
            poison_losses: 5,
            settled_max: 1 << 20,
            queues_max: 1 << 16,
            namespaces_max: 256,
            crons_max: 10_000,
            limits_max: LIMITS_MAX,
            waits_max: WAITS_MAX,
            batches_max: BATCHES_MAX,
            seed: 0,
            secret: [0; 32],
        }
    }
}

/// A run of which something is known beyond its record.
#[derive(Debug, Default)]
struct RunState {
    /// Entries that it has.
    entries: u8,
    /// Entries in a window.
    heads: u8,
    /// Entries that are leased.
    leased: u8,
    /// Entries that left.
    left: Bits,
    /// The records that say so.
    acks: Vec<PartKey>,
    /// When it is looked at as one whose last entry is leased.
    watched: Option<Mono>,
}

/// One shard's state machine.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    random: Random,
    head: HeadRecord,
    /// The next lease, session or producer gets this number.
    next_number: u64,
    /// Numbers up to here may be given without waiting for their reservation.
    reserved_durably: u64,
    /// The last group that is durable.
    durable: GroupNumber,
    /// The group that makes the reservation in `head` durable.
    reserved_in: GroupNumber,
    queues: Queues,
    runs: HashMap<RunKey, RunState>,
    /// Runs that still exist, by the record of acks that speaks of them.
    acks: BTreeMap<PartKey, u32>,
    /// Leases that still live, by the record that speaks of them.
    lease_parts: BTreeMap<PartKey, u32>,
    leases: Leases,
    kinds: Kinds,
    happenings: Happenings,
    sessions: Sessions,
    waiters: Waiters,
    waits: Waits,
    schedule: Schedule,
    producers: Producers,
    crons: Crons,
    batches: Batches,
    workflows: Workflows,
    limits: JobLimits,
    keys: Keys,
    /// Queues that wait for the rate of their limit.
    queues_at_rate: BTreeSet<(Mono, QueueNumber)>,
    /// Queues in which something may be granted that could not before: offered when the command is
    /// done.
    awakened: BTreeSet<QueueNumber>,
    /// Jobs that this command may still move out of shared lanes.
    spills: u32,
    /// Old numbers of purged queues.
    sweeps: Sweeps,
    /// Queues that have both waiting fetches and ready jobs that must be read first.
    unserved: BTreeSet<QueueNumber>,
    /// Queues with more jobs that ended in a state than they keep.
    overfull: BTreeSet<(QueueNumber, JobState)>,
    /// Runs whose last entry is leased, and when to move it out.
    stragglers: BTreeSet<(Mono, RunKey)>,
    group: OpenGroup,
}

impl Engine {
    /// Names what must be read before a command can be applied, given what was read already. The
    /// driver reads it, hands it in, and asks again until there is nothing more.
    pub fn needs(&mut self, now: Now, command: &Command, facts: &Facts) -> Vec<Need> {
        let mut needs = match command {
            Command::Request(origin, operation) | Command::Bulk(origin, operation) => {
                self.needs_of_operation(now, origin, operation, facts)
            }
            Command::OpenSession { hello, .. } => self.needs_to_open(hello),
            Command::Detach { .. }
            | Command::Durable(_)
            | Command::FileCrons(_)
            | Command::Watch(_) => Vec::new(),
            Command::Tick => self.needs_of_tick(now, facts),
        };
        needs.retain(|need| !facts.contains(need));
        needs
    }

    /// Takes in the next heads of a lane or the next timers: facts that extend what the engine
    /// holds, and belong to no command.
    pub fn inform(&mut self, need: &Need, fact: &Fact) {
        match (need, fact) {
            (Need::Heads { lane, after, .. }, Fact::Heads(heads)) => {
                self.refill_lane(*lane, *after, heads);
            }
            (Need::Lanes { .. }, Fact::Lanes { lanes, at_end }) => {
                self.learn_lanes(need, lanes, *at_end);
            }
            (Need::Timers { after, .. }, Fact::Timers { timers, at_end }) => {
                self.refill_schedule(*after, timers, *at_end);
            }
            _ => {}
        }
    }

    /// Applies a command. Every need must have been answered.
    pub fn apply(&mut self, now: Now, command: Command, facts: &Facts) -> Outcome {
        let mut outcome = Outcome::default();
        self.spills = SPILLS_MAX;
        self.learn_holds(now, facts);
        match command {
            Command::Request(origin, operation) => {
                if let Some(session) = origin.session.and_then(|id| self.sessions.find_mut(id)) {
                    session.seen(now.mono);
                }
                let caller = origin.caller;
                match self.request(now, origin, operation, facts, &mut outcome) {
                    Ok(Some(body)) => self.reply(caller, Ok(body), &mut outcome),
                    Ok(None) => {}
                    Err(error) => self.reply(caller, Err(error), &mut outcome),
                }
            }
            Command::Bulk(origin, operation) => {
                let answer = self.request(now, origin, operation, facts, &mut outcome);
                outcome.answer = answer.transpose();
            }
            Command::OpenSession { origin, hello } => {
                outcome.session = Some(self.open_session(now, &origin, hello, facts, &mut outcome));
            }
            Command::Detach {
                connection,
                session,
            } => self.detach(connection, session),
            Command::Durable(group) => self.answer_durable(group, &mut outcome),
            Command::FileCrons(crons) => self.take_file_crons(now, crons),
            Command::Watch(is_watched) => self.watch(is_watched),
            Command::Tick => self.tick(now, facts, &mut outcome),
        }
        if !self.awakened.is_empty() {
            let awakened = std::mem::take(&mut self.awakened);
            self.offer_all(now, awakened.into_iter(), &mut outcome);
        }
        self.keys.forget_learned(now.mono);
        self.answer_waits(&mut outcome);
        if self.is_watched() {
            outcome.events = self.take_events();
        }
        outcome
    }

    /// Closes the open group and begins the next one; `None` when nothing has changed.
    pub fn seal(&mut self, now: Now) -> Option<Group> {
        if self.group.is_empty() {
            return None;
        }
        let number = self.group.number;
        let next = OpenGroup::numbered(GroupNumber(number.0 + 1));
        let mut group = std::mem::replace(&mut self.group, next);
        let acks = self.seal_acks(&mut group);
        let leases = self.seal_leases(&mut group);
        let mut changes = Vec::with_capacity(group.operations + 4);
        self.add_touched(&group.seldom, &mut changes);
        let queues = std::mem::take(&mut group.queues);
        group.add_changes(&acks, &mut changes);
        changes.extend(leases);
        changes.extend(queues.iter().map(|queue| match self.queue_record(*queue) {
            Some(record) => Change::PutQueue(Box::new(record.clone())),
            None => Change::DeleteQueue(*queue),
        }));
        self.head.wall = self.head.wall.max(now.wall);
        changes.push(Change::PutHead(self.head));
        Some(Group { number, changes })
    }

    /// The number of the open group.
    pub fn open_group(&self) -> GroupNumber {
        self.group.number
    }

    /// Whether a reply waits for the open group.
    pub fn is_awaited(&self) -> bool {
        self.group.is_awaited
    }

    /// Whether the open group has anything in it.
    pub fn has_changes(&self) -> bool {
        !self.group.is_empty()
    }

    /// About how many operations and bytes the open group has.
    pub fn open_size(&self) -> (usize, usize) {
        (self.group.operations, self.group.bytes)
    }

    /// Whether a fetch waits for a group up to this one to be durable.
    pub fn awaits_durable(&self, group: GroupNumber) -> bool {
        group >= self.reserved_in && self.reserved_durably < self.head.reserved
            || self
                .waiters
                .first_durable()
                .is_some_and(|first| first <= group)
    }

    /// Heads in memory, and bytes of their contents.
    pub fn heads(&self) -> (usize, usize) {
        self.queues.heads()
    }

    /// Fetches that wait.
    pub fn waiting_fetches(&self) -> usize {
        self.waiters.count()
    }

    /// Live leases.
    pub fn leases(&self) -> usize {
        self.leases.count()
    }

    fn needs_of_operation(
        &self,
        now: Now,
        origin: &Origin,
        operation: &Operation,
        facts: &Facts,
    ) -> Vec<Need> {
        match operation {
            Operation::Push(push) => self.needs_of_push(origin, push, facts),
            Operation::Fetch(fetch) => self.needs_of_fetch(now, origin, fetch, facts),
            Operation::Ack(ack) => self.needs_of_acks(&ack.leases),
            Operation::Fail(fail) => {
                let leases = fail.leases.iter().map(|item| (item.job, item.lease));
                self.needs_of_answers(leases, Some(Answer::Fail))
            }
            Operation::Release(release) => {
                let leases = release.leases.iter().map(|item| (item.job, item.lease));
                self.needs_of_answers(leases, Some(Answer::Release))
            }
            Operation::Extend(extend) => {
                let leases = extend.leases.iter().map(|item| (item.job, item.lease));
                self.needs_of_answers(leases, None)
            }
            Operation::Progress(progress) => self.needs_of_progress(progress),
            Operation::Goodbye(_) => self.needs_of_session(origin.session),
            Operation::JobGet(get) => {
                let mut needs: Vec<Need> = self.need_of_job(get.job, true).into_iter().collect();
                needs.push(Need::Errors(get.job));
                needs.extend(Self::needs_of_edges_shown(get.job));
                needs.extend(self.need_of_result(get.job, facts));
                needs
            }
            Operation::Wait(wait) => self.needs_to_wait(wait.job, facts),
            Operation::JobCancel(cancel) => {
                let jobs = cancel.jobs.iter();
                jobs.flat_map(|job| self.needs_to_cancel(*job, facts))
                    .collect()
            }
            Operation::JobChange(change) => {
                let jobs = change.jobs.iter();
                jobs.flat_map(|job| self.needs_to_withdraw(*job, facts))
                    .collect()
            }
            Operation::JobDelete(delete) => {
                let jobs = delete.jobs.iter();
                jobs.filter_map(|job| self.need_of_removal(*job, facts))
                    .collect()
            }
            Operation::DeadRevive(select) => self.needs_of_dead(origin, select, true, facts),
            Operation::DeadPurge(select) => self.needs_of_dead(origin, select, false, facts),
            Operation::BatchOpen(open) => self.needs_to_join(open.parent.into_iter(), open.by),
            Operation::BatchCommit(name) | Operation::BatchShow(name) => {
                self.need_of_batch(name.batch).into_iter().collect()
            }
            Operation::BatchList(list) => Self::needs_of_batch_list(list),
            Operation::BatchGraph(graph) => self.needs_of_graph_shown(graph, facts),
            Operation::LimitSet(_)
            | Operation::LimitDelete(_)
            | Operation::LimitShow(_)
            | Operation::LimitList(_) => Vec::new(),
            Operation::Hello(_)
            | Operation::Heartbeat(_)
            | Operation::JobList(_)
            | Operation::TaskStart(_)
            | Operation::TaskGet(_)
            | Operation::TaskList(_)
            | Operation::TaskCancel(_)
            | Operation::Subscribe(_)
            | Operation::Unsubscribe(_)
            | Operation::DeadList(_)
            | Operation::QueueList(_)
            | Operation::QueuePause(_)
            | Operation::QueueResume(_)
            | Operation::QueueShow(_)
            | Operation::QueueSet(_)
            | Operation::QueueCreate(_)
            | Operation::QueuePurge(_)
            | Operation::QueueDelete(_)
            | Operation::CronSet(_)
            | Operation::CronDelete(_)
            | Operation::CronList(_)
            | Operation::CronShow(_)
            | Operation::CronPause(_)
            | Operation::CronResume(_)
            | Operation::CronRun(_)
            | Operation::Stats(_)
            | Operation::Backup(_) => Vec::new(),
        }
    }

    /// Serves a request; `None` when it is answered later, or was answered already.
    fn request(
        &mut self,
        now: Now,
        origin: Origin,
        operation: Operation,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> Result<Option<ReplyBody>, WireError> {
        let body = match operation {
            Operation::Push(push) => self.push(now, &origin, push, facts, outcome)?,
            Operation::Fetch(fetch) => return self.fetch(now, origin, fetch, facts, outcome),
            Operation::Ack(ack) => self.ack(now, &origin, &ack, facts),
            Operation::Fail(fail) => self.fail(now, &origin, fail, facts),
            Operation::Release(release) => self.release(now, &origin, &release, facts, outcome),
            Operation::Extend(extend) => self.extend(now, &origin, &extend, facts),
            Operation::Progress(progress) => self.progress(&origin, progress, facts),
            Operation::Heartbeat(_) => {
                let body = self.heartbeat(&origin)?;
                outcome.replies.push(Reply {
                    caller: origin.caller,
                    after: GroupNumber(0),
                    result: Ok(body),
                });
                return Ok(None);
            }
            Operation::Goodbye(_) => self.goodbye(now, &origin, facts, outcome)?,
            Operation::JobGet(get) => self.job_view(&origin, get.job, facts)?,
            Operation::Wait(wait) => return self.wait(now, &origin, wait, facts),
            Operation::JobCancel(cancel) => self.job_cancel(now, &origin, &cancel, facts, outcome),
            Operation::JobChange(change) => self.job_change(now, &origin, &change, facts, outcome),
            Operation::JobDelete(delete) => self.job_delete(now, &origin, &delete, facts),
            Operation::DeadRevive(select) => self.revive(now, &origin, &select, facts, outcome)?,
            Operation::DeadPurge(select) => self.purge_dead(now, &origin, &select, facts)?,
            Operation::QueueList(list) => self.queue_list(&origin, &list),
            Operation::QueuePause(pause) => self.pause(now, &origin, &pause)?,
            Operation::QueueResume(names) => self.resume(now, &origin, &names, outcome)?,
            Operation::QueueShow(show) => self.queue_show(&origin, &show)?,
            Operation::QueueSet(set) => self.queue_set(&origin, *set)?,
            Operation::QueueCreate(create) => self.queue_create(&origin, &create)?,
            Operation::QueuePurge(purge) => self.queue_purge(now, &origin, &purge, outcome)?,
            Operation::QueueDelete(delete) => self.queue_delete(now, &origin, &delete, outcome)?,
            Operation::CronSet(set) => self.cron_set(now, &origin, *set)?,
            Operation::CronDelete(names) => self.cron_delete(&origin, &names)?,
            Operation::CronList(list) => self.cron_list(&origin, &list)?,
            Operation::CronShow(show) => self.cron_show(&origin, &show)?,
            Operation::CronPause(names) => self.cron_pause(&origin, &names)?,
            Operation::CronResume(names) => self.cron_resume(now, &origin, &names)?,
            Operation::CronRun(run) => self.cron_run(now, &origin, &run, outcome)?,
            Operation::BatchOpen(open) => self.batch_open(now, &origin, *open, facts)?,
            Operation::BatchCommit(name) => self.batch_commit(now, &origin, name, facts)?,
            Operation::BatchShow(name) => self.batch_view(&origin, name.batch, facts)?,
            Operation::BatchList(list) => self.batch_list(&origin, &list, facts)?,
            Operation::BatchGraph(graph) => self.batch_graph(&origin, &graph, facts)?,
            Operation::LimitSet(set) => self.limit_set(&origin, &set)?,
            Operation::LimitDelete(one) => self.limit_delete(&origin, &one)?,
            Operation::LimitShow(one) => self.limit_show(&origin, &one)?,
            Operation::LimitList(list) => self.limit_list(&origin, &list)?,
            Operation::Stats(_) => self.stats(now, &origin),
            Operation::Hello(_)
            | Operation::JobList(_)
            | Operation::TaskStart(_)
            | Operation::TaskGet(_)
            | Operation::TaskList(_)
            | Operation::TaskCancel(_)
            | Operation::Subscribe(_)
            | Operation::Unsubscribe(_)
            | Operation::DeadList(_)
            | Operation::Backup(_) => {
                return Err(WireError::new(
                    ErrorCode::BadRequest,
                    "this operation does not belong to the engine",
                ));
            }
        };
        Ok(Some(body))
    }

    /// Answers a caller: as soon as everything that has happened so far is durable.
    fn reply(
        &mut self,
        caller: Caller,
        result: Result<ReplyBody, WireError>,
        outcome: &mut Outcome,
    ) {
        let after = self.own_group();
        outcome.replies.push(Reply {
            caller,
            after,
            result,
        });
    }

    /// The group with which everything that has happened so far is durable.
    fn own_group(&mut self) -> GroupNumber {
        if self.group.is_empty() {
            return GroupNumber(self.group.number.0 - 1);
        }
        self.group.is_awaited = true;
        self.group.number
    }

    /// The next number of the shard, and the group that must be durable before it is told.
    fn take_number(&mut self) -> (u64, GroupNumber) {
        if self.next_number + RESERVED_BLOCK / 2 >= self.head.reserved {
            self.head.reserved = self.next_number + RESERVED_BLOCK;
            self.reserved_in = self.group.number;
            self.group.is_head_touched = true;
        }
        let number = self.next_number;
        self.next_number += 1;
        let after = match number < self.reserved_durably {
            true => GroupNumber(0),
            false => self.reserved_in,
        };
        (number, after)
    }

    /// An entry leaves its run. When it was the last one, the run goes.
    fn leave(&mut self, run: RunKey, index: u8) {
        let entries = self.group.runs.get(&run).map(|run| run.entries.len());
        let Some(state) = self.runs.get_mut(&run) else {
            return;
        };
        if let Some(entries) = entries {
            state.entries = u8::try_from(entries).unwrap_or(u8::MAX);
        }
        if !state.left.insert(index) {
            return;
        }
        self.group.operations += 1;
        self.group.bytes += 8;
        self.group.left.entry(run).or_default().insert(index);
        let is_open = entries.is_some();
        if !is_open && state.left.count() == u32::from(state.entries) {
            self.drop_run(run);
        }
    }

    /// Forgets a run of which nothing is left, and the records of acks that spoke only of such.
    fn drop_run(&mut self, run: RunKey) {
        self.group.drop_run(run);
        for part in self.forget_run(run) {
            if count_down(&mut self.acks, part) {
                self.group.delete(Change::DeleteAcks(part));
            }
        }
    }

    /// Forgets what was known of a run; the records of acks that spoke of it.
    fn forget_run(&mut self, run: RunKey) -> Vec<PartKey> {
        let Some(state) = self.runs.remove(&run) else {
            return Vec::new();
        };
        if let Some(at) = state.watched {
            self.stragglers.remove(&(at, run));
        }
        state.acks
    }

    /// Packs what left which runs into parts, and drops the runs of this group that are used up
    /// already.
    fn seal_acks(&mut self, group: &mut OpenGroup) -> Vec<(PartKey, Vec<LeftRun>)> {
        let mut rows = Vec::with_capacity(group.left.len());
        for (run, left) in std::mem::take(&mut group.left) {
            let Some(state) = self.runs.get_mut(&run) else {
                continue;
            };
            if let Some(open) = group.runs.get(&run) {
                state.entries = u8::try_from(open.entries.len()).unwrap_or(u8::MAX);
            }
            if state.left.count() == u32::from(state.entries) {
                // It is used up within its own group: the store never hears of it.
                group.runs.remove(&run);
                self.forget_run(run);
                continue;
            }
            rows.push(LeftRun {
                run,
                entries: state.entries,
                left,
            });
        }
        for (run, open) in &group.runs {
            if let Some(state) = self.runs.get_mut(run) {
                state.entries = u8::try_from(open.entries.len()).unwrap_or(u8::MAX);
            }
        }
        let parts = rows.chunks(ACKS_PER_PART).zip(0_u16..);
        let parts = parts.map(|(rows, part)| {
            (
                PartKey {
                    group: group.number,
                    part,
                },
                rows.to_vec(),
            )
        });
        let parts: Vec<_> = parts.collect();
        for (part, rows) in &parts {
            self.acks
                .insert(*part, u32::try_from(rows.len()).unwrap_or(u32::MAX));
            for row in rows {
                if let Some(state) = self.runs.get_mut(&row.run) {
                    state.acks.push(*part);
                }
            }
        }
        parts
    }

    /// The records of the engine that a group seldom touches.
    fn add_touched(&self, seldom: &Seldom, changes: &mut Vec<Change>) {
        let crons = seldom.crons.iter();
        changes.extend(crons.map(|cron| match self.crons.record(*cron) {
            Some(record) => Change::PutCron(Box::new(record.clone())),
            None => Change::DeleteCron(*cron),
        }));
        let batches = seldom.batches.iter();
        changes.extend(batches.map(|id| match self.batches.find(*id) {
            Some(record) => Change::PutBatch(Box::new(record.clone())),
            None => Change::DeleteLiveBatch(*id),
        }));
        let limits = seldom.limits.iter();
        changes.extend(limits.map(
            |(namespace, target)| match self.limits.record(namespace, target) {
                Some(record) => Change::PutLimit(Box::new(record)),
                None => Change::DeleteLimit(namespace.clone(), target.clone()),
            },
        ));
    }

    /// Packs the grants and extensions of leases that still live into parts.
    fn seal_leases(&mut self, group: &mut OpenGroup) -> Vec<Change> {
        let rows: Vec<_> = std::mem::take(&mut group.grants).into_values().collect();
        let mut changes = Vec::new();
        for (rows, part) in rows.chunks(LEASES_PER_PART).zip(0_u16..) {
            let key = PartKey {
                group: group.number,
                part,
            };
            self.lease_parts
                .insert(key, u32::try_from(rows.len()).unwrap_or(u32::MAX));
            for row in rows {
                if let Some(lease) = self.leases.find_mut(&row.job) {
                    lease.part = Some(key);
                }
            }
            changes.push(Change::PutLeases(key, rows.to_vec()));
        }
        changes
    }

    /// A lease is over, or is told of by a later record: the record that spoke of it may go.
    fn leave_lease_part(&mut self, lease: LeaseId, part: Option<PartKey>) {
        match part {
            None => {
                self.group.grants.remove(lease);
            }
            Some(part) if count_down(&mut self.lease_parts, part) => {
                self.group.delete(Change::DeleteLeases(part));
            }
            Some(_) => {}
        }
    }

    /// Whether this session is known, else what a caller without one is told.
    fn known_session(&self, session: Option<SessionId>) -> Result<SessionId, WireError> {
        let known = session.filter(|id| self.sessions.find(*id).is_some());
        known.ok_or_else(|| WireError {
            field: Some("session".to_owned()),
            ..WireError::new(
                ErrorCode::NotFound,
                "the session of this connection is over; open another by hello on a new connection",
            )
        })
    }
}

/// Lowers a count and whether it reached zero, upon which it is forgotten.
fn count_down(counts: &mut BTreeMap<PartKey, u32>, part: PartKey) -> bool {
    let Some(count) = counts.get_mut(&part) else {
        return false;
    };
    *count -= 1;
    let is_over = *count == 0;
    if is_over {
        counts.remove(&part);
    }
    is_over
}

/// A lease number as the wire has it.
fn lease_id(number: u64) -> LeaseId {
    LeaseId(number)
}
