//! `lifeboat drill run`

mod early;

use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_core::drill::plan::{self as planning, DrillPlan, DrillRequest};
use lifeboat_core::drill::report::REPORT_SCHEMA;
use lifeboat_core::drill::{BackupSummary, DrillId, Objectives, Report, Scenario, Verdict};
use lifeboat_core::policy::{Operation, PlanFacts, TargetFacts};
use lifeboat_core::repository::Sha256;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout::Key;
use lifeboat_core::repository::manifest::{CopyMethod, Manifest};
use lifeboat_core::restore::{RestoreRequest, Target};
use lifeboat_engine::drill::clock::Verification;
use lifeboat_engine::drill::evidence::{self, Stored};
use lifeboat_engine::drill::ground::{self, Ground, Places, Way};
use lifeboat_engine::drill::place::{self, LeftoverState, PlaceSettings, Remover};
use lifeboat_engine::drill::{self, DrillSettings, Drilled};
use lifeboat_engine::keys::Identities;
use lifeboat_engine::opened_backup::{self, VerifiedBackup};
use lifeboat_engine::postgres::Dsn;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::{Signer, Trust};
use lifeboat_engine::store::{Change, OpenError, Overlay, Store};

use crate::commands::policy::facts;
use crate::config::{RepositorySettings, Settings};
use crate::failure::{EXIT_FAILED, Failure};
use crate::gate::{self, Permit, Question};
use crate::output::{self, Output};
use crate::progress::Shown;
use crate::{operation, session, signals};

/// What can be typed.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Backup id, or latest
    #[arg(default_value = "latest")]
    pub(crate) backup: String,
    /// Play this through, and may be given several times: host-lost, primary-store-lost, yesterdays-accident, deleted-objects,
    /// last-wal-damaged, wrong-identity, artifact-tampered, clock-skew, no-such-backup; or all [default: drill.scenarios]
    #[arg(long, value_name = "NAME", value_parser = scenario)]
    pub(crate) scenario: Vec<Chosen>,
    /// Make the drill's place below this directory [default: drill.directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Recover to this time (RFC 3339) instead of to the end
    #[arg(long, value_name = "TIME", group = "target")]
    pub(crate) target_time: Option<Timestamp>,
    /// Recover to this LSN instead of to the end
    #[arg(long, value_name = "LSN", group = "target")]
    pub(crate) target_lsn: Option<lifeboat_core::wal::Lsn>,
    /// Recover to this restore point instead of to the end
    #[arg(long, value_name = "NAME", group = "target")]
    pub(crate) target_name: Option<String>,
    /// Use the WAL in the backup only, whatever the archive has
    #[arg(long)]
    pub(crate) standalone: bool,
    /// Restore a backup in which pages were damaged
    #[arg(long)]
    pub(crate) accept_degraded: bool,
    /// Where the programs of the server's version are
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_directory: Option<PathBuf>,
    /// Restore identity
    #[arg(long, value_name = "FILE", env = "LIFEBOAT_IDENTITY_FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Also write report.json and report.html into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Leave the drill's directory behind, with no server in it: for looking at; whoever reads it reads production's data
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print the plan and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A scenario, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen {
    All,
    One(Scenario),
}

fn scenario(text: &str) -> Result<Chosen, String> {
    if text == "all" {
        return Ok(Chosen::All);
    }
    let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == text);
    found.map(Chosen::One).ok_or_else(|| {
        let names: Vec<String> = Scenario::ALL.into_iter().map(Scenario::name).collect();
        format!("there is no such scenario; there are all, {}", names.join(", "))
    })
}

/// What is known before the policy is asked.
struct Planned {
    backup: VerifiedBackup,
    way: Option<Way>,
    plan: DrillPlan,
    place: PlaceSettings,
    number: u64,
    previous: Option<Sha256>,
}

impl Run {
    /// Whether nothing is restored.
    pub(super) fn only_plans(&self) -> bool {
        self.dry_run
    }
}

pub(super) fn run(run: &Run, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    // The disaster happens now: everything from here on is part of the way back.
    let (failure, begun) = (Timestamp::now(), Instant::now());
    let repository = session::read_repository(settings)?;
    let trust = session::trust(settings)?;
    let identities = session::identities(settings, run.identity.as_ref())?;
    let planned = match planned(run, settings, &repository, &trust, &identities, failure) {
        Ok(planned) => planned,
        // A backup that cannot even be planned with is what a drill is there to find.
        Err(why) if early::is_finding(run, &why) => return early::record(run, settings, &repository, &trust, failure, why),
        Err(why) => return Err(why),
    };
    let nobody = PlanFacts::unapproved(planned.plan.digest());
    let question = Question::new(Operation::DrillRun).about(&planned.backup).to(target(&planned.plan, settings)).by_plan(nobody);
    if run.dry_run {
        gate::allow(settings, Some(&repository), question.dry_run(true))?;
        return print_plan(&planned.plan, out);
    }
    let permit = gate::ask(settings, Some(&repository), question)?;
    let done = execute(run, settings, &repository, &trust, &identities, &planned, failure, begun, &permit, out);
    permit.end(settings, done)
}

/// The parent of the drill's place, made where it is the one that nobody configured.
fn parent(run: &Run, settings: &Settings) -> Result<PathBuf, Failure> {
    let configured = &settings.drill.directory;
    let path = run.directory.clone().unwrap_or_else(|| configured.value.clone());
    let hint = "name a directory for drills: drill.directory in the configuration, or --directory DIR";
    if !path.exists() && run.directory.is_none() && configured.origin == crate::config::Origin::Default && !run.dry_run {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path);
        // The drill's user has to get through, whatever the umask: units of systemd have a strict one.
        let open = || std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755));
        made.and_then(|()| open()).map_err(|error| Failure::new(EXIT_FAILED, format!("make {}: {error}", path.display())).hint(hint))?;
    }
    match std::fs::canonicalize(&path) {
        Ok(real) => Ok(real),
        Err(_) if run.dry_run => Ok(std::path::absolute(&path).unwrap_or(path)),
        Err(error) => Err(Failure::usage(format!("drill in {}: {error}", path.display())).hint(hint)),
    }
}

fn planned(
    run: &Run,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    identities: &Identities,
    now: Timestamp,
) -> Result<Planned, Failure> {
    let parent = parent(run, settings)?;
    let wanted = |manifest: &Manifest| {
        manifest.artifacts.is_some() || manifest.postgres.as_ref().is_some_and(|postgres| postgres.copy != CopyMethod::Recorded)
    };
    let id = session::find_backup(repository, settings, &run.backup, wanted)?;
    let backup = opened_backup::open(repository, &id, trust)?;
    // A wrong identity fails here, and not at hour three.
    backup.unlock(lifeboat_core::repository::manifest::KeyPurpose::Data, identities)?;
    let name = backup.id.name();
    let existing = evidence::ids(repository, name)?;
    let latest = evidence::latest(repository, trust, name)?;
    for (id, why) in latest.iter().flat_map(|latest| &latest.passed_over) {
        output::warn(&format!("drill {id} is passed over: {why}"));
    }
    let drill = DrillId::next(&name.parse().map_err(|error| Failure::usage(format!("{error}")).hint("lifeboat list"))?, now, &existing);
    let target = match (&run.target_time, &run.target_lsn, &run.target_name) {
        (Some(time), ..) => Target::Time(*time),
        (_, Some(lsn), _) => Target::Lsn(*lsn),
        (.., Some(name)) => Target::Name(name.clone()),
        _ => Target::Latest,
    };
    let request = RestoreRequest { target, standalone: run.standalone, accept_degraded: run.accept_degraded, ..RestoreRequest::default() };
    let directory = parent.join(drill.to_string());
    let mut request = ground::into_place(request, &backup.manifest, &directory);
    let temporary = std::env::temp_dir();
    let way = ground::way(repository, trust, identities, &backup, &request, &temporary)?;
    request.recovery = way.as_ref().map(Way::recovery);
    let plan = DrillRequest {
        id: drill.to_string(),
        restore: request,
        scenarios: scenarios(run, settings),
        objectives: Objectives { rto_seconds: settings.rto.value.as_secs_f64(), rpo_seconds: settings.rpo.value.as_secs_f64() },
        budget_bytes: settings.drill.budget.value,
        seed: u64::from_le_bytes(lifeboat_engine::random::bytes()),
    };
    let plan = planning::plan(&backup.manifest, backup.digest, plan)?;
    let wal = way.as_ref().map_or(0, |way| way.choice.to.0.saturating_sub(way.choice.from.0));
    let place = PlaceSettings {
        drill: plan.id.clone(),
        parent,
        temporary,
        forbidden: forbidden(settings, &backup.manifest),
        // Files, artifacts, the WAL that waits, and what recovery writes.
        room: plan.restore.bytes.saturating_add(wal.min(settings.memory_bytes.value)).saturating_add(256 << 20),
        user: settings.drill.user.as_ref().map(|setting| setting.value.clone()).or_else(|| {
            // initdb, which a dump needs, wants to know its own name.
            let dump = backup.manifest.postgres.as_ref().is_some_and(|postgres| postgres.copy == CopyMethod::Logical);
            (dump && rustix::process::geteuid().is_root()).then(|| "nobody".to_owned())
        }),
        require_network: settings.drill.require_network.value,
        host: session::host(),
    };
    let (number, previous) = latest.map_or((1, None), |latest| (latest.number + 1, Some(latest.sha256)));
    Ok(Planned { backup, way, plan, place, number, previous })
}

fn scenarios(run: &Run, settings: &Settings) -> Vec<Scenario> {
    let chosen = match run.scenario.as_slice() {
        [] => settings.drill.scenarios.value.clone(),
        all if all.contains(&Chosen::All) => Scenario::ALL.to_vec(),
        some => some.iter().filter_map(|chosen| if let Chosen::One(scenario) = chosen { Some(*scenario) } else { None }).collect(),
    };
    Scenario::ALL.into_iter().filter(|scenario| chosen.contains(scenario)).collect()
}

/// What a drill must not touch: everything of production that this host knows of.
fn forbidden(settings: &Settings, manifest: &Manifest) -> Vec<PathBuf> {
    let own = [&settings.data_directory, &settings.artifacts].into_iter().flatten().map(|setting| setting.value.clone());
    let physical = manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref());
    let tablespaces = physical.into_iter().flat_map(|physical| &physical.tablespaces).map(|tablespace| PathBuf::from(&tablespace.location));
    let local = |one: &RepositorySettings| {
        let url = one.url.value.as_str();
        let path = url.strip_prefix("file://").unwrap_or(url);
        (!path.contains("://")).then(|| PathBuf::from(path))
    };
    let repositories = settings.repositories.known.iter().chain(&settings.repositories.used).filter_map(local);
    let ours = [settings.wal_spool.value.clone(), settings.audit.directory.value.clone(), settings.user_keys.directory.clone()];
    let mut all: Vec<PathBuf> = own.chain(tablespaces.filter(|path| path.is_absolute())).chain(repositories).chain(ours).collect();
    all.sort();
    all.dedup();
    all
}

/// Where the drill goes, as a policy sees it.
fn target(plan: &DrillPlan, settings: &Settings) -> TargetFacts {
    let database = plan.restore.database.as_ref();
    let tablespaces: Vec<&Path> =
        database.iter().flat_map(|database| &database.tablespaces).map(|tablespace| Path::new(&tablespace.to)).collect();
    facts::target(
        settings,
        database.map(|database| Path::new(&database.pgdata)),
        plan.restore.artifacts.as_ref().map(|artifacts| Path::new(&artifacts.directory)),
        &tablespaces,
        database.map(|database| &database.target),
        database.is_some(),
        plan.restore.degraded,
    )
}

fn print_plan(plan: &DrillPlan, out: &Output) -> Result<u8, Failure> {
    out.result(&serde_json::json!({"plan": plan, "digest": plan.digest()}), || {
        let mut text = format!("would drill {} with {}: {}\n", plan.id, plan.restore.backup, output::bytes(plan.restore.bytes));
        for (number, step) in plan.steps.iter().enumerate() {
            text.push_str(&format!("  {}. {step}\n", number + 1));
        }
        text.push_str(&format!("plan {}\nnothing was changed (dry run)\n", plan.digest()));
        text
    });
    for warning in &plan.restore.warnings {
        output::warn(warning);
    }
    Ok(0)
}

/// Takes away what drills left that were killed.
fn clear_away(parent: &Path, host: &str) {
    let Ok(found) = place::leftovers(parent, host) else { return };
    for leftover in found.into_iter().filter(|leftover| leftover.state == LeftoverState::Abandoned) {
        let name = leftover.directory.display().to_string();
        match leftover.remove(host) {
            Ok(left) if left.is_empty() => output::say(&format!("removed what drill in {name} left when it was killed")),
            Ok(left) => output::warn(&format!("{name}, left by a drill that was killed, could not be removed: {}", left.join("; "))),
            Err(_) => output::warn(&format!("{name} was left by a drill that was killed, and is in use again")),
        }
    }
}

/// What takes down the places of a drill when the process is told to end.
#[derive(Default)]
struct Removers(Mutex<(Vec<Remover>, bool)>);

impl Removers {
    fn held(&self) -> std::sync::MutexGuard<'_, (Vec<Remover>, bool)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// One more; false: it is too late for that.
    fn add(&self, remover: Remover) -> bool {
        let mut held = self.held();
        if !held.1 {
            held.0.push(remover);
        }
        !held.1
    }

    /// All that there are: there will be no more.
    fn end(&self) -> Vec<Remover> {
        let mut held = self.held();
        held.1 = true;
        held.0.clone()
    }

    /// Waits for the end of the process, if it is being ended: a drill whose place was taken away from under it is no evidence of anything.
    fn wait_if_ended(&self) {
        while self.held().1 {
            std::thread::park();
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "each is one thing that only the caller knows")]
fn execute(
    run: &Run,
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    identities: &Identities,
    planned: &Planned,
    failure: Timestamp,
    begun: Instant,
    permit: &Permit,
    out: &Output,
) -> Result<u8, Failure> {
    // Without a signature there is no evidence: found out before the work, not after it.
    let signer = session::signer(settings)?;
    clear_away(&planned.place.parent, &planned.place.host);
    let removers = Arc::<Removers>::default();
    let stopping = Arc::clone(&removers);
    signals::on_stop(move || {
        // The drill's own clean-up would begin once its step has ended, and that may take an hour.
        for remover in stopping.end() {
            remover.run();
        }
        signals::end();
    });
    let progress = Shown::new();
    let places = Configured { settings };
    let database = settings.drill.database.as_ref().map(|setting| setting.value.clone()).or_else(|| {
        let dsn = settings.dsn.as_ref().and_then(|setting| Dsn::parse(setting.value.as_str()).ok())?;
        Some(dsn.endpoint().database).filter(|database| !database.is_empty())
    });
    let drill_settings = DrillSettings {
        ground: Ground {
            places: &places,
            trust,
            identities,
            backup: &planned.backup,
            way: planned.way.as_ref(),
            workers: settings.workers.value,
            seed: planned.plan.seed,
            temporary: &planned.place.temporary,
            progress: &progress,
        },
        place: planned.place.clone(),
        bin_directory: run.bin_directory.as_deref().or(settings.bin_directory.as_ref().map(|setting| setting.value.as_path())),
        server_settings: settings.drill.settings.value.clone(),
        start_timeout: settings.drill.start_timeout.value,
        ahead_bytes: settings.memory_bytes.value / 4,
        number: planned.number,
        database,
        assertions: &settings.drill.assert.value,
        assertion_timeout: settings.drill.assert_timeout.value,
        smoke: &settings.drill.smoke.value,
        smoke_timeout: settings.drill.smoke_timeout.value,
        trace: operation::this().context,
        path: std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into()),
        heartbeat: settings.drill.heartbeat_query.as_ref().map(|setting| setting.value.as_str()),
        production_bytes: settings.drill.production_bytes.as_ref().map(|setting| setting.value),
        failure,
        begun,
        verification: verification(run, settings, &planned.backup),
        on_place: &|remover| removers.add(remover),
        asked_for: match run.scenario.as_slice() {
            [] => settings.drill.scenarios.origin != crate::config::Origin::Default,
            all => !all.contains(&Chosen::All),
        },
        keep: run.keep,
    };
    let drilled = drill::run(&planned.plan, &drill_settings);
    progress.finish();
    removers.wait_if_ended();
    let drilled = drilled?;
    for note in &drilled.notes {
        output::warn(note);
    }
    let kept = drilled.kept.clone();
    let report = report(settings, repository, planned, failure, drilled);
    permit.found(report.reasons.len());
    let stored = keep_evidence(settings, repository, trust, &report, &*signer, run.output.as_deref(), &planned.place.parent)?;
    let signature = format!("made by {}", signer.describe());
    let text = || super::show::summary(&report, &signature, &stored.report.to_string());
    out.result(&serde_json::json!({"drill": report.id, "report": report, "stored": stored, "kept": kept}), text);
    if let Some(kept) = &kept {
        output::warn(&format!("{} was left behind; it has production's data in it: remove it when you have looked", kept.display()));
    }
    Ok(super::code(report.verdict))
}

/// Signs and stores the report of a drill and its page. What was found out must not be lost because something else went wrong.
fn keep_evidence(
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    report: &Report,
    signer: &dyn Signer,
    output: Option<&Path>,
    parent: &Path,
) -> Result<Stored, Failure> {
    let earlier = evidence::history(repository, Some(trust), &report.name, HISTORY).unwrap_or_else(|error| {
        output::warn(&format!("the page has no earlier drills: {error}"));
        evidence::History { entries: Vec::new(), older: 0, findings: Vec::new() }
    });
    let digest = Sha256::of(&evidence::report_bytes(report));
    let page = lifeboat_engine::drill::page::render(report, digest, &earlier);
    let copied = output.map_or(Ok(()), |directory| write_copies(directory, report, &page));
    match session::open_repository(settings).and_then(|writable| Ok(evidence::store(&writable, report, &page, signer)?)) {
        Ok(stored) => copied.map(|()| stored),
        Err(failure) => {
            let directory = parent.join(format!("{}.evidence", report.id));
            let saved =
                std::fs::DirBuilder::new().mode(0o700).create(&directory).is_ok() && write_copies(&directory, report, &page).is_ok();
            let place = if saved { format!("; the report, unsigned, is in {}", directory.display()) } else { String::new() };
            output::say(&format!("the drill {}", report.verdict.words()));
            Err(Failure { message: format!("{}{place}", failure.message), ..failure })
        }
    }
}

/// Earlier drills that a page shows.
const HISTORY: usize = 50;

fn write_copies(directory: &Path, report: &Report, page: &str) -> Result<(), Failure> {
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        let mut options = std::fs::File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| std::io::Write::write_all(&mut file, bytes)).map_err(|error| {
            Failure::new(EXIT_FAILED, format!("write {}: {error}", path.display()))
                .hint("lifeboat drill show DRILL --html FILE writes it again")
        })
    };
    std::fs::create_dir_all(directory).map_err(|error| {
        Failure::new(EXIT_FAILED, format!("make {}: {error}", directory.display())).hint("lifeboat drill run --output DIR")
    })?;
    write("report.json", &evidence::report_bytes(report))?;
    write("report.html", page.as_bytes())
}

/// The command line that verifies the backup with this configuration.
fn verification(run: &Run, settings: &Settings, backup: &VerifiedBackup) -> Option<Verification> {
    let program = std::env::current_exe().ok()?;
    let mut arguments = Vec::new();
    let text = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    if let Some(file) = &settings.file {
        arguments.extend(["--config".to_owned(), text(file)]);
    }
    if let crate::config::Origin::Flag(_) = session::primary(settings).ok()?.url.origin {
        arguments.extend(["--repository".to_owned(), session::repository_url(settings).ok()?.to_owned()]);
    }
    for name in &settings.without {
        arguments.extend(["--without-repository".to_owned(), name.clone()]);
    }
    arguments.extend(["verify".to_owned(), backup.id.to_string(), "--sample".into(), "5".into(), "--json".into()]);
    let identity = run.identity.as_ref().or(settings.identity_file.as_ref().map(|setting| &setting.value));
    if let Some(identity) = identity {
        arguments.extend(["--identity".to_owned(), text(identity)]);
    }
    Some(Verification { program, arguments })
}

/// What a report says of a backup.
fn backup_summary(id: &BackupId, manifest: &Manifest, digest: Sha256) -> BackupSummary {
    let postgres = manifest.postgres.as_ref().filter(|postgres| postgres.copy != CopyMethod::Recorded);
    let copy = postgres.map(|postgres| match postgres.copy {
        CopyMethod::Local => "local",
        CopyMethod::Stream => "stream",
        CopyMethod::Logical => "logical",
        CopyMethod::Recorded => "recorded",
    });
    BackupSummary {
        id: id.to_string(),
        manifest: digest,
        started: manifest.started,
        copy: copy.map(str::to_owned),
        server: postgres.and_then(|postgres| postgres.version.clone()),
        system_id: postgres.and_then(|postgres| postgres.system_id),
        files: manifest.files,
        bytes: manifest.plain_bytes,
        stored_bytes: manifest.stored_bytes,
        artifacts: manifest.artifacts.as_ref().map_or(0, |artifacts| artifacts.count),
        artifact_bytes: manifest.artifacts.as_ref().map_or(0, |artifacts| artifacts.bytes),
    }
}

/// Everything together, judged.
fn report(settings: &Settings, repository: &Repository, planned: &Planned, failure: Timestamp, drilled: Drilled) -> Report {
    let finished = Timestamp::now();
    let report = Report {
        schema: REPORT_SCHEMA,
        id: planned.plan.id.clone(),
        number: planned.number,
        previous: planned.previous,
        name: planned.backup.id.name().to_owned(),
        repository: repository.descriptor().repository,
        repository_url: settings.repositories.primary().map_or_else(String::new, |one| facts::without_user(&one.url.value)),
        host: session::host(),
        actor: session::actor(),
        lifeboat: session::PROGRAM.to_owned(),
        plan: planned.plan.digest(),
        started: failure,
        finished,
        verdict: Verdict::Failed,
        reasons: Vec::new(),
        backup: backup_summary(&planned.backup.id, &planned.backup.manifest, planned.backup.digest),
        recovery: drilled.recovery,
        environment: drilled.environment,
        objectives: planned.plan.objectives,
        rto: drilled.rto,
        rpo: drilled.rpo,
        checks: drilled.checks,
        controls: drilled.controls,
        scenarios: drilled.scenarios,
        notes: drilled.notes.iter().map(|note| lifeboat_core::drill::plain(note)).collect(),
        next_due: None,
    };
    let mut report = report.judged();
    // A drill that failed puts nothing off.
    if matches!(report.verdict, Verdict::Passed | Verdict::PassedWithGaps) {
        report.next_due = finished.checked_add(settings.drill_every.value).ok();
    }
    report
}

/// The configured places, as any restore sees them.
struct Configured<'a> {
    settings: &'a Settings,
}

impl Places for Configured<'_> {
    fn open(&self) -> Result<Repository, String> {
        session::read_through(self.settings, Arc::new(|_, store| Ok(store))).map_err(|failure| failure.message)
    }

    fn without_primary(&self) -> Option<Result<Repository, String>> {
        let used = &self.settings.repositories.used;
        if used.len() < 2 {
            return None;
        }
        let url = used[0].url.value.clone();
        let gone = move |index: usize, store: Box<dyn Store>| if index == 0 { Err(OpenError::Missing(url.clone())) } else { Ok(store) };
        Some(session::read_through(self.settings, Arc::new(gone)).map_err(|failure| failure.message))
    }

    fn primary_lost(&self, keys: &[Key]) -> Result<Repository, String> {
        let keys = keys.to_vec();
        let without = move |index: usize, store: Box<dyn Store>| -> Result<Box<dyn Store>, OpenError> {
            if index > 0 {
                return Ok(store);
            }
            let view = Overlay::new(store).keeping_other_copies();
            Ok(Box::new(keys.iter().fold(view, |view, key| view.with(key.clone(), Change::Missing))))
        };
        session::read_through(self.settings, Arc::new(without)).map_err(|failure| failure.message)
    }
}
