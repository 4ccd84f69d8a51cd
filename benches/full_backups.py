"""Full backups and restores of one PostgreSQL cluster that a benchmark makes: by lifeboat, by pgBackRest, and the proof that they are right."""

import subprocess

from measuring import MIB, environment, fail, measured, mkdir, remove, say, touch
from postgres import Cluster, load_pgbench
from programs import LIFEBOATS_LEVEL, LifeboatKeys, Repositories, pgbackrest_settings, quoted

# One account is about 128 bytes of table and 21 of index; pgbench makes 100 000 for each unit of scale.
MIB_PER_SCALE = 15.0


def make_cluster(arguments, work, user, partitions=0, env=None):
    """A cluster of the wanted size, with an archive_command for those that want one. `env` is the server's, and so that command's."""
    home, data = user.own(mkdir(work / "source")), work / "source" / "data"
    cluster = Cluster(arguments.pg_bin, data, home, user)
    cluster.run("initdb", "-D", data, "-N", "-k", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
    scale = int(arguments.gb * 1024 / MIB_PER_SCALE) + 1
    say(f"making a cluster: pgbench scale {scale}, {arguments.filler} filler")
    common = ["shared_buffers=512MB", "max_wal_size=16GB", "autovacuum=off", "checkpoint_timeout=1h"]
    cluster.start(*common, "fsync=off", "wal_level=minimal", "max_wal_senders=0", "maintenance_work_mem=512MB")
    load_pgbench(cluster, scale, arguments.filler, partitions)
    cluster.stop()
    archive = work / "archive-to-pgbackrest.sh"  # pgBackRest wants its name in archive_command
    # Only pgBackRest's backups need an archive; for the others a finished segment is let go.
    user.own(touch(work / "archive.to"))
    archive.write_text(f'#!/bin/sh\n[ ! -s {work}/archive.to ] || exec pgbackrest --config="$(cat {work}/archive.to)" '
                       '--stanza=bench archive-push "$1"\n', encoding="utf-8")
    archive.chmod(0o755)
    cluster.start(*common, "archive_mode=on", f"archive_command={archive} %p", "wal_level=replica", env=env)
    bytes_ = int(cluster.sql("SELECT sum(pg_database_size(oid)) FROM pg_database"))
    if bytes_ < arguments.gb * 1024 * MIB:
        fail(f"the cluster has only {bytes_} bytes: MIB_PER_SCALE is wrong")
    say(f"the cluster has {bytes_ / MIB:.0f} MiB")
    return cluster, bytes_


class Tool:
    """A way to make and to restore a backup."""

    def __init__(self, name, work, cluster, user):
        self.name, self.work, self.cluster, self.user = name, work, cluster, user
        self.home = user.own(mkdir(work / name))
        self.target = self.home / "restored"
        self.log = user.own(touch(self.home / "log"))
        self.repositories, self.repository = None, None

    def timed(self, command):
        return measured(command, self.user, self.cluster, self.home, self.log, self.environment())

    def untimed(self, command):
        with open(self.log, "ab") as log:
            result = subprocess.run(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=self.environment(),
                check=False, **self.user.options)
        if result.returncode != 0:
            fail(f"{' '.join(map(str, command))} ended with {result.returncode}; see {self.log}\n{self.log.read_text()[-3000:]}")

    def environment(self):
        return environment() | {"HOME": str(self.home)} | self.repositories.environment()

    def prepare(self, repositories=None):
        """An empty repository, in a directory where nothing else is said; not timed."""
        self.repositories = repositories or Repositories()
        self.repository = self.repositories.place(self, 0)
        self.repositories.make(self.repository, self.user)

    def finish(self):
        """After a backup, not timed."""

    def prepare_target(self):
        remove(self.target)
        self.user.own(mkdir(self.target)).chmod(0o700)


class PgBackRest(Tool):
    def __init__(self, name, work, cluster, user, cipher, settings=(), compression=LIFEBOATS_LEVEL):
        super().__init__(name, work, cluster, user)
        self.config, self.cipher, self.settings, self.compression = self.home / "pgbackrest.conf", cipher, settings, compression
        self.command = ["pgbackrest", f"--config={self.config}", "--stanza=bench"]

    def prepare(self, repositories=None):
        super().prepare(repositories)
        lines = [
            "[global]", *pgbackrest_settings(self.home, self.repositories.pgbackrest(self.repository), self.cipher, self.compression),
            *self.settings,
            "[bench]", f"pg1-path={self.cluster.data}", f"pg1-socket-path={self.cluster.home}", "pg1-user=postgres",
        ]
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.untimed([*self.command, "stanza-create"])
        (self.work / "archive.to").write_text(str(self.config), encoding="utf-8")

    def backup(self):
        return self.timed([*self.command, "--type=full", "backup"])

    def finish(self):
        (self.work / "archive.to").write_text("", encoding="utf-8")

    def restore(self):
        return self.timed([*self.command, f"--pg1-path={self.target}", "--archive-mode=off", "restore"])


class Lifeboat(Tool):
    def __init__(self, name, work, cluster, user, binary, encrypted):
        super().__init__(name, work, cluster, user)
        self.keys, self.encrypted = LifeboatKeys(self.home, work / "bin", user, binary), encrypted
        self.config = self.home / "lifeboat.toml"
        self.command = [self.keys.binary, "--config", self.config]

    def prepare(self, repositories=None):
        super().prepare(repositories)
        self.config.write_text(
            'name = "bench"\n\n[postgres]\n'
            f"dsn = {quoted(f'host={self.cluster.home} user=postgres dbname=postgres')}\n"
            f"data_directory = {quoted(self.cluster.data)}\n"
            'copy = "local"\n\n[[repository]]\n'
            f"{self.repositories.lifeboat(self.repository)}\n{self.keys.tables(self.encrypted)}", encoding="utf-8")
        self.untimed([*self.command, "init", "--json"])

    def backup(self):
        return self.timed([*self.command, "backup", "--standalone", "--json"])

    def restore(self):
        return self.timed([*self.command, "restore", "latest", "--pgdata", self.target, "--json"])


def prove(tool, cluster, user):
    """What was restored is a cluster with the same rows, and every page's checksum is right. A fast wrong restore is no result."""
    question = "SELECT count(*), sum(abalance), sum(hashtext(filler)) FROM pgbench_accounts"
    manifest = (tool.target / "backup_manifest").exists()
    if manifest:
        cluster.run("pg_verifybackup", "-q", tool.target)
    restored = Cluster(cluster.bin, tool.target, user.own(mkdir(tool.home / "socket")), user)
    try:
        # Its restore_command may need what the tool needs.
        restored.start("archive_mode=off", "shared_buffers=512MB", env=tool.environment())
        same = restored.sql(question) == cluster.sql(question)
    finally:
        restored.stop()
    if not same:
        fail(f"{tool.name} restored other rows than there were")
    cluster.run("pg_checksums", "--check", "-D", tool.target)
    say(f"{tool.name}: the restored cluster starts, has the same rows and sound pages{', and fits its backup_manifest' if manifest else ''}")
