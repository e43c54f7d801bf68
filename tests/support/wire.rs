//! One raw connection: bytes in, bytes out, and the few steps that every conversation has.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::plain::{bin, from_hex, from_map, to_map};

/// How long a read waits before the test has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// What was read and is not a whole frame yet.
    inbox: Vec<u8>,
    next_id: u64,
    /// Replies that came while another one was waited for.
    replies: BTreeMap<u64, Result<Value, Value>>,
    /// Messages that nobody asked for, oldest first.
    pub notices: Vec<Value>,
    /// The first frame of the server.
    pub welcome: Value,
}

impl Connection {
    /// Connects and reads `welcome`.
    ///
    /// # Errors
    /// When there is no server, or it refuses the connection.
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self {
            stream,
            inbox: Vec::new(),
            next_id: 1,
            replies: BTreeMap::new(),
            notices: Vec::new(),
            welcome: Value::Null,
        };
        let frame = connection.try_frame()?;
        let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
        connection.welcome = from_map(&frame).ok_or(io::ErrorKind::InvalidData)?;
        if let Some(refusal) = connection.welcome.get("err") {
            return Err(io::Error::other(refusal.to_string()));
        }
        Ok(connection)
    }

    /// Connects and reads `welcome`.
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).expect("no welcome")
    }

    /// Connects and says hello with these fields; the version is filled in. Answers with the
    /// reply, too.
    pub fn hello(address: SocketAddr, fields: Value) -> (Self, Value) {
        let mut connection = Self::connect(address);
        let reply = connection.say_hello(fields).expect("hello was refused");
        (connection, reply)
    }

    /// A connection with neither session nor producer.
    pub fn open(address: SocketAddr) -> Self {
        Self::hello(address, json!({})).0
    }

    /// A connection with a session.
    pub fn worker(address: SocketAddr) -> Self {
        Self::hello(address, json!({ "session": {} })).0
    }

    /// Says hello with these fields; the version is filled in unless they have one.
    ///
    /// # Errors
    /// The error that the server answers.
    pub fn say_hello(&mut self, mut fields: Value) -> Result<Value, Value> {
        fields
            .as_object_mut()
            .expect("a map")
            .entry("v")
            .or_insert(json!(1));
        self.ask("hello", fields)
    }

    /// The `auth` of hello for a token `id.secret` on this connection.
    pub fn auth(&self, token: &str) -> Value {
        let (id, secret) = token.split_once('.').expect("id.secret");
        let nonce = from_hex(self.welcome["nonce"]["$bin"].as_str().expect("a nonce"));
        json!({ "id": id, "mac": bin(prove(secret, &nonce)) })
    }

    /// Sends a request and answers with its id.
    pub fn send(&mut self, op: &str, mut fields: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let map = fields.as_object_mut().expect("a map");
        map.insert("id".to_owned(), json!(id));
        map.insert("op".to_owned(), json!(op));
        self.send_map(&to_map(&fields));
        id
    }

    /// Sends a frame around these bytes.
    pub fn send_map(&mut self, map: &[u8]) {
        self.send_bytes(&framed(map));
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.try_send_bytes(bytes).expect("the server is gone");
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the server is gone, or reads nothing.
    pub fn try_send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame of the server; `None` when it has closed the connection.
    ///
    /// # Errors
    /// When the socket fails, or nothing comes in [`PATIENCE`].
    pub fn try_frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((length, rest)) = self.inbox.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if rest.len() >= length {
                    let frame = rest[..length].to_vec();
                    self.inbox.drain(..4 + length);
                    return Ok(Some(frame));
                }
            }
            let mut chunk = [0; 64 << 10];
            match self.stream.read(&mut chunk)? {
                0 if self.inbox.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.inbox.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// The next message of the server, as it is.
    pub fn message(&mut self) -> Value {
        let frame = self.try_frame().expect("nothing came");
        let frame = frame.expect("the server closed the connection");
        from_map(&frame).expect("a server sends one MessagePack map a frame")
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// The error that the server answers.
    pub fn reply(&mut self, id: u64) -> Result<Value, Value> {
        loop {
            if let Some(reply) = self.replies.remove(&id) {
                return reply;
            }
            let message = self.message();
            let answered = message["id"].as_u64().expect("an id");
            match (message.get("ok"), message.get("err")) {
                (Some(ok), None) => self.replies.insert(answered, Ok(ok.clone())),
                (None, Some(err)) => self.replies.insert(answered, Err(err.clone())),
                _ if message.get("op").is_some() => {
                    self.notices.push(message);
                    None
                }
                _ => panic!("no message of a server: {message}"),
            };
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The error that the server answers.
    pub fn ask(&mut self, op: &str, fields: Value) -> Result<Value, Value> {
        let id = self.send(op, fields);
        self.reply(id)
    }

    /// Sends a request that must be answered ok.
    #[track_caller]
    pub fn ok(&mut self, op: &str, fields: Value) -> Value {
        match self.ask(op, fields) {
            Ok(reply) => reply,
            Err(error) => panic!("{op} was refused: {error}"),
        }
    }

    /// Sends a request that must be refused.
    #[track_caller]
    pub fn err(&mut self, op: &str, fields: Value) -> Value {
        match self.ask(op, fields) {
            Ok(reply) => panic!("{op} was answered: {reply}"),
            Err(error) => error,
        }
    }

    /// Pushes one job and answers with its id.
    #[track_caller]
    pub fn push(&mut self, job: Value) -> String {
        let reply = self.ok("push", json!({ "jobs": [job] }));
        let id = reply["results"][0]["id"].as_str();
        id.unwrap_or_else(|| panic!("not pushed: {reply}"))
            .to_owned()
    }

    /// Fetches at most one job of a queue, without waiting.
    #[track_caller]
    pub fn fetch(&mut self, queue: &str) -> Option<Value> {
        let mut reply = self.ok("fetch", json!({ "queues": [queue] }));
        reply["jobs"].as_array_mut().expect("jobs").pop()
    }

    /// Fetches one job of a queue that must be there within [`PATIENCE`].
    #[track_caller]
    pub fn wait(&mut self, queue: &str) -> Value {
        let wait_ms = u64::try_from(PATIENCE.as_millis()).expect("short") / 2;
        let mut reply = self.ok("fetch", json!({ "queues": [queue], "wait_ms": wait_ms }));
        reply["jobs"]
            .as_array_mut()
            .expect("jobs")
            .pop()
            .expect("no job came")
    }

    /// The next message that nobody asked for.
    pub fn notice(&mut self) -> Value {
        if self.notices.is_empty() {
            return self.message();
        }
        self.notices.remove(0)
    }

    /// Waits until the server closes the connection; what it still says is thrown away.
    #[track_caller]
    pub fn wait_closed(&mut self) {
        loop {
            match self.try_frame() {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("the connection was not closed")
                }
                // A server that closes with bytes unread resets the connection.
                Err(_) => return,
            }
        }
    }

    /// Says that nothing more will be sent.
    pub fn shut_write(&mut self) {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("a live socket");
    }

    /// The socket, to set options.
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }
}

/// A frame around these bytes.
pub fn framed(map: &[u8]) -> Vec<u8> {
    let length = u32::try_from(map.len()).expect("a short map");
    [&length.to_be_bytes(), map].concat()
}

/// The proof of a token's secret over a nonce.
pub fn prove(secret: &str, nonce: &[u8]) -> [u8; 32] {
    let key = Sha256::digest(secret);
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key of any length");
    mac.update(nonce);
    mac.finalize().into_bytes().into()
}
