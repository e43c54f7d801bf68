//! Which request is legal in which state of a connection. Pure.
//!
//! ```text
//!  welcome sent ── hello refused ──► (closed)
//!       │ hello accepted
//!       ▼
//!     open {session?, producer?} ── goodbye ──► open {producer?}
//! ```
//!
//! Whether the token allows it is [`crate::auth::authorise`]'s; what it does, the engine's.

use ganger_protocol::{ErrorCode, WireError, request::Operation};

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// `welcome` was sent; only `hello` is accepted.
    BeforeHello,
    /// `hello` was accepted.
    Open(Open),
}

/// What an open connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Open {
    /// A worker's session.
    pub session: bool,
    /// A producer of numbered pushes.
    pub producer: bool,
}

impl State {
    /// Whether this operation is legal now.
    ///
    /// # Errors
    /// `bad_request` about `op` or `seq`, saying what is missing.
    pub fn check(self, operation: &Operation) -> Result<(), WireError> {
        let open = match (self, operation) {
            (Self::BeforeHello, Operation::Hello(_)) => return Ok(()),
            (Self::BeforeHello, _) => {
                let message = format!("{} before hello", operation.op());
                return Err(WireError::bad_request("op", message));
            }
            (Self::Open(open), _) => open,
        };
        match operation {
            Operation::Hello(_) => Err(WireError::bad_request("op", "a second hello")),
            Operation::Push(push) if push.seq.is_some() && !open.producer => Err(
                WireError::bad_request("seq", "a numbered push needs a producer in hello"),
            ),
            Operation::Fetch(_)
            | Operation::Ack(_)
            | Operation::Fail(_)
            | Operation::Release(_)
            | Operation::Extend(_)
            | Operation::Progress(_)
            | Operation::Heartbeat(_)
            | Operation::Goodbye(_)
                if !open.session =>
            {
                let message = format!("{} needs a session in hello", operation.op());
                Err(WireError::bad_request("op", message))
            }
            Operation::Push(_)
            | Operation::Fetch(_)
            | Operation::Ack(_)
            | Operation::Fail(_)
            | Operation::Release(_)
            | Operation::Extend(_)
            | Operation::Progress(_)
            | Operation::Heartbeat(_)
            | Operation::Goodbye(_)
            | Operation::JobGet(_)
            | Operation::Wait(_)
            | Operation::JobCancel(_)
            | Operation::JobChange(_)
            | Operation::JobDelete(_)
            | Operation::JobList(_)
            | Operation::DeadList(_)
            | Operation::DeadRevive(_)
            | Operation::DeadPurge(_)
            | Operation::QueueList(_)
            | Operation::QueuePause(_)
            | Operation::QueueResume(_)
            | Operation::QueueShow(_)
            | Operation::QueueSet(_)
            | Operation::QueueCreate(_)
            | Operation::QueuePurge(_)
            | Operation::QueueDelete(_)
            | Operation::CronSet(_)
            | Operation::CronDelete(_)
            | Operation::CronList(_)
            | Operation::CronShow(_)
            | Operation::CronPause(_)
            | Operation::CronResume(_)
            | Operation::CronRun(_)
            | Operation::BatchOpen(_)
            | Operation::BatchCommit(_)
            | Operation::BatchShow(_)
            | Operation::BatchGraph(_)
            | Operation::BatchList(_)
            | Operation::LimitSet(_)
            | Operation::LimitDelete(_)
            | Operation::LimitShow(_)
            | Operation::LimitList(_)
            | Operation::TaskStart(_)
            | Operation::TaskGet(_)
            | Operation::TaskList(_)
            | Operation::TaskCancel(_)
            | Operation::Subscribe(_)
            | Operation::Unsubscribe(_)
            | Operation::Stats(_)
            | Operation::Backup(_) => Ok(()),
        }
    }

    /// The state after `goodbye`: the session is gone, the connection stays.
    #[must_use]
    pub fn after_goodbye(self) -> Self {
        match self {
            Self::BeforeHello => self,
            Self::Open(open) => Self::Open(Open {
                session: false,
                ..open
            }),
        }
    }
}

/// Whether a server that drains still serves this operation: it takes no jobs and grants none.
/// Answers to leases are taken to the end, also those that ride on a fetch; such a fetch is to be
/// given no jobs.
///
/// # Errors
/// `draining`.
pub fn check_draining(operation: &Operation) -> Result<(), WireError> {
    let refused = match operation {
        Operation::Push(_)
        | Operation::CronRun(_)
        | Operation::BatchOpen(_)
        | Operation::TaskStart(_) => true,
        Operation::Fetch(fetch) => fetch.acks.is_empty() && fetch.fails.is_empty(),
        Operation::Hello(_)
        | Operation::Ack(_)
        | Operation::Fail(_)
        | Operation::Release(_)
        | Operation::Extend(_)
        | Operation::Progress(_)
        | Operation::Heartbeat(_)
        | Operation::Goodbye(_)
        | Operation::JobGet(_)
        | Operation::Wait(_)
        | Operation::JobCancel(_)
        | Operation::JobChange(_)
        | Operation::JobDelete(_)
        | Operation::JobList(_)
        | Operation::DeadList(_)
        | Operation::DeadRevive(_)
        | Operation::DeadPurge(_)
        | Operation::QueueList(_)
        | Operation::QueuePause(_)
        | Operation::QueueResume(_)
        | Operation::QueueShow(_)
        | Operation::QueueSet(_)
        | Operation::QueueCreate(_)
        | Operation::QueuePurge(_)
        | Operation::QueueDelete(_)
        | Operation::CronSet(_)
        | Operation::CronDelete(_)
        | Operation::CronList(_)
        | Operation::CronShow(_)
        | Operation::CronPause(_)
        | Operation::CronResume(_)
        | Operation::BatchCommit(_)
        | Operation::BatchShow(_)
        | Operation::BatchGraph(_)
        | Operation::BatchList(_)
        | Operation::LimitSet(_)
        | Operation::LimitDelete(_)
        | Operation::LimitShow(_)
        | Operation::LimitList(_)
        | Operation::TaskGet(_)
        | Operation::TaskList(_)
        | Operation::TaskCancel(_)
        | Operation::Subscribe(_)
        | Operation::Unsubscribe(_)
        | Operation::Stats(_)
        | Operation::Backup(_) => false,
    };
    if refused {
        return Err(WireError::new(
            ErrorCode::Draining,
            "the server is shutting down",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ganger_protocol::{
        BatchId, DurationMs, JobId, JobSpec, LeaseId,
        change::{ChangeTo, JobChange, JobDelete},
        cron::CronSet,
        event::{SubscriptionId, Unsubscribe},
        ids::TaskId,
        limit::{LimitList, OneLimit},
        list::{JobFilter, JobList},
        progress::{Progress, Wait},
        queue::{OneQueue, QueuePause, QueueSet},
        request::{
            Ack, AckItem, Backup, BatchGraph, BatchList, BatchName, CronList, CronNames, CronRun,
            CronShow, DeadList, DeadSelect, Extend, Fail, Fetch, Goodbye, Heartbeat, Hello,
            JobCancel, JobGet, Push, QueueList, QueueNames, Release, Stats,
        },
        task::{OneTask, TaskAction, TaskList, TaskStart},
    };

    use super::*;

    const OPEN: Open = Open {
        session: false,
        producer: false,
    };

    fn operations() -> Vec<Operation> {
        let list = DeadList {
            queue: Default::default(),
            newest_first: false,
            cursor: None,
            limit: 1,
        };
        let job = JobSpec::new("k".parse().unwrap(), "");
        let hello = Hello {
            v: 1,
            client: String::new(),
            features: vec![],
            namespace: Default::default(),
            auth: None,
            session: None,
            producer: None,
        };
        vec![
            Operation::Hello(Box::new(hello)),
            Operation::Push(Push {
                jobs: vec![],
                atomic: false,
                spread_ms: None,
                by: None,
                seq: None,
            }),
            Operation::Fetch(Fetch::default()),
            Operation::Ack(Ack { leases: vec![] }),
            Operation::Fail(Fail { leases: vec![] }),
            Operation::Release(Release { leases: vec![] }),
            Operation::Extend(Extend { leases: vec![] }),
            Operation::Progress(Progress { leases: vec![] }),
            Operation::Heartbeat(Heartbeat {}),
            Operation::Goodbye(Goodbye {}),
            Operation::JobGet(JobGet {
                job: JobId::from_bytes([0; 24]),
            }),
            Operation::JobList(Box::new(JobList::of(JobFilter::default()))),
            Operation::Wait(Wait {
                job: JobId::from_bytes([0; 24]),
                wait_ms: DurationMs::ZERO,
            }),
            Operation::JobCancel(JobCancel::new(vec![])),
            Operation::JobChange(JobChange {
                jobs: vec![],
                to: ChangeTo::now(),
            }),
            Operation::JobDelete(JobDelete { jobs: vec![] }),
            Operation::DeadList(list),
            Operation::DeadRevive(DeadSelect::default()),
            Operation::DeadPurge(DeadSelect::default()),
            Operation::QueueList(QueueList::default()),
            Operation::QueuePause(QueuePause::default()),
            Operation::QueueResume(QueueNames { queues: vec![] }),
            Operation::QueueShow(one()),
            Operation::QueueSet(Box::new(QueueSet::of("q".parse().unwrap()))),
            Operation::QueueCreate(one()),
            Operation::QueuePurge(one()),
            Operation::QueueDelete(one()),
            Operation::CronSet(Box::new(CronSet::new("c".parse().unwrap(), job))),
            Operation::CronDelete(CronNames { names: vec![] }),
            Operation::CronList(CronList {
                cursor: None,
                limit: 1,
            }),
            Operation::CronShow(CronShow {
                name: "c".parse().unwrap(),
                next: 1,
            }),
            Operation::CronPause(CronNames { names: vec![] }),
            Operation::CronResume(CronNames { names: vec![] }),
            Operation::CronRun(CronRun {
                name: "c".parse().unwrap(),
            }),
            Operation::BatchOpen(Box::default()),
            Operation::BatchCommit(BatchName { batch: BatchId(1) }),
            Operation::BatchShow(BatchName { batch: BatchId(1) }),
            Operation::BatchGraph(BatchGraph {
                batch: BatchId(1),
                cursor: None,
                limit: 1,
            }),
            Operation::BatchList(BatchList {
                settled: false,
                cursor: None,
                limit: 1,
            }),
            Operation::LimitSet(Box::default()),
            Operation::LimitDelete(OneLimit::default()),
            Operation::LimitShow(OneLimit::default()),
            Operation::LimitList(LimitList {
                cursor: None,
                limit: 1,
            }),
            Operation::TaskStart(Box::new(TaskStart::new(
                TaskAction::Cancel,
                JobFilter::default(),
            ))),
            Operation::TaskGet(OneTask { task: TaskId(1) }),
            Operation::TaskList(TaskList {}),
            Operation::TaskCancel(OneTask { task: TaskId(1) }),
            Operation::Subscribe(Box::default()),
            Operation::Unsubscribe(Unsubscribe {
                subscription: SubscriptionId(1),
            }),
            Operation::Stats(Stats {}),
            Operation::Backup(Backup { offset: 0 }),
        ]
    }

    fn one() -> OneQueue {
        OneQueue {
            queue: "q".parse().unwrap(),
        }
    }

    /// The operations that are legal in a state, by name.
    fn legal(state: State) -> Vec<&'static str> {
        let operations = operations();
        let names: Vec<_> = operations.iter().map(Operation::op).collect();
        assert_eq!(names, Operation::ALL, "one of each");
        let legal = operations
            .iter()
            .filter(|operation| state.check(operation).is_ok());
        legal.map(Operation::op).collect()
    }

    #[test]
    fn before_hello_only_hello_is_legal() {
        assert_eq!(legal(State::BeforeHello), ["hello"]);
        let error = State::BeforeHello
            .check(&Operation::Stats(Stats {}))
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert_eq!(error.message, "stats before hello");
    }

    #[test]
    fn without_a_session_there_is_no_work() {
        let without = [
            "push",
            "job_get",
            "job_list",
            "wait",
            "job_cancel",
            "job_change",
            "job_delete",
            "dead_list",
            "dead_revive",
            "dead_purge",
            "queue_list",
            "queue_pause",
            "queue_resume",
            "queue_show",
            "queue_set",
            "queue_create",
            "queue_purge",
            "queue_delete",
            "cron_set",
            "cron_delete",
            "cron_list",
            "cron_show",
            "cron_pause",
            "cron_resume",
            "cron_run",
            "batch_open",
            "batch_commit",
            "batch_show",
            "batch_graph",
            "batch_list",
            "limit_set",
            "limit_delete",
            "limit_show",
            "limit_list",
            "task_start",
            "task_get",
            "task_list",
            "task_cancel",
            "subscribe",
            "unsubscribe",
            "stats",
            "backup",
        ];
        assert_eq!(legal(State::Open(OPEN)), without);
        assert_eq!(
            legal(
                State::Open(Open {
                    session: true,
                    ..OPEN
                })
                .after_goodbye()
            ),
            without
        );
    }

    #[test]
    fn with_a_session_everything_but_a_second_hello_is_legal() {
        let all = legal(State::Open(Open {
            session: true,
            ..OPEN
        }));
        assert_eq!(all, Operation::ALL[1..]);
    }

    #[test]
    fn a_numbered_push_needs_a_producer() {
        let push = Operation::Push(Push {
            jobs: vec![],
            atomic: false,
            spread_ms: None,
            by: None,
            seq: Some(1),
        });
        let error = State::Open(OPEN).check(&push).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("seq"));
        assert!(
            State::Open(Open {
                producer: true,
                ..OPEN
            })
            .check(&push)
            .is_ok()
        );
    }

    #[test]
    fn a_draining_server_refuses_push_and_fetch_but_takes_answers() {
        let refused: Vec<_> = operations()
            .into_iter()
            .filter(|operation| check_draining(operation).is_err())
            .map(|operation| operation.op())
            .collect();
        assert_eq!(
            refused,
            ["push", "fetch", "cron_run", "batch_open", "task_start"]
        );
        let ack = AckItem::of(JobId::from_bytes([0; 24]), LeaseId(1));
        let fetch = Fetch {
            acks: vec![ack],
            ..Fetch::default()
        };
        assert!(check_draining(&Operation::Fetch(fetch)).is_ok());
    }
}
