//! Takes the receiver out of `synchronous_standby_names` while it cannot keep its promise, and puts it back when it can.
//!
//! Only where the operator chose that commits go on without it (`wal.on_fallout = "degrade"`). What is changed is noted in the spool before
//! it is changed, so that a receiver that is killed in between knows what to put back. Other receivers of the same server do the same, one at a
//! time: each adds and takes its own name only. A value that a person has changed meanwhile is left as it is (`core/src/wal/receive/standby_names.rs`
//! tells which that are), and the receiver goes on to say that commits do not wait for it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::wal::receive::standby_names::{self, Return, StandbyNames};

use super::spool::Degraded;
use super::{Activity, Event, EventKind, Receiver, is_due, stream};
use crate::postgres::{Connection, PgError, Purpose};

/// How far behind the server commits may wait for us again.
const NEAR_BYTES: u64 = 1 << 20;

/// Between two attempts to change the setting: a server that is away is not asked all the time.
const RETRY: Duration = Duration::from_secs(1);

/// How often the server is asked whether it names us again, while we are out: another server may be followed by then, or somebody may have put us
/// back; and whether we may come back where somebody chose that commits do not wait for us.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How often it is looked at while all is well.
const LOOK_WELL: Duration = Duration::from_secs(60);

/// How long the server may take to read its configuration anew. Under load it is milliseconds.
const RELOAD: Duration = Duration::from_secs(10);

/// The advisory lock of who changes the setting, "lifeboat" in ASCII: two receivers that both read it before one of them writes would undo
/// each other's change. A lock is of one database (`SET_LOCKTAG_ADVISORY` in `src/backend/utils/adt/lockfuncs.c`), so all take it in `postgres`.
const LOCK: i64 = 0x6c69_6665_626f_6174;

/// The server's own value of the setting, and whether `ALTER SYSTEM` set it.
#[derive(Debug, Clone)]
pub(super) struct Current {
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

fn parse(value: &str) -> Result<Option<StandbyNames>, PgError> {
    StandbyNames::parse(value).map_err(|error| PgError::Unsupported { reason: error.to_string() })
}

/// Changes the setting, and waits until the server has read it: whoever connects next finds it, for a new session has the postmaster's value.
/// One that was there before may still have the old one.
fn set(sql: &Connection, value: Option<&str>) -> Result<Current, PgError> {
    let before = current(sql)?;
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
    sql.execute("SELECT pg_reload_conf()", &[])?;
    let begun = Instant::now();
    loop {
        let now = current(sql)?;
        if now.value != before.value || value == Some(&before.value) {
            return Ok(now);
        }
        if begun.elapsed() >= RELOAD && value.is_none() {
            // The file may say the same.
            return Ok(now);
        }
        if begun.elapsed() >= RELOAD {
            let reason = format!("synchronous_standby_names stays {:?}: is it set on the server's command line?", now.value);
            return Err(PgError::TimedOut { reason });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until no other receiver changes the setting. The lock goes with the session.
fn lock(sql: &Connection) -> Result<(), PgError> {
    sql.execute("SET lock_timeout = '10s'", &[])?;
    sql.execute("SELECT pg_advisory_lock($1::bigint)", &[Some(&LOCK.to_string())])
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
        let streaming = book.activity == Activity::Streaming;
        let doubtful = [book.stalled, book.spool_failing, book.paused].iter().flatten().any(|since| since.elapsed() >= after / 2);
        let reason = match (&book.spool_trouble, &book.store_trouble) {
            (Some(reason), _) | (None, Some(reason)) => reason.clone(),
            (None, None) if book.paused.is_some() => format!("the spool was full for {after:?}"),
            (None, None) => format!("nothing could be acknowledged for {after:?}"),
        };
        let connected = book.sql_dsn.is_some();
        drop(book);
        if !connected {
            return;
        }
        if fails {
            // Whatever we believe: what the server says counts.
            if is_due(&mut self.book().tried, if degraded { LOOK_AGAIN } else { RETRY }) {
                self.degrade(&reason);
            }
        } else if degraded && caught_up && is_due(&mut self.book().tried, RETRY) {
            self.put_back();
        } else if !degraded && streaming && is_due(&mut self.book().looked, if doubtful { after } else { LOOK_WELL }) {
            // Others will take themselves out in the same moment as we: this is what there was before.
            let _ = self.sql().and_then(|(sql, _)| self.see_names(&sql));
        }
    }

    /// Keeps what the setting is while all is well. What other receivers leave of it when they take themselves out is no news.
    pub(super) fn see_names(&self, sql: &Connection) -> Result<Current, PgError> {
        let now = current(sql)?;
        let mut book = self.book();
        if !book.names.as_ref().is_some_and(|known| standby_names::is_rest(&known.value, &now.value)) {
            book.names = Some(now.clone());
        }
        Ok(now)
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

    /// A session on the server that is followed, in the one database where it has it, and our name there.
    fn sql(&self) -> Result<(Connection, String), PgError> {
        let book = self.book();
        let (dsn, name) = (book.sql_dsn.clone(), book.name.clone());
        drop(book);
        let dsn = dsn.ok_or_else(|| PgError::Unsupported { reason: "no server was followed yet".to_owned() })?;
        let sql = match Connection::open(&dsn.clone().with("dbname", "postgres"), Purpose::Sql) {
            // Not there, or not for us.
            Err(error) if !error.is_transient() => stream::open_sql(&dsn)?,
            other => other?,
        };
        Ok((sql, name.unwrap_or_else(|| "lifeboat".to_owned())))
    }

    fn degrade(&self, reason: &str) {
        if let Err(error) = self.try_degrade(reason) {
            let text = format!("COMMITS WAIT, and this receiver could not be taken out of synchronous_standby_names: {error}");
            self.warn_once(text);
        }
    }

    fn try_degrade(&self, reason: &str) -> Result<(), PgError> {
        let (waiting, name) = self.sql()?;
        let is_named = |now: &Current| Ok::<_, PgError>(parse(&now.value)?.is_some_and(|names| names.has(&name)));
        let now = self.see_names(&waiting)?;
        if !is_named(&now)? {
            // It may have been ours, with the answer lost on its way here.
            if let Some(degraded) = self.untold().filter(|degraded| degraded.set == now.value) {
                self.degraded(degraded, &now.value, true);
            }
            return Ok(());
        }
        if self.is_received_by_another(&waiting)? {
            return Ok(());
        }
        lock(&waiting)?;
        // See `set`.
        let (sql, _) = self.sql()?;
        let now = self.see_names(&sql)?;
        let Some(names) = parse(&now.value)?.filter(|names| names.has(&name)) else { return Ok(()) };
        // Others may be out already.
        let before = self.book().names.clone().unwrap_or_else(|| now.clone());
        let rows = sql.query("SELECT application_name AS name FROM pg_stat_replication WHERE application_name <> $1", &[Some(&name)])?;
        let others = rows.iter().map(|row| row.get("name").map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
        let value = names.without(&name, &others).map_or_else(String::new, |names| names.to_string());
        let degraded = Degraded {
            since: Timestamp::now(),
            reason: reason.to_owned(),
            before: before.value.clone(),
            set: value.clone(),
            by_alter_system: before.by_alter_system,
            told: false,
        };
        // A spool that cannot be written is a reason to degrade: then what is to be put back is known only in this process.
        let noted = self.note(Some(degraded.clone()));
        if let Err(error) = set(&sql, Some(&value)) {
            // Where it certainly did not happen there is nothing to put back.
            if current(&sql).is_ok_and(|now| is_named(&now).unwrap_or(false)) {
                self.note(None);
            }
            return Err(error);
        }
        // Who is told may take a while, and others wait for the lock.
        drop((sql, waiting));
        self.degraded(degraded, &value, noted);
        Ok(())
    }

    /// Notes and tells that commits do not wait for us any more.
    fn degraded(&self, degraded: Degraded, value: &str, noted: bool) {
        self.book().degraded = true;
        let lost = if noted { "" } else { "; the value before could not be noted in the spool" };
        let Degraded { reason, before, .. } = &degraded;
        self.tell(Event::new(
            EventKind::Degraded,
            format!("DEGRADED: COMMITS NO LONGER WAIT FOR THIS RECEIVER ({reason}). synchronous_standby_names was {before:?} and is {value:?}{lost}"),
        ));
        self.note(Some(Degraded { told: true, ..degraded }));
    }

    /// A change of the setting of which nobody was told: it was about to be made when something broke.
    fn untold(&self) -> Option<Degraded> {
        self.state.lock().expect("no panic while held").degraded.clone().filter(|degraded| !degraded.told)
    }

    /// Whether somebody else has our slot: then commits wait for that one, and the name is not ours to take.
    fn is_received_by_another(&self, sql: &Connection) -> Result<bool, PgError> {
        let rows = sql.query("SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", &[Some(&self.request.slot)])?;
        let pids = rows.iter().filter_map(|row| row.parse_opt::<i32>("active_pid").transpose()).collect::<Result<Vec<_>, _>>()?;
        let book = self.book();
        Ok(pids.iter().any(|pid| !book.walsenders.contains(pid)))
    }

    fn put_back(&self) {
        let degraded = self.state.lock().expect("no panic while held").degraded.clone();
        let Some(degraded) = degraded else {
            self.book().degraded = false;
            return;
        };
        if !degraded.told {
            // Of a receiver that was killed, or lost the answer.
            match self.sql().and_then(|(sql, _)| current(&sql)) {
                Ok(now) if now.value == degraded.set => self.degraded(degraded.clone(), &now.value, true),
                // It was not made, or somebody has changed it since.
                Ok(_) => {}
                Err(error) => return self.warn_once(format!("whether commits wait for this receiver cannot be found out: {error}")),
            }
        }
        match self.try_put_back(&degraded) {
            Ok((true, value)) => {
                self.note(None);
                self.book().degraded = false;
                let text = format!("caught up: commits wait for this receiver again, synchronous_standby_names is {value:?}");
                self.tell(Event::new(EventKind::Restored, text));
            }
            // Somebody else's change is not undone, and the promise is not kept: that stays to be seen.
            Ok((false, value)) => {
                self.book().tried = Some(Instant::now() + LOOK_AGAIN);
                self.warn_once(format!(
                    "COMMITS DO NOT WAIT FOR THIS RECEIVER, which has caught up: somebody changed synchronous_standby_names to {value:?} \
                     meanwhile, and that stays; name the receiver there again"
                ));
            }
            Err(error) => {
                self.warn_once(format!("commits still do not wait for this receiver: put it back into synchronous_standby_names: {error}"))
            }
        }
    }

    /// Puts our name back; returns whether it is there, and the value.
    fn try_put_back(&self, degraded: &Degraded) -> Result<(bool, String), PgError> {
        let (waiting, name) = self.sql()?;
        lock(&waiting)?;
        // See `set`.
        let (sql, _) = self.sql()?;
        let now = current(&sql)?;
        let way = standby_names::put_back(&name, &degraded.before, &degraded.set, &now.value);
        let now = match way.map_err(|error| PgError::Unsupported { reason: error.to_string() })? {
            Return::Named => now,
            Return::Chosen => return Ok((false, now.value)),
            Return::Value(value) => set(&sql, Some(&value))?,
            Return::Before if degraded.by_alter_system => set(&sql, Some(&degraded.before))?,
            Return::Before => {
                let now = set(&sql, None)?;
                // It was not in the file after all: a role that may not read all settings does not see where they are from.
                match parse(&now.value)?.is_some_and(|names| names.has(&name)) {
                    true => now,
                    false => set(&sql, Some(&degraded.before))?,
                }
            }
        };
        Ok((true, now.value))
    }

    fn note(&self, degraded: Option<Degraded>) -> bool {
        let mut state = self.state.lock().expect("no panic while held");
        state.degraded = degraded;
        let noted = self.spool.write_state(&state).is_ok();
        self.unnoted.store(!noted, Ordering::SeqCst);
        noted
    }

    /// Notes what could not be noted before.
    pub(super) fn note_again(&self) {
        if self.unnoted.load(Ordering::SeqCst) {
            let state = self.state.lock().expect("no panic while held");
            if self.spool.write_state(&state).is_ok() {
                self.unnoted.store(false, Ordering::SeqCst);
            }
        }
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
