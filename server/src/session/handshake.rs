//! `welcome` and `hello`: version, proof, and who speaks from then on. Pure.
//!
//! Randomness and time come in; nothing is read or written here. Which operation may follow is
//! [`super::state`]'s; a session itself is opened by the engine.

use ganger_engine::{command::Producer, records::ProducerNumber};
use ganger_protocol::{
    Bytes, ErrorCode, NamespaceName, Timestamp, VERSION, VERSION_MIN, WireError,
    limits::Limits,
    request::{Hello, LeaseRef, SessionHello},
    response::Welcome,
};

use crate::auth::{Identity, SECRET_BYTES, ServerSecret, Tokens, Verb};

/// A challenge, fresh for every connection.
pub type Nonce = [u8; SECRET_BYTES];

/// The first frame of a connection.
pub fn welcome(nonce: &Nonce, tokens: &Tokens, limits: &Limits) -> Welcome {
    Welcome {
        v: VERSION,
        min_v: VERSION_MIN,
        nonce: Bytes::copy_from_slice(nonce),
        auth_required: tokens.required(),
        limits: *limits,
    }
}

/// What a `hello` is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The tokens of the server.
    pub tokens: &'a Tokens,
    /// By which it knows sessions and producers again.
    pub secret: &'a ServerSecret,
    /// The nonce of this connection's `welcome`.
    pub nonce: &'a Nonce,
    /// The number of a producer that is made now, drawn at random.
    pub fresh: ProducerNumber,
    /// Wall time.
    pub now: Timestamp,
}

/// A `hello` that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The protocol version of the connection.
    pub v: u32,
    /// Who speaks.
    pub identity: Identity,
    /// The namespace of everything that follows.
    pub namespace: NamespaceName,
    /// The session to open or resume; a secret in it was verified.
    pub session: Option<SessionHello>,
    /// What was held in a session that is not the worker's: all of it is lost.
    pub lost: Vec<LeaseRef>,
    /// The producer, made or verified.
    pub producer: Option<Producer>,
}

/// Checks a `hello`, whose counts and ranges were checked before.
///
/// # Errors
/// `bad_request` for a version that is not spoken, `unauthorized` for a proof that is wrong,
/// `forbidden` for a namespace or session that is not for this token, `unknown_producer` for a
/// producer that is not ours. The connection ends after each of them.
pub fn accept(hello: Hello, terms: &Terms<'_>) -> Result<Accepted, WireError> {
    if !(VERSION_MIN..=VERSION).contains(&hello.v) {
        return Err(WireError::bad_request(
            "v",
            format!(
                "the client speaks version {}, the server {VERSION_MIN} to {VERSION}",
                hello.v
            ),
        ));
    }
    let identity = terms.tokens.verify(hello.auth.as_ref(), terms.nonce)?;
    if !identity.sees(&hello.namespace) {
        return Err(forbidden(
            "namespace",
            &identity,
            &format!("the namespace {}", hello.namespace),
        ));
    }
    if hello.session.is_some() && !identity.has(Verb::Work) {
        return Err(forbidden("session", &identity, "the verb work"));
    }
    let mut session = hello.session;
    let lost = session
        .as_mut()
        .map(|session| disown(session, terms.secret))
        .unwrap_or_default();
    let producer = match hello.producer {
        None => None,
        Some(producer) => Some(match producer.id {
            None => Producer {
                number: terms.fresh,
                made_at: terms.now,
            },
            Some(text) => terms
                .secret
                .verify_producer(&text)
                .ok_or_else(unknown_producer)?,
        }),
    };
    Ok(Accepted {
        v: hello.v,
        identity,
        namespace: hello.namespace,
        session,
        lost,
        producer,
    })
}

/// A worker that shows a wrong secret is told what one with an unknown session is told: here is a
/// new one, and what you held is lost. Answers with that.
fn disown(session: &mut SessionHello, secret: &ServerSecret) -> Vec<LeaseRef> {
    let wrong = session
        .resume
        .take_if(|resume| !secret.verify_session(resume.id, &resume.secret));
    wrong.map(|resume| resume.held).unwrap_or_default()
}

fn unknown_producer() -> WireError {
    WireError {
        field: Some("producer.id".to_owned()),
        ..WireError::new(
            ErrorCode::UnknownProducer,
            "this server did not make this producer; ask for a new one",
        )
    }
}

fn forbidden(field: &str, identity: &Identity, what: &str) -> WireError {
    WireError {
        field: Some(field.to_owned()),
        ..WireError::new(
            ErrorCode::Forbidden,
            format!("the token {} is not for {what}", identity.name()),
        )
    }
}

#[cfg(test)]
mod tests {
    use ganger_protocol::{
        JobId, LeaseId, SessionId,
        request::{Auth, ProducerHello, Resume},
    };

    use super::*;
    use crate::auth::{TokenConfig, TokenHash};

    const NONCE: Nonce = [3; 32];
    const SERVER: ServerSecret = ServerSecret::new([9; 32]);

    fn hello() -> Hello {
        Hello {
            v: VERSION,
            client: "test".to_owned(),
            features: Vec::new(),
            namespace: NamespaceName::default(),
            auth: None,
            session: None,
            producer: None,
        }
    }

    fn check(tokens: &[TokenConfig], hello: Hello) -> Result<Accepted, (ErrorCode, String)> {
        judge(tokens, hello).map_err(|error| (error.code, error.field.unwrap_or_default()))
    }

    fn judge(tokens: &[TokenConfig], hello: Hello) -> Result<Accepted, WireError> {
        let tokens = Tokens::new(tokens)
            .map_err(|error| WireError::new(ErrorCode::Unavailable, error.to_string()))?;
        let terms = Terms {
            tokens: &tokens,
            secret: &SERVER,
            nonce: &NONCE,
            fresh: ProducerNumber(42),
            now: Timestamp(1_000),
        };
        accept(hello, &terms)
    }

    fn token(verbs: &[Verb]) -> TokenConfig {
        TokenConfig {
            id: "t".parse().unwrap(),
            hash: TokenHash::of("secret"),
            verbs: verbs.to_vec(),
            namespaces: Some(vec!["blue".parse().unwrap()]),
            queues: None,
        }
    }

    fn proven(namespace: &str) -> Hello {
        let mac = TokenHash::of("secret").prove(&NONCE).to_vec().into();
        Hello {
            namespace: namespace.parse().unwrap(),
            auth: Some(Auth {
                id: "t".to_owned(),
                mac,
            }),
            ..hello()
        }
    }

    #[test]
    fn welcome_says_what_hello_needs() {
        let open = Tokens::new(&[]).unwrap();
        let frame = welcome(&NONCE, &open, &Limits::default());
        assert_eq!(
            (frame.v, frame.min_v, frame.auth_required),
            (VERSION, VERSION_MIN, false)
        );
        assert_eq!(frame.nonce, NONCE[..]);
        let closed = Tokens::new(&[token(&[])]).unwrap();
        assert!(welcome(&NONCE, &closed, &Limits::default()).auth_required);
    }

    #[test]
    fn a_version_past_either_end_is_refused_with_both_named() {
        for v in [VERSION_MIN - 1, VERSION + 1] {
            let error = judge(&[], Hello { v, ..hello() }).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadRequest);
            assert_eq!(
                error.message,
                format!("the client speaks version {v}, the server {VERSION_MIN} to {VERSION}")
            );
        }
    }

    #[test]
    fn a_server_without_tokens_accepts_everybody() {
        let accepted = check(&[], hello()).unwrap();
        assert_eq!(accepted.identity, Identity::anonymous());
        assert_eq!((accepted.session, accepted.producer), (None, None));
    }

    #[test]
    fn a_server_with_tokens_needs_a_proof_and_the_namespace() {
        let tokens = [token(&[Verb::Push])];
        let refused = |hello| check(&tokens, hello).unwrap_err();
        assert_eq!(
            refused(hello()),
            (ErrorCode::Unauthorized, "auth".to_owned())
        );
        assert_eq!(
            refused(proven("red")),
            (ErrorCode::Forbidden, "namespace".to_owned())
        );
        assert_eq!(check(&tokens, proven("blue")).unwrap().identity.name(), "t");
    }

    #[test]
    fn a_session_needs_the_verb_work() {
        let session = Some(SessionHello::default());
        let hello = Hello {
            session,
            ..proven("blue")
        };
        let refused = check(&[token(&[Verb::Push])], hello.clone()).unwrap_err();
        assert_eq!(refused, (ErrorCode::Forbidden, "session".to_owned()));
        assert!(
            check(&[token(&[Verb::Work])], hello)
                .unwrap()
                .session
                .is_some()
        );
    }

    #[test]
    fn a_session_is_resumed_by_its_own_secret_only() {
        let held = LeaseRef {
            job: JobId::from_bytes([1; JobId::BYTES]),
            lease: LeaseId(7),
        };
        let accepted = |secret: String| {
            let resume = Some(Resume {
                id: SessionId(4),
                secret,
                held: vec![held],
            });
            let session = Some(SessionHello {
                resume,
                ..SessionHello::default()
            });
            let hello = Hello { session, ..hello() };
            let accepted = check(&[], hello).unwrap();
            (accepted.session.unwrap().resume.is_some(), accepted.lost)
        };
        let own = SERVER.session_secret(SessionId(4));
        assert_eq!(accepted(own), (true, Vec::new()));
        let foreign = SERVER.session_secret(SessionId(5));
        assert_eq!(accepted(foreign), (false, vec![held]));
    }

    #[test]
    fn a_producer_is_made_or_known_again() {
        let hello = |id| Hello {
            producer: Some(ProducerHello { id }),
            ..hello()
        };
        let made = check(&[], hello(None)).unwrap().producer.unwrap();
        assert_eq!(
            made,
            Producer {
                number: ProducerNumber(42),
                made_at: Timestamp(1_000)
            }
        );
        let old = Producer {
            number: ProducerNumber(7),
            made_at: Timestamp(1),
        };
        let known = check(&[], hello(Some(SERVER.producer_text(old)))).unwrap();
        assert_eq!(known.producer, Some(old));
        let refused = check(&[], hello(Some("made-up".to_owned()))).unwrap_err();
        assert_eq!(
            refused,
            (ErrorCode::UnknownProducer, "producer.id".to_owned())
        );
    }
}
