"""What a developer's mistake costs: some seconds, and a screen that ends with the cause."""

import configparser
import sys
import time

import pytest

from pipelines import Checkout
from support import ROOT

START = "    asyncio.run(serve(sockets))\n"
DATABASE = '    import socket\n\n    socket.create_connection(("127.0.0.1", 1))\n'
HANGING = "def test_get_and_post_are_answered(app_url):\n"
ONE_HANGS = ["--timeout=2", "-o", "timeout_func_only=true", "-k", "answered"]
# File and what replaces what there; arguments of scripts/test, whose -n0 is as in the job `test`,
# on one processor; cause; lines at most.
MISTAKES = {
    "main() raises": (
        ("server.py", "def main():\n", "def main():\n    open('/no/such')\n"),
        ["-n2", "test/test_service.py"],
        "'/no/such'",
        60,
    ),
    "no database": (
        ("server.py", START, DATABASE + START),
        ["-n0", "test/test_service.py"],
        "ConnectionRefusedError: ",
        60,
    ),
    "another text": (
        ("server.py", "gitlab_cicd api", "api"),
        ["-n0", "test/test_handlers.py"],
        "1 failed, ",
        40,
    ),
    "an import that is not used": (
        ("server.py", "import time\n", "import time\nimport zlib\n"),
        ["-n0", "test/test_settings.py"],
        ": F401 ",
        60,
    ),
    "a test hangs": (
        ("test/test_service.py", HANGING, HANGING + "    time.sleep(3600)\n"),
        ["-n0", "test/test_service.py", *ONE_HANGS],
        "FAILED test/test_service.py::test_get_and_post_are_answered",
        40,
    ),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("red") / "checkout")


@pytest.mark.parametrize("edit, arguments, cause, lines", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_fits_a_screen_and_ends_with_its_cause(checkout, edit, arguments, cause, lines):
    checkout.run("git", "checkout", "--quiet", ".")
    checkout.edit(*edit)
    checkout.run(sys.executable, "-m", "ruff", "format", "--quiet")
    began = time.monotonic()
    # The job has no hypothesis, whose plugin takes two seconds.
    arguments = ["-p", "no:hypothesispytest", *arguments]
    run = checkout.run("scripts/test", *arguments, check=False, TEST_PYTHON=sys.executable)
    took, output = time.monotonic() - began, run.stdout.splitlines()
    print(f"{took:.1f} s, {len(output)} lines")
    assert run.returncode in (1, 2)  # 2 with pytest-xdist
    assert took < 30
    assert len(output) <= lines, run.stdout
    assert any(cause in line for line in output[-15:]), run.stdout


def test_a_test_that_hangs_ends_within_a_minute():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / ".pytest.ini")
    assert 0 < settings.getint("pytest", "timeout") <= 60
