"""A PostgreSQL server that a benchmark makes, the user it runs as, and the rows in it."""

import os
import pwd
import signal
import subprocess
import time
from pathlib import Path

from measuring import TICKS, environment, fail, processes, tree


class User:
    """Who runs the server and every tool: PostgreSQL refuses root, and a comparison wants one user for all."""

    def __init__(self):
        if os.geteuid() == 0:
            entry = pwd.getpwnam("postgres")
            self.options = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            self.ids = (entry.pw_uid, entry.pw_gid)
        else:
            self.options = {}
            self.ids = (-1, -1)

    def own(self, path):
        os.chown(path, *self.ids)
        return path


class Cluster:
    """A PostgreSQL server on a Unix socket."""

    def __init__(self, bin_directory, data, home, user):
        self.bin, self.data, self.home, self.user = Path(bin_directory), Path(data), Path(home), user
        self.server = None

    def run(self, program, *arguments, stdin=None, **options):
        env = environment() | {"PGHOST": str(self.home), "PGUSER": "postgres", "PGDATABASE": "postgres"}
        command = [str(self.bin / program), *map(str, arguments)]
        result = subprocess.run(
            command, input=stdin, stdin=None if stdin else subprocess.DEVNULL, capture_output=True, text=True, cwd=self.home,
            env=env, check=False, **self.user.options, **options)
        if result.returncode != 0:
            fail(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
        return result.stdout.strip()

    def sql(self, text):
        return self.run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-", stdin=text)

    def start(self, *settings, is_up=None, env=None):
        """`is_up` is asked ten times a second; the default asks the server, which costs some of its time."""
        log = open(self.home / "server.log", "ab")
        command = [self.bin / "postgres", "-D", self.data, "-c", f"unix_socket_directories={self.home}", "-c", "listen_addresses="]
        for setting in settings:
            command += ["-c", setting]
        self.server = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=env or environment(),
            start_new_session=True, **self.user.options)
        log.close()
        for _ in range(60 * 60 * 10):
            if self.server.poll() is not None:
                break
            if (is_up or self.is_primary)():
                return
            time.sleep(0.1)
        tail = "\n".join((self.home / "server.log").read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        fail(f"the server in {self.data} does not start:\n{tail}")

    def is_primary(self):
        """Whether it answers, and recovery has ended."""
        ready = subprocess.run(
            [self.bin / "psql", "-X", "-A", "-t", "-h", self.home, "-U", "postgres", "-c", "SELECT pg_is_in_recovery()", "postgres"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), cwd=self.home, check=False)
        return ready.stdout.strip() == "f"

    def stop(self, how=signal.SIGINT):
        if self.server and self.server.poll() is None:
            self.server.send_signal(how)
            self.server.wait()
        self.server = None

    def cpu_seconds(self):
        everyone = processes()
        return sum(everyone[pid][1] for pid in tree(everyone, self.server.pid)) / TICKS


def load_pgbench(cluster, scale, filler, partitions=0):
    """pgbench's tables; with filler `hex`, accounts that compress about as well as business data does, not sixty to one. With partitions,
    the accounts are in that many files."""
    parts = [f"--partitions={partitions}"] if partitions else []
    if filler == "blank":
        cluster.run("pgbench", "-i", "-q", *parts, "-s", scale)
    else:
        cluster.run("pgbench", "-i", "-q", "-I", "dt", *parts, "-s", scale)
        cluster.sql(
            f"BEGIN; TRUNCATE pgbench_accounts, pgbench_branches, pgbench_tellers;"
            f"INSERT INTO pgbench_branches SELECT i, 0, '' FROM generate_series(1, {scale}) i;"
            f"INSERT INTO pgbench_tellers SELECT i, 1 + (i - 1) / 10, 0, '' FROM generate_series(1, {10 * scale}) i;"
            f"INSERT INTO pgbench_accounts SELECT i, 1 + (i - 1) / 100000, i % 1000, md5(i::text) || md5((-i)::text)"
            f"  FROM generate_series(1, {100000 * scale}) i; COMMIT;")
        cluster.run("pgbench", "-i", "-q", "-I", "vp", "-s", scale)
    # Set the hint bits and freeze now: no tool should find pages that an earlier tool's run has changed.
    cluster.sql("VACUUM (FREEZE, ANALYZE); CHECKPOINT;")
