//! Taking away what only expired backups needed, and what nothing names.
//!
//! [`plan`] reads and decides; [`run`] does it under the leases of those who back up and of those who decide what is kept. Manifests go first, so
//! a backup that is half gone is none; whatever ends a prune, the next one finishes it. Writers of artifacts and WAL take no lease: see
//! `artifacts/prune.rs` for the first; of WAL only goes what nothing can be recovered with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::prune::{self as rules, KeptSet, Plan, Step, Stored, named_by_digest, own_objects};
use lifeboat_core::repository::artifact::Run;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::{self, Key};
use lifeboat_core::wal::catalog::BackupPoint;
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::{SystemId, Timeline};

use crate::artifacts::ArtifactError;
use crate::artifacts::prune::{self as garbage, Garbage};
use crate::causes;
use crate::keys::Identities;
use crate::lease::{HeldLease, LeaseError, with_lease};
use crate::opened_backup;
use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError};
use crate::retention::{self, RetentionError};
use crate::signing::Trust;
use crate::store::{Listed, Store, StoreError, is_there};
use crate::wal::{self, Cluster, WalReader};

/// Objects that are taken away at a time: each waits for the store far longer than it works.
const AT_ONCE: usize = 16;

/// Objects that could not be taken away and are named.
const NAMED: usize = 20;

/// Why a prune ended.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// A backup runs, or somebody else decides what is kept.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// What stands beside backups could not be read.
    #[error(transparent)]
    Retention(#[from] RetentionError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Artifacts.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// Whoever was asked about the plan said no.
    #[error("prune: the plan was not agreed to; nothing was deleted")]
    Refused,
}

/// Asked once, about the plan as it will be carried out, while nobody else can change what it is made of and before anything goes.
pub type Consent<'a> = &'a mut dyn FnMut(&Plan) -> bool;

/// How to prune.
pub struct PruneSettings<'a> {
    /// Whom to believe.
    pub trust: &'a Trust,
    /// This host.
    pub host: &'a str,
    /// WAL that no backup leads to stays until it is as old as this, and artifacts until they were in no set for as long.
    pub keep_for: SignedDuration,
    /// Backups that were given up: their manifests are lost or cannot be verified.
    pub forget: BTreeSet<BackupId>,
}

/// What a prune did.
#[derive(Debug, Default)]
pub struct Pruned {
    /// What it set out to do.
    pub plan: Plan,
    /// Objects that are gone.
    pub objects: u64,
    /// Objects that the store did not let go.
    pub held: u64,
    /// The first of them, and why.
    pub held_first: Vec<String>,
}

impl Pruned {
    /// The same, with manifests that the store did not let go.
    fn with_held(mut self, refused: Vec<(Key, String)>) -> Self {
        self.held += refused.len() as u64;
        self.held_first.splice(0..0, refused.into_iter().map(|(key, why)| format!("{key}: {why}")));
        self.held_first.truncate(NAMED);
        self
    }
}

/// A plan, and what only the doing needs.
struct Prepared {
    plan: Plan,
    artifacts: Option<Garbage>,
    /// Which steps are the artifacts'.
    artifact_steps: std::ops::Range<usize>,
}

/// What manifests that stay name.
#[derive(Default)]
struct Named {
    packs: KeptSet,
    objects: BTreeSet<String>,
    runs: BTreeMap<lifeboat_core::repository::Sha256, Run>,
    points: BTreeMap<SystemId, Vec<BackupPoint>>,
    /// A copy of a data directory of which nobody knows which cluster's it is.
    stray: Option<BackupId>,
}

/// Says what a prune would do now.
pub fn plan(repository: &Repository, settings: &PruneSettings<'_>, now: Timestamp) -> Result<Plan, PruneError> {
    prepare(repository, settings, &BTreeSet::new(), now).map(|prepared| prepared.plan)
}

/// Plans a prune; backups in `bound` stay because the store does not let their manifests go.
fn prepare(
    repository: &Repository,
    settings: &PruneSettings<'_>,
    bound: &BTreeSet<BackupId>,
    now: Timestamp,
) -> Result<Prepared, PruneError> {
    let (stored, doubts) = retention::survey(repository, settings.trust, now)?;
    let mut backups = rules::backups(&stored, &settings.forget, now);
    for id in bound {
        backups.hold(id, "the store does not let its manifest go");
    }
    let mut plan = Plan { backups, warnings: doubts, ..Plan::default() };
    lost(repository.store(), &stored, settings, now, &mut plan)?;
    if !plan.backups.blocked.is_empty() {
        return Ok(Prepared { plan, artifacts: None, artifact_steps: 0..0 });
    }
    let named = named(repository, settings.trust, stored.iter().filter(|one| !plan.backups.leaves(&one.candidate.id)))?;
    let words = own(repository, &named, &mut plan)?;
    packs(repository.store(), &named, &mut plan)?;
    wal_steps(repository, settings, &named, &mut plan, now)?;
    let begin = plan.steps.len();
    let runs: Vec<Run> = named.runs.values().cloned().collect();
    let oldest = now.saturating_sub(settings.keep_for).unwrap_or(Timestamp::MIN);
    let artifacts = match garbage::garbage(repository.store(), &runs, oldest) {
        Ok(found) => {
            artifact_steps(&found, &mut plan);
            Some(found)
        }
        // Damage: nobody knows what else is needed. The rest has nothing to do with it.
        Err(error @ (ArtifactError::Finding(_) | ArtifactError::Format(_))) => {
            plan.warnings.push(format!("no artifacts go, because a set cannot be read: {}", causes::joined(&error)));
            None
        }
        Err(error) => return Err(error.into()),
    };
    let artifact_steps = begin..plan.steps.len();
    leases(repository.store(), &mut plan)?;
    numbered(repository.store(), layout::VISITS, &layout::visit, (rules::VISITS, "newer ones say what is held"), &mut plan)?;
    plan.push(Step::ordered(WORDS, "their backups are gone", words));
    Ok(Prepared { plan, artifacts, artifact_steps })
}

/// Backups that a further place has and the first one has not: lost there, and what they need would go everywhere.
fn lost(store: &dyn Store, stored: &[Stored], settings: &PruneSettings<'_>, now: Timestamp, plan: &mut Plan) -> Result<(), PruneError> {
    // One that a prune takes away loses its manifest first, and its mark last.
    let known = |id: &BackupId| stored.iter().any(|one| one.candidate.id == *id && (one.manifest || one.candidate.prune_after.is_some()));
    for place in store.further() {
        let there = match place.store {
            Ok(there) => there,
            Err(error) => {
                let why = causes::joined(&error);
                plan.warnings.push(format!("whether {} has backups that are lost here was not looked at: {why}", place.name));
                continue;
            }
        };
        let names = there.list_segments("")?;
        for id in names.iter().filter_map(|name| name.strip_suffix('/')?.parse::<BackupId>().ok()) {
            let manifest = layout::manifest(&id);
            if known(&id) || plan.backups.leaves(&id) || place.to_delete.contains(&manifest) {
                continue;
            }
            if settings.forget.contains(&id) {
                match retention::standing(there, &id, None, Some(settings.trust), now)?.pins.first() {
                    None => plan.backups.leaving.push(rules::Because { backup: id, reason: "it was given up".to_owned() }),
                    Some(pin) => {
                        let (place, pin) = (&place.name, &pin.name);
                        plan.backups.blocked.push(format!("backup {id} is in {place} and not here, and pin {pin} holds it"));
                    }
                }
                continue;
            }
            // One that another host's prune took away here, and not there yet, is marked there as well.
            if is_there(there, &manifest)? && !retention::is_being_pruned(there, &id, settings.trust, now)? {
                plan.backups.blocked.push(format!(
                    "backup {id} is in {} and not here: lifeboat replicate --from {} brings it back, and --forget gives it up",
                    place.name, place.name
                ));
            }
        }
    }
    Ok(())
}

fn named<'s>(repository: &Repository, trust: &Trust, staying: impl Iterator<Item = &'s Stored>) -> Result<Named, PruneError> {
    let mut named = Named::default();
    for one in staying.filter(|one| one.manifest) {
        // Read again, and one at a time: all of them would not fit into memory.
        let backup = opened_backup::open(repository, &one.candidate.id, trust).map_err(RetentionError::from)?;
        let manifest = backup.manifest;
        manifest.packs.iter().for_each(|pack| named.packs.insert(pack.sha256));
        named.objects.extend(manifest.sealed_objects().map(str::to_owned));
        if let Some(postgres) = &manifest.postgres {
            match postgres.system_id {
                Some(system_id) => named.points.entry(system_id).or_default().extend(BackupPoint::of(&manifest, system_id)),
                None if postgres.physical.is_some() => named.stray = Some(backup.id.clone()),
                None => {}
            }
        }
        for run in manifest.artifacts.into_iter().flat_map(|artifacts| artifacts.runs) {
            named.runs.insert(run.sha256, run);
        }
    }
    named.packs.seal();
    Ok(named)
}

fn pairs(listed: Vec<Listed>) -> impl Iterator<Item = (Key, u64)> {
    listed.into_iter().map(|listed| (listed.key, listed.bytes))
}

/// What stands under the ids of backups that go: their manifests, then the rest; and at last what is to go after everything else.
fn own(repository: &Repository, named: &Named, plan: &mut Plan) -> Result<Vec<(Key, u64)>, PruneError> {
    let (mut manifests, mut parts, mut words) = (Vec::new(), Vec::new(), Vec::new());
    let further = repository.store().further();
    for because in plan.backups.leaving.clone() {
        let id = &because.backup;
        let mut listed = repository.store().list(&layout::backup(id))?;
        // A prune that was killed between two places left in the further one what the first one has no more.
        for place in &further {
            match &place.store {
                Ok(there) => listed.extend(there.list(&layout::backup(id))?),
                // It misses this, which is written down.
                Err(_) => listed.extend([layout::manifest(id), layout::manifest_bundle(id)].map(|key| Listed { key, bytes: 0 })),
            }
        }
        // Stable: of an object that several places have, the first one says how long it is.
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        listed.dedup_by(|later, earlier| later.key == earlier.key);
        let own = own_objects(&because.backup, pairs(listed), &named.objects);
        manifests.extend(own.manifest);
        parts.extend(own.parts);
        words.extend(own.words);
        plan.leave(own.unknown);
    }
    plan.push(Step::new(MANIFESTS, "their backups go", manifests));
    plan.push(Step::new("signatures and tables", "their backups go", parts));
    Ok(words)
}

const MANIFESTS: &str = "manifests";

const WORDS: &str = "pins and marks";

fn packs(store: &dyn Store, named: &Named, plan: &mut Plan) -> Result<(), PruneError> {
    let mut garbage = Vec::new();
    for part in store.list_segments(layout::PACKS)?.into_iter().filter(|part| part.ends_with('/')) {
        for (key, bytes) in pairs(store.list(&format!("{}{part}", layout::PACKS))?) {
            match named_by_digest(&key, layout::pack) {
                Err(_) => plan.leave([key]),
                Ok(digest) if named.packs.contains(digest) => {}
                Ok(_) => garbage.push((key, bytes)),
            }
        }
    }
    plan.push(Step::new("packs", "no backup that stays names them", garbage));
    Ok(())
}

fn wal_steps(
    repository: &Repository,
    settings: &PruneSettings<'_>,
    named: &Named,
    plan: &mut Plan,
    now: Timestamp,
) -> Result<(), PruneError> {
    if let Some(stray) = &named.stray {
        plan.warnings.push(format!("no WAL goes, because nobody knows which cluster's backup {stray} is"));
        return Ok(());
    }
    for system_id in wal::clusters(repository)? {
        let archive = match wal::archive::load(repository, system_id, settings.trust) {
            Ok(Some(archive)) => archive,
            Ok(None) => continue,
            Err(wal::WalError::Store(error)) => return Err(error.into()),
            Err(error) => {
                plan.warnings.push(format!("no WAL of cluster {system_id} goes, because it cannot be read: {}", causes::joined(&error)));
                continue;
            }
        };
        // What nobody can read may be younger than what is beside it.
        if let Some(doubt) = archive.doubts().first() {
            plan.warnings.push(format!("no WAL of cluster {system_id} goes, because it cannot be read: {doubt}"));
            continue;
        }
        let cluster = Cluster { system_id, segment_size: archive.segment_size() };
        let reader = WalReader::new(repository, cluster, settings.trust, Identities::default());
        let mut last: BTreeMap<Timeline, Timestamp> = BTreeMap::new();
        for state in archive.state() {
            if let Some(end) = state.last {
                let time = wal::survey::last_commit_before(&archive, &reader, state.timeline, end);
                last.extend(time.map(|time| (state.timeline, time)));
            }
        }
        let points = named.points.get(&system_id).map_or(&[][..], Vec::as_slice);
        let horizon = now.saturating_sub(settings.keep_for).unwrap_or(Timestamp::MIN);
        let rules = rules::wal(&archive, points, &last, horizon);
        for rule in rules.iter().filter(|rule| rule.keep_from != Some(0)) {
            let listed = repository.store().list(&layout::wal_timeline(system_id, rule.timeline))?;
            let (known, unknown): (Vec<_>, Vec<_>) = pairs(listed)
                .map(|(key, bytes)| (WalFile::from_key(&key, system_id, cluster.segment_size), key, bytes))
                .partition(|(file, ..)| file.is_some());
            plan.leave(unknown.into_iter().map(|(_, key, _)| key));
            let goes = known.into_iter().filter(|(file, ..)| file.is_some_and(|file| rule.lets_go(file)));
            plan.push(Step::new("WAL", rule.reason.clone(), goes.map(|(_, key, bytes)| (key, bytes)).collect()));
        }
        plan.wal.push((system_id.to_string(), rules));
    }
    Ok(())
}

fn artifact_steps(found: &Garbage, plan: &mut Plan) {
    let why = "no backup and no present or recent artifact set needs them";
    plan.push(Step::new("artifact blobs", why, found.blobs.clone()));
    plan.push(Step::new("artifact records", why, found.records.clone()));
    // After the records that only they name.
    plan.push(Step::new("catalog runs", why, found.runs.clone()));
    plan.push(Step::ordered(rules::ARTIFACT_HEADS, "newer ones say what the set is", found.heads.clone()));
    plan.push(Step::new("lists of an earlier prune", "it is over", found.lists.clone()));
    plan.leave(found.unknown.iter().cloned());
    plan.warnings.extend(found.warnings.iter().cloned());
    plan.more |= found.more;
}

fn leases(store: &dyn Store, plan: &mut Plan) -> Result<(), PruneError> {
    for purpose in store.list_segments(layout::LEASES)?.into_iter().filter(|part| part.ends_with('/')) {
        let purpose = purpose.trim_end_matches('/');
        let of = |number| layout::lease(purpose, number);
        numbered(store, &layout::leases(purpose), &of, (rules::LEASE_EPOCHS, "newer ones decide"), plan)?;
    }
    Ok(())
}

/// Numbered objects of which only the newest say anything.
fn numbered(
    store: &dyn Store,
    prefix: &str,
    of: &dyn Fn(u64) -> Key,
    (what, why): (&'static str, &str),
    plan: &mut Plan,
) -> Result<(), PruneError> {
    let mut bytes = BTreeMap::new();
    for (key, length) in pairs(store.list(prefix)?) {
        match layout::number_of(&key).filter(|number| of(*number) == key) {
            Some(number) => drop(bytes.insert(number, length)),
            None => plan.leave([key]),
        }
    }
    let going = rules::numbered_garbage(bytes.keys().copied().collect(), None);
    let listed = going.into_iter().map(|number| (of(number), bytes[&number])).collect();
    plan.push(Step::ordered(what, why, listed));
    Ok(())
}

/// Prunes.
pub fn run(repository: &Repository, settings: &PruneSettings<'_>, now: Timestamp, progress: &dyn Progress) -> Result<Pruned, PruneError> {
    run_if(repository, settings, (now, now), progress, &mut |_| true)
}

/// Prunes, if `consent` agrees to the plan. It is made for the time `planned`, which may be past: things are let go with time, so a plan that
/// was made before comes out the same only for its own time, and nothing is in it that would not go `now`.
///
/// # Errors
///
/// [`PruneError::Refused`] if it does not agree.
pub fn run_if(
    repository: &Repository,
    settings: &PruneSettings<'_>,
    (planned, now): (Timestamp, Timestamp),
    progress: &dyn Progress,
    consent: Consent<'_>,
) -> Result<Pruned, PruneError> {
    let store = repository.store();
    let mut asked = false;
    // While a backup runs, what it wrote looks like garbage.
    with_lease(store, "backup", settings.host, &|said| progress.warn(said), |backup| {
        with_lease(store, retention::LEASE, settings.host, &|said| progress.warn(said), |retention| {
            let leases = Leases(backup, retention);
            let mut bound = BTreeSet::new();
            let (mut gone, mut kept) = (0, Vec::new());
            loop {
                let prepared = prepare(repository, settings, &bound, planned)?;
                // What the store then does not let go makes it less, and never more.
                if !std::mem::replace(&mut asked, true) && !consent(&prepared.plan) {
                    return Err(PruneError::Refused);
                }
                let Some(step) = prepared.plan.steps.first().filter(|step| step.what == MANIFESTS) else {
                    return execute(store, prepared, gone, &leases, progress, now).map(|done| done.with_held(kept));
                };
                // As long as a manifest is there, everything that it names has to be.
                let (done, refused) = delete(store, step, &leases, progress)?;
                gone += done;
                if refused.is_empty() {
                    return execute(store, without_manifests(prepared), gone, &leases, progress, now).map(|done| done.with_held(kept));
                }
                for (key, _) in &refused {
                    bound.extend(layout::backup_of_manifest(key));
                }
                kept.extend(refused);
            }
        })
    })
}

/// The manifests are gone; the plan still tells of them.
fn without_manifests(mut prepared: Prepared) -> Prepared {
    prepared.plan.steps[0].keys.clear();
    prepared
}

struct Leases<'l, 'a>(&'l HeldLease<'a>, &'l HeldLease<'a>);

impl Leases<'_, '_> {
    fn check(&self) -> Result<(), LeaseError> {
        self.0.check().and_then(|()| self.1.check())
    }
}

fn execute(
    store: &dyn Store,
    prepared: Prepared,
    gone: u64,
    leases: &Leases<'_, '_>,
    progress: &dyn Progress,
    now: Timestamp,
) -> Result<Pruned, PruneError> {
    let Prepared { plan, mut artifacts, artifact_steps } = prepared;
    let mut done = Pruned { objects: gone, ..Pruned::default() };
    progress.phase("prune");
    progress.total(plan.objects(), plan.bytes());
    let mut number = None;
    let mut spared: Option<BTreeSet<Key>> = None;
    // Where something is left of a backup, so is the word that it goes: without it the next prune would not know what the rest is.
    let mut left_over: BTreeSet<String> = BTreeSet::new();
    let of = |key: &Key| key.as_str().split('/').next().unwrap_or_default().to_owned();
    for (index, step) in plan.steps.iter().enumerate() {
        if index == artifact_steps.start
            && !artifact_steps.is_empty()
            && let Some(found) = &mut artifacts
        {
            leases.check()?;
            number = found.condemn(store, now)?;
            // What somebody came to need since it was looked at stays.
            let left = found.blobs.iter().chain(&found.records).chain(&found.runs).map(|(key, _)| key.clone());
            spared = Some(left.collect());
        }
        let condemned = artifact_steps.contains(&index) && matches!(step.what, "artifact blobs" | "artifact records" | "catalog runs");
        let (removed, refused) = match spared.as_ref().filter(|_| condemned) {
            Some(left) => {
                let keys = step.keys.iter().filter(|key| left.contains(key)).map(|key| (key.clone(), 0)).collect();
                delete(store, &Step::new(step.what, step.why.clone(), keys), leases, progress)?
            }
            None if step.what == WORDS => {
                let keys = step.keys.iter().filter(|key| !left_over.contains(&of(key))).map(|key| (key.clone(), 0)).collect();
                delete(store, &Step::ordered(WORDS, step.why.clone(), keys), leases, progress)?
            }
            None => delete(store, step, leases, progress)?,
        };
        left_over.extend(refused.iter().map(|(key, _)| of(key)));
        done.objects += removed;
        done.held += refused.len() as u64;
        let room = NAMED.saturating_sub(done.held_first.len());
        done.held_first.extend(refused.into_iter().take(room).map(|(key, why)| format!("{key}: {why}")));
        if index + 1 == artifact_steps.end
            && let Some(number) = number.take()
        {
            // A store that does not let the list go is none the worse: without our lease it says nothing.
            match garbage::absolve(store, number) {
                Ok(()) | Err(StoreError::Denied { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    done.plan = plan;
    Ok(done)
}

/// Takes the objects of a step away: how many are gone, and which the store did not let go.
fn delete(
    store: &dyn Store,
    step: &Step,
    leases: &Leases<'_, '_>,
    progress: &dyn Progress,
) -> Result<(u64, Vec<(Key, String)>), PruneError> {
    let refused = Mutex::new(Vec::new());
    let broken: Mutex<Option<PruneError>> = Mutex::default();
    let (next, gone) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        loop {
            if broken.lock().expect("no panic while held").is_some() {
                return;
            }
            if step.ordered && !refused.lock().expect("no panic while held").is_empty() {
                return;
            }
            let Some(key) = step.keys.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let deleted = leases.check().map_err(PruneError::from).and_then(|()| Ok(store.delete(key)?));
            match deleted {
                Ok(()) => drop(gone.fetch_add(1, Ordering::Relaxed)),
                // Retention that still holds; the next prune tries again.
                Err(PruneError::Store(error @ StoreError::Denied { .. })) => {
                    refused.lock().expect("no panic while held").push((key.clone(), causes::joined(&error)));
                }
                Err(error) => drop(broken.lock().expect("no panic while held").get_or_insert(error)),
            }
            progress.add(1, 0);
        }
    };
    let threads = if step.ordered { 1 } else { AT_ONCE.min(step.keys.len()).max(1) };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match broken.into_inner().expect("no panic while held") {
        Some(error) => Err(error),
        None => Ok((gone.into_inner() as u64, refused.into_inner().expect("no panic while held"))),
    }
}

#[cfg(test)]
mod tests;
