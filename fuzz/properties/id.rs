//! Owns the property of ids: one spelling for every value, one value for every spelling,
//! and schoolbook arithmetic comes to the same.
//!
//! Never: knows how ids are read.

use roost::model::id::{DIGITS, HostId, Id, Kind, OpId, SandboxId, TeamId};

/// Fails when the property does not hold for these bytes: as text, and as a value.
pub fn holds(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        read::<SandboxId>(text, "cl-");
        read::<HostId>(text, "host-");
        read::<TeamId>(text, "team-");
        read::<OpId>(text, "op-");
    }
    if let Some(value) = bytes.first_chunk() {
        let value = u128::from_be_bytes(*value);
        let text = SandboxId::from_u128(value).to_string();
        assert_eq!(text.parse(), Ok(SandboxId::from_u128(value)));
        assert_eq!(by_hand(&text, "cl-"), Some(value));
    }
}

trait Value: std::str::FromStr + ToString {
    fn value(&self) -> u128;
}

impl<K: Kind> Value for Id<K> {
    fn value(&self) -> u128 {
        self.as_u128()
    }
}

fn read<T: Value>(text: &str, prefix: &str) {
    let id = text.parse::<T>().ok();
    assert_eq!(id.as_ref().map(T::value), by_hand(text, prefix), "{text:?}");
    if let Some(id) = id {
        assert_eq!(id.to_string(), text);
    }
}

fn by_hand(text: &str, prefix: &str) -> Option<u128> {
    let digits = text.strip_prefix(prefix).filter(|digits| digits.len() == DIGITS)?;
    digits.bytes().try_fold(0_u128, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'z' => digit - b'a' + 10,
            _ => return None,
        };
        value.checked_mul(36)?.checked_add(u128::from(digit))
    })
}
