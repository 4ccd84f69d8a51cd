//! A [`Status`] as metrics, for Prometheus and for everything that reads its formats.
//!
//! What nobody could look at has no series: it must not be taken for 0. Timestamps are timestamps and no ages, so that they stay true while nobody
//! looks. Labels have a bound: systems, repositories, slots, keys are, backups and runs are not.

mod catalogue;
mod collect;
mod reference;
mod textfile;

use std::borrow::Cow;

use jiff::Timestamp;
use lifeboat_core::status::{Outcome, Status};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

pub use catalogue::{CATALOGUE, Kind, Metric};
pub use reference::reference;
pub use textfile::write_textfile;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4, which everybody reads; the textfile collector of node_exporter nothing else.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The content type of an answer.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The one that somebody likes best who sends this `Accept` (RFC 9110, 12.5.1). Whoever asks for neither gets [`Format::Prometheus`].
    pub fn accepted(accept: &str) -> Self {
        let mut open_metrics: Option<f32> = None;
        let mut prometheus: Option<f32> = None;
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let weight = weight.map_or(Some(1.0), |weight| weight.parse().ok()).filter(|weight| *weight > 0.0);
            let liked = match media.as_str() {
                "application/openmetrics-text" => &mut open_metrics,
                "text/plain" | "text/*" | "*/*" => &mut prometheus,
                _ => continue,
            };
            // The same type may stand there once for each version of it.
            if weight > *liked {
                *liked = weight;
            }
        }
        if open_metrics.is_some() && open_metrics >= prometheus { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// What an agent knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFacts {
    /// When it began.
    pub started: Timestamp,
    /// It is the one that acts; another one of the system waits.
    pub leads: bool,
    /// What it sent, for each sink that is configured.
    pub deliveries: Vec<Deliveries>,
    /// What it ran.
    pub runs: Vec<TaskRuns>,
}

/// What an agent sent to a sink since it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deliveries {
    /// The sink's name.
    pub sink: String,
    /// Messages that were to be sent.
    pub total: u64,
    /// Those of them that did not arrive.
    pub failed: u64,
}

/// How often a task ended in this way since the agent began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRuns {
    /// The task's name: that of the operation.
    pub operation: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How often.
    pub total: u64,
}

/// How a system stands, as metrics.
pub fn exposition(status: &Status, agent: Option<&AgentFacts>, format: Format) -> String {
    // Two systems may write into one directory of node_exporter: without this label even the program's version would be there twice.
    let system = (Cow::Borrowed("system"), Cow::Owned(status.observed.name.clone()));
    let mut registry = Registry::with_labels(std::iter::once(system));
    registry.register_collector(Box::new(collect::collect(status, agent)));
    let mut out = String::new();
    let written = match format {
        Format::Prometheus => prometheus_text::encode(&mut out, &registry),
        Format::OpenMetrics => text::encode(&mut out, &registry),
    };
    written.expect("a String takes everything, and every value is one that can be written");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_gets_what_they_like_best() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for likes_open_metrics in [prometheus_2, prometheus_3, "Application/OpenMetrics-Text", "text/plain, application/openmetrics-text"] {
            assert_eq!(Format::accepted(likes_open_metrics), Format::OpenMetrics, "{likes_open_metrics}");
        }
        let does_not = [
            "",
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;q=0.3, text/plain;q=0.5",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=nothing",
            ";;,,q=1",
        ];
        for accept in does_not {
            assert_eq!(Format::accepted(accept), Format::Prometheus, "{accept}");
        }
    }
}
