"""Starts many services in little time: as forks of a process that has imported server.py.

A new Python needs a quarter of a second to import Tornado and coverage; a fork has them. A thread
that server.py started when it is imported would be missing in the forks.
"""

import gc
import json
import os
import signal
import subprocess
import sys

from support import ROOT


class ForkServer:
    """The process that forks; it ends with its standard input."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.asked = 0

    def launch(self, arguments, out, err, code="", **constants):
        """Run server.py in a fork, which writes into the files `out` and `err`.

        `constants` replaces module constants of server.py, so that no test waits for the real
        limits; `code` is run before the service starts, with the module as `server`.
        """
        return Fork(self, self.ask([arguments, out.name, err.name, code, constants]))

    def ask(self, order):
        self.asked += 1
        self.process.stdin.write(json.dumps([self.asked, order]) + "\n")
        self.process.stdin.flush()
        # If the time limit of a test ended ask() before its answer came, that answer is read first.
        while (line := json.loads(self.process.stdout.readline()))[0] != self.asked:
            pass
        return line[1]

    def close(self):
        self.process.communicate()  # which lets it write what it has covered


class Fork:
    """A child of the fork server, with the methods of subprocess.Popen that Service calls."""

    def __init__(self, server, pid):
        self.server, self.pid, self.returncode = server, pid, None

    def poll(self):
        if self.returncode is None:
            self.returncode = self.server.ask(self.pid)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def main():
    """Fork for each order; answer the process id, or the exit status of one that has ended."""
    import server

    gc.freeze()  # spares each fork, when it ends, the search of all that was imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    for line in sys.stdin:
        number, order = json.loads(line)
        if isinstance(order, int):
            pid, status = os.waitpid(order, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            become(server, *order)
            return server.main()
        print(json.dumps([number, answer]), flush=True)


def become(server, arguments, out, err, code, constants):
    """Make this process what `python server.py ARGUMENT...` is after its imports, but changed."""
    for number, name, mode in ((0, os.devnull, "r"), (1, out, "a"), (2, err, "a")):
        with open(name, mode) as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["server.py", *arguments]
    for name, value in constants.items():
        setattr(server, name, value)
    exec(code, {"server": server})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
