//! Durations such as `5m` and sizes such as `64MiB`, in the file, the environment and on the
//! command line alike.

use std::{fmt, str::FromStr};

use ganger_protocol::DurationMs;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No duration.
    #[error("{actual:?} is no duration such as 500ms, 5s, 1h30m or 2d")]
    Span {
        /// What came.
        actual: String,
    },
    /// No size.
    #[error("{actual:?} is no size such as 512, 64KiB, 64MiB or 1GiB")]
    Size {
        /// What came.
        actual: String,
    },
}

const SPANS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

const SIZES: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A duration: numbers with `d`, `h`, `m`, `s` or `ms`, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub DurationMs);

impl Span {
    /// For timers.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.0)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = || UnitError::Span {
            actual: text.to_owned(),
        };
        let (mut rest, mut total) = (text.trim(), 0_u64);
        if rest == "0" {
            return Ok(Self(DurationMs::ZERO));
        }
        while !rest.is_empty() {
            let (count, tail) = number(rest).ok_or_else(refused)?;
            let end = tail
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let (_, ms) = SPANS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(refused)?;
            let part = count.checked_mul(*ms).ok_or_else(refused)?;
            total = total.checked_add(part).ok_or_else(refused)?;
            rest = tail.trim_start();
        }
        if text.trim().is_empty() {
            Err(refused())
        } else {
            Ok(Self(DurationMs(total)))
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.0;
        if rest == 0 {
            return f.pad("0s");
        }
        let mut text = String::new();
        for (unit, ms) in SPANS {
            if rest >= ms {
                text.push_str(&(rest / ms).to_string());
                text.push_str(unit);
                rest %= ms;
            }
        }
        f.pad(&text)
    }
}

/// A size in bytes: a number, or one with `KiB`, `MiB`, `GiB`, `TiB`, `KB`, `MB`, `GB` or `B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Size(pub u64);

impl Size {
    /// So many MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// For counts in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refused = || UnitError::Size {
            actual: text.to_owned(),
        };
        let (count, unit) = number(text.trim()).ok_or_else(refused)?;
        let unit = match unit.trim_start() {
            "" => "B",
            unit => unit,
        };
        let (_, bytes) = SIZES
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(refused)?;
        count.checked_mul(*bytes).map(Self).ok_or_else(refused)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SIZES
            .iter()
            .filter(|(name, _)| name.ends_with("iB") || *name == "B");
        for (unit, bytes) in binary {
            if self.0 >= *bytes && self.0.is_multiple_of(*bytes) {
                return f.pad(&format!("{}{unit}", self.0 / bytes));
            }
        }
        f.pad("0B")
    }
}

/// The digits in front of a text, and the rest.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Units {
            expected: "a duration such as \"5m\"",
            number: None,
        })
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Units {
            expected: "a size such as \"64MiB\", or bytes",
            number: Some(Self),
        })
    }
}

/// Reads text with units, and a bare number where one says enough.
struct Units<T> {
    expected: &'static str,
    number: Option<fn(u64) -> T>,
}

impl<T: FromStr<Err = UnitError>> de::Visitor<'_> for Units<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match (self.number, u64::try_from(number)) {
            (Some(read), Ok(number)) => Ok(read(number)),
            (Some(_) | None, _) => Err(E::invalid_type(de::Unexpected::Signed(number), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_read_back() {
        for (text, ms, shown) in [
            ("0", 0, "0s"),
            ("500ms", 500, "500ms"),
            ("5s", 5_000, "5s"),
            ("90s", 90_000, "1m30s"),
            ("5m", 300_000, "5m"),
            ("1h 30m", 5_400_000, "1h30m"),
            ("2d", 172_800_000, "2d"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.0.0, span.to_string().as_str()), (ms, shown), "{text}");
            assert_eq!(shown.parse(), Ok(span));
        }
        for text in ["", "5", "5x", "-5s", "1.5s", "s", "99999999999999999999d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units_and_read_back() {
        for (text, bytes, shown) in [
            ("0", 0, "0B"),
            ("512", 512, "512B"),
            ("4KiB", 4_096, "4KiB"),
            ("64 MiB", 64 << 20, "64MiB"),
            ("1536KiB", 1_536 << 10, "1536KiB"),
            ("1KB", 1_000, "1000B"),
            ("2TiB", 2 << 40, "2TiB"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(
                (size.0, size.to_string().as_str()),
                (bytes, shown),
                "{text}"
            );
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for text in ["", "MiB", "5mb", "-1", "1.5GiB", "99999999TiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
