//! Owns the question whether every index has exactly the entries of its table.
//!
//! Never: looks an entry up. SQLite's own `integrity_check` does for every row and index, in
//! no order, which takes longer than all the rest; here each is read once from end to end,
//! and sums of their entries are compared.

use super::StoreError;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, Statement};
use std::hash::{BuildHasher, Hasher, RandomState};

/// An index beside the rows themselves.
struct Index {
    name: String,
    /// What its entries consist of.
    columns: Vec<String>,
    /// Of which rows it has entries.
    partial: Option<String>,
}

/// Number and sum of entries; the order does not matter.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Entries(u64, u64);

impl Entries {
    fn add(&mut self, entry: u64) {
        *self = Entries(self.0 + 1, self.1.wrapping_add(entry));
    }
}

/// What is wrong, a line each.
pub(super) fn check(conn: &Connection) -> Result<Vec<String>, StoreError> {
    let mut select = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
    let tables = select.query_map([], |row| row.get::<_, String>(0))?;
    let (mut wrong, hasher) = (Vec::new(), RandomState::new());
    for table in tables {
        let table = table?;
        let indexes = indexes_of(conn, &table)?;
        if indexes.is_empty() {
            continue;
        }
        let by_table = of_table(conn, &table, &indexes, &hasher)?;
        for (index, expected) in indexes.iter().zip(by_table) {
            if of_index(conn, &table, index, &hasher)? != expected {
                wrong.push(format!("index {} has other entries than {table}", index.name));
            }
        }
    }
    Ok(wrong)
}

fn indexes_of(conn: &Connection, table: &str) -> Result<Vec<Index>, StoreError> {
    let mut select = conn.prepare(
        "SELECT l.name, l.partial, s.sql FROM pragma_index_list(?1) l \
         LEFT JOIN sqlite_schema s ON s.type = 'index' AND s.name = l.name \
         WHERE l.origin <> 'pk' ORDER BY l.name",
    )?;
    let mut cursor = select.query([table])?;
    let mut indexes = Vec::new();
    while let Some(row) = cursor.next()? {
        let (name, partial): (String, bool) = (row.get(0)?, row.get(1)?);
        let sql: Option<String> = row.get(2)?;
        let condition = sql.as_deref().and_then(|sql| sql.split_once("WHERE "));
        let partial = condition.filter(|_| partial).map(|(_, condition)| condition.to_owned());
        let mut columns =
            conn.prepare("SELECT name FROM pragma_index_xinfo(?1) WHERE name IS NOT NULL")?;
        let columns = columns.query_map([&name], |row| row.get(0))?;
        indexes.push(Index { columns: columns.collect::<Result<_, _>>()?, name, partial });
    }
    Ok(indexes)
}

fn of_index(
    conn: &Connection,
    table: &str,
    index: &Index,
    hasher: &RandomState,
) -> Result<Entries, StoreError> {
    let condition = index.partial.as_ref().map_or_else(String::new, |p| format!(" WHERE {p}"));
    let (columns, name) = (index.columns.join(", "), &index.name);
    let sql = format!("SELECT {columns} FROM {table} INDEXED BY {name}{condition}");
    let mut select = conn.prepare(&sql)?;
    let places: Vec<usize> = (0..index.columns.len()).collect();
    let mut entries = Entries::default();
    let mut cursor = select.query([])?;
    while let Some(row) = cursor.next()? {
        entries.add(entry(row, &places, hasher)?);
    }
    Ok(entries)
}

/// What the entries of each index should be, from one walk over the table.
fn of_table(
    conn: &Connection,
    table: &str,
    indexes: &[Index],
    hasher: &RandomState,
) -> Result<Vec<Entries>, StoreError> {
    let mut names: Vec<&String> = indexes.iter().flat_map(|index| &index.columns).collect();
    names.sort_unstable();
    names.dedup();
    let columns = names.iter().map(|name| (*name).clone());
    let conditions = indexes.iter().map(|index| match &index.partial {
        Some(condition) => format!("({condition}) IS TRUE"),
        None => "1".to_owned(),
    });
    // SQLite would read an index that has all that is asked for, `NOT INDEXED` or not: one
    // column that no index has makes it read the table.
    let mut others = conn.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let others = others.query_map([table], |row| row.get::<_, String>(0))?;
    let others = others.collect::<rusqlite::Result<Vec<_>>>()?;
    let unindexed = others.into_iter().find(|name| names.binary_search(&name).is_err());
    let all = columns.chain(conditions).chain(unindexed).collect::<Vec<_>>().join(", ");
    let mut select: Statement<'_> =
        conn.prepare(&format!("SELECT {all} FROM {table} NOT INDEXED"))?;
    let place = |name: &String| names.binary_search(&name).unwrap_or_default();
    let places: Vec<Vec<usize>> =
        indexes.iter().map(|index| index.columns.iter().map(place).collect()).collect();
    let mut entries = vec![Entries::default(); indexes.len()];
    let mut cursor = select.query([])?;
    while let Some(row) = cursor.next()? {
        for (at, (entries, places)) in entries.iter_mut().zip(&places).enumerate() {
            if row.get(names.len() + at)? {
                entries.add(entry(row, places, hasher)?);
            }
        }
    }
    Ok(entries)
}

fn entry(row: &Row<'_>, places: &[usize], hasher: &RandomState) -> Result<u64, StoreError> {
    let mut hash = hasher.build_hasher();
    for at in places {
        match row.get_ref(*at)? {
            ValueRef::Null => hash.write_u8(0),
            ValueRef::Integer(value) => hash.write_i64(value),
            ValueRef::Real(value) => hash.write_u64(value.to_bits()),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                hash.write(bytes);
                hash.write_u8(0xff);
            }
        }
    }
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::SCHEMA;

    fn whole() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        conn.execute_batch(
            "INSERT INTO hosts (id,team_id,type,intent,liveness,revision,created_at,updated_at) \
             VALUES ('h','t','regular','active','alive',0,0,0); \
             INSERT INTO sandboxes (host_id,id,team_id,status,status_changed_at,revision,created_at) \
             VALUES ('h','s','t','running',0,0,0), ('h','r','t','paused',0,0,1); \
             INSERT INTO operations (id,sandbox_id,host_id,kind,created_at,deadline_at,finished_at) \
             VALUES ('o','s','h','pause',0,0,NULL), ('p','s','h','pause',0,0,5); \
             INSERT INTO api_keys VALUES ('k', zeroblob(32), 't', 'ci', '0000', 15, 16)",
        )
        .unwrap();
        conn
    }

    /// The table changes while SQLite does not know of the index, which keeps what it has.
    #[test]
    fn an_index_with_other_entries_is_found() {
        assert_eq!(check(&whole()).unwrap(), [] as [&str; 0]);
        for (index, table, change) in [
            ("sandboxes_by_id", "sandboxes", "UPDATE sandboxes SET id = 'q' WHERE id = 'r'"),
            ("sandboxes_by_age", "sandboxes", "UPDATE sandboxes SET created_at = 9"),
            ("sandboxes_by_team", "sandboxes", "UPDATE sandboxes SET team_id = 'u'"),
            ("sandboxes_by_host", "sandboxes", "DELETE FROM sandboxes WHERE id = 's'"),
            ("operations_unfinished", "operations", "UPDATE operations SET finished_at = 1"),
            ("operations_by_end", "operations", "UPDATE operations SET finished_at = 6"),
        ] {
            let conn = whole();
            conn.execute_batch(&format!(
                "PRAGMA writable_schema = ON; \
                 CREATE TEMP TABLE kept AS SELECT * FROM sqlite_schema WHERE name = '{index}'; \
                 DELETE FROM sqlite_schema WHERE name = '{index}'; \
                 PRAGMA writable_schema = RESET; \
                 {change}; \
                 PRAGMA writable_schema = ON; \
                 INSERT INTO sqlite_schema SELECT * FROM kept; \
                 PRAGMA writable_schema = RESET"
            ))
            .unwrap();
            let expected = format!("index {index} has other entries than {table}");
            // An entry that moves leaves its row's place in other indexes too.
            assert!(check(&conn).unwrap().contains(&expected), "{index}: {:?}", check(&conn));
        }
    }
}
