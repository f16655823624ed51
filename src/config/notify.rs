//! Owns the `[[notify]]` sections of `roost.toml`: who is told of trouble, and the secrets
//! that takes.
//!
//! Never: shows a secret, not in an error either: a URL may be one. Reads a file that holds
//! one only when it is needed, so that a command of somebody who may not read it works.

use super::error::ConfigError;
use super::gather::Source;
use super::rule;
use crate::files;
use crate::model::notify::NotifyKind;
use crate::model::vocabulary;
use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What the sections are called.
pub(super) const SECTION: &str = "notify";

/// Targets at most. Each has a thread of its own. Larger: more of them; smaller: not every
/// team has its channel.
const TARGETS_MAX: usize = 16;

/// Longest secret or URL in bytes. Larger: a wrong file is read whole; smaller: a long
/// token is refused.
const SECRET_BYTES_MAX: u64 = 4096;

/// Longest name of a target.
const NAME_BYTES_MAX: usize = 64;

vocabulary! {
    /// How a target wants to be told.
    TargetKind, "kind", {
        /// Our own JSON, signed when there is a secret.
        Generic = "generic",
        /// ntfy: text with headers.
        Ntfy = "ntfy",
        /// Whatever takes Slack's incoming webhooks.
        Slack = "slack",
    }
}

/// A secret, or the file that holds it.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The secret itself.
    Here(String),
    /// Its file, read at every use: a new secret needs no signal.
    In(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Here(_) => f.write_str("Secret"),
            Secret::In(path) => write!(f, "Secret in {}", path.display()),
        }
    }
}

/// Why a secret cannot be had; says nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretError(String);

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SecretError {}

impl Secret {
    /// The secret, without white space around it.
    ///
    /// # Errors
    /// A file that cannot be read or holds nothing of use.
    pub fn reveal(&self) -> Result<String, SecretError> {
        let path = match self {
            Secret::Here(text) => return Ok(text.clone()),
            Secret::In(path) => path,
        };
        let wrong = |why: &dyn fmt::Display| SecretError(format!("{}: {why}", path.display()));
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|e| wrong(&e))?;
        file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| wrong(&e))?;
        match files::without_mark(&text).trim() {
            "" => Err(wrong(&"is empty")),
            _ if text.len() as u64 > SECRET_BYTES_MAX => Err(wrong(&"is too long for a secret")),
            text => Ok(text.to_owned()),
        }
    }
}

/// Somebody who is told of trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name: the same for as long as it is the same to us.
    pub name: String,
    /// How.
    pub kind: TargetKind,
    /// Where; may be secret itself.
    pub url: Secret,
    /// Signs what is sent; `generic` only.
    pub secret: Option<Secret>,
    /// Shown as a bearer's; `ntfy` only.
    pub token: Option<Secret>,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Of what.
    pub events: BTreeSet<NotifyKind>,
    /// Where it is written.
    pub source: Source,
}

/// Reads every section.
pub(super) fn targets(
    value: &Spanned<DeValue<'_>>,
    place: &dyn Fn(usize) -> Source,
) -> Result<Vec<Target>, ConfigError> {
    let at = value.span().start;
    let refused = |must: &str| ConfigError::Target {
        place: format!("{SECTION} ({})", place(at)),
        must: must.to_owned(),
    };
    let sections = value.get_ref().as_array().ok_or_else(|| refused("be written [[notify]]"))?;
    let mut targets: Vec<Target> = Vec::new();
    for section in sections.iter() {
        let source = place(section.span().start);
        let table = section.get_ref().as_table().ok_or_else(|| refused("be written [[notify]]"))?;
        let mut target = Section { table, source, number: targets.len() + 1 }.target()?;
        let taken = |name: &str| targets.iter().any(|other| other.name == name);
        if target.name.is_empty() {
            let plain = target.kind.to_string();
            let numbered = |n: usize| if n == 1 { plain.clone() } else { format!("{plain}-{n}") };
            target.name = (1..).map(numbered).find(|name| !taken(name)).unwrap_or_default();
        } else if taken(&target.name) {
            let place = format!("name of [[notify]] ({})", target.source);
            return Err(ConfigError::Target { place, must: "be its own".to_owned() });
        }
        targets.push(target);
    }
    if targets.len() > TARGETS_MAX {
        return Err(refused(&format!("be at most {TARGETS_MAX}")));
    }
    Ok(targets)
}

struct Section<'a> {
    table: &'a DeTable<'a>,
    source: Source,
    number: usize,
}

const FIELDS: &[&str] = &[
    "name",
    "kind",
    "url",
    "url_file",
    "secret",
    "secret_file",
    "token",
    "token_file",
    "ca_file",
    "events",
];

impl Section<'_> {
    fn target(self) -> Result<Target, ConfigError> {
        if let Some((name, _)) =
            self.table.iter().find(|(n, _)| !FIELDS.contains(&n.get_ref().as_ref()))
        {
            return Err(ConfigError::Unknown {
                name: format!("{:.40} in [[notify]] ({})", name.get_ref(), self.source),
                what: "key",
                hint: Some(format!("there are {}", FIELDS.join(", "))),
            });
        }
        let kind = self.text("kind")?.unwrap_or_default();
        let words = TargetKind::WORDS.join(" or ");
        let kind: TargetKind =
            kind.parse().map_err(|_| self.refused("kind", &format!("be {words}")))?;
        let url = self.secret("url", "url_file")?;
        let url = url.ok_or_else(|| self.refused("url", "be set, or url_file"))?;
        if let Secret::Here(url) = &url {
            check_url(url).map_err(|must| self.refused("url", must))?;
        }
        let secret = self.secret("secret", "secret_file")?;
        if secret.is_some() && kind != TargetKind::Generic {
            return Err(self.refused("secret", "go with kind = \"generic\""));
        }
        let token = self.secret("token", "token_file")?;
        if token.is_some() && kind != TargetKind::Ntfy {
            return Err(self.refused("token", "go with kind = \"ntfy\""));
        }
        let name = self.text("name")?.unwrap_or_default();
        if name.len() > NAME_BYTES_MAX || name.chars().any(|c| c.is_control() || c == '"') {
            return Err(self.refused("name", "be at most 64 bytes, without quotes"));
        }
        let ca_file = self.path("ca_file")?;
        let events = self.events()?;
        Ok(Target { name, kind, url, secret, token, ca_file, events, source: self.source })
    }

    fn refused(&self, field: &str, must: &str) -> ConfigError {
        let place = format!("{field} of [[notify]] number {} ({})", self.number, self.source);
        ConfigError::Target { place, must: must.to_owned() }
    }

    fn text(&self, field: &str) -> Result<Option<String>, ConfigError> {
        match self.table.get(field).map(|value| value.get_ref()) {
            None => Ok(None),
            Some(DeValue::String(text)) if text.is_empty() => Ok(None),
            Some(DeValue::String(text)) if text.len() as u64 <= SECRET_BYTES_MAX => {
                Ok(Some(text.to_string()))
            }
            Some(_) => Err(self.refused(field, "be a text in quotes, of at most 4096 bytes")),
        }
    }

    fn path(&self, field: &str) -> Result<Option<PathBuf>, ConfigError> {
        let path = self.text(field)?.map(|text| rule::path(&text)).transpose();
        path.map_err(|hint| {
            self.refused(field, &format!("be a path; {}", hint.unwrap_or("it is empty")))
        })
    }

    fn secret(&self, here: &str, file: &str) -> Result<Option<Secret>, ConfigError> {
        match (self.text(here)?, self.path(file)?) {
            (None, None) => Ok(None),
            (Some(text), None) => Ok(Some(Secret::Here(text))),
            (None, Some(path)) => Ok(Some(Secret::In(path))),
            (Some(_), Some(_)) => Err(self.refused(file, &format!("not be set beside {here}"))),
        }
    }

    fn events(&self) -> Result<BTreeSet<NotifyKind>, ConfigError> {
        let Some(value) = self.table.get("events") else {
            return Ok(NotifyKind::ALL.iter().copied().collect());
        };
        let must = format!("be a list of {}", NotifyKind::WORDS.join(", "));
        let wrong = || self.refused("events", &must);
        let list = value.get_ref().as_array().ok_or_else(wrong)?;
        list.iter()
            .map(|word| {
                let word = word.get_ref().as_str().ok_or_else(wrong)?;
                NotifyKind::from_str(word).map_err(|_| wrong())
            })
            .collect()
    }
}

/// Says what a URL must be when it is not one that can be asked.
///
/// # Errors
/// The words to stand after "must".
pub(super) fn check_url(url: &str) -> Result<(), &'static str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or("begin with https:// or http://")?;
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let odd = url.chars().any(|c| c.is_control() || c.is_whitespace() || !c.is_ascii() || c == '#');
    match host.is_empty() || host.contains('@') || odd {
        true => Err("name a host, without user, white space or fragment"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Target>, String> {
        let table = DeTable::parse(text).unwrap();
        let value = &table.get_ref()["notify"];
        let place = |at: usize| {
            let line = text[..at].lines().count().max(1);
            Source::File { path: "roost.toml".into(), line }
        };
        targets(value, &place).map_err(|e| e.to_string())
    }

    #[test]
    fn targets_are_read_and_named() {
        let targets = read(
            "[[notify]]\nkind = \"generic\"\nurl = \"https://a.example/x\"\nsecret = \"s\"\n\
             [[notify]]\nkind = \"generic\"\nurl_file = \"/run/url\"\nevents = [\"host_down\"]\n\
             [[notify]]\nkind = \"ntfy\"\nname = \"phone\"\nurl = \"http://n/t\"\ntoken_file = \"t\"\n",
        )
        .unwrap();
        let names: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["generic", "generic-2", "phone"]);
        assert_eq!(targets[0].events.len(), NotifyKind::ALL.len());
        assert_eq!(targets[1].events, BTreeSet::from([NotifyKind::HostDown]));
        assert_eq!(targets[1].url, Secret::In("/run/url".into()));
        assert!(!format!("{targets:?}").contains("a.example"), "{targets:?}");
    }

    #[test]
    fn refusals_tell_no_secret() {
        let secret = "hunter2secret";
        for (lines, word) in [
            ("kind = \"mail\"\nurl = \"https://hunter2secret/\"", "kind"),
            ("kind = \"slack\"", "url"),
            ("kind = \"slack\"\nurl = \"ftp://hunter2secret/\"", "url"),
            ("kind = \"slack\"\nurl = \"https://u@hunter2secret/\"", "url"),
            ("kind = \"slack\"\nurl = \"https://x/\"\nsecret = \"hunter2secret\"", "secret"),
            ("kind = \"generic\"\nurl = \"https://x/\"\ntoken = \"hunter2secret\"", "token"),
            ("kind = \"generic\"\nurl = \"https://x/hunter2secret\"\nurl_file = \"f\"", "url_file"),
            ("kind = \"generic\"\nurl = \"https://x/\"\nevents = [\"hunter2secret\"]", "events"),
            ("kind = \"generic\"\nurl = [\"hunter2secret\"]", "url"),
            ("kind = \"generic\"\nurl = \"https://x/\"\nsecrt = \"hunter2secret\"", "secrt"),
        ] {
            let refused = read(&format!("[[notify]]\n{lines}\n")).unwrap_err();
            assert!(refused.contains(word), "{refused}");
            assert!(refused.contains("roost.toml:"), "{refused}");
            assert!(!refused.contains(secret), "{refused}");
        }
        assert!(read("notify = \"x\"").unwrap_err().contains("[[notify]]"));
        let two = "[[notify]]\nname=\"a\"\nkind=\"slack\"\nurl=\"http://x\"\n".repeat(2);
        assert!(read(&two).unwrap_err().contains("its own"));
    }
}
