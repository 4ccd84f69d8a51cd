"""A SeaweedFS on loopback with TLS, empty at its start, and the line in front of it on which everything takes time."""

import collections
import contextlib
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from measuring import TICKS, fail, mkdir, processes, remove, stored_mib, tree
from programs import Repositories

BUCKET = "bench"
REGION = "us-east-1"
# Id and secret of the server's only user. Not secret: the server is on loopback, and gone after the run.
KEYS = ("AKLIFEBOATBENCH", "a-secret-of-a-benchmark")
HOST = "127.0.0.1"
SERVICES = ("s3", "master", "volume", "filer", "admin")
REQUESTS = re.compile(r'^SeaweedFS_s3_request_total\{.*type="(?P<type>[^"]*)".*\} (?P<count>[0-9.e+]+)$', re.MULTILINE)


def free_ports(count):
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def make_certificates(directory):
    """An authority that ends tomorrow, and a certificate by it. pgBackRest compares the host's name with names, also where it is an address."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    (directory / "names").write_text(f"subjectAltName=IP:{HOST},DNS:{HOST},DNS:localhost\n", encoding="ascii")
    for command in (
            ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=bench"],
            ["req", *key, "-keyout", "key.pem", "-out", "request.pem", "-subj", f"/CN={HOST}"],
            ["x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "cert.pem", "-days", "2",
             "-extfile", "names"]):
        made = subprocess.run(["openssl", *command], cwd=directory, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            fail(f"openssl {' '.join(command)} ended with {made.returncode}:\n{made.stderr}")


class Seaweed:
    """A server, its bucket and its line. `trace`: a file for every request; then the server speaks plain HTTP, so that they can be read."""

    def __init__(self, program, delay_line, directory, delay_ms, window_bytes, trace=None):
        self.program, self.delay_line, self.directory, self.trace = program, delay_line, directory, trace
        self.delay_ms, self.window_bytes = delay_ms, window_bytes
        self.server, self.line, self.ports = None, None, {}

    def __enter__(self):
        for _ in range(5):
            # Between the choice of a port and its use, somebody else may take it.
            if self.try_start():
                break
        else:
            fail(f"SeaweedFS does not start:\n{self.log_tail()}")
        port = self.ports["s3"] if self.trace else self.ports["https"]
        command = [self.delay_line, f"{HOST}:{port}", int(self.delay_ms * 1000 / 2), self.window_bytes, *([self.trace] if self.trace else [])]
        self.line = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        port = self.line.stdout.readline().strip()
        if not port:
            fail("the delay line does not start")
        endpoint = f"{'http' if self.trace else 'https'}://{HOST}:{port}"
        self.repositories = Repositories(f"s3://{BUCKET}", endpoint, REGION, None if self.trace else self.directory / "ca.pem", KEYS)
        return self

    def __exit__(self, *_):
        if self.line:
            self.line.stdin.close()
            self.line.wait()
        self.stop()
        remove(self.directory)

    def stop(self):
        # Nothing of it is needed any more, and an orderly end takes seconds.
        if self.server and self.server.poll() is None:
            self.server.send_signal(signal.SIGKILL)
            self.server.wait()

    def try_start(self):
        remove(self.directory)
        mkdir(self.directory / "data")
        self.directory.chmod(0o755)
        make_certificates(self.directory)
        (self.directory / "s3.json").write_text(
            f'{{"identities":[{{"name":"bench","credentials":[{{"accessKey":"{KEYS[0]}","secretKey":"{KEYS[1]}"}}],'
            '"actions":["Admin","Read","Write","List","Tagging"]}]}', encoding="ascii")
        numbers = free_ports(2 * len(SERVICES) + 2)
        self.ports = dict(zip((*SERVICES, *(f"{name}.grpc" for name in SERVICES), "https", "metrics"), numbers, strict=True))
        command = [
            self.program, "mini", f"-dir={self.directory}/data", f"-s3.config={self.directory}/s3.json", f"-bucket={BUCKET}",
            f"-ip={HOST}", f"-ip.bind={HOST}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false",
            # As large as volumes of real ones are, within reason: each bucket takes seven at once.
            "-volume.max=200", "-master.volumeSizeLimitMB=1024", "-master.electionTimeout=1s", "-master.telemetry=false",
            f"-s3.port.https={self.ports['https']}", f"-s3.cert.file={self.directory}/cert.pem",
            f"-s3.key.file={self.directory}/key.pem", f"-metricsPort={self.ports['metrics']}",
        ]
        for name in SERVICES:
            command += [f"-{name}.port={self.ports[name]}", f"-{name}.port.grpc={self.ports[f'{name}.grpc']}"]
        with open(self.directory / "log", "ab") as log:
            self.server = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
                env={"HOME": str(self.directory)}, start_new_session=True)
        for _ in range(600):
            if self.server.poll() is not None:
                return False
            if self.is_ready():
                return True
            time.sleep(0.1)
        self.stop()
        return False

    def is_ready(self):
        """It answers, and the bucket is there, which it makes a little later."""
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://{HOST}:{self.ports['s3']}/healthz", timeout=5), \
                    urllib.request.urlopen(f"http://{HOST}:{self.ports['filer']}/buckets/{BUCKET}/", timeout=5):
                return True
        return False

    def log_tail(self):
        return "\n".join((self.directory / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-30:])

    def requests(self):
        """Requests that the server has answered so far, by method."""
        with urllib.request.urlopen(f"http://{HOST}:{self.ports['metrics']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        counts = collections.Counter()
        for match in REQUESTS.finditer(text):
            counts[match["type"]] += int(float(match["count"]))
        return counts

    def cpu_seconds(self):
        """Of the server and the line."""
        everyone = processes()
        return sum(everyone[pid][1] for child in (self.server, self.line) for pid in tree(everyone, child.pid)) / TICKS

    def stored_mib(self):
        return stored_mib(self.directory / "data")


class Directory:
    """In the place of a server: the repository is in a directory."""

    delay_ms = None

    def __init__(self):
        self.repositories = Repositories()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def requests(self):
        return collections.Counter()

    def cpu_seconds(self):
        return 0.0


def read_trace(path):
    """What the line wrote down: connection, four times, bytes up and down, first line."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        connection, began, sent, first, last, up, down, request = line.split("\t")
        rows.append({"connection": int(connection), "began": float(began), "sent": float(sent), "first": float(first), "last": float(last),
                     "up": int(up), "down": int(down), "request": request})
    return sorted(rows, key=lambda row: row["began"])
