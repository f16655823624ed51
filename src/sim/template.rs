//! Owns how a simulated agent names a template: by the team that owns it and its own id,
//! both UUIDs.
//!
//! Never: knows which templates a host has (`agent` does). Called by `agent` and `answer`.

use crate::model::id::{Id, Kind, TeamKind};

/// One template. Both zero is `minimal`, which every agent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Template {
    team: u128,
    id: u128,
}

impl Template {
    /// What every agent can make a sandbox from.
    pub(super) const MINIMAL: Template = Template { team: 0, id: 0 };

    /// From two hyphenated UUIDs; an empty text counts as zero. The error is in the words of
    /// real agents.
    pub(super) fn parse(team_id: &str, template_id: &str) -> Result<Template, String> {
        Ok(Template { team: uuid(team_id)?, id: uuid(template_id)? })
    }

    /// The team that owns it, as the wire has it.
    pub(super) fn team_id(self) -> String {
        Id::<TeamKind>::from_u128(self.team).to_uuid()
    }

    /// Its own id, as the wire has it.
    pub(super) fn template_id(self) -> String {
        Id::<TeamKind>::from_u128(self.id).to_uuid()
    }

    /// Where an agent keeps its disk.
    pub(super) fn rootfs(self) -> String {
        let (team, id) = (base36(self.team), base36(self.id));
        format!("/var/lib/wrenn/images/teams/{team}/{id}/rootfs.ext4")
    }
}

fn base36(value: u128) -> String {
    let text = Id::<TeamKind>::from_u128(value).to_string();
    text.trim_start_matches(TeamKind::PREFIX).to_owned()
}

/// Real agents also read a UUID without hyphens, in braces, or as a URN.
fn uuid(text: &str) -> Result<u128, String> {
    const LENGTH: usize = 36;
    let wrong = |why: &str| format!("invalid UUID {text:?}: {why}");
    if text.is_empty() {
        return Ok(0);
    } else if text.len() != LENGTH {
        return Err(wrong(&format!("invalid UUID length: {}", text.len())));
    }
    let hyphenated = text.bytes().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    let digits = text.replace('-', "");
    match u128::from_str_radix(&digits, 16) {
        Ok(value) if hyphenated => Ok(value),
        Ok(_) | Err(_) => Err(wrong("invalid UUID format")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_real_agents() {
        let (team, id) = ("ee000000-0000-0000-0000-000000000001", "");
        let template = Template::parse(team, id).unwrap();
        assert_eq!(template.team_id(), team);
        assert_eq!(template.template_id(), "00000000-0000-0000-0000-000000000000");
        let recorded = "/var/lib/wrenn/images/teams/e38v92pagubm6vdmmqqkgz475/\
                        0000000000000000000000000/rootfs.ext4";
        assert_eq!(template.rootfs(), recorded);
        assert_eq!(
            Template::parse("", "00000000-0000-0000-0000-000000000000"),
            Ok(Template::MINIMAL)
        );
    }

    #[test]
    fn what_is_no_uuid_is_refused() {
        for (text, why) in [
            ("python", "invalid UUID length: 6"),
            ("ee0000000000000000000000000000000001", "invalid UUID format"),
            ("ee000000-0000-0000-0000-00000000000g", "invalid UUID format"),
            ("+e000000-0000-0000-0000-000000000001", "invalid UUID format"),
            ("ee00000-00000-0000-0000-000000000001", "invalid UUID format"),
        ] {
            let expected = Err(format!("invalid UUID {text:?}: {why}"));
            assert_eq!(Template::parse(text, ""), expected);
            assert_eq!(Template::parse("", text), expected);
        }
    }
}
