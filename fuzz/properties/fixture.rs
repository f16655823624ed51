//! Owns the property of fixtures: any text is read or refused with its place; what is read
//! can be loaded; and a database printed as a fixture loads to the same database, whatever
//! was in it.
//!
//! Never: a file.

use roost::model::time::Wall;
use roost::store::{fixture, open, verify};
use serde_json::Value;

/// Any moment will do.
const NOW: Wall = Wall(1_779_000_000_000);

/// Fails when the property does not hold for these bytes.
pub fn holds(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(printed) = round(text) else { return };
    let again = round(&printed.to_string()).expect("what was printed is a fixture");
    assert_eq!(again, printed, "a fixture of the same database");
}

/// The fixture printed from a database loaded from this one; none when it is refused.
fn round(text: &str) -> Option<Value> {
    let fleet = match fixture::parse(text, NOW) {
        Ok(fleet) => fleet,
        Err(refused) => {
            assert!(!refused.place.is_empty() && !refused.reason.is_empty());
            return None;
        }
    };
    let mut conn = open::open_in_memory(NOW).expect("made");
    assert!(fixture::load(&mut conn, &fleet).expect("what is read can be loaded"));
    assert_eq!(verify::verify(&conn).expect("looked at"), [] as [String; 0]);
    Some(fixture::dump(&conn, NOW).expect("what was loaded can be printed"))
}
