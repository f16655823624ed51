//! Owns how a request's query is read: every complaint names the parameter.
//!
//! Never: minds parameters that it does not know.

use super::Problem;
use std::fmt::Display;
use std::str::FromStr;

/// The parameters of a query, decoded.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn read(query: &str) -> Result<Query, Problem> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong = || Problem::invalid(format!("{name}: is not well percent-encoded"));
            Ok((decoded(name).ok_or_else(wrong)?, decoded(value).ok_or_else(wrong)?))
        });
        Ok(Query(pairs.collect::<Result<_, Problem>>()?))
    }

    /// A parameter; the last of several. `None` when missing or empty.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rfind(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// A parameter that says yes or no; false when missing or empty.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            Some("true" | "1") => Ok(true),
            Some("false" | "0") | None => Ok(false),
            Some(_) => Err(Problem::invalid(format!("{name} must be true or false"))),
        }
    }

    /// All parameters but this one, as they were, and this one with another value; with a
    /// question mark before them.
    pub(super) fn with(&self, name: &str, value: &str) -> String {
        let kept = self.0.iter().filter(|(found, _)| found != name);
        let kept = kept.map(|(name, value)| (name.as_str(), value.as_str()));
        let pairs = kept.chain([(name, value)]);
        let pairs: Vec<String> =
            pairs.map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        format!("?{}", pairs.join("&"))
    }

    /// A parameter that must say a `T`; `None` when missing or empty.
    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Problem>
    where
        T::Err: Display,
    {
        let parsed = self.text(name).map(str::parse).transpose();
        parsed.map_err(|e| Problem::invalid(format!("{name}: {e}")))
    }
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).into(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Text without percent-encoding; `None` when that is broken or says no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::read("a=1&&b=%3A%c3%a9&c&a=2&=x&%64=4").unwrap();
        let text = |name| query.text(name);
        assert_eq!((text("a"), text("b"), text("c")), (Some("2"), Some(":é"), None));
        assert_eq!((text("d"), text("e")), (Some("4"), None));
        assert_eq!(query.parsed::<u32>("a"), Ok(Some(2)));
        assert_eq!(query.parsed::<u32>("c"), Ok(None));
        let wrong = query.parsed::<u32>("b").unwrap_err();
        assert!(wrong.message.starts_with("b: "), "{wrong:?}");
        assert_eq!(query.with("a", "n>"), "?b=%3A%C3%A9&c=&=x&d=4&a=n%3E");
        for broken in ["a=%", "a=%4", "a=%zz", "a=%ff", "%=1"] {
            assert_eq!(Query::read(broken).err().map(|e| e.status), Some(400), "{broken}");
        }
    }
}
