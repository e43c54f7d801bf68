//! A shard's engine and store as one: commands in, replies out when the groups they depend on are
//! durable.
//!
//! No thread, no clock and no socket: the server drives it from its sessions and its sync thread,
//! the simulator from one seed. What it does not decide: when to sync ([`super::Shard`]) and how
//! replies travel ([`super::outbox`]).

use std::{collections::BTreeMap, sync::Arc};

use ganger_engine::{
    Engine, Options,
    command::{Command, ConnectionId, Happened, Now, Origin, Outcome, Reply, SessionOpened},
    facts::{Facts, Need, Recovered},
    records::GroupNumber,
};
use ganger_protocol::{
    DurationMs, WireError,
    response::{Notice, ReplyBody},
};

use crate::store::{Store, StoreError};

/// Operations after which the open group is sealed, even inside of a sync.
const GROUP_OPERATIONS_MAX: usize = 1_000;

/// Bytes after which the open group is sealed, even inside of a sync.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// What may leave now.
#[derive(Debug, Default)]
pub struct Released {
    /// Replies whose groups are durable, in the order in which they were decided.
    pub replies: Vec<Reply>,
    /// Notices, which wait for nothing.
    pub notices: Vec<(ConnectionId, Notice)>,
    /// What has happened, its groups durable, in the order in which it did.
    pub events: Vec<Happened>,
    /// The answer to a [`Command::Bulk`].
    pub answer: Option<Result<ReplyBody, WireError>>,
    /// The session that the command opened.
    pub session: Option<SessionOpened>,
}

/// One shard's engine in front of its store.
#[derive(Debug)]
pub struct Core {
    engine: Engine,
    store: Arc<Store>,
    /// Whether replies wait for their groups; false only where a weaker durability was asked for.
    replies_wait: bool,
    /// The last group that was handed to the store.
    sealed: GroupNumber,
    /// The last group that is under way to be durable.
    syncing: GroupNumber,
    durable: GroupNumber,
    /// Replies that wait for a group.
    waiting: BTreeMap<GroupNumber, Vec<Reply>>,
    /// Events that wait for a group.
    untold: BTreeMap<GroupNumber, Vec<Happened>>,
    /// Bytes of the sealed groups that are not durable yet, about.
    undurable: BTreeMap<GroupNumber, usize>,
    undurable_bytes: usize,
}

impl Core {
    /// The core of a store as it was opened. Nothing may be granted before the first
    /// [`Core::seal`] is durable.
    pub fn open(now: Now, options: Options, store: Arc<Store>, recovered: Recovered) -> Self {
        let group = recovered.group;
        Self {
            engine: Engine::open(now, options, recovered),
            store,
            replies_wait: true,
            sealed: group,
            syncing: group,
            durable: group,
            waiting: BTreeMap::new(),
            untold: BTreeMap::new(),
            undurable: BTreeMap::new(),
            undurable_bytes: 0,
        }
    }

    /// Lets replies leave before their groups are durable: what was answered ok since the last sync
    /// can be lost.
    #[must_use]
    pub fn answering_before_sync(mut self) -> Self {
        self.replies_wait = false;
        self
    }

    /// Applies a command and returns what may leave at once; the rest leaves by
    /// [`Core::synced`].
    ///
    /// # Errors
    /// When the store cannot be read or takes no more groups. Both are final.
    pub fn apply(&mut self, now: Now, command: Command) -> Result<Released, StoreError> {
        let mut facts = Facts::default();
        loop {
            let needs = self.engine.needs(now, &command, &facts);
            if needs.is_empty() {
                break;
            }
            for need in needs {
                let fact = self.store.read(&need)?;
                self.engine.inform(&need, &fact);
                // What extends the engine is not kept, but that lanes were looked for.
                if !matches!(need, Need::Heads { .. } | Need::Timers { .. }) {
                    facts.insert(need, fact);
                }
            }
        }
        let outcome = self.engine.apply(now, command, &facts);
        let released = self.release(outcome);
        let (operations, bytes) = self.engine.open_size();
        if operations >= GROUP_OPERATIONS_MAX || bytes >= GROUP_BYTES_MAX {
            self.seal(now)?;
        }
        Ok(released)
    }

    /// Hands the open group to the store; whether there was anything in it.
    ///
    /// # Errors
    /// When the store takes no more groups. That is final.
    pub fn seal(&mut self, now: Now) -> Result<bool, StoreError> {
        let (_, bytes) = self.engine.open_size();
        let Some(group) = self.engine.seal(now) else {
            return Ok(false);
        };
        self.store.commit(&group)?;
        self.sealed = group.number;
        self.undurable.insert(group.number, bytes);
        self.undurable_bytes += bytes;
        Ok(true)
    }

    /// Seals the open group for a sync, which begins now; answers with the last group that this is to
    /// make durable.
    ///
    /// # Errors
    /// As [`Core::seal`].
    pub fn seal_for_sync(&mut self, now: Now) -> Result<GroupNumber, StoreError> {
        self.seal(now)?;
        self.syncing = self.sealed;
        Ok(self.sealed)
    }

    /// Groups up to this one are durable: returns the replies that waited for them.
    pub fn synced(&mut self, durable: GroupNumber) -> Released {
        self.durable = self.durable.max(durable);
        self.syncing = self.syncing.max(durable);
        while let Some(entry) = self.undurable.first_entry()
            && *entry.key() <= durable
        {
            self.undurable_bytes -= entry.remove();
        }
        let mut released = Released::default();
        if self.engine.awaits_durable(durable) {
            let command = Command::Durable(durable);
            let outcome = self
                .engine
                .apply(Now::default(), command, &Facts::default());
            let answered = self.release(outcome);
            released.replies.extend(answered.replies);
            released.notices.extend(answered.notices);
            released.events.extend(answered.events);
        }
        while let Some(entry) = self.waiting.first_entry()
            && *entry.key() <= durable
        {
            released.replies.extend(entry.remove());
        }
        while let Some(entry) = self.untold.first_entry()
            && *entry.key() <= durable
        {
            released.events.extend(entry.remove());
        }
        released
    }

    /// Holds a reply back until everything that was sealed so far is durable.
    pub fn defer(&mut self, mut reply: Reply) -> Released {
        reply.after = self.sealed;
        self.release(Outcome {
            replies: vec![reply],
            ..Outcome::default()
        })
    }

    /// Nobody follows any more what happens.
    pub fn unwatch(&mut self) {
        let command = Command::Watch(false);
        self.engine
            .apply(Now::default(), command, &Facts::default());
        self.untold.clear();
    }

    fn release(&mut self, outcome: Outcome) -> Released {
        let Outcome {
            replies,
            notices,
            session,
            answer,
            lapsed,
            events,
        } = outcome;
        for (namespace, batch) in lapsed {
            tracing::warn!(%namespace, %batch, "nobody committed the batch within 24 h; it is closed");
        }
        let mut released = Released {
            replies: Vec::new(),
            notices,
            events: Vec::new(),
            answer,
            session,
        };
        match self.replies_wait {
            // Everything that happens is in the group that is open.
            true if !events.is_empty() => {
                let group = self.engine.open_group();
                self.untold.entry(group).or_default().extend(events);
            }
            true => {}
            false => released.events = events,
        }
        for reply in replies {
            if reply.after <= self.durable || !self.replies_wait {
                released.replies.push(reply);
            } else {
                self.waiting.entry(reply.after).or_default().push(reply);
            }
        }
        released
    }

    /// Whether somebody waits for a sync that has not begun.
    pub fn is_awaited(&self) -> bool {
        let last = self.waiting.last_key_value();
        self.replies_wait && self.engine.is_awaited()
            || last.is_some_and(|(group, _)| *group > self.syncing)
    }

    /// Replies that wait for a sync that is under way.
    pub fn syncing_replies(&self) -> usize {
        let under_way = self.waiting.range(..=self.syncing);
        under_way.map(|(_, replies)| replies.len()).sum()
    }

    /// Whether there is anything that no sync has begun for.
    pub fn is_unsynced(&self) -> bool {
        self.engine.has_changes() || self.sealed > self.syncing
    }

    /// Whether there is anything that is not durable.
    pub fn is_dirty(&self) -> bool {
        self.engine.has_changes() || self.sealed > self.durable
    }

    /// Bytes that are not durable yet, about.
    pub fn undurable_bytes(&self) -> usize {
        self.undurable_bytes + self.engine.open_size().1
    }

    /// How long until a [`Command::Tick`] has something to do; `None`: never.
    pub fn next_wakeup(&self, now: Now) -> Option<DurationMs> {
        self.engine.next_wakeup(now)
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The store, to read from.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The queue that a list is about.
    ///
    /// # Errors
    /// `not_found` when there is none of this name.
    pub fn queue_named(
        &self,
        origin: &Origin,
        name: &ganger_protocol::QueueName,
    ) -> Result<ganger_engine::records::QueueNumber, WireError> {
        self.engine.queue_named(origin, name)
    }
}
