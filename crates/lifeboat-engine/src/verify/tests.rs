//! Every bit of a pack, also of what no file of the backup has: a file that vanished or shrank while it was copied leaves frames behind that no
//! row names, and whoever reads files never comes by there.

use std::ops::Range;

use jiff::Timestamp;
use lifeboat_core::attestation::backup_statement;
use lifeboat_core::repository::extent::{Extent, Fragment, full_bitmap};
use lifeboat_core::repository::file_table::{Kind, Meta, Row, encode_row};
use lifeboat_core::repository::manifest::{BackupKind, Encryption, Manifest, PackEntry, State, TableEntry};
use lifeboat_core::repository::{FORMAT_VERSION, pack, to_json};

use super::*;
use crate::keys::{backup_keys, generate_identity};
use crate::progress::Unwatched;
use crate::seal::{Compressor, seal_frame, seal_object};
use crate::signing::{KeyFileSigner, Signer as _, SigningKey};
use crate::store::{Change, Fault, FaultyStore, MemoryStore, Overlay, Rule, Store as _};

/// A backup of two files in one pack, and between them in it what no file has.
struct World {
    store: MemoryStore,
    id: BackupId,
    pack: PackEntry,
    /// Its frames, and the files that have something there.
    frames: Vec<(Range<u64>, Vec<&'static str>)>,
    trust: Trust,
    identities: Identities,
}

impl World {
    fn new(encrypted: bool) -> Self {
        let store = MemoryStore::default();
        let repository = Repository::init(Box::new(store.clone()), Timestamp::UNIX_EPOCH, "test").unwrap();
        let (text, recipient) = generate_identity(Timestamp::UNIX_EPOCH);
        let (data, tables, keys) = if encrypted {
            let ([data, tables], keys) = backup_keys(&[recipient], None).unwrap();
            (Sealing::Encrypted(data), Sealing::Encrypted(tables), keys)
        } else {
            (Sealing::Plain, Sealing::Plain, Vec::new())
        };

        let id = crate::random::id();
        let mut bytes = pack::encode_header(id, data.suite()).to_vec();
        let (key, mut compressor) = (data.pack(id), Compressor::new(3).unwrap());
        let (mut rows, mut frames) = (Vec::new(), Vec::new());
        let content = [(Some("base/0"), vec![7; 9000]), (None, vec![9; 300]), (Some("base/2"), (0..300).map(|i| (i * i) as u8).collect())];
        for (file, plain) in &content {
            let offset = bytes.len() as u32;
            let length = seal_frame(id, &key, &mut compressor, plain, u64::from(offset), &mut bytes);
            frames.push((u64::from(offset)..bytes.len() as u64, file.iter().copied().collect()));
            let Some(file) = file else { continue };
            let check = *blake3::hash(plain).as_bytes().first_chunk().unwrap();
            let fragment = Fragment { bitmap: full_bitmap(plain.len() as u64), pack: 0, offset, length, check };
            let meta = Meta {
                path: (*file).to_owned(),
                kind: Kind::File,
                size: plain.len() as u64,
                mode: 0o600,
                owner: None,
                group: None,
                uid: 0,
                gid: 0,
                modified: None,
                target: None,
                outside: false,
            };
            encode_row(&Row { meta, extents: vec![Extent { fragments: vec![fragment] }] }, &mut rows);
        }
        let pack = PackEntry { sha256: Sha256::of(&bytes), id, bytes: bytes.len() as u64 };
        store.create(&layout::pack(pack.sha256), &bytes).unwrap();

        let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
        let trust = Trust::new([signer.public_key().clone()]);
        let id = BackupId::next(&"a".parse().unwrap(), Timestamp::UNIX_EPOCH, []);
        let object = layout::file_table(&id, 0);
        let sealed = seal_object(object.as_str(), &tables, &rows);
        store.create(&object, &sealed).unwrap();
        let table = TableEntry {
            object: object.to_string(),
            sha256: Sha256::of(&sealed),
            bytes: sealed.len() as u64,
            rows: 2,
            first: "base/0".into(),
            last: "base/2".into(),
        };
        let manifest = Manifest {
            format: FORMAT_VERSION,
            id: id.clone(),
            repository: repository.descriptor().repository,
            name: "a".into(),
            host: "here".into(),
            lifeboat: "test".into(),
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            kind: BackupKind::Full,
            state: State::Healthy,
            findings: vec![],
            warnings: vec![],
            encryption: Encryption { suite: data.suite(), keys, recipients: vec![] },
            packs: vec![pack.clone()],
            boot_packs: vec![],
            tables: vec![table],
            files: 2,
            plain_bytes: 9300,
            stored_bytes: pack.bytes,
            postgres: None,
            artifacts: None,
            audit: None,
        };
        let bytes = to_json(&manifest);
        let statement = backup_statement(&id.to_string(), Sha256::of(&bytes).0, serde_json::json!({}));
        let bundle = signer.sign_statement(&statement.to_bytes()).unwrap();
        store.create(&layout::manifest_bundle(&id), bundle.as_bytes()).unwrap();
        store.create(&layout::manifest(&id), &bytes).unwrap();
        Self { store, id, pack, frames, trust, identities: Identities::parse(&text).unwrap() }
    }

    /// What a verification, and one of the only pack, find in a repository with this change.
    fn verified(&self, change: Option<Change>) -> (Report, Vec<Finding>) {
        let mut view = Overlay::new(Box::new(self.store.clone()));
        if let Some(change) = change {
            view = view.with(layout::pack(self.pack.sha256), change);
        }
        let repository = Repository::open(Box::new(view)).unwrap();
        let settings =
            VerifySettings { trust: &self.trust, identities: self.identities.clone(), sample_percent: 100.0, sample_seed: 0, workers: 1 };
        let report = run(&repository, &self.id, &settings, &Unwatched).unwrap();
        assert_eq!(report.depth, Depth::Opened);
        let backup = opened_backup::open(&repository, &self.id, &self.trust).unwrap();
        (report, one_pack(&repository, &backup, &self.identities, 0, &Unwatched).unwrap())
    }
}

#[test]
fn c114_every_flipped_byte_of_a_pack_is_found_also_where_no_file_has_any() {
    for encrypted in [false, true] {
        let world = World::new(encrypted);
        let (report, of_one) = world.verified(None);
        assert_eq!((report.findings, of_one), (vec![], vec![]), "encrypted: {encrypted}");
        for at in 0..world.pack.bytes {
            let (report, of_one) = world.verified(Some(Change::Flipped(at)));
            for findings in [report.findings, of_one] {
                let (key, case) = (layout::pack(world.pack.sha256), format!("byte {at} of {}, encrypted: {encrypted}", world.pack.bytes));
                assert!(!findings.is_empty(), "{case}");
                let is_it = |finding: &Finding| finding.kind == FindingKind::Corrupt && finding.object == key.as_str();
                assert!(findings.iter().all(is_it), "{case}: {findings:?}");
                // A file is named where one is hit, and only that one; damage to the header hits all.
                let files = findings.iter().filter_map(|finding| finding.file.as_deref()).collect::<Vec<_>>();
                let hit = world.frames.iter().find(|(frame, _)| frame.contains(&at)).map(|(_, file)| file.as_slice());
                assert!(hit.is_none_or(|hit| hit == files), "{case}: {findings:?}");
            }
        }
    }
}

/// A bad sector below one object keeps nobody from seeing which it is, nor the rest from being read.
#[test]
fn what_cannot_be_read_is_found_like_anything_else() {
    for encrypted in [false, true] {
        let world = World::new(encrypted);
        let (faulty, faults) = FaultyStore::new(Box::new(world.store.clone()));
        let repository = Repository::open(Box::new(faulty)).unwrap();
        let settings =
            VerifySettings { trust: &world.trust, identities: world.identities.clone(), sample_percent: 100.0, sample_seed: 0, workers: 1 };
        let verified = |plan: &[Rule]| {
            faults.plan(plan);
            let report = run(&repository, &world.id, &settings, &Unwatched);
            (report, faults.trace())
        };
        let (whole, steps) = verified(&[]);
        let whole = whole.unwrap();
        assert_eq!(whole.findings, []);
        let objects = [layout::pack(world.pack.sha256), layout::file_table(&world.id, 0)];
        let mut tried = 0;
        for (step, asked) in steps.iter().enumerate() {
            let Some(object) = objects.iter().find(|object| object.as_str() == asked.key) else { continue };
            let (report, _) = verified(&[Rule { operation: None, from: step, count: 1, fault: Fault::Refused }]);
            let report = report.unwrap_or_else(|error| panic!("{asked:?}: {error}"));
            // Once for each file that is hit.
            let found: BTreeSet<_> = report.findings.iter().map(|finding| (finding.kind, finding.object.as_str())).collect();
            assert_eq!(found, BTreeSet::from([(FindingKind::NotChecked, object.as_str())]), "{asked:?}");
            assert_eq!((report.objects, report.objects_total), (whole.objects, whole.objects_total));
            tried += 1;
            // What another try may bring says nothing of the object, nor does that this one may not read.
            for (fault, count) in [(Fault::Transient, usize::MAX), (Fault::Denied, 1)] {
                let (report, _) = verified(&[Rule { operation: None, from: step, count, fault }]);
                assert!(report.is_err(), "{asked:?}, {fault:?}");
            }
        }
        assert!(tried >= 4, "{steps:?}");
    }
}

/// A store that answers nothing any more is not asked for thousands of objects one after the other.
#[test]
fn a_store_that_gives_nothing_is_given_up() {
    let world = World::new(false);
    let repository = Repository::open(Box::new(world.store.clone())).unwrap();
    let backup = opened_backup::open(&repository, &world.id, &world.trust).unwrap();
    let unread = Unread { backup: &backup, reads: AtomicUsize::new(0) };
    let bad = || {
        let source = std::io::Error::other("a bad sector");
        RestoreError::Store(StoreError::Io { action: "read", key: "data/a".into(), store: "file:///a".into(), source })
    };
    for _ in 0..MAX_UNREAD {
        assert_eq!(unread.finding(bad()).unwrap().object, "data/a");
    }
    assert!(unread.finding(bad()).is_err());
}
