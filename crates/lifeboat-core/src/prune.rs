//! Which objects go, and why: those that only expired backups needed, and what nothing names any more.
//!
//! Decided from values: what the engine read of the repository, and the time. The rule everywhere is that doubt keeps: a manifest that cannot
//! be verified keeps everything, WAL of which nobody can say what needs it stays, and a key that is not known here is never touched.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::expire::{CLOCK_TOLERANCE, Candidate, Content};
use crate::repository::backup_id::BackupId;
use crate::repository::layout::{self, Key};
use crate::repository::{FormatError, Sha256};
use crate::wal::catalog::{Archive, BackupPoint};
use crate::wal::file::WalFile;
use crate::wal::{Lsn, Segment, Timeline};

/// Epochs of a lease, and heads, that stay whatever happens: those that take part in anything that still goes on are among them.
pub const NUMBERED_KEPT: usize = 16;

/// The most objects that one prune takes away; the next one goes on. Their keys are in memory, some 60 MB.
pub const MAX_OBJECTS: usize = 500_000;

/// What a step with old epochs of leases is called.
pub const LEASE_EPOCHS: &str = "lease epochs";

/// What a step with old visits of what is held is called.
pub const VISITS: &str = "visits";

/// What a step with old heads of the artifact set is called.
pub const ARTIFACT_HEADS: &str = "artifact heads";

/// Steps with numbered objects of which newer ones say everything. Whoever works on the repository makes new ones and so old ones: to prune
/// takes a lease. They are no part of what a plan is told apart by.
const BOOKKEEPING: [&str; 3] = [LEASE_EPOCHS, VISITS, ARTIFACT_HEADS];

/// Keys of a step that are shown.
const SHOWN: usize = 20;

/// Everything that stands under one backup id.
#[derive(Debug, Clone)]
pub struct Stored {
    /// What is known of it. Without a manifest, `facts` say that there is none.
    pub candidate: Candidate,
    /// It has a manifest.
    pub manifest: bool,
    /// It has a signature.
    pub bundle: bool,
}

/// A backup that goes, or stays, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Because {
    /// Which.
    pub backup: BackupId,
    /// Why.
    pub reason: String,
}

/// Which backups go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Backups {
    /// Those that go.
    pub leaving: Vec<Because>,
    /// Those that have expired, and stay all the same.
    pub held: Vec<Because>,
    /// Why nothing at all may go.
    pub blocked: Vec<String>,
}

impl Backups {
    /// Lets one stay that was to go.
    pub fn hold(&mut self, id: &BackupId, reason: &str) {
        self.leaving.retain(|because| because.backup != *id);
        self.held.push(Because { backup: id.clone(), reason: reason.to_owned() });
    }

    /// Whether this one goes.
    pub fn leaves(&self, id: &BackupId) -> bool {
        self.leaving.iter().any(|because| because.backup == *id)
    }
}

/// Decides which backups go. `forget` names those whose manifest is lost or cannot be verified, and that somebody gave up.
pub fn backups(stored: &[Stored], forget: &BTreeSet<BackupId>, now: Timestamp) -> Backups {
    let mut decided = Backups::default();
    for one in stored {
        let id = &one.candidate.id;
        let because = |reason: &str| Because { backup: id.clone(), reason: reason.to_owned() };
        let expired = one.candidate.prune_after;
        if let Some(pin) = one.candidate.pins.first()
            && (expired.is_some() || !one.manifest)
        {
            decided.held.push(because(&format!("pin {pin} holds it")));
            if one.manifest && one.candidate.facts.is_ok() {
                continue;
            }
        }
        let pinned = !one.candidate.pins.is_empty();
        match (&one.candidate.facts, expired) {
            (Err(_), _) if forget.contains(id) && !pinned => decided.leaving.push(because("it was given up")),
            (Err(why), _) if one.manifest => decided.blocked.push(format!("what backup {id} needs cannot be told: {why}")),
            (Err(_), Some(prune_after)) if prune_after <= now && !pinned => decided.leaving.push(because("its prune did not finish")),
            (Err(_), None) if !one.bundle && !pinned => decided.leaving.push(because("it did not finish")),
            (Err(_), _) => decided.blocked.push(format!("what backup {id} needs cannot be told: its manifest is not there")),
            (Ok(_), Some(prune_after)) if prune_after <= now => {
                decided.leaving.push(because(&format!("it has expired, and its grace period ended at {prune_after}")));
            }
            (Ok(_), Some(prune_after)) => decided.held.push(because(&format!("it has expired, and stays until {prune_after}"))),
            (Ok(_), None) => {}
        }
    }
    keep_the_last(stored, &mut decided, now);
    decided
}

/// Whatever the marks say: of backups that stand for each other the last healthy one stays, and without any healthy one the last.
fn keep_the_last(stored: &[Stored], decided: &mut Backups, now: Timestamp) {
    let mut groups: BTreeMap<(&str, Content), Vec<&Candidate>> = BTreeMap::new();
    let latest = now.saturating_add(CLOCK_TOLERANCE).unwrap_or(Timestamp::MAX);
    for one in stored {
        if let Ok(facts) = &one.candidate.facts
            && facts.at <= latest
        {
            groups.entry((one.candidate.id.name(), facts.content)).or_default().push(&one.candidate);
        }
    }
    for group in groups.values_mut() {
        let rank = |candidate: &Candidate| candidate.facts.as_ref().map_or((false, Timestamp::MIN), |facts| (facts.healthy, facts.at));
        let best = group.iter().map(|candidate| rank(candidate).0).max();
        let stays = group.iter().any(|candidate| Some(rank(candidate).0) == best && !decided.leaves(&candidate.id));
        let last = group.iter().max_by_key(|candidate| (rank(candidate), &candidate.id));
        if let Some(last) = last.filter(|_| !stays) {
            let healthy = if best == Some(true) { "healthy " } else { "" };
            decided.leaving.retain(|because| because.backup != last.id);
            decided.held.push(Because { backup: last.id.clone(), reason: format!("it is the last {healthy}backup of its kind") });
        }
    }
}

/// The objects under a backup id, in the order in which they go: each part only when all before it are gone. So a backup that is half gone
/// is none, and the mark that lets it go is there to the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnObjects {
    /// What makes it a backup.
    pub manifest: Vec<(Key, u64)>,
    /// Its signature, tables and PostgreSQL's manifest.
    pub parts: Vec<(Key, u64)>,
    /// Pins, then their ends, then marks, lowest first: one after the other.
    pub words: Vec<(Key, u64)>,
    /// What is not known here, and stays.
    pub unknown: Vec<Key>,
}

/// Sorts what stands under a backup id. `named` are objects that manifests that stay name: they stay.
pub fn own_objects(id: &BackupId, listed: impl IntoIterator<Item = (Key, u64)>, named: &BTreeSet<String>) -> OwnObjects {
    let mut own = OwnObjects::default();
    let (mut pins, mut ends, mut marks) = (Vec::new(), Vec::new(), Vec::new());
    for (key, bytes) in listed {
        let table = |number: &str| number.parse().is_ok_and(|number: usize| layout::file_table(id, number) == key);
        if named.contains(key.as_str()) {
            continue;
        }
        if key == layout::manifest(id) {
            own.manifest.push((key, bytes));
        } else if key == layout::manifest_bundle(id)
            || key == layout::backup_manifest(id)
            || key == layout::truth(id)
            || key.as_str().rsplit('/').next().is_some_and(table)
        {
            own.parts.push((key, bytes));
        } else if let Some((name, end)) = layout::pin_of(&key)
            && (layout::pin(id, &name) == key || layout::pin_end(id, &name) == key)
        {
            if end { ends.push((key, bytes)) } else { pins.push((key, bytes)) }
        } else if let Some(number) = layout::number_of(&key)
            && layout::expiry_mark(id, number) == key
        {
            marks.push((key, bytes));
        } else {
            own.unknown.push(key);
        }
    }
    marks.sort();
    own.words = pins.into_iter().chain(ends).chain(marks).collect();
    own
}

/// A set of things that stay: ten million of them take 80 MB. Only the first eight bytes of a digest are kept: two that agree in those keep
/// each other, which never takes anything away.
#[derive(Debug, Clone, Default)]
pub struct KeptSet {
    prefixes: Vec<u64>,
    sorted: usize,
}

impl KeptSet {
    fn prefix(digest: Sha256) -> u64 {
        u64::from_be_bytes(*digest.0.first_chunk().expect("a digest has 32 bytes"))
    }

    /// Adds a digest.
    pub fn insert(&mut self, digest: Sha256) {
        self.prefixes.push(Self::prefix(digest));
        // Whoever adds the same over and over, as every manifest does, must not pay for it.
        if self.prefixes.len() >= 1 << 20 && self.prefixes.len() >= self.sorted * 2 {
            self.seal();
        }
    }

    /// Adds a key.
    pub fn insert_key(&mut self, key: &Key) {
        self.insert(Sha256::of(key.as_str().as_bytes()));
    }

    /// To be called before asking.
    pub fn seal(&mut self) {
        self.prefixes.sort_unstable();
        self.prefixes.dedup();
        self.sorted = self.prefixes.len();
    }

    /// Whether a digest is in it, or one that begins like it.
    pub fn contains(&self, digest: Sha256) -> bool {
        debug_assert!(self.sorted == self.prefixes.len(), "sealed before it is asked");
        self.prefixes.binary_search(&Self::prefix(digest)).is_ok()
    }

    /// Whether a key is.
    pub fn contains_key(&self, key: &Key) -> bool {
        self.contains(Sha256::of(key.as_str().as_bytes()))
    }
}

/// Of numbered objects, lowest first, those that may go: all but the newest, and nothing from `keep_from` on. Whoever takes them away goes
/// from the lowest on and stops at the first that stays: so a number is only ever free if all below it are.
pub fn numbered_garbage(mut numbers: Vec<u64>, keep_from: Option<u64>) -> Vec<u64> {
    numbers.sort_unstable();
    numbers.truncate(numbers.len().saturating_sub(NUMBERED_KEPT));
    numbers.retain(|number| keep_from.is_none_or(|from| *number < from));
    numbers
}

/// What becomes of the WAL of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalRule {
    /// Which.
    pub timeline: Timeline,
    /// Segments from this one on stay; 0: all of them; `None`: none.
    pub keep_from: Option<u64>,
    /// Why.
    pub reason: String,
}

impl WalRule {
    /// Whether a file of this timeline goes. Histories never do.
    pub fn lets_go(&self, file: WalFile) -> bool {
        let segment = match file {
            WalFile::History(_) => return false,
            WalFile::Segment(segment) | WalFile::Partial(segment) | WalFile::Piece { segment, .. } => segment,
            WalFile::BackupHistory { segment, .. } => segment,
        };
        segment.timeline == self.timeline && self.keep_from.is_none_or(|from| segment.number < from)
    }
}

/// Says of every timeline of a cluster what stays, given the backups that do. `last_commit` is the time of the last commit of timelines of
/// which it is known: WAL that no backup leads to stays until it is older than `horizon`.
pub fn wal(archive: &Archive, points: &[BackupPoint], last_commit: &BTreeMap<Timeline, Timestamp>, horizon: Timestamp) -> Vec<WalRule> {
    archive.timelines().into_iter().map(|timeline| timeline_rule(archive, points, last_commit, horizon, timeline)).collect()
}

fn timeline_rule(
    archive: &Archive,
    points: &[BackupPoint],
    last_commit: &BTreeMap<Timeline, Timestamp>,
    horizon: Timestamp,
    timeline: Timeline,
) -> WalRule {
    let rule = |keep_from, reason: String| WalRule { timeline, keep_from, reason };
    if points.is_empty() {
        return rule(Some(0), "no backup of this cluster stays, so nothing says what may be needed".into());
    }
    let path = match archive.path(timeline) {
        Ok(path) => path,
        Err(error) => return rule(Some(0), format!("nobody can say which backups lead to it: {error}")),
    };
    let mut from: Option<(u64, &BackupPoint)> = None;
    let mut need = |number: u64, point| {
        if from.is_none_or(|(lowest, _)| number < lowest) {
            from = Some((number, point));
        }
    };
    for point in points {
        let first = Segment::containing(point.timeline, point.start_lsn, archive.segment_size()).number;
        if point.timeline == timeline {
            need(first, point);
        } else if path.leg_of(point.timeline).is_some_and(|leg| leg.to.is_some_and(|end| end > point.start_lsn)) {
            // Replay leads from there onto this timeline.
            need(0, point);
        } else if archive.path(point.timeline).map_or(true, |way| way.leg_of(timeline).is_some()) {
            // Or the backup is on a branch of this timeline: where the branch has no file of a segment, recovery takes the trunk's.
            need(first, point);
        }
    }
    match (from, last_commit.get(&timeline)) {
        (Some((0, point)), _) => rule(Some(0), format!("backup {} can be replayed along it", point.id)),
        (Some((number, point)), _) => {
            let lsn = Lsn(number.saturating_mul(archive.segment_size().bytes()));
            rule(Some(number), format!("backup {} needs it from {lsn} on", point.id))
        }
        (None, Some(last)) if *last < horizon => {
            rule(None, format!("no backup leads to it, and its last commit, at {last}, is older than anything promised"))
        }
        (None, Some(last)) => rule(Some(0), format!("no backup leads to it, but its last commit, at {last}, is not old enough")),
        (None, None) => rule(Some(0), "no backup leads to it, but nobody can say how old it is".into()),
    }
}

/// Objects that go together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What they are.
    pub what: &'static str,
    /// Why they go.
    pub why: String,
    /// How many.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// SHA-256 over all keys, each ended by a newline, in the order in which they go.
    pub digest: Sha256,
    /// The first of them.
    pub first: Vec<String>,
    /// All of them.
    #[serde(skip)]
    pub keys: Vec<Key>,
    /// Bytes of each, as far as they are known.
    #[serde(skip)]
    sizes: Vec<u64>,
    /// One after the other, and none after one that stays; otherwise in any order.
    pub ordered: bool,
}

impl Step {
    /// Objects that go in any order.
    pub fn new(what: &'static str, why: impl Into<String>, listed: Vec<(Key, u64)>) -> Self {
        let bytes = listed.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let (keys, sizes): (Vec<Key>, Vec<u64>) = listed.into_iter().unzip();
        let mut all = String::with_capacity(keys.iter().map(|key| key.as_str().len() + 1).sum());
        for key in &keys {
            all.push_str(key.as_str());
            all.push('\n');
        }
        Self {
            what,
            why: why.into(),
            objects: keys.len() as u64,
            bytes,
            digest: Sha256::of(all.as_bytes()),
            first: keys.iter().take(SHOWN).map(ToString::to_string).collect(),
            keys,
            sizes,
            ordered: false,
        }
    }

    /// Objects that go one after the other.
    pub fn ordered(what: &'static str, why: impl Into<String>, listed: Vec<(Key, u64)>) -> Self {
        Self { ordered: true, ..Self::new(what, why, listed) }
    }
}

/// What a prune does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Backups.
    pub backups: Backups,
    /// What goes, in this order.
    pub steps: Vec<Step>,
    /// What stays of WAL, by cluster, and why.
    pub wal: Vec<(String, Vec<WalRule>)>,
    /// Objects whose keys are not known here; they stay.
    pub unknown: u64,
    /// The first of them.
    pub unknown_first: Vec<String>,
    /// There is more than one prune takes away: another one goes on.
    pub more: bool,
    /// What to know before.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The plan's digest: SHA-256 of [`Plan::document`]. Approvals sign it.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(&self.document())
    }

    /// Its JSON in one line, which has a digest of all keys of each step; without the steps that are bookkeeping.
    pub fn document(&self) -> Vec<u8> {
        let mut plan = self.clone();
        plan.steps.retain(|step| !BOOKKEEPING.contains(&step.what));
        serde_json::to_vec(&plan).expect("a plan has text keys only")
    }

    /// What is different from a plan that was written down, in sentences; none where it is the same.
    pub fn differences(&self, document: &[u8]) -> Vec<String> {
        let mine = self.document();
        if mine == document {
            return Vec::new();
        }
        let (Ok(old), Ok(new)) = (serde_json::from_slice::<Value>(document), serde_json::from_slice::<Value>(&mine)) else {
            return vec!["what was written down is no plan".into()];
        };
        let mut different = Vec::new();
        let list = |plan: &Value, at: &str| plan.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
        for (what, at) in [("goes", "/backups/leaving"), ("stays", "/backups/held")] {
            let (old, new) = (list(&old, at), list(&new, at));
            let named = |because: &Value| because["backup"].as_str().unwrap_or("?").to_owned();
            different.extend(new.iter().filter(|one| !old.contains(one)).map(|one| format!("backup {} {what} now", named(one))));
            different.extend(old.iter().filter(|one| !new.contains(one)).map(|one| format!("backup {} {what} no longer", named(one))));
        }
        let (old_steps, new_steps) = (list(&old, "/steps"), list(&new, "/steps"));
        let line = |step: &Value| format!("{} ({})", step["what"].as_str().unwrap_or("?"), step["why"].as_str().unwrap_or("?"));
        let same = |a: &Value, b: &Value| a["what"] == b["what"] && a["why"] == b["why"];
        for step in &new_steps {
            match old_steps.iter().find(|one| same(one, step)) {
                Some(one) if one == step => {}
                Some(one) => {
                    different.push(format!("{}: {} objects instead of {}, or others", line(step), step["objects"], one["objects"]))
                }
                None => different.push(format!("{}: {} objects go as well", line(step), step["objects"])),
            }
        }
        let gone = old_steps.iter().filter(|one| !new_steps.iter().any(|step| same(one, step)));
        different.extend(gone.map(|one| format!("{}: none go", line(one))));
        if different.is_empty() {
            different.push("what it says about WAL, unknown objects or doubts".into());
        }
        different
    }

    /// Objects that go.
    pub fn objects(&self) -> u64 {
        self.steps.iter().map(|step| step.objects).sum()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.steps.iter().fold(0, |sum, step| sum.saturating_add(step.bytes))
    }

    /// Adds a step, as far as there is room.
    pub fn push(&mut self, mut step: Step) {
        let room = MAX_OBJECTS.saturating_sub(self.objects() as usize);
        if step.keys.len() > room {
            self.more = true;
            let listed = step.keys.drain(..).zip(step.sizes.drain(..)).take(room).collect();
            step = Step { ordered: step.ordered, ..Step::new(step.what, step.why, listed) };
        }
        if !step.keys.is_empty() {
            self.steps.push(step);
        }
    }

    /// Notes keys that stay because nobody knows what they are.
    pub fn leave(&mut self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            self.unknown += 1;
            if self.unknown_first.len() < SHOWN {
                self.unknown_first.push(key.to_string());
            }
        }
    }
}

/// The digest that a key of packs, blobs or runs ends in, if it is just the key that this digest has.
pub fn named_by_digest(key: &Key, layout: fn(Sha256) -> Key) -> Result<Sha256, FormatError> {
    let unknown = || FormatError::malformed("object key", format!("{key} is not known"));
    layout::digest_of(key).filter(|digest| layout(*digest) == *key).ok_or_else(unknown)
}

#[cfg(test)]
mod tests;
