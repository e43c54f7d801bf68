//! A buffer of whole pages, as a write past the page cache needs it: it begins at a page of memory and
//! is a multiple of a page long. What is written is `log.rs`'s business.

/// Bytes of a page: the alignment that every disk takes.
pub(super) const PAGE_BYTES: usize = 4096;

/// A larger buffer is not kept for the next write.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Bytes that begin at a page of memory.
#[derive(Debug, Default)]
pub(super) struct Pages {
    bytes: Vec<u8>,
    /// Where the first page begins.
    start: usize,
}

impl Pages {
    /// Makes room for so many bytes and begins anew.
    pub(super) fn begin(&mut self, bytes: usize) {
        let room = bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES;
        self.bytes.clear();
        self.bytes.reserve(room);
        self.start = self.bytes.as_ptr().align_offset(PAGE_BYTES);
        self.bytes.resize(self.start, 0);
    }

    /// Appends bytes, for which there is room.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Fills up with zeroes to a multiple of so many bytes.
    pub(super) fn align(&mut self, alignment: usize) {
        let length = (self.bytes.len() - self.start).next_multiple_of(alignment);
        self.bytes.resize(self.start + length, 0);
    }

    /// Fills up the last page.
    pub(super) fn finish(&mut self) {
        self.align(PAGE_BYTES);
    }

    /// The pages.
    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// The buffer, for the next write, unless it is large.
    pub(super) fn empty(mut self) -> Self {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self
    }
}
