//! Unique keys, which all producers of plain jobs share: no two jobs of a key are there at the same
//! time, and a push that makes none has met one that was.

use std::collections::BTreeMap;

use ganger_protocol::{JobId, ids::Tag};

use crate::{
    check::{Job, Jobs},
    plan::{Identity, Plan},
};

pub(crate) fn check(plan: Plan, jobs: &Jobs, broken: &mut Vec<String>) {
    let mut by_key: BTreeMap<Tag, Vec<(Identity, &Job)>> = BTreeMap::new();
    for (identity, job) in &jobs.known {
        if let Some(key) = plan.unique(*identity) {
            by_key.entry(key).or_default().push((*identity, job));
        }
    }
    for (key, jobs) in by_key {
        let there = |(identity, job): &(Identity, &Job)| {
            let over = job.may_be_over(plan.max_attempts(*identity));
            Some((job.is_there?, over, job.id?))
        };
        let mut times: Vec<(usize, usize, JobId)> = jobs.iter().filter_map(there).collect();
        times.retain(|(from, to, _)| from < to);
        times.sort_unstable();
        for pair in times.windows(2) {
            if pair[0].1 > pair[1].0 {
                broken.push(format!("I11: {key} has two jobs at a time: {pair:?}"));
            }
        }
        for (identity, job) in &jobs {
            let Some((holder, answered)) = job.met else {
                continue;
            };
            let held = jobs.iter().find(|(_, job)| job.id == Some(holder));
            let may_hold = held.is_some_and(|(_, held)| {
                held.pushed < answered && held.is_over.is_none_or(|over| over > job.pushed)
            });
            if !may_hold {
                broken.push(format!(
                    "I11: {identity:?} met {holder}, not of {key}: {held:?}"
                ));
            }
        }
    }
}
