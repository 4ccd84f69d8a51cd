//! Brings a file of the archive to a server in recovery, or proves that the archive ends before it.
//!
//! A file gets its name (`%p`) when it is whole and verified, never before. Every doubt is an error: only [`Fetched::AfterEnd`] may be told
//! to a server as "there is no more", because a server that hears that takes up writing.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lifeboat_core::repository::{Descriptor, FormatError, layout};
use lifeboat_core::wal::catalog::{Absence, Archive};
use lifeboat_core::wal::fetch::{Bounds, Lost, OpenSegment, join};
use lifeboat_core::wal::file::{GapRecord, WalFile};
use lifeboat_core::wal::history::{History, MAX_HISTORY_BYTES};
use lifeboat_core::wal::{LONG_HEADER_BYTES, Lsn, Segment, SystemId, check_segment_header};

use super::{Cluster, WalError, WalReader};
use crate::store::{Store, StoreError};

/// Between two looks at a hole.
const LOOK: Duration = Duration::from_millis(300);

/// Why a file was neither brought nor proven to be behind the end.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It could not be read, or is not what was written.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The store could not say what it has.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The repository is not in the format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The repository was there, and then it was not, or another was in its place.
    #[error("find {file} in {url}: the repository went away meanwhile")]
    Vanished {
        /// What was looked for.
        file: String,
        /// The repository.
        url: String,
    },
    /// The repository has nothing of the cluster at all.
    #[error("find {file}: {url} has no WAL of cluster {system_id}")]
    UnknownCluster {
        /// What was looked for.
        file: String,
        /// The repository.
        url: String,
        /// The cluster.
        system_id: SystemId,
    },
    /// The archive says that its segments have another size: every name means another place.
    #[error("find {file}: the archive has segments of {theirs} bytes, this cluster of {ours}")]
    OtherSize {
        /// What was looked for.
        file: String,
        /// The archive's.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// It is not there, but the archive does not end before it.
    #[error("find {file}: it is missing, but the archive does not end before it: {evidence}")]
    Gap {
        /// What was looked for.
        file: String,
        /// What says so.
        evidence: String,
    },
    /// Its pieces do not hold the same bytes where they overlap.
    #[error("join the pieces of {file}: they differ where they overlap")]
    Differs {
        /// The segment.
        file: String,
    },
    /// The file that the server waits for could not be written.
    #[error("{action} {path}")]
    Target {
        /// What was done.
        action: &'static str,
        /// To what.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a server may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// It is there.
    Whole,
    /// It is there, put together from what the archive has of it, and zeros behind that.
    Open {
        /// How many of its bytes are from the archive.
        bytes: u32,
        /// There are pieces behind a hole as well, which are of no use.
        left_out: bool,
    },
    /// The archive was looked through: it ends before this file, or the file is not of the history.
    AfterEnd,
    /// The archive cannot bring it, and it lies in the restored `pg_wal`: the server is to take that.
    Own,
}

impl Fetched {
    /// Whether there is a file at the target.
    pub fn is_there(&self) -> bool {
        matches!(self, Self::Whole | Self::Open { .. })
    }
}

/// Brings files of one cluster.
pub struct Fetcher<'a> {
    reader: &'a WalReader<'a>,
    bounds: &'a Bounds,
    allow_empty: bool,
    patience: Duration,
}

/// What it means that the archive does not have a file whole.
enum Missing {
    /// It ends before it.
    AfterEnd,
    /// It is the last segment of its timeline, and there in parts, of which the `.partial` ends here.
    Open(OpenSegment, Option<Lsn>),
    /// It came while we looked.
    Appeared,
    /// A history whose file is not there, as another one tells it.
    Told(History),
}

impl<'a> Fetcher<'a> {
    /// `bounds`: what the plan of the restore says. `allow_empty`: that the archive has nothing of this cluster is no surprise.
    pub fn new(reader: &'a WalReader<'a>, bounds: &'a Bounds, allow_empty: bool) -> Self {
        Self { reader, bounds, allow_empty, patience: Duration::ZERO }
    }

    /// A hole behind what was promised is looked at again for so long before it counts.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn cluster(&self) -> Cluster {
        self.reader.cluster()
    }

    fn name(&self, file: WalFile) -> String {
        file.file_name(self.cluster().segment_size)
    }

    /// Brings `file` to `target`.
    pub fn fetch(&self, file: WalFile, target: &Path) -> Result<Fetched, FetchError> {
        let size = self.cluster().segment_size;
        let mut own = None;
        if let WalFile::Segment(segment) = file {
            // Of another history, whether it is there or not.
            if self.bounds.is_beside(segment, size) {
                return Ok(Fetched::AfterEnd);
            }
            // Of the segment in which the backup ends it has the beginning: that does only for whom it is enough.
            let is_enough =
                |until: &Lsn| *until == segment.next().start(size) || self.bounds.promise.is_none_or(|promise| promise.lsn <= *until);
            own = self.bounds.own.and_then(|own| own.until(segment, size)).filter(is_enough);
        }
        let begun = Instant::now();
        let mut came = 0;
        // Once more, if it came while we looked.
        while came < 2 {
            match self.whole(file, target) {
                Ok(()) => return Ok(Fetched::Whole),
                Err(FetchError::Wal(error)) if error.is_absence() => {}
                Err(error) if own.is_some() && damage(&error).is_some() => return Ok(Fetched::Own),
                Err(error) => return Err(error),
            }
            match self.missing(file) {
                Ok(Missing::Appeared) => came += 1,
                Ok(Missing::Open(open, partial_end)) => {
                    let reach = open.with_partial(partial_end, size).unwrap_or(open.joined_to);
                    // The file would take the place of the one that is there, which goes further.
                    if own.is_some_and(|own| open.segment.start(size).0 + u64::from(reach) < own.0) {
                        return Ok(Fetched::Own);
                    }
                    return self.open(&open, partial_end, target);
                }
                Ok(Missing::AfterEnd) => return Ok(Fetched::AfterEnd),
                Ok(Missing::Told(history)) => {
                    let failed = |source| FetchError::Target { action: "write", path: target.display().to_string(), source };
                    let mut landing = Landing::new(target)?;
                    landing.file.write_all(&history.to_bytes()).map_err(failed)?;
                    landing.finish()?;
                    return Ok(Fetched::Whole);
                }
                Err(FetchError::Gap { .. }) if own.is_some() => return Ok(Fetched::Own),
                Err(FetchError::Gap { .. }) if self.may_come(file) && begun.elapsed() < self.patience => thread::sleep(LOOK),
                Err(error) => return Err(error),
            }
        }
        let key = file.key(self.cluster().system_id, self.cluster().segment_size);
        Err(StoreError::NotFound { key: key.to_string() }.into())
    }

    /// Whether a hole may be none: a server that still archives stores several segments at once, and the later one may be there first. What was
    /// promised was there when the restore was planned.
    fn may_come(&self, file: WalFile) -> bool {
        let WalFile::Segment(segment) = file else { return false };
        self.bounds.promise.is_none_or(|promise| promise.lsn <= segment.start(self.cluster().segment_size))
    }

    /// Brings a file that the archive has whole, and of a segment only what is of the history; everything else is an error
    /// ([`WalError::is_absence`]).
    pub(crate) fn whole(&self, file: WalFile, target: &Path) -> Result<(), FetchError> {
        // Begun anew with every copy: the bytes of a damaged one have landed when it shows.
        let land = |store: &dyn Store| {
            let mut landing = Landing::new(target)?;
            read_whole(self.reader, store, file, &mut landing.file)?;
            Ok(landing)
        };
        let landing = self.reader.in_any_copy(file, land, damage)?;
        if let WalFile::Segment(segment) = file {
            self.cut(&landing, segment, target)?;
        }
        landing.finish()
    }

    /// Takes out of a segment what is not of the history: zeros, as in a segment that was not written to its end.
    fn cut(&self, landing: &Landing, segment: Segment, target: &Path) -> Result<(), FetchError> {
        let size = self.cluster().segment_size;
        let Some(until) = self.bounds.belongs_until(segment, size) else { return Ok(()) };
        let failed = |source| FetchError::Target { action: "write", path: target.display().to_string(), source };
        let keep = until.0.saturating_sub(segment.start(size).0);
        landing.file.set_len(keep).and_then(|()| landing.file.set_len(size.bytes())).map_err(failed)
    }

    /// Asks what the archive has at the place of a file that it does not have, and behind it.
    fn missing(&self, file: WalFile) -> Result<Missing, FetchError> {
        let Cluster { system_id, segment_size } = self.cluster();
        let repository = self.reader.repository();
        let (store, url) = (repository.store(), || repository.store().url().to_owned());
        let unknown = store.list_segments(&layout::wal_of(system_id))?.is_empty();
        if unknown && !self.allow_empty {
            return Err(FetchError::UnknownCluster { file: self.name(file), url: url(), system_id });
        }
        if let Some(described) = super::cluster(repository, system_id)?
            && described.segment_size != segment_size
        {
            let (theirs, ours) = (described.segment_size.bytes(), segment_size.bytes());
            return Err(FetchError::OtherSize { file: self.name(file), theirs, ours });
        }
        let prefix = layout::wal_timeline(system_id, file.timeline());
        let mut listed = match file {
            // Everything of this segment sorts behind its own key.
            WalFile::Segment(_) => store.list_after(&prefix, &file.key(system_id, segment_size))?,
            _ => store.list(&prefix)?,
        };
        // It may have come between the first look and the listing, which does not show it.
        let key = file.key(system_id, segment_size);
        match store.length(&key) {
            Ok(bytes) => listed.push(crate::store::Listed { key, bytes }),
            Err(error) if error.is_absence() => {}
            Err(error) => return Err(error.into()),
        }
        // Nor may it show the newest one yet, which proves that the archive goes on behind a hole (c102).
        if let WalFile::Segment(segment) = file {
            let key = WalFile::Segment(segment.next()).key(system_id, segment_size);
            match store.length(&key) {
                Ok(bytes) => listed.push(crate::store::Listed { key, bytes }),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut archive = Archive::new(system_id, segment_size);
        let mut files = Vec::new();
        for listed in &listed {
            if let Some(file) = WalFile::from_key(&listed.key, system_id, segment_size) {
                archive.add(file, listed.bytes);
                files.push(file);
            }
        }
        for name in &store.list_segments(&layout::wal_of(system_id))? {
            if let Ok(history @ WalFile::History(timeline)) = WalFile::from_file_name(name, segment_size) {
                let bytes = self.reader.read_bytes(history, MAX_HISTORY_BYTES as u64)?;
                let key = history.key(system_id, segment_size).to_string();
                let parsed = History::parse(timeline, &bytes).map_err(|e| WalError::Damaged { key, problem: e.to_string() })?;
                archive.add_history(parsed);
            }
        }
        for gap in store.list(&layout::wal_gaps(system_id))? {
            if Lost::from_key(&gap.key).is_some_and(|lost| lost.timeline == file.timeline()) {
                let bytes = repository.document(&gap.key)?.unwrap_or_default();
                let damaged = |e: serde_json::Error| WalError::Damaged { key: gap.key.to_string(), problem: e.to_string() };
                archive.add_gap(serde_json::from_slice::<GapRecord>(&bytes).map_err(damaged)?);
            }
        }
        let mut partial_end = None;
        if let WalFile::Segment(segment) = file
            && files.contains(&WalFile::Partial(segment))
        {
            partial_end = self.reader.head(WalFile::Partial(segment))?.predicate.summary.and_then(|summary| summary.end);
            archive.set_partial_end(segment, partial_end);
        }
        // A directory that is unmounted in the middle looks empty. Then its descriptor is not there either.
        let again = repository.document(&layout::descriptor())?.map(|bytes| Descriptor::decode(&bytes)).transpose()?;
        if again.is_none_or(|again| again.repository != repository.descriptor().repository) {
            return Err(FetchError::Vanished { file: self.name(file), url: url() });
        }
        if files.contains(&file) {
            return Ok(Missing::Appeared);
        }
        if let WalFile::History(timeline) = file
            && let Some(history) = archive.told_history(timeline)
        {
            return Ok(Missing::Told(history));
        }
        match archive.absence(file, self.bounds.promise) {
            Absence::AfterEnd => Ok(Missing::AfterEnd),
            Absence::Gap { evidence, .. } => Err(FetchError::Gap { file: self.name(file), evidence }),
            Absence::None => match file {
                WalFile::Segment(segment) => Ok(Missing::Open(join(segment, &files), partial_end)),
                // A `.partial` of which there are pieces; a history that came meanwhile.
                _ => Ok(Missing::Appeared),
            },
        }
    }

    /// Puts the last segment of a timeline together from what there is of it.
    fn open(&self, open: &OpenSegment, partial_end: Option<Lsn>, target: &Path) -> Result<Fetched, FetchError> {
        let Cluster { segment_size, .. } = self.cluster();
        let name = self.name(WalFile::Segment(open.segment));
        let mut landing = Landing::new(target)?;
        let failed = |source| FetchError::Target { action: "write", path: target.display().to_string(), source };
        io::copy(&mut io::Read::take(io::repeat(0), segment_size.bytes()), &mut landing.file).map_err(failed)?;

        let partial = WalFile::Partial(open.segment);
        let from_partial = open.with_partial(partial_end, segment_size);
        let reach = from_partial.unwrap_or(open.joined_to);
        if let Some(reach) = from_partial {
            let place = |store: &dyn Store| {
                let mut placed = Placed { file: &landing.file, at: 0, joined: 0, end: u64::from(reach), differs: false };
                let head = self.reader.read_copy(store, partial, &mut placed)?;
                self.expect_bytes(partial, head.predicate.bytes, segment_size.bytes())
            };
            self.reader.in_any_copy(partial, place, damage)?;
        } else {
            let mut joined = 0;
            for piece in &open.pieces {
                let WalFile::Piece { from, to, .. } = *piece else { continue };
                let place = |store: &dyn Store| {
                    let mut placed = Placed { file: &landing.file, at: from.into(), joined, end: to.into(), differs: false };
                    let head = self.reader.read_copy(store, *piece, &mut placed)?;
                    if placed.differs {
                        return Err(FetchError::Differs { file: name.clone() });
                    }
                    self.expect_bytes(*piece, head.predicate.bytes, u64::from(to - from))
                };
                self.reader.in_any_copy(*piece, place, damage)?;
                joined = u64::from(to);
            }
        }
        if u64::from(reach) >= LONG_HEADER_BYTES as u64 {
            let mut header = [0; LONG_HEADER_BYTES];
            landing.file.read_exact_at(&mut header, 0).map_err(failed)?;
            check_segment_header(&header, open.segment, segment_size, self.cluster().system_id).map_err(WalError::from)?;
        }
        self.cut(&landing, open.segment, target)?;
        landing.finish()?;
        Ok(Fetched::Open { bytes: reach, left_out: from_partial.is_none() && open.left_out })
    }

    fn expect_bytes(&self, file: WalFile, bytes: u64, expected: u64) -> Result<(), FetchError> {
        expect_bytes(self.cluster(), file, bytes, expected).map_err(FetchError::from)
    }
}

/// What is wrong with a copy, if that is why it was no good.
fn damage(error: &FetchError) -> Option<String> {
    if let FetchError::Wal(error) = error { error.damage() } else { None }
}

fn expect_bytes(cluster: Cluster, file: WalFile, bytes: u64, expected: u64) -> Result<(), WalError> {
    if bytes == expected {
        return Ok(());
    }
    let key = file.key(cluster.system_id, cluster.segment_size).to_string();
    Err(WalError::Damaged { key, problem: format!("it was signed with {bytes} bytes instead of {expected}") })
}

/// Reads a whole file of the archive, and checks that a segment is one and the one that its name says: a server takes whatever is not WAL
/// in a segment for the end of all WAL.
pub(super) fn read_whole(reader: &WalReader<'_>, store: &dyn Store, file: WalFile, out: &mut dyn Write) -> Result<(), WalError> {
    let Cluster { system_id, segment_size } = reader.cluster();
    let mut start = Start { out, first: Vec::with_capacity(LONG_HEADER_BYTES) };
    let head = reader.read_copy(store, file, &mut start)?;
    if let WalFile::Segment(segment) | WalFile::Partial(segment) = file {
        expect_bytes(reader.cluster(), file, head.predicate.bytes, segment_size.bytes())?;
        let header = start.first.first_chunk().expect("a segment is longer than its header");
        check_segment_header(header, segment, segment_size, system_id)?;
    }
    Ok(())
}

/// Keeps the first bytes that go by.
struct Start<'a> {
    out: &'a mut dyn Write,
    first: Vec<u8>,
}

impl Write for Start<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        let missing = LONG_HEADER_BYTES - self.first.len();
        self.first.extend_from_slice(&bytes[..written.min(missing)]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a piece to its place, and compares it with what others brought there.
struct Placed<'a> {
    file: &'a File,
    at: u64,
    /// Up to here others have been.
    joined: u64,
    /// What is behind this is left out.
    end: u64,
    differs: bool,
}

impl Write for Placed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len();
        let bytes = &bytes[..length.min(usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX))];
        let known = usize::try_from(self.joined.saturating_sub(self.at)).unwrap_or(usize::MAX).min(bytes.len());
        let (old, new) = bytes.split_at(known);
        let mut there = vec![0; known];
        self.file.read_exact_at(&mut there, self.at)?;
        self.differs |= there != old;
        self.file.write_all_at(new, self.at + known as u64)?;
        self.at += bytes.len() as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file on its way to the name under which the server waits for it: beside it, so that it gets that name at once and whole.
///
/// It is not synced. The server reads it through the same page cache, and gives it its last name with `durable_rename`, which syncs it
/// (`KeepFileRestoredFromArchive` in `src/backend/access/transam/xlogarchive.c`); after a crash before that it asks for it again.
pub(super) struct Landing {
    pub(super) file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Landing {
    pub(super) fn new(target: &Path) -> Result<Self, FetchError> {
        let failed = |source| FetchError::Target { action: "write", path: target.display().to_string(), source };
        let name = target.file_name().and_then(|name| name.to_str()).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let stem = format!("{name}.lifeboat-");
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        clear(directory, &stem);
        let path = directory.join(format!("{stem}{}", crate::random::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        file.set_permissions(permissions_in(directory)).map_err(failed)?;
        let landing = Self { file, path, target: target.to_owned() };
        landing.file.try_lock().map_err(|error| failed(error.into()))?;
        Ok(landing)
    }

    /// Gives it its name.
    pub(super) fn finish(self) -> Result<(), FetchError> {
        fs::rename(&self.path, &self.target).map_err(|source| FetchError::Target {
            action: "write",
            path: self.target.display().to_string(),
            source,
        })
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // Fails where it has its name already.
        let _ = fs::remove_file(&self.path);
    }
}

/// What a file in `directory` may be read by: whoever may read the directory, as in all of a data directory (`initdb --allow-group-access`).
pub(super) fn permissions_in(directory: &Path) -> Permissions {
    let group = fs::metadata(directory).is_ok_and(|meta| meta.mode() & 0o040 != 0);
    Permissions::from_mode(if group { 0o640 } else { 0o600 })
}

/// Removes what fetches left that were killed: nobody holds the lock on it.
fn clear(directory: &Path, stem: &str) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(stem))
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The name of a segment in a cluster.
pub(super) fn segment_name(segment: Segment, cluster: Cluster) -> String {
    segment.file_name(cluster.segment_size)
}

#[cfg(test)]
mod tests;
