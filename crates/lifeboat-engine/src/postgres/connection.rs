//! One connection to a server: statements, rows, COPY, and the way to wake a thread that waits in one.
//!
//! Must not know what a backup is. SQL connections get a session in which no timeout and no changed
//! `search_path` of the role can get between two statements of a backup.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lifeboat_core::wal::{Lsn, SegmentSize, SystemId, Timeline};

use super::libpq::{CancelHandle, Conn, ConnectFailure, CopyData, CopyStep, Notice, ResultKind, ResultSet, one_line};
use super::{Dsn, Endpoint, PgError};

/// Per host or address, unless the DSN, `PGCONNECT_TIMEOUT` or a service file says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Used where the DSN says nothing. A backup holds a connection idle for hours: a firewall that forgot it, or a
/// host that died, must show within about two minutes. `tcp_user_timeout` is in milliseconds, the others in seconds.
const FALLBACKS: [(&str, &str); 5] = [
    ("fallback_application_name", "lifeboat"),
    ("keepalives_idle", "60"),
    ("keepalives_interval", "10"),
    ("keepalives_count", "6"),
    ("tcp_user_timeout", "120000"),
];

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Ordinary SQL.
    Sql,
    /// The physical replication protocol (`replication=true`).
    Replication,
}

/// A connection. Dropping it closes the socket, which ends what the server was doing for it.
pub struct Connection {
    conn: Conn,
    purpose: Purpose,
    /// A duplicate of the socket, made when the first interrupter was asked for.
    socket: Arc<Mutex<Option<UnixStream>>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({:?} {})", self.purpose, self.endpoint())
    }
}

impl Connection {
    /// Connects and prepares the session.
    ///
    /// # Errors
    /// [`PgError::Unreachable`], [`PgError::Authentication`], [`PgError::Untrusted`], or [`PgError::Sql`] where
    /// the server gave another reason (no such database, too many connections, starting up).
    pub fn open(dsn: &Dsn, purpose: Purpose) -> Result<Self, PgError> {
        let mut dsn = dsn.clone();
        match purpose {
            Purpose::Sql => dsn = dsn.with("client_encoding", "UTF8"),
            // A physical walsender belongs to no database, but pg_hba.conf and .pgpass match "replication".
            Purpose::Replication => dsn = dsn.with("replication", "true"),
        }
        let params = dsn.params(&FALLBACKS)?;
        let conn = match Conn::connect(&params, CONNECT_TIMEOUT) {
            Err(failure) if failure.timed_out && has_further_candidates(&dsn) => {
                // libpq goes on to the next host after a timeout only inside its own blocking call.
                let seconds = CONNECT_TIMEOUT.as_secs().to_string();
                let fallbacks: Vec<_> = FALLBACKS.into_iter().chain([("connect_timeout", seconds.as_str())]).collect();
                Conn::connect_blocking(&dsn.params(&fallbacks)?)
            }
            other => other,
        }
        .map_err(|failure| connect_error(&failure))?;
        let connection = Self { conn, purpose, socket: Arc::default() };
        if purpose == Purpose::Sql {
            connection.prepare_session()?;
        }
        Ok(connection)
    }

    /// Correctness line 4: nothing may end the session between start and stop of a backup.
    fn prepare_session(&self) -> Result<(), PgError> {
        let mut sql = String::from(
            "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET search_path = pg_catalog; \
             SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET bytea_output = 'hex'; \
             SET standard_conforming_strings = on",
        );
        if self.server_version() >= 140_000 {
            sql.push_str("; SET idle_session_timeout = 0");
        }
        if self.server_version() >= 170_000 {
            sql.push_str("; SET transaction_timeout = 0");
        }
        self.simple(&sql).map(drop)
    }

    /// What it is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Gives the session back the `search_path` of its role and database: for statements that an operator
    /// wrote (the artifact reference query). Our own always run with `pg_catalog`.
    pub fn reset_search_path(&self) -> Result<(), PgError> {
        self.simple("RESET search_path").map(drop)
    }

    /// The server's version: 150018 for 15.18.
    pub fn server_version(&self) -> u32 {
        self.conn.server_version()
    }

    /// What was connected to, of several hosts the one that answered.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { host: self.conn.host(), port: self.conn.port(), database: self.conn.database(), user: self.conn.user() }
    }

    /// The address that was connected to; empty for a Unix socket.
    pub fn host_address(&self) -> String {
        self.conn.host_address()
    }

    /// Messages that the server sent beside results since the last call. More than 1000 are counted by a last entry.
    pub fn take_notices(&self) -> Vec<Notice> {
        let (mut notices, dropped) = self.conn.take_notices();
        if dropped > 0 {
            notices.push(Notice {
                severity: "WARNING".to_owned(),
                sqlstate: "01000".to_owned(),
                message: format!("{dropped} further messages of the server were not kept"),
                detail: String::new(),
            });
        }
        notices
    }

    /// Runs one statement with text parameters (`$1`, …; none over replication) and returns all of its rows.
    pub fn query(&self, sql: &str, params: &[Option<&str>]) -> Result<Rows, PgError> {
        let result = match self.purpose {
            Purpose::Sql => self.conn.exec_params(&c_text(sql)?, &c_params(params)?),
            Purpose::Replication if params.is_empty() => self.conn.exec(&c_text(sql)?),
            Purpose::Replication => return Err(PgError::protocol("the replication protocol takes no parameters")),
        };
        self.rows(result)
    }

    /// Runs one statement for what it does.
    pub fn execute(&self, sql: &str, params: &[Option<&str>]) -> Result<(), PgError> {
        self.query(sql, params).map(drop)
    }

    /// Runs several statements without parameters in one message and returns the rows of the last.
    pub(crate) fn simple(&self, sql: &str) -> Result<Rows, PgError> {
        let result = self.conn.exec(&c_text(sql)?);
        self.rows(result)
    }

    /// Runs one statement and hands over its rows one by one, so that a result of any size needs the memory of one row.
    /// An error of `each` stops the statement and comes back; the connection stays usable.
    pub fn for_each_row<E: From<PgError>>(
        &self,
        sql: &str,
        params: &[Option<&str>],
        mut each: impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        if !self.conn.send_single_row(&c_text(sql)?, &c_params(params)?) {
            return Err(self.failure().into());
        }
        let mut count = 0;
        // The columns are the same for all rows: looking up their names once per row would cost more than the row.
        let mut columns: Option<Vec<String>> = None;
        let mut outcome: Result<(), E> = Ok(());
        while let Some(result) = self.conn.next_result() {
            if outcome.is_err() {
                continue;
            }
            match result.kind() {
                ResultKind::SingleRow => {
                    let columns = columns.get_or_insert_with(|| column_names(&result));
                    count += 1;
                    outcome = each(Row { result: &result, columns, row: 0 });
                    if outcome.is_err()
                        && let Some(cancel) = self.conn.cancel_handle()
                    {
                        cancel.cancel();
                    }
                }
                ResultKind::Rows | ResultKind::Command => {}
                _ => outcome = Err(self.result_error(&result).into()),
            }
        }
        outcome.map(|()| count)
    }

    /// A handle with which another thread wakes whoever waits in this connection.
    pub fn interrupter(&self) -> Result<Interrupter, PgError> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if socket.is_none() {
            let duplicate = self.conn.duplicate_socket().map_err(|error| PgError::Lost { reason: error.to_string() })?;
            *socket = Some(UnixStream::from(duplicate));
        }
        Ok(Interrupter { socket: Arc::clone(&self.socket), cancel: self.conn.cancel_handle().map(Arc::new) })
    }

    /// Asks the server something trivial: whether a session that must not be lost is still there.
    pub fn ping(&self) -> Result<(), PgError> {
        match self.purpose {
            Purpose::Sql => self.execute("SELECT 1", &[]),
            Purpose::Replication => self.query("IDENTIFY_SYSTEM", &[]).map(drop),
        }
    }

    /// The process id of our session, as the other end told it.
    pub(crate) fn backend_pid(&self) -> i32 {
        self.conn.backend_pid()
    }

    /// Whether this session is our own on the server, and not one that a pooler lends us.
    pub(super) fn backend_pid_is_real(&self) -> Result<bool, PgError> {
        let pid: i32 = self.query("SELECT pg_backend_pid() AS pid", &[])?.one()?.parse("pid")?;
        Ok(pid == self.conn.backend_pid())
    }

    /// Switches to a new WAL segment (`pg_switch_wal`) so that the current one gets archived; not possible on a standby.
    /// Returns the end of the segment's records.
    pub fn switch_wal(&self) -> Result<Lsn, PgError> {
        self.query("SELECT pg_switch_wal() AS lsn", &[])?.one()?.parse("lsn")
    }

    /// Waits until a standby has replayed all before `lsn` (correctness line 36): a copy of its files is then not older.
    /// With `timeline`, a standby on another one is an error.
    ///
    /// # Errors
    /// [`PgError::TimedOut`]; [`PgError::ClusterChanged`] where the server is no standby, or not on that timeline.
    pub fn wait_replay(&self, lsn: Lsn, timeline: Option<Timeline>, timeout: Duration) -> Result<(), PgError> {
        let deadline = Instant::now() + timeout;
        loop {
            let rows = self.query(
                "SELECT pg_is_in_recovery() AS in_recovery, pg_last_wal_replay_lsn() AS replayed, \
                 greatest(c.timeline_id, r.min_recovery_end_timeline, (SELECT received_tli FROM pg_stat_wal_receiver)) AS timeline \
                 FROM pg_control_checkpoint() c, pg_control_recovery() r",
                &[],
            )?;
            let row = rows.one()?;
            if !row.bool("in_recovery")? {
                return Err(PgError::ClusterChanged { reason: "the server is not a standby".to_owned() });
            }
            let replayed: Lsn = row.parse_opt("replayed")?.unwrap_or(Lsn::INVALID);
            if replayed >= lsn {
                let on = Timeline(row.parse("timeline")?);
                return match timeline {
                    Some(wanted) if wanted != on => {
                        Err(PgError::ClusterChanged { reason: format!("the standby is on timeline {on}, not {wanted}") })
                    }
                    _ => Ok(()),
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PgError::TimedOut { reason: format!("the standby replayed up to {replayed}, not yet to {lsn}") });
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// Who the server is, asked over the replication protocol (`IDENTIFY_SYSTEM`, `SHOW`).
    pub fn identify_system(&self) -> Result<ReplicationFacts, PgError> {
        let rows = self.query("IDENTIFY_SYSTEM", &[])?;
        let row = rows.one()?;
        let show = |name: &str| -> Result<String, PgError> { Ok(self.query(&format!("SHOW {name}"), &[])?.one()?.text(0)?.to_owned()) };
        let segment_size = show("wal_segment_size")?;
        let segment_size = parse_size(&segment_size)
            .and_then(|bytes| u32::try_from(bytes).ok())
            .and_then(|bytes| SegmentSize::new(bytes).ok())
            .ok_or_else(|| PgError::protocol(format!("wal_segment_size is {segment_size:?}")))?;
        Ok(ReplicationFacts {
            system_id: row.parse("systemid")?,
            timeline: Timeline(row.parse("timeline")?),
            flushed: row.parse("xlogpos")?,
            segment_size,
            data_checksums: show("data_checksums")?,
            wal_level: show("wal_level")?,
            server_version: self.server_version(),
        })
    }

    /// Starts `START_REPLICATION`, which answers with a COPY in both directions, or with the next timeline where
    /// the one that was asked for is over.
    pub fn copy_both(&mut self, command: &str) -> Result<CopyStart<'_>, PgError> {
        let (kind, rows) = self.start_command(command)?;
        if kind == ResultKind::CopyBoth {
            return Ok(CopyStart::Streaming(CopyBoth { connection: self, ended: false }));
        }
        while self.next_result()?.is_some() {}
        if kind == ResultKind::Rows { Ok(CopyStart::Ended(rows)) } else { Err(PgError::protocol(format!("{kind:?} in place of a COPY"))) }
    }

    /// Sends a command and returns its first result.
    pub(super) fn start_command(&self, command: &str) -> Result<(ResultKind, Rows), PgError> {
        if !self.conn.send(&c_text(command)?) {
            return Err(self.failure());
        }
        self.next_result()?.ok_or_else(|| PgError::protocol("no result"))
    }

    /// The next result of what was sent; `None` after the last. After an error the rest is drained, so that the
    /// connection can be used again.
    pub(super) fn next_result(&self) -> Result<Option<(ResultKind, Rows)>, PgError> {
        let Some(result) = self.conn.next_result() else {
            // libpq says "no more" also when the connection broke between two results.
            return if self.conn.is_usable() { Ok(None) } else { Err(self.failure()) };
        };
        match result.kind() {
            ResultKind::Error | ResultKind::Other => {
                let error = self.result_error(&result);
                while self.conn.next_result().is_some() {}
                Err(error)
            }
            kind => Ok(Some((kind, Rows::new(result)))),
        }
    }

    /// The next message of a COPY from the server; `None` when it ended.
    pub(super) fn copy_data(&self) -> Result<Option<CopyData>, PgError> {
        match self.conn.copy_data(true) {
            CopyStep::Data(data) => Ok(Some(data)),
            CopyStep::End => Ok(None),
            CopyStep::WouldBlock | CopyStep::Failed => Err(self.failure()),
        }
    }

    fn rows(&self, result: Option<ResultSet>) -> Result<Rows, PgError> {
        let result = result.ok_or_else(|| self.failure())?;
        match result.kind() {
            ResultKind::Rows | ResultKind::Command => Ok(Rows::new(result)),
            ResultKind::Error => Err(self.result_error(&result)),
            kind => Err(PgError::protocol(format!("{kind:?} in place of rows"))),
        }
    }

    fn result_error(&self, result: &ResultSet) -> PgError {
        let field = |code| result.error_field(code).map(|text| one_line(&text)).unwrap_or_default();
        let sqlstate = field(pq_sys::PG_DIAG_SQLSTATE);
        if sqlstate.is_empty() {
            return self.failure();
        }
        let mut message = field(pq_sys::PG_DIAG_MESSAGE_PRIMARY);
        let detail = field(pq_sys::PG_DIAG_MESSAGE_DETAIL);
        if !detail.is_empty() {
            message = format!("{message}: {detail}");
        }
        PgError::Sql { sqlstate, message, hint: field(pq_sys::PG_DIAG_MESSAGE_HINT) }
    }

    /// What libpq itself has to complain about.
    fn failure(&self) -> PgError {
        let reason = one_line(&self.conn.error_message());
        if self.conn.is_usable() { PgError::Protocol { reason } } else { PgError::Lost { reason } }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // While an interrupter holds the duplicate, closing libpq's descriptor would not close the connection.
        // (What libpq would still send, a goodbye, is not needed: the server takes a closed socket for one.)
        if let Some(socket) = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Wakes, from any thread, the one that waits inside a [`Connection`], whatever it waits for. The connection is of no use afterwards.
#[derive(Clone)]
pub struct Interrupter {
    socket: Arc<Mutex<Option<UnixStream>>>,
    cancel: Option<Arc<CancelHandle>>,
}

impl std::fmt::Debug for Interrupter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupter")
    }
}

impl Interrupter {
    /// Shuts the socket down: the waiting call returns [`PgError::Lost`]. Does nothing to a connection that is closed.
    pub fn interrupt(&self) {
        if let Some(socket) = self.socket.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Asks the server to stop the running statement, which then fails with SQLSTATE 57014; the connection stays
    /// usable. Opens a connection to do so. False: it could not be sent. A statement that the other thread starts before this
    /// returns may be hit too: the server (`signal_child`) signals the process and then its group.
    pub fn cancel_statement(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.cancel())
    }
}

/// What a COPY in both directions gave.
pub enum Received {
    /// One message.
    Data(CopyData),
    /// Nothing within the time.
    Idle,
    /// The server ended its side: [`CopyBoth::finish`] tells why.
    End,
}

/// What `START_REPLICATION` began.
pub enum CopyStart<'c> {
    /// A stream.
    Streaming(CopyBoth<'c>),
    /// Nothing, the timeline ends there: `next_tli` and `next_tli_startpos`.
    Ended(Rows),
}

/// A running COPY in both directions (the WAL stream). Dropping it leaves the connection unusable: drop that too.
pub struct CopyBoth<'c> {
    connection: &'c Connection,
    /// The server ended its side.
    ended: bool,
}

impl CopyBoth<'_> {
    /// Waits for the next message, at most `timeout`.
    pub fn receive(&mut self, timeout: Duration) -> Result<Received, PgError> {
        self.receive_until(timeout, None)
    }

    /// As [`CopyBoth::receive`], and [`Received::Idle`] as soon as `wake` can be read.
    pub fn receive_or(&mut self, wake: BorrowedFd<'_>, timeout: Duration) -> Result<Received, PgError> {
        self.receive_until(timeout, Some(wake))
    }

    fn receive_until(&mut self, timeout: Duration, wake: Option<BorrowedFd<'_>>) -> Result<Received, PgError> {
        if self.ended {
            return Ok(Received::End);
        }
        let conn = &self.connection.conn;
        let deadline = Instant::now() + timeout;
        loop {
            match conn.copy_data(false) {
                CopyStep::Data(data) => return Ok(Received::Data(data)),
                CopyStep::End => {
                    self.ended = true;
                    return Ok(Received::End);
                }
                CopyStep::Failed => return Err(self.connection.failure()),
                CopyStep::WouldBlock => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = match wake {
                Some(wake) => conn.wait_readable_or(wake, Some(left)),
                None => conn.wait_readable(Some(left)),
            };
            match waited {
                Ok(true) => {}
                Ok(false) => return Ok(Received::Idle),
                Err(error) => return Err(PgError::Lost { reason: error.to_string() }),
            }
            // Does not wait: where only `wake` was ready, nothing comes.
            if !conn.consume_input() {
                return Err(self.connection.failure());
            }
            if wake.is_some() {
                return Ok(match conn.copy_data(false) {
                    CopyStep::Data(data) => Received::Data(data),
                    CopyStep::End => {
                        self.ended = true;
                        Received::End
                    }
                    CopyStep::WouldBlock => Received::Idle,
                    CopyStep::Failed => return Err(self.connection.failure()),
                });
            }
        }
    }

    /// Sends one message, for example a standby status update.
    pub fn send(&self, message: &[u8]) -> Result<(), PgError> {
        if self.connection.conn.put_copy_data(message) { Ok(()) } else { Err(self.connection.failure()) }
    }

    /// Ends our side, drops what still comes, and returns the rows that the server gives at the end: after the end of
    /// a timeline `next_tli` and `next_tli_startpos`.
    pub fn finish(self) -> Result<Option<Rows>, PgError> {
        let conn = &self.connection.conn;
        // Where the server ended with an error, libpq has left COPY by itself, and the next result tells.
        let left = self.ended && conn.is_usable();
        if !conn.put_copy_end() && !left {
            return Err(self.connection.failure());
        }
        while !self.ended && self.connection.copy_data()?.is_some() {}
        let mut last = None;
        while let Some((kind, rows)) = self.connection.next_result()? {
            match kind {
                ResultKind::Rows => last = Some(rows),
                ResultKind::Command => {}
                kind => return Err(PgError::protocol(format!("{kind:?} after the end of a COPY"))),
            }
        }
        Ok(last)
    }
}

/// Who a server is, as the replication protocol tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationFacts {
    /// The cluster.
    pub system_id: SystemId,
    /// The timeline it writes, or replays.
    pub timeline: Timeline,
    /// WAL flushed (on a standby: received and replayed) up to here.
    pub flushed: Lsn,
    /// Size of its WAL segments.
    pub segment_size: SegmentSize,
    /// `on` or `off`; PostgreSQL 19 knows states between.
    pub data_checksums: String,
    /// `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// As `PQserverVersion` gives it.
    pub server_version: u32,
}

/// All rows of a result.
pub struct Rows {
    result: ResultSet,
    columns: Vec<String>,
}

impl Rows {
    fn new(result: ResultSet) -> Self {
        Self { columns: column_names(&result), result }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.result.rows()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).map(|row| Row { result: &self.result, columns: &self.columns, row })
    }

    /// The row of a result that must have exactly one.
    pub fn one(&self) -> Result<Row<'_>, PgError> {
        if self.len() == 1 {
            Ok(Row { result: &self.result, columns: &self.columns, row: 0 })
        } else {
            Err(PgError::protocol(format!("{} rows in place of one", self.len())))
        }
    }
}

/// One row; values are text.
#[derive(Clone, Copy)]
pub struct Row<'r> {
    result: &'r ResultSet,
    columns: &'r [String],
    row: usize,
}

impl<'r> Row<'r> {
    /// The names of the columns, in order.
    pub fn columns(&self) -> &'r [String] {
        self.columns
    }

    fn index(&self, column: &str) -> Result<usize, PgError> {
        self.columns.iter().position(|name| name == column).ok_or_else(|| PgError::protocol(format!("no column {column:?}")))
    }

    fn value(&self, index: usize) -> Result<Option<&'r str>, PgError> {
        let name = self.columns.get(index).ok_or_else(|| PgError::protocol(format!("no column number {index}")))?;
        self.result
            .value(self.row, index)
            .map(std::str::from_utf8)
            .transpose()
            .map_err(|_| PgError::protocol(format!("column {name:?} is not UTF-8; the database's encoding may be SQL_ASCII")))
    }

    /// A value by its column's name; `None` for NULL.
    pub fn get_opt(&self, column: &str) -> Result<Option<&'r str>, PgError> {
        self.value(self.index(column)?)
    }

    /// A value that must not be NULL.
    pub fn get(&self, column: &str) -> Result<&'r str, PgError> {
        self.get_opt(column)?.ok_or_else(|| PgError::protocol(format!("column {column:?} is NULL")))
    }

    /// The bytes of a value by its place, counted from 0; none for NULL.
    pub fn bytes(&self, index: usize) -> &'r [u8] {
        self.result.value(self.row, index).unwrap_or_default()
    }

    /// A value by its place, counted from 0, that must not be NULL.
    pub fn text(&self, index: usize) -> Result<&'r str, PgError> {
        self.value(index)?.ok_or_else(|| PgError::protocol(format!("column number {index} is NULL")))
    }

    /// A value as a type that parses itself; `None` for NULL.
    pub fn parse_opt<T: FromStr>(&self, column: &str) -> Result<Option<T>, PgError> {
        let parse = |text: &str| text.parse().map_err(|_| PgError::protocol(format!("column {column:?} is {text:?}")));
        self.get_opt(column)?.map(parse).transpose()
    }

    /// A value as a type that parses itself (numbers, [`Lsn`], …).
    pub fn parse<T: FromStr>(&self, column: &str) -> Result<T, PgError> {
        self.parse_opt(column)?.ok_or_else(|| PgError::protocol(format!("column {column:?} is NULL")))
    }

    /// A boolean.
    pub fn bool(&self, column: &str) -> Result<bool, PgError> {
        match self.get(column)? {
            "t" => Ok(true),
            "f" => Ok(false),
            other => Err(PgError::protocol(format!("column {column:?} is {other:?}"))),
        }
    }
}

fn column_names(result: &ResultSet) -> Vec<String> {
    (0..result.columns()).map(|column| result.column_name(column)).collect()
}

fn c_text(sql: &str) -> Result<CString, PgError> {
    CString::new(sql).map_err(|_| PgError::protocol("a statement holds a NUL byte"))
}

fn c_params(params: &[Option<&str>]) -> Result<Vec<Option<CString>>, PgError> {
    params.iter().map(|param| param.map(c_text).transpose()).collect()
}

/// A size as `SHOW` prints it: `16MB`, `1GB`, `8192`.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Whether libpq has another host or address to try after one that does not answer.
fn has_further_candidates(dsn: &Dsn) -> bool {
    let endpoint = dsn.endpoint();
    if endpoint.host.contains(',') {
        return true;
    }
    let Ok(port) = endpoint.port.parse::<u16>() else { return false };
    if endpoint.host.is_empty() || endpoint.host.starts_with(['/', '@']) || dsn.get("hostaddr").is_some() {
        return false;
    }
    std::net::ToSocketAddrs::to_socket_addrs(&(endpoint.host.as_str(), port)).is_ok_and(|addresses| addresses.count() > 1)
}

/// Sorts a failed login by what can be done about it. libpq's own words are English (we set no locale); the
/// server's may be in any language, but carry their SQLSTATE.
fn connect_error(failure: &ConnectFailure) -> PgError {
    let (reason, sqlstates) = split_sqlstates(&failure.message);
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    let login = ["no password supplied", "GSSAPI", "SASL", "SCRAM", "channel binding", "password file"];
    let trust = ["certificate", "SSL was required", "does not support SSL", "private key file", "SSL error"];
    if failure.needs_password || sqlstates.iter().any(|state| state.starts_with("28")) || says(&login) {
        PgError::Authentication { reason }
    } else if let Some(sqlstate) = sqlstates.into_iter().next_back() {
        PgError::Sql { sqlstate, message: reason, hint: String::new() }
    } else if says(&trust) {
        PgError::Untrusted { reason }
    } else {
        PgError::Unreachable { reason }
    }
}

/// Takes the SQLSTATEs (`FATAL:  28P01: `) and the `LOCATION:` lines out of libpq's verbose messages.
fn split_sqlstates(message: &str) -> (String, Vec<String>) {
    let mut states = Vec::new();
    let mut lines = Vec::new();
    for line in message.lines().filter(|line| !line.starts_with("LOCATION:  ")) {
        let state = line.match_indices(":  ").find_map(|(at, _)| {
            let rest = line.get(at + 3..)?;
            let (state, text) = rest.split_once(": ")?;
            let looks_so = state.len() == 5 && state.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
            looks_so.then(|| (state.to_owned(), format!("{}: {text}", line.get(..at).unwrap_or_default())))
        });
        match state {
            Some((state, line)) => {
                states.push(state);
                lines.push(line);
            }
            None => lines.push(line.to_owned()),
        }
    }
    (one_line(&lines.join("\n")), states)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(message: &str) -> PgError {
        connect_error(&ConnectFailure { message: message.to_owned(), needs_password: false, timed_out: false })
    }

    #[test]
    fn failed_logins_are_sorted_in_any_language() {
        let german = "connection to server at \"db1\" (10.0.0.1), port 5432 failed: \
                      FATAL:  28P01: Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen\nLOCATION:  auth_failed, auth.c:345\n";
        let error = failed(german);
        assert!(matches!(error, PgError::Authentication { .. }), "{error:?}");
        assert!(error.to_string().ends_with("failed: FATAL: Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen"), "{error}");
        assert!(!error.is_transient());

        let starting = failed("connection to server on socket \"/s\" failed: FATAL:  57P03: the database system is starting up\n");
        assert_eq!(starting.sqlstate(), Some("57P03"));
        assert!(starting.is_transient());

        let down = failed("connection to server on socket \"/s\" failed: No such file or directory\n\tIs the server running locally?\n");
        assert!(matches!(&down, PgError::Unreachable { .. }), "{down:?}");
        assert!(!down.to_string().contains('\n'), "{down}");

        let name = failed("server certificate for \"db2\" does not match host name \"db1\"\n");
        assert!(matches!(name, PgError::Untrusted { .. }), "{name:?}");
    }

    #[test]
    fn sizes_as_show_prints_them() {
        assert_eq!(parse_size("16MB"), Some(16 << 20));
        assert_eq!(parse_size("1GB"), Some(1 << 30));
        assert_eq!(parse_size("8192"), Some(8192));
        assert_eq!(parse_size("16 MB"), None);
        assert_eq!(parse_size("99999999999999999999"), None);
        assert_eq!(parse_size("99999999999TB"), None);
    }
}
