//! Every limit at the limit and one past it, as tables: what `Operation::check` and
//! `JobSpec::check` refuse, by which code, and which field they name.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails may panic, in its helpers too"
)]

use bytes::{Bytes, BytesMut};
use ganger_protocol::{
    BatchId, DurationMs, ErrorCode, JobId, JobSpec, LeaseId, RetryPolicy, SessionId, Timestamp,
    WireError,
    batch::{BatchOpen, EVENT_HEADER},
    change::{ChangeTo, JobChange, JobDelete},
    cron::{AT_HEADER, CronSet, Misfire, NAME_HEADER},
    event::{EventFilter, EventName, EventsFrom, Subscribe},
    frame,
    job::{JobState, Unique, UniqueOf, UniqueUntil},
    limit::{LimitList, LimitSet, LimitTarget, OneLimit, Rate},
    limits::{self, Limits},
    list::{JobFilter, JobList},
    progress::{Progress, ProgressItem, Wait},
    queue::QueuePause,
    request::*,
    retry::Curve,
    time::INTEGER_MAX,
    workflow::{Awaited, Condition, OnDead, awaited},
};

const BAD: ErrorCode = ErrorCode::BadRequest;
const LARGE: ErrorCode = ErrorCode::TooLarge;

/// What is expected of a value: it passes, or this code about this field.
type Outcome = Result<(), (ErrorCode, &'static str)>;

fn outcome(result: &Result<(), WireError>) -> Result<(), (ErrorCode, &str)> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err((error.code, error.field.as_deref().unwrap_or("-"))),
    }
}

#[track_caller]
fn check_job(expected: Outcome, change: impl FnOnce(&mut JobSpec)) {
    let mut job = JobSpec::new("kind".parse().unwrap(), Bytes::new());
    change(&mut job);
    assert_eq!(outcome(&job.check(&Limits::default())), expected);
}

#[track_caller]
fn check(expected: Outcome, operation: &Operation) {
    let limits = Limits::default();
    let result = operation.check(&limits);
    assert_eq!(outcome(&result), expected);
    if let Err(WireError {
        limit: Some(limit),
        actual: Some(actual),
        ..
    }) = result
    {
        assert_ne!(limit, actual, "the limit itself is allowed");
    }
}

/// Checks a number at both ends of its range and one past each; zero has nothing below it.
fn check_range(
    field: &'static str,
    range: std::ops::RangeInclusive<u64>,
    check: impl Fn(Outcome, u64),
) {
    check(Ok(()), *range.start());
    check(Ok(()), *range.end());
    check(Err((BAD, field)), range.end() + 1);
    if let Some(below) = range.start().checked_sub(1) {
        check(Err((BAD, field)), below);
    }
}

/// Checks the length of a list at both ends of its range and one past each.
fn check_length(
    field: &'static str,
    range: std::ops::RangeInclusive<usize>,
    check: impl Fn(Outcome, usize),
) {
    check(Ok(()), *range.start());
    check(Ok(()), *range.end());
    check(Err((LARGE, field)), range.end() + 1);
    if let Some(below) = range.start().checked_sub(1) {
        check(Err((BAD, field)), below);
    }
}

const JOB: JobId = JobId::from_bytes([7; JobId::BYTES]);
const LEASE: LeaseId = LeaseId(1);
const DAY_MS: u64 = 86_400_000;
const TEN_YEARS_MS: u64 = 3653 * DAY_MS;

fn ack_item() -> AckItem {
    AckItem::of(JOB, LEASE)
}

fn fail_item() -> FailItem {
    FailItem {
        job: JOB,
        lease: LEASE,
        kind: "error".to_owned(),
        message: String::new(),
        backtrace: String::new(),
        retry_in_ms: None,
        dead: false,
        discard: false,
    }
}

fn fetch() -> Fetch {
    Fetch {
        queues: vec!["mail".parse().unwrap()],
        max: 1,
        ..Fetch::default()
    }
}

fn hello(session: SessionHello) -> Operation {
    Operation::Hello(Box::new(Hello {
        v: 1,
        client: String::new(),
        features: Vec::new(),
        namespace: Default::default(),
        auth: None,
        session: Some(session),
        producer: None,
    }))
}

#[test]
fn numbers_of_a_job() {
    check_range("priority", 0..=9, |expected, n| {
        check_job(expected, |job| {
            job.priority = Some(u8::try_from(n).unwrap());
        });
    });
    check_range("max_attempts", 1..=10_000, |expected, n| {
        check_job(expected, |job| {
            job.max_attempts = Some(u32::try_from(n).unwrap());
        });
    });
    check_range("timeout_ms", 1_000..=DAY_MS, |expected, n| {
        check_job(expected, |job| job.timeout_ms = Some(DurationMs(n)));
    });
    check_range("delay_ms", 0..=TEN_YEARS_MS, |expected, n| {
        check_job(expected, |job| job.delay_ms = Some(DurationMs(n)));
    });
    check_range("run_at", 0..=INTEGER_MAX, |expected, n| {
        check_job(expected, |job| job.run_at = Some(Timestamp(n)));
    });
}

#[test]
fn sizes_of_a_job() {
    check_length("payload", 0..=1 << 20, |expected, n| {
        check_job(expected, |job| job.payload = vec![0; n].into());
    });
    check_length("headers", 0..=4096, |expected, n| {
        let value = "v".repeat(n.saturating_sub(4));
        check_job(expected, |job| {
            job.headers.extend([("name".to_owned(), value)]);
        });
    });
    check_length("content_type", 0..=128, |expected, n| {
        check_job(expected, |job| {
            job.content_type = Some("t".repeat(n).into());
        });
    });
    check_length("tags", 0..=8, |expected, n| {
        check_job(expected, |job| job.tags = vec!["tag".parse().unwrap(); n]);
    });
}

#[test]
fn limits_of_the_server_go_before_those_of_the_protocol() {
    let limits = Limits {
        payload_bytes_max: 3,
        items_max: 2,
        ..Limits::default()
    };
    let job = |bytes| JobSpec::new("kind".parse().unwrap(), vec![0; bytes]);
    assert_eq!(job(3).check(&limits), Ok(()));
    assert_eq!(
        job(4).check(&limits),
        Err(WireError::too_large("payload", 3, 4))
    );
    let push = |jobs| {
        Operation::Push(Push {
            jobs: vec![job(0); jobs],
            atomic: false,
            spread_ms: None,
            by: None,
            seq: None,
        })
    };
    assert_eq!(push(2).check(&limits), Ok(()));
    assert_eq!(
        push(3).check(&limits),
        Err(WireError::too_large("jobs", 2, 3))
    );
}

#[test]
fn a_job_has_one_time_only() {
    check_job(Err((BAD, "delay_ms")), |job| {
        job.run_at = Some(Timestamp(0));
        job.delay_ms = Some(DurationMs(0));
    });
}

#[test]
fn backoff_of_a_job() {
    fn with(curve: Curve, change: impl FnOnce(&mut RetryPolicy)) -> impl FnOnce(&mut JobSpec) {
        let mut policy = RetryPolicy {
            curve,
            ..RetryPolicy::default()
        };
        change(&mut policy);
        move |job| job.backoff = Some(Box::new(policy))
    }
    let int = |n| u32::try_from(n).unwrap();
    check_range("backoff.base_ms", 0..=TEN_YEARS_MS, |expected, n| {
        check_job(expected, with(Curve::Poly, |p| p.base_ms = DurationMs(n)));
    });
    check_range("backoff.cap_ms", 0..=TEN_YEARS_MS, |expected, n| {
        check_job(expected, with(Curve::Poly, |p| p.cap_ms = DurationMs(n)));
    });
    check_range("backoff.jitter_ms", 0..=TEN_YEARS_MS, |expected, n| {
        check_job(expected, with(Curve::Poly, |p| p.jitter_ms = DurationMs(n)));
    });
    check_range("backoff.factor", 1..=10, |expected, n| {
        check_job(expected, with(Curve::Poly, |p| p.factor = int(n)));
    });
    check_range("backoff.factor", 1..=100, |expected, n| {
        check_job(expected, with(Curve::Exponential, |p| p.factor = int(n)));
    });
    check_range("backoff.jitter_percent", 0..=100, |expected, n| {
        check_job(expected, with(Curve::Fixed, |p| p.jitter_percent = int(n)));
    });
    check_range("backoff.table_ms", 1..=64, |expected, n| {
        let table = vec![DurationMs(1); usize::try_from(n).unwrap()];
        check_job(expected, with(Curve::Table, |p| p.table_ms = table));
    });
    check_range("backoff.table_ms[1]", 0..=TEN_YEARS_MS, |expected, n| {
        let table = vec![DurationMs(1), DurationMs(n)];
        check_job(expected, with(Curve::Table, |p| p.table_ms = table));
    });
    check_job(
        Err((BAD, "backoff.table_ms")),
        with(Curve::Fixed, |p| p.table_ms = vec![DurationMs(1)]),
    );
}

fn waits(after: &[&str]) -> JobSpec {
    let mut job = JobSpec::new("kind".parse().unwrap(), Bytes::new());
    job.after = after.iter().map(|name| name.parse().unwrap()).collect();
    job
}

#[test]
fn what_a_job_says_of_those_that_it_waits_for() {
    check_job(Ok(()), |job| *job = waits(&["a"]));
    check_job(Err((BAD, "if")), |job| {
        job.condition = Some(Condition::Success);
    });
    check_job(Err((BAD, "on_dead")), |job| {
        job.on_dead = Some(OnDead::Hold);
    });
    check_job(Err((BAD, "on_dead")), |job| {
        *job = waits(&["a"]);
        (job.condition, job.on_dead) = (Some(Condition::Settled), Some(OnDead::Cancel));
    });
    check_job(Ok(()), |job| {
        *job = waits(&["a"]);
        (job.condition, job.on_dead) = (Some(Condition::Success), Some(OnDead::Hold));
    });
    for (count, expected) in [(1_000, Ok(())), (1_001, Err((LARGE, "after")))] {
        check_job(expected, |job| *job = waits(&vec!["a"; count]));
    }
    check_cron(Err((BAD, "job.after")), |entry| entry.job = waits(&["a"]));
    check_cron(Err((BAD, "job.name")), |entry| {
        entry.job.name = Some("a".parse().unwrap());
    });
    check_batch(Err((BAD, "on_success.after")), |open| {
        open.on_success = Some(Box::new(waits(&["a"])));
    });
}

#[test]
fn names_hold_within_a_push_and_ids_beyond_it() {
    let id = JobId::from_bytes([7; 24]);
    let named = |name: &str, after: &[&str]| JobSpec {
        name: Some(name.parse().unwrap()),
        ..waits(after)
    };
    let jobs = [
        named("b", &["a", &id.to_string()]),
        named("a", &[]),
        waits(&["b"]),
    ];
    let expected = [
        vec![Awaited::Nth(1), Awaited::Job(id)],
        vec![],
        vec![Awaited::Nth(0)],
    ];
    assert_eq!(awaited(&jobs).unwrap(), expected);
    // Whatever looks like an id is a name where a job has it.
    let text = id.to_string();
    let jobs = [named(&text, &[]), waits(&[&text])];
    assert_eq!(awaited(&jobs).unwrap(), [vec![], vec![Awaited::Nth(0)]]);
}

#[test]
fn results_and_how_long_jobs_are_kept() {
    let limit = Limits::default().result_bytes_max;
    check_length("leases[1].result", 0..=limit, |expected, n| {
        let bytes = vec![7; n];
        let item = AckItem {
            result: Some(Bytes::from(bytes)),
            ..ack_item()
        };
        let leases = vec![ack_item(), item];
        check(expected, &Operation::Ack(Ack { leases }));
    });
    check_range("acks[2].retain_ms", 0..=TEN_YEARS_MS, |expected, n| {
        let item = AckItem {
            retain_ms: Some(DurationMs(n)),
            ..ack_item()
        };
        let acks = vec![ack_item(), ack_item(), item];
        check(expected, &Operation::Fetch(Fetch { acks, ..fetch() }));
    });
    check_range("retain_ms", 0..=TEN_YEARS_MS, |expected, n| {
        check_job(expected, |job| job.retain_ms = Some(DurationMs(n)));
    });
}

#[test]
fn progress_and_waits() {
    let progress = |item: ProgressItem| {
        let leases = vec![ProgressItem::of(JOB, LEASE), item];
        Operation::Progress(Progress { leases })
    };
    let of = || ProgressItem::of(JOB, LEASE);
    check_range("leases[1].percent", 0..=100, |expected, n| {
        let percent = u8::try_from(n).ok();
        check(expected, &progress(ProgressItem { percent, ..of() }));
    });
    check_length("leases[1].note", 0..=1 << 10, |expected, n| {
        let note = Some("x".repeat(n));
        check(expected, &progress(ProgressItem { note, ..of() }));
    });
    check_length("leases[1].cursor", 0..=64 << 10, |expected, n| {
        let cursor = Some(Bytes::from(vec![7; n]));
        check(expected, &progress(ProgressItem { cursor, ..of() }));
    });
    let none = Operation::Progress(Progress { leases: vec![] });
    check(Err((BAD, "leases")), &none);
    check_range("wait_ms", 0..=60_000, |expected, n| {
        let wait_ms = DurationMs(n);
        check(expected, &Operation::Wait(Wait { job: JOB, wait_ms }));
    });
}

#[test]
fn options_of_a_unique_key_that_contradict_each_other() {
    let with = |change: fn(&mut Unique)| {
        move |job: &mut JobSpec| {
            let mut unique = Unique::named("key".parse().unwrap());
            change(&mut unique);
            job.unique = Some(Box::new(unique));
        }
    };
    check_job(Ok(()), with(|_| {}));
    check_job(Ok(()), with(|it| *it = Unique::derived([UniqueOf::Kind])));
    check_job(Err((BAD, "unique.key")), with(|it| it.key = None));
    check_job(
        Err((BAD, "unique.of")),
        with(|it| it.of = vec![UniqueOf::Kind]),
    );
    check_job(
        Err((BAD, "unique.of")),
        with(|it| *it = Unique::derived([UniqueOf::Kind, UniqueOf::Kind])),
    );
    let ttl = |it: &mut Unique| it.until = UniqueUntil::Ttl;
    check_job(Err((BAD, "unique.ttl_ms")), with(ttl));
    check_job(
        Err((BAD, "unique.ttl_ms")),
        with(|it| it.ttl_ms = Some(DurationMs(1))),
    );
    check_range("unique.ttl_ms", 1..=TEN_YEARS_MS, |expected, n| {
        check_job(expected, |job| {
            job.unique = Some(Box::new(Unique {
                until: UniqueUntil::Ttl,
                ttl_ms: Some(DurationMs(n)),
                ..Unique::named("key".parse().unwrap())
            }));
        });
    });
}

#[test]
fn a_push_is_spread_over_ten_years_at_most() {
    check_range("spread_ms", 0..=TEN_YEARS_MS, |expected, n| {
        let push = Push {
            spread_ms: Some(DurationMs(n)),
            ..Push::of(vec![JobSpec::new("kind".parse().unwrap(), Bytes::new())])
        };
        check(expected, &Operation::Push(push));
    });
}

#[test]
fn a_job_expires_after_it_may_run() {
    let check_times = |expected, run_at, expires_at| {
        check_job(expected, |job| {
            job.run_at = run_at;
            job.expires_at = Some(Timestamp(expires_at));
        });
    };
    check_times(Ok(()), None, 0);
    check_times(Ok(()), Some(Timestamp(5)), 6);
    check_times(Err((BAD, "expires_at")), Some(Timestamp(5)), 5);
    check_times(Ok(()), None, INTEGER_MAX);
    check_times(Err((BAD, "expires_at")), None, INTEGER_MAX + 1);
}

#[test]
fn counts_of_a_request() {
    check_length("jobs", 1..=1000, |expected, n| {
        let push = Push {
            jobs: vec![JobSpec::new("kind".parse().unwrap(), Bytes::new()); n],
            atomic: false,
            spread_ms: None,
            by: None,
            seq: None,
        };
        check(expected, &Operation::Push(push));
    });
    check_length("leases", 1..=1000, |expected, n| {
        let leases = vec![ack_item(); n];
        check(expected, &Operation::Ack(Ack { leases }));
        let leases = vec![fail_item(); n];
        check(expected, &Operation::Fail(Fail { leases }));
        let release = ReleaseItem {
            job: JOB,
            lease: LEASE,
            delay_ms: None,
        };
        let leases = vec![release; n];
        check(expected, &Operation::Release(Release { leases }));
        let extend = ExtendItem {
            job: JOB,
            lease: LEASE,
            ms: DurationMs(1_000),
        };
        let leases = vec![extend; n];
        check(expected, &Operation::Extend(Extend { leases }));
    });
    check_length("leases", 1..=1000, |expected, n| {
        let leases = vec![ProgressItem::of(JOB, LEASE); n];
        check(expected, &Operation::Progress(Progress { leases }));
    });
    check_length("queues", 1..=1000, |expected, n| {
        let names = || QueueNames {
            queues: vec!["mail".parse().unwrap(); n],
        };
        let pause = QueuePause {
            queues: names().queues,
            ..QueuePause::default()
        };
        check(expected, &Operation::QueuePause(pause));
        check(expected, &Operation::QueueResume(names()));
    });
}

#[test]
fn the_number_of_a_push() {
    check_range("seq", 1..=INTEGER_MAX, |expected, n| {
        let push = Push {
            jobs: vec![JobSpec::new("kind".parse().unwrap(), Bytes::new())],
            atomic: false,
            spread_ms: None,
            by: None,
            seq: Some(n),
        };
        check(expected, &Operation::Push(push));
    });
}

#[test]
fn fetches() {
    let int = |n| u32::try_from(n).unwrap();
    let checked = |expected, change: &dyn Fn(&mut Fetch)| {
        let mut fetch = fetch();
        change(&mut fetch);
        check(expected, &Operation::Fetch(fetch));
    };
    check_length("queues", 1..=64, |expected, n| {
        checked(expected, &|fetch| {
            fetch.queues = vec!["a*".parse().unwrap(); n];
        });
    });
    check_range("max", 0..=1000, |expected, n| {
        checked(expected, &|fetch| fetch.max = int(n));
    });
    check_range("wait_ms", 0..=60_000, |expected, n| {
        checked(expected, &|fetch| fetch.wait_ms = DurationMs(n));
    });
    check_range("weights[0]", 1..=1000, |expected, n| {
        checked(expected, &|fetch| fetch.weights = vec![int(n)]);
    });
    checked(Err((BAD, "weights")), &|fetch| fetch.weights = vec![1, 1]);
    check_length("acks", 0..=1000, |expected, n| {
        checked(expected, &|fetch| fetch.acks = vec![ack_item(); n]);
    });
    check_length("fails", 0..=1000, |expected, n| {
        checked(expected, &|fetch| fetch.fails = vec![fail_item(); n]);
    });
}

#[test]
fn answers_to_leases() {
    let fail = |expected, change: &dyn Fn(&mut FailItem)| {
        let mut item = fail_item();
        change(&mut item);
        let leases = vec![fail_item(), item];
        check(expected, &Operation::Fail(Fail { leases }));
    };
    check_length("leases[1].kind", 0..=100, |expected, n| {
        fail(expected, &|item| item.kind = "k".repeat(n));
    });
    check_range("leases[1].retry_in_ms", 0..=TEN_YEARS_MS, |expected, n| {
        fail(expected, &|item| item.retry_in_ms = Some(DurationMs(n)));
    });
    fail(Ok(()), &|item| {
        item.message = "m".repeat(limits::ERROR_MESSAGE_BYTES_MAX + 1);
    });
    fail(Err((BAD, "leases[1].discard")), &|item| {
        (item.dead, item.discard) = (true, true);
    });
    fail(Err((BAD, "leases[1].retry_in_ms")), &|item| {
        (item.dead, item.retry_in_ms) = (true, Some(DurationMs(0)));
    });
    check_range("leases[0].delay_ms", 0..=TEN_YEARS_MS, |expected, n| {
        let leases = vec![ReleaseItem {
            job: JOB,
            lease: LEASE,
            delay_ms: Some(DurationMs(n)),
        }];
        check(expected, &Operation::Release(Release { leases }));
    });
    check_range("leases[0].ms", 1_000..=DAY_MS, |expected, n| {
        let leases = vec![ExtendItem {
            job: JOB,
            lease: LEASE,
            ms: DurationMs(n),
        }];
        check(expected, &Operation::Extend(Extend { leases }));
    });
}

#[test]
fn sessions() {
    check_length("session.name", 0..=256, |expected, n| {
        let name = "n".repeat(n);
        check(
            expected,
            &hello(SessionHello {
                name,
                ..SessionHello::default()
            }),
        );
    });
    check_length("session.host", 0..=256, |expected, n| {
        let host = "h".repeat(n);
        check(
            expected,
            &hello(SessionHello {
                host,
                ..SessionHello::default()
            }),
        );
    });
    let labelled = |expected, pairs: Vec<(String, String)>| {
        let labels = pairs.into_iter().collect();
        check(
            expected,
            &hello(SessionHello {
                labels,
                ..SessionHello::default()
            }),
        );
    };
    check_length("session.labels", 0..=16, |expected, n| {
        labelled(
            expected,
            (0..n).map(|n| (n.to_string(), String::new())).collect(),
        );
    });
    check_length("session.labels", 0..=256, |expected, n| {
        labelled(expected, vec![("l".repeat(n), String::new())]);
        labelled(expected, vec![(String::new(), "v".repeat(n))]);
    });
    check_range("session.ttl_ms", 1_000..=3_600_000, |expected, n| {
        let ttl_ms = Some(DurationMs(n));
        check(
            expected,
            &hello(SessionHello {
                ttl_ms,
                ..SessionHello::default()
            }),
        );
    });
    check_length("session.resume.held", 0..=1000, |expected, n| {
        let held = vec![
            LeaseRef {
                job: JOB,
                lease: LEASE
            };
            n
        ];
        let resume = Some(Resume {
            id: SessionId(1),
            secret: String::new(),
            held,
        });
        check(
            expected,
            &hello(SessionHello {
                resume,
                ..SessionHello::default()
            }),
        );
    });
}

#[test]
fn lists_and_selections_of_dead_jobs() {
    let int = |n| u32::try_from(n).unwrap();
    check_range("limit", 1..=1000, |expected, n| {
        check(
            expected,
            &Operation::DeadList(DeadList {
                queue: Default::default(),
                newest_first: false,
                cursor: None,
                limit: int(n),
            }),
        );
    });
    let queue = || Some("mail".parse().unwrap());
    let select = |expected, select: DeadSelect| {
        check(expected, &Operation::DeadRevive(select.clone()));
        check(expected, &Operation::DeadPurge(select));
    };
    check_length("jobs", 1..=1000, |expected, n| {
        let jobs = vec![JOB; n];
        select(
            expected,
            DeadSelect {
                jobs,
                ..DeadSelect::default()
            },
        );
    });
    check_range("limit", 1..=1000, |expected, n| {
        let limit = Some(int(n));
        select(
            expected,
            DeadSelect {
                queue: queue(),
                limit,
                ..DeadSelect::default()
            },
        );
    });
    let jobs = || vec![JOB];
    let mixed = [
        DeadSelect {
            jobs: jobs(),
            queue: queue(),
            ..DeadSelect::default()
        },
        DeadSelect {
            jobs: jobs(),
            limit: Some(1),
            ..DeadSelect::default()
        },
        DeadSelect {
            jobs: jobs(),
            before: Some(Timestamp(1)),
            ..DeadSelect::default()
        },
    ];
    for mixed in mixed {
        select(Err((BAD, "queue")), mixed);
    }
}

#[track_caller]
fn check_cron(expected: Outcome, change: impl FnOnce(&mut CronSet)) {
    let job = JobSpec::new("kind".parse().unwrap(), Bytes::new());
    let mut entry = CronSet::new("nightly".parse().unwrap(), job);
    entry.expression = Some("30 4 * * *".to_owned());
    change(&mut entry);
    check(expected, &Operation::CronSet(Box::new(entry)));
}

fn every(ms: u64) -> impl FnOnce(&mut CronSet) {
    move |entry| {
        entry.expression = None;
        entry.every_ms = Some(DurationMs(ms));
    }
}

#[test]
fn the_times_of_a_cron_entry() {
    check_cron(Ok(()), |_| {});
    check_cron(Err((BAD, "expression")), |entry| entry.expression = None);
    check_cron(Err((BAD, "every_ms")), |entry| {
        entry.every_ms = Some(DurationMs(1_000));
    });
    check_range("every_ms", 1_000..=31_622_400_000, |expected, ms| {
        check_cron(expected, every(ms));
    });
    check_cron(Err((BAD, "timezone")), |entry| {
        every(1_000)(entry);
        entry.timezone = Some("UTC".to_owned());
    });
    for (length, large) in [(128, false), (129, true)] {
        let expected = |field| if large { Err((LARGE, field)) } else { Ok(()) };
        let text = Some("x".repeat(length));
        check_cron(expected("expression"), |entry| {
            entry.expression = text.clone();
        });
        check_cron(expected("timezone"), |entry| entry.timezone = text.clone());
    }
    check_range("jitter_ms", 0..=86_400_000, |expected, ms| {
        check_cron(expected, |entry| entry.jitter_ms = DurationMs(ms));
    });
    check_range("jitter_ms", 0..=5_000, |expected, ms| {
        check_cron(expected, |entry| {
            every(5_000)(entry);
            entry.jitter_ms = DurationMs(ms);
        });
    });
    check_range("misfire_max", 1..=100, |expected, max| {
        check_cron(expected, |entry| {
            entry.misfire = Misfire::All;
            entry.misfire_max = Some(u32::try_from(max).unwrap());
        });
    });
    check_cron(Err((BAD, "misfire_max")), |entry| {
        entry.misfire_max = Some(1);
    });
}

#[test]
fn the_job_of_a_cron_entry() {
    check_cron(Err((BAD, "job.run_at")), |entry| {
        entry.job.run_at = Some(Timestamp(1));
    });
    check_cron(Err((BAD, "job.delay_ms")), |entry| {
        entry.job.delay_ms = Some(DurationMs(1));
    });
    check_cron(Err((BAD, "job.batch")), |entry| {
        entry.job.batch = Some(BatchId(1));
    });
    check_cron(Err((BAD, "job.priority")), |entry| {
        entry.job.priority = Some(10);
    });
    for own in [NAME_HEADER, AT_HEADER] {
        check_cron(Err((BAD, "job.headers")), |entry| {
            entry.job.headers.insert(own.to_owned(), String::new());
        });
    }
    // Beside its own headers: two names, the entry's name and a time of 20 digits.
    let room = limits::HEADERS_BYTES_MAX - NAME_HEADER.len() - AT_HEADER.len() - 7 - 20;
    for (length, expected) in [(room, Ok(())), (room + 1, Err((LARGE, "job.headers")))] {
        check_cron(expected, |entry| {
            entry
                .job
                .headers
                .insert("h".to_owned(), "x".repeat(length - 1));
        });
    }
}

#[test]
fn requests_about_cron_entries() {
    let names = |count| CronNames {
        names: vec!["nightly".parse().unwrap(); count],
    };
    let of_names: [fn(CronNames) -> Operation; 3] = [
        Operation::CronDelete,
        Operation::CronPause,
        Operation::CronResume,
    ];
    for of_names in of_names {
        check_length("names", 1..=1000, |expected, count| {
            check(expected, &of_names(names(count)));
        });
    }
    check_range("limit", 1..=1000, |expected, limit| {
        let limit = u32::try_from(limit).unwrap();
        let list = CronList {
            cursor: None,
            limit,
        };
        check(expected, &Operation::CronList(list));
    });
    check_range("next", 0..=100, |expected, next| {
        let next = u32::try_from(next).unwrap();
        let name = "nightly".parse().unwrap();
        check(expected, &Operation::CronShow(CronShow { name, next }));
    });
}

#[track_caller]
fn check_limit(expected: Outcome, target: LimitTarget, change: impl FnOnce(&mut LimitSet)) {
    let mut set = LimitSet::of(target);
    change(&mut set);
    check(expected, &Operation::LimitSet(Box::new(set)));
}

fn of_key() -> LimitTarget {
    LimitTarget::Key("tenant:*".parse().unwrap())
}

fn of_queue() -> LimitTarget {
    LimitTarget::Queue("mail*".parse().unwrap())
}

#[test]
fn a_limit_limits_something_of_queues_or_of_keys() {
    check_limit(Err((BAD, "max_running")), of_key(), |_| {});
    check_limit(Ok(()), of_key(), |set| set.sequence = true);
    check_limit(Ok(()), of_key(), |set| set.weight = Some(1));
    check_limit(Err((BAD, "weight")), of_queue(), |set| set.weight = Some(1));
    check_limit(Err((BAD, "sequence")), of_queue(), |set| {
        set.sequence = true;
    });
    check_limit(Err((BAD, "key")), of_queue(), |set| {
        set.key = Some("a".parse().unwrap());
    });
    check_limit(Err((BAD, "queue")), of_key(), |set| set.key = None);
    check_limit(Err((BAD, "max_running")), of_key(), |set| {
        (set.max_running, set.sequence) = (Some(1), true);
    });
    for operation in [Operation::LimitShow, Operation::LimitDelete] {
        check(Err((BAD, "queue")), &operation(OneLimit::default()));
        check(Ok(()), &operation(OneLimit::of(of_key())));
        let both = OneLimit {
            queue: Some("a".parse().unwrap()),
            key: Some("a".parse().unwrap()),
        };
        check(Err((BAD, "key")), &operation(both));
    }
}

#[test]
fn the_figures_of_a_limit() {
    let figure = |value: u64| u32::try_from(value).unwrap();
    check_range("max_running", 1..=1_000_000, |expected, value| {
        check_limit(expected, of_queue(), |set| {
            set.max_running = Some(figure(value));
        });
    });
    check_range("weight", 1..=1_000, |expected, value| {
        check_limit(expected, of_key(), |set| set.weight = Some(figure(value)));
    });
    let rate = |change: fn(&mut Rate, u64)| {
        move |value| {
            let mut rate = Rate {
                n: 1,
                per_ms: DurationMs(1),
                burst: None,
            };
            change(&mut rate, value);
            Some(rate)
        }
    };
    let n = rate(|rate, value| rate.n = u32::try_from(value).unwrap());
    check_range("rate.n", 1..=1_000_000, |expected, value| {
        check_limit(expected, of_key(), |set| set.rate = n(value));
    });
    let burst = rate(|rate, value| rate.burst = Some(u32::try_from(value).unwrap()));
    check_range("rate.burst", 1..=1_000_000, |expected, value| {
        check_limit(expected, of_queue(), |set| set.rate = burst(value));
    });
    let per = rate(|rate, value| rate.per_ms = DurationMs(value));
    check_range("rate.per_ms", 1..=31_622_400_000, |expected, value| {
        check_limit(expected, of_queue(), |set| set.rate = per(value));
    });
    check_range("limit", 1..=1000, |expected, limit| {
        let list = LimitList {
            cursor: None,
            limit: figure(limit),
        };
        check(expected, &Operation::LimitList(list));
    });
}

#[track_caller]
fn check_batch(expected: Outcome, change: impl FnOnce(&mut BatchOpen)) {
    let mut open = BatchOpen::default();
    change(&mut open);
    check(expected, &Operation::BatchOpen(Box::new(open)));
}

#[test]
fn a_batch_to_be_opened() {
    check_batch(Ok(()), |_| {});
    for (length, expected) in [(256, Ok(())), (257, Err((LARGE, "description")))] {
        check_batch(expected, |open| open.description = "x".repeat(length));
    }
    let by = LeaseRef {
        job: JobId::from_bytes([0; 24]),
        lease: LeaseId(1),
    };
    check_batch(Err((BAD, "by")), |open| open.by = Some(by));
    check_batch(Ok(()), |open| {
        (open.by, open.parent) = (Some(by), Some(BatchId(1)));
    });
}

#[test]
fn the_callbacks_of_a_batch() {
    let callback = |change: fn(&mut JobSpec)| {
        let mut job = JobSpec::new("call".parse().unwrap(), Bytes::new());
        change(&mut job);
        Some(Box::new(job))
    };
    check_batch(Ok(()), |open| open.on_complete = callback(|_| {}));
    check_batch(Err((BAD, "on_complete.run_at")), |open| {
        open.on_complete = callback(|job| job.run_at = Some(Timestamp(1)));
    });
    check_batch(Err((BAD, "on_success.delay_ms")), |open| {
        open.on_success = callback(|job| job.delay_ms = Some(DurationMs(1)));
    });
    check_batch(Err((BAD, "on_settled.unique")), |open| {
        open.on_settled = callback(|job| job.unique = Some(Box::default()));
    });
    check_batch(Err((BAD, "on_settled.batch")), |open| {
        open.on_settled = callback(|job| job.batch = Some(BatchId(1)));
    });
    check_batch(Err((BAD, "on_settled.priority")), |open| {
        open.on_settled = callback(|job| job.priority = Some(10));
    });
    check_batch(Err((BAD, "on_settled.headers")), |open| {
        open.on_settled = callback(|job| {
            job.headers.insert(EVENT_HEADER.to_owned(), String::new());
        });
    });
}

#[test]
fn a_lease_lets_only_jobs_with_a_batch_join() {
    let mut job = JobSpec::new("kind".parse().unwrap(), Bytes::new());
    let push = |job: &JobSpec| {
        Operation::Push(Push {
            by: Some(LeaseRef {
                job: JobId::from_bytes([0; 24]),
                lease: LeaseId(1),
            }),
            ..Push::of(vec![job.clone()])
        })
    };
    check(Err((BAD, "by")), &push(&job));
    job.batch = Some(BatchId(1));
    check(Ok(()), &push(&job));
}

#[test]
fn lists_of_batches() {
    check_range("limit", 1..=1000, |expected, limit| {
        let list = BatchList {
            settled: false,
            cursor: None,
            limit: u32::try_from(limit).unwrap(),
        };
        check(expected, &Operation::BatchList(list));
    });
}

#[test]
fn a_refusal_names_the_limit_and_the_actual_figure() {
    let mut job = JobSpec::new("kind".parse().unwrap(), Bytes::new());
    job.priority = Some(10);
    let error = job.check(&Limits::default()).unwrap_err();
    assert_eq!((error.limit, error.actual), (Some(9), Some(10)));
    job.priority = None;
    job.timeout_ms = Some(DurationMs(999));
    let error = job.check(&Limits::default()).unwrap_err();
    assert_eq!((error.limit, error.actual), (Some(1_000), Some(999)));
}

#[test]
fn a_frame_holds_at_either_limit_and_not_past_it() {
    for limit in [
        limits::FRAME_BYTES_MAX,
        limits::FRAME_BYTES_MAX_BEFORE_HELLO,
    ] {
        for (length, passes) in [(limit, true), (limit + 1, false)] {
            let header = u32::try_from(length).unwrap().to_be_bytes();
            let taken = frame::decode(&mut BytesMut::from(&header[..]), limit);
            assert_eq!(taken.is_ok(), passes, "{length}");
        }
    }
}

#[test]
fn a_resumed_session_names_as_many_leases_as_a_first_frame_can_hold() {
    let encoded = |count| {
        let held = vec![
            LeaseRef {
                job: JOB,
                lease: LeaseId(INTEGER_MAX)
            };
            count
        ];
        let resume = Some(Resume {
            id: SessionId(u64::MAX),
            secret: "s".repeat(64),
            held,
        });
        let operation = hello(SessionHello {
            resume,
            ..SessionHello::default()
        });
        let mut buffer = BytesMut::new();
        Request { id: 1, operation }.encode(&mut buffer).unwrap();
        buffer.len() - frame::HEADER_BYTES
    };
    assert!(encoded(1000) <= limits::FRAME_BYTES_MAX_BEFORE_HELLO);
}

#[test]
fn lists_of_jobs_and_their_filters() {
    let list = |expected, filter: JobFilter| {
        check(expected, &Operation::JobList(Box::new(JobList::of(filter))));
    };
    check_range("limit", 1..=1000, |expected, n| {
        let list = JobList {
            limit: u32::try_from(n).unwrap(),
            ..JobList::of(JobFilter::default())
        };
        check(expected, &Operation::JobList(Box::new(list)));
    });
    check_range("filter.priority", 0..=9, |expected, n| {
        list(
            expected,
            JobFilter {
                priority: Some(u8::try_from(n).unwrap()),
                ..JobFilter::default()
            },
        );
    });
    let text = |bytes: usize| Some("x".repeat(bytes));
    for (kind, error, expected) in [
        (Some(1), None, Ok(())),
        (Some(100), None, Ok(())),
        (Some(0), None, Err((BAD, "filter.error_kind"))),
        (Some(101), None, Err((LARGE, "filter.error_kind"))),
        (None, Some(256), Ok(())),
        (None, Some(0), Err((BAD, "filter.error_text"))),
        (None, Some(257), Err((LARGE, "filter.error_text"))),
    ] {
        list(
            expected,
            JobFilter {
                error_kind: kind.and_then(text),
                error_text: error.and_then(text),
                ..JobFilter::default()
            },
        );
    }
    for (since, before, expected) in [
        (Some(1), Some(2), Ok(())),
        (Some(2), Some(2), Err((BAD, "filter.before"))),
        (Some(INTEGER_MAX), None, Ok(())),
        (Some(INTEGER_MAX + 1), None, Err((BAD, "filter.since"))),
        (None, Some(INTEGER_MAX + 1), Err((BAD, "filter.before"))),
    ] {
        list(
            expected,
            JobFilter {
                since: since.map(Timestamp),
                before: before.map(Timestamp),
                ..JobFilter::default()
            },
        );
    }
    let states = |states: &[JobState]| JobFilter::default().in_states(states);
    list(Ok(()), states(&JobState::ALL));
    let twice = states(&[JobState::Ready, JobState::Dead, JobState::Ready]);
    list(Err((BAD, "filter.states[2]")), twice);
}

#[test]
fn changes_and_deletions_of_jobs() {
    check_length("jobs", 1..=1000, |expected, n| {
        let jobs = vec![JOB; n];
        let to = ChangeTo::now();
        check(
            expected,
            &Operation::JobChange(JobChange {
                jobs: jobs.clone(),
                to,
            }),
        );
        check(expected, &Operation::JobDelete(JobDelete { jobs }));
    });
    let change = |expected, to: ChangeTo| {
        let jobs = vec![JOB];
        check(expected, &Operation::JobChange(JobChange { jobs, to }));
    };
    change(Err((BAD, "to")), ChangeTo::default());
    check_range("to.delay_ms", 0..=TEN_YEARS_MS, |expected, ms| {
        change(expected, ChangeTo::after(DurationMs(ms)));
    });
    check_range("to.run_at", 0..=INTEGER_MAX, |expected, at| {
        change(
            expected,
            ChangeTo {
                run_at: Some(Timestamp(at)),
                ..ChangeTo::default()
            },
        );
    });
    check_range("to.priority", 0..=9, |expected, n| {
        change(
            expected,
            ChangeTo {
                priority: Some(u8::try_from(n).unwrap()),
                ..ChangeTo::default()
            },
        );
    });
    let both = ChangeTo {
        run_at: Some(Timestamp(1)),
        ..ChangeTo::now()
    };
    change(Err((BAD, "to.delay_ms")), both);
}

#[test]
fn filters_of_events_and_where_they_go_on() {
    let subscribe = |expected, subscribe: Subscribe| {
        check(expected, &Operation::Subscribe(Box::new(subscribe)));
    };
    let filter = |expected, filter| subscribe(expected, Subscribe::to(filter));
    let none = EventFilter::default;
    check_length("filter.queues", 0..=64, |expected, n| {
        let queues = vec!["mail*".parse().unwrap(); n];
        filter(expected, EventFilter { queues, ..none() });
    });
    check_length("filter.kinds", 0..=64, |expected, n| {
        let kinds = vec!["welcome".parse().unwrap(); n];
        filter(expected, EventFilter { kinds, ..none() });
    });
    let events = EventName::ALL.to_vec();
    filter(Ok(()), EventFilter { events, ..none() });
    let events = vec![EventName::Done, EventName::Dead, EventName::Done];
    filter(
        Err((BAD, "filter.events[2]")),
        EventFilter { events, ..none() },
    );
    let from = |epoch, offset| Subscribe {
        from: Some(EventsFrom { epoch, offset }),
        ..Subscribe::default()
    };
    check_range("from.epoch", 0..=INTEGER_MAX, |expected, n| {
        subscribe(expected, from(n, 0));
    });
    check_range("from.offset", 0..=INTEGER_MAX, |expected, n| {
        subscribe(expected, from(0, n));
    });
}
