//! The answer comes first, nothing acts on a terminal, and nothing that was seen is left out.

use std::time::Duration;

use lifeboat_core::alert::Terms;
use lifeboat_core::status::{Observed, Status, assess};

use super::text;

fn observed(name: &str) -> Observed {
    let path = format!("{}/../../testdata/status/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn judged(observed: Observed) -> Status {
    assess(observed, &Terms::for_rpo(Duration::from_secs(86_400)))
}

#[test]
fn the_first_five_lines_answer_the_four_questions() {
    let well = text(&judged(observed("well")));
    let lines: Vec<&str> = well.lines().take(8).collect();
    assert_eq!(
        lines,
        [
            "recoverable  YES",
            "to when      any moment from 2024-01-26T01:34:14Z to 2024-03-15T02:14:30Z (6.0 s ago)",
            "lost now     6.0 s (RPO 24 h: met)",
            "back after   17 min 22 s (RTO 4 h: met)",
            "proven       11.9 days ago, conductor-drill-20240303T040000Z (once in 90 days: in time)",
            "seen         conductor 2024-03-15T02:14:36Z, production, from db1 in 1.8 s",
            "",
            "alerts",
        ]
    );
    let risk = text(&judged(observed("at-risk")));
    let lines: Vec<&str> = risk.lines().take(5).collect();
    assert!(lines[0].starts_with("recoverable  YES, BUT: 2 newer backups do not count, and "), "{risk}");
    assert!(lines[1].ends_with("(47 min ago), but for 3 stretches"), "{risk}");
    assert!(lines[4].ends_with(", 2 later DID NOT SUCCEED)"), "{risk}");

    let mut odd = observed("well");
    odd.drills.as_mut().unwrap().entries.iter_mut().for_each(|drill| drill.at += jiff::SignedDuration::from_hours(5 * 365 * 24));
    let odd = text(&judged(odd));
    assert!(odd.lines().nth(4).unwrap().ends_with("(once in 90 days: DATED IN THE FUTURE)"), "{odd}");

    let mut nothing = observed("well");
    (nothing.backups, nothing.wal, nothing.drills) = (Some(Vec::new()), None, None);
    let text = text(&judged(nothing));
    assert!(text.starts_with("recoverable  NO: there is no backup, and "), "{text}");
    assert!(text.contains("to when      no moment\nlost now     nobody knows (RPO 24 h: not known)\nback after   nobody knows: no drill has measured it (RTO 4 h: not known)\nproven       never"), "{text}");
}

#[test]
fn everything_that_somebody_must_know_is_printed() {
    let status = judged(observed("at-risk"));
    let text = text(&status);
    let seen = &status.observed;
    let mut wanted: Vec<&str> = status.answer.reasons.iter().map(String::as_str).collect();
    wanted.extend(status.alerts.iter().flat_map(|alert| [alert.summary.as_str(), &alert.fix]));
    wanted.extend(seen.unseen.iter().flat_map(|one| [one.what.as_str(), &one.why]));
    wanted.extend(seen.repositories.iter().flat_map(|one| [one.name.as_str(), &one.url]));
    wanted.extend(seen.backups.iter().flatten().take(5).map(|backup| backup.id.as_str()));
    wanted.extend(seen.runs.iter().filter_map(|run| run.message.as_deref()));
    wanted.extend(seen.disks.iter().map(|disk| disk.path.as_str()));
    wanted.extend(seen.tasks.iter().map(|task| task.schedule.as_str()));
    wanted
        .extend(seen.wal.iter().flat_map(|wal| &wal.windows).flat_map(|window| window.except.iter().filter_map(|one| one.why.as_deref())));
    wanted.extend(status.alerts.iter().map(|alert| alert.name.as_ref()));
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted} is not printed:\n{text}");
    }
    let at = |words: &str| text.find(words).unwrap();
    assert!(
        at("\nagainst it\n") < at("\nalerts\n")
            && at("\nalerts\n") < at("\nnot looked at\n")
            && at("\nnot looked at\n") < at("\nrecovery window\n")
    );
}

#[test]
fn nothing_that_was_seen_acts_on_a_terminal() {
    let text = text(&judged(observed("hostile")));
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()) && !text.contains(['\u{202e}', '\u{200b}']));
    assert!(text.contains("\\u{1b}"));
}

#[test]
fn long_lists_have_an_end() {
    let mut seen = observed("at-risk");
    let backups = seen.backups.clone().unwrap();
    seen.backups = Some(backups.iter().cycle().take(10_000).cloned().collect());
    seen.tasks = seen.tasks.iter().cycle().take(1000).cloned().collect();
    let text = text(&judged(seen));
    assert!(text.lines().count() < 300, "{}", text.lines().count());
    assert!(text.contains("of 10000 usable: lifeboat list has all") && text.contains("and 960 more: --json has all"));
}
