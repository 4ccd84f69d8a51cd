//! Looks at this host and its server for `doctor`. Reads only; what it means is `lifeboat_core::doctor`'s.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;
use lifeboat_core::attestation::{Expected, backup_statement};
use lifeboat_core::doctor::host::{SecretFile, ServerFacts, SpoolFacts};

use crate::causes::joined;
use crate::keys::{self, Identities, KeyError, Recipient};
use crate::postgres::{ChecksumState, ClusterFacts, Connection, Dsn, PgError, Purpose};
use crate::seal::DataKey;
use crate::signing::{SignError, Signer, Trust};
use crate::wal::spool::check_place;

/// A signature that was made to see whether it can be, over nothing that exists.
pub struct Probe {
    bundle: String,
    digest: [u8; 32],
}

const PROBE_NAME: &str = "doctor";

impl Probe {
    /// Has a signer sign: services that take part are asked, and say no here instead of at the end of a backup.
    pub fn sign(signer: &dyn Signer) -> Result<Self, SignError> {
        let digest = crate::sha256::of(&crate::random::bytes::<32>()).0;
        let statement = backup_statement(PROBE_NAME, digest, serde_json::json!({"purpose": "to see whether this signer is trusted"}));
        Ok(Self { bundle: signer.sign_statement(&statement.to_bytes())?, digest })
    }

    /// Whether it counts for those who are trusted.
    pub fn counts_for(&self, trust: &Trust) -> Result<(), String> {
        let expected = Expected::backup(PROBE_NAME, self.digest);
        trust.verify(self.bundle.as_bytes(), &expected).map(drop).map_err(|error| joined(&error))
    }
}

/// Whether identities open what is written for these recipients, seen by writing and opening a key.
pub fn opens(identities: &Identities, recipients: &[Recipient]) -> Result<bool, String> {
    let key = DataKey::generate();
    let wrapped = keys::wrap(&key, recipients).map_err(|error| joined(&error))?;
    match identities.unwrap(key.id, &wrapped) {
        Ok(_) => Ok(true),
        Err(KeyError::WrongIdentity(_)) => Ok(false),
        Err(error) => Err(joined(&error)),
    }
}

/// A file that only its owner should read.
pub fn secret_file(what: &'static str, path: &Path) -> SecretFile {
    SecretFile { what, path: path.display().to_string(), mode: fs::metadata(path).ok().map(|meta| meta.mode() & 0o7777) }
}

/// A certificate that is used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whose it is (RFC 4514).
    pub subject: String,
    /// When it ends.
    pub not_after: Timestamp,
}

/// The certificates in a PEM file; keys in it are passed over.
///
/// # Errors
///
/// It cannot be read, or a certificate in it cannot.
pub fn certificates(path: &Path) -> std::io::Result<Vec<CertificateFacts>> {
    use x509_cert::der::Decode as _;
    let invalid = |problem: String| std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
    let blocks = pem::parse_many(fs::read(path)?).map_err(|error| invalid(error.to_string()))?;
    let certificate = |block: &pem::Pem| {
        let certificate = x509_cert::Certificate::from_der(block.contents()).map_err(|error| invalid(error.to_string()))?;
        let validity = certificate.tbs_certificate.validity;
        let seconds = i64::try_from(validity.not_after.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
        let not_after = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        Ok(CertificateFacts { subject: certificate.tbs_certificate.subject.to_string(), not_after })
    };
    blocks.iter().filter(|block| block.tag() == "CERTIFICATE").map(certificate).collect()
}

/// Where WAL rests on its way. Nothing is made.
pub fn spool(path: &Path, limit_bytes: u64, data: Option<&Path>) -> SpoolFacts {
    // As far as it is there: what is missing is made when it is needed.
    let there = path.ancestors().find(|part| part.is_dir());
    let trouble = match (check_place(path, data.unwrap_or(Path::new("/nonexistent"))), there) {
        (Err(error), _) => Some(joined(&error)),
        (Ok(()), None) => Some("it cannot be reached".to_owned()),
        (Ok(()), Some(part)) => {
            let access = rustix::fs::access(part, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
            access.err().map(|error| format!("this user may not write to {}: {error}", part.display()))
        }
    };
    let space = there.and_then(|part| rustix::fs::statvfs(part).ok());
    SpoolFacts {
        path: path.display().to_string(),
        trouble,
        free_bytes: space.map(|space| space.f_bavail.saturating_mul(space.f_frsize)),
        limit_bytes,
    }
}

/// What a server says of itself.
pub fn server(dsn: &Dsn) -> Result<ServerFacts, PgError> {
    let connection = Connection::open(dsn, Purpose::Sql)?;
    let facts = ClusterFacts::read(&connection)?;
    let rows = connection.query("SELECT setting FROM pg_settings WHERE name = 'archive_command'", &[])?;
    let mut archive_command = None;
    for row in rows.iter() {
        // Who may not see it sees no row, or an empty one.
        archive_command = row.get_opt("setting")?.filter(|command| *command != "(disabled)").map(str::to_owned);
    }
    let on = |name: &str| -> Result<bool, PgError> {
        let rows = connection.query("SELECT setting FROM pg_settings WHERE name = $1", &[Some(name)])?;
        Ok(rows.iter().next().is_some_and(|row| row.get("setting").is_ok_and(|setting| setting == "on")))
    };
    let (fsync, commit_timestamps) = (on("fsync")?, on("track_commit_timestamp")?);
    let superuser = connection.query("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[])?.one()?.bool("rolsuper")?;
    Ok(ServerFacts {
        version_num: facts.server_version,
        fsync,
        full_page_writes: facts.full_page_writes,
        commit_timestamps,
        data_checksums: facts.data_checksums != ChecksumState::Off,
        archives: facts.archive_mode != "off",
        archive_command,
        changed_collations: facts.changed_collations.len(),
        superuser,
    })
}
