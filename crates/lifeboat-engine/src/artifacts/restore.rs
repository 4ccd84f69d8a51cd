//! Restoring a set of artifacts into a directory.
//!
//! A file appears under its name only when every byte of it was verified. What is not sound is left
//! out and reported; the rest is restored.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_core::repository::artifact::Entry;
use serde::Serialize;

use super::beneath::{self, Temporary};
use super::catalog::ArtifactSet;
use super::read::{Reader, Trouble, blob_finding};
use super::{ArtifactError, Capped, Finding, Problem, workers};
use crate::progress::Progress;

/// What a restore brought back.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RestoreReport {
    /// Artifacts restored.
    pub restored: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was not restored, and why.
    pub findings: Capped<Finding>,
}

/// Restores every artifact of the set below `directory`, which must be empty or not there, on `threads`
/// threads. `expected` is how many artifacts and bytes the manifest says that there are. When this
/// returns, everything is durable.
///
/// # Errors
///
/// The directory cannot be written, or is not empty. What is wrong with an artifact is a finding.
pub fn restore_set(
    reader: &Reader<'_>,
    set: ArtifactSet<'_>,
    expected: (u64, u64),
    directory: &Path,
    threads: usize,
    progress: &dyn Progress,
) -> Result<RestoreReport, ArtifactError> {
    let fail = |source: io::Error| ArtifactError::Target { path: directory.to_owned(), source };
    match std::fs::create_dir(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut entries = std::fs::read_dir(directory).map_err(fail)?;
            if entries.next().is_some() {
                return Err(ArtifactError::Occupied { path: directory.to_owned(), problem: "the directory is not empty" });
            }
        }
        Err(error) => return Err(fail(error)),
    }
    let root = beneath::open_root(directory).map_err(fail)?;
    progress.total(expected.0, expected.1);
    let (set, run_findings) = set.check()?;
    let findings = Mutex::new(Capped::default());
    run_findings.into_iter().for_each(|finding| findings.lock().expect("no panic while held").push(finding));
    let (restored, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    workers::each(set.entries(""), threads, |entry: Entry| {
        match restore_one(reader, root.as_fd(), &entry) {
            Ok(()) => {
                restored.fetch_add(1, Ordering::Relaxed);
                bytes.fetch_add(entry.bytes, Ordering::Relaxed);
            }
            Err(Failure::Finding(finding)) => findings.lock().expect("no panic while held").push(finding),
            Err(Failure::Target(source)) => return Err(ArtifactError::Target { path: directory.join(entry.name.as_str()), source }),
        }
        progress.add(1, entry.bytes);
        Ok(())
    })?;
    make_durable(root.as_fd()).map_err(fail)?;
    if let Some(parent) = directory.canonicalize().map_err(fail)?.parent() {
        std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(fail)?;
    }
    let findings = findings.into_inner().expect("no panic while held");
    Ok(RestoreReport { restored: restored.into_inner(), bytes: bytes.into_inner(), findings })
}

enum Failure {
    /// This artifact is not restored.
    Finding(Finding),
    /// Nothing will be.
    Target(io::Error),
}

fn restore_one(reader: &Reader<'_>, root: BorrowedFd<'_>, entry: &Entry) -> Result<(), Failure> {
    let record = reader.record_of(entry).map_err(Failure::Finding)?;
    let target = |error: io::Error| match error.kind() {
        // Every other artifact would fail alike.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem => Failure::Target(error),
        _ => Failure::Finding(blob_finding(&entry.name, entry.sha256, Problem::NotRestored(error.to_string()))),
    };
    let (parent, leaf) = beneath::open_parent(root, &entry.name, true).map_err(target)?;
    let temporary = Temporary::new(parent.as_ref().map_or(root, |fd| fd.as_fd())).map_err(target)?;
    match reader.fill(&record, &temporary) {
        Ok(()) => temporary.place(leaf.as_bytes(), false).map_err(target),
        Err(Trouble::Problem(problem)) => Err(Failure::Finding(blob_finding(&entry.name, entry.sha256, problem))),
        Err(Trouble::Sink(error)) => Err(target(error)),
    }
}

/// One syncfs(2) for the whole file system, which also reports what could not be written (Linux 5.8):
/// syncing ten million files and their directories one by one takes hours.
#[cfg(target_os = "linux")]
fn make_durable(root: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(root)?)
}

#[cfg(not(target_os = "linux"))]
fn make_durable(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::sync();
    Ok(rustix::fs::fsync(root)?)
}
