//! From what the store found to an engine: counters, sessions, live leases, partly settled runs.
//! Nothing here grows with the backlog; windows and timers are read when they are needed.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;
use ganger_protocol::{JobId, job::JobState, limits::SESSION_TTL_DEFAULT};

use crate::{
    Engine, Options, POSITION_START, RESERVED_BLOCK,
    backoff::Random,
    batch::Batches,
    change::Change,
    command::Now,
    cron::Crons,
    facts::{Recovered, RecoveredLease},
    group::OpenGroup,
    keys::Keys,
    kinds::{KindNumber, Kinds},
    lease::{Lease, Leases},
    limits::{Limits, Opened},
    purge::Sweeps,
    push::Producers,
    queue::Queues,
    records::{GroupNumber, HeadRecord, PartKey, Place, StoredJob},
    schedule::Schedule,
    session::{Session, Sessions},
    waiters::Waiters,
    waits::Waits,
    workflow::Workflows,
};

impl Engine {
    /// An engine that goes on where the store stands. Its first group reserves numbers and must be
    /// durable before anything is granted.
    pub fn open(now: Now, options: Options, recovered: Recovered) -> Self {
        let head = recovered.head.unwrap_or(HeadRecord {
            wall: now.wall,
            position_high: POSITION_START,
            position_low: POSITION_START,
            reserved: 1,
            next_queue: 1,
        });
        let opened = Opened {
            at: now.mono,
            rested_ms: now.wall.since(head.wall).0,
        };
        let next_group = GroupNumber(recovered.group.0 + 1);
        let mut engine = Self {
            random: Random::seeded(options.seed),
            next_number: head.reserved,
            reserved_durably: head.reserved,
            durable: recovered.group,
            reserved_in: next_group,
            head: HeadRecord {
                reserved: head.reserved + RESERVED_BLOCK,
                ..head
            },
            queues: Queues::within(options.heads),
            runs: HashMap::default(),
            acks: BTreeMap::new(),
            lease_parts: BTreeMap::new(),
            kinds: Kinds::default(),
            happenings: Default::default(),
            leases: Leases::remembering(options.settled_max),
            sessions: Sessions::default(),
            waiters: Waiters::default(),
            waits: Waits::default(),
            schedule: Schedule::unknown(),
            producers: Producers::default(),
            crons: Crons::default(),
            batches: Batches::default(),
            workflows: Workflows::default(),
            limits: Limits::default(),
            keys: Keys::new(&options.secret, opened),
            queues_at_rate: BTreeSet::new(),
            awakened: BTreeSet::new(),
            spills: 0,
            sweeps: Sweeps::default(),
            unserved: BTreeSet::new(),
            overfull: BTreeSet::new(),
            stragglers: BTreeSet::new(),
            group: OpenGroup::numbered(next_group),
            options,
        };
        engine.group.is_head_touched = true;
        engine.group.is_awaited = true;
        for limit in recovered.limits {
            engine.limits.recover(limit);
        }
        for queue in recovered.queues {
            if queue.is_purged {
                engine.sweeps.insert(queue, recovered.group);
                continue;
            }
            let number = queue.number;
            engine.queues.insert(queue);
            engine.limit_queue(number);
            engine.watch_all_closed(number);
        }
        for cron in recovered.crons {
            engine.crons.recover(cron);
        }
        for batch in recovered.batches {
            engine.batches.recover(batch);
        }
        for session in recovered.sessions {
            engine.sessions.insert(Session::opened(session, now.mono));
        }
        engine.recover_acks(recovered.acks);
        engine.recover_leases(now, &head, recovered.leases);
        let runs: BTreeSet<_> = engine.runs.keys().copied().collect();
        for run in runs {
            engine.watch_straggler(run, now.mono);
        }
        engine.go_on_with_batches(now);
        engine
    }

    fn recover_acks(&mut self, acks: Vec<(PartKey, Vec<crate::records::LeftRun>)>) {
        for (part, rows) in acks {
            if rows.is_empty() {
                self.group.delete(Change::DeleteAcks(part));
                continue;
            }
            self.acks
                .insert(part, u32::try_from(rows.len()).unwrap_or(u32::MAX));
            for row in rows {
                let state = self.runs.entry(row.run).or_default();
                state.entries = row.entries;
                state.left.extend(&row.left);
                state.acks.push(part);
            }
        }
    }

    /// Of all that was written about a job's leases the latest counts, unless it is settled.
    fn recover_leases(
        &mut self,
        now: Now,
        head: &HeadRecord,
        leases: Vec<(PartKey, Vec<RecoveredLease>)>,
    ) {
        let mut latest: BTreeMap<JobId, (PartKey, RecoveredLease)> = BTreeMap::new();
        let mut parts = BTreeSet::new();
        for (part, rows) in leases {
            parts.insert(part);
            for row in rows {
                let job = row.record.job;
                let is_later = latest.get(&job).is_none_or(|(known_part, known)| {
                    (row.record.lease, part) > (known.record.lease, *known_part)
                });
                if is_later {
                    latest.insert(job, (part, row));
                }
            }
        }
        // By their numbers, in the order of which they are kept: one is put behind the others.
        let mut latest: Vec<_> = latest.into_iter().collect();
        latest.sort_unstable_by_key(|(_, (_, row))| row.record.lease);
        for (job, (part, row)) in latest {
            if self.recover_lease(now, head, part, &row) {
                let count = self.lease_parts.entry(part).or_default();
                *count += 1;
            } else {
                debug_assert!(self.leases.find(&job).is_none(), "{job:?} is leased twice");
            }
        }
        for part in parts
            .into_iter()
            .filter(|part| !self.lease_parts.contains_key(part))
        {
            self.group.delete(Change::DeleteLeases(part));
        }
    }

    /// Takes a lease up again; whether it lives.
    fn recover_lease(
        &mut self,
        now: Now,
        head: &HeadRecord,
        part: PartKey,
        row: &RecoveredLease,
    ) -> bool {
        let record = &row.record;
        // Whether the job still lives in its run of birth: it may have been granted from another.
        let birth = Place::of_birth(&record.job);
        let run = self.runs.get(&birth.run);
        let has_left = run.is_some_and(|run| run.left.contains(birth.index));
        let (queue, place, has_record, spilled_parts) = match &row.job {
            None => return false,
            Some(StoredJob::Packed { job, .. }) if !has_left => (
                record.place.run.lane.queue,
                Some(record.place),
                false,
                job.spilled_parts,
            ),
            Some(StoredJob::Packed { .. } | StoredJob::Scheduled { .. }) => return false,
            Some(StoredJob::Record(job)) => {
                let is_open = matches!(job.state, JobState::Ready | JobState::Leased);
                if job.settled_lease >= record.lease || !is_open {
                    return false;
                }
                (job.queue, job.place, true, job.spilled_parts)
            }
        };
        if self.queues.find(queue).is_none() {
            return false;
        }
        let (content, batch) = match &row.job {
            Some(StoredJob::Record(job)) => (job.content.as_deref(), job.batch),
            Some(StoredJob::Packed { job, .. }) => {
                let content = job.content.as_deref();
                (content, content.and_then(|content| content.batch))
            }
            Some(StoredJob::Scheduled { .. }) | None => (None, None),
        };
        let key = self.key_of_lease(record.job, content);
        let retains = content.and_then(|content| content.retain_ms);
        let of_queue = self.queues.find(queue);
        let retains = retains.or_else(|| of_queue?.record.retain_ms);
        let ttl = self
            .sessions
            .find(record.session)
            .map(|session| session.record.ttl);
        let Some(session) = self.sessions.find_mut(record.session) else {
            return false;
        };
        let cancel_at = match &row.job {
            Some(StoredJob::Record(job)) => job.cancel_at,
            Some(StoredJob::Packed { .. } | StoredJob::Scheduled { .. }) | None => None,
        };
        session.leases.insert(record.lease, record.job);
        if cancel_at.is_some() {
            session.cancels.insert(record.job);
        }
        let grace = ttl.unwrap_or(SESSION_TTL_DEFAULT).times(2);
        let rest = record.deadline.since(head.wall).max(grace);
        if let Some(place) = place {
            let state = self.runs.entry(place.run).or_default();
            state.entries = row.run_entries;
            state.leased += 1;
        }
        if record.key != 0 {
            self.keys.take_slot(record.key);
        }
        self.leases.insert(
            record.job,
            Lease {
                number: record.lease,
                queue,
                session: record.session,
                deadline: now.mono.plus(rest),
                place,
                has_record,
                spilled_parts,
                kind: KindNumber::NONE,
                attempt: record.attempt,
                lane: record.key,
                key,
                batch,
                is_node: content.is_some_and(|content| content.node.is_some()),
                retains: retains.is_some(),
                cancel_at,
                part: Some(part),
            },
        );
        true
    }
}
