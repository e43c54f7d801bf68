//! What the commands that make load share: payloads that can be told apart, and quantiles of what
//! was measured. What is pushed and how fast is for `bench` and `demo`.

use serde::Serialize;

/// In front of each payload: its number and when it was pushed.
pub(super) const HEAD_BYTES: usize = 16;

/// What a payload says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// From 0 in each run of a command.
    pub(super) number: u64,
    /// µs since the command began.
    pub(super) pushed_us: u64,
}

impl Head {
    /// The head of a payload; none when it is too short to be one of ours.
    pub(super) fn of(payload: &[u8]) -> Option<Self> {
        let (number, rest) = payload.split_first_chunk::<8>()?;
        Some(Self {
            number: u64::from_be_bytes(*number),
            pushed_us: u64::from_be_bytes(*rest.first_chunk::<8>()?),
        })
    }

    /// A payload of so many bytes with this head; the rest depends on the number.
    pub(super) fn payload(self, bytes: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(bytes + 8);
        payload.extend_from_slice(&self.number.to_be_bytes());
        payload.extend_from_slice(&self.pushed_us.to_be_bytes());
        let mut random = fastrand::Rng::with_seed(self.number);
        while payload.len() < bytes {
            payload.extend_from_slice(&random.u64(..).to_be_bytes());
        }
        payload.truncate(bytes);
        payload
    }
}

/// In ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Quantiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl Quantiles {
    /// By nearest rank, of samples in µs; zero of none.
    pub(super) fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let rank = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100).max(1) - 1;
            samples.get(rank).map_or(0.0, |us| *us as f64 / 1e3)
        };
        Self {
            p50: rank(50),
            p99: rank(99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_their_size_their_head_and_differ() {
        let head = |number| Head {
            number,
            pushed_us: 7,
        };
        assert_eq!(head(1).payload(HEAD_BYTES).len(), HEAD_BYTES);
        assert_eq!(head(1).payload(101).len(), 101);
        assert_ne!(
            head(1).payload(101)[HEAD_BYTES..],
            head(2).payload(101)[HEAD_BYTES..]
        );
        assert_eq!(Head::of(&head(3).payload(20)), Some(head(3)));
        assert_eq!(Head::of(&[0; HEAD_BYTES - 1]), None);
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let quantiles = |p50, p99| Quantiles { p50, p99 };
        let hundred = (1..=100).map(|us| us * 1_000).collect();
        assert_eq!(Quantiles::of(hundred), quantiles(50.0, 99.0));
        assert_eq!(Quantiles::of(vec![5_000]), quantiles(5.0, 5.0));
        assert_eq!(Quantiles::of(vec![]), quantiles(0.0, 0.0));
    }
}
