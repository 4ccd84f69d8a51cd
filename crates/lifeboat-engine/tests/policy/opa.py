"""Real OPA behind its REST API, for tests: OPA is a Go library here, and this is the contract of its server around it
(https://www.openpolicyagent.org/docs/rest-api). What the library cannot do is left out: strict-builtin-errors is taken and has no effect.

Usage: opa.py LIBRARY [--token TOKEN] [--tls DIR] PATH...

Loads files and directories as `opa run` does, prints the port that it listens on at 127.0.0.1, and serves until its standard input ends. With
--tls it makes ca.pem, and client.pem (certificate and key), in DIR, and lets in only who has such a certificate.
"""

import argparse
import datetime
import ipaddress
import json
import os
import ssl
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

VERSION = "1.20.2"


def load(engine, path):
    if not os.path.isdir(path):
        with open(path, encoding="utf-8") as file:
            engine.add_policy(path, file.read())
        return
    for directory, _, names in os.walk(path):
        for name in sorted(names):
            full = os.path.join(directory, name)
            if name.endswith(".rego"):
                load(engine, full)
            elif name == "data.json":
                with open(full, encoding="utf-8") as file:
                    below = os.path.relpath(directory, path)
                    engine.add_data(json.load(file), "" if below == "." else below.replace("/", "."))


def handler(engine, opa, token):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, document):
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                return self.answer(401, {"code": "unauthorized", "message": "request rejected by administrative policy"})
            if not url.path.startswith("/v1/data/"):
                return self.answer(404, {"code": "resource_not_found", "message": "no such resource"})
            try:
                given = json.loads(body)["input"]
            except (ValueError, KeyError, TypeError):
                return self.answer(400, {"code": "invalid_parameter", "message": "body contains malformed input document"})
            document = {"decision_id": str(uuid.uuid4())}
            if query.get("provenance") == ["true"]:
                document["provenance"] = {"version": VERSION, "bundles": {"test": {"revision": "r7"}}}
            try:
                path = ".".join(unquote(part) for part in url.path.removeprefix("/v1/data/").split("/") if part)
                document["result"] = engine.eval_document(path, given)
            except opa.OpaUndefinedError:
                pass
            except opa.OpaError as error:
                problem = {"code": "internal_error", "message": "error(s) occurred while evaluating query"}
                return self.answer(500, problem | {"errors": [{"code": error.code, "message": error.message}]})
            return self.answer(200, document)

    return Handler


def certificates(directory):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def make(text, issuer, usage):
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(name(text)).issuer_name(name("ca")).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        certificate = builder.sign(issuer or key, hashes.SHA256())
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return key, certificate.public_bytes(serialization.Encoding.PEM), secret

    ca, ca_pem, _ = make("ca", None, None)
    usages = x509.ExtendedKeyUsageOID
    _, server, server_key = make("opa", ca, usages.SERVER_AUTH)
    _, client, client_key = make("lifeboat", ca, usages.CLIENT_AUTH)
    for file, content in (("ca.pem", ca_pem), ("server.pem", server + server_key), ("client.pem", client + client_key)):
        with open(os.path.join(directory, file), "wb") as out:
            out.write(content)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--token")
    parser.add_argument("--tls")
    parser.add_argument("paths", nargs="+")
    options = parser.parse_args()
    sys.path.insert(0, options.library)
    import opa_bindings as opa

    engine = opa.OpaEngine()
    engine.print_handler = lambda *_: None
    for path in options.paths:
        load(engine, path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(engine, opa, options.token))
    server.daemon_threads = True
    if options.tls:
        certificates(options.tls)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(options.tls, "server.pem"))
        context.load_verify_locations(os.path.join(options.tls, "ca.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    # Go's threads outlive an ordinary exit now and then.
    os._exit(0)


if __name__ == "__main__":
    main()
