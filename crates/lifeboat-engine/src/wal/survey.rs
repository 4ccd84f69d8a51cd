//! What a repository can bring back of a cluster, and when the last of it was written: for people who ask "to when can I go back?".

use jiff::Timestamp;
use lifeboat_core::repository::layout;
use lifeboat_core::wal::catalog::{Archive, BackupPoint, TimelineState, Window};
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::{Lsn, Segment, SystemId, Timeline};
use serde::Serialize;

use super::object::{WalError, WalReader};
use super::{Cluster, archive};
use crate::keys::Identities;
use crate::opened_backup::{self, OpenBackupError};
use crate::repository::{Repository, RepositoryError};
use crate::signing::Trust;
use crate::store::StoreError;

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
    /// When the piece was signed with which that archive ends; `None`: it ends with a segment.
    #[serde(skip)]
    pub last_piece: Option<Timestamp>,
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
    let cluster = Cluster { system_id, segment_size: archive.segment_size() };
    let reader = WalReader::new(repository, cluster, trust, Identities::default());
    let mut time = |timeline, lsn| last_commit_in(&reader, archive.files_before(timeline, lsn, LOOK_BACK));
    let mut windows = archive.windows(&backups, &mut time);
    let timelines = archive.state();
    let present = archive.present(server);
    // A clone's, which began where the server's archive ends, tells of the server's moments; and is not how they are gone back to.
    if let Some(present) = present.filter(|present| !windows.iter().any(|window| window.path.timeline() == *present)) {
        windows.extend(archive.window_along(present, &backups, &mut time));
        windows.sort_by_key(|window| window.path.timeline());
    }
    let state = timelines.iter().find(|state| Some(state.timeline) == present);
    let last_commit = state.and_then(|state| time(state.timeline, state.last?));
    let last_piece = state.map(|state| last_piece(&reader, state)).transpose().map_err(WalError::from)?.flatten();
    let has_backups = !backups.is_empty();
    Ok(Some(Survey { system_id, timelines, windows, not_counted, last_commit, last_piece, present, has_backups, archive }))
}

/// Time of the last commit that is known to be before `lsn` in the archive of a timeline, without the timelines that it descends from.
pub(crate) fn last_commit_before(archive: &Archive, reader: &WalReader<'_>, timeline: Timeline, lsn: Lsn) -> Option<Timestamp> {
    let files = archive.files_before(timeline, lsn, LOOK_BACK);
    last_commit_in(reader, files.into_iter().filter(|file| file.timeline() == timeline))
}

/// The first time of these. Only what is signed is believed; what cannot be read tells nothing.
fn last_commit_in(reader: &WalReader<'_>, files: impl IntoIterator<Item = WalFile>) -> Option<Timestamp> {
    files.into_iter().find_map(|file| reader.head(file).ok()?.predicate.summary?.last_time)
}

/// When the piece was signed with which the archive of a timeline ends. Where two receivers stored the same, the first one says it.
fn last_piece(reader: &WalReader<'_>, state: &TimelineState) -> Result<Option<Timestamp>, StoreError> {
    let Cluster { system_id, segment_size } = reader.cluster();
    let Some(open) = state.open.as_ref().filter(|open| Some(open.to) == state.last && open.pieces.len() == 1) else { return Ok(None) };
    let segment = Segment::containing(state.timeline, open.from, segment_size);
    let after = WalFile::Segment(segment).key(system_id, segment_size);
    let listed = reader.repository().store().list_after(&layout::wal_timeline(system_id, state.timeline), &after)?;
    let is_last = |file: &WalFile| matches!(file, WalFile::Piece { segment: of, to, .. } if *of == segment && open.from.0 + u64::from(*to) == open.to.0);
    let pieces = listed.iter().filter_map(|listed| WalFile::from_key(&listed.key, system_id, segment_size)).filter(is_last);
    Ok(pieces.filter_map(|piece| reader.head(piece).ok()?.predicate.signed).min())
}

#[cfg(test)]
mod tests {
    use lifeboat_core::wal::record::Summary;

    use super::super::archive::tests::{CLUSTER, Place, segment};
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn committed(seconds: i64) -> Option<Summary> {
        Some(Summary { last_time: Some(at(seconds)), ..Summary::default() })
    }

    fn backup(timeline: u32, start: u64, stop: u64) -> BackupPoint {
        BackupPoint {
            id: "a".into(),
            timeline: Timeline(timeline),
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            consistent_at: at(0),
            degraded: false,
            wal_included: true,
        }
    }

    fn seen(place: &Place, server: Option<u32>, points: &[BackupPoint]) -> Survey {
        let backups = || Ok((points.to_vec(), Vec::new()));
        survey_with(&place.repository, CLUSTER.system_id, server.map(Timeline), &place.trust, backups).unwrap().unwrap()
    }

    #[test]
    fn what_a_clone_commits_is_not_what_the_server_does() {
        let place = Place::new();
        place.put(WalFile::Segment(segment(1, 1)), committed(10));
        place.put(WalFile::Segment(segment(1, 2)), committed(20));
        place.put_history(3, "1\t0/2800000\tno recovery target specified\n");
        place.put(WalFile::Segment(segment(3, 2)), committed(1000));
        place.put(WalFile::Segment(segment(3, 3)), committed(2000));
        let points = [backup(1, 0x100_0028, 0x100_0100)];
        assert_eq!(seen(&place, Some(1), &points).last_commit, Some(at(20)));
        assert_eq!(seen(&place, Some(3), &points).last_commit, Some(at(2000)));
        assert_eq!(seen(&place, None, &points).last_commit, Some(at(2000)));
        assert_eq!(seen(&place, Some(4), &points).last_commit, None);
        // Consistent only behind the switch: on the branch that was left.
        let late = [backup(1, 0x200_0028, 0x290_0000)];
        assert!(seen(&place, Some(3), &late).is_stranded());
        assert!(!seen(&place, Some(1), &late).is_stranded() && !seen(&place, Some(3), &points).is_stranded());
        assert!(!seen(&place, Some(3), &[]).is_stranded() && !seen(&place, Some(4), &late).is_stranded());
    }

    #[test]
    fn c060_behind_a_promotion_the_last_commit_is_that_of_the_timeline_before() {
        let place = Place::new();
        place.put(WalFile::Segment(segment(1, 1)), committed(10));
        // The old primary went on in the segment in which it was left.
        place.put(WalFile::Segment(segment(1, 2)), committed(5000));
        place.put_history(2, "1\t0/2800000\tno recovery target specified\n");
        let begun = Timestamp::now().as_second();
        place.put(WalFile::Piece { segment: segment(2, 2), from: 0, to: 0x90_0000 }, None);
        let points = [backup(1, 0x100_0028, 0x100_0100)];
        let survey = seen(&place, Some(2), &points);
        assert_eq!(survey.last_commit, Some(at(10)));
        // The piece has no summary, and says that it was there.
        assert!(survey.last_piece.is_some_and(|signed| signed.as_second() >= begun), "{:?}", survey.last_piece);
        place.put(WalFile::Piece { segment: segment(2, 2), from: 0x90_0100, to: 0x90_0200 }, None);
        assert_eq!(seen(&place, Some(2), &points).last_piece, None, "behind a hole");
        assert_eq!(seen(&place, Some(1), &points).last_piece, None, "whole segments");
        // Of its own, a timeline of pieces says nothing of commits: what is pruned goes by that.
        let reader = WalReader::new(&place.repository, CLUSTER, &place.trust, Identities::default());
        assert_eq!(last_commit_before(survey.archive(), &reader, Timeline(2), Lsn(0x290_0000)), None);
    }
}
