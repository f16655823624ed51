//! Owns how hosts and sandboxes are written to and read from rows.
//!
//! Never: a query that belongs to one caller only.

use crate::model::host::{AgentAddress, Host, ProbeTrouble};
use crate::model::id::{Id, Kind};
use crate::model::sandbox::{Reason, Sandbox};
use crate::model::time::Wall;
use rusqlite::types::Type;
use rusqlite::{Connection, Result, Row, params};
use std::str::FromStr;

/// Columns of a host, in the order that [`host`] reads.
pub(super) const HOST: &str = "id, team_id, type, provider, availability_zone, arch, cpu_cores, \
    memory_mb, disk_gb, address, intent, liveness, registered_at, rejoining, degraded, \
    contact_gap, last_heartbeat_at, probe_outcome, probe_detail, probe_at, revision, \
    created_at, updated_at, registration";

/// Columns of a sandbox, in the order that [`sandbox`] reads.
pub(super) const SANDBOX: &str = "id, host_id, team_id, status, status_reason, \
    status_changed_at, revision, template, vcpus, memory_mb, timeout_sec, disk_size_mb, \
    guest_ip, host_ip, metadata, created_at, started_at, last_active_at, \
    status_detail, template_id, default_user, default_env";

/// Reads a text column into what it says; an error when it does not say that.
pub(super) fn parsed<T: FromStr>(row: &Row<'_>, at: usize) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(at)?.as_str()?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, Box::new(e)))
}

/// Like [`parsed`], with SQL's NULL.
pub(super) fn parsed_opt<T: FromStr>(row: &Row<'_>, at: usize) -> Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(at)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        rusqlite::types::ValueRef::Text(_)
        | rusqlite::types::ValueRef::Integer(_)
        | rusqlite::types::ValueRef::Real(_)
        | rusqlite::types::ValueRef::Blob(_) => parsed(row, at).map(Some),
    }
}

/// Reads an id.
pub(super) fn id<K: Kind>(row: &Row<'_>, at: usize) -> Result<Id<K>> {
    parsed(row, at)
}

/// Reads a time.
pub(super) fn wall(row: &Row<'_>, at: usize) -> Result<Wall> {
    row.get(at).map(Wall)
}

fn wall_opt(row: &Row<'_>, at: usize) -> Result<Option<Wall>> {
    Ok(row.get::<_, Option<i64>>(at)?.map(Wall))
}

/// Reads a count that SQLite keeps signed.
pub(super) fn unsigned(row: &Row<'_>, at: usize) -> Result<u64> {
    let value: i64 = row.get(at)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(at, value))
}

/// Reads a host; columns of [`HOST`].
pub(super) fn host(row: &Row<'_>) -> Result<Host> {
    let failing = parsed_opt(row, 17)?;
    Ok(Host {
        id: id(row, 0)?,
        team_id: id(row, 1)?,
        kind: row.get(2)?,
        provider: row.get(3)?,
        availability_zone: row.get(4)?,
        arch: row.get(5)?,
        cpu_cores: row.get(6)?,
        memory_mb: row.get::<_, Option<u32>>(7)?.map(u64::from),
        disk_gb: row.get::<_, Option<u32>>(8)?.map(u64::from),
        address: parsed_opt::<AgentAddress>(row, 9)?,
        intent: parsed(row, 10)?,
        liveness: parsed(row, 11)?,
        registered_at: wall_opt(row, 12)?,
        rejoining: row.get(13)?,
        degraded: row.get(14)?,
        contact_gap: row.get(15)?,
        last_heartbeat_at: wall_opt(row, 16)?,
        probe_failure: match failing {
            None => None,
            Some(kind) => Some(ProbeTrouble {
                kind,
                detail: row.get::<_, Option<String>>(18)?.unwrap_or_default(),
                since: wall_opt(row, 19)?.unwrap_or_default(),
            }),
        },
        revision: unsigned(row, 20)?,
        created_at: wall(row, 21)?,
        updated_at: wall(row, 22)?,
        registration: unsigned(row, 23)?,
    })
}

/// Writes a new host.
pub(super) fn insert_host(conn: &Connection, host: &Host) -> Result<()> {
    let sql = format!(
        "INSERT INTO hosts ({HOST}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, \
         ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24)"
    );
    let trouble = host.probe_failure.as_ref();
    conn.prepare_cached(&sql)?.execute(params![
        host.id.to_string(),
        host.team_id.to_string(),
        host.kind,
        host.provider,
        host.availability_zone,
        host.arch,
        host.cpu_cores,
        host.memory_mb.map(|n| n as i64),
        host.disk_gb.map(|n| n as i64),
        host.address.as_ref().map(AgentAddress::as_str),
        host.intent.as_str(),
        host.liveness.as_str(),
        host.registered_at.map(|at| at.0),
        host.rejoining,
        host.degraded,
        host.contact_gap,
        host.last_heartbeat_at.map(|at| at.0),
        trouble.map(|t| t.kind.as_str()),
        trouble.map(|t| &t.detail),
        trouble.map(|t| t.since.0),
        host.revision as i64,
        host.created_at.0,
        host.updated_at.0,
        host.registration as i64,
    ])?;
    Ok(())
}

/// Reads a sandbox; columns of [`SANDBOX`].
pub(super) fn sandbox(row: &Row<'_>) -> Result<Sandbox> {
    Ok(Sandbox {
        id: id(row, 0)?,
        host_id: id(row, 1)?,
        team_id: id(row, 2)?,
        status: parsed(row, 3)?,
        status_reason: row.get::<_, Option<String>>(4)?.map(|word| Reason::from(word.as_str())),
        status_changed_at: wall(row, 5)?,
        revision: unsigned(row, 6)?,
        template: row.get(7)?,
        vcpus: row.get(8)?,
        memory_mb: row.get::<_, Option<u32>>(9)?.map(u64::from),
        timeout_sec: row.get(10)?,
        disk_size_mb: row.get::<_, Option<u32>>(11)?.map(u64::from),
        guest_ip: row.get(12)?,
        host_ip: row.get(13)?,
        metadata: row.get(14)?,
        created_at: wall(row, 15)?,
        started_at: wall_opt(row, 16)?,
        last_active_at: wall_opt(row, 17)?,
        status_detail: row.get(18)?,
        template_id: parsed_opt(row, 19)?,
        default_user: row.get(20)?,
        default_env: row.get(21)?,
    })
}

/// Writes a new sandbox. The writer has it counted, see `usage`.
pub(super) fn insert_sandbox(conn: &Connection, sandbox: &Sandbox) -> Result<()> {
    let sql = format!(
        "INSERT INTO sandboxes ({SANDBOX}, ended) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, \
         ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)"
    );
    conn.prepare_cached(&sql)?.execute(params![
        sandbox.id.to_string(),
        sandbox.host_id.to_string(),
        sandbox.team_id.to_string(),
        sandbox.status.as_str(),
        sandbox.status_reason.as_ref().map(Reason::as_str),
        sandbox.status_changed_at.0,
        sandbox.revision as i64,
        sandbox.template,
        sandbox.vcpus,
        sandbox.memory_mb.map(|n| n as i64),
        sandbox.timeout_sec,
        sandbox.disk_size_mb.map(|n| n as i64),
        sandbox.guest_ip,
        sandbox.host_ip,
        sandbox.metadata,
        sandbox.created_at.0,
        sandbox.started_at.map(|at| at.0),
        sandbox.last_active_at.map(|at| at.0),
        sandbox.status_detail,
        sandbox.template_id.map(|id| id.to_string()),
        sandbox.default_user,
        sandbox.default_env,
        sandbox.status.is_over(),
    ])?;
    Ok(())
}
