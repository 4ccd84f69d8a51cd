"""Tests of audit_verify.py against logs that are written here, in Python, from docs/format.md alone.

The writer below computes trees by the recursion of RFC 6962, not as audit_verify.py does.
Run: python -m unittest -v test_audit_verify   (with what requirements.txt names)
"""
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import audit_verify  # noqa: E402

REPOSITORY = "0123456789abcdef" * 2
ORIGIN = "lifeboat.dev/audit/" + REPOSITORY


def root(leaves):
    """The definition: split at the largest power of two that is smaller."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\1" + root(leaves[:half]) + root(leaves[half:])).digest()


class Signer:
    def __init__(self, name):
        self.key = Ed25519PrivateKey.generate()
        self.public = b"\1" + self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.vkey = "%s+%s+%s" % (name, self.hash(name), base64.b64encode(self.public).decode())

    def hash(self, name):
        return hashlib.sha256(name.encode() + b"\n" + self.public).hexdigest()[:8]

    def note(self, text):
        blob = bytes.fromhex(self.hash(ORIGIN)) + self.key.sign(text.encode())
        return (text + "\n— %s %s\n" % (ORIGIN, base64.b64encode(blob).decode())).encode()


class Writer:
    """A log that gets records, and a checkpoint now and then."""

    def __init__(self, place):
        self.place, self.leaves, self.entries = place, [], []
        self.put("lifeboat.json", json.dumps({"format": {"name": "lifeboat", "version": 1}, "repository": REPOSITORY}).encode())

    def path(self, key):
        return os.path.join(self.place, *key.split("/"))

    def put(self, key, data):
        os.makedirs(os.path.dirname(self.path(key)), exist_ok=True)
        with open(self.path(key), "wb") as file:
            file.write(data)

    def get(self, key):
        with open(self.path(key), "rb") as file:
            return file.read()

    def append(self, signer, index=None):
        number = len(self.leaves)
        said = {"id": os.urandom(16).hex(), "index": number if index is None else index, "repository": REPOSITORY, "schema": 1}
        entry = signer.note(json.dumps(said, sort_keys=True, separators=(",", ":")) + "\n")
        self.entries.append(entry)
        self.leaves.append(hashlib.sha256(b"\0" + entry).digest())
        self.put("audit/leaf/%010d" % number, entry)

    def checkpoint(self, signer):
        size, level, hashes = len(self.leaves), 0, self.leaves
        while hashes:
            for at in range(0, len(hashes), 256):
                part = hashes[at:at + 256]
                suffix = "" if len(part) == 256 else ".p/%d" % len(part)
                self.put("audit/tile/%d/%03d%s" % (level, at // 256, suffix), b"".join(part))
            hashes = [root(hashes[at:at + 256]) for at in range(0, len(hashes) - 255, 256)]
            level += 1
        for number in range(size // 256):
            entries = self.entries[number * 256:number * 256 + 256]
            self.put("audit/tile/entries/%03d" % number, b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries))
        note = signer.note("%s\n%d\n%s\n" % (ORIGIN, size, base64.b64encode(root(self.leaves)).decode()))
        self.put("audit/checkpoint/%010d" % size, note)
        return note


class AuditVerify(unittest.TestCase):
    def setUp(self):
        self.place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.place)
        self.a, self.b = Signer("a"), Signer("b")

    def log(self, records, every=50):
        writer = Writer(self.place)
        for number in range(records):
            writer.append(self.a if number % 3 else self.b)
            if number % every == 0 or number == records - 1:
                self.note = writer.checkpoint(self.a if number % 2 else self.b)
        return writer

    def findings(self, retired=(), pins=(), keys=None):
        log = audit_verify.Log(self.place, [self.a.vkey, self.b.vkey] if keys is None else keys, retired)
        log.verify(pins)
        return log.findings

    def test_sizes_around_every_border_are_sound(self):
        for records in (1, 2, 3, 255, 256, 257, 300, 511, 513):
            shutil.rmtree(self.place)
            self.log(records)
            self.assertEqual(self.findings(pins=[("pin", self.note)]), [], records)

    def test_every_object_that_is_changed_or_taken_away_is_named(self):
        writer = self.log(300)
        keys = ["audit/leaf/0000000000", "audit/leaf/0000000255", "audit/leaf/0000000299", "audit/tile/0/000", "audit/tile/0/001.p/44",
                "audit/tile/0/000.p/51", "audit/tile/1/000.p/1", "audit/tile/entries/000", "audit/checkpoint/0000000300",
                "audit/checkpoint/0000000051"]
        for key in keys:
            whole = writer.get(key)
            flipped = bytearray(whole)
            flipped[len(whole) // 2] ^= 1
            for changed in (b"", whole[:-1], bytes(flipped), whole + b"x"):
                writer.put(key, changed)
                self.assertTrue(any(finding.startswith(key) for finding in self.findings()), key)
            os.remove(writer.path(key))
            # Nobody knows of an older checkpoint that nobody kept.
            if key != "audit/checkpoint/0000000051":
                found = self.findings(pins=[("pin", self.note)])
                self.assertTrue(found or "checkpoint" in key, key)
            writer.put(key, whole)
        self.assertEqual(self.findings(), [])
        writer.put("audit/leaf/x", b"x")
        writer.put("audit/other", b"x")
        self.assertEqual({finding.split(":")[0] for finding in self.findings()}, {"audit/leaf/x", "audit/other"})

    def test_order_and_end_and_authors(self):
        writer = self.log(20, every=1)
        four, seven = writer.get("audit/leaf/0000000004"), writer.get("audit/leaf/0000000007")
        writer.put("audit/leaf/0000000004", seven)
        writer.put("audit/leaf/0000000007", four)
        self.assertTrue(any("in another place" in finding for finding in self.findings()))
        writer.put("audit/leaf/0000000004", four)
        writer.put("audit/leaf/0000000007", seven)
        self.assertEqual(self.findings(), [])
        # Keys that do not count, or only up to some record.
        unsigned = [finding for finding in self.findings(keys=[self.a.vkey]) if "unsigned" in finding]
        self.assertEqual(len([finding for finding in unsigned if finding.startswith("audit/leaf/")]), 7)
        self.assertTrue(any("0000000012: unsigned" in f for f in self.findings(retired=[(self.b.vkey, 12)])))
        self.assertFalse(any("0000000009: unsigned" in f for f in self.findings(retired=[(self.b.vkey, 12)])))
        # Cut off: found by what was kept elsewhere, or by a manifest.
        for number in range(15, 20):
            os.remove(writer.path("audit/leaf/%010d" % number))
            os.remove(writer.path("audit/checkpoint/%010d" % (number + 1)))
            os.remove(writer.path("audit/tile/0/000.p/%d" % (number + 1)))
        self.assertEqual(self.findings(), [])
        self.assertEqual(len(self.findings(pins=[("pin", self.note)])), 1)
        manifest = {"repository": REPOSITORY, "audit": self.note.decode()}
        writer.put("c-backup-20240315T120000Z/manifest.json", json.dumps(manifest).encode())
        self.assertIn("cut off", self.findings()[0])

    def test_the_program_says_so(self):
        self.log(3)
        program = [sys.executable, "-B", os.path.join(os.path.dirname(os.path.abspath(__file__)), "audit_verify.py"), self.place]
        run = lambda *more: subprocess.run(program + list(more), capture_output=True, text=True)  # noqa: E731
        good = run("--key", self.a.vkey, "--key", self.b.vkey)
        self.assertEqual((good.returncode, good.stderr), (0, ""))
        self.assertIn("3 records, sound\n" + self.note.decode(), good.stdout)
        self.assertEqual(run("--key", self.a.vkey).returncode, 1)
        self.assertEqual(run().returncode, 2)
        self.assertNotEqual(run("--key", self.a.vkey[:-4]).returncode, 0)


if __name__ == "__main__":
    unittest.main()
