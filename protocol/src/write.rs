//! Types into MessagePack, straight into the buffer of a connection: maps with string keys, always.

use std::io;

use bytes::BytesMut;
use serde::Serialize;

use crate::request::EncodeError;

/// Appends a map with the fields of `map`.
pub(crate) fn map<T: Serialize>(buffer: &mut BytesMut, map: &T) -> Result<(), EncodeError> {
    append(buffer, Head::Keep, map).map(|_head| ())
}

/// Appends a map that begins with the fields of `first` and goes on with those of `rest`. Together
/// they are at most 15, so that each head is one byte, `0x80 | count`.
pub(crate) fn maps<T: Serialize, U: Serialize>(
    buffer: &mut BytesMut,
    first: &T,
    rest: &U,
) -> Result<(), EncodeError> {
    let start = buffer.len();
    map(buffer, first)?;
    if let Head::Dropped(head) = append(buffer, Head::Drop, rest)?
        && let Some(count) = buffer.get_mut(start)
    {
        *count += head & 0x0f;
    }
    Ok(())
}

fn append<T: Serialize>(buffer: &mut BytesMut, head: Head, map: &T) -> Result<Head, EncodeError> {
    let mut append = Append {
        buffer,
        head,
        small: [0; SMALL_BYTES],
        used: 0,
    };
    map.serialize(&mut rmp_serde::Serializer::new(&mut append).with_struct_map())?;
    append.pass_on();
    Ok(append.head)
}

/// What becomes of the first byte that is written, the head of a map.
#[derive(Clone, Copy)]
enum Head {
    Keep,
    Drop,
    Dropped(u8),
}

/// Bytes collected before they are passed on: MessagePack comes in many writes of a few bytes, and
/// each append to a [`BytesMut`] has its price.
const SMALL_BYTES: usize = 192;

struct Append<'a> {
    buffer: &'a mut BytesMut,
    head: Head,
    small: [u8; SMALL_BYTES],
    used: usize,
}

impl Append<'_> {
    fn pass_on(&mut self) {
        let small = self.small.get(..self.used).unwrap_or_default();
        self.buffer.extend_from_slice(small);
        self.used = 0;
    }
}

impl io::Write for Append<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let (Head::Drop, Some((head, rest))) = (self.head, bytes.split_first()) {
            self.head = Head::Dropped(*head);
            bytes = rest;
        }
        if let ([byte], Some(place)) = (bytes, self.small.get_mut(self.used)) {
            *place = *byte;
            self.used += 1;
            return Ok(());
        }
        if let Some(room) = self.small.get_mut(self.used..self.used + bytes.len()) {
            room.copy_from_slice(bytes);
            self.used += bytes.len();
            return Ok(());
        }
        self.pass_on();
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
