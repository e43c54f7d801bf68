//! The bodies of the fuzz targets as plain functions over bytes, called by a fuzzer and by the
//! property tests of this crate alike. Each of them panics when a promise is broken, and only then.

use bytes::{Bytes, BytesMut};

use crate::{
    frame::{self, FrameError, HEADER_BYTES},
    limits::Limits,
    request::{Operation, Request},
    response::{Message, ReplyBody},
    time::INTEGER_MAX,
};

/// A stream of frames: no split of it changes what is read, and no length makes the buffer grow.
pub fn frame_stream(stream: &[u8]) {
    const LIMIT: usize = 4096;
    let whole = read_frames(&[stream], LIMIT);
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(
        read_frames(&bytes, LIMIT),
        whole,
        "byte by byte reads the same"
    );
    let (first, second) = stream.split_at(stream.len() / 2);
    assert_eq!(
        read_frames(&[first, second], LIMIT),
        whole,
        "halves read the same"
    );
    let read: usize = whole.0.iter().map(|map| HEADER_BYTES + map.len()).sum();
    assert!(read <= stream.len(), "no more is read than came");
}

/// The frames of a stream that arrives in pieces, and what ended it.
fn read_frames(pieces: &[&[u8]], limit: usize) -> (Vec<Bytes>, Option<FrameError>) {
    let (mut buffer, mut maps) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match frame::decode(&mut buffer, limit) {
                Ok(Some(map)) => maps.push(map),
                Ok(None) => break,
                Err(error) => return (maps, Some(error)),
            }
        }
    }
    (maps, None)
}

/// The map of a request: it is refused under an id that can be answered, or it is the same again
/// once it was written and read.
pub fn request(map: &[u8]) {
    let scanned = Request::decode_scanned(map);
    assert_eq!(
        Request::decode(map),
        scanned,
        "read plainly, it is the same"
    );
    let request = match scanned {
        Ok(request) => request,
        Err(refusal) => {
            assert!(refusal.id <= INTEGER_MAX, "an id that can be answered");
            return;
        }
    };
    let limits = Limits::default();
    let _ = request.operation.check(&limits);
    if let Operation::Push(push) = &request.operation {
        for job in &push.jobs {
            let _ = job.check(&limits);
        }
    }
    let mut buffer = BytesMut::new();
    assert!(request.encode(&mut buffer).is_ok(), "what was read writes");
    let again = frame::decode(&mut buffer, usize::MAX).ok().flatten();
    let again = again.map(|map| Request::decode(&map));
    assert_eq!(again, Some(Ok(request)), "the same again");
}

/// The map of a server's message, whatever it answers: what is wrong is found by the time its body is
/// read.
pub fn message(map: &[u8]) {
    let map = Bytes::copy_from_slice(map);
    let bodies = |message| match message {
        Ok(Message::Reply {
            result: Ok(body), ..
        }) => Some(Operation::ALL.iter().map(move |op| {
            let read = ReplyBody::read(op, &body);
            assert!(read.is_some(), "{op} has a body to read");
            read.and_then(Result::ok)
        })),
        Ok(_) | Err(_) => None,
    };
    let read = bodies(Message::decode(&map));
    match bodies(Message::decode_scanned(&map)) {
        Some(scanned) => assert!(read.is_some_and(|read| read.eq(scanned)), "the same"),
        None => assert!(
            read.into_iter().flatten().all(|body| body.is_none()),
            "a message that is malformed has no body"
        ),
    }
}
