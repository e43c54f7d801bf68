//! `ganger limits`: list, show, set, delete.
//!
//! Arguments become the request as they are; what is allowed, the server says.

use std::str::FromStr;

use clap::Subcommand;
use ganger_protocol::{
    DurationMs, KeyPattern, QueuePattern,
    limit::{LimitList, LimitSet, LimitTarget, LimitView, Rate},
};

use super::{
    connect::ConnectArgs,
    error::CliError,
    output::{self, Align, Format, Table},
};
use crate::config::units::Span;

#[derive(Debug, Subcommand)]
pub(super) enum LimitsCommand {
    /// List limits: those of queues, then those of keys
    List(ListArgs),
    /// Show a limit
    Show(OneArgs),
    /// Make a limit, or replace the one of the same queues or keys; it counts at once
    Set(Box<SetArgs>),
    /// Delete a limit
    Delete(OneArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// How many at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Where the last page ended, as it said
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct OneArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct TargetArgs {
    /// The limit of a queue, or of each queue with a prefix before a final *
    #[arg(short, long, value_name = "PATTERN")]
    queue: Option<QueuePattern>,
    /// The limit of a key, or of each key with a prefix before a final *
    #[arg(short, long, value_name = "PATTERN")]
    key: Option<KeyPattern>,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetArgs {
    /// Jobs that run at once at most
    #[arg(long, value_name = "COUNT")]
    max_running: Option<u32>,
    /// Jobs that begin in a time at most, such as 100/1m
    #[arg(long, value_name = "COUNT/DURATION")]
    rate: Option<CountPerTime>,
    /// With --rate: how many may begin at once after a rest; default as many as the rate has
    #[arg(long, value_name = "COUNT", requires = "rate")]
    burst: Option<u32>,
    /// Jobs that a key with many waiting gets in its turn; default 1
    #[arg(long, value_name = "COUNT")]
    weight: Option<u32>,
    /// One job of a key at a time, in order
    #[arg(long)]
    sequence: bool,
    #[command(flatten)]
    one: OneArgs,
}

/// So many in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CountPerTime {
    count: u32,
    time: DurationMs,
}

impl FromStr for CountPerTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let (count, time) = parts.ok_or("a rate is a count, / and a duration, such as 100/1m")?;
        let count = count
            .parse()
            .map_err(|error| format!("{count:?} is no count: {error}"))?;
        let time: Span = time
            .parse()
            .map_err(|error| format!("{time:?} is no duration: {error}"))?;
        Ok(Self {
            count,
            time: time.0,
        })
    }
}

impl TargetArgs {
    fn target(self) -> Result<LimitTarget, CliError> {
        match (self.queue, self.key) {
            (Some(queue), None) => Ok(LimitTarget::Queue(queue)),
            (None, Some(key)) => Ok(LimitTarget::Key(key)),
            (Some(_), Some(_)) | (None, None) => {
                Err(CliError::usage("either --queue or --key, one of the two"))
            }
        }
    }
}

pub(super) async fn run(command: LimitsCommand) -> Result<(), CliError> {
    match command {
        LimitsCommand::List(args) => list(args).await,
        LimitsCommand::Show(args) => {
            let target = args.target.target()?;
            let view = args.connect.connect().await?.limit(target).await?;
            args.format.print(&view, |view| table([view]))
        }
        LimitsCommand::Set(args) => {
            let (one, burst) = (args.one, args.burst);
            let set = LimitSet {
                max_running: args.max_running,
                rate: args.rate.map(|rate| Rate {
                    n: rate.count,
                    per_ms: rate.time,
                    burst,
                }),
                weight: args.weight,
                sequence: args.sequence,
                ..LimitSet::of(one.target.target()?)
            };
            let view = one.connect.connect().await?.set_limit(set).await?;
            one.format.print(&view, |view| table([view]))
        }
        LimitsCommand::Delete(args) => {
            let target = args.target.target()?;
            let told = target.to_string();
            args.connect.connect().await?.delete_limit(target).await?;
            output::note(&format!("deleted the limit of {told}"));
            Ok(())
        }
    }
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let list = LimitList {
        cursor: args.cursor,
        limit: args.limit,
    };
    let page = args.connect.connect().await?.limits(list).await?;
    args.format.print(&page, |page| table(&page.limits))?;
    if let Some(cursor) = page.cursor.filter(|_| !args.format.json) {
        output::note(&format!("there are more: --cursor {cursor}"));
    }
    Ok(())
}

fn table<'a>(limits: impl IntoIterator<Item = &'a LimitView>) -> String {
    let mut table = Table::new(&[
        ("LIMIT OF", Align::Left),
        ("RUNNING", Align::Right),
        ("AT MOST", Align::Right),
        ("RATE", Align::Left),
        ("WEIGHT", Align::Right),
        ("SEQUENCE", Align::Left),
    ]);
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for limit in limits {
        let rate = limit.rate.as_ref().map(|rate| {
            let burst = rate.burst.map(|burst| format!(", burst {burst}"));
            format!(
                "{}/{}{}",
                rate.n,
                Span(rate.per_ms),
                burst.unwrap_or_default()
            )
        });
        table.row([
            or_none(limit.target().map(|target| target.to_string())),
            or_none(limit.running.map(|count| count.to_string())),
            or_none(limit.max_running.map(|count| count.to_string())),
            or_none(rate),
            or_none(limit.weight.map(|weight| weight.to_string())),
            if limit.sequence { "yes" } else { "-" }.to_owned(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_an_aligned_table() {
        let mail = LimitView {
            queue: Some("mail".parse().unwrap()),
            max_running: Some(10),
            running: Some(3),
            ..LimitView::default()
        };
        let tenants = LimitView {
            key: Some("tenant:*".parse().unwrap()),
            rate: Some(Rate {
                n: 100,
                per_ms: DurationMs::from_mins(1),
                burst: Some(1),
            }),
            weight: Some(2),
            sequence: true,
            ..LimitView::default()
        };
        assert_eq!(
            table([&mail, &tenants]),
            "LIMIT OF      RUNNING  AT MOST  RATE             WEIGHT  SEQUENCE\n\
             queue mail          3       10  -                     -  -\n\
             key tenant:*        -        -  100/1m, burst 1       2  yes\n"
        );
    }

    #[test]
    fn a_rate_is_a_count_and_a_duration() {
        let rate = CountPerTime {
            count: 100,
            time: DurationMs::from_mins(1),
        };
        assert_eq!("100/1m".parse(), Ok(rate));
        for wrong in ["100", "-1/1m", "x/1m", "1/soon", "/"] {
            assert!(wrong.parse::<CountPerTime>().is_err(), "{wrong}");
        }
    }
}
