//! How a demo looks: a line a second, or on a terminal one block that is drawn again; and what is
//! said at its beginning and end.

use std::{net::SocketAddr, path::Path};

use ganger_protocol::response::Counters;

use super::{
    super::{
        load::Quantiles,
        output::{self, pairs},
    },
    ledger::{Totals, Verdict},
};

/// The figures of one second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    /// Since the start.
    pub(super) second: u64,
    /// Acked since the last figures.
    pub(super) jobs_per_s: f64,
    /// What the server counts.
    pub(super) counters: Counters,
    pub(super) totals: Totals,
    /// From push to ack, of jobs that did not fail.
    pub(super) ack_ms: Quantiles,
}

const HEAD: &str =
    " time   jobs/s  ready  leased  scheduled      done  retries   dead  ack p50      p99";

/// Draws figures where stdout leads.
#[derive(Debug)]
pub(super) struct Screen {
    /// Whether the last block is drawn over.
    live: bool,
    /// Lines of the last block.
    drawn: usize,
}

impl Screen {
    pub(super) fn new(live: bool) -> Self {
        Self { live, drawn: 0 }
    }

    /// The next figures as text, with what erases the last ones.
    pub(super) fn draw(&mut self, figures: &Figures) -> String {
        if self.live {
            let block = block(figures);
            let erase = match std::mem::replace(&mut self.drawn, block.lines().count()) {
                0 => String::new(),
                lines => format!("\x1b[{lines}A\x1b[J"),
            };
            return erase + block.trim_end();
        }
        let line = line(figures);
        match std::mem::replace(&mut self.drawn, 1) {
            0 => format!("{HEAD}\n{line}"),
            _ => line,
        }
    }
}

fn line(figures: &Figures) -> String {
    let Figures {
        counters, totals, ..
    } = figures;
    format!(
        "{:>4}s {:>8.0} {:>6} {:>7} {:>10} {:>9} {:>8} {:>6} {:>5.1} ms {:>5.1} ms",
        figures.second,
        figures.jobs_per_s,
        counters.ready,
        counters.leased,
        counters.scheduled,
        totals.done,
        totals.retries,
        totals.dead,
        figures.ack_ms.p50,
        figures.ack_ms.p99,
    )
}

fn block(figures: &Figures) -> String {
    let Figures {
        counters, totals, ..
    } = figures;
    pairs(&[
        ("running", format!("{} s", figures.second)),
        ("rate", format!("{:.0} jobs/s", figures.jobs_per_s)),
        ("ready", counters.ready.to_string()),
        ("leased", counters.leased.to_string()),
        ("scheduled", counters.scheduled.to_string()),
        ("done", totals.done.to_string()),
        ("retries", totals.retries.to_string()),
        ("dead", totals.dead.to_string()),
        (
            "push to ack",
            format!(
                "p50 {:.1} ms, p99 {:.1} ms, of jobs that did not fail",
                figures.ack_ms.p50, figures.ack_ms.p99
            ),
        ),
    ])
}

/// What is said before the first figures.
pub(super) fn greeting(listen: SocketAddr, store: &Path) -> String {
    let url = format!("--url ganger://{listen}");
    let store = output::printable(&store.display().to_string());
    format!(
        "listens on       {listen}\n\
         store in         {store}, which goes with the demo\n\
         synced           before every answer, as `ganger serve` does\n\
         elsewhere, try   ganger stats {url}\n\
         \x20                ganger queues pause demo {url}\n\
         \x20                ganger queues resume demo {url}\n\
         \x20                ganger dead revive --queue demo {url}\n\
         to end it        Ctrl-C\n"
    )
}

/// What is said after the last figures.
pub(super) fn farewell(verdict: &Verdict) -> String {
    let Verdict {
        pushed,
        totals,
        waiting,
        lost,
    } = verdict;
    format!(
        "\n{pushed} pushed = {} done + {} dead + {waiting} waiting + {lost} lost; {} wrong",
        totals.done, totals.dead, totals.wrong
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            second: 3,
            jobs_per_s: 986.7,
            counters: Counters {
                ready: 12,
                leased: 34,
                scheduled: 56,
                ..Counters::default()
            },
            totals: Totals {
                done: 2_900,
                retries: 145,
                dead: 7,
                wrong: 0,
            },
            ack_ms: Quantiles {
                p50: 1.04,
                p99: 12.5,
            },
        }
    }

    #[test]
    fn elsewhere_it_is_a_line_a_second_under_one_head() {
        let mut screen = Screen::new(false);
        let expected =
            "   3s      987     12      34         56      2900      145      7   1.0 ms  12.5 ms";
        assert_eq!(screen.draw(&figures()), format!("{HEAD}\n{expected}"));
        assert_eq!(screen.draw(&figures()), expected);
        assert_eq!(HEAD.len(), expected.len());
    }

    #[test]
    fn on_a_terminal_a_block_takes_the_place_of_the_last_one() {
        let mut screen = Screen::new(true);
        let block = "running      3 s\n\
                     rate         987 jobs/s\n\
                     ready        12\n\
                     leased       34\n\
                     scheduled    56\n\
                     done         2900\n\
                     retries      145\n\
                     dead         7\n\
                     push to ack  p50 1.0 ms, p99 12.5 ms, of jobs that did not fail";
        assert_eq!(screen.draw(&figures()), block);
        assert_eq!(screen.draw(&figures()), format!("\x1b[9A\x1b[J{block}"));
    }

    #[test]
    fn the_greeting_says_where_it_listens_and_what_to_try() {
        let listen = "127.0.0.1:5000".parse().unwrap();
        let text = greeting(listen, Path::new("/tmp/d"));
        assert!(
            text.starts_with("listens on       127.0.0.1:5000\n"),
            "{text}"
        );
        assert!(
            text.contains("ganger stats --url ganger://127.0.0.1:5000\n"),
            "{text}"
        );
    }

    #[test]
    fn the_farewell_adds_up() {
        let verdict = Verdict {
            pushed: 2_950,
            totals: figures().totals,
            waiting: 43,
            lost: 0,
        };
        assert_eq!(
            farewell(&verdict),
            "\n2950 pushed = 2900 done + 7 dead + 43 waiting + 0 lost; 0 wrong"
        );
    }
}
