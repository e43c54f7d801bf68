//! Jobs that are pushed, moved, started, delayed, cancelled, purged and run at random, beside a model
//! that knows nothing but where each was put last.

use ganger_protocol::request::JobCancel;
use proptest::prelude::*;

use super::*;
use crate::testing::tiny;

const QUEUES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Act {
    Push(usize, Option<u64>, Option<u8>),
    Change(usize, Option<u64>, Option<usize>, Option<u8>),
    Cancel(usize),
    Run(usize),
    Purge(usize),
    Pass(u64),
    Seal,
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let queue = || 0..QUEUES.len();
    let delay = || prop::option::of(1_u64..2_000);
    let key = prop::option::of(0_u8..4);
    let to = || {
        (
            prop::option::of(0_u64..2_000),
            prop::option::of(queue()),
            prop::option::of(0_u8..3),
        )
    };
    prop_oneof![
        6 => (queue(), delay(), key).prop_map(|(queue, delay, key)| Act::Push(queue, delay, key)),
        8 => (any::<usize>(), to()).prop_map(|(nth, (delay, queue, priority))| {
            Act::Change(nth, delay, queue, priority)
        }),
        1 => any::<usize>().prop_map(Act::Cancel),
        3 => queue().prop_map(Act::Run),
        1 => queue().prop_map(Act::Purge),
        3 => (1_u64..1_500).prop_map(Act::Pass),
        3 => Just(Act::Seal),
        1 => Just(Act::Reopen),
    ]
}

/// A job that waits.
#[derive(Debug, Clone, PartialEq)]
struct Mine {
    id: JobId,
    queue: usize,
    priority: u8,
    /// When it becomes ready; `None`: it is.
    at: Option<Timestamp>,
    /// Whether it has left the run in which it was born: of one millisecond these come first.
    is_moved: bool,
    /// When it became ready, counted.
    order: u64,
    key: Option<(usize, u8)>,
}

#[derive(Debug, Default)]
struct Model {
    jobs: Vec<Mine>,
    order: u64,
    moved: [(u64, u64); 3],
}

impl Model {
    fn next(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// Time has passed: what is due becomes ready, the earliest first.
    fn fire(&mut self, now: Timestamp) {
        let due = |job: &&mut Mine| job.at.is_some_and(|at| at <= now);
        let mut due: Vec<&mut Mine> = self.jobs.iter_mut().filter(due).collect();
        due.sort_by_key(|job| (job.at, !job.is_moved, job.id));
        for job in due {
            job.at = None;
            job.is_moved = true;
            self.order += 1;
            job.order = self.order;
        }
    }

    /// The ready jobs of a queue, as they are to be granted.
    fn ready(&self, queue: usize) -> Vec<JobId> {
        let ready = self.jobs.iter();
        let ready = ready.filter(|job| job.queue == queue && job.at.is_none());
        let mut ready: Vec<&Mine> = ready.collect();
        ready.sort_by_key(|job| (9 - job.priority, job.order));
        ready.iter().map(|job| job.id).collect()
    }

    fn change(
        &mut self,
        nth: usize,
        due: Option<Timestamp>,
        (queue, priority): (Option<usize>, Option<u8>),
        now: Timestamp,
    ) -> bool {
        let order = self.next();
        let job = &mut self.jobs[nth];
        let before = job.clone();
        if let Some(due) = due {
            job.at = (due > now).then_some(due);
        }
        job.queue = queue.unwrap_or(job.queue);
        job.priority = priority.unwrap_or(job.priority);
        if *job == before {
            return false;
        }
        job.is_moved = true;
        if job.at.is_none() {
            job.order = order;
        }
        if job.queue != before.queue {
            self.moved[before.queue].1 += 1;
            self.moved[job.queue].0 += 1;
        }
        true
    }
}

fn check(world: &mut World, model: &Model) {
    for (queue, name) in QUEUES.iter().enumerate() {
        let counters = world.counters(name);
        let own = model.jobs.iter().filter(|job| job.queue == queue);
        let (scheduled, ready): (Vec<_>, Vec<_>) = own.partition(|job| job.at.is_some());
        assert_eq!(counters.scheduled, scheduled.len() as u64, "{name}");
        assert_eq!(counters.ready, ready.len() as u64, "{name}");
        assert_eq!((counters.moved_in, counters.moved_out), model.moved[queue]);
    }
    for job in &model.jobs {
        let view = world.look(job.id).unwrap();
        assert_eq!(view.queue.as_str(), QUEUES[job.queue]);
        assert_eq!((view.priority, view.run_at), (job.priority, job.at));
    }
}

proptest! {
    #[test]
    fn jobs_are_where_they_were_put_last(acts in prop::collection::vec(act(), 1..70)) {
        let mut world = World::with(tiny());
        world.follow();
        let mut model = Model::default();
        for queue in QUEUES {
            world.ask(None, Operation::QueueCreate(one(queue))).unwrap();
        }
        let mut worker = world.worker();
        for act in acts {
            let now = world.now.wall;
            match act {
                Act::Push(queue, delay, key) => {
                    // A key of its own in each queue: it is named by the one that it was pushed to.
                    let key = key.map(|key| (queue, key));
                    let unique = key.map(|(queue, key)| {
                        Box::new(Unique::named(format!("{queue}-{key}").parse().unwrap()))
                    });
                    let id = world.push(JobSpec {
                        delay_ms: delay.map(DurationMs),
                        unique,
                        ..job(QUEUES[queue])
                    });
                    let holder = model.jobs.iter().find(|job| job.key.is_some() && job.key == key);
                    if let Some(holder) = holder {
                        prop_assert_eq!(id, holder.id, "it holds the key");
                        continue;
                    }
                    let order = model.next();
                    let at = delay.map(|delay| now.plus(DurationMs(delay)));
                    model.jobs.push(Mine {
                        id,
                        queue,
                        priority: 5,
                        at,
                        is_moved: false,
                        order,
                        key,
                    });
                }
                Act::Change(nth, delay, queue, priority) if !model.jobs.is_empty() => {
                    let nth = nth % model.jobs.len();
                    let to = ChangeTo {
                        delay_ms: delay.map(DurationMs),
                        queue: queue.map(|queue| QUEUES[queue].parse().unwrap()),
                        priority,
                        ..ChangeTo::default()
                    };
                    if to == ChangeTo::default() {
                        continue;
                    }
                    let result = change(&mut world, model.jobs[nth].id, &to);
                    let due = delay.map(|delay| now.plus(DurationMs(delay)));
                    let is_changed = model.change(nth, due, (queue, priority), now);
                    prop_assert_eq!(&result.err, &None);
                    prop_assert_eq!(result.already, !is_changed);
                    prop_assert_eq!(result.run_at, model.jobs[nth].at);
                }
                Act::Cancel(nth) if !model.jobs.is_empty() => {
                    let job = model.jobs.swap_remove(nth % model.jobs.len());
                    let cancel = JobCancel::new(vec![job.id]);
                    world.ask(None, Operation::JobCancel(cancel)).unwrap();
                }
                Act::Change(..) | Act::Cancel(_) => {}
                Act::Run(queue) => {
                    let granted = world.fetch(worker, QUEUES[queue], 2);
                    let expected: Vec<JobId> = model.ready(queue).into_iter().take(2).collect();
                    prop_assert_eq!(ids(&granted), expected);
                    for job in &granted {
                        prop_assert_eq!(&world.ack(worker, job).err, &None);
                        model.jobs.retain(|mine| mine.id != job.id);
                    }
                }
                Act::Purge(queue) => {
                    world.ask(None, Operation::QueuePurge(one(QUEUES[queue]))).unwrap();
                    model.jobs.retain(|job| job.queue != queue);
                }
                Act::Pass(ms) => {
                    world.pass(DurationMs(ms));
                    model.fire(world.now.wall);
                }
                Act::Seal => world.commit(),
                Act::Reopen => {
                    world.reopen();
                    worker = world.worker();
                }
            }
            check(&mut world, &model);
        }
        world.pass(DurationMs(2_000));
        model.fire(world.now.wall);
        for (queue, name) in QUEUES.iter().enumerate() {
            prop_assert_eq!(drain(&mut world, name), model.ready(queue));
        }
        world.commit();
        for session in world.sessions() {
            world.goodbye(session);
        }
        // Old numbers stay until a start has found that nobody needs them.
        for _ in 0..2 {
            for _ in 0..200 {
                world.commit();
                world.pass(DurationMs(1));
            }
            world.reopen();
        }
        world.store.check_empty();
        world.engine.check_drained().unwrap();
    }
}
