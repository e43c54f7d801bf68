//! Lanes: who comes next within a queue, so that no key delays another.
//!
//! Jobs wait in the shared lane of their priority, in order of arrival, until their key has many there
//! or stands at its limit: then they get a lane of their own. Lanes take turns: a lane of a key has
//! as many jobs a turn as its weight says, and the shared lane has every other turn. A lane whose key
//! lets nothing through is parked, out of turn, until the key lets something through again.
//!
//! A job that leaves the shared lane for its key's own keeps its position, and positions are the order
//! of arrival over all lanes: so a lane of a key is served only up to where the shared lane has come,
//! and the jobs of a key stay in order wherever they stand. After a start the lanes that there are
//! are read, some at a time. What is known of keys is in [`crate::keys`].

use std::collections::{BTreeMap, VecDeque};

use ganger_protocol::{JobId, ids::Tag};

use crate::{
    Engine,
    command::{Mono, Now},
    facts::{Facts, Need},
    keys::Gate,
    limits::Limit,
    records::{Content, JobRecord, Lane, Place, QueueNumber},
    window::{Head, HeadJob, Window},
};

/// Jobs of a key in the shared lane from which on further ones get a lane of their own.
const SHARED_MAX: u32 = 64;

/// Jobs that one command moves out of shared lanes.
pub(crate) const SPILLS_MAX: u32 = 128;

/// Lanes that are looked at before the shared lane has the turn.
const LOOKS: usize = 8;

/// Lanes whose heads are read ahead of their turns.
const LANES_AHEAD: usize = 16;

/// Lanes that one slice reads.
const LANES_SLICE: u32 = 256;

/// The lanes of keys of each priority.
pub(crate) type Rings = [Ring; 10];

/// Where a job stands in the order of arrival, over all lanes.
fn arrival(place: &Place) -> u64 {
    place.run.position.saturating_add(u64::from(place.index))
}

/// The front of a shared lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    Nothing,
    /// A head at hand, by its arrival.
    At(u64),
    /// It must be read, behind this arrival.
    Unread(u64),
}

impl Front {
    pub(crate) fn of(window: &Window) -> Self {
        match window.heads.front() {
            Some(head) => Self::At(arrival(&head.place)),
            None if window.is_behind => Self::Unread(window.end.map_or(0, |(position, index)| {
                position.saturating_add(u64::from(index))
            })),
            None => Self::Nothing,
        }
    }

    /// Jobs that arrived up to then do not wait in the shared lane any more.
    fn reached(self) -> u64 {
        match self {
            Self::Nothing => u64::MAX,
            Self::At(arrival) | Self::Unread(arrival) => arrival,
        }
    }
}

/// What comes next in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The front of this lane.
    Head { priority: u8, lane: u64 },
    /// Something must be read first.
    Unread,
    /// Nothing that has a turn.
    Nothing,
}

/// A lane of a key.
#[derive(Debug, Default)]
struct OwnLane {
    window: Window,
    /// The number of its turn in the ring; `None`: it is parked.
    turn: Option<u64>,
    /// Jobs that it had in this turn.
    taken: u32,
}

/// The lanes of keys within a queue and priority.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    lanes: BTreeMap<u64, OwnLane>,
    /// Lanes and their turns, in order. A turn that its lane does not have any more is passed over.
    turns: VecDeque<(u64, u64)>,
    last_turn: u64,
    /// Lanes with higher numbers may be in the store only; `None`: all are here.
    unknown_behind: Option<u64>,
    /// Whether the shared lane had the last turn.
    is_own_turn: bool,
}

impl Ring {
    /// Lanes of which nothing is known.
    pub(crate) fn unknown() -> Self {
        Self {
            unknown_behind: Some(0),
            ..Self::default()
        }
    }

    pub(crate) fn window(&self, lane: u64) -> Option<&Window> {
        self.lanes.get(&lane).map(|own| &own.window)
    }

    pub(crate) fn window_mut(&mut self, lane: u64) -> Option<&mut Window> {
        self.lanes.get_mut(&lane).map(|own| &mut own.window)
    }

    pub(crate) fn windows(&self) -> impl Iterator<Item = &Window> {
        self.lanes.values().map(|own| &own.window)
    }

    pub(crate) fn into_windows(self) -> impl Iterator<Item = Window> {
        self.lanes.into_values().map(|own| own.window)
    }

    /// Its lanes, and whether they have turns.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = (u64, bool)> {
        let lanes = self.lanes.iter();
        lanes.map(|(lane, own)| (*lane, own.turn.is_some()))
    }

    /// Whether all lanes that there are are here.
    pub(crate) fn is_known(&self) -> bool {
        self.unknown_behind.is_none()
    }

    /// Whether a lane that has turns, or is not known, must be read.
    pub(crate) fn may_be_unread(&self) -> bool {
        !self.is_known() || self.unread_lanes().next().is_some()
    }

    /// The next lanes that must be read before their turns.
    fn unread_lanes(&self) -> impl Iterator<Item = (u64, &Window)> {
        let ahead = self.turns.iter().take(LANES_AHEAD);
        let ahead = ahead.filter_map(|(lane, _)| Some((*lane, self.window(*lane)?)));
        ahead.filter(|(_, window)| window.is_short_of(1))
    }

    /// Whose turn it is.
    pub(crate) fn choose(&mut self, priority: u8, front: Front) -> Choice {
        if !self.is_known() {
            return Choice::Unread;
        }
        let (lane, is_unread) = self.next_turn(front.reached());
        let is_shared = |front| matches!(front, Front::At(_));
        match (lane, front) {
            (Some(lane), front) if self.is_own_turn || !is_shared(front) => {
                Choice::Head { priority, lane }
            }
            (_, Front::At(_)) => Choice::Head { priority, lane: 0 },
            (_, Front::Unread(_)) => Choice::Unread,
            (_, Front::Nothing) if is_unread => Choice::Unread,
            (_, Front::Nothing) => Choice::Nothing,
        }
    }

    /// The next lane whose front arrived before the shared lane's, brought to the front of the turns;
    /// and whether one must be read.
    fn next_turn(&mut self, reached: u64) -> (Option<u64>, bool) {
        let mut is_unread = false;
        let mut looks = LOOKS.min(self.turns.len());
        while looks > 0
            && let Some((lane, turn)) = self.turns.front().copied()
        {
            let own = self.lanes.get_mut(&lane);
            let Some(own) = own.filter(|own| own.turn == Some(turn)) else {
                self.turns.pop_front();
                looks = looks.min(self.turns.len());
                continue;
            };
            match own.window.heads.front() {
                Some(head) if arrival(&head.place) <= reached => return (Some(lane), is_unread),
                Some(_) => {}
                None => is_unread = true,
            }
            own.taken = 0;
            self.turns.rotate_left(1);
            looks -= 1;
        }
        (None, is_unread)
    }

    /// A job of a lane was granted: its turn ends with its weight.
    fn served(&mut self, lane: u64, weight: u32) {
        self.is_own_turn = lane == 0;
        let Some(own) = self.lanes.get_mut(&lane) else {
            return;
        };
        own.taken += 1;
        if own.taken < weight {
            self.is_own_turn = true;
            return;
        }
        own.taken = 0;
        self.turns.rotate_left(1);
    }

    /// A lane has a turn, the last one.
    fn give_turn(&mut self, lane: u64) {
        self.last_turn += 1;
        let turn = self.last_turn;
        let Some(own) = self.lanes.get_mut(&lane).filter(|own| own.turn.is_none()) else {
            return;
        };
        own.turn = Some(turn);
        self.turns.push_back((lane, turn));
        if self.turns.len() > 2 * self.lanes.len() + LANES_AHEAD {
            let has = |(lane, turn): &(u64, u64)| {
                let own = self.lanes.get(lane);
                own.is_some_and(|own| own.turn == Some(*turn))
            };
            self.turns.retain(has);
        }
    }

    /// A lane has no turns for now.
    fn take_turn(&mut self, lane: u64) {
        let Some(own) = self.lanes.get_mut(&lane) else {
            return;
        };
        let turn = own.turn.take();
        own.taken = 0;
        if self.turns.front().map(|(_, front)| *front) == turn {
            self.turns.pop_front();
        }
    }

    /// A lane is there; whether it is new.
    fn add(&mut self, lane: u64) -> bool {
        if self.lanes.contains_key(&lane) {
            return false;
        }
        let is_unknown = self.unknown_behind.is_some_and(|behind| lane > behind);
        let window = match is_unknown {
            true => Window::unknown(),
            false => Window::default(),
        };
        self.insert(lane, window);
        true
    }

    fn insert(&mut self, lane: u64, window: Window) {
        let own = OwnLane {
            window,
            ..OwnLane::default()
        };
        self.lanes.insert(lane, own);
        self.give_turn(lane);
    }

    /// Whether a lane has a turn, or may have one.
    pub(crate) fn has_turns(&self) -> bool {
        let has = |(lane, turn): &(u64, u64)| {
            let own = self.lanes.get(lane);
            own.is_some_and(|own| own.turn == Some(*turn))
        };
        !self.is_known() || self.turns.iter().any(has)
    }

    fn is_empty(&self) -> bool {
        self.is_known() && self.lanes.is_empty()
    }
}

impl crate::queue::Queues {
    /// A lane has no turns until [`Self::unpark`].
    pub(crate) fn park(&mut self, lane: Lane) {
        if let Some(ring) = self.ring_mut(lane) {
            ring.take_turn(lane.lane);
        }
    }

    /// A parked lane has turns again.
    pub(crate) fn unpark(&mut self, lane: Lane) {
        if let Some(ring) = self.ring_mut(lane) {
            ring.give_turn(lane.lane);
        }
    }

    fn ring_mut(&mut self, lane: Lane) -> Option<&mut Ring> {
        self.find_mut(lane.queue)?.ring_mut(lane.priority)
    }

    /// Whether a key has a lane of its own here.
    fn has_lane(&self, lane: Lane) -> bool {
        let queue = self.find(lane.queue);
        queue.is_some_and(|queue| queue.lane_window(lane).is_some())
    }
}

/// What the next job of a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The front of this lane, which may be granted.
    Of(Lane),
    /// Something must be read, or is left to another command.
    Later,
    /// There is none that may be granted now.
    Nothing,
}

/// What becomes of the front of a lane that has the turn.
enum Admission {
    Granted,
    /// It stands elsewhere now, or its lane is parked.
    Moved,
    /// Enough was moved by this command.
    Later,
}

impl Engine {
    /// The lane whose front is the next job of a queue. Heads whose time has passed expire on the way;
    /// jobs whose key stands at its limit move to its own lane, which is parked.
    pub(crate) fn next_lane(&mut self, now: Now, number: QueueNumber) -> Next {
        if self.is_queue_at_limit(now, number) {
            return Next::Nothing;
        }
        loop {
            let Some(queue) = self.queues.find_mut(number) else {
                return Next::Nothing;
            };
            let lane = match queue.choose() {
                Choice::Head { priority, lane } => Lane {
                    queue: number,
                    priority,
                    lane,
                },
                Choice::Unread => return Next::Later,
                Choice::Nothing => return Next::Nothing,
            };
            let front = queue
                .lane_window(lane)
                .and_then(|window| window.heads.front());
            let Some(head) = front else {
                return Next::Later;
            };
            if head.is_expired(now.wall) {
                if let Some(head) = self.queues.pop(lane) {
                    self.expire_head(now, head);
                }
                continue;
            }
            let Some(key) = head.key().cloned() else {
                return Next::Of(lane);
            };
            match self.admit(now, lane, &key) {
                Admission::Granted => return Next::Of(lane),
                Admission::Moved => {}
                Admission::Later => return Next::Later,
            }
        }
    }

    /// Whether the front of a lane, whose job has this key, may be granted.
    fn admit(&mut self, now: Now, lane: Lane, key: &Tag) -> Admission {
        let Some(queue) = self.queues.find(lane.queue) else {
            return Admission::Later;
        };
        let front = queue
            .lane_window(lane)
            .and_then(|window| window.heads.front());
        let Some(head) = front else {
            return Admission::Later;
        };
        let number = match (lane.lane, self.keys.remembered(head.id)) {
            (0, Some(number)) => number,
            (0, None) => self.keys.lane_of(&queue.record.namespace, key),
            (own, _) => own,
        };
        let own = Lane {
            lane: number,
            ..lane
        };
        let limit = self.limits.of_key(&queue.record.namespace, key);
        let job = (head.id, head.job.grants());
        let gate = match limit {
            None => Gate::Open,
            Some(limit) => self.gate(now, number, limit, job),
        };
        if lane.lane != 0 {
            if gate == Gate::Open {
                return Admission::Granted;
            }
            self.park(own, gate);
            return Admission::Moved;
        }
        let is_sequence = limit.is_some_and(|limit| limit.sequence);
        // Its own lane goes first: it arrived before, or that must be seen.
        let is_behind = queue.lane_window(own).is_some_and(|window| {
            let first = window.heads.front();
            first.map_or(window.is_behind, |first| {
                arrival(&first.place) < arrival(&head.place)
            })
        });
        self.keys.remember(job.0, number);
        if gate == Gate::Open && !is_sequence && !is_behind {
            return Admission::Granted;
        }
        let Some(left) = self.spills.checked_sub(1) else {
            return Admission::Later;
        };
        self.spills = left;
        self.spill(now, lane, own);
        Admission::Moved
    }

    /// The front of a shared lane moves to its key's own lane.
    fn spill(&mut self, now: Now, shared: Lane, own: Lane) {
        let Some(head) = self.queues.pop(shared) else {
            return;
        };
        self.keys.count_less(own);
        let Head {
            place,
            id,
            group,
            job,
        } = head;
        if let Some(run) = self.runs.get_mut(&place.run) {
            run.heads -= 1;
        }
        self.leave(place.run, place.index);
        self.watch_straggler(place.run, now.mono);
        let mut record = match job {
            HeadJob::Packed(packed) => Box::new(JobRecord::fresh(id, place, packed)),
            HeadJob::Record(record) => record,
        };
        let place = self.group.prepend(own, id, arrival(&place));
        record.lane = own.lane;
        record.place = Some(place);
        self.group.put_job(record.clone());
        self.add_lane(own);
        // It may be granted as soon as its push is durable: where it stands is told by its lease.
        self.stand_in_lane(Head {
            place,
            id,
            group,
            job: HeadJob::Record(record),
        });
    }

    /// Puts a head into its lane, where it has not stood.
    fn stand_in_lane(&mut self, head: Head) {
        self.runs.entry(head.place.run).or_default().heads += 1;
        for evicted in self.queues.insert_head(head) {
            self.forget_head(evicted.place.run);
        }
    }

    /// The lane in which a job of a queue begins to wait at the tail.
    pub(crate) fn lane_to_join(&mut self, queue: QueueNumber, priority: u8, key: &Tag) -> u64 {
        let Some(record) = self.queues.find(queue).map(|queue| &queue.record) else {
            return 0;
        };
        let number = self.keys.lane_of(&record.namespace, key);
        let own = Lane {
            queue,
            priority,
            lane: number,
        };
        let limit = self.limits.of_key(&record.namespace, key);
        let is_sequence = limit.is_some_and(|limit| limit.sequence);
        if is_sequence || self.queues.has_lane(own) || self.keys.counted(own) >= SHARED_MAX {
            self.add_lane(own);
            return number;
        }
        self.keys.count_more(own);
        0
    }

    /// The lane in which a job waits again before the others of its key.
    pub(crate) fn lane_to_lead(&mut self, record: &JobRecord) -> u64 {
        let content = record.content.as_deref();
        let own = Lane {
            queue: record.queue,
            priority: record.priority,
            lane: self.lane_of_job(record.queue, content),
        };
        if own.lane == 0 {
            return 0;
        }
        if self.queues.has_lane(own) || self.is_in_sequence(record.queue, content) {
            self.add_lane(own);
            // The key may let it through where it kept the one in front back.
            self.wake_key(own.lane);
            return own.lane;
        }
        self.keys.count_more(own);
        0
    }

    /// A key has a lane of its own here.
    fn add_lane(&mut self, lane: Lane) {
        let Some(queue) = self.queues.find_mut(lane.queue) else {
            return;
        };
        let rings = queue.rings.get_or_insert_default();
        if let Some(ring) = rings.get_mut(usize::from(lane.priority))
            && ring.add(lane.lane)
        {
            self.keys.add_lane(lane.lane);
        }
    }

    /// A job has left its lane, which goes when it is empty.
    pub(crate) fn has_left_lane(&mut self, now: Mono, lane: Lane, job: (JobId, Option<&Content>)) {
        if lane.lane == 0 {
            let (id, content) = job;
            if content.is_some_and(|content| content.key.is_some()) {
                let known = self.keys.remembered(id);
                let number = known.unwrap_or_else(|| self.lane_of_job(lane.queue, content));
                self.keys.count_less(Lane {
                    lane: number,
                    ..lane
                });
            }
            return;
        }
        if self.queues.is_over_budget() {
            for evicted in self.queues.let_go(lane) {
                self.forget_head(evicted.place.run);
            }
        }
        self.drop_idle_lane(now, lane);
    }

    /// A lane that has nothing is forgotten.
    pub(crate) fn drop_idle_lane(&mut self, now: Mono, lane: Lane) {
        let Some(queue) = self.queues.find_mut(lane.queue) else {
            return;
        };
        let Some(ring) = queue.ring_mut(lane.priority) else {
            return;
        };
        if !ring.window(lane.lane).is_some_and(Window::is_idle) {
            return;
        }
        ring.take_turn(lane.lane);
        ring.lanes.remove(&lane.lane);
        if queue
            .rings
            .iter()
            .flat_map(|it| it.iter())
            .all(Ring::is_empty)
        {
            queue.rings = None;
        }
        self.keys.remove_lane(lane, now);
    }

    /// Takes the front of a lane for a grant: the turn goes on.
    pub(crate) fn take_turn(&mut self, lane: Lane) -> Option<Head> {
        let head = self.queues.pop(lane)?;
        if let Some(queue) = self.queues.find_mut(lane.queue)
            && queue.rings.is_some()
        {
            let limit = head
                .key()
                .and_then(|key| self.limits.of_key(&queue.record.namespace, key));
            let weight = limit.map_or(1, Limit::weight);
            if let Some(ring) = queue.ring_mut(lane.priority) {
                ring.served(lane.lane, weight);
            }
        }
        Some(head)
    }

    /// What must be read before the next jobs of a priority are known, but for its shared lane. One
    /// command reads one slice of unknown lanes.
    pub(crate) fn needs_of_lanes(
        &self,
        queue: QueueNumber,
        priority: u8,
        facts: &Facts,
    ) -> Vec<Need> {
        let Some(ring) = self.queues.find(queue).and_then(|it| it.ring(priority)) else {
            return Vec::new();
        };
        if let Some(after) = ring.unknown_behind {
            let is_same = |need: &Need| {
                matches!(need, Need::Lanes { queue: of, priority: at, .. }
                    if (*of, *at) == (queue, priority))
            };
            let was_read = facts.iter().any(|(need, _)| is_same(need));
            let need = Need::Lanes {
                queue,
                priority,
                after,
                max: LANES_SLICE,
            };
            return if was_read { Vec::new() } else { vec![need] };
        }
        let unread = ring.unread_lanes().flat_map(|(lane, window)| {
            let hold = self.need_of_hold(lane);
            let lane = Lane {
                queue,
                priority,
                lane,
            };
            hold.into_iter()
                .chain([self.need_of_heads(lane, window.end)])
        });
        unread.collect()
    }

    /// Takes in lanes that the store has.
    pub(crate) fn learn_lanes(&mut self, need: &Need, lanes: &[u64], at_end: bool) {
        let Need::Lanes {
            queue,
            priority,
            after,
            ..
        } = *need
        else {
            return;
        };
        let Some(owner) = self.queues.find_mut(queue) else {
            return;
        };
        let Some(ring) = owner.ring_mut(priority) else {
            return;
        };
        if ring.unknown_behind != Some(after) {
            return;
        }
        for lane in lanes {
            if ring.add(*lane) {
                self.keys.add_lane(*lane);
            }
        }
        ring.unknown_behind = match at_end {
            true => None,
            false => lanes.last().copied().or(Some(after)),
        };
        if owner
            .rings
            .iter()
            .flat_map(|it| it.iter())
            .all(Ring::is_empty)
        {
            owner.rings = None;
        }
    }
}
