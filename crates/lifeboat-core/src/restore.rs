//! Planning a restore: what comes back, where to, how recovery ends; or why it cannot.

use jiff::Timestamp;
use serde::Serialize;

use crate::repository::Sha256;
use crate::repository::manifest::{CopyMethod, Manifest, State};
use crate::wal::{Lsn, Timeline};

/// Where recovery should end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// As late as the WAL goes.
    #[default]
    Latest,
    /// As soon as the copy is consistent.
    Immediate,
    /// At a time.
    Time(Timestamp),
    /// At a position.
    Lsn(Lsn),
    /// At a transaction.
    TransactionId(u64),
    /// At a restore point.
    Name(String),
}

/// What the restored server does with its archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveMode {
    /// It archives nothing until somebody turns that on (c087).
    #[default]
    Off,
    /// As the configuration that comes back says.
    Preserve,
}

/// What somebody wants restored.
#[derive(Debug, Clone, Default)]
pub struct RestoreRequest {
    /// Directory for the cluster.
    pub pgdata: Option<String>,
    /// Directory for the artifacts.
    pub artifacts: Option<String>,
    /// Other places for tablespaces: (OID or name, directory).
    pub tablespaces: Vec<(String, String)>,
    /// Where recovery ends.
    pub target: Target,
    /// Start the server and wait for its first query.
    pub start: bool,
    /// A degraded backup will do.
    pub accept_degraded: bool,
    /// What the server does with its archive.
    pub archive_mode: ArchiveMode,
}

/// Why a restore cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestorePlanError {
    /// Nothing was asked for.
    #[error("plan restore: neither a data directory nor a directory for artifacts is given")]
    Nothing,
    /// The backup has no copy of the database.
    #[error("plan restore: backup {0} has no copy of a database")]
    NoDatabase(String),
    /// The backup has no artifacts.
    #[error("plan restore: backup {0} has no artifacts")]
    NoArtifacts(String),
    /// Pages were damaged when it was taken.
    #[error("plan restore: backup {id} is degraded: {bad} damaged pages were copied")]
    Degraded {
        /// The backup.
        id: String,
        /// Damaged pages.
        bad: u64,
    },
    /// The target is not in reach of this backup.
    #[error("plan restore: {target} cannot be reached from backup {id}: {reason}")]
    Unreachable {
        /// The backup.
        id: String,
        /// The target, in words.
        target: String,
        /// Why, and what can be.
        reason: String,
    },
    /// A tablespace that the backup does not have.
    #[error("plan restore: backup {id} has no tablespace {tablespace}")]
    NoTablespace {
        /// The backup.
        id: String,
        /// What was given.
        tablespace: String,
    },
}

/// A tablespace and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedTablespace {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: Option<String>,
    /// Where it was.
    pub from: String,
    /// Where it goes.
    pub to: String,
}

/// What happens to the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabasePlan {
    /// How it was copied.
    pub copy: CopyMethod,
    /// The server's version.
    pub version_num: Option<u32>,
    /// Where it goes.
    pub pgdata: String,
    /// Tablespaces.
    pub tablespaces: Vec<PlannedTablespace>,
    /// Where recovery ends.
    pub target: Target,
    /// Consistent from here on (physical copies).
    pub consistent_at: Option<Timestamp>,
    /// The same as a position.
    pub stop_lsn: Option<Lsn>,
    /// The timeline it begins on.
    pub timeline: Option<Timeline>,
    /// Settings for `postgresql.auto.conf`.
    pub settings: Vec<(String, String)>,
    /// Start the server.
    pub start: bool,
}

/// What happens to the artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArtifactsPlan {
    /// Where they go.
    pub directory: String,
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A restore, as it will be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestorePlan {
    /// The backup.
    pub backup: String,
    /// Digest of its manifest: the plan is for these bytes.
    pub manifest: Sha256,
    /// Taken with findings.
    pub degraded: bool,
    /// The database.
    pub database: Option<DatabasePlan>,
    /// The artifacts.
    pub artifacts: Option<ArtifactsPlan>,
    /// Files to write.
    pub files: u64,
    /// Bytes to write.
    pub bytes: u64,
    /// Bytes to read.
    pub stored_bytes: u64,
    /// What happens, in order, in words.
    pub steps: Vec<String>,
    /// What to know before.
    pub warnings: Vec<String>,
}

impl RestorePlan {
    /// The plan's digest: SHA-256 of its JSON. Approvals sign it.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(&serde_json::to_vec(self).expect("a plan has text keys only"))
    }
}

/// Plans a restore of a backup whose signature was verified.
pub fn plan(manifest: &Manifest, digest: Sha256, request: &RestoreRequest) -> Result<RestorePlan, RestorePlanError> {
    let id = manifest.id.to_string();
    if request.pgdata.is_none() && request.artifacts.is_none() {
        return Err(RestorePlanError::Nothing);
    }
    if manifest.state == State::Degraded && request.pgdata.is_some() && !request.accept_degraded {
        let bad = manifest.postgres.as_ref().and_then(|p| p.physical.as_ref()).map_or(0, |p| p.checksums.bad);
        return Err(RestorePlanError::Degraded { id, bad });
    }
    let mut plan = RestorePlan {
        backup: id.clone(),
        manifest: digest,
        degraded: manifest.state == State::Degraded,
        database: None,
        artifacts: None,
        files: 0,
        bytes: 0,
        stored_bytes: 0,
        steps: vec![format!("verify the signature of {id} and every part of it that is read")],
        warnings: manifest.warnings.clone(),
    };
    if let Some(pgdata) = &request.pgdata {
        plan_database(manifest, request, pgdata, &mut plan)?;
    }
    if let Some(directory) = &request.artifacts {
        let artifacts = manifest.artifacts.as_ref().ok_or(RestorePlanError::NoArtifacts(id))?;
        plan.artifacts = Some(ArtifactsPlan { directory: directory.clone(), count: artifacts.count, bytes: artifacts.bytes });
        plan.files += artifacts.count;
        plan.bytes += artifacts.bytes;
        plan.stored_bytes += artifacts.bytes;
        plan.steps.push(format!("write {} artifacts to {directory}, each with its signature and digest verified", artifacts.count));
        if let Some(references) = artifacts.references.as_ref().filter(|r| r.missing_count > 0) {
            plan.warnings.push(format!("the database refers to {} artifacts that the backup does not have", references.missing_count));
        }
        if plan.database.is_some() && artifacts.references.is_some() && request.start {
            plan.steps.push("compare the artifacts with what the restored database refers to".into());
        }
    }
    Ok(plan)
}

fn plan_database(manifest: &Manifest, request: &RestoreRequest, pgdata: &str, plan: &mut RestorePlan) -> Result<(), RestorePlanError> {
    let id = manifest.id.to_string();
    let postgres = manifest.postgres.as_ref().filter(|p| p.copy != CopyMethod::Recorded).ok_or(RestorePlanError::NoDatabase(id.clone()))?;
    plan.files += manifest.files;
    plan.bytes += manifest.plain_bytes;
    plan.stored_bytes += manifest.stored_bytes;
    let mut database = DatabasePlan {
        copy: postgres.copy,
        version_num: postgres.version_num,
        pgdata: pgdata.to_owned(),
        tablespaces: Vec::new(),
        target: request.target.clone(),
        consistent_at: None,
        stop_lsn: None,
        timeline: None,
        settings: Vec::new(),
        start: request.start,
    };
    let Some(physical) = &postgres.physical else {
        if request.target != Target::Latest {
            let reason = "it is a dump; only its own moment can be restored".to_owned();
            return Err(RestorePlanError::Unreachable { id, target: describe(&request.target), reason });
        }
        if let Some((tablespace, _)) = request.tablespaces.first() {
            return Err(RestorePlanError::NoTablespace { id, tablespace: tablespace.clone() });
        }
        plan.steps.push(format!("make a new cluster in {pgdata} with the locale, encoding and settings of the dump"));
        plan.steps.push("restore roles, then every database with pg_restore".into());
        plan.steps.push(if request.start { "leave the server running" } else { "stop the server" }.into());
        plan.database = Some(database);
        return Ok(());
    };
    check_target(manifest, &request.target)?;
    for (tablespace, _) in &request.tablespaces {
        let mut elsewhere = physical.tablespaces.iter().filter(|t| t.location.starts_with('/'));
        let known = elsewhere.any(|t| t.oid.to_string() == *tablespace || t.name.as_deref() == Some(tablespace));
        if !known {
            return Err(RestorePlanError::NoTablespace { id, tablespace: tablespace.clone() });
        }
    }
    for tablespace in &physical.tablespaces {
        let asked = |(name, _): &&(String, String)| *name == tablespace.oid.to_string() || tablespace.name.as_deref() == Some(name);
        let to = request.tablespaces.iter().find(asked).map_or(&tablespace.location, |(_, to)| to);
        database.tablespaces.push(PlannedTablespace {
            oid: tablespace.oid,
            name: tablespace.name.clone(),
            from: tablespace.location.clone(),
            to: to.clone(),
        });
    }
    database.consistent_at = Some(physical.consistent_at);
    database.stop_lsn = Some(physical.stop_lsn);
    database.timeline = Some(physical.timeline);
    database.settings = recovery_settings(request);
    plan.steps.push(format!("write {} files to {pgdata}, checking every extent; global/pg_control last", manifest.files));
    for tablespace in &database.tablespaces {
        plan.steps.push(format!(
            "put tablespace {} in {}",
            tablespace.name.as_deref().unwrap_or(&tablespace.oid.to_string()),
            tablespace.to
        ));
    }
    plan.steps.push("write recovery.signal and the recovery settings; keep backup_label".into());
    if request.archive_mode == ArchiveMode::Off {
        plan.warnings.push(
            "the restored server will not archive: archive_mode = off is set, so that a copy cannot write into the archive of the original"
                .into(),
        );
    }
    if request.start {
        plan.steps.push(format!("start the server, wait until it has recovered to {} and answers a query", describe(&request.target)));
    }
    if manifest.state == State::Degraded {
        plan.warnings.push(format!("{} damaged pages were copied", physical.checksums.bad));
    }
    plan.database = Some(database);
    Ok(())
}

pub(crate) fn describe(target: &Target) -> String {
    match target {
        Target::Latest => "the end of its WAL".into(),
        Target::Immediate => "the first consistent moment".into(),
        Target::Time(time) => format!("time {time}"),
        Target::Lsn(lsn) => format!("LSN {lsn}"),
        Target::TransactionId(xid) => format!("transaction {xid}"),
        Target::Name(name) => format!("restore point {name:?}"),
    }
}

/// Whether a target is in reach. A standalone backup has the WAL that makes it consistent and not
/// more: its one moment is where the copy ended (c078, c079).
fn check_target(manifest: &Manifest, target: &Target) -> Result<(), RestorePlanError> {
    let Some(physical) = manifest.postgres.as_ref().and_then(|p| p.physical.as_ref()) else { return Ok(()) };
    let before = match target {
        Target::Latest | Target::Immediate => return Ok(()),
        Target::Lsn(lsn) if *lsn == physical.stop_lsn => return Ok(()),
        Target::Lsn(lsn) => *lsn < physical.stop_lsn,
        Target::Time(time) => *time < physical.consistent_at,
        Target::TransactionId(_) | Target::Name(_) => false,
    };
    let where_it_ends = format!("LSN {} of {}", physical.stop_lsn, physical.consistent_at);
    let reason = if before {
        format!("it is consistent only from {where_it_ends} on; take an earlier backup")
    } else {
        format!("it is standalone and its WAL ends at {where_it_ends}; the nearest reachable moment is that one (--target-immediate)")
    };
    Err(RestorePlanError::Unreachable { id: manifest.id.to_string(), target: describe(target), reason })
}

/// Settings that recovery from a standalone backup needs. The restore command always says "not
/// there", which for WAL beyond the backup's own is the truth: recovery ends where the backup's WAL
/// ends and starts a new timeline, so that the restored server never writes under names that the
/// original uses.
fn recovery_settings(request: &RestoreRequest) -> Vec<(String, String)> {
    let mut settings = vec![("restore_command".to_owned(), "false # standalone backup: all WAL it needs is in pg_wal".to_owned())];
    // c076, c077: the branch that the backup is on, whatever else may be found.
    settings.push(("recovery_target_timeline".into(), "current".into()));
    match &request.target {
        Target::Latest => {}
        Target::Immediate => settings.push(("recovery_target".into(), "immediate".into())),
        Target::Lsn(lsn) => settings.push(("recovery_target_lsn".into(), lsn.to_string())),
        Target::Time(time) => settings.push(("recovery_target_time".into(), time.to_string())),
        Target::TransactionId(xid) => settings.push(("recovery_target_xid".into(), xid.to_string())),
        Target::Name(name) => settings.push(("recovery_target_name".into(), name.clone())),
    }
    // c075: the default would pause, and without hot standby shut down.
    settings.push(("recovery_target_action".into(), "promote".into()));
    if request.archive_mode == ArchiveMode::Off {
        settings.push(("archive_mode".into(), "off".into()));
    }
    settings
}

/// `postgresql.auto.conf` with these settings at its end. Recovery targets and commands of an
/// earlier recovery are commented out: two targets are an error, an old command would fetch the
/// wrong WAL (c074).
pub fn auto_conf(existing: &str, settings: &[(String, String)], comment: &str) -> String {
    const OURS: [&str; 11] = [
        "restore_command",
        "archive_cleanup_command",
        "recovery_end_command",
        "recovery_target",
        "recovery_target_name",
        "recovery_target_time",
        "recovery_target_xid",
        "recovery_target_lsn",
        "recovery_target_inclusive",
        "recovery_target_timeline",
        "recovery_target_action",
    ];
    let mut text = String::new();
    for line in existing.lines() {
        let name: String = line.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).collect();
        let name = name.to_ascii_lowercase();
        if OURS.contains(&name.as_str()) || settings.iter().any(|(key, _)| *key == name) {
            text.push_str("# before the restore: ");
        }
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(&format!("# {comment}\n"));
    for (key, value) in settings {
        text.push_str(&format!("{key} = '{}'\n", value.replace('\'', "''")));
    }
    text
}

/// `tablespace_map` for the places that tablespaces go to. PostgreSQL makes the links from it when
/// it starts (`read_tablespace_map` in `xlogrecovery.c`): one line `<oid> <path>` each, in which a
/// backslash escapes newline, carriage return and backslash.
pub fn tablespace_map(tablespaces: &[PlannedTablespace]) -> Vec<u8> {
    let mut map = Vec::new();
    // PostgreSQL makes no link for one in place (`allow_in_place_tablespaces`), and none may be made.
    for tablespace in tablespaces.iter().filter(|tablespace| tablespace.to.starts_with('/')) {
        map.extend_from_slice(format!("{} ", tablespace.oid).as_bytes());
        for byte in tablespace.to.bytes() {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                map.push(b'\\');
            }
            map.push(byte);
        }
        map.push(b'\n');
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let json = serde_json::json!({
            "format": 1, "id": "c-backup-20240315T120000Z", "repository": "00".repeat(16), "name": "c", "host": "h", "lifeboat": "0",
            "started": "2024-03-15T12:00:00Z", "finished": "2024-03-15T12:10:00Z", "kind": "full", "state": "healthy",
            "encryption": {"suite": "none"}, "packs": [], "tables": [], "files": 3, "plain_bytes": 10, "stored_bytes": 5,
            "postgres": {
                "copy": "local", "server": "s", "version_num": 150_000, "system_id": "7",
                "catalog_version": 1, "timeline": 1, "start_lsn": "0/2000028", "stop_lsn": "0/2000100", "consistent_at": "2024-03-15T12:09:00Z",
                "wal": {"segment_size": 16_777_216, "first": "000000010000000000000002", "last": "000000010000000000000002", "included": true},
                "checksums": {"enabled": true, "pages": 1, "bad": 0}, "block_size": 8192, "relation_segment_bytes": 1 << 30,
                "tablespaces": [{"oid": 16400, "name": "fast", "location": "/ts/fast"}]
            }
        });
        Manifest::decode(&serde_json::to_vec(&json).unwrap()).unwrap()
    }

    fn request() -> RestoreRequest {
        RestoreRequest { pgdata: Some("/new".into()), ..RestoreRequest::default() }
    }

    fn planned(manifest: &Manifest, request: &RestoreRequest) -> Result<RestorePlan, RestorePlanError> {
        plan(manifest, Sha256([0; 32]), request)
    }

    #[test]
    fn a_plan_is_a_value_with_a_digest_that_follows_every_part() {
        let first = planned(&manifest(), &request()).unwrap();
        assert_eq!(first.digest(), planned(&manifest(), &request()).unwrap().digest());
        let moved = RestoreRequest { tablespaces: vec![("fast".into(), "/other".into())], ..request() };
        let other = planned(&manifest(), &moved).unwrap();
        assert_ne!(first.digest(), other.digest());
        assert_eq!(other.database.unwrap().tablespaces[0].to, "/other");
        let unknown = RestoreRequest { tablespaces: vec![("slow".into(), "/x".into())], ..request() };
        assert!(matches!(planned(&manifest(), &unknown), Err(RestorePlanError::NoTablespace { .. })));
        assert_eq!(planned(&manifest(), &RestoreRequest::default()), Err(RestorePlanError::Nothing));
    }

    #[test]
    fn c020_a_degraded_backup_is_restored_only_when_accepted() {
        let mut degraded = manifest();
        degraded.state = State::Degraded;
        assert!(matches!(planned(&degraded, &request()), Err(RestorePlanError::Degraded { .. })));
        let accepted = RestoreRequest { accept_degraded: true, ..request() };
        assert!(planned(&degraded, &accepted).unwrap().degraded);
    }

    #[test]
    fn c075_the_action_at_the_target_is_explicit() {
        let settings = planned(&manifest(), &request()).unwrap().database.unwrap().settings;
        assert!(settings.contains(&("recovery_target_action".into(), "promote".into())));
    }

    #[test]
    fn c077_an_immediate_target_stays_on_the_backups_timeline() {
        let request = RestoreRequest { target: Target::Immediate, ..request() };
        let settings = planned(&manifest(), &request).unwrap().database.unwrap().settings;
        assert!(settings.contains(&("recovery_target_timeline".into(), "current".into())));
        assert!(settings.contains(&("recovery_target".into(), "immediate".into())));
    }

    #[test]
    fn c078_targets_out_of_reach_are_refused_with_what_is_in_reach() {
        let refused = |target| match planned(&manifest(), &RestoreRequest { target, ..request() }) {
            Err(RestorePlanError::Unreachable { reason, .. }) => reason,
            other => panic!("{other:?}"),
        };
        assert!(refused(Target::Time("2024-03-15T12:00:00Z".parse().unwrap())).contains("earlier backup"));
        assert!(refused(Target::Lsn(Lsn(1))).contains("0/2000100"));
        assert!(refused(Target::Time("2024-03-15T13:00:00Z".parse().unwrap())).contains("--target-immediate"));
        assert!(refused(Target::Name("x".into())).contains("standalone"));
        assert!(planned(&manifest(), &RestoreRequest { target: Target::Lsn(Lsn(0x200_0100)), ..request() }).is_ok());
    }

    #[test]
    fn c074_old_recovery_settings_are_commented_out() {
        let existing = "work_mem = '1MB'\nrecovery_target_time = 'x'\n  restore_command='cp'\nArchive_Mode = on\n";
        let text = auto_conf(existing, &[("archive_mode".into(), "off".into()), ("a".into(), "it's".into())], "restored");
        assert_eq!(
            text,
            "work_mem = '1MB'\n# before the restore: recovery_target_time = 'x'\n# before the restore:   restore_command='cp'\n# before the restore: Archive_Mode = on\n# restored\narchive_mode = 'off'\na = 'it''s'\n"
        );
    }

    #[test]
    fn c087_the_restored_server_archives_nothing_unless_asked_to() {
        let off = planned(&manifest(), &request()).unwrap();
        assert!(off.database.unwrap().settings.contains(&("archive_mode".into(), "off".into())));
        assert!(off.warnings.iter().any(|w| w.contains("archive")));
        let preserve = RestoreRequest { archive_mode: ArchiveMode::Preserve, ..request() };
        let settings = planned(&manifest(), &preserve).unwrap().database.unwrap().settings;
        assert!(!settings.iter().any(|(key, _)| key == "archive_mode"));
    }

    #[test]
    fn c003_the_tablespace_map_follows_the_new_places() {
        let map = tablespace_map(&[PlannedTablespace { oid: 1, name: None, from: "/a".into(), to: "/b\\c d".into() }]);
        assert_eq!(map, b"1 /b\\\\c d\n");
        let in_place = PlannedTablespace { oid: 1, name: None, from: "pg_tblspc/1".into(), to: "pg_tblspc/1".into() };
        assert_eq!(tablespace_map(&[in_place]), b"");
    }
}
