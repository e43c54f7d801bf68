//! A cron entry as it is set ([`CronSet`]) and as it is shown ([`CronView`]): when jobs are pushed,
//! which job, and what becomes of a time that was missed or comes too early.
//!
//! Shapes and ranges are checked here. Whether an expression or a time zone means anything is found
//! out by the engine, which alone has a calendar; it goes on in `server/engine/src/cron.rs`.

use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    ids::{CronName, JobId},
    job::JobSpec,
    limits::{self, Limits},
    time::{DurationMs, Timestamp},
};

/// The header of a pushed job that names its entry.
pub const NAME_HEADER: &str = "ganger-cron";

/// The header of a pushed job with its nominal time, in ms since the epoch.
pub const AT_HEADER: &str = "ganger-cron-at";

/// Makes a cron entry, or changes the one of this name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronSet {
    /// The name, unique in its namespace.
    pub name: CronName,
    /// Five fields: minute, hour, day of month, month, day of week. This or `every_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// At the multiples of so many ms since the epoch, 1 s…366 days. This or `expression`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<DurationMs>,
    /// The time zone of `expression`, as the IANA database names it; default `UTC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// What is pushed, without `run_at` and `delay_ms`; ≤ 5 KiB.
    pub job: JobSpec,
    /// What becomes of times that passed while the server was down; default `once`.
    #[serde(default)]
    pub misfire: Misfire,
    /// `all` only: for how many of them a job is pushed, the latest, 1…100; default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfire_max: Option<u32>,
    /// What becomes of a time at which the last job is not over; default `allow`.
    #[serde(default)]
    pub overlap: Overlap,
    /// Each job runs so much later than its nominal time, 0…this many ms, at most 24 h and
    /// `every_ms`. How much depends on namespace and name alone. Default 0.
    #[serde(default)]
    pub jitter_ms: DurationMs,
    /// Whether it pushes nothing for now; absent leaves it as it is, and a new one unpaused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

/// What becomes of nominal times that have passed when the server comes to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Misfire {
    /// No job for a time that has passed by more than a minute.
    Skip,
    /// One job, for the latest of them.
    #[default]
    Once,
    /// One job for each of them, the latest `misfire_max`.
    All,
}

impl Misfire {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        }
    }
}

/// What becomes of a nominal time at which the last job of the entry is neither done, dead,
/// cancelled nor expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Another job is pushed.
    #[default]
    Allow,
    /// None is pushed.
    Skip,
    /// One is pushed as soon as the last one is over. Of several such times the latest counts.
    QueueOne,
}

impl Overlap {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Skip => "skip",
            Self::QueueOne => "queue_one",
        }
    }
}

/// A cron entry as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronView {
    /// Its name.
    pub name: CronName,
    /// As in [`CronSet`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// As in [`CronSet`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<DurationMs>,
    /// With `expression`: its time zone, spelled as the IANA database does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// What is pushed.
    pub job: JobSpec,
    /// As in [`CronSet`].
    pub misfire: Misfire,
    /// `all` only: as in [`CronSet`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfire_max: Option<u32>,
    /// As in [`CronSet`].
    pub overlap: Overlap,
    /// As in [`CronSet`].
    pub jitter_ms: DurationMs,
    /// Whether it pushes nothing for now.
    pub paused: bool,
    /// Whether it stands in the configuration of the server: only that changes it, and it goes
    /// when it is taken out there. Absent means false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_file: bool,
    /// The next nominal times, jitter not added: one in a list, as many as were asked for of one
    /// entry. Empty when it is paused, or no time will come.
    #[serde(default)]
    pub next_at: Vec<Timestamp>,
    /// The latest nominal time that is over; none at or before it ever pushes a job again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
    /// The job that was pushed last by its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_job: Option<JobId>,
    /// `queue_one`: the nominal time whose job is pushed when `last_job` is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Timestamp>,
    /// Jobs pushed by their times so far.
    pub pushed: u64,
    /// Times left out so far because of `overlap` or a refusal.
    pub skipped: u64,
    /// Why the latest time pushed nothing, when its job was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl CronSet {
    /// An entry with everything but name, times and job at its default.
    pub fn new(name: CronName, job: JobSpec) -> Self {
        Self {
            name,
            expression: None,
            every_ms: None,
            timezone: None,
            job,
            misfire: Misfire::default(),
            misfire_max: None,
            overlap: Overlap::default(),
            jitter_ms: DurationMs::ZERO,
            paused: None,
        }
    }

    /// Checks ranges and sizes, those of the job too.
    ///
    /// # Errors
    /// `bad_request` or `too_large` naming the field, what is allowed and what came.
    pub fn check(&self, limits: &Limits) -> Result<(), WireError> {
        self.check_times()?;
        match (self.misfire, self.misfire_max) {
            (Misfire::All, Some(max)) if !(1..=limits::CRON_MISFIRE_MAX).contains(&max) => {
                let limit = u64::from(limits::CRON_MISFIRE_MAX);
                return Err(WireError::out_of_range(
                    "misfire_max",
                    1,
                    limit,
                    u64::from(max),
                ));
            }
            (Misfire::Skip | Misfire::Once, Some(_)) => {
                let message = "misfire_max goes with misfire \"all\"";
                return Err(WireError::bad_request("misfire_max", message));
            }
            (Misfire::All, Some(_)) | (Misfire::Skip | Misfire::Once | Misfire::All, None) => {}
        }
        let jitter_max = self.every_ms.map_or(limits::CRON_JITTER_MAX, |every| {
            every.min(limits::CRON_JITTER_MAX)
        });
        if self.jitter_ms > jitter_max {
            let (max, actual) = (jitter_max.0, self.jitter_ms.0);
            return Err(WireError::out_of_range("jitter_ms", 0, max, actual));
        }
        self.check_job(limits).map_err(|error| error.within("job"))
    }

    fn check_times(&self) -> Result<(), WireError> {
        match (&self.expression, self.every_ms) {
            (None, None) => {
                let message = "name expression (\"*/5 * * * *\") or every_ms (300000)";
                return Err(WireError::bad_request("expression", message));
            }
            (Some(_), Some(_)) => {
                let message = "either expression or every_ms, not both";
                return Err(WireError::bad_request("every_ms", message));
            }
            (None, Some(every)) => {
                let (min, max) = (limits::CRON_EVERY_MIN, limits::CRON_EVERY_MAX);
                if !(min..=max).contains(&every) {
                    return Err(WireError::out_of_range("every_ms", min.0, max.0, every.0));
                }
                if self.timezone.is_some() {
                    let message = "timezone goes with expression; every_ms knows no zone";
                    return Err(WireError::bad_request("timezone", message));
                }
            }
            (Some(_), None) => {}
        }
        let texts = [
            ("expression", &self.expression),
            ("timezone", &self.timezone),
        ];
        for (field, text) in texts {
            let actual = text.as_ref().map_or(0, String::len);
            if actual > limits::CRON_TEXT_BYTES_MAX {
                return Err(WireError::too_large(
                    field,
                    limits::CRON_TEXT_BYTES_MAX,
                    actual,
                ));
            }
        }
        Ok(())
    }

    fn check_job(&self, limits: &Limits) -> Result<(), WireError> {
        let times = [
            ("run_at", self.job.run_at.is_some()),
            ("delay_ms", self.job.delay_ms.is_some()),
        ];
        if let Some((field, _)) = times.iter().find(|(_, given)| *given) {
            let message = "the time of a cron job is that of its entry; jitter_ms delays it";
            return Err(WireError::bad_request(*field, message));
        }
        if self.job.unique.is_some() {
            let message = "a cron entry keeps its jobs apart by overlap, not by a unique key";
            return Err(WireError::bad_request("unique", message));
        }
        self.job
            .check_alone("a cron entry pushes its jobs one by one")?;
        if self.job.batch.is_some() {
            let message = "a batch is over before a cron entry is";
            return Err(WireError::bad_request("batch", message));
        }
        let own = [NAME_HEADER, AT_HEADER];
        if let Some(header) = own.iter().find(|own| self.job.headers.contains_key(**own)) {
            let message = format!("the header {header} is the server's own");
            return Err(WireError::bad_request("headers", message));
        }
        let mut longest = self.job.clone();
        longest
            .headers
            .extend(headers_of(&self.name, Timestamp(u64::MAX)));
        longest.check(limits)
    }
}

/// The headers that a job of an entry has beside its own.
pub fn headers_of(name: &CronName, at: Timestamp) -> [(String, String); 2] {
    [
        (NAME_HEADER.to_owned(), name.to_string()),
        (AT_HEADER.to_owned(), at.to_string()),
    ]
}
