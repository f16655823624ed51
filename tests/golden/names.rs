//! Owns the names of what differs from one run to the next: ids, secrets, moments.
//!
//! Never: the same name for two things, or two names for one.

use serde_json::Value;
use std::collections::HashMap;

/// Names in the order in which things were first seen.
pub(crate) struct Names {
    names: Vec<(String, String)>,
    counts: HashMap<&'static str, u32>,
}

impl Names {
    /// What is known before anything is asked: name and what it stands for.
    pub(crate) fn new(known: &[(&str, &str)]) -> Names {
        let names = known.iter().map(|(name, real)| (format!("<{name}>"), (*real).to_owned()));
        Names { names: names.collect(), counts: HashMap::new() }
    }

    /// A text of the script as it is sent. `<long N>` stands for N letters.
    pub(crate) fn real(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, real) in &self.names {
            text = text.replace(name.as_str(), real);
        }
        while let Some((before, rest)) = text.split_once("<long ") {
            let (count, after) = rest.split_once('>').unwrap();
            text = format!("{before}{}{after}", "x".repeat(count.parse().unwrap()));
        }
        text
    }

    /// A text of the server as it is shown.
    pub(crate) fn named(&mut self, text: &str) -> String {
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_.-:".contains(c);
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(is_word) {
            let (before, after) = rest.split_at(at);
            let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
            let (word, after) = after.split_at(end);
            out.push_str(before);
            out.push_str(&self.name_of(word));
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn name_of(&mut self, word: &str) -> String {
        if let Some((name, _)) = self.names.iter().find(|(_, real)| real == word) {
            return name.clone();
        }
        match kind(word) {
            None => word.to_owned(),
            Some("time") => "<time>".to_owned(),
            // Two of one second are the same; any of them will do.
            Some("jwt") => {
                self.names.push(("<jwt>".to_owned(), word.to_owned()));
                "<jwt>".to_owned()
            }
            Some(kind) => {
                let count = self.counts.entry(kind).or_default();
                *count += 1;
                let name = format!("<{kind}-{count}>");
                self.names.push((name.clone(), word.to_owned()));
                name
            }
        }
    }
}

/// What a word is, if it differs from run to run.
fn kind(word: &str) -> Option<&'static str> {
    const PREFIXES: [&str; 7] = ["cl", "host", "key", "log", "op", "team", "tmpl"];
    if let Some((prefix, digits)) = word.split_once('-')
        && let Some(kind) = PREFIXES.into_iter().find(|known| *known == prefix)
    {
        let is_id = digits.len() == 25 && digits.bytes().any(|b| b != b'0');
        return is_id.then_some(kind);
    }
    if word.strip_prefix("roost_").is_some_and(is_secret) {
        return Some("api-key");
    }
    if is_secret(word) {
        return Some("secret");
    }
    if word.starts_with("eyJ") && word.matches('.').count() == 2 {
        return Some("jwt");
    }
    let is_time = word.len() == 24 && word.ends_with('Z') && word.as_bytes()[10] == b'T';
    is_time.then_some("time")
}

fn is_secret(word: &str) -> bool {
    word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit())
}

/// How long something took, certificates and ends of keys are never the same twice.
pub(crate) fn hide_fleeting(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match name.as_str() {
                    "took_ms" => *value = Value::from("<ms>"),
                    "suffix" | "key_suffix" => *value = Value::from("<suffix>"),
                    _ => {}
                }
                if let Some(text) = value.as_str().filter(|_| name.ends_with("_pem")) {
                    *value = Value::from(text.lines().next().unwrap_or_default());
                }
                hide_fleeting(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_fleeting),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
