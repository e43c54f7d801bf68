//! Administrators: they look, pause and resume queues, revive and purge dead jobs.

use ganger_protocol::{
    queue::QueuePause,
    request::{DeadSelect, JobGet, Operation, QueueNames, Stats},
};

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
        match self.rng.u32(..10) {
            0..3 => self.pause(queue, true),
            3..6 => self.pause(queue, false),
            6 | 7 => self.change_dead(queue, &from),
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
