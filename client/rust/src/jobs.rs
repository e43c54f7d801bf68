//! Many jobs: lists of them by queue, state and what else is known of them. What concerns one job is
//! with the other requests of [`Client`].

use ganger_protocol::{
    list::{JobList, JobListReply},
    request::Operation,
};

use crate::{Client, Error};

impl Client {
    /// Lists jobs, a page at a time. What is not answered from an index alone is a scan with a budget:
    /// a page may have few jobs, or none, and still a cursor to go on with.
    ///
    /// # Errors
    /// When the server refuses, for instance the cursor of another list, or has too many lists to read.
    ///
    /// ```no_run
    /// use ganger_client::protocol::{job::JobState, list::{JobFilter, JobList}};
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let scheduled = JobFilter::of("mail".parse()?).in_states([JobState::Scheduled]);
    /// let mut list = JobList::of(scheduled);
    /// loop {
    ///     let page = client.jobs(list.clone()).await?;
    ///     for job in page.jobs {
    ///         println!("{} runs at {:?}", job.id, job.run_at);
    ///     }
    ///     if page.is_complete {
    ///         break;
    ///     }
    ///     list.cursor = page.cursor;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn jobs(&self, list: JobList) -> Result<JobListReply, Error> {
        self.read(Operation::JobList(Box::new(list))).await
    }
}
