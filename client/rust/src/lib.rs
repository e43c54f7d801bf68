//! The client of ganger, a durable job-queue server: push jobs, and run them.
//!
//! # Pushing
//!
//! ```no_run
//! use ganger_client::{Client, ClientOptions, Job};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let client = Client::connect(ClientOptions::from_url("ganger://localhost")?).await?;
//!     let id = client.push(Job::new("welcome_mail").queue("mail").json(&"ann@example.org")?).await?;
//!     println!("pushed {id}");
//!     Ok(())
//! }
//! ```
//!
//! A [`Client`] is one connection, shared by its clones and made again by itself. A push is applied
//! at most once, over lost connections and lost answers too; when nobody can know whether it was, it
//! ends in [`Error::OutcomeUnknown`] and is never pushed again behind your back.
//!
//! # Running
//!
//! ```no_run
//! use ganger_client::{ClientOptions, Failure, Worker, shutdown_on_signals};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let worker = Worker::builder(ClientOptions::from_url("ganger://localhost")?)
//!         .queues(["mail"])
//!         .concurrency(20)
//!         .handler(|job, _context| async move {
//!             let address: String = job.read()?;
//!             if !address.contains('@') {
//!                 return Err(Failure::new("address", "there is no @ in it").dead());
//!             }
//!             println!("to {address}");
//!             Ok(())
//!         })
//!         .build()?;
//!     worker.run(shutdown_on_signals()?).await?;
//!     Ok(())
//! }
//! ```
//!
//! A [`Worker`] keeps its leases alive while handlers run, over lost connections and restarts of the
//! server, and gives back what it cannot finish when it is told to stop.
//!
//! # The map
//!
//! `client` is the handle, `connection` the task that owns the socket, `handshake` how a connection
//! begins, `in_flight` what is sent, sent again, and given up. `job` builds what is pushed, `cron` what
//! is pushed over and over, `batch` what is counted together, `workflow` jobs that wait for each
//! other, `progress` what comes out of a job, `events` what happens to all of them, `failure` is how an attempt goes wrong, `worker` runs
//! jobs. The types of the wire are re-exported as
//! [`protocol`].

mod batch;
mod client;
mod connection;
mod cron;
mod error;
mod events;
mod failure;
mod handshake;
mod in_flight;
mod job;
mod jobs;
mod limits;
mod options;
mod progress;
mod queues;
mod task;
mod worker;
mod workflow;

pub use ganger_protocol as protocol;
pub use ganger_protocol::{BatchId, ErrorCode, JobId, JobSpec, WireError};

pub use crate::{
    batch::{Batch, BatchBuilder},
    client::{Client, Notices},
    cron::Cron,
    error::{ConnectError, Error, JobError, Unknown},
    events::{Followed, Subscription},
    failure::Failure,
    job::{CONTENT_TYPE_JSON, Job},
    options::{ClientOptions, UrlError},
    progress::{IntoJobResult, JobOutcome, JobResult, Progress},
    worker::{
        CancelReason, Context, LeasedJob, PayloadError, Tally, Worker, WorkerBuilder, WorkerError,
        shutdown_on_signals,
    },
    workflow::Workflow,
};

/// The samples of the README, compiled by its doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}
