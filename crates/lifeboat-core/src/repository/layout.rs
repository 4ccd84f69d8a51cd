//! The keys of every object in a repository, all built here (format 1).

use std::fmt;

use super::backup_id::{BackupId, SystemName};
use super::{FormatError, Sha256};
use crate::wal::{Lsn, SystemId, Timeline};

/// The most bytes an artifact's name may have.
pub const MAX_NAME_BYTES: usize = 1024;

/// Segments of a key longer than this are cut and hashed: file systems allow 255.
const MAX_SEGMENT_BYTES: usize = 200;

/// What stays of a segment that is cut.
const KEPT_BYTES: usize = 128;

/// A name that takes more in a key is replaced whole by its digest. S3 ends keys at 1024 bytes ("Creating object
/// key names" in its user guide), and the repository's own prefix, `artifacts/records/`, the version and its suffix
/// have to fit as well: 700 leaves 230 bytes for the prefix.
const MAX_ESCAPED_BYTES: usize = 700;

/// The key of one object: relative, `/`-separated, plain ASCII.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A key from its text, as a store lists it.
    ///
    /// # Errors
    ///
    /// Anything that could leave the repository's prefix or is not plain ASCII.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let segment_ok = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
        if text.len() <= 8192 && text.split('/').all(segment_ok) {
            Ok(Self(text.to_owned()))
        } else {
            Err(FormatError::malformed("object key", format!("{:?}", super::clip(text))))
        }
    }

    /// The text of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `lifeboat.json`
pub fn descriptor() -> Key {
    Key("lifeboat.json".into())
}

/// `<backup-id>/manifest.json`
pub fn manifest(id: &BackupId) -> Key {
    Key(format!("{id}/manifest.json"))
}

/// `<backup-id>/manifest.sigstore.json`
pub fn manifest_bundle(id: &BackupId) -> Key {
    Key(format!("{id}/manifest.sigstore.json"))
}

/// `<backup-id>/files/<n>`
pub fn file_table(id: &BackupId, number: usize) -> Key {
    Key(format!("{id}/files/{number}"))
}

/// `<backup-id>/backup_manifest`
pub fn backup_manifest(id: &BackupId) -> Key {
    Key(format!("{id}/backup_manifest"))
}

/// `<backup-id>/truth`
pub fn truth(id: &BackupId) -> Key {
    Key(format!("{id}/truth"))
}

/// `packs/<xx>/<sha256>`
pub fn pack(digest: Sha256) -> Key {
    let digest = digest.to_string();
    Key(format!("packs/{}/{digest}", &digest[..2]))
}

/// `artifacts/blobs/<xx>/<sha256 of the plain bytes>`
pub fn artifact_blob(digest: Sha256) -> Key {
    let digest = digest.to_string();
    Key(format!("artifacts/blobs/{}/{digest}", &digest[..2]))
}

/// `artifacts/records/<name>/`: where the versions of one artifact stand.
pub fn artifact_records(name: &ArtifactName) -> String {
    format!("artifacts/records/{}/", escape(&name.0))
}

/// `artifacts/records/<name>/<version>.json`
pub fn artifact_record(name: &ArtifactName, version: &str) -> Key {
    Key(format!("{}{version}.json", artifact_records(name)))
}

/// `artifacts/catalog/<sha256>`
pub fn artifact_run(digest: Sha256) -> Key {
    Key(format!("artifacts/catalog/{digest}"))
}

/// Where the heads stand.
pub const ARTIFACT_HEADS: &str = "artifacts/heads/";

/// `artifacts/heads/<n>.json`
pub fn artifact_head(number: u64) -> Key {
    Key(format!("{ARTIFACT_HEADS}{number:010}.json"))
}

/// Where catalog runs stand.
pub const ARTIFACT_RUNS: &str = "artifacts/catalog/";

/// Where blobs stand.
pub const ARTIFACT_BLOBS: &str = "artifacts/blobs/";

/// Where packs stand.
pub const PACKS: &str = "packs/";

/// `artifacts/condemned/<n>.json`
pub fn artifact_condemned(head: u64) -> Key {
    Key(format!("artifacts/condemned/{head:010}.json"))
}

/// Where a backup's own objects stand.
pub fn backup(id: &BackupId) -> String {
    format!("{id}/")
}

/// Where the marks of a backup's expiry stand.
pub fn expiry_marks(id: &BackupId) -> String {
    format!("{id}/expired/")
}

/// `<backup-id>/expired/<n>.json`
pub fn expiry_mark(id: &BackupId, number: u64) -> Key {
    Key(format!("{id}/expired/{number:010}.json"))
}

/// Where a backup's pins stand.
pub fn pins(id: &BackupId) -> String {
    format!("{id}/pins/")
}

/// `<backup-id>/pins/<name>.json`
pub fn pin(id: &BackupId, name: &SystemName) -> Key {
    Key(format!("{id}/pins/{name}.json"))
}

/// `<backup-id>/pins/<name>.ended.json`
pub fn pin_end(id: &BackupId, name: &SystemName) -> Key {
    Key(format!("{id}/pins/{name}.ended.json"))
}

/// The pin that a key is of, and whether it is its end.
pub fn pin_of(key: &Key) -> Option<(SystemName, bool)> {
    let (id, name) = key.0.split_once("/pins/")?;
    id.parse::<BackupId>().ok()?;
    let name = name.strip_suffix(".json")?;
    match name.strip_suffix(".ended") {
        Some(name) => Some((name.parse().ok()?, true)),
        None => Some((name.parse().ok()?, false)),
    }
}

/// The digest at the end of a key like `packs/ab/ab…`.
pub fn digest_of(key: &Key) -> Option<Sha256> {
    key.0.rsplit('/').next()?.parse().ok()
}

/// Where leases stand.
pub const LEASES: &str = "leases/";

/// Where plans stand that somebody asked to approve.
pub const APPROVALS: &str = "approvals/";

/// Where everything about one plan stands.
pub fn approvals(plan: Sha256) -> String {
    format!("{APPROVALS}{plan}/")
}

/// `approvals/<plan>/plan.json`
pub fn approval_plan(plan: Sha256) -> Key {
    Key(format!("{APPROVALS}{plan}/plan.json"))
}

/// Where everything about one request stands: `approvals/<plan>/<request>/`
pub fn approval_request(plan: Sha256, request: Sha256) -> String {
    format!("{APPROVALS}{plan}/{request}/")
}

/// `approvals/<plan>/<request>/request.<sigstore|ssh>.json`
pub fn approval_request_statement(plan: Sha256, request: Sha256, ssh: bool) -> Key {
    Key(format!("{}request.{}.json", approval_request(plan, request), if ssh { "ssh" } else { "sigstore" }))
}

/// `approvals/<plan>/<request>/<approver>-<digest>.<sigstore|ssh>.json`: the name is for people, and whose approval it is its signature says.
/// With the digest of the object's own bytes in it, nobody can take somebody else's name away.
pub fn approval(plan: Sha256, request: Sha256, approver: &str, object: &[u8], ssh: bool) -> Key {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '@' | '_' | '-') { c.to_ascii_lowercase() } else { '-' };
    let name: String = approver.trim_matches('.').chars().take(64).map(plain).collect();
    let digest = Sha256::of(object).to_string();
    Key(format!("{}{name}-{}.{}.json", approval_request(plan, request), &digest[..16], if ssh { "ssh" } else { "sigstore" }))
}

/// `approvals/<plan>/<request>/used.json`
pub fn approval_used(plan: Sha256, request: Sha256) -> Key {
    Key(format!("{}used.json", approval_request(plan, request)))
}

/// Where stores are tried out.
pub const PROBES: &str = "probe/";

/// `probe/<run>/<name>`: an object that only says how the store behaves.
pub fn probe(run: super::Id, name: &str) -> Key {
    Key(format!("{PROBES}{run}/{name}"))
}

/// Where finished visits of what is held stand.
pub const VISITS: &str = "retention/";

/// `retention/<n>.json`
pub fn visit(number: u64) -> Key {
    Key(format!("{VISITS}{number:010}.json"))
}

/// Where the evidence of drills stands.
pub const DRILLS: &str = "drills/";

/// Where everything about one drill stands.
pub fn drill(id: &str) -> String {
    format!("{DRILLS}{id}/")
}

/// `drills/<drill-id>/<name>`: `report.json`, `report.html`, `report.sigstore.json`, `test-result.sigstore.json`. The bundle of `report.json`
/// is written before it.
///
/// # Errors
///
/// An id or a name that is no segment of a key.
pub fn drill_object(id: &str, name: &str) -> Result<Key, FormatError> {
    Key::parse(&format!("{DRILLS}{id}/{name}"))
}

/// Where the audit log stands.
pub const AUDIT: &str = "audit/";

/// Where its checkpoints stand.
pub const AUDIT_CHECKPOINTS: &str = "audit/checkpoint/";

/// Records in an entry bundle, and hashes in a tile: C2SP's tlog-tiles has trees of height 8.
pub const AUDIT_WIDTH: u64 = 256;

/// `audit/leaf/<n>`: the record with the index n, from 0.
pub fn audit_leaf(index: u64) -> Key {
    Key(format!("audit/leaf/{index:010}"))
}

/// `audit/checkpoint/<size>`: the signed head of the tree of the first `size` records.
pub fn audit_checkpoint(size: u64) -> Key {
    Key(format!("{AUDIT_CHECKPOINTS}{size:010}"))
}

/// `audit/tile/<level>/<n>[.p/<width>]`, as C2SP's tlog-tiles spells it. A tile of 256 hashes is whole.
pub fn audit_tile(level: u8, number: u64, width: u64) -> Key {
    let part = if width < AUDIT_WIDTH { format!(".p/{width}") } else { String::new() };
    Key(format!("audit/tile/{level}/{}{part}", in_thousands(number)))
}

/// `audit/tile/entries/<n>`: the records 256 n to 256 n + 255.
pub fn audit_entries(number: u64) -> Key {
    Key(format!("audit/tile/entries/{}", in_thousands(number)))
}

/// A number as tlog-tiles spells it: groups of three digits, `x` before each but the last.
fn in_thousands(number: u64) -> String {
    let mut text = format!("{:03}", number % 1000);
    let mut rest = number / 1000;
    while rest > 0 {
        text = format!("x{:03}/{text}", rest % 1000);
        rest /= 1000;
    }
    text
}

/// An object of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuditObject {
    /// One record.
    Leaf(u64),
    /// Hashes.
    Tile {
        /// Level in the tree of tiles.
        level: u8,
        /// Number in the level.
        number: u64,
        /// Hashes in it.
        width: u64,
    },
    /// 256 records.
    Entries(u64),
    /// The head of the tree of so many records.
    Checkpoint(u64),
}

impl AuditObject {
    /// Its key.
    pub fn key(self) -> Key {
        match self {
            Self::Leaf(index) => audit_leaf(index),
            Self::Tile { level, number, width } => audit_tile(level, number, width),
            Self::Entries(number) => audit_entries(number),
            Self::Checkpoint(size) => audit_checkpoint(size),
        }
    }
}

/// What a key of the audit log is of. Every object has one spelling; others are none of ours.
pub fn audit_object(key: &Key) -> Option<AuditObject> {
    let (kind, rest) = key.0.strip_prefix(AUDIT)?.split_once('/')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let thousands = |text: &str| {
        text.split('/').try_fold(0u64, |sum, group| sum.checked_mul(1000)?.checked_add(number(group.strip_prefix('x').unwrap_or(group))?))
    };
    let object = match kind {
        "leaf" => AuditObject::Leaf(number(rest)?),
        "checkpoint" => AuditObject::Checkpoint(number(rest)?),
        "tile" => match rest.split_once('/')? {
            ("entries", rest) => AuditObject::Entries(thousands(rest)?),
            (level, rest) => {
                let (rest, width) = rest.split_once(".p/").map_or((rest, Some(AUDIT_WIDTH)), |(rest, width)| (rest, number(width)));
                let width = width.filter(|width| (1..=AUDIT_WIDTH).contains(width))?;
                AuditObject::Tile { level: level.parse().ok()?, number: thousands(rest)?, width }
            }
        },
        _ => return None,
    };
    (object.key() == *key).then_some(object)
}

/// Where the epochs of a lease stand.
pub fn leases(purpose: &str) -> String {
    format!("leases/{purpose}/")
}

/// `leases/<purpose>/<epoch>.json`
pub fn lease(purpose: &str, epoch: u64) -> Key {
    Key(format!("leases/{purpose}/{epoch:010}.json"))
}

/// `wal/<system-id>/<rest>`, of a file of a WAL archive.
pub fn wal(subject: &str) -> Key {
    Key(format!("wal/{subject}"))
}

/// Where the WAL of a cluster stands.
pub fn wal_of(system_id: SystemId) -> String {
    format!("wal/{system_id}/")
}

/// Where the WAL of one timeline stands.
pub fn wal_timeline(system_id: SystemId, timeline: Timeline) -> String {
    format!("wal/{system_id}/{:08X}/", timeline.0)
}

/// `wal/<system-id>/cluster.json`
pub fn wal_cluster(system_id: SystemId) -> Key {
    Key(format!("wal/{system_id}/cluster.json"))
}

/// Where the gaps of a cluster's WAL stand.
pub fn wal_gaps(system_id: SystemId) -> String {
    format!("wal/{system_id}/gaps/")
}

/// `wal/<system-id>/gaps/<timeline>.<from>-<to>.json`
pub fn wal_gap(system_id: SystemId, timeline: Timeline, from: Lsn, to: Lsn) -> Key {
    Key(format!("wal/{system_id}/gaps/{:08X}.{:016X}-{:016X}.json", timeline.0, from.0, to.0))
}

/// The number in the last part of a key like `…/0000000012.json`: ten digits and nothing else, so that a number has
/// one name.
pub fn number_of(key: &Key) -> Option<u64> {
    let digits = key.0.rsplit('/').next()?.strip_suffix(".json")?;
    (digits.len() == 10 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// The backup whose manifest this key is.
pub fn backup_of_manifest(key: &Key) -> Option<BackupId> {
    key.0.strip_suffix("/manifest.json")?.parse().ok()
}

/// The name of an artifact: what the orchestrator calls it, a relative path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactName(String);

impl ArtifactName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ArtifactName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bad = |why: &str| Err(FormatError::malformed("artifact name", format!("{:?} {why}", super::clip(text))));
        if text.is_empty() || text.len() > MAX_NAME_BYTES {
            return bad("is not 1 to 1024 bytes");
        }
        if text.chars().any(char::is_control) {
            return bad("has a control character");
        }
        if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return bad("is not a relative path without empty, . and .. parts");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

super::serde_through_text!(ArtifactName);

/// How a name stands in a key. Different names never share one: `%` is always followed by two hexadecimal digits,
/// except in `%~`, behind which stands a digest.
fn escape(name: &str) -> String {
    let mut key = String::with_capacity(name.len());
    for (number, segment) in name.split('/').enumerate() {
        if number > 0 {
            key.push('/');
        }
        let mut escaped = String::new();
        for byte in segment.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
                escaped.push(char::from(byte));
            } else {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        }
        if escaped.len() > MAX_SEGMENT_BYTES {
            let mut keep = KEPT_BYTES;
            // Do not tear %XX.
            while escaped[..keep].rfind('%').is_some_and(|at| at + 3 > keep) {
                keep -= 1;
            }
            escaped.truncate(keep);
            escaped.push_str("%~");
            escaped.push_str(&Sha256::of(segment.as_bytes()).to_string());
        }
        key.push_str(&escaped);
    }
    if key.len() > MAX_ESCAPED_BYTES { format!("%~{}", Sha256::of(name.as_bytes())) } else { key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_that_of_the_format() {
        let id: BackupId = "conductor-backup-20240315T120000Z".parse().unwrap();
        let digest = Sha256([0xAB; 32]);
        let hex = "ab".repeat(32);
        let name: ArtifactName = "builds/1 7/größe.txt".parse().unwrap();
        for (key, expected) in [
            (descriptor(), "lifeboat.json".to_owned()),
            (manifest(&id), "conductor-backup-20240315T120000Z/manifest.json".to_owned()),
            (manifest_bundle(&id), "conductor-backup-20240315T120000Z/manifest.sigstore.json".to_owned()),
            (file_table(&id, 3), "conductor-backup-20240315T120000Z/files/3".to_owned()),
            (pack(digest), format!("packs/ab/{hex}")),
            (artifact_blob(digest), format!("artifacts/blobs/ab/{hex}")),
            (artifact_record(&name, "v"), "artifacts/records/builds/1%207/gr%C3%B6%C3%9Fe.txt/v.json".to_owned()),
            (artifact_head(12), "artifacts/heads/0000000012.json".to_owned()),
            (artifact_condemned(12), "artifacts/condemned/0000000012.json".to_owned()),
            (expiry_mark(&id, 2), "conductor-backup-20240315T120000Z/expired/0000000002.json".to_owned()),
            (pin(&id, &"audit".parse().unwrap()), "conductor-backup-20240315T120000Z/pins/audit.json".to_owned()),
            (pin_end(&id, &"audit".parse().unwrap()), "conductor-backup-20240315T120000Z/pins/audit.ended.json".to_owned()),
            (approval_plan(digest), format!("approvals/{hex}/plan.json")),
            (approval_request_statement(digest, digest, false), format!("approvals/{hex}/{hex}/request.sigstore.json")),
            (approval_used(digest, digest), format!("approvals/{hex}/{hex}/used.json")),
            (
                approval(digest, digest, "../Zoë <z@example.com>", b"", true),
                format!("approvals/{hex}/{hex}/-zo---z@example.com--e3b0c44298fc1c14.ssh.json"),
            ),
        ] {
            assert_eq!(key.as_str(), expected);
            assert_eq!(Key::parse(key.as_str()), Ok(key));
        }
        assert_eq!(backup_of_manifest(&manifest(&id)), Some(id.clone()));
        let audit: SystemName = "audit".parse().unwrap();
        assert_eq!(pin_of(&pin(&id, &audit)), Some((audit.clone(), false)));
        assert_eq!(pin_of(&pin_end(&id, &audit)), Some((audit, true)));
        assert_eq!(pin_of(&file_table(&id, 3)), None);
        assert_eq!(digest_of(&pack(digest)), Some(digest));
        assert_eq!(number_of(&artifact_head(12)), Some(12));
        for other in ["leases/x/12.json", "leases/x/+000000012.json", "leases/x/0000000012", "leases/x/18446744073709551615.json"] {
            assert_eq!(number_of(&Key::parse(other).unwrap()), None, "{other}");
        }
    }

    #[test]
    fn objects_of_the_audit_log_have_one_spelling_that_of_tlog_tiles() {
        for (object, expected) in [
            (AuditObject::Leaf(12), "audit/leaf/0000000012"),
            (AuditObject::Checkpoint(13), "audit/checkpoint/0000000013"),
            (AuditObject::Tile { level: 0, number: 0, width: 5 }, "audit/tile/0/000.p/5"),
            (AuditObject::Tile { level: 1, number: 7, width: 256 }, "audit/tile/1/007"),
            (AuditObject::Tile { level: 0, number: 1_234_067, width: 256 }, "audit/tile/0/x001/x234/067"),
            (AuditObject::Entries(1000), "audit/tile/entries/x001/000"),
        ] {
            assert_eq!(object.key().as_str(), expected);
            assert_eq!(audit_object(&Key::parse(expected).unwrap()), Some(object));
        }
        for other in [
            "audit/leaf/12",
            "audit/leaf/+000000012",
            "audit/leaf/0000000012/x",
            "audit/checkpoint/x",
            "audit/tile/0/000.p/0",
            "audit/tile/0/000.p/256",
            "audit/tile/0/000.p/05",
            "audit/tile/00/000",
            "audit/tile/0/0",
            "audit/tile/0/001/234",
            "audit/tile/0/x001/x234",
            "audit/tile/entries/000.p/3",
            "audit/tile/0/x999/x999/x999/x999/x999/x999/x999/999",
            "audit/other/1",
        ] {
            assert_eq!(audit_object(&Key::parse(other).unwrap()), None, "{other}");
        }
    }

    #[test]
    fn names_that_leave_their_directory_are_refused() {
        for bad in ["", "/etc/passwd", "a//b", "a/../b", ".", "a/", "a\nb", "a\0b", &"x".repeat(1025)] {
            assert!(bad.parse::<ArtifactName>().is_err(), "{bad:?}");
        }
        for good in ["-rf", "a b", "...", "ü", "a\\b", "%2e%2e/x"] {
            assert!(good.parse::<ArtifactName>().is_ok(), "{good:?}");
        }
    }

    /// The key of a version of 64 bytes, the longest there is.
    fn longest_key(name: &str) -> String {
        artifact_record(&name.parse().unwrap(), &"v".repeat(64)).to_string()
    }

    #[test]
    fn names_too_long_for_a_key_are_replaced_by_their_digest() {
        // 700 bytes as they are, and one more: the name itself, then its digest.
        let fits = vec!["a".repeat(174); 4].join("/") + "b";
        assert_eq!(fits.len(), 700);
        assert_eq!(longest_key(&fits), format!("artifacts/records/{fits}/{}.json", "v".repeat(64)));
        let longer = format!("{fits}e");
        let digest = Sha256::of(longer.as_bytes());
        assert_eq!(longest_key(&longer), format!("artifacts/records/%~{digest}/{}.json", "v".repeat(64)));
        // Not by a name that is written like the replacement.
        let forged = format!("%~{digest}");
        assert!(longest_key(&forged).starts_with(&format!("artifacts/records/%25%7E{digest}/")));
    }

    #[test]
    fn a_segment_is_cut_before_an_escape_that_would_be_torn() {
        for (before, kept) in [(126, 126), (127, 127), (128, 128), (125, 128)] {
            let segment = format!("{}{}", "a".repeat(before), "ü".repeat(40));
            let key = longest_key(&segment);
            let written = key.strip_prefix("artifacts/records/").and_then(|key| key.split('/').next()).unwrap();
            assert_eq!(written.find("%~"), Some(kept), "{written}");
            assert!(written.ends_with(&Sha256::of(segment.as_bytes()).to_string()));
        }
    }

    proptest! {
        #[test]
        fn no_key_is_longer_than_stores_allow(name in "[a-zü~/]{1,1024}") {
            if let Ok(name) = name.parse::<ArtifactName>() {
                let key = artifact_record(&name, &"v".repeat(64));
                // 1024 of S3, less 230 for the repository's prefix.
                prop_assert!(key.as_str().len() <= 1024 - 230, "{} bytes", key.as_str().len());
                prop_assert!(Key::parse(key.as_str()).is_ok());
            }
        }

        #[test]
        fn long_names_that_differ_have_keys_that_differ(stem in "[a-zü]{30}", parts in 1usize..30, a in "[ab%~/]{1,9}", b in "[ab%~/]{1,9}") {
            let name = |tail: &str| format!("{}{tail}", format!("{stem}/").repeat(parts)).parse::<ArtifactName>();
            if let (Ok(a), Ok(b)) = (name(&a), name(&b)) {
                prop_assert_eq!(a == b, artifact_record(&a, "v") == artifact_record(&b, "v"));
            }
        }

        #[test]
        fn different_names_have_different_keys(a in "[a-z%ü /~.]{1,300}", b in "[a-z%ü /~.]{1,300}") {
            if let (Ok(a), Ok(b)) = (a.parse::<ArtifactName>(), b.parse::<ArtifactName>()) {
                let (ka, kb) = (artifact_record(&a, "v"), artifact_record(&b, "v"));
                prop_assert_eq!(a == b, ka == kb);
                prop_assert!(Key::parse(ka.as_str()).is_ok());
                prop_assert!(ka.as_str().split('/').all(|segment| segment.len() <= 200));
            }
        }
    }
}
