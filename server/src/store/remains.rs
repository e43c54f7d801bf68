//! What is left of a purged queue: its runs, the records of jobs that were born in it, its rows of
//! closed jobs, a bounded slice at a time. The engine's sweep asks and erases; nothing here writes.

use ganger_engine::{
    facts::{Fact, Heads, Remain, Stage},
    records::QueueNumber,
};

use super::{
    Store, StoreError, bad_key,
    keys::{Key, Prefix},
    table::Span,
};

/// Runs that are read at once.
const RUNS_PAGE: usize = 8;

impl Store {
    /// A slice of what is left of an old number.
    pub(super) fn remains(
        &self,
        queue: QueueNumber,
        stage: Stage,
        max: u32,
    ) -> Result<Fact, StoreError> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let (rows, at_end) = match stage {
            Stage::Runs(after) => {
                let span = Span::of(Key::queue_runs(queue));
                let after = after.map(|run| Key::run(&run));
                self.remaining_runs(after.map_or(span, |after| span.behind(&after)), max)?
            }
            Stage::Scheduled(after) => {
                let span = Span::of(Key::queue_scheduled_runs(queue));
                let after = after.map(|run| Key::run(&run));
                self.remaining_runs(after.map_or(span, |after| span.behind(&after)), max)?
            }
            Stage::Jobs(after) => {
                let span = Span::of(Key::queue_jobs(self.shard(), queue));
                let after = after.map(|job| Key::job(&job));
                self.remaining_jobs(after.map_or(span, |after| span.behind(&after)), max)?
            }
            Stage::Guests(after) => {
                let span = Span::of(Key::of(Prefix::Job));
                let after = after.map(|job| Key::job(&job));
                let span = after.map_or(span, |after| span.behind(&after));
                self.remaining_guests(queue, span, max)?
            }
            Stage::Closed(after) => {
                let span = Span::of(Key::queue_closed(queue));
                let after = after.map(|row| Key::closed(&row));
                self.remaining_closed(after.map_or(span, |after| span.behind(&after)), max)?
            }
        };
        Ok(Fact::Remains { rows, at_end })
    }

    /// Whole runs of about so many entries, and whether there is none behind them.
    fn remaining_runs(
        &self,
        mut span: Span,
        max: usize,
    ) -> Result<(Vec<Remain>, bool), StoreError> {
        let (mut rows, mut entries) = (Vec::new(), 0);
        while entries < max {
            let page = self.scan(span, RUNS_PAGE)?;
            for (key, value) in &page {
                let mut heads = Heads::default();
                self.push_run(&mut heads, key, value, None)?;
                entries += heads.rows.len();
                let run = key.to_run().ok_or_else(|| bad_key(key))?;
                rows.push(Remain::Run(run, heads.rows));
                span = span.behind(key);
            }
            if page.len() < RUNS_PAGE {
                return Ok((rows, true));
            }
        }
        Ok((rows, false))
    }

    fn remaining_jobs(&self, span: Span, max: usize) -> Result<(Vec<Remain>, bool), StoreError> {
        let page = self.scan(span, max)?;
        let mut rows = Vec::with_capacity(page.len());
        for (key, _) in &page {
            let job = key.to_job().ok_or_else(|| bad_key(key))?;
            if let Some(record) = self.job_record(&job, true)? {
                rows.push(Remain::Job(Box::new(record)));
            }
        }
        Ok((rows, page.len() < max))
    }

    /// Any jobs, with the records of those that are in the queue and were born elsewhere.
    fn remaining_guests(
        &self,
        queue: QueueNumber,
        span: Span,
        max: usize,
    ) -> Result<(Vec<Remain>, bool), StoreError> {
        let page = self.scan(span, max)?;
        let mut rows = Vec::with_capacity(page.len());
        for (key, _) in &page {
            let job = key.to_job().ok_or_else(|| bad_key(key))?;
            let is_guest = job.birth().queue != queue.0
                && self
                    .job_record(&job, false)?
                    .is_some_and(|it| it.queue == queue);
            let record = match is_guest {
                true => self.job_record(&job, true)?.map(Box::new),
                false => None,
            };
            rows.push(Remain::Guest(job, record));
        }
        Ok((rows, page.len() < max))
    }

    fn remaining_closed(&self, span: Span, max: usize) -> Result<(Vec<Remain>, bool), StoreError> {
        let page = self.closed_rows(&span, max)?;
        let at_end = page.len() < max;
        let rows = page.into_iter().map(|row| {
            let record = self.job_record(&row.job, true)?.map(Box::new);
            Ok(Remain::Closed(row, record))
        });
        Ok((rows.collect::<Result<_, StoreError>>()?, at_end))
    }
}
