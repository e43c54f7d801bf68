//! What happened, as numbers: hashed always, kept for the last lines, printed only when asked.
//!
//! A line is a template and numbers for its `{}`; nothing is formatted unless somebody reads it,
//! so that a step costs microseconds.

use std::collections::VecDeque;

/// Lines that are kept for a report.
const KEPT: usize = 40;

/// Numbers of a line at most.
const NUMBERS: usize = 5;

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    step: u64,
    lines: VecDeque<Line>,
    is_verbose: bool,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    step: u64,
    at: u64,
    template: &'static str,
    numbers: [u64; NUMBERS],
}

impl Trace {
    pub fn new(is_verbose: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            step: 0,
            lines: VecDeque::with_capacity(KEPT + 1),
            is_verbose,
        }
    }

    /// The next step begins.
    pub fn step(&mut self) -> u64 {
        self.step += 1;
        self.step
    }

    pub fn current(&self) -> u64 {
        self.step
    }

    /// Adds a line: what happened at `at`, ms since the run began.
    pub fn note(&mut self, at: u64, template: &'static str, numbers: &[u64]) {
        let mut line = Line {
            step: self.step,
            at,
            template,
            numbers: [0; NUMBERS],
        };
        let count = numbers.len().min(NUMBERS);
        line.numbers[..count].copy_from_slice(&numbers[..count]);
        self.mix(self.step);
        self.mix(at);
        self.mix(template.len() as u64);
        for number in line.numbers {
            self.mix(number);
        }
        if self.is_verbose {
            eprintln!("{}", line.text());
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3);
        self.hash ^= self.hash >> 29;
    }

    /// The hash of all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let lines = self.lines.iter().map(|line| line.text() + "\n");
        lines.collect()
    }
}

impl Line {
    fn text(&self) -> String {
        let mut text = format!("{:>5} {:>8} ms  ", self.step, self.at);
        let mut numbers = self.numbers.iter();
        for (nth, part) in self.template.split("{}").enumerate() {
            if nth > 0 {
                text += &numbers.next().copied().unwrap_or_default().to_string();
            }
            text += part;
        }
        text
    }
}
