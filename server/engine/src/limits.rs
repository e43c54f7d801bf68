//! Limits: which one counts for a queue or a key, how a rate is kept, and what is asked of limits.
//!
//! Limits are settings, few beside jobs, and all in memory. What is counted against them is elsewhere:
//! of a queue in [`crate::queue`], of a key in [`crate::keys`]; who is granted what, in
//! [`crate::lanes`].

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use foldhash::HashMap;
use ganger_protocol::{
    ErrorCode, KeyPattern, NamespaceName, QueueName, QueuePattern, WireError,
    ids::Tag,
    limit::{LimitList, LimitSet, LimitTarget, LimitView, LimitsReply, OneLimit, Rate},
    response::{Done, ReplyBody},
};

use crate::{
    Engine,
    command::{Mono, Now, Origin},
    records::{LimitRecord, QueueNumber},
};

/// Moments of the monotonic clock in nanoseconds: rates may be finer than a millisecond.
pub(crate) type Nanos = u64;

const NANOS_PER_MS: u64 = 1_000_000;

/// A limit in force.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    pub(crate) max_running: Option<u32>,
    pub(crate) rate: Option<Rate>,
    weight: Option<u32>,
    pub(crate) sequence: bool,
    /// Whether it was there before the server started: what was granted under it then is not known,
    /// and taken to be all that it allowed.
    is_recovered: bool,
}

/// What of a rate is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    /// When all of it is made up for.
    pub(crate) until: Nanos,
    /// When a job was granted last.
    at: Nanos,
}

impl Limit {
    /// Jobs of a key in its turn.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }

    /// When a rate lets the next job begin of which so much is used; `None`: nothing was granted since
    /// the start, at `opened`.
    pub(crate) fn free_at(&self, used: Option<Used>, opened: Opened) -> Nanos {
        let Some(rate) = &self.rate else { return 0 };
        let used_until = self.used_until(rate, used, opened);
        used_until.saturating_sub(step(rate).saturating_mul(burst(rate) - 1))
    }

    /// What is used when one more is granted.
    pub(crate) fn use_one(&self, used: Option<Used>, opened: Opened, now: Mono) -> Option<Used> {
        let rate = self.rate.as_ref()?;
        let (used_until, now) = (self.used_until(rate, used, opened), nanos(now));
        Some(Used {
            until: used_until.max(now).saturating_add(step(rate)),
            at: now,
        })
    }

    fn used_until(&self, rate: &Rate, used: Option<Used>, opened: Opened) -> Nanos {
        match used {
            // Another limit may have let it through: that uses a whole burst of this one at most.
            Some(used) => used.until.min(used.at.saturating_add(whole(rate))),
            None if self.is_recovered => opened.used_up(rate),
            None => 0,
        }
    }
}

/// When the server started, and how long nothing had been granted then.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Opened {
    pub(crate) at: Mono,
    pub(crate) rested_ms: u64,
}

impl Opened {
    /// The mark of a rate that was used up when the server was there last.
    fn used_up(self, rate: &Rate) -> Nanos {
        let full = nanos(self.at).saturating_add(whole(rate));
        full.saturating_sub(self.rested_ms.saturating_mul(NANOS_PER_MS))
    }
}

/// The distance of two jobs under a rate, rounded up.
fn step(rate: &Rate) -> Nanos {
    let per = rate.per_ms.0.saturating_mul(NANOS_PER_MS);
    per.div_ceil(u64::from(rate.n.max(1)))
}

/// Jobs that a rate lets through at once when nothing of it is used.
fn burst(rate: &Rate) -> u64 {
    u64::from(rate.burst.unwrap_or(rate.n))
}

/// The time that makes up for a whole burst.
fn whole(rate: &Rate) -> Nanos {
    step(rate).saturating_mul(burst(rate))
}

pub(crate) fn nanos(at: Mono) -> Nanos {
    at.0.saturating_mul(NANOS_PER_MS)
}

/// The first millisecond at which a moment has come.
pub(crate) fn mono(at: Nanos) -> Mono {
    Mono(at.div_ceil(NANOS_PER_MS))
}

/// Limits by name and by prefix.
#[derive(Debug, Default)]
struct Named {
    names: HashMap<Arc<str>, Limit>,
    prefixes: BTreeMap<Arc<str>, Limit>,
    /// How many prefixes have this length.
    lengths: BTreeMap<usize, usize>,
}

impl Named {
    /// The limit that counts for a name: its own, else that of the longest prefix.
    fn find(&self, name: &str) -> Option<&Limit> {
        if let Some(limit) = self.names.get(name) {
            return Some(limit);
        }
        let lengths = self.lengths.keys().rev();
        let prefixes = lengths.filter_map(|length| name.get(..*length));
        prefixes
            .into_iter()
            .find_map(|prefix| self.prefixes.get(prefix))
    }

    fn get(&self, pattern: Pattern<'_>) -> Option<&Limit> {
        match pattern {
            Pattern::Name(name) => self.names.get(name),
            Pattern::Prefix(prefix) => self.prefixes.get(prefix),
        }
    }

    /// Whether it is new.
    fn insert(&mut self, pattern: Pattern<'_>, limit: Limit) -> bool {
        let (name, is_prefix) = match pattern {
            Pattern::Name(name) => (name, false),
            Pattern::Prefix(prefix) => (prefix, true),
        };
        let earlier = match is_prefix {
            false => self.names.insert(Arc::from(name), limit),
            true => self.prefixes.insert(Arc::from(name), limit),
        };
        if is_prefix && earlier.is_none() {
            *self.lengths.entry(name.len()).or_default() += 1;
        }
        earlier.is_none()
    }

    fn remove(&mut self, pattern: Pattern<'_>) -> Option<Limit> {
        match pattern {
            Pattern::Name(name) => self.names.remove(name),
            Pattern::Prefix(prefix) => {
                let limit = self.prefixes.remove(prefix)?;
                if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&prefix.len());
                    }
                }
                Some(limit)
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Pattern<'a> {
    Name(&'a str),
    Prefix(&'a str),
}

fn pattern(target: &LimitTarget) -> Pattern<'_> {
    match target {
        LimitTarget::Queue(QueuePattern::Name(name)) => Pattern::Name(name.as_str()),
        LimitTarget::Key(KeyPattern::Name(name)) => Pattern::Name(name.as_str()),
        LimitTarget::Queue(QueuePattern::Prefix(prefix))
        | LimitTarget::Key(KeyPattern::Prefix(prefix)) => Pattern::Prefix(prefix),
    }
}

/// The limits of a namespace.
#[derive(Debug, Default)]
struct Scope {
    queues: Named,
    keys: Named,
}

impl Scope {
    fn named(&self, target: &LimitTarget) -> &Named {
        match target {
            LimitTarget::Queue(_) => &self.queues,
            LimitTarget::Key(_) => &self.keys,
        }
    }

    fn named_mut(&mut self, target: &LimitTarget) -> &mut Named {
        match target {
            LimitTarget::Queue(_) => &mut self.queues,
            LimitTarget::Key(_) => &mut self.keys,
        }
    }
}

/// All limits of the shard.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    scopes: BTreeMap<NamespaceName, Scope>,
    /// In the order of lists.
    order: BTreeMap<NamespaceName, BTreeSet<LimitTarget>>,
    count: usize,
    /// How many of them are sequences.
    sequences: usize,
}

impl Limits {
    /// Takes a limit in as the store has it.
    pub(crate) fn recover(&mut self, record: LimitRecord) {
        self.insert(record, true);
    }

    fn insert(&mut self, record: LimitRecord, is_recovered: bool) {
        let LimitRecord {
            namespace,
            target,
            max_running,
            rate,
            weight,
            sequence,
        } = record;
        self.sequences += usize::from(sequence);
        let limit = Limit {
            max_running,
            rate,
            weight,
            sequence,
            is_recovered,
        };
        let scope = self.scopes.entry(namespace.clone()).or_default();
        if scope.named_mut(&target).insert(pattern(&target), limit) {
            self.count += 1;
        }
        self.order.entry(namespace).or_default().insert(target);
    }

    fn remove(&mut self, namespace: &NamespaceName, target: &LimitTarget) -> Option<Limit> {
        let scope = self.scopes.get_mut(namespace)?;
        let limit = scope.named_mut(target).remove(pattern(target))?;
        self.count -= 1;
        self.sequences -= usize::from(limit.sequence);
        if let Some(order) = self.order.get_mut(namespace) {
            order.remove(target);
            if order.is_empty() {
                self.order.remove(namespace);
                self.scopes.remove(namespace);
            }
        }
        Some(limit)
    }

    fn get(&self, namespace: &NamespaceName, target: &LimitTarget) -> Option<&Limit> {
        self.scopes
            .get(namespace)?
            .named(target)
            .get(pattern(target))
    }

    /// The limit as it is written, when there is one.
    pub(crate) fn record(
        &self,
        namespace: &NamespaceName,
        target: &LimitTarget,
    ) -> Option<LimitRecord> {
        let limit = self.get(namespace, target)?;
        Some(LimitRecord {
            namespace: namespace.clone(),
            target: target.clone(),
            max_running: limit.max_running,
            rate: limit.rate,
            weight: limit.weight,
            sequence: limit.sequence,
        })
    }

    pub(crate) fn of_queue(&self, namespace: &NamespaceName, queue: &QueueName) -> Option<&Limit> {
        self.scopes.get(namespace)?.queues.find(queue.as_str())
    }

    pub(crate) fn of_key(&self, namespace: &NamespaceName, key: &Tag) -> Option<&Limit> {
        self.scopes.get(namespace)?.keys.find(key.as_str())
    }

    /// Whether any limit is a sequence.
    pub(crate) fn has_sequences(&self) -> bool {
        self.sequences > 0
    }
}

impl Engine {
    pub(crate) fn limit_set(
        &mut self,
        origin: &Origin,
        set: &LimitSet,
    ) -> Result<ReplyBody, WireError> {
        let target = set.target().ok_or_else(ambiguous)?;
        let namespace = &origin.namespace;
        let earlier = self.limits.get(namespace, &target);
        let (is_new, is_recovered) = (
            earlier.is_none(),
            earlier.is_some_and(|earlier| earlier.is_recovered),
        );
        let (count, max) = (self.limits.count, self.options.limits_max);
        if is_new && count >= max {
            return Err(WireError::too_large("limits", max, count + 1));
        }
        let record = LimitRecord {
            namespace: namespace.clone(),
            target: target.clone(),
            max_running: set.max_running,
            rate: set.rate,
            weight: set.weight,
            sequence: set.sequence,
        };
        if self.limits.record(namespace, &target).as_ref() != Some(&record) {
            self.limits.remove(namespace, &target);
            self.limits.insert(record, is_recovered);
            self.group.touch_limit(namespace.clone(), target.clone());
            self.limit_has_changed(namespace, &target);
        }
        self.limit_view(namespace, &target)
    }

    pub(crate) fn limit_delete(
        &mut self,
        origin: &Origin,
        one: &OneLimit,
    ) -> Result<ReplyBody, WireError> {
        let target = one.target().ok_or_else(ambiguous)?;
        let namespace = &origin.namespace;
        if self.limits.remove(namespace, &target).is_none() {
            return Err(unknown(&target));
        }
        self.group.touch_limit(namespace.clone(), target.clone());
        self.limit_has_changed(namespace, &target);
        Ok(ReplyBody::Done(Done {}))
    }

    pub(crate) fn limit_show(
        &self,
        origin: &Origin,
        one: &OneLimit,
    ) -> Result<ReplyBody, WireError> {
        let target = one.target().ok_or_else(ambiguous)?;
        self.limit_view(&origin.namespace, &target)
    }

    pub(crate) fn limit_list(
        &self,
        origin: &Origin,
        list: &LimitList,
    ) -> Result<ReplyBody, WireError> {
        let after = match list.cursor.as_deref() {
            None => Bound::Unbounded,
            Some(cursor) => Bound::Excluded(target_of(cursor).ok_or_else(|| {
                WireError::bad_request("cursor", "the cursor is none of a list of limits")
            })?),
        };
        let order = self.limits.order.get(&origin.namespace);
        let behind = order
            .into_iter()
            .flat_map(|order| order.range((after.clone(), Bound::Unbounded)));
        let mut targets: Vec<&LimitTarget> = behind.take(list.limit as usize + 1).collect();
        let has_more = targets.len() > list.limit as usize;
        targets.truncate(list.limit as usize);
        let cursor = targets.last().filter(|_| has_more);
        let cursor = cursor.map(|target| cursor_of(target));
        let views = targets
            .iter()
            .filter_map(|target| self.view_of_limit(&origin.namespace, target));
        Ok(ReplyBody::Limits(LimitsReply {
            limits: views.collect(),
            cursor,
        }))
    }

    fn limit_view(
        &self,
        namespace: &NamespaceName,
        target: &LimitTarget,
    ) -> Result<ReplyBody, WireError> {
        match self.view_of_limit(namespace, target) {
            Some(view) => Ok(ReplyBody::Limit(Box::new(view))),
            None => Err(unknown(target)),
        }
    }

    fn view_of_limit(&self, namespace: &NamespaceName, target: &LimitTarget) -> Option<LimitView> {
        let record = self.limits.record(namespace, target)?;
        let running = match target {
            LimitTarget::Queue(QueuePattern::Name(name)) => {
                let queue = self.queues.named(namespace, name);
                Some(queue.map_or(0, |queue| queue.record.counters.leased))
            }
            LimitTarget::Key(KeyPattern::Name(name)) => {
                let lane = self.keys.lane_of(namespace, name);
                Some(u64::from(self.keys.running(lane)))
            }
            LimitTarget::Queue(QueuePattern::Prefix(_))
            | LimitTarget::Key(KeyPattern::Prefix(_)) => None,
        };
        let OneLimit { queue, key } = OneLimit::of(record.target);
        Some(LimitView {
            queue,
            key,
            max_running: record.max_running,
            rate: record.rate,
            weight: record.weight,
            sequence: record.sequence,
            running,
        })
    }

    /// A limit is another one from now on: who stood at it looks again.
    fn limit_has_changed(&mut self, namespace: &NamespaceName, target: &LimitTarget) {
        match target {
            LimitTarget::Queue(pattern) => {
                let matching = self.queues.matching(namespace, pattern);
                let numbers: Vec<QueueNumber> = matching.map(|queue| queue.record.number).collect();
                for number in numbers {
                    self.limit_queue(number);
                    self.awakened.insert(number);
                }
            }
            LimitTarget::Key(KeyPattern::Name(name)) => {
                let lane = self.keys.lane_of(namespace, name);
                self.wake_key(lane);
            }
            LimitTarget::Key(KeyPattern::Prefix(_)) => {
                for lane in self.keys.parked() {
                    self.wake_key(lane);
                }
            }
        }
    }

    /// A queue is there, or the limits of queues have changed: notes which one counts for it.
    pub(crate) fn limit_queue(&mut self, number: QueueNumber) {
        if let Some(queue) = self.queues.find_mut(number) {
            let record = &queue.record;
            let limit = self.limits.of_queue(&record.namespace, &record.name);
            queue.limit = limit.cloned().map(Box::new);
        }
    }

    /// A job of a queue is granted: that uses one of the rate of its limit; whether that has one.
    pub(crate) fn use_rate_of_queue(&mut self, now: Now, number: QueueNumber) -> bool {
        let Some(queue) = self.queues.find_mut(number) else {
            return false;
        };
        let Some(limit) = &queue.limit else {
            return false;
        };
        let used = limit.use_one(queue.rate_used, self.keys.opened, now.mono);
        queue.rate_used = used.or(queue.rate_used);
        used.is_some()
    }

    /// Whether a queue stands at its limit. When a time ends that, it is noted.
    pub(crate) fn is_queue_at_limit(&mut self, now: Now, number: QueueNumber) -> bool {
        let Some(queue) = self.queues.find(number) else {
            return false;
        };
        let Some(limit) = &queue.limit else {
            return false;
        };
        let running = queue.record.counters.leased;
        if limit
            .max_running
            .is_some_and(|max| running >= u64::from(max))
        {
            return true;
        }
        let free_at = limit.free_at(queue.rate_used, self.keys.opened);
        if free_at <= nanos(now.mono) {
            return false;
        }
        self.queues_at_rate.insert((mono(free_at), number));
        true
    }

    /// Checks that each queue has the limit that counts for it.
    ///
    /// # Errors
    /// A sentence for the first queue that has another.
    pub(crate) fn check_limits_of_queues(&self) -> Result<(), String> {
        let bounds = |limit: &Limit| (limit.max_running, limit.rate);
        for queue in self.queues.iter() {
            let record = &queue.record;
            let known = self.limits.of_queue(&record.namespace, &record.name);
            if queue.limit.as_deref().map(bounds) != known.map(bounds) {
                let kept = &queue.limit;
                return Err(format!("{}: {known:?} counts, not {kept:?}", record.name));
            }
        }
        Ok(())
    }
}

fn ambiguous() -> WireError {
    WireError::bad_request("queue", "name a queue or a key, one of the two")
}

fn unknown(target: &LimitTarget) -> WireError {
    let field = match target {
        LimitTarget::Queue(_) => "queue",
        LimitTarget::Key(_) => "key",
    };
    WireError {
        field: Some(field.to_owned()),
        ..WireError::new(
            ErrorCode::NotFound,
            format!("there is no limit of {target}"),
        )
    }
}

/// Where a page of limits ended, as text: which kind, and the pattern.
fn cursor_of(target: &LimitTarget) -> String {
    match target {
        LimitTarget::Queue(queue) => format!("queue/{queue}"),
        LimitTarget::Key(key) => format!("key/{key}"),
    }
}

fn target_of(cursor: &str) -> Option<LimitTarget> {
    match cursor.split_once('/')? {
        ("queue", queue) => Some(LimitTarget::Queue(queue.parse().ok()?)),
        ("key", key) => Some(LimitTarget::Key(key.parse().ok()?)),
        _ => None,
    }
}
