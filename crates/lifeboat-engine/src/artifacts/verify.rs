//! Verifying a set of artifacts where it stands.

use std::sync::Mutex;

use lifeboat_core::repository::{Sha256, artifact::Entry, layout};
use serde::Serialize;

use super::catalog::ArtifactSet;
use super::read::{Reader, Trouble, blob_finding, check_blob};
use super::{ArtifactError, Capped, Finding, problem_of, workers};
use crate::progress::Progress;

/// Whose bytes are read. Records and signatures are always verified, all of them.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// How many of a hundred; 100 and more: all.
    pub percent: u8,
    /// Decides which. Counting it up covers all of them in as many samples as there are in a hundred.
    pub seed: u64,
    /// Open them, with the reader's identities, and compare the signed digest. Otherwise the trailer is
    /// compared, which finds damage, not malice.
    pub open: bool,
}

/// What a verification looked at, and what it found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// Artifacts in the set.
    pub artifacts: u64,
    /// Bytes of those that were read.
    pub bytes: u64,
    /// Artifacts whose record and signature hold.
    pub signatures_verified: u64,
    /// Artifacts whose stored bytes are undamaged, as far as can be told without opening them.
    pub blobs_checked: u64,
    /// Artifacts that were opened, and are the bytes that were signed.
    pub blobs_opened: u64,
    /// Artifacts that were not in the sample: that their bytes are there is all that is known.
    pub blobs_present: u64,
    /// What is wrong.
    pub findings: Capped<Finding>,
}

/// Verifies every artifact of the set on `threads` threads. `expected` is how many artifacts and bytes the
/// manifest says that there are.
pub fn verify_set(
    reader: &Reader<'_>,
    set: ArtifactSet<'_>,
    expected: (u64, u64),
    sample: Sample,
    threads: usize,
    progress: &dyn Progress,
) -> Result<VerifyReport, ArtifactError> {
    progress.total(expected.0, expected.1);
    let (set, run_findings) = set.check()?;
    let mut report = VerifyReport::default();
    run_findings.into_iter().for_each(|finding| report.findings.push(finding));
    let report = Mutex::new(report);
    workers::each(set.entries(""), threads, |entry: Entry| {
        let signature = reader.record_of(&entry);
        let blob = check_bytes(reader, &entry, sample);
        let mut report = report.lock().expect("no panic while held");
        report.artifacts += 1;
        if !matches!(blob, Ok(Depth::Present)) {
            report.bytes += entry.bytes;
        }
        match signature {
            Ok(_) => report.signatures_verified += 1,
            Err(finding) => report.findings.push(finding),
        }
        match blob {
            Ok(Depth::Opened) => report.blobs_opened += 1,
            Ok(Depth::Checked) => report.blobs_checked += 1,
            Ok(Depth::Present) => report.blobs_present += 1,
            Err(finding) => report.findings.push(finding),
        }
        drop(report);
        progress.add(1, entry.bytes);
        Ok::<_, ArtifactError>(())
    })?;
    Ok(report.into_inner().expect("no panic while held"))
}

enum Depth {
    Opened,
    Checked,
    Present,
}

fn check_bytes(reader: &Reader<'_>, entry: &Entry, sample: Sample) -> Result<Depth, Finding> {
    let finding = |problem| blob_finding(&entry.name, entry.sha256, problem);
    if !chosen(entry.sha256, sample) {
        let length = reader.store().length(&layout::artifact_blob(entry.sha256));
        return length.map(|_| Depth::Present).map_err(|e| finding(problem_of(&e)));
    }
    if !sample.open {
        return check_blob(reader.store(), entry.sha256, entry.bytes).map(|_| Depth::Checked).map_err(finding);
    }
    match reader.open(reader.store(), entry.sha256, entry.bytes, &mut |_| Ok(())) {
        Ok(()) => Ok(Depth::Opened),
        Err(Trouble::Problem(problem)) => Err(finding(problem)),
        Err(Trouble::Sink(_)) => unreachable!("nothing is written"),
    }
}

impl Sample {
    /// One of a hundred, with this one among them.
    pub fn around(sha256: Sha256, open: bool) -> Self {
        Self { percent: 1, seed: slice(sha256), open }
    }
}

/// In which of a hundred slices something is.
fn slice(sha256: Sha256) -> u64 {
    (u64::from(sha256.0[0]) << 8 | u64::from(sha256.0[1])) % 100
}

/// The sample of the next seed goes on where this one ends.
fn chosen(sha256: Sha256, sample: Sample) -> bool {
    let slice = slice(sha256);
    let width = u64::from(sample.percent);
    (slice + 100 - (sample.seed % 100) * width % 100) % 100 < width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c115_samples_in_a_row_cover_every_artifact_and_each_has_one_around_it() {
        let all: Vec<Sha256> = (0..2000u32).map(|number| Sha256::of(&number.to_le_bytes())).collect();
        for (percent, runs) in [(1, 100), (5, 20), (7, 15), (100, 1)] {
            let chosen = |sha256: &Sha256| (20_000..20_000 + runs).any(|seed| chosen(*sha256, Sample { percent, seed, open: false }));
            assert!(all.iter().all(chosen), "{percent} %");
        }
        let few = |sha256: &Sha256| all.iter().filter(|one| chosen(**one, Sample::around(*sha256, true))).count();
        assert!(all.iter().take(50).all(|sha256| chosen(*sha256, Sample::around(*sha256, true)) && few(sha256) < 60));
    }
}
