//! Random work under random limits, compared with what was asked: no limit is passed, no order
//! broken, and everything is granted in the end.

use std::collections::BTreeMap;

use ganger_protocol::{
    DurationMs, JobId, SessionId,
    job::GrantedJob,
    limit::Rate,
    request::{FailItem, JobCancel, Operation},
};
use proptest::prelude::*;

use super::many;
use crate::testing::{World, fail_item, lease_ref, small, tiny};

const KEYS: [&str; 4] = ["free", "three", "rate", "seq"];

#[derive(Debug, Clone)]
enum Step {
    Push(usize, u64),
    Fetch(u32),
    Ack(usize),
    Fail(usize, u64),
    Release(usize),
    Cancel(usize),
    Pass(u64),
    Commit,
    Reopen,
    Unlimit(usize),
    Limit(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..KEYS.len(), prop_oneof![4 => 1..8_u64, 1 => 60..90_u64])
            .prop_map(|(key, count)| Step::Push(key, count)),
        6 => (1..12_u32).prop_map(Step::Fetch),
        5 => any::<usize>().prop_map(Step::Ack),
        2 => (any::<usize>(), 0..3_000_u64).prop_map(|(nth, ms)| Step::Fail(nth, ms)),
        1 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Cancel),
        3 => (1..1_500_u64).prop_map(Step::Pass),
        2 => Just(Step::Commit),
        1 => Just(Step::Reopen),
        1 => (0..KEYS.len()).prop_map(Step::Unlimit),
        1 => (0..KEYS.len()).prop_map(Step::Limit),
    ]
}

/// What is known of the jobs of a key.
#[derive(Debug, Default)]
struct Known {
    pushed: u64,
    /// Of a sequence: granted for the first time so far, and in this order.
    first: Vec<JobId>,
    /// Jobs that are not over, in the order of their pushes.
    open: Vec<JobId>,
    /// Of a rate: when its jobs were granted, by the wall clock.
    granted_at: Vec<u64>,
}

struct Test {
    world: World,
    worker: SessionId,
    leased: Vec<GrantedJob>,
    known: BTreeMap<&'static str, Known>,
    limited: [bool; 4],
    /// Whether `seq` was a sequence all the time: a job that failed before keeps nobody back.
    is_strict: bool,
}

fn rate() -> Rate {
    Rate {
        n: 4,
        per_ms: DurationMs(2_000),
        burst: Some(2),
    }
}

impl Test {
    fn new(is_tiny: bool) -> Self {
        let mut world = World::with(if is_tiny { tiny() } else { small() });
        world.follow();
        let worker = world.worker();
        let mut test = Self {
            world,
            worker,
            leased: Vec::new(),
            known: BTreeMap::new(),
            limited: [false; 4],
            is_strict: true,
        };
        for key in 0..KEYS.len() {
            test.limit(key);
        }
        test
    }

    fn limit(&mut self, key: usize) {
        let target = format!("key/{}", KEYS[key]);
        match KEYS[key] {
            "three" => self.world.limit(&target, |set| set.max_running = Some(3)),
            "rate" => self.world.limit(&target, |set| set.rate = Some(rate())),
            "seq" => self.world.limit(&target, |set| set.sequence = true),
            _ => return,
        };
        if !std::mem::replace(&mut self.limited[key], true) {
            // What was granted without a limit tells nothing of it.
            self.known.entry(KEYS[key]).or_default().granted_at.clear();
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Push(key, count) => {
                let known = self.known.entry(KEYS[key]).or_default();
                let numbers = known.pushed..known.pushed + count;
                known.pushed += count;
                let ids = self.world.push_all(many(KEYS[key], numbers));
                self.known.get_mut(KEYS[key]).unwrap().open.extend(ids);
            }
            Step::Fetch(max) => self.fetch(max),
            Step::Ack(nth) => {
                if let Some(job) = self.take(nth) {
                    self.world.ack(self.worker, &job);
                    self.is_over(&job.id);
                }
            }
            Step::Fail(nth, ms) => {
                if let Some(job) = self.take(nth) {
                    let item = FailItem {
                        retry_in_ms: Some(DurationMs(ms)),
                        ..fail_item(job.id, job.lease)
                    };
                    self.world.fail_with(self.worker, item);
                }
            }
            Step::Release(nth) => {
                if let Some(job) = self.take(nth) {
                    self.world.release(self.worker, &job, None);
                }
            }
            Step::Cancel(nth) => {
                let open: Vec<JobId> = self.known.values().flat_map(|it| it.open.clone()).collect();
                let Some(job) = open.get(nth % open.len().max(1)) else {
                    return;
                };
                let cancel = JobCancel {
                    grace_ms: DurationMs::ZERO,
                    ..JobCancel::new(vec![*job])
                };
                self.world.ask(None, Operation::JobCancel(cancel)).unwrap();
                self.leased.retain(|leased| leased.id != *job);
                self.is_over(job);
            }
            Step::Pass(ms) => {
                self.world.live(DurationMs(ms));
                self.world.heartbeat(self.worker).unwrap();
            }
            Step::Commit => self.world.commit(),
            Step::Reopen => {
                self.world.reopen();
                let held: Vec<_> = self.leased.iter().map(lease_ref).collect();
                let lost = self.world.resume(self.worker, &held).lost;
                assert!(lost.is_empty(), "{lost:?}");
            }
            Step::Unlimit(key) => {
                if std::mem::take(&mut self.limited[key]) {
                    self.world.unlimit(&format!("key/{}", KEYS[key])).unwrap();
                    self.is_strict &= KEYS[key] != "seq";
                }
            }
            Step::Limit(key) => self.limit(key),
        }
    }

    fn take(&mut self, nth: usize) -> Option<GrantedJob> {
        let count = self.leased.len();
        (count > 0).then(|| self.leased.swap_remove(nth % count))
    }

    fn is_over(&mut self, job: &JobId) {
        for known in self.known.values_mut() {
            known.open.retain(|open| open != job);
        }
    }

    fn running(&self, key: &str) -> usize {
        let of_key = |job: &&GrantedJob| job.key.as_ref().is_some_and(|it| it.as_str() == key);
        self.leased.iter().filter(of_key).count()
    }

    fn fetch(&mut self, max: u32) {
        let before = KEYS.map(|key| self.running(key));
        let jobs = self.world.fetch(self.worker, "work", max);
        for job in jobs {
            let key = KEYS
                .into_iter()
                .find(|key| *key == job.key.as_ref().unwrap().as_str());
            let known = self.known.get_mut(key.unwrap()).unwrap();
            known.granted_at.push(self.world.now.wall.0);
            if key == Some("seq") && self.is_strict {
                let oldest = known.open[0];
                let is_first = job.attempt == 1;
                assert!(!is_first || oldest == job.id, "a sequence is out of order");
            }
            known.first.push(job.id);
            self.leased.push(job);
        }
        for ((key, before), most) in
            KEYS.into_iter()
                .zip(before)
                .zip([usize::MAX, 3, usize::MAX, 1])
        {
            let (now, is_limited) = (self.running(key), self.limited[index(key)]);
            let allowed = if is_limited {
                most.max(before)
            } else {
                usize::MAX
            };
            assert!(now <= allowed, "{key} runs {now}, at most {allowed}");
        }
        let granted = &self.known.entry("rate").or_default().granted_at;
        for (first, second) in granted.iter().zip(granted.iter().skip(2 + 4)) {
            let is_apart = second - first >= 2_000;
            assert!(
                is_apart || !self.limited[2],
                "a rate is passed: {granted:?}"
            );
        }
    }

    /// Everything that is open is granted in the end.
    fn drain(mut self) {
        for round in 0.. {
            assert!(round < 5_000, "stuck: {:?}", self.known);
            if self.known.values().all(|known| known.open.is_empty()) {
                break;
            }
            self.fetch(50);
            while let Some(job) = self.take(0) {
                self.world.ack(self.worker, &job);
                self.is_over(&job.id);
            }
            self.world.live(DurationMs(500));
            self.world.heartbeat(self.worker).unwrap();
        }
        self.world.live(DurationMs(5_000));
        assert!(self.world.engine.keys.is_empty());
        self.world.goodbye(self.worker);
        self.world.commit();
        self.world.engine.check_drained().unwrap();
        self.world.store.check_empty();
    }
}

fn index(key: &str) -> usize {
    KEYS.iter().position(|known| *known == key).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_limit_is_passed_no_sequence_is_out_of_order_and_nobody_is_stuck(
        is_tiny: bool,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut test = Test::new(is_tiny);
        for step in &steps {
            test.step(step);
        }
        test.drain();
    }
}
