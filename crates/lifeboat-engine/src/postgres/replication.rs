//! Physical replication: slots, timeline histories, and the start of a WAL stream.
//!
//! Facts from PostgreSQL's manual, "Streaming Replication Protocol", and `src/backend/replication/walsender.c`. Knows commands and
//! rows; must not decide where a stream begins, or what a lost slot means.

use lifeboat_core::wal::{Lsn, Timeline};

use super::connection::{Connection, CopyStart};
use super::{PgError, Purpose, identifier};

/// What a physical replication slot still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// All that it promised.
    Reserved,
    /// More than `max_wal_size`, but all there.
    Extended,
    /// More than `max_slot_wal_keep_size`: it may be lost with the next checkpoint.
    Unreserved,
    /// WAL that it needs is gone; it cannot be used any more.
    Lost,
    /// The server was not asked, or does not say: no WAL was reserved yet, or we may not look.
    Unknown,
}

/// A physical replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The first byte that it keeps.
    pub restart_lsn: Option<Lsn>,
    /// What of that is there.
    pub state: SlotState,
    /// The process that uses it.
    pub active_pid: Option<i32>,
}

impl Connection {
    /// Makes a physical slot that keeps WAL from now on (`RESERVE_WAL`: from the last redo point). Over replication.
    pub fn create_physical_slot(&self, name: &str) -> Result<(), PgError> {
        // This form of the options is understood by all of 13 to 18.
        self.query(&format!("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", identifier(name)), &[]).map(drop)
    }

    /// Drops a slot; one that is in use is an error (SQLSTATE 55006). Over replication.
    pub fn drop_slot(&self, name: &str) -> Result<(), PgError> {
        self.query(&format!("DROP_REPLICATION_SLOT {}", identifier(name)), &[]).map(drop)
    }

    /// Looks at a slot over SQL (`pg_replication_slots`, whose `wal_status` came with version 13).
    pub fn slot(&self, name: &str) -> Result<Option<Slot>, PgError> {
        debug_assert_eq!(self.purpose(), Purpose::Sql);
        let rows = self
            .query("SELECT slot_type, restart_lsn, wal_status, active_pid FROM pg_replication_slots WHERE slot_name = $1", &[Some(name)])?;
        let Some(row) = rows.iter().next() else { return Ok(None) };
        if row.get("slot_type")? != "physical" {
            return Err(PgError::Unsupported { reason: format!("replication slot {name} is a logical one") });
        }
        let state = match row.get_opt("wal_status")? {
            Some("reserved") => SlotState::Reserved,
            Some("extended") => SlotState::Extended,
            Some("unreserved") => SlotState::Unreserved,
            Some("lost") => SlotState::Lost,
            _ => SlotState::Unknown,
        };
        Ok(Some(Slot { restart_lsn: row.parse_opt("restart_lsn")?, state, active_pid: row.parse_opt("active_pid")? }))
    }

    /// Looks at a slot over replication, for who has no SQL access; only from version 15 on, and without its state.
    pub fn read_slot(&self, name: &str) -> Result<Option<Slot>, PgError> {
        if self.server_version() < 150_000 {
            return Err(PgError::Unsupported { reason: "a server older than 15 tells about slots only over SQL".to_owned() });
        }
        let rows = self.query(&format!("READ_REPLICATION_SLOT {}", identifier(name)), &[])?;
        let row = rows.one()?;
        // All columns are NULL where there is no such slot.
        if row.get_opt("slot_type")?.is_none() {
            return Ok(None);
        }
        Ok(Some(Slot { restart_lsn: row.parse_opt("restart_lsn")?, state: SlotState::Unknown, active_pid: None }))
    }

    /// The history file of a timeline, as it stands on the server. Over replication.
    pub fn timeline_history(&self, timeline: Timeline) -> Result<Vec<u8>, PgError> {
        let rows = self.query(&format!("TIMELINE_HISTORY {timeline}"), &[])?;
        // The second column is the file, raw.
        Ok(rows.one()?.bytes(1).to_vec())
    }

    /// Starts the WAL stream of a timeline at `from`, through a slot.
    pub fn start_physical(&mut self, slot: &str, from: Lsn, timeline: Timeline) -> Result<CopyStart<'_>, PgError> {
        self.copy_both(&format!("START_REPLICATION SLOT {} PHYSICAL {from} TIMELINE {timeline}", identifier(slot)))
    }
}
