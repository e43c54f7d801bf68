//! A limit as a line of an export, and back. What goes around it is in `transfer.rs`.

use ganger_engine::records::LimitRecord;
use ganger_protocol::{
    NamespaceName,
    limit::{LimitSet, OneLimit},
};
use serde::{Deserialize, Serialize};

/// A limit: as it was set.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LimitLine {
    namespace: NamespaceName,
    #[serde(flatten)]
    set: LimitSet,
}

impl LimitLine {
    /// The line of a limit.
    pub(super) fn of(limit: LimitRecord) -> Self {
        let OneLimit { queue, key } = OneLimit::of(limit.target);
        Self {
            namespace: limit.namespace,
            set: LimitSet {
                queue,
                key,
                max_running: limit.max_running,
                rate: limit.rate,
                weight: limit.weight,
                sequence: limit.sequence,
            },
        }
    }
}

/// The limit of a line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn limit_of(line: LimitLine) -> Result<LimitRecord, String> {
    let LimitLine { namespace, set } = line;
    let target = set.target().ok_or("a limit is of a queue or of a key")?;
    Ok(LimitRecord {
        namespace,
        target,
        max_running: set.max_running,
        rate: set.rate,
        weight: set.weight,
        sequence: set.sequence,
    })
}
