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

/// A value of the outermost map: its bytes, undecoded.
pub type Field<'a> = (&'a str, &'a [u8]);

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
    match walk.rest.len() {
        0 => Ok(()),
        extra => Err(ScanError::Trailing { extra }),
    }
}

/// What the first byte of a value announces.
enum Head<'a> {
    Scalar,
    Str(&'a [u8]),
    Array(usize),
    Map(usize),
}

struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ScanError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(ScanError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// An unsigned length of `bytes` bytes.
    fn length(&mut self, bytes: usize) -> Result<usize, ScanError> {
        let digits = self.take(bytes)?;
        Ok(digits
            .iter()
            .fold(0, |length, digit| length << 8 | usize::from(*digit)))
    }

    fn head(&mut self) -> Result<Head<'a>, ScanError> {
        let [first] = *self.take(1)? else {
            return Err(ScanError::Truncated);
        };
        let low = usize::from(first & 0x0f);
        let scalar = match first {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
            0x80..=0x8f => return Ok(Head::Map(low)),
            0x90..=0x9f => return Ok(Head::Array(low)),
            0xa0..=0xbf => return Ok(Head::Str(self.take(usize::from(first & 0x1f))?)),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => return Err(ScanError::Extension),
            0xc4 => self.length(1)?,
            0xc5 => self.length(2)?,
            0xc6 => self.length(4)?,
            0xca => 4,
            0xcb => 8,
            0xcc | 0xd0 => 1,
            0xcd | 0xd1 => 2,
            0xce | 0xd2 => 4,
            0xcf | 0xd3 => 8,
            0xd9..=0xdb => {
                let length = self.length(1 << (first - 0xd9))?;
                return Ok(Head::Str(self.take(length)?));
            }
            0xdc => return Ok(Head::Array(self.length(2)?)),
            0xdd => return Ok(Head::Array(self.length(4)?)),
            0xde => return Ok(Head::Map(self.length(2)?)),
            0xdf => return Ok(Head::Map(self.length(4)?)),
        };
        self.take(scalar)?;
        Ok(Head::Scalar)
    }

    fn key(&mut self) -> Result<&'a str, ScanError> {
        let Head::Str(key) = self.head()? else {
            return Err(ScanError::KeyNotAString);
        };
        std::str::from_utf8(key).or(Err(ScanError::KeyNotAString))
    }

    /// Skips a value that stands `depth` maps and arrays deep.
    fn value(&mut self, depth: usize) -> Result<(), ScanError> {
        let deeper = depth + 1;
        match self.head()? {
            Head::Scalar | Head::Str(_) => Ok(()),
            Head::Array(_) | Head::Map(_) if deeper > DEPTH_MAX => Err(ScanError::TooDeep),
            Head::Array(items) => (0..items).try_for_each(|_| self.value(deeper)),
            Head::Map(entries) => {
                let mut keys = Keys::new();
                for _ in 0..entries {
                    keys.insert(self.key()?)?;
                    self.value(deeper)?;
                }
                Ok(())
            }
        }
    }
}

/// The keys of one map so far. Maps of the protocol are small; a large one (headers made to hurt)
/// goes over to a set.
struct Keys<'a> {
    few: [&'a str; 16],
    count: usize,
    many: std::collections::BTreeSet<&'a str>,
}

impl<'a> Keys<'a> {
    fn new() -> Self {
        Self {
            few: [""; 16],
            count: 0,
            many: std::collections::BTreeSet::new(),
        }
    }

    fn insert(&mut self, key: &'a str) -> Result<(), ScanError> {
        let seen = self.few.get(..self.count).unwrap_or_default();
        if seen.contains(&key) || self.many.contains(key) {
            return Err(ScanError::DuplicateKey);
        }
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
