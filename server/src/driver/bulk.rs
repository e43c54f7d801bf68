//! Tasks: what is done to all jobs of a filter, slice by slice between the groups.
//!
//! A slice finds some jobs as a list does, and does to them, under the same lock, what the operation on
//! single jobs does; so what a task may do to a job is decided where it always is. A task has no record:
//! it ends with the server, what it has done stays, and doing it again is harmless. Only jobs that were
//! there when it began are meant, so that it ends, whatever is pushed or dies meanwhile.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ganger_engine::command::{Command, Now, Origin};
use ganger_protocol::{
    DurationMs, ErrorCode, JobId, NamespaceName, Timestamp, WireError,
    change::{ChangeTo, JobChange, JobDelete},
    ids::TaskId,
    job::{JobState, JobView},
    limits::CANCEL_GRACE_DEFAULT,
    request::{DeadSelect, JobCancel, Operation},
    response::ReplyBody,
    task::{TaskAction, TaskRefusal, TaskStart, TaskState, TaskView, TasksReply},
};
use tokio_util::sync::CancellationToken;

use super::{
    Core, Delivery, Shard,
    core::Released,
    scan::{Next, Scan},
};
use crate::{
    store::StoreError,
    tasks::{OnPanic, Tasks},
};

/// Tasks of a shard that may run at the same time; more are refused.
const RUNNING_MAX: usize = 4;

/// Tasks that have ended and are still shown.
const ENDED_KEPT: usize = 100;

/// Rows of an index that one slice reads, about.
const SLICE_ROWS: usize = 64;

/// How long a task rests between two slices, so that others come first.
const SLICE_REST: Duration = Duration::from_millis(1);

/// Refusals that are kept of a task.
const REFUSALS_KEPT: usize = 10;

/// All tasks of a shard that are shown.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    tasks: BTreeMap<TaskId, Shown>,
}

#[derive(Debug)]
struct Shown {
    namespace: NamespaceName,
    view: TaskView,
    cancel: CancellationToken,
}

/// A task on its way.
#[derive(Debug)]
pub struct Task {
    origin: Origin,
    start: TaskStart,
    started_at: Timestamp,
    scan: Scan,
}

/// What one slice came to.
#[derive(Debug, Default)]
pub struct Progress {
    /// Jobs that are meant and are not already where they would go.
    pub matched: u64,
    /// Those that were changed.
    pub changed: u64,
    /// Those that could not be.
    pub refusals: Vec<TaskRefusal>,
    /// What may leave by it.
    pub released: Released,
}

impl Task {
    /// A task that begins now.
    pub fn new(now: Now, origin: Origin, mut start: TaskStart) -> Self {
        if start.filter.states.is_empty() {
            start.filter.states = start.action.states().to_vec();
        }
        if let Some(to) = &mut start.to {
            // Counted from here, so that a job that is met again behind its new time is there already.
            let delay = to.delay_ms.take();
            to.run_at = to.run_at.or_else(|| Some(now.wall.plus(delay?)));
        }
        let scan = Scan::new(origin.namespace.clone(), start.filter.clone(), false);
        Self {
            origin,
            start,
            started_at: now.wall,
            scan,
        }
    }

    /// Whether it is through.
    pub fn is_complete(&self) -> bool {
        self.scan.is_complete()
    }

    /// One slice as a whole.
    ///
    /// # Errors
    /// When the store fails. That is final.
    pub fn slice(&mut self, core: &mut Core, now: Now) -> Result<Progress, StoreError> {
        let jobs = self.scan.slice(core, now, SLICE_ROWS)?;
        self.act(core, now, jobs)
    }

    /// Does it to the jobs that were found and are still there, under the same lock.
    fn act(
        &self,
        core: &mut Core,
        now: Now,
        mut jobs: Vec<JobView>,
    ) -> Result<Progress, StoreError> {
        jobs.retain(|job| self.is_meant(job));
        let mut progress = Progress {
            matched: jobs.len() as u64,
            ..Progress::default()
        };
        if jobs.is_empty() || self.start.dry_run {
            return Ok(progress);
        }
        let jobs: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        let command = Command::Bulk(self.origin.clone(), self.operation(jobs.clone()));
        let mut released = core.apply(now, command)?;
        progress.refusals = match released.answer.take() {
            Some(Ok(body)) => refusals(&jobs, &body),
            Some(Err(error)) => jobs
                .iter()
                .map(|job| refusal(*job, error.clone()))
                .collect(),
            None => Vec::new(),
        };
        progress.changed = progress.matched - progress.refusals.len() as u64;
        progress.released = released;
        Ok(progress)
    }

    /// Whether a job of the filter was there at the start, and is not where it would go.
    fn is_meant(&self, job: &JobView) -> bool {
        let was_there = job.pushed_at <= self.started_at
            && job.closed_at.is_none_or(|at| at <= self.started_at);
        let to = self.start.to.as_ref();
        was_there && !to.is_some_and(|to| is_there(job, to, self.started_at))
    }

    /// What is done to some of the jobs.
    fn operation(&self, jobs: Vec<JobId>) -> Operation {
        match (self.start.action, &self.start.to) {
            (TaskAction::Cancel, _) => Operation::JobCancel(JobCancel {
                jobs,
                grace_ms: self.start.grace_ms.unwrap_or(CANCEL_GRACE_DEFAULT),
            }),
            (TaskAction::Change, to) => Operation::JobChange(JobChange {
                jobs,
                to: to.clone().unwrap_or_default(),
            }),
            (TaskAction::Revive, _) => Operation::DeadRevive(DeadSelect {
                jobs,
                ..DeadSelect::default()
            }),
            (TaskAction::Delete, _) => Operation::JobDelete(JobDelete { jobs }),
        }
    }
}

/// Whether a job is already where a change would put it.
fn is_there(job: &JobView, to: &ChangeTo, now: Timestamp) -> bool {
    to.queue.as_ref().is_none_or(|queue| *queue == job.queue)
        && to.priority.is_none_or(|priority| priority == job.priority)
        && match to.run_at {
            None => true,
            Some(at) if at <= now => job.state == JobState::Ready,
            Some(at) => job.state == JobState::Scheduled && job.run_at == Some(at),
        }
}

fn refusal(job: JobId, err: WireError) -> TaskRefusal {
    TaskRefusal { job, err }
}

/// The jobs that an operation was refused for.
fn refusals(jobs: &[JobId], body: &ReplyBody) -> Vec<TaskRefusal> {
    match body {
        ReplyBody::Cancel(reply) => {
            let results = jobs.iter().zip(&reply.results);
            let refused = results.filter_map(|(job, it)| Some(refusal(*job, it.err.clone()?)));
            refused.collect()
        }
        ReplyBody::Change(reply) => {
            let results = jobs.iter().zip(&reply.results);
            let refused = results.filter_map(|(job, it)| Some(refusal(*job, it.err.clone()?)));
            refused.collect()
        }
        ReplyBody::Count(reply) => {
            let message = "another job holds its unique key, or its expires_at has passed";
            let kept = WireError::new(ErrorCode::Conflict, message).with_state("dead");
            let conflicts = reply.conflicts.iter();
            conflicts.map(|job| refusal(*job, kept.clone())).collect()
        }
        _ => Vec::new(),
    }
}

impl Bulk {
    fn running(&self) -> usize {
        let tasks = self.tasks.values();
        tasks
            .filter(|task| task.view.state == TaskState::Running)
            .count()
    }

    /// Takes a task in; the oldest that have ended make room.
    fn insert(&mut self, task: &Task, by: String) -> (TaskId, CancellationToken) {
        let last = self.tasks.last_key_value().map_or(0, |(id, _)| id.0);
        let id = TaskId(task.started_at.0.max(last + 1));
        let ended = self.tasks.iter();
        let ended = ended.filter(|(_, task)| task.view.state != TaskState::Running);
        let ended: Vec<TaskId> = ended.map(|(id, _)| *id).collect();
        for old in ended.iter().rev().skip(ENDED_KEPT - 1) {
            self.tasks.remove(old);
        }
        let cancel = CancellationToken::new();
        let view = TaskView {
            id,
            state: TaskState::Running,
            start: task.start.clone(),
            by,
            started_at: task.started_at,
            ended_at: None,
            scanned: 0,
            matched: 0,
            changed: 0,
            refused: 0,
            refusals: Vec::new(),
        };
        let shown = Shown {
            namespace: task.origin.namespace.clone(),
            view,
            cancel: cancel.clone(),
        };
        self.tasks.insert(id, shown);
        (id, cancel)
    }

    fn find(&self, namespace: &NamespaceName, id: TaskId) -> Option<&Shown> {
        let task = self.tasks.get(&id);
        task.filter(|task| task.namespace == *namespace)
    }
}

impl Shard {
    /// Starts a task, and answers with it as it begins.
    pub fn start_task(
        self: &Arc<Self>,
        tasks: &Tasks,
        origin: Origin,
        start: TaskStart,
        by: String,
    ) {
        let caller = origin.caller;
        let mut task = Task::new(self.clock.now(), origin, start);
        let begun = {
            let mut bulk = self.bulk();
            match bulk.running() < RUNNING_MAX {
                true => Ok(bulk.insert(&task, by)),
                false => {
                    let message = format!("{RUNNING_MAX} tasks run; wait until one is through");
                    Err(WireError::overloaded(message, DurationMs::from_secs(1)))
                }
            }
        };
        let (id, cancel) = match begun {
            Ok(begun) => begun,
            Err(error) => return self.answer(caller, Err(error)),
        };
        self.answer_task(&task.origin, id);
        self.log_task(id, "a task has begun");
        let (shard, stopping) = (Arc::clone(self), tasks.stopping());
        tasks.spawn("bulk", OnPanic::Continue, async move {
            // Cancel-safe: a slice is applied at once, and between two of them nothing is held.
            let run = stopping.run_until_cancelled(shard.run_task(&mut task, id));
            let ended = cancel.run_until_cancelled(run).await.flatten();
            let state = match ended {
                Some(Ok(())) => TaskState::Finished,
                Some(Err(error)) => {
                    shard.fail(error);
                    TaskState::Cancelled
                }
                None => TaskState::Cancelled,
            };
            shard.end_task(id, state);
        });
    }

    async fn run_task(&self, task: &mut Task, id: TaskId) -> Result<(), StoreError> {
        while !task.is_complete() {
            self.has_room().await;
            let progress = self.task_slice(task)?;
            if let Some(shown) = self.bulk().tasks.get_mut(&id) {
                let view = &mut shown.view;
                view.scanned = task.scan.scanned();
                view.matched += progress.matched;
                view.changed += progress.changed;
                view.refused += progress.refusals.len() as u64;
                let room = REFUSALS_KEPT - view.refusals.len();
                view.refusals
                    .extend(progress.refusals.into_iter().take(room));
            }
            tokio::time::sleep(SLICE_REST).await;
        }
        Ok(())
    }

    /// One slice, the lock held only where it must be.
    fn task_slice(&self, task: &mut Task) -> Result<Progress, StoreError> {
        let next = {
            let mut inner = self.lock();
            task.scan
                .begin(&mut inner.core, self.clock.now(), SLICE_ROWS)?
        };
        let spots = match next {
            Next::Nothing => return Ok(Progress::default()),
            Next::Have(spots) => spots,
            Next::Read(walk) => task.scan.read(&self.store, &walk, SLICE_ROWS)?,
        };
        let mut delivery = Delivery::default();
        let mut inner = self.lock();
        let now = self.clock.now();
        let jobs = task.scan.meet(&inner.core, &spots, SLICE_ROWS)?;
        let mut progress = task.act(&mut inner.core, now, jobs)?;
        inner.route(std::mem::take(&mut progress.released), &mut delivery);
        self.leave(inner, now, delivery);
        Ok(progress)
    }

    fn end_task(&self, id: TaskId, state: TaskState) {
        let now = self.clock.now().wall;
        if let Some(shown) = self.bulk().tasks.get_mut(&id) {
            shown.view.state = state;
            shown.view.ended_at = Some(now);
        }
        self.log_task(id, "a task has ended");
    }

    /// Answers with a task. What it says to be changed is durable then.
    pub fn answer_task(&self, origin: &Origin, id: TaskId) {
        let found = self
            .bulk()
            .find(&origin.namespace, id)
            .map(|it| it.view.clone());
        let found = found.ok_or_else(|| no_such_task(id));
        self.answer(
            origin.caller,
            found.map(|view| ReplyBody::Task(Box::new(view))),
        );
    }

    /// Answers that there is no such task.
    pub fn refuse_task(&self, origin: &Origin, id: TaskId) {
        self.answer(origin.caller, Err(no_such_task(id)));
    }

    /// Answers with the tasks that the caller may see, the newest first.
    pub fn list_tasks(&self, origin: &Origin, may_see: impl Fn(&TaskStart) -> bool) {
        let tasks = {
            let bulk = self.bulk();
            let own = bulk.tasks.values().rev();
            let own = own.filter(|it| it.namespace == origin.namespace && may_see(&it.view.start));
            own.map(|it| it.view.clone()).collect()
        };
        self.answer(origin.caller, Ok(ReplyBody::Tasks(TasksReply { tasks })));
    }

    /// Asks a task to end, and answers with it. One that has ended stays as it is.
    pub fn cancel_task(&self, origin: &Origin, id: TaskId) {
        if let Some(task) = self.bulk().find(&origin.namespace, id) {
            task.cancel.cancel();
        }
        self.answer_task(origin, id);
    }

    /// What a task was started with.
    pub fn task_start(&self, namespace: &NamespaceName, id: TaskId) -> Option<TaskStart> {
        let bulk = self.bulk();
        bulk.find(namespace, id).map(|it| it.view.start.clone())
    }

    fn log_task(&self, id: TaskId, what: &str) {
        let bulk = self.bulk();
        let Some(Shown {
            namespace, view, ..
        }) = bulk.tasks.get(&id)
        else {
            return;
        };
        let queue = view.start.filter.queue.as_ref();
        tracing::info!(
            task = id.0,
            %namespace,
            token = view.by,
            action = view.start.action.as_str(),
            queue = queue.map(tracing::field::display),
            dry_run = view.start.dry_run,
            state = view.state.as_str(),
            matched = view.matched,
            changed = view.changed,
            refused = view.refused,
            "{what}"
        );
    }
}

/// What somebody is told who names a task that is not shown.
fn no_such_task(id: TaskId) -> WireError {
    WireError {
        field: Some("task".to_owned()),
        ..WireError::new(
            ErrorCode::NotFound,
            format!("no task {id} is known; a task ends with the server that ran it"),
        )
    }
}
