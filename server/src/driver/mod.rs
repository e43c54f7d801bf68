//! The one owner of a shard's engine and store.
//!
//! The [`Core`] stands behind a lock, and whichever session has decoded commands applies them at
//! once: the order of the lock is the order of the trace. The sync thread seals what has gathered
//! when the previous sync ends, syncs, and releases the replies of that group; there is no timer
//! in between. While few wait for the sync under way, a second one may begin beside it. The first
//! error of the store is final.

pub mod bulk;
pub mod core;
mod cursor;
pub mod outbox;
mod ring;
pub mod scan;
mod shards;
#[cfg(test)]
mod tests;
mod threads;

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::Duration,
};

use foldhash::fast::RandomState;
use ganger_engine::{
    command::{Caller, Command, ConnectionId, Mono, Now, Origin, Reply, SessionOpened},
    records::Closed,
};
use ganger_protocol::{
    DurationMs, JobId, NamespaceName, WireError,
    event::Subscribe,
    job::JobState,
    request::DeadList,
    response::{JobsReply, ReplyBody},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::bulk::Bulk;
pub use self::{
    core::{Core, Released},
    outbox::Outbox,
    ring::{Follower, RING_BYTES_MAX, RING_EVENTS_MAX, Ring, Told},
    shards::{Shards, SharedNamespace},
};
use crate::{
    clock::Clock,
    store::{Store, StoreError},
};

/// Sessions stop reading while so many bytes are not durable.
const UNDURABLE_BYTES_MAX: usize = 16 << 20;

/// A second sync begins beside the one under way only while no more replies wait for that or are being
/// sent after it: it halves the wait where few work, and would only make more and smaller groups where
/// many do.
const LONELY_REPLIES_MAX: usize = 3;

/// Lists that may be read at the same time; more are refused.
const SCANS_MAX: usize = 4;

/// One shard: core, sync thread, checkpoint thread and timer.
#[derive(Debug)]
pub struct Shard {
    inner: Mutex<Inner>,
    /// Threads that wait for that lock, and how often one that waited has got it.
    lock_waiters: AtomicUsize,
    lock_waits: AtomicUsize,
    /// Wakes the first sync thread.
    dirty: Condvar,
    /// Wakes the second one.
    needed: Condvar,
    /// Replies that the sync threads are sending.
    sending: AtomicUsize,
    /// Wakes the sessions that wait until more is durable.
    room: Notify,
    is_congested: AtomicBool,
    /// The timer, which is woken when something is due earlier than it thinks.
    timer: OnceLock<Thread>,
    /// The thread that reads ahead.
    reader: OnceLock<Thread>,
    /// The checkpoint thread, and whether it sleeps because there is nothing to carry.
    checkpointer: OnceLock<Thread>,
    checkpoint_rests: AtomicBool,
    /// What has happened of late, while somebody follows.
    ring: Arc<Ring>,
    scans: Arc<Semaphore>,
    bulk: Mutex<Bulk>,
    clock: Clock,
    store: Arc<Store>,
    /// Told when the store has failed.
    fatal: CancellationToken,
    failure: Mutex<Option<StoreError>>,
    /// Changes that nobody waits for are durable at the latest after this time.
    unawaited_sync_after: Duration,
    /// A checkpoint is made at the latest so long after the last one.
    checkpoint_every: Duration,
}

#[derive(Debug)]
struct Inner {
    core: Core,
    ring: Arc<Ring>,
    outboxes: HashMap<ConnectionId, Arc<Outbox>, RandomState>,
    /// What the first sync thread sleeps for.
    sync_sleeps: Sleep,
    /// Whether the second one sleeps.
    second_sleeps: bool,
    /// When the timer will look again, in ms of the monotonic clock.
    timer_at: Option<Mono>,
    is_stopping: bool,
}

/// What the sync thread sleeps for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    /// It syncs.
    Not,
    /// Nothing any more: it was woken and will seal what there is.
    Waking,
    /// A change.
    UntilDirty,
    /// Somebody to wait for the changes that there are, or the time after which they are synced
    /// anyway.
    UntilAwaited,
}

/// Which of the two threads that sync: two writes are under way at most.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Syncs whatever there is.
    First,
    /// Syncs what somebody waits for while the first one is at work.
    Second,
}

/// How long a shard may put things off.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Changes that nobody waits for are durable at the latest after this time. Default 20 ms.
    pub unawaited_sync_after: Duration,
    /// A checkpoint is made at the latest so long after the last one. Default 5 s.
    pub checkpoint_every: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            unawaited_sync_after: Duration::from_millis(20),
            checkpoint_every: Duration::from_secs(5),
        }
    }
}

/// Replies and notices with where they go.
#[derive(Debug, Default)]
struct Delivery {
    replies: Vec<(Arc<Outbox>, Reply)>,
    notices: Vec<(Arc<Outbox>, ganger_protocol::response::Notice)>,
    /// The ring, when there are events for those who follow.
    news: Option<Arc<Ring>>,
}

impl Shard {
    /// A shard over an open core. Its threads are started by [`Shard::start`].
    pub fn new(core: Core, clock: Clock, fatal: CancellationToken, pace: &Pace) -> Self {
        let store = Arc::clone(core.store());
        let ring = Ring::new();
        Self {
            inner: Mutex::new(Inner {
                core,
                ring: Arc::clone(&ring),
                outboxes: HashMap::default(),
                sync_sleeps: Sleep::Not,
                second_sleeps: false,
                timer_at: None,
                is_stopping: false,
            }),
            lock_waiters: AtomicUsize::new(0),
            lock_waits: AtomicUsize::new(0),
            dirty: Condvar::new(),
            needed: Condvar::new(),
            sending: AtomicUsize::new(0),
            room: Notify::new(),
            is_congested: AtomicBool::new(false),
            timer: OnceLock::new(),
            reader: OnceLock::new(),
            checkpointer: OnceLock::new(),
            checkpoint_rests: AtomicBool::new(false),
            ring,
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            bulk: Mutex::default(),
            clock,
            store,
            fatal,
            failure: Mutex::new(None),
            unawaited_sync_after: pace.unawaited_sync_after,
            checkpoint_every: pace.checkpoint_every,
        }
    }

    /// Replies to this connection go there from now on.
    pub fn attach(&self, outbox: &Arc<Outbox>) {
        self.lock()
            .outboxes
            .insert(outbox.connection(), Arc::clone(outbox));
    }

    /// A connection is gone.
    pub fn detach(&self, connection: ConnectionId, session: Option<ganger_protocol::SessionId>) {
        let command = Command::Detach {
            connection,
            session,
        };
        self.submit([command]);
        self.lock().outboxes.remove(&connection);
    }

    /// Applies commands in order. What may leave at once leaves before this returns; the session
    /// that the last of them opened, if any, is returned. After a failure of the store nothing is
    /// applied and nothing answered.
    pub fn submit(&self, commands: impl IntoIterator<Item = Command>) -> Option<SessionOpened> {
        let mut inner = self.lock();
        let now = self.clock.now();
        let mut delivery = Delivery::default();
        let mut session = None;
        for command in commands {
            if self.has_failed() {
                return None;
            }
            match inner.core.apply(now, command) {
                Ok(released) => {
                    session = released.session.clone().or(session);
                    inner.route(released, &mut delivery);
                }
                Err(error) => {
                    self.fail(error);
                    return None;
                }
            }
        }
        self.leave(inner, now, delivery);
        session
    }

    /// Follows what happens in a namespace: what comes next, or from a place on.
    ///
    /// # Errors
    /// As [`Ring::follow`].
    pub fn follow(
        &self,
        namespace: NamespaceName,
        subscribe: Subscribe,
    ) -> Result<Follower, WireError> {
        let Subscribe { filter, from } = subscribe;
        let now = self.clock.now().wall;
        let follower = self.ring.follow(now, namespace, filter, from)?;
        self.submit([Command::Watch(true)]);
        Ok(follower)
    }

    /// Changes whenever something has happened, while somebody follows.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.ring.news()
    }

    /// After changes: lets the lock go, wakes whom they concern, and sends what may leave. Whoever
    /// was woken earlier would only wait for the lock.
    fn leave(&self, mut inner: MutexGuard<'_, Inner>, now: Now, delivery: Delivery) {
        if inner.core.undurable_bytes() > UNDURABLE_BYTES_MAX {
            self.is_congested.store(true, Ordering::Release);
        }
        let syncing = self.wake_sync(&mut inner);
        let is_earlier = inner.wake_timer(now);
        drop(inner);
        match syncing {
            Some(Part::First) => self.dirty.notify_one(),
            Some(Part::Second) => self.needed.notify_one(),
            None => {}
        }
        if is_earlier && let Some(timer) = self.timer.get() {
            timer.unpark();
        }
        delivery.send(now.mono);
    }

    /// The thread that is to be woken to sync what has changed.
    fn wake_sync(&self, inner: &mut Inner) -> Option<Part> {
        let (part, is_woken) = match inner.sync_sleeps {
            Sleep::Waking => return None,
            Sleep::Not => (
                Part::Second,
                inner.second_sleeps && self.wants_second(inner),
            ),
            Sleep::UntilDirty => (Part::First, inner.core.is_unsynced()),
            Sleep::UntilAwaited => (Part::First, inner.core.is_awaited()),
        };
        if !is_woken {
            return None;
        }
        match part {
            Part::First => inner.sync_sleeps = Sleep::Waking,
            Part::Second => inner.second_sleeps = false,
        }
        Some(part)
    }

    /// Whether the second sync thread has something to do.
    fn wants_second(&self, inner: &Inner) -> bool {
        let under_way = inner.core.syncing_replies() + self.sending.load(Ordering::Acquire);
        inner.sync_sleeps == Sleep::Not
            && inner.core.is_awaited()
            && under_way <= LONELY_REPLIES_MAX
    }

    /// Waits while too much is not durable. Cancel-safe: nothing is taken.
    pub async fn has_room(&self) {
        while self.is_congested.load(Ordering::Acquire) {
            let room = self.room.notified();
            if !self.is_congested.load(Ordering::Acquire) {
                return;
            }
            room.await;
        }
    }

    /// One page of dead jobs. It is answered when everything it may show is durable.
    pub fn list_dead(&self, origin: &Origin, list: &DeadList) {
        let page = self.dead_page(origin, list);
        self.answer(origin.caller, page.map(ReplyBody::Jobs));
    }

    /// Answers a caller when everything that has happened so far is durable.
    fn answer(&self, caller: Caller, result: Result<ReplyBody, WireError>) {
        let now = self.clock.now();
        let mut delivery = Delivery::default();
        let mut inner = self.lock();
        let reply = Reply {
            caller,
            after: Default::default(),
            result,
        };
        let released = inner.core.defer(reply);
        inner.route(released, &mut delivery);
        self.leave(inner, now, delivery);
    }

    /// One of the lists that may be read at the same time.
    fn scan_permit(&self) -> Result<OwnedSemaphorePermit, WireError> {
        let permit = Arc::clone(&self.scans).try_acquire_owned();
        permit.map_err(|_none| {
            let message = format!("{SCANS_MAX} lists are being read; try again");
            WireError::overloaded(message, DurationMs(100))
        })
    }

    fn dead_page(&self, origin: &Origin, list: &DeadList) -> Result<JobsReply, WireError> {
        let _permit = self.scan_permit()?;
        let number = {
            let mut inner = self.lock();
            let number = inner.core.queue_named(origin, &list.queue)?;
            // What has happened so far is in the store's sealed groups from here on.
            if let Err(error) = inner.core.seal(self.clock.now()) {
                return Err(self.fail(error));
            }
            number
        };
        let after = list
            .cursor
            .as_deref()
            .map(|text| dead_cursor::read(text, number))
            .transpose()?;
        let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
        let page = self
            .store
            .closed_page(number, JobState::Dead, after, list.newest_first, limit);
        let records = page.map_err(|error| self.fail(error))?;
        let cursor = records
            .last()
            .filter(|_| records.len() == limit)
            .map(|last| {
                dead_cursor::write(&Closed {
                    queue: number,
                    state: JobState::Dead,
                    at: last.closed_at.unwrap_or_default(),
                    job: last.id,
                })
            });
        let jobs = records
            .iter()
            .filter_map(|record| record.view(list.queue.clone()))
            .collect();
        Ok(JobsReply { jobs, cursor })
    }

    /// The store has failed: nothing is answered ok any more, and the server is told to stop.
    fn fail(&self, error: StoreError) -> WireError {
        tracing::error!(%error, "the store failed; nothing is acknowledged any more");
        let message = format!("the store failed: {error}");
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.fatal.cancel();
        self.dirty.notify_all();
        self.needed.notify_all();
        WireError::new(ganger_protocol::ErrorCode::Unavailable, message)
    }

    fn has_failed(&self) -> bool {
        self.fatal.is_cancelled()
    }

    /// Why the store failed, once it has.
    pub fn take_failure(&self) -> Option<StoreError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Looks at the engine.
    pub fn look<T>(&self, look: impl FnOnce(&Core) -> T) -> T {
        look(&self.lock().core)
    }

    /// The store, to read from.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The tasks. Never taken together with the lock of the shard.
    fn bulk(&self) -> MutexGuard<'_, Bulk> {
        self.bulk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No code panics while it holds this lock but by a bug, after which the server stops anyway.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        if let Ok(inner) = self.inner.try_lock() {
            return inner;
        }
        self.lock_waiters.fetch_add(1, Ordering::SeqCst);
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock_waiters.fetch_sub(1, Ordering::SeqCst);
        self.lock_waits.fetch_add(1, Ordering::SeqCst);
        inner
    }

    /// Lets others go on that wait for the lock. It is not a fair one, and who takes it over and over may
    /// keep it from the others for seconds.
    fn give_way(&self) {
        let waits = self.lock_waits.load(Ordering::SeqCst);
        std::thread::yield_now();
        while self.lock_waiters.load(Ordering::SeqCst) > 0
            && self.lock_waits.load(Ordering::SeqCst) == waits
        {
            std::thread::yield_now();
        }
    }
}

impl Inner {
    /// Whether the timer is to be woken, since something is due earlier than it thinks.
    fn wake_timer(&mut self, now: Now) -> bool {
        let Some(wait) = self.core.next_wakeup(now) else {
            return false;
        };
        let due = now.mono.plus(wait);
        let is_earlier = self.timer_at.is_none_or(|armed| due < armed);
        if is_earlier {
            self.timer_at = Some(due);
        }
        is_earlier
    }

    fn route(&mut self, released: Released, delivery: &mut Delivery) {
        for reply in released.replies {
            if let Some(outbox) = self.outboxes.get(&reply.caller.connection) {
                delivery.replies.push((Arc::clone(outbox), reply));
            }
        }
        for (connection, notice) in released.notices {
            if let Some(outbox) = self.outboxes.get(&connection) {
                delivery.notices.push((Arc::clone(outbox), notice));
            }
        }
        if !released.events.is_empty() {
            // Under the lock, so that groups are recorded in their order.
            if !self.ring.record(released.events) {
                self.core.unwatch();
            }
            delivery.news = Some(Arc::clone(&self.ring));
        }
    }
}

impl Delivery {
    /// Encodes everything, then sends once a connection: jobs go first, since a worker rests until one
    /// comes, and who has pushed it has it off its hands.
    fn send(self, now: Mono) {
        let mut touched: Vec<(bool, Arc<Outbox>)> = Vec::new();
        for (outbox, notice) in self.notices {
            outbox.notice(&notice);
            touched.push((false, outbox));
        }
        for (outbox, reply) in self.replies {
            let brings_jobs =
                matches!(&reply.result, Ok(ReplyBody::Fetch(fetch)) if !fetch.jobs.is_empty());
            outbox.reply(reply);
            touched.push((brings_jobs, outbox));
        }
        touched.sort_by_key(|(brings_jobs, outbox)| (outbox.connection(), !brings_jobs));
        touched.dedup_by_key(|(_, outbox)| outbox.connection());
        touched.sort_by_key(|(brings_jobs, _)| !brings_jobs);
        for (_, outbox) in touched {
            outbox.flush(|| now);
        }
        if let Some(ring) = self.news {
            ring.wake();
        }
    }
}

/// Where a page of a list ended, as opaque text.
mod dead_cursor {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use ganger_engine::records::{Closed, QueueNumber};
    use ganger_protocol::Timestamp;

    use super::{JobId, JobState, WireError};

    pub(super) fn write(row: &Closed) -> String {
        let mut bytes = Vec::with_capacity(12 + JobId::BYTES);
        bytes.extend(row.queue.0.to_be_bytes());
        bytes.extend(row.at.0.to_be_bytes());
        bytes.extend(row.job.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub(super) fn read(text: &str, queue: QueueNumber) -> Result<Closed, WireError> {
        let refused =
            || WireError::bad_request("cursor", "the cursor is not one that this list has given");
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_not_ours| refused())?;
        let (number, rest) = bytes.split_first_chunk().ok_or_else(refused)?;
        let (at, job) = rest.split_first_chunk().ok_or_else(refused)?;
        let job: [u8; JobId::BYTES] = job.try_into().map_err(|_not_ours| refused())?;
        if u32::from_be_bytes(*number) != queue.0 {
            return Err(refused());
        }
        Ok(Closed {
            queue,
            state: JobState::Dead,
            at: Timestamp(u64::from_be_bytes(*at)),
            job: JobId::from_bytes(job),
        })
    }
}
