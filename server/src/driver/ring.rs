//! The recent events of a shard, for whoever follows them.
//!
//! Events come here when they are durable, and get their offsets, which each namespace counts by
//! itself. The oldest make room, so a follower never holds anybody up: it reads on from where it stands
//! when it can, and is told how many it missed when the ring has run past it. Nothing is recorded until
//! somebody follows, and nothing any more once all that the last one could go on with is gone.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ganger_engine::command::Happened;
use ganger_protocol::{
    NamespaceName, Timestamp, WireError,
    event::{Event, EventFilter, EventsFrom, Gap},
    limits::{EVENTS_BYTES_MAX, EVENTS_MAX},
};
use tokio::sync::watch;

/// Events that are kept of a shard.
pub const RING_EVENTS_MAX: usize = 32 << 10;

/// Bytes that they take, about.
pub const RING_BYTES_MAX: usize = 8 << 20;

/// Events that one read looks at: the ring is held for no longer.
const READ_MAX: usize = 1 << 10;

/// A follower is told how far the stream has come when so many events were none of its own, so that it
/// can go on behind them.
const UNTOLD_MAX: u64 = 4 << 10;

/// See the module.
#[derive(Debug)]
pub struct Ring {
    recent: Mutex<Recent>,
    /// The place behind the last event; changed when there are new ones.
    news: watch::Sender<u64>,
}

#[derive(Debug)]
struct Recent {
    events: VecDeque<Kept>,
    bytes: usize,
    bounds: Bounds,
    /// The place of the first event that is kept: how many were before it, of all namespaces.
    first: u64,
    /// The offset of the next event of each namespace.
    next: BTreeMap<NamespaceName, u64>,
    /// When this recording began, by the wall clock: no other one, of no other server, has the same.
    epoch: u64,
    followers: usize,
    /// Where the last follower left. While somebody follows it has no meaning.
    left_at: u64,
    is_recording: bool,
}

#[derive(Debug, Clone)]
struct Kept {
    namespace: NamespaceName,
    event: Arc<Event>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    events: usize,
    bytes: usize,
}

/// Where a follower stands. Dropped, it follows no more.
#[derive(Debug)]
pub struct Follower {
    ring: Arc<Ring>,
    namespace: NamespaceName,
    filter: EventFilter,
    epoch: u64,
    /// Events before this place were looked at.
    place: u64,
    /// The offset of the next event of the namespace.
    next: u64,
    /// Whether it came from another epoch and was not told yet.
    is_stranger: bool,
    /// Offsets that passed since it was told anything.
    untold: u64,
}

/// What a follower is told at once.
#[derive(Debug)]
pub struct Told {
    /// What it missed before the first of the events.
    pub gap: Option<Gap>,
    /// The events that its filter means, in order.
    pub events: Vec<Arc<Event>>,
    /// Where it goes on.
    pub next: u64,
}

impl Ring {
    /// An empty ring.
    pub fn new() -> Arc<Self> {
        let bounds = Bounds {
            events: RING_EVENTS_MAX,
            bytes: RING_BYTES_MAX,
        };
        Self::bounded(bounds)
    }

    fn bounded(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            recent: Mutex::new(Recent {
                events: VecDeque::new(),
                bytes: 0,
                bounds,
                first: 0,
                next: BTreeMap::new(),
                epoch: 0,
                followers: 0,
                left_at: 0,
                is_recording: false,
            }),
            news: watch::Sender::new(0),
        })
    }

    /// Follows the events of a namespace that a filter means: those that come next, or those from a
    /// place on. From now on the engine must be watched.
    ///
    /// # Errors
    /// `bad_request` about `from` when no event has come so far.
    pub fn follow(
        self: &Arc<Self>,
        now: Timestamp,
        namespace: NamespaceName,
        filter: EventFilter,
        from: Option<EventsFrom>,
    ) -> Result<Follower, WireError> {
        let mut recent = self.lock();
        let next = recent.next_of(&namespace);
        let known = from.filter(|from| recent.is_recording && from.epoch == recent.epoch);
        if let Some(from) = known.filter(|from| from.offset > next) {
            let message = format!("offset {} has not come; {next} is the next", from.offset);
            return Err(WireError::bad_request("from.offset", message));
        }
        recent.followers += 1;
        if !recent.is_recording {
            recent.begin(now);
        }
        let place = match known {
            // What is behind it is passed by on the way.
            Some(_) => recent.first,
            None => recent.end(),
        };
        Ok(Follower {
            ring: Arc::clone(self),
            next: known.map_or_else(|| recent.next_of(&namespace), |from| from.offset),
            namespace,
            filter,
            epoch: recent.epoch,
            place,
            is_stranger: from.is_some() && known.is_none(),
            untold: 0,
        })
    }

    /// Takes in what has become durable; whether the engine is to be watched on.
    pub fn record(&self, happened: Vec<Happened>) -> bool {
        let mut recent = self.lock();
        if !recent.is_recording {
            return false;
        }
        for happened in happened {
            recent.push(happened);
        }
        if recent.followers == 0 && recent.first >= recent.left_at {
            recent.end_recording();
        }
        recent.is_recording
    }

    /// Wakes those who wait for events.
    pub fn wake(&self) {
        let end = self.lock().end();
        self.news.send_replace(end);
    }

    /// Changes whenever there are new events.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// No code panics while it holds this lock but by a bug, after which the server stops anyway.
    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn next_of(&self, namespace: &NamespaceName) -> u64 {
        self.next.get(namespace).copied().unwrap_or_default()
    }

    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn begin(&mut self, now: Timestamp) {
        self.is_recording = true;
        self.epoch = now.0.max(self.epoch + 1);
    }

    fn end_recording(&mut self) {
        self.is_recording = false;
        self.first = self.end();
        self.events = VecDeque::new();
        self.bytes = 0;
        self.next.clear();
    }

    fn push(&mut self, happened: Happened) {
        let Happened {
            namespace,
            mut event,
        } = happened;
        let next = self.next.entry(namespace.clone()).or_default();
        event.offset = *next;
        *next += 1;
        self.bytes += event.bound_bytes();
        self.events.push_back(Kept {
            namespace,
            event: Arc::new(event),
        });
        while (self.events.len() > self.bounds.events || self.bytes > self.bounds.bytes)
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= oldest.event.bound_bytes();
            self.first += 1;
        }
    }
}

impl Follower {
    /// Where it stands.
    pub fn stands(&self) -> EventsFrom {
        EventsFrom {
            epoch: self.epoch,
            offset: self.next,
        }
    }

    /// Reads on. Nothing to tell: it has looked at some events, or there is none. Whether there may be
    /// more is the second.
    pub fn read(&mut self) -> (Option<Told>, bool) {
        let (page, end, last) = self.page();
        let mut missed = 0;
        let mut events = Vec::new();
        let mut bytes = 0;
        let before = self.next;
        let mut is_full = false;
        for kept in page {
            if is_full {
                break;
            }
            self.place += 1;
            if kept.namespace != self.namespace || kept.event.offset < self.next {
                continue;
            }
            missed += kept.event.offset - self.next;
            self.next = kept.event.offset + 1;
            if self.filter.matches(&kept.event) {
                bytes += kept.event.bound_bytes();
                events.push(kept.event);
                is_full = events.len() >= EVENTS_MAX || bytes >= EVENTS_BYTES_MAX;
            }
        }
        let has_more = self.place < end;
        if !has_more && last > self.next {
            missed += last - self.next;
            self.next = last;
        }
        self.untold += self.next - before;
        let missed = Some(missed).filter(|missed| *missed > 0);
        let gap = match std::mem::take(&mut self.is_stranger) {
            true => Some(Gap { missed: None }),
            false => missed.map(|missed| Gap {
                missed: Some(missed),
            }),
        };
        if events.is_empty() && gap.is_none() && self.untold < UNTOLD_MAX {
            return (None, has_more);
        }
        self.untold = 0;
        let next = self.next;
        (Some(Told { gap, events, next }), has_more)
    }

    /// The next events of the ring, its end, and the offset of the next event of the namespace.
    fn page(&mut self) -> (Vec<Kept>, u64, u64) {
        let ring = Arc::clone(&self.ring);
        let recent = ring.lock();
        self.place = self.place.max(recent.first);
        let skipped = usize::try_from(self.place - recent.first).unwrap_or(usize::MAX);
        let page = recent.events.iter().skip(skipped).take(READ_MAX);
        let page = page.cloned().collect();
        (page, recent.end(), recent.next_of(&self.namespace))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut recent = self.ring.lock();
        recent.followers -= 1;
        if recent.followers == 0 {
            recent.left_at = recent.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use ganger_protocol::{DurationMs, event::EventName};

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    const FEW: Bounds = Bounds {
        events: 10,
        bytes: RING_BYTES_MAX,
    };

    fn ring() -> Arc<Ring> {
        Ring::bounded(FEW)
    }

    fn default() -> NamespaceName {
        NamespaceName::default()
    }

    fn follow(ring: &Arc<Ring>, from: Option<EventsFrom>) -> Follower {
        let filter = EventFilter::default();
        ring.follow(NOW, default(), filter, from).unwrap()
    }

    fn happen(ring: &Ring, namespace: &str, count: u64) -> bool {
        let happened = |_| Happened {
            namespace: namespace.parse().unwrap(),
            event: Event::new(EventName::Pushed, Timestamp(1)),
        };
        ring.record((0..count).map(happened).collect())
    }

    /// Everything that a follower is told now: what it missed, offsets, where it goes on.
    fn told(follower: &mut Follower) -> Vec<(Option<Option<u64>>, Vec<u64>, u64)> {
        let mut all = Vec::new();
        loop {
            let (told, has_more) = follower.read();
            all.extend(told.map(|told| {
                let offsets = told.events.iter().map(|event| event.offset);
                (told.gap.map(|gap| gap.missed), offsets.collect(), told.next)
            }));
            if !has_more {
                return all;
            }
        }
    }

    #[test]
    fn a_follower_is_told_what_comes_behind_it_in_order() {
        let ring = ring();
        let _other = follow(&ring, None);
        happen(&ring, "default", 3);
        let mut follower = follow(&ring, None);
        assert_eq!(follower.stands().offset, 3);
        assert_eq!(told(&mut follower), []);
        happen(&ring, "default", 2);
        assert_eq!(told(&mut follower), [(None, vec![3, 4], 5)]);
        assert_eq!(told(&mut follower), []);
    }

    #[test]
    fn a_namespace_counts_and_sees_its_own_events_only() {
        let ring = ring();
        let mut follower = follow(&ring, None);
        happen(&ring, "other", 4);
        happen(&ring, "default", 1);
        happen(&ring, "other", 4);
        assert_eq!(told(&mut follower), [(None, vec![0], 1)]);
        // Others fill the ring: what is lost by it is counted, and only that.
        happen(&ring, "default", 2);
        happen(&ring, "other", 20);
        assert_eq!(told(&mut follower), [(Some(Some(2)), vec![], 3)]);
    }

    #[test]
    fn who_falls_behind_is_told_how_many_it_missed() {
        let ring = ring();
        let mut follower = follow(&ring, None);
        happen(&ring, "default", 14);
        let kept = (4..14).collect();
        assert_eq!(told(&mut follower), [(Some(Some(4)), kept, 14)]);
    }

    #[test]
    fn a_ring_is_bounded_by_bytes_too() {
        let event = Event::new(EventName::Pushed, Timestamp(1));
        let bytes = 3 * event.bound_bytes();
        let ring = Ring::bounded(Bounds { bytes, ..FEW });
        let mut follower = follow(&ring, None);
        happen(&ring, "default", 5);
        assert_eq!(told(&mut follower), [(Some(Some(2)), vec![2, 3, 4], 5)]);
    }

    #[test]
    fn who_comes_back_goes_on_where_it_stood() {
        let ring = ring();
        let mut follower = follow(&ring, None);
        happen(&ring, "default", 2);
        told(&mut follower);
        let stands = follower.stands();
        drop(follower);
        assert!(happen(&ring, "default", 3), "it is recorded on");
        let mut follower = follow(&ring, Some(stands));
        assert_eq!(told(&mut follower), [(None, vec![2, 3, 4], 5)]);
        happen(&ring, "default", 20);
        let mut late = follow(&ring, Some(stands));
        let kept = (15..25).collect();
        assert_eq!(told(&mut late), [(Some(Some(13)), kept, 25)]);
    }

    #[test]
    fn nothing_is_recorded_once_nobody_could_go_on() {
        let ring = ring();
        assert!(!happen(&ring, "default", 1));
        let follower = follow(&ring, None);
        happen(&ring, "default", 2);
        let stands = follower.stands();
        drop(follower);
        assert!(happen(&ring, "default", 9), "one is left of what it had");
        assert!(!happen(&ring, "default", 1));
        let mut follower = follow(&ring, Some(stands));
        assert!(follower.stands() > stands, "another epoch");
        assert_eq!(follower.stands().offset, 0);
        assert_eq!(told(&mut follower), [(Some(None), vec![], 0)]);
        happen(&ring, "default", 1);
        assert_eq!(told(&mut follower), [(None, vec![0], 1)]);
    }

    #[test]
    fn an_offset_of_another_life_is_a_gap_of_unknown_size() {
        let earlier = follow(&ring(), None).stands();
        let ring = ring();
        let filter = EventFilter::default();
        let later = NOW.plus(DurationMs(1));
        let follower = ring.follow(later, default(), filter, Some(earlier));
        let mut follower = follower.unwrap();
        assert!(follower.stands().epoch > earlier.epoch);
        assert_eq!(told(&mut follower), [(Some(None), vec![], 0)]);
    }

    #[test]
    fn an_offset_that_has_not_come_is_refused() {
        let ring = ring();
        let mut stands = follow(&ring, None).stands();
        let _follower = follow(&ring, Some(stands));
        stands.offset += 1;
        let refused = ring.follow(NOW, default(), EventFilter::default(), Some(stands));
        let error = refused.unwrap_err();
        assert_eq!(error.field.as_deref(), Some("from.offset"));
    }

    #[test]
    fn a_message_has_as_many_events_as_are_allowed() {
        let ring = Ring::new();
        let mut follower = follow(&ring, None);
        happen(&ring, "default", 1_000);
        let all = told(&mut follower);
        let counts = all.iter().map(|(_, offsets, _)| offsets.len());
        assert!(counts.clone().all(|count| count <= EVENTS_MAX));
        assert_eq!(counts.sum::<usize>(), 1_000);
        assert_eq!(all.last().unwrap().2, 1_000);
    }

    #[test]
    fn who_means_none_of_many_events_is_told_how_far_it_has_come() {
        let ring = Ring::new();
        let filter = EventFilter {
            events: vec![EventName::Dead],
            ..EventFilter::default()
        };
        let mut follower = ring.follow(NOW, default(), filter, None).unwrap();
        happen(&ring, "default", UNTOLD_MAX - 1);
        assert_eq!(told(&mut follower), []);
        happen(&ring, "default", 1);
        assert_eq!(told(&mut follower), [(None, vec![], UNTOLD_MAX)]);
    }
}
