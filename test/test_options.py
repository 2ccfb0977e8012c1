"""The command line of server.py."""

import re
import socket
import sys

import pytest

import server
from support import DoesNotStart, connect


@pytest.fixture
def start(monkeypatch, capfd):
    """Calls main() with options that keep it from listening; returns its end and its output."""
    values = server.options.as_dict()

    def start(*options):
        monkeypatch.setattr(sys, "argv", ["server.py", *options])
        with pytest.raises(SystemExit) as end:
            server.main()
        return end.value.code, "".join(capfd.readouterr())

    yield start
    for name in ("port", "address", "debug", "drain_seconds"):
        setattr(server.options, name, values[name])


def test_help_explains_every_option(start):
    status, help = start("--help")
    assert status == 0
    for name in ("port", "address", "debug", "drain-seconds"):
        assert re.search(rf"^ *--{name} +\w+ \w+", help, re.MULTILINE)


@pytest.mark.parametrize(
    "option", ["--port=http", "--port=-1", "--port=65536", "--prot=80", "--drain-seconds=x"]
)
def test_a_wrong_option_ends_in_one_line(start, option):
    status, reason = start(option)
    assert status == 1
    assert re.search(r"^server\.py: .* \(see --help\)\n\Z", reason, re.MULTILINE)


def test_a_wrong_drain_time_in_the_environment_ends_in_one_line(start, monkeypatch):
    monkeypatch.setenv("DRAIN_SECONDS", "x")
    assert start() == (1, "server.py: could not convert string to float: 'x' (see --help)\n")


def test_an_empty_drain_time_in_the_environment_is_the_default(start, monkeypatch):
    monkeypatch.setenv("DRAIN_SECONDS", "")
    assert "there is no port" in start("--port=-1")[1]  # the next thing that is looked at


@pytest.mark.parametrize("release", ["\u0432\u0435\u0440\u0441\u0438\u044f", "a\nb", "\u7248"])
def test_a_release_that_no_header_can_carry_ends_in_one_line(start, monkeypatch, release):
    monkeypatch.setattr(server, "RELEASE", release)
    status, reason = start()
    assert status == 1
    assert re.fullmatch(r"server\.py: no header can carry SERVICE_RELEASE='.*' .*\n", reason)


def test_a_port_that_is_taken_ends_in_one_line(start_service):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DoesNotStart) as error:
            start_service(f"--port={port}")
    reason = f"server.py: cannot listen on port {port}: Address already in use"
    assert str(error.value) == f"exit status 1\n{reason}"


def test_an_error_of_the_service_itself_is_told_in_its_own_words(start_service):
    code = "server.make_app = lambda debug: open('/nowhere/at/all')"
    with pytest.raises(DoesNotStart, match="No such file or directory: '/nowhere/at/all'") as error:
        start_service(code=code)
    assert "listen" not in str(error.value)


def test_it_listens_only_on_the_given_address(first_service):  # started with --address=127.0.0.1
    with pytest.raises(OSError):  # refused; on a Mac there is no such address
        connect(first_service.port, "127.0.0.2")


def test_debug_is_off_by_default():
    settings = server.make_app().settings
    assert not settings["debug"] and not settings.get("autoreload")
