//! `lifeboat wal status`: to which moments recovery can go, what is missing, and what is wrong with the way there.

use jiff::Timestamp;
use lifeboat_core::wal::SystemId;
use lifeboat_core::wal::catalog::{Moment, Window};
use lifeboat_core::wal::status::{ServerWal, Severity, WalFacts, WalFinding, assess};
use lifeboat_engine::postgres::{Connection, Dsn, Purpose, wal_facts};
use lifeboat_engine::wal;
use lifeboat_engine::wal::survey::{Survey, survey};

use crate::cli::WalStatus;
use crate::config::{Settings, WalMode};
use crate::failure::{EXIT_FINDINGS, Failure, chain};
use crate::output::{self, Output, table};
use crate::session;

pub(super) fn run(WalStatus {}: &WalStatus, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let repository = session::open_repository(settings)?;
    let trust = session::trust(settings)?;
    let server = settings.dsn.as_ref().map(|dsn| ask(&dsn.value));
    let system_ids: Vec<SystemId> = match &server {
        Some(Ok(server)) => vec![server.system_id],
        _ => wal::clusters(&repository).map_err(Failure::from)?,
    };
    let mut surveys = Vec::new();
    for system_id in system_ids {
        surveys.extend(survey(&repository, system_id, &trust)?);
    }
    let ours = match &server {
        Some(Ok(server)) => surveys.iter().find(|survey| survey.system_id == server.system_id),
        _ => surveys.first(),
    };
    let findings = assess(&facts(settings, server.as_ref(), ours));
    let asked = server.as_ref().and_then(|server| server.as_ref().ok());
    let document = serde_json::json!({
        "repository": repository.store().url(), "server": asked, "clusters": surveys, "findings": findings,
    });
    out.result(&document, || text(asked, &surveys));
    say(&findings);
    Ok(if findings.is_empty() && surveys.iter().all(|survey| survey.not_counted.is_empty()) { 0 } else { EXIT_FINDINGS })
}

fn ask(dsn: &str) -> Result<ServerWal, String> {
    let ask = || wal_facts::read(&Connection::open(&Dsn::parse(dsn)?, Purpose::Sql)?);
    ask().map_err(|error| chain(&error))
}

fn facts<'a>(settings: &'a Settings, server: Option<&'a Result<ServerWal, String>>, survey: Option<&Survey>) -> WalFacts<'a> {
    let asked = server.and_then(|server| server.as_ref().ok());
    // Without a server, the archive is compared with nothing.
    let timeline = asked.map(|server| server.timeline);
    WalFacts {
        server: asked,
        server_trouble: server.and_then(|server| server.as_ref().err().cloned()),
        archive_end: survey.zip(timeline).and_then(|(survey, timeline)| survey.end(timeline)),
        last_commit: survey.and_then(|survey| survey.last_commit),
        gaps: survey.map(gaps).unwrap_or_default(),
        receives: settings.wal_mode.value != WalMode::Archive,
        synchronous: settings.wal_mode.value == WalMode::Sync,
        slot: &settings.wal_slot.value,
        receiver: None,
        rpo: settings.rpo.value,
        now: Timestamp::now(),
    }
}

/// Gaps that cut into what could be gone back to; one behind which a newer backup begins cuts nothing off that is still open.
fn gaps(survey: &Survey) -> Vec<String> {
    let mut gaps: Vec<String> = Vec::new();
    for window in &survey.windows {
        let holes = window.except.iter().filter_map(|except| except.gap.as_ref()).chain(&window.stopped_by);
        gaps.extend(holes.map(ToString::to_string));
    }
    gaps.sort();
    gaps.dedup();
    gaps
}

fn say(findings: &[WalFinding]) {
    for finding in findings {
        let word = match finding.severity {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        };
        output::say(&format!("{word}: {}", finding.message));
        output::say(&format!("hint: {}", finding.hint));
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
    text.push_str(&format!(", on timeline {}, from {} backups\n", window.path.timeline(), window.backups.len()));
    for except in &window.except {
        text.push_str(&format!("    except from {} to {}", moment(&except.from), moment(&except.to)));
        text.push_str(&except.gap.as_ref().map_or("\n".to_owned(), |gap| format!(": {gap}\n")));
    }
    if let Some(gap) = &window.stopped_by {
        text.push_str(&format!("    not further: {gap}\n"));
    }
    text
}

fn text(server: Option<&ServerWal>, surveys: &[Survey]) -> String {
    let mut text = String::new();
    if surveys.is_empty() {
        text.push_str("the repository has no WAL of this cluster\n");
    }
    for survey in surveys {
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
