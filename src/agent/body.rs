//! Owns how the body of an answer is received and unpacked, in memory that is used again.
//!
//! Never: says what a body means; waits longer than the HTTP client's deadline, or unpacks
//! for longer; spends more of a processor on an answer than one of its size can need. Called
//! by `client`.

use flate2::bufread::GzDecoder;
use rustix::time::{ClockId, clock_gettime};
use std::io::{self, BufRead, ErrorKind, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Largest body, as received and again as decoded. Larger: hostile agents fill the memory,
/// one body per worker. Smaller: the listing of a full machine might not fit.
pub const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Largest buffer that is kept for a next call. Larger: idle memory. Smaller: usual listings
/// are read into memory that is asked for anew.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Most members of a packed body. Larger: a hostile agent makes us set up a decoder for every
/// few bytes. Smaller: agents write one, proxies in between may write more.
const MEMBERS_MAX: usize = 16;

/// Longest that unpacking one body may keep a processor busy: what is packed so that it
/// gives next to nothing costs a thousand times what it should. Larger: hostile agents cost
/// more. Smaller: the largest listing takes longer on a slow machine.
const UNPACK_CPU_MAX: Duration = Duration::from_millis(500);

/// Packed bytes between two looks at the clock. Larger: the limits are overrun by more.
/// Smaller: the looks cost more than what is unpacked.
const STEP_BYTES: usize = 4096;

/// Buffers, and decoders, that are kept for next calls. A call takes one only once its
/// answer comes, so a few are in use at a time, however many agents hang. Larger: idle
/// memory. Smaller: memory is asked for and given back at every answer.
const KEPT_MAX: usize = 8;

/// Why there is no body.
pub(super) enum BodyError {
    /// It did not come whole.
    Broken(ureq::Error),
    /// It came, but is too large or not decodable.
    Bad(String),
}

/// The memory of all calls.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    buffers: Kept<Vec<u8>>,
    decoders: Kept<Decoder>,
}

impl Bodies {
    /// Hands over a body, whole and unpacked by then.
    pub(super) fn receive<T>(
        &self,
        (body, until): (ureq::Body, Instant),
        encoding: &str,
        read: impl FnOnce(Result<&[u8], BodyError>) -> T,
    ) -> T {
        self.buffers.lend(|received| match (fill(received, body), encoding) {
            (Err(error), _) => read(Err(error)),
            (Ok(()), "" | "identity") => read(Ok(received)),
            (Ok(()), "gzip") => self.buffers.lend(|plain| {
                let unpacked = self.decoders.lend(|decoder| decoder.unpack(received, plain, until));
                read(unpacked.map(|()| plain.as_slice()))
            }),
            (Ok(()), other) => read(Err(BodyError::Bad(format!("content encoding {other:?}")))),
        })
    }
}

/// What nobody uses just now.
#[derive(Debug)]
struct Kept<T>(Mutex<Vec<T>>);

impl<T> Default for Kept<T> {
    fn default() -> Kept<T> {
        Kept(Mutex::default())
    }
}

impl<T: Default + Tidy> Kept<T> {
    fn lend<R>(&self, with: impl FnOnce(&mut T) -> R) -> R {
        let mut lent = self.locked().pop().unwrap_or_default();
        let result = with(&mut lent);
        lent.tidy();
        let mut kept = self.locked();
        if kept.len() < KEPT_MAX {
            kept.push(lent);
        }
        result
    }

    /// What is in it stays valid when a thread panics.
    fn locked(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As the next call wants to find it.
trait Tidy {
    fn tidy(&mut self);
}

impl Tidy for Vec<u8> {
    fn tidy(&mut self) {
        self.clear();
        self.shrink_to(KEPT_BYTES_MAX);
    }
}

impl Tidy for Decoder {
    /// It is reset before it is used.
    fn tidy(&mut self) {}
}

fn fill(received: &mut Vec<u8>, body: ureq::Body) -> Result<(), BodyError> {
    let length = body.content_length().unwrap_or_default();
    if length > BODY_BYTES_MAX {
        return Err(too_large());
    }
    // Most of what was promised at once, but only as much as is kept anyway; and room to
    // see the end.
    received.reserve((length as usize + 1).min(KEPT_BYTES_MAX));
    let mut reader = body.into_with_config().limit(BODY_BYTES_MAX).reader();
    reader.read_to_end(received).map(drop).map_err(|e| broken(e.into()))
}

/// A packed body, handed out in steps. It ends early when it takes too long.
#[derive(Debug)]
struct Packed {
    bytes: Vec<u8>,
    at: usize,
    /// What was looked at last: all before it is done with.
    step_end: usize,
    until: Instant,
    /// What the thread may have spent by its own clock; from the second step on.
    spent_max: Option<Duration>,
}

impl Packed {
    fn new(bytes: Vec<u8>, until: Instant) -> Packed {
        Packed { bytes, at: 0, step_end: 0, until, spent_max: None }
    }

    fn none() -> Packed {
        Packed::new(Vec::new(), Instant::now())
    }

    fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// The first step costs no look at a clock: most bodies have no other.
    fn next_step(&mut self) -> io::Result<()> {
        if self.at > 0 {
            let spent = thread_cpu();
            if spent > *self.spent_max.get_or_insert(spent + UNPACK_CPU_MAX) {
                return Err(io::Error::other("it takes too long to unpack"));
            }
            if Instant::now() > self.until {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        self.step_end = self.bytes.len().min(self.at + STEP_BYTES);
        Ok(())
    }
}

fn thread_cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

impl BufRead for Packed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.step_end {
            self.next_step()?;
        }
        Ok(&self.bytes[self.at..self.step_end])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Packed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let amount = self.fill_buf()?.read(into)?;
        self.consume(amount);
        Ok(amount)
    }
}

/// A decoder of gzip. Made anew for every answer it would cost tens of kilobytes of each
/// thread's stack, where it is put together.
#[derive(Debug)]
struct Decoder(GzDecoder<Packed>);

impl Default for Decoder {
    #[inline(never)]
    fn default() -> Decoder {
        Decoder(GzDecoder::new(Packed::none()))
    }
}

impl Decoder {
    /// Unpacks one member of a body after another.
    fn unpack(
        &mut self,
        packed: &mut Vec<u8>,
        plain: &mut Vec<u8>,
        until: Instant,
    ) -> Result<(), BodyError> {
        let mut rest = Packed::new(std::mem::take(packed), until);
        for _ in 0..MEMBERS_MAX {
            self.0.reset(rest);
            // One byte more than allowed is enough to know that there is more.
            let room = BODY_BYTES_MAX + 1 - plain.len() as u64;
            let member = self.0.by_ref().take(room).read_to_end(plain);
            rest = self.0.reset(Packed::none());
            member.map_err(not_unpacked)?;
            if plain.len() as u64 > BODY_BYTES_MAX {
                return Err(too_large());
            }
            if rest.is_at_end() {
                *packed = rest.bytes;
                return Ok(());
            }
        }
        Err(BodyError::Bad(format!("gzip: more than {MEMBERS_MAX} members")))
    }
}

fn not_unpacked(error: io::Error) -> BodyError {
    if error.kind() == ErrorKind::TimedOut {
        return BodyError::Broken(ureq::Error::Timeout(ureq::Timeout::RecvBody));
    }
    BodyError::Bad(format!("gzip: {error}"))
}

fn broken(error: ureq::Error) -> BodyError {
    if let ureq::Error::BodyExceedsLimit(_) = error {
        too_large()
    } else {
        BodyError::Broken(error)
    }
}

fn too_large() -> BodyError {
    BodyError::Bad(format!("body is larger than {BODY_BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::bufread::MultiGzDecoder;
    use flate2::write::GzEncoder;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::io::Write;

    #[test]
    fn little_is_kept() {
        let kept = Kept::<Vec<u8>>::default();
        kept.lend(|buffer| buffer.resize(1 << 20, 1));
        kept.lend(|buffer| {
            assert!(buffer.is_empty());
            assert!(buffer.capacity() <= KEPT_BYTES_MAX);
            buffer.resize(1000, 1);
        });
        kept.lend(|buffer| assert!(buffer.capacity() >= 1000));
        lend_all(&kept, 3 * KEPT_MAX);
        assert_eq!(kept.locked().len(), KEPT_MAX);
    }

    /// So many at a time.
    fn lend_all(kept: &Kept<Vec<u8>>, count: usize) {
        kept.lend(|_| {
            if count > 1 {
                lend_all(kept, count - 1)
            }
        });
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// Members that are whole, cut off or spoilt, and bytes that are none.
    fn packed() -> impl Strategy<Value = Vec<u8>> {
        let bytes = || vec(any::<u8>(), 0..40);
        let member = (bytes(), any::<Index>(), 0..6u8).prop_map(|(plain, at, how)| {
            let mut packed = gzip(&plain);
            let at = at.index(packed.len());
            match how {
                0 => packed.truncate(at),
                1 => packed[at] ^= 0x10,
                _ => {}
            }
            packed
        });
        let part = prop_oneof![8 => member, 1 => bytes()];
        vec(part, 0..4).prop_map(|parts| parts.concat())
    }

    fn ample() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn unpacked(mut body: Vec<u8>, until: Instant) -> Result<usize, String> {
        let mut plain = Vec::new();
        match Decoder::default().unpack(&mut body, &mut plain, until) {
            Ok(()) => Ok(plain.len()),
            Err(BodyError::Bad(why)) => Err(why),
            Err(BodyError::Broken(error)) => Err(error.to_string()),
        }
    }

    #[test]
    fn members_are_counted() {
        let member = gzip(b"ab");
        assert_eq!(unpacked(member.repeat(MEMBERS_MAX), ample()), Ok(2 * MEMBERS_MAX));
        let more = Err("gzip: more than 16 members".to_owned());
        assert_eq!(unpacked(member.repeat(MEMBERS_MAX + 1), ample()), more);
    }

    /// A member of so many blocks that hold nothing: ten bits each, of the fixed kind.
    fn empty_blocks(count: usize) -> Vec<u8> {
        let mut packed = gzip(b"")[..10].to_vec();
        // Not the last one, fixed: 0 01; end of block: 0000000. Four of them are five bytes.
        packed.extend([0x02, 0x08, 0x20, 0x80, 0x00].repeat(count / 4));
        packed.extend([0x03, 0x00, 0, 0, 0, 0, 0, 0, 0, 0]);
        packed
    }

    #[test]
    fn what_takes_too_long_is_given_up() {
        assert_eq!(unpacked(empty_blocks(4000), ample()), Ok(0));
        let began = thread_cpu();
        let endless = unpacked(empty_blocks(12_000_000), ample());
        assert_eq!(endless, Err("gzip: it takes too long to unpack".to_owned()));
        assert!(thread_cpu() - began < 4 * UNPACK_CPU_MAX);
        let late = unpacked(empty_blocks(40_000), Instant::now());
        assert_eq!(late, Err("timeout: receive body".to_owned()));
    }

    /// What a decoder of its own makes of a body.
    fn alone(packed: &[u8]) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        let read = MultiGzDecoder::new(packed).read_to_end(&mut plain);
        read.map(|_| plain).map_err(|e| format!("gzip: {e}"))
    }

    proptest! {
        /// One decoder for all: whatever it met before, the next body is its own.
        #[test]
        fn a_decoder_remembers_nothing(bodies in vec(packed(), 1..6)) {
            let mut decoder = Decoder::default();
            for body in bodies {
                let mut plain = Vec::new();
                let unpacked = match decoder.unpack(&mut body.clone(), &mut plain, ample()) {
                    Ok(()) => Ok(plain),
                    Err(BodyError::Bad(why)) => Err(why),
                    Err(BodyError::Broken(error)) => panic!("{error}"),
                };
                prop_assert_eq!(unpacked, alone(&body));
            }
        }
    }
}
