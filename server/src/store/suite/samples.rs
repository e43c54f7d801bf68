//! Records for the tests: some fixed, some drawn at random.

use std::sync::Arc;

use ganger_engine::records::{
    ACKS_PER_PART, BatchRecord, Bits, Callback, Content, CronNumber, CronRecord, CronTimes, Entry,
    GroupNumber, HeadRecord, INLINE_BYTES_MAX, JobProgress, JobRecord, LEASES_PER_PART, Lane,
    LeaseRecord, LeftRun, LimitRecord, Node, NodeRecord, OutcomeRange, OutcomeRecord, PackedJob,
    Place, ProducerNumber, QueueNumber, QueueRecord, Run, RunKey, SessionRecord,
};
use ganger_protocol::{
    BatchId, DurationMs, JobId, JobSpec, Kind, LeaseId, NamespaceName, QueueName, RetryPolicy,
    SessionId, Timestamp,
    batch::BatchCounters,
    cron::{Misfire, Overlap},
    ids::Tag,
    job::{DeadReason, JobError, JobState, OnConflict, Unique, UniqueOf, UniqueUntil},
    limit::{LimitTarget, Rate},
    limits::BATCH_CALLBACKS_BYTES_MAX,
    response::Counters,
    retry::Curve,
    workflow::{Condition, OnDead},
};
use proptest::prelude::*;

pub(super) fn lane() -> Lane {
    Lane {
        queue: QueueNumber(1),
        priority: 5,
        lane: 0,
    }
}

pub(super) fn run_key(position: u64) -> RunKey {
    RunKey {
        lane: lane(),
        position,
    }
}

pub(super) fn place(position: u64, index: u8) -> Place {
    Place {
        run: run_key(position),
        index,
    }
}

pub(super) fn job_id(position: u64, index: u8) -> JobId {
    place(position, index).job_id(0)
}

pub(super) fn content(payload: Vec<u8>) -> Arc<Content> {
    Arc::new(JobSpec::new("mail".parse().unwrap(), payload).into())
}

pub(super) fn packed(payload: Vec<u8>) -> PackedJob {
    let content = content(payload);
    PackedJob {
        pushed_at: Timestamp(1_700_000_000_000),
        spilled_parts: content.spilled_parts(),
        content: Some(content),
    }
}

pub(super) fn scheduled_run_key(position: u64) -> RunKey {
    let lane = Lane {
        lane: Lane::SCHEDULED,
        ..lane()
    };
    RunKey { lane, position }
}

/// A scheduled run whose entries are due one after the other, the first at 1.
pub(super) fn scheduled_run_of(seed: u8, entries: u8) -> Run {
    let entries = (0..entries).map(|index| {
        let job = packed(vec![seed, index]);
        Entry::Scheduled(Timestamp(1 + u64::from(index)), job)
    });
    Run {
        entries: entries.collect(),
    }
}

/// A run for which the table makes room.
pub(super) fn large_run_of(seed: u8, entries: u8) -> Run {
    let entries = (0..entries).map(|index| Entry::Job(packed(vec![seed ^ index; 1100])));
    Run {
        entries: entries.collect(),
    }
}

pub(super) fn run_of(seed: u8, entries: u8) -> Run {
    let entries = (0..entries).map(|index| Entry::Job(packed(vec![seed, index])));
    Run {
        entries: entries.collect(),
    }
}

pub(super) fn head(seed: u64) -> HeadRecord {
    HeadRecord {
        wall: Timestamp(seed),
        position_high: (1 << 63) + seed,
        position_low: (1 << 63) - seed,
        reserved: seed,
        next_queue: 2,
    }
}

/// Any legal name.
fn name<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T>
{
    "[A-Za-z0-9._:-]{1,128}".prop_map(|text| text.parse().unwrap())
}

fn duration() -> impl Strategy<Value = DurationMs> {
    any::<u64>().prop_map(DurationMs)
}

pub(super) fn timestamp() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

pub(super) fn any_job_id() -> impl Strategy<Value = JobId> {
    any::<[u8; JobId::BYTES]>().prop_map(JobId::from_bytes)
}

fn any_lane() -> impl Strategy<Value = Lane> {
    (any::<u32>(), 0_u8..10, prop_oneof![Just(0), any::<u64>()]).prop_map(
        |(queue, priority, lane)| Lane {
            queue: QueueNumber(queue),
            priority,
            lane,
        },
    )
}

fn any_run_key() -> impl Strategy<Value = RunKey> {
    (any_lane(), any::<u64>()).prop_map(|(lane, position)| RunKey { lane, position })
}

fn any_place() -> impl Strategy<Value = Place> {
    (any_run_key(), any::<u8>()).prop_map(|(run, index)| Place { run, index })
}

pub(super) fn policy() -> impl Strategy<Value = RetryPolicy> {
    (
        prop::sample::select(vec![
            Curve::Poly,
            Curve::Exponential,
            Curve::Fixed,
            Curve::Table,
        ]),
        (duration(), duration(), duration()),
        any::<u32>(),
        any::<u32>(),
        prop::collection::vec(duration(), 0..=64),
    )
        .prop_map(
            |(curve, (base_ms, cap_ms, jitter_ms), factor, jitter_percent, table_ms)| RetryPolicy {
                curve,
                base_ms,
                factor,
                cap_ms,
                jitter_ms,
                jitter_percent,
                table_ms,
            },
        )
}

fn unique() -> impl Strategy<Value = Unique> {
    (
        prop::option::of(name::<Tag>()),
        prop::sample::subsequence(
            vec![UniqueOf::Queue, UniqueOf::Kind, UniqueOf::Payload],
            1..=3,
        ),
        prop::sample::select(vec![
            UniqueUntil::Start,
            UniqueUntil::Success,
            UniqueUntil::Settled,
            UniqueUntil::Ttl,
        ]),
        prop::option::of(duration()),
        prop::sample::select(vec![
            OnConflict::Reject,
            OnConflict::Existing,
            OnConflict::Replace,
        ]),
    )
        .prop_map(|(key, of, until, ttl_ms, on_conflict)| Unique {
            of: match key {
                Some(_) => Vec::new(),
                None => of,
            },
            key,
            until,
            ttl_ms,
            on_conflict,
        })
}

/// A content with any of its fields, those of later features too.
fn node() -> impl Strategy<Value = Node> {
    let condition = prop::sample::select(vec![Condition::Success, Condition::Settled]);
    let on_dead = prop::sample::select(vec![OnDead::Cancel, OnDead::Hold]);
    let fields = (prop::option::of(name::<Tag>()), condition, on_dead);
    fields.prop_map(|(name, condition, on_dead)| Node {
        name,
        condition,
        on_dead,
    })
}

pub(super) fn any_node() -> impl Strategy<Value = NodeRecord> {
    let fields = (
        any::<u64>(),
        any_job_id(),
        name(),
        name(),
        prop::option::of(name::<Tag>()),
        prop::collection::vec(any_job_id(), 0..300),
    );
    fields.prop_map(|(batch, job, queue, kind, name, after)| NodeRecord {
        batch: BatchId(batch),
        job,
        queue,
        kind,
        name,
        after,
    })
}

pub(super) fn any_content() -> impl Strategy<Value = Content> {
    let fields = (
        name::<Kind>(),
        prop::collection::vec(any::<u8>(), 0..3000),
        prop::option::of("[ -~]{0,128}"),
        prop::collection::btree_map("[a-zé]{0,40}", "[ -~]{0,200}", 0..5),
        prop::option::of(any::<u32>()),
        prop::option::of(policy()),
        prop::option::of(duration()),
    );
    let later = (
        prop::option::of(timestamp()),
        prop::option::of(unique()),
        prop::option::of(name::<Tag>()),
        prop::collection::vec(name::<Tag>(), 0..=8),
        prop::option::of(any::<u64>().prop_map(BatchId)),
        prop::option::of(node()),
        prop::option::of(duration()),
    );
    (fields, later).prop_map(|(fields, later)| {
        let (kind, payload, content_type, headers, max_attempts, backoff, timeout_ms) = fields;
        let (expires_at, unique, key, tags, batch, node, retain_ms) = later;
        Content {
            kind,
            payload: payload.into(),
            content_type: content_type.map(Arc::from),
            headers,
            max_attempts,
            backoff: backoff.map(Box::new),
            timeout_ms,
            expires_at,
            unique: unique.map(Box::new),
            key,
            tags,
            batch,
            node: node.map(Box::new),
            retain_ms,
        }
    })
}

pub(super) fn any_packed() -> impl Strategy<Value = PackedJob> {
    (timestamp(), any_content(), any::<u16>(), any::<bool>()).prop_map(
        |(pushed_at, content, parts, is_spilled)| PackedJob {
            pushed_at,
            spilled_parts: if is_spilled { parts.max(1) } else { 0 },
            content: (!is_spilled).then(|| Arc::new(content)),
        },
    )
}

pub(super) fn any_run() -> impl Strategy<Value = Run> {
    let entry = prop_oneof![
        any_packed().prop_map(Entry::Job),
        (timestamp(), any_packed()).prop_map(|(at, job)| Entry::Scheduled(at, job)),
        any_job_id().prop_map(Entry::Reference),
    ];
    prop::collection::vec(entry, 1..12).prop_map(|entries| Run { entries })
}

/// A record of a job with any of its fields, those of later features too.
pub(super) fn any_job_record() -> impl Strategy<Value = JobRecord> {
    let at = || prop::option::of(timestamp());
    let standing = (
        any_job_id(),
        prop::sample::select(JobState::ALL.to_vec()),
        any_lane(),
        timestamp(),
        (at(), at(), at()),
        prop::option::of(any_place()),
        any::<bool>(),
    );
    let counts = (
        prop::option::of(prop::sample::select(vec![
            DeadReason::Attempts,
            DeadReason::Worker,
            DeadReason::Poison,
        ])),
        any::<[u32; 6]>(),
        any::<u64>(),
        prop::collection::vec(any::<u16>(), 0..=10),
        0_u8..10,
        any_packed(),
    );
    let later = (
        prop::option::of(any::<u64>().prop_map(BatchId)),
        any::<[bool; 2]>(),
        prop::option::of(any::<u8>()),
        prop::option::of("[ -~]{0,100}"),
        any::<[u16; 2]>(),
    );
    (standing, counts, later).prop_map(|(standing, counts, later)| {
        let (id, state, lane, pushed_at, times, place, is_at_birth) = standing;
        let (reason, numbers, lease, error_parts, error_first, packed) = counts;
        let (batch, [holds_unique, is_node], percent, note, parts) = later;
        JobRecord {
            id,
            group: GroupNumber(0),
            state,
            queue: lane.queue,
            priority: lane.priority,
            lane: lane.lane,
            pushed_at,
            run_at: times.0,
            place: if is_at_birth {
                Some(Place::of_birth(&id))
            } else {
                place
            },
            closed_at: times.1,
            reason,
            attempt: numbers[0],
            failures: numbers[1],
            losses: numbers[2],
            losses_in_row: numbers[3],
            releases: numbers[4],
            settled_lease: LeaseId(lease),
            error_parts,
            error_first,
            spilled_parts: packed.spilled_parts,
            content: packed.content,
            cancel_at: times.2,
            batch,
            waits_for: numbers[5],
            holds_unique,
            is_node,
            holds_key: holds_unique && numbers[1] % 2 == 0,
            progress: (percent.is_some() || note.is_some() || parts[0] > 0).then(|| {
                Box::new(JobProgress {
                    percent,
                    note,
                    cursor_parts: parts[0],
                    cursor: None,
                })
            }),
            result_parts: parts[1],
        }
    })
}

pub(super) fn any_left() -> impl Strategy<Value = LeftRun> {
    (any_run_key(), any::<u8>(), any::<[u64; 4]>(), 0_usize..5).prop_map(
        |(run, entries, words, used)| {
            let mut left = Bits::default();
            for (word, value) in left.0.iter_mut().zip(words).take(used) {
                *word = value;
            }
            LeftRun { run, entries, left }
        },
    )
}

pub(super) fn any_acks() -> impl Strategy<Value = Vec<LeftRun>> {
    prop::collection::vec(any_left(), 0..=ACKS_PER_PART)
}

pub(super) fn any_leases() -> impl Strategy<Value = Vec<LeaseRecord>> {
    // Numbers as they occur: below 2^53.
    let number = || 0_u64..1 << 53;
    let row = (
        any_job_id(),
        (number(), number(), number()),
        prop::option::of(any_place()),
        (any::<u32>(), any::<u64>()),
    )
        .prop_map(
            |(job, (lease, session, deadline), place, attempt)| LeaseRecord {
                job,
                lease: LeaseId(lease),
                session: SessionId(session),
                deadline: Timestamp(deadline),
                place: place.unwrap_or_else(|| Place::of_birth(&job)),
                attempt: attempt.0,
                key: attempt.1,
            },
        );
    prop::collection::vec(row, 0..=LEASES_PER_PART)
}

pub(super) fn any_session() -> impl Strategy<Value = SessionRecord> {
    (
        any::<u64>(),
        name::<NamespaceName>(),
        "[ -~]{0,256}",
        "[ -~]{0,256}",
        prop::collection::vec(("[ -~]{0,256}", "[ -~]{0,256}"), 0..=16),
        any::<[u32; 2]>(),
        duration(),
    )
        .prop_map(
            |(id, namespace, name, host, labels, numbers, ttl)| SessionRecord {
                id: SessionId(id),
                namespace,
                name,
                host,
                pid: numbers[0],
                labels,
                capacity: numbers[1],
                ttl,
            },
        )
}

pub(super) fn any_outcome() -> impl Strategy<Value = OutcomeRecord> {
    let range = prop_oneof![
        (any_job_id(), any::<u8>())
            .prop_map(|(first, count)| OutcomeRange::Pushed { first, count }),
        (any_job_id(), any::<bool>()).prop_map(|(holder, is_replaced)| OutcomeRange::Existing {
            holder,
            is_replaced,
        }),
        (any::<u8>(), "[ -~]{0,40}", "[ -~]{0,256}").prop_map(|(code, field, message)| {
            OutcomeRange::Refused {
                code,
                field,
                message,
            }
        }),
    ];
    (
        any::<u64>(),
        any::<u64>(),
        timestamp(),
        prop::collection::vec(range, 0..100),
    )
        .prop_map(|(producer, seq, at, results)| OutcomeRecord {
            producer: ProducerNumber(producer),
            seq,
            at,
            results,
        })
}

pub(super) fn any_queue() -> impl Strategy<Value = QueueRecord> {
    (
        any::<u32>(),
        name::<NamespaceName>(),
        name::<QueueName>(),
        any::<bool>(),
        prop::option::of(duration()),
        prop::option::of(policy()),
        (
            prop::option::of(any::<u64>()),
            prop::option::of(duration()),
            prop::option::of(any::<u64>()),
            any::<bool>(),
            prop::option::of(any::<u64>().prop_map(Timestamp)),
            prop::option::of(duration()),
            prop::option::of(any::<u64>()),
        ),
        any::<[u64; 19]>(),
    )
        .prop_map(
            |(number, namespace, name, paused, timeout_ms, backoff, dead, c)| QueueRecord {
                number: QueueNumber(number),
                namespace,
                name,
                paused,
                timeout_ms,
                backoff: backoff.map(Box::new),
                dead_max: dead.0,
                dead_retention_ms: dead.1,
                jobs_max: dead.2,
                is_purged: dead.3,
                paused_until: dead.4,
                retain_ms: dead.5,
                retained_max: dead.6,
                counters: Counters {
                    scheduled: c[0],
                    blocked: c[1],
                    ready: c[2],
                    leased: c[3],
                    dead: c[4],
                    pushed: c[5],
                    done: c[6],
                    cancelled: c[7],
                    expired: c[8],
                    deleted: c[9],
                    granted: c[10],
                    failed: c[11],
                    lost: c[12],
                    released: c[13],
                    done_kept: c[14],
                    cancelled_kept: c[15],
                    expired_kept: c[16],
                    moved_in: c[17],
                    moved_out: c[18],
                },
            },
        )
}

pub(super) fn any_limit() -> impl Strategy<Value = LimitRecord> {
    let target = prop_oneof![
        "[a-z:]{0,127}\\*".prop_map(|text| LimitTarget::Queue(text.parse().unwrap())),
        "[a-z:]{1,128}".prop_map(|text| LimitTarget::Queue(text.parse().unwrap())),
        "[a-z:]{0,127}\\*".prop_map(|text| LimitTarget::Key(text.parse().unwrap())),
        "[a-z:]{1,128}".prop_map(|text| LimitTarget::Key(text.parse().unwrap())),
    ];
    let count = || prop::option::of(any::<u32>());
    let rate = (any::<u32>(), duration(), count());
    let rate = rate.prop_map(|(n, per_ms, burst)| Rate { n, per_ms, burst });
    let figures = (count(), prop::option::of(rate), count(), any::<bool>());
    (name(), target, figures).prop_map(|(namespace, target, figures)| LimitRecord {
        namespace,
        target,
        max_running: figures.0,
        rate: figures.1,
        weight: figures.2,
        sequence: figures.3,
    })
}

pub(super) fn any_cron() -> impl Strategy<Value = CronRecord> {
    let times = prop_oneof![
        duration().prop_map(CronTimes::Every),
        ("[ -~]{0,128}", "[ -~]{0,128}").prop_map(|(expression, timezone)| {
            CronTimes::Expression {
                expression,
                timezone,
            }
        }),
    ];
    let misfire = prop_oneof![Just(Misfire::Skip), Just(Misfire::Once), Just(Misfire::All)];
    let overlap = prop_oneof![
        Just(Overlap::Allow),
        Just(Overlap::Skip),
        Just(Overlap::QueueOne)
    ];
    let small = |content: &Content| content.bound_bytes() <= INLINE_BYTES_MAX;
    let is_at = || prop::option::of(timestamp());
    (
        (any::<u64>(), name(), name(), times),
        (
            misfire,
            any::<u32>(),
            overlap,
            duration(),
            any::<[bool; 2]>(),
        ),
        (is_at(), is_at(), is_at(), prop::option::of(any_job_id())),
        (any::<u64>(), any::<u64>(), "[ -~]{0,256}"),
        (name(), prop::option::of(0_u8..10)),
        any_content().prop_filter("a small one", small),
    )
        .prop_map(|(who, how, when, tally, job, content)| CronRecord {
            number: CronNumber(who.0),
            namespace: who.1,
            name: who.2,
            times: who.3,
            misfire: how.0,
            misfire_max: how.1,
            overlap: how.2,
            jitter_ms: how.3,
            paused: how.4[0],
            from_file: how.4[1],
            next_at: when.0,
            last_at: when.1,
            queued_at: when.2,
            last_job: when.3,
            pushed: tally.0,
            skipped: tally.1,
            refused: tally.2,
            queue: job.0,
            priority: job.1,
            content: Arc::new(content),
        })
}

pub(super) fn any_batch() -> impl Strategy<Value = BatchRecord> {
    let is_small = |content: &Content| 3 * content.bound_bytes() <= BATCH_CALLBACKS_BYTES_MAX;
    let callback = move || {
        let job = (
            prop::option::of(any_job_id()),
            name(),
            prop::option::of(0_u8..10),
            any_content().prop_filter("a small one", is_small),
        );
        let job = job.prop_map(|(pushed, queue, priority, content)| Callback {
            queue,
            priority,
            content: Arc::new(content),
            pushed,
        });
        prop::option::of(job)
    };
    let is_at = || prop::option::of(timestamp());
    (
        (
            any::<u64>(),
            name(),
            "[ -~]{0,256}",
            prop::option::of(any::<u64>()),
        ),
        any::<[u64; 8]>(),
        (timestamp(), is_at(), is_at(), is_at(), any::<[bool; 2]>()),
        (callback(), callback(), callback()),
    )
        .prop_map(|(who, c, when, callbacks)| BatchRecord {
            id: BatchId(who.0),
            namespace: who.1,
            description: who.2,
            parent: who.3.map(BatchId),
            counters: BatchCounters {
                total: c[0],
                untried: c[1],
                pending: c[2],
                done: c[3],
                dead: c[4],
                cancelled: c[5],
                expired: c[6],
                deleted: c[7],
            },
            on_complete: callbacks.0,
            on_success: callbacks.1,
            on_settled: callbacks.2,
            opened_at: when.0,
            committed_at: when.1,
            completed_at: when.2,
            settled_at: when.3,
            lapsed: when.4[0],
            has_edges: when.4[1],
        })
}

pub(super) fn any_error() -> impl Strategy<Value = JobError> {
    (
        timestamp(),
        any::<u32>(),
        "[ -~]{0,100}",
        ".{0,1000}",
        ".{0,3000}",
    )
        .prop_map(|(at, attempt, kind, message, backtrace)| JobError {
            at,
            attempt,
            kind,
            message,
            backtrace,
        })
}

pub(super) fn any_head() -> impl Strategy<Value = HeadRecord> {
    any::<([u64; 4], u32)>().prop_map(|(n, next_queue)| HeadRecord {
        wall: Timestamp(n[0]),
        position_high: n[1],
        position_low: n[2],
        reserved: n[3],
        next_queue,
    })
}
