#!/usr/bin/env python3
"""Read a lifeboat repository without lifeboat.

Written from docs/format.md alone; the numbers in the comments are its sections. It shares no code with lifeboat, so
that one bug cannot hide in both. It reads a local copy of a repository, never writes into it, and writes only below the
directories it is given. Slow and plain on purpose: it is meant to be read, and changed, on a bad night.

Exit codes: 0 done, 1 failed, 2 bad command line, 12 wrong identity, 13 format too new, 21 damaged or unsigned. `wal fetch`
answers PostgreSQL instead: 0 the file is there, 1 the archive ends before it, which is proven, 200 anything else at all.
"""
from __future__ import annotations

import argparse
import base64
import datetime
import errno
import fnmatch
import hashlib
import heapq
import io
import json
import os
import re
import struct
import subprocess
import sys
import unicodedata

try:
    import zstandard
    from blake3 import blake3
    from cryptography.exceptions import InvalidSignature, InvalidTag
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as missing:
    print(f"rescue: {missing}: install what requirements.txt names (pip install -r requirements.txt)", file=sys.stderr)
    sys.exit(200 if "fetch" in sys.argv else 1)  # PostgreSQL must not take this for the end of the archive
try:
    import pyrage
except ImportError:  # the `age` command does it too
    pyrage = None

KIB = 1024
EXTENT = 256 * KIB
PAGE = 8 * KIB
SEALED_MAX = EXTENT + 17  # of a sealed object: flag byte, content, tag
PACKED_MAX = EXTENT + 17  # of a pack: codec byte, what did not shrink, tag
PACK_MAX = 64 << 20
NAME_MAX = 700  # of an artifact's name as it stands in a key
JSON_MAX = 1 << 30  # a manifest names some 300 000 packs for 10 TB: 50 MB; more than this is no manifest
LINE_MAX = 16 * KIB  # of a catalog run
HISTORY_MAX = 1 << 20  # of a timeline history file: a line for each promotion
TROUBLE = 200  # of wal fetch: above 125 PostgreSQL stops, up to there it takes up writing

BACKUP_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}-backup-[0-9]{8}T[0-9]{6}Z")
VERSION = re.compile(r"[A-Za-z0-9-][A-Za-z0-9.-]{0,63}")
BACKUP_TYPE = "https://lifeboat.dev/backup/v1"
ARTIFACT_TYPE = "https://lifeboat.dev/artifact/v1"
WAL_TYPE = "https://lifeboat.dev/wal/v1"
SYSTEM_ID = re.compile(r"[1-9][0-9]{0,19}")
TIMELINE = re.compile(r"[0-9A-F]{8}")
HISTORY_FILE = re.compile(r"([0-9A-F]{8})\.history")
WAL_FILE = re.compile(r"(?P<segment>[0-9A-F]{24})(?:(?P<partial>\.partial)|\.(?P<offset>[0-9A-F]{8})\.backup"
                      r"|\.(?P<start>[0-9A-F]{8})-(?P<end>[0-9A-F]{8}))?")
GAP_FILE = re.compile(r"([0-9A-F]{8})\.([0-9A-F]{16})-([0-9A-F]{16})\.json")
LSN = re.compile(r"([0-9A-F]{1,8})/([0-9A-F]{1,8})")


class Trouble(Exception):
    """Something a person must hear about; `code` is what the program exits with."""
    code = 1


class Usage(Trouble):
    code = 2


class WrongIdentity(Trouble):
    code = 12


class TooNew(Trouble):
    code = 13


class Damaged(Trouble):
    code = 21


class Ended(Trouble):
    """The archive ends before the file that was asked for, and that is proven."""


# ---------------------------------------------------------------------------------------------------------- telling

def clean(text) -> str:
    """Text from a repository, fit for a terminal: names may carry escape sequences."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def say(text) -> None:
    print(f"rescue: {clean(text)}", file=sys.stderr, flush=True)


class Toll:
    """Counts what went wrong while the rest goes on, so that one bad object does not cost the others."""

    def __init__(self, out=say):
        self.out, self.codes = out, []

    def add(self, error: Trouble, where="") -> None:
        self.codes.append(error.code)
        self.out(f"{where}: {error}" if where else str(error))

    def code(self) -> int:
        return max(self.codes, default=0)


# ------------------------------------------------------------------------------------------------- careful JSON

def parse(raw: bytes, what: str) -> dict:
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{what} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{what} is not a JSON object")
    return value


def member(value, name: str, kind: type, what: str):
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind) or (kind is int and (isinstance(found, bool) or found < 0)):
        raise Damaged(f"{what}: member {name} is missing or not what it should be")
    return found


def hexes(value, name: str, length: int, what: str) -> str:
    found = member(value, name, str, what)
    if not re.fullmatch("[0-9a-f]{%d}" % length, found):
        raise Damaged(f"{what}: member {name} is not {length} hexadecimal digits")
    return found


def unbase64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Damaged(f"{what} is not base64") from None


def safe_path(path, what: str, longest: int = 4096) -> str:
    """A relative path that stays below wherever it is joined to (5)."""
    try:
        fits = isinstance(path, str) and 0 < len(path.encode("utf-8")) <= longest
    except UnicodeEncodeError:
        fits = False
    if not fits or "\0" in path \
            or any(s in ("", ".", "..") for s in path.split("/")) or (os.name == "nt" and re.search(r"[\\:]", path)):
        raise Damaged(f"{what}: the path {path!r} is not allowed: it could lead out of the directory")
    return path


def artifact_name(name, what: str) -> str:
    """Names of artifacts (1)."""
    if any(unicodedata.category(c) == "Cc" for c in safe_path(name, what, 1024)):
        raise Damaged(f"{what}: {name!r} is no name of an artifact")
    return name


# --------------------------------------------------------------------------------------------- the repository (1, 2)

class Repo:
    def __init__(self, root: str):
        self.root, self.id = root, None
        if not os.path.isdir(root):
            raise Trouble(f"{root} is not a directory; copy the repository here first (rclone copy, aws s3 sync)")
        try:
            text = parse(self.read("lifeboat.json"), "lifeboat.json")
            form = member(text, "format", dict, "lifeboat.json")
            version = member(form, "version", int, "lifeboat.json")
        except Damaged as error:
            raise Damaged(f"{error}. If this one file is lost and the rest is whole, write it anew, with the member "
                          'repository of any manifest.json: {"format": {"name": "lifeboat", "version": 1}, "repository": '
                          '"<32 hex>", "created": "2024-01-01T00:00:00Z", "created_by": "hand"}') from None
        if form.get("name") != "lifeboat":
            raise Damaged("lifeboat.json: this is no lifeboat repository")
        if version != 1:
            raise TooNew(f"the repository has format {version}; this program reads format 1: get a newer one")
        self.id = text.get("repository")

    def open(self, key: str) -> io.BufferedReader:
        try:
            return open(os.path.join(self.root, *safe_path(key, "key").split("/")), "rb")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENAMETOOLONG):
                raise Damaged(f"{key} cannot be read ({error.strerror})") from None
            raise Trouble(f"{key} cannot be read ({error.strerror})") from None

    def read(self, key: str, limit: int = JSON_MAX) -> bytes:
        with self.open(key) as file:
            raw = pull(file, limit + 1, key)
        if len(raw) > limit:
            raise Damaged(f"{key} is larger than anything of its kind")
        return raw

    def names(self, key: str) -> list:
        """What stands in a directory, which may be missing. What cannot be listed is no evidence of anything."""
        try:
            return sorted(os.listdir(os.path.join(self.root, *safe_path(key, "key").split("/"))))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Trouble(f"{key} cannot be listed ({error.strerror})") from None

    def sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        with self.open(key) as file:
            while True:
                block = pull(file, 1 << 20, key)
                if not block:
                    return digest.hexdigest()
                digest.update(block)

    def expect(self, key: str, sha256: str) -> str:
        if self.sha256(key) != sha256:
            raise Damaged(f"{key} is damaged: its SHA-256 is not {sha256}")
        return key

    def backups(self) -> list:
        """Sorted by time, not by name: a repository may hold several names."""
        found = [n for n in os.listdir(self.root) if BACKUP_ID.fullmatch(n)
                 and os.path.isfile(os.path.join(self.root, n, "manifest.json"))]
        return sorted(found, key=lambda n: (n.rsplit("-", 1)[1], n))


def pull(file, count: int, what: str) -> bytes:
    """file.read, with a disk that fails counted as damage rather than the end of everything."""
    try:
        return file.read(count)
    except OSError as error:
        raise Damaged(f"{what} cannot be read ({error.strerror})") from None


def pack_key(sha256: str) -> str:
    return f"packs/{sha256[:2]}/{sha256}"


def blob_key(sha256: str) -> str:
    return f"artifacts/blobs/{sha256[:2]}/{sha256}"


def record_key(name: str, version: str) -> str:
    """Artifact names in keys (1)."""
    def escape(segment: str) -> str:
        plain = segment.encode("utf-8")
        text = "".join(chr(b) if re.fullmatch(r"[A-Za-z0-9._-]", chr(b)) else "%%%02X" % b for b in plain)
        if len(text) <= 200:
            return text
        head = text[:128]
        if "%" in head[126:]:
            head = head[:head.rindex("%")]
        return f"{head}%~{hashlib.sha256(plain).hexdigest()}"
    escaped = "/".join(escape(s) for s in name.split("/"))
    if len(escaped) > NAME_MAX:
        escaped = f"%~{hashlib.sha256(name.encode('utf-8')).hexdigest()}"
    return f"artifacts/records/{escaped}/{version}.json"


# ------------------------------------------------------------------------------------------- frames, shared by 3 and 4

def open_frame(aead, position: int, associated: bytes, sealed: bytes, what: str) -> bytes:
    """The plain form of a frame. `aead` is None for suite none."""
    if len(sealed) < 17:
        raise Damaged(f"{what} is cut off")
    if aead is None:
        plain, check = sealed[:-16], sealed[-16:]
        if blake3(associated + plain).digest()[:16] != check:
            raise Damaged(f"{what}: a frame is damaged (BLAKE3)")
        return plain
    try:
        return aead.decrypt(position.to_bytes(8, "little") + bytes(4), sealed, associated)
    except InvalidTag:
        raise Damaged(f"{what}: a frame does not authenticate (damaged, or not the one it should be)") from None


def unzstd(body: bytes, what: str) -> bytes:
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size > EXTENT and size != zstandard.CONTENTSIZE_UNKNOWN:
            raise Damaged(f"{what}: a frame unpacks to more than 256 KiB")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=EXTENT, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"{what}: a frame does not unpack ({error})") from None


def derive(data_key: bytes, info: str) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, None, info.encode("utf-8")).derive(data_key))


# -------------------------------------------------------------------------------------------------- sealed objects (4)

class Sealed:
    """One sealed object. Whoever takes content() must take all of it before trusting any: the trailer comes last."""

    def __init__(self, repo: Repo, key: str):
        self.key, self.file = key, repo.open(key)
        try:
            self.size = os.fstat(self.file.fileno()).st_size
            start = pull(self.file, 12, key)
            if len(start) < 12 or start[:8] != b"LBSEAL1\n":
                raise Damaged(f"{key} is damaged: it does not begin as a sealed object")
            length = struct.unpack("<I", start[8:])[0]
            if length > 65536 or 12 + length + 32 > self.size:
                raise Damaged(f"{key} is damaged: the length of its header is not possible")
            header = pull(self.file, length, key)
            self.header = parse(header, f"{key}: the header")
            self.suite = member(self.header, "suite", str, key)
            if self.suite not in ("aes256gcm", "none"):
                raise Damaged(f"{key} is damaged: format 1 has no suite {self.suite!r}")
            if self.header.get("object") != key:
                raise Damaged(f"{key} holds another object, {self.header.get('object')!r}")
            hexes(self.header, "id", 32, key)
            if ("key" in self.header) != (self.suite != "none"):
                raise Damaged(f"{key} is damaged: suite and key do not go together")
            self.digest = blake3(header).digest()
            self.whole = blake3(start + header)
            self.at = 12 + length
        except Trouble:
            self.file.close()
            raise

    def sealed_frames(self):
        """Every frame as it stands, with whether it is the last; needs no key, and checks the trailer."""
        with self.file:
            end = self.size - 32
            while self.at < end:
                length = pull(self.file, 4, self.key)
                count = struct.unpack("<I", length)[0] if len(length) == 4 else 0
                frame = pull(self.file, count, self.key) if count <= SEALED_MAX else b""
                self.at += 4 + count
                if count < 17 or len(frame) != count or self.at > end:
                    raise Damaged(f"{self.key} is damaged or cut off: the length of a frame is not possible")
                self.whole.update(length + frame)
                yield frame, self.at == end
            if pull(self.file, 33, self.key) != self.whole.digest():
                raise Damaged(f"{self.key} is damaged: its BLAKE3 trailer does not fit")

    def content(self, data_key: bytes = None):
        aead = None
        if self.suite == "aes256gcm":
            aead = derive(data_key, f"lifeboat/v1/object/{self.key}/{self.digest.hex()}")
        last = False
        for index, (frame, at_end) in enumerate(self.sealed_frames()):
            plain = open_frame(aead, index, self.digest + index.to_bytes(8, "little"), frame, self.key)
            flags, body = plain[0], plain[1:]
            last = bool(flags & 2)
            if flags > 3 or last != at_end:
                raise Damaged(f"{self.key} is cut off or put together from parts")
            body = unzstd(body, self.key) if flags & 1 else body
            if len(body) > EXTENT:
                raise Damaged(f"{self.key}: a frame holds more than 256 KiB")
            yield body
        if not last:
            raise Damaged(f"{self.key} is cut off: it has no last frame")

    def check(self) -> None:
        """All that can be found without a key."""
        frames = self.content() if self.suite == "none" else self.sealed_frames()
        if sum(1 for _ in frames) == 0:
            raise Damaged(f"{self.key} is cut off: it has no frame")


# ------------------------------------------------------------------------------------------------------- data keys (4)

class Identities:
    """The rescuer's age identities. Unwraps data keys; says nothing about them.

    With a key export (4) the keys in it are unwrapped instead of those in the repository, which are for somebody else.
    """

    def __init__(self, path: str = None, export: dict = None):
        self.path, self.known, self.cache, self.exported = path, [], {}, export or {}
        self.command = pyrage is None
        if path is None:
            return
        try:
            with open(path, "rb") as file:
                raw = file.read(1 << 20)
        except OSError as error:
            raise Usage(f"the identity file {path} cannot be read ({error.strerror})") from None
        if self.command:
            return
        try:
            if raw.startswith(b"-----BEGIN") and b"AGE ENCRYPTED" not in raw:
                self.known = [pyrage.ssh.Identity.from_buffer(raw)]
            else:
                lines = [line.strip() for line in raw.decode("utf-8").splitlines()]
                self.known = [pyrage.x25519.Identity.from_str(line) for line in lines if line and line[0] != "#"]
        except (ValueError, pyrage.IdentityError):  # a plugin, or a file under a passphrase: the age command knows
            self.command = True
        if not self.command and not self.known:
            raise Usage(f"{path} holds no age identity")

    def unwrap(self, wrapped: str, what: str, key_id: str = None) -> bytes:
        wrapped = self.exported.get(key_id, wrapped)
        if self.path is None:
            raise Usage(f"{what} is encrypted: give --identity FILE")
        if wrapped not in self.cache:
            raw = unbase64(wrapped, f"{what}: the wrapped key")
            key = self.by_command(raw, what) if self.command else self.by_pyrage(raw, what)
            if len(key) != 32:
                raise Damaged(f"{what}: the wrapped key is not 32 bytes")
            self.cache[wrapped] = key
        return self.cache[wrapped]

    def by_pyrage(self, raw: bytes, what: str) -> bytes:
        try:
            return pyrage.decrypt(raw, self.known)
        except pyrage.DecryptError as error:
            if "No matching keys" in str(error):
                raise WrongIdentity(f"{what} is not encrypted to an identity in {self.path}") from None
            raise Damaged(f"{what}: the wrapped key is damaged ({error})") from None

    def by_command(self, raw: bytes, what: str) -> bytes:
        try:
            done = subprocess.run(["age", "--decrypt", "-i", self.path], input=raw, capture_output=True, check=False)
        except OSError:
            raise Trouble(f"reading {self.path} takes pyrage, or the age command for identities that pyrage does not "
                          "know; neither is installed") from None
        if done.returncode == 0:
            return done.stdout
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()[:1]
        if b"no identity matched" in done.stderr or b"incorrect" in done.stderr:
            raise WrongIdentity(f"{what} is not encrypted to an identity in {self.path} ({why})")
        raise Damaged(f"{what}: age could not unwrap the key ({why})")


def load_export(path: str, backup) -> dict:
    """Wrapped keys by id, out of the file that `lifeboat key export` made of this very backup (4)."""
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            text = parse(file.read(JSON_MAX), path)
    except OSError as error:
        raise Usage(f"the key export {path} cannot be read ({error.strerror})") from None
    if text.get("kind") != "lifeboat key export":
        raise Usage(f"{path} is no key export")
    if text.get("format") != 1:
        raise TooNew(f"{path} has format {text.get('format')}; this program reads format 1: get a newer one")
    if (text.get("backup"), text.get("manifest")) != (backup.id, backup.sha256):
        raise Usage(f"{path} has the keys of {text.get('backup')}, manifest {text.get('manifest')}: another backup")
    return {hexes(entry, "id", 32, path): member(entry, "wrapped", str, path) for entry in member(text, "keys", list, path)}


# ------------------------------------------------------------------------------------------------------- signatures (7)

def load_keys(paths):
    """The public keys a person trusts, or None where none was given."""
    keys = []
    for path in paths or []:
        try:
            with open(path, "rb") as file:
                key = serialization.load_pem_public_key(file.read(1 << 20))
        except (OSError, ValueError) as error:
            raise Usage(f"{path} is not a public key in PEM ({error})") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Usage(f"{path} is not an ECDSA key")
        keys.append(key)
    return keys or None


def check_bundle(bundle: dict, keys, subject: str, sha256: str, predicate_type: str, what: str) -> dict:
    """Gives the predicate, after signature (where keys are given), subject, digest and type are what they must be."""
    signed, predicate = read_bundle(bundle, keys, subject, predicate_type, what)
    if signed != sha256:
        raise Damaged(f"{what}: what was signed is something else (the digest does not fit)")
    return predicate


def read_bundle(bundle: dict, keys, subject: str, predicate_type: str, what: str):
    """(SHA-256 of the subject, predicate), after signature (where keys are given), name and type are what they must be."""
    if bundle.get("mediaType") != "application/vnd.dev.sigstore.bundle.v0.3+json":
        raise Damaged(f"{what}: the bundle is not a Sigstore bundle v0.3")
    envelope = member(bundle, "dsseEnvelope", dict, f"{what}: the bundle")
    signatures = member(envelope, "signatures", list, f"{what}: the bundle")
    kind = member(envelope, "payloadType", str, f"{what}: the bundle")
    payload = unbase64(member(envelope, "payload", str, f"{what}: the bundle"), f"{what}: the payload")
    if len(signatures) != 1 or kind != "application/vnd.in-toto+json":
        raise Damaged(f"{what}: the bundle must hold one in-toto statement with one signature")
    signature = unbase64(member(signatures[0], "sig", str, what), f"{what}: the signature")
    # DSSE pre-authentication encoding: the type is signed with the payload
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    if keys is not None and not any(verifies(key, signature, signed) for key in keys):
        by = " (it was made with a certificate; this program knows only keys)" \
            if "certificate" in str(bundle.get("verificationMaterial"))[:200] else ""
        raise Damaged(f"{what}: the signature was not made by a key that was given with --key{by}")
    statement = parse(payload, f"{what}: the statement")
    subjects = member(statement, "subject", list, f"{what}: the statement")
    if statement.get("_type") != "https://in-toto.io/Statement/v1" or len(subjects) != 1 \
            or member(subjects[0], "name", str, what) != subject \
            or statement.get("predicateType") != predicate_type:
        raise Damaged(f"{what}: what was signed is something else (name or type does not fit)")
    digest = member(subjects[0], "digest", dict, what).get("sha256")
    return digest, statement.get("predicate") or {}


def verifies(key, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        return True
    except (InvalidSignature, ValueError):
        return False


# --------------------------------------------------------------------------------------------------------- a backup (6)

class Backup:
    def __init__(self, repo: Repo, backup_id: str):
        if backup_id == "latest":
            found = repo.backups()
            if not found:
                raise Trouble("there is no backup here")
            backup_id = found[-1]
        if not BACKUP_ID.fullmatch(backup_id):
            raise Usage(f"{backup_id} is not a backup id; see: rescue.py {repo.root} list")
        if not os.path.lexists(os.path.join(repo.root, backup_id, "manifest.json")):
            raise Trouble(f"there is no backup {backup_id}; see: rescue.py {repo.root} list")
        self.repo, self.id = repo, backup_id
        self.key = f"{backup_id}/manifest.json"
        raw = repo.read(self.key)
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.text = parse(raw, self.key)
        version = member(self.text, "format", int, self.key)
        if version != 1:
            raise TooNew(f"{self.key} has format {version}; this program reads format 1: get a newer one")
        if self.text.get("id") != backup_id:
            raise Damaged(f"{self.key} is the manifest of another backup")
        if self.text.get("kind") != "full":
            raise Damaged(f"{self.key}: format 1 has no backups of kind {self.text.get('kind')!r}")
        if repo.id is not None and self.text.get("repository") != repo.id:
            say(f"{backup_id} was written to another repository than this one, {self.text.get('repository')}")

    def check_signature(self, keys) -> str:
        """Without keys only the digest in the bundle is compared: that finds damage, and no forgery."""
        key = f"{self.id}/manifest.sigstore.json"
        bundle = parse(self.repo.read(key, 1 << 24), key)
        check_bundle(bundle, keys, self.id, self.sha256, BACKUP_TYPE, key)
        return "valid" if keys else "NOT CHECKED (no --key)"

    def suite(self) -> str:
        suite = member(member(self.text, "encryption", dict, self.key), "suite", str, self.key)
        if suite not in ("aes256gcm", "none"):
            raise Damaged(f"{self.key}: format 1 has no suite {suite!r}")
        return suite

    def data_key(self, purpose: str, identities: Identities):
        """(id, key) of a purpose; (None, None) for suite none."""
        if self.suite() == "none":
            return None, None
        for entry in member(self.text["encryption"], "keys", list, self.key):
            if isinstance(entry, dict) and entry.get("purpose") == purpose:
                what = f"{self.id}: the key for {purpose}"
                key_id = hexes(entry, "id", 32, what)
                return key_id, identities.unwrap(member(entry, "wrapped", str, what), what, key_id)
        raise Damaged(f"{self.key} carries no key for {purpose}")

    def packs(self) -> list:
        return [(hexes(p, "sha256", 64, self.key), hexes(p, "id", 32, self.key))
                for p in member(self.text, "packs", list, self.key)]

    def tables(self) -> list:
        """(key, sha256, entry) of every file table."""
        found = []
        for entry in self.text.get("tables") or []:
            key = safe_path(member(entry, "object", str, self.key), self.key)
            found.append((key, hexes(entry, "sha256", 64, self.key), entry))
        return found

    def postgres(self) -> dict:
        return member(self.text, "postgres", dict, self.key) if "postgres" in self.text else {}

    def postgres_manifest(self):
        entry = self.postgres().get("backup_manifest")
        if entry is None:
            return None
        return safe_path(member(entry, "object", str, self.key), self.key), hexes(entry, "sha256", 64, self.key)

    def truth(self):
        """(key, sha256) of what the tables held, which a restore does not need (15)."""
        entry = self.postgres().get("truth")
        stored = entry.get("stored") if isinstance(entry, dict) else None
        if stored is None:
            return None
        return safe_path(member(stored, "object", str, self.key), self.key), hexes(stored, "sha256", 64, self.key)

    def content(self, key: str, sha256: str, data_key):
        """The plain bytes of an object that the manifest names, in pieces."""
        self.repo.expect(key, sha256)
        sealed = Sealed(self.repo, key)
        if sealed.suite != self.suite() or sealed.header.get("key") != data_key[0]:
            sealed.file.close()
            raise Damaged(f"{key} is not sealed with the key that the manifest names")
        return sealed.content(data_key[1])


# ----------------------------------------------------------------------------------------------------------- packs (3)

class Packs:
    def __init__(self, backup: Backup, data_key):
        self.repo, self.names, self.key, self.open = backup.repo, backup.packs(), data_key, {}

    def fragment(self, pack: int, offset: int, length: int, check: bytes) -> bytes:
        if pack >= len(self.names):
            raise Damaged(f"pack {pack} is not in the manifest")
        if offset < 32 or not 17 <= length <= PACKED_MAX or offset + length > PACK_MAX:
            raise Damaged(f"pack {pack}: a frame at {offset}, {length} bytes long, is not possible")
        what = pack_key(self.names[pack][0])
        file, aead = self.opened(pack)
        file.seek(offset)
        associated = bytes.fromhex(self.names[pack][1]) + offset.to_bytes(8, "little")
        plain = open_frame(aead, offset, associated, pull(file, length, what), what)
        codec, body = plain[0], plain[1:]
        if codec > 1:
            raise Damaged(f"{what}: codec {codec} is not known")
        body = unzstd(body, what) if codec else body
        if blake3(body).digest()[:16] != check:
            raise Damaged(f"{what}: a fragment at {offset} is not the one that the table means (BLAKE3)")
        return body

    def close(self) -> None:
        while self.open:
            self.open.popitem()[1][0].close()

    def opened(self, pack: int):
        if pack not in self.open:
            if len(self.open) >= 32:  # tables follow the order of packs, so the oldest will hardly be wanted again
                self.open.pop(next(iter(self.open)))[0].close()
            sha256, pack_id = self.names[pack]
            file = self.repo.open(pack_key(sha256))
            try:
                check_pack_header(pull(file, 32, pack_key(sha256)), pack_id, self.key[1] is not None, pack_key(sha256))
            except Damaged:
                file.close()
                raise
            aead = derive(self.key[1], f"lifeboat/v1/pack/{pack_id}") if self.key[1] else None
            self.open[pack] = (file, aead)
        return self.open[pack]


def check_pack_header(head: bytes, pack_id: str, sealed: bool, what: str) -> None:
    if head != b"LBPACK1\n" + bytes.fromhex(pack_id) + bytes([sealed]) + bytes(7):
        raise Damaged(f"{what} is damaged, or another pack: its header does not fit")


# ----------------------------------------------------------------------------------------------------- file tables (5)

class Stream:
    """Exact reads from pieces."""

    def __init__(self, pieces, what: str):
        self.pieces, self.what, self.held, self.at = iter(pieces), what, b"", 0

    def take(self, count: int, may_end=False) -> bytes:
        while len(self.held) - self.at < count:
            piece = next(self.pieces, None)
            if piece is None:
                if may_end and self.at == len(self.held):
                    return b""
                raise Damaged(f"{self.what} ends in the middle of a row")
            self.held, self.at = self.held[self.at:] + piece, 0
        self.at += count
        return self.held[self.at - count:self.at]

    def number(self, may_end=False) -> int:
        raw = self.take(4, may_end)
        return struct.unpack("<I", raw)[0] if raw else -1


def table_rows(pieces, what: str):
    """(meta, extents) of every row. `extents` is read as it is used: a file of terabytes has millions of them."""
    stream, before = Stream(pieces, what), None
    while True:
        length = stream.number(may_end=True)
        if length < 0:
            return
        if length > 65536:
            raise Damaged(f"{what}: the length of a row is not possible")
        meta = parse(stream.take(length), f"{what}: a row")
        path = meta.get("path")
        place = path.encode("utf-8", "surrogatepass") if isinstance(path, str) else b""
        if before is not None and place <= before:
            raise Damaged(f"{what}: rows are not sorted at {path!r}")
        before = place
        count, size = stream.number(), 0
        if meta.get("kind") == "file":
            meta.setdefault("size", 0)  # left out where it is 0
            size = member(meta, "size", int, f"{what}: {path!r}")
        if count != -(-size // EXTENT):
            raise Damaged(f"{what}: {path!r} has {size} bytes and {count} extents")
        extents = table_extents(stream, count, what)
        yield meta, extents
        for _ in extents:  # what the caller did not want
            pass


def table_extents(stream: Stream, count: int, what: str):
    for _ in range(count):
        fragments = stream.take(1)[0]
        if fragments > 4:
            raise Damaged(f"{what}: an extent of {fragments} fragments is not possible")
        yield list(struct.iter_unpack("<IIII16s", stream.take(32 * fragments)))


def extent_bytes(packs: Packs, fragments: list, length: int) -> bytes:
    """The newest fragment that has a page gives it; a page that none has is zero."""
    out, have = bytearray(length), 0
    pages = -(-length // PAGE)
    for bitmap, pack, offset, sealed_length, check in fragments:
        if bitmap >> pages or bitmap == 0:
            raise Damaged("a fragment claims pages behind the end of its file, or none")
        if not bitmap & ~have:
            continue  # nothing of it is wanted, so damage in it costs nothing
        plain = packs.fragment(pack, offset, sealed_length, check)
        spans = [(p * PAGE, min((p + 1) * PAGE, length)) for p in range(pages) if bitmap >> p & 1]
        if sum(end - start for start, end in spans) != len(plain):
            raise Damaged("the bitmap of a fragment does not fit its length")
        at = 0
        for start, end in spans:
            if not have >> (start // PAGE) & 1:
                out[start:end] = plain[at:at + end - start]
            at += end - start
        have |= bitmap
    return bytes(out)


# ------------------------------------------------------------------------------------------------------------- writing

class Target:
    """An empty directory that is filled. Nothing is written through a link: links are made when all else stands, and
    a path that something else was written below has become a directory by then."""

    def __init__(self, root: str, private: bool, elsewhere: dict = None):
        self.root = os.fsencode(os.path.abspath(root))
        self.elsewhere = {f"pg_tblspc/{oid}": os.fsencode(path) for oid, path in (elsewhere or {}).items()}
        self.links, self.modes, self.count, self.bytes, self.private = [], [], 0, 0, 0o700
        for path in [self.root, *self.elsewhere.values()]:
            if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
                raise Usage(f"{os.fsdecode(path)} is not an empty directory")
        if private:  # PostgreSQL does not start in a directory that others can read
            os.umask(0o077)
        for path in [self.root, *self.elsewhere.values()]:
            os.makedirs(path, exist_ok=True)
            if private:
                os.chmod(path, 0o700)
        if self.elsewhere:  # now, so that no link of the backup can take this name
            os.mkdir(os.path.join(self.root, b"pg_tblspc"))

    def place(self, path: str) -> bytes:
        for start, base in self.elsewhere.items():
            if path == start or path.startswith(start + "/"):
                return os.path.join(base, path[len(start) + 1:].encode("utf-8"))
        return os.path.join(self.root, path.encode("utf-8"))

    def directory(self, path: str, mode=None) -> None:
        try:
            os.makedirs(self.place(path), exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise Damaged(f"{path} is needed as a directory, but a file has its name") from None
        if mode is not None:
            self.modes.append((path, mode))

    def link(self, path: str, to: str) -> None:
        self.parent(path)
        self.links.append((path, to))

    def parent(self, path: str) -> None:
        if "/" in path:
            place = os.path.dirname(self.place(path))
            try:
                os.makedirs(place, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise Damaged(f"{path} lies below something that is a file") from None

    def file(self, path: str, mode: int, fill, modified: int = None) -> None:
        """Creates a file and has `fill` write it. A file that could not be filled does not stay."""
        self.parent(path)
        place = self.place(path)
        try:
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            raise Damaged(f"{path} is there twice, or as a file and as a directory") from None
        done = False
        try:
            with os.fdopen(fd, "wb") as file:
                fill(file)
                self.bytes += file.seek(0, os.SEEK_END)
                os.fchmod(file.fileno(), mode & 0o777)
                if modified is not None:
                    os.utime(file.fileno(), ns=(modified, modified))
            done = True
            self.count += 1
        finally:
            if not done:
                os.unlink(place)

    def finish_links(self) -> None:
        for path, to in self.links:
            place = self.place(path)
            try:
                os.symlink(to.encode("utf-8"), place)
            except FileExistsError:
                raise Damaged(f"{path} is there twice, or something lies below a link") from None
        for start, base in self.elsewhere.items():
            os.symlink(base, os.path.join(self.root, start.encode()))

    def finish_modes(self) -> None:
        for path, mode in sorted(self.modes, reverse=True):  # the deepest first: a directory may forbid going in
            os.chmod(self.place(path), mode & 0o777)
        for place in ([self.root, *self.elsewhere.values()] if self.private != 0o700 else []):
            os.chmod(place, self.private)
        os.sync()


class Restore:
    """The files of one backup, into a Target."""

    def __init__(self, target: Target, backup: Backup, packs: Packs, glob, keep_damaged: bool, toll: Toll):
        self.target, self.backup, self.packs, self.glob = target, backup, packs, glob
        self.keep_damaged, self.toll, self.control, self.seen = keep_damaged, toll, None, set()
        self.physical = backup.postgres().get("copy") in ("local", "stream")

    def wanted(self, path: str) -> bool:
        return self.glob is None or fnmatch.fnmatchcase(path, self.glob)

    def row(self, meta: dict, extents) -> None:
        path = safe_path(meta.get("path"), "file table")
        if path in self.seen:  # also in another table
            raise Damaged(f"{path} is there twice")
        self.seen.add(path)
        kind, mode = member(meta, "kind", str, path), member(meta, "mode", int, path)
        if path == "global" and mode & 0o050 == 0o050:  # the data directory has no row: its group reads if this one's does
            self.target.private = 0o750
        if not self.wanted(path):
            return
        if kind == "file" and path == "global/pg_control":
            self.control = (meta, list(extents))  # PostgreSQL does not start without it, so it comes last
        elif kind == "file":
            self.file(meta, extents)
        elif kind == "symlink":
            self.target.link(path, symlink_target(meta, path))
        elif kind == "tablespace":
            if not re.fullmatch(r"pg_tblspc/[0-9]+", path):
                raise Damaged(f"{path} is no place for a tablespace")
            place = symlink_target(meta, path)
            self.target.directory(path, 0o700)
            if path not in self.target.elsewhere:
                say(f"{path} was a link to {place}; it stands in place. PostgreSQL 15 and later want "
                    "allow_in_place_tablespaces = on until recovery is done (or use --tablespace OID=DIR)")
        elif kind == "directory":
            self.target.directory(path, mode)
        else:
            raise Damaged(f"{path}: the kind {kind!r} is not known")

    def pieces(self, meta: dict, extents):
        """(offset, bytes) of all that is not zero; what is damaged is left out where that is wanted."""
        for index, fragments in enumerate(extents):
            if not fragments:
                continue  # all zero: a hole
            start = index * EXTENT
            try:
                yield start, extent_bytes(self.packs, fragments, min(EXTENT, meta["size"] - start))
            except Damaged as error:
                if not self.keep_damaged:
                    raise Damaged(f"{meta['path']}: NOT RESTORED, damaged at byte {start}: {error}") from None
                self.toll.add(error, f"{meta['path']}: ZEROS instead of the 256 KiB from byte {start}")

    def file(self, meta: dict, extents) -> None:
        def fill(file):
            for start, data in self.pieces(meta, extents):
                file.seek(start)
                file.write(data)
            file.truncate(meta["size"])

        self.target.file(meta["path"], member(meta, "mode", int, meta["path"]), fill)
        if meta.get("outside"):
            say(f"{meta['path']} stood at {meta.get('target')}, outside the data directory")

    def attempt(self, work, *values):
        try:
            return work(*values)
        except Damaged as error:
            self.toll.add(error)
            return None

    def finish(self, stored_manifest) -> None:
        """What is not simply written where it belongs (5, "What a restore changes"); pg_control last of all."""
        if self.physical and self.glob is None:
            for path in ("pg_wal", "pg_wal/archive_status", "pg_tblspc", "global"):
                self.attempt(self.target.directory, path)
        changed = {}
        control = self.attempt(self.control_bytes) if self.control else None
        if control is not None:
            changed["global/pg_control"] = control
        tablespaces = self.target.place("tablespace_map")
        if self.physical and os.path.isfile(tablespaces):
            changed["tablespace_map"] = self.tablespace_map()
            with open(tablespaces, "wb") as file:
                file.write(changed["tablespace_map"])
        if stored_manifest and self.wanted("backup_manifest"):
            self.attempt(self.backup_manifest, stored_manifest, changed)
        self.attempt(self.target.finish_links)
        os.sync()
        if self.control and self.toll.codes and not self.keep_damaged:
            say("global/pg_control is left out, so that PostgreSQL does not start on half of its data "
                "(--keep-damaged writes it)")
        elif control is not None:
            self.attempt(self.target.file, "global/pg_control", self.control[0]["mode"], lambda file: file.write(control))
        self.target.finish_modes()

    def control_bytes(self) -> bytes:
        """With a checkpoint that is nowhere: PostgreSQL then refuses to start without backup_label, which tells the
        true one, instead of beginning recovery in the wrong place."""
        meta, extents = self.control
        raw = bytearray(meta["size"])
        for start, data in self.pieces(meta, extents):
            raw[start:start + len(data)] = data
        if not self.physical:
            return bytes(raw)
        for at in range(288, 385, 4):  # where the CRC stands depends on the version
            if len(raw) >= 512 and crc32c(bytes(raw[:at])) == struct.unpack_from("<I", raw, at)[0]:
                struct.pack_into("<Q", raw, 32, 0xDEAD)
                struct.pack_into("<I", raw, at, crc32c(bytes(raw[:at])))
                return bytes(raw)
        if self.keep_damaged:
            self.toll.add(Damaged("global/pg_control: its CRC does not fit; it is written as it was"))
            return bytes(raw)
        raise Damaged("global/pg_control: NOT RESTORED, its CRC does not fit")

    def tablespace_map(self) -> bytes:
        """PostgreSQL makes links from it, or stumbles over the directories that stand there."""
        out = []
        for entry in member(self.backup.postgres(), "tablespaces", list, self.backup.key):
            place = self.target.elsewhere.get(f"pg_tblspc/{entry.get('oid')}") if isinstance(entry, dict) else None
            if place is not None:
                out.append(b"%d %s\n" % (entry["oid"], re.sub(rb"([\n\r\\])", rb"\\\1", place)))
        return b"".join(out)

    def backup_manifest(self, stored, changed: dict) -> None:
        text = stored()
        for path, content in changed.items():
            text = manifest_with_file(text, path, content)
        self.target.file("backup_manifest", 0o600, lambda file: file.write(text))


def manifest_with_file(text: bytes, path: str, content: bytes) -> bytes:
    """PostgreSQL's backup_manifest for a file with other bytes: its line changes, and the manifest's own checksum."""
    found = re.search(rb'"Path": "%s"[^}]*' % re.escape(path.encode()), text)
    end = text.rfind(b'"Manifest-Checksum"')
    if not found or end < found.end():
        raise Damaged(f"backup_manifest does not name {path}")
    line = re.sub(rb'"Size": [0-9]+', b'"Size": %d' % len(content), found[0])
    algorithm = re.search(rb'"Checksum-Algorithm": "([A-Z0-9]+)"', line)
    if algorithm:
        if algorithm[1] == b"CRC32C":
            digest = struct.pack("<I", crc32c(content)).hex()
        elif algorithm[1] in (b"SHA224", b"SHA256", b"SHA384", b"SHA512"):
            digest = hashlib.new(algorithm[1].decode().lower(), content).hexdigest()
        else:
            raise Damaged(f"backup_manifest has a checksum of {path} that is not known")
        line = re.sub(rb'"Checksum": "[0-9a-f]*"', b'"Checksum": "%s"' % digest.encode(), line)
    text = text[:found.start()] + line + text[found.end():end]
    return text + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(text).hexdigest().encode()


def crc32c(data: bytes) -> int:
    """CRC-32C, the Castagnoli polynomial, as PostgreSQL has it; slow, for small files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def crc_table() -> list:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = crc_table()


def symlink_target(meta: dict, path: str) -> str:
    target = member(meta, "target", str, path)
    try:
        fits = 0 < len(target.encode("utf-8")) < 4096 and "\0" not in target
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise Damaged(f"{path}: where the link leads cannot be written")
    return target


# ------------------------------------------------------------------------------------------------------- artifacts (8)

def run_entries(repo: Repo, run: dict):
    """Every entry of a catalog run, after its SHA-256 was found right."""
    key = repo.expect(f"artifacts/catalog/{hexes(run, 'sha256', 64, 'run')}", run["sha256"])
    before, count = None, 0
    try:
        with repo.open(key) as file:
            frames = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            plain = io.BufferedReader(frames, 1 << 20)
            while True:
                line = plain.readline(LINE_MAX)
                if not line:
                    break
                if not line.endswith(b"\n"):
                    raise Damaged(f"{key}: a line is too long, or has no end")
                entry = parse(line, f"{key}: a line")
                name = artifact_name(entry.get("n"), key).encode("utf-8")
                if before is not None and name <= before:
                    raise Damaged(f"{key}: lines are not sorted at {entry['n']!r}")
                before, count = name, count + 1
                yield name, entry
    except zstandard.ZstdError as error:
        raise Damaged(f"{key} does not unpack ({error})") from None
    if before != member(run, "last", str, key).encode("utf-8", "surrogatepass"):
        raise Damaged(f"{key} does not end with {run['last']!r}")
    if count != member(run, "entries", int, key):
        raise Damaged(f"{key} has {count} entries, not {run['entries']}")


def artifact_set(backup: Backup):
    """The entries that make up the set: of each name the newest run decides, and it may say that the name is gone."""
    artifacts = member(backup.text, "artifacts", dict, backup.key)
    runs = member(artifacts, "runs", list, backup.key)

    def numbered(age, run):
        return ((name, age, entry) for name, entry in run_entries(backup.repo, run))

    before, count = None, 0
    for name, _, entry in heapq.merge(*(numbered(*r) for r in enumerate(runs)), key=lambda e: e[:2]):
        if name == before:
            continue
        before = name
        if entry.get("x") is not True:
            count += 1
            yield entry
    if count != member(artifacts, "count", int, backup.key):
        raise Damaged(f"{backup.key}: the runs give {count} artifacts, the manifest says {artifacts['count']}")


def check_record(repo: Repo, entry: dict, keys) -> dict:
    name, version = entry["n"], member(entry, "v", str, entry["n"])
    if not VERSION.fullmatch(version):
        raise Damaged(f"{name}: the version {version!r} is not possible")
    key = record_key(name, version)
    raw = repo.read(key, 1 << 24)
    if hashlib.sha256(raw).hexdigest() != hexes(entry, "r", 64, name):
        raise Damaged(f"{key} is damaged: its SHA-256 is not the one in the catalog")
    record = parse(raw, key)
    form = member(record, "format", int, key)
    if form != 1:
        raise TooNew(f"{key} has format {form}")
    for long, short in (("name", "n"), ("version", "v"), ("sha256", "d"), ("bytes", "b"), ("mode", "m"),
                        ("modified", "t"), ("origin", "o")):
        if record.get(long) != entry.get(short):
            raise Damaged(f"{key}: {long} is not the one in the catalog")
    hexes(record, "sha256", 64, key)
    predicate = check_bundle(member(record, "bundle", dict, key), keys, name, record["sha256"], ARTIFACT_TYPE, key)
    if not isinstance(predicate, dict) or predicate.get("version") != version or \
            predicate.get("bytes") != member(record, "bytes", int, key):
        raise Damaged(f"{key}: version or bytes are not the signed ones")
    for name_ in ("mode", "modified"):  # other writers may leave them out
        if name_ in predicate and predicate[name_] != record.get(name_):
            raise Damaged(f"{key}: {name_} is not the signed one")
    return record


def nanoseconds(text):
    """RFC 3339 in UTC, with up to nine digits of a second; None where it is something else."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", text) if isinstance(text, str) else None
    try:
        whole = datetime.datetime.fromisoformat(found[1] + "+00:00") if found else None
    except ValueError:
        whole = None
    if whole is None:
        return None
    since = whole - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (since.days * 86400 + since.seconds) * 10 ** 9 + int((found[2] or "").ljust(9, "0"))


def fill_blob(repo: Repo, record: dict, identities: Identities, file) -> None:
    key = blob_key(record["sha256"])
    sealed = Sealed(repo, key)
    try:
        data_key = None
        if sealed.suite == "aes256gcm":
            data_key = identities.unwrap(member(sealed.header, "wrapped", str, key), key, sealed.header.get("key"))
        digest, size = hashlib.sha256(), 0
        for piece in sealed.content(data_key):
            size += len(piece)
            if size > record["bytes"]:
                break
            digest.update(piece)
            file.write(piece)
    finally:
        sealed.file.close()
    if size != record["bytes"] or digest.hexdigest() != record["sha256"]:
        raise Damaged(f"{key} does not hold the {record['bytes']} bytes that were signed")


# ------------------------------------------------------------------------------------------------------------ WAL (10)

class WalFile:
    """The name of a file of WAL, taken apart."""

    def __init__(self, name: str):
        self.name = name
        history, found = HISTORY_FILE.fullmatch(name), WAL_FILE.fullmatch(name)
        if not history and not found:
            raise Usage(f"{name!r} is no name of a WAL file (restore_command wants %f before %p)")
        self.timeline = name[:8]
        self.segment = found and found["segment"]
        self.span = (int(found["start"], 16), int(found["end"], 16)) if found and found["start"] else None
        self.kind = "history" if history else "partial" if found["partial"] else "backup" if found["offset"] \
            else "piece" if found["start"] else "segment"
        self.path = name if history else f"{self.timeline}/{name}"


def number_of(segment: str, size: int) -> int:
    """The number of a segment, counted from the beginning of WAL; as in PostgreSQL's xlog_internal.h."""
    low = int(segment[16:], 16)
    if low >= (1 << 32) // size:
        raise Damaged(f"{segment} is no segment of {size} bytes")
    return int(segment[8:16], 16) * ((1 << 32) // size) + low


def segment_name(timeline: str, number: int, size: int) -> str:
    each = (1 << 32) // size
    return "%s%08X%08X" % (timeline, number // each, number % each)


def read_lsn(text, what: str) -> int:
    found = LSN.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise Damaged(f"{what}: {text!r} is no place in WAL")
    return int(found[1], 16) << 32 | int(found[2], 16)


def lsn(value: int) -> str:
    return "%X/%X" % (value >> 32, value & 0xFFFFFFFF)


def joined(spans: list):
    """(pieces that join without a hole from 0 on, as few as reach as far as all of them do; how far that is)."""
    taken, reach = [], 0
    while True:
        best = max((s for s in spans if s[0] <= reach < s[1]), key=lambda s: s[1], default=None)
        if best is None:
            return taken, reach
        taken.append(best)
        reach = best[1]


class Archive:
    """The WAL of one cluster."""

    def __init__(self, repo: Repo, system_id: str, keys=None, identities=None):
        self.repo, self.id, self.top = repo, system_id, f"wal/{system_id}"
        self.keys, self.identities, self.known_size = keys, identities, None
        if not repo.names(self.top):
            raise Trouble(f"this repository has no WAL of cluster {system_id}: is it the right one, and all of it?")

    def timelines(self) -> list:
        """Those that have a directory or a history."""
        found = {n for n in self.repo.names(self.top) if TIMELINE.fullmatch(n)}
        return sorted(found | {h.timeline for h in self.histories()})

    def histories(self) -> list:
        return [WalFile(n) for n in self.repo.names(self.top) if HISTORY_FILE.fullmatch(n)]

    def files(self, timeline: str) -> list:
        """Names that are none of WAL files of this timeline are no business of ours."""
        return [WalFile(n) for n in self.repo.names(f"{self.top}/{timeline}")
                if WAL_FILE.fullmatch(n) and n.startswith(timeline)]

    def gaps(self, timeline: str) -> list:
        """(from, to, key) of WAL that was lost before it reached a repository. The key says it; the content only why."""
        found = [(m, f"{self.top}/gaps/{n}") for n in self.repo.names(f"{self.top}/gaps")
                 for m in [GAP_FILE.fullmatch(n)] if m and m[1] == timeline]
        return [(int(m[2], 16), int(m[3], 16), key) for m, key in found]

    def size(self) -> int:
        """Bytes in a segment: cluster.json says it, and so does everything that is signed."""
        if self.known_size is None:
            self.known_size = self.described_size() or self.signed_size()
        return self.known_size

    def described_size(self):
        key = f"{self.top}/cluster.json"
        if "cluster.json" not in self.repo.names(self.top):
            return None
        text = parse(self.repo.read(key, 1 << 20), key)
        form = member(text, "format", int, key)
        if form != 1:
            raise TooNew(f"{key} has format {form}; this program reads format 1: get a newer one")
        if text.get("system_id") != self.id:
            raise Damaged(f"{key} is of another cluster, {text.get('system_id')!r}")
        return possible_size(member(text, "segment_size", int, key), key)

    def signed_size(self) -> int:
        for timeline in self.timelines():
            for file in self.files(timeline)[:1] or [h for h in self.histories() if h.timeline == timeline]:
                sealed, _, predicate = self.open(file, any_size=True)
                sealed.file.close()
                return predicate["segment_size"]
        raise Trouble(f"{self.top} has neither a cluster.json nor a file that says how long a segment is")

    def open(self, file: WalFile, any_size=False):
        """(sealed object, SHA-256 of its plain bytes, predicate), after the bundle in its header was checked."""
        key = f"{self.top}/{file.path}"
        sealed = Sealed(self.repo, key)
        try:
            bundle = member(sealed.header, "bundle", dict, key)
            sha256, predicate = read_bundle(bundle, self.keys, f"{self.id}/{file.path}", WAL_TYPE, key)
            hexes({"sha256": sha256}, "sha256", 64, f"{key}: the statement")
            size = possible_size(member(predicate, "segment_size", int, key), key)
            if not any_size and size != self.size():
                raise Damaged(f"{key} is of a cluster with segments of {size} bytes, the others here have {self.size()}")
            length, limit = member(predicate, "bytes", int, key), size
            if file.kind == "piece":
                start, end = file.span
                fits = start < end <= size and length == end - start
            elif file.kind in ("segment", "partial"):
                fits = length == size
            else:
                fits, limit = length <= HISTORY_MAX, HISTORY_MAX
            if not fits:
                raise Damaged(f"{key}: {length} bytes were signed, which cannot be (at most {limit})")
            return sealed, sha256, predicate
        except Trouble:
            sealed.file.close()
            raise

    def copy(self, file: WalFile, out) -> None:
        """The plain bytes, in pieces, to `out`; they are good only when this returns."""
        sealed, sha256, predicate = self.open(file)
        with sealed.file:
            data_key = None
            if sealed.suite == "aes256gcm":
                wrapped = member(sealed.header, "wrapped", str, sealed.key)
                data_key = self.identities.unwrap(wrapped, sealed.key)
            digest, length = hashlib.sha256(), 0
            for piece in sealed.content(data_key):
                length += len(piece)
                if length > predicate["bytes"]:
                    break
                digest.update(piece)
                out.write(piece)
        if length != predicate["bytes"] or digest.hexdigest() != sha256:
            raise Damaged(f"{sealed.key} does not hold the {predicate['bytes']} bytes that were signed")

    def bytes(self, file: WalFile) -> bytes:
        out = io.BytesIO()
        self.copy(file, out)
        return out.getvalue()

    def branches(self, history: WalFile) -> list:
        """[(timeline, where it was left)], out of the signed predicate, so that it needs no identity."""
        sealed, _, predicate = self.open(history)
        sealed.file.close()
        found = []
        for entry in member(predicate, "branches", list, sealed.key):
            number = member(entry, "timeline", int, sealed.key)
            found.append(("%08X" % number, read_lsn(entry.get("switch"), sealed.key)))
        return found

    def missing(self, file: WalFile):
        """The archive does not have this file. Gives the files that a segment which is still open can be put together
        from; raises Ended where the archive ends before it, and something else where that is not proven."""
        parts, ended = [], Ended(f"{file.name}: the archive ends before it")
        if file.kind == "backup":  # recovery does without it, and it says nothing of an end
            raise ended
        if file.kind == "history":
            if self.files(file.timeline):
                raise Damaged(f"{file.name} is missing, but there is WAL of its timeline")
            for child in self.histories():
                if file.timeline in (timeline for timeline, _ in self.branches(child)):
                    raise Damaged(f"{file.name} is missing, but {child.name} descends from its timeline")
            raise ended
        size = self.size()
        number = number_of(file.segment, size)
        start = number * size
        for history in (h for h in self.histories() if h.timeline == file.timeline):
            branches = self.branches(history)
            if branches and branches[-1][1] // size > number:  # it cannot have what was written before it began
                raise ended
        for other in self.files(file.timeline):
            if other.kind == "backup":
                continue
            if number_of(other.segment, size) > number:
                raise Damaged(f"{file.name} is missing, but {other.name} is there: WAL is missing in between")
            if other.segment == file.segment:
                parts.append(other)
        reach = self.reach(parts, start)[0] if parts else 0
        if parts and not reach:
            raise Damaged(f"{file.name} is missing, and of what is there of it ({parts[0].name}) nothing can be used")
        for lost_from, lost_to, key in self.gaps(file.timeline):
            if lost_to > start + reach:
                raise Damaged(f"{file.name} is missing, and {key} says that WAL is lost from {lsn(lost_from)} to {lsn(lost_to)}")
        for child in self.histories():
            for timeline, switch in self.branches(child):
                if timeline == file.timeline and switch > start + reach and not parts:
                    raise Damaged(f"{file.name} is missing, but {child.name} says that its timeline went on to {lsn(switch)}")
        if not parts or file.kind != "segment":
            raise ended
        return parts

    def reach(self, parts: list, start: int):
        """(how far an open segment goes, the pieces that it takes, or none of them where its `.partial` goes further)."""
        spans, far = joined([p.span for p in parts if p.kind == "piece"])
        for partial in (p for p in parts if p.kind == "partial"):
            sealed, _, predicate = self.open(partial)
            sealed.file.close()
            summary = predicate.get("summary", {})
            end = member(summary, "end", str, sealed.key) if "end" in summary else None
            whole = 0 if end is None else min(read_lsn(end, sealed.key) - start, self.size())
            if whole > far:
                return whole, []
        return far, spans

    def put_together(self, segment: WalFile, parts: list, out) -> int:
        """Writes a segment that was still open: what there is, then zeros. Gives how many bytes are from the archive."""
        size = self.size()
        far, spans = self.reach(parts, number_of(segment.segment, size) * size)
        content = bytearray()
        if not spans:
            content += self.bytes(WalFile(f"{segment.segment}.partial"))[:far]
        for start, end in spans:
            piece = self.bytes(WalFile("%s.%08X-%08X" % (segment.segment, start, end)))
            if content[start:] != piece[:len(content) - start]:
                raise Damaged(f"{segment.name}: its pieces do not hold the same bytes where they overlap")
            content[start:] = piece
        out.write(content)
        out.truncate(size)  # zeros behind it
        return far


def possible_size(size: int, what: str) -> int:
    if size & (size - 1) or not 1 << 20 <= size <= 1 << 30:
        raise Damaged(f"{what}: no cluster has segments of {size} bytes")
    return size


def cluster(repo: Repo, wanted: str = None) -> str:
    """The system identifier that was asked for, or that of the data directory this is, or the only one that is there."""
    there = [n for n in repo.names("wal") if SYSTEM_ID.fullmatch(n)]
    try:
        with open("global/pg_control", "rb") as file:  # it begins with the system identifier, in this machine's byte order
            mine = struct.unpack("=Q", file.read(8))[0]
    except FileNotFoundError:
        mine = None
    except struct.error:
        raise Trouble("global/pg_control is cut off") from None
    if wanted is not None and mine is not None and wanted != str(mine):
        raise Usage(f"this data directory is of cluster {mine}, --system-id says {wanted}")
    found = wanted or (str(mine) if mine is not None else None)
    if found is None and len(there) != 1:
        raise Usage(f"give --system-id with one of {there}")
    found = found or there[0]
    if not SYSTEM_ID.fullmatch(found):
        raise Usage(f"{found!r} is no system identifier")
    return found


def land(path: str, fill):
    """A file that has its name only when it is whole and durable."""
    temporary = f"{path}.rescue"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(fd, "wb") as file:
            result = fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return result


# ------------------------------------------------------------------------------------------------------------ commands

def trust(backup: Backup, arguments):
    """The keys, after the manifest passed; or a loud word and None, where that is what was asked for."""
    keys = load_keys(arguments.key)
    if keys is None and not arguments.unsigned_ok:
        raise Damaged("no --key was given, so nobody knows who wrote this backup: give --key cosign.pub, or accept "
                      "that with --unsigned-ok")
    if keys is None:
        say("**********************************************************************")
        say("***  THE SIGNATURE WAS NOT CHECKED. Damage is found; forgery is not. ***")
        say("**********************************************************************")
        if not os.path.lexists(os.path.join(backup.repo.root, backup.id, "manifest.sigstore.json")):
            say("there is no signature beside this manifest at all")
            return None
    backup.check_signature(keys)
    if keys:
        say(f"{backup.id}: the signature is valid")
    return keys


def command_list(repo: Repo, _) -> int:
    toll = Toll()
    for backup_id in repo.backups():
        try:
            text = Backup(repo, backup_id).text
        except Trouble as error:
            print(f"{backup_id}  UNREADABLE")
            toll.add(error)
            continue
        postgres, artifacts = text.get("postgres") or {}, text.get("artifacts") or {}
        words = [backup_id, text.get("state", "?"), f"{text.get('plain_bytes', 0)} bytes"]
        if postgres:
            words.append(f"PostgreSQL {postgres.get('version', '?')} ({postgres.get('copy', '?')})")
        if artifacts:
            words.append(f"{artifacts.get('count', '?')} artifacts")
        print(clean("  ".join(map(str, words))))
    return toll.code()


def command_show(repo: Repo, arguments) -> int:
    backup, toll = Backup(repo, arguments.backup), Toll()
    try:
        signature = backup.check_signature(load_keys(arguments.key))
    except Damaged as error:
        toll.add(error)
        signature = "BAD OR MISSING"
    print(f"signature: {signature}")
    print(f"manifest_sha256: {backup.sha256}")
    for name, value in backup.text.items():
        if name in ("packs", "tables", "encryption") or not isinstance(value, (dict, list)):
            continue
        print(clean(f"{name}: {json.dumps(value, ensure_ascii=False)}"))
    for name, value in backup.text.items():
        if not isinstance(value, (dict, list)):
            print(clean(f"{name}: {value}"))
    print(f"packs: {len(backup.packs())}, tables: {len(backup.tables())}")
    encryption = member(backup.text, "encryption", dict, backup.key)
    print(clean(f"encryption: {backup.suite()}, recipients: {encryption.get('recipients')}"))
    return toll.code()


def command_restore(repo: Repo, arguments) -> int:
    backup, toll = Backup(repo, arguments.backup), Toll()
    trust(backup, arguments)
    tables = backup.tables()
    if not tables:
        raise Trouble(f"{backup.id} holds no files (only artifacts, or a database that was named and not copied)")
    identities = Identities(arguments.identity, load_export(arguments.export, backup))
    table_key, data_key = backup.data_key("tables", identities), backup.data_key("data", identities)
    elsewhere = {}
    for text in arguments.tablespace:
        oid, _, path = text.partition("=")
        listed = [str(t.get("oid")) for t in backup.postgres().get("tablespaces") or []
                  if isinstance(t, dict)]
        if oid not in listed or not os.path.isabs(path):
            raise Usage(f"--tablespace {text}: give OID=/absolute/directory with one of the OIDs {listed}")
        elsewhere[oid] = path
    target, packs = Target(arguments.to, True, elsewhere), Packs(backup, data_key)
    restore = Restore(target, backup, packs, arguments.path, arguments.keep_damaged, toll)
    try:
        restore_files(backup, restore, table_key, data_key)
    finally:
        packs.close()
    return told(target, toll)


def restore_files(backup: Backup, restore: Restore, table_key, data_key) -> None:
    tables, toll = backup.tables(), restore.toll
    for number, (key, sha256, entry) in enumerate(tables):
        say(f"file table {number + 1} of {len(tables)}")
        rows = 0
        try:
            for meta, extents in table_rows(backup.content(key, sha256, table_key), key):
                rows += 1
                try:
                    restore.row(meta, extents)
                except Damaged as error:
                    toll.add(error)
            if rows != member(entry, "rows", int, key):
                raise Damaged(f"{key} has {rows} rows, not {entry['rows']}")
        except Damaged as error:
            toll.add(error, f"files from {entry.get('first')!r} to {entry.get('last')!r} are missing")
    named = backup.postgres_manifest()
    restore.finish((lambda: b"".join(backup.content(*named, data_key))) if named else None)


def told(target: Target, toll: Toll) -> int:
    print(f"restored {target.count} files, {target.bytes} bytes")
    if toll.codes:
        say(f"{len(toll.codes)} THINGS ARE MISSING OR DAMAGED, see above")
    return toll.code()


def command_artifacts(repo: Repo, arguments) -> int:
    backup, toll = Backup(repo, arguments.backup), Toll()
    keys = trust(backup, arguments)
    if not isinstance(backup.text.get("artifacts"), dict):
        raise Trouble(f"{backup.id} names no artifacts")
    identities = Identities(arguments.identity, load_export(arguments.export, backup))
    target = Target(arguments.to, False)
    try:
        for entry in artifact_set(backup):
            if arguments.path is not None and not fnmatch.fnmatchcase(entry["n"], arguments.path):
                continue
            try:
                record = check_record(repo, entry, keys)
                target.file(entry["n"], member(record, "mode", int, entry["n"]),
                            lambda file, record=record: fill_blob(repo, record, identities, file),
                            nanoseconds(record.get("modified")))
            except (Damaged, TooNew, WrongIdentity) as error:
                toll.add(error, f"{entry['n']}: NOT RESTORED")
    except Damaged as error:  # a run: what it would have said is unknown, so is the rest of the set
        toll.add(error, "the set of artifacts is not complete")
    os.sync()
    return told(target, toll)


def command_check(repo: Repo, arguments) -> int:
    backup = Backup(repo, arguments.backup)
    keys, toll, count, blobs = load_keys(arguments.key), Toll(lambda text: print(clean(text))), 0, set()

    def attempt(check, *values):
        nonlocal count
        count += 1
        try:
            check(*values)
        except Trouble as error:
            toll.add(error)

    def check_wrapped(purpose):
        found = [k for k in member(backup.text["encryption"], "keys", list, backup.key)
                 if isinstance(k, dict) and k.get("purpose") == purpose]
        if len(found) != 1:
            raise Damaged(f"{backup.key} carries {len(found)} keys for {purpose}, not one")
        hexes(found[0], "id", 32, backup.key)
        if not unbase64(member(found[0], "wrapped", str, purpose), purpose).startswith(b"age-encryption.org/v1\n"):
            raise Damaged(f"{backup.key}: the wrapped key for {purpose} is not an age file")

    def check_pack(sha256, pack_id, bytes_):
        key = repo.expect(pack_key(sha256), sha256)
        with repo.open(key) as file:
            check_pack_header(pull(file, 32, key), pack_id, backup.suite() != "none", key)
            if os.fstat(file.fileno()).st_size != bytes_:
                raise Damaged(f"{key} is not as long as the manifest says")

    def check_sealed(key, sha256=None):
        Sealed(repo, repo.expect(key, sha256) if sha256 else key).check()

    def check_artifacts():
        for entry in artifact_set(backup):
            attempt(check_record, repo, entry, keys)
            digest = hexes(entry, "d", 64, entry["n"])
            if digest not in blobs:
                blobs.add(digest)
                attempt(check_sealed, blob_key(digest))

    if keys is None:
        say("THE SIGNATURE IS NOT CHECKED: no --key was given. Damage is found; forgery is not.")
    attempt(backup.check_signature, keys)
    for purpose in ("data", "tables") if backup.suite() != "none" else ():
        attempt(check_wrapped, purpose)
    for (sha256, pack_id), entry in zip(backup.packs(), backup.text["packs"]):
        attempt(check_pack, sha256, pack_id, entry.get("bytes"))
    for key, sha256, _ in backup.tables():
        attempt(check_sealed, key, sha256)
    if backup.postgres_manifest():
        attempt(check_sealed, *backup.postgres_manifest())
    if backup.truth():
        attempt(check_sealed, *backup.truth())
    if isinstance(backup.text.get("artifacts"), dict):
        attempt(check_artifacts)
    print(f"{backup.id}: {count} checks, {len(toll.codes)} failed")
    return toll.code()


def wal_archive(repo: Repo, arguments) -> Archive:
    keys = load_keys(arguments.key)
    if keys is None and not arguments.unsigned_ok:
        raise Damaged("no --key was given, so nobody knows who wrote this WAL: give --key cosign.pub, or accept that with "
                      "--unsigned-ok")
    return Archive(repo, cluster(repo, arguments.system_id), keys, Identities(arguments.identity))


def command_wal_list(repo: Repo, arguments) -> int:
    toll, keys = Toll(), load_keys(arguments.key)
    if keys is None:
        say("THE SIGNATURES OF HISTORIES ARE NOT CHECKED: no --key was given")
    for system_id in (n for n in repo.names("wal") if SYSTEM_ID.fullmatch(n)):
        if arguments.system_id not in (None, system_id):
            continue
        archive = Archive(repo, system_id, keys)
        try:
            print(f"cluster {system_id}, segments of {archive.size()} bytes")
        except Trouble as error:
            print(f"cluster {system_id}: UNREADABLE")
            toll.add(error)
            continue
        for timeline in archive.timelines():
            print(f"  timeline {int(timeline, 16)}")
            try:
                list_timeline(archive, timeline, toll)
            except Trouble as error:
                toll.add(error, f"timeline {int(timeline, 16)}")
    return toll.code()


def list_timeline(archive: Archive, timeline: str, toll: Toll) -> None:
    size, held = archive.size(), {}
    if f"{timeline}.history" in (h.name for h in archive.histories()):
        try:
            left = [f"timeline {int(t, 16)} at {lsn(s)}" for t, s in archive.branches(WalFile(f"{timeline}.history"))]
            print(f"    history: left {', '.join(left)}")
        except Damaged as error:
            toll.add(error)
    elif timeline != "00000001":
        print("    its history is MISSING")
    for file in archive.files(timeline):
        try:
            if file.kind != "backup":
                held.setdefault(number_of(file.segment, size), []).append(file)
        except Damaged as error:
            toll.add(error)
    runs = []  # of segments that follow each other and are all whole, or all not
    for number, files in sorted(held.items()):
        whole = any(f.kind == "segment" for f in files)
        if whole and runs and runs[-1][0] and runs[-1][2] == number - 1:
            runs[-1][2] = number
        else:
            runs.append([whole, number, number])
    before, newest = None, max(held, default=None)
    for whole, first, last in runs:
        if before is not None and first != before + 1:
            print(f"    GAP {lsn((before + 1) * size)} to {lsn(first * size)}: {first - before - 1} segments are not there")
        before = last
        start, end = (segment_name(timeline, n, size) for n in (first, last))
        if whole:
            print(f"    {lsn(first * size)} to {lsn((last + 1) * size)}: {last - first + 1} segments, {start} to {end}")
            continue
        try:
            far = archive.reach(held[first], first * size)[0]
        except Damaged as error:
            toll.add(error)
            far = 0
        print(f"    {'open' if first == newest else 'GAP: not whole,'} {start}: {lsn(first * size)} to {lsn(first * size + far)}, of "
              + ", ".join(f.name[25:] for f in held[first]))
    for lost_from, lost_to, key in archive.gaps(timeline):
        try:
            reason = parse(archive.repo.read(key, 1 << 20), key).get("reason")
        except Damaged as error:
            toll.add(error)
            reason = "unreadable"
        print(clean(f"    LOST {lsn(lost_from)} to {lsn(lost_to)} before it reached a repository: {reason}"))


def command_wal_get(repo: Repo, arguments) -> int:
    archive, file = wal_archive(repo, arguments), WalFile(arguments.file)
    if os.path.lexists(arguments.out):
        raise Usage(f"{arguments.out} is there already")
    if file.name not in repo.names(os.path.dirname(f"{archive.top}/{file.path}")):
        raise Trouble(f"{file.name} is not in the archive; see: rescue.py {repo.root} wal list")
    land(arguments.out, lambda out: archive.copy(file, out))
    return 0


def command_wal_fetch(repo: Repo, arguments) -> int:
    """PostgreSQL's restore_command. Raises Ended only for what is proven, because a server that hears that takes up writing."""
    archive, file = wal_archive(repo, arguments), WalFile(arguments.file)
    if file.kind == "piece":
        raise Usage(f"{file.name} is a name of ours, no server asks for it")
    if file.kind == "history" and int(file.timeline, 16) < 2:
        raise Ended(f"{file.name}: the first timeline has no history")
    if file.kind != "history":
        number_of(file.segment, archive.size())
    if file.name in repo.names(os.path.dirname(f"{archive.top}/{file.path}")):
        land(arguments.path, lambda out: archive.copy(file, out))
        return 0
    try:
        parts = archive.missing(file)
    finally:
        again = Repo(repo.root)  # what is unmounted in the middle looks empty, and has no descriptor either
        if again.id != repo.id:
            raise Trouble(f"{repo.root} is another repository than it was a moment ago")
    far = land(arguments.path, lambda out: archive.put_together(file, parts, out))
    say(f"{file.name} was still open: its first {far} bytes are from the archive, zeros behind them")
    return 0


def read_arguments(words):
    top = argparse.ArgumentParser(prog="rescue.py", description="Read a lifeboat repository without lifeboat.")
    top.add_argument("repo", metavar="REPO", help="a local copy of the repository")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the backups, oldest first").set_defaults(run=command_list)
    for name, run, text in (("show", command_show, "what a backup says about itself"),
                            ("check", command_check, "look for damage; needs no identity"),
                            ("restore", command_restore, "write the files of a backup"),
                            ("artifacts", command_artifacts, "write the artifacts of a backup")):
        one = commands.add_parser(name, help=text)
        one.set_defaults(run=run)
        one.add_argument("backup", metavar="BACKUP", help="a backup id, or latest")
        one.add_argument("--key", action="append", metavar="FILE", help="a public key to trust; repeatable")
        if name in ("restore", "artifacts"):
            one.add_argument("--identity", metavar="FILE", help="age identity that the backup is encrypted to")
            one.add_argument("--export", metavar="FILE", help="keys of this backup for that identity, from lifeboat key export")
            one.add_argument("--to", required=True, metavar="DIR", help="an empty or new directory")
            one.add_argument("--path", metavar="GLOB", help="only these; * matches / too")
            one.add_argument("--unsigned-ok", action="store_true", help="go on without checking the signature")
        if name == "restore":
            one.add_argument("--tablespace", action="append", default=[], metavar="OID=DIR")
            one.add_argument("--keep-damaged", action="store_true", help="zeros for what is damaged; still exits 21")
    wal = commands.add_parser("wal", help="the archive of WAL").add_subparsers(dest="wal", required=True, metavar="COMMAND")
    for name, run, text in (("list", command_wal_list, "what is there, and what is missing"),
                            ("get", command_wal_get, "write one file of it"),
                            ("fetch", command_wal_fetch, "answer as PostgreSQL's restore_command")):
        one = wal.add_parser(name, help=text)
        one.set_defaults(run=run)
        if name != "list":
            one.add_argument("file", metavar="FILE", help="its name, such as 000000010000000000000003")
            one.add_argument("--identity", metavar="FILE", help="age identity that the WAL is encrypted to")
            one.add_argument("--unsigned-ok", action="store_true", help="go on without checking signatures")
        if name == "get":
            one.add_argument("--out", required=True, metavar="PATH", help="a new file")
        if name == "fetch":
            one.add_argument("path", metavar="PATH", help="where PostgreSQL wants it")
            one.add_argument("--ended", type=int, default=1, metavar="CODE", help="exit code for: the archive ends before it")
        one.add_argument("--key", action="append", metavar="FILE", help="a public key to trust; repeatable")
        one.add_argument("--system-id", metavar="ID", help="the cluster; else that of this data directory, or the only one")
    return top.parse_args(words)


def is_fetch(words) -> bool:
    """Whether a command line, and be it a wrong one, was meant for PostgreSQL's restore_command."""
    return "wal" in words and "fetch" in words


def answer(words) -> int:
    """The exit code of wal fetch. Whatever goes wrong, also in telling it, is trouble and never the end of the archive."""
    try:
        arguments = read_arguments(words)
        try:
            return arguments.run(Repo(arguments.repo), arguments)
        except Ended:  # nothing is said: a server asks often for what is not there
            return arguments.ended
    except SystemExit as stop:
        return 0 if stop.code == 0 else TROUBLE  # --help, or a bad command line
    except BaseException as error:
        try:
            say(error if isinstance(error, (Trouble, OSError)) else f"{type(error).__name__}: {error}")
        except BaseException:
            pass
        return TROUBLE


def main(words=None) -> int:
    words = sys.argv[1:] if words is None else words
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if is_fetch(words):
        return answer(words)
    arguments = read_arguments(words)
    try:
        return arguments.run(Repo(arguments.repo), arguments)
    except Trouble as error:
        say(error)
        return error.code
    except OSError as error:
        say(error)
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 1
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, MemoryError, RecursionError) \
            as error:  # a member of a kind nobody expected: the input's fault, and no one wants a traceback tonight
        say(f"cannot make sense of the repository: {type(error).__name__}: {error}")
        return 21


if __name__ == "__main__":
    CODE = main()
    if is_fetch(sys.argv):
        os._exit(CODE)  # not by way of an interpreter that ends with 120 when stderr cannot be flushed
    sys.exit(CODE)
