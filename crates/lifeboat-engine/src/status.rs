//! Looks at a system: what `lifeboat_core::status` judges. Every part may fail by itself, and one that does is said to be unseen.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::drill::history;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout;
use lifeboat_core::repository::manifest::{CopyMethod, Manifest, State};
use lifeboat_core::repository::retention::Standing;
use lifeboat_core::status::{
    BackupSeen, BackupState, DiskSeen, DrillSeen, DrillsSeen, ExceptSeen, MomentSeen, SignatureState, SlotSeen, TimelineSeen, WindowSeen,
};
use lifeboat_core::wal::SystemId;
use lifeboat_core::wal::catalog::{BackupPoint, Gap, Moment, Window};
use lifeboat_core::wal::status::ServerWal;

use crate::causes;
use crate::drill::evidence::{self, EvidenceError};
use crate::opened_backup::{self, OpenBackupError};
use crate::repository::{Repository, RepositoryError};
use crate::retention;
use crate::signing::Trust;
use crate::store::{StoreError, is_there};
use crate::wal::survey::Survey;

/// Looks at something, but not for ever: what hangs (a file system over the network, for one) must not keep the rest from being seen. Whoever hangs is
/// left to itself.
///
/// # Errors
///
/// It did not answer.
pub fn within<T: Send + 'static>(patience: Duration, look: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (sender, seen) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(look());
    });
    seen.recv_timeout(patience).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => format!("it did not answer within {} s", patience.as_secs()),
        mpsc::RecvTimeoutError::Disconnected => "looking at it ended with a bug in lifeboat, described in the log".to_owned(),
    })
}

/// What was seen of backups.
#[derive(Debug, Default)]
pub struct Backups {
    /// Those of the system, newest first.
    pub seen: Vec<BackupSeen>,
    /// Those that recovery of the cluster can begin with, whatever system they are of, oldest first: for [`crate::wal::survey::survey_with`].
    pub points: Vec<BackupPoint>,
}

/// Looks at the backups of a system, or of all where none is named, and at those of a cluster.
///
/// # Errors
///
/// The store, where it failed for all.
pub fn backups(
    repository: &Repository,
    trust: Option<&Trust>,
    system: Option<&str>,
    cluster: Option<SystemId>,
    workers: usize,
    now: Timestamp,
) -> Result<Backups, RepositoryError> {
    type Looked = Result<(Option<BackupSeen>, Option<BackupPoint>), StoreError>;
    let is_ours = |id: &BackupId| system.is_none_or(|system| id.name() == system);
    // Without anybody who is trusted no backup counts for recovery.
    let cluster = cluster.filter(|_| trust.is_some());
    let mut ids = repository.backup_prefixes()?;
    ids.retain(|id| is_ours(id) || cluster.is_some());
    let next = AtomicUsize::new(0);
    // Each waits on the store several times, one after the other.
    let look = || -> Vec<(usize, Looked)> {
        let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < ids.len());
        let backup = |index: usize| backup(repository, trust, &ids[index], is_ours(&ids[index]), cluster, now);
        std::iter::from_fn(claim).map(|index| (index, backup(index))).collect()
    };
    let mut looked: Vec<(usize, Looked)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.clamp(1, 32)).map(|_| scope.spawn(look)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    looked.sort_by_key(|(index, _)| *index);
    let mut backups = Backups::default();
    for (_, looked) in looked {
        let (seen, point) = looked?;
        backups.seen.extend(seen);
        backups.points.extend(point);
    }
    backups.seen.reverse();
    Ok(backups)
}

/// One backup, if it is to be seen, and what it is to recovery. `None`: it is none; what did not finish is garbage, and what is being pruned was one.
fn backup(
    repository: &Repository,
    trust: Option<&Trust>,
    id: &BackupId,
    is_ours: bool,
    cluster: Option<SystemId>,
    now: Timestamp,
) -> Result<(Option<BackupSeen>, Option<BackupPoint>), StoreError> {
    let opened = match trust {
        Some(trust) => opened_backup::open(repository, id, trust).map(|backup| (backup.manifest, Some(backup.digest))),
        None => opened_backup::peek(repository, id).map(|manifest| (manifest, None)),
    };
    let point = opened.as_ref().ok().zip(cluster).and_then(|((manifest, _), cluster)| BackupPoint::of(manifest, cluster));
    if !is_ours {
        return match opened {
            Err(OpenBackupError::Store(error)) if error.is_transient() => Err(error),
            _ => Ok((None, point)),
        };
    }
    let there = |key| is_there(repository.store(), &key);
    let digest = opened.as_ref().ok().and_then(|(_, digest)| *digest);
    let standing = retention::standing(repository.store(), id, digest, trust, now)?;
    let signature = if trust.is_some() { SignatureState::Valid } else { SignatureState::NotChecked };
    let seen = match opened {
        Ok((manifest, _)) => Some(seen(id, Some(&manifest), signature, &standing, None)),
        Err(OpenBackupError::Store(error)) if error.is_transient() => return Err(error),
        // A signature without a manifest is of one that was lost, or is being pruned.
        Err(_) if !there(layout::manifest(id))? => {
            let pruned = standing.pins.is_empty() && standing.expired.as_ref().is_some_and(|expiry| expiry.prune_after <= now);
            let lost = there(layout::manifest_bundle(id))? && !pruned;
            let problem = "its manifest is missing: it did not finish, or was damaged".to_owned();
            lost.then(|| seen(id, None, SignatureState::NotChecked, &standing, Some(problem)))
        }
        Err(error) => {
            let problem = Some(causes::joined(&error));
            let peeked = opened_backup::peek(repository, id).ok();
            let signature = if trust.is_some() && peeked.is_some() { SignatureState::NotValid } else { SignatureState::NotChecked };
            Some(seen(id, peeked.as_ref(), signature, &standing, problem))
        }
    };
    Ok((seen, point))
}

fn seen(id: &BackupId, manifest: Option<&Manifest>, signature: SignatureState, standing: &Standing, problem: Option<String>) -> BackupSeen {
    let postgres = manifest.and_then(|manifest| manifest.postgres.as_ref());
    let physical = postgres.and_then(|postgres| postgres.physical.as_ref());
    BackupSeen {
        id: id.to_string(),
        started: manifest.map(|manifest| manifest.started),
        ended: manifest.map(|manifest| manifest.finished),
        consistent_at: physical.map(|physical| physical.consistent_at),
        state: match manifest.map(|manifest| manifest.state) {
            None => BackupState::Unreadable,
            Some(State::Healthy) => BackupState::Healthy,
            Some(State::Degraded) => BackupState::Degraded,
        },
        signature,
        copy: postgres
            // One that is only named is not there.
            .filter(|postgres| postgres.copy != CopyMethod::Recorded)
            .map(|postgres| format!("{:?}", postgres.copy).to_lowercase()),
        postgres: postgres.and_then(|postgres| postgres.version_num).map(|version| version / 10_000),
        files: manifest.map_or(0, |manifest| manifest.files),
        plain_bytes: manifest.map_or(0, |manifest| manifest.plain_bytes),
        stored_bytes: manifest.map_or(0, |manifest| manifest.stored_bytes),
        artifacts: manifest.and_then(|manifest| manifest.artifacts.as_ref()).map(|artifacts| artifacts.count),
        missing_artifacts: manifest
            .and_then(|manifest| manifest.artifacts.as_ref()?.references.as_ref())
            .map_or(0, |references| references.missing_count),
        pins: standing.pins.iter().map(|pin| pin.name.clone()).collect(),
        whole_until: standing.expired.as_ref().map(|expiry| expiry.prune_after),
        problem,
    }
}

/// The newest drills of a system, newest first.
///
/// # Errors
///
/// The store.
pub fn drills(repository: &Repository, trust: Option<&Trust>, system: &str, limit: usize) -> Result<DrillsSeen, EvidenceError> {
    let history = evidence::history(repository, trust, system, limit)?;
    let entries = history.entries.iter().rev().map(drill).collect();
    Ok(DrillsSeen { entries, older: history.older as u64, findings: history.findings })
}

fn drill(entry: &history::Entry) -> DrillSeen {
    let summary = entry.summary.as_ref();
    DrillSeen {
        id: entry.id.clone(),
        at: entry.at,
        verdict: entry.verdict(),
        rto_seconds: summary.and_then(|summary| summary.rto_seconds),
        verified_seconds: summary.and_then(|summary| summary.verified_seconds),
        rpo_seconds: summary.and_then(|summary| summary.rpo_seconds),
        backup: summary.map(|summary| summary.backup.clone()),
        signature: match &entry.signature {
            history::Signature::Valid { .. } => SignatureState::Valid,
            history::Signature::NotValid { .. } => SignatureState::NotValid,
            history::Signature::NotChecked => SignatureState::NotChecked,
        },
    }
}

fn moment(moment: &Moment) -> MomentSeen {
    MomentSeen { lsn: moment.lsn.to_string(), time: moment.time }
}

/// Windows that recovery can go to.
pub fn windows(survey: &Survey) -> Vec<WindowSeen> {
    let why = |gap: &Gap| gap.to_string();
    let window = |window: &Window| WindowSeen {
        timeline: window.path.timeline().0,
        from: moment(&window.from),
        to: moment(&window.to),
        except: window
            .except
            .iter()
            .map(|except| ExceptSeen { from: moment(&except.from), to: moment(&except.to), why: except.gap.as_ref().map(why) })
            .collect(),
        stopped_by: window.stopped_by.as_ref().map(why),
        backups: window.backups.len() as u64,
    };
    survey.windows.iter().map(window).collect()
}

/// Timelines in the archive.
pub fn timelines(survey: &Survey) -> Vec<TimelineSeen> {
    let seen = |state: &lifeboat_core::wal::catalog::TimelineState| TimelineSeen {
        timeline: state.timeline.0,
        from: state.first.map(|lsn| lsn.to_string()),
        to: state.last.map(|lsn| lsn.to_string()),
        segments: state.segments,
        stored_bytes: state.stored_bytes,
        gaps: state.gaps.iter().map(ToString::to_string).collect(),
    };
    survey.timelines.iter().map(seen).collect()
}

/// Slots of the server that hold WAL; `ours` is the name of the receiver's.
pub fn slots(server: &ServerWal, ours: &str) -> Vec<SlotSeen> {
    let physical = server.slots.iter().filter(|slot| slot.physical);
    let seen = physical.map(|slot| SlotSeen {
        name: slot.name.clone(),
        ours: slot.name == ours,
        active: slot.active,
        wal_status: slot.wal_status.clone(),
        held_bytes: slot.restart_lsn.map_or(0, |lsn| server.position.0.saturating_sub(lsn.0)),
        safe_bytes: slot.safe_wal_bytes,
    });
    seen.collect()
}

/// The file system that something is on, or will be once it is made.
///
/// # Errors
///
/// It cannot be looked at.
pub fn disk(what: &str, path: &Path) -> std::io::Result<DiskSeen> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let facts = rustix::fs::statvfs(there)?;
    Ok(DiskSeen {
        what: what.to_owned(),
        path: path.display().to_string(),
        free_bytes: facts.f_bavail.saturating_mul(facts.f_frsize),
        total_bytes: facts.f_blocks.saturating_mul(facts.f_frsize),
    })
}

/// The number of the file system that something is on, or will be once it is made.
pub fn device(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    path.ancestors().find_map(|path| std::fs::metadata(path).ok()).map(|meta| meta.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_keeps_nobody_and_what_fails_is_told() {
        assert_eq!(within(Duration::from_secs(60), || 7), Ok(7));
        let hangs = within(Duration::from_millis(10), || std::thread::sleep(Duration::from_secs(600)));
        assert!(hangs.unwrap_err().contains("did not answer"));
        let bug = within(Duration::from_secs(60), || assert!(std::env::args().count() > 9999, "on purpose"));
        assert!(bug.unwrap_err().contains("a bug"));
    }

    #[test]
    fn a_disk_is_that_of_what_is_not_there_yet_too() {
        let place = tempfile::tempdir().unwrap();
        let (there, not_yet) = (disk("x", place.path()).unwrap(), disk("x", &place.path().join("a/b/c")).unwrap());
        assert!(there.total_bytes > 0 && there.total_bytes == not_yet.total_bytes && there.free_bytes <= there.total_bytes);
    }
}
