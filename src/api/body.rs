//! Owns how a request's JSON body is read: every complaint names the field.
//!
//! Never: minds fields that it does not know.

use super::Problem;
use crate::model::time::Wall;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::str::FromStr;

/// The fields of a JSON object. An empty body has none.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn read(body: &[u8]) -> Result<Fields, Problem> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Fields(Map::new()));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(_) => Err(Problem::invalid("the body must be a JSON object")),
            Err(error) => Err(Problem::invalid(format!("the body is not JSON: {error}"))),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A string; `None` when missing or empty.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) if text.len() > TEXT_BYTES_MAX => {
                Err(Problem::invalid(format!("{name} is longer than {TEXT_BYTES_MAX} bytes")))
            }
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Problem::invalid(format!("{name} must be a string"))),
        }
    }

    pub(super) fn required(&self, name: &str) -> Result<String, Problem> {
        self.text(name)?.ok_or_else(|| Problem::invalid(format!("{name} is required")))
    }

    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<T, Problem>
    where
        T::Err: Display,
    {
        self.optional(name)?.ok_or_else(|| Problem::invalid(format!("{name} is required")))
    }

    /// A string that must say a `T`; `None` when missing or empty.
    pub(super) fn optional<T: FromStr>(&self, name: &str) -> Result<Option<T>, Problem>
    where
        T::Err: Display,
    {
        let parsed = self.text(name)?.map(|text| text.parse()).transpose();
        parsed.map_err(|e| Problem::invalid(format!("{name}: {e}")))
    }

    /// A moment: unix seconds, or RFC 3339 in UTC; `None` when missing.
    pub(super) fn time(&self, name: &str) -> Result<Option<Wall>, Problem> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let wrong = || Problem::invalid(format!("{name} must be unix seconds or RFC 3339"));
        match value.as_str() {
            Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| wrong()),
            None => {
                let seconds = value.as_i64().ok_or_else(wrong)?;
                Ok(Some(Wall(seconds.saturating_mul(1000))))
            }
        }
    }

    /// A whole number that is not negative; `None` when missing.
    pub(super) fn count(&self, name: &str) -> Result<Option<u32>, Problem> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| u32::try_from(n).ok());
        let wrong =
            || Problem::invalid(format!("{name} must be a whole number from 0 to {}", u32::MAX));
        count.map(Some).ok_or_else(wrong)
    }
}

/// Longest text field. Larger and a client fills the database; smaller and a long name
/// is refused.
const TEXT_BYTES_MAX: usize = 1024;
