//! What there must be of limits after each restart, and in the end, when all limits are in force still:
//! every job has come to its end, nothing runs, and a new job of each key is granted.

use ganger_protocol::{
    ErrorCode, JobSpec,
    limit::{LimitList, LimitTarget, LimitView, OneLimit},
    request::{Operation, QueueList},
    response::{QueueView, ReplyBody},
};

use super::{
    known::{KEYS, QUEUES, Subject},
    replies::shows,
};
use crate::{
    clients::Asked,
    history::Checked,
    world::{World, unexpected},
};

impl World {
    /// Looks at all limits, and at how much runs.
    pub fn audit_limits(&mut self) -> Checked {
        let Some(views) = self.listed_limits()? else {
            return Ok(());
        };
        let limits: Vec<_> = self.limits.known.limits().collect();
        let is_shown = |set| views.iter().any(|view| shows(view, set));
        if views.len() != limits.len() || !limits.iter().all(|(_, set)| is_shown(set)) {
            return Err(format!("limits are {views:?}, and were set to {limits:?}"));
        }
        let now = self.elapsed();
        for view in &views {
            let (Some(running), Some(subject)) = (view.running, view.target().and_then(subject))
            else {
                continue;
            };
            let certain = self.limits.known.running(subject, now) as u64;
            if running < certain {
                return Err(format!("{certain} of {subject:?} run, and are {view:?}"));
            }
        }
        let Some(queues) = self.limited_queues()? else {
            return Ok(());
        };
        for view in &queues {
            let queue = QUEUES.iter().position(|name| *name == view.name.as_str());
            let queue = queue.ok_or_else(|| format!("there is a queue {}", view.name))?;
            if view.paused != self.limits.known.is_paused(queue) {
                return Err(format!("I18: {} is paused: {}", view.name, view.paused));
            }
        }
        Ok(())
    }

    fn listed_limits(&mut self) -> Checked<Option<Vec<LimitView>>> {
        let mut views = Vec::new();
        let mut cursor = None;
        loop {
            let limit = self.rng.u32(1..8);
            let list = LimitList { cursor, limit };
            let from = self.limits_from();
            self.request(&from, Operation::LimitList(list), Asked::Audit)?;
            let page = match self.clients.audited.take() {
                None => return Ok(None),
                Some(Ok(ReplyBody::Limits(page))) => page,
                Some(Ok(other)) => return Err(unexpected(&other)),
                Some(Err(error)) => return Err(format!("{error:?}")),
            };
            views.extend(page.limits);
            cursor = page.cursor;
            if cursor.is_none() {
                return Ok(Some(views));
            }
        }
    }

    fn limited_queues(&mut self) -> Checked<Option<Vec<QueueView>>> {
        let list = Operation::QueueList(QueueList { pattern: None });
        let from = self.limits_from();
        self.request(&from, list, Asked::Audit)?;
        match self.clients.audited.take() {
            None => Ok(None),
            Some(Ok(ReplyBody::Queues(reply))) => Ok(Some(reply.queues)),
            Some(other) => Err(format!("a list was answered by {other:?}")),
        }
    }

    /// I17: everything comes to its end under the limits that there are, and so does a new job of each
    /// key and of none, in each queue.
    pub fn drain_limits(&mut self) -> Checked {
        for nth in 0..2 {
            self.end_limits_worker(nth)?;
        }
        for queue in 0..QUEUES.len() {
            self.pause_limited_queue(queue, false)?;
        }
        if self.limits.known.jobs.is_empty() {
            return Ok(());
        }
        self.drain_limited("jobs")?;
        let mut jobs = Vec::new();
        for key in (0..KEYS.len()).map(Some).chain([None]) {
            let kind = "fresh".parse().expect("a legal name");
            let queue = self.rng.usize(..2);
            jobs.push(self.add_limited(JobSpec::new(kind, ""), queue, key));
        }
        let count = jobs.len();
        self.push_limited_jobs(jobs)?;
        self.drain_limited("new jobs")?;
        let known = &self.limits.known;
        let first = known.jobs.len() - count;
        match known.jobs[first..]
            .iter()
            .position(|job| job.over.is_none())
        {
            None => self.audit_idle_limits(),
            Some(nth) => Err(format!("I17: new job {nth} of a key was never granted")),
        }
    }

    fn drain_limited(&mut self, what: &str) -> Checked {
        for _ in 0..5_000 {
            self.see_time();
            self.tick(100)?;
            self.work_under_limits(0, true)?;
            self.settle()?;
            let Some(queues) = self.limited_queues()? else {
                return Ok(());
            };
            let counters = queues.iter().map(|view| &view.counters);
            if counters.map(|it| it.kept() - it.dead).sum::<u64>() == 0 {
                return Ok(());
            }
            if self.limits.workers[0].held.is_empty() {
                self.sleep_until_wakeup(60_000);
            }
        }
        Err(format!("I17: {what} under limits do not drain"))
    }

    /// Nothing runs any more, and all slots are free.
    fn audit_idle_limits(&mut self) -> Checked {
        self.audit_limits()?;
        let keys = KEYS.iter().map(|key| format!("key/{key}"));
        let queues = QUEUES.iter().map(|queue| format!("queue/{queue}"));
        for target in keys.chain(queues) {
            let target = super::target_of(&target);
            let from = self.limits_from();
            let show = Operation::LimitShow(OneLimit::of(target.clone()));
            self.request(&from, show, Asked::Audit)?;
            match self.clients.audited.take() {
                None => return Ok(()),
                Some(Ok(ReplyBody::Limit(view))) if view.running == Some(0) => {}
                Some(Err(error)) if error.code == ErrorCode::NotFound => {}
                Some(other) => return Err(format!("{target} is idle, and {other:?}")),
            }
        }
        Ok(())
    }
}

/// What a limit by name holds for.
fn subject(target: LimitTarget) -> Option<Subject> {
    let text = target.to_string();
    let (kind, name) = text.split_once(' ')?;
    let position = |names: &[&str]| names.iter().position(|it| *it == name);
    match kind {
        "queue" => position(&QUEUES).map(Subject::Queue),
        _ => position(&KEYS).map(Subject::Key),
    }
}
