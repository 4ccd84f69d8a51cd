"""What benchmarks measure with, and how they speak: processes with their CPU time and memory, and the state of caches before a run."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1024 * 1024
CORES = os.cpu_count() or 1


def fail(message):
    sys.exit(f"bench: {message}")


def say(message):
    print(f"bench: {message}", file=sys.stderr, flush=True)


def environment():
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@dataclass
class Measure:
    """One run of one tool."""

    wall_seconds: float
    cpu_seconds: float
    server_cpu_seconds: float
    rss_mib: float
    stored_mib: float = 0.0


def processes():
    """Parent and CPU ticks (own and of children waited for) of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        found[int(name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    return found


def tree(all_processes, root):
    """The process and its descendants."""
    members = {root} if root in all_processes else set()
    while True:
        more = {pid for pid, (parent, *_) in all_processes.items() if parent in members} - members
        if not more:
            return members
        members |= more


class Sampler(threading.Thread):
    """The peak resident memory of a process and of each of its descendants."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.root, self.peaks, self.ended = pid, {}, threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            self.sample(self.root)

    def sample(self, pid):
        # Down the children's lists, not through all of /proc: on a small machine that would slow down what is measured.
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/status", encoding="utf-8") as status:
                for line in status:
                    if line.startswith("VmHWM:"):
                        # The kernel's own peak since exec, so the last sample has them all.
                        self.peaks[pid] = int(line.split()[1]) * 1024
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:
                    for child in children.read().split():
                        self.sample(int(child))


def measured(command, user, server, directory, log, env=None):
    """Runs a command to its end; it must succeed."""
    with open(log, "ab") as output:
        before, start = server.cpu_seconds(), time.monotonic()
        child = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory,
            env=env or environment(), **user.options)
        sampler = Sampler(child.pid)
        sampler.start()
        # wait4: with the CPU time of the children that the tool has waited for.
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        sampler.ended.set()
        sampler.join()
    if child.returncode != 0:
        tail = "\n".join(Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        fail(f"{command[0]} ended with {child.returncode}:\n{tail}")
    # Not usage.ru_maxrss: that is at least what this program had when it started the tool.
    rss = sum(sampler.peaks.values())
    return Measure(wall, usage.ru_utime + usage.ru_stime, server.cpu_seconds() - before, rss / MIB)


def stored_mib(directory):
    return sum(path.lstat().st_blocks * 512 for path in Path(directory).rglob("*") if not path.is_dir()) / MIB


def remove(path):
    shutil.rmtree(path, ignore_errors=True)


def settle(cold):
    """The state before each run: nothing left to write, and the page cache empty or not."""
    os.sync()
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def can_drop_caches():
    return os.geteuid() == 0 and os.access("/proc/sys/vm/drop_caches", os.W_OK)


def warm_up(directory):
    """Reads every file, so that "warm" means the same for the first tool and the last."""
    for path in Path(directory).rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.read(MIB):
                    pass


def mkdir(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def touch(path):
    path.touch()
    return path
