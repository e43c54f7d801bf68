//! What jobs, edges and the graphs of batches say of each other: an edge has both of its keys, and
//! outlives neither of its jobs for longer than it takes to look at their ends.

use ganger_engine::{facts::Side, records::JobRecord, workflow::timer};
use ganger_protocol::{
    JobId,
    job::JobState,
    workflow::{Condition, OnDead},
};

use super::Examiner;
use crate::store::{StoreError, bad_key, damaged, keys::Key, workflow};

impl Examiner<'_> {
    /// A blocked job waits for as many as it has edges; one that is held may wait for more, which
    /// will not come.
    pub(super) fn waits(&mut self, key: &Key, job: &JobRecord) -> Result<(), StoreError> {
        if job.waits_for == 0 {
            self.find(key, "it is blocked and waits for nobody");
        }
        let edges = self.store.dependencies(job.id)?.len() as u64;
        let waits_for = u64::from(job.waits_for);
        let content = job.content.as_ref();
        let node = content.and_then(|content| content.node.as_deref());
        let terms = node.map(|node| (node.condition, node.on_dead));
        let is_held = terms.is_none_or(|terms| terms == (Condition::Success, OnDead::Hold));
        if edges > waits_for || edges < waits_for && !is_held {
            self.find(
                key,
                format!("it waits for {waits_for} jobs and has {edges} edges"),
            );
        }
        Ok(())
    }

    /// An edge, by either of its keys.
    pub(super) fn edge(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let (side, job, other) = key.to_edge().ok_or_else(|| bad_key(key))?;
        if side == Side::Dependencies {
            let mirrored = Key::edge(Side::Dependents, &other, &job);
            return self.vouched(key, &mirrored, "its other half");
        }
        let mirrored = Key::edge(Side::Dependencies, &other, &job);
        self.vouched(key, &mirrored, "its other half")?;
        let waiting = self.known_record(&other)?;
        let is_blocked = waiting.is_some_and(|waiting| waiting.state == JobState::Blocked);
        if !is_blocked && !self.is_looked_at(&other)? {
            self.find(key, format!("job {other} does not wait"));
        }
        if self.standing(&job)?.is_none() && !self.is_looked_at(&job)? {
            self.find(key, format!("job {job} is gone, and is waited for"));
        }
        Ok(())
    }

    /// Whether the end of a job is still to be looked at.
    fn is_looked_at(&self, job: &JobId) -> Result<bool, StoreError> {
        for is_done in [true, false] {
            let key = Key::timer(&timer(*job, is_done));
            if self.store.read_value(&key)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A part of a node, or its end.
    pub(super) fn node(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let (batch, job, part) = key.to_node().ok_or_else(|| bad_key(key))?;
        match part {
            None => {
                workflow::end(body).map_err(damaged(key))?;
                self.vouched(key, &Key::node(batch, &job, 0), "its node")
            }
            Some(0) => {
                self.store.node_row(batch, job)?;
                let batches = [true, false].map(|is_settled| Key::batch(is_settled, batch));
                let [settled, live] = batches.map(|key| self.store.read_value(&key));
                if settled?.is_none() && live?.is_none() {
                    self.find(key, format!("there is no batch {batch}"));
                }
                Ok(())
            }
            Some(part) => {
                self.vouched(key, &Key::node(batch, &job, part - 1), "the part before it")
            }
        }
    }
}
