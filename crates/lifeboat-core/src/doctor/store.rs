//! What is wrong with a store that a repository is, or is to be, in.

use serde::Serialize;

use super::{Diagnosis, Severity};
use crate::hold::{HoldMode, Retention};

/// What was seen, or why it could not be.
pub type Seen<T> = Result<T, Unseen>;

/// Why something was not seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Unseen {
    /// The credentials do not allow it.
    Denied(String),
    /// The store does not know the question.
    Unknown(String),
    /// Something failed.
    Failed(String),
}

impl std::fmt::Display for Unseen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Denied(why) | Self::Unknown(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

/// What happened to an object whose name was created a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondCreate {
    /// Refused; the first bytes are there.
    Refused,
    /// The second bytes are there.
    Overwrote,
    /// The store says that it was done, and the first bytes are there: both writers believe that they won.
    BothWon,
    /// Refused, and the first bytes are gone all the same.
    RefusedAndLost,
}

/// What happened to an old version that was asked for by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OldVersion {
    /// Its own bytes came.
    Kept,
    /// Other bytes came, those of the newest version for one.
    OtherBytes,
    /// It is gone, or the store gives writes no version.
    Gone,
}

/// What happened to a version that was written to stay for some seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    /// It could not be deleted.
    Kept,
    /// It could not be deleted, but its time was made shorter.
    Shortened,
    /// The store says that it is held, and deleted it.
    Deleted,
    /// The store does not say that it is held, and deleted it.
    Ignored,
}

/// What a store does, seen by doing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Behaviour {
    /// A name created twice.
    pub second_create: Seen<SecondCreate>,
    /// The same of an object that is uploaded in parts; `None`: the store knows no parts.
    pub second_create_in_parts: Option<Seen<SecondCreate>>,
    /// Of so many who created one name at the same time, how many were told that they won, and whether the bytes are those of one that was.
    pub race: Seen<Race>,
    /// What was written is read, whole and in ranges.
    pub reads_what_was_written: Seen<bool>,
    /// What was written is listed at once.
    pub lists_what_was_written: Seen<bool>,
    /// What was deleted is not read any more. The credentials need not allow it.
    pub deletes: Seen<bool>,
    /// Bytes with another's checksum are refused; `None`: the store takes no checksums, or was not asked.
    pub refuses_wrong_checksum: Option<Seen<bool>>,
    /// An old version; `None`: the store has no versions, or was not asked.
    pub old_version: Option<Seen<OldVersion>>,
    /// A version that is held; `None`: the store has no such hold, or was not asked.
    pub held: Option<Seen<Held>>,
    /// Objects of the probe that could not be taken away.
    pub left_behind: u32,
}

/// Many who create one name at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Race {
    /// How many tried.
    pub writers: u32,
    /// How many were told that they won.
    pub winners: u32,
    /// The bytes are a winner's.
    pub winners_bytes: bool,
}

/// Whether old versions stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Versions {
    /// No.
    Off,
    /// Yes.
    On,
    /// Not any more.
    Suspended,
}

/// What a bucket holds that says nothing itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DefaultHold {
    /// Who may end it.
    pub mode: HoldMode,
    /// About how many days, at least.
    pub days: u64,
}

/// Where the store itself copies objects to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copying {
    /// Switched on.
    pub enabled: bool,
    /// It is of our objects.
    pub ours: bool,
    /// Where to.
    pub destination: String,
    /// Deletions are copied as well.
    pub deletions: bool,
}

/// A rule by which the store deletes objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deleting {
    /// Its name.
    pub id: String,
    /// It is of our objects.
    pub ours: bool,
    /// It deletes or hides objects so many days after they were written.
    pub objects_after_days: Option<u32>,
    /// It deletes old versions so many days after they were replaced.
    pub old_versions_after_days: Option<u32>,
    /// It ends uploads that were never finished.
    pub aborts_uploads: bool,
}

/// What a bucket says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BucketFacts {
    /// Its name.
    pub bucket: String,
    /// The server, where it is not AWS.
    pub endpoint: Option<String>,
    /// Whether old versions stay.
    pub versions: Seen<Versions>,
    /// `None`: no Object Lock. `Some(None)`: Object Lock without a default.
    pub lock: Seen<Option<Option<DefaultHold>>>,
    /// The newest object that said nothing itself is held as the default says; `None`: there is none to see it on.
    pub inherits: Option<Seen<bool>>,
    /// Copies that the store makes.
    pub copies: Seen<Vec<Copying>>,
    /// How objects are encrypted by default.
    pub encryption: Seen<Option<String>>,
    /// Nothing can be public.
    pub public_access_blocked: Seen<bool>,
    /// Rules that delete.
    pub deleting: Seen<Vec<Deleting>>,
    /// Seconds that the server's clock is ahead of this host's.
    pub clock_ahead_seconds: Option<i64>,
}

/// What a directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirectoryFacts {
    /// Where.
    pub path: String,
    /// The file system, where its name is known.
    pub file_system: Option<String>,
    /// Lost with the machine: tmpfs.
    pub in_memory: bool,
    /// Free for who may not use the reserve.
    pub free_bytes: u64,
    /// All of it.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// It stands on the file system of the data directory or of the artifacts.
    pub with_source: bool,
}

/// All that is known of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreFacts {
    /// Its URL.
    pub url: String,
    /// What it does.
    pub behaviour: Behaviour,
    /// What a bucket says.
    pub bucket: Option<BucketFacts>,
    /// What a directory is.
    pub directory: Option<DirectoryFacts>,
    /// What the configuration promises.
    pub retention: Option<Retention>,
    /// Other repositories that have copies.
    pub other_copies: u32,
    /// What the credentials allow; `None`: it was not asked, or there are none.
    pub reach: Option<super::privilege::Reach>,
}

/// A clock that far off makes leases and recovery times wrong.
const SKEW_WARNING_SECONDS: u64 = 60;

/// A clock that far off is soon refused: S3 refuses requests that are a quarter of an hour off.
const SKEW_DANGER_SECONDS: u64 = 300;

/// Free space below which a directory is soon full: one of twenty.
const FREE_SHARE: u64 = 20;

const UNSAFE: &str = "two writers can destroy each other's objects: leases, commits and WAL are not safe, and nothing may be stored here";

const OTHER_STORE: &str = "use a store that heeds If-None-Match (docs/stores.md names tested ones), and no proxy that strips the header; then run lifeboat doctor";

/// Whether a repository may stand in a store at all: the first reason why not.
pub fn refuse(facts: &StoreFacts) -> Option<super::Finding> {
    let mut diagnosis = Diagnosis::default();
    creating(facts, &mut diagnosis);
    if let Some(bucket) = &facts.bucket {
        lock(facts, bucket, &mut diagnosis);
    }
    diagnosis.sorted().findings.into_iter().find(|finding| finding.severity == Severity::Essential)
}

/// What is wrong with a store.
pub fn assess(facts: &StoreFacts) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    creating(facts, &mut diagnosis);
    reading(facts, &mut diagnosis);
    if let Some(bucket) = &facts.bucket {
        versions(facts, bucket, &mut diagnosis);
        lock(facts, bucket, &mut diagnosis);
        rules(facts, bucket, &mut diagnosis);
        clock(facts, bucket, &mut diagnosis);
    }
    if let Some(directory) = &facts.directory {
        place(facts, directory, &mut diagnosis);
    }
    diagnosis.sorted()
}

fn creating(facts: &StoreFacts, diagnosis: &mut Diagnosis) {
    use Severity::{Danger, Essential};
    let url = facts.url.as_str();
    let behaviour = &facts.behaviour;
    let ways = [("create", Some(&behaviour.second_create)), ("create-in-parts", behaviour.second_create_in_parts.as_ref())];
    for (code, seen) in ways.into_iter().filter_map(|(code, seen)| Some((code, seen?))) {
        let how = if code == "create" { "" } else { ", uploaded in parts" };
        match seen {
            Ok(SecondCreate::Refused) => diagnosis.note(url, format!("a name that is taken{how}: the second create is refused")),
            Ok(SecondCreate::Overwrote) => diagnosis.say(
                Essential,
                code,
                url,
                format!("an object that was created once was replaced by a second create{how}: conditional create is ignored"),
                UNSAFE,
                OTHER_STORE,
            ),
            Ok(SecondCreate::BothWon) => diagnosis.say(
                Essential,
                code,
                url,
                format!("a second create{how} was answered with success and did nothing: two writers both believe that they won"),
                UNSAFE,
                OTHER_STORE,
            ),
            Ok(SecondCreate::RefusedAndLost) => diagnosis.say(
                Essential,
                code,
                url,
                format!("a second create{how} was refused, and the first object's bytes are gone"),
                UNSAFE,
                OTHER_STORE,
            ),
            Err(Unseen::Denied(why)) => diagnosis.say(
                Danger,
                "not-writable",
                url,
                format!("nothing can be written: {why}"),
                "no backup can be stored from here; right only for a host that does nothing but restore",
                "allow s3:PutObject to these credentials, or make the directory writable for this user; lifeboat config show names both",
            ),
            Err(why) => diagnosis.say(
                Essential,
                code,
                url,
                format!("whether a name can be created twice{how} could not be seen: {why}"),
                "nothing is known of what keeps writers apart, so nothing may rely on it",
                "set right what failed, then run lifeboat doctor again",
            ),
        }
        if seen.is_err() {
            // One reason is enough.
            break;
        }
    }
    match &behaviour.race {
        Ok(race) if race.winners == 1 && race.winners_bytes => {
            diagnosis.note(url, format!("of {} that created one name at the same time one won", race.writers));
        }
        Ok(race) => diagnosis.say(
            Essential,
            "race",
            url,
            format!(
                "of {} that created one name at the same time {} were told that they won{}",
                race.writers,
                race.winners,
                if race.winners_bytes { "" } else { ", and the bytes are not a winner's" }
            ),
            UNSAFE,
            OTHER_STORE,
        ),
        // Said above.
        Err(_) => {}
    }
}

fn reading(facts: &StoreFacts, diagnosis: &mut Diagnosis) {
    use Severity::{Danger, Essential, Warning};
    let url = facts.url.as_str();
    let behaviour = &facts.behaviour;
    let writable = behaviour.second_create.is_ok();
    match &behaviour.reads_what_was_written {
        Ok(true) => diagnosis.note(url, "what is written is read back at once"),
        Ok(false) => diagnosis.say(
            Essential,
            "read-after-write",
            url,
            "what was written was not read back as it was",
            "what this store says is stored cannot be relied on",
            "use another store, or no cache in front of it (docs/stores.md); then run lifeboat doctor",
        ),
        Err(why) if writable => not_seen(diagnosis, url, "whether what is written is read back", why),
        Err(_) => {}
    }
    match &behaviour.lists_what_was_written {
        Ok(true) => diagnosis.note(url, "what is written is listed at once"),
        // c102: commits go by manifest keys, not by listings; leases and the end of the archive look at listings first.
        Ok(false) => diagnosis.say(
            Danger,
            "list-after-write",
            url,
            "what was written is not listed at once",
            "the newest backup, and the end of the WAL archive, are seen late",
            "use a store with consistent listings (docs/stores.md names tested ones)",
        ),
        Err(why) if writable => not_seen(diagnosis, url, "whether what is written is listed", why),
        Err(_) => {}
    }
    match &behaviour.deletes {
        Ok(true) => diagnosis.note(url, "objects can be deleted"),
        Ok(false) => diagnosis.say(
            Warning,
            "delete-ignored",
            url,
            "an object was deleted, and is read as before",
            "nothing that is pruned goes away",
            "find out what stands between this host and the store",
        ),
        Err(Unseen::Denied(_)) if writable => {
            diagnosis.note(url, "these credentials may not delete: good for a host that only backs up; lifeboat prune needs others");
        }
        Err(why) if writable => not_seen(diagnosis, url, "whether objects can be deleted", why),
        Err(_) => {}
    }
    match &behaviour.refuses_wrong_checksum {
        Some(Ok(true)) => diagnosis.note(url, "bytes that do not fit their checksum are refused"),
        Some(Ok(false)) => diagnosis.say(
            Warning,
            "checksum",
            url,
            "bytes that do not fit their SHA-256 were stored",
            "what is damaged on its way is found by verify only, not at once",
            "run lifeboat verify --all after backups; a newer release of the store may check (docs/stores.md)",
        ),
        Some(Err(why)) if writable => not_seen(diagnosis, url, "whether wrong checksums are refused", why),
        _ => {}
    }
    if behaviour.left_behind > 0 {
        diagnosis.note(
            url,
            format!(
                "{} small objects below probe/ could not be taken away: what the store holds goes when its time is over, the rest needs credentials that may delete",
                behaviour.left_behind
            ),
        );
    }
}

/// What should be known and is not.
fn not_seen(diagnosis: &mut Diagnosis, url: &str, what: &str, why: &Unseen) {
    match why {
        Unseen::Unknown(why) => diagnosis.note(url, format!("{what} is not known: {why}")),
        Unseen::Denied(why) => diagnosis.say(
            Severity::Warning,
            "not-checked",
            url,
            format!("{what} could not be seen: {why}"),
            "what was not looked at may be wrong",
            "run lifeboat doctor with credentials that may ask: s3:GetBucket*, s3:GetLifecycleConfiguration, s3:GetReplicationConfiguration, s3:GetEncryptionConfiguration, s3:ListBucketVersions, s3:GetObjectVersion, s3:GetObjectRetention, s3:PutObjectRetention, s3:DeleteObject, s3:DeleteObjectVersion",
        ),
        Unseen::Failed(why) => diagnosis.say(
            Severity::Warning,
            "not-checked",
            url,
            format!("{what} could not be seen: {why}"),
            "what was not looked at may be wrong",
            "run lifeboat doctor again",
        ),
    }
}

/// `aws s3api`, as it has to be typed for this bucket.
fn aws(bucket: &BucketFacts, command: &str) -> String {
    let endpoint = bucket.endpoint.as_ref().map_or(String::new(), |endpoint| format!(" --endpoint-url {endpoint}"));
    format!("aws{endpoint} s3api {}", command.replace("BUCKET", &bucket.bucket))
}

fn versions(facts: &StoreFacts, bucket: &BucketFacts, diagnosis: &mut Diagnosis) {
    use Severity::Danger;
    let url = facts.url.as_str();
    let switch_on = || aws(bucket, "put-bucket-versioning --bucket BUCKET --versioning-configuration Status=Enabled");
    const GONE: &str = "what is deleted or overwritten, by an attacker or by mistake, is gone for good; --as-of has nothing to read";
    match &bucket.versions {
        // Seen is more than said.
        Err(_) if facts.behaviour.old_version == Some(Ok(OldVersion::Kept)) => {
            diagnosis.note(url, "old versions stay and are read back by their id, though the store does not say so");
        }
        Ok(Versions::On) => match &facts.behaviour.old_version {
            Some(Ok(OldVersion::Kept)) => diagnosis.note(url, "old versions stay and are read back by their id"),
            Some(Ok(OldVersion::OtherBytes)) => diagnosis.say(
                Danger,
                "versions-fake",
                url,
                "the bucket says that it keeps versions, but an old one, asked for by its id, came with other bytes",
                GONE,
                "use a store that keeps versions (docs/stores.md names tested ones)",
            ),
            Some(Ok(OldVersion::Gone)) => diagnosis.say(
                Danger,
                "versions-fake",
                url,
                "the bucket says that it keeps versions, but an object that was deleted left none",
                GONE,
                "use a store that keeps versions (docs/stores.md names tested ones)",
            ),
            Some(Err(why)) => not_seen(diagnosis, url, "whether old versions stay", why),
            None => {}
        },
        Ok(Versions::Off) => {
            diagnosis.say(Danger, "versioning-off", url, "versioning is off", GONE, switch_on());
        }
        Ok(Versions::Suspended) => {
            diagnosis.say(Danger, "versioning-suspended", url, "versioning is suspended: new objects have no versions", GONE, switch_on());
        }
        Err(Unseen::Unknown(why)) => diagnosis.say(
            Danger,
            "versioning-off",
            url,
            format!("the store knows no versions: {why}"),
            GONE,
            "use a store that keeps versions (docs/stores.md), or copy to a second repository that this host cannot delete from",
        ),
        Err(why) => not_seen(diagnosis, url, "whether old versions stay", why),
    }
}

fn lock(facts: &StoreFacts, bucket: &BucketFacts, diagnosis: &mut Diagnosis) {
    use Severity::{Danger, Essential, Warning};
    let url = facts.url.as_str();
    const DESTROYED: &str = "who has credentials that may delete versions can destroy every backup";
    let example = "put-object-lock-configuration --bucket BUCKET --object-lock-configuration '{\"ObjectLockEnabled\":\"Enabled\",\"Rule\":{\"DefaultRetention\":{\"Mode\":\"GOVERNANCE\",\"Days\":30}}}'";
    let held = &facts.behaviour.held;
    match held {
        Some(Ok(Held::Kept)) => diagnosis.note(url, "a version that is held cannot be deleted before its time, nor its time be shortened"),
        Some(Ok(Held::Shortened)) => diagnosis.say(
            Danger,
            "lock-fake",
            url,
            "the time of a version that is held was made shorter, with no permission to bypass asked for",
            "Object Lock is not kept: who can write can end every hold, and then delete",
            "use a store that keeps Object Lock (docs/stores.md names tested ones)",
        ),
        Some(Ok(Held::Deleted)) => diagnosis.say(
            Danger,
            "lock-fake",
            url,
            "a version that the store says is held was deleted",
            DESTROYED,
            "use a store that keeps Object Lock (docs/stores.md names tested ones)",
        ),
        Some(Ok(Held::Ignored)) => diagnosis.say(
            Danger,
            "lock-ignored",
            url,
            "an object was written to be held, the store said nothing against it, and does not hold it so",
            DESTROYED,
            "use a store that keeps Object Lock (docs/stores.md names tested ones), and no proxy that strips its headers",
        ),
        Some(Err(why)) => not_seen(diagnosis, url, "whether held versions stay", why),
        None => {}
    }
    match &bucket.lock {
        Ok(Some(default)) => {
            match (default, facts.retention) {
                (None, None) => diagnosis.say(
                    Warning,
                    "lock-unused",
                    url,
                    "Object Lock is on, but neither the bucket nor the configuration says how long objects are held",
                    DESTROYED,
                    format!("set retention = \"30d\" in [[repository]], or: {}", aws(bucket, example)),
                ),
                (None, Some(_)) => diagnosis.note(url, "objects are held as repository.retention says"),
                (Some(default), _) => {
                    diagnosis
                        .note(url, format!("the bucket holds new objects for {} days ({:?})", default.days, default.mode).to_lowercase());
                }
            }
            match &bucket.inherits {
                Some(Ok(false)) => diagnosis.say(
                    Danger,
                    "lock-not-inherited",
                    url,
                    "the bucket has a default retention, but the newest object that relies on it is not held",
                    DESTROYED,
                    "set retention = \"30d\" in [[repository]]: then every object says itself how long it is held",
                ),
                Some(Ok(true)) => diagnosis.note(url, "the bucket's default retention is on the newest object that relies on it"),
                Some(Err(why)) => not_seen(diagnosis, url, "whether the bucket's default retention is inherited", why),
                None => {}
            }
        }
        // Where headers alone hold, there is one all the same.
        Ok(None) | Err(Unseen::Unknown(_)) if facts.retention.is_some() => diagnosis.say(
            Essential,
            "retention-without-lock",
            url,
            "repository.retention is set, but the bucket has no Object Lock",
            "objects cannot be written with a retention that the store does not know; or it is ignored, and nothing is held",
            "take repository.retention out, or use a bucket with Object Lock: docs/stores.md has the commands",
        ),
        Ok(None) => diagnosis.say(
            Warning,
            "lock-off",
            url,
            "the bucket has no Object Lock",
            DESTROYED,
            aws(bucket, example) + " (AWS allows it later too, once versioning is on; other stores only when the bucket is made)",
        ),
        Err(Unseen::Unknown(why)) => diagnosis.say(
            Warning,
            "lock-off",
            url,
            format!("the store knows no Object Lock: {why}"),
            DESTROYED,
            "use a store with Object Lock (docs/stores.md), or copy to a second repository that this host cannot delete from",
        ),
        Err(why) => not_seen(diagnosis, url, "whether the bucket has Object Lock", why),
    }
}

fn rules(facts: &StoreFacts, bucket: &BucketFacts, diagnosis: &mut Diagnosis) {
    use Severity::{Danger, Warning};
    let url = facts.url.as_str();
    match &bucket.deleting {
        Ok(rules) => {
            for rule in rules.iter().filter(|rule| rule.ours) {
                if let Some(days) = rule.objects_after_days {
                    // c103
                    diagnosis.say(
                        Danger,
                        "lifecycle-deletes",
                        url,
                        format!("lifecycle rule {:?} deletes objects of the repository {days} days after they were written", rule.id),
                        "an object is needed as long as any backup or artifact is: manifests, histories and old artifacts go first",
                        format!(
                            "let lifeboat expire and prune decide; remove the rule, or keep it off this prefix: {}",
                            aws(bucket, "get-bucket-lifecycle-configuration --bucket BUCKET")
                        ),
                    );
                }
                if let Some(days) = rule.old_versions_after_days {
                    diagnosis.note(
                        url,
                        format!("lifecycle rule {:?} deletes old versions after {days} days: --as-of reaches that far back", rule.id),
                    );
                }
            }
            if !rules.iter().any(|rule| rule.ours && rule.aborts_uploads) {
                diagnosis.note(url, "no lifecycle rule ends uploads that a crash left unfinished: they are paid for and seen by nobody (AbortIncompleteMultipartUpload)");
            }
        }
        Err(why) => not_seen(diagnosis, url, "which lifecycle rules the bucket has", why),
    }
    match &bucket.public_access_blocked {
        Ok(true) => diagnosis.note(url, "public access is blocked"),
        Ok(false) => diagnosis.say(
            Danger,
            "public-access",
            url,
            "public access to the bucket is not blocked",
            "one wrong policy or ACL shows everything that is not encrypted, names of artifacts among it, to everybody",
            aws(
                bucket,
                "put-public-access-block --bucket BUCKET --public-access-block-configuration BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true",
            ),
        ),
        Err(why) => not_seen(diagnosis, url, "whether public access is blocked", why),
    }
    match &bucket.encryption {
        Ok(Some(how)) => diagnosis.note(url, format!("objects are encrypted where they stand ({how})")),
        Ok(None) => diagnosis.say(
            Warning,
            "encryption",
            url,
            "objects are not encrypted by the store",
            "lifeboat encrypts the data itself; names, manifests and records of artifacts stand in the clear",
            aws(
                bucket,
                "put-bucket-encryption --bucket BUCKET --server-side-encryption-configuration '{\"Rules\":[{\"ApplyServerSideEncryptionByDefault\":{\"SSEAlgorithm\":\"AES256\"}}]}'",
            ),
        ),
        Err(why) => not_seen(diagnosis, url, "whether the store encrypts objects", why),
    }
    match &bucket.copies {
        Ok(rules) => {
            let mine: Vec<&Copying> = rules.iter().filter(|rule| rule.ours && rule.enabled).collect();
            if mine.is_empty() && facts.other_copies == 0 {
                diagnosis.say(
                    Warning,
                    "one-copy",
                    url,
                    "there is no other copy: the bucket is not replicated, and no second repository is configured",
                    "who loses this bucket, or its account, loses every backup",
                    aws(bucket, "put-bucket-replication --bucket BUCKET --replication-configuration file://replication.json")
                        + " (docs/stores.md has one), or a second [[repository]]",
                );
            }
            for rule in &mine {
                match rule.deletions {
                    true => diagnosis.say(
                        Warning,
                        "replication-deletes",
                        url,
                        format!("deletions are replicated to {} as well", rule.destination),
                        "the copy shows what the original shows: what is deleted here is hidden there",
                        "set DeleteMarkerReplication to Disabled in the rule: aws s3api put-bucket-replication",
                    ),
                    false => {
                        diagnosis.note(url, format!("replicated to {}; lifeboat verify there tells whether it arrives", rule.destination))
                    }
                }
            }
        }
        Err(why) => not_seen(diagnosis, url, "whether the bucket is replicated", why),
    }
}

fn clock(facts: &StoreFacts, bucket: &BucketFacts, diagnosis: &mut Diagnosis) {
    let url = facts.url.as_str();
    let Some(ahead) = bucket.clock_ahead_seconds else {
        diagnosis.note(url, "the server does not say what time it is");
        return;
    };
    let off = ahead.unsigned_abs();
    if off <= SKEW_WARNING_SECONDS {
        diagnosis.note(url, "the server's clock and this host's agree within a minute");
        return;
    }
    let severity = if off > SKEW_DANGER_SECONDS { Severity::Danger } else { Severity::Warning };
    let direction = if ahead > 0 { "behind" } else { "ahead of" };
    diagnosis.say(
        severity,
        "clock",
        url,
        format!("this host's clock is {off} s {direction} the server's"),
        "leases, retention and recovery times are wrong by as much; S3 refuses requests from 900 s on",
        "set this host's clock by NTP: timedatectl set-ntp true",
    );
}

fn place(facts: &StoreFacts, directory: &DirectoryFacts, diagnosis: &mut Diagnosis) {
    use Severity::{Danger, Warning};
    let url = facts.url.as_str();
    if directory.in_memory {
        diagnosis.say(
            Danger,
            "in-memory",
            url,
            format!("{} stands in memory ({})", directory.path, directory.file_system.as_deref().unwrap_or("tmpfs")),
            "every backup is gone when the machine restarts",
            "put the repository on a disk: lifeboat init --repository DIR",
        );
    }
    if directory.mode & 0o002 != 0 && directory.mode & 0o1000 == 0 {
        diagnosis.say(
            Danger,
            "writable-by-all",
            url,
            format!("everybody on this host may write into {} (mode {:04o})", directory.path, directory.mode & 0o7777),
            "anybody here can delete every backup",
            format!("chmod o-w {}", directory.path),
        );
    }
    if directory.with_source && facts.other_copies == 0 {
        diagnosis.say(
            Warning,
            "same-file-system",
            url,
            format!("{} stands on the file system of what is backed up", directory.path),
            "the disk that takes the database takes its backups along",
            "put the repository on another disk, better another machine: lifeboat init --repository DIR, or a second [[repository]]",
        );
    }
    if directory.free_bytes < directory.size_bytes / FREE_SHARE {
        diagnosis.say(
            Warning,
            "nearly-full",
            url,
            format!("{} MiB of {} MiB are free", directory.free_bytes >> 20, directory.size_bytes >> 20),
            "the next backup may not fit; WAL that cannot be stored fills the server's own disk",
            "make room, or let old backups go: lifeboat expire, lifeboat prune",
        );
    } else {
        diagnosis.note(url, format!("{} MiB of {} MiB are free", directory.free_bytes >> 20, directory.size_bytes >> 20));
    }
    // A directory has no versions: said once, not as a finding of every setup.
    diagnosis.note(url, "a directory keeps no versions and no holds: whoever can write there can destroy what is there");
    if facts.retention.is_some() {
        diagnosis.say(
            Severity::Essential,
            "retention-without-lock",
            url,
            "retention is set for a directory, which cannot hold objects",
            "nothing is held",
            "take retention out of this [[repository]], or use a bucket with Object Lock",
        );
    }
}

#[cfg(test)]
mod tests;
