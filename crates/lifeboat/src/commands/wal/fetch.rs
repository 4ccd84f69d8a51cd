//! `lifeboat wal fetch`, PostgreSQL's `restore_command`, and `lifeboat wal prefetch`, which it leaves behind itself.
//!
//! The exit code decides whether a server stops or takes up writing. 0: the file is there. 1: the archive ends before it, proven. Above 125:
//! anything else; then `RestoreArchivedFile` (`src/backend/access/transam/xlogarchive.c`) ends the recovery with FATAL, because
//! `wait_result_is_any_signal` (`src/common/wait_error.c`) takes such codes for a shell's report of a signal or of a missing command. 2 to 125
//! would be taken for "there is no more". SIGTERM has its default action: a death by it tells the server that it is being shut down.
//!
//! A standby asks again for ever and may get its WAL from the primary meanwhile: trouble must not end it (c084). So in a data directory
//! with `standby.signal` trouble is 1, with a warning; no byte is handed out then either.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lifeboat_core::policy::Operation;
use lifeboat_core::postgres::control_file::{ControlFile, ControlFileError};
use lifeboat_core::repository::Id;
use lifeboat_core::wal::fetch::{Asked, Bounds, asked};
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::{Segment, SegmentSize, SystemId};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::store::StoreError;
use lifeboat_engine::wal::fetch::{FetchError, Fetched, Fetcher};
use lifeboat_engine::wal::spool::{self, Filled, Spool, SpoolError};
use lifeboat_engine::wal::{self, Cluster, WalError, WalReader, known};

use crate::cli::{WalFetch, WalPrefetch};
use crate::config::{Origin, Settings};
use crate::failure::{EXIT_FAILED, EXIT_KEY, EXIT_UNVERIFIED, Failure, chain};
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::{operation, session, signals};

/// There is no such file, proven.
const EXIT_AFTER_END: u8 = 1;

/// The server must not take this for the end of the archive. 128 and more could be mistaken for a signal by a person: 200 is none.
pub(crate) const EXIT_TROUBLE: u8 = 200;

/// How long a segment is waited for that a later one is there of: a server stores several at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often a control file is read that the server is just writing.
const CONTROL_FILE_TRIES: u32 = 20;

/// How far a prefetcher stands back behind the server.
const PREFETCHER_NICENESS: i32 = 10;

/// How long a prefetcher lives at most; the next one is started soon enough.
const PREFETCHER_LIFE: Duration = Duration::from_secs(600);

/// Whether a command line that could not be read was meant for this command. A misspelt `fetch` is one as well: exit code 2 would
/// promote the server.
pub(crate) fn was_meant(arguments: impl Iterator<Item = OsString>) -> bool {
    let words: Vec<OsString> = arguments.collect();
    let has = |word: &str| words.iter().any(|argument| argument == word);
    has("fetch") || has("wal") && !["push", "receive", "status", "prefetch"].into_iter().any(has)
}

/// Whether trouble is to be told as "not there now".
fn is_lenient(fetch: &WalFetch) -> bool {
    !fetch.strict && (fetch.lenient || Path::new("standby.signal").exists())
}

/// Says what went wrong, whatever it was, and gives it the exit code that keeps the server from taking it for the end of the archive.
pub(crate) fn trouble(fetch: &WalFetch, failure: &mut Failure, out: &Output) {
    if is_lenient(fetch) {
        failure.code = EXIT_AFTER_END;
        out.warning(failure);
    } else {
        failure.code = EXIT_TROUBLE;
        out.failure(failure);
    }
}

pub(super) fn run(fetch: &WalFetch, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let (system_id, size) = whose(fetch)?;
    spool::check_place(&settings.wal_spool.value, Path::new(".")).map_err(|error| spool_failure(&error))?;
    gate::allow(settings, None, Question::new(Operation::WalFetch))?;
    let places = session::far_places(settings);
    if let (Some(places), Some(size)) = (&places, size)
        && let Some(id) = known::recall(&settings.wal_spool.value, places)
        && from_spool(fetch, settings, id, Cluster { system_id, segment_size: size })?
    {
        return Ok(present(fetch, out, "spool"));
    }
    // What lies in the spool is of one repository, not of one path.
    let repository = session::prove_repository(settings)?;
    let id = repository.descriptor().repository;
    if let Some(places) = &places {
        let _ = known::remember(&settings.wal_spool.value, places, id);
    }
    let cluster = Cluster { system_id, segment_size: size.map_or_else(|| size_of(&repository, system_id), Ok)? };
    let file = match asked(&fetch.file, cluster.segment_size) {
        Ok(Asked::File(file)) => file,
        Ok(Asked::Never) => return Ok(absent(fetch, out)),
        Err(error) => {
            let hint = "restore_command = 'lifeboat wal fetch %f %p', in this order; --segment-size must be the cluster's";
            return Err(Failure::usage(chain(&error)).hint(hint));
        }
    };
    let bounds = bounds(fetch);
    // What lies in the spool is of the timeline, not of the history: a segment that is not all of it is not taken from there.
    let segment = if let WalFile::Segment(segment) = file { Some(segment) } else { None };
    let segment = segment.filter(|segment| bounds.belongs_until(*segment, cluster.segment_size).is_none());
    let spool = segment.and_then(|_| open_spool(settings, id, cluster));
    if let (Some(spool), Some(segment)) = (&spool, segment)
        && taken(fetch, settings, spool, cluster, segment)?
    {
        return Ok(present(fetch, out, "spool"));
    }
    let trust = session::trust(settings)?;
    let reader = WalReader::new(&repository, cluster, &trust, session::identities(settings, fetch.identity.as_ref())?);
    // A standby asks again by itself.
    let patience = if is_lenient(fetch) { Duration::ZERO } else { PATIENCE };
    let fetcher = Fetcher::new(&reader, &bounds, fetch.allow_empty).patient(patience);
    match fetcher.fetch(file, &fetch.path).map_err(|error| failure(&error))? {
        Fetched::Whole => {
            if let (Some(spool), Some(segment)) = (&spool, segment) {
                prefetch(spool, settings, fetch.identity.as_deref(), cluster, segment);
            }
            Ok(present(fetch, out, "repository"))
        }
        Fetched::Open { bytes, left_out } => {
            output::say(&format!("{}: the archive has its first {bytes} bytes, behind them are zeros", fetch.file));
            if left_out {
                output::warn(&format!("the archive has bytes of {} behind a hole as well, which are of no use", fetch.file));
            }
            Ok(present(fetch, out, "pieces"))
        }
        Fetched::AfterEnd => Ok(absent(fetch, out)),
        Fetched::Own => {
            output::say(&format!("{}: the archive cannot bring it; the backup brought it itself", fetch.file));
            Ok(absent(fetch, out))
        }
    }
}

/// What the plan of the restore says.
fn bounds(fetch: &WalFetch) -> Bounds {
    Bounds { promise: fetch.promised, left: fetch.left.clone(), own: fetch.own, until: None }
}

/// The file out of the spool, if it is a segment that lies there.
fn from_spool(fetch: &WalFetch, settings: &Settings, repository: Id, cluster: Cluster) -> Result<bool, Failure> {
    let Ok(Asked::File(WalFile::Segment(segment))) = asked(&fetch.file, cluster.segment_size) else { return Ok(false) };
    if bounds(fetch).belongs_until(segment, cluster.segment_size).is_some() {
        return Ok(false);
    }
    match open_spool(settings, repository, cluster) {
        Some(spool) => taken(fetch, settings, &spool, cluster, segment),
        None => Ok(false),
    }
}

/// The same out of a spool that is open; then what follows is fetched ahead.
fn taken(fetch: &WalFetch, settings: &Settings, spool: &Spool, cluster: Cluster, segment: Segment) -> Result<bool, Failure> {
    match spool.take(segment, &fetch.path) {
        Ok(true) => {
            prefetch(spool, settings, fetch.identity.as_deref(), cluster, segment);
            Ok(true)
        }
        Ok(false) => Ok(false),
        Err(error) if error.is_fatal() => Err(spool_failure(&error)),
        Err(error) => {
            output::warn(&chain(&error));
            Ok(false)
        }
    }
}

fn present(fetch: &WalFetch, out: &Output, from: &str) -> u8 {
    if out.is_json() {
        out.result(&serde_json::json!({"file": fetch.file, "found": true, "from": from}), String::new);
    }
    0
}

/// Silent, but for programs: a standby asks every few seconds.
fn absent(fetch: &WalFetch, out: &Output) -> u8 {
    if out.is_json() {
        out.result(&serde_json::json!({"file": fetch.file, "found": false}), String::new);
    }
    EXIT_AFTER_END
}

/// Whose WAL is asked for: that of the data directory that the server runs the command in, or what the flags say.
fn whose(fetch: &WalFetch) -> Result<(SystemId, Option<SegmentSize>), Failure> {
    let bad = |message: String| Failure::usage(message).hint("lifeboat wal fetch --help");
    let told = fetch.segment_size.as_deref().map(crate::config::parse_bytes).transpose()?;
    let told = told.map(|bytes| SegmentSize::new(u32::try_from(bytes).unwrap_or(u32::MAX))).transpose().map_err(|e| bad(chain(&e)))?;
    let Some(control) = control_file()? else {
        let system_id =
            fetch.system_id.ok_or_else(|| bad("find the cluster: this is no data directory, and there is no --system-id".to_owned()))?;
        return Ok((system_id, told));
    };
    if let Some(other) = fetch.system_id.filter(|other| *other != control.system_id) {
        return Err(bad(format!("find the cluster: this data directory is of {}, --system-id says {other}", control.system_id)));
    }
    if let Some(other) = told.filter(|other| *other != control.segment_size) {
        let ours = control.segment_size.bytes();
        return Err(bad(format!("find the cluster: its segments have {ours} bytes, --segment-size says {}", other.bytes())));
    }
    Ok((control.system_id, Some(control.segment_size)))
}

/// The control file of the data directory that this is, if it is one.
fn control_file() -> Result<Option<ControlFile>, Failure> {
    let path = Path::new("global/pg_control");
    let failed = |problem: String| Failure::new(EXIT_FAILED, format!("read {}: {problem}", path.display())).hint("give --system-id");
    let mut tries = 0;
    loop {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        tries += 1;
        match ControlFile::decode(&bytes) {
            Ok(control) => return Ok(Some(control)),
            // The server writes it now and then while it recovers.
            Err(ControlFileError::Crc | ControlFileError::Short(_)) if tries < CONTROL_FILE_TRIES => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(failed(chain(&error))),
        }
    }
}

fn size_of(repository: &Repository, system_id: SystemId) -> Result<SegmentSize, Failure> {
    let described = wal::cluster(repository, system_id).map_err(|error| failure(&error.into()))?;
    described.map(|cluster| cluster.segment_size).ok_or_else(|| {
        Failure::usage(format!("find the segment size of cluster {system_id}: the repository does not say it")).hint("give --segment-size")
    })
}

/// The spool, if it can be used: without it everything is only slower.
fn open_spool(settings: &Settings, repository: Id, cluster: Cluster) -> Option<Spool> {
    let fit = (settings.wal_spool_limit.value / cluster.segment_size.bytes()).max(1);
    let ahead = fit.min(settings.wal_fetch_ahead.value as u64);
    match Spool::open(&settings.wal_spool.value, repository, cluster, ahead) {
        Ok(spool) => Some(spool),
        Err(error) => {
            output::warn(&format!("{}; nothing is fetched ahead", chain(&error)));
            None
        }
    }
}

/// Leaves a process behind that fetches what the server will ask for next, if too little of it lies ready.
fn prefetch(spool: &Spool, settings: &Settings, identity: Option<&Path>, cluster: Cluster, segment: Segment) {
    if !spool.wants_more(segment).unwrap_or(false) {
        return;
    }
    let start = || {
        let log = File::options().create(true).write(true).truncate(true).mode(0o600).open(spool.directory().join("prefetch.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["wal", "prefetch", &segment.file_name(cluster.segment_size)]);
        command.args(["--system-id", &cluster.system_id.to_string(), "--segment-size", &cluster.segment_size.bytes().to_string()]);
        if let Some(identity) = identity {
            command.arg("--identity").arg(identity);
        }
        if let Some(file) = &settings.file {
            command.arg("--config").arg(file);
        }
        if let Some(moment) = settings.as_of {
            command.args(["--as-of", &moment.to_string()]);
        }
        match settings.repositories.primary() {
            Some(one) if matches!(one.url.origin, Origin::Flag(_)) || settings.file.is_none() => {
                command.args(["--repository", &one.url.value]);
            }
            _ => {
                for name in &settings.without {
                    command.args(["--without-repository", name]);
                }
            }
        }
        operation::pass_on(&mut command);
        // The server's log must not wait for it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()
    };
    if let Err(error) = start() {
        output::warn(&format!("fetch ahead: {error}"));
    }
}

/// `lifeboat wal prefetch`: fetches into the spool what follows a segment, and ends.
pub(super) fn run_ahead(prefetch: &WalPrefetch, settings: &Settings) -> Result<u8, Failure> {
    // Not of the server's session: its end is not this one's.
    let _ = rustix::process::setsid();
    step_back();
    // Not 130, nor a death by the signal: see `main`.
    signals::on_stop(|| std::process::exit(EXIT_FAILED.into()));
    std::thread::spawn(|| {
        std::thread::sleep(PREFETCHER_LIFE);
        output::say("fetch ahead: it took too long");
        std::process::exit(EXIT_FAILED.into());
    });
    let usage = |error: lifeboat_core::wal::ParseError| Failure::usage(chain(&error)).hint("lifeboat wal fetch --help");
    let segment_size = SegmentSize::new(prefetch.segment_size).map_err(usage)?;
    let segment = Segment::from_file_name(&prefetch.file, segment_size).map_err(usage)?;
    let cluster = Cluster { system_id: prefetch.system_id, segment_size };
    // The primary by itself: what it does not have, or has damaged, is left to the one whose words are heard.
    let repository = session::without_copies(session::primary(settings)?)?;
    gate::allow(settings, Some(&repository), Question::new(Operation::WalFetch))?;
    let trust = session::trust(settings)?;
    let reader = WalReader::new(&repository, cluster, &trust, session::identities(settings, prefetch.identity.as_ref())?);
    let Some(spool) = open_spool(settings, repository.descriptor().repository, cluster) else { return Ok(EXIT_FAILED) };
    match spool.fill(&reader, segment, settings.workers.value).map_err(|error| spool_failure(&error))? {
        Filled::Busy => output::say("fetch ahead: another process does it"),
        Filled::Segments(count) => output::say(&format!("fetched {count} segments behind {}", prefetch.file)),
    }
    Ok(0)
}

/// Leaves the processor to the server where both want it: it replays on one core what this fetches on all. A session of its own is a group
/// of its own to the kernel (sched(7), "The autogroup feature"), among which the niceness of processes does not count.
fn step_back() {
    let _ = rustix::process::nice(PREFETCHER_NICENESS);
    let _ = fs::write("/proc/self/autogroup", PREFETCHER_NICENESS.to_string());
}

fn spool_failure(error: &SpoolError) -> Failure {
    match error {
        SpoolError::Target(error) => failure(error),
        SpoolError::InDataDirectory { .. } => {
            Failure::usage(chain(error)).hint("set wal.spool or LIFEBOAT_SPOOL to a directory elsewhere: lifeboat config show")
        }
        _ => Failure::new(EXIT_FAILED, chain(error)).hint("lifeboat config show prints wal.spool"),
    }
}

fn failure(error: &FetchError) -> Failure {
    let (code, hint) = match error {
        FetchError::Wal(WalError::Key(_)) => (EXIT_KEY, "set encryption.identity_file to an identity that opens it: lifeboat config show"),
        FetchError::Wal(WalError::Unverified { .. }) => {
            (EXIT_UNVERIFIED, "trust.keys must name the key that signed it: lifeboat config show")
        }
        FetchError::Wal(WalError::Store(StoreError::Denied { .. })) | FetchError::Store(StoreError::Denied { .. }) => {
            (EXIT_KEY, "the server's user must be able to read the repository: lifeboat config show")
        }
        FetchError::UnknownCluster { .. } => {
            (EXIT_FAILED, "is it the right repository? if its WAL was never archived: lifeboat wal fetch --allow-empty")
        }
        FetchError::Gap { .. } | FetchError::Differs { .. } => {
            (EXIT_UNVERIFIED, "lifeboat wal status shows what the archive has; restore to a target before the hole")
        }
        FetchError::Target { .. } => (EXIT_FAILED, "make room in the data directory, then start the server again"),
        FetchError::Wal(WalError::Damaged { .. } | WalError::Segment(_)) | FetchError::Format(_) => {
            (EXIT_UNVERIFIED, "lifeboat verify --all tells what else is damaged")
        }
        _ => (EXIT_FAILED, "look at the repository, then start the server again: it goes on where it was; lifeboat config show"),
    };
    Failure::new(code, chain(error)).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c080_what_was_meant_for_fetch_is_told_from_the_rest() {
        let meant = |line: &str| was_meant(line.split(' ').map(OsString::from));
        for line in ["lifeboat wal fetch", "lifeboat --config x wal fetch --no-such a b", "lifeboat wal fecth a b", "lifeboat fetch a b"] {
            assert!(meant(line), "{line}");
        }
        for line in ["lifeboat wal push --no-such", "lifeboat wal status x", "lifeboat backup --nope", "lifeboat"] {
            assert!(!meant(line), "{line}");
        }
    }
}
