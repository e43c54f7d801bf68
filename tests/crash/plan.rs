//! What is pushed, as a function of who pushes it: a job's payload and options follow from the
//! seed of the campaign and its identity, so that whoever is granted it can say whether it is the
//! one.

use ganger_protocol::{
    Bytes, DurationMs, JobSpec, RetryPolicy, ids::Tag, job::Unique, retry::Curve,
};

use crate::limits;

/// Which job: the producer, the number of its push, and the place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) producer: u16,
    pub(crate) seq: u64,
    pub(crate) index: u16,
}

/// What a job is pushed for, which its producer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A plain job, some with a unique key.
    Plain,
    /// A job with a key, under limits.
    Limited,
    /// A member of a batch.
    Member,
    /// A callback of the batch `seq`, for the event `index`: pushed by the server.
    Callback,
    /// The job of a cron entry for the time `seq`: pushed by the server.
    Tick,
}

/// Producers of plain jobs are those below, each of another part is the only one of it.
pub(crate) const PLAIN: u16 = 3;
pub(crate) const LIMITED: u16 = PLAIN;
pub(crate) const MEMBERS: u16 = PLAIN + 1;
pub(crate) const CALLBACKS: u16 = PLAIN + 2;
pub(crate) const TICKS: u16 = PLAIN + 3;

/// The queues of all parts.
pub(crate) const QUEUES: [&str; 4] = ["default", "limited", "batched", "made"];

impl Part {
    pub(crate) fn of(producer: u16) -> Self {
        match producer {
            ..PLAIN => Self::Plain,
            LIMITED => Self::Limited,
            MEMBERS => Self::Member,
            CALLBACKS => Self::Callback,
            _ => Self::Tick,
        }
    }

    pub(crate) fn queue(self) -> &'static str {
        let [default, limited, batched, made] = QUEUES;
        match self {
            Self::Plain => default,
            Self::Limited => limited,
            Self::Member => batched,
            Self::Callback | Self::Tick => made,
        }
    }

    pub(crate) fn is_made_by_server(self) -> bool {
        matches!(self, Self::Callback | Self::Tick)
    }
}

impl Identity {
    pub(crate) fn part(self) -> Part {
        Part::of(self.producer)
    }
}

const IDENTITY_BYTES: usize = 12;

/// Jobs with a larger payload have a record of their own in the store.
const LARGE_BYTES: usize = 24 << 10;

const UNIQUE_KEYS: u8 = 40;

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
        spec.queue = identity.part().queue().parse().expect("a name");
        spec.key = self.key(identity);
        let unique = self.unique(identity);
        spec.unique = unique.map(|key| Box::new(Unique::named(key)));
        spec.max_attempts = Some(self.max_attempts(identity));
        spec.backoff = Some(Box::new(RetryPolicy {
            curve: Curve::Fixed,
            base_ms: DurationMs(random.u64(0..40)),
            jitter_ms: DurationMs::ZERO,
            jitter_percent: 0,
            ..RetryPolicy::default()
        }));
        if identity.part() == Part::Plain && random.u8(..10) == 0 {
            spec.priority = Some(random.u8(..10));
        }
        if spec.unique.is_some() {
            // Soon over, so that its key has another job soon.
            spec.priority = Some(9);
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
            _ if identity.part().is_made_by_server() => 26,
            0 => 1,
            1 => 2,
            2 => 3,
            _ => 26,
        }
    }

    pub(crate) fn delay(self, identity: Identity) -> Option<DurationMs> {
        let mut random = self.random(identity.producer, identity.seq, identity.index ^ 0x2000);
        let may_wait = matches!(identity.part(), Part::Plain | Part::Member);
        (may_wait && random.u8(..12) == 0).then(|| DurationMs(random.u64(1..200)))
    }

    /// Limited jobs have a key, in every other push all the same, so that it is short of turns now
    /// and then. They have neither priority nor delay: they come in the order of their pushes.
    pub(crate) fn key(self, identity: Identity) -> Option<Tag> {
        let index = match identity.seq % 2 {
            0 => 0,
            _ => identity.index,
        };
        let mut random = self.random(identity.producer, identity.seq, index ^ 0x0800);
        (identity.part() == Part::Limited).then(|| limits::any_key(&mut random))
    }

    /// Few keys, which all producers of plain jobs share.
    pub(crate) fn unique(self, identity: Identity) -> Option<Tag> {
        let mut random = self.random(identity.producer, identity.seq, identity.index ^ 0x0400);
        let is_unique = identity.part() == Part::Plain && random.u8(..12) == 0;
        let name = || format!("unique-{}", random.u8(..UNIQUE_KEYS));
        is_unique
            .then(name)
            .map(|name| name.parse().expect("a name"))
    }

    /// The identity, and bytes that follow from it.
    pub(crate) fn payload(self, identity: Identity) -> Bytes {
        let mut random = self.random(identity.producer, identity.seq, identity.index ^ 0x1000);
        let length = match random.u8(..100) {
            // What the server pushes by itself stands in a small definition.
            _ if identity.part().is_made_by_server() => random.usize(0..300),
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
