//! What is on the page, and what does not get out of it.

use lifeboat_core::drill::history::{Entry, Signature, Summary};
use lifeboat_core::drill::{Check, Scenario};

use super::*;

fn sample(name: &str) -> Report {
    let path = format!("{}/../../testdata/drills/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn nothing() -> History {
    History { entries: Vec::new(), older: 0, findings: Vec::new() }
}

fn earlier(reports: &[Report]) -> History {
    let entry = |report: &Report| Entry {
        id: report.id.clone(),
        at: report.started,
        sha256: Some(Sha256([1; 32])),
        summary: Some(Summary::of(report)),
        signature: Signature::Valid { by: "key".into() },
    };
    History { entries: reports.iter().map(entry).collect(), older: 0, findings: Vec::new() }
}

fn page(report: &Report) -> String {
    render(report, Sha256([7; 32]), &nothing())
}

/// The text between tags, which is what a person reads.
fn read(page: &str) -> String {
    page.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text).collect::<Vec<_>>().join("")
}

#[test]
fn the_same_report_gives_the_same_bytes() {
    let report = sample("passed");
    let history = earlier(&[sample("gaps"), sample("failed")]);
    assert_eq!(render(&report, Sha256([7; 32]), &history), render(&report.clone(), Sha256([7; 32]), &history.clone()));
}

#[test]
fn everything_of_the_report_is_on_the_page() {
    for name in ["passed", "failed", "gaps"] {
        let report = sample(name);
        let text = read(&page(&report)).replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<").replace("&quot;", "\"");
        assert!(text.contains(heading(&report)), "{name}");
        let mut wanted: Vec<String> = report.reasons.clone();
        for check in &report.checks {
            wanted.extend([check.check.question().to_owned(), check.check.name(), check.reason.clone()]);
            wanted.extend(check.findings.iter().chain(&check.tool).cloned());
        }
        wanted.extend(report.controls.iter().flat_map(|control| [control.said.clone(), control.place.clone()]));
        wanted.extend(report.scenarios.iter().flat_map(|scenario| [scenario.observed.clone(), scenario.scenario.story().to_owned()]));
        wanted.extend(report.environment.isolation.iter().flat_map(|one| [one.what.clone(), one.how.clone()]));
        wanted.extend(report.rto.phases.iter().map(|phase| phase.name.clone()));
        wanted.extend([report.backup.id.clone(), report.backup.manifest.to_string(), report.id.clone(), "07".repeat(32)]);
        wanted.extend(report.previous.map(|digest| digest.to_string()));
        for wanted in wanted {
            assert!(text.contains(&wanted), "{name}: {wanted} is not on the page");
        }
    }
}

#[test]
fn nothing_of_a_hostile_report_gets_out_of_its_text() {
    let mut report = sample("hostile");
    let evil = report.host.clone();
    assert!(evil.contains("<script>") && evil.contains('"') && evil.contains('\u{202e}'));
    // In the history and in its findings as well.
    let mut history = earlier(&[sample("hostile")]);
    history.entries[0].signature = Signature::NotValid { why: evil.clone() };
    history.entries[0].id = evil.clone();
    history.findings = vec![evil.clone()];
    report.reasons = vec![evil];
    let page = render(&report, Sha256([7; 32]), &history);
    for tag in ["<script", "<img", "<iframe", "<link", "<object", "<base", "<a "] {
        assert!(!page.contains(tag), "{tag}");
    }
    assert_eq!(
        (page.matches("</style>").count(), page.matches("</title>").count()),
        (1, 2),
        "its own only: that of the page, and that of the timeline"
    );
    assert!(page.chars().all(|c| c == '\n' || !c.is_control()) && !page.contains('\u{202e}'));
    assert!(page.contains("\\u{202e}") && page.contains("&lt;script&gt;"));
    // Within every tag, what is in quotes is ours: no handler, no style, and every quote has its partner.
    for tag in page.split('<').skip(1).filter_map(|part| part.split_once('>')).map(|(tag, _)| tag) {
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
        assert!(!tag.contains(" on") && !tag.contains(" style="), "{tag}");
    }
    // Places that no picture has.
    assert!(!page.contains("NaN") && !page.contains("inf") && !page.contains("-1e"), "a number that is none");
}

#[test]
fn no_outcome_is_said_by_colour_alone() {
    let mut report = sample("failed");
    report
        .checks
        .iter_mut()
        .zip([Outcome::Passed, Outcome::Failed, Outcome::NotChecked, Outcome::NotApplicable].into_iter().cycle())
        .for_each(|(check, outcome)| check.outcome = outcome);
    let page = page(&report);
    for (number, badge) in page.split("class=\"badge ").skip(1).enumerate() {
        let inner = badge.split_once("</span>").unwrap().1;
        let word = inner.split_once('<').unwrap().0.trim();
        assert!(word.chars().any(char::is_alphabetic), "badge {number} has no word: {badge:.80}");
        assert!(["✓", "✗", "?", "–"].iter().any(|symbol| badge.contains(&format!("aria-hidden=\"true\">{symbol}<"))));
    }
    assert_eq!(report.checks.len(), Check::ALL.len());
    for scenario in Scenario::ALL {
        assert!(!scenario.story().is_empty());
    }
}

#[test]
fn the_policy_forbids_everything_but_the_style() {
    let page = page(&sample("passed"));
    let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    let digest = BASE64.encode(sha256::of(style.as_bytes()).0);
    let policy = format!("default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'");
    assert!(page.contains(&policy), "{page:.600}");
    assert!(page.find("Content-Security-Policy").unwrap() < page.find("<style>").unwrap(), "it counts only for what stands behind it");
    assert!(!style.contains("url(") && !style.contains("@import"));
}

#[test]
fn what_was_not_met_is_said() {
    let mut report = sample("passed");
    report.rto.first_query_seconds = None;
    report.rpo.seconds = None;
    (report.rto.met, report.rpo.met) = (false, false);
    report.rto.phases.clear();
    report.rto.verified_seconds = None;
    let text = read(&page(&report.judged()));
    assert!(text.contains("Nothing answered.") && text.contains("There are no times to draw.") && text.contains("an objective was missed"));
    let near = Report { objectives: lifeboat_core::drill::Objectives { rto_seconds: 60.0, rpo_seconds: 60.0 }, ..sample("passed") };
    assert!(page(&near).contains("class=\"objective\""));
    let text = read(&page(&sample("passed")));
    assert!(text.contains("off this scale: 68 times as far") && text.contains("the objective of 4 h is 422 times as long"), "{text}");
}
