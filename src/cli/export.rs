//! Owns `roost db export`: where the text goes that another database loads.
//!
//! Never: overwrites a file, leaves a part of one under its name, lets others read it.

use super::args::{DbExport, ExportFormat};
use super::output::{Exit, Failure, Out};
use super::{clock, open, paths, unreadable};
use crate::config::Config;
use crate::store::Connection;
use crate::store::export::{ExportError, Exported, Wanted, postgres};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Bytes that are collected before they are written. Larger gains nothing; smaller and a
/// million rows are as many calls of the system.
const BUFFER_BYTES: usize = 64 * 1024;

pub(super) fn run(config: &Config, options: &DbExport) -> Result<Exit, Failure> {
    let conn = open(&paths(config, &options.database).db)?;
    let wanted = Wanted {
        schema: &options.schema,
        events: options.events,
        version: env!("CARGO_PKG_VERSION"),
        at: clock().now().wall,
    };
    let ExportFormat::Postgres = options.format;
    if options.file == Path::new("-") {
        let mut stdout = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
        let exported = postgres(&conn, &wanted, &mut stdout);
        // What a failed write left in the buffer is not tried again.
        let _ = stdout.into_parts();
        tell_changed(&exported.map_err(|e| failure(e, Failure::of_stdout))?);
        return Ok(Exit::Done);
    }
    let exported = to_file(&conn, &wanted, &options.file)?;
    tell_changed(&exported);
    let mut out = Out::stdout();
    let (path, rows) = (options.file.display(), &exported.rows);
    let rows: Vec<String> = rows.iter().map(|(table, rows)| format!("{rows} {table}")).collect();
    out.line(&format!("{path}: {}", rows.join(", ")))?;
    out.finish().map(|()| Exit::Done)
}

fn failure(error: ExportError, of_output: impl FnOnce(io::Error) -> Failure) -> Failure {
    match error {
        ExportError::Store(error) => unreadable(error),
        ExportError::Output(error) => of_output(error),
    }
}

/// Writes beside the file, readable for nobody else, and gives it its name when it is whole
/// and on the disk.
fn to_file(conn: &Connection, wanted: &Wanted<'_>, path: &Path) -> Result<Exported, Failure> {
    let fail = |error: io::Error| {
        let failure = Failure::new(format!("could not write {}", path.display()));
        if error.kind() == io::ErrorKind::AlreadyExists {
            return failure
                .because("it is there already")
                .advise("choose another file, or remove it");
        }
        failure.because(error)
    };
    if path.symlink_metadata().is_ok() {
        return Err(fail(io::ErrorKind::AlreadyExists.into()));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    let mut part = builder.prefix(".roost-export-").tempfile_in(dir).map_err(fail)?;
    let mut buffer = BufWriter::with_capacity(BUFFER_BYTES, part.as_file_mut());
    let exported = postgres(conn, wanted, &mut buffer).map_err(|e| failure(e, fail))?;
    buffer.flush().map_err(fail)?;
    drop(buffer);
    part.as_file().sync_all().map_err(fail)?;
    part.persist_noclobber(path).map_err(|e| fail(e.error))?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)?;
    Ok(exported)
}

fn tell_changed(exported: &Exported) {
    if exported.changed > 0 {
        log::warn!(
            "{} values cannot be said in PostgreSQL (U+0000, text that is no UTF-8 or no JSON, \
             times outside 1970 to 9999) and were written as the nearest that can",
            exported.changed
        );
    }
}
