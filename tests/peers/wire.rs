//! One socket to a server under load: a small buffer in each direction, lines and exact lengths out
//! of the inbound one. All drivers share it, so that what the load generator spends on sockets is
//! the same for every peer. It knows no protocol; `redis.rs`, `beanstalkd.rs` and `ganger.rs` do.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// First size of the inbound buffer; it grows to the largest reply and stays there.
const INBOX_BYTES: usize = 16 * 1024;
/// No reply of any peer comes near this; a longer one is a broken stream.
const INBOX_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    inbox: Vec<u8>,
    /// Unread bytes are `inbox[start..end]`.
    start: usize,
    end: usize,
    /// What the next `flush` sends, in one write.
    pub(crate) outbox: Vec<u8>,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            inbox: vec![0; INBOX_BYTES],
            start: 0,
            end: 0,
            outbox: Vec::with_capacity(1024),
        })
    }

    /// Sends everything in `outbox` and empties it.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(())
    }

    /// The next line, without its CR LF.
    pub(crate) async fn line(&mut self) -> Result<&[u8]> {
        let mut scanned = 0;
        let length = loop {
            let unread = &self.inbox[self.start + scanned..self.end];
            if let Some(at) = unread.iter().position(|byte| *byte == b'\n') {
                break scanned + at;
            }
            scanned = self.end - self.start;
            self.fill().await?;
        };
        let begin = self.start;
        self.start += length + 1;
        Ok(self.inbox[begin..begin + length].trim_ascii_end())
    }

    /// The next `count` bytes.
    pub(crate) async fn exact(&mut self, count: usize) -> Result<&[u8]> {
        while self.end - self.start < count {
            self.fill().await?;
        }
        let begin = self.start;
        self.start += count;
        Ok(&self.inbox[begin..begin + count])
    }

    async fn fill(&mut self) -> Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.inbox.len() && self.start > 0 {
            self.inbox.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.inbox.len() {
            if self.inbox.len() >= INBOX_BYTES_MAX {
                bail!("reply longer than {INBOX_BYTES_MAX} bytes");
            }
            self.inbox.resize(self.inbox.len() * 2, 0);
        }
        let count = self.stream.read(&mut self.inbox[self.end..]).await?;
        if count == 0 {
            bail!("the server closed the connection");
        }
        self.end += count;
        Ok(())
    }
}
