//! The data keys that a set of artifacts is sealed with.

use std::collections::HashSet;
use std::sync::Mutex;

use lifeboat_core::repository::artifact::Entry;
use lifeboat_core::repository::layout;
use lifeboat_core::repository::sealed;

use super::catalog::ArtifactSet;
use super::read::{Reader, Trouble, blob_finding};
use super::{ArtifactError, Problem, problem_of, workers};
use crate::seal::{DataKey, Sealing};
use crate::store::read_range;

/// What is read of a blob to see its header: ours have less than 2 KiB.
const HEAD_BYTES: u64 = 8 << 10;

/// Gives every data key that opens an artifact of the set to `give`, once each. The first blob of each key is opened and compared with the
/// digest that was signed: nobody signs its header, and a key that does not open it is not one of this set.
///
/// # Errors
///
/// The first artifact whose record, header or bytes are not what they should be: then nobody knows whether all keys were given.
pub(crate) fn keys_of_set(
    reader: &Reader<'_>,
    set: &ArtifactSet<'_>,
    threads: usize,
    give: &(dyn Fn(DataKey) + Sync),
) -> Result<(), ArtifactError> {
    let known = Mutex::new(HashSet::new());
    workers::each(set.entries(""), threads, |entry: Entry| {
        let finding = |problem| ArtifactError::Finding(blob_finding(&entry.name, entry.sha256, problem));
        let header = header(reader, &entry).map_err(finding)?;
        let Some(id) = header.key else { return Ok(()) };
        if known.lock().expect("no panic while held").contains(&id) {
            return Ok(());
        }
        let record = reader.record_of(&entry).map_err(ArtifactError::Finding)?;
        let Sealing::Encrypted(key) = reader.sealing(&header).map_err(finding)? else { return Ok(()) };
        let opened = reader.open(reader.store(), record.sha256, record.bytes, &mut |_| Ok(()));
        opened.map_err(|trouble| match trouble {
            Trouble::Problem(problem) => finding(problem),
            Trouble::Sink(_) => unreachable!("nothing is written"),
        })?;
        if known.lock().expect("no panic while held").insert(id) {
            give(key);
        }
        Ok(())
    })
}

fn header(reader: &Reader<'_>, entry: &Entry) -> Result<sealed::Header, Problem> {
    let key = layout::artifact_blob(entry.sha256);
    let corrupt = |error: &dyn std::error::Error| Problem::Corrupt(error.to_string());
    let length = reader.store().length(&key).map_err(|e| problem_of(&e))?;
    let mut bytes = Vec::new();
    read_range(reader.store(), &key, 0..length.min(HEAD_BYTES), &mut bytes).map_err(|e| problem_of(&e))?;
    let start = bytes.first_chunk().ok_or_else(|| Problem::Corrupt(format!("{length} bytes, shorter than its start")))?;
    let needed = 12 + sealed::decode_header_length(start).map_err(|e| corrupt(&e))? as u64;
    if needed > HEAD_BYTES && needed <= length {
        read_range(reader.store(), &key, 0..needed, &mut bytes).map_err(|e| problem_of(&e))?;
    }
    sealed::decode_start(&bytes, key.as_str()).map(|parts| parts.header).map_err(|e| corrupt(&e))
}
