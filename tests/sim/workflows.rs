//! Workflows: graphs of jobs that wait for each other, pushed into batches and worked off with them.
//! Each node says in a header who it is, for whom it waits, and what becomes of it when one of those
//! is not done, so that whoever gets it knows whether that is too early; what the server shows of a
//! batch's graph must fit together at the end.

use std::collections::{BTreeMap, BTreeSet};

use ganger_protocol::{
    BatchId, JobId, JobSpec,
    job::GrantedJob,
    request::{BatchGraph, DeadSelect, JobCancel, Operation},
    response::{PushResult, ReplyBody},
    workflow::{Condition, NodeState, NodeView, OnDead},
};

use crate::{batches::AskedBatch, clients::Asked, history::Checked, world::World};

/// The header that names a node.
const NODE_HEADER: &str = "node";

/// Jobs that later graphs wait for by their ids.
const KNOWN_MAX: usize = 12;

/// What is known of workflows.
#[derive(Debug, Default)]
pub struct Workflows {
    next: u64,
    /// For whom each node waits, by names.
    after: BTreeMap<String, Vec<String>>,
    /// Nodes that were acked, or may have been.
    acked: BTreeSet<String>,
    /// Nodes whose end was asked for by a cancel.
    cancelled: BTreeSet<String>,
    /// Nodes that are known by their ids, with their batch.
    ids: Vec<(BatchId, String, JobId)>,
    /// Batches some of whose dead members may have been revived.
    revived: BTreeSet<BatchId>,
}

/// What a node waits for is the last letter of its name.
fn terms(letter: char) -> (Option<Condition>, Option<OnDead>) {
    match letter {
        's' => (Some(Condition::Settled), None),
        'h' => (None, Some(OnDead::Hold)),
        _ => (None, None),
    }
}

fn waits_for_any_end(name: &str) -> bool {
    name.ends_with('s')
}

fn name_of(job: &GrantedJob) -> Option<&String> {
    job.headers.get(NODE_HEADER)
}

impl World {
    /// Makes a graph of the members of a batch: some wait for earlier ones, or for ones that were
    /// pushed before. Whether one of these may have ended, and the push be refused.
    pub fn connect_members(&mut self, batch: BatchId, jobs: &mut [JobSpec]) -> bool {
        let mut names: Vec<String> = Vec::new();
        let mut is_doubtful = false;
        for job in jobs.iter_mut() {
            let letter = ['c', 'c', 's', 'h'][self.rng.usize(..4)];
            let name = format!("n{}{letter}", self.workflows.next);
            self.workflows.next += 1;
            let mut after: Vec<String> = names.clone();
            after.retain(|_| self.rng.u32(..3) > 0);
            job.after = after.iter().filter_map(|name| name.parse().ok()).collect();
            let known = self.workflows.ids.iter().filter(|(of, ..)| *of == batch);
            let known: Vec<_> = known.cloned().collect();
            if !known.is_empty() && self.rng.u32(..3) == 0 {
                let (_, other, id) = &known[self.rng.usize(..known.len())];
                job.after.extend(id.to_string().parse().ok());
                after.push(other.clone());
                is_doubtful = true;
            }
            job.name = name.parse().ok();
            if !job.after.is_empty() {
                (job.condition, job.on_dead) = terms(letter);
            }
            job.headers.insert(NODE_HEADER.to_owned(), name.clone());
            self.workflows.after.insert(name.clone(), after);
            names.push(name);
        }
        // Who waits may stand before those that it waits for.
        if self.rng.bool() {
            jobs.reverse();
        }
        is_doubtful
    }

    /// A graph was pushed.
    pub fn members_told(
        &mut self,
        batch: BatchId,
        names: &[Option<String>],
        results: &[PushResult],
    ) {
        for (name, result) in names.iter().zip(results) {
            let (Some(name), Some(id)) = (name, result.id) else {
                continue;
            };
            if self.workflows.ids.len() >= KNOWN_MAX {
                self.workflows.ids.remove(0);
            }
            self.workflows.ids.push((batch, name.clone(), id));
        }
    }

    /// A worker is about to ack a member.
    pub fn member_acked(&mut self, job: &GrantedJob) {
        self.workflows.acked.extend(name_of(job).cloned());
    }

    /// Dead members of a batch may be revived.
    pub fn members_revived(&mut self, batch: BatchId) {
        self.workflows.revived.insert(batch);
    }

    /// I14: nobody is granted before those that it waits for are done.
    pub fn member_granted(&self, job: &GrantedJob) -> Checked {
        let Some(name) = name_of(job) else {
            return Ok(());
        };
        let after = self.workflows.after.get(name);
        let after = after.ok_or_else(|| format!("I2: nobody pushed node {name}"))?;
        if waits_for_any_end(name) {
            return Ok(());
        }
        match after
            .iter()
            .find(|other| !self.workflows.acked.contains(*other))
        {
            None => Ok(()),
            Some(other) => Err(format!(
                "I14: node {name} is granted before {other} is done"
            )),
        }
    }

    /// Cancels a job that is known.
    pub fn cancel_member(&mut self) -> Checked {
        let count = self.workflows.ids.len();
        if count == 0 {
            return Ok(());
        }
        let (_, name, id) = self.workflows.ids[self.rng.usize(..count)].clone();
        self.workflows.cancelled.insert(name);
        let from = self.take_batches_from();
        let cancel = Operation::JobCancel(JobCancel::new(vec![id]));
        self.request(&from, cancel, Asked::Batch(AskedBatch::Cancel))
    }

    /// All nodes of a batch, a page at a time.
    fn graph_of(&mut self, batch: BatchId) -> Checked<Option<Vec<NodeView>>> {
        let (mut nodes, mut cursor) = (Vec::new(), None);
        loop {
            let graph = BatchGraph {
                batch,
                cursor,
                limit: self.rng.u32(1..20),
            };
            let from = self.take_batches_from();
            self.request(&from, Operation::BatchGraph(graph), Asked::Audit)?;
            match self.clients.audited.take() {
                None => return Ok(None),
                Some(Ok(ReplyBody::Graph(reply))) => {
                    nodes.extend(reply.nodes);
                    cursor = reply.cursor;
                }
                Some(other) => return Err(format!("a graph was answered by {other:?}")),
            }
            if cursor.is_none() {
                return Ok(Some(nodes));
            }
        }
    }

    /// Looks at the graphs of batches where nothing is under way: who is blocked waits for somebody
    /// that may come, and who is over has a reason. Then what is held is let go, by reviving those
    /// that it waits for; where these cannot be revived or are gone, it is cancelled.
    pub fn unblock_members(&mut self, batches: &[(BatchId, usize)]) -> Checked {
        for (batch, nth) in batches {
            let Some(nodes) = self.graph_of(*batch)? else {
                return Ok(());
            };
            let states: BTreeMap<JobId, NodeState> =
                nodes.iter().map(|node| (node.job, node.state)).collect();
            let mut gone = Vec::new();
            let mut is_dead = false;
            for node in &nodes {
                let after = node.after.iter().filter_map(|job| states.get(job)).copied();
                let after: Vec<NodeState> = after.collect();
                self.check_node(*batch, node, &after)?;
                if node.state == NodeState::Blocked {
                    match after.contains(&NodeState::Dead) {
                        true => is_dead = true,
                        false => gone.push(node.job),
                    }
                }
            }
            let from = self.take_batches_from();
            if is_dead {
                self.members_revived(*batch);
                let select = DeadSelect {
                    queue: crate::batches::members_of(*nth),
                    ..DeadSelect::default()
                };
                let asked = Asked::Batch(AskedBatch::Dead);
                // One that has expired is not revived.
                let operation = match self.rng.bool() {
                    true => Operation::DeadRevive(select),
                    false => Operation::DeadPurge(select),
                };
                self.request(&from, operation, asked)?;
            } else if let Some(job) = gone.pop() {
                let name = nodes.iter().find(|node| node.job == job);
                let name = name.and_then(|node| node.name.as_ref());
                self.workflows
                    .cancelled
                    .extend(name.map(ToString::to_string));
                let cancel = Operation::JobCancel(JobCancel::new(vec![job]));
                self.request(&from, cancel, Asked::Batch(AskedBatch::Cancel))?;
            }
        }
        Ok(())
    }

    /// Whether a node fits to those that it was to wait for, when nothing is under way.
    fn check_node(&self, batch: BatchId, node: &NodeView, after: &[NodeState]) -> Checked {
        let name = node.name.as_ref().map_or("", |name| name.as_str());
        let is_over = |state: &NodeState| {
            matches!(
                state,
                NodeState::Done
                    | NodeState::Dead
                    | NodeState::Cancelled
                    | NodeState::Expired
                    | NodeState::Deleted
            )
        };
        let all_done = after.iter().all(|state| *state == NodeState::Done);
        let is_wrong = match node.state {
            NodeState::Blocked if waits_for_any_end(name) => after.iter().all(is_over),
            NodeState::Blocked if name.ends_with('h') => all_done,
            NodeState::Blocked => after.iter().all(is_over),
            NodeState::Done if waits_for_any_end(name) => false,
            NodeState::Done | NodeState::Dead => !all_done && !waits_for_any_end(name),
            NodeState::Cancelled => {
                let was_asked = self.workflows.cancelled.contains(name);
                all_done && !was_asked && !self.workflows.revived.contains(&batch)
            }
            NodeState::Scheduled
            | NodeState::Ready
            | NodeState::Leased
            | NodeState::Expired
            | NodeState::Deleted => false,
        };
        match is_wrong {
            false => Ok(()),
            true => Err(format!(
                "I17: node {name} of batch {batch} is {}, those that it waits for are {after:?}",
                node.state
            )),
        }
    }
}
