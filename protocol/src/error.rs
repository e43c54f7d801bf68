//! The closed list of errors on the wire: whose fault, is it worth another try, does the
//! connection survive.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::DurationMs;

/// What went wrong, as a stable string. The list is closed: a client may match on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or has a value that is not allowed; `field` says where.
    BadRequest,
    /// The server does not know this operation, or not yet this field.
    UnsupportedOp,
    /// The frame, payload, result or list is larger than the limit.
    TooLarge,
    /// No such token, or the proof does not match.
    Unauthorized,
    /// The token lacks the verb, or the namespace or queue is not its own.
    Forbidden,
    /// No such job, queue or session.
    NotFound,
    /// The state of the job or queue does not allow it.
    Conflict,
    /// The queue has as many waiting jobs as it may: `limit` and `actual` say so.
    QuotaExceeded,
    /// The lease is not live: `state` says what became of the job.
    LeaseLost,
    /// The number of the push is older than what the server remembers; nothing was applied.
    SequenceExpired,
    /// The server has no records of this producer; nothing was applied.
    UnknownProducer,
    /// Too much at once, or too little free space; try again after `retry_after_ms`.
    Overloaded,
    /// The server is shutting down and takes no new work.
    Draining,
    /// The server cannot serve: it failed, or it is starting. What was sent may have been applied.
    Unavailable,
}

impl ErrorCode {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::UnsupportedOp,
        Self::TooLarge,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::QuotaExceeded,
        Self::LeaseLost,
        Self::SequenceExpired,
        Self::UnknownProducer,
        Self::Overloaded,
        Self::Draining,
        Self::Unavailable,
    ];

    /// The string of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnsupportedOp => "unsupported_op",
            Self::TooLarge => "too_large",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::QuotaExceeded => "quota_exceeded",
            Self::LeaseLost => "lease_lost",
            Self::SequenceExpired => "sequence_expired",
            Self::UnknownProducer => "unknown_producer",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
        }
    }

    /// The code of this string, if there is one.
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

    /// Whether the same request may succeed later without a change.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::QuotaExceeded | Self::Overloaded | Self::Draining | Self::Unavailable => true,
            Self::BadRequest
            | Self::UnsupportedOp
            | Self::TooLarge
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::Conflict
            | Self::LeaseLost
            | Self::SequenceExpired
            | Self::UnknownProducer => false,
        }
    }

    /// Whether the request certainly changed nothing. Only `unavailable` leaves it open.
    pub const fn is_definite(self) -> bool {
        !matches!(self, Self::Unavailable)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An error as it travels: `{code, message, retryable, …}`.
///
/// A code that this version does not know is read as `unavailable`, since nothing can be said
/// about what was applied; its own string then stands in front of the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(from = "RawError")]
#[error("{code}: {message}")]
pub struct WireError {
    /// What went wrong.
    pub code: ErrorCode,
    /// What was wrong and what is allowed, for a person.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The field that was refused, as a path such as `jobs[3].queue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The limit that was passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// The figure that passed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<u64>,
    /// `overloaded`: when to try again, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<DurationMs>,
    /// `lease_lost` and `conflict`: the state of the job, or `gone` when it is no longer kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

impl WireError {
    /// An error of this code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: code.is_retryable(),
            field: None,
            limit: None,
            actual: None,
            retry_after_ms: None,
            state: None,
        }
    }

    /// `bad_request` about a field.
    pub fn bad_request(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            ..Self::new(ErrorCode::BadRequest, message)
        }
    }

    /// `bad_request` about a number outside of its range.
    pub fn out_of_range(field: &str, min: u64, max: u64, actual: u64) -> Self {
        let message = format!("{field} must be {min} to {max}, not {actual}");
        Self {
            limit: Some(if actual < min { min } else { max }),
            actual: Some(actual),
            ..Self::bad_request(field, message)
        }
    }

    /// `too_large`: `what` has `actual` where `limit` is allowed.
    pub fn too_large(field: &str, limit: usize, actual: usize) -> Self {
        Self {
            field: Some(field.to_owned()),
            limit: Some(limit as u64),
            actual: Some(actual as u64),
            ..Self::new(
                ErrorCode::TooLarge,
                format!("{field} may have at most {limit}, this one has {actual}"),
            )
        }
    }

    /// `overloaded`, with the time after which to try again.
    pub fn overloaded(message: impl Into<String>, retry_after_ms: DurationMs) -> Self {
        Self {
            retry_after_ms: Some(retry_after_ms),
            ..Self::new(ErrorCode::Overloaded, message)
        }
    }

    /// The same error about `field` inside of `parent`.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        self.field = self.field.map(|field| format!("{parent}.{field}"));
        self
    }

    /// The same error with the state of the job it is about.
    #[must_use]
    pub fn with_state(mut self, state: &str) -> Self {
        self.state = Some(state.to_owned());
        self
    }
}

/// An error of any version: only the code must be there.
#[derive(Deserialize)]
struct RawError {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    retryable: Option<bool>,
    #[serde(default)]
    field: Option<String>,
    #[serde(default)]
    limit: Option<u64>,
    #[serde(default)]
    actual: Option<u64>,
    #[serde(default)]
    retry_after_ms: Option<DurationMs>,
    #[serde(default)]
    state: Option<String>,
}

impl From<RawError> for WireError {
    fn from(raw: RawError) -> Self {
        let (code, message) = match ErrorCode::parse(&raw.code) {
            Some(code) => (code, raw.message),
            None => {
                let message = format!("{}: {}", raw.code, raw.message);
                (ErrorCode::Unavailable, message)
            }
        };
        Self {
            code,
            message,
            retryable: raw.retryable.unwrap_or_else(|| code.is_retryable()),
            field: raw.field,
            limit: raw.limit,
            actual: raw.actual,
            retry_after_ms: raw.retry_after_ms,
            state: raw.state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_read(json: &str, expected: &WireError) {
        assert_eq!(serde_json::from_str::<WireError>(json).unwrap(), *expected);
    }

    #[test]
    fn an_error_needs_only_its_code() {
        check_read(
            r#"{"code": "draining"}"#,
            &WireError::new(ErrorCode::Draining, ""),
        );
    }

    #[test]
    fn an_unknown_code_is_unavailable_and_keeps_what_the_server_said() {
        let unknown = WireError {
            retryable: false,
            ..WireError::new(ErrorCode::Unavailable, "quota: no room")
        };
        let json = r#"{"code": "quota", "message": "no room", "retryable": false}"#;
        check_read(json, &unknown);
    }

    #[test]
    fn every_code_travels_as_its_own_string() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
        }
    }
}
