//! Owns the fixture format (interfaces.md section 6): a small fleet as JSON, loaded into
//! an empty database or printed from one. Ages are relative to the moment of loading.
//!
//! Never: guesses. A wrong id, an unknown status or a missing host is refused with its
//! place. Used by `roost db`, `demo`, tests and benches.

mod templates;

pub use templates::FleetTemplate;

use super::StoreError;
use super::read;
use super::rows;
use crate::model::host::{AgentAddress, Host, HostStatus, Intent, Liveness};
use crate::model::id::{HostId, Id, Kind, OpId, PLATFORM_TEAM, SandboxId, TeamId};
use crate::model::operation::OperationKind;
use crate::model::sandbox::{Reason, Sandbox};
use crate::model::time::Wall;
use rusqlite::{Connection, TransactionBehavior, params};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::fmt;
use std::io;
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
    /// What sandboxes are made from.
    pub templates: Vec<FleetTemplate>,
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

/// Why a fixture did not get into a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// The fixture is refused.
    Fixture(FixtureError),
    /// The database could not take it.
    Store(StoreError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Fixture(error) => error.fmt(f),
            LoadError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<FixtureError> for LoadError {
    fn from(error: FixtureError) -> LoadError {
        LoadError::Fixture(error)
    }
}

impl From<StoreError> for LoadError {
    fn from(error: StoreError) -> LoadError {
        LoadError::Store(error)
    }
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> LoadError {
        LoadError::Store(error.into())
    }
}

/// Takes what a fixture says, row by row: first all hosts.
trait Rows {
    fn host(&mut self, host: Host) -> Result<(), StoreError>;
    fn sandbox(&mut self, sandbox: FleetSandbox) -> Result<(), StoreError>;
    fn template(&mut self, template: FleetTemplate) -> Result<(), StoreError>;
    /// Ids of deleted hosts, and until when a server listened.
    fn rest(&mut self, tombstones: Vec<HostId>, listened: Option<Wall>) -> Result<(), StoreError>;
}

impl Rows for Fleet {
    fn host(&mut self, host: Host) -> Result<(), StoreError> {
        self.hosts.push(host);
        Ok(())
    }

    fn sandbox(&mut self, sandbox: FleetSandbox) -> Result<(), StoreError> {
        self.sandboxes.push(sandbox);
        Ok(())
    }

    fn template(&mut self, template: FleetTemplate) -> Result<(), StoreError> {
        self.templates.push(template);
        Ok(())
    }

    fn rest(&mut self, tombstones: Vec<HostId>, listened: Option<Wall>) -> Result<(), StoreError> {
        (self.tombstones, self.listened_until) = (tombstones, listened);
        Ok(())
    }
}

/// How much a fixture holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Hosts.
    pub hosts: usize,
    /// Sandboxes.
    pub sandboxes: usize,
}

impl Rows for Counts {
    fn host(&mut self, _host: Host) -> Result<(), StoreError> {
        self.hosts += 1;
        Ok(())
    }

    fn sandbox(&mut self, _sandbox: FleetSandbox) -> Result<(), StoreError> {
        self.sandboxes += 1;
        Ok(())
    }

    fn template(&mut self, _template: FleetTemplate) -> Result<(), StoreError> {
        Ok(())
    }

    fn rest(&mut self, _: Vec<HostId>, _: Option<Wall>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Reads a fixture's text; ages count back from `now`.
pub fn parse(text: &str, now: Wall) -> Result<Fleet, FixtureError> {
    let mut fleet = Fleet::default();
    read_rows(serde_json::Deserializer::from_str(text), &mut fleet, now)?;
    Ok(fleet)
}

/// Reads a fixture to its end and keeps nothing of it but ids: whether it would load.
pub fn count(from: impl io::Read, now: Wall) -> Result<Counts, FixtureError> {
    let mut counts = Counts::default();
    read_rows(serde_json::Deserializer::from_reader(from), &mut counts, now)?;
    Ok(counts)
}

fn read_rows<'de, I: serde_json::de::Read<'de>>(
    from: serde_json::Deserializer<I>,
    rows: &mut impl Rows,
    now: Wall,
) -> Result<(), FixtureError> {
    match stream(from, rows, now) {
        Ok(()) => Ok(()),
        Err(LoadError::Fixture(error)) => Err(error),
        // Rows that are kept in memory, or nowhere, are always taken.
        Err(LoadError::Store(error)) => Err(refused("fixture".to_owned(), &error)),
    }
}

/// Reads a fixture into rows as it comes, so that it is never in memory as a whole.
fn stream<'de, I: serde_json::de::Read<'de>, R: Rows>(
    mut from: serde_json::Deserializer<I>,
    rows: &mut R,
    now: Wall,
) -> Result<(), LoadError> {
    let (known, seen) = (HashSet::new(), HashSet::new());
    let mut reading =
        Reading { rows, now, known, seen, early: Vec::new(), fault: None, expected: None };
    let expected = reading.must_be("fixture", "a JSON object");
    reading.expected = Some(expected);
    let read = from.deserialize_any(Root(&mut reading));
    match read.and_then(|rest| from.end().map(|()| rest)) {
        Ok(rest) => reading.finish(&rest),
        Err(error) => Err(reading.fault(&error)),
    }
}

/// A fixture on its way into rows.
struct Reading<'r, R> {
    rows: &'r mut R,
    now: Wall,
    /// Hosts so far, deleted ones included.
    known: HashSet<HostId>,
    /// Sandboxes so far.
    seen: HashSet<SandboxId>,
    /// Sandboxes that came before the hosts.
    early: Vec<Value>,
    /// What ended the reading, if not JSON itself.
    fault: Option<LoadError>,
    /// What to say when something of another type comes next.
    expected: Option<FixtureError>,
}

impl<R: Rows> Reading<'_, R> {
    fn must_be(&self, place: &str, what: &str) -> FixtureError {
        FixtureError { place: place.to_owned(), reason: format!("must be {what}") }
    }

    /// Why reading ended, when it did with this.
    fn fault(self, error: &serde_json::Error) -> LoadError {
        let json = || FixtureError {
            place: format!("line {} column {}", error.line(), error.column()),
            reason: error.to_string(),
        };
        let other_type = self.expected.filter(|_| error.is_data());
        self.fault.unwrap_or_else(|| other_type.unwrap_or_else(json).into())
    }

    /// Ends the reading.
    fn end<E: de::Error>(&mut self, fault: LoadError) -> E {
        self.fault = Some(fault);
        E::custom("the fixture is refused")
    }

    fn row(&mut self, list: List, at: usize, value: Value) -> Result<(), LoadError> {
        match list {
            List::Hosts => self.host(at, &value),
            List::Sandboxes => self.sandbox(at, &value),
            List::EarlySandboxes => {
                self.early.push(value);
                Ok(())
            }
        }
    }

    fn host(&mut self, at: usize, value: &Value) -> Result<(), LoadError> {
        let host = parse_host(&Object::new(value, format!("hosts[{at}]"))?, self.now)?;
        if !self.known.insert(host.id) {
            return Err(twice(format!("hosts[{at}].id"), host.id).into());
        }
        Ok(self.rows.host(host)?)
    }

    fn sandbox(&mut self, at: usize, value: &Value) -> Result<(), LoadError> {
        let object = Object::new(value, format!("sandboxes[{at}]"))?;
        let sandbox = parse_sandbox(&object, &self.known, self.now)?;
        if !self.seen.insert(sandbox.row.id) {
            return Err(twice(format!("sandboxes[{at}].id"), sandbox.row.id).into());
        }
        Ok(self.rows.sandbox(sandbox)?)
    }

    /// What may only be said once all hosts are known.
    fn finish(mut self, rest: &Value) -> Result<(), LoadError> {
        let root = Object::new(rest, "fixture".to_owned())?;
        root.warn_unknown(&["hosts", "sandboxes", "templates", "tombstones", "listened_age_s"]);
        for (at, value) in std::mem::take(&mut self.early).iter().enumerate() {
            self.sandbox(at, value)?;
        }
        let mut seen = templates::Seen::default();
        for (at, value) in root.array("templates")?.iter().enumerate() {
            let template = seen.parse(value, format!("templates[{at}]"), &self.known, self.now)?;
            self.rows.template(template)?;
        }
        let mut tombstones = Vec::new();
        for (place, text) in root.strings("tombstones")? {
            let host: HostId = text.parse().map_err(|e| refused(place.clone(), &e))?;
            if !self.known.insert(host) {
                let reason = format!("{host} is there already");
                return Err(FixtureError { place, reason }.into());
            }
            tombstones.push(host);
        }
        let listened_until = root.age("listened_age_s", self.now)?;
        Ok(self.rows.rest(tombstones, listened_until)?)
    }
}

fn twice<K: Kind>(place: String, id: Id<K>) -> FixtureError {
    FixtureError { place, reason: format!("{id} is there twice") }
}

/// The whole of a fixture; gives what is in no list of rows.
struct Root<'a, 'r, R>(&'a mut Reading<'r, R>);

impl<'de, R: Rows> Visitor<'de> for Root<'_, '_, R> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Root(reading) = self;
        reading.expected = None;
        let mut rest = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if rest.contains_key(&key) {
                let (place, reason) = ("fixture".to_owned(), format!("{key:?} is there twice"));
                return Err(reading.end(FixtureError { place, reason }.into()));
            }
            let list = match key.as_str() {
                "hosts" => Some(List::Hosts),
                "sandboxes" if rest.contains_key("hosts") => Some(List::Sandboxes),
                "sandboxes" => Some(List::EarlySandboxes),
                _ => None,
            };
            let value = match list {
                Some(list) => {
                    reading.expected = Some(reading.must_be(&key, "a list"));
                    map.next_value_seed(ListOf { list, reading })?;
                    Value::Null
                }
                None => map.next_value()?,
            };
            rest.insert(key, value);
        }
        Ok(Value::Object(rest))
    }
}

/// A list of rows.
#[derive(Clone, Copy)]
enum List {
    Hosts,
    Sandboxes,
    /// Sandboxes before the hosts, which wait for them.
    EarlySandboxes,
}

struct ListOf<'a, 'r, R> {
    list: List,
    reading: &'a mut Reading<'r, R>,
}

impl<'de, R: Rows> DeserializeSeed<'de> for ListOf<'_, '_, R> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, R: Rows> Visitor<'de> for ListOf<'_, '_, R> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.reading.expected = None;
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let ListOf { list, reading } = self;
        reading.expected = None;
        let mut at = 0;
        while let Some(value) = seq.next_element()? {
            if let Err(fault) = reading.row(list, at, value) {
                return Err(reading.end(fault));
            }
            at += 1;
        }
        Ok(())
    }
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
        registration: 0,
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
    "status_detail",
    "template_id",
    "default_user",
    "default_env",
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
        metadata: sandbox.map("metadata")?,
        created_at: sandbox.time("created_at")?.unwrap_or(changed_at),
        started_at: sandbox.time("started_at")?,
        last_active_at: sandbox.time("last_active_at")?,
        status_detail: sandbox.optional("status_detail")?,
        template_id: sandbox.optional("template_id")?,
        default_user: sandbox.optional("default_user")?,
        default_env: sandbox.map("default_env")?,
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

    fn map(&self, key: &str) -> Result<Option<String>, FixtureError> {
        let Some(object) = self.object(key)? else { return Ok(None) };
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
    let done = filled(conn, |inserts| {
        fleet.hosts.iter().try_for_each(|host| inserts.host(host))?;
        fleet.sandboxes.iter().try_for_each(|sandbox| inserts.sandbox(sandbox))?;
        fleet.templates.iter().try_for_each(|template| inserts.template(template))?;
        inserts.rest(&fleet.tombstones, fleet.listened_until)
    })?;
    Ok(done.is_some())
}

/// Puts a fixture into a database that has no host yet, row by row, in one transaction.
/// `None`, and nothing written, when there is one; nothing is written of a fixture that is
/// refused either.
pub fn load_from(
    conn: &mut Connection,
    from: impl io::Read,
    now: Wall,
) -> Result<Option<Counts>, LoadError> {
    filled(conn, |inserts| {
        let mut into = IntoDatabase { inserts, counts: Counts::default() };
        stream(serde_json::Deserializer::from_reader(from), &mut into, now)?;
        Ok(into.counts)
    })
}

/// Fills an empty database in one transaction.
fn filled<T, E: From<rusqlite::Error>>(
    conn: &mut Connection,
    fill: impl FnOnce(&Inserts<'_>) -> Result<T, E>,
) -> Result<Option<T>, E> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if tx.prepare("SELECT 1 FROM hosts")?.exists([])? {
        return Ok(None);
    }
    let done = fill(&Inserts(&tx))?;
    tx.execute_batch(super::usage::COUNT)?;
    tx.commit()?;
    Ok(Some(done))
}

/// Writes rows.
struct Inserts<'c>(&'c Connection);

impl Inserts<'_> {
    fn host(&self, host: &Host) -> Result<(), StoreError> {
        Ok(rows::insert_host(self.0, host)?)
    }

    fn sandbox(&self, sandbox: &FleetSandbox) -> Result<(), StoreError> {
        let row = &sandbox.row;
        rows::insert_sandbox(self.0, row)?;
        if sandbox.announced {
            let mut announce = self.0.prepare_cached(
                "INSERT INTO auto_pause_inbox (host_id, sandbox_id, revision, noted_at) \
                 VALUES (?1, ?2, 0, ?3)",
            )?;
            let (host, id) = (row.host_id.to_string(), row.id.to_string());
            announce.execute(params![host, id, row.status_changed_at.0])?;
        }
        if let Some((kind, deadline)) = sandbox.operation {
            let mut operate = self.0.prepare_cached(
                "INSERT INTO operations (id, sandbox_id, host_id, kind, created_at, deadline_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            // One operation a sandbox: its id can be the sandbox's own number.
            let op = OpId::from_u128(row.id.as_u128()).to_string();
            let (host, id) = (row.host_id.to_string(), row.id.to_string());
            let created = row.status_changed_at.0;
            operate.execute(params![op, id, host, kind.as_str(), created, deadline.0])?;
        }
        Ok(())
    }

    fn template(&self, template: &FleetTemplate) -> Result<(), StoreError> {
        super::templates::insert(self.0, &template.row, template.deleted_at)
    }

    fn rest(&self, tombstones: &[HostId], listened: Option<Wall>) -> Result<(), StoreError> {
        for host in tombstones {
            self.0.execute(
                "INSERT INTO tombstones (host_id, deleted_at) VALUES (?1, ?2)",
                params![host.to_string(), listened.unwrap_or_default().0],
            )?;
        }
        self.0.execute("UPDATE state SET listened_until = ?1", [listened.map(|at| at.0)])?;
        Ok(())
    }
}

/// Writes rows as they are read, and counts them.
struct IntoDatabase<'a, 'c> {
    inserts: &'a Inserts<'c>,
    counts: Counts,
}

impl Rows for IntoDatabase<'_, '_> {
    fn host(&mut self, host: Host) -> Result<(), StoreError> {
        self.inserts.host(&host)?;
        self.counts.host(host)
    }

    fn sandbox(&mut self, sandbox: FleetSandbox) -> Result<(), StoreError> {
        self.inserts.sandbox(&sandbox)?;
        self.counts.sandbox(sandbox)
    }

    fn template(&mut self, template: FleetTemplate) -> Result<(), StoreError> {
        self.inserts.template(&template)
    }

    fn rest(&mut self, tombstones: Vec<HostId>, listened: Option<Wall>) -> Result<(), StoreError> {
        self.inserts.rest(&tombstones, listened)
    }
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
    let templates = templates::dump(conn, now)?;
    put(&mut root, "templates", (!templates.is_empty()).then_some(templates));
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

/// A JSON object that is stored as text.
fn object(text: Option<&str>) -> Option<Value> {
    text.and_then(|text| serde_json::from_str(text).ok())
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
    put(&mut out, "metadata", object(sandbox.metadata.as_deref()));
    put(&mut out, "created_at", Some(sandbox.created_at.to_string()));
    put(&mut out, "started_at", sandbox.started_at.map(|at| at.to_string()));
    put(&mut out, "last_active_at", sandbox.last_active_at.map(|at| at.to_string()));
    put(&mut out, "status_detail", sandbox.status_detail.clone());
    put(&mut out, "template_id", sandbox.template_id.map(|id| id.to_string()));
    put(&mut out, "default_user", sandbox.default_user.clone());
    put(&mut out, "default_env", object(sandbox.default_env.as_deref()));
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
