"""A stand-in for the runners in GitLab's API: `python gitlab.py PORT [CERTIFICATE KEY]`.

It answers as docs.gitlab.com (API > Runners) says, for project 17. Its tokens are named for what
they may do. GET /state tells what it knows, PUT /reset makes it forget, and PUT
/fault/NAME[:SECONDS] makes the next request fail: 500, 422, cut (before it is heard), slow
(answered after SECONDS).
"""

import contextlib
import http.server
import json
import re
import secrets
import ssl
import sys
import time
from urllib.parse import parse_qs, unquote, urlsplit

ACCESS = {  # scopes
    "glpat-manage": {"create_runner", "manage_runner"},
    "glpat-create": {"create_runner"},
    "glpat-without": set(),
    "glpat-guest": {"create_runner"},
}
OPTIONS = ("description", "tag_list", "run_untagged", "locked", "access_level")
state = {"runners": {}, "requests": [], "next": 40, "legacy": True}
fault = ["", 0.0]


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(status, {"message": message, "error": message})


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=None):
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # a client that was killed
            self.wfile.write(data)

    def handle_any(self):
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.headers.get("Content-Type") == "application/json":
            parameters = json.loads(body)
        else:
            parameters = {
                key: values[0]
                for key, values in parse_qs(body or url.query, keep_blank_values=True).items()
            }
        if url.path == "/state":
            return self.answer(200, {**state, "fault": fault[0]})
        if url.path == "/reset":
            state.update(runners={}, requests=[], legacy=True)
            fault[:] = "", 0.0
            return self.answer(200)
        if match := re.fullmatch(r"/fault/(\w+):?([\d.]*)", url.path):
            fault[:] = match[1], float(match[2] or 0)
            return self.answer(200)
        if match := re.fullmatch(r"/legacy/(\w+)", url.path):  # switches the old tokens on or off
            state["legacy"] = match[1] == "on"
            return self.answer(200)
        if match := re.fullmatch(r"/runner/(\w+)", url.path):  # makes one, as the UI does
            return self.answer(200, self.make({"description": match[1]}))
        name, seconds = fault
        fault[:] = "", 0.0
        if name == "cut":
            self.close_connection = True
            return None
        time.sleep(seconds)
        shown = {key: "***" if "token" in key else parameters[key] for key in parameters}
        state["requests"].append([self.command, unquote(url.path), shown])
        try:
            if name.isdecimal():
                raise Refused(int(name), "no")
            self.answer(*self.api(url.path.removeprefix("/api/v4"), parameters))
        except Refused as refused:
            self.answer(*refused.args)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def require(self, scope):
        token = self.headers.get("PRIVATE-TOKEN")
        if token not in ACCESS:
            raise Refused(401, "401 Unauthorized")
        if scope not in ACCESS[token]:
            raise Refused(403, "insufficient_scope")
        if token == "glpat-guest":
            raise Refused(403, "403 Forbidden")

    def make(self, parameters, prefix="glrt-"):
        number = str(state["next"])
        state["next"] += 1
        options = {key: str(parameters[key]) for key in OPTIONS if key in parameters}
        token = prefix + secrets.token_hex(10)
        state["runners"][number] = {"token": token, "managers": [], **options}
        return {"id": int(number), "token": token, "token_expires_at": None}

    def by_token(self, parameters):
        for number, runner in state["runners"].items():
            if runner["token"] == parameters.get("token"):
                return number, runner
        raise Refused(403, "403 Forbidden")

    def api(self, path, parameters):
        match self.command, *path.strip("/").split("/"):
            case "POST", "user", "runners":
                self.require("create_runner")
                scope = parameters.get("runner_type"), parameters.get("project_id")
                if scope != ("project_type", "17"):
                    raise Refused(400, "400 Bad request - Scope Project does not exist")
                if parameters.get("run_untagged") == "false" and not parameters.get("tag_list"):
                    empty = "Tags list can not be empty"
                    raise Refused(400, f"{empty} when runner is not allowed to pick untagged jobs")
                return 201, self.make(parameters)
            case "POST", "runners":
                if not state["legacy"]:
                    raise Refused(410, "410 Gone")
                if parameters.get("token") != "GR1348941legacy":
                    raise Refused(403, "403 Forbidden - invalid token supplied")
                return 201, self.make(parameters, prefix="")
            case "POST", "runners", "verify":
                number, runner = self.by_token(parameters)
                if parameters["token"].startswith("glrt-") and not parameters.get("system_id"):
                    raise Refused(400, "system_id is missing")
                if parameters.get("system_id") not in (None, *runner["managers"]):
                    runner["managers"].append(parameters["system_id"])
                return 200, {"id": int(number), "token": runner["token"], "token_expires_at": None}
            case "DELETE", "runners":
                del state["runners"][self.by_token(parameters)[0]]
                return 204, None
            case "DELETE", "runners", "managers":
                _, runner = self.by_token(parameters)
                runner["managers"].remove(parameters["system_id"])
                return 204, None
            case "DELETE", "runners", number:
                self.require("manage_runner")
                if number not in state["runners"]:
                    raise Refused(404, "404 Not found")
                del state["runners"][number]
                return 204, None
        raise Refused(404, "404 Not Found")


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler)
    if sys.argv[2:]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*sys.argv[2:])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print("ready", flush=True)
    server.serve_forever()
