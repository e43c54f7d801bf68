//! Unique keys: who holds one, when it is taken, and when it is let go.
//!
//! A lock is one record, written and erased by the very transition of its job that takes or ends
//! it. Whether a job holds its key follows from its state alone ([`is_held`]), so no lock can
//! outlive its job and none can be lost. What a job looks like otherwise is not known here.

use std::sync::Arc;

use ganger_protocol::{
    ErrorCode, JobId, JobSpec, Kind, NamespaceName, QueueName, Timestamp, WireError,
    event::EventName,
    job::{JobState, OnConflict, Unique, UniqueOf, UniqueUntil},
    response::PushResult,
};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::{
    Engine,
    command::{Now, Origin},
    facts::{Fact, Facts, Need},
    lease::{Lease, LeaseKey},
    records::{
        BlobKind, Content, JobRecord, QueueNumber, StoredJob, Timer, TimerKind, UniqueKey,
        UniqueRecord,
    },
};

/// Whether a job in this state, granted so many times, holds its key. A key until `ttl` is its
/// timer's, not its job's.
pub const fn is_held(until: UniqueUntil, state: JobState, attempt: u32) -> bool {
    use JobState::{Blocked, Cancelled, Dead, Done, Expired, Leased, Ready, Scheduled};
    match (until, state) {
        (UniqueUntil::Start, Scheduled | Blocked | Ready) => attempt == 0,
        (UniqueUntil::Success | UniqueUntil::Settled, Scheduled | Blocked | Ready | Leased)
        | (UniqueUntil::Success, Dead) => true,
        (UniqueUntil::Start, Leased | Done | Dead | Cancelled | Expired)
        | (UniqueUntil::Success, Done | Cancelled | Expired)
        | (UniqueUntil::Settled, Done | Dead | Cancelled | Expired)
        | (UniqueUntil::Ttl, _) => false,
    }
}

/// Whether a key with this end is let go by its time alone, whatever becomes of its job.
pub(crate) const fn is_ended_by_time(until: UniqueUntil) -> bool {
    matches!(until, UniqueUntil::Ttl)
}

/// The fields of a job that its key may be derived from.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The namespace, which every key belongs to.
    pub namespace: &'a NamespaceName,
    /// The queue that it was pushed to.
    pub queue: &'a QueueName,
    /// Its kind.
    pub kind: &'a Kind,
    /// Its payload.
    pub payload: &'a [u8],
}

impl UniqueKey {
    /// The key of a job: the first bytes of an HMAC-SHA256 under the secret of the store. Each part
    /// has its length before it, so that no two lists of parts are the same bytes.
    pub fn of(secret: &[u8; 32], job: &Named<'_>, unique: &Unique) -> Self {
        // A key of an HMAC is filled up with zeroes to a block.
        let mut key = [0; 64];
        key[..32].copy_from_slice(secret);
        let mut mac = Hmac::<Sha256>::new(&key.into());
        let mut part = |name: u8, bytes: &[u8]| {
            mac.update(&[name]);
            mac.update(&(bytes.len() as u64).to_be_bytes());
            mac.update(bytes);
        };
        part(0, job.namespace.as_str().as_bytes());
        if let Some(name) = &unique.key {
            part(1, name.as_str().as_bytes());
        }
        for (field, name, bytes) in [
            (UniqueOf::Queue, 2, job.queue.as_str().as_bytes()),
            (UniqueOf::Kind, 3, job.kind.as_str().as_bytes()),
            (UniqueOf::Payload, 4, job.payload),
        ] {
            if unique.of.contains(&field) {
                part(name, bytes);
            }
        }
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Self(short)
    }
}

impl Engine {
    /// What must be read to push a job with a unique key: who holds it, and when its payload is to
    /// be replaced, that job.
    pub(crate) fn needs_of_unique(
        &self,
        origin: &Origin,
        spec: &JobSpec,
        facts: &Facts,
    ) -> Vec<Need> {
        let Some(unique) = spec.unique.as_deref() else {
            return Vec::new();
        };
        let key = self.key_of_spec(origin, spec, unique);
        let Some(holder) = self.lock(key, facts) else {
            return vec![Need::Unique(key)];
        };
        match (holder, unique.on_conflict) {
            (Some(holder), OnConflict::Replace) => self.needs_to_withdraw(holder.job, facts),
            (Some(holder), OnConflict::Reject | OnConflict::Existing) => {
                self.need_of_holder(&holder).into_iter().collect()
            }
            (None, _) => Vec::new(),
        }
    }

    /// The key of a job that is to be pushed.
    pub(crate) fn key_of_spec(
        &self,
        origin: &Origin,
        spec: &JobSpec,
        unique: &Unique,
    ) -> UniqueKey {
        let named = Named {
            namespace: &origin.namespace,
            queue: &spec.queue,
            kind: &spec.kind,
            payload: &spec.payload,
        };
        UniqueKey::of(&self.options.secret, &named, unique)
    }

    /// The key of a job that is kept, when it has one.
    pub(crate) fn key_of(&self, job: JobId, content: &Content) -> Option<UniqueKey> {
        let unique = content.unique.as_deref()?;
        let queue = self.queue_record(QueueNumber(job.birth().queue))?;
        let named = Named {
            namespace: &queue.namespace,
            queue: &queue.name,
            kind: &content.kind,
            payload: &content.payload,
        };
        Some(UniqueKey::of(&self.options.secret, &named, unique))
    }

    /// The lock of a key, when there is one; the outer `None`: it must be read.
    #[expect(
        clippy::option_option,
        reason = "unknown, and known to be free, differ"
    )]
    pub(crate) fn lock(&self, key: UniqueKey, facts: &Facts) -> Option<Option<UniqueRecord>> {
        if let Some(open) = self.group.lock(&key) {
            return Some(open);
        }
        match facts.find(&Need::Unique(key)) {
            Some(Fact::Unique(stored)) => Some(*stored),
            Some(_) | None => None,
        }
    }

    /// Who holds a key now.
    pub(crate) fn holder(&self, now: Now, key: UniqueKey, facts: &Facts) -> Option<UniqueRecord> {
        let lock = self.lock(key, facts).flatten();
        lock.filter(|lock| match lock.ends_at {
            Some(at) => at > now.wall,
            // A purge frees the keys of its jobs at once; the sweep erases their locks later.
            None => self.need_of_holder(lock).is_none() || self.lookup(lock.job, facts).is_some(),
        })
    }

    /// The holder of a lock is looked at only while a purge is swept: otherwise it is kept.
    pub(crate) fn need_of_holder(&self, lock: &UniqueRecord) -> Option<Need> {
        let may_be_purged = !self.sweeps.is_empty() && lock.ends_at.is_none();
        may_be_purged.then_some(Need::Job {
            job: lock.job,
            content: false,
        })
    }

    /// A job that has just been pushed takes its key, which nobody holds.
    pub(crate) fn take_key(
        &mut self,
        now: Now,
        key: UniqueKey,
        job: JobId,
        unique: &Unique,
        facts: &Facts,
    ) {
        // A lock whose time has passed and whose timer has not fired yet.
        if let Some(ends_at) = self
            .lock(key, facts)
            .flatten()
            .and_then(|lock| lock.ends_at)
        {
            self.unset_timer(ttl_timer(key, ends_at));
        }
        let ends_at = unique.ttl_ms.map(|ttl| now.wall.plus(ttl));
        self.group
            .set_lock(key, Some(UniqueRecord { job, ends_at }));
        if let Some(at) = ends_at {
            self.set_timer(ttl_timer(key, at));
        }
    }

    /// Another job holds the key of one that is pushed.
    pub(crate) fn meet_holder(
        &mut self,
        now: Now,
        holder: JobId,
        spec: &mut JobSpec,
        due: Timestamp,
        facts: &Facts,
    ) -> Result<PushResult, WireError> {
        let on_conflict = spec.unique.as_deref().map(|unique| unique.on_conflict);
        let replaced = match on_conflict.unwrap_or_default() {
            OnConflict::Reject => return Err(conflict(holder)),
            OnConflict::Existing => false,
            OnConflict::Replace => self.replace(now, holder, spec, due, facts),
        };
        Ok(PushResult {
            id: Some(holder),
            existing: true,
            replaced,
            err: None,
        })
    }

    /// The queue in which a holder is, when this group has changed it; else where it was born.
    pub(crate) fn queue_of_holder(&self, holder: JobId) -> QueueNumber {
        let open = self.group.jobs.get(&holder).and_then(Option::as_ref);
        open.map_or_else(|| QueueNumber(holder.birth().queue), |record| record.queue)
    }

    /// Gives a waiting job of the same kind another payload and time; whether it did.
    fn replace(
        &mut self,
        now: Now,
        holder: JobId,
        spec: &mut JobSpec,
        due: Timestamp,
        facts: &Facts,
    ) -> bool {
        let Some(mut record) = self.waiting(holder, facts) else {
            return false;
        };
        let Some(old) = record.content.take().filter(|old| old.kind == spec.kind) else {
            return false;
        };
        record.content = Some(Arc::clone(&old));
        self.withdraw(now, &record, facts);
        let content = Arc::new(Content {
            payload: std::mem::take(&mut spec.payload),
            content_type: spec.content_type.take(),
            ..Content::clone(&old)
        });
        self.group
            .delete_blob(holder, BlobKind::Content, record.spilled_parts);
        // How far somebody came with another payload says nothing of this one.
        self.group
            .delete_blob(holder, BlobKind::Cursor, record.cursor_parts());
        record.progress = None;
        record.spilled_parts = content.spilled_parts();
        if record.spilled_parts > 0 {
            self.group.put_content(holder, Arc::clone(&content));
        }
        record.content = Some(content);
        let (queue, before) = (record.queue, record.state);
        if before == JobState::Blocked {
            record.run_at = Some(due).filter(|due| *due > now.wall);
            self.tell(now, EventName::Changed, &*record, (Some(before), None));
            self.group.put_job(record);
            return true;
        }
        if due > now.wall {
            self.count(queue, Some(before), Some(JobState::Scheduled));
            let stand = (Some(JobState::Scheduled), Some(due));
            self.tell(now, EventName::Changed, &*record, stand);
            self.put_scheduled(record, due);
            return true;
        }
        if before != JobState::Ready {
            self.count(queue, Some(before), Some(JobState::Ready));
        }
        let stand = (Some(JobState::Ready), None);
        self.tell(now, EventName::Changed, &*record, stand);
        self.make_ready_at_tail(record);
        true
    }

    /// A job is granted: a key until `start` ends here. The key that its lease holds.
    pub(crate) fn key_at_grant(&mut self, job: JobId, content: &Content, attempt: u32) -> LeaseKey {
        let Some(unique) = content.unique.as_deref() else {
            return LeaseKey::None;
        };
        if is_held(unique.until, JobState::Ready, attempt - 1)
            && !is_held(unique.until, JobState::Leased, attempt)
        {
            self.release_key(job, content);
        }
        self.key_of_lease(job, Some(content))
    }

    /// The key that a live lease holds, as far as its job was read.
    pub(crate) fn key_of_lease(&self, job: JobId, content: Option<&Content>) -> LeaseKey {
        let Some(content) = content else {
            return LeaseKey::Unread;
        };
        let until = content.unique.as_deref().map(|unique| unique.until);
        match until.filter(|until| is_held(*until, JobState::Leased, 1)) {
            Some(_) => self
                .key_of(job, content)
                .map_or(LeaseKey::None, LeaseKey::Held),
            None => LeaseKey::None,
        }
    }

    /// A lease was acked: its job lets its key go.
    pub(crate) fn release_key_of_lease(&mut self, job: JobId, lease: &Lease, facts: &Facts) {
        let key = match lease.key {
            LeaseKey::None => return,
            LeaseKey::Held(key) => LeaseKey::Held(key),
            LeaseKey::Unread => {
                let content = self.content_of(job, facts);
                self.key_of_lease(job, content.as_deref())
            }
        };
        if let LeaseKey::Held(key) = key {
            self.group.set_lock(key, None);
        }
    }

    /// What was pushed, of a job that may have left its run.
    pub(crate) fn content_of(&self, job: JobId, facts: &Facts) -> Option<Arc<Content>> {
        let open = self.group.jobs.get(&job).and_then(Option::as_ref);
        if let Some(content) = open.and_then(|record| record.content.clone()) {
            return Some(content);
        }
        match self.stored(job, facts)? {
            StoredJob::Record(record) => record.content.clone(),
            StoredJob::Packed { job, .. } | StoredJob::Scheduled { job, .. } => job.content.clone(),
        }
    }

    /// A job goes from one state to another, or is removed: it lets its key go unless it holds it
    /// there too.
    pub(crate) fn pass_key(&mut self, record: &JobRecord, from: JobState, to: Option<JobState>) {
        let Some(content) = record.content.clone() else {
            return;
        };
        let Some(until) = content.unique.as_deref().map(|unique| unique.until) else {
            return;
        };
        let is_kept = to.is_some_and(|to| is_held(until, to, record.attempt));
        if is_held(until, from, record.attempt) && !is_kept {
            self.release_key(record.id, &content);
        }
    }

    fn release_key(&mut self, job: JobId, content: &Content) {
        if let Some(key) = self.key_of(job, content) {
            self.group.set_lock(key, None);
        }
    }

    /// The key that a dead job must take again before it is revived.
    pub(crate) fn key_to_retake(&self, record: &JobRecord) -> Option<UniqueKey> {
        let content = record.content.as_ref()?;
        let until = content.unique.as_deref()?.until;
        let is_needed = !is_held(until, JobState::Dead, record.attempt)
            && is_held(until, JobState::Ready, record.attempt);
        is_needed.then(|| self.key_of(record.id, content)).flatten()
    }

    /// What must be read before a dead job can take its key again.
    pub(crate) fn need_to_retake(&self, job: JobId, facts: &Facts) -> Option<Need> {
        let key = self.key_to_retake(&*self.lookup(job, facts)?)?;
        match self.lock(key, facts) {
            None => Some(Need::Unique(key)),
            Some(lock) => self.need_of_holder(&lock?),
        }
    }

    /// The time of a lock has passed.
    pub(crate) fn end_lock(&mut self, timer: &Timer, facts: &Facts) {
        let key = key_of_timer(timer);
        let lock = self.lock(key, facts).flatten();
        if lock.is_some_and(|lock| lock.ends_at == Some(timer.at)) {
            self.group.set_lock(key, None);
        }
    }

    pub(crate) fn need_of_ttl(&self, timer: &Timer) -> Option<Need> {
        let key = key_of_timer(timer);
        self.group.lock(&key).is_none().then_some(Need::Unique(key))
    }
}

/// What somebody is told whose key another job holds.
pub(crate) fn conflict(holder: JobId) -> WireError {
    WireError {
        field: Some("unique".to_owned()),
        ..WireError::new(
            ErrorCode::Conflict,
            format!("job {holder} holds the unique key"),
        )
    }
}

/// The timer that ends a lock.
pub fn ttl_timer(key: UniqueKey, at: Timestamp) -> Timer {
    let mut id = [0; JobId::BYTES];
    id[JobId::BYTES - 16..].copy_from_slice(&key.0);
    Timer {
        at,
        what: TimerKind::UniqueTtl,
        id,
    }
}

/// The key whose lock a timer ends.
pub fn key_of_timer(timer: &Timer) -> UniqueKey {
    let mut key = [0; 16];
    key.copy_from_slice(&timer.id[JobId::BYTES - 16..]);
    UniqueKey(key)
}
