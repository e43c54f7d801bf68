//! Types into MessagePack, straight into the buffer of a connection: what [`crate::read`] reads. A
//! struct is a map with string keys (never an array of its values), an enum is its word, and every
//! length and integer takes the fewest bytes.

use bytes::BytesMut;
use serde::{
    Serialize, Serializer,
    ser::{self, Impossible, SerializeMap, SerializeSeq, SerializeStruct},
};

use crate::request::EncodeError;

/// Why a value cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WriteError(String);

impl ser::Error for WriteError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Appends a map with the fields of `map`.
pub(crate) fn map<T: Serialize>(buffer: &mut BytesMut, map: &T) -> Result<(), EncodeError> {
    let mut writer = Writer::new(buffer, None);
    map.serialize(&mut writer)?;
    writer.pass_on();
    Ok(())
}

/// Appends a map that begins with the fields of `first` and goes on with those of `rest`. Together
/// they are at most 15, so that the head is one byte, `0x80 | count`.
pub(crate) fn maps<T: Serialize, U: Serialize>(
    buffer: &mut BytesMut,
    first: &T,
    rest: &U,
) -> Result<(), EncodeError> {
    let start = buffer.len();
    map(buffer, first)?;
    let mut writer = Writer::new(buffer, Some(start));
    rest.serialize(&mut writer)?;
    writer.pass_on();
    Ok(())
}

/// Bytes collected before they are passed on: MessagePack comes in many writes of a few bytes, and
/// each append to a [`BytesMut`] has its price.
const SMALL_BYTES: usize = 192;

/// Entries that the one-byte head of a map or an array can count.
const SHORT_MAX: u8 = 15;

/// A serde serializer of MessagePack.
struct Writer<'a> {
    buffer: &'a mut BytesMut,
    small: [u8; SMALL_BYTES],
    used: usize,
    /// The next map has no head of its own: its entries belong to the map whose head is there.
    joins: Option<usize>,
}

impl<'a> Writer<'a> {
    fn new(buffer: &'a mut BytesMut, joins: Option<usize>) -> Self {
        Self {
            buffer,
            small: [0; SMALL_BYTES],
            used: 0,
            joins,
        }
    }

    fn pass_on(&mut self) {
        let small = self.small.get(..self.used).unwrap_or_default();
        self.buffer.extend_from_slice(small);
        self.used = 0;
    }

    /// Inlined, so that bytes of a known number are copied by a few moves.
    #[inline(always)]
    fn put(&mut self, bytes: &[u8]) {
        match self.small.get_mut(self.used..self.used + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.used += bytes.len();
            }
            None => self.put_past(bytes),
        }
    }

    #[inline(never)]
    fn put_past(&mut self, bytes: &[u8]) {
        self.pass_on();
        self.buffer.extend_from_slice(bytes);
    }

    /// A mark and a number behind it.
    #[inline(always)]
    fn put_marked<const N: usize>(&mut self, mark: u8, number: [u8; N]) {
        self.put(&[mark]);
        self.put(&number);
    }

    /// The head of something that has a length: one byte where that is short.
    #[inline(always)]
    fn put_head(&mut self, length: usize, marks: Marks) -> Result<(), WriteError> {
        match (marks.short, u8::try_from(length)) {
            (Some((mark, max)), Ok(length)) if length <= max => {
                self.put(&[mark | length]);
                Ok(())
            }
            _ => self.put_long_head(length, marks),
        }
    }

    /// The mark of a length of one, two or four bytes, and the length.
    fn put_long_head(&mut self, length: usize, marks: Marks) -> Result<(), WriteError> {
        if let (Some(mark), Ok(length)) = (marks.of_8, u8::try_from(length)) {
            self.put(&[mark, length]);
        } else if let Ok(length) = u16::try_from(length) {
            self.put_marked(marks.of_16, length.to_be_bytes());
        } else if let Ok(length) = u32::try_from(length) {
            self.put_marked(marks.of_32, length.to_be_bytes());
        } else {
            return Err(ser::Error::custom("a length passes 32 bits"));
        }
        Ok(())
    }

    #[inline(always)]
    fn put_str(&mut self, text: &str) -> Result<(), WriteError> {
        self.put_head(text.len(), STR)?;
        self.put(text.as_bytes());
        Ok(())
    }

    #[inline]
    fn begin_map(&mut self, entries: usize) -> Result<(), WriteError> {
        let Some(head) = self.joins.take() else {
            return self.put_head(entries, MAP);
        };
        let joined = u8::try_from(entries).ok().zip(self.buffer.get_mut(head));
        let fits = |(entries, head): &(u8, &mut u8)| *entries <= SHORT_MAX - (**head & 0x0f);
        let Some((entries, head)) = joined.filter(fits) else {
            return Err(ser::Error::custom(
                "a message has more fields than its head can count",
            ));
        };
        *head += entries;
        Ok(())
    }
}

/// The marks of something that has a length.
#[derive(Clone, Copy)]
struct Marks {
    /// Of a length in the mark itself, and the longest one.
    short: Option<(u8, u8)>,
    of_8: Option<u8>,
    of_16: u8,
    of_32: u8,
}

const STR: Marks = Marks {
    short: Some((0xa0, 31)),
    of_8: Some(0xd9),
    of_16: 0xda,
    of_32: 0xdb,
};
const BIN: Marks = Marks {
    short: None,
    of_8: Some(0xc4),
    of_16: 0xc5,
    of_32: 0xc6,
};
const ARRAY: Marks = Marks {
    short: Some((0x90, SHORT_MAX)),
    of_8: None,
    of_16: 0xdc,
    of_32: 0xdd,
};
const MAP: Marks = Marks {
    short: Some((0x80, SHORT_MAX)),
    of_8: None,
    of_16: 0xde,
    of_32: 0xdf,
};

/// What serde could write and the protocol does not have.
fn foreign<T>(what: &str) -> Result<T, WriteError> {
    Err(ser::Error::custom(format!("the protocol has no {what}")))
}

fn known(length: Option<usize>) -> Result<usize, WriteError> {
    length.ok_or_else(|| ser::Error::custom("a length must be known beforehand"))
}

impl Serializer for &mut Writer<'_> {
    type Ok = ();
    type Error = WriteError;
    type SerializeSeq = Self;
    type SerializeTuple = Impossible<(), WriteError>;
    type SerializeTupleStruct = Impossible<(), WriteError>;
    type SerializeTupleVariant = Impossible<(), WriteError>;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Impossible<(), WriteError>;

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), WriteError> {
        self.put(&[0xc2 | u8::from(value)]);
        Ok(())
    }

    fn serialize_i8(self, number: i8) -> Result<(), WriteError> {
        self.serialize_i64(number.into())
    }

    fn serialize_i16(self, number: i16) -> Result<(), WriteError> {
        self.serialize_i64(number.into())
    }

    fn serialize_i32(self, number: i32) -> Result<(), WriteError> {
        self.serialize_i64(number.into())
    }

    fn serialize_i64(self, number: i64) -> Result<(), WriteError> {
        if let Ok(number) = u64::try_from(number) {
            return self.serialize_u64(number);
        }
        match (
            i8::try_from(number),
            i16::try_from(number),
            i32::try_from(number),
        ) {
            (Ok(small @ -32..), ..) => self.put(&small.to_be_bytes()),
            (Ok(number), ..) => self.put_marked(0xd0, number.to_be_bytes()),
            (_, Ok(number), _) => self.put_marked(0xd1, number.to_be_bytes()),
            (.., Ok(number)) => self.put_marked(0xd2, number.to_be_bytes()),
            _ => self.put_marked(0xd3, number.to_be_bytes()),
        }
        Ok(())
    }

    #[inline]
    fn serialize_u8(self, number: u8) -> Result<(), WriteError> {
        self.serialize_u64(number.into())
    }

    #[inline]
    fn serialize_u16(self, number: u16) -> Result<(), WriteError> {
        self.serialize_u64(number.into())
    }

    #[inline]
    fn serialize_u32(self, number: u32) -> Result<(), WriteError> {
        self.serialize_u64(number.into())
    }

    fn serialize_u64(self, number: u64) -> Result<(), WriteError> {
        match (
            u8::try_from(number),
            u16::try_from(number),
            u32::try_from(number),
        ) {
            (Ok(small @ ..0x80), ..) => self.put(&[small]),
            (Ok(number), ..) => self.put_marked(0xcc, number.to_be_bytes()),
            (_, Ok(number), _) => self.put_marked(0xcd, number.to_be_bytes()),
            (.., Ok(number)) => self.put_marked(0xce, number.to_be_bytes()),
            _ => self.put_marked(0xcf, number.to_be_bytes()),
        }
        Ok(())
    }

    fn serialize_f32(self, number: f32) -> Result<(), WriteError> {
        self.put_marked(0xca, number.to_be_bytes());
        Ok(())
    }

    fn serialize_f64(self, number: f64) -> Result<(), WriteError> {
        self.put_marked(0xcb, number.to_be_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), WriteError> {
        self.put_str(value.encode_utf8(&mut [0; 4]))
    }

    #[inline]
    fn serialize_str(self, text: &str) -> Result<(), WriteError> {
        self.put_str(text)
    }

    #[inline]
    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), WriteError> {
        self.put_head(bytes.len(), BIN)?;
        self.put(bytes);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), WriteError> {
        self.serialize_unit()
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), WriteError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), WriteError> {
        self.put(&[0xc0]);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), WriteError> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        word: &'static str,
    ) -> Result<(), WriteError> {
        self.put_str(word)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), WriteError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        _word: &'static str,
        _value: &T,
    ) -> Result<(), WriteError> {
        foreign("enum with values")
    }

    #[inline]
    fn serialize_seq(self, items: Option<usize>) -> Result<Self, WriteError> {
        self.put_head(known(items)?, ARRAY)?;
        Ok(self)
    }

    fn serialize_tuple(self, _items: usize) -> Result<Self::SerializeTuple, WriteError> {
        foreign("tuple")
    }

    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        _items: usize,
    ) -> Result<Self::SerializeTupleStruct, WriteError> {
        foreign("struct without names")
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        _word: &'static str,
        _items: usize,
    ) -> Result<Self::SerializeTupleVariant, WriteError> {
        foreign("enum with values")
    }

    fn serialize_map(self, entries: Option<usize>) -> Result<Self, WriteError> {
        self.begin_map(known(entries)?)?;
        Ok(self)
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, fields: usize) -> Result<Self, WriteError> {
        self.begin_map(fields)?;
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        _word: &'static str,
        _fields: usize,
    ) -> Result<Self::SerializeStructVariant, WriteError> {
        foreign("enum with values")
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

impl SerializeSeq for &mut Writer<'_> {
    type Ok = ();
    type Error = WriteError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), WriteError> {
        item.serialize(&mut **self)
    }

    fn end(self) -> Result<(), WriteError> {
        Ok(())
    }
}

impl SerializeMap for &mut Writer<'_> {
    type Ok = ();
    type Error = WriteError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), WriteError> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteError> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), WriteError> {
        Ok(())
    }
}

impl SerializeStruct for &mut Writer<'_> {
    type Ok = ();
    type Error = WriteError;

    /// Inlined, so that a name of known length is copied by a few moves.
    #[inline(always)]
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), WriteError> {
        self.put_str(name)?;
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), WriteError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Serialize)]
    struct Everything {
        unsigned: u64,
        signed: i64,
        byte: u8,
        small: i8,
        short: i16,
        real: f64,
        truth: bool,
        letter: char,
        text: String,
        bytes: Bytes,
        items: Vec<Option<u32>>,
        entries: BTreeMap<String, Word>,
        #[serde(skip_serializing_if = "Option::is_none")]
        absent: Option<Box<Self>>,
    }

    #[derive(Debug, Clone, Copy, Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        First,
        TheSecond,
    }

    /// Numbers on both sides of where they take a byte more, and any.
    fn number() -> impl Strategy<Value = u64> {
        let bits = prop::sample::select(vec![0_u32, 4, 5, 7, 8, 15, 16, 31, 32, 63]);
        let edge = (bits, 0_u64..3).prop_map(|(bits, near)| (1 << bits) - 1 + near);
        prop_oneof![edge, any::<u64>()]
    }

    /// Lengths on both sides of where their heads grow, and of what is passed on at once.
    fn length() -> impl Strategy<Value = usize> {
        let lengths = vec![
            0, 1, 15, 16, 31, 32, 191, 192, 193, 255, 256, 65_535, 65_536,
        ];
        prop::sample::select(lengths)
    }

    fn everything() -> impl Strategy<Value = Everything> {
        let numbers = (number(), number(), any::<(u8, i8, i16, f64)>());
        let words = prop::sample::select(vec![Word::First, Word::TheSecond]);
        let entries = prop::collection::btree_map("[a-z]{0,40}", words, 0..20);
        let plain = any::<(bool, char)>();
        (numbers, plain, length(), length(), 0_u32..40, entries).prop_map(
            |(numbers, (truth, letter), text, bytes, items, entries)| {
                let (unsigned, signed, (byte, small, short, real)) = numbers;
                Everything {
                    unsigned,
                    signed: 0_i64.wrapping_sub_unsigned(signed),
                    byte,
                    small,
                    short,
                    real,
                    truth,
                    letter,
                    text: "x".repeat(text),
                    bytes: vec![7; bytes].into(),
                    items: (0..items).map(|n| (n % 3 > 0).then_some(n)).collect(),
                    entries,
                    absent: None,
                }
            },
        )
    }

    fn written(value: &impl Serialize) -> Vec<u8> {
        let mut buffer = BytesMut::new();
        map(&mut buffer, value).unwrap();
        buffer.to_vec()
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_the_library(mut value in everything()) {
            prop_assert_eq!(written(&value), rmp_serde::to_vec_named(&value).unwrap());
            value.absent = Some(Box::new(value.clone()));
            prop_assert_eq!(written(&value), rmp_serde::to_vec_named(&value).unwrap());
        }
    }

    #[derive(Serialize)]
    struct Fields<'a> {
        a: u8,
        b: &'a str,
    }

    #[test]
    fn two_structs_become_one_map() {
        let mut buffer = BytesMut::from(&b"before"[..]);
        let (first, rest) = (
            Fields { a: 1, b: "x" },
            BTreeMap::from([("c", Fields { a: 2, b: "" })]),
        );
        maps(&mut buffer, &first, &rest).unwrap();
        assert_eq!(
            &buffer[..],
            b"before\x83\xa1a\x01\xa1b\xa1x\xa1c\x82\xa1a\x02\xa1b\xa0"
        );
    }

    #[test]
    fn a_joined_map_has_at_most_15_fields() {
        let rest = |count: u8| {
            (0..count)
                .map(|n| (n.to_string(), n))
                .collect::<BTreeMap<_, _>>()
        };
        let first = Fields { a: 1, b: "x" };
        assert!(maps(&mut BytesMut::new(), &first, &rest(13)).is_ok());
        assert!(maps(&mut BytesMut::new(), &first, &rest(14)).is_err());
    }

    #[test]
    fn what_the_protocol_does_not_have_is_refused() {
        #[derive(Serialize)]
        enum Foreign {
            Value(u8),
            Fields { a: u8 },
        }
        for value in [Foreign::Value(1), Foreign::Fields { a: 1 }] {
            assert!(map(&mut BytesMut::new(), &value).is_err());
        }
        assert!(map(&mut BytesMut::new(), &(1, 2)).is_err());
    }
}
