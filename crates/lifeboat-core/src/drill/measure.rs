//! From what was timed to what is reported: the way from the disaster to the first query, and how much was lost.

use jiff::Timestamp;

use super::{Objectives, Phase, Projection, Rpo, Rto};

/// The phases whose time grows with the size of what is restored. The others depend on the WAL, or on nothing.
const GROWS: [&str; 3] = ["fetch", "artifacts", "restore"];

/// The way back, from its parts. Where there is no database to answer, the time until everything was checked counts. `excluded_seconds`: time before the first query that only a drill spends. `production_bytes`: the size of the
/// database for which the objective holds, if it is another than the `bytes` that were restored.
#[expect(clippy::too_many_arguments, reason = "each is one thing that was measured or asked for")]
pub fn rto(
    phases: Vec<Phase>,
    first_query_seconds: Option<f64>,
    verified_seconds: Option<f64>,
    excluded_seconds: f64,
    bytes: u64,
    production_bytes: Option<u64>,
    has_database: bool,
    objectives: Objectives,
) -> Rto {
    let first_query_seconds = first_query_seconds.map(|seconds| (seconds - excluded_seconds).max(0.0));
    let projection = production_bytes.filter(|other| *other != bytes && bytes > 0).zip(first_query_seconds);
    let projection = projection.map(|(other, seconds)| {
        let factor = other as f64 / bytes as f64;
        let growing: f64 = phases.iter().filter(|p| p.before_first_query && GROWS.contains(&p.name.as_str())).map(|p| p.seconds).sum();
        let how = format!("{growing:.1} s of it grow with the size: {factor:.2} times as much; the rest stays");
        Projection { bytes: other, seconds: seconds + growing * (factor - 1.0), how }
    });
    let within = |seconds: Option<f64>| seconds.is_some_and(|seconds| seconds <= objectives.rto_seconds);
    let counts = if has_database { first_query_seconds } else { verified_seconds };
    let met = within(counts) && projection.as_ref().is_none_or(|projection| within(Some(projection.seconds)));
    Rto { first_query_seconds, verified_seconds, phases, excluded_seconds, projection, met }
}

/// How much would have been lost. `recovered`: the last moment that came back, and where that is from.
pub fn rpo(failure: Timestamp, recovered: Option<(Timestamp, &str)>, objectives: Objectives) -> Rpo {
    // A moment behind the disaster, by another clock, is no gain.
    let seconds = recovered.map(|(moment, _)| failure.duration_since(moment).as_secs_f64().max(0.0));
    let met = seconds.is_some_and(|seconds| seconds <= objectives.rpo_seconds);
    let source = recovered.map_or("none", |(_, source)| source).to_owned();
    Rpo { failure, recovered: recovered.map(|(moment, _)| moment), source, seconds, met }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, seconds: f64, before_first_query: bool) -> Phase {
        Phase { name: name.into(), from_seconds: 0.0, seconds, before_first_query }
    }

    const OBJECTIVES: Objectives = Objectives { rto_seconds: 100.0, rpo_seconds: 60.0 };

    #[test]
    fn what_only_a_drill_does_does_not_count_and_what_grows_is_projected() {
        let phases = vec![phase("fetch", 20.0, true), phase("replay", 10.0, true), phase("verify", 500.0, false)];
        let measured = rto(phases.clone(), Some(37.0), Some(600.0), 7.0, 1000, None, true, OBJECTIVES);
        assert_eq!((measured.first_query_seconds, measured.met), (Some(30.0), true));
        assert_eq!(measured.projection, None);
        let projected = rto(phases.clone(), Some(37.0), Some(600.0), 7.0, 1000, Some(4000), true, OBJECTIVES);
        assert_eq!((projected.projection.as_ref().unwrap().seconds, projected.met), (90.0, true));
        let missed = rto(phases, Some(37.0), Some(600.0), 7.0, 1000, Some(5000), true, OBJECTIVES);
        assert_eq!((missed.projection.unwrap().seconds, missed.met), (110.0, false), "the production's size counts");
        assert!(!rto(Vec::new(), None, None, 0.0, 1000, None, true, OBJECTIVES).met, "no answer is no time at all");
        assert!(rto(Vec::new(), None, Some(3.0), 0.0, 0, None, false, OBJECTIVES).met, "artifacts alone answer nothing");
    }

    #[test]
    fn what_did_not_come_back_is_no_small_loss() {
        let failure: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let lost = rpo(failure, Some((at("2026-03-01T11:59:30Z"), "commit")), OBJECTIVES);
        assert_eq!((lost.seconds, lost.met, lost.source.as_str()), (Some(30.0), true, "commit"));
        assert!(!rpo(failure, Some((at("2026-03-01T11:58:30Z"), "commit")), OBJECTIVES).met);
        assert_eq!(rpo(failure, Some((at("2026-03-01T12:00:30Z"), "commit")), OBJECTIVES).seconds, Some(0.0));
        let nothing = rpo(failure, None, OBJECTIVES);
        assert_eq!((nothing.seconds, nothing.met, nothing.source.as_str()), (None, false, "none"));
    }
}
