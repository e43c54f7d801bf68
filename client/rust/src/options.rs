//! Where the server is, who asks, and how long to wait. Read by [`crate::connection`] at each
//! connect; nothing here does IO.

use std::{fmt, str::FromStr, time::Duration};

use ganger_protocol::{
    DEFAULT_PORT, NamespaceName, ids::IdError, limits::PRODUCER_UNANSWERED_MAX,
    request::SessionHello,
};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Unanswered requests of one client; four times what the server remembers of a producer.
const IN_FLIGHT_DEFAULT: usize = 1024;

/// How to reach a server. `Debug` shows everything but the secret of the token.
///
/// ```
/// use std::time::Duration;
/// use ganger_client::ClientOptions;
///
/// let options = ClientOptions::from_url("ganger://queue.internal/shop")?
///     .token("key1.s3cret")?
///     .name("shop-web")
///     .request_timeout(Duration::from_secs(10));
/// assert_eq!(options.address(), "queue.internal:4264");
/// # Ok::<(), ganger_client::UrlError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ClientOptions {
    pub(crate) address: Address,
    pub(crate) namespace: NamespaceName,
    pub(crate) token: Option<Token>,
    pub(crate) name: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) in_flight_max: usize,
    pub(crate) window: u64,
    pub(crate) producer: bool,
    pub(crate) session: Option<SessionHello>,
}

/// Why a text is no address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// It does not begin with `ganger://`.
    #[error("a url begins with ganger://, as in ganger://host:4264/namespace")]
    Scheme,
    /// There is no host.
    #[error("the url names no host")]
    Host,
    /// The port is no number of 1 to 65535.
    #[error("a port is a number of 1 to 65535, not {port:?}")]
    Port {
        /// What stands in its place.
        port: String,
    },
    /// In front of the `@` there is more than `:token`.
    #[error("in front of the @ stands :token, without a user")]
    User,
    /// The namespace is no legal name.
    #[error("the namespace: {0}")]
    Namespace(#[from] IdError),
    /// A token that is not `id.secret`.
    #[error("a token is id.secret")]
    Token,
}

impl ClientOptions {
    /// A server on this host, on the default port, without a token.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// assert_eq!(ClientOptions::new("::1").address(), "[::1]:4264");
    /// ```
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            address: Address {
                host: host.into(),
                port: DEFAULT_PORT,
            },
            namespace: NamespaceName::default(),
            token: None,
            name: concat!("ganger-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            request_timeout: REQUEST_TIMEOUT_DEFAULT,
            in_flight_max: IN_FLIGHT_DEFAULT,
            window: PRODUCER_UNANSWERED_MAX,
            producer: true,
            session: None,
        }
    }

    /// Reads `ganger://[:token@]host[:port][/namespace]`. A token is better kept out of urls, which
    /// end up in logs; see [`ClientOptions::token`].
    ///
    /// # Errors
    /// When the text is no such url.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// let options = ClientOptions::from_url("ganger://127.0.0.1:4300")?;
    /// # Ok::<(), ganger_client::UrlError>(())
    /// ```
    pub fn from_url(url: &str) -> Result<Self, UrlError> {
        let rest = url.strip_prefix("ganger://").ok_or(UrlError::Scheme)?;
        let (authority, namespace) = rest.split_once('/').unwrap_or((rest, ""));
        let (token, address) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((user, address)) => {
                let token = user.strip_prefix(':').ok_or(UrlError::User)?;
                (Some(token.parse()?), address)
            }
        };
        let mut options = Self {
            token,
            ..Self::new("")
        };
        options.address = address.parse()?;
        if !namespace.is_empty() {
            options.namespace = namespace.parse()?;
        }
        Ok(options)
    }

    /// The port; default 4264.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// assert_eq!(ClientOptions::new("q").port(4300).address(), "q:4300");
    /// ```
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.address.port = port;
        self
    }

    /// The namespace of every request; default `default`.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// let options = ClientOptions::new("localhost").namespace("shop".parse()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn namespace(mut self, namespace: NamespaceName) -> Self {
        self.namespace = namespace;
        self
    }

    /// The token, `id.secret`. Only a proof that depends on the connection is sent, never the
    /// secret.
    ///
    /// # Errors
    /// When the text has another shape.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// let options = ClientOptions::new("localhost").token("key1.s3cret")?;
    /// assert!(!format!("{options:?}").contains("s3cret"));
    /// # Ok::<(), ganger_client::UrlError>(())
    /// ```
    pub fn token(mut self, token: &str) -> Result<Self, UrlError> {
        self.token = Some(token.parse()?);
        Ok(self)
    }

    /// How the client calls itself, for the log of the server.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// let options = ClientOptions::new("localhost").name("billing");
    /// ```
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long one try to connect may take, from the look-up of the host to the answer to `hello`;
    /// default 5 s.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// # use std::time::Duration;
    /// let options = ClientOptions::new("localhost").connect_timeout(Duration::from_secs(1));
    /// ```
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a request may take, over reconnects; default 30 s. A fetch may take the time it
    /// waits on the server in addition.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// # use std::time::Duration;
    /// let options = ClientOptions::new("localhost").request_timeout(Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How many requests may be unanswered at once, at least 1; default 1024. Further ones wait for
    /// their turn. Pushes are bounded to 256 besides, which is what the server remembers.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// let options = ClientOptions::new("localhost").in_flight_max(64);
    /// ```
    #[must_use]
    pub fn in_flight_max(mut self, count: usize) -> Self {
        self.in_flight_max = count.clamp(1, tokio::sync::Semaphore::MAX_PERMITS);
        self
    }

    /// Whether pushes are numbered, so that none is applied twice over reconnects; default true.
    /// Without numbers a push whose answer is lost ends as
    /// [`OutcomeUnknown`](crate::Error::OutcomeUnknown).
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// let options = ClientOptions::new("localhost").exactly_once(false);
    /// ```
    #[must_use]
    pub fn exactly_once(mut self, exactly_once: bool) -> Self {
        self.producer = exactly_once;
        self
    }

    /// Opens a worker's session too, which [`Client::fetch`](crate::Client::fetch) needs; default
    /// none. A [`Worker`](crate::Worker) sets this by itself.
    ///
    /// ```
    /// # use ganger_client::{ClientOptions, protocol::request::SessionHello};
    /// let session = SessionHello { name: "by-hand".to_owned(), ..SessionHello::default() };
    /// let options = ClientOptions::new("localhost").session(session);
    /// ```
    #[must_use]
    pub fn session(mut self, session: SessionHello) -> Self {
        self.session = Some(session);
        self
    }

    /// The server as `host:port`.
    ///
    /// ```
    /// # use ganger_client::ClientOptions;
    /// assert_eq!(ClientOptions::new("queue").address(), "queue:4264");
    /// ```
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

impl FromStr for ClientOptions {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        Self::from_url(url)
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for Address {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() {
            return Err(UrlError::Host);
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(text) => match text.parse() {
                Ok(port) if port > 0 => port,
                Ok(_) | Err(_) => {
                    return Err(UrlError::Port {
                        port: text.to_owned(),
                    });
                }
            },
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

/// An access token: a public id, and a secret that is never shown and never sent.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) id: String,
    /// SHA-256 of the secret, which is all that a proof needs.
    key: [u8; 32],
}

impl Token {
    /// The proof for a connection: HMAC-SHA256 of its nonce.
    pub(crate) fn proof(&self, nonce: &[u8]) -> Vec<u8> {
        let Ok(mut mac) = <Hmac<Sha256> as Mac>::new_from_slice(&self.key) else {
            // HMAC takes keys of every length.
            return Vec::new();
        };
        mac.update(nonce);
        mac.finalize().into_bytes().to_vec()
    }
}

impl FromStr for Token {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        match text.split_once('.') {
            Some((id, secret)) if !id.is_empty() && !secret.is_empty() => Ok(Self {
                id: id.to_owned(),
                key: Sha256::digest(secret.as_bytes()).into(),
            }),
            Some(_) | None => Err(UrlError::Token),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: &Result<(&str, &str, Option<&str>), UrlError>) {
        let actual = ClientOptions::from_url(url);
        let actual = actual.as_ref().map(|options| {
            let token = options.token.as_ref().map(|token| token.id.as_str());
            (options.address(), options.namespace.as_str(), token)
        });
        let actual = match &actual {
            Ok((address, namespace, token)) => Ok((address.as_str(), *namespace, *token)),
            Err(error) => Err((*error).clone()),
        };
        assert_eq!(&actual, expected, "{url}");
    }

    #[test]
    fn a_url_names_host_port_namespace_and_token() {
        check("ganger://h", &Ok(("h:4264", "default", None)));
        check("ganger://h:1/n", &Ok(("h:1", "n", None)));
        check("ganger://h/", &Ok(("h:4264", "default", None)));
        check("ganger://:a.b.c@h/n", &Ok(("h:4264", "n", Some("a"))));
        check("ganger://[::1]:9/n", &Ok(("[::1]:9", "n", None)));
        check("ganger://[::1]", &Ok(("[::1]:4264", "default", None)));
    }

    #[test]
    fn a_url_of_another_shape_is_refused() {
        check("gangers://h", &Err(UrlError::Scheme));
        check("h:4264", &Err(UrlError::Scheme));
        check("ganger://", &Err(UrlError::Host));
        check("ganger://:a.b@/n", &Err(UrlError::Host));
        check("ganger://user@h", &Err(UrlError::User));
        check("ganger://:secret@h", &Err(UrlError::Token));
        check("ganger://:.secret@h", &Err(UrlError::Token));
        let port = |port: &str| {
            Err(UrlError::Port {
                port: port.to_owned(),
            })
        };
        check("ganger://h:0", &port("0"));
        check("ganger://h:65536", &port("65536"));
        check("ganger://h:", &port(""));
        let found = ' ';
        check(
            "ganger://h/a b",
            &Err(UrlError::Namespace(IdError::Character { found })),
        );
    }

    #[test]
    fn a_proof_is_the_hmac_of_the_nonce_under_the_hash_of_the_secret() {
        let token: Token = "id.secret".parse().unwrap();
        let hex: String = token
            .proof(&[7; 32])
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, include_str!("../tests/proof.hex").trim());
    }
}
