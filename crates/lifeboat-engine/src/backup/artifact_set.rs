//! The artifacts of a backup: the set brought up to date, and compared with what the database refers to.

use std::path::Path;
use std::sync::mpsc;

use lifeboat_core::repository::manifest::{ArtifactsEntry, ReferencesEntry};

use super::{ArtifactsSource, BackupError, BackupRequest, Protection};
use crate::artifacts::{
    ArtifactError, ArtifactSet, Lacking, References, SYNC_THREADS, SyncOptions, SyncReport, Writer, cross_check, lacking,
};
use crate::keys::Recipient;
use crate::postgres::{Connection, Dsn, PgError, Purpose};
use crate::progress::Progress;
use crate::repository::Repository;

/// Rows that wait between the query and the comparison.
const ROWS_IN_FLIGHT: usize = 4096;

/// Brings the set up to date with the directory, and compares it with what the database refers to. The
/// database was copied before: an artifact is stored before the row that names it is committed, so
/// everything that the copy refers to is in the directory by now. What not all recipients can open is among the warnings, and counted.
/// Lastly: whether something that should be in the set is not.
pub(super) fn take(
    repository: &Repository,
    request: &BackupRequest<'_>,
    source: &ArtifactsSource,
    warnings: &mut Vec<String>,
    progress: &dyn Progress,
) -> Result<(ArtifactsEntry, Lacking, bool), BackupError> {
    let asked = source.reference_query.as_ref().zip(request.postgres.as_ref().filter(|postgres| !postgres.record_only));
    // What the database refers to now, after its copy and before the directory is read: a row that is committed while it is read may
    // name an artifact that the walk has passed already, and would be missed although no restored database has it.
    let seen = asked.map(|(_, postgres)| snapshot(&postgres.dsn)).transpose()?;
    let recipients = match &request.protection {
        Protection::Recipients { recipients, .. } => Some(recipients.as_slice()),
        Protection::Plain => None,
    };
    let (mut lacks, mut has_findings) = (Lacking::default(), false);
    if let Some(directory) = &source.directory {
        progress.phase("artifacts");
        let writer = Writer::new(repository, request.signer, recipients)?;
        let options = SyncOptions { threads: request.workers.max(SYNC_THREADS), read_all: false, allow_empty: source.allow_empty };
        let report = writer.sync(directory, options, progress)?;
        warnings.extend(complaints(&report));
        has_findings = report.has_findings();
        lacks = report.lacking;
    }
    let (head, set) = ArtifactSet::newest(repository)?;
    // A sync has looked already.
    if let Some(recipients) = recipients.filter(|_| source.directory.is_none()) {
        match lacking(&set, &recipients.iter().map(Recipient::mark).collect::<Vec<_>>()) {
            Ok(lacking) if lacking.count == 0 => {}
            Ok(lacking) => {
                warnings.push(lacking.to_string());
                lacks = lacking;
            }
            // The database is worth a backup all the same.
            Err(ArtifactError::Finding(finding)) => warnings.push(format!("the artifact set is damaged: {finding}")),
            Err(error) => return Err(error.into()),
        }
    }
    let mut entry = ArtifactsEntry {
        head: head.as_ref().map_or(0, |head| head.head),
        runs: set.runs().to_vec(),
        count: head.as_ref().map_or(0, |head| head.count),
        bytes: head.as_ref().map_or(0, |head| head.bytes),
        references: None,
    };
    if let Some(((query, postgres), seen)) = asked.zip(seen) {
        progress.phase("references");
        let found = match compare_on(seen, query, &set) {
            // A standby ends snapshots that are in its recovery's way, and a day of artifacts is long for a connection. Later rows are
            // better than no comparison.
            Err(BackupError::Postgres(_)) => compare(&postgres.dsn, query, &set, None)?,
            found => found?,
        };
        if found.missing_count > 0 {
            warnings.push(format!(
                "the database refers to {} artifacts that are not in the backup, first {}",
                found.missing_count,
                found.missing.first().map_or("unknown", String::as_str)
            ));
        }
        entry.references =
            Some(ReferencesEntry { query: query.clone(), rows: found.rows, missing_count: found.missing_count, missing: found.missing });
    }
    Ok((entry, lacks, has_findings))
}

/// What a sync could not do, in sentences.
pub fn complaints(report: &SyncReport) -> Vec<String> {
    let mut complaints = Vec::new();
    for (what, notes) in [
        ("artifacts changed whenever they were read and stay as they were", &report.changing),
        ("files cannot be artifacts because of their names", &report.walk.unnamable),
        (
            "artifacts stay in the set as they were, because nobody looks behind a link: bring them back, or remove the link",
            &report.walk.hidden,
        ),
        ("symbolic links lead out of the directory, and what they lead to is in no set", &report.walk.outside),
    ] {
        if let Some(first) = notes.first.first() {
            complaints.push(format!("{} {what}, first {first}", notes.count));
        }
    }
    if report.lacking.count > 0 {
        complaints.push(report.lacking.to_string());
    }
    complaints
}

enum CompareError {
    Postgres(PgError),
    Artifacts(ArtifactError),
}

impl From<ArtifactError> for CompareError {
    fn from(error: ArtifactError) -> Self {
        Self::Artifacts(error)
    }
}

/// Why a row was not looked at.
enum RowError {
    Postgres(PgError),
    /// Nobody listens any more.
    Stopped,
}

impl From<PgError> for RowError {
    fn from(error: PgError) -> Self {
        Self::Postgres(error)
    }
}

/// A connection that goes on seeing what is committed at this moment. As with pg_dump, rows that are deleted meanwhile cannot be
/// vacuumed until it ends.
fn snapshot(dsn: &Dsn) -> Result<Connection, PgError> {
    let connection = Connection::open(dsn, Purpose::Sql)?;
    connection.reset_search_path()?;
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", &[])?;
    // The first query takes the snapshot.
    connection.execute("SELECT 1", &[])?;
    Ok(connection)
}

/// Runs the reference query and compares each row (name, SHA-256) with the set; the rows stream by. With the directory of a
/// server on this host, its owner asks: see [`crate::restore::server::as_directory_owner`].
pub fn compare(dsn: &Dsn, query: &str, set: &ArtifactSet<'_>, server: Option<&Path>) -> Result<References, BackupError> {
    let connection = match server {
        Some(directory) => crate::restore::server::as_directory_owner(directory, || snapshot(dsn)),
        None => snapshot(dsn),
    }?;
    compare_on(connection, query, set)
}

fn compare_on(connection: Connection, query: &str, set: &ArtifactSet<'_>) -> Result<References, BackupError> {
    let (sender, receiver) = mpsc::sync_channel::<Result<(String, String), CompareError>>(ROWS_IN_FLIGHT);
    let result = std::thread::scope(|scope| {
        scope.spawn(move || {
            let run = || -> Result<(), PgError> {
                let sent = connection.for_each_row(query, &[], |row| {
                    let text = |index| row.text(index).map(str::to_owned);
                    sender.send(Ok((text(0)?, text(1)?))).map_err(|_| RowError::Stopped)
                });
                match sent {
                    Ok(_) | Err(RowError::Stopped) => Ok(()),
                    Err(RowError::Postgres(error)) => Err(error),
                }
            };
            if let Err(error) = run() {
                // Nobody listens only if the comparison failed by itself.
                let _ = sender.send(Err(CompareError::Postgres(error)));
            }
        });
        cross_check(set, receiver)
    });
    result.map_err(|error| match error {
        CompareError::Postgres(error) => BackupError::Postgres(error),
        CompareError::Artifacts(error) => BackupError::Artifacts(error),
    })
}
