#!/usr/local/bin/python
"""A stand-in for gitlab-runner 19.4 that registers and runs as the real one.

The flags that the token of a runner forbids are fatal; registering twice appends a second entry; a
template fills in what flags do not say.
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
GLOBAL = {"concurrent": 1, "check_interval": 0}  # with their defaults
RESERVED = (
    "tag-list",
    "access-level",
    "maximum-timeout",
    "maintenance-note",
    "run-untagged",
    "paused",
    "locked",
)


def toml(value):
    """Return a value as TOML has it."""
    return json.dumps(value, ensure_ascii=False)


def dump(config):
    """Return the text of a configuration, as the real one writes it: without comments."""
    lines = [f"{name} = {config.get(name, value)}" for name, value in GLOBAL.items()]
    for entry in config["runners"]:
        plain = {key: value for key, value in entry.items() if not isinstance(value, dict)}
        lines += ["", "[[runners]]"]
        lines += [f"  {key} = {toml(value)}" for key, value in plain.items()]
        lines += ["  [runners.docker]"]
        lines += [f"    {key} = {toml(value)}" for key, value in entry["docker"].items()]
    return "\n".join(lines) + "\n"


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


def register(arguments):
    parser = argparse.ArgumentParser(prog="gitlab-runner register", allow_abbrev=False)
    parser.add_argument("--non-interactive", action="store_true", required=True)
    flags = ("config", "template-config", "url", "name", "executor", "token", "tls-ca-file")
    for flag in (*flags, "docker-image", *RESERVED):
        parser.add_argument(f"--{flag}")
    given = vars(parser.parse_args(arguments))
    path = given["config"] or CONFIG
    token = given["token"] or os.environ.get("CI_SERVER_TOKEN", "")
    environment = (
        "RUNNER_TAG_LIST",
        "REGISTER_LOCKED",
        "REGISTER_RUN_UNTAGGED",
        "REGISTER_ACCESS_LEVEL",
        "REGISTER_PAUSED",
    )
    if (
        any(given[flag.replace("-", "_")] for flag in RESERVED)
        or any(map(os.environ.get, environment))
    ) and token.startswith("glrt-"):
        sys.exit(
            "FATAL: Runner configuration other than name and executor configuration is reserved"
        )
    [template] = tomllib.loads(Path(given["template_config"]).read_text())["runners"]
    entry = {key: given[key] for key in ("name", "url")} | {"id": 0, "token": token}
    if given["tls_ca_file"]:
        entry["tls-ca-file"] = given["tls_ca_file"]
    status, answer = verdict(entry, path)
    if status != 200:
        sys.exit("PANIC: Failed to verify the runner.")
    if token.startswith("glrt-"):
        entry["id"] = answer["id"]
    docker = template.pop("docker") | {"image": given["docker_image"]}
    if not docker["helper_image"]:
        del docker["helper_image"]
    if not docker.get("disable_cache") and "/cache" not in docker["volumes"]:
        docker["volumes"].append("/cache")
    entry |= {"executor": given["executor"]} | template | {"docker": docker}
    config = tomllib.loads(Path(path).read_text()) if os.path.exists(path) else {}
    config["runners"] = [*config.get("runners", []), entry]
    Path(path).write_text(dump(config))


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
    commands = {"register": register, "run": run}
    commands[sys.argv[1]](sys.argv[2:])
