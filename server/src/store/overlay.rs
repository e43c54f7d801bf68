//! What was committed and is not yet in the table: two layers of keys and values that every read
//! merges with the table's. Beside them, some values of the table that were read ahead.
//!
//! Commits go into the active layer. A checkpoint freezes it, writes it to the table in slices,
//! and drops it; meanwhile a new active layer takes what comes. Nothing here does IO or waits.

use std::{
    collections::{
        BTreeMap, BTreeSet, HashMap,
        btree_map::{self, Entry},
    },
    iter::Peekable,
    sync::Arc,
};

use bytes::Bytes;
use foldhash::fast::RandomState;
use ganger_engine::records::GroupNumber;

use super::{
    group::{Effect, Physical},
    keys::{Key, Prefix},
    table::{Order, Span, wants_room},
};

/// What an entry takes beside its value: its key, its slot, its share of a node.
const ENTRY_BYTES: usize = 144;

/// What is read ahead takes no more than this.
const AHEAD_BYTES_MAX: usize = 16 << 20;

/// The layers over the table.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    active: Layer,
    frozen: Option<Arc<Layer>>,
    /// Values of the table, as long as it has them.
    ahead: HashMap<Key, Bytes, RandomState>,
    ahead_bytes: usize,
    /// Counts the layers that were dropped: a scan that sees it change begins again, since rows
    /// may have moved from the layer to the table behind its back.
    generation: u64,
    /// While the log is replayed, nothing is known to be absent from the table: a checkpoint that
    /// was cut short may have written it.
    is_replaying: bool,
}

/// The net effect of some groups that follow each other.
#[derive(Debug, Default)]
pub(super) struct Layer {
    entries: BTreeMap<Key, Slot>,
    /// Everything below the layer that begins so is gone.
    dropped: BTreeSet<Key>,
    bytes: usize,
    last: GroupNumber,
}

/// A value or a deletion.
#[derive(Debug)]
pub(super) struct Slot {
    value: Option<Bytes>,
    /// Whether neither the layer below nor the table can have this key.
    is_fresh: bool,
}

/// What the overlay knows of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It has this value.
    Value(Bytes),
    /// It is deleted.
    Gone,
    /// Ask the table.
    Nothing,
}

impl Overlay {
    /// An overlay into which the log is replayed.
    pub(super) fn replaying() -> Self {
        Self {
            is_replaying: true,
            ..Self::default()
        }
    }

    /// From here on, groups are new.
    pub(super) fn end_replay(&mut self) {
        self.is_replaying = false;
    }

    /// Adds a group.
    pub(super) fn apply(&mut self, number: GroupNumber, group: &Physical) {
        for op in &group.ops {
            match &op.effect {
                Effect::Put(at) => {
                    let value = group.body.slice(at.clone());
                    let is_new = !self.is_replaying;
                    self.active.put(op.key, value, is_new);
                }
                Effect::Delete => self.active.delete(op.key),
                Effect::DeletePrefix => self.active.delete_prefix(op.key),
            }
        }
        self.active.last = number;
    }

    /// Bytes that both layers take, about.
    pub(super) fn bytes(&self) -> usize {
        self.active.bytes + self.frozen.as_ref().map_or(0, |layer| layer.bytes)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes the active layer the frozen one.
    pub(super) fn freeze(&mut self) -> Arc<Layer> {
        let layer = Arc::new(std::mem::take(&mut self.active));
        self.active.last = layer.last;
        self.frozen = Some(Arc::clone(&layer));
        layer
    }

    /// Drops the frozen layer: the table has all of it.
    pub(super) fn drop_frozen(&mut self) -> Option<Arc<Layer>> {
        self.generation += 1;
        self.frozen.take()
    }

    /// What is known of a key.
    pub(super) fn find(&self, key: &Key) -> Known {
        let layers = [Some(&self.active), self.frozen.as_deref()];
        for layer in layers.into_iter().flatten() {
            match layer.entries.get(key) {
                Some(Slot {
                    value: Some(value), ..
                }) => return Known::Value(value.clone()),
                Some(Slot { value: None, .. }) => return Known::Gone,
                None if layer.drops(key) => return Known::Gone,
                None => {}
            }
        }
        match self.ahead.get(key) {
            Some(value) => Known::Value(value.clone()),
            None => Known::Nothing,
        }
    }

    pub(super) fn has_room_ahead(&self) -> bool {
        self.ahead_bytes < AHEAD_BYTES_MAX
    }

    /// Keeps a value that the table had in a generation, unless it may have another one by now.
    pub(super) fn keep_ahead(&mut self, generation: u64, key: Key, value: Bytes) {
        if generation == self.generation && self.find(&key) == Known::Nothing {
            self.ahead_bytes += ENTRY_BYTES + value.len();
            self.ahead.insert(key, value);
        }
    }

    /// The table has got something else at these keys; a layer still has it, too. With what left a
    /// scheduled run goes the run: if not all have left, it is read again when the next are due.
    pub(super) fn forget_ahead(&mut self, batch: &[(Key, Option<Bytes>)]) {
        if self.ahead.is_empty() {
            return;
        }
        let runs = batch.iter().filter_map(|(key, _)| key.to_left());
        let runs = runs.map(|run| Key::run(&run)).collect::<Vec<_>>();
        for key in batch.iter().map(|(key, _)| key).chain(&runs) {
            if let Some(value) = self.ahead.remove(key) {
                self.ahead_bytes -= ENTRY_BYTES + value.len();
            }
        }
    }

    /// Merges rows of the table, which are all that it has in `span`, with the layers: at most
    /// `max` rows.
    pub(super) fn merge(
        &self,
        span: &Span,
        table: Vec<(Key, Bytes)>,
        max: usize,
    ) -> Vec<(Key, Bytes)> {
        let empty = Layer::default();
        let frozen = self.frozen.as_deref().unwrap_or(&empty);
        let mut active_rows = Rows::new(&self.active, span).peekable();
        let mut frozen_rows = Rows::new(frozen, span).peekable();
        let mut table_rows = table.into_iter().peekable();
        let mut merged = Vec::new();
        while merged.len() < max {
            let heads = [
                active_rows.peek().map(|(key, _)| **key),
                frozen_rows.peek().map(|(key, _)| **key),
                table_rows.peek().map(|(key, _)| *key),
            ];
            let heads = heads.into_iter().flatten();
            let next = match span.order {
                Order::Ascending => heads.min(),
                Order::Descending => heads.max(),
            };
            let Some(key) = next else { break };
            let active = take_row(&mut active_rows, &key);
            let frozen_slot = take_row(&mut frozen_rows, &key);
            let stored = table_rows.next_if(|(at, _)| *at == key);
            let value = match (active, frozen_slot) {
                (Some(slot), _) => slot.value.clone(),
                (None, _) if self.active.drops(&key) => None,
                (None, Some(slot)) => slot.value.clone(),
                (None, None) if frozen.drops(&key) => None,
                (None, None) => stored.map(|(_, value)| value),
            };
            merged.extend(value.map(|value| (key, value)));
        }
        merged
    }
}

fn take_row<'a>(
    rows: &mut Peekable<impl Iterator<Item = (&'a Key, &'a Slot)>>,
    key: &Key,
) -> Option<&'a Slot> {
    rows.next_if(|(at, _)| *at == key).map(|(_, slot)| slot)
}

impl Layer {
    fn put(&mut self, key: Key, value: Bytes, is_new: bool) {
        let bytes = value.len();
        match self.entries.entry(key) {
            Entry::Vacant(entry) => {
                let is_fresh = is_new && key.prefix().is_some_and(|p| p.is_written_once());
                entry.insert(Slot {
                    value: Some(value),
                    is_fresh,
                });
                self.bytes += ENTRY_BYTES + bytes;
            }
            Entry::Occupied(mut entry) => {
                let before = entry.get_mut().value.replace(value);
                self.bytes += bytes;
                self.bytes -= before.map_or(0, |value| value.len());
            }
        }
    }

    fn delete(&mut self, key: Key) {
        match self.entries.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Slot {
                    value: None,
                    is_fresh: false,
                });
                self.bytes += ENTRY_BYTES;
            }
            Entry::Occupied(mut entry) => {
                let before = entry.get_mut().value.take();
                self.bytes -= before.map_or(0, |value| value.len());
                if entry.get().is_fresh {
                    entry.remove();
                    self.bytes -= ENTRY_BYTES;
                }
            }
        }
    }

    fn delete_prefix(&mut self, prefix: Key) {
        let end = prefix.after_prefix();
        let gone: Vec<_> = self
            .entries
            .range(prefix..end)
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            if let Some(slot) = self.entries.remove(&key) {
                self.bytes -= ENTRY_BYTES + slot.value.map_or(0, |value| value.len());
            }
        }
        if self.dropped.insert(prefix) {
            self.bytes += ENTRY_BYTES;
        }
    }

    /// Whether everything below this layer with this key is gone.
    fn drops(&self, key: &Key) -> bool {
        !self.dropped.is_empty()
            && self
                .dropped
                .range(..=*key)
                .next_back()
                .is_some_and(|prefix| key.as_slice().starts_with(prefix.as_slice()))
    }

    /// The last group in it.
    pub(super) fn last(&self) -> GroupNumber {
        self.last
    }

    /// Prefixes of which the table must lose everything, before the entries are written.
    pub(super) fn dropped(&self) -> impl Iterator<Item = &Key> {
        self.dropped.iter()
    }

    /// At most `max` keys behind another one for whose values the table makes room.
    pub(super) fn large(&self, after: Option<&Key>, max: usize) -> Vec<Key> {
        let after = after.map_or_else(Key::lowest, Key::after);
        let runs = [Prefix::Run, Prefix::ScheduledRun].map(|prefix| Span::of(Key::of(prefix)));
        let runs = runs.into_iter().flat_map(|span| {
            let from = span.from.max(after);
            self.entries.range(from..span.to.max(from))
        });
        let large = runs.filter(|(key, slot)| wants_room(key, slot.value.as_ref()));
        large.take(max).map(|(key, _)| *key).collect()
    }

    /// At most `max` entries behind a key: puts and deletions, as the table takes them.
    pub(super) fn slice(&self, after: Option<&Key>, max: usize) -> Vec<(Key, Option<Bytes>)> {
        let from = after.map_or_else(Key::lowest, Key::after);
        self.entries
            .range(from..)
            .take(max)
            .map(|(key, slot)| (*key, slot.value.clone()))
            .collect()
    }
}

/// The entries of a layer in a span, in its order.
struct Rows<'a> {
    range: btree_map::Range<'a, Key, Slot>,
    order: Order,
}

impl<'a> Rows<'a> {
    fn new(layer: &'a Layer, span: &Span) -> Self {
        let to = span.to.max(span.from);
        Self {
            range: layer.entries.range(span.from..to),
            order: span.order,
        }
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = (&'a Key, &'a Slot);

    fn next(&mut self) -> Option<Self::Item> {
        match self.order {
            Order::Ascending => self.range.next(),
            Order::Descending => self.range.next_back(),
        }
    }
}
