#!/usr/local/bin/python
"""A stand-in for gitlab-runner 19.4: register, verify, unregister and run, as the real one was seen to do them.

The flags that a runner's authentication token forbids are fatal; registering twice appends a second entry; verify
says 0 when the server is out of reach; what is valid stands only in its log.
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
RESERVED = ("tag-list", "access-level", "maximum-timeout", "maintenance-note", "run-untagged", "paused", "locked")


def system_id(config=CONFIG):
    path = Path(config).parent / ".runner_system_id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text("r_" + secrets.token_hex(6))
    return path.read_text()


def call(method, url, path, ca, **parameters):
    """Return status and answer; status 0 with the reason when there is none."""
    request = urllib.request.Request(
        f"{url}/api/v4{path}", json.dumps(parameters).encode(), {"Content-Type": "application/json"}, method=method
    )
    try:
        context = ssl.create_default_context(cafile=ca) if url.startswith("https") else None
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError as error:
        reason = getattr(error, "reason", error)
        unknown = isinstance(reason, ssl.SSLCertVerificationError)
        return 0, "tls: failed to verify certificate: x509: certificate signed by unknown authority" if unknown else reason


def entries(path):
    return tomllib.loads(Path(path).read_text()).get("runners", []) if os.path.exists(path) else []


def verdict(entry, config=CONFIG):
    """Ask the server about an entry; log it as the real one does; return the status."""
    status, answer = call("POST", entry["url"], "/runners/verify", entry.get("tls-ca-file"), token=entry["token"], system_id=system_id(config))
    words = {200: "is valid", 403: "is not valid"}.get(status, "failed")
    detail = f" status=couldn't execute POST against {entry['url']}: {answer}" if not status else f" status={status}"
    print(f"{'Verifying' if status == 200 else 'ERROR: Verifying'} runner... {words}  runner={entry['token'][5:14]}{detail}", file=sys.stderr)
    return status, answer


def register(arguments):
    parser = argparse.ArgumentParser(prog="gitlab-runner register", allow_abbrev=False)
    parser.add_argument("--non-interactive", action="store_true", required=True)
    for flag in ("config", "url", "name", "executor", "docker-image", "token", "tls-ca-file", *RESERVED):
        parser.add_argument(f"--{flag}")
    given = vars(parser.parse_args(arguments))
    token = given["token"] or os.environ.get("CI_SERVER_TOKEN", "")
    environment = ("RUNNER_TAG_LIST", "REGISTER_LOCKED", "REGISTER_RUN_UNTAGGED", "REGISTER_ACCESS_LEVEL", "REGISTER_PAUSED")
    if not token.startswith("glrt-") or any(given[flag.replace("-", "_")] for flag in RESERVED) or any(map(os.environ.get, environment)):
        sys.exit("FATAL: Runner configuration other than name and executor configuration is reserved")
    entry = {"url": given["url"], "token": token, "tls-ca-file": given["tls_ca_file"]}
    status, answer = verdict(entry, given["config"] or CONFIG)
    if status != 200:
        sys.exit("PANIC: Failed to verify the runner.")
    with open(given["config"] or CONFIG, "a") as config:
        config.write(
            f'[[runners]]\n  name = "{given["name"]}"\n  url = "{given["url"]}"\n  id = {answer["id"]}\n  token = "{token}"\n'
            f'  executor = "{given["executor"]}"\n  [runners.docker]\n    image = "{given["docker_image"]}"\n'
        )


def named(arguments):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--name")
    parser.add_argument("--config", default=CONFIG)
    given = parser.parse_args(arguments)
    return given.config, [entry for entry in entries(given.config) if given.name in (None, entry["name"])]


def verify(arguments):
    sys.exit(1 if any(verdict(entry)[0] == 403 for entry in named(arguments)[1]) else 0)


def unregister(arguments):
    config, gone = named(arguments)
    for entry in gone:
        call("DELETE", entry["url"], "/runners/managers", entry.get("tls-ca-file"), token=entry["token"], system_id=system_id(config))
    Path(config).write_text("")  # the real one writes what is left in its own way, without comments


def run(arguments):
    system_id()
    config = tomllib.loads(Path(CONFIG).read_text())
    if config.get("concurrent", 1) <= len(config["runners"]) or any(entry.get("request_concurrency", 1) < 2 for entry in config["runners"]):
        print("WARNING: CONFIGURATION: Long polling issues detected.", flush=True)
    print("Initializing executor providers", flush=True)
    ends = {signal.SIGQUIT, signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # PID 1 gets no other
    signal.sigwait(ends)


if __name__ == "__main__":
    {"register": register, "verify": verify, "unregister": unregister, "run": run}[sys.argv[1]](sys.argv[2:])
