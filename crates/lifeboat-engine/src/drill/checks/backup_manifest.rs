//! Does `pg_verifybackup` agree?

use std::path::Path;

use lifeboat_core::drill::{Check, CheckResult, Outcome, tool_output};
use lifeboat_core::repository::manifest::{Manifest, Physical};
use lifeboat_core::wal::segments_between;

use super::process::How;
use super::{Budget, LONGEST, Programs, no_answer, timed};

/// Runs `pg_verifybackup` of the backup's version over a restored directory whose server was not started yet.
///
/// A restore adds `postgresql.auto.conf`, `recovery.signal` and `backup_manifest` itself, which the program leaves out
/// (`src/bin/pg_verifybackup/pg_verifybackup.c`, `simple_string_list_append(&context.ignore_list, …)`); for `pg_control`,
/// `tablespace_map` and configuration from outside the manifest is adjusted when they are written. `ours` names what else was
/// changed since, relative to the directory.
///
/// WAL is parsed where all that the backup needs is in `pg_wal`; elsewhere it comes from the archive, and is verified there.
pub fn backup_manifest(manifest: &Manifest, pgdata: &Path, ours: &[&str], programs: &Programs<'_>, budget: &Budget) -> CheckResult {
    timed(|| run(manifest, pgdata, ours, programs, budget))
}

fn run(manifest: &Manifest, pgdata: &Path, ours: &[&str], programs: &Programs<'_>, budget: &Budget) -> CheckResult {
    let result = |outcome, reason: String| CheckResult::new(Check::BackupManifest, outcome, reason);
    let physical = match &manifest.postgres {
        None => return result(Outcome::NotApplicable, "the backup has no database".into()),
        Some(postgres) => match &postgres.physical {
            None => return result(Outcome::NotApplicable, "a logical backup has no backup_manifest".into()),
            Some(physical) => physical,
        },
    };
    if physical.backup_manifest.is_none() {
        return result(Outcome::NotChecked, "the backup was taken without a backup_manifest".into());
    }
    if !pgdata.join("backup_manifest").is_file() {
        return result(Outcome::Failed, "the backup has a backup_manifest, and it was not restored".into());
    }
    let program = match programs.find("pg_verifybackup") {
        Ok(program) => program,
        Err(why) => return result(Outcome::NotChecked, why),
    };
    let wal = wal_is_there(physical, pgdata);
    let verify = |wal: bool| {
        let mut arguments: Vec<String> = ours.iter().map(|path| format!("--ignore={path}")).collect();
        if !wal {
            arguments.push("--no-parse-wal".into());
        }
        arguments.push(pgdata.display().to_string());
        programs.run(&program.path, arguments, Vec::new(), budget.left().unwrap_or(LONGEST))
    };
    let mut ended = verify(wal);
    let mut said = if wal { "with its WAL" } else { "its WAL comes from the archive" };
    // It refuses to work beside a pg_waldump of another minor version: then WAL is left to recovery, which checks every record.
    if wal && ended.as_ref().is_ok_and(|ended| ended.how == How::Code(1) && ended.output.head().contains("program \"pg_waldump\"")) {
        ended = verify(false);
        said = "without its WAL: there is no pg_waldump of the same version";
    }
    let ended = match ended {
        Ok(ended) => ended,
        Err(why) => return result(Outcome::NotChecked, why),
    };
    let complaints = tool_output::complaints("pg_verifybackup", &ended.output.head());
    let denied = |complaint: &String| complaint.contains("Permission denied");
    let outcome = match (ended.how, complaints.first()) {
        (How::Code(0), None) => result(Outcome::Passed, format!("every file is the one that was backed up ({said})")),
        (How::Code(_), Some(first)) if complaints.iter().all(denied) => result(Outcome::NotChecked, first.clone()),
        (How::Code(_), Some(first)) => {
            let more = if complaints.len() > 1 { format!(", and {} more", complaints.len() - 1) } else { String::new() };
            result(Outcome::Failed, format!("{first}{more}"))
        }
        (how, _) => {
            let last = ended.output.last_lines(1).into_iter().next().unwrap_or_default();
            result(Outcome::NotChecked, format!("{}: {last}", no_answer("pg_verifybackup", &how)))
        }
    };
    let files = if outcome.outcome == Outcome::NotChecked { 0 } else { manifest.files };
    outcome.by(program.words).of(files, manifest.files, "files", None).with(complaints)
}

/// Whether every segment that the backup needs stands in `pg_wal`.
fn wal_is_there(physical: &Physical, pgdata: &Path) -> bool {
    let size = physical.wal.segment_size;
    physical.wal.included
        && segments_between(physical.timeline, physical.start_lsn, physical.stop_lsn, size)
            .all(|segment| pgdata.join("pg_wal").join(segment.file_name(size)).is_file())
}
