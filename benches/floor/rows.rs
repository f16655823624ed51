//! The rows of the floor: a hash table by id, and what is written into the database.
//!
//! Never: reads a row twice, builds a statement twice, parses JSON.

use crate::stage::Result;
use memchr::memmem::Finder;
use roost::model::time::Wall;
use roost::store::open::open_writer;
use rusqlite::{Connection, params};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::path::Path;
use std::str;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a sandbox's id.
const ID_BYTES: usize = 28;

type Id = [u8; ID_BYTES];

struct Row {
    host: u32,
    team: u32,
    missing: bool,
}

/// Ids are random, or numbers at their end: words of them, multiplied.
#[derive(Default)]
struct OfId(u64);

impl Hasher for OfId {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks_exact(8) {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        let last = bytes.last_chunk::<8>().copied().map_or(0, u64::from_le_bytes);
        self.0 = (self.0.rotate_left(5) ^ last).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// Everything the floor knows, and the database that it is from.
pub(super) struct Rows {
    conn: Connection,
    /// Id and address.
    hosts: Vec<(String, String)>,
    teams: Vec<String>,
    rows: HashMap<Id, Row, BuildHasherDefault<OfId>>,
    entry: Finder<'static>,
    host_ip: Finder<'static>,
    created: Finder<'static>,
    metadata: Finder<'static>,
    revision: i64,
    now: i64,
    /// Answers in one transaction.
    answers_each: usize,
    answered: usize,
    compared: usize,
}

impl Rows {
    pub(super) fn open(db: &Path, transactions: usize) -> Result<Rows> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let conn = open_writer(db, false, Wall(now))?;
        let revision = conn.query_row("SELECT revision FROM state", [], |row| row.get(0))?;
        let mut select = conn.prepare("SELECT id, address FROM hosts ORDER BY id")?;
        let hosts: Vec<(String, String)> = select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        drop(select);
        let answers_each = hosts.len().div_ceil(transactions.max(1));
        let mut rows = Rows {
            conn,
            hosts,
            teams: Vec::new(),
            rows: HashMap::default(),
            entry: Finder::new("\"sandboxId\":\""),
            host_ip: Finder::new("\"hostIp\":\""),
            created: Finder::new("\"createdAtUnix\":\""),
            metadata: Finder::new("\"metadata\":"),
            revision,
            now,
            answers_each,
            answered: 0,
            compared: 0,
        };
        rows.read()?;
        Ok(rows)
    }

    /// Where each host is asked, in the order of their numbers.
    pub(super) fn addresses(&self) -> Result<Vec<SocketAddr>> {
        Ok(self.hosts.iter().map(|(_, address)| address.parse()).collect::<Result<_, _>>()?)
    }

    fn read(&mut self) -> Result<()> {
        let sql = "SELECT id, host_id, team_id, status FROM sandboxes ORDER BY host_id, id";
        let mut select = self.conn.prepare(sql)?;
        let mut cursor = select.query([])?;
        let mut host = 0;
        while let Some(row) = cursor.next()? {
            let id = row.get_ref(0)?.as_str()?.as_bytes().try_into()?;
            let of = row.get_ref(1)?.as_str()?;
            while self.hosts.get(host).ok_or("a row without a host")?.0 != of {
                host += 1;
            }
            let team = row.get_ref(2)?.as_str()?;
            let known = self.teams.iter().position(|known| known == team);
            let team = known.unwrap_or_else(|| {
                self.teams.push(team.to_owned());
                self.teams.len() - 1
            });
            let missing = row.get_ref(3)?.as_str()? == "missing";
            self.rows.insert(id, Row { host: host as u32, team: team as u32, missing });
        }
        Ok(())
    }

    /// Compares what a host lists with its rows, and writes those that are back.
    pub(super) fn host_answered(&mut self, host: usize, json: &[u8]) -> Result<()> {
        let mut starts = self.entry.find_iter(json).map(|at| at + self.entry.needle().len());
        let mut next = starts.next();
        let mut back = Vec::new();
        while let Some(start) = next {
            next = starts.next();
            let id: Id = json.get(start..start + ID_BYTES).ok_or("cut off")?.try_into()?;
            let row = self.rows.get(&id).ok_or("an id without a row")?;
            if row.host as usize != host {
                return Err("a row of another host".into());
            }
            self.compared += 1;
            if row.missing {
                back.push((id, row.team, &json[start..next.unwrap_or(json.len())]));
            }
        }
        if !back.is_empty() {
            if self.conn.is_autocommit() {
                self.conn.execute_batch("BEGIN IMMEDIATE")?;
            }
            self.write(host, &back)?;
        }
        self.answered += 1;
        if self.answered.is_multiple_of(self.answers_each) { self.commit() } else { Ok(()) }
    }

    fn write(&mut self, host: usize, back: &[(Id, u32, &[u8])]) -> Result<()> {
        let key = &self.hosts[host].0;
        let mut update = self.conn.prepare_cached(
            "UPDATE sandboxes INDEXED BY sqlite_autoindex_sandboxes_1 SET status = 'running', \
             status_reason = 'restored', status_changed_at = ?3, revision = ?4, \
             host_ip = coalesce(?5, host_ip), metadata = coalesce(?6, metadata), \
             started_at = coalesce(started_at, ?7), status_detail = NULL \
             WHERE host_id = ?1 AND id = ?2",
        )?;
        let mut event = self.conn.prepare_cached(
            "INSERT INTO events (revision, at, kind, host_id, sandbox_id, team_id, from_status, \
             to_status, reason, actor) VALUES (?1, ?2, 'sandbox.running', ?3, ?4, ?5, 'missing', \
             'running', 'restored', 'system')",
        )?;
        let mut audit = self.conn.prepare_cached(
            "INSERT INTO audit_logs (id, team_id, actor_type, resource_type, resource_id, \
             action, scope, status, metadata, created_at) VALUES (?1, ?2, 'system', 'sandbox', \
             ?3, 'restore', 'team', 'success', ?4, ?5)",
        )?;
        for (id, team, entry) in back {
            self.revision += 1;
            let (id, team) = (str::from_utf8(id)?, &self.teams[*team as usize]);
            let created: Option<i64> = text(&self.created, entry)?.map(str::parse).transpose()?;
            let started = created.map_or(self.now, |unix| unix * 1000);
            update.execute(params![
                key,
                id,
                self.now,
                self.revision,
                text(&self.host_ip, entry)?,
                object(&self.metadata, entry)?,
                started
            ])?;
            event.execute(params![self.revision, self.now, key, id, team])?;
            let metadata = format!(
                r#"{{"from":"missing","to":"running","reason":"restored","host_id":"{key}","revision":{}}}"#,
                self.revision
            );
            let log = format!("log-{:025}", self.revision);
            audit.execute(params![log, team, id, metadata, self.now])?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        if !self.conn.is_autocommit() {
            let mut update = self.conn.prepare_cached("UPDATE state SET revision = ?1")?;
            update.execute([self.revision])?;
            self.conn.execute_batch("COMMIT")?;
        }
        Ok(())
    }

    /// Everything is written; every row was listed.
    pub(super) fn finish(mut self) -> Result<()> {
        self.commit()?;
        match self.compared == self.rows.len() {
            true => Ok(()),
            false => Err(format!("{} of {} rows listed", self.compared, self.rows.len()).into()),
        }
    }
}

/// The string that follows a key; agents that the bench starts write none with escapes.
fn text<'a>(key: &Finder<'_>, entry: &'a [u8]) -> Result<Option<&'a str>> {
    let Some(at) = key.find(entry) else { return Ok(None) };
    let rest = &entry[at + key.needle().len()..];
    let end = memchr::memchr(b'"', rest).ok_or("a string without end")?;
    Ok(Some(str::from_utf8(&rest[..end])?))
}

/// The object that follows a key; there are none in it.
fn object<'a>(key: &Finder<'_>, entry: &'a [u8]) -> Result<Option<&'a str>> {
    let Some(at) = key.find(entry) else { return Ok(None) };
    let rest = &entry[at + key.needle().len()..];
    let end = memchr::memchr(b'}', rest).ok_or("an object without end")?;
    Ok(Some(str::from_utf8(&rest[..=end])?))
}
