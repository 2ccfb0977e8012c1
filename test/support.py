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


def launch_python(arguments, out, err, env=None):
    """Run `python server.py`, which writes into the files `out` and `err`."""
    return subprocess.Popen(
        [sys.executable, "server.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=out,
        stderr=err,
    )


class Service:
    """server.py as a child process on a free port of 127.0.0.1.

    `launch` runs it, with `changes`: see launch_python() and ForkServer.launch().
    """

    def __init__(self, *options, launch=launch_python, **changes):
        # Files: a pipe that nobody reads may be full after 4 kB, which stops the service.
        self.out, self.err = tempfile.NamedTemporaryFile("w+"), tempfile.NamedTemporaryFile("w+")
        arguments = ["--address=127.0.0.1", "--port=0", *options]
        self.process = launch(arguments, self.out, self.err, **changes)
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

    def end(self):
        """Wait for the end; return exit status, standard output, and standard error."""
        await_true(lambda: self.process.poll() is not None)
        return self.process.returncode, self.read(self.out), self.read(self.err)

    def close(self):
        """Kill it if it still runs."""
        self.process.kill()
        self.end()
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
        time.sleep(0.005)
    return result
