//! What requests say of workflows: pushing jobs that wait, and showing them. What becomes of them
//! later is in `workflow.rs`.

use std::collections::BTreeMap;

use ganger_protocol::{
    BatchId, ErrorCode, JobId, JobSpec, WireError,
    job::JobState,
    limits::{EDGES_MAX, EDGES_SHOWN},
    request::BatchGraph,
    response::{GraphReply, PushResult, ReplyBody},
    workflow::{Awaited, Condition, NodeState, NodeView, OnDead, awaited},
};

use super::{NodeChange, Page, may_come, terms_of};
use crate::{
    Engine,
    command::{Now, Origin},
    facts::{Fact, Facts, Need, NodeRow, Side},
    records::{JobRecord, NodeRecord},
};

/// The node of a job that joins a batch, without its id and those that it waits for.
pub(crate) fn node(batch: BatchId, spec: &JobSpec) -> NodeRecord {
    NodeRecord {
        batch,
        job: JobId::from_bytes([0; JobId::BYTES]),
        queue: spec.queue.clone(),
        kind: spec.kind.clone(),
        name: spec.name.clone(),
        after: Vec::new(),
    }
}

impl Engine {
    /// What must be read before jobs can wait for others that were pushed before: these, and of
    /// those that are not kept what their batch knows.
    pub(crate) fn needs_of_after(&self, jobs: &[JobSpec], facts: &Facts) -> Vec<Need> {
        // What is wrong with them is told when they are pushed.
        if !jobs.iter().any(|job| !job.after.is_empty()) {
            return Vec::new();
        }
        let Ok(all) = awaited(jobs) else {
            return Vec::new();
        };
        let mut needs = Vec::new();
        for (job, own) in jobs.iter().zip(&all) {
            for id in own.iter().filter_map(before) {
                needs.extend(self.need_of_job(id, true));
                if let Some(batch) = job.batch
                    && self.lookup(id, facts).is_none()
                {
                    needs.push(Need::Node(batch, id));
                }
            }
        }
        needs
    }

    /// Whether the jobs of an atomic push may wait for what they say; what that is, nothing when
    /// none waits.
    pub(crate) fn check_awaited(
        &self,
        origin: &Origin,
        jobs: &[JobSpec],
        facts: &Facts,
    ) -> Result<Vec<Vec<Awaited>>, WireError> {
        if !jobs.iter().any(JobSpec::is_node) {
            return Ok(Vec::new());
        }
        let all = awaited(jobs)?;
        for (nth, (job, own)) in jobs.iter().zip(&all).enumerate() {
            for (at, id) in own.iter().enumerate() {
                let Some(id) = before(id) else { continue };
                self.check_before(origin, job, id, facts)
                    .map_err(|error| WireError {
                        field: Some(format!("jobs[{nth}].after[{at}]")),
                        ..error
                    })?;
            }
        }
        Ok(all)
    }

    /// Whether a job may wait for one that was pushed before.
    fn check_before(
        &self,
        origin: &Origin,
        job: &JobSpec,
        id: JobId,
        facts: &Facts,
    ) -> Result<(), WireError> {
        let Some(batch) = job.batch else {
            let message = "a job is waited for by its id within a batch: name the batch of both";
            return Err(WireError::new(ErrorCode::BadRequest, message));
        };
        let Some(state) = self.standing_in(origin, batch, id, facts)? else {
            let message = format!(
                "no job {id} of batch {batch} is kept; one with a name is known even when it is over"
            );
            return Err(WireError::new(ErrorCode::NotFound, message));
        };
        let waits_in_vain = match (job.condition.unwrap_or_default(), state) {
            (Condition::Settled, _) => false,
            (Condition::Success, NodeState::Dead) => job.on_dead != Some(OnDead::Hold),
            (Condition::Success, state) => !may_come(state),
        };
        match waits_in_vain {
            false => Ok(()),
            true => {
                let message =
                    format!("job {id} is {state}: who waits for its success waits in vain");
                Err(WireError::new(ErrorCode::Conflict, message).with_state(state.as_str()))
            }
        }
    }

    /// Where a job of a batch stands, kept or not.
    fn standing_in(
        &self,
        origin: &Origin,
        batch: BatchId,
        id: JobId,
        facts: &Facts,
    ) -> Result<Option<NodeState>, WireError> {
        let record = self.lookup(id, facts);
        match record.filter(|record| self.is_in_namespace(record.queue, origin)) {
            Some(record) if record.batch != Some(batch) => Err(WireError::new(
                ErrorCode::BadRequest,
                format!("job {id} is no member of batch {batch}"),
            )),
            Some(record) => Ok(Some(record.state.into())),
            None => {
                let row = self.node_row(batch, id, facts);
                Ok(row.map(|row| row.end.unwrap_or(NodeState::Deleted)))
            }
        }
    }

    /// The node of a job that is over.
    fn node_row(&self, batch: BatchId, job: JobId, facts: &Facts) -> Option<NodeRow> {
        let stored = match facts.find(&Need::Node(batch, job)) {
            Some(Fact::Node(stored)) => stored.as_deref().cloned(),
            Some(_) | None => None,
        };
        self.as_changed(batch, job, stored)
    }

    /// A node with what the open group makes of it.
    fn as_changed(&self, batch: BatchId, job: JobId, stored: Option<NodeRow>) -> Option<NodeRow> {
        let mut row = match self.group.node(batch, job) {
            Some(NodeChange::Put(record)) => NodeRow {
                record: (**record).clone(),
                end: None,
            },
            Some(NodeChange::Delete(_)) => return None,
            None => stored?,
        };
        if let Some(end) = self.group.node_end(batch, job) {
            row.end = end;
        }
        Some(row)
    }

    /// The jobs of a push were added: those that wait get their edges. Whoever waits for nothing
    /// that is not over goes on at once.
    pub(crate) fn link(
        &mut self,
        now: Now,
        all: &[Vec<Awaited>],
        results: &[PushResult],
        facts: &Facts,
    ) {
        for (own, result) in all.iter().zip(results) {
            let Some(job) = result.id.filter(|_| !own.is_empty()) else {
                continue;
            };
            let Some(record) = self.group.jobs.get(&job).cloned().flatten() else {
                continue;
            };
            let (mut ids, mut over) = (Vec::with_capacity(own.len()), 0);
            for awaited in own {
                let id = match awaited {
                    Awaited::Nth(nth) => results.get(*nth).and_then(|result| result.id),
                    Awaited::Job(id) => Some(*id),
                };
                let Some(id) = id else { continue };
                ids.push(id);
                if before(awaited).is_some() && self.is_over_for(&record, id, facts) {
                    over += 1;
                } else {
                    self.group.set_edge(id, job, true);
                }
            }
            if let Some(batch) = record.batch {
                self.name_awaited(batch, job, ids);
            }
            if over > 0 {
                self.let_go_on(now, record, over);
            }
        }
    }

    /// Whether a job that was pushed before is over, so that this one, which may wait for it, need
    /// not. One that is not says so when it is.
    fn is_over_for(&mut self, waiting: &JobRecord, id: JobId, facts: &Facts) -> bool {
        let Some(record) = self.lookup(id, facts) else {
            return true;
        };
        if record.state.is_terminal() {
            let is_held = terms_of(waiting) == (Condition::Success, OnDead::Hold);
            return record.state != JobState::Dead || !is_held;
        }
        if let Some(batch) = record.batch.filter(|_| !record.is_node) {
            self.has_edges_from_now(batch);
        }
        false
    }

    /// The node of a job says for whom it was to wait.
    fn name_awaited(&mut self, batch: BatchId, job: JobId, after: Vec<JobId>) {
        if let Some(NodeChange::Put(node)) = self.group.node(batch, job) {
            let node = NodeRecord {
                after,
                ..(**node).clone()
            };
            self.group.put_node(Box::new(node));
        }
    }

    /// What must be read to show the edges of a job.
    pub(crate) fn needs_of_edges_shown(job: JobId) -> [Need; 2] {
        let max = u32::try_from(EDGES_SHOWN).unwrap_or(u32::MAX);
        [Side::Dependencies, Side::Dependents].map(|side| Need::Edges {
            side,
            job,
            after: None,
            max,
        })
    }

    /// The first jobs that a job waits for, and that wait for it.
    pub(crate) fn edges_shown(&self, job: JobId, facts: &Facts) -> (Vec<JobId>, Vec<JobId>) {
        let [after, awaited_by] = Self::needs_of_edges_shown(job).map(|need| {
            let page = self.edges_page(&need, facts);
            page.map_or_else(Vec::new, |page| page.rows.into_iter().collect())
        });
        (after, awaited_by)
    }

    /// What must be read to show the graph of a batch: the batch, a page of its nodes, and those of
    /// them that are not over.
    pub(crate) fn needs_of_graph_shown(&self, graph: &BatchGraph, facts: &Facts) -> Vec<Need> {
        let need = need_of_nodes(graph);
        let mut needs: Vec<Need> = self.need_of_batch(graph.batch).into_iter().collect();
        needs.push(need);
        if let Some(Fact::Nodes { nodes, .. }) = facts.find(&need) {
            let open = nodes.iter().filter(|row| row.end.is_none());
            needs.extend(open.filter_map(|row| self.need_of_job(row.record.job, false)));
        }
        needs
    }

    pub(crate) fn batch_graph(
        &self,
        origin: &Origin,
        graph: &BatchGraph,
        facts: &Facts,
    ) -> Result<ReplyBody, WireError> {
        self.batch_named(origin, graph.batch, facts)?;
        let Page { rows, mut next } = self.nodes_page(graph, facts);
        let (mut nodes, mut edges) = (Vec::with_capacity(rows.len()), 0);
        for row in rows.into_values() {
            edges += row.record.after.len();
            if edges > EDGES_MAX && !nodes.is_empty() {
                next = nodes.last().map(|node: &NodeView| node.job);
                break;
            }
            nodes.push(self.node_view(row, facts));
        }
        Ok(ReplyBody::Graph(GraphReply {
            nodes,
            cursor: next,
        }))
    }

    fn node_view(&self, row: NodeRow, facts: &Facts) -> NodeView {
        let NodeRow { record, end } = row;
        let now = || match self.leases.find(&record.job) {
            Some(_) => NodeState::Leased,
            None => self
                .lookup(record.job, facts)
                .map_or(NodeState::Deleted, |job| job.state.into()),
        };
        NodeView {
            job: record.job,
            state: end.unwrap_or_else(now),
            name: record.name,
            queue: record.queue,
            kind: record.kind,
            after: record.after,
        }
    }

    /// A page of the nodes of a batch: those of the store, and as far as they reach those of the open
    /// group.
    fn nodes_page(&self, graph: &BatchGraph, facts: &Facts) -> Page<BTreeMap<JobId, NodeRow>> {
        let (batch, need) = (graph.batch, need_of_nodes(graph));
        let Some(Fact::Nodes { nodes, at_end }) = facts.find(&need) else {
            return Page {
                rows: BTreeMap::new(),
                next: None,
            };
        };
        let last = nodes.last().map(|row| row.record.job);
        let stored = nodes.iter();
        let stored =
            stored.filter_map(|row| self.as_changed(batch, row.record.job, Some(row.clone())));
        let open = self.group.nodes(batch, graph.cursor);
        let open = open.filter(|(job, _)| *at_end || Some(*job) <= last);
        let open = open.filter_map(|(job, _)| self.as_changed(batch, job, None));
        let mut rows: BTreeMap<_, _> = stored
            .chain(open)
            .map(|row| (row.record.job, row))
            .collect();
        let mut next = last.filter(|_| !at_end);
        while rows.len() > graph.limit as usize {
            rows.pop_last();
            next = rows.last_key_value().map(|(job, _)| *job);
        }
        Page { rows, next }
    }
}

/// The id of a job that was pushed before.
fn before(awaited: &Awaited) -> Option<JobId> {
    match awaited {
        Awaited::Nth(_) => None,
        Awaited::Job(id) => Some(*id),
    }
}

fn need_of_nodes(graph: &BatchGraph) -> Need {
    Need::Nodes {
        batch: graph.batch,
        after: graph.cursor,
        max: graph.limit,
    }
}
