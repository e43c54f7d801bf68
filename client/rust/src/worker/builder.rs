//! The settings of a worker, and its handler with the types taken off.

use std::{collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use ganger_protocol::{
    QueuePattern,
    ids::IdError,
    limits::{FETCH_WAIT_MAX, SESSION_LEASES_MAX},
    request::SessionHello,
};

use super::{Context, LeasedJob, Worker};
use crate::{
    failure::Failure,
    job::millis,
    options::ClientOptions,
    progress::{IntoJobResult, JobResult},
};

const CONCURRENCY_DEFAULT: usize = 10;

/// Below the 30 s after which most supervisors kill what they have asked to stop.
const DRAIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(25);

const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// Why a builder made no worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// There is no queue to fetch from.
    #[error("a worker needs at least one queue")]
    NoQueue,
    /// There is no handler to call.
    #[error("a worker needs a handler")]
    NoHandler,
    /// A queue is neither a legal name nor a prefix with a final `*`.
    #[error("{queue:?} is no queue name and no pattern")]
    Queue {
        /// What was given.
        queue: String,
        /// What is wrong with it.
        source: IdError,
    },
}

/// Builds a [`Worker`].
///
/// ```
/// use std::time::Duration;
/// use ganger_client::{ClientOptions, Worker};
///
/// let worker = Worker::builder(ClientOptions::new("localhost"))
///     .queues(["critical", "mail.*"])
///     .concurrency(20)
///     .label("region", "eu")
///     .drain_timeout(Duration::from_secs(10))
///     .handler(|job, _context| async move {
///         println!("{} {}", job.kind, job.id);
///         Ok(())
///     })
///     .build()?;
/// # Ok::<(), ganger_client::WorkerError>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing before `build`"]
pub struct WorkerBuilder {
    options: ClientOptions,
    settings: Settings,
    handler: Option<Handler>,
    error: Option<WorkerError>,
}

/// What a worker runs with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) queues: Vec<QueuePattern>,
    pub(crate) weights: Vec<u32>,
    pub(crate) concurrency: usize,
    pub(crate) wait: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) extends: bool,
    pub(crate) session: SessionHello,
}

/// The future of one attempt.
pub(crate) struct Attempt(
    pub(crate) Pin<Box<dyn Future<Output = Result<JobResult, Failure>> + Send>>,
);

/// A handler of any type.
#[derive(Clone)]
pub(crate) struct Handler(Arc<dyn Fn(LeasedJob, Context) -> Attempt + Send + Sync>);

impl Handler {
    pub(crate) fn call(&self, job: LeasedJob, context: Context) -> Attempt {
        (self.0)(job, context)
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

impl WorkerBuilder {
    pub(super) fn new(options: ClientOptions) -> Self {
        let session = SessionHello {
            name: options.name.clone(),
            host: host(),
            pid: std::process::id(),
            ..SessionHello::default()
        };
        let settings = Settings {
            queues: Vec::new(),
            weights: Vec::new(),
            concurrency: CONCURRENCY_DEFAULT,
            wait: WAIT_DEFAULT,
            drain_timeout: DRAIN_TIMEOUT_DEFAULT,
            extends: true,
            session,
        };
        Self {
            options,
            settings,
            handler: None,
            error: None,
        }
    }

    /// The queues to fetch from, 1…64 names or prefixes with a final `*`. Those that stand first are
    /// served first, strictly; see [`WorkerBuilder::weighted_queues`].
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// let builder = Worker::builder(ClientOptions::new("localhost")).queues(["critical", "mail.*"]);
    /// ```
    pub fn queues<'a>(mut self, queues: impl IntoIterator<Item = &'a str>) -> Self {
        self.settings.queues.clear();
        self.settings.weights.clear();
        for queue in queues {
            self.add_queue(queue);
        }
        self
    }

    /// The queues to fetch from, each with its weight of 1…1000: a queue of weight 3 is served three
    /// times as often as one of weight 1, and none starves.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// let builder = Worker::builder(ClientOptions::new("localhost"))
    ///     .weighted_queues([("critical", 3), ("default", 1)]);
    /// ```
    pub fn weighted_queues<'a>(mut self, queues: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        self.settings.queues.clear();
        self.settings.weights.clear();
        for (queue, weight) in queues {
            self.add_queue(queue);
            self.settings.weights.push(weight);
        }
        self
    }

    /// How many attempts run at once, 1…1000; default 10.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// let builder = Worker::builder(ClientOptions::new("localhost")).concurrency(50);
    /// ```
    pub fn concurrency(mut self, count: usize) -> Self {
        self.settings.concurrency = count.clamp(1, SESSION_LEASES_MAX);
        self
    }

    /// What runs a job. It returns when the attempt is over: `Ok` acks, with a
    /// [`JobResult`] when it holds one, a [`Failure`] says what follows, and a panic is a failure of
    /// kind `panic`.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// let builder = Worker::builder(ClientOptions::new("localhost"))
    ///     .handler(|job, _context| async move {
    ///         let address: String = job.read()?;
    ///         println!("to {address}");
    ///         Ok(())
    ///     });
    /// ```
    pub fn handler<F, Running, Outcome>(mut self, handler: F) -> Self
    where
        F: Fn(LeasedJob, Context) -> Running + Send + Sync + 'static,
        Running: Future<Output = Result<Outcome, Failure>> + Send + 'static,
        Outcome: IntoJobResult,
    {
        let handler = move |job, context| {
            let running = handler(job, context);
            Attempt(Box::pin(async move {
                running.await.map(IntoJobResult::into_job_result)
            }))
        };
        self.handler = Some(Handler(Arc::new(handler)));
        self
    }

    /// The name of the worker, ≤ 256 bytes; default the name in the client's options.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// let builder = Worker::builder(ClientOptions::new("localhost")).name("mailer");
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.session.name = name.into();
        self
    }

    /// A label by which people find the worker; up to 16.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// let builder = Worker::builder(ClientOptions::new("localhost")).label("version", "1.4.2");
    /// ```
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let labels: &mut BTreeMap<_, _> = &mut self.settings.session.labels;
        labels.insert(name.into(), value.into());
        self
    }

    /// How long the server waits for a sign of life before it gives the jobs to others, 1 s…1 h;
    /// default the server's, 15 s.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// # use std::time::Duration;
    /// let builder = Worker::builder(ClientOptions::new("localhost")).ttl(Duration::from_secs(30));
    /// ```
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.session.ttl_ms = Some(millis(ttl));
        self
    }

    /// How long one fetch waits for a job, at most 60 s; default 30 s. The next one follows at once,
    /// so this only sets how often an idle worker speaks.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// # use std::time::Duration;
    /// let builder = Worker::builder(ClientOptions::new("localhost")).wait(Duration::from_secs(60));
    /// ```
    pub fn wait(mut self, wait: Duration) -> Self {
        self.settings.wait = wait.min(Duration::from_millis(FETCH_WAIT_MAX.0));
        self
    }

    /// How long running attempts may take once the worker is asked to stop; default 25 s. Those that
    /// are not over by then are aborted, and their leases given back.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// # use std::time::Duration;
    /// let builder = Worker::builder(ClientOptions::new("localhost"))
    ///     .drain_timeout(Duration::from_secs(5));
    /// ```
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain_timeout = timeout;
        self
    }

    /// Whether the deadline of a lease is moved for as long as the handler runs; default true.
    /// Without, an attempt that takes longer than the job's timeout fails with kind `timeout`, unless
    /// the handler calls [`Context::extend`].
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// let builder = Worker::builder(ClientOptions::new("localhost")).extend_leases(false);
    /// ```
    pub fn extend_leases(mut self, extend: bool) -> Self {
        self.settings.extends = extend;
        self
    }

    /// The worker.
    ///
    /// # Errors
    /// When there is no queue or no handler, or a queue is no legal name.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker, WorkerError};
    /// let built = Worker::builder(ClientOptions::new("localhost")).queues(["mail"]).build();
    /// assert_eq!(built.unwrap_err(), WorkerError::NoHandler);
    /// ```
    pub fn build(mut self) -> Result<Worker, WorkerError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if self.settings.queues.is_empty() {
            return Err(WorkerError::NoQueue);
        }
        let handler = self.handler.ok_or(WorkerError::NoHandler)?;
        let session = &mut self.settings.session;
        session.capacity = u32::try_from(self.settings.concurrency).unwrap_or(u32::MAX);
        let mut options = self.options.session(session.clone());
        // The worker's own connection does not push.
        options.producer = false;
        Ok(Worker::new(options, self.settings, handler))
    }

    fn add_queue(&mut self, queue: &str) {
        match queue.parse() {
            Ok(pattern) => self.settings.queues.push(pattern),
            Err(source) => {
                let queue = queue.to_owned();
                self.error = Some(WorkerError::Queue { queue, source });
            }
        }
    }
}

/// The name of this host; empty where it cannot be found without asking the network.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = name.or_else(|_| std::env::var("HOSTNAME"));
    name.unwrap_or_default().trim().to_owned()
}
