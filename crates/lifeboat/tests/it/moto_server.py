"""moto's S3 and KMS on loopback, a store that keeps some of its promises; with the headers that are named left out, one that keeps fewer.

Prints its port; ends when its standard input does."""

import sys
import threading

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from moto.kms.responses import KmsResponse
from moto.kms.utils import ECDSAPrivateKey
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# moto's KMS hashes what is a digest already ("The MessageType-parameter DIGEST is not yet implemented"); AWS does not.
asked = threading.local()
answer_sign, sign_message = KmsResponse.sign, ECDSAPrivateKey.sign


def sign_as_asked(response):
    asked.digest = response._get_param("MessageType") == "DIGEST"
    return answer_sign(response)


def sign(key, message, signing_algorithm):
    if not asked.digest:
        return sign_message(key, message, signing_algorithm)
    return key.private_key.sign(message, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


KmsResponse.sign, ECDSAPrivateKey.sign = sign_as_asked, sign
STRIPPED = {"HTTP_" + name.upper().replace("-", "_") for name in sys.argv[1:]}
application = DomainDispatcherApplication(create_backend_app)


# moto looks whether a name is taken, and then takes it: of two at the same time both may win, which is not the promise that is to be broken here.
one_at_a_time = threading.Lock()


def handle(environ, start_response):
    with one_at_a_time:
        return list(application({name: value for name, value in environ.items() if name not in STRIPPED}, start_response))


server = make_server("127.0.0.1", 0, handle, threaded=True)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
