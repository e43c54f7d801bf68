//! Walks over an index, a bounded slice at a time, for lists and what is done to many jobs: timers,
//! records of jobs, runs of a queue, closed jobs of a queue. Nothing is kept between two slices; what
//! stands there now, the engine says.

use ganger_engine::{
    list::{Position, Spot, Spots, Walk},
    records::{Bits, Closed, Entry, Place, QueueNumber, Timer, TimerKind},
};
use ganger_protocol::{JobId, Timestamp, job::JobState, list::JobFilter};

use super::{
    Store, StoreError, bad_key, damaged,
    keys::{Key, Prefix},
    records,
    table::{Order, Span},
};

/// Runs that are read at once.
const RUNS_PAGE: usize = 8;

impl Store {
    /// Rows of a walk behind a position, about `max` of them: whole runs, so a few more. The filter
    /// bounds the walk where its order allows that.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn spots(
        &self,
        walk: &Walk,
        (filter, newest_first): (&JobFilter, bool),
        after: Option<Position>,
        max: usize,
    ) -> Result<Spots, StoreError> {
        self.guarded(|| {
            let mut span = match (walk.state, walk.queue) {
                (JobState::Ready, Some(queue)) => {
                    let begin = match filter.priority {
                        Some(priority) => Key::priority_runs(queue, priority),
                        None => Key::queue_runs(queue),
                    };
                    return self.ready_spots(Span::of(begin), newest_first, after, max);
                }
                (JobState::Scheduled, _) => within(Key::of(Prefix::Timer), filter, timers_from),
                (state, Some(queue)) => within(Key::closed_jobs(queue, state), filter, |at| {
                    closed_from(queue, state, at)
                }),
                (_, None) => Span::of(Key::of(Prefix::Job)),
            };
            if newest_first {
                span.order = Order::Descending;
            }
            if let (JobState::Scheduled, Some(Position::Timer(after))) = (walk.state, after)
                && after.what == TimerKind::RunDue
            {
                // The rest of its run comes first.
                let row = Key::timer(&self.row_of(&after));
                match newest_first {
                    false => span.from = span.from.max(row),
                    true => span.to = span.to.min(row.after()),
                }
            } else if let Some(key) = after.and_then(|after| key_of(&after)) {
                span = span.behind(&key);
            }
            let mut spots = Spots::default();
            // The jobs of a timer may all have left by now.
            while spots.rows.is_empty() && !spots.at_end {
                let page = self.scan(span, max)?;
                spots.at_end = page.len() < max;
                for (key, _) in &page {
                    if spots.rows.len() >= max {
                        spots.at_end = false;
                        break;
                    }
                    let spot = spot_of(key)?;
                    match spot.position {
                        Position::Timer(timer) if timer.what == TimerKind::RunDue => {
                            self.push_run_due(&mut spots, timer, newest_first, after)?;
                        }
                        _ => spots.rows.push(spot),
                    }
                    span = span.behind(key);
                }
            }
            Ok(spots)
        })
    }

    /// The timer as it is written of which a position names one job.
    fn row_of(&self, position: &Timer) -> Timer {
        let run = Place::of_birth(&JobId::from_bytes(position.id)).run;
        Timer::run_due(self.shard(), run, position.at)
    }

    /// The jobs of a scheduled run that wait for a time, behind a position: each has that of a timer of
    /// its own.
    fn push_run_due(
        &self,
        spots: &mut Spots,
        timer: Timer,
        newest_first: bool,
        after: Option<Position>,
    ) -> Result<(), StoreError> {
        let run = Place::of_birth(&JobId::from_bytes(timer.id)).run;
        let due = self.due_entries(&run, timer.at)?;
        let entries = due.map_or_else(Bits::default, |(_, entries)| entries);
        let mut rows: Vec<Spot> = (0..u8::MAX)
            .filter(|index| entries.contains(*index))
            .map(|index| {
                let job = Place { run, index }.job_id(self.shard());
                let id = *job.as_bytes();
                Spot {
                    position: Position::Timer(Timer { id, ..timer }),
                    job: Some(job),
                }
            })
            .collect();
        rows.retain(|spot| {
            after.is_none_or(|after| match newest_first {
                false => spot.position > after,
                true => spot.position < after,
            })
        });
        if newest_first {
            rows.reverse();
        }
        spots.rows.append(&mut rows);
        Ok(())
    }

    /// Entries of runs in their order, or the other way round.
    fn ready_spots(
        &self,
        mut span: Span,
        newest_first: bool,
        after: Option<Position>,
        max: usize,
    ) -> Result<Spots, StoreError> {
        let after = match after {
            Some(Position::Place(place)) => Some(place),
            Some(_) | None => None,
        };
        if newest_first {
            span.order = Order::Descending;
        }
        if let Some(place) = after {
            // The rest of its run comes first.
            let key = Key::run(&place.run);
            match newest_first {
                false => span.from = span.from.max(key),
                true => span.to = span.to.min(key.after()),
            }
        }
        let is_behind = |place: &Place| {
            after.is_none_or(|after| match newest_first {
                _ if place.run != after.run => true,
                false => place.index > after.index,
                true => place.index < after.index,
            })
        };
        let mut spots = Spots::default();
        while spots.rows.len() < max {
            let page = self.scan(span, RUNS_PAGE)?;
            for (key, value) in &page {
                let run = key.to_run().ok_or_else(|| bad_key(key))?;
                let (_, body) = self.open_record(key, value)?;
                let entries = records::run(body).map_err(damaged(key))?.entries;
                let mut places: Vec<Spot> = (0_u8..)
                    .zip(&entries)
                    .map(|(index, entry)| self.spot_in_run(Place { run, index }, entry))
                    .collect();
                if newest_first {
                    places.reverse();
                }
                places.retain(|spot| match spot.position {
                    Position::Place(place) => is_behind(&place),
                    _ => true,
                });
                spots.rows.append(&mut places);
                span = span.behind(key);
            }
            if page.len() < RUNS_PAGE {
                spots.at_end = true;
                break;
            }
        }
        Ok(spots)
    }

    fn spot_in_run(&self, place: Place, entry: &Entry) -> Spot {
        let job = match entry {
            Entry::Job(_) | Entry::Scheduled(..) => place.job_id(self.shard()),
            Entry::Reference(job) => *job,
        };
        Spot {
            position: Position::Place(place),
            job: Some(job),
        }
    }
}

/// The rows of an index by time that a filter can mean.
fn within(begin: Key, filter: &JobFilter, at: impl Fn(Timestamp) -> Key) -> Span {
    let mut span = Span::of(begin);
    if let Some(since) = filter.since {
        span.from = at(since);
    }
    if let Some(before) = filter.before {
        span.to = at(before);
    }
    span
}

/// The begin of the timers from a time on.
fn timers_from(at: Timestamp) -> Key {
    Key::timer(&Timer {
        at,
        what: TimerKind::Due,
        id: [0; JobId::BYTES],
    })
}

/// The begin of the closed jobs from a time on.
fn closed_from(queue: QueueNumber, state: JobState, at: Timestamp) -> Key {
    Key::closed(&Closed {
        queue,
        state,
        at,
        job: JobId::from_bytes([0; JobId::BYTES]),
    })
}

/// The row of an index that a position stands at; none for an entry of a run and for a lease. A job of a
/// scheduled run stands at a row that its timer would have if it had one of its own.
pub fn key_of(position: &Position) -> Option<Key> {
    match position {
        Position::Timer(timer) => Some(Key::timer(timer)),
        Position::Job(job) => Some(Key::job(job)),
        Position::Closed(row) => Some(Key::closed(row)),
        Position::Place(_) | Position::Lease(..) => None,
    }
}

/// What a row of an index names.
///
/// # Errors
/// [`StoreError::Damaged`] when the key is none of an index.
pub fn spot_of(key: &Key) -> Result<Spot, StoreError> {
    let spot = match key.prefix() {
        Some(Prefix::Timer) => key.to_timer().map(|timer| Spot {
            position: Position::Timer(timer),
            job: matches!(timer.what, TimerKind::Due | TimerKind::RunDue)
                .then(|| JobId::from_bytes(timer.id)),
        }),
        Some(Prefix::Closed) => key.to_closed().map(|row| Spot {
            position: Position::Closed(row),
            job: Some(row.job),
        }),
        _ => key.to_job().map(|job| Spot {
            position: Position::Job(job),
            job: Some(job),
        }),
    };
    spot.ok_or_else(|| bad_key(key))
}
