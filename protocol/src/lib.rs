//! The ganger wire protocol, without IO and without a clock.
//!
//! A connection carries [`frame`]s; a frame carries one MessagePack map: a [`request::Request`]
//! from a client or a [`response::Message`] from the server. Bytes of a frame are first checked as
//! a whole by [`scan`] (depth, duplicate keys, trailing bytes), then read into the type of their
//! operation. `docs/PROTOCOL.md` is the specification; the files in `vectors/` are its examples,
//! read by the tests of every client.
//!
//! This crate knows nothing about queues that exist, leases that live or disks. What a message
//! means is decided in `ganger-engine`; how it travels, in the server's `session`.

pub mod batch;
pub mod change;
#[cfg(feature = "codec")]
pub mod codec;
pub mod cron;
pub mod error;
pub mod event;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod id_text;
pub mod ids;
pub mod job;
pub mod limit;
pub mod limits;
pub mod list;
pub mod progress;
pub mod queue;
mod read;
pub mod request;
pub mod response;
pub mod retry;
pub mod scan;
pub mod task;
pub mod time;
pub mod workflow;
mod write;

pub use bytes::Bytes;
pub use error::{ErrorCode, WireError};
pub use ids::{
    BatchId, CronName, JobId, KeyPattern, Kind, LeaseId, NamespaceName, QueueName, QueuePattern,
    SessionId,
};
pub use job::JobSpec;
pub use retry::RetryPolicy;
pub use time::{DurationMs, Timestamp};

/// The protocol version that this crate speaks.
pub const VERSION: u32 = 1;

/// The oldest protocol version that this crate still understands.
pub const VERSION_MIN: u32 = 1;

/// The TCP port on which a server listens unless it is told otherwise.
pub const DEFAULT_PORT: u16 = 4264;
