//! `ganger push`: one job from the arguments, or one a line from stdin.
//!
//! Lines travel in requests of up to a thousand, several in flight; ids are printed in the order of
//! the lines. A line that is refused does not stop the others.

use std::{collections::BTreeMap, collections::VecDeque, time::Duration};

use ganger_client::{CONTENT_TYPE_JSON, Client, Error as ClientError, Unknown};
use ganger_protocol::{
    BatchId, DurationMs, JobId, JobSpec, QueueName, Timestamp, WireError,
    ids::{Kind, Tag},
    job::{OnConflict, Unique, UniqueOf, UniqueUntil},
    limits::ITEMS_MAX,
    request::Push,
    response::PushResult,
};
use indicatif::ProgressBar;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, BufReader, Lines},
    sync::oneshot,
};

use super::{
    connect::ConnectArgs,
    error::{CliError, Exit},
    jobs,
    output::{self, Format},
};
use crate::{
    clock::Clock,
    config::units::Span,
    tasks::{OnPanic, Tasks},
};

/// Requests in flight at once.
const IN_FLIGHT: usize = 8;

/// Bytes of payloads in one request; half a frame, so that headers and names have room.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// What was read is pushed when no further line comes for so long.
const LINGER: Duration = Duration::from_millis(20);

/// The fields of a job with `--spec`, those of the protocol.
const SPEC_FIELDS: [&str; 21] = [
    "queue",
    "kind",
    "payload",
    "content_type",
    "headers",
    "priority",
    "run_at",
    "delay_ms",
    "max_attempts",
    "backoff",
    "timeout_ms",
    "tags",
    "expires_at",
    "unique",
    "key",
    "batch",
    "name",
    "after",
    "if",
    "on_dead",
    "retain_ms",
];

/// What `--unique-until` knows; a time is `--unique-ttl`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Until {
    /// Until the first grant
    Start,
    /// As settled, and by a dead job too
    Success,
    /// While the job waits or is with a worker
    Settled,
}

/// What `--unique-of` knows.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Field {
    /// Its queue
    Queue,
    /// Its kind
    Kind,
    /// Its payload
    Payload,
}

/// What `--on-conflict` knows.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Conflict {
    /// Refuse the job
    Reject,
    /// Answer with the id of the job that holds the key
    Existing,
    /// Give that job this payload and time, while it waits
    Replace,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("unique_key").args(["unique", "unique_of"]))]
pub(super) struct PushArgs {
    /// The kind, by which a worker picks a handler
    #[arg(required_unless_present = "spec")]
    kind: Option<String>,
    /// The payload as JSON, or `-` for one payload a line from stdin
    payload: Option<String>,
    /// Each line of stdin is a whole job: {"kind": …, "queue": …, "payload": …, …}
    #[arg(long, conflicts_with = "payload")]
    spec: bool,
    /// The queue
    #[arg(short, long)]
    queue: Option<QueueName>,
    /// Not before this time has passed, such as 5m
    #[arg(long = "in", value_name = "DURATION", conflicts_with = "at")]
    delay: Option<Span>,
    /// Not before this time, as RFC 3339
    #[arg(long, value_name = "TIME", value_parser = rfc3339)]
    at: Option<Timestamp>,
    /// 0 to 9, 9 first; default 5
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Failures after which the job is dead; default 26
    #[arg(long)]
    max_attempts: Option<u32>,
    /// The longest attempt, such as 10m; default the queue's
    #[arg(long)]
    timeout: Option<Span>,
    /// Not granted any more once this time has passed, such as 1h, by the clock of this machine
    #[arg(long, value_name = "DURATION")]
    expires_in: Option<Span>,
    /// The key, such as a tenant: keys share their queue, and limits of keys count for it
    #[arg(long)]
    key: Option<Tag>,
    /// The unique key: while a job holds it, another push with it makes none
    #[arg(long, value_name = "KEY")]
    unique: Option<Tag>,
    /// Derives the unique key from fields of the job
    #[arg(
        long,
        value_name = "FIELDS",
        value_delimiter = ',',
        conflicts_with = "unique"
    )]
    unique_of: Vec<Field>,
    /// How long the unique key is held; default settled
    #[arg(
        long,
        value_name = "EVENT",
        requires = "unique_key",
        conflicts_with = "unique_ttl"
    )]
    unique_until: Option<Until>,
    /// Holds the unique key for this time, such as 10m, whatever becomes of the job
    #[arg(long, value_name = "DURATION", requires = "unique_key")]
    unique_ttl: Option<Span>,
    /// What to do when another job holds the unique key; default existing
    #[arg(long, value_name = "WHAT", requires = "unique_key")]
    on_conflict: Option<Conflict>,
    /// Spreads the jobs of a request, at most a thousand lines, evenly over this time, such as 10m
    #[arg(long, value_name = "DURATION")]
    spread: Option<Span>,
    /// All lines are one push of at most a thousand jobs, which are all taken or none: needed when
    /// they wait for each other, by "name" and "after"
    #[arg(long)]
    atomic: bool,
    /// How long the job stays visible once it is done, cancelled or expired; default the queue's
    #[arg(long, value_name = "DURATION")]
    retain: Option<Span>,
    /// Wait so long at most until the job is over, and show what came out of it
    #[arg(long, value_name = "DURATION", conflicts_with = "spec")]
    wait: Option<Span>,
    /// The batch that the jobs join, as `batches open` printed it
    #[arg(long, value_name = "BATCH")]
    batch: Option<BatchId>,
    /// A header, name=value; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// A name to find the job by; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Tag>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: PushArgs) -> Result<(), CliError> {
    let from_stdin = args.spec || args.payload.as_deref() == Some("-");
    if from_stdin {
        if args.wait.is_some() {
            return Err(CliError::usage("--wait goes with one job, not with lines"));
        }
        let template = Template::new(&args)?;
        let client = args.connect.connect().await?;
        let lines = BufReader::new(tokio::io::stdin()).lines();
        return Stream::new(client, args.format, args.spread, args.atomic)
            .run(template, lines)
            .await;
    }
    let payload = args.payload.as_deref().unwrap_or_default();
    let job = Template::new(&args)?.job(payload).map_err(|error| {
        error.hint("a text needs its own quotes: ganger push hello '\"world\"'")
    })?;
    let client = args.connect.connect().await?;
    let push = request(vec![job], args.spread, args.atomic);
    let results = client.push_with(push).await?;
    match results.into_iter().next() {
        Some(result) => {
            let id = result.id;
            print_result(args.format, result)?.map_err(refused)?;
            match (args.wait, id) {
                (Some(time), Some(id)) => jobs::wait(&client, id, time, args.format).await,
                (Some(_) | None, _) => Ok(()),
            }
        }
        None => Err(CliError::failed(
            "the server did not say what became of the job",
        )),
    }
}

fn request(jobs: Vec<JobSpec>, spread: Option<Span>, atomic: bool) -> Push {
    Push {
        atomic,
        spread_ms: spread.map(|spread| spread.0),
        ..Push::of(jobs)
    }
}

fn refused(error: WireError) -> CliError {
    match error.code.is_definite() {
        true => ClientError::Refused(error).into(),
        false => ClientError::OutcomeUnknown(Unknown::Unavailable(error)).into(),
    }
}

/// Prints what became of a job, unless it was refused.
fn print_result(format: Format, result: PushResult) -> Result<Result<(), WireError>, CliError> {
    match (result.err, result.id) {
        (Some(error), _) => return Ok(Err(error)),
        (None, Some(id)) if result.existing => {
            let line =
                serde_json::json!({ "id": id, "existing": true, "replaced": result.replaced });
            format.print(&line, |_json| id.to_string())?;
        }
        (None, Some(id)) => print_id(format, id)?,
        (None, None) => {}
    }
    Ok(Ok(()))
}

fn print_id(format: Format, id: JobId) -> Result<(), CliError> {
    format.print(&serde_json::json!({ "id": id }), |_json| id.to_string())
}

/// What all jobs of the command line have in common.
#[derive(Debug)]
enum Template {
    /// Lines are payloads of such a job.
    Payload(Box<JobSpec>),
    /// Lines are jobs; flags fill what they leave open.
    Spec(Box<JobSpec>, bool),
}

impl Template {
    fn new(args: &PushArgs) -> Result<Self, CliError> {
        // With --spec the kind is that of the line; `-` may stand in its place.
        let kind = match args.kind.as_deref() {
            Some(kind) if !(args.spec && kind == "-") => kind,
            Some(_) | None => "unnamed",
        };
        let kind: Kind = kind.parse().map_err(|error| {
            CliError::usage(format!("{kind:?} is no kind of job")).because(&error)
        })?;
        let named = args.kind.as_deref().is_some_and(|kind| kind != "-");
        let job = Box::new(JobSpec {
            queue: args.queue.clone().unwrap_or_default(),
            headers: args.headers.iter().cloned().collect(),
            priority: args.priority,
            run_at: args.at,
            delay_ms: args.delay.map(|delay| delay.0),
            max_attempts: args.max_attempts,
            timeout_ms: args.timeout.map(|timeout| timeout.0),
            tags: args.tags.clone(),
            expires_at: args
                .expires_in
                .map(|time| Clock::system().now().wall.plus(time.0)),
            unique: unique(args).map(Box::new),
            key: args.key.clone(),
            batch: args.batch,
            retain_ms: args.retain.map(|time| time.0),
            ..JobSpec::new(kind, Vec::new())
        });
        Ok(if args.spec {
            Self::Spec(job, named)
        } else {
            Self::Payload(job)
        })
    }

    /// The job of a line, or of the payload argument; an empty one has no payload.
    fn job(&self, text: &str) -> Result<JobSpec, CliError> {
        match self {
            Self::Payload(job) => {
                let mut job = JobSpec::clone(job);
                if !text.is_empty() {
                    let payload: &RawValue = serde_json::from_str(text).map_err(|error| {
                        CliError::usage("the payload is no JSON").because(&error)
                    })?;
                    set_payload(&mut job, payload);
                }
                Ok(job)
            }
            Self::Spec(defaults, named) => spec(text, defaults, *named),
        }
    }
}

fn unique(args: &PushArgs) -> Option<Unique> {
    let of = args.unique_of.iter().map(|field| match field {
        Field::Queue => UniqueOf::Queue,
        Field::Kind => UniqueOf::Kind,
        Field::Payload => UniqueOf::Payload,
    });
    let unique = Unique {
        key: args.unique.clone(),
        of: of.collect(),
        until: match (args.unique_ttl, args.unique_until) {
            (Some(_), _) => UniqueUntil::Ttl,
            (None, Some(Until::Start)) => UniqueUntil::Start,
            (None, Some(Until::Success)) => UniqueUntil::Success,
            (None, Some(Until::Settled) | None) => UniqueUntil::Settled,
        },
        ttl_ms: args.unique_ttl.map(|ttl| ttl.0),
        on_conflict: match args.on_conflict {
            Some(Conflict::Reject) => OnConflict::Reject,
            Some(Conflict::Existing) | None => OnConflict::Existing,
            Some(Conflict::Replace) => OnConflict::Replace,
        },
    };
    (unique.key.is_some() || !unique.of.is_empty()).then_some(unique)
}

/// The job of a line; fields that it leaves open are those of `defaults`.
pub(super) fn spec(text: &str, defaults: &JobSpec, named: bool) -> Result<JobSpec, CliError> {
    let refused = |error| CliError::usage("the line is no job").because(&error);
    let mut fields: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(text).map_err(refused)?;
    if let Some(unknown) = fields
        .keys()
        .find(|field| !SPEC_FIELDS.contains(&field.as_str()))
    {
        return Err(CliError::usage(format!("a job has no field {unknown:?}"))
            .hint(format!("its fields are {}", SPEC_FIELDS.join(", "))));
    }
    let payload = fields.remove("payload");
    if named && !fields.contains_key("kind") {
        let kind = serde_json::value::to_raw_value(&defaults.kind).map_err(refused)?;
        fields.insert("kind".to_owned(), kind);
    }
    let queue_given = fields.contains_key("queue");
    let timed = fields.contains_key("run_at") || fields.contains_key("delay_ms");
    let fields = serde_json::to_string(&fields).map_err(refused)?;
    let mut job: JobSpec = serde_json::from_str(&fields).map_err(refused)?;
    if let Some(payload) = payload {
        let content_type = job.content_type.take();
        set_payload(&mut job, &payload);
        job.content_type = content_type.or(job.content_type);
    }
    if !queue_given {
        job.queue = defaults.queue.clone();
    }
    if !timed {
        (job.run_at, job.delay_ms) = (defaults.run_at, defaults.delay_ms);
    }
    job.priority = job.priority.or(defaults.priority);
    job.max_attempts = job.max_attempts.or(defaults.max_attempts);
    job.timeout_ms = job.timeout_ms.or(defaults.timeout_ms);
    job.expires_at = job.expires_at.or(defaults.expires_at);
    job.retain_ms = job.retain_ms.or(defaults.retain_ms);
    job.unique = job.unique.or_else(|| defaults.unique.clone());
    job.key = job.key.or_else(|| defaults.key.clone());
    for (name, value) in &defaults.headers {
        job.headers
            .entry(name.clone())
            .or_insert_with(|| value.clone());
    }
    job.batch = job.batch.or(defaults.batch);
    job.tags.extend(defaults.tags.iter().cloned());
    Ok(job)
}

/// The payload is the text as it stands, not a rewriting of it.
pub(super) fn set_payload(job: &mut JobSpec, payload: &RawValue) {
    job.payload = payload.get().as_bytes().to_vec().into();
    job.content_type = Some(CONTENT_TYPE_JSON.into());
}

/// What a request answered, job by job.
type Pushed = Result<Vec<PushResult>, ClientError>;

/// Many jobs on their way to the server.
#[derive(Debug)]
struct Stream {
    client: Client,
    format: Format,
    spread: Option<Span>,
    /// Whether all lines are one request.
    atomic: bool,
    tasks: Tasks,
    /// Numbers of the lines of each request, and its answer to come.
    in_flight: VecDeque<(Vec<u64>, oneshot::Receiver<Pushed>)>,
    progress: ProgressBar,
    pushed: u64,
    failed: u64,
    first_failure: Option<CliError>,
}

impl Stream {
    fn new(client: Client, format: Format, spread: Option<Span>, atomic: bool) -> Self {
        // Ids on the same terminal would tear the bar.
        let watched = output::watched() && !std::io::IsTerminal::is_terminal(&std::io::stdout());
        let progress = if watched {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        Self {
            client,
            format,
            spread,
            atomic,
            tasks: Tasks::new(),
            in_flight: VecDeque::new(),
            progress,
            pushed: 0,
            failed: 0,
            first_failure: None,
        }
    }

    async fn run<R: AsyncBufRead + Unpin>(
        mut self,
        template: Template,
        mut lines: Lines<R>,
    ) -> Result<(), CliError> {
        let (mut jobs, mut numbers, mut bytes) = (Vec::new(), Vec::new(), 0);
        for number in 1.. {
            // Reading a line is cancel-safe: what was read of it stays in the buffer.
            let next = if jobs.is_empty() || self.atomic {
                lines.next_line().await
            } else {
                match tokio::time::timeout(LINGER, lines.next_line()).await {
                    Ok(next) => next,
                    Err(_elapsed) => {
                        self.send(&mut jobs, &mut numbers).await?;
                        bytes = 0;
                        lines.next_line().await
                    }
                }
            };
            let line =
                next.map_err(|error| CliError::failed("cannot read stdin").because(&error))?;
            let Some(line) = line else { break };
            if line.trim().is_empty() {
                continue;
            }
            match template.job(line.trim()) {
                Ok(job) => {
                    if self.atomic && jobs.len() == ITEMS_MAX {
                        return Err(CliError::usage(format!(
                            "one push has at most {ITEMS_MAX} jobs, and line {number} is one more"
                        )));
                    }
                    if !self.atomic
                        && (jobs.len() == ITEMS_MAX || bytes + line.len() > REQUEST_BYTES_MAX)
                    {
                        self.send(&mut jobs, &mut numbers).await?;
                        bytes = 0;
                    }
                    bytes += line.len();
                    jobs.push(job);
                    numbers.push(number);
                }
                Err(error) if self.atomic => {
                    return Err(CliError {
                        message: format!("line {number}: {}", error.message),
                        ..error
                    });
                }
                Err(error) => self.refuse(number, error)?,
            }
        }
        self.send(&mut jobs, &mut numbers).await?;
        while let Some(request) = self.in_flight.pop_front() {
            self.settle(request).await?;
        }
        self.progress.finish_and_clear();
        self.verdict()
    }

    async fn send(
        &mut self,
        jobs: &mut Vec<JobSpec>,
        numbers: &mut Vec<u64>,
    ) -> Result<(), CliError> {
        if jobs.is_empty() {
            return Ok(());
        }
        if self.in_flight.len() >= IN_FLIGHT
            && let Some(request) = self.in_flight.pop_front()
        {
            self.settle(request).await?;
        }
        let push = request(std::mem::take(jobs), self.spread, self.atomic);
        let client = self.client.clone();
        let (sender, answer) = oneshot::channel();
        self.tasks.spawn("push", OnPanic::Stop, async move {
            // Nobody waits for it any more once the command has failed.
            let _ = sender.send(client.push_with(push).await);
        });
        self.in_flight.push_back((std::mem::take(numbers), answer));
        Ok(())
    }

    async fn settle(
        &mut self,
        (numbers, answer): (Vec<u64>, oneshot::Receiver<Pushed>),
    ) -> Result<(), CliError> {
        match answer.await.unwrap_or(Err(ClientError::Closed)) {
            Ok(results) => {
                for (number, result) in numbers.into_iter().zip(results) {
                    match print_result(self.format, result)? {
                        Ok(()) => self.pushed += 1,
                        Err(error) => self.refuse(number, error.into())?,
                    }
                }
                self.progress.set_message(format!("{} pushed", self.pushed));
                self.progress.tick();
                Ok(())
            }
            Err(error) => {
                let mut error = CliError::from(error);
                if let (Some(first), Some(last)) = (numbers.first(), numbers.last()) {
                    error.message = format!("lines {first} to {last}: {}", error.message);
                }
                Err(error)
            }
        }
    }

    fn refuse(&mut self, number: u64, error: CliError) -> Result<(), CliError> {
        self.failed += 1;
        let cause = error.cause.as_deref().unwrap_or_default();
        if self.format.json {
            let refused =
                serde_json::json!({ "line": number, "error": error.message, "cause": cause });
            output::line(&refused.to_string())?;
        } else {
            self.progress.suspend(|| {
                output::note(&format!("line {number}: {}: {cause}", error.message));
            });
        }
        self.first_failure.get_or_insert(error);
        Ok(())
    }

    fn verdict(self) -> Result<(), CliError> {
        match self.first_failure {
            None => Ok(()),
            Some(first) if self.pushed == 0 => Err(first),
            Some(first) => {
                let (failed, all) = (self.failed, self.failed + self.pushed);
                let error = CliError::new(Exit::Partly, format!("{failed} of {all} not pushed"));
                Err(CliError {
                    cause: first.cause,
                    hint: first.hint,
                    ..error
                })
            }
        }
    }
}

pub(super) fn rfc3339(text: &str) -> Result<Timestamp, String> {
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|error: jiff::Error| error.to_string())?;
    match u64::try_from(time.as_millisecond()) {
        Ok(ms) => Ok(Timestamp(DurationMs(ms).0)),
        Err(_negative) => Err("no time before 1970".to_owned()),
    }
}

pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("a header is name=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use ganger_protocol::{
        request::Operation,
        response::{PushReply, PushResult, ReplyBody},
        workflow::{Condition, OnDead},
    };

    use super::{
        super::peer::{self, Peer},
        *,
    };

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        push: PushArgs,
    }

    fn template(arguments: &str) -> Template {
        let line = Line::try_parse_from(arguments.split_ascii_whitespace()).unwrap();
        Template::new(&line.push).unwrap()
    }

    #[test]
    fn flags_become_fields() {
        let template = template(
            "push resize {} -q images --in 5m --priority 9 --max-attempts 3 --timeout 90s \
             --header a=b=c --header d= --tag x --tag y",
        );
        let job = template.job("{\"w\": 640}").unwrap();
        assert_eq!(job.kind.as_str(), "resize");
        assert_eq!(job.queue.as_str(), "images");
        assert_eq!(job.payload, &b"{\"w\": 640}"[..]);
        assert_eq!(job.content_type.as_deref(), Some("application/json"));
        assert_eq!(job.delay_ms, Some(DurationMs(300_000)));
        assert_eq!((job.priority, job.max_attempts), (Some(9), Some(3)));
        assert_eq!(job.timeout_ms, Some(DurationMs(90_000)));
        assert_eq!(
            job.headers,
            [("a", "b=c"), ("d", "")]
                .map(|(n, v)| (n.into(), v.into()))
                .into()
        );
        assert_eq!(job.tags.len(), 2);
    }

    #[test]
    fn flags_of_a_unique_key_become_its_options() {
        let unique = |arguments: &str| template(arguments).job("").unwrap().unique;
        assert_eq!(unique("push k"), None);
        let throttled = unique("push k --unique a --unique-ttl 1m --on-conflict reject").unwrap();
        assert_eq!(
            *throttled,
            Unique {
                until: UniqueUntil::Ttl,
                ttl_ms: Some(DurationMs(60_000)),
                on_conflict: OnConflict::Reject,
                ..Unique::named("a".parse().unwrap())
            }
        );
        let derived = unique("push k --unique-of kind,payload --unique-until start").unwrap();
        assert_eq!(derived.of, [UniqueOf::Kind, UniqueOf::Payload]);
        assert_eq!(derived.until, UniqueUntil::Start);
        for wrong in [
            "push k --unique-until start",
            "push k --unique a --unique-of kind",
            "push k --unique a --unique-until start --unique-ttl 1m",
        ] {
            assert!(
                Line::try_parse_from(wrong.split_ascii_whitespace()).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_job_without_payload_has_none() {
        let job = template("push cleanup").job("").unwrap();
        assert_eq!((job.payload.len(), job.content_type), (0, None));
    }

    #[test]
    fn a_payload_that_is_no_json_is_wrong_usage() {
        let error = template("push k x").job("hello").unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert_eq!(error.message, "the payload is no JSON");
    }

    #[test]
    fn a_line_with_spec_is_a_whole_job_and_flags_fill_its_gaps() {
        let template = template("push --spec - --queue mail --priority 3 --in 1s");
        let line = "{\"kind\":\"a\",\"payload\":{\"b\": 1.0},\"queue\":\"sms\",\"run_at\":5}";
        let job = template.job(line).unwrap();
        assert_eq!((job.kind.as_str(), job.queue.as_str()), ("a", "sms"));
        assert_eq!(job.payload, &b"{\"b\": 1.0}"[..], "as it stands");
        assert_eq!((job.run_at, job.delay_ms), (Some(Timestamp(5)), None));
        assert_eq!(job.priority, Some(3));
        let job = template.job("{\"kind\":\"a\",\"priority\":7}").unwrap();
        assert_eq!((job.queue.as_str(), job.priority), ("mail", Some(7)));
        assert_eq!(job.delay_ms, Some(DurationMs(1_000)));
    }

    #[test]
    fn a_field_that_jobs_do_not_have_is_refused() {
        let error = template("push --spec")
            .job("{\"kind\":\"a\",\"que\":\"b\"}")
            .unwrap_err();
        assert_eq!(error.message, "a job has no field \"que\"");
        let error = template("push --spec").job("{}").unwrap_err();
        assert!(error.cause.unwrap().starts_with("missing field `kind`"));
        assert_eq!(
            template("push named --spec")
                .job("{}")
                .unwrap()
                .kind
                .as_str(),
            "named"
        );
    }

    #[test]
    fn every_field_of_the_protocol_is_a_field_of_spec() {
        let tag: Tag = "t".parse().unwrap();
        let full = JobSpec {
            content_type: Some("x".into()),
            headers: [("a".to_owned(), "b".to_owned())].into(),
            priority: Some(1),
            run_at: Some(Timestamp(1)),
            delay_ms: Some(DurationMs(1)),
            max_attempts: Some(1),
            backoff: Some(Box::default()),
            timeout_ms: Some(DurationMs(1)),
            tags: vec![tag.clone()],
            expires_at: Some(Timestamp(1)),
            unique: serde_json::from_str("{\"key\":\"k\"}").unwrap(),
            key: Some(tag.clone()),
            batch: Some(BatchId(1)),
            name: Some(tag.clone()),
            after: vec![tag],
            condition: Some(Condition::Success),
            on_dead: Some(OnDead::Hold),
            retain_ms: Some(DurationMs(1)),
            ..JobSpec::new("k".parse().unwrap(), Vec::new())
        };
        let fields = serde_json::to_value(&full).unwrap();
        let fields = fields.as_object().unwrap();
        assert!(
            fields
                .keys()
                .all(|field| SPEC_FIELDS.contains(&field.as_str())),
            "{fields:?}"
        );
        assert_eq!(fields.len(), SPEC_FIELDS.len());
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(
            rfc3339("2023-11-14T22:13:20Z"),
            Ok(Timestamp(1_700_000_000_000))
        );
        assert_eq!(
            rfc3339("2023-11-15T00:13:20.5+02:00"),
            Ok(Timestamp(1_700_000_000_500))
        );
        assert!(rfc3339("tomorrow").is_err());
        assert!(rfc3339("1969-01-01T00:00:00Z").is_err());
    }

    /// Pushes these lines to a server that refuses the kind `bad`; returns stdout and stderr too.
    async fn stream(arguments: &str, lines: &str) -> (Result<(), CliError>, String, String) {
        let mut number = 0;
        let peer = Peer::start(move |operation| {
            let Operation::Push(push) = operation else {
                panic!("{operation:?}")
            };
            let results = push.jobs.iter().map(|job| {
                number += 1;
                let bad = job.kind.as_str() == "bad";
                let error = WireError::bad_request("kind", "bad");
                PushResult::from(if bad {
                    Err(error)
                } else {
                    Ok(peer::id(number))
                })
            });
            Ok(ReplyBody::Push(PushReply {
                results: results.collect(),
            }))
        })
        .await;
        let line = Line::try_parse_from(arguments.split_ascii_whitespace()).unwrap();
        let client = Client::connect(peer.options()).await.unwrap();
        let stream = Stream::new(client, line.push.format, line.push.spread, line.push.atomic);
        let template = Template::new(&line.push).unwrap();
        let result = stream.run(template, lines.as_bytes().lines()).await;
        let (data, remarks) = output::sink::take();
        (result, data, remarks)
    }

    #[tokio::test]
    async fn ids_are_printed_in_the_order_of_the_lines() {
        let lines: String = (0..2_500).map(|number| format!("{number}\n\n")).collect();
        let (result, data, remarks) = stream("push k -", &lines).await;
        assert_eq!(result, Ok(()));
        assert_eq!(remarks, "");
        let expected: String = (1..=2_500)
            .map(|number| format!("{}\n", peer::id(number)))
            .collect();
        assert_eq!(data, expected);
    }

    #[tokio::test]
    async fn a_refused_line_does_not_stop_the_others() {
        let lines = "{\"kind\":\"a\"}\n{\"kind\":\"bad\"}\nnonsense\n{\"kind\":\"b\"}\n";
        let (result, data, remarks) = stream("push --spec", lines).await;
        assert_eq!(data, format!("{}\n{}\n", peer::id(1), peer::id(3)));
        let error = result.unwrap_err();
        assert_eq!(
            (error.exit, error.message.as_str()),
            (Exit::Partly, "2 of 4 not pushed")
        );
        let remarks: Vec<_> = remarks.lines().collect();
        assert!(
            remarks[0].starts_with("line 3: the line is no job: "),
            "{remarks:?}"
        );
        assert_eq!(remarks[1], "line 2: the server refused: bad_request: bad");
    }

    #[tokio::test]
    async fn nothing_pushed_is_a_failure_of_its_own_kind() {
        let (result, _, _) = stream("push bad -", "1\n").await;
        assert_eq!(result.unwrap_err().exit, Exit::Failed);
    }
}
