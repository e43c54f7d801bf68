//! A worker: fetches jobs, runs their handlers, and tells the server how they ended. This file is
//! its face; the loop is in `run`, what it tells the server in `asked`.

mod asked;
mod builder;
mod context;
mod run;
mod shutdown;
mod tally;

use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::CancellationToken;

use self::{
    builder::{Handler, Settings},
    run::Run,
    tally::Counters,
};
pub use self::{
    builder::{WorkerBuilder, WorkerError},
    context::{CancelReason, Context, LeasedJob, PayloadError},
    shutdown::shutdown_on_signals,
    tally::Tally,
};
use crate::{client::Client, error::Error, options::ClientOptions};

/// Fetches jobs and runs them until it is told to stop. It has a connection of its own, which it
/// keeps up by itself: over a lost connection and a restart of the server attempts go on.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use ganger_client::{ClientOptions, Failure, Worker};
///
/// let worker = Worker::builder(ClientOptions::new("localhost"))
///     .queues(["mail"])
///     .concurrency(20)
///     .handler(|job, context| async move {
///         let address: String = job.read()?;
///         if !address.contains('@') {
///             return Err(Failure::new("address", "no address").dead());
///         }
///         println!("mail to {address}, lease {}", context.lease());
///         Ok(())
///     })
///     .build()?;
/// worker.run(ganger_client::shutdown_on_signals()?).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Worker {
    options: ClientOptions,
    settings: Settings,
    handler: Handler,
    counters: Counters,
}

impl Worker {
    /// A worker for this server.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, Worker};
    /// let builder = Worker::builder(ClientOptions::new("localhost"));
    /// ```
    pub fn builder(options: ClientOptions) -> WorkerBuilder {
        WorkerBuilder::new(options)
    }

    fn new(options: ClientOptions, settings: Settings, handler: Handler) -> Self {
        Self {
            options,
            settings,
            handler,
            counters: Counters::default(),
        }
    }

    /// What the worker has done so far.
    ///
    /// ```no_run
    /// # fn example(worker: ganger_client::Worker) {
    /// println!("{} acked", worker.tally().acked_count);
    /// # }
    /// ```
    pub fn tally(&self) -> Tally {
        self.counters.tally()
    }

    /// Runs until `shutdown` is cancelled or the server says `terminate`. Then no more jobs are
    /// fetched, what runs may end within the drain time-out, what has not ended is aborted and its
    /// leases are given back, and the last acks are sent.
    ///
    /// # Errors
    /// When the server refuses the worker: its token, its namespace, or one of its queues.
    ///
    /// ```no_run
    /// # async fn example(worker: ganger_client::Worker) -> Result<(), ganger_client::Error> {
    /// # use tokio_util::sync::CancellationToken;
    /// let tally = worker.run(CancellationToken::new()).await?;
    /// println!("{} acked, {} failed", tally.acked_count, tally.failed_count);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run(&self, shutdown: CancellationToken) -> Result<Tally, Error> {
        let (sender, events) = unbounded_channel();
        let client = Client::start(self.options.clone(), Some(sender));
        let run = Run::new(self, client.clone(), events);
        let result = run.until_stopped(&shutdown).await;
        client.close().await;
        result.map(|()| self.tally())
    }
}
