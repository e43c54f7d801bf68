//! Fetch: jobs are taken in the order that was asked for, each gets a lease; a fetch that finds
//! none stands in line.

use std::{collections::BTreeSet, sync::Arc};

use ganger_protocol::{
    Bytes, DurationMs, ErrorCode, JobId, NamespaceName, SessionId, WireError,
    event::EventName,
    job::{GrantedJob, JobState},
    limits::{SESSION_WAITERS_MAX, TIMEOUT_DEFAULT},
    request::Fetch,
    response::{FetchReply, LeaseResult, ReplyBody},
};

use crate::{
    Engine,
    command::{ConnectionId, Now, Origin, Outcome, Reply},
    events::Subject,
    facts::{Facts, Need},
    lanes::Next,
    lease::{Answer, Lease},
    lease_id,
    records::{Content, GroupNumber, Lane, LeaseRecord, QueueNumber},
    shares::Shares,
    waiters::{Ticket, Until, Waiter},
    window::{Head, HeadJob},
};

/// No further job once the contents of a reply have so many bytes, so that it fits in a frame.
const REPLY_BYTES_MAX: usize = 4 << 20;

/// Jobs of a fetch for which there is room from the start.
const GRANTS_ROOM: usize = 100;

/// Jobs that were taken for one fetch.
#[derive(Debug, Default)]
struct Grants {
    jobs: Vec<GrantedJob>,
    bytes: usize,
    after: GroupNumber,
}

impl Engine {
    pub(crate) fn needs_of_fetch(
        &self,
        now: Now,
        origin: &Origin,
        fetch: &Fetch,
        facts: &Facts,
    ) -> Vec<Need> {
        let fails = fetch.fails.iter().map(|item| (item.job, item.lease));
        let mut needs = self.needs_of_acks(&fetch.acks);
        needs.extend(self.needs_of_answers(fails, Some(Answer::Fail)));
        let is_strict = fetch.weights.is_empty();
        let mut wanted = fetch.max as usize;
        for (queue, _) in self.candidates(&origin.namespace, fetch) {
            let Some(queue) = self.queues.find(queue) else {
                continue;
            };
            let mut missing = wanted;
            for (priority, window) in queue.windows() {
                if queue.rings.is_some() {
                    needs.extend(self.needs_of_lanes(queue.record.number, priority, facts));
                }
                if window.is_idle() {
                    continue;
                }
                let live = window.live(missing, now.wall);
                if window.is_short_of_live(missing, live) {
                    let lane = Lane {
                        queue: queue.record.number,
                        priority,
                        lane: 0,
                    };
                    needs.push(self.need_of_heads(lane, window.end));
                    break;
                }
                missing -= live;
            }
            if is_strict {
                wanted = missing;
            }
            if wanted == 0 {
                break;
            }
        }
        needs
    }

    pub(crate) fn need_of_heads(&self, lane: Lane, after: Option<(u64, u8)>) -> Need {
        let (entries, bytes) = self.queues.refill_room();
        Need::Heads {
            lane,
            after,
            entries_max: u32::try_from(entries).unwrap_or(u32::MAX),
            bytes_max: u32::try_from(bytes).unwrap_or(u32::MAX),
        }
    }

    pub(crate) fn fetch(
        &mut self,
        now: Now,
        origin: Origin,
        mut fetch: Fetch,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> Result<Option<ReplyBody>, WireError> {
        let session = self.known_session(origin.session)?;
        let carried = (
            std::mem::take(&mut fetch.acks),
            std::mem::take(&mut fetch.fails),
        );
        let is_carrying = !carried.0.is_empty() || !carried.1.is_empty();
        if !is_carrying {
            self.check_session_room(session, &fetch)?;
        }
        let acks = carried
            .0
            .iter()
            .map(|item| self.ack_one(now, &origin, item, facts))
            .collect();
        let fails: Vec<LeaseResult> = carried
            .1
            .into_iter()
            .map(|item| self.fail_one(now, &origin, item, facts))
            .collect();
        let mut grants = Grants::default();
        self.collect(now, session, &origin.namespace, &fetch, &mut grants);
        let is_answered = !grants.jobs.is_empty()
            || fetch.max == 0
            || !is_carrying
                && fetch.wait_ms == DurationMs::ZERO
                && !self.is_for_the_tick(now, &origin.namespace, &fetch);
        if is_carrying {
            grants.after = grants.after.max(self.own_group());
        }
        // Answers that changed nothing need not wait for anything to be durable.
        if is_answered || is_carrying && grants.after <= self.durable {
            let body = FetchReply {
                jobs: grants.jobs,
                acks,
                fails,
            };
            outcome.replies.push(Reply {
                caller: origin.caller,
                after: grants.after,
                result: Ok(ReplyBody::Fetch(body)),
            });
            return Ok(None);
        }
        let until = match is_carrying {
            true => Until::Durable {
                group: grants.after,
                acks,
                fails,
            },
            false => Until::Deadline(now.mono.plus(fetch.wait_ms)),
        };
        self.stand(session, origin, fetch, until);
        Ok(None)
    }

    fn check_session_room(&self, session: SessionId, fetch: &Fetch) -> Result<(), WireError> {
        let Some(session) = self.sessions.find(session) else {
            return Ok(());
        };
        let max = self.options.limits.session_leases_max;
        let refusal = |message: String, max: usize| WireError {
            limit: Some(max as u64),
            actual: Some(max as u64),
            ..WireError::overloaded(message, DurationMs::from_secs(1))
        };
        if fetch.max > 0 && session.leases.len() >= max {
            return Err(refusal(
                format!("a session may hold {max} leases; answer some first"),
                max,
            ));
        }
        if session.waiters.len() >= SESSION_WAITERS_MAX {
            let max = SESSION_WAITERS_MAX;
            return Err(refusal(
                format!("{max} fetches of a session may wait at a time"),
                max,
            ));
        }
        Ok(())
    }

    /// The queues of a fetch that give leases, in order, each once, with its weight.
    fn candidates(&self, namespace: &NamespaceName, fetch: &Fetch) -> Vec<(QueueNumber, u32)> {
        let weights = fetch.weights.iter().copied().chain(std::iter::repeat(1));
        let mut candidates: Vec<(QueueNumber, u32)> = Vec::new();
        let mut known = BTreeSet::new();
        let is_alone = fetch.queues.len() == 1;
        for (pattern, weight) in fetch.queues.iter().zip(weights) {
            for queue in self.queues.matching(namespace, pattern) {
                let number = queue.record.number;
                if !queue.record.paused && (is_alone || known.insert(number)) {
                    candidates.push((number, weight));
                }
            }
        }
        candidates
    }

    /// Whether the next tick may find something for a fetch that found nothing: more must be read or
    /// moved, or the rate of a key has let its jobs through.
    fn is_for_the_tick(&mut self, now: Now, namespace: &NamespaceName, fetch: &Fetch) -> bool {
        if self.keys.next().is_some_and(|at| at <= now.mono) {
            return true;
        }
        let unread = self.keys.unread_queues();
        let mut candidates = self.candidates(namespace, fetch).into_iter();
        candidates.any(|(queue, _)| {
            unread.contains(&queue) || self.next_lane(now, queue) != Next::Nothing
        })
    }

    /// Takes jobs for a fetch, in its order.
    fn collect(
        &mut self,
        now: Now,
        session: SessionId,
        namespace: &NamespaceName,
        fetch: &Fetch,
        grants: &mut Grants,
    ) {
        let held = self
            .sessions
            .find(session)
            .map_or(usize::MAX, |session| session.leases.len());
        let room = self.options.limits.session_leases_max.saturating_sub(held);
        let max = room.min(fetch.max as usize);
        let candidates = self.candidates(namespace, fetch);
        if fetch.weights.is_empty() {
            for (queue, _) in candidates {
                if !grants.has_room(max) {
                    return;
                }
                let ready = self.queues.find(queue).map(|it| it.record.counters.ready);
                let ready = usize::try_from(ready.unwrap_or_default()).unwrap_or(usize::MAX);
                let wanted = max - grants.jobs.len();
                grants.jobs.reserve(ready.min(wanted).min(GRANTS_ROOM));
                while grants.has_room(max) && self.take_from(now, queue, session, grants) {}
            }
            return;
        }
        self.collect_by_weight(now, session, fetch, candidates, (max, grants));
    }

    /// Takes jobs for a fetch, the shares of its queues following their weights.
    fn collect_by_weight(
        &mut self,
        now: Now,
        session: SessionId,
        fetch: &Fetch,
        candidates: Vec<(QueueNumber, u32)>,
        (max, grants): (usize, &mut Grants),
    ) {
        let owner = self.sessions.find_mut(session);
        let Some(owner) = owner.filter(|_| grants.has_room(max)) else {
            return;
        };
        let mut shares = Shares::begin(candidates, owner.deficits(&fetch.queues));
        for share in shares.iter_mut() {
            share.next = self.lane_at_hand(now, share.queue);
        }
        while let Some(lane) = shares.next_turn()
            && self.take_from_lane(now, lane, session, grants)
            && grants.has_room(max)
        {
            // It may have been the last job of its queue, and may have taken the last slot of its key in
            // all of them. Nothing else of a grant keeps another queue from giving its next job.
            let has_key = grants.jobs.last().is_some_and(|job| job.key.is_some());
            for share in shares.iter_mut() {
                if has_key || share.queue == lane.queue {
                    share.next = self.lane_at_hand(now, share.queue);
                }
            }
        }
        if let Some(owner) = self.sessions.find_mut(session) {
            shares.end(owner.deficits(&fetch.queues));
        }
    }

    /// The lane of the next job of a queue, when there is one at hand.
    fn lane_at_hand(&mut self, now: Now, queue: QueueNumber) -> Option<Lane> {
        match self.next_lane(now, queue) {
            Next::Of(lane) => Some(lane),
            Next::Later | Next::Nothing => None,
        }
    }

    /// Takes the next job of a queue; whether there was one at hand.
    fn take_from(
        &mut self,
        now: Now,
        queue: QueueNumber,
        session: SessionId,
        grants: &mut Grants,
    ) -> bool {
        let lane = self.lane_at_hand(now, queue);
        lane.is_some_and(|lane| self.take_from_lane(now, lane, session, grants))
    }

    /// Takes the front of a lane, which may be granted.
    fn take_from_lane(
        &mut self,
        now: Now,
        lane: Lane,
        session: SessionId,
        grants: &mut Grants,
    ) -> bool {
        let Some(head) = self.take_turn(lane) else {
            return false;
        };
        self.grant(now, head, session, grants);
        true
    }

    fn grant(&mut self, now: Now, head: Head, session: SessionId, grants: &mut Grants) {
        let Head {
            place,
            id,
            group,
            job,
        } = head;
        let queue = place.run.lane.queue;
        let (Some(content), Some(owner)) = (job.content().map(Arc::clone), self.queues.find(queue))
        else {
            return;
        };
        let kind = self.kinds.granted(&owner.record.namespace, &content.kind);
        let (name, default) = (owner.record.name.clone(), owner.record.timeout_ms);
        let retains = content.retain_ms.or(owner.record.retain_ms).is_some();
        let timeout_ms = content.timeout_ms.or(default).unwrap_or(TIMEOUT_DEFAULT);
        let pushed_at = job.pushed_at();
        let (attempt, failures, has_record, spilled_parts) = match &job {
            HeadJob::Packed(packed) => (1, 0, false, packed.spilled_parts),
            HeadJob::Record(record) => (
                record.attempt + 1,
                record.failures,
                true,
                record.spilled_parts,
            ),
        };
        self.unwatch_expiry(id, content.expires_at);
        let uses_rate = self.use_rate_of_queue(now, queue);
        let (lane, uses_rate_of_key) = self.key_slot(now, &place.run.lane, id, &content);
        let key = self.key_at_grant(id, &content, attempt);
        let (number, reserved) = self.take_number();
        let number = lease_id(number);
        let deadline = now.mono.plus(timeout_ms);
        self.leases.insert(
            id,
            Lease {
                number,
                queue,
                session,
                deadline,
                place: Some(place),
                has_record,
                spilled_parts,
                kind,
                attempt,
                lane,
                key,
                batch: content.batch,
                is_node: content.node.is_some(),
                retains,
                cancel_at: None,
                part: None,
            },
        );
        if let Some(session) = self.sessions.find_mut(session) {
            session.leases.insert(number, id);
        }
        if let Some(run) = self.runs.get_mut(&place.run) {
            run.heads -= 1;
            run.leased += 1;
        }
        self.watch_straggler(place.run, now.mono);
        let deadline = now.wall.plus(timeout_ms);
        let record = LeaseRecord {
            job: id,
            lease: number,
            session,
            deadline,
            place,
            attempt,
            key: lane,
        };
        self.group.grants.insert(number, record);
        self.group.operations += 1;
        self.group.bytes += 64;
        self.count(queue, Some(JobState::Ready), Some(JobState::Leased));
        let subject = Subject {
            attempt,
            ..Subject::of_content(queue, id, &content)
        };
        let stand = (Some(JobState::Leased), None);
        self.tell(now, EventName::Granted, subject, stand);
        grants.after = grants.after.max(group).max(reserved);
        if uses_rate || uses_rate_of_key {
            // The rate would be passed after a crash that takes the grant back.
            grants.after = grants.after.max(self.group.number);
        }
        if grants.after == self.group.number {
            self.group.is_awaited = true;
        }
        let cursor = job.cursor().cloned();
        grants.bytes += content.bound_bytes() + cursor.as_ref().map_or(0, Bytes::len);
        grants.jobs.push(GrantedJob {
            id,
            lease: number,
            queue: name,
            kind: content.kind.clone(),
            payload: content.payload.clone(),
            content_type: content.content_type.clone(),
            headers: content.headers.clone(),
            attempt,
            failures,
            timeout_ms,
            pushed_at,
            tags: content.tags.clone(),
            batch: content.batch,
            key: content.key.clone(),
            cursor,
        });
    }

    /// A job of this content is granted from a lane: its key has one slot less. The lane of its key, and
    /// whether that has a rate.
    fn key_slot(&mut self, now: Now, from: &Lane, job: JobId, content: &Content) -> (u64, bool) {
        let Some(key) = &content.key else {
            return (0, false);
        };
        let known = self.keys.remembered(job);
        let lane = known.unwrap_or_else(|| self.lane_of_job(from.queue, Some(content)));
        let has_rate = self.take_slot(now, lane, from.queue, key);
        self.has_left_lane(now.mono, *from, (job, Some(content)));
        (lane, has_rate)
    }

    fn stand(&mut self, session: SessionId, origin: Origin, fetch: Fetch, until: Until) {
        let queues = fetch.queues.iter();
        let queues = queues.flat_map(|pattern| self.queues.matching(&origin.namespace, pattern));
        let mut queues: Vec<QueueNumber> = queues.map(|queue| queue.record.number).collect();
        queues.sort_unstable();
        queues.dedup();
        let ticket = self.waiters.insert(Waiter {
            caller: origin.caller,
            session,
            namespace: origin.namespace,
            fetch,
            until,
            queues: queues.clone(),
        });
        for number in queues {
            if let Some(queue) = self.queues.find_mut(number) {
                queue.waiters.insert(ticket);
                // What was at hand had expired or moved: the next tick reads on.
                let may_have_more = queue.may_be_unread() || queue.has_turns();
                if !queue.record.paused && may_have_more {
                    self.unserved.insert(number);
                }
            }
        }
        if let Some(session) = self.sessions.find_mut(session) {
            session.waiters.insert(ticket);
        }
    }

    /// A queue has been made: fetches that name or match it stand there too.
    pub(crate) fn stand_in(&mut self, number: QueueNumber) {
        let Some(queue) = self.queues.find_mut(number) else {
            return;
        };
        let (namespace, name) = (queue.record.namespace.clone(), queue.record.name.clone());
        for (ticket, waiter) in self.waiters.iter_mut() {
            let is_meant = waiter
                .fetch
                .queues
                .iter()
                .any(|pattern| pattern.matches(&name));
            if waiter.namespace == namespace && is_meant {
                waiter.queues.push(number);
                queue.waiters.insert(ticket);
            }
        }
    }

    /// Takes a fetch out of every line that it stands in.
    fn unstand(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiters.remove(ticket)?;
        for queue in &waiter.queues {
            if let Some(queue) = self.queues.find_mut(*queue) {
                queue.waiters.remove(&ticket);
            }
        }
        if let Some(session) = self.sessions.find_mut(waiter.session) {
            session.waiters.remove(&ticket);
        }
        Some(waiter)
    }

    /// Hands the ready jobs of a queue to those who wait for it, the oldest ticket first.
    pub(crate) fn offer(&mut self, now: Now, queue: QueueNumber, outcome: &mut Outcome) {
        while let Some(ticket) = self.first_in_line(now, queue) {
            self.end_wait(now, ticket, true, outcome);
        }
    }

    /// The same for several queues: the oldest ticket of all of them first, since who is woken by
    /// one queue may take from another.
    pub(crate) fn offer_all(
        &mut self,
        now: Now,
        queues: impl Iterator<Item = QueueNumber>,
        outcome: &mut Outcome,
    ) {
        let mut queues: BTreeSet<QueueNumber> = queues.collect();
        loop {
            let mut oldest: Option<Ticket> = None;
            queues.retain(|queue| {
                let ticket = self.first_in_line(now, *queue);
                oldest = oldest.into_iter().chain(ticket).min();
                ticket.is_some()
            });
            let Some(ticket) = oldest else { return };
            self.end_wait(now, ticket, true, outcome);
        }
    }

    /// The oldest fetch that can be given a job of this queue now. When the next one must be read
    /// first, the next tick does that.
    fn first_in_line(&mut self, now: Now, number: QueueNumber) -> Option<Ticket> {
        let queue = self.queues.find(number)?;
        if queue.record.paused {
            return None;
        }
        let ticket = queue.waiters.first().copied()?;
        match self.next_lane(now, number) {
            Next::Of(_) => Some(ticket),
            Next::Later => {
                self.unserved.insert(number);
                None
            }
            Next::Nothing => None,
        }
    }

    /// Answers a waiting fetch, with what is there when it `takes` jobs.
    pub(crate) fn end_wait(
        &mut self,
        now: Now,
        ticket: Ticket,
        takes: bool,
        outcome: &mut Outcome,
    ) {
        let Some(waiter) = self.unstand(ticket) else {
            return;
        };
        // While it waited without leases, it needed to say nothing: its ttl begins now. Where `now`
        // is none, the session resumes or ends, which settles it.
        if matches!(waiter.until, Until::Deadline(_))
            && let Some(session) = self.sessions.find_mut(waiter.session)
            && session.connection.is_some()
            && session.leases.is_empty()
        {
            session.seen_at = session.seen_at.max(now.mono);
        }
        let mut grants = Grants::default();
        if takes {
            let Waiter {
                session,
                namespace,
                fetch,
                ..
            } = &waiter;
            self.collect(now, *session, namespace, fetch, &mut grants);
        }
        let (acks, fails) = match waiter.until {
            Until::Deadline(_) => (Vec::new(), Vec::new()),
            Until::Durable { group, acks, fails } => {
                grants.after = grants.after.max(group);
                (acks, fails)
            }
        };
        outcome.replies.push(Reply {
            caller: waiter.caller,
            after: grants.after,
            result: Ok(ReplyBody::Fetch(FetchReply {
                jobs: grants.jobs,
                acks,
                fails,
            })),
        });
    }

    /// Groups up to this one are durable: what waited only for that is answered.
    pub(crate) fn answer_durable(&mut self, group: GroupNumber, outcome: &mut Outcome) {
        self.durable = self.durable.max(group);
        if group >= self.reserved_in {
            self.reserved_durably = self.head.reserved;
        }
        for ticket in self.waiters.durable(group) {
            self.end_wait(Now::default(), ticket, false, outcome);
        }
    }

    /// A connection is gone: nobody reads what its fetches would get.
    pub(crate) fn detach(&mut self, connection: ConnectionId, session: Option<SessionId>) {
        for ticket in self.waiters.of_connection(connection) {
            self.unstand(ticket);
        }
        self.waits.forget_connection(connection);
        if let Some(session) = session.and_then(|id| self.sessions.find_mut(id))
            && session.connection == Some(connection)
        {
            session.connection = None;
        }
    }

    /// Ends all waits of a session, with an error or with nothing.
    pub(crate) fn end_waits(&mut self, session: SessionId, outcome: &mut Outcome) {
        let waiters = self
            .sessions
            .find(session)
            .map(|session| session.waiters.clone());
        for ticket in waiters.unwrap_or_default() {
            self.end_wait(Now::default(), ticket, false, outcome);
        }
    }
}

impl Grants {
    fn has_room(&self, max: usize) -> bool {
        self.jobs.len() < max && self.bytes < REPLY_BYTES_MAX
    }
}

/// What a caller whose lease is not live is told.
pub(crate) fn lease_lost(state: &str) -> WireError {
    let message = match state {
        "gone" => "the lease is over; the job is no longer kept".to_owned(),
        state => format!("the lease is over; the job is {state}"),
    };
    WireError::new(ErrorCode::LeaseLost, message).with_state(state)
}
