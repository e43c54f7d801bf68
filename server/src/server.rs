//! Puts a server together: opens the shards, listens, and at the end drains and closes.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ganger_engine::{HeadBudget, Options, facts::Recovered};
use ganger_protocol::{NamespaceName, limits::Limits, response::Counters};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Failures, NoRandomness, ServerSecret},
    clock::{Clock, Stopwatch},
    config::{Config, ConfigError, Sync},
    data_dir::{existing_shards, make_private_dir, shard_dir},
    driver::{Core, Pace, Shard, Shards, SharedNamespace},
    listener::{self, Connections},
    reload::{Control, Live},
    store::{Store, StoreError, StoreOptions, log::LogOptions},
    tasks::{OnPanic, Periodic, Tasks},
};

/// What every connection shares.
#[derive(Debug)]
pub struct Shared {
    pub(crate) shards: Shards,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) secret: ServerSecret,
    pub(crate) limits: Limits,
    pub(crate) connections: Connections,
    /// Bytes of unfinished frames over all connections.
    pub(crate) in_flight_bytes: AtomicUsize,
    /// Becomes cancelled when no further connection is accepted.
    pub(crate) closed_to_new: CancellationToken,
    live: RwLock<Arc<Live>>,
    failures: Mutex<Failures>,
    is_draining: AtomicBool,
    is_short_of_space: AtomicBool,
    data_dir: PathBuf,
}

impl Shared {
    /// What can change while the server runs, as it is now.
    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_live(&self, live: Live) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
    }

    pub(crate) fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    pub(crate) fn is_short_of_space(&self) -> bool {
        self.is_short_of_space.load(Ordering::Acquire)
    }

    fn look_at_space(&self) {
        let Some(free) = FreeSpace::of(&self.data_dir) else {
            return;
        };
        let is_short = free.is_below_floor();
        if self.is_short_of_space.swap(is_short, Ordering::AcqRel) != is_short {
            match is_short {
                true => tracing::warn!(
                    free_bytes = free.free,
                    "the disk is nearly full: pushes are refused"
                ),
                false => tracing::info!(free_bytes = free.free, "the disk has room again"),
            }
        }
    }
}

/// Free and total bytes of a file system.
#[derive(Debug, Clone, Copy)]
struct FreeSpace {
    free: u64,
    total: u64,
}

impl FreeSpace {
    fn of(path: &Path) -> Option<Self> {
        let stat = rustix::fs::statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some(Self {
            free: bytes(stat.f_bavail),
            total: bytes(stat.f_blocks),
        })
    }

    /// Pushes are refused below max(256 MiB, min(5 %, 4 GiB)).
    fn is_below_floor(&self) -> bool {
        self.free < (self.total / 20).clamp(256 << 20, 4 << 30)
    }
}

/// The periodic work of a server.
static PERIODIC: [Periodic<Arc<Shared>>; 2] = [
    Periodic {
        name: "sweep_connections",
        every: Duration::from_secs(1),
        run: |shared| {
            shared
                .connections
                .sweep(shared.clock.now().mono, &shared.live().patience);
        },
    },
    Periodic {
        name: "look_at_space",
        every: Duration::from_secs(1),
        run: |shared| shared.look_at_space(),
    },
];

/// What a server found in its store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RecoveredCounts {
    /// Shards that were opened.
    pub shards: usize,
    /// Queues.
    pub queues: usize,
    /// Sessions of workers.
    pub sessions: usize,
    /// Leases that live on.
    pub leases: usize,
    /// Jobs by state and outcome, over all queues.
    pub jobs: Counters,
    /// How long opening took, in ms.
    pub recovery_ms: u64,
}

/// Why a server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The data directory cannot be used.
    #[error("the data directory {} cannot be used", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A shard cannot be opened.
    #[error("the store in {} cannot be opened", path.display())]
    Open {
        /// The directory of the shard.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The store failed while the server ran.
    #[error("the store failed")]
    Store(#[source] StoreError),
    /// Two shards have the same namespace.
    #[error(transparent)]
    SharedNamespace(#[from] SharedNamespace),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration does not go.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system gave no random bytes.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The system gave no thread.
    #[error("no thread could be started")]
    Thread(#[source] std::io::Error),
}

impl ServeError {
    /// Whether the store is to blame: the process exits with 74 then.
    pub fn is_storage(&self) -> bool {
        matches!(
            self,
            Self::Store(_) | Self::Open { .. } | Self::DataDir { .. }
        )
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listen: SocketAddr,
    recovered: RecoveredCounts,
    fatal: CancellationToken,
    drain_timeout: Duration,
}

impl Server {
    /// Opens the store and listens. When this returns, clients can connect.
    ///
    /// # Errors
    /// When the store cannot be opened or the address not be listened on.
    pub fn start(config: &Config) -> Result<Self, ServeError> {
        let opening = Stopwatch::start();
        let clock = Clock::system();
        let fatal = CancellationToken::new();
        let crons = config.file_crons()?;
        let (shards, secret, mut recovered) = open_shards(config, &clock, &fatal)?;
        // Before the timers run: what was taken out of the file pushes nothing any more.
        shards.take_file_crons(&crons);
        let tasks = Tasks::new();
        for shard in shards.iter() {
            shard.start(&tasks).map_err(ServeError::Thread)?;
        }
        let bind = |source| ServeError::Listen {
            address: config.listen,
            source,
        };
        let listener = listener::bind(config.listen).map_err(bind)?;
        let listen = listener.local_addr().map_err(bind)?;
        recovered.recovery_ms = u64::try_from(opening.elapsed().as_millis()).unwrap_or(u64::MAX);
        let shared = Arc::new(Shared {
            shards,
            clock,
            tasks,
            secret,
            limits: config.limits.announced(),
            connections: Connections::default(),
            in_flight_bytes: AtomicUsize::new(0),
            closed_to_new: CancellationToken::new(),
            live: RwLock::new(Arc::new(Live::new(config)?)),
            failures: Mutex::new(Failures::default()),
            is_draining: AtomicBool::new(false),
            is_short_of_space: AtomicBool::new(false),
            data_dir: config.data_dir.clone(),
        });
        shared.look_at_space();
        shared.tasks.spawn_periodic(&shared, &PERIODIC);
        shared.tasks.spawn(
            "listener",
            OnPanic::Stop,
            listener::run(Arc::clone(&shared), listener),
        );
        let drain_timeout = config.drain_timeout.duration();
        Ok(Self {
            shared,
            listen,
            recovered,
            fatal,
            drain_timeout,
        })
    }

    /// The address that clients connect to.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What reloads the configuration of this server while it runs, and tells its state.
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.shared))
    }

    /// What was found in the store.
    pub fn recovered(&self) -> RecoveredCounts {
        self.recovered
    }

    /// Serves until `shutdown` is cancelled, then drains: refuses pushes and fetches, answers what
    /// is in flight, syncs, and closes the store.
    ///
    /// # Errors
    /// When the store failed. Nothing was answered ok after that.
    pub async fn run_until_drained(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let stopping = self.shared.tasks.stopping();
        tokio::select! {
            () = shutdown.cancelled() => self.drain().await,
            () = self.fatal.cancelled() => {}
            () = stopping.cancelled() => {}
        }
        self.close().await
    }

    /// Answers what is in flight, for as long as the drain may take.
    async fn drain(&self) {
        tracing::info!("draining");
        self.shared.is_draining.store(true, Ordering::Release);
        self.shared.closed_to_new.cancel();
        let answered = async {
            loop {
                let dirty = self
                    .shared
                    .shards
                    .iter()
                    .any(|shard| shard.look(Core::is_dirty));
                let (_, unsent) = self.shared.connections.outstanding();
                if !dirty && unsent == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = answered => {}
            () = self.fatal.cancelled() => {}
            () = tokio::time::sleep(self.drain_timeout) => {
                tracing::warn!("the drain took too long; connections are closed");
            }
        }
    }

    async fn close(self) -> Result<(), ServeError> {
        self.shared.closed_to_new.cancel();
        self.shared.connections.close_all();
        for shard in self.shared.shards.iter() {
            shard.stop();
        }
        if let Err(unfinished) = self.shared.tasks.shutdown(Duration::from_secs(10)).await {
            tracing::warn!(%unfinished, "not everything has stopped");
        }
        for shard in self.shared.shards.iter() {
            if let Some(error) = shard.take_failure() {
                return Err(ServeError::Store(error));
            }
            // Nothing else runs any more, so this thread may wait for the disk.
            shard.store().settle().map_err(ServeError::Store)?;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Opens every shard that is there, and makes those that are missing.
fn open_shards(
    config: &Config,
    clock: &Clock,
    fatal: &CancellationToken,
) -> Result<(Shards, ServerSecret, RecoveredCounts), ServeError> {
    let data_dir = |source| ServeError::DataDir {
        path: config.data_dir.clone(),
        source,
    };
    make_private_dir(&config.data_dir).map_err(data_dir)?;
    let existing = existing_shards(&config.data_dir).map_err(data_dir)?;
    let numbers: BTreeSet<u16> = existing.into_iter().chain(0..config.shards).collect();
    let mut counts = RecoveredCounts {
        shards: numbers.len(),
        ..RecoveredCounts::default()
    };
    let (mut shards, mut secret) = (Vec::new(), None);
    for number in numbers {
        let path = shard_dir(&config.data_dir, number);
        let open = |source| ServeError::Open {
            path: path.clone(),
            source,
        };
        let (store, recovered) =
            Store::open_dir(&path, &store_options(config, number)).map_err(open)?;
        let own = store.secret();
        let key = *secret.get_or_insert(own);
        let namespaces = namespaces(&recovered);
        counts.queues += recovered.queues.len();
        counts.sessions += recovered.sessions.len();
        for queue in &recovered.queues {
            counts.jobs.add(&queue.counters);
        }
        let now = clock.now();
        let options = Options {
            secret: own,
            ..engine_options(config, number, key)
        };
        let mut core = Core::open(now, options, Arc::new(store), recovered);
        counts.leases += core.engine().leases();
        // The first group reserves the numbers of leases: nothing is granted before it is durable.
        core.seal(now).map_err(open)?;
        let durable = core.store().sync().map_err(open)?;
        core.synced(durable);
        let mut pace = Pace {
            checkpoint_every: config.store.checkpoint_interval.duration(),
            ..Pace::default()
        };
        if let Sync::Interval(interval) = config.sync {
            pace.unawaited_sync_after = Duration::from_millis(interval.0);
            core = core.answering_before_sync();
        }
        let shard = Shard::new(core, clock.clone(), fatal.clone(), &pace);
        shards.push((Arc::new(shard), namespaces));
    }
    let secret = ServerSecret::new(secret.unwrap_or_default());
    Ok((Shards::new(shards)?, secret, counts))
}

fn store_options(config: &Config, shard: u16) -> StoreOptions {
    StoreOptions {
        shard,
        cache_bytes: config.store.cache_bytes.0,
        log: LogOptions {
            segment_bytes_max: config.store.log_segment_bytes.0,
            ..LogOptions::default()
        },
        overlay_bytes_max: config.store.overlay_bytes_max.bytes(),
        checkpoint_bytes: config.store.checkpoint_bytes.0,
        ..StoreOptions::default()
    }
}

fn engine_options(config: &Config, shard: u16, key: [u8; 32]) -> Options {
    let [a, b, c, d, e, f, g, h, ..] = key;
    Options {
        shard,
        limits: config.limits.announced(),
        heads: HeadBudget {
            heads_max: usize::try_from(config.heads.count_max).unwrap_or(usize::MAX),
            bytes_max: config.heads.payload_bytes_max.bytes(),
        },
        seed: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        ..Options::default()
    }
}

/// The namespaces that a shard's store has.
fn namespaces(recovered: &Recovered) -> BTreeSet<NamespaceName> {
    let queues = recovered.queues.iter().map(|queue| &queue.namespace);
    let sessions = recovered.sessions.iter().map(|session| &session.namespace);
    let crons = recovered.crons.iter().map(|cron| &cron.namespace);
    queues.chain(sessions).chain(crons).cloned().collect()
}
