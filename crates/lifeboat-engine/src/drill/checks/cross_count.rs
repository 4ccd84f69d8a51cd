//! The rows of a table counted twice: through the heap, and through each index alone, which believes the visibility map.

use super::relations::Relation;
use super::{Gathered, Target, identifier};
use crate::postgres::{Connection, PgError};

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) indexes: u64,
}

/// Counts the tables of users among `relations`, which are of one database.
pub(super) fn count<'r>(
    target: &Target<'_>,
    database: &str,
    relations: impl Iterator<Item = &'r Relation>,
    counted: &mut Counted,
    gathered: &mut Gathered,
) {
    let mut connection: Option<Connection> = None;
    // A TOAST table cannot be named in a query of its rows by whoever is no superuser, and nobody queries it.
    for relation in relations.filter(|relation| relation.is_user && relation.schema != "pg_toast") {
        let what = format!("table {database}.{}", relation.quoted());
        if target.budget.is_over() {
            return gathered.unable(format!("count {what} and those after it: the time was over"));
        }
        let open = connection.take().map_or_else(|| target.connect(database), Ok);
        let now = match open {
            Ok(open) => open,
            Err(error) => {
                gathered.error(&format!("count {what}"), &error);
                continue;
            }
        };
        match table(&now, relation, &what, counted, gathered) {
            Ok(()) => connection = Some(now),
            Err(error) => {
                // The connection may be in a transaction that failed: it is not used again.
                gathered.error(&format!("count {what}"), &error);
            }
        }
    }
}

fn table(connection: &Connection, relation: &Relation, what: &str, counted: &mut Counted, gathered: &mut Gathered) -> Result<(), PgError> {
    let oid = relation.oid.to_string();
    let indexes = connection.query(
        "SELECT i.indexrelid AS oid, c.relname AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam \
         WHERE i.indrelid = $1::oid AND a.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL ORDER BY 1",
        &[Some(&oid)],
    )?;
    if indexes.is_empty() {
        return Ok(());
    }
    let sql = format!("SELECT count(*) AS rows FROM ONLY {}", relation.quoted());
    let rows = |connection: &Connection| -> Result<u64, PgError> { connection.query(&sql, &[])?.one()?.parse("rows") };
    connection.execute("BEGIN", &[])?;
    forbid(connection, &["indexscan", "indexonlyscan", "bitmapscan"])?;
    let in_heap = rows(connection)?;
    connection.execute("ROLLBACK", &[])?;
    for index in indexes.iter() {
        connection.execute("BEGIN", &[])?;
        // The planner takes the index that it likes best. In a transaction that is rolled back, this one is the only valid one.
        connection.execute(
            "UPDATE pg_catalog.pg_index SET indisvalid = false WHERE indrelid = $1::oid AND indexrelid <> $2::oid",
            &[Some(&oid), Some(index.get("oid")?)],
        )?;
        forbid(connection, &["seqscan", "bitmapscan"])?;
        let plan = connection.query(&format!("EXPLAIN (COSTS off) {sql}"), &[])?;
        let name = index.get("name")?;
        let wanted = format!("Index Only Scan using {}", plan_name(name));
        if plan.iter().any(|row| row.text(0).is_ok_and(|line| line.contains(&wanted))) {
            let in_index = rows(connection)?;
            counted.indexes += 1;
            if in_index != in_heap {
                gathered.bad(format!("{what}: {in_heap} rows, but {in_index} through index {} alone", identifier(name)));
            }
        }
        connection.execute("ROLLBACK", &[])?;
    }
    Ok(())
}

/// Parallel plans count the same in more ways; one is enough.
fn forbid(connection: &Connection, kinds: &[&str]) -> Result<(), PgError> {
    connection.execute("SET LOCAL max_parallel_workers_per_gather = 0", &[])?;
    kinds.iter().try_for_each(|kind| connection.execute(&format!("SET LOCAL enable_{kind} = off"), &[]))
}

/// As EXPLAIN prints a name: in quotes only where it needs them (`quote_identifier`). Names that might be key words are few, and what is not
/// found here is not counted.
fn plan_name(name: &str) -> String {
    let plain = name.chars().enumerate().all(|(at, c)| c.is_ascii_lowercase() || c == '_' || (at > 0 && c.is_ascii_digit()));
    if plain && !name.is_empty() { name.to_owned() } else { identifier(name) }
}
