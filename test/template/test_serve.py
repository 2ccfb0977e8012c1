"""scripts/serve as a developer uses it."""

import shutil
import subprocess
import sys

import pytest

from support import ROOT, await_true


@pytest.fixture
def debugged(tmp_path):
    """A copy of the service that scripts/serve --debug runs, and the file of its log."""
    copy, log = tmp_path / "copy", tmp_path / "log"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "reports", "test"))
    (copy / "scripts/venv").write_text("#!/bin/sh\n")  # there is one:
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (copy / ".venv/bin/python").chmod(0o755)
    command = ["sh", "scripts/serve", "--debug", "--address=127.0.0.1", "--port=0"]
    with log.open("w") as out, subprocess.Popen(command, cwd=copy, stdout=out, stderr=out) as run:
        yield copy / "server.py", log
        run.kill()


def test_debug_restarts_it_after_each_change_and_survives_a_syntax_error(debugged):
    source, log = debugged
    text = source.read_text()

    def written(text, sign):
        # Again and again: a change counts from Tornado's first look at the file on.
        source.write_text(text)
        return sign in log.read_text()

    await_true(lambda: "listening" in log.read_text())
    await_true(lambda: written("def (", "SyntaxError"), seconds=30)
    await_true(lambda: written(text.replace("listening", "again"), "again on port"), seconds=30)
