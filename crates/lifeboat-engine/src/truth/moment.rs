//! Finds a moment of which it is known what was visible: an LSN, and sessions that see what a server sees that stops there.
//!
//! Every session takes its snapshot; the last of them writes a restore point in the same statement, after its snapshot was taken; then one more
//! snapshot is looked at. Where all are equal, no transaction ended between the first and the last of them (one that does leaves `xip`, or raises
//! `xmax`), so what was visible is what had been committed before the restore point: the commit record of whoever is visible stands before it.
//! The other way round there is a doubt: a transaction writes its commit record before it stops being seen as running
//! (`RecordTransactionCommit`, `ProcArrayEndTransaction` in `xact.c`). Its record may stand before the restore point though no snapshot has it yet. It is
//! in `xip`, or not below `xmax`, then, and whoever compares asks the restored server whether any such transaction is committed there. A moment without such
//! a doubt is looked for first ([`settled`]); on a server on which somebody always commits there may be none.

use std::time::{Duration, Instant};

use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::truth::{Point, Snapshot, point_name, rank, seed};
use lifeboat_core::wal::{Lsn, Timeline};

use super::rows::{BEGIN, SAVEPOINT, prepare};
use crate::postgres::{Connection, Dsn, PgError, Purpose};

/// How often it is tried. A server with 5000 commits a second lets about one try in four through; each leaves a restore point in its WAL and log.
const TRIES: u32 = 100;

/// So many tries are for a moment at which nobody was committing; after that one at which somebody may have been is better than none.
const CHOOSY: u32 = 60;

/// A transaction that is still running so much later was not waiting for the disk at its commit. On a slower one it may have been: then the
/// comparison finds out.
const COMMIT: Duration = Duration::from_millis(20);

/// How many databases are read: each needs a connection of its own, and all at once.
const MAX_DATABASES: usize = 32;

/// How long the server may take to write the restore point to disk.
const FLUSH: Duration = Duration::from_secs(5);

/// Why there is no moment.
#[derive(Debug)]
pub(crate) struct Refused {
    /// For the manifest.
    pub(crate) reason: String,
    /// An operator can do something about it.
    pub(crate) warn: bool,
}

impl From<PgError> for Refused {
    fn from(error: PgError) -> Self {
        Self { reason: error.to_string(), warn: false }
    }
}

fn refused<T>(reason: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { reason: reason.into(), warn: false })
}

/// A database, with a session in it that sees the moment, or why there is none.
pub(super) struct Session {
    pub(super) database: String,
    pub(super) connection: Result<Connection, String>,
}

/// A moment, and sessions that see it. Dropping it ends them.
pub(crate) struct Moment {
    pub(super) backup: BackupId,
    pub(crate) point: Point,
    pub(super) seed: u64,
    pub(super) sessions: Vec<Session>,
}

/// Which server answers: a connection string may name several.
fn server(connection: &Connection) -> Result<(String, bool), PgError> {
    let sql = "SELECT concat_ws(' ', system_identifier, pg_postmaster_start_time()) AS server, pg_is_in_recovery() AS in_recovery FROM pg_control_system()";
    let rows = connection.query(sql, &[])?;
    let row = rows.one()?;
    Ok((row.get("server")?.to_owned(), row.bool("in_recovery")?))
}

fn open(dsn: &Dsn) -> Result<(Connection, String), Refused> {
    let connection = Connection::open(dsn, Purpose::Sql)?;
    if !prepare(&connection)? {
        return refused("the server's minor version cannot refuse views in place of tables: 13.16, 14.13, 15.8, 16.4 and later can");
    }
    let (server, in_recovery) = server(&connection)?;
    if in_recovery {
        return refused("the server is a standby: it cannot say at which LSN something was visible");
    }
    Ok((connection, server))
}

/// Finds a moment, with a session in every database.
pub(crate) fn take(dsn: &Dsn, backup: &BackupId) -> Result<Moment, Refused> {
    let seed = seed(backup);
    let (watcher, here) = open(dsn)?;
    let allowed = "SELECT has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE') AS allowed";
    if !watcher.query(allowed, &[])?.one()?.bool("allowed")? {
        let reason = "the role may not call pg_create_restore_point: grant it EXECUTE, as deploy/postgres/writer.sql does";
        return Err(Refused { reason: reason.into(), warn: true });
    }
    let rows = watcher.query("SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'template0' ORDER BY datname", &[])?;
    let mut names = rows.iter().map(|row| row.get("datname").map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
    // Whose turn it is, where there are too many. The connection string's own always: there the role may write a restore point, since what a
    // role may execute is said in each database for itself.
    let own = watcher.query("SELECT current_database() AS name", &[])?.one()?.get("name")?.to_owned();
    names.sort_by_key(|name| (*name != own, rank(seed, name, "", "")));
    let mut sessions: Vec<Session> = names
        .into_iter()
        .enumerate()
        .map(|(index, database)| {
            let connection = if index < MAX_DATABASES {
                match open(&dsn.clone().with("dbname", &database)) {
                    Ok((connection, there)) if there == here => Ok(connection),
                    Ok(_) => Err("the connection string leads to another server for it".to_owned()),
                    Err(refused) => Err(refused.reason),
                }
            } else {
                Err(format!("{MAX_DATABASES} other databases had their turn"))
            };
            Session { database, connection }
        })
        .collect();
    sessions.reverse();
    let (name, lsn, snapshot, tries) = agree(backup, &mut sessions, &watcher)?;
    sessions.sort_by(|a, b| a.database.cmp(&b.database));
    // A restore point is written to disk when somebody commits, which on a quiet server may be nobody.
    watcher.execute("SELECT pg_current_xact_id()", &[])?;
    let begun = Instant::now();
    loop {
        let flushed: Lsn = watcher.query("SELECT pg_current_wal_flush_lsn() AS lsn", &[])?.one()?.parse("lsn")?;
        if flushed >= lsn {
            break;
        }
        if begun.elapsed() > FLUSH {
            return refused("the server did not write the restore point to disk");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let rows = watcher.query("SELECT substr(pg_walfile_name($1::pg_lsn), 1, 8) AS timeline", &[Some(&lsn.to_string())])?;
    let timeline = u32::from_str_radix(rows.one()?.get("timeline")?, 16).map_err(|_| PgError::protocol("a WAL file's name"))?;
    let point = Point { name, lsn, timeline: Timeline(timeline), snapshot, tries, own_wal: false };
    Ok(Moment { backup: backup.clone(), point, seed, sessions })
}

/// Whether nobody who is in doubt can have been committing: nobody is in doubt, or everybody who is goes on as before.
fn settled(snapshot: &Snapshot, watcher: &Connection) -> Result<bool, PgError> {
    if snapshot.xip.is_empty() {
        return Ok(true);
    }
    std::thread::sleep(COMMIT);
    let rows = watcher.query("SELECT pg_current_snapshot() AS snapshot", &[])?;
    let later: Snapshot = rows.one()?.get("snapshot")?.parse().map_err(|error| PgError::protocol(format!("{error}")))?;
    Ok(snapshot.xip.iter().all(|xid| later.xip.contains(xid)))
}

/// Tries until all sessions, the last of which writes the restore point, and one that looks after that, have one snapshot.
fn agree(backup: &BackupId, sessions: &mut [Session], watcher: &Connection) -> Result<(String, Lsn, Snapshot, u32), Refused> {
    for attempt in 1..=TRIES {
        let again = if attempt == 1 { "" } else { "ROLLBACK; " };
        if attempt % 10 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        let last_of_all = sessions.len().saturating_sub(1);
        if let Some(Err(why)) = sessions.last().map(|session| &session.connection) {
            return refused(why.clone());
        }
        let (mut seen, mut equal, mut written) = (None::<String>, true, None);
        for (number, session) in sessions.iter_mut().enumerate() {
            let Ok(connection) = &session.connection else { continue };
            let last = number == last_of_all;
            let name = point_name(backup, attempt);
            // The snapshot of a statement is taken before anything of it runs.
            let point = if last && equal { format!(", pg_create_restore_point('{name}') AS lsn") } else { String::new() };
            let sql = format!("{again}{BEGIN}; SELECT pg_current_snapshot() AS snapshot{point}");
            let answer = connection.simple(&sql).and_then(|rows| {
                let row = rows.one()?;
                let lsn: Option<Lsn> = if point.is_empty() { None } else { Some(row.parse("lsn")?) };
                Ok((row.get("snapshot")?.to_owned(), lsn))
            });
            match answer {
                Ok((snapshot, lsn)) => {
                    equal &= seen.as_ref().is_none_or(|seen| *seen == snapshot);
                    seen = Some(snapshot);
                    written = lsn.map(|lsn| (name, lsn));
                }
                // WAL that is minimal, for example: that will not get better.
                Err(error) if last && !matches!(error, PgError::Lost { .. }) => return Err(error.into()),
                Err(error) => {
                    session.connection = Err(error.to_string());
                    equal = false;
                }
            }
        }
        let after = watcher.query("SELECT pg_current_snapshot() AS snapshot", &[])?;
        let after = after.one()?.get("snapshot")?;
        if let (true, Some(seen), Some((name, lsn))) = (equal, seen, written)
            && seen == after
        {
            let snapshot: Snapshot = seen.parse().map_err(|error| PgError::protocol(format!("{error}")))?;
            if attempt <= CHOOSY && !settled(&snapshot, watcher)? {
                continue;
            }
            for session in sessions.iter_mut() {
                let marked = session.connection.as_ref().ok().map(|connection| connection.execute(SAVEPOINT, &[]));
                if let Some(Err(error)) = marked {
                    session.connection = Err(error.to_string());
                }
            }
            return Ok((name, lsn, snapshot, attempt));
        }
    }
    refused(format!("the server was too busy: in each of {TRIES} tries a transaction ended before it was known what was visible"))
}
