//! Which files of a data directory a physical backup copies, and which of them have pages.
//!
//! The rules are those of PostgreSQL's own base backup (`src/backend/backup/basebackup.c`:
//! `excludeDirContents`, `excludeFiles`, `noChecksumFiles`; manual section 26.3.4), matched by path
//! relative to the data directory, never by base name alone (c025).

/// Directories whose contents are not copied; the directories are (c023, c024).
const EMPTIED: [&str; 8] = ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_wal"];

/// Files at the top that are not copied (c025).
const SKIPPED_FILES: [(&str, &str); 16] = [
    ("postmaster.pid", "belongs to the running server"),
    ("postmaster.opts", "belongs to the running server"),
    ("postgresql.auto.conf.tmp", "temporary"),
    ("current_logfiles.tmp", "temporary"),
    ("backup_label", "comes from the end of the backup, never from disk"),
    ("backup_label.old", "of an earlier backup"),
    ("tablespace_map", "comes from the end of the backup, never from disk"),
    ("tablespace_map.old", "of an earlier backup"),
    ("backup_manifest", "of an earlier backup"),
    ("backup_manifest.tmp", "temporary"),
    ("recovery.signal", "would start an unwanted recovery"),
    ("standby.signal", "would start an unwanted recovery"),
    ("recovery.conf", "would start an unwanted recovery"),
    ("recovery.done", "of an earlier recovery"),
    ("global/pg_internal.init", "a cache that the server rebuilds"),
    ("lifeboat.restoring", "ours"),
];

/// What to do with a path of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Copy it.
    Copy,
    /// Keep the directory, without what is in it.
    Empty,
    /// Leave it out, and why.
    Skip(&'static str),
}

/// What to do with a path. `path` is relative to the data directory; tablespaces stand below
/// `pg_tblspc/<oid>/`. `version_directory` is this cluster's directory in a tablespace,
/// `PG_<major>_<catalog version>`.
pub fn disposition(path: &str, is_directory: bool, version_directory: &str) -> Disposition {
    if let Some((_, why)) = SKIPPED_FILES.iter().find(|(name, _)| *name == path) {
        return Disposition::Skip(why);
    }
    if is_directory && EMPTIED.contains(&path) {
        return Disposition::Empty;
    }
    if let Some((top, rest)) = path.split_once('/')
        && EMPTIED.contains(&top)
    {
        return if top == "pg_wal" && is_directory && matches!(rest, "archive_status" | "summaries") {
            Disposition::Empty
        } else {
            Disposition::Skip("not part of a base backup")
        };
    }
    let mut segments = path.split('/');
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.starts_with("pgsql_tmp") {
        return Disposition::Skip("temporary");
    }
    match (segments.next(), segments.next(), segments.next(), segments.next()) {
        // A tablespace's location may hold directories of other clusters and versions (c027).
        (Some("pg_tblspc"), Some(_), Some(inner), _) if inner != version_directory => {
            return Disposition::Skip("belongs to another cluster or version");
        }
        (Some("base"), Some(_), Some(file), None) | (Some("global"), Some(file), None, None) if file.starts_with("pg_internal.init") => {
            return Disposition::Skip("a cache that the server rebuilds");
        }
        _ => {}
    }
    if in_database(path) && !is_directory {
        if name.starts_with("pg_internal.init") {
            return Disposition::Skip("a cache that the server rebuilds");
        }
        if is_temporary_relation(name) {
            return Disposition::Skip("a temporary relation");
        }
    }
    Disposition::Copy
}

/// Whether `path` is a file directly in the directory of one database.
fn in_database(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').collect();
    matches!(segments[..], ["base", _, _] | ["pg_tblspc", _, _, _, _])
}

/// `t<backend>_<filenode>` with fork and segment (c022).
fn is_temporary_relation(name: &str) -> bool {
    let Some((backend, rest)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) else { return false };
    !backend.is_empty() && backend.bytes().all(|b| b.is_ascii_digit()) && parse_relation_name(rest).is_some()
}

/// The forks of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// Its rows or its index.
    Main,
    /// Free space map.
    FreeSpace,
    /// Visibility map.
    Visibility,
    /// What an unlogged relation is reset to.
    Init,
}

/// One file of a relation (c018).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile<'a> {
    /// Its directory.
    pub directory: &'a str,
    /// Its file number.
    pub number: u32,
    /// Its fork.
    pub fork: Fork,
    /// Which file of the fork, from 0.
    pub segment: u32,
}

fn parse_relation_name(name: &str) -> Option<(u32, Fork, u32)> {
    let (stem, segment) = match name.split_once('.') {
        None => (name, 0),
        Some((stem, segment)) => (stem, parse_number(segment).filter(|n| *n > 0)?),
    };
    let (number, fork) = match stem.split_once('_') {
        None => (stem, Fork::Main),
        Some((number, "fsm")) => (number, Fork::FreeSpace),
        Some((number, "vm")) => (number, Fork::Visibility),
        Some((number, "init")) => (number, Fork::Init),
        Some(_) => return None,
    };
    Some((parse_number(number)?, fork, segment))
}

fn parse_number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

impl<'a> RelationFile<'a> {
    /// The relation file at a path, if it is one: below `global`, `base/<db>` and tablespaces.
    pub fn parse(path: &'a str) -> Option<Self> {
        let (directory, name) = path.rsplit_once('/')?;
        if directory != "global" && !in_database(path) {
            return None;
        }
        let (number, fork, segment) = parse_relation_name(name)?;
        Some(Self { directory, number, fork, segment })
    }

    /// The number of the file's first block in the relation's fork (c017).
    pub fn first_block(&self, relation_segment_blocks: u32) -> u32 {
        self.segment.wrapping_mul(relation_segment_blocks)
    }
}

/// Which of these paths belong to unlogged relations and are left out: all but the init fork, if
/// the init fork stands beside it in the same listing (c021).
pub fn unlogged<'a>(paths: impl Iterator<Item = &'a str> + Clone) -> std::collections::HashSet<&'a str> {
    let inits: std::collections::HashSet<(&str, u32)> = paths
        .clone()
        .filter_map(RelationFile::parse)
        .filter(|file| file.fork == Fork::Init)
        .map(|file| (file.directory, file.number))
        .collect();
    paths
        .filter(|path| {
            RelationFile::parse(path).is_some_and(|file| file.fork != Fork::Init && inits.contains(&(file.directory, file.number)))
        })
        .collect()
}

/// Files whose disappearance during a backup is an error, not a dropped table (c009).
pub fn must_exist(path: &str) -> bool {
    matches!(path, "global/pg_control" | "PG_VERSION" | "global/pg_filenode.map")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Disposition {
        disposition(path, false, "PG_15_202209061")
    }

    fn directory(path: &str) -> Disposition {
        disposition(path, true, "PG_15_202209061")
    }

    #[test]
    fn c018_which_files_have_pages() {
        let parse = |path| RelationFile::parse(path).map(|f| (f.number, f.fork, f.segment));
        assert_eq!(parse("base/5/16384"), Some((16384, Fork::Main, 0)));
        assert_eq!(parse("base/5/16384.12"), Some((16384, Fork::Main, 12)));
        assert_eq!(parse("base/5/16384_fsm"), Some((16384, Fork::FreeSpace, 0)));
        assert_eq!(parse("global/1262_vm.1"), Some((1262, Fork::Visibility, 1)));
        assert_eq!(parse("pg_tblspc/16400/PG_15_202209061/5/16401_init"), Some((16401, Fork::Init, 0)));
        for other in [
            "base/5/pg_filenode.map",
            "base/5/PG_VERSION",
            "global/pg_control",
            "PG_VERSION",
            "pg_xact/0000",
            "base/5/1.x",
            "base/5/_vm",
            "base/5/16384.0",
            "pg_multixact/offsets/0000",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn c021_unlogged_relations_keep_only_their_init_fork() {
        let paths = ["base/5/100", "base/5/100_fsm", "base/5/100_init", "base/5/100.1", "base/5/200", "base/6/100"];
        let mut skipped: Vec<&str> = unlogged(paths.into_iter()).into_iter().collect();
        skipped.sort_unstable();
        assert_eq!(skipped, ["base/5/100", "base/5/100.1", "base/5/100_fsm"]);
    }

    #[test]
    fn c022_temporary_relations_and_files_are_skipped_at_any_depth() {
        for path in [
            "base/5/t3_16384",
            "base/5/t3_16384_fsm",
            "base/5/t3_16384.1",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "pg_tblspc/1/PG_15_202209061/5/t1_2",
            "pg_tblspc/1/PG_15_202209061/pgsql_tmp",
        ] {
            assert!(matches!(file(path), Disposition::Skip(_)), "{path}");
        }
        for path in ["base/5/t_16384", "base/5/tx_1", "t3_16384", "base/5/16384"] {
            assert_eq!(file(path), Disposition::Copy, "{path}");
        }
    }

    #[test]
    fn c023_directories_that_are_kept_empty() {
        for name in ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"] {
            assert_eq!(directory(name), Disposition::Empty);
            assert!(matches!(file(&format!("{name}/x")), Disposition::Skip(_)));
            assert!(matches!(directory(&format!("{name}/slot")), Disposition::Skip(_)));
        }
        // A directory of that name elsewhere is the user's.
        assert_eq!(directory("base/pg_notify"), Disposition::Copy);
    }

    #[test]
    fn c024_pg_wal_and_its_directories_exist_without_old_wal() {
        assert_eq!(directory("pg_wal"), Disposition::Empty);
        assert_eq!(directory("pg_wal/archive_status"), Disposition::Empty);
        assert_eq!(directory("pg_wal/summaries"), Disposition::Empty);
        assert!(matches!(file("pg_wal/000000010000000000000001"), Disposition::Skip(_)));
        assert!(matches!(file("pg_wal/archive_status/000000010000000000000001.ready"), Disposition::Skip(_)));
    }

    #[test]
    fn c025_signal_files_are_not_copied_but_only_at_their_place() {
        for path in [
            "recovery.signal",
            "standby.signal",
            "postmaster.pid",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "postgresql.auto.conf.tmp",
            "global/pg_internal.init",
            "base/5/pg_internal.init.123",
        ] {
            assert!(matches!(file(path), Disposition::Skip(_)), "{path}");
        }
        for path in ["base/5/recovery.signal", "log/postmaster.pid", "postgresql.auto.conf", "current_logfiles"] {
            assert_eq!(file(path), Disposition::Copy, "{path}");
        }
    }

    #[test]
    fn c027_other_clusters_in_a_tablespace_are_left_alone() {
        assert_eq!(directory("pg_tblspc/16400/PG_15_202209061"), Disposition::Copy);
        assert!(matches!(directory("pg_tblspc/16400/PG_14_202107181"), Disposition::Skip(_)));
        assert!(matches!(file("pg_tblspc/16400/somebody.txt"), Disposition::Skip(_)));
    }

    #[test]
    fn c017_blocks_count_over_the_files_of_a_relation() {
        assert_eq!(RelationFile::parse("base/5/1.3").unwrap().first_block(131_072), 3 * 131_072);
    }
}
