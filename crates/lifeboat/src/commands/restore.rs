//! `lifeboat restore`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_core::policy::{Operation, PlanFacts, TargetFacts};
use lifeboat_core::repository::Sha256;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::manifest::{CopyMethod, KeyPurpose, Manifest};
use lifeboat_core::restore::{self as planning, ArchiveMode, ArchiveRecovery, RestorePlan, RestoreRequest, Target};
use lifeboat_core::verify::{Finding, FindingKind, verdict};
use lifeboat_core::wal::catalog::{Archive, BackupPoint, Held};
use lifeboat_core::wal::fetch::Bounds;
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::target::{Choice, TimelineChoice};
use lifeboat_core::wal::{Lsn, Segment, Timeline, segments_between};
use lifeboat_engine::artifacts::{ArtifactSet, Reader, restore_set};
use lifeboat_engine::opened_backup::{self, VerifiedBackup};
use lifeboat_engine::postgres::Dsn;
use lifeboat_engine::progress::Progress as _;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::restore::{self, RestoreSettings};
use lifeboat_engine::retention;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::store::{Note, NoteKind};
use lifeboat_engine::verify::artifact_finding;
use lifeboat_engine::wal::{self, Cluster, WalReader, locate, survey};
use serde::Serialize;

use super::approval;
use super::policy::facts;
use crate::cli::{Archiving, Restore};
use crate::config::{Origin, Settings};
use crate::failure::{EXIT_UNREACHABLE, Failure};
use crate::gate::{self, Permit, Question};
use crate::output::{self, Output};
use crate::progress::Shown;
use crate::session;

/// What a restore came to.
#[derive(Serialize, Default)]
struct Measured {
    /// Until every file was durable.
    files_seconds: Option<f64>,
    /// Until the server answered its first query.
    first_query_seconds: Option<f64>,
    /// Until artifacts and references were verified as well.
    verified_seconds: f64,
    /// Where recovery ended.
    reached_lsn: Option<String>,
    /// The moment that came back; `None`: WAL of the archive is still to be replayed.
    recovery_point: Option<jiff::Timestamp>,
    dsn: Option<String>,
    artifacts: u64,
    /// What the archive promised: the end of the last record that recovery had to replay.
    promised_lsn: Option<String>,
}

pub(super) fn run(restore: &Restore, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    if let Some(plan) = restore.approved {
        return approved(restore, plan, settings, out);
    }
    let repository = session::read_repository(settings)?;
    if restore.dry_run && settings.trust.is_empty() {
        // A plan needs no secret; public keys are none, but there may be none here.
        output::warn("signatures were not checked, and the WAL archive was not looked at: no trusted key is configured (trust.keys)");
        let id = find(restore, settings, &repository)?;
        let manifest = opened_backup::peek(&repository, &id)?;
        let bytes = lifeboat_core::repository::to_json(&manifest);
        let plan = planning::plan(&manifest, Sha256::of(&bytes), &request(restore)?)?;
        let question = Question::new(Operation::Restore).dry_run(true).to(target(&plan, settings));
        gate::allow(settings, Some(&repository), question)?;
        return print_plan(&plan, out);
    }
    let (backup, plan, probe) = planned(restore, settings, &repository)?;
    let nobody = PlanFacts::unapproved(plan.digest());
    let question = question(&plan, &backup, settings).by_plan(nobody);
    if restore.dry_run {
        gate::allow(settings, Some(&repository), question.dry_run(true))?;
        return print_plan(&plan, out);
    }
    let permit = gate::ask(settings, Some(&repository), question)?;
    let done = execute(restore, settings, &repository, &backup, &plan, probe, out, &permit, &|| Ok(()));
    permit.end(settings, done)
}

/// The backup that was typed.
fn find(restore: &Restore, settings: &Settings, repository: &Repository) -> Result<BackupId, Failure> {
    let wanted = |manifest: &Manifest| {
        let database = manifest.postgres.as_ref().is_some_and(|postgres| postgres.copy != CopyMethod::Recorded);
        (restore.pgdata.is_none() || database) && (restore.artifacts.is_none() || manifest.artifacts.is_some())
    };
    // A dump has one moment: it is taken where there is nothing else, or where it was named.
    if word(restore) == "latest" && request(restore)?.target != Target::Latest {
        let found = session::find_backup(repository, settings, "latest", |manifest| wanted(manifest) && is_physical(manifest));
        if restore.pgdata.is_some() && found.is_ok() {
            return found;
        }
    }
    session::find_backup(repository, settings, word(restore), wanted)
}

fn is_physical(manifest: &Manifest) -> bool {
    manifest.postgres.as_ref().is_some_and(|postgres| postgres.physical.is_some())
}

/// The physical backup from which "the latest" is recovered, though a dump is newer than it: where the WAL behind it goes on behind the dump.
fn beyond_dump(
    restore: &Restore,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    dump: &VerifiedBackup,
) -> Result<Option<VerifiedBackup>, Failure> {
    let is_dump = dump.manifest.postgres.as_ref().is_some_and(|postgres| postgres.copy == CopyMethod::Logical);
    if !is_dump || word(restore) != "latest" || restore.pgdata.is_none() || restore.standalone {
        return Ok(None);
    }
    let wanted = |manifest: &Manifest| is_physical(manifest) && (restore.artifacts.is_none() || manifest.artifacts.is_some());
    let Ok(id) = session::find_backup(repository, settings, "latest", wanted) else { return Ok(None) };
    let backup = opened_backup::open(repository, &id, trust)?;
    let Some(system_id) = backup.manifest.postgres.as_ref().and_then(|postgres| postgres.system_id) else { return Ok(None) };
    let Some(survey) = survey::survey(repository, system_id, None, trust)? else { return Ok(None) };
    Ok((survey.last_commit.max(survey.last_piece) > Some(dump.manifest.started)).then_some(backup))
}

fn word(restore: &Restore) -> &str {
    restore.backup.as_deref().unwrap_or("latest")
}

/// The plan of what was typed, for places that it can be written to; and a file of the archive to try the restore command with.
pub(super) fn planned(
    restore: &Restore,
    settings: &Settings,
    repository: &Repository,
) -> Result<(VerifiedBackup, RestorePlan, Option<String>), Failure> {
    let mut request = request(restore)?;
    let id = find(restore, settings, repository)?;
    let trust = session::trust(settings)?;
    let mut backup = opened_backup::open(repository, &id, &trust)?;
    if let Some(physical) = beyond_dump(restore, settings, repository, &trust, &backup)? {
        backup = physical;
    }
    warn_if_expired(repository, &backup, &trust)?;
    let way = way(restore, settings, repository, &trust, &backup, &request)?;
    let mut probe = None;
    if let Some(way) = way {
        let id: BackupId =
            way.recovery.choice.backup.id.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list"))?;
        if id != backup.id {
            backup = opened_backup::open(repository, &id, &trust)?;
            warn_if_expired(repository, &backup, &trust)?;
        }
        request.recovery = Some(way.recovery);
        probe = Some(way.probe);
    }
    let plan = planning::plan(&backup.manifest, backup.digest, &request)?;
    restore::check_targets(&plan)?;
    Ok((backup, plan, probe))
}

/// Runs a plan that was approved: the very bytes. A plan that is made anew would be another one as soon as more WAL has arrived. So what is
/// looked at is whether the world still fits it.
fn approved(restore: &Restore, digest: Sha256, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    if settings.as_of.is_some() {
        return Err(Failure::usage("run an approved plan: whether it was used is not looked for in the past")
            .hint("lifeboat restore --approved DIGEST without --as-of"));
    }
    // Whether it was used the primary says; what is restored may come from anywhere.
    let deciding = session::open_repository(settings)?;
    let document = lifeboat_engine::approval::plan(&deciding, digest)?;
    let plan = RestorePlan::parse(&document)?;
    if let Some(option) = contradiction(restore, &plan)? {
        return Err(Failure::usage(format!("run plan {digest}: {option} says something else than the plan"))
            .hint(format!("lifeboat restore --approved {digest} runs it as it is; lifeboat approval show {digest} shows it")));
    }
    let known = approval::Known::of(settings)?;
    let now = jiff::Timestamp::now();
    let gathered = approval::gathered(&known, &deciding, Operation::Restore, digest, now)?;
    let asked = approval::approved(&gathered, digest)?;
    let repository = session::read_repository(settings)?;
    let trust = session::trust(settings)?;
    let id = plan.backup.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list"))?;
    let backup = opened_backup::open(&repository, &id, &trust)?;
    if backup.digest != plan.manifest {
        return Err(restore::RestoreError::OtherManifest(plan.backup).into());
    }
    planning::check(&plan, &backup.manifest, backup.digest)?;
    warn_if_expired(&repository, &backup, &trust)?;
    let probe = still_reached(restore, settings, &repository, &trust, &backup, &plan)?;
    restore::check_targets(&plan)?;
    let question = question(&plan, &backup, settings).by_plan(gathered.facts(digest));
    if restore.dry_run {
        gate::allow(settings, Some(&repository), question.dry_run(true))?;
        return print_plan(&plan, out);
    }
    let permit = gate::ask(settings, Some(&repository), question)?;
    let spend = || approval::spend(&deciding, &gathered, asked);
    let done = execute(restore, settings, &repository, &backup, &plan, probe, out, &permit, &spend);
    permit.end(settings, done)
}

/// What the policy is asked about a plan.
fn question(plan: &RestorePlan, backup: &VerifiedBackup, settings: &Settings) -> Question {
    Question::new(Operation::Restore).about(backup).to(target(plan, settings))
}

/// Where a plan goes, as a policy sees it.
fn target(plan: &RestorePlan, settings: &Settings) -> TargetFacts {
    let database = plan.database.as_ref();
    let tablespaces: Vec<&Path> =
        database.iter().flat_map(|database| &database.tablespaces).map(|tablespace| Path::new(&tablespace.to)).collect();
    facts::target(
        settings,
        database.map(|database| Path::new(&database.pgdata)),
        plan.artifacts.as_ref().map(|artifacts| Path::new(&artifacts.directory)),
        &tablespaces,
        database.map(|database| &database.target),
        database.is_some_and(|database| database.start),
        // A plan of a degraded backup is made only for somebody who accepts that.
        plan.degraded,
    )
}

/// What was typed beside the digest of an approved plan, and is not what stands in it: the same command line again, with the digest behind it,
/// is what people type.
fn contradiction(restore: &Restore, plan: &RestorePlan) -> Result<Option<&'static str>, Failure> {
    let typed = request(restore)?;
    let database = plan.database.as_ref();
    let recovery = database.and_then(|database| database.recovery.as_ref());
    let elsewhere = |typed: &Option<String>, planned: Option<&String>| typed.as_ref().is_some_and(|typed| Some(typed) != planned);
    let tablespaces = database.map_or(&[][..], |database| &database.tablespaces);
    let is_there = |(name, to): &(String, String)| {
        let named = tablespaces.iter().filter(|one| one.oid.to_string() == *name || one.name.as_deref() == Some(name));
        named.clone().count() > 0 && named.clone().all(|one| one.to == *to)
    };
    let keeps_archive = !database.is_some_and(|database| database.settings.iter().any(|(name, _)| name == "archive_mode"));
    let wrong = [
        ("the backup", restore.backup.as_deref().is_some_and(|named| named != "latest" && named != plan.backup)),
        ("--pgdata", elsewhere(&typed.pgdata, database.map(|database| &database.pgdata))),
        ("--artifacts", elsewhere(&typed.artifacts, plan.artifacts.as_ref().map(|artifacts| &artifacts.directory))),
        ("--tablespace", !typed.tablespaces.iter().all(is_there)),
        ("the target", typed.target != Target::Latest && database.is_none_or(|database| database.target != typed.target)),
        ("--exclusive", restore.exclusive && recovery.is_none_or(|recovery| recovery.inclusive)),
        (
            "--target-timeline",
            matches!(typed.timeline, TimelineChoice::Number(one) if recovery.is_none_or(|recovery| recovery.timeline != one)),
        ),
        ("--standalone", typed.standalone && recovery.is_some()),
        ("--start", typed.start && !database.is_some_and(|database| database.start)),
        ("--archive-mode", typed.archive_mode == ArchiveMode::Preserve && !keeps_archive),
    ];
    Ok(wrong.into_iter().find(|(_, is_wrong)| *is_wrong).map(|(option, _)| option))
}

/// Whether the archive still has all WAL that a plan goes by; a file of it to try the restore command with.
fn still_reached(
    restore: &Restore,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    backup: &VerifiedBackup,
    plan: &RestorePlan,
) -> Result<Option<String>, Failure> {
    let Some(recovery) = plan.database.as_ref().and_then(|database| database.recovery.as_ref()) else { return Ok(None) };
    let unreachable = |why: String| {
        Failure::new(EXIT_UNREACHABLE, format!("run plan {}: {why}", plan.digest()))
            .hint("lifeboat wal status shows what can be reached; ask for an approval of that: lifeboat approval request restore …")
    };
    let none = || unreachable("the repository has no WAL of the cluster any more".into());
    let system_id = backup.manifest.postgres.as_ref().and_then(|postgres| postgres.system_id).ok_or_else(none)?;
    let archive = wal::archive::load(repository, system_id, trust)?.ok_or_else(none)?;
    let path = archive.path(recovery.timeline).map_err(|error| unreachable(error.to_string()))?;
    // What makes the copy consistent came with it.
    let own = plan.database.as_ref().and_then(|database| database.stop_lsn).unwrap_or_default();
    let from = recovery.from.max(own.min(recovery.to));
    let reach = archive.reach(&path, from);
    if reach.to < recovery.to {
        return Err(unreachable(format!("it needs WAL up to {}, and the archive has it only up to {}", recovery.to, reach.to)));
    }
    let Some(probe) = probe(&archive, recovery.timeline, recovery.from, recovery.to) else { return Ok(None) };
    if archive.held(probe) == Held::Whole {
        let cluster = Cluster { system_id, segment_size: archive.segment_size() };
        let identities = session::identities(settings, restore.identity.as_ref())?;
        WalReader::new(repository, cluster, trust, identities).check_opens(WalFile::Segment(probe))?;
    }
    Ok(Some(probe.file_name(archive.segment_size())))
}

/// An expired backup restores as any other, as long as it is there.
fn warn_if_expired(repository: &Repository, backup: &VerifiedBackup, trust: &Trust) -> Result<(), Failure> {
    if let Some(expiry) = retention::standing_of(repository, backup, trust, jiff::Timestamp::now())?.expired {
        output::warn(&format!(
            "backup {} has expired, and may be pruned from {} on: lifeboat expire --undo {} keeps it",
            backup.id, expiry.prune_after, backup.id
        ));
    }
    Ok(())
}

/// Recovery through the archive, and a file of it to try the restore command with.
struct Way {
    recovery: ArchiveRecovery,
    probe: String,
}

/// The way through the WAL archive to what was asked for; `None`: the archive has nothing of this cluster, or is not wanted.
fn way(
    restore: &Restore,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    newest: &VerifiedBackup,
    request: &RestoreRequest,
) -> Result<Option<Way>, Failure> {
    let postgres = newest.manifest.postgres.as_ref().filter(|postgres| postgres.physical.is_some());
    let Some(system_id) = postgres.and_then(|postgres| postgres.system_id).filter(|_| request.pgdata.is_some() && !request.standalone)
    else {
        return Ok(None);
    };
    let Some(archive) = wal::archive::load(repository, system_id, trust)? else { return Ok(None) };
    let (backups, not_counted) = survey::backups(repository, system_id, trust)?;
    let explicit = word(restore) != "latest";
    for problem in not_counted.iter().filter(|_| !explicit).chain(archive.doubts()) {
        output::warn(problem);
    }
    let same_name = |id: &str| id.parse::<BackupId>().is_ok_and(|id| id.name() == newest.id.name());
    let backups: Vec<BackupPoint> = backups.into_iter().filter(|point| same_name(&point.id)).collect();
    let wanted = request.recovery_request(explicit.then(|| newest.id.to_string()));
    let cluster = Cluster { system_id, segment_size: archive.segment_size() };
    let reader = WalReader::new(repository, cluster, trust, session::identities(settings, restore.identity.as_ref())?);
    // "latest" passes over backups that have expired, unless nothing else leads there.
    let mut fresh = backups.clone();
    if !explicit {
        for point in &backups {
            let id: BackupId = point.id.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list"))?;
            let standing = retention::standing(repository.store(), &id, None, Some(trust), jiff::Timestamp::now())?;
            fresh.retain(|other| standing.expired.is_none() || other.id != point.id);
        }
    }
    let choice = match locate::choose(&reader, &archive, &fresh, &wanted, &std::env::temp_dir()) {
        Err(locate::LocateError::Unreachable(_)) if fresh.len() < backups.len() => {
            locate::choose(&reader, &archive, &backups, &wanted, &std::env::temp_dir())?
        }
        other => other?,
    };
    let Some(probe) = probe(&archive, choice.timeline, choice.from, choice.to) else {
        // Nothing on the way is in the archive: its own WAL is all there is.
        return Ok(None);
    };
    if !restore.dry_run && archive.held(probe) == Held::Whole {
        // A wrong identity fails before anything is written, not in the middle of recovery. (Of an open segment the pieces were read already.)
        reader.check_opens(WalFile::Segment(probe))?;
    }
    let restore_command = restore_command(restore, settings, repository, cluster, &choice)?;
    Ok(Some(Way { recovery: ArchiveRecovery { choice, restore_command }, probe: probe.file_name(archive.segment_size()) }))
}

/// A segment on the way that the archive has, best a whole one.
fn probe(archive: &Archive, timeline: Timeline, from: Lsn, to: Lsn) -> Option<Segment> {
    let path = archive.path(timeline).ok()?;
    let size = archive.segment_size();
    let there = || {
        let segments = segments_between(timeline, from, to, size);
        segments.filter_map(|segment| archive.source(&path, segment.start(size).max(from)))
    };
    there().find(|segment| archive.held(*segment) == Held::Whole).or_else(|| there().next())
}

/// What the restored server runs to get WAL: this program, with everything that it was told here.
fn restore_command(
    restore: &Restore,
    settings: &Settings,
    repository: &Repository,
    cluster: Cluster,
    choice: &Choice,
) -> Result<String, Failure> {
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(crate::failure::EXIT_FAILED, format!("find this program: {error}"))
            .hint("lifeboat restore --standalone needs none later")
    })?;
    let mut words = Vec::new();
    if settings.file.is_none() {
        // The user's own keys, wherever the server's user would look.
        if let Some(directory) = settings.user_keys.directory.parent() {
            words.push(format!("XDG_CONFIG_HOME={}", shell(&absolute(directory))));
        }
    }
    if let Some(spool) = restore.pgdata.as_deref().and_then(|data| spool(data, settings)) {
        words.push(format!("LIFEBOAT_SPOOL={}", shell(&spool.display().to_string())));
    }
    words.push(shell(&absolute(&program)));
    if let Some(file) = &settings.file {
        words.push(format!("--config {}", shell(&absolute(file))));
    }
    if let Some(moment) = settings.as_of {
        // The server's WAL comes out of the same past as its files.
        words.push(format!("--as-of {moment}"));
    }
    let asked_for = matches!(session::primary(settings)?.url.origin, Origin::Flag(_));
    if !asked_for && settings.repositories.known.len() > 1 {
        // All places of the configuration but those that were left out here: this restore took what is left for the whole, and said so. With
        // them, a primary that does not answer would keep the server from ever ending its recovery.
        for name in left_out(settings, repository) {
            words.push(format!("--without-repository {}", shell(&name)));
        }
        words.push("wal fetch".to_owned());
    } else {
        let url = session::repository_url(settings)?;
        let url = if url.contains("://") { url.to_owned() } else { absolute(Path::new(url)) };
        words.push(format!("--repository {} wal fetch", shell(&url)));
    }
    let identity = restore.identity.as_ref().or(settings.identity_file.as_ref().map(|setting| &setting.value));
    if let Some(identity) = identity {
        words.push(format!("--identity {}", shell(&absolute(identity))));
    }
    words.push(format!("--system-id {} --segment-size {}", cluster.system_id, cluster.segment_size.bytes()));
    // Whatever is there: a restore has no end that its target does not say.
    let Bounds { promise, left, own, until: _ } = &choice.bounds;
    words.extend(promise.iter().map(|promise| format!("--promised {promise}")));
    words.extend(left.iter().map(|left| format!("--left {left}")));
    words.extend(own.iter().map(|own| format!("--own {own}")));
    words.push("%f %p".to_owned());
    Ok(words.join(" "))
}

/// Repositories that were left out by hand, or because they could not be opened.
fn left_out(settings: &Settings, repository: &Repository) -> BTreeSet<String> {
    let notes = repository.store().notes().into_iter().filter(|note| note.kind == NoteKind::LeftOut);
    settings.without.iter().cloned().chain(notes.map(|note| note.repository)).collect()
}

/// What was read around, as findings: all came back, but somebody has to look at the place where it is missing or damaged. Each object once.
fn read_around(repository: &Repository) -> Vec<Finding> {
    let mut named = BTreeSet::new();
    let notes = repository.store().notes().into_iter();
    let notes = notes.filter(|note| named.insert((note.repository.clone(), note.object.clone())));
    let finding = |note: Note| Finding {
        kind: FindingKind::NotChecked,
        backup: None,
        object: note.object.clone().unwrap_or_else(|| format!("repository {}", note.repository)),
        file: None,
        problem: note.to_string(),
    };
    notes.map(finding).collect()
}

/// A word for a shell, in a setting in which `%` begins a placeholder.
pub(super) fn shell(word: &str) -> String {
    let word = word.replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '%' | '+' | ',' | '@');
    if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Where the restored server's user puts WAL down that comes early, unless the configuration says: beside the data directory.
fn spool(data: &Path, settings: &Settings) -> Option<PathBuf> {
    if settings.wal_spool.origin != Origin::Default {
        return None;
    }
    let data = PathBuf::from(absolute(data));
    let mut name = data.file_name()?.to_owned();
    name.push(".lifeboat-spool");
    Some(data.with_file_name(name))
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

fn request(restore: &Restore) -> Result<RestoreRequest, Failure> {
    let target = if restore.target_immediate {
        Target::Immediate
    } else if let Some(text) = &restore.target_time {
        // With its zone, or not at all: an hour off is another restore (c122).
        Target::Time(text.parse().map_err(|_| {
            Failure::usage(format!("parse time {text:?}: write it as RFC 3339 with a zone"))
                .hint("lifeboat restore … --target-time 2024-03-15T12:00:00Z")
        })?)
    } else if let Some(text) = &restore.target_lsn {
        Target::Lsn(text.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat restore … --target-lsn 16/B374D848"))?)
    } else if let Some(xid) = restore.target_xid {
        Target::TransactionId(xid)
    } else if let Some(name) = &restore.target_name {
        Target::Name(name.clone())
    } else {
        Target::Latest
    };
    let mut tablespaces = Vec::new();
    for text in &restore.tablespace {
        let Some((name, directory)) = text.split_once('=').filter(|(name, directory)| !name.is_empty() && !directory.is_empty()) else {
            return Err(
                Failure::usage(format!("parse tablespace {text:?}: write NAME=DIR")).hint("lifeboat show BACKUP names the tablespaces")
            );
        };
        tablespaces.push((name.to_owned(), absolute(Path::new(directory))));
    }
    let timeline = match restore.target_timeline.as_str() {
        "latest" => TimelineChoice::Latest,
        "current" => TimelineChoice::Current,
        number => TimelineChoice::Number(Timeline(number.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
            Failure::usage(format!("parse timeline {number:?}: write latest, current or a number"))
                .hint("lifeboat wal status shows the timelines")
        })?)),
    };
    Ok(RestoreRequest {
        inclusive: !restore.exclusive,
        timeline,
        standalone: restore.standalone,
        recovery: None,
        pgdata: restore.pgdata.as_deref().map(absolute),
        artifacts: restore.artifacts.as_deref().map(absolute),
        tablespaces,
        target,
        start: restore.start,
        accept_degraded: restore.accept_degraded,
        archive_mode: match restore.archive_mode {
            Archiving::Off => ArchiveMode::Off,
            Archiving::Preserve => ArchiveMode::Preserve,
        },
    })
}

fn print_plan(plan: &RestorePlan, out: &Output) -> Result<u8, Failure> {
    out.result(&serde_json::json!({"plan": plan, "digest": plan.digest()}), || {
        let mut text = format!("would restore {}: {} files, {}\n", plan.backup, plan.files, output::bytes(plan.bytes));
        if let Some(at) = plan.database.as_ref().and_then(|database| database.consistent_at) {
            let goes_on = plan.database.as_ref().is_some_and(|database| database.recovery.is_some());
            let what = if goes_on { "recovery begins at" } else { "as of" };
            text.push_str(&format!("  {what} {at}\n"));
        }
        for (number, step) in plan.steps.iter().enumerate() {
            text.push_str(&format!("  {}. {step}\n", number + 1));
        }
        text.push_str(&format!("plan {}\nnothing was changed (dry run)\n", plan.digest()));
        text
    });
    for warning in &plan.warnings {
        output::warn(warning);
    }
    Ok(0)
}

#[expect(clippy::too_many_arguments, reason = "each is one thing that only the caller knows")]
fn execute(
    restore: &Restore,
    settings: &Settings,
    repository: &Repository,
    backup: &VerifiedBackup,
    plan: &RestorePlan,
    probe: Option<String>,
    out: &Output,
    permit: &Permit,
    begin: &dyn Fn() -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let identities = session::identities(settings, restore.identity.as_ref())?;
    // A wrong identity fails before anything is written, also where only artifacts come back.
    backup.unlock(KeyPurpose::Data, &identities)?;
    for warning in &plan.warnings {
        output::warn(warning);
    }
    let bin_directory: Option<PathBuf> =
        restore.bin_directory.clone().or_else(|| settings.bin_directory.as_ref().map(|setting| setting.value.clone()));
    let restore_settings = RestoreSettings {
        identities: identities.clone(),
        workers: settings.workers.value,
        bin_directory,
        start_timeout: Duration::from_secs(restore.start_timeout),
        spool: plan.database.as_ref().filter(|_| probe.is_some()).and_then(|database| spool(Path::new(&database.pgdata), settings)),
        probe,
        temporary: std::env::temp_dir(),
        owner: None,
    };
    begin()?;
    let progress = Shown::new();
    let begun = Instant::now();
    let database = restore::run(repository, backup, plan, &restore_settings, &progress);
    if database.is_err() {
        progress.finish();
    }
    let database = database?;
    let mut measured = Measured::default();
    if let Some(database) = &database {
        measured.files_seconds = Some(database.files.as_secs_f64());
        measured.first_query_seconds = database.first_query.map(|took| took.as_secs_f64());
        measured.reached_lsn = database.reached.map(|lsn| lsn.to_string());
        measured.promised_lsn =
            plan.database.as_ref().and_then(|database| database.recovery.as_ref()).map(|recovery| recovery.end.to_string());
        measured.dsn.clone_from(&database.dsn);
        let physical = backup.manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref());
        let copied = physical.map(|physical| physical.consistent_at).or(Some(backup.manifest.started));
        // Without a server nothing of the archive was replayed yet, and how far it brings the data is not known.
        measured.recovery_point = if goes_on(plan).is_some() { None } else { copied.max(database.last_commit) };
        for warning in &database.warnings {
            progress.warn(warning);
        }
    }
    let findings = artifacts(settings, repository, backup, plan, &identities, &mut measured, &progress);
    progress.finish();
    let mut findings = findings?;
    // No reason not to restore what is signed and whole, but somebody should look.
    findings.extend(backup.stray(repository).map(|finding| Finding { kind: FindingKind::NotChecked, ..finding }));
    findings.extend(read_around(repository));
    for said in database.iter().flat_map(|database| &database.read_around) {
        let object = said.split(' ').nth(1).unwrap_or_default().to_owned();
        findings.push(Finding { kind: FindingKind::NotChecked, backup: None, object, file: None, problem: said.clone() });
    }
    findings.extend(database.iter().filter_map(|database| database.unfetched.as_ref()).map(|why| Finding {
        kind: FindingKind::NotChecked,
        backup: None,
        object: "restore_command".to_owned(),
        file: None,
        problem: format!("{why}: the server would not start; let its user read configuration, identity and repository first"),
    }));
    measured.verified_seconds = begun.elapsed().as_secs_f64();
    permit.found(findings.len());
    let all = verdict(&findings);
    out.result(&serde_json::json!({"backup": plan.backup, "plan": plan, "digest": plan.digest(), "measured": measured, "verdict": all, "findings": findings}), || {
        let mut text = format!("restored {}\n", plan.backup);
        if let Some(database) = &plan.database {
            text.push_str(&format!("  database in {}\n", database.pgdata));
        }
        if let Some(artifacts) = &plan.artifacts {
            text.push_str(&format!("  {} of {} artifacts in {}\n", measured.artifacts, artifacts.count, artifacts.directory));
        }
        if let Some(point) = measured.recovery_point {
            let mut lsn = measured.reached_lsn.as_ref().map_or(String::new(), |lsn| format!(", recovery ended at {lsn}"));
            if let (false, Some(promised)) = (lsn.is_empty(), &measured.promised_lsn) {
                let is_latest = plan.database.as_ref().is_some_and(|database| database.target == Target::Latest);
                lsn.push_str(&format!("; {} {promised}", if is_latest { "the archive promised" } else { "the target is at" }));
            }
            text.push_str(&format!("  recovery point {point}{lsn}\n"));
        }
        if let Some(target) = goes_on(plan) {
            text.push_str(&format!("  not started: recovery will go on to {target}\n"));
        }
        if let Some(seconds) = measured.files_seconds {
            text.push_str(&format!("  files in {seconds:.2} s\n"));
        }
        if let Some(seconds) = measured.first_query_seconds {
            text.push_str(&format!("  first query after {seconds:.2} s: psql {:?}\n", measured.dsn.as_deref().unwrap_or_default()));
        }
        text.push_str(&format!("  fully verified after {:.2} s\n", measured.verified_seconds));
        text
    });
    super::verify::say_findings(&findings);
    Ok(super::verify::code(all))
}

/// Where recovery will go on to when somebody starts the server; `None`: it was started, or the backup's own moment is where it ends.
fn goes_on(plan: &RestorePlan) -> Option<String> {
    let database = plan.database.as_ref().filter(|database| !database.start)?;
    let recovery = database.recovery.as_ref()?;
    let later = if database.target == Target::Latest { " or later" } else { "" };
    Some(format!("{}, LSN {}{later}", planning::describe(&database.target), recovery.end))
}

/// The same, where that is later than the moment that the backup's own comparison is of.
fn goes_beyond(plan: &RestorePlan) -> Option<String> {
    let database = plan.database.as_ref()?;
    let recovery = database.recovery.as_ref()?;
    let beyond = database.target == Target::Latest || recovery.end > database.stop_lsn.unwrap_or_default();
    goes_on(plan).filter(|_| beyond)
}

/// Restores the artifacts and compares them with what the database refers to.
fn artifacts(
    settings: &Settings,
    repository: &Repository,
    backup: &VerifiedBackup,
    plan: &RestorePlan,
    identities: &lifeboat_engine::keys::Identities,
    measured: &mut Measured,
    progress: &Shown,
) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    let Some((target, entry)) = plan.artifacts.as_ref().zip(backup.manifest.artifacts.as_ref()) else { return Ok(findings) };
    progress.phase("artifacts");
    let trust = session::trust(settings)?;
    let reader = Reader::new(repository, &trust, identities.clone());
    let set = ArtifactSet::new(repository.store(), entry.runs.clone());
    let report =
        restore_set(&reader, set.clone(), (entry.count, entry.bytes), Path::new(&target.directory), settings.workers.value, progress)?;
    measured.artifacts = report.restored;
    findings.extend(report.findings.first.iter().map(|finding| artifact_finding(Some(&backup.id), finding)));
    if report.findings.is_empty() && report.restored != entry.count {
        findings.push(backup.finding(
            FindingKind::Missing,
            "artifacts/catalog",
            None,
            format!("{} artifacts came back, the manifest says {}", report.restored, entry.count),
        ));
    }
    let Some(references) = &entry.references else { return Ok(findings) };
    if plan.database.is_none() {
        return Ok(findings);
    }
    // What the restored server says counts; without a server, what was found when the backup was taken, which is all there is to say
    // where nothing is replayed behind it.
    let beyond = if measured.dsn.is_none() { goes_beyond(plan) } else { None };
    let (rows, missing_count, missing) = match &measured.dsn {
        Some(dsn) => {
            progress.phase("references");
            let original = settings
                .dsn
                .as_ref()
                .and_then(|setting| Dsn::parse(setting.value.as_str()).ok())
                .map(|dsn| dsn.endpoint().database)
                .filter(|database| !database.is_empty());
            let mut dsn = Dsn::parse(dsn)?;
            let server = plan.database.as_ref().map(|database| Path::new(&database.pgdata));
            if let Some(database) = original {
                dsn = dsn.with("dbname", &database);
            }
            let found = lifeboat_engine::backup::compare_references(&dsn, &references.query, &set, server)?;
            (found.rows, found.missing_count, found.missing)
        }
        None => (references.rows, references.missing_count, references.missing.clone()),
    };
    if missing_count > 0 {
        let first = missing.first().cloned().unwrap_or_default();
        let refers = if beyond.is_some() { "referred to when the backup was taken" } else { "refers to" };
        findings.push(backup.finding(
            FindingKind::Missing,
            "artifacts",
            None,
            format!("{missing_count} of {rows} artifacts that the database {refers} are not in the backup, first {first}"),
        ));
    }
    if let Some(target) = beyond {
        findings.push(backup.finding(
            FindingKind::NotChecked,
            "artifacts",
            None,
            format!(
                "whether all are there that the database will refer to is not known: they were compared as of the backup, and recovery \
                 goes on to {target}; lifeboat restore --start compares them there"
            ),
        ));
    }
    Ok(findings)
}
