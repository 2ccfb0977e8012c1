"""Helpers of several test files: the service as a child process, raw sockets, waiting."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATIENCE = 20  # seconds: what takes a tenth of one takes several on a busy machine
PATH = "/test"  # what health check and deployment ask
# The address of a service that runs already; the pipeline's test job names the release there.
RUNNING = os.environ.get("TEST_SERVICE_URL", "").rstrip("/")
for name in ("SERVICE_RELEASE", "DRAIN_SECONDS"):
    os.environ.pop(name, None)  # what a person or a project has set is not tested


class DoesNotStart(Exception):
    """The service ended, or did not listen in time; says what it wrote to standard error."""


class Service:
    """server.py as a child process on a free port of 127.0.0.1.

    `constants` replaces module constants of server.py, so that no test waits for the real limits;
    `code` is run before the service starts, with the module as `server`.
    """

    def __init__(self, *options, code="", env=None, **constants):
        lines = [f"server.{name} = {value!r}" for name, value in constants.items()]
        program = "\n".join(["import server", *lines, code, "server.main()"])
        # Files: a pipe that nobody reads may be full after 4 kB, which stops the service.
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "--address=127.0.0.1", "--port=0", *options],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=self.out,
            stderr=self.err,
        )
        try:
            self.port = int(await_true(self.listening)[1])
        except BaseException:
            self.close()
            raise
        self.url = f"http://127.0.0.1:{self.port}"

    def listening(self):
        """Return the match of the line that names the port, once there is one."""
        ended = self.process.poll() is not None
        if ended:
            status = self.process.returncode
            raise DoesNotStart(f"exit status {status}\n{self.read(self.err).rstrip()}")
        return re.search(r"^listening on port (\d+)", self.read(self.out), re.MULTILINE)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    @staticmethod
    def read(file):
        # At an offset: reading would move the end at which the service writes.
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()

    def log(self):
        """Return what it has written to standard output."""
        return self.read(self.out)

    def errors(self):
        """Return what it has written to standard error."""
        return self.read(self.err)

    def end(self, timeout=PATIENCE):
        """Wait for the end; return exit status, standard output, and standard error."""
        status = self.process.wait(timeout)
        return status, self.read(self.out), self.read(self.err)

    def close(self):
        """Kill it if it still runs."""
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.err.close()


def connect(port, address="127.0.0.1"):
    return socket.create_connection((address, port), timeout=PATIENCE)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def receive(connection):
    """Return all that the other side sends until it closes the connection, however it does that."""
    answer = bytearray()
    try:
        while data := connection.recv(65536):
            answer += data
    except ConnectionError:
        pass
    return bytes(answer)


def await_true(condition, seconds=PATIENCE):
    """Wait until condition() is true and return what it returned; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not true after {seconds} s: {condition}"
        time.sleep(0.02)
    return result
