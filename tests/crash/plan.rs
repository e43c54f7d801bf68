//! What is pushed, as a function of who pushes it: a job's payload and options follow from the
//! seed of the campaign and its identity, so that whoever is granted it can say whether it is the
//! one.

use ganger_protocol::{Bytes, DurationMs, JobSpec, RetryPolicy, retry::Curve};

/// Which job: the producer, the number of its push, and the place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) producer: u16,
    pub(crate) seq: u64,
    pub(crate) index: u16,
}

const IDENTITY_BYTES: usize = 12;

/// Jobs with a larger payload have a record of their own in the store.
const LARGE_BYTES: usize = 24 << 10;

/// The seed of the campaign.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
}

impl Plan {
    /// How many jobs a push has.
    pub(crate) fn jobs_of_push(self, producer: u16, seq: u64) -> u16 {
        let mut random = self.random(producer, seq, u16::MAX);
        match random.u8(..10) {
            0..6 => 1,
            6..9 => random.u16(2..8),
            _ => random.u16(8..40),
        }
    }

    pub(crate) fn spec(self, identity: Identity) -> JobSpec {
        let mut random = self.random(identity.producer, identity.seq, identity.index);
        let kind = "crash".parse().expect("a name");
        let mut spec = JobSpec::new(kind, self.payload(identity));
        spec.max_attempts = Some(self.max_attempts(identity));
        spec.backoff = Some(Box::new(RetryPolicy {
            curve: Curve::Fixed,
            base_ms: DurationMs(random.u64(0..40)),
            jitter_ms: DurationMs::ZERO,
            jitter_percent: 0,
            ..RetryPolicy::default()
        }));
        if random.u8(..10) == 0 {
            spec.priority = Some(random.u8(..10));
        }
        spec.delay_ms = self.delay(identity);
        if random.u8(..20) == 0 {
            spec.headers
                .insert("traceparent".to_owned(), "00-crash".to_owned());
        }
        spec
    }

    pub(crate) fn max_attempts(self, identity: Identity) -> u32 {
        let mut random = self.random(identity.producer, identity.seq, identity.index ^ 0x4000);
        match random.u8(..10) {
            0 => 1,
            1 => 2,
            2 => 3,
            _ => 26,
        }
    }

    pub(crate) fn delay(self, identity: Identity) -> Option<DurationMs> {
        let mut random = self.random(identity.producer, identity.seq, identity.index ^ 0x2000);
        (random.u8(..12) == 0).then(|| DurationMs(random.u64(1..200)))
    }

    /// The identity, and bytes that follow from it.
    pub(crate) fn payload(self, identity: Identity) -> Bytes {
        let mut random = self.random(identity.producer, identity.seq, identity.index ^ 0x1000);
        let length = match random.u8(..100) {
            0 => LARGE_BYTES,
            1..10 => random.usize(1_000..4_000),
            _ => random.usize(0..300),
        };
        let mut payload = Vec::with_capacity(IDENTITY_BYTES + length);
        payload.extend(identity.producer.to_be_bytes());
        payload.extend(identity.seq.to_be_bytes());
        payload.extend(identity.index.to_be_bytes());
        payload.resize(IDENTITY_BYTES + length, 0);
        random.fill(&mut payload[IDENTITY_BYTES..]);
        payload.into()
    }

    /// Whose payload this is; `None` when it is nobody's.
    pub(crate) fn identify(self, payload: &Bytes) -> Option<Identity> {
        let (producer, rest) = payload.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (index, _) = rest.split_first_chunk()?;
        let identity = Identity {
            producer: u16::from_be_bytes(*producer),
            seq: u64::from_be_bytes(*seq),
            index: u16::from_be_bytes(*index),
        };
        (self.payload(identity) == *payload).then_some(identity)
    }

    fn random(self, producer: u16, seq: u64, index: u16) -> fastrand::Rng {
        let place = u64::from(producer) << 48 ^ u64::from(index) << 32 ^ seq;
        fastrand::Rng::with_seed(self.seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}
