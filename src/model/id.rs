//! Owns the textual form of ids: a prefix and a 128-bit value in 25 base36 digits.
//!
//! Never: generates randomness (the caller passes it in), accepts a second spelling of
//! the same id. Called by every room.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

/// Base36 digits in an id: the fewest that can say every 128-bit value.
pub const DIGITS: usize = 25;

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Digits that fit a `u64` without overflow (36^12 < 2^63), so that only two 128-bit
/// multiplications are needed for one id.
const CHUNK: usize = 12;
const CHUNK_SCALE: u128 = 36u128.pow(CHUNK as u32);

/// What an id names; gives the prefix.
pub trait Kind: Copy + Eq + Ord + std::hash::Hash + fmt::Debug + Send + Sync + 'static {
    /// Text before the digits, with its dash.
    const PREFIX: &'static str;
}

/// A typed 128-bit id. Equal, ordered and hashed by value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id<K: Kind>(u128, PhantomData<K>);

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdError {
    /// The text does not start with the expected prefix.
    Prefix {
        /// The prefix it should have.
        expected: &'static str,
    },
    /// The digits are more or fewer than 25.
    Length {
        /// How many bytes follow the prefix.
        found: usize,
    },
    /// A character is not one of `0-9a-z`.
    Digit,
    /// The digits say more than 128 bits.
    Overflow,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdError::Prefix { expected } => write!(f, "id does not start with {expected:?}"),
            IdError::Length { found } => {
                write!(f, "id has {found} digits after its prefix instead of {DIGITS}")
            }
            IdError::Digit => f.write_str("id has a character that is not 0-9 or a-z"),
            IdError::Overflow => f.write_str("id is larger than 128 bits"),
        }
    }
}

impl std::error::Error for IdError {}

impl<K: Kind> Id<K> {
    /// The id with this value. Random ids are made from 16 random bytes.
    pub const fn from_u128(value: u128) -> Self {
        Id(value, PhantomData)
    }

    /// The value.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The value as a version 4 UUID would carry it: six bits are fixed, 122 are taken
    /// from `random`.
    pub const fn from_random(random: [u8; 16]) -> Self {
        let mut b = random;
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        Id(u128::from_be_bytes(b), PhantomData)
    }

    /// The value in the hyphenated form of RFC 4122, as the agents' wire writes team ids.
    pub fn to_uuid(self) -> String {
        let h = format!("{:032x}", self.0);
        format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }

    /// The id with the value of a hyphenated UUID; `None` when the text is none.
    pub fn from_uuid(text: &str) -> Option<Self> {
        let hyphenated = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        let value = hyphenated.then(|| u128::from_str_radix(&text.replace('-', ""), 16));
        value?.ok().map(Id::from_u128)
    }

    fn digits(self) -> [u8; DIGITS] {
        // A division of 128 bits costs more than all the others.
        let high = self.0 / CHUNK_SCALE;
        let last = (self.0 - high * CHUNK_SCALE) as u64;
        let first = high / CHUNK_SCALE;
        let middle = (high - first * CHUNK_SCALE) as u64;
        let mut out = [b'0'; DIGITS];
        out[0] = ALPHABET[first as usize];
        write_chunk(&mut out[1..=CHUNK], middle);
        write_chunk(&mut out[CHUNK + 1..], last);
        out
    }
}

/// Two digits for each number that has no more.
const PAIRS: [[u8; 2]; 36 * 36] = {
    let mut pairs = [[b'0'; 2]; 36 * 36];
    let mut number = 0;
    while number < pairs.len() {
        pairs[number] = [ALPHABET[number / 36], ALPHABET[number % 36]];
        number += 1;
    }
    pairs
};

fn write_chunk(out: &mut [u8], mut number: u64) {
    for pair in out.rchunks_exact_mut(2) {
        pair.copy_from_slice(&PAIRS[(number % 1296) as usize]);
        number /= 1296;
    }
}

/// What a character says as a digit; `NO_DIGIT` when it is none.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 36 {
        values[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// No digit has this bit.
const NO_DIGIT: u8 = 0x80;

fn chunk(bytes: &[u8]) -> Result<u64, IdError> {
    // Ids are read by the hundred thousand: without a decision for each digit.
    let (mut value, mut seen) = (0u64, 0);
    for &b in bytes {
        let digit = VALUES[usize::from(b)];
        seen |= digit;
        value = value.wrapping_mul(36).wrapping_add(u64::from(digit));
    }
    if seen & NO_DIGIT == 0 { Ok(value) } else { Err(IdError::Digit) }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits =
            text.strip_prefix(K::PREFIX).ok_or(IdError::Prefix { expected: K::PREFIX })?.as_bytes();
        if digits.len() != DIGITS {
            return Err(IdError::Length { found: digits.len() });
        }
        let (first, rest) = digits.split_at(DIGITS - 2 * CHUNK);
        let (middle, last) = rest.split_at(CHUNK);
        let high = u128::from(chunk(first)?) * CHUNK_SCALE + u128::from(chunk(middle)?);
        let low = u128::from(chunk(last)?);
        high.checked_mul(CHUNK_SCALE)
            .and_then(|v| v.checked_add(low))
            .map(Id::from_u128)
            .ok_or(IdError::Overflow)
    }
}

/// The text of an id, on the stack.
#[derive(Clone, Copy)]
pub struct IdText {
    bytes: [u8; 8 + DIGITS],
    len: usize,
}

impl IdText {
    /// The text.
    pub fn as_str(&self) -> &str {
        // Only ASCII is ever put in.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl<K: Kind> Id<K> {
    /// The text without an allocation, for where many are written.
    pub fn text(self) -> IdText {
        let mut bytes = [0u8; 8 + DIGITS];
        let prefix = K::PREFIX.as_bytes();
        let len = prefix.len() + DIGITS;
        bytes[..prefix.len()].copy_from_slice(prefix);
        bytes[prefix.len()..len].copy_from_slice(&self.digits());
        IdText { bytes, len }
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> serde::Serialize for Id<K> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de, K: Kind> serde::Deserialize<'de> for Id<K> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor<K>(PhantomData<K>);
        impl<K: Kind> serde::de::Visitor<'_> for Visitor<K> {
            type Value = Id<K>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an id that starts with {:?}", K::PREFIX)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id<K>, E> {
                text.parse().map_err(|e| E::custom(format_args!("{text:?}: {e}")))
            }
        }
        d.deserialize_str(Visitor(PhantomData))
    }
}

macro_rules! kinds {
    ($($(#[$meta:meta])* $kind:ident $alias:ident $prefix:literal),+ $(,)?) => {
        $(
            #[doc = concat!("Kind of ids with the prefix `", $prefix, "`.")]
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $kind;
            impl Kind for $kind { const PREFIX: &'static str = $prefix; }
            $(#[$meta])*
            pub type $alias = Id<$kind>;
        )+
    };
}

kinds! {
    /// A sandbox; a *capsule* in public URLs.
    SandboxKind SandboxId "cl-",
    /// A host.
    HostKind HostId "host-",
    /// A team.
    TeamKind TeamId "team-",
    /// An API key.
    KeyKind KeyId "key-",
    /// A registration token of a host.
    HostTokenKind HostTokenId "htok-",
    /// A refresh token of a host.
    RefreshTokenKind RefreshTokenId "hrt-",
    /// An audit entry.
    LogKind LogId "log-",
    /// A template.
    TemplateKind TemplateId "tmpl-",
    /// A lifecycle operation.
    OpKind OpId "op-",
}

/// The team that owns what belongs to nobody else: the all-zero UUID.
pub const PLATFORM_TEAM: TeamId = Id::from_u128(0);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> IdError {
        text.parse::<SandboxId>().unwrap_err()
    }

    #[test]
    fn known_values() {
        assert_eq!(PLATFORM_TEAM.to_string(), "team-0000000000000000000000000");
        assert_eq!(
            SandboxId::from_u128(u128::MAX).to_string(),
            "cl-f5lxx1zz5pnorynqglhzmsp33",
            "2^128 - 1 in base 36"
        );
        assert_eq!("cl-0000000000000000000000010".parse(), Ok(SandboxId::from_u128(36)));
        assert_eq!(
            PLATFORM_TEAM.to_uuid(),
            "00000000-0000-0000-0000-000000000000",
            "the wire's own form"
        );
    }

    #[test]
    fn only_one_spelling() {
        assert_eq!(refused("cl-f5lxx1zz5pnorynqglhzmsp34"), IdError::Overflow);
        assert_eq!(refused("cl-zzzzzzzzzzzzzzzzzzzzzzzzz"), IdError::Overflow);
        assert_eq!(refused("cl-000000000000000000000000"), IdError::Length { found: 24 });
        assert_eq!(refused("cl-00000000000000000000000000"), IdError::Length { found: 26 });
        assert_eq!(refused("cl-"), IdError::Length { found: 0 });
        assert_eq!(refused("cl-000000000000000000000000A"), IdError::Digit);
        assert_eq!(refused("cl-00000000000000000000000 0"), IdError::Digit);
        assert_eq!(refused("host-0000000000000000000000000"), IdError::Prefix { expected: "cl-" });
        assert_eq!(refused(" cl-0000000000000000000000000"), IdError::Prefix { expected: "cl-" });
        assert_eq!(refused("CL-0000000000000000000000000"), IdError::Prefix { expected: "cl-" });
        assert_eq!(refused(""), IdError::Prefix { expected: "cl-" });
        assert_eq!(refused("cl-00000000000000000000000é"), IdError::Digit, "25 bytes, 24 letters");
        for no_uuid in [
            "",
            "ee0000000000000000000000000000000001",
            "ee000000-0000-0000-0000-00000000000g",
            "+e000000-0000-0000-0000-000000000001",
            "ee00000-00000-0000-0000-000000000001",
            "{ee000000-0000-0000-0000-00000000001}",
        ] {
            assert_eq!(TemplateId::from_uuid(no_uuid), None, "{no_uuid}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(value: u128) {
            let id = HostId::from_u128(value);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn round_trip_by_uuid(value: u128) {
            let id = TemplateId::from_u128(value);
            prop_assert_eq!(Id::from_uuid(&id.to_uuid()), Some(id));
            prop_assert_eq!(Id::from_uuid(&id.to_uuid().to_uppercase()), Some(id));
        }

        #[test]
        fn order_of_text_is_order_of_value(a: u128, b: u128) {
            let (a, b) = (OpId::from_u128(a), OpId::from_u128(b));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,40}") {
            prop_assert_eq!(SandboxId::from_uuid(&text), None);
            if let Ok(id) = text.parse::<SandboxId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
