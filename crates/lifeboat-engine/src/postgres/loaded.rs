//! libpq's functions, looked up in the library when something is first asked of PostgreSQL.
//!
//! Not linked: libpq brings some twenty libraries (Kerberos, LDAP, TLS), and to load them takes two thirds of the time of a process that
//! archives or fetches one WAL segment and speaks to no server. PostgreSQL starts such a process for every segment.
//!
//! The signatures are those of `pq-sys`, whose types these are. Only functions of libpq 13 and later are here.

#![expect(clippy::too_many_arguments, reason = "libpq's functions have as many as they have")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use pq_sys::{
    ConnStatusType, ExecStatusType, Oid, PGVerbosity, PGcancel, PGconn, PGresult, PQconninfoOption, PQnoticeReceiver,
    PostgresPollingStatusType,
};

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *mut c_char;
}

/// Everything is looked up at once, for us alone: `RTLD_NOW | RTLD_LOCAL` of Linux.
const NOW: c_int = 2;

/// The name that it has had since PostgreSQL 8.2.
const NAME: &CStr = c"libpq.so.5";

/// The loader's words on what went wrong last in this thread.
fn reason() -> String {
    // SAFETY: it returns null or a string that lives until the next call of the loader in this thread.
    let raw = unsafe { dlerror() };
    if raw.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: not null, and NUL-terminated.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}

fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: `library` was opened and is never closed.
    let found = unsafe { dlsym(library, name.as_ptr()) };
    if found.is_null() { Err(format!("load libpq: {}", reason())) } else { Ok(found) }
}

static LIBRARY: OnceLock<Result<Functions, String>> = OnceLock::new();

/// Loads libpq, if that was not done: whoever has no connection, result or options of it yet calls this first.
pub(super) fn load() -> Result<(), String> {
    LIBRARY.get_or_init(Functions::find).as_ref().map(|_| ()).map_err(String::clone)
}

fn functions() -> &'static Functions {
    LIBRARY.get().and_then(|loaded| loaded.as_ref().ok()).expect("who has something of libpq's has loaded it")
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        #[expect(non_snake_case, reason = "the names are libpq's")]
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
        }

        impl Functions {
            fn find() -> Result<Self, String> {
                // SAFETY: the name is NUL-terminated; libpq's initialisers may run in any thread.
                let library = unsafe { dlopen(NAME.as_ptr(), NOW) };
                if library.is_null() {
                    return Err(format!("load libpq: {}", reason()));
                }
                Ok(Self {
                    $($name: {
                        let name = CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()).expect("it ends with NUL");
                        // SAFETY: a function of that name in `libpq.so.5` has this signature: it is libpq's interface.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) $(-> $result)?>(symbol(library, name)?) }
                    },)*
                })
            }
        }

        $(
            /// As the manual of libpq has it.
            #[expect(non_snake_case, reason = "the names are libpq's")]
            pub(super) unsafe fn $name($($argument: $type),*) $(-> $result)? {
                // SAFETY: the caller keeps libpq's rules.
                unsafe { (functions().$name)($($argument),*) }
            }
        )*
    };
}

functions! {
    fn PQbackendPID(conn: *const PGconn) -> c_int;
    fn PQcancel(cancel: *mut PGcancel, errbuf: *mut c_char, errbufsize: c_int) -> c_int;
    fn PQclear(res: *mut PGresult);
    fn PQconndefaults() -> *mut PQconninfoOption;
    fn PQconnectPoll(conn: *mut PGconn) -> PostgresPollingStatusType;
    fn PQconnectStartParams(keywords: *const *const c_char, values: *const *const c_char, expand_dbname: c_int) -> *mut PGconn;
    fn PQconnectdbParams(keywords: *const *const c_char, values: *const *const c_char, expand_dbname: c_int) -> *mut PGconn;
    fn PQconnectionNeedsPassword(conn: *const PGconn) -> c_int;
    fn PQconninfo(conn: *mut PGconn) -> *mut PQconninfoOption;
    fn PQconninfoFree(conn_options: *mut PQconninfoOption);
    fn PQconninfoParse(conninfo: *const c_char, errmsg: *mut *mut c_char) -> *mut PQconninfoOption;
    fn PQconsumeInput(conn: *mut PGconn) -> c_int;
    fn PQdb(conn: *const PGconn) -> *mut c_char;
    fn PQerrorMessage(conn: *const PGconn) -> *mut c_char;
    fn PQexec(conn: *mut PGconn, query: *const c_char) -> *mut PGresult;
    fn PQexecParams(conn: *mut PGconn, command: *const c_char, n_params: c_int, param_types: *const Oid, param_values: *const *const c_char,
        param_lengths: *const c_int, param_formats: *const c_int, result_format: c_int) -> *mut PGresult;
    fn PQfinish(conn: *mut PGconn);
    fn PQflush(conn: *mut PGconn) -> c_int;
    fn PQfname(res: *const PGresult, field_num: c_int) -> *mut c_char;
    fn PQfreeCancel(cancel: *mut PGcancel);
    fn PQfreemem(ptr: *mut c_void);
    fn PQgetCancel(conn: *mut PGconn) -> *mut PGcancel;
    fn PQgetCopyData(conn: *mut PGconn, buffer: *mut *mut c_char, wait: c_int) -> c_int;
    fn PQgetResult(conn: *mut PGconn) -> *mut PGresult;
    fn PQgetisnull(res: *const PGresult, tup_num: c_int, field_num: c_int) -> c_int;
    fn PQgetlength(res: *const PGresult, tup_num: c_int, field_num: c_int) -> c_int;
    fn PQgetvalue(res: *const PGresult, tup_num: c_int, field_num: c_int) -> *mut c_char;
    fn PQhost(conn: *const PGconn) -> *mut c_char;
    fn PQhostaddr(conn: *const PGconn) -> *mut c_char;
    fn PQnfields(res: *const PGresult) -> c_int;
    fn PQntuples(res: *const PGresult) -> c_int;
    fn PQport(conn: *const PGconn) -> *mut c_char;
    fn PQputCopyData(conn: *mut PGconn, buffer: *const c_char, nbytes: c_int) -> c_int;
    fn PQputCopyEnd(conn: *mut PGconn, errormsg: *const c_char) -> c_int;
    fn PQresultErrorField(res: *const PGresult, fieldcode: c_int) -> *mut c_char;
    fn PQresultStatus(res: *const PGresult) -> ExecStatusType;
    fn PQsendQuery(conn: *mut PGconn, query: *const c_char) -> c_int;
    fn PQsendQueryParams(conn: *mut PGconn, command: *const c_char, n_params: c_int, param_types: *const Oid, param_values: *const *const c_char,
        param_lengths: *const c_int, param_formats: *const c_int, result_format: c_int) -> c_int;
    fn PQserverVersion(conn: *const PGconn) -> c_int;
    fn PQsetErrorVerbosity(conn: *mut PGconn, verbosity: PGVerbosity) -> PGVerbosity;
    fn PQsetNoticeReceiver(conn: *mut PGconn, proc: PQnoticeReceiver, arg: *mut c_void) -> PQnoticeReceiver;
    fn PQsetSingleRowMode(conn: *mut PGconn) -> c_int;
    fn PQsocket(conn: *const PGconn) -> c_int;
    fn PQstatus(conn: *const PGconn) -> ConnStatusType;
    fn PQuser(conn: *const PGconn) -> *mut c_char;
}
