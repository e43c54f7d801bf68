//! Requests about batches: opening, joining, committing, showing. What they lead to in the counters
//! is in `batch.rs`.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use ganger_protocol::{
    BatchId, DurationMs, ErrorCode, JobSpec, WireError,
    batch::{BatchCounters, BatchEvent, BatchOpen, BatchState, BatchView, CallbackView},
    event::EventName,
    limits,
    request::{BatchList, BatchName, LeaseRef, Push},
    response::{BatchesReply, PushResult, ReplyBody},
};

use super::Standing;
use crate::{
    Engine,
    command::{Now, Origin},
    facts::{Fact, Facts, Need},
    lease::LeaseKey,
    records::{BatchRecord, Callback, Content, NodeRecord},
    workflow,
};

impl BatchRecord {
    fn view(&self) -> BatchView {
        let callback = |event| {
            self.callback(event).map(|callback| CallbackView {
                queue: callback.queue.clone(),
                kind: callback.content.kind.clone(),
                job: callback.pushed,
            })
        };
        BatchView {
            id: self.id,
            state: match (self.committed_at, self.settled_at) {
                (None, _) => BatchState::Open,
                (Some(_), None) => BatchState::Committed,
                (Some(_), Some(_)) => BatchState::Settled,
            },
            description: self.description.clone(),
            parent: self.parent,
            counters: self.counters,
            on_complete: callback(BatchEvent::Complete),
            on_success: callback(BatchEvent::Success),
            on_settled: callback(BatchEvent::Settled),
            opened_at: self.opened_at,
            committed_at: self.committed_at,
            lapsed: self.lapsed,
            completed_at: self.completed_at,
            settled_at: self.settled_at,
        }
    }
}

impl Engine {
    /// What must be read before jobs can join a batch: one that is not at hand, and the job of the
    /// lease that lets them.
    pub(crate) fn needs_to_join(
        &self,
        batches: impl Iterator<Item = BatchId>,
        by: Option<LeaseRef>,
    ) -> Vec<Need> {
        let lease = by.and_then(|by| self.leases.live(&by.job, by.lease));
        let is_unread = lease.is_some_and(|lease| lease.key == LeaseKey::Unread);
        let job = by.filter(|_| is_unread);
        let job = job.and_then(|by| self.need_of_job(by.job, true));
        let batches = batches.filter_map(|batch| self.need_of_batch(batch));
        job.into_iter().chain(batches).collect()
    }

    /// Whether a member may join a batch.
    ///
    /// # Errors
    /// `not_found`, `conflict` or `lease_lost`, naming the field.
    pub(crate) fn check_joins(
        &self,
        origin: &Origin,
        id: BatchId,
        by: Option<LeaseRef>,
        facts: &Facts,
    ) -> Result<(), WireError> {
        let record = self.batch_named(origin, id, facts)?;
        let conflict = |message: &str| WireError {
            field: Some("batch".to_owned()),
            ..WireError::new(ErrorCode::Conflict, format!("batch {id} is {message}"))
        };
        if record.settled_at.is_some() {
            return Err(conflict("settled; open another one"));
        }
        let Some(by) = by else {
            return match record.committed_at {
                None => Ok(()),
                Some(_) => Err(conflict(
                    "committed; only a job of it that runs may add to it, naming its lease in by",
                )),
            };
        };
        let lease = self.leases.live(&by.job, by.lease);
        let runs_in = lease.and_then(|lease| self.batch_of_lease(by.job, lease, facts));
        match runs_in == Some(id) {
            true => Ok(()),
            false => Err(WireError {
                field: Some("by".to_owned()),
                ..WireError::new(
                    ErrorCode::LeaseLost,
                    format!(
                        "lease {} is not that of a running job of batch {id}",
                        by.lease
                    ),
                )
            }),
        }
    }

    /// Pushes one job into a batch. One that finds the holder of its unique key adds no member.
    pub(crate) fn push_member(
        &mut self,
        now: Now,
        origin: &Origin,
        (batch, by): (BatchId, Option<LeaseRef>),
        (spec, later_by): (&mut JobSpec, DurationMs),
        facts: &Facts,
    ) -> Result<PushResult, WireError> {
        self.check_joins(origin, batch, by, facts)?;
        let node = spec.is_node().then(|| workflow::node(batch, spec));
        let result = self.push_job(now, origin, spec, later_by, facts)?;
        if let Some(job) = result.id
            && !result.existing
        {
            if let Some(node) = node {
                self.group.put_node(Box::new(NodeRecord { job, ..node }));
            }
            self.make_move(now, (batch, None, Standing::Untried), facts);
        }
        Ok(result)
    }

    /// Whether the batches of an atomic push take its jobs.
    pub(crate) fn check_joins_of(
        &self,
        origin: &Origin,
        push: &Push,
        job: &JobSpec,
        facts: &Facts,
    ) -> Result<(), WireError> {
        let check = |batch| self.check_joins(origin, batch, push.by, facts);
        job.batch.map_or(Ok(()), check)
    }

    pub(crate) fn batch_open(
        &mut self,
        now: Now,
        origin: &Origin,
        open: BatchOpen,
        facts: &Facts,
    ) -> Result<ReplyBody, WireError> {
        if let Some(parent) = open.parent {
            self.check_parent(origin, parent, open.by, facts)?;
        }
        let (count, max) = (self.batches.live.len(), self.options.batches_max);
        if count >= max {
            return Err(WireError {
                limit: Some(max as u64),
                actual: Some(count as u64 + 1),
                ..WireError::new(
                    ErrorCode::TooLarge,
                    format!("a shard has at most {max} batches that are not settled"),
                )
            });
        }
        let [on_complete, on_success, on_settled] = self.callbacks_of(origin, &open)?;
        let id = BatchId(self.take_number().0);
        let record = BatchRecord {
            id,
            namespace: origin.namespace.clone(),
            description: open.description,
            parent: open.parent,
            counters: BatchCounters::default(),
            on_complete,
            on_success,
            on_settled,
            opened_at: now.wall,
            committed_at: None,
            lapsed: false,
            has_edges: false,
            completed_at: None,
            settled_at: None,
        };
        self.set_batch_deadline(id, None, record.deadline());
        self.group.touch_batch(&record);
        self.batches.live.insert(id, record);
        self.tell_batch(now, EventName::BatchOpened, id);
        if let Some(parent) = open.parent {
            self.make_move(now, (parent, None, Standing::Untried), facts);
        }
        self.batch_view(origin, id, facts)
    }

    /// Whether a batch may be opened within another one.
    fn check_parent(
        &self,
        origin: &Origin,
        parent: BatchId,
        by: Option<LeaseRef>,
        facts: &Facts,
    ) -> Result<(), WireError> {
        let joins = self.check_joins(origin, parent, by, facts);
        joins.map_err(|error| match error.field.as_deref() {
            Some("batch") => WireError {
                field: Some("parent".to_owned()),
                ..error
            },
            Some(_) | None => error,
        })?;
        let above = |id: &BatchId| self.batches.live.get(id)?.parent;
        let depth = 1 + std::iter::successors(Some(parent), above).count();
        match depth <= limits::BATCH_DEPTH_MAX {
            true => Ok(()),
            false => Err(WireError::too_large(
                "parent",
                limits::BATCH_DEPTH_MAX,
                depth,
            )),
        }
    }

    /// The callbacks of a batch to be opened, in the order of their events; their queues are made.
    fn callbacks_of(
        &mut self,
        origin: &Origin,
        open: &BatchOpen,
    ) -> Result<[Option<Callback>; 3], WireError> {
        let (mut bytes, max) = (0, limits::BATCH_CALLBACKS_BYTES_MAX);
        let mut callbacks = [None, None, None];
        for (event, slot) in BatchEvent::ALL.into_iter().zip(&mut callbacks) {
            let Some(job) = open.callback(event).cloned() else {
                continue;
            };
            let (queue, priority) = (job.queue.clone(), job.priority);
            let content = Arc::new(Content::from(job));
            bytes += 16 + queue.as_str().len() + content.bound_bytes();
            if bytes > max {
                return Err(WireError::too_large(event.field(), max, bytes));
            }
            self.queue_for_push(&origin.namespace, &queue)
                .map_err(|error| error.within(event.field()))?;
            *slot = Some(Callback {
                queue,
                priority,
                content,
                pushed: None,
            });
        }
        Ok(callbacks)
    }

    /// Closes a batch for members from outside. One that is closed stays as it is.
    pub(crate) fn batch_commit(
        &mut self,
        now: Now,
        origin: &Origin,
        name: BatchName,
        facts: &Facts,
    ) -> Result<ReplyBody, WireError> {
        let is_open = self
            .batch_named(origin, name.batch, facts)?
            .committed_at
            .is_none();
        if is_open {
            self.close_batch(now, name.batch, false);
        }
        self.batch_view(origin, name.batch, facts)
    }

    pub(crate) fn batch_view(
        &self,
        origin: &Origin,
        id: BatchId,
        facts: &Facts,
    ) -> Result<ReplyBody, WireError> {
        let view = self.batch_named(origin, id, facts)?.view();
        Ok(ReplyBody::Batch(Box::new(view)))
    }

    /// A batch of the caller's namespace, settled or not.
    pub(crate) fn batch_named<'a>(
        &'a self,
        origin: &Origin,
        id: BatchId,
        facts: &'a Facts,
    ) -> Result<&'a BatchRecord, WireError> {
        let live = self.batches.live.get(&id);
        let record = live.or_else(|| self.settled_batch(id, facts));
        record
            .filter(|record| record.namespace == origin.namespace)
            .ok_or_else(|| WireError {
                field: Some("batch".to_owned()),
                ..WireError::new(ErrorCode::NotFound, format!("no batch {id} is kept"))
            })
    }

    pub(crate) fn needs_of_batch_list(list: &BatchList) -> Vec<Need> {
        let page = |after| Need::Batches {
            after,
            max: list.limit,
        };
        let is_read = |_: &Option<BatchId>| list.settled;
        let after = cursor_of(list).ok().filter(is_read);
        after.map(page).into_iter().collect()
    }

    pub(crate) fn batch_list(
        &self,
        origin: &Origin,
        list: &BatchList,
        facts: &Facts,
    ) -> Result<ReplyBody, WireError> {
        let after = cursor_of(list)?;
        let (mut page, mut cursor) = match list.settled {
            true => self.settled_page(after, list.limit, facts),
            false => {
                let from = after.map_or(Unbounded, Excluded);
                let behind = self.batches.live.range((from, Unbounded));
                let own = behind.filter(|(_, record)| record.namespace == origin.namespace);
                let own = own.take(list.limit as usize + 1);
                (own.map(|(id, record)| (*id, record)).collect(), None)
            }
        };
        while page.len() > list.limit as usize {
            page.pop_last();
            cursor = page.last_key_value().map(|(id, _)| *id);
        }
        let own = page
            .values()
            .filter(|record| record.namespace == origin.namespace);
        Ok(ReplyBody::Batches(BatchesReply {
            batches: own.map(|record| record.view()).collect(),
            cursor: cursor.map(|last| last.to_string()),
        }))
    }

    /// The next settled batches of all namespaces: those that were read, and as far as they reach
    /// those of the open group. And the last one that was read, when there are more.
    fn settled_page<'a>(
        &'a self,
        after: Option<BatchId>,
        max: u32,
        facts: &'a Facts,
    ) -> (BTreeMap<BatchId, &'a BatchRecord>, Option<BatchId>) {
        let Some(Fact::Batches { batches, at_end }) = facts.find(&Need::Batches { after, max })
        else {
            return (BTreeMap::new(), None);
        };
        let last = batches.last().map(|record| record.id);
        let mut page: BTreeMap<_, _> = batches.iter().map(|it| (it.id, it)).collect();
        for (id, record) in self.group.settled_batches() {
            let is_reached = Some(id) > after && (*at_end || Some(id) <= last);
            match record {
                Some(record) if is_reached => {
                    page.insert(id, record);
                }
                Some(_) => {}
                None => {
                    page.remove(&id);
                }
            }
        }
        (page, last.filter(|_| !at_end))
    }
}

fn cursor_of(list: &BatchList) -> Result<Option<BatchId>, WireError> {
    let cursor = list.cursor.as_deref().map(str::parse);
    cursor.transpose().map_err(|_not_ours| {
        let message = "the cursor is not one that this list has given";
        WireError::bad_request("cursor", message)
    })
}
