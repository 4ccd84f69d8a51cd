//! Does the data keep the promises that its user made of it?

use std::sync::mpsc;
use std::time::{Duration, Instant};

use lifeboat_core::drill::{Answer, Assertion, Check, CheckResult, Expectation, Outcome};

use super::{Target, Trouble, identifier, timed};
use crate::postgres::{Connection, PgError};

/// Rows that are fetched at once.
const BATCH: u64 = 1000;

/// How much longer than its time a statement may take before the connection is cut: one that does not let itself be cancelled.
const GRACE: Duration = Duration::from_secs(5);

/// Asks every assertion, each in a read-only transaction of a connection of its own. `database` is asked where an assertion names none;
/// `timeout` is the time of one that has none of its own. A query that fails is a promise that is not kept.
pub fn assertions(target: &Target<'_>, all: &[Assertion], database: &str, timeout: Duration) -> CheckResult {
    timed(|| {
        if all.is_empty() {
            return CheckResult::new(Check::Assertions, Outcome::NotApplicable, "no drill.assert is configured");
        }
        let mut failed = Vec::new();
        let mut unable = Vec::new();
        for assertion in all {
            let left = target.budget.left().unwrap_or(timeout);
            let own = assertion.timeout_seconds.map_or(timeout, |seconds| Duration::from_secs(u64::from(seconds)));
            let Ok(expectation) = assertion.expectation().map_err(|error| unable.push(error.to_string())) else { continue };
            if left.is_zero() {
                unable.push(format!("{}: the time was over", assertion.name));
                continue;
            }
            match ask(target, assertion, &expectation, database, own.min(left)) {
                Ok(answer) => {
                    if let Err(why) = expectation.judge(&answer) {
                        failed.push(format!("{}: {why}", assertion.name));
                    }
                }
                // What does not answer in its time does not keep its promise; unless it was ours that ran out.
                Err(error) if matches!(Trouble::of(&error), Trouble::Late) && left < own => {
                    unable.push(format!("{}: the time was over", assertion.name));
                }
                Err(error) if matches!(Trouble::of(&error), Trouble::Late) => {
                    failed.push(format!("{}: no answer within {} s", assertion.name, own.as_secs()));
                }
                Err(error) => failed.push(format!("{}: {error}", assertion.name)),
            }
        }
        let asked = (all.len() - unable.len()) as u64;
        let (outcome, reason) = match (failed.first(), unable.first()) {
            (Some(first), _) if failed.len() == 1 => (Outcome::Failed, first.clone()),
            (Some(first), _) => (Outcome::Failed, format!("{first}, and {} more", failed.len() - 1)),
            (None, Some(first)) => (Outcome::NotChecked, first.clone()),
            (None, None) => (Outcome::Passed, format!("all {} hold", all.len())),
        };
        CheckResult::new(Check::Assertions, outcome, reason)
            .of(asked, all.len() as u64, "assertions", None)
            .with(failed.into_iter().chain(unable))
    })
}

fn ask(
    target: &Target<'_>,
    assertion: &Assertion,
    expectation: &Expectation,
    database: &str,
    timeout: Duration,
) -> Result<Answer, PgError> {
    let connection = super::session(target.dsn, Some(assertion.database.as_deref().unwrap_or(database)), Some(timeout))?;
    // The user's query may fail: that is for the report, not for the server's log.
    connection.execute("SET log_min_messages = panic", &[])?;
    connection.reset_search_path()?;
    if let Some(role) = &assertion.role {
        connection.execute(&format!("SET ROLE {}", identifier(role)), &[])?;
    }
    let interrupter = connection.interrupter()?;
    let (done, over) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if over.recv_timeout(timeout + GRACE) == Err(mpsc::RecvTimeoutError::Timeout) {
                interrupter.interrupt();
            }
        });
        let answer = fetch(&connection, &assertion.query, expectation, timeout);
        drop(done);
        answer
    })
}

fn fetch(connection: &Connection, query: &str, expectation: &Expectation, timeout: Duration) -> Result<Answer, PgError> {
    let begun = Instant::now();
    connection.execute("BEGIN READ ONLY", &[])?;
    // A cursor takes one query that reads and nothing else (manual, DECLARE), and gives no more rows than are fetched.
    connection.execute(&format!("DECLARE lifeboat NO SCROLL CURSOR FOR {query}"), &[])?;
    let mut answer = Answer::default();
    loop {
        // Each batch is a statement with the whole time for itself.
        if begun.elapsed() > timeout {
            return Err(PgError::Sql { sqlstate: "57014".into(), message: "the time was over".into(), hint: String::new() });
        }
        let wanted = (expectation.rows_to_fetch() - answer.rows).min(BATCH);
        let rows = connection.query(&format!("FETCH {wanted} FROM lifeboat"), &[])?;
        if answer.rows == 0
            && let Some(row) = rows.iter().next()
        {
            answer.columns = row.columns().len();
            let one = row.columns().first().filter(|_| answer.columns == 1);
            answer.value = one.map(|name| row.get_opt(name)).transpose()?.flatten().map(str::to_owned);
        }
        answer.rows += rows.len() as u64;
        if (rows.len() as u64) < wanted || answer.rows >= expectation.rows_to_fetch() {
            return Ok(answer);
        }
    }
}
