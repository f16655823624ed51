//! Owns the database as plain SQL for PostgreSQL: what leaves (`tables` says which
//! columns) and how its values are written for `COPY … FROM stdin`.
//!
//! Never: holds more than one row in memory, writes to a database, lets a value be read as
//! anything but a value, writes a secret in clear (there is none to write).
//!
//! The file is to be loaded with `psql -1`: all of it or nothing. A promise that only its
//! last statement keeps is checked when the transaction ends, so a file that was cut off
//! loads nothing either.

mod tables;

use super::StoreError;
use super::open::schema_version;
use crate::model::time::Wall;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::str::FromStr;
use tables::{EVENTS, Kind, TABLES, Table};

/// Longest name that PostgreSQL keeps, in bytes; it cuts off the rest of a longer one.
const NAME_BYTES_MAX: usize = 63;

/// Last moment of year 9999 in ms. PostgreSQL knows later ones, our texts do not.
const LAST_MS: i64 = 253_402_300_799_999;

/// The name of a PostgreSQL schema: not empty, not too long, not one of the system's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaName(String);

impl FromStr for SchemaName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<SchemaName, Self::Err> {
        match text {
            "" => Err("a schema has a name"),
            _ if text.len() > NAME_BYTES_MAX => Err("PostgreSQL cuts names off after 63 bytes"),
            _ if text.starts_with("pg_") => Err("PostgreSQL keeps names with pg_ for itself"),
            _ if text.contains(char::is_control) => Err("a name has no control characters"),
            _ => Ok(SchemaName(text.to_owned())),
        }
    }
}

impl SchemaName {
    /// As SQL writes a name that may hold anything.
    fn quoted(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// What to export, and what the file says about itself.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The schema that everything is put into.
    pub schema: &'a SchemaName,
    /// Events too, of which there are many.
    pub events: bool,
    /// Version of this program.
    pub version: &'a str,
    /// Now.
    pub at: Wall,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Tables and how many rows each has.
    pub rows: Vec<(&'static str, u64)>,
    /// Values that PostgreSQL cannot hold and that were written as the nearest it can.
    pub changed: u64,
}

/// Why an export ended early.
#[derive(Debug)]
pub enum ExportError {
    /// The database could not be read.
    Store(StoreError),
    /// What was read could not be written.
    Output(io::Error),
}

impl From<StoreError> for ExportError {
    fn from(error: StoreError) -> ExportError {
        ExportError::Store(error)
    }
}

impl From<rusqlite::Error> for ExportError {
    fn from(error: rusqlite::Error) -> ExportError {
        ExportError::Store(error.into())
    }
}

impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> ExportError {
        ExportError::Output(error)
    }
}

/// The promise that only the end of the file keeps. One statement, so that without a
/// transaction around it nothing is left behind. The name of the rule is what people read.
const PROMISE: &str = r"DO $$
BEGIN
    CREATE TEMPORARY TABLE roost_load (
        part  integer PRIMARY KEY,
        whole integer CONSTRAINT load_the_whole_file_with_psql_single_transaction
              REFERENCES roost_load DEFERRABLE INITIALLY DEFERRED
    ) ON COMMIT DROP;
    INSERT INTO roost_load VALUES (1, 2);
END
$$;
";

/// For those whose ids are UUIDs.
const UUID_OF: &str = r"-- The UUID that an id stands for: its 25 digits in base 36 are the 128 bits.
CREATE FUNCTION uuid_of(id text) RETURNS uuid LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    n numeric := 0;
    digit text;
    hex text := '';
BEGIN
    FOREACH digit IN ARRAY regexp_split_to_array(split_part(id, '-', 2), '') LOOP
        n := n * 36 + strpos('0123456789abcdefghijklmnopqrstuvwxyz', digit) - 1;
    END LOOP;
    FOR part IN 1..4 LOOP
        hex := lpad(to_hex(mod(n, 4294967296)::bigint), 8, '0') || hex;
        n := div(n, 4294967296);
    END LOOP;
    RETURN hex::uuid;
END
$$;
";

/// Writes the database as SQL for PostgreSQL, as it is at one moment, also while a server
/// works on it.
///
/// # Errors
/// When the database cannot be read or `to` takes no more. What was written is then a part
/// that PostgreSQL refuses.
pub fn postgres(
    conn: &Connection,
    wanted: &Wanted<'_>,
    to: &mut dyn Write,
) -> Result<Exported, ExportError> {
    // Every table is read in one transaction: from the first look on it is one moment.
    let snapshot = conn.unchecked_transaction()?;
    let revision: i64 = snapshot.query_row("SELECT revision FROM state", [], |row| row.get(0))?;
    to.write_all(head(wanted, revision).as_bytes())?;
    let mut exported = Exported { rows: Vec::new(), changed: 0 };
    for table in TABLES.iter().filter(|table| wanted.events || table.name != EVENTS) {
        to.write_all(create(table).as_bytes())?;
        let rows = copy(&snapshot, table, to, &mut exported.changed)?;
        exported.rows.push((table.name, rows));
    }
    to.write_all(tail(wanted, revision, &exported).as_bytes())?;
    to.flush()?;
    Ok(exported)
}

fn head(wanted: &Wanted<'_>, revision: i64) -> String {
    let Wanted { schema, events: _, version, at } = wanted;
    let (name, known) = (schema.quoted(), schema_version());
    format!(
        "-- A database of Roost as SQL for PostgreSQL 15 or later.\n\
         -- Written by roost {version} (database schema {known}) at {at}, revision {revision}.\n\
         -- Load it into an empty schema, whole or not at all:\n\
         --\n\
         --     psql -v ON_ERROR_STOP=1 -1 -f FILE\n\
         --\n\
         -- Tokens and keys are SHA-256 hashes. Times were milliseconds.\n\n\
         \\set ON_ERROR_STOP on\n\
         SET LOCAL client_encoding TO 'UTF8';\n\
         SET LOCAL standard_conforming_strings TO on;\n\
         \n\
         {PROMISE}\n\
         CREATE SCHEMA {name};\n\
         SET LOCAL search_path TO {name};\n"
    )
}

fn create(table: &Table) -> String {
    let column = |c: &tables::Column| format!("    {} {}{}", c.name, c.kind.sql(), c.rule);
    let columns: Vec<String> = table.columns.iter().map(column).collect();
    format!("\nCREATE TABLE {} (\n{}{}\n);\n", table.name, columns.join(",\n"), table.besides)
}

/// Writes the rows of one table and gives their number.
fn copy(
    conn: &Connection,
    table: &Table,
    to: &mut dyn Write,
    changed: &mut u64,
) -> Result<u64, ExportError> {
    let names: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
    let names = names.join(", ");
    writeln!(to, "COPY {} ({names}) FROM stdin;", table.name)?;
    let mut select =
        conn.prepare(&format!("SELECT {names} FROM {} ORDER BY {}", table.name, table.key))?;
    let mut rows = select.query([])?;
    let (mut count, mut line) = (0, String::new());
    while let Some(row) = rows.next()? {
        line.clear();
        *changed += write_row(table, row, &mut line)?;
        to.write_all(line.as_bytes())?;
        count += 1;
    }
    to.write_all(b"\\.\n")?;
    Ok(count)
}

/// Puts one row into `line`; gives how many of its values had to be changed.
fn write_row(table: &Table, row: &Row<'_>, line: &mut String) -> Result<u64, StoreError> {
    let mut changed = 0;
    for (at, column) in table.columns.iter().enumerate() {
        if at > 0 {
            line.push('\t');
        }
        let Some(same) = write_value(column.kind, row.get_ref(at)?, line) else {
            let what = format!("{}.{} is no {:?}", table.name, column.name, column.kind);
            return Err(StoreError::BadRow(what));
        };
        changed += u64::from(!same);
    }
    line.push('\n');
    Ok(changed)
}

/// Puts one value into `line`. False when PostgreSQL cannot hold it and the nearest it can
/// was written instead; `None` when the column is of another kind.
fn write_value(kind: Kind, value: ValueRef<'_>, line: &mut String) -> Option<bool> {
    match (kind, value) {
        (_, ValueRef::Null) => line.push_str("\\N"),
        (Kind::Int, ValueRef::Integer(n)) => write!(line, "{n}").ok()?,
        (Kind::Bool, ValueRef::Integer(n)) => line.push(if n == 0 { 'f' } else { 't' }),
        (Kind::Time, ValueRef::Integer(ms)) => {
            write!(line, "{}", Wall(ms)).ok()?;
            return Some((0..=LAST_MS).contains(&ms));
        }
        (Kind::Hash, ValueRef::Blob(bytes)) => {
            line.push_str("\\\\x");
            bytes.iter().try_for_each(|byte| write!(line, "{byte:02x}")).ok()?;
        }
        (Kind::Word | Kind::Text, ValueRef::Text(bytes)) => {
            let text = String::from_utf8_lossy(bytes);
            let held = text.replace('\0', "\u{fffd}");
            escape(&held, line);
            return Some(held.as_bytes() == bytes);
        }
        (Kind::Json, ValueRef::Text(bytes)) => {
            let text = String::from_utf8_lossy(bytes);
            let held = json(&text);
            escape(&held, line);
            return Some(held.as_bytes() == bytes);
        }
        (_, ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_)) => {
            return None;
        }
    }
    Some(true)
}

/// Puts a text into a line of `COPY`: what ends a column, a row or the whole is escaped.
fn escape(text: &str, line: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '\t', '\n', '\r']) {
        line.push_str(&rest[..at]);
        line.push_str(match rest.as_bytes()[at] {
            b'\t' => "\\t",
            b'\n' => "\\n",
            b'\r' => "\\r",
            _ => "\\\\",
        });
        rest = &rest[at + 1..];
    }
    line.push_str(rest);
}

/// A text that PostgreSQL takes as `jsonb`: without U+0000, which it does not hold, and what
/// is no JSON as a JSON string.
fn json(text: &str) -> Cow<'_, str> {
    if serde_json::from_str::<serde_json::Value>(text).is_err() {
        let string = serde_json::Value::from(text).to_string();
        return Cow::Owned(without_zero(&string).into_owned());
    }
    without_zero(text)
}

/// JSON whose strings say U+FFFD where they said U+0000. The zero is always an escape there.
fn without_zero(json: &str) -> Cow<'_, str> {
    if !json.contains("\\u0000") {
        return Cow::Borrowed(json);
    }
    let (mut out, mut rest) = (String::with_capacity(json.len()), json);
    while let Some(at) = rest.find('\\') {
        // An escape is a backslash and one letter, or `u` and four digits that stay.
        let zero = rest[at..].starts_with("\\u0000");
        let end = at + if zero { 6 } else { 2 };
        out.push_str(if zero { &rest[..at] } else { &rest[..end] });
        out.push_str(if zero { "\\ufffd" } else { "" });
        rest = &rest[end..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Keys and indexes, the count of every table, and the promise kept.
fn tail(wanted: &Wanted<'_>, revision: i64, exported: &Exported) -> String {
    let mut sql = String::from("\n");
    let mut counts = String::new();
    for (name, rows) in &exported.rows {
        for table in TABLES.iter().filter(|table| table.name == *name) {
            sql += &format!("ALTER TABLE {name} ADD PRIMARY KEY ({});\n", table.key);
            table.afterwards.iter().for_each(|statement| sql += &format!("{statement};\n"));
        }
        counts += &format!(
            "    SELECT count(*) INTO found FROM {name};\n    IF found <> {rows} THEN\n        \
             RAISE EXCEPTION '{name}: % rows were loaded instead of {rows}', found;\n    END IF;\n"
        );
    }
    let Wanted { schema, events: _, version, at } = wanted;
    format!(
        "{sql}\n{UUID_OF}\n\
         COMMENT ON SCHEMA {} IS 'Roost {version}, revision {revision}, exported at {at}';\n\n\
         DO $$\nDECLARE\n    found bigint;\nBEGIN\n{counts}END\n$$;\n\n\
         -- The end of the file: the promise at its head is kept.\n\
         UPDATE pg_temp.roost_load SET whole = 1;\n",
        schema.quoted()
    )
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExportError::Store(error) => error.fmt(f),
            ExportError::Output(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ExportError {}

#[cfg(test)]
mod tests {
    use super::tables::STAYS;
    use super::*;
    use crate::store::open::SCHEMA;
    use proptest::prelude::*;

    /// Reads a line of `COPY` in text format as PostgreSQL's manual says it is read.
    fn unescape(field: &str) -> Option<String> {
        if field == "\\N" {
            return None;
        }
        let (mut out, mut chars) = (String::new(), field.chars());
        while let Some(c) = chars.next() {
            out.push(match c {
                '\\' => match chars.next().unwrap() {
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'v' => '\u{b}',
                    other => other,
                },
                c => c,
            });
        }
        Some(out)
    }

    /// A value, as it is written and then read.
    fn there_and_back(kind: Kind, value: ValueRef<'_>) -> (Option<bool>, Option<String>) {
        let mut line = String::new();
        let same = write_value(kind, value, &mut line);
        assert!(!line.contains(['\t', '\n', '\r', '\0']), "{line:?} is more than one field");
        assert_ne!(line, "\\.", "the end of all rows");
        (same, unescape(&line))
    }

    /// Texts of what is special anywhere on the way.
    const NASTY: &str = "[\\\\.Nntr\t\n\r'\"$:;\u{0}\u{b}é😀 {}]{0,40}";

    proptest! {
        #[test]
        fn any_text_comes_back(text in prop_oneof![NASTY, any::<String>()]) {
            let held = text.replace('\0', "\u{fffd}");
            let same = held == text;
            let found = there_and_back(Kind::Text, ValueRef::Text(text.as_bytes()));
            prop_assert_eq!(found, (Some(same), Some(held)));
        }

        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let found = there_and_back(Kind::Hash, ValueRef::Blob(&bytes));
            prop_assert_eq!(found, (Some(true), Some(format!("\\x{hex}"))));
            let (_, text) = there_and_back(Kind::Text, ValueRef::Text(&bytes));
            let lossy = String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}");
            prop_assert_eq!(text, Some(lossy));
        }

        #[test]
        fn any_json_comes_back(key in NASTY, value in NASTY, number: i64) {
            let json = serde_json::json!({&key: [&value, number]});
            let (same, text) = there_and_back(Kind::Json, ValueRef::Text(json.to_string().as_bytes()));
            let held = |text: &str| text.replace('\0', "\u{fffd}");
            let expected = serde_json::json!({held(&key): [held(&value), number]});
            let found: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(same, Some(json == expected));
        }

        /// Whatever it is: a field of JSON that says no U+0000.
        #[test]
        fn what_is_no_json_becomes_a_string(text in prop_oneof![NASTY, any::<String>()]) {
            let (_, field) = there_and_back(Kind::Json, ValueRef::Text(text.as_bytes()));
            let found: serde_json::Value = serde_json::from_str(&field.unwrap()).unwrap();
            if serde_json::from_str::<serde_json::Value>(&text).is_err() {
                prop_assert_eq!(found, text.replace('\0', "\u{fffd}"));
            }
        }
    }

    #[test]
    fn values_at_the_edge() {
        let json = |text: &str| there_and_back(Kind::Json, ValueRef::Text(text.as_bytes()));
        let (same, text) = json("{\"a\":\"\\u0000\\\\u0000\"}");
        assert_eq!((same, text.as_deref()), (Some(false), Some("{\"a\":\"\\ufffd\\\\u0000\"}")));
        assert_eq!(json("\"\\ud800\"").0, Some(false), "half a character");
        assert_eq!(json("1e999999").1.as_deref(), Some("\"1e999999\""), "no number there");
        let time = |ms| there_and_back(Kind::Time, ValueRef::Integer(ms));
        assert_eq!(time(1_779_000_000_123), (Some(true), Some("2026-05-17T06:40:00.123Z".into())));
        assert_eq!(time(-1).0, Some(false));
        assert_eq!(time(LAST_MS).0, Some(true));
        assert_eq!(time(LAST_MS + 1).0, Some(false));
        assert_eq!(there_and_back(Kind::Int, ValueRef::Integer(i64::MIN)).0, Some(true));
        assert_eq!(there_and_back(Kind::Bool, ValueRef::Integer(1)).1.as_deref(), Some("t"));
        assert_eq!(there_and_back(Kind::Text, ValueRef::Null), (Some(true), None));
        assert_eq!(write_value(Kind::Int, ValueRef::Text(b"1"), &mut String::new()), None);
    }

    /// Names of tables and columns, with whether they may be NULL.
    fn columns(conn: &Connection) -> Vec<(String, bool)> {
        let sql = "SELECT m.name || '.' || c.name, c.\"notnull\" = 0 AND c.pk = 0 \
                   FROM sqlite_schema m, pragma_table_info(m.name) c \
                   WHERE m.type = 'table' ORDER BY 1";
        let mut select = conn.prepare(sql).unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn every_column_of_the_schema_leaves_or_stays_on_purpose() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        let all = columns(&conn);
        assert!(all.len() > 80, "{all:?}");
        let stays = |name: &str| {
            let table = name.split('.').next().unwrap_or_default();
            STAYS.contains(&name) || STAYS.contains(&table)
        };
        let here: Vec<_> = all.iter().filter(|(name, _)| !stays(name)).cloned().collect();
        let mut leaves: Vec<(String, bool)> = TABLES
            .iter()
            .flat_map(|table| {
                let of =
                    |c: &tables::Column| (format!("{}.{}", table.name, c.name), c.rule.is_empty());
                table.columns.iter().map(of)
            })
            .collect();
        leaves.sort();
        assert_eq!(leaves, here);
        let known = |stays: &str| all.iter().any(|(name, _)| name.starts_with(stays));
        assert!(STAYS.iter().all(|stays| known(stays)), "nothing stays that is not there");
    }

    #[test]
    fn names_of_schemas() {
        let name = |text: &str| text.parse::<SchemaName>();
        assert_eq!(name("a \"b\"").map(|name| name.quoted()), Ok("\"a \"\"b\"\"\"".to_owned()));
        for text in ["", "pg_roost", "a\nb", &"x".repeat(64)] {
            assert!(name(text).is_err(), "{text:?}");
        }
        assert!(name(&"x".repeat(63)).is_ok());
    }
}
