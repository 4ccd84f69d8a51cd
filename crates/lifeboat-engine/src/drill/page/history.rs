//! The drills before this one: two plots on a logarithmic scale, and a table.

use jiff::Timestamp;
use lifeboat_core::drill::history::{Entry, Signature, Summary};
use lifeboat_core::drill::{Outcome, Report, Verdict, span};
use maud::{Markup, html};

use super::words::{measured, percent, shown};
use super::{badge, like, symbol, table};
use crate::drill::evidence::History;

/// The most drills that the table names; the plot shows as many.
const MAX_SHOWN: usize = 60;

/// Height of a plot.
const HEIGHT: f64 = 150.0;

/// One drill in the plots.
pub(crate) struct Point {
    pub(crate) at: Timestamp,
    pub(crate) outcome: Outcome,
    pub(crate) rto: Option<f64>,
    pub(crate) rpo: Option<f64>,
    /// It is the one that the page is of.
    pub(crate) here: bool,
}

pub(super) fn section(report: &Report, earlier: &History) -> Markup {
    let others: Vec<&Entry> = earlier.entries.iter().filter(|entry| entry.id != report.id).collect();
    let others = &others[others.len().saturating_sub(MAX_SHOWN)..];
    let hidden = earlier.older + earlier.entries.len().saturating_sub(MAX_SHOWN);
    let mut points: Vec<Point> = others.iter().filter_map(|entry| point(entry)).collect();
    points.push(Point {
        at: report.started,
        outcome: like(report.verdict),
        rto: report.rto_seconds(),
        rpo: report.rpo.seconds,
        here: true,
    });
    points.sort_by_key(|point| point.at);
    let rows: Vec<Vec<Markup>> = std::iter::once(current(report)).chain(others.iter().rev().map(|entry| row(entry))).collect();
    html! {
        section aria-labelledby="history" {
            h2 id="history" { "Earlier drills" }
            @if !earlier.findings.is_empty() {
                ul class="reasons bad" { @for finding in earlier.findings.iter().take(MAX_SHOWN) { li { (shown(finding)) } } }
            }
            @if others.is_empty() {
                p { "This is the first drill of this system in this repository." }
            } @else {
                div class="plots" {
                    (plot("rto", "Time until the system was back", &points, report.objectives.rto_seconds, |point| point.rto))
                    (plot("rpo", "Commits that would have been lost", &points, report.objectives.rpo_seconds, |point| point.rpo))
                }
                p class="small" {
                    "Logarithmic scale. " (symbol(Outcome::Passed)) " passed, " (symbol(Outcome::NotChecked)) " with gaps, " (symbol(Outcome::Failed))
                    " failed, – not signed by anybody who is trusted, so it proves nothing. A ring is this drill, the dashed line the objective of today."
                }
                (table("This drill and those before it, the newest first", "wide history", &["Verdict", "Drill", "Back after", "Lost", "Signature"], &rows))
                @if hidden > 0 { p class="small" { (hidden) " older ones are not shown." } }
            }
        }
    }
}

fn point(entry: &Entry) -> Option<Point> {
    let Summary { started, rto_seconds, rpo_seconds, .. } = *entry.summary.as_ref()?;
    let outcome = entry.verdict().map_or(Outcome::NotApplicable, like);
    Some(Point { at: started, outcome, rto: rto_seconds, rpo: rpo_seconds, here: false })
}

fn cells(verdict: Option<Verdict>, id: &str, number: Option<u64>, rto: Option<f64>, rpo: Option<f64>, signature: Markup) -> Vec<Markup> {
    let time = |seconds: Option<f64>| html! { (seconds.map_or("–".to_owned(), span)) };
    vec![
        match verdict {
            Some(verdict) => badge(like(verdict), verdict.words()),
            None => badge(Outcome::NotApplicable, "not proven"),
        },
        html! { (shown(id)) @if let Some(number) = number { p class="small" { "number " (number) } } },
        time(rto),
        time(rpo),
        signature,
    ]
}

fn current(report: &Report) -> Vec<Markup> {
    let signature = html! { "this drill" };
    cells(Some(report.verdict), &report.id, Some(report.number), report.rto_seconds(), report.rpo.seconds, signature)
}

fn row(entry: &Entry) -> Vec<Markup> {
    let summary = entry.summary.as_ref();
    let signature = html! {
        (entry.signature.words())
        p class="small" {
            @match &entry.signature {
                Signature::Valid { by } => { (shown(by)) }
                Signature::NotValid { why } => { (shown(why)) }
                Signature::NotChecked => { "no key was trusted" }
            }
        }
    };
    let seconds = |of: fn(&Summary) -> Option<f64>| summary.and_then(of);
    cells(
        entry.verdict(),
        &entry.id,
        summary.map(|summary| summary.number),
        seconds(|summary| summary.rto_seconds),
        seconds(|summary| summary.rpo_seconds),
        signature,
    )
}

/// Lines of the scale, with their words.
const SCALE: [(f64, &str); 9] = [
    (0.1, "0.1 s"),
    (1.0, "1 s"),
    (10.0, "10 s"),
    (60.0, "1 min"),
    (600.0, "10 min"),
    (3600.0, "1 h"),
    (36_000.0, "10 h"),
    (259_200.0, "3 d"),
    (2_592_000.0, "30 d"),
];

/// A plot of drills, the oldest first, of which there is at least one.
pub(crate) fn plot(id: &str, title: &str, points: &[Point], objective: f64, of: impl Fn(&Point) -> Option<f64>) -> Markup {
    // Less than a tenth of a second is as good as nothing, and a logarithm has no zero.
    let value = |point: &Point| of(point).and_then(measured).map(|seconds| seconds.clamp(0.1, 1e8));
    let objective = measured(objective).filter(|objective| *objective > 0.0);
    let values: Vec<f64> = points.iter().filter_map(&value).chain(objective).collect();
    let (least, most) = values.iter().fold((f64::MAX, 0.0f64), |(least, most), value| (least.min(*value), most.max(*value)));
    let below = SCALE.iter().rev().find(|(at, _)| *at <= least).map_or(0.1, |(at, _)| *at).min(least).ln();
    let above = SCALE.iter().find(|(at, _)| *at >= most).map_or(most, |(at, _)| *at).max(most).ln();
    let y = |seconds: f64| 12.0 + (HEIGHT - 24.0) * (1.0 - (seconds.ln() - below) / (above - below).max(0.1));
    let (from, to) = (points[0].at.as_second(), points[points.len() - 1].at.as_second());
    let x = |at: Timestamp| 3.0 + 94.0 * ((at.as_second() - from) as f64 / ((to - from) as f64).max(1.0));
    let place = |number: f64| format!("{number:.1}");
    let (mut lines, mut before) = (Vec::new(), None);
    for point in points {
        let next = value(point).map(|seconds| (x(point.at), y(seconds)));
        if let (Some(from), Some(to)) = (before, next) {
            lines.push((from, to));
        }
        before = next;
    }
    let grid: Vec<(f64, &str)> = SCALE.into_iter().filter(|(at, _)| at.ln() >= below - 1e-9 && at.ln() <= above + 1e-9).collect();
    html! {
        figure {
            figcaption id={ (id) "-title" } { (title) }
            div class="plot" {
                svg class="scale" width="52" height=(HEIGHT) aria-hidden="true" {
                    @for (at, word) in &grid { text class="soft" x="48" y=(place(y(*at) + 4.0)) text-anchor="end" { (word) } }
                }
                svg width="100%" height=(HEIGHT) role="img" aria-labelledby={ (id) "-title " (id) "-text" } {
                    desc id={ (id) "-text" } { "A plot of " (points.len()) " drills. The table below has the numbers." }
                    @for (at, _) in &grid { line class="grid" x1="0" x2="100%" y1=(place(y(*at))) y2=(place(y(*at))) {} }
                    @if let Some(objective) = objective {
                        line class="objective" x1="0" x2="100%" y1=(place(y(objective))) y2=(place(y(objective))) {}
                        text class="soft" x="4" y=(place(if y(objective) > 24.0 { y(objective) - 4.0 } else { y(objective) + 14.0 })) { "objective " (span(objective)) }
                    }
                    @for ((x1, y1), (x2, y2)) in &lines { line class="row" x1=(percent(*x1)) y1=(place(*y1)) x2=(percent(*x2)) y2=(place(*y2)) {} }
                    @for point in points {
                        @let (x, class) = (percent(x(point.at)), super::class(point.outcome));
                        @match value(point) {
                            Some(seconds) => {
                                @let y = y(seconds);
                                circle class={ "point " (class) (if point.here { " here" } else { "" }) } cx=(x) cy=(place(y)) r=(if point.here { "9" } else { "7" }) {}
                                text class="inside" x=(x) y=(place(y + 3.5)) text-anchor="middle" { (symbol(point.outcome)) }
                            }
                            // There is no number: nothing came back.
                            None => { text class={ "strong " (class) } x=(x) y="12" text-anchor="middle" { (symbol(point.outcome)) } }
                        }
                    }
                }
            }
        }
    }
}
