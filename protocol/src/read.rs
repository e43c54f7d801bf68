//! MessagePack into types, more strictly than serde asks for: a struct is a map (never an array of
//! its values), text is a string, bytes are bin, an enum is its word. Nothing is allocated by an
//! announced length.
//!
//! Either the bytes have passed [`crate::scan`], or they are read [`plainly`]: then a map of free keys is
//! scanned when it is come to, and a key that is no field of its struct ends the reading.

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, MapAccess, SeqAccess, Unexpected, Visitor,
        value::BorrowedStrDeserializer,
    },
    forward_to_deserialize_any,
};

use crate::{
    limits::DEPTH_MAX,
    scan::{Head, ScanError, Walk},
};

/// Why bytes are not the type they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("a string is UTF-8")]
    NotUtf8,
    #[error("not plain")]
    NotPlain,
    #[error("{0}")]
    Type(String),
}

impl de::Error for ReadError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Type(message.to_string())
    }
}

/// Reads fields that fill `rest`, `entries` of a map whose head is in front of it, and finds them well
/// formed on the way. `None` when they are not of that type, or not plain.
pub(crate) fn plainly<'de, T: Deserialize<'de>>(rest: &'de [u8], entries: usize) -> Option<T> {
    let mut reader = Reader {
        is_plain: true,
        entries: Some(entries),
        ..Reader::new(rest)
    };
    let fields = T::deserialize(&mut reader).ok()?;
    reader.walk.rest.is_empty().then_some(fields)
}

/// Reads a value that fills `bytes`, which have been scanned.
pub(crate) fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, ReadError> {
    let mut reader = Reader::new(bytes);
    let value = T::deserialize(&mut reader)?;
    match reader.walk.rest.len() {
        0 => Ok(value),
        extra => Err(ScanError::Trailing { extra }.into()),
    }
}

/// A serde deserializer.
#[derive(Debug)]
pub(crate) struct Reader<'de> {
    walk: Walk<'de>,
    keys_as_text: bool,
    /// What comes has not been scanned.
    is_plain: bool,
    /// Maps and arrays around the next value.
    depth: usize,
    /// Entries of the outermost map, when its head was taken already.
    entries: Option<usize>,
}

impl<'de> Reader<'de> {
    fn new(bytes: &'de [u8]) -> Self {
        Self {
            walk: Walk { rest: bytes },
            keys_as_text: false,
            is_plain: false,
            depth: 0,
            entries: None,
        }
    }

    /// A reader for [`serde_path_to_error`], which follows keys that are text.
    pub(crate) fn with_path(bytes: &'de [u8]) -> Self {
        Self {
            keys_as_text: true,
            ..Self::new(bytes)
        }
    }

    fn visit<V: Visitor<'de>>(
        &mut self,
        head: Head<'de>,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match head {
            Head::Nil => visitor.visit_unit(),
            Head::Bool(value) => visitor.visit_bool(value),
            Head::Unsigned(number) => visitor.visit_u64(number),
            Head::Negative(number) => visitor.visit_i64(number),
            Head::Float(number) => visitor.visit_f64(number),
            Head::Str(bytes) => visitor.visit_borrowed_str(text(bytes)?),
            Head::Bin(bytes) => visitor.visit_borrowed_bytes(bytes),
            Head::Array(left) => {
                let mut items = Items::begin(self, left)?;
                let value = visitor.visit_seq(&mut items)?;
                items.end(value)
            }
            Head::Map(left) if self.is_plain => {
                let mut ahead = Walk {
                    rest: self.walk.rest,
                };
                ahead.entries(left, self.depth + 1)?;
                self.is_plain = false;
                let value = self.visit_map(left, visitor);
                self.is_plain = true;
                value
            }
            Head::Map(left) => self.visit_map(left, visitor),
        }
    }

    fn visit_map<V: Visitor<'de>>(
        &mut self,
        entries: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let mut items = Items::begin(self, entries)?;
        let value = visitor.visit_map(&mut items)?;
        items.end(value)
    }

    /// Takes a string, of which nothing is known but that it is one.
    #[inline]
    fn str<V: Visitor<'de>>(&mut self, visitor: &V) -> Result<&'de [u8], ReadError> {
        if let Some(text) = self.walk.short_str() {
            return Ok(text);
        }
        match self.walk.head()? {
            Head::Str(bytes) => Ok(bytes),
            head => Err(unexpected(head, visitor)),
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, ReadError> {
    std::str::from_utf8(bytes).or(Err(ReadError::NotUtf8))
}

fn unexpected<'de, V: Visitor<'de>>(head: Head<'_>, visitor: &V) -> ReadError {
    let found = match head {
        Head::Nil => Unexpected::Unit,
        Head::Bool(value) => Unexpected::Bool(value),
        Head::Unsigned(number) => Unexpected::Unsigned(number),
        Head::Negative(number) => Unexpected::Signed(number),
        Head::Float(number) => Unexpected::Float(number),
        Head::Str(_) => Unexpected::Other("string"),
        Head::Bin(_) => Unexpected::Other("bin"),
        Head::Array(_) => Unexpected::Seq,
        Head::Map(_) => Unexpected::Map,
    };
    de::Error::invalid_type(found, visitor)
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let head = self.walk.head()?;
        self.visit(head, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.walk.rest.split_first() {
            Some((0xc0, rest)) => {
                self.walk.rest = rest;
                visitor.visit_none()
            }
            Some(_) | None => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let head = match self.entries.take() {
            Some(entries) => Head::Map(entries),
            None => self.walk.head()?,
        };
        match head {
            Head::Map(entries) => self.visit_map(entries, visitor),
            head => Err(unexpected(head, &visitor)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let bytes = self.str(&visitor)?;
        visitor.visit_borrowed_str(text(bytes)?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    /// Fields are told apart by bytes; a scan has found their names to be UTF-8, or they must be known
    /// ones. Only who follows the path wants them as text.
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let bytes = self.str(&visitor)?;
        match self.keys_as_text {
            true => visitor.visit_borrowed_str(text(bytes)?),
            false => visitor.visit_borrowed_bytes(bytes),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.walk.head()? {
            Head::Bin(bytes) => visitor.visit_borrowed_bytes(bytes),
            head => Err(unexpected(head, &visitor)),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let bytes = self.str(&visitor)?;
        visitor.visit_enum(BorrowedStrDeserializer::new(text(bytes)?))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.is_plain {
            return Err(ReadError::NotPlain);
        }
        let mut left = 1_usize;
        while left > 0 {
            left -= 1;
            left = left.saturating_add(match self.walk.head()? {
                Head::Array(items) => items,
                Head::Map(entries) => entries.saturating_mul(2),
                Head::Nil
                | Head::Bool(_)
                | Head::Unsigned(_)
                | Head::Negative(_)
                | Head::Float(_)
                | Head::Str(_)
                | Head::Bin(_) => 0,
            });
        }
        visitor.visit_unit()
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char unit unit_struct seq tuple
        tuple_struct map
    }
}

/// The items of an array or the entries of a map that are still to come.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
}

impl<'a, 'de> Items<'a, 'de> {
    fn begin(reader: &'a mut Reader<'de>, left: usize) -> Result<Self, ReadError> {
        reader.depth += 1;
        match reader.depth > DEPTH_MAX {
            true => Err(ScanError::TooDeep.into()),
            false => Ok(Self { reader, left }),
        }
    }

    fn end<T>(self, value: T) -> Result<T, ReadError> {
        self.reader.depth -= 1;
        match self.left {
            0 => Ok(value),
            left => Err(ReadError::Type(format!("{left} values too many"))),
        }
    }

    fn next<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    /// What was announced, but not more than the bytes can hold.
    fn at_most(&self) -> Option<usize> {
        Some(self.left.min(self.reader.walk.rest.len()))
    }
}

impl<'de> SeqAccess<'de> for &mut Items<'_, 'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        self.next(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.at_most()
    }
}

impl<'de> MapAccess<'de> for &mut Items<'_, 'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        self.next(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        self.at_most()
    }
}
