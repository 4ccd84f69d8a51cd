//! What goes wrong, in one line with a hint that names a command, and the exit code that scripts see.

mod drill;

use std::error::Error;

use lifeboat_core::backup::PlanError;
use lifeboat_core::repository::FormatError;
use lifeboat_core::restore::RestorePlanError;
use lifeboat_engine::approval::ApprovalError;
use lifeboat_engine::approval::ssh::SshError;
use lifeboat_engine::artifacts::{ArtifactError, Problem};
use lifeboat_engine::audit::{AuditError, AuditKeyError};
use lifeboat_engine::backup::BackupError;
use lifeboat_engine::copy::CopyError;
use lifeboat_engine::drill::evidence::EvidenceError;
use lifeboat_engine::export::ExportError;
use lifeboat_engine::hold::HoldError;
use lifeboat_engine::keys::KeyError;
use lifeboat_engine::lease::LeaseError;
use lifeboat_engine::opened_backup::OpenBackupError;
use lifeboat_engine::postgres::PgError;
use lifeboat_engine::prune::PruneError;
use lifeboat_engine::replicate::ReplicateError;
use lifeboat_engine::repository::RepositoryError;
use lifeboat_engine::restore::RestoreError;
use lifeboat_engine::restore::server::ServerError;
use lifeboat_engine::retention::RetentionError;
use lifeboat_engine::signing;
use lifeboat_engine::store::{OpenError, ReplicaError, StoreError};
use lifeboat_engine::verify::VerifyError;
use lifeboat_engine::wal::WalError;
use lifeboat_engine::wal::locate::LocateError;
use lifeboat_engine::wal::push::PushError;
use lifeboat_engine::wal::survey::SurveyError;

/// It failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Bad command line or configuration.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Done, with findings.
pub(crate) const EXIT_FINDINGS: u8 = 3;
/// The repository does not exist.
pub(crate) const EXIT_NO_REPOSITORY: u8 = 10;
/// Another writer has the lease.
pub(crate) const EXIT_LEASED: u8 = 11;
/// Wrong key or credentials.
pub(crate) const EXIT_KEY: u8 = 12;
/// The format is too new.
pub(crate) const EXIT_FORMAT: u8 = 13;
/// Denied: by the policy, or because approvals are missing.
pub(crate) const EXIT_DENIED: u8 = 20;
/// Verification or signature failed.
pub(crate) const EXIT_UNVERIFIED: u8 = 21;
/// The recovery target cannot be reached.
pub(crate) const EXIT_UNREACHABLE: u8 = 22;
/// Everything came back, and too late or with too much lost.
pub(crate) const EXIT_OBJECTIVE: u8 = 23;
/// A bug.
pub(crate) const EXIT_BUG: u8 = 70;
/// Interrupted.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

/// What a code means, for who reads a manual, and what to do then. The manual pages and `docs/reference/exit-codes.md` are made from these.
pub(crate) struct ExitCode<Code = u8> {
    /// As `$?` says it.
    pub(crate) code: Code,
    /// What happened.
    pub(crate) meaning: &'static str,
    /// What to do; empty where there is nothing to be done.
    pub(crate) advice: &'static str,
}

const fn code<Code>(code: Code, meaning: &'static str, advice: &'static str) -> ExitCode<Code>
where
    Code: Copy,
{
    ExitCode { code, meaning, advice }
}

/// How commands end. `wal push` and `wal fetch` end as PostgreSQL understands it.
pub(crate) const EXIT_CODES: [ExitCode; 14] = [
    code(0, "Done.", ""),
    code(EXIT_FAILED, "Failed.", "Do what the hint says, then give the same command again."),
    code(
        EXIT_USAGE,
        "Bad command line or configuration.",
        "Nothing was done: correct what the message names; lifeboat config show has every setting.",
    ),
    code(
        EXIT_FINDINGS,
        "Done, with findings: damaged pages in the source, parts that could not be checked, a drill with gaps.",
        "What was asked for is done: read every finding and warning.",
    ),
    code(
        EXIT_NO_REPOSITORY,
        "The repository does not exist.",
        "Correct its URL or mount it; only where there never was one: lifeboat init.",
    ),
    code(
        EXIT_LEASED,
        "Another writer has the lease.",
        "Wait for the other one; a run that died loses its lease at the time that the message names.",
    ),
    code(EXIT_KEY, "Wrong key or credentials.", "Name the right ones; lifeboat doctor tries them out."),
    code(
        EXIT_FORMAT,
        "The repository's format is too new for this program.",
        "Install the version of lifeboat that wrote it, or a later one.",
    ),
    code(
        EXIT_DENIED,
        "Denied, by the policy or for want of approvals.",
        "The message says by which rule; ask for what is missing: lifeboat approval request.",
    ),
    code(
        EXIT_UNVERIFIED,
        "Verification or signature failed; a drill failed.",
        "Do not go around it: take another backup or another place; lifeboat verify --all tells which are whole.",
    ),
    code(
        EXIT_UNREACHABLE,
        "The recovery target cannot be reached.",
        "Take one of the moments that the hint names; lifeboat wal status shows all.",
    ),
    code(
        EXIT_OBJECTIVE,
        "A drill brought everything back, too late or with too much lost.",
        "The report says where the time went: lifeboat drill show.",
    ),
    code(EXIT_BUG, "A bug in lifeboat.", "Report it with the output and that of lifeboat --version."),
    code(EXIT_INTERRUPTED, "Interrupted.", "Give the same command again: it finds what is stored already."),
];

/// How `wal push` ends, for PostgreSQL.
pub(crate) const PUSH_CODES: [ExitCode<&str>; 2] = [
    code("0", "The file is in the repository, durably.", ""),
    code("1..125", "It is not; PostgreSQL keeps it and asks again.", "The server's log has the message."),
];

/// How `wal fetch` ends, likewise.
pub(crate) const FETCH_CODES: [ExitCode<&str>; 3] = [
    code("0", "The file is in its place.", ""),
    code("1", "The archive ends before it, and that is proven: PostgreSQL ends recovery here.", ""),
    code(">125", "Anything else: PostgreSQL stops, and does not take it for the end of the archive.", "The server's log has the message."),
];

/// Why a command ended, and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// One line.
    pub(crate) message: String,
    /// What to do; names a command.
    pub(crate) hint: Option<String>,
    /// Somebody else is at it, and nothing was begun.
    pub(crate) of_another: bool,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, of_another: false }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn of(code: u8, error: &dyn Error, hint: &str) -> Self {
        Self::new(code, chain(error)).hint(hint)
    }
}

/// An error and its causes in one line, none of them twice.
pub(crate) fn chain(error: &dyn Error) -> String {
    lifeboat_engine::causes::joined(error).replace(['\n', '\r'], " ")
}

impl From<clap::Error> for Failure {
    /// As every other failure: one line and a hint. clap's own text has many lines, the first paragraph says what is wrong.
    fn from(error: clap::Error) -> Self {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim);
        let message: Vec<&str> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let message = message.join(" ");
        let (mut command, mut tips) = ("lifeboat".to_owned(), String::new());
        for line in lines {
            if let Some(usage) = line.strip_prefix("Usage: ") {
                let words: Vec<&str> = usage.split(' ').take_while(|word| !word.starts_with(['[', '<', '-'])).collect();
                command = words.join(" ");
            } else if let Some(tip) = line.strip_prefix("tip: ") {
                tips.push_str(&format!("{tip}; "));
            }
        }
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        Self::usage(message).hint(format!("{tips}{command} --help lists what there is"))
    }
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::TooNew { .. } => {
                Self::of(EXIT_FORMAT, &error, "use the lifeboat version that wrote it, or a later one: lifeboat --version")
            }
            FormatError::Malformed { .. } => Self::of(EXIT_UNVERIFIED, &error, "lifeboat verify --all tells what else is damaged"),
        }
    }
}

const NO_REPOSITORY: &str = "check the path (lifeboat config show); if it is lost and has a replica: lifeboat replicate --from REPLICA --to PRIMARY; if there never was one: lifeboat init --repository DIR";

const S3_CREDENTIALS: &str = "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, repository.profile) and what the bucket's policy allows them; lifeboat config show names the server";

const S3_UNREACHABLE: &str =
    "check repository.endpoint and repository.region with lifeboat config show, and proxy and certificates; then run the command again";

const GOOGLE_CREDENTIALS: &str = "check the credentials (GOOGLE_APPLICATION_CREDENTIALS, repository.credentials_file, gcloud auth application-default login) and what they may do in the bucket; lifeboat config show names the server";

const AZURE_CREDENTIALS: &str = "check the credentials (AZURE_STORAGE_KEY, AZURE_CLIENT_ID and its like) and what they may do in the container; lifeboat config show names account and server";

const CLOUD_UNREACHABLE: &str =
    "check repository.account and repository.endpoint with lifeboat config show, and proxy and certificates; then run the command again";

/// What to look at where a store in a bucket says no, and where it says nothing.
fn bucket_hints(url: &str) -> Option<(&'static str, &'static str)> {
    match url.split_once("://")?.0 {
        "s3" => Some((S3_CREDENTIALS, S3_UNREACHABLE)),
        "gs" => Some((GOOGLE_CREDENTIALS, CLOUD_UNREACHABLE)),
        "az" | "azure" => Some((AZURE_CREDENTIALS, CLOUD_UNREACHABLE)),
        _ => None,
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Full { .. } => Self::of(
                EXIT_FAILED,
                &error,
                "make room, then run the command again; nothing half-written counts as a backup (lifeboat list)",
            ),
            StoreError::Denied { store, .. } => {
                let owner = "check who owns the repository, and as whom lifeboat runs: lifeboat config show";
                Self::of(EXIT_KEY, &error, bucket_hints(store).map_or(owner, |(credentials, _)| credentials))
            }
            StoreError::NotFound { .. } | StoreError::Short { .. } => {
                Self::of(EXIT_UNVERIFIED, &error, "lifeboat verify --all tells what else is missing")
            }
            StoreError::Replica { .. } => Self::of(
                EXIT_FAILED,
                &error,
                "bring the replica back, then run the command again; or set required = false for it, so that it is caught up later",
            ),
            StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::Unsupported => {
                Self::of(EXIT_FAILED, &error, "lifeboat doctor tells what the store can do")
            }
            StoreError::Exists { .. } | StoreError::Io { .. } => {
                let hints = if let StoreError::Io { store, .. } = &error { bucket_hints(store) } else { None };
                let disk = "look at the repository and its file system, then run the command again; lifeboat config show names it";
                Self::of(EXIT_FAILED, &error, hints.map_or(disk, |(_, unreachable)| unreachable))
            }
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match &error {
            OpenError::Missing(_) => Self::of(EXIT_NO_REPOSITORY, &error, NO_REPOSITORY),
            OpenError::Scheme(_) | OpenError::Address { .. } => Self::of(
                EXIT_USAGE,
                &error,
                "give a directory or a bucket: lifeboat --repository file:///path, s3://bucket/prefix, gs://… or az://…",
            ),
            OpenError::NoBucket(_) => Self::of(
                EXIT_NO_REPOSITORY,
                &error,
                "check url and endpoint with lifeboat config show; make the bucket with versioning and Object Lock, then run lifeboat init",
            ),
            OpenError::Io { path, source } if bucket_hints(path).is_some() => {
                let (credentials, unreachable) = bucket_hints(path).expect("just looked at");
                match source.kind() {
                    std::io::ErrorKind::PermissionDenied => Self::of(EXIT_KEY, &error, credentials),
                    _ => Self::of(EXIT_FAILED, &error, unreachable),
                }
            }
            OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotADirectory => {
                Self::of(EXIT_NO_REPOSITORY, &error, NO_REPOSITORY)
            }
            OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Self::of(EXIT_KEY, &error, "check who owns the repository, and as whom lifeboat runs: lifeboat config show")
            }
            OpenError::Io { .. } => Self::of(EXIT_FAILED, &error, "check the path: lifeboat config show"),
            OpenError::Past { source: StoreError::Io { source, .. }, .. } if source.kind() == std::io::ErrorKind::Unsupported => {
                Self::of(EXIT_USAGE, &error, "--as-of needs a bucket that keeps versions: lifeboat doctor tells whether it does")
            }
            OpenError::Past { .. } => Self::of(EXIT_FAILED, &error, S3_UNREACHABLE),
        }
    }
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Absent { .. } => Self::of(EXIT_NO_REPOSITORY, &error, NO_REPOSITORY),
            RepositoryError::Occupied { .. } => Self::of(EXIT_FAILED, &error, "lifeboat list shows what is there"),
            RepositoryError::Format(error @ FormatError::Malformed { .. }) => Self::of(
                EXIT_UNVERIFIED,
                &error,
                "lifeboat verify --all tells what else is damaged; what was overwritten or deleted in a bucket with versions is read with --as-of TIME",
            ),
            RepositoryError::Format(error) => error.into(),
            RepositoryError::Store(error) => error.into(),
        }
    }
}

impl From<ReplicaError> for Failure {
    fn from(error: ReplicaError) -> Self {
        match error {
            ReplicaError::Open(error) => error.into(),
            ReplicaError::Repository(error) => error.into(),
            ReplicaError::OtherRepository { .. } => Self::of(
                EXIT_USAGE,
                &error,
                "all [[repository]] are places of one repository; give this one an empty place: lifeboat config show prints them",
            ),
            ReplicaError::Unusable { .. } => Self::of(
                EXIT_FAILED,
                &error,
                "bring it back or make it one: lifeboat replicate; or set required = false for it, so that it is caught up later",
            ),
        }
    }
}

impl From<ReplicateError> for Failure {
    fn from(error: ReplicateError) -> Self {
        let (code, hint) = match error {
            ReplicateError::Store(error) => return error.into(),
            ReplicateError::Format { source, .. } => return source.into(),
            ReplicateError::NoSource(_) => (
                EXIT_NO_REPOSITORY,
                "lifeboat init makes a repository; if the primary is lost: lifeboat replicate --from REPLICA --to PRIMARY",
            ),
            ReplicateError::OtherRepository { .. } | ReplicateError::Occupied(_) => {
                (EXIT_USAGE, "give the replica an empty place of its own: lifeboat config show")
            }
            ReplicateError::Journal(_) => (EXIT_FAILED, "check wal.spool, where the journal stands: lifeboat config show"),
        };
        Self::of(code, &error, hint)
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        let hint = match &error {
            KeyError::NoneGiven(_) => {
                "give the restore identity: lifeboat restore BACKUP --identity FILE, or encryption.identity_file in the configuration"
            }
            KeyError::WrongIdentity(_) => {
                "lifeboat show BACKUP lists the recipients that can open it; give the restore identity of one of them: lifeboat restore BACKUP --identity FILE, or LIFEBOAT_IDENTITY_FILE"
            }
            KeyError::Recipient(_) | KeyError::Identity(_) | KeyError::NoIdentity => {
                return Self::of(EXIT_USAGE, &error, "lifeboat key generate makes a pair of identity and recipient");
            }
            KeyError::Damaged { .. } => "lifeboat verify tells what else is damaged",
        };
        Self::of(EXIT_KEY, &error, hint)
    }
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Key(error) => error.into(),
            ExportError::Artifacts(error) => error.into(),
            ExportError::Plain(_) => Self::of(EXIT_USAGE, &error, "whoever has a copy of it can read it: lifeboat show BACKUP"),
        }
    }
}

impl From<signing::KeyError> for Failure {
    fn from(error: signing::KeyError) -> Self {
        let (code, hint) = match &error {
            signing::KeyError::WrongPassword => (EXIT_KEY, "check signing.password (env, file or command): lifeboat config show"),
            _ => (EXIT_KEY, "lifeboat key generate makes a key that fits"),
        };
        Self::of(code, &error, hint)
    }
}

impl From<signing::SignError> for Failure {
    fn from(error: signing::SignError) -> Self {
        match error {
            signing::SignError::Denied(_) => Self::of(
                EXIT_KEY,
                &error,
                "check token or credentials of [signing], and what they may do (docs/signing.md); lifeboat doctor tries the signer",
            ),
            signing::SignError::Signer(_) => {
                Self::of(EXIT_FAILED, &error, "lifeboat doctor tries the signer; lifeboat config show prints [signing]")
            }
            signing::SignError::Statement(_) => Self::of(EXIT_FAILED, &error, "name what is signed in fewer words; lifeboat --help"),
        }
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Store(error) => error.into(),
            AuditError::Write { .. } => Self::of(
                EXIT_FAILED,
                &error,
                "nothing is done without a record of it: make room, or name another place in audit.directory; lifeboat config show",
            ),
            AuditError::Read { .. } => Self::of(EXIT_FAILED, &error, "check audit.directory, and who owns it: lifeboat config show"),
        }
    }
}

impl From<signing::RootsError> for Failure {
    fn from(error: signing::RootsError) -> Self {
        Self::of(EXIT_USAGE, &error, "name the trusted_root.json of your Sigstore instance in trust.trusted_root: lifeboat config show")
    }
}

impl From<AuditKeyError> for Failure {
    fn from(error: AuditKeyError) -> Self {
        match error {
            AuditKeyError::Private => Self::of(EXIT_KEY, &error, "lifeboat audit key --out FILE makes one; name it in audit.key_file"),
            AuditKeyError::Public(_) => Self::of(
                EXIT_USAGE,
                &error,
                "correct audit.trust and audit.retired: lifeboat audit key prints the key of the host that it runs on",
            ),
        }
    }
}

impl From<LeaseError> for Failure {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Held { .. } => Self {
                of_another: true,
                ..Self::of(EXIT_LEASED, &error, "wait until it ends, or until the lease runs out; lifeboat list shows what it wrote")
            },
            LeaseError::Lost { .. } => {
                Self::of(EXIT_LEASED, &error, "this run was not committed; run lifeboat backup again when the other one has ended")
            }
            LeaseError::Store(error) => error.into(),
        }
    }
}

impl From<PgError> for Failure {
    fn from(error: PgError) -> Self {
        let (code, hint) = match &error {
            PgError::BadDsn { .. } => (EXIT_USAGE, "correct postgres.dsn: lifeboat config show"),
            PgError::Unreachable { .. } | PgError::Lost { .. } => {
                (EXIT_FAILED, "is the server running? try the same connection with: psql \"DSN\" -c 'select 1'")
            }
            PgError::Authentication { .. } => {
                (EXIT_KEY, "check user, password (PGPASSWORD, ~/.pgpass) and pg_hba.conf with: psql \"DSN\" -c 'select 1'")
            }
            PgError::Untrusted { .. } => (EXIT_KEY, "check sslmode and sslrootcert with: psql \"DSN\" -c 'select 1'"),
            PgError::Sql { sqlstate, .. } if sqlstate == "42501" => (
                EXIT_KEY,
                "the role needs REPLICATION, pg_read_all_settings and EXECUTE on pg_backup_start and pg_backup_stop; see docs/postgres.md, or use --copy logical",
            ),
            PgError::Sql { .. } => (EXIT_FAILED, "the server's log has the rest; lifeboat backup --dry-run shows what is asked of it"),
            PgError::Unsupported { .. } => (EXIT_FAILED, "lifeboat backup --copy logical needs the least of a server"),
            PgError::ClusterChanged { .. } => (EXIT_FAILED, "run lifeboat backup again, against the new primary"),
            PgError::TimedOut { .. } | PgError::Protocol { .. } => {
                (EXIT_FAILED, "the server's log may tell why; then run the command again, or choose lifeboat backup --copy logical")
            }
        };
        Self::of(code, &error, hint)
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let hint = match &error {
            PlanError::NoDataDirectory => "set postgres.data_directory or PGDATA, or choose lifeboat backup --copy stream",
            PlanError::Unreadable(_) => "run lifeboat as a user who may read it, or choose lifeboat backup --copy stream",
            PlanError::Tablespace { .. } => {
                return Self::of(
                    EXIT_FAILED,
                    &error,
                    "move the tablespace (ALTER TABLE … SET TABLESPACE), or choose lifeboat backup --copy logical",
                );
            }
        };
        Self::of(EXIT_USAGE, &error, hint)
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Store(error) => error.into(),
            error => Self::of(EXIT_FAILED, &error, "correct it and run lifeboat backup again; nothing of this run counts as a backup"),
        }
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        let hint = match error {
            BackupError::Plan(error) => return error.into(),
            BackupError::Lease(error) => return error.into(),
            BackupError::Postgres(error) => return error.into(),
            BackupError::Copy(error) => return error.into(),
            BackupError::Key(error) => return error.into(),
            BackupError::Repository(error) => return error.into(),
            BackupError::Store(error) => return error.into(),
            BackupError::Artifacts(error) => return error.into(),
            BackupError::Sign(error) => return error.into(),
            BackupError::OtherCluster { .. } | BackupError::OtherDirectory { .. } | BackupError::OtherServer { .. } => {
                "postgres.dsn and postgres.data_directory must be of one server: lifeboat config show"
            }
            BackupError::SystemChanged { .. } => {
                "back the new cluster up under another name (lifeboat backup --name NAME) or into another repository (lifeboat init)"
            }
            BackupError::Wal { .. } => {
                "set wal_keep_size, or max_replication_slots and a role with REPLICATION, then run lifeboat backup again"
            }
            BackupError::Program { .. } => "set postgres.bin_directory to the programs of the server's version: lifeboat config show",
            _ => "run lifeboat backup again; nothing of this run counts as a backup",
        };
        Self::of(EXIT_FAILED, &error, hint)
    }
}

impl From<ArtifactError> for Failure {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::Store(error) => error.into(),
            ArtifactError::Format(error) => error.into(),
            ArtifactError::Key(error) => error.into(),
            ArtifactError::Sign(error) => error.into(),
            ArtifactError::Finding(ref finding) => match finding.problem {
                Problem::Locked(_) => Self::of(EXIT_KEY, &error, "give the restore identity: lifeboat artifact get NAME --identity FILE"),
                _ => Self::of(EXIT_UNVERIFIED, &error, "lifeboat artifact verify tells what else is damaged"),
            },
            ArtifactError::NotFound(_) => Self::of(EXIT_FAILED, &error, "lifeboat artifact list shows the names"),
            ArtifactError::WouldEmpty { .. } => {
                Self::of(EXIT_FAILED, &error, "is it mounted? if it is meant to be empty: lifeboat artifact sync DIR --allow-empty")
            }
            ArtifactError::HoldsRepository { .. } => Self::of(EXIT_USAGE, &error, "choose another directory: lifeboat config show"),
            ArtifactError::Occupied { .. } => Self::of(EXIT_FAILED, &error, "choose another place, or lifeboat artifact get --force"),
            ArtifactError::Unreadable { .. } | ArtifactError::File { .. } => Self::of(
                EXIT_FAILED,
                &error,
                "make it readable for the user lifeboat runs as, then run lifeboat artifact sync again; the set is as it was",
            ),
            ArtifactError::Target { .. } => Self::of(
                EXIT_FAILED,
                &error,
                "make room or choose another directory, then run it again: lifeboat restore BACKUP --artifacts DIR, lifeboat artifact get --output FILE",
            ),
            error => Self::of(EXIT_FAILED, &error, "run the command again; lifeboat artifact verify tells whether the set is whole"),
        }
    }
}

impl From<OpenBackupError> for Failure {
    fn from(error: OpenBackupError) -> Self {
        match error {
            OpenBackupError::Absent(_) => Self::of(EXIT_FAILED, &error, "lifeboat list shows the backups"),
            OpenBackupError::Damaged(ref finding) => {
                let hint = match finding.kind {
                    lifeboat_core::verify::FindingKind::Unsigned => {
                        "lifeboat key list shows whose signatures count, for what and until when; if its signer is among them, do not restore this backup: lifeboat list shows others"
                    }
                    _ => "lifeboat verify --all tells which backups are whole",
                };
                Self::of(EXIT_UNVERIFIED, &error, hint)
            }
            OpenBackupError::Format(error) => error.into(),
            OpenBackupError::Store(error) => error.into(),
            OpenBackupError::Key(error) => error.into(),
        }
    }
}

impl From<RestorePlanError> for Failure {
    fn from(error: RestorePlanError) -> Self {
        let (code, hint) = match &error {
            RestorePlanError::Nothing => (EXIT_USAGE, "lifeboat restore BACKUP --pgdata DIR and/or --artifacts DIR"),
            RestorePlanError::NoDatabase(_) | RestorePlanError::NoArtifacts(_) => (EXIT_FAILED, "lifeboat list shows what each backup has"),
            RestorePlanError::Degraded { .. } => (
                EXIT_FINDINGS,
                "lifeboat show BACKUP names the pages; lifeboat list shows healthy backups; to restore it all the same: --accept-degraded",
            ),
            RestorePlanError::Unreachable { .. } => (EXIT_UNREACHABLE, "lifeboat list shows when each backup is consistent"),
            RestorePlanError::OtherBackup { .. } => (EXIT_FAILED, "repeat the command: what the repository has changed in between"),
            RestorePlanError::Altered(_) => (
                EXIT_UNVERIFIED,
                "do not run it, and find out who stored it (lifeboat approval show DIGEST); then ask with a plan of your own: lifeboat approval request restore BACKUP …",
            ),
            RestorePlanError::NoTablespace { .. } => (EXIT_USAGE, "lifeboat show BACKUP names its tablespaces"),
        };
        Self::of(code, &error, hint)
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let (code, hint) = match error {
            RestoreError::Open(error) => return error.into(),
            RestoreError::Key(error) => return error.into(),
            RestoreError::Repository(error) => return error.into(),
            RestoreError::Store(error) => return error.into(),
            RestoreError::Artifacts(error) => return error.into(),
            RestoreError::Damaged(_) => {
                (EXIT_UNVERIFIED, "what was written cannot be started; lifeboat verify --all tells which backups are whole")
            }
            RestoreError::ControlFile(_) | RestoreError::BackupManifest(_) => {
                (EXIT_UNVERIFIED, "lifeboat verify --all tells which backups are whole")
            }
            RestoreError::NotEmpty { .. } => {
                (EXIT_FAILED, "choose an empty directory, or move away what is there; lifeboat restore overwrites nothing")
            }
            RestoreError::ServerRunning { .. } => (
                EXIT_FAILED,
                "stop the server first (pg_ctl stop -D DIR), or restore into another directory: lifeboat restore … --pgdata DIR",
            ),
            RestoreError::NoParent { .. } => {
                (EXIT_FAILED, "make the directory above it (mkdir -p), or correct lifeboat restore … --pgdata DIR")
            }
            RestoreError::NoRoom { .. } => (EXIT_FAILED, "make room, or restore to a larger file system: lifeboat restore … --pgdata DIR"),
            RestoreError::Server(ServerError::NoBinary { .. }) => (
                EXIT_FAILED,
                "the files are restored; install that version or give --bin-directory, then start it with pg_ctl, or lifeboat restore again",
            ),
            RestoreError::Server(ServerError::RestoreCommand { .. }) => (
                EXIT_KEY,
                "the files are restored; the server's user must be able to run it: let that user read configuration, identity and repository, then pg_ctl start, or lifeboat restore again as that user",
            ),
            RestoreError::Server(ServerError::Short { .. }) => (EXIT_UNREACHABLE, "do not use this server; lifeboat verify the backup"),
            RestoreError::Server(_) => (
                EXIT_FAILED,
                "the files are restored; the server's log tells why it did not come up: lifeboat-start.log in the data directory",
            ),
            _ => (EXIT_FAILED, "what was written cannot be started; lifeboat restore into the same directory begins anew"),
        };
        Self::of(code, &error, hint)
    }
}

impl From<RetentionError> for Failure {
    fn from(error: RetentionError) -> Self {
        let (code, hint) = match error {
            RetentionError::Lease(error) => return error.into(),
            RetentionError::Repository(error) => return error.into(),
            RetentionError::Store(error) => return error.into(),
            RetentionError::Open(error) => return error.into(),
            RetentionError::Sign(error) => return error.into(),
            RetentionError::Plan(_) => (
                EXIT_USAGE,
                "set retention.keep_daily or the like (docs/retention.md), or try one: lifeboat expire --keep-daily 14 --dry-run",
            ),
            RetentionError::NotExpired(_) => (EXIT_FAILED, "lifeboat list shows which backups have expired"),
            RetentionError::PinExists { .. } => {
                (EXIT_FAILED, "choose another name: lifeboat pin BACKUP --name NAME; lifeboat show BACKUP names its pins")
            }
            RetentionError::NoPin { .. } => (EXIT_FAILED, "lifeboat show BACKUP names its pins"),
        };
        Self::of(code, &error, hint)
    }
}

impl From<PruneError> for Failure {
    fn from(error: PruneError) -> Self {
        match error {
            PruneError::Lease(error) => error.into(),
            PruneError::Retention(error) => error.into(),
            PruneError::Repository(error) => error.into(),
            PruneError::Store(error) => error.into(),
            PruneError::Artifacts(error) => error.into(),
            PruneError::Refused => Self::of(EXIT_DENIED, &error, "lifeboat prune --dry-run shows the plan as it is now"),
        }
    }
}

impl From<ApprovalError> for Failure {
    fn from(error: ApprovalError) -> Self {
        let (code, hint) = match error {
            ApprovalError::Store(error) => return error.into(),
            ApprovalError::Format(error) => return error.into(),
            ApprovalError::Ssh(error) => return error.into(),
            ApprovalError::Sign(_) => (EXIT_KEY, "check the signing key, or sign with SSH: lifeboat approval grant DIGEST --ssh-key FILE"),
            ApprovalError::NoPlan(_) => (EXIT_FAILED, "lifeboat approval list shows what was asked for"),
            ApprovalError::OtherPlan { .. } => {
                (EXIT_UNVERIFIED, "it was damaged or changed: do not run it; ask again: lifeboat approval request …")
            }
            ApprovalError::WouldNotCount { .. } | ApprovalError::WouldNotStand { .. } => (
                EXIT_DENIED,
                "nothing was stored; approvals.allowed_signers, approvals.persons and trust say who counts: lifeboat config show",
            ),
            ApprovalError::Spent(_) => (EXIT_DENIED, "to run it once more, ask once more: lifeboat approval request …"),
        };
        Self::of(code, &error, hint)
    }
}

impl From<EvidenceError> for Failure {
    fn from(error: EvidenceError) -> Self {
        let (code, hint) = match error {
            EvidenceError::Store(error) => return error.into(),
            EvidenceError::Format(error) => return error.into(),
            EvidenceError::Sign(error) => return error.into(),
            EvidenceError::Absent(_) => (EXIT_FAILED, "lifeboat drill list shows the drills"),
            EvidenceError::Unsigned { .. } | EvidenceError::NoSignature { .. } | EvidenceError::Wrong { .. } => (
                EXIT_UNVERIFIED,
                "do not rely on this report; lifeboat drill list shows which hold, lifeboat key list whose signatures count",
            ),
            EvidenceError::Unfit { .. } => (EXIT_BUG, "the drill ran, and its report is not stored; lifeboat drill run makes another"),
            EvidenceError::Taken { .. } => (EXIT_FAILED, "two drills had one name; lifeboat drill run makes another"),
        };
        Self::of(code, &error, hint)
    }
}

impl From<SshError> for Failure {
    fn from(error: SshError) -> Self {
        let (code, hint) = match &error {
            SshError::Program { .. } | SshError::Agent(_) => (
                EXIT_KEY,
                "name a key (lifeboat approval grant DIGEST --ssh-key FILE), or sign elsewhere what lifeboat approval text DIGEST prints",
            ),
            SshError::NotAllowed { .. } => (EXIT_DENIED, "approvals.allowed_signers names the file: lifeboat config show"),
            _ => (EXIT_UNVERIFIED, "sign what lifeboat approval text DIGEST prints, as it is: docs/approvals.md has the commands"),
        };
        Self::of(code, &error, hint)
    }
}

impl From<WalError> for Failure {
    fn from(error: WalError) -> Self {
        let (code, hint) = match error {
            WalError::Store(error) => return error.into(),
            WalError::Key(error) => return error.into(),
            WalError::Conflict { .. } => (
                EXIT_FAILED,
                "two servers archive into one repository, a clone or an old primary among them: only one may; nothing was overwritten (lifeboat wal status)",
            ),
            WalError::OtherCluster { .. } => (
                EXIT_FAILED,
                "archive this server into a repository of its own: lifeboat init --repository DIR; lifeboat wal status shows what is in this one",
            ),
            WalError::Unverified { .. } => (
                EXIT_UNVERIFIED,
                "lifeboat key list shows whose signatures count, for what and until when; lifeboat wal status shows what is in the repository",
            ),
            WalError::Damaged { .. } => (EXIT_UNVERIFIED, "lifeboat wal status shows what is in the repository"),
            WalError::Sign(error) => return error.into(),
            WalError::Statement(_) => (EXIT_KEY, "check the signing key: lifeboat config show"),
            WalError::Segment(_) | WalError::History(_) | WalError::Changed { .. } | WalError::File { .. } => {
                (EXIT_FAILED, "look at the file; lifeboat config show prints the settings")
            }
        };
        Self::of(code, &error, hint)
    }
}

impl From<PushError> for Failure {
    fn from(error: PushError) -> Self {
        let hint = match error {
            PushError::Wal(error) => return error.into(),
            PushError::Name(_) => "archive_command = 'lifeboat wal push %p'; files with other names are none of its business",
            PushError::UnknownCluster { .. } => "run lifeboat wal push in the data directory, as PostgreSQL does, with pg_wal/NAME",
            PushError::ControlFile { .. } => "is this the data directory of a PostgreSQL 13 or later? lifeboat wal push runs in it",
            PushError::Length { .. } | PushError::Segment { .. } | PushError::Text { .. } => {
                "the file is not what PostgreSQL archives under this name, and was not stored; find out who changed it (lifeboat wal status shows what is there)"
            }
        };
        Self::of(EXIT_FAILED, &error, hint)
    }
}

impl From<HoldError> for Failure {
    fn from(error: HoldError) -> Self {
        match error {
            HoldError::Store(error) => error.into(),
            HoldError::Artifacts(error) => error.into(),
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Open(error) => error.into(),
            VerifyError::Store(error) => error.into(),
            VerifyError::Artifacts(error) => error.into(),
            VerifyError::Read(error) => (*error).into(),
        }
    }
}

impl From<SurveyError> for Failure {
    fn from(error: SurveyError) -> Self {
        match error {
            SurveyError::Repository(error) => error.into(),
            SurveyError::Wal(error) => error.into(),
        }
    }
}

impl From<LocateError> for Failure {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::Wal(error) => error.into(),
            LocateError::Fetch(error) => Self::of(EXIT_UNVERIFIED, &error, "lifeboat wal status shows what the archive has"),
            LocateError::Unreachable(refused) => {
                let nearest: Vec<String> = refused.nearest.iter().map(|one| format!("lifeboat restore {one}")).collect();
                let hint = match nearest.as_slice() {
                    [] => "lifeboat wal status shows the moments that can be gone back to".to_owned(),
                    nearest => format!("can be reached: {}; lifeboat wal status shows all", nearest.join(" or ")),
                };
                Self::of(EXIT_UNREACHABLE, &*refused, &hint)
            }
            LocateError::Record { .. } => Self::of(EXIT_UNVERIFIED, &error, "lifeboat wal status shows what the archive has"),
            LocateError::Temporary { .. } => {
                Self::of(EXIT_FAILED, &error, "make room there, or set TMPDIR, and run lifeboat restore again")
            }
        }
    }
}
