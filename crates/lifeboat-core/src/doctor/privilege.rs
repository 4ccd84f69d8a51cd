//! What this host's credentials can do beyond what it needs: whoever takes the host over can do it as well.
//!
//! A host that is protected needs to write and to compare (`deploy/s3/writer.json`), not to read data and not to delete. What a host
//! needs is seen from its configuration: a restore identity makes it one that restores, rules of retention one that tidies up.

use serde::Serialize;

use super::store::Seen;
use super::{Diagnosis, Severity};

/// What credentials were seen to allow, beside writing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// Packs, in which the database's bytes are, are readable. They are sealed; this is the second lock.
    pub reads_data: Seen<bool>,
    /// Objects that backups need can be deleted, or hidden where the store keeps versions.
    pub deletes: Seen<bool>,
}

/// What a host does, as far as its configuration tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Duties {
    /// Something is backed up here.
    pub protects: bool,
    /// Backups are restored, or verified to the last byte: a restore identity is configured.
    pub restores: bool,
    /// Backups expire and are pruned from here: rules of retention are configured.
    pub tidies: bool,
}

/// What the credentials of a repository allow without need. Only where something is protected: a host that does nothing else is the
/// one that others rely on.
pub fn excess(url: &str, reach: &Reach, duties: Duties) -> Diagnosis {
    let mut out = Diagnosis::default();
    if !duties.protects {
        return out;
    }
    match &reach.reads_data {
        Ok(true) if !duties.restores => out.say(
            Severity::Warning,
            "reads-data",
            url,
            "these credentials may read what backups consist of, and no restore identity is configured here",
            "who takes over this host has the sealed bytes of every backup, and needs only an identity to open them",
            "give this host the role of deploy/s3/writer.json (docs/least-privilege.md)",
        ),
        Ok(false) => out.note(url, "what backups consist of cannot be read with these credentials"),
        Ok(true) => {}
        Err(why) => out.note(url, format!("whether data can be read with these credentials is not known: {why}")),
    }
    match &reach.deletes {
        Ok(true) if !duties.tidies => out.say(
            Severity::Warning,
            "may-delete",
            url,
            "these credentials may delete what backups consist of, and no rules of retention are configured here",
            "who takes over this host can delete every backup; where the store keeps versions, hide it",
            "give this host the role of deploy/s3/writer.json (docs/least-privilege.md), and prune from another host",
        ),
        Ok(false) => out.note(url, "nothing can be deleted with these credentials"),
        Ok(true) => {}
        Err(why) => out.note(url, format!("whether data can be deleted with these credentials is not known: {why}")),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::store::Unseen;
    use super::*;

    fn codes(reach: &Reach, duties: Duties) -> Vec<&'static str> {
        excess("s3://b/p", reach, duties).findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_is_allowed_and_not_needed_is_found() {
        let all = Reach { reads_data: Ok(true), deletes: Ok(true) };
        let none = Reach { reads_data: Ok(false), deletes: Ok(false) };
        for (protects, restores, tidies) in (0..8).map(|bits| (bits & 4 != 0, bits & 2 != 0, bits & 1 != 0)) {
            let duties = Duties { protects, restores, tidies };
            let found = codes(&all, duties);
            assert_eq!(found.contains(&"reads-data"), protects && !restores, "{duties:?}");
            assert_eq!(found.contains(&"may-delete"), protects && !tidies, "{duties:?}");
            assert!(codes(&none, duties).is_empty(), "{duties:?}");
        }
        // What was not seen is said, and is no accusation.
        let unseen = Reach { reads_data: Err(Unseen::Failed("timeout".into())), deletes: Err(Unseen::Failed("timeout".into())) };
        let found = excess("s3://b/p", &unseen, Duties { protects: true, restores: false, tidies: false });
        assert_eq!((found.findings.len(), found.notes.len()), (0, 2));
    }
}
