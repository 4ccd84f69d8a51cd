//! What the process does for its secrets before it has any.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Keeps memory and environment of this process from everybody but root: no core dump is written, whatever `ulimit` and
/// `core_pattern` say, no other process of the same user can attach to it, and `/proc/<pid>/environ` and `mem` are root's (prctl(2),
/// `PR_SET_DUMPABLE`).
///
/// `RLIMIT_CORE` would pass on to the servers that `restore --start` leaves running, and says nothing about the rest; this ends with
/// `execve`, so the programs that we run are as dumpable as ever. The price: whoever wants to trace or profile lifeboat must be root.
pub(crate) fn hide_memory() {
    // It cannot fail on Linux; elsewhere, or under a filter of system calls, there is nothing to hide behind, and work goes on.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
