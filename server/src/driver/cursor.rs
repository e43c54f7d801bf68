//! Where a page of a list of jobs ended, as opaque text: which list it was, which walk, and how far.
//!
//! The list is there as a digest, so that a cursor is refused by every list but its own. A position
//! among leases is of one life of the server: deadlines are counted anew by the next.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ganger_engine::{
    command::Mono,
    list::{Position, Walk},
    records::{Place, QueueNumber},
};
use ganger_protocol::{JobId, LeaseId, NamespaceName, WireError, job::JobState, list::JobFilter};
use sha2::{Digest as _, Sha256};

use crate::store::{keys::Key, spots};

/// First bytes of a digest of a list.
const DIGEST_BYTES: usize = 8;

/// Which list a cursor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct List {
    digest: [u8; DIGEST_BYTES],
    /// Which life of the server.
    epoch: u64,
}

impl List {
    pub(super) fn of(
        namespace: &NamespaceName,
        filter: &JobFilter,
        newest_first: bool,
        epoch: u64,
    ) -> Self {
        // A filter is texts and numbers, which are always written.
        let text = serde_json::to_vec(&(namespace, filter, newest_first)).unwrap_or_default();
        let whole: [u8; 32] = Sha256::digest(text).into();
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&whole[..DIGEST_BYTES]);
        Self { digest, epoch }
    }

    /// The text for a walk and how far it has come; `None`: nothing of it was seen yet.
    pub(super) fn write(&self, walk: &Walk, after: Option<&Position>) -> String {
        let mut bytes = self.digest.to_vec();
        let state = JobState::ALL.iter().position(|state| *state == walk.state);
        bytes.push(u8::try_from(state.unwrap_or_default()).unwrap_or_default());
        let queue = walk.queue.map_or(u32::MAX, |queue| queue.0);
        bytes.extend(queue.to_be_bytes());
        match after {
            None => {}
            Some(Position::Place(place)) => {
                bytes.extend(Key::run(&place.run).as_slice());
                bytes.push(place.index);
            }
            Some(Position::Lease(at, lease, job)) => {
                bytes.extend(self.epoch.to_be_bytes());
                bytes.extend(at.0.to_be_bytes());
                bytes.extend(lease.0.to_be_bytes());
                bytes.extend(job.as_bytes());
            }
            Some(position) => {
                let key = spots::key_of(position);
                bytes.extend(key.iter().flat_map(Key::as_slice));
            }
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The walk to go on with, and behind which position.
    pub(super) fn read(&self, text: &str) -> Result<(Walk, Option<Position>), WireError> {
        let other = "the cursor is not one that this list has given";
        let refused = || WireError::bad_request("cursor", other);
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_not_ours| refused())?;
        let (digest, rest) = bytes.split_first_chunk().ok_or_else(refused)?;
        if *digest != self.digest {
            return Err(refused());
        }
        let (state, rest) = rest.split_first().ok_or_else(refused)?;
        let state = JobState::ALL.get(usize::from(*state)).ok_or_else(refused)?;
        let (queue, rest) = rest.split_first_chunk().ok_or_else(refused)?;
        let queue = Some(u32::from_be_bytes(*queue)).filter(|queue| *queue != u32::MAX);
        let walk = Walk {
            state: *state,
            queue: queue.map(QueueNumber),
        };
        if rest.is_empty() {
            return Ok((walk, None));
        }
        let position = match (walk.state, walk.queue) {
            (JobState::Leased, None) => {
                let (epoch, lease) = lease_of(rest).ok_or_else(refused)?;
                if epoch != self.epoch {
                    let message = "the server was started since, and leases are listed anew";
                    return Err(WireError::bad_request("cursor", message));
                }
                lease
            }
            (JobState::Ready, Some(queue)) => {
                let place = place_of(rest).filter(|place| place.run.lane.queue == queue);
                Position::Place(place.ok_or_else(refused)?)
            }
            (state, queue) => {
                let key = Key::from_slice(rest).ok_or_else(refused)?;
                let position = spots::spot_of(&key)
                    .map_err(|_not_ours| refused())?
                    .position;
                let is_of_walk = match (position, queue) {
                    (Position::Timer(_), None) => state == JobState::Scheduled,
                    (Position::Job(_), None) => state == JobState::Blocked,
                    (Position::Closed(row), Some(queue)) => {
                        (row.queue, row.state) == (queue, state)
                    }
                    _ => false,
                };
                is_of_walk.then_some(position).ok_or_else(refused)?
            }
        };
        Ok((walk, Some(position)))
    }
}

fn place_of(bytes: &[u8]) -> Option<Place> {
    let (index, run) = bytes.split_last()?;
    Some(Place {
        run: Key::from_slice(run)?.to_run()?,
        index: *index,
    })
}

fn lease_of(bytes: &[u8]) -> Option<(u64, Position)> {
    let (epoch, rest) = bytes.split_first_chunk()?;
    let (at, rest) = rest.split_first_chunk()?;
    let (lease, job) = rest.split_first_chunk()?;
    let lease = Position::Lease(
        Mono(u64::from_be_bytes(*at)),
        LeaseId(u64::from_be_bytes(*lease)),
        JobId::from_bytes(job.try_into().ok()?),
    );
    Some((u64::from_be_bytes(*epoch), lease))
}
