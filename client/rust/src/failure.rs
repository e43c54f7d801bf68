//! How an attempt that did not succeed ends: another attempt, none at all, or the lease given back.

use std::{error, fmt, time::Duration};

use ganger_protocol::{
    DurationMs, JobId, LeaseId,
    limits::{BACKTRACE_BYTES_MAX, ERROR_KIND_BYTES_MAX, ERROR_MESSAGE_BYTES_MAX},
    request::FailItem,
};

use crate::job::millis;

/// What a handler returns when its attempt did not succeed. Every error turns into one by `?`: its
/// type is the kind, it and its sources are the message, and the server's backoff decides when the
/// next attempt is made.
///
/// ```
/// use std::time::Duration;
/// use ganger_client::Failure;
///
/// fn charge(card: &str) -> Result<(), Failure> {
///     let _number: u64 = card.parse()?;
///     Err(Failure::new("declined", "the card is blocked").dead())
/// }
/// assert!(charge("no number").is_err());
/// ```
///
/// It is no [`std::error::Error`] itself, so that every error can be turned into one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) backtrace: String,
    pub(crate) then: Then,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Backoff,
    RetryIn(DurationMs),
    Dead,
    Discard,
    Release(Option<DurationMs>),
}

impl Failure {
    /// A failed attempt; the next one follows after the job's backoff. `kind` groups failures and
    /// is cut at 100 bytes, `message` is for a person and is cut at 4 KiB.
    ///
    /// ```
    /// # use ganger_client::Failure;
    /// let failure = Failure::new("smtp", "mailbox full");
    /// ```
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: cut(kind.into(), ERROR_KIND_BYTES_MAX),
            message: cut(message.into(), ERROR_MESSAGE_BYTES_MAX),
            backtrace: String::new(),
            then: Then::Backoff,
        }
    }

    /// No failure at all: the lease is given back, and the job is ready again at once, at the head
    /// of its queue. For what this worker cannot do now and another can.
    ///
    /// ```
    /// # use ganger_client::Failure;
    /// let failure = Failure::release();
    /// ```
    pub fn release() -> Self {
        Self {
            then: Then::Release(None),
            ..Self::new("released", "")
        }
    }

    /// As [`Failure::release`], but the job is ready only after `delay`. For a limit upstream.
    ///
    /// ```
    /// # use ganger_client::Failure;
    /// # use std::time::Duration;
    /// let failure = Failure::release_for(Duration::from_secs(30));
    /// ```
    pub fn release_for(delay: Duration) -> Self {
        Self {
            then: Then::Release(Some(millis(delay))),
            ..Self::release()
        }
    }

    /// The next attempt follows after `delay`, whatever the backoff says.
    ///
    /// ```
    /// # use ganger_client::Failure;
    /// # use std::time::Duration;
    /// let failure = Failure::new("busy", "come back later").retry_in(Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn retry_in(mut self, delay: Duration) -> Self {
        self.then = Then::RetryIn(millis(delay));
        self
    }

    /// No further attempt: the job is dead, and kept for a person.
    ///
    /// ```
    /// # use ganger_client::Failure;
    /// let failure = Failure::new("bad_address", "no such user").dead();
    /// ```
    #[must_use]
    pub fn dead(mut self) -> Self {
        self.then = Then::Dead;
        self
    }

    /// No further attempt, and nothing is kept: the job is deleted.
    ///
    /// ```
    /// # use ganger_client::Failure;
    /// let failure = Failure::new("obsolete", "the user is gone").discard();
    /// ```
    #[must_use]
    pub fn discard(mut self) -> Self {
        self.then = Then::Discard;
        self
    }

    /// Where it happened, cut at 16 KiB.
    ///
    /// ```
    /// # use ganger_client::Failure;
    /// let failure = Failure::new("bug", "…").backtrace("at main.rs:1");
    /// ```
    #[must_use]
    pub fn backtrace(mut self, backtrace: impl Into<String>) -> Self {
        self.backtrace = cut(backtrace.into(), BACKTRACE_BYTES_MAX);
        self
    }

    /// The failure as [`Client::fail`](crate::Client::fail) sends it for a lease. One that gives the
    /// lease back is sent as a failure with the same delay; use
    /// [`Client::release`](crate::Client::release) instead.
    ///
    /// ```
    /// # use ganger_client::{Failure, JobId, protocol::LeaseId};
    /// # let job = JobId::from_bytes([0; 24]);
    /// let item = Failure::new("smtp", "mailbox full").dead().into_item(job, LeaseId(7));
    /// assert!(item.dead);
    /// ```
    pub fn into_item(self, job: JobId, lease: LeaseId) -> FailItem {
        let retry_in_ms = match self.then {
            Then::RetryIn(delay) => Some(delay),
            Then::Release(delay) => Some(delay.unwrap_or(DurationMs::ZERO)),
            Then::Backoff | Then::Dead | Then::Discard => None,
        };
        FailItem {
            job,
            lease,
            kind: self.kind,
            message: self.message,
            backtrace: self.backtrace,
            retry_in_ms,
            dead: self.then == Then::Dead,
            discard: self.then == Then::Discard,
        }
    }
}

impl<E: error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(std::any::type_name::<E>(), message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, message) = (&self.kind, &self.message);
        write!(f, "{kind}: {message}")
    }
}

/// At most `max` bytes of a text, whole characters only.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(Failure::new("é".repeat(51), "").kind, "é".repeat(50));
        assert_eq!(Failure::new("n".repeat(99) + "é", "").kind, "n".repeat(99));
    }

    #[test]
    fn an_error_becomes_a_failure_with_its_sources() {
        let failure = Failure::from(crate::Error::Unreachable {
            address: "q:1".to_owned(),
            cause: crate::ConnectError::Closed,
        });
        let expected = "no connection to q:1: the server closed the connection";
        assert_eq!(failure.message, expected);
        assert!(failure.kind.ends_with("Error"), "{}", failure.kind);
    }
}
