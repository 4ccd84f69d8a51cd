//! Bringing a replica to what its source has: data before what names it, nothing that is damaged, nothing deleted that nobody decided to
//! delete. Whatever kills a run, the next one goes on: an object is there whole or not at all.

mod examine;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};

use lifeboat_core::prune::KeptSet;
use lifeboat_core::replicate::{self as planning, Differences, Look, Stage, Verdict, judge};
use lifeboat_core::repository::artifact::{self, Head};
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::repository::manifest::Manifest;
use lifeboat_core::repository::{Descriptor, FormatError, Id};
use lifeboat_core::verify::{Finding, FindingKind};
use serde::Serialize;

use crate::artifacts::{ArtifactError, ArtifactSet, Capped, MAX_HEAD_BYTES};
use crate::progress::Progress;
use crate::repository::{MAX_DOCUMENT_BYTES, MAX_MANIFEST_BYTES};
use crate::signing::Trust;
use crate::store::{Entry, Journal, Missed, Store, StoreError};
use examine::examine;

/// What of an object is in memory while it is copied to a bucket: parts of it, twice.
const COPY_BYTES: u64 = 32 << 20;

/// Why a replica could not be compared or healed. What was copied until then stays.
#[derive(Debug, thiserror::Error)]
pub enum ReplicateError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A descriptor cannot be read.
    #[error("read the descriptor of {url}")]
    Format {
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: FormatError,
    },
    /// The source is no repository.
    #[error("replicate from {0}: there is no repository")]
    NoSource(String),
    /// The target is another repository.
    #[error("replicate to {url}: it is repository {theirs}, not {ours}")]
    OtherRepository {
        /// Where.
        url: String,
        /// What it is.
        theirs: Id,
        /// What it should be.
        ours: Id,
    },
    /// The target has something, and no descriptor.
    #[error("replicate to {0}: there is something, and it is no repository")]
    Occupied(String),
    /// The journal could not be read or shortened.
    #[error("use the journal of what the replica missed")]
    Journal(#[source] std::io::Error),
}

/// How a replica is compared, and what may be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Listings are compared, what is missing is copied, and what is of another length, or was written down, is read.
    Listings,
    /// Only what this host's journal names.
    Missed,
    /// Every object is read on both sides, and what is damaged is healed.
    Content,
    /// The same, and nothing is changed: for replicas that their store keeps, and for looking.
    Check,
}

/// What a run needs.
pub struct ReplicateSettings<'a> {
    /// Whose signatures count.
    pub trust: &'a Trust,
    /// How much is compared and done.
    pub mode: Mode,
    /// Threads.
    pub workers: usize,
    /// The budget of bytes.
    pub memory_bytes: u64,
}

/// What would be done.
#[derive(Debug, Default, Serialize)]
pub struct ReplicatePlan {
    /// Objects to copy: how many, and the first of them in the order of copying.
    pub missing: Capped<String>,
    /// Their bytes.
    pub missing_bytes: u64,
    /// Objects of another length in the target: one of both is damaged.
    pub resized: Capped<String>,
    /// Objects that only the target has: they stay.
    pub extra: Capped<String>,
    /// Deletions that the target missed.
    pub deletions: Capped<String>,
    /// Objects of one length on both sides.
    pub alike: u64,
}

/// What was done and found.
#[derive(Debug, Default, Serialize)]
pub struct ReplicateReport {
    /// Objects that were copied.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Damaged objects that were replaced by a good copy.
    pub healed: Capped<String>,
    /// Deletions that were caught up on.
    pub deleted: u64,
    /// Objects that are on both sides.
    pub alike: u64,
    /// Objects whose bytes were read on both sides.
    pub compared: u64,
    /// Objects that only the target has: they stay.
    pub extra: Capped<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Copies one object, if it is sound, by conditional create.
pub(crate) fn copy_object(source: &dyn Store, target: &dyn Store, key: &Key) -> Result<(), StoreError> {
    match copy_checked(source, target, key, None, &mut 0)? {
        Look::Sound { .. } => Ok(()),
        Look::Absent => Err(StoreError::NotFound { key: key.to_string() }),
        Look::Damaged(problem) => {
            let source_error = std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
            Err(StoreError::Io { action: "copy", key: key.to_string(), store: source.url().to_owned(), source: source_error })
        }
    }
}

/// Copies while it looks: what turns out damaged at its end is given up before it has a name.
fn copy_checked(source: &dyn Store, target: &dyn Store, key: &Key, trust: Option<&Trust>, bytes: &mut u64) -> Result<Look, StoreError> {
    *bytes = match source.length(key) {
        Ok(length) => length,
        Err(StoreError::NotFound { .. }) => return Ok(Look::Absent),
        Err(error) => return Err(error),
    };
    let mut writer = target.writer_for(key, *bytes)?;
    let look = examine(source, key, trust, &mut |part| writer.write(part))?;
    if let Look::Sound { .. } = look {
        match writer.commit(key) {
            // Somebody else brought it; whether it is the same shows when contents are compared.
            Ok(()) | Err(StoreError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(look)
}

fn descriptor(store: &dyn Store) -> Result<Option<(Descriptor, Vec<u8>)>, ReplicateError> {
    let bytes = match store.get(&layout::descriptor(), MAX_DOCUMENT_BYTES) {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let decoded = Descriptor::decode(&bytes).map_err(|source| ReplicateError::Format { url: store.url().to_owned(), source })?;
    Ok(Some((decoded, bytes)))
}

/// Whether the target is a replica of the source already. `false`: it is empty.
pub fn is_replica(source: &dyn Store, target: &dyn Store) -> Result<bool, ReplicateError> {
    let Some((ours, _)) = descriptor(source)? else { return Err(ReplicateError::NoSource(source.url().to_owned())) };
    match descriptor(target)? {
        Some((theirs, _)) if theirs.repository == ours.repository => Ok(true),
        Some((theirs, _)) => {
            let url = target.url().to_owned();
            Err(ReplicateError::OtherRepository { url, theirs: theirs.repository, ours: ours.repository })
        }
        None if target.is_empty()? => Ok(false),
        None => Err(ReplicateError::Occupied(target.url().to_owned())),
    }
}

/// Makes an empty target a replica: it gets the descriptor of the source.
pub fn adopt(source: &dyn Store, target: &dyn Store) -> Result<(), ReplicateError> {
    if is_replica(source, target)? {
        return Ok(());
    }
    let Some((_, bytes)) = descriptor(source)? else { return Err(ReplicateError::NoSource(source.url().to_owned())) };
    match target.create(&layout::descriptor(), &bytes) {
        Ok(()) => Ok(()),
        // Somebody was faster; whose it is now is looked at again.
        Err(StoreError::Exists { .. }) => is_replica(source, target).map(drop),
        Err(error) => Err(error.into()),
    }
}

/// A part of the repository that is listed at once.
struct Region {
    prefix: String,
    /// What the source had when the run began. What is committed later may name data that came later.
    snapshot: Option<Vec<(Key, u64)>>,
}

fn listing(store: &dyn Store, prefix: &str) -> Result<Vec<(Key, u64)>, StoreError> {
    Ok(store.list(prefix)?.into_iter().map(|listed| (listed.key, listed.bytes)).collect())
}

/// The parts of both repositories in the order of copying, each small enough for its listing to fit into memory.
fn regions(source: &dyn Store, target: &dyn Store) -> Result<Vec<Region>, StoreError> {
    let below = |prefix: &str| -> Result<BTreeSet<String>, StoreError> {
        let mut names: BTreeSet<String> = source.list_segments(prefix)?.into_iter().collect();
        names.extend(target.list_segments(prefix)?);
        Ok(names)
    };
    let top = below("")?;
    let is_backup =
        |name: &str| name.strip_suffix('/').is_some_and(|name| name.parse::<lifeboat_core::repository::backup_id::BackupId>().is_ok());
    // What names others first: whatever it names is there by now.
    let mut committed = Vec::new();
    for prefix in top.iter().filter(|name| is_backup(name)) {
        let mut objects = listing(source, prefix)?;
        // A backup that did not finish, or has not yet: nobody needs what there is of it.
        if !objects.iter().any(|(key, _)| Stage::of(key) == Some(Stage::Manifest)) {
            objects.retain(|(key, _)| Stage::of(key) == Some(Stage::Other));
        }
        committed.push(Region { prefix: prefix.clone(), snapshot: Some(objects) });
    }
    let of_names =
        |prefix: &str| -> Result<Region, StoreError> { Ok(Region { prefix: prefix.to_owned(), snapshot: Some(listing(source, prefix)?) }) };
    let heads = of_names(layout::ARTIFACT_HEADS)?;
    let runs = of_names(layout::ARTIFACT_RUNS)?;
    let mut regions = Vec::new();
    let region = |prefix: String| Region { prefix, snapshot: None };
    for parent in ["packs/", "artifacts/blobs/", "wal/", "artifacts/records/"] {
        let names = below(parent)?;
        // Most of the WAL stands in the directories of its timelines; what stands beside them is few.
        regions.extend(names.iter().map(|name| region(format!("{parent}{name}"))));
    }
    regions.push(runs);
    regions.push(heads);
    // Before manifests, each of which carries a checkpoint of it.
    regions.push(region(layout::AUDIT.to_owned()));
    regions.extend(committed);
    let known = ["packs/", "artifacts/", "wal/", layout::AUDIT, "lifeboat.json"];
    regions.extend(
        top.into_iter().filter(|name| !known.contains(&name.as_str()) && !Stage::is_of_one_place(name) && !is_backup(name)).map(region),
    );
    Ok(regions)
}

impl Region {
    fn differences(&self, source: &dyn Store, target: &dyn Store) -> Result<Differences, StoreError> {
        // An object beside directories has no prefix of its own.
        let of = |store: &dyn Store| match self.prefix.ends_with('/') {
            true => listing(store, &self.prefix),
            false => match Key::parse(&self.prefix).map(|key| (store.length(&key), key)) {
                Ok((Ok(bytes), key)) => Ok(vec![(key, bytes)]),
                Ok((Err(StoreError::NotFound { .. }), _)) | Err(_) => Ok(Vec::new()),
                Ok((Err(error), _)) => Err(error),
            },
        };
        let theirs = of(target)?;
        let ours = self.snapshot.clone().map_or_else(|| of(source), Ok)?;
        Ok(planning::compare(&ours, &theirs))
    }
}

/// What a run would do, from the listings alone.
pub fn plan(source: &dyn Store, target: &dyn Store, missed: &Missed) -> Result<ReplicatePlan, ReplicateError> {
    is_replica(source, target)?;
    let mut plan = ReplicatePlan::default();
    let deletions: BTreeSet<&Key> = deletions(missed).collect();
    for region in regions(source, target)? {
        let found = region.differences(source, target)?;
        plan.alike += found.alike.len() as u64;
        for (key, bytes) in found.missing {
            plan.missing_bytes += bytes;
            plan.missing.push(key.to_string());
        }
        found.resized.iter().for_each(|(key, ..)| plan.resized.push(key.to_string()));
        for key in found.extra {
            let list = if deletions.contains(&key) { &mut plan.deletions } else { &mut plan.extra };
            list.push(key.to_string());
        }
    }
    Ok(plan)
}

fn deletions(missed: &Missed) -> impl Iterator<Item = &Key> {
    missed.entries.iter().filter_map(|entry| if let Entry::Delete(key) = entry { Some(key) } else { None })
}

/// Compares a replica with its source and, unless the mode forbids it, heals it. `journal` is what this host knows that it missed; it
/// forgets what was healed.
///
/// # Errors
///
/// A store failed: what was done until then stays, and the next run goes on. What is wrong with objects is in the report.
pub fn run(
    source: &dyn Store,
    target: &dyn Store,
    journal: Option<&Journal>,
    settings: &ReplicateSettings<'_>,
    progress: &dyn Progress,
) -> Result<ReplicateReport, ReplicateError> {
    let changes = settings.mode != Mode::Check;
    let missed = journal.map_or_else(|| Ok(Missed::default()), Journal::read).map_err(ReplicateError::Journal)?;
    if changes {
        adopt(source, target)?;
    } else if !is_replica(source, target)? {
        let mut report = ReplicateReport::default();
        report.findings.push(finding(
            FindingKind::Missing,
            &layout::descriptor(),
            target,
            "it is empty; lifeboat replicate fills it".to_owned(),
        ));
        return Ok(report);
    }
    let mut run = Run {
        source,
        target,
        settings,
        progress,
        changes,
        written_down: missed
            .entries
            .iter()
            .filter_map(|entry| if let Entry::Put(key) = entry { Some(key.clone()) } else { None })
            .collect(),
        refused: Mutex::default(),
        gone: BTreeSet::new(),
        runs: BTreeMap::new(),
        present: None,
        newest_head: None,
        judged: Mutex::default(),
        report: Mutex::default(),
    };
    progress.phase("replicate");
    if settings.mode == Mode::Missed && !missed.everything {
        run.journaled()?;
    } else {
        let regions = regions(source, target)?;
        run.look_ahead(&regions)?;
        for region in regions {
            run.region(&region, &missed)?;
        }
    }
    if changes {
        run.catch_up_on_deletions(&missed)?;
    }
    let refused = run.refused.into_inner().expect("no panic while held");
    let mut report = run.report.into_inner().expect("no panic while held");
    if let Some(journal) = journal.filter(|_| changes) {
        journal.mark_up();
        // What could not be brought stays written down.
        let mut healed = missed;
        healed.entries.retain(|entry| !matches!(entry, Entry::Put(key) if refused.contains(key)));
        healed.everything &= refused.is_empty();
        journal.forget(&healed).map_err(ReplicateError::Journal)?;
    }
    report.findings.sort_by(|a, b| (&a.object, &a.problem).cmp(&(&b.object, &b.problem)));
    Ok(report)
}

fn finding(kind: FindingKind, key: &Key, store: &dyn Store, problem: String) -> Finding {
    let backup = key.as_str().split_once('/').map(|(first, _)| first).filter(|first| first.contains("-backup-")).map(str::to_owned);
    Finding { kind, backup, object: key.to_string(), file: None, problem: format!("in {}: {problem}", store.url()) }
}

struct Run<'a> {
    source: &'a dyn Store,
    target: &'a dyn Store,
    settings: &'a ReplicateSettings<'a>,
    progress: &'a dyn Progress,
    changes: bool,
    /// What the journal says that the target missed.
    written_down: BTreeSet<Key>,
    /// What the target lacks when this run is over: nothing that names it is copied.
    refused: Mutex<BTreeSet<Key>>,
    /// What the journal says that the target missed, and that neither side has.
    gone: BTreeSet<Key>,
    /// The catalog runs that heads and manifests describe which are about to be copied.
    runs: BTreeMap<Key, artifact::Run>,
    /// Blobs and records that the target has, or gets unless they are refused; `None`: nobody needs to know, or nothing was listed.
    present: Option<RwLock<KeptSet>>,
    /// The newest head of the source when the run began, whose runs must be there before any head: older ones may name runs that were pruned.
    newest_head: Option<u64>,
    /// Why manifests wait: asked once for a manifest and its signature.
    judged: Mutex<BTreeMap<Key, Option<String>>>,
    report: Mutex<ReplicateReport>,
}

impl Run<'_> {
    fn report(&self, change: impl FnOnce(&mut ReplicateReport)) {
        change(&mut self.report.lock().expect("no panic while held"));
    }

    fn find(&self, kind: FindingKind, key: &Key, store: &dyn Store, problem: String) {
        self.report(|report| {
            if report.findings.len() < crate::artifacts::MAX_KEPT {
                report.findings.push(finding(kind, key, store, problem));
            }
        });
    }

    fn refuse(&self, key: &Key) {
        self.refused.lock().expect("no panic while held").insert(key.clone());
    }

    fn region(&self, region: &Region, missed: &Missed) -> Result<(), ReplicateError> {
        let found = region.differences(self.source, self.target)?;
        self.will_be_there(region, &found);
        let deleted: BTreeSet<&Key> = deletions(missed).collect();
        self.report(|report| {
            report.alike += found.alike.len() as u64;
            found.extra.iter().filter(|key| !deleted.contains(key)).for_each(|key| report.extra.push(key.to_string()));
        });
        let all = matches!(self.settings.mode, Mode::Content | Mode::Check);
        let mut jobs: Vec<(Key, u64)> = found.missing;
        jobs.extend(found.resized.into_iter().map(|(key, bytes, _)| (key, bytes)));
        jobs.extend(found.alike.into_iter().filter(|(key, _)| all || self.written_down.contains(key)));
        jobs.sort_by(|(a, _), (b, _)| (Stage::of(a), a).cmp(&(Stage::of(b), b)));
        self.stages(jobs)
    }

    /// Looks at what will be copied of heads and manifests: what has to be there by then can be told from listings that are made anyway, and
    /// an object that the source has lost is in none of them.
    fn look_ahead(&mut self, regions: &[Region]) -> Result<(), ReplicateError> {
        if !self.changes {
            return Ok(());
        }
        let snapshot = |prefix: &'static str| {
            regions.iter().filter(move |region| region.prefix == prefix).filter_map(|region| region.snapshot.as_ref()).flatten()
        };
        self.newest_head = snapshot(layout::ARTIFACT_HEADS).filter_map(|(key, _)| layout::number_of(key)).max();
        let theirs: BTreeSet<Key> = listing(self.target, layout::ARTIFACT_RUNS)?.into_iter().map(|(key, _)| key).collect();
        if snapshot(layout::ARTIFACT_RUNS).all(|(key, _)| theirs.contains(key)) {
            // A run that is there came behind what it names.
            return Ok(());
        }
        if let Some(number) = self.newest_head {
            self.describe(&layout::artifact_head(number))?;
        }
        for (key, _) in regions.iter().filter_map(|region| region.snapshot.as_ref()).flatten() {
            if Stage::of(key) == Some(Stage::Manifest) && !is_there(self.target, key)? {
                self.describe(key)?;
            }
        }
        self.runs.retain(|key, _| !theirs.contains(key));
        self.present = Some(RwLock::default());
        Ok(())
    }

    /// Takes down the runs that a head or a manifest of the source names. What cannot be read is found when it is copied.
    fn describe(&mut self, key: &Key) -> Result<(), ReplicateError> {
        let runs = match Stage::of(key) {
            Some(Stage::Head) => read(self.source, key, MAX_HEAD_BYTES)?.and_then(|bytes| Head::decode(&bytes).ok()).map(|head| head.runs),
            Some(Stage::Manifest) => read(self.source, key, MAX_MANIFEST_BYTES)?
                .and_then(|bytes| Manifest::decode(&bytes).ok())
                .and_then(|manifest| manifest.artifacts)
                .map(|artifacts| artifacts.runs),
            _ => None,
        };
        self.runs.extend(runs.into_iter().flatten().map(|run| (layout::artifact_run(run.sha256), run)));
        Ok(())
    }

    /// Takes down what the target has of a region, or is about to get.
    fn will_be_there(&self, region: &Region, found: &Differences) {
        let Some(present) = &self.present else { return };
        let mut present = present.write().expect("no panic while held");
        if [layout::ARTIFACT_BLOBS, "artifacts/records/"].iter().any(|prefix| region.prefix.starts_with(prefix)) {
            found.missing.iter().chain(&found.alike).for_each(|(key, _)| present.insert_key(key));
            found.resized.iter().for_each(|(key, ..)| present.insert_key(key));
            found.extra.iter().for_each(|key| present.insert_key(key));
        } else {
            present.seal();
        }
    }

    /// What the journal names, without looking at anything else. What names other objects goes only where they are (`is_complete`).
    fn journaled(&mut self) -> Result<(), ReplicateError> {
        let mut jobs = Vec::new();
        let mut gone = BTreeSet::new();
        for key in self.written_down.iter().filter(|key| Stage::of(key).is_some()) {
            match self.source.length(key) {
                Ok(bytes) => jobs.push((key.clone(), bytes)),
                // Deleted since, or lost: what names it tells.
                Err(StoreError::NotFound { .. }) => {
                    if Stage::is_named(key) && !is_there(self.target, key)? {
                        gone.insert(key.clone());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.gone = gone;
        for (key, _) in &jobs {
            self.describe(key)?;
        }
        jobs.sort_by(|(a, _), (b, _)| (Stage::of(a), a).cmp(&(Stage::of(b), b)));
        self.stages(jobs)
    }

    /// Each stage on all threads, one stage behind the other.
    fn stages(&self, jobs: Vec<(Key, u64)>) -> Result<(), ReplicateError> {
        let bytes = jobs.iter().map(|(_, bytes)| bytes).sum();
        self.progress.total(jobs.len() as u64, bytes);
        for stage in jobs.chunk_by(|(a, _), (b, _)| Stage::of(a) == Stage::of(b)) {
            // Heads follow one another.
            let single = Stage::of(&stage[0].0) == Some(Stage::Head);
            let most = usize::try_from(self.settings.memory_bytes / COPY_BYTES).unwrap_or(usize::MAX).max(1);
            let threads = if single { 1 } else { self.settings.workers.clamp(1, most).min(stage.len()) };
            let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
            let failed: Mutex<Option<ReplicateError>> = Mutex::default();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while let Some((key, bytes)) = stage.get(next.fetch_add(1, Ordering::Relaxed)) {
                            if stop.load(Ordering::SeqCst) {
                                return;
                            }
                            if let Err(error) = self.object(key) {
                                stop.store(true, Ordering::SeqCst);
                                failed.lock().expect("no panic while held").get_or_insert(error);
                            }
                            self.progress.add(1, *bytes);
                        }
                    });
                }
            });
            if let Some(error) = failed.into_inner().expect("no panic while held") {
                return Err(error);
            }
        }
        Ok(())
    }

    /// One object: looked at on both sides, and brought where it is missing or damaged.
    fn object(&self, key: &Key) -> Result<(), ReplicateError> {
        let trust = Some(self.settings.trust);
        let there = match self.target.length(key) {
            Ok(_) => examine(self.target, key, trust, &mut |_| Ok(()))?,
            Err(StoreError::NotFound { .. }) => Look::Absent,
            Err(error) => return Err(error.into()),
        };
        if there == Look::Absent && self.changes {
            return self.copy(key);
        }
        let here = examine(self.source, key, trust, &mut |_| Ok(()))?;
        self.report(|report| report.compared += 1);
        match judge(&here, &there) {
            Verdict::Same if Stage::of(key) == Some(Stage::Manifest) => self.look_behind(key)?,
            Verdict::Same | Verdict::Gone => {}
            Verdict::Copy => {
                self.refuse(key);
                self.find(FindingKind::Missing, key, self.target, "it is not there".into());
            }
            Verdict::Heal(problem) if self.changes => self.heal(key, &problem)?,
            Verdict::Heal(problem) => {
                self.refuse(key);
                let problem = self.stale(key, &here)?.unwrap_or(problem);
                self.find(FindingKind::Corrupt, key, self.target, problem);
            }
            Verdict::Conflict => {
                self.refuse(key);
                let problem = self.stale(key, &here)?.unwrap_or_else(|| {
                    format!("it is another object than in {}, and both are sound: two writers, or an old version", self.source.url())
                });
                self.find(FindingKind::Corrupt, key, self.target, problem);
            }
            Verdict::SourceDamaged { problem, other_sound } => {
                if !other_sound {
                    self.refuse(key);
                }
                let hint = if other_sound { format!("; the copy in {} is sound", self.target.url()) } else { String::new() };
                self.find(FindingKind::Corrupt, key, self.source, format!("{problem}{hint}"));
            }
        }
        Ok(())
    }

    /// Whether the right bytes are in the target as a version that is not the latest: replication that went wrong, not a lost object.
    fn stale(&self, key: &Key, here: &Look) -> Result<Option<String>, StoreError> {
        for version in self.target.alternatives(key)? {
            if examine(&*version, key, Some(self.settings.trust), &mut |_| Ok(()))? == *here {
                return Ok(Some("its latest version is not the right one: the right bytes are there as an older version".into()));
            }
        }
        Ok(None)
    }

    fn copy(&self, key: &Key) -> Result<(), ReplicateError> {
        if let Some(problem) = self.must_wait(key)? {
            self.refuse(key);
            self.find(FindingKind::NotChecked, key, self.target, format!("it was not brought: {problem}"));
            return Ok(());
        }
        if let (Some(Stage::Manifest), Some(id)) = (Stage::of(key), layout::backup_of_manifest(key)) {
            // Without its signature it proves nothing; it may have been missed without a word.
            let bundle = layout::manifest_bundle(&id);
            if !is_there(self.target, &bundle)? {
                copy_checked(self.source, self.target, &bundle, Some(self.settings.trust), &mut 0)?;
            }
        }
        let mut bytes = 0;
        match copy_checked(self.source, self.target, key, Some(self.settings.trust), &mut bytes)? {
            Look::Sound { .. } => self.report(|report| {
                report.copied += 1;
                report.copied_bytes += bytes;
            }),
            // It was there a moment ago: what names it must not come without it.
            Look::Absent if Stage::is_named(key) => self.refuse(key),
            Look::Absent => {}
            Look::Damaged(problem) => {
                self.refuse(key);
                self.find(FindingKind::Corrupt, key, self.source, format!("{problem}; it was not copied"));
            }
        }
        Ok(())
    }

    /// A damaged object cannot be overwritten: it is taken away (on a versioned store it stays as a version), and created from the good
    /// copy, which was read to its end just now.
    fn heal(&self, key: &Key, problem: &str) -> Result<(), ReplicateError> {
        self.target.delete(key)?;
        match copy_checked(self.source, self.target, key, Some(self.settings.trust), &mut 0)? {
            Look::Sound { .. } => self.report(|report| report.healed.push(format!("{key}: {problem}"))),
            _ => {
                self.refuse(key);
                self.find(FindingKind::Corrupt, key, self.source, "it changed while the replica was healed".into());
            }
        }
        Ok(())
    }

    /// Why something that names others must not be brought yet (c109).
    fn must_wait(&self, key: &Key) -> Result<Option<String>, ReplicateError> {
        match Stage::of(key) {
            Some(Stage::Run) => self.run_must_wait(key),
            Some(Stage::Head) => {
                let number = layout::number_of(key).unwrap_or(0);
                let artifacts = |refused: &BTreeSet<Key>| refused.iter().find(|key| key.as_str().starts_with("artifacts/")).cloned();
                if let Some(lacking) = artifacts(&self.refused.lock().expect("no panic while held")) {
                    return Ok(Some(format!("{lacking} is not there")));
                }
                if self.settings.mode == Mode::Missed && number > 1 && !is_there(self.target, &layout::artifact_head(number - 1))? {
                    return Ok(Some("the head before it is not there: lifeboat replicate without --missed brings both".into()));
                }
                self.runs_are_there(self.newest_head.unwrap_or(number))
            }
            Some(Stage::Bundle) => {
                let id = key.as_str().split('/').next().and_then(|id| id.parse().ok());
                id.map_or(Ok(None), |id| self.backup_must_wait(&layout::manifest(&id)))
            }
            Some(Stage::Manifest) => self.backup_must_wait(key),
            _ => Ok(None),
        }
    }

    /// Asks for what a run names. It may have been lost without a trace: then it is in no listing, and nobody refused it.
    fn run_must_wait(&self, key: &Key) -> Result<Option<String>, ReplicateError> {
        let Some(run) = self.runs.get(key) else { return Ok(None) };
        let refused = self.refused.lock().expect("no panic while held").clone();
        if self.present.is_none() && self.gone.is_empty() && refused.is_empty() {
            return Ok(None);
        }
        let present = self.present.as_ref().map(|present| present.read().expect("no panic while held"));
        let comes = |key: &Key| {
            !refused.contains(key) && !self.gone.contains(key) && present.as_ref().is_none_or(|present| present.contains_key(key))
        };
        for entry in ArtifactSet::new(self.source, vec![run.clone()]).entries("") {
            let entry = match entry {
                Ok(entry) => entry,
                Err(ArtifactError::Store(error)) => return Err(error.into()),
                // Whoever copies it finds out what is wrong with it.
                Err(_) => return Ok(None),
            };
            let named = [layout::artifact_blob(entry.sha256), layout::artifact_record(&entry.name, &entry.version)];
            if let Some(lacking) = named.into_iter().find(|key| !comes(key)) {
                return Ok(Some(format!("{lacking} is not there")));
            }
        }
        Ok(None)
    }

    /// Whether the target has the runs of a head.
    fn runs_are_there(&self, number: u64) -> Result<Option<String>, ReplicateError> {
        let bytes = read(self.source, &layout::artifact_head(number), MAX_HEAD_BYTES)?;
        let Some(head) = bytes.and_then(|bytes| Head::decode(&bytes).ok()) else { return Ok(None) };
        for run in head.runs.iter().map(|run| layout::artifact_run(run.sha256)) {
            let is_lost = if self.settings.mode == Mode::Missed { self.gone.contains(&run) } else { !is_there(self.target, &run)? };
            if is_lost {
                return Ok(Some(format!("{run} is not there")));
            }
        }
        Ok(None)
    }

    fn backup_must_wait(&self, manifest: &Key) -> Result<Option<String>, ReplicateError> {
        if let Some(judged) = self.judged.lock().expect("no panic while held").get(manifest) {
            return Ok(judged.clone());
        }
        let problem = self.judge_backup(manifest)?;
        self.judged.lock().expect("no panic while held").insert(manifest.clone(), problem.clone());
        Ok(problem)
    }

    fn judge_backup(&self, manifest: &Key) -> Result<Option<String>, ReplicateError> {
        let bytes = match self.source.get(manifest, MAX_MANIFEST_BYTES) {
            Ok(bytes) => bytes,
            // A signature whose backup did not finish: it is of no use there either.
            Err(StoreError::NotFound { .. }) => return Ok(Some("there is no manifest of that backup".into())),
            Err(error) => return Err(error.into()),
        };
        let Ok(manifest) = Manifest::decode(&bytes) else { return Ok(Some("its manifest cannot be read".into())) };
        let refused = self.refused.lock().expect("no panic while held").clone();
        if let Some(lacking) = planning::lacks(&manifest, &refused) {
            return Ok(Some(format!("{lacking} is not there")));
        }
        if let Some(artifacts) = &manifest.artifacts
            && refused
                .iter()
                .any(|key| matches!(Stage::of(key), Some(Stage::Data | Stage::Record)) && key.as_str().starts_with("artifacts/"))
        {
            let set = ArtifactSet::new(self.source, artifacts.runs.clone());
            for entry in set.entries("") {
                let Ok(entry) = entry else { return Ok(Some("its artifacts cannot be listed".into())) };
                let named = [layout::artifact_blob(entry.sha256), layout::artifact_record(&entry.name, &entry.version)];
                if let Some(lacking) = named.into_iter().find(|key| refused.contains(key)) {
                    return Ok(Some(format!("{lacking} is not there")));
                }
            }
        }
        self.is_complete(&manifest)
    }

    /// Asks the target for everything that a manifest names: neither the journal nor a listing of the source says what the source has lost.
    fn is_complete(&self, manifest: &Manifest) -> Result<Option<String>, ReplicateError> {
        let missed = self.settings.mode == Mode::Missed;
        // Its head stands for all that its runs name, where nobody looked for that.
        let head = manifest.artifacts.as_ref().map(|artifacts| artifacts.head).filter(|head| missed && *head > 0);
        for key in planning::named(manifest).chain(head.map(layout::artifact_head)) {
            if !is_there(self.target, &key)? {
                let hint = if missed { ": lifeboat replicate without --missed brings both" } else { "" };
                return Ok(Some(format!("{key} is not there{hint}")));
            }
        }
        Ok(None)
    }

    /// A manifest that is the same on both sides: what it names may be lost on both.
    fn look_behind(&self, manifest: &Key) -> Result<(), ReplicateError> {
        let bytes = read(self.target, manifest, MAX_MANIFEST_BYTES)?;
        let Some(named) = bytes.and_then(|bytes| Manifest::decode(&bytes).ok()) else { return Ok(()) };
        for key in planning::named(&named) {
            let told = self.refused.lock().expect("no panic while held").contains(&key);
            if !told && !is_there(self.target, &key)? {
                self.refuse(&key);
                self.find(FindingKind::Missing, &key, self.target, format!("it is not there, and {manifest} names it"));
            }
        }
        Ok(())
    }

    fn catch_up_on_deletions(&self, missed: &Missed) -> Result<(), ReplicateError> {
        for key in deletions(missed) {
            // Created again since, or never gone.
            if Stage::of(key).is_some() && !is_there(self.source, key)? && is_there(self.target, key)? {
                self.target.delete(key)?;
                self.report(|report| report.deleted += 1);
            }
        }
        Ok(())
    }
}

/// The bytes of a document; `None`: it is not there, or longer than any.
fn read(store: &dyn Store, key: &Key, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    match store.get(key, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::FileTooLarge => Ok(None),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_there(store: &dyn Store, key: &Key) -> Result<bool, StoreError> {
    match store.length(key) {
        Ok(_) => Ok(true),
        Err(error) if error.is_absence() => Ok(false),
        Err(error) => Err(error),
    }
}
