//! `/`: can I recover, to when, how fast, and when was that proven; then what somebody has to do; then everything that was seen.

use jiff::Timestamp;
use lifeboat_core::drill::span;
use lifeboat_core::status::{
    Answer, DiskSeen, KeySeen, Observed, Outcome, ReceiverSeen, RepositorySeen, RunSeen, SlotSeen, Status, TaskSeen, TimelineSeen, WalSeen,
};
use maud::{Markup, html};

use super::super::Part;
use super::super::api::Filter;
use super::{
    MAX_ROWS, Overview, Tone, View, alerts, at, badge, before, drills, ended, facts, lasting, layout, limited, more, nothing, seen, told,
    window,
};
use crate::drill::page::words::{bytes, count, percent};

/// So many alerts are on the overview; the others have a page.
const MAX_ALERTS: usize = 12;
/// So many of the newest drills are.
const MAX_DRILLS: usize = 5;

/// The least and the most seconds after which a page is loaded anew.
const REFRESH: std::ops::RangeInclusive<u64> = 60..=3600;

/// The page.
pub fn page(view: &View<'_>, query: &Overview) -> String {
    let refresh = query.refresh.map(|seconds| seconds.clamp(*REFRESH.start(), *REFRESH.end()));
    let outlook = view.outlook();
    let main = html! {
        @match view.status {
            None => { (nothing(view)) }
            Some(status) => {
                (seen(view))
                (verdict(view, status, outlook.tone, &outlook.heading))
                (numbers(view, status))
                (part(view))
                (alerts::section(view, status, MAX_ALERTS))
                (unseen(status))
                (window::section(status))
                (wal(status))
                (repositories(&status.observed))
                (backups(&status.observed))
                (artifacts(&status.observed))
                (recent_drills(status))
                (tasks(&status.observed))
                (runs(&status.observed))
                (keys(&status.observed))
                (disks(&status.observed))
            }
        }
        p class="small refresh" {
            @match refresh {
                Some(seconds) => { "This page is loaded anew every " (lasting(seconds)) ". " a href="./" { "Leave it as it is" } }
                None => { "This page does not change by itself. " a href="./?refresh=60" { "Load it anew every minute" } }
            }
        }
    };
    layout(view, "./", outlook.word, refresh, &main)
}

fn verdict(view: &View<'_>, status: &Status, tone: Tone, heading: &str) -> Markup {
    let observed = &status.observed;
    html! {
        section class={ "verdict " (tone.class()) } aria-labelledby="verdict" {
            p class="over" { "Can " strong { (told(&observed.name)) } " (" (told(&observed.environment)) ") be recovered?" }
            h1 id="verdict" { span class="mark" aria-hidden="true" { (tone.symbol()) } " " (heading) }
            @if view.is_stale() {
                p { "When somebody last looked, the answer was: " (status.answer.verdict.words()) "." }
            }
            @if status.answer.reasons.is_empty() {
                @if !view.is_stale() { p { "Both objectives are met, and a drill has proven it." } }
            } @else {
                ul class="reasons" { @for reason in status.answer.reasons.iter().take(MAX_ROWS) { li { (told(reason)) } } }
                (more(status.answer.reasons.len(), MAX_ROWS))
            }
        }
    }
}

/// Met, missed, or nobody knows.
fn met(met: Option<bool>, words: [&str; 3]) -> Markup {
    match met {
        Some(true) => badge(Tone::Good, words[0]),
        Some(false) => badge(Tone::Bad, words[1]),
        None => badge(Tone::Unknown, words[2]),
    }
}

fn tile(name: &str, bad: bool, number: &Markup, below: &Markup) -> Markup {
    html! {
        div class={ "tile" @if bad { " bad" } } {
            dt { (name) }
            dd class="number" { (number) }
            dd class="below" { (below) }
        }
    }
}

/// The other three questions.
fn numbers(view: &View<'_>, status: &Status) -> Markup {
    let (answer, observed) = (&status.answer, &status.observed);
    let objectives = &observed.objectives;
    // What would be lost grows while nobody looks.
    let lost = if view.is_stale() { "Lost, had it happened then" } else { "Lost, if it happened now" };
    html! {
        section aria-label="In numbers" {
            dl class="tiles" {
                (tile("To when?", answer.to.is_none(), &to_when(answer), &html! {
                    @if let Some(to) = answer.to { (to.strftime("%a, %-d %b %Y").to_string()) ", " (before(to, observed.at)) " it was looked at. " }
                    @match (answer.from, has_windows(observed)) {
                        (Some(from), true) => { "Any moment since " (at(from)) (exceptions(observed)) "." }
                        (Some(from), false) => { "Only the moments of backups, the first of them " (at(from)) "." }
                        (None, _) => { "There is nothing to go back to." }
                    }
                }))
                (tile(lost, answer.rpo_met != Some(true), &html! {
                    (match answer.rpo_seconds { None => "nobody knows".to_owned(), Some(0) => "nothing".to_owned(), Some(seconds) => lasting(seconds) })
                }, &html! {
                    (met(answer.rpo_met, ["met", "missed", "not known"])) " The objective (RPO) is " (lasting(objectives.rpo_seconds)) "."
                }))
                (how_fast(answer, objectives.rto_seconds))
                (proven(answer, observed))
            }
        }
    }
}

fn to_when(answer: &Answer) -> Markup {
    match answer.to {
        Some(to) => html! { time datetime=(to) { (to.strftime("%H:%M:%S").to_string()) } span class="unit" { " UTC" } },
        None => html! { "no moment" },
    }
}

fn has_windows(observed: &Observed) -> bool {
    observed.wal.as_ref().is_some_and(|wal| !wal.windows.is_empty())
}

fn exceptions(observed: &Observed) -> String {
    match observed.wal.iter().flat_map(|wal| &wal.windows).map(|window| window.except.len()).sum() {
        0 => String::new(),
        1 => ", but for one stretch".to_owned(),
        many => format!(", but for {} stretches", count(many as u64)),
    }
}

fn how_fast(answer: &Answer, objective: u64) -> Markup {
    let seconds = answer.proof.as_ref().and_then(|proof| proof.rto_seconds);
    tile(
        "Back after",
        answer.rto_met != Some(true),
        &html! { (seconds.map_or("nobody knows".to_owned(), span)) },
        &html! {
            (met(answer.rto_met, ["met", "missed", "not measured"])) " The objective (RTO) is " (lasting(objective)) ". "
            @if seconds.is_some() { "Measured by the last drill that succeeded." } @else { "No drill has measured it." }
        },
    )
}

fn proven(answer: &Answer, observed: &Observed) -> Markup {
    let unknown = if answer.proof.is_some() { "dated in the future" } else { "not proven" };
    let fresh = met(answer.proof_fresh, ["in time", "too old", unknown]);
    let allowed = lasting(observed.objectives.drill_seconds);
    match &answer.proof {
        Some(proof) => tile(
            "Proven",
            answer.proof_fresh != Some(true),
            &html! {
                @if answer.proof_fresh.is_none() { "nobody knows when" }
                @else { (span(observed.at.duration_since(proof.at).as_secs_f64().max(0.0))) " ago" }
            },
            &html! {
                (fresh) " by " (drills::link(&proof.drill)) "; once in " (allowed) " is asked for."
                @if proof.failed_since > 0 { " " strong { (count(proof.failed_since)) " later did not succeed." } }
            },
        ),
        None => tile("Proven", true, &html! { "never" }, &html! { (fresh) " No drill has succeeded; once in " (allowed) " is asked for." }),
    }
}

fn part(view: &View<'_>) -> Markup {
    html! {
        @if let Part::Standby { holder } = &view.agent.part {
            p class="notice" {
                (badge(Tone::None, "stands by")) " This agent looks, and does nothing: "
                @match holder {
                    Some(holder) => { (told(holder)) " holds the lease and does the work." }
                    None => { "another one holds the lease, and nobody knows which." }
                }
            }
        }
    }
}

/// A part of the page.
fn section(id: &str, title: &str, inner: &Markup) -> Markup {
    html! { section aria-labelledby=(id) { h2 id=(id) { (title) } (inner) } }
}

fn unseen(status: &Status) -> Markup {
    let unseen = &status.observed.unseen;
    html! {
        @if !unseen.is_empty() {
            (section("unseen", "What could not be looked at", &html! {
                p { "None of it counts as good." }
                ul class="plain" {
                    @for one in unseen.iter().take(MAX_ROWS) { li { (badge(Tone::Unknown, "not seen")) " " strong { (told(&one.what)) } ": " (told(&one.why)) } }
                }
                (more(unseen.len(), MAX_ROWS))
            }))
        }
    }
}

fn wal(status: &Status) -> Markup {
    let Some(wal) = &status.observed.wal else {
        return section("wal", "WAL", &html! { p { "None was seen: there is no cluster, no WAL of it, or nobody could look." } });
    };
    let server = status.observed.server.as_ref();
    let seen = status.observed.at;
    let findings: Vec<Vec<Markup>> = wal
        .findings
        .iter()
        .take(MAX_ROWS)
        .map(|finding| {
            vec![
                badge(Tone::of(finding.severity), finding.severity.word()),
                html! { (told(&finding.message)) p class="small" { (told(&finding.hint)) } },
            ]
        })
        .collect();
    section(
        "wal",
        "WAL",
        &html! {
            (facts(vec![
                ("Comes by", Some(html! { (told(&wal.mode)) })),
                ("Not in the repository yet", Some(match wal.lag_bytes {
                    Some(0) => badge(Tone::Good, "nothing"),
                    Some(behind) => html! { (bytes(behind)) },
                    None => badge(Tone::Unknown, "not known"),
                })),
                ("Last commit there", wal.last_commit.map(|time| html! { (at(time)) ", " (before(time, seen)) " it was looked at" })),
                ("Files that wait for the archiver", wal.ready.map(|files| html! { (count(files)) })),
                ("Server", server.map(|server| html! {
                    (told(&server.endpoint))
                    @if let Some(version) = server.version_num { ", PostgreSQL " (version / 10_000) "." (version % 10_000) }
                    @if let Some(timeline) = server.timeline { ", timeline " (timeline) }
                    @if let Some(position) = &server.position { ", at " (told(position)) }
                    @if server.in_recovery { ", a standby" }
                    @if let Some(trouble) = &server.trouble { " " (badge(Tone::Bad, "does not answer")) " " (told(trouble)) }
                })),
                ("Cluster", Some(told(&wal.system_id))),
            ]))
            @if !findings.is_empty() { (super::table("What is wrong with its way", "findings", &["How serious", "What"], findings)) (more(wal.findings.len(), MAX_ROWS)) }
            @if let Some(receiver) = &wal.receiver { (receiving(receiver)) }
            @if !wal.slots.is_empty() { (limited("Replication slots of the server", "slots", &["Slot", "State", "Held for it", "Still safe"], &wal.slots, slot)) }
            @if !wal.timelines.is_empty() { (timelines(wal)) }
        },
    )
}

fn receiving(receiver: &ReceiverSeen) -> Markup {
    html! {
        h3 { "Receiver" }
        (facts(vec![
            ("State", Some(html! {
                (badge(if receiver.degraded { Tone::Bad } else if receiver.state == "streaming" { Tone::Good } else { Tone::Doubt }, &ended(&receiver.state)))
                " " (told(&receiver.mode)) ", as it said " (lasting(receiver.age_seconds)) " before"
                @if receiver.degraded { "; " strong { "commits go on without it" } }
            })),
            ("Received", Some(told(&receiver.received))),
            ("In the spool", Some(told(&receiver.spooled))),
            ("In the repository", Some(html! { (told(&receiver.stored)) "; " (bytes(receiver.waiting_bytes)) " wait" })),
        ]))
    }
}

fn slot(slot: &SlotSeen) -> Vec<Markup> {
    let status = slot.wal_status.as_deref().unwrap_or("not known");
    let tone = match (status, slot.active) {
        ("lost" | "unreserved", _) => Tone::Bad,
        ("reserved", true) => Tone::Good,
        _ => Tone::Doubt,
    };
    vec![
        html! { (told(&slot.name)) @if slot.ours { p class="small" { "the receiver’s" } } },
        html! { (badge(tone, if slot.active { "connected" } else { "nobody connected" })) " " (told(status)) },
        html! { (bytes(slot.held_bytes)) },
        html! { (slot.safe_bytes.map_or("no limit".to_owned(), bytes)) },
    ]
}

fn timelines(wal: &WalSeen) -> Markup {
    let row = |timeline: &TimelineSeen| {
        let lsn = |lsn: &Option<String>| html! { @match lsn { Some(lsn) => { (told(lsn)) } None => { "–" } } };
        vec![
            html! { (timeline.timeline) },
            html! { (lsn(&timeline.from)) " to " (lsn(&timeline.to)) },
            html! { (count(timeline.segments)) " segments, " (bytes(timeline.stored_bytes)) },
            html! {
                @if timeline.gaps.is_empty() { (badge(Tone::Good, "none")) } @else {
                    (badge(Tone::Bad, &format!("{} holes", timeline.gaps.len())))
                    ul class="plain" { @for gap in timeline.gaps.iter().take(5) { li { (told(gap)) } } }
                    (more(timeline.gaps.len(), 5))
                }
            },
        ]
    };
    limited("WAL in the repository", "timelines", &["Timeline", "From where to where", "How much", "Holes"], &wal.timelines, row)
}

fn repositories(observed: &Observed) -> Markup {
    let row = |one: &RepositorySeen| {
        vec![
            html! { (told(&one.name)) p class="small" { (told(&one.part)) } },
            html! { (told(&one.url)) },
            html! {
                @match (&one.trouble, one.missed_everything, one.missed, one.lacks.as_slice()) {
                    (Some(trouble), ..) => { (badge(Tone::Bad, "cannot be read")) " " (told(trouble)) }
                    (None, false, 0, []) => { (badge(Tone::Good, "reads, and lacks nothing")) }
                    (None, everything, missed, lacks) => {
                        (badge(Tone::Doubt, "behind"))
                        @if everything { " This host lost count of what it missed." } @else if missed > 0 { " It missed " (count(missed)) " objects." }
                        @if let Some(newest) = lacks.first() { " It lacks " (count(lacks.len() as u64)) " backups, " (told(newest)) " among them." }
                    }
                }
                @if let Some(newest) = one.primary_lacks.first() {
                    " " (badge(Tone::Bad, "the primary lost")) " " (count(one.primary_lacks.len() as u64)) " backups that it has, " (told(newest)) " among them."
                }
            },
            html! { @match &one.newest_backup { Some(id) => { (told(id)) } None => { "–" } } },
        ]
    };
    section(
        "repositories",
        "Repositories",
        &limited(
            "The primary first, then its replicas",
            "repositories",
            &["Name", "Where", "State", "Newest backup"],
            &observed.repositories,
            row,
        ),
    )
}

fn backups(observed: &Observed) -> Markup {
    let inner = match &observed.backups {
        None => html! { p { (badge(Tone::Unknown, "not known")) " Nobody could look." } },
        Some(all) if all.is_empty() => html! { p { (badge(Tone::Bad, "none")) " There is no backup." } },
        Some(all) => {
            let of = |filter: Filter| all.iter().filter(|backup| filter.takes(backup)).count();
            let count_of = |filter: Filter, words: &str, tone: Tone| {
                let number = of(filter);
                html! {
                    @if number > 0 { li { (badge(tone, &format!("{} {words}", count(number as u64)))) " " a href={ "backups?state=" (filter.name()) } { "Show " (words) " backups" } } }
                }
            };
            html! {
                ul class="plain" {
                    (count_of(Filter::Usable, "usable", Tone::Good))
                    (count_of(Filter::Degraded, "degraded", Tone::Doubt))
                    (count_of(Filter::NotProven, "not proven", Tone::Doubt))
                    (count_of(Filter::Unreadable, "unreadable", Tone::Bad))
                    (count_of(Filter::Pinned, "pinned", Tone::None))
                    (count_of(Filter::Expired, "expired", Tone::None))
                }
                (super::table("The newest", "backups", &super::backups::HEADS, all.iter().take(3).map(super::backups::row).collect()))
                p { a href="backups" { "All " (count(all.len() as u64)) " backups" } }
            }
        }
    };
    section("backups", "Backups", &inner)
}

fn artifacts(observed: &Observed) -> Markup {
    let inner = match &observed.artifacts {
        None => html! { p { "None was seen: there is no artifact set, or nobody could look." } },
        Some(set) => facts(vec![
            ("In the set", Some(html! { (count(set.count)) ", " (bytes(set.bytes)) })),
            ("Changed", set.changed.map(|time| html! { (at(time)) ", " (before(time, observed.at)) " it was looked at" })),
        ]),
    };
    section("artifacts", "Artifacts", &inner)
}

fn recent_drills(status: &Status) -> Markup {
    section(
        "drills",
        "Drills",
        &html! { (drills::recent(status, MAX_DRILLS)) p { a href="drills" { "All drills, and how they went over time" } } },
    )
}

fn tasks(observed: &Observed) -> Markup {
    let row = |task: &TaskSeen| {
        vec![
            html! { (told(&task.name)) },
            html! { code { (told(&task.schedule)) } " " (told(&task.time_zone)) },
            html! {
                @match (task.running_since, task.next) {
                    (Some(since), _) => { (badge(Tone::None, "running")) " since " (at(since)) @if task.attempt > 1 { ", try " (task.attempt) } }
                    (None, Some(next)) if next < observed.at => { (badge(Tone::Doubt, "late")) " since " (at(next)) }
                    (None, Some(next)) => { (at(next)) ", " (before(next, observed.at)) @if task.attempt > 1 { ", try " (task.attempt) } }
                    (None, None) => { "not planned" }
                }
            },
            html! { (lasting(task.deadline_seconds)) },
        ]
    };
    let inner = html! {
        @if observed.tasks.is_empty() { p { "No agent has planned anything on this host." } }
        @else { (limited("What the agent does by itself", "tasks", &["Task", "When", "Next", "Ended after"], &observed.tasks, row)) }
    };
    section("tasks", "Tasks", &inner)
}

const fn tone_of(outcome: Outcome) -> Tone {
    match outcome {
        Outcome::Running => Tone::None,
        Outcome::Succeeded => Tone::Good,
        Outcome::Findings => Tone::Doubt,
        Outcome::Failed | Outcome::Interrupted => Tone::Bad,
    }
}

fn runs(observed: &Observed) -> Markup {
    let row = |run: &RunSeen| {
        vec![
            html! { (told(&run.operation)) },
            html! {
                (badge(tone_of(run.outcome), run.outcome.word()))
                @if run.failures > 1 { p class="small" { (count(run.failures)) " in a row" } }
            },
            html! {
                (at(run.started))
                @if let Some(ended) = run.ended { p class="small" { "took " (span(ended.duration_since(run.started).as_secs_f64().max(0.0))) } }
            },
            html! {
                @if let Some(message) = &run.message { (told(message)) " " }
                @if let Some(hint) = &run.hint { p class="small" { (told(hint)) } }
                p class="small" {
                    @match run.last_success {
                        Some(last) => { "Last done " (at(last)) @if let Some(seconds) = run.last_success_seconds { ", in " (span(seconds)) } }
                        None => { "Never done on this host" }
                    }
                    " · " code { (told(&run.id)) }
                }
            },
        ]
    };
    let inner = html! {
        @if observed.runs.is_empty() { p { "Nothing was done on this host yet." } }
        @else { (limited("The last run of each operation on this host", "runs", &["Operation", "How it ended", "Began", "More"], &observed.runs, row)) }
    };
    section("runs", "What was last done", &inner)
}

fn keys(observed: &Observed) -> Markup {
    let row = |key: &KeySeen| {
        vec![
            html! { (told(&key.name)) p class="small" { (told(&key.what)) @if key.signs_here { ", signs here" } } },
            badge(
                match key.state.as_str() {
                    "trusted" => Tone::Good,
                    "revoked" => Tone::Bad,
                    _ => Tone::None,
                },
                &ended(&key.state),
            ),
            html! { @match key.not_after { Some(end) => { (at(end)) ", " (until(end, observed.at)) } None => { "no end" } } },
        ]
    };
    let inner = html! {
        @if observed.keys.is_empty() { p { "None is configured." } }
        @else { (limited("Who is trusted, and for how long", "keys", &["Key", "State", "Ends"], &observed.keys, row)) }
    };
    section("keys", "Keys and certificates", &inner)
}

fn until(end: Timestamp, seen: Timestamp) -> String {
    let seconds = end.duration_since(seen).as_secs_f64();
    if seconds < 0.0 { format!("ended {} before", span(-seconds)) } else { format!("in {}", span(seconds)) }
}

/// Below so many percent free, a disk is looked at twice; `alerts.disk_free_percent` decides who is told.
const SCARCE: u64 = 10;

fn disks(observed: &Observed) -> Markup {
    let row = |disk: &DiskSeen| {
        let free = disk.free_bytes.saturating_mul(100).checked_div(disk.total_bytes);
        let used = 100.0 - free.unwrap_or(0).min(100) as f64;
        vec![
            html! { (told(&disk.what)) p class="small" { (told(&disk.path)) } },
            html! {
                @match free {
                    None => { (badge(Tone::Unknown, "not known")) }
                    Some(free) => {
                        (badge(if free < SCARCE { Tone::Bad } else { Tone::Good }, &format!("{free} % free")))
                        svg class="meter" width="100%" height="8" aria-hidden="true" {
                            rect class="room" width="100%" height="8" rx="4" {}
                            rect class="used" width=(percent(used)) height="8" rx="4" {}
                        }
                    }
                }
            },
            html! { (bytes(disk.free_bytes)) " of " (bytes(disk.total_bytes)) },
        ]
    };
    let inner = html! {
        @if observed.disks.is_empty() { p { "None was looked at." } }
        @else { (limited("File systems that must not fill", "disks", &["What is on it", "Free", "How much"], &observed.disks, row)) }
    };
    section("disks", "Disks", &inner)
}
