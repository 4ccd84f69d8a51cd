//! File tables: rows collected, sorted and stored a few megabytes at a time.

use lifeboat_core::repository::{
    Sha256,
    backup_id::BackupId,
    file_table::{self, Row, TABLE_BYTES},
    layout,
    manifest::TableEntry,
};

use super::CopyError;
use crate::seal::{Sealing, seal_object};
use crate::store::Store;

/// The most rows in one table, whatever their size.
const MAX_ROWS: usize = 32_768;

pub(super) struct TableWriter<'a> {
    store: &'a dyn Store,
    backup: BackupId,
    sealing: Sealing,
    rows: Vec<Row>,
    /// About how many bytes the rows will take.
    weight: usize,
    tables: Vec<TableEntry>,
    total_rows: u64,
    stored_bytes: u64,
}

impl<'a> TableWriter<'a> {
    pub(super) fn new(store: &'a dyn Store, backup: BackupId, sealing: Sealing) -> Self {
        Self { store, backup, sealing, rows: Vec::new(), weight: 0, tables: Vec::new(), total_rows: 0, stored_bytes: 0 }
    }

    pub(super) fn add(&mut self, row: Row) -> Result<(), CopyError> {
        if !file_table::is_safe_path(&row.meta.path) {
            return Err(CopyError::Limit { path: row.meta.path, problem: "the path cannot be part of a backup" });
        }
        self.weight += 200 + row.meta.path.len() + row.extents.len() * 33;
        self.rows.push(row);
        if self.weight >= TABLE_BYTES || self.rows.len() >= MAX_ROWS { self.store_table() } else { Ok(()) }
    }

    fn store_table(&mut self) -> Result<(), CopyError> {
        self.rows.sort_by(|a, b| a.meta.path.cmp(&b.meta.path));
        // Readers refuse a table that has a path twice, so a backup must not commit one.
        if let Some(twice) = self.rows.windows(2).find(|pair| pair[0].meta.path == pair[1].meta.path) {
            return Err(CopyError::Limit { path: twice[0].meta.path.clone(), problem: "it came twice" });
        }
        let (Some(first), Some(last)) = (self.rows.first(), self.rows.last()) else { return Ok(()) };
        let (first, last) = (first.meta.path.clone(), last.meta.path.clone());
        let mut plain = Vec::with_capacity(self.weight);
        for row in &self.rows {
            file_table::encode_row(row, &mut plain);
        }
        let key = layout::file_table(&self.backup, self.tables.len());
        let bytes = seal_object(key.as_str(), &self.sealing, &plain);
        self.store.create(&key, &bytes)?;
        self.tables.push(TableEntry {
            object: key.to_string(),
            sha256: Sha256::of(&bytes),
            bytes: bytes.len() as u64,
            rows: self.rows.len() as u64,
            first,
            last,
        });
        self.total_rows += self.rows.len() as u64;
        self.stored_bytes += bytes.len() as u64;
        self.rows.clear();
        self.weight = 0;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(Vec<TableEntry>, u64, u64), CopyError> {
        self.store_table()?;
        Ok((self.tables, self.total_rows, self.stored_bytes))
    }
}
