//! Processes of this host, told apart also from later ones that got their number.

use serde::{Deserialize, Serialize};

/// One process of one boot: no other is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in ticks since the machine was; `None`: it was gone already.
    pub ticks: Option<u64>,
    /// The boot that both are of.
    pub boot: String,
}

impl ProcessId {
    /// The process that has this number now.
    pub fn of(pid: u32) -> Self {
        Self { pid, ticks: start_ticks(pid), boot: boot_id() }
    }

    /// This process.
    pub fn own() -> Self {
        Self::of(std::process::id())
    }

    /// Whether it still runs, as far as anybody can tell: of a machine that does not say when processes began, a number that is taken counts.
    pub fn is_alive(&self) -> bool {
        if self.boot != boot_id() || is_zombie(self.pid) {
            return false;
        }
        match (self.ticks, start_ticks(self.pid)) {
            (Some(then), Some(now)) => then == now,
            (None, _) | (_, None) => false,
        }
    }
}

/// Ended, and its parent has not taken note of it: it runs no more.
pub(crate) fn is_zombie(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X') | None))
}

/// When a process was started, in ticks since the machine was (proc_pid_stat(5), field 22): with its number, no other has it.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may have anything in it; the state behind it is field 3.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// What tells this boot of the machine from every other; empty where it does not say (random(4)).
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_ended_and_another_one_with_its_number_is_not_it() {
        assert!(ProcessId::own().is_alive());
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let id = ProcessId::of(child.id());
        assert!(id.is_alive());
        assert!(!ProcessId { ticks: id.ticks.map(|ticks| ticks + 1), ..id.clone() }.is_alive());
        assert!(!ProcessId { boot: "another".into(), ..id.clone() }.is_alive());
        child.kill().unwrap();
        // Not waited for: a zombie has its number still.
        while !is_zombie(id.pid) {
            std::thread::yield_now();
        }
        assert!(!id.is_alive());
        child.wait().unwrap();
        assert!(!id.is_alive());
    }
}
