//! The simulated machine: one server over a faulty disk, its sync and checkpoint threads and its
//! timer, all driven by one seed, a step at a time.
//!
//! What clients do is in [`crate::clients`], what they were told in [`crate::history`].

use std::{collections::BTreeMap, sync::Arc};

use fastrand::Rng;
use ganger_engine::{
    command::{Caller, Command, ConnectionId, Now, Origin, Producer, Reply, SessionOpened},
    records::GroupNumber,
};
use ganger_protocol::{
    DurationMs, NamespaceName, SessionId,
    request::{Operation, SessionHello},
    response::{Notice, ReplyBody},
};
use ganger_server::{
    driver::{Core, Released, bulk::Task},
    store::{CheckpointProgress, GroupWrite, Store, StoreOptions, memory::MemoryDisk},
};

use crate::{
    batches::Batches,
    clients::{Asked, Clients, Held},
    clock::Clock,
    crons::Crons,
    history::{Checked, History},
    limits::{AskedLimit, Limits},
    outcomes::Outcomes,
    plan::Plan,
    trace::Trace,
    workflows::Workflows,
};

/// The secret of every store.
pub const SECRET: [u8; 32] = [7; 32];

/// Everything of one run.
pub struct World {
    pub rng: Rng,
    pub plan: Plan,
    pub clock: Clock,
    pub trace: Trace,
    pub history: History,
    pub clients: Clients,
    pub crons: Crons,
    pub batches: Batches,
    pub outcomes: Outcomes,
    pub limits: Limits,
    pub workflows: Workflows,
    pub disk: MemoryDisk,
    pub store_options: StoreOptions,
    pub server: Option<Server>,
    /// Whether a call of the disk is going to fail.
    pub is_faulty: bool,
    pub next_connection: u64,
    pub next_request: u64,
    /// Requests without an answer.
    pub pending: BTreeMap<Caller, Pending>,
    /// Whether a fetch may have been decided whose reply waits.
    pub has_withheld: bool,
    /// Fetches without an answer.
    pub fetches: usize,
    /// Leases of the fetches that drain.
    pub drained: Vec<Held>,
    /// The task that runs: of which queue, whether it cancels.
    pub task: Option<(usize, bool, Task)>,
}

/// A process of the server.
pub struct Server {
    pub core: Core,
    pub store: Arc<Store>,
    /// The two threads that sync.
    pub syncs: [Sync; 2],
    pub ticks: u32,
}

/// How far a thread that syncs is.
#[derive(Debug, Default)]
pub enum Sync {
    #[default]
    Idle,
    Sealed,
    Gathered(GroupWrite),
    Written(GroupNumber),
}

/// A request without an answer.
#[derive(Debug)]
pub struct Pending {
    pub asked: Asked,
    /// The open group when it was applied.
    pub group: u64,
    pub mono: u64,
    pub wall: u64,
    pub operation: u64,
    pub session: Option<SessionId>,
    pub is_detached: bool,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct From {
    pub connection: ConnectionId,
    pub namespace: NamespaceName,
    pub session: Option<SessionId>,
    pub producer: Option<Producer>,
}

/// The circumstances in which a reply left.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// The request whose apply released it; absent for replies that a sync released.
    pub by: Option<Caller>,
    /// The open group of that apply, or now.
    pub group: u64,
    /// Whether replies to fetches may have been withheld before it.
    pub had_withheld: bool,
}

impl World {
    pub fn new(seed: u64, is_verbose: bool) -> Checked<Self> {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::draw(&mut rng);
        let store_options = StoreOptions {
            overlay_bytes_max: plan.overlay_bytes_max,
            checkpoint_bytes: plan.checkpoint_bytes,
            slice_operations_max: plan.slice_operations_max,
            log_bytes_max: plan.overlay_bytes_max as u64 * 4,
            secret: Some(SECRET),
            ..StoreOptions::default()
        };
        let mut world = Self {
            history: History::new(plan.queues.len(), plan.poison_losses),
            clients: Clients::new(&plan),
            crons: Crons::default(),
            batches: Batches::default(),
            outcomes: Outcomes::default(),
            limits: Limits::default(),
            workflows: Workflows::default(),
            rng,
            plan,
            clock: Clock::new(),
            trace: Trace::new(is_verbose),
            disk: MemoryDisk::new(),
            store_options,
            server: None,
            is_faulty: false,
            next_connection: 0,
            next_request: 0,
            pending: BTreeMap::new(),
            has_withheld: false,
            fetches: 0,
            drained: Vec::new(),
            task: None,
        };
        world.history.is_steady = !world.plan.has_jumps;
        world.start()?;
        Ok(world)
    }

    /// One step: time passes, and something happens.
    pub fn step(&mut self) -> Checked {
        self.trace.step();
        let pause = match self.rng.u32(..100) {
            0..60 => self.rng.u64(..4),
            60..90 => self.rng.u64(..40),
            90..98 => self.rng.u64(..400),
            _ => self.rng.u64(..4_000),
        };
        self.clock.advance(pause);
        self.see_time();
        let plan = &self.plan;
        let weights = [
            plan.producers_weight,
            plan.workers_weight,
            plan.admin_weight,
            plan.sync_weight,
            plan.tick_weight,
            plan.checkpoint_weight,
            plan.clock_weight,
            plan.trouble_weight,
            plan.cron_weight,
            plan.batch_weight,
            plan.outcome_weight,
            plan.limit_weight,
        ];
        let mut drawn = self.rng.u32(..weights.iter().sum::<u32>());
        let mut nth = 0;
        while drawn >= weights[nth] {
            drawn -= weights[nth];
            nth += 1;
        }
        match nth {
            0 => self.step_producer()?,
            1 => self.step_worker()?,
            2 => self.step_admin()?,
            3 => self.step_sync()?,
            4 => self.tick(4)?,
            5 => self.step_checkpoint()?,
            6 => self.step_clock(),
            7 => self.step_trouble()?,
            8 => self.step_cron()?,
            9 => self.step_batch()?,
            10 => self.step_outcome()?,
            _ => self.step_limit()?,
        }
        self.check()
    }

    /// The history knows how late it may be.
    pub fn see_time(&mut self) {
        let wall = self.clock.now().wall.0;
        self.history.wall_max = self.history.wall_max.max(wall);
    }

    /// What must hold after every step.
    fn check(&self) -> Checked {
        match &self.server {
            Some(server) => server.core.engine().check_invariants(),
            None => Ok(()),
        }
    }

    fn step_clock(&mut self) {
        match self.rng.u32(..10) {
            0 | 1 if self.plan.has_jumps => {
                let hour = 3_600_000;
                let ms = self.rng.i64(-hour..=hour);
                self.clock.jump(ms);
                self.trace.note(
                    self.clock.elapsed(),
                    "the wall clock steps by {} ms (+ 1 h)",
                    &[(ms + hour) as u64],
                );
            }
            2..5 => {
                let ms = self.rng.u64(1_000..10_000);
                self.clock.advance(ms);
                self.trace
                    .note(self.clock.elapsed(), "everything stalls for {} ms", &[ms]);
            }
            _ => self.sleep_until_wakeup(20_000),
        }
    }

    /// Time passes until the server has something to do, at most so long.
    pub fn sleep_until_wakeup(&mut self, ms_max: u64) {
        let now = self.clock.now();
        let wait = self
            .server
            .as_ref()
            .and_then(|server| server.core.next_wakeup(now));
        let ms = wait.map_or(ms_max, |wait| wait.0).min(ms_max);
        self.clock.advance(ms);
        self.trace.note(self.clock.elapsed(), "{} ms pass", &[ms]);
    }

    // The server's threads.

    fn step_sync(&mut self) -> Checked {
        let is_whole = self.rng.u32(..10) < 7;
        let thread = self.rng.usize(..2);
        for _ in 0..4 {
            self.sync_part(thread)?;
            let is_done = self
                .server
                .as_ref()
                .is_none_or(|server| matches!(server.syncs[thread], Sync::Idle));
            if is_done || !is_whole {
                break;
            }
        }
        Ok(())
    }

    /// Seals, gathers, writes and releases, the next of the four.
    fn sync_part(&mut self, thread: usize) -> Checked {
        let now = self.clock.now();
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let result = match std::mem::take(&mut server.syncs[thread]) {
            Sync::Idle => {
                if server.store.is_full() {
                    return self.make_room();
                }
                server.core.seal_for_sync(now).map(|_sealed| Sync::Sealed)
            }
            Sync::Sealed => server.store.gather().map(Sync::Gathered),
            Sync::Gathered(write) => server.store.write(write).map(Sync::Written),
            Sync::Written(durable) => return self.release(durable),
        };
        match result {
            Ok(next) => {
                if let Sync::Written(group) = next {
                    self.history.durable = self.history.durable.max(group.0);
                    self.trace
                        .note(self.clock.elapsed(), "group {} is durable", &[group.0]);
                }
                server.syncs[thread] = next;
                Ok(())
            }
            Err(error) => self.failed(&error),
        }
    }

    fn release(&mut self, durable: GroupNumber) -> Checked {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let released = server.core.synced(durable);
        let is_settled = !server.core.is_dirty();
        let context = Context {
            by: None,
            group: server.core.engine().open_group().0,
            had_withheld: true,
        };
        self.take(released, context)?;
        if is_settled {
            self.has_withheld = false;
            // What was detached and is not answered by now never will be.
            self.pending.retain(|_, pending| {
                let is_over = pending.is_detached && pending.asked.is_fetch();
                self.fetches -= usize::from(is_over);
                !is_over
            });
        }
        Ok(())
    }

    /// Seals, syncs and releases everything.
    pub fn settle(&mut self) -> Checked {
        for _ in 0..8 {
            self.sync_part(0)?;
            self.sync_part(1)?;
        }
        while self
            .server
            .as_ref()
            .is_some_and(|server| server.core.is_dirty())
        {
            self.sync_part(0)?;
            self.sync_part(1)?;
        }
        Ok(())
    }

    fn make_room(&mut self) -> Checked {
        for _ in 0..1_000 {
            let Some(server) = &self.server else {
                return Ok(());
            };
            if !server.store.is_full() {
                return Ok(());
            }
            self.checkpoint_slice()?;
        }
        Err("checkpoints make no room".to_owned())
    }

    fn step_checkpoint(&mut self) -> Checked {
        for _ in 0..self.rng.u32(1..6) {
            let is_due = match &self.server {
                Some(server) => server.store.checkpoint_due(true),
                None => false,
            };
            if !is_due || self.checkpoint_slice()? {
                break;
            }
        }
        Ok(())
    }

    /// One slice; whether the checkpoint is through.
    fn checkpoint_slice(&mut self) -> Checked<bool> {
        let Some(server) = &self.server else {
            return Ok(true);
        };
        // What timers ask for within two seconds is read ahead, between any two slices.
        let until = self.clock.now().wall.plus(DurationMs(2_000));
        let ahead = server.store.read_ahead(None, until);
        match ahead.and_then(|_| server.store.checkpoint_slice()) {
            Ok(progress) => {
                self.history.durable = self.history.durable.max(server.store.durable().0);
                let is_done = progress == CheckpointProgress::Done;
                self.trace.note(
                    self.clock.elapsed(),
                    "a checkpoint slice, done: {}",
                    &[u64::from(is_done)],
                );
                Ok(is_done)
            }
            Err(error) => self.failed(&error).map(|()| true),
        }
    }

    /// Fires what is due, at most so many slices.
    pub fn tick(&mut self, max: u32) -> Checked {
        for _ in 0..max {
            let now = self.clock.now();
            let Some(server) = &mut self.server else {
                return Ok(());
            };
            if server.core.next_wakeup(now).is_none_or(|wait| wait.0 > 0) {
                server.ticks = 0;
                return Ok(());
            }
            server.ticks += 1;
            if server.ticks > 500 {
                return Err("the timer has something to do for ever".to_owned());
            }
            self.trace.note(self.clock.elapsed(), "tick", &[]);
            self.apply(Command::Tick, None)?;
        }
        Ok(())
    }

    // Requests.

    pub fn connect(&mut self) -> ConnectionId {
        self.next_connection += 1;
        ConnectionId(self.next_connection)
    }

    /// Whether there is a server to talk to.
    pub fn is_up(&self) -> bool {
        self.server.is_some()
    }

    /// The open group of the server.
    pub fn open_group(&self) -> u64 {
        self.server
            .as_ref()
            .map_or(0, |server| server.core.engine().open_group().0)
    }

    /// Leases that the server thinks live.
    pub fn live_leases(&self) -> usize {
        self.server
            .as_ref()
            .map_or(0, |server| server.core.engine().leases())
    }

    /// Applies a slice of a task: how many jobs it changed and could not change; `None` when the
    /// server failed meanwhile.
    pub fn apply_slice(&mut self, task: &mut Task) -> Checked<Option<(u64, usize)>> {
        let now = self.clock.now();
        let Some(server) = &mut self.server else {
            return Ok(None);
        };
        let context = Context {
            by: None,
            group: server.core.engine().open_group().0,
            had_withheld: true,
        };
        match task.slice(&mut server.core, now) {
            Ok(progress) => {
                self.take(progress.released, context)?;
                self.has_withheld |= self.fetches > 0;
                Ok(Some((progress.changed, progress.refusals.len())))
            }
            Err(error) => self.failed(&error).map(|()| None),
        }
    }

    pub fn now(&self) -> Now {
        self.clock.now()
    }

    pub fn core_mut(&mut self) -> Option<&mut Core> {
        self.server.as_mut().map(|server| &mut server.core)
    }

    pub fn store(&self) -> Option<(Arc<Store>, &Core)> {
        let server = self.server.as_ref()?;
        Some((Arc::clone(&server.store), &server.core))
    }

    /// Sends a request, which is applied at once.
    pub fn request(&mut self, from: &From, operation: Operation, asked: Asked) -> Checked {
        if self.server.is_none() {
            return Ok(());
        }
        self.next_request += 1;
        let caller = Caller {
            connection: from.connection,
            request: self.next_request,
        };
        let mono = self.clock.now().mono.0;
        if let Some(session) = from.session {
            self.history.session_seen(session, mono);
        }
        self.fetches += usize::from(asked.is_fetch());
        let group = self.open_group();
        self.pending.insert(
            caller,
            Pending {
                asked,
                group,
                mono,
                wall: self.clock.now().wall.0,
                operation: self.history.operation(),
                session: from.session,
                is_detached: false,
            },
        );
        let origin = Origin {
            caller,
            namespace: from.namespace.clone(),
            session: from.session,
            producer: from.producer,
        };
        let waiting = self.waiting_fetches();
        self.apply(Command::Request(origin, operation), Some(caller))?;
        if self.waiting_fetches() > waiting
            && let Some(pending) = self.pending.get_mut(&caller)
            && let Asked::Limit(AskedLimit::Fetch(fetch)) = &mut pending.asked
        {
            fetch.stands = true;
        }
        Ok(())
    }

    fn waiting_fetches(&self) -> usize {
        let server = self.server.as_ref();
        server.map_or(0, |server| server.core.engine().waiting_fetches())
    }

    /// Opens or resumes a session.
    pub fn open_session(
        &mut self,
        from: &From,
        hello: SessionHello,
    ) -> Checked<Option<SessionOpened>> {
        let origin = Origin {
            caller: Caller {
                connection: from.connection,
                request: 0,
            },
            namespace: from.namespace.clone(),
            session: None,
            producer: None,
        };
        self.apply(Command::OpenSession { origin, hello }, None)
    }

    /// A connection is gone.
    pub fn detach(&mut self, connection: ConnectionId, session: Option<SessionId>) -> Checked {
        let (first, last) = (0, u64::MAX);
        let range = Caller {
            connection,
            request: first,
        }..=Caller {
            connection,
            request: last,
        };
        for (_, pending) in self.pending.range_mut(range) {
            pending.is_detached = true;
        }
        self.trace.note(
            self.clock.elapsed(),
            "connection {} is gone",
            &[connection.0],
        );
        let command = Command::Detach {
            connection,
            session,
        };
        self.apply(command, None).map(|_| ())
    }

    pub fn apply(
        &mut self,
        command: Command,
        by: Option<Caller>,
    ) -> Checked<Option<SessionOpened>> {
        let now = self.clock.now();
        let Some(server) = &mut self.server else {
            return Ok(None);
        };
        let context = Context {
            by,
            group: server.core.engine().open_group().0,
            had_withheld: self.has_withheld,
        };
        match server.core.apply(now, command) {
            Ok(mut released) => {
                let session = released.session.take();
                self.take(released, context)?;
                self.has_withheld |= self.fetches > 0;
                Ok(session)
            }
            Err(error) => self.failed(&error).map(|()| None),
        }
    }

    /// Hands out what the server released.
    fn take(&mut self, released: Released, context: Context) -> Checked {
        let Released {
            replies, notices, ..
        } = released;
        for (connection, notice) in notices {
            self.notice(connection, notice, context)?;
        }
        let mut last = Vec::new();
        for Reply { caller, result, .. } in replies {
            let Some(pending) = self.pending.remove(&caller) else {
                return Err(format!("{caller:?} was answered twice, or had not asked"));
            };
            self.fetches -= usize::from(pending.asked.is_fetch());
            // That a queue is paused holds from the moment on in which all of this was read.
            match pending.asked {
                Asked::Pause { .. } => last.push((caller, pending, result)),
                _ => self.reply(caller, pending, result, context)?,
            }
        }
        for (caller, pending, result) in last {
            self.reply(caller, pending, result, context)?;
        }
        Ok(())
    }

    fn notice(&mut self, to: ConnectionId, notice: Notice, context: Context) -> Checked {
        if self.crons.is_own(to) || self.batches.is_own(to) {
            return Ok(());
        }
        if self.outcomes.is_own(to) {
            self.outcomes.heard(&notice);
            return Ok(());
        }
        if self.limits.is_own(to) {
            return self.limits.heard(&notice, self.clock.elapsed());
        }
        let mono = self.clock.now().mono.0;
        if let Notice::Lost { leases } = notice {
            for lease in leases {
                self.trace
                    .note(self.clock.elapsed(), "lease {} is lost", &[lease.lease.0]);
                self.history.lease_lost(lease.lease, mono, context.group)?;
            }
        }
        Ok(())
    }
}

/// The body of a reply of this kind.
pub fn unexpected(body: &ReplyBody) -> String {
    format!("an answer of another kind: {body:?}")
}
