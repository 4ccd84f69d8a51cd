//! The PostgreSQL client: SQL, replication protocol, base backups.
//!
//! libpq does the talking, so that a DSN means here what it means to psql. This module knows the SQL and
//! the protocol that a backup needs, for PostgreSQL 13 to 18; it must not decide what to back up, and must
//! not write anything anywhere. Everything blocks: callers bring a thread, and an [`Interrupter`] to wake it.
//!
//! To follow a streamed backup, read `connection`, then `base_backup`, then `tar_stream`; a copy of local
//! files goes through `backup_session`.

mod backup_session;
mod base_backup;
mod connection;
mod dsn;
mod facts;
mod libpq;
mod loaded;
mod replication;
mod tar_stream;
pub mod wal_facts;

pub use backup_session::{BackupSession, SessionOptions, StartedBackup, StoppedBackup, WalHold};
pub use base_backup::{Archive, BaseBackup, BaseBackupOptions, FinishedBaseBackup, Item, StreamTablespace};
pub use connection::{Connection, CopyBoth, CopyStart, Interrupter, Purpose, Received, ReplicationFacts, Row, Rows};
pub use dsn::{Dsn, Endpoint};
pub use facts::{ChecksumState, ClusterFacts, Collation, DatabaseFacts, Extension, HotStandbySettings, Tablespace};
pub use libpq::{CopyData, Notice};
pub use replication::{Slot, SlotState};
pub use tar_stream::{Entry, EntryKind};

/// The oldest server that is supported, as `PQserverVersion` numbers them.
pub const OLDEST_SERVER_VERSION: u32 = 130_000;

/// Why the client could not do what it was asked. Texts of libpq and the server stand on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PgError {
    /// The connection string is wrong; nothing was tried.
    #[error("parse the PostgreSQL connection string: {reason}")]
    BadDsn {
        /// libpq's words, without values.
        reason: String,
    },
    /// No server answered, or it answered no PostgreSQL.
    #[error("connect to PostgreSQL: {reason}")]
    Unreachable {
        /// libpq's words; they name host and port.
        reason: String,
    },
    /// The server does not let us in: password, role, `pg_hba.conf`.
    #[error("log in to PostgreSQL: {reason}")]
    Authentication {
        /// The server's or libpq's words.
        reason: String,
    },
    /// The server is not who the configuration says, or refuses the encryption that it asks for.
    #[error("verify the PostgreSQL server: {reason}")]
    Untrusted {
        /// libpq's words.
        reason: String,
    },
    /// The connection broke while in use.
    #[error("keep the connection to PostgreSQL: {reason}")]
    Lost {
        /// libpq's words.
        reason: String,
    },
    /// The server reports an error.
    #[error("run a statement on PostgreSQL: {message} (SQLSTATE {sqlstate})")]
    Sql {
        /// Five characters, see the PostgreSQL manual's appendix A.
        sqlstate: String,
        /// Primary message, with the detail where there is one.
        message: String,
        /// What the server suggests; may be empty.
        hint: String,
    },
    /// The server is too old, or it is another kind of server than the operation needs.
    #[error("use this PostgreSQL server: {reason}")]
    Unsupported {
        /// What is not supported.
        reason: String,
    },
    /// The server was promoted, or changed its timeline, while the backup ran: the copy is worthless.
    #[error("keep to one timeline during the backup: {reason}")]
    ClusterChanged {
        /// What changed.
        reason: String,
    },
    /// Something did not happen within the time it was given.
    #[error("wait for PostgreSQL: {reason}")]
    TimedOut {
        /// What did not happen.
        reason: String,
    },
    /// The server sent what its protocol, or our knowledge of it, does not allow.
    #[error("understand PostgreSQL's answer: {reason}")]
    Protocol {
        /// What was wrong.
        reason: String,
    },
}

impl PgError {
    pub(crate) fn protocol(reason: impl Into<String>) -> Self {
        Self::Protocol { reason: reason.into() }
    }

    /// Whether the same attempt can succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } | Self::TimedOut { .. } => true,
            // Classes and codes of the manual's appendix A: connection exceptions, serialization and deadlock,
            // lock not available, out of memory, too many connections, shutting down or starting up.
            Self::Sql { sqlstate, .. } => {
                sqlstate.starts_with("08")
                    || ["40001", "40P01", "55P03", "53200", "53300", "57P01", "57P02", "57P03"].contains(&sqlstate.as_str())
            }
            _ => false,
        }
    }

    /// The server's code, where the server reported the error.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Sql { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }
}

/// A name in a statement (manual, "Identifiers and Key Words"), or in a command of the replication protocol.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
