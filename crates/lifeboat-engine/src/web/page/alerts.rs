//! `/alerts`: what somebody has to be told, with what to do about it.

use lifeboat_core::alert::{Alert, find};
use lifeboat_core::plain::plain;
use lifeboat_core::status::{Severity, Status};
use maud::{Markup, html};

use super::{Leaf, ListPage, PAGE_ROWS, Tone, View, badge, ended, layout, nothing, seen, told};
use crate::drill::page::words::count;

/// The page.
pub fn page(view: &View<'_>, query: &ListPage) -> String {
    let main = match view.status {
        None => nothing(view),
        Some(status) => {
            let leaf = Leaf::of(status.alerts.len(), query.page);
            html! {
                (seen(view))
                h1 { "Alerts" }
                p { (summary(status)) }
                (list(view, status.alerts.iter().skip(leaf.skip).take(PAGE_ROWS)))
                (leaf.links("alerts", "alerts?page="))
            }
        }
    };
    layout(view, "alerts", "alerts", None, &main)
}

/// The worst of them, on the overview.
pub(super) fn section(view: &View<'_>, status: &Status, most: usize) -> Markup {
    html! {
        section aria-labelledby="alerts" {
            h2 id="alerts" { "Alerts" }
            p { (summary(status)) }
            (list(view, status.alerts.iter().take(most)))
            @if status.alerts.len() > most { p { a href="alerts" { "All " (count(status.alerts.len() as u64)) " alerts" } } }
        }
    }
}

fn summary(status: &Status) -> Markup {
    let critical = status.alerts.iter().filter(|alert| alert.severity == Severity::Critical).count();
    let warnings = status.alerts.len() - critical;
    html! {
        @if status.alerts.is_empty() { (badge(Tone::Good, "none")) " Nobody has to be told anything." }
        @if critical > 0 { (badge(Tone::Bad, &format!("{} critical", count(critical as u64)))) " " }
        @if warnings > 0 { (badge(Tone::Doubt, &format!("{} for the day", count(warnings as u64)))) }
    }
}

fn list<'a>(view: &View<'_>, alerts: impl Iterator<Item = &'a Alert>) -> Markup {
    html! { ul class="alerts" { @for alert in alerts { li class=(Tone::of(alert.severity).class()) { (one(view, alert)) } } } }
}

fn one(view: &View<'_>, alert: &Alert) -> Markup {
    html! {
        p { (badge(Tone::of(alert.severity), alert.severity.word())) " " strong { (told(&alert.summary)) } }
        p class="fix" { span class="name" { "Do:" } " " code { (told(&alert.fix)) } }
        p class="small" {
            code { (told(&alert.key())) } @if let Some(kind) = find(&alert.name) { " · " (kind.when) }
            " · runbook: " (runbook(view, alert))
        }
    }
}

/// Where to read on. A link only where the operator said where, and only to a place that is no script.
fn runbook(view: &View<'_>, alert: &Alert) -> Markup {
    let web = |url: &&str| (url.starts_with("https://") || url.starts_with("http://")) && plain(url) == *url;
    let base = view.agent.runbook_url.as_deref().filter(web);
    match base {
        Some(base) => html! { a rel="noreferrer" href={ (base) "#" (ended(&alert.name)) } { (alert.runbook()) } },
        None => html! { (told(&alert.runbook())) },
    }
}
