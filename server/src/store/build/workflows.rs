//! Workflows in a store that is made anew: edges lie where they lay, and jobs that are waited for and
//! did not come have ended otherwise than by a success.

use bytes::Bytes;
use ganger_engine::{change::Change, facts::NodeRow, records::JobRecord, workflow::timer};
use ganger_protocol::{JobId, job::JobState};

use super::{BATCH_CHANGES, Builder, GROUP};
use crate::store::{
    StoreError, damaged,
    keys::{Key, Prefix},
    records,
    table::{Span, Table},
};

impl Builder {
    /// A job waits for these. One that was blocked for reasons that are not known stays so, for a
    /// person.
    pub(super) fn wait(&mut self, record: &mut JobRecord, after: Vec<JobId>) {
        if record.state != JobState::Blocked {
            record.waits_for = 0;
            return;
        }
        let edges = u32::try_from(after.len()).unwrap_or(u32::MAX);
        record.waits_for = record.waits_for.max(edges).max(1);
        let edges = after.into_iter();
        self.changes
            .extend(edges.map(|awaited| Change::PutEdge(awaited, record.id)));
    }

    /// A node of the graph of a batch, unless that did not come.
    pub(super) fn node(&mut self, row: NodeRow) -> Result<(), StoreError> {
        let NodeRow { record, end } = row;
        let (batch, job) = (record.batch, record.job);
        let settled = Key::batch(true, batch);
        if !self.batches.contains(batch) && self.table.read(&settled)?.is_none() {
            self.write()?;
            if self.table.read(&settled)?.is_none() {
                return Ok(());
            }
        }
        self.changes.push(Change::PutNode(Box::new(record)));
        if let Some(end) = end {
            self.changes.push(Change::PutNodeEnd(batch, job, end));
        }
        Ok(())
    }

    /// The engine looks at all jobs that are waited for and are over, or did not come.
    pub(super) fn look_at_missed(&mut self) -> Result<(), StoreError> {
        let mut span = Span::of(Key::of(Prefix::Edge));
        let mut last = None;
        loop {
            let rows = self.table.scan(&span, BATCH_CHANGES)?;
            let Some((end, _)) = rows.last() else {
                return self.write();
            };
            span = span.behind(end);
            for awaited in rows.iter().filter_map(|(key, _)| Some(key.to_edge()?.1)) {
                if last.replace(awaited) == Some(awaited) {
                    continue;
                }
                let state = self.state_of(&awaited)?;
                if state.is_none_or(JobState::is_terminal) {
                    let is_done = state == Some(JobState::Done);
                    self.changes.push(Change::PutTimer(timer(awaited, is_done)));
                }
            }
            self.write()?;
        }
    }

    fn state_of(&self, job: &JobId) -> Result<Option<JobState>, StoreError> {
        let key = Key::job(job);
        let Some(value): Option<Bytes> = self.table.read(&key)? else {
            return Ok(None);
        };
        let opened = records::open_value(key.as_slice(), &value, GROUP);
        let record = opened.and_then(|(group, body)| records::job(*job, group, body));
        let record = record.map_err(damaged(&key))?;
        Ok(Some(record.state))
    }
}
