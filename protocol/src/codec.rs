//! [`frame`] as a tokio-util codec: frames in, anything that writes itself as a
//! frame's map out.

use bytes::{Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::{
    frame::{self, FrameError},
    limits::FRAME_BYTES_MAX,
};

/// Splits a byte stream into frames and joins frames into one.
#[derive(Debug, Clone)]
pub struct FrameCodec {
    limit: usize,
}

/// Why a stream of frames ended.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The socket failed, or closed inside of a frame.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Default for FrameCodec {
    fn default() -> Self {
        Self {
            limit: FRAME_BYTES_MAX,
        }
    }
}

impl FrameCodec {
    /// A codec that refuses maps of more than `limit` bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self { limit }
    }

    /// Changes the limit for the frames to come.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }
}

impl Decoder for FrameCodec {
    type Item = Bytes;
    type Error = CodecError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        Ok(frame::decode(buffer, self.limit)?)
    }
}

impl Encoder<Bytes> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, map: Bytes, buffer: &mut BytesMut) -> Result<(), CodecError> {
        frame::encode(buffer, |buffer| {
            buffer.extend_from_slice(&map);
            Ok(())
        })
    }
}
