//! `ganger queues`: list, show, set, pause, resume, purge, create, delete.

use std::{io::IsTerminal, str::FromStr};

use clap::Subcommand;
use ganger_protocol::{
    DurationMs, QueueName, QueuePattern,
    queue::{QueueReply, QueueSet, Setting},
    response::QueueView,
};

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{self, Align, Format, Table},
};
use crate::config::units::Span;

#[derive(Debug, Subcommand)]
pub(super) enum QueuesCommand {
    /// List queues with their counters
    List(ListArgs),
    /// Show a queue with its settings
    Show(OneArgs),
    /// Change settings of a queue; what is not named stays as it is
    Set(Box<SetArgs>),
    /// Stop grants from queues; pushes are still accepted
    Pause(PauseArgs),
    /// Start them again
    Resume(NamesArgs),
    /// Remove all jobs of a queue for good, leased and dead ones too
    Purge(PurgeArgs),
    /// Make a queue; one that there is already stays as it is
    Create(OneArgs),
    /// Delete a queue that has no jobs
    Delete(OneArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only these: a name, or a prefix with a final *
    pattern: Option<QueuePattern>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct NamesArgs {
    /// The queues
    #[arg(required = true)]
    queues: Vec<QueueName>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct OneArgs {
    /// The queue
    queue: QueueName,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    /// Start them again by itself after so long, such as 10m
    #[arg(long = "for", value_name = "DURATION")]
    time: Option<Span>,
    #[command(flatten)]
    names: NamesArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct PurgeArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    one: OneArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetArgs {
    /// The longest attempt of its jobs that name no other, such as 10m; `default` for the server's
    #[arg(long, value_name = "DURATION")]
    timeout: Option<OrDefault<Span>>,
    /// Dead jobs that it keeps
    #[arg(long, value_name = "COUNT")]
    dead_max: Option<OrDefault<u64>>,
    /// How long it keeps jobs that die from now on
    #[arg(long, value_name = "DURATION")]
    dead_retention: Option<OrDefault<Span>>,
    /// How long done, cancelled and expired jobs that name no time stay visible
    #[arg(long, value_name = "DURATION")]
    retain: Option<OrDefault<Span>>,
    /// How many jobs of each of these states it keeps
    #[arg(long, value_name = "COUNT")]
    retained_max: Option<OrDefault<u64>>,
    /// Jobs that may wait in it at most; a push behind that is refused
    #[arg(long, value_name = "COUNT")]
    jobs_max: Option<OrDefault<u64>>,
    #[command(flatten)]
    one: OneArgs,
}

/// A value, or the word `default`.
#[derive(Debug, Clone)]
enum OrDefault<T> {
    Default,
    To(T),
}

impl<T: FromStr> FromStr for OrDefault<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text {
            "default" => Ok(Self::Default),
            text => text.parse().map(Self::To),
        }
    }
}

fn setting<T, U>(value: Option<OrDefault<T>>, convert: impl Fn(T) -> U) -> Setting<U> {
    match value {
        None => Setting::Keep,
        Some(OrDefault::Default) => Setting::Default,
        Some(OrDefault::To(value)) => Setting::To(convert(value)),
    }
}

pub(super) async fn run(command: QueuesCommand) -> Result<(), CliError> {
    match command {
        QueuesCommand::List(args) => {
            let queues = args.connect.connect().await?.queues(args.pattern).await?;
            args.format.print(&queues, |queues| table(queues))
        }
        QueuesCommand::Pause(args) => {
            let PauseArgs { time, names } = args;
            let told = listed(&names.queues);
            let client = names.connect.connect().await?;
            match time {
                Some(time) => client.pause_for(names.queues, time.0).await?,
                None => client.pause(names.queues).await?,
            }
            output::note(&format!("paused {told}"));
            Ok(())
        }
        QueuesCommand::Show(args) => {
            let reply = args.connect.connect().await?.queue(args.queue).await?;
            args.format.print(&reply, shown)
        }
        QueuesCommand::Set(args) => {
            let set = QueueSet {
                timeout_ms: setting(args.timeout, |time| time.0),
                dead_max: setting(args.dead_max, |count| count),
                dead_retention_ms: setting(args.dead_retention, |time| time.0),
                retain_ms: setting(args.retain, |time| time.0),
                retained_max: setting(args.retained_max, |count| count),
                jobs_max: setting(args.jobs_max, |count| count),
                ..QueueSet::of(args.one.queue)
            };
            let reply = args.one.connect.connect().await?.set_queue(set).await?;
            args.one.format.print(&reply, shown)
        }
        QueuesCommand::Create(args) => {
            let queue = args.queue.clone();
            args.connect.connect().await?.create_queue(queue).await?;
            output::note(&format!("made {}", args.queue));
            Ok(())
        }
        QueuesCommand::Delete(args) => {
            let queue = args.queue.clone();
            args.connect.connect().await?.delete_queue(queue).await?;
            output::note(&format!("deleted {}", args.queue));
            Ok(())
        }
        QueuesCommand::Purge(args) => purge(args).await,
        QueuesCommand::Resume(args) => {
            let names = listed(&args.queues);
            args.connect.connect().await?.resume(args.queues).await?;
            output::note(&format!("resumed {names}"));
            Ok(())
        }
    }
}

async fn purge(args: PurgeArgs) -> Result<(), CliError> {
    let PurgeArgs { yes, one } = args;
    let client = one.connect.connect().await?;
    if !yes && std::io::stdin().is_terminal() {
        let counters = client.queue(one.queue.clone()).await?.queue.counters;
        let jobs = counters.kept() + counters.retained();
        let question = format!("remove {jobs} jobs of {} for good? [y/N] ", one.queue);
        if !output::agreed(&question) {
            output::note("nothing was removed");
            return Ok(());
        }
    }
    let removed = client.purge(one.queue.clone()).await?;
    let text = format!("removed {removed} jobs of {}\n", one.queue);
    let json = serde_json::json!({ "removed": removed });
    one.format.print(&json, |_| text.clone())
}

fn shown(reply: &QueueReply) -> String {
    let settings = &reply.settings;
    let span = |time: Option<DurationMs>| time.map(|time| format!("{} ms", time.0));
    let rows = [
        ("timeout", span(settings.timeout_ms)),
        ("dead max", settings.dead_max.map(|count| count.to_string())),
        ("dead retention", span(settings.dead_retention_ms)),
        ("retain", span(settings.retain_ms)),
        (
            "retained max",
            settings.retained_max.map(|count| count.to_string()),
        ),
        ("jobs max", settings.jobs_max.map(|count| count.to_string())),
    ];
    let rows = rows.map(|(name, value)| (name, value.unwrap_or_else(|| "default".to_owned())));
    table(std::slice::from_ref(&reply.queue)) + &output::pairs(&rows)
}

fn listed(queues: &[QueueName]) -> String {
    queues
        .iter()
        .map(QueueName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

fn table(queues: &[QueueView]) -> String {
    let mut table = Table::new(&[
        ("QUEUE", Align::Left),
        ("STATE", Align::Left),
        ("READY", Align::Right),
        ("SCHEDULED", Align::Right),
        ("LEASED", Align::Right),
        ("DEAD", Align::Right),
        ("PUSHED", Align::Right),
        ("DONE", Align::Right),
        ("FAILED", Align::Right),
    ]);
    for queue in queues {
        let counters = &queue.counters;
        let state = match (queue.paused, queue.paused_until) {
            (false, _) => "open".to_owned(),
            (true, None) => "paused".to_owned(),
            (true, Some(at)) => format!("paused until {at}"),
        };
        let figures = [
            counters.ready,
            counters.scheduled,
            counters.leased,
            counters.dead,
            counters.pushed,
            counters.done,
            counters.failed,
        ];
        let texts = [queue.name.to_string(), state];
        table.row(
            texts
                .into_iter()
                .chain(figures.map(|figure| figure.to_string())),
        );
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use ganger_protocol::response::Counters;

    use super::*;

    #[test]
    fn queues_are_an_aligned_table() {
        let counters = Counters {
            ready: 1_200,
            dead: 3,
            pushed: 5_000,
            ..Counters::default()
        };
        let queue = QueueView {
            name: "mail".parse().unwrap(),
            paused: true,
            paused_until: None,
            counters,
        };
        assert_eq!(
            table(&[queue]),
            "QUEUE  STATE   READY  SCHEDULED  LEASED  DEAD  PUSHED  DONE  FAILED\n\
             mail   paused   1200          0       0     3    5000     0       0\n"
        );
    }
}
