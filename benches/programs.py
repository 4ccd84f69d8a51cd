"""lifeboat and pgBackRest as benchmarks configure them: the same compression, the same number of processes, both durable."""

import json
import shutil
import subprocess

from measuring import CORES, environment, fail, mkdir


def pgbackrest_settings(home, repository, cipher="none"):
    """Lines of `[global]`: files below `home`, zstd at lifeboat's level."""
    return [
        f"log-path={home}", f"lock-path={home}/lock", f"spool-path={home}/spool", "log-level-console=warn", "log-level-file=off",
        "compress-type=zst", "compress-level=1", f"process-max={CORES}", "start-fast=y", "archive-timeout=120",
        "repo1-retention-full=9999999", f"repo1-cipher-type={cipher}",
        *(["repo1-cipher-pass=a-passphrase-for-a-benchmark-only"] if cipher != "none" else []),
        *(repository if isinstance(repository, list) else [f"repo1-path={repository}"]),
    ]


def quoted(value):
    """A string in TOML."""
    return json.dumps(str(value))


class LifeboatKeys:
    """A copy of the binary, and keys of its own, below a home."""

    def __init__(self, home, binaries, user, binary):
        # A copy: the server's user may not reach the build directory.
        self.binary = mkdir(binaries) / "lifeboat"
        if not self.binary.exists():
            shutil.copy(binary, self.binary)
            self.binary.chmod(0o755)
        self.password = home / "password"
        self.password.write_text("a-password-for-a-benchmark-only\n", encoding="utf-8")
        user.own(self.password).chmod(0o600)
        generate = [self.binary, "key", "generate", "--out", home / "keys", "--password-file", self.password, "--json"]
        made = subprocess.run(
            list(map(str, generate)), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=home,
            env=environment() | {"HOME": str(home)}, check=False, **user.options)
        if made.returncode != 0:
            fail(f"lifeboat key generate ended with {made.returncode}:\n{made.stdout}{made.stderr}")
        self.made = json.loads(made.stdout)

    def tables(self, encrypted):
        """The tables of a configuration that say who encrypts, signs and is trusted."""
        made = self.made
        if encrypted:
            encryption = f"recipients = [{quoted(made['recipient'])}]\nidentity_file = {quoted(made['identity_file'])}\n"
        else:
            encryption = 'none = "I accept plain backups"\n'
        return (f"[encryption]\n{encryption}\n[signing]\nkey_file = {quoted(made['signing_key_file'])}\n"
                f"password = {{ file = {quoted(self.password)} }}\n\n[trust]\nkeys = [{quoted(made['public_key_file'])}]\n")
