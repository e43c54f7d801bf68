//! Fetches that wait, in the order in which they came. A fetch stands once in every queue that it
//! names or matches; a new job goes to the oldest ticket of its queue.

use std::collections::{BTreeMap, BTreeSet};

use ganger_protocol::{NamespaceName, SessionId, request::Fetch, response::LeaseResult};

use crate::{
    command::{Caller, ConnectionId, Mono},
    records::{GroupNumber, QueueNumber},
};

/// The order of waiting fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// A fetch that waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) caller: Caller,
    pub(crate) session: SessionId,
    pub(crate) namespace: NamespaceName,
    pub(crate) fetch: Fetch,
    pub(crate) until: Until,
    /// Where its ticket stands.
    pub(crate) queues: Vec<QueueNumber>,
}

/// Until when a fetch waits.
#[derive(Debug)]
pub(crate) enum Until {
    /// Until this moment.
    Deadline(Mono),
    /// Until the answers that it carried are durable.
    Durable {
        group: GroupNumber,
        acks: Vec<LeaseResult>,
        fails: Vec<LeaseResult>,
    },
}

/// All fetches that wait.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    last: u64,
    by_ticket: BTreeMap<Ticket, Waiter>,
    deadlines: BTreeSet<(Mono, Ticket)>,
    durable: BTreeSet<(GroupNumber, Ticket)>,
    by_connection: BTreeSet<(ConnectionId, Ticket)>,
}

impl Waiters {
    pub(crate) fn insert(&mut self, waiter: Waiter) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        match &waiter.until {
            Until::Deadline(at) => {
                self.deadlines.insert((*at, ticket));
            }
            Until::Durable { group, .. } => {
                self.durable.insert((*group, ticket));
            }
        }
        self.by_connection
            .insert((waiter.caller.connection, ticket));
        self.by_ticket.insert(ticket, waiter);
        ticket
    }

    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.by_ticket.remove(&ticket)?;
        match &waiter.until {
            Until::Deadline(at) => self.deadlines.remove(&(*at, ticket)),
            Until::Durable { group, .. } => self.durable.remove(&(*group, ticket)),
        };
        self.by_connection
            .remove(&(waiter.caller.connection, ticket));
        Some(waiter)
    }

    pub(crate) fn find_mut(&mut self, ticket: Ticket) -> Option<&mut Waiter> {
        self.by_ticket.get_mut(&ticket)
    }

    pub(crate) fn find(&self, ticket: Ticket) -> Option<&Waiter> {
        self.by_ticket.get(&ticket)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Ticket, &mut Waiter)> {
        self.by_ticket
            .iter_mut()
            .map(|(ticket, waiter)| (*ticket, waiter))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ticket, &Waiter)> {
        self.by_ticket
            .iter()
            .map(|(ticket, waiter)| (*ticket, waiter))
    }

    pub(crate) fn of_connection(&self, connection: ConnectionId) -> Vec<Ticket> {
        let tickets = (connection, Ticket(0))..=(connection, Ticket(u64::MAX));
        self.by_connection
            .range(tickets)
            .map(|(_, ticket)| *ticket)
            .collect()
    }

    /// Fetches whose deadline has passed and that `may_end`, up to `max`, among the first `8 · max`.
    pub(crate) fn timed_out(
        &self,
        now: Mono,
        max: usize,
        may_end: impl Fn(&Waiter) -> bool,
    ) -> Vec<Ticket> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        let due = due.map(|(_, ticket)| *ticket).take(8 * max);
        let due = due.filter(|ticket| self.find(*ticket).is_some_and(&may_end));
        due.take(max).collect()
    }

    pub(crate) fn durable(&self, group: GroupNumber) -> Vec<Ticket> {
        let reached = self.durable.iter().take_while(|(after, _)| *after <= group);
        reached.map(|(_, ticket)| *ticket).collect()
    }

    pub(crate) fn first_deadline(&self) -> Option<Mono> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(crate) fn first_durable(&self) -> Option<GroupNumber> {
        self.durable.first().map(|(group, _)| *group)
    }

    pub(crate) fn count(&self) -> usize {
        self.by_ticket.len()
    }
}
