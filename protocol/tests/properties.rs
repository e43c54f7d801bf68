//! Properties over arbitrary input: any bytes at all, vectors with a few bytes changed, and any
//! request that the types allow.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails may panic, in its helpers too"
)]

use std::{collections::BTreeMap, fs};

use bytes::{Bytes, BytesMut};
use ganger_protocol::{
    BatchId, DurationMs, JobId, JobSpec, Kind, LeaseId, QueueName, QueuePattern, RetryPolicy,
    SessionId, Timestamp,
    batch::BatchOpen,
    change::{ChangeTo, JobChange, JobDelete},
    cron::{CronSet, Misfire, Overlap},
    event::{EventFilter, EventName, EventsFrom, Subscribe, SubscriptionId, Unsubscribe},
    frame, fuzzing,
    ids::{Tag, TaskId},
    job::{JobState, OnConflict, Unique, UniqueOf, UniqueUntil},
    limit::{LimitList, LimitSet, LimitTarget, OneLimit, Rate},
    limits::{AFTER_MAX, FRAME_BYTES_MAX, HEADERS_BYTES_MAX, Limits, PRIORITY_MAX},
    list::{JobFilter, JobList},
    progress::{Progress, ProgressItem, Wait},
    queue::{OneQueue, QueuePause, QueueSet, Setting},
    request::*,
    retry::Curve,
    task::{OneTask, TaskAction, TaskList, TaskStart},
    time::INTEGER_MAX,
    workflow::{Condition, OnDead},
};
use proptest::{collection::vec, option, prelude::*};

fn name<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T>
{
    "[A-Za-z0-9._:-]{1,128}".prop_map(|text| text.parse().unwrap())
}

fn pattern() -> impl Strategy<Value = QueuePattern> {
    "[A-Za-z0-9._:-]{1,128}|[A-Za-z0-9._:-]{0,128}\\*".prop_map(|text| text.parse().unwrap())
}

fn job_id() -> impl Strategy<Value = JobId> {
    any::<[u8; JobId::BYTES]>().prop_map(JobId::from_bytes)
}

fn lease() -> impl Strategy<Value = LeaseId> {
    (0..=INTEGER_MAX).prop_map(LeaseId)
}

fn lease_ref() -> impl Strategy<Value = LeaseRef> {
    (job_id(), lease()).prop_map(|(job, lease)| LeaseRef { job, lease })
}

fn ms() -> impl Strategy<Value = DurationMs> {
    (0..=INTEGER_MAX).prop_map(DurationMs)
}

fn at() -> impl Strategy<Value = Timestamp> {
    (0..=INTEGER_MAX).prop_map(Timestamp)
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn backoff() -> impl Strategy<Value = RetryPolicy> {
    let curve = prop_oneof![
        Just(Curve::Poly),
        Just(Curve::Exponential),
        Just(Curve::Fixed),
        Just(Curve::Table)
    ];
    let numbers = (ms(), any::<u32>(), ms(), ms(), any::<u32>());
    (curve, numbers, vec(ms(), 0..5)).prop_map(|(curve, numbers, table_ms)| {
        let (base_ms, factor, cap_ms, jitter_ms, jitter_percent) = numbers;
        RetryPolicy {
            curve,
            base_ms,
            factor,
            cap_ms,
            jitter_ms,
            jitter_percent,
            table_ms,
        }
    })
}

fn unique() -> impl Strategy<Value = Unique> {
    let until = prop_oneof![
        Just(UniqueUntil::Start),
        Just(UniqueUntil::Success),
        Just(UniqueUntil::Settled),
        Just(UniqueUntil::Ttl)
    ];
    let on_conflict = prop_oneof![
        Just(OnConflict::Reject),
        Just(OnConflict::Existing),
        Just(OnConflict::Replace)
    ];
    let of = prop_oneof![
        Just(UniqueOf::Queue),
        Just(UniqueOf::Kind),
        Just(UniqueOf::Payload)
    ];
    let key = (option::of(name()), vec(of, 0..3));
    (key, until, option::of(ms()), on_conflict).prop_map(
        |((key, of), until, ttl_ms, on_conflict)| Unique {
            key,
            of,
            until,
            ttl_ms,
            on_conflict,
        },
    )
}

fn pairs() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(".{0,20}", ".{0,40}", 0..20)
}

/// A job whose fields are each what their type allows, in range or not.
fn job() -> impl Strategy<Value = JobSpec> {
    let what = (name::<QueueName>(), name::<Kind>(), blob(), pairs());
    let when = (option::of(at()), option::of(ms()), option::of(ms()));
    let how = (
        option::of(any::<u8>()),
        option::of(any::<u32>()),
        option::of(backoff()),
        option::of(".{0,40}"),
        vec(name::<Tag>(), 0..4),
    );
    let unserved = (
        option::of(at()),
        option::of(unique()),
        option::of(name::<Tag>()),
        option::of(any::<u64>().prop_map(BatchId)),
        (
            option::of(name::<Tag>()),
            vec(name::<Tag>(), 0..3),
            option::of(proptest::sample::select(vec![
                Condition::Success,
                Condition::Settled,
            ])),
            option::of(proptest::sample::select(vec![OnDead::Cancel, OnDead::Hold])),
        ),
        option::of(ms()),
    );
    (what, when, how, unserved).prop_map(|(what, when, how, unserved)| JobSpec {
        queue: what.0,
        kind: what.1,
        payload: what.2,
        headers: what.3,
        run_at: when.0,
        delay_ms: when.1,
        timeout_ms: when.2,
        priority: how.0,
        max_attempts: how.1,
        backoff: how.2.map(Box::new),
        content_type: how.3.map(Into::into),
        tags: how.4,
        expires_at: unserved.0,
        unique: unserved.1.map(Box::new),
        key: unserved.2,
        batch: unserved.3,
        name: unserved.4.0,
        after: unserved.4.1,
        condition: unserved.4.2,
        on_dead: unserved.4.3,
        retain_ms: unserved.5,
    })
}

fn limit_target() -> impl Strategy<Value = LimitTarget> {
    let prefix = "([a-z:]{0,9}\\*|[a-z:]{1,9})";
    prop_oneof![
        prefix.prop_map(|text| LimitTarget::Queue(text.parse().unwrap())),
        prefix.prop_map(|text| LimitTarget::Key(text.parse().unwrap())),
    ]
}

fn limit_set() -> impl Strategy<Value = LimitSet> {
    let count = || option::of(any::<u32>());
    let rate = (any::<u32>(), ms(), count());
    let rate = rate.prop_map(|(n, per_ms, burst)| Rate { n, per_ms, burst });
    (
        limit_target(),
        count(),
        option::of(rate),
        count(),
        any::<bool>(),
    )
        .prop_map(|(target, max_running, rate, weight, sequence)| LimitSet {
            max_running,
            rate,
            weight,
            sequence,
            ..LimitSet::of(target)
        })
}

fn ack_item() -> impl Strategy<Value = AckItem> {
    (job_id(), lease(), option::of(blob()), option::of(ms())).prop_map(
        |(job, lease, result, retain_ms)| AckItem {
            job,
            lease,
            result,
            retain_ms,
        },
    )
}

fn progress_item() -> impl Strategy<Value = ProgressItem> {
    let said = (
        option::of(any::<u8>()),
        option::of(".{0,40}"),
        option::of(blob()),
    );
    (job_id(), lease(), said).prop_map(|(job, lease, (percent, note, cursor))| ProgressItem {
        job,
        lease,
        percent,
        note,
        cursor,
    })
}

fn fail_item() -> impl Strategy<Value = FailItem> {
    let texts = (".{0,40}", ".{0,40}", ".{0,40}");
    let endings = (option::of(ms()), any::<bool>(), any::<bool>());
    (job_id(), lease(), texts, endings).prop_map(|(job, lease, texts, endings)| FailItem {
        job,
        lease,
        kind: texts.0,
        message: texts.1,
        backtrace: texts.2,
        retry_in_ms: endings.0,
        dead: endings.1,
        discard: endings.2,
    })
}

fn session() -> impl Strategy<Value = SessionHello> {
    let resume = (
        any::<u64>().prop_map(SessionId),
        ".{0,40}",
        vec(lease_ref(), 0..5),
    )
        .prop_map(|(id, secret, held)| Resume { id, secret, held });
    (
        (".{0,40}", ".{0,40}", any::<u32>(), any::<u32>()),
        pairs(),
        option::of(ms()),
        option::of(resume),
    )
        .prop_map(
            |((name, host, pid, capacity), labels, ttl_ms, resume)| SessionHello {
                name,
                host,
                pid,
                labels,
                capacity,
                ttl_ms,
                resume,
            },
        )
}

fn hello() -> impl Strategy<Value = Hello> {
    let auth = (".{0,20}", blob()).prop_map(|(id, mac)| Auth { id, mac });
    let producer = option::of(".{0,20}").prop_map(|id| ProducerHello { id });
    (
        any::<u32>(),
        ".{0,40}",
        vec(".{0,20}", 0..4),
        name(),
        option::of(auth),
        option::of(session()),
        option::of(producer),
    )
        .prop_map(
            |(v, client, features, namespace, auth, session, producer)| Hello {
                v,
                client,
                features,
                namespace,
                auth,
                session,
                producer,
            },
        )
}

fn fetch() -> impl Strategy<Value = Fetch> {
    (
        vec(pattern(), 0..6),
        vec(any::<u32>(), 0..6),
        any::<u32>(),
        ms(),
        vec(ack_item(), 0..4),
        vec(fail_item(), 0..4),
    )
        .prop_map(|(queues, weights, max, wait_ms, acks, fails)| Fetch {
            queues,
            weights,
            max,
            wait_ms,
            acks,
            fails,
        })
}

fn select() -> impl Strategy<Value = DeadSelect> {
    (
        vec(job_id(), 0..4),
        option::of(name()),
        option::of(any::<u32>()),
        option::of(at()),
    )
        .prop_map(|(jobs, queue, limit, before)| DeadSelect {
            jobs,
            queue,
            limit,
            before,
        })
}

fn filter() -> impl Strategy<Value = JobFilter> {
    (
        (
            option::of(pattern()),
            vec(proptest::sample::select(&JobState::ALL), 0..4),
        ),
        (option::of(name()), option::of(name()), option::of(name())),
        (
            option::of(any::<u64>().prop_map(BatchId)),
            option::of(any::<u8>()),
        ),
        (option::of(".{0,10}"), option::of(".{0,10}")),
        (option::of(at()), option::of(at())),
    )
        .prop_map(
            |((queue, states), (kind, tag, key), (batch, priority), errors, times)| JobFilter {
                queue,
                states,
                kind,
                tag,
                key,
                batch,
                priority,
                error_kind: errors.0,
                error_text: errors.1,
                since: times.0,
                before: times.1,
            },
        )
}

fn job_list() -> impl Strategy<Value = JobList> {
    (filter(), any::<bool>(), option::of(".{0,40}"), any::<u32>()).prop_map(
        |(filter, newest_first, cursor, limit)| JobList {
            filter,
            newest_first,
            cursor,
            limit,
        },
    )
}

fn change_to() -> impl Strategy<Value = ChangeTo> {
    (
        option::of(ms()),
        option::of(at()),
        option::of(name()),
        option::of(any::<u8>()),
    )
        .prop_map(|(delay_ms, run_at, queue, priority)| ChangeTo {
            delay_ms,
            run_at,
            queue,
            priority,
        })
}

fn task_start() -> impl Strategy<Value = TaskStart> {
    (
        filter(),
        proptest::sample::select(&TaskAction::ALL),
        option::of(change_to()),
        option::of(ms()),
        any::<bool>(),
    )
        .prop_map(|(filter, action, to, grace_ms, dry_run)| TaskStart {
            filter,
            action,
            to,
            grace_ms,
            dry_run,
        })
}

fn subscribe() -> impl Strategy<Value = Subscribe> {
    let events = proptest::sample::subsequence(EventName::ALL.to_vec(), 0..5);
    let from = option::of((0..=INTEGER_MAX, 0..=INTEGER_MAX));
    let names = (vec(pattern(), 0..3), vec(name(), 0..3));
    (
        events,
        names,
        option::of(job_id()),
        option::of(any::<u64>()),
        from,
    )
        .prop_map(|(events, (queues, kinds), job, batch, from)| Subscribe {
            filter: EventFilter {
                events,
                queues,
                kinds,
                job,
                batch: batch.map(BatchId),
            },
            from: from.map(|(epoch, offset)| EventsFrom { epoch, offset }),
        })
}

fn batch_open() -> impl Strategy<Value = BatchOpen> {
    let callback = || option::of(job().prop_map(Box::new));
    let parent = (any::<u64>(), job_id(), lease());
    (
        ".{0,20}",
        callback(),
        callback(),
        callback(),
        option::of(parent),
    )
        .prop_map(
            |(description, on_complete, on_success, on_settled, parent)| BatchOpen {
                description,
                on_complete,
                on_success,
                on_settled,
                parent: parent.map(|(parent, ..)| BatchId(parent)),
                by: parent.map(|(_, job, lease)| LeaseRef { job, lease }),
            },
        )
}

fn cron() -> impl Strategy<Value = CronSet> {
    let misfire = prop_oneof![Just(Misfire::Skip), Just(Misfire::Once), Just(Misfire::All)];
    let overlap = prop_oneof![
        Just(Overlap::Allow),
        Just(Overlap::Skip),
        Just(Overlap::QueueOne)
    ];
    let text = || option::of(".{0,40}");
    (
        (name(), text(), option::of(ms()), text(), job()),
        (
            misfire,
            option::of(any::<u32>()),
            overlap,
            ms(),
            option::of(any::<bool>()),
        ),
    )
        .prop_map(|(what, how)| CronSet {
            name: what.0,
            expression: what.1,
            every_ms: what.2,
            timezone: what.3,
            job: what.4,
            misfire: how.0,
            misfire_max: how.1,
            overlap: how.2,
            jitter_ms: how.3,
            paused: how.4,
        })
}

fn operation() -> impl Strategy<Value = Operation> {
    let release =
        (job_id(), lease(), option::of(ms())).prop_map(|(job, lease, delay_ms)| ReleaseItem {
            job,
            lease,
            delay_ms,
        });
    let extend =
        (job_id(), lease(), ms()).prop_map(|(job, lease, ms)| ExtendItem { job, lease, ms });
    let list = (name(), any::<bool>(), option::of(".{0,20}"), any::<u32>());
    prop_oneof![
        hello().prop_map(|hello| Operation::Hello(Box::new(hello))),
        (
            vec(job(), 0..4),
            any::<bool>(),
            option::of(ms()),
            option::of((job_id(), lease()).prop_map(|(job, lease)| LeaseRef { job, lease })),
            option::of(0..=INTEGER_MAX)
        )
            .prop_map(|(jobs, atomic, spread_ms, by, seq)| Operation::Push(Push {
                jobs,
                atomic,
                spread_ms,
                by,
                seq
            })),
        fetch().prop_map(Operation::Fetch),
        vec(ack_item(), 0..4).prop_map(|leases| Operation::Ack(Ack { leases })),
        vec(fail_item(), 0..4).prop_map(|leases| Operation::Fail(Fail { leases })),
        vec(release, 0..4).prop_map(|leases| Operation::Release(Release { leases })),
        vec(extend, 0..4).prop_map(|leases| Operation::Extend(Extend { leases })),
        vec(progress_item(), 0..4).prop_map(|leases| Operation::Progress(Progress { leases })),
        Just(Operation::Heartbeat(Heartbeat {})),
        Just(Operation::Goodbye(Goodbye {})),
        job_id().prop_map(|job| Operation::JobGet(JobGet { job })),
        (job_id(), ms()).prop_map(|(job, wait_ms)| Operation::Wait(Wait { job, wait_ms })),
        list.prop_map(
            |(queue, newest_first, cursor, limit)| Operation::DeadList(DeadList {
                queue,
                newest_first,
                cursor,
                limit
            })
        ),
        job_list().prop_map(|list| Operation::JobList(Box::new(list))),
        (vec(job_id(), 0..4), change_to())
            .prop_map(|(jobs, to)| Operation::JobChange(JobChange { jobs, to })),
        vec(job_id(), 0..4).prop_map(|jobs| Operation::JobDelete(JobDelete { jobs })),
        task_start().prop_map(|start| Operation::TaskStart(Box::new(start))),
        (0..=INTEGER_MAX).prop_map(|task| Operation::TaskGet(OneTask { task: TaskId(task) })),
        (0..=INTEGER_MAX).prop_map(|task| Operation::TaskCancel(OneTask { task: TaskId(task) })),
        Just(Operation::TaskList(TaskList {})),
        select().prop_map(Operation::DeadRevive),
        select().prop_map(Operation::DeadPurge),
        option::of(pattern()).prop_map(|pattern| Operation::QueueList(QueueList { pattern })),
        (vec(name(), 0..4), option::of(ms())).prop_map(|(queues, for_ms)| {
            Operation::QueuePause(QueuePause {
                queues,
                for_ms,
                until: None,
            })
        }),
        name().prop_map(|queue| Operation::QueueShow(OneQueue { queue })),
        name().prop_map(|queue| Operation::QueueCreate(OneQueue { queue })),
        name().prop_map(|queue| Operation::QueuePurge(OneQueue { queue })),
        name().prop_map(|queue| Operation::QueueDelete(OneQueue { queue })),
        (name(), option::of(option::of(any::<u32>()))).prop_map(|(queue, jobs)| {
            let jobs_max = match jobs {
                None => Setting::Keep,
                Some(None) => Setting::Default,
                Some(Some(jobs)) => Setting::To(u64::from(jobs)),
            };
            Operation::QueueSet(Box::new(QueueSet {
                jobs_max,
                ..QueueSet::of(queue)
            }))
        }),
        vec(name(), 0..4).prop_map(|queues| Operation::QueueResume(QueueNames { queues })),
        batch_open().prop_map(|open| Operation::BatchOpen(Box::new(open))),
        any::<u64>().prop_map(|batch| Operation::BatchCommit(BatchName {
            batch: BatchId(batch)
        })),
        (any::<u64>(), option::of(job_id()), any::<u32>()).prop_map(|(batch, cursor, limit)| {
            Operation::BatchGraph(BatchGraph {
                batch: BatchId(batch),
                cursor,
                limit,
            })
        }),
        any::<u64>().prop_map(|batch| Operation::BatchShow(BatchName {
            batch: BatchId(batch)
        })),
        (any::<bool>(), option::of(".{0,10}"), any::<u32>()).prop_map(
            |(settled, cursor, limit)| Operation::BatchList(BatchList {
                settled,
                cursor,
                limit,
            })
        ),
        cron().prop_map(|set| Operation::CronSet(Box::new(set))),
        vec(name(), 0..4).prop_map(|names| Operation::CronDelete(CronNames { names })),
        vec(name(), 0..4).prop_map(|names| Operation::CronPause(CronNames { names })),
        vec(name(), 0..4).prop_map(|names| Operation::CronResume(CronNames { names })),
        (option::of(".{0,40}"), any::<u32>())
            .prop_map(|(cursor, limit)| Operation::CronList(CronList { cursor, limit })),
        (name(), any::<u32>())
            .prop_map(|(name, next)| Operation::CronShow(CronShow { name, next })),
        name().prop_map(|name| Operation::CronRun(CronRun { name })),
        limit_set().prop_map(|set| Operation::LimitSet(Box::new(set))),
        limit_target().prop_map(|target| Operation::LimitDelete(OneLimit::of(target))),
        limit_target().prop_map(|target| Operation::LimitShow(OneLimit::of(target))),
        (option::of(".{0,40}"), any::<u32>())
            .prop_map(|(cursor, limit)| Operation::LimitList(LimitList { cursor, limit })),
        subscribe().prop_map(|subscribe| Operation::Subscribe(Box::new(subscribe))),
        (0..=INTEGER_MAX).prop_map(|nth| Operation::Unsubscribe(Unsubscribe {
            subscription: SubscriptionId(nth)
        })),
        Just(Operation::Stats(Stats {})),
        (0..=INTEGER_MAX).prop_map(|offset| Operation::Backup(Backup { offset })),
    ]
}

/// The frames of all vectors: where changed bytes hurt most.
fn frames() -> Vec<Vec<u8>> {
    let files = [
        "requests.json",
        "replies.json",
        "errors.json",
        "notices.json",
    ];
    let mut frames = Vec::new();
    for file in files {
        let path = format!("{}/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
        let vectors: Vec<serde_json::Value> =
            serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        for vector in vectors {
            let hex = vector
                .get("frame")
                .and_then(|frame| frame.as_str())
                .unwrap();
            let digits = hex.as_bytes().chunks(2);
            let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            frames.push(digits.map(byte).collect());
        }
    }
    frames
}

fn bodies(bytes: &[u8]) {
    fuzzing::frame_stream(bytes);
    fuzzing::request(bytes);
    fuzzing::message(bytes);
}

#[test]
fn every_vector_passes_the_fuzz_bodies_whole_and_cut_at_any_byte() {
    for frame in frames() {
        for end in 0..=frame.len() {
            let (head, _) = frame.split_at(end);
            bodies(head);
            bodies(head.get(frame::HEADER_BYTES..).unwrap_or_default());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..600)) {
        bodies(&bytes);
    }

    #[test]
    fn vectors_with_changed_bytes_are_survived(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut frame = which.get(&frames()).clone();
        for (at, byte) in changes {
            let at = at.index(frame.len());
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        bodies(&frame);
        bodies(frame.get(frame::HEADER_BYTES..).unwrap_or_default());
    }

    #[test]
    fn a_request_reads_back_as_it_was_written(
        id in 1..=INTEGER_MAX,
        operation in operation(),
    ) {
        let request = Request { id, operation };
        let mut buffer = BytesMut::from(&b"before"[..]);
        request.encode(&mut buffer).unwrap();
        prop_assert_eq!(&*buffer.split_to(6), b"before");
        let map = frame::decode(&mut buffer, FRAME_BYTES_MAX).unwrap().unwrap();
        prop_assert!(buffer.is_empty());
        fuzzing::request(&map);
        prop_assert_eq!(Request::decode(&map), Ok(request));
    }

    #[test]
    fn a_job_that_passes_its_check_is_within_its_limits(job in job()) {
        let limits = Limits::default();
        if job.check(&limits).is_ok() {
            prop_assert!(job.priority.is_none_or(|priority| priority <= PRIORITY_MAX));
            prop_assert!(job.headers.iter().all(|(k, v)| k.len() + v.len() <= HEADERS_BYTES_MAX));
            prop_assert!(job.after.len() <= AFTER_MAX);
        }
    }
}
