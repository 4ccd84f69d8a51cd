//! Who a drill's server runs as: somebody who owns nothing else.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use lifeboat_core::drill::place::user_ids;

use super::PlaceError;
use crate::owners;

/// The user of a drill's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceUser {
    /// Its number.
    pub uid: u32,
    /// Its group's.
    pub gid: u32,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Whether the number is nobody's but this drill's.
    pub dedicated: bool,
    /// Whether it is another one than ours: then we are root.
    pub switched: bool,
}

impl PlaceUser {
    /// As root the one that is `wanted`, or a number that nobody has; otherwise ourselves.
    pub(super) fn choose(wanted: Option<&str>, drill: &str) -> Result<Self, PlaceError> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if !uid.is_root() {
            let ourselves =
                Self { uid: uid.as_raw(), gid: gid.as_raw(), name: owners::user(uid.as_raw()), dedicated: false, switched: false };
            return match wanted.filter(|wanted| ourselves.name.as_deref() != Some(*wanted)) {
                Some(wanted) => {
                    let problem = format!("only root can change the user, and this is {ourselves}");
                    Err(PlaceError::User { user: wanted.to_owned(), problem })
                }
                None => Ok(ourselves),
            };
        }
        if let Some(wanted) = wanted {
            let failed = |problem: &str| PlaceError::User { user: wanted.to_owned(), problem: problem.to_owned() };
            let (uid, gid) = owners::ids_of(wanted).ok_or_else(|| failed("/etc/passwd does not have it"))?;
            if uid == 0 {
                return Err(failed("PostgreSQL refuses to run as root"));
            }
            return Ok(Self { uid, gid, name: Some(wanted.to_owned()), dedicated: false, switched: true });
        }
        let mapped = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let groups = fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
        let in_use = users_of_processes();
        let has_group = |id: u32| {
            fs::read_to_string("/etc/group").is_ok_and(|text| text.lines().any(|line| line.split(':').nth(2) == Some(&id.to_string())))
        };
        let grouped: Vec<u32> = user_ids(drill, &groups).collect();
        let free = |id: &u32| owners::user(*id).is_none() && !has_group(*id) && !in_use.contains(id) && grouped.contains(id);
        let found = user_ids(drill, &mapped).find(free).map(|id| Self { uid: id, gid: id, name: None, dedicated: true, switched: true });
        found.ok_or_else(|| PlaceError::User {
            user: "a user of its own".into(),
            problem: "no number is free that nobody has; name a user in the configuration".into(),
        })
    }

    /// Who files have to be given to.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.switched.then_some((self.uid, self.gid))
    }

    /// The number, where whatever has it is the drill's.
    pub(super) fn only_ours(&self) -> Option<u32> {
        self.dedicated.then_some(self.uid)
    }
}

impl fmt::Display for PlaceUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.uid),
            None => write!(f, "user id {} without a name", self.uid),
        }
    }
}

fn users_of_processes() -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .filter_map(|entry| Some(entry.metadata().ok()?.uid()))
        .collect()
}
