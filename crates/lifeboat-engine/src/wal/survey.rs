//! What a repository can bring back of a cluster, and when the last of it was written: for people who ask "to when can I go back?".

use jiff::Timestamp;
use lifeboat_core::wal::catalog::{Archive, BackupPoint, TimelineState, Window};
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::{Lsn, Segment, SystemId, Timeline};
use serde::Serialize;

use super::archive;
use super::object::{WalError, WalReader};
use crate::keys::Identities;
use crate::opened_backup::{self, OpenBackupError};
use crate::repository::{Repository, RepositoryError};
use crate::signing::Trust;

/// Segments that are looked at for the time of a last commit: a quiet server fills many without one.
const LOOK_BACK: u64 = 64;

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Backups could not be listed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// WAL could not.
    #[error(transparent)]
    Wal(#[from] WalError),
}

/// What there is of one cluster.
#[derive(Debug, Serialize)]
pub struct Survey {
    /// The cluster.
    pub system_id: SystemId,
    /// Its timelines: ranges and gaps.
    pub timelines: Vec<TimelineState>,
    /// Moments that can be gone back to.
    pub windows: Vec<Window>,
    /// Backups and files of WAL that do not count, and why: unsigned, damaged.
    pub not_counted: Vec<String>,
    /// Time of the last commit that the archive has of the timeline on which the present lies ([`Archive::present`]).
    pub last_commit: Option<Timestamp>,
    #[serde(skip)]
    present: Option<Timeline>,
    #[serde(skip)]
    has_backups: bool,
    #[serde(skip)]
    archive: Archive,
}

impl Survey {
    /// Where the archive of a timeline ends.
    pub fn end(&self, timeline: Timeline) -> Option<Lsn> {
        self.timelines.iter().find(|state| state.timeline == timeline).and_then(|state| state.last)
    }

    /// There are backups, and none leads along the timeline on which the present lies: what is committed on it cannot be brought back, though
    /// it arrives. (That its history is missing is another thing, and so is that there is no backup yet.)
    pub fn is_stranded(&self) -> bool {
        self.has_backups
            && self.present.is_some_and(|present| {
                let leads = self.windows.iter().any(|window| window.path.timeline() == present);
                !leads && self.archive.has_wal(present) && self.archive.path(present).is_ok()
            })
    }

    /// The archive itself.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }
}

/// The physical backups of a cluster whose signatures verify, oldest first, and what is wrong with the others.
pub fn backups(repository: &Repository, system_id: SystemId, trust: &Trust) -> Result<(Vec<BackupPoint>, Vec<String>), RepositoryError> {
    let (mut points, mut not_counted) = (Vec::new(), Vec::new());
    for id in repository.backups()? {
        match opened_backup::open(repository, &id, trust) {
            Ok(backup) => points.extend(BackupPoint::of(&backup.manifest, system_id)),
            // It may count: again later. What a store refuses for good must not keep the other backups from being used.
            Err(OpenBackupError::Store(error)) if error.is_transient() => return Err(error.into()),
            Err(error) => not_counted.push(format!("backup {id} does not count: {error}")),
        }
    }
    Ok((points, not_counted))
}

/// Looks at what a repository has of a cluster whose server, if one was asked, is on this timeline. `None`: no WAL of it.
pub fn survey(
    repository: &Repository,
    system_id: SystemId,
    server: Option<Timeline>,
    trust: &Trust,
) -> Result<Option<Survey>, SurveyError> {
    survey_with(repository, system_id, server, trust, || backups(repository, system_id, trust))
}

/// The same for whoever has looked at the backups already: `backups` are those that [`backups`] would find.
pub fn survey_with(
    repository: &Repository,
    system_id: SystemId,
    server: Option<Timeline>,
    trust: &Trust,
    backups: impl FnOnce() -> Result<(Vec<BackupPoint>, Vec<String>), RepositoryError>,
) -> Result<Option<Survey>, SurveyError> {
    let Some(archive) = archive::load(repository, system_id, trust)? else { return Ok(None) };
    let (backups, mut not_counted) = backups()?;
    not_counted.extend_from_slice(archive.doubts());
    let cluster = super::Cluster { system_id, segment_size: archive.segment_size() };
    let reader = WalReader::new(repository, cluster, trust, Identities::default());
    let mut time = |timeline, lsn| last_commit_before(&archive, &reader, timeline, lsn);
    let mut windows = archive.windows(&backups, &mut time);
    let timelines = archive.state();
    let present = archive.present(server);
    // A clone's, which began where the server's archive ends, tells of the server's moments; and is not how they are gone back to.
    if let Some(present) = present.filter(|present| !windows.iter().any(|window| window.path.timeline() == *present)) {
        windows.extend(archive.window_along(present, &backups, &mut time));
        windows.sort_by_key(|window| window.path.timeline());
    }
    let end = timelines.iter().find(|state| Some(state.timeline) == present).and_then(|state| state.last);
    let last_commit = present.zip(end).and_then(|(present, end)| time(present, end));
    let has_backups = !backups.is_empty();
    Ok(Some(Survey { system_id, timelines, windows, not_counted, last_commit, present, has_backups, archive }))
}

/// Time of the last commit that is known to be before `lsn` on a timeline. Only what is signed is believed; what cannot be read tells nothing.
pub(crate) fn last_commit_before(archive: &Archive, reader: &WalReader<'_>, timeline: Timeline, lsn: Lsn) -> Option<Timestamp> {
    let size = archive.segment_size();
    let mut segment = Segment::ending_at(timeline, lsn, size);
    for _ in 0..LOOK_BACK {
        let found = [WalFile::Segment(segment), WalFile::Partial(segment)]
            .into_iter()
            .find_map(|file| reader.head(file).ok()?.predicate.summary)
            .and_then(|summary| summary.last_time);
        if found.is_some() {
            return found;
        }
        segment = Segment { number: segment.number.checked_sub(1)?, ..segment };
    }
    None
}
