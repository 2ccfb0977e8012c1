"""A stand-in for the service where clients of GitLab's container registry get their tokens.

`python registry_token.py PORT` serves HTTPS with /tls/server.crt and server.key, lets everybody do
everything, and signs its answers with that key.
"""

import base64
import json
import ssl
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CERTIFICATE, KEY = "/tls/server.crt", "/tls/server.key"


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(scopes):
    """Return the JSON Web Token that grants these scopes.

    Its form: https://distribution.github.io/distribution/spec/auth/jwt
    """
    now = int(time.time())
    certificate = base64.b64encode(ssl.PEM_cert_to_DER_cert(open(CERTIFICATE).read())).decode()
    access = []
    for scope in scopes:
        kind, name, actions = scope.split(":")
        access.append({"type": kind, "name": name, "actions": actions.split(",")})
    parts = (
        {"typ": "JWT", "alg": "RS256", "x5c": [certificate]},
        {
            "iss": "gitlab",
            "aud": "registry",
            "sub": "",
            "nbf": now - 10,
            "iat": now,
            "exp": now + 300,
            "access": access,
        },
    )
    signed = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    sign = ["openssl", "dgst", "-sha256", "-sign", KEY]
    run = subprocess.run(sign, input=signed.encode(), capture_output=True, check=True)
    return f"{signed}.{encoded(run.stdout)}"


class Handler(BaseHTTPRequestHandler):
    def answer(self, query):
        scopes = [scope for part in parse_qs(query).get("scope", []) for scope in part.split()]
        granted = token(scopes)
        body = json.dumps({"token": granted, "access_token": granted, "expires_in": 300}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(urlsplit(self.path).query)

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())


if __name__ == "__main__":
    server = ThreadingHTTPServer(("", int(sys.argv[1])), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print("ready", flush=True)
    server.serve_forever()
