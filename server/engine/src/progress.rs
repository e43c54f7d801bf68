//! Progress: how far an attempt has come, kept in the job's record, and the cursor from which the
//! next attempt goes on.
//!
//! A job of which a worker says so gets a record of its own, as everything else does that happens to
//! it. Its cursor is a blob, read wherever the content is read, so that it is at hand at a grant.

use ganger_protocol::{
    progress::{Progress, ProgressItem},
    response::{LeaseReply, LeaseResult, ReplyBody},
};

use crate::{
    Engine,
    answer::refused,
    command::Origin,
    facts::{Facts, Need},
    fetch::lease_lost,
    records::{BlobKind, bytes_parts},
};

impl Engine {
    /// What must be read to take progress: the jobs, of those whose lease is over their states.
    pub(crate) fn needs_of_progress(&self, progress: &Progress) -> Vec<Need> {
        let items = progress.leases.iter();
        let needs = items.filter_map(|item| {
            let is_live = self.leases.live(&item.job, item.lease).is_some();
            self.need_of_job(item.job, is_live)
        });
        needs.collect()
    }

    pub(crate) fn progress(
        &mut self,
        origin: &Origin,
        progress: Progress,
        facts: &Facts,
    ) -> ReplyBody {
        let items = progress.leases.into_iter();
        let results = items
            .map(|item| self.progress_one(origin, item, facts))
            .collect();
        ReplyBody::Lease(LeaseReply { results })
    }

    fn progress_one(&mut self, origin: &Origin, item: ProgressItem, facts: &Facts) -> LeaseResult {
        let live = self.leases.live(&item.job, item.lease);
        if live.is_none_or(|lease| !self.is_in_namespace(lease.queue, origin)) {
            return refused(lease_lost(&self.state_for(origin, item.job, facts)));
        }
        self.move_straggler(item.job, facts);
        let Some(mut record) = self.lookup(item.job, facts) else {
            return LeaseResult::default();
        };
        record.losses_in_row = 0;
        let mut progress = record.progress.take().unwrap_or_default();
        progress.percent = item.percent.or(progress.percent);
        progress.note = item.note.or(progress.note);
        if let Some(cursor) = item.cursor {
            let (job, earlier) = (item.job, progress.cursor_parts);
            if cursor.is_empty() {
                self.group.delete_blob(job, BlobKind::Cursor, earlier);
                (progress.cursor_parts, progress.cursor) = (0, None);
            } else {
                progress.cursor_parts = bytes_parts(&cursor);
                progress.cursor = Some(cursor.clone());
                self.group.put_bytes(job, BlobKind::Cursor, cursor, earlier);
            }
        }
        record.progress = Some(progress);
        self.group.put_job(record);
        LeaseResult::default()
    }
}
