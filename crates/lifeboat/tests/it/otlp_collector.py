"""A collector of traces on loopback: takes OTLP over HTTP, reads it with OpenTelemetry's own types, and writes what came as a line of JSON to
the file that is named first. With a certificate and its key behind that, it speaks TLS.

Prints its port; ends when its standard input does."""

import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Status

written = threading.Lock()


def attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def span(one):
    return {
        "trace": one.trace_id.hex(),
        "id": one.span_id.hex(),
        "parent": one.parent_span_id.hex(),
        "name": one.name,
        "start": one.start_time_unix_nano,
        "end": one.end_time_unix_nano,
        "attributes": attributes(one.attributes),
        "status": Status.StatusCode.Name(one.status.code),
        "message": one.status.message,
        # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK and SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
        "parent_is_remote": bool(one.flags & 0x100) and bool(one.flags & 0x200),
    }


class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest.FromString(body)
        # Bytes that no field of the types has would be kept, and come back longer or otherwise.
        assert len(request.SerializeToString()) == len(body)
        said = {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "resources": [
                {
                    "attributes": attributes(resource.resource.attributes),
                    "scopes": [scope.scope.name for scope in resource.scope_spans],
                    "spans": [span(one) for scope in resource.scope_spans for one in scope.spans],
                }
                for resource in request.resource_spans
            ],
        }
        with written, open(sys.argv[1], "a") as file:
            file.write(json.dumps(said) + "\n")
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
