//! Reads ahead: what a timer will ask for when it is due is read before that, so that nobody waits
//! for the disk, nor for a page that is being flushed, while the engine is held.

use ganger_engine::records::{Place, Timer, TimerKind};
use ganger_protocol::{JobId, Timestamp};

use super::{
    Store, StoreError,
    keys::{Key, Prefix},
    overlay::Known,
    table::Span,
};

/// Timers that are looked at in one go.
const PAGE: usize = 256;

/// How far a read ahead has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// Up to this timer; there may be more.
    To(Timer),
    /// As far as it may. The time of the next timer, when there is one.
    Done(Option<Timestamp>),
}

impl Store {
    /// Reads some of what the timers behind `after` and up to `until` will ask for. What is known
    /// without the table is passed over.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`], or the table's error, which poisons the store.
    pub fn read_ahead(&self, after: Option<Timer>, until: Timestamp) -> Result<Ahead, StoreError> {
        self.guarded(|| {
            let mut span = Span::of(Key::of(Prefix::Timer));
            if let Some(after) = after {
                span = span.behind(&Key::timer(&after));
            }
            let mut last = None;
            for (key, _) in self.scan(span, PAGE)? {
                let timer = key.to_timer().ok_or_else(|| super::bad_key(&key))?;
                if timer.at > until {
                    return Ok(Ahead::Done(Some(timer.at)));
                }
                if !self.read_for(&timer)? {
                    return Ok(last.map_or(Ahead::Done(Some(timer.at)), Ahead::To));
                }
                last = Some(timer);
            }
            Ok(last.map_or(Ahead::Done(None), Ahead::To))
        })
    }

    /// Reads what a timer will ask for; `false` when there is no room for it.
    fn read_for(&self, timer: &Timer) -> Result<bool, StoreError> {
        let job = JobId::from_bytes(timer.id);
        let run = Place::of_birth(&job).run;
        let of_run = [Key::left(&run), Key::run(&run)];
        match timer.what {
            TimerKind::Due | TimerKind::Retention => self.keep(&[Key::job(&job)]),
            TimerKind::Expire if !run.lane.is_scheduled() => self.keep(&[Key::job(&job)]),
            TimerKind::Expire => Ok(self.keep(&[Key::job(&job)])? && self.keep(&of_run)?),
            TimerKind::RunDue => self.keep(&of_run),
            TimerKind::UniqueTtl
            | TimerKind::BatchDeadline
            | TimerKind::PauseEnd
            | TimerKind::ProducerIdle
            | TimerKind::Cron
            | TimerKind::Cancel
            | TimerKind::NodeDone
            | TimerKind::NodeEnded => Ok(true),
        }
    }

    /// Reads values of the table and keeps them; `false` when there is no room for one.
    fn keep(&self, keys: &[Key]) -> Result<bool, StoreError> {
        for key in keys {
            let generation = {
                let overlay = self.overlay();
                if overlay.find(key) != Known::Nothing {
                    continue;
                }
                if !overlay.has_room_ahead() {
                    return Ok(false);
                }
                overlay.generation()
            };
            if let Some(value) = self.table.read(key)? {
                self.overlay_mut().keep_ahead(generation, *key, value);
            }
        }
        Ok(true)
    }
}
