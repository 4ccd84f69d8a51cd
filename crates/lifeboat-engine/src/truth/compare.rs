//! Compares a restored server with the truth.

use std::collections::BTreeMap;
use std::time::Instant;

use lifeboat_core::drill::{Check, CheckResult, Outcome};
use lifeboat_core::truth::{Comparison, Database, Seen, Snapshot, Table, Truth};
use lifeboat_core::wal::Lsn;

use super::rows::{BEGIN, Listed, SAVEPOINT, excuse, hash, list, prepare, release};
use crate::postgres::{Connection, Dsn, PgError, Purpose};
use crate::progress::{Progress, Unwatched};

/// Transactions that may have begun between the snapshot and the restore point: more than that is not what a moment can be.
const MAX_DOUBTS: u64 = 1_000_000;

/// Compares a server that is paused in recovery at the truth's restore point with the truth. `dsn` leads to any database of it, as a superuser;
/// the others are asked for by name.
///
/// Passed: everything that was compared is as it was. Failed: something is not. Not checked: the server is not at that moment, or cannot be asked, or
/// at that moment it was in doubt whether a transaction was committed.
pub fn compare(dsn: &Dsn, truth: &Truth, progress: &dyn Progress) -> CheckResult {
    let begun = Instant::now();
    let obstacle = Connection::open(dsn, Purpose::Sql).and_then(|connection| match is_at(&connection, truth)? {
        Some(other) => Ok(Some(other)),
        None => doubt(&connection, &truth.point.snapshot),
    });
    let why = match obstacle {
        Ok(None) => return compare_tables(dsn, truth, progress),
        Ok(Some(why)) => why,
        Err(error) => error.to_string(),
    };
    CheckResult { seconds: begun.elapsed().as_secs_f64(), ..CheckResult::new(Check::Truth, Outcome::NotChecked, why) }
}

/// Why a server is not where the truth is the truth; `None`: it is.
///
/// # Errors
/// The server could not be asked.
pub fn is_at(connection: &Connection, truth: &Truth) -> Result<Option<String>, PgError> {
    // From 14 on it is known whether replay has paused, before that only that it shall (pg_get_wal_replay_pause_state).
    let paused =
        if connection.server_version() >= 140_000 { "pg_get_wal_replay_pause_state() = 'paused'" } else { "pg_is_wal_replay_paused()" };
    let sql = format!(
        "SELECT pg_is_in_recovery() AS recovering, CASE WHEN pg_is_in_recovery() THEN {paused} ELSE false END AS paused, \
         pg_last_wal_replay_lsn() AS lsn"
    );
    let rows = connection.query(&sql, &[])?;
    let row = rows.one()?;
    let (wanted, lsn) = (truth.point.lsn, row.parse_opt::<Lsn>("lsn")?);
    Ok(if !row.bool("recovering")? {
        Some("the server is not in recovery: what it has is no longer what it had at the restore point of the truth".into())
    } else if lsn != Some(wanted) {
        Some(format!("the server has replayed up to {}, and the truth is of {wanted}", lsn.unwrap_or(Lsn::INVALID)))
    } else if !row.bool("paused")? {
        Some("the server goes on replaying: recovery has to pause at the restore point of the truth".into())
    } else {
        None
    })
}

/// Whether a transaction is committed here that nobody saw as committed when the tables were read: see `moment`.
fn doubt(connection: &Connection, snapshot: &Snapshot) -> Result<Option<String>, PgError> {
    let doubtful = |xid: &str| {
        Some(format!(
            "transaction {xid} was being committed at that very moment: what was read does not have it, and the restored server does; the next backup has a moment of its own"
        ))
    };
    let list = format!("{{{}}}", snapshot.xip.iter().map(u64::to_string).collect::<Vec<_>>().join(","));
    // No status: so old that it was forgotten, which a running transaction cannot be.
    let sql = "SELECT xid FROM unnest($1::text[]) AS xid WHERE coalesce(pg_xact_status(xid::xid8), 'committed') = 'committed' LIMIT 1";
    if let Some(row) = connection.query(sql, &[Some(&list)])?.iter().next() {
        return Ok(doubtful(row.get("xid")?));
    }
    // A standby counts what it has seen end: nothing above that is committed.
    let xmax: u64 = connection.query("SELECT pg_snapshot_xmax(pg_current_snapshot()) AS xmax", &[])?.one()?.parse("xmax")?;
    if xmax.saturating_sub(snapshot.xmax) > MAX_DOUBTS {
        return Ok(Some(format!("the server has seen transactions up to {xmax}, and those below {} were known", snapshot.xmax)));
    }
    let sql =
        "SELECT xid FROM generate_series($1::bigint, $2::bigint - 1) AS xid WHERE pg_xact_status(xid::text::xid8) = 'committed' LIMIT 1";
    let rows = connection.query(sql, &[Some(&snapshot.xmax.to_string()), Some(&xmax.to_string())])?;
    let row = rows.iter().next();
    row.map_or(Ok(None), |row| Ok(doubtful(row.get("xid")?)))
}

/// Compares whatever a server has with the truth: for controls, which change a row on purpose after recovery has ended, and nothing else writes.
pub fn compare_tables(dsn: &Dsn, truth: &Truth, progress: &dyn Progress) -> CheckResult {
    let begun = Instant::now();
    let mut comparison = Comparison::new(truth);
    progress.total(truth.counts().0, 0);
    for database in truth.databases.iter().filter(|database| database.unknown.is_none()) {
        compare_database(&dsn.clone().with("dbname", &database.name), truth, database, &mut comparison, false, progress);
    }
    CheckResult { seconds: begun.elapsed().as_secs_f64(), ..comparison.result() }
}

/// The same of one table alone, whatever else is there.
pub fn compare_table(dsn: &Dsn, truth: &Truth, database: &Database, table: &Table) -> CheckResult {
    let alone = Truth { databases: vec![Database { tables: vec![table.clone()], ..database.clone() }], ..truth.clone() };
    let mut comparison = Comparison::new(&alone);
    let dsn = dsn.clone().with("dbname", &database.name);
    compare_database(&dsn, &alone, &alone.databases[0], &mut comparison, true, &Unwatched);
    comparison.result()
}

fn compare_database(
    dsn: &Dsn,
    truth: &Truth,
    database: &Database,
    comparison: &mut Comparison,
    others_may_be: bool,
    progress: &dyn Progress,
) {
    let open = || -> Result<_, PgError> {
        let connection = Connection::open(dsn, Purpose::Sql)?;
        // Here nobody replaces tables: a server that cannot refuse views is good enough.
        prepare(&connection)?;
        connection.simple(&format!("{BEGIN}; {SAVEPOINT}"))?;
        let listed = list(&connection)?;
        Ok((connection, listed))
    };
    let (connection, listed) = match open() {
        Ok(opened) => opened,
        Err(error) => {
            // The server answers, and says that it is the database: not there, or damaged.
            if error.sqlstate().is_some() && excuse(&error).is_none() && !error.is_transient() {
                comparison.lost_database(&database.name, &error.to_string());
            } else {
                let why = error.to_string();
                database.tables.iter().for_each(|table| comparison.table(&database.name, table, Seen::NotCompared(why.clone())));
            }
            return;
        }
    };
    let mut there: BTreeMap<(&str, &str), &Listed> =
        listed.iter().map(|listed| ((listed.schema.as_str(), listed.name.as_str()), listed)).collect();
    let mut lost: Option<String> = None;
    for table in &database.tables {
        let found = there.remove(&(table.schema.as_str(), table.name.as_str()));
        let seen = match (found, &lost) {
            (None, _) => Seen::Absent,
            (Some(_), Some(why)) => Seen::NotCompared(why.clone()),
            (Some(_), None) if table.found.is_none() => Seen::NotCompared(String::new()),
            (Some(listed), None) => match listed.closed {
                Some(why) => Seen::NotCompared(why.to_owned()),
                None => {
                    let seen = see(&connection, listed, &table.ranges, truth.seed);
                    seen.unwrap_or_else(|error| {
                        let why = error.to_string();
                        lost = Some(why.clone());
                        Seen::NotCompared(why)
                    })
                }
            },
        };
        comparison.table(&database.name, table, seen);
        progress.add(1, 0);
    }
    for (schema, name) in there.into_keys().filter(|_| !others_may_be) {
        comparison.unexpected(&database.name, schema, name);
    }
}

/// Reads one table. An error is one of the connection.
fn see(connection: &Connection, listed: &Listed, ranges: &[(u32, u32)], seed: u64) -> Result<Seen, PgError> {
    let seen = match hash(connection, listed, ranges, seed) {
        Ok(found) => Seen::Found(found),
        Err(error) if error.sqlstate().is_some() => match excuse(&error) {
            Some(why) => Seen::NotCompared(why),
            None => Seen::Unreadable(error.to_string()),
        },
        Err(error) => return Err(error),
    };
    release(connection)?;
    Ok(seen)
}
