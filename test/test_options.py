"""The command line of server.py."""

import re
import socket
import subprocess
import sys

import pytest
import requests

import server
from support import ROOT, await_true, connect


@pytest.fixture
def start(monkeypatch, capfd):
    """Calls main() with options that keep it from listening; returns how it ended, and standard error."""
    values = server.options.as_dict()

    def start(*options):
        monkeypatch.setattr(sys, "argv", ["server.py", *options])
        with pytest.raises(SystemExit) as end:
            server.main()
        return end.value.code, capfd.readouterr().err

    yield start
    for name in ("port", "address", "debug", "drain_seconds"):
        setattr(server.options, name, values[name])


def test_help_explains_every_option(start):
    status, help = start("--help")
    words = " ".join(help.split())
    assert status == 0
    for line in (
        "--port port to listen on; 0 takes a free one (default 8744)",
        "--address address to listen on (default: every address)",
        "--debug restart when a source file changes; show tracebacks to clients (default False)",
        "--drain-seconds how long to go on answering new requests after SIGTERM (environment: DRAIN_SECONDS) (default 5.0)",
    ):
        assert line in words


@pytest.mark.parametrize("option", ["--port=http", "--port=-1", "--port=65536", "--prot=80", "--drain-seconds=x"])
def test_a_wrong_option_ends_in_one_line(start, option):
    reason, _ = start(option)
    assert re.fullmatch(r"server\.py: .* \(see --help\)", reason)


def test_a_wrong_drain_time_in_the_environment_ends_in_one_line(start, monkeypatch):
    monkeypatch.setenv("DRAIN_SECONDS", "x")
    assert start()[0] == "server.py: could not convert string to float: 'x' (see --help)"


def test_a_port_that_is_taken_ends_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = subprocess.run(
            [sys.executable, "server.py", "--address=127.0.0.1", f"--port={port}"],
            cwd=ROOT, capture_output=True, text=True, timeout=10,
        )
    assert answer.returncode == 1
    assert answer.stderr == f"server.py: cannot listen on port {port}: Address already in use\n"


def test_it_listens_only_on_the_given_address(start_service):
    service = start_service()  # started with --address=127.0.0.1
    with pytest.raises(ConnectionRefusedError):
        connect(service.port, "127.0.0.2")


def test_the_release_comes_from_the_environment(start_service):
    service = start_service(env={"RELEASE": "0123abcd"})
    assert service.greeting == f"release 0123abcd listens on port {service.port}"
    assert requests.get(f"{service.url}/test").headers["X-Release"] == "0123abcd"


def test_debug_restarts_it_when_a_source_file_changes(tmp_path):
    source = tmp_path / "server.py"
    text = (ROOT / "server.py").read_text()
    source.write_text(text)
    changed = tmp_path / "changed"
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(
        [sys.executable, source, "--debug", "--address=127.0.0.1", "--port=0"], stdout=out, stderr=out
    ) as process:
        try:
            def restarted():  # a change counts from Tornado's first look at the file on
                changed.write_text(text.replace("gitlab_cicd", "changed"))
                changed.replace(source)
                return [line for line in log.read_text().splitlines() if " listens " in line][1:]

            port = await_true(restarted)[0].split()[-1]
            assert requests.get(f"http://127.0.0.1:{port}/test").text.startswith("test changed")
        finally:
            process.kill()


def test_debug_is_off_by_default():
    settings = server.make_app().settings
    assert not settings["debug"] and not settings.get("autoreload")
