//! Cron entries: definitions that push a job over and over.
//!
//! Entries are few and small, and all in memory; the store has their records, and a timer for the
//! next nominal time of each. When it is due, the pushes and the advance of the entry go into one
//! group: over any crash a nominal time has pushed its job, or is still to come. No time at or
//! before the last one ever comes again, so that a wall clock that is set back is waited for.
//! Which instants an expression names is decided in `rule`; entries of the configuration come by
//! [`mod@file`].

pub mod file;
mod rule;

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use foldhash::HashMap;
use ganger_protocol::{
    CronName, DurationMs, ErrorCode, JobId, JobSpec, NamespaceName, Timestamp, WireError,
    cron::{self, CronSet, CronView, Misfire, Overlap},
    event::EventName,
    limits::CRON_MISFIRE_DEFAULT,
    request::{CronList, CronNames, CronRun, CronShow},
    response::{CronRunReply, CronsReply, Done, ReplyBody},
};

use self::rule::Rule;
use crate::{
    Engine,
    command::{Now, Origin, Outcome},
    events::Subject,
    facts::{Facts, Need},
    records::{
        Content, CronNumber, CronRecord, CronTimes, INLINE_BYTES_MAX, QueueNumber, Timer, TimerKind,
    },
};

/// A time that is reached later than this was missed. A restart or a stall takes less.
const LATE_MAX: DurationMs = DurationMs::from_mins(1);

/// Next times that the reply to `cron_set` has.
const NEXT_SHOWN: u32 = 5;

/// Bytes kept of the reason of a refusal.
const REFUSED_BYTES_MAX: usize = 256;

/// All entries of the shard.
#[derive(Debug, Default)]
pub(crate) struct Crons {
    entries: BTreeMap<CronNumber, Entry>,
    names: BTreeMap<NamespaceName, BTreeMap<CronName, CronNumber>>,
    /// Entries with a queued time, by the job that it waits for.
    waiting: HashMap<JobId, CronNumber>,
}

#[derive(Debug)]
struct Entry {
    record: CronRecord,
    /// None when this release cannot compute the times any more.
    rule: Option<Rule>,
}

impl Crons {
    /// Takes an entry in as the store has it.
    pub(crate) fn recover(&mut self, record: CronRecord) {
        let rule = Rule::of(&record.times);
        self.insert(record, rule);
    }

    fn insert(&mut self, record: CronRecord, rule: Option<Rule>) {
        if let (Some(job), Some(_)) = (record.last_job, record.queued_at) {
            self.waiting.insert(job, record.number);
        }
        let names = self.names.entry(record.namespace.clone()).or_default();
        names.insert(record.name.clone(), record.number);
        self.entries.insert(record.number, Entry { record, rule });
    }

    fn remove(&mut self, number: CronNumber) {
        let Some(Entry { record, .. }) = self.entries.remove(&number) else {
            return;
        };
        if let Some(names) = self.names.get_mut(&record.namespace) {
            names.remove(&record.name);
            if names.is_empty() {
                self.names.remove(&record.namespace);
            }
        }
        self.waiting.retain(|_, waiting| *waiting != number);
    }

    fn named(&self, namespace: &NamespaceName, name: &CronName) -> Result<CronNumber, WireError> {
        let number = self.names.get(namespace).and_then(|names| names.get(name));
        number.copied().ok_or_else(|| WireError {
            field: Some("name".to_owned()),
            ..WireError::new(
                ErrorCode::NotFound,
                format!("there is no cron entry {name}"),
            )
        })
    }

    /// The record of an entry.
    pub(crate) fn record(&self, number: CronNumber) -> Option<&CronRecord> {
        self.entries.get(&number).map(|entry| &entry.record)
    }

    /// All records.
    pub(crate) fn records(&self) -> impl Iterator<Item = &CronRecord> {
        self.entries.values().map(|entry| &entry.record)
    }

    /// Whether names and waiting entries are those that the records tell of.
    pub(crate) fn is_consistent(&self) -> bool {
        let named: usize = self.names.values().map(BTreeMap::len).sum();
        let queued = |record: &&CronRecord| record.queued_at.is_some();
        named == self.entries.len()
            && self.waiting.len() == self.records().filter(queued).count()
            && self.records().all(|record| {
                let number = Some(&record.number);
                let names = self.names.get(&record.namespace);
                names.and_then(|names| names.get(&record.name)) == number
                    && (record.queued_at.is_none()
                        || record.last_job.and_then(|job| self.waiting.get(&job)) == number)
            })
    }
}

impl Entry {
    /// The nominal times from the next one to now for which a job is pushed, the oldest first, and
    /// the latest of all that have passed.
    fn passed(&self, now: Timestamp) -> Option<(Vec<Timestamp>, Timestamp)> {
        let rule = self.rule.as_ref()?;
        let first = self.record.next_at?;
        let behind = Timestamp(first.0.saturating_sub(1));
        let latest = rule.last_within(behind, now).unwrap_or(first);
        let mut times = vec![latest];
        match self.record.misfire {
            Misfire::Once => {}
            Misfire::Skip if now.since(latest) > LATE_MAX => times.clear(),
            Misfire::Skip => {}
            Misfire::All => {
                let mut earliest = latest;
                while times.len() < self.record.misfire_max as usize && earliest > first {
                    let until = Timestamp(earliest.0 - 1);
                    let Some(earlier) = rule.last_within(behind, until) else {
                        break;
                    };
                    times.push(earlier);
                    earliest = earlier;
                }
                times.reverse();
            }
        }
        Some((times, latest))
    }

    /// The next nominal time from an instant on, never at or before the last one.
    fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let last = self.record.last_at.unwrap_or_default();
        self.rule.as_ref()?.after(now.max(last))
    }

    /// The entry with so many of its next times.
    fn view(&self, next: u32) -> CronView {
        let record = &self.record;
        let later = |at: &Timestamp| self.rule.as_ref()?.after(*at);
        let next = std::iter::successors(record.next_at, later).take(next as usize);
        let (expression, timezone, every_ms) = match &record.times {
            CronTimes::Every(distance) => (None, None, Some(*distance)),
            CronTimes::Expression {
                expression,
                timezone,
            } => (Some(expression.clone()), Some(timezone.clone()), None),
        };
        CronView {
            name: record.name.clone(),
            expression,
            every_ms,
            timezone,
            job: record.job(),
            misfire: record.misfire,
            misfire_max: (record.misfire == Misfire::All).then_some(record.misfire_max),
            overlap: record.overlap,
            jitter_ms: record.jitter_ms,
            paused: record.paused,
            from_file: record.from_file,
            next_at: next.collect(),
            last_at: record.last_at,
            last_job: record.last_job,
            queued_at: record.queued_at,
            pushed: record.pushed,
            skipped: record.skipped,
            refused: Some(record.refused.clone()).filter(|reason| !reason.is_empty()),
        }
    }
}

impl CronRecord {
    /// A new entry, which has no next time yet.
    fn of(number: CronNumber, namespace: NamespaceName, times: CronTimes, set: CronSet) -> Self {
        Self {
            number,
            namespace,
            name: set.name,
            times,
            misfire: set.misfire,
            misfire_max: set.misfire_max.unwrap_or(CRON_MISFIRE_DEFAULT),
            overlap: set.overlap,
            jitter_ms: set.jitter_ms,
            paused: set.paused.unwrap_or(false),
            from_file: false,
            queue: set.job.queue.clone(),
            priority: set.job.priority,
            content: Arc::new(Content::from(set.job)),
            next_at: None,
            last_at: None,
            last_job: None,
            queued_at: None,
            pushed: 0,
            skipped: 0,
            refused: String::new(),
        }
    }

    /// Takes over how far the entry has come that this one replaces, and its pause unless another is
    /// wanted.
    fn go_on_from(&mut self, before: &Self, paused: Option<bool>) {
        self.paused = paused.unwrap_or(before.paused);
        let is_queued = self.overlap == Overlap::QueueOne && !self.paused;
        self.queued_at = before.queued_at.filter(|_| is_queued);
        self.next_at = before.next_at;
        self.last_at = before.last_at;
        self.last_job = before.last_job;
        self.pushed = before.pushed;
        self.skipped = before.skipped;
    }

    /// The job as it was set.
    fn job(&self) -> JobSpec {
        self.content.to_spec(self.queue.clone(), self.priority)
    }

    /// The job for a nominal time, due when its jitter has passed.
    fn job_at(&self, at: Timestamp) -> JobSpec {
        let mut job = self.job();
        job.headers.extend(cron::headers_of(&self.name, at));
        job.run_at = Some(at.plus(self.jitter()));
        job
    }

    /// How much later than its nominal time each job of this entry runs.
    fn jitter(&self) -> DurationMs {
        let text = [self.namespace.as_str(), "\0", self.name.as_str()];
        // FNV-1a: the same on every machine and in every release.
        let hash = text
            .iter()
            .flat_map(|part| part.bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        DurationMs(hash % (self.jitter_ms.0 + 1))
    }
}

impl Engine {
    pub(crate) fn cron_set(
        &mut self,
        now: Now,
        origin: &Origin,
        set: CronSet,
    ) -> Result<ReplyBody, WireError> {
        let (rule, times) = times_of(&set)?;
        let before = self.crons.named(&origin.namespace, &set.name).ok();
        let before = before.and_then(|number| self.crons.record(number)).cloned();
        let last = before.as_ref().and_then(|before| before.last_at);
        let Some(first) = rule.after(now.wall.max(last.unwrap_or_default())) else {
            return Err(never());
        };
        if let Some(before) = &before {
            before.check_changeable()?;
        }
        let number = match &before {
            Some(before) => before.number,
            None => self.new_cron()?,
        };
        let (namespace, paused) = (origin.namespace.clone(), set.paused);
        let record = CronRecord::of(number, namespace, times, set);
        let bytes = record.content.bound_bytes();
        if bytes > INLINE_BYTES_MAX {
            return Err(WireError::too_large("job", INLINE_BYTES_MAX, bytes));
        }
        self.queue_for_push(&origin.namespace, &record.queue)
            .map_err(|error| error.within("job"))?;
        self.put_cron(record, Some(rule), Some(first), before, paused);
        self.view_of(number, NEXT_SHOWN)
    }

    /// Puts an entry in the place of the one that it replaces. Its next time is `first`, unless that
    /// one waits for one of the same times.
    fn put_cron(
        &mut self,
        mut record: CronRecord,
        rule: Option<Rule>,
        first: Option<Timestamp>,
        before: Option<CronRecord>,
        paused: Option<bool>,
    ) {
        let (number, mut next_at) = (record.number, first);
        if let Some(before) = before {
            let unchanged = before.next_at.filter(|_| before.times == record.times);
            next_at = unchanged.or(next_at);
            record.go_on_from(&before, paused);
            self.crons.remove(number);
        }
        let paused = record.paused;
        self.crons.insert(record, rule);
        self.set_next_time(number, next_at.filter(|_| !paused));
    }

    fn remove_cron(&mut self, number: CronNumber) {
        self.set_next_time(number, None);
        self.crons.remove(number);
    }

    /// The number of an entry to come, when there is room for one.
    fn new_cron(&mut self) -> Result<CronNumber, WireError> {
        let (count, max) = (self.crons.entries.len(), self.options.crons_max);
        if count < max {
            return Ok(CronNumber(self.take_number().0));
        }
        Err(WireError {
            field: Some("name".to_owned()),
            limit: Some(max as u64),
            actual: Some(count as u64 + 1),
            ..WireError::new(
                ErrorCode::TooLarge,
                format!("a shard has at most {max} cron entries; delete some"),
            )
        })
    }

    pub(crate) fn cron_delete(
        &mut self,
        origin: &Origin,
        names: &CronNames,
    ) -> Result<ReplyBody, WireError> {
        for number in self.crons_to_change(origin, names)? {
            self.remove_cron(number);
        }
        Ok(ReplyBody::Done(Done {}))
    }

    pub(crate) fn cron_pause(
        &mut self,
        origin: &Origin,
        names: &CronNames,
    ) -> Result<ReplyBody, WireError> {
        for number in self.crons_to_change(origin, names)? {
            self.drop_queued(number);
            if let Some(entry) = self.crons.entries.get_mut(&number) {
                entry.record.paused = true;
            }
            self.set_next_time(number, None);
        }
        Ok(ReplyBody::Done(Done {}))
    }

    pub(crate) fn cron_resume(
        &mut self,
        now: Now,
        origin: &Origin,
        names: &CronNames,
    ) -> Result<ReplyBody, WireError> {
        for number in self.crons_to_change(origin, names)? {
            let Some(entry) = self.crons.entries.get_mut(&number) else {
                continue;
            };
            if std::mem::take(&mut entry.record.paused) {
                let next = entry.next_after(now.wall);
                self.set_next_time(number, next);
            }
        }
        Ok(ReplyBody::Done(Done {}))
    }

    pub(crate) fn cron_run(
        &mut self,
        now: Now,
        origin: &Origin,
        run: &CronRun,
        outcome: &mut Outcome,
    ) -> Result<ReplyBody, WireError> {
        let number = self.crons.named(&origin.namespace, &run.name)?;
        let record = self.crons.record(number).ok_or_else(no_longer_there)?;
        let mut job = record.job();
        job.headers.extend(cron::headers_of(&run.name, now.wall));
        let id = self.push_plain(now, &origin.namespace, job)?;
        self.tell_cron_pushed(now, number, id);
        let queue = QueueNumber(id.birth().queue);
        self.offer_all(now, std::iter::once(queue), outcome);
        Ok(ReplyBody::CronRun(CronRunReply { id }))
    }

    pub(crate) fn cron_show(
        &self,
        origin: &Origin,
        show: &CronShow,
    ) -> Result<ReplyBody, WireError> {
        let number = self.crons.named(&origin.namespace, &show.name)?;
        self.view_of(number, show.next)
    }

    pub(crate) fn cron_list(
        &self,
        origin: &Origin,
        list: &CronList,
    ) -> Result<ReplyBody, WireError> {
        let cursor = list.cursor.as_deref().map(str::parse::<CronName>);
        let cursor = cursor.transpose().map_err(|_not_ours| {
            let message = "the cursor is not one that this list has given";
            WireError::bad_request("cursor", message)
        })?;
        let Some(names) = self.crons.names.get(&origin.namespace) else {
            return Ok(ReplyBody::Crons(CronsReply {
                entries: Vec::new(),
                cursor: None,
            }));
        };
        let from = cursor.map_or(Unbounded, Excluded);
        let mut numbers = names.range((from, Unbounded)).map(|(_, number)| number);
        let page = numbers.by_ref().take(list.limit as usize);
        let entries: Vec<CronView> = page
            .filter_map(|number| self.crons.entries.get(number))
            .map(|entry| entry.view(1))
            .collect();
        let last = entries.last().map(|entry| entry.name.to_string());
        let cursor = last.filter(|_| numbers.next().is_some());
        Ok(ReplyBody::Crons(CronsReply { entries, cursor }))
    }

    fn view_of(&self, number: CronNumber, next: u32) -> Result<ReplyBody, WireError> {
        let entry = self.crons.entries.get(&number);
        let view = entry.ok_or_else(no_longer_there)?.view(next);
        Ok(ReplyBody::Cron(Box::new(view)))
    }

    fn crons_to_change(
        &self,
        origin: &Origin,
        names: &CronNames,
    ) -> Result<Vec<CronNumber>, WireError> {
        let names = names.names.iter();
        names
            .map(|name| {
                let number = self.crons.named(&origin.namespace, name)?;
                let record = self.crons.record(number).ok_or_else(no_longer_there)?;
                record.check_changeable().map(|()| number)
            })
            .collect()
    }

    /// The entry has changed: its next time is this one, and its record is written.
    fn set_next_time(&mut self, number: CronNumber, next: Option<Timestamp>) {
        let Some(entry) = self.crons.entries.get_mut(&number) else {
            return;
        };
        let bytes = entry.record.content.bound_bytes();
        self.group.touch_cron(number, bytes);
        let before = std::mem::replace(&mut entry.record.next_at, next);
        if before == next {
            return;
        }
        if let Some(at) = before {
            self.unset_timer(timer(number, at));
        }
        if let Some(at) = next {
            self.set_timer(timer(number, at));
        }
    }

    /// What must be read before the timer of an entry can fire.
    pub(crate) fn need_of_cron(&self, timer: &Timer) -> Option<Need> {
        let record = self.crons.record(number_of(timer))?;
        match record.overlap {
            Overlap::Allow => None,
            Overlap::Skip | Overlap::QueueOne => self.need_of_job(record.last_job?, false),
        }
    }

    /// A nominal time has come: pushes what the entry asks for, and advances it; the queue that got
    /// a job by it.
    pub(crate) fn fire_cron(
        &mut self,
        now: Now,
        timer: &Timer,
        facts: &Facts,
    ) -> Option<QueueNumber> {
        let number = number_of(timer);
        let entry = self.crons.entries.get(&number)?;
        if entry.record.next_at != Some(timer.at) {
            return None;
        }
        let Some((times, latest)) = entry.passed(now.wall) else {
            self.refuse(number, "this release cannot compute its times any more");
            self.set_next_time(number, None);
            return None;
        };
        let mut is_live = match (entry.record.overlap, entry.record.last_job) {
            (Overlap::Skip | Overlap::QueueOne, Some(job)) => self.is_live(job, facts),
            (Overlap::Allow, _) | (_, None) => false,
        };
        let mut touched = None;
        for at in times {
            let queue = self.push_or_leave(now, number, at, is_live);
            is_live |= queue.is_some();
            touched = queue.or(touched);
        }
        let entry = self.crons.entries.get_mut(&number)?;
        entry.record.last_at = Some(latest);
        let next = entry.next_after(latest);
        self.set_next_time(number, next);
        touched
    }

    /// Pushes the job of a nominal time, unless the overlap with the last one forbids it; the queue
    /// that got it.
    fn push_or_leave(
        &mut self,
        now: Now,
        number: CronNumber,
        at: Timestamp,
        is_live: bool,
    ) -> Option<QueueNumber> {
        let record = &mut self.crons.entries.get_mut(&number)?.record;
        match record.overlap {
            Overlap::Skip if is_live => {
                record.skipped += 1;
                None
            }
            Overlap::QueueOne if is_live => {
                record.skipped += u64::from(record.queued_at.replace(at).is_some());
                self.crons.waiting.insert(record.last_job?, number);
                None
            }
            Overlap::Allow | Overlap::Skip | Overlap::QueueOne => {
                self.drop_queued(number);
                self.push_of(now, number, at)
            }
        }
    }

    /// Pushes the job of a nominal time; the queue that got it.
    fn push_of(&mut self, now: Now, number: CronNumber, at: Timestamp) -> Option<QueueNumber> {
        let record = self.crons.record(number)?;
        let (namespace, job) = (record.namespace.clone(), record.job_at(at));
        match self.push_plain(now, &namespace, job) {
            Ok(id) => {
                let record = &mut self.crons.entries.get_mut(&number)?.record;
                record.pushed += 1;
                record.last_job = Some(id);
                record.refused.clear();
                self.tell_cron_pushed(now, number, id);
                Some(QueueNumber(id.birth().queue))
            }
            Err(error) => {
                self.refuse(number, &error.to_string());
                None
            }
        }
    }

    fn tell_cron_pushed(&mut self, now: Now, number: CronNumber, job: JobId) {
        let Some(entry) = self
            .crons
            .entries
            .get(&number)
            .filter(|_| self.is_watched())
        else {
            return;
        };
        let (name, kind) = (entry.record.name.clone(), entry.record.job().kind);
        let subject = Subject {
            queue: QueueNumber(job.birth().queue),
            job,
            kind: Some(&kind),
            batch: None,
            attempt: 0,
        };
        self.tell_more(now, EventName::CronPushed, subject, (None, None), |event| {
            event.cron = Some(name);
        });
    }

    fn refuse(&mut self, number: CronNumber, reason: &str) {
        if let Some(entry) = self.crons.entries.get_mut(&number) {
            let end = reason.floor_char_boundary(REFUSED_BYTES_MAX);
            entry.record.skipped += 1;
            entry.record.refused = reason.get(..end).unwrap_or_default().to_owned();
        }
    }

    /// The queued time of an entry will push nothing.
    fn drop_queued(&mut self, number: CronNumber) {
        if let Some(entry) = self.crons.entries.get_mut(&number)
            && entry.record.queued_at.take().is_some()
        {
            entry.record.skipped += 1;
            self.crons.waiting.retain(|_, waiting| *waiting != number);
        }
    }

    fn is_live(&self, job: JobId, facts: &Facts) -> bool {
        let record = self.lookup(job, facts);
        record.is_some_and(|record| !record.state.is_terminal())
    }

    /// A job is over. Every transition into a terminal state, and out of all, says so here: what an
    /// entry has queued behind it is pushed in the same group.
    pub(crate) fn job_is_over(&mut self, now: Now, job: JobId) {
        if self.crons.waiting.is_empty() {
            return;
        }
        let Some(number) = self.crons.waiting.remove(&job) else {
            return;
        };
        let entry = self.crons.entries.get_mut(&number);
        let Some((at, next)) = entry.and_then(|entry| {
            let at = entry.record.queued_at.take()?;
            Some((at, entry.record.next_at))
        }) else {
            return;
        };
        let touched = self.push_of(now, number, at);
        self.set_next_time(number, next);
        // The next tick, which is due at once, offers it to whoever waits.
        self.unserved.extend(touched);
    }
}

fn times_of(set: &CronSet) -> Result<(Rule, CronTimes), WireError> {
    match (&set.expression, set.every_ms) {
        (Some(expression), _) => Rule::of_expression(expression, set.timezone.as_deref()),
        (None, Some(every)) => Ok((Rule::Every(every), CronTimes::Every(every))),
        (None, None) => Err(WireError::bad_request("expression", "no times are named")),
    }
}

/// The timer of an entry's next time.
pub(crate) fn timer(number: CronNumber, at: Timestamp) -> Timer {
    let mut id = [0; JobId::BYTES];
    id[16..].copy_from_slice(&number.0.to_be_bytes());
    Timer {
        at,
        what: TimerKind::Cron,
        id,
    }
}

fn number_of(timer: &Timer) -> CronNumber {
    let [.., a, b, c, d, e, f, g, h] = timer.id;
    CronNumber(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

fn never() -> WireError {
    let message = "none of its times comes within four years";
    WireError::bad_request("expression", message)
}

fn no_longer_there() -> WireError {
    WireError::new(ErrorCode::NotFound, "the cron entry is gone")
}
