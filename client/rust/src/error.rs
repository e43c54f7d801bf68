//! What can go wrong, as kinds a caller can act on: a definite refusal, an unknown outcome, a
//! server that cannot be reached. Every request of [`crate::client`] ends in one of these or in its
//! reply.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use ganger_protocol::{
    WireError, frame::FrameError, ids::IdError, limits::REDIRECTS_MAX, response::MessageError,
};

/// Why a request has no reply.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused the request: it certainly changed nothing. The code says whether the same
    /// request may succeed later.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// The request may have been applied or not. It is never made again by itself: whoever does so
    /// risks to do it twice.
    #[error("it is unknown whether the request was applied")]
    OutcomeUnknown(#[source] Unknown),
    /// No connection came about in time. The request was never sent.
    #[error("no connection to {address}")]
    Unreachable {
        /// The `host:port` that was tried last.
        address: String,
        /// Why the last try failed.
        #[source]
        cause: ConnectError,
    },
    /// The request was not answered in time. It was not sent, or may safely be made again.
    #[error("not answered within {after:?}")]
    TimedOut {
        /// How long the answer was waited for.
        after: Duration,
        /// Whether it was sent at all; if not, it certainly changed nothing.
        sent: bool,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// The job could not be made from what the builder was given. Nothing was sent.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The request could not be encoded. Nothing was sent.
    #[error("the request could not be encoded")]
    Encode(#[source] Arc<ganger_protocol::request::EncodeError>),
    /// The server answered the request, which it applied, with what cannot be read.
    #[error(transparent)]
    Reply(#[from] MessageError),
    /// The server answered the request, which it applied, with a reply to something else.
    #[error("the server did not answer as {op} is answered")]
    ReplyShape {
        /// The operation that was asked for.
        op: &'static str,
    },
}

/// Why the outcome of a request is unknown.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Unknown {
    /// The server no longer knows this producer (`unknown_producer`), or its number of this push
    /// (`sequence_expired`), and so cannot say what became of it.
    #[error("the server does not remember it")]
    Forgotten(#[source] WireError),
    /// The server said `unavailable`: it may have failed while it applied the request.
    #[error(transparent)]
    Unavailable(WireError),
    /// The connection ended before the answer, and the request cannot be repeated safely.
    #[error("the connection ended before the answer")]
    ConnectionLost,
    /// The request was sent, and no answer came in time.
    #[error("not answered within {after:?}")]
    TimedOut {
        /// How long the answer was waited for.
        after: Duration,
    },
    /// The client was closed before the answer.
    #[error("the client was closed before the answer")]
    Closed,
}

/// Why a connection did not come about.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The socket failed.
    #[error(transparent)]
    Io(Arc<io::Error>),
    /// The server did not finish the handshake in time.
    #[error("no handshake within {after:?}")]
    TimedOut {
        /// How long it had.
        after: Duration,
    },
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// What the server sent is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What the server sent is no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The server refused `hello`.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// Client and server have no version of the protocol in common.
    #[error("the server speaks versions {min} to {max} of the protocol, this client {ours}")]
    Version {
        /// The oldest version of the server.
        min: u32,
        /// The newest version of the server.
        max: u32,
        /// The version of this client.
        ours: u32,
    },
    /// The server wants a token and the options have none.
    #[error("the server wants a token and there is none")]
    TokenMissing,
    /// One server redirected to the next too often.
    #[error("more than {REDIRECTS_MAX} redirects")]
    Redirects,
}

/// Why a builder made no job.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// A kind, queue or tag is no legal name.
    #[error("the {field} is no legal name")]
    Name {
        /// Which field: `kind`, `queue` or `tags`.
        field: &'static str,
        /// What is wrong with it.
        source: IdError,
    },
    /// The payload could not be written as JSON.
    #[error("the payload could not be written as JSON")]
    Json(#[source] Arc<serde_json::Error>),
    /// The payload could not be written as MessagePack.
    #[error("the payload could not be written as MessagePack")]
    MessagePack(#[source] Arc<rmp_serde::encode::Error>),
}

impl Error {
    /// Whether the request certainly changed nothing, so that making it again cannot do it twice.
    pub fn is_definite(&self) -> bool {
        match self {
            Self::Refused(error) => error.code.is_definite(),
            Self::Unreachable { .. } | Self::Job(_) | Self::Encode(_) => true,
            Self::TimedOut { sent, .. } => !sent,
            Self::OutcomeUnknown(_) | Self::Closed | Self::Reply(_) | Self::ReplyShape { .. } => {
                false
            }
        }
    }
}

impl ConnectError {
    /// Whether another try can hardly succeed before somebody changes something.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(error) => !error.retryable,
            Self::Version { .. } | Self::TokenMissing => true,
            Self::Io(_)
            | Self::TimedOut { .. }
            | Self::Closed
            | Self::Frame(_)
            | Self::Message(_)
            | Self::Redirects => false,
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
