//! What stands in the repository: the backup's signature, its extents, its artifacts.

use std::sync::Mutex;
use std::time::Instant;

use lifeboat_core::drill::{Check, CheckResult, Outcome};
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::verify::{Depth, Finding, FindingKind};

use crate::causes::joined;
use crate::opened_backup::{self, OpenBackupError};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::verify::{self, VerifySettings};

/// Verifies a backup where it stands, and gives the results of [`Check::Signature`], [`Check::Extents`] and [`Check::Artifacts`], in that order.
/// What the sample left out is in their scope.
pub fn stored(repository: &Repository, id: &BackupId, settings: &VerifySettings<'_>, progress: &dyn Progress) -> [CheckResult; 3] {
    let begun = Instant::now();
    let unopened = |signature: CheckResult| {
        let not = |check| CheckResult::new(check, Outcome::NotChecked, "the backup could not be opened");
        [signature.took(begun.elapsed().as_secs_f64()), not(Check::Extents), not(Check::Artifacts)]
    };
    let signature = |outcome, reason: String| CheckResult::new(Check::Signature, outcome, reason);
    let backup = match opened_backup::open(repository, id, settings.trust) {
        Ok(backup) => backup,
        Err(OpenBackupError::Damaged(finding)) => return unopened(signature(Outcome::Failed, finding.to_string())),
        Err(error @ OpenBackupError::Absent(_)) => return unopened(signature(Outcome::Failed, error.to_string())),
        Err(error) => return unopened(signature(Outcome::NotChecked, joined(&error))),
    };
    let manifest = &backup.manifest;
    let signed = signature(Outcome::Passed, format!("signed by {}", backup.signed_by)).took(begun.elapsed().as_secs_f64());
    let phases = Phases { inner: progress, began: Mutex::default() };
    let report = match verify::run(repository, id, settings, &phases) {
        Ok(report) => report,
        Err(error) => {
            let why = joined(&error);
            let not = |check| CheckResult::new(check, Outcome::NotChecked, why.as_str());
            return [signed, not(Check::Extents), not(Check::Artifacts)];
        }
    };
    let end = Instant::now();
    let (extents_at, artifacts_at) = phases.marks();
    let (extents_at, artifacts_at) = (extents_at.unwrap_or(begun), artifacts_at.unwrap_or(end));
    let (of_artifacts, of_database): (Vec<&Finding>, Vec<&Finding>) =
        report.findings.iter().partition(|finding| finding.object.starts_with("artifacts/"));
    let sampled = report.sample_seed;
    let part = if sampled.is_some() { format!(", {} % of them read", settings.sample_percent) } else { String::new() };

    let extents = if manifest.packs.is_empty() && manifest.tables.is_empty() && of_database.is_empty() {
        CheckResult::new(Check::Extents, Outcome::NotApplicable, "the backup has no files")
    } else {
        let stored_only = report.depth == Depth::Stored && !manifest.encryption.keys.is_empty();
        let unread = stored_only.then(|| "no identity opens it: only stored bytes were compared with their digests".to_owned());
        let read = if sampled.is_some() { sampled_bytes(manifest.plain_bytes, settings.sample_percent) } else { manifest.plain_bytes };
        judge(Check::Extents, &of_database, unread, format!("{} packs are whole{part}", manifest.packs.len())).of(
            read,
            manifest.plain_bytes,
            "bytes",
            sampled,
        )
    };
    let artifacts = match &manifest.artifacts {
        None if of_artifacts.is_empty() => CheckResult::new(Check::Artifacts, Outcome::NotApplicable, "the backup has no artifacts"),
        entry => {
            let of = entry.as_ref().map_or(0, |entry| entry.count);
            judge(Check::Artifacts, &of_artifacts, None, format!("{} artifacts are signed and whole{part}", report.artifacts)).of(
                report.artifacts,
                of,
                "artifacts",
                sampled,
            )
        }
    };
    let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
    [signed, extents.took(seconds(extents_at, artifacts_at)), artifacts.took(seconds(artifacts_at, end))]
}

fn sampled_bytes(bytes: u64, percent: f64) -> u64 {
    (bytes as f64 * percent.clamp(0.0, 100.0) / 100.0) as u64
}

fn judge(check: Check, findings: &[&Finding], unread: Option<String>, good: String) -> CheckResult {
    let bad = findings.iter().filter(|finding| finding.kind != FindingKind::NotChecked).count();
    let first_bad = findings.iter().find(|finding| finding.kind != FindingKind::NotChecked);
    let (outcome, reason) = match (first_bad, findings.first(), unread) {
        (Some(first), ..) if bad > 1 => (Outcome::Failed, format!("{first}, and {} more", bad - 1)),
        (Some(first), ..) => (Outcome::Failed, first.to_string()),
        (None, Some(first), _) => (Outcome::NotChecked, first.to_string()),
        (None, None, Some(unread)) => (Outcome::NotChecked, unread),
        (None, None, None) => (Outcome::Passed, good),
    };
    CheckResult::new(check, outcome, reason).with(findings.iter().map(ToString::to_string))
}

/// Notes when the phases of a verification began.
struct Phases<'p> {
    inner: &'p dyn Progress,
    began: Mutex<Vec<(&'static str, Instant)>>,
}

impl Phases<'_> {
    fn marks(&self) -> (Option<Instant>, Option<Instant>) {
        let began = self.began.lock().expect("no panic while held");
        let of = |wanted| began.iter().find(|(name, _)| *name == wanted).map(|(_, at)| *at);
        (of("verify"), of("artifacts"))
    }
}

impl Progress for Phases<'_> {
    fn phase(&self, name: &'static str) {
        self.began.lock().expect("no panic while held").push((name, Instant::now()));
        self.inner.phase(name);
    }

    fn total(&self, files: u64, bytes: u64) {
        self.inner.total(files, bytes);
    }

    fn add(&self, files: u64, bytes: u64) {
        self.inner.add(files, bytes);
    }

    fn warn(&self, message: &str) {
        self.inner.warn(message);
    }
}
