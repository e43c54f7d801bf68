//! The handle of a client: cheap to clone, one method per request. Each method builds the request,
//! gives it to the task of [`crate::connection`] and reads the answer; what happens on the way, over
//! reconnects too, is decided in [`crate::in_flight`].

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ganger_protocol::{
    DurationMs, JobId, JobSpec, QueueName, QueuePattern, WireError,
    job::JobView,
    limits::FETCH_WAIT_MAX,
    progress::{Progress, ProgressItem, Wait, WaitReply},
    queue::QueuePause,
    request::{
        Ack, AckItem, Backup, DeadList, DeadSelect, Extend, ExtendItem, Fail, FailItem, Fetch,
        Goodbye, Heartbeat, JobCancel, JobGet, Operation, Push, QueueList, QueueNames, Release,
        ReleaseItem, Stats,
    },
    response::{
        BackupReply, CancelReply, CountReply, Done, FetchReply, HeartbeatReply, JobsReply,
        LeaseResult, Notice, PushReply, PushResult, QueueView, QueuesReply, StatsReply,
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    connection::{Command, Connection, Event},
    error::{Error, Unknown},
    in_flight::{Answer, Ask, release_all},
    job::millis,
    options::ClientOptions,
    progress::JobOutcome,
    task,
};

/// A connection to a server, shared by all its clones. It is made again by itself when it fails;
/// requests without an answer are then sent again where that is safe, pushes under their old
/// numbers, so that none is applied twice.
///
/// ```no_run
/// # async fn example() -> Result<(), ganger_client::Error> {
/// use ganger_client::{Client, ClientOptions, Job};
///
/// let client = Client::connect(ClientOptions::new("localhost")).await?;
/// let id = client.push(Job::new("welcome_mail").json(&42)?).await?;
/// println!("pushed {id}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    commands: UnboundedSender<Command>,
    /// One permit for each request without an answer.
    room: Arc<Semaphore>,
    request_timeout: Duration,
    /// For connections beside the one of the task.
    options: ClientOptions,
    /// Cancelled when the task has ended.
    ended: CancellationToken,
}

impl Client {
    /// Connects, and returns once the server has accepted `hello`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when the first try fails, [`Error::Refused`] when the server does not
    /// accept the token or the namespace.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # use ganger_client::{Client, ClientOptions};
    /// let client = Client::connect("ganger://localhost".parse()?).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(options: ClientOptions) -> Result<Self, Error> {
        let client = Self::lazy(options);
        client.first_connection().await?;
        Ok(client)
    }

    async fn first_connection(&self) -> Result<(), Error> {
        let (reply, connected) = oneshot::channel();
        self.send(Command::Connect(reply))?;
        connected.await.unwrap_or(Err(Error::Closed))
    }

    /// As [`Client::connect`], for a client with a session that is no [`Worker`](crate::Worker): what
    /// the server says to the session without being asked comes out of the second.
    ///
    /// # Errors
    /// Those of [`Client::connect`].
    ///
    /// ```no_run
    /// # async fn example(options: ganger_client::ClientOptions) -> Result<(), ganger_client::Error> {
    /// use ganger_client::{Client, protocol::response::Notice};
    ///
    /// let (client, mut notices) = Client::connect_with_notices(options).await?;
    /// while let Some(notice) = notices.next().await {
    ///     if let Notice::Cancel { leases } = notice {
    ///         println!("stop {leases:?}");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect_with_notices(options: ClientOptions) -> Result<(Self, Notices), Error> {
        let (sender, events) = unbounded_channel();
        let client = Self::start(options, Some(sender));
        client.first_connection().await?;
        Ok((client, Notices { events }))
    }

    /// A client that connects with its first request. Must be called within a tokio runtime.
    ///
    /// ```no_run
    /// # use ganger_client::{Client, ClientOptions};
    /// let client = Client::lazy(ClientOptions::new("localhost"));
    /// ```
    pub fn lazy(options: ClientOptions) -> Self {
        Self::start(options, None)
    }

    pub(crate) fn start(options: ClientOptions, events: Option<UnboundedSender<Event>>) -> Self {
        let (commands, receiver) = unbounded_channel();
        let ended = CancellationToken::new();
        let shared = Shared {
            commands,
            room: Arc::new(Semaphore::new(options.in_flight_max)),
            request_timeout: options.request_timeout,
            options: options.clone(),
            ended: ended.clone(),
        };
        let connection = Connection::new(options, receiver, events);
        task::spawn(async move {
            let _ended = ended.drop_guard();
            connection.run().await;
        });
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Ends the connection, for all clones. Requests without an answer end in [`Error::Closed`], or
    /// in [`Error::OutcomeUnknown`] if they may have been applied.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) {
    /// client.close().await;
    /// # }
    /// ```
    pub async fn close(&self) {
        // If the task is gone already, there is nothing to end.
        let _ = self.shared.commands.send(Command::Close);
        self.shared.ended.cancelled().await;
    }

    /// Adds a job durably and returns its id. Over lost connections the job is added at most once.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not take the job, [`Error::OutcomeUnknown`] when
    /// nobody knows whether it did.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::Job;
    /// let id = client.push(Job::new("resize").queue("images").payload(&("cat.png", 640))?).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn push<J>(&self, job: J) -> Result<JobId, Error>
    where
        J: TryInto<JobSpec>,
        Error: From<J::Error>,
    {
        one(self.push_all(vec![job.try_into()?], false).await?)
    }

    /// Adds 1…1000 jobs in one request; each is taken or refused by itself. The results stand in the
    /// order of the jobs.
    ///
    /// # Errors
    /// Those of [`Client::push`], for the request as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::Job;
    /// let jobs = vec![Job::new("a").build()?, Job::new("b").build()?];
    /// for result in client.push_many(jobs).await? {
    ///     println!("{result:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn push_many(
        &self,
        jobs: Vec<JobSpec>,
    ) -> Result<Vec<Result<JobId, WireError>>, Error> {
        self.push_all(jobs, false).await
    }

    /// Adds all of 1…1000 jobs, or none if one of them is refused.
    ///
    /// # Errors
    /// Those of [`Client::push`], for the request as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::Job;
    /// let jobs = vec![Job::new("charge").build()?, Job::new("ship").build()?];
    /// let results = client.push_atomic(jobs).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn push_atomic(
        &self,
        jobs: Vec<JobSpec>,
    ) -> Result<Vec<Result<JobId, WireError>>, Error> {
        self.push_all(jobs, true).await
    }

    /// Adds the jobs of a whole request, which may be spread over a time; its number is the client's
    /// to give. Each result says whether a job was made, or another one held its unique key.
    ///
    /// # Errors
    /// Those of [`Client::push`], for the request as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// use ganger_client::{Job, protocol::{DurationMs, request::Push}};
    ///
    /// let job = Job::new("report").unique("report:42").build()?;
    /// let push = Push { spread_ms: Some(DurationMs::from_mins(10)), ..Push::of(vec![job]) };
    /// for result in client.push_with(push).await? {
    ///     println!("{:?}, existing: {}", result.id, result.existing);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn push_with(&self, push: Push) -> Result<Vec<PushResult>, Error> {
        let count = push.jobs.len();
        let push = Push { seq: None, ..push };
        let reply: PushReply = self.read(Operation::Push(push)).await?;
        let is_whole = |result: &PushResult| result.id.is_some() || result.err.is_some();
        match reply.results.len() == count && reply.results.iter().all(is_whole) {
            true => Ok(reply.results),
            false => Err(shape("push")),
        }
    }

    /// Asks for leases, and may carry acks and fails. Needs
    /// [`ClientOptions::session`](crate::ClientOptions::session); a [`Worker`](crate::Worker) does
    /// all of this by itself. If the returned future is dropped, leases that arrive for it are
    /// released.
    ///
    /// # Errors
    /// When the server refuses the fetch as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use ganger_client::protocol::{DurationMs, request::Fetch};
    ///
    /// let fetch = Fetch {
    ///     queues: vec!["mail".parse()?],
    ///     max: 10,
    ///     wait_ms: DurationMs::from_secs(30),
    ///     ..Fetch::default()
    /// };
    /// let jobs = client.fetch(fetch).await?.jobs;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fetch(&self, fetch: Fetch) -> Result<FetchReply, Error> {
        match self.call(Operation::Fetch(fetch)).await? {
            Answer::Fetch(reply) => Ok(reply),
            Answer::Body(_) | Answer::Lease(_) => Err(shape("fetch")),
        }
    }

    /// Attempts succeeded: their jobs are done. Results stand in the order of the leases.
    ///
    /// # Errors
    /// When the server refuses the request as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, job: ganger_client::protocol::job::GrantedJob) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::protocol::request::AckItem;
    /// client.ack(vec![AckItem::of(job.id, job.lease)]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ack(&self, leases: Vec<AckItem>) -> Result<Vec<LeaseResult>, Error> {
        self.lease_call(Operation::Ack(Ack { leases })).await
    }

    /// Attempts failed; each result says what became of the job.
    ///
    /// # Errors
    /// When the server refuses the request as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, job: ganger_client::protocol::job::GrantedJob) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::Failure;
    /// let failure = Failure::new("smtp", "connection refused");
    /// client.fail(vec![failure.into_item(job.id, job.lease)]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fail(&self, leases: Vec<FailItem>) -> Result<Vec<LeaseResult>, Error> {
        self.lease_call(Operation::Fail(Fail { leases })).await
    }

    /// Gives leases back; their jobs are ready again, and nothing counts as a failure.
    ///
    /// # Errors
    /// When the server refuses the request as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, job: ganger_client::protocol::job::GrantedJob) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::protocol::request::ReleaseItem;
    /// client.release(vec![ReleaseItem { job: job.id, lease: job.lease, delay_ms: None }]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn release(&self, leases: Vec<ReleaseItem>) -> Result<Vec<LeaseResult>, Error> {
        self.lease_call(Operation::Release(Release { leases }))
            .await
    }

    /// Moves deadlines of leases; each result says where to.
    ///
    /// # Errors
    /// When the server refuses the request as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, job: ganger_client::protocol::job::GrantedJob) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::protocol::{DurationMs, request::ExtendItem};
    /// let ms = DurationMs::from_mins(5);
    /// client.extend(vec![ExtendItem { job: job.id, lease: job.lease, ms }]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn extend(&self, leases: Vec<ExtendItem>) -> Result<Vec<LeaseResult>, Error> {
        self.lease_call(Operation::Extend(Extend { leases })).await
    }

    /// Says how far attempts have come; it is durable when this returns.
    ///
    /// # Errors
    /// When the server refuses the request as a whole.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, job: ganger_client::protocol::job::GrantedJob) -> Result<(), ganger_client::Error> {
    /// # use ganger_client::protocol::progress::ProgressItem;
    /// let item = ProgressItem { percent: Some(50), ..ProgressItem::of(job.id, job.lease) };
    /// client.progress(vec![item]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn progress(&self, leases: Vec<ProgressItem>) -> Result<Vec<LeaseResult>, Error> {
        self.lease_call(Operation::Progress(Progress { leases }))
            .await
    }

    /// Says that the session is alive. A client with a session does so by itself whenever it is
    /// silent for a third of the session's ttl.
    ///
    /// # Errors
    /// When there is no session.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// if client.heartbeat().await?.quiet {
    ///     println!("no more jobs");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn heartbeat(&self) -> Result<HeartbeatReply, Error> {
        self.read(Operation::Heartbeat(Heartbeat {})).await
    }

    /// Ends the session: all its leases are released.
    ///
    /// # Errors
    /// When there is no session.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// client.goodbye().await?;
    /// client.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn goodbye(&self) -> Result<(), Error> {
        let Done {} = self.read(Operation::Goodbye(Goodbye {})).await?;
        Ok(())
    }

    /// Shows one job.
    ///
    /// # Errors
    /// `not_found` when the job is not kept any more.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, id: ganger_client::JobId) -> Result<(), ganger_client::Error> {
    /// println!("{}", client.job(id).await?.state);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn job(&self, job: JobId) -> Result<JobView, Error> {
        self.read(Operation::JobGet(JobGet { job })).await
    }

    /// Waits until a job is over, and returns what came out of it; or how it stands when `at_most` has
    /// passed. A job that is not retained is answered for in the moment in which it ends: whoever
    /// waits over a lost connection, or asks later, needs one that is retained.
    ///
    /// # Errors
    /// `not_found` when the job is not kept.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use ganger_client::Job;
    ///
    /// let job = Job::new("sum").payload(&[1, 2, 3])?.retain(Duration::from_secs(600));
    /// let id = client.push(job).await?;
    /// let sum: Option<u64> = client.wait(id, Duration::from_secs(60)).await?.read()?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait(&self, job: JobId, at_most: Duration) -> Result<JobOutcome, Error> {
        let end = Instant::now() + at_most;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let wait_ms = millis(left).min(FETCH_WAIT_MAX);
            let reply: WaitReply = self.read(Operation::Wait(Wait { job, wait_ms })).await?;
            if reply.state.is_terminal() || wait_ms == DurationMs::ZERO {
                return Ok(JobOutcome::new(reply));
            }
        }
    }

    /// Cancels jobs, each by itself: one that waits is over at once, the worker of one that is leased
    /// has the grace to answer. It can be repeated safely.
    ///
    /// # Errors
    /// When the server refuses the request; what became of each job is in the reply.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, id: ganger_client::JobId) -> Result<(), ganger_client::Error> {
    /// use ganger_client::protocol::request::JobCancel;
    ///
    /// let reply = client.cancel(JobCancel::new(vec![id])).await?;
    /// println!("{:?}", reply.results[0].state);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cancel(&self, cancel: JobCancel) -> Result<CancelReply, Error> {
        self.read(Operation::JobCancel(cancel)).await
    }

    /// Lists the dead jobs of a queue, a page at a time.
    ///
    /// # Errors
    /// When the server refuses, for instance an old cursor.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use ganger_client::protocol::request::DeadList;
    ///
    /// let list = DeadList { queue: "mail".parse()?, newest_first: true, cursor: None, limit: 50 };
    /// for job in client.dead_list(list).await?.jobs {
    ///     println!("{} {}", job.id, job.kind);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn dead_list(&self, list: DeadList) -> Result<JobsReply, Error> {
        self.read(Operation::DeadList(list)).await
    }

    /// Reads the next chunk of a backup of the whole server, which begins with the offset 0. It
    /// belongs to the connection; when that is lost, it begins anew.
    ///
    /// # Errors
    /// When the server refuses, or [`Error::OutcomeUnknown`] when the connection was lost.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut backup = Vec::new();
    /// loop {
    ///     let reply = client.backup(backup.len() as u64).await?;
    ///     backup.extend_from_slice(&reply.chunk);
    ///     if reply.end {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn backup(&self, offset: u64) -> Result<BackupReply, Error> {
        self.read(Operation::Backup(Backup { offset })).await
    }

    /// Makes dead jobs ready again, their failures forgotten. By ids it can be repeated safely; of a
    /// queue it is never repeated by itself.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when the answer for a queue was lost.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client, id: ganger_client::JobId) -> Result<(), ganger_client::Error> {
    /// use ganger_client::protocol::request::DeadSelect;
    ///
    /// client.dead_revive(DeadSelect { jobs: vec![id], ..DeadSelect::default() }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn dead_revive(&self, select: DeadSelect) -> Result<CountReply, Error> {
        self.read(Operation::DeadRevive(select)).await
    }

    /// Removes dead jobs for good. By ids it can be repeated safely; of a queue it is never repeated
    /// by itself.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when the answer for a queue was lost.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use ganger_client::protocol::request::DeadSelect;
    ///
    /// let select = DeadSelect { queue: Some("mail".parse()?), ..DeadSelect::default() };
    /// while client.dead_purge(select.clone()).await?.more {}
    /// # Ok(())
    /// # }
    /// ```
    pub async fn dead_purge(&self, select: DeadSelect) -> Result<CountReply, Error> {
        self.read(Operation::DeadPurge(select)).await
    }

    /// Lists queues with their counters: those that match, or all.
    ///
    /// # Errors
    /// When the server refuses.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// for queue in client.queues(Some("mail.*".parse()?)).await? {
    ///     println!("{} {}", queue.name, queue.counters.ready);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn queues(&self, pattern: Option<QueuePattern>) -> Result<Vec<QueueView>, Error> {
        let reply: QueuesReply = self
            .read(Operation::QueueList(QueueList { pattern }))
            .await?;
        Ok(reply.queues)
    }

    /// Stops the grants of these queues; pushes are still accepted, and leases go on.
    ///
    /// # Errors
    /// When the server refuses.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.pause(vec!["mail".parse()?]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn pause(&self, queues: Vec<QueueName>) -> Result<(), Error> {
        self.pause_of(QueuePause {
            queues,
            ..QueuePause::default()
        })
        .await
    }

    /// Starts the grants of these queues again.
    ///
    /// # Errors
    /// When the server refuses.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.resume(vec!["mail".parse()?]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn resume(&self, queues: Vec<QueueName>) -> Result<(), Error> {
        let names = QueueNames { queues };
        let Done {} = self.read(Operation::QueueResume(names)).await?;
        Ok(())
    }

    /// Shows totals of the namespace and the server.
    ///
    /// # Errors
    /// When the server refuses.
    ///
    /// ```no_run
    /// # async fn example(client: ganger_client::Client) -> Result<(), ganger_client::Error> {
    /// println!("{} ready", client.stats().await?.counters.ready);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stats(&self) -> Result<StatsReply, Error> {
        self.read(Operation::Stats(Stats {})).await
    }

    /// Sends a request that is kept over every reconnect, outside of the bound on requests.
    pub(crate) fn ask(&self, operation: Operation) -> Result<Pending, Error> {
        self.begin(operation, true, None)
    }

    async fn push_all(
        &self,
        jobs: Vec<JobSpec>,
        atomic: bool,
    ) -> Result<Vec<Result<JobId, WireError>>, Error> {
        let push = Push {
            atomic,
            ..Push::of(jobs)
        };
        self.push_each(push).await
    }

    /// What became of each job of a push.
    pub(crate) async fn push_each(
        &self,
        push: Push,
    ) -> Result<Vec<Result<JobId, WireError>>, Error> {
        let results = self.push_with(push).await?.into_iter();
        let results = results.map(|result| match result {
            PushResult {
                err: Some(error), ..
            } => Ok(Err(error)),
            PushResult { id: Some(id), .. } => Ok(Ok(id)),
            PushResult { .. } => Err(shape("push")),
        });
        results.collect()
    }

    pub(crate) async fn read<T: DeserializeOwned>(&self, operation: Operation) -> Result<T, Error> {
        let op = operation.op();
        match self.call(operation).await? {
            Answer::Body(body) => Ok(body.read()?),
            Answer::Fetch(_) | Answer::Lease(_) => Err(shape(op)),
        }
    }

    async fn lease_call(&self, operation: Operation) -> Result<Vec<LeaseResult>, Error> {
        let op = operation.op();
        match self.call(operation).await? {
            Answer::Lease(reply) => Ok(reply.results),
            Answer::Fetch(_) | Answer::Body(_) => Err(shape(op)),
        }
    }

    async fn call(&self, operation: Operation) -> Result<Answer, Error> {
        let room = Arc::clone(&self.shared.room);
        let Ok(permit) = room.acquire_owned().await else {
            return Err(Error::Closed);
        };
        self.begin(operation, false, Some(permit))?.answer().await
    }

    fn begin(
        &self,
        operation: Operation,
        patient: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Pending, Error> {
        let waits = match &operation {
            Operation::Fetch(fetch) => Duration::from_millis(fetch.wait_ms.0),
            Operation::Wait(wait) => Duration::from_millis(wait.wait_ms.0),
            _ => Duration::ZERO,
        };
        let grants = matches!(operation, Operation::Fetch(_));
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ask(Box::new(Ask {
            operation,
            reply: Some(reply),
            allowance: self.shared.request_timeout + waits,
            patient,
            permit,
        })))?;
        Ok(Pending {
            answer,
            unclaimed: grants.then(|| self.clone()),
        })
    }

    /// How it connects.
    pub(crate) fn options(&self) -> &ClientOptions {
        &self.shared.options
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        match self.shared.commands.send(command) {
            Ok(()) => Ok(()),
            Err(_the_task_has_ended) => Err(Error::Closed),
        }
    }
}

/// What the server says to a session without being asked: leases that are lost or to be cancelled,
/// and what is asked of the worker as a whole.
#[derive(Debug)]
pub struct Notices {
    events: UnboundedReceiver<Event>,
}

impl Notices {
    /// The next of them; `None` once the client is closed. Cancel-safe.
    ///
    /// ```no_run
    /// # async fn example(mut notices: ganger_client::Notices) {
    /// println!("{:?}", notices.next().await);
    /// # }
    /// ```
    pub async fn next(&mut self) -> Option<Notice> {
        loop {
            return Some(match self.events.recv().await? {
                Event::Lost(leases) => Notice::Lost { leases },
                Event::Cancel(leases) => Notice::Cancel { leases },
                Event::Quiet => Notice::Quiet {},
                Event::Terminate => Notice::Terminate {},
                Event::Connected | Event::Refused(_) => continue,
            });
        }
    }
}

/// An answer to come. Leases that come when nobody waits any more go back to the server.
#[derive(Debug)]
pub(crate) struct Pending {
    answer: oneshot::Receiver<Result<Answer, Error>>,
    /// Of a fetch: by whom to release.
    unclaimed: Option<Client>,
}

impl Pending {
    async fn answer(&mut self) -> Result<Answer, Error> {
        poll_fn(|context| self.poll(context)).await
    }

    /// Not to be called again once it was ready.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Answer, Error>> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        Poll::Ready(answer.unwrap_or(Err(Error::Closed)))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(client) = self.unclaimed.take() else {
            return;
        };
        self.answer.close();
        if let Ok(Ok(Answer::Fetch(reply))) = self.answer.try_recv()
            && let Some(release) = release_all(&reply)
        {
            let timeout = client.shared.request_timeout;
            // If the task is gone, so is the connection, and the session will be.
            let ask = Box::new(Ask::unattended(release, timeout));
            let _ = client.send(Command::Ask(ask));
        }
    }
}

/// What became of the only job of a push.
pub(crate) fn one(results: Vec<Result<JobId, WireError>>) -> Result<JobId, Error> {
    match results.into_iter().next() {
        Some(Ok(id)) => Ok(id),
        Some(Err(error)) if !error.code.is_definite() => {
            Err(Error::OutcomeUnknown(Unknown::Unavailable(error)))
        }
        Some(Err(error)) => Err(Error::Refused(error)),
        None => Err(shape("push")),
    }
}

fn shape(op: &'static str) -> Error {
    Error::ReplyShape { op }
}
