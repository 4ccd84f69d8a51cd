//! `lifeboat audit list`, `verify` and `key`

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use lifeboat_core::audit::{Entry, Filter, State, entries};
use lifeboat_core::policy::Operation;
use lifeboat_core::repository::backup_id::BackupId;
use lifeboat_core::verify::{Finding, FindingKind, verdict};
use lifeboat_engine::audit::{self, AuditKey, Log, Pin, Report, TrustedKey, VerifierKey};
use serde_json::json;

use super::verify::{code, say_findings};
use crate::config::{RepositorySettings, Settings};
use crate::failure::{EXIT_FAILED, EXIT_FINDINGS, EXIT_KEY, EXIT_NO_REPOSITORY, Failure};
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Show who did what with the repository, and what was not allowed
    List(AuditList),
    /// Check the log for records that were removed, exchanged, forged or cut off
    Verify(AuditVerify),
    /// Print the public half of this host's audit key, for audit.trust of other hosts
    Key(AuditKeyCommand),
    /// Go on with a log that lost its end, because a replica that had missed some records is the primary now
    Resume(AuditResume),
}

#[derive(Debug, Args)]
pub(crate) struct AuditList {
    /// Not before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Not after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Only this operation, backup or artifact-put for example; several times for several
    #[arg(long, value_name = "NAME", value_parser = operation)]
    operation: Vec<Operation>,
    /// Only what this user did, also with sudo
    #[arg(long, value_name = "USER")]
    actor: Option<String>,
    /// Only what was done on this host
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Only what ended so; several times for several
    #[arg(long, value_enum, value_name = "OUTCOME")]
    outcome: Vec<Wanted>,
    /// Only what was about this backup
    #[arg(long, value_name = "BACKUP")]
    backup: Option<BackupId>,
    /// Only what was not allowed
    #[arg(long)]
    denied: bool,
    /// What this host's own journal has, without looking at the repository
    #[arg(long)]
    local: bool,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wanted {
    /// With exit code 0
    Done,
    /// With findings
    Findings,
    /// In another way
    Failed,
    /// It was not allowed
    Denied,
    /// It has not ended yet
    Running,
    /// It began more than a day ago and did not end
    Unfinished,
}

impl Wanted {
    fn states(self) -> &'static [State] {
        match self {
            Self::Done => &[State::Done],
            Self::Findings => &[State::Findings],
            Self::Failed => &[State::Failed],
            Self::Denied => &[State::Denied],
            Self::Running => &[State::Running],
            Self::Unfinished => &[State::Unfinished],
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct AuditVerify {
    /// A checkpoint that was kept elsewhere: a file, or the text itself; several times for several
    #[arg(long, value_name = "FILE|TEXT")]
    checkpoint: Vec<String>,
    /// Only this one of the configured repositories; otherwise each of them, by itself
    #[arg(long, value_name = "NAME")]
    repository_name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AuditKeyCommand {
    /// Make a key in this file; what is there is never overwritten
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct AuditResume {
    /// What happened; it stands in this host's journal
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

fn operation(text: &str) -> Result<Operation, String> {
    Operation::ALL.into_iter().find(|operation| operation.name() == text).ok_or_else(|| {
        let names: Vec<String> = Operation::ALL.into_iter().filter(|operation| operation.is_audited()).map(Operation::name).collect();
        format!("there are {}", names.join(", "))
    })
}

/// The audit log of the repository at `url`, as it is configured. Whoever records and whoever reads opens it so.
pub(crate) fn log_of(settings: &Settings, url: &str) -> Result<Log, Failure> {
    let audit = &settings.audit;
    let key = audit.key_file.as_ref().map(|setting| read_key(&setting.value)).transpose()?;
    let mut trusted = Vec::new();
    for text in &audit.trust.value {
        trusted.push(TrustedKey { key: text.parse()?, until: None });
    }
    for retired in &audit.retired.value {
        trusted.push(TrustedKey { key: retired.key.parse()?, until: Some(retired.size) });
    }
    Ok(Log::new(&audit.directory.value, url, key, trusted))
}

/// The log of the configured repository, to note in this host's journal: for that no key is needed.
pub(crate) fn journal(settings: &Settings) -> Result<Log, Failure> {
    Ok(Log::new(&settings.audit.directory.value, session::repository_url(settings)?, None, Vec::new()))
}

/// The log of the configured repository.
pub(crate) fn log(settings: &Settings) -> Result<Log, Failure> {
    log_of(settings, session::repository_url(settings)?)
}

fn read_key(path: &Path) -> Result<AuditKey, Failure> {
    let read = AuditKey::read(path).map_err(|error| {
        Failure::new(EXIT_KEY, format!("read audit key {}: {error}", path.display()))
            .hint("lifeboat config show prints where it is looked for; lifeboat audit key --out FILE makes one")
    });
    Ok(read??)
}

/// The log, if anybody's records count in it.
fn readable(settings: &Settings) -> Result<Log, Failure> {
    let log = log(settings)?;
    if log.trusted().is_empty() {
        return Err(Failure::new(EXIT_KEY, "read the audit log: no audit key is configured, so nobody's records count")
            .hint("name public keys in audit.trust: lifeboat audit key prints a host's; lifeboat audit key --out FILE makes one"));
    }
    Ok(log)
}

pub(super) fn run(audit: &Audit, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let operation = match audit {
        Audit::List(_) => Operation::AuditList,
        Audit::Verify(_) => Operation::AuditVerify,
        Audit::Key(key) if key.out.is_some() => Operation::KeyGenerate,
        Audit::Key(_) => Operation::KeyList,
        Audit::Resume(_) => Operation::AuditResume,
    };
    gate::guard(settings, None, Question::new(operation), || match audit {
        Audit::List(list) => self::list(list, settings, out),
        Audit::Verify(verify) => self::verify(verify, settings, out),
        Audit::Key(key) => self::key(key, settings, out),
        Audit::Resume(resume) => self::resume(resume, settings, out),
    })
}

fn list(list: &AuditList, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let mut states: Vec<State> = list.outcome.iter().flat_map(|wanted| wanted.states()).copied().collect();
    if list.denied {
        states.push(State::Denied);
    }
    let filter = Filter {
        since: list.since,
        until: list.until,
        operations: list.operation.clone(),
        actor: list.actor.clone(),
        states,
        backup: list.backup.clone(),
        host: list.host.clone(),
    };
    let (mut events, mut findings, mut newer) = (Vec::new(), Vec::new(), 0);
    let log = if list.local { log(settings)? } else { readable(settings)? };
    let local = log.local()?;
    if list.local {
        events.extend(local);
    } else {
        let listing = log.list(&session::read_repository(settings)?)?;
        events.extend(listing.records.into_iter().map(|record| (Some(record.index), record.event)));
        // What waits on this host, behind all that is known.
        events.extend(local.into_iter().filter(|(index, _)| index.is_none()));
        (findings, newer) = (listing.findings, listing.newer);
    }
    let mut all = entries(events, Timestamp::now());
    all.retain(|entry| filter.wants(entry));
    let document = json!({"entries": all, "findings": findings, "newer": newer, "waiting": log.waiting()?});
    out.result(&document, || table(&all));
    if newer > 0 {
        output::warn(&format!("{newer} records of a later version of lifeboat are not shown"));
    }
    say_findings(&findings);
    if !findings.is_empty() {
        output::warn("records that do not count are not shown; lifeboat audit verify looks at all of them");
        return Ok(EXIT_FINDINGS);
    }
    Ok(0)
}

/// Operations for people.
fn table(all: &[Entry]) -> String {
    let row = |entry: &Entry| {
        let event = entry.event();
        let sudo = event.actor.sudo_user.as_ref().map_or(String::new(), |user| format!(" ({user})"));
        let ended = entry.end.as_ref().and_then(|end| end.outcome.as_ref());
        let reasons = event.decision.as_ref().filter(|_| entry.state == State::Denied).map(|decision| decision.reasons.join("; "));
        let mut detail = reasons.or_else(|| ended.and_then(|outcome| outcome.message.clone())).unwrap_or_default();
        if let Some(broken) = &event.break_glass {
            detail = format!("GLASS BROKEN: {}; {detail}", broken.reason).trim_end_matches("; ").to_owned();
        }
        let backup = [&entry.end, &entry.start].into_iter().flatten().find_map(|event| event.backup.as_ref());
        vec![
            entry.index.map_or("waiting".to_owned(), |index| index.to_string()),
            format!("{:.0}", event.time),
            event.operation.name() + if event.dry_run { " (dry run)" } else { "" },
            match ended {
                Some(outcome) if entry.state == State::Failed => format!("failed ({})", outcome.exit_code),
                _ => entry.state.word().to_owned(),
            },
            format!("{}{sudo}@{}", event.actor.user, event.host),
            backup.map_or("-".to_owned(), ToString::to_string),
            detail.replace(char::is_control, " "),
        ]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    output::table(&["RECORD", "TIME", "OPERATION", "OUTCOME", "ACTOR", "BACKUP", "DETAIL"], &rows)
}

/// A checkpoint from elsewhere.
fn pin(given: &str) -> Result<Pin, Failure> {
    if given.contains('\n') {
        return Ok(Pin { name: "the checkpoint that was given".into(), note: given.as_bytes().to_vec() });
    }
    let note = std::fs::read(given).map_err(|error| {
        Failure::usage(format!("read checkpoint {given}: {error}"))
            .hint("give a file, or the text itself: lifeboat audit verify --checkpoint \"$(cat FILE; echo)\"")
    })?;
    Ok(Pin { name: format!("checkpoint {given}"), note })
}

fn verify(verify: &AuditVerify, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let pins = verify.checkpoint.iter().map(|given| pin(given)).collect::<Result<Vec<_>, _>>()?;
    let log = readable(settings)?;
    let places: Vec<&RepositorySettings> = match &verify.repository_name {
        Some(name) => vec![session::named(settings, name)?],
        None => settings.repositories.used.iter().collect(),
    };
    let now = Timestamp::now();
    let mut all = Vec::new();
    for place in &places {
        let outcome = session::without_copies(place).and_then(|repository| Ok(audit::verify(&log, &repository, &pins, now)?));
        match outcome {
            Ok(report) => all.push((place.name.value.clone(), Some(report), Vec::new())),
            Err(failure) if places.len() == 1 => return Err(failure),
            // The others are looked at all the same; that this one was not is no pass.
            Err(failure) => {
                let kind = if failure.code == EXIT_NO_REPOSITORY { FindingKind::Missing } else { FindingKind::NotChecked };
                let object = format!("repository {}", place.name.value);
                all.push((
                    place.name.value.clone(),
                    None,
                    vec![Finding { kind, backup: None, object, file: None, problem: failure.message }],
                ));
            }
        }
    }
    let findings = |(_, report, unseen): &(String, Option<Report>, Vec<Finding>)| -> Vec<Finding> {
        report.iter().flat_map(|report| report.findings.clone()).chain(unseen.iter().cloned()).collect()
    };
    let every: Vec<Finding> = all.iter().flat_map(findings).collect();
    let total = verdict(&every);
    let documents: Vec<_> = all
        .iter()
        .map(|place| {
            let own = findings(place);
            json!({"name": place.0, "verdict": verdict(&own), "report": place.1, "findings": own})
        })
        .collect();
    out.result(&json!({"verdict": total, "repositories": documents}), || {
        let several = all.len() > 1;
        all.iter()
            .map(|(name, report, _)| report.as_ref().map_or(String::new(), |report| summary(several.then_some(name), report)))
            .collect()
    });
    for place in &all {
        let own = findings(place);
        if all.len() > 1 && !own.is_empty() {
            output::say(&format!("repository {}:", place.0));
        }
        say_findings(&own);
    }
    if all.iter().skip(1).any(|place| findings(place).iter().any(|finding| finding.kind == FindingKind::Missing)) {
        output::say("lifeboat replicate brings replicas what they missed");
    }
    Ok(code(total))
}

fn summary(name: Option<&String>, report: &Report) -> String {
    let mut text = name.map_or(String::new(), |name| format!("repository {name}\n"));
    let word = match verdict(&report.findings) {
        lifeboat_core::verify::Verdict::Verified => "verified",
        lifeboat_core::verify::Verdict::Incomplete => "INCOMPLETE",
        lifeboat_core::verify::Verdict::Failed => "FAILED",
    };
    text.push_str(&format!("audit log {word}: {} records, compared with {} checkpoints\n", report.records, report.anchors));
    let mut note = |count: u64, words: &str| {
        if count > 0 {
            text.push_str(&format!("  {count} {words}\n"));
        }
    };
    note(report.unsealed, "records behind the newest checkpoint: the next record brings one");
    note(report.waiting, "records of this host are not in the repository yet");
    note(report.unknown_here, "records are signed by this host's key and not in its journal: is the key used elsewhere as well?");
    note(report.newer, "records are of a later version of lifeboat");
    for entry in &report.unfinished {
        let event = entry.event();
        let place = entry.index.map_or(String::new(), |index| format!(" (record {index})"));
        text.push_str(&format!(
            "  unfinished: {} by {}@{}, begun {:.0}{place}\n",
            event.operation.name(),
            event.actor.user,
            event.host,
            event.time
        ));
    }
    if let Some(checkpoint) = &report.checkpoint {
        text.push_str("  the newest checkpoint, to be kept somewhere else and given to lifeboat audit verify --checkpoint:\n");
        text.push_str(checkpoint);
    }
    text
}

fn resume(resume: &AuditResume, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let log = readable(settings)?;
    let resumed = log.resume(&session::open_repository(settings)?, &resume.reason, Timestamp::now())?;
    out.result(&resumed, || {
        let mut text = format!("the log goes on behind its {} records\n", resumed.size);
        text.push_str(&format!(
            "  {} records of this host were lost, {} wait besides: they follow with the next record\n",
            resumed.again, resumed.waiting
        ));
        if let Some(forgotten) = &resumed.forgotten {
            text.push_str("  this host had seen, and has forgotten:\n");
            text.push_str(forgotten);
        }
        text
    });
    Ok(0)
}

fn key(command: &AuditKeyCommand, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let (key, path) = match &command.out {
        Some(path) => (make_key(path)?, path.clone()),
        None => {
            let setting = settings.audit.key_file.as_ref().ok_or_else(|| {
                Failure::new(EXIT_KEY, "print the audit key: none is configured")
                    .hint("lifeboat audit key --out FILE makes one; name it in audit.key_file")
            })?;
            (read_key(&setting.value)?.verifier().clone(), setting.value.clone())
        }
    };
    out.result(&json!({"key": key.to_string(), "file": path}), || format!("{key}\n"));
    if command.out.is_some() {
        output::say(&format!(
            "made an audit key in {}; name it in audit.key_file, and what is printed in audit.trust of other hosts",
            path.display()
        ));
    }
    Ok(0)
}

/// Makes an audit key for this host in a file, and returns its public half.
pub(crate) fn make_key(path: &Path) -> Result<VerifierKey, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(EXIT_FAILED, format!("write {}: {error}", path.display()))
            .hint("choose another place: lifeboat audit key --out FILE; nothing is ever overwritten")
    };
    let key = AuditKey::generate(&session::host());
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(key.to_text().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(key.verifier().clone())
}
