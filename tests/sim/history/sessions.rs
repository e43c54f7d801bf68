//! Sessions: which of them live for certain.

use ganger_protocol::{LeaseId, SessionId};

use super::{Checked, History, Session};

impl History {
    pub fn session_opened(&mut self, id: SessionId, ttl: u64, mono: u64, group: u64) {
        let session = self.sessions.entry(id.0).or_insert_with(|| Session {
            ttl,
            seen: mono,
            group,
            ending: None,
            is_gone: false,
            is_doubtful: false,
            resumed: (0, 0),
            leases: Vec::new(),
        });
        session.seen = mono;
        session.is_doubtful = false;
    }

    pub fn is_session_live(&self, id: SessionId, mono: u64) -> bool {
        self.sessions
            .get(&id.0)
            .is_some_and(|session| session.lives(mono))
    }

    /// A frame of a session has come.
    pub fn session_seen(&mut self, id: SessionId, mono: u64) {
        if let Some(session) = self.sessions.get_mut(&id.0) {
            if session.lives(mono) {
                session.seen = mono;
            } else {
                session.is_doubtful = true;
            }
        }
    }

    /// The server knew the session when it applied a frame of then.
    pub fn session_proven(&mut self, id: SessionId, mono: u64) -> Checked {
        let Some(session) = self.sessions.get_mut(&id.0) else {
            return Err(format!("session {id} was never opened"));
        };
        if session.is_gone {
            return Err(format!("session {id} is over and serves still"));
        }
        session.is_doubtful = false;
        session.seen = session.seen.max(mono);
        Ok(())
    }

    pub fn session_ending(&mut self, id: SessionId, group: u64) {
        if let Some(session) = self.sessions.get_mut(&id.0) {
            session.ending.get_or_insert(group);
        }
    }

    /// The server said that a session is over.
    pub fn session_over(&mut self, id: SessionId, was_live: bool) -> Checked {
        if was_live {
            return Err(format!("session {id} was lost before its ttl"));
        }
        if let Some(session) = self.sessions.get_mut(&id.0) {
            // Perhaps not durably, so that it is only doubtful after a crash.
            session.is_doubtful = true;
        }
        Ok(())
    }

    /// Goodbye was answered.
    pub fn goodbye_told(&mut self, id: SessionId, group: u64) -> Checked {
        if group > self.durable {
            return Err(format!(
                "goodbye of {id} was answered before it was durable"
            ));
        }
        if let Some(session) = self.sessions.get_mut(&id.0) {
            session.is_gone = true;
            for lease in &session.leases {
                if let Some(lease) = self.leases.get_mut(lease) {
                    lease.ended.get_or_insert(group);
                }
            }
        }
        Ok(())
    }

    /// A session goes on with the leases that it names: the others end at once.
    pub fn session_resumed(&mut self, id: SessionId, held: &[LeaseId], mono: u64, group: u64) {
        let Some(session) = self.sessions.get_mut(&id.0) else {
            return;
        };
        session.is_doubtful = false;
        session.seen = mono;
        self.operation += 1;
        session.resumed = (self.operation, group);
        for number in &session.leases {
            if let Some(lease) = self.leases.get_mut(number)
                && !held.contains(&LeaseId(*number))
            {
                lease.ended.get_or_insert(group);
            }
        }
    }
}

impl Session {
    pub(super) fn lives(&self, mono: u64) -> bool {
        !self.is_gone && !self.is_doubtful && self.ending.is_none() && mono < self.seen + self.ttl
    }
}
