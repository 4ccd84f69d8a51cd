//! Segments fetched ahead of a server in recovery, in a directory of the user that the server runs as.
//!
//! A cache: whatever is odd in it is not used, and the segment is fetched anew. A file in it has a name with the CRC-32C of its bytes, and got
//! that name after the segment was verified; the directory is closed to everybody else, so what the checksum has to find is what a crash or
//! a disk leaves, not malice. (A digest against malice, made when it is written and again when it is read, would cost more than it is worth.) What was written a moment ago,
//! since the machine was started, comes from memory, as whatever is fetched without a spool does, and is handed over without being read: to read 16 MiB
//! took more than a third of a call. Whether the archive ends is never remembered here.
//! It must not stand in a data directory, which is backed up, and compared, and replaced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lifeboat_core::repository::Id;
use lifeboat_core::wal::Segment;
use lifeboat_core::wal::fetch::{has_time, is_ahead, wants_more};
use lifeboat_core::wal::file::WalFile;

use super::fetch::{FetchError, Landing, permissions_in, read_whole, segment_name};
use super::{Cluster, WalError, WalReader};
use crate::store::Store;

/// How many segments are fetched at once, at most: each has about 2 MiB of buffers, and all of its object from a remote store. More do not make one
/// store faster.
const MAX_AT_ONCE: usize = 8;

/// And for each processor, from a remote store: each waits for it about as long as it computes.
const AT_ONCE_PER_WORKER: usize = 2;

/// What always stays free on the spool's file system, which may be the server's: a tenth of it, at most this.
const MAX_RESERVE: u64 = 1 << 30;

/// How long a segment that is on its way may stand still before it is no longer waited for.
const STANDSTILL: Duration = Duration::from_millis(250);

/// How long it is waited for at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// How long after it was written a segment is handed over unread, if the machine was not started anew meanwhile.
const FRESH: Duration = Duration::from_secs(60);

/// Why the spool was not used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It stands in a data directory (c083).
    #[error("use spool {spool}: it is inside the data directory {data}")]
    InDataDirectory {
        /// The spool.
        spool: String,
        /// The data directory.
        data: String,
    },
    /// Others could have written into it.
    #[error("use spool {0}: it belongs to another user, or others may write into it")]
    NotOurs(String),
    /// Something failed.
    #[error("use spool {path}")]
    Io {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file that the server waits for could not be written.
    #[error(transparent)]
    Target(#[from] FetchError),
}

/// Refuses a spool inside a data directory: `data`, the one that WAL is fetched for, or any other that it stands in.
pub fn check_place(spool: &Path, data: &Path) -> Result<(), SpoolError> {
    let failed = |source| SpoolError::Io { path: spool.display().to_string(), source };
    let absolute = std::path::absolute(spool).map_err(failed)?;
    // As far as it is there already.
    let there = absolute.ancestors().find_map(|part| fs::canonicalize(part).ok()).unwrap_or(absolute);
    let inside = |data: &Path| SpoolError::InDataDirectory { spool: spool.display().to_string(), data: data.display().to_string() };
    if let Some(cluster) = there.ancestors().find(|part| part.join("global/pg_control").exists()) {
        return Err(inside(cluster));
    }
    // pg_wal and the tablespaces may be links to elsewhere.
    let tablespaces = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten().map(|entry| entry.path());
    for part in tablespaces.chain([data.join("pg_wal")]) {
        if fs::canonicalize(part).is_ok_and(|part| there.starts_with(part)) {
            return Err(inside(data));
        }
    }
    Ok(())
}

/// A segment that lies ready.
struct Ready {
    segment: Segment,
    crc: u32,
    boot: Option<u32>,
    path: PathBuf,
}

/// What is in a spool.
#[derive(Default)]
struct Content {
    ready: Vec<Ready>,
    /// What is being fetched, or was when somebody died.
    parts: Vec<(Option<Segment>, PathBuf)>,
}

/// What a prefetcher did.
#[derive(Debug)]
pub enum Filled {
    /// Another one is at work.
    Busy,
    /// It fetched so many segments.
    Segments(u64),
}

/// The segments fetched ahead for one cluster from one repository.
pub struct Spool {
    directory: PathBuf,
    cluster: Cluster,
    ahead: u64,
}

impl Spool {
    /// Opens the spool below `root`, makes it if need be. At most `ahead` segments lie in it.
    pub fn open(root: &Path, repository: Id, cluster: Cluster, ahead: u64) -> Result<Self, SpoolError> {
        let directory = root.join(repository.to_string()).join(cluster.system_id.to_string()).join("fetched");
        let failed = |source| SpoolError::Io { path: directory.display().to_string(), source };
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        }
        let user = rustix::process::geteuid().as_raw();
        for (level, part) in directory.ancestors().take(4).enumerate() {
            let meta = fs::symlink_metadata(part).map_err(failed)?;
            let (ours, closed) = (meta.uid() == user, meta.mode() & if level == 0 { 0o077 } else { 0o022 } == 0);
            // The operator may have made the root, as a link as well.
            let given = level == 3 && (meta.uid() == 0 || meta.is_symlink());
            if !(given && (closed || meta.is_symlink()) || ours && closed && meta.is_dir()) {
                return Err(SpoolError::NotOurs(part.display().to_string()));
            }
        }
        Ok(Self { directory, cluster, ahead })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn failed(&self) -> impl Fn(io::Error) -> SpoolError + use<> {
        let path = self.directory.display().to_string();
        move |source| SpoolError::Io { path: path.clone(), source }
    }

    fn content(&self) -> Result<Content, SpoolError> {
        let mut content = Content::default();
        for entry in fs::read_dir(&self.directory).map_err(self.failed())? {
            let entry = entry.map_err(self.failed())?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let Some((segment, rest)) = name.split_once('.') else { continue };
            let segment = Segment::from_file_name(segment, self.cluster.segment_size).ok();
            if rest.starts_with("part-") {
                content.parts.push((segment, entry.path()));
            } else if let (Some(segment), Some((crc, boot))) = (segment, sums_of_name(rest)) {
                content.ready.push(Ready { segment, crc, boot, path: entry.path() });
            } else if segment.is_some() {
                // Of another version of this program: nobody waits for it, and it goes with the parts.
                content.parts.push((None, entry.path()));
            }
        }
        Ok(content)
    }

    /// Moves a segment to where the server waits for it, if it lies here, or is about to. `false`: it has to be fetched.
    pub fn take(&self, segment: Segment, target: &Path) -> Result<bool, SpoolError> {
        let begun = Instant::now();
        let mut seen = (0, begun);
        loop {
            let content = self.content()?;
            if let Some(ready) = content.ready.iter().find(|ready| ready.segment == segment) {
                return self.hand_over(ready, target);
            }
            let Some((_, part)) = content.parts.iter().find(|(of, _)| *of == Some(segment)) else { return Ok(false) };
            let Ok(meta) = fs::symlink_metadata(part) else { continue };
            if meta.len() != seen.0 {
                seen = (meta.len(), Instant::now());
            }
            // Whoever was killed lets go of the lock; who hangs makes no progress.
            if seen.1.elapsed() > STANDSTILL || begun.elapsed() > PATIENCE || !self.is_locked() {
                return Ok(false);
            }
            thread::sleep(LOOK);
        }
    }

    fn hand_over(&self, ready: &Ready, target: &Path) -> Result<bool, SpoolError> {
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let Ok(mut file) = OpenOptions::new().read(true).custom_flags(nofollow).open(&ready.path) else { return Ok(false) };
        let meta = file.metadata().map_err(self.failed())?;
        let ours = meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0 && meta.nlink() == 1;
        if !ours || meta.len() != self.cluster.segment_size.bytes() {
            let _ = fs::remove_file(&ready.path);
            return Ok(false);
        }
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let near = fs::metadata(directory).is_ok_and(|directory| directory.dev() == meta.dev());
        // Elsewhere it is copied while it is summed up.
        let mut landing = if near { None } else { Some(Landing::new(target)?) };
        let age = meta.modified().ok().and_then(|written| SystemTime::now().duration_since(written).ok());
        let is_fresh = ready.boot.is_some() && ready.boot == this_boot() && age.is_some_and(|age| age < FRESH);
        if is_fresh && landing.is_none() {
            return Ok(renamed(&file, ready, target, directory));
        }
        let mut crc = 0;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed()(error)),
            };
            crc = crc32c::crc32c_append(crc, &buffer[..length]);
            if let Some(landing) = &mut landing {
                let failed = |source| FetchError::Target { action: "write", path: target.display().to_string(), source };
                landing.file.write_all(&buffer[..length]).map_err(failed)?;
            }
        }
        if crc != ready.crc {
            let _ = fs::remove_file(&ready.path);
            return Ok(false);
        }
        match landing {
            Some(landing) => {
                landing.finish()?;
                let _ = fs::remove_file(&ready.path);
                Ok(true)
            }
            None => Ok(renamed(&file, ready, target, directory)),
        }
    }

    fn lock(&self) -> Result<File, SpoolError> {
        let options = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.directory.join("lock"));
        options.map_err(self.failed())
    }

    fn is_locked(&self) -> bool {
        self.lock().is_ok_and(|lock| lock.try_lock_shared().is_err())
    }

    /// Whether a prefetcher should be started, now that the server has `asked`: too little lies ready, and none is at work.
    pub fn wants_more(&self, asked: Segment) -> Result<bool, SpoolError> {
        let ready = self.content()?.ready;
        Ok(wants_more(ready.iter().map(|ready| ready.segment), asked, self.ahead) && !self.is_locked())
    }

    /// Fetches what follows `asked`, until as much lies ready as may, or the archive has no more whole segments. While the server takes what
    /// lies there, it goes on: to end and to be started again costs the server a wait each time. What is not needed any more goes.
    pub fn fill(&self, reader: &WalReader<'_>, asked: Segment, workers: usize) -> Result<Filled, SpoolError> {
        let lock = self.lock()?;
        // Somebody may just be asking whether it is taken.
        if !(0..10).any(|_| lock.try_lock().is_ok() || (thread::sleep(LOOK), false).1) {
            return Ok(Filled::Busy);
        }
        let content = self.content()?;
        for (_, part) in content.parts {
            let _ = fs::remove_file(part);
        }
        let (kept, old): (Vec<_>, Vec<_>) = content.ready.into_iter().partition(|ready| is_ahead(ready.segment, asked, self.ahead));
        for ready in old {
            let _ = fs::remove_file(ready.path);
        }
        let is_remote = reader.repository().store().is_remote();
        let at_once = workers.saturating_mul(if is_remote { AT_ONCE_PER_WORKER } else { 1 }).clamp(1, MAX_AT_ONCE);
        // Half of what may lie ready, so that there is room for as many when the server has taken the other half, and it goes on.
        let at_once = at_once.min(usize::try_from(self.ahead / 2).unwrap_or(MAX_AT_ONCE)).max(1);
        let next = AtomicU64::new(1);
        let (stop, fetched) = (AtomicBool::new(false), AtomicU64::new(0));
        let first_error = Mutex::new(None);
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let step = next.fetch_add(1, Ordering::Relaxed);
                let segment = Segment { number: asked.number.saturating_add(step), ..asked };
                if step > self.ahead && !self.has_room(at_once as u64).unwrap_or(false) {
                    return;
                }
                if kept.iter().any(|ready| ready.segment == segment) {
                    continue;
                }
                match self.bring(reader, segment, at_once) {
                    Ok(true) => _ = fetched.fetch_add(1, Ordering::Relaxed),
                    Ok(false) => stop.store(true, Ordering::Relaxed),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        first_error.lock().expect("no panic while held").get_or_insert(error);
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(work);
            }
        });
        match first_error.into_inner().expect("no panic while held") {
            Some(error) => Err(error),
            None => Ok(Filled::Segments(fetched.into_inner())),
        }
    }

    /// Brings a fetched segment to the disk, where nobody waits for it yet. The server syncs each one before it reads on (`durable_rename` in
    /// `KeepFileRestoredFromArchive`, `src/backend/access/transam/xlogarchive.c`), and would wait for the disk then. Not after it has its name: a
    /// failure is reported once, and the server must hear of it, or never get the file.
    fn write_ahead(&self, file: &File, segment: Segment, at_once: usize) -> Result<(), SpoolError> {
        let ready = self.content()?.ready;
        match has_time(ready.iter().map(|ready| ready.segment), segment, at_once) {
            true => file.sync_data().map_err(self.failed()),
            false => Ok(()),
        }
    }

    /// Whether so many more segments may lie ready: the server takes them away.
    fn has_room(&self, more: u64) -> Result<bool, SpoolError> {
        Ok(self.content()?.ready.len() as u64 + more <= self.ahead)
    }

    /// Fetches one segment; `false`: the archive does not have it whole, or there is no room.
    fn bring(&self, reader: &WalReader<'_>, segment: Segment, at_once: usize) -> Result<bool, SpoolError> {
        let bytes = self.cluster.segment_size.bytes();
        let space = rustix::fs::statvfs(&self.directory).map_err(|error| self.failed()(error.into()))?;
        let reserve = (space.f_blocks.saturating_mul(space.f_frsize) / 10).min(MAX_RESERVE);
        if space.f_bavail.saturating_mul(space.f_frsize) < reserve.saturating_add(bytes.saturating_mul(at_once as u64)) {
            return Ok(false);
        }
        let name = segment_name(segment, self.cluster);
        let part = self.directory.join(format!("{name}.part-{}", crate::random::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).map_err(self.failed())?;
        let read = |store: &dyn Store| {
            // Begun anew with every copy.
            let failed = |source| WalError::File { action: "write", path: part.display().to_string(), source };
            let mut file = file.try_clone().map_err(failed)?;
            // Not of a new file: ext4 writes a file that was cut off to the disk when it is closed (ext4(5), auto_da_alloc).
            if file.stream_position().map_err(failed)? > 0 {
                file.rewind().and_then(|()| file.set_len(0)).map_err(failed)?;
            }
            let mut summed = Summed { file, crc: 0 };
            read_whole(reader, store, WalFile::Segment(segment), &mut summed)?;
            Ok(summed.crc)
        };
        let result = reader.in_any_copy(WalFile::Segment(segment), read, WalError::damage);
        let done = match result {
            Ok(crc) => {
                let path = self.directory.join(format!("{name}.{}", name_of_sums(crc)));
                self.write_ahead(&file, segment, at_once).and_then(|()| fs::rename(&part, path).map(|()| true).map_err(self.failed()))
            }
            Err(error) if error.is_absence() => Ok(false),
            Err(error) => Err(FetchError::Wal(error).into()),
        };
        if !matches!(done, Ok(true)) {
            let _ = fs::remove_file(&part);
        }
        done
    }
}

/// Gives the file that lies ready the name under which the server waits for it. `false` where it cannot be moved, as between bind mounts of one
/// file system: then it is fetched anew.
fn renamed(file: &File, ready: &Ready, target: &Path, directory: &Path) -> bool {
    file.set_permissions(permissions_in(directory)).is_ok() && fs::rename(&ready.path, target).is_ok()
}

/// The rest of the name of a file with this checksum that is written now.
fn name_of_sums(crc: u32) -> String {
    this_boot().map_or_else(|| format!("{crc:08x}"), |boot| format!("{crc:08x}-{boot:08x}"))
}

/// The checksum in a name, and in which life of the machine it was written; as this program writes them.
fn sums_of_name(text: &str) -> Option<(u32, Option<u32>)> {
    let number = |text: &str| {
        let is_ours = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_ours.then(|| u32::from_str_radix(text, 16).ok()).flatten()
    };
    match text.split_once('-') {
        Some((crc, boot)) => Some((number(crc)?, Some(number(boot)?))),
        None => Some((number(text)?, None)),
    }
}

/// What tells this life of the machine from others (random(4), `boot_id`); `None`: the system does not say.
fn this_boot() -> Option<u32> {
    static BOOT: OnceLock<Option<u32>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        u32::from_str_radix(text.get(..8)?, 16).ok()
    })
}

/// Sums up what it writes.
struct Summed {
    file: File,
    crc: u32,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SpoolError {
    /// Whether a server must not go on without the spool: everything else only makes it slower.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::InDataDirectory { .. } | Self::Target(_))
    }

    /// Whether what was being brought is not what was written.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Target(FetchError::Wal(WalError::Damaged { .. } | WalError::Unverified { .. })))
    }
}
