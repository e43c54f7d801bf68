//! What is known of limits, and of jobs and leases under them, from what was told: which limit is in
//! force, which leases live for certain, which jobs wait for certain. What must not be is said here.
//!
//! A limit counts from the moment in which it is set, and a crash takes back the groups that it takes
//! back, so which one is in force is always known.

use std::collections::{BTreeMap, HashMap};

use ganger_protocol::{
    JobId, KeyPattern, QueueName, QueuePattern, SessionId,
    ids::Tag,
    limit::{LimitSet, LimitTarget, Rate},
    request::LeaseRef,
};

use super::{SEQUENCES, target_of};
use crate::history::Checked;

pub const QUEUES: [&str; 3] = ["l0", "l1", "fair"];
/// The last three are those of turns.
pub const KEYS: [&str; 8] = ["a:1", "a:2", "b:1", "s:1", "s:2", "f:1", "f:2", "f:3"];

/// Grants that a rate is checked over.
const SERIES_MAX: usize = 40;

/// Something that a limit holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    Queue(usize),
    Key(usize),
}

impl Subject {
    fn all() -> impl Iterator<Item = Self> {
        let queues = (0..QUEUES.len()).map(Self::Queue);
        queues.chain((0..KEYS.len()).map(Self::Key))
    }
}

/// What a thing was set to, by the groups in which it was.
#[derive(Debug, Default)]
struct Versions<T>(Vec<(u64, T)>);

impl<T> Versions<T> {
    fn current(&self) -> Option<&T> {
        self.0.last().map(|(_, value)| value)
    }

    fn set(&mut self, group: u64, value: T) {
        self.0.push((group, value));
    }

    /// What came behind a group is lost.
    fn restart(&mut self, group: u64) {
        self.0.retain(|(of, _)| *of <= group);
    }
}

#[derive(Debug, Clone, Default)]
pub struct Job {
    pub id: Option<JobId>,
    pub queue: usize,
    pub priority: u8,
    pub key: Option<usize>,
    /// The group in which it was pushed, and whether that was told.
    pub group: u64,
    pub is_told: bool,
    /// A crash has taken it.
    pub is_void: bool,
    /// It waits, ready since its push, and nobody has touched it.
    pub is_fresh: bool,
    /// When its end was told.
    pub over: Option<u64>,
    /// It may be in another queue than it was pushed to.
    pub may_have_moved: bool,
    /// Where it was told to be, and when.
    pub moved: Option<(usize, u8, u64)>,
    /// How often it was to be moved.
    pub moves: u32,
    /// Grants that were told, and one more each time that some may have been made untold.
    pub grants: u32,
    pub may_expire: bool,
    /// Its cancellation was asked for: its leases may be revoked.
    pub may_be_cancelled: bool,
    /// When it went back from its lease, to wait for another.
    pub waits_again: Option<u64>,
}

/// A lease that lives for certain until something speaks against it.
#[derive(Debug, Clone)]
pub struct Live {
    pub lease: LeaseRef,
    pub job: usize,
    queue: usize,
    key: Option<usize>,
    pub session: SessionId,
    /// When it was granted, at the latest.
    at: u64,
    /// Its deadline, at the earliest.
    until: u64,
    /// How many might run at its grant, by queue and key.
    allowed: [Option<u32>; 2],
}

impl Live {
    fn is_of(&self, subject: Subject) -> bool {
        match subject {
            Subject::Queue(queue) => self.queue == queue,
            Subject::Key(key) => self.key == Some(key),
        }
    }
}

/// A grant under a rate.
#[derive(Debug, Clone, Copy)]
struct Timed {
    number: u64,
    /// Between which moments it was decided.
    between: (u64, u64),
}

/// A job of a sequence was granted while another seems to keep it back: unless a fetch that is still open
/// has that one, by an earlier lease.
#[derive(Debug, Clone, Copy)]
struct Suspicion {
    job: usize,
    number: u64,
    holder: usize,
}

/// The circumstances of a grant that was told.
#[derive(Debug, Clone, Copy)]
pub struct Decision {
    pub session: SessionId,
    /// Between which moments it was decided.
    pub between: (u64, u64),
    /// The operation that asked.
    pub asked: u64,
    /// It was decided under the limits that are in force.
    pub is_exact: bool,
    /// No other fetch may have been served meanwhile.
    pub is_alone: bool,
}

#[derive(Debug, Default)]
pub struct Known {
    pub jobs: Vec<Job>,
    limits: BTreeMap<LimitTarget, Versions<Option<LimitSet>>>,
    paused: [Versions<bool>; QUEUES.len()],
    /// Changes of limits and pauses so far.
    pub changes: u64,
    pub live: Vec<Live>,
    /// When a session was heard of last, and how long it lives then.
    pub seen: HashMap<SessionId, (u64, u64)>,
    series: HashMap<Subject, Vec<Timed>>,
    suspicions: Vec<Suspicion>,
    /// When something was granted last, at the latest.
    last_grant: HashMap<Subject, u64>,
    /// Before this moment something may have been granted of which nobody knows.
    unknown_until: u64,
}

impl Known {
    // Limits.

    pub fn limits(&self) -> impl Iterator<Item = (&LimitTarget, &LimitSet)> {
        let all = self.limits.iter();
        all.filter_map(|(target, versions)| Some((target, versions.current()?.as_ref()?)))
    }

    pub fn limit(&self, target: &LimitTarget) -> Option<&LimitSet> {
        self.limits.get(target)?.current()?.as_ref()
    }

    /// The limit that counts: the exact one, else that of the longest prefix.
    pub fn limit_of(&self, subject: Subject) -> Option<(&LimitTarget, &LimitSet)> {
        let rank = |target: &LimitTarget| match (subject, target) {
            (Subject::Queue(queue), LimitTarget::Queue(QueuePattern::Name(name))) => {
                (name.as_str() == QUEUES[queue]).then_some(usize::MAX)
            }
            (Subject::Queue(queue), LimitTarget::Queue(QueuePattern::Prefix(prefix))) => {
                QUEUES[queue].starts_with(&**prefix).then_some(prefix.len())
            }
            (Subject::Key(key), LimitTarget::Key(KeyPattern::Name(name))) => {
                (name.as_str() == KEYS[key]).then_some(usize::MAX)
            }
            (Subject::Key(key), LimitTarget::Key(KeyPattern::Prefix(prefix))) => {
                KEYS[key].starts_with(&**prefix).then_some(prefix.len())
            }
            (Subject::Queue(_), LimitTarget::Key(_)) | (Subject::Key(_), LimitTarget::Queue(_)) => {
                None
            }
        };
        let ranked = self.limits();
        let ranked = ranked.filter_map(|(target, set)| Some((rank(target)?, (target, set))));
        ranked.max_by_key(|(rank, _)| *rank).map(|(_, limit)| limit)
    }

    fn all_limits(&self) -> Vec<Option<(LimitTarget, LimitSet)>> {
        let all = Subject::all().map(|subject| self.limit_of(subject));
        all.map(|limit| limit.map(|(target, set)| (target.clone(), set.clone())))
            .collect()
    }

    /// Whose limit has become another one begins anew.
    fn begin_anew(&mut self, before: &[Option<(LimitTarget, LimitSet)>]) {
        for ((subject, before), after) in Subject::all().zip(before).zip(self.all_limits()) {
            if *before != after {
                self.series.remove(&subject);
            }
        }
        self.changes += 1;
    }

    pub fn set_limit(&mut self, group: u64, target: LimitTarget, set: Option<LimitSet>) {
        let before = self.all_limits();
        let versions = self.limits.entry(target).or_default();
        versions.set(group, set);
        self.begin_anew(&before);
    }

    pub fn pause(&mut self, group: u64, queue: usize, is_paused: bool) {
        self.paused[queue].set(group, is_paused);
        self.changes += 1;
    }

    pub fn is_paused(&self, queue: usize) -> bool {
        self.paused[queue].current().copied().unwrap_or_default()
    }

    /// Whether a queue is there.
    pub fn has_queue(&self, queue: usize) -> bool {
        let mut jobs = self.jobs.iter();
        jobs.any(|job| job.queue == queue && !job.is_void)
    }

    /// The server starts again behind this group, and what it held is not certain any more. What was
    /// granted before is known to it as far as it was durable, unless its clock was moved meanwhile.
    pub fn restart(&mut self, group: u64, now: u64, has_jumps: bool) -> Checked {
        let before = self.all_limits();
        for versions in self.limits.values_mut() {
            versions.restart(group);
        }
        for versions in &mut self.paused {
            versions.restart(group);
        }
        self.begin_anew(&before);
        for (nth, job) in self.jobs.iter_mut().enumerate() {
            let is_lost = job.group > group && !job.is_void;
            if is_lost && job.is_told {
                return Err(format!("I1: job {nth} of limits is lost: {job:?}"));
            }
            job.is_void |= is_lost;
        }
        if has_jumps {
            self.series.clear();
        }
        self.unknown_until = now;
        Ok(())
    }

    /// Something may have been granted that nobody is told of.
    pub fn abandon(&mut self, now: u64) {
        for job in &mut self.jobs {
            job.is_fresh = false;
            job.waits_again = None;
            job.grants += 1;
        }
        self.suspicions.clear();
        self.unknown_until = now;
    }

    // Leases.

    pub fn end(&mut self, lease: LeaseRef) {
        self.live.retain(|live| live.lease != lease);
    }

    /// The leases of a session, which are certain no more.
    pub fn end_session(&mut self, session: SessionId) -> Vec<Live> {
        let all = std::mem::take(&mut self.live);
        let (own, others) = all.into_iter().partition(|live| live.session == session);
        self.live = others;
        own
    }

    /// Leases live, said the server.
    pub fn confirm(&mut self, leases: Vec<Live>) {
        self.live.extend(leases);
        self.live.sort_by_key(|live| live.lease.lease);
    }

    pub fn is_live(&self, lease: LeaseRef, now: u64) -> bool {
        let mut own = self.live.iter().filter(|live| live.lease == lease);
        own.any(|live| self.is_certain(live, now))
    }

    fn is_certain(&self, live: &Live, now: u64) -> bool {
        let seen = self.seen.get(&live.session);
        now < live.until && seen.is_some_and(|(at, ttl)| now < at + ttl)
    }

    /// Leases of a subject that live for certain.
    pub fn running(&self, subject: Subject, now: u64) -> usize {
        let own = self.live.iter().filter(|live| live.is_of(subject));
        own.filter(|live| self.is_certain(live, now)).count()
    }

    /// Jobs of a subject that may be leased.
    fn possibly_running(&self, subject: Subject) -> usize {
        let is_own = |job: &Job| match subject {
            Subject::Queue(queue) => job.queue == queue || job.may_have_moved,
            Subject::Key(key) => job.key == Some(key),
        };
        let jobs = self.jobs.iter().filter(|job| is_own(job));
        let may_run = |job: &&Job| !job.is_fresh && !job.is_void && job.over.is_none();
        jobs.filter(may_run).count()
    }

    /// A grant was told.
    pub fn granted(
        &mut self,
        token: usize,
        granted: (LeaseRef, usize, u64),
        by: Decision,
    ) -> Checked {
        let (lease, queue, timeout) = granted;
        let now = by.between.1;
        let job = &self.jobs[token];
        if job.over.is_some_and(|told| told < by.asked) {
            return Err(format!("I4: job {token} is over and granted: {job:?}"));
        }
        if job
            .moved
            .is_some_and(|(to, _, told)| told < by.asked && to != queue)
        {
            return Err(format!(
                "job {token} was moved, and granted from {queue}: {job:?}"
            ));
        }
        if !job.may_have_moved && job.queue != queue {
            return Err(format!("job {token} was never moved to {queue}: {job:?}"));
        }
        if by.is_exact && self.is_paused(queue) {
            return Err(format!("I18: job {token} was granted from a paused queue"));
        }
        let others = self.live.iter();
        let mut others = others.filter(|live| live.job == token && live.lease.lease < lease.lease);
        if let Some(other) = others.find(|live| self.is_certain(live, now)) {
            return Err(format!(
                "I7: job {token} runs by {other:?} and by {lease:?}"
            ));
        }
        let key = job.key;
        if by.is_exact && by.is_alone && job.is_fresh {
            self.check_order(token)?;
        }
        let subjects = [Some(Subject::Queue(queue)), key.map(Subject::Key)];
        let allowed = subjects.map(|subject| {
            let (_, set) = self.limit_of(subject?).filter(|_| by.is_exact)?;
            if set.sequence {
                Some(1)
            } else {
                set.max_running
            }
        });
        let live = Live {
            lease,
            job: token,
            queue,
            key,
            session: by.session,
            at: now,
            until: if job.may_be_cancelled {
                0
            } else {
                by.between.0 + timeout
            },
            allowed,
        };
        let number = lease.lease.0;
        self.check_suspicions(token, number)?;
        if let Some(key) = key
            && by.is_exact
            && let Some(holder) = self.holder(token, key, by.asked)
        {
            self.suspicions.push(Suspicion {
                job: token,
                number,
                holder,
            });
        }
        let at = self
            .live
            .partition_point(|live| live.lease.lease.0 < number);
        self.live.insert(at, live);
        for subject in subjects.into_iter().flatten() {
            self.check_running(subject, number)?;
            let last = self.last_grant.entry(subject).or_default();
            *last = now.max(*last);
            if by.is_exact {
                let timed = Timed {
                    number,
                    between: by.between,
                };
                self.check_rate(subject, timed)?;
            }
        }
        let job = &mut self.jobs[token];
        job.queue = queue;
        job.grants += 1;
        job.is_fresh = false;
        job.waits_again = None;
        Ok(())
    }

    /// No more jobs run than may: whoever was granted before lived at the later grant.
    fn check_running(&self, subject: Subject, from: u64) -> Checked {
        let nth = usize::from(matches!(subject, Subject::Key(_)));
        let own = self.live.iter().filter(|live| live.is_of(subject));
        let own: Vec<&Live> = own.collect();
        let begin = own.partition_point(|live| live.lease.lease.0 < from);
        for (before, live) in own.iter().enumerate().skip(begin) {
            let Some(max) = live.allowed[nth] else {
                continue;
            };
            let earlier = own[..before].iter();
            let earlier = earlier.filter(|other| self.is_certain(other, live.at));
            let count = earlier.count() + 1;
            if count > max as usize {
                return Err(format!(
                    "{subject:?}: {count} run, and {max} may, since {live:?}: {own:?}"
                ));
            }
        }
        Ok(())
    }

    /// Not more is granted than a rate allows: its burst, and one more each step.
    fn check_rate(&mut self, subject: Subject, timed: Timed) -> Checked {
        let rate = self.limit_of(subject).and_then(|(_, set)| set.rate);
        let Some(rate) = rate else {
            return Ok(());
        };
        let series = self.series.entry(subject).or_default();
        let at = series.partition_point(|other| other.number < timed.number);
        series.insert(at, timed);
        for (first, begin) in series.iter().enumerate().take(at + 1) {
            for (last, end) in series.iter().enumerate().skip(at) {
                let ms = end.between.1.saturating_sub(begin.between.0);
                let max = burst(&rate) + ms * 1_000_000 / step(&rate);
                let count = (last - first + 1) as u64;
                if count > max {
                    return Err(format!(
                        "{subject:?}: {count} were granted in {ms} ms under {rate:?}: {series:?}"
                    ));
                }
            }
        }
        if series.len() > SERIES_MAX {
            series.remove(0);
        }
        Ok(())
    }

    /// I16: of one key and priority of a queue who came first is granted first.
    fn check_order(&self, token: usize) -> Checked {
        let own = &self.jobs[token];
        let place = |job: &Job| (job.queue, job.priority, job.key);
        let before = self.jobs[..token].iter().enumerate();
        let mut before = before.filter(|(_, job)| job.is_fresh && !job.is_void);
        match before.find(|(_, job)| own.key.is_some() && place(job) == place(own)) {
            Some((first, job)) => Err(format!(
                "I16: job {token} of a key was granted before {first}: {own:?}, {job:?}"
            )),
            None => Ok(()),
        }
    }

    /// The job of a sequence that waits again and keeps this one back, which was never granted.
    fn holder(&self, token: usize, key: usize, asked: u64) -> Option<usize> {
        if !self.is_always_sequence(key) || !self.jobs[token].is_fresh {
            return None;
        }
        let mut others = self.jobs.iter().enumerate();
        let holder = others.find(|(nth, job)| {
            let waits = job.waits_again.is_some_and(|at| at < asked);
            let waits = waits && job.over.is_none() && !job.may_expire;
            *nth != token && job.key == Some(key) && waits
        });
        holder.map(|(nth, _)| nth)
    }

    /// A job was granted by a lease of this number: it keeps those back no more that were granted
    /// behind it, though told before.
    fn check_suspicions(&mut self, token: usize, number: u64) -> Checked {
        let own = |it: &Suspicion| it.holder == token;
        if let Some(other) = self
            .suspicions
            .iter()
            .find(|it| own(it) && it.number < number)
        {
            return Err(format!("{other:?}: the holder is granted by {number} only"));
        }
        self.suspicions.retain(|it| !own(it));
        Ok(())
    }

    /// No fetch is open that might have the jobs that keep others back.
    pub fn confirm_suspicions(&self) -> Checked {
        match self.suspicions.first() {
            None => Ok(()),
            Some(it) => {
                let (job, holder) = (it.job, it.holder);
                let facts = &self.jobs[holder];
                Err(format!(
                    "job {job} of a sequence was granted, and {holder} keeps it back: {facts:?}"
                ))
            }
        }
    }

    /// Whether a key was a sequence before its first job, and is one still: its limit is that of the
    /// sequences, and not one of all keys that came later, when a crash has taken back that one.
    fn is_always_sequence(&self, key: usize) -> bool {
        let limit = self.limit_of(Subject::Key(key));
        limit.is_some_and(|(target, _)| *target == target_of(SEQUENCES))
    }

    /// A fetch took nothing, and no other is served: nothing that may run waits.
    pub fn check_nothing_is_missed(&self, queues: &[usize], now: u64) -> Checked {
        let jobs = self.jobs.iter().enumerate();
        let mut fresh = jobs.filter(|(_, job)| {
            job.is_fresh
                && !job.is_void
                && queues.contains(&job.queue)
                && !self.is_paused(job.queue)
        });
        let missed = fresh.find(|(_, job)| {
            let key = job.key.map(Subject::Key);
            let mut subjects = [Some(Subject::Queue(job.queue)), key].into_iter().flatten();
            subjects.all(|subject| self.lets_through(subject, now))
        });
        let Some((token, job)) = missed else {
            return Ok(());
        };
        let key = job.key.map(Subject::Key);
        let limits = [Some(Subject::Queue(job.queue)), key];
        let limits = limits.map(|subject| self.limit_of(subject?));
        Err(format!(
            "job {token} might run, and is not granted: {job:?}, {limits:?}"
        ))
    }

    /// Whether a limit lets another job through for certain.
    fn lets_through(&self, subject: Subject, now: u64) -> bool {
        let Some((_, set)) = self.limit_of(subject) else {
            return true;
        };
        if set.sequence && self.possibly_running(subject) > 0 {
            return false;
        }
        if set
            .max_running
            .is_some_and(|max| self.possibly_running(subject) >= max as usize)
        {
            return false;
        }
        let Some(rate) = set.rate else { return true };
        let last = self.last_grant.get(&subject).copied().unwrap_or_default();
        now > last.max(self.unknown_until) + step(&rate).div_ceil(1_000_000)
    }
}

fn burst(rate: &Rate) -> u64 {
    u64::from(rate.burst.unwrap_or(rate.n))
}

/// Nanoseconds between two jobs under a rate.
fn step(rate: &Rate) -> u64 {
    (rate.per_ms.0 * 1_000_000).div_ceil(u64::from(rate.n))
}

pub fn queue_name(queue: usize) -> QueueName {
    QUEUES[queue].parse().expect("a legal name")
}

pub fn key_name(key: usize) -> Tag {
    KEYS[key].parse().expect("a legal name")
}
