//! How long a failed job waits before its next attempt, as data. The engine's `backoff` computes
//! with it; nothing here draws a random number.

use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    limits::{BACKOFF_TABLE_MAX, DELAY_MAX},
    time::DurationMs,
};

/// A backoff policy. With `n` the failures before this one, the delay is that of the curve, at
/// most `cap_ms`, plus a jitter drawn evenly from
/// `0 ..= max(jitter_ms · (n + 1), delay · jitter_percent / 100)`.
///
/// The default is Sidekiq's curve: n⁴ s + 15 s, jitter of 30 s · (n + 1) or 10 %, cap 24 h.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryPolicy {
    /// The shape of the delays.
    pub curve: Curve,
    /// The base of the curve in ms, 0 … ten years. Default 15 000.
    pub base_ms: DurationMs,
    /// `poly`: the exponent of n (1…10); `exponential`: what each delay is multiplied with (1…100).
    /// Unused by the others. Default 4.
    pub factor: u32,
    /// The largest delay before jitter, in ms. Default 24 h.
    pub cap_ms: DurationMs,
    /// Jitter in ms for each attempt so far. Default 30 000.
    pub jitter_ms: DurationMs,
    /// Jitter as a share of the delay, 0…100. Default 10.
    pub jitter_percent: u32,
    /// `table` only: the delays in ms, the last one repeated; 1…64 entries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub table_ms: Vec<DurationMs>,
}

/// The shape of the delays of a [`RetryPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// `base + n^factor` seconds.
    Poly,
    /// `base · factor^n`.
    Exponential,
    /// `base`.
    Fixed,
    /// The n-th entry of the table.
    Table,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            curve: Curve::Poly,
            base_ms: DurationMs::from_secs(15),
            factor: 4,
            cap_ms: DurationMs::from_hours(24),
            jitter_ms: DurationMs::from_secs(30),
            jitter_percent: 10,
            table_ms: Vec::new(),
        }
    }
}

impl RetryPolicy {
    /// The same delay before every attempt, without jitter.
    pub fn fixed(delay: DurationMs) -> Self {
        Self {
            curve: Curve::Fixed,
            base_ms: delay,
            jitter_ms: DurationMs::ZERO,
            jitter_percent: 0,
            ..Self::default()
        }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// `bad_request` naming the field, its range and what came.
    pub fn check(&self) -> Result<(), WireError> {
        let delays = [
            ("backoff.base_ms", self.base_ms),
            ("backoff.cap_ms", self.cap_ms),
            ("backoff.jitter_ms", self.jitter_ms),
        ];
        for (field, delay) in delays {
            if delay > DELAY_MAX {
                return Err(WireError::out_of_range(field, 0, DELAY_MAX.0, delay.0));
            }
        }
        let factor_max = match self.curve {
            Curve::Poly => 10,
            Curve::Exponential | Curve::Fixed | Curve::Table => 100,
        };
        if !(1..=factor_max).contains(&self.factor) {
            let (max, actual) = (u64::from(factor_max), u64::from(self.factor));
            return Err(WireError::out_of_range("backoff.factor", 1, max, actual));
        }
        if self.jitter_percent > 100 {
            let actual = u64::from(self.jitter_percent);
            return Err(WireError::out_of_range(
                "backoff.jitter_percent",
                0,
                100,
                actual,
            ));
        }
        let entries = self.table_ms.len();
        if self.curve == Curve::Table && !(1..=BACKOFF_TABLE_MAX).contains(&entries) {
            let (max, actual) = (BACKOFF_TABLE_MAX as u64, entries as u64);
            return Err(WireError::out_of_range("backoff.table_ms", 1, max, actual));
        }
        if self.curve != Curve::Table && entries > 0 {
            return Err(WireError::bad_request(
                "backoff.table_ms",
                "a table needs curve: \"table\"",
            ));
        }
        let too_long = |delay: &DurationMs| *delay > DELAY_MAX;
        match self.table_ms.iter().position(too_long) {
            Some(index) => {
                let field = format!("backoff.table_ms[{index}]");
                let actual = self.table_ms.get(index).map_or(0, |delay| delay.0);
                Err(WireError::out_of_range(&field, 0, DELAY_MAX.0, actual))
            }
            None => Ok(()),
        }
    }
}
