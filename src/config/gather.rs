//! Owns where values come from: flags over environment over file over default.
//!
//! Never: judges a value (`rule` does), only names. Called by `Config::load`.

use super::error::ConfigError;
use super::key::{KEYS, Key};
use super::notify::{self, Target};
use super::paths::Paths;
use super::rule;
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Names the file to read when `--config` does not.
const CONFIG_VARIABLE: &str = "ROOST_CONFIG";

/// Names the server that commands talk to.
pub const URL_VARIABLE: &str = "ROOST_URL";

/// Secret: the key they show it.
pub const API_KEY_VARIABLE: &str = "ROOST_API_KEY";

/// Names a file that holds that key.
pub const API_KEY_FILE_VARIABLE: &str = "ROOST_API_KEY_FILE";

/// Names the certificates that commands trust to be the server's, or its CA's.
pub const CA_VARIABLE: &str = "ROOST_CA";

/// Variables of ours that are no keys.
pub const OTHER_VARIABLES: &[&str] =
    &[CONFIG_VARIABLE, URL_VARIABLE, API_KEY_VARIABLE, API_KEY_FILE_VARIABLE, CA_VARIABLE];

/// Those of them that name a file.
const PATH_VARIABLES: &[&str] = &[CONFIG_VARIABLE, API_KEY_FILE_VARIABLE, CA_VARIABLE];

/// Variables that belong to the tests and measurements.
pub const TEST_VARIABLE_PREFIXES: &[&str] = &["ROOST_TEST_", "ROOST_BENCH_", "ROOST_SIM_"];

/// Largest configuration file in bytes. Larger: a wrong path, such as a database, is read
/// whole; smaller: a file with many comments is refused.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Longest value shown in an error, in characters; the rest adds nothing to recognise it by.
const SHOWN_CHARS_MAX: usize = 60;

/// Everything that is set outside the defaults and the file.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// The file named with `--config`.
    pub config_file: Option<PathBuf>,
    /// Flags as given.
    pub flags: Vec<(Key, String)>,
    /// The environment; what does not start with `ROOST_` is ignored, and so is an empty
    /// value: `ROOST_LISTEN=` sets nothing.
    pub variables: Vec<(OsString, OsString)>,
}

impl Inputs {
    /// These flags and file with the environment of this process.
    pub fn from_process(config_file: Option<PathBuf>, flags: Vec<(Key, String)>) -> Inputs {
        Inputs { config_file, flags, variables: std::env::vars_os().collect() }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// This environment variable.
    Env(&'static str),
    /// This flag, without its dashes.
    Flag(&'static str),
}

impl Source {
    /// The kind of source as one word, for scripts.
    pub fn word(&self) -> &'static str {
        match self {
            Source::Default => "default",
            Source::File { .. } => "file",
            Source::Env(_) => "env",
            Source::Flag(_) => "flag",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Env(name) => f.write_str(name),
            Source::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// One key with its text and source.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Which key.
    pub key: Key,
    /// The value as text.
    pub text: String,
    /// Who set it.
    pub source: Source,
    /// Whether it was written as text; only a file can say otherwise.
    pub(super) is_text: bool,
    /// Whether it was written as a whole number in a file.
    pub(super) is_integer: bool,
}

impl Setting {
    fn text(key: Key, text: &str, source: Source) -> Setting {
        Setting { key, text: text.to_owned(), source, is_text: true, is_integer: false }
    }
}

/// As errors show it: `workers = "0" (roost.toml:3)`.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = shorten(&self.text);
        let Setting { key, source, .. } = self;
        if self.is_text {
            write!(f, "{key} = {shown:?} ({source})")
        } else {
            write!(f, "{key} = {shown} ({source})")
        }
    }
}

fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// What `gather` found.
pub(super) struct Gathered {
    /// One per row of `KEYS`, in that order.
    pub(super) settings: Vec<Setting>,
    /// The file that was read.
    pub(super) file: Option<PathBuf>,
    /// Who is told of trouble; only a file can say.
    pub(super) targets: Vec<Target>,
}

/// What a file says.
#[derive(Default)]
struct Contents {
    settings: Vec<Setting>,
    targets: Vec<Target>,
}

/// Finds the winning text of every key.
pub(super) fn gather(inputs: &Inputs) -> Result<Gathered, ConfigError> {
    let variables = Variables::read(&inputs.variables)?;
    let mut settings: Vec<Setting> = Vec::with_capacity(KEYS.len());
    settings.extend(KEYS.iter().map(|i| Setting::text(i.key, i.default, Source::Default)));
    let overrides = variables.settings.into_iter().chain(flags(inputs));
    let overrides: Vec<Setting> = overrides.collect();

    let named = inputs.config_file.clone().or(variables.config_file);
    let (file, targets) = match named {
        Some(path) => {
            let contents = read_file(&path)?;
            put(&mut settings, contents.settings);
            (Some(path), contents.targets)
        }
        None => {
            // The file cannot say where it lies, so the directory is known before it is read.
            put(&mut settings, overrides.clone());
            let dir = &settings[Key::DataDir as usize].text;
            let path = Paths::of(Path::new(dir)).config_file;
            let found = read_file_if_there(&path)?;
            let file = found.is_some().then_some(path);
            let contents = found.unwrap_or_default();
            put(&mut settings, refuse_to_move(contents.settings)?);
            (file, contents.targets)
        }
    };
    put(&mut settings, overrides);
    Ok(Gathered { settings, file, targets })
}

/// Later ones win.
fn put(settings: &mut [Setting], newer: Vec<Setting>) {
    for setting in newer {
        let slot = setting.key as usize;
        settings[slot] = setting;
    }
}

fn flags(inputs: &Inputs) -> impl Iterator<Item = Setting> {
    let flags = inputs.flags.iter();
    flags.map(|(key, text)| Setting::text(*key, text, Source::Flag(key.flag())))
}

fn refuse_to_move(found: Vec<Setting>) -> Result<Vec<Setting>, ConfigError> {
    match found.iter().find(|setting| setting.key == Key::DataDir) {
        Some(setting) => Err(ConfigError::MovesDataDir { setting: setting.to_string() }),
        None => Ok(found),
    }
}

/// The part of the environment that is ours.
struct Variables {
    config_file: Option<PathBuf>,
    settings: Vec<Setting>,
}

impl Variables {
    fn read(all: &[(OsString, OsString)]) -> Result<Variables, ConfigError> {
        let mut ours = Variables { config_file: None, settings: Vec::new() };
        for (name, value) in all {
            let name = name.to_string_lossy();
            if name.starts_with("ROOST_") && !value.is_empty() {
                ours.take(&name, value)?;
            }
        }
        let is_set = |name: &str| all.iter().any(|(n, value)| n == name && !value.is_empty());
        if is_set(API_KEY_VARIABLE) && is_set(API_KEY_FILE_VARIABLE) {
            return Err(ConfigError::Twice { one: API_KEY_VARIABLE, other: API_KEY_FILE_VARIABLE });
        }
        Ok(ours)
    }

    fn take(&mut self, name: &str, value: &OsString) -> Result<(), ConfigError> {
        if PATH_VARIABLES.contains(&name)
            && let Some(Err(hint)) = value.to_str().map(rule::path)
        {
            let setting = format!("{name} = {:?}", shorten(&value.to_string_lossy()));
            return Err(ConfigError::Refused { setting, allowed: "a path".to_owned(), hint });
        }
        if name == CONFIG_VARIABLE {
            self.config_file = Some(PathBuf::from(value));
            return Ok(());
        }
        if let Some(key) = Key::ALL.iter().find(|key| key.variable() == name) {
            let not_text = || ConfigError::NotText { variable: name.to_owned() };
            let text = value.to_str().ok_or_else(not_text)?;
            self.settings.push(Setting::text(*key, text, Source::Env(key.variable())));
            return Ok(());
        }
        if is_other_variable(name) { Ok(()) } else { Err(unknown_variable(name)) }
    }
}

fn is_other_variable(name: &str) -> bool {
    OTHER_VARIABLES.contains(&name)
        || TEST_VARIABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn unknown_variable(name: &str) -> ConfigError {
    let known = Key::ALL.iter().map(|key| key.variable());
    let near = nearest(name, known.chain(OTHER_VARIABLES.iter().copied()));
    ConfigError::Unknown {
        name: name.to_owned(),
        what: "variable",
        hint: near.map(|known| format!("did you mean {known}?")),
    }
}

fn read_file_if_there(path: &Path) -> Result<Option<Contents>, ConfigError> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match read_file(path) {
        Err(ConfigError::Unreadable { cause, .. })
            if matches!(cause.kind(), NotFound | NotADirectory) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn read_file(path: &Path) -> Result<Contents, ConfigError> {
    let text = read_text(path)
        .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
    let table = DeTable::parse(&text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_at(&text, error.span().map_or(0, |span| span.start)),
        message: error.message().replace('\n', ", "),
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    // The parser sorts by name; people read from the top.
    crate::model::order::sort_by_key(&mut entries, |(name, _)| name.span().start);
    let mut contents = Contents::default();
    for (name, value) in entries {
        if name.get_ref().as_ref() == notify::SECTION {
            let place = |at| Source::File { path: path.to_owned(), line: line_at(&text, at) };
            contents.targets = notify::targets(value, &place)?;
            continue;
        }
        let line = line_at(&text, name.span().start);
        let source = Source::File { path: path.to_owned(), line };
        let written = text.get(value.span()).unwrap_or_default();
        contents.settings.push(file_setting(name.get_ref(), value.get_ref(), written, source)?);
    }
    Ok(contents)
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let limit = format!("larger than {} KiB", FILE_BYTES_MAX / 1024);
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, limit));
    }
    Ok(text)
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}

fn file_setting(
    name: &str,
    value: &DeValue<'_>,
    written: &str,
    source: Source,
) -> Result<Setting, ConfigError> {
    let Ok(key) = name.parse::<Key>() else {
        return Err(unknown_key(name, value, &source));
    };
    Ok(match value {
        DeValue::String(text) => Setting::text(key, text, source),
        DeValue::Integer(number) if number.radix() == 10 => {
            let text = number.as_str().to_owned();
            Setting { key, text, source, is_text: false, is_integer: true }
        }
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => {
            let text = written.lines().next().unwrap_or_default().to_owned();
            Setting { key, text, source, is_text: false, is_integer: false }
        }
    })
}

fn unknown_key(name: &str, value: &DeValue<'_>, source: &Source) -> ConfigError {
    let near = nearest(&name.replace('-', "_"), Key::WORDS.iter().copied());
    let hint = match near {
        Some(known) => Some(format!("did you mean {known}?")),
        None if value.is_table() => Some("keys stand at the top, without sections".to_owned()),
        None => None,
    };
    ConfigError::Unknown { name: format!("{} ({source})", shorten(name)), what: "key", hint }
}

/// The known name that differs by least, when it differs by little: at most a third of its
/// letters. Further away a hint would mislead.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let distances = known.map(|known| (distance(&name, &known.to_lowercase()), known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    // All variables share their prefix; it says nothing about likeness.
    let letters = known.strip_prefix("ROOST_").unwrap_or(known).len();
    (distance <= letters.div_ceil(3)).then_some(known)
}

/// Letters to insert, drop or replace to make one text the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(SHOWN_CHARS_MAX).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names() {
        let near = |name| nearest(name, Key::WORDS.iter().copied());
        assert_eq!(near("wrokers"), Some("workers"));
        assert_eq!(near("probe_intervall"), Some("probe_interval"));
        assert_eq!(near("Workers"), Some("workers"));
        assert_eq!(near("database"), None);
        assert_eq!(near(""), None);
    }

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }

    #[test]
    fn lines_count_from_one() {
        assert_eq!(line_at("a\nb\nc", 0), 1);
        assert_eq!(line_at("a\nb\nc", 4), 3);
        assert_eq!(line_at("a", 99), 1);
    }
}
