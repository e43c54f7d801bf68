//! Push: jobs get their ids and places, numbered pushes their outcome slots.
//!
//! The outcome of a numbered push is written in the push's own group, so that a push that is sent
//! again finds it or was never applied.

use std::{collections::BTreeMap, sync::Arc};

use foldhash::HashMap;
use ganger_protocol::{
    DurationMs, ErrorCode, JobId, JobSpec, NamespaceName, QueueName, Timestamp, WireError,
    event::EventName,
    job::{JobState, OnConflict, Unique},
    limits::{PRIORITY_DEFAULT, PRODUCER_UNANSWERED_MAX},
    request::Push,
    response::{Counters, PushReply, PushResult, ReplyBody},
    workflow::{Awaited, needs_atomic},
};

use crate::{
    Engine,
    command::{Now, Origin, Outcome, Producer},
    events::Subject,
    facts::{Fact, Facts, Need},
    job::is_legal,
    records::{
        Content, Entry, JobRecord, Lane, OutcomeRange, OutcomeRecord, PackedJob, ProducerNumber,
        QueueNumber, QueueRecord, Timer, TimerKind, UniqueKey,
    },
    unique,
    window::{Head, HeadJob},
};

/// How long a producer may be idle before its outcomes are forgotten.
pub const PRODUCER_IDLE_MAX: DurationMs = DurationMs::from_hours(24);

/// Bytes of a refusal's message that are kept in an outcome.
const REFUSAL_BYTES_MAX: usize = 256;

/// What is known of the producers that have pushed since the start: the highest number and when.
#[derive(Debug, Default)]
pub(crate) struct Producers(HashMap<ProducerNumber, (u64, Timestamp)>);

impl Producers {
    pub(crate) fn forget(&mut self, producer: ProducerNumber) {
        self.0.remove(&producer);
    }

    pub(crate) fn find(&self, producer: ProducerNumber) -> Option<(u64, Timestamp)> {
        self.0.get(&producer).copied()
    }
}

impl Engine {
    pub(crate) fn needs_of_push(&self, origin: &Origin, push: &Push, facts: &Facts) -> Vec<Need> {
        let mut needs = Vec::new();
        if let (Some(seq), Some(producer)) = (push.seq, origin.producer) {
            match self.newest_sequence(producer.number, facts) {
                None => needs.push(Need::Producer(producer.number)),
                Some(Some((newest, _))) if seq <= newest => needs.push(Need::Outcome {
                    producer: producer.number,
                    slot: slot(seq),
                }),
                Some(_) => {}
            }
        }
        let keys = push.jobs.iter().filter_map(|job| job.key.as_ref());
        needs.extend(keys.filter_map(|key| self.need_of_sequence(&origin.namespace, key)));
        let unique = push.jobs.iter().filter(|job| job.unique.is_some());
        needs.extend(unique.flat_map(|job| self.needs_of_unique(origin, job, facts)));
        let batches = push.jobs.iter().filter_map(|job| job.batch);
        needs.extend(self.needs_to_join(batches, push.by));
        if push.atomic {
            needs.extend(self.needs_of_after(&push.jobs, facts));
        }
        needs
    }

    pub(crate) fn push(
        &mut self,
        now: Now,
        origin: &Origin,
        mut push: Push,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> Result<ReplyBody, WireError> {
        if let (Some(seq), Some(producer)) = (push.seq, origin.producer)
            && let Some(results) = self.earlier_outcome(now, producer, seq, facts)?
        {
            return Ok(ReplyBody::Push(PushReply { results }));
        }
        let awaited = match push.atomic {
            true => self.check_all(now, origin, &push, facts)?,
            false => Vec::new(),
        };
        let mut touched = Vec::new();
        let mut results = Vec::with_capacity(push.jobs.len());
        let spread = Spread {
            over: push.spread_ms.unwrap_or_default(),
            jobs: push.jobs.len(),
        };
        for (nth, job) in push.jobs.iter_mut().enumerate() {
            let result = match job.batch {
                _ if !job.after.is_empty() && !push.atomic => Err(needs_atomic()),
                None => self.push_job(now, origin, job, spread.of(nth), facts),
                Some(batch) => {
                    let later = (job, spread.of(nth));
                    self.push_member(now, origin, (batch, push.by), later, facts)
                }
            };
            let result = match result {
                Ok(result) => result,
                Err(error) => Err(error).into(),
            };
            if let Some(id) = &result.id {
                let queue = match result.existing {
                    false => QueueNumber(id.birth().queue),
                    true => self.queue_of_holder(*id),
                };
                if !touched.contains(&queue) {
                    touched.push(queue);
                }
            }
            results.push(result);
        }
        self.link(now, &awaited, &results, facts);
        if let (Some(seq), Some(producer)) = (push.seq, origin.producer)
            && !touched.is_empty()
        {
            self.keep_outcome(now, producer, seq, &results, facts);
        }
        self.offer_all(now, touched.into_iter(), outcome);
        Ok(ReplyBody::Push(PushReply { results }))
    }

    /// Pushes one job, unless somebody holds its unique key.
    pub(crate) fn push_job(
        &mut self,
        now: Now,
        origin: &Origin,
        spec: &mut JobSpec,
        later_by: DurationMs,
        facts: &Facts,
    ) -> Result<PushResult, WireError> {
        spec.check(&self.options.limits)?;
        let due = due_of(spec, now).plus(later_by);
        let unique = spec.unique.clone();
        let key = unique
            .as_deref()
            .map(|unique| self.key_of_spec(origin, spec, unique));
        if let Some(holder) = key.and_then(|key| self.holder(now, key, facts)) {
            return self.meet_holder(now, holder.job, spec, due, facts);
        }
        let id = self.add_within_quota(now, &origin.namespace, spec, due)?;
        if let (Some(key), Some(unique)) = (key, unique) {
            self.take_key(now, key, id, &unique, facts);
        }
        Ok(Ok(id).into())
    }

    /// Pushes one job that has no unique key.
    ///
    /// # Errors
    /// As the push of a client.
    pub(crate) fn push_plain(
        &mut self,
        now: Now,
        namespace: &NamespaceName,
        mut spec: JobSpec,
    ) -> Result<JobId, WireError> {
        spec.check(&self.options.limits)?;
        let due = due_of(&spec, now);
        self.add_within_quota(now, namespace, &mut spec, due)
    }

    /// Adds one job, if its queue takes one more. The content is taken out of what was pushed.
    fn add_within_quota(
        &mut self,
        now: Now,
        namespace: &NamespaceName,
        spec: &mut JobSpec,
        due: Timestamp,
    ) -> Result<JobId, WireError> {
        let queue = self.queue_for_push(namespace, &spec.queue)?;
        self.check_quota(queue, 1)?;
        Ok(self.add_job_to(now, queue, spec, due))
    }

    /// Adds one job, whatever the quota of its queue.
    pub(crate) fn add_job(
        &mut self,
        now: Now,
        namespace: &NamespaceName,
        mut spec: JobSpec,
        due: Timestamp,
    ) -> Result<JobId, WireError> {
        let queue = self.queue_for_push(namespace, &spec.queue)?;
        Ok(self.add_job_to(now, queue, &mut spec, due))
    }

    fn add_job_to(
        &mut self,
        now: Now,
        queue: QueueNumber,
        spec: &mut JobSpec,
        due: Timestamp,
    ) -> JobId {
        let priority = spec.priority.unwrap_or(PRIORITY_DEFAULT);
        let waits_for = u32::try_from(spec.after.len()).unwrap_or(u32::MAX);
        let mut lane = Lane {
            queue,
            priority,
            lane: 0,
        };
        let is_ready = waits_for == 0 && due <= now.wall;
        if let Some(key) = spec.key.as_ref().filter(|_| is_ready) {
            lane.lane = self.lane_to_join(queue, priority, key);
        }
        let content = Arc::new(Content::take_from(spec));
        let spilled_parts = content.spilled_parts();
        let packed = PackedJob {
            pushed_at: now.wall,
            spilled_parts,
            content: Some(Arc::clone(&content)),
        };
        let (id, stand) = match waits_for {
            0 if is_ready => (self.push_ready(lane, packed), (JobState::Ready, None)),
            0 => {
                let stand = (JobState::Scheduled, Some(due));
                (self.push_later(lane, due, packed), stand)
            }
            _ => {
                let run_at = Some(due).filter(|due| *due > now.wall);
                let id = self.push_blocked(lane, (waits_for, run_at), packed);
                (id, (JobState::Blocked, None))
            }
        };
        let subject = Subject::of_content(queue, id, &content);
        self.tell(now, EventName::Pushed, subject, (Some(stand.0), stand.1));
        if spilled_parts > 0 {
            self.group.put_content(id, Arc::clone(&content));
        }
        self.watch_expiry(id, content.expires_at);
        id
    }

    fn push_ready(&mut self, lane: Lane, packed: PackedJob) -> JobId {
        let (head, group) = (&mut self.head, &mut self.group);
        let entry = Entry::Job(packed.clone());
        let place = group.append(lane, entry, || head.position_at_tail());
        let id = place.job_id(self.options.shard);
        self.count(lane.queue, None, Some(JobState::Ready));
        self.queue_head(Head {
            place,
            id,
            group: self.group.number,
            job: HeadJob::Packed(packed),
        });
        id
    }

    fn push_later(&mut self, lane: Lane, due: Timestamp, packed: PackedJob) -> JobId {
        let lane = Lane {
            lane: Lane::SCHEDULED,
            ..lane
        };
        let (head, group) = (&mut self.head, &mut self.group);
        let entry = Entry::Scheduled(due, packed);
        let place = group.append(lane, entry, || head.position_at_tail());
        let id = place.job_id(self.options.shard);
        self.count(lane.queue, None, Some(JobState::Scheduled));
        self.set_timer(self.run_due(place.run, due));
        id
    }

    /// A job that waits for so many others, and then for its time.
    fn push_blocked(
        &mut self,
        lane: Lane,
        (waits_for, run_at): (u32, Option<Timestamp>),
        packed: PackedJob,
    ) -> JobId {
        let (head, group) = (&mut self.head, &mut self.group);
        let place = group.birth(lane, || head.position_at_tail());
        let id = place.job_id(self.options.shard);
        let record = JobRecord {
            state: JobState::Blocked,
            run_at,
            place: None,
            waits_for,
            ..JobRecord::fresh(id, place, packed)
        };
        self.count(lane.queue, None, Some(JobState::Blocked));
        self.group.put_job(Box::new(record));
        id
    }

    /// Counts a transition. Every change of a job's state goes through here.
    pub(crate) fn count(
        &mut self,
        queue: QueueNumber,
        from: Option<JobState>,
        to: Option<JobState>,
    ) {
        debug_assert!(
            is_legal(from, to),
            "{from:?} to {to:?} is no legal transition"
        );
        let Some(queue) = self.queues.find_mut(queue) else {
            return;
        };
        self.group.queues.insert(queue.record.number);
        if queue.limit.is_some() && from == Some(JobState::Leased) {
            self.awakened.insert(queue.record.number);
        }
        if let Some(count) = from.and_then(|from| queue.count_mut(from)) {
            *count -= 1;
        }
        if let Some(count) = to.and_then(|to| queue.count_mut(to)) {
            *count += 1;
        }
        let counters = &mut queue.record.counters;
        match (from, to) {
            (None, Some(_)) => counters.pushed += 1,
            (Some(_), Some(JobState::Done)) => counters.done += 1,
            (Some(_), Some(JobState::Cancelled)) => counters.cancelled += 1,
            (Some(_), Some(JobState::Expired)) => counters.expired += 1,
            (Some(_), Some(JobState::Leased)) => counters.granted += 1,
            (Some(_), None) => counters.deleted += 1,
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    pub(crate) fn set_timer(&mut self, timer: Timer) {
        self.group.set_timer(timer, true);
        self.schedule.insert(timer);
    }

    pub(crate) fn unset_timer(&mut self, timer: Timer) {
        self.group.set_timer(timer, false);
        self.schedule.remove(&timer);
    }

    /// The queue of this name, made when it does not exist.
    pub(crate) fn queue_for_push(
        &mut self,
        namespace: &NamespaceName,
        name: &QueueName,
    ) -> Result<QueueNumber, WireError> {
        if let Some(queue) = self.queues.named(namespace, name) {
            return Ok(queue.record.number);
        }
        self.check_room(namespace)?;
        Ok(self.make_queue(namespace, name))
    }

    pub(crate) fn make_queue(
        &mut self,
        namespace: &NamespaceName,
        name: &QueueName,
    ) -> QueueNumber {
        let number = QueueNumber(self.head.next_queue);
        self.head.next_queue += 1;
        self.group.queues.insert(number);
        self.queues.insert(QueueRecord {
            number,
            namespace: namespace.clone(),
            name: name.clone(),
            paused: false,
            paused_until: None,
            is_purged: false,
            jobs_max: None,
            timeout_ms: None,
            backoff: None,
            dead_max: None,
            dead_retention_ms: None,
            retain_ms: None,
            retained_max: None,
            counters: Counters::default(),
        });
        self.limit_queue(number);
        self.stand_in(number);
        number
    }

    fn check_room(&self, namespace: &NamespaceName) -> Result<(), WireError> {
        let (queues, max) = (self.queues.count(), self.options.queues_max);
        if queues >= max {
            return Err(WireError::too_large("queue", max, queues + 1));
        }
        let (namespaces, max) = (self.queues.namespaces(), self.options.namespaces_max);
        if namespaces >= max && !self.queues.has_namespace(namespace) {
            return Err(WireError::too_large("namespace", max, namespaces + 1));
        }
        Ok(())
    }

    /// Whether all jobs of an atomic push can be applied; what each of them waits for, nothing when
    /// none does.
    fn check_all(
        &self,
        now: Now,
        origin: &Origin,
        push: &Push,
        facts: &Facts,
    ) -> Result<Vec<Vec<Awaited>>, WireError> {
        let jobs = &push.jobs;
        let mut keys = BTreeMap::new();
        for (nth, job) in jobs.iter().enumerate() {
            let checked = job.check(&self.options.limits);
            let checked =
                checked.and_then(
                    |()| match self.queues.named(&origin.namespace, &job.queue) {
                        Some(_) => Ok(()),
                        None => self.check_room(&origin.namespace),
                    },
                );
            let checked = checked.and_then(|()| match job.unique.as_deref() {
                Some(unique) => self.check_key(now, (origin, nth, job), unique, &mut keys, facts),
                None => Ok(()),
            });
            let checked = checked.and_then(|()| self.check_joins_of(origin, push, job, facts));
            checked.map_err(|error| error.within(&format!("jobs[{nth}]")))?;
        }
        let awaited = self.check_awaited(origin, jobs, facts)?;
        self.check_quotas(origin, jobs)?;
        let is_new = |job: &&JobSpec| self.queues.named(&origin.namespace, &job.queue).is_none();
        let new: std::collections::BTreeSet<_> =
            jobs.iter().filter(is_new).map(|job| &job.queue).collect();
        let (queues, max) = (self.queues.count() + new.len(), self.options.queues_max);
        if queues > max {
            return Err(WireError::too_large("queue", max, queues));
        }
        Ok(awaited)
    }

    /// Whether all jobs of an atomic push may wait in their queues. One that meets the holder of its
    /// unique key is counted too.
    fn check_quotas(&self, origin: &Origin, jobs: &[JobSpec]) -> Result<(), WireError> {
        let mut more: BTreeMap<QueueNumber, u64> = BTreeMap::new();
        for (nth, job) in jobs.iter().enumerate() {
            if let Some(queue) = self.queues.named(&origin.namespace, &job.queue) {
                let more = more.entry(queue.record.number).or_default();
                *more += 1;
                self.check_quota(queue.record.number, *more)
                    .map_err(|error| error.within(&format!("jobs[{nth}]")))?;
            }
        }
        Ok(())
    }

    /// Whether a job of an atomic push is not refused for its unique key, which a job in front of
    /// it may take.
    fn check_key(
        &self,
        now: Now,
        (origin, nth, job): (&Origin, usize, &JobSpec),
        unique: &Unique,
        taken: &mut BTreeMap<UniqueKey, usize>,
        facts: &Facts,
    ) -> Result<(), WireError> {
        let key = self.key_of_spec(origin, job, unique);
        let earlier = taken.get(&key).copied();
        taken.entry(key).or_insert(nth);
        // Whoever waits for a job of a workflow waits for that one and for no other.
        let on_conflict = match job.is_node() {
            true => OnConflict::Reject,
            false => unique.on_conflict,
        };
        match (on_conflict, self.holder(now, key, facts), earlier) {
            (OnConflict::Reject, Some(holder), _) => Err(unique::conflict(holder.job)),
            (OnConflict::Reject, None, Some(earlier)) => Err(WireError {
                field: Some("unique".to_owned()),
                ..WireError::new(
                    ErrorCode::Conflict,
                    format!("jobs[{earlier}] of the same push takes the unique key"),
                )
            }),
            (OnConflict::Reject, None, None) | (OnConflict::Existing | OnConflict::Replace, ..) => {
                Ok(())
            }
        }
    }

    /// The highest sequence of a producer: `None` asks for the fact, `Some(None)`: no records.
    #[expect(
        clippy::option_option,
        reason = "unknown, and known to be nothing, differ"
    )]
    fn newest_sequence(
        &self,
        producer: ProducerNumber,
        facts: &Facts,
    ) -> Option<Option<(u64, Timestamp)>> {
        if let Some(known) = self.producers.find(producer) {
            return Some(Some(known));
        }
        if self.group.forgets(producer) {
            return Some(None);
        }
        match facts.find(&Need::Producer(producer)) {
            Some(Fact::Producer(newest)) => Some(*newest),
            Some(_) | None => None,
        }
    }

    /// What became of this push when it was applied before.
    fn earlier_outcome(
        &self,
        now: Now,
        producer: Producer,
        seq: u64,
        facts: &Facts,
    ) -> Result<Option<Vec<PushResult>>, WireError> {
        let Some((newest, _)) = self.newest_sequence(producer.number, facts).flatten() else {
            if now.wall.since(producer.made_at) < PRODUCER_IDLE_MAX {
                return Ok(None);
            }
            return Err(WireError::new(
                ErrorCode::UnknownProducer,
                "the outcomes of this producer are no longer kept; it may have been applied",
            ));
        };
        if seq > newest {
            return Ok(None);
        }
        let slot = slot(seq);
        let stored = match facts.find(&Need::Outcome {
            producer: producer.number,
            slot,
        }) {
            Some(Fact::Outcome(stored)) if !self.group.forgets(producer.number) => stored.as_ref(),
            Some(_) | None => None,
        };
        let open = self
            .group
            .outcomes
            .get(&(producer.number, slot))
            .map(|outcome| &**outcome);
        match open.or(stored) {
            Some(outcome) if outcome.seq == seq => Ok(Some(outcome.results())),
            Some(outcome) if outcome.seq > seq => Err(WireError::new(
                ErrorCode::SequenceExpired,
                format!(
                    "only the last {PRODUCER_UNANSWERED_MAX} pushes are remembered; it may have \
                     been applied"
                ),
            )),
            Some(_) | None if seq + PRODUCER_UNANSWERED_MAX <= newest => Err(WireError::new(
                ErrorCode::SequenceExpired,
                format!("push {seq} is more than {PRODUCER_UNANSWERED_MAX} behind {newest}"),
            )),
            Some(_) | None => Ok(None),
        }
    }

    fn keep_outcome(
        &mut self,
        now: Now,
        producer: Producer,
        seq: u64,
        results: &[PushResult],
        facts: &Facts,
    ) {
        let outcome = OutcomeRecord {
            producer: producer.number,
            seq,
            at: now.wall,
            results: ranges(results),
        };
        self.group.put_outcome(slot(seq), Box::new(outcome));
        let known = self.newest_sequence(producer.number, facts).flatten();
        let newest = known.map_or(seq, |(newest, _)| newest.max(seq));
        if known.is_none() {
            self.set_timer(idle_timer(
                producer.number,
                now.wall.plus(PRODUCER_IDLE_MAX),
            ));
        }
        self.producers.0.insert(producer.number, (newest, now.wall));
    }
}

/// The jobs of a push, spread evenly over a time.
#[derive(Debug, Clone, Copy)]
struct Spread {
    over: DurationMs,
    jobs: usize,
}

impl Spread {
    /// How much later the nth job runs.
    fn of(self, nth: usize) -> DurationMs {
        let later = u128::from(self.over.0) * nth as u128 / self.jobs.max(1) as u128;
        DurationMs(u64::try_from(later).unwrap_or(self.over.0))
    }
}

/// The timer that looks whether a producer is idle.
pub(crate) fn idle_timer(producer: ProducerNumber, at: Timestamp) -> Timer {
    let mut id = [0; JobId::BYTES];
    id[16..].copy_from_slice(&producer.0.to_be_bytes());
    Timer {
        at,
        what: TimerKind::ProducerIdle,
        id,
    }
}

/// When a job may be granted, as its push says.
fn due_of(spec: &JobSpec, now: Now) -> Timestamp {
    match (spec.run_at, spec.delay_ms) {
        (Some(at), _) => at,
        (None, delay) => now.wall.plus(delay.unwrap_or_default()),
    }
}

fn slot(seq: u64) -> u8 {
    u8::try_from(seq % PRODUCER_UNANSWERED_MAX).unwrap_or_default()
}

/// Joins the results whose ids follow each other.
fn ranges(results: &[PushResult]) -> Vec<OutcomeRange> {
    let mut ranges: Vec<OutcomeRange> = Vec::new();
    for result in results {
        match (&result.id, &result.err) {
            (Some(id), _) if result.existing => ranges.push(OutcomeRange::Existing {
                holder: *id,
                is_replaced: result.replaced,
            }),
            (Some(id), _) => match ranges.last_mut() {
                Some(OutcomeRange::Pushed { first, count })
                    if *count < u8::MAX && nth(*first, *count) == Some(*id) =>
                {
                    *count += 1;
                }
                Some(_) | None => ranges.push(OutcomeRange::Pushed {
                    first: *id,
                    count: 1,
                }),
            },
            (None, Some(error)) => {
                let code = ErrorCode::ALL.iter().position(|code| *code == error.code);
                let mut message = error.message.clone();
                message.truncate(message.floor_char_boundary(REFUSAL_BYTES_MAX));
                ranges.push(OutcomeRange::Refused {
                    code: u8::try_from(code.unwrap_or_default()).unwrap_or_default(),
                    field: error.field.clone().unwrap_or_default(),
                    message,
                });
            }
            (None, None) => {}
        }
    }
    ranges
}

/// The id so many indexes behind another.
fn nth(first: JobId, count: u8) -> Option<JobId> {
    let mut birth = first.birth();
    birth.index = birth.index.checked_add(count)?;
    Some(JobId::born(birth))
}

impl OutcomeRecord {
    /// The results as they were answered the first time.
    fn results(&self) -> Vec<PushResult> {
        let results = self.results.iter().flat_map(|range| match range {
            OutcomeRange::Pushed { first, count } => {
                let ids = (0..*count).filter_map(|count| nth(*first, count));
                ids.map(|id| PushResult::from(Ok(id))).collect::<Vec<_>>()
            }
            OutcomeRange::Existing {
                holder,
                is_replaced,
            } => vec![PushResult {
                id: Some(*holder),
                existing: true,
                replaced: *is_replaced,
                err: None,
            }],
            OutcomeRange::Refused {
                code,
                field,
                message,
            } => {
                let code = ErrorCode::ALL.get(usize::from(*code)).copied();
                let mut error =
                    WireError::new(code.unwrap_or(ErrorCode::BadRequest), message.clone());
                error.field = Some(field.clone()).filter(|field| !field.is_empty());
                vec![PushResult::from(Err(error))]
            }
        });
        results.collect()
    }
}
