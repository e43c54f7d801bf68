//! Jobs that are there: lists of them by queue, state and what else is known of them, and what is done
//! to those that wait or are over. The rest is with the other requests of [`Client`].

use ganger_protocol::{
    change::{ChangeReply, JobChange, JobDelete},
    ids::TaskId,
    list::{JobList, JobListReply},
    request::Operation,
    task::{OneTask, TaskList, TaskStart, TaskView, TasksReply},
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

    /// Changes jobs that wait, each by itself: ready now or at another time, in another queue, with
    /// another priority. They keep their ids and whatever happened to them.
    ///
    /// # Errors
    /// When the server refuses the request; what became of each job is in the reply.
    /// [`Error::OutcomeUnknown`] when the answer was lost: a delay would begin anew.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, id: ganger_client::JobId) -> Result<(), ganger_client::Error> {
    /// use ganger_client::protocol::change::{ChangeTo, JobChange};
    ///
    /// let start = JobChange { jobs: vec![id], to: ChangeTo::now() };
    /// println!("{:?}", client.change(start).await?.results[0].state);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn change(&self, change: JobChange) -> Result<ChangeReply, Error> {
        self.read(Operation::JobChange(change)).await
    }

    /// Removes jobs that are over for good, each by itself. It can be repeated safely.
    ///
    /// # Errors
    /// When the server refuses the request; what became of each job is in the reply.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, id: ganger_client::JobId) -> Result<(), ganger_client::Error> {
    /// use ganger_client::protocol::change::JobDelete;
    ///
    /// client.delete(JobDelete { jobs: vec![id] }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete(&self, delete: JobDelete) -> Result<ChangeReply, Error> {
        self.read(Operation::JobDelete(delete)).await
    }

    /// Starts a task of the server: what is done to all jobs of a filter. It goes on by itself, also
    /// without this client, until it is through or the server ends; look at it by [`Client::task`].
    ///
    /// # Errors
    /// When the server refuses, for instance a filter without queues, or runs as many tasks as it may;
    /// [`Error::OutcomeUnknown`] when the answer was lost.
    ///
    /// ```no_run
    /// use ganger_client::protocol::{list::JobFilter, task::{TaskAction, TaskStart, TaskState}};
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let filter = JobFilter { kind: Some("welcome".parse()?), ..JobFilter::of("mail".parse()?) };
    /// let mut task = client.start_task(TaskStart::new(TaskAction::Cancel, filter)).await?;
    /// while task.state == TaskState::Running {
    ///     tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    ///     task = client.task(task.id).await?;
    /// }
    /// println!("{} cancelled, {} refused", task.changed, task.refused);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn start_task(&self, start: TaskStart) -> Result<TaskView, Error> {
        self.read(Operation::TaskStart(Box::new(start))).await
    }

    /// Shows a task: how far it has come. What it says to be changed is durable.
    ///
    /// # Errors
    /// `not_found` when the server that ran it has ended, or a hundred others have ended since.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, id: ganger_client::protocol::ids::TaskId) -> Result<(), ganger_client::Error> {
    /// println!("{} changed", client.task(id).await?.changed);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn task(&self, task: TaskId) -> Result<TaskView, Error> {
        self.read(Operation::TaskGet(OneTask { task })).await
    }

    /// Lists the tasks that run, and those that ended last, the newest first.
    ///
    /// # Errors
    /// When the server refuses.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// for task in client.tasks().await? {
    ///     println!("{} {}", task.id, task.state.as_str());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn tasks(&self) -> Result<Vec<TaskView>, Error> {
        let reply: TasksReply = self.read(Operation::TaskList(TaskList {})).await?;
        Ok(reply.tasks)
    }

    /// Asks a task to end; what it has done stays. One that has ended stays as it is.
    ///
    /// # Errors
    /// `not_found` as for [`Client::task`].
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, id: ganger_client::protocol::ids::TaskId) -> Result<(), ganger_client::Error> {
    /// client.cancel_task(id).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cancel_task(&self, task: TaskId) -> Result<TaskView, Error> {
        self.read(Operation::TaskCancel(OneTask { task })).await
    }
}
