//! Cron entries: administrators set, pause and delete them in a namespace of their own, a worker acks
//! what they push. Each entry has a queue of its own name, so that the counters of that queue are the
//! entry's own account of what it pushed, in the very group in which it advanced.
//!
//! What is known here is what was told, as in [`crate::history`]; what a crash left is looked at in
//! [`World::audit_crons`].

use std::collections::HashMap;

use ganger_engine::command::ConnectionId;
use ganger_protocol::{
    CronName, DurationMs, ErrorCode, JobId, JobSpec, NamespaceName, SessionId, WireError,
    cron::{AT_HEADER, CronSet, CronView, Misfire, NAME_HEADER, Overlap},
    job::GrantedJob,
    request::{Ack, AckItem, CronList, CronNames, Fetch, Operation, QueueList, SessionHello},
    response::{Counters, ReplyBody},
};

use crate::{
    clients::Asked,
    history::Checked,
    world::{From, World, unexpected},
};

/// Entries of a run at most, those that were deleted too: a name is never used again.
const ENTRIES_MAX: usize = 6;

/// Missed times that an entry with `all` makes up for.
const MISFIRE_MAX: u32 = 100;

/// What a request about entries was.
#[derive(Debug)]
pub enum AskedCron {
    Set(usize),
    /// An entry, and whether it exists for certain.
    Delete(usize, bool),
    /// An entry, whether it exists for certain, what it is to be, and the operation.
    Pause(usize, bool, bool, u64),
    Fetch,
    Ack,
}

/// What is known of cron entries.
#[derive(Debug, Default)]
pub struct Crons {
    entries: Vec<Entry>,
    /// Which job a time of an entry has pushed.
    jobs: HashMap<(String, u64), JobId>,
    worker: Option<(ConnectionId, SessionId)>,
    held: Vec<AckItem>,
    is_fetching: bool,
}

#[derive(Debug)]
struct Entry {
    set: CronSet,
    /// Distances that it has ever had.
    distances: Vec<u64>,
    is_told: bool,
    /// A deletion was applied; whether it holds is known once it was told.
    is_deleted: bool,
    is_deletion_told: bool,
    /// The last pause or resumption that was told, unless another was applied since.
    paused: Option<bool>,
    operation: u64,
    /// Whether each of its times pushes a job: nothing ever changes, and none is left out.
    is_complete: bool,
    /// Jobs pushed and the last time, when it was last looked at.
    seen: Option<(u64, u64)>,
}

impl Entry {
    fn is_certain(&self) -> bool {
        self.is_told && !self.is_deleted
    }
}

impl Crons {
    /// All connections are gone.
    pub fn server_ended(&mut self) {
        self.worker = None;
        self.held.clear();
        self.is_fetching = false;
    }

    /// Whether a connection is that of the worker here.
    pub fn is_own(&self, connection: ConnectionId) -> bool {
        self.worker.is_some_and(|(own, _)| own == connection)
    }

    fn position(&self, name: &CronName) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| entry.set.name == *name)
    }
}

fn namespace() -> NamespaceName {
    "cron".parse().expect("a legal name")
}

impl World {
    pub fn step_cron(&mut self) -> Checked {
        if !self.is_up() {
            return Ok(());
        }
        match self.rng.u32(..20) {
            0..4 => self.set_cron(),
            4 | 5 => self.pause_cron(),
            6 if self.rng.u32(..6) == 0 => self.delete_cron(),
            _ => self.work_cron(),
        }
    }

    fn next_from(&mut self) -> From {
        From {
            connection: self.connect(),
            namespace: namespace(),
            session: None,
            producer: None,
        }
    }

    /// Sets a new entry, or one that exists again, perhaps with another distance.
    fn set_cron(&mut self) -> Checked {
        let count = self.crons.entries.len();
        let is_new = count == 0 || count < ENTRIES_MAX && self.rng.u32(..4) == 0;
        let nth = match is_new {
            true => self.add_cron(),
            false => self.rng.usize(..count),
        };
        let distance = self.rng.u64(500..20_000);
        let is_other = !is_new && self.rng.u32(..4) == 0;
        let entry = &mut self.crons.entries[nth];
        if entry.is_deleted {
            return Ok(());
        }
        if is_other && !entry.is_complete {
            entry.set.every_ms = Some(DurationMs(distance));
            entry.distances.push(distance);
        }
        let set = entry.set.clone();
        let from = self.next_from();
        self.trace.note(
            self.elapsed(),
            "cron entry {} is set, every {} ms",
            &[nth as u64, set.every_ms.unwrap_or_default().0],
        );
        let asked = Asked::Cron(AskedCron::Set(nth));
        self.request(&from, Operation::CronSet(Box::new(set)), asked)
    }

    fn add_cron(&mut self) -> usize {
        let nth = self.crons.entries.len();
        let name: CronName = format!("c{nth}").parse().expect("a legal name");
        let job = JobSpec {
            queue: name.as_str().parse().expect("a legal name"),
            ..JobSpec::new("tick".parse().expect("a legal name"), &b"tick"[..])
        };
        let is_complete = self.rng.u32(..3) == 0;
        // A step of the clock by an hour leaves out no more times than it makes up for.
        let distance = match is_complete {
            true => self.rng.u64(60_000..200_000),
            false => self.rng.u64(500..20_000),
        };
        let pick = |nth: u32| match nth {
            0 => (Misfire::Skip, Overlap::Skip),
            1 => (Misfire::Once, Overlap::QueueOne),
            _ => (Misfire::All, Overlap::Allow),
        };
        let (misfire, overlap) = match is_complete {
            true => (Misfire::All, Overlap::Allow),
            false => (pick(self.rng.u32(..3)).0, pick(self.rng.u32(..3)).1),
        };
        let set = CronSet {
            every_ms: Some(DurationMs(distance)),
            misfire,
            misfire_max: (misfire == Misfire::All).then_some(MISFIRE_MAX),
            overlap,
            jitter_ms: DurationMs(self.rng.u64(..=500)),
            ..CronSet::new(name, job)
        };
        self.crons.entries.push(Entry {
            set,
            distances: vec![distance],
            is_told: false,
            is_deleted: false,
            is_deletion_told: false,
            paused: None,
            operation: 0,
            is_complete,
            seen: None,
        });
        nth
    }

    fn pause_cron(&mut self) -> Checked {
        if self.crons.entries.is_empty() {
            return Ok(());
        }
        let nth = self.rng.usize(..self.crons.entries.len());
        let is_paused = self.rng.bool();
        if self.crons.entries[nth].is_complete {
            return Ok(());
        }
        self.pause_entry(nth, is_paused)
    }

    fn pause_entry(&mut self, nth: usize, is_paused: bool) -> Checked {
        let operation = self.history.operation();
        let entry = &mut self.crons.entries[nth];
        let is_certain = entry.is_certain();
        entry.paused = None;
        entry.operation = operation;
        let names = CronNames {
            names: vec![entry.set.name.clone()],
        };
        let request = match is_paused {
            true => Operation::CronPause(names),
            false => Operation::CronResume(names),
        };
        let from = self.next_from();
        let asked = Asked::Cron(AskedCron::Pause(nth, is_certain, is_paused, operation));
        self.request(&from, request, asked)
    }

    fn delete_cron(&mut self) -> Checked {
        if self.crons.entries.is_empty() {
            return Ok(());
        }
        let nth = self.rng.usize(..self.crons.entries.len());
        let entry = &mut self.crons.entries[nth];
        let is_certain = entry.is_certain();
        entry.is_deleted = true;
        let names = CronNames {
            names: vec![entry.set.name.clone()],
        };
        let from = self.next_from();
        let asked = Asked::Cron(AskedCron::Delete(nth, is_certain));
        self.request(&from, Operation::CronDelete(names), asked)
    }

    /// The worker opens its session, acks what it has, or fetches.
    fn work_cron(&mut self) -> Checked {
        let Some((connection, session)) = self.crons.worker else {
            let from = self.next_from();
            let hello = SessionHello {
                ttl_ms: Some(DurationMs(20_000)),
                ..SessionHello::default()
            };
            let opened = self.open_session(&from, hello)?;
            self.crons.worker = opened.map(|opened| (from.connection, opened.id));
            return Ok(());
        };
        let from = From {
            connection,
            namespace: namespace(),
            session: Some(session),
            producer: None,
        };
        let held = std::mem::take(&mut self.crons.held);
        if !held.is_empty() {
            let ack = Operation::Ack(Ack { leases: held });
            return self.request(&from, ack, Asked::Cron(AskedCron::Ack));
        }
        if std::mem::replace(&mut self.crons.is_fetching, true) {
            return Ok(());
        }
        let fetch = Fetch {
            queues: vec!["*".parse().expect("a legal pattern")],
            max: 20,
            ..Fetch::default()
        };
        self.request(
            &from,
            Operation::Fetch(fetch),
            Asked::Cron(AskedCron::Fetch),
        )
    }

    /// A request about entries was answered.
    pub fn cron_reply(
        &mut self,
        asked: AskedCron,
        result: Result<ReplyBody, WireError>,
    ) -> Checked {
        let is_missing = |error: &WireError| error.code == ErrorCode::NotFound;
        match (asked, result) {
            (AskedCron::Set(nth), Ok(ReplyBody::Cron(view))) => {
                let entry = &mut self.crons.entries[nth];
                entry.is_told = true;
                self.see_cron(nth, &view)
            }
            (AskedCron::Delete(nth, _), Ok(ReplyBody::Done(_))) => {
                self.crons.entries[nth].is_deletion_told = true;
                Ok(())
            }
            (AskedCron::Pause(nth, _, is_paused, operation), Ok(ReplyBody::Done(_))) => {
                let entry = &mut self.crons.entries[nth];
                if entry.operation == operation {
                    entry.paused = Some(is_paused);
                }
                Ok(())
            }
            (
                AskedCron::Delete(_, is_certain) | AskedCron::Pause(_, is_certain, ..),
                Err(error),
            ) if is_missing(&error) && !is_certain => Ok(()),
            (AskedCron::Fetch, Ok(ReplyBody::Fetch(reply))) => {
                self.crons.is_fetching = false;
                reply.jobs.iter().try_for_each(|job| self.cron_job(job))
            }
            (AskedCron::Ack, Ok(ReplyBody::Lease(_))) => Ok(()),
            (AskedCron::Fetch | AskedCron::Ack, Err(error)) if is_missing(&error) => {
                self.crons.server_ended();
                Ok(())
            }
            (asked, other) => Err(format!("{asked:?} was answered by {other:?}")),
        }
    }

    /// I10 and I15: a job stands for a time of its entry that has come, and for no other's.
    fn cron_job(&mut self, job: &GrantedJob) -> Checked {
        let header = |name: &str| job.headers.get(name).cloned().unwrap_or_default();
        let name = header(NAME_HEADER);
        let at: u64 = header(AT_HEADER).parse().map_err(|_| "no nominal time")?;
        let entry = name
            .parse()
            .ok()
            .and_then(|name| self.crons.position(&name));
        let Some(entry) = entry.map(|nth| &self.crons.entries[nth]) else {
            return Err(format!("I2: there never was a cron entry {name:?}"));
        };
        if !entry
            .distances
            .iter()
            .any(|distance| at.is_multiple_of(*distance))
        {
            return Err(format!("I15: {at} is no time of {name}"));
        }
        if at > self.clock.latest() {
            return Err(format!("I10: {name} pushed for {at} before it had come"));
        }
        self.crons.held.push(AckItem::of(job.id, job.lease));
        let known = *self.crons.jobs.entry((name, at)).or_insert(job.id);
        match known == job.id {
            true => Ok(()),
            false => Err(format!(
                "I15: {:?} and {known:?} are for one time, {at}",
                job.id
            )),
        }
    }

    /// What is durable of an entry and was shown.
    fn see_cron(&mut self, nth: usize, view: &CronView) -> Checked {
        let entry = &mut self.crons.entries[nth];
        let distance = entry.distances[0];
        // Before the first time has come the one before it stands for the last, if it stays first.
        let first = view.next_at.first().filter(|_| entry.is_complete);
        let before = first.map(|at| at.0 - distance);
        let Some(last) = view.last_at.map(|at| at.0).or(before) else {
            return Ok(());
        };
        let seen = entry.seen.get_or_insert((view.pushed, last));
        // A reply is of the moment at which it was decided: one of later may have come before.
        if last < seen.1 {
            return Ok(());
        }
        let (pushed, times) = (view.pushed - seen.0.min(view.pushed), last - seen.1);
        *seen = (view.pushed, last);
        if entry.is_complete && pushed != times / distance {
            return Err(format!(
                "I15: cron entry {nth} pushed {pushed} jobs in {times} ms, one every {distance}"
            ));
        }
        Ok(())
    }

    /// Looks at every entry after a restart and at the end: each has pushed what its queue counts,
    /// and none has gone back.
    pub fn audit_crons(&mut self) -> Checked {
        let from = self.next_from();
        let list = CronList {
            cursor: None,
            limit: 100,
        };
        self.request(&from, Operation::CronList(list), Asked::Audit)?;
        let views = match self.clients.audited.take() {
            None => return Ok(()),
            Some(Ok(ReplyBody::Crons(reply))) => reply.entries,
            Some(Ok(other)) => return Err(unexpected(&other)),
            Some(Err(error)) => return Err(format!("{error:?}")),
        };
        let Some(counters) = self.cron_counters(&from)? else {
            return Ok(());
        };
        for (nth, entry) in self.crons.entries.iter().enumerate() {
            let view = views.iter().find(|view| view.name == entry.set.name);
            let is_right = match view {
                None => !entry.is_certain(),
                Some(_) if entry.is_deletion_told => false,
                Some(view) => {
                    entry.paused.is_none_or(|paused| paused == view.paused)
                        && view.last_at.is_none_or(|at| at.0 <= self.clock.latest())
                        && entry.seen.is_none_or(|(pushed, last)| {
                            view.pushed >= pushed
                                && (view.last_at.is_some_and(|at| at.0 >= last)
                                    || pushed == view.pushed)
                        })
                }
            };
            if !is_right {
                return Err(format!("I15: cron entry {nth}, {entry:?}, is {view:?}"));
            }
            let counted = counters.get(entry.set.name.as_str()).copied();
            if let Some(view) = view
                && counted.unwrap_or_default().pushed != view.pushed
            {
                return Err(format!(
                    "I15: cron entry {nth} pushed {}, its queue counts {counted:?}",
                    view.pushed
                ));
            }
        }
        for view in &views {
            match self.crons.position(&view.name) {
                Some(nth) => self.see_cron(nth, view)?,
                None => return Err(format!("nobody has set {}", view.name)),
            }
        }
        Ok(())
    }

    /// The counters of all queues of entries, by name.
    fn cron_counters(&mut self, from: &From) -> Checked<Option<HashMap<String, Counters>>> {
        let list = Operation::QueueList(QueueList { pattern: None });
        self.request(from, list, Asked::Audit)?;
        match self.clients.audited.take() {
            None => Ok(None),
            Some(Ok(ReplyBody::Queues(reply))) => {
                let queues = reply.queues.into_iter();
                let queues = queues.map(|view| (view.name.to_string(), view.counters));
                Ok(Some(queues.collect()))
            }
            Some(other) => Err(format!("a list was answered by {other:?}")),
        }
    }

    /// The entries push no more, and what they have pushed comes to its end.
    pub fn drain_crons(&mut self) -> Checked {
        for nth in 0..self.crons.entries.len() {
            self.pause_entry(nth, true)?;
        }
        self.settle()?;
        let from = self.next_from();
        for _ in 0..3_000 {
            self.tick(100)?;
            self.work_cron()?;
            self.settle()?;
            let Some(counters) = self.cron_counters(&from)? else {
                return Ok(());
            };
            let waiting = |counters: &Counters| counters.kept() - counters.dead;
            if counters.values().map(waiting).sum::<u64>() == 0 {
                return self.audit_crons();
            }
            if self.crons.held.is_empty() {
                // Well within the ttl of the worker.
                self.sleep_until_wakeup(5_000);
            }
        }
        Err("I17: the jobs of cron entries do not drain".to_owned())
    }
}
