//! Reads `vectors/*.json`, the examples of the protocol that every client shares, and holds this
//! crate to them: what it writes is equal byte for byte, what it reads means what is written
//! there, and every operation, reply, notice and error code has its example. The same bytes stand
//! in the transcripts of `docs/PROTOCOL.md`.
//!
//! `GANGER_BLESS=1 cargo test -p ganger-protocol --test vectors` rewrites the frames of vectors
//! that have a meaning. A frame that changes by that is a protocol that changed.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails may panic, in its helpers too"
)]

mod plain;

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Once};

use bytes::{Bytes, BytesMut};
use ganger_protocol::{
    ErrorCode, WireError, frame,
    limits::FRAME_BYTES_MAX,
    request::{Operation, Refusal, Request},
    response::{Message, Notice, Reply, ReplyBody},
};
use hmac::Mac as _;
use plain::{Plain, from_hex, to_hex};
use serde::Deserialize;
use serde_json::Value;

const FILES: [&str; 6] = [
    "requests.json",
    "replies.json",
    "errors.json",
    "notices.json",
    "tolerated.json",
    "malformed.json",
];

/// One example, as `docs/PROTOCOL.md` describes the files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    direction: Direction,
    #[serde(default, rename = "about")]
    _about: Option<String>,
    frame: String,
    #[serde(default)]
    op: Option<String>,
    #[serde(default)]
    answers: Option<String>,
    #[serde(default)]
    meaning: Option<Value>,
    #[serde(default)]
    same_as: Option<String>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    error: Option<Expected>,
    #[serde(default)]
    incomplete: bool,
    #[serde(default)]
    unreadable: bool,
    #[serde(default)]
    ignored: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Direction {
    Client,
    Server,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    id: u64,
    code: ErrorCode,
    #[serde(default)]
    field: Option<String>,
    #[serde(default)]
    closes: bool,
}

/// What a frame of either direction was read as.
#[derive(Debug, PartialEq)]
enum Read {
    Request(Request),
    Reply(u64, Result<ReplyBody, WireError>),
    Notice(Notice),
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("vectors")
        .join(file)
}

/// The vectors of a file, rewritten first when that is asked for.
fn vectors_of(file: &str) -> Vec<Vector> {
    static BLESSED: Once = Once::new();
    BLESSED.call_once(|| {
        if std::env::var_os("GANGER_BLESS").is_some_and(|value| value == "1") {
            FILES.into_iter().for_each(bless);
        }
    });
    parse(file)
}

fn parse(file: &str) -> Vec<Vector> {
    let text = fs::read_to_string(path(file)).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn vectors() -> Vec<Vector> {
    FILES.iter().flat_map(|file| vectors_of(file)).collect()
}

impl Vector {
    /// The map of the frame, which is whole.
    fn map(&self) -> Bytes {
        let mut buffer = BytesMut::from(&from_hex(&self.frame)[..]);
        let map = frame::decode(&mut buffer, FRAME_BYTES_MAX).unwrap();
        assert!(buffer.is_empty(), "{}: bytes behind the frame", self.name);
        map.unwrap_or_else(|| panic!("{}: half a frame", self.name))
    }

    /// The meaning as a map that any MessagePack library could have written.
    fn meaning_as_map(&self) -> Bytes {
        let meaning = self.meaning.clone().expect("a vector with a meaning");
        rmp_serde::to_vec_named(&Plain(meaning)).unwrap().into()
    }

    fn read(&self, map: &Bytes) -> Read {
        let name = &self.name;
        if self.direction == Direction::Client {
            let request = Request::decode(map);
            return Read::Request(request.unwrap_or_else(|refusal| panic!("{name}: {refusal:?}")));
        }
        match Message::decode(map).unwrap_or_else(|error| panic!("{name}: {error}")) {
            Message::Notice(notice) => Read::Notice(notice),
            Message::Unknown { op } => panic!("{name}: unknown notice {op}"),
            Message::Reply {
                id,
                result: Err(error),
            } => Read::Reply(id, Err(error)),
            Message::Reply {
                id,
                result: Ok(body),
            } => {
                let op = self.answers.as_ref().expect("a reply says what it answers");
                let body = ReplyBody::read(op, &body).unwrap_or_else(|| panic!("{name}: no op"));
                Read::Reply(
                    id,
                    Ok(body.unwrap_or_else(|error| panic!("{name}: {error}"))),
                )
            }
        }
    }

    /// The frame that this crate writes for the meaning.
    fn encoded(&self) -> String {
        let mut buffer = BytesMut::new();
        match self.read(&self.meaning_as_map()) {
            Read::Request(request) => request.encode(&mut buffer),
            Read::Reply(id, result) => Reply { id, result }.encode(&mut buffer),
            Read::Notice(notice) => notice.encode(&mut buffer),
        }
        .unwrap();
        to_hex(&buffer)
    }
}

/// Rewrites the frames of a file in place, line by line, so that nothing else in it moves.
fn bless(file: &str) {
    let mut frames: BTreeMap<String, String> = BTreeMap::new();
    for vector in parse(file) {
        if vector.meaning.is_some() {
            frames.insert(vector.name.clone(), vector.encoded());
        }
    }
    let mut name = String::new();
    let mut lines = Vec::new();
    for line in fs::read_to_string(path(file)).unwrap().lines() {
        if let Some(rest) = line.strip_prefix("    \"name\": \"") {
            rest.trim_end_matches("\",").clone_into(&mut name);
        }
        match frames.get(&name) {
            Some(frame) if line.starts_with("    \"frame\": ") => {
                lines.push(format!("    \"frame\": \"{frame}\""));
            }
            Some(_) | None => lines.push(line.to_owned()),
        }
    }
    fs::write(path(file), lines.join("\n") + "\n").unwrap();
}

#[test]
fn what_is_written_is_equal_byte_for_byte_and_means_what_is_said() {
    for vector in vectors().iter().filter(|vector| vector.meaning.is_some()) {
        let name = &vector.name;
        assert_eq!(vector.encoded(), vector.frame, "{name}: the frame");
        let map = vector.map();
        let Plain(meaning) = rmp_serde::from_slice(&map).unwrap();
        assert_eq!(Some(&meaning), vector.meaning.as_ref(), "{name}: meaning");
        let again = vector.read(&map);
        assert_eq!(again, vector.read(&vector.meaning_as_map()), "{name}: read");
        if let Read::Request(request) = &again {
            assert_eq!(vector.op.as_deref(), Some(request.operation.op()), "{name}");
        }
    }
}

#[test]
fn what_is_only_tolerated_reads_like_its_canonical_form() {
    let all: BTreeMap<String, Vector> = vectors()
        .into_iter()
        .map(|vector| (vector.name.clone(), vector))
        .collect();
    for vector in all.values() {
        let Some(same_as) = &vector.same_as else {
            continue;
        };
        let canonical = &all[same_as];
        assert_ne!(vector.frame, canonical.frame, "{}", vector.name);
        let read = Vector {
            answers: canonical.answers.clone(),
            ..vector.clone()
        }
        .read(&vector.map());
        assert_eq!(read, canonical.read(&canonical.map()), "{}", vector.name);
    }
}

#[test]
fn malformed_bytes_are_refused_as_announced() {
    for vector in vectors_of("malformed.json") {
        let name = &vector.name;
        let mut buffer = BytesMut::from(&from_hex(&vector.frame)[..]);
        let taken = frame::decode(&mut buffer, vector.limit.unwrap_or(FRAME_BYTES_MAX));
        let map = match taken {
            Ok(None) => {
                assert!(vector.incomplete, "{name}: half a frame");
                continue;
            }
            Err(error) => {
                check_refusal(
                    name,
                    &vector,
                    true,
                    Refusal {
                        id: 0,
                        error: error.into(),
                    },
                );
                continue;
            }
            Ok(Some(map)) => map,
        };
        if vector.direction == Direction::Client {
            let refusal = Request::decode(&map).expect_err(name);
            check_refusal(name, &vector, false, refusal);
            continue;
        }
        match Message::decode(&map) {
            Ok(Message::Unknown { op }) => assert_eq!(Some(op), vector.ignored, "{name}"),
            Ok(other) => panic!("{name}: read as {other:?}"),
            Err(error) => assert!(vector.unreadable, "{name}: {error}"),
        }
    }
}

#[track_caller]
fn check_refusal(name: &str, vector: &Vector, closes: bool, refusal: Refusal) {
    let actual = Expected {
        id: refusal.id,
        code: refusal.error.code,
        field: refusal.error.field,
        closes,
    };
    assert_eq!(
        Some(actual),
        vector.error,
        "{name}: {}",
        refusal.error.message
    );
}

#[test]
fn everything_that_can_be_said_has_a_vector() {
    let all = vectors();
    let has = |holds: &dyn Fn(&Vector) -> bool| all.iter().any(|v| v.meaning.is_some() && holds(v));
    for op in Operation::ALL {
        assert!(
            has(&|v| v.direction == Direction::Client && v.op.as_deref() == Some(*op)),
            "no vector of the request {op}"
        );
        assert!(
            has(&|v| v.answers.as_deref() == Some(*op)),
            "no vector of the reply to {op}"
        );
        let bodies = ReplyBody::ANSWERS.iter();
        assert_eq!(
            bodies.filter(|answers| answers.contains(op)).count(),
            1,
            "{op} is answered by one body"
        );
    }
    for op in Notice::ALL {
        assert!(
            has(&|v| v.direction == Direction::Server && v.op.as_deref() == Some(*op)),
            "no vector of the notice {op}"
        );
    }
    for code in ErrorCode::ALL {
        assert!(
            has(&|v| v.meaning.as_ref().unwrap()["err"]["code"] == code.as_str()),
            "no vector of the error {code}"
        );
    }
}

#[test]
fn names_of_vectors_are_unique_and_each_vector_says_what_to_expect() {
    let mut names: Vec<String> = Vec::new();
    for vector in vectors() {
        let expectations = [
            vector.meaning.is_some(),
            vector.same_as.is_some(),
            vector.error.is_some(),
            vector.incomplete,
            vector.unreadable,
            vector.ignored.is_some(),
        ];
        let given = expectations.iter().filter(|given| **given).count();
        assert_eq!(given, 1, "{}: one expectation", vector.name);
        names.push(vector.name);
    }
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "a name stands twice");
}

#[test]
fn the_page_shows_the_bytes_of_the_vectors_and_every_error_code() {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md");
    let page = fs::read_to_string(page).unwrap();
    for code in ErrorCode::ALL {
        let row = format!("\n| `{code}` | ");
        assert!(page.contains(&row), "no row for the error {code}");
    }
    let all = vectors();
    let blocks = page.split("```transcript\n").skip(1);
    let mut shown = 0;
    for message in blocks.flat_map(|block| block.split("\n```").next().unwrap().split("\n\n")) {
        let (head, bytes) = message.split_once('\n').unwrap();
        let vector = all.iter().find(|vector| {
            let sender = match vector.direction {
                Direction::Client => 'C',
                Direction::Server => 'S',
            };
            head == format!("{sender} {}", vector.name)
        });
        let vector = vector.unwrap_or_else(|| panic!("no vector for {head:?}"));
        let hex = bytes
            .lines()
            .map(|line| line.split(';').next().unwrap().trim());
        assert_eq!(hex.collect::<String>(), vector.frame, "{head}");
        shown += 1;
    }
    assert!(shown >= 10, "two conversations, not {shown} messages");
}

#[test]
fn the_proof_of_a_token_follows_from_token_and_nonce() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Proof {
        #[serde(rename = "name")]
        _name: String,
        token: String,
        id: String,
        secret: String,
        hash: String,
        nonce: String,
        mac: String,
    }
    let text = fs::read_to_string(path("auth.json")).unwrap();
    for proof in serde_json::from_str::<Vec<Proof>>(&text).unwrap() {
        let (id, secret) = proof.token.split_once('.').unwrap();
        assert_eq!((id, secret), (&*proof.id, &*proof.secret));
        let hash = <sha2::Sha256 as sha2::Digest>::digest(secret);
        assert_eq!(to_hex(&hash), proof.hash);
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(&hash).unwrap();
        mac.update(&from_hex(&proof.nonce));
        assert_eq!(to_hex(&mac.finalize().into_bytes()), proof.mac);
    }
}
