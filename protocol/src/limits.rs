//! Every maximum of the protocol in one place, each with its reason.
//!
//! A refusal always names the limit and the actual figure. The tests hold each at the limit and
//! one past it.

use serde::{Deserialize, Serialize};

use crate::time::DurationMs;

/// Bytes of a frame's MessagePack map. Bounds what one connection can make the server hold.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// How long a worker has to answer a lease whose job was cancelled, unless it is said.
pub const CANCEL_GRACE_DEFAULT: DurationMs = DurationMs::from_secs(30);

/// The longest such time.
pub const CANCEL_GRACE_MAX: DurationMs = DurationMs::from_hours(24);

/// Bytes of a frame before `hello` was accepted. A stranger can make the server hold no more; a
/// worker that resumes a full session fits: 1000 held leases take 54 KB.
pub const FRAME_BYTES_MAX_BEFORE_HELLO: usize = 64 << 10;

/// Bytes of a name (queue, kind, namespace, worker, tag). Names stand in keys and labels.
pub const NAME_BYTES_MAX: usize = 128;

/// Bytes of a job's payload. Jobs are small; large objects belong in an object store.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Bytes of all header names and values of a job together.
pub const HEADERS_BYTES_MAX: usize = 4 << 10;

/// Bytes of a content type.
pub const CONTENT_TYPE_BYTES_MAX: usize = 128;

/// Tags of a job.
pub const TAGS_MAX: usize = 8;

/// Bytes of the result of an ack.
pub const RESULT_BYTES_MAX: usize = 256 << 10;

/// Bytes of the note of a progress. It stands in the record of its job.
pub const NOTE_BYTES_MAX: usize = 1 << 10;

/// Bytes of the cursor of a progress. It is in memory while its job is ready.
pub const CURSOR_BYTES_MAX: usize = 64 << 10;

/// Jobs, leases or ids in one request. Bounds the time one request can hold a shard.
pub const ITEMS_MAX: usize = 1000;

/// Names or patterns in one fetch.
pub const FETCH_QUEUES_MAX: usize = 64;

/// How long a fetch, or a wait for the end of a job, may wait.
pub const FETCH_WAIT_MAX: DurationMs = DurationMs::from_mins(1);

/// The highest weight of a queue in a weighted fetch.
pub const WEIGHT_MAX: u32 = 1_000;

/// Depth of nested maps and arrays in a frame. Deeper input could exhaust a stack.
pub const DEPTH_MAX: usize = 64;

/// The highest priority; 9 is served first, 0 last.
pub const PRIORITY_MAX: u8 = 9;

/// The priority of a job that names none.
pub const PRIORITY_DEFAULT: u8 = 5;

/// Attempts of a job that names no maximum: with the default backoff, three weeks.
pub const MAX_ATTEMPTS_DEFAULT: u32 = 26;

/// The largest `max_attempts`.
pub const MAX_ATTEMPTS_MAX: u32 = 10_000;

/// The longest attempt of a job whose queue names no other.
pub const TIMEOUT_DEFAULT: DurationMs = DurationMs::from_mins(30);

/// The shortest lease or extension.
pub const LEASE_MIN: DurationMs = DurationMs::from_secs(1);

/// The longest lease or extension.
pub const LEASE_MAX: DurationMs = DurationMs::from_hours(24);

/// The longest delay, backoff or distance of `run_at`: ten years.
pub const DELAY_MAX: DurationMs = DurationMs::from_hours(24 * 3653);

/// Entries of a table of backoff delays.
pub const BACKOFF_TABLE_MAX: usize = 64;

/// Bytes of the kind of an error.
pub const ERROR_KIND_BYTES_MAX: usize = 100;

/// Bytes of the message of an error; longer ones are cut by the server.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 4 << 10;

/// Bytes of a backtrace; longer ones are cut by the server.
pub const BACKTRACE_BYTES_MAX: usize = 16 << 10;

/// Errors kept of a job; older ones make room.
pub const ERRORS_KEPT: usize = 10;

/// Labels of a session.
pub const LABELS_MAX: usize = 16;

/// Bytes of a label's name or value, and of the name and host of a worker.
pub const LABEL_BYTES_MAX: usize = 256;

/// The ttl of a session that names none.
pub const SESSION_TTL_DEFAULT: DurationMs = DurationMs::from_secs(15);

/// The shortest ttl of a session.
pub const SESSION_TTL_MIN: DurationMs = DurationMs::from_secs(1);

/// The longest ttl of a session.
pub const SESSION_TTL_MAX: DurationMs = DurationMs::from_hours(1);

/// Leases that a session may hold.
pub const SESSION_LEASES_MAX: usize = 1000;

/// Waits for the end of a job that one connection may have at the same time.
pub const CONNECTION_WAITS_MAX: usize = 1000;

/// Such waits of a shard.
pub const WAITS_MAX: usize = 64 << 10;

/// Subscriptions to events that one connection may have at the same time.
pub const CONNECTION_SUBSCRIPTIONS_MAX: usize = 8;

/// Queues, and kinds, that a filter of events may name.
pub const EVENT_NAMES_MAX: usize = 64;

/// Events in one message. Others on the connection come in between.
pub const EVENTS_MAX: usize = 256;

/// No further event in a message once it has so many bytes: it fits the smallest frame that a server may
/// be set to.
pub const EVENTS_BYTES_MAX: usize = 48 << 10;

/// Fetches of one session that may wait at the same time.
pub const SESSION_WAITERS_MAX: usize = 64;

/// Unanswered numbered pushes of a producer: the outcomes the server remembers.
pub const PRODUCER_UNANSWERED_MAX: u64 = 256;

/// Rows in one page of a list.
pub const PAGE_MAX: usize = 1000;

/// Bytes of a text that a filter looks for.
pub const FILTER_TEXT_BYTES_MAX: usize = 256;

/// Rows of indexes that one page of a list of jobs is looked for in; its cursor goes on behind them.
pub const LIST_ROWS_MAX: u64 = 20_000;

/// Kinds of a shard that are counted. Whoever puts a number into the kind must not fill the memory.
pub const KINDS_COUNTED_MAX: usize = 1_000;

/// The shortest distance of a cron entry's times. Shorter ones are a worker's loop.
pub const CRON_EVERY_MIN: DurationMs = DurationMs::from_secs(1);

/// The longest distance of a cron entry's times.
pub const CRON_EVERY_MAX: DurationMs = DurationMs::from_hours(24 * 366);

/// The longest jitter of a cron entry.
pub const CRON_JITTER_MAX: DurationMs = DurationMs::from_hours(24);

/// Jobs that a cron entry pushes at most for times that were missed. They are pushed at once.
pub const CRON_MISFIRE_MAX: u32 = 100;

/// Missed times for which a cron entry with `all` pushes jobs, when it does not say.
pub const CRON_MISFIRE_DEFAULT: u32 = 10;

/// Bytes of a cron entry's expression, and of its time zone.
pub const CRON_TEXT_BYTES_MAX: usize = 128;

/// Times that one request may ask for of a cron entry.
pub const CRON_NEXT_MAX: usize = 100;

/// Bytes of a batch's description.
pub const BATCH_TEXT_BYTES_MAX: usize = 256;

/// Bytes of the callbacks of a batch together. They stand in its record, which each change of its
/// counters writes anew.
pub const BATCH_CALLBACKS_BYTES_MAX: usize = 5 << 10;

/// Batches of a shard that are not settled, of up to 6 KiB each. They are held in memory.
pub const BATCHES_MAX: usize = 10_000;

/// Batches within batches: a batch without a parent has the depth 1.
pub const BATCH_DEPTH_MAX: usize = 8;

/// How long a batch may stay open; then the server commits it.
pub const BATCH_OPEN_MAX: DurationMs = DurationMs::from_hours(24);

/// How long a batch stays visible once it is settled.
pub const BATCH_RETENTION: DurationMs = DurationMs::from_hours(24 * 7);

/// Jobs that one job may wait for: as many as one request can push beside it.
pub const AFTER_MAX: usize = 1_000;

/// What the jobs of one push may wait for together. Each is two small records.
pub const EDGES_MAX: usize = 5_000;

/// Jobs that wait, or are waited for, in the view of one job.
pub const EDGES_SHOWN: usize = 100;
/// Limits of a shard, of up to 300 bytes each. They are held in memory.
pub const LIMITS_MAX: usize = 200_000;

/// The highest `max_running` of a limit.
pub const LIMIT_RUNNING_MAX: u32 = 1_000_000;

/// The largest `n` and `burst` of a rate.
pub const LIMIT_RATE_MAX: u32 = 1_000_000;

/// The longest `per_ms` of a rate: one year.
pub const LIMIT_RATE_PER_MAX: DurationMs = DurationMs::from_hours(24 * 366);

/// The highest weight of a key.
pub const LIMIT_WEIGHT_MAX: u32 = 1_000;

/// Redirects that a client follows for one connection.
pub const REDIRECTS_MAX: usize = 3;

/// The limits that a server announces in `welcome` and `hello`; a client checks against them
/// before it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of a frame's map; see [`FRAME_BYTES_MAX`].
    pub frame_bytes_max: usize,
    /// Bytes of a payload; see [`PAYLOAD_BYTES_MAX`].
    pub payload_bytes_max: usize,
    /// Bytes of a result; see [`RESULT_BYTES_MAX`].
    pub result_bytes_max: usize,
    /// Items of one request; see [`ITEMS_MAX`].
    pub items_max: usize,
    /// Leases a session may hold; see [`SESSION_LEASES_MAX`].
    pub session_leases_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: FRAME_BYTES_MAX,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            result_bytes_max: RESULT_BYTES_MAX,
            items_max: ITEMS_MAX,
            session_leases_max: SESSION_LEASES_MAX,
        }
    }
}
