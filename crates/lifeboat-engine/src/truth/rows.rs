//! Tables as text, hashed: the same statements when a backup is taken and when it was restored.
//!
//! A row is hashed as the text of its columns. That text must depend on nothing but the row, so every setting that output functions of
//! PostgreSQL look at is fixed (`pg_dump.c`, `setup_connection`, has the list), and columns are left out whose text depends on catalogs
//! (`regclass` and its like, `aclitem`) or on code (virtual generated columns). Sums do not depend on the order in which rows are read.
//!
//! Tables belong to people who may be hostile to the role that reads them: names are quoted by the server, functions and operators are
//! those of `pg_catalog`, columns are turned into text by their types' output functions only (which nobody but a superuser can make), and
//! the server must know `restrict_nonsystem_relation_kind`, so that a table that was replaced by a view meanwhile is refused (CVE-2024-7348).

use lifeboat_core::truth::{Found, RowsHash};

use crate::postgres::{Connection, PgError};

/// How long a table's lock is waited for. Whoever waits for one behind an `ALTER TABLE` keeps nobody else waiting, and neither may the backup wait.
const LOCK_TIMEOUT: &str = "500ms";

/// How long one statement may take: a table of the budget takes less than a second.
const STATEMENT_TIMEOUT: &str = "10min";

/// Settings that the text of a value depends on, or the way in which tables are read. `Connection` has set search_path, DateStyle,
/// IntervalStyle, TimeZone and bytea_output already.
fn settings() -> String {
    format!(
        "SET extra_float_digits = 3; SET lc_monetary = 'C'; SET xmlbinary = 'base64'; SET xmloption = 'content'; \
         SET quote_all_identifiers = off; SET row_security = off; SET jit = off; SET synchronize_seqscans = off; \
         SET max_parallel_workers_per_gather = 0; SET synchronous_commit = local; \
         SET lock_timeout = '{LOCK_TIMEOUT}'; SET statement_timeout = '{STATEMENT_TIMEOUT}'"
    )
}

/// Prepares a session for reading tables. False: the server cannot refuse views in place of tables.
pub(super) fn prepare(connection: &Connection) -> Result<bool, PgError> {
    connection.simple(&settings())?;
    let sql = "SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings WHERE name = 'restrict_nonsystem_relation_kind'";
    Ok(!connection.query(sql, &[])?.is_empty())
}

/// A table as the catalogs have it.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    /// Schema and name, quoted for SQL.
    quoted: String,
    /// Its columns, quoted, in order.
    columns: String,
    /// Hash of all in the catalogs that its text depends on, and of its file: another one means that it is another table by now.
    pub(super) signature: String,
    /// Blocks of it can be read: it is a heap, and the server can scan ranges.
    pub(super) has_blocks: bool,
    /// Why the role cannot read it, where that is known before it is tried.
    pub(super) closed: Option<&'static str>,
}

/// All tables of the connected database in the transaction's snapshot.
pub(super) fn list(connection: &Connection) -> Result<Vec<Listed>, PgError> {
    let sql = "SELECT c.oid, n.nspname, c.relname, format('%I.%I', n.nspname, c.relname) AS quoted, \
         coalesce((SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v' \
           AND NOT (t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ~ '^_?(reg[a-z]+|aclitem)$')), '') AS columns, \
         hashtextextended(concat_ws('/', c.oid, c.relfilenode, c.relkind, c.relispopulated, (SELECT string_agg( \
           concat_ws(' ', a.attnum, quote_ident(a.attname), a.atttypid, a.atttypmod, a.attgenerated), ',' ORDER BY a.attnum) \
           FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)), 0) AS signature, \
         coalesce(m.amname = 'heap', false) AS heap, c.relispopulated AS populated, \
         coalesce(has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'), false) AS readable, \
         coalesce(row_security_active(c.oid), false) AS hidden \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am m ON m.oid = c.relam \
         WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' \
         AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY n.nspname, c.relname";
    let rows = connection.query(sql, &[])?;
    let ranges = connection.server_version() >= 140_000;
    rows.iter()
        .map(|row| {
            let closed = if !row.bool("populated")? {
                Some("it is a materialized view that was not filled")
            } else if !row.bool("readable")? {
                Some("no permission: the role may not read it")
            } else if row.bool("hidden")? {
                Some("no permission: row security would hide rows of it from the role")
            } else {
                None
            };
            Ok(Listed {
                oid: row.parse("oid")?,
                schema: row.get("nspname")?.to_owned(),
                name: row.get("relname")?.to_owned(),
                quoted: row.get("quoted")?.to_owned(),
                columns: row.get("columns")?.to_owned(),
                signature: row.get("signature")?.to_owned(),
                has_blocks: ranges && row.bool("heap")?,
                closed,
            })
        })
        .collect()
}

/// A hash of the types whose values' text depends on catalogs: enumerations, and rows of composite types.
pub(super) fn types(connection: &Connection) -> Result<String, PgError> {
    let sql = "SELECT hashtextextended(concat_ws('|', \
         (SELECT string_agg(concat_ws(' ', e.oid, e.enumtypid, e.enumlabel), ',' ORDER BY e.oid) FROM pg_enum e), \
         (SELECT string_agg(concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped), ',' \
           ORDER BY a.attrelid, a.attnum) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE a.attnum > 0 AND \
           (c.relkind = 'c' OR c.oid IN (SELECT t.typrelid FROM pg_attribute u JOIN pg_type e ON e.oid = u.atttypid \
             JOIN pg_type t ON t.oid IN (e.oid, e.typelem) WHERE u.attnum > 0 AND t.typrelid <> 0)))), 0) AS types";
    Ok(connection.query(sql, &[])?.one()?.get("types")?.to_owned())
}

/// Counts and hashes the rows of a table, or of ranges of its blocks. Inside of a savepoint: the lock, and settings, last until it is rolled back to.
pub(super) fn hash(connection: &Connection, table: &Listed, ranges: &[(u32, u32)], seed: u64) -> Result<Found, PgError> {
    let rows = connection.simple(&statement(table, ranges, seed))?;
    let row = rows.one()?;
    Ok(Found { rows: row.parse("rows")?, hash: RowsHash(row.parse("hash")?) })
}

fn statement(table: &Listed, ranges: &[(u32, u32)], seed: u64) -> String {
    let row = format!(
        "hashtextextended(ROW({})::pg_catalog.text COLLATE pg_catalog.\"C\", {seed}) AS h FROM ONLY {}",
        table.columns, table.quoted
    );
    let parts: Vec<String> = ranges
        .iter()
        .map(|(from, to)| {
            format!(
                "SELECT {row} WHERE ctid OPERATOR(pg_catalog.>=) '({from},0)'::pg_catalog.tid AND ctid OPERATOR(pg_catalog.<) '({to},0)'::pg_catalog.tid"
            )
        })
        .collect();
    // The heap itself is what is looked at: an index that is right would hide that it is not.
    let plan = if parts.is_empty() { "SET LOCAL enable_tidscan = off" } else { "SET LOCAL enable_seqscan = off" };
    let parts = if parts.is_empty() { format!("SELECT {row}") } else { parts.join(" UNION ALL ") };
    // sum() of bigint adds in 128 bits and gives numeric, which may be negative.
    format!(
        "{plan}; SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off; \
         SELECT count(*) AS rows, \
         mod(mod(coalesce(sum(h), 0), 18446744073709551616) + 18446744073709551616, 18446744073709551616) AS hash FROM ({parts}) AS s"
    )
}

/// Begins the transaction in which tables are read, and its savepoint; its snapshot is taken by the first statement after.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The savepoint that [`release`] goes back to.
pub(super) const SAVEPOINT: &str = "SAVEPOINT lifeboat_truth";

/// Gives up the locks that were taken since the savepoint, and forgets an error; the snapshot stays.
pub(super) fn release(connection: &Connection) -> Result<(), PgError> {
    connection.execute("ROLLBACK TO SAVEPOINT lifeboat_truth", &[])
}

/// Why a table was not read, of an error that is not the table's fault.
pub(super) fn excuse(error: &PgError) -> Option<String> {
    // Manual, appendix A: insufficient_privilege, lock_not_available, deadlock, query_canceled (statement_timeout, a conflict with
    // recovery), admin_shutdown and its like, out of resources, too many connections.
    let sqlstate = error.sqlstate()?;
    let words = match sqlstate {
        "42501" => "no permission: the role may not read it",
        "55P03" | "40P01" => "it was locked by somebody else",
        "57014" => "it took too long",
        _ if sqlstate.starts_with("53") || sqlstate.starts_with("57") => return Some(error.to_string()),
        _ => return None,
    };
    Some(words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_name_nothing_but_the_table_and_the_catalog() {
        let table = Listed {
            oid: 1,
            schema: "s".into(),
            name: "t".into(),
            quoted: "s.\"t;\"".into(),
            columns: "a, \"B\"".into(),
            signature: String::new(),
            has_blocks: true,
            closed: None,
        };
        let whole = statement(&table, &[], 7);
        assert!(whole.contains("ROW(a, \"B\")::pg_catalog.text COLLATE pg_catalog.\"C\", 7) AS h FROM ONLY s.\"t;\") AS s"), "{whole}");
        let part = statement(&table, &[(0, 2), (5, 6)], 7);
        assert_eq!(part.matches("UNION ALL").count(), 1, "{part}");
        assert!(part.contains("'(5,0)'::pg_catalog.tid") && part.contains("enable_seqscan = off"), "{part}");
    }
}
