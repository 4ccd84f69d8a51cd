//! The restored server of a drill, from its first start to its last check.

use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_core::drill::server_log::LogPart;
use lifeboat_core::drill::{Check, CheckResult, Control, Isolation, Outcome, Recovery, WalSummary};
use lifeboat_core::repository::manifest::{CopyMethod, Physical, TruthEntry};
use lifeboat_core::restore::{self as planning, DatabasePlan, Target as RecoveryTarget};
use lifeboat_core::truth::{Table, Truth};
use lifeboat_core::wal::Lsn;
use lifeboat_core::wal::fetch::Bounds;

use super::checks::{self, Budget, ChecksumsOf, Depth, Programs, Smoke, Target};
use super::controls::{Tried, one_line};
use super::feeder::{Fed, Feeder, Source};
use super::ground::Way;
use super::place::{Goal, Place, Server, StartTimes, StopMode};
use super::run::{Run, artifacts, files_again};
use crate::artifacts::ArtifactSet;
use crate::postgres::{Connection, Dsn, PgError, Purpose, identifier};
use crate::progress::Unwatched;
use crate::truth;
use crate::wal::WalReader;

/// What came of it, beside the checks.
#[derive(Default)]
pub(super) struct Served {
    /// Seconds from the disaster to the first answer of a server that takes writes, with what only a drill does.
    pub(super) first_query: Option<f64>,
    /// The last moment that came back, and where that is from.
    pub(super) recovered: Option<(Timestamp, String)>,
    pub(super) recovery: Option<Recovery>,
    pub(super) isolation: Vec<Isolation>,
    pub(super) server_settings: Vec<(String, String)>,
    pub(super) programs: Vec<PathBuf>,
}

/// Runs `work` with somebody who brings WAL, where there is an archive; then what was brought.
pub(super) fn fed<R>(
    run: &super::run::DrillSettings<'_>,
    way: Option<&Way>,
    place: &Place,
    repository: &crate::repository::Repository,
    work: impl FnOnce(Option<String>) -> R,
) -> Result<(R, Fed), String> {
    let Some(way) = way else { return Ok((work(None), Fed::default())) };
    let ground = run.ground;
    let reader = WalReader::new(repository, way.cluster, ground.trust, ground.identities.clone());
    // What was archived when the disaster happened is all that there is: the rest would never have come.
    let until = way.choice.located.is_none().then_some(way.choice.to);
    let bounds = Bounds { until, ..way.choice.bounds.clone() };
    let source = Source { reader: &reader, bounds: &bounds, allow_empty: false };
    std::thread::scope(|scope| {
        let feeder = Feeder::start(scope, place, source, ground.workers, run.ahead_bytes).map_err(one_line)?;
        let done = work(Some(feeder.command()));
        Ok((done, feeder.stop()))
    })
}

/// Starts the server in what was restored, checks everything, and stops it.
pub(super) fn serve(run: &mut Run<'_>) -> Served {
    let Some(database) = run.plan.restore.database.clone() else { return Served::default() };
    let mut served = Served::default();
    let repository = match run.settings.ground.repository() {
        Ok(repository) => repository,
        Err(why) => {
            run.check(CheckResult::new(Check::Start, Outcome::Failed, why));
            return served;
        }
    };
    let (settings, place) = (run.settings, run.place);
    backup_manifest(run, &database);
    let done = fed(settings, settings.ground.way, place, &repository, |command| start(run, &mut served, &database, command));
    let (server, fed) = match done {
        Ok(done) => done,
        Err(why) => {
            run.check(CheckResult::new(Check::Start, Outcome::Failed, why));
            return served;
        }
    };
    let Some((server, mut logs)) = server else {
        say_what_failed(run, &fed);
        return served;
    };
    recovery(run, &mut served, &database, &server, &fed);
    served.isolation = server.isolation();
    served.server_settings = server.settings().to_vec();
    served.programs = programs(run, server.major());
    artifacts(run);
    let checking = Instant::now();
    run.settings.ground.progress.phase("check");
    let server = online(run, server, &mut logs);
    if let Some(server) = server {
        let begun = Instant::now();
        let row_changed = row_changed(run, &server);
        run.controls.push(row_changed.timed(Control::RowChanged, begun));
        // What a control broke has no part in what follows, but for the log.
        logs.push((server.log_text(), true));
        if let Err(error) = server.stop(StopMode::Fast) {
            run.notes.push(one_line(error));
        }
        offline(run, &database);
    }
    let parts: Vec<LogPart<'_>> = logs.iter().map(|(text, provoked)| LogPart { text, provoked: *provoked }).collect();
    let result = checks::server_log(&parts);
    run.check(result);
    run.watch.phase("verify", checking, false);
    served
}

/// A part of the log, and whether errors in it were provoked.
type Logs = Vec<(String, bool)>;

fn programs_of<'a>(run: &Run<'a>, major: u32) -> Programs<'a> {
    Programs { bin_directory: run.settings.bin_directory, major, run_as: run.place.owner(), directory: run.place.directory() }
}

fn major(database: &DatabasePlan) -> u32 {
    database.version_num.unwrap_or(0) / 10_000
}

/// What PostgreSQL's own manifest says of the files, before a server changes them.
fn backup_manifest(run: &mut Run<'_>, database: &DatabasePlan) {
    let begun = Instant::now();
    let manifest = &run.settings.ground.backup.manifest;
    let budget = Budget { bytes: u64::MAX, seed: run.settings.number, deadline: None };
    let pgdata = Path::new(&database.pgdata);
    let result = checks::backup_manifest(manifest, pgdata, &[], &programs_of(run, major(database)), &budget);
    run.watch.exclude("pg_verifybackup", begun);
    run.check(result);
}

/// First to the moment of the truth, if there is one, then to the target.
fn start(run: &mut Run<'_>, served: &mut Served, database: &DatabasePlan, command: Option<String>) -> Option<(Server, Logs)> {
    let mut logs = Logs::new();
    run.settings.ground.progress.phase("recover");
    truth_stop(run, database, command.as_ref(), &mut logs);
    let begun = Instant::now();
    let wanted = run.settings.start(Goal::Writable, database.settings.clone(), command.clone());
    match Server::start(run.place, run.settings.bin_directory, major(database), &wanted) {
        Ok(server) => {
            // To the answer, not to when we had noticed it and looked around.
            let took = server.times().first_write.unwrap_or_else(|| begun.elapsed().as_secs_f64());
            served.first_query = Some(run.watch.now() - begun.elapsed().as_secs_f64() + took);
            phases(run, begun, server.times(), took);
            let version = run.settings.ground.backup.manifest.postgres.as_ref().and_then(|postgres| postgres.version_num);
            let said = format!("PostgreSQL {} answered, and takes writes", version.map_or(0, |version| version / 10_000));
            run.check(CheckResult { seconds: took, ..CheckResult::new(Check::Start, Outcome::Passed, said) });
            Some((server, logs))
        }
        Err(error) => {
            run.watch.phase("start", begun, true);
            run.timed(begun, CheckResult::new(Check::Start, Outcome::Failed, one_line(error)));
            None
        }
    }
}

/// What the time from the start of the process to its first answer was spent on.
fn phases(run: &mut Run<'_>, begun: Instant, times: StartTimes, took: f64) {
    let redo = times.redo.unwrap_or(0.0).clamp(0.0, took);
    let recovered = times.recovered.unwrap_or(took).clamp(redo, took);
    let at = |seconds: f64| begun + std::time::Duration::from_secs_f64(seconds);
    run.watch.part("start", begun, redo, true);
    run.watch.part("replay", at(redo), recovered - redo, true);
    run.watch.part("open", at(recovered), took - recovered, true);
}

/// The server could not be brought to its end: what could not be brought to it is the reason, and says more than its log.
fn say_what_failed(run: &mut Run<'_>, fed: &Fed) {
    if let Some(why) = fed.failed.first() {
        run.check(CheckResult::new(Check::Recovery, Outcome::Failed, why.clone()).with(fed.failed.iter().cloned()));
    } else {
        run.check(CheckResult::new(Check::Recovery, Outcome::NotChecked, "the server did not start"));
    }
}

/// Recovers to the moment at which the tables were read for the backup, and reads them again.
fn truth_stop(run: &mut Run<'_>, database: &DatabasePlan, command: Option<&String>, logs: &mut Logs) {
    let not = |outcome, why: String| CheckResult::new(Check::Truth, outcome, why);
    let (truth, physical) = match recorded(run, command.is_some()) {
        Ok(found) => found,
        Err(result) => return run.check(*result),
    };
    let begun = Instant::now();
    let target = vec![("recovery_target_name".into(), truth.point.name.clone()), timeline_setting(database, &physical)];
    let wanted = run.settings.start(Goal::Paused, target, command.cloned());
    let server = match Server::start(run.place, run.settings.bin_directory, major(database), &wanted) {
        Ok(server) => server,
        Err(error) => {
            // A standby whose snapshot overflowed does not open, and PostgreSQL then promotes where it should have paused
            // (`recoveryPausesHere` in `xlogrecovery.c`). What is wrong with the files shows when recovery goes on from the beginning.
            let mut why = format!("recovery did not stop at {}: {}", truth.point.name, one_line(error));
            if let Err(problem) = files_again(run) {
                why = format!("{why}; and the files did not come back a second time: {problem}");
            }
            run.watch.exclude("replay, in vain", begun);
            return run.timed(begun, not(Outcome::NotChecked, why));
        }
    };
    run.watch.phase("replay", begun, true);
    let comparing = Instant::now();
    let result = truth::compare(&server.dsn(server.database()), &truth, &Unwatched);
    run.watch.exclude("count rows", comparing);
    run.check(result);
    logs.push((server.log_text(), false));
    let stopping = Instant::now();
    if let Err(error) = server.stop(StopMode::Fast) {
        run.notes.push(one_line(error));
    }
    run.watch.exclude("stop", stopping);
}

/// The moment lies on the backup's own timeline, or on one that it came to: the target's history has it.
fn timeline_setting(database: &DatabasePlan, physical: &Physical) -> (String, String) {
    let planned = database.settings.iter().find(|(name, _)| name == "recovery_target_timeline");
    let planned = planned.map_or_else(|| physical.timeline.to_string(), |(_, value)| value.clone());
    ("recovery_target_timeline".into(), planned)
}

/// The truth, if it was recorded and can be reached; otherwise what the check comes to without it.
fn recorded(run: &Run<'_>, archive: bool) -> Result<(Truth, Physical), Box<CheckResult>> {
    let result = |outcome, why: String| Box::new(CheckResult::new(Check::Truth, outcome, why));
    let ground = run.settings.ground;
    let postgres = ground.backup.manifest.postgres.as_ref();
    let stored = match postgres.and_then(|postgres| postgres.truth.as_ref()) {
        Some(TruthEntry::Stored(stored)) => stored,
        Some(TruthEntry::Missing(why)) => return Err(result(Outcome::NotChecked, format!("it was not recorded: {why}"))),
        None => return Err(result(Outcome::NotChecked, "the backup did not record it: drill.truth_bytes, or an older lifeboat".into())),
    };
    let Some(physical) = postgres.and_then(|postgres| postgres.physical.clone()) else {
        return Err(result(Outcome::NotChecked, "the backup is a dump, which has no moment that a server could be stopped at".into()));
    };
    let reached = ground.way.map(|way| way.choice.to.max(way.choice.end));
    if !stored.own_wal && (!archive || reached.is_none_or(|reached| reached < stored.lsn)) {
        let why = format!("its moment, {}, lies behind the WAL that there is on the way to the target", stored.lsn);
        return Err(result(Outcome::NotChecked, why));
    }
    // To an earlier target recovery must not go further, and there is no way back. To the end it goes on with the backup's own WAL.
    let to_the_end = stored.own_wal && run.plan.restore.database.as_ref().is_some_and(|plan| plan.target == RecoveryTarget::Latest);
    if let Some(way) = ground.way.filter(|way| !to_the_end && way.choice.end < stored.lsn) {
        let why = format!("its moment, {}, lies behind the target at {}", stored.lsn, way.choice.end);
        return Err(result(Outcome::NotChecked, why));
    }
    let repository = ground.repository().map_err(|why| result(Outcome::NotChecked, why))?;
    match truth::read(&repository, ground.backup, ground.identities) {
        Ok(Some(truth)) => Ok((truth, physical)),
        Ok(None) => Err(result(Outcome::NotChecked, "it was not recorded".into())),
        Err(error) => Err(result(Outcome::Failed, one_line(error))),
    }
}

/// What was promised, and what was reached.
fn recovery(run: &mut Run<'_>, served: &mut Served, database: &DatabasePlan, server: &Server, fed: &Fed) {
    let begun = Instant::now();
    let ground = run.settings.ground;
    if database.copy == CopyMethod::Logical {
        run.check(CheckResult::new(Check::Recovery, Outcome::NotApplicable, "nothing is replayed over a dump"));
        let moment = ground.backup.manifest.started;
        served.recovered = Some((moment, "backup".into()));
        return;
    }
    let reached = match server.recovered() {
        Ok(reached) => reached,
        Err(error) => return run.timed(begun, CheckResult::new(Check::Recovery, Outcome::Failed, error.to_string())),
    };
    let stop = database.stop_lsn.unwrap_or_default();
    let promised = match (ground.way, &database.target) {
        (Some(way), _) => way.choice.end.max(stop),
        (None, _) => stop,
    };
    let start = ground.backup.manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref()).map(|p| p.start_lsn);
    let replayed = reached.lsn.0.saturating_sub(start.unwrap_or(reached.lsn).0);
    served.recovery = Some(Recovery {
        target: planning::describe(&database.target),
        promised: Some(promised),
        reached: Some(reached.lsn),
        timeline: Some(reached.timeline),
        last_commit: reached.last_commit,
        wal: WalSummary { bytes: replayed, segments: fed.segments },
    });
    let result = |outcome, why: String| CheckResult::new(Check::Recovery, outcome, why);
    let result = if reached.in_recovery {
        result(Outcome::Failed, "the server is still in recovery".into())
    } else if reached.lsn < promised {
        result(Outcome::Failed, format!("it ended at {}, and WAL up to {promised} was promised", reached.lsn))
    } else if let Some(why) = overshot(ground.way, &database.target, reached.lsn, reached.last_commit) {
        result(Outcome::Failed, why)
    } else if let Some(why) = fed.failed.first() {
        result(Outcome::Failed, why.clone())
    } else {
        result(Outcome::Passed, format!("asked for {}, recovery ended at {}", planning::describe(&database.target), reached.lsn))
    };
    run.timed(begun, result);
    let consistent = database.consistent_at.unwrap_or(ground.backup.manifest.started);
    let dsn = application_dsn(run, server);
    let recovered = checks::recovered_moment(dsn.as_ref(), run.settings.heartbeat, reached.last_commit, consistent, run.settings.failure);
    run.notes.extend(recovered.notes);
    served.recovered = Some((recovered.moment, recovered.source.to_owned()));
}

/// Recovery that goes behind its target brings back what somebody wanted gone.
fn overshot(way: Option<&Way>, target: &RecoveryTarget, reached: Lsn, last_commit: Option<Timestamp>) -> Option<String> {
    match target {
        RecoveryTarget::Time(time) => {
            last_commit.filter(|last| last > time).map(|last| format!("a commit of {last} came back, and {time} was asked for"))
        }
        RecoveryTarget::Latest | RecoveryTarget::Immediate => None,
        _ => {
            let located = way.and_then(|way| way.choice.located.as_ref())?;
            (reached > located.end).then(|| format!("it went on to {reached}, and was to end at {}", located.end))
        }
    }
}

/// The database that the user's questions are about.
fn application_dsn(run: &Run<'_>, server: &Server) -> Option<Dsn> {
    Some(server.dsn(run.settings.database.as_deref().unwrap_or(server.database())))
}

/// The programs of the server's version that a drill uses, as far as they are installed.
fn programs(run: &Run<'_>, major: u32) -> Vec<PathBuf> {
    let names = ["postgres", "pg_verifybackup", "pg_amcheck", "pg_checksums"];
    names.iter().filter_map(|name| crate::restore::server::program(run.settings.bin_directory, major, name).ok()).collect()
}

/// Everything that is asked of the running server, the cheap first; what writes, last. `None`: it does not run any more.
fn online(run: &mut Run<'_>, server: Server, logs: &mut Logs) -> Option<Server> {
    let ground = run.settings.ground;
    let manifest = &ground.backup.manifest;
    let dsn = server.dsn(server.database());
    let programs = programs_of(run, server.major());
    let budget = Budget { bytes: run.plan.budget_bytes, seed: run.settings.number, deadline: None };
    let target = Target { dsn: &dsn, programs, budget };
    let later = ground.way.is_some();
    let database = run.settings.database.clone().unwrap_or_else(|| server.database().to_owned());
    let result = checks::catalog(&target, manifest, later);
    run.check(result);
    let result = checks::collations(&target, manifest);
    run.check(result);
    references(run, &server.dsn(&database));
    let result = checks::assertions(&target, run.settings.assertions, &database, run.settings.assertion_timeout);
    run.check(result);
    let depth = if budget.bytes >= manifest.plain_bytes { Depth::Full } else { Depth::Quick };
    let result = checks::amcheck(&target, depth, u32::try_from(ground.workers).unwrap_or(1));
    run.check(result);
    let result = checks::visibility_map(&target);
    run.check(result);
    logs.push((server.log_text(), false));
    let before = server.log_text().len();
    smoke(run, &server, &database);
    // The user's command may do what it likes with the copy, and the server's log is its.
    let log = server.log_text();
    logs.push((log.get(before..).unwrap_or_default().to_owned(), true));
    let seen = server.log_text().len();
    let server = write_probe(run, &target, server, logs, seen);
    if server.is_none() {
        run.notes.push("the server did not come back, so nothing was asked of it after that".into());
    }
    server
}

fn references(run: &mut Run<'_>, dsn: &Dsn) {
    let ground = run.settings.ground;
    let result = match (&ground.backup.manifest.artifacts, ground.repository()) {
        (Some(entry), Ok(repository)) => {
            let set = ArtifactSet::new(repository.store(), entry.runs.clone());
            checks::references(dsn, &ground.backup.manifest, &set)
        }
        (Some(_), Err(why)) => CheckResult::new(Check::References, Outcome::NotChecked, why),
        (None, _) => CheckResult::new(Check::References, Outcome::NotApplicable, "the backup has no artifacts"),
    };
    run.check(result);
}

fn smoke(run: &mut Run<'_>, server: &Server, database: &str) {
    let artifacts = run.place.artifacts();
    let dsn = server.dsn(database);
    let backup = run.settings.ground.backup.id.to_string();
    let mut result = checks::smoke(&Smoke {
        command: run.settings.smoke,
        dsn: &dsn,
        artifacts: run.plan.restore.artifacts.as_ref().map(|_| artifacts.as_path()),
        backup: &backup,
        directory: run.place.socket(),
        path: &run.settings.path,
        run_as: None,
        behind: Some(&|program| {
            let command = run.place.command(program);
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            words.map(|word| word.to_string_lossy().into_owned()).collect()
        }),
        timeout: run.settings.smoke_timeout,
        trace: &run.settings.trace,
    });
    // Reports are not encrypted, and what a command prints of the data is nobody's business as long as it succeeds.
    if result.outcome == Outcome::Passed {
        result.findings.clear();
    }
    run.check(result);
}

/// Writes, restarts, reads. The server that comes back is another process.
/// `seen`: so much of its log was judged already.
fn write_probe(run: &mut Run<'_>, target: &Target<'_>, server: Server, logs: &mut Logs, seen: usize) -> Option<Server> {
    let wanted = run.settings.start(Goal::Writable, Vec::new(), None);
    let bin_directory = run.settings.bin_directory;
    let mut running = Some(server);
    let result = checks::write_probe(target, &mut || {
        let Some(server) = running.take() else { return Err("it does not run".into()) };
        logs.push((server.log_text().get(seen..).unwrap_or_default().to_owned(), false));
        match server.restart(bin_directory, &wanted) {
            Ok(server) => {
                running = Some(server);
                Ok(())
            }
            Err(error) => Err(one_line(error)),
        }
    });
    if let Some(server) = &running {
        logs.push((server.log_text(), false));
    }
    run.check(result);
    running
}

/// What is looked at when nothing runs.
fn offline(run: &mut Run<'_>, database: &DatabasePlan) {
    let result = checks::checksums(&ChecksumsOf {
        pgdata: Path::new(&database.pgdata),
        manifest: &run.settings.ground.backup.manifest,
        programs: programs_of(run, major(database)),
        budget: Budget { bytes: run.plan.budget_bytes, seed: run.settings.number, deadline: None },
        workers: run.settings.ground.workers,
    });
    run.check(result);
}

/// Tables that are tried until one is found that nobody changed since its rows were counted.
const MOST_TABLES: usize = 50;

/// Changes one row of a table, and counts again: it has to show.
fn row_changed(run: &Run<'_>, server: &Server) -> Tried {
    let truth = match recorded(run, true) {
        Ok((truth, _)) => truth,
        Err(result) => return Tried::not_applicable(result.reason),
    };
    let dsn = server.dsn(server.database());
    let candidates = truth.databases.iter().flat_map(|database| database.tables.iter().map(move |table| (database, table)));
    let counted = candidates.filter(|(_, table)| table.found.as_ref().is_some_and(|found| found.rows > 0));
    for (database, table) in counted.take(MOST_TABLES) {
        // Changed since by the WAL that was replayed: what it says now proves nothing.
        if truth::compare_table(&dsn, &truth, database, table).outcome != Outcome::Passed {
            continue;
        }
        let place = format!("table {}.{} of database {}", table.schema, table.name, database.name);
        match change(&server.dsn(&database.name), table) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => return Tried::not_checked(format!("{place}: {error}")),
        }
        let result = truth::compare_table(&dsn, &truth, database, table);
        return match result.outcome {
            Outcome::Failed => Tried::red(place, result.reason),
            Outcome::Passed => Tried::green(place, "the rows were counted as before"),
            _ => Tried::not_checked(result.reason),
        };
    }
    Tried::not_applicable("no table has rows that are still the ones that were counted")
}

/// Takes one row out of what was counted. False: it has none there any more.
fn change(dsn: &Dsn, table: &Table) -> Result<bool, PgError> {
    let connection = Connection::open(dsn, Purpose::Sql)?;
    // Neither foreign keys nor anybody's triggers have a part in it.
    connection.execute("SET session_replication_role = replica", &[])?;
    connection.execute("SET default_transaction_read_only = off", &[])?;
    let name = format!("{}.{}", identifier(&table.schema), identifier(&table.name));
    let within = match table.ranges.first() {
        Some((from, to)) => format!("WHERE ctid >= '({from},0)' AND ctid < '({to},0)'"),
        None => String::new(),
    };
    let sql = format!("DELETE FROM ONLY {name} WHERE ctid = ANY (ARRAY(SELECT ctid FROM ONLY {name} {within} LIMIT 1)) RETURNING 1");
    match connection.query(&sql, &[]) {
        Ok(rows) => Ok(!rows.is_empty()),
        // A materialized view, a table that takes no changes: another one.
        Err(PgError::Sql { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
