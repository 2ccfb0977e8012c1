"""The running service over HTTP: the one at TEST_SERVICE_URL, or else a child process."""

import contextlib
import os
import socket
import time

import pytest
import requests

from support import PATH, RUNNING, Service, await_true, connect, receive

REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: test\r\n".encode()


def test_get_and_post_are_answered(app_url):
    assert requests.get(app_url + PATH).status_code == 200
    assert requests.post(app_url + PATH, data="x").status_code == 200


def test_the_release_that_was_built_answers(app_url):
    release = requests.get(app_url + PATH).headers["X-Release"]
    assert release == (os.environ.get("CI_COMMIT_SHA", release) if RUNNING else "0123abcd")


def test_what_is_not_there_is_refused(app_url):
    for response in (requests.get(app_url + "/nowhere"), requests.request("BREW", app_url + PATH)):
        assert response.status_code in (404, 405)
        assert "X-Release" in response.headers


def test_connections_are_kept_alive(app_url):
    with requests.Session() as session:
        ports = set()
        for path in (PATH, "/nowhere", PATH):
            response = session.get(app_url + path, stream=True)
            ports.add(response.raw.connection.sock.getsockname())
            assert response.text  # read to the end, which gives the connection back
    assert len(ports) == 1


def test_a_large_body_is_refused_and_the_next_request_served(app_url):
    assert requests.post(app_url + PATH, data=b"x" * 5_000_000).status_code == 413
    assert requests.get(app_url + PATH).status_code == 200


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
    "bad chunk": REQUEST.replace(b"GET", b"POST")
    + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n",
    "line feed in a header": REQUEST + b"X: a\nb\r\n\r\n",
    "huge header": REQUEST + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "form that does not parse": REQUEST.replace(b"GET", b"POST") + b"Connection: close\r\n"
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


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_http_is_refused_never_a_500(sturdy_service, data):
    with connect(sturdy_service.port) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused already
        answer = receive(connection)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert requests.get(sturdy_service.url + PATH).ok


def test_clients_that_stall_are_dropped_after_the_limit(start_service):
    service = start_service(IDLE_SECONDS=0.2, BODY_SECONDS=0.2)
    stalled = {
        "nothing": b"",
        "half a header": REQUEST,
        "half a body": REQUEST.replace(b"GET", b"POST") + b"Content-Length: 100\r\n\r\nhalf",
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
