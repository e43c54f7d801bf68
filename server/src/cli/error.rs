//! How a command ends: the exit codes, and errors as `error: … / cause: … / hint: …`.

use std::{fmt, io, process::ExitCode};

use ganger_client::{ConnectError, Error as ClientError};
use ganger_protocol::{ErrorCode, WireError};

use crate::config::ConfigError;

/// The exit codes. Scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// 0: whoever read our output had enough of it.
    Ok,
    /// 1.
    Failed,
    /// 2: wrong usage or configuration.
    Usage,
    /// 3.
    NotFound,
    /// 4: cannot reach the server.
    Unreachable,
    /// 5: the token is missing, wrong, or not for this.
    Unauthorised,
    /// 6.
    Conflict,
    /// 7: of many things some failed.
    Partly,
    /// 74: the store failed.
    Storage,
    /// 124.
    TimedOut,
}

impl Exit {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unreachable => 4,
            Self::Unauthorised => 5,
            Self::Conflict => 6,
            Self::Partly => 7,
            Self::Storage => 74,
            Self::TimedOut => 124,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<ErrorCode> for Exit {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::NotFound => Self::NotFound,
            ErrorCode::Unauthorized | ErrorCode::Forbidden => Self::Unauthorised,
            ErrorCode::Conflict | ErrorCode::QuotaExceeded | ErrorCode::LeaseLost => Self::Conflict,
            ErrorCode::BadRequest
            | ErrorCode::UnsupportedOp
            | ErrorCode::TooLarge
            | ErrorCode::SequenceExpired
            | ErrorCode::UnknownProducer
            | ErrorCode::Overloaded
            | ErrorCode::Draining
            | ErrorCode::Unavailable => Self::Failed,
        }
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CliError {
    pub(super) exit: Exit,
    /// What failed.
    pub(super) message: String,
    /// Why, as far as it is known.
    pub(super) cause: Option<String>,
    /// What to do about it.
    pub(super) hint: Option<String>,
}

impl CliError {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            cause: None,
            hint: None,
        }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The same error with this cause and its causes.
    #[must_use]
    pub(super) fn because(mut self, cause: &(dyn std::error::Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(cause), |error| error.source());
        let mut texts: Vec<String> = Vec::new();
        for text in chain.map(ToString::to_string) {
            // Many errors repeat their source.
            if !texts.iter().any(|earlier| earlier.contains(&text)) {
                texts.push(text);
            }
        }
        self.cause = Some(texts.join(": "));
        self
    }

    /// The same error with this advice.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Up to three lines, without a newline at the end.
impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(cause) = &self.cause {
            write!(f, "\ncause: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl From<WireError> for CliError {
    fn from(error: WireError) -> Self {
        let refused = Self {
            cause: Some(error.to_string()),
            ..Self::new(Exit::from(error.code), "the server refused")
        };
        match error.code {
            ErrorCode::Unauthorized => {
                refused.hint("give a token by GANGER_TOKEN_FILE or GANGER_TOKEN")
            }
            ErrorCode::Forbidden => refused.hint("use a token with this verb, namespace and queue"),
            ErrorCode::Overloaded | ErrorCode::Draining => refused.hint("try again a little later"),
            ErrorCode::Unavailable => {
                refused.hint("it may have been applied; look before trying again")
            }
            ErrorCode::BadRequest
            | ErrorCode::UnsupportedOp
            | ErrorCode::TooLarge
            | ErrorCode::NotFound
            | ErrorCode::Conflict
            | ErrorCode::QuotaExceeded
            | ErrorCode::LeaseLost
            | ErrorCode::SequenceExpired
            | ErrorCode::UnknownProducer => refused,
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(error)
            | ClientError::Unreachable {
                cause: ConnectError::Refused(error),
                ..
            } => error.into(),
            ClientError::Unreachable {
                cause: cause @ ConnectError::TokenMissing,
                ..
            } => Self::new(Exit::Unauthorised, "the server refused")
                .because(&cause)
                .hint("give a token by GANGER_TOKEN_FILE or GANGER_TOKEN"),
            ClientError::Unreachable { address, cause } => Self::new(
                Exit::Unreachable,
                format!("cannot reach a server at {address}"),
            )
            .because(&cause)
            .hint("start one with `ganger`, or name another by --url or GANGER_URL"),
            ClientError::TimedOut { .. } => {
                Self::new(Exit::TimedOut, "the server did not answer in time").because(&error)
            }
            ClientError::OutcomeUnknown(cause) => {
                Self::failed("nobody knows whether it was applied")
                    .because(&cause)
                    .hint("look before trying again")
            }
            other => Self::failed("the request failed").because(&other),
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        let refused = Self::usage("the configuration is refused").because(&error);
        match error.hint() {
            Some(hint) => refused.hint(hint),
            None => refused,
        }
    }
}

/// Of stdout. Whoever closed it has seen enough, which is no failure.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::BrokenPipe => Exit::Ok,
            _ => Exit::Failed,
        };
        Self::new(exit, "cannot write").because(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_what_why_and_what_to_do() {
        let error = CliError::failed("it broke");
        assert_eq!(error.to_string(), "error: it broke");
        let error = error.because(&io::Error::other("rust")).hint("paint it");
        assert_eq!(
            error.to_string(),
            "error: it broke\ncause: rust\nhint: paint it"
        );
    }

    #[test]
    fn the_codes_of_the_wire_become_exit_codes() {
        let exits = ErrorCode::ALL.map(|code| Exit::from(code).code());
        assert_eq!(exits, [1, 1, 1, 5, 5, 3, 6, 6, 6, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_server_that_is_not_there_is_no_refusal() {
        let cause = ConnectError::Closed;
        let address = "127.0.0.1:4264".to_owned();
        let error = CliError::from(ClientError::Unreachable { address, cause });
        assert_eq!(error.exit.code(), 4);
        assert_eq!(
            error.to_string(),
            "error: cannot reach a server at 127.0.0.1:4264\n\
             cause: the server closed the connection\n\
             hint: start one with `ganger`, or name another by --url or GANGER_URL"
        );
        let cause = ConnectError::Refused(WireError::new(ErrorCode::Unauthorized, "no"));
        let error = CliError::from(ClientError::Unreachable {
            address: String::new(),
            cause,
        });
        assert_eq!(error.exit.code(), 5);
    }

    #[test]
    fn a_reader_who_has_enough_is_no_failure() {
        let exit = |kind: io::ErrorKind| CliError::from(io::Error::from(kind)).exit;
        assert_eq!(exit(io::ErrorKind::BrokenPipe), Exit::Ok);
        assert_eq!(exit(io::ErrorKind::StorageFull), Exit::Failed);
    }
}
