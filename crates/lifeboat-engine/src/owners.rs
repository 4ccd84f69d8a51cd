//! Names of users and groups, by number and back.

use std::collections::HashMap;

/// Names by number.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    users: HashMap<u32, Option<String>>,
    groups: HashMap<u32, Option<String>>,
}

/// Looks a number up in a file of the form `name:x:number:…`.
fn look_up(file: &str, number: u32) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(number.to_string().as_str()))?;
    line.split(':').next().map(str::to_owned)
}

/// The name of the user with this number, where this host knows one.
pub fn user(uid: u32) -> Option<String> {
    look_up("/etc/passwd", uid)
}

/// The number of a user or group in such a file.
pub(crate) fn number_of(file: &str, name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// Number and first group of the user with this name.
pub(crate) fn ids_of(name: &str) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> = text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

impl Owners {
    pub(crate) fn user(&mut self, uid: u32) -> Option<String> {
        self.users.entry(uid).or_insert_with(|| user(uid)).clone()
    }

    pub(crate) fn group(&mut self, gid: u32) -> Option<String> {
        self.groups.entry(gid).or_insert_with(|| look_up("/etc/group", gid)).clone()
    }
}
