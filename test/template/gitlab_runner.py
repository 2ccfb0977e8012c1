#!/usr/local/bin/python
"""A stand-in for gitlab-runner 19.4 that registers, verifies, unregisters and runs as the real one.

The flags that the token of a runner forbids are fatal; registering twice appends a second entry;
verify exits with 0 when the server is out of reach; only its log says which runner is valid.
"""

import argparse
import json
import os
import secrets
import signal
import ssl
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

CONFIG = "/etc/gitlab-runner/config.toml"
RESERVED = (
    "tag-list",
    "access-level",
    "maximum-timeout",
    "maintenance-note",
    "run-untagged",
    "paused",
    "locked",
)
ENTRY = """\
[[runners]]
  name = "{name}"
  url = "{url}"
  id = {id}
  token = "{token}"
  executor = "{executor}"
  [runners.docker]
    image = "{docker_image}"
"""


def system_id(config=CONFIG):
    path = Path(config).parent / ".runner_system_id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text("r_" + secrets.token_hex(6))
    return path.read_text()


def call(method, url, path, ca, **parameters):
    """Return status and answer; status 0 with the reason when there is none."""
    request = urllib.request.Request(
        f"{url}/api/v4{path}",
        json.dumps(parameters).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    try:
        context = ssl.create_default_context(cafile=ca) if url.startswith("https") else None
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            reason = "x509: certificate signed by unknown authority"
            return 0, f"tls: failed to verify certificate: {reason}"
        return 0, reason


def entries(path):
    return tomllib.loads(Path(path).read_text()).get("runners", []) if os.path.exists(path) else []


def verdict(entry, config=CONFIG):
    """Ask the server about an entry; log it as the real one does; return the status."""
    status, answer = call(
        "POST",
        entry["url"],
        "/runners/verify",
        entry.get("tls-ca-file"),
        token=entry["token"],
        system_id=system_id(config),
    )
    level = "" if status == 200 else "ERROR: "
    words = {200: "is valid", 403: "is not valid"}.get(status, "failed")
    runner = entry["token"][5:14]
    detail = status or f"couldn't execute POST against {entry['url']}: {answer}"
    print(
        f"{level}Verifying runner... {words}  runner={runner} status={detail}",
        file=sys.stderr,
    )
    return status, answer


def register(arguments):
    parser = argparse.ArgumentParser(prog="gitlab-runner register", allow_abbrev=False)
    parser.add_argument("--non-interactive", action="store_true", required=True)
    flags = ("config", "url", "name", "executor", "docker-image", "token", "tls-ca-file")
    for flag in (*flags, *RESERVED):
        parser.add_argument(f"--{flag}")
    given = vars(parser.parse_args(arguments))
    token = given["token"] or os.environ.get("CI_SERVER_TOKEN", "")
    environment = (
        "RUNNER_TAG_LIST",
        "REGISTER_LOCKED",
        "REGISTER_RUN_UNTAGGED",
        "REGISTER_ACCESS_LEVEL",
        "REGISTER_PAUSED",
    )
    if (
        not token.startswith("glrt-")
        or any(given[flag.replace("-", "_")] for flag in RESERVED)
        or any(map(os.environ.get, environment))
    ):
        sys.exit(
            "FATAL: Runner configuration other than name and executor configuration is reserved"
        )
    entry = {"url": given["url"], "token": token, "tls-ca-file": given["tls_ca_file"]}
    status, answer = verdict(entry, given["config"] or CONFIG)
    if status != 200:
        sys.exit("PANIC: Failed to verify the runner.")
    with open(given["config"] or CONFIG, "a") as config:
        config.write(ENTRY.format(**{**given, "id": answer["id"], "token": token}))


def named(arguments):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--name")
    parser.add_argument("--config", default=CONFIG)
    given = parser.parse_args(arguments)
    found = [entry for entry in entries(given.config) if given.name in (None, entry["name"])]
    return given.config, found


def verify(arguments):
    sys.exit(1 if any(verdict(entry)[0] == 403 for entry in named(arguments)[1]) else 0)


def unregister(arguments):
    config, gone = named(arguments)
    for entry in gone:
        call(
            "DELETE",
            entry["url"],
            "/runners/managers",
            entry.get("tls-ca-file"),
            token=entry["token"],
            system_id=system_id(config),
        )
    Path(config).write_text("")  # the real one writes what is left in its own way, without comments


def run(arguments):
    system_id()
    config = tomllib.loads(Path(CONFIG).read_text())
    if config.get("concurrent", 1) <= len(config["runners"]) or any(
        entry.get("request_concurrency", 1) < 2 for entry in config["runners"]
    ):
        print("WARNING: CONFIGURATION: Long polling issues detected.", flush=True)
    print("Initializing executor providers", flush=True)
    ends = {signal.SIGQUIT, signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # PID 1 gets no other
    signal.sigwait(ends)


if __name__ == "__main__":
    commands = {"register": register, "verify": verify, "unregister": unregister, "run": run}
    commands[sys.argv[1]](sys.argv[2:])
