//! What is wrong with this host's keys, its spool, and the server that it protects.

use serde::Serialize;

use super::{Diagnosis, Severity};
use crate::wal::status;

/// A file that only its owner should read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretFile {
    /// What is in it.
    pub what: &'static str,
    /// Where.
    pub path: String,
    /// Its permission bits; `None`: it is not there, or cannot be looked at.
    pub mode: Option<u32>,
}

/// Keys, as the configuration names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyFacts {
    /// What signed just now, in words, or why it did not.
    pub signer: Result<String, String>,
    /// What it signed just now was verified with the trusted keys; the reason if not. `None`: there was no signature to verify.
    pub verified: Option<Result<(), String>>,
    /// Backups are not encrypted, by the user's own words.
    pub plain: bool,
    /// How many can open what is written, or why nobody can.
    pub recipients: Result<usize, String>,
    /// Whether the restore identity on this host opens what is written now; `None`: there is none here.
    pub identity: Option<Result<bool, String>>,
    /// Why the host's own identity cannot be read; `None`: it can, or there is none.
    pub host_identity: Option<String>,
    /// There is a host identity.
    pub has_host_identity: bool,
    /// Files with secrets.
    pub files: Vec<SecretFile>,
}

/// Where WAL rests on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpoolFacts {
    /// Where.
    pub path: String,
    /// Why it cannot be used.
    pub trouble: Option<String>,
    /// Free on its file system.
    pub free_bytes: Option<u64>,
    /// What may wait there.
    pub limit_bytes: u64,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerFacts {
    /// 150018 for 15.18.
    pub version_num: u32,
    /// `fsync`.
    pub fsync: bool,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `track_commit_timestamp`.
    pub commit_timestamps: bool,
    /// Pages have checksums.
    pub data_checksums: bool,
    /// `archive_mode` is not off.
    pub archives: bool,
    /// `archive_command`; `None`: the role may not see it, or a library does it.
    pub archive_command: Option<String>,
    /// Collations whose versions changed: their indexes may be wrong.
    pub changed_collations: usize,
    /// The role that lifeboat connects with is a superuser.
    pub superuser: bool,
}

/// The oldest version that is supported.
const OLDEST: u32 = 13;

/// The newest version that was tested.
const NEWEST: u32 = 18;

/// What is wrong with keys.
pub fn keys(facts: &KeyFacts) -> Diagnosis {
    use Severity::{Danger, Essential, Warning};
    let mut out = Diagnosis::default();
    const SIGNING: &str = "signing key";
    match &facts.signer {
        Ok(what) => out.note(SIGNING, format!("signs: {what}")),
        Err(why) => out.say(
            Essential,
            "signing-key",
            SIGNING,
            why.clone(),
            "no backup can be signed, so none can be taken",
            "lifeboat key generate makes a key file, which signing.key_file and signing.password name; other signers are in docs/signing.md (lifeboat config show)",
        ),
    }
    match &facts.verified {
        Some(Ok(())) => out.note(SIGNING, "what it signs counts by [trust]"),
        Some(Err(why)) => out.say(
            Danger,
            "not-trusted",
            SIGNING,
            format!("what it signs does not count by [trust]: {why}"),
            "backups that are taken here are refused here: verify and restore end with exit code 21",
            "name its public key in trust.keys (lifeboat key public prints it), or its certificate's issuer and subject in trust.identities",
        ),
        None => {}
    }
    const ENCRYPTION: &str = "encryption";
    match (&facts.recipients, facts.plain) {
        (_, true) => out.note(ENCRYPTION, "off, by encryption.none"),
        (Ok(count), _) => out.note(ENCRYPTION, format!("{count} recipients")),
        (Err(why), _) => out.say(
            Essential,
            "recipients",
            ENCRYPTION,
            why.clone(),
            "no backup can be encrypted, so none can be taken",
            "lifeboat key generate makes an identity; name its age1… in encryption.recipients",
        ),
    }
    match &facts.identity {
        Some(Ok(true)) => out.note(ENCRYPTION, "the restore identity on this host opens what is written now"),
        Some(Ok(false)) => out.say(
            Danger,
            "other-identity",
            ENCRYPTION,
            "the restore identity on this host does not open what is written now",
            "a restore here fails with exit code 12, unless the right identity is found in time",
            "name its recipient in encryption.recipients, or another file in encryption.identity_file; keep a copy of identity.txt elsewhere",
        ),
        Some(Err(why)) => out.say(
            Danger,
            "identity",
            ENCRYPTION,
            format!("the restore identity cannot be read: {why}"),
            "a restore here fails with exit code 12",
            "correct encryption.identity_file: lifeboat config show",
        ),
        None if !facts.plain => out.note(ENCRYPTION, "no restore identity on this host: see that somebody has it, and try it with lifeboat verify --identity FILE"),
        None => {}
    }
    match &facts.host_identity {
        Some(why) => out.say(
            Danger,
            "host-identity",
            ENCRYPTION,
            format!("the host identity cannot be read: {why}"),
            "backups fail, because file tables are to be opened with it",
            "correct encryption.host_identity, or lifeboat key generate",
        ),
        None if !facts.has_host_identity && !facts.plain => {
            out.note(ENCRYPTION, "no host identity: file tables are opened by restore identities only")
        }
        None => {}
    }
    for file in &facts.files {
        match file.mode {
            Some(mode) if mode & 0o077 != 0 => out.say(
                if mode & 0o007 != 0 { Danger } else { Warning },
                "open-secret",
                &file.path,
                format!("the {} can be read by others (mode {:04o})", file.what, mode & 0o7777),
                "who has it can do what this host may do with it: read backups, sign them, speak in its name",
                format!("chmod 600 {}", file.path),
            ),
            _ => {}
        }
    }
    out
}

/// What is wrong with the spool.
pub fn spool(facts: &SpoolFacts) -> Diagnosis {
    let mut out = Diagnosis::default();
    if let Some(trouble) = &facts.trouble {
        out.say(
            Severity::Warning,
            "spool",
            &facts.path,
            trouble.clone(),
            "WAL is stored and fetched more slowly; the receiver does not run",
            "set wal.spool to a directory outside of every data directory that this user may write to",
        );
        return out;
    }
    match facts.free_bytes {
        Some(free) if free < facts.limit_bytes => out.say(
            Severity::Warning,
            "spool-room",
            &facts.path,
            format!("{} MiB are free, and {} MiB of WAL may wait there", free >> 20, facts.limit_bytes >> 20),
            "when the repository is away, the spool fills the disk before it stops",
            "make room, or lower wal.spool_limit",
        ),
        Some(free) => out.note(&facts.path, format!("{} MiB are free for {} MiB of waiting WAL", free >> 20, facts.limit_bytes >> 20)),
        None => {}
    }
    out
}

/// What is wrong with the server, or with reaching it.
pub fn server(name: &str, facts: &Result<ServerFacts, String>) -> Diagnosis {
    use Severity::{Danger, Essential, Warning};
    let mut out = Diagnosis::default();
    let facts = match facts {
        Ok(facts) => facts,
        Err(why) => {
            out.say(
                Danger,
                "server-unreachable",
                name,
                format!("the server was not asked: {why}"),
                "no backup of it can be taken now",
                "try the same connection: psql \"DSN\" -c 'select 1'; lifeboat config show prints postgres.dsn",
            );
            return out;
        }
    };
    let major = facts.version_num / 10_000;
    match major {
        0..OLDEST => out.say(
            Essential,
            "version",
            name,
            format!("PostgreSQL {major} is older than {OLDEST}"),
            "it cannot be backed up",
            format!("upgrade the server to PostgreSQL {OLDEST} or later"),
        ),
        OLDEST..=NEWEST => out.note(name, format!("PostgreSQL {major}")),
        _ => out.say(
            Warning,
            "version",
            name,
            format!("PostgreSQL {major} is newer than {NEWEST}"),
            "nobody has tried it with this lifeboat",
            "use a later lifeboat: lifeboat --version",
        ),
    }
    if !facts.fsync {
        out.say(
            Danger,
            "fsync",
            name,
            "fsync is off",
            "a crash of the machine may leave a cluster that no recovery repairs, and backups of it",
            "set fsync = on and reload the server",
        );
    }
    if !facts.commit_timestamps {
        out.note(name, "track_commit_timestamp is off: drills measure the RPO by WAL and heartbeats only");
    }
    if !facts.full_page_writes {
        out.say(
            Danger,
            "full-page-writes",
            name,
            "full_page_writes is off",
            "a copy taken while the server runs is not repaired by WAL",
            "set full_page_writes = on and reload the server",
        );
    }
    if !facts.data_checksums {
        out.say(
            Warning,
            "data-checksums",
            name,
            "the cluster has no page checksums",
            "damaged pages are copied unnoticed, and are found when somebody reads them",
            "stop the server, then: pg_checksums --enable -D DATA_DIRECTORY",
        );
    }
    match &facts.archive_command {
        Some(command) if facts.archives && !command.is_empty() && !command.contains("lifeboat") => out.say(
            Warning,
            "archive-command-other",
            name,
            "archive_command does not name lifeboat",
            "WAL goes somewhere else: recovery from this repository ends with the last backup",
            "set archive_command = 'lifeboat wal push %p' and reload the server, or receive WAL: lifeboat wal receive",
        ),
        _ => {}
    }
    if facts.superuser {
        out.say(
            Warning,
            "superuser",
            name,
            "lifeboat connects as a superuser",
            "who has its password can change and destroy everything on the server, and run programs as its user",
            "give it a role that can only back up: psql -f deploy/postgres/writer.sql (docs/least-privilege.md)",
        );
    }
    if facts.changed_collations > 0 {
        out.say(
            Warning,
            "collations",
            name,
            format!("the operating system's versions of {} collations changed", facts.changed_collations),
            "indexes over text may be in the wrong order, here and after a restore",
            "REINDEX what uses them, then ALTER COLLATION … REFRESH VERSION",
        );
    }
    out
}

/// What `wal status` finds, in the words of this report.
pub fn wal(name: &str, findings: &[status::WalFinding]) -> Diagnosis {
    let mut out = Diagnosis::default();
    for finding in findings.iter().filter(|finding| finding.code != "server-unreachable") {
        let severity = match finding.severity {
            status::Severity::Critical => Severity::Danger,
            status::Severity::Warning => Severity::Warning,
        };
        out.say(
            severity,
            finding.code,
            name,
            finding.message.clone(),
            "what is not in the repository cannot be recovered",
            finding.hint.clone(),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> KeyFacts {
        KeyFacts {
            signer: Ok("hint".into()),
            verified: Some(Ok(())),
            plain: false,
            recipients: Ok(1),
            identity: Some(Ok(true)),
            host_identity: None,
            has_host_identity: true,
            files: vec![SecretFile { what: "identity", path: "/k/identity.txt".into(), mode: Some(0o100_600) }],
        }
    }

    fn codes(diagnosis: &Diagnosis) -> Vec<(&'static str, Severity)> {
        diagnosis.findings.iter().map(|finding| (finding.code, finding.severity)).collect()
    }

    #[test]
    fn keys_that_work_are_no_finding_and_each_fault_is_one() {
        assert_eq!(codes(&keys(&good())), []);
        let bad = KeyFacts { signer: Err("read signing key".into()), verified: None, ..good() };
        assert_eq!(codes(&keys(&bad)), [("signing-key", Severity::Essential)]);
        let bad = KeyFacts { verified: Some(Err("no trusted key".into())), ..good() };
        assert_eq!(codes(&keys(&bad)), [("not-trusted", Severity::Danger)]);
        let bad = KeyFacts { recipients: Err("none".into()), identity: None, ..good() };
        assert_eq!(codes(&keys(&bad)), [("recipients", Severity::Essential)]);
        let bad = KeyFacts { identity: Some(Ok(false)), ..good() };
        assert_eq!(codes(&keys(&bad)), [("other-identity", Severity::Danger)]);
        for (mode, expected) in [(0o644, Severity::Danger), (0o640, Severity::Warning)] {
            let files = vec![SecretFile { what: "identity", path: "/k/identity.txt".into(), mode: Some(mode) }];
            let found = keys(&KeyFacts { files, ..good() });
            assert_eq!(codes(&found), [("open-secret", expected)]);
            assert_eq!(found.findings[0].fix, "chmod 600 /k/identity.txt");
        }
    }

    #[test]
    fn servers_are_judged() {
        let good = ServerFacts {
            fsync: true,
            commit_timestamps: true,
            version_num: 150_018,
            full_page_writes: true,
            data_checksums: true,
            archives: true,
            archive_command: Some("/usr/bin/lifeboat wal push %p".into()),
            changed_collations: 0,
            superuser: false,
        };
        assert_eq!(codes(&server("s", &Ok(ServerFacts { superuser: true, ..good.clone() }))), [("superuser", Severity::Warning)]);
        assert_eq!(codes(&server("s", &Ok(good.clone()))), []);
        assert_eq!(codes(&server("s", &Ok(ServerFacts { version_num: 120_000, ..good.clone() }))), [("version", Severity::Essential)]);
        assert_eq!(codes(&server("s", &Ok(ServerFacts { version_num: 190_000, ..good.clone() }))), [("version", Severity::Warning)]);
        assert_eq!(codes(&server("s", &Ok(ServerFacts { fsync: false, ..good.clone() }))), [("fsync", Severity::Danger)]);
        assert_eq!(
            codes(&server("s", &Ok(ServerFacts { full_page_writes: false, ..good.clone() }))),
            [("full-page-writes", Severity::Danger)]
        );
        let other = ServerFacts { archive_command: Some("cp %p /archive/%f".into()), ..good };
        assert_eq!(codes(&server("s", &Ok(other))), [("archive-command-other", Severity::Warning)]);
        assert_eq!(codes(&server("s", &Err("refused".into()))), [("server-unreachable", Severity::Danger)]);
    }
}
