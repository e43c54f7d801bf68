//! Looks over the MessagePack of a frame as a whole, before any of it is read into a type: one
//! map with string keys, no key twice, no deeper than [`DEPTH_MAX`], nothing behind it. On the
//! way it finds the values of the envelope's own keys.
//!
//! The walk keeps no stack of its own beyond the depth limit and never allocates by an announced
//! length.

use crate::limits::DEPTH_MAX;

/// Why the bytes are not one well-formed map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The bytes end inside of a value.
    #[error("the map ends too early")]
    Truncated,
    /// Bytes follow the map.
    #[error("{extra} bytes follow the map")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// The outermost value is no map.
    #[error("a frame holds one map, this one holds another value")]
    NotAMap,
    /// A key of a map is no UTF-8 string.
    #[error("the keys of a map are strings")]
    KeyNotAString,
    /// A map has the same key twice.
    #[error("a map has the same key twice")]
    DuplicateKey,
    /// Maps and arrays are nested too deeply.
    #[error("maps and arrays may be nested {DEPTH_MAX} deep")]
    TooDeep,
    /// An extension type or a reserved byte.
    #[error("extension types are not used")]
    Extension,
}

/// A value of the outermost map: the bytes of its key, which are UTF-8, and its own, undecoded.
pub type Field<'a> = (&'a [u8], &'a [u8]);

/// Walks `map` and calls `field` with each key of the outermost map and the bytes of its value.
///
/// # Errors
/// When the bytes are anything but one well-formed map.
pub fn scan<'a>(map: &'a [u8], mut field: impl FnMut(Field<'a>)) -> Result<(), ScanError> {
    let mut walk = Walk { rest: map };
    let Head::Map(entries) = walk.head()? else {
        return Err(ScanError::NotAMap);
    };
    let mut keys = Keys::new();
    for _ in 0..entries {
        let key = walk.key()?;
        keys.insert(key)?;
        let value = walk.rest;
        walk.value(1)?;
        field((
            key,
            value
                .get(..value.len() - walk.rest.len())
                .unwrap_or_default(),
        ));
    }
    walk.end()
}

/// Looks over a value of the outermost map by itself.
pub(crate) fn scan_value(value: &[u8]) -> Result<(), ScanError> {
    let mut walk = Walk { rest: value };
    walk.value(1)?;
    walk.end()
}

/// The next value, or the head of a map or array whose items follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Head<'a> {
    Nil,
    Bool(bool),
    /// Zero or more, of whatever width and sign it was written.
    Unsigned(u64),
    /// Below zero.
    Negative(i64),
    Float(f64),
    /// Not yet known to be UTF-8.
    Str(&'a [u8]),
    Bin(&'a [u8]),
    Array(usize),
    Map(usize),
}

/// A walk along the bytes of MessagePack.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Walk<'a> {
    #[inline]
    fn take(&mut self, count: usize) -> Result<&'a [u8], ScanError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(ScanError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], ScanError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(ScanError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn length8(&mut self) -> Result<usize, ScanError> {
        Ok(usize::from(u8::from_be_bytes(self.take_array()?)))
    }

    fn length16(&mut self) -> Result<usize, ScanError> {
        Ok(usize::from(u16::from_be_bytes(self.take_array()?)))
    }

    fn length32(&mut self) -> Result<usize, ScanError> {
        let length = u32::from_be_bytes(self.take_array()?);
        Ok(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn end(&self) -> Result<(), ScanError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(ScanError::Trailing { extra }),
        }
    }

    /// Takes the next value, or the head of a map or array.
    pub(crate) fn head(&mut self) -> Result<Head<'a>, ScanError> {
        self.head_inlined()
    }

    /// Takes a string of up to 31 bytes, as most of them are; `None` leaves whatever there is to
    /// [`Walk::head`].
    #[inline]
    pub(crate) fn short_str(&mut self) -> Option<&'a [u8]> {
        let (first, rest) = self.rest.split_first()?;
        if !(0xa0..=0xbf).contains(first) {
            return None;
        }
        let (text, rest) = rest.split_at_checked(usize::from(first & 0x1f))?;
        self.rest = rest;
        Some(text)
    }

    /// Takes an entry when it has this key; else the walk is over.
    pub(crate) fn value_of(&mut self, key: &[u8]) -> Option<Head<'a>> {
        match self.short_str()? == key {
            true => self.head().ok(),
            false => None,
        }
    }

    /// For whoever needs but a part of what it finds out.
    #[inline(always)]
    fn head_inlined(&mut self) -> Result<Head<'a>, ScanError> {
        let [first] = self.take_array()?;
        let low = usize::from(first & 0x0f);
        Ok(match first {
            0x00..=0x7f => Head::Unsigned(u64::from(first)),
            0x80..=0x8f => Head::Map(low),
            0x90..=0x9f => Head::Array(low),
            0xa0..=0xbf => Head::Str(self.take(usize::from(first & 0x1f))?),
            0xc0 => Head::Nil,
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => return Err(ScanError::Extension),
            0xc2 => Head::Bool(false),
            0xc3 => Head::Bool(true),
            0xc4 => bin(self.length8(), self)?,
            0xc5 => bin(self.length16(), self)?,
            0xc6 => bin(self.length32(), self)?,
            0xca => Head::Float(f64::from(f32::from_be_bytes(self.take_array()?))),
            0xcb => Head::Float(f64::from_be_bytes(self.take_array()?)),
            0xcc => Head::Unsigned(u64::from(u8::from_be_bytes(self.take_array()?))),
            0xcd => Head::Unsigned(u64::from(u16::from_be_bytes(self.take_array()?))),
            0xce => Head::Unsigned(u64::from(u32::from_be_bytes(self.take_array()?))),
            0xcf => Head::Unsigned(u64::from_be_bytes(self.take_array()?)),
            0xd0 => signed(i64::from(i8::from_be_bytes(self.take_array()?))),
            0xd1 => signed(i64::from(i16::from_be_bytes(self.take_array()?))),
            0xd2 => signed(i64::from(i32::from_be_bytes(self.take_array()?))),
            0xd3 => signed(i64::from_be_bytes(self.take_array()?)),
            0xd9 => str(self.length8(), self)?,
            0xda => str(self.length16(), self)?,
            0xdb => str(self.length32(), self)?,
            0xdc => Head::Array(self.length16()?),
            0xdd => Head::Array(self.length32()?),
            0xde => Head::Map(self.length16()?),
            0xdf => Head::Map(self.length32()?),
            0xe0..=0xff => Head::Negative(i64::from(i8::from_be_bytes([first]))),
        })
    }

    fn key(&mut self) -> Result<&'a [u8], ScanError> {
        let key = match self.short_str() {
            Some(key) => key,
            None => match self.head()? {
                Head::Str(key) => key,
                _ => return Err(ScanError::KeyNotAString),
            },
        };
        match key.is_ascii() || std::str::from_utf8(key).is_ok() {
            true => Ok(key),
            false => Err(ScanError::KeyNotAString),
        }
    }

    /// Skips a value that stands `depth` maps and arrays deep.
    fn value(&mut self, depth: usize) -> Result<(), ScanError> {
        let deeper = depth + 1;
        match self.head_inlined()? {
            Head::Nil
            | Head::Bool(_)
            | Head::Unsigned(_)
            | Head::Negative(_)
            | Head::Float(_)
            | Head::Str(_)
            | Head::Bin(_) => Ok(()),
            Head::Array(_) | Head::Map(_) if deeper > DEPTH_MAX => Err(ScanError::TooDeep),
            Head::Array(items) => (0..items).try_for_each(|_| self.value(deeper)),
            Head::Map(entries) => self.entries(entries, deeper),
        }
    }

    /// Skips so many entries of a map, whose values stand `depth` maps and arrays deep.
    pub(crate) fn entries(&mut self, entries: usize, depth: usize) -> Result<(), ScanError> {
        let mut keys = Keys::new();
        for _ in 0..entries {
            keys.insert(self.key()?)?;
            self.value(depth)?;
        }
        Ok(())
    }
}

fn bin<'a>(length: Result<usize, ScanError>, walk: &mut Walk<'a>) -> Result<Head<'a>, ScanError> {
    walk.take(length?).map(Head::Bin)
}

fn str<'a>(length: Result<usize, ScanError>, walk: &mut Walk<'a>) -> Result<Head<'a>, ScanError> {
    walk.take(length?).map(Head::Str)
}

fn signed(number: i64) -> Head<'static> {
    match u64::try_from(number) {
        Ok(number) => Head::Unsigned(number),
        Err(_below_zero) => Head::Negative(number),
    }
}

/// The keys of one map so far. Maps of the protocol are small; a large one (headers made to hurt)
/// goes over to a set. Most keys differ in length or ends, which a few bits remember, so that
/// texts are seldom compared.
struct Keys<'a> {
    bits: u64,
    few: [&'a [u8]; 16],
    count: usize,
    many: std::collections::BTreeSet<&'a [u8]>,
}

impl<'a> Keys<'a> {
    fn new() -> Self {
        Self {
            bits: 0,
            few: [&[]; 16],
            count: 0,
            many: std::collections::BTreeSet::new(),
        }
    }

    #[inline]
    fn insert(&mut self, key: &'a [u8]) -> Result<(), ScanError> {
        let bit = 1_u64.rotate_left(mix(key));
        if self.bits & bit != 0 {
            let seen = self.few.get(..self.count).unwrap_or_default();
            if seen.contains(&key) || self.many.contains(key) {
                return Err(ScanError::DuplicateKey);
            }
        }
        self.bits |= bit;
        match self.few.get_mut(self.count) {
            Some(place) => {
                *place = key;
                self.count += 1;
            }
            None => {
                self.many.insert(key);
            }
        }
        Ok(())
    }
}

/// A number that equal keys share, and few others.
#[inline]
fn mix(key: &[u8]) -> u32 {
    let [first, last] = [key.first(), key.last()].map(|byte| u32::from(*byte.unwrap_or(&0)));
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    length
        .wrapping_add(first.wrapping_mul(5))
        .wrapping_add(last.wrapping_mul(11))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(map: &[u8], expected: Result<(), ScanError>) {
        assert_eq!(scan(map, |_| ()), expected, "{map:02x?}");
    }

    fn nested(depth: usize) -> Vec<u8> {
        let mut map = vec![0x81, 0xa1, b'k'];
        map.extend(std::iter::repeat_n(0x91, depth - 1));
        map.push(0xc0);
        map
    }

    #[test]
    fn only_one_well_formed_map_passes() {
        check(b"\x80", Ok(()));
        check(b"\x81\xa1a\x01", Ok(()));
        check(b"", Err(ScanError::Truncated));
        check(b"\x81\xa1a", Err(ScanError::Truncated));
        check(b"\x81\xa1a\xc6\xff\xff\xff\xff", Err(ScanError::Truncated));
        check(b"\xdf\xff\xff\xff\xff", Err(ScanError::Truncated));
        check(b"\x80\x00\x00", Err(ScanError::Trailing { extra: 2 }));
        check(b"\x90", Err(ScanError::NotAMap));
        check(b"\x81\x01\x01", Err(ScanError::KeyNotAString));
        check(b"\x81\xa1\xff\x01", Err(ScanError::KeyNotAString));
        check(b"\x82\xa1a\x01\xa1a\x02", Err(ScanError::DuplicateKey));
        check(
            b"\x81\xa1h\x82\xa1a\x01\xa1a\x02",
            Err(ScanError::DuplicateKey),
        );
        check(b"\x81\xa1a\xd4\x00\x00", Err(ScanError::Extension));
        check(b"\x81\xa1a\xc1", Err(ScanError::Extension));
    }

    #[test]
    fn depth_holds_at_the_limit_and_not_past_it() {
        check(&nested(DEPTH_MAX), Ok(()));
        check(&nested(DEPTH_MAX + 1), Err(ScanError::TooDeep));
        check(&nested(1_000_000), Err(ScanError::TooDeep));
    }

    #[test]
    fn a_duplicate_is_found_among_many_keys() {
        let keys: Vec<String> = (0..40).map(|n| format!("{n:02}")).collect();
        for twice in [0, 15, 16, 39] {
            let mut map = vec![0xde, 0, 41];
            for key in keys.iter().chain([&keys[twice]]) {
                map.push(0xa2);
                map.extend(key.as_bytes());
                map.push(0xc0);
            }
            check(&map, Err(ScanError::DuplicateKey));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_scanned_without_a_panic(map in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = scan(&map, |_| ());
        }
    }
}
