"""A mail server that takes mail, or does not: `smtpd.py [OPTION]...`. Prints its port, and then each mail that it takes as a line of JSON.

It ends when its standard input does.
"""

import argparse
import asyncio
import email
import email.policy
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

parser = argparse.ArgumentParser()
parser.add_argument("--certificate", help="PEM file with certificate and key")
parser.add_argument("--implicit-tls", action="store_true")
parser.add_argument("--user", help="who may send; nobody else may then")
parser.add_argument("--password")
parser.add_argument("--reject", help="a recipient who is not known here")
parser.add_argument("--later", action="store_true", help="takes nothing now")
options = parser.parse_args()


def say(document):
    print(json.dumps(document), flush=True)


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if options.later:
            return "451 come back later"
        if address == options.reject:
            return f"550 {address} left"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        say(
            {
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "hello": session.host_name,
                "tls": session.ssl is not None or options.implicit_tls,
                "login": bool(session.authenticated),
                "headers": [[name, str(value)] for name, value in message.items()],
                "defects": [str(defect) for defect in message.defects],
                "body": message.get_content().replace("\r\n", "\n"),
            }
        )
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    given = (data.login.decode(), data.password.decode()) if mechanism in ("LOGIN", "PLAIN") else None
    return AuthResult(success=given == (options.user, options.password), handled=False)


async def main():
    context = None
    if options.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate)
    starttls = context is not None and not options.implicit_tls

    def session():
        return SMTP(
            Handler(),
            tls_context=context if starttls else None,
            require_starttls=starttls,
            authenticator=authenticate if options.user else None,
            auth_required=bool(options.user),
            auth_require_tls=starttls,
        )

    server = await asyncio.get_running_loop().create_server(
        session, "127.0.0.1", 0, ssl=context if options.implicit_tls else None
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main())
