//! What `lifeboat status` prints for people: the answer in five lines, what somebody has to do, then everything that was seen.

use jiff::Timestamp;
use lifeboat_core::drill::span;
use lifeboat_core::status::{BackupSeen, BackupState, DrillSeen, Observed, SignatureState, Status, WalSeen, WindowSeen};

use crate::output::{bytes, plain, table};

/// So many rows of a list are printed; `--json` has all.
const MAX_ROWS: usize = 40;
/// So many of the newest backups and drills: `lifeboat list` and `lifeboat drill list` have all.
const MAX_NEWEST: usize = 5;

/// The whole.
pub(super) fn text(status: &Status) -> String {
    let mut text = answer(status);
    text.push_str(&reasons(status));
    text.push_str(&alerts(status));
    let observed = &status.observed;
    for (title, section) in [
        ("not looked at", unseen(observed)),
        ("recovery window", windows(observed)),
        ("WAL", wal(observed)),
        ("repositories", repositories(observed)),
        ("backups", backups(observed)),
        ("artifacts", artifacts(observed)),
        ("drills", drills(observed)),
        ("tasks", tasks(observed)),
        ("last runs", runs(observed)),
        ("keys", keys(observed)),
        ("disks", disks(observed)),
    ] {
        if !section.is_empty() {
            text.push_str(&format!("\n{title}\n{section}"));
        }
    }
    text
}

fn time(at: Timestamp) -> String {
    format!("{at:.0}")
}

fn lasting(seconds: u64) -> String {
    const DAY: u64 = 86_400;
    if seconds > DAY && seconds.is_multiple_of(DAY) { format!("{} days", seconds / DAY) } else { span(seconds as f64) }
}

/// How long ago something was when everything was seen, or how far ahead it is.
fn away(then: Timestamp, seen: Timestamp) -> String {
    let seconds = seen.duration_since(then).as_secs_f64();
    if seconds < 0.0 { format!("in {}", span(-seconds)) } else { format!("{} ago", span(seconds)) }
}

/// An objective, and whether it is met.
fn objective(words: &str, met: Option<bool>) -> String {
    let how = match met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "not known",
    };
    format!("({words}: {how})")
}

/// The four questions, and where and when they were asked.
fn answer(status: &Status) -> String {
    let (answer, observed) = (&status.answer, &status.observed);
    let objectives = &observed.objectives;
    let first = match answer.reasons.as_slice() {
        [] => String::new(),
        [reason] => format!(": {reason}"),
        [reason, more] => format!(": {reason}, and {more}"),
        [reason, more @ ..] => format!(": {reason}, and {} more reasons", more.len()),
    };
    let lost =
        answer.rpo_seconds.map_or("nobody knows".to_owned(), |seconds| if seconds == 0 { "nothing".to_owned() } else { lasting(seconds) });
    let back = answer.proof.as_ref().and_then(|proof| proof.rto_seconds).map_or("nobody knows: no drill has measured it".to_owned(), span);
    let proven = match &answer.proof {
        None => "never: no drill has succeeded".to_owned(),
        Some(proof) => {
            let failed = if proof.failed_since > 0 { format!(", {} later DID NOT SUCCEED", proof.failed_since) } else { String::new() };
            let fresh = match answer.proof_fresh {
                Some(true) => "in time",
                Some(false) => "TOO OLD",
                None => "DATED IN THE FUTURE",
            };
            format!("{}, {} (once in {}: {fresh}{failed})", away(proof.at, observed.at), proof.drill, lasting(objectives.drill_seconds))
        }
    };
    let lines = [
        ("recoverable", format!("{}{first}", answer.verdict.words().to_uppercase())),
        ("to when", to_when(status)),
        ("lost now", format!("{lost} {}", objective(&format!("RPO {}", lasting(objectives.rpo_seconds)), answer.rpo_met))),
        ("back after", format!("{back} {}", objective(&format!("RTO {}", lasting(objectives.rto_seconds)), answer.rto_met))),
        ("proven", proven),
        (
            "seen",
            format!(
                "{} {}, {}, from {} in {}",
                observed.name,
                time(observed.at),
                observed.environment,
                observed.host,
                span(observed.took_seconds)
            ),
        ),
    ];
    lines.iter().map(|(name, value)| format!("{name:<13}{}\n", plain(value))).collect()
}

fn to_when(status: &Status) -> String {
    let (answer, observed) = (&status.answer, &status.observed);
    let windows: Vec<&WindowSeen> = observed.wal.iter().flat_map(|wal| &wal.windows).collect();
    let but = match windows.iter().map(|window| window.except.len()).sum::<usize>() {
        0 => String::new(),
        1 => ", but for 1 stretch".to_owned(),
        many => format!(", but for {many} stretches"),
    };
    match (answer.from, answer.to) {
        (Some(from), Some(to)) if windows.is_empty() => format!("moments of backups only, from {} to {}", time(from), time(to)),
        (Some(from), Some(to)) => format!("any moment from {} to {} ({}){but}", time(from), time(to), away(to, observed.at)),
        _ => "no moment".to_owned(),
    }
}

fn reasons(status: &Status) -> String {
    match status.answer.reasons.as_slice() {
        [] | [_] => String::new(),
        reasons => format!("\nagainst it\n{}", lines(reasons.iter().map(String::as_str))),
    }
}

/// Lines with a dash, as many as there may be.
fn lines<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = all.len().saturating_sub(MAX_ROWS);
    let mut text: String = all.take(MAX_ROWS).map(|line| format!("- {}\n", plain(line))).collect();
    text.push_str(&and_more(more));
    text
}

fn and_more(more: usize) -> String {
    if more > 0 { format!("and {more} more: --json has all\n") } else { String::new() }
}

fn alerts(status: &Status) -> String {
    let mut text = "\nalerts\n".to_owned();
    if status.alerts.is_empty() {
        text.push_str("none\n");
    }
    for alert in status.alerts.iter().take(MAX_ROWS) {
        text.push_str(&format!("{:<10}{}\n", alert.severity.word().to_uppercase(), plain(&alert.summary)));
        text.push_str(&format!("          do: {}\n          {}\n", plain(&alert.fix), plain(&alert.runbook())));
    }
    text.push_str(&and_more(status.alerts.len().saturating_sub(MAX_ROWS)));
    text
}

/// A table of the first rows of a list. Nothing, where there are none.
fn rows<T>(header: &[&str], all: &[T], cells: impl Fn(&T) -> Vec<String>) -> String {
    if all.is_empty() {
        return String::new();
    }
    let shown: Vec<Vec<String>> = all.iter().take(MAX_ROWS).map(|one| cells(one).iter().map(|cell| plain(cell)).collect()).collect();
    table(header, &shown) + &and_more(all.len().saturating_sub(MAX_ROWS))
}

fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or("-".to_owned(), show)
}

fn unseen(observed: &Observed) -> String {
    rows(&["WHAT", "WHY"], &observed.unseen, |one| vec![one.what.clone(), one.why.clone()])
}

fn windows(observed: &Observed) -> String {
    let Some(wal) = &observed.wal else { return String::new() };
    let mut text = String::new();
    for window in wal.windows.iter().rev().take(MAX_ROWS) {
        let moment = |moment: &lifeboat_core::status::MomentSeen| {
            moment.time.map_or_else(|| format!("LSN {}", moment.lsn), |at| format!("{} (LSN {})", time(at), moment.lsn))
        };
        text.push_str(&plain(&format!("any moment from {} to {}", moment(&window.from), moment(&window.to))));
        text.push_str(&format!(", on timeline {}, from {} backups\n", window.timeline, window.backups));
        // The newest first, and those that somebody has to know of before the time between two backups.
        let mut except: Vec<_> = window.except.iter().rev().collect();
        except.sort_by_key(|one| one.why.is_none());
        for one in except.iter().take(MAX_NEWEST) {
            let why = one.why.as_deref().unwrap_or("no WAL between two backups");
            text.push_str(&format!("  except from {}\n", plain(&format!("{} to {}: {why}", moment(&one.from), moment(&one.to)))));
        }
        text.push_str(&and_more(window.except.len().saturating_sub(MAX_NEWEST)));
        if let Some(hole) = &window.stopped_by {
            text.push_str(&format!("  not further: {}\n", plain(hole)));
        }
    }
    text.push_str(&and_more(wal.windows.len().saturating_sub(MAX_ROWS)));
    text
}

fn wal(observed: &Observed) -> String {
    let mut text = String::new();
    if let Some(server) = &observed.server {
        let version = server.version_num.map_or(String::new(), |version| format!(", PostgreSQL {}.{}", version / 10_000, version % 10_000));
        let trouble = server.trouble.as_ref().map_or(String::new(), |trouble| format!(", DOES NOT ANSWER: {trouble}"));
        let standby = if server.in_recovery { ", a standby" } else { "" };
        text.push_str(&plain(&format!("server {}{version}{standby}{trouble}", server.endpoint)));
        text.push('\n');
    }
    let Some(wal) = &observed.wal else { return text };
    let behind = wal.lag_bytes.map_or("how far it is behind is not known".to_owned(), |lag| match lag {
        0 => "nothing is missing in the repository".to_owned(),
        lag => format!("{} not in the repository yet", bytes(lag)),
    });
    let commit = wal.last_commit.map_or(String::new(), |at| format!(", last commit there {}", away(at, observed.at)));
    let ready = wal.ready.map_or(String::new(), |ready| format!(", {ready} files wait for the archiver"));
    text.push_str(&plain(&format!("mode {}: {behind}{commit}{ready}", wal.mode)));
    text.push('\n');
    if let Some(receiver) = &wal.receiver {
        let degraded = if receiver.degraded { ", COMMITS GO ON WITHOUT IT" } else { "" };
        let waits = format!("{} wait to be stored", bytes(receiver.waiting_bytes));
        let line = format!(
            "receiver {}, {} ago, stored up to {}, {waits}{degraded}",
            receiver.state,
            lasting(receiver.age_seconds),
            receiver.stored
        );
        text.push_str(&plain(&line));
        text.push('\n');
    }
    text + &slots(wal) + &timelines(wal)
}

fn slots(wal: &WalSeen) -> String {
    rows(&["SLOT", "CONNECTED", "STATE", "HELD", "STILL SAFE"], &wal.slots, |slot| {
        let yes = if slot.active { "yes" } else { "no" };
        vec![
            slot.name.clone(),
            yes.into(),
            or_dash(slot.wal_status.clone(), |state| state),
            bytes(slot.held_bytes),
            or_dash(slot.safe_bytes, bytes),
        ]
    })
}

fn timelines(wal: &WalSeen) -> String {
    rows(&["TIMELINE", "FROM", "TO", "SEGMENTS", "STORED", "HOLES"], &wal.timelines, |one| {
        let lsn = |lsn: &Option<String>| or_dash(lsn.as_deref(), str::to_owned);
        let holes = match one.gaps.as_slice() {
            [] => "none".to_owned(),
            [hole] => hole.clone(),
            [.., newest] => format!("{}, the last {newest}", one.gaps.len()),
        };
        vec![one.timeline.to_string(), lsn(&one.from), lsn(&one.to), one.segments.to_string(), bytes(one.stored_bytes), holes]
    })
}

fn repositories(observed: &Observed) -> String {
    rows(&["NAME", "PART", "STATE", "NEWEST BACKUP", "WHERE"], &observed.repositories, |one| {
        let state = match (&one.trouble, one.missed_everything, one.missed, one.lacks.len()) {
            (Some(trouble), ..) => format!("CANNOT BE READ: {trouble}"),
            (None, true, ..) => "behind: this host lost count of what it missed".to_owned(),
            (None, false, 0, 0) => "reads, and lacks nothing".to_owned(),
            (None, false, missed, lacks) => format!("behind: missed {missed} objects, lacks {lacks} backups"),
        };
        let state = match one.primary_lacks.len() {
            0 => state,
            count => format!("{state}; has {count} backups that the primary LOST"),
        };
        vec![one.name.clone(), one.part.clone(), state, or_dash(one.newest_backup.clone(), |id| id), one.url.clone()]
    })
}

fn state(backup: &BackupSeen) -> &'static str {
    match (backup.state, backup.signature) {
        (BackupState::Unreadable, _) => "UNREADABLE",
        (_, SignatureState::NotValid) => "SIGNATURE NOT VALID",
        (_, SignatureState::NotChecked) => "signature not checked",
        (BackupState::Degraded, _) => "DEGRADED",
        (BackupState::Healthy, SignatureState::Valid) => "usable",
    }
}

fn backups(observed: &Observed) -> String {
    let Some(all) = &observed.backups else { return "nobody could look\n".to_owned() };
    if all.is_empty() {
        return "there is none\n".to_owned();
    }
    let newest = &all[..all.len().min(MAX_NEWEST)];
    let usable = all.iter().filter(|backup| backup.counts()).count();
    let table = rows(&["BACKUP", "STATE", "OF", "SIZE", "STORED", "KEPT"], newest, |backup| {
        let kept = match (backup.pins.as_slice(), backup.whole_until) {
            ([], None) => "by the rules".to_owned(),
            ([], Some(until)) => format!("expired, whole until {}", time(until)),
            ([pin, ..], _) => format!("pinned ({pin})"),
        };
        let of = or_dash(backup.consistent_at.or(backup.started), time);
        vec![backup.id.clone(), state(backup).to_owned(), of, bytes(backup.plain_bytes), bytes(backup.stored_bytes), kept]
    });
    let older = if all.len() > newest.len() { ": lifeboat list has all" } else { "" };
    format!("{table}{usable} of {} usable{older}\n", all.len())
}

fn artifacts(observed: &Observed) -> String {
    observed.artifacts.as_ref().map_or(String::new(), |set| {
        let changed = set.changed.map_or(String::new(), |at| format!(", changed {}", away(at, observed.at)));
        format!("{} in the set, {}{changed}\n", set.count, bytes(set.bytes))
    })
}

fn drills(observed: &Observed) -> String {
    let Some(drills) = &observed.drills else { return "nobody could look\n".to_owned() };
    if drills.entries.is_empty() {
        return "there was none: lifeboat drill run\n".to_owned();
    }
    let newest = &drills.entries[..drills.entries.len().min(MAX_NEWEST)];
    let cells = |drill: &DrillSeen| {
        let verdict = drill.verdict.map_or("not proven".to_owned(), |verdict| verdict.words().to_owned());
        vec![drill.id.clone(), verdict, or_dash(drill.rto_seconds, span), or_dash(drill.rpo_seconds, span), away(drill.at, observed.at)]
    };
    let findings = lines(drills.findings.iter().map(String::as_str));
    let older = if drills.entries.len() > newest.len() || drills.older > 0 { "lifeboat drill list has all\n" } else { "" };
    rows(&["DRILL", "VERDICT", "BACK AFTER", "LOST", "WHEN"], newest, cells) + &findings + older
}

fn tasks(observed: &Observed) -> String {
    rows(&["TASK", "SCHEDULE", "NEXT"], &observed.tasks, |task| {
        let next = match (task.running_since, task.next) {
            (Some(since), _) => format!("running since {}", time(since)),
            (None, Some(next)) if next < observed.at => format!("LATE since {}", time(next)),
            (None, Some(next)) => format!("{}, {}", time(next), away(next, observed.at)),
            (None, None) => "not planned".to_owned(),
        };
        vec![task.name.clone(), format!("{} {}", task.schedule, task.time_zone), next]
    })
}

fn runs(observed: &Observed) -> String {
    rows(&["OPERATION", "ENDED", "BEGAN", "LAST DONE", "MORE"], &observed.runs, |run| {
        let often = if run.failures > 1 { format!(" ({} in a row)", run.failures) } else { String::new() };
        vec![
            run.operation.clone(),
            format!("{}{often}", run.outcome.word()),
            time(run.started),
            or_dash(run.last_success, |at| away(at, observed.at)),
            or_dash(run.message.clone(), |message| message),
        ]
    })
}

fn keys(observed: &Observed) -> String {
    rows(&["KEY", "WHAT", "STATE", "ENDS"], &observed.keys, |key| {
        let what = if key.signs_here { format!("{}, signs here", key.what) } else { key.what.clone() };
        let ends = key.not_after.map_or("never".to_owned(), |end| format!("{}, {}", time(end), away(end, observed.at)));
        vec![key.name.clone(), what, key.state.clone(), ends]
    })
}

fn disks(observed: &Observed) -> String {
    rows(&["WHAT IS ON IT", "FREE", "OF", "WHERE"], &observed.disks, |disk| {
        let percent = or_dash(disk.free_bytes.saturating_mul(100).checked_div(disk.total_bytes), |percent| format!("{percent} %"));
        vec![disk.what.clone(), percent, bytes(disk.total_bytes), disk.path.clone()]
    })
}

#[cfg(test)]
mod tests;
