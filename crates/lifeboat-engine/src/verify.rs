//! Verifying backups where they stand: signature, every object, and with an identity every byte.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lifeboat_core::repository::extent::extent_bytes;
use lifeboat_core::repository::file_table::Row;
use lifeboat_core::repository::manifest::KeyPurpose;
use lifeboat_core::repository::{Sha256, Suite, layout, pack};
use lifeboat_core::verify::{Covered, Depth, Finding, FindingKind, Report, in_sample};

use crate::artifacts::workers::each;
use crate::artifacts::{self, ArtifactError, ArtifactSet, Problem, Reader, Sample};
use crate::causes;
use crate::keys::{Identities, KeyError};
use crate::opened_backup::{self, OpenBackupError, VerifiedBackup};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::restore::RestoreError;
use crate::restore::hydrate::{Hydration, PackFilter, Sink, check_pack};
use crate::seal::{Sealing, check_object, open_object};
use crate::signing::Trust;
use crate::store::StoreError;
use lifeboat_core::repository::backup_id::BackupId;

/// How to verify.
pub struct VerifySettings<'a> {
    /// Whom to believe.
    pub trust: &'a Trust,
    /// What opens backups; with none, stored bytes are compared with their signed digests.
    pub identities: Identities,
    /// Percent of packs and artifact bytes to read; everything else is always checked.
    pub sample_percent: f64,
    /// Chooses the sample.
    pub sample_seed: u64,
    /// Worker threads.
    pub workers: usize,
}

/// Why a verification could not be done at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The backup could not be opened.
    #[error(transparent)]
    Open(OpenBackupError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Artifacts.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// Anything else on the way.
    #[error(transparent)]
    Read(#[from] Box<RestoreError>),
}

/// Verifies one backup. What is wrong with it is in the report; an error means that nobody knows.
pub fn run(repository: &Repository, id: &BackupId, settings: &VerifySettings<'_>, progress: &dyn Progress) -> Result<Report, VerifyError> {
    let sampled = settings.sample_percent < 100.0;
    let mut report = Report {
        backup: id.to_string(),
        depth: Depth::Stored,
        objects: 0,
        objects_total: 2,
        bytes: 0,
        artifacts: 0,
        sample_seed: sampled.then_some(settings.sample_seed),
        findings: Vec::new(),
    };
    let backup = match opened_backup::open(repository, id, settings.trust) {
        Ok(backup) => backup,
        Err(OpenBackupError::Damaged(finding)) => {
            report.findings.push(finding);
            return Ok(report);
        }
        Err(error) => return Err(VerifyError::Open(error)),
    };
    report.objects = 2;
    report.findings.extend(backup.stray(repository));
    verify_database(repository, &backup, settings, progress, &mut report)?;
    verify_artifacts(repository, &backup, settings, progress, &mut report)?;
    report.findings.sort_by(|a, b| (&a.object, &a.file).cmp(&(&b.object, &b.file)));
    Ok(report)
}

/// Opens what can be opened; a key that was wrapped to others is no finding, only less depth.
fn unlock(backup: &VerifiedBackup, purpose: KeyPurpose, identities: &Identities, findings: &mut Vec<Finding>) -> Option<Sealing> {
    match backup.unlock(purpose, identities) {
        Ok(sealing) => Some(sealing),
        Err(KeyError::NoneGiven(_) | KeyError::WrongIdentity(_)) => None,
        Err(error) => {
            let object = layout::manifest(&backup.id).to_string();
            findings.push(backup.finding(FindingKind::Corrupt, &object, None, error.to_string()));
            None
        }
    }
}

fn verify_database(
    repository: &Repository,
    backup: &VerifiedBackup,
    settings: &VerifySettings<'_>,
    progress: &dyn Progress,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let manifest = &backup.manifest;
    let tables = unlock(backup, KeyPurpose::Tables, &settings.identities, &mut report.findings);
    let data = unlock(backup, KeyPurpose::Data, &settings.identities, &mut report.findings);
    let deep = tables.is_some() && data.is_some();
    report.depth = if deep { Depth::Opened } else { Depth::Stored };
    let chosen =
        |index: u32| settings.sample_percent >= 100.0 || in_sample(settings.sample_seed, u64::from(index), settings.sample_percent);
    progress.phase("verify");
    progress
        .total(manifest.packs.len() as u64, if deep { manifest.plain_bytes } else { manifest.packs.iter().map(|pack| pack.bytes).sum() });
    let findings = Mutex::new(Vec::new());
    let unread = Unread { backup, reads: AtomicUsize::new(0) };
    // Packs first: with the identity their header and length, without it their digest.
    let bytes = AtomicU64::new(0);
    let next = AtomicU64::new(0);
    let broken: Mutex<Option<VerifyError>> = Mutex::default();
    let bad_packs = Mutex::new(BTreeMap::new());
    let no_data = Sealing::Plain;
    let hydration =
        Hydration { repository, backup, data: data.as_ref().unwrap_or(&no_data), workers: settings.workers, progress, packs: &chosen };
    std::thread::scope(|scope| {
        for _ in 0..settings.workers.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(entry) = manifest.packs.get(index as usize) else { return };
                    let header = check_pack(&hydration, index as u32);
                    let outcome = match header {
                        Err(error) => unread.found(error).map(Some),
                        Ok(()) if deep || !chosen(index as u32) => Ok(None),
                        Ok(()) => {
                            bytes.fetch_add(entry.bytes, Ordering::Relaxed);
                            progress.add(0, entry.bytes);
                            verify_stored_pack(repository, backup, index as u32).or_else(|error| unread.found(error.into()).map(Some))
                        }
                    };
                    progress.add(1, 0);
                    match outcome {
                        Ok(None) => {}
                        Ok(Some(finding)) => {
                            bad_packs.lock().expect("no panic while held").insert(index as u32, finding);
                        }
                        Err(error) => {
                            broken.lock().expect("no panic while held").get_or_insert(error);
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = broken.into_inner().expect("no panic while held") {
        return Err(error);
    }
    let bad_packs = bad_packs.into_inner().expect("no panic while held");
    report.objects += (0..manifest.packs.len()).filter(|index| chosen(*index as u32)).count() as u64;
    report.objects_total += manifest.packs.len() as u64 + manifest.tables.len() as u64;
    let mut named = BTreeSet::new();
    let mut covered = vec![Covered::default(); if deep { manifest.packs.len() } else { 0 }];
    for entry in &manifest.tables {
        report.objects += 1;
        report.bytes += entry.bytes;
        let rows = match &tables {
            Some(tables) => match backup.table(repository, entry, tables) {
                Ok(rows) => rows,
                Err(error) => {
                    report.findings.push(unread.found(error.into())?);
                    continue;
                }
            },
            None => {
                if let Err(error) = verify_sealed(repository, backup, &entry.object, entry.sha256, entry.bytes) {
                    report.findings.push(unread.found(error.into())?);
                }
                continue;
            }
        };
        // Whoever must restore wants to know which files a bad pack hits.
        for row in &rows {
            for fragment in row.extents.iter().flat_map(|extent| &extent.fragments) {
                if let Some(finding) = bad_packs.get(&fragment.pack)
                    && named.len() < MAX_NAMED
                    && named.insert((fragment.pack, row.meta.path.clone()))
                {
                    let finding = Finding { file: Some(row.meta.path.clone()), ..finding.clone() };
                    findings.lock().expect("no panic while held").push(finding);
                }
            }
        }
        if deep {
            let good: &(dyn Fn(u32) -> bool + Sync) = &|pack| chosen(pack) && !bad_packs.contains_key(&pack);
            let hydration = Hydration { packs: good, ..hydration };
            report.bytes += rows
                .iter()
                .flat_map(|row| &row.extents)
                .flat_map(|e| &e.fragments)
                .filter(|f| good(f.pack))
                .map(|f| u64::from(f.length))
                .sum::<u64>();
            let collect = |error: RestoreError| {
                let finding = unread.finding(error)?;
                let mut findings = findings.lock().expect("no panic while held");
                if findings.len() < MAX_NAMED {
                    findings.push(finding);
                }
                Ok(())
            };
            let of_table = opened_by(&rows, good);
            match hydration.table(rows, &Sink::Check(&collect)) {
                Ok(()) => of_table.into_iter().for_each(|(pack, opened)| covered[pack as usize].join(&opened)),
                Err(RestoreError::Damaged(finding)) => findings.lock().expect("no panic while held").push(finding),
                Err(error) => return Err(Box::new(error).into()),
            }
        }
    }
    if deep {
        let known: BTreeSet<String> = {
            let findings = findings.lock().expect("no panic while held");
            findings.iter().chain(bad_packs.values()).map(|finding| finding.object.clone()).collect()
        };
        let left = (0..manifest.packs.len() as u32).filter(|pack| {
            chosen(*pack)
                && !known.contains(layout::pack(manifest.packs[*pack as usize].sha256).as_str())
                && !is_whole_by_frames(backup, *pack, &covered[*pack as usize])
        });
        each(left.map(Ok), settings.workers, |pack| {
            let checked = verify_stored_pack(repository, backup, pack).or_else(|error| unread.found(error.into()).map(Some));
            if let Some(finding) = checked? {
                findings.lock().expect("no panic while held").push(finding);
            }
            Ok::<_, VerifyError>(())
        })?;
    }
    report.bytes += bytes.into_inner();
    report.findings.append(&mut findings.into_inner().expect("no panic while held"));
    // Packs whose files could not be named, for want of a table or a key.
    let unnamed = bad_packs.into_iter().filter(|(pack, _)| !named.iter().any(|(other, _)| other == pack));
    report.findings.extend(unnamed.map(|(_, finding)| finding));
    // Neither is in a file table: PostgreSQL's own manifest, and what the tables held.
    let beside = [("backup_manifest", manifest.backup_manifest()), ("truth", manifest.truth().map(|stored| &stored.entry))];
    for (name, entry) in beside.into_iter().filter_map(|(name, entry)| Some((name, entry?))) {
        report.objects += 1;
        report.objects_total += 1;
        report.bytes += entry.bytes;
        let checked = verify_sealed(repository, backup, &entry.object, entry.sha256, entry.bytes).and_then(|sealed| match &data {
            Some(data) => {
                let opened = open_object(&sealed, &entry.object, data, 1 << 30).map_err(|error| error.to_string());
                let read = opened.and_then(|plain| match name {
                    "truth" => crate::truth::decode(&plain, &backup.id).map(drop),
                    _ => Ok(()),
                });
                read.map_err(|problem| OpenBackupError::Damaged(backup.finding(FindingKind::Corrupt, &entry.object, Some(name), problem)))
            }
            None => Ok(()),
        });
        if let Err(error) = checked {
            report.findings.push(unread.found(error.into())?);
        }
    }
    Ok(())
}

/// Reads one pack and everything that stands in it, as [`run`] does with all of them. What is wrong is in the findings.
///
/// # Errors
///
/// It could not be looked at: the store failed, or no identity opens the backup.
pub fn one_pack(
    repository: &Repository,
    backup: &VerifiedBackup,
    identities: &Identities,
    index: u32,
    progress: &dyn Progress,
) -> Result<Vec<Finding>, VerifyError> {
    let key = |error: KeyError| VerifyError::Open(OpenBackupError::Key(error));
    let tables = backup.unlock(KeyPurpose::Tables, identities).map_err(key)?;
    let data = backup.unlock(KeyPurpose::Data, identities).map_err(key)?;
    let hydration = Hydration { repository, backup, data: &data, workers: 1, progress, packs: &|pack| pack == index };
    match check_pack(&hydration, index) {
        Ok(()) => {}
        Err(RestoreError::Damaged(finding)) => return Ok(vec![finding]),
        Err(error) => return Err(Box::new(error).into()),
    }
    let findings = Mutex::new(Vec::new());
    let mut covered = Covered::default();
    let collect = |error: RestoreError| match error {
        RestoreError::Damaged(finding) => {
            findings.lock().expect("no panic while held").push(finding);
            Ok(())
        }
        error => Err(error),
    };
    for entry in &backup.manifest.tables {
        let rows = backup.table(repository, entry, &tables).map_err(VerifyError::Open)?;
        let of_table = opened_by(&rows, hydration.packs);
        match hydration.table(rows, &Sink::Check(&collect)) {
            Ok(()) => of_table.values().for_each(|opened| covered.join(opened)),
            Err(RestoreError::Damaged(finding)) => findings.lock().expect("no panic while held").push(finding),
            Err(error) => return Err(Box::new(error).into()),
        }
    }
    let mut findings = findings.into_inner().expect("no panic while held");
    if findings.is_empty() && !is_whole_by_frames(backup, index, &covered) {
        findings.extend(verify_stored_pack(repository, backup, index).map_err(VerifyError::Open)?);
    }
    Ok(findings)
}

/// What of which pack is opened when these rows are read, of the packs that `wanted` picks.
fn opened_by(rows: &[Row], wanted: PackFilter<'_>) -> BTreeMap<u32, Covered> {
    let mut opened: BTreeMap<u32, Covered> = BTreeMap::new();
    for row in rows {
        for (index, extent) in row.extents.iter().enumerate() {
            // Where the extent is damaged, so is the table: nothing of it is read, and that is found.
            let Ok(pieces) = extent.pieces(extent_bytes(row.meta.size, index as u64)) else { continue };
            for (fragment, _) in
                extent.fragments.iter().zip(pieces).filter(|(fragment, pieces)| !pieces.is_empty() && wanted(fragment.pack))
            {
                let start = u64::from(fragment.offset);
                opened.entry(fragment.pack).or_default().add(start, start + u64::from(fragment.length));
            }
        }
    }
    opened
}

/// Whether a good header and the frames that were opened say everything about a pack, so that its digest says nothing more. Not where it has
/// bytes that no file has, as of one that vanished while it was copied. And not where it is plain: what its frames are compared with stands
/// beside them there, and is no proof that these are the bytes that were signed.
fn is_whole_by_frames(backup: &VerifiedBackup, index: u32, opened: &Covered) -> bool {
    backup.manifest.encryption.suite != Suite::None && opened.has(pack::HEADER_BYTES as u64, backup.manifest.packs[index as usize].bytes)
}

/// The most files that findings name; beyond that the list is of no use to anybody.
const MAX_NAMED: usize = 10_000;

/// So many reads may fail for good before the store is taken for one that does not answer.
const MAX_UNREAD: usize = 100;

/// What cannot be read, and could not if it were asked for again: a bad sector. That is found like anything else, so that it shows which object it is, and
/// the others are read all the same. Who may not read is told so at once: it is the whole of it, as a rule.
struct Unread<'a> {
    backup: &'a VerifiedBackup,
    reads: AtomicUsize,
}

impl Unread<'_> {
    /// What an error says of an object; an error again where it says that nobody knows anything.
    fn finding(&self, error: RestoreError) -> Result<Finding, RestoreError> {
        let object = match &error {
            RestoreError::Store(store @ StoreError::Io { key, .. }) if !store.is_transient() => key,
            RestoreError::Damaged(finding) => return Ok(finding.clone()),
            _ => return Err(error),
        };
        if self.reads.fetch_add(1, Ordering::Relaxed) >= MAX_UNREAD {
            return Err(error);
        }
        Ok(self.backup.finding(FindingKind::NotChecked, object, None, causes::joined(&error)))
    }

    fn found(&self, error: RestoreError) -> Result<Finding, VerifyError> {
        self.finding(error).map_err(|error| VerifyError::from(Box::new(error)))
    }
}

fn verify_sealed(
    repository: &Repository,
    backup: &VerifiedBackup,
    object: &str,
    sha256: Sha256,
    bytes: u64,
) -> Result<Vec<u8>, OpenBackupError> {
    let found = backup.object(repository, object, sha256, bytes)?;
    check_object(&found, object)
        .map_err(|error| OpenBackupError::Damaged(backup.finding(FindingKind::Corrupt, object, None, error.to_string())))?;
    Ok(found)
}

/// Compares a whole pack with the digest that is its name.
fn verify_stored_pack(repository: &Repository, backup: &VerifiedBackup, index: u32) -> Result<Option<Finding>, OpenBackupError> {
    let entry = &backup.manifest.packs[index as usize];
    let key = layout::pack(entry.sha256);
    match backup.object(repository, key.as_str(), entry.sha256, entry.bytes) {
        Ok(_) => Ok(None),
        Err(OpenBackupError::Damaged(finding)) => Ok(Some(finding)),
        Err(error) => Err(error),
    }
}

fn verify_artifacts(
    repository: &Repository,
    backup: &VerifiedBackup,
    settings: &VerifySettings<'_>,
    progress: &dyn Progress,
    report: &mut Report,
) -> Result<(), VerifyError> {
    let Some(entry) = &backup.manifest.artifacts else { return Ok(()) };
    progress.phase("artifacts");
    let reader = Reader::new(repository, settings.trust, settings.identities.clone());
    let set = ArtifactSet::new(repository.store(), entry.runs.clone());
    let encrypted = backup.manifest.encryption.suite != Suite::None;
    let open = !encrypted || (report.depth == Depth::Opened && !settings.identities.is_empty());
    let sample = Sample { percent: settings.sample_percent.clamp(0.0, 100.0).ceil() as u8, seed: settings.sample_seed, open };
    let found = artifacts::verify_set(&reader, set, (entry.count, entry.bytes), sample, settings.workers, progress)?;
    report.artifacts = found.artifacts;
    // Records and runs are read, all of them; of the others those in the sample.
    report.objects += 2 * found.artifacts - found.blobs_present + entry.runs.len() as u64;
    report.objects_total += 2 * entry.count + entry.runs.len() as u64;
    report.bytes += found.bytes;
    report.findings.extend(found.findings.first.iter().map(|finding| artifact_finding(Some(&backup.id), finding)));
    if found.findings.is_empty() && found.artifacts != entry.count {
        let problem = format!("{} artifacts, the manifest says {}", found.artifacts, entry.count);
        report.findings.push(backup.finding(FindingKind::Corrupt, "artifacts/catalog", None, problem));
    }
    Ok(())
}

/// A finding about an artifact, as one about a backup.
pub fn artifact_finding(backup: Option<&BackupId>, finding: &artifacts::Finding) -> Finding {
    let kind = match &finding.problem {
        Problem::Missing => FindingKind::Missing,
        Problem::Corrupt(_) => FindingKind::Corrupt,
        Problem::Unsigned(_) | Problem::BadSignature(_) => FindingKind::Unsigned,
        Problem::Locked(_) | Problem::NotChecked(_) | Problem::NotRestored(_) => FindingKind::NotChecked,
    };
    Finding {
        kind,
        backup: backup.map(ToString::to_string),
        object: finding.object.clone(),
        file: finding.name.as_ref().map(|name| format!("artifact {name}")),
        problem: finding.problem.to_string(),
    }
}

#[cfg(test)]
mod tests;
