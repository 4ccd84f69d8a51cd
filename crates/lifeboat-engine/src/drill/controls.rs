//! Negative controls: whether the checks can fail. Something is broken in a view of the repository, and the check that guards it has to
//! turn red; one that stays green proves nothing, and fails the drill.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lifeboat_core::drill::{Control, ControlResult, Outcome};
use lifeboat_core::repository::layout;
use lifeboat_core::verify::{Finding, FindingKind};
use lifeboat_core::wal::catalog::Held;
use lifeboat_core::wal::file::WalFile;

use super::ground::{self, Ground};
use crate::artifacts::ArtifactSet;
use crate::opened_backup::{self, OpenBackupError};
use crate::repository::MAX_DOCUMENT_BYTES;
use crate::store::Change;
use crate::verify::{self, artifact_finding};
use crate::wal::WalReader;
use crate::wal::fetch::{FetchError, Fetched, Fetcher};
use lifeboat_core::restore::RestoreRequest;

/// What a control came to before it was timed.
pub(super) struct Tried {
    place: String,
    outcome: Outcome,
    said: String,
}

impl Tried {
    /// There is nothing here that could be broken.
    pub(super) fn not_applicable(why: impl Into<String>) -> Self {
        Self { place: String::new(), outcome: Outcome::NotApplicable, said: why.into() }
    }

    /// It could not be tried.
    pub(super) fn not_checked(why: impl Into<String>) -> Self {
        Self { place: String::new(), outcome: Outcome::NotChecked, said: why.into() }
    }

    /// The check noticed.
    pub(super) fn red(place: impl Into<String>, said: impl Into<String>) -> Self {
        Self { place: place.into(), outcome: Outcome::Failed, said: said.into() }
    }

    /// The check did not notice.
    pub(super) fn green(place: impl Into<String>, said: impl Into<String>) -> Self {
        Self { place: place.into(), outcome: Outcome::Passed, said: said.into() }
    }

    /// What the findings of a check over something broken mean.
    fn by(place: &str, findings: &[Finding]) -> Self {
        match findings.iter().find(|finding| finding.kind != FindingKind::NotChecked) {
            Some(finding) => Self::red(place, finding.to_string()),
            None => match findings.first() {
                Some(finding) => Self { place: place.to_owned(), ..Self::not_checked(finding.to_string()) },
                None => Self::green(place, "nothing was noticed"),
            },
        }
    }

    pub(super) fn timed(self, control: Control, begun: Instant) -> ControlResult {
        let Self { place, outcome, said } = self;
        ControlResult { control, place, check: control.check(), outcome, said, seconds: begun.elapsed().as_secs_f64() }
    }
}

/// Tries the controls that need no server.
pub fn on_repository(ground: &Ground<'_>) -> Vec<ControlResult> {
    let mut results = Vec::new();
    for (control, attempt) in [
        (Control::BitFlipped, bit_flipped as fn(&Ground<'_>) -> Result<Tried, String>),
        (Control::WalMissing, wal_missing),
        (Control::SignatureBroken, signature_broken),
        (Control::CatalogChanged, catalog_changed),
    ] {
        let begun = Instant::now();
        results.push(attempt(ground).unwrap_or_else(Tried::not_checked).timed(control, begun));
    }
    results
}

/// A bit of a pack that holds the backup's files.
fn bit_flipped(ground: &Ground<'_>) -> Result<Tried, String> {
    let packs = &ground.backup.manifest.packs;
    let Some(index) = ground.seed.checked_rem(packs.len() as u64) else { return Ok(Tried::not_applicable("the backup has no files")) };
    let entry = &packs[index as usize];
    // Behind the header, whose damage is another check's matter.
    let header = lifeboat_core::repository::pack::HEADER_BYTES as u64;
    let at = header + (ground.seed >> 8) % entry.bytes.saturating_sub(header).max(1);
    let key = layout::pack(entry.sha256);
    let place = format!("byte {at} of {key}");
    let repository = ground.changed(vec![(key, Change::Flipped(at))])?;
    let findings = verify::one_pack(&repository, ground.backup, ground.identities, index as u32, ground.progress).map_err(one_line)?;
    Ok(Tried::by(&place, &findings))
}

/// A segment in the middle of the way to the target.
fn wal_missing(ground: &Ground<'_>) -> Result<Tried, String> {
    let Some(way) = ground.way else {
        return Ok(Tried::not_applicable("there is no WAL archive on the way; the backup's own WAL is in its packs"));
    };
    let whole: Vec<_> = way.segments().into_iter().filter(|(_, held)| *held == Held::Whole).collect();
    let Some((segment, _)) = whole.get(whole.len() / 2) else {
        return Ok(Tried::not_applicable("the archive has no finished segment on the way to the target"));
    };
    let size = way.cluster.segment_size;
    let file = WalFile::Segment(*segment);
    let key = file.key(way.cluster.system_id, size);
    let repository = ground.changed(vec![(key.clone(), Change::Missing)])?;
    let reader = WalReader::new(&repository, way.cluster, ground.trust, ground.identities.clone());
    // What a server in recovery would be told.
    let target = ground.temporary.join(format!("lifeboat-control-{}", std::process::id()));
    let fetched = Fetcher::new(&reader, &way.choice.bounds, false).fetch(file, &target);
    let _ = std::fs::remove_file(&target);
    let said = match fetched {
        Err(error @ FetchError::Gap { .. }) => error.to_string(),
        Err(error) => return Err(one_line(error)),
        Ok(Fetched::AfterEnd) => return Ok(Tried::green(key.to_string(), "a server would have been told that the archive ends there")),
        Ok(_) => return Ok(Tried::green(key.to_string(), "it came all the same")),
    };
    // And what would be planned: less than was promised, or nothing.
    let again = ground::way(&repository, ground.trust, ground.identities, ground.backup, &RestoreRequest::default(), ground.temporary);
    Ok(match again {
        Ok(Some(shorter)) if shorter.choice.end >= way.choice.end => {
            Tried::green(key.to_string(), format!("a restore to {} would still be planned", shorter.choice.end))
        }
        _ => Tried::red(key.to_string(), said),
    })
}

/// The signature of the backup's manifest.
fn signature_broken(ground: &Ground<'_>) -> Result<Tried, String> {
    let key = layout::manifest_bundle(&ground.backup.id);
    let bundle = ground.repository()?.store().get(&key, MAX_DOCUMENT_BYTES).map_err(one_line)?;
    let Some(broken) = other_signature(&bundle) else { return Err(format!("{key} has no signature that could be broken")) };
    let repository = ground.changed(vec![(key.clone(), Change::Bytes(broken))])?;
    Ok(match opened_backup::open(&repository, &ground.backup.id, ground.trust) {
        Ok(_) => Tried::green(key.to_string(), "the backup was opened all the same"),
        Err(OpenBackupError::Damaged(finding)) => Tried::by(key.as_str(), &[finding]),
        Err(error) => return Err(one_line(error)),
    })
}

/// The bundle with one bit of its first signature turned over, in the last byte: still a signature to every parser.
fn other_signature(bundle: &[u8]) -> Option<Vec<u8>> {
    let mut bundle: serde_json::Value = serde_json::from_slice(bundle).ok()?;
    let signature = bundle.pointer_mut("/dsseEnvelope/signatures/0/sig")?;
    let mut bytes = STANDARD.decode(signature.as_str()?).ok()?;
    *bytes.last_mut()? ^= 1;
    *signature = STANDARD.encode(bytes).into();
    serde_json::to_vec(&bundle).ok()
}

/// A byte in the middle of the artifact catalog's biggest run.
fn catalog_changed(ground: &Ground<'_>) -> Result<Tried, String> {
    let runs = ground.backup.manifest.artifacts.as_ref().map_or(&[][..], |artifacts| &artifacts.runs);
    let Some(run) = runs.iter().max_by_key(|run| run.entries) else { return Ok(Tried::not_applicable("the backup has no artifacts")) };
    let key = layout::artifact_run(run.sha256);
    let repository = ground.changed(vec![(key.clone(), Change::Flipped(run.bytes / 2))])?;
    let set = ArtifactSet::new(repository.store(), vec![run.clone()]);
    let (_, findings) = set.check().map_err(one_line)?;
    let findings: Vec<Finding> = findings.iter().map(|finding| artifact_finding(Some(&ground.backup.id), finding)).collect();
    Ok(Tried::by(key.as_str(), &findings))
}

/// An error with its causes, in one line.
pub(super) fn one_line(error: impl std::error::Error) -> String {
    crate::causes::joined(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_signature_is_still_a_signature() {
        let bundle = br#"{"dsseEnvelope":{"signatures":[{"sig":"AAECAw=="}]}}"#;
        let other: serde_json::Value = serde_json::from_slice(&other_signature(bundle).unwrap()).unwrap();
        assert_eq!(other.pointer("/dsseEnvelope/signatures/0/sig").unwrap(), "AAECAg==");
        assert_eq!(other_signature(b"{}"), None);
        assert_eq!(other_signature(b"not json"), None);
    }
}
