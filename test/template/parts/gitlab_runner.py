#!/usr/local/bin/python
"""A stand-in for gitlab-runner 19.4 that verifies its runners and runs as the real one."""

import argparse
import json
import secrets
import signal
import ssl
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

CONFIG = "/etc/gitlab-runner/config.toml"
# What it knows; the real one knows more.
GLOBAL = ("concurrent", "check_interval", "runners")
RUNNER = ("name", "url", "token", "executor", "request_concurrency", "environment", "tls-ca-file")
RUNNER += ("docker",)
DOCKER = ("image", "helper_image", "privileged", "services_privileged", "disable_cache", "volumes")
DOCKER += ("allowed_privileged_services", "allowed_services")


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


def verdict(entry, config):
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
    words = {200: "is valid", 403: "is not valid"}
    if not entry["token"].startswith("glrt-"):
        words = {200: "is alive", 403: "is removed"}
    words = words.get(status, "failed")
    runner = entry["token"][5:14]
    detail = status or f"couldn't execute POST against {entry['url']}: {answer}"
    print(
        f"{level}Verifying runner... {words}  runner={runner} status={detail}",
        file=sys.stderr,
    )
    return status, answer


def read():
    return tomllib.loads(Path(CONFIG).read_text())


def verify(arguments):
    """Ask the server about the runners in the configuration, or those of a name."""
    parser = argparse.ArgumentParser(prog="gitlab-runner verify", allow_abbrev=False)
    parser.add_argument("--name")
    name = parser.parse_args(arguments).name
    entries = [it for it in read()["runners"] if name in (None, it["name"])]
    statuses = [verdict(it, CONFIG)[0] for it in entries]
    if 403 in statuses:
        sys.exit("FATAL: Failed to verify runners")


def lint(_):
    """Name what this version does not know."""
    config, unknown = read(), []
    for table, path, known in (
        (config, "", GLOBAL),
        *((it, "runners.", RUNNER) for it in config["runners"]),
        *((it["docker"], "runners.docker.", DOCKER) for it in config["runners"]),
    ):
        unknown += [f"{path}{key}" for key in table if key not in known]
    if unknown:
        lines = "".join(f"\n  unknown key: {key}" for key in unknown)
        sys.exit(f"FATAL: {len(unknown)} unknown key(s) found in {CONFIG}:{lines}")


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
    commands = {"lint": lint, "run": run, "verify": verify}
    commands[sys.argv[1]](sys.argv[2:])
