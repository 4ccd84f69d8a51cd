//! What a real Prometheus and a real node_exporter make of it.

use std::collections::BTreeMap;

use lifeboat_engine::metrics::{CATALOGUE, Format, exposition, write_textfile};

use crate::programs::{Agent, NodeExporter, Prometheus, wait_for};
use crate::system::{HOSTILE, agent, blind, full, hostile, status};
use crate::text::{Labels, read};

/// The series of a job, without what Prometheus puts there itself.
fn of_job(prometheus: &Prometheus, job: &str) -> BTreeMap<Labels, f64> {
    let series = prometheus.query(&format!("{{__name__=~\"lifeboat_.+\", job=\"{job}\"}}")).unwrap();
    let without = |(mut labels, value): (Labels, f64)| {
        labels.remove("job");
        labels.remove("instance");
        (labels, value)
    };
    series.into_iter().map(without).collect()
}

#[test]
fn a_prometheus_reads_both_formats_and_has_our_values() {
    let now = jiff::Timestamp::now();
    let expected = read(&exposition(&status(hostile(now)), Some(&agent(now)), Format::Prometheus)).series;
    let handed_out = Agent::start(move |format| exposition(&status(hostile(now)), Some(&agent(now)), format));
    let jobs = [("open-metrics", handed_out.address, "/metrics"), ("text", handed_out.address, "/text")];
    let prometheus = Prometheus::start(&jobs, &[]);
    for (job, _, path) in jobs {
        wait_for(job, || match prometheus.query(&format!("up{{job=\"{job}\"}} == 1"))?.len() {
            1 => Ok(()),
            _ => Err(prometheus.ask("targets", &[])?.to_string()),
        });
        let found = of_job(&prometheus, job);
        assert_eq!(found, expected, "{job}");
        let format = if path == "/text" { Format::Prometheus } else { Format::OpenMetrics };
        let served = handed_out.served(path);
        assert!(!served.is_empty() && served.iter().all(|one| *one == format), "{job}: {served:?}");
    }
    // Nothing was left out in silence.
    assert_eq!(prometheus.query("count(scrape_samples_scraped == scrape_samples_post_metric_relabeling)").unwrap()[0].1, 2.0);
    assert_eq!(prometheus.query("max(scrape_samples_scraped)").unwrap()[0].1, expected.len() as f64);
    // Types and help texts arrived: of a counter and of an info, OpenMetrics names the family without the suffix.
    let metadata = prometheus.ask("metadata", &[]).unwrap();
    for metric in CATALOGUE {
        let family = metric.name.trim_end_matches("_total").trim_end_matches("_info");
        let all = [metric.name, family].into_iter().filter_map(|name| metadata[name].as_array()).flatten();
        let (mut known, mut last) = (false, String::new());
        for one in all {
            last = one.to_string();
            known |= one["type"] == metric.kind.word() && one["help"] == metric.help;
        }
        assert!(known, "{}: {last}", metric.name);
    }
    // A question that somebody may have.
    let answer = prometheus.query("lifeboat_rpo_seconds{job=\"text\"} < lifeboat_rpo_objective_seconds").unwrap();
    assert_eq!((answer.len(), answer[0].1, answer[0].0["system"].as_str()), (1, 4.0, HOSTILE[6]));
}

#[test]
fn node_exporter_takes_the_textfile() {
    let (directory, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let now = jiff::Timestamp::now();
    let mut other = blind(now);
    other.name = "other".into();
    let mut expected = BTreeMap::new();
    // Two systems of one host, each with a file of its own.
    for (name, observed) in [("lifeboat.prom", full(now)), ("other.prom", other), ("hostile.prom", hostile(now))] {
        let text = exposition(&status(observed), None, Format::Prometheus);
        write_textfile(&directory.path().join(name), &text).unwrap();
        expected.extend(read(&text).series);
    }
    // What a run leaves that is killed while it writes.
    std::fs::write(directory.path().join(".lifeboat.prom.0123456789abcdef"), "lifeboat_recoverable{sys").unwrap();
    let exporter = NodeExporter::start(directory.path(), logs.path());
    let told = read(&exporter.metrics()).series;
    let error = |series: &BTreeMap<Labels, f64>| {
        let found: Vec<f64> =
            series.iter().filter(|(labels, _)| labels["__name__"] == "node_textfile_scrape_error").map(|(_, value)| *value).collect();
        assert_eq!(found.len(), 1);
        found[0]
    };
    assert_eq!(error(&told), 0.0);
    let ours = |series: BTreeMap<Labels, f64>| -> BTreeMap<Labels, f64> {
        series.into_iter().filter(|(labels, _)| labels["__name__"].starts_with("lifeboat_")).collect()
    };
    assert_eq!(ours(told), expected);
    // And it says so when it cannot read one; the others are still there.
    std::fs::write(directory.path().join("broken.prom"), "lifeboat_recoverable{sys\n").unwrap();
    let told = read(&exporter.metrics()).series;
    assert_eq!((error(&told), ours(told).len()), (1.0, expected.len()));

    // The alert that somebody looks no more comes from there, too: the file says when it was written, and not what time it is.
    let prometheus = Prometheus::start(&[("node", exporter.address(), "/metrics")], &[]);
    let age = "time() - lifeboat_status_timestamp_seconds{system=\"other\"}";
    let first = wait_for("a scrape", || prometheus.query(age)?.first().map(|(_, value)| *value).ok_or("nothing".to_owned()));
    wait_for("a later moment", || match prometheus.query(age)?.first() {
        Some((_, later)) if *later > first => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
