//! Does the restored server take writes, and keep them?

use lifeboat_core::drill::{Check, CheckResult, Outcome};

use super::{Target, identifier, timed};
use crate::postgres::{Connection, PgError};

/// Rows that are written.
const ROWS: u64 = 10_000;

/// The database that is made for it.
const DATABASE: &str = "lifeboat_drill_probe";

/// Makes a database of its own from `template0`, so that nothing of production's (triggers, defaults, search paths) has a part in it,
/// writes a table with an index into it, checkpoints, has the server restarted by `restart`, reads everything back, and drops it.
/// `restart` gives the reason where the server does not come back.
pub fn write_probe(target: &Target<'_>, restart: &mut dyn FnMut() -> Result<(), String>) -> CheckResult {
    if target.budget.is_over() {
        return CheckResult::new(Check::WriteProbe, Outcome::NotChecked, "the time was over");
    }
    timed(|| match probe(target, restart) {
        Ok(()) => CheckResult::new(Check::WriteProbe, Outcome::Passed, format!("{ROWS} rows were written and were there after a restart"))
            .of(ROWS, ROWS, "rows", None),
        Err(why) => CheckResult::new(Check::WriteProbe, Outcome::Failed, why),
    })
}

fn probe(target: &Target<'_>, restart: &mut dyn FnMut() -> Result<(), String>) -> Result<(), String> {
    let said = |what: &'static str| move |error: PgError| format!("{what}: {error}");
    let outside = || super::session(target.dsn, None, target.budget.left());
    let connection = outside().map_err(said("connect"))?;
    let name = free_name(&connection).map_err(said("look for a name"))?;
    let quoted = identifier(&name);
    connection.execute(&format!("CREATE DATABASE {quoted} TEMPLATE template0"), &[]).map_err(said("create a database"))?;
    drop(connection);
    let written = write(&target.connect(&name).map_err(said("connect to the new database"))?).map_err(said("write"))?;
    restart().map_err(|why| format!("restart: {why}"))?;
    let read = target.connect(&name).and_then(|connection| sum(&connection)).map_err(said("read back after the restart"))?;
    if read != written {
        return Err(format!("after the restart there is {read:?} in place of {written:?}"));
    }
    let connection = outside().map_err(said("connect"))?;
    connection.execute(&format!("DROP DATABASE {quoted}"), &[]).map_err(said("drop the database"))
}

/// The probe's name, or one like it where production has that one too.
fn free_name(connection: &Connection) -> Result<String, PgError> {
    for number in 0..1000 {
        let name = if number == 0 { DATABASE.to_owned() } else { format!("{DATABASE}_{number}") };
        if connection.query("SELECT 1 FROM pg_database WHERE datname = $1", &[Some(&name)])?.is_empty() {
            return Ok(name);
        }
    }
    Ok(DATABASE.to_owned())
}

/// Writes, and returns what has to be there afterwards.
fn write(connection: &Connection) -> Result<(String, String), PgError> {
    connection.execute("CREATE TABLE public.probe (id bigint PRIMARY KEY, word text NOT NULL)", &[])?;
    let insert = "INSERT INTO public.probe SELECT n, md5(n::text) FROM generate_series(1, $1::bigint) AS n";
    connection.execute(insert, &[Some(&ROWS.to_string())])?;
    let written = sum(connection)?;
    if written.0 != ROWS.to_string() {
        return Err(PgError::Protocol { reason: format!("{} rows are there after {ROWS} were written", written.0) });
    }
    connection.execute("CHECKPOINT", &[])?;
    // Behind the checkpoint: what comes back of this was in WAL.
    connection.execute("UPDATE public.probe SET word = md5(word) WHERE id % 10 = 0", &[])?;
    sum(connection)
}

fn sum(connection: &Connection) -> Result<(String, String), PgError> {
    let rows = connection.query("SELECT count(*) AS rows, md5(string_agg(word, ',' ORDER BY id)) AS sum FROM public.probe", &[])?;
    let row = rows.one()?;
    Ok((row.get("rows")?.to_owned(), row.get_opt("sum")?.unwrap_or_default().to_owned()))
}
