//! Owns pages of the audit log: newest first, filtered, a bounded look at a time.
//!
//! Never: reads more entries for one page than a reader may be kept busy with, however
//! rare what is looked for: a log that is kept for years is long.

use super::StoreError;
use super::read::{AUDIT, audit_entry};
use super::rows;
use crate::model::event::{ActorType, AuditAction, AuditEntry, AuditStatus, ResourceType};
use crate::model::id::{HostId, Id, Kind, PLATFORM_TEAM, TeamId};
use crate::model::time::Wall;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

/// Entries that one page looks at. Larger and rare finds keep one of the few readers busy
/// for longer (this many of a million took 8 to 26 ms, the most for a host, whose id is
/// sought in JSON); smaller and whoever looks for something rare asks more often.
pub const LOOK_MAX: u32 = 20_000;

/// Which entries to give; what is `None` matches every entry.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Of one team.
    pub team: Option<TeamId>,
    /// About a resource of this type.
    pub resource_type: Option<ResourceType>,
    /// About the resource with this id.
    pub resource_id: Option<String>,
    /// About this host or its sandboxes.
    pub host: Option<HostId>,
    /// Of this action.
    pub action: Option<AuditAction>,
    /// By somebody of this type.
    pub actor_type: Option<ActorType>,
    /// By the actor with this id.
    pub actor_id: Option<String>,
    /// Of this status.
    pub status: Option<AuditStatus>,
    /// Written after this moment.
    pub after: Option<Wall>,
    /// Written before this moment.
    pub before: Option<Wall>,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPage {
    /// Entries, newest first; may be fewer than asked for, even none, also when more follow.
    pub entries: Vec<AuditEntry>,
    /// What the next page begins below; `None`: nothing is left.
    pub next: Option<u64>,
}

/// Entries below `below` (the newest when `None`) that match, at most `limit`.
///
/// A team narrows what is looked at by an index, but for the platform team, whose entries
/// are nearly all there are. The other filters are tried on every entry looked at, of which
/// there are at most [`LOOK_MAX`].
pub fn page(
    conn: &Connection,
    filter: &AuditFilter,
    below: Option<u64>,
    limit: u32,
) -> Result<AuditPage, StoreError> {
    let below = below.and_then(|seq| i64::try_from(seq).ok()).unwrap_or(i64::MAX);
    let (sql, values) = query(filter, below);
    let mut select = conn.prepare(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut entries = Vec::new();
    let (mut looked, mut last) = (0, None);
    while let Some(row) = rows.next()? {
        if looked == LOOK_MAX || entries.len() == limit as usize {
            return Ok(AuditPage { entries, next: last });
        }
        looked += 1;
        last = Some(rows::unsigned(row, SEQ)?);
        if row.get(MATCHES)? {
            entries.push(audit_entry(row)?);
        }
    }
    Ok(AuditPage { entries, next: None })
}

/// Columns of the query below: the place, the rest of the entry, whether it matches.
const SEQ: usize = 0;
const MATCHES: usize = 13;

/// The query of a page. What an index answers narrows the rows; the rest is a column, so
/// that rows which do not match are counted too.
fn query(filter: &AuditFilter, below: i64) -> (String, Vec<Value>) {
    let mut values = vec![Value::Integer(below)];
    let mut clause = |text: &str, value: Value| {
        values.push(value);
        format!(" AND {}", text.replace('?', &format!("?{}", values.len())))
    };
    let word = |word: &str| Value::Text(word.to_owned());
    let mut narrowed = String::new();
    let mut matches = String::from("1");
    if let Some(team) = filter.team {
        let of_team = clause("team_id = ?", Value::Text(team.to_string()));
        match team {
            PLATFORM_TEAM => matches.push_str(&of_team),
            _ => {
                narrowed = of_team;
                // The words of the index, without which it is not used.
                narrowed.push_str(" AND team_id <> 'team-0000000000000000000000000'");
            }
        }
    }
    let words = [
        ("resource_type = ?", filter.resource_type.map(ResourceType::as_str)),
        ("action = ?", filter.action.map(AuditAction::as_str)),
        ("actor_type = ?", filter.actor_type.map(ActorType::as_str)),
        ("status = ?", filter.status.map(AuditStatus::as_str)),
        ("actor_id IS ?", filter.actor_id.as_deref()),
        ("resource_id = ?", filter.resource_id.as_deref()),
    ];
    for (column, found) in words {
        matches.extend(found.map(|found| clause(column, word(found))));
    }
    for (column, at) in [("created_at > ?", filter.after), ("created_at < ?", filter.before)] {
        matches.extend(at.map(|at| clause(column, Value::Integer(at.0))));
    }
    if let Some(host) = text(filter.host) {
        let of_host = "(resource_id = ? OR metadata ->> 'host_id' IS ?)";
        matches.push_str(&clause(of_host, Value::Text(host)));
    }
    let sql = format!(
        "SELECT {AUDIT}, {matches} FROM audit_logs WHERE seq < ?1{narrowed} ORDER BY seq DESC"
    );
    (sql, values)
}

fn text<K: Kind>(id: Option<Id<K>>) -> Option<String> {
    id.map(|id| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{LogId, SandboxId};
    use crate::store::open::SCHEMA;
    use rusqlite::params;

    /// A log of `count` entries, one a second, by turns of two teams; every tenth is a
    /// pause by a key, the others are adoptions by Roost.
    fn log(count: u64) -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        let mut insert = conn
            .prepare(
                "INSERT INTO audit_logs VALUES (?1, ?2, ?3, ?4, ?5, NULL, 'sandbox', ?6, ?7, \
                 'team', ?8, ?9, ?10)",
            )
            .unwrap();
        conn.execute_batch("BEGIN").unwrap();
        for seq in 1..=count {
            let by_key = seq % 10 == 0;
            let metadata = format!(r#"{{"host_id":"{}"}}"#, host(seq % 3));
            insert
                .execute(params![
                    seq as i64,
                    LogId::from_u128(seq.into()).to_string(),
                    team(seq % 2).to_string(),
                    if by_key { "api_key" } else { "system" },
                    by_key.then_some("key-1"),
                    sandbox(seq % 100),
                    if by_key { "pause" } else { "adopt" },
                    if by_key { "success" } else { "warning" },
                    metadata,
                    seq as i64 * 1000
                ])
                .unwrap();
        }
        drop(insert);
        conn.execute_batch("COMMIT").unwrap();
        conn
    }

    fn team(n: u64) -> TeamId {
        TeamId::from_u128(PLATFORM_TEAM.as_u128() + u128::from(n))
    }

    fn host(n: u64) -> HostId {
        HostId::from_u128(n.into())
    }

    fn sandbox(n: u64) -> String {
        SandboxId::from_u128(n.into()).to_string()
    }

    /// Places on every page, and the number of pages.
    fn walk(conn: &Connection, filter: &AuditFilter, limit: u32) -> (Vec<u64>, usize) {
        let (mut seen, mut pages, mut below) = (Vec::new(), 0, None);
        loop {
            let page = page(conn, filter, below, limit).unwrap();
            assert!(page.entries.len() <= limit as usize);
            seen.extend(page.entries.iter().map(|entry| entry.seq));
            pages += 1;
            match page.next {
                Some(next) => {
                    assert!(below.is_none_or(|below| next < below), "every page goes on");
                    below = Some(next);
                }
                None => return (seen, pages),
            }
        }
    }

    #[test]
    fn every_filter_gives_exactly_what_matches_newest_first() {
        let conn = log(300);
        let check = |filter: AuditFilter, matches: fn(u64) -> bool| {
            let expected: Vec<u64> = (1..=300).rev().filter(|seq| matches(*seq)).collect();
            for limit in [1, 7, 500] {
                assert_eq!(walk(&conn, &filter, limit).0, expected, "{filter:?} by {limit}");
            }
        };
        let all = AuditFilter::default;
        check(all(), |_| true);
        check(AuditFilter { team: Some(team(1)), ..all() }, |seq| seq % 2 == 1);
        check(AuditFilter { team: Some(team(0)), ..all() }, |seq| seq % 2 == 0);
        check(AuditFilter { resource_id: Some(sandbox(4)), ..all() }, |seq| seq % 100 == 4);
        check(AuditFilter { host: Some(host(2)), ..all() }, |seq| seq % 3 == 2);
        check(AuditFilter { action: Some(AuditAction::Pause), ..all() }, |seq| seq % 10 == 0);
        check(AuditFilter { actor_type: Some(ActorType::System), ..all() }, |s| s % 10 != 0);
        check(AuditFilter { actor_id: Some("key-1".to_owned()), ..all() }, |s| s % 10 == 0);
        check(AuditFilter { status: Some(AuditStatus::Success), ..all() }, |s| s % 10 == 0);
        check(AuditFilter { resource_type: Some(ResourceType::Host), ..all() }, |_| false);
        check(AuditFilter { resource_type: Some(ResourceType::Sandbox), ..all() }, |_| true);
        check(AuditFilter { after: Some(Wall(250_000)), ..all() }, |seq| seq > 250);
        check(AuditFilter { before: Some(Wall(50_000)), ..all() }, |seq| seq < 50);
        let both = AuditFilter {
            team: Some(team(0)),
            resource_id: Some(sandbox(10)),
            action: Some(AuditAction::Pause),
            after: Some(Wall(10_000)),
            ..all()
        };
        check(both, |seq| seq % 100 == 10 && seq > 10);
    }

    #[test]
    fn what_is_rare_is_found_a_bounded_look_at_a_time() {
        let count = u64::from(LOOK_MAX) * 2 + 5;
        let conn = log(count);
        let oldest = AuditFilter { before: Some(Wall(2500)), ..AuditFilter::default() };
        assert_eq!(walk(&conn, &oldest, 500), (vec![2, 1], 3));
        let nothing = AuditFilter { action: Some(AuditAction::Revoke), ..AuditFilter::default() };
        assert_eq!(walk(&conn, &nothing, 500), (vec![], 3));
    }

    #[test]
    fn a_team_is_looked_up_in_an_index() {
        let conn = log(1);
        let plan = |filter: AuditFilter| {
            let (sql, values) = query(&filter, i64::MAX);
            let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let lines = explain.query_map(params_from_iter(values), |row| row.get(3)).unwrap();
            lines.map(Result::unwrap).collect::<Vec<String>>().join("; ")
        };
        let team = Some(team(1));
        let resource_id = Some(sandbox(1));
        let by_team = "SEARCH audit_logs USING INDEX audit_logs_by_team (team_id=? AND rowid<?)";
        let by_place = "SEARCH audit_logs USING INTEGER PRIMARY KEY (rowid<?)";
        let all = AuditFilter::default;
        assert_eq!(plan(AuditFilter { team, ..all() }), by_team);
        assert_eq!(plan(AuditFilter { team: Some(PLATFORM_TEAM), ..all() }), by_place);
        assert_eq!(plan(AuditFilter { resource_id: resource_id.clone(), ..all() }), by_place);
        assert_eq!(plan(AuditFilter { team, resource_id, ..all() }), by_team);
        assert_eq!(plan(AuditFilter { host: Some(host(1)), ..all() }), by_place);
    }
}
