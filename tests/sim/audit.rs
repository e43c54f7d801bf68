//! Looking at everything when nothing is in flight: after each restart, and at the end, when all
//! that was pushed must have come to its end.

use ganger_engine::command::Origin;
use ganger_protocol::{
    DurationMs, ErrorCode, JobId, QueuePattern,
    job::{JobState, JobView},
    list::JobFilter,
    request::{Fetch, Heartbeat, JobGet, Operation, QueueList, SessionHello},
    response::{Counters, QueueView, ReplyBody},
};
use ganger_server::driver::scan::Scan;

use crate::{
    clients::{Asked, Held},
    history::{Answer, Checked},
    world::{From, World, unexpected},
};

/// Jobs that are over and looked at nevertheless.
const OVER_SEEN: usize = 3;

impl World {
    /// Looks at every job that is not over, at the counters and at the index of dead jobs. The
    /// last group must be durable.
    pub fn audit(&mut self) -> Checked {
        if !self.is_up() {
            return Ok(());
        }
        let live: Vec<usize> = self.history.live.iter().copied().collect();
        self.see_time();
        let mut seen: Vec<(usize, JobState)> = Vec::new();
        let mut views = Vec::new();
        for job in live {
            let Some(id) = self.history.jobs[job].id else {
                continue;
            };
            let Some(view) = self.view(job, id)? else {
                return Ok(());
            };
            let mono = self.clock.now().mono.0;
            self.history.audited(job, view.as_deref(), mono)?;
            if let Some(view) = view {
                seen.push((job, view.state));
                views.push((job, view));
            }
        }
        let namespace = |job: usize| {
            let queue = self.history.jobs[job].queue;
            self.plan.queues[queue].namespace.as_str()
        };
        let views = views.iter();
        self.history
            .check_keys(views.map(|(job, view)| (*job, namespace(*job), &**view)))?;
        for _ in 0..OVER_SEEN.min(self.history.jobs.len()) {
            let job = self.rng.usize(..self.history.jobs.len());
            if let (Some(_), Some(id)) = (self.history.jobs[job].over, self.history.jobs[job].id) {
                let Some(view) = self.view(job, id)? else {
                    return Ok(());
                };
                let mono = self.clock.now().mono.0;
                self.history.audited(job, view.as_deref(), mono)?;
            }
        }
        for queue in 0..self.plan.queues.len() {
            self.audit_queue(queue, &seen)?;
        }
        self.audit_crons()?;
        self.audit_batches()?;
        self.audit_outcomes()?;
        self.audit_limits()
    }

    /// What the server shows of a job; the outer `None` when it failed meanwhile.
    fn view(&mut self, job: usize, id: JobId) -> Checked<Option<Option<Box<JobView>>>> {
        let from = self.administrator(self.history.jobs[job].queue);
        let get = Operation::JobGet(JobGet { job: id });
        self.request(&from, get, Asked::Audit)?;
        match self.clients.audited.take() {
            None => Ok(None),
            Some(Ok(ReplyBody::Job(view))) => Ok(Some(Some(view))),
            Some(Err(error)) if error.code == ErrorCode::NotFound => Ok(Some(None)),
            Some(other) => Err(format!("job {job} was shown as {other:?}")),
        }
    }

    fn audit_queue(&mut self, queue: usize, seen: &[(usize, JobState)]) -> Checked {
        let from = self.administrator(queue);
        let list = Operation::QueueList(QueueList { pattern: None });
        self.request(&from, list, Asked::Audit)?;
        let views = match self.clients.audited.take() {
            None => return Ok(()),
            Some(Ok(ReplyBody::Queues(reply))) => reply.queues,
            Some(Ok(other)) => return Err(unexpected(&other)),
            Some(Err(error)) => return Err(format!("{error:?}")),
        };
        let name = self.plan.queues[queue].name.clone();
        let (pushed, live) = self.history.pushed(queue);
        let Some(view) = views.into_iter().find(|view| view.name == name) else {
            return match pushed - self.history.perhaps_void(queue) {
                0 => Ok(()),
                _ => Err(format!("queue {queue} is lost")),
            };
        };
        self.audit_counters(queue, &view, (pushed, live), seen)?;
        self.audit_dead(queue, &from, seen)?;
        self.audit_lists(queue, &from, seen)
    }

    fn audit_counters(
        &self,
        queue: usize,
        view: &QueueView,
        (pushed, live): (u64, u64),
        seen: &[(usize, JobState)],
    ) -> Checked {
        let counters = &view.counters;
        let own = seen
            .iter()
            .filter(|(job, _)| self.history.jobs[*job].queue == queue);
        let own: Vec<JobState> = own.map(|(_, state)| *state).collect();
        // Their pushes were never answered, so that their ids are not known.
        let unknown = live - own.len() as u64;
        let is_right = |state: JobState, count: u64| {
            let known = own.iter().filter(|own| **own == state).count() as u64;
            known <= count && count <= known + unknown
        };
        let by_state = [
            (JobState::Scheduled, counters.scheduled),
            (JobState::Ready, counters.ready),
            (JobState::Leased, counters.leased),
            (JobState::Dead, counters.dead),
        ];
        let is_consistent = by_state
            .iter()
            .all(|(state, count)| is_right(*state, *count))
            && (pushed - self.history.perhaps_void(queue)..=pushed).contains(&counters.pushed)
            && (live - self.history.perhaps_gone(queue)..=live).contains(&counters.kept())
            && counters.done
                + counters.deleted
                + counters.expired
                + counters.cancelled
                + counters.kept()
                == counters.pushed
            && counters.done >= self.history.acked(queue);
        if !is_consistent {
            return Err(format!(
                "I12: queue {queue} has {pushed} pushed, {live} live, seen {own:?}, and counts \
                 {counters:?}"
            ));
        }
        match view.paused == self.history.is_paused(queue) {
            true => Ok(()),
            false => Err(format!("I18: queue {queue} is paused: {}", view.paused)),
        }
    }

    /// The index of dead jobs has those that are dead, and no others.
    fn audit_dead(&mut self, queue: usize, from: &From, seen: &[(usize, JobState)]) -> Checked {
        let Some((store, core)) = self.store() else {
            return Ok(());
        };
        let origin = Origin {
            caller: ganger_engine::command::Caller {
                connection: from.connection,
                request: 0,
            },
            namespace: from.namespace.clone(),
            session: None,
            producer: None,
        };
        let Ok(number) = core.queue_named(&origin, &self.plan.queues[queue].name) else {
            return Ok(());
        };
        let page = match store.closed_page(number, JobState::Dead, None, false, 1_000) {
            Ok(page) => page,
            Err(error) => return self.failed(&error),
        };
        // Of some it is not known that they exist: neither their push nor a grant was told.
        let listed = page.iter().map(|record| record.id);
        let mut listed: Vec<JobId> = listed
            .filter(|id| self.history.job_of(*id).is_some())
            .collect();
        let dead = seen.iter().filter(|(job, state)| {
            *state == JobState::Dead && self.history.jobs[*job].queue == queue
        });
        let mut dead: Vec<JobId> = dead
            .filter_map(|(job, _)| self.history.jobs[*job].id)
            .collect();
        listed.sort_unstable();
        dead.sort_unstable();
        match listed == dead {
            true => Ok(()),
            false => Err(format!(
                "I13: queue {queue} lists as dead {listed:?}, dead are {dead:?}"
            )),
        }
    }

    /// The list of each state has the jobs that are in it, each once, and no others.
    fn audit_lists(&mut self, queue: usize, from: &From, seen: &[(usize, JobState)]) -> Checked {
        let pattern = QueuePattern::Name(self.plan.queues[queue].name.clone());
        let newest_first = self.rng.bool();
        for state in JobState::ALL {
            let filter = JobFilter::of(pattern.clone()).in_states([state]);
            let mut scan = Scan::new(from.namespace.clone(), filter, newest_first);
            let mut listed: Vec<JobId> = Vec::new();
            while !scan.is_complete() {
                let jobs_max = self.rng.usize(1..20);
                let now = self.clock.now();
                let Some(core) = self.core_mut() else {
                    return Ok(());
                };
                match scan.slice(core, now, jobs_max) {
                    Ok(jobs) => listed.extend(jobs.iter().map(|job| job.id)),
                    Err(error) => return self.failed(&error),
                }
            }
            // Of some it is not known that they exist: neither their push nor a grant was told.
            listed.retain(|id| self.history.job_of(*id).is_some());
            let own = seen
                .iter()
                .filter(|(job, own)| *own == state && self.history.jobs[*job].queue == queue);
            let mut own: Vec<JobId> = own
                .filter_map(|(job, _)| self.history.jobs[*job].id)
                .collect();
            listed.sort_unstable();
            own.sort_unstable();
            if listed != own {
                return Err(format!(
                    "I13: queue {queue} lists as {state} {listed:?}, {state} are {own:?}"
                ));
            }
        }
        Ok(())
    }

    /// I17: trouble is over. Everything that was pushed comes to its end.
    pub fn drain(&mut self) -> Checked {
        self.trace.step();
        self.calm()?;
        for queue in 0..self.plan.queues.len() {
            self.pause(queue, false)?;
        }
        self.drain_crons()?;
        self.drain_batches()?;
        self.drain_outcomes()?;
        self.drain_limits()?;
        for nth in 0..self.clients.producers.len() {
            self.connect_producer(nth);
            self.send_again(nth)?;
        }
        self.settle()?;
        let namespaces: std::collections::BTreeSet<_> = self
            .plan
            .queues
            .iter()
            .map(|queue| queue.namespace.clone())
            .collect();
        for namespace in namespaces {
            let connection = self.connect();
            self.drain_namespace(From {
                connection,
                namespace,
                session: None,
                producer: None,
            })?;
        }
        self.settle()?;
        self.audit()?;
        self.check_all_ended()
    }

    fn drain_namespace(&mut self, mut from: From) -> Checked {
        let hello = SessionHello {
            ttl_ms: Some(DurationMs::from_hours(1)),
            ..SessionHello::default()
        };
        let (mono, group) = (self.clock.now().mono.0, self.open_group());
        let opened = self.open_session(&from, hello)?.ok_or("no session")?;
        self.history
            .session_opened(opened.id, opened.ttl.0, mono, group);
        from.session = Some(opened.id);
        let queues: Vec<usize> = {
            let mut own: Vec<usize> = (0..self.plan.queues.len())
                .filter(|queue| self.plan.queues[*queue].namespace == from.namespace)
                .collect();
            own.sort_by_key(|queue| self.plan.queues[*queue].name.clone());
            own
        };
        for _ in 0..3_000 {
            self.see_time();
            self.tick(100)?;
            let fetch = Fetch {
                queues: vec!["*".parse().expect("a legal pattern")],
                max: 50,
                ..Fetch::default()
            };
            self.send_fetch(None, &from, fetch, (queues.clone(), true), &[], &[])?;
            self.settle()?;
            let drained: Vec<Held> = std::mem::take(&mut self.drained);
            if !drained.is_empty() {
                self.send_answers(&from, &drained, Answer::Ack)?;
                self.settle()?;
                continue;
            }
            if self.waiting_in(&from)? == 0 {
                return Ok(());
            }
            self.sleep_until_wakeup(60_000);
            self.request(&from, Operation::Heartbeat(Heartbeat {}), Asked::Anything)?;
        }
        Err("I17: it does not drain".to_owned())
    }

    /// Jobs of a namespace that are neither over nor dead.
    fn waiting_in(&mut self, from: &From) -> Checked<u64> {
        let list = Operation::QueueList(QueueList { pattern: None });
        self.request(from, list, Asked::Audit)?;
        match self.clients.audited.take() {
            Some(Ok(ReplyBody::Queues(reply))) => {
                let waiting = |counters: &Counters| counters.kept() - counters.dead;
                Ok(reply
                    .queues
                    .iter()
                    .map(|view| waiting(&view.counters))
                    .sum())
            }
            other => Err(format!("a list was answered by {other:?}")),
        }
    }

    fn check_all_ended(&self) -> Checked {
        for job in &self.history.live {
            // One whose id nobody was ever told can only be dead: the counters say so.
            if self.history.jobs[*job].id.is_some() && !self.history.is_dead(*job) {
                return Err(format!(
                    "I17: job {job} did not end: {:?}",
                    self.history.jobs[*job]
                ));
            }
        }
        Ok(())
    }
}
