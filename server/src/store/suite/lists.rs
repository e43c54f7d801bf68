//! Walks over the index of scheduled jobs, of which one row may name many.

use ganger_engine::{
    change::Change,
    list::{Position, Walk},
    records::{Entry, LeftRun, Place, Run, RunKey, Timer, TimerKind},
};
use ganger_protocol::{JobId, Timestamp, job::JobState, list::JobFilter};

use super::{
    commit, each, job_id,
    samples::{packed, scheduled_run_key},
};
use crate::store::Store;

fn run_for(times: &[u64]) -> Run {
    let entry = |at: &u64| Entry::Scheduled(Timestamp(*at), packed(vec![1]));
    Run {
        entries: times.iter().map(entry).collect(),
    }
}

fn run_due(run: RunKey, at: u64) -> Change {
    Change::PutTimer(Timer::run_due(0, run, Timestamp(at)))
}

fn due(job: JobId, at: u64) -> Change {
    Change::PutTimer(Timer {
        at: Timestamp(at),
        what: TimerKind::Due,
        id: *job.as_bytes(),
    })
}

/// The jobs of all scheduled ones that pages of so many rows come to.
fn walk(store: &Store, filter: &JobFilter, newest_first: bool, max: usize) -> Vec<JobId> {
    let walk = Walk {
        state: JobState::Scheduled,
        queue: None,
    };
    let (mut jobs, mut after) = (Vec::new(), None);
    for _ in 0..100 {
        let page = store.spots(&walk, (filter, newest_first), after, max);
        let page = page.unwrap();
        jobs.extend(page.rows.iter().filter_map(|spot| spot.job));
        let Some(last) = page.rows.last() else {
            assert!(page.at_end);
            return jobs;
        };
        assert!(matches!(last.position, Position::Timer(_)));
        after = Some(last.position);
        if page.at_end {
            return jobs;
        }
    }
    panic!("the walk does not end");
}

#[test]
fn jobs_that_share_a_timer_come_one_by_one_from_either_end() {
    each(|on| {
        let (store, _) = on.open();
        let [first, second, gone] = [1, 2, 3].map(scheduled_run_key);
        let place = |run, index| Place { run, index }.job_id(0);
        let mut left = LeftRun::whole(first, 5);
        left.left.insert(1);
        let mut all_left = LeftRun::whole(gone, 2);
        all_left.left.insert(0);
        commit(
            &store,
            1,
            vec![
                Change::PutRun(first, run_for(&[20, 20, 10, 20, 20])),
                Change::PutRun(second, run_for(&[20, 30])),
                Change::PutRun(gone, run_for(&[25, 40])),
                Change::PutLeft(left),
                // As a walk may find it that reads a timer just before its jobs leave.
                Change::PutLeft(all_left),
                run_due(gone, 25),
                run_due(gone, 40),
                run_due(first, 10),
                run_due(first, 20),
                run_due(second, 20),
                run_due(second, 30),
                due(job_id(9, 0), 20),
                due(job_id(9, 1), 35),
            ],
        );
        let expected = [
            place(first, 2),
            job_id(9, 0),
            place(first, 0),
            place(first, 3),
            place(first, 4),
            place(second, 0),
            place(second, 1),
            job_id(9, 1),
            place(gone, 1),
        ];
        let reversed: Vec<_> = expected.iter().rev().copied().collect();
        let all = JobFilter::default();
        let some = JobFilter {
            since: Some(Timestamp(20)),
            before: Some(Timestamp(30)),
            ..JobFilter::default()
        };
        for max in 1..12 {
            assert_eq!(walk(&store, &all, false, max), expected, "{max}");
            assert_eq!(walk(&store, &all, true, max), reversed, "{max}");
            assert_eq!(walk(&store, &some, false, max), expected[1..6], "{max}");
            assert_eq!(walk(&store, &some, true, max), reversed[3..8], "{max}");
        }
    });
}
