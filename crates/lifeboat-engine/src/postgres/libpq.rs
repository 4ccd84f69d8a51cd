//! The one place that calls libpq: safe wrappers over its connections, results and COPY streams.
//!
//! Every `unsafe` of the PostgreSQL client is in this file. Nothing here knows SQL, the replication
//! protocol or our errors; that is for the modules above. Only functions of libpq 13 and later are
//! called, so that the program starts on every distribution that still carries one.
//!
//! A `PGconn` may be used by one thread at a time (manual, section "Behavior in Threaded Programs"):
//! [`Conn`] is `Send` and not `Sync`. A `PGresult` never changes after libpq returned it.

use std::ffi::{CStr, CString, c_char, c_int, c_short, c_void};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use pq_sys::{ConnStatusType, ExecStatusType, PGVerbosity, PostgresPollingStatusType};

use super::loaded;

/// One option of a connection string as libpq parsed it.
pub(super) struct ConnInfoOption {
    pub(super) keyword: String,
    /// It may be a password, so it is wiped.
    pub(super) value: Zeroizing<String>,
    /// libpq marks what it would not show on a screen (`dispchar` is `*`).
    pub(super) secret: bool,
}

/// A string for C that may be a password: wiped when dropped, which a `CString` is not.
pub(super) struct SecretText(Zeroizing<Vec<u8>>);

impl SecretText {
    /// `None`: it holds a NUL byte.
    pub(super) fn new(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() + 1));
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        CStr::from_bytes_with_nul(&bytes).is_ok().then_some(Self(bytes))
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_with_nul(&self.0).expect("made so")
    }
}

/// Text that libpq owns, as ours. Its messages are in the server's encoding until a connection has agreed on one.
fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: every non-null `char *` passed here comes from libpq, which terminates its strings
    // with NUL and keeps them alive until its next call on the same object, which is after this.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}

/// Copies an array of options, which ends with a null keyword, and frees it. Options without a value are left out.
fn take_options(raw: *mut pq_sys::_PQconninfoOption) -> Vec<ConnInfoOption> {
    let mut options = Vec::new();
    if raw.is_null() {
        return options;
    }
    let mut at = raw;
    loop {
        // SAFETY: `at` walks an array made by libpq from its start up to the element whose keyword
        // is null, which is part of the array.
        let option = unsafe { &*at };
        if option.keyword.is_null() {
            break;
        }
        if !option.val.is_null() {
            options.push(ConnInfoOption {
                keyword: text(option.keyword),
                value: Zeroizing::new(text(option.val)),
                secret: text(option.dispchar).starts_with('*'),
            });
        }
        // SAFETY: the element was not the last one, so the next one exists.
        at = unsafe { at.add(1) };
    }
    // SAFETY: `raw` came from libpq and is freed once; everything was copied out of it.
    unsafe { loaded::PQconninfoFree(raw) };
    options
}

/// The options that a connection string or URI sets, no defaults; or libpq's words on what is wrong with it.
pub(super) fn parse_conninfo(conninfo: &SecretText) -> Result<Vec<ConnInfoOption>, String> {
    loaded::load()?;
    let mut message: *mut c_char = ptr::null_mut();
    // SAFETY: the string is NUL-terminated and `message` is a valid place for a pointer.
    let options = unsafe { loaded::PQconninfoParse(conninfo.as_c_str().as_ptr(), &raw mut message) };
    if options.is_null() {
        let reason = if message.is_null() { "out of memory".to_owned() } else { text(message) };
        // SAFETY: libpq asks that the message be freed with PQfreemem, which accepts null.
        unsafe { loaded::PQfreemem(message.cast()) };
        return Err(reason);
    }
    Ok(take_options(options))
}

/// What libpq would use where nothing is said: `PG*` variables, a service file that they name, compiled defaults.
pub(super) fn default_options() -> Vec<ConnInfoOption> {
    // Whoever connects hears that it cannot be loaded.
    if loaded::load().is_err() {
        return Vec::new();
    }
    // SAFETY: no arguments; null on lack of memory, which `take_options` reads as "none".
    take_options(unsafe { loaded::PQconndefaults() })
}

/// A message that the server sent beside results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `NOTICE`, `WARNING`, `INFO`, …, never translated.
    pub severity: String,
    /// Five characters, see the manual's appendix A.
    pub sqlstate: String,
    /// The text, on one line.
    pub message: String,
    /// More about it, on one line; empty where the server gave none.
    pub detail: String,
}

/// Notices kept per connection until somebody asks: a server that warns for every page must not fill our memory.
const NOTICES_MAX: usize = 1000;

#[derive(Default)]
struct NoticeLog {
    kept: Vec<Notice>,
    dropped: u64,
}

unsafe extern "C" fn receive_notice(log: *mut c_void, result: *const pq_sys::PGresult) {
    // SAFETY: `log` is the pointer that `Conn::start` registered: the content of an `Arc` that lives as
    // long as the connection, and libpq calls this only while it is inside a call on that connection.
    let log = unsafe { &*log.cast::<Mutex<NoticeLog>>() };
    let field = |code: u8| {
        // SAFETY: libpq passes a valid result for the duration of this call, and any field code may be asked.
        one_line(&text(unsafe { loaded::PQresultErrorField(result, c_int::from(code)) }))
    };
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    if log.kept.len() >= NOTICES_MAX {
        log.dropped += 1;
        return;
    }
    log.kept.push(Notice {
        severity: field(pq_sys::PG_DIAG_SEVERITY_NONLOCALIZED),
        sqlstate: field(pq_sys::PG_DIAG_SQLSTATE),
        message: field(pq_sys::PG_DIAG_MESSAGE_PRIMARY),
        detail: field(pq_sys::PG_DIAG_MESSAGE_DETAIL),
    });
}

/// Messages of PostgreSQL and libpq run over several lines; ours do not.
pub(super) fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for part in message.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if !line.is_empty() {
            line.push_str(if line.ends_with([':', ',', ';', '.', '?']) { " " } else { "; " });
        }
        line.extend(part.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
    line
}

/// Why no connection came about.
pub(super) struct ConnectFailure {
    /// In libpq's "verbose" form: the SQLSTATE stands after the severity.
    pub(super) message: String,
    /// The server wanted a password and there was none.
    pub(super) needs_password: bool,
    /// Nothing answered within the time; another host or address may have been left untried.
    pub(super) timed_out: bool,
}

/// One connection, closed on drop.
pub(super) struct Conn {
    raw: NonNull<pq_sys::PGconn>,
    notices: Arc<Mutex<NoticeLog>>,
}

// SAFETY: libpq lets any thread use a connection as long as only one does at a time, which `Send`
// without `Sync` says.
unsafe impl Send for Conn {}

impl Conn {
    fn load() -> Result<(), ConnectFailure> {
        loaded::load().map_err(|message| ConnectFailure { message, needs_password: false, timed_out: false })
    }

    /// Begins to connect; for a socket that never blocks nothing was sent yet.
    fn start(params: &[(CString, SecretText)]) -> Result<Self, ConnectFailure> {
        Self::load()?;
        let mut keywords: Vec<*const c_char> = params.iter().map(|(keyword, _)| keyword.as_ptr()).collect();
        let mut values: Vec<*const c_char> = params.iter().map(|(_, value)| value.as_c_str().as_ptr()).collect();
        keywords.push(ptr::null());
        values.push(ptr::null());
        // SAFETY: both arrays hold NUL-terminated strings that outlive the call and end with null.
        let raw = unsafe { loaded::PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 0) };
        Self::adopt(raw)
    }

    fn adopt(raw: *mut pq_sys::PGconn) -> Result<Self, ConnectFailure> {
        let raw = NonNull::new(raw).ok_or_else(|| ConnectFailure {
            message: "out of memory".to_owned(),
            needs_password: false,
            timed_out: false,
        })?;
        let notices = Arc::new(Mutex::new(NoticeLog::default()));
        let log = Arc::as_ptr(&notices).cast_mut().cast::<c_void>();
        // SAFETY: the connection is live; `log` lives as long as it, because both are fields of `Conn`
        // and `Drop` ends the connection first.
        unsafe { loaded::PQsetNoticeReceiver(raw.as_ptr(), Some(receive_notice), log) };
        Ok(Self { raw, notices })
    }

    /// Connects, waiting at most `timeout` for each host or address that libpq tries, unless the
    /// options (or the environment, or a service file) say another `connect_timeout`.
    ///
    /// Why not `PQconnectdb`: it gives no chance to ask for SQLSTATEs, or to keep the server's warnings
    /// at login (a changed collation version, for example) from being written to our stderr.
    pub(super) fn connect(params: &[(CString, SecretText)], timeout: Duration) -> Result<Self, ConnectFailure> {
        let conn = Self::start(params)?;
        // SAFETY: the connection is live.
        unsafe { loaded::PQsetErrorVerbosity(conn.as_ptr(), PGVerbosity::PQERRORS_VERBOSE) };
        // SAFETY: the connection is live; the returned array is taken over by `take_options`.
        let effective = take_options(unsafe { loaded::PQconninfo(conn.as_ptr()) });
        let timeout = match effective.iter().find(|option| option.keyword == "connect_timeout") {
            // 0 and less mean "no limit" to libpq, and it never waits less than 2 s.
            Some(option) => match option.value.trim().parse::<i64>() {
                Ok(seconds) if seconds > 0 => Some(Duration::from_secs(seconds.cast_unsigned().max(2))),
                Ok(_) => None,
                Err(_) => Some(timeout),
            },
            None => Some(timeout),
        };
        let mut candidate = conn.endpoint();
        let mut deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut wait = PostgresPollingStatusType::PGRES_POLLING_WRITING;
        // A connection that failed at once (bad option, unknown host) must not be polled.
        let mut failed = !conn.is_usable();
        while !failed {
            let events = match wait {
                PostgresPollingStatusType::PGRES_POLLING_OK => break,
                PostgresPollingStatusType::PGRES_POLLING_READING => POLL_IN,
                PostgresPollingStatusType::PGRES_POLLING_WRITING => POLL_OUT,
                PostgresPollingStatusType::PGRES_POLLING_FAILED | PostgresPollingStatusType::PGRES_POLLING_ACTIVE => {
                    failed = true;
                    break;
                }
            };
            let remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match conn.wait_socket(events, remaining) {
                Ok(true) => {}
                Ok(false) => {
                    let mut failure = conn.connect_failure();
                    failure.message = format!("connection to server at {candidate} failed: timeout expired; {}", failure.message);
                    failure.timed_out = true;
                    return Err(failure);
                }
                Err(error) => {
                    let mut failure = conn.connect_failure();
                    failure.message = format!("wait for the server at {candidate}: {error}; {}", failure.message);
                    return Err(failure);
                }
            }
            // SAFETY: the connection is live and was started without blocking.
            wait = unsafe { loaded::PQconnectPoll(conn.as_ptr()) };
            let now_at = conn.endpoint();
            if now_at != candidate {
                candidate = now_at;
                deadline = timeout.map(|timeout| Instant::now() + timeout);
            }
        }
        if failed || !conn.is_usable() {
            return Err(conn.connect_failure());
        }
        Ok(conn)
    }

    /// Connects as psql does, inside libpq, which then moves on by itself from a host that does not answer to the next.
    pub(super) fn connect_blocking(params: &[(CString, SecretText)]) -> Result<Self, ConnectFailure> {
        Self::load()?;
        let mut keywords: Vec<*const c_char> = params.iter().map(|(keyword, _)| keyword.as_ptr()).collect();
        let mut values: Vec<*const c_char> = params.iter().map(|(_, value)| value.as_c_str().as_ptr()).collect();
        keywords.push(ptr::null());
        values.push(ptr::null());
        // SAFETY: both arrays hold NUL-terminated strings that outlive the call and end with null.
        let conn = Self::adopt(unsafe { loaded::PQconnectdbParams(keywords.as_ptr(), values.as_ptr(), 0) })?;
        if conn.is_usable() { Ok(conn) } else { Err(conn.connect_failure()) }
    }

    fn connect_failure(&self) -> ConnectFailure {
        // SAFETY: the connection is live, also when it failed.
        let needs_password = unsafe { loaded::PQconnectionNeedsPassword(self.as_ptr()) } == 1;
        ConnectFailure { message: self.error_message(), needs_password, timed_out: false }
    }

    fn as_ptr(&self) -> *mut pq_sys::PGconn {
        self.raw.as_ptr()
    }

    /// Not known to be broken.
    pub(super) fn is_usable(&self) -> bool {
        // SAFETY: the connection is live. libpq returns only values that its headers name; those of a newer
        // libpq than our bindings belong to functions that we do not call.
        unsafe { loaded::PQstatus(self.as_ptr()) != ConnStatusType::CONNECTION_BAD }
    }

    /// What went wrong last, as libpq words it (several lines).
    pub(super) fn error_message(&self) -> String {
        // SAFETY: the connection is live; the text is copied at once.
        text(unsafe { loaded::PQerrorMessage(self.as_ptr()) })
    }

    /// `"host", port n` of the host being tried or connected to.
    fn endpoint(&self) -> String {
        format!("\"{}\" ({}), port {}", self.host(), self.host_address(), self.port())
    }

    /// Host name, address or directory of the socket.
    pub(super) fn host(&self) -> String {
        // SAFETY: the connection is live; the text is copied at once.
        text(unsafe { loaded::PQhost(self.as_ptr()) })
    }

    /// The address that was connected to; empty for a Unix socket.
    pub(super) fn host_address(&self) -> String {
        // SAFETY: the connection is live; the text is copied at once.
        text(unsafe { loaded::PQhostaddr(self.as_ptr()) })
    }

    /// Port, as text.
    pub(super) fn port(&self) -> String {
        // SAFETY: the connection is live; the text is copied at once.
        text(unsafe { loaded::PQport(self.as_ptr()) })
    }

    /// Database; of a physical replication connection what was asked for, which means nothing.
    pub(super) fn database(&self) -> String {
        // SAFETY: the connection is live; the text is copied at once.
        text(unsafe { loaded::PQdb(self.as_ptr()) })
    }

    /// User.
    pub(super) fn user(&self) -> String {
        // SAFETY: the connection is live; the text is copied at once.
        text(unsafe { loaded::PQuser(self.as_ptr()) })
    }

    /// The server's version as `PQserverVersion` gives it: 150018 for 15.18.
    pub(super) fn server_version(&self) -> u32 {
        // SAFETY: the connection is live. 0 where it is broken.
        let version = unsafe { loaded::PQserverVersion(self.as_ptr()) };
        u32::try_from(version).unwrap_or(0)
    }

    /// The process id that the other end gave at login; a pooler makes one up.
    pub(super) fn backend_pid(&self) -> i32 {
        // SAFETY: the connection is live.
        unsafe { loaded::PQbackendPID(self.as_ptr()) }
    }

    /// The notices since the last call, and how many more there were than are kept.
    pub(super) fn take_notices(&self) -> (Vec<Notice>, u64) {
        let mut log = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut log.kept), std::mem::take(&mut log.dropped))
    }

    /// Runs a command with the simple protocol and returns the last of its results; `None` on lack of memory or a broken connection.
    pub(super) fn exec(&self, sql: &CStr) -> Option<ResultSet> {
        // SAFETY: the connection is live and the text NUL-terminated.
        ResultSet::adopt(unsafe { loaded::PQexec(self.as_ptr(), sql.as_ptr()) })
    }

    /// Runs one statement with text parameters.
    pub(super) fn exec_params(&self, sql: &CStr, params: &[Option<CString>]) -> Option<ResultSet> {
        let (count, values) = param_values(params)?;
        // SAFETY: `values` holds `count` pointers, each null or NUL-terminated text that outlives the call;
        // null types, lengths and formats mean "infer" and "text".
        ResultSet::adopt(unsafe {
            loaded::PQexecParams(self.as_ptr(), sql.as_ptr(), count, ptr::null(), values.as_ptr(), ptr::null(), ptr::null(), 0)
        })
    }

    /// Sends one statement with text parameters and asks for its rows one by one. False: see [`Conn::error_message`].
    pub(super) fn send_single_row(&self, sql: &CStr, params: &[Option<CString>]) -> bool {
        let Some((count, values)) = param_values(params) else { return false };
        // SAFETY: as in `exec_params`; libpq copies the parameters into its buffer before it returns.
        let sent = unsafe {
            loaded::PQsendQueryParams(self.as_ptr(), sql.as_ptr(), count, ptr::null(), values.as_ptr(), ptr::null(), ptr::null(), 0)
        };
        // SAFETY: the connection is live; this is the one moment at which libpq allows the call.
        sent == 1 && unsafe { loaded::PQsetSingleRowMode(self.as_ptr()) } == 1
    }

    /// Sends a command with the simple protocol. False: see [`Conn::error_message`].
    pub(super) fn send(&self, sql: &CStr) -> bool {
        // SAFETY: the connection is live and the text NUL-terminated.
        unsafe { loaded::PQsendQuery(self.as_ptr(), sql.as_ptr()) == 1 }
    }

    /// Waits for the next result of what was sent; `None` when there is no more.
    pub(super) fn next_result(&self) -> Option<ResultSet> {
        // SAFETY: the connection is live.
        ResultSet::adopt(unsafe { loaded::PQgetResult(self.as_ptr()) })
    }

    /// Waits for the next message of a COPY from the server.
    pub(super) fn copy_data(&self, wait: bool) -> CopyStep {
        let mut buffer: *mut c_char = ptr::null_mut();
        // SAFETY: the connection is live and `buffer` a valid place for a pointer.
        let length = unsafe { loaded::PQgetCopyData(self.as_ptr(), &raw mut buffer, c_int::from(!wait)) };
        match (usize::try_from(length), NonNull::new(buffer.cast::<u8>())) {
            (Ok(0), _) => CopyStep::WouldBlock,
            (Ok(length), Some(start)) => CopyStep::Data(CopyData { start, length }),
            _ if length == -1 => CopyStep::End,
            _ => CopyStep::Failed,
        }
    }

    /// Takes in what the socket holds. False: see [`Conn::error_message`].
    pub(super) fn consume_input(&self) -> bool {
        // SAFETY: the connection is live.
        unsafe { loaded::PQconsumeInput(self.as_ptr()) == 1 }
    }

    /// Sends one message of a COPY to the server and pushes it out. False: see [`Conn::error_message`].
    pub(super) fn put_copy_data(&self, bytes: &[u8]) -> bool {
        let Ok(length) = c_int::try_from(bytes.len()) else { return false };
        // SAFETY: the connection is live; the bytes are copied before the call returns.
        let put = unsafe { loaded::PQputCopyData(self.as_ptr(), bytes.as_ptr().cast(), length) };
        // SAFETY: the connection is live. It blocks (we never make it nonblocking), so 0 means all is sent.
        put == 1 && unsafe { loaded::PQflush(self.as_ptr()) } == 0
    }

    /// Ends our side of a COPY. False: see [`Conn::error_message`].
    pub(super) fn put_copy_end(&self) -> bool {
        // SAFETY: the connection is live; a null message ends the copy without an error.
        let ended = unsafe { loaded::PQputCopyEnd(self.as_ptr(), ptr::null()) };
        // SAFETY: as in `put_copy_data`.
        ended == 1 && unsafe { loaded::PQflush(self.as_ptr()) } == 0
    }

    /// Waits until the socket can be read; false when the time is over.
    pub(super) fn wait_readable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait_socket(POLL_IN, timeout)
    }

    /// Waits until the socket or `other` can be read; false when the time is over.
    pub(super) fn wait_readable_or(&self, other: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait(POLL_IN, Some(other), timeout)
    }

    fn wait_socket(&self, events: c_short, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait(events, None, timeout)
    }

    fn wait(&self, events: c_short, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<bool> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        // SAFETY: the connection is live. -1 where it has no socket.
        let fd = unsafe { loaded::PQsocket(self.as_ptr()) };
        if fd < 0 {
            return Err(io::ErrorKind::NotConnected.into());
        }
        loop {
            // Rounded up: a wait of half a millisecond must not become a busy loop.
            let milliseconds = deadline.map_or(-1, |deadline| {
                let left = deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
                c_int::try_from(left).unwrap_or(c_int::MAX)
            });
            // poll(2) passes over a negative descriptor.
            let other = other.map_or(-1, |other| other.as_raw_fd());
            let mut descriptors = [PollDescriptor { fd, events, revents: 0 }, PollDescriptor { fd: other, events: POLL_IN, revents: 0 }];
            // SAFETY: two valid descriptors of the layout that POSIX gives `struct pollfd`.
            let ready = unsafe { poll(descriptors.as_mut_ptr(), 2, milliseconds) };
            match ready {
                0 if deadline.is_none_or(|deadline| Instant::now() >= deadline) => return Ok(false),
                0 => {}
                1.. => return Ok(true),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// A second descriptor of the socket.
    pub(super) fn duplicate_socket(&self) -> io::Result<OwnedFd> {
        // SAFETY: the connection is live. -1 where it has no socket.
        let fd = unsafe { loaded::PQsocket(self.as_ptr()) };
        if fd < 0 {
            return Err(io::ErrorKind::NotConnected.into());
        }
        // SAFETY: libpq keeps the descriptor open while we are in this function.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
    }

    /// What another thread needs to ask the server to stop the running statement.
    pub(super) fn cancel_handle(&self) -> Option<CancelHandle> {
        // SAFETY: the connection is live; null on failure.
        NonNull::new(unsafe { loaded::PQgetCancel(self.as_ptr()) }).map(CancelHandle)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // SAFETY: the connection is live and never used again; the notice log, dropped after this, is still there.
        unsafe { loaded::PQfinish(self.as_ptr()) };
    }
}

fn param_values(params: &[Option<CString>]) -> Option<(c_int, Vec<*const c_char>)> {
    let values: Vec<_> = params.iter().map(|param| param.as_ref().map_or(ptr::null(), |param| param.as_ptr())).collect();
    Some((c_int::try_from(values.len()).ok()?, values))
}

// libpq has its own poll only since version 17.
const POLL_IN: c_short = 0x1;
const POLL_OUT: c_short = 0x4;

#[repr(C)]
struct PollDescriptor {
    fd: c_int,
    events: c_short,
    revents: c_short,
}

#[cfg(target_os = "linux")]
type PollCount = std::ffi::c_ulong;
#[cfg(not(target_os = "linux"))]
type PollCount = std::ffi::c_uint;

unsafe extern "C" {
    fn poll(descriptors: *mut PollDescriptor, count: PollCount, timeout_milliseconds: c_int) -> c_int;
}

/// Asks the server, over a connection of its own, to stop a statement.
pub(super) struct CancelHandle(NonNull<pq_sys::PGcancel>);

// SAFETY: a `PGcancel` is read-only after it was made, and libpq documents PQcancel as usable from any thread.
unsafe impl Send for CancelHandle {}
// SAFETY: as above.
unsafe impl Sync for CancelHandle {}

impl CancelHandle {
    /// Whether the request was sent; whether it does anything nobody says.
    pub(super) fn cancel(&self) -> bool {
        let mut message: [c_char; 256] = [0; 256];
        // SAFETY: the handle is live and the buffer has the size that is said (256, libpq's recommendation).
        unsafe { loaded::PQcancel(self.0.as_ptr(), message.as_mut_ptr(), 256) == 1 }
    }
}

impl Drop for CancelHandle {
    fn drop(&mut self) {
        // SAFETY: live, and never used again.
        unsafe { loaded::PQfreeCancel(self.0.as_ptr()) };
    }
}

/// What a COPY from the server gave.
pub(super) enum CopyStep {
    /// One message.
    Data(CopyData),
    /// Nothing there yet (only when asked not to wait).
    WouldBlock,
    /// The server ended the COPY: ask for the next result.
    End,
    /// See [`Conn::error_message`].
    Failed,
}

/// The bytes of one COPY message, in libpq's memory.
pub struct CopyData {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: plain memory, owned by this value alone.
unsafe impl Send for CopyData {}

impl Deref for CopyData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: libpq gave `length` initialised bytes at `start`; they live until `drop`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl Drop for CopyData {
    fn drop(&mut self) {
        // SAFETY: allocated by libpq for us, freed once.
        unsafe { loaded::PQfreemem(self.start.as_ptr().cast()) };
    }
}

/// What kind of result this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResultKind {
    /// A command that gives no rows was done.
    Command,
    /// Rows, all of them.
    Rows,
    /// One row of more.
    SingleRow,
    /// A COPY from the server begins.
    CopyOut,
    /// A COPY in both directions begins.
    CopyBoth,
    /// The command failed, or the connection did.
    Error,
    /// Anything we never ask for.
    Other,
}

/// One result, freed on drop.
pub(super) struct ResultSet(NonNull<pq_sys::PGresult>);

// SAFETY: libpq never changes a result after it returned it, and nothing in it belongs to a thread.
unsafe impl Send for ResultSet {}
// SAFETY: as above; we only read.
unsafe impl Sync for ResultSet {}

impl ResultSet {
    fn adopt(raw: *mut pq_sys::PGresult) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    pub(super) fn kind(&self) -> ResultKind {
        // SAFETY: the result is live. As for PQstatus: newer values belong to functions that we do not call.
        match unsafe { loaded::PQresultStatus(self.0.as_ptr()) } {
            ExecStatusType::PGRES_COMMAND_OK | ExecStatusType::PGRES_EMPTY_QUERY => ResultKind::Command,
            ExecStatusType::PGRES_TUPLES_OK => ResultKind::Rows,
            ExecStatusType::PGRES_SINGLE_TUPLE => ResultKind::SingleRow,
            ExecStatusType::PGRES_COPY_OUT => ResultKind::CopyOut,
            ExecStatusType::PGRES_COPY_BOTH => ResultKind::CopyBoth,
            ExecStatusType::PGRES_FATAL_ERROR | ExecStatusType::PGRES_BAD_RESPONSE => ResultKind::Error,
            _ => ResultKind::Other,
        }
    }

    pub(super) fn rows(&self) -> usize {
        // SAFETY: the result is live.
        usize::try_from(unsafe { loaded::PQntuples(self.0.as_ptr()) }).unwrap_or(0)
    }

    pub(super) fn columns(&self) -> usize {
        // SAFETY: the result is live.
        usize::try_from(unsafe { loaded::PQnfields(self.0.as_ptr()) }).unwrap_or(0)
    }

    /// The name of a column; empty where there is no such column.
    pub(super) fn column_name(&self, column: usize) -> String {
        let Ok(column) = c_int::try_from(column) else { return String::new() };
        // SAFETY: the result is live; null for a column that does not exist.
        text(unsafe { loaded::PQfname(self.0.as_ptr(), column) })
    }

    /// The value at a place; `None` for NULL and for a place that does not exist.
    pub(super) fn value(&self, row: usize, column: usize) -> Option<&[u8]> {
        if row >= self.rows() || column >= self.columns() {
            return None;
        }
        let (row, column) = (c_int::try_from(row).ok()?, c_int::try_from(column).ok()?);
        // SAFETY: the result is live and the place exists.
        if unsafe { loaded::PQgetisnull(self.0.as_ptr(), row, column) } == 1 {
            return None;
        }
        // SAFETY: as above.
        let length = usize::try_from(unsafe { loaded::PQgetlength(self.0.as_ptr(), row, column) }).ok()?;
        // SAFETY: as above.
        let start = NonNull::new(unsafe { loaded::PQgetvalue(self.0.as_ptr(), row, column) })?;
        // SAFETY: libpq keeps `length` bytes at `start` as long as the result lives, and the slice borrows it.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), length) })
    }

    /// A field of the error in this result; `None` where it has none.
    pub(super) fn error_field(&self, code: u8) -> Option<String> {
        // SAFETY: the result is live and any field code may be asked.
        let field = unsafe { loaded::PQresultErrorField(self.0.as_ptr(), c_int::from(code)) };
        (!field.is_null()).then(|| text(field))
    }
}

impl Drop for ResultSet {
    fn drop(&mut self) {
        // SAFETY: live, and never used again.
        unsafe { loaded::PQclear(self.0.as_ptr()) };
    }
}
