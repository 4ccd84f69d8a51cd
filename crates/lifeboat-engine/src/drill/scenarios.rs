//! Nights that a drill plays through, each with what must happen in it: some must restore, some must refuse.
//!
//! What is lost or damaged in them is so in a view of the repository, or of one of its places; the restores are real ones.

use std::time::Instant;

use jiff::Timestamp;
use lifeboat_core::drill::{Outcome, Scenario, ScenarioResult};
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::manifest::{CopyMethod, KeyPurpose, Manifest};
use lifeboat_core::repository::{Sha256, Suite};
use lifeboat_core::restore::{RestoreRequest, Target};
use lifeboat_core::verify::{Finding, FindingKind};
use lifeboat_core::wal::Lsn;
use lifeboat_core::wal::file::WalFile;

use super::controls::one_line;
use super::ground::{self, Ground, Way, WayError};
use crate::artifacts::{self, ArtifactSet, Reader, Sample};
use crate::keys::{self, Identities, KeyError};
use crate::opened_backup::{self, OpenBackupError};
use crate::repository::Repository;
use crate::store::Change;
use crate::verify::artifact_finding;
use crate::wal::WalReader;
use crate::wal::fetch::{Fetched, Fetcher};
use crate::wal::locate::LocateError;

/// What a restore in a place of its own came to.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// Where recovery ended.
    pub(super) reached: Option<Lsn>,
    /// Where it was planned to end.
    pub(super) planned: Option<Lsn>,
    /// Artifacts that came back, of so many.
    pub(super) artifacts: (u64, u64),
    /// Objects that were read from another place or an older version.
    pub(super) read_around: usize,
    /// What is wrong with what came back.
    pub(super) findings: Vec<Finding>,
}

/// Whoever restores for a scenario: in a place of its own, to a first answer of a server that takes writes, and takes it down.
pub(super) trait Restores {
    /// Restores the drill's backup from this view of the repository. The error is one line for people.
    fn trial(&self, repository: &Repository, request: &RestoreRequest, scenario: Scenario) -> Result<Trial, String>;
}

/// What happened: as it must, not as it must, or it cannot be played here.
enum Played {
    Holds(String),
    Fails(String),
    NotHere(String),
}

use Played::{Fails, Holds, NotHere};

/// Plays one scenario. The host that is lost is the drill itself: its result the caller knows.
pub(super) fn play(scenario: Scenario, ground: &Ground<'_>, restores: &dyn Restores) -> ScenarioResult {
    let begun = Instant::now();
    let played = match scenario {
        Scenario::HostLost => Ok(NotHere("it is the drill itself".into())),
        Scenario::PrimaryStoreLost => primary_store_lost(ground, restores),
        Scenario::YesterdaysAccident => yesterdays_accident(ground, restores),
        Scenario::DeletedObjects => deleted_objects(ground, restores),
        Scenario::LastWalDamaged => last_wal_damaged(ground, restores),
        Scenario::WrongIdentity => wrong_identity(ground),
        Scenario::ArtifactTampered => artifact_tampered(ground),
        Scenario::ClockSkew => Ok(NotHere("it needs a program of its own: see clock.rs".into())),
        Scenario::NoSuchBackup => no_such_backup(ground),
    };
    result(scenario, played.unwrap_or_else(Fails), begun)
}

fn result(scenario: Scenario, played: Played, begun: Instant) -> ScenarioResult {
    let (outcome, observed) = match played {
        Holds(observed) => (Outcome::Passed, observed),
        Fails(observed) => (Outcome::Failed, observed),
        NotHere(observed) => (Outcome::NotApplicable, observed),
    };
    ScenarioResult { scenario, expected: scenario.expected(), outcome, observed, seconds: begun.elapsed().as_secs_f64() }
}

/// What a restore that must bring everything back came to.
fn whole(trial: &Trial, ground: &Ground<'_>) -> Result<String, String> {
    let bad = trial.findings.iter().find(|finding| finding.kind != FindingKind::NotChecked);
    if let Some(finding) = bad {
        return Err(finding.to_string());
    }
    if trial.artifacts.0 != trial.artifacts.1 {
        return Err(format!("{} of {} artifacts came back", trial.artifacts.0, trial.artifacts.1));
    }
    let promised = trial.planned.or(ground.way.map(|way| way.choice.end));
    if let (Some(promised), Some(reached)) = (promised, trial.reached)
        && reached < promised
    {
        return Err(format!("recovery ended at {reached}, {promised} was promised"));
    }
    let mut said = match trial.reached {
        Some(reached) => format!("the server answered, recovered to {reached}"),
        None => "everything came back".to_owned(),
    };
    if trial.artifacts.1 > 0 {
        said.push_str(&format!(", with all {} artifacts", trial.artifacts.1));
    }
    Ok(said)
}

fn primary_store_lost(ground: &Ground<'_>, restores: &dyn Restores) -> Result<Played, String> {
    let Some(opened) = ground.places.without_primary() else {
        return Ok(NotHere("there is one repository only: losing its store would lose everything".into()));
    };
    let repository = ground::read_only(opened?);
    let trial = restores.trial(&repository, &RestoreRequest::default(), Scenario::PrimaryStoreLost)?;
    // A replica that is filled later is behind, which is a loss that has a number, and no damage.
    let behind = ground.way.map(|way| way.choice.end).zip(trial.reached).map_or(0, |(end, reached)| end.0.saturating_sub(reached.0));
    let behind = if behind > 0 { format!("; the replica was {behind} bytes of WAL behind") } else { String::new() };
    Ok(whole(&trial, ground).map_or_else(Fails, |said| Holds(format!("{said}, without the primary{behind}"))))
}

/// Back to a moment before the last commits: the way that everybody goes who dropped a table.
fn yesterdays_accident(ground: &Ground<'_>, restores: &dyn Restores) -> Result<Played, String> {
    let Some(way) = ground.way else {
        return Ok(NotHere("there is no WAL archive: the moment of the backup is the only one that there is".into()));
    };
    let Some(physical) = ground.backup.manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref()) else {
        return Ok(NotHere("the backup is a dump: its moment is the only one that there is".into()));
    };
    // Between where the copy is consistent and where the archive ends, nearer to the end.
    let (from, to) = (physical.stop_lsn, way.choice.end);
    if to.0 <= from.0 + 1 {
        return Ok(NotHere("the archive has nothing behind the backup yet".into()));
    }
    let repository = ground.repository()?;
    let Some(request) = reachable(ground, way, &repository, from, to)? else {
        return Ok(NotHere("the archive has no record behind the backup yet".into()));
    };
    let Target::Lsn(moment) = request.target else { return Err("a moment is an LSN".into()) };
    let trial = restores.trial(&repository, &request, Scenario::YesterdaysAccident)?;
    // The first record from there on is what is not replayed; behind a switch of segments it is the next segment's.
    let end = trial.planned.unwrap_or(moment);
    Ok(match trial.reached {
        Some(reached) if reached > end => Fails(format!("recovery was to end at {end} and ended at {reached}")),
        Some(reached) if reached >= to => Fails(format!("recovery was to end before {moment} and went to the end, {reached}")),
        Some(reached) if reached < from => Fails(format!("recovery ended at {reached}, before the copy is consistent")),
        Some(reached) => Holds(format!("asked for the moment before {moment}, recovery ended at {reached}; what came later is not there")),
        None => Fails("nobody knows where recovery ended".into()),
    })
}

/// A request for a moment between two positions that recovery can end at, as near to three quarters of the way as there is one. `None`: there is
/// no record between them. A segment that was closed early (`archive_timeout`, `pg_switch_wal`) has nothing behind its last record, and where
/// it is the last one there is nothing later either: a moment in there is no moment.
fn reachable(ground: &Ground<'_>, way: &Way, repository: &Repository, from: Lsn, to: Lsn) -> Result<Option<RestoreRequest>, String> {
    let part = |of: u64, by: u64| Lsn(from.0 + (to.0 - from.0) / by * of);
    let last = way.last_whole().map(|segment| segment.start(way.cluster.segment_size));
    let moments = [Some(part(3, 4)), last, Some(part(1, 2)), Some(part(1, 4)), Some(part(1, 16)), Some(part(1, 256)), Some(part(1, 4096))];
    for moment in moments.into_iter().flatten().filter(|moment| from < *moment && *moment < to) {
        let request = RestoreRequest { target: Target::Lsn(moment), inclusive: false, ..RestoreRequest::default() };
        match ground::way(repository, ground.trust, ground.identities, ground.backup, &request, ground.temporary) {
            Ok(Some(found)) if found.choice.end < to => return Ok(Some(request)),
            Ok(_) | Err(WayError::Locate(LocateError::Unreachable(_))) => {}
            Err(error) => return Err(one_line(error)),
        }
    }
    // Within one segment there may be nothing; over its end there is always a record, and something else is in the way.
    let size = way.cluster.segment_size;
    match from.0 / size.bytes() == (to.0 - 1) / size.bytes() {
        true => Ok(None),
        false => Err(format!("no moment between {from} and {to} can be reached")),
    }
}

/// The objects that an attacker would delete first, and a part of the rest.
fn victims(manifest: &Manifest, id: &BackupId, seed: u64) -> Vec<Key> {
    let mut keys = vec![layout::manifest(id), layout::manifest_bundle(id)];
    keys.extend(manifest.tables.first().and_then(|table| Key::parse(&table.object).ok()));
    if let Some(index) = seed.checked_rem(manifest.packs.len() as u64) {
        keys.push(layout::pack(manifest.packs[index as usize].sha256));
    }
    keys.extend(manifest.artifacts.iter().flat_map(|artifacts| artifacts.runs.first()).map(|run| layout::artifact_run(run.sha256)));
    keys
}

fn deleted_objects(ground: &Ground<'_>, restores: &dyn Restores) -> Result<Played, String> {
    let keys = victims(&ground.backup.manifest, &ground.backup.id, ground.seed);
    let repository = ground.places.primary_lost(&keys)?;
    // Whether anybody has another copy of what would be gone: without one this can only fail, and everybody knows.
    let others = repository.store().alternatives(&keys[0]).map_err(one_line)?;
    if others.is_empty() {
        let why = "the store keeps no older versions and there is no replica: what is deleted is gone (lifeboat doctor)";
        return Ok(NotHere(why.into()));
    }
    drop(others);
    let repository = ground::read_only(repository);
    let trial = restores.trial(&repository, &RestoreRequest::default(), Scenario::DeletedObjects)?;
    if trial.read_around == 0 {
        return Ok(Fails("it came back, and nobody said that objects were missing".into()));
    }
    let (gone, around) = (keys.len(), trial.read_around);
    let said = |said| Holds(format!("{said}; of {gone} objects that were gone, other copies were read, and that was said {around} times"));
    Ok(whole(&trial, ground).map_or_else(Fails, said))
}

fn last_wal_damaged(ground: &Ground<'_>, restores: &dyn Restores) -> Result<Played, String> {
    let wanted = ground::into_place(RestoreRequest::default(), &ground.backup.manifest, ground.temporary);
    // Looked up again: while the drill ran, another segment may have become the last.
    let present = ground::way(&ground.repository()?, ground.trust, ground.identities, ground.backup, &wanted, ground.temporary);
    let present = present.map_err(one_line)?;
    let Some((way, last)) = ground.way.and(present.as_ref()).and_then(|way| Some((way, way.last_whole()?))) else {
        return Ok(NotHere("the archive has no finished segment on the way".into()));
    };
    let size = way.cluster.segment_size;
    let physical = ground.backup.manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref());
    if physical.is_none_or(|physical| last.start(size) <= physical.stop_lsn) {
        return Ok(NotHere("the archive has no finished segment behind the backup yet".into()));
    }
    let key = WalFile::Segment(last).key(way.cluster.system_id, size);
    let bytes = ground.repository()?.store().length(&key).map_err(one_line)?;
    // In what is sealed, which stands last, and not in its header, where it might be taken for another identity's.
    let damaged = || ground.changed(vec![(key.clone(), Change::Flipped(bytes.saturating_sub(1)))]);
    // First: a server must not hear that the archive ends there.
    let repository = damaged()?;
    let reader = WalReader::new(&repository, way.cluster, ground.trust, ground.identities.clone());
    let target = ground.temporary.join(format!("lifeboat-scenario-{}", std::process::id()));
    let fetched = Fetcher::new(&reader, &way.choice.bounds, false).fetch(WalFile::Segment(last), &target);
    let _ = std::fs::remove_file(&target);
    let stopped = match fetched {
        Err(error) => one_line(error),
        Ok(Fetched::AfterEnd) => return Ok(Fails("a server would have been told that the archive ends before the damage".into())),
        Ok(_) => return Ok(Fails("the damaged segment was handed to the server".into())),
    };
    // Then: whoever asks for everything is refused, and told what there is instead; and that is there.
    let refused = ground::way(&repository, ground.trust, ground.identities, ground.backup, &wanted, ground.temporary);
    let nearest = match refused {
        Err(WayError::Locate(LocateError::Unreachable(refused))) => refused.nearest.iter().map(|one| one.lsn).max(),
        Err(error) => return Ok(Fails(format!("nobody was told what can be reached instead: {}", one_line(error)))),
        Ok(_) => return Ok(Fails("a restore to the end would be planned, through the damage".into())),
    };
    let Some(nearest) = nearest else { return Ok(Fails("nothing was named that can be reached instead".into())) };
    let request = RestoreRequest { target: Target::Lsn(nearest), ..RestoreRequest::default() };
    let trial = restores.trial(&repository, &request, Scenario::LastWalDamaged);
    let trial = trial.map_err(|why| format!("{nearest} was named as what can be reached, and it was not: {why}"))?;
    let start = last.start(size);
    let stop = ground.backup.manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref()).map(|physical| physical.stop_lsn);
    Ok(match trial.reached {
        Some(reached) if reached < nearest.min(start) || stop.is_some_and(|stop| reached < stop) => {
            Fails(format!("{nearest} was named, and recovery ended at {reached} already"))
        }
        Some(reached) if reached <= start.max(nearest) => Holds(format!(
            "recovery to the end stops instead of promoting ({stopped}); {nearest} was named instead, and recovery to it ended at {reached}: {} bytes of WAL are lost",
            way.choice.end.0.saturating_sub(reached.0)
        )),
        Some(reached) => Fails(format!("recovery went to {reached}, into the damage at {start}")),
        None => Fails("nobody knows where recovery ended".into()),
    })
}

fn wrong_identity(ground: &Ground<'_>) -> Result<Played, String> {
    if ground.backup.manifest.encryption.suite == Suite::None {
        return Ok(NotHere("the backup is not encrypted: everybody can read it".into()));
    }
    let (text, _) = keys::generate_identity(Timestamp::now());
    let stranger = Identities::parse(&text).map_err(one_line)?;
    let attempts = [("another identity", stranger), ("no identity", Identities::default())];
    let mut said = Vec::new();
    for (what, identities) in attempts {
        for purpose in [KeyPurpose::Data, KeyPurpose::Tables] {
            match ground.backup.unlock(purpose, &identities) {
                Ok(_) => return Ok(Fails(format!("{what} opens the backup"))),
                Err(KeyError::WrongIdentity(_) | KeyError::NoneGiven(_)) => {}
                Err(error) => return Err(one_line(error)),
            }
        }
        said.push(what);
    }
    Ok(Holds(format!("{}: refused before anything was written", said.join(" and "))))
}

fn artifact_tampered(ground: &Ground<'_>) -> Result<Played, String> {
    let Some(entry) = &ground.backup.manifest.artifacts else { return Ok(NotHere("the backup has no artifacts".into())) };
    let original = ground.repository()?;
    let set = ArtifactSet::new(original.store(), entry.runs.clone());
    let mut victim: Option<(String, Sha256)> = None;
    // Any will do; the one whose digest the seed is nearest to.
    let mut nearest = u64::MAX;
    for found in set.entries("").take(10_000) {
        let found = found.map_err(one_line)?;
        let head = u64::from_be_bytes(found.sha256.0[..8].try_into().expect("a digest has 32 bytes"));
        if found.bytes > 0 && head.abs_diff(ground.seed) <= nearest {
            nearest = head.abs_diff(ground.seed);
            victim = Some((found.name.as_str().to_owned(), found.sha256));
        }
    }
    let Some((name, digest)) = victim else { return Ok(NotHere("no artifact of the backup has any bytes".into())) };
    let key = layout::artifact_blob(digest);
    let blob = key.clone();
    let bytes = original.store().length(&key).map_err(one_line)?;
    let repository = ground.changed(vec![(key, Change::Flipped(bytes / 2))])?;
    let reader = Reader::new(&repository, ground.trust, ground.identities.clone());
    let set = ArtifactSet::new(repository.store(), entry.runs.clone());
    // One in a hundred, the victim among them: the others need not be read for this.
    let sample = Sample::around(digest, true);
    let report =
        artifacts::verify_set(&reader, set, (entry.count, entry.bytes), sample, ground.workers, ground.progress).map_err(one_line)?;
    let findings: Vec<Finding> = report.findings.first.iter().map(|finding| artifact_finding(Some(&ground.backup.id), finding)).collect();
    let corrupt: Vec<&Finding> = findings.iter().filter(|finding| finding.kind == FindingKind::Corrupt).collect();
    // The same bytes may be several artifacts: all of them are hit.
    Ok(match corrupt.first() {
        Some(finding) if corrupt.iter().all(|finding| finding.object == blob.as_str()) => {
            Holds(format!("{name} was found out, and nothing else: {}", finding.problem))
        }
        Some(finding) => Fails(format!("{} artifacts were called corrupt, and {blob} was: {finding}", corrupt.len())),
        None => Fails(format!("the changed bytes of {name} were not noticed")),
    })
}

fn no_such_backup(ground: &Ground<'_>) -> Result<Played, String> {
    let text = format!("{}-backup-19700101T000000Z", ground.backup.id.name());
    let id: BackupId = text.parse().map_err(one_line)?;
    Ok(match opened_backup::open(&ground.repository()?, &id, ground.trust) {
        Err(OpenBackupError::Absent(_)) => Holds(format!("{id}: refused, there is none")),
        Err(error) => Fails(format!("it was not said that there is none: {}", one_line(error))),
        Ok(_) => Fails(format!("{id} was opened")),
    })
}

/// Whether a server can be started from the backup at all.
pub(super) fn has_database(manifest: &Manifest) -> bool {
    manifest.postgres.as_ref().is_some_and(|postgres| postgres.copy != CopyMethod::Recorded)
}
