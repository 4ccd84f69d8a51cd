//! An online backup of local files: the SQL session between `pg_backup_start` and `pg_backup_stop`.
//!
//! PostgreSQL aborts the backup when the session ends, so a value here owns its connection, and dropping it
//! without [`BackupSession::stop`] is how to abort. Must not copy files, and must not decide which.

use lifeboat_core::wal::{Lsn, SystemId, Timeline};

use super::libpq::Notice;
use super::{Connection, OLDEST_SERVER_VERSION, PgError};

/// How to start.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Shown in `backup_label`; control characters become spaces.
    pub label: String,
    /// Checkpoint at once, instead of spread over `checkpoint_completion_target`.
    pub fast: bool,
    /// Hold the WAL since before the start with a temporary replication slot in the same session.
    pub hold_wal: bool,
}

/// Whether the server keeps the WAL that the backup needs until our session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalHold {
    /// By this temporary slot.
    Slot(String),
    /// It does not: the WAL must come from the archive, or be fast.
    NotHeld {
        /// Why, for the report.
        reason: String,
    },
}

impl WalHold {
    pub(super) fn not_asked() -> Self {
        Self::NotHeld { reason: "not asked for".to_owned() }
    }
}

/// Where the backup began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedBackup {
    /// WAL is needed from here (the checkpoint's redo position).
    pub start_lsn: Lsn,
    /// The timeline at the start.
    pub timeline: Timeline,
    /// The server is a standby.
    pub in_recovery: bool,
    /// The cluster.
    pub system_id: SystemId,
    /// Whether the server holds the WAL since the start for us.
    pub wal_hold: WalHold,
}

/// Where the backup ended, and the files that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedBackup {
    /// Consistent once WAL up to here is replayed.
    pub stop_lsn: Lsn,
    /// The exact bytes for `backup_label`: without this file a restored cluster starts from the wrong checkpoint and is silently corrupt.
    pub backup_label: Vec<u8>,
    /// The exact bytes for `tablespace_map`; empty where there are no tablespaces.
    pub tablespace_map: Vec<u8>,
    /// The slot of [`StartedBackup::wal_hold`] was still there, and its WAL with it.
    pub wal_still_held: bool,
    /// Messages of the server since the start, for example that archiving is off.
    pub notices: Vec<Notice>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) system_id: SystemId,
    pub(super) timeline: Timeline,
    pub(super) in_recovery: bool,
}

/// A running online backup.
#[derive(Debug)]
pub struct BackupSession {
    connection: Connection,
    started: StartedBackup,
}

impl BackupSession {
    /// Starts the backup on a connection that is for nothing else; returns after the checkpoint.
    ///
    /// # Errors
    /// [`PgError::Unsupported`] for a server before 13 and for a session borrowed from a pooler, [`PgError::Sql`]
    /// where the role may not call the backup functions, [`PgError::ClusterChanged`] where a standby's last restartpoint is on another
    /// timeline than it replays.
    pub fn start(connection: Connection, options: &SessionOptions) -> Result<Self, PgError> {
        let version = connection.server_version();
        if version < OLDEST_SERVER_VERSION {
            return Err(PgError::Unsupported { reason: format!("version {version} is older than PostgreSQL 13") });
        }
        if !connection.backend_pid_is_real()? {
            // The session would outlive us in the pool, and the backup with it.
            return Err(PgError::Unsupported { reason: "the connection goes through a pooler; connect to the server itself".to_owned() });
        }
        // Before the start: what the server removes between start and slot is lost (correctness line 57).
        let wal_hold = if options.hold_wal { hold_wal(&connection) } else { WalHold::not_asked() };
        let before = position(&connection)?;
        let sql = if version >= 150_000 {
            "SELECT pg_backup_start($1::text, $2::boolean) AS lsn"
        } else {
            "SELECT pg_start_backup($1::text, $2::boolean, false) AS lsn"
        };
        let fast = if options.fast { "true" } else { "false" };
        let start_lsn = connection.query(sql, &[Some(&clean_label(&options.label)), Some(fast)])?.one()?.parse("lsn")?;
        let Position { system_id, timeline, in_recovery } = unchanged(before, position(&connection)?)?;
        if in_recovery {
            // Said before anything is copied; the label says it for certain.
            let rows = connection.query("SELECT timeline_id FROM pg_control_checkpoint()", &[])?;
            one_timeline(Timeline(rows.one()?.parse("timeline_id")?), timeline)?;
        }
        Ok(Self { connection, started: StartedBackup { start_lsn, timeline, in_recovery, system_id, wal_hold } })
    }

    /// Where it began.
    pub fn started(&self) -> &StartedBackup {
        &self.started
    }

    /// The session, for reading and to check from time to time that it is alive. A statement that fails here drops
    /// the slot that holds WAL (PostgreSQL ends temporary slots on every error), so use another one for trials.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Ends the backup. With `wait_for_archive` the server first waits, without limit, for the archiving of the WAL (where it archives).
    /// Gives the connection back because the slot that holds WAL lives as long as it.
    ///
    /// # Errors
    /// [`PgError::ClusterChanged`] where the server was promoted or changed its timeline since the start (correctness line 38).
    pub fn stop(self, wait_for_archive: bool) -> Result<(StoppedBackup, Connection), PgError> {
        let Self { connection, started } = self;
        let before = Position { system_id: started.system_id, timeline: started.timeline, in_recovery: started.in_recovery };
        let before = unchanged(before, position(&connection)?)?;
        let wal_still_held = match &started.wal_hold {
            WalHold::Slot(slot) => slot_holds(&connection, slot)?,
            WalHold::NotHeld { .. } => false,
        };
        let function =
            if connection.server_version() >= 150_000 { "pg_backup_stop($1::boolean)" } else { "pg_stop_backup(false, $1::boolean)" };
        // As bytes in the server's own encoding, which is what the server would write: a path in the map need not be UTF-8.
        let sql = format!(
            "SELECT lsn, encode(convert_to(labelfile, getdatabaseencoding()), 'hex') AS label, \
             encode(convert_to(coalesce(spcmapfile, ''), getdatabaseencoding()), 'hex') AS map FROM {function}"
        );
        let rows = connection.query(&sql, &[Some(if wait_for_archive { "true" } else { "false" })])?;
        let row = rows.one()?;
        let bytes = |column| hex::decode(row.get(column)?).map_err(|_| PgError::protocol(format!("column {column:?} is not hexadecimal")));
        let stopped = StoppedBackup {
            stop_lsn: row.parse("lsn")?,
            backup_label: bytes("label")?,
            tablespace_map: bytes("map")?,
            wal_still_held,
            notices: connection.take_notices(),
        };
        check_label(&stopped.backup_label, &started)?;
        unchanged(before, position(&connection)?)?;
        Ok((stopped, connection))
    }
}

/// The timeline is that of the WAL being written: the one in `pg_control` lags behind until the first checkpoint after a promotion.
pub(super) fn position(connection: &Connection) -> Result<Position, PgError> {
    let rows = connection.query(
        "SELECT s.system_identifier, pg_is_in_recovery() AS in_recovery, \
         CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END AS written, \
         greatest(c.timeline_id, r.min_recovery_end_timeline, (SELECT received_tli FROM pg_stat_wal_receiver)) AS replayed \
         FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r",
        &[],
    )?;
    let row = rows.one()?;
    let timeline = match row.get_opt("written")? {
        Some(hexadecimal) => {
            u32::from_str_radix(hexadecimal, 16).map_err(|_| PgError::protocol(format!("the WAL file name begins with {hexadecimal:?}")))?
        }
        None => row.parse("replayed")?,
    };
    Ok(Position { system_id: row.parse("system_identifier")?, timeline: Timeline(timeline), in_recovery: row.bool("in_recovery")? })
}

fn unchanged(before: Position, now: Position) -> Result<Position, PgError> {
    let reason = if before.system_id != now.system_id {
        format!("the cluster was {} and is {}", before.system_id, now.system_id)
    } else if before.in_recovery && !now.in_recovery {
        "the standby was promoted".to_owned()
    } else if before != now {
        format!("the timeline was {} and is {}", before.timeline, now.timeline)
    } else {
        return Ok(now);
    };
    Err(PgError::ClusterChanged { reason })
}

/// A backup of a standby begins at its last restartpoint (`do_pg_backup_start` in `src/backend/access/transam/xlog.c`). Right behind a switch that is
/// still on the timeline before, and then the backup begins on one and ends on another: neither history has all that makes it consistent.
fn one_timeline(restartpoint: Timeline, replayed: Timeline) -> Result<(), PgError> {
    if restartpoint == replayed {
        return Ok(());
    }
    let reason = format!(
        "the standby's last restartpoint is on timeline {restartpoint}, and it replays timeline {replayed}: try again after the next restartpoint"
    );
    Err(PgError::ClusterChanged { reason })
}

/// The label must be of this very backup, and begin on the timeline that it is said to be of.
fn check_label(label: &[u8], started: &StartedBackup) -> Result<(), PgError> {
    let text = String::from_utf8_lossy(label);
    let start = text.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: ")).and_then(|rest| rest.split(' ').next());
    if let Some(timeline) = text.lines().find_map(|line| line.strip_prefix("START TIMELINE: ")?.trim().parse().ok()) {
        one_timeline(Timeline(timeline), started.timeline)?;
    }
    match start.and_then(|lsn| lsn.parse::<Lsn>().ok()) {
        Some(lsn) if lsn == started.start_lsn => Ok(()),
        Some(lsn) => Err(PgError::protocol(format!("a backup label for {lsn} after a start at {}", started.start_lsn))),
        None => Err(PgError::protocol("a backup label without start location")),
    }
}

fn hold_wal(connection: &Connection) -> WalHold {
    let slot = slot_name(connection);
    match connection.execute("SELECT pg_create_physical_replication_slot($1::text, true, true)", &[Some(&slot)]) {
        Ok(()) => WalHold::Slot(slot),
        Err(error) => WalHold::NotHeld { reason: error.to_string() },
    }
}

fn slot_holds(connection: &Connection, slot: &str) -> Result<bool, PgError> {
    // `lost` and, since it can become lost any moment, `unreserved` hold nothing (manual, pg_replication_slots).
    let sql = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1::name AND restart_lsn IS NOT NULL AND wal_status IN ('reserved', 'extended')";
    Ok(!connection.query(sql, &[Some(slot)])?.is_empty())
}

/// Unique on the server: two sessions do not share a process id, and the slot ends with its session.
pub(super) fn slot_name(connection: &Connection) -> String {
    format!("lifeboat_{}", connection.backend_pid().unsigned_abs())
}

/// PostgreSQL writes the label into `backup_label` as it is: a line break in it would forge further lines. It takes 1024 bytes at most.
pub(super) fn clean_label(label: &str) -> String {
    let mut clean = String::with_capacity(label.len());
    for c in label.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if clean.len() + c.len_utf8() > 1000 {
            break;
        }
        clean.push(c);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_forge_lines() {
        assert_eq!(clean_label("a\nSTART TIMELINE: 9\r"), "a START TIMELINE: 9 ");
        assert_eq!(clean_label(&"é".repeat(600)).len(), 1000);
    }

    #[test]
    fn c038_promotion_and_timeline_change_are_seen() {
        let at = |timeline, in_recovery| Position { system_id: SystemId(7), timeline: Timeline(timeline), in_recovery };
        assert!(unchanged(at(1, true), at(1, true)).is_ok());
        for (before, now) in [(at(1, true), at(2, false)), (at(1, true), at(2, true)), (at(1, false), at(2, false))] {
            assert!(matches!(unchanged(before, now), Err(PgError::ClusterChanged { .. })));
        }
        let other = Position { system_id: SystemId(8), ..at(1, false) };
        assert!(matches!(unchanged(at(1, false), other), Err(PgError::ClusterChanged { .. })));
    }

    #[test]
    fn c001_a_label_of_another_backup_is_refused() {
        let started = StartedBackup {
            start_lsn: Lsn(0x200_0028),
            timeline: Timeline(1),
            in_recovery: false,
            system_id: SystemId(7),
            wal_hold: WalHold::not_asked(),
        };
        assert!(check_label(b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n", &started).is_ok());
        assert!(check_label(b"START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\n", &started).is_err());
        assert!(check_label(b"", &started).is_err());
    }

    #[test]
    fn c038_a_backup_that_begins_on_another_timeline_than_it_is_of_is_refused() {
        let started = StartedBackup {
            start_lsn: Lsn(0x200_0028),
            timeline: Timeline(2),
            in_recovery: true,
            system_id: SystemId(7),
            wal_hold: WalHold::not_asked(),
        };
        let label = |timeline| format!("START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nSTART TIMELINE: {timeline}\n");
        assert!(check_label(label(2).as_bytes(), &started).is_ok());
        let refused = check_label(label(1).as_bytes(), &started).unwrap_err();
        assert!(matches!(refused, PgError::ClusterChanged { .. }));
        assert!(refused.to_string().ends_with("try again after the next restartpoint"), "{refused}");
        assert!(one_timeline(Timeline(2), Timeline(2)).is_ok() && one_timeline(Timeline(1), Timeline(2)).is_err());
    }
}
