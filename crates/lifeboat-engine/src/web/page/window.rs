//! The recovery window as a picture: what can be gone back to, what cannot, and the backups and drills on the way.
//!
//! Shapes have places in percent, so that the picture grows and shrinks with its window and its letters do not. What is narrower than can be seen is
//! drawn as wide as can be seen: a lost minute in a month has to show. The table below has the same in words.

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::drill::Outcome;
use lifeboat_core::status::{BackupSeen, BackupState, DrillSeen, ExceptSeen, MomentSeen, Observed, Status, WindowSeen};
use maud::{Markup, html};

use super::{Tone, at, badge, lasting, more, table, told};
use crate::drill::page::like;
use crate::drill::page::words::{self, count, percent};

/// So many windows are drawn, the youngest timelines; the table has more.
const MAX_BARS: usize = 3;
/// And so many rows has the table.
const MAX_WINDOWS: usize = 20;
/// So many stretches that cannot be reached are told of each.
const MAX_STRETCHES: usize = 10;
/// Marks nearer to each other than this, in percent, are one: the worst of them.
const MARKS_APART: f64 = 1.2;
/// Nothing that matters is narrower, in percent.
const LEAST_WIDTH: f64 = 0.6;
/// Windows longer than this are drawn once more, near their end, where most disasters want to go back to.
const LONG: SignedDuration = SignedDuration::from_hours(72);
const NEAR: SignedDuration = SignedDuration::from_hours(24);

/// The part of the page.
pub(super) fn section(status: &Status) -> Markup {
    let observed = &status.observed;
    let windows = windows(observed);
    html! {
        section aria-labelledby="window" {
            h2 id="window" { "Recovery window" }
            @match beginning(observed) {
                None => { p { "There is no moment to go back to." } }
                Some(first) => {
                    p { (sentence(status, &windows)) }
                    (picture(status, "all", "From the first moment on", first))
                    @if observed.at.duration_since(first) > LONG { (picture(status, "near", "The last 24 hours of it", observed.at.saturating_sub(NEAR).unwrap_or(first))) }
                    (legend(status))
                    @if !windows.is_empty() {
                        (table("Moments that can be gone back to", "windows", &["Timeline", "From", "To", "But for"], windows.iter().take(MAX_WINDOWS).map(|window| row(window)).collect()))
                        (more(windows.len(), MAX_WINDOWS))
                    }
                }
            }
        }
    }
}

/// Windows, the youngest timeline first.
fn windows(observed: &Observed) -> Vec<&WindowSeen> {
    let mut windows: Vec<&WindowSeen> = observed.wal.iter().flat_map(|wal| &wal.windows).collect();
    windows.sort_by_key(|window| std::cmp::Reverse((window.timeline, window.to.time)));
    windows
}

/// The first moment of the picture.
fn beginning(observed: &Observed) -> Option<Timestamp> {
    let backups = observed.backups.iter().flatten().filter(|backup| backup.counts()).filter_map(moment_of);
    observed.wal.iter().flat_map(|wal| &wal.windows).filter_map(|window| window.from.time).chain(backups).min()
}

fn moment_of(backup: &BackupSeen) -> Option<Timestamp> {
    backup.consistent_at.or(backup.started)
}

fn sentence(status: &Status, windows: &[&WindowSeen]) -> Markup {
    let answer = &status.answer;
    let stretches: usize = windows.iter().map(|window| window.except.len()).sum();
    html! {
        @match (windows.is_empty(), answer.from, answer.to) {
            (false, Some(from), Some(to)) => {
                "Any moment from " (at(from)) " to " (at(to))
                @match stretches { 0 => {} 1 => { ", but for one stretch" } many => { ", but for " (count(many as u64)) " stretches" } }
                @if windows.len() > 1 { ", along " (count(windows.len() as u64)) " timelines" }
                "."
            }
            (true, Some(from), Some(to)) => { "Without WAL there are only the moments of backups, from " (at(from)) " to " (at(to)) "." }
            _ => { "Its end is not known." }
        }
    }
}

/// Where on the picture a moment is, in percent; what is outside is at the edge.
struct Scale {
    from: Timestamp,
    seconds: f64,
}

impl Scale {
    fn x(&self, time: Timestamp) -> f64 {
        (100.0 * time.duration_since(self.from).as_secs_f64() / self.seconds).clamp(0.0, 100.0)
    }

    fn has(&self, time: Timestamp) -> bool {
        time >= self.from
    }

    /// Place and width of a stretch, if any of it is on the picture.
    fn stretch(&self, from: Timestamp, to: Timestamp) -> Option<(f64, f64)> {
        if to < self.from || to < from {
            return None;
        }
        let (left, right) = (self.x(from), self.x(to));
        let width = (right - left).max(LEAST_WIDTH);
        Some((left.min(100.0 - width), width))
    }
}

/// Marks that stand apart: the place of each, and the worst of what is there.
fn apart(marks: impl Iterator<Item = (f64, Tone)>, least: f64) -> Vec<(f64, Tone)> {
    let mut marks: Vec<(f64, Tone)> = marks.collect();
    marks.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut out: Vec<(f64, Tone)> = Vec::new();
    for (x, tone) in marks {
        match out.last_mut() {
            Some((last, worst)) if x - *last < least => *worst = worse(*worst, tone),
            _ => out.push((x, tone)),
        }
    }
    out
}

const fn worse(one: Tone, other: Tone) -> Tone {
    const fn rank(tone: Tone) -> u8 {
        match tone {
            Tone::Bad => 0,
            Tone::Doubt => 1,
            Tone::Unknown => 2,
            Tone::None => 3,
            Tone::Good => 4,
        }
    }
    if rank(one) <= rank(other) { one } else { other }
}

fn tone_of_backup(backup: &BackupSeen) -> Tone {
    match (backup.counts(), backup.state) {
        (false, _) => Tone::Bad,
        (true, BackupState::Degraded) => Tone::Doubt,
        (true, _) => Tone::Good,
    }
}

fn tone_of_drill(drill: &DrillSeen) -> Tone {
    match drill.verdict.map(like) {
        Some(Outcome::Passed) => Tone::Good,
        Some(Outcome::Failed) => Tone::Bad,
        Some(Outcome::NotChecked) => Tone::Doubt,
        Some(Outcome::NotApplicable) | None => Tone::Unknown,
    }
}

/// Height of one row: a line of words, and what they are of.
const ROW: u32 = 42;

fn picture(status: &Status, id: &str, title: &str, from: Timestamp) -> Markup {
    let observed = &status.observed;
    let seconds = observed.at.duration_since(from).as_secs_f64();
    if seconds <= 0.0 {
        return html! {};
    }
    let scale = Scale { from, seconds };
    let all = windows(observed);
    let bars: Vec<&WindowSeen> =
        all.iter().copied().filter(|window| window.to.time.is_none_or(|to| scale.has(to))).take(MAX_BARS).collect();
    let backups = observed.backups.iter().flatten();
    let backups = apart(
        backups
            .filter_map(|backup| Some((moment_of(backup).filter(|time| scale.has(*time))?, backup)))
            .map(|(time, backup)| (scale.x(time), tone_of_backup(backup))),
        MARKS_APART,
    );
    let drills = observed.drills.iter().flat_map(|drills| &drills.entries);
    let drills = apart(drills.filter(|drill| scale.has(drill.at)).map(|drill| (scale.x(drill.at), tone_of_drill(drill))), 4.0);
    // A day without a drill is nothing to draw.
    let bottom = ROW * (bars.len() as u32 + if drills.is_empty() { 1 } else { 2 });
    let (backups_y, drills_y) = (ROW * bars.len() as u32, ROW * (bars.len() as u32 + 1));
    html! {
        figure class="window" {
            figcaption id={ "window-" (id) "-title" } { (title) }
            svg width="100%" height=(bottom + 30) role="img" aria-labelledby={ "window-" (id) "-title window-" (id) "-text" } {
                desc id={ "window-" (id) "-text" } { (description(status, &scale, &bars)) }
                @for (number, window) in bars.iter().enumerate() { (bar(window, status, &scale, ROW * number as u32)) }
                text class="soft" x="0" y=(backups_y + 14) { "backups" }
                line class="row" x1="0" x2="100%" y1=(backups_y + 29) y2=(backups_y + 29) {}
                @for (x, tone) in &backups {
                    @if *tone == Tone::Good {
                        rect class="backup" x=(percent(x - 0.25)) y=(backups_y + 22) width="3" height="14" rx="1" {}
                    } @else {
                        (mark(*x, backups_y + 29, *tone))
                    }
                }
                @if !drills.is_empty() {
                    text class="soft" x="0" y=(drills_y + 14) { "drills" }
                    line class="row" x1="0" x2="100%" y1=(drills_y + 29) y2=(drills_y + 29) {}
                    @for (x, tone) in &drills { (mark(*x, drills_y + 29, *tone)) }
                }
                line class="axis" x1="0" x2="100%" y1=(bottom) y2=(bottom) {}
                @for (x, word) in ticks(&scale) {
                    line class="axis" x1=(percent(x)) x2=(percent(x)) y1=(bottom) y2=(bottom + 5) {}
                    text class="soft" x=(percent(x)) y=(bottom + 19) text-anchor="middle" { (word) }
                }
            }
        }
    }
}

/// A circle with the symbol of its tone.
fn mark(x: f64, y: u32, tone: Tone) -> Markup {
    // A whole circle also at the edges.
    let x = percent(x.clamp(1.0, 99.0));
    html! {
        circle class={ "point " (tone.class()) } cx=(x) cy=(y) r="8" {}
        text class="inside" x=(x) y=(y + 4) text-anchor="middle" { (tone.symbol()) }
    }
}

fn bar(window: &WindowSeen, status: &Status, scale: &Scale, y: u32) -> Markup {
    let seen = status.observed.at;
    let from = window.from.time.unwrap_or(scale.from);
    // The end of a window that is still open is the last commit that is there; where no commit tells its time, it is the one that is known.
    let end = window.to.time.or(status.answer.to).unwrap_or(from);
    let open = window.stopped_by.is_none();
    let holes = window.except.iter().rev().filter_map(|except| {
        let (from, to) = (except.from.time?, except.to.time?);
        Some((except.why.is_some(), scale.stretch(from, to)?))
    });
    // As marks: of holes nearer than can be told apart, one is drawn.
    let mut drawn: Vec<(bool, (f64, f64))> = Vec::new();
    for (bad, (left, width)) in holes {
        if let Some(last) = drawn.last_mut().filter(|(_, (at, _))| (at - left).abs() < LEAST_WIDTH && width <= LEAST_WIDTH) {
            last.0 |= bad;
        } else if drawn.len() < 200 {
            drawn.push((bad, (left, width)));
        }
    }
    html! {
        text class="soft" x="0" y=(y + 14) { "timeline " (window.timeline) }
        @if let Some((left, width)) = scale.stretch(from, end) {
            rect class={ "bar" @if !open { " closed" } } x=(percent(left)) y=(y + 20) width=(percent(width)) height="18" rx="2" {}
        }
        @if end < seen && open && let Some((left, width)) = scale.stretch(end, seen) {
            rect class="lost" x=(percent(left)) y=(y + 20) width=(percent(width)) height="18" rx="2" {}
        }
        @for (bad, (left, width)) in &drawn {
            rect class={ "hole" @if *bad { " bad" } } x=(percent(*left)) y=(y + 18) width=(percent(*width)) height="22" {}
            @if *bad { text class="strong bad" x=(percent((left + width / 2.0).clamp(1.5, 98.5))) y=(y + 14) text-anchor="middle" { "✗" } }
        }
        @if !open {
            @let x = scale.x(end);
            text class="strong bad" x=(percent(x)) y=(y + 14) text-anchor=(if x > 70.0 { "end" } else { "start" }) { "✗ ends here" }
        }
    }
}

fn legend(status: &Status) -> Markup {
    let swatch = |class: &str| html! { svg class="swatch" width="22" height="12" aria-hidden="true" { rect class=(class) x="1" y="1" width="20" height="10" rx="2" {} } };
    html! {
        p class="small legend" {
            span { (swatch("bar")) " can be gone back to" }
            span { (swatch("hole bad")) " ✗ WAL is missing" }
            span { (swatch("hole")) " no WAL between two backups" }
            span {
                (swatch("lost")) " would be lost now"
                @if let Some(seconds) = status.answer.rpo_seconds.filter(|seconds| *seconds > 0) { ": " (lasting(seconds)) }
            }
        }
    }
}

/// The picture in words, for those who do not see it.
fn description(status: &Status, scale: &Scale, bars: &[&WindowSeen]) -> String {
    let observed = &status.observed;
    let stretches: usize = bars.iter().map(|window| window.except.len()).sum();
    let backups = observed.backups.iter().flatten().filter(|backup| moment_of(backup).is_some_and(|time| scale.has(time))).count();
    let drills = observed.drills.iter().flat_map(|drills| &drills.entries).filter(|drill| scale.has(drill.at)).count();
    format!(
        "{} windows with {stretches} stretches that cannot be reached, {backups} backups and {drills} drills between {:.0} and {:.0}. The table below has the windows.",
        bars.len(),
        scale.from,
        observed.at
    )
}

/// Marks of the axis: four or five of them, at round times.
fn ticks(scale: &Scale) -> Vec<(f64, String)> {
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    const STEPS_SAY: [(i64, &str); 3] = [(60, "%H:%M:%S"), (DAY, "%H:%M"), (100 * DAY, "%-d %b")];
    const STEPS: [i64; 19] = [
        10,
        60,
        300,
        900,
        HOUR,
        2 * HOUR,
        3 * HOUR,
        6 * HOUR,
        12 * HOUR,
        DAY,
        2 * DAY,
        4 * DAY,
        7 * DAY,
        14 * DAY,
        30 * DAY,
        61 * DAY,
        122 * DAY,
        365 * DAY,
        3650 * DAY,
    ];
    let Some(step) = STEPS.into_iter().find(|step| scale.seconds / (*step as f64) <= 5.0) else { return Vec::new() };
    // A time, a day, a month: what is the same for all marks is not said.
    let format = STEPS_SAY.into_iter().find(|(below, _)| step < *below).map_or("%b %Y", |(_, format)| format);
    let word = |time: Timestamp| time.strftime(format);
    let first = scale.from.as_second().div_euclid(step) + 1;
    (0..6)
        .filter_map(|number| Timestamp::from_second((first + number) * step).ok())
        .map(|time| (100.0 * time.duration_since(scale.from).as_secs_f64() / scale.seconds, time))
        .filter(|(x, _)| (6.0..=94.0).contains(x))
        .map(|(x, time)| (x, word(time).to_string()))
        .collect()
}

fn moment(moment: &MomentSeen) -> Markup {
    html! {
        @if let Some(time) = moment.time { (at(time)) }
        p class="small" { "LSN " (told(&moment.lsn)) }
    }
}

fn row(window: &WindowSeen) -> Vec<Markup> {
    // Those that somebody has to know of first: a hole before the time between two backups.
    let mut stretches: Vec<&ExceptSeen> = window.except.iter().rev().collect();
    stretches.sort_by_key(|except| except.why.is_none());
    let time = |moment: &MomentSeen| moment.time.map_or_else(|| format!("LSN {}", moment.lsn), words::moment);
    vec![
        html! { (window.timeline) p class="small" { "on " (count(window.backups)) " backups" } },
        moment(&window.from),
        html! {
            (moment(&window.to))
            @if let Some(hole) = &window.stopped_by { p { (badge(Tone::Bad, "not further")) " " (told(hole)) } }
        },
        html! {
            @if stretches.is_empty() { "nothing" } @else {
                ul class="plain" {
                    @for except in stretches.iter().take(MAX_STRETCHES) {
                        li {
                            (told(&time(&except.from))) " to " (told(&time(&except.to))) ": "
                            @match &except.why { Some(why) => { (badge(Tone::Bad, "missing")) " " (told(why)) } None => { "no WAL between two backups" } }
                        }
                    }
                }
                (more(stretches.len(), MAX_STRETCHES))
            }
        },
    ]
}
