//! What a server says about itself: everything that a backup's manifest, `doctor` and a restore want to know.
//!
//! Only reads. What the role may not see, or the version does not have, is `None`, never an error: superusers see
//! all, `pg_read_all_settings` shows the paths, and the `pg_control_*` functions are open to everybody.

use std::collections::BTreeMap;

use lifeboat_core::restore::REPLAY_SETTINGS;
use lifeboat_core::wal::{SegmentSize, SystemId, Timeline};

use super::backup_session::{Position, position};
use super::{Connection, PgError, Rows};

/// State of the page checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumState {
    /// Every page has one.
    On,
    /// No page needs to have one.
    Off,
    /// Being switched while the server runs (PostgreSQL 19): no page may be judged by its checksum.
    Changing,
}

/// A database, as far as a restore depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// OID: the directory below `base`.
    pub oid: u32,
    /// Name.
    pub name: String,
    /// Encoding, for example `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// Provider of the default collation: `c` for libc, `i` for ICU, `b` for builtin (from PostgreSQL 15).
    pub locale_provider: Option<String>,
    /// Version of the default collation when the database was made or last refreshed (from 15).
    pub collation_version: Option<String>,
    /// The version that the operating system has now (from 15).
    pub collation_version_now: Option<String>,
    /// Whether it can be connected to.
    pub allows_connections: bool,
    /// Whether it is a template.
    pub is_template: bool,
}

/// A collation of the connected database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collation {
    /// Schema and name.
    pub name: String,
    /// `c` for libc, `i` for ICU, `b` for builtin.
    pub provider: String,
    /// When it was made or last refreshed.
    pub version: String,
    /// What the operating system has now; `None` where it no longer knows the collation.
    pub version_now: Option<String>,
}

/// An extension of the connected database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Name.
    pub name: String,
    /// Installed version.
    pub version: String,
}

/// A tablespace beside `pg_default` and `pg_global`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// OID: the link below `pg_tblspc`.
    pub oid: u32,
    /// Name.
    pub name: String,
    /// Directory on the server; empty where it cannot be read.
    pub location: String,
}

/// The parameters that a server in recovery must have at least as high as the one that wrote the WAL (manual, "Hot Standby").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotStandbySettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// The cluster.
    pub system_id: SystemId,
    /// 150018 for 15.18.
    pub server_version: u32,
    /// `version()`: with platform and compiler.
    pub version_text: String,
    /// Catalog version: part of the name of a tablespace's directory `PG_<major>_<catalog version>`.
    pub catalog_version: u32,
    /// `pg_control_version`.
    pub control_version: u32,
    /// Page checksums.
    pub data_checksums: ChecksumState,
    /// Bytes per page.
    pub block_size_bytes: u32,
    /// Pages per file of a relation (131072 unless built otherwise).
    pub segment_size_blocks: u32,
    /// Size of WAL segments.
    pub wal_segment_size: SegmentSize,
    /// The server is a standby or recovering.
    pub in_recovery: bool,
    /// The timeline it writes, or as far as known replays.
    pub timeline: Timeline,
    /// `data_directory`.
    pub data_directory: Option<String>,
    /// `config_file`; may lie outside of the data directory.
    pub config_file: Option<String>,
    /// `hba_file`; likewise.
    pub hba_file: Option<String>,
    /// `ident_file`; likewise.
    pub ident_file: Option<String>,
    /// `wal_level`.
    pub wal_level: String,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `archive_mode`: `off`, `on` or `always`.
    pub archive_mode: String,
    /// `archive_timeout`; 0 is off.
    pub archive_timeout_seconds: u32,
    /// `max_replication_slots`.
    pub max_replication_slots: u32,
    /// What a server that replays this one's WAL must have.
    pub hot_standby: HotStandbySettings,
    /// `summarize_wal` (from PostgreSQL 17).
    pub summarize_wal: Option<bool>,
    /// `shared_preload_libraries`.
    pub shared_preload_libraries: Option<String>,
    /// Those of [`REPLAY_SETTINGS`] that this version has.
    pub replay: BTreeMap<String, String>,
    /// All databases.
    pub databases: Vec<DatabaseFacts>,
    /// Tablespaces beside the two that every cluster has.
    pub tablespaces: Vec<Tablespace>,
    /// Extensions of the connected database.
    pub extensions: Vec<Extension>,
    /// Versions that the operating system gives now to collations, by provider (`c`, `i`), of the connected database.
    pub collation_versions_now: BTreeMap<String, Vec<String>>,
    /// Collations of the connected database whose indexes may be wrong, because the version changed.
    pub changed_collations: Vec<Collation>,
}

/// Everything read from `pg_settings`; there values are in base units, other than `SHOW` prints them.
const SETTINGS: [&str; 20] = [
    "data_checksums",
    "block_size",
    "segment_size",
    "wal_segment_size",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "wal_level",
    "full_page_writes",
    "archive_mode",
    "archive_timeout",
    "max_replication_slots",
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "summarize_wal",
    "shared_preload_libraries",
];

struct Settings(BTreeMap<String, String>);

impl Settings {
    fn read(connection: &Connection) -> Result<Self, PgError> {
        let names = format!("{{{},{}}}", SETTINGS.join(","), REPLAY_SETTINGS.join(","));
        let rows = connection.query("SELECT name, setting FROM pg_settings WHERE name = ANY ($1::text[])", &[Some(&names)])?;
        let mut settings = BTreeMap::new();
        for row in rows.iter() {
            if let Some(setting) = row.get_opt("setting")? {
                settings.insert(row.get("name")?.to_owned(), setting.to_owned());
            }
        }
        Ok(Self(settings))
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn need(&self, name: &str) -> Result<&str, PgError> {
        self.0.get(name).map(String::as_str).ok_or_else(|| PgError::protocol(format!("no setting {name:?}")))
    }

    fn number(&self, name: &str) -> Result<u32, PgError> {
        let text = self.need(name)?;
        text.parse().map_err(|_| PgError::protocol(format!("the setting {name} is {text:?}")))
    }
}

impl ClusterFacts {
    /// Reads everything, with several small statements.
    ///
    /// # Errors
    /// Only where the connection breaks or the server answers nonsense.
    pub fn read(connection: &Connection) -> Result<Self, PgError> {
        let settings = Settings::read(connection)?;
        let version = connection.server_version();
        let rows = connection.query("SELECT version() AS version, catalog_version_no, pg_control_version FROM pg_control_system()", &[])?;
        let control = rows.one()?;
        let Position { system_id, timeline, in_recovery } = position(connection)?;
        let segment = settings.number("wal_segment_size")?;
        let collations = read_collations(connection)?;
        let mut collation_versions_now: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for collation in &collations {
            if let Some(now) = &collation.version_now {
                let versions = collation_versions_now.entry(collation.provider.clone()).or_default();
                if !versions.contains(now) {
                    versions.push(now.clone());
                }
            }
        }
        Ok(Self {
            system_id,
            server_version: version,
            version_text: control.get("version")?.to_owned(),
            catalog_version: control.parse("catalog_version_no")?,
            control_version: control.parse("pg_control_version")?,
            data_checksums: match settings.need("data_checksums")? {
                "on" => ChecksumState::On,
                "off" => ChecksumState::Off,
                _ => ChecksumState::Changing,
            },
            block_size_bytes: settings.number("block_size")?,
            segment_size_blocks: settings.number("segment_size")?,
            wal_segment_size: SegmentSize::new(segment).map_err(|error| PgError::protocol(error.to_string()))?,
            in_recovery,
            timeline,
            data_directory: settings.get("data_directory"),
            config_file: settings.get("config_file"),
            hba_file: settings.get("hba_file"),
            ident_file: settings.get("ident_file"),
            wal_level: settings.need("wal_level")?.to_owned(),
            full_page_writes: settings.need("full_page_writes")? == "on",
            archive_mode: settings.need("archive_mode")?.to_owned(),
            archive_timeout_seconds: settings.number("archive_timeout")?,
            max_replication_slots: settings.number("max_replication_slots")?,
            hot_standby: HotStandbySettings {
                max_connections: settings.number("max_connections")?,
                max_worker_processes: settings.number("max_worker_processes")?,
                max_wal_senders: settings.number("max_wal_senders")?,
                max_prepared_transactions: settings.number("max_prepared_transactions")?,
                max_locks_per_transaction: settings.number("max_locks_per_transaction")?,
            },
            summarize_wal: settings.get("summarize_wal").map(|setting| setting == "on"),
            shared_preload_libraries: settings.get("shared_preload_libraries"),
            replay: REPLAY_SETTINGS.into_iter().filter_map(|name| Some((name.to_owned(), settings.get(name)?))).collect(),
            databases: read_databases(connection)?,
            tablespaces: read_tablespaces(connection)?,
            extensions: read_extensions(connection)?,
            collation_versions_now,
            changed_collations: collations
                .into_iter()
                .filter(|collation| collation.version_now.as_ref() != Some(&collation.version))
                .collect(),
        })
    }
}

/// Rows of what may be forbidden or broken on this server (a locale that the system no longer has); `None` then.
pub(super) fn optional(connection: &Connection, sql: &str) -> Result<Option<Rows>, PgError> {
    match connection.query(sql, &[]) {
        Ok(rows) => Ok(Some(rows)),
        Err(PgError::Sql { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn owned(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}

fn read_databases(connection: &Connection) -> Result<Vec<DatabaseFacts>, PgError> {
    let old = "NULL::text AS provider, NULL::text AS version, NULL::text AS version_now";
    let new = "datlocprovider::text AS provider, datcollversion AS version, pg_database_collation_actual_version(oid) AS version_now";
    let select = |versions: &str| {
        format!(
            "SELECT oid, datname, pg_encoding_to_char(encoding) AS encoding, datcollate, datctype, datallowconn, datistemplate, {versions} \
             FROM pg_database ORDER BY datname"
        )
    };
    let with_versions = if connection.server_version() >= 150_000 { optional(connection, &select(new))? } else { None };
    let rows = match with_versions {
        Some(rows) => rows,
        None => connection.query(&select(old), &[])?,
    };
    rows.iter()
        .map(|row| {
            Ok(DatabaseFacts {
                oid: row.parse("oid")?,
                name: row.get("datname")?.to_owned(),
                encoding: row.get("encoding")?.to_owned(),
                collate: row.get("datcollate")?.to_owned(),
                ctype: row.get("datctype")?.to_owned(),
                locale_provider: owned(row.get_opt("provider")?),
                collation_version: owned(row.get_opt("version")?),
                collation_version_now: owned(row.get_opt("version_now")?),
                allows_connections: row.bool("datallowconn")?,
                is_template: row.bool("datistemplate")?,
            })
        })
        .collect()
}

fn read_tablespaces(connection: &Connection) -> Result<Vec<Tablespace>, PgError> {
    let sql = "SELECT oid, spcname, coalesce(pg_tablespace_location(oid), '') AS location FROM pg_tablespace \
               WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";
    let rows = connection.query(sql, &[])?;
    rows.iter()
        .map(|row| {
            Ok(Tablespace { oid: row.parse("oid")?, name: row.get("spcname")?.to_owned(), location: row.get("location")?.to_owned() })
        })
        .collect()
}

fn read_extensions(connection: &Connection) -> Result<Vec<Extension>, PgError> {
    let rows = connection.query("SELECT extname, extversion FROM pg_extension ORDER BY extname", &[])?;
    rows.iter().map(|row| Ok(Extension { name: row.get("extname")?.to_owned(), version: row.get("extversion")?.to_owned() })).collect()
}

/// Only collations for which PostgreSQL tracks a version.
fn read_collations(connection: &Connection) -> Result<Vec<Collation>, PgError> {
    let sql = "SELECT n.nspname || '.' || c.collname AS name, c.collprovider::text AS provider, c.collversion AS version, \
               pg_collation_actual_version(c.oid) AS version_now \
               FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.collversion IS NOT NULL ORDER BY 1";
    let Some(rows) = optional(connection, sql)? else { return Ok(Vec::new()) };
    rows.iter()
        .map(|row| {
            Ok(Collation {
                name: row.get("name")?.to_owned(),
                provider: row.get("provider")?.to_owned(),
                version: row.get("version")?.to_owned(),
                version_now: owned(row.get_opt("version_now")?),
            })
        })
        .collect()
}
