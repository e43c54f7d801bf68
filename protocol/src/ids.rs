//! Identifiers and names as newtypes: one that exists is legal.
//!
//! Checks happen here, once, when bytes of the wire, a command line or a file become a type.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{id_text, limits::NAME_BYTES_MAX};

/// Why a text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A name with no character, or with too many.
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes, this one has {actual}")]
    Length {
        /// Bytes of the refused name.
        actual: usize,
    },
    /// A name with a character that names do not have.
    #[error("a name consists of A-Z a-z 0-9 . _ : -, this one has {found:?}")]
    Character {
        /// The first such character.
        found: char,
    },
    /// A text that is not the 32 characters of a job id.
    #[error("a job id has 32 characters of base64url, as the server gave it")]
    Job,
    /// A text that is not a batch id.
    #[error("a batch id is what the server gave when the batch was opened")]
    Batch,
    /// A text that is not a session id.
    #[error("a session id is what the server gave in `hello`")]
    Session,
}

/// Where a job was born; it never changes. On the wire 32 characters of base64url, opaque to
/// everybody but the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct JobId([u8; Self::BYTES]);

/// The parts of a [`JobId`], big-endian in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Birth {
    /// The shard that holds the job.
    pub shard: u16,
    /// The number of its queue at birth.
    pub queue: u32,
    /// Its priority at birth.
    pub priority: u8,
    /// The lane of its fairness key; 0 for the shared one.
    pub lane: u64,
    /// The position of its run.
    pub position: u64,
    /// Its place in that run.
    pub index: u8,
}

impl JobId {
    /// Bytes of an id.
    pub const BYTES: usize = 24;

    /// Characters of an id on the wire.
    pub const CHARS: usize = 32;

    /// The id of a job born there.
    pub fn born(birth: Birth) -> Self {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&birth.shard.to_be_bytes());
        bytes[2..6].copy_from_slice(&birth.queue.to_be_bytes());
        bytes[6] = birth.priority;
        bytes[7..15].copy_from_slice(&birth.lane.to_be_bytes());
        bytes[15..23].copy_from_slice(&birth.position.to_be_bytes());
        bytes[23] = birth.index;
        Self(bytes)
    }

    /// The parts of this id.
    pub fn birth(&self) -> Birth {
        let [
            s0,
            s1,
            q0,
            q1,
            q2,
            q3,
            priority,
            l0,
            l1,
            l2,
            l3,
            l4,
            l5,
            l6,
            l7,
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            index,
        ] = self.0;
        Birth {
            shard: u16::from_be_bytes([s0, s1]),
            queue: u32::from_be_bytes([q0, q1, q2, q3]),
            priority,
            lane: u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
            position: u64::from_be_bytes([p0, p1, p2, p3, p4, p5, p6, p7]),
            index,
        }
    }

    /// An id from its stored bytes.
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes as they are stored; their order is the order of births.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The bytes as words, whose order is theirs.
    #[inline]
    fn words(&self) -> (u64, u64, u64) {
        let (words, _) = self.0.as_chunks();
        let [a, b, c] = [0, 1, 2].map(|at| words.get(at).copied().map_or(0, u64::from_be_bytes));
        (a, b, c)
    }
}

impl Ord for JobId {
    /// The order of the bytes, a word at a time: much of the engine is kept in this order.
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.words().cmp(&other.words())
    }
}

impl PartialOrd for JobId {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for JobId {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (a, b, c) = self.words();
        state.write_u64(a);
        state.write_u64(b);
        state.write_u64(c);
    }
}

impl FromStr for JobId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let chars = text.as_bytes().try_into().ok();
        let bytes = chars.and_then(id_text::read);
        bytes.map(Self).ok_or(IdError::Job)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&id_text::write(&self.0)).unwrap_or_default())
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let birth = self.birth();
        write!(
            f,
            "JobId({}:{}:{}:{}:{:x}.{})",
            birth.shard, birth.queue, birth.priority, birth.lane, birth.position, birth.index
        )
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&id_text::write(&self.0)).unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new("a job id of 32 characters"))
    }
}

/// The number of a grant. It only ever grows, per shard and for ever, so that a worker can use it
/// as a fencing token elsewhere. Below 2⁵³; 0 is never granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A worker's presence, which outlives its connections. Opaque text on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl FromStr for SessionId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match u64::from_str_radix(text, 36) {
            Ok(number) => Ok(Self(number)),
            Err(_not_a_number) => Err(IdError::Session),
        }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        pad_base36(f, self.0)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new("a session id"))
    }
}

/// A batch. Opaque text on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

impl FromStr for BatchId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match u64::from_str_radix(text, 36) {
            Ok(number) if !text.starts_with('+') => Ok(Self(number)),
            Ok(_) | Err(_) => Err(IdError::Batch),
        }
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        pad_base36(f, self.0)
    }
}

impl Serialize for BatchId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BatchId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new("a batch id"))
    }
}

/// A task of the server: what is done to many jobs. Tasks that were started later have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub u64);

impl FromStr for TaskId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn pad_base36(f: &mut fmt::Formatter<'_>, number: u64) -> fmt::Result {
    let mut digits = [0; 13];
    let mut rest = number;
    let mut start = digits.len();
    while let Some(digit) = start.checked_sub(1).and_then(|at| digits.get_mut(at)) {
        start -= 1;
        *digit = char::from_digit((rest % 36) as u32, 36).map_or(b'0', |c| c as u8);
        rest /= 36;
        if rest == 0 {
            break;
        }
    }
    f.pad(std::str::from_utf8(digits.get(start..).unwrap_or_default()).unwrap_or_default())
}

/// Whether names have this byte.
const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b':' | b'-')
}

/// A legal name, cheap to clone.
fn name(text: &str) -> Result<Arc<str>, IdError> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err(IdError::Length { actual: text.len() });
    }
    if text.bytes().all(is_name_byte) {
        return Ok(Arc::from(text));
    }
    let illegal = |c: &char| !u8::try_from(*c).is_ok_and(is_name_byte);
    let found = text.chars().find(illegal).unwrap_or_default();
    Err(IdError::Character { found })
}

/// Declares a newtype over a legal name.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                name(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(FromText::new($expected))
            }
        }
    };
}

name_type!(
    /// The name of a queue: `[A-Za-z0-9._:-]{1,128}`.
    QueueName,
    "a queue name of 1 to 128 of A-Z a-z 0-9 . _ : -"
);
name_type!(
    /// The kind of a job, by which a worker picks a handler: `[A-Za-z0-9._:-]{1,128}`.
    Kind,
    "a kind of 1 to 128 of A-Z a-z 0-9 . _ : -"
);
name_type!(
    /// The name of a namespace: `[A-Za-z0-9._:-]{1,128}`.
    NamespaceName,
    "a namespace name of 1 to 128 of A-Z a-z 0-9 . _ : -"
);
name_type!(
    /// A tag of a job or the name of a fairness or unique key: `[A-Za-z0-9._:-]{1,128}`.
    Tag,
    "a name of 1 to 128 of A-Z a-z 0-9 . _ : -"
);

name_type!(
    /// The name of a cron entry: `[A-Za-z0-9._:-]{1,128}`.
    CronName,
    "the name of a cron entry, 1 to 128 of A-Z a-z 0-9 . _ : -"
);

impl Default for NamespaceName {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

impl Default for QueueName {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

/// A queue name, or a prefix followed by one final `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueuePattern {
    /// This queue only.
    Name(QueueName),
    /// Every queue whose name begins so; an empty prefix means every queue.
    Prefix(Arc<str>),
}

impl QueuePattern {
    /// Whether this queue is meant.
    pub fn matches(&self, queue: &QueueName) -> bool {
        match self {
            Self::Name(name) => name == queue,
            Self::Prefix(prefix) => queue.as_str().starts_with(&**prefix),
        }
    }
}

impl FromStr for QueuePattern {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_suffix('*') {
            None => text.parse().map(Self::Name),
            Some("") => Ok(Self::Prefix(Arc::from(""))),
            Some(prefix) => name(prefix).map(Self::Prefix),
        }
    }
}

impl fmt::Display for QueuePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl Serialize for QueuePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QueuePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new("a queue name, or a prefix and a final *"))
    }
}

/// A key, or a prefix followed by one final `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyPattern {
    /// This key only.
    Name(Tag),
    /// Every key that begins so; an empty prefix means every key.
    Prefix(Arc<str>),
}

impl FromStr for KeyPattern {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_suffix('*') {
            None => text.parse().map(Self::Name),
            Some("") => Ok(Self::Prefix(Arc::from(""))),
            Some(prefix) => name(prefix).map(Self::Prefix),
        }
    }
}

impl fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl Serialize for KeyPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new("a key, or a prefix and a final *"))
    }
}

/// Reads a type from text without a copy of the text.
struct FromText<T> {
    expected: &'static str,
    target: std::marker::PhantomData<T>,
}

impl<T> FromText<T> {
    fn new(expected: &'static str) -> Self {
        Self {
            expected,
            target: std::marker::PhantomData,
        }
    }
}

impl<T: FromStr<Err = IdError>> de::Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_name(text: &str, expected: &Result<(), IdError>) {
        assert_eq!(text.parse::<QueueName>().map(|_| ()), *expected, "{text:?}");
    }

    #[test]
    fn names_hold_at_the_limit_and_not_past_it() {
        check_name("", &Err(IdError::Length { actual: 0 }));
        check_name("a", &Ok(()));
        check_name("A-z.0_9:x", &Ok(()));
        check_name(&"n".repeat(128), &Ok(()));
        check_name(&"n".repeat(129), &Err(IdError::Length { actual: 129 }));
        check_name("a b", &Err(IdError::Character { found: ' ' }));
        check_name("a*", &Err(IdError::Character { found: '*' }));
        check_name("é", &Err(IdError::Character { found: 'é' }));
    }

    #[test]
    fn a_job_id_reads_back_from_its_text_and_keeps_the_order_of_births() {
        let birth = Birth {
            shard: 1,
            queue: 2,
            priority: 9,
            lane: 4,
            position: 1 << 63,
            index: 255,
        };
        let id = JobId::born(birth);
        assert_eq!(id.to_string().len(), JobId::CHARS);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.birth(), birth);
        let later = JobId::born(Birth {
            position: birth.position + 1,
            index: 0,
            ..birth
        });
        assert!(id < later);
        assert_eq!("short".parse::<JobId>(), Err(IdError::Job));
        assert_eq!("*".repeat(32).parse::<JobId>(), Err(IdError::Job));
    }

    proptest::proptest! {
        #[test]
        fn the_order_of_job_ids_is_that_of_their_bytes(
            bytes: [u8; JobId::BYTES],
            at in 0..JobId::BYTES,
            other: u8,
        ) {
            let mut changed = bytes;
            changed[at] = other;
            let (one, two) = (JobId::from_bytes(bytes), JobId::from_bytes(changed));
            proptest::prop_assert_eq!(one.cmp(&two), bytes.cmp(&changed));
        }
    }

    #[test]
    fn a_session_id_reads_back_from_its_text() {
        for number in [0, 1, 35, 36, u64::MAX] {
            assert_eq!(SessionId(number).to_string().parse(), Ok(SessionId(number)));
        }
        assert_eq!("-".parse::<SessionId>(), Err(IdError::Session));
    }

    #[test]
    fn a_batch_id_reads_back_from_its_text() {
        for number in [1, 36, u64::MAX] {
            assert_eq!(BatchId(number).to_string().parse(), Ok(BatchId(number)));
        }
        assert_eq!("+1".parse::<BatchId>(), Err(IdError::Batch));
        assert_eq!("nightly!".parse::<BatchId>(), Err(IdError::Batch));
    }

    #[test]
    fn a_pattern_is_a_name_or_a_prefix() {
        let queue: QueueName = "mail.eu".parse().unwrap();
        for (pattern, matches) in [
            ("mail.eu", true),
            ("mail.*", true),
            ("*", true),
            ("mail", false),
            ("sms*", false),
        ] {
            let pattern: QueuePattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(&queue), matches, "{pattern}");
        }
        assert_eq!(
            "a*b".parse::<QueuePattern>(),
            Err(IdError::Character { found: '*' })
        );
    }
}
