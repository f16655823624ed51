//! Owns `roost db`: making, loading, dumping, verifying, backing up, restoring and migrating
//! a database.
//!
//! Never: overwrites a database that holds a host, or any file.

use super::act::ServerClient;
use super::args::{Database, Db, DbAccept, Format};
use super::output::{Exit, Failure, Out};
use super::progress::Progress;
use super::{clock, open, paths, unreadable};
use crate::config::Config;
use crate::model::event::ActorType;
use crate::model::time::Wall;
use crate::store::acceptance::{Accepted, Restore};
use crate::store::backup::backup;
use crate::store::fixture::{self, Counts};
use crate::store::journal::Actor;
use crate::store::lock::Lock;
use crate::store::open::{migrate_file, open_writer};
use crate::store::presence::Presence;
use crate::store::restore::restore;
use crate::store::served;
use crate::store::verify::verify;
use crate::store::writer::{Command, Envelope, Writer};
use crate::store::{Connection, StoreError};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) fn run(config: &Config, command: &Db) -> Result<Exit, Failure> {
    match command {
        Db::Init(database) => init(config, database),
        Db::Load(options) => load(config, &options.database, &options.file),
        Db::Dump(database) => dump(config, database),
        Db::Export(options) => super::export::run(config, options),
        Db::Verify(options) => check(config, &options.database, options.printing.format),
        Db::Backup(options) => copy(config, &options.database, &options.file),
        Db::Restore(options) => put_back(config, &options.database, &options.file),
        Db::Accept(options) => accept(config, options),
        Db::Migrate(database) => migrate(config, database),
    }
}

/// Opens a database for writing while nobody else does.
fn held(path: &Path) -> Result<(Connection, Lock), Failure> {
    let fail = || Failure::new(format!("could not open {}", path.display()));
    make_dir_of(path)?;
    let lock = Lock::of(path).map_err(|e| fail().because(e))?;
    let conn = open_writer(path, true, clock().now().wall).map_err(|e| fail().because(e))?;
    Ok((conn, lock))
}

fn make_dir_of(path: &Path) -> Result<(), Failure> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(dir);
        made.map_err(|e| Failure::new(format!("could not make {}", dir.display())).because(e))?;
    }
    Ok(())
}

fn init(config: &Config, database: &Database) -> Result<Exit, Failure> {
    let path = paths(config, database).db;
    let existed = path.exists();
    held(&path)?;
    let mut out = Out::stdout();
    let verb = if existed { "is there already" } else { "made" };
    out.line(&format!("{} {verb}", path.display()))?;
    out.finish().map(|()| Exit::Done)
}

/// Where a fixture comes from. It is read twice: nothing is made of one that is refused.
enum Source {
    File(PathBuf),
    Text(Vec<u8>),
}

impl Source {
    /// A file, or standard input for `-`.
    fn of(file: &Path) -> io::Result<Source> {
        if file != Path::new("-") {
            return Ok(Source::File(file.to_owned()));
        }
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text)?;
        Ok(Source::Text(text))
    }

    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Source::File(path) => Box::new(BufReader::new(File::open(path)?)),
            Source::Text(text) => Box::new(text.as_slice()),
        })
    }
}

fn load(config: &Config, database: &Database, file: &Path) -> Result<Exit, Failure> {
    let path = paths(config, database).db;
    let progress = Progress::of("loading");
    let fail = || Failure::new(format!("could not load {}", file.display()));
    let unreadable = |e: io::Error| fail().because(e);
    let source = Source::of(file).map_err(unreadable)?;
    let now = clock().now().wall;
    fixture::count(source.open().map_err(unreadable)?, now).map_err(|e| {
        fail().because(e).advise("nothing was loaded; correct the file and load it again")
    })?;
    let (mut conn, _lock) = held(&path)?;
    let loaded = fixture::load_from(&mut conn, source.open().map_err(unreadable)?, now);
    let Some(Counts { hosts, sandboxes }) = loaded.map_err(|e| fail().because(e))? else {
        let there = format!("{} holds hosts already", path.display());
        return Err(fail().because(there).advise("choose another database with --db"));
    };
    drop(progress);
    let mut out = Out::stdout();
    out.line(&format!("{}: {hosts} hosts, {sandboxes} sandboxes", path.display()))?;
    out.finish().map(|()| Exit::Done)
}

fn dump(config: &Config, database: &Database) -> Result<Exit, Failure> {
    let conn = open(&paths(config, database).db)?;
    let progress = Progress::of("reading");
    let fleet = fixture::dump(&conn, clock().now().wall).map_err(unreadable)?;
    drop(progress);
    let mut out = Out::stdout();
    out.json(&fleet)?;
    out.finish().map(|()| Exit::Done)
}

fn check(config: &Config, database: &Database, format: Format) -> Result<Exit, Failure> {
    let path = paths(config, database).db;
    let progress = Progress::of("verifying");
    let wrong = verify(&open(&path)?).map_err(unreadable)?;
    drop(progress);
    let mut out = Out::stdout();
    match format {
        Format::Json => out.json(&json!({"ok": wrong.is_empty(), "problems": wrong}))?,
        Format::Text if wrong.is_empty() => out.line(&format!("{}: whole", path.display()))?,
        Format::Text => wrong.iter().try_for_each(|line| out.line(line))?,
    }
    out.finish()?;
    match wrong.len() {
        0 => Ok(Exit::Done),
        n => Err(Failure::new(format!("could not trust {}", path.display()))
            .because(format!("{n} problems"))
            .advise("restore a backup, and keep the damaged file for a look")),
    }
}

/// Size from which on a copy takes long enough to show how far it is. Larger: people wonder
/// whether anything happens; smaller: a line that is gone before it is read.
const SHOWN_FROM_BYTES: u64 = 64 * 1024 * 1024;

const MIB: u64 = 1024 * 1024;

fn copy(config: &Config, database: &Database, file: &Path) -> Result<Exit, Failure> {
    let path = paths(config, database).db;
    let fail = |e| {
        Failure::new(format!("could not back up {} to {}", path.display(), file.display()))
            .because(e)
    };
    let mut terminal = io::stderr();
    let shows = terminal.is_terminal();
    let mut show = |done: u64, all: u64| {
        if shows && all >= SHOWN_FROM_BYTES {
            let end = if done == all { "\n" } else { "" };
            // Nobody needs it who cannot see it.
            let _ = write!(terminal, "\r{} of {} MiB{end}", done / MIB, all / MIB);
        }
    };
    let size = backup(&path, file, &mut show).map_err(fail)?;
    let mut out = Out::stdout();
    out.line(&format!("{}: {} KiB, verified", file.display(), size.div_ceil(1024)))?;
    out.finish().map(|()| Exit::Done)
}

fn put_back(config: &Config, database: &Database, file: &Path) -> Result<Exit, Failure> {
    let path = paths(config, database).db;
    let fail = |e| {
        let busy = e == StoreError::Busy;
        let failure = Failure::new(format!("could not restore {}", file.display())).because(e);
        match busy {
            true => failure.advise("stop whatever reads or replicates the database"),
            false => failure,
        }
    };
    make_dir_of(&path)?;
    let _lock = Lock::of(&path).map_err(fail)?;
    let restored = restore(file, &path, clock().now().wall).map_err(fail)?;
    served::forget(&paths(config, database).served).map_err(fail)?;
    let mut out = Out::stdout();
    let known = restored.as_of;
    out.line(&format!(
        "{}: as {} has it; its newest entry is of {known}",
        path.display(),
        file.display()
    ))?;
    match restored.aside {
        Some(aside) => out.line(&format!("the database that was there: {}", aside.display()))?,
        None => out.line("there was no database before")?,
    }
    out.line("not accepted yet: start `roost serve`, look, then run `roost db accept`")?;
    out.finish().map(|()| Exit::Done)
}

fn migrate(config: &Config, database: &Database) -> Result<Exit, Failure> {
    let path = paths(config, database).db;
    let fail = |e| Failure::new(format!("could not migrate {}", path.display())).because(e);
    if !path.exists() {
        // Otherwise a lock file would be left behind.
        return Err(fail(StoreError::Missing(path.clone())));
    }
    let _lock = Lock::of(&path).map_err(fail)?;
    let migrated = migrate_file(&path, clock().now().wall).map_err(fail)?;
    let (shown, newest) = (path.display(), crate::store::open::schema_version());
    let mut out = Out::stdout();
    match migrated {
        None => out.line(&format!("{shown}: has schema {newest} already; nothing was to do"))?,
        Some(done) => {
            out.line(&format!("{shown}: migrated from schema {} to {newest}", done.from))?;
            out.line(&format!("the database as it was: {}", done.copy.display()))?;
        }
    }
    out.finish().map(|()| Exit::Done)
}

/// The server that works on the database is asked; without one it is written here.
fn accept(config: &Config, options: &DbAccept) -> Result<Exit, Failure> {
    let path = paths(config, &options.database).db;
    let fail = |e| Failure::new(format!("could not accept {}", path.display())).because(e);
    let lock = match options.server.url() {
        Some(_) => None,
        None if !path.exists() => return Err(fail(StoreError::Missing(path.clone()))),
        None => match Lock::of(&path) {
            Ok(lock) => Some(lock),
            Err(StoreError::Held { .. }) => None,
            Err(error) => return Err(fail(error)),
        },
    };
    let said = match lock {
        Some(_lock) => words(accept_here(&path).map_err(fail)?.map(|accepted| accepted.restore)),
        None => accept_there(config, options)?,
    };
    let mut out = Out::stdout();
    out.line(&said)?;
    out.finish().map(|()| Exit::Done)
}

fn words(restore: Option<Restore>) -> String {
    match restore {
        None => "the database was not restored; nothing was to do".to_owned(),
        Some(restore) => said(&restore.as_of.to_string(), restore.accepted_at),
    }
}

fn said(as_of: &str, accepted_at: Option<Wall>) -> String {
    let at = accepted_at.map_or_else(|| "now".to_owned(), |at| at.to_string());
    format!("the backup of {as_of} counts since {at}")
}

fn accept_there(config: &Config, options: &DbAccept) -> Result<String, Failure> {
    let server = ServerClient::of(config, &options.server);
    let answer = server.post("accept the database", "/v1/database/accept", &json!({}))?;
    if answer["restored"] == json!(false) {
        return Ok(words(None));
    }
    let at = answer["accepted_at"].as_str().and_then(|at| at.parse().ok());
    Ok(said(answer["as_of"].as_str().unwrap_or_default(), at))
}

/// As the server does it, with the writer.
fn accept_here(path: &Path) -> Result<Option<Accepted>, StoreError> {
    let now = clock().now();
    let conn = open_writer(path, false, now.wall)?;
    let presence = Arc::new(Presence::default());
    let mut writer = Writer::new(conn, crate::model::policy::Policy::default(), presence)?;
    let (tell, told) = std::sync::mpsc::channel();
    let actor = Actor { kind: ActorType::User, id: None, name: Some("roost db accept".to_owned()) };
    // The other end waits below.
    let reply = Box::new(move |result| drop(tell.send(result)));
    writer.execute(vec![Envelope { now, command: Command::Accept(actor, reply) }]);
    told.recv().unwrap_or(Err(StoreError::Stopped))
}
