"""How the service ends: drained on SIGTERM, at once when a person asks for it."""

import contextlib
import signal
import time

import pytest
import requests

from load import Load
from support import PATH, await_true, connect, receive

GET = f"GET {PATH} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
POST = f"POST {PATH} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n".encode()


@contextlib.contextmanager
def half_request(service):
    """A connection whose request is in flight: one byte is missing."""
    with connect(service.port) as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")  # so the header has been read
        connection.sendall(b"x")
        yield connection


def refuses_connections(service):
    try:
        connect(service.port).close()
    except ConnectionError:  # refused, or reset when the listener closes before it is accepted
        return True


def draining(service):
    """True when the service has seen SIGTERM: it asks for the connection to be closed."""
    return requests.get(service.url + PATH).headers.get("Connection") == "close"


def test_sigterm_loses_no_request_under_load(start_service):
    service = start_service("--drain-seconds=600")
    # As behind a load balancer, which stops sending before the drain time is over.
    with Load(service.url + PATH) as load:
        await_true(lambda: load.total() > 50)
        service.signal()
        await_true(lambda: draining(service))
        drained_from = load.total()
        await_true(lambda: load.total() > drained_from + 50)
    assert not load.failed, load.losses()
    assert service.errors() == ""


def test_while_it_drains_it_accepts_and_answers_with_connection_close(start_service):
    service = start_service("--drain-seconds=600")
    kept_alive = requests.Session()
    assert "Connection" not in kept_alive.get(service.url + PATH).headers
    service.signal()
    await_true(lambda: draining(service))
    assert kept_alive.get(service.url + PATH).headers["Connection"] == "close"


def test_it_ends_when_the_drain_is_over(start_service):
    short, long = start_service("--drain-seconds=0.2"), start_service("--drain-seconds=600")
    long.signal()
    await_true(lambda: draining(long))
    began = time.monotonic()
    short.signal()
    assert short.end()[0] == 0
    assert time.monotonic() - began >= 0.2
    assert draining(long)


def test_what_is_in_flight_after_the_drain_is_finished(start_service):
    service = start_service("--drain-seconds=0", FINISH_SECONDS=600)
    with half_request(service) as connection:
        service.signal()
        await_true(lambda: refuses_connections(service))
        connection.sendall(b"x")
        assert receive(connection).startswith(b"HTTP/1.1 200 ")
    assert service.end()[0] == 0


def test_an_answer_is_in_flight_until_its_last_byte_has_been_sent(start_service):
    # More than the buffers of both sides hold, for a client that does not read before the end.
    size = 8_000_000
    service = start_service(
        "--drain-seconds=0",
        code=f"server.TextHandler.get = lambda self: self.write({size} * b'x')",
        FINISH_SECONDS=600,
    )
    with connect(service.port) as connection:
        connection.sendall(GET)
        answer = connection.recv(1000)
        service.signal()
        await_true(lambda: refuses_connections(service))
        answer += receive(connection)
    assert len(answer.partition(b"\r\n\r\n")[2]) == size
    assert service.end()[0] == 0


def test_what_does_not_finish_in_time_is_given_up(start_service):
    short = start_service("--drain-seconds=0", FINISH_SECONDS=0.1)
    long = start_service("--drain-seconds=0", FINISH_SECONDS=600)
    with half_request(short), half_request(long) as connection:
        long.signal()
        await_true(lambda: refuses_connections(long))
        began = time.monotonic()
        short.signal()
        assert short.end()[0] == 0
        assert time.monotonic() - began >= 0.1
        connection.sendall(b"x")
        assert receive(connection).startswith(b"HTTP/1.1 200 ")


def test_ctrl_c_ends_it_at_once_when_nothing_is_in_flight(start_service):
    service = start_service("--drain-seconds=600", FINISH_SECONDS=600)
    with connect(service.port) as connection:
        connection.sendall(GET)
        assert connection.recv(1000)  # an idle connection is nothing in flight
        service.signal(signal.SIGINT)
        status, _, err = service.end()
        assert (status, err) == (0, "")


def test_ctrl_c_lets_a_request_in_flight_finish(start_service):
    service = start_service("--drain-seconds=600", FINISH_SECONDS=600)
    with half_request(service) as connection:
        service.signal(signal.SIGINT)
        await_true(lambda: refuses_connections(service))
        connection.sendall(b"x")
        assert receive(connection).startswith(b"HTTP/1.1 200 ")
    assert service.end()[0] == 0


@pytest.mark.parametrize(
    "first, second", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)]
)
def test_a_second_signal_ends_it_at_once(start_service, first, second):
    service = start_service("--drain-seconds=600", FINISH_SECONDS=600)
    with half_request(service):
        service.signal(first)
        if first == signal.SIGTERM:
            await_true(lambda: draining(service))
        else:
            await_true(lambda: refuses_connections(service))
        service.signal(second)
        assert service.end()[0] == 128 + second
