//! Workflows: jobs that wait for each other, pushed as one. What a job waits for is told by
//! [`Job::after`]; what becomes of it, by [`ganger_protocol::workflow`].

use std::collections::BTreeMap;

use ganger_protocol::{
    BatchId, JobId, JobSpec,
    request::{BatchGraph, LeaseRef, Operation, Push},
    response::GraphReply,
};

use crate::{
    batch::Batch,
    client::{self, Client},
    error::{Error, JobError},
    job::Job,
};

/// Jobs that wait for each other, to be pushed.
///
/// ```no_run
/// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
/// use ganger_client::Job;
///
/// let jobs = client
///     .workflow()
///     .job("pages", Job::new("render"))
///     .job("cover", Job::new("draw"))
///     .job("book", Job::new("bind").after(["pages", "cover"]))
///     .push()
///     .await?;
/// println!("the book is {}", jobs["book"]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Workflow {
    client: Client,
    batch: Option<(BatchId, Option<LeaseRef>)>,
    /// The first job that was none stands in for all.
    jobs: Result<Vec<(String, JobSpec)>, JobError>,
}

impl Workflow {
    pub(crate) fn of(client: Client, batch: Option<(BatchId, Option<LeaseRef>)>) -> Self {
        Self {
            client,
            batch,
            jobs: Ok(Vec::new()),
        }
    }

    /// Adds a job under a name, by which the others wait for it, in whatever order they are added.
    ///
    /// ```no_run
    /// # fn example(client: ganger_client::Client) {
    /// # use ganger_client::Job;
    /// let workflow = client.workflow().job("import", Job::new("import"));
    /// # }
    /// ```
    #[must_use]
    pub fn job(mut self, name: &str, job: Job) -> Self {
        match (&mut self.jobs, job.name(name).build()) {
            (Ok(jobs), Ok(job)) => jobs.push((name.to_owned(), job)),
            (Ok(_), Err(error)) => self.jobs = Err(error),
            (Err(_), _) => {}
        }
        self
    }

    /// Pushes all of them, or none: the id of each by its name. A lost answer is asked for again, and
    /// makes no second workflow.
    ///
    /// # Errors
    /// [`Error::Refused`] naming the field, such as `jobs[2].after[0]`: a name that no job has or two
    /// have, jobs that wait for each other; else as [`Client::push`].
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::Job;
    /// let workflow = client.workflow().job("import", Job::new("import"));
    /// let ids = workflow.job("report", Job::new("report").after(["import"])).push().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn push(self) -> Result<BTreeMap<String, JobId>, Error> {
        let (names, mut jobs): (Vec<String>, Vec<JobSpec>) = self.jobs?.into_iter().unzip();
        let by = self.batch.and_then(|(_, by)| by);
        for job in &mut jobs {
            job.batch = self.batch.map(|(batch, _)| batch);
        }
        let push = Push {
            atomic: true,
            by,
            ..Push::of(jobs)
        };
        let results = self.client.push_each(push).await?;
        let ids = names.into_iter().zip(results);
        ids.map(|(name, result)| Ok((name, client::one(vec![result])?)))
            .collect()
    }
}

impl Client {
    /// Jobs that wait for each other, to be pushed by [`Workflow::push`].
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::Job;
    /// client
    ///     .workflow()
    ///     .job("import", Job::new("import"))
    ///     .job("report", Job::new("report").after(["import"]))
    ///     .push()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn workflow(&self) -> Workflow {
        Workflow::of(self.clone(), None)
    }
}

impl Batch {
    /// Jobs of this batch that wait for each other: it calls back when they are over, and shows them
    /// as one [graph](Batch::graph). They may also wait for jobs of the batch that were pushed
    /// before, by their ids.
    ///
    /// ```no_run
    /// # async fn example(batch: ganger_client::Batch) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::Job;
    /// let ids = batch.workflow().job("import", Job::new("import")).push().await?;
    /// let report = Job::new("report").after([ids["import"].to_string()]);
    /// batch.workflow().job("report", report).push().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn workflow(&self) -> Workflow {
        let (client, by) = self.parts();
        Workflow::of(client, Some((self.id(), by)))
    }

    /// A page of its graph: its jobs that have a name or wait, in the order of their ids, with where
    /// they stand or what became of them. The first page has no cursor.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not_found` when the server does not keep it any more.
    ///
    /// ```no_run
    /// # async fn example(batch: ganger_client::Batch) -> Result<(), ganger_client::Error> {
    /// for node in batch.graph(None, 100).await?.nodes {
    ///     println!("{} is {}, after {:?}", node.job, node.state, node.after);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn graph(&self, cursor: Option<JobId>, limit: u32) -> Result<GraphReply, Error> {
        let graph = BatchGraph {
            batch: self.id(),
            cursor,
            limit,
        };
        let (client, _) = self.parts();
        client.read(Operation::BatchGraph(graph)).await
    }
}
