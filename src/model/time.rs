//! Owns the two kinds of time and spans of it.
//!
//! Never: asks a clock; only the `clock` room does. Called by every room.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Milliseconds on a clock that never goes back and does not run while the machine is
/// suspended. Only differences mean something; the origin differs between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

/// Milliseconds since 1970-01-01 UTC. May jump either way; for people and for
/// what must be compared across restarts, never for deciding that somebody is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(pub i64);

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For measuring.
    pub mono: Mono,
    /// For writing down.
    pub wall: Wall,
}

impl Mono {
    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The moment `span` later.
    pub fn after(self, span: Duration) -> Mono {
        Mono(self.0.saturating_add(millis(span)))
    }

    /// The moment `span` earlier, or the origin.
    pub fn before(self, span: Duration) -> Mono {
        Mono(self.0.saturating_sub(millis(span)))
    }
}

impl Wall {
    /// Time from `earlier` to `self`; zero when `earlier` lies in the future.
    pub fn since(self, earlier: Wall) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The moment `span` later.
    pub fn after(self, span: Duration) -> Wall {
        Wall(self.0.saturating_add(i64::try_from(millis(span)).unwrap_or(i64::MAX)))
    }

    /// The moment `span` earlier.
    pub fn before(self, span: Duration) -> Wall {
        Wall(self.0.saturating_sub(i64::try_from(millis(span)).unwrap_or(i64::MAX)))
    }

    /// Whole seconds since 1970, rounded down.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339 in UTC with milliseconds; what cannot be written so (years outside
/// 1970..=9999) is shown as its nearest bound.
impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LAST: u64 = 253_402_300_799_999;
        let ms = u64::try_from(self.0).unwrap_or(0).min(LAST);
        let at = std::time::UNIX_EPOCH + Duration::from_millis(ms);
        humantime::format_rfc3339_millis(at).fmt(f)
    }
}

/// Reads RFC 3339 in UTC.
impl FromStr for Wall {
    type Err = humantime::TimestampError;
    fn from_str(text: &str) -> Result<Wall, Self::Err> {
        let at = humantime::parse_rfc3339(text)?;
        let ms = at.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis());
        Ok(Wall(i64::try_from(ms).unwrap_or(i64::MAX)))
    }
}

impl serde::Serialize for Wall {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_as_rfc3339() {
        let at = Wall(1_779_000_000_123);
        assert_eq!(at.to_string(), "2026-05-17T06:40:00.123Z");
        assert_eq!(at.to_string().parse(), Ok(at));
        assert_eq!(Wall(-5).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Wall(i64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn differences_never_go_below_zero() {
        assert_eq!(Mono(5).since(Mono(9)), Duration::ZERO);
        assert_eq!(Wall(5).since(Wall(9)), Duration::ZERO);
        assert_eq!(Wall(i64::MIN).since(Wall(i64::MAX)), Duration::ZERO);
        assert_eq!(Mono(9).since(Mono(5)), Duration::from_millis(4));
        assert_eq!(Wall(-1).unix_seconds(), -1);
    }
}
