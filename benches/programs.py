"""lifeboat and pgBackRest as benchmarks configure them: the same compression, the same number of processes, both durable."""

import json
import os
import shutil
import subprocess
import time
from urllib.parse import urlsplit

from measuring import CORES, environment, fail, mkdir, remove


LIFEBOATS_LEVEL = ("compress-type=zst", "compress-level=1")


def pgbackrest_settings(home, repository, cipher="none", compression=LIFEBOATS_LEVEL):
    """Lines of `[global]`: files below `home`, zstd at lifeboat's level where nothing else is said."""
    return [
        f"log-path={home}", f"lock-path={home}/lock", f"spool-path={home}/spool", "log-level-console=warn", "log-level-file=off",
        *compression, f"process-max={CORES}", "start-fast=y", "archive-timeout=120",
        "repo1-retention-full=9999999", f"repo1-cipher-type={cipher}",
        *(["repo1-cipher-pass=a-passphrase-for-a-benchmark-only"] if cipher != "none" else []),
        *(repository if isinstance(repository, list) else [f"repo1-path={repository}"]),
    ]


def quoted(value):
    """A string in TOML."""
    return json.dumps(str(value))


class Repositories:
    """Where repositories are: a directory, or below a URL of which both tools get every part. Without `keys` for S3, (id, secret), those
    of the environment count."""

    def __init__(self, url=None, endpoint=None, region="us-east-1", ca_file=None, keys=None):
        self.url, self.endpoint, self.region, self.ca_file, self.keys = url, endpoint, region, ca_file, keys
        self.run = f"{os.getpid()}-{int(time.time())}"

    def place(self, tool, number):
        if self.url:
            return f"{self.url.rstrip('/')}/{self.run}/{tool.name}-{number}"
        return tool.home / f"repository-{number}"

    def is_local(self):
        return not self.url

    def make(self, place, user):
        if self.is_local():
            remove(place)
            user.own(mkdir(place)).chmod(0o700)

    def remove(self, place):
        if self.is_local():
            remove(place)

    def lifeboat(self, place):
        if self.is_local():
            return f"url = {quoted(f'file://{place}')}\n"
        more = {"endpoint": self.endpoint, "region": self.region, "ca_file": self.ca_file}
        return f"url = {quoted(place)}\n" + "".join(f"{key} = {quoted(value)}\n" for key, value in more.items() if value)

    def pgbackrest(self, place):
        if self.is_local():
            return [f"repo1-path={place}"]
        url = urlsplit(place)
        if url.scheme != "s3":
            fail(f"pgBackRest is given S3 only here, not {url.scheme}")
        endpoint = urlsplit(self.endpoint or f"https://s3.{self.region}.amazonaws.com")
        return [
            "repo1-type=s3", f"repo1-s3-bucket={url.netloc}", f"repo1-path={url.path}", f"repo1-s3-endpoint={endpoint.hostname}",
            f"repo1-storage-port={endpoint.port or 443}", f"repo1-s3-region={self.region}", "repo1-s3-uri-style=path",
            *([f"repo1-storage-ca-file={self.ca_file}"] if self.ca_file else []),
        ]

    def environment(self):
        """Secrets, for both."""
        if self.is_local():
            return {}
        known = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        if self.keys:
            known |= dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), self.keys, strict=True))
        return known | {
            "PGBACKREST_REPO1_S3_KEY": known.get("AWS_ACCESS_KEY_ID", ""),
            "PGBACKREST_REPO1_S3_KEY_SECRET": known.get("AWS_SECRET_ACCESS_KEY", ""),
        }


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
