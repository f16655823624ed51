//! Owns what a template is: a disk that sandboxes are made from, and the defaults that come
//! with it.
//!
//! Never: says which hosts can be used (`plan::placement` does).

use super::id::{HostId, Id, PLATFORM_TEAM, TeamId, TemplateId};
use super::time::Wall;
use super::vocabulary;
use std::fmt;
use std::str::FromStr;

vocabulary! {
    /// Where a template came from.
    TemplateKind, "template type", {
        /// An operator put it on the hosts.
        Base = "base",
        /// A host made it of a sandbox.
        Snapshot = "snapshot",
    }
}

/// The template that every agent has: no row, no host, the platform's, and id zero.
pub const MINIMAL: &str = "minimal";

/// Id of [`MINIMAL`]; agents know it by this and the platform's team.
pub const MINIMAL_ID: TemplateId = Id::from_u128(0);

/// Virtual processors of a sandbox when neither request nor template says.
pub const VCPUS_DEFAULT: u32 = 1;

/// Memory in MiB of a sandbox when neither request nor template says.
pub const MEMORY_MB_DEFAULT: u32 = 512;

/// Disk in MiB of a sandbox when neither request nor template says.
pub const DISK_SIZE_MB_DEFAULT: u32 = 5120;

/// Longest name in characters. Larger: listings and error messages grow wide. Smaller: a
/// name with a date does not fit.
pub const NAME_CHARS_MAX: usize = 64;

/// A name that a template may be given; unique within its team.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TemplateName(Box<str>);

/// Why a text is not a [`TemplateName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// Empty, or longer than [`NAME_CHARS_MAX`].
    Length,
    /// Does not begin with a letter or digit, or has other characters than `a-z0-9._-`.
    Characters,
    /// Would be taken for an id.
    Id,
    /// [`MINIMAL`] is taken for good.
    Minimal,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Length => write!(f, "must have 1 to {NAME_CHARS_MAX} characters"),
            NameError::Characters => f.write_str(
                "must consist of a-z, 0-9, dots, underscores and dashes, and begin with a \
                 letter or digit",
            ),
            NameError::Id => f.write_str("looks like an id; choose another"),
            NameError::Minimal => write!(f, "{MINIMAL} is part of every agent; choose another"),
        }
    }
}

impl std::error::Error for NameError {}

impl FromStr for TemplateName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<TemplateName, NameError> {
        let begins = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !(1..=NAME_CHARS_MAX).contains(&text.chars().count()) {
            return Err(NameError::Length);
        }
        if !text.starts_with(begins) || !text.chars().all(|c| begins(c) || "._-".contains(c)) {
            return Err(NameError::Characters);
        }
        if text.starts_with("tmpl-") || TemplateId::from_uuid(text).is_some() {
            return Err(NameError::Id);
        }
        if text == MINIMAL {
            return Err(NameError::Minimal);
        }
        Ok(TemplateName(text.into()))
    }
}

impl TemplateName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a snapshot is called when nothing else is asked for: what its sandbox was made
    /// from and when the snapshot was requested, in UTC.
    pub fn of_snapshot(template: Option<&str>, at: Wall) -> TemplateName {
        // `2026-05-17T06:40:00.000Z` without zone, fraction and separators.
        let digits: String = at.to_string().chars().filter(char::is_ascii_digit).collect();
        let (date, time) = digits.split_at(digits.len().min(8));
        let suffix = format!("{date}-{}", time.get(..6).unwrap_or(time));
        let prefix = template.unwrap_or(MINIMAL);
        let room = NAME_CHARS_MAX - suffix.len() - 1;
        let name = format!("{}-{suffix}", prefix.get(..room).unwrap_or(prefix));
        // Sandboxes of other systems may be made from something that is no name here.
        name.parse().unwrap_or_else(|_| TemplateName(format!("snapshot-{suffix}").into()))
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A template as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its id; agents know it by this and by its team.
    pub id: TemplateId,
    /// The team that owns it; the platform's are visible to all teams.
    pub team_id: TeamId,
    /// Its name.
    pub name: TemplateName,
    /// Where it came from.
    pub kind: TemplateKind,
    /// Virtual processors of a sandbox whose request does not say.
    pub vcpus: Option<u32>,
    /// The same for memory in MiB.
    pub memory_mb: Option<u32>,
    /// The same for the disk in MiB.
    pub disk_size_mb: Option<u32>,
    /// Bytes on a host's disk, as far as an agent has said.
    pub size_bytes: Option<u64>,
    /// User that commands run as.
    pub default_user: Option<String>,
    /// Environment of commands: a JSON object of strings.
    pub default_env: Option<String>,
    /// A JSON object of strings, of the sandbox that a snapshot was made of.
    pub metadata: Option<String>,
    /// When it became known.
    pub created_at: Wall,
    /// Hosts known to have it, in order; none: every host has it.
    pub hosts: Vec<HostId>,
}

impl Template {
    /// The built-in template; `created_at` is the database's own.
    pub fn minimal(created_at: Wall) -> Template {
        Template {
            id: MINIMAL_ID,
            team_id: PLATFORM_TEAM,
            name: TemplateName(MINIMAL.into()),
            kind: TemplateKind::Base,
            vcpus: Some(VCPUS_DEFAULT),
            memory_mb: Some(MEMORY_MB_DEFAULT),
            disk_size_mb: Some(DISK_SIZE_MB_DEFAULT),
            size_bytes: None,
            default_user: None,
            default_env: None,
            metadata: None,
            created_at,
            hosts: Vec::new(),
        }
    }

    /// Whether this is the built-in template.
    pub fn is_minimal(&self) -> bool {
        self.id == MINIMAL_ID
    }

    /// Whether it is visible to all teams.
    pub fn is_platform(&self) -> bool {
        self.team_id == PLATFORM_TEAM
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for name in ["a", "0", "python3.12", "with_deps-2", &"x".repeat(64), "tmpl", "minimal2"] {
            assert_eq!(name.parse::<TemplateName>().unwrap().as_str(), name);
        }
        let refused = [
            ("", NameError::Length),
            (&"x".repeat(65), NameError::Length),
            (&"é".repeat(65), NameError::Length),
            ("Python", NameError::Characters),
            ("-a", NameError::Characters),
            (".", NameError::Characters),
            ("a b", NameError::Characters),
            ("a/b", NameError::Characters),
            ("é", NameError::Characters),
            ("a\n", NameError::Characters),
            ("tmpl-0000000000000000000000001", NameError::Id),
            ("tmpl-mine", NameError::Id),
            ("ee000000-0000-0000-0000-000000000001", NameError::Id),
            ("minimal", NameError::Minimal),
        ];
        for (name, error) in refused {
            assert_eq!(name.parse::<TemplateName>(), Err(error), "{name:?}");
        }
    }

    #[test]
    fn a_snapshot_is_named_after_its_template_and_the_moment() {
        let at = Wall(1_779_000_000_123);
        let name = |template| TemplateName::of_snapshot(template, at).to_string();
        assert_eq!(name(None), "minimal-20260517-064000");
        assert_eq!(name(Some("python3.12")), "python3.12-20260517-064000");
        assert_eq!(name(Some("Ubuntu 24")), "snapshot-20260517-064000");
        assert_eq!(name(Some(&"x".repeat(200))).len(), NAME_CHARS_MAX);
    }

    #[test]
    fn minimal_is_known_to_agents_by_zeros() {
        let minimal = Template::minimal(Wall(0));
        assert_eq!(minimal.id.to_uuid(), "00000000-0000-0000-0000-000000000000");
        assert_eq!(minimal.team_id.to_uuid(), minimal.id.to_uuid());
    }

    proptest! {
        #[test]
        fn every_snapshot_has_a_name(template in "\\PC{0,80}", at in -4e14..4e14) {
            let name = TemplateName::of_snapshot(Some(&template), Wall(at as i64));
            prop_assert_eq!(name.as_str().parse(), Ok(name.clone()));
        }
    }
}
