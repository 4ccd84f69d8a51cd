//! An orchestrator's work: builds, their runs and their artifacts, before and while a backup runs.
//!
//! Writes an artifact's file before it commits the row that names it, as every orchestrator must: what a row names is there.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_core::repository::Sha256;
use lifeboat_engine::postgres::Connection;

use crate::failure::{EXIT_FAILED, Failure};

/// What the database refers to.
pub(super) const REFERENCE_QUERY: &str = "SELECT name, sha256 FROM artifacts";

const SCHEMA: [&str; 3] = [
    "CREATE TABLE public.builds (id bigint PRIMARY KEY, project text NOT NULL, revision text NOT NULL, state text NOT NULL,
         started_at timestamptz NOT NULL DEFAULT clock_timestamp())",
    "CREATE TABLE public.runs (id bigint PRIMARY KEY, build_id bigint NOT NULL REFERENCES public.builds, step text NOT NULL,
         exit_code integer NOT NULL, took interval NOT NULL, detail jsonb NOT NULL)",
    "CREATE TABLE public.artifacts (name text PRIMARY KEY, sha256 text NOT NULL, size bigint NOT NULL,
         build_id bigint NOT NULL REFERENCES public.builds, kind text NOT NULL)",
];

/// Rows in one INSERT.
const BATCH: usize = 500;

/// Between two builds that are made while the backup runs.
const PAUSE: Duration = Duration::from_millis(25);

/// What was made.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Made {
    pub(super) builds: u64,
    pub(super) runs: u64,
    pub(super) artifacts: u64,
    pub(super) artifact_bytes: u64,
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators): archives need bytes that do not compress,
/// and nothing better than that.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        bytes
    }
}

fn write_failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(EXIT_FAILED, format!("write {}: {error}", path.display()))
        .hint("is there room? choose another place: lifeboat demo --directory DIR")
}

/// Makes the tables, `count` artifacts and the rows that name them.
pub(super) fn install(connection: &Connection, artifacts: &Path, count: u32) -> Result<Made, Failure> {
    for statement in SCHEMA {
        connection.execute(statement, &[])?;
    }
    let count = u64::from(count);
    let builds = count.div_ceil(3).max(2000);
    connection.execute(
        &format!(
            "INSERT INTO public.builds SELECT i, 'project-' || i % 7, encode(sha256(('revision' || i)::bytea), 'hex'),
                 (ARRAY['passed', 'passed', 'failed'])[1 + i % 3], '2024-01-01T00:00:00Z'::timestamptz + i * interval '37 seconds'
             FROM generate_series(1, {builds}) i"
        ),
        &[],
    )?;
    connection.execute(
        &format!(
            "INSERT INTO public.runs SELECT i, 1 + (i - 1) / 3, (ARRAY['fetch', 'build', 'test'])[1 + (i - 1) % 3], i % 5,
                 i % 600 * interval '1 second', jsonb_build_object('host', 'worker-' || i % 11, 'log', repeat(md5('detail' || i), i % 40))
             FROM generate_series(1, 3 * {builds}) i"
        ),
        &[],
    )?;
    let mut made = Made { builds, runs: 3 * builds, artifacts: count, artifact_bytes: 0 };
    let mut random = Random(u64::from_le_bytes(lifeboat_engine::random::bytes()));
    let mut rows = Vec::new();
    for number in 0..count {
        let (name, kind, bytes) = artifact(&mut random, number);
        write_artifact(artifacts, &name, &bytes)?;
        made.artifact_bytes += bytes.len() as u64;
        rows.push(format!("('{name}', '{}', {}, {}, '{kind}')", Sha256::of(&bytes), bytes.len(), 1 + number / 3));
        if rows.len() == BATCH || number + 1 == count {
            connection.execute(&format!("INSERT INTO public.artifacts VALUES {}", rows.join(", ")), &[])?;
            rows.clear();
        }
    }
    Ok(made)
}

/// One artifact: a code archive, test results or a build log.
fn artifact(random: &mut Random, number: u64) -> (String, &'static str, Vec<u8>) {
    let build = 1 + number / 3;
    match number % 3 {
        0 => {
            // Most archives are small; some are not.
            let most = if number.is_multiple_of(150) { 1 << 20 } else { 64 << 10 };
            let length = 1 + random.below(most);
            (format!("code/{build:06}/source.tar.zst"), "code", random.bytes(length))
        }
        1 => (format!("results/{build:06}/junit.xml"), "result", junit(random, build)),
        _ => (format!("logs/{build:06}/build.log"), "log", log(random)),
    }
}

fn junit(random: &mut Random, build: u64) -> Vec<u8> {
    let cases = 1 + random.below(40);
    let mut text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"build-{build}\" tests=\"{cases}\">\n");
    for case in 0..cases {
        let millis = random.below(5000);
        let _ = writeln!(text, "  <testcase classname=\"suite\" name=\"case_{case}\" time=\"{}.{:03}\"/>", millis / 1000, millis % 1000);
    }
    text.push_str("</testsuite>\n");
    text.into_bytes()
}

fn log(random: &mut Random) -> Vec<u8> {
    let mut text = String::new();
    for line in 0..random.below(400) {
        let _ = writeln!(text, "[{line:05}] compiling module {} ... ok", random.below(90));
    }
    text.into_bytes()
}

/// Writes a file aside and gives it its name when it is whole.
fn write_artifact(artifacts: &Path, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let path = artifacts.join(name);
    let aside = artifacts.with_extension("incoming");
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(artifacts))?;
        fs::write(&aside, bytes)?;
        fs::rename(&aside, &path)
    };
    write().map_err(|error| write_failed(&path, &error))
}

/// A build that was committed: the server said so at `at`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Commit {
    pub(super) build: u64,
    pub(super) at: Timestamp,
}

/// The orchestrator at work: one build after another, each with a log that its row names.
#[derive(Debug)]
pub(super) struct Work {
    ending: Arc<AtomicBool>,
    commits: Arc<Mutex<Vec<Commit>>>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl Work {
    /// Begins with the build after `last`.
    pub(super) fn start(dsn: String, artifacts: PathBuf, last: u64) -> Self {
        let (ending, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stop, committed) = (Arc::clone(&ending), Arc::clone(&commits));
        let thread = std::thread::spawn(move || {
            let connection = super::server::connect(&dsn)?;
            let mut random = Random(last);
            for build in last + 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (name, bytes) = (format!("logs/{build:06}/build.log"), log(&mut random));
                write_artifact(&artifacts, &name, &bytes)?;
                let sql = format!(
                    "WITH build AS (INSERT INTO public.builds VALUES ({build}, 'project-0', '{sha256}', 'passed') RETURNING id)
                     INSERT INTO public.artifacts SELECT '{name}', '{sha256}', {}, id, 'log' FROM build",
                    bytes.len(),
                    sha256 = Sha256::of(&bytes),
                );
                match connection.execute(&sql, &[]) {
                    Ok(()) => committed.lock().unwrap_or_else(PoisonError::into_inner).push(Commit { build, at: Timestamp::now() }),
                    // The server is being killed: what happened to this one, nobody was told.
                    Err(_) if stop.load(Ordering::Relaxed) => break,
                    Err(error) => return Err(error.into()),
                }
                std::thread::sleep(PAUSE);
            }
            Ok(())
        });
        Self { ending, commits, thread: Some(thread) }
    }

    /// The last build that was committed by now.
    pub(super) fn last(&self) -> Option<Commit> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    /// From now on a lost server is no surprise.
    pub(super) fn expect_end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Waits for the end; returns every build that was committed.
    pub(super) fn finish(mut self) -> Result<Vec<Commit>, Failure> {
        self.expect_end();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_else(|_| Err(Failure::new(EXIT_FAILED, "work on builds: the thread panicked")))?;
        }
        Ok(self.commits.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.expect_end();
    }
}
