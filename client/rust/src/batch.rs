//! Jobs that are counted together: opening a batch, adding its jobs, and looking at it. What events
//! and counters mean is told by [`BatchEvent`](ganger_protocol::batch::BatchEvent) and
//! [`BatchView`]; who may still add jobs is the server's to decide.

use ganger_protocol::{
    BatchId, JobId, JobSpec, WireError,
    batch::{BatchOpen, BatchView},
    request::{BatchList, BatchName, LeaseRef, Operation, Push},
    response::BatchesReply,
};

use crate::{
    client::{self, Client},
    error::{Error, JobError},
    job::Job,
};

/// A batch to be opened.
///
/// ```no_run
/// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
/// use ganger_client::Job;
///
/// let batch = client.batch().on_success(Job::new("publish")).open().await?;
/// batch.push(Job::new("render")).await?;
/// batch.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct BatchBuilder {
    client: Client,
    /// The first callback that was none stands in for the batch.
    open: Result<BatchOpen, JobError>,
}

impl BatchBuilder {
    /// What it is, for a person, ≤ 256 bytes.
    ///
    /// ```no_run
    /// # fn example(client: ganger_client::Client) {
    /// let nightly = client.batch().description("the reports of tonight");
    /// # }
    /// ```
    #[must_use]
    pub fn description(self, text: &str) -> Self {
        self.with(|open| open.description = text.to_owned())
    }

    /// The job to push when every member was tried once, or is over without a try.
    ///
    /// ```no_run
    /// # fn example(client: ganger_client::Client) {
    /// let batch = client.batch().on_complete(ganger_client::Job::new("look"));
    /// # }
    /// ```
    #[must_use]
    pub fn on_complete(self, job: Job) -> Self {
        self.with_job(job, |open, job| open.on_complete = Some(job))
    }

    /// The job to push when every member is done.
    ///
    /// ```no_run
    /// # fn example(client: ganger_client::Client) {
    /// let batch = client.batch().on_success(ganger_client::Job::new("publish"));
    /// # }
    /// ```
    #[must_use]
    pub fn on_success(self, job: Job) -> Self {
        self.with_job(job, |open, job| open.on_success = Some(job))
    }

    /// The job to push when every member is over: done, dead, cancelled, expired or deleted.
    ///
    /// ```no_run
    /// # fn example(client: ganger_client::Client) {
    /// let batch = client.batch().on_settled(ganger_client::Job::new("sweep"));
    /// # }
    /// ```
    #[must_use]
    pub fn on_settled(self, job: Job) -> Self {
        self.with_job(job, |open, job| open.on_settled = Some(job))
    }

    /// Makes it a member of another batch, which is open or that of a running job: see
    /// [`Batch::batch`].
    ///
    /// ```no_run
    /// # fn example(client: ganger_client::Client, outer: &ganger_client::Batch) {
    /// let inner = client.batch().within(outer);
    /// # }
    /// ```
    #[must_use]
    pub fn within(self, parent: &Batch) -> Self {
        self.with(|open| (open.parent, open.by) = (Some(parent.id), parent.by))
    }

    /// Opens it. This is never repeated by itself: a batch that was opened and whose answer was lost
    /// is closed by the server after a day, and calls nobody.
    ///
    /// # Errors
    /// [`Error::Refused`] when a callback is not accepted, [`Error::OutcomeUnknown`] when the answer
    /// was lost.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// let batch = client.batch().open().await?;
    /// println!("{}", batch.id());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn open(self) -> Result<Batch, Error> {
        self.client.batch_with(self.open?).await
    }

    fn with(mut self, change: impl FnOnce(&mut BatchOpen)) -> Self {
        if let Ok(open) = &mut self.open {
            change(open);
        }
        self
    }

    fn with_job(mut self, job: Job, change: impl FnOnce(&mut BatchOpen, Box<JobSpec>)) -> Self {
        match (&mut self.open, job.build()) {
            (Ok(open), Ok(job)) => change(open, Box::new(job)),
            (Ok(_), Err(error)) => self.open = Err(error),
            (Err(_), _) => {}
        }
        self
    }
}

/// A batch that was opened. Cheap to clone.
///
/// ```no_run
/// # async fn example(batch: ganger_client::Batch) -> Result<(), ganger_client::Error> {
/// println!("{} of {}", batch.show().await?.counters.done, batch.show().await?.counters.total);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Batch {
    client: Client,
    id: BatchId,
    /// The lease of the running member that adds to it.
    by: Option<LeaseRef>,
}

impl Batch {
    pub(crate) fn of_member(client: Client, id: BatchId, by: LeaseRef) -> Self {
        Self {
            client,
            id,
            by: Some(by),
        }
    }

    pub(crate) fn parts(&self) -> (Client, Option<LeaseRef>) {
        (self.client.clone(), self.by)
    }

    /// Its id, by which another process finds it: [`Client::batch_of`].
    ///
    /// ```no_run
    /// # fn example(batch: ganger_client::Batch) {
    /// println!("{}", batch.id());
    /// # }
    /// ```
    pub fn id(&self) -> BatchId {
        self.id
    }

    /// A batch within this one; as [`Client::batch`] and [`BatchBuilder::within`].
    ///
    /// ```no_run
    /// # async fn example(outer: ganger_client::Batch) -> Result<(), ganger_client::Error> {
    /// let inner = outer.batch().open().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn batch(&self) -> BatchBuilder {
        self.client.batch().within(self)
    }

    /// Adds a job and returns its id.
    ///
    /// # Errors
    /// [`Error::Refused`] with `conflict` when the batch takes no more jobs, else as
    /// [`Client::push`].
    ///
    /// ```no_run
    /// # async fn example(batch: ganger_client::Batch) -> Result<(), ganger_client::Error> {
    /// batch.push(ganger_client::Job::new("render")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn push<J>(&self, job: J) -> Result<JobId, Error>
    where
        J: TryInto<JobSpec>,
        Error: From<J::Error>,
    {
        client::one(self.push_many(vec![job.try_into()?]).await?)
    }

    /// Adds up to 1000 jobs; each is taken or refused by itself.
    ///
    /// # Errors
    /// As [`Client::push_many`].
    ///
    /// ```no_run
    /// # async fn example(batch: ganger_client::Batch) -> Result<(), ganger_client::Error> {
    /// let jobs = (0..10).map(|page| ganger_client::Job::new("render").json(&page)?.build());
    /// batch.push_many(jobs.collect::<Result<_, _>>()?).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn push_many(
        &self,
        mut jobs: Vec<JobSpec>,
    ) -> Result<Vec<Result<JobId, WireError>>, Error> {
        for job in &mut jobs {
            job.batch = Some(self.id);
        }
        let push = Push {
            by: self.by,
            ..Push::of(jobs)
        };
        self.client.push_each(push).await
    }

    /// Closes it: from now on only its own jobs, while they run, add to it, and its callbacks come
    /// when their time is there. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_found` when the server does not keep it any more.
    ///
    /// ```no_run
    /// # async fn example(batch: ganger_client::Batch) -> Result<(), ganger_client::Error> {
    /// batch.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn commit(&self) -> Result<BatchView, Error> {
        let name = BatchName { batch: self.id };
        self.client.read(Operation::BatchCommit(name)).await
    }

    /// How far it has come.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_found` when the server does not keep it any more.
    ///
    /// ```no_run
    /// # async fn example(batch: ganger_client::Batch) -> Result<(), ganger_client::Error> {
    /// println!("{} are pending", batch.show().await?.counters.pending);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn show(&self) -> Result<BatchView, Error> {
        let name = BatchName { batch: self.id };
        self.client.read(Operation::BatchShow(name)).await
    }
}

impl Client {
    /// A batch, to be opened by [`BatchBuilder::open`].
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// let batch = client.batch().open().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn batch(&self) -> BatchBuilder {
        BatchBuilder {
            client: self.clone(),
            open: Ok(BatchOpen::default()),
        }
    }

    /// Opens a batch whose fields are known; as [`BatchBuilder::open`].
    ///
    /// # Errors
    /// As [`BatchBuilder::open`].
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// let batch = client.batch_with(Default::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn batch_with(&self, open: BatchOpen) -> Result<Batch, Error> {
        let open = Operation::BatchOpen(Box::new(open));
        let view: BatchView = self.read(open).await?;
        Ok(self.batch_of(view.id))
    }

    /// A batch that somebody has opened.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.batch_of("3k7".parse()?).commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn batch_of(&self, id: BatchId) -> Batch {
        Batch {
            client: self.clone(),
            id,
            by: None,
        }
    }

    /// Lists batches in the order in which they were opened, a page at a time.
    ///
    /// # Errors
    /// When the server refuses, for instance a cursor that is none.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// use ganger_client::protocol::request::BatchList;
    ///
    /// let list = BatchList { settled: false, cursor: None, limit: 100 };
    /// for batch in client.batch_list(list).await?.batches {
    ///     println!("{} {}", batch.id, batch.counters.pending);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn batch_list(&self, list: BatchList) -> Result<BatchesReply, Error> {
        self.read(Operation::BatchList(list)).await
    }
}
