//! Where a drill may work: never where something lies that is worth a backup, and as a user who is nobody else.

use std::path::{Path, PathBuf};

/// How two directories lie to each other, seen from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// They are one.
    Same,
    /// The first is inside the second.
    Inside,
    /// The first contains the second.
    Contains,
}

impl Overlap {
    /// In words, between the names of both.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Same => "is",
            Self::Inside => "is inside",
            Self::Contains => "contains",
        }
    }
}

/// How two absolute paths without links lie to each other, by their names.
pub fn overlap(one: &Path, other: &Path) -> Option<Overlap> {
    match (one.starts_with(other), other.starts_with(one)) {
        (true, true) => Some(Overlap::Same),
        (true, false) => Some(Overlap::Inside),
        (false, true) => Some(Overlap::Contains),
        (false, false) => None,
    }
}

/// A mount, by a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file system, as `major:minor`.
    pub device: String,
    /// What of it is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
}

/// Reads `/proc/self/mountinfo`; lines that are none are left out.
pub fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Mount { device: device.to_owned(), root: unescaped(root).into(), point: unescaped(point).into() })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// Blank, tab, newline and backslash are written as three octal digits behind a backslash.
fn unescaped(text: &str) -> String {
    let mut plain = text.to_owned();
    for (escape, is) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escape, is);
    }
    plain
}

/// Which file system a path without links is on, and where in it: the same directory has one such place, however often it is mounted.
pub fn in_file_system(path: &Path, mounts: &[Mount]) -> Option<(String, PathBuf)> {
    // Of several mounts on one point the last is the one that is seen.
    let mount = mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())?;
    let rest = path.strip_prefix(&mount.point).ok()?;
    let root = mount.root.join(rest);
    Some((mount.device.clone(), if rest.as_os_str().is_empty() { mount.root.clone() } else { root }))
}

/// How two directories lie to each other, by name and by what is mounted where.
pub fn overlap_through_mounts(one: &Path, other: &Path, mounts: &[Mount]) -> Option<Overlap> {
    overlap(one, other).or_else(|| {
        let (one, other) = (in_file_system(one, mounts)?, in_file_system(other, mounts)?);
        (one.0 == other.0).then(|| overlap(&one.1, &other.1)).flatten()
    })
}

/// User ids that nobody gives to anybody: 1879048192 to 2147483647 is "unused" in the table of systemd's `UIDS-GIDS.md`, which lists
/// what distributions, containers and user namespaces take. The last is left out.
const NOBODYS: (u32, u32) = (1_879_048_192, 2_147_483_646);

/// Where ids as high as those do not exist, as in a container that maps only some: the end of what `useradd` gives to people.
const LOW: (u32, u32) = (58_000, 59_999);

/// Ids that a drill can run as, the best first: other drills begin elsewhere.
///
/// `mapped`: `/proc/self/uid_map`, three numbers a line (user_namespaces(7)).
pub fn user_ids(drill: &str, mapped: &str) -> impl Iterator<Item = u32> {
    let ranges: Vec<(u64, u64)> = mapped
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u64>);
            let (from, _, count) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
            Some((from, from.saturating_add(count)))
        })
        .collect();
    let is_mapped = move |uid: u32| ranges.is_empty() || ranges.iter().any(|(from, to)| (*from..*to).contains(&u64::from(uid)));
    let start = crc32c::crc32c(drill.as_bytes());
    let of = move |(from, to): (u32, u32)| (0..64u32).map(move |step| from + start.wrapping_add(step) % (to - from + 1));
    of(NOBODYS).chain(of(LOW)).filter(move |uid| is_mapped(*uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_directory_is_found_under_every_mount() {
        let mounts = mounts(concat!(
            "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n",
            "30 22 8:2 / /var/lib/postgresql rw - xfs /dev/sdb1 rw\n",
            "31 22 8:2 /15/main /mnt/with\\040blank rw - xfs /dev/sdb1 rw\n",
            "32 22 8:1 /srv/repository /drills rw - ext4 /dev/sda1 rw\n",
            "nonsense\n",
        ));
        let found = |one: &str, other: &str| overlap_through_mounts(Path::new(one), Path::new(other), &mounts);
        let data = "/var/lib/postgresql/15/main";
        assert_eq!(found(data, data), Some(Overlap::Same));
        assert_eq!(found("/mnt/with blank", data), Some(Overlap::Same));
        assert_eq!(found("/mnt/with blank/base", data), Some(Overlap::Inside));
        assert_eq!(found("/mnt/with blank", "/var/lib/postgresql/15/main/base"), Some(Overlap::Contains));
        assert_eq!(found("/drills", "/srv/repository/packs"), Some(Overlap::Contains));
        assert_eq!(found("/drills/x", "/srv/repository"), Some(Overlap::Inside));
        assert_eq!(found("/srv/other", "/srv/repository"), None);
        assert_eq!(found("/srv/repository-2", "/srv/repository"), None);
        // By name alone where nothing is known of mounts.
        assert_eq!(overlap_through_mounts(Path::new("/a"), Path::new("/a/b"), &[]), Some(Overlap::Contains));
    }

    #[test]
    fn ids_are_nobodys_and_mapped() {
        let all: Vec<u32> = user_ids("a-drill-1", "         0          0 4294967295\n").collect();
        assert!(all[..64].iter().all(|uid| (NOBODYS.0..=NOBODYS.1).contains(uid)));
        assert_eq!(all, user_ids("a-drill-1", "").collect::<Vec<_>>());
        assert_ne!(all[0], user_ids("a-drill-2", "").next().unwrap());
        let container: Vec<u32> = user_ids("a-drill-1", "0 100000 65536\n").collect();
        assert!(!container.is_empty() && container.iter().all(|uid| (LOW.0..=LOW.1).contains(uid)));
        assert_eq!(user_ids("a-drill-1", "0 1000 1\n").next(), None);
    }
}
