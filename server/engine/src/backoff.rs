//! From a retry policy and the failures so far to a delay. The formula is documented at
//! [`RetryPolicy`]; the jitter comes from a generator that the engine is seeded with, so that a
//! trace replays exactly.

use ganger_protocol::{DurationMs, RetryPolicy, limits::DELAY_MAX, retry::Curve};

/// Losses in a row after which a job waits before it is granted again: from the second on,
/// `10 s · 2ⁿ ± 50 %`, so that a killer and the bystanders that died with it separate.
pub(crate) const LOSS_DELAY_BASE: DurationMs = DurationMs::from_secs(10);

/// A small generator of numbers that look random: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from `0 ..= max`.
    pub(crate) fn up_to(&mut self, max: DurationMs) -> DurationMs {
        let wide = u128::from(self.next()) * (u128::from(max.0) + 1);
        DurationMs(u64::try_from(wide >> 64).unwrap_or(max.0))
    }
}

/// The delay after the failure that had `earlier` failures before it.
pub(crate) fn delay(policy: &RetryPolicy, earlier: u32, random: &mut Random) -> DurationMs {
    let n = u64::from(earlier);
    let curve = match policy.curve {
        Curve::Poly => policy
            .base_ms
            .plus(DurationMs::from_secs(n.saturating_pow(policy.factor))),
        Curve::Exponential => policy
            .base_ms
            .times(u64::from(policy.factor).saturating_pow(earlier)),
        Curve::Fixed => policy.base_ms,
        Curve::Table => {
            let last = policy.table_ms.len().saturating_sub(1);
            let nth = usize::try_from(n).unwrap_or(last).min(last);
            policy.table_ms.get(nth).copied().unwrap_or_default()
        }
    };
    let capped = curve.min(policy.cap_ms);
    let share = DurationMs(capped.0 / 100 * u64::from(policy.jitter_percent));
    let jitter = policy.jitter_ms.times(n + 1).max(share);
    capped.plus(random.up_to(jitter)).min(DELAY_MAX)
}

/// The delay after so many losses in a row, of which there are at least two.
pub(crate) fn loss_delay(in_row: u32, random: &mut Random) -> DurationMs {
    let doubled = LOSS_DELAY_BASE.times(1 << in_row.saturating_sub(2).min(16));
    DurationMs(doubled.0 / 2).plus(random.up_to(doubled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(policy: &RetryPolicy, earlier: u32, range: std::ops::RangeInclusive<u64>) {
        for seed in 0..50 {
            let delay = delay(policy, earlier, &mut Random::seeded(seed));
            assert!(
                range.contains(&delay.0),
                "{policy:?} after {earlier}: {delay} not {range:?}"
            );
        }
    }

    #[test]
    fn the_default_is_sidekiqs_curve() {
        let policy = RetryPolicy::default();
        check(&policy, 0, 15_000..=45_000);
        check(&policy, 1, 16_000..=76_000);
        check(&policy, 10, 10_015_000..=11_016_500);
        check(&policy, 25, 86_400_000..=95_040_000);
    }

    #[test]
    fn each_curve_has_its_formula() {
        let plain = RetryPolicy::fixed(DurationMs(100));
        check(&plain, 7, 100..=100);
        let exponential = RetryPolicy {
            curve: Curve::Exponential,
            factor: 2,
            ..plain.clone()
        };
        check(&exponential, 0, 100..=100);
        check(&exponential, 3, 800..=800);
        check(&exponential, 200, 86_400_000..=86_400_000);
        let table_ms = vec![DurationMs(1), DurationMs(5)];
        let table = RetryPolicy {
            curve: Curve::Table,
            table_ms,
            ..plain
        };
        check(&table, 0, 1..=1);
        check(&table, 1, 5..=5);
        check(&table, 9, 5..=5);
    }

    #[test]
    fn losses_in_a_row_wait_ten_seconds_doubled_each_time() {
        for seed in 0..50 {
            let mut random = Random::seeded(seed);
            assert!((5_000..=15_000).contains(&loss_delay(2, &mut random).0));
            assert!((20_000..=60_000).contains(&loss_delay(4, &mut random).0));
        }
    }
}
