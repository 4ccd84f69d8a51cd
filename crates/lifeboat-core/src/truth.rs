//! What the tables held at one moment of a backup: recorded when it is taken, compared when it was restored.
//!
//! A zeroed or stale heap page passes start, scan, dump, checksums and amcheck; only somebody who knows what was there can tell.
//! `docs/drill-truth.md` has the reasoning: why one LSN is the moment of what was read, and when that cannot be said.
//! `engine/src/truth/` reads tables; here are the value, what is read of which table, and what a comparison means.

mod comparison;
mod sampling;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::repository::backup_id::BackupId;
use crate::repository::{FormatError, Sha256, serde_through_text};
use crate::wal::{Lsn, Timeline};

pub use comparison::{Comparison, Seen};
pub use sampling::{Budget, Portion, Size, portion, rank};

/// Version of the object.
pub const TRUTH_SCHEMA: u32 = 1;

/// The most bytes that the object may have before it is sealed.
pub const MAX_TRUTH_BYTES: usize = 256 << 20;

const WHAT: &str = "truth";

/// What was in the tables at one LSN (`docs/format.md`, 13a).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    /// [`TRUTH_SCHEMA`].
    pub schema: u32,
    /// The backup that it belongs to.
    pub backup: BackupId,
    /// The moment.
    pub point: Point,
    /// What chose tables and blocks, and what rows are hashed with. Of the backup's id, so that every backup looks elsewhere.
    pub seed: u64,
    /// The databases that sessions are allowed in.
    pub databases: Vec<Database>,
}

/// The moment: a restore point, and who was in doubt then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Name of the restore point: `recovery_target_name`.
    pub name: String,
    /// Where its record ends: what a server that stops there says of `pg_last_wal_replay_lsn`.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: Timeline,
    /// What was visible to whoever read the tables.
    pub snapshot: Snapshot,
    /// How often it was tried until no transaction ended meanwhile.
    pub tries: u32,
    /// Whether the backup brings the WAL up to here; else it is in the archive only.
    pub own_wal: bool,
}

/// A snapshot of PostgreSQL: every transaction below `xmax` has ended, but for those in `xip` (manual, "pg_snapshot Components"). Its text is
/// the server's: `xmin:xmax:xip,xip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The lowest transaction that was running.
    pub xmin: u64,
    /// One more than the highest that had ended.
    pub xmax: u64,
    /// Those between that were running, ascending.
    pub xip: Vec<u64>,
}

impl FromStr for Snapshot {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bad = || FormatError::malformed("snapshot", "it is not xmin:xmax:xip,…");
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten().ok_or_else(bad);
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or_else(bad);
        let (xmin, xmax, list) = (number(part()?)?, number(part()?)?, part()?);
        let xip = if list.is_empty() { Vec::new() } else { list.split(',').map(number).collect::<Result<Vec<_>, _>>()? };
        let ordered = xip.windows(2).all(|pair| pair[0] < pair[1]) && xip.iter().all(|xid| (xmin..xmax).contains(xid));
        if xmin == 0 || xmin > xmax || !ordered {
            return Err(bad());
        }
        Ok(Self { xmin, xmax, xip })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.xip.iter().enumerate() {
            write!(f, "{}{xid}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The sum of the hashes of rows, modulo 2^64: the same in whatever order they are read. 16 hexadecimal digits as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsHash(pub u64);

impl FromStr for RowsHash {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let lower = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let parsed = lower.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        parsed.map(Self).ok_or_else(|| FormatError::malformed("hash of rows", "it is not 16 lower-case hexadecimal digits"))
    }
}

impl fmt::Display for RowsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

serde_through_text!(Snapshot, RowsHash);

/// A database, and its tables at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Why nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// All of its tables, also those that were not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<Table>,
}

/// An ordinary table (of a partitioned one the partitions) or a materialized view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What was in it, or in the ranges of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Found>,
    /// The blocks that were read, `[from, to)`; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<(u32, u32)>,
    /// Why it was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// How many rows.
    pub rows: u64,
    /// Which.
    pub hash: RowsHash,
}

/// The seed of a backup: 48 bits, which every reader of JSON takes for the same number.
pub fn seed(backup: &BackupId) -> u64 {
    let digest = Sha256::of(format!("lifeboat truth {backup}").as_bytes());
    digest.0[..6].iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// The name of a backup's restore point at the n-th try. PostgreSQL takes 63 bytes (`MAXFNAMELEN`), and a backup's id may have more.
pub fn point_name(backup: &BackupId, attempt: u32) -> String {
    let digest = Sha256::of(backup.to_string().as_bytes()).to_string();
    format!("lifeboat-truth-{}-{attempt}", &digest[..16])
}

impl Truth {
    /// Reads one and checks that its parts fit each other.
    ///
    /// # Errors
    /// Whatever was not written by [`Truth::encode`]; a newer schema.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        #[derive(Deserialize)]
        struct Probe {
            schema: u32,
        }
        let json = |error: serde_json::Error| FormatError::malformed(WHAT, error.to_string());
        if bytes.len() > MAX_TRUTH_BYTES {
            return Err(FormatError::malformed(WHAT, "it is too long"));
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
        if probe.schema != TRUTH_SCHEMA {
            return Err(FormatError::TooNew { what: WHAT, found: probe.schema });
        }
        let truth: Self = serde_json::from_slice(bytes).map_err(json)?;
        truth.check()?;
        Ok(truth)
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        crate::repository::to_json(self)
    }

    fn check(&self) -> Result<(), FormatError> {
        let bad = |problem: String| Err(FormatError::malformed(WHAT, problem));
        let (mut databases, mut tables) = (BTreeSet::new(), BTreeSet::new());
        for database in &self.databases {
            if !databases.insert(&database.name) {
                return bad(format!("database {:?} twice", database.name));
            }
            tables.clear();
            for table in &database.tables {
                if !tables.insert((&table.schema, &table.name)) {
                    return bad(format!("table {:?} twice", table.name));
                }
                if table.found.is_some() == table.unread.is_some() {
                    return bad(format!("table {:?} was read and not read", table.name));
                }
                let mut end = 0;
                for (from, to) in &table.ranges {
                    if from >= to || *from < end {
                        return bad(format!("ranges of table {:?} are not in order", table.name));
                    }
                    end = *to;
                }
            }
        }
        Ok(())
    }

    /// How many tables there are, and how many of them were read, wholly or in part.
    pub fn counts(&self) -> (u64, u64) {
        let tables = || self.databases.iter().flat_map(|database| &database.tables);
        (tables().count() as u64, tables().filter(|table| table.found.is_some()).count() as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn example() -> Truth {
        let table = |name: &str, found: Option<(u64, u64)>, ranges: Vec<(u32, u32)>| Table {
            schema: "public".into(),
            name: name.into(),
            found: found.map(|(rows, hash)| Found { rows, hash: RowsHash(hash) }),
            ranges,
            unread: found.is_none().then(|| "no permission".into()),
        };
        Truth {
            schema: TRUTH_SCHEMA,
            backup: "app-backup-20240315T120000Z".parse().unwrap(),
            point: Point {
                name: "lifeboat-truth-0-1".into(),
                lsn: Lsn(0x300_0100),
                timeline: Timeline(1),
                snapshot: "700:702:700".parse().unwrap(),
                tries: 1,
                own_wal: true,
            },
            seed: 7,
            databases: vec![Database {
                name: "app".into(),
                unknown: None,
                tables: vec![
                    table("orders", Some((3, u64::MAX)), vec![]),
                    table("events", Some((5, 9)), vec![(0, 4), (7, 9)]),
                    table("x", None, vec![]),
                ],
            }],
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_nonsense_is_not() {
        let truth = example();
        assert_eq!(Truth::decode(&truth.encode()), Ok(truth.clone()));
        assert_eq!(truth.counts(), (3, 2));
        let broken = |change: &dyn Fn(&mut Truth)| {
            let mut truth = truth.clone();
            change(&mut truth);
            Truth::decode(&truth.encode()).unwrap_err().to_string()
        };
        assert!(broken(&|truth| truth.schema = 2).contains("version 2"));
        assert!(broken(&|truth| truth.databases.push(truth.databases[0].clone())).contains("twice"));
        assert!(broken(&|truth| truth.databases[0].tables[1].name = "orders".into()).contains("twice"));
        assert!(broken(&|truth| truth.databases[0].tables[0].unread = Some("x".into())).contains("read and not read"));
        assert!(broken(&|truth| truth.databases[0].tables[2].unread = None).contains("read and not read"));
        assert!(broken(&|truth| truth.databases[0].tables[1].ranges = vec![(4, 9), (0, 4)]).contains("order"));
        assert!(broken(&|truth| truth.databases[0].tables[1].ranges = vec![(4, 4)]).contains("order"));
        assert!(Truth::decode(b"{}").is_err() && Truth::decode(b"").is_err());
    }

    #[test]
    fn snapshots_are_read_as_the_server_writes_them() {
        let snapshot: Snapshot = "10:20:10,14,15".parse().unwrap();
        assert_eq!((snapshot.xmin, snapshot.xmax, snapshot.xip.as_slice()), (10, 20, [10, 14, 15].as_slice()));
        assert_eq!(snapshot.to_string(), "10:20:10,14,15");
        assert_eq!("10:10:".parse::<Snapshot>().unwrap().to_string(), "10:10:");
        for bad in ["", "10", "10:20", "20:10:", "10:20:9", "10:20:20", "10:20:14,12", "10:20:,", "+1:2:", "0:0:", "10:20:10,10"] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_points_fit_however_long_the_backups_id_is() {
        let id: BackupId = format!("{}-backup-20240315T120000Z", "n".repeat(60)).parse().unwrap();
        assert!(point_name(&id, u32::MAX).len() <= 63);
        assert!(seed(&id) < 1 << 48);
    }

    proptest! {
        #[test]
        fn hashes_are_read_again(hash: u64) {
            prop_assert_eq!(RowsHash(hash).to_string().parse(), Ok(RowsHash(hash)));
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>, text: String) {
            let _ = Truth::decode(&bytes);
            let _ = text.parse::<Snapshot>();
            let _ = text.parse::<RowsHash>();
        }
    }
}
