//! `ganger stats`.

use std::time::Duration;

use ganger_protocol::response::{KindView, StatsReply};

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{Align, Format, Table},
    view,
};
use crate::config::units::Span;

#[derive(Debug, clap::Args)]
pub(super) struct StatsArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

pub(super) async fn run(args: StatsArgs) -> Result<(), CliError> {
    let stats = args.connect.connect().await?.stats().await?;
    args.format.print(&stats, text)
}

fn text(stats: &StatsReply) -> String {
    let mut table = Table::new(&[("STATS", Align::Left), ("", Align::Right)]);
    let whole_seconds = Duration::from_millis(stats.uptime_ms.0).as_secs();
    let uptime = Span(ganger_protocol::DurationMs::from_secs(whole_seconds));
    table.row(["version".to_owned(), stats.version.clone()]);
    table.row(["uptime".to_owned(), uptime.to_string()]);
    let counts = [
        ("queues", stats.queues),
        ("sessions", stats.sessions),
        ("waiting fetches", stats.waiting),
    ];
    for (name, count) in counts
        .into_iter()
        .chain(view::counter_rows(&stats.counters))
    {
        table.row([name.to_owned(), count.to_string()]);
    }
    match stats.kinds.is_empty() {
        true => table.render(),
        false => format!("{}\n{}", table.render(), kinds(&stats.kinds)),
    }
}

/// What became of the leases of each kind since the start of the server.
fn kinds(kinds: &[KindView]) -> String {
    let mut table = Table::new(&[
        ("KIND", Align::Left),
        ("GRANTED", Align::Right),
        ("DONE", Align::Right),
        ("FAILED", Align::Right),
        ("DEAD", Align::Right),
    ]);
    for kind in kinds {
        table.row([
            kind.kind.to_string(),
            kind.granted.to_string(),
            kind.done.to_string(),
            kind.failed.to_string(),
            kind.dead.to_string(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use ganger_protocol::{DurationMs, response::Counters};

    use super::*;

    #[test]
    fn stats_are_one_table() {
        let mut stats = StatsReply {
            kinds: Vec::new(),
            version: "0.1.0".to_owned(),
            uptime_ms: DurationMs(3_725_123),
            queues: 2,
            sessions: 1,
            waiting: 0,
            counters: Counters {
                ready: 10,
                done: 12_345,
                ..Counters::default()
            },
        };
        assert_eq!(
            text(&stats),
            "STATS\n\
             version           0.1.0\n\
             uptime           1h2m5s\n\
             queues                2\n\
             sessions              1\n\
             waiting fetches       0\n\
             ready                10\n\
             scheduled             0\n\
             blocked               0\n\
             leased                0\n\
             dead                  0\n\
             done_kept             0\n\
             cancelled_kept        0\n\
             expired_kept          0\n\
             pushed                0\n\
             done              12345\n\
             cancelled             0\n\
             expired               0\n\
             deleted               0\n\
             granted               0\n\
             failed                0\n\
             lost                  0\n\
             released              0\n\
             moved in              0\n\
             moved out             0\n"
        );
        stats.kinds = vec![KindView {
            granted: 12,
            done: 10,
            failed: 1,
            ..KindView::of("welcome".parse().unwrap())
        }];
        assert!(
            text(&stats).ends_with(
                "\n\nKIND     GRANTED  DONE  FAILED  DEAD\n\
                 welcome       12    10       1     0\n"
            ),
            "{}",
            text(&stats)
        );
    }
}
