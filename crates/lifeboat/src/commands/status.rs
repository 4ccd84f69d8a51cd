//! `lifeboat status`: can I recover, to when, how fast, and when was that proven?

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use lifeboat_core::alert;
use lifeboat_core::policy::Operation;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::repository::layout;
use lifeboat_core::status::{
    ArtifactsSeen, DiskSeen, FindingSeen, KeySeen, Objectives, Observed, ReceiverSeen, RepositorySeen, ServerSeen, Severity, Status,
    Unseen, Verdict, WalSeen, assess,
};
use lifeboat_core::wal::SystemId;
use lifeboat_core::wal::catalog::BackupPoint;
use lifeboat_core::wal::status as wal_status;
use lifeboat_engine::agent::tasks;
use lifeboat_engine::artifacts;
use lifeboat_engine::postgres::Dsn;
use lifeboat_engine::repository::Repository;
use lifeboat_engine::runs::Runs;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::status::{self as look, within};
use lifeboat_engine::store::{Entry, Missed, Part, is_there, journal_of};
use lifeboat_engine::wal;
use lifeboat_engine::wal::survey::survey_with;

use super::wal::status as wal_command;
use crate::config::{Origin, RepositorySettings, Settings};
use crate::failure::{EXIT_FAILED, EXIT_FINDINGS, Failure, chain};
use crate::gate::{self, Question};
use crate::output::Output;
use crate::session;

#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    /// Print it as metrics, for Prometheus
    #[arg(long, conflicts_with = "json")]
    metrics: bool,
}

/// How long one place may take to answer before it is said that it does not.
const PATIENCE: Duration = Duration::from_secs(60);

/// Workers that look at backups: each mostly waits for the store.
const WORKERS: usize = 16;

/// Drills that are looked at.
const DRILLS: usize = 50;

pub(super) fn run(command: &StatusCommand, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    gate::allow(settings, None, Question::new(Operation::Status))?;
    let status = assess(observe(settings), &settings.alerting().0);
    match command.metrics {
        true => out.raw(&lifeboat_engine::metrics::exposition(&status, None, lifeboat_engine::metrics::Format::Prometheus)),
        false => out.result(&status, || super::status_text::text(&status)),
    }
    Ok(code(&status))
}

/// 0 where all is well, 1 where there is nothing to recover from or nobody could look, 3 otherwise.
pub(crate) fn code(status: &Status) -> u8 {
    match status.answer.verdict {
        Verdict::NotRecoverable | Verdict::Unknown => EXIT_FAILED,
        Verdict::Recoverable if status.alerts.is_empty() => 0,
        Verdict::Recoverable | Verdict::AtRisk => EXIT_FINDINGS,
    }
}

/// Notes what could not be looked at, and goes on.
struct Look {
    unseen: Vec<Unseen>,
}

impl Look {
    fn at<T>(&mut self, what: &str, seen: Result<T, String>) -> Option<T> {
        seen.map_err(|why| self.unseen.push(Unseen { what: what.to_owned(), why })).ok()
    }
}

/// Looks at everything. Nothing that fails keeps the rest from being seen.
pub(crate) fn observe(settings: &Settings) -> Observed {
    let begun = Instant::now();
    let at = Timestamp::now();
    let mut look = Look { unseen: Vec::new() };
    let trust = match settings.trust.is_empty() {
        // Said by the backups, whose signatures are not checked.
        true => None,
        false => look.at("keys", session::trust(settings).map_err(|failure| failure.message)),
    };
    let dsn = settings.dsn.as_ref().map(|dsn| dsn.value.as_str().to_owned());
    let asked = dsn.as_ref().map(|dsn| {
        let dsn = dsn.clone();
        within(PATIENCE, move || wal_command::ask(&dsn)).and_then(|asked| asked)
    });
    let server = dsn.as_deref().zip(asked.as_ref()).map(|(dsn, asked)| server_seen(dsn, asked));
    let repository = look.at("backups", session::read_repository(settings).map_err(|failure| failure.message));
    let places = places(settings, repository.as_ref(), trust.as_ref(), &mut look);
    let system = (settings.name.origin != Origin::Default).then_some(settings.name.value.as_str());
    let mut observed = Observed {
        name: settings.name.value.clone(),
        environment: session::environment(settings),
        host: session::host(),
        program: session::PROGRAM.to_owned(),
        at,
        took_seconds: 0.0,
        objectives: Objectives {
            rpo_seconds: settings.rpo.value.as_secs(),
            rto_seconds: settings.rto.value.as_secs(),
            drill_seconds: settings.drill_every.value.as_secs(),
        },
        server,
        repositories: places,
        backups: None,
        wal: None,
        artifacts: None,
        drills: None,
        keys: look.at("keys", keys(settings, at)).unwrap_or_default(),
        disks: disks(settings, &mut look),
        runs: look.at("runs", Runs::new(&settings.agent.state.value).last().map_err(|error| error.to_string())).unwrap_or_default(),
        tasks: look.at("tasks", tasks::seen(&settings.agent.state.value).map_err(|error| error.to_string())).unwrap_or_default(),
        unseen: Vec::new(),
    };
    if let Some(repository) = &repository {
        let cluster = trust.as_ref().and_then(|_| look.at("wal", cluster(repository, asked.as_ref()))).flatten();
        let backups = one_system(repository, system)
            .and_then(|()| look::backups(repository, trust.as_ref(), system, cluster, WORKERS, at).map_err(|error| chain(&error)));
        let backups = look.at("backups", backups);
        let drills = look::drills(repository, trust.as_ref(), &settings.name.value, DRILLS);
        observed.drills = look.at("drills", drills.map_err(|error| chain(&error)));
        let head = artifacts::newest_head(repository.store());
        observed.artifacts = look.at("artifacts", head.map_err(|error| chain(&error))).flatten().map(|head| ArtifactsSeen {
            changed: Some(head.created),
            count: head.count,
            bytes: head.bytes,
        });
        if let (Some(trust), Some(cluster)) = (&trust, cluster) {
            // Which moments can be gone back to depends on both.
            let points =
                backups.as_ref().map(|backups| backups.points.as_slice()).ok_or_else(|| "nobody could look at the backups".to_owned());
            let seen = points.and_then(|points| wal_seen(settings, repository, trust, cluster, points, asked.as_ref()));
            observed.wal = look.at("wal", seen).flatten();
        }
        observed.backups = backups.map(|backups| backups.seen);
    }
    observed.unseen = look.unseen;
    observed.took_seconds = begun.elapsed().as_secs_f64();
    observed
}

/// Where nobody says which system this is, there may be one only: the backups of another one say nothing of it.
fn one_system(repository: &Repository, system: Option<&str>) -> Result<(), String> {
    if system.is_some() {
        return Ok(());
    }
    let ids = repository.backup_prefixes().map_err(|error| chain(&error))?;
    let names: std::collections::BTreeSet<&str> = ids.iter().map(|id| id.name()).collect();
    match names.len() {
        0 | 1 => Ok(()),
        _ => Err(format!(
            "the repository has backups of {}, and no name is configured: write name = \"…\" into the configuration",
            names.into_iter().collect::<Vec<_>>().join(", ")
        )),
    }
}

/// Alerts about keys and disks, which need nobody to be asked.
pub(super) fn running_out(settings: &Settings, terms: &alert::Terms) -> Vec<alert::Alert> {
    let now = Timestamp::now();
    let mut look = Look { unseen: Vec::new() };
    let disks = disks(settings, &mut look);
    alert::running_out(&keys(settings, now).unwrap_or_default(), &disks, terms, now)
}

fn server_seen(dsn: &str, asked: &Result<wal_status::ServerWal, String>) -> ServerSeen {
    let endpoint = Dsn::parse(dsn).map_or_else(|_| "server".to_owned(), |dsn| dsn.endpoint().to_string());
    let facts = asked.as_ref().ok();
    ServerSeen {
        endpoint,
        trouble: asked.as_ref().err().cloned(),
        version_num: facts.map(|facts| facts.version_num),
        system_id: facts.map(|facts| facts.system_id.to_string()),
        timeline: facts.map(|facts| facts.timeline.0),
        position: facts.map(|facts| facts.position.to_string()),
        in_recovery: facts.is_some_and(|facts| facts.in_recovery),
    }
}

/// Each place by itself, all at once: what hangs keeps nobody else.
fn places(settings: &Settings, repository: Option<&Repository>, trust: Option<&Trust>, look: &mut Look) -> Vec<RepositorySeen> {
    let looks: Vec<_> = settings
        .repositories
        .used
        .iter()
        .map(|one| {
            let place = one.clone();
            std::thread::spawn(move || within(PATIENCE, move || backups_of(&place)).and_then(|seen| seen))
        })
        .collect();
    let listed: Vec<Result<Vec<String>, String>> = looks
        .into_iter()
        .map(|look| look.join().unwrap_or_else(|_| Err("looking at it ended with a bug in lifeboat".to_owned())))
        .collect();
    let primary = listed.first().and_then(|listed| listed.as_ref().ok()).cloned();
    let place = |(index, (one, listed)): (usize, (&RepositorySettings, Result<Vec<String>, String>))| {
        let journal = repository.filter(|_| index > 0).map(|repository| {
            // One that cannot be read may say anything.
            let journal = journal_of(&settings.wal_spool.value, repository.descriptor().repository, &one.name.value).read();
            journal.unwrap_or_else(|_| Missed { everything: true, ..Missed::default() })
        });
        let (trouble, there) = match listed {
            Ok(there) => (None, there),
            Err(why) => (Some(why), Vec::new()),
        };
        let compared = primary.as_ref().filter(|_| index > 0 && trouble.is_none());
        let mut lacks: Vec<String> = compared.into_iter().flatten().filter(|id| there.binary_search(id).is_err()).cloned().collect();
        lacks.reverse();
        // Of a place that its store keeps the program does not know what was given up there.
        let compared = compared.filter(|_| one.part.value != Part::KeptByStore);
        let only_there = compared.map(|primary| there.iter().filter(|id| primary.binary_search(id).is_err()).cloned().collect());
        let lost = lost_by_primary(settings, one, trust, journal.as_ref(), only_there.unwrap_or_default());
        let primary_lacks = look.at(&format!("backups that only {} has", one.name.value), lost).unwrap_or_default();
        RepositorySeen {
            name: one.name.value.clone(),
            url: super::policy::facts::without_user(&one.url.value),
            part: match one.part.value {
                _ if index == 0 => "primary",
                Part::Required => "required",
                Part::BestEffort => "best-effort",
                Part::KeptByStore => "kept-by-store",
            }
            .to_owned(),
            trouble,
            missed: journal.as_ref().map_or(0, |missed| missed.entries.len() as u64),
            missed_everything: journal.is_some_and(|missed| missed.everything),
            lacks,
            primary_lacks,
            newest_backup: there.last().cloned(),
        }
    };
    settings.repositories.used.iter().zip(listed).enumerate().map(place).collect()
}

/// Those of the backups that only a replica has which the primary lost, the newest first. Each is asked for once more, by its name: between
/// both listings it may have been committed, or a prune may have begun to take it away.
fn lost_by_primary(
    settings: &Settings,
    replica: &RepositorySettings,
    trust: Option<&Trust>,
    journal: Option<&Missed>,
    only_there: Vec<String>,
) -> Result<Vec<String>, String> {
    let (Some(trust), Some(primary), false) = (trust, settings.repositories.used.first(), only_there.is_empty()) else {
        return Ok(Vec::new());
    };
    // Nobody knows what it should have deleted, and that is told.
    if journal.is_some_and(|missed| missed.everything) {
        return Ok(Vec::new());
    }
    let (primary, replica, trust) = (primary.clone(), replica.clone(), trust.clone());
    let is_deleted = |id: &BackupId| journal.is_some_and(|missed| missed.entries.contains(&Entry::Delete(layout::manifest(id))));
    let ids: Vec<BackupId> = only_there.iter().rev().filter_map(|id| id.parse().ok()).filter(|id| !is_deleted(id)).collect();
    let look = move || -> Result<Vec<String>, Failure> {
        let (primary, replica) = (session::alone(&primary)?, session::alone(&replica)?);
        let mut lost = Vec::new();
        for id in ids {
            let there = |place: &Repository| is_there(place.store(), &layout::manifest(&id));
            let given_up = session::is_being_pruned(&primary, &id, &trust)? || session::is_being_pruned(&replica, &id, &trust)?;
            // The replica last: a prune that ended meanwhile left no mark anywhere.
            if !given_up && !there(&primary)? && there(&replica)? {
                lost.push(id.to_string());
            }
        }
        Ok(lost)
    };
    within(PATIENCE, look)?.map_err(|failure| failure.message)
}

/// The backups of one place, sorted.
fn backups_of(place: &RepositorySettings) -> Result<Vec<String>, String> {
    let repository = session::alone(place).map_err(|failure| failure.message)?;
    let ids = repository.backups().map_err(|error| chain(&error))?;
    let mut ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    ids.sort();
    Ok(ids)
}

/// The cluster that the system has: the server's; where nobody says which it is, the only one that there is WAL of.
fn cluster(repository: &Repository, asked: Option<&Result<wal_status::ServerWal, String>>) -> Result<Option<SystemId>, String> {
    if let Some(Ok(server)) = asked {
        return Ok(Some(server.system_id));
    }
    Ok(match wal::clusters(repository).map_err(|error| chain(&error))?.as_slice() {
        [only] => Some(*only),
        _ => None,
    })
}

fn wal_seen(
    settings: &Settings,
    repository: &Repository,
    trust: &Trust,
    system_id: SystemId,
    points: &[BackupPoint],
    asked: Option<&Result<wal_status::ServerWal, String>>,
) -> Result<Option<WalSeen>, String> {
    let server = asked.and_then(|asked| asked.as_ref().ok());
    let timeline = server.filter(|server| server.system_id == system_id).map(|server| server.timeline);
    let survey =
        survey_with(repository, system_id, timeline, trust, || Ok((points.to_vec(), Vec::new()))).map_err(|error| chain(&error))?;
    let known = survey.map(|survey| wal_command::beside(settings, repository, survey));
    let facts = wal_command::facts(settings, asked, known.as_ref());
    let (findings, kept_until) = (wal_status::assess(&facts), wal_status::kept_until(&facts));
    let findings = findings.into_iter().filter(|finding| finding.code != "server-unreachable").map(|finding| FindingSeen {
        code: finding.code.to_owned(),
        severity: match finding.severity {
            wal_status::Severity::Critical => Severity::Critical,
            wal_status::Severity::Warning => Severity::Warning,
        },
        message: finding.message,
        hint: finding.hint,
    });
    if server.is_none() && known.is_none() {
        return Ok(None);
    }
    let survey = known.as_ref().map(|known| &known.survey);
    let end = survey.zip(server).and_then(|(survey, server)| survey.end(server.timeline));
    Ok(Some(WalSeen {
        mode: serde_json::to_value(settings.wal_mode.value).ok().and_then(|mode| mode.as_str().map(str::to_owned)).unwrap_or_default(),
        system_id: system_id.to_string(),
        timelines: survey.map(look::timelines).unwrap_or_default(),
        windows: survey.map(look::windows).unwrap_or_default(),
        last_commit: survey.and_then(|survey| survey.last_commit),
        kept_until,
        // What a standby that follows nobody has is not what there is.
        lag_bytes: server.filter(|server| server.is_at_the_end()).zip(end).map(|(server, end)| server.position.0.saturating_sub(end.0)),
        ready: server.and_then(|server| server.ready),
        slots: server.map(|server| look::slots(server, &settings.wal_slot.value)).unwrap_or_default(),
        receiver: known.as_ref().and_then(|known| known.receiver.as_ref()).map(receiver_seen),
        findings: findings.collect(),
    }))
}

fn receiver_seen(receiver: &wal_command::ReceiverStatus) -> ReceiverSeen {
    ReceiverSeen {
        state: receiver.state.clone(),
        mode: receiver.mode.clone(),
        age_seconds: wal_status::age_seconds(receiver.updated, Timestamp::now()),
        received: receiver.received.to_string(),
        spooled: receiver.spooled.to_string(),
        stored: receiver.stored.to_string(),
        waiting_bytes: receiver.waiting_bytes,
        degraded: receiver.degraded,
    }
}

/// Whose signatures count, which certificates are used, and until when.
fn keys(settings: &Settings, now: Timestamp) -> Result<Vec<KeySeen>, String> {
    let mut keys = Vec::new();
    for row in super::key::signers(settings, now).map_err(|failure| failure.message)? {
        keys.push(KeySeen {
            what: "trusted key".to_owned(),
            name: row.signer,
            signs_here: row.signs_here,
            state: serde_json::to_value(row.state).ok().and_then(|state| state.as_str().map(str::to_owned)).unwrap_or_default(),
            not_after: row.terms.not_after,
        });
    }
    let files: Vec<(&str, Option<&PathBuf>)> = vec![
        ("certificate of the policy service's authority", settings.policy.opa_ca_file.as_ref().map(|setting| &setting.value)),
        ("certificate for the policy service", settings.policy.opa_identity_file.as_ref().map(|setting| &setting.value)),
        ("certificate of the signing service's authority", settings.signing.ca_file.as_ref().map(|setting| &setting.value)),
    ];
    let stores = settings
        .repositories
        .used
        .iter()
        .filter_map(|one| one.ca_file.as_ref())
        .map(|setting| ("certificate of a repository's authority", Some(&setting.value)));
    for (what, path) in files.into_iter().chain(stores).filter_map(|(what, path)| Some((what, path?))) {
        // One that cannot be read is found by whoever needs it, and by doctor.
        for certificate in lifeboat_engine::doctor::certificates(path).unwrap_or_default() {
            let state = if certificate.not_after < now { "retired" } else { "trusted" };
            keys.push(KeySeen {
                what: what.to_owned(),
                name: format!("{} ({})", certificate.subject, path.display()),
                signs_here: true,
                state: state.to_owned(),
                not_after: Some(certificate.not_after),
            });
        }
    }
    Ok(keys)
}

fn disks(settings: &Settings, look: &mut Look) -> Vec<DiskSeen> {
    let mut wanted: Vec<(&str, &Path)> = Vec::new();
    if let Some(data) = &settings.data_directory {
        wanted.push(("data directory", &data.value));
    }
    let wal = settings.data_directory.as_ref().and_then(|data| std::fs::canonicalize(data.value.join("pg_wal")).ok());
    if let Some(wal) = &wal {
        wanted.push(("WAL", wal));
    }
    wanted.push(("spool", &settings.wal_spool.value));
    wanted.push(("state", &settings.agent.state.value));
    for one in &settings.repositories.used {
        let url = one.url.value.as_str();
        let path = url.strip_prefix("file://").or((!url.contains("://")).then_some(url));
        wanted.extend(path.map(|path| ("repository", Path::new(path))));
    }
    wanted.push(("drills", &settings.drill.directory.value));
    let mut disks: Vec<(Option<u64>, DiskSeen)> = Vec::new();
    for (what, path) in wanted {
        let path = path.to_owned();
        let name = path.display().to_string();
        let seen =
            within(PATIENCE, move || look::disk(what, &path).map(|disk| (look::device(&path), disk)).map_err(|error| error.to_string()));
        let Some((device, disk)) = look.at(&format!("disk {name}"), seen.and_then(|seen| seen)) else { continue };
        // One file system is told of once, as what matters most on it.
        if device.is_none() || !disks.iter().any(|(there, _)| *there == device) {
            disks.push((device, disk));
        }
    }
    disks.into_iter().map(|(_, disk)| disk).collect()
}
