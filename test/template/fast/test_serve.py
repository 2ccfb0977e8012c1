"""scripts/serve as a developer uses it."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from support import ROOT, await_true


class Debugged:
    """A copy of the service that scripts/serve --debug runs."""

    def __init__(self, path, port=0, **env):
        copy, log = path / "copy", path / "log"
        self.source, self.log = copy / "server.py", log.read_text
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "reports", "test"))
        (copy / "scripts/venv").write_text("")  # there is one:
        for script in (copy / "scripts").iterdir():
            script.chmod(0o644)  # as after a copy made on Windows
        (copy / ".venv/bin").mkdir(parents=True)
        (copy / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (copy / ".venv/bin/python").chmod(0o755)
        command = ["sh", "scripts/serve", "--debug", "--address=127.0.0.1", f"--port={port}"]
        # The coverage of a copy is not the service's.
        env |= {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
        with log.open("w") as out:
            self.process = subprocess.Popen(command, cwd=copy, env=env, stdout=out, stderr=out)

    def change_until(self, text, sign):
        """Write the source again and again, since Tornado counts changes from its first look on."""

        def written():
            changed = self.source.with_suffix(".new")
            changed.write_text(text)
            changed.replace(self.source)  # at once: half a file may be a program that ends well
            return sign in self.log()

        await_true(written, seconds=30)


@pytest.fixture
def debug(tmp_path):
    """Starts the service so; ends it after the test."""
    started = []

    def start(*port, **env):
        started.append(Debugged(tmp_path, *port, **env))
        return started[0]

    yield start
    started[0].process.kill()
    started[0].process.wait()


def test_debug_restarts_it_after_each_change_and_survives_a_syntax_error(debug):
    service = debug()
    text = service.source.read_text()
    await_true(lambda: "listening" in service.log())
    service.change_until("def (", "SyntaxError")
    service.change_until(text.replace("listening", "again"), "again on port")


def test_debug_ends_on_ctrl_c(debug):
    service = debug()
    await_true(lambda: "listening" in service.log())
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(10) == 0
    assert "Traceback" not in service.log()


def test_settings_and_secrets_reach_the_service_and_another_pythons_variables_do_not(
    debug, tmp_path
):
    (tmp_path / "password").write_text("pa55word")
    service = debug(
        APP_DATABASE_HOST="database",
        APP_SECRET_DATABASE_PASSWORD=str(tmp_path / "password"),
        PYTHONHOME="/nowhere",
        PYTHONSAFEPATH="1",  # would hide the second module
    )
    (service.source.parent / "store.py").write_text("ORDERS = []\n")
    values = (
        'os.environ["APP_DATABASE_HOST"], open(os.environ["APP_SECRET_DATABASE_PASSWORD"]).read()'
    )
    text = service.source.read_text()
    service.change_until(
        text.replace("\nRELEASE", f"\nimport store\nprint({values}, store.ORDERS)\nRELEASE"),
        "database pa55word []",
    )


def test_debug_says_that_a_port_is_taken(debug):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = debug(port)
        await_true(lambda: f"cannot listen on port {port}: Address already in use" in service.log())
