"""Tests of rescue.py against repositories that are written here, in Python, from docs/format.md alone.

The writer below shares nothing with rescue.py, so that a wrong reading of the format has to be made twice to pass.
Run: python -m unittest -v test_rescue   (with what requirements.txt names)
"""
import base64
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import pyrage
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import rescue  # noqa: E402

SEED = int(os.environ.get("RESCUE_SEED", "20240315"))
PAGE, EXTENT = 8192, 262144
ID = "conductor-backup-20240315T120000Z"
AES = "aes256gcm"
MODIFIED = "2024-03-14T09:08:07.060504Z"
MODIFIED_NS = 1710407287060504000
MIB, SYSTEM = 1 << 20, "7301234567890123456"


def castagnoli(data):
    """CRC-32C bit by bit, from its definition; not rescue.py's."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def control_file(checkpoint, noise, at=288):
    """A pg_control of PostgreSQL 13 to 17; from 18 on the CRC stands at 292."""
    raw = bytearray(noise)
    struct.pack_into("<Q", raw, 32, checkpoint)
    struct.pack_into("<I", raw, at, castagnoli(raw[:at]))
    return bytes(raw)


def backup_manifest(control, tablespace_map):
    """What PostgreSQL writes beside a base backup, one line for each file."""
    text = '{ "PostgreSQL-Backup-Manifest-Version": 1,\n"Files": [\n' + ",\n".join(
        '{ "Path": "%s", "Size": %d, "Last-Modified": "2024-03-15 12:00:00 GMT", "Checksum-Algorithm": "%s", "Checksum": "%s" }'
        % (path, len(content), name, digest(content)) for path, content, name, digest in (
            ("PG_VERSION", b"16\n", "SHA256", lambda c: hashlib.sha256(c).hexdigest()),
            ("global/pg_control", control, "CRC32C", lambda c: struct.pack("<I", castagnoli(c)).hex()),
            ("tablespace_map", tablespace_map, "SHA256", lambda c: hashlib.sha256(c).hexdigest()))
    ) + '\n],\n"WAL-Ranges": [\n{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }\n],\n'
    text += '"Manifest-Checksum": "%s"}\n' % hashlib.sha256(text.encode()).hexdigest()
    return text.encode()


# ------------------------------------------------------------------------------------------------------- the writer

class Writer:
    """Writes one repository with one backup. Hooks in `wrong` make the mistakes that tests want."""

    def __init__(self, root, suite, **wrong):
        self.root, self.suite, self.wrong = root, suite, wrong
        self.random = random.Random(SEED)
        self.identity, self.host = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
        self.signer = ec.generate_private_key(ec.SECP256R1())
        self.keys = {"data": self.data_key(self.identity), "tables": self.data_key(self.identity, self.host)}
        self.packs, self.tables = [], []
        self.put("lifeboat.json", json.dumps(
            {"format": {"name": "lifeboat", "version": wrong.get("version", 1)}, "repository": "ab" * 16,
             "created": "2024-03-15T12:00:00Z", "created_by": "test"}).encode())

    def data_key(self, *identities):
        key = self.random.randbytes(32)
        wrapped = base64.b64encode(pyrage.encrypt(key, [i.to_public() for i in identities])).decode()
        return {"id": self.random.randbytes(16).hex(), "key": key, "wrapped": wrapped}

    def put(self, key, raw):
        path = os.path.join(self.root, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(raw)
        return hashlib.sha256(raw).hexdigest()

    def seal_frame(self, key, info, index, associated, plain):
        if self.suite == "none":
            return plain + blake3(associated + plain).digest()[:16]
        derived = HKDF(hashes.SHA256(), 32, None, info.encode()).derive(key)
        return AESGCM(derived).encrypt(struct.pack("<Q4x", index), plain, associated)

    def pack(self, fragments):
        """Writes a pack; gives the places (pack, offset, length, check) of its fragments."""
        pack_id, places = self.random.randbytes(16), []
        raw = b"LBPACK1\n" + pack_id + bytes([self.suite == AES]) + bytes(7)
        for number, plain in enumerate(fragments):
            packed = zstandard.compress(plain)
            form = b"\1" + packed if number % 2 == 0 and len(packed) < len(plain) else b"\0" + plain
            sealed = self.seal_frame(self.keys["data"]["key"], "lifeboat/v1/pack/" + pack_id.hex(), len(raw),
                                     pack_id + struct.pack("<Q", len(raw)), form)
            places.append((len(self.packs), len(raw), len(sealed), blake3(plain).digest()[:16]))
            raw += sealed
        sha256 = hashlib.sha256(raw).hexdigest()
        self.put(f"packs/{sha256[:2]}/{sha256}", raw)
        self.packs.append({"sha256": sha256, "id": pack_id.hex(), "bytes": len(raw)})
        return places

    def sealed(self, key, plain, with_key, wrapped=False, at=None, size=EXTENT, more=None):
        header = {"object": key, "suite": self.suite, "id": self.random.randbytes(16).hex()}
        if self.suite == AES:
            header["key"] = with_key["id"]
            if wrapped:
                header["wrapped"] = with_key["wrapped"]
        header.update(more or {})
        header = json.dumps(header).encode()
        digest = blake3(header).digest()
        raw = b"LBSEAL1\n" + struct.pack("<I", len(header)) + header
        pieces = [plain[i:i + size] for i in range(0, len(plain), size)] or [b""]
        for index, piece in enumerate(pieces):
            last = 2 if index + 1 == len(pieces) and not self.wrong.get("no_last") else 0
            form = bytes([last | 1]) + zstandard.compress(piece) if index % 2 == 0 else bytes([last]) + piece
            frame = self.seal_frame(with_key["key"], f"lifeboat/v1/object/{key}/{digest.hex()}", index,
                                    digest + struct.pack("<Q", index), form)
            raw += struct.pack("<I", len(frame)) + frame
        raw += blake3(raw).digest()
        return {"object": key, "sha256": self.put(at or key, raw), "bytes": len(raw)}

    @staticmethod
    def row(path, kind="file", size=0, extents=(), **more):
        meta = {"path": path, "kind": kind, "mode": 0o600, "modified": "2024-03-15T12:00:00Z", **more}
        if size != 0:  # left out where it is 0, as the program does
            meta["size"] = size
        meta = json.dumps(meta).encode()
        raw = struct.pack("<I", len(meta)) + meta + struct.pack("<I", len(extents))
        for fragments in extents:
            raw += bytes([len(fragments)])
            for bitmap, place in fragments:
                raw += struct.pack("<IIII16s", bitmap, *place)
        return raw

    def table(self, rows, first, last):
        entry = self.sealed(f"{ID}/files/{len(self.tables)}", b"".join(rows), self.keys["tables"], size=300)
        self.tables.append({**entry, "rows": len(rows), "first": first, "last": last})

    def bundle(self, subject, sha256, predicate_type, predicate):
        payload = json.dumps({"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate_type,
                              "subject": [{"name": subject, "digest": {"sha256": sha256}}],
                              "predicate": predicate}).encode()
        kind = b"application/vnd.in-toto+json"
        pae = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])
        signature = self.signer.sign(pae, ec.ECDSA(hashes.SHA256()))
        return {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                "verificationMaterial": {"publicKey": {"hint": "test"}},
                "dsseEnvelope": {"payload": base64.b64encode(payload).decode(), "payloadType": kind.decode(),
                                 "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}]}}

    def manifest(self, **members):
        keys = [{"id": k["id"], "purpose": p, "wrapped": k["wrapped"]} for p, k in self.keys.items()]
        manifest = {"format": 1, "id": ID, "repository": "ab" * 16, "name": "conductor", "host": "db1",
                    "started": "2024-03-15T12:00:00Z", "finished": "2024-03-15T12:01:00Z", "kind": "full",
                    "state": "healthy", "findings": [], "warnings": [], "packs": self.packs, "tables": self.tables,
                    "encryption": {"suite": self.suite, "keys": keys if self.suite == AES else [],
                                   "recipients": [str(self.identity.to_public())]}, "plain_bytes": 17, **members}
        raw = json.dumps(manifest).encode()
        digest = hashlib.sha256(raw).hexdigest()
        self.put(f"{ID}/manifest.sigstore.json",
                 json.dumps(self.bundle(ID, digest, rescue.BACKUP_TYPE, {})).encode())
        self.put(f"{ID}/manifest.json", raw)

    def artifact(self, name, plain, version, escaped):
        digest = hashlib.sha256(plain).hexdigest()
        self.sealed(f"artifacts/blobs/{digest[:2]}/{digest}", plain, self.keys["data"], wrapped=True, size=1000)
        record = {"format": 1, "name": name, "version": version, "sha256": digest, "bytes": len(plain), "mode": 0o640,
                  "modified": MODIFIED, "created": "2024-03-15T12:00:00.123Z", "origin": "sync"}
        predicate = {"version": version, "bytes": len(plain), "mode": 0o640, "modified": MODIFIED,
                     **self.wrong.get("predicate", {})}
        record["bundle"] = self.bundle(name, digest, rescue.ARTIFACT_TYPE, predicate)
        sha256 = self.put(f"artifacts/records/{escaped}/{version}.json", json.dumps(record).encode())
        return {"n": name, "v": version, "d": digest, "b": len(plain), "m": 0o640, "t": MODIFIED, "r": sha256,
                "o": "sync"}

    def run(self, entries):
        entries.sort(key=lambda e: e["n"].encode())
        lines = [json.dumps(e, ensure_ascii=False).encode() + b"\n" for e in entries]
        half = len(lines) // 2
        raw = b"".join(zstandard.compress(b"".join(part)) for part in (lines[:half], lines[half:]) if part)
        sha256 = hashlib.sha256(raw).hexdigest()
        self.put(f"artifacts/catalog/{sha256}", raw)
        return {"sha256": sha256, "bytes": len(raw), "entries": len(entries), "first": entries[0]["n"],
                "last": entries[-1]["n"]}


    def wal(self, path, plain, signed=None, subject=None, kind=None, **predicate):
        """A file of WAL. What is signed can be said to be something else."""
        predicate = {"bytes": len(plain), "segment_size": MIB, **predicate}
        digest = hashlib.sha256(plain if signed is None else signed).hexdigest()
        bundle = self.bundle(subject or f"{SYSTEM}/{path}", digest, kind or rescue.WAL_TYPE, predicate)
        self.sealed(f"wal/{SYSTEM}/{path}", plain, self.keys["data"], wrapped=True, more={"bundle": bundle})

    def gap(self, timeline, start, end):
        self.put(f"wal/{SYSTEM}/gaps/{timeline:08X}.{start:016X}-{end:016X}.json", json.dumps(
            {"format": 1, "timeline": timeline, "from": "0/0", "to": "0/0", "reason": "the slot\x1bwas lost"}).encode())


def build(root, suite, **wrong):
    """The repository that most tests use. Gives the writer and what must come out of it."""
    w = Writer(root, suite, **wrong)
    noise = w.random.randbytes
    old, new, tail, small = noise(EXTENT), noise(2 * PAGE), noise(PAGE + 100), noise(999)
    wal, spaced = b"w" * 5000, b"fast" * 1000
    rest, at = noise(PAGE), wrong.get("crc_at", 288)
    control, restored = control_file(0x16B374D848, rest, at), control_file(0xDEAD, rest, at)
    stored_map, restored_map = b"16400 /mnt/fast\n", b""
    full, boot = w.pack([old, tail, wal]), w.pack([new, small, spaced, control, stored_map])
    old_place, tail_place, wal_place = full
    new_place, small_place, spaced_place, control_place, map_place = boot
    base = bytearray(old)
    base[PAGE:2 * PAGE], base[31 * PAGE:] = new[:PAGE], new[PAGE:]
    big_size = 3 * EXTENT + len(tail)
    big = bytes(base) + bytes(2 * EXTENT) + tail
    bit = wrong.get("bitmap", 0b11)
    w.table([
        w.row("PG_VERSION", size=999, extents=[[(1, small_place)]], mode=0o640),
        w.row("base", "directory", mode=0o500),
        w.row("base/1/2", size=big_size, extents=[[(1 << 1 | 1 << 31, new_place), (0xFFFFFFFF, old_place)], [], [],
                                                  [(bit, tail_place)]]),
        w.row("base/1/sparse", size=PAGE * 3, extents=[[(0b010, (1, new_place[1], 1, bytes(16)))
                                                        if wrong.get("impossible") else (0b110, new_place)]]),
        w.row("empty"),
        w.row("global", "directory", mode=wrong.get("global_mode", 0o700)),
        w.row("global/pg_control", size=PAGE, extents=[[(1, control_place)]]),
        w.row("lifeboat-outside/etc/postgresql.conf", size=999, extents=[[(1, small_place)]], outside=True,
              target="/etc/postgresql.conf"),
    ] + wrong.get("rows", []), "PG_VERSION", "lifeboat-outside/etc/postgresql.conf")
    w.table([
        w.row("link", "symlink", target="../../nowhere"),
        w.row("pg_tblspc/16400", "tablespace", target="/mnt/fast", mode=0o700),
        w.row("pg_tblspc/16400/PG_16/5", size=4000, extents=[[(1, spaced_place)]]),
        w.row("pg_wal", "directory", mode=0o700),
        w.row("pg_wal/000000010000000000000001", size=5000, extents=[[(1, wal_place)]]),
        w.row("tablespace_map", size=16, extents=[[(1, map_place)]]),
    ], "link", "tablespace_map")
    listing = w.sealed(f"{ID}/backup_manifest", backup_manifest(control, stored_map), w.keys["data"], size=100)
    long = "ü" * 40
    longest = "/".join(["m" * 204] * 5)
    version = "20240315T120000.123Z-1f2e3d4c5b6a"
    escaped = ("%C3%BC" * 40)[:126] + "%~" + hashlib.sha256(long.encode()).hexdigest()
    newer = [w.artifact("builds/a b", b"new" * 999, version.replace("4Z", "5Z"), "builds/a%20b"),
             {"n": "builds/gone", "x": True}]
    older = [w.artifact("builds/a b", b"old", version.replace("123Z", "122Z"), "builds/a%20b"),
             w.artifact("builds/gone", b"gone", version, "builds/gone"),
             w.artifact("empty", b"", version, "empty"),
             w.artifact(longest, b"longest name", version, "%~" + hashlib.sha256(longest.encode()).hexdigest()),
             w.artifact(long, b"long name", version, escaped)]
    w.manifest(**{"format": wrong.get("manifest_format", 1),
                  "postgres": {"copy": "local", "version": "16.2", "backup_manifest": listing,
                               "tablespaces": [{"oid": 16400, "name": "fast", "location": "/mnt/fast"}]},
                  "artifacts": {"head": 2, "runs": [w.run(newer), w.run(older)], "count": 4, "bytes": 3018},
                  **wrong.get("manifest", {})})
    files = {"PG_VERSION": small, "base/1/2": big, "base/1/sparse": bytes(PAGE) + new, "empty": b"",
             "global/pg_control": restored, "lifeboat-outside/etc/postgresql.conf": small,
             "pg_tblspc/16400/PG_16/5": spaced, "pg_wal/000000010000000000000001": wal,
             "tablespace_map": restored_map, "backup_manifest": backup_manifest(restored, restored_map)}
    return w, files, {"builds/a b": b"new" * 999, "empty": b"", long: b"long name", longest: b"longest name"}


# --------------------------------------------------------------------------------------------------------- the tests

class Case(unittest.TestCase):
    def setUp(self):
        self.top = tempfile.mkdtemp(prefix="rescue-")
        self.addCleanup(self.remove)
        self.repo, self.count = os.path.join(self.top, "repo"), 0
        umask = os.umask(0o022)
        self.addCleanup(os.umask, umask)

    def remove(self):
        for path, _, _ in os.walk(self.top):
            os.chmod(path, 0o700)
        shutil.rmtree(self.top)

    def build(self, suite=AES, **wrong):
        self.w, self.files, self.artifacts = build(self.repo, suite, **wrong)
        self.identity = self.save("identity", f"# mine\n{self.w.identity}\n".encode())
        self.key = self.save("cosign.pub", self.w.signer.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))

    def save(self, name, raw):
        path = os.path.join(self.top, name)
        with open(path, "wb") as file:
            file.write(raw)
        return path

    def run_rescue(self, *words):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = rescue.main([self.repo, *words])
            except SystemExit as stop:
                code = stop.code
        self.said = out.getvalue() + err.getvalue()
        self.assertNotIn("Traceback", self.said)
        return code

    def restore(self, *more, command="restore", key=None, identity=None):
        self.count += 1
        self.to = os.path.join(self.top, f"to{self.count}")
        return self.run_rescue(command, ID, "--identity", identity or self.identity, "--key", key or self.key,
                               "--to", self.to, *more)

    def tree(self, root=None):
        """Every file below, links not followed."""
        found, root = {}, root or self.to
        for base, _, names in os.walk(root):
            for name in names:
                path = os.path.join(base, name)
                if not os.path.islink(path):
                    with open(path, "rb") as file:
                        found[os.path.relpath(path, root)] = file.read()
        return found

    def objects(self):
        return sorted(self.tree(self.repo))

    def nothing_outside(self):
        known = {"repo", "identity", "cosign.pub", "other", "bin", "space"} | {f"to{n}" for n in range(self.count + 1)}
        self.assertLessEqual(set(os.listdir(self.top)), known)


class Whole(Case):
    def check_restores(self, suite):
        self.build(suite)
        self.assertEqual(self.restore(), 0, self.said)
        self.assertEqual(self.tree(), self.files)  # with an empty tablespace_map: nothing in it is so any more
        self.assertEqual(os.readlink(f"{self.to}/link"), "../../nowhere")
        self.assertTrue(os.path.isdir(f"{self.to}/pg_wal/archive_status"))
        for path, mode in (("", 0o700), ("PG_VERSION", 0o640), ("base", 0o500), ("base/1/2", 0o600)):
            self.assertEqual(os.stat(f"{self.to}/{path}").st_mode & 0o7777, mode, path)
        self.assertLess(os.stat(f"{self.to}/base/1/2").st_blocks * 512, 2 * EXTENT)
        self.assertEqual(self.restore(command="artifacts"), 0, self.said)
        self.assertEqual(self.tree(), self.artifacts)
        self.assertEqual(os.stat(f"{self.to}/empty").st_mode & 0o7777, 0o640)
        self.assertEqual(os.stat(f"{self.to}/empty").st_mtime_ns, MODIFIED_NS)
        self.assertEqual(self.run_rescue("check", ID, "--key", self.key), 0, self.said)
        self.assertEqual(self.run_rescue("check", "latest"), 0, self.said)
        self.assertIn("THE SIGNATURE IS NOT CHECKED", self.said)
        self.assertEqual(self.run_rescue("list"), 0)
        self.assertIn(ID, self.said)
        self.assertEqual(self.run_rescue("show", ID, "--key", self.key), 0)
        self.assertIn("signature: valid", self.said)

    def test_suite_aes256gcm(self):
        self.check_restores(AES)

    def test_suite_none(self):
        self.check_restores("none")

    def test_path_restores_only_what_was_asked_for(self):
        self.build()
        self.assertEqual(self.restore("--path", "base/*"), 0)
        self.assertEqual(set(self.tree()), {"base/1/2", "base/1/sparse"})
        self.assertEqual(self.restore("--path", "builds/*", command="artifacts"), 0)
        self.assertEqual(set(self.tree()), {"builds/a b"})

    def test_pg_control_is_written_last(self):
        self.build()
        written, target_file = [], rescue.Target.file
        self.addCleanup(setattr, rescue.Target, "file", target_file)
        rescue.Target.file = lambda target, path, *rest: (written.append(path), target_file(target, path, *rest))[1]
        self.assertEqual(self.restore(), 0)
        self.assertEqual(written[-1], "global/pg_control")
        self.assertEqual(set(written), set(self.files))

    def test_tablespace_goes_where_it_is_told(self):
        self.build()
        space = os.path.join(self.top, "space")
        self.assertEqual(self.restore("--tablespace", f"16400={space}"), 0, self.said)
        self.assertEqual(self.tree(space), {"PG_16/5": self.files["pg_tblspc/16400/PG_16/5"]})
        self.assertEqual(os.readlink(f"{self.to}/pg_tblspc/16400"), space)
        mapped = f"16400 {space}\n".encode()
        self.assertEqual(self.tree()["tablespace_map"], mapped)
        self.assertEqual(self.tree()["backup_manifest"], backup_manifest(self.files["global/pg_control"], mapped))
        self.assertEqual(self.restore("--tablespace", f"99={space}"), 2)
        self.assertEqual(self.restore("--tablespace", "16400=relative"), 2)

    def test_backslash_and_newline_in_tablespace_map(self):
        self.build()
        space = os.path.join(self.top, "space", "back\\slash\nnewline")
        self.assertEqual(self.restore("--tablespace", f"16400={space}"), 0, self.said)
        mapped = "16400 " + space.replace("\\", "\\\\").replace("\n", "\\\n") + "\n"
        self.assertEqual(self.tree()["tablespace_map"], mapped.encode())

    def test_control_file_of_every_layout(self):
        for at in (288, 292):
            self.build(crc_at=at)
            self.assertEqual(self.restore(), 0, self.said)
            self.assertEqual(self.tree(), self.files)
            shutil.rmtree(self.repo)

    def test_control_file_whose_crc_does_not_fit(self):
        self.build(crc_at=500)
        self.assertEqual(self.restore(), 21)
        self.assertNotIn("global/pg_control", self.tree())
        self.assertEqual(self.restore("--keep-damaged"), 21)
        self.assertEqual(struct.unpack_from("<Q", self.tree()["global/pg_control"], 32)[0], 0x16B374D848)

    def test_group_may_read_the_data_directory_if_it_may_read_global(self):
        self.build(rows=[Writer.row("lz", "directory")])
        self.assertEqual(self.restore(), 0, self.said)
        self.assertEqual(os.stat(self.to).st_mode & 0o777, 0o700)
        shutil.rmtree(self.repo)
        self.build(global_mode=0o750)
        space = os.path.join(self.top, "space")
        self.assertEqual(self.restore("--tablespace", f"16400={space}"), 0, self.said)
        for path in (self.to, space, f"{self.to}/global"):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o750, path)

    def test_backup_of_another_repository_is_named_and_restored(self):
        self.build(manifest={"repository": "cd" * 16})
        self.assertEqual(self.restore(), 0, self.said)
        self.assertIn("another repository", self.said)

    def test_directory_that_is_not_empty_is_refused(self):
        self.build()
        for command in ("restore", "artifacts"):
            self.assertEqual(self.run_rescue(command, ID, "--identity", self.identity, "--unsigned-ok", "--to",
                                             self.repo), 2)

    def test_bad_command_lines(self):
        self.build()
        for words in ((), ("restore", ID), ("show", "../x"), ("frobnicate",), ("check", ID, "--key", "/dev/null"),
                      ("restore", ID, "--to", self.top + "/to0", "--key", self.key)):
            self.assertEqual(self.run_rescue(*words), 2, words)
        self.assertEqual(self.run_rescue("show", ID.replace("2024", "2023")), 1)
        self.repo += "/missing"
        self.assertEqual(self.run_rescue("list"), 1)


class Trust(Case):
    def test_without_key_it_wants_to_be_told_and_says_so(self):
        self.build()
        words = ("--identity", self.identity, "--to", os.path.join(self.top, "to0"))
        for command in ("restore", "artifacts"):
            self.assertEqual(self.run_rescue(command, ID, *words), 21)
            self.assertFalse(os.path.exists(words[-1]))
        self.assertEqual(self.run_rescue("restore", ID, *words, "--unsigned-ok"), 0, self.said)
        self.assertIn("THE SIGNATURE WAS NOT CHECKED", self.said)

    def test_another_key(self):
        self.build()
        other = self.save("other", ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
        for command in ("restore", "artifacts"):
            self.assertEqual(self.restore(command=command, key=other), 21)
            self.assertFalse(os.path.exists(self.to))
        self.assertEqual(self.run_rescue("check", ID, "--key", other), 21)
        self.assertEqual(self.restore("--key", self.key, key=other), 0, self.said)

    def test_signature_over_something_else(self):
        self.build()
        path = f"{ID}/manifest.sigstore.json"
        with open(f"{self.repo}/{ID}/manifest.json", "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        for subject, sha256, kind in ((ID + "x", digest, rescue.BACKUP_TYPE), (ID, "0" * 64, rescue.BACKUP_TYPE),
                                      (ID, digest, rescue.ARTIFACT_TYPE)):
            self.w.put(path, json.dumps(self.w.bundle(subject, sha256, kind, {})).encode())
            self.assertEqual(self.restore(), 21)
            self.assertFalse(os.path.exists(self.to))
        os.unlink(f"{self.repo}/{path}")
        self.assertEqual(self.restore(), 21)
        self.assertEqual(self.run_rescue("check", ID), 21)

    def test_wrong_identity(self):
        self.build()
        other = self.save("other", str(pyrage.x25519.Identity.generate()).encode())
        host = self.save("other", str(self.w.host).encode())
        for identity in (other, host):  # the host reads file tables, never data
            self.assertEqual(self.restore(identity=identity), 12, self.said)
            self.assertFalse(os.path.exists(self.to))
            self.assertEqual(self.restore(identity=identity, command="artifacts"), 12, self.said)
            self.assertEqual(self.tree(), {})

    def export(self, reader, *keys, **wrong):
        wrapped = [{"id": key["id"], "wrapped": base64.b64encode(pyrage.encrypt(key["key"], [reader.to_public()])).decode()}
                   for key in keys]
        with open(f"{self.repo}/{ID}/manifest.json", "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return self.save("other", json.dumps({"format": 1, "kind": "lifeboat key export", "backup": ID, "manifest": digest,
                                              "keys": wrapped, **wrong}).encode())

    def test_a_key_export_opens_what_it_has_the_keys_of(self):
        self.build()
        reader = pyrage.x25519.Identity.generate()
        mine = self.save("identity", str(reader).encode())
        self.assertEqual(self.restore(identity=mine), 12)
        whole = self.export(reader, *self.w.keys.values())
        self.assertEqual(self.restore("--export", whole, identity=mine), 0, self.said)
        self.assertEqual(self.tree(), self.files)
        self.assertEqual(self.restore("--export", whole, identity=mine, command="artifacts"), 0, self.said)
        self.assertEqual(self.tree(), self.artifacts)
        tables_only = self.export(reader, self.w.keys["tables"])
        self.assertEqual(self.restore("--export", tables_only, identity=mine), 12, self.said)
        self.assertFalse(os.path.exists(self.to))
        self.assertEqual(self.restore("--export", tables_only, identity=mine, command="artifacts"), 12, self.said)

    def test_key_exports_that_do_not_fit(self):
        self.build()
        reader = pyrage.x25519.Identity.generate()
        mine = self.save("identity", str(reader).encode())
        for code, wrong in ((2, {"backup": ID.replace("15T", "16T")}), (2, {"manifest": "0" * 64}), (2, {"kind": "x"}), (13, {"format": 2}),
                            (21, {"keys": [{"id": "xx", "wrapped": ""}]}), (21, {"keys": 7})):
            export = self.export(reader, *self.w.keys.values(), **wrong)
            self.assertEqual(self.restore("--export", export, identity=mine), code, self.said)
            self.assertFalse(os.path.exists(self.to))
        self.assertEqual(self.restore("--export", os.path.join(self.top, "none"), identity=mine), 2, self.said)

    def test_identity_that_only_the_age_command_knows(self):
        self.build()
        binaries = os.path.join(self.top, "bin")
        os.mkdir(binaries)
        script = (f"#!{sys.executable}\nimport sys, pyrage\nassert sys.argv[1:3] == ['--decrypt', '-i']\n"
                  "lines = open(sys.argv[3]).read().split()\n"
                  "try: sys.stdout.buffer.write(pyrage.decrypt(sys.stdin.buffer.read(),"
                  " [pyrage.x25519.Identity.from_str(lines[1])]))\n"
                  "except pyrage.DecryptError: sys.exit('age: error: no identity matched any of the recipients')\n")
        with open(f"{binaries}/age", "w", encoding="utf-8") as file:
            file.write(script)
        os.chmod(f"{binaries}/age", 0o755)
        path = os.environ["PATH"]
        self.addCleanup(os.environ.__setitem__, "PATH", path)
        other = self.save("other", b"AGE-PLUGIN-TEST-1 " + str(self.w.identity).encode())
        os.environ["PATH"] = binaries
        self.assertEqual(self.restore(identity=other), 0, self.said)
        self.save("other", b"AGE-PLUGIN-TEST-1 " + str(pyrage.x25519.Identity.generate()).encode())
        self.assertEqual(self.restore(identity=other), 12, self.said)
        os.environ["PATH"] = self.top
        self.assertEqual(self.restore(identity=other), 1, self.said)


class Broken(Case):
    def everything(self):
        """The codes of all that reads, and what the two restores left."""
        codes = [self.run_rescue("check", ID, "--key", self.key), self.restore()]
        left = [self.tree() if os.path.isdir(self.to) else {}]
        codes.append(self.restore(command="artifacts"))
        left.append(self.tree() if os.path.isdir(self.to) else {})
        return codes, left

    def check_damage(self, suite, damage, times):
        """Whatever is done to one object: check finds it, nothing wrong comes out, and nothing breaks."""
        self.build(suite)
        luck = random.Random(SEED)
        stale = [hashlib.sha256(plain).hexdigest() for plain in (b"old", b"gone")] + [".122Z", "builds/gone"]
        needed = [key for key in self.objects() if not any(s in key for s in stale)]
        self.assertEqual(len(self.objects()) - len(needed), 4, needed)  # what a newer run replaced: nobody reads it
        found = 0
        for key in needed:
            path = os.path.join(self.repo, key)
            with open(path, "rb") as file:
                good = file.read()
            for _ in range(times):
                with open(path, "wb") as file:
                    file.write(damage(good, luck))
                codes, (files, artifacts) = self.everything()
                for code in codes:
                    self.assertIn(code, (0, 12, 13, 21), f"{key} (seed {SEED}): {self.said}")
                for name, plain in files.items():
                    if name == "backup_manifest" and codes[1]:
                        continue  # speaks of a pg_control or a tablespace_map that did not come
                    self.assertEqual(plain, self.files.get(name), f"{key} {name} (seed {SEED})")
                for name, plain in artifacts.items():
                    self.assertEqual(plain, self.artifacts.get(name), f"{key} {name} (seed {SEED})")
                if codes[1]:
                    self.assertNotIn("global/pg_control", files, key)
                else:
                    self.assertEqual(files, self.files, key)
                if not codes[2]:
                    self.assertEqual(artifacts, self.artifacts, key)
                found += codes[0] != 0
                if key not in ("lifeboat.json", f"{ID}/manifest.sigstore.json"):  # JSON has bytes that mean nothing
                    # the digit of a manifest's format may be what flips
                    self.assertIn(codes[0], (13, 21) if key.endswith("manifest.json") else (21,), key)
            with open(path, "wb") as file:
                file.write(good)
        self.assertGreater(found, len(needed) * times // 2)
        self.assertEqual(self.everything()[0], [0, 0, 0])

    @staticmethod
    def flip(good, luck):
        bad = bytearray(good)
        bad[luck.randrange(len(bad))] ^= 1 << luck.randrange(8)
        return bytes(bad)

    def test_flipped_byte_in_every_object(self):
        self.check_damage(AES, self.flip, 4)

    def test_flipped_byte_in_every_object_of_suite_none(self):
        self.check_damage("none", self.flip, 4)

    def test_every_object_cut_off(self):
        self.check_damage(AES, lambda good, luck: good[:luck.randrange(len(good))], 2)

    def test_every_object_empty_or_noise_or_longer(self):
        self.check_damage("none", lambda good, luck: b"", 1)
        shutil.rmtree(self.repo)
        self.check_damage(AES, lambda good, luck: luck.randbytes(100), 1)
        shutil.rmtree(self.repo)
        self.check_damage(AES, lambda good, luck: good + b"\0", 1)

    def test_every_object_missing(self):
        self.build()
        for key in self.objects():
            os.rename(f"{self.repo}/{key}", f"{self.top}/other")
            codes, (files, _) = self.everything()
            for code in codes:
                self.assertIn(code, (0, 1, 21), key)
            if codes[1]:
                self.assertNotIn("global/pg_control", files, key)
            os.rename(f"{self.top}/other", f"{self.repo}/{key}")

    def test_swapped_packs(self):
        for suite in (AES, "none"):
            self.build(suite)
            one, two = (f"{self.repo}/packs/{p['sha256'][:2]}/{p['sha256']}" for p in self.w.packs)
            os.rename(one, f"{self.top}/other")
            os.rename(two, one)
            os.rename(f"{self.top}/other", two)
            codes, (files, _) = self.everything()
            self.assertEqual(codes, [21, 21, 0])
            self.assertLessEqual(set(files), {"empty", "backup_manifest"})  # and no tablespace_map: it is damaged too
            shutil.rmtree(self.repo)

    def test_swapped_blobs_and_tables(self):
        self.build()
        blobs = [k for k in self.objects() if "/blobs/" in k]
        for one, two in ((blobs[0], blobs[1]), (f"{ID}/files/0", f"{ID}/files/1")):
            self.assertNotEqual(one, two)
            os.rename(f"{self.repo}/{one}", f"{self.top}/other")
            os.rename(f"{self.repo}/{two}", f"{self.repo}/{one}")
            os.rename(f"{self.top}/other", f"{self.repo}/{two}")
            self.assertEqual(self.run_rescue("check", ID), 21)

    def test_damaged_extent_kept_as_zeros_when_asked(self):
        self.build()
        first = self.w.packs[0]["sha256"]
        path = f"{self.repo}/packs/{first[:2]}/{first}"
        with open(path, "r+b") as file:
            file.seek(100)
            file.write(b"damage")
        self.assertEqual(self.restore(), 21)
        self.assertNotIn("base/1/2", self.tree())
        self.assertEqual(self.restore("--keep-damaged"), 21)
        self.assertEqual(self.tree(), {**self.files, "base/1/2": bytes(EXTENT) + self.files["base/1/2"][EXTENT:]})


class Wal(Case):
    """An archive of two timelines: segments 1 to 4 and the .partial of 5 on the first, left in 5; 5 and 6, and pieces of 7 on
    the second."""

    def archive(self, suite=AES):
        self.build(suite)
        self.put_archive()

    def put_archive(self):
        w = self.w
        w.put(f"wal/{SYSTEM}/cluster.json", json.dumps(
            {"format": 1, "system_id": SYSTEM, "segment_size": MIB, "page_magic": 53520, "created_by": "test"}).encode())
        self.plain = {}
        for timeline, numbers in ((1, range(1, 5)), (2, range(5, 7))):
            for number in numbers:
                self.segment(timeline, number)
        self.left = 5 * MIB + 70000
        partial = w.random.randbytes(1 << 10) * (1 << 10)
        w.wal("00000001/000000010000000000000005.partial", partial, summary={"end": "0/%X" % self.left})
        self.plain["000000010000000000000005"] = partial[:70000] + bytes(MIB - 70000)
        self.plain["000000010000000000000005.partial"] = partial
        self.plain["00000002.history"] = history = b"1\t0/%X\tno recovery target specified\n" % self.left
        w.wal("00000002.history", history, branches=[{"timeline": 1, "switch": "0/%X" % self.left}])
        backup = "000000010000000000000001.00000028.backup"
        self.plain[backup] = b"START WAL LOCATION: 0/100028\n"
        w.wal(f"00000001/{backup}", self.plain[backup])
        self.open = w.random.randbytes(5000)
        self.plain["000000020000000000000007"] = self.open + bytes(MIB - 5000)
        self.pieces(7, (0, 100), (0, 2000), (1500, 4096), (4096, 5000))

    def segment(self, timeline, number):
        name = "%08X%016X" % (timeline, number)
        self.plain[name] = self.w.random.randbytes(1000) * (MIB // 1000) + bytes(MIB % 1000)
        self.w.wal(f"{name[:8]}/{name}", self.plain[name], page_magic=53520)

    def pieces(self, number, *spans):
        for start, end in spans:
            self.w.wal("00000002/%08X%016X.%08X-%08X" % (2, number, start, end), self.open[start:end])

    def remove_wal(self, path):
        os.unlink(f"{self.repo}/wal/{SYSTEM}/{path}")

    def fetch(self, name, *more, key=None, identity=None):
        """(exit code, the bytes that PostgreSQL would have)."""
        self.count += 1
        self.out = os.path.join(self.top, f"to{self.count}")
        code = self.run_rescue("wal", "fetch", name, self.out, "--key", key or self.key, "--identity",
                               identity or self.identity, *more)
        self.assertEqual([n for n in os.listdir(self.top) if n.endswith(".rescue")], [])
        if not os.path.lexists(self.out):
            return code, None
        with open(self.out, "rb") as file:
            return code, file.read()

    def stops(self, name, *more, says="", **keys):
        self.assertEqual(self.fetch(name, *more, **keys), (200, None), f"{name}: {self.said}")
        self.assertIn(says, self.said)

    def ends(self, name):
        self.assertEqual(self.fetch(name), (1, None), f"{name}: {self.said}")
        self.assertEqual(self.said, "")

    def brings(self, name):
        code, found = self.fetch(name)
        self.assertEqual(code, 0, f"{name}: {self.said}")
        self.assertTrue(found == self.plain[name], name)
        self.assertEqual(os.stat(self.out).st_mode & 0o777, 0o600)

    def test_every_file_is_fetched_and_got(self):
        for suite in (AES, "none"):
            self.archive(suite)
            for name in self.plain:
                self.brings(name)
            self.assertIn("zeros", self.said)
            for path, _ in [(k[len(f"wal/{SYSTEM}/"):], 0) for k in self.objects() if k.startswith(f"wal/{SYSTEM}/0")]:
                name = path.rpartition("/")[2]
                out = os.path.join(self.top, "other")
                words = ("wal", "get", name, "--out", out, "--key", self.key, "--identity", self.identity)
                self.assertEqual(self.run_rescue(*words), 0, self.said)
                with open(out, "rb") as file:
                    got = file.read()
                start, _, end = name[25:].partition("-")
                self.assertTrue(got == (self.open[int(start, 16):int(end, 16)] if end else self.plain[name]), name)
                self.assertEqual(self.run_rescue(*words), 2, "it is there already")
                os.unlink(out)
            shutil.rmtree(self.repo)

    def test_the_list_says_what_is_there(self):
        self.archive()
        self.assertEqual(self.run_rescue("wal", "list", "--key", self.key), 0, self.said)
        for line in (f"cluster {SYSTEM}, segments of 1048576 bytes\n  timeline 1\n    0/100000 to 0/500000: 4 segments, "
                     "000000010000000000000001 to 000000010000000000000004\n    open 000000010000000000000005: 0/500000 to 0/511170, of partial\n",
                     "  timeline 2\n    history: left timeline 1 at 0/511170\n    0/500000 to 0/700000: 2 segments",
                     "    open 000000020000000000000007: 0/700000 to 0/701388, of 00000000-00000064, "):
            self.assertIn(line, self.said)
        self.assertNotIn("GAP", self.said)
        self.remove_wal("00000001/000000010000000000000002")
        self.remove_wal("00000002.history")
        self.segment(2, 9)
        self.w.gap(2, 10 * MIB, 12 * MIB)
        self.w.put(f"wal/{SYSTEM}/00000002/something", b"of a later writer")
        self.assertEqual(self.run_rescue("wal", "list"), 0, self.said)
        for line in ("NOT CHECKED", "GAP 0/200000 to 0/300000: 1 segments", "history is MISSING", "GAP: not whole, 000000020000000000000007",
                     "GAP 0/800000 to 0/900000", "LOST 0/A00000 to 0/C00000 before it reached a repository: the slot?was lost"):
            self.assertIn(line, self.said)
        self.assertEqual(self.run_rescue("wal", "list", "--system-id", "1"), 0)
        self.assertEqual(self.said.count("\n"), 1)

    def test_the_list_goes_on_behind_damage(self):
        self.archive()
        self.w.wal("00000002.history", b"", branches=[{"timeline": 1, "switch": "nowhere"}])
        self.w.put(f"wal/{SYSTEM}/00000001/000000010000000000000005.partial", b"x" * 99)
        self.w.put(f"wal/{SYSTEM}/00000001/00000001FFFFFFFFFFFFFFFF", b"")
        self.w.gap(2, 0, 1)
        self.w.put(f"wal/{SYSTEM}/gaps/" + "00000002.%016X-%016X.json" % (0, 1), b"{")
        self.assertEqual(self.run_rescue("wal", "list"), 21)
        self.assertIn("timeline 2\n", self.said)
        self.assertIn("unreadable", self.said)
        self.w.put(f"wal/{SYSTEM}/cluster.json", b"{}")
        self.assertEqual(self.run_rescue("wal", "list"), 21)
        self.assertIn("UNREADABLE", self.said)

    def test_the_end_is_proven(self):
        self.archive()
        for name in ("00000001.history", "00000003.history", "000000020000000000000008", "0000000200000000000000FF",
                     "000000020000000000000004", "000000030000000000000006", "000000020000000000000009.00000028.backup",
                     "000000020000000000000008.partial"):
            self.ends(name)
        self.assertEqual(self.fetch("000000020000000000000008", "--ended", "77"), (77, None))
        self.assertEqual(self.run_rescue("wal", "get", "000000020000000000000008", "--out", self.out, "--key", self.key,
                                         "--identity", self.identity), 1)

    def test_what_is_missing_before_the_end_stops(self):
        self.archive()
        self.remove_wal("00000001/000000010000000000000003")
        self.stops("000000010000000000000003", says="missing in between")
        self.stops("000000010000000000000000", says="missing in between")
        self.segment(2, 9)
        self.stops("000000020000000000000007", says="missing in between")  # in pieces, but no longer the last
        self.stops("000000020000000000000008", says="missing in between")
        self.w.gap(2, 10 * MIB, 12 * MIB)
        self.stops("00000002000000000000000A", says="WAL is lost from 0/A00000 to 0/C00000")
        self.stops("00000002000000000000000B")
        self.ends("00000002000000000000000C")

    def test_a_gap_behind_what_is_there_of_an_open_segment_stops(self):
        self.archive()
        self.w.gap(2, 7 * MIB, 7 * MIB + 5000)
        self.brings("000000020000000000000007")  # the bytes are there after all
        self.w.gap(2, 7 * MIB, 7 * MIB + 5001)
        self.stops("000000020000000000000007", says="is lost")

    def test_histories_say_how_far_a_timeline_went(self):
        self.archive()
        self.remove_wal("00000001/000000010000000000000004")
        self.remove_wal("00000001/000000010000000000000005.partial")
        for name in ("000000010000000000000004", "000000010000000000000005"):
            self.stops(name, says="went on to 0/511170")
        self.ends("000000010000000000000006")
        self.remove_wal("00000002.history")
        self.stops("00000002.history", says="there is WAL of its timeline")
        self.w.wal("00000004.history", b"", branches=[{"timeline": 1, "switch": "0/511170"}, {"timeline": 3, "switch": "0/711170"}])
        self.stops("00000003.history", says="descends")

    def test_open_segments(self):
        self.archive()
        self.remove_wal("00000002/000000020000000000000007.00000000-000007D0")
        self.stops_open(100)  # as far as they join
        self.remove_wal("00000002/000000020000000000000007.00000000-00000064")
        self.stops("000000020000000000000007", says="nothing can be used")
        partial = self.w.random.randbytes(1 << 10) * (1 << 10)
        for end, reach in ((7 * MIB + 3000, 3000), (9 * MIB, MIB)):
            self.w.wal("00000002/000000020000000000000007.partial", partial, summary={"end": "0/%X" % end})
            self.plain["000000020000000000000007"] = partial[:reach] + bytes(MIB - reach)
            self.brings("000000020000000000000007")
        self.w.wal("00000002/000000020000000000000007.partial", partial)
        self.stops("000000020000000000000007", says="nothing can be used")  # no record ends in it
        self.pieces(7, (0, 2000))  # the pieces go further
        self.plain["000000020000000000000007"] = self.open + bytes(MIB - 5000)
        self.brings("000000020000000000000007")
        self.w.wal("00000002/000000020000000000000007.000005DC-00001000", bytes(4096 - 1500))
        self.stops("000000020000000000000007", says="same bytes")

    def stops_open(self, reach):
        self.plain["000000020000000000000007"] = self.open[:reach] + bytes(MIB - reach)
        self.brings("000000020000000000000007")

    def test_damage_of_every_kind_stops(self):
        luck = random.Random(SEED)
        for suite in (AES, "none"):
            self.archive(suite)
            for path, name in (("00000001/000000010000000000000003",) * 2, ("00000002.history",) * 2,
                               ("00000002/000000020000000000000007.00001000-00001388", "00000002/000000020000000000000007"),
                               ("00000001/000000010000000000000005.partial", "00000001/000000010000000000000005")):
                place, name = f"{self.repo}/wal/{SYSTEM}/{path}", name.rpartition("/")[2]
                with open(place, "rb") as file:
                    good = file.read()
                for bad in (b"", good[:luck.randrange(len(good))], good + b"x", Broken.flip(good, luck), Broken.flip(good, luck)):
                    with open(place, "wb") as file:
                        file.write(bad)
                    self.stops(name)
                with open(place, "wb") as file:
                    file.write(good)
                self.brings(name)
            shutil.rmtree(self.repo)

    def test_what_is_signed_must_be_what_it_is(self):
        self.archive()
        name, plain = "000000010000000000000003", self.plain["000000010000000000000003"]
        path, wal = f"00000001/{name}", self.w.wal
        for signed in (lambda: wal(path, plain, signed=b""), lambda: wal(path, plain, subject=f"{SYSTEM}/00000001/000000010000000000000004"),
                       lambda: wal(path, plain, kind=rescue.BACKUP_TYPE), lambda: wal(path, plain, bytes=MIB - 1),
                       lambda: wal(path, plain[1:], bytes=MIB), lambda: wal(path, plain + b"x", bytes=MIB),
                       lambda: wal(path, plain[1:]), lambda: wal(path, plain * 2, segment_size=2 * MIB),
                       lambda: wal(path, plain, segment_size=MIB + 1), lambda: wal(path, plain, segment_size="1"),
                       lambda: self.w.sealed(f"wal/{SYSTEM}/{path}", plain, self.w.keys["data"], wrapped=True),
                       lambda: self.w.sealed(f"wal/{SYSTEM}/{path}", plain, self.w.keys["data"], more={"bundle": []})):
            signed()
            self.stops(name)
        wal(path, plain)
        self.brings(name)
        wal("00000003.history", b"x" * (2 << 20), branches=[])
        self.stops("00000003.history")
        self.remove_wal("00000003.history")
        # Another cluster's WAL under this one's name.
        os.rename(f"{self.repo}/wal/{SYSTEM}", f"{self.repo}/wal/1")
        self.stops(name, "--system-id", "1", says="another cluster")

    def test_trust_and_identity(self):
        self.archive()
        name = "000000010000000000000003"
        other = self.save("other", ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
        self.stops(name, key=other, says="signature was not made by a key")
        self.stops("00000002.history", key=other)
        other = self.save("other", str(pyrage.x25519.Identity.generate()).encode())
        self.stops(name, identity=other, says="not encrypted to an identity")
        self.stops(name, identity="/nowhere")
        out = os.path.join(self.top, "to0")
        self.assertEqual(self.run_rescue("wal", "fetch", name, out, "--identity", self.identity), 200)
        self.assertIn("--unsigned-ok", self.said)
        self.assertEqual(self.run_rescue("wal", "fetch", name, out, "--key", self.key), 200)
        self.assertIn("--identity", self.said)
        self.assertEqual(self.run_rescue("wal", "get", name, "--out", out, "--key", self.key), 2)
        self.assertFalse(os.path.exists(out))
        self.assertEqual(self.run_rescue("wal", "fetch", name, out, "--identity", self.identity, "--unsigned-ok"), 0)

    def test_no_command_line_and_no_place_is_the_end(self):
        self.archive()
        name = "000000020000000000000008"
        for bad in ("pg_wal/RECOVERYXLOG", "", "000000020000000000000008x", "000000020000000000001000", "../../identity",
                    "000000020000000000000007.00000000-000007D0", "00000002000000000000000g"):
            self.stops(bad)
        self.stops(name, "--frobnicate")
        self.stops(name, "more")
        self.stops(name, "--ended", "x")
        self.stops(name, "--system-id", "17", says="no WAL of cluster 17")
        self.stops(name, "--system-id", "../..")
        self.assertEqual(self.run_rescue("wal", "fetch"), 200)
        self.assertEqual(self.run_rescue("wal", "fetch", "--help"), 0)
        self.assertEqual(self.run_rescue("wal", "fetch", "000000010000000000000003", f"{self.top}/no/where", "--key", self.key,
                                         "--identity", self.identity), 200)
        self.assertEqual(self.run_rescue("wal"), 2)
        repo = self.repo
        self.repo = repo + "/missing"
        self.stops(name)
        os.rename(f"{repo}/lifeboat.json", f"{self.top}/other")
        self.repo = repo
        self.stops(name)

    def test_a_repository_that_goes_away_is_not_the_end(self):
        self.archive()
        self.addCleanup(setattr, rescue.Archive, "missing", rescue.Archive.missing)

        def missing(archive, file):
            shutil.rmtree(f"{self.repo}/wal")
            os.unlink(f"{self.repo}/lifeboat.json")
            raise rescue.Ended("nothing is there")
        rescue.Archive.missing = missing
        self.stops("000000020000000000000008")

        def exchanged(archive, file):
            Writer(self.repo, AES).put("lifeboat.json", json.dumps(
                {"format": {"name": "lifeboat", "version": 1}, "repository": "cd" * 16}).encode())
            raise rescue.Ended("nothing is there")
        self.w.put("lifeboat.json", json.dumps({"format": {"name": "lifeboat", "version": 1}, "repository": "ab" * 16}).encode())
        self.put_archive()
        rescue.Archive.missing = exchanged
        self.stops("000000020000000000000008", says="another repository")

    def test_a_directory_that_cannot_be_listed_is_not_the_end(self):
        self.archive()
        listed = os.listdir
        self.addCleanup(setattr, os, "listdir", listed)

        def fails(path):
            if path.endswith("00000002"):
                raise PermissionError(13, "Permission denied")
            return listed(path)
        os.listdir = fails
        self.stops("000000020000000000000008", says="cannot be listed")

    def test_bugs_and_a_log_that_is_gone_are_not_the_end(self):
        self.archive()
        self.addCleanup(setattr, rescue.Archive, "copy", rescue.Archive.copy)
        for error in (KeyError("x"), MemoryError(), KeyboardInterrupt(), RecursionError()):
            def fails(*_, error=error):
                raise error
            rescue.Archive.copy = fails
            self.stops("000000010000000000000003")
        words = [sys.executable, rescue.__file__, self.repo, "wal", "fetch", "000000010000000000000003", f"{self.top}/to0"]
        with open("/dev/full", "wb") as full:
            self.assertEqual(subprocess.run(words, stdout=full, stderr=full, check=False).returncode, 200)
        self.assertEqual(subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode, 200)
        # Without what requirements.txt names, which isolated and without site-packages is nowhere.
        bare = subprocess.run([words[0], "-I", "-S", *words[1:]], capture_output=True, check=False)
        self.assertEqual((bare.returncode, b"requirements.txt" in bare.stderr), (200, True))

    def test_the_cluster_is_that_of_the_data_directory(self):
        self.archive()
        self.addCleanup(os.chdir, os.getcwd())
        os.makedirs(os.path.join(self.top, "other", "global"))
        os.chdir(os.path.join(self.top, "other"))
        for content, said in ((struct.pack("=Q", int(SYSTEM)), None), (struct.pack("=Q", 17), "no WAL of cluster 17"), (b"", "cut off")):
            with open("global/pg_control", "wb") as file:
                file.write(content)
            if said is None:
                self.brings("000000010000000000000003")
                self.stops("000000010000000000000003", "--system-id", "17", says="--system-id says 17")
            else:
                self.stops("000000010000000000000003", says=said)
        os.unlink("global/pg_control")
        os.mkdir(f"{self.repo}/wal/18")
        self.stops("000000010000000000000003", says="give --system-id")
        self.assertEqual(self.fetch("000000010000000000000003", "--system-id", SYSTEM)[0], 0)

    def test_the_segment_size_is_known_without_cluster_json(self):
        self.archive()
        self.remove_wal("cluster.json")
        for name in self.plain:
            self.brings(name)
        self.ends("000000020000000000000008")
        self.assertEqual(self.run_rescue("wal", "list", "--key", self.key), 0, self.said)
        for wrong, code in (({"format": 2}, 13), ({"format": 1, "system_id": "1"}, 21),
                            ({"format": 1, "system_id": SYSTEM, "segment_size": 3}, 21)):
            self.w.put(f"wal/{SYSTEM}/cluster.json", json.dumps(wrong).encode())
            self.stops("000000020000000000000008")
            self.assertEqual(self.run_rescue("wal", "list"), code)
        shutil.rmtree(f"{self.repo}/wal")
        self.w.gap(2, 0, 1)
        self.stops("000000020000000000000008", says="how long a segment is")


class Refused(Case):
    """Well-formed, signed, and wrong."""

    def test_newer_formats(self):
        self.build(version=2)
        self.assertEqual(self.run_rescue("list"), 13)
        self.assertEqual(self.restore(), 13)
        shutil.rmtree(self.repo)
        self.build(manifest_format=2)
        for words in (("list",), ("show", ID), ("check", ID)):
            self.assertEqual(self.run_rescue(*words), 13)
        self.assertEqual(self.restore(), 13)
        self.assertFalse(os.path.exists(self.to))

    def test_path_traversal_in_a_table(self):
        for path in ("../escaped", "/tmp/escaped", "m/../../escaped", "m//x", "m/.", "", "m\0x", "\ud800",
                     "m" * 5000, None, 7):
            self.build(rows=[Writer.row(path)])
            self.assertEqual(self.restore(), 21, repr(path))
            self.assertNotIn("global/pg_control", self.tree())
            self.nothing_outside()
            shutil.rmtree(self.repo)

    def test_nothing_is_written_through_a_link(self):
        row = Writer.row
        self.build(rows=[row("m", "symlink", target="../../other"), row("m/n", "symlink", target="/"),
                         row("m/n/escaped"), row("n", "tablespace", target="/")])
        self.assertEqual(self.restore(), 21)
        self.assertEqual(self.tree()["m/n/escaped"], b"")
        self.nothing_outside()
        shutil.rmtree(self.repo)
        self.build(rows=[row("pg_tblspc", "symlink", target="..")])
        self.assertEqual(self.restore("--tablespace", f"16400={self.top}/space"), 21, self.said)
        self.assertFalse(os.path.islink(f"{self.to}/pg_tblspc"))
        self.nothing_outside()

    def test_two_things_in_one_place(self):
        row = Writer.row
        for rows in ([row("m"), row("m/below")], [row("pg_wal", "directory")], [row("tablespace_map")], [row("m", "directory"), row("m", "directory")],
                     [row("m", "symlink", target="x"), row("m/x"), row("pg_wal")], [row("z"), row("m")]):
            self.build(rows=rows)
            self.assertEqual(self.restore(), 21, self.said)
            shutil.rmtree(self.repo)

    def test_bitmap_that_does_not_fit(self):
        for bitmap in (0b01, 0b111, 0b110, 0, 0xFFFFFFFF):
            self.build(bitmap=bitmap)
            code = self.restore()
            self.assertEqual(code, 21, bin(bitmap))
            self.assertNotIn("base/1/2", self.tree())
            shutil.rmtree(self.repo)

    def test_rows_that_cannot_be(self):
        row = Writer.row
        place = (0, 32, 17, bytes(16))
        for bad in (row("m", size=1), row("m", size=0, extents=[[]]), row("m", "directory", extents=[[]]),
                    row("m", size=1, extents=[[(1, place)] * 5]), row("m", size=1, extents=[[(1, (9, 32, 17, b""))]]),
                    row("m", size=1, extents=[[(1, (0, 0, 17, b""))]]), row("m", "fifo"), row("m", mode="rw"),
                    row("m", size=-1), row("m", size=True), row("m", "symlink"), row("m", "symlink", target=""),
                    row("m", size=1, extents=[[(1, (0, 1 << 31, 1 << 31, b""))]]),
                    row("m", size=1, extents=[[(1, (0, 32, EXTENT + 18, b""))]]),
                    row("m", size=1, extents=[[(1, (0, (64 << 20) - 16, 17, b""))]]), row("m")[:-1], b"\xff" * 50,
                    struct.pack("<I", 2) + b"[]" + bytes(4)):
            self.build(rows=[bad])
            self.assertEqual(self.restore(), 21, f"{bad!r}: {self.said}")
            self.assertNotIn("global/pg_control", self.tree())
            shutil.rmtree(self.repo)

    def test_sealed_object_without_last_frame(self):
        for suite in (AES, "none"):
            self.build(suite, no_last=True)
            self.assertEqual(self.restore(), 21)
            self.assertEqual(self.restore(command="artifacts"), 21)
            self.assertEqual(self.tree(), {})
            shutil.rmtree(self.repo)

    def test_manifests_that_cannot_be(self):
        for change in ({"id": ID.replace("2024", "2025")}, {"kind": "incremental"}, {"kind": None}, {"format": True}, {"packs": {}},
                       {"tables": [1]}, {"tables": [{"object": "../../identity", "sha256": "0" * 64}]},
                       {"encryption": {"suite": AES, "keys": []}}, {"encryption": None},
                       {"packs": [{"sha256": "../.."}]}, {"postgres": [1], "tables": 7}):
            self.build(manifest=change)
            self.assertEqual(self.restore(), 21, f"{change}: {self.said}")
            self.assertEqual(self.run_rescue("check", ID), 21, f"{change}: {self.said}")
            self.assertIn(self.run_rescue("show", ID), (0, 21))
            self.assertIn(self.run_rescue("list"), (0, 21))
            shutil.rmtree(self.repo)

    def test_signed_mode_or_time_that_is_not_the_recorded_one(self):
        for predicate in ({"mode": 0o777}, {"modified": "2025-03-14T09:08:07Z"}, {"bytes": 1}, {"version": "v"}):
            self.build(predicate=predicate)
            self.assertEqual(self.restore(command="artifacts"), 21, predicate)
            self.assertEqual(self.tree(), {})
            shutil.rmtree(self.repo)

    def test_artifact_and_directory_of_one_name(self):
        self.build()
        entries = [self.w.artifact(name, name.encode(), "v1", name) for name in ("a", "a/b", "c")]
        self.w.manifest(artifacts={"head": 1, "runs": [self.w.run(entries)], "count": 3, "bytes": 5})
        self.assertEqual(self.restore(command="artifacts"), 21)
        self.assertEqual(self.tree(), {"a": b"a", "c": b"c"})
        self.assertIn("a/b lies below something that is a file", self.said)

    def test_artifact_sets_that_cannot_be(self):
        self.build()
        entry = self.w.artifact("x", b"x", "v1", "x")
        bad = self.w.artifact("y", b"y", "v1", "y")
        bad["d"] = entry["d"]
        for entries in ([{**entry, "n": "../escaped"}], [{**entry, "n": "x\ny"}], [{**entry, "n": "x\u0085y"}], [{**entry, "v": "../../v1"}], [{**entry, "r": "0" * 64}], [bad],
                        [{**entry, "n": "y"}], [entry, entry], [{**entry, "v": None}], [{"n": "x"}],
                        [{**entry, "d": 1}]):
            run = self.w.run(entries)
            self.w.manifest(artifacts={"head": 1, "runs": [run], "count": len(entries), "bytes": 1})
            self.assertEqual(self.restore(command="artifacts"), 21, f"{entries}: {self.said}")
            self.assertIn(self.tree(), ({}, {"x": b"x"}))
            self.assertEqual(self.run_rescue("check", ID), 21)
            self.nothing_outside()
        self.w.manifest(artifacts={"head": 1, "runs": [self.w.run([entry])], "count": 2, "bytes": 1})
        self.assertEqual(self.restore(command="artifacts"), 21)

    def test_command_line_ends_with_its_code_and_no_traceback(self):
        self.build()
        with open(f"{self.repo}/{ID}/manifest.json", "wb") as file:
            file.write(b"[" * 200000)
        done = subprocess.run([sys.executable, rescue.__file__, self.repo, "check", ID],
                              capture_output=True, check=False)
        self.assertEqual(done.returncode, 21)
        self.assertNotIn(b"Traceback", done.stderr)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)


if __name__ == "__main__":
    print(f"seed {SEED} (RESCUE_SEED)", file=sys.stderr)
    unittest.main()
