//! The pages: functions of what was seen, of who looks, and of the time.
//!
//! No script at all, no font and no picture from elsewhere; the policy (CSP) that goes with a page allows its own style, by hash, and its own icon.
//! Everything on a page is text from elsewhere, so all of it goes through maud, which escapes, and [`told`], which spells out what would hide or turn
//! around, and ends what does not end. Lists have limits, so that no page grows with the age of a system.
//!
//! Colour never says anything alone: every state has a word and a symbol. What a picture shows also stands in a table below it. A page does not renew
//! itself unless it is asked to (`/?refresh=60`): who reads slowly, or has it read aloud, would be thrown back to its beginning.

mod alerts;
mod backups;
mod drills;
mod overview;
mod window;

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use lifeboat_core::drill::span;
use lifeboat_core::plain::plain;
use lifeboat_core::status::{Severity, Status, Verdict};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Deserialize;

use super::AgentView;
use super::api::Filter;
use crate::drill::page::words::{count, moment};
use crate::sha256;

pub use alerts::page as alerts;
pub use backups::page as backups;
pub use drills::page as drills;
pub use overview::page as overview;

const STYLE: &str = include_str!("style.css");

/// What a page is made of.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What was last seen; `None`: nothing yet.
    pub status: Option<&'a Status>,
    /// Who looks.
    pub agent: &'a AgentView,
    /// When the page is made.
    pub now: Timestamp,
}

/// What can be said behind `/?`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Overview {
    /// The page is loaded anew after so many seconds, 60 at least.
    pub refresh: Option<u64>,
}

/// What can be said behind `/backups?`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BackupsPage {
    /// From 1.
    pub page: Option<usize>,
    /// Which.
    pub state: Filter,
}

/// What can be said behind `/drills?` and `/alerts?`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ListPage {
    /// From 1.
    pub page: Option<usize>,
}

/// What browsers are told to allow.
pub fn policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let style = format!("'sha256-{}'", BASE64.encode(sha256::of(STYLE.as_bytes()).0));
        format!("default-src 'none'; style-src {style}; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    });
    &POLICY
}

/// How something stands: a symbol and a colour that say the same as the word beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Good,
    Doubt,
    Bad,
    Unknown,
    None,
}

impl Tone {
    const fn symbol(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Doubt => "!",
            Self::Bad => "✗",
            Self::Unknown => "?",
            Self::None => "–",
        }
    }

    const fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Doubt => "gap",
            Self::Bad => "bad",
            Self::Unknown | Self::None => "none",
        }
    }

    const fn of(severity: Severity) -> Self {
        match severity {
            Severity::Critical => Self::Bad,
            Severity::Warning => Self::Doubt,
        }
    }
}

/// The icon of this name, which shows in the tab what the page says.
pub fn icon(name: &str) -> Option<String> {
    // A tab is light or dark, whatever the page is.
    let (colour, mark) = match name {
        "good.svg" => ("#1a7f37", "M9 17l5 5 10-12"),
        "gap.svg" => ("#9a6700", "M16 7v11m0 5v2"),
        "bad.svg" => ("#cf222e", "M10 10l12 12m0-12l-12 12"),
        "none.svg" => ("#57606a", "M11 12a5 5 0 1 1 7 4.5q-2 1-2 3m0 4v2"),
        _ => return None,
    };
    Some(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="16" fill="{colour}"/><path d="{mark}" fill="none" stroke="#fff" stroke-width="3.5" stroke-linecap="round" stroke-linejoin="round"/></svg>"##
    ))
}

/// What a page says first.
struct Outlook {
    tone: Tone,
    /// For the title, in a word or two.
    word: &'static str,
    heading: String,
}

impl View<'_> {
    /// How old what was seen is, and whether that is too old.
    fn age(&self) -> Option<(u64, bool)> {
        self.status.map(|status| self.agent.age(status.observed.at, self.now))
    }

    fn is_stale(&self) -> bool {
        self.age().is_some_and(|(_, stale)| stale)
    }

    fn name(&self) -> &str {
        self.status.map_or(&self.agent.name, |status| &status.observed.name)
    }

    fn outlook(&self) -> Outlook {
        let outlook = |tone, word, heading: &str| Outlook { tone, word, heading: heading.to_owned() };
        let Some(status) = self.status else { return outlook(Tone::Unknown, "nothing seen", "Unknown: nobody has looked yet") };
        if let Some((age, true)) = self.age() {
            return outlook(Tone::Bad, "not seen", &format!("Unknown: nobody has looked for {}", span(age as f64)));
        }
        match status.answer.verdict {
            Verdict::Recoverable => outlook(Tone::Good, "recoverable", "Yes, it can be recovered"),
            Verdict::AtRisk => outlook(Tone::Doubt, "at risk", "Yes, but something speaks against it"),
            Verdict::NotRecoverable => outlook(Tone::Bad, "not recoverable", "No, there is nothing to recover from"),
            Verdict::Unknown => outlook(Tone::Unknown, "unknown", "Unknown: nobody could look"),
        }
    }
}

/// The longest text from elsewhere that a page repeats, in characters: a message of an error fits.
const MAX_TEXT: usize = 400;
/// The most rows of a list that has no page of its own.
const MAX_ROWS: usize = 40;

/// Text from elsewhere: escaped by the template, what hides or turns around spelled out, in a direction of its own, and with an end.
fn told(text: &str) -> Markup {
    html! { bdi { (ended(text)) } }
}

/// The same where no element may stand.
fn ended(text: &str) -> String {
    let rest = text.chars().skip(MAX_TEXT).count();
    let shown = plain(&text.chars().take(MAX_TEXT).collect::<String>());
    if rest > 0 { format!("{shown} … ({} more characters)", count(rest as u64)) } else { shown }
}

fn badge(tone: Tone, words: &str) -> Markup {
    /// What is longer may break: a word or two stay in one line.
    const SHORT: usize = 24;
    html! { span class={ "badge " (tone.class()) @if words.chars().count() > SHORT { " long" } } { span aria-hidden="true" { (tone.symbol()) } " " (words) } }
}

/// A moment, and for programs the same.
fn at(time: Timestamp) -> Markup {
    html! { time datetime=(time) { (moment(time)) } }
}

/// A duration in seconds.
fn lasting(seconds: u64) -> String {
    const DAY: u64 = 86_400;
    if seconds > DAY && seconds.is_multiple_of(DAY) { format!("{} days", count(seconds / DAY)) } else { span(seconds as f64) }
}

/// How long before the other moment one was; or after it.
fn before(time: Timestamp, seen: Timestamp) -> String {
    let seconds = seen.duration_since(time).as_secs_f64();
    if seconds < 0.0 { format!("in {}", span(-seconds)) } else { format!("{} before", span(seconds)) }
}

/// A table whose rows begin with what they are of. Its roles are written down: on a telephone the rows are boxes, and are none any more otherwise.
fn table(caption: &str, class: &str, heads: &[&str], rows: Vec<Vec<Markup>>) -> Markup {
    html! {
        table class={ "wide " (class) } role="table" {
            caption { (caption) }
            thead role="rowgroup" { tr role="row" { @for head in heads { th role="columnheader" scope="col" { (head) } } } }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" {
                        @for (number, cell) in row.into_iter().enumerate() {
                            @if number == 0 {
                                th role="rowheader" scope="row" data-head=(heads[number]) { (cell) }
                            } @else {
                                td role="cell" data-head=(heads[number]) { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A table of at most [`MAX_ROWS`], and how many more there are.
fn limited<T>(caption: &str, class: &str, heads: &[&str], all: &[T], row: impl Fn(&T) -> Vec<Markup>) -> Markup {
    html! {
        (table(caption, class, heads, all.iter().take(MAX_ROWS).map(row).collect()))
        (more(all.len(), MAX_ROWS))
    }
}

/// How many are not shown.
fn more(all: usize, shown: usize) -> Markup {
    html! { @if all > shown { p class="small" { (count((all - shown) as u64)) " more are not shown; the API has them." } } }
}

/// Facts, each with its name. What is not known is left out.
fn facts(facts: Vec<(&str, Option<Markup>)>) -> Markup {
    html! { dl class="facts" { @for (name, value) in facts { @if let Some(value) = value { div { dt { (name) } dd { (value) } } } } } }
}

/// So many rows on one page.
const PAGE_ROWS: usize = super::api::PAGE;

/// The part of a list that one page shows.
struct Leaf {
    /// From 1.
    number: usize,
    pages: usize,
    /// Rows before it.
    skip: usize,
}

impl Leaf {
    /// The wished page of so many rows; the last one, if there are not so many.
    fn of(rows: usize, wished: Option<usize>) -> Self {
        let pages = rows.div_ceil(PAGE_ROWS).max(1);
        let number = wished.unwrap_or(1).clamp(1, pages);
        Self { number, pages, skip: (number - 1) * PAGE_ROWS }
    }

    /// Links to the pages around it. `address` has everything but the number.
    fn links(&self, what: &str, address: &str) -> Markup {
        let to = |number: usize, words: &str| html! { li { a href={ (address) (number) } { (words) } } };
        html! {
            @if self.pages > 1 {
                nav class="pager" aria-label={ "Pages of " (what) } {
                    ul {
                        @if self.number > 1 { (to(1, "First")) (to(self.number - 1, "Previous")) }
                        li aria-current="page" { "Page " (self.number) " of " (self.pages) }
                        @if self.number < self.pages { (to(self.number + 1, "Next")) (to(self.pages, "Last")) }
                    }
                }
            }
        }
    }
}

/// The pages that there are: address, name, and how the overview's is asked for from the others.
const PAGES: [(&str, &str); 4] = [("./", "Status"), ("backups", "Backups"), ("drills", "Drills"), ("alerts", "Alerts")];

/// A whole page.
fn layout(view: &View<'_>, here: &str, what: &str, refresh: Option<u64>, main: &Markup) -> String {
    let outlook = view.outlook();
    let alerts = view.status.map_or(0, |status| status.alerts.len());
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (head(outlook.tone, ""))
                @if let Some(seconds) = refresh { meta http-equiv="refresh" content=(seconds); }
                title { (outlook.tone.symbol()) " " (ended(view.name())) ": " (what) }
            }
            body {
                a class="skip" href="#main" { "Skip to the content" }
                header class="top" {
                    p class="brand" { "lifeboat" span class="system" { (told(view.name())) } }
                    nav aria-label="Pages" {
                        ul {
                            @for (address, name) in PAGES {
                                li {
                                    a href=(address) aria-current=[(address == here).then_some("page")] {
                                        (name) @if name == "Alerts" && alerts > 0 { " (" (count(alerts as u64)) ")" }
                                    }
                                }
                            }
                        }
                    }
                }
                main id="main" tabindex="-1" { (main) }
                (footer(view))
            }
        }
    };
    page.into_string()
}

/// `root` leads to `/`; it is empty where the page stands there, so that a proxy may put all of it below a path.
fn head(tone: Tone, root: &str) -> Markup {
    html! {
        meta charset="utf-8";
        meta name="viewport" content="width=device-width, initial-scale=1";
        meta name="color-scheme" content="light dark";
        link rel="icon" type="image/svg+xml" href={ (root) "icon/" (tone.class()) ".svg" };
        style { (PreEscaped(STYLE)) }
    }
}

fn footer(view: &View<'_>) -> Markup {
    let agent = view.agent;
    html! {
        footer {
            p {
                "Made " (at(view.now)) " by the agent on " (told(&agent.host)) " (" (told(&agent.program)) "), which runs since " (at(agent.since))
                " and looks every " (lasting(agent.interval_seconds)) ". Dates are UTC. This page is read only and makes no request to anywhere else."
            }
            p { "For programs: " a href="api/v1/status" { "/api/v1/status" } ", " a href="metrics" { "/metrics" } "." }
        }
    }
}

/// When what is below was seen; loud when that is long ago.
fn seen(view: &View<'_>) -> Markup {
    let Some(status) = view.status else { return html! {} };
    let (age, stale) = view.agent.age(status.observed.at, view.now);
    html! {
        @if stale {
            div class="notice bad" {
                p { strong { (badge(Tone::Bad, "old")) " What follows was seen " (at(status.observed.at)) ", " (lasting(age)) " ago. It need not hold any more." } }
                p { "The agent looks every " (lasting(view.agent.interval_seconds)) ". " code { "lifeboat status" } " on its host looks now." }
                (trouble(view))
            }
        } @else {
            p class="seen" {
                "Seen " (at(status.observed.at)) " from " (told(&status.observed.host)) ", " (lasting(age)) " before this page was made."
            }
            (trouble(view))
        }
    }
}

/// Why the agent could not look.
fn trouble(view: &View<'_>) -> Markup {
    html! { @if let Some(trouble) = &view.agent.trouble { p { (badge(Tone::Bad, "last look failed")) " " (told(trouble)) } } }
}

/// The page of something that went wrong.
pub fn error(status: u16, message: &str, hint: &str) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head { (head(Tone::Unknown, "/")) title { (status) " – lifeboat" } }
            body {
                main id="main" {
                    div class="verdict none" {
                        p class="over" { "lifeboat · " (status) }
                        h1 { (told(message)) }
                        p { (told(hint)) }
                    }
                    p { a href="/" { "To the status" } }
                }
            }
        }
    };
    page.into_string()
}

/// Nothing to list, and why.
fn nothing(view: &View<'_>) -> Markup {
    html! {
        h1 { "Nothing was seen yet" }
        p { "The agent runs since " (at(view.agent.since)) " and has not seen the system yet." }
        (trouble(view))
    }
}
