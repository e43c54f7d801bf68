//! Who may do what: tokens, their proofs, verbs, and the secrets by which sessions and producers
//! are known again.
//!
//! A token is `id.secret`. The server keeps SHA-256 of the secret, and that hash is the key of the
//! challenge: whoever steals the stored hashes can log in, but nobody who listens on the wire.
//! [`authorise`] is the one place that decides; nothing is allowed that is not granted there. The
//! frames around it are `session/handshake.rs`'s.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ganger_engine::{
    command::{Mono, Producer},
    records::ProducerNumber,
};
use ganger_protocol::{
    DurationMs, ErrorCode, NamespaceName, QueuePattern, SessionId, Timestamp, WireError,
    batch::BatchEvent,
    request::{Auth, Operation},
    task::TaskStart,
};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

/// Bytes of secrets, hashes, proofs and nonces.
pub const SECRET_BYTES: usize = 32;

/// Addresses whose failures are remembered.
const ADDRESSES_MAX: usize = 10_000;

/// Failures of one address before it is refused unheard.
const FAILURES_MAX: u32 = 20;

/// Failures are forgotten after this time without another one.
const FAILURES_KEPT: DurationMs = DurationMs::from_mins(1);

/// The answer to a first failure waits so long; each further one doubles it.
const FAILURE_DELAY_MIN: Duration = Duration::from_millis(100);

/// The longest such wait.
const FAILURE_DELAY_MAX: Duration = Duration::from_secs(3);

/// A value that never reaches a log: its `Debug` shows nothing of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Hides a value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value; the word shows in a review where it is used.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness(#[from] getrandom::Error);

/// Fresh random bytes of the system: for nonces, secrets and producer numbers.
///
/// # Errors
/// When the system has none.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// What a token may be used for.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Add jobs.
    Push,
    /// Run jobs.
    Work,
    /// Look at jobs, queues and totals.
    Inspect,
    /// Change what is there: pause, revive, purge.
    Admin,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 4] = [Self::Push, Self::Work, Self::Inspect, Self::Admin];

    /// The word of the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Work => "work",
            Self::Inspect => "inspect",
            Self::Admin => "admin",
        }
    }

    /// The verb that an operation needs; none for `hello`, which is open to everybody.
    pub const fn needed_by(operation: &Operation) -> Option<Self> {
        match operation {
            Operation::Hello(_) => None,
            Operation::Push(_) | Operation::BatchOpen(_) | Operation::BatchCommit(_) => {
                Some(Self::Push)
            }
            Operation::Fetch(_)
            | Operation::Ack(_)
            | Operation::Fail(_)
            | Operation::Release(_)
            | Operation::Extend(_)
            | Operation::Progress(_)
            | Operation::Heartbeat(_)
            | Operation::Goodbye(_) => Some(Self::Work),
            Operation::JobGet(_)
            | Operation::JobList(_)
            | Operation::Wait(_)
            | Operation::DeadList(_)
            | Operation::QueueList(_)
            | Operation::QueueShow(_)
            | Operation::CronList(_)
            | Operation::CronShow(_)
            | Operation::BatchShow(_)
            | Operation::BatchGraph(_)
            | Operation::BatchList(_)
            | Operation::LimitShow(_)
            | Operation::LimitList(_)
            | Operation::TaskGet(_)
            | Operation::TaskList(_)
            | Operation::Subscribe(_)
            | Operation::Unsubscribe(_)
            | Operation::Stats(_) => Some(Self::Inspect),
            Operation::TaskStart(_)
            | Operation::TaskCancel(_)
            | Operation::JobCancel(_)
            | Operation::JobChange(_)
            | Operation::JobDelete(_)
            | Operation::DeadRevive(_)
            | Operation::DeadPurge(_)
            | Operation::QueuePause(_)
            | Operation::QueueResume(_)
            | Operation::QueueSet(_)
            | Operation::QueueCreate(_)
            | Operation::QueuePurge(_)
            | Operation::QueueDelete(_)
            | Operation::CronSet(_)
            | Operation::CronDelete(_)
            | Operation::CronPause(_)
            | Operation::CronResume(_)
            | Operation::CronRun(_)
            | Operation::LimitSet(_)
            | Operation::LimitDelete(_)
            | Operation::Backup(_) => Some(Self::Admin),
        }
    }
}

/// A token as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// The public part: a name without a dot.
    pub id: TokenId,
    /// SHA-256 of the secret part's text, 64 hexadecimal digits.
    pub hash: TokenHash,
    /// What it may be used for.
    pub verbs: Vec<Verb>,
    /// In which namespaces; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<NamespaceName>>,
    /// For which queues, names or prefixes with a final `*`; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<Vec<QueuePattern>>,
}

/// The public part of a token: 1 to 128 of `A-Z a-z 0-9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TokenId(Arc<str>);

impl TokenId {
    /// An id that stands for a number, such as a random one.
    pub fn numbered(number: u64) -> Self {
        Self(Arc::from(format!("{number:x}")))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Why a text is no token, or no part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The id has a character that ids do not have, or none, or too many.
    #[error("a token id has 1 to 128 of A-Z a-z 0-9 _ -, not {actual:?}")]
    Id {
        /// What came.
        actual: String,
    },
    /// The hash is none.
    #[error("a token hash has 64 hexadecimal digits, this text has {actual} characters")]
    Hash {
        /// Characters of what came.
        actual: usize,
    },
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if (1..=128).contains(&text.len()) && text.chars().all(legal) {
            return Ok(Self(Arc::from(text)));
        }
        Err(TokenError::Id {
            actual: text.to_owned(),
        })
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// SHA-256 of a token's secret: the key of its proofs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(Secret<[u8; SECRET_BYTES]>);

impl TokenHash {
    /// The hash of the secret part of a token, as text.
    pub fn of(secret: &str) -> Self {
        Self(Secret(Sha256::digest(secret).into()))
    }

    /// The proof over a nonce.
    pub fn prove(&self, nonce: &[u8]) -> [u8; SECRET_BYTES] {
        mac(self.0.expose(), &[nonce])
    }

    /// As the configuration writes it.
    pub fn to_hex(&self) -> String {
        use fmt::Write as _;
        self.0
            .expose()
            .iter()
            .fold(String::new(), |mut text, byte| {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

impl FromStr for TokenHash {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let refused = || TokenError::Hash {
            actual: text.chars().count(),
        };
        if text.len() != 2 * SECRET_BYTES {
            return Err(refused());
        }
        let mut bytes = [0; SECRET_BYTES];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let mut value = 0;
            for digit in digits {
                let digit = char::from(*digit).to_digit(16).ok_or_else(refused)?;
                value = value * 16 + digit;
            }
            *byte = u8::try_from(value).unwrap_or_default();
        }
        Ok(Self(Secret(bytes)))
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str("***")
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A token just made; the only moment at which its secret is known.
#[derive(Debug)]
pub struct NewToken {
    /// `id.secret`, for the client.
    pub text: Secret<String>,
    /// For the server.
    pub hash: TokenHash,
}

impl NewToken {
    /// A token of this id with a random secret.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(id: &TokenId) -> Result<Self, NoRandomness> {
        let secret = URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?);
        let hash = TokenHash::of(&secret);
        Ok(Self {
            text: Secret(format!("{id}.{secret}")),
            hash,
        })
    }
}

/// Who speaks on a connection, once `hello` was accepted. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity(Option<Arc<Grants>>);

#[derive(Debug, PartialEq, Eq)]
struct Grants {
    id: TokenId,
    hash: TokenHash,
    verbs: Vec<Verb>,
    namespaces: Option<Vec<NamespaceName>>,
    queues: Option<Vec<QueuePattern>>,
}

impl Identity {
    /// Everybody, on a server without tokens: may do everything.
    pub const fn anonymous() -> Self {
        Self(None)
    }

    /// The token's id for the log; `anonymous` without one.
    pub fn name(&self) -> &str {
        self.0
            .as_ref()
            .map_or("anonymous", |grants| grants.id.as_str())
    }

    /// Whether it may do anything at all in this namespace.
    pub fn sees(&self, namespace: &NamespaceName) -> bool {
        let named = self
            .0
            .as_ref()
            .and_then(|grants| grants.namespaces.as_ref());
        named.is_none_or(|named| named.contains(namespace))
    }

    /// Whether it is for every namespace and every queue.
    pub fn sees_all(&self) -> bool {
        let grants = self.0.as_ref();
        grants.is_none_or(|grants| grants.namespaces.is_none() && grants.queues.is_none())
    }

    /// Whether it has this verb.
    pub fn has(&self, verb: Verb) -> bool {
        self.0
            .as_ref()
            .is_none_or(|grants| grants.verbs.contains(&verb))
    }

    fn queues(&self) -> Option<&[QueuePattern]> {
        self.0.as_ref().and_then(|grants| grants.queues.as_deref())
    }
}

/// The tokens of a server.
#[derive(Debug)]
pub struct Tokens {
    by_id: HashMap<TokenId, Identity>,
    /// What an unknown id is checked against, so that it costs the same.
    decoy: TokenHash,
}

impl Tokens {
    /// The tokens of the configuration, whose ids are distinct.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(tokens: &[TokenConfig]) -> Result<Self, NoRandomness> {
        let identity = |token: &TokenConfig| {
            Identity(Some(Arc::new(Grants {
                id: token.id.clone(),
                hash: token.hash,
                verbs: token.verbs.clone(),
                namespaces: token.namespaces.clone(),
                queues: token.queues.clone(),
            })))
        };
        Ok(Self {
            by_id: tokens
                .iter()
                .map(|token| (token.id.clone(), identity(token)))
                .collect(),
            decoy: TokenHash(Secret(random()?)),
        })
    }

    /// Whether this identity is still one that `hello` would give.
    pub fn know(&self, identity: &Identity) -> bool {
        match &identity.0 {
            None => !self.required(),
            Some(grants) => self.by_id.get(&grants.id) == Some(identity),
        }
    }

    /// Whether `hello` needs a token: whether there are any.
    pub fn required(&self) -> bool {
        !self.by_id.is_empty()
    }

    /// Who it is that proves itself over this nonce.
    ///
    /// # Errors
    /// `unauthorized`, with the same text and after the same work whether the id is unknown or the
    /// proof is wrong.
    pub fn verify(&self, auth: Option<&Auth>, nonce: &[u8]) -> Result<Identity, WireError> {
        if !self.required() {
            return Ok(Identity::anonymous());
        }
        let Some(auth) = auth else {
            return Err(unauthorized("auth", "this server needs a token"));
        };
        let known = auth
            .id
            .parse()
            .ok()
            .and_then(|id: TokenId| self.by_id.get(&id));
        let grants = known.and_then(|identity| identity.0.as_ref());
        let hash = grants.map_or(&self.decoy, |grants| &grants.hash);
        let proven = bool::from(hash.prove(nonce)[..].ct_eq(&auth.mac));
        match known {
            Some(identity) if proven => Ok(identity.clone()),
            Some(_) | None => Err(unauthorized("auth", "no such token, or the proof is wrong")),
        }
    }
}

/// Whether `identity` may ask for `operation` in `namespace`: checked against every queue that the
/// request names. Default deny.
///
/// What concerns a lease is bound to the session that holds it, whose fetch was checked. What
/// names jobs by id, or totals over all queues, needs a token for all queues.
///
/// # Errors
/// `forbidden`, naming the verb, the namespace or the queue that is missing.
pub fn authorise(
    identity: &Identity,
    operation: &Operation,
    namespace: &NamespaceName,
) -> Result<(), WireError> {
    let Some(verb) = Verb::needed_by(operation) else {
        return Ok(());
    };
    if !identity.has(verb) {
        return Err(forbidden(identity, &format!("the verb {}", verb.as_str())));
    }
    if !identity.sees(namespace) {
        return Err(forbidden(identity, &format!("the namespace {namespace}")));
    }
    if matches!(operation, Operation::Backup(_)) && !identity.sees_all() {
        return Err(forbidden(identity, "all namespaces and all queues"));
    }
    let Some(own) = identity.queues() else {
        return Ok(());
    };
    match missing_queue(operation, own) {
        None => Ok(()),
        Some(queue) => Err(forbidden(identity, &format!("the queue {queue}"))),
    }
}

/// The first queue or pattern that an operation names and `own` does not cover.
fn missing_queue(operation: &Operation, own: &[QueuePattern]) -> Option<QueuePattern> {
    let all = || QueuePattern::Prefix(Arc::from(""));
    let missing = |wanted: &QueuePattern| !own.iter().any(|own| covers(own, wanted));
    let named = |queue: &ganger_protocol::QueueName| Some(QueuePattern::Name(queue.clone()));
    match operation {
        Operation::Push(push) => {
            let queues = push.jobs.iter().map(|job| &job.queue);
            queues
                .into_iter()
                .find(|queue| !own.iter().any(|own| own.matches(queue)))
                .and_then(named)
        }
        Operation::Fetch(fetch) => fetch.queues.iter().find(|queue| missing(queue)).cloned(),
        Operation::QueuePause(ganger_protocol::queue::QueuePause { queues, .. })
        | Operation::QueueResume(ganger_protocol::request::QueueNames { queues }) => {
            let mut queues = queues.iter();
            queues
                .find(|queue| !own.iter().any(|own| own.matches(queue)))
                .and_then(named)
        }
        Operation::QueueShow(one)
        | Operation::QueueCreate(one)
        | Operation::QueuePurge(one)
        | Operation::QueueDelete(one) => named(&one.queue).filter(missing),
        Operation::QueueSet(set) => named(&set.queue).filter(missing),
        // A job may be in any queue.
        Operation::JobCancel(_) | Operation::JobChange(_) | Operation::JobDelete(_) => {
            Some(all()).filter(missing)
        }
        Operation::JobList(list) => {
            Some(list.filter.queue.clone().unwrap_or_else(all)).filter(missing)
        }
        Operation::DeadList(list) => named(&list.queue).filter(missing),
        Operation::DeadRevive(select) | Operation::DeadPurge(select) => select
            .queue
            .as_ref()
            .map_or_else(|| Some(all()), named)
            .filter(missing),
        Operation::QueueList(list) => {
            Some(list.pattern.clone().unwrap_or_else(all)).filter(missing)
        }
        // Jobs join a batch by a push, and its callbacks are pushed for whoever opened it.
        Operation::BatchOpen(open) => {
            let callbacks = BatchEvent::ALL.into_iter();
            let mut queues = callbacks.filter_map(|event| Some(&open.callback(event)?.queue));
            queues
                .find(|queue| !own.iter().any(|own| own.matches(queue)))
                .and_then(named)
        }
        // A limit of keys counts in every queue.
        Operation::LimitSet(set) => Some(set.queue.clone().unwrap_or_else(all)).filter(missing),
        Operation::LimitDelete(one) | Operation::LimitShow(one) => {
            Some(one.queue.clone().unwrap_or_else(all)).filter(missing)
        }
        Operation::TaskStart(start) => missing_queue_of_task(start, own),
        // Without queues it means all, and what is in none.
        Operation::Subscribe(subscribe) => match &*subscribe.filter.queues {
            [] => Some(all()).filter(missing),
            queues => queues.iter().find(|queue| missing(queue)).cloned(),
        },
        // An entry that exists may push to any queue, whatever is asked of it.
        Operation::CronSet(_)
        | Operation::CronDelete(_)
        | Operation::CronList(_)
        | Operation::CronShow(_)
        | Operation::CronPause(_)
        | Operation::CronResume(_)
        | Operation::CronRun(_)
        | Operation::BatchShow(_)
        | Operation::BatchGraph(_)
        | Operation::BatchList(_)
        | Operation::LimitList(_)
        | Operation::JobGet(_)
        | Operation::Wait(_)
        | Operation::Stats(_) => Some(all()).filter(missing),
        Operation::Hello(_)
        | Operation::Ack(_)
        | Operation::Fail(_)
        | Operation::Release(_)
        | Operation::Extend(_)
        | Operation::Progress(_)
        | Operation::Heartbeat(_)
        | Operation::Goodbye(_)
        | Operation::BatchCommit(_)
        // It is the connection's.
        | Operation::Unsubscribe(_)
        // Of tasks a token sees those that it might have started: see `may_see_task`.
        | Operation::TaskGet(_)
        | Operation::TaskList(_)
        | Operation::TaskCancel(_)
        | Operation::Backup(_) => None,
    }
}

/// The first queue that a task reads from or moves to and `own` does not cover.
fn missing_queue_of_task(start: &TaskStart, own: &[QueuePattern]) -> Option<QueuePattern> {
    let all = || QueuePattern::Prefix(Arc::from(""));
    let from = start.filter.queue.clone().unwrap_or_else(all);
    let to = start.to.as_ref().and_then(|to| to.queue.clone());
    let mut queues = [Some(from), to.map(QueuePattern::Name)]
        .into_iter()
        .flatten();
    queues.find(|wanted| !own.iter().any(|own| covers(own, wanted)))
}

/// Whether `identity` might have started this task, as far as queues go.
pub fn may_see_task(identity: &Identity, start: &TaskStart) -> bool {
    let own = identity.queues();
    own.is_none_or(|own| missing_queue_of_task(start, own).is_none())
}

/// Whether every queue that `wanted` means is meant by `own` too.
fn covers(own: &QueuePattern, wanted: &QueuePattern) -> bool {
    match (own, wanted) {
        (own, QueuePattern::Name(queue)) => own.matches(queue),
        (QueuePattern::Prefix(own), QueuePattern::Prefix(wanted)) => wanted.starts_with(&**own),
        (QueuePattern::Name(_), QueuePattern::Prefix(_)) => false,
    }
}

fn forbidden(identity: &Identity, what: &str) -> WireError {
    let message = format!("the token {} is not for {what}", identity.name());
    WireError::new(ErrorCode::Forbidden, message)
}

fn unauthorized(field: &str, message: &str) -> WireError {
    WireError {
        field: Some(field.to_owned()),
        ..WireError::new(ErrorCode::Unauthorized, message)
    }
}

/// Failed proofs by address: each is answered later than the one before, and too many not at all.
#[derive(Debug, Default)]
pub struct Failures(HashMap<IpAddr, Failed>);

#[derive(Debug, Clone, Copy)]
struct Failed {
    count: u32,
    last: Mono,
}

impl Failures {
    /// Whether this address is heard at all; asked before a proof is checked.
    ///
    /// # Errors
    /// `overloaded` with the time after which it is heard again.
    pub fn check(&self, address: IpAddr, now: Mono) -> Result<(), WireError> {
        let Some(failed) = self.0.get(&subnet(address)) else {
            return Ok(());
        };
        let age = now.since(failed.last);
        if failed.count < FAILURES_MAX || age >= FAILURES_KEPT {
            return Ok(());
        }
        let wait = DurationMs(FAILURES_KEPT.0 - age.0);
        Err(WireError::overloaded(
            "too many failed logins from this address",
            wait,
        ))
    }

    /// Counts a failure; the answer to it is to wait so long.
    pub fn record(&mut self, address: IpAddr, now: Mono) -> Duration {
        let address = subnet(address);
        if self.0.len() >= ADDRESSES_MAX && !self.0.contains_key(&address) {
            self.make_room(now);
        }
        let failed = match self.0.entry(address) {
            Entry::Occupied(entry) => {
                let failed = entry.into_mut();
                if now.since(failed.last) >= FAILURES_KEPT {
                    failed.count = 0;
                }
                failed
            }
            Entry::Vacant(entry) => entry.insert(Failed {
                count: 0,
                last: now,
            }),
        };
        failed.last = now;
        failed.count = failed.count.saturating_add(1);
        let doublings = (failed.count - 1).min(10);
        (FAILURE_DELAY_MIN * 2_u32.pow(doublings)).min(FAILURE_DELAY_MAX)
    }

    fn make_room(&mut self, now: Mono) {
        self.0
            .retain(|_, failed| now.since(failed.last) < FAILURES_KEPT);
        if self.0.len() >= ADDRESSES_MAX {
            let oldest = self.0.iter().min_by_key(|(_, failed)| failed.last);
            if let Some(address) = oldest.map(|(address, _)| *address) {
                self.0.remove(&address);
            }
        }
    }
}

/// One subscriber has a whole /64 of IPv6 addresses: they count as one.
fn subnet(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The server's own secret, by which it knows sessions and producers again without storing theirs.
#[derive(Debug, Clone)]
pub struct ServerSecret(Secret<[u8; SECRET_BYTES]>);

impl ServerSecret {
    /// The secret as the store keeps it.
    pub const fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(Secret(bytes))
    }

    /// What a worker shows to resume this session.
    pub fn session_secret(&self, session: SessionId) -> String {
        URL_SAFE_NO_PAD.encode(self.session_mac(session))
    }

    /// Whether this is the secret of that session.
    pub fn verify_session(&self, session: SessionId, secret: &str) -> bool {
        URL_SAFE_NO_PAD
            .decode(secret)
            .is_ok_and(|shown| self.session_mac(session)[..].ct_eq(&shown).into())
    }

    /// What a producer shows to go on.
    pub fn producer_text(&self, producer: Producer) -> String {
        let mut bytes = [0; 16 + SECRET_BYTES];
        let (number, rest) = bytes.split_at_mut(8);
        let (made_at, proof) = rest.split_at_mut(8);
        number.copy_from_slice(&producer.number.0.to_be_bytes());
        made_at.copy_from_slice(&producer.made_at.0.to_be_bytes());
        proof.copy_from_slice(&self.producer_mac(producer));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The producer that this text stands for; none when this server did not make it.
    pub fn verify_producer(&self, text: &str) -> Option<Producer> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        let (made_at, shown) = rest.split_first_chunk::<8>()?;
        let producer = Producer {
            number: ProducerNumber(u64::from_be_bytes(*number)),
            made_at: Timestamp(u64::from_be_bytes(*made_at)),
        };
        bool::from(self.producer_mac(producer)[..].ct_eq(shown)).then_some(producer)
    }

    fn session_mac(&self, session: SessionId) -> [u8; SECRET_BYTES] {
        mac(self.0.expose(), &[b"session", &session.0.to_be_bytes()])
    }

    fn producer_mac(&self, producer: Producer) -> [u8; SECRET_BYTES] {
        let (number, made_at) = (
            producer.number.0.to_be_bytes(),
            producer.made_at.0.to_be_bytes(),
        );
        mac(self.0.expose(), &[b"producer", &number, &made_at])
    }
}

/// HMAC-SHA256 over the parts, one after the other.
fn mac(key: &[u8; SECRET_BYTES], parts: &[&[u8]]) -> [u8; SECRET_BYTES] {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use ganger_protocol::{
        BatchId, JobId, JobSpec, LeaseId, QueueName,
        batch::BatchOpen,
        change::{ChangeTo, JobChange, JobDelete},
        cron::CronSet,
        event::{EventFilter, Subscribe, SubscriptionId, Unsubscribe},
        ids::TaskId,
        limit::{LimitList, LimitSet, LimitTarget, OneLimit},
        list::{JobFilter, JobList},
        progress::{Progress, Wait},
        queue::{OneQueue, QueuePause, QueueSet},
        request::{
            Ack, AckItem, Backup, BatchGraph, BatchList, BatchName, CronList, CronNames, CronRun,
            CronShow, DeadList, DeadSelect, Extend, Fail, Fetch, Goodbye, Heartbeat, JobCancel,
            JobGet, Push, QueueList, QueueNames, Release, Stats,
        },
        task::{OneTask, TaskAction, TaskList},
    };

    use super::*;

    const NONCE: [u8; 32] = [7; 32];

    fn token(id: &str, verbs: &[Verb]) -> TokenConfig {
        TokenConfig {
            id: id.parse().unwrap(),
            hash: TokenHash::of("s3cret"),
            verbs: verbs.to_vec(),
            namespaces: None,
            queues: None,
        }
    }

    fn login(token: &TokenConfig) -> Identity {
        let auth = Auth {
            id: token.id.to_string(),
            mac: TokenHash::of("s3cret").prove(&NONCE).to_vec().into(),
        };
        let tokens = Tokens::new(std::slice::from_ref(token)).unwrap();
        tokens.verify(Some(&auth), &NONCE).unwrap()
    }

    fn queue(name: &str) -> QueueName {
        name.parse().unwrap()
    }

    /// One operation of each kind about the queue `name`, with the verb it needs.
    fn operations(name: &str) -> Vec<(Operation, Verb)> {
        let job = JobSpec {
            queue: queue(name),
            ..JobSpec::new("k".parse().unwrap(), &b""[..])
        };
        let fetch = Fetch {
            queues: vec![name.parse().unwrap()],
            ..Fetch::default()
        };
        let id = JobId::from_bytes([0; 24]);
        let ack = AckItem::of(id, LeaseId(1));
        let wait = Wait {
            job: id,
            wait_ms: DurationMs::ZERO,
        };
        let list = DeadList {
            queue: queue(name),
            newest_first: false,
            cursor: None,
            limit: 1,
        };
        let subscribe = Subscribe::to(EventFilter {
            queues: vec![name.parse().unwrap()],
            ..EventFilter::default()
        });
        let unsubscribe = Unsubscribe {
            subscription: SubscriptionId(1),
        };
        let jobs = JobList::of(JobFilter::of(name.parse().unwrap()));
        let task = TaskStart::new(TaskAction::Cancel, jobs.filter.clone());
        let one_task = OneTask { task: TaskId(1) };
        let select = DeadSelect {
            queue: Some(queue(name)),
            ..DeadSelect::default()
        };
        let names = QueueNames {
            queues: vec![queue(name)],
        };
        let pause = QueuePause {
            queues: vec![queue(name)],
            ..QueuePause::default()
        };
        let one = || OneQueue { queue: queue(name) };
        let pattern = Some(name.parse().unwrap());
        let cron = || "nightly".parse().unwrap();
        let limit = || LimitTarget::Queue(name.parse().unwrap());
        let set = CronSet::new(cron(), job.clone());
        let open = BatchOpen {
            on_settled: Some(Box::new(job.clone())),
            ..BatchOpen::default()
        };
        let batch = BatchName { batch: BatchId(1) };
        let crons = CronNames {
            names: vec![cron()],
        };
        vec![
            (
                Operation::Push(Push {
                    jobs: vec![job],
                    atomic: false,
                    spread_ms: None,
                    by: None,
                    seq: None,
                }),
                Verb::Push,
            ),
            (Operation::Fetch(fetch), Verb::Work),
            (Operation::Ack(Ack { leases: vec![ack] }), Verb::Work),
            (Operation::Fail(Fail { leases: vec![] }), Verb::Work),
            (Operation::Release(Release { leases: vec![] }), Verb::Work),
            (Operation::Extend(Extend { leases: vec![] }), Verb::Work),
            (Operation::Progress(Progress { leases: vec![] }), Verb::Work),
            (Operation::Heartbeat(Heartbeat {}), Verb::Work),
            (Operation::Goodbye(Goodbye {}), Verb::Work),
            (Operation::JobGet(JobGet { job: id }), Verb::Inspect),
            (Operation::JobList(Box::new(jobs)), Verb::Inspect),
            (Operation::Wait(wait), Verb::Inspect),
            (Operation::DeadList(list), Verb::Inspect),
            (Operation::QueueList(QueueList { pattern }), Verb::Inspect),
            (Operation::Stats(Stats {}), Verb::Inspect),
            (Operation::JobCancel(JobCancel::new(vec![id])), Verb::Admin),
            (
                Operation::JobChange(JobChange {
                    jobs: vec![id],
                    to: ChangeTo::queue(queue(name)),
                }),
                Verb::Admin,
            ),
            (
                Operation::JobDelete(JobDelete { jobs: vec![id] }),
                Verb::Admin,
            ),
            (Operation::TaskStart(Box::new(task)), Verb::Admin),
            (Operation::TaskGet(one_task), Verb::Inspect),
            (Operation::TaskList(TaskList {}), Verb::Inspect),
            (Operation::TaskCancel(one_task), Verb::Admin),
            (Operation::Subscribe(Box::new(subscribe)), Verb::Inspect),
            (Operation::Unsubscribe(unsubscribe), Verb::Inspect),
            (Operation::DeadRevive(select.clone()), Verb::Admin),
            (Operation::DeadPurge(select), Verb::Admin),
            (Operation::QueuePause(pause), Verb::Admin),
            (Operation::QueueShow(one()), Verb::Inspect),
            (
                Operation::QueueSet(Box::new(QueueSet::of(queue(name)))),
                Verb::Admin,
            ),
            (Operation::QueueCreate(one()), Verb::Admin),
            (Operation::QueuePurge(one()), Verb::Admin),
            (Operation::QueueDelete(one()), Verb::Admin),
            (Operation::QueueResume(names), Verb::Admin),
            (Operation::CronSet(Box::new(set)), Verb::Admin),
            (Operation::CronDelete(crons.clone()), Verb::Admin),
            (Operation::CronPause(crons.clone()), Verb::Admin),
            (Operation::CronResume(crons), Verb::Admin),
            (Operation::CronRun(CronRun { name: cron() }), Verb::Admin),
            (
                Operation::CronList(CronList {
                    cursor: None,
                    limit: 1,
                }),
                Verb::Inspect,
            ),
            (
                Operation::CronShow(CronShow {
                    name: cron(),
                    next: 1,
                }),
                Verb::Inspect,
            ),
            (Operation::BatchOpen(Box::new(open)), Verb::Push),
            (Operation::BatchCommit(batch), Verb::Push),
            (Operation::BatchShow(batch), Verb::Inspect),
            (
                Operation::BatchGraph(BatchGraph {
                    batch: BatchId(1),
                    cursor: None,
                    limit: 1,
                }),
                Verb::Inspect,
            ),
            (
                Operation::BatchList(BatchList {
                    settled: false,
                    cursor: None,
                    limit: 1,
                }),
                Verb::Inspect,
            ),
            (
                Operation::LimitSet(Box::new(LimitSet::of(limit()))),
                Verb::Admin,
            ),
            (Operation::LimitDelete(OneLimit::of(limit())), Verb::Admin),
            (Operation::LimitShow(OneLimit::of(limit())), Verb::Inspect),
            (
                Operation::LimitList(LimitList {
                    cursor: None,
                    limit: 1,
                }),
                Verb::Inspect,
            ),
            (Operation::Backup(Backup { offset: 0 }), Verb::Admin),
        ]
    }

    #[test]
    fn every_operation_needs_its_verb_and_no_other_helps() {
        let operations = operations("mail");
        assert_eq!(operations.len() + 1, Operation::ALL.len(), "all but hello");
        for verb in Verb::ALL {
            let identity = login(&token("t", &[verb]));
            for (operation, needed) in &operations {
                let result = authorise(&identity, operation, &NamespaceName::default());
                assert_eq!(
                    result.is_ok(),
                    verb == *needed,
                    "{} with {verb:?}",
                    operation.op()
                );
            }
        }
        let nobody = login(&token("t", &[]));
        for (operation, _) in &operations {
            let error = authorise(&nobody, operation, &NamespaceName::default()).unwrap_err();
            assert_eq!(error.code, ErrorCode::Forbidden);
        }
    }

    #[test]
    fn every_named_queue_is_checked() {
        let mine = TokenConfig {
            queues: Some(vec!["mail.*".parse().unwrap(), "sms".parse().unwrap()]),
            ..token("t", &Verb::ALL)
        };
        let identity = login(&mine);
        // What names no queue but a lease is bound to the session, a commit to who knows the batch,
        // a task to who might have started it, a subscription to its connection; ids, totals, cron
        // entries and a backup need all queues.
        let bound = [
            "ack",
            "fail",
            "release",
            "extend",
            "progress",
            "heartbeat",
            "goodbye",
            "batch_commit",
            "task_get",
            "task_list",
            "task_cancel",
            "unsubscribe",
        ];
        let for_all = [
            "job_get",
            "wait",
            "job_cancel",
            "job_change",
            "job_delete",
            "stats",
            "backup",
            "batch_show",
            "batch_graph",
            "batch_list",
            "limit_list",
        ];
        for (name, own) in [
            ("mail.eu", true),
            ("sms", true),
            ("mail", false),
            ("sms2", false),
        ] {
            for (operation, _) in operations(name) {
                let allowed = authorise(&identity, &operation, &NamespaceName::default()).is_ok();
                let op = operation.op();
                let needs_all = for_all.contains(&op) || op.starts_with("cron_");
                let expected = bound.contains(&op) || (own && !needs_all);
                assert_eq!(allowed, expected, "{op} {name}");
            }
        }
    }

    #[test]
    fn a_task_needs_the_queues_that_it_reads_and_the_one_that_it_moves_to() {
        let mine = TokenConfig {
            queues: Some(vec!["mail.*".parse().unwrap()]),
            ..token("t", &Verb::ALL)
        };
        let identity = login(&mine);
        for (from, to, expected) in [
            ("mail.eu", None, true),
            ("mail.*", None, true),
            ("*", None, false),
            ("sms", None, false),
            ("mail.eu", Some("mail.us"), true),
            ("mail.eu", Some("sms"), false),
        ] {
            let mut start =
                TaskStart::new(TaskAction::Change, JobFilter::of(from.parse().unwrap()));
            start.to = to.map(|to| ChangeTo::queue(queue(to)));
            assert_eq!(may_see_task(&identity, &start), expected, "{from} {to:?}");
            let operation = Operation::TaskStart(Box::new(start));
            let allowed = authorise(&identity, &operation, &NamespaceName::default());
            assert_eq!(allowed.is_ok(), expected, "{from} {to:?}");
        }
    }

    #[test]
    fn a_pattern_is_allowed_only_when_all_its_queues_are() {
        let pattern = |text: &str| text.parse::<QueuePattern>().unwrap();
        for (own, wanted, expected) in [
            ("*", "*", true),
            ("*", "mail", true),
            ("mail.*", "mail.eu*", true),
            ("mail.*", "mail.*", true),
            ("mail.*", "mail*", false),
            ("mail.*", "*", false),
            ("mail", "mail*", false),
            ("mail", "mail", true),
        ] {
            assert_eq!(
                covers(&pattern(own), &pattern(wanted)),
                expected,
                "{own} {wanted}"
            );
        }
    }

    #[test]
    fn one_foreign_queue_refuses_the_request() {
        let mine = TokenConfig {
            queues: Some(vec!["a".parse().unwrap()]),
            ..token("t", &Verb::ALL)
        };
        let names = QueueNames {
            queues: vec![queue("a"), queue("b")],
        };
        let result = authorise(
            &login(&mine),
            &Operation::QueueResume(names),
            &NamespaceName::default(),
        );
        assert_eq!(
            result.unwrap_err().message,
            "the token t is not for the queue b"
        );
        let by_id = DeadSelect {
            jobs: vec![JobId::from_bytes([0; 24])],
            ..DeadSelect::default()
        };
        let result = authorise(
            &login(&mine),
            &Operation::DeadPurge(by_id),
            &NamespaceName::default(),
        );
        assert_eq!(
            result.unwrap_err().message,
            "the token t is not for the queue *"
        );
    }

    #[test]
    fn another_namespace_is_forbidden() {
        let mine = TokenConfig {
            namespaces: Some(vec!["blue".parse().unwrap()]),
            ..token("t", &Verb::ALL)
        };
        let identity = login(&mine);
        let stats = Operation::Stats(Stats {});
        assert!(authorise(&identity, &stats, &"blue".parse().unwrap()).is_ok());
        let error = authorise(&identity, &stats, &NamespaceName::default()).unwrap_err();
        assert_eq!(
            error.message,
            "the token t is not for the namespace default"
        );
    }

    #[test]
    fn a_proof_is_good_for_its_token_and_nonce_only() {
        let tokens = Tokens::new(&[token("t", &Verb::ALL)]).unwrap();
        let hash = TokenHash::of("s3cret");
        let auth = |id: &str, mac: [u8; 32]| Auth {
            id: id.to_owned(),
            mac: mac.to_vec().into(),
        };
        assert_eq!(
            tokens
                .verify(Some(&auth("t", hash.prove(&NONCE))), &NONCE)
                .unwrap()
                .name(),
            "t"
        );
        let wrong = [
            auth("t", hash.prove(&[8; 32])),
            auth("t", TokenHash::of("other").prove(&NONCE)),
            auth("u", hash.prove(&NONCE)),
            auth("not.an.id", hash.prove(&NONCE)),
            Auth {
                id: "t".to_owned(),
                mac: b""[..].into(),
            },
        ];
        for auth in &wrong {
            let error = tokens.verify(Some(auth), &NONCE).unwrap_err();
            assert_eq!(error.code, ErrorCode::Unauthorized);
            assert_eq!(error.message, "no such token, or the proof is wrong");
        }
        assert_eq!(
            tokens.verify(None, &NONCE).unwrap_err().message,
            "this server needs a token"
        );
    }

    #[test]
    fn the_proof_is_hmac_sha256_under_sha256_of_the_secret() {
        // Computed with another implementation.
        let hash = TokenHash::of("s3cret");
        assert_eq!(
            hash.to_hex(),
            "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0"
        );
        assert_eq!(hash.to_hex().parse(), Ok(hash));
        let proof = URL_SAFE_NO_PAD.encode(hash.prove(&NONCE));
        assert_eq!(proof, "1g9C0r_U0xS_MKQBzFTDR1g7sxeVYNadCQvcDWmTelw");
    }

    #[test]
    fn a_server_without_tokens_lets_everybody_do_everything() {
        let tokens = Tokens::new(&[]).unwrap();
        let identity = tokens.verify(None, &NONCE).unwrap();
        for (operation, _) in operations("any") {
            assert!(authorise(&identity, &operation, &NamespaceName::default()).is_ok());
        }
    }

    #[test]
    fn a_new_token_proves_itself() {
        let id: TokenId = "ci".parse().unwrap();
        let token = NewToken::generate(&id).unwrap();
        let (name, secret) = token.text.expose().split_once('.').unwrap();
        assert_eq!((name, secret.len()), ("ci", 43));
        assert_eq!(TokenHash::of(secret), token.hash);
        assert_ne!(NewToken::generate(&id).unwrap().hash, token.hash);
    }

    #[test]
    fn secrets_do_not_print() {
        let token = NewToken::generate(&"ci".parse().unwrap()).unwrap();
        assert_eq!(
            format!("{token:?}"),
            "NewToken { text: ***, hash: TokenHash(***) }"
        );
        assert_eq!(
            format!("{:?}", ServerSecret::new([1; 32])),
            "ServerSecret(***)"
        );
    }

    #[test]
    fn failures_are_answered_later_and_later_and_then_not_at_all() {
        let (mut failures, address) = (Failures::default(), IpAddr::from([10, 0, 0, 1]));
        let delays: Vec<_> = (0..FAILURES_MAX)
            .map(|_| failures.record(address, Mono(0)).as_millis())
            .collect();
        assert_eq!(delays[..7], [100, 200, 400, 800, 1_600, 3_000, 3_000]);
        let error = failures.check(address, Mono(1_000)).unwrap_err();
        assert_eq!(error.retry_after_ms, Some(DurationMs(59_000)));
        assert!(
            failures
                .check(IpAddr::from([10, 0, 0, 2]), Mono(1_000))
                .is_ok()
        );
        assert!(failures.check(address, Mono(60_000)).is_ok());
        assert_eq!(failures.record(address, Mono(60_000)).as_millis(), 100);
    }

    #[test]
    fn one_failure_less_than_the_limit_is_heard() {
        let (mut failures, address) = (Failures::default(), IpAddr::from([10, 0, 0, 1]));
        for _ in 1..FAILURES_MAX {
            failures.record(address, Mono(0));
        }
        assert!(failures.check(address, Mono(0)).is_ok());
        failures.record(address, Mono(0));
        assert!(failures.check(address, Mono(0)).is_err());
    }

    #[test]
    fn a_subnet_of_ipv6_counts_as_one_address_and_the_table_is_bounded() {
        let mut failures = Failures::default();
        failures.record("2001:db8::1".parse().unwrap(), Mono(0));
        let delay = failures.record("2001:db8::2".parse().unwrap(), Mono(0));
        assert_eq!(delay.as_millis(), 200);
        for number in 0..=u32::try_from(ADDRESSES_MAX).unwrap() {
            failures.record(IpAddr::from(number.to_be_bytes()), Mono(1));
        }
        assert_eq!(failures.0.len(), ADDRESSES_MAX);
    }

    #[test]
    fn sessions_and_producers_are_known_again_by_their_own_server_only() {
        let (ours, theirs) = (ServerSecret::new([1; 32]), ServerSecret::new([2; 32]));
        let secret = ours.session_secret(SessionId(5));
        assert!(ours.verify_session(SessionId(5), &secret));
        assert!(!ours.verify_session(SessionId(6), &secret));
        assert!(!theirs.verify_session(SessionId(5), &secret));
        assert!(!ours.verify_session(SessionId(5), ""));

        let producer = Producer {
            number: ProducerNumber(u64::MAX),
            made_at: Timestamp(77),
        };
        let text = ours.producer_text(producer);
        assert_eq!(text.len(), 64);
        assert_eq!(ours.verify_producer(&text), Some(producer));
        assert_eq!(theirs.verify_producer(&text), None);
        assert_eq!(ours.verify_producer(&text[1..]), None);
        assert_eq!(ours.verify_producer(&format!("B{}", &text[1..])), None);
    }
}
