//! Jobs that the server pushes over and over: building an entry, and what the handle does with
//! entries. What the fields mean is told by [`CronSet`]; whether an expression or a time zone means
//! anything is found out by the server.

use std::time::Duration;

use ganger_protocol::{
    CronName, JobId, JobSpec,
    cron::{CronSet, CronView, Misfire, Overlap},
    ids::IdError,
    request::{CronList, CronNames, CronRun, CronShow, Operation},
    response::{CronRunReply, CronsReply, Done},
};

use crate::{
    client::Client,
    error::{Error, JobError},
    job::{Job, millis, name},
};

/// A cron entry that is being built.
///
/// ```
/// use ganger_client::{Cron, Job};
///
/// let nightly = Cron::new("nightly", Job::new("report").queue("reports"))
///     .expression("30 4 * * MON-FRI")
///     .timezone("Europe/Berlin")
///     .build()?;
/// assert_eq!(nightly.name.as_str(), "nightly");
/// # Ok::<(), ganger_client::JobError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Cron {
    /// The first name that was none stands in for the entry.
    set: Result<CronSet, JobError>,
}

impl Cron {
    /// An entry of this name that pushes this job. Its times are still to be said, by
    /// [`expression`](Cron::expression) or by [`every`](Cron::every).
    ///
    /// ```
    /// # use ganger_client::{Cron, Job};
    /// let sweep = Cron::new("sweep", Job::new("sweep"));
    /// ```
    pub fn new(entry: &str, job: Job) -> Self {
        let set = job.build().and_then(|job: JobSpec| {
            let entry: CronName = entry
                .parse()
                .map_err(|error: IdError| name("name")(error))?;
            Ok(CronSet::new(entry, job))
        });
        Self { set }
    }

    /// Five fields, minute, hour, day of month, month, day of week; replaces an earlier
    /// [`every`](Cron::every).
    ///
    /// ```
    /// # use ganger_client::{Cron, Job};
    /// let sweep = Cron::new("sweep", Job::new("sweep")).expression("*/10 * * * *");
    /// ```
    #[must_use]
    pub fn expression(self, expression: &str) -> Self {
        self.with(|set| {
            set.expression = Some(expression.to_owned());
            set.every_ms = None;
        })
    }

    /// The time zone of the expression, as the IANA database names it; default `UTC`.
    ///
    /// ```
    /// # use ganger_client::{Cron, Job};
    /// let sweep = Cron::new("sweep", Job::new("sweep")).expression("0 9 * * *").timezone("Asia/Tokyo");
    /// ```
    #[must_use]
    pub fn timezone(self, zone: &str) -> Self {
        self.with(|set| set.timezone = Some(zone.to_owned()))
    }

    /// At the multiples of this distance since the epoch, 1 s…366 days; replaces an earlier
    /// [`expression`](Cron::expression).
    ///
    /// ```
    /// # use ganger_client::{Cron, Job};
    /// # use std::time::Duration;
    /// let sweep = Cron::new("sweep", Job::new("sweep")).every(Duration::from_secs(30));
    /// ```
    #[must_use]
    pub fn every(self, distance: Duration) -> Self {
        self.with(|set| {
            set.every_ms = Some(millis(distance));
            (set.expression, set.timezone) = (None, None);
        })
    }

    /// What becomes of times that passed while the server was down; default one job for all.
    ///
    /// ```
    /// # use ganger_client::{Cron, Job, protocol::cron::Misfire};
    /// let sweep = Cron::new("sweep", Job::new("sweep")).misfire(Misfire::Skip);
    /// ```
    #[must_use]
    pub fn misfire(self, misfire: Misfire) -> Self {
        self.with(|set| set.misfire = misfire)
    }

    /// A job for each time that passed while the server was down, the latest so many, 1…100.
    ///
    /// ```
    /// # use ganger_client::{Cron, Job};
    /// let hourly = Cron::new("bill", Job::new("bill")).misfire_all(24);
    /// ```
    #[must_use]
    pub fn misfire_all(self, count_max: u32) -> Self {
        self.with(|set| {
            set.misfire = Misfire::All;
            set.misfire_max = Some(count_max);
        })
    }

    /// What becomes of a time at which the last job is not over; default another job.
    ///
    /// ```
    /// # use ganger_client::{Cron, Job, protocol::cron::Overlap};
    /// let sweep = Cron::new("sweep", Job::new("sweep")).overlap(Overlap::Skip);
    /// ```
    #[must_use]
    pub fn overlap(self, overlap: Overlap) -> Self {
        self.with(|set| set.overlap = overlap)
    }

    /// Each job runs up to so much later, by how much depends on the name alone; default not at
    /// all.
    ///
    /// ```
    /// # use ganger_client::{Cron, Job};
    /// # use std::time::Duration;
    /// let sweep = Cron::new("sweep", Job::new("sweep")).jitter(Duration::from_secs(60));
    /// ```
    #[must_use]
    pub fn jitter(self, jitter: Duration) -> Self {
        self.with(|set| set.jitter_ms = millis(jitter))
    }

    /// Whether it pushes nothing for now. Without this an entry that exists stays as it is.
    ///
    /// ```
    /// # use ganger_client::{Cron, Job};
    /// let sweep = Cron::new("sweep", Job::new("sweep")).paused(true);
    /// ```
    #[must_use]
    pub fn paused(self, paused: bool) -> Self {
        self.with(|set| set.paused = Some(paused))
    }

    /// The entry as it is set. [`Client::cron_set`] calls this by itself.
    ///
    /// # Errors
    /// When the name, or one of the job's, is no legal name.
    ///
    /// ```
    /// # use ganger_client::{Cron, Job};
    /// assert!(Cron::new("a name with spaces", Job::new("sweep")).build().is_err());
    /// ```
    pub fn build(self) -> Result<CronSet, JobError> {
        self.set
    }

    fn with(mut self, change: impl FnOnce(&mut CronSet)) -> Self {
        if let Ok(set) = &mut self.set {
            change(set);
        }
        self
    }
}

impl TryFrom<Cron> for CronSet {
    type Error = JobError;

    fn try_from(cron: Cron) -> Result<Self, JobError> {
        cron.build()
    }
}

impl Client {
    /// Makes a cron entry, or changes the one of this name. Doing it again changes nothing, so that
    /// a program may do it whenever it starts.
    ///
    /// # Errors
    /// [`Error::Refused`] when expression, time zone or job are not accepted.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// use ganger_client::{Cron, Job};
    ///
    /// let entry = Cron::new("nightly", Job::new("report")).expression("30 4 * * *");
    /// println!("next at {:?}", client.cron_set(entry).await?.next_at);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cron_set<C>(&self, entry: C) -> Result<CronView, Error>
    where
        C: TryInto<CronSet>,
        Error: From<C::Error>,
    {
        self.read(Operation::CronSet(Box::new(entry.try_into()?)))
            .await
    }

    /// Deletes cron entries; jobs that they have pushed stay. All, or none if one does not exist.
    ///
    /// # Errors
    /// `not_found` for a name that is none, [`Error::OutcomeUnknown`] when the answer was lost.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.cron_delete(vec!["nightly".parse()?]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cron_delete(&self, names: Vec<CronName>) -> Result<(), Error> {
        let names = CronNames { names };
        let Done {} = self.read(Operation::CronDelete(names)).await?;
        Ok(())
    }

    /// Lists cron entries by name, a page at a time.
    ///
    /// # Errors
    /// When the server refuses, for instance a cursor that is none.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// use ganger_client::protocol::request::CronList;
    ///
    /// let page = client.cron_list(CronList { cursor: None, limit: 100 }).await?;
    /// for entry in page.entries {
    ///     println!("{} {:?}", entry.name, entry.next_at);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cron_list(&self, list: CronList) -> Result<CronsReply, Error> {
        self.read(Operation::CronList(list)).await
    }

    /// Shows a cron entry with so many of its next times, 0…100.
    ///
    /// # Errors
    /// `not_found` when there is none of this name.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// for at in client.cron("nightly".parse()?, 10).await?.next_at {
    ///     println!("{at}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cron(&self, name: CronName, next: u32) -> Result<CronView, Error> {
        self.read(Operation::CronShow(CronShow { name, next }))
            .await
    }

    /// Stops cron entries from pushing. Times that pass meanwhile push nothing, ever.
    ///
    /// # Errors
    /// `not_found` for a name that is none.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.cron_pause(vec!["nightly".parse()?]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cron_pause(&self, names: Vec<CronName>) -> Result<(), Error> {
        let names = CronNames { names };
        let Done {} = self.read(Operation::CronPause(names)).await?;
        Ok(())
    }

    /// Lets cron entries push again, from the next of their times on.
    ///
    /// # Errors
    /// `not_found` for a name that is none.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.cron_resume(vec!["nightly".parse()?]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cron_resume(&self, names: Vec<CronName>) -> Result<(), Error> {
        let names = CronNames { names };
        let Done {} = self.read(Operation::CronResume(names)).await?;
        Ok(())
    }

    /// Pushes the job of a cron entry now, whatever its times, pause and overlap say, and returns
    /// the job's id. It is never repeated by itself.
    ///
    /// # Errors
    /// `not_found` for a name that is none, [`Error::OutcomeUnknown`] when the answer was lost.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let id = client.cron_run("nightly".parse()?).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cron_run(&self, name: CronName) -> Result<JobId, Error> {
        let reply: CronRunReply = self.read(Operation::CronRun(CronRun { name })).await?;
        Ok(reply.id)
    }
}
