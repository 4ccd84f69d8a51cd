//! `lifeboat demo`: the main job on data of its own, by the very command lines that an operator types.
//!
//! A PostgreSQL under load and a tree of artifacts are backed up, destroyed and restored; then everything that can be checked is
//! checked, and a damaged copy of the repository must be found out. It calls this program, not its libraries, and believes nothing of
//! what it says: it asks the restored server, and other programs.

mod checks;
mod damage;
mod orchestrator;
mod place;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use jiff::Timestamp;
use lifeboat_engine::postgres::Dsn;
use rustix::process::Pid;
use serde::Serialize;
use serde_json::Value;

use crate::cli::Demo;
use crate::failure::{EXIT_FAILED, EXIT_FINDINGS, EXIT_UNVERIFIED, Failure};
use crate::operation;
use crate::output::{self, Level, Output};
use checks::Check;
use orchestrator::{Commit, Made, REFERENCE_QUERY, Work};
use place::{Guard, Place};
use server::{DATABASE, Load, Programs, Server, say_command};

/// What there was to protect.
#[derive(Debug, Serialize)]
struct Source {
    postgres: String,
    database_bytes: u64,
    builds: u64,
    runs: u64,
    artifacts: u64,
    artifact_bytes: u64,
}

#[derive(Debug, Serialize)]
struct BackupMeasured {
    id: String,
    seconds: f64,
    /// Bytes of the database's files.
    plain_bytes: u64,
    /// What they take in the repository.
    stored_bytes: u64,
    artifacts: u64,
    /// The whole repository, artifacts included.
    repository_bytes: u64,
    /// pgbench transactions and builds that were committed while it ran.
    transactions_meanwhile: u64,
    builds_meanwhile: u64,
}

#[derive(Debug, Serialize)]
struct RestoreMeasured {
    files_seconds: f64,
    first_query_seconds: f64,
    verified_seconds: f64,
    /// The whole command.
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct RecoveryMeasured {
    failed_at: Timestamp,
    recovery_point: Timestamp,
    /// The recovery point's age at the failure: the RPO of this very failure.
    lost_seconds: f64,
    builds_committed: u64,
    builds_restored: u64,
    /// When the last build that came back was committed, as its client saw it.
    last_restored_commit: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct DrillMeasured {
    id: String,
    verdict: String,
    /// From the disaster to the first answer of a server that takes writes.
    first_query_seconds: f64,
    /// Until everything was checked.
    verified_seconds: f64,
    /// How much would have been lost, at most.
    lost_seconds: f64,
    /// The page, while the demo's directory is there.
    page: PathBuf,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    holds: bool,
    directory: PathBuf,
    kept: bool,
    source: Source,
    backup: BackupMeasured,
    restore: RestoreMeasured,
    recovery: RecoveryMeasured,
    verify_seconds: f64,
    drill: DrillMeasured,
    checks: Vec<Check>,
}

/// What a command line did.
struct Ran {
    code: i32,
    stdout: String,
    seconds: f64,
}

impl Ran {
    fn json(&self) -> Result<Value, Failure> {
        serde_json::from_str(&self.stdout)
            .map_err(|error| Failure::new(EXIT_FAILED, format!("read what lifeboat printed: not one JSON document: {error}")))
    }
}

/// The stage: where it is, and what runs on it.
struct Stage {
    place: Place,
    programs: Programs,
    guard: Guard,
    program: PathBuf,
}

pub(super) fn run(demo: &Demo, out: &Output) -> Result<u8, Failure> {
    if demo.scale == 0 || demo.artifacts == 0 {
        return Err(
            Failure::usage("run the demo: --scale and --artifacts must be at least 1").hint("lifeboat demo --scale 1 --artifacts 200")
        );
    }
    let programs = Programs::find(demo.bin_directory.as_deref())?;
    let program = std::env::current_exe().map_err(|error| Failure::new(EXIT_FAILED, format!("find this program: {error}")))?;
    let place = Place::make(demo.directory.as_deref())?;
    let guard = place.guard(demo.keep)?;
    let directory = place.directory.clone();
    let mut stage = Stage { place, programs, guard, program };
    let played = stage.play(demo);
    if let Ok(report) = &played {
        out.result(report, || summary(report));
    }
    // Stops what still runs and cleans up, however the play ended; ten thousand files take a while.
    drop(stage);
    if demo.keep {
        output::say(&format!("\nkept: {}", directory.display()));
    }
    let report = played?;
    let failed: Vec<&Check> = report.checks.iter().filter(|check| !check.holds).collect();
    for check in &failed {
        output::tell(Level::Error, "does not hold", &format!("{}: {}", check.name, check.detail), None);
    }
    Ok(if failed.is_empty() { 0 } else { EXIT_UNVERIFIED })
}

fn scene(title: &str) {
    output::say(&format!("\n== {title}"));
}

fn field<'v>(document: &'v Value, path: &str) -> Result<&'v Value, Failure> {
    document.pointer(path).ok_or_else(|| Failure::new(EXIT_FAILED, format!("read what lifeboat printed: it has no {path}")))
}

fn seconds(document: &Value, path: &str) -> Result<f64, Failure> {
    field(document, path)?.as_f64().ok_or_else(|| Failure::new(EXIT_FAILED, format!("read what lifeboat printed: {path} is not a number")))
}

fn whole(document: &Value, path: &str) -> Result<u64, Failure> {
    field(document, path)?.as_u64().ok_or_else(|| Failure::new(EXIT_FAILED, format!("read what lifeboat printed: {path} is not a number")))
}

fn text<'v>(document: &'v Value, path: &str) -> Result<&'v str, Failure> {
    field(document, path)?.as_str().ok_or_else(|| Failure::new(EXIT_FAILED, format!("read what lifeboat printed: {path} is not text")))
}

fn failed(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let message = format!("{what} {}", path.display());
    move |error| Failure::new(EXIT_FAILED, format!("{message}: {error}"))
}

impl Stage {
    /// Runs this program in the demo's directory, where `lifeboat.toml` is, and shows what it prints.
    fn lifeboat(&mut self, arguments: &[&str], expected: i32) -> Result<Ran, Failure> {
        self.lifeboat_or(arguments, &[expected])
    }

    /// The same where several ends are right.
    fn lifeboat_or(&mut self, arguments: &[&str], expected: &[i32]) -> Result<Ran, Failure> {
        let line = format!("lifeboat {}", arguments.join(" "));
        say_command(&line);
        let mut command = Command::new(&self.program);
        server::forget_environment(&mut command);
        command.args(arguments).current_dir(&self.place.directory).env("HOME", &self.place.directory);
        operation::pass_on(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let failed = |error: std::io::Error| Failure::new(EXIT_FAILED, format!("run {line}: {error}"));
        let begun = Instant::now();
        let child = command.spawn().map_err(failed)?;
        let output = self.guard.wait(child).map_err(failed)?;
        let seconds = begun.elapsed().as_secs_f64();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_json = arguments.contains(&"--json");
        if !is_json {
            output::say(stdout.trim_end());
        }
        let code = output.status.code().unwrap_or(-1);
        if !expected.contains(&code) {
            let expected = expected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            let code = if code == i32::from(EXIT_UNVERIFIED) { EXIT_UNVERIFIED } else { EXIT_FAILED };
            return Err(Failure::new(code, format!("run {line}: it ended with {}, expected was exit code {expected}", output.status))
                .hint("what it said stands above; lifeboat demo --keep leaves everything behind to look at"));
        }
        Ok(Ran { code, stdout, seconds })
    }

    fn play(&mut self, demo: &Demo) -> Result<Report, Failure> {
        let (server, made) = self.build_world(demo)?;
        let artifacts = self.place.join("prod/artifacts");
        let dsn = server::dsn(&self.place, DATABASE);
        self.protect(&server, &artifacts)?;

        scene("Back up, while two pgbench clients and the orchestrator keep writing");
        let connection = server::connect(&dsn)?;
        let mut load = Load::start(&self.place, &self.programs)?;
        let work = Work::start(dsn.clone(), artifacts.clone(), made.builds);
        let history = "SELECT count(*) FROM public.pgbench_history";
        // A load that has not begun proves nothing.
        let begun = Instant::now();
        while work.last().is_none() || checks::number(&connection, history)? == 0 {
            if begun.elapsed().as_secs() > 60 || !load.is_running() {
                return Err(Failure::new(EXIT_FAILED, "write to the database: nothing is committed")
                    .hint("lifeboat demo --keep leaves the logs behind"));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let last_before = work.last().map_or(made.builds, |commit| commit.build);
        let before = checks::fingerprint(&connection, last_before)?;
        let history_before = checks::number(&connection, history)?;
        let source = Source {
            postgres: self.programs.version.clone(),
            database_bytes: checks::number(&connection, "SELECT sum(pg_database_size(oid)) FROM pg_database")?,
            builds: made.builds,
            runs: made.runs,
            artifacts: made.artifacts,
            artifact_bytes: made.artifact_bytes,
        };
        let ran = self.lifeboat(&["backup", "--json"], 0)?;
        let taken = ran.json()?;
        let mut backup = BackupMeasured {
            id: text(&taken, "/backup")?.to_owned(),
            seconds: ran.seconds,
            plain_bytes: whole(&taken, "/manifest/plain_bytes")?,
            stored_bytes: whole(&taken, "/manifest/stored_bytes")?,
            artifacts: whole(&taken, "/manifest/artifacts/count")?,
            repository_bytes: 0,
            transactions_meanwhile: checks::number(&connection, history)? - history_before,
            builds_meanwhile: work.last().map_or(0, |commit| commit.build - last_before),
        };
        let missing = whole(&taken, "/manifest/artifacts/references/missing_count")?;
        let referred = whole(&taken, "/manifest/artifacts/references/rows")?;
        output::say(&format!(
            "  {} in {:.2} s; meanwhile {} pgbench transactions and {} builds were committed",
            backup.id, backup.seconds, backup.transactions_meanwhile, backup.builds_meanwhile
        ));
        if !load.is_running() || backup.transactions_meanwhile == 0 {
            return Err(Failure::new(EXIT_FAILED, "write during the backup: pgbench ended, or committed nothing")
                .hint("lifeboat demo --keep leaves its log behind"));
        }
        let repository = self.place.join("repository");
        backup.repository_bytes = damage::bytes(&repository).map_err(failed("read", &repository))?;
        self.lifeboat(&["list"], 0)?;

        let (failed_at, commits) = self.destroy(server, load, work, &artifacts)?;
        if demo.damage {
            let victim = damage::largest(&repository.join("packs")).map_err(failed("read", &repository))?;
            let at = damage::flip(&victim).map_err(failed("damage", &victim))?;
            output::say(&format!(
                "  and, as asked for, one bit of byte {at} of {} is turned around",
                checks::relative(&self.place, &victim)
            ));
        }

        scene("Restore both, start the server, and verify");
        self.place.make_directory("restored", 0o755)?;
        let line = ["restore", "latest", "--pgdata", "restored/pgdata", "--artifacts", "restored/artifacts", "--start", "--json"];
        let ran = self.lifeboat(&line, 0)?;
        let restored = ran.json()?;
        let restore = RestoreMeasured {
            files_seconds: seconds(&restored, "/measured/files_seconds")?,
            first_query_seconds: seconds(&restored, "/measured/first_query_seconds")?,
            verified_seconds: seconds(&restored, "/measured/verified_seconds")?,
            seconds: ran.seconds,
        };
        output::say(&format!(
            "  first query after {:.2} s, fully verified after {:.2} s",
            restore.first_query_seconds, restore.verified_seconds
        ));
        let point = text(&restored, "/measured/recovery_point")?;
        let recovery_point: Timestamp = point
            .parse()
            .map_err(|error| Failure::new(EXIT_FAILED, format!("read what lifeboat printed: recovery point {point}: {error}")))?;

        scene("Ask the restored server and other programs, not lifeboat");
        let endpoint = Dsn::parse(text(&restored, "/measured/dsn")?)?;
        let port = endpoint.endpoint().port.to_string();
        let socket = self.place.join("s").display().to_string();
        let dsn = format!("host={socket} port={port} user=postgres dbname={DATABASE}");
        let connection = server::connect(&dsn)?;
        let mut held =
            vec![Check::new("server-answers", true, format!("PostgreSQL {}: psql \"{dsn}\"", connection.server_version() / 10_000))];
        let detail = format!("{referred} references at the time of the backup, {missing} of them without an artifact in it");
        held.push(Check::new("references-in-backup", missing == 0 && referred > 0, detail));
        held.push(checks::rows_before(&before, &checks::fingerprint(&connection, last_before)?));
        held.push(checks::pgbench(&connection, demo.scale, history_before)?);
        let recovered = checks::commits(&connection, made.builds, &commits, recovery_point)?;
        held.push(recovered.check);
        held.push(checks::files(&connection, &self.place, &self.place.join("restored/artifacts"))?);
        held.extend(checks::amcheck(&connection, &self.place, &self.programs, &socket, &port)?);
        drop(connection);
        let data = self.place.join("restored/pgdata");
        server::stop(&data)?;
        held.extend(checks::checksums(&self.place, &self.programs, &data));

        scene("Verify every signature and every byte of the repository");
        let verify_seconds = self.verify(&mut held)?;
        scene("Would it notice? The same with one bit turned around, in a copy");
        self.negative_control(&repository, &backup.id, &mut held)?;
        scene("A drill: all of that in one command, on a schedule if you like, with evidence that a third party can verify");
        let drill = self.drill(&mut held)?;

        let recovery = RecoveryMeasured {
            failed_at,
            recovery_point,
            lost_seconds: failed_at.duration_since(recovery_point).as_secs_f64(),
            builds_committed: commits.len() as u64,
            builds_restored: recovered.restored,
            last_restored_commit: recovered.last_at,
        };
        let holds = held.iter().all(|check| check.holds);
        let directory = self.place.directory.clone();
        Ok(Report { holds, directory, kept: demo.keep, source, backup, restore, recovery, verify_seconds, drill, checks: held })
    }

    /// A cluster and a tree of artifacts, as an orchestrator has them.
    fn build_world(&mut self, demo: &Demo) -> Result<(Server, Made), Failure> {
        scene(&format!(
            "A PostgreSQL {} and {} artifacts, all below {}",
            self.programs.version,
            demo.artifacts,
            self.place.directory.display()
        ));
        if let Some(user) = &self.place.user {
            output::say(&format!("  PostgreSQL refuses to run as root: its programs run as {}", user.name));
        }
        let server = Server::start(&self.place, &self.programs)?;
        let connection = server::connect(&server::dsn(&self.place, "postgres"))?;
        connection.execute(&format!("CREATE DATABASE {DATABASE}"), &[])?;
        drop(connection);
        let dsn = server::dsn(&self.place, DATABASE);
        let mut pgbench = self.programs.command(&self.place, "pgbench");
        let scale = demo.scale.to_string();
        say_command(&format!("pgbench --initialize --scale={scale} \"{dsn}\""));
        server::run(pgbench.args(["--initialize", "--quiet", "--scale", &scale]).arg(&dsn))?;
        let artifacts = self.place.join("prod/artifacts");
        fs::create_dir(&artifacts).map_err(failed("make", &artifacts))?;
        let made = orchestrator::install(&server::connect(&dsn)?, &artifacts, demo.artifacts)?;
        output::say(&format!(
            "  {} accounts, {} builds, {} runs, {} artifacts with {}",
            u64::from(demo.scale) * 100_000,
            made.builds,
            made.runs,
            made.artifacts,
            output::bytes(made.artifact_bytes)
        ));
        Ok((server, made))
    }

    /// Keys, a configuration, a repository.
    fn protect(&mut self, server: &Server, artifacts: &Path) -> Result<(), Failure> {
        scene("Make keys, a configuration and a repository");
        say_command(&format!("cd {}", self.place.directory.display()));
        let keys = self.lifeboat(&["key", "generate", "--out", "keys", "--json"], 0)?.json()?;
        let configuration = self.configuration(server, artifacts, text(&keys, "/recipient")?);
        let path = self.place.join("lifeboat.toml");
        say_command("cat lifeboat.toml");
        output::say(&configuration);
        fs::write(&path, configuration).map_err(failed("write", &path))?;
        self.lifeboat(&["init"], 0)?;
        self.lifeboat(&["backup", "--dry-run"], 0)?;
        Ok(())
    }

    fn configuration(&self, server: &Server, artifacts: &Path, recipient: &str) -> String {
        let quoted = |text: String| toml::Value::String(text).to_string();
        let path = |path: &Path| quoted(path.display().to_string());
        let below = |name: &str| path(&self.place.join(name));
        format!(
            "name = {}\n\n[postgres]\ndsn = {}\ndata_directory = {}\nbin_directory = {}\n\n\
             [[repository]]\nurl = {}\n\n[artifacts]\ndirectory = {}\nreference_query = {}\n\n\
             [encryption]\nrecipients = [{}]\nhost_identity = {}\nidentity_file = {}\n\n\
             [signing]\nkey_file = {}\npassword = {{ file = {} }}\n\n[trust]\nkeys = [{}]\n\n\
             [[drill.assert]]\nname = \"every run has its build\"\nrows = 0\n\
             query = \"SELECT 1 FROM runs LEFT JOIN builds ON builds.id = build_id WHERE builds.id IS NULL\"\n",
            quoted(DATABASE.into()),
            quoted(server::dsn(&self.place, DATABASE)),
            path(server.data()),
            path(self.programs.directory()),
            quoted(format!("file://{}", self.place.join("repository").display())),
            path(artifacts),
            quoted(REFERENCE_QUERY.into()),
            quoted(recipient.into()),
            below("keys/host-identity.txt"),
            below("keys/identity.txt"),
            below("keys/signing.key"),
            below("keys/signing.password"),
            below("keys/signing.pub"),
        )
    }

    /// The failure: the server killed, its directory and the artifacts gone.
    fn destroy(&mut self, server: Server, load: Load, work: Work, artifacts: &Path) -> Result<(Timestamp, Vec<Commit>), Failure> {
        scene("Lose everything: kill -9, and remove the cluster and the artifacts");
        let connection = server::connect(&server::dsn(&self.place, DATABASE))?;
        let rows = connection.query("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()", &[])?;
        let processes: Vec<Pid> =
            rows.iter().map(|row| row.parse::<i32>("pid")).collect::<Result<Vec<_>, _>>()?.into_iter().filter_map(Pid::from_raw).collect();
        drop(connection);
        let data = server.data().to_owned();
        work.expect_end();
        let failed_at = Timestamp::now();
        server.kill9(&processes);
        drop(load);
        let commits = work.finish()?;
        say_command(&format!("rm -rf {} {}", checks::relative(&self.place, &data), checks::relative(&self.place, artifacts)));
        server::remove_tree(&data)?;
        server::remove_tree(artifacts)?;
        // The last instant at which somebody was told that something is committed.
        let failed_at = commits.last().map_or(failed_at, |commit| commit.at.max(failed_at));
        Ok((failed_at, commits))
    }

    fn verify(&mut self, held: &mut Vec<Check>) -> Result<f64, Failure> {
        let ran = self.lifeboat(&["verify", "latest", "--json"], 0)?;
        let document = ran.json()?;
        let detail = format!(
            "{} of {} objects, {} artifacts, depth {}",
            whole(&document, "/reports/0/objects")?,
            whole(&document, "/reports/0/objects_total")?,
            whole(&document, "/reports/0/artifacts")?,
            text(&document, "/reports/0/depth")?
        );
        held.push(Check::new("verify", text(&document, "/verdict")? == "verified", detail));
        let ran_artifacts = self.lifeboat(&["artifact", "verify", "--json"], 0)?;
        let document = ran_artifacts.json()?;
        let (count, signatures) = (whole(&document, "/report/artifacts")?, whole(&document, "/report/signatures_verified")?);
        let holds = text(&document, "/verdict")? == "verified" && count == signatures && count > 0;
        held.push(Check::new("artifact-signatures", holds, format!("{signatures} valid signatures on {count} artifacts")));
        output::say(&format!("  {signatures} artifacts, every signature valid"));
        Ok(ran.seconds)
    }

    /// Everything that a drill checks, breaks and plays through, from the repository alone: the cluster it was taken of is gone.
    fn drill(&mut self, held: &mut Vec<Check>) -> Result<DrillMeasured, Failure> {
        self.place.make_directory("drills", 0o755)?;
        let directory = self.place.directory.join("drills");
        let line = ["drill", "run", "--scenario", "all", "--directory", "drills", "--output", "report", "--json"];
        let ran = self.lifeboat_or(&line, &[0, i32::from(EXIT_FINDINGS)])?;
        let document = ran.json()?;
        let report = field(&document, "/report")?;
        let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
        let count = |all: &[Value], outcome: &str| all.iter().filter(|one| one["outcome"] == outcome).count();
        let (made, controls, scenarios) = (list("checks"), list("controls"), list("scenarios"));
        let (passed, red, played) = (count(&made, "passed"), count(&controls, "failed"), count(&scenarios, "passed"));
        let none_failed = count(&made, "failed") + count(&scenarios, "failed") + count(&controls, "passed") == 0;
        let left = fs::read_dir(&directory).map_err(failed("read", &directory))?.count();
        let detail = format!(
            "{passed} of {} checks passed, {red} of {} controls turned red, {played} of {} scenarios ended as they must, {left} things left behind",
            made.len(),
            controls.len(),
            scenarios.len()
        );
        held.push(Check::new("drill", none_failed && passed >= 10 && red >= 3 && played >= 4 && left == 0, detail));
        let shown = self.lifeboat(&["drill", "show", "latest"], 0)?;
        held.push(Check::new("drill-is-signed", shown.code == 0, "drill show verified its signature"));
        Ok(DrillMeasured {
            id: text(&document, "/drill")?.to_owned(),
            verdict: text(&document, "/report/verdict")?.to_owned(),
            first_query_seconds: seconds(&document, "/report/rto/first_query_seconds")?,
            verified_seconds: seconds(&document, "/report/rto/verified_seconds")?,
            lost_seconds: seconds(&document, "/report/rpo/seconds")?,
            page: self.place.join("report/report.html"),
        })
    }

    /// A check that cannot fail proves nothing: damage must turn it red.
    fn negative_control(&mut self, repository: &Path, backup: &str, held: &mut Vec<Check>) -> Result<(), Failure> {
        let copy = self.place.join("damaged");
        let read = |directory: &str| damage::largest(&copy.join(directory)).map_err(failed("read", &copy));
        let mut red = |stage: &mut Self, name: &'static str, victim: &Path| -> Result<(), Failure> {
            let at = damage::flip(victim).map_err(failed("damage", victim))?;
            output::say(&format!("\n  one bit of byte {at} of {}:", checks::relative(&stage.place, victim)));
            let ran = stage.lifeboat(&["verify", "latest", "--repository", "damaged"], i32::from(EXIT_UNVERIFIED))?;
            held.push(Check::new(name, ran.code == i32::from(EXIT_UNVERIFIED), format!("verify ends with {}", ran.code)));
            // Back again, so that each is found for what it is.
            damage::flip(victim).map_err(failed("repair", victim)).map(drop)
        };
        say_command("cp -R repository damaged");
        damage::copy_tree(repository, &copy).map_err(failed("copy", repository))?;
        let pack = read("packs")?;
        red(self, "damaged-pack-is-found", &pack)?;
        let blob = read("artifacts/blobs")?;
        red(self, "damaged-artifact-is-found", &blob)?;
        let manifest = copy.join(backup).join("manifest.json");
        red(self, "damaged-manifest-is-found", &manifest)
    }
}

fn summary(report: &Report) -> String {
    let Report { source, backup, restore, recovery, .. } = report;
    let rows: Vec<(&str, String)> = vec![
        (
            "protected",
            format!(
                "PostgreSQL {}, {}; {} artifacts, {}",
                source.postgres,
                output::bytes(source.database_bytes),
                source.artifacts,
                output::bytes(source.artifact_bytes)
            ),
        ),
        ("repository", format!("{}, encrypted and signed", output::bytes(backup.repository_bytes))),
        (
            "backup",
            format!(
                "{:.2} s, under load ({} transactions and {} builds meanwhile)",
                backup.seconds, backup.transactions_meanwhile, backup.builds_meanwhile
            ),
        ),
        ("time to first query", format!("{:.2} s", restore.first_query_seconds)),
        ("time to fully verified", format!("{:.2} s", restore.verified_seconds)),
        ("recovery point", format!("{:.3}, {:.2} s before the failure", recovery.recovery_point, recovery.lost_seconds)),
        (
            "lost",
            format!(
                "{} of {} builds committed since the load began: what came after the backup (the demo archives no WAL: docs/wal.md)",
                recovery.builds_committed - recovery.builds_restored.min(recovery.builds_committed),
                recovery.builds_committed
            ),
        ),
        ("verify", format!("{:.2} s for every byte", report.verify_seconds)),
        (
            "drill",
            format!(
                "{}: first query {:.2} s after the disaster, everything checked after {:.2} s",
                report.drill.verdict, report.drill.first_query_seconds, report.drill.verified_seconds
            ),
        ),
    ];
    let mut text = String::from("\nmeasured\n");
    for (name, value) in rows {
        text.push_str(&format!("  {name:24}{value}\n"));
    }
    text.push_str("checked\n");
    for check in &report.checks {
        text.push_str(&format!("  {:4} {:30} {}\n", if check.holds { "ok" } else { "FAIL" }, check.name, check.detail));
    }
    let holds = report.checks.iter().filter(|check| check.holds).count();
    text.push_str(&format!("{holds} of {} checks hold\n", report.checks.len()));
    text
}
