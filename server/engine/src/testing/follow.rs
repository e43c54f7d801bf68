//! Whoever follows all events knows where every job stands: held against the counters of the queues
//! after every step, so that no transition is told wrongly, twice or not at all.

use std::collections::BTreeMap;

use ganger_protocol::{
    JobId, NamespaceName, QueueName,
    event::{Event, EventName},
    job::JobState,
    response::Counters,
};

use crate::{Engine, command::Happened};

/// What events alone say of the jobs of a shard.
#[derive(Debug, Clone, Default)]
pub(crate) struct Follower {
    jobs: BTreeMap<JobId, (NamespaceName, QueueName, JobState)>,
}

impl Follower {
    /// Takes in what has happened.
    pub(crate) fn hear(&mut self, happened: &[Happened]) {
        for Happened { namespace, event } in happened {
            match event.event {
                EventName::QueuePurged => {
                    let queue = event.queue.as_ref();
                    self.jobs
                        .retain(|_, (of, name, _)| of != namespace || Some(&*name) != queue);
                }
                EventName::QueuePaused
                | EventName::QueueResumed
                | EventName::QueueDeleted
                | EventName::BatchOpened
                | EventName::BatchCommitted
                | EventName::BatchLapsed
                | EventName::BatchSettled
                | EventName::CronPushed => {}
                EventName::Pushed
                | EventName::Scheduled
                | EventName::Ready
                | EventName::Granted
                | EventName::Done
                | EventName::Failed
                | EventName::Released
                | EventName::Lost
                | EventName::Dead
                | EventName::Cancelled
                | EventName::Expired
                | EventName::Revived
                | EventName::Changed
                | EventName::Deleted => self.hear_of_job(namespace, event),
            }
        }
    }

    /// Whether it is no burden to keep what it knew at each group.
    pub(crate) fn is_small(&self) -> bool {
        self.jobs.len() < 256
    }

    fn hear_of_job(&mut self, namespace: &NamespaceName, event: &Event) {
        let (Some(job), Some(queue), Some(_kind)) = (event.job, &event.queue, &event.kind) else {
            panic!("{event:?} says too little");
        };
        let before = match event.state {
            Some(state) => {
                let now = (namespace.clone(), queue.clone(), state);
                self.jobs.insert(job, now)
            }
            None => self.jobs.remove(&job),
        };
        let before = before.map(|(_, _, state)| state);
        assert!(may_follow(before, event), "{event:?} behind {before:?}");
    }

    /// Whether the counters of the queues say the same.
    pub(crate) fn check(&self, engine: &Engine) {
        let mut counted = [0; 5];
        for queue in engine.queues.iter() {
            let counters = &queue.record.counters;
            for (count, state) in counted.iter_mut().zip(LIVE) {
                *count += figure(counters, state);
            }
        }
        let told = LIVE.map(|state| {
            let jobs = self.jobs.values().filter(|(_, _, other)| *other == state);
            jobs.count() as u64
        });
        assert_eq!(told, counted, "the events, and the counters, of {LIVE:?}");
    }
}

/// The states that the counters are exact about, whatever is kept of other jobs.
const LIVE: [JobState; 5] = [
    JobState::Scheduled,
    JobState::Blocked,
    JobState::Ready,
    JobState::Leased,
    JobState::Dead,
];

fn figure(counters: &Counters, state: JobState) -> u64 {
    match state {
        JobState::Scheduled => counters.scheduled,
        JobState::Blocked => counters.blocked,
        JobState::Ready => counters.ready,
        JobState::Leased => counters.leased,
        JobState::Dead => counters.dead,
        JobState::Done | JobState::Cancelled | JobState::Expired => 0,
    }
}

/// Whether this can happen to a job that stood so; `None`: nothing was kept of it.
fn may_follow(before: Option<JobState>, event: &Event) -> bool {
    use JobState::{Blocked, Cancelled, Dead, Done, Expired, Leased, Ready, Scheduled};
    let from: &[JobState] = match event.event {
        EventName::Pushed => return before.is_none(),
        EventName::Scheduled => &[Blocked],
        EventName::Ready => &[Scheduled, Blocked],
        EventName::Granted => &[Ready],
        EventName::Done | EventName::Failed | EventName::Released | EventName::Lost => &[Leased],
        // The attempt that ended by it was told before.
        EventName::Dead => &[Dead],
        EventName::Cancelled => &[Scheduled, Blocked, Ready, Leased, Cancelled],
        EventName::Expired => &[Scheduled, Blocked, Ready],
        EventName::Revived => &[Dead],
        EventName::Changed => &[Scheduled, Blocked, Ready],
        EventName::Deleted => match before {
            // A fail that discards its job.
            None => return true,
            Some(_) => &[Done, Dead, Cancelled, Expired],
        },
        EventName::BatchOpened
        | EventName::BatchCommitted
        | EventName::BatchLapsed
        | EventName::BatchSettled
        | EventName::CronPushed
        | EventName::QueuePaused
        | EventName::QueueResumed
        | EventName::QueuePurged
        | EventName::QueueDeleted => &[],
    };
    before.is_some_and(|before| from.contains(&before))
}
