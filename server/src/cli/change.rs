//! `ganger jobs start`, `delay`, `move`, `delete`: what is done to jobs that wait, or are over, by their
//! ids or, as a task of the server, by a filter.

use ganger_protocol::{
    JobId, QueueName, Timestamp,
    change::{ChangeReply, ChangeResult, ChangeTo, JobChange, JobDelete},
    task::{TaskAction, TaskStart},
};

use super::{
    bulk::{self, BulkArgs},
    connect::ConnectArgs,
    error::{CliError, Exit},
    output::{self, Format},
    push::rfc3339,
    view,
};
use crate::config::units::Span;

/// Jobs of one request.
const SLICE: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct IdsArgs {
    /// Their ids, as push printed them; without any, all jobs that the other options mean
    ids: Vec<JobId>,
    #[command(flatten)]
    bulk: BulkArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct DelayArgs {
    #[command(flatten)]
    ids: IdsArgs,
    /// Ready after this time has passed, such as 5m
    #[arg(long = "in", value_name = "DURATION", required_unless_present = "at")]
    delay: Option<Span>,
    /// Ready at this time, as RFC 3339
    #[arg(long, value_name = "TIME", value_parser = rfc3339, conflicts_with = "delay")]
    at: Option<Timestamp>,
}

#[derive(Debug, clap::Args)]
pub(super) struct MoveArgs {
    #[command(flatten)]
    ids: IdsArgs,
    /// To this queue, which is made when there is none
    #[arg(long, value_name = "QUEUE", required_unless_present = "to_priority")]
    to: Option<QueueName>,
    /// To this priority, 0 to 9
    #[arg(long, value_name = "PRIORITY", value_parser = clap::value_parser!(u8).range(0..=9))]
    to_priority: Option<u8>,
}

impl DelayArgs {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let to = ChangeTo {
            delay_ms: self.delay.map(|delay| delay.0),
            run_at: self.at,
            ..ChangeTo::default()
        };
        change(self.ids, &to).await
    }
}

impl MoveArgs {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let to = ChangeTo {
            queue: self.to,
            priority: self.to_priority,
            ..ChangeTo::default()
        };
        change(self.ids, &to).await
    }
}

impl IdsArgs {
    pub(super) async fn start(self) -> Result<(), CliError> {
        change(self, &ChangeTo::now()).await
    }

    /// Whether many are meant, by a filter.
    fn is_bulk(&self) -> Result<bool, CliError> {
        self.bulk.is_meant(&self.ids)
    }

    pub(super) async fn delete(self) -> Result<(), CliError> {
        let is_bulk = self.is_bulk()?;
        let client = self.connect.connect().await?;
        if is_bulk {
            let start = TaskStart::new(TaskAction::Delete, self.bulk.filter());
            return bulk::change(&client, &self.bulk, start, self.format).await;
        }
        let mut results = Vec::new();
        for jobs in self.ids.chunks(SLICE) {
            let delete = JobDelete {
                jobs: jobs.to_vec(),
            };
            results.extend(client.delete(delete).await?.results);
        }
        tell(&self, &ChangeReply { results }, "deleted")
    }
}

async fn change(args: IdsArgs, to: &ChangeTo) -> Result<(), CliError> {
    let is_bulk = args.is_bulk()?;
    let client = args.connect.connect().await?;
    if is_bulk {
        let mut start = TaskStart::new(TaskAction::Change, args.bulk.filter());
        start.to = Some(to.clone());
        return bulk::change(&client, &args.bulk, start, args.format).await;
    }
    let mut results = Vec::new();
    for jobs in args.ids.chunks(SLICE) {
        let change = JobChange {
            jobs: jobs.to_vec(),
            to: to.clone(),
        };
        results.extend(client.change(change).await?.results);
    }
    tell(&args, &ChangeReply { results }, "changed")
}

/// Says what became of each job; fails when one of them was refused.
fn tell(args: &IdsArgs, reply: &ChangeReply, word: &str) -> Result<(), CliError> {
    if args.format.json {
        output::line(&output::json(reply)?)?;
    } else {
        for (id, result) in args.ids.iter().zip(&reply.results) {
            output::line(&format!("{id}  {}", told(result, word)))?;
        }
    }
    let all = reply.results.len();
    let mut errors = reply
        .results
        .iter()
        .filter_map(|result| result.err.as_ref());
    let Some(first) = errors.next() else {
        return Ok(());
    };
    let count = errors.count() + 1;
    let exit = match count == all {
        true => first.code.into(),
        false => Exit::Partly,
    };
    Err(CliError::new(
        exit,
        format!("{count} of {all} jobs could not be {word}"),
    ))
}

fn told(result: &ChangeResult, word: &str) -> String {
    let already = if result.already { " already" } else { "" };
    match (&result.err, result.state, result.run_at) {
        (Some(error), ..) => error.message.clone(),
        (None, Some(state), Some(at)) => format!("{state}{already}, runs at {}", view::time(at)),
        (None, Some(state), None) => format!("{state}{already}"),
        (None, None, _) => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use ganger_protocol::{
        DurationMs, ErrorCode, WireError, job::JobState, request::Operation, response::ReplyBody,
    };

    use super::*;
    use crate::cli::{
        output::sink,
        peer::{Peer, id},
    };

    #[derive(Debug, clap::Parser)]
    enum Line {
        Start(IdsArgs),
        Delay(DelayArgs),
        Move(MoveArgs),
        Delete(IdsArgs),
    }

    async fn run(peer: &Peer, words: &[&str]) -> Result<(), CliError> {
        let (url, ids) = (peer.url(), [id(1).to_string(), id(2).to_string()]);
        let mut line = vec!["jobs"];
        line.extend(words);
        line.extend(ids.iter().map(String::as_str));
        line.extend(["--url", &url]);
        match Line::try_parse_from(line).map_err(|error| CliError::usage(error.to_string()))? {
            Line::Start(args) => args.start().await,
            Line::Delay(args) => args.run().await,
            Line::Move(args) => args.run().await,
            Line::Delete(args) => args.delete().await,
        }
    }

    /// A server that says of the first job what a test wants, and refuses the second.
    async fn peer(first: ChangeResult, expected: fn(&Operation) -> bool) -> Peer {
        Peer::start(move |operation| {
            assert!(expected(&operation), "{operation:?}");
            let refused = WireError::new(ErrorCode::Conflict, "the job is leased: a worker has it");
            let refused = ChangeResult {
                err: Some(refused.with_state("leased")),
                ..ChangeResult::default()
            };
            let results = vec![first.clone(), refused];
            Ok(ReplyBody::Change(ChangeReply { results }))
        })
        .await
    }

    fn told_of_both(first: &str) -> String {
        let second = "the job is leased: a worker has it";
        format!("{}  {first}\n{}  {second}\n", id(1), id(2))
    }

    fn is_to(operation: &Operation, to: &ChangeTo) -> bool {
        matches!(operation, Operation::JobChange(change) if change.to == *to)
    }

    #[tokio::test]
    async fn each_job_is_told_of_and_some_that_are_refused_are_partly_failed() {
        let ready = ChangeResult {
            state: Some(JobState::Ready),
            ..ChangeResult::default()
        };
        let started = peer(ready.clone(), |it| is_to(it, &ChangeTo::now())).await;
        let error = run(&started, &["start"]).await.unwrap_err();
        assert_eq!(error.exit, Exit::Partly);
        assert_eq!(error.message, "1 of 2 jobs could not be changed");
        assert_eq!(sink::take().0, told_of_both("ready"));

        let scheduled = ChangeResult {
            state: Some(JobState::Scheduled),
            run_at: Some(Timestamp(1_700_000_000_000)),
            already: true,
            err: None,
        };
        let delayed = peer(scheduled, |it| {
            is_to(it, &ChangeTo::after(DurationMs::from_mins(5)))
        });
        run(&delayed.await, &["delay", "--in", "5m"])
            .await
            .unwrap_err();
        let told = "scheduled already, runs at 2023-11-14T22:13:20Z";
        assert_eq!(sink::take().0, told_of_both(told));

        let moved = peer(ready, |it| {
            let to = ChangeTo {
                priority: Some(9),
                ..ChangeTo::queue("mail".parse().unwrap())
            };
            is_to(it, &to)
        });
        let words = ["move", "--to", "mail", "--to-priority", "9"];
        run(&moved.await, &words).await.unwrap_err();
        assert_eq!(sink::take().0, told_of_both("ready"));

        let gone = ChangeResult::default();
        let deleted = peer(gone, |it| matches!(it, Operation::JobDelete(_))).await;
        run(&deleted, &["delete"]).await.unwrap_err();
        assert_eq!(sink::take().0, told_of_both("deleted"));
    }

    #[tokio::test]
    async fn without_ids_a_filter_is_needed_and_becomes_a_task() {
        let (peer, started) = bulk::tests::peer().await;
        let url = peer.url();
        let run = async |words: &[&str]| {
            let line = [&["jobs"], words, &["--url", &url]].concat();
            match Line::try_parse_from(line).unwrap() {
                Line::Start(args) => args.start().await,
                Line::Delay(args) => args.run().await,
                Line::Move(args) => args.run().await,
                Line::Delete(args) => args.delete().await,
            }
        };
        let id = id(1).to_string();
        for words in [
            &["start"][..],
            &["start", "--kind", "k"],
            &["start", &id, "-q", "mail"],
        ] {
            let error = run(words).await.unwrap_err();
            assert_eq!(error.exit, Exit::Usage, "{words:?}");
        }
        assert!(started.lock().unwrap().is_empty());
        let words = ["delay", "-q", "mail*", "--kind", "k", "--in", "5m", "--yes"];
        run(&words).await.unwrap_err();
        run(&["delete", "-q", "*", "--state", "dead", "--yes"])
            .await
            .unwrap_err();
        let started = started.lock().unwrap();
        assert_eq!(started[0].action, TaskAction::Change);
        assert_eq!(
            started[0].to,
            Some(ChangeTo::after(DurationMs::from_mins(5)))
        );
        assert_eq!(started[0].filter.kind, Some("k".parse().unwrap()));
        assert_eq!(started[1].action, TaskAction::Delete);
        assert_eq!(started[1].filter.states, [JobState::Dead]);
    }

    #[tokio::test]
    async fn a_delay_needs_a_time_and_a_move_needs_a_place() {
        let never = Peer::start(|operation| panic!("{operation:?}")).await;
        for words in [&["delay"][..], &["move"], &["move", "--to-priority", "10"]] {
            let error = run(&never, words).await.unwrap_err();
            assert_eq!(error.exit, Exit::Usage, "{words:?}");
        }
    }
}
