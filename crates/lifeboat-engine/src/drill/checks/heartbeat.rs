//! The last moment of production that came back, for the RPO.

use std::time::Duration;

use jiff::Timestamp;

use super::session;
use crate::postgres::{Dsn, PgError};

/// What was archived while a drill was planned may be so much younger than the failure, and the clocks of two hosts so much apart. What says that it is
/// of a later time is of a wrong clock.
const AHEAD: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// How long a heartbeat query may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The last moment that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// When.
    pub moment: Timestamp,
    /// Where that is from: `heartbeat`, `commit`, `backup`.
    pub source: &'static str,
    /// Why a better source was not used.
    pub notes: Vec<String>,
}

/// The latest moment that is proven to be in the restored database: the time that `heartbeat` gives (one `timestamptz`, asked of the
/// database that `dsn` names), of the last commit that was replayed, or at which the backup is consistent. Whatever was committed before
/// any of them came back with it, so the latest counts. What lies after `failure` says that nothing of before it was lost, or that a clock is
/// wrong: then the failure itself is the moment, and that is noted. More than a minute
/// later is not believed at all.
pub fn recovered_moment(
    dsn: Option<&Dsn>,
    heartbeat: Option<&str>,
    last_commit: Option<Timestamp>,
    consistent_at: Timestamp,
    failure: Timestamp,
) -> Recovered {
    let mut out = Recovered { moment: consistent_at, source: "backup", notes: Vec::new() };
    let mut consider = |moment: Timestamp, source: &'static str| {
        if moment > failure {
            out.notes.push(format!(
                "the {source} says {moment}, which is after the failure at {failure}: nothing was lost, or a clock is wrong"
            ));
            if moment.duration_since(failure) > AHEAD {
                return;
            }
        }
        // What was committed before it came back with it, so nothing of before the failure was lost.
        let moment = moment.min(failure);
        if moment > out.moment {
            (out.moment, out.source) = (moment, source);
        }
    };
    if let Some(moment) = last_commit {
        consider(moment, "commit");
    }
    let Some((dsn, query)) = dsn.zip(heartbeat) else { return out };
    match ask(dsn, query) {
        Ok(moment) => consider(moment, "heartbeat"),
        Err(why) => out.notes.push(format!("the heartbeat query gave no time: {why}")),
    }
    out
}

fn ask(dsn: &Dsn, query: &str) -> Result<Timestamp, String> {
    let asked = || -> Result<(usize, Option<String>), PgError> {
        let connection = session(dsn, None, Some(TIMEOUT))?;
        connection.execute("SET log_min_messages = panic", &[])?;
        connection.reset_search_path()?;
        connection.execute("BEGIN READ ONLY", &[])?;
        // A cursor takes one query and nothing else, and gives no more rows than are fetched.
        connection.execute(&format!("DECLARE lifeboat NO SCROLL CURSOR FOR {query}"), &[])?;
        let rows = connection.query("FETCH 2 FROM lifeboat", &[])?;
        let value = rows.iter().next().map(|row| String::from_utf8_lossy(row.bytes(0)).into_owned());
        Ok((rows.len(), value))
    };
    let (rows, value) = asked().map_err(|error| error.to_string())?;
    match (rows, value) {
        (1, Some(text)) => timestamp(&text).ok_or_else(|| format!("{text:?} is no timestamp with time zone")),
        (rows, _) => Err(if rows == 0 { "it gave no row".into() } else { "it gave several rows".into() }),
    }
}

/// A `timestamptz` as our sessions print it: `2026-08-01 12:00:00.25+00`.
fn timestamp(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once(' ')?;
    format!("{date}T{}Z", time.strip_suffix("+00")?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_latest_proof_counts_and_the_future_does_not() {
        let (backup, commit, failure) = (at("2026-08-01T10:00:00Z"), at("2026-08-01T11:00:00Z"), at("2026-08-01T12:00:00Z"));
        let found = recovered_moment(None, Some("SELECT now()"), Some(commit), backup, failure);
        assert_eq!((found.moment, found.source, found.notes.len()), (commit, "commit", 0));
        assert_eq!(recovered_moment(None, None, None, backup, failure).source, "backup");
        assert_eq!(recovered_moment(None, None, Some(at("2026-08-01T09:00:00Z")), backup, failure).source, "backup");
        let found = recovered_moment(None, None, Some(at("2026-08-01T12:00:01Z")), backup, failure);
        assert_eq!((found.moment, found.source, found.notes.len()), (failure, "commit", 1));
        let found = recovered_moment(None, None, Some(at("2026-08-01T12:02:00Z")), backup, failure);
        assert_eq!((found.moment, found.source, found.notes.len()), (backup, "backup", 1), "a wrong clock");
    }

    #[test]
    fn only_a_timestamp_with_a_zone_is_one() {
        assert_eq!(timestamp("2026-08-01 12:00:00.25+00"), Some(at("2026-08-01T12:00:00.25Z")));
        for text in ["2026-08-01 12:00:00", "infinity", "", "2026-08-01", "2026-08-01 12:00:00+02", "0044-03-15 12:00:00+00 BC"] {
            assert_eq!(timestamp(text), None, "{text}");
        }
    }
}
