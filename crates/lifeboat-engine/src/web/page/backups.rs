//! `/backups`: all of them, a hundred at a time, and those of one state.

use lifeboat_core::status::{BackupSeen, BackupState, SignatureState};
use maud::{Markup, html};

use super::super::api::Filter;
use super::{BackupsPage, Leaf, PAGE_ROWS, Tone, View, at, badge, layout, nothing, seen, table, told};
use crate::drill::page::words::{bytes, count};

/// Columns of a table of backups.
pub(super) const HEADS: [&str; 6] = ["Backup", "State", "Of which moment", "Database", "Size", "Kept"];

/// So many pins are named.
const MAX_PINS: usize = 5;

/// The page.
pub fn page(view: &View<'_>, query: &BackupsPage) -> String {
    let backups = view.status.and_then(|status| status.observed.backups.as_deref());
    let main = html! {
        @match (view.status, backups) {
            (None, _) => { (nothing(view)) }
            (Some(_), None) => {
                (seen(view))
                h1 { "Backups" }
                p { (badge(Tone::Unknown, "not known")) " Nobody could look at them." }
            }
            (Some(_), Some(all)) => {
                (seen(view))
                h1 { "Backups" }
                (filters(all, query.state))
                (rows(all, query))
            }
        }
    };
    layout(view, "backups", "backups", None, &main)
}

const fn words(filter: Filter) -> &'static str {
    match filter {
        Filter::All => "All",
        Filter::Usable => "Usable",
        Filter::Healthy => "Healthy",
        Filter::Degraded => "Degraded",
        Filter::Unreadable => "Unreadable",
        Filter::NotProven => "Not proven",
        Filter::Pinned => "Pinned",
        Filter::Expired => "Expired",
    }
}

fn filters(all: &[BackupSeen], here: Filter) -> Markup {
    html! {
        nav class="filters" aria-label="Which backups" {
            ul {
                @for filter in Filter::ALL {
                    li {
                        a href={ "backups?state=" (filter.name()) } aria-current=[(filter == here).then_some("true")] {
                            (words(filter)) " (" (count(all.iter().filter(|backup| filter.takes(backup)).count() as u64)) ")"
                        }
                    }
                }
            }
        }
    }
}

fn rows(all: &[BackupSeen], query: &BackupsPage) -> Markup {
    let these: Vec<&BackupSeen> = all.iter().filter(|backup| query.state.takes(backup)).collect();
    let leaf = Leaf::of(these.len(), query.page);
    let shown: Vec<Vec<Markup>> = these.iter().skip(leaf.skip).take(PAGE_ROWS).map(|backup| row(backup)).collect();
    let address = format!("backups?state={}&page=", query.state.name());
    html! {
        @if these.is_empty() {
            p { @if all.is_empty() { (badge(Tone::Bad, "none")) " There is no backup." } @else { "There is none of these." } }
        } @else {
            (table(&format!("{} to {} of {}, the newest first", leaf.skip + 1, leaf.skip + shown.len(), count(these.len() as u64)), "backups", &HEADS, shown))
            (leaf.links("backups", &address))
        }
    }
}

/// A backup in a table of [`HEADS`].
pub(super) fn row(backup: &BackupSeen) -> Vec<Markup> {
    vec![
        html! { (told(&backup.id)) },
        html! {
            (state(backup))
            @if let Some(problem) = &backup.problem { p class="small" { (told(problem)) } }
        },
        html! {
            @match (backup.consistent_at, backup.started) {
                (Some(time), _) | (None, Some(time)) => { (at(time)) }
                (None, None) => { "not known" }
            }
        },
        html! {
            @match &backup.copy {
                Some(copy) => { @if let Some(postgres) = backup.postgres { "PostgreSQL " (postgres) ", " } (told(copy)) }
                None => { "none" }
            }
            @if let Some(artifacts) = backup.artifacts { p class="small" { (count(artifacts)) " artifacts" } }
        },
        html! { (bytes(backup.plain_bytes)) p class="small" { (bytes(backup.stored_bytes)) " stored, " (count(backup.files)) " files" } },
        html! {
            @for pin in backup.pins.iter().take(MAX_PINS) { p { "pinned: " (told(pin)) } }
            @if backup.pins.len() > MAX_PINS { p { (count((backup.pins.len() - MAX_PINS) as u64)) " more pins" } }
            @match backup.whole_until {
                Some(end) => { p { "expired, whole until " (at(end)) } }
                None => { @if backup.pins.is_empty() { "by the rules" } }
            }
        },
    ]
}

fn state(backup: &BackupSeen) -> Markup {
    let (tone, words) = match (backup.state, backup.signature) {
        (BackupState::Unreadable, _) => (Tone::Bad, "unreadable"),
        (_, SignatureState::NotValid) => (Tone::Bad, "signature does not hold"),
        (_, SignatureState::NotChecked) => (Tone::Unknown, "signature not checked"),
        (BackupState::Degraded, _) => (Tone::Doubt, "damaged pages"),
        (BackupState::Healthy, SignatureState::Valid) => (Tone::Good, "usable"),
    };
    badge(tone, words)
}
