"""Clients that ask for more than the service can hold cost it nothing that others would miss.

Here with small limits; test/template attacks the released image with the real ones.
"""

import contextlib
import resource

import pytest
import requests

from support import PATH, Service, await_true, connect, receive

POST = f"POST {PATH} HTTP/1.1\r\nHost: test\r\n".encode()
KEPT = f"GET {PATH} HTTP/1.1\r\nHost: test\r\n\r\n".encode()


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
    service = start_service(MEMORY=5_000_000, IDLE=20_000)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(service.port)) for _ in range(10)]
        for connection in connections:
            connection.sendall(POST + header)
        # Which four stay depends on the order in which their headers are read.
        await_true(lambda: sum(map(is_closed, connections)) == 6)
        assert requests.post(service.url + PATH, data=b"x" * 1000).ok
        assert sum(map(is_closed, connections)) == 6


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
