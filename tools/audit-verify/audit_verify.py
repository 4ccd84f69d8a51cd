#!/usr/bin/env python3
"""Checks the audit log of a lifeboat repository, from docs/format.md (13) and C2SP's documents alone.

    audit_verify.py REPOSITORY --key VKEY [--key VKEY ...] [--retired VKEY=SIZE] [--checkpoint FILE ...]

REPOSITORY is a directory: the repository itself, or a copy of `lifeboat.json`, `audit/` and the manifests. Keys are those that
`lifeboat audit key` prints. Prints what is wrong, one line each, and the newest checkpoint. Exit code 0: sound; 1: not; 2: could not be
checked. It shares no code with lifeboat, knows nothing of journals, and writes nothing.
"""
import argparse
import base64
import binascii
import hashlib
import json
import os
import re
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

WIDTH = 256


class Bad(Exception):
    """An object that does not count."""


def leaf_hash(entry):
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


def tree_hash(leaves):
    """RFC 6962, section 2.1, of leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    # The same as the recursion of the RFC: whole subtrees from the left, joined from the right.
    stack = []
    for number, node in enumerate(leaves):
        while number & 1:
            node = node_hash(stack.pop(), node)
            number >>= 1
        stack.append(node)
    root = stack.pop()
    while stack:
        root = node_hash(stack.pop(), root)
    return root


def unbase64(text):
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Bad("base64 is malformed") from None


def spelled(number):
    """A number as tlog-tiles spells it in a path."""
    groups = ["%03d" % (number % 1000)]
    while number >= 1000:
        number //= 1000
        groups.insert(0, "x%03d" % (number % 1000))
    return "/".join(groups)


class Keys:
    """Whose signatures count in the log of one repository."""

    def __init__(self, origin, vkeys, retired):
        self.origin, self.known = origin, {}
        limits = dict(retired)
        for vkey in list(vkeys) + [key for key in limits if key not in vkeys]:
            try:
                name, given, encoded = vkey.split("+", 2)
                key = unbase64(encoded)
            except (ValueError, Bad):
                raise SystemExit("not a key: %s" % vkey) from None
            if len(key) != 33 or key[0] != 1 or self.number(name, key) != given:
                raise SystemExit("not an Ed25519 key: %s" % vkey)
            self.known[bytes.fromhex(self.number(origin, key))] = (Ed25519PublicKey.from_public_bytes(key[1:]), limits.get(vkey), name)

    @staticmethod
    def number(name, key):
        return hashlib.sha256(name.encode() + b"\n" + key).hexdigest()[:8]

    def open(self, note, alone):
        """The text of a signed note, and (limit, name) of every key that signed it."""
        try:
            text = note.decode()
        except UnicodeDecodeError:
            raise Bad("it is not UTF-8") from None
        if any(ord(c) < 32 and c != "\n" for c in text) or not text.endswith("\n") or "\n\n" not in text:
            raise Bad("it is not a signed note")
        body, lines = text.rsplit("\n\n", 1)
        body = (body + "\n").encode()
        signatures, signers = lines.split("\n")[:-1], []
        if alone and len(signatures) != 1:
            raise Bad("it has more than one signature")
        for line in signatures:
            match = re.fullmatch(r"— ([^\s+]+) (\S+)", line)
            if not match:
                raise Bad("a signature line is malformed")
            blob = unbase64(match.group(2))
            if match.group(1) != self.origin or blob[:4] not in self.known:
                continue
            key, limit, name = self.known[blob[:4]]
            try:
                key.verify(blob[4:], body)
            except InvalidSignature:
                raise Bad("unsigned: its signature is not of these bytes") from None
            signers.append((limit, name))
        if not signers:
            raise Bad("unsigned: nobody who is trusted has signed it")
        return body, signers

    def record(self, note, index, repository):
        body, signers = self.open(note, True)
        if body.count(b"\n") != 1:
            raise Bad("it is not one line")
        try:
            said = json.loads(body)
        except ValueError:
            raise Bad("it is not JSON") from None
        if said.get("repository") != repository:
            raise Bad("it is of another repository")
        if said.get("index") != index:
            raise Bad("it is record %s, in another place" % said.get("index"))
        if signers[0][0] is not None and index >= signers[0][0]:
            raise Bad("unsigned: the key of %s was retired before" % signers[0][1])
        return said

    def checkpoint(self, note):
        body, signers = self.open(note, False)
        lines = body.decode().split("\n")
        if len(lines) < 4 or lines[0] != self.origin or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
            raise Bad("it is not a checkpoint of this log")
        size, root = int(lines[1]), unbase64(lines[2])
        if not any(limit is None or size <= limit for limit, _ in signers):
            raise Bad("unsigned: the key of %s was retired before" % signers[0][1])
        return size, root


class Log:
    """One log, read whole."""

    def __init__(self, place, vkeys, retired=()):
        self.place, self.findings = place, []
        with open(os.path.join(place, "lifeboat.json"), "rb") as file:
            self.repository = json.load(file)["repository"]
        self.keys = Keys("lifeboat.dev/audit/" + self.repository, vkeys, retired)
        self.objects = {}
        top = os.path.join(place, "audit")
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                with open(path, "rb") as file:
                    self.objects[os.path.relpath(path, place).replace(os.sep, "/")] = file.read()

    def find(self, key, problem):
        self.findings.append("%s: %s" % (key, problem))

    def numbered(self, prefix):
        for key in sorted(self.objects):
            if key.startswith(prefix):
                if re.fullmatch(r"[0-9]{10}", key[len(prefix):]):
                    yield int(key[len(prefix):]), key
                else:
                    self.find(key, "it does not belong there")

    def verify(self, pins=()):
        leaves, heads, needed = {}, {}, set()
        records = list(self.numbered("audit/leaf/"))
        for index, key in records:
            try:
                self.keys.record(self.objects[key], index, self.repository)
                leaves[index] = leaf_hash(self.objects[key])
            except Bad as bad:
                self.find(key, str(bad))
        for size, key in self.numbered("audit/checkpoint/"):
            try:
                heads[size] = self.keys.checkpoint(self.objects[key])
                if heads[size][0] != size:
                    self.find(key, "it is of %d records" % heads.pop(size)[0])
            except Bad as bad:
                self.find(key, str(bad))
        last = [index + 1 for index, _ in records]
        self.size = max([0] + last + list(heads))
        known = []
        for index in range(self.size):
            if "audit/leaf/%010d" % index not in self.objects:
                self.find("audit/leaf/%010d" % index, "it is not there")
            if index in leaves and len(known) == index:
                known.append(leaves[index])
        anchors = [("audit/checkpoint/%010d" % size, head) for size, head in heads.items()]
        for name, note in list(self.manifests()) + list(pins):
            try:
                anchors.append((name, self.keys.checkpoint(note)))
            except Bad as bad:
                self.find(name, str(bad))
        for name, (size, root) in anchors:
            if size > self.size:
                self.find(name, "it is of %d records, and the log has %d: its end was cut off" % (size, self.size))
            elif size <= len(known) and tree_hash(known[:size]) != root:
                self.find(name, "it is of another log")
            elif size > len(known):
                self.find(name, "records that it covers are missing or do not count")
        newest = max(heads, default=0)
        for size in heads:
            needed.update(self.tiles(known, newest, only_partial=size))
        expected = dict(self.tiles(known, self.size))
        expected.update(self.tiles(known, newest))
        for key in sorted(needed - set(self.objects)):
            self.find(key, "a checkpoint needs it, and it is not there")
        for key in sorted(key for key in self.objects if key.startswith("audit/tile/")):
            content = expected.get(key) or self.expected_tile(known, key)
            if content is None:
                self.find(key, "nothing is known that it could be of")
            elif content != self.objects[key]:
                self.find(key, "it is not what follows from the records")
        for key in sorted(self.objects):
            if not re.match(r"audit/(leaf|checkpoint|tile)/", key):
                self.find(key, "it does not belong there")
        self.newest = self.objects["audit/checkpoint/%010d" % newest].decode() if newest else None
        return not self.findings

    def level(self, known, level):
        """Hashes of the whole subtrees of 256 ** level leaves."""
        span = WIDTH ** level
        return [tree_hash(known[at:at + span]) for at in range(0, len(known) - span + 1, span)]

    def tiles(self, known, size, only_partial=None):
        """Keys, with their bytes, of what a log of `size` records has; with `only_partial`, keys that a checkpoint of so many records needs."""
        level, size = 0, size if only_partial is None else only_partial
        while size >> (8 * level):
            hashes, count = None, size >> (8 * level)
            for number in range((count + WIDTH - 1) // WIDTH):
                width = min(WIDTH, count - number * WIDTH)
                key = "audit/tile/%d/%s%s" % (level, spelled(number), "" if width == WIDTH else ".p/%d" % width)
                if only_partial is not None:
                    yield key
                    continue
                hashes = self.level(known, level) if hashes is None else hashes
                yield key, b"".join(hashes[number * WIDTH:number * WIDTH + width])
            level += 1
        for number in range(size // WIDTH):
            key = "audit/tile/entries/" + spelled(number)
            if only_partial is not None:
                yield key
                continue
            entries = [self.objects.get("audit/leaf/%010d" % index) for index in range(number * WIDTH, number * WIDTH + WIDTH)]
            if None not in entries:
                yield key, b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)

    def expected_tile(self, known, key):
        """An older, partial tile."""
        match = re.fullmatch(r"audit/tile/([0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/)*[0-9]{3})\.p/([1-9][0-9]{0,2})", key)
        if not match:
            return None
        level, width = int(match.group(1)), int(match.group(3))
        number = int(match.group(2).replace("x", "").replace("/", ""))
        if width >= WIDTH or spelled(number) != match.group(2) or level > 7 or (number * WIDTH + width) * WIDTH ** level > len(known):
            return None
        return b"".join(self.level(known, level)[number * WIDTH:number * WIDTH + width])

    def manifests(self):
        for name in sorted(os.listdir(self.place)):
            path = os.path.join(self.place, name, "manifest.json")
            if "-backup-" in name and os.path.isfile(path):
                try:
                    with open(path, "rb") as file:
                        manifest = json.load(file)
                    if manifest["repository"] == self.repository and "audit" in manifest:
                        yield name + "/manifest.json", manifest["audit"].encode()
                except (ValueError, KeyError, AttributeError) as error:
                    self.find(name + "/manifest.json", "it cannot be read: %r" % (error,))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("repository")
    parser.add_argument("--key", action="append", default=[], help="public key that counts")
    parser.add_argument("--retired", action="append", default=[], metavar="VKEY=SIZE", help="key that counts for the first SIZE records only")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="FILE", help="checkpoint that was kept elsewhere")
    given = parser.parse_args()
    retired = []
    for text in given.retired:
        key, _, size = text.rpartition("=")
        if not size.isdigit():
            parser.error("--retired is VKEY=SIZE")
        retired.append((key, int(size)))
    if not given.key and not retired:
        parser.error("at least one --key")
    try:
        pins = []
        for path in given.checkpoint:
            with open(path, "rb") as file:
                pins.append((path, file.read()))
        log = Log(given.repository, given.key, retired)
        sound = log.verify(pins)
    except (OSError, KeyError, ValueError) as error:
        print("could not be checked: %s" % error, file=sys.stderr)
        return 2
    for finding in log.findings:
        print(finding)
    print("%d records, %s" % (log.size, "sound" if sound else "%d findings" % len(log.findings)))
    if log.newest:
        print(log.newest, end="")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
