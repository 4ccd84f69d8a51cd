//! Is every artifact there that the restored database refers to?

use lifeboat_core::drill::{Check, CheckResult, Outcome};
use lifeboat_core::repository::manifest::Manifest;

use super::{Trouble, timed};
use crate::artifacts::ArtifactSet;
use crate::backup::{BackupError, compare_references};
use crate::postgres::Dsn;

/// Asks the restored database the query that was kept with the backup, and compares with a set of artifacts. `dsn` names the database that
/// was asked when the backup was taken.
pub fn references(dsn: &Dsn, manifest: &Manifest, set: &ArtifactSet<'_>) -> CheckResult {
    timed(|| {
        let result = |outcome, reason: String| CheckResult::new(Check::References, outcome, reason);
        let Some(entry) = &manifest.artifacts else { return result(Outcome::NotApplicable, "the backup has no artifacts".into()) };
        let Some(recorded) = &entry.references else {
            let why = format!(
                "no artifacts.reference_query was configured when the backup was taken: the artifacts are those of {}, and whether the database \
                 refers to later ones was not looked at",
                manifest.started
            );
            return result(Outcome::NotApplicable, why);
        };
        let found = match compare_references(dsn, &recorded.query, set, None) {
            Ok(found) => found,
            Err(BackupError::Postgres(error)) => {
                // The query worked when the backup was taken: an error now is the restored database's.
                let outcome = match (error.sqlstate(), Trouble::of(&error)) {
                    (_, Trouble::Late) | (None, Trouble::Unable) => Outcome::NotChecked,
                    _ => Outcome::Failed,
                };
                return result(outcome, format!("the reference query failed: {error}"));
            }
            Err(error) => return result(Outcome::NotChecked, crate::causes::joined(&error)),
        };
        let outcome = match (found.missing_count, found.rows, recorded.rows) {
            (0, 0, 1..) => {
                result(Outcome::Failed, format!("the database refers to no artifact; it was {} when the backup was taken", recorded.rows))
            }
            (0, rows, _) => result(Outcome::Passed, format!("all {rows} artifacts that the database refers to are there")),
            (missing, rows, _) => {
                result(Outcome::Failed, format!("{missing} of {rows} artifacts that the database refers to are not there"))
            }
        };
        outcome.of(found.rows, found.rows, "references", None).with(found.missing)
    })
}
