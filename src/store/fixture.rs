//! Owns the fixture format (interfaces.md section 6): a small fleet as JSON, loaded into
//! an empty database or printed from one. Ages are relative to the moment of loading.
//!
//! Never: guesses. A wrong id, an unknown status or a missing host is refused with its
//! place. Used by `roost db`, `demo`, tests and benches.

use super::StoreError;
use super::read;
use super::rows;
use crate::model::host::{AgentAddress, Host, HostStatus, Intent, Liveness};
use crate::model::id::{HostId, Id, Kind, OpId, PLATFORM_TEAM, TeamId};
use crate::model::operation::OperationKind;
use crate::model::sandbox::{Reason, Sandbox};
use crate::model::time::Wall;
use rusqlite::{Connection, TransactionBehavior, params};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

/// Age of a sandbox's status when the fixture does not say, in seconds.
const STATUS_AGE_S: f64 = 600.0;

/// Longest age in seconds: some three thousand years. Larger: milliseconds of it are lost
/// on the way through a fixture. Smaller: rows from before a clock was set do not fit.
const SPAN_S_MAX: f64 = 1e11;

/// Why a fixture is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixtureError {
    /// Where, for example `sandboxes[3].status`, or line and column.
    pub place: String,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for FixtureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

impl std::error::Error for FixtureError {}

/// A fleet as a fixture says it, lowered into rows.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// Hosts.
    pub hosts: Vec<Host>,
    /// Sandboxes, with the operation that owns them and whether the agent announced them.
    pub sandboxes: Vec<FleetSandbox>,
    /// Ids of deleted hosts.
    pub tombstones: Vec<HostId>,
    /// Until when a server listened; `None`: until now.
    pub listened_until: Option<Wall>,
}

/// One sandbox of a fleet.
#[derive(Debug, Clone)]
pub struct FleetSandbox {
    /// The row.
    pub row: Sandbox,
    /// An unfinished operation: kind and deadline.
    pub operation: Option<(OperationKind, Wall)>,
    /// Whether the inbox holds an announcement of it.
    pub announced: bool,
}

/// Reads a fixture's text; ages count back from `now`.
pub fn parse(text: &str, now: Wall) -> Result<Fleet, FixtureError> {
    let value: Value = serde_json::from_str(text).map_err(|e| FixtureError {
        place: format!("line {} column {}", e.line(), e.column()),
        reason: e.to_string(),
    })?;
    let root = Object::new(&value, "fixture".to_owned())?;
    root.warn_unknown(&["hosts", "sandboxes", "tombstones", "listened_age_s"]);
    let hosts: Vec<Host> =
        root.list("hosts")?.iter().map(|host| parse_host(host, now)).collect::<Result<_, _>>()?;
    let mut known = HashSet::new();
    for (at, host) in hosts.iter().enumerate() {
        if !known.insert(host.id) {
            let place = format!("hosts[{at}].id");
            return Err(FixtureError { place, reason: format!("{} is there twice", host.id) });
        }
    }
    let mut seen = HashSet::new();
    let sandboxes = root
        .list("sandboxes")?
        .iter()
        .map(|sandbox| {
            let sandbox = parse_sandbox(sandbox, &known, now)?;
            Ok(sandbox)
        })
        .collect::<Result<Vec<FleetSandbox>, FixtureError>>()?;
    for (at, sandbox) in sandboxes.iter().enumerate() {
        if !seen.insert(sandbox.row.id) {
            let place = format!("sandboxes[{at}].id");
            return Err(FixtureError {
                place,
                reason: format!("{} is there twice", sandbox.row.id),
            });
        }
    }
    let mut tombstones = Vec::new();
    for (place, text) in root.strings("tombstones")? {
        let host: HostId = text.parse().map_err(|e| refused(place.clone(), &e))?;
        if !known.insert(host) {
            return Err(FixtureError { place, reason: format!("{host} is there already") });
        }
        tombstones.push(host);
    }
    let listened_until = root.age("listened_age_s", now)?;
    Ok(Fleet { hosts, sandboxes, tombstones, listened_until })
}

fn refused(place: String, reason: &dyn fmt::Display) -> FixtureError {
    FixtureError { place, reason: reason.to_string() }
}

const HOST_KEYS: &[&str] = &[
    "id",
    "address",
    "status",
    "heartbeat_age_s",
    "team_id",
    "type",
    "provider",
    "availability_zone",
    "arch",
    "cpu_cores",
    "memory_mb",
    "disk_gb",
    "intent",
    "liveness",
    "degraded",
    "rejoining",
    "contact_gap",
    "last_probe",
    "last_heartbeat_at",
    "created_at",
    "updated_at",
];

fn parse_host(host: &Object<'_>, now: Wall) -> Result<Host, FixtureError> {
    host.warn_unknown(HOST_KEYS);
    let status: HostStatus = host.required("status")?;
    let (registered, liveness) = match status {
        HostStatus::Pending => (false, Liveness::Alive),
        HostStatus::Online | HostStatus::Draining | HostStatus::Offline => (true, Liveness::Alive),
        HostStatus::Unreachable => (true, Liveness::Unreachable),
    };
    let intent = match status {
        HostStatus::Draining => Intent::Draining,
        HostStatus::Offline => Intent::Offline,
        HostStatus::Pending | HostStatus::Online | HostStatus::Unreachable => Intent::Active,
    };
    let intent = host.optional("intent")?.unwrap_or(intent);
    let liveness = host.optional("liveness")?.unwrap_or(liveness);
    if HostStatus::derive(registered, intent, liveness) != status {
        let reason = format!("intent {intent} and liveness {liveness} do not give this status");
        return Err(FixtureError { place: host.place("status"), reason });
    }
    let created_at = host.time("created_at")?.unwrap_or(now);
    Ok(Host {
        id: host.required("id")?,
        team_id: host.optional("team_id")?.unwrap_or(PLATFORM_TEAM),
        kind: host.optional("type")?.unwrap_or_else(|| "regular".to_owned()),
        provider: host.optional("provider")?,
        availability_zone: host.optional("availability_zone")?,
        arch: host.optional("arch")?,
        cpu_cores: host.number("cpu_cores")?,
        memory_mb: host.number::<u32>("memory_mb")?.map(u64::from),
        disk_gb: host.number::<u32>("disk_gb")?.map(u64::from),
        address: host.optional::<AgentAddress>("address")?,
        intent,
        liveness,
        registered_at: registered.then_some(created_at),
        rejoining: host.flag("rejoining")?,
        degraded: host.flag("degraded")?,
        contact_gap: host.flag("contact_gap")?,
        last_heartbeat_at: host.age("heartbeat_age_s", now)?,
        probe_failure: None,
        revision: 0,
        created_at,
        updated_at: host.time("updated_at")?.unwrap_or(created_at),
    })
}

const SANDBOX_KEYS: &[&str] = &[
    "id",
    "host_id",
    "status",
    "status_age_s",
    "status_reason",
    "team_id",
    "template",
    "vcpus",
    "memory_mb",
    "timeout_sec",
    "disk_size_mb",
    "guest_ip",
    "host_ip",
    "metadata",
    "created_at",
    "started_at",
    "last_active_at",
    "last_updated",
    "operation",
    "announced",
];

fn parse_sandbox(
    sandbox: &Object<'_>,
    hosts: &HashSet<HostId>,
    now: Wall,
) -> Result<FleetSandbox, FixtureError> {
    sandbox.warn_unknown(SANDBOX_KEYS);
    let host_id: HostId = sandbox.required("host_id")?;
    if !hosts.contains(&host_id) {
        let reason = format!("{host_id} is not among the hosts");
        return Err(FixtureError { place: sandbox.place("host_id"), reason });
    }
    let changed_at = sandbox.age("status_age_s", now)?.unwrap_or_else(|| back(now, STATUS_AGE_S));
    let row = Sandbox {
        id: sandbox.required("id")?,
        host_id,
        team_id: sandbox.optional("team_id")?.unwrap_or(PLATFORM_TEAM),
        status: sandbox.required("status")?,
        status_reason: sandbox
            .optional::<String>("status_reason")?
            .map(|r| Reason::from(r.as_str())),
        status_changed_at: changed_at,
        revision: 0,
        template: sandbox.optional("template")?,
        vcpus: sandbox.number("vcpus")?,
        memory_mb: sandbox.number::<u32>("memory_mb")?.map(u64::from),
        timeout_sec: sandbox.number("timeout_sec")?,
        disk_size_mb: sandbox.number::<u32>("disk_size_mb")?.map(u64::from),
        guest_ip: sandbox.optional("guest_ip")?,
        host_ip: sandbox.optional("host_ip")?,
        metadata: sandbox.metadata()?,
        created_at: sandbox.time("created_at")?.unwrap_or(changed_at),
        started_at: sandbox.time("started_at")?,
        last_active_at: sandbox.time("last_active_at")?,
    };
    let operation = match sandbox.object("operation")? {
        None => None,
        Some(operation) => {
            operation.warn_unknown(&["kind", "deadline_in_s"]);
            let kind: OperationKind = operation.required("kind")?;
            let left = operation.seconds("deadline_in_s")?;
            let deadline = match left {
                Some(left) => back(now, -left),
                None => changed_at.after(kind.deadline()).min(back(now, -SPAN_S_MAX)),
            };
            Some((kind, deadline))
        }
    };
    Ok(FleetSandbox { row, operation, announced: sandbox.flag("announced")? })
}

fn back(now: Wall, age_s: f64) -> Wall {
    // Fixtures are made by hand: milliseconds are exact enough, and `as` saturates.
    Wall(now.0.saturating_sub((age_s * 1000.0).round() as i64))
}

/// A JSON object that knows where it stands.
struct Object<'a> {
    fields: &'a Map<String, Value>,
    at: String,
}

impl<'a> Object<'a> {
    fn new(value: &'a Value, at: String) -> Result<Object<'a>, FixtureError> {
        match value.as_object() {
            Some(fields) => Ok(Object { fields, at }),
            None => Err(FixtureError { place: at, reason: "must be a JSON object".to_owned() }),
        }
    }

    fn place(&self, key: &str) -> String {
        if self.at == "fixture" { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    fn wrong(&self, key: &str, reason: impl Into<String>) -> FixtureError {
        FixtureError { place: self.place(key), reason: reason.into() }
    }

    fn warn_unknown(&self, known: &[&str]) {
        for key in self.fields.keys().filter(|key| !known.contains(&key.as_str())) {
            log::warn!("the fixture's {} is not known and was left out", self.place(key));
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn optional<T: FromStr>(&self, key: &str) -> Result<Option<T>, FixtureError>
    where
        T::Err: fmt::Display,
    {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| self.wrong(key, "must be a string"))?;
        text.parse().map(Some).map_err(|e| self.wrong(key, format!("{text:?}: {e}")))
    }

    fn required<T: FromStr>(&self, key: &str) -> Result<T, FixtureError>
    where
        T::Err: fmt::Display,
    {
        self.optional(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    fn number<T: TryFrom<i64>>(&self, key: &str) -> Result<Option<T>, FixtureError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_i64().and_then(|n| T::try_from(n).ok());
        number.map(Some).ok_or_else(|| self.wrong(key, "must be a whole number in range"))
    }

    fn seconds(&self, key: &str) -> Result<Option<f64>, FixtureError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let seconds = value.as_f64().filter(|s| s.abs() <= SPAN_S_MAX);
        let reason = || format!("must be a number of seconds up to {SPAN_S_MAX}");
        seconds.map(Some).ok_or_else(|| self.wrong(key, reason()))
    }

    fn age(&self, key: &str, now: Wall) -> Result<Option<Wall>, FixtureError> {
        Ok(self.seconds(key)?.map(|age| back(now, age)))
    }

    fn time(&self, key: &str) -> Result<Option<Wall>, FixtureError> {
        self.optional(key)
    }

    fn flag(&self, key: &str) -> Result<bool, FixtureError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, "must be true or false"))
    }

    fn object(&self, key: &str) -> Result<Option<Object<'a>>, FixtureError> {
        self.get(key).map(|value| Object::new(value, self.place(key))).transpose()
    }

    fn metadata(&self) -> Result<Option<String>, FixtureError> {
        let Some(object) = self.object("metadata")? else { return Ok(None) };
        if let Some(key) = object.fields.iter().find(|(_, v)| !v.is_string()).map(|(k, _)| k) {
            return Err(object.wrong(key, "must be a string"));
        }
        Ok(Some(Value::Object(object.fields.clone()).to_string()))
    }

    fn array(&self, key: &str) -> Result<&'a [Value], FixtureError> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Value::Array(values)) => Ok(values),
            Some(_) => Err(self.wrong(key, "must be a list")),
        }
    }

    fn list(&self, key: &str) -> Result<Vec<Object<'a>>, FixtureError> {
        let values = self.array(key)?.iter().enumerate();
        values.map(|(n, value)| Object::new(value, format!("{}[{n}]", self.place(key)))).collect()
    }

    fn strings(&self, key: &str) -> Result<Vec<(String, &'a str)>, FixtureError> {
        let values = self.array(key)?.iter().enumerate();
        values
            .map(|(n, value)| {
                let place = format!("{}[{n}]", self.place(key));
                match value.as_str() {
                    Some(text) => Ok((place, text)),
                    None => Err(FixtureError { place, reason: "must be a string".to_owned() }),
                }
            })
            .collect()
    }
}

/// Puts a fleet into a database that has no host yet, in one transaction. False, and
/// nothing written, when there is one.
pub fn load(conn: &mut Connection, fleet: &Fleet) -> Result<bool, StoreError> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if tx.prepare("SELECT 1 FROM hosts")?.exists([])? {
        return Ok(false);
    }
    for host in &fleet.hosts {
        rows::insert_host(&tx, host)?;
    }
    let mut announce = tx.prepare(
        "INSERT INTO auto_pause_inbox (host_id, sandbox_id, revision, noted_at) VALUES (?1, ?2, 0, ?3)",
    )?;
    let mut operate = tx.prepare(
        "INSERT INTO operations (id, sandbox_id, host_id, kind, created_at, deadline_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for sandbox in &fleet.sandboxes {
        let row = &sandbox.row;
        rows::insert_sandbox(&tx, row)?;
        let (id, host) = (row.id.to_string(), row.host_id.to_string());
        if sandbox.announced {
            announce.execute(params![host, id, row.status_changed_at.0])?;
        }
        if let Some((kind, deadline)) = sandbox.operation {
            // One operation a sandbox: its id can be the sandbox's own number.
            let op = OpId::from_u128(row.id.as_u128()).to_string();
            let created = row.status_changed_at.0;
            operate.execute(params![op, id, host, kind.as_str(), created, deadline.0])?;
        }
    }
    drop((announce, operate));
    for host in &fleet.tombstones {
        let at = fleet.listened_until.unwrap_or_default();
        tx.execute(
            "INSERT INTO tombstones (host_id, deleted_at) VALUES (?1, ?2)",
            params![host.to_string(), at.0],
        )?;
    }
    let listened = fleet.listened_until.map(|at| at.0);
    tx.execute("UPDATE state SET listened_until = ?1", [listened])?;
    tx.commit()?;
    Ok(true)
}

/// Prints a database as a fixture: ages count back from `now`.
pub fn dump(conn: &Connection, now: Wall) -> Result<Value, StoreError> {
    let hosts: Vec<Value> = read::hosts(conn)?.iter().map(|host| dump_host(host, now)).collect();
    let all = read::SandboxFilter { all: true, ..read::SandboxFilter::default() };
    let mut sandboxes = Vec::new();
    for sandbox in read::sandboxes(conn, &all)? {
        sandboxes.push(dump_sandbox(conn, &sandbox, now)?);
    }
    let tombstones: Vec<String> = read::tombstones(conn)?.iter().map(ToString::to_string).collect();
    let mut root = json!({"hosts": hosts, "sandboxes": sandboxes});
    if !tombstones.is_empty() {
        root["tombstones"] = json!(tombstones);
    }
    if let Some(at) = read::listened_until(conn)? {
        root["listened_age_s"] = age(at, now);
    }
    Ok(root)
}

fn age(at: Wall, now: Wall) -> Value {
    let ms = now.0.saturating_sub(at.0);
    if ms % 1000 == 0 { json!(ms / 1000) } else { json!(ms as f64 / 1000.0) }
}

fn put(object: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[key] = value.into();
    }
}

fn team(id: TeamId) -> Option<String> {
    (id != PLATFORM_TEAM).then(|| id.to_string())
}

fn text<K: Kind>(id: Id<K>) -> String {
    id.to_string()
}

fn dump_host(host: &Host, now: Wall) -> Value {
    let mut out = json!({"id": text(host.id), "status": host.status().as_str()});
    out["heartbeat_age_s"] = host.last_heartbeat_at.map_or(Value::Null, |at| age(at, now));
    put(&mut out, "address", host.address.as_ref().map(AgentAddress::as_str));
    put(&mut out, "team_id", team(host.team_id));
    put(&mut out, "type", (host.kind != "regular").then(|| host.kind.clone()));
    put(&mut out, "provider", host.provider.clone());
    put(&mut out, "availability_zone", host.availability_zone.clone());
    put(&mut out, "arch", host.arch.clone());
    put(&mut out, "cpu_cores", host.cpu_cores);
    put(&mut out, "memory_mb", host.memory_mb);
    put(&mut out, "disk_gb", host.disk_gb);
    // The status says the rest, but for these combinations.
    let plain = match host.status() {
        HostStatus::Draining => Intent::Draining,
        HostStatus::Offline => Intent::Offline,
        HostStatus::Pending | HostStatus::Online | HostStatus::Unreachable => Intent::Active,
    };
    put(&mut out, "intent", (host.intent != plain).then(|| host.intent.as_str()));
    let hidden = host.status() != HostStatus::Unreachable && host.liveness == Liveness::Unreachable;
    put(&mut out, "liveness", hidden.then(|| host.liveness.as_str()));
    for (key, set) in [
        ("degraded", host.degraded),
        ("rejoining", host.rejoining),
        ("contact_gap", host.contact_gap),
    ] {
        put(&mut out, key, set.then_some(true));
    }
    put(&mut out, "created_at", Some(host.created_at.to_string()));
    out
}

fn dump_sandbox(conn: &Connection, sandbox: &Sandbox, now: Wall) -> Result<Value, StoreError> {
    let (id, host) = (text(sandbox.id), text(sandbox.host_id));
    let mut out = json!({
        "id": id,
        "host_id": host,
        "status": sandbox.status.as_str(),
        "status_age_s": age(sandbox.status_changed_at, now),
    });
    put(&mut out, "status_reason", sandbox.status_reason.as_ref().map(Reason::as_str));
    put(&mut out, "team_id", team(sandbox.team_id));
    put(&mut out, "template", sandbox.template.clone());
    put(&mut out, "vcpus", sandbox.vcpus);
    put(&mut out, "memory_mb", sandbox.memory_mb);
    put(&mut out, "timeout_sec", sandbox.timeout_sec);
    put(&mut out, "disk_size_mb", sandbox.disk_size_mb);
    put(&mut out, "guest_ip", sandbox.guest_ip.clone());
    put(&mut out, "host_ip", sandbox.host_ip.clone());
    let metadata = sandbox.metadata.as_deref().and_then(|m| serde_json::from_str::<Value>(m).ok());
    put(&mut out, "metadata", metadata);
    put(&mut out, "created_at", Some(sandbox.created_at.to_string()));
    put(&mut out, "started_at", sandbox.started_at.map(|at| at.to_string()));
    put(&mut out, "last_active_at", sandbox.last_active_at.map(|at| at.to_string()));
    let mut operation = conn.prepare_cached(
        "SELECT kind, deadline_at FROM operations \
         WHERE host_id = ?1 AND sandbox_id = ?2 AND finished_at IS NULL",
    )?;
    let mut found = operation.query([&host, &id])?;
    if let Some(row) = found.next()? {
        let (kind, deadline) = (row.get::<_, String>(0)?, rows::wall(row, 1)?);
        out["operation"] = json!({"kind": kind, "deadline_in_s": age(now, deadline)});
    }
    let mut inbox = conn
        .prepare_cached("SELECT 1 FROM auto_pause_inbox WHERE host_id = ?1 AND sandbox_id = ?2")?;
    put(&mut out, "announced", inbox.exists([&host, &id])?.then_some(true));
    Ok(out)
}
