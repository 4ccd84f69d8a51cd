//! Replicas: in which order objects are copied, what two listings differ in, and what two copies of one object come to.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::repository::layout::{self, Key};
use crate::repository::manifest::Manifest;
use crate::repository::{Sha256, backup_id::BackupId};

/// When an object is copied: nothing before what it names (c109). The order of the variants is the order of copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Packs, blobs and WAL: they name nothing.
    Data,
    /// Sealed objects of a backup: file tables, `backup_manifest` and the truth.
    Table,
    /// Records of artifacts, which name blobs.
    Record,
    /// Runs of the catalog, which name records.
    Run,
    /// Heads, which name runs.
    Head,
    /// Records of the audit log and the hashes over them.
    Audit,
    /// The signed heads of the audit log: before manifests, which carry one.
    Checkpoint,
    /// The signature of a manifest.
    Bundle,
    /// The commit point of a backup.
    Manifest,
    /// Whatever else stands there: it may be about a backup.
    Other,
    /// The commit point of a drill's evidence: what signs it stands there by then.
    Report,
}

impl Stage {
    /// When the object of this key is copied; `None`: never. Leases are of one place: they say who may write to it; and so is what is written
    /// down of its holds, and what is left of trying it out.
    pub fn of(key: &Key) -> Option<Self> {
        let text = key.as_str();
        let (first, rest) = text.split_once('/').unwrap_or((text, ""));
        match first {
            "lifeboat.json" => None,
            _ if Self::is_of_one_place(text) => None,
            "packs" | "wal" => Some(Self::Data),
            "artifacts" => Some(match rest.split('/').next() {
                Some("blobs") => Self::Data,
                Some("records") => Self::Record,
                Some("catalog") => Self::Run,
                Some("heads") => Self::Head,
                _ => Self::Other,
            }),
            "audit" if text.starts_with(layout::AUDIT_CHECKPOINTS) => Some(Self::Checkpoint),
            "audit" => Some(Self::Audit),
            id if id.parse::<BackupId>().is_ok() => Some(match rest {
                "manifest.json" => Self::Manifest,
                "manifest.sigstore.json" => Self::Bundle,
                "backup_manifest" | "truth" => Self::Table,
                rest if rest.starts_with("files/") => Self::Table,
                _ => Self::Other,
            }),
            "drills" if rest.ends_with("/report.json") => Some(Self::Report),
            _ => Some(Self::Other),
        }
    }

    /// Whether a key, or a prefix of keys, is of objects that say something of one place, and nothing of the repository.
    pub fn is_of_one_place(text: &str) -> bool {
        ["leases/", layout::VISITS, layout::PROBES].iter().any(|prefix| text.starts_with(prefix))
    }

    /// Whether backups or the artifact set are incomplete without it. WAL stands for itself: every segment is found, or missed, by its name.
    /// So do the audit log and the evidence of drills: no backup waits for them.
    pub fn is_named(key: &Key) -> bool {
        Self::of(key).is_some_and(|stage| !matches!(stage, Self::Audit | Self::Checkpoint | Self::Other | Self::Report))
            && !key.as_str().starts_with("wal/")
    }
}

/// What a key alone says of the object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Their digest is its name.
    Named(Sha256),
    /// A sealed object, with a trailer over its bytes.
    Sealed,
    /// A document that is small enough to be read whole.
    Document,
}

/// How the bytes under a key are checked without any key to open them.
pub fn proof(key: &Key) -> Proof {
    let text = key.as_str();
    let name = text.rsplit('/').next().unwrap_or_default();
    match Stage::of(key) {
        _ if text.starts_with("wal/") && text.ends_with(".json") => Proof::Document,
        Some(Stage::Data) if text.starts_with("packs/") => name.parse().map_or(Proof::Document, Proof::Named),
        Some(Stage::Run) => name.parse().map_or(Proof::Document, Proof::Named),
        Some(Stage::Data | Stage::Table) => Proof::Sealed,
        _ => Proof::Document,
    }
}

/// What two sorted listings differ in. The lists hold keys of objects that are copied at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// In the first only, with its length.
    pub missing: Vec<(Key, u64)>,
    /// In both, with other lengths: first and second.
    pub resized: Vec<(Key, u64, u64)>,
    /// In the second only.
    pub extra: Vec<Key>,
    /// In both, with one length.
    pub alike: Vec<(Key, u64)>,
}

/// Compares two listings, each sorted by key, and puts what is to be copied into the order of copying.
pub fn compare(source: &[(Key, u64)], target: &[(Key, u64)]) -> Differences {
    let mut differences = Differences::default();
    let mut theirs = target.iter().peekable();
    for (key, bytes) in source {
        while let Some((extra, _)) = theirs.next_if(|(other, _)| other < key) {
            differences.extra.push(extra.clone());
        }
        match theirs.next_if(|(other, _)| other == key) {
            None => differences.missing.push((key.clone(), *bytes)),
            Some((_, other)) if other != bytes => differences.resized.push((key.clone(), *bytes, *other)),
            Some(_) => differences.alike.push((key.clone(), *bytes)),
        }
    }
    differences.extra.extend(theirs.map(|(key, _)| key.clone()));
    let stage = |key: &Key| Stage::of(key);
    differences.missing.retain(|(key, _)| stage(key).is_some());
    differences.resized.retain(|(key, ..)| stage(key).is_some());
    differences.alike.retain(|(key, _)| stage(key).is_some());
    differences.extra.retain(|key| stage(key).is_some());
    differences.missing.sort_by(|(a, _), (b, _)| (stage(a), a).cmp(&(stage(b), b)));
    differences.resized.sort_by(|(a, ..), (b, ..)| (stage(a), a).cmp(&(stage(b), b)));
    differences
}

/// What was found when a copy was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It is not there.
    Absent,
    /// It is what it says it is. `content` is what makes two copies the same: the digest of what was signed, or of all bytes.
    Sound {
        /// That digest.
        content: Sha256,
    },
    /// It is not.
    Damaged(String),
}

/// What two copies of one object come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// They are the same.
    Same,
    /// The second is to be created.
    Copy,
    /// The second is damaged: it is taken away and created from the first.
    Heal(String),
    /// Both are sound, and not the same: two writers, or a version that is not the newest. Nobody here can say which is right.
    Conflict,
    /// The first is damaged: damage is not copied. The second, if there is one, may be what heals the first.
    SourceDamaged {
        /// What is wrong with the first.
        problem: String,
        /// Whether the second is sound.
        other_sound: bool,
    },
    /// The first is gone: somebody deleted it meanwhile.
    Gone,
}

/// Judges the copy of the source and that of the target.
pub fn judge(source: &Look, target: &Look) -> Verdict {
    match (source, target) {
        (Look::Absent, _) => Verdict::Gone,
        (Look::Damaged(problem), other) => {
            Verdict::SourceDamaged { problem: problem.clone(), other_sound: matches!(other, Look::Sound { .. }) }
        }
        (Look::Sound { .. }, Look::Absent) => Verdict::Copy,
        (Look::Sound { .. }, Look::Damaged(problem)) => Verdict::Heal(problem.clone()),
        (Look::Sound { content: ours }, Look::Sound { content: theirs }) if ours == theirs => Verdict::Same,
        (Look::Sound { .. }, Look::Sound { .. }) => Verdict::Conflict,
    }
}

/// What a manifest names: without one of these the backup is not whole. Its head may be gone, as old ones are pruned; its runs may not.
pub fn named(manifest: &Manifest) -> impl Iterator<Item = Key> {
    let objects = manifest.sealed_objects().filter_map(|object| Key::parse(object).ok());
    let packs = manifest.packs.iter().map(|pack| layout::pack(pack.sha256));
    let runs = manifest.artifacts.iter().flat_map(|artifacts| &artifacts.runs).map(|run| layout::artifact_run(run.sha256));
    objects.chain(packs).chain(runs)
}

/// Why a manifest must not be copied: the first object that it names and that the target did not get.
pub fn lacks<'a>(manifest: &Manifest, refused: &'a BTreeSet<Key>) -> Option<&'a Key> {
    named(manifest).find_map(|key| refused.get(&key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[test]
    fn c109_what_names_others_is_copied_behind_them() {
        let id = "conductor-backup-20240315T120000Z";
        let hex = "ab".repeat(32);
        let ordered = [
            format!("packs/ab/{hex}"),
            format!("{id}/files/0"),
            "artifacts/records/x/v.json".to_owned(),
            format!("artifacts/catalog/{hex}"),
            "artifacts/heads/0000000001.json".to_owned(),
            "audit/tile/0/000.p/1".to_owned(),
            "audit/checkpoint/0000000001".to_owned(),
            format!("{id}/manifest.sigstore.json"),
            format!("{id}/manifest.json"),
            "drills/x/report.sigstore.json".to_owned(),
            "drills/a/report.json".to_owned(),
        ];
        let stages: Vec<Stage> = ordered.iter().map(|text| Stage::of(&key(text)).unwrap()).collect();
        assert!(stages.is_sorted() && stages.windows(2).all(|pair| pair[0] != pair[1]), "{stages:?}");
        for of_one_place in ["leases/backup/0000000001.json", "retention/0000000001.json", "probe/00/name", "lifeboat.json"] {
            assert_eq!(Stage::of(&key(of_one_place)), None, "{of_one_place}");
        }
        // What keeps a backup, or lets it go, is known wherever the backup is.
        for word in ["expired/0000000001.json", "pins/audit.json", "pins/audit.ended.json"] {
            assert_eq!(Stage::of(&key(&format!("{id}/{word}"))), Some(Stage::Other), "{word}");
        }
        for (text, expected) in [
            ("wal/1/00000001/00000001000000000000000A", Stage::Data),
            ("drills/x/report.html", Stage::Other),
            ("drills/x/test-result.sigstore.json", Stage::Other),
            ("drills/x/report.json", Stage::Report),
            ("approvals/ab/ab/used.json", Stage::Other),
        ] {
            assert_eq!(Stage::of(&key(text)), Some(expected), "{text}");
        }
        let mut listing: Vec<(Key, u64)> = ordered.iter().map(|text| (key(text), 1)).collect();
        listing.sort();
        let copied: Vec<String> = compare(&listing, &[]).missing.into_iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(copied, ordered);
    }

    #[test]
    fn damage_is_never_copied_and_never_decides() {
        let sound = |byte| Look::Sound { content: Sha256([byte; 32]) };
        let damaged = || Look::Damaged("cut".into());
        assert_eq!(judge(&sound(1), &sound(1)), Verdict::Same);
        assert_eq!(judge(&sound(1), &sound(2)), Verdict::Conflict);
        assert_eq!(judge(&sound(1), &damaged()), Verdict::Heal("cut".into()));
        assert_eq!(judge(&sound(1), &Look::Absent), Verdict::Copy);
        assert_eq!(judge(&Look::Absent, &sound(1)), Verdict::Gone);
        for (target, other_sound) in [(sound(1), true), (damaged(), false), (Look::Absent, false)] {
            assert_eq!(judge(&damaged(), &target), Verdict::SourceDamaged { problem: "cut".into(), other_sound });
        }
    }

    #[test]
    fn how_bytes_are_proven_follows_from_the_key() {
        let hex = "ab".repeat(32);
        assert_eq!(proof(&key(&format!("packs/ab/{hex}"))), Proof::Named(Sha256([0xAB; 32])));
        assert_eq!(proof(&key(&format!("artifacts/blobs/ab/{hex}"))), Proof::Sealed);
        assert_eq!(proof(&key("wal/1/00000002.history")), Proof::Sealed);
        assert_eq!(proof(&key("wal/1/cluster.json")), Proof::Document);
        assert_eq!(proof(&key("wal/1/gaps/00000001.0-1.json")), Proof::Document);
        assert_eq!(proof(&key("packs/ab/odd")), Proof::Document);
    }

    proptest! {
        #[test]
        fn copying_what_is_missing_makes_listings_alike(
            source in proptest::collection::btree_map("packs/[a-c]{1,3}", 0u64..3, 0..12),
            target in proptest::collection::btree_map("packs/[a-c]{1,3}", 0u64..3, 0..12),
        ) {
            let listing = |map: &std::collections::BTreeMap<String, u64>| map.iter().map(|(text, bytes)| (key(text), *bytes)).collect::<Vec<_>>();
            let found = compare(&listing(&source), &listing(&target));
            for (text, bytes) in &source {
                let count = [
                    found.missing.contains(&(key(text), *bytes)) && !target.contains_key(text),
                    found.alike.contains(&(key(text), *bytes)) && target.get(text) == Some(bytes),
                    found.resized.iter().any(|(key, ours, theirs)| key.as_str() == text && ours == bytes && target.get(text) == Some(theirs)),
                ];
                prop_assert_eq!(count.iter().filter(|hit| **hit).count(), 1);
            }
            prop_assert_eq!(found.extra.len(), target.keys().filter(|text| !source.contains_key(*text)).count());
            prop_assert_eq!(found.missing.len() + found.alike.len() + found.resized.len(), source.len());
        }
    }
}
