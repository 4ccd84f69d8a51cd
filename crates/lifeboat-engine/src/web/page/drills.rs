//! `/drills`: how fast the system came back, each time that it was tried, and the report of each.

use lifeboat_core::drill::{DrillId, Outcome, span};
use lifeboat_core::status::{DrillSeen, SignatureState, Status};
use maud::{Markup, html};

use super::{Leaf, ListPage, MAX_ROWS, PAGE_ROWS, Tone, View, at, badge, layout, nothing, seen, table, told};
use crate::drill::page::history::{Point, plot};
use crate::drill::page::words::count;
use crate::drill::page::{like, symbol};

const HEADS: [&str; 6] = ["Drill", "Verdict", "When", "Back after", "Lost", "Backup"];

/// The plots show so many, the newest: one a quarter is fifteen years.
const MAX_POINTS: usize = 60;

/// The page.
pub fn page(view: &View<'_>, query: &ListPage) -> String {
    let main = match view.status {
        None => nothing(view),
        Some(status) => html! {
            (seen(view))
            h1 { "Drills" }
            @match &status.observed.drills {
                None => { p { (badge(Tone::Unknown, "not known")) " Nobody could look at them." } }
                Some(drills) => {
                    @if !drills.findings.is_empty() {
                        ul class="reasons bad" { @for finding in drills.findings.iter().take(MAX_ROWS) { li { (told(finding)) } } }
                        (super::more(drills.findings.len(), MAX_ROWS))
                    }
                    (plots(status, &drills.entries))
                    @let leaf = Leaf::of(drills.entries.len(), query.page);
                    (list(drills.entries.iter().skip(leaf.skip).take(PAGE_ROWS), "The newest first"))
                    (leaf.links("drills", "drills?page="))
                    @if drills.older > 0 { p class="small" { (count(drills.older)) " older ones are in the repository: " code { "lifeboat drill list" } " has them." } }
                }
            }
        },
    };
    layout(view, "drills", "drills", None, &main)
}

/// The newest of them, on the overview.
pub(super) fn recent(status: &Status, most: usize) -> Markup {
    match &status.observed.drills {
        None => html! { p { (badge(Tone::Unknown, "not known")) " Nobody could look at them." } },
        Some(drills) => html! {
            @if !drills.findings.is_empty() { p { (badge(Tone::Bad, "the row of drills is not whole")) " " (told(&drills.findings[0])) } }
            (list(drills.entries.iter().take(most), "The newest first"))
        },
    }
}

/// A link to the report of a drill, if that is the id of one.
pub(super) fn link(id: &str) -> Markup {
    match id.parse::<DrillId>() {
        Ok(id) => html! { a href={ "drills/" (id) } { (id) } },
        Err(_) => told(id),
    }
}

fn list<'a>(drills: impl Iterator<Item = &'a DrillSeen>, caption: &str) -> Markup {
    let rows: Vec<Vec<Markup>> = drills.map(row).collect();
    html! {
        @if rows.is_empty() { p { (badge(Tone::Bad, "none")) " There was no drill yet: nothing has proven that backups restore. " code { "lifeboat drill run" } } }
        @else { (table(caption, "drills", &HEADS, rows)) }
    }
}

fn row(drill: &DrillSeen) -> Vec<Markup> {
    let time = |seconds: Option<f64>| html! { (seconds.map_or("–".to_owned(), span)) };
    vec![
        link(&drill.id),
        html! {
            @match (drill.verdict, drill.signature) {
                (Some(verdict), _) => { (outcome(like(verdict), verdict.words())) }
                (None, SignatureState::NotValid) => { (badge(Tone::Bad, "not proven")) p class="small" { "its signature does not hold" } }
                (None, _) => { (badge(Tone::Unknown, "not proven")) p class="small" { "nobody who is trusted stands for it" } }
            }
        },
        at(drill.at),
        html! { (time(drill.rto_seconds)) @if let Some(seconds) = drill.verified_seconds { p class="small" { "all checked after " (span(seconds)) } } },
        time(drill.rpo_seconds),
        html! { @match &drill.backup { Some(backup) => { (told(backup)) } None => { "–" } } },
    ]
}

fn outcome(outcome: Outcome, words: &str) -> Markup {
    crate::drill::page::badge(outcome, words)
}

fn plots(status: &Status, entries: &[DrillSeen]) -> Markup {
    let points: Vec<Point> = entries
        .iter()
        .take(MAX_POINTS)
        .rev()
        .map(|drill| Point {
            at: drill.at,
            outcome: drill.verdict.map_or(Outcome::NotApplicable, like),
            rto: drill.rto_seconds,
            rpo: drill.rpo_seconds,
            here: false,
        })
        .collect();
    let objectives = &status.observed.objectives;
    html! {
        @if !points.is_empty() {
            div class="plots" {
                (plot("rto", "Time until the system was back", &points, objectives.rto_seconds as f64, |point| point.rto))
                (plot("rpo", "Commits that would have been lost", &points, objectives.rpo_seconds as f64, |point| point.rpo))
            }
            p class="small" {
                "Logarithmic scale. " (symbol(Outcome::Passed)) " passed, " (symbol(Outcome::NotChecked)) " with gaps, " (symbol(Outcome::Failed))
                " failed, – not signed by anybody who is trusted, so it proves nothing. The dashed line is the objective of today."
                @if entries.len() > MAX_POINTS { " The newest " (MAX_POINTS) " are drawn." }
            }
        }
    }
}
