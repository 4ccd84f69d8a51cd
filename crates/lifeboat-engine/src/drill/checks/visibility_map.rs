//! Does the visibility map tell the truth? An index-only scan believes it, and returns rows that are deleted where it is wrong.

use lifeboat_core::drill::{Check, CheckResult};

use super::relations::{Counted, choose, extension};
use super::{Gathered, Target, cross_count, identifier, timed};
use crate::postgres::{Connection, PgError};

/// Asks `pg_check_visible` and `pg_check_frozen` of the extension `pg_visibility` (installed where it is not) about every table with storage,
/// or as many as the budget allows, and then counts the rows of tables through each index alone and through the heap: where the two differ,
/// whatever the reason, queries give wrong answers.
///
/// Nothing else may run in the server meanwhile: an older snapshot makes pages look less visible than they are.
pub fn visibility_map(target: &Target<'_>) -> CheckResult {
    timed(|| {
        let mut gathered = Gathered::default();
        let chosen = choose(target, Counted::Heaps, &mut gathered);
        let mut absent = Vec::new();
        let mut counted = cross_count::Counted::default();
        for (number, database) in chosen.databases.iter().enumerate() {
            if target.budget.is_over() {
                gathered.unable(format!("database {database} and those after it: the time was over"));
                break;
            }
            if chosen.of_database(number).next().is_none() {
                continue;
            }
            match target.connect(database).and_then(|connection| Ok((extension(&connection, "pg_visibility")?, connection))) {
                Ok((Some(schema), mut connection)) => {
                    for relation in chosen.of_database(number) {
                        let what = format!("table {database}.{}", relation.quoted());
                        if target.budget.is_over() {
                            gathered.unable(format!("{what} and those after it: the time was over"));
                            break;
                        }
                        match check(&connection, &schema, relation.oid, &what, &mut gathered) {
                            Ok(()) => gathered.bytes += relation.bytes,
                            Err(error @ PgError::Lost { .. }) => {
                                gathered.error(&what, &error);
                                match target.connect(database) {
                                    Ok(again) => connection = again,
                                    Err(error) => {
                                        gathered.error(&format!("database {database}"), &error);
                                        break;
                                    }
                                }
                            }
                            Err(error) => gathered.error(&what, &error),
                        }
                    }
                }
                Ok((None, _)) => absent.push(database.clone()),
                Err(error) => gathered.error(&format!("install pg_visibility in database {database}"), &error),
            }
            cross_count::count(target, database, chosen.of_database(number), &mut counted, &mut gathered);
        }
        if let Some(first) = absent.first() {
            let of = chosen.databases.len();
            gathered.unable(format!(
                "the extension pg_visibility is not installed on this host ({} of {of} databases, first {first}); {} indexes count as many rows as their tables",
                absent.len(),
                counted.indexes
            ));
        }
        let good = format!(
            "{} of {} tables are as visible as their maps say, and {} indexes count as many rows as their tables",
            chosen.relations.len(),
            chosen.of,
            counted.indexes
        );
        let bytes = gathered.bytes;
        gathered.result(Check::VisibilityMap, good).by("pg_visibility").of(bytes, chosen.of_bytes, "bytes", chosen.seed(target))
    })
}

fn check(connection: &Connection, schema: &str, oid: u32, what: &str, gathered: &mut Gathered) -> Result<(), PgError> {
    let oid = oid.to_string();
    for (function, said) in [("pg_check_visible", "visible to everybody"), ("pg_check_frozen", "frozen")] {
        let sql = format!(
            "SELECT count(*) AS rows, (array_agg(t::text))[1] AS first FROM {}.{function}($1::oid::regclass) AS t",
            identifier(schema)
        );
        let rows = connection.query(&sql, &[Some(&oid)])?;
        let row = rows.one()?;
        let bad: u64 = row.parse("rows")?;
        if bad > 0 {
            let first = row.get_opt("first")?.unwrap_or("?").to_owned();
            gathered.bad(format!("{what}: {bad} rows on pages that the map calls {said} are not, first {first}"));
        }
    }
    Ok(())
}
