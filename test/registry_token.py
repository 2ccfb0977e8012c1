"""A stand-in for GitLab's token service, which its container registry sends its clients to: everybody may do all.

`python registry_token.py PORT` serves HTTPS with /tls/server.crt and server.key; its answers are signed with that key.
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
    """Return the JSON Web Token that grants these, as https://distribution.github.io/distribution/spec/auth/jwt says."""
    now = int(time.time())
    certificate = base64.b64encode(ssl.PEM_cert_to_DER_cert(open(CERTIFICATE).read())).decode()
    access = [dict(zip(("type", "name", "actions"), scope.split(":"))) for scope in scopes]
    parts = ({"typ": "JWT", "alg": "RS256", "x5c": [certificate]}, {
        "iss": "gitlab", "aud": "registry", "sub": "", "nbf": now - 10, "iat": now, "exp": now + 300,
        "access": [{**grant, "actions": grant["actions"].split(",")} for grant in access],
    })
    signed = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    sign = ["openssl", "dgst", "-sha256", "-sign", KEY]
    return f"{signed}.{encoded(subprocess.run(sign, input=signed.encode(), capture_output=True, check=True).stdout)}"


class Handler(BaseHTTPRequestHandler):
    def answer(self, query):
        granted = token([scope for part in parse_qs(query).get("scope", []) for scope in part.split()])
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
