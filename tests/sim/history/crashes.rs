//! What a crash leaves, and what an audit finds.

use std::collections::BTreeSet;

use ganger_protocol::{
    LeaseId,
    job::{JobState, JobView},
};

use super::{Checked, History, Last, Over, Presence};

impl History {
    /// The server stops, whatever the reason.
    pub fn stopped(&mut self, mono: u64) {
        let sessions = &mut self.sessions;
        for session in sessions.values_mut() {
            session.is_doubtful |= !session.lives(mono) && !session.is_gone;
        }
        for number in &self.open_leases {
            let Some(lease) = self.leases.get_mut(number) else {
                continue;
            };
            let session = self.sessions.get(&lease.session);
            let lives = session.is_some_and(|it| it.lives(mono)) && mono < lease.deadline;
            lease.is_doubtful |= !lives;
        }
    }

    /// The server starts again with everything up to this group.
    pub fn restarted(&mut self, group: u64) -> Checked {
        self.floor = self.highest;
        self.tried.clear();
        self.restart_pushes(group)?;
        for pauses in &mut self.pauses {
            // One that was told and is in no group has changed nothing.
            pauses.retain(|pause| pause.group <= group || pause.is_told);
        }
        for session in self.sessions.values_mut() {
            session.is_gone |= session.group > group;
            session.ending = session.ending.filter(|ending| *ending <= group);
            session.seen = 0;
        }
        self.restart_leases(group);
        for token in &self.live {
            let job = &mut self.jobs[*token];
            job.doubts.retain(|doubt| doubt.group <= group);
            job.keyless = None;
            job.last = match job.last {
                Last::Granted { .. } => Last::Unknown,
                // Its push was not answered, perhaps nor was a fetch that got it.
                Last::Nothing if job.id.is_none() => Last::Unknown,
                last => last,
            };
        }
        for fresh in &mut self.fresh {
            fresh.clear();
        }
        Ok(())
    }

    fn restart_pushes(&mut self, group: u64) -> Checked {
        let pushes: BTreeSet<usize> = self.live.iter().map(|job| self.jobs[*job].push).collect();
        for push in pushes {
            let entry = &mut self.pushes[push];
            entry.applied.retain(|applied| applied.group <= group);
            if entry.applied.is_empty() {
                if entry.is_told {
                    return Err(format!("I1: push {push} was answered ok and is lost"));
                }
                for job in entry.jobs.clone() {
                    self.live.remove(&job);
                }
            }
        }
        Ok(())
    }

    fn restart_leases(&mut self, group: u64) {
        let mut over = Vec::new();
        for number in &self.open_leases {
            let Some(lease) = self.leases.get_mut(number) else {
                continue;
            };
            lease.doubts.retain(|(_, doubt)| *doubt <= group);
            match lease.ended {
                Some(ended) if ended > group => {
                    lease.ended = None;
                    lease.is_doubtful = true;
                }
                Some(_) => {
                    over.push(*number);
                    continue;
                }
                None => {}
            }
            if lease.groups.0 > group {
                lease.ended = Some(0);
                over.push(*number);
                continue;
            }
            lease.is_doubtful |= lease.groups.1 > group;
            let ttl = self
                .sessions
                .get(&lease.session)
                .map_or(0, |session| session.ttl);
            lease.deadline = 2 * ttl;
        }
        for number in over {
            self.open_leases.remove(&number);
        }
    }

    /// A job was looked at when nothing was in flight.
    pub fn audited(&mut self, token: usize, view: Option<&JobView>, mono: u64) -> Checked {
        let Some(view) = view else {
            if self.presence(token) == Presence::There {
                return Err(format!("I1: job {token} is lost"));
            }
            if self.jobs[token].over.is_none() {
                self.end(token, Over::Gone);
            }
            return Ok(());
        };
        if self.presence(token) == Presence::Gone {
            return Err(format!(
                "I4: job {token} is {:?} and there",
                self.jobs[token].over
            ));
        }
        self.check_view(token, view)?;
        self.check_known(token, view)?;
        for number in &self.jobs[token].leases {
            let is_it = view.lease == Some(LeaseId(*number));
            if self.lives(LeaseId(*number), mono) && !is_it {
                return Err(format!(
                    "lease {number} of job {token} lives; the job is {view:?}"
                ));
            }
        }
        let job = &mut self.jobs[token];
        for number in &job.leases {
            let is_it = view.lease == Some(LeaseId(*number));
            if let Some(lease) = self.leases.get_mut(number) {
                lease.doubts.clear();
                match is_it {
                    true if lease.ended.is_some() => {
                        return Err(format!(
                            "I8: lease {number} of job {token} is over and lives"
                        ));
                    }
                    true => {}
                    false => {
                        lease.ended.get_or_insert(0);
                    }
                }
            }
        }
        job.doubts.clear();
        let (attempt, failures) = (view.attempt, view.failures);
        job.last = match view.state {
            JobState::Dead => Last::Dead { attempt },
            JobState::Leased => Last::Granted { attempt, failures },
            _ if attempt == 0 => Last::Nothing,
            _ => Last::Idle { attempt, failures },
        };
        if view.state == JobState::Ready
            && attempt == 0
            && !job.was_delayed
            && job.expires_at.is_none()
        {
            let order = self.pushes[job.push]
                .applied
                .first()
                .map_or(0, |it| it.order);
            self.fresh[job.queue].insert((9 - job.priority, order, token));
        }
        Ok(())
    }

    fn check_known(&self, token: usize, view: &JobView) -> Checked {
        let job = &self.jobs[token];
        if !job.doubts.is_empty() {
            return Ok(());
        }
        let is_right = match job.last {
            Last::Dead { .. } => view.state == JobState::Dead,
            Last::Idle { attempt, failures } => {
                view.attempt >= attempt && view.failures >= failures
            }
            Last::Nothing | Last::Granted { .. } | Last::Unknown => true,
        };
        match is_right {
            true => Ok(()),
            false => Err(format!(
                "job {token} is known as {:?} and seen as {view:?}",
                job.last
            )),
        }
    }
}
