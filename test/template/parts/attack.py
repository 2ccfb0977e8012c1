"""Clients that ask for more than a service can hold, and one that asks for an answer now and then.

`python attack.py NAME PORT` attacks 127.0.0.1:PORT for some seconds and prints as JSON
{"answered": count, "failed": [...], "slowest": seconds} of the well-behaved client, besides
"connections", how many could be opened, "processor", the share of one that the service takes while
the attack is kept up, and "memory", the most that it took, in kB. It shares network and processes
with the attacked container, whose service is process 1, and stops by itself.
"""

import contextlib
import json
import re
import selectors
import socket
import sys
import threading
import time
import urllib.request

HOLD = 3  # seconds for which the attack is kept up
PAUSE = 0.05  # seconds between the requests of the well-behaved client
PATH = "/test"
POST = f"POST {PATH} HTTP/1.1\r\nHost: test\r\n".encode()
GET = f"GET {PATH} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
LARGEST = 2**20  # bytes of a body
ATTACKS = {  # how many connections, and what each sends
    "unfinished bodies": (
        400,
        POST + b"Content-Length: %d\r\n\r\n" % LARGEST + b"x" * (LARGEST - 1),
    ),
    "lengths with zeros": (
        400,
        POST + b"Content-Length: %025d\r\n\r\n" % LARGEST + b"x" * (LARGEST - 1),
    ),
    "unfinished chunks": (
        400,
        POST + b"Transfer-Encoding: chunked\r\n\r\nff000\r\n" + b"x" * 0xFF000,
    ),
    "unfinished headers": (6000, b"GET / HTTP/1.1\r\nX: " + b"x" * 16_000),
    "idle connections": (10_000, b""),
    "paths of 60 kB": (2000, b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n"),
    "bodies that are dropped": (
        400,
        POST + b"Content-Length: %d\r\n\r\n" % (100 * LARGEST) + b"x" * LARGEST,
    ),
}
UNREAD = {  # and what each sends again and again, for UNREAD_HOLD seconds, without reading answers
    "pipelined requests": (2000, GET * 1000),
    "pipelined bodies": (
        500,
        GET * 500 + POST + b"Content-Length: %d\r\n\r\n" % LARGEST + b"x" * LARGEST,
    ),
}
UNREAD_HOLD = 25  # seconds in which 2,000 such clients filled 128 MB of a service without limits


class Client(threading.Thread):
    """Asks until it is stopped; notes how that went."""

    def __init__(self, port):
        super().__init__()
        self.url, self.stopped = f"http://127.0.0.1:{port}{PATH}", threading.Event()
        self.answered, self.failed, self.slowest = 0, [], 0

    def run(self):
        while not self.stopped.wait(PAUSE):
            began = time.monotonic()
            try:
                urllib.request.urlopen(self.url, timeout=10).read()
                self.answered += 1
            except OSError as error:
                self.failed.append(str(error))
            self.slowest = max(self.slowest, time.monotonic() - began)


def processor_seconds():
    """Return the processor time that the service has used; the kernel counts hundredths."""
    with open("/proc/1/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory():
    with open("/proc/1/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1])


def open_connections(count, port):
    for _ in range(count):
        try:
            connection = socket.socket()
            connection.settimeout(5)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", int(port)))
            yield connection
        except OSError:
            pass  # closed: that is how the service defends itself


def hold_unread(connections, data):
    """Send the data again and again on each connection; read nothing."""
    selector, data = selectors.DefaultSelector(), memoryview(data)
    for connection in connections:
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_WRITE, 0)
    end = time.monotonic() + UNREAD_HOLD
    while (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            try:
                sent = key.fileobj.send(data[key.data :])
                selector.modify(key.fileobj, selectors.EVENT_WRITE, (key.data + sent) % len(data))
            except OSError:
                selector.unregister(key.fileobj)


def main(name, port):
    client = Client(port)
    client.start()
    count, data = (ATTACKS | UNREAD)[name]
    connections = []
    for connection in open_connections(count, port):
        connections.append(connection)
        if name in ATTACKS:
            with contextlib.suppress(OSError):
                connection.sendall(data)
    before, began = processor_seconds(), time.monotonic()
    if name in UNREAD:
        hold_unread(connections, data)
    else:
        time.sleep(HOLD)
    processor = (processor_seconds() - before) / (time.monotonic() - began)
    client.stopped.set()
    client.join()
    result = {"processor": processor, "memory": memory(), "connections": len(connections)}
    result |= {"answered": client.answered, "failed": client.failed, "slowest": client.slowest}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
