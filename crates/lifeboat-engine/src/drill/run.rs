//! Runs a drill: restores into a place of its own, starts, checks, measures, breaks things on purpose, takes down.
//!
//! To follow one: [`run`] here; `restored.rs` for the server between the restore and the last check; `trial.rs` for scenarios that restore
//! once more. What goes wrong with what is drilled is in the results and never an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::drill::plan::DrillPlan;
use lifeboat_core::drill::{
    Assertion, Check, CheckResult, Control, ControlResult, Environment, Isolation, Objectives, Outcome, Phase, Recovery, Rpo, Rto,
    Scenario, ScenarioResult, measure,
};
use lifeboat_core::repository::layout;
use lifeboat_core::trace_context::TraceContext;
use lifeboat_core::verify::{Finding, FindingKind};

use super::clock::{self, Skewed, Verification};
use super::controls::{self, one_line};
use super::ground::Ground;
use super::place::{Goal, Place, PlaceError, PlaceSettings, Remover, Start};
use super::restored::{self, Served};
use super::scenarios;
use super::trial::Trials;
use crate::artifacts::{ArtifactSet, Reader, restore_set};
use crate::restore::{self, RestoreError, RestoreSettings};
use crate::verify::artifact_finding;

/// Everything that a drill is told beside its plan.
pub struct DrillSettings<'a> {
    /// What the drill stands on.
    pub ground: Ground<'a>,
    /// Its place.
    pub place: PlaceSettings,
    /// Where PostgreSQL's programs are.
    pub bin_directory: Option<&'a Path>,
    /// Settings that the operator wants for the drill's server.
    pub server_settings: BTreeMap<String, String>,
    /// How long a start may take, recovery included.
    pub start_timeout: Duration,
    /// Bytes of WAL that may lie ready.
    pub ahead_bytes: u64,
    /// Number of the drill: drills in a row look at other parts of what is too large for one.
    pub number: u64,
    /// The database that assertions, heartbeat and the user's command are about, if they name no other.
    pub database: Option<String>,
    /// What the user asserts.
    pub assertions: &'a [Assertion],
    /// How long one may take.
    pub assertion_timeout: Duration,
    /// The user's own command; empty: none.
    pub smoke: &'a [String],
    /// How long it may take.
    pub smoke_timeout: Duration,
    /// `PATH` for it.
    pub path: String,
    /// The span that what it does belongs to.
    pub trace: TraceContext,
    /// Gives the time of the last heartbeat.
    pub heartbeat: Option<&'a str>,
    /// Bytes of the production's database, where it is another than the drill's.
    pub production_bytes: Option<u64>,
    /// The moment at which the disaster is supposed to have happened.
    pub failure: Timestamp,
    /// The same on a clock that only goes forward.
    pub begun: Instant,
    /// How this program verifies the backup, for a wrong clock.
    pub verification: Option<Verification>,
    /// Is given what takes a place down when the process is told to end: once for every place, when its making has begun. False: the
    /// process is being ended, and no place is made any more.
    pub on_place: &'a (dyn Fn(Remover) -> bool + Sync),
    /// Whether somebody named the scenarios, so that one that cannot be played is a gap.
    pub asked_for: bool,
    /// Leave the place for somebody to look at.
    pub keep: bool,
}

impl DrillSettings<'_> {
    /// For a restore into the place. The drill starts the server itself, and feeds it.
    pub(super) fn restore_settings(&self, place: &Place) -> RestoreSettings {
        RestoreSettings {
            identities: self.ground.identities.clone(),
            workers: self.ground.workers,
            bin_directory: self.bin_directory.map(Path::to_owned),
            start_timeout: self.start_timeout,
            probe: None,
            spool: None,
            temporary: self.place.temporary.clone(),
            owner: place.owner(),
        }
    }

    /// A start of what was restored: with the libraries that were recorded, and the settings that the operator wants.
    /// `target` and `restore_command` as [`Start`] has them.
    pub(super) fn start(&self, goal: Goal, target: Vec<(String, String)>, restore_command: Option<String>) -> Start {
        let postgres = self.ground.backup.manifest.postgres.as_ref();
        let preload = postgres.and_then(|postgres| postgres.settings.get("shared_preload_libraries"));
        Start {
            goal,
            target,
            restore_command,
            hot_standby: false,
            preload: preload.cloned().unwrap_or_default(),
            settings: self.server_settings.clone(),
            timeout: self.start_timeout,
        }
    }
}

/// Why there was no drill.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// There is no place for it.
    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// What a drill came to.
#[derive(Debug)]
pub struct Drilled {
    /// Every check, in order.
    pub checks: Vec<CheckResult>,
    /// What was broken on purpose.
    pub controls: Vec<ControlResult>,
    /// What was played through.
    pub scenarios: Vec<ScenarioResult>,
    /// Where it was.
    pub environment: Environment,
    /// What recovery did.
    pub recovery: Option<Recovery>,
    /// How long it took.
    pub rto: Rto,
    /// How much would have been lost.
    pub rpo: Rpo,
    /// What an operator should know and no check says.
    pub notes: Vec<String>,
    /// The place, where it was left.
    pub kept: Option<PathBuf>,
}

/// What time was spent on.
pub(super) struct Stopwatch {
    begun: Instant,
    pub(super) phases: Vec<Phase>,
    /// Seconds before the first query that only a drill spends.
    pub(super) excluded: f64,
}

impl Stopwatch {
    /// A phase that began at `from` and ends now.
    pub(super) fn phase(&mut self, name: &str, from: Instant, before_first_query: bool) {
        self.part(name, from, from.elapsed().as_secs_f64(), before_first_query);
    }

    /// A phase that began at `from` and took so many seconds.
    pub(super) fn part(&mut self, name: &str, from: Instant, seconds: f64, before_first_query: bool) {
        let from_seconds = from.saturating_duration_since(self.begun).as_secs_f64();
        self.phases.push(Phase { name: name.to_owned(), from_seconds, seconds, before_first_query });
    }

    /// The same of something that only a drill does on its way to the first query.
    pub(super) fn exclude(&mut self, name: &str, from: Instant) {
        self.excluded += from.elapsed().as_secs_f64();
        self.phase(name, from, false);
    }

    /// Seconds since the disaster.
    pub(super) fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}

/// A drill while it runs.
pub(super) struct Run<'a> {
    pub(super) settings: &'a DrillSettings<'a>,
    pub(super) plan: &'a DrillPlan,
    pub(super) place: &'a Place,
    pub(super) watch: Stopwatch,
    pub(super) checks: Vec<CheckResult>,
    pub(super) controls: Vec<ControlResult>,
    pub(super) notes: Vec<String>,
}

impl Run<'_> {
    pub(super) fn check(&mut self, result: CheckResult) {
        self.settings.ground.progress.add(1, 0);
        self.checks.push(result);
    }

    /// A check that took from `begun` to now.
    pub(super) fn timed(&mut self, begun: Instant, result: CheckResult) {
        self.check(CheckResult { seconds: begun.elapsed().as_secs_f64(), ..result });
    }
}

/// Runs a drill as planned.
///
/// # Errors
///
/// Only where there is no place for it: then nothing was done.
pub fn run(plan: &DrillPlan, settings: &DrillSettings<'_>) -> Result<Drilled, DrillError> {
    let progress = settings.ground.progress;
    progress.phase("prepare");
    let place = Place::make_known(&settings.place, settings.on_place)?;
    let watch = Stopwatch { begun: settings.begun, phases: Vec::new(), excluded: 0.0 };
    let mut run = Run { settings, plan, place: &place, watch, checks: Vec::new(), controls: Vec::new(), notes: Vec::new() };
    run.watch.phase("prepare", settings.begun, true);
    signature(&mut run);
    let files = plan.restore.database.as_ref().map(|_| database_files(&mut run));
    let mut served = match files {
        Some(Ok(())) => restored::serve(&mut run),
        Some(Err(())) => Served::default(),
        None => {
            artifacts(&mut run);
            without_database(&mut run);
            Served::default()
        }
    };
    let verified = run.watch.now();
    let came_back = !run.checks.iter().any(|check| check.outcome == Outcome::Failed);
    let isolation = isolation(&mut served, &run, &place);
    let Run { watch, mut checks, mut controls, notes, .. } = run;
    let environment = place.environment(isolation, std::mem::take(&mut served.server_settings), &served.programs);

    progress.phase("controls");
    controls.extend(controls::on_repository(&settings.ground));
    controls.sort_by_key(|result| result.control);
    let host_lost = host_lost(plan, &checks, &served);
    // Scenarios restore once more, and there need not be room for two.
    let kept = if settings.keep {
        checks.push(CheckResult::new(
            Check::Teardown,
            Outcome::NotChecked,
            format!("it was left to be looked at: {}", place.directory().display()),
        ));
        Some(place.keep())
    } else {
        checks.push(place.remove());
        None
    };
    checks.sort_by_key(|result| result.check);
    let scenarios = scenarios(plan, settings, host_lost);
    let bytes = settings.ground.backup.manifest.plain_bytes;
    let rto = measure::rto(
        watch.phases,
        served.first_query,
        came_back.then_some(verified),
        watch.excluded,
        bytes,
        settings.production_bytes,
        plan.restore.database.is_some(),
        plan.objectives,
    );
    let rpo = rpo(settings, &served, plan.objectives);
    Ok(Drilled { checks, controls, scenarios, environment, recovery: served.recovery, rto, rpo, notes, kept })
}

fn rpo(settings: &DrillSettings<'_>, served: &Served, objectives: Objectives) -> Rpo {
    let manifest = &settings.ground.backup.manifest;
    let has_database = scenarios::has_database(manifest);
    let recovered = match (&served.recovered, has_database) {
        (Some((moment, source)), _) => Some((*moment, source.as_str())),
        // Artifacts are as they were when the backup began.
        (None, false) => Some((manifest.started, "backup")),
        (None, true) => None,
    };
    measure::rpo(settings.failure, recovered, objectives)
}

/// The backup was opened to be planned with: its signature held, or there would be no drill.
fn signature(run: &mut Run<'_>) {
    let begun = Instant::now();
    let backup = run.settings.ground.backup;
    let repository = match run.settings.ground.repository() {
        Ok(repository) => repository,
        Err(why) => return run.timed(begun, CheckResult::new(Check::Signature, Outcome::NotChecked, why)),
    };
    // Read and verified once more: what is signed is what is there now.
    let result = match crate::opened_backup::open(&repository, &backup.id, run.settings.ground.trust) {
        Ok(again) if again.digest != backup.digest => {
            CheckResult::new(Check::Signature, Outcome::Failed, "the manifest is no longer the one that the drill was planned with")
        }
        Ok(again) => match again.stray(&repository) {
            Some(finding) => CheckResult::new(Check::Signature, Outcome::Failed, finding.to_string()),
            None => CheckResult::new(Check::Signature, Outcome::Passed, format!("signed by {}", again.signed_by)),
        },
        Err(error) => CheckResult::new(Check::Signature, Outcome::Failed, one_line(error)),
    };
    run.timed(begun, result);
}

/// Restores the files once more, where a server began a timeline of its own too early.
pub(super) fn files_again(run: &Run<'_>) -> Result<(), String> {
    if run.place.is_ended() {
        return Err("the drill was told to end".into());
    }
    let remove = |path: &Path| match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("remove {}: {error}", path.display())),
        _ => Ok(()),
    };
    remove(&run.place.pgdata())?;
    for tablespace in run.plan.restore.database.iter().flat_map(|database| &database.tablespaces) {
        remove(&run.place.tablespace(&tablespace.oid.to_string()))?;
    }
    match write_files(run) {
        Ok(_) => Ok(()),
        Err(Trouble::Damage(said) | Trouble::Unable(said)) => Err(said),
    }
}

fn write_files(run: &Run<'_>) -> Result<(Option<restore::RestoredDatabase>, Vec<String>), Trouble> {
    let ground = run.settings.ground;
    ground.repository().map_err(Trouble::Unable).and_then(|repository| {
        let settings = run.settings.restore_settings(run.place);
        let restored = restore::run(&repository, ground.backup, &run.plan.restore, &settings, ground.progress);
        Ok((restored.map_err(Trouble::of)?, around(&repository)))
    })
}

/// Restores the files; every extent is compared with its digest on its way.
fn database_files(run: &mut Run<'_>) -> Result<(), ()> {
    let begun = Instant::now();
    let manifest = &run.settings.ground.backup.manifest;
    let restored = write_files(run);
    run.watch.phase("fetch", begun, true);
    let result = |outcome, reason: String| CheckResult::new(Check::Extents, outcome, reason);
    match restored {
        Ok((restored, around)) => {
            run.notes.extend(restored.into_iter().flat_map(|restored| restored.warnings));
            let said = match around.len() {
                0 => format!("every one of {} files was compared with its digests on its way", manifest.files),
                count => format!("every file came back sound, {count} objects from another copy: the first place is damaged"),
            };
            let outcome = if around.is_empty() { Outcome::Passed } else { Outcome::NotChecked };
            run.timed(begun, result(outcome, said).of(manifest.plain_bytes, manifest.plain_bytes, "bytes", None).with(around));
            Ok(())
        }
        Err(trouble) => {
            let (outcome, reason) = match trouble {
                Trouble::Damage(said) => (Outcome::Failed, said),
                Trouble::Unable(said) => (Outcome::Failed, format!("the files did not come back: {said}")),
            };
            run.timed(begun, result(outcome, reason));
            for check in [Check::Start, Check::Recovery] {
                run.check(CheckResult::new(check, Outcome::NotChecked, "the files did not come back"));
            }
            Err(())
        }
    }
}

/// Why a restore failed: what it read is bad, or it could not do it.
enum Trouble {
    Damage(String),
    Unable(String),
}

impl Trouble {
    fn of(error: RestoreError) -> Self {
        match error {
            RestoreError::Damaged(finding) => Self::Damage(finding.to_string()),
            error => Self::Unable(one_line(error)),
        }
    }
}

/// What was read from another place or an older version, each object once.
pub(super) fn around(repository: &crate::repository::Repository) -> Vec<String> {
    let mut notes: Vec<String> = repository.store().notes().iter().map(ToString::to_string).collect();
    notes.sort();
    notes.dedup();
    notes
}

/// Restores the artifacts, each with its signature and digest verified.
pub(super) fn artifacts(run: &mut Run<'_>) {
    let begun = Instant::now();
    let ground = run.settings.ground;
    let Some(entry) = ground.backup.manifest.artifacts.as_ref().filter(|_| run.plan.restore.artifacts.is_some()) else {
        return run.check(CheckResult::new(Check::Artifacts, Outcome::NotApplicable, "the backup has no artifacts"));
    };
    ground.progress.phase("artifacts");
    let restored = ground.repository().and_then(|repository| {
        let reader = Reader::new(&repository, ground.trust, ground.identities.clone());
        let set = ArtifactSet::new(repository.store(), entry.runs.clone());
        let directory = run.place.artifacts();
        let report = restore_set(&reader, set, (entry.count, entry.bytes), &directory, ground.workers, ground.progress);
        let report = report.map_err(one_line)?;
        run.place.open_artifacts().map_err(one_line)?;
        Ok((report, around(&repository)))
    });
    run.watch.phase("artifacts", begun, false);
    let result = |outcome, reason: String| CheckResult::new(Check::Artifacts, outcome, reason);
    let result = match restored {
        Err(why) => result(Outcome::Failed, format!("they did not come back: {why}")),
        Ok((report, around)) => {
            let findings: Vec<Finding> =
                report.findings.first.iter().map(|found| artifact_finding(Some(&ground.backup.id), found)).collect();
            let bad = findings.iter().find(|finding| finding.kind != FindingKind::NotChecked);
            let judged = match (bad, findings.first()) {
                (Some(finding), _) => result(Outcome::Failed, finding.to_string()),
                (None, Some(finding)) => result(Outcome::NotChecked, finding.to_string()),
                (None, None) if report.restored != entry.count => {
                    result(Outcome::Failed, format!("{} of {} artifacts came back", report.restored, entry.count))
                }
                (None, None) if !around.is_empty() => {
                    result(Outcome::NotChecked, format!("all came back sound, {} objects from another copy", around.len()))
                }
                (None, None) => result(Outcome::Passed, format!("all {} artifacts are signed, whole, and were written", entry.count)),
            };
            judged.of(report.restored, entry.count, "artifacts", None).with(findings.iter().map(ToString::to_string).chain(around))
        }
    };
    run.timed(begun, result);
}

/// What cannot be checked of a backup that has no database.
fn without_database(run: &mut Run<'_>) {
    let made: Vec<Check> = run.checks.iter().map(|result| result.check).collect();
    for check in Check::ALL.into_iter().filter(|check| !made.contains(check) && *check != Check::Teardown) {
        run.check(CheckResult::new(check, Outcome::NotApplicable, "the backup has no database"));
    }
    let none = "the backup has no database".to_owned();
    run.controls.push(ControlResult {
        control: Control::RowChanged,
        place: String::new(),
        check: Control::RowChanged.check(),
        outcome: Outcome::NotApplicable,
        said: none,
        seconds: 0.0,
    });
}

/// What kept it apart; that the repository was only read is tried, not said.
fn isolation(served: &mut Served, run: &Run<'_>, place: &Place) -> Vec<Isolation> {
    let mut isolation = std::mem::take(&mut served.isolation);
    if isolation.is_empty() {
        isolation = place.isolation();
    }
    let key = layout::drill_object(&run.plan.id, "written-by-a-drill");
    let tried = run.settings.ground.repository().and_then(|repository| {
        let key = key.map_err(one_line)?;
        match repository.store().create(&key, b"") {
            Err(crate::store::StoreError::Denied { .. }) => Ok("opened for reading only; a write that was tried was refused".to_owned()),
            Err(error) => Err(one_line(error)),
            Ok(()) => Err("a write that was tried was not refused".to_owned()),
        }
    });
    let dump = run.plan.restore.database.as_ref().is_some_and(|database| !database.copy.is_physical());
    if dump {
        // Said, because it is so: what a dump refreshes may connect to somewhere.
        for one in isolation.iter_mut().filter(|one| one.what == "network") {
            one.holds = false;
            one.how = format!("the dump was loaded by programs in this host's network; afterwards: {}", one.how);
        }
    }
    if place.user().name.as_deref() == Some("nobody") {
        for one in isolation.iter_mut().filter(|one| one.what == "user") {
            one.holds = false;
            one.how = format!("{}: other services may run as the same user; name one of its own in drill.user", one.how);
        }
    }
    let ground = place.ground();
    let hidden = ground.wall.hidden();
    isolation.push(match hidden.len() {
        0 => Isolation {
            what: "files".into(),
            holds: false,
            how: "directories of production and sockets of other programs are in sight: hiding them takes root and a mount namespace"
                .into(),
        },
        count => Isolation {
            what: "files".into(),
            holds: true,
            how: format!("{count} directories of production and of sockets are empty for the server"),
        },
    });
    isolation.push(Isolation { what: "repository".into(), holds: tried.is_ok(), how: tried.unwrap_or_else(|why| why) });
    isolation
}

/// The drill itself is the night in which the host is lost.
fn host_lost(plan: &DrillPlan, checks: &[CheckResult], served: &Served) -> ScenarioResult {
    let failed = checks.iter().find(|check| check.outcome == Outcome::Failed);
    let (outcome, observed) = match (failed, plan.restore.database.is_some(), served.first_query) {
        (Some(check), ..) => (Outcome::Failed, format!("the check {} failed: {}", check.check.name(), check.reason)),
        (None, true, None) => (Outcome::Failed, "no server answered".to_owned()),
        (None, true, Some(_)) => {
            (Outcome::Passed, "everything came back from the repository, and a server answered and took writes".to_owned())
        }
        (None, false, _) => (Outcome::Passed, "everything that the backup has came back".to_owned()),
    };
    let seconds = served.first_query.unwrap_or_default();
    ScenarioResult { scenario: Scenario::HostLost, expected: Scenario::HostLost.expected(), outcome, observed, seconds }
}

fn scenarios(plan: &DrillPlan, settings: &DrillSettings<'_>, host_lost: ScenarioResult) -> Vec<ScenarioResult> {
    let trials = Trials { settings, plan };
    let mut results = Vec::new();
    for scenario in &plan.scenarios {
        settings.ground.progress.phase("scenarios");
        let mut result = match scenario {
            Scenario::HostLost => host_lost.clone(),
            Scenario::ClockSkew => clock_skew(settings),
            other => scenarios::play(*other, &settings.ground, &trials),
        };
        // Who asked for it by name did not ask for nothing.
        if result.outcome == Outcome::NotApplicable && settings.asked_for {
            result.outcome = Outcome::NotChecked;
        }
        results.push(result);
    }
    results
}

fn clock_skew(settings: &DrillSettings<'_>) -> ScenarioResult {
    let begun = Instant::now();
    let skewed = match &settings.verification {
        Some(verification) => clock::skewed(verification, settings.ground.temporary, settings.start_timeout),
        None => Skewed::NotHere("nobody said how this program verifies a backup".into()),
    };
    let (outcome, observed) = match skewed {
        Skewed::Holds(said) => (Outcome::Passed, said),
        Skewed::Fails(said) => (Outcome::Failed, said),
        Skewed::NotHere(said) => (Outcome::NotApplicable, said),
    };
    let (scenario, expected) = (Scenario::ClockSkew, Scenario::ClockSkew.expected());
    ScenarioResult { scenario, expected, outcome, observed, seconds: begun.elapsed().as_secs_f64() }
}
