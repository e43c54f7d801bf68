//! A batch as a line of an export, and back. What goes around it is in `transfer.rs`.

use std::sync::Arc;

use ganger_engine::{
    facts::NodeRow,
    records::{BatchRecord, Callback, Content, NodeRecord},
};
use ganger_protocol::{
    BatchId, Bytes, JobId, JobSpec, Kind, NamespaceName, QueueName, Timestamp,
    batch::{BatchCounters, BatchEvent},
    ids::Tag,
    limits::BATCH_CALLBACKS_BYTES_MAX,
    workflow::NodeState,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::transfer::{payload_in, payload_out};

/// A batch: what was opened, and how far it has come.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BatchLine {
    id: BatchId,
    namespace: NamespaceName,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<BatchId>,
    counters: BatchCounters,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_complete: Option<CallbackLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_success: Option<CallbackLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_settled: Option<CallbackLine>,
    opened_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    committed_at: Option<Timestamp>,
    #[serde(default)]
    lapsed: bool,
    #[serde(default)]
    has_edges: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    completed_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settled_at: Option<Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CallbackLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pushed: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    /// The job to push, but for the payload.
    spec: Value,
}

impl BatchLine {
    /// The line of a batch.
    pub(super) fn of(batch: &BatchRecord) -> Result<Self, serde_json::Error> {
        let line = |event| batch.callback(event).map(CallbackLine::of).transpose();
        Ok(Self {
            id: batch.id,
            namespace: batch.namespace.clone(),
            description: batch.description.clone(),
            parent: batch.parent,
            counters: batch.counters,
            on_complete: line(BatchEvent::Complete)?,
            on_success: line(BatchEvent::Success)?,
            on_settled: line(BatchEvent::Settled)?,
            opened_at: batch.opened_at,
            committed_at: batch.committed_at,
            lapsed: batch.lapsed,
            has_edges: batch.has_edges,
            completed_at: batch.completed_at,
            settled_at: batch.settled_at,
        })
    }
}

impl CallbackLine {
    fn of(callback: &Callback) -> Result<Self, serde_json::Error> {
        let spec = JobSpec {
            payload: Bytes::new(),
            ..callback
                .content
                .to_spec(callback.queue.clone(), callback.priority)
        };
        let mut spec = serde_json::to_value(spec)?;
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("payload");
        }
        let (payload, payload_base64) = payload_out(&callback.content.payload);
        Ok(Self {
            pushed: callback.pushed,
            payload,
            payload_base64,
            spec,
        })
    }

    fn callback(self) -> Result<Callback, String> {
        let spec: JobSpec = serde_json::from_value(self.spec).map_err(|error| error.to_string())?;
        let (queue, priority) = (spec.queue.clone(), spec.priority);
        let content = Content::from(JobSpec {
            payload: payload_in(self.payload, self.payload_base64)?.into(),
            ..spec
        });
        Ok(Callback {
            queue,
            priority,
            content: Arc::new(content),
            pushed: self.pushed,
        })
    }
}

/// A node of the graph of a batch, and its end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodeLine {
    batch: BatchId,
    job: JobId,
    queue: QueueName,
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Tag>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    after: Vec<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<NodeState>,
}

impl NodeLine {
    /// The line of a node.
    pub(super) fn of(row: NodeRow) -> Self {
        let NodeRow { record, end } = row;
        Self {
            batch: record.batch,
            job: record.job,
            queue: record.queue,
            kind: record.kind,
            name: record.name,
            after: record.after,
            end,
        }
    }

    /// The node of the line.
    pub(super) fn row(self) -> NodeRow {
        NodeRow {
            record: NodeRecord {
                batch: self.batch,
                job: self.job,
                queue: self.queue,
                kind: self.kind,
                name: self.name,
                after: self.after,
            },
            end: self.end,
        }
    }
}

/// The batch of a line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn batch_of(line: BatchLine) -> Result<BatchRecord, String> {
    let callback = |line: Option<CallbackLine>| line.map(CallbackLine::callback).transpose();
    let counters = line.counters;
    if counters.total != counters.pending + counters.settled() {
        return Err("the counters of the batch do not add up to its total".to_owned());
    }
    let batch = BatchRecord {
        id: line.id,
        namespace: line.namespace,
        description: line.description,
        parent: line.parent,
        counters,
        on_complete: callback(line.on_complete)?,
        on_success: callback(line.on_success)?,
        on_settled: callback(line.on_settled)?,
        opened_at: line.opened_at,
        committed_at: line.committed_at,
        lapsed: line.lapsed,
        has_edges: line.has_edges,
        completed_at: line.completed_at,
        settled_at: line.settled_at,
    };
    let callbacks = BatchEvent::ALL.into_iter();
    let bytes: usize = callbacks
        .filter_map(|event| batch.callback(event))
        .map(|callback| callback.content.bound_bytes())
        .sum();
    match bytes <= BATCH_CALLBACKS_BYTES_MAX {
        true => Ok(batch),
        false => Err(format!(
            "the callbacks may have {BATCH_CALLBACKS_BYTES_MAX} bytes, these have {bytes}"
        )),
    }
}
