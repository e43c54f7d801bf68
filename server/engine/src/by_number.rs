//! A map by lease numbers. They nearly always come in their order, and go in about the same: then an entry
//! is put and taken without a search.

use std::collections::VecDeque;

use ganger_protocol::LeaseId;

/// Gaps that are left alone.
const SLACK: usize = 32;

/// Room that is kept once nothing is left: who takes a hundred at a time needs it again at once.
const ROOM_KEPT: usize = 128;

/// What stands under the number of a lease.
#[derive(Debug)]
pub(crate) struct ByNumber<T> {
    /// In the order of their numbers. What is gone leaves a gap behind; at either end there is none.
    entries: VecDeque<(LeaseId, Option<T>)>,
    count: usize,
}

impl<T> Default for ByNumber<T> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            count: 0,
        }
    }
}

impl<T> ByNumber<T> {
    pub(crate) fn insert(&mut self, number: LeaseId, value: T) {
        if self.entries.back().is_none_or(|(last, _)| *last < number) {
            self.entries.push_back((number, Some(value)));
            self.count += 1;
            return;
        }
        match self.place(number) {
            Ok(at) => {
                if let Some((_, slot)) = self.entries.get_mut(at) {
                    self.count += usize::from(slot.is_none());
                    *slot = Some(value);
                }
            }
            Err(at) => {
                self.entries.insert(at, (number, Some(value)));
                self.count += 1;
            }
        }
    }

    pub(crate) fn remove(&mut self, number: LeaseId) -> Option<T> {
        let at = self.place(number).ok()?;
        let value = self.entries.get_mut(at)?.1.take()?;
        self.count -= 1;
        self.close_gaps();
        Some(value)
    }

    pub(crate) fn get(&self, number: LeaseId) -> Option<&T> {
        self.entries.get(self.place(number).ok()?)?.1.as_ref()
    }

    /// Gives back most of the room that is not used.
    pub(crate) fn shrink(&mut self) {
        if self.entries.capacity() > 4 * self.count + SLACK {
            self.entries.retain(|(_, value)| value.is_some());
            self.entries.shrink_to(2 * self.count);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them in the order of their numbers.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (LeaseId, &T)> {
        let entries = self.entries.iter();
        entries.filter_map(|(number, value)| Some((*number, value.as_ref()?)))
    }

    /// What is there, in the order of the numbers.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().filter_map(|(_, value)| value)
    }

    /// Where this number stands, or would.
    fn place(&self, number: LeaseId) -> Result<usize, usize> {
        // As far from the first as the number is, where none is missing in between.
        let first = self.entries.front().map_or(number, |(first, _)| *first);
        let at = usize::try_from(number.0.saturating_sub(first.0)).unwrap_or(usize::MAX);
        match self.entries.get(at) {
            Some((found, _)) if *found == number => Ok(at),
            _ => self
                .entries
                .binary_search_by_key(&number, |(number, _)| *number),
        }
    }

    fn close_gaps(&mut self) {
        while let Some((_, None)) = self.entries.front() {
            self.entries.pop_front();
        }
        while let Some((_, None)) = self.entries.back() {
            self.entries.pop_back();
        }
        if self.entries.len() > SLACK + 2 * self.count {
            self.entries.retain(|(_, value)| value.is_some());
        }
        if self.entries.is_empty() && self.entries.capacity() > ROOM_KEPT {
            self.entries = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Numbers that come in order but for some, and those that go.
    fn steps() -> impl Strategy<Value = Vec<(bool, u64)>> {
        prop::collection::vec((prop::bool::weighted(0.6), 0_u64..200), 0..400)
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in steps(), in_order: bool) {
            let (mut map, mut model) = (ByNumber::default(), BTreeMap::new());
            for (nth, (inserts, number)) in (0..).zip(steps) {
                let number = LeaseId(if in_order && inserts { 1000 + nth } else { number + 900 });
                if inserts {
                    map.insert(number, nth);
                    model.insert(number, nth);
                } else {
                    prop_assert_eq!(map.remove(number), model.remove(&number));
                }
                prop_assert_eq!(map.get(number), model.get(&number));
                prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
                prop_assert!(map.entries.len() <= SLACK + 2 * map.len());
            }
            let entries: Vec<_> = map.iter().map(|(number, value)| (number, *value)).collect();
            prop_assert_eq!(entries, model.clone().into_iter().collect::<Vec<_>>());
            prop_assert!(map.into_values().eq(model.into_values()));
        }
    }

    #[test]
    fn one_that_is_left_of_many_keeps_little_room() {
        let mut map = ByNumber::default();
        for number in 0..1000 {
            map.insert(LeaseId(number), number);
        }
        for number in (0..500).chain(501..1000) {
            map.remove(LeaseId(number));
            map.shrink();
        }
        assert!(map.entries.capacity() <= 4 + SLACK);
        assert_eq!(map.get(LeaseId(500)), Some(&500));
    }

    #[test]
    fn room_for_many_is_given_back() {
        let mut map = ByNumber::default();
        for number in 0..1000 {
            map.insert(LeaseId(number), ());
        }
        for number in 0..1000 {
            assert_eq!(map.remove(LeaseId(number)), Some(()));
        }
        assert_eq!(map.entries.capacity(), 0);
    }
}
