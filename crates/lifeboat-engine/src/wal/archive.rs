//! The archive of a cluster as a value: the listing, the branches that history files tell of, and the gaps that were recorded.
//!
//! Nothing is decrypted for it, so a host that can only write can know how far recovery could go.

use lifeboat_core::repository::layout;
use lifeboat_core::wal::catalog::{Archive, Held};
use lifeboat_core::wal::file::{GapRecord, WalFile};
use lifeboat_core::wal::history::History;
use lifeboat_core::wal::{SystemId, Timeline};

use super::object::{WalError, WalReader};
use super::{Cluster, cluster, list};
use crate::causes;
use crate::keys::Identities;
use crate::repository::Repository;
use crate::signing::Trust;
use crate::store::StoreError;

/// The longest gap object that is read.
const MAX_GAP_BYTES: u64 = 64 << 10;

/// What a repository has of a cluster's WAL. `None`: nothing.
///
/// # Errors
///
/// A history file whose signature does not verify is an error: it says which WAL belongs together. A `.partial` whose end cannot be believed is
/// none: it counts as a file of which nothing can be replayed, and [`Archive::doubts`] has it. One of years ago must not keep anybody from
/// recovering along what came after it.
pub fn load(repository: &Repository, system_id: SystemId, trust: &Trust) -> Result<Option<Archive>, WalError> {
    let Some(described) = cluster(repository, system_id)? else { return without_description(repository, system_id, trust) };
    let cluster = Cluster { system_id, segment_size: described.segment_size };
    let mut archive = of_cluster(repository, cluster, trust)?;
    archive.set_beginning(described.begins);
    Ok(Some(archive))
}

/// So many files of each size are looked at before nobody knows.
const TRIED: usize = 16;

/// Whoever lost `cluster.json` has the same in every file; the first one that verifies says it. Most who come here have no file at all, so
/// the store is asked once, not once for every size that there may be. Where there are files and none of them can be read, that is no archive
/// that is not there.
fn without_description(repository: &Repository, system_id: SystemId, trust: &Trust) -> Result<Option<Archive>, WalError> {
    let listed = repository.store().list(&layout::wal_of(system_id))?;
    let mut trouble = None;
    for shift in 20..=30 {
        let Ok(segment_size) = lifeboat_core::wal::SegmentSize::new(1 << shift) else { continue };
        let cluster = Cluster { system_id, segment_size };
        let files = listed.iter().filter_map(|listed| WalFile::from_key(&listed.key, system_id, segment_size));
        let reader = WalReader::new(repository, cluster, trust, Identities::default());
        for file in files.filter(|file| file.segment().is_some()).take(TRIED) {
            match reader.head(file) {
                Ok(_) => return of_cluster(repository, cluster, trust).map(Some),
                Err(WalError::Store(error)) if error.is_transient() => return Err(error.into()),
                // Of another size, as a rule: that is what its header says.
                Err(error) => trouble = Some(error),
            }
        }
    }
    trouble.map_or(Ok(None), Err)
}

fn of_cluster(repository: &Repository, cluster: Cluster, trust: &Trust) -> Result<Archive, WalError> {
    let reader = WalReader::new(repository, cluster, trust, Identities::default());
    let mut archive = Archive::new(cluster.system_id, cluster.segment_size);
    let mut partials = Vec::new();
    for (file, stored_bytes) in list(repository, cluster)? {
        archive.add(file, stored_bytes);
        match file {
            WalFile::History(timeline) => archive.add_history(history(&reader, timeline)?),
            WalFile::Partial(segment) => partials.push(segment),
            _ => {}
        }
    }
    // Where the whole segment came later, it has all that the other one had.
    partials.retain(|segment| archive.held(*segment) != Held::Whole);
    for segment in partials {
        let end = match reader.head(WalFile::Partial(segment)) {
            Ok(head) => head.predicate.summary.and_then(|summary| summary.end),
            Err(error) if error.damage().is_some() => {
                archive.add_doubt(format!(
                    "{} does not count: {}",
                    WalFile::Partial(segment).file_name(cluster.segment_size),
                    causes::joined(&error)
                ));
                None
            }
            Err(error) => return Err(error),
        };
        archive.set_partial_end(segment, end);
    }
    for gap in gaps(repository, cluster.system_id)? {
        archive.add_gap(gap);
    }
    Ok(archive)
}

/// What is signed about a timeline's history.
pub(super) fn history(reader: &WalReader<'_>, timeline: Timeline) -> Result<History, WalError> {
    let head = reader.head(WalFile::History(timeline))?;
    head.predicate.history(timeline).ok_or_else(|| {
        let key = WalFile::History(timeline).key(reader.cluster().system_id, reader.cluster().segment_size);
        WalError::Damaged { key: key.to_string(), problem: "its statement does not say where timelines branched off".into() }
    })
}

/// Gaps that were recorded. What cannot be read is passed over: a gap object makes recovery more careful, and the listing shows
/// the hole as well.
fn gaps(repository: &Repository, system_id: SystemId) -> Result<Vec<GapRecord>, StoreError> {
    let mut gaps = Vec::new();
    for listed in repository.store().list(&layout::wal_gaps(system_id))? {
        match repository.store().get(&listed.key, MAX_GAP_BYTES) {
            Ok(bytes) => gaps.extend(serde_json::from_slice::<GapRecord>(&bytes).ok().filter(|gap| gap.format == 1)),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gaps)
}

#[cfg(test)]
pub(super) mod tests {
    use jiff::Timestamp;
    use lifeboat_core::wal::file::WalPredicate;
    use lifeboat_core::wal::{Lsn, Segment, SegmentSize};

    use super::super::object::WalWriter;
    use super::*;
    use crate::backup::Protection;
    use crate::signing::{KeyFileSigner, SigningKey};
    use crate::store::MemoryStore;

    pub(in super::super) const CLUSTER: Cluster = Cluster { system_id: SystemId(7), segment_size: SegmentSize::DEFAULT };

    pub(in super::super) fn segment(timeline: u32, number: u64) -> Segment {
        Segment { timeline: Timeline(timeline), number }
    }

    /// A repository in memory, and whose signatures count there.
    pub(in super::super) struct Place {
        pub(in super::super) repository: Repository,
        signer: KeyFileSigner,
        pub(in super::super) trust: Trust,
    }

    impl Place {
        pub(in super::super) fn new() -> Self {
            let signer = KeyFileSigner::new(SigningKey::generate().unwrap());
            let trust = Trust::new([signer.public_key().clone()]);
            let repository = Repository::init(Box::new(MemoryStore::default()), Timestamp::UNIX_EPOCH, "test").unwrap();
            Self { repository, signer, trust }
        }

        fn writer(&self) -> WalWriter<'_> {
            WalWriter::new(&self.repository, CLUSTER, &self.signer, &self.trust, &Protection::Plain, 1)
        }

        pub(in super::super) fn put(&self, file: WalFile, summary: Option<lifeboat_core::wal::record::Summary>) {
            let predicate = WalPredicate { summary, ..WalPredicate::new(50, CLUSTER.segment_size) };
            self.writer().put_bytes(file, &predicate, &[7; 50]).unwrap();
        }

        pub(in super::super) fn put_history(&self, timeline: u32, text: &str) {
            self.writer().put_history(Timeline(timeline), text.as_bytes()).unwrap();
        }

        pub(in super::super) fn archive(&self) -> Result<Archive, WalError> {
            of_cluster(&self.repository, CLUSTER, &self.trust)
        }
    }

    #[test]
    fn c051_a_partial_that_cannot_be_read_counts_for_nothing_and_is_told() {
        let place = Place::new();
        for file in [segment(1, 1), segment(2, 2), segment(2, 3)] {
            place.put(WalFile::Segment(file), None);
        }
        place.put_history(2, "1\t0/2800000\tno recovery target specified\n");
        let partial = WalFile::Partial(segment(1, 2));
        let key = partial.key(CLUSTER.system_id, CLUSTER.segment_size);
        place.repository.store().create(&key, b"one of years ago, and not as it was").unwrap();
        let archive = place.archive().unwrap();
        assert_eq!(archive.doubts().len(), 1);
        assert!(archive.doubts()[0].starts_with("000000010000000000000002.partial does not count: "), "{:?}", archive.doubts());
        // Recovery goes by what came after it.
        let path = archive.path(Timeline(2)).unwrap();
        assert_eq!(archive.reach(&path, Lsn(0x100_0028)).to, Lsn(0x400_0000));
        // Where nothing came after it, that is a hole and not the end.
        let own = archive.path(Timeline(1)).unwrap();
        let reach = archive.reach(&own, Lsn(0x100_0028));
        assert_eq!((reach.to, reach.stopped_by.is_some()), (Lsn(0x200_0000), true));
        // Where the whole segment is there, nobody reads it.
        place.put(WalFile::Segment(segment(1, 2)), None);
        assert_eq!(place.archive().unwrap().doubts(), [] as [String; 0]);
        // Of somebody who is trusted no more, it is the same.
        let stranger = Place { repository: Place::new().repository, ..Place::new() };
        stranger.put(partial, None);
        let other = Place { trust: Place::new().trust, ..stranger };
        assert_eq!(other.archive().unwrap().doubts().len(), 1);
    }
}
