//! `report.html`: a drill for people, in one file that needs nothing else.
//!
//! No script, no font, no picture from anywhere: the file has a policy (CSP) that forbids every request, and styles only by its own hash.
//! Everything in it is text from elsewhere, so all of it goes through maud, which escapes, and [`words::shown`], which spells out what would
//! hide or turn around. The same report and the same history give the same bytes: they are signed.
//!
//! Colour never says anything alone: every outcome has a word and a symbol. What a plot shows also stands in a table beside it.

pub(crate) mod history;
mod timeline;
pub(crate) mod words;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lifeboat_core::attestation::{DRILL_PREDICATE_TYPE, TEST_RESULT_PREDICATE_TYPE};
use lifeboat_core::drill::judge::turned_red;
use lifeboat_core::drill::{CheckResult, ControlResult, Outcome, Report, ScenarioResult, Verdict, span};
use lifeboat_core::plain::plain;
use lifeboat_core::repository::Sha256;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::words::{bytes, count, moment, shown};
use super::evidence::{History, REPORT_BUNDLE, TEST_RESULT_BUNDLE};
use crate::sha256;

const STYLE: &str = include_str!("style.css");

/// The page of a report whose bytes have this digest, with the drills before it.
pub fn render(report: &Report, report_sha256: Sha256, earlier: &History) -> String {
    let title = format!("{}: drill {}", report.name, report.verdict.words());
    let style = format!("'sha256-{}'", BASE64.encode(sha256::of(STYLE.as_bytes()).0));
    let policy = format!("default-src 'none'; style-src {style}; base-uri 'none'; form-action 'none'");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (plain(&title)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (header(report))
                    (timeline::section(report))
                    (checks(report))
                    (controls(&report.controls))
                    (scenarios(&report.scenarios))
                    (environment(report))
                    (history::section(report, earlier))
                    (identity(report, report_sha256))
                    (verification())
                }
                footer { p { "Written by " (shown(&report.lifeboat)) ". Dates are UTC. This file makes no request to anywhere." } }
            }
        }
    };
    page.into_string()
}

/// A symbol that says the same as a colour.
pub(crate) const fn symbol(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "✓",
        Outcome::NotApplicable => "–",
        Outcome::NotChecked => "?",
        Outcome::Failed => "✗",
    }
}

pub(crate) const fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "good",
        Outcome::NotApplicable => "none",
        Outcome::NotChecked => "gap",
        Outcome::Failed => "bad",
    }
}

/// How a verdict looks: as the outcome that it is most like.
pub(crate) const fn like(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Passed => Outcome::Passed,
        Verdict::PassedWithGaps => Outcome::NotChecked,
        Verdict::ObjectiveMissed | Verdict::Failed => Outcome::Failed,
    }
}

pub(crate) fn badge(outcome: Outcome, words: &str) -> Markup {
    html! { span class={ "badge " (class(outcome)) } { span aria-hidden="true" { (symbol(outcome)) } " " (words) } }
}

fn header(report: &Report) -> Markup {
    let outcome = like(report.verdict);
    html! {
        header class={ "verdict " (class(outcome)) } {
            p class="over" { "Disaster-recovery drill " (report.number) " of " (shown(&report.name)) ", " time datetime=(report.started) { (moment(report.started)) } }
            h1 { span class="mark" aria-hidden="true" { (symbol(outcome)) } " " (heading(report)) }
            @if report.reasons.is_empty() {
                p { "Every check passed or had nothing to check, what was broken on purpose was noticed, and both objectives were met." }
            } @else {
                ul class="reasons" { @for reason in &report.reasons { li { (shown(reason)) } } }
            }
        }
        section class="tiles" aria-label="The numbers" {
            (tile("Back after", report.rto_seconds(), report.objectives.rto_seconds, report.rto.met))
            (tile("Lost at most", report.rpo.seconds, report.objectives.rpo_seconds, report.rpo.met))
            div class="tile" {
                p class="name" { "All checked after" }
                p class="number" { (report.rto.verified_seconds.map_or("–".to_owned(), span)) }
                p class="small" { (made(report)) }
            }
            @if let Some(projection) = &report.rto.projection {
                div class="tile" {
                    p class="name" { "Expected for " (bytes(projection.bytes)) }
                    p class="number" { (span(projection.seconds)) }
                    p class="small" { "estimated: " (shown(&projection.how)) }
                }
            }
        }
    }
}

fn heading(report: &Report) -> &'static str {
    match report.verdict {
        Verdict::Passed => "The drill passed",
        Verdict::PassedWithGaps => "The drill passed, but not everything was checked",
        Verdict::ObjectiveMissed => "Everything came back, but an objective was missed",
        Verdict::Failed => "The drill failed",
    }
}

/// How many checks were made.
fn made(report: &Report) -> String {
    let of = |outcome| report.checks.iter().filter(|check| check.outcome == outcome).count();
    let mut text = format!("{} checks passed", of(Outcome::Passed));
    for (outcome, words) in
        [(Outcome::Failed, "failed"), (Outcome::NotChecked, "not made"), (Outcome::NotApplicable, "had nothing to check")]
    {
        if of(outcome) > 0 {
            text.push_str(&format!(", {} {words}", of(outcome)));
        }
    }
    text
}

fn tile(name: &str, seconds: Option<f64>, objective: f64, met: bool) -> Markup {
    let outcome = if met { Outcome::Passed } else { Outcome::Failed };
    html! {
        div class={ "tile " (class(outcome)) } {
            p class="name" { (name) }
            p class="number" { (seconds.map_or("nothing came back".to_owned(), span)) }
            p class="small" { (badge(outcome, if met { "met" } else { "missed" })) " objective " (span(objective)) }
        }
    }
}

/// A table with the roles of one written down: on a telephone its rows are boxes, and are none any more otherwise.
fn table(caption: &str, class: &str, heads: &[&str], rows: &[Vec<Markup>]) -> Markup {
    html! {
        table class=(class) role="table" {
            caption { (caption) }
            thead role="rowgroup" { tr role="row" { @for head in heads { th role="columnheader" scope="col" { (head) } } } }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" { @for (at, cell) in row.iter().enumerate() { td role="cell" data-head=(heads[at]) { (cell) } } }
                }
            }
        }
    }
}

fn checks(report: &Report) -> Markup {
    let rows: Vec<Vec<Markup>> = report.checks.iter().map(check).collect();
    html! {
        section aria-labelledby="checks" {
            h2 id="checks" { "Checks" }
            (table("Every check, in the order in which they were made", "wide checks", &["Outcome", "Question", "Answer", "Time"], &rows))
        }
    }
}

fn check(result: &CheckResult) -> Vec<Markup> {
    let scope = result.scope.as_ref().map(|scope| {
        let sample = scope.seed.map_or(String::new(), |seed| format!(", chosen by seed {seed}"));
        format!("{} of {} {}{sample}", count(scope.checked), count(scope.of), scope.unit)
    });
    vec![
        badge(result.outcome, result.outcome.words()),
        html! {
            (result.check.question())
            p class="small" {
                code { (result.check.name()) }
                @if let Some(scope) = &scope { " · " (shown(scope)) }
                @if let Some(tool) = &result.tool { " · " (shown(tool)) }
            }
        },
        html! {
            (shown(&result.reason))
            @if !result.findings.is_empty() {
                ul class="findings" { @for finding in &result.findings { li { (shown(finding)) } } }
            }
        },
        html! { (span(result.seconds)) },
    ]
}

fn controls(controls: &[ControlResult]) -> Markup {
    let row = |result: &ControlResult| {
        let (outcome, words) = match result.outcome {
            Outcome::Failed if turned_red(result) => (Outcome::Passed, "noticed"),
            Outcome::Failed | Outcome::Passed => (Outcome::Failed, "not noticed"),
            Outcome::NotChecked => (Outcome::NotChecked, "not tried"),
            Outcome::NotApplicable => (Outcome::NotApplicable, "does not apply"),
        };
        vec![
            badge(outcome, words),
            html! { (result.control.story()) p class="small" { code { (result.control.name()) } " · " (shown(&result.place)) } },
            html! { code { (result.check.name()) } ": " (shown(&result.said)) },
            html! { (span(result.seconds)) },
        ]
    };
    let rows: Vec<Vec<Markup>> = controls.iter().map(row).collect();
    html! {
        section aria-labelledby="controls" {
            h2 id="controls" { "Can the checks fail?" }
            p { "In copies that nobody uses, these things were broken on purpose. A check that does not notice is no check, and fails the drill." }
            @if rows.is_empty() {
                p { (badge(Outcome::Failed, "nothing was broken, so nothing is known of the checks")) }
            } @else {
                (table("What was broken on purpose", "wide", &["Outcome", "What was broken", "What the check said", "Time"], &rows))
            }
        }
    }
}

fn scenarios(scenarios: &[ScenarioResult]) -> Markup {
    let row = |result: &ScenarioResult| {
        let words = match result.outcome {
            Outcome::Passed => "ended as it must",
            Outcome::NotApplicable => "does not apply",
            Outcome::NotChecked => "not played",
            Outcome::Failed => "ended otherwise",
        };
        vec![
            badge(result.outcome, words),
            html! { (result.scenario.story()) p class="small" { code { (result.scenario.name()) } " · must happen: " (result.expected.words()) } },
            shown(&result.observed),
            html! { (span(result.seconds)) },
        ]
    };
    let rows: Vec<Vec<Markup>> = scenarios.iter().map(row).collect();
    html! {
        section aria-labelledby="scenarios" {
            h2 id="scenarios" { "Scenarios" }
            @if rows.is_empty() {
                p { "None was played." }
            } @else {
                (table("What was played through, and what must happen", "wide", &["Outcome", "What happened to the system", "What came of it", "Time"], &rows))
            }
        }
    }
}

fn environment(report: &Report) -> Markup {
    let environment = &report.environment;
    let isolation: Vec<Vec<Markup>> = environment
        .isolation
        .iter()
        .map(|one| {
            let (outcome, words) = if one.holds { (Outcome::Passed, "holds") } else { (Outcome::Failed, "does not hold") };
            vec![badge(outcome, words), html! { code { (shown(&one.what)) } }, shown(&one.how)]
        })
        .collect();
    let facts = [
        ("Directory", Some(environment.directory.clone())),
        ("User", Some(environment.user.clone())),
        ("Machine", Some(format!("{}, {} processors, {}", environment.system, environment.processors, bytes(environment.memory_bytes)))),
        ("Programs", (!environment.programs.is_empty()).then(|| environment.programs.join(", "))),
        (
            "Settings",
            (!environment.settings.is_empty())
                .then(|| environment.settings.iter().map(|(name, value)| format!("{name} = '{value}'")).collect::<Vec<_>>().join(", ")),
        ),
    ];
    html! {
        section aria-labelledby="environment" {
            h2 id="environment" { "Where it was restored, and what kept it apart" }
            @if isolation.is_empty() {
                p { (badge(Outcome::NotChecked, "the report does not say")) }
            } @else {
                (table("Isolation", "wide isolation", &["State", "What", "How"], &isolation))
            }
            (list(&facts))
        }
    }
}

fn list(facts: &[(&str, Option<String>)]) -> Markup {
    html! { dl { @for (name, value) in facts { @if let Some(value) = value { div { dt { (name) } dd { (shown(value)) } } } } } }
}

fn identity(report: &Report, report_sha256: Sha256) -> Markup {
    let (backup, actor) = (&report.backup, &report.actor);
    let sudo = actor.sudo_user.as_ref().map_or(String::new(), |user| format!(", called by {user}"));
    let recovery = report.recovery.as_ref();
    let lsn = |lsn: Option<lifeboat_core::wal::Lsn>| lsn.map_or("unknown".to_owned(), |lsn| lsn.to_string());
    let restored = [
        ("Backup", Some(backup.id.clone())),
        ("Manifest, SHA-256", Some(backup.manifest.to_string())),
        ("Taken", Some(moment(backup.started))),
        ("Copied", backup.copy.clone()),
        ("Server", backup.server.clone()),
        ("Cluster", backup.system_id.map(|id| id.to_string())),
        ("Size", Some(format!("{} files, {}, stored as {}", count(backup.files), bytes(backup.bytes), bytes(backup.stored_bytes)))),
        ("Artifacts", Some(format!("{}, {}", count(backup.artifacts), bytes(backup.artifact_bytes)))),
        ("Recovery target", recovery.map(|recovery| recovery.target.clone())),
        ("Reached", recovery.map(|recovery| format!("{}; promised {}", lsn(recovery.reached), lsn(recovery.promised)))),
        ("Timeline", recovery.and_then(|recovery| recovery.timeline).map(|timeline| timeline.0.to_string())),
        ("Last commit", recovery.and_then(|recovery| recovery.last_commit).map(moment)),
        ("WAL", recovery.map(|recovery| format!("{} in {} segments", bytes(recovery.wal.bytes), count(recovery.wal.segments)))),
    ];
    let drill = [
        ("Drill", Some(format!("{}, number {}", report.id, report.number))),
        ("Report, SHA-256", Some(report_sha256.to_string())),
        ("Report before it, SHA-256", Some(report.previous.map_or("none: this is the first".to_owned(), |digest| digest.to_string()))),
        ("Plan, SHA-256", Some(report.plan.to_string())),
        ("Repository", Some(format!("{}, {}", report.repository_url, report.repository))),
        ("Run by", Some(format!("{} ({}){sudo} on {}", actor.user, actor.uid, report.host))),
        ("With", Some(report.lifeboat.clone())),
        ("From", Some(moment(report.started))),
        ("To", Some(moment(report.finished))),
        ("Next one due", report.next_due.map(moment)),
    ];
    html! {
        section aria-labelledby="identity" {
            h2 id="identity" { "What was restored, and by whom" }
            div class="columns" {
                div { h3 { "The backup" } (list(&restored)) }
                div { h3 { "The drill" } (list(&drill)) }
            }
        }
    }
}

fn verification() -> Markup {
    let cosign = format!(
        "cosign verify-blob-attestation --key cosign.pub --bundle {REPORT_BUNDLE} --insecure-ignore-tlog=true \\\n  --type {DRILL_PREDICATE_TYPE} report.html"
    );
    let generic = format!(
        "cosign verify-blob-attestation --key cosign.pub --bundle {TEST_RESULT_BUNDLE} --insecure-ignore-tlog=true \\\n  --type {TEST_RESULT_PREDICATE_TYPE} report.html"
    );
    let openssl = format!(
        r#"python3 - <<'END'
import base64, hashlib, json
envelope = json.load(open("{REPORT_BUNDLE}"))["dsseEnvelope"]; [signature] = envelope["signatures"]
kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"], validate=True)
open("drill.pae", "wb").write(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
open("drill.sig", "wb").write(base64.b64decode(signature["sig"], validate=True))
signed = {{subject["name"]: subject["digest"]["sha256"] for subject in json.loads(payload)["subject"]}}
for name in "report.json", "report.html":
    if signed[name] != hashlib.sha256(open(name, "rb").read()).hexdigest(): raise SystemExit(name + " is not what was signed")
END
openssl dgst -sha256 -verify cosign.pub -signature drill.sig drill.pae"#
    );
    html! {
        section aria-labelledby="verify" {
            h2 id="verify" { "Do not believe this file" }
            p {
                "Anybody can write such a page. What counts are the signatures beside it, over " code { "report.json" } ", this page and the backup's manifest. "
                "Get the public key of the drills from somewhere else than the repository, then, in the directory with the files of the drill:"
            }
            h3 { "With lifeboat" }
            pre tabindex="0" { code { "lifeboat drill show DRILL" } }
            h3 { "With cosign 3: the statement with the numbers, and the one for generic tools" }
            pre tabindex="0" { code { (cosign) "\n" (generic) } }
            h3 { "With openssl and Python, without any software of Sigstore" }
            pre tabindex="0" id="openssl" { code { (openssl) } }
            p class="small" { "It prints “Verified OK”. Signatures with a certificate are verified as docs/signing.md says." }
        }
    }
}

#[cfg(test)]
mod tests;
