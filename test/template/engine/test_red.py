"""What a developer's mistake costs: some seconds, and a screen that ends with the cause."""

import sys
import time

import pytest

from pipelines import Checkout

START = "    asyncio.run(serve(sockets))\n"
DATABASE = '    import socket\n\n    socket.create_connection(("127.0.0.1", 1))\n'
MISTAKES = {  # what replaces what in server.py; the cause; seconds and lines at most
    "main() raises": ("def main():\n", "def main():\n    open('/no/such')\n", "'/no/such'", 15, 60),
    "no database": (START, DATABASE + START, "ConnectionRefusedError: ", 15, 60),
    "another text": ("gitlab_cicd api", "api", "1 failed, ", 30, 40),
}


@pytest.mark.parametrize("old, new, cause, seconds, lines", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_fits_a_screen_and_ends_with_its_cause(tmp_path, old, new, cause, seconds, lines):
    checkout = Checkout(tmp_path / "checkout")
    checkout.edit("server.py", old, new)
    checkout.run(sys.executable, "-m", "ruff", "format", "--quiet")
    began = time.monotonic()
    run = checkout.run(
        "scripts/test", "--ignore=test/template", check=False, TEST_PYTHON=sys.executable
    )
    took, output = time.monotonic() - began, run.stdout.splitlines()
    print(f"{took:.1f} s, {len(output)} lines")
    assert run.returncode == 1
    assert took < seconds
    assert len(output) <= lines, run.stdout
    assert any(cause in line for line in output[-15:]), run.stdout
