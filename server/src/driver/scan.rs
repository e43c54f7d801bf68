//! Scans: which jobs a filter means, found a slice at a time. A page of a list is one, and so is what
//! is done to many jobs.
//!
//! A slice has three parts: under the lock, what has happened so far is handed to the store and the
//! next walk is chosen; without it, the rows of an index are read; under it again, the engine says
//! which of their jobs are meant. Nothing is held between them but a position.

use std::{sync::Arc, time::Duration};

use super::{Core, Shard, cursor::List};
use crate::{
    clock::Stopwatch,
    store::{Store, StoreError},
    tasks::{OnPanic, Tasks},
};
use ganger_engine::{
    command::{Now, Origin},
    facts::{Facts, Need},
    list::{Position, Spots, Walk},
};
use ganger_protocol::{
    NamespaceName, WireError,
    job::{JobState, JobView},
    limits::LIST_ROWS_MAX,
    list::{JobFilter, JobList, JobListReply},
    response::ReplyBody,
};

/// Rows of an index that one slice reads, about.
pub const SLICE_ROWS: usize = 128;

/// No further job is looked at in a slice once their contents have so many bytes.
const SLICE_BYTES_MAX: usize = 256 << 10;

/// No further slice is begun for a page once its headers have so many bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// No further slice is begun for a page after this time.
const PAGE_TIME_MAX: Duration = Duration::from_millis(250);

/// Which jobs are looked for, and how far it has come.
#[derive(Debug, Clone)]
pub struct Scan {
    namespace: NamespaceName,
    filter: JobFilter,
    newest_first: bool,
    /// The walk that it is on; `None` before the first one.
    walk: Option<Walk>,
    /// Where it stands on it.
    after: Option<Position>,
    /// Whether there is nothing left of that walk.
    is_walked: bool,
    is_complete: bool,
    scanned: u64,
}

/// What the next part of a slice is.
#[derive(Debug)]
pub enum Next {
    /// Nothing: all walks are through.
    Nothing,
    /// Rows to be read from the store.
    Read(Walk),
    /// Rows that the engine has.
    Have(Spots),
}

impl Scan {
    /// A scan from the beginning.
    pub fn new(namespace: NamespaceName, filter: JobFilter, newest_first: bool) -> Self {
        Self {
            namespace,
            filter,
            newest_first,
            walk: None,
            after: None,
            is_walked: true,
            is_complete: false,
            scanned: 0,
        }
    }

    /// Whether it is through.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Rows that were looked at so far.
    pub fn scanned(&self) -> u64 {
        self.scanned
    }

    /// The first part of a slice: what has happened so far is in the store's sealed groups from here
    /// on, and it is known what is read next.
    ///
    /// # Errors
    /// When the store takes no more groups. That is final.
    pub fn begin(
        &mut self,
        core: &mut Core,
        now: Now,
        rows_max: usize,
    ) -> Result<Next, StoreError> {
        core.seal(now)?;
        if self.is_walked {
            self.after = None;
            self.is_walked = false;
            let next = core
                .engine()
                .next_walk(&self.namespace, &self.filter, self.walk);
            let Some(walk) = next else {
                self.is_complete = true;
                return Ok(Next::Nothing);
            };
            self.walk = Some(walk);
        }
        Ok(match self.walk {
            None => Next::Nothing,
            Some(walk) if walk.state == JobState::Leased => {
                let engine = core.engine();
                Next::Have(engine.leased_spots(self.after, self.newest_first, rows_max))
            }
            Some(walk) => Next::Read(walk),
        })
    }

    /// The second part: the rows, and whatever it takes that they are at hand in the third.
    ///
    /// # Errors
    /// When the store cannot be read. That is final.
    pub fn read(&self, store: &Store, walk: &Walk, rows_max: usize) -> Result<Spots, StoreError> {
        let filter = (&self.filter, self.newest_first);
        let spots = store.spots(walk, filter, self.after, rows_max)?;
        if walk.state != JobState::Ready {
            // Read once more under the lock, and then from memory.
            for job in spots.rows.iter().filter_map(|spot| spot.job) {
                let content = false;
                store.read(&Need::Job { job, content })?;
            }
        }
        Ok(spots)
    }

    /// The third part: the jobs of these rows that are meant, at most so many.
    ///
    /// # Errors
    /// When the store cannot be read. That is final.
    pub fn meet(
        &mut self,
        core: &Core,
        spots: &Spots,
        jobs_max: usize,
    ) -> Result<Vec<JobView>, StoreError> {
        let Some(walk) = self.walk else {
            return Ok(Vec::new());
        };
        let seen = (&self.namespace, &self.filter);
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        for spot in &spots.rows {
            if jobs.len() >= jobs_max || bytes >= SLICE_BYTES_MAX {
                return Ok(jobs);
            }
            let mut facts = Facts::default();
            while let Some(need) = core.engine().need_to_meet(seen, &walk, spot, &facts) {
                facts.insert(need, core.store().read(&need)?);
            }
            if let Some(job) = core.engine().meet(seen, &walk, spot, &facts) {
                jobs.push(job);
            }
            bytes += facts.content_bytes();
            self.scanned += 1;
            self.after = Some(spot.position);
        }
        self.is_walked = spots.at_end;
        Ok(jobs)
    }

    /// One slice as a whole.
    ///
    /// # Errors
    /// When the store fails. That is final.
    pub fn slice(
        &mut self,
        core: &mut Core,
        now: Now,
        jobs_max: usize,
    ) -> Result<Vec<JobView>, StoreError> {
        let spots = match self.begin(core, now, SLICE_ROWS)? {
            Next::Nothing => return Ok(Vec::new()),
            Next::Have(spots) => spots,
            Next::Read(walk) => self.read(core.store(), &walk, SLICE_ROWS)?,
        };
        self.meet(core, &spots, jobs_max)
    }

    /// Which list its cursors belong to.
    fn list(&self, store: &Store) -> List {
        List::of(
            &self.namespace,
            &self.filter,
            self.newest_first,
            store.epoch(),
        )
    }

    /// A scan from where another one of the same list has ended.
    fn resume(&mut self, store: &Store, cursor: &str) -> Result<(), WireError> {
        let (walk, after) = self.list(store).read(cursor)?;
        self.walk = Some(walk);
        self.after = after;
        self.is_walked = false;
        Ok(())
    }

    /// Where to go on; `None` when it is complete.
    fn cursor(&self, store: &Store) -> Option<String> {
        let walk = self.walk.filter(|_| !self.is_complete)?;
        Some(self.list(store).write(&walk, self.after.as_ref()))
    }
}

impl Shard {
    /// Reads a page of jobs, and answers when everything that it may show is durable. Other requests
    /// are served meanwhile.
    pub fn list_jobs(self: &Arc<Self>, tasks: &Tasks, origin: Origin, list: JobList) {
        let caller = origin.caller;
        let mut scan = Scan::new(origin.namespace, list.filter, list.newest_first);
        let begun = self.scan_permit().and_then(|permit| {
            if let Some(cursor) = &list.cursor {
                scan.resume(&self.store, cursor)?;
            }
            Ok(permit)
        });
        let permit = match begun {
            Ok(permit) => permit,
            Err(error) => return self.answer(caller, Err(error)),
        };
        let shard = Arc::clone(self);
        let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
        tasks.spawn("list", OnPanic::Continue, async move {
            let page = shard.read_page(scan, limit).await;
            drop(permit);
            shard.answer(caller, page.map(ReplyBody::JobList));
        });
    }

    async fn read_page(&self, mut scan: Scan, limit: usize) -> Result<JobListReply, WireError> {
        let since = Stopwatch::start();
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        loop {
            let slice = self.scan_slice(&mut scan, limit - jobs.len());
            let slice = slice.map_err(|error| self.fail(error))?;
            bytes += slice.iter().map(about_bytes).sum::<usize>();
            jobs.extend(slice);
            let is_over = scan.is_complete()
                || jobs.len() >= limit
                || bytes >= PAGE_BYTES_MAX
                || scan.scanned() >= LIST_ROWS_MAX
                || since.elapsed() >= PAGE_TIME_MAX;
            if is_over {
                break;
            }
            tokio::task::yield_now().await;
        }
        Ok(JobListReply {
            scanned: scan.scanned(),
            is_complete: scan.is_complete(),
            cursor: scan.cursor(&self.store),
            jobs,
        })
    }

    /// One slice of a scan, the lock held only where it must be.
    fn scan_slice(&self, scan: &mut Scan, jobs_max: usize) -> Result<Vec<JobView>, StoreError> {
        let next = {
            let mut inner = self.lock();
            scan.begin(&mut inner.core, self.clock.now(), SLICE_ROWS)?
        };
        let spots = match next {
            Next::Nothing => return Ok(Vec::new()),
            Next::Have(spots) => spots,
            Next::Read(walk) => scan.read(&self.store, &walk, SLICE_ROWS)?,
        };
        scan.meet(&self.lock().core, &spots, jobs_max)
    }
}

/// About what a job takes in a reply.
fn about_bytes(job: &JobView) -> usize {
    let headers = job.headers.iter();
    let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
    let errors = job.errors.iter();
    let errors: usize = errors
        .map(|error| error.message.len() + error.backtrace.len())
        .sum();
    512 + headers + errors
}
