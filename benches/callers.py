#!/usr/bin/env python3
"""Calls archive_command and restore_command as PostgreSQL does: one `sh -c` after the other, in the data directory.

A program of its own, which becomes the server's user (whose reach this interpreter may not be in) and prints what it measured as JSON.
It adopts what the commands leave behind themselves (asynchronous pushers, prefetchers), so that their CPU time is counted. Reads its task
as JSON: `operation` (archive or restore), `data`, `command`, `names`; `keep`: whether restored files stay; `user`: null, or the ids to
become.
"""

import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
# pgarch.c, NUM_ARCHIVE_RETRIES.
ARCHIVE_TRIES = 3
SEGMENT_BYTES = 16 << 20


def call(command):
    """Like system(3)."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", command], os.environ)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def filled_in(command, name, path):
    return command.replace("%f", name).replace("%p", path)


def archive(command, name):
    """pgarch_ArchiverCopyLoop: the status file gets its new name after success, and only then."""
    for attempt in range(ARCHIVE_TRIES):
        if attempt:
            time.sleep(1)
        code = call(filled_in(command, name, f"pg_wal/{name}"))
        if code == 0:
            status = f"pg_wal/archive_status/{name}"
            os.rename(f"{status}.ready", f"{status}.done")
            return
    sys.exit(f"archiving {name} ended with {code}")


class Restorer:
    """RestoreArchivedFile: always to the same name, which is taken away from it then."""

    def __init__(self, keep):
        self.keep, self.last = keep, None

    def restore(self, command, name):
        code = call(filled_in(command, name, "pg_wal/RECOVERYXLOG"))
        if code != 0:
            sys.exit(f"restoring {name} ended with {code}")
        if os.stat("pg_wal/RECOVERYXLOG").st_size != SEGMENT_BYTES:
            sys.exit(f"{name} has another length")
        os.rename("pg_wal/RECOVERYXLOG", f"pg_wal/{name}")
        if self.last and not self.keep:
            os.unlink(f"pg_wal/{self.last}")
        self.last = name


def children_cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main():
    task = json.load(sys.stdin)
    if task["user"]:
        user, group = task["user"]
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.chdir(task["data"])
    restorer = Restorer(task["keep"])
    one = archive if task["operation"] == "archive" else restorer.restore
    calls = []
    start = before = time.monotonic()
    for name in task["names"]:
        one(task["command"], name)
        now = time.monotonic()
        calls.append(now - before)
        before = now
    wall = before - start
    # What still runs works on for nothing, but is part of the cost.
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    left = time.monotonic() - before
    if restorer.last and not restorer.keep:
        Path(f"pg_wal/{restorer.last}").unlink()
    print(json.dumps({"wall_seconds": wall, "cpu_seconds": children_cpu_seconds(), "left_seconds": left, "calls": calls}))


if __name__ == "__main__":
    main()
