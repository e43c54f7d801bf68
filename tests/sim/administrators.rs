//! Administrators: they look, pause and resume queues, revive and purge dead jobs, start and delay
//! jobs that wait, one by one, and start and cancel all of a queue by tasks.

use ganger_engine::command::{Caller, Origin};
use ganger_protocol::{
    DurationMs, JobId, QueuePattern,
    change::{ChangeTo, JobChange},
    job::JobState,
    list::JobFilter,
    queue::QueuePause,
    request::{DeadSelect, JobGet, Operation, QueueNames, Stats},
    task::{TaskAction, TaskStart},
};
use ganger_server::driver::bulk::Task;

use crate::{
    clients::Asked,
    history::Checked,
    world::{From, World},
};

impl World {
    pub fn step_admin(&mut self) -> Checked {
        if !self.is_up() {
            return Ok(());
        }
        let queue = self.rng.usize(..self.plan.queues.len());
        let from = self.administrator(queue);
        if self.task.is_some() && self.rng.bool() {
            return self.task_slice();
        }
        match self.rng.u32(..13) {
            0..3 => self.pause(queue, true),
            3..6 => self.pause(queue, false),
            6 | 7 => self.change_dead(queue, &from),
            10 => self.change_one(queue, &from),
            11 => {
                self.begin_task(queue, &from);
                Ok(())
            }
            8 => {
                let known: Vec<usize> = self
                    .history
                    .jobs
                    .iter()
                    .enumerate()
                    .filter(|(_, job)| job.queue == queue && job.id.is_some())
                    .map(|(job, _)| job)
                    .collect();
                if known.is_empty() {
                    return Ok(());
                }
                let job = known[self.rng.usize(known.len().saturating_sub(40)..known.len())];
                self.look_at(job, &from)
            }
            _ => self.request(&from, Operation::Stats(Stats {}), Asked::Anything),
        }
    }

    /// A connection without a session.
    pub fn administrator(&mut self, queue: usize) -> From {
        From {
            connection: self.connect(),
            namespace: self.plan.queues[queue].namespace.clone(),
            session: None,
            producer: None,
        }
    }

    pub fn pause(&mut self, queue: usize, is_paused: bool) -> Checked {
        // A push that met a held key makes no queue.
        if self.history.pushed(queue).0 == self.history.perhaps_void(queue) {
            return Ok(());
        }
        let from = self.administrator(queue);
        let group = self.open_group();
        let operation = self.history.pause_applied(queue, is_paused, group);
        let names = QueueNames {
            queues: vec![self.plan.queues[queue].name.clone()],
        };
        let request = match is_paused {
            true => Operation::QueuePause(QueuePause {
                queues: names.queues,
                ..QueuePause::default()
            }),
            false => Operation::QueueResume(names),
        };
        self.trace.note(
            self.elapsed(),
            "queue {} is paused: {}",
            &[queue as u64, u64::from(is_paused)],
        );
        self.request(&from, request, Asked::Pause { queue, operation })
    }

    fn look_at(&mut self, job: usize, from: &From) -> Checked {
        let Some(id) = self.history.jobs[job].id else {
            return Ok(());
        };
        let asked = Asked::Get {
            job,
            presence: self.history.presence(job),
        };
        self.request(from, Operation::JobGet(JobGet { job: id }), asked)
    }

    /// Starts or delays a job, whether it waits or not.
    fn change_one(&mut self, queue: usize, from: &From) -> Checked {
        let live = self.history.live.iter().copied();
        let known: Vec<(usize, JobId)> = live
            .filter(|job| self.history.jobs[*job].queue == queue)
            .filter_map(|job| Some((job, self.history.jobs[job].id?)))
            .collect();
        if known.is_empty() {
            return Ok(());
        }
        let (job, id) = known[self.rng.usize(..known.len())];
        let delay = [0, 0, 500, 30_000][self.rng.usize(..4)];
        let (group, presence) = (self.open_group(), self.history.presence(job));
        let operation = self.history.may_change(&[job], false, group);
        self.trace.note(
            self.elapsed(),
            "job {} is changed, to be ready in {} ms",
            &[job as u64, delay],
        );
        let change = JobChange {
            jobs: vec![id],
            to: ChangeTo::after(DurationMs(delay)),
        };
        let asked = Asked::Change {
            job,
            operation,
            presence,
            stretch: self.clock.stretch(),
        };
        self.request(from, Operation::JobChange(change), asked)
    }

    /// Begins to start or to cancel all waiting jobs of a queue; another task ends by it.
    fn begin_task(&mut self, queue: usize, from: &From) {
        let action = match self.rng.u32(..3) {
            0 => TaskAction::Cancel,
            _ => TaskAction::Change,
        };
        let name = QueuePattern::Name(self.plan.queues[queue].name.clone());
        let filter = JobFilter::of(name).in_states([JobState::Scheduled, JobState::Ready]);
        let start = TaskStart {
            to: (action == TaskAction::Change).then(ChangeTo::now),
            ..TaskStart::new(action, filter)
        };
        let origin = Origin {
            caller: Caller {
                connection: from.connection,
                request: 0,
            },
            namespace: from.namespace.clone(),
            session: None,
            producer: None,
        };
        self.trace.note(
            self.elapsed(),
            "a task begins over queue {}, cancels: {}",
            &[queue as u64, u64::from(action == TaskAction::Cancel)],
        );
        let task = Task::new(self.now(), origin, start);
        self.task = Some((queue, action == TaskAction::Cancel, task));
    }

    /// A slice of the task that runs.
    fn task_slice(&mut self) -> Checked {
        let Some((queue, cancels, mut task)) = self.task.take() else {
            return Ok(());
        };
        let live = self.history.live.iter().copied();
        let own = live.filter(|job| self.history.jobs[*job].queue == queue);
        let own: Vec<usize> = own.collect();
        let group = self.open_group();
        self.history.may_change(&own, cancels, group);
        let Some((changed, refused)) = self.apply_slice(&mut task)? else {
            return Ok(());
        };
        self.trace.note(
            self.elapsed(),
            "a slice of a task over queue {} changes {} jobs",
            &[queue as u64, changed],
        );
        // One whose time has passed and whose timer has not fired is not started any more.
        if refused > 0 && self.plan.expiring_percent == 0 {
            return Err(format!("a task was refused for {refused} jobs"));
        }
        if !task.is_complete() {
            self.task = Some((queue, cancels, task));
        }
        Ok(())
    }

    /// Revives or purges dead jobs, by their ids or the oldest of a queue.
    fn change_dead(&mut self, queue: usize, from: &From) -> Checked {
        let is_purge = self.rng.u32(..3) == 0;
        let is_named = self.rng.u32(..3) > 0;
        let jobs = self.history.live.iter().copied();
        let mut jobs: Vec<(usize, bool)> = jobs
            .filter(|job| self.history.jobs[*job].queue == queue)
            .filter(|job| self.history.jobs[*job].id.is_some() || !is_named)
            .map(|job| (job, self.history.is_dead(job)))
            .collect();
        let mut select = DeadSelect::default();
        if is_named {
            jobs.retain(|(_, is_dead)| *is_dead || self.rng.u32(..8) == 0);
            jobs.truncate(4);
            let ids = jobs
                .iter()
                .filter_map(|(job, _)| self.history.jobs[*job].id);
            select.jobs = ids.collect();
        } else {
            select.queue = Some(self.plan.queues[queue].name.clone());
            select.limit = Some(self.rng.u32(1..4));
        }
        if jobs.is_empty() {
            return Ok(());
        }
        let group = self.open_group();
        let tokens: Vec<usize> = jobs.iter().map(|(job, _)| *job).collect();
        let operation = self.history.dead_applied(&tokens, is_purge, group);
        self.trace.note(
            self.elapsed(),
            "dead jobs of queue {} are changed: {} named, purge: {}",
            &[queue as u64, select.jobs.len() as u64, u64::from(is_purge)],
        );
        let request = match is_purge {
            true => Operation::DeadPurge(select),
            false => Operation::DeadRevive(select),
        };
        let asked = Asked::Dead {
            jobs,
            operation,
            is_purge,
            is_named,
        };
        self.request(from, request, asked)
    }
}
