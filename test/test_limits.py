"""Clients that ask for more than the service can hold cost it nothing that others would miss.

Here with small limits; test/template attacks the released image with the real ones.
"""

import contextlib
import re
import resource
import socket
import time
import urllib.parse

import pytest
import requests

from support import PATH, Service, await_true, connect, receive

REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: test\r\n".encode()
POST = f"POST {PATH} HTTP/1.1\r\nHost: test\r\n".encode()
KEPT = REQUEST + b"\r\n"


def is_closed(connection):
    """True when the other side has closed a connection on which nothing was to be received."""
    connection.settimeout(0.01)
    try:
        return receive(connection) == b""
    except TimeoutError:
        return False


def test_beyond_the_limit_the_least_recently_used_connection_is_closed(start_service):
    service = start_service(MEMORY=35_000, IDLE=10_000)  # three connections
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(connect(service.port)) for _ in range(3))
        for connection in (first, second, third, first):  # the second is the quietest now
            connection.sendall(KEPT)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert requests.get(service.url + PATH).ok  # a fourth
        await_true(lambda: is_closed(second))
        assert not is_closed(first) and not is_closed(third)


@pytest.mark.parametrize(
    "header", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nf0000\r\n"]
)
def test_bodies_that_do_not_end_are_closed_when_others_need_the_room(start_service, header):
    service = start_service(MEMORY=13_000_000, IDLE=20_000)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(service.port)) for _ in range(10)]
        for connection in connections:
            connection.sendall(POST + header)
        # Which four stay depends on the order in which their headers are read.
        await_true(lambda: sum(map(is_closed, connections)) == 6)
        assert requests.post(service.url + PATH, data=b"x" * 1000).ok
        assert sum(map(is_closed, connections)) == 6


SLOW = """
import asyncio

go = asyncio.Event()

async def get(self):
    print("waiting", flush=True)
    if self.request.query:
        go.set()
    await go.wait()

server.TextHandler.get = get
"""


def test_what_has_been_received_whole_is_answered_whatever_others_need(start_service):
    service = start_service(code=SLOW, MEMORY=130_000, IDLE=10_000)  # twelve connections
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(service.port)) for _ in range(10)]
        for connection in connections:
            connection.sendall(KEPT)
        await_true(lambda: service.log().count("waiting") == 10)
        others = [stack.enter_context(connect(service.port)) for _ in range(30)]
        for other in others:
            other.sendall(POST)  # a request that does not end
        await_true(lambda: sum(map(is_closed, others)) >= 27)
        assert requests.get(service.url + PATH + "?go").ok
        for connection in connections:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_answers_that_nobody_reads_are_given_up_when_others_need_the_room(start_service):
    size = 20_000_000  # more than the buffers of both sides hold
    code = f"server.TextHandler.get = lambda self: self.write({size} * b'x')"
    service = start_service(code=code, MEMORY=50_000_000)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(service.port)) for _ in range(10)]
        for connection in connections:
            connection.sendall(REQUEST + b"Connection: close\r\n\r\n")
        await_true(lambda: service.log().count(" 200 ") == 10)
        whole = [connection for connection in connections if len(receive(connection)) > size]
    assert 1 <= len(whole) < 8


@pytest.fixture
def few_files():
    """Lets a child process that starts have few files open, as some systems do."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_connections_than_open_files_leave_it_answering_and_quiet(few_files):
    with contextlib.closing(Service("--drain-seconds=0")) as service:
        few_files()
        with contextlib.ExitStack() as idle:
            for _ in range(220):
                idle.enter_context(connect(service.port))
            assert requests.get(service.url + PATH).ok
        service.signal()
        status, out, err = service.end()
        assert (status, out.count("\n"), err) == (0, 2, "")


def test_no_control_character_and_no_long_path_reaches_the_log(start_service):
    service = start_service(code="server.TextHandler.get = lambda self: 1 / 0")
    target = b"?\xc2\x85x\xc2\x9b31m"
    for path in (PATH.encode() + target, b"/" + b"y" * 10_000, PATH.encode()):
        with connect(service.port) as connection:
            connection.sendall(b"GET " + path + b" HTTP/1.0\r\nHost: test\r\n\r\n")
            receive(connection)
    await_true(lambda: service.log().count("\n") == 4)
    lines = service.log().splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["400", "404", "500"]
    for line in [*lines, *service.errors().splitlines()]:
        assert line.isprintable() and line.isascii() and len(line) < 1000


@pytest.mark.parametrize("size", [2_000_000, 50_000_000])
def test_a_large_body_is_refused_and_the_client_reads_why(app_url, size):
    # It sends all before it reads: it may not be reset meanwhile.
    assert requests.post(app_url + PATH, data=b"x" * size).status_code == 413
    assert requests.get(app_url + PATH).status_code == 200


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n"])
@pytest.mark.parametrize("sent", [b"x", b"x" * 2_000_000], ids=["a part", "all"])
def test_a_large_body_is_refused_at_once_and_not_awaited_for_ever(start_service, more, sent):
    service = start_service(BODY_SECONDS=0.2)
    with connect(service.port) as connection:
        connection.sendall(POST + more + b"Content-Length: 2000000\r\n\r\n" + sent)
        answer = receive(connection)  # until it is closed
    assert answer.startswith(b"HTTP/1.1 413 ") and b"\r\nConnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    await_true(lambda: service.log().count(f" 413 POST {PATH} ") == 1)


def test_a_large_body_without_a_length_is_refused(app_url):
    def chunks():
        for _ in range(40):
            yield b"x" * 65536

    try:
        assert requests.post(app_url + PATH, data=chunks()).status_code == 400
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        pass  # closed while we were still sending
    assert requests.get(app_url + PATH).status_code == 200


MALFORMED = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "wrong version": b"GET / HTTP/9.9\r\nHost: test\r\n\r\n",
    "control characters in the path": b"GET /\x1b[31m HTTP/1.1\r\nHost: test\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two lengths": REQUEST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "length and chunks": REQUEST
    + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length no number": REQUEST + b"Content-Length: abc\r\n\r\n",
    "length a superscript": REQUEST + b"Content-Length: \xb2\r\n\r\n",
    "negative length": REQUEST + b"Content-Length: -5\r\n\r\n",
    "length beyond belief": REQUEST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n",
    "line feed in a header": REQUEST + b"X: a\nb\r\n\r\n",
    "length of control characters": REQUEST
    + b"Content-Length: \x9b31m"
    + b"\x9b" * 9000
    + b"\r\n\r\n",
    "coding of control characters": POST + b"Content-Encoding: \x9b31m\r\nContent-Length: 1\r\n"
    b"Connection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\nx",
    "another method, a large body": REQUEST.replace(b"GET", b"BREW")
    + b"Content-Length: 2000000\r\n\r\nx",
    "huge header": REQUEST + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "form that does not parse": POST + b"Connection: close\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 4\r\n\r\nabcd",
}


@pytest.fixture(scope="module")
def sturdy_service(fork_server):
    """A service that must still be there, without a traceback, after all that it was sent."""
    with contextlib.closing(Service("--drain-seconds=0", launch=fork_server.launch)) as service:
        yield service
        service.signal()
        status, _, err = service.end()
        assert status == 0
        assert "Traceback" not in err
        for line in err.splitlines():
            assert line.isprintable() and line.isascii() and len(line) < 1000


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_http_is_refused_with_an_answer_or_a_line_never_a_500(sturdy_service, data):
    told = len(sturdy_service.errors())
    with connect(sturdy_service.port) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused already
        answer = receive(connection)
    assert answer == b"" or re.match(rb"HTTP/1.1 (400|405|413) ", answer)
    assert answer.count(b"HTTP/1.1 ") <= 1
    await_true(lambda: answer or len(sturdy_service.errors()) > told)
    assert requests.get(sturdy_service.url + PATH).ok


@pytest.mark.parametrize("target", [f"http://test{PATH}", f"http://test:80{PATH}?x=http://a/b"])
def test_a_target_may_name_the_host_as_proxies_write_it(app_url, target):
    address = urllib.parse.urlsplit(app_url)
    with connect(address.port, address.hostname) as connection:
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode()
        )
        assert receive(connection).startswith(b"HTTP/1.1 200 ")


# Tornado's own, and left to it: what it refuses although HTTP allows it, its bare 400 without the
# release, its 100 to a client of HTTP/1.0.
TORNADO = {
    "a chunk's extension": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n",
        b"400",
    ),
    "a trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", b"400"),
    "a 100 for HTTP/1.0": (
        POST.replace(b"1.1", b"1.0") + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        b"100",
    ),
}


@pytest.mark.parametrize("data, status", TORNADO.values(), ids=TORNADO.keys())
def test_what_is_tornados_own_is_left_to_it(sturdy_service, data, status):
    with connect(sturdy_service.port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = receive(connection)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"X-Release" not in answer.partition(b"\r\n\r\n")[0]


def test_clients_that_stall_are_dropped_after_the_limit(start_service):
    service = start_service(IDLE_SECONDS=0.2, BODY_SECONDS=0.2)
    stalled = {
        "nothing": b"",
        "half a header": REQUEST,
        "half a body": POST + b"Content-Length: 100\r\n\r\nhalf",
        "byte by byte": b"G",
    }
    began = time.monotonic()
    connections = {name: connect(service.port) for name in stalled}
    for name, data in stalled.items():
        connections[name].sendall(data)

    def dropped():
        try:
            slow.sendall(b"G")
            return slow.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    with connections.pop("byte by byte") as slow:
        slow.settimeout(0.05)
        await_true(dropped)
    assert time.monotonic() - began >= 0.2
    for connection in connections.values():
        assert receive(connection) == b""  # closed, without an answer
        connection.close()
