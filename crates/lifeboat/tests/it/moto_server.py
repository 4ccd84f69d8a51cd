"""moto's S3 on loopback, a store that keeps some of its promises; with the headers that are named left out, one that keeps fewer.

Prints its port; ends when its standard input does."""

import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

STRIPPED = {"HTTP_" + name.upper().replace("-", "_") for name in sys.argv[1:]}
application = DomainDispatcherApplication(create_backend_app)


def handle(environ, start_response):
    return application({name: value for name, value in environ.items() if name not in STRIPPED}, start_response)


server = make_server("127.0.0.1", 0, handle, threaded=True)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
