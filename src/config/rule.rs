//! Owns what a value may be: lowers text into typed, bounded fields of `Config`.
//!
//! Never: knows where a text came from; the caller adds that to the refusal.
//! Called by `Config::load`, `--help` and the documentation.

use super::Config;
use super::gather::Setting;
use super::show::span;
use crate::model::networks::AgentNetworks;
use crate::model::vocabulary;
use log::LevelFilter;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

vocabulary! {
    /// How we talk to agents.
    AgentTls, "agent_tls", {
        /// Plain HTTP.
        Off = "off",
        /// TLS 1.3, certificates of our own CA on both sides.
        Mtls = "mtls",
        /// As `mtls`; plain HTTP to agents whose address says so.
        MtlsOrHttp = "mtls_or_http",
    }
}

vocabulary! {
    /// When a lifecycle request is answered.
    Answers, "answers", {
        /// Once it is accepted; the operation follows.
        Accepted = "accepted",
        /// Once its operation has finished, within a bound.
        WhenDone = "when_done",
    }
}

vocabulary! {
    /// How a log record is written.
    LogFormat, "log format", {
        /// One line for people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// Longest accepted value in bytes. Larger: a mistake fills the terminal; smaller than a
/// path can be (4096 on Linux): a valid `data_dir` is refused.
const VALUE_BYTES_MAX: usize = 4096;

/// What a key's value may be, and the field it fills.
#[derive(Debug)]
pub enum Rule {
    /// A path that is not empty.
    Path {
        /// The field it fills.
        field: fn(&mut Config) -> &mut PathBuf,
    },
    /// A path; empty when there is none.
    OptionalPath {
        /// The field it fills.
        field: fn(&mut Config) -> &mut Option<PathBuf>,
    },
    /// An IP address, or `localhost`, with a port.
    Address {
        /// The field it fills.
        field: fn(&mut Config) -> &mut SocketAddr,
    },
    /// A duration with its unit, bounds included.
    Span {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
        /// The field it fills.
        field: fn(&mut Config) -> &mut Duration,
    },
    /// A whole number, bounds included.
    Count {
        /// Smallest.
        min: usize,
        /// Largest.
        max: usize,
        /// The field it fills.
        field: fn(&mut Config) -> &mut usize,
    },
    /// A decimal number, kept in percent; bounds included.
    Factor {
        /// Smallest, in percent.
        min: u32,
        /// Largest, in percent.
        max: u32,
        /// The field it fills.
        field: fn(&mut Config) -> &mut u32,
    },
    /// One of a few words.
    Word {
        /// The words.
        allowed: &'static [&'static str],
        /// Fills the field; false when the word is none of `allowed`.
        set: fn(&mut Config, &str) -> bool,
    },
    /// IP networks with commas between.
    Networks {
        /// The field it fills.
        field: fn(&mut Config) -> &mut AgentNetworks,
    },
    /// A log filter.
    Filter {
        /// The field it fills.
        field: fn(&mut Config) -> &mut String,
    },
}

/// What to tell somebody whose value was refused, beyond what is allowed.
pub(super) type Hint = Option<&'static str>;

impl Rule {
    /// What is allowed, to stand after "must be".
    pub fn allowed(&self) -> String {
        match self {
            Rule::Path { .. } | Rule::OptionalPath { .. } => "a path".to_owned(),
            Rule::Address { .. } => "address:port".to_owned(),
            Rule::Span { min, max, .. } => format!("{} to {}", span(*min), span(*max)),
            Rule::Count { min, max, .. } => format!("{min} to {max}"),
            Rule::Factor { min, max, .. } => {
                format!("{} to {}", f64::from(*min) / 100.0, f64::from(*max) / 100.0)
            }
            Rule::Word { allowed, .. } => allowed.join(" or "),
            Rule::Networks { .. } => "IP networks with commas between".to_owned(),
            Rule::Filter { .. } => "an env_logger filter".to_owned(),
        }
    }

    /// What stands for the value in `--help`.
    pub fn placeholder(&self) -> &'static str {
        match self {
            Rule::Path { .. } | Rule::OptionalPath { .. } => "PATH",
            Rule::Address { .. } => "ADDRESS",
            Rule::Span { .. } => "DURATION",
            Rule::Count { .. } | Rule::Factor { .. } => "N",
            Rule::Word { .. } => "WORD",
            Rule::Networks { .. } => "NETWORKS",
            Rule::Filter { .. } => "FILTER",
        }
    }

    /// Puts the value into its field, or leaves the field and says what may help.
    pub(super) fn lower(&self, config: &mut Config, setting: &Setting) -> Result<(), Hint> {
        let text = setting.text.as_str();
        self.accept_type(setting)?;
        if text.len() > VALUE_BYTES_MAX {
            return Err(None);
        }
        match self {
            Rule::Path { field } => *field(config) = path(text)?,
            Rule::OptionalPath { field } => {
                *field(config) = if text.is_empty() { None } else { Some(path(text)?) };
            }
            Rule::Address { field } => *field(config) = address(text)?,
            Rule::Span { min, max, field } => *field(config) = bounded_span(text, *min, *max)?,
            Rule::Count { min, max, field } => *field(config) = count(text, *min, *max)?,
            Rule::Factor { min, max, field } => *field(config) = factor(text, *min, *max)?,
            Rule::Word { set, .. } => set(config, text).then_some(()).ok_or(None)?,
            Rule::Networks { field } => *field(config) = networks(text)?,
            Rule::Filter { field } => *field(config) = filter(text)?,
        }
        Ok(())
    }

    /// A file's values have types of their own: only a count may stand without quotes. A
    /// duration without them passes here, to be refused with a hint about its unit.
    fn accept_type(&self, setting: &Setting) -> Result<(), Hint> {
        const QUOTES: &str = "it is written in quotes";
        match self {
            Rule::Span { .. } | Rule::Count { .. } => {
                (setting.is_text || setting.is_integer).then_some(()).ok_or(None)
            }
            Rule::Factor { .. } => Ok(()),
            Rule::Path { .. }
            | Rule::OptionalPath { .. }
            | Rule::Address { .. }
            | Rule::Word { .. }
            | Rule::Networks { .. }
            | Rule::Filter { .. } => setting.is_text.then_some(()).ok_or(Some(QUOTES)),
        }
    }
}

/// Reads a duration such as `90s` or `2m`.
///
/// # Errors
/// A text that says what is wrong with it, to stand after the value.
pub fn parse_span(text: &str) -> Result<Duration, &'static str> {
    const WRITTEN: &str = "a duration is written like 90s or 2m";
    const UNIT: &str = "a duration has a unit, for example 90s or 2m";
    if text.parse::<f64>().is_ok() {
        return Err(UNIT);
    }
    humantime::parse_duration(text).map_err(|_| WRITTEN)
}

fn bounded_span(text: &str, min: Duration, max: Duration) -> Result<Duration, Hint> {
    let value = parse_span(text).map_err(Some)?;
    if value < min || value > max { Err(None) } else { Ok(value) }
}

fn count(text: &str, min: usize, max: usize) -> Result<usize, Hint> {
    let value = text.parse().map_err(|_| None)?;
    if value < min || value > max { Err(None) } else { Ok(value) }
}

/// A decimal number with at most two digits behind the point, in percent.
fn factor(text: &str, min: u32, max: u32) -> Result<u32, Hint> {
    const WRITTEN: &str = "a factor is written like 1 or 1.5";
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return Err(Some(WRITTEN));
    }
    let whole: u32 = whole.parse().map_err(|_| None)?;
    let part: u32 = format!("{part:0<2}").parse().map_err(|_| None)?;
    let value = whole.checked_mul(100).and_then(|whole| whole.checked_add(part)).ok_or(None)?;
    if value < min || value > max { Err(None) } else { Ok(value) }
}

/// Quotes and white space are left by what reads a file of variables word for word: a
/// directory of that name would be made anew, and be empty.
pub(super) fn path(text: &str) -> Result<PathBuf, Hint> {
    const QUOTES: &str = "take the quotes away: whatever handed it over did not";
    const CONTROLS: &str = "take the control characters away, such as the CR that a file with \
        Windows line ends leaves at its end";
    const BLANKS: &str = "take the white space at its ends away";
    let has_control = text.chars().any(|c| c.is_control() || c == '\u{feff}');
    match text {
        "" => Err(None),
        _ if has_control => Err(Some(CONTROLS)),
        text if text != text.trim() => Err(Some(BLANKS)),
        text if text.starts_with(['"', '\'']) || text.ends_with(['"', '\'']) => Err(Some(QUOTES)),
        text => Ok(PathBuf::from(text)),
    }
}

/// A path that a flag names, by the same rule.
///
/// # Errors
/// What is wrong with it.
pub fn path_of_flag(path: PathBuf) -> Result<PathBuf, String> {
    // What is no text was not read from a file of variables.
    let Some(text) = path.to_str() else { return Ok(path) };
    match self::path(text) {
        Ok(path) => Ok(path),
        Err(hint) => Err(format!("must be a path; {}", hint.unwrap_or("it is empty"))),
    }
}

/// Names are not resolved here; `localhost` is the one that needs no resolver.
fn address(text: &str) -> Result<SocketAddr, Hint> {
    const EXAMPLE: &str = "for example 127.0.0.1:8000, 0.0.0.0:8000 or [::]:8000";
    if let Some(port) = text.strip_prefix("localhost:") {
        let port = port.parse().map_err(|_| Some(EXAMPLE))?;
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().map_err(|_| Some(EXAMPLE))
}

fn networks(text: &str) -> Result<AgentNetworks, Hint> {
    text.parse().map_err(|_| Some("for example 127.0.0.0/8, fe80::/10"))
}

/// env_logger takes a lone word that is no level for a target and then logs nothing else:
/// `inof` would silence everything. So a lone word must be a level.
fn filter(text: &str) -> Result<String, Hint> {
    const WRITTEN: &str = "for example info, or warn,roost::engine=debug";
    const SLASH: &str = "text after a slash is not supported";
    if text.contains('/') {
        return Err(Some(SLASH));
    }
    if text.split(',').all(|part| is_directive(part.trim())) {
        Ok(text.to_owned())
    } else {
        Err(Some(WRITTEN))
    }
}

fn is_directive(part: &str) -> bool {
    let (target, level) = match part.split_once('=') {
        Some((target, level)) => (Some(target), level),
        None => (None, part),
    };
    let named = target.is_none_or(|name| !name.is_empty() && !name.contains(char::is_whitespace));
    named && level.parse::<LevelFilter>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_were_handed_over_badly() {
        for right in ["/data", "data dir", "it's", "/a \"b\" c", "ü", "."] {
            assert_eq!(path(right), Ok(PathBuf::from(right)), "{right:?}");
        }
        for (wrong, word) in [
            ("\"/data\"", "quotes"),
            ("'/data'", "quotes"),
            ("\"/data", "quotes"),
            ("/data'", "quotes"),
            ("/data\r", "CR"),
            ("\"/data\"\r", "CR"),
            ("/da\nta", "control"),
            ("/da\u{9b}ta", "control"),
            ("\u{feff}/data", "control"),
            ("/data ", "white space"),
            (" /data", "white space"),
            ("/data\u{a0}", "white space"),
        ] {
            let hint = path(wrong).unwrap_err();
            assert!(hint.is_some_and(|hint| hint.contains(word)), "{wrong:?}: {hint:?}");
            assert!(path_of_flag(wrong.into()).unwrap_err().contains(word), "{wrong:?}");
        }
        assert!(path("").is_err() && path_of_flag(PathBuf::new()).is_err());
    }

    #[test]
    fn spans_need_a_unit() {
        assert_eq!(parse_span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_span("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_span("0s"), Ok(Duration::ZERO));
        for unitless in ["0", "90", "1.5", "-3"] {
            assert!(parse_span(unitless).is_err_and(|hint| hint.contains("unit")), "{unitless}");
        }
        for wrong in ["", "s", "90 parsecs", "-3s", "∞"] {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn factors() {
        let read = |text| factor(text, 50, 6400).ok();
        for (text, percent) in [("1", 100), ("0.5", 50), ("1.25", 125), ("64", 6400), ("8.0", 800)]
        {
            assert_eq!(read(text), Some(percent), "{text}");
        }
        for wrong in ["", ".", "1.", ".5", "0.49", "64.01", "1.255", "-1", "1e2", "1,5", "99999999"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn filters() {
        for right in ["info", "WARN", "off", "warn,roost::engine=debug", "roost=trace , ureq=off"] {
            assert_eq!(filter(right).as_deref(), Ok(right), "{right}");
        }
        for wrong in ["", "inof", "roost", "roost=", "roost=loud", "=info", "info,", "info/x"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses() {
        for right in ["127.0.0.1:0", "[::]:8000", "[::1]:80", "localhost:8000"] {
            assert!(address(right).is_ok(), "{right}");
        }
        for wrong in ["", "8000", ":8000", "127.0.0.1", "::1:x", "example.org:80", "1.2.3.4:65536"]
        {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
