//! The bytes of a node of a batch's graph and of its end, and how edges and nodes are read. An edge
//! is its two keys and nothing else. What is around the bytes is as in `records.rs`.

use ganger_engine::{
    facts::{Fact, NodeRow, Side},
    records::NodeRecord,
};
use ganger_protocol::{BatchId, JobId, workflow::NodeState};

use super::{
    Store, StoreError, bad_key,
    coding::{Malformed, Reader, put_bytes, put_varint},
    damaged,
    keys::Key,
    records::job_id,
    table::Span,
};

/// Rows that are read at once for nodes: one of them may lie in several.
const NODE_ROWS: usize = 64;

/// States by their stored numbers, from 1; they never change.
const STATES: [NodeState; 9] = [
    NodeState::Scheduled,
    NodeState::Blocked,
    NodeState::Ready,
    NodeState::Leased,
    NodeState::Done,
    NodeState::Dead,
    NodeState::Cancelled,
    NodeState::Expired,
    NodeState::Deleted,
];

/// Appends a node; its batch and its job stand in its key.
pub(super) fn put_node(out: &mut Vec<u8>, node: &NodeRecord) {
    put_bytes(out, node.queue.as_str().as_bytes());
    put_bytes(out, node.kind.as_str().as_bytes());
    let name = node.name.as_ref().map_or("", |name| name.as_str());
    put_bytes(out, name.as_bytes());
    put_varint(out, node.after.len() as u64);
    for job in &node.after {
        out.extend_from_slice(job.as_bytes());
    }
}

/// Reads a node.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub(super) fn node(batch: BatchId, job: JobId, body: &[u8]) -> Result<NodeRecord, Malformed> {
    let mut reader = Reader(body);
    let reader = &mut reader;
    let record = NodeRecord {
        batch,
        job,
        queue: reader.parsed()?,
        kind: reader.parsed()?,
        name: match reader.text()? {
            "" => None,
            name => Some(
                name.parse()
                    .map_err(|_illegal| Malformed("a name is none"))?,
            ),
        },
        after: (0..reader.count()?)
            .map(|_| job_id(reader))
            .collect::<Result<_, _>>()?,
    };
    reader.end()?;
    Ok(record)
}

/// Appends the end of a node.
pub(super) fn put_end(out: &mut Vec<u8>, end: NodeState) {
    let number = STATES.iter().zip(1_u8..).find(|(state, _)| **state == end);
    out.push(number.map_or(0, |(_, number)| number));
}

/// Reads the end of a node.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub(super) fn end(body: &[u8]) -> Result<NodeState, Malformed> {
    let mut reader = Reader(body);
    let number = usize::from(reader.u8()?);
    reader.end()?;
    let state = number.checked_sub(1).and_then(|at| STATES.get(at));
    state
        .copied()
        .ok_or(Malformed("an end is of no known form"))
}

impl Store {
    /// A slice of the edges of a job.
    pub(super) fn edges(
        &self,
        side: Side,
        job: JobId,
        after: Option<JobId>,
        max: u32,
    ) -> Result<Fact, StoreError> {
        let span = Span::of(Key::edges(side, &job));
        let after = after.map(|other| Key::edge(side, &job, &other));
        let span = after.map_or(span, |after| span.behind(&after));
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut rows = self.scan(span, max.saturating_add(1))?;
        let at_end = rows.len() <= max;
        rows.truncate(max);
        let jobs = rows.iter().map(|(key, value)| {
            self.open_record(key, value)?;
            let (_, _, other) = key.to_edge().ok_or_else(|| bad_key(key))?;
            Ok(other)
        });
        Ok(Fact::Edges {
            jobs: jobs.collect::<Result<_, StoreError>>()?,
            at_end,
        })
    }

    /// All jobs that a job waits for, of which there are not many.
    pub(super) fn dependencies(&self, job: JobId) -> Result<Vec<JobId>, StoreError> {
        match self.edges(Side::Dependencies, job, None, u32::MAX - 1)? {
            Fact::Edges { jobs, .. } => Ok(jobs),
            _ => Ok(Vec::new()),
        }
    }

    /// A node and its end.
    pub(super) fn node_row(
        &self,
        batch: BatchId,
        job: JobId,
    ) -> Result<Option<NodeRow>, StoreError> {
        let key = |part| Key::node(batch, &job, part);
        let Some((_, body)) = self.read_parts(key)? else {
            return Ok(None);
        };
        let record = node(batch, job, &body).map_err(damaged(&key(0)))?;
        let end_key = Key::node_end(batch, &job);
        let end = match self.read_value(&end_key)? {
            None => None,
            Some(value) => {
                let (_, body) = self.open_record(&end_key, &value)?;
                Some(end(body).map_err(damaged(&end_key))?)
            }
        };
        Ok(Some(NodeRow { record, end }))
    }

    /// A slice of the nodes of a batch.
    pub(super) fn nodes(
        &self,
        batch: BatchId,
        after: Option<JobId>,
        max: u32,
    ) -> Result<Fact, StoreError> {
        let mut span = Span::of(Key::nodes(batch));
        if let Some(after) = after {
            span.from = Key::whole_node(batch, &after).after_prefix();
        }
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut nodes = Vec::new();
        loop {
            let rows = self.scan(span, NODE_ROWS)?;
            let Some((last, _)) = rows.last() else {
                return Ok(Fact::Nodes {
                    nodes,
                    at_end: true,
                });
            };
            span = span.behind(last);
            for (key, _) in &rows {
                let (_, job, part) = key.to_node().ok_or_else(|| bad_key(key))?;
                if part != Some(0) {
                    continue;
                }
                if nodes.len() >= max {
                    return Ok(Fact::Nodes {
                        nodes,
                        at_end: false,
                    });
                }
                nodes.extend(self.node_row(batch, job)?);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_reads_back() {
        for state in STATES {
            let mut body = Vec::new();
            put_end(&mut body, state);
            assert_eq!(end(&body).unwrap(), state);
        }
        assert!(end(&[0]).is_err() && end(&[10]).is_err() && end(&[1, 1]).is_err());
    }
}
