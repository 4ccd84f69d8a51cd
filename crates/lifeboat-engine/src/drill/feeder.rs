//! Brings WAL to a server that has no network, no keys and no configuration: it asks through files in the place of the drill, and this
//! process, which has all three, answers.
//!
//! The server's `restore_command` is `feed.sh`: it makes `want/<file>.<its process>`, and waits for `ready/<file>`, or for an answer
//! `answer/<file>.<its process>.absent` or `.failed`. Only what the archive is proven to end before is absent
//! ([`Fetched::AfterEnd`]); every other trouble, and the death of this process, ends the command above 125, so that PostgreSQL stops instead
//! of taking up writing (`RestoreArchivedFile` in `src/backend/access/transam/xlogarchive.c`).
//!
//! Files that are fetched ahead are whole and verified as any other; what the archive has in parts, and whether it ends, is asked anew each
//! time. The directories that the server writes into stand in one that it cannot write to: it cannot put a link in the place of them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use lifeboat_core::wal::fetch::{Asked, Bounds, asked, is_ahead};
use lifeboat_core::wal::file::WalFile;
use lifeboat_core::wal::{Segment, SegmentSize};

use super::place::Place;
use crate::wal::WalReader;
use crate::wal::fetch::{FetchError, Fetched, Fetcher};

/// How often it is looked for a question. The other side looks every 10 ms.
const LOOK: Duration = Duration::from_millis(4);

/// How often it is said that we live.
const BEAT: Duration = Duration::from_millis(250);

/// How many failures are kept in words.
const MAX_FAILURES: usize = 20;

/// The program of the server's side.
const PROGRAM: &str = include_str!("feed.sh");

/// Why WAL cannot be handed over.
#[derive(Debug, thiserror::Error)]
#[error("hand WAL over in {path}")]
pub struct FeederError {
    path: String,
    #[source]
    source: io::Error,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> FeederError {
    let path = path.display().to_string();
    move |source| FeederError { path, source }
}

/// Where WAL is from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Reads and verifies it.
    pub reader: &'a WalReader<'a>,
    /// What the plan of the drill says of what the archive had, of what is of the history, and of the end.
    pub bounds: &'a Bounds,
    /// Whether it is no surprise that the archive has nothing of this cluster.
    pub allow_empty: bool,
}

/// What was brought.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fed {
    /// Files that the server took.
    pub files: u64,
    /// Segments among them.
    pub segments: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Segments that lay ready when the server asked for them.
    pub ahead: u64,
    /// Time that fetching took, over all workers.
    pub fetching: Duration,
    /// Time that the server waited, from our noticing its question to the answer.
    pub waited: Duration,
    /// Where the archive ends: what was asked for and is behind it.
    pub absent: Vec<String>,
    /// What could not be brought, and why: the server stops at it.
    pub failed: Vec<String>,
}

/// Segments on their way.
#[derive(Default)]
struct Ahead {
    /// What the server has come to.
    position: Option<Segment>,
    in_flight: HashSet<Segment>,
    ready: BTreeSet<Segment>,
    /// Those of them that the server had to ask for.
    asked_for: HashSet<Segment>,
    /// There is nothing more to fetch ahead, until the server asks again.
    exhausted: bool,
}

struct Shared {
    wal: PathBuf,
    owner: Option<(u32, u32)>,
    size: SegmentSize,
    ahead: u64,
    stop: AtomicBool,
    state: Mutex<Ahead>,
    changed: Condvar,
    fed: Mutex<Fed>,
}

/// Brings WAL as long as it lives. When it is dropped, the server's command is told that there is nobody any more.
pub struct Feeder {
    shared: Arc<Shared>,
}

impl Feeder {
    /// Begins to answer questions in `place`, in threads of `scope`. As many segments as `ahead_bytes` holds lie ready or are on their way,
    /// two at least, by `workers` threads. One feeder per place at a time.
    ///
    /// # Errors
    /// Where its files cannot be made.
    pub fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        place: &Place,
        source: Source<'env>,
        workers: usize,
        ahead_bytes: u64,
    ) -> Result<Self, FeederError> {
        let wal = place.wal();
        for name in ["want", "ready", "answer", "landing"] {
            clear(&wal.join(name)).map_err(failed(&wal))?;
        }
        let size = source.reader.cluster().segment_size;
        let shared = Arc::new(Shared {
            owner: place.owner(),
            size,
            ahead: (ahead_bytes / size.bytes()).saturating_sub(1).max(1),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            fed: Mutex::default(),
            wal,
        });
        // Told to stop also where something below fails.
        let feeder = Self { shared };
        let shared = &feeder.shared;
        shared.put("feed.sh", PROGRAM.as_bytes(), false)?;
        let process = std::process::id();
        let born = born();
        shared.beat(process, born, 0)?;
        let beating = Arc::clone(shared);
        scope.spawn(move || {
            for count in 1u64.. {
                if !beating.sleep(BEAT) || beating.beat(process, born, count).is_err() {
                    return;
                }
            }
        });
        let answering = Arc::clone(shared);
        scope.spawn(move || answering.answer(source));
        for _ in 0..workers.clamp(1, 8) {
            let fetching = Arc::clone(shared);
            scope.spawn(move || fetching.fetch_ahead(source));
        }
        Ok(feeder)
    }

    /// The server's `restore_command`.
    pub fn command(&self) -> String {
        let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''").replace('%', "%%"));
        let wal = &self.shared.wal;
        // Given as a value on the command line: nothing but PostgreSQL and the shell read it.
        format!("exec /bin/sh {} {} %f \"%p\"", quoted(&wal.join("feed.sh")), quoted(wal))
    }

    /// What was brought until now.
    pub fn fed(&self) -> Fed {
        self.shared.take_note();
        self.shared.fed().clone()
    }

    /// Ends, and says what was brought. The server's command finds nobody from here on, and stops the server.
    pub fn stop(self) -> Fed {
        self.fed()
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// Ends everything also where a thread panics: nobody may wait for an answer that does not come.
struct EndsWith<'a>(&'a Shared);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end();
        }
    }
}

/// When this process began, in ticks since the machine did (proc_pid_stat(5), field 22).
fn born() -> u64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok()).unwrap_or(0)
}

fn clear(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Ahead> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fed(&self) -> MutexGuard<'_, Fed> {
        self.fed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = fs::remove_file(self.wal.join("beat"));
        // With the lock held: whoever looked before it waits by now, or sees that it is over.
        let state = self.state();
        self.changed.notify_all();
        drop(state);
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// False: it is over.
    fn sleep(&self, time: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < time {
            if self.is_over() {
                return false;
            }
            thread::sleep(LOOK.min(time));
        }
        !self.is_over()
    }

    /// Gives a file its name at once and whole, readable by the server. `theirs`: it is to be the server's.
    fn put(&self, name: &str, bytes: &[u8], theirs: bool) -> Result<(), FeederError> {
        let part = self.wal.join("landing").join(format!("part-{}", crate::random::id()));
        let path = self.wal.join(name);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
            file.write_all(bytes)?;
            if let Some((uid, gid)) = self.owner {
                // The group is the server's alone, or as good as.
                std::os::unix::fs::fchown(&file, theirs.then_some(uid), Some(gid))?;
                file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
            }
            fs::rename(&part, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&part);
            failed(&path)(error)
        })
    }

    fn beat(&self, process: u32, born: u64, count: u64) -> Result<(), FeederError> {
        if self.is_over() {
            return Ok(());
        }
        self.put("beat", format!("{process} {born} {count}\n").as_bytes(), false)?;
        // It may have been taken away between the two.
        if self.is_over() {
            let _ = fs::remove_file(self.wal.join("beat"));
        }
        Ok(())
    }

    /// Answers one question after the other: a server in recovery asks for one file at a time.
    fn answer(&self, source: Source<'_>) {
        let _ends = EndsWith(self);
        let mut answered: HashMap<String, Instant> = HashMap::new();
        while self.sleep(LOOK) {
            self.take_note();
            let Ok(entries) = fs::read_dir(self.wal.join("want")) else { continue };
            let asked: HashSet<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
            // Whose question is gone has read its answer, or died.
            answered.retain(|ask, _| {
                let stays = asked.contains(ask);
                if !stays {
                    for kind in ["absent", "failed"] {
                        let _ = fs::remove_file(self.wal.join("answer").join(format!("{ask}.{kind}")));
                    }
                }
                stays
            });
            for ask in asked {
                if answered.contains_key(&ask) {
                    continue;
                }
                let begun = Instant::now();
                self.answer_one(source, &ask);
                self.fed().waited += begun.elapsed();
                answered.insert(ask, begun);
            }
        }
    }

    fn answer_one(&self, source: Source<'_>, ask: &str) {
        let size = source.reader.cluster().segment_size;
        let file = ask.rsplit_once('.').filter(|(_, process)| process.parse::<u32>().is_ok()).map_or("", |(file, _)| file);
        let result = match asked(file, size) {
            Ok(Asked::Never) => Ok(Fetched::AfterEnd),
            Ok(Asked::File(file)) => self.bring(source, file),
            Err(error) => Err(error.to_string()),
        };
        let answered = match result {
            Ok(Fetched::Whole | Fetched::Open { .. }) => Ok(()),
            Ok(fetched @ (Fetched::AfterEnd | Fetched::Own)) => {
                // What lies in the restored `pg_wal` is no end.
                if fetched == Fetched::AfterEnd {
                    self.fed().absent.push(file.to_owned());
                }
                self.put(&format!("answer/{ask}.absent"), b"", true)
            }
            Err(problem) => self.fail(ask, file, &problem),
        };
        // A question that cannot be answered is one that nobody may wait for: without `beat` the command gives up.
        if answered.is_err() {
            let mut fed = self.fed();
            if fed.failed.len() < MAX_FAILURES {
                fed.failed.push(format!("{file}: its answer could not be written"));
            }
            drop(fed);
            self.end();
        }
    }

    fn fail(&self, ask: &str, file: &str, problem: &str) -> Result<(), FeederError> {
        let problem = one_line(problem);
        let mut fed = self.fed();
        if fed.failed.len() < MAX_FAILURES {
            fed.failed.push(format!("{file}: {problem}"));
        }
        drop(fed);
        self.put(&format!("answer/{ask}.failed"), format!("{problem}\n").as_bytes(), true)
    }

    /// Sees to it that a file lies ready.
    fn bring(&self, source: Source<'_>, file: WalFile) -> Result<Fetched, String> {
        let WalFile::Segment(segment) = file else {
            let fetched = self.fetch(source, file)?;
            self.fed().files += u64::from(fetched.is_there());
            return Ok(fetched);
        };
        let mut state = self.state();
        // It may be on its way already.
        while state.in_flight.contains(&segment) && !self.is_over() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.forget(&mut state, segment);
        state.position = Some(segment);
        state.exhausted = false;
        // Fetched ahead, and not taken by somebody who asked before: a server that was stopped asks for it again.
        let there = state.ready.contains(&segment) && self.ready(segment).exists();
        if !there {
            state.in_flight.insert(segment);
        }
        state.asked_for.insert(segment);
        self.changed.notify_all();
        drop(state);
        if there {
            return Ok(Fetched::Whole);
        }
        let result = self.fetch(source, file);
        let mut state = self.state();
        state.in_flight.remove(&segment);
        if matches!(result, Ok(Fetched::Whole | Fetched::Open { .. })) {
            state.ready.insert(segment);
        }
        self.changed.notify_all();
        result
    }

    /// Removes what the server is past, or what is on another timeline.
    fn forget(&self, state: &mut Ahead, asked: Segment) {
        let old: Vec<Segment> =
            state.ready.iter().copied().filter(|ready| *ready != asked && !is_ahead(*ready, asked, self.ahead)).collect();
        for segment in old {
            state.ready.remove(&segment);
            // What it still does not have, it did not take.
            let _ = fs::remove_file(self.ready(segment));
        }
    }

    fn ready(&self, segment: Segment) -> PathBuf {
        self.wal.join("ready").join(segment.file_name(self.size))
    }

    /// Fetches a file to where the server takes it from.
    fn fetch(&self, source: Source<'_>, file: WalFile) -> Result<Fetched, String> {
        let begun = Instant::now();
        let fetcher = Fetcher::new(source.reader, source.bounds, source.allow_empty);
        let landing = self.landing(file);
        let fetched = fetcher.fetch(file, &landing).map_err(|error| crate::causes::joined(&error));
        self.fed().fetching += begun.elapsed();
        let fetched = fetched?;
        if fetched.is_there() {
            self.hand_over(&landing, file).map_err(|error| crate::causes::joined(&error))?;
        }
        Ok(fetched)
    }

    fn landing(&self, file: WalFile) -> PathBuf {
        self.wal.join("landing").join(file.file_name(self.size))
    }

    fn hand_over(&self, landing: &Path, file: WalFile) -> Result<(), FeederError> {
        if let Some((uid, gid)) = self.owner {
            // In a directory that nobody but us can enter.
            chown(landing, Some(uid), Some(gid)).map_err(failed(landing))?;
        }
        let ready = self.wal.join("ready").join(file.file_name(self.size));
        fs::rename(landing, &ready).map_err(failed(&ready))
    }

    /// Notes what the server has taken.
    fn take_note(&self) {
        let mut state = self.state();
        let taken: Vec<Segment> = state.ready.iter().copied().filter(|segment| !self.ready(*segment).exists()).collect();
        let mut unasked = 0;
        for segment in &taken {
            state.ready.remove(segment);
            unasked += u64::from(!state.asked_for.remove(segment));
            // Further than it has come it does not go back by itself.
            if state.position.is_none_or(|position| position.timeline != segment.timeline || position.number < segment.number) {
                state.position = Some(*segment);
            }
        }
        if taken.is_empty() {
            return;
        }
        self.changed.notify_all();
        drop(state);
        let count = taken.len() as u64;
        let mut fed = self.fed();
        fed.files += count;
        fed.segments += count;
        fed.ahead += unasked;
        fed.bytes += count * self.size.bytes();
    }

    /// One of the workers that fetch ahead.
    fn fetch_ahead(&self, source: Source<'_>) {
        let _ends = EndsWith(self);
        let mut state = self.state();
        while !self.is_over() {
            let Some(segment) = self.next(&state) else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.in_flight.insert(segment);
            drop(state);
            let begun = Instant::now();
            let result = self.fetch_whole(source, segment);
            self.fed().fetching += begun.elapsed();
            state = self.state();
            state.in_flight.remove(&segment);
            match result {
                Ok(true) => _ = state.ready.insert(segment),
                // Not there, or damaged, or out of reach: who needs it asks for it, and hears why.
                Ok(false) | Err(_) => state.exhausted = true,
            }
            self.changed.notify_all();
        }
    }

    /// What to fetch ahead next.
    fn next(&self, state: &Ahead) -> Option<Segment> {
        let position = state.position.filter(|_| !state.exhausted)?;
        ((state.ready.len() + state.in_flight.len()) as u64 <= self.ahead).then_some(())?;
        (1..=self.ahead)
            .map(|step| Segment { number: position.number.saturating_add(step), ..position })
            .find(|segment| !state.ready.contains(segment) && !state.in_flight.contains(segment))
    }

    /// False: the archive does not have it whole, or it is not to be brought.
    fn fetch_whole(&self, source: Source<'_>, segment: Segment) -> Result<bool, FetchError> {
        if source.bounds.is_beside(segment, self.size) {
            return Ok(false);
        }
        let file = WalFile::Segment(segment);
        let fetcher = Fetcher::new(source.reader, source.bounds, source.allow_empty);
        let landing = self.landing(file);
        match fetcher.whole(file, &landing) {
            Ok(()) => Ok(self.hand_over(&landing, file).is_ok()),
            Err(FetchError::Wal(error)) if error.is_absence() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
