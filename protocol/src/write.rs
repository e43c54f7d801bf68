//! Types into MessagePack, straight into the buffer of a connection: maps with string keys, always.

use std::io;

use bytes::BytesMut;
use serde::Serialize;

use crate::request::EncodeError;

/// Appends a map with the fields of `map`.
pub(crate) fn map<T: Serialize>(buffer: &mut BytesMut, map: &T) -> Result<(), EncodeError> {
    let mut append = Append {
        buffer,
        head: Head::Keep,
    };
    Ok(map.serialize(&mut rmp_serde::Serializer::new(&mut append).with_struct_map())?)
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
    let mut append = Append {
        buffer,
        head: Head::Drop,
    };
    rest.serialize(&mut rmp_serde::Serializer::new(&mut append).with_struct_map())?;
    if let Head::Dropped(head) = append.head
        && let Some(count) = buffer.get_mut(start)
    {
        *count += head & 0x0f;
    }
    Ok(())
}

/// What becomes of the first byte that is written, the head of a map.
enum Head {
    Keep,
    Drop,
    Dropped(u8),
}

struct Append<'a> {
    buffer: &'a mut BytesMut,
    head: Head,
}

impl io::Write for Append<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let (Head::Drop, Some((head, rest))) = (&self.head, bytes.split_first()) {
            self.head = Head::Dropped(*head);
            bytes = rest;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
