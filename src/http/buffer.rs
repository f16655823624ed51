//! Owns bytes that were read and not yet understood.
//!
//! Never: reads a socket, knows HTTP. Each worker has one and lends it to the connection it
//! serves.

/// A queue of bytes: filled at the end, consumed at the front.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// What is there to be read.
    pub(super) fn unread(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Whether nothing is there to be read.
    pub(super) fn is_empty(&self) -> bool {
        self.start >= self.bytes.len()
    }

    /// Forgets the first `count` unread bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
    }

    /// Appends.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Moves up to `count_max` unread bytes to the end of `target`; says how many.
    pub(super) fn move_to(&mut self, target: &mut Vec<u8>, count_max: usize) -> usize {
        let unread = self.unread();
        let count = unread.len().min(count_max);
        target.extend_from_slice(unread.get(..count).unwrap_or_default());
        self.consume(count);
        count
    }

    /// The storage with room for at least `room` more bytes at its end.
    pub(super) fn with_room(&mut self, room: usize) -> &mut Vec<u8> {
        if self.start > 0 {
            self.bytes.drain(..self.start.min(self.bytes.len()));
            self.start = 0;
        }
        self.bytes.reserve(room);
        &mut self.bytes
    }

    /// Takes out what is unread, in storage of its own size, and keeps the large storage.
    pub(super) fn take_unread(&mut self) -> Vec<u8> {
        let rest = self.unread().to_vec();
        self.bytes.clear();
        self.start = 0;
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_they_came() {
        let mut buffer = Buffer::default();
        buffer.push(b"abcdef");
        buffer.consume(2);
        assert_eq!(buffer.unread(), b"cdef");
        let mut body = Vec::new();
        assert_eq!(buffer.move_to(&mut body, 3), 3);
        buffer.with_room(10).extend_from_slice(b"gh");
        assert_eq!((body.as_slice(), buffer.unread()), (&b"cde"[..], &b"fgh"[..]));
        assert_eq!(buffer.take_unread(), b"fgh");
        assert!(buffer.is_empty());
        buffer.consume(9);
        assert_eq!(buffer.move_to(&mut body, 9), 0);
    }
}
