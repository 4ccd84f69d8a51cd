//! The drill as a picture: what was lost before the disaster, and what was done after it.
//!
//! Two scales meet at the disaster: to the left the lost commits, to the right the way back. Shapes have places in percent, so that the picture
//! grows and shrinks with its window and its letters do not.

use lifeboat_core::drill::{Phase, Report, span};
use maud::{Markup, html};

use super::words::{measured, moment, percent, shown};

/// Where the disaster is, in percent.
const DISASTER: f64 = 27.0;

/// An objective that is further away than so many times the measured time is said, not drawn.
const OFF_SCALE: f64 = 3.0;

pub(super) fn section(report: &Report) -> Markup {
    html! {
        section aria-labelledby="timeline" {
            h2 id="timeline" { "From the disaster to the last check" }
            (picture(report))
            p { (rpo(report)) " " (rto(report)) }
            (phases(report))
        }
    }
}

/// The objective beside the measured time, in words.
fn ratio(seconds: Option<f64>, objective: f64) -> String {
    match seconds.and_then(measured) {
        Some(seconds) if seconds > objective && objective > 0.0 => {
            format!("{:.1} times the objective of {}", seconds / objective, span(objective))
        }
        Some(seconds) if seconds * 2.0 <= objective && seconds > 0.0 => {
            let times = objective / seconds;
            let times = if times < 10.0 { format!("{times:.1}") } else { format!("{times:.0}") };
            format!("the objective of {} is {times} times as long", span(objective))
        }
        Some(_) => format!("the objective is {}", span(objective)),
        None => format!("the objective was {}", span(objective)),
    }
}

fn rpo(report: &Report) -> Markup {
    let rpo = &report.rpo;
    html! {
        @match (rpo.recovered, rpo.seconds) {
            (Some(recovered), Some(seconds)) => {
                "Everything up to " (moment(recovered)) " came back, by the " (shown(&rpo.source)) ": "
                strong { "at most " (span(seconds)) " of commits would have been lost" } "; " (ratio(rpo.seconds, report.objectives.rpo_seconds)) "."
            }
            _ => { "No moment is known up to which everything came back." }
        }
    }
}

fn rto(report: &Report) -> Markup {
    html! {
        @match report.rto_seconds() {
            Some(seconds) => {
                strong { @if report.has_database() { "The first query was answered after " } @else { "Everything was back after " } (span(seconds)) }
                "; " (ratio(Some(seconds), report.objectives.rto_seconds)) "."
            }
            None => { strong { "Nothing answered." } }
        }
        @if measured(report.rto.excluded_seconds).is_some_and(|seconds| seconds > 0.0) {
            " Not counted are " (span(report.rto.excluded_seconds)) " that only a drill takes."
        }
    }
}

/// One phase where the picture can show it.
fn drawn(phase: &Phase) -> Option<(f64, f64)> {
    Some((measured(phase.from_seconds)?, measured(phase.seconds)?))
}

fn picture(report: &Report) -> Markup {
    let (first, verified) = (report.rto_seconds().and_then(measured), report.rto.verified_seconds.and_then(measured));
    // The clock of the wall runs while a drill does what only a drill does.
    let excluded = if report.has_database() { measured(report.rto.excluded_seconds).unwrap_or(0.0) } else { 0.0 };
    let ends = report.rto.phases.iter().filter_map(drawn).map(|(from, seconds)| from + seconds);
    let end = ends.chain(first).chain(verified).fold(0.0, f64::max);
    if end <= 0.0 {
        return html! { p { "There are no times to draw." } };
    }
    let objective = measured(report.objectives.rto_seconds);
    let on_scale = objective.filter(|objective| *objective <= end * OFF_SCALE);
    let scale = on_scale.map_or(end, |objective| objective.max(end)) * 1.02;
    let x = |seconds: f64| DISASTER + (100.0 - DISASTER) * (seconds / scale);
    let lost = report.rpo.seconds.and_then(measured);
    let lost_objective = measured(report.objectives.rpo_seconds);
    let lost_on_scale =
        lost_objective.zip(lost).filter(|(objective, lost)| objective <= &(lost * OFF_SCALE)).map(|(objective, _)| objective);
    let lost_scale = lost.map(|lost| lost_on_scale.map_or(lost * 1.6, |objective| objective.max(lost) * 1.15)).filter(|scale| *scale > 0.0);
    let left = |seconds: f64| lost_scale.map_or(DISASTER, |scale| DISASTER - DISASTER * (seconds / scale));
    let text = description(report);
    html! {
        figure class="timeline" {
            svg width="100%" height="172" role="img" aria-labelledby="timeline-title timeline-text" {
                title id="timeline-title" { "Timeline of the drill" }
                desc id="timeline-text" { (text) }
                line class="axis" x1="0" x2="100%" y1="112" y2="112" {}
                @if let Some(lost) = lost {
                    rect class="lost" x=(percent(left(lost))) y="72" width=(percent(DISASTER - left(lost))) height="40" {}
                    text class="strong" x="0" y="62" { "lost: " (span(lost)) }
                }
                @if let Some(objective) = lost_on_scale {
                    line class="objective" x1=(percent(left(objective))) x2=(percent(left(objective))) y1="68" y2="122" {}
                }
                text class="soft" x="0" y="150" { "objective" }
                text class="soft" x="0" y="166" { (span(report.objectives.rpo_seconds)) @if lost_on_scale.is_none() { " ←" } }
                @for (number, phase) in report.rto.phases.iter().enumerate() {
                    @if let Some((from, seconds)) = drawn(phase) {
                        @let width = x(from + seconds) - x(from);
                        rect class={ "phase p" (number % 8) (if phase.before_first_query { "" } else { " later" }) }
                            x=(percent(x(from))) y=(if phase.before_first_query { "72" } else { "82" }) width=(percent(width))
                            height=(if phase.before_first_query { "40" } else { "30" }) {}
                        @if width > 4.0 {
                            text class="inside" x=(percent(x(from + seconds / 2.0))) y="101" text-anchor="middle" { (number + 1) }
                        }
                    }
                }
                @for (at, word) in ticks(scale) {
                    line class="axis" x1=(percent(x(at))) x2=(percent(x(at))) y1="112" y2="117" {}
                    text class="soft" x=(percent(x(at))) y="131" text-anchor="middle" { (word) }
                }
                (mark(DISASTER, 14, "disaster"))
                @if let Some(first) = first { (mark(x(first + excluded), 34, &back(report, first, excluded))) }
                @if let Some(verified) = verified { (mark(x(verified), 54, &format!("all checked {}", span(verified)))) }
                @match (on_scale, objective) {
                    (Some(objective), _) => {
                        line class="objective" x1=(percent(x(objective))) x2=(percent(x(objective))) y1="60" y2="150" {}
                        (label(x(objective), 166, &format!("objective {}", span(objective))))
                    }
                    (None, Some(objective)) => {
                        text class="soft" x="100%" y="150" text-anchor="end" { "objective " (span(objective)) " →" }
                        text class="soft" x="100%" y="166" text-anchor="end" { "off this scale: " (format!("{:.0}", objective / end)) " times as far" }
                    }
                    (None, None) => {}
                }
            }
        }
    }
}

/// What the mark of the first query says.
fn back(report: &Report, first: f64, excluded: f64) -> String {
    let word = if report.has_database() { "first query" } else { "back" };
    let only = if excluded > 0.0 { format!(" and {} that only a drill takes", span(excluded)) } else { String::new() };
    format!("{word} {}{only}", span(first))
}

/// A moment: a line, and a word at its upper end.
fn mark(x: f64, y: u32, word: &str) -> Markup {
    html! {
        line class="mark" x1=(percent(x)) x2=(percent(x)) y1=(y - 10) y2="116" {}
        (label(x, y, word))
    }
}

/// A word beside a line, on the side that has room.
fn label(x: f64, y: u32, word: &str) -> Markup {
    let (anchor, dx) = if x > 60.0 { ("end", "-5") } else { ("start", "5") };
    html! { text class="strong" x=(percent(x)) dx=(dx) y=(y) text-anchor=(anchor) { (word) } }
}

/// The picture in words, for those who do not see it.
fn description(report: &Report) -> String {
    let first =
        report.rto_seconds().map_or("nothing answered".to_owned(), |seconds| format!("the system was back after {}", span(seconds)));
    let verified = report.rto.verified_seconds.map_or(String::new(), |seconds| format!(", all was checked after {}", span(seconds)));
    let lost =
        report.rpo.seconds.map_or("how much was lost is not known".to_owned(), |seconds| format!("commits of {} were lost", span(seconds)));
    format!("At the disaster {lost}; {first}{verified}. The table below has the phases.")
}

/// Marks of an axis that ends at so many seconds: four or five of them, at round numbers.
fn ticks(scale: f64) -> Vec<(f64, String)> {
    const STEPS: [f64; 22] = [
        0.1,
        0.2,
        0.5,
        1.0,
        2.0,
        5.0,
        10.0,
        20.0,
        30.0,
        60.0,
        120.0,
        300.0,
        600.0,
        1200.0,
        1800.0,
        3600.0,
        7200.0,
        14_400.0,
        28_800.0,
        86_400.0,
        604_800.0,
        2_592_000.0,
    ];
    let Some(step) = STEPS.into_iter().find(|step| scale / step <= 4.0) else { return Vec::new() };
    let round = |seconds: f64| match seconds {
        ..60.0 => format!("{seconds} s"),
        ..3600.0 => format!("{} min", seconds / 60.0),
        ..172_800.0 => format!("{} h", seconds / 3600.0),
        _ => format!("{} d", seconds / 86_400.0),
    };
    (1..=4).map(|number| step * f64::from(number)).filter(|at| at / scale < 0.97).map(|at| (at, round(at))).collect()
}

fn phases(report: &Report) -> Markup {
    let first = report.rto_seconds().and_then(measured);
    html! {
        table class="phases" {
            caption { "Where the time went" }
            thead { tr { th scope="col" { "Phase" } th scope="col" class="right" { "Began after" } th scope="col" class="right" { "Took" } th scope="col" class="right" { "Of the way back" } } }
            tbody {
                @for (number, phase) in report.rto.phases.iter().enumerate() {
                    tr {
                        th scope="row" {
                            svg class="swatch" width="12" height="12" aria-hidden="true" {
                                rect class={ "phase p" (number % 8) (if phase.before_first_query { "" } else { " later" }) } width="12" height="12" {}
                            }
                            " " (number + 1) " " (shown(&phase.name))
                        }
                        td class="right" { (span(phase.from_seconds)) }
                        td class="right" { (span(phase.seconds)) }
                        td class="right" {
                            @match (phase.before_first_query, first, measured(phase.seconds)) {
                                (true, Some(first), Some(seconds)) if first > 0.0 => { (format!("{:.0} %", 100.0 * seconds / first)) }
                                (true, ..) => { "–" }
                                (false, Some(first), _) if phase.from_seconds < first + report.rto.excluded_seconds => { "only a drill's" }
                                (false, ..) => { "checks" }
                            }
                        }
                    }
                }
            }
        }
    }
}
