//! What all parts of a drill stand on: the repository, which is only read, whom to trust, what opens the backup, and the way through the
//! archive.

use std::path::Path;

use lifeboat_core::repository::manifest::{CopyMethod, Manifest};
use lifeboat_core::restore::{ArchiveRecovery, RestoreRequest};
use lifeboat_core::wal::catalog::{Archive, BackupPoint};
use lifeboat_core::wal::target::Choice;
use lifeboat_core::wal::{Segment, segments_between};

use crate::keys::Identities;
use crate::opened_backup::VerifiedBackup;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::signing::Trust;
use crate::store::{Change, Overlay, Store};
use crate::wal::locate::{self, LocateError};
use crate::wal::{self, Cluster, WalError, WalReader};
use lifeboat_core::repository::layout::Key;
use lifeboat_core::wal::catalog::Held;

/// How a drill gets at the repository: as any restore would, and as it would be without some of it. Errors are one line for people.
pub trait Places: Sync {
    /// As any restore would.
    fn open(&self) -> Result<Repository, String>;

    /// Without the primary, from what is in the other places. `None`: there is no other.
    fn without_primary(&self) -> Option<Result<Repository, String>>;

    /// As if these objects had been deleted from the primary: what the store keeps of them, and what other places have, is still there.
    fn primary_lost(&self, keys: &[Key]) -> Result<Repository, String>;
}

/// What a drill works on.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// The repository.
    pub places: &'a dyn Places,
    /// Whom to believe.
    pub trust: &'a Trust,
    /// What opens the backup.
    pub identities: &'a Identities,
    /// The backup.
    pub backup: &'a VerifiedBackup,
    /// The way through the archive, if there is one.
    pub way: Option<&'a Way>,
    /// Worker threads.
    pub workers: usize,
    /// Chooses what is sampled and what is broken; stands in the report, so that a drill can be repeated.
    pub seed: u64,
    /// For small files of a moment.
    pub temporary: &'a Path,
    /// Who watches.
    pub progress: &'a dyn Progress,
}

impl Ground<'_> {
    /// The repository, for reading only: whatever goes wrong in a drill, nothing is written through it.
    pub fn repository(&self) -> Result<Repository, String> {
        Ok(read_only(self.places.open()?))
    }

    /// The repository as it would be with these objects missing or damaged.
    pub fn changed(&self, changes: Vec<(Key, Change)>) -> Result<Repository, String> {
        let view = |store: Box<dyn Store>| -> Box<dyn Store> {
            Box::new(changes.into_iter().fold(Overlay::new(store), |view, (key, change)| view.with(key, change)))
        };
        Ok(self.places.open()?.seen(view))
    }
}

/// A repository for reading only.
pub fn read_only(repository: Repository) -> Repository {
    repository.seen(|store| Box::new(Overlay::new(store)))
}

/// How recovery goes through the archive.
#[derive(Debug, Clone)]
pub struct Way {
    /// The cluster.
    pub cluster: Cluster,
    /// What the archive has of it.
    pub archive: Archive,
    /// What was chosen.
    pub choice: Choice,
}

/// Why there is no way, though there is an archive.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// The archive could not be read.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The target was not found, or cannot be reached.
    #[error(transparent)]
    Locate(#[from] LocateError),
}

/// The way from one backup to a target. `None`: the archive has nothing that this backup needs; its own WAL is all there is.
pub fn way(
    repository: &Repository,
    trust: &Trust,
    identities: &Identities,
    backup: &VerifiedBackup,
    request: &RestoreRequest,
    temporary: &Path,
) -> Result<Option<Way>, WayError> {
    let postgres = backup.manifest.postgres.as_ref().filter(|postgres| postgres.physical.is_some());
    let Some(system_id) = postgres.and_then(|postgres| postgres.system_id).filter(|_| !request.standalone) else { return Ok(None) };
    let Some(point) = BackupPoint::of(&backup.manifest, system_id) else { return Ok(None) };
    let Some(archive) = wal::archive::load(repository, system_id, trust)? else { return Ok(None) };
    let cluster = Cluster { system_id, segment_size: archive.segment_size() };
    let reader = WalReader::new(repository, cluster, trust, identities.clone());
    let wanted = request.recovery_request(Some(backup.id.to_string()));
    let choice = locate::choose(&reader, &archive, std::slice::from_ref(&point), &wanted, temporary)?;
    let way = Way { cluster, archive, choice };
    Ok((!way.segments().is_empty()).then_some(way))
}

/// A request for everything that a backup has, into the directory of a place: data directory, every tablespace, artifacts.
pub fn into_place(mut request: RestoreRequest, manifest: &Manifest, directory: &Path) -> RestoreRequest {
    let text = |name: &str| directory.join(name).display().to_string();
    let database = manifest.postgres.as_ref().is_some_and(|postgres| postgres.copy != CopyMethod::Recorded);
    request.pgdata = database.then(|| text("pgdata"));
    request.artifacts = manifest.artifacts.as_ref().map(|_| text("artifacts"));
    let physical = manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref());
    let tablespaces = physical.map_or(&[][..], |physical| &physical.tablespaces);
    let elsewhere = tablespaces.iter().filter(|tablespace| tablespace.location.starts_with('/'));
    request.tablespaces =
        elsewhere.map(|tablespace| (tablespace.oid.to_string(), text(&format!("tablespaces/{}", tablespace.oid)))).collect();
    request
}

impl Way {
    /// The way as a restore plans with it. The command brings nothing: a drill's server is told where its WAL comes from when it is started.
    pub fn recovery(&self) -> ArchiveRecovery {
        ArchiveRecovery { choice: self.choice.clone(), restore_command: "false # a drill brings WAL itself".to_owned() }
    }

    /// The segments of the archive that recovery reads, oldest first, with how much of each there is.
    pub fn segments(&self) -> Vec<(Segment, Held)> {
        let Ok(path) = self.archive.path(self.choice.timeline) else { return Vec::new() };
        let size = self.cluster.segment_size;
        let numbers = segments_between(self.choice.timeline, self.choice.from, self.choice.to, size);
        let sources = numbers.filter_map(|segment| self.archive.source(&path, segment.start(size).max(self.choice.from)));
        sources.map(|segment| (segment, self.archive.held(segment))).collect()
    }

    /// The last whole segment of the archive that recovery reads.
    pub fn last_whole(&self) -> Option<Segment> {
        self.segments().into_iter().rev().find(|(_, held)| *held == Held::Whole).map(|(segment, _)| segment)
    }
}
