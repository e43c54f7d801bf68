//! Sessions: is the worker alive? A session outlives its connections and the server process; when
//! its ttl passes without a frame, its leases end at once.

use std::collections::{BTreeMap, BTreeSet};

use ganger_protocol::{DurationMs, JobId, QueuePattern, SessionId, request::LeaseRef};

use crate::{
    by_number::ByNumber,
    command::{ConnectionId, Mono},
    records::{QueueNumber, SessionRecord},
    waiters::Ticket,
};

/// Lists of queues of which a session's weighted fetches remember the deficits.
const WEIGHTED_LISTS_MAX: usize = 16;

/// A worker's presence.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) record: SessionRecord,
    /// The connection to tell things to.
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) seen_at: Mono,
    /// Whether it got its fresh ttl since it was last seen, because the server had stalled.
    is_forgiven: bool,
    pub(crate) leases: ByNumber<JobId>,
    pub(crate) waiters: BTreeSet<Ticket>,
    /// Leases that ended without an answer since the last heartbeat.
    pub(crate) lost: Vec<LeaseRef>,
    /// Those of its leases whose jobs are cancelled.
    pub(crate) cancels: BTreeSet<JobId>,
    /// Deficits of its weighted fetches, by list.
    deficits: BTreeMap<Vec<QueuePattern>, BTreeMap<QueueNumber, i64>>,
}

/// What a session's ttl says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It lives at least until then.
    Until(Mono),
    /// Its ttl has passed.
    Lost,
}

impl Session {
    pub(crate) fn opened(record: SessionRecord, now: Mono) -> Self {
        Self {
            record,
            connection: None,
            seen_at: now,
            is_forgiven: false,
            leases: ByNumber::default(),
            waiters: BTreeSet::new(),
            lost: Vec::new(),
            cancels: BTreeSet::new(),
            deficits: BTreeMap::new(),
        }
    }

    pub(crate) fn seen(&mut self, now: Mono) {
        self.seen_at = now;
        self.is_forgiven = false;
    }

    /// Whether it lives. A session without leases whose fetch waits needs no heartbeat; a server
    /// that comes late itself, by more than a third of the ttl, gives one fresh ttl first.
    pub(crate) fn life(&mut self, now: Mono) -> Life {
        let ttl = self.record.ttl;
        let end = self.seen_at.plus(ttl);
        if end > now {
            return Life::Until(end);
        }
        let waits = self.connection.is_some() && !self.waiters.is_empty() && self.leases.is_empty();
        let stalled = !self.is_forgiven && now.since(end) > DurationMs(ttl.0 / 3);
        if waits || stalled {
            self.is_forgiven = stalled;
            self.seen_at = now;
            return Life::Until(now.plus(ttl));
        }
        Life::Lost
    }

    /// The deficits of a list of queues.
    pub(crate) fn deficits(&mut self, list: &[QueuePattern]) -> &mut BTreeMap<QueueNumber, i64> {
        if !self.deficits.contains_key(list) && self.deficits.len() >= WEIGHTED_LISTS_MAX {
            self.deficits.pop_first();
        }
        self.deficits.entry(list.to_vec()).or_default()
    }
}

/// All sessions of the shard.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    /// When to look at each; a frame in between moves nothing here.
    checks: BTreeSet<(Mono, SessionId)>,
}

impl Sessions {
    pub(crate) fn insert(&mut self, session: Session) {
        let id = session.record.id;
        self.checks
            .insert((session.seen_at.plus(session.record.ttl), id));
        self.by_id.insert(id, session);
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.by_id.remove(&id)
    }

    pub(crate) fn find(&self, id: SessionId) -> Option<&Session> {
        self.by_id.get(&id)
    }

    pub(crate) fn find_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.by_id.get_mut(&id)
    }

    /// Looks at the sessions whose check is due, and returns the first that is lost.
    pub(crate) fn first_lost(&mut self, now: Mono) -> Option<SessionId> {
        while let Some((at, id)) = self.checks.first().copied()
            && at <= now
        {
            match self.by_id.get_mut(&id).map(|session| session.life(now)) {
                Some(Life::Lost) => return Some(id),
                Some(Life::Until(later)) => {
                    self.checks.pop_first();
                    self.checks.insert((later, id));
                }
                None => {
                    self.checks.pop_first();
                }
            }
        }
        None
    }

    pub(crate) fn first_check(&self) -> Option<Mono> {
        self.checks.first().map(|(at, _)| *at)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.by_id.iter()
    }

    pub(crate) fn count(&self) -> usize {
        self.by_id.len()
    }
}
