//! `lifeboat backup`

use std::path::Path;
use std::time::Duration;

use lifeboat_core::backup::{CopyChoice, choose_copy};
use lifeboat_core::policy::Operation;
use lifeboat_core::repository::backup_id::SystemName;
use lifeboat_core::repository::manifest::{CopyMethod, Manifest, State};
use lifeboat_engine::backup::{self, ArtifactsSource, BackupRequest, PostgresSource};
use lifeboat_engine::hold::{self, Extended};
use lifeboat_engine::postgres::Dsn;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::wal::receive::{self, SlotMade};
use lifeboat_engine::wal::{self, Cluster, arrival};
use serde::Serialize;

use crate::cli::{Backup, Cli, Copy};
use crate::config::{Checkpoint, Settings, WalMode};
use crate::failure::{EXIT_FINDINGS, Failure};
use crate::gate::{self, Permit, Question};
use crate::output::{self, Output};
use crate::progress::Shown;
use crate::session;

/// What would be done.
#[derive(Serialize)]
struct Plan {
    name: String,
    repository: String,
    repository_exists: bool,
    database: Option<PlannedDatabase>,
    artifacts: Option<String>,
    encrypted_to: Vec<String>,
    steps: Vec<String>,
}

#[derive(Serialize)]
struct PlannedDatabase {
    server: String,
    copy: CopyMethod,
    reason: String,
}

pub(super) fn run(cli: &Cli, backup: &Backup, mut settings: Settings, out: &Output) -> Result<u8, Failure> {
    if let Some(name) = &backup.name {
        settings.name = crate::config::Setting { value: name.clone(), origin: crate::config::Origin::Flag("--name") };
    }
    let name: SystemName = settings.name.value.parse().map_err(|error: lifeboat_core::repository::FormatError| {
        Failure::usage(error.to_string()).hint("choose another name: lifeboat backup --name NAME")
    })?;
    let url = match &backup.output {
        Some(url) => url.clone(),
        None => session::repository_url(&settings)?.to_owned(),
    };
    let postgres = postgres_source(backup, &settings)?;
    let artifacts = artifacts_source(backup, &settings)?;
    if postgres.is_none() && artifacts.is_none() {
        return Err(Failure::usage("back up: neither a database nor an artifact directory is configured")
            .hint("set LIFEBOAT_ARTIFACTS and/or PGHOST with lifeboat backup --include-postgres, or write a configuration: lifeboat init --write-config FILE"));
    }
    check_output(&url, backup.output.is_some())?;
    // Its repository may still have to be made, so it is asked for by its URL.
    let question = Question::new(Operation::Backup).in_repository(&url).dry_run(backup.dry_run);
    if backup.dry_run {
        gate::allow(&settings, None, question)?;
        return dry_run(&settings, &url, postgres.as_ref(), artifacts.as_ref(), out);
    }
    let permit = gate::ask(&settings, None, question)?;
    let keys = session::first_keys(&settings).and_then(|made| {
        if made {
            let name = settings.name.clone();
            settings = Settings::resolve(cli)?;
            settings.name = name;
        }
        Ok(())
    });
    let taken = keys.and_then(|()| take(backup, &settings, name, &url, (postgres, artifacts), &permit, out));
    permit.end(&settings, taken)
}

fn take(
    backup: &Backup,
    settings: &Settings,
    name: SystemName,
    url: &str,
    (postgres, artifacts): (Option<PostgresSource>, Option<ArtifactsSource>),
    permit: &Permit,
    out: &Output,
) -> Result<u8, Failure> {
    let signer = session::signer(settings)?;
    let protection = session::protection(settings)?;
    let repository =
        if backup.output.is_some() { session::open_or_make_repository(settings, url)? } else { session::open_repository(settings)? };
    if let Some(source) = postgres.as_ref().filter(|source| settings.wal_mode.value != WalMode::Archive && !source.record_only) {
        // c057: from before the backup on, or there is a hole between it and what is received.
        let was = match receive::create_slot(&source.dsn, &settings.wal_slot.value)? {
            SlotMade::Kept => None,
            SlotMade::Made => Some("was not there and has been made"),
            SlotMade::Renewed => Some("had lost WAL and has been made anew"),
        };
        if let Some(was) = was {
            output::warn(&format!("slot {} {was}: it holds WAL until the receiver runs (lifeboat wal receive)", settings.wal_slot.value));
        }
    }
    let progress = Shown::new();
    let request = BackupRequest {
        name,
        host: session::host(),
        program: session::PROGRAM.to_owned(),
        postgres,
        artifacts,
        protection,
        signer: &*signer,
        workers: settings.workers.value,
        memory_bytes: settings.memory_bytes.value,
        level: settings.compression_level.value,
        bandwidth: settings.bandwidth.as_ref().map(|setting| setting.value),
        audit: permit.checkpoint(),
    };
    let begun = std::time::Instant::now();
    let taken = backup::run(&repository, &request, &progress);
    progress.finish();
    let taken = taken?;
    let took = begun.elapsed();
    let manifest = &taken.manifest;
    permit.made(&manifest.id);
    permit.found(manifest.findings.len());
    for warning in &manifest.warnings {
        output::warn(warning);
    }
    let archived = archived(&repository, manifest)?;
    let held = held(settings, url, &repository, manifest);
    let document = serde_json::json!({
        "backup": manifest.id,
        "manifest_sha256": taken.digest,
        "repository": repository.store().url(),
        "seconds": took.as_secs_f64(),
        "manifest": manifest,
        "wal_archived": archived,
        "replicas": repository.store().notes(),
        "retention": held,
    });
    out.result(&document, || {
        let mut text = format!("{}\n", manifest.id);
        let rate = manifest.plain_bytes as f64 / took.as_secs_f64().max(0.001);
        text.push_str(&format!(
            "  {} files, {} stored as {}, in {} ({}/s)\n",
            manifest.files,
            output::bytes(manifest.plain_bytes),
            output::bytes(manifest.stored_bytes),
            output::seconds(took),
            output::bytes(rate as u64)
        ));
        if let Some(physical) = manifest.postgres.as_ref().and_then(|postgres| postgres.physical.as_ref()) {
            text.push_str(&format!(
                "  consistent at LSN {} of {}, timeline {}\n",
                physical.stop_lsn, physical.consistent_at, physical.timeline
            ));
        }
        if let Some(artifacts) = &manifest.artifacts {
            text.push_str(&format!("  {} artifacts, {}\n", artifacts.count, output::bytes(artifacts.bytes)));
        }
        text.push_str(&format!("  signed by {}\n", signer.describe()));
        text
    });
    if manifest.state == State::Degraded {
        output::warn(&format!(
            "the backup is DEGRADED: {} damaged pages in the source, first {} block {}; lifeboat show {} lists them",
            manifest.findings.len(),
            manifest.findings[0].file,
            manifest.findings[0].block,
            manifest.id
        ));
        return Ok(EXIT_FINDINGS);
    }
    // What a replica missed was said when it missed it. Whoever only looks at the exit code must not take one copy for two.
    let missed = repository.store().notes().len();
    if missed > 0 {
        output::warn("the backup is taken, but not everywhere: lifeboat replicate brings replicas what they missed");
    }
    // Nor one that not everybody can open who should, nor one whose database refers to what is not in it, nor one without some of the
    // server's databases.
    let referred = manifest.artifacts.as_ref().and_then(|artifacts| artifacts.references.as_ref());
    let absent = referred.is_some_and(|references| references.missing_count > 0);
    let partial = taken.lacking.count > 0 || taken.artifact_findings || !taken.left_out.is_empty();
    Ok(if missed > 0 || absent || partial || held.is_some_and(|held| held.failed > 0) { EXIT_FINDINGS } else { 0 })
}

/// Makes what the backup needs of earlier runs stay, where the configuration promises how long. The backup is taken, whatever becomes of it.
fn held(settings: &Settings, url: &str, repository: &Repository, manifest: &Manifest) -> Option<Extended> {
    let promised = settings.store_options(url).retention?;
    let progress = Shown::new();
    let extended = hold::extend(repository, manifest, promised, jiff::Timestamp::now(), hold::THREADS, &progress);
    progress.finish();
    let extended = match extended {
        Ok(extended) => extended,
        Err(error) => Extended { failed: 1, reasons: vec![crate::failure::chain(&error)], ..Extended::default() },
    };
    if extended.failed > 0 {
        output::warn(&format!(
            "the backup is taken, but {} objects that it needs may be held for less than promised, first {}; the next backup tries again, lifeboat doctor tells what the store can do",
            extended.failed,
            extended.reasons.first().map_or("unknown", String::as_str)
        ));
    }
    Some(extended)
}

/// How long the archiver may take for the segment that a backup ends in.
const ARCHIVER: Duration = Duration::from_secs(60);

/// Whether the WAL up to the end of the backup is in the archive, where there is one: only then recovery can go on from it. `None`: there is none.
fn archived(repository: &Repository, manifest: &Manifest) -> Result<Option<bool>, Failure> {
    let Some(postgres) = &manifest.postgres else { return Ok(None) };
    let (Some(physical), Some(system_id)) = (&postgres.physical, postgres.system_id) else { return Ok(None) };
    if !wal::clusters(repository)?.contains(&system_id) {
        return Ok(None);
    }
    let cluster = Cluster { system_id, segment_size: physical.wal.segment_size };
    let arrived = arrival::wait(repository, cluster, physical.timeline, physical.stop_lsn, ARCHIVER)?;
    if !arrived {
        output::warn(&format!(
            "the WAL archive does not reach the end of this backup ({}) yet: until it does, the backup can be restored, but recovery cannot go on from it; lifeboat wal status",
            physical.stop_lsn
        ));
    }
    Ok(Some(arrived))
}

/// A place that cannot be a repository is told before anything else is done.
fn check_output(url: &str, make: bool) -> Result<(), Failure> {
    // A bucket is asked when it is opened.
    if ["s3://", "gs://", "az://", "azure://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Ok(());
    }
    let path = url.strip_prefix("file://").unwrap_or(url);
    if url.contains("://") && !url.starts_with("file://") {
        return Err(lifeboat_engine::store::OpenError::Scheme(url.split("://").next().unwrap_or_default().to_owned()).into());
    }
    let path = Path::new(path);
    if path.is_dir() {
        return Ok(());
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if make && !path.exists() && absolute.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    if path.exists() {
        return Err(Failure::new(crate::failure::EXIT_NO_REPOSITORY, format!("open {}: it is not a directory", path.display()))
            .hint("lifeboat init --repository DIR makes a repository"));
    }
    let missing = if make { absolute.parent().unwrap_or(&absolute).display().to_string() } else { path.display().to_string() };
    Err(lifeboat_engine::store::OpenError::Missing(missing).into())
}

fn postgres_source(backup: &Backup, settings: &Settings) -> Result<Option<PostgresSource>, Failure> {
    let configured = settings.postgres_configured && settings.file.is_some();
    if backup.exclude_postgres || !(backup.include_postgres || backup.copy.is_some() || configured) {
        return Ok(None);
    }
    let dsn = settings.dsn.as_ref().map_or("", |setting| setting.value.as_str());
    let copy = match backup.copy {
        Some(Copy::Auto) => CopyChoice::Auto,
        Some(Copy::Local) => CopyChoice::Local,
        Some(Copy::Stream) => CopyChoice::Stream,
        Some(Copy::Logical) => CopyChoice::Logical,
        None => settings.copy.value,
    };
    Ok(Some(PostgresSource {
        dsn: Dsn::parse(dsn)?,
        data_directory: settings.data_directory.as_ref().map(|setting| setting.value.clone()),
        copy,
        bin_directory: settings.bin_directory.as_ref().map(|setting| setting.value.clone()),
        scratch: settings.scratch.value.clone(),
        fast_checkpoint: !backup.spread_checkpoint && settings.checkpoint.value == Checkpoint::Fast,
        record_only: backup.record_only,
        check_pages: settings.check_pages.value,
        truth: settings.drill.truth(),
    }))
}

fn artifacts_source(backup: &Backup, settings: &Settings) -> Result<Option<ArtifactsSource>, Failure> {
    let Some(directory) = &settings.artifacts else { return Ok(None) };
    let path = &directory.value;
    if !path.is_dir() && !backup.allow_empty {
        let problem = if path.exists() { "it is not a directory" } else { "no such directory" };
        return Err(Failure::usage(format!("read artifacts {}: {problem}", path.display()))
            .hint("correct artifacts.directory or LIFEBOAT_ARTIFACTS: lifeboat config show"));
    }
    Ok(Some(ArtifactsSource {
        directory: Some(path.clone()),
        allow_empty: backup.allow_empty,
        reference_query: settings.reference_query.as_ref().map(|setting| setting.value.clone()),
    }))
}

fn dry_run(
    settings: &Settings,
    url: &str,
    postgres: Option<&PostgresSource>,
    artifacts: Option<&ArtifactsSource>,
    out: &Output,
) -> Result<u8, Failure> {
    let path = Path::new(url.strip_prefix("file://").unwrap_or(url));
    let repository_exists = path.join("lifeboat.json").is_file();
    let mut steps = Vec::new();
    if !repository_exists {
        steps.push(format!("make a repository in {url}"));
    }
    let mut database = None;
    if let Some(source) = postgres {
        let server = source.dsn.endpoint().to_string();
        if source.record_only {
            steps.push(format!("name the database at {server} in the manifest, and copy nothing of it"));
            database = Some(PlannedDatabase { server, copy: CopyMethod::Recorded, reason: "asked for".into() });
        } else {
            let decision = choose_copy(source.copy, &backup::copy_facts(source))?;
            steps.push(match decision.method {
                CopyMethod::Local => format!(
                    "copy the database at {server} from {}, between start and stop of an online backup, with {} workers",
                    source.data_directory.as_deref().unwrap_or(Path::new("?")).display(),
                    settings.workers.value
                ),
                CopyMethod::Stream => format!("copy the database at {server} through the replication protocol"),
                _ => format!("dump every database at {server} with pg_dump"),
            });
            if decision.method.is_physical() {
                steps.push("take the WAL from start to stop, so that the backup restores on its own".into());
            }
            database = Some(PlannedDatabase { server, copy: decision.method, reason: decision.reason });
        }
    }
    if let Some(directory) = artifacts.and_then(|source| source.directory.as_ref()) {
        steps.push(format!("store and sign what is new in {}", directory.display()));
    }
    if artifacts.is_some_and(|source| source.reference_query.is_some()) && postgres.is_some_and(|source| !source.record_only) {
        steps.push("compare the artifacts with what the database refers to".into());
    }
    steps.push("sign the manifest and commit it".into());
    let plan = Plan {
        name: settings.name.value.clone(),
        repository: url.to_owned(),
        repository_exists,
        database,
        artifacts: artifacts.and_then(|source| source.directory.as_ref()).map(|path| path.display().to_string()),
        encrypted_to: settings.recipients.value.clone(),
        steps,
    };
    out.result(&plan, || {
        let mut text = format!("would back up {} into {}\n", plan.name, plan.repository);
        if let Some(database) = &plan.database {
            text.push_str(&format!("  database at {}: {:?}, because {}\n", database.server, database.copy, database.reason).to_lowercase());
        }
        for (number, step) in plan.steps.iter().enumerate() {
            text.push_str(&format!("  {}. {step}\n", number + 1));
        }
        text.push_str("nothing was changed (dry run)\n");
        text
    });
    Ok(0)
}
