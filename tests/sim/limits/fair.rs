//! Turns: keys with many jobs share their queue as their weights say.
//!
//! For that jobs of three keys are brought into lanes of their own, by a limit at which they stand and
//! which is lifted then, and are granted all, one after the other.

use ganger_protocol::{
    JobSpec, QueuePattern,
    limit::LimitSet,
    request::{Fetch, Operation},
};

use super::{
    AskedFetch, AskedLimit,
    known::{KEYS, queue_name},
    target_of,
};
use crate::{clients::Asked, history::Checked, world::World};

/// The queue of turns, its keys, and how many jobs each has there.
const QUEUE: usize = 2;
const FAIR_KEYS: std::ops::Range<usize> = 5..8;
const JOBS: usize = 10;

impl World {
    pub(super) fn look_at_turns(&mut self) -> Checked {
        if std::mem::replace(&mut self.limits.was_fair, true) {
            return Ok(());
        }
        let boots = self.limits.boots;
        let mut set = LimitSet::of(target_of("key/f:*"));
        set.max_running = Some(1);
        self.set_limit(set)?;
        let mut jobs = Vec::new();
        for _ in 0..JOBS {
            for key in FAIR_KEYS {
                let kind = "fair".parse().expect("a legal name");
                let spec = JobSpec {
                    timeout_ms: Some(ganger_protocol::DurationMs::from_mins(1)),
                    ..JobSpec::new(kind, "")
                };
                jobs.push(self.add_limited(spec, QUEUE, Some(key)));
            }
        }
        let first = self.limits.known.jobs.len() - jobs.len();
        self.push_limited_jobs(jobs)?;
        self.settle()?;
        self.end_limits_worker(0)?;
        self.open_limits(0, true)?;
        self.limits.granted.clear();
        self.fetch_turns(8)?;
        let weights: Vec<u32> = FAIR_KEYS.map(|_| self.rng.u32(1..4)).collect();
        for (key, weight) in FAIR_KEYS.zip(&weights) {
            let mut set = LimitSet::of(target_of(&format!("key/{}", KEYS[key])));
            set.weight = Some(*weight);
            self.set_limit(set)?;
        }
        let mut shares = [0_u32; 3];
        for _ in 0..JOBS * 3 {
            self.limits.granted.clear();
            let max = self.rng.u32(1..4);
            self.fetch_turns(max)?;
            if self.limits.boots != boots {
                return Ok(());
            }
            for token in self.limits.granted.clone() {
                let key = self.limits.known.jobs[token].key.unwrap_or_default();
                if token < first || !FAIR_KEYS.contains(&key) {
                    continue;
                }
                // One was granted before each began to have turns.
                if shares.iter().any(|share| *share as usize >= JOBS - 1) {
                    return Ok(());
                }
                shares[key - FAIR_KEYS.start] += 1;
                // A lane that must be read again misses its turn.
                if self.plan.heads_max >= 1000 {
                    check_shares(shares, &weights)?;
                }
            }
            if shares.iter().any(|share| *share as usize >= JOBS - 1) {
                return Ok(());
            }
        }
        Err(format!("keys are starved: {shares:?} with {weights:?}"))
    }

    fn fetch_turns(&mut self, max: u32) -> Checked {
        let Some(from) = self.limits_worker(0) else {
            return Ok(());
        };
        let Some(session) = from.session else {
            return Ok(());
        };
        let fetch = Fetch {
            queues: vec![QueuePattern::Name(queue_name(QUEUE))],
            max,
            ..Fetch::default()
        };
        let asked = AskedFetch {
            worker: 0,
            connection: from.connection,
            session,
            queues: vec![QUEUE],
            max: max as usize,
            is_direct: true,
            stands: false,
            acks: Vec::new(),
            at: self.elapsed(),
            changes: self.limits.known.changes,
        };
        self.limits.workers[0].is_fetching = true;
        let asked = Asked::Limit(AskedLimit::Fetch(asked));
        self.request(&from, Operation::Fetch(fetch), asked)?;
        // What must be read first is read by ticks.
        self.tick(100)?;
        self.settle()
    }
}

/// Nobody is more than a turn before another.
fn check_shares(shares: [u32; 3], weights: &[u32]) -> Checked {
    let pairs = shares.iter().zip(weights);
    for (own, weight) in pairs.clone() {
        for (other, other_weight) in pairs.clone() {
            if own * other_weight > (other + other_weight) * weight {
                return Err(format!(
                    "keys have had {shares:?} jobs, and their weights are {weights:?}"
                ));
            }
        }
    }
    Ok(())
}
