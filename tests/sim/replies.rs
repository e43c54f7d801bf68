//! What a reply means: to the history, and to the client, when it reaches that.

use ganger_engine::command::Caller;
use ganger_protocol::{
    ErrorCode, SessionId, WireError,
    response::{FetchReply, LeaseResult, PushReply, ReplyBody},
};

use crate::{
    clients::{Asked, Fetched, Held},
    history::{Answered, Checked, Granting, Presence},
    world::{Context, Pending, World},
};

type Answer = Result<ReplyBody, WireError>;

impl World {
    pub fn reply(
        &mut self,
        caller: Caller,
        pending: Pending,
        result: Answer,
        context: Context,
    ) -> Checked {
        let Pending {
            asked,
            group,
            mono,
            wall,
            operation,
            session,
            ..
        } = pending;
        match asked {
            Asked::Push {
                producer,
                push,
                must_expire,
                ..
            } => self.push_reply(caller, (producer, push, must_expire), result),
            Asked::Fetch { worker, fetch } => match result {
                Ok(ReplyBody::Fetch(reply)) => {
                    let session = session.ok_or("a fetch without a session was served")?;
                    self.history.session_proven(session, mono)?;
                    let granting = Granting {
                        session,
                        groups: (group, group),
                        since: mono,
                        asked: operation,
                        asked_wall: wall,
                    };
                    self.fetch_reply(caller, worker, &fetch, reply, granting, context)
                }
                other => self.fetch_refused(worker, &fetch, session, other),
            },
            Asked::Answers(items) => match result {
                Ok(ReplyBody::Lease(reply)) => self.results(&items, &reply.results),
                other => Err(format!("answers were answered by {other:?}")),
            },
            Asked::Heartbeat { worker, was_live } => {
                let session = session.ok_or("no session")?;
                match result {
                    Ok(ReplyBody::Heartbeat(reply)) => {
                        self.history.session_proven(session, mono)?;
                        let own = &mut self.clients.workers[worker];
                        for lost in reply.lost {
                            self.history.lease_lost(lost.lease, mono, context.group)?;
                            own.held.retain(|held| held.lease != lost.lease);
                        }
                        Ok(())
                    }
                    other => self.session_refused(Some(worker), session, was_live, &other),
                }
            }
            Asked::Goodbye { was_live } => {
                let session = session.ok_or("no session")?;
                match result {
                    Ok(ReplyBody::Done(_)) => self.history.goodbye_told(session, group),
                    other => self.session_refused(None, session, was_live, &other),
                }
            }
            Asked::Get { job, presence } => match result {
                Ok(ReplyBody::Job(view)) if presence != Presence::Gone => {
                    self.history.check_view(job, &view)
                }
                Err(error) if error.code == ErrorCode::NotFound && presence != Presence::There => {
                    Ok(())
                }
                other => Err(format!("job {job} must be {presence:?}, and is {other:?}")),
            },
            Asked::Dead {
                jobs,
                operation,
                is_purge,
                is_named,
            } => match result {
                Ok(ReplyBody::Count(reply)) if is_named => self
                    .history
                    .dead_told(&jobs, &reply, is_purge, operation, group),
                Ok(ReplyBody::Count(_)) => Ok(()),
                Err(error) if error.code == ErrorCode::NotFound && !is_named => Ok(()),
                other => Err(format!("dead jobs were answered by {other:?}")),
            },
            Asked::Pause { queue, operation } => match result {
                Ok(ReplyBody::Done(_)) => self.history.pause_told(queue, operation),
                other => Err(format!("a pause was answered by {other:?}")),
            },
            Asked::Change {
                job,
                operation,
                presence,
                stretch,
            } => match result {
                Ok(ReplyBody::Change(reply)) if reply.results.len() == 1 => {
                    let result = &reply.results[0];
                    self.history
                        .change_told((job, presence), result, operation, (group, stretch))
                }
                other => Err(format!("a change was answered by {other:?}")),
            },
            Asked::Cron(asked) => self.cron_reply(asked, result),
            Asked::Outcome(asked) => self.outcome_reply(asked, result),
            Asked::Limit(asked) => self.limit_reply(asked, operation, result),
            Asked::Batch(asked) => self.batch_reply(asked, result),
            Asked::Anything => result.map(|_| ()).map_err(|error| format!("{error:?}")),
            Asked::Audit => {
                self.clients.audited = Some(result);
                Ok(())
            }
        }
    }

    fn push_reply(
        &mut self,
        caller: Caller,
        (producer, push, must_expire): (usize, usize, bool),
        result: Answer,
    ) -> Checked {
        self.trace.note(
            self.clock.elapsed(),
            "push {} is answered, ok: {}",
            &[push as u64, u64::from(result.is_ok())],
        );
        match result {
            Ok(ReplyBody::Push(PushReply { results })) if !must_expire => {
                self.history.push_told(push, &results)?;
            }
            Err(error) if error.code == ErrorCode::SequenceExpired && must_expire => {}
            Err(_)
                if self.history.pushes[push].is_atomic && !self.history.makes_something(push) => {}
            other => {
                return Err(format!(
                    "push {push} (must expire: {must_expire}): {other:?}"
                ));
            }
        }
        if self.is_delivered(caller) {
            let client = &mut self.clients.producers[producer];
            client.unanswered.retain(|other| *other != push);
        }
        Ok(())
    }

    /// Whether a reply reaches its client: the connection stands, and does not break just now.
    fn is_delivered(&mut self, caller: Caller) -> bool {
        let connection = caller.connection;
        let producer = self
            .clients
            .producers
            .iter()
            .position(|it| it.connection == Some(connection));
        let worker = self
            .clients
            .workers
            .iter()
            .position(|it| it.connection == Some(connection));
        if producer.is_none() && worker.is_none() {
            return false;
        }
        if self.rng.u32(..40) > 0 {
            return true;
        }
        let mut session = None;
        if let Some(producer) = producer {
            self.clients.producers[producer].connection = None;
        }
        if let Some(worker) = worker {
            let worker = &mut self.clients.workers[worker];
            worker.connection = None;
            worker.is_fetching = false;
            session = worker.session;
        }
        self.break_connection(connection, session);
        false
    }

    fn results(&mut self, items: &[Answered], results: &[LeaseResult]) -> Checked {
        if items.len() != results.len() {
            return Err(format!(
                "{} results for {} leases",
                results.len(),
                items.len()
            ));
        }
        for (item, result) in items.iter().zip(results) {
            self.trace.note(
                self.clock.elapsed(),
                "lease {} of job {}: applied {}, already {}",
                &[
                    item.lease.0,
                    item.job as u64,
                    u64::from(result.err.is_none()),
                    u64::from(result.already),
                ],
            );
            self.history.answer_told(item, result)?;
        }
        Ok(())
    }

    fn fetch_reply(
        &mut self,
        caller: Caller,
        worker: Option<usize>,
        fetch: &Fetched,
        reply: FetchReply,
        mut granting: Granting,
        context: Context,
    ) -> Checked {
        self.results(&fetch.acks, &reply.acks)?;
        self.results(&fetch.fails, &reply.fails)?;
        if reply.jobs.len() > fetch.max {
            return Err(format!(
                "{} jobs, {} were asked for",
                reply.jobs.len(),
                fetch.max
            ));
        }
        // Decided in the very apply that released it, with nothing withheld before.
        let is_now = context.by.is_some();
        let is_direct = context.by == Some(caller);
        let is_clean = is_direct && !context.had_withheld;
        granting.groups = match (is_direct, is_now) {
            (true, _) => granting.groups,
            (false, true) => (context.group, context.group),
            (false, false) => (granting.groups.0, context.group),
        };
        if is_now && !is_direct && !context.had_withheld && !reply.jobs.is_empty() {
            self.history.wait_ended(granting.session, &self.clock);
        }
        let count = reply.jobs.len();
        let is_told = worker.is_none() || self.is_delivered(caller);
        for job in reply.jobs {
            let token = self.history.job_of(job.id);
            if is_clean && let Some(token) = token {
                self.check_order(fetch, token)?;
            }
            let token = self.history.granted(&job, &granting, &self.clock)?;
            let facts = &self.history.jobs[token];
            if !fetch.queues.contains(&facts.queue)
                || self.plan.queues[facts.queue].name != job.queue
            {
                return Err(format!("job {token} is of a queue that was not asked for"));
            }
            self.trace.note(
                self.clock.elapsed(),
                "worker {} gets job {} by lease {}, attempt {}, failures {}",
                &[
                    worker.unwrap_or(99) as u64,
                    token as u64,
                    job.lease.0,
                    u64::from(job.attempt),
                    u64::from(job.failures),
                ],
            );
            let held = Held {
                job: token,
                id: job.id,
                lease: job.lease,
            };
            match worker {
                Some(worker) if is_told => self.clients.workers[worker].held.push(held),
                Some(_) => {}
                None => self.drained.push(held),
            }
        }
        if is_clean && count < fetch.max {
            self.check_nothing_is_fresh(&fetch.queues)?;
        }
        if let Some(worker) = worker
            && is_told
        {
            self.clients.workers[worker].is_fetching = false;
        }
        Ok(())
    }

    /// I16: nothing that was never granted stands before this job, in its queue or, in a strict
    /// fetch, in the queues before it.
    fn check_order(&self, fetch: &Fetched, token: usize) -> Checked {
        let queue = self.history.jobs[token].queue;
        if let Some(first) = self.history.fresh_before(queue, Some(token)) {
            let (own, other) = (&self.history.jobs[token], &self.history.jobs[first]);
            return Err(format!(
                "I16: job {token} was granted before job {first}: {own:?}, {other:?}"
            ));
        }
        if fetch.is_strict {
            let before = fetch.queues.iter().take_while(|other| **other != queue);
            let before: Vec<usize> = before.copied().collect();
            self.check_nothing_is_fresh(&before)?;
        }
        Ok(())
    }

    fn fetch_refused(
        &mut self,
        worker: Option<usize>,
        fetch: &Fetched,
        session: Option<SessionId>,
        result: Answer,
    ) -> Checked {
        for answered in fetch.acks.iter().chain(&fetch.fails) {
            self.history.answer_void(answered);
        }
        match session {
            Some(session) => self.session_refused(worker, session, fetch.was_live, &result),
            None => Ok(()),
        }
    }

    /// A session is over, said the server. The worker opens another.
    fn session_refused(
        &mut self,
        worker: Option<usize>,
        session: SessionId,
        was_live: bool,
        result: &Answer,
    ) -> Checked {
        match result {
            Err(error) if error.code == ErrorCode::NotFound => {}
            other => return Err(format!("a request of session {session} got {other:?}")),
        }
        self.history.session_over(session, was_live)?;
        if let Some(worker) = worker
            && self.clients.workers[worker].session == Some(session)
        {
            let own = &mut self.clients.workers[worker];
            own.session = None;
            own.is_fetching = false;
            let connection = own.connection.take();
            for held in std::mem::take(&mut own.held) {
                own.forget(held);
            }
            if let Some(connection) = connection {
                self.break_connection(connection, Some(session));
            }
        }
        Ok(())
    }
}
