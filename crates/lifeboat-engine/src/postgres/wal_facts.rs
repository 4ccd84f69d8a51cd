//! What a server says of its WAL: position, archiver, slots, synchronous standbys. Reads, never changes.

use lifeboat_core::wal::status::{Archiver, ServerWal, Slot, Standby};
use lifeboat_core::wal::{Lsn, SystemId, Timeline};

use super::{Connection, PgError};

/// Everything of [`ServerWal`]; what the role may not see is `None` there.
///
/// # Errors
/// Only where the connection breaks or the server answers nonsense.
pub fn read(connection: &Connection) -> Result<ServerWal, PgError> {
    // Times as text that jiff reads, whatever the role's DateStyle and time zone.
    let rows = connection.query(
        "SELECT current_setting('server_version_num') AS version_num, system_identifier, timeline_id, pg_is_in_recovery() AS recovering, \
         CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END AS position, \
         to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS now \
         FROM pg_control_system(), pg_control_checkpoint()",
        &[],
    )?;
    let row = rows.one()?;
    let in_recovery = row.bool("recovering")?;
    let position = row.parse_opt::<Lsn>("position")?.unwrap_or_default();
    let timeline = match in_recovery {
        // The control file has the timeline of the last checkpoint; right after a promotion that is the old one.
        false => current_timeline(connection)?.unwrap_or(Timeline(row.parse("timeline_id")?)),
        true => Timeline(row.parse("timeline_id")?),
    };
    let settings = settings(connection)?;
    let setting = |name: &str| settings.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let number = |name: &str| setting(name).and_then(|text| text.parse::<i64>().ok());
    Ok(ServerWal {
        version_num: row.parse("version_num")?,
        system_id: row.parse::<SystemId>("system_identifier")?,
        timeline,
        in_recovery,
        standby: in_recovery.then(|| standby(connection)).transpose()?,
        position,
        now: row.parse("now")?,
        wal_level: setting("wal_level").unwrap_or_default().to_owned(),
        archive_mode: setting("archive_mode").unwrap_or("off").to_owned(),
        archiver_set: setting("archive_command").map(|command| {
            let library = setting("archive_library").unwrap_or_default();
            !library.is_empty() || !matches!(command, "" | "(disabled)")
        }),
        archive_timeout_seconds: number("archive_timeout").and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(0),
        archiver: archiver(connection)?,
        ready: count(connection, "SELECT count(*) AS n FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")?,
        slots: slots(connection)?,
        // In MB; -1 is no limit.
        max_slot_wal_keep_bytes: number("max_slot_wal_keep_size").and_then(|mb| u64::try_from(mb).ok()).map(|mb| mb << 20),
        synchronous_standby_names: setting("synchronous_standby_names").unwrap_or_default().to_owned(),
        synchronous_now: synchronous_now(connection)?,
        pg_wal_bytes: count(connection, "SELECT coalesce(sum(size), 0)::bigint AS n FROM pg_ls_waldir()")?,
    })
}

/// How a standby stands to its primary. A role that may not see what its receiver does is told that there is one (manual section 28.2.5).
///
/// # Errors
/// As [`read`].
pub fn standby(connection: &Connection) -> Result<Standby, PgError> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE coalesce(status, 'streaming') = 'streaming') AS streams, \
         to_char(pg_last_xact_replay_timestamp() {TIME}) AS replayed"
    );
    let rows = connection.query(&sql, &[])?;
    let row = rows.one()?;
    Ok(Standby { streams: row.bool("streams")?, replayed: row.parse_opt("replayed")? })
}

/// The timeline in the name of the segment that is written now (a server in recovery has none).
fn current_timeline(connection: &Connection) -> Result<Option<Timeline>, PgError> {
    let rows = connection.query("SELECT pg_walfile_name(pg_current_wal_lsn()) AS name", &[])?;
    let row = rows.one()?;
    Ok(row.get("name")?.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).map(Timeline))
}

fn settings(connection: &Connection) -> Result<Vec<(String, String)>, PgError> {
    let names = "{wal_level,archive_mode,archive_command,archive_library,archive_timeout,max_slot_wal_keep_size,synchronous_standby_names}";
    let rows = connection.query("SELECT name, setting FROM pg_settings WHERE name = ANY ($1::text[])", &[Some(names)])?;
    let mut settings = Vec::new();
    for row in rows.iter() {
        if let Some(setting) = row.get_opt("setting")? {
            settings.push((row.get("name")?.to_owned(), setting.to_owned()));
        }
    }
    Ok(settings)
}

const TIME: &str = "AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'";

fn archiver(connection: &Connection) -> Result<Option<Archiver>, PgError> {
    let sql = format!(
        "SELECT last_archived_wal, to_char(last_archived_time {TIME}) AS archived, last_failed_wal, \
         to_char(last_failed_time {TIME}) AS failed, failed_count FROM pg_stat_archiver"
    );
    let Some(rows) = super::facts::optional(connection, &sql)? else { return Ok(None) };
    let row = rows.one()?;
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let archiver = Archiver {
        last_archived: owned(row.get_opt("last_archived_wal")?),
        last_archived_time: row.parse_opt("archived")?,
        last_failed: owned(row.get_opt("last_failed_wal")?),
        last_failed_time: row.parse_opt("failed")?,
        failed_count: row.parse("failed_count")?,
    };
    Ok((archiver.last_archived.is_some() || archiver.last_failed.is_some()).then_some(archiver))
}

/// A number that the role may not be allowed to ask for; `None` then.
fn count(connection: &Connection, sql: &str) -> Result<Option<u64>, PgError> {
    let Some(rows) = super::facts::optional(connection, sql)? else { return Ok(None) };
    rows.one()?.parse("n").map(Some)
}

fn slots(connection: &Connection) -> Result<Vec<Slot>, PgError> {
    let sql = "SELECT slot_name, slot_type = 'physical' AS physical, active, wal_status, restart_lsn, safe_wal_size \
               FROM pg_replication_slots WHERE NOT temporary ORDER BY slot_name";
    let rows = connection.query(sql, &[])?;
    rows.iter()
        .map(|row| {
            Ok(Slot {
                name: row.get("slot_name")?.to_owned(),
                physical: row.bool("physical")?,
                active: row.bool("active")?,
                wal_status: row.get_opt("wal_status")?.map(str::to_owned),
                restart_lsn: row.parse_opt("restart_lsn")?,
                // Negative once it is too late.
                safe_wal_bytes: row.parse_opt::<i64>("safe_wal_size")?.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            })
        })
        .collect()
}

fn synchronous_now(connection: &Connection) -> Result<Vec<String>, PgError> {
    let sql = "SELECT application_name FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming' ORDER BY 1";
    let Some(rows) = super::facts::optional(connection, sql)? else { return Ok(Vec::new()) };
    rows.iter().map(|row| Ok(row.get("application_name")?.to_owned())).collect()
}
