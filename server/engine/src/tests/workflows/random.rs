//! Workflows under random requests, beside a naive model of who waits for whom.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::testing::fail_item;
use ganger_protocol::request::FailItem;

#[derive(Debug, Clone)]
enum Act {
    /// Each job with the earlier ones that it waits for, any end or not, held or not.
    Push(Vec<(u8, bool, bool)>),
    Ack,
    Dead,
    Discard,
    Cancel(u8),
    Revive,
    Purge,
    Reopen,
    Seal,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => prop::collection::vec((any::<u8>(), any::<bool>(), any::<bool>()), 1..8)
            .prop_map(Act::Push),
        6 => Just(Act::Ack),
        2 => Just(Act::Dead),
        1 => Just(Act::Discard),
        2 => any::<u8>().prop_map(Act::Cancel),
        2 => Just(Act::Revive),
        1 => Just(Act::Purge),
        1 => Just(Act::Reopen),
        1 => Just(Act::Seal),
    ]
}

/// A job as the model sees it.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    state: Option<JobState>,
    /// Whom it waits for.
    after: BTreeSet<JobId>,
    /// How many of those will not come any more.
    missed: u32,
    any_end: bool,
    is_held: bool,
}

#[derive(Debug, Default)]
struct Model(BTreeMap<JobId, Known>);

impl Model {
    /// A job ended so; `None`: nothing of it is kept.
    fn ends(&mut self, job: JobId, is_done: bool, kept: Option<JobState>) {
        let known = self.0.get_mut(&job).unwrap();
        known.state = kept;
        known.after.clear();
        let waiting: Vec<JobId> = self
            .0
            .iter()
            .filter(|(_, known)| known.after.contains(&job))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            let other = self.0.get_mut(&id).unwrap();
            if is_done || other.any_end {
                other.after.remove(&job);
                if other.after.is_empty() && other.missed == 0 {
                    other.state = Some(JobState::Ready);
                }
            } else if !other.is_held {
                self.ends(id, false, None);
            } else if kept.is_none() {
                other.after.remove(&job);
                other.missed += 1;
            }
        }
    }

    fn of_state(&self, state: JobState) -> Vec<JobId> {
        let known = self
            .0
            .iter()
            .filter(|(_, known)| known.state == Some(state));
        known.map(|(id, _)| *id).collect()
    }
}

fn specs(nodes: &[(u8, bool, bool)]) -> Vec<JobSpec> {
    let spec = |(nth, (bits, any_end, is_held)): (usize, &(u8, bool, bool))| {
        let before = (0..nth).filter(|other| bits >> other & 1 == 1);
        let after: Vec<Tag> = before.map(|other| tag(&format!("n{other}"))).collect();
        let waits = !after.is_empty();
        JobSpec {
            name: Some(tag(&format!("n{nth}"))),
            condition: (waits && *any_end).then_some(Condition::Settled),
            on_dead: (waits && *is_held && !*any_end).then_some(OnDead::Hold),
            after,
            ..job("work")
        }
    };
    nodes.iter().enumerate().map(spec).collect()
}

impl World {
    fn end_one(&mut self, worker: SessionId, act: &Act) -> Option<JobId> {
        let job = self.fetch(worker, "work", 1).pop()?;
        let item = |dead| FailItem {
            dead,
            discard: !dead,
            ..fail_item(job.id, job.lease)
        };
        match act {
            Act::Dead => self.fail_with(worker, item(true)),
            Act::Discard => self.fail_with(worker, item(false)),
            _ => self.ack(worker, &job),
        };
        Some(job.id)
    }
}

proptest! {
    /// Nobody starts before those that it waits for, nobody is cancelled for nothing, and nobody
    /// stays.
    #[test]
    fn each_job_stands_where_the_model_says(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        world.follow();
        let mut model = Model::default();
        let mut worker = world.worker();
        let first = world.push(job("work"));
        world.cancel_one(first);
        world.commit();
        for act in acts {
            match &act {
                Act::Push(nodes) => {
                    let specs = specs(nodes);
                    let ids = world.push_graph(specs.clone());
                    for (id, spec) in ids.iter().zip(&specs) {
                        let nth = |name: &Tag| name.as_str()[1..].parse::<usize>().unwrap();
                        let after: BTreeSet<JobId> =
                            spec.after.iter().map(|name| ids[nth(name)]).collect();
                        let state = match after.is_empty() {
                            true => JobState::Ready,
                            false => JobState::Blocked,
                        };
                        let known = Known {
                            state: Some(state),
                            after,
                            missed: 0,
                            any_end: spec.condition.is_some(),
                            is_held: spec.on_dead.is_some(),
                        };
                        model.0.insert(*id, known);
                    }
                }
                Act::Ack => if let Some(job) = world.end_one(worker, &act) {
                    model.ends(job, true, None);
                },
                Act::Dead => if let Some(job) = world.end_one(worker, &act) {
                    model.ends(job, false, Some(JobState::Dead));
                },
                Act::Discard => if let Some(job) = world.end_one(worker, &act) {
                    model.ends(job, false, None);
                },
                Act::Cancel(nth) => {
                    let waiting = [JobState::Blocked, JobState::Ready];
                    let jobs: Vec<_> =
                        waiting.into_iter().flat_map(|state| model.of_state(state)).collect();
                    if !jobs.is_empty() {
                        let job = jobs[usize::from(*nth) % jobs.len()];
                        world.cancel_one(job);
                        model.ends(job, false, None);
                    }
                }
                Act::Revive => if let Some(job) = model.of_state(JobState::Dead).pop() {
                    world.revive(only(job));
                    model.0.get_mut(&job).unwrap().state = Some(JobState::Ready);
                },
                Act::Purge => if let Some(job) = model.of_state(JobState::Dead).pop() {
                    world.purge(only(job));
                    model.ends(job, false, None);
                },
                Act::Reopen => {
                    world.reopen();
                    worker = world.worker();
                    world.commit();
                }
                Act::Seal => world.commit(),
            }
            world.tick();
            for (job, known) in &model.0 {
                prop_assert_eq!(world.state(*job), known.state, "{:?} {:?}", job, known);
            }
        }
        world.commit();
        world.store.check_edges();
        for job in model.0.keys() {
            if world.state(*job).is_some_and(|state| state != JobState::Dead) {
                world.cancel_one(*job);
                world.tick();
            }
        }
        world.purge(DeadSelect { queue: "work".parse().ok(), ..DeadSelect::default() });
        world.tick();
        world.commit();
        prop_assert!(world.store.edges.is_empty());
        world.store.check_empty();
    }
}
