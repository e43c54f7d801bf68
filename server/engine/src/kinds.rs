//! What became of the leases of each kind since the start of the server.
//!
//! A grant looks its kind up once, and its place in the table goes with the lease. The table is bounded:
//! kinds that come when it is full are not counted. It is in memory only.

use std::collections::BTreeMap;

use foldhash::HashMap;
use ganger_protocol::{Kind, NamespaceName, limits::KINDS_COUNTED_MAX, response::KindView};

/// The place of a kind in the table; one behind its end counts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KindNumber(u16);

impl KindNumber {
    /// A kind that is not counted.
    pub(crate) const NONE: Self = Self(u16::MAX);
}

/// Counters by kind.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    by_name: BTreeMap<NamespaceName, HashMap<Kind, KindNumber>>,
    counted: Vec<KindView>,
}

impl Kinds {
    /// A job of this kind is granted.
    pub(crate) fn granted(&mut self, namespace: &NamespaceName, kind: &Kind) -> KindNumber {
        let known = self
            .by_name
            .get(namespace)
            .and_then(|kinds| kinds.get(kind));
        let number = match known {
            Some(number) => *number,
            None => self.add(namespace, kind),
        };
        self.count(number, |view| view.granted += 1);
        number
    }

    fn add(&mut self, namespace: &NamespaceName, kind: &Kind) -> KindNumber {
        let number = match u16::try_from(self.counted.len()) {
            Ok(number) if self.counted.len() < KINDS_COUNTED_MAX => KindNumber(number),
            Ok(_) | Err(_) => return KindNumber::NONE,
        };
        self.counted.push(KindView::of(kind.clone()));
        let kinds = self.by_name.entry(namespace.clone()).or_default();
        kinds.insert(kind.clone(), number);
        number
    }

    /// Something became of a lease of this kind.
    pub(crate) fn count(&mut self, number: KindNumber, change: impl FnOnce(&mut KindView)) {
        if let Some(view) = self.counted.get_mut(usize::from(number.0)) {
            change(view);
        }
    }

    /// The name of a kind; none of one that is not counted.
    pub(crate) fn name(&self, number: KindNumber) -> Option<&Kind> {
        let view = self.counted.get(usize::from(number.0));
        view.map(|view| &view.kind)
    }

    /// The kinds of a namespace in the order of their names.
    pub(crate) fn of(&self, namespace: &NamespaceName) -> Vec<KindView> {
        let numbers = self.by_name.get(namespace).into_iter().flatten();
        let views = numbers.filter_map(|(_, number)| self.counted.get(usize::from(number.0)));
        let mut views: Vec<KindView> = views.cloned().collect();
        views.sort_by(|one, other| one.kind.as_str().cmp(other.kind.as_str()));
        views
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_kinds_are_counted_as_the_table_takes_and_each_namespace_has_its_own() {
        let mut kinds = Kinds::default();
        let [one, other]: [NamespaceName; 2] = ["one", "other"].map(|it| it.parse().unwrap());
        let kind = |nth: usize| -> Kind { format!("k{nth:04}").parse().unwrap() };
        for nth in 0..KINDS_COUNTED_MAX - 1 {
            kinds.granted(&one, &kind(nth));
        }
        let last = kinds.granted(&other, &kind(0));
        assert_ne!(last, KindNumber::NONE);
        let behind = kinds.granted(&other, &kind(1));
        assert_eq!(behind, KindNumber::NONE);
        kinds.count(behind, |_| panic!("it is not counted"));
        kinds.count(last, |view| view.done += 1);
        kinds.granted(&one, &kind(0));
        assert_eq!(kinds.of(&one).len(), KINDS_COUNTED_MAX - 1);
        assert_eq!((kinds.of(&one)[0].granted, kinds.of(&one)[0].done), (2, 0));
        assert_eq!(
            (kinds.of(&other)[0].granted, kinds.of(&other)[0].done),
            (1, 1)
        );
    }
}
