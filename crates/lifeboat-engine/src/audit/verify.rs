//! Checking a log whole: every record, tile, bundle and checkpoint against each other, and against what others remember of it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use lifeboat_core::audit::{Anchor, Entry, Event, Phase, State, entries, judge, judge_journal};
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::{self, AUDIT_WIDTH, AuditObject, Key};
use lifeboat_core::repository::manifest::Manifest;
use lifeboat_core::verify::{Finding, FindingKind};
use serde::Serialize;
use tlog_tiles::{HASH_SIZE, Hash};

use super::key::{Checkpoint, Flaw, MAX_CHECKPOINT_BYTES, MAX_LEAF_BYTES, Verifiers};
use super::read::{self, MAX_BUNDLE_BYTES};
use super::tree::{self, Tree};
use super::{AuditError, Log, finding, hash_to_sha256};
use crate::causes;
use crate::repository::{MAX_MANIFEST_BYTES, Repository, RepositoryError};
use crate::store::{Store, StoreError};

/// Objects that are read at a time, and then compared.
const BATCH: usize = 256;

/// A checkpoint that somebody kept elsewhere.
pub struct Pin {
    /// Where it is from, for findings.
    pub name: String,
    /// The signed note.
    pub note: Vec<u8>,
}

/// What a check of a log came to.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Records that the log has, or should have.
    pub records: u64,
    /// The newest checkpoint that counts: worth keeping somewhere else.
    pub checkpoint: Option<String>,
    /// Records behind it, each signed by itself.
    pub unsealed: u64,
    /// Checkpoints that were compared: of the log, of manifests, pins, and this host's own memory.
    pub anchors: u64,
    /// Records that are in this host's journal and in no repository yet.
    pub waiting: u64,
    /// Records signed by this host's key that this host's journal, which is older than they are, does not have.
    pub unknown_here: u64,
    /// Records of a later version of lifeboat.
    pub newer: u64,
    /// Operations that began long ago and did not end.
    pub unfinished: Vec<Entry>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Checks the log of a repository against itself, the manifests of its backups, this host's journal and `pins`.
pub fn verify(log: &Log, repository: &Repository, pins: &[Pin], now: Timestamp) -> Result<Report, AuditError> {
    let (store, verifiers) = (repository.store(), log.verifiers(repository));
    let mut check = Check::new(store, &verifiers)?;
    let records = check.records()?;
    let checkpoints = check.checkpoints()?;
    let size = check.size(&checkpoints);
    check.note_missing(size);
    let tree = check.tree(size);
    check.tiles(&tree, &checkpoints)?;
    check.bundles(&checkpoints)?;
    let newest = checkpoints.iter().max_by_key(|checkpoint| checkpoint.size).cloned();
    let mut anchors: Vec<Anchor> =
        checkpoints.iter().map(|head| anchor(head, layout::audit_checkpoint(head.size).to_string(), None)).collect();
    let mut told = check.manifests(repository)?;
    for pin in pins {
        match verifiers.checkpoint(&pin.note) {
            Ok(head) => told.push(anchor(&head, pin.name.clone(), None)),
            Err(flaw) => check.findings.push(finding(flaw, pin.name.clone())),
        }
    }
    let state = log.journal.state().map_err(|source| log.unread(source))?;
    if let Some(seen) = log.seen(&verifiers, &state) {
        told.push(anchor(&seen, "the checkpoint that this host remembers".into(), None));
    }
    for anchor in &told {
        // Whoever told of it saw it in the repository.
        if anchor.size <= size && !check.listed.contains(&AuditObject::Checkpoint(anchor.size)) {
            let problem = format!("{} has it, and it is not there", anchor.object);
            let object = layout::audit_checkpoint(anchor.size).to_string();
            check.findings.push(Finding { kind: FindingKind::Missing, backup: None, object, file: None, problem });
        }
    }
    anchors.extend(told);
    let root = |size: u64| tree.root(size).ok().map(hash_to_sha256);
    check.findings.extend(anchors.iter().filter_map(|anchor| judge(anchor, size, root)));
    let stored = log.stored(verifiers.repository)?;
    let leaf = |index: u64| check.leaves.get(&index).copied().map(hash_to_sha256);
    let strayed: Vec<Finding> = stored.iter().filter_map(|stored| judge_journal(stored, size, leaf)).collect();
    check.findings.extend(strayed);
    let here: BTreeSet<_> = stored.iter().map(|stored| stored.index).collect();
    let own = log.key.as_ref().map(|key| key.verifier().name().to_owned());
    let unknown_here = match (here.first(), own) {
        (Some(first), Some(own)) => {
            records.signed_by.iter().filter(|(index, by)| *index > first && **by == own && !here.contains(index)).count() as u64
        }
        _ => 0,
    };
    let events = records.events.into_iter().map(|(index, event)| (Some(index), event));
    let mut unfinished = entries(events, now);
    unfinished.retain(|entry| entry.state == State::Unfinished);
    check.findings.sort_by(|a, b| (&a.object, &a.problem).cmp(&(&b.object, &b.problem)));
    check.findings.dedup();
    Ok(Report {
        records: size,
        unsealed: size - newest.as_ref().map_or(0, |head| head.size.min(size)),
        checkpoint: newest.map(|head| head.note),
        anchors: anchors.len() as u64,
        waiting: log.waiting()? as u64,
        unknown_here,
        newer: records.newer,
        unfinished,
        findings: check.findings,
    })
}

fn anchor(head: &Checkpoint, object: String, backup: Option<&BackupId>) -> Anchor {
    Anchor { size: head.size, root: hash_to_sha256(head.root), object, backup: backup.map(ToString::to_string) }
}

/// What records say, as far as they count.
#[derive(Default)]
struct Records {
    /// Starts and ends, without what makes them long.
    events: BTreeMap<u64, Event>,
    signed_by: BTreeMap<u64, String>,
    newer: u64,
}

struct Check<'a> {
    store: &'a dyn Store,
    verifiers: &'a Verifiers,
    listed: BTreeSet<AuditObject>,
    /// Hashes of the leaves that are known: from records that count, or else from bundles and tiles.
    leaves: BTreeMap<u64, Hash>,
    /// Records that were reported already.
    bad: BTreeSet<u64>,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn new(store: &'a dyn Store, verifiers: &'a Verifiers) -> Result<Self, AuditError> {
        let mut check =
            Self { store, verifiers, listed: BTreeSet::new(), leaves: BTreeMap::new(), bad: BTreeSet::new(), findings: Vec::new() };
        for listed in store.list(layout::AUDIT)? {
            match layout::audit_object(&listed.key) {
                Some(object) => _ = check.listed.insert(object),
                None => check.find(FindingKind::Corrupt, &listed.key, "it is no object of an audit log"),
            }
        }
        // What a listing does not show yet has a name all the same.
        let mut next = check.leaf_numbers().last().map_or(0, |last| last + 1);
        while store.length(&layout::audit_leaf(next)).map(|_| true).or_else(absent)? {
            check.listed.insert(AuditObject::Leaf(next));
            next += 1;
        }
        Ok(check)
    }

    fn find(&mut self, kind: FindingKind, key: &Key, problem: impl Into<String>) {
        self.findings.push(Finding { kind, backup: None, object: key.to_string(), file: None, problem: problem.into() });
    }

    fn leaf_numbers(&self) -> Vec<u64> {
        self.listed.iter().filter_map(|object| if let AuditObject::Leaf(index) = object { Some(*index) } else { None }).collect()
    }

    /// Reads objects, several at a time, and hands them on in order. What fails to be read is a finding.
    fn each(&mut self, objects: &[AuditObject], limit: u64, mut look: impl FnMut(&mut Self, AuditObject, Result<Vec<u8>, Flaw>)) {
        for batch in objects.chunks(BATCH) {
            let read = read::in_parallel(self.store, batch, |object| read::get(self.store, &object.key(), limit));
            for (object, bytes) in batch.iter().zip(read) {
                match bytes {
                    Ok(bytes) => look(self, *object, bytes),
                    Err(error) => self.find(FindingKind::NotChecked, &object.key(), causes::joined(&error)),
                }
            }
        }
    }

    /// Every record that is there.
    fn records(&mut self) -> Result<Records, AuditError> {
        let mut records = Records::default();
        let objects: Vec<AuditObject> = self.leaf_numbers().into_iter().map(AuditObject::Leaf).collect();
        self.each(&objects, MAX_LEAF_BYTES, |check, object, bytes| {
            let AuditObject::Leaf(index) = object else { return };
            let verified = bytes.and_then(|bytes| {
                let (record, key) = check.verifiers.record(&bytes, index)?;
                Ok((record, key.key.name().to_owned(), tlog_tiles::record_hash(&bytes)))
            });
            match verified {
                Ok((record, by, hash)) => {
                    check.leaves.insert(index, hash);
                    records.signed_by.insert(index, by);
                    match record.event {
                        Some(event) => _ = records.events.insert(index, slim(event)),
                        None => records.newer += 1,
                    }
                }
                Err(flaw) => {
                    check.bad.insert(index);
                    check.findings.push(finding(flaw, layout::audit_leaf(index).to_string()));
                }
            }
        });
        Ok(records)
    }

    /// Every checkpoint that counts.
    fn checkpoints(&mut self) -> Result<Vec<Checkpoint>, AuditError> {
        let objects: Vec<AuditObject> = self.listed.iter().copied().filter(|object| matches!(object, AuditObject::Checkpoint(_))).collect();
        let mut all = Vec::new();
        self.each(&objects, MAX_CHECKPOINT_BYTES, |check, object, bytes| {
            let AuditObject::Checkpoint(size) = object else { return };
            match bytes.and_then(|bytes| check.verifiers.checkpoint(&bytes)) {
                Ok(head) if head.size == size => all.push(head),
                Ok(head) => check.find(FindingKind::Corrupt, &object.key(), format!("it is a checkpoint of {} records", head.size)),
                Err(flaw) => check.findings.push(finding(flaw, object.key().to_string())),
            }
        });
        Ok(all)
    }

    /// How many records the log has, or had.
    fn size(&self, checkpoints: &[Checkpoint]) -> u64 {
        let last = self.leaf_numbers().last().map_or(0, |last| last + 1);
        checkpoints.iter().map(|head| head.size).max().unwrap_or(0).max(last)
    }

    /// Records that are not there, those in a row together.
    fn note_missing(&mut self, size: u64) {
        let mut at = 0;
        let there = self.leaf_numbers();
        for next in there.into_iter().chain([size]) {
            if at < next {
                let problem = match next - at {
                    1 => "the record is not there".to_owned(),
                    many => format!("{many} records, up to {}, are not there", next - 1),
                };
                self.find(FindingKind::Missing, &layout::audit_leaf(at), problem);
            }
            at = next + 1;
        }
    }

    /// The tree over the records, as far as their hashes are known. A lost record leaves its hash in a bundle or a tile; whether that is right, checkpoints
    /// tell.
    fn tree(&mut self, size: u64) -> Tree<'static> {
        let mut tree = Tree::empty();
        let mut part: Option<(u64, Vec<Hash>)> = None;
        for index in 0..size {
            if !self.leaves.contains_key(&index) {
                let number = index / AUDIT_WIDTH;
                if part.as_ref().is_none_or(|(known, _)| *known != number) {
                    part = Some((number, self.hashes_of(number)));
                }
                let hash = part.as_ref().and_then(|(_, hashes)| hashes.get((index % AUDIT_WIDTH) as usize)).copied();
                if let Some(hash) = hash {
                    self.leaves.insert(index, hash);
                }
            }
            let Some(hash) = self.leaves.get(&index) else { break };
            tree.push(*hash).expect("a tree in memory has every hash");
        }
        tree
    }

    /// Hashes of 256 records, from their bundle if all in it counts, else from the widest tile.
    fn hashes_of(&self, number: u64) -> Vec<Hash> {
        if let Ok(Ok(bundle)) = read::get(self.store, &layout::audit_entries(number), MAX_BUNDLE_BYTES)
            && let Some(entries) = read::decode_bundle(&bundle)
            && entries.iter().zip(number * AUDIT_WIDTH..).all(|(entry, index)| self.verifiers.record(entry, index).is_ok())
        {
            return entries.into_iter().map(tlog_tiles::record_hash).collect();
        }
        let widest = self.listed.iter().filter_map(|object| match object {
            AuditObject::Tile { level: 0, number: n, width } if *n == number => Some(*width),
            _ => None,
        });
        let Some(width) = widest.max() else { return Vec::new() };
        match read::get(self.store, &layout::audit_tile(0, number, width), AUDIT_WIDTH * HASH_SIZE as u64) {
            Ok(Ok(bytes)) => bytes.chunks_exact(HASH_SIZE).map(|hash| Hash(hash.try_into().expect("32 bytes"))).collect(),
            _ => Vec::new(),
        }
    }

    /// Every tile that is there, and those that checkpoints need.
    fn tiles(&mut self, tree: &Tree<'_>, checkpoints: &[Checkpoint]) -> Result<(), AuditError> {
        let objects: Vec<AuditObject> = self.listed.iter().copied().filter(|object| matches!(object, AuditObject::Tile { .. })).collect();
        self.each(&objects, AUDIT_WIDTH * HASH_SIZE as u64, |check, object, bytes| {
            let AuditObject::Tile { level, number, width } = object else { return };
            let tile = tlog_tiles::Tile::new(tree::HEIGHT, level.min(63), number, u32::try_from(width).unwrap_or(1), false);
            let expected = tree.tile(&tile).ok().flatten();
            match (bytes, expected) {
                (Ok(bytes), Some(expected)) if bytes == expected => {}
                (Ok(_), Some(_)) => check.find(FindingKind::Corrupt, &object.key(), "it is not what follows from the records"),
                (Ok(_), None) => check.find(FindingKind::NotChecked, &object.key(), "records that it is of are not there"),
                (Err(flaw), _) => check.findings.push(finding(flaw, object.key().to_string())),
            }
        });
        let newest = checkpoints.iter().map(|head| head.size).max().unwrap_or(0);
        let mut needed: BTreeSet<AuditObject> = tree::tiles(0, newest).iter().map(object_of).collect();
        needed.extend(checkpoints.iter().flat_map(|head| tree::partial_tiles(head.size)).map(|tile| object_of(&tile)));
        let lost: Vec<AuditObject> = needed.difference(&self.listed).copied().collect();
        lost.iter().for_each(|object| self.find(FindingKind::Missing, &object.key(), "a checkpoint needs it, and it is not there"));
        Ok(())
    }

    /// Every bundle that is there, and those that the newest checkpoint needs.
    fn bundles(&mut self, checkpoints: &[Checkpoint]) -> Result<(), AuditError> {
        let objects: Vec<AuditObject> = self.listed.iter().copied().filter(|object| matches!(object, AuditObject::Entries(_))).collect();
        for object in &objects {
            let one = [*object];
            self.each(&one, MAX_BUNDLE_BYTES, |check, object, bytes| {
                let AuditObject::Entries(number) = object else { return };
                let problem = match bytes {
                    Err(flaw) => return check.findings.push(finding(flaw, object.key().to_string())),
                    Ok(bytes) => match read::decode_bundle(&bytes) {
                        None => Some("it is no bundle of 256 records".to_owned()),
                        Some(entries) => {
                            let wrong = entries
                                .iter()
                                .zip(number * AUDIT_WIDTH..)
                                .find(|(entry, index)| check.leaves.get(index).is_none_or(|leaf| *leaf != tlog_tiles::record_hash(entry)));
                            wrong.map(|(_, index)| format!("what it has as record {index} is another"))
                        }
                    },
                };
                if let Some(problem) = problem {
                    check.find(FindingKind::Corrupt, &object.key(), problem);
                }
            });
        }
        let newest = checkpoints.iter().map(|head| head.size).max().unwrap_or(0);
        let lost: Vec<AuditObject> =
            (0..newest / AUDIT_WIDTH).map(AuditObject::Entries).filter(|object| !self.listed.contains(object)).collect();
        lost.iter().for_each(|object| self.find(FindingKind::Missing, &object.key(), "its 256 records are complete, and it is not there"));
        Ok(())
    }

    /// The checkpoints that manifests carry. A manifest's own signature is the business of `verify`: the checkpoint is signed by itself.
    fn manifests(&mut self, repository: &Repository) -> Result<Vec<Anchor>, AuditError> {
        let mut anchors = Vec::new();
        let ids = repository.backups().map_err(|error| match error {
            RepositoryError::Store(error) => error,
            other => StoreError::Io {
                action: "list",
                key: "backups".into(),
                store: self.store.url().to_owned(),
                source: std::io::Error::other(other.to_string()),
            },
        })?;
        for id in ids {
            let key = layout::manifest(&id);
            let mut find = |kind, problem: String| {
                self.findings.push(Finding { kind, backup: Some(id.to_string()), object: key.to_string(), file: None, problem });
            };
            let manifest = match self.store.get(&key, MAX_MANIFEST_BYTES) {
                Ok(bytes) => Manifest::decode(&bytes),
                Err(error) => {
                    find(FindingKind::NotChecked, causes::joined(&error));
                    continue;
                }
            };
            match manifest {
                // Of a repository that this one was copied from.
                Ok(manifest) if manifest.repository != self.verifiers.repository => {}
                Ok(manifest) => match manifest.audit.map(|note| self.verifiers.checkpoint(note.as_bytes())) {
                    Some(Ok(head)) => anchors.push(anchor(&head, key.to_string(), Some(&id))),
                    Some(Err(flaw)) => find(flaw.kind, format!("its checkpoint of the audit log does not count: {}", flaw.problem)),
                    None => {}
                },
                Err(error) => find(FindingKind::NotChecked, error.to_string()),
            }
        }
        Ok(anchors)
    }
}

fn object_of(tile: &tlog_tiles::Tile) -> AuditObject {
    AuditObject::Tile { level: tile.level(), number: tile.level_index(), width: u64::from(tile.width()) }
}

fn absent(error: StoreError) -> Result<bool, StoreError> {
    if matches!(error, StoreError::NotFound { .. }) { Ok(false) } else { Err(error) }
}

/// An event without what is not needed to join it with others: a million of them are in memory.
fn slim(event: Event) -> Event {
    let mut event = Event { deletion: None, approvers: Vec::new(), ..event };
    if event.phase == Phase::End {
        event.target = None;
    }
    if let Some(decision) = &mut event.decision {
        decision.reasons = Vec::new();
    }
    event
}
