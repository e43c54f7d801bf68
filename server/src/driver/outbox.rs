//! What is to leave on one connection: replies are encoded straight into one buffer, and sent with
//! one non-blocking write a release. What the socket does not take at once its session's task
//! sends on.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::{Buf, BytesMut};
use ganger_engine::command::{ConnectionId, Mono, Reply};
use ganger_protocol::response::{self, Notice};
use tokio::{net::tcp::OwnedWriteHalf, sync::Notify};

/// Where replies go.
#[derive(Debug)]
pub struct Outbox {
    connection: ConnectionId,
    socket: OwnedWriteHalf,
    buffer: Mutex<BytesMut>,
    /// Whether the socket took no more and its session's task is to go on.
    is_blocked: AtomicBool,
    /// Since when it has taken nothing, in ms of the monotonic clock; 0: it takes.
    blocked_since: AtomicU64,
    blocked: Notify,
    /// Replies that were asked for and have not been encoded yet.
    unanswered: AtomicU64,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(connection: ConnectionId, socket: OwnedWriteHalf) -> Self {
        Self {
            connection,
            socket,
            buffer: Mutex::new(BytesMut::new()),
            is_blocked: AtomicBool::new(false),
            blocked_since: AtomicU64::new(0),
            blocked: Notify::new(),
            unanswered: AtomicU64::new(0),
        }
    }

    /// The connection.
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// A request came in that will be answered.
    pub fn expect_reply(&self) {
        self.unanswered.fetch_add(1, Ordering::AcqRel);
    }

    /// Requests that are not answered yet.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Acquire)
    }

    /// Bytes that the socket has not taken yet.
    pub fn unsent_bytes(&self) -> usize {
        self.buffer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether the socket took no more, and [`Outbox::drain`] is to go on.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Acquire)
    }

    /// Since when the socket has taken nothing; `None`: it takes.
    pub fn blocked_since(&self) -> Option<Mono> {
        match self.blocked_since.load(Ordering::Acquire) {
            0 => None,
            since => Some(Mono(since)),
        }
    }

    /// Appends a reply. Nothing is sent before [`Outbox::flush`].
    pub fn reply(&self, reply: Reply) {
        self.unanswered.fetch_sub(1, Ordering::AcqRel);
        let reply = response::Reply {
            id: reply.caller.request,
            result: reply.result,
        };
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = reply.encode(&mut buffer) {
            tracing::error!(connection = self.connection.0, %error, "a reply could not be encoded");
        }
    }

    /// Appends a reply to a request that was never counted.
    pub fn refuse(&self, reply: &response::Reply) {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = reply.encode(&mut buffer) {
            tracing::error!(connection = self.connection.0, %error, "a reply could not be encoded");
        }
    }

    /// Appends a notice. Nothing is sent before [`Outbox::flush`].
    pub fn notice(&self, notice: &Notice) {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = notice.encode(&mut buffer) {
            tracing::error!(connection = self.connection.0, %error, "a notice could not be encoded");
        }
    }

    /// Sends what the socket takes at once. When it does not take all, the session's task is woken
    /// to send the rest. What time it is is asked only then.
    pub fn flush(&self, now: impl FnOnce() -> Mono) {
        if self.is_blocked.load(Ordering::Acquire) {
            return;
        }
        if !self.send(now) {
            self.is_blocked.store(true, Ordering::Release);
            self.blocked.notify_one();
        }
    }

    /// Waits until the socket has been blocked and has taken everything again. For the session's
    /// task; cancel-safe, since nothing is held across a wait.
    ///
    /// # Errors
    /// When the socket is gone.
    pub async fn drain(&self, now: impl Fn() -> Mono) -> std::io::Result<()> {
        while !self.is_blocked.load(Ordering::Acquire) {
            self.blocked.notified().await;
        }
        loop {
            self.socket.writable().await?;
            if self.send(&now) {
                self.is_blocked.store(false, Ordering::Release);
                // A reply that came between the last send and this store found the box blocked.
                if self.send(&now) {
                    return Ok(());
                }
                self.is_blocked.store(true, Ordering::Release);
            }
        }
    }

    /// Whether the socket took everything. An error of the socket counts as taken: the session's
    /// task sees it when it reads.
    fn send(&self, now: impl FnOnce() -> Mono) -> bool {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        while !buffer.is_empty() {
            match self.socket.try_write(&buffer) {
                Ok(sent) => {
                    buffer.advance(sent);
                    self.blocked_since.store(0, Ordering::Release);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let since = now().0.max(1);
                    let _ = self.blocked_since.compare_exchange(
                        0,
                        since,
                        Ordering::AcqRel,
                        Ordering::Acquire,
                    );
                    return false;
                }
                Err(error) => {
                    tracing::debug!(connection = self.connection.0, %error, "a socket is gone");
                    buffer.clear();
                }
            }
        }
        self.blocked_since.store(0, Ordering::Release);
        true
    }
}
