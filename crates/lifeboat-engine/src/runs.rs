//! What was done on this host, and how it ended: a few small files below a directory of its state, one for each operation.
//!
//! Whoever runs an operation says so first, and how it ended afterwards; whose process is gone and left no result was interrupted, by a crash or by
//! somebody who ended it, and that shows without anybody's help. The repository is not told of any of this: it may be what does not answer.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_core::status::{Outcome, RunSeen};
use serde::{Deserialize, Serialize};

use crate::process::ProcessId;
use crate::replace::{Mode, replace};

/// The most bytes that a file here has.
const MAX_BYTES: u64 = 1 << 20;

/// Whoever is about to run something.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Begun {
    id: String,
    started: Timestamp,
    process: ProcessId,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// How.
    pub outcome: Outcome,
    /// The exit code; `None`: its process gave none.
    pub exit_code: Option<u8>,
    /// Why it failed.
    pub message: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// It looked at a part of what it could have looked at: that it found nothing takes nothing back of what one before it found.
    pub partial: bool,
}

/// The result of a run, behind that of the one `before`.
fn result(before: Option<&RunSeen>, operation: &str, begun: &Begun, ended: Option<Timestamp>, ending: Ending) -> RunSeen {
    let good = matches!(ending.outcome, Outcome::Succeeded | Outcome::Findings);
    let succeeded = ended.filter(|_| good);
    let took = |ended: Timestamp| ended.duration_since(begun.started).as_secs_f64().max(0.0);
    let finds_damage = ending.exit_code == Some(RunSeen::NOT_VERIFIED);
    let whole = ending.outcome == Outcome::Succeeded && !ending.partial;
    let holds = |before: &&RunSeen| match before.outcome {
        // Something could not be looked at: that another part could be, or that nothing could, takes none of it back. What is found anew does.
        Outcome::Findings => before.operation == "verify" && ending.outcome != Outcome::Findings,
        _ => before.found_damage(),
    };
    if let Some(before) = before.filter(|_| !whole && !finds_damage).filter(holds) {
        return RunSeen {
            failures: before.failures + u64::from(!good),
            last_success: succeeded.or(before.last_success),
            last_success_seconds: succeeded.map(took).or(before.last_success_seconds),
            ..before.clone()
        };
    }
    RunSeen {
        operation: operation.to_owned(),
        id: begun.id.clone(),
        started: begun.started,
        ended,
        outcome: ending.outcome,
        exit_code: ending.exit_code,
        message: ending.message,
        hint: ending.hint,
        failures: if good { 0 } else { before.map_or(0, |before| before.failures) + 1 },
        last_success: succeeded.or(before.and_then(|before| before.last_success)),
        last_success_seconds: succeeded.map(took).or(before.and_then(|before| before.last_success_seconds)),
    }
}

/// The runs of this host.
#[derive(Debug, Clone)]
pub struct Runs {
    directory: PathBuf,
}

/// A run that has begun.
#[derive(Debug)]
pub struct Run {
    runs: Runs,
    operation: String,
    begun: Begun,
}

impl Runs {
    /// Those below `state`, which is made when there is something to write.
    pub fn new(state: &Path) -> Self {
        Self { directory: state.join("runs") }
    }

    fn result_path(&self, operation: &str) -> PathBuf {
        self.directory.join(format!("{operation}.json"))
    }

    fn lock(&self) -> io::Result<File> {
        if !self.directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)?;
        }
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(self.directory.join("lock"))?;
        file.lock()?;
        Ok(file)
    }

    /// Says that `operation` begins in this process.
    ///
    /// # Errors
    ///
    /// The file system. Nothing should fail for want of this.
    pub fn begin(&self, operation: &str, id: &str, now: Timestamp) -> io::Result<Run> {
        let _lock = self.lock()?;
        self.settle(operation)?;
        let begun = Begun { id: id.to_owned(), started: now, process: ProcessId::own() };
        write_whole(&self.running_path(operation, id), &begun)?;
        Ok(Run { runs: self.clone(), operation: operation.to_owned(), begun })
    }

    fn running_path(&self, operation: &str, id: &str) -> PathBuf {
        self.directory.join(format!("{operation}.{id}.running"))
    }

    /// Everything that has begun and left no result.
    fn running(&self, operation: &str) -> io::Result<Vec<(PathBuf, Begun)>> {
        let mut found = Vec::new();
        for entry in entries(&self.directory)? {
            let name = name_of(&entry);
            let ours = name.strip_prefix(operation).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".running"));
            if ours && let Some(begun) = read::<Begun>(&entry)? {
                found.push((entry, begun));
            }
        }
        found.sort_by_key(|(_, begun)| begun.started);
        Ok(found)
    }

    /// Makes results of those whose process is gone.
    fn settle(&self, operation: &str) -> io::Result<()> {
        for (path, begun) in self.running(operation)? {
            if !begun.process.is_alive() {
                let before = self.result(operation)?;
                write_whole(&self.result_path(operation), &result(before.as_ref(), operation, &begun, None, interrupted()))?;
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The run that ended last.
    fn result(&self, operation: &str) -> io::Result<Option<RunSeen>> {
        read(&self.result_path(operation))
    }

    /// The last run of each operation, changed by nobody: one that runs now before one that ended, one that was interrupted as what it is.
    ///
    /// # Errors
    ///
    /// The file system.
    pub fn last(&self) -> io::Result<Vec<RunSeen>> {
        let mut operations: Vec<String> = entries(&self.directory)?
            .iter()
            .filter_map(|path| {
                let name = name_of(path);
                let (operation, rest) = name.split_once('.')?;
                (rest == "json" || rest.ends_with(".running")).then(|| operation.to_owned())
            })
            .collect();
        operations.sort();
        operations.dedup();
        let mut seen = Vec::new();
        for operation in operations {
            let mut last = self.result(&operation)?;
            let mut alive = None;
            for (_, begun) in self.running(&operation)? {
                match begun.process.is_alive() {
                    true => alive = Some(begun),
                    false => last = Some(result(last.as_ref(), &operation, &begun, None, interrupted())),
                }
            }
            seen.extend(match alive {
                Some(begun) => Some(running(&operation, begun, last)),
                None => last,
            });
        }
        Ok(seen)
    }
}

/// One that runs now. What the one before came to still holds, if it was a failure or found something.
fn running(operation: &str, begun: Begun, last: Option<RunSeen>) -> RunSeen {
    let held = last.as_ref().filter(|last| last.failures > 0 || last.outcome == Outcome::Findings);
    RunSeen {
        operation: operation.to_owned(),
        id: begun.id,
        started: begun.started,
        ended: None,
        outcome: Outcome::Running,
        exit_code: held.and_then(|last| last.exit_code),
        message: held.and_then(|last| last.message.clone()),
        hint: held.and_then(|last| last.hint.clone()),
        failures: last.as_ref().map_or(0, |last| last.failures),
        last_success: last.as_ref().and_then(|last| last.last_success),
        last_success_seconds: last.and_then(|last| last.last_success_seconds),
    }
}

fn interrupted() -> Ending {
    Ending { outcome: Outcome::Interrupted, exit_code: None, message: None, hint: None, partial: false }
}

impl Run {
    /// Says how it ended.
    ///
    /// # Errors
    ///
    /// The file system.
    pub fn end(self, ending: Ending, now: Timestamp) -> io::Result<()> {
        let _lock = self.runs.lock()?;
        let before = self.runs.result(&self.operation)?;
        let ended = result(before.as_ref(), &self.operation, &self.begun, Some(now), ending);
        write_whole(&self.runs.result_path(&self.operation), &ended)?;
        fs::remove_file(self.runs.running_path(&self.operation, &self.begun.id))
    }

    /// Says that it was none: somebody else is at it.
    ///
    /// # Errors
    ///
    /// The file system.
    pub fn withdraw(self) -> io::Result<()> {
        let _lock = self.runs.lock()?;
        fs::remove_file(self.runs.running_path(&self.operation, &self.begun.id))
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Reads a document. `None`: it is not there. One that cannot be understood counts as none: the next result replaces it.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES), &mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Writes a document whole or not at all.
pub(crate) fn write_whole(path: &Path, document: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    replace(path, &text, Mode::AtMost(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn ending(outcome: Outcome, exit_code: u8) -> Ending {
        let message = (outcome == Outcome::Failed).then(|| "the store is full".to_owned());
        Ending { outcome, exit_code: Some(exit_code), message, hint: None, partial: false }
    }

    fn only(runs: &Runs) -> RunSeen {
        let mut last = runs.last().unwrap();
        assert_eq!(last.len(), 1, "{last:?}");
        last.remove(0)
    }

    #[test]
    fn how_it_ended_is_remembered_and_failures_are_counted_until_one_succeeds() {
        let place = tempfile::tempdir().unwrap();
        let runs = Runs::new(&place.path().join("not/there/yet"));
        assert_eq!(runs.last().unwrap(), []);
        let run = runs.begin("backup", "a", at(0)).unwrap();
        assert_eq!((only(&runs).outcome, only(&runs).ended), (Outcome::Running, None));
        run.end(ending(Outcome::Succeeded, 0), at(60)).unwrap();
        assert_eq!((only(&runs).last_success, only(&runs).last_success_seconds), (Some(at(60)), Some(60.0)));
        for (failures, id) in [(1, "b"), (2, "c")] {
            runs.begin("backup", id, at(100)).unwrap().end(ending(Outcome::Failed, 1), at(110)).unwrap();
            assert_eq!((only(&runs).failures, only(&runs).last_success), (failures, Some(at(60))));
        }
        // While another try runs, it is not forgotten that the last ones failed.
        let run = runs.begin("backup", "d", at(200)).unwrap();
        assert_eq!((only(&runs).outcome, only(&runs).failures), (Outcome::Running, 2));
        assert_eq!(only(&runs).message.as_deref(), Some("the store is full"));
        run.end(ending(Outcome::Findings, 3), at(230)).unwrap();
        assert_eq!((only(&runs).failures, only(&runs).last_success), (0, Some(at(230))));
        // Somebody else was at it: that is no result.
        runs.begin("backup", "e", at(300)).unwrap().withdraw().unwrap();
        assert_eq!(only(&runs).id, "d");
    }

    /// A verification of a twentieth that happens not to meet the damage of yesterday has healed nothing.
    #[test]
    fn what_a_part_did_not_find_takes_nothing_back() {
        let place = tempfile::tempdir().unwrap();
        let runs = Runs::new(place.path());
        let verify =
            |ending: Ending, at: i64| runs.begin("verify", &at.to_string(), self::at(at)).unwrap().end(ending, self::at(at + 1)).unwrap();
        let part = |outcome, exit_code| Ending { partial: true, ..ending(outcome, exit_code) };
        verify(part(Outcome::Succeeded, 0), 0);
        assert_eq!((only(&runs).outcome, only(&runs).failures), (Outcome::Succeeded, 0));
        verify(part(Outcome::Failed, 21), 100);
        verify(part(Outcome::Succeeded, 0), 200);
        let still = only(&runs);
        assert_eq!(
            (still.outcome, still.exit_code, still.started, still.last_success),
            (Outcome::Failed, Some(21), at(100), Some(at(201)))
        );
        // One that could not be done says nothing of damage, and is no reason to forget it.
        verify(part(Outcome::Failed, 1), 300);
        assert_eq!((only(&runs).exit_code, only(&runs).failures), (Some(21), 2));
        verify(part(Outcome::Succeeded, 0), 400);
        assert_eq!(only(&runs).exit_code, Some(21));
        verify(ending(Outcome::Succeeded, 0), 500);
        assert_eq!((only(&runs).outcome, only(&runs).failures), (Outcome::Succeeded, 0));
    }

    /// What the sample of one night could not read, the sample of the next night does not come by.
    #[test]
    fn what_a_part_could_not_read_is_not_taken_back_by_another_part() {
        let place = tempfile::tempdir().unwrap();
        let runs = Runs::new(place.path());
        let begin = |operation: &str, at: i64| runs.begin(operation, &at.to_string(), self::at(at)).unwrap();
        let verify = |ending: Ending, at: i64| begin("verify", at).end(ending, self::at(at + 1)).unwrap();
        let part = |outcome, exit_code| Ending { partial: true, ..ending(outcome, exit_code) };
        let unread = Ending { message: Some("a sector is bad".into()), ..part(Outcome::Findings, 3) };
        verify(unread.clone(), 0);
        verify(part(Outcome::Succeeded, 0), 100);
        let still = only(&runs);
        assert_eq!((still.outcome, still.started, still.last_success), (Outcome::Findings, at(0), Some(at(101))));
        assert_eq!(still.message.as_deref(), Some("a sector is bad"));
        // One that could not be done says nothing of it.
        verify(part(Outcome::Failed, 1), 200);
        assert_eq!((only(&runs).outcome, only(&runs).failures), (Outcome::Findings, 1));
        // One that runs has not ended well yet.
        let run = begin("verify", 300);
        let now = only(&runs);
        assert_eq!((now.outcome, now.exit_code, now.message.as_deref()), (Outcome::Running, Some(3), Some("a sector is bad")));
        run.end(part(Outcome::Failed, 21), at(301)).unwrap();
        assert_eq!((only(&runs).outcome, only(&runs).exit_code), (Outcome::Failed, Some(21)), "damage is worse");
        verify(unread.clone(), 400);
        assert_eq!(only(&runs).exit_code, Some(21), "and not taken back either");
        verify(ending(Outcome::Succeeded, 0), 500);
        verify(unread, 600);
        verify(ending(Outcome::Succeeded, 0), 700);
        assert_eq!((only(&runs).outcome, only(&runs).failures), (Outcome::Succeeded, 0));
        // That one could not be done at all is over as soon as one was.
        verify(part(Outcome::Failed, 1), 800);
        verify(part(Outcome::Succeeded, 0), 900);
        assert_eq!(only(&runs).outcome, Outcome::Succeeded);
        // What another operation had to say is of its own day, but no shorter.
        begin("prune", 1000).end(ending(Outcome::Findings, 3), at(1001)).unwrap();
        let run = begin("prune", 1100);
        let prune = |runs: &Runs| runs.last().unwrap().into_iter().find(|run| run.operation == "prune").unwrap();
        assert_eq!((prune(&runs).outcome, prune(&runs).exit_code), (Outcome::Running, Some(3)));
        run.end(ending(Outcome::Succeeded, 0), at(1101)).unwrap();
        assert_eq!(prune(&runs).outcome, Outcome::Succeeded);
    }

    #[test]
    fn one_whose_process_is_gone_was_interrupted() {
        let place = tempfile::tempdir().unwrap();
        let runs = Runs::new(place.path());
        runs.begin("verify", "a", at(0)).unwrap().end(ending(Outcome::Succeeded, 0), at(1)).unwrap();
        std::mem::forget(runs.begin("verify", "b", at(10)).unwrap());
        let path = runs.running_path("verify", "b");
        let begun: Begun = read(&path).unwrap().unwrap();
        write_whole(&path, &Begun { process: ProcessId { boot: "the one before".into(), ..begun.process.clone() }, ..begun }).unwrap();
        for _ in 0..2 {
            assert_eq!(
                (only(&runs).outcome, only(&runs).failures, only(&runs).id.as_str()),
                (Outcome::Interrupted, 1, "b"),
                "looking changes nothing"
            );
        }
        // The next one makes a result of it.
        let run = runs.begin("verify", "c", at(20)).unwrap();
        assert!(!path.exists());
        run.end(ending(Outcome::Failed, 1), at(21)).unwrap();
        assert_eq!((only(&runs).outcome, only(&runs).failures, only(&runs).last_success), (Outcome::Failed, 2, Some(at(1))));
    }

    #[test]
    fn two_at_once_are_two_and_what_cannot_be_read_counts_as_none() {
        let place = tempfile::tempdir().unwrap();
        let runs = Runs::new(place.path());
        let (one, two) = (runs.begin("backup", "a", at(0)).unwrap(), runs.begin("backup", "b", at(1)).unwrap());
        two.end(ending(Outcome::Failed, 1), at(2)).unwrap();
        assert_eq!((only(&runs).id.as_str(), only(&runs).outcome, only(&runs).failures), ("a", Outcome::Running, 1));
        one.end(ending(Outcome::Succeeded, 0), at(3)).unwrap();
        assert_eq!((only(&runs).id.as_str(), only(&runs).failures), ("a", 0));
        fs::write(runs.result_path("backup"), "{").unwrap();
        assert_eq!(runs.last().unwrap(), []);
        runs.begin("backup", "c", at(4)).unwrap().end(ending(Outcome::Succeeded, 0), at(5)).unwrap();
        assert_eq!(only(&runs).id, "c");
    }
}
