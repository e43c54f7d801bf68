//! `ganger work`: a worker in any language. Each job starts the command anew.
//!
//! The payload comes on stdin, the rest in `GANGER_JOB_*`. The command's exit code decides: 0 ack,
//! 75 release for ten seconds, 65 dead, anything else a failure with the end of stderr as its
//! message. The lease is kept alive as long as the command runs; a lost lease ends the command, and a
//! cancelled job asks it to end: TERM first, and KILL when it takes too long.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    io,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ganger_client::{Client, Error as ClientError, Failure, Notices};
use ganger_protocol::{
    DurationMs, LeaseId, QueuePattern,
    job::GrantedJob,
    limits,
    request::{AckItem, ExtendItem, Fetch, ReleaseItem, SessionHello},
    response::Notice,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::{
    connect::ConnectArgs,
    error::{CliError, Exit},
    output, view,
};
use crate::{
    clock::Stopwatch,
    config::units::Span,
    tasks::{OnPanic, Tasks},
};

/// A fetch waits so long for a job.
const FETCH_WAIT: Duration = Duration::from_secs(20);

/// After a fetch that failed for the moment.
const PAUSE: Duration = Duration::from_secs(1);

/// `EX_TEMPFAIL`: the job is given back.
const EXIT_RELEASE: i32 = 75;

/// For so long.
const RELEASE_DELAY: DurationMs = DurationMs::from_secs(10);

/// `EX_DATAERR`: no further attempt.
const EXIT_DEAD: i32 = 65;

#[derive(Debug, clap::Args)]
pub(super) struct WorkArgs {
    /// Queues, names or prefixes with a final *, served strictly in this order
    #[arg(short, long, value_delimiter = ',', default_value = "default")]
    queues: Vec<QueuePattern>,
    /// How many commands run at once
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    concurrency: u16,
    /// The name of this worker; default the command's
    #[arg(long)]
    name: Option<String>,
    /// End when there was nothing to do for so long
    #[arg(long, value_name = "DURATION")]
    exit_when_idle: Option<Span>,
    /// After TERM or INT: how long commands may run on before they are killed and their jobs released
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    drain_timeout: Span,
    /// When a job is cancelled: how long its command may run on after TERM before it is killed
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    cancel_grace: Span,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: WorkArgs) -> Result<(), CliError> {
    let tasks = Tasks::new();
    let stopping = Stopping::default();
    stopping.watch_signals(&tasks)?;
    let options = args.connect.options()?.session(session(&args));
    let (client, notices) = Client::connect_with_notices(options).await?;
    let slots = usize::from(args.concurrency);
    let worker = Arc::new(Worker {
        client: client.clone(),
        command: args.command.clone(),
        stopping: stopping.clone(),
        slots: Arc::new(Semaphore::new(slots)),
        cancel_grace: args.cancel_grace.duration(),
        running: Mutex::default(),
    });
    tasks.spawn(
        "notices",
        OnPanic::Continue,
        Arc::clone(&worker).listen(notices),
    );
    let fetched = fetch_all(&worker, &tasks, &args).await;

    let drained = worker.slots.acquire_many(u32::from(args.concurrency));
    if tokio::time::timeout(args.drain_timeout.duration(), drained)
        .await
        .is_err()
    {
        output::note("commands still run: killed, their jobs released");
        stopping.kill.cancel();
        // Each command that is killed gives its slot back.
        let _ = worker.slots.acquire_many(u32::from(args.concurrency)).await;
    }
    // What could not be said is said by the end of the session.
    let _ = client.goodbye().await;
    client.close().await;
    let _ = tasks.shutdown(PAUSE).await;
    fetched
}

fn session(args: &WorkArgs) -> SessionHello {
    let command = args.command.first().map(String::as_str).unwrap_or_default();
    let name = args.name.as_deref().unwrap_or(command);
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    SessionHello {
        name: name.chars().take(64).collect(),
        host: host.chars().take(64).collect(),
        pid: std::process::id(),
        capacity: u32::from(args.concurrency),
        ..SessionHello::default()
    }
}

/// What ends the work: first no more jobs, then no more commands.
#[derive(Debug, Clone, Default)]
struct Stopping {
    fetch: CancellationToken,
    kill: CancellationToken,
    /// The command cannot be run at all.
    broken: CancellationToken,
}

impl Stopping {
    /// Stops because the command cannot be run.
    fn fail(&self) {
        self.broken.cancel();
        self.fetch.cancel();
    }

    fn verdict(&self) -> Result<(), CliError> {
        if self.broken.is_cancelled() {
            return Err(CliError::usage(
                "the command cannot be run; its job was released",
            ));
        }
        Ok(())
    }

    fn watch_signals(&self, tasks: &Tasks) -> Result<(), CliError> {
        let deaf = |error: io::Error| CliError::failed("cannot listen to signals").because(&error);
        let mut terminate = signal(SignalKind::terminate()).map_err(deaf)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(deaf)?;
        let (stopping, end) = (self.clone(), tasks.stopping());
        tasks.spawn("signals", OnPanic::Continue, async move {
            loop {
                // All branches are cancel-safe: a signal that was not taken stays.
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    () = end.cancelled() => return,
                }
                if stopping.fetch.is_cancelled() {
                    stopping.kill.cancel();
                }
                stopping.fetch.cancel();
            }
        });
        Ok(())
    }
}

/// Fetches and starts commands until told to stop.
async fn fetch_all(worker: &Arc<Worker>, tasks: &Tasks, args: &WorkArgs) -> Result<(), CliError> {
    let mut idle = Stopwatch::start();
    let patience = args.exit_when_idle.map(Span::duration);
    loop {
        let free = Arc::clone(&worker.slots).acquire_owned();
        let Some(Ok(first)) = worker.stopping.fetch.run_until_cancelled(free).await else {
            return worker.stopping.verdict();
        };
        let mut permits = VecDeque::from([first]);
        while let Ok(permit) = Arc::clone(&worker.slots).try_acquire_owned() {
            permits.push_back(permit);
        }
        let busy = permits.len() < usize::from(args.concurrency);
        let wait = patience.map_or(FETCH_WAIT, |patience| patience.min(FETCH_WAIT));
        let fetch = Fetch {
            queues: args.queues.clone(),
            max: u32::try_from(permits.len()).unwrap_or(u32::MAX),
            wait_ms: DurationMs(u64::try_from(wait.as_millis()).unwrap_or_default()),
            ..Fetch::default()
        };
        // A fetch that is dropped releases what arrives for it.
        let fetching = worker.client.fetch(fetch);
        let Some(reply) = worker.stopping.fetch.run_until_cancelled(fetching).await else {
            return worker.stopping.verdict();
        };
        match reply {
            Ok(reply) if reply.jobs.is_empty() => {
                if busy {
                    idle = Stopwatch::start();
                } else if patience.is_some_and(|patience| idle.elapsed() >= patience) {
                    return Ok(());
                }
            }
            Ok(reply) => {
                for (job, permit) in reply.jobs.into_iter().zip(permits.drain(..)) {
                    tasks.spawn(
                        "job",
                        OnPanic::Stop,
                        Arc::clone(worker).perform(job, permit),
                    );
                }
                idle = Stopwatch::start();
            }
            Err(error) if passes(&error) => {
                output::note(&format!("waiting: {error}"));
                let pause = tokio::time::sleep(PAUSE);
                if worker
                    .stopping
                    .fetch
                    .run_until_cancelled(pause)
                    .await
                    .is_none()
                {
                    return worker.stopping.verdict();
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the same fetch may work later.
fn passes(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(error) => error.retryable,
        ClientError::Unreachable {
            cause: ganger_client::ConnectError::Refused(error),
            ..
        } => error.retryable,
        ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::OutcomeUnknown(_) => true,
        _ => false,
    }
}

/// What every job needs.
#[derive(Debug)]
struct Worker {
    client: Client,
    command: Vec<String>,
    stopping: Stopping,
    slots: Arc<Semaphore>,
    cancel_grace: Duration,
    /// What each running command is told.
    running: Mutex<HashMap<LeaseId, Told>>,
}

/// What a running command is told.
#[derive(Debug, Clone, Default)]
struct Told {
    /// Its job is cancelled.
    cancelled: CancellationToken,
    /// Its lease is another worker's now.
    lost: CancellationToken,
}

/// What becomes of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Ack,
    Release(Option<DurationMs>),
    Fail {
        kind: String,
        message: String,
        dead: bool,
    },
    /// The lease is another worker's now.
    Lost,
}

impl Worker {
    /// Passes on to the commands what the server says of their leases.
    async fn listen(self: Arc<Self>, mut notices: Notices) {
        while let Some(notice) = notices.next().await {
            let (Notice::Cancel { leases } | Notice::Lost { leases }) = &notice else {
                continue;
            };
            let running = self.running();
            for told in leases.iter().filter_map(|it| running.get(&it.lease)) {
                match notice {
                    Notice::Cancel { .. } => told.cancelled.cancel(),
                    _ => told.lost.cancel(),
                }
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<LeaseId, Told>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn perform(self: Arc<Self>, job: GrantedJob, _slot: OwnedSemaphorePermit) {
        let told = Told::default();
        self.running().insert(job.lease, told.clone());
        let outcome = match self.start(&job) {
            Ok(child) => self.attend(child, &job, &told).await,
            Err(error) => {
                let command = self.command.first().map(String::as_str).unwrap_or_default();
                output::note(&format!("error: cannot run {command}\ncause: {error}"));
                self.stopping.fail();
                Outcome::Release(None)
            }
        };
        self.running().remove(&job.lease);
        if let Outcome::Fail { kind, message, .. } = &outcome {
            output::note(&format!(
                "job {} failed: {kind}: {}",
                job.id,
                view::preview(message)
            ));
        }
        if let Err(error) = self.settle(&job, outcome).await {
            output::note(&format!("job {}: {error}", job.id));
        }
    }

    fn start(&self, job: &GrantedJob) -> io::Result<Child> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment(job))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C is for the worker, which lets its commands finish.
            .process_group(0)
            .kill_on_drop(true);
        command.spawn()
    }

    /// Feeds and watches a command until it ends, or has to.
    async fn attend(&self, mut child: Child, job: &GrantedJob, told: &Told) -> Outcome {
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let group = group.and_then(rustix::process::Pid::from_raw);
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let mut tail = Tail::default();
        let ended = {
            let talk = async {
                let feed = async {
                    if let Some(mut stdin) = stdin {
                        // A command that does not read its payload is free not to.
                        let _ = stdin.write_all(&job.payload).await;
                    }
                };
                let listen = async {
                    if let Some(stderr) = stderr {
                        tail.read(stderr).await;
                    }
                };
                tokio::join!(feed, listen);
            };
            let lost = async {
                tokio::select! {
                    () = self.keep_alive(job) => {}
                    () = told.lost.cancelled() => {}
                }
            };
            let overdue = async {
                told.cancelled.cancelled().await;
                signal_group(group, rustix::process::Signal::TERM);
                tokio::time::sleep(self.cancel_grace).await;
            };
            watch(&mut child, talk, (lost, overdue), &self.stopping.kill).await
        };
        if ended != Ended::ByItself {
            signal_group(group, rustix::process::Signal::KILL);
        }
        match (ended, child.wait().await) {
            (Ended::LeaseLost, _) => Outcome::Lost,
            (Ended::Killed, _) | (Ended::ByItself | Ended::Overdue, Err(_)) => {
                Outcome::Release(None)
            }
            // The server knows that it is cancelled: no failure of it makes another attempt.
            (Ended::ByItself | Ended::Overdue, Ok(status)) => outcome(status, &tail.text()),
        }
    }

    /// Extends the lease again and again; returns when it is lost.
    async fn keep_alive(&self, job: &GrantedJob) {
        let ms = job.timeout_ms.clamp(limits::LEASE_MIN, limits::LEASE_MAX);
        let period = Duration::from_millis(ms.0) / 3;
        loop {
            tokio::time::sleep(period).await;
            let item = ExtendItem {
                job: job.id,
                lease: job.lease,
                ms,
            };
            // Without an answer nothing is known; the next one is soon.
            if let Ok(results) = self.client.extend(vec![item]).await
                && results.iter().any(|result| result.err.is_some())
            {
                return;
            }
        }
    }

    async fn settle(&self, job: &GrantedJob, outcome: Outcome) -> Result<(), CliError> {
        let (id, lease) = (job.id, job.lease);
        let results = match outcome {
            Outcome::Ack => self.client.ack(vec![AckItem::of(id, lease)]).await?,
            Outcome::Release(delay_ms) => {
                self.client
                    .release(vec![ReleaseItem {
                        job: id,
                        lease,
                        delay_ms,
                    }])
                    .await?
            }
            Outcome::Fail {
                kind,
                message,
                dead,
            } => {
                let mut item = Failure::new(kind, message).into_item(id, lease);
                item.dead = dead;
                self.client.fail(vec![item]).await?
            }
            Outcome::Lost => {
                return Err(CliError::new(
                    Exit::Conflict,
                    "its lease was lost; the command ended",
                ));
            }
        };
        match results.into_iter().next().and_then(|result| result.err) {
            None => Ok(()),
            Some(error) => Err(error.into()),
        }
    }
}

/// How the watch over a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    ByItself,
    LeaseLost,
    Killed,
    /// It was asked to end and did not.
    Overdue,
}

/// Sends a signal to a command and all that it has started. They may have ended in this moment.
fn signal_group(group: Option<rustix::process::Pid>, signal: rustix::process::Signal) {
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

/// Waits for a command, its talk, the end of its lease or of its patience, and the order to kill. What it leaves
/// running in the background keeps its stderr open but does not keep us.
async fn watch(
    child: &mut Child,
    talk: impl Future<Output = ()>,
    (lease_lost, overdue): (impl Future<Output = ()>, impl Future<Output = ()>),
    kill: &CancellationToken,
) -> Ended {
    let (mut talk, mut lease_lost) = (std::pin::pin!(talk), std::pin::pin!(lease_lost));
    let mut overdue = std::pin::pin!(overdue);
    let mut talking = true;
    loop {
        // The pinned futures go on where they were; the other branches are cancel-safe.
        tokio::select! {
            () = &mut talk, if talking => talking = false,
            _ = child.wait() => break,
            () = &mut lease_lost => return Ended::LeaseLost,
            () = &mut overdue => return Ended::Overdue,
            () = kill.cancelled() => return Ended::Killed,
        }
    }
    if talking {
        // What was written before the end is in the pipe already.
        let _ = tokio::time::timeout(Duration::from_millis(100), talk).await;
    }
    Ended::ByItself
}

/// What the exit of a command means.
fn outcome(status: ExitStatus, stderr: &str) -> Outcome {
    let fail = |kind: String, dead| {
        let message = stderr.trim().to_owned();
        Outcome::Fail {
            kind,
            message,
            dead,
        }
    };
    match (status.code(), status.signal()) {
        (Some(0), _) => Outcome::Ack,
        (Some(EXIT_RELEASE), _) => Outcome::Release(Some(RELEASE_DELAY)),
        (Some(code), _) => fail(format!("exit_{code}"), code == EXIT_DEAD),
        (None, signal) => fail(format!("signal_{}", signal.unwrap_or_default()), false),
    }
}

fn environment(job: &GrantedJob) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("GANGER_JOB_ID", job.id.to_string()),
        ("GANGER_JOB_KIND", job.kind.to_string()),
        ("GANGER_JOB_QUEUE", job.queue.to_string()),
        ("GANGER_JOB_ATTEMPT", job.attempt.to_string()),
        ("GANGER_JOB_LEASE", job.lease.to_string()),
    ];
    // A variable ends at a NUL byte, so a header with one cannot be a variable.
    if let Some(parent) = job
        .headers
        .get("traceparent")
        .filter(|text| !text.contains('\0'))
    {
        variables.push(("GANGER_JOB_TRACEPARENT", parent.clone()));
        variables.push(("TRACEPARENT", parent.clone()));
    }
    variables
}

/// The end of a command's stderr; all of it goes on to ours.
#[derive(Debug, Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    async fn read(&mut self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let bytes = buffer.get(..count).unwrap_or_default();
            output::pass_on(bytes);
            self.0.extend(bytes);
            let over = self.0.len().saturating_sub(limits::ERROR_MESSAGE_BYTES_MAX);
            self.0.drain(..over);
        }
    }

    fn text(&self) -> String {
        let (front, back) = self.0.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use clap::Parser as _;
    use ganger_protocol::{
        JobId, LeaseId, Timestamp,
        request::Operation,
        response::{Done, FetchReply, LeaseReply, LeaseResult, ReplyBody},
    };

    use super::{super::peer::Peer, *};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        work: WorkArgs,
    }

    fn job() -> GrantedJob {
        GrantedJob {
            id: JobId::from_bytes([0; 24]),
            lease: LeaseId(7),
            queue: "mail".parse().unwrap(),
            kind: "welcome".parse().unwrap(),
            payload: b"[1]".to_vec().into(),
            content_type: None,
            headers: [("traceparent".to_owned(), "00-ab".to_owned())].into(),
            attempt: 2,
            failures: 1,
            timeout_ms: DurationMs::from_secs(60),
            pushed_at: Timestamp(0),
            tags: Vec::new(),
            batch: None,
            key: None,
            cursor: None,
        }
    }

    fn fail(kind: &str, message: &str, dead: bool) -> Outcome {
        Outcome::Fail {
            kind: kind.to_owned(),
            message: message.to_owned(),
            dead,
        }
    }

    #[test]
    fn the_exit_code_decides() {
        // The raw status of wait(2): the code in the second byte, the signal in the first.
        let of = |raw: i32| outcome(ExitStatus::from_raw(raw), " why\n");
        assert_eq!(of(0), Outcome::Ack);
        assert_eq!(of(75 << 8), Outcome::Release(Some(DurationMs(10_000))));
        assert_eq!(of(65 << 8), fail("exit_65", "why", true));
        assert_eq!(of(1 << 8), fail("exit_1", "why", false));
        assert_eq!(of(9), fail("signal_9", "why", false));
    }

    #[test]
    fn the_job_is_told_in_the_environment() {
        let variables: Vec<_> = environment(&job())
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            variables,
            [
                "GANGER_JOB_ID=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                "GANGER_JOB_KIND=welcome",
                "GANGER_JOB_QUEUE=mail",
                "GANGER_JOB_ATTEMPT=2",
                "GANGER_JOB_LEASE=7",
                "GANGER_JOB_TRACEPARENT=00-ab",
                "TRACEPARENT=00-ab",
            ]
        );
    }

    #[tokio::test]
    async fn only_the_end_of_stderr_is_kept() {
        let mut tail = Tail::default();
        let mut text = vec![b'x'; 5_000];
        text.extend_from_slice(b"the end");
        tail.read(&text[..]).await;
        assert_eq!(tail.text().len(), limits::ERROR_MESSAGE_BYTES_MAX);
        assert!(tail.text().ends_with("xthe end"));
    }

    /// Runs a shell script as the command of a worker without a server.
    async fn attend(script: &str, kill: bool) -> Outcome {
        attend_told(script, kill, &Told::default()).await
    }

    async fn attend_told(script: &str, kill: bool, told: &Told) -> Outcome {
        let worker = Worker {
            client: Client::lazy(ganger_client::ClientOptions::new("127.0.0.1")),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            stopping: Stopping::default(),
            slots: Arc::new(Semaphore::new(1)),
            cancel_grace: Duration::from_millis(50),
            running: Mutex::default(),
        };
        if kill {
            worker.stopping.kill.cancel();
        }
        let child = worker.start(&job()).unwrap();
        worker.attend(child, &job(), told).await
    }

    /// Runs a script whose job is cancelled once it has made its preparations.
    async fn cancel_behind(preparations: &str, script: &str) -> Outcome {
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let script = format!("{preparations}; echo > {}; {script}", pipe.display());
        let told = Told::default();
        let cancelled = told.cancelled.clone();
        let ready = tokio::task::spawn_blocking(move || {
            // It can be opened once the script opens it, too.
            std::fs::read(pipe).unwrap();
            cancelled.cancel();
        });
        let outcome = attend_told(&script, false, &told).await;
        ready.await.unwrap();
        outcome
    }

    #[tokio::test]
    async fn a_cancelled_command_is_asked_to_end_and_its_exit_still_decides() {
        let outcome = cancel_behind("trap 'exit 0' TERM", "while :; do sleep 0.01; done").await;
        assert_eq!(outcome, Outcome::Ack);
        let outcome = cancel_behind(":", "exec sleep 60").await;
        assert_eq!(outcome, fail("signal_15", "", false));
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_is_killed_after_the_grace() {
        let outcome = cancel_behind("trap '' TERM", "sleep 60; sleep 60").await;
        assert_eq!(outcome, fail("signal_9", "", false));
    }

    #[tokio::test]
    async fn a_lost_lease_ends_the_command_at_once() {
        let told = Told::default();
        told.lost.cancel();
        let outcome = attend_told("exec sleep 60", false, &told).await;
        assert_eq!(outcome, Outcome::Lost);
    }

    #[tokio::test]
    async fn a_command_reads_its_payload_and_its_stderr_is_the_message() {
        let outcome = attend("cat >&2; echo \" $GANGER_JOB_KIND\" >&2; exit 3", false).await;
        assert_eq!(outcome, fail("exit_3", "[1] welcome", false));
    }

    #[tokio::test]
    async fn a_command_need_not_read_its_payload() {
        assert_eq!(attend("exec <&-; exit 0", false).await, Outcome::Ack);
    }

    #[tokio::test]
    async fn what_a_command_leaves_in_the_background_does_not_hold_the_job() {
        let outcome = attend("sleep 5 & echo left >&2; exit 1", false).await;
        assert_eq!(outcome, fail("exit_1", "left", false));
    }

    #[tokio::test]
    async fn a_killed_command_releases_its_job() {
        assert_eq!(attend("sleep 60; true", true).await, Outcome::Release(None));
    }

    #[tokio::test]
    async fn a_worker_answers_each_job_and_ends_when_idle() {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut jobs) = (Arc::clone(&answers), vec!["0", "1", "65", "75"]);
        let peer = Peer::start(move |operation| {
            let mut seen = seen.lock().unwrap();
            let done = LeaseReply {
                results: vec![LeaseResult::default()],
            };
            let text = match operation {
                Operation::Fetch(fetch) => {
                    let count = jobs.len().min(fetch.max as usize);
                    let granted = jobs.drain(..count).map(|code| GrantedJob {
                        payload: code.as_bytes().to_vec().into(),
                        ..job()
                    });
                    let jobs = granted.collect();
                    return Ok(ReplyBody::Fetch(FetchReply {
                        jobs,
                        ..FetchReply::default()
                    }));
                }
                Operation::Goodbye(_) => return Ok(ReplyBody::Done(Done {})),
                Operation::Ack(_) => "ack".to_owned(),
                Operation::Fail(fail) => {
                    format!("fail {} {}", fail.leases[0].kind, fail.leases[0].dead)
                }
                Operation::Release(release) => {
                    format!("release {}", release.leases[0].delay_ms.unwrap())
                }
                other => panic!("{other:?}"),
            };
            seen.push(text);
            Ok(ReplyBody::Lease(done))
        })
        .await;
        let line = format!(
            "work --url {} -c 3 --exit-when-idle 1ms -- sh -c",
            peer.url()
        );
        let arguments = line.split(' ').chain(["read code; exit $code"]);
        let args = Line::try_parse_from(arguments).unwrap().work;
        run(args).await.unwrap();
        let mut answers = answers.lock().unwrap().clone();
        answers.sort();
        assert_eq!(
            answers,
            [
                "ack",
                "fail exit_1 false",
                "fail exit_65 true",
                "release 10000 ms"
            ]
        );
    }

    #[tokio::test]
    async fn a_command_that_cannot_be_run_ends_the_worker_and_releases_the_job() {
        let released = Arc::new(Mutex::new(0));
        let count = Arc::clone(&released);
        let peer = Peer::start(move |operation| match operation {
            Operation::Fetch(_) => Ok(ReplyBody::Fetch(FetchReply {
                jobs: vec![job()],
                ..FetchReply::default()
            })),
            Operation::Release(_) => {
                *count.lock().unwrap() += 1;
                Ok(ReplyBody::Lease(LeaseReply {
                    results: vec![LeaseResult::default()],
                }))
            }
            _ => Ok(ReplyBody::Done(Done {})),
        })
        .await;
        let line = format!("work --url {} -- no-such-command-here", peer.url());
        let args = Line::try_parse_from(line.split(' ')).unwrap().work;
        let error = run(args).await.unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert_eq!(*released.lock().unwrap(), 1);
        let (_, remarks) = output::sink::take();
        assert!(
            remarks.starts_with("error: cannot run no-such-command-here\n"),
            "{remarks}"
        );
    }
}
