//! A frame: a u32 big-endian length and so many bytes, one MessagePack map.
//!
//! ```text
//!  0        4                         4 + length
//!  +--------+-------------------------+
//!  | length | map                     |
//!  +--------+-------------------------+
//! ```
//!
//! Nothing is allocated by an announced length: a length past the limit is refused while only its
//! four bytes are here. What the map means is [`crate::request`]'s and [`crate::response`]'s.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::WireError;

/// Bytes of the length in front of each map.
pub const HEADER_BYTES: usize = 4;

/// Why the bytes are no frame. After either of them the framing is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The announced length passes the limit.
    #[error("a frame may have at most {limit} bytes, this one announces {actual}")]
    TooLong {
        /// The limit in force.
        limit: usize,
        /// The announced length.
        actual: usize,
    },
    /// The announced length is zero, which no map has.
    #[error("a frame has at least one byte, this one announces none")]
    Empty,
}

impl From<FrameError> for WireError {
    /// What the peer is told, under id 0, before the connection closes.
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLong { limit, actual } => Self::too_large("frame", limit, actual),
            FrameError::Empty => Self::bad_request("frame", error.to_string()),
        }
    }
}

/// Takes the next whole frame from the front of `buffer`; `None` asks for more bytes.
///
/// # Errors
/// When the announced length is zero or over `limit`; the buffer is left as it was.
pub fn decode(buffer: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let actual = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
    if actual == 0 {
        return Err(FrameError::Empty);
    }
    if actual > limit {
        return Err(FrameError::TooLong { limit, actual });
    }
    if buffer.len() - HEADER_BYTES < actual {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    Ok(Some(buffer.split_to(actual).freeze()))
}

/// Appends a frame whose map `write` appends, and returns what `write` returned. When it fails,
/// the buffer is as it was.
///
/// # Errors
/// Those of `write`.
pub fn encode<E>(
    buffer: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> Result<(), E>,
) -> Result<(), E> {
    let start = buffer.len();
    buffer.put_u32(0);
    if let Err(error) = write(buffer) {
        buffer.truncate(start);
        return Err(error);
    }
    let length = buffer.len() - start - HEADER_BYTES;
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(header) = buffer.get_mut(start..start + HEADER_BYTES) {
        header.copy_from_slice(&length);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(map: &[u8]) -> Vec<u8> {
        let mut buffer = BytesMut::new();
        encode(&mut buffer, |buffer| {
            buffer.put_slice(map);
            Ok::<_, ()>(())
        })
        .unwrap();
        buffer.to_vec()
    }

    #[test]
    fn a_length_holds_at_the_limit_and_not_past_it() {
        let mut buffer = BytesMut::from(&frame(&[7; 8])[..]);
        assert_eq!(
            decode(&mut buffer.clone(), 8),
            Ok(Some(Bytes::from_static(&[7; 8])))
        );
        assert_eq!(
            decode(&mut buffer, 7),
            Err(FrameError::TooLong {
                limit: 7,
                actual: 8
            })
        );
    }

    #[test]
    fn a_length_of_zero_is_refused() {
        assert_eq!(
            decode(&mut BytesMut::from(&[0; 4][..]), 8),
            Err(FrameError::Empty)
        );
    }

    #[test]
    fn an_over_long_length_is_refused_by_its_header_alone() {
        let mut buffer = BytesMut::from(&[0xff; 4][..]);
        let actual = u32::MAX as usize;
        assert_eq!(
            decode(&mut buffer, 9),
            Err(FrameError::TooLong { limit: 9, actual })
        );
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same_frames(
            maps in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..8),
            cuts in prop::collection::vec(1_usize..20, 1..60),
        ) {
            let stream: Vec<u8> = maps.iter().flat_map(|map| frame(map)).collect();
            let (mut buffer, mut seen, mut rest) = (BytesMut::new(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                buffer.extend_from_slice(now);
                rest = later;
                while let Some(map) = decode(&mut buffer, 64).unwrap() {
                    seen.push(map.to_vec());
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen, maps);
            prop_assert!(buffer.is_empty());
        }
    }
}
