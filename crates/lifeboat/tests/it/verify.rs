//! Damage: whatever happens to the bytes of a repository, verify and restore notice, name it, and nothing that was written can be started.
//!
//! What a restore does not need, and what damage to it comes to:
//! - leases: nothing at all, only the next writer looks at them;
//! - heads: the manifest repeats what it needs, so old backups verify and restore; what works on the present set fails and names the head;
//! - catalog runs, records and blobs that only other backups name: those backups fail, this one does not;
//! - `lifeboat.json` beyond its format and id: nobody reads it. With another id verify fails; a restore ends with a finding, all restored;
//! - of a pack its header, and what stands between and behind the frames that files have: verify fails, a restore brings back what was backed up;
//! - of a bundle what is neither payload nor signature, the hint for example: the proof holds without it.
//!
//! The forger below signs with lifeboat's own code: what is tested is who is believed, not how bytes are signed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_core::attestation::backup_statement;
use lifeboat_core::repository::Sha256;
use lifeboat_engine::signing::{KeyFileSigner, Signer as _, SigningKey};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Postgres, expect_success, temp_dir};
use crate::failure::{one_error, walk};
use crate::orchestrator::{self, Random};
use crate::program::{Output, Program};

/// Somebody with a signing key, not necessarily one that is trusted.
pub(crate) struct Forger {
    signer: KeyFileSigner,
}

impl Forger {
    /// With a key that nobody knows yet.
    pub(crate) fn new() -> Forger {
        Forger { signer: KeyFileSigner::new(SigningKey::generate().unwrap()) }
    }

    /// The public key, to be trusted.
    pub(crate) fn public_pem(&self) -> String {
        self.signer.public_key().to_pem()
    }

    /// Changes the manifest of a backup, and signs what comes out.
    pub(crate) fn change_manifest(&self, repository: &Path, id: &str, change: impl FnOnce(String) -> String) {
        let path = repository.join(id).join("manifest.json");
        let text = change(fs::read_to_string(&path).unwrap());
        fs::write(&path, &text).unwrap();
        self.sign(repository, id);
    }

    /// Signs the manifest of a backup as it stands.
    pub(crate) fn sign(&self, repository: &Path, id: &str) {
        let manifest = fs::read(repository.join(id).join("manifest.json")).unwrap();
        let statement = backup_statement(id, Sha256::of(&manifest).0, serde_json::json!({"state": "healthy"}));
        let bundle = self.signer.sign_statement(&statement.to_bytes()).unwrap();
        fs::write(repository.join(id).join("manifest.sigstore.json"), bundle).unwrap();
    }
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Descriptor,
    Manifest,
    Bundle,
    Table,
    BackupManifest,
    Truth,
    BootPack,
    Pack,
    Blob,
    Record,
    Run,
    Head,
    Lease,
}

impl Kind {
    fn is_of_artifacts(self) -> bool {
        matches!(self, Kind::Blob | Kind::Record | Kind::Run)
    }
}

/// Repositories to damage, the homes of those who read them, and what an undamaged restore brings.
struct Scene {
    directory: TempDir,
    /// Options for the program beside the repository.
    config: Option<PathBuf>,
    /// Whether backups have a database.
    has_database: bool,
}

impl Scene {
    fn empty(config: &str) -> Scene {
        let directory = temp_dir();
        for name in ["home", "blind"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let mut scene = Scene { directory, config: None, has_database: false };
        expect_success(Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(["key", "generate", "--out"]).arg(scene.keys()));
        // Reads with the public key only, as the host that is backed up does.
        fs::create_dir_all(scene.path("blind/.config/lifeboat")).unwrap();
        fs::copy(scene.keys().join("signing.pub"), scene.path("blind/.config/lifeboat/signing.pub")).unwrap();
        if !config.is_empty() {
            fs::write(scene.path("lifeboat.toml"), config).unwrap();
            scene.config = Some(scene.path("lifeboat.toml"));
        }
        scene
    }

    /// Two repositories of two backups each; between two backups an artifact is replaced and another one is added.
    fn of_artifacts(config: &str) -> Scene {
        let scene = Scene::empty(config);
        scene.back_up("repository", &|_| {});
        scene.back_up("foreign", &|_| {});
        scene
    }

    /// The same with a cluster, and a query for what it refers to.
    fn of_cluster(copy: &str, config: &str) -> Scene {
        let cluster = Cluster::builder(Postgres::V15).wal_segment_size(1).start();
        let config = format!(
            "{config}\n[postgres]\ndsn = \"{}\"\ndata_directory = \"{}\"\ncopy = \"{copy}\"\n[artifacts]\nreference_query = \"{}\"\n",
            cluster.dsn(),
            cluster.data_directory().display(),
            "SELECT name, sha256 FROM referenced"
        );
        let mut scene = Scene::empty(&config);
        scene.has_database = true;
        cluster.psql("CREATE TABLE referenced (name text, sha256 text)");
        let change = |number: usize| {
            cluster.psql(&format!("CREATE TABLE t{number} AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i"));
            let digest = orchestrator::sha256sum(&scene.path("artifacts"), ["kept"].into_iter()).remove(0);
            cluster.psql(&format!("TRUNCATE referenced; INSERT INTO referenced VALUES ('kept', '{digest}')"));
        };
        scene.back_up("repository", &change);
        scene.back_up("foreign", &change);
        scene
    }

    fn back_up(&self, repository: &str, change: &dyn Fn(usize)) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let _ = fs::create_dir(self.path("artifacts"));
        for number in 0..2 {
            let number = number + 10 * COUNT.fetch_add(1, Ordering::Relaxed);
            fs::write(self.path("artifacts/kept"), "the same in all backups").unwrap();
            fs::write(self.path("artifacts/replaced"), Random(number as u64).bytes(700)).unwrap();
            fs::write(self.path(&format!("artifacts/added-{number}")), format!("{number}\n")).unwrap();
            change(number);
            let backup = self.program("home", repository).env("LIFEBOAT_ARTIFACTS", self.path("artifacts"));
            backup.arg("backup").arg("--output").arg(self.path(repository)).run().success();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn keys(&self) -> PathBuf {
        self.path("home/.config/lifeboat")
    }

    /// lifeboat for one of the homes and one of the repositories.
    fn program(&self, home: &str, repository: &str) -> Program {
        let program = Program::at(Path::new(env!("CARGO_BIN_EXE_lifeboat")), &self.path(home));
        let program = program.env("LIFEBOAT_REPOSITORY", self.path(repository));
        match &self.config {
            Some(config) => program.env("LIFEBOAT_CONFIG", config),
            None => program,
        }
    }

    fn backups(&self, repository: &str) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(self.path(repository)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.contains("-backup-"));
        names.sort();
        names
    }

    /// The objects of a repository by kind; first those that backup `id` needs.
    fn objects(&self, repository: &str, id: &str) -> BTreeMap<Kind, Vec<String>> {
        let root = self.path(repository);
        let manifest: Value = serde_json::from_slice(&fs::read(root.join(id).join("manifest.json")).unwrap()).unwrap();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let pack = |value: &Value| value["sha256"].as_str().unwrap().to_owned();
        let packs: Vec<String> = list(&manifest["packs"]).iter().map(pack).collect();
        let boot: Vec<&String> = list(&manifest["boot_packs"]).iter().map(|index| &packs[index.as_u64().unwrap() as usize]).collect();
        let runs: Vec<String> = list(&manifest["artifacts"]["runs"]).iter().map(pack).collect();
        let listed = self.program("home", repository).args(["artifact", "list", "--json", "--backup", id]).run().success().json();
        let text = |value: &Value, member: &str| value[member].as_str().unwrap().to_owned();
        let artifacts: Vec<(String, String)> =
            list(&listed["artifacts"]).iter().map(|artifact| (text(artifact, "version"), text(artifact, "sha256"))).collect();
        let mut objects: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
        walk(&root, &mut |path, meta| {
            let key = path.strip_prefix(&root).unwrap().to_str().unwrap();
            // Of no backup: `lifeboat audit verify` looks at the audit log.
            if !meta.is_file() || key.starts_with('.') || key.starts_with("audit/") {
                return;
            }
            let segments: Vec<&str> = key.split('/').collect();
            let last = segments[segments.len() - 1].trim_end_matches(".json");
            let (kind, is_ours) = match segments[..] {
                ["lifeboat.json"] => (Kind::Descriptor, true),
                [backup, "manifest.json"] => (Kind::Manifest, backup == id),
                [backup, "manifest.sigstore.json"] => (Kind::Bundle, backup == id),
                [backup, "backup_manifest"] => (Kind::BackupManifest, backup == id),
                [backup, "truth"] => (Kind::Truth, backup == id),
                [backup, "files", _] => (Kind::Table, backup == id),
                ["packs", _, name] if boot.iter().any(|boot| *boot == name) => (Kind::BootPack, true),
                ["packs", _, name] => (Kind::Pack, packs.iter().any(|pack| pack == name)),
                ["artifacts", "blobs", _, name] => (Kind::Blob, artifacts.iter().any(|(_, sha256)| sha256 == name)),
                ["artifacts", "records", ..] => (Kind::Record, artifacts.iter().any(|(version, _)| version == last)),
                ["artifacts", "catalog", name] => (Kind::Run, runs.iter().any(|run| run == name)),
                ["artifacts", "heads", _] => (Kind::Head, false),
                ["leases", ..] => (Kind::Lease, false),
                _ => panic!("what is {key}?"),
            };
            let of_kind = objects.entry(kind).or_default();
            if is_ours { of_kind.insert(0, key.to_owned()) } else { of_kind.push(key.to_owned()) }
        });
        objects
    }

    /// Restores a backup into fresh directories. Returns what it said, and what is there.
    fn restore(&self, repository: &str, id: &str, work: &str) -> (Output, Restored) {
        let (pgdata, artifacts) = (self.path(&format!("{work}-data")), self.path(&format!("{work}-artifacts")));
        let mut program = self.program("home", repository).args(["restore", id, "--artifacts"]).arg(&artifacts);
        if self.has_database {
            program = program.arg("--pgdata").arg(&pgdata);
        }
        let output = program.run();
        let restored = Restored { data: files(&pgdata), artifacts: files(&artifacts) };
        for directory in [pgdata, artifacts] {
            let _ = fs::remove_dir_all(directory);
        }
        (output, restored)
    }

    fn verify(&self, home: &str, repository: &str, id: &str) -> Output {
        self.program(home, repository).args(["verify", "--json", id]).run()
    }
}

/// What a restore left behind.
#[derive(PartialEq, Eq)]
struct Restored {
    data: BTreeMap<PathBuf, Vec<u8>>,
    artifacts: BTreeMap<PathBuf, Vec<u8>>,
}

impl Restored {
    fn can_start(&self) -> bool {
        self.data.contains_key(Path::new("global/pg_control"))
    }

    /// Whether everything that is there is as it should be, whatever is missing.
    fn is_sound(&self, whole: &Restored) -> bool {
        self.artifacts.iter().all(|(path, bytes)| whole.artifacts.get(path) == Some(bytes))
    }
}

/// The files below a directory, where there is one.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    if directory.is_dir() {
        walk(directory, &mut |path, meta| {
            if meta.is_file() {
                files.insert(path.strip_prefix(directory).unwrap().to_owned(), fs::read(path).unwrap());
            }
        });
    }
    files
}

/// Something that happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Delete,
    Empty,
    Shorter,
    Longer,
    FlipFirst,
    FlipMiddle,
    FlipLast,
    /// It changes places with another object of its kind.
    Swap,
    /// Another object of its kind stands in its place.
    Replace,
    /// The same, from another repository of the same owner.
    Foreign,
}

const DAMAGES: [Damage; 10] = [
    Damage::Delete,
    Damage::Empty,
    Damage::Shorter,
    Damage::Longer,
    Damage::FlipFirst,
    Damage::FlipMiddle,
    Damage::FlipLast,
    Damage::Swap,
    Damage::Replace,
    Damage::Foreign,
];

/// Objects as they were, put back when this is dropped.
struct Undo(Vec<(PathBuf, Vec<u8>)>);

impl Drop for Undo {
    fn drop(&mut self) {
        for (path, bytes) in &self.0 {
            fs::write(path, bytes).expect("own file");
        }
    }
}

/// Does it; none where there is no other object to take.
fn inflict(damage: Damage, object: &Path, sibling: Option<&Path>, foreign: Option<&Path>) -> Option<Undo> {
    let was = fs::read(object).unwrap();
    let mut undo = Undo(vec![(object.to_owned(), was.clone())]);
    let mut bytes = was;
    match damage {
        Damage::Delete => {
            fs::remove_file(object).unwrap();
            return Some(undo);
        }
        Damage::Empty => bytes.clear(),
        Damage::Shorter => bytes.truncate(bytes.len() - 1),
        Damage::Longer => bytes.push(b'x'),
        Damage::FlipFirst => bytes[0] ^= 1,
        Damage::FlipMiddle => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Damage::FlipLast => *bytes.last_mut().unwrap() ^= 1,
        Damage::Swap => {
            let other = fs::read(sibling?).unwrap();
            fs::write(sibling?, &bytes).unwrap();
            undo.0.push((sibling?.to_owned(), other.clone()));
            bytes = other;
        }
        Damage::Replace => bytes = fs::read(sibling?).unwrap(),
        Damage::Foreign => bytes = fs::read(foreign?).unwrap(),
    }
    if bytes == undo.0[0].1 {
        return None;
    }
    fs::write(object, bytes).unwrap();
    Some(undo)
}

/// Every kind of object and every damage, for the older backup: what a newer one added stands beside it and is not its business.
fn check_every_damage(scene: &Scene, kinds: &[Kind], damages: &[Damage]) {
    let id = scene.backups("repository").remove(0);
    let (objects, strangers) = (scene.objects("repository", &id), scene.objects("foreign", &scene.backups("foreign")[0]));
    let (output, whole) = scene.restore("repository", &id, "whole");
    output.success();
    assert!(whole.can_start() == scene.has_database && whole.artifacts.len() == 3);
    for home in ["home", "blind"] {
        scene.verify(home, "repository", &id).success();
    }
    for kind in kinds {
        let keys = objects.get(kind).unwrap_or_else(|| panic!("there is no {kind:?}"));
        let key = &keys[0];
        // Under one name both repositories hold the same artifact: that is no damage.
        let stranger = strangers.get(kind).and_then(|keys| keys.iter().find(|other| *other != key || *kind == Kind::Descriptor));
        let foreign = stranger.map(|key| scene.path("foreign").join(key));
        let sibling = keys.get(1).map(|key| scene.path("repository").join(key));
        let mut inflicted = 0;
        for damage in damages {
            let object = scene.path("repository").join(key);
            let Some(undo) = inflict(*damage, &object, sibling.as_deref(), foreign.as_deref()) else { continue };
            inflicted += 1;
            let case = format!("{kind:?} {damage:?} {key}");
            for home in ["home", "blind"] {
                check_verify(&scene.verify(home, "repository", &id), *kind, *damage, key, &id, &format!("{home} {case}"));
            }
            let (output, restored) = scene.restore("repository", &id, "damaged");
            check_restore(&output, &restored, &whole, *kind, *damage, &id, &case);
            drop(undo);
        }
        assert!(inflicted >= damages.len().saturating_sub(3).max(1), "{kind:?}");
    }
    scene.verify("home", "repository", &id).success();
}

fn check_verify(output: &Output, kind: Kind, damage: Damage, key: &str, id: &str, case: &str) {
    match kind {
        Kind::Descriptor => {
            let expected: &[i32] = if damage == Damage::Delete { &[10] } else { &[13, 21] };
            // Without its last newline it says the same, and nobody reads who made it and when.
            let is_unread = matches!(damage, Damage::FlipMiddle | Damage::Shorter) && output.code == Some(0);
            assert!(is_unread || expected.contains(&output.code.unwrap_or(-1)), "{case}\n{output}");
        }
        Kind::Head | Kind::Lease => assert!(output.code == Some(0), "{case}\n{output}"),
        _ => {
            assert!(output.code == Some(21), "{case}\n{output}");
            let document = output.json();
            assert_eq!(document["verdict"], "failed", "{case}\n{output}");
            let findings = document["reports"][0]["findings"].as_array().cloned().unwrap_or_default();
            let names = |finding: &&Value| {
                finding["backup"] == id && (finding["object"] == key || finding["object"].as_str().unwrap().starts_with(id))
            };
            let finding = findings.iter().find(names).unwrap_or_else(|| panic!("no finding about it: {case}\n{output}"));
            let expected: &[&str] = match (kind, damage) {
                (_, Damage::Delete) => &["missing"],
                (Kind::Bundle, _) => &["unsigned", "corrupt"],
                _ => &["corrupt"],
            };
            assert!(expected.contains(&finding["kind"].as_str().unwrap()), "{case}\n{output}");
            // Whom it hits: the artifact by name, the files by theirs where somebody can open the tables.
            let named = |prefix: &str| findings.iter().any(|finding| finding["file"].as_str().is_some_and(|file| file.starts_with(prefix)));
            match kind {
                Kind::Blob | Kind::Record => assert!(named("artifact "), "{case}\n{output}"),
                Kind::Pack if case.starts_with("home") => assert!(named("base/"), "{case}\n{output}"),
                Kind::BootPack if case.starts_with("home") => assert!(named(""), "{case}\n{output}"),
                _ => {}
            }
            assert!(output.stderr.contains(id), "{case}\n{output}");
        }
    }
}

fn check_restore(output: &Output, restored: &Restored, whole: &Restored, kind: Kind, damage: Damage, id: &str, case: &str) {
    let all_there = restored == whole;
    match (kind, output.code) {
        (Kind::Descriptor, Some(10 | 13 | 21)) => assert!(!restored.can_start() && restored.artifacts.is_empty(), "{case}\n{output}"),
        // Signed for another repository than this: all the same it is what was backed up.
        (Kind::Descriptor, Some(3)) => assert!(all_there && output.stderr.contains("lifeboat.json"), "{case}\n{output}"),
        (Kind::Descriptor, code) => {
            assert!(code == Some(0) && matches!(damage, Damage::FlipMiddle | Damage::Shorter) && all_there, "{case}\n{output}")
        }
        // Nothing of what is restored stands in the truth either: drills read it.
        (Kind::Head | Kind::Lease | Kind::Truth, code) => assert!(code == Some(0) && all_there, "{case}\n{output}"),
        // Not a byte of what is restored stands there.
        (Kind::Pack | Kind::BootPack, Some(0)) => {
            assert!(all_there && matches!(damage, Damage::Longer | Damage::FlipFirst), "{case}\n{output}");
        }
        (kind, code) => {
            assert!(code == Some(21), "{case}\n{output}");
            // The database came back whole before the artifacts were looked at; what is there of them is right.
            assert!(!restored.can_start() || kind.is_of_artifacts() && restored.data == whole.data, "{case}\n{output}");
            assert!(restored.is_sound(whole) && !all_there, "{case}\n{output}");
            assert!(output.stderr.contains(id), "{case}\n{output}");
        }
    }
}

#[test]
fn every_damage_to_a_local_copy_is_noticed() {
    let scene = Scene::of_cluster("local", "");
    check_every_damage(&scene, &[Kind::BootPack, Kind::Pack], &DAMAGES);
    let damages = [Damage::Delete, Damage::Empty, Damage::Longer, Damage::FlipMiddle, Damage::Swap, Damage::Foreign];
    check_every_damage(&scene, &[Kind::Table, Kind::BackupManifest, Kind::Truth], &damages);
    // The rest is the same with and without a database; what a restore leaves behind is not.
    check_every_damage(&scene, &[Kind::Manifest, Kind::Bundle, Kind::Blob], &[Damage::Delete]);
}

#[test]
fn every_damage_to_artifacts_is_noticed() {
    let scene = Scene::of_artifacts("");
    let kinds = [Kind::Descriptor, Kind::Manifest, Kind::Bundle, Kind::Blob, Kind::Record, Kind::Run, Kind::Head, Kind::Lease];
    check_every_damage(&scene, &kinds, &DAMAGES);
}

#[test]
fn every_damage_to_plain_artifacts_is_noticed() {
    let scene = Scene::of_artifacts("encryption.none = \"I accept plain backups\"");
    check_every_damage(&scene, &[Kind::Manifest, Kind::Blob, Kind::Record, Kind::Run], &DAMAGES);
}

#[test]
fn every_damage_to_a_plain_copy_is_noticed() {
    let scene = Scene::of_cluster("local", "encryption.none = \"I accept plain backups\"");
    check_every_damage(&scene, &[Kind::BootPack, Kind::Pack], &[Damage::Delete, Damage::FlipMiddle, Damage::FlipLast, Damage::Replace]);
    check_every_damage(&scene, &[Kind::Table, Kind::BackupManifest, Kind::Truth], &[Damage::FlipMiddle]);
}

#[test]
fn every_damage_to_a_dump_is_noticed() {
    let scene = Scene::of_cluster("logical", "");
    let damages = [Damage::Delete, Damage::FlipMiddle, Damage::Foreign];
    check_every_damage(&scene, &[Kind::Manifest, Kind::Table, Kind::BootPack], &damages);
}

/// One random byte of any object, many times: either it is noticed, or the proof holds without that byte and all comes back. Every run
/// flips others; `LIFEBOAT_TEST_FLIPS` asks for more of each object than there is time for in every run.
#[test]
fn every_flipped_byte_is_noticed_or_does_not_matter() {
    let number = |variable: &str| std::env::var(variable).ok().map(|text| text.parse::<u64>().expect("a number"));
    let flips = number("LIFEBOAT_TEST_FLIPS").unwrap_or(40) as usize;
    let seed = number("LIFEBOAT_TEST_SEED").unwrap_or_else(|| jiff::Timestamp::now().as_microsecond().unsigned_abs());
    println!("LIFEBOAT_TEST_SEED={seed}");
    let scene = Scene::of_artifacts("");
    let id = scene.backups("repository").remove(0);
    let (_, whole) = scene.restore("repository", &id, "whole");
    let jobs: Vec<(Kind, String)> =
        scene.objects("repository", &id).into_iter().map(|(kind, mut keys)| (kind, keys.swap_remove(0))).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in ["one", "two"] {
            let (scene, jobs, next, whole, id) = (&scene, &jobs, &next, &whole, &id);
            scope.spawn(move || {
                // Each in a copy of its own.
                expect_success(Command::new("cp").arg("-a").args([scene.path("repository"), scene.path(worker)]));
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some((kind, key)) = jobs.get(index / flips) else { return };
                    let mut random = Random(seed.wrapping_add(index as u64));
                    let path = scene.path(worker).join(key);
                    let was = fs::read(&path).unwrap();
                    let mut bytes = was.clone();
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                    let undo = Undo(vec![(path.clone(), was)]);
                    fs::write(&path, &bytes).unwrap();
                    let verified = scene.verify("home", worker, id);
                    let case = format!("seed {seed}, {kind:?} {key}, byte {at}");
                    let noticed = matches!(verified.code, Some(13 | 21));
                    let may_pass = matches!(kind, Kind::Descriptor | Kind::Bundle | Kind::Head | Kind::Lease);
                    assert!(noticed || may_pass && verified.code == Some(0), "{case}\n{verified}");
                    // A restore takes longer: of what is noticed every eighth, of what is not every one.
                    if !noticed || index % 8 == 0 {
                        let (output, restored) = scene.restore(worker, id, &format!("work-{worker}"));
                        assert!(restored.is_sound(whole), "{case}\n{output}");
                        let fails = matches!(output.code, Some(3 | 13 | 21));
                        assert!(if noticed { fails } else { output.code == Some(0) && restored == *whole }, "{case}\n{output}");
                    }
                    drop(undo);
                }
            });
        }
    });
}

#[test]
fn a_damaged_head_stops_what_would_build_on_it_and_nothing_else() {
    let scene = Scene::of_artifacts("");
    let id = scene.backups("repository").remove(0);
    let (_, whole) = scene.restore("repository", &id, "whole");
    let heads = scene.path("repository/artifacts/heads");
    let newest = fs::read_dir(&heads).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    fs::write(scene.path("artifacts/more"), "more").unwrap();
    for damage in [Damage::Empty, Damage::Shorter, Damage::FlipFirst, Damage::Longer] {
        // Its last byte is a newline, which says nothing.
        let undo = inflict(damage, &newest, None, None).unwrap();
        if damage == Damage::Shorter {
            fs::write(&newest, &undo.0[0].1[..undo.0[0].1.len() - 3]).unwrap();
        }
        let backups = scene.backups("repository");
        let program = || scene.program("home", "repository").env("LIFEBOAT_ARTIFACTS", scene.path("artifacts"));
        for command in [&["backup"][..], &["artifact", "sync", "../artifacts"], &["artifact", "list"], &["artifact", "verify"]] {
            let said = one_error(&program().args(command).run(), 21);
            assert!(said.contains("artifacts/heads/"), "{said}");
        }
        assert_eq!(scene.backups("repository"), backups);
        program().args(["verify", "--all"]).run().success();
        let (output, restored) = scene.restore("repository", &id, "again");
        assert!(output.success().stdout.contains(&id) && restored == whole);
        drop(undo);
    }
    // A lease that cannot be read is held by nobody.
    let leases = scene.path("repository/leases/backup");
    let newest = fs::read_dir(&leases).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    fs::write(&newest, "nothing").unwrap();
    scene.program("home", "repository").env("LIFEBOAT_ARTIFACTS", scene.path("artifacts")).arg("backup").run().success();
    scene.program("home", "repository").args(["verify", "--all"]).run().success();
}

#[test]
fn what_only_another_backup_names_is_not_this_ones_business() {
    let scene = Scene::of_artifacts("");
    let ids = scene.backups("repository");
    let (old, new) = (&ids[0], &ids[1]);
    let (_, whole) = scene.restore("repository", old, "whole");
    // Of each kind the first object is one of the backup's own.
    let (of_old, of_new) = (scene.objects("repository", old), scene.objects("repository", new));
    let every = |objects: &BTreeMap<Kind, Vec<String>>, kind| objects[&kind].clone();
    let added = |kind: Kind| {
        let before = &every(&of_old, kind)[..if kind == Kind::Run { 1 } else { 3 }];
        every(&of_new, kind).into_iter().find(|key| !before.contains(key)).unwrap()
    };
    for kind in [Kind::Blob, Kind::Record, Kind::Run] {
        let key = added(kind);
        let undo = inflict(Damage::FlipMiddle, &scene.path("repository").join(&key), None, None).unwrap();
        scene.verify("home", "repository", old).success();
        let (output, restored) = scene.restore("repository", old, "again");
        assert!(output.success().stderr.find("finding").is_none() && restored == whole, "{key}");
        let all = scene.program("home", "repository").args(["verify", "--all", "--json"]).run().expect_code(21).json();
        let bad: Vec<&str> = all["reports"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|report| !report["findings"].as_array().unwrap().is_empty())
            .map(|report| report["backup"].as_str().unwrap())
            .collect();
        assert_eq!(bad, [new], "{key}");
        drop(undo);
    }
    let all = scene.program("home", "repository").args(["verify", "--all"]).run().success();
    assert!(all.stdout.lines().count() == 2 && ids.iter().all(|id| all.stdout.contains(&format!("{id}  verified"))), "{all}");
}

#[test]
fn signatures_of_others_are_none() {
    let scene = Scene::of_artifacts("");
    let ids = scene.backups("repository");
    let (id, root) = (&ids[0], scene.path("repository"));
    let refused = |why: &str| {
        for home in ["home", "blind"] {
            let output = scene.verify(home, "repository", id).expect_code(21);
            let finding = output.json()["reports"][0]["findings"][0].clone();
            assert!(finding["kind"] == "unsigned" || finding["kind"] == "corrupt" || finding["kind"] == "missing", "{why}\n{output}");
            assert_eq!(finding["backup"], id.as_str(), "{why}\n{output}");
        }
        let (output, restored) = scene.restore("repository", id, "refused");
        assert!(
            one_error(&output, 21).contains(id.as_str()) && restored.artifacts.is_empty() && restored.data.is_empty(),
            "{why}\n{output}"
        );
        // The list tells it apart, and the others are still there.
        let list = scene.program("home", "repository").args(["list", "--json"]).run().expect_code(3).json();
        let states: Vec<&Value> = list["backups"].as_array().unwrap().iter().map(|backup| &backup["signature"]).collect();
        assert!(states[0] != "valid" && states[1] == "valid", "{why} {list}");
        scene.verify("home", "repository", &ids[1]).success();
    };
    let keep = |names: &[&str]| {
        Undo(names.iter().map(|name| root.join(id).join(name)).map(|path| (path.clone(), fs::read(path).unwrap())).collect())
    };
    let both = ["manifest.json", "manifest.sigstore.json"];
    let forger = Forger::new();

    let undo = keep(&both);
    forger.sign(&root, id);
    refused("the same manifest, signed by a stranger");
    forger.change_manifest(&root, id, |text| text.replace("\"host\": \"", "\"host\": \"evil-"));
    refused("another manifest, signed by a stranger");
    drop(undo);
    let undo = keep(&both);
    fs::copy(root.join(&ids[1]).join(both[1]), root.join(id).join(both[1])).unwrap();
    refused("the bundle of another backup");
    fs::copy(root.join(&ids[1]).join(both[0]), root.join(id).join(both[0])).unwrap();
    refused("another backup under this name, its signature with it");
    drop(undo);
    let undo = keep(&both);
    let bundle = fs::read_to_string(root.join(id).join(both[1])).unwrap();
    let mut document: Value = serde_json::from_str(&bundle).unwrap();
    document["dsseEnvelope"]["signatures"] = serde_json::json!([]);
    fs::write(root.join(id).join(both[1]), document.to_string()).unwrap();
    refused("a bundle without a signature");
    fs::write(root.join(id).join(both[1]), "{}").unwrap();
    refused("an empty bundle");
    fs::remove_file(root.join(id).join(both[1])).unwrap();
    refused("no bundle");
    drop(undo);
    scene.program("home", "repository").args(["verify", "--all"]).run().success();

    // Once the forger is trusted it is not the signature but the bytes that count.
    fs::write(scene.path("forger.pub"), forger.public_pem()).unwrap();
    fs::write(scene.path("trusting.toml"), format!("[trust]\nkeys = [\"{}\"]\n", scene.path("forger.pub").display())).unwrap();
    let _undo = keep(&both);
    forger.sign(&root, id);
    let trusting = || scene.program("home", "repository").env("LIFEBOAT_CONFIG", scene.path("trusting.toml"));
    let output = trusting().args(["verify", id, "--json"]).run().expect_code(21);
    // The manifest is the forger's; the artifacts were signed by somebody who is no longer trusted.
    let findings = output.json()["reports"][0]["findings"].clone();
    assert!(findings.as_array().unwrap().iter().all(|finding| finding["kind"] == "unsigned"), "{output}");
    assert_eq!(findings.as_array().unwrap().len(), 3, "{output}");
}

#[test]
fn a_sample_reads_a_part_says_which_and_over_time_everything() {
    let scene = Scene::of_artifacts("");
    let id = scene.backups("repository").remove(0);
    let output = scene.program("home", "repository").args(["verify", &id, "--sample", "50", "--seed", "7"]).run().success();
    assert!(output.stdout.contains("sample of 50 % with seed 7"), "{output}");
    // Unless one is given, it is the day's, and said.
    let today = || u64::try_from(jiff::Timestamp::now().as_second() / 86_400).unwrap();
    let before = today();
    let seed = || scene.program("home", "repository").args(["verify", &id, "--sample", "50", "--json"]).run().success().json();
    let said = seed()["reports"][0]["sample_seed"].as_u64().expect("a seed");
    assert!((before..=today()).contains(&said), "{said}");

    // A damaged blob is in one of two halves that follow each other, always the same.
    let key = scene.objects("repository", &id)[&Kind::Blob][0].clone();
    let _undo = inflict(Damage::FlipLast, &scene.path("repository").join(&key), None, None).unwrap();
    let codes = |_: usize| -> Vec<Option<i32>> {
        let run =
            |seed: u64| scene.program("home", "repository").args(["verify", &id, "--sample", "50", "--seed", &seed.to_string()]).run();
        (7..13).map(|seed| run(seed).code).collect()
    };
    let found = codes(0);
    let mut halves = [found[0], found[1]];
    halves.sort_unstable();
    assert_eq!(halves, [Some(0), Some(21)], "{found:?}");
    assert!(found.chunks(2).all(|pair| pair == &found[..2]), "{found:?}");
    assert_eq!(found, codes(1));
    // What is missing is noticed in every sample, and so is what is small enough to be read always.
    let record = scene.objects("repository", &id)[&Kind::Record][0].clone();
    let _undo = inflict(Damage::FlipMiddle, &scene.path("repository").join(record), None, None).unwrap();
    for seed in ["0", "50"] {
        scene.program("home", "repository").args(["verify", &id, "--sample", "1", "--seed", seed]).run().expect_code(21);
    }
}
