//! `ganger queues`: list, pause, resume.

use clap::Subcommand;
use ganger_protocol::{QueueName, QueuePattern, response::QueueView};

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{self, Align, Format, Table},
};

#[derive(Debug, Subcommand)]
pub(super) enum QueuesCommand {
    /// List queues with their counters
    List(ListArgs),
    /// Stop grants from queues; pushes are still accepted
    Pause(NamesArgs),
    /// Start them again
    Resume(NamesArgs),
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

pub(super) async fn run(command: QueuesCommand) -> Result<(), CliError> {
    match command {
        QueuesCommand::List(args) => {
            let queues = args.connect.connect().await?.queues(args.pattern).await?;
            args.format.print(&queues, |queues| table(queues))
        }
        QueuesCommand::Pause(args) => {
            let names = listed(&args.queues);
            args.connect.connect().await?.pause(args.queues).await?;
            output::note(&format!("paused {names}"));
            Ok(())
        }
        QueuesCommand::Resume(args) => {
            let names = listed(&args.queues);
            args.connect.connect().await?.resume(args.queues).await?;
            output::note(&format!("resumed {names}"));
            Ok(())
        }
    }
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
        let state = if queue.paused { "paused" } else { "open" };
        let figures = [
            counters.ready,
            counters.scheduled,
            counters.leased,
            counters.dead,
            counters.pushed,
            counters.done,
            counters.failed,
        ];
        let texts = [queue.name.to_string(), state.to_owned()];
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
            counters,
        };
        assert_eq!(
            table(&[queue]),
            "QUEUE  STATE   READY  SCHEDULED  LEASED  DEAD  PUSHED  DONE  FAILED\n\
             mail   paused   1200          0       0     3    5000     0       0\n"
        );
    }
}
