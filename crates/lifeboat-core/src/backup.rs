//! Planning a backup: how the database is copied, in which order, what is left out, and why.

use serde::{Deserialize, Serialize};

use crate::postgres::data_directory::{self, Disposition, RelationFile};
use crate::repository::file_table::{Kind, Meta};
use crate::repository::manifest::CopyMethod;

/// How the user wants the database copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyChoice {
    /// Whatever fits.
    #[default]
    Auto,
    /// From the data directory on this host.
    Local,
    /// Through the replication protocol.
    Stream,
    /// With pg_dump.
    Logical,
}

/// What is known when the way to copy is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyFacts {
    /// The data directory that was configured.
    pub data_directory: Option<String>,
    /// Whether it can be read here and is a data directory.
    pub data_directory_readable: bool,
    /// Whether the role may replicate and the server has room for it; unknown before the server was asked.
    pub can_replicate: Option<bool>,
}

/// A way to copy, and why this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyDecision {
    /// The way.
    pub method: CopyMethod,
    /// In words.
    pub reason: String,
}

/// Why no plan could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A local copy without a directory to copy from.
    #[error("copy locally: no data directory is configured")]
    NoDataDirectory,
    /// The directory is not there or not readable.
    #[error("copy locally: {0} is not a readable data directory")]
    Unreadable(String),
    /// Data would be stored twice or overwritten on the way back (c028).
    #[error("copy tablespace {oid}: {problem}")]
    Tablespace {
        /// Its OID.
        oid: String,
        /// What is wrong.
        problem: String,
    },
}

/// Chooses the way to copy.
pub fn choose_copy(choice: CopyChoice, facts: &CopyFacts) -> Result<CopyDecision, PlanError> {
    let decide = |method, reason: String| Ok(CopyDecision { method, reason });
    match (choice, &facts.data_directory) {
        (CopyChoice::Local, None) => Err(PlanError::NoDataDirectory),
        (CopyChoice::Local, Some(directory)) if !facts.data_directory_readable => Err(PlanError::Unreadable(directory.clone())),
        (CopyChoice::Local, Some(_)) => decide(CopyMethod::Local, "asked for".into()),
        (CopyChoice::Stream, _) => decide(CopyMethod::Stream, "asked for".into()),
        (CopyChoice::Logical, _) => decide(CopyMethod::Logical, "asked for".into()),
        (CopyChoice::Auto, Some(directory)) if facts.data_directory_readable => {
            decide(CopyMethod::Local, format!("{directory} can be read here"))
        }
        (CopyChoice::Auto, directory) => {
            let why = directory.as_ref().map_or("no data directory is configured".to_owned(), |d| format!("{d} cannot be read here"));
            match facts.can_replicate {
                Some(true) => decide(CopyMethod::Stream, format!("{why}, and the role may replicate")),
                Some(false) => decide(CopyMethod::Logical, format!("{why}, and the role may not replicate")),
                None => decide(CopyMethod::Stream, format!("{why}; the server was not asked yet whether the role may replicate")),
            }
        }
    }
}

/// One entry of a listing of the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What it is.
    pub meta: Meta,
    /// Sockets, fifos, devices.
    pub special: bool,
}

/// A file that will be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// What it is.
    pub meta: Meta,
    /// Whether it has pages, and the number of the first (c017).
    pub first_block: Option<u32>,
    /// It may vanish while the copy runs (c009).
    pub may_vanish: bool,
}

/// What a local copy does, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalCopyPlan {
    /// Directories, links and tablespaces.
    pub entries: Vec<Meta>,
    /// Small files first, so that what a server needs to start stands together; then the others.
    /// `global/pg_control` is not among them: it is read last (c007).
    pub files: Vec<PlannedFile>,
    /// What is left out, and why.
    pub skipped: Vec<(String, String)>,
    /// Sum of the files' sizes.
    pub bytes: u64,
}

/// Plans a local copy from a listing. `version_directory` is this cluster's directory in
/// tablespaces; `relation_segment_blocks` comes from `pg_control`; files up to `boot_bytes` go first.
pub fn plan_local_copy(listing: Vec<Listed>, version_directory: &str, relation_segment_blocks: u32, boot_bytes: u64) -> LocalCopyPlan {
    let mut plan = LocalCopyPlan::default();
    let paths = listing.iter().filter(|entry| entry.meta.kind == Kind::File && !entry.special).map(|entry| entry.meta.path.as_str());
    let unlogged: std::collections::HashSet<String> = data_directory::unlogged(paths).into_iter().map(str::to_owned).collect();
    for entry in listing {
        let path = &entry.meta.path;
        if entry.meta.outside {
            plan.bytes += entry.meta.size;
            plan.files.push(PlannedFile { meta: entry.meta, first_block: None, may_vanish: false });
            continue;
        }
        if entry.special {
            plan.skipped.push((entry.meta.path, "a socket, fifo or device".into()));
            continue;
        }
        let is_directory = matches!(entry.meta.kind, Kind::Directory | Kind::Tablespace);
        match data_directory::disposition(path, is_directory, version_directory) {
            Disposition::Skip(reason) => plan.skipped.push((entry.meta.path, reason.into())),
            Disposition::Copy | Disposition::Empty if entry.meta.kind != Kind::File => plan.entries.push(entry.meta),
            Disposition::Empty => plan.skipped.push((entry.meta.path, "not a directory".into())),
            Disposition::Copy if path == "global/pg_control" => {}
            Disposition::Copy if unlogged.contains(path) => plan.skipped.push((entry.meta.path, "an unlogged relation".into())),
            Disposition::Copy => {
                let first_block = RelationFile::parse(path).map(|file| file.first_block(relation_segment_blocks));
                let may_vanish = !data_directory::must_exist(path);
                plan.bytes += entry.meta.size;
                plan.files.push(PlannedFile { meta: entry.meta, first_block, may_vanish });
            }
        }
    }
    // pg_wal may be a link; a directory of that name must be there all the same (c024).
    plan.entries.sort_by(|a, b| a.path.cmp(&b.path));
    plan.files.sort_by(|a, b| (a.meta.size > boot_bytes, &a.meta.path).cmp(&(b.meta.size > boot_bytes, &b.meta.path)));
    plan.skipped.sort();
    plan
}

/// Checks where tablespaces are (c028). `links` are (oid, canonical location).
pub fn check_tablespaces(data_directory: &str, links: &[(String, String)]) -> Result<(), PlanError> {
    let inside = |inner: &str, outer: &str| inner == outer || inner.starts_with(&format!("{}/", outer.trim_end_matches('/')));
    for (index, (oid, location)) in links.iter().enumerate() {
        let problem = if inside(location, data_directory) {
            Some(format!("{location} is inside the data directory"))
        } else if inside(data_directory, location) {
            Some(format!("the data directory is inside {location}"))
        } else {
            links[..index]
                .iter()
                .find(|(_, other)| inside(other, location) || inside(location, other))
                .map(|(other, _)| format!("{location} is shared with tablespace {other}"))
        };
        if let Some(problem) = problem {
            return Err(PlanError::Tablespace { oid: oid.clone(), problem });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind, size: u64) -> Listed {
        let meta = Meta {
            path: path.into(),
            kind,
            size,
            mode: 0o600,
            owner: None,
            group: None,
            uid: 0,
            gid: 0,
            modified: None,
            target: None,
            outside: false,
        };
        Listed { meta, special: false }
    }

    #[test]
    fn auto_takes_the_directory_then_replication_then_pg_dump() {
        let method = |choice, directory: Option<&str>, readable, replicate| {
            let facts =
                CopyFacts { data_directory: directory.map(str::to_owned), data_directory_readable: readable, can_replicate: replicate };
            choose_copy(choice, &facts).map(|decision| decision.method)
        };
        assert_eq!(method(CopyChoice::Auto, Some("/d"), true, Some(true)), Ok(CopyMethod::Local));
        assert_eq!(method(CopyChoice::Auto, Some("/d"), false, Some(true)), Ok(CopyMethod::Stream));
        assert_eq!(method(CopyChoice::Auto, None, false, Some(false)), Ok(CopyMethod::Logical));
        assert_eq!(method(CopyChoice::Local, None, false, None), Err(PlanError::NoDataDirectory));
        assert_eq!(method(CopyChoice::Local, Some("/d"), false, None), Err(PlanError::Unreadable("/d".into())));
        assert_eq!(method(CopyChoice::Logical, Some("/d"), true, None), Ok(CopyMethod::Logical));
    }

    #[test]
    fn c007_pg_control_is_not_among_the_files_that_are_copied_early() {
        let listing = vec![
            entry("global", Kind::Directory, 0),
            entry("global/pg_control", Kind::File, 8192),
            entry("base/5/2", Kind::File, 5 << 20),
            entry("base/5/3", Kind::File, 100),
            entry("base/5/9_init", Kind::File, 0),
            entry("base/5/9", Kind::File, 8192),
            Listed { special: true, ..entry(".s.PGSQL.5432", Kind::File, 0) },
        ];
        let plan = plan_local_copy(listing, "PG_15_1", 131_072, 1 << 20);
        let names: Vec<&str> = plan.files.iter().map(|file| file.meta.path.as_str()).collect();
        assert_eq!(names, ["base/5/3", "base/5/9_init", "base/5/2"], "small ones first, no pg_control, no unlogged data");
        assert_eq!(plan.bytes, 100 + (5 << 20));
        assert_eq!(
            plan.skipped,
            [
                (".s.PGSQL.5432".to_owned(), "a socket, fifo or device".to_owned()),
                ("base/5/9".to_owned(), "an unlogged relation".to_owned())
            ]
        );
    }

    #[test]
    fn c028_tablespaces_that_overlap_are_refused() {
        let check = |links: &[(&str, &str)]| {
            let links: Vec<_> = links.iter().map(|(oid, at)| ((*oid).to_owned(), (*at).to_owned())).collect();
            check_tablespaces("/pg/data", &links).is_ok()
        };
        assert!(check(&[("1", "/ts/a"), ("2", "/ts/ab")]));
        assert!(!check(&[("1", "/pg/data/ts")]));
        assert!(!check(&[("1", "/pg")]));
        assert!(!check(&[("1", "/ts/a"), ("2", "/ts/a")]));
        assert!(!check(&[("1", "/ts/a"), ("2", "/ts/a/b")]));
    }
}
