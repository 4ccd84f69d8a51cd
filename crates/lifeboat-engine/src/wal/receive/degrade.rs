//! Takes the receiver out of `synchronous_standby_names` while it cannot keep its promise, and puts it back when it can.
//!
//! Only where the operator chose that commits go on without it (`wal.on_fallout = "degrade"`). What is changed is noted in the spool before
//! it is changed, so that a receiver that is killed in between knows what to put back; a value that somebody else has changed meanwhile is
//! left as it is.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::wal::receive::standby_names::StandbyNames;

use super::spool::Degraded;
use super::{Activity, Event, EventKind, Receiver, stream};
use crate::postgres::{Connection, PgError};

/// How far behind the server commits may wait for us again.
const NEAR_BYTES: u64 = 1 << 20;

/// The server's own value of the setting, and whether `ALTER SYSTEM` set it.
struct Current {
    value: String,
    by_alter_system: bool,
}

fn current(sql: &Connection) -> Result<Current, PgError> {
    let rows = sql.query(
        "SELECT setting, COALESCE(sourcefile LIKE '%postgresql.auto.conf', false) AS by_alter_system FROM pg_settings \
         WHERE name = 'synchronous_standby_names'",
        &[],
    )?;
    let row = rows.one()?;
    Ok(Current { value: row.get("setting")?.to_owned(), by_alter_system: row.bool("by_alter_system")? })
}

fn set(sql: &Connection, value: Option<&str>) -> Result<(), PgError> {
    let statement = match value {
        Some(value) => {
            // ALTER SYSTEM takes no parameters.
            let literal = sql.query("SELECT quote_literal($1) AS literal", &[Some(value)])?.one()?.get("literal")?.to_owned();
            format!("ALTER SYSTEM SET synchronous_standby_names = {literal}")
        }
        None => "ALTER SYSTEM RESET synchronous_standby_names".to_owned(),
    };
    // No commit of ours may wait for us: neither statement commits anything that does, but a configuration may make more of it.
    sql.execute("SET synchronous_commit = local", &[])?;
    sql.execute(&statement, &[])?;
    sql.execute("SELECT pg_reload_conf()", &[])
}

impl Receiver<'_> {
    /// Looks whether the promise is kept. Called a few times a second.
    pub(super) fn watch_promise(&self) {
        let (Some(after), true) = (self.request.degrade_after, self.request.mode.is_sync()) else { return };
        let book = self.book();
        let long = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= after);
        // With a full spool the server is not read, so it hears of nothing more that would be durable.
        let fails = long(book.stalled) || long(book.spool_failing) || long(book.paused);
        // Under load there is always something on its way: near is enough, if it moves.
        let caught_up = book.activity == Activity::Streaming
            && book.stalled.is_none_or(|since| since.elapsed() < after / 2)
            && book.store_trouble.is_none()
            && book.spool_trouble.is_none()
            && book.server.lsn.0.saturating_sub(book.acknowledged.lsn.0) <= NEAR_BYTES;
        let degraded = book.degraded;
        let reason = match (&book.spool_trouble, &book.store_trouble) {
            (Some(reason), _) | (None, Some(reason)) => reason.clone(),
            (None, None) if book.paused.is_some() => format!("the spool was full for {after:?}"),
            (None, None) => format!("nothing could be acknowledged for {after:?}"),
        };
        let connected = book.sql_dsn.is_some();
        drop(book);
        let wanted = if degraded { caught_up } else { fails };
        if !connected || !wanted || !self.may_try() {
            return;
        }
        if degraded {
            self.put_back();
        } else {
            self.degrade(&reason);
        }
    }

    /// Not more than once a second: a server that is away is not asked all the time.
    fn may_try(&self) -> bool {
        let mut book = self.book();
        let may = book.tried.is_none_or(|tried| tried.elapsed() >= Duration::from_secs(1));
        if may {
            book.tried = Some(Instant::now());
        }
        may
    }

    /// At an orderly end: commits do not wait for who is gone, where that was chosen.
    pub(super) fn leave(&self) {
        if self.request.degrade_after.is_none() || !self.request.mode.is_sync() {
            return;
        }
        let book = self.book();
        let ready = !book.degraded && book.sql_dsn.is_some() && self.stop.is_asked();
        drop(book);
        if ready {
            self.degrade("the receiver was stopped");
        }
    }

    fn sql(&self) -> Result<(Connection, String), PgError> {
        let book = self.book();
        let (dsn, name) = (book.sql_dsn.clone(), book.name.clone());
        drop(book);
        let dsn = dsn.ok_or_else(|| PgError::Unsupported { reason: "no server was followed yet".to_owned() })?;
        Ok((stream::open_sql(&dsn)?, name.unwrap_or_else(|| "lifeboat".to_owned())))
    }

    fn degrade(&self, reason: &str) {
        if let Err(error) = self.try_degrade(reason) {
            let text = format!("COMMITS WAIT, and this receiver could not be taken out of synchronous_standby_names: {error}");
            self.warn_once(text);
        }
    }

    fn try_degrade(&self, reason: &str) -> Result<(), PgError> {
        let (sql, name) = self.sql()?;
        let before = current(&sql)?;
        let names = StandbyNames::parse(&before.value).map_err(|error| PgError::Unsupported { reason: error.to_string() })?;
        let Some(names) = names.filter(|names| names.has(&name)) else { return Ok(()) };
        let rows = sql.query("SELECT application_name AS name FROM pg_stat_replication WHERE application_name <> $1", &[Some(&name)])?;
        let others = rows.iter().map(|row| row.get("name").map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
        let value = names.without(&name, &others).map_or_else(String::new, |names| names.to_string());
        let degraded = Degraded {
            since: Timestamp::now(),
            reason: reason.to_owned(),
            before: before.value.clone(),
            set: value.clone(),
            by_alter_system: before.by_alter_system,
        };
        // A spool that cannot be written is a reason to degrade: then what is to be put back is known only in this process.
        let noted = self.note(Some(degraded));
        set(&sql, Some(&value))?;
        self.book().degraded = true;
        let lost = if noted { "" } else { "; the value before could not be noted in the spool" };
        self.tell(Event::new(
            EventKind::Degraded,
            format!(
                "DEGRADED: COMMITS NO LONGER WAIT FOR THIS RECEIVER ({reason}). synchronous_standby_names was {:?} and is {value:?}{lost}",
                before.value
            ),
        ));
        Ok(())
    }

    fn put_back(&self) {
        let degraded = self.state.lock().expect("no panic while held").degraded.clone();
        let Some(degraded) = degraded else {
            self.book().degraded = false;
            return;
        };
        let outcome = self.sql().and_then(|(sql, _)| {
            let now = current(&sql)?;
            // Somebody else's change is not undone.
            let ours = now.value == degraded.set;
            if ours {
                set(&sql, degraded.by_alter_system.then_some(degraded.before.as_str()))?;
            }
            Ok((ours, now.value))
        });
        match outcome {
            Ok((ours, now)) => {
                self.note(None);
                self.book().degraded = false;
                let text = if ours {
                    format!("caught up: commits wait for this receiver again, synchronous_standby_names is {:?}", degraded.before)
                } else {
                    format!("caught up; synchronous_standby_names was changed to {now:?} by somebody else, and stays")
                };
                self.tell(Event::new(EventKind::Restored, text));
            }
            Err(error) => {
                self.warn_once(format!("commits still do not wait for this receiver: put it back into synchronous_standby_names: {error}"))
            }
        }
    }

    fn note(&self, degraded: Option<Degraded>) -> bool {
        let mut state = self.state.lock().expect("no panic while held");
        state.degraded = degraded;
        self.spool.write_state(&state).is_ok()
    }

    /// A warning that is tried again every second, but told once.
    fn warn_once(&self, text: String) {
        let mut book = self.book();
        let news = book.warned.as_ref() != Some(&text);
        book.warned = Some(text.clone());
        drop(book);
        if news {
            self.warn(text);
        }
    }
}
