//! Owns the commands that look: status, hosts, sandboxes, templates, audit. They read the database
//! directly, with or without a running server; `health` asks only the server.
//!
//! Never: writes; asks the server for anything but what only it knows.

use super::act::ServerClient;
use super::args::{
    Audit, Database, Format, Health, HostsList, HostsShow, SandboxesList, SandboxesShow, Status,
};
use super::output::{
    Cell, Column, Exit, Failure, Out, Screen, Table, Tone, age, with_detail, wrapped,
};
use super::{clock, open, paths, unreadable};
use crate::api::view::{
    AuditView, CapsuleView, HostView, StrangerView, TemplateView, UnknownHostView,
};
use crate::config::Config;
use crate::model::host::{Host, HostStatus};
use crate::model::sandbox::{Reason, Sandbox, SandboxStatus, StrangerKind};
use crate::model::template::{Template, TemplateKind};
use crate::model::time::Wall;
use crate::store::acceptance;
use crate::store::notify::maintenance;
use crate::store::read::{self, HistoryFilter, SandboxFilter};
use crate::store::strangers::{Recorded, strangers};
use crate::store::templates::Scope;
use crate::store::unknown::{UnknownHost, unknown_hosts};
use crate::store::{self, Connection, StoreError};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The longest title of `status`, and two spaces.
const STATUS_TITLE_WIDTH: usize = 11;

pub(super) fn connect(config: &Config, database: &Database) -> Result<Connection, Failure> {
    open(&paths(config, database).db)
}

fn found<T>(
    what: &str,
    id: &dyn std::fmt::Display,
    row: Result<Option<T>, StoreError>,
) -> Result<T, Failure> {
    let missing =
        || Failure::new(format!("could not show {id}")).because(format!("no such {what}"));
    row.map_err(unreadable)?.ok_or_else(missing)
}

fn print(format: Format, json: &impl serde::Serialize, text: &str) -> Result<Exit, Failure> {
    let mut out = Out::stdout();
    match format {
        Format::Json => out.json(json)?,
        Format::Text => out.lines(text)?,
    }
    out.finish().map(|()| Exit::Done)
}

pub(super) fn status(config: &Config, options: &Status) -> Result<Exit, Failure> {
    let conn = connect(config, &options.database)?;
    let now = clock().now().wall;
    let hosts = read::hosts(&conn).map_err(unreadable)?;
    let mut by_status: BTreeMap<&str, u64> = BTreeMap::new();
    for host in &hosts {
        *by_status.entry(host.status().as_str()).or_default() += 1;
    }
    let mut sandboxes: BTreeMap<&str, u64> = BTreeMap::new();
    for (status, count) in read::counts(&conn).map_err(unreadable)?.into_values().flatten() {
        *sandboxes.entry(status.as_str()).or_default() += count;
    }
    let degraded = hosts.iter().filter(|host| host.degraded).count();
    let listened = read::listened_until(&conn).map_err(unreadable)?;
    let revision = read::revision(&conn).map_err(unreadable)?;
    let awaited = acceptance::newest(&conn).map_err(unreadable)?;
    let awaited = awaited.filter(|restore| restore.accepted_at.is_none());
    let server = server_state(&ServerClient::of(config, &options.server));
    let mut value = json!({
        "revision": revision, "listened_until": listened, "hosts": by_status,
        "degraded": degraded, "sandboxes": sandboxes, "server": server,
    });
    let strangers = strangers(&conn).map_err(unreadable)?;
    if !strangers.is_empty() {
        value["strangers"] = strangers.iter().map(|s| json!(StrangerView::from(s))).collect();
    }
    let unknown = unknown_hosts(&conn, now).map_err(unreadable)?;
    if !unknown.is_empty() {
        value["unknown_hosts"] = unknown.iter().map(|u| json!(UnknownHostView::from(u))).collect();
    }
    if let Some(restore) = awaited {
        value["restored"] = json!({"as_of": restore.as_of, "restored_at": restore.restored_at});
    }
    let counts = |counts: &BTreeMap<&str, u64>| match counts.is_empty() {
        true => "none".to_owned(),
        false => counts.iter().map(|(s, n)| format!("{n} {s}")).collect::<Vec<_>>().join(", "),
    };
    let width = Screen::of_stdout().width;
    let line = |title: &str, text: &str| wrapped(title, STATUS_TITLE_WIDTH, text, width);
    let mut text = line("server", &server_words(&server));
    if let Some(restore) = awaited {
        let words = "not accepted; nothing is decided until `roost db accept`";
        text += &line("restored", &format!("from a backup of {}, {words}", restore.as_of));
    }
    text += &line("hosts", &counts(&by_status));
    if degraded > 0 {
        text += &line("degraded", &format!("{degraded}; see `roost hosts`"));
    }
    for host in unknown.iter().take(UNKNOWN_SHOWN) {
        text += &line("unknown", &unknown_words(host, now));
    }
    if let Some(more) = unknown.len().checked_sub(UNKNOWN_SHOWN).filter(|more| *more > 0) {
        text += &line("unknown", &format!("and {more} more; see `roost status --format json`"));
    }
    text += &line("sandboxes", &counts(&sandboxes));
    for stranger in strangers.iter().take(STRANGERS_SHOWN) {
        text += &line("stranger", &stranger_words(stranger));
    }
    if let Some(more) = strangers.len().checked_sub(STRANGERS_SHOWN).filter(|more| *more > 0) {
        text += &line("stranger", &format!("and {more} more; see `roost status --format json`"));
    }
    text += &line("revision", &revision.to_string());
    if let Some(at) = listened {
        text += &line("listened", &format!("until {at}, {} ago", age(now.since(at))));
    }
    print(options.printing.format, &value, &text)
}

/// Unknown hosts in the text of `status`. Larger: the rest scrolls away; smaller: a small
/// fleet that was pointed here by mistake is not shown whole.
const UNKNOWN_SHOWN: usize = 10;

/// A host that sends heartbeats and is not known, and what that may mean.
fn unknown_words(host: &UnknownHost, now: Wall) -> String {
    let why = match host.genuine {
        true => "with a token of this server; is this the right database?",
        false => "with a token of another server; is its address of the control plane right?",
    };
    format!("{} sent a heartbeat {} ago, {why}", host.id, age(now.since(host.last_seen_at)))
}

/// Strangers in the text of `status`. Larger: the rest scrolls away; smaller: a restore that
/// has forgotten a few needs another command.
const STRANGERS_SHOWN: usize = 10;

/// A sandbox that a host has and should not, and what to do with it.
fn stranger_words(stranger: &Recorded) -> String {
    let Recorded { host, sandbox, kind, .. } = stranger;
    match (kind, stranger.owner) {
        (StrangerKind::Misplaced, Some(owner)) => format!(
            "{sandbox} runs on {host} and belongs to {owner}; `roost sandboxes adopt {sandbox} \
             --host {host}` moves it there"
        ),
        (StrangerKind::Forgotten, _) => format!(
            "{sandbox} runs on {host}, and a restore has forgotten it; `roost sandboxes adopt \
             {sandbox}` or `destroy {sandbox}`"
        ),
        (StrangerKind::Zombie | StrangerKind::Misplaced, _) => {
            format!("{sandbox} runs on {host} and should not; `roost sandboxes destroy {sandbox}`")
        }
    }
}

/// What only the running server knows.
fn server_state(server: &ServerClient) -> Value {
    let Ok(ready) = server.get("/readyz") else {
        return json!({"url": server.base(), "running": false});
    };
    let metrics = server.get("/metrics").map(|answer| answer.body).unwrap_or_default();
    let holding = metrics.lines().any(|line| line == "roost_mass_guard_holding 1");
    let why: Value = serde_json::from_str(&ready.body).unwrap_or(Value::Null);
    json!({
        "url": server.base(), "running": true, "ready": ready.status == 200,
        "reason": why["error"]["message"], "mass_guard_holding": holding,
    })
}

fn server_words(server: &Value) -> String {
    let url = server["url"].as_str().unwrap_or_default();
    if server["running"] == json!(false) {
        return format!("not running at {url}");
    }
    let ready = match server["reason"].as_str() {
        None => format!("ready at {url}"),
        Some(reason) => format!("not ready at {url}: {reason}"),
    };
    match server["mass_guard_holding"] == json!(true) {
        true => format!(
            "{ready}; MASS GUARD: most hosts fell silent together, verdicts are held; check this machine's network"
        ),
        false => ready,
    }
}

/// Whether the running server is ready; failed when it is not, with why.
pub(super) fn health(config: &Config, options: &Health) -> Result<Exit, Failure> {
    let server = ServerClient::of(config, &options.server);
    let (url, ready) = (server.base(), server.get("/readyz"));
    let why = match &ready {
        Ok(answer) if answer.status == 200 => None,
        Ok(answer) => {
            let error: Value = serde_json::from_str(&answer.body).unwrap_or(Value::Null);
            let words = error["error"]["message"].as_str().map(str::to_owned);
            Some(words.unwrap_or_else(|| format!("it answered {}", answer.status)))
        }
        Err(error) => Some(error.clone()),
    };
    let mut value = json!({"url": url, "ready": why.is_none()});
    let text = match &why {
        None => format!("ready at {url}\n"),
        Some(why) => {
            value["reason"] = json!(why);
            String::new()
        }
    };
    print(options.printing.format, &value, &text)?;
    let Some(why) = why else { return Ok(Exit::Done) };
    let failure = Failure::new(format!("could not find {url} ready")).because(why);
    Err(match ready {
        Ok(_) => failure.advise("`roost status` and the server's log say more"),
        Err(_) => failure.advise("start `roost serve`, or set ROOST_URL"),
    })
}

fn host_tone(host: &Host) -> Tone {
    match host.status() {
        HostStatus::Online if host.degraded => Tone::Warn,
        HostStatus::Online => Tone::Good,
        HostStatus::Unreachable => Tone::Bad,
        HostStatus::Draining => Tone::Warn,
        HostStatus::Pending | HostStatus::Offline => Tone::Dim,
    }
}

fn host_note(host: &Host, maintained: Option<Wall>) -> String {
    let mut notes = Vec::new();
    if let Some(until) = maintained {
        notes.push(format!("maintenance until {until}"));
    }
    if host.degraded {
        notes.push("degraded".to_owned());
    }
    if host.rejoining {
        notes.push("rejoining".to_owned());
    }
    if let Some(trouble) = &host.probe_failure {
        notes.push(format!("{}: {}", trouble.kind, trouble.detail));
    }
    notes.join("; ")
}

fn ago(at: Option<Wall>, now: Wall) -> String {
    at.map_or_else(|| "never".to_owned(), |at| age(now.since(at)))
}

pub(super) fn hosts(config: &Config, options: &HostsList) -> Result<Exit, Failure> {
    let conn = connect(config, &options.database)?;
    let now = clock().now().wall;
    let hosts = read::hosts(&conn).map_err(unreadable)?;
    let counts = read::counts(&conn).map_err(unreadable)?;
    let maintained = maintenance(&conn, now).map_err(unreadable)?;
    let mut table = Table::new(&[
        Column::id("HOST"),
        Column::left("STATUS"),
        Column::right("HEARD").leaves(4),
        Column::right("RUNNING").leaves(2),
        Column::right("SANDBOXES").leaves(3),
        Column::left("ADDRESS").leaves(1),
        Column::flexible("NOTE").at_least(16).leaves(5),
    ]);
    for host in &hosts {
        let of = counts.get(&host.id).map(Vec::as_slice).unwrap_or_default();
        let sum = |wanted: fn(SandboxStatus) -> bool| -> u64 {
            of.iter().filter(|(status, _)| wanted(*status)).map(|(_, n)| n).sum()
        };
        table.row([
            Cell::from(host.id.to_string()),
            Cell::toned(host.status().as_str(), host_tone(host)),
            Cell::from(ago(host.last_heartbeat_at, now)),
            Cell::from(sum(|status| status == SandboxStatus::Running).to_string()),
            Cell::from(sum(|status| !status.is_over()).to_string()),
            Cell::from(host.address.as_ref().map_or("", |address| address.as_str())),
            Cell::from(host_note(host, maintained.get(&host.id).copied())),
        ]);
    }
    let view = |host: &Host| HostView::stored(host).maintained(maintained.get(&host.id).copied());
    let views: Vec<HostView> = hosts.iter().map(view).collect();
    print(options.printing.format, &views, &table.render(Screen::of_stdout()))
}

pub(super) fn host(config: &Config, options: &HostsShow) -> Result<Exit, Failure> {
    let conn = connect(config, &options.database)?;
    let host = found("host", &options.id, read::host(&conn, options.id))?;
    // The running server knows the last probe; the row knows only trouble.
    let server = ServerClient::of(config, &options.server);
    let live = server.get(&format!("/v1/hosts/{}", host.id)).ok().filter(|a| a.status == 200);
    let live = live.and_then(|answer| serde_json::from_str::<Value>(&answer.body).ok());
    let stored = serde_json::to_value(HostView::stored(&host)).unwrap_or_default();
    let value = live.unwrap_or(stored);
    print(options.printing.format, &value, &fields(&value))
}

pub(super) fn sandboxes(config: &Config, options: &SandboxesList) -> Result<Exit, Failure> {
    let conn = connect(config, &options.database)?;
    let filter =
        SandboxFilter { host: options.host, status: options.status, all: options.all, team: None };
    match options.printing.format {
        Format::Json => sandboxes_as_json(&conn, &filter),
        Format::Text => sandboxes_as_text(&conn, &filter),
    }
}

/// Sandboxes that are read at a time. Larger: more memory; smaller: the columns of a long
/// table are made up anew more often.
const SANDBOXES_AT_A_TIME: u32 = 2000;

/// Has every sandbox shown, part by part: however many there are, and however slowly the
/// output is read, little is held and no snapshot stays open.
fn each_part(
    conn: &Connection,
    filter: &SandboxFilter,
    mut show: impl FnMut(Vec<Sandbox>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let part = read::sandboxes_after(conn, filter, after, SANDBOXES_AT_A_TIME);
        let part = part.map_err(unreadable)?;
        after = part.rows.last().map(|sandbox| sandbox.id);
        show(part.rows)?;
        if !part.more {
            return Ok(());
        }
    }
}

fn sandboxes_as_json(conn: &Connection, filter: &SandboxFilter) -> Result<Exit, Failure> {
    let (mut out, mut before) = (Out::stdout(), "[");
    each_part(conn, filter, |part| {
        for sandbox in part {
            out.text(before)?;
            out.json_in_line(&CapsuleView::from(sandbox))?;
            before = ",";
        }
        Ok(())
    })?;
    out.text(if before == "[" { "[]\n" } else { "]\n" })?;
    out.finish().map(|()| Exit::Done)
}

fn sandboxes_as_text(conn: &Connection, filter: &SandboxFilter) -> Result<Exit, Failure> {
    let (mut out, screen, now) = (Out::stdout(), Screen::of_stdout(), clock().now().wall);
    let mut begun = false;
    each_part(conn, filter, |part| {
        let text = sandbox_table(&part, now).render(screen);
        // The titles are said once.
        let shown = text.split_once('\n').filter(|_| begun).map_or(&*text, |(_, rows)| rows);
        begun = true;
        out.text(shown)
    })?;
    out.finish().map(|()| Exit::Done)
}

fn sandbox_table(sandboxes: &[Sandbox], now: Wall) -> Table {
    let mut table = Table::new(&[
        Column::id("SANDBOX"),
        Column::left("STATUS"),
        Column::right("SINCE").leaves(3),
        Column::other_id("HOST").leaves(2),
        Column::flexible("REASON").leaves(1),
    ]);
    for sandbox in sandboxes {
        table.row([
            Cell::from(sandbox.id.to_string()),
            Cell::toned(sandbox.status.as_str(), sandbox_tone(sandbox.status)),
            Cell::from(age(now.since(sandbox.status_changed_at))),
            Cell::from(sandbox.host_id.to_string()),
            Cell::from(why(sandbox)),
        ]);
    }
    table
}

/// Why a sandbox is in its status, with the agent's words where an operation failed.
fn why(sandbox: &Sandbox) -> String {
    let reason = sandbox.status_reason.as_ref().map_or("", Reason::as_str);
    with_detail(reason, sandbox.status_detail.as_deref())
}

pub(super) fn templates(
    config: &Config,
    database: &Database,
    kind: Option<TemplateKind>,
    format: Format,
) -> Result<Exit, Failure> {
    let conn = connect(config, database)?;
    let found = store::templates::list(&conn, Scope::Any, kind).map_err(unreadable)?;
    let mut table = Table::new(&[
        Column::id("NAME"),
        Column::left("TYPE").leaves(4),
        Column::right("VCPUS").leaves(3),
        Column::right("MEMORY").leaves(3),
        Column::right("DISK").leaves(3),
        Column::right("SIZE").leaves(2),
        Column::other_id("TEAM").leaves(1),
        Column::flexible("HOSTS").at_least(12).leaves(5),
    ]);
    for template in &found {
        let team = (!template.is_platform()).then(|| template.team_id.to_string());
        table.row([
            Cell::from(template.name.as_str()),
            Cell::from(template.kind.as_str()),
            Cell::from(template.vcpus.map_or(String::new(), |n| n.to_string())),
            Cell::from(mebibytes(template.memory_mb)),
            Cell::from(mebibytes(template.disk_size_mb)),
            Cell::from(template.size_bytes.map_or(String::new(), bytes)),
            Cell::from(team.as_deref().unwrap_or("platform")),
            Cell::from(hosts_of(template)),
        ]);
    }
    let text = table.render(Screen::of_stdout());
    let views: Vec<TemplateView> = found.into_iter().map(TemplateView::from).collect();
    print(format, &views, &text)
}

fn hosts_of(template: &Template) -> String {
    match template.hosts.as_slice() {
        [] => "all".to_owned(),
        [one] => one.to_string(),
        several => format!("{} hosts", several.len()),
    }
}

fn mebibytes(size_mb: Option<u32>) -> String {
    size_mb.map_or(String::new(), |mb| bytes(u64::from(mb) << 20))
}

/// A size for people, in its largest binary unit with at most one decimal.
fn bytes(size: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (1..UNITS.len()).take_while(|at| size >> (10 * at) > 0).last().unwrap_or(0);
    let tenths = u128::from(size) * 10 / (1u128 << (10 * unit));
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

fn sandbox_tone(status: SandboxStatus) -> Tone {
    match status {
        SandboxStatus::Running => Tone::Good,
        SandboxStatus::Missing | SandboxStatus::Error => Tone::Bad,
        SandboxStatus::Pending
        | SandboxStatus::Starting
        | SandboxStatus::Pausing
        | SandboxStatus::Resuming
        | SandboxStatus::Stopping => Tone::Warn,
        SandboxStatus::Paused | SandboxStatus::Stopped | SandboxStatus::Hibernated => Tone::Dim,
    }
}

pub(super) fn sandbox(config: &Config, options: &SandboxesShow) -> Result<Exit, Failure> {
    let conn = connect(config, &options.database)?;
    let sandbox: Sandbox = found("sandbox", &options.id, read::sandbox(&conn, options.id))?;
    let value = serde_json::to_value(CapsuleView::from(sandbox)).unwrap_or_default();
    print(options.printing.format, &value, &fields(&value))
}

/// A JSON object as lines of name and value.
fn fields(value: &Value) -> String {
    let mut text = String::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &format!("{name:<18} {}\n", crate::logging::one_line(&value));
    }
    text
}

pub(super) fn audit(config: &Config, options: &Audit) -> Result<Exit, Failure> {
    let conn = connect(config, &options.database)?;
    let filter = HistoryFilter {
        team: None,
        host: options.host,
        sandbox: options.sandbox,
        limit: options.limit,
    };
    let before = read::Before { seq: None, at: options.before };
    let entries = read::audit_before(&conn, before, &filter).map_err(unreadable)?;
    let mut table = Table::new(&[
        Column::time("TIME"),
        Column::left("ACTOR").leaves(2),
        Column::other_id("RESOURCE"),
        Column::left("ACTION"),
        Column::left("STATUS").leaves(3),
        Column::flexible("DETAIL").at_least(16).leaves(1),
    ]);
    for entry in &entries {
        let actor = entry.actor_name.as_deref().unwrap_or(entry.actor_type.as_str());
        table.row([
            Cell::from(entry.created_at.to_string()),
            Cell::from(actor),
            Cell::from(&entry.resource_id),
            Cell::from(entry.action.as_str()),
            Cell::from(entry.status.as_str()),
            Cell::from(&entry.metadata),
        ]);
    }
    let text = table.render(Screen::of_stdout());
    let views: Vec<AuditView> = entries.into_iter().map(AuditView::from).collect();
    print(options.printing.format, &views, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let sizes = [0, 1023, 1024, 1536, 512 << 20, (5 << 30) + (1 << 28), u64::MAX];
        let expected =
            ["0 B", "1023 B", "1 KiB", "1.5 KiB", "512 MiB", "5.2 GiB", "16777215.9 TiB"];
        assert_eq!(sizes.map(bytes), expected);
    }
}
