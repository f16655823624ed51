//! Owns how a request's JSON body is read: every complaint names the field.
//!
//! Never: minds fields that it does not know.

use super::Problem;
use crate::http::Request;
use crate::model::time::Wall;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The fields of a JSON object. An empty body has none.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn read(request: &Request) -> Result<Fields, Problem> {
        match request.headers.get("content-encoding").map(str::trim) {
            None | Some("" | "identity") => Fields::parse(&request.body),
            Some(coding) => {
                let message =
                    format!("Content-Encoding: {coding} is not supported; send plain JSON");
                Err(Problem::new(415, "unsupported_media_type", message))
            }
        }
    }

    fn parse(body: &[u8]) -> Result<Fields, Problem> {
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

    /// Whether a field says something: it is there and neither null nor empty.
    pub(super) fn has(&self, name: &str) -> bool {
        match self.get(name) {
            None => false,
            Some(Value::Object(fields)) => !fields.is_empty(),
            Some(_) => true,
        }
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

    /// What an agent says, for people: cut off rather than refused, since what it is said of
    /// counts; `None` when missing or empty.
    pub(super) fn words(&self, name: &str) -> Result<Option<String>, Problem> {
        match self.get(name) {
            Some(Value::String(text)) if text.len() > TEXT_BYTES_MAX => {
                Ok(Some(text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()))
            }
            _ => self.text(name),
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
                let seconds = whole_seconds(value).ok_or_else(wrong)?;
                Ok(Some(Wall(seconds.saturating_mul(1000))))
            }
        }
    }

    /// A whole number that is not negative; `None` when missing.
    pub(super) fn count(&self, name: &str) -> Result<Option<u32>, Problem> {
        self.count_in(name, 0..=u32::MAX)
    }

    /// A whole number of this range; `None` when missing.
    pub(super) fn count_in(
        &self,
        name: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Problem> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let count = whole(value).and_then(|n| u32::try_from(n).ok());
        let (least, most) = (range.start(), range.end());
        let wrong =
            || Problem::invalid(format!("{name} must be a whole number from {least} to {most}"));
        count.filter(|count| range.contains(count)).map(Some).ok_or_else(wrong)
    }

    /// A list of strings that must each say a `T`; empty when missing.
    pub(super) fn list<T: FromStr>(&self, name: &str) -> Result<Vec<T>, Problem>
    where
        T::Err: Display,
    {
        let wrong = |what: String| Problem::invalid(format!("{name}{what}"));
        let values = match self.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) if values.len() > LIST_MAX => {
                return Err(wrong(format!(" has more than {LIST_MAX} entries")));
            }
            Some(Value::Array(values)) => values,
            Some(_) => return Err(wrong(" must be a list of strings".to_owned())),
        };
        let parsed = |(at, value): (usize, &Value)| {
            let text = value.as_str().ok_or_else(|| wrong(format!("[{at}] must be a string")))?;
            text.parse().map_err(|e| wrong(format!("[{at}]: {e}")))
        };
        values.iter().enumerate().map(parsed).collect()
    }

    /// An object of strings, such as an environment; `None` when missing or empty.
    pub(super) fn strings(&self, name: &str) -> Result<Option<&Map<String, Value>>, Problem> {
        let fields = match self.get(name) {
            None => return Ok(None),
            Some(Value::Object(fields)) => fields,
            Some(_) => {
                return Err(Problem::invalid(format!("{name} must be an object of strings")));
            }
        };
        if let Some((key, _)) = fields.iter().find(|(_, value)| !value.is_string()) {
            let key = key.escape_debug();
            return Err(Problem::invalid(format!("{name}.{key} must be a string")));
        }
        Ok(Some(fields).filter(|fields| !fields.is_empty()))
    }
}

/// A number without a fraction, also when it is written `4.0`, as some languages do.
fn whole(value: &Value) -> Option<u64> {
    let exact = |n: &f64| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n);
    value.as_u64().or_else(|| value.as_f64().filter(exact).map(|n| n as u64))
}

/// The same of seconds, which may lie before 1970.
fn whole_seconds(value: &Value) -> Option<i64> {
    let range = i64::MIN as f64..=i64::MAX as f64;
    let exact = |n: &f64| n.fract() == 0.0 && range.contains(n);
    value.as_i64().or_else(|| value.as_f64().filter(exact).map(|n| n as i64))
}

/// Longest text field. Larger and a client fills the database; smaller and a long name
/// is refused.
const TEXT_BYTES_MAX: usize = 1024;

/// Longest list. Larger and one request occupies the writer; smaller and a fleet's hosts do
/// not fit.
const LIST_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_whole_however_it_is_written() {
        let count = |json: &str| Fields::parse(json.as_bytes()).unwrap().count("n");
        assert_eq!(count(r#"{"n": 4.0}"#), Ok(Some(4)));
        assert_eq!(count(r#"{"n": 4294967295.0}"#), Ok(Some(u32::MAX)));
        assert_eq!(count(r#"{"n": null}"#), Ok(None));
        for wrong in ["4.5", "-1.0", "-1", "4294967296", "4294967296.0", "1e300", "true"] {
            assert!(count(&format!(r#"{{"n": {wrong}}}"#)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_in_a_list_or_object_is_named() {
        let read = |json: &str| Fields::parse(json.as_bytes()).unwrap();
        let list = |json: &str| read(json).list::<u32>("l").map_err(|e| e.message);
        assert_eq!(list(r#"{"l": ["1", "2"]}"#), Ok(vec![1, 2]));
        assert_eq!(list(r#"{"l": null}"#), Ok(vec![]));
        assert_eq!(list(r#"{"l": "1"}"#), Err("l must be a list of strings".to_owned()));
        assert_eq!(list(r#"{"l": ["1", 2]}"#), Err("l[1] must be a string".to_owned()));
        let not_parsed = "l[0]: invalid digit found in string".to_owned();
        assert_eq!(list(r#"{"l": ["x"]}"#), Err(not_parsed));
        let long = vec!["1"; LIST_MAX + 1];
        let long = serde_json::json!({"l": long}).to_string();
        assert_eq!(list(&long), Err("l has more than 10000 entries".to_owned()));

        let strings =
            |json: &str| read(json).strings("o").map(|o| o.map(Map::len)).map_err(|e| e.message);
        assert_eq!(strings(r#"{"o": {"a": "b"}}"#), Ok(Some(1)));
        assert_eq!(strings(r#"{"o": {}}"#), Ok(None));
        assert_eq!(strings("{}"), Ok(None));
        let wrong = Err("o must be an object of strings".to_owned());
        assert_eq!(strings(r#"{"o": ["a"]}"#), wrong);
        assert_eq!(strings(r#"{"o": "a=b"}"#), wrong);
        assert_eq!(strings(r#"{"o": {"a": 1}}"#), Err("o.a must be a string".to_owned()));
    }

    #[test]
    fn a_time_in_seconds_is_whole_however_it_is_written() {
        let time = |json: &str| Fields::parse(json.as_bytes()).unwrap().time("t");
        assert_eq!(time(r#"{"t": -45.0}"#), Ok(Some(Wall(-45_000))));
        assert_eq!(time(r#"{"t": 1.779e9}"#), time(r#"{"t": 1779000000}"#));
        assert_eq!(time(r#"{"t": null}"#), Ok(None));
        for wrong in ["4.5", "1e300", "-1e300", "true", r#""soon""#] {
            assert!(time(&format!(r#"{{"t": {wrong}}}"#)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn long_words_of_an_agent_are_cut_and_other_long_texts_refused() {
        let long = format!("{}é", "x".repeat(TEXT_BYTES_MAX - 1));
        let fields = Fields::parse(format!(r#"{{"error": "{long}", "n": 4}}"#).as_bytes()).unwrap();
        assert_eq!(fields.words("error"), Ok(Some("x".repeat(TEXT_BYTES_MAX - 1))));
        assert!(fields.text("error").is_err());
        assert!(fields.words("n").is_err());
        assert_eq!(fields.words("none"), Ok(None));
    }
}
