//! Accepts connections, within their limits, and ends those that overstay. What is said on one is
//! [`crate::session`]'s.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Bound::{Excluded, Unbounded},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use ganger_engine::command::{ConnectionId, Mono};
use ganger_protocol::{DurationMs, WireError, response::Reply};
use tokio::net::TcpListener;

use crate::{
    auth::Tokens,
    server::Shared,
    session::{self, Patience, Presence},
    tasks::OnPanic,
};

/// After an error of accept that is the machine's (no file handles), the listener waits so long.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// A client that was refused may try again after this time.
const REFUSED_RETRY_AFTER: DurationMs = DurationMs::from_secs(1);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Connections past their `hello` that one sweep looks at: of ten thousand, each is looked at every ten
/// sweeps, and ten thousand that wait cost nothing that could be seen.
const SWEPT_MAX: usize = 1_000;

/// Every connection of a server.
#[derive(Debug, Default)]
pub struct Connections(Mutex<Present>);

#[derive(Debug, Default)]
struct Present {
    all: BTreeMap<ConnectionId, Arc<Presence>>,
    /// Those that had not said `hello` at the last sweep, or have come since: each sweep looks at them.
    strangers: BTreeSet<ConnectionId>,
    /// The next sweep of the others goes on behind this one.
    swept: Option<ConnectionId>,
}

impl Connections {
    /// A connection begins.
    pub fn enter(&self, id: ConnectionId, presence: Arc<Presence>) {
        let mut present = self.lock();
        present.all.insert(id, presence);
        present.strangers.insert(id);
    }

    /// A connection has ended.
    pub fn leave(&self, id: ConnectionId) {
        let mut present = self.lock();
        present.all.remove(&id);
        present.strangers.remove(&id);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().all.len()
    }

    /// Requests that are not answered, and bytes that are not sent, over all connections.
    pub fn outstanding(&self) -> (u64, usize) {
        let present = self.lock();
        let outboxes = present.all.values().map(|presence| &presence.outbox);
        outboxes.fold((0, 0), |(requests, bytes), outbox| {
            (
                requests + outbox.unanswered(),
                bytes + outbox.unsent_bytes(),
            )
        })
    }

    /// Ends those that overstay: all that have not said `hello`, and the next of the others.
    pub fn sweep(&self, now: Mono, patience: &Patience) {
        let mut present = self.lock();
        let Present {
            all,
            strangers,
            swept,
        } = &mut *present;
        strangers.retain(|id| {
            all.get(id).is_some_and(|presence| {
                end_overstaying(*id, presence, now, patience);
                !presence.is_open()
            })
        });
        for (id, presence) in turn(all, swept, SWEPT_MAX) {
            end_overstaying(*id, presence, now, patience);
        }
    }

    /// Ends those whose identity is none any more.
    pub fn end_strangers(&self, tokens: &Tokens) {
        for presence in self.lock().all.values() {
            presence.end_stranger(tokens);
        }
    }

    /// Ends all.
    pub fn close_all(&self) {
        for presence in self.lock().all.values() {
            presence.close.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Present> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next rows behind `swept`, which stands at the last of them then; behind the last of all it begins
/// anew.
fn turn<'a, T>(
    all: &'a BTreeMap<ConnectionId, T>,
    swept: &mut Option<ConnectionId>,
    max: usize,
) -> impl Iterator<Item = (&'a ConnectionId, &'a T)> {
    let from = swept.map_or(Unbounded, Excluded);
    let rows = all.range((from, Unbounded)).take(max);
    *swept = rows.clone().last().map(|(id, _)| *id);
    rows
}

fn end_overstaying(id: ConnectionId, presence: &Presence, now: Mono, patience: &Patience) {
    if let Some(reason) = presence.overstays(now, patience) {
        tracing::debug!(connection = id.0, reason, "a connection is closed");
        presence.close.cancel();
    }
}

/// Connections by address, for the limit of one.
#[derive(Debug, Default)]
struct Addresses(Mutex<BTreeMap<IpAddr, u32>>);

impl Addresses {
    /// Whether one more of this address is allowed; it is counted then.
    fn enter(&self, address: IpAddr, max: u32) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= max && !address.to_canonical().is_loopback() {
            return false;
        }
        *count += 1;
        true
    }

    fn leave(&self, address: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

/// Binds the address. Port 0 takes a free one.
///
/// # Errors
/// When the address is taken or not this machine's.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until the server stops or drains.
pub async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let addresses = Arc::new(Addresses::default());
    let mut next = 1;
    loop {
        // Cancel-safe: a connection is either accepted and handed on, or still in the backlog.
        let accepted = tokio::select! {
            () = shared.closed_to_new.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let live = shared.live();
        if shared.connections.count() >= live.connections_max {
            refuse(&stream, peer, "there are too many connections");
            continue;
        }
        if !addresses.enter(peer.ip(), live.connections_per_address_max) {
            refuse(
                &stream,
                peer,
                "there are too many connections of this address",
            );
            continue;
        }
        keep_alive(&stream);
        let id = ConnectionId(next);
        next += 1;
        let (task, addresses) = (Arc::clone(&shared), Arc::clone(&addresses));
        shared
            .tasks
            .spawn("session", OnPanic::Continue, async move {
                session::serve(task, stream, peer, id).await;
                addresses.leave(peer.ip());
            });
    }
}

/// Says why before the connection ends. A fresh socket takes so few bytes at once, or is gone.
fn refuse(stream: &tokio::net::TcpStream, peer: SocketAddr, why: &'static str) {
    tracing::warn!(%peer, why, "a connection is refused");
    let error = WireError::overloaded(why, REFUSED_RETRY_AFTER);
    let reply = Reply {
        id: 0,
        result: Err(error),
    };
    let mut frame = BytesMut::new();
    let encoded = reply.encode(&mut frame);
    // Not `try_write`: it sends nothing before the runtime has seen the socket ready.
    if encoded.is_err() || socket2::SockRef::from(stream).send(&frame).is_err() {
        tracing::debug!(%peer, "a refused socket is gone");
    }
}

/// Lets the system find peers that are gone without a word.
fn keep_alive(stream: &tokio::net::TcpStream) {
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_keepalive(&probes) {
        tracing::debug!(%error, "no keepalive on a socket");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_goes_on_where_the_last_one_ended() {
        let all: BTreeMap<_, _> = (1..=5).map(|id| (ConnectionId(id), ())).collect();
        let mut swept = None;
        let mut next = || -> Vec<u64> { turn(&all, &mut swept, 2).map(|(id, ())| id.0).collect() };
        assert_eq!(next(), [1, 2]);
        assert_eq!(next(), [3, 4]);
        assert_eq!(next(), [5]);
        assert!(next().is_empty(), "the end is met once");
        assert_eq!(next(), [1, 2]);
    }
}
