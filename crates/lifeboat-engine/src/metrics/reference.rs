//! The catalogue as a page for people: the second half of `docs/metrics.md`.

use std::fmt::Write as _;

use super::{CATALOGUE, Metric};

/// What a metric whose name begins so is about, in the order of the catalogue.
const CHAPTERS: &[(&str, &[&str])] = &[
    ("The look", &["lifeboat_build_info", "lifeboat_status_"]),
    (
        "The answer",
        &["lifeboat_recover", "lifeboat_answer", "lifeboat_rpo_", "lifeboat_rto_", "lifeboat_drill_age_", "lifeboat_objective_"],
    ),
    ("Server and repositories", &["lifeboat_server_", "lifeboat_repository_"]),
    ("Backups", &["lifeboat_backup"]),
    ("WAL", &["lifeboat_wal_", "lifeboat_receiver_", "lifeboat_slot_"]),
    ("Artifacts", &["lifeboat_artifacts"]),
    ("Drills", &["lifeboat_drill"]),
    ("Keys and disks", &["lifeboat_key_", "lifeboat_disk_"]),
    ("Runs and tasks", &["lifeboat_run_", "lifeboat_task_"]),
    ("Alerts", &["lifeboat_alert_"]),
    ("The agent", &["lifeboat_agent_"]),
];

fn chapter(metric: &Metric) -> Option<&'static str> {
    CHAPTERS.iter().find(|(_, begins)| begins.iter().any(|begin| metric.name.starts_with(begin))).map(|(title, _)| *title)
}

/// Every metric in a table, in Markdown.
pub fn reference() -> String {
    let mut page = String::new();
    let mut last = None;
    for metric in CATALOGUE {
        let title = chapter(metric);
        if title != last {
            let title = title.unwrap_or("More");
            let _ = write!(page, "\n### {title}\n\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
        }
        last = title;
        let unit = metric.unit().map_or("–".to_owned(), |unit| unit.as_str().to_owned());
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let labels = if labels.is_empty() { "–" } else { &labels };
        let _ = writeln!(page, "| `{}` | {} | {unit} | {labels} | {} |", metric.name, metric.kind.word(), metric.help);
    }
    page.trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_chapter_and_every_chapter_is_there_once() {
        for metric in CATALOGUE {
            assert!(chapter(metric).is_some(), "{}", metric.name);
        }
        let page = reference();
        for (title, _) in CHAPTERS {
            assert_eq!(page.matches(&format!("### {title}\n")).count(), 1, "{title}");
        }
        assert_eq!(page.matches("\n| `lifeboat_").count(), CATALOGUE.len());
    }
}
