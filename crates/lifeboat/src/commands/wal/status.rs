//! `lifeboat wal status`: to which moments recovery can go, what is missing, and what is wrong with the way there.

use jiff::Timestamp;
use lifeboat_core::policy::Operation;
use lifeboat_core::verify::verdict;
use lifeboat_core::wal::catalog::{Cut, Moment, Window, cuts};
use lifeboat_core::wal::status::{
    GapSeen, ReceiverSeen, ServerWal, Severity, Synchronous, WalFacts, WalFinding, age_seconds, assess, lasting,
};
use lifeboat_core::wal::{Lsn, SystemId};
use lifeboat_engine::postgres::{Connection, Dsn, Purpose, wal_facts};
use lifeboat_engine::repository::Repository;
use lifeboat_engine::signing::Trust;
use lifeboat_engine::wal::survey::{Survey, survey};
use lifeboat_engine::wal::verify::{self, Verified};
use lifeboat_engine::wal::{self, Cluster, WalReader};

use crate::cli::WalStatus;
use crate::config::{Durability, Settings, WalMode};
use crate::failure::{EXIT_FINDINGS, Failure, chain};
use crate::gate::{self, Question};
use crate::output::{self, Level, Output, table};
use crate::progress::Shown;
use crate::session;

/// The receiver's own word (`status.json` in the spool), as far as it is looked at here.
#[derive(serde::Deserialize, serde::Serialize)]
pub(crate) struct ReceiverStatus {
    pub(crate) updated: Timestamp,
    pub(crate) state: String,
    pub(crate) mode: String,
    pub(crate) received: Lsn,
    pub(crate) spooled: Lsn,
    pub(crate) stored: Lsn,
    acknowledged: Lsn,
    pub(crate) waiting_bytes: u64,
    pub(crate) degraded: bool,
    spooled_at: Timestamp,
    stored_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store_trouble: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spool_trouble: Option<String>,
}

/// Everything that is known of one cluster.
#[derive(serde::Serialize)]
pub(crate) struct Known {
    #[serde(flatten)]
    pub(crate) survey: Survey,
    pub(crate) receiver: Option<ReceiverStatus>,
    verified: Verified,
}

/// What is known of a cluster, if the repository has WAL of it.
fn known(
    settings: &Settings,
    repository: &Repository,
    system_id: SystemId,
    server: Option<&ServerWal>,
    trust: &Trust,
) -> Result<Option<Known>, Failure> {
    let timeline = server.filter(|server| server.system_id == system_id).map(|server| server.timeline);
    Ok(survey(repository, system_id, timeline, trust)?.map(|survey| beside(settings, repository, survey)))
}

/// With what this host knows beside the repository.
pub(crate) fn beside(settings: &Settings, repository: &Repository, survey: Survey) -> Known {
    let system_id = survey.system_id;
    let spool = wal::spool_of(&settings.wal_spool.value, repository, system_id);
    let receiver = std::fs::read(spool.join("receive/status.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Known { survey, receiver, verified: Verified::remembered(&spool) }
}

pub(super) fn run(command: &WalStatus, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    // What is read back is what the primary has: damage must show, not be read around.
    let repository =
        if command.verify { session::without_copies(session::primary(settings)?)? } else { session::read_repository(settings)? };
    gate::allow(settings, Some(&repository), Question::new(Operation::WalStatus))?;
    let trust = session::trust(settings)?;
    let server = settings.dsn.as_ref().map(|dsn| ask(dsn.value.as_str()));
    let system_ids: Vec<SystemId> = match &server {
        Some(Ok(server)) => vec![server.system_id],
        _ => wal::clusters(&repository).map_err(Failure::from)?,
    };
    let (mut known, mut damage) = (Vec::new(), Vec::new());
    for system_id in system_ids {
        let asked = server.as_ref().and_then(|server| server.as_ref().ok());
        let Some(mut one) = self::known(settings, &repository, system_id, asked, &trust)? else { continue };
        if command.verify {
            let spool = wal::spool_of(&settings.wal_spool.value, &repository, system_id);
            let cluster = Cluster { system_id, segment_size: one.survey.archive().segment_size() };
            let reader = WalReader::new(&repository, cluster, &trust, session::identities(settings, command.identity.as_ref())?);
            let opens = verify::opens(&reader)?.unwrap_or(false);
            let progress = Shown::new();
            let report = verify::verify(&reader, &one.verified, opens, settings.workers.value, Timestamp::now(), &progress);
            progress.finish();
            let report = report?;
            damage.extend(report.findings);
            one.verified = report.verified;
            if let Err(error) = one.verified.remember(&spool) {
                output::warn(&format!("what was verified is not remembered in {}: {error}", spool.display()));
            }
        }
        known.push(one);
    }
    let ours = match &server {
        Some(Ok(server)) => known.iter().find(|known| known.survey.system_id == server.system_id),
        _ => known.first(),
    };
    let findings = assess(&facts(settings, server.as_ref(), ours));
    let asked = server.as_ref().and_then(|server| server.as_ref().ok());
    let document = serde_json::json!({
        "repository": repository.store().url(), "server": asked, "clusters": known, "findings": findings, "damage": damage,
    });
    out.result(&document, || text(asked, &known));
    say(&findings);
    crate::commands::verify::say_findings(&damage);
    let bad = crate::commands::verify::code(verdict(&damage));
    let quiet = findings.is_empty() && known.iter().all(|known| known.survey.not_counted.is_empty());
    Ok(if bad != 0 {
        bad
    } else if quiet {
        0
    } else {
        EXIT_FINDINGS
    })
}

/// What is wrong with the way from the server to the repository: for `doctor`.
pub(crate) fn findings(settings: &Settings, repository: &Repository, trust: &Trust) -> Result<Vec<WalFinding>, Failure> {
    let Some(dsn) = &settings.dsn else { return Ok(Vec::new()) };
    let server = ask(dsn.value.as_str());
    let known = match &server {
        Ok(asked) => known(settings, repository, asked.system_id, Some(asked), trust)?,
        Err(_) => None,
    };
    Ok(assess(&facts(settings, Some(&server), known.as_ref())))
}

/// Asks a server.
pub(crate) fn ask(dsn: &str) -> Result<ServerWal, String> {
    let ask = || wal_facts::read(&Connection::open(&Dsn::parse(dsn)?, Purpose::Sql)?);
    ask().map_err(|error| chain(&error))
}

/// What is judged.
pub(crate) fn facts<'a>(settings: &'a Settings, server: Option<&'a Result<ServerWal, String>>, known: Option<&Known>) -> WalFacts<'a> {
    let survey = known.map(|known| &known.survey);
    let now = Timestamp::now();
    let receiver = known.and_then(|known| known.receiver.as_ref()).map(|receiver| ReceiverSeen {
        age_seconds: age_seconds(receiver.updated, now),
        store_trouble: lasting(receiver.store_trouble.as_ref(), receiver.stored_at, now),
        spool_trouble: lasting(receiver.spool_trouble.as_ref(), receiver.spooled_at, now),
        degraded: receiver.degraded,
        caught_up: (receiver.received > Lsn::INVALID && receiver.stored >= receiver.received).then_some(receiver.updated),
        connected: matches!(receiver.state.as_str(), "streaming" | "paused"),
    });
    let asked = server.and_then(|server| server.as_ref().ok());
    // Without a server, the archive is compared with nothing.
    let timeline = asked.map(|server| server.timeline);
    WalFacts {
        server: asked,
        server_trouble: server.and_then(|server| server.as_ref().err().cloned()),
        archive_end: survey.zip(timeline).and_then(|(survey, timeline)| survey.end(timeline)),
        no_way: survey.zip(timeline).and_then(|(survey, timeline)| Some(survey.archive().path(timeline).err()?.to_string())),
        stranded: survey.filter(|_| timeline.is_some()).is_some_and(Survey::is_stranded),
        last_commit: survey.and_then(|survey| survey.last_commit),
        last_piece: survey.filter(|_| timeline.is_some()).and_then(|survey| survey.last_piece),
        segment_size: survey.map(|survey| survey.archive().segment_size()),
        gaps: survey.map(gaps).unwrap_or_default(),
        receives: settings.wal_mode.value != WalMode::Archive,
        synchronous: match (settings.wal_mode.value, settings.wal_durability.value) {
            (WalMode::Sync, Durability::Spool) => Synchronous::Spool,
            (WalMode::Sync, Durability::Repository) => Synchronous::Repository,
            _ => Synchronous::No,
        },
        slot: &settings.wal_slot.value,
        receiver,
        rpo: settings.rpo.value,
        now,
    }
}

fn gaps(survey: &Survey) -> Vec<GapSeen> {
    let seen = |cut: &Cut| GapSeen { text: cut.gap.to_string(), is_passed: cut.is_passed, story: survey.archive().story(&cut.gap) };
    cuts(&survey.windows).iter().map(seen).collect()
}

fn say(findings: &[WalFinding]) {
    for finding in findings {
        let (level, word) = match finding.severity {
            Severity::Warning => (Level::Warning, "warning"),
            Severity::Critical => (Level::Error, "critical"),
        };
        output::tell(level, word, &finding.message, Some(("hint", &finding.hint)));
    }
}

fn moment(moment: &Moment) -> String {
    match moment.time {
        Some(time) => format!("{time:.0} (LSN {})", moment.lsn),
        None => format!("LSN {}", moment.lsn),
    }
}

fn window(window: &Window) -> String {
    let mut text = format!("  any moment from {} to {}", moment(&window.from), moment(&window.to));
    let backups = match window.backups.len() {
        1 => "1 backup".to_owned(),
        count => format!("{count} backups"),
    };
    text.push_str(&format!(", on timeline {}, from {backups}\n", window.path.timeline()));
    for except in &window.except {
        text.push_str(&format!("    except from {} to {}", moment(&except.from), moment(&except.to)));
        text.push_str(&except.gap.as_ref().map_or("\n".to_owned(), |gap| format!(": {gap}\n")));
    }
    if let Some(gap) = &window.stopped_by {
        text.push_str(&format!("    not further: {gap}\n"));
    }
    text
}

fn text(server: Option<&ServerWal>, known: &[Known]) -> String {
    let mut text = String::new();
    if known.is_empty() {
        text.push_str("the repository has no WAL of this cluster\n");
    }
    for Known { survey, receiver, verified } in known {
        text.push_str(&format!("cluster {}\n", survey.system_id));
        match survey.windows.as_slice() {
            [] => text.push_str("  no moment can be gone back to: no backup has the WAL that it needs\n"),
            windows => {
                text.push_str("you can go back to\n");
                windows.iter().for_each(|one| text.push_str(&window(one)));
            }
        }
        for problem in &survey.not_counted {
            text.push_str(&format!("  {problem}\n"));
        }
        let cells: Vec<Vec<String>> = survey
            .timelines
            .iter()
            .map(|state| {
                let lsn = |lsn: Option<lifeboat_core::wal::Lsn>| lsn.map_or("-".to_owned(), |lsn| lsn.to_string());
                vec![
                    state.timeline.to_string(),
                    lsn(state.first),
                    lsn(state.last),
                    state.segments.to_string(),
                    output::bytes(state.stored_bytes),
                    state.gaps.len().to_string(),
                ]
            })
            .collect();
        text.push_str(&table(&["TIMELINE", "FROM", "TO", "SEGMENTS", "STORED", "GAPS"], &cells));
        for gap in survey.timelines.iter().flat_map(|state| &state.gaps) {
            text.push_str(&format!("  {gap}\n"));
        }
        if let Some(receiver) = receiver {
            text.push_str(&format!(
                "receiver {} ({}): received {}, durable in the spool {}, in the repository {}, acknowledged {}; {} wait\n",
                receiver.state,
                receiver.mode,
                receiver.received,
                receiver.spooled,
                receiver.stored,
                receiver.acknowledged,
                output::bytes(receiver.waiting_bytes)
            ));
        }
        for (timeline, mark) in &verified.until {
            let how = if mark.opened { "every byte opened" } else { "stored bytes" };
            text.push_str(&format!("timeline {timeline} was read back up to {} and is whole ({how}, {:.0})\n", mark.lsn, mark.at));
        }
        if let Some(server) = server.filter(|server| server.system_id == survey.system_id) {
            text.push_str(&lag(server, survey));
        }
    }
    text
}

fn lag(server: &ServerWal, survey: &Survey) -> String {
    let end = survey.end(server.timeline);
    let bytes = end.map(|end| server.position.0.saturating_sub(end.0));
    let mut text = format!("server at {} on timeline {}", server.position, server.timeline);
    match bytes {
        Some(0) if survey.is_stranded() => text.push_str(": everything is in the repository, and no backup leads there\n"),
        Some(0) => text.push_str(": everything is in the repository\n"),
        Some(bytes) => text.push_str(&format!(": {} behind it in the repository\n", output::bytes(bytes))),
        None => text.push_str(": nothing of it is in the repository\n"),
    }
    if let Some(last) = survey.last_commit {
        let age = server.now.duration_since(last).as_secs().max(0);
        text.push_str(&format!("last commit in the repository {last:.0}, {age} s ago\n"));
    }
    for slot in &server.slots {
        let held = slot.restart_lsn.map_or(0, |lsn| server.position.0.saturating_sub(lsn.0));
        let state = slot.wal_status.as_deref().unwrap_or("unknown");
        let active = if slot.active { "in use" } else { "not in use" };
        text.push_str(&format!("slot {} {state}, {active}, holds {}\n", slot.name, output::bytes(held)));
    }
    text
}
