//! Owns why a configuration is refused, in words for the person who wrote it.
//!
//! Never: ends the process or prints. Called by the other files of `config`.

use super::gather::Setting;
use super::key::KeyInfo;
use super::rule::Hint;
use std::fmt;
use std::path::PathBuf;

/// Why a configuration is refused.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read, or is too large.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The file is not TOML.
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser said, in one line.
        message: String,
    },
    /// A name that is no key or variable.
    Unknown {
        /// The name as written, with its source: `wrokers (roost.toml:3)`.
        name: String,
        /// What is unknown: `key` or `variable`.
        what: &'static str,
        /// The nearest known name, or another word of help.
        hint: Option<String>,
    },
    /// A value that is not allowed.
    Refused {
        /// Key, value and source: `workers = "0" (roost.toml:3)`.
        setting: String,
        /// What is allowed, to stand after "must be".
        allowed: String,
        /// What may help.
        hint: Option<&'static str>,
    },
    /// A variable whose bytes are not UTF-8.
    NotText {
        /// Its name.
        variable: String,
    },
    /// A secret and the file that holds it, both set. The values stay untold.
    Twice {
        /// One variable.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A target of notifications that is not one. Its values stay untold: they are secret.
    Target {
        /// Which field of which target, and where.
        place: String,
        /// What is allowed, to stand after "must".
        must: String,
    },
    /// A file found in the data directory names another data directory.
    MovesDataDir {
        /// Key, value and source.
        setting: String,
    },
}

impl ConfigError {
    /// Whether it is no fault of what was written: a file or directory that may not be entered,
    /// or a disk that fails.
    pub fn may_pass(&self) -> bool {
        use std::io::ErrorKind as Kind;
        matches!(self, ConfigError::Unreadable { cause, .. } if !matches!(
            cause.kind(),
            Kind::NotFound | Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidData
                | Kind::FileTooLarge | Kind::InvalidInput
        ))
    }

    pub(super) fn refused(info: &KeyInfo, setting: &Setting, hint: Hint) -> ConfigError {
        ConfigError::Refused { setting: setting.to_string(), allowed: info.rule.allowed(), hint }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The cause follows by way of `source`.
            ConfigError::Unreadable { path, .. } => write!(f, "{}", path.display()),
            ConfigError::Syntax { path, line, message } => {
                write!(f, "{}:{line}: {message}", path.display())
            }
            ConfigError::Unknown { name, what, hint } => {
                write!(f, "{name}: unknown {what}")?;
                after_semicolon(f, hint.as_deref())
            }
            ConfigError::Refused { setting, allowed, hint } => {
                write!(f, "{setting}: must be {allowed}")?;
                after_semicolon(f, *hint)
            }
            ConfigError::Twice { one, other } => {
                write!(f, "{one} and {other} are both set; unset one of them")
            }
            ConfigError::Target { place, must } => write!(f, "{place}: must {must}"),
            ConfigError::NotText { variable } => write!(f, "{variable}: must be UTF-8"),
            ConfigError::MovesDataDir { setting } => write!(
                f,
                "{setting}: must not be set in a file that lies in the data directory; \
                 use --data-dir, or name the file with --config"
            ),
        }
    }
}

fn after_semicolon(f: &mut fmt::Formatter<'_>, hint: Option<&str>) -> fmt::Result {
    match hint {
        Some(hint) => write!(f, "; {hint}"),
        None => Ok(()),
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Unreadable { cause, .. } => Some(cause),
            ConfigError::Syntax { .. }
            | ConfigError::Unknown { .. }
            | ConfigError::Refused { .. }
            | ConfigError::NotText { .. }
            | ConfigError::Twice { .. }
            | ConfigError::Target { .. }
            | ConfigError::MovesDataDir { .. } => None,
        }
    }
}
