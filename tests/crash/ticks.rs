//! A cron entry with a job for every second: each has one, also those that pass while no server is
//! there, and none has two.

use ganger_protocol::{
    DurationMs, JobSpec,
    cron::{CronSet, CronView, Misfire},
    request::{CronNames, CronShow, Operation},
};
use serde::de::IgnoredAny;

use crate::{
    check::Jobs,
    link::Asker,
    plan::{Identity, Plan, TICKS},
};

const NAME: &str = "every-second";
const EVERY_MS: u64 = 1_000;

pub(crate) fn set(asker: &mut Asker, plan: Plan) {
    let job: JobSpec = plan.spec(Identity {
        producer: TICKS,
        seq: 0,
        index: 0,
    });
    let entry = CronSet {
        every_ms: Some(DurationMs(EVERY_MS)),
        misfire: Misfire::All,
        misfire_max: Some(100),
        ..CronSet::new(NAME.parse().expect("a name"), job)
    };
    let _: CronView = asker.ask(Operation::CronSet(Box::new(entry)));
}

pub(crate) fn pause(asker: &mut Asker) {
    let names = vec![NAME.parse().expect("a name")];
    let _: IgnoredAny = asker.ask(Operation::CronPause(CronNames { names }));
}

pub(crate) fn show(asker: &mut Asker) -> CronView {
    let name = NAME.parse().expect("a name");
    asker.ask(Operation::CronShow(CronShow { name, next: 0 }))
}

/// That no time has two jobs is seen where a job is told by its identity.
pub(crate) fn check(jobs: &Jobs, view: &CronView, broken: &mut Vec<String>) {
    let ticks = jobs
        .known
        .keys()
        .filter(|identity| identity.producer == TICKS);
    let mut times: Vec<u64> = ticks.map(|identity| identity.seq).collect();
    times.sort_unstable();
    for pair in times.windows(2) {
        if pair[1] - pair[0] != EVERY_MS {
            broken.push(format!("I15: there is no job between the times {pair:?}"));
        }
    }
    if view.pushed != times.len() as u64 {
        let count = times.len();
        broken.push(format!("I15: {count} times had a job: {view:?}"));
    }
}
