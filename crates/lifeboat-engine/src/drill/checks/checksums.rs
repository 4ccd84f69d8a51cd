//! Do page checksums hold? Over the files of a server that was stopped properly.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lifeboat_core::drill::rotation::rotate;
use lifeboat_core::drill::{Check, CheckResult, Outcome, tool_output};
use lifeboat_core::postgres::control_file::{ClusterState, ControlFile};
use lifeboat_core::postgres::data_directory::RelationFile;
use lifeboat_core::postgres::page::{self, PAGE_BYTES};
use lifeboat_core::repository::manifest::Manifest;

use super::process::How;
use super::{Budget, Gathered, LONGEST, Programs, no_answer, timed};

/// What is checked.
#[derive(Debug, Clone, Copy)]
pub struct ChecksumsOf<'a> {
    /// The data directory; its server was stopped, and not by a crash.
    pub pgdata: &'a Path,
    /// What was restored: whether the cluster had checksums.
    pub manifest: &'a Manifest,
    /// Programs.
    pub programs: Programs<'a>,
    /// How much.
    pub budget: Budget,
    /// Threads, where it is not `pg_checksums` that reads.
    pub workers: usize,
}

/// Checks the checksum of every page with `pg_checksums`; with a budget smaller than the cluster, or without that program, of the pages of
/// some files itself. Not found: pages of zeros, and whole pages of another time.
pub fn checksums(of: &ChecksumsOf<'_>) -> CheckResult {
    timed(|| run(of))
}

fn run(of: &ChecksumsOf<'_>) -> CheckResult {
    let result = |outcome, reason: String| CheckResult::new(Check::Checksums, outcome, reason);
    let recorded = of.manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref()).map(|physical| physical.checksums.enabled);
    let path = of.pgdata.join("global/pg_control");
    let control =
        match fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| ControlFile::decode(&bytes).map_err(|e| e.to_string())) {
            Ok(control) => control,
            Err(error) => return result(Outcome::Failed, format!("read {}: {error}", path.display())),
        };
    match (control.checksums_on(), recorded) {
        (true, _) => {}
        (false, Some(true)) => return result(Outcome::Failed, "the cluster had page checksums, and has none here".into()),
        (false, _) => return result(Outcome::NotApplicable, "the cluster has no page checksums".into()),
    }
    if control.state != ClusterState::ShutDown || of.pgdata.join("postmaster.pid").exists() {
        return result(Outcome::NotChecked, "the server was not stopped properly, so pages may be behind their checksums".into());
    }
    let files = match relation_files(of.pgdata) {
        Ok(files) => files,
        Err((path, error)) => return result(Outcome::NotChecked, format!("list {}: {error}", path.display())),
    };
    let sizes: Vec<u64> = files.iter().map(|file| file.bytes).collect();
    let rotation = rotate(&sizes, of.budget.bytes, of.budget.seed);
    let program = of.programs.find("pg_checksums");
    if rotation.is_all(files.len())
        && let Ok(program) = &program
    {
        let arguments = vec!["--check".into(), "-D".into(), of.pgdata.display().to_string()];
        let ended = match of.programs.run(&program.path, arguments, Vec::new(), of.budget.left().unwrap_or(LONGEST)) {
            Ok(ended) => ended,
            Err(why) => return result(Outcome::NotChecked, why),
        };
        // Its errors may be more than are kept; its sums come last.
        let text = ended.output.head() + "\n" + &ended.output.last_lines(20).join("\n");
        let complaints = tool_output::complaints("pg_checksums", &text);
        let bad = tool_output::checksums_number(&text, "Bad checksums");
        let outcome = match (ended.how, bad) {
            (How::Code(0), Some(0)) => result(Outcome::Passed, "every page has its checksum".into()),
            (How::Code(_), Some(bad @ 1..)) => result(Outcome::Failed, format!("{bad} pages do not have their checksum")),
            // It stops at what it cannot read: a file that ends within a page is damage.
            (How::Code(1), _) if complaints.iter().any(|line| line.contains("could not read block")) => {
                result(Outcome::Failed, complaints.last().cloned().unwrap_or_default())
            }
            (how, _) => {
                let why = complaints.last().cloned().unwrap_or_default();
                result(Outcome::NotChecked, format!("{}: {why}", no_answer("pg_checksums", &how)))
            }
        };
        let bytes = if outcome.outcome == Outcome::NotChecked { 0 } else { rotation.bytes };
        return outcome.by(program.words.as_str()).of(bytes, rotation.of_bytes, "bytes", None).with(complaints);
    }
    if control.block_size as usize != PAGE_BYTES {
        return result(Outcome::NotChecked, format!("pages have {} bytes; {}", control.block_size, program.err().unwrap_or_default()));
    }
    let chosen: Vec<&Relation> = rotation.chosen.iter().map(|index| &files[*index]).collect();
    let (gathered, pages) = by_ourselves(of, &chosen, control.relation_segment_blocks);
    let seed = (!rotation.is_all(files.len())).then_some(of.budget.seed);
    let good = format!("all {pages} pages of {} of {} files have their checksum", chosen.len(), files.len());
    let bytes = gathered.bytes;
    gathered.result(Check::Checksums, good).of(bytes, rotation.of_bytes, "bytes", seed)
}

/// A file of a relation.
#[derive(Debug)]
struct Relation {
    /// Relative to the data directory.
    path: String,
    bytes: u64,
}

/// The files with pages, in the order of their names.
fn relation_files(pgdata: &Path) -> Result<Vec<Relation>, (PathBuf, io::Error)> {
    let mut out = Vec::new();
    // `base/<database>/`, `pg_tblspc/<oid>/<version>/<database>/` (manual, "Database File Layout").
    for (top, depth) in [("global", 0), ("base", 1), ("pg_tblspc", 3)] {
        walk(pgdata, top, depth, &mut out)?;
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

fn walk(pgdata: &Path, directory: &str, depth: u32, out: &mut Vec<Relation>) -> Result<(), (PathBuf, io::Error)> {
    let path = pgdata.join(directory);
    let failed = |error| (path.clone(), error);
    for entry in fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(name) = entry.file_name().to_str().map(|name| format!("{directory}/{name}")) else { continue };
        // A tablespace is a link to its directory.
        let found = fs::metadata(entry.path()).map_err(failed)?;
        if depth > 0 && found.is_dir() {
            walk(pgdata, &name, depth - 1, out)?;
        } else if depth == 0 && found.is_file() && RelationFile::parse(&name).is_some() {
            out.push(Relation { path: name, bytes: found.len() });
        }
    }
    Ok(())
}

fn by_ourselves(of: &ChecksumsOf<'_>, chosen: &[&Relation], segment_blocks: u32) -> (Gathered, u64) {
    let gathered = Mutex::new(Gathered::default());
    let (next, pages) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..of.workers.max(1) {
            scope.spawn(|| {
                while let Some(file) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if of.budget.is_over() {
                        gathered.lock().expect("no panic while held").unable(format!("{}: the time was over", file.path));
                        continue;
                    }
                    let checked = check_file(of.pgdata, file, segment_blocks, &pages, &gathered);
                    let mut gathered = gathered.lock().expect("no panic while held");
                    gathered.bytes += file.bytes;
                    if let Err(error) = checked {
                        // EIO: what the disk does not give back is damage of what was restored.
                        gathered.bad(format!("read {}: {error}", file.path));
                    }
                }
            });
        }
    });
    (gathered.into_inner().expect("no panic while held"), pages.into_inner())
}

fn check_file(pgdata: &Path, file: &Relation, segment_blocks: u32, pages: &AtomicU64, gathered: &Mutex<Gathered>) -> io::Result<()> {
    let source = File::open(pgdata.join(&file.path))?;
    let Some(relation) = RelationFile::parse(&file.path) else { return Ok(()) };
    let first = relation.first_block(segment_blocks);
    let mut buffer = vec![0; 128 * PAGE_BYTES];
    let mut at = 0u64;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match source.read_at(&mut buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let (whole, tail) = buffer[..filled].as_chunks::<PAGE_BYTES>();
        for (number, page) in whole.iter().enumerate() {
            let block = at / PAGE_BYTES as u64 + number as u64;
            if let Err(problem) = page::check(page, first.wrapping_add(block as u32)) {
                gathered.lock().expect("no panic while held").bad(format!("{}, page {block}: {problem}", file.path));
            }
        }
        pages.fetch_add(whole.len() as u64, Ordering::Relaxed);
        if !tail.is_empty() {
            // After a clean stop there are whole pages only.
            gathered.lock().expect("no panic while held").bad(format!("{} ends {} bytes into a page", file.path, tail.len()));
        }
        if filled < buffer.len() {
            return Ok(());
        }
        at += filled as u64;
    }
}
