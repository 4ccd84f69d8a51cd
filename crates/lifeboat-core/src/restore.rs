//! Planning a restore: what comes back, where to, how recovery ends; or why it cannot.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repository::manifest::{CopyMethod, Manifest, Physical, PostgresEntry, State};
use crate::repository::{FormatError, Sha256};
use crate::wal::catalog::{BackupPoint, Leg, Promise};
use crate::wal::target::{Choice, Located, RecoveryRequest, TimelineChoice};
use crate::wal::{Lsn, Timeline};

/// Where recovery should end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// Recovery with the WAL of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveRecovery {
    /// What was chosen for the target.
    pub choice: Choice,
    /// `restore_command`, whole: it carries [`Choice::bounds`] in the words of whoever answers it.
    pub restore_command: String,
}

/// What somebody wants restored.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// Directory for the cluster.
    pub pgdata: Option<String>,
    /// Directory for the artifacts.
    pub artifacts: Option<String>,
    /// Other places for tablespaces: (OID or name, directory).
    pub tablespaces: Vec<(String, String)>,
    /// Where recovery ends.
    pub target: Target,
    /// Whether what the target names is replayed as well.
    pub inclusive: bool,
    /// Along which history.
    pub timeline: TimelineChoice,
    /// With the backup's own WAL only, whatever the archive has.
    pub standalone: bool,
    /// The way through the archive, if there is an archive of this cluster.
    pub recovery: Option<ArchiveRecovery>,
    /// Start the server and wait for its first query.
    pub start: bool,
    /// A degraded backup will do.
    pub accept_degraded: bool,
    /// What the server does with its archive.
    pub archive_mode: ArchiveMode,
}

impl Default for RestoreRequest {
    fn default() -> Self {
        Self {
            pgdata: None,
            artifacts: None,
            tablespaces: Vec::new(),
            target: Target::default(),
            // As PostgreSQL has it.
            inclusive: true,
            timeline: TimelineChoice::default(),
            standalone: false,
            recovery: None,
            start: false,
            accept_degraded: false,
            archive_mode: ArchiveMode::default(),
        }
    }
}

impl RestoreRequest {
    /// The same as a question to the archive, from this backup or from whichever does.
    pub fn recovery_request(&self, backup: Option<String>) -> RecoveryRequest {
        RecoveryRequest { target: self.target.clone(), inclusive: self.inclusive, timeline: self.timeline, backup }
    }
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
    /// The way through the archive was chosen for another backup, or another state of this one.
    #[error("plan restore: recovery was planned from backup {chosen}, not from {id} as it is")]
    OtherBackup {
        /// The backup to restore.
        id: String,
        /// The backup of the choice.
        chosen: String,
    },
    /// A plan that somebody wrote, and not this program.
    #[error("check restore plan: it is not what this lifeboat plans for backup {0} and the directories and the target in it")]
    Altered(String),
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// How recovery goes through the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPlan {
    /// Along which timeline.
    pub timeline: Timeline,
    /// The parts of its history that are replayed, oldest first.
    pub legs: Vec<Leg>,
    /// The first byte of WAL that is needed.
    pub from: Lsn,
    /// Behind the last.
    pub to: Lsn,
    /// Bytes from the one to the other.
    pub wal_bytes: u64,
    /// The first byte that is not replayed.
    pub end: Lsn,
    /// The record that ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub located: Option<Located>,
    /// Whether what the target names is replayed as well.
    pub inclusive: bool,
    /// What must be reached before the archive may be said to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised: Option<Promise>,
}

/// What happens to the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Recovery with the WAL of an archive; without, the backup's own WAL is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryPlan>,
    /// Settings for `postgresql.auto.conf`.
    pub settings: Vec<(String, String)>,
    /// Start the server.
    pub start: bool,
}

impl DatabasePlan {
    /// How far recovery has to go. PostgreSQL takes the first file that it does not get for the end of WAL, and before 13 it did so even short
    /// of a target (c079, c080); from then on it insists on a target itself.
    pub fn promised(&self) -> Lsn {
        let stop = self.stop_lsn.unwrap_or_default();
        match &self.recovery {
            Some(recovery) if self.target == Target::Latest => recovery.end.max(stop),
            _ => stop,
        }
    }
}

/// What happens to the artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactsPlan {
    /// Where they go.
    pub directory: String,
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A restore, as it will be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
        Sha256::of(&self.document())
    }

    /// Its JSON, in one line: what is approved, and what then runs.
    pub fn document(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plan has text keys only")
    }

    /// The plan in a document.
    ///
    /// # Errors
    ///
    /// Anything that this plan would not be written as, byte for byte: then something in it was read as something else, or not at all.
    pub fn parse(document: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "restore plan";
        let plan: Self = serde_json::from_slice(document).map_err(|error| FormatError::malformed(WHAT, error.to_string()))?;
        match plan.document() == document {
            true => Ok(plan),
            false => Err(FormatError::malformed(WHAT, "written anew, it has other bytes")),
        }
    }
}

/// Whether a plan is one that this program makes: for this manifest, whose signature was verified, and for the directories, the target and
/// the way through the archive that stand in the plan. What it says of itself in words, its settings and its sizes are then true. The one thing
/// that can be anything is the restore command, which depends on the host.
///
/// # Errors
///
/// It is not: somebody wrote it, or another version of this program.
pub fn check(plan: &RestorePlan, manifest: &Manifest, digest: Sha256) -> Result<(), RestorePlanError> {
    let altered = || RestorePlanError::Altered(manifest.id.to_string());
    let mut request = request_of(plan, manifest).ok_or_else(altered)?;
    let mut made = self::plan(manifest, digest, &request)?;
    // Remarks about the way through the archive stand behind the manifest's own warnings; there may be any.
    let notes = plan.warnings.len().checked_sub(made.warnings.len()).ok_or_else(altered)?;
    if let Some(recovery) = request.recovery.as_mut().filter(|_| notes > 0) {
        let from = manifest.warnings.len();
        recovery.choice.notes = plan.warnings.get(from..from + notes).ok_or_else(altered)?.to_vec();
        made = self::plan(manifest, digest, &request)?;
    }
    if made == *plan { Ok(()) } else { Err(altered()) }
}

/// What must have been asked for to be given this plan.
fn request_of(plan: &RestorePlan, manifest: &Manifest) -> Option<RestoreRequest> {
    let artifacts = plan.artifacts.as_ref().map(|artifacts| artifacts.directory.clone());
    let mut request = RestoreRequest { artifacts, accept_degraded: true, ..RestoreRequest::default() };
    let Some(database) = &plan.database else { return Some(request) };
    let setting = |name: &str| database.settings.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let elsewhere = database.tablespaces.iter().filter(|tablespace| tablespace.from.starts_with('/'));
    request.pgdata = Some(database.pgdata.clone());
    request.tablespaces = elsewhere.map(|tablespace| (tablespace.oid.to_string(), tablespace.to.clone())).collect();
    request.target = database.target.clone();
    request.start = database.start;
    request.archive_mode = if setting("archive_mode") == Some("off") { ArchiveMode::Off } else { ArchiveMode::Preserve };
    request.standalone = database.recovery.is_none();
    if let Some(recovery) = &database.recovery {
        request.inclusive = recovery.inclusive;
        let system_id = manifest.postgres.as_ref()?.system_id?;
        let choice = Choice {
            backup: BackupPoint::of(manifest, system_id)?,
            timeline: recovery.timeline,
            legs: recovery.legs.clone(),
            from: recovery.from,
            to: recovery.to,
            // The rest of the bounds is in the words of the command.
            bounds: recovery.promised.into(),
            end: recovery.end,
            located: recovery.located.clone(),
            notes: Vec::new(),
        };
        request.recovery = Some(ArchiveRecovery { choice, restore_command: setting("restore_command")?.to_owned() });
    }
    Some(request)
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
        recovery: None,
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
    let recovery = request.recovery.as_ref().filter(|_| !request.standalone);
    match recovery {
        Some(recovery) => {
            let chosen = &recovery.choice.backup;
            if (&chosen.id, chosen.timeline, chosen.start_lsn, chosen.stop_lsn)
                != (&id, physical.timeline, physical.start_lsn, physical.stop_lsn)
            {
                return Err(RestorePlanError::OtherBackup { id, chosen: chosen.id.clone() });
            }
        }
        None => check_target(manifest, &request.target)?,
    }
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
    database.recovery = recovery.map(|recovery| recovery_plan(&recovery.choice, request));
    database.settings = match recovery {
        Some(recovery) => {
            archive_settings(recovery, request, physical.timeline, reads_ahead(postgres, physical, recovery, &request.target))
        }
        None => standalone_settings(request),
    };
    plan.steps.push(format!("write {} files to {pgdata}, checking every extent; global/pg_control last", manifest.files));
    for tablespace in &database.tablespaces {
        plan.steps.push(format!(
            "put tablespace {} in {}",
            tablespace.name.as_deref().unwrap_or(&tablespace.oid.to_string()),
            tablespace.to
        ));
    }
    plan.steps.push("write recovery.signal and the recovery settings; keep backup_label".into());
    if let Some(recovery) = &database.recovery {
        plan.steps.push(replay_in_words(recovery, &request.target));
        plan.warnings.extend(request.recovery.iter().flat_map(|recovery| recovery.choice.notes.iter().cloned()));
        plan.warnings.extend(replay_advice(&postgres.settings));
        // c093
        plan.warnings.push(
            "the restored server begins a new timeline: take a backup of it before you rely on its WAL; the WAL of the old timelines stays as it is"
                .into(),
        );
    }
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

/// A target in words.
pub fn describe(target: &Target) -> String {
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
        // A drill's: its own WAL goes on to the moment whose truth is known.
        Target::Name(name) if manifest.truth().is_some_and(|truth| truth.own_wal && truth.point == *name) => return Ok(()),
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
fn standalone_settings(request: &RestoreRequest) -> Vec<(String, String)> {
    let mut settings = vec![("restore_command".to_owned(), "false # standalone backup: all WAL it needs is in pg_wal".to_owned())];
    // c076, c077: the branch that the backup is on, whatever else may be found.
    settings.push(("recovery_target_timeline".into(), "current".into()));
    settings.extend(target_setting(request));
    settings.extend(closing_settings(request));
    settings
}

/// Whether replay, reading ahead, may ask for a segment behind the one in which it is to stop. From 15 on it decodes `wal_decode_buffer_size` bytes
/// in advance (`src/backend/access/transam/xlogprefetcher.c`), over what a WAL switch leaves empty as well, and a segment that cannot be fetched then
/// ends it, needed or not: whoever stops before damaged WAL would not get there.
fn reads_ahead(postgres: &PostgresEntry, physical: &Physical, recovery: &ArchiveRecovery, target: &Target) -> bool {
    if postgres.version_num.is_none_or(|version| version < 150_000) {
        return false;
    }
    let Some(located) = recovery.choice.located.as_ref() else {
        // With the backup's own end as the target there is little to replay, and behind every backup its server switches.
        return target == &Target::Immediate;
    };
    if located.switched {
        return true;
    }
    let size = physical.wal.segment_size.bytes();
    let left = size - located.end.0 % size;
    // 512 kB by default; `pg_settings` counts it in bytes.
    let ahead = postgres.settings.get("wal_decode_buffer_size").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0).max(512 << 10);
    left % size <= ahead
}

/// Settings for recovery with the WAL of an archive. `recovery_prefetch` stays as it is, unless it [`reads_ahead`] too far: PostgreSQL's `try` reads
/// ahead what replay is about to need, which on local disks costs nothing that would not be read anyway.
fn archive_settings(recovery: &ArchiveRecovery, request: &RestoreRequest, own: Timeline, too_far: bool) -> Vec<(String, String)> {
    let mut settings = vec![("restore_command".to_owned(), recovery.restore_command.clone())];
    settings.extend(target_setting(request));
    if matches!(request.target, Target::Time(_) | Target::Lsn(_) | Target::TransactionId(_)) {
        settings.push(("recovery_target_inclusive".into(), request.inclusive.to_string()));
    }
    // c076: the number that was planned with, not whatever is the latest by then.
    let timeline = recovery.choice.timeline;
    settings.push(("recovery_target_timeline".into(), if timeline == own { "current".into() } else { timeline.to_string() }));
    if too_far {
        settings.push(("recovery_prefetch".into(), "off".into()));
    }
    settings.extend(closing_settings(request));
    settings
}

fn target_setting(request: &RestoreRequest) -> Option<(String, String)> {
    let (name, value) = match &request.target {
        Target::Latest => return None,
        Target::Immediate => ("recovery_target", "immediate".into()),
        Target::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
        Target::Time(time) => ("recovery_target_time", target_time(*time, request.inclusive)),
        Target::TransactionId(xid) => ("recovery_target_xid", xid.to_string()),
        Target::Name(name) => ("recovery_target_name", name.clone()),
    };
    Some((name.into(), value))
}

/// A time as the setting takes it: when PostgreSQL reads its configuration it does not know abbreviations of time zones yet, `Z` among them
/// (seen of 15: "invalid value for parameter"); an offset it knows.
fn target_time(time: Timestamp, inclusive: bool) -> String {
    whole_microseconds(time, inclusive).strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// The time in the microseconds that PostgreSQL counts in. It would round to the nearest, and with that might take in or leave out a commit
/// that the time does not; down, or up where the time itself is excluded, says the same of every commit.
fn whole_microseconds(time: Timestamp, inclusive: bool) -> Timestamp {
    let nanoseconds = time.as_nanosecond();
    let down = nanoseconds.div_euclid(1000);
    let microseconds = if inclusive || nanoseconds.rem_euclid(1000) == 0 { down } else { down + 1 };
    Timestamp::from_nanosecond(microseconds * 1000).unwrap_or(time)
}

fn closing_settings(request: &RestoreRequest) -> Vec<(String, String)> {
    // c075: the default would pause, and without hot standby shut down.
    let mut settings = vec![("recovery_target_action".to_owned(), "promote".to_owned())];
    if request.archive_mode == ArchiveMode::Off {
        settings.push(("archive_mode".into(), "off".into()));
    }
    settings
}

fn recovery_plan(choice: &Choice, request: &RestoreRequest) -> RecoveryPlan {
    RecoveryPlan {
        timeline: choice.timeline,
        legs: choice.legs.clone(),
        from: choice.from,
        to: choice.to,
        wal_bytes: choice.to.0.saturating_sub(choice.from.0),
        end: choice.end,
        located: choice.located.clone(),
        inclusive: request.inclusive,
        promised: choice.bounds.promise,
    }
}

fn replay_in_words(recovery: &RecoveryPlan, target: &Target) -> String {
    let leg = |leg: &Leg| match leg.to {
        Some(to) => format!("timeline {} from {} to {to}", leg.timeline, leg.from),
        None => format!("timeline {} from {}", leg.timeline, leg.from),
    };
    let legs = recovery.legs.iter().map(leg).collect::<Vec<_>>().join(", then ");
    let mut text = format!("replay WAL out of the archive, {legs}");
    let stop = match (target, recovery.inclusive) {
        (Target::Latest, _) => return format!("{text}: everything that is there now, and what follows it by then"),
        (Target::Immediate | Target::Name(_), _) => "stop at",
        (Target::Lsn(_) | Target::TransactionId(_), true) => "stop behind",
        (Target::Lsn(_) | Target::TransactionId(_), false) => "stop before",
        (Target::Time(_), true) => "stop before the first transaction that ended later than",
        (Target::Time(_), false) => "stop before the first transaction that ended not earlier than",
    };
    text.push_str(&format!("; {stop} {}, which is at LSN {}", describe(target), recovery.end));
    text
}

/// Settings that say how fast a server replays WAL. A backup records them, in base units as `pg_settings` has them.
pub const REPLAY_SETTINGS: [&str; 6] = [
    "maintenance_io_concurrency",
    "max_wal_size",
    "recovery_min_apply_delay",
    "recovery_prefetch",
    "shared_buffers",
    "wal_decode_buffer_size",
];

/// Settings of the original that come back and make replay slow, each with its reason. Times and sizes as `SHOW` or `pg_settings` print
/// them; what cannot be read is left alone.
fn replay_advice(settings: &std::collections::BTreeMap<String, String>) -> Vec<String> {
    let get = |name: &str| settings.get(name).map(|value| value.trim());
    let mut advice = Vec::new();
    // `pg_settings` counts in blocks of 8 kB.
    if let Some(text) = get("shared_buffers")
        && let Some(kilobytes) = kilobytes(text, 8)
        && kilobytes < 128 << 10
    {
        advice.push(format!(
            "shared_buffers is {} kB: replay writes out pages that it needs again soon; give it 128 MB or more until recovery is done",
            kilobytes
        ));
    }
    if let Some(text) = get("recovery_prefetch").filter(|text| matches!(text.to_ascii_lowercase().as_str(), "off" | "no" | "false" | "0")) {
        advice.push(format!("recovery_prefetch is {text}: replay waits for every page that it reads; try is PostgreSQL's default"));
    }
    if get("maintenance_io_concurrency").and_then(|text| text.parse::<u32>().ok()) == Some(0) {
        advice.push("maintenance_io_concurrency is 0: replay reads nothing ahead, whatever recovery_prefetch says".into());
    }
    if let Some(text) = get("max_wal_size")
        && let Some(kilobytes) = kilobytes(text, 1 << 10)
        && kilobytes < 1 << 20
    {
        advice.push(format!("max_wal_size is {} MB: replay stops for a restartpoint each time it has read that much", kilobytes >> 10));
    }
    let positive = |text: &&str| text.trim_start_matches(['0', '.']).starts_with(|c: char| c.is_ascii_digit());
    if let Some(text) = get("recovery_min_apply_delay").filter(positive) {
        let unit = if text.ends_with(|c: char| c.is_ascii_digit()) { " ms" } else { "" };
        advice.push(format!("recovery_min_apply_delay is {text}{unit}: replay waits until every commit is that old"));
    }
    advice
}

/// A size with PostgreSQL's unit behind it; without one, in `unit` kilobytes.
fn kilobytes(text: &str, unit: u64) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit = match suffix.trim() {
        "" => unit,
        "B" => return Some(number >> 10),
        "kB" => 1,
        "MB" => 1 << 10,
        "GB" => 1 << 20,
        "TB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
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
        text.push_str(&format!("{key} = '{}'\n", in_quotes(value)));
    }
    text
}

/// A value as it stands between quotes in a configuration file, where a backslash begins an escape and a line ends everything
/// (`GUC_STRING` and `DeescapeQuotedString`, `src/backend/utils/misc/guc-file.l`).
fn in_quotes(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n")
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

    /// As `DeescapeQuotedString` does: `''` and what a backslash stands before, by its escapes; no octal number is ever written.
    fn read_by_postgresql(quoted: &str) -> String {
        let (mut text, mut characters) = (String::new(), quoted.strip_prefix('\'').unwrap().strip_suffix('\'').unwrap().chars());
        while let Some(character) = characters.next() {
            text.push(match character {
                '\n' => panic!("the value ends with its line: {quoted:?}"),
                '\'' => characters.next().filter(|next| *next == '\'').expect("a quote in the middle is doubled"),
                '\\' => match characters.next().expect("something is escaped") {
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                },
                other => other,
            });
        }
        text
    }

    #[test]
    fn a_setting_is_read_as_it_was_meant_whatever_is_in_it() {
        let command = "'/srv/it'\\''s here/lifeboat' wal fetch %f %p";
        for value in [r"release\build-7", "it's", r"\'", command, r"a\\b\", "two\nlines", ""] {
            let text = auto_conf("", &[("a".into(), value.into())], "restored");
            let quoted = text.strip_prefix("# restored\na = ").and_then(|rest| rest.strip_suffix('\n')).unwrap();
            assert_eq!(read_by_postgresql(quoted), value, "{text}");
        }
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

    fn with_archive(target: Target, timeline: u32) -> RestoreRequest {
        let backup = crate::wal::catalog::BackupPoint::of(&manifest(), crate::wal::SystemId(7)).unwrap();
        let leg = |timeline, from, to| Leg { timeline: Timeline(timeline), from: Lsn(from), to: Some(Lsn(to)) };
        let choice = Choice {
            backup,
            timeline: Timeline(timeline),
            legs: vec![leg(1, 0x200_0028, 0x300_0000), leg(timeline, 0x300_0000, 0x500_0060)],
            from: Lsn(0x200_0028),
            to: Lsn(0x500_0060),
            bounds: Some(Promise { timeline: Timeline(timeline), lsn: Lsn(0x500_0060) }).into(),
            end: Lsn(0x500_0028),
            located: None,
            notes: vec!["a note".into()],
        };
        let restore_command = "fetch %f %p".to_owned();
        RestoreRequest { target, recovery: Some(ArchiveRecovery { choice, restore_command }), ..request() }
    }

    fn settings(request: &RestoreRequest) -> Vec<(String, String)> {
        planned(&manifest(), request).unwrap().database.unwrap().settings
    }

    #[test]
    fn c076_recovery_from_the_archive_follows_the_planned_timeline_by_number() {
        let time: Timestamp = "2024-03-15T13:00:00.0000005Z".parse().unwrap();
        let request = with_archive(Target::Time(time), 3);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            settings(&request),
            [
                pair("restore_command", "fetch %f %p"),
                pair("recovery_target_time", "2024-03-15 13:00:00.000000+00"),
                pair("recovery_target_inclusive", "true"),
                pair("recovery_target_timeline", "3"),
                pair("recovery_target_action", "promote"),
                pair("archive_mode", "off"),
            ]
        );
        let exclusive = RestoreRequest { inclusive: false, archive_mode: ArchiveMode::Preserve, ..request.clone() };
        let found = settings(&exclusive);
        assert!(found.contains(&pair("recovery_target_time", "2024-03-15 13:00:00.000001+00")));
        assert!(found.contains(&pair("recovery_target_inclusive", "false")));
        assert!(!found.iter().any(|(key, _)| key == "archive_mode"));
        assert!(settings(&with_archive(Target::Latest, 1)).contains(&pair("recovery_target_timeline", "current")));
        assert!(!settings(&with_archive(Target::Latest, 1)).iter().any(|(key, _)| key.starts_with("recovery_target_inc")));
        let plan = planned(&manifest(), &request).unwrap();
        let step = "replay WAL out of the archive, timeline 1 from 0/2000028 to 0/3000000, then timeline 3 from 0/3000000 to 0/5000060; stop before the first transaction that ended later than time 2024-03-15T13:00:00.0000005Z, which is at LSN 0/5000028";
        assert!(plan.steps.iter().any(|found| found == step), "{:?}", plan.steps);
        assert!(plan.warnings.contains(&"a note".to_owned()));
        assert_ne!(plan.digest(), planned(&manifest(), &exclusive).unwrap().digest());
        assert_eq!(plan.database.unwrap().recovery.unwrap().wal_bytes, 0x500_0060 - 0x200_0028);
    }

    #[test]
    fn c078_replay_does_not_ask_for_wal_that_it_need_not_have() {
        let with = |version: u32, end: u64, switched: bool| {
            let mut manifest = manifest();
            manifest.postgres.as_mut().unwrap().version_num = Some(version);
            let mut request = with_archive(Target::Lsn(Lsn(end - 0x20)), 1);
            let choice = &mut request.recovery.as_mut().unwrap().choice;
            choice.located = Some(Located { timeline: Timeline(1), lsn: Lsn(end - 0x20), end: Lsn(end), time: None, switched });
            let settings = planned(&manifest, &request).unwrap().database.unwrap().settings;
            !settings.contains(&("recovery_prefetch".into(), "off".into()))
        };
        let reads_ahead = |version, end| with(version, end, false);
        let size = manifest().postgres.unwrap().physical.unwrap().wal.segment_size.bytes();
        let segment = 5 * size;
        assert!(!with(150_000, segment - (2 << 20), true), "nothing but a switch is between it and the next segment");
        let mut at_once = manifest();
        at_once.postgres.as_mut().unwrap().version_num = Some(180_000);
        let settings = planned(&at_once, &with_archive(Target::Immediate, 1)).unwrap().database.unwrap().settings;
        assert!(settings.contains(&("recovery_prefetch".into(), "off".into())));
        assert!(reads_ahead(150_000, segment - (512 << 10) - 1), "the next segment is out of its reach");
        for end in [segment - (512 << 10), segment - 8, segment] {
            assert!(!reads_ahead(150_000, end), "{end:X}");
            assert!(reads_ahead(140_000, end), "14 does not read ahead, and does not know the setting");
        }
    }

    #[test]
    fn c079_c080_recovery_to_the_latest_has_to_go_as_far_as_the_archive_does() {
        let promised = |request: &RestoreRequest| planned(&manifest(), request).unwrap().database.unwrap().promised();
        let stop = manifest().postgres.unwrap().physical.unwrap().stop_lsn;
        let latest = with_archive(Target::Latest, 1);
        let end = latest.recovery.as_ref().unwrap().choice.end;
        assert!(end > stop);
        assert_eq!(promised(&latest), end);
        assert_eq!(promised(&with_archive(Target::Lsn(end), 1)), stop, "PostgreSQL ends with an error where it does not get to it");
        assert_eq!(promised(&request()), stop);
        let mut old = with_archive(Target::Latest, 1);
        old.recovery.as_mut().unwrap().choice.end = Lsn(stop.0 - 1);
        assert_eq!(promised(&old), stop, "an archive that ends before the backup does");
    }

    #[test]
    fn a_plan_is_read_back_byte_for_byte_or_not_at_all() {
        let everywhere = RestoreRequest { tablespaces: vec![("fast".into(), "/other".into())], start: true, ..request() };
        let requests = [
            request(),
            everywhere,
            RestoreRequest { target: Target::Immediate, archive_mode: ArchiveMode::Preserve, ..request() },
            with_archive(Target::Latest, 1),
            with_archive(Target::Time("2024-03-15T13:00:00.0000005Z".parse().unwrap()), 3),
            RestoreRequest { inclusive: false, ..with_archive(Target::TransactionId(7), 3) },
            with_archive(Target::Name("before deploy".into()), 3),
        ];
        for request in requests {
            let plan = planned(&manifest(), &request).unwrap();
            let document = plan.document();
            assert_eq!(Sha256::of(&document), plan.digest());
            assert_eq!(RestorePlan::parse(&document).unwrap(), plan);
            assert_eq!(check(&plan, &manifest(), Sha256([0; 32])), Ok(()), "{request:?}");
            // Blanks, another member, a member twice: the same plan to some reader, and other bytes.
            let text = String::from_utf8(document).unwrap();
            for other in [format!("{text}\n"), text.replacen('{', "{\"more\":1,", 1), text.replacen('{', "{ ", 1), text[1..].to_owned()] {
                assert!(RestorePlan::parse(other.as_bytes()).is_err(), "{other}");
            }
        }
    }

    #[test]
    fn a_plan_that_says_one_thing_and_does_another_is_refused() {
        let honest = planned(&manifest(), &with_archive(Target::Latest, 3)).unwrap();
        let altered = |change: &dyn Fn(&mut RestorePlan)| {
            let mut plan = honest.clone();
            change(&mut plan);
            check(&plan, &manifest(), Sha256([0; 32]))
        };
        assert_eq!(altered(&|_| ()), Ok(()));
        let database = |plan: &mut RestorePlan, change: &dyn Fn(&mut DatabasePlan)| change(plan.database.as_mut().unwrap());
        assert!(altered(&|plan| database(plan, &|database| database.pgdata = "/prod".into())).is_err());
        assert!(altered(&|plan| database(plan, &|database| database.start = true)).is_err());
        assert!(
            altered(&|plan| database(plan, &|database| database.settings.push(("archive_command".into(), "rm -rf /".into())))).is_err()
        );
        assert!(altered(&|plan| database(plan, &|database| drop(database.settings.remove(3)))).is_err());
        assert!(altered(&|plan| database(plan, &|database| database.tablespaces[0].to = "/elsewhere".into())).is_err());
        assert!(altered(&|plan| plan.steps[0] = "look, but do not touch".into()).is_err());
        assert!(altered(&|plan| drop(plan.warnings.pop())).is_err());
        assert!(altered(&|plan| plan.bytes = 1).is_err());
        assert!(altered(&|plan| plan.backup = "c-backup-20240314T120000Z".into()).is_err());
        assert!(altered(&|plan| plan.degraded = true).is_err());
        // Of another manifest.
        assert!(check(&honest, &manifest(), Sha256([1; 32])).is_err());
    }

    #[test]
    fn c093_a_new_timeline_wants_a_new_backup() {
        let plan = planned(&manifest(), &with_archive(Target::Latest, 1)).unwrap();
        assert!(plan.warnings.iter().any(|warning| warning.contains("take a backup")));
    }

    #[test]
    fn the_way_through_the_archive_is_for_this_backup_and_no_other() {
        let mut other = with_archive(Target::Latest, 1);
        other.recovery.as_mut().unwrap().choice.backup.stop_lsn = Lsn(5);
        assert!(matches!(planned(&manifest(), &other), Err(RestorePlanError::OtherBackup { .. })));
        // Alone, the backup is what it was.
        let alone = RestoreRequest { standalone: true, ..other };
        assert_eq!(planned(&manifest(), &alone), planned(&manifest(), &request()));
    }

    #[test]
    fn c089_settings_that_slow_replay_down_are_told() {
        let mut slow = manifest();
        let set = |settings: &[(&str, &str)]| settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        slow.postgres.as_mut().unwrap().settings = set(&[
            ("shared_buffers", "1024"),
            ("recovery_prefetch", "off"),
            ("maintenance_io_concurrency", "0"),
            ("max_wal_size", "256MB"),
            ("recovery_min_apply_delay", "1h"),
        ]);
        let told = |manifest: &Manifest, request: &RestoreRequest| planned(manifest, request).unwrap().warnings;
        let warnings = told(&slow, &with_archive(Target::Latest, 1));
        for part in [
            "shared_buffers is 8192 kB",
            "recovery_prefetch is off",
            "maintenance_io_concurrency is 0",
            "max_wal_size is 256 MB",
            "recovery_min_apply_delay is 1h",
        ] {
            assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
        }
        slow.postgres.as_mut().unwrap().settings = set(&[
            ("shared_buffers", "128MB"),
            ("recovery_prefetch", "try"),
            ("maintenance_io_concurrency", "10"),
            ("max_wal_size", "1024"),
            ("recovery_min_apply_delay", "0ms"),
        ]);
        assert_eq!(told(&slow, &with_archive(Target::Latest, 1)), told(&manifest(), &with_archive(Target::Latest, 1)));
    }

    #[test]
    fn c003_the_tablespace_map_follows_the_new_places() {
        let map = tablespace_map(&[PlannedTablespace { oid: 1, name: None, from: "/a".into(), to: "/b\\c d".into() }]);
        assert_eq!(map, b"1 /b\\\\c d\n");
        let in_place = PlannedTablespace { oid: 1, name: None, from: "pg_tblspc/1".into(), to: "pg_tblspc/1".into() };
        assert_eq!(tablespace_map(&[in_place]), b"");
    }
}
