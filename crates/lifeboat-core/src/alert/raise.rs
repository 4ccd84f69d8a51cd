//! When an alert holds.

use std::time::Duration;

use jiff::Timestamp;

use super::{Alert, Severity, find};
use crate::drill::Verdict;
use crate::status::answer::{Answer, covers, in_future, newest_whole, seconds_between};
use crate::status::{BackupState, DiskSeen, KeySeen, Observed, Outcome, RunSeen, SignatureState, TaskSeen};

/// What the user allows before anybody is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// The newest backup may be so old (`alerts.backup_age`).
    pub backup_age: Duration,
    /// A key that ends within this is told of (`alerts.key_days`).
    pub key_ahead: Duration,
    /// So many percent of a file system must be free (`alerts.disk_free_percent`).
    pub disk_free_percent: u8,
}

impl Terms {
    /// The defaults, for this objective: a backup a day, and a quarter of that for it to be taken.
    pub fn for_rpo(rpo: Duration) -> Self {
        Self { backup_age: rpo + rpo / 4, key_ahead: Duration::from_secs(30 * 86_400), disk_free_percent: 10 }
    }
}

/// A span for people: the two greatest of days, hours, minutes and seconds.
fn span(seconds: u64) -> String {
    crate::drill::span(seconds as f64)
}

struct Raised(Vec<Alert>);

impl Raised {
    fn say(&mut self, name: &'static str, severity: Severity, subject: &str, summary: impl Into<String>, fix: impl Into<String>) {
        debug_assert!(find(name).is_some(), "{name} is not in the catalogue");
        let alert = Alert { name: name.into(), subject: subject.to_owned(), severity, summary: summary.into(), fix: fix.into() };
        // Two findings may come to the same alert: the worse one is told.
        match self.0.iter_mut().find(|one| one.name == alert.name && one.subject == alert.subject) {
            Some(there) if there.severity <= alert.severity => {}
            Some(there) => *there = alert,
            None => self.0.push(alert),
        }
    }
}

use Severity::{Critical, Warning};

/// What holds, the worst first, then as in the catalogue.
pub fn raise(observed: &Observed, answer: &Answer, terms: &Terms) -> Vec<Alert> {
    let mut out = Raised(Vec::new());
    backups(observed, answer, terms, &mut out);
    wal(observed, &mut out);
    repositories(observed, &mut out);
    drills(observed, answer, &mut out);
    runs(observed, &mut out);
    tasks(observed, &mut out);
    keys(&observed.keys, terms, observed.at, &mut out);
    disks(&observed.disks, terms, &mut out);
    for unseen in &observed.unseen {
        // A repository or a server out of reach has an alert of its own.
        if !unseen.what.starts_with("repository") && unseen.what != "server" {
            out.say(
                "status-unknown",
                // Of a system whose backups nobody can see, nobody knows whether it has any.
                if unseen.what == "backups" { Critical } else { Warning },
                &unseen.what,
                format!("{} could not be looked at: {}", unseen.what, unseen.why),
                "lifeboat status",
            );
        }
    }
    let place = |alert: &Alert| super::CATALOGUE.iter().position(|kind| kind.name == alert.name);
    let mut alerts = out.0;
    alerts.sort_by_key(|alert| (alert.severity, place(alert)));
    alerts
}

/// The alerts about keys and disks alone.
pub fn running_out(keys_seen: &[KeySeen], disks_seen: &[DiskSeen], terms: &Terms, now: Timestamp) -> Vec<Alert> {
    let mut out = Raised(Vec::new());
    keys(keys_seen, terms, now, &mut out);
    disks(disks_seen, terms, &mut out);
    out.0
}

/// The alert of an agent that cannot look: what it last saw may be long gone.
pub fn stale(last: Option<Timestamp>, why: Option<&str>, now: Timestamp) -> Alert {
    let since = last.map_or("has never seen how the system stands".to_owned(), |last| {
        format!("last saw how the system stands {} ago", span(seconds_between(last, now)))
    });
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    Alert {
        name: "status-stale".into(),
        subject: String::new(),
        severity: Critical,
        summary: format!("the agent {since}{why}"),
        fix: "lifeboat status, as the agent's user on its host; its log says more".into(),
    }
}

/// The alert of a sink that was not reached for so long.
pub fn unreached(sink: &str, seconds: u64, why: &str) -> Alert {
    Alert {
        name: "sink-failing".into(),
        subject: sink.to_owned(),
        severity: Critical,
        summary: format!("{sink} could not be told of alerts for {}: {why}", span(seconds)),
        fix: format!("lifeboat alert test --sink {sink}"),
    }
}

/// Whether an alert is about the host that it was seen on, and not about the system: an agent that waits for another one tells of it all the same.
pub fn is_of_host(alert: &Alert) -> bool {
    const OF_HOST: [&str; 7] =
        ["backup-failed", "verify-findings", "task-failed", "policy-denied", "key-ending", "disk-space", "sink-failing"];
    OF_HOST.contains(&alert.name.as_ref())
}

/// Whether each host says it of itself, so that it is over on one of them and still holds on another.
pub fn is_of_each_host(alert: &Alert) -> bool {
    const OF_EACH: [&str; 7] =
        ["repository-unreachable", "server-unreachable", "status-stale", "status-unknown", "task-late", "clock-skew", "receiver-down"];
    is_of_host(alert) || OF_EACH.contains(&alert.name.as_ref())
}

fn backups(observed: &Observed, answer: &Answer, terms: &Terms, out: &mut Raised) {
    let Some(backups) = &observed.backups else { return };
    match newest_whole(observed) {
        None => {
            let why = answer.reasons.first().map_or("there is no backup", String::as_str);
            out.say("no-backup", Critical, "", why, "lifeboat backup");
        }
        Some(newest) => {
            if let Some(moment) = covers(newest) {
                let age = seconds_between(moment, observed.at);
                let allowed = span(terms.backup_age.as_secs());
                if in_future(moment, observed.at) {
                    let ahead = span(seconds_between(observed.at, moment));
                    let summary = format!(
                        "the newest backup that counts, {}, is dated {ahead} in the future: a clock is or was wrong, and nobody knows how old it is; \
                         {allowed} are allowed",
                        newest.id
                    );
                    out.say("backup-overdue", Critical, "", summary, "timedatectl; then lifeboat backup takes one whose age is known");
                } else if age > terms.backup_age.as_secs() {
                    let summary = format!("the newest backup that counts, {}, is {} old; {allowed} are allowed", newest.id, span(age));
                    out.say("backup-overdue", Critical, "", summary, "lifeboat backup");
                }
            }
            if newest.state == BackupState::Degraded {
                let summary = format!("pages were damaged already where {} took them from", newest.id);
                out.say("backup-degraded", Critical, "", summary, format!("lifeboat show {} lists them", newest.id));
            }
            if newest.missing_artifacts > 0 {
                let summary = format!("{} artifacts that the database of {} refers to are not in it", newest.missing_artifacts, newest.id);
                out.say("artifacts-missing", Critical, "", summary, format!("lifeboat show {} --json names them", newest.id));
            }
        }
    }
    for backup in backups.iter().filter(|backup| backup.whole_until.is_none()) {
        let problem = backup.problem.as_deref().unwrap_or("no more is known");
        let fix = format!("lifeboat verify {}", backup.id);
        match (backup.state, backup.signature) {
            (_, SignatureState::NotValid) => {
                out.say("signature-invalid", Critical, &backup.id, format!("the signature of {} does not hold: {problem}", backup.id), fix);
            }
            (BackupState::Unreadable, _) => {
                out.say("backup-unreadable", Critical, &backup.id, format!("{} cannot be read: {problem}", backup.id), fix);
            }
            _ => {}
        }
    }
    if let (Some(false), Some(seconds)) = (answer.rpo_met, answer.rpo_seconds) {
        let objective = span(observed.objectives.rpo_seconds);
        let summary = format!("{} of commits would be lost now; the objective is {objective}", span(seconds));
        out.say("rpo-missed", Critical, "", summary, "lifeboat status says what is behind; lifeboat backup takes a backup now");
    }
}

/// The alert that a finding about WAL comes to (`core/src/wal/status.rs`), and what it is of.
fn of_finding(code: &str) -> (&'static str, &'static str) {
    match code {
        "rpo" => ("rpo-missed", ""),
        "gap" => ("wal-gap", ""),
        "lag" | "archive-timeout" => ("wal-lag", ""),
        "archive-backlog" => ("wal-ready", ""),
        "receiver-down" => ("receiver-down", ""),
        "degraded" | "not-synchronous" | "no-synchronous-standby" => ("sync-degraded", ""),
        "slot-lost" | "slot-at-risk" | "slot-unbounded" | "slot-missing" => ("slot-at-risk", ""),
        "clock-skew" => ("clock-skew", ""),
        "server-unreachable" => ("server-unreachable", ""),
        // wal-level, archive-off, archive-command, archive-failing, archive-empty, archive-ahead, history-missing,
        // no-backup-on-timeline, and what is new.
        _ => ("wal-stopped", ""),
    }
}

fn wal(observed: &Observed, out: &mut Raised) {
    for finding in observed.wal.iter().flat_map(|wal| &wal.findings) {
        let (name, subject) = of_finding(&finding.code);
        out.say(name, finding.severity, subject, finding.message.clone(), finding.hint.clone());
    }
    let Some(server) = &observed.server else { return };
    if let Some(trouble) = &server.trouble {
        out.say("server-unreachable", Critical, "", format!("{} does not answer: {trouble}", server.endpoint), "lifeboat doctor");
    }
}

/// Backups in words, the newest first; `None`: there are none.
fn named(backups: &[String]) -> Option<String> {
    match backups {
        [] => None,
        [backup] => Some(format!("backup {backup}")),
        [newest, ..] => Some(format!("{} backups, {newest} among them", backups.len())),
    }
}

fn repositories(observed: &Observed, out: &mut Raised) {
    for one in &observed.repositories {
        let severity = if matches!(one.part.as_str(), "primary" | "required") { Critical } else { Warning };
        if let Some(trouble) = &one.trouble {
            let summary = format!("repository {} ({}) cannot be read: {trouble}", one.name, one.url);
            out.say("repository-unreachable", severity, &one.name, summary, "lifeboat doctor");
            continue;
        }
        let mut behind = Vec::new();
        if one.missed_everything {
            behind.push("this host lost count of what it missed".to_owned());
        } else if one.missed > 0 {
            behind.push(format!("it missed {} objects", one.missed));
        }
        behind.extend(named(&one.lacks).map(|what| format!("it lacks {what}")));
        if !behind.is_empty() {
            let summary = format!("repository {} is behind the primary: {}", one.name, behind.join(", "));
            out.say("replica-behind", Warning, &one.name, summary, format!("lifeboat replicate --to {}", one.name));
        }
        if let Some(what) = named(&one.primary_lacks) {
            let primary = observed.repositories.first().map_or("primary", |primary| primary.name.as_str());
            let summary = format!("repository {primary} has lost {what}: {} still has it", one.name);
            out.say("backup-unreadable", Critical, primary, summary, format!("lifeboat replicate --from {} --to {primary}", one.name));
        }
    }
}

fn drills(observed: &Observed, answer: &Answer, out: &mut Raised) {
    let Some(drills) = &observed.drills else { return };
    if let Some(last) = drills.entries.first() {
        let fix = format!("lifeboat drill show {}", last.id);
        match last.verdict {
            Some(Verdict::Failed) => out.say("drill-failed", Critical, "", format!("the last drill, {}, failed", last.id), fix),
            Some(Verdict::ObjectiveMissed) => {
                out.say("drill-objective", Critical, "", format!("the last drill, {}, missed an objective", last.id), fix);
            }
            Some(Verdict::Passed | Verdict::PassedWithGaps) | None => {}
        }
    }
    // By its own word it may have been in time: an objective that is stricter since then counts as well.
    if answer.rto_met == Some(false) && drills.entries.first().is_some_and(|last| last.verdict != Some(Verdict::ObjectiveMissed)) {
        let took = answer.proof.as_ref().and_then(|proof| proof.rto_seconds).unwrap_or_default();
        let objective = span(observed.objectives.rto_seconds);
        let summary = format!("the last drill that succeeded took {took:.0} s until everything was back; the objective is {objective}");
        out.say("drill-objective", Critical, "", summary, "lifeboat drill list; docs/drill.md");
    }
    let allowed = span(observed.objectives.drill_seconds);
    match (&answer.proof, answer.proof_fresh) {
        (None, _) => out.say("drill-overdue", Warning, "", "no drill has ever succeeded", "lifeboat drill run"),
        (Some(proof), None) => {
            let summary = format!("the last drill that succeeded, {}, is dated in the future: nobody knows how old it is", proof.drill);
            out.say("drill-overdue", Warning, "", summary, "timedatectl; then lifeboat drill run");
        }
        (Some(proof), Some(false)) => {
            let age = span(seconds_between(proof.at, observed.at));
            let summary = format!("the last drill that succeeded, {}, is {age} old; {allowed} are allowed", proof.drill);
            out.say("drill-overdue", Warning, "", summary, "lifeboat drill run");
        }
        _ => {}
    }
    if let Some(first) = drills.findings.first() {
        let more = drills.findings.len() - 1;
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        out.say("drill-evidence", Critical, "", format!("{first}{more}"), "lifeboat drill list");
    }
}

/// Why a run did not succeed, in a line.
fn story(run: &RunSeen) -> String {
    let what = &run.operation;
    let at = format!("{:.0}", run.started);
    let often = if run.failures > 1 { format!(", {} times in a row", run.failures) } else { String::new() };
    match (run.outcome, &run.message) {
        (Outcome::Interrupted, _) => format!("{what} of {at} was interrupted: its process is gone and left no result{often}"),
        (Outcome::Running, message) => {
            let message = message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
            format!("the last {what} failed{often}{message}; another one runs since {at}")
        }
        (_, Some(message)) => format!("{what} of {at} failed{often}: {message}"),
        (_, None) => {
            let code = run.exit_code.map_or(String::new(), |code| format!(" with exit code {code}"));
            format!("{what} of {at} ended{code}{often}")
        }
    }
}

/// What a run that is done has to be read for.
fn read_this(run: &RunSeen) -> String {
    let what = run.message.as_deref().unwrap_or("its output says of what");
    match run.outcome {
        Outcome::Running => {
            format!("the last {} is done, but something is to be read: {what}; another one runs since {:.0}", run.operation, run.started)
        }
        _ => format!("{} of {:.0} is done, but something is to be read: {what}", run.operation, run.started),
    }
}

/// The exit code of a denial (`docs/reference/exit-codes.md`).
const DENIED: u8 = 20;
/// The exit code of a missed objective.
const OBJECTIVE_MISSED: u8 = 23;

fn runs(observed: &Observed, out: &mut Raised) {
    for run in &observed.runs {
        let fix = |command: &str| run.hint.clone().unwrap_or_else(|| command.to_owned());
        // While another try runs, what the last one came to still holds.
        let bad = matches!(run.outcome, Outcome::Failed | Outcome::Interrupted) || run.outcome == Outcome::Running && run.failures > 0;
        if bad && run.exit_code == Some(DENIED) {
            out.say("policy-denied", Warning, &run.operation, story(run), fix("lifeboat policy eval"));
            // Whoever denied it: there is no backup of this day.
            if run.operation != "backup" {
                continue;
            }
        }
        match run.operation.as_str() {
            "backup" if bad => out.say("backup-failed", Critical, "", story(run), fix("lifeboat backup")),
            "verify" if bad || run.has_findings() => {
                let severity = if run.found_damage() || run.has_findings() { Critical } else { Warning };
                let summary = if run.has_findings() { read_this(run) } else { story(run) };
                out.say("verify-findings", severity, "", summary, fix("lifeboat verify --all"));
            }
            // A drill that ran to its end is told of by its report.
            "drill" if bad && run.exit_code == Some(OBJECTIVE_MISSED) => {
                out.say("drill-objective", Critical, "", story(run), fix("lifeboat drill list"));
            }
            "drill" if bad => out.say("drill-failed", Critical, "", story(run), fix("lifeboat drill run")),
            // Degraded pages and replicas that missed something are told of by themselves.
            "backup" if run.has_findings() => {
                out.say("task-failed", Warning, "backup", read_this(run), fix("lifeboat show latest"));
            }
            "backup" | "verify" | "drill" => {}
            other if !bad && run.has_findings() => {
                out.say("task-failed", Warning, other, read_this(run), fix(&format!("lifeboat {other}")));
            }
            other if bad => out.say("task-failed", Warning, other, story(run), fix(&format!("lifeboat {other}"))),
            _ => {}
        }
    }
}

/// A task that should have begun so long ago is late, in seconds.
const LATE_SECONDS: u64 = 900;

fn tasks(observed: &Observed, out: &mut Raised) {
    for task in &observed.tasks {
        undone(task, observed, out);
        // It should have been ended, and whoever ends it may hang itself.
        if let Some(since) = task.running_since {
            let longer = seconds_between(since, observed.at).saturating_sub(task.deadline_seconds);
            if longer > LATE_SECONDS {
                let summary = format!("{} runs since {since:.0}, and should have been ended {} ago", task.name, span(longer));
                out.say("task-late", Warning, &task.name, summary, "systemctl restart lifeboat-agent, and see what of it still runs");
            }
        }
        let Some(next) = task.next.filter(|_| task.running_since.is_none()) else { continue };
        let late = seconds_between(next, observed.at);
        if late > LATE_SECONDS {
            let summary = format!("{} should have begun at {next:.0}, {} ago: does the agent run?", task.name, span(late));
            out.say("task-late", Warning, &task.name, summary, "systemctl status lifeboat-agent");
        }
    }
}

/// A task that was given up. What left a record of its failure is told by that; one that found the lease taken, or did not get as far, left none.
fn undone(task: &TaskSeen, observed: &Observed, out: &mut Raised) {
    let Some(undone) = &task.undone else { return };
    let told = |run: &RunSeen| run.failures > 0 || run.last_success.is_some_and(|success| success >= undone.at);
    if observed.runs.iter().any(|run| run.operation == task.name && told(run)) {
        return;
    }
    let summary = format!("{} was not done when it was due: its last try, at {:.0}, {}", task.name, undone.at, undone.why);
    let fix = "lifeboat agent --dry-run shows its command; journalctl -u lifeboat-agent says more";
    match task.name.as_str() {
        "backup" => out.say("backup-failed", Critical, "", summary, fix),
        name => out.say("task-failed", Warning, name, summary, fix),
    }
}

fn keys(keys: &[KeySeen], terms: &Terms, now: Timestamp, out: &mut Raised) {
    let name = |key: &KeySeen| format!("{} {}", key.what, key.name);
    for key in keys {
        let Some(not_after) = key.not_after else { continue };
        // A key that was retired on purpose ends without anybody's surprise, unless it still signs here.
        let matters = key.signs_here || key.state == "trusted";
        let left = not_after.duration_since(now);
        if matters && left <= jiff::SignedDuration::try_from(terms.key_ahead).unwrap_or(jiff::SignedDuration::MAX) {
            let (severity, summary) = if left.is_negative() {
                (Critical, format!("{} has ended on {not_after:.0}", name(key)))
            } else {
                let severity = if left.as_hours() < 7 * 24 { Critical } else { Warning };
                (severity, format!("{} ends on {not_after:.0}, in {}", name(key), span(left.as_secs().unsigned_abs())))
            };
            out.say("key-ending", severity, &key.name, summary, "lifeboat key rotate; lifeboat key list shows all");
        }
    }
}

/// So much is room enough, however little it is of a large disk.
const ENOUGH_BYTES: u64 = 16 << 30;

fn disks(disks: &[DiskSeen], terms: &Terms, out: &mut Raised) {
    for disk in disks {
        let percent = disk.free_bytes.saturating_mul(100).checked_div(disk.total_bytes).unwrap_or(0);
        if percent < u64::from(terms.disk_free_percent) && disk.free_bytes < ENOUGH_BYTES {
            let severity = if percent < u64::from(terms.disk_free_percent) / 2 { Critical } else { Warning };
            let summary = format!(
                "{} ({}) has {percent} % free, {} MiB; {} % must be",
                disk.what,
                disk.path,
                disk.free_bytes >> 20,
                terms.disk_free_percent
            );
            out.say("disk-space", severity, &disk.path, summary, format!("df {}", disk.path));
        }
    }
}

#[cfg(test)]
mod tests;
