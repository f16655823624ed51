//! Owns `roost db`: making, loading, dumping and verifying a database.
//!
//! Never: overwrites a database that holds a host.

use super::args::{Database, Db, Format};
use super::output::{Exit, Failure, Out};
use super::progress::Progress;
use super::{clock, open, paths, unreadable};
use crate::config::Config;
use crate::store::Connection;
use crate::store::fixture::{self, Counts};
use crate::store::open::{Lock, open_writer};
use crate::store::verify::verify;
use serde_json::json;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub(super) fn run(config: &Config, command: &Db) -> Result<Exit, Failure> {
    match command {
        Db::Init(database) => init(config, database),
        Db::Load(options) => load(config, &options.database, &options.file),
        Db::Dump(database) => dump(config, database),
        Db::Export(options) => super::export::run(config, options),
        Db::Verify(options) => check(config, &options.database, options.printing.format),
    }
}

/// Opens a database for writing while nobody else does.
fn held(path: &Path) -> Result<(Connection, Lock), Failure> {
    let fail = || Failure::new(format!("could not open {}", path.display()));
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(dir);
        made.map_err(|e| Failure::new(format!("could not make {}", dir.display())).because(e))?;
    }
    let lock = Lock::take(&Lock::path_for(path)).map_err(|e| fail().because(e))?;
    let conn = open_writer(path, true, clock().now().wall).map_err(|e| fail().because(e))?;
    Ok((conn, lock))
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
