"""The running service over HTTP: the one at APP_URL, or else a child process."""

import contextlib
import os
import resource
import socket
import time

import pytest
import requests

from load import TEXT
from support import Service, connect, receive

REQUEST = b"GET /test HTTP/1.1\r\nHost: test\r\n"


def test_get_and_post_answer_the_text(app_url):
    for response in (requests.get(f"{app_url}/test"), requests.post(f"{app_url}/test", data="x")):
        assert (response.status_code, response.text) == (200, TEXT)
        assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"


def test_the_expected_release_answers(app_url):
    # In the pipeline: the release container was built from this commit.
    release = os.environ.get("CI_COMMIT_SHA", "dev") if "APP_URL" in os.environ else "dev"
    assert requests.get(f"{app_url}/test").headers["X-Release"] == release


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/", 404), ("POST", "/test/", 404), ("DELETE", "/test", 405), ("HEAD", "/test", 405),
])
def test_everything_else_is_refused(app_url, method, path, status):
    response = requests.request(method, app_url + path)
    assert response.status_code == status
    assert "X-Release" in response.headers


def test_connections_are_kept_alive(app_url):
    with requests.Session() as session:
        ports = set()
        for _ in range(3):
            response = session.get(f"{app_url}/test", stream=True)
            ports.add(response.raw.connection.sock.getsockname())
            assert response.text == TEXT  # read to the end, which gives the connection back
    assert len(ports) == 1


def test_a_large_body_is_refused_and_the_next_request_served(app_url):
    assert requests.post(f"{app_url}/test", data=b"x" * 5_000_000).status_code == 413
    assert requests.get(f"{app_url}/test").status_code == 200


def test_a_large_body_without_a_length_is_refused(app_url):
    def chunks():
        for _ in range(40):
            yield b"x" * 65536

    try:
        assert requests.post(f"{app_url}/test", data=chunks()).status_code == 400
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        pass  # closed while we were still sending
    assert requests.get(f"{app_url}/test").status_code == 200


MALFORMED = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /test\r\n\r\n",
    "wrong version": b"GET /test HTTP/9.9\r\nHost: test\r\n\r\n",
    "control characters in the path": b"GET /\x1b[31m HTTP/1.1\r\nHost: test\r\n\r\n",
    "no host": b"GET /test HTTP/1.1\r\n\r\n",
    "two lengths": REQUEST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "length and chunks": REQUEST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length no number": REQUEST + b"Content-Length: abc\r\n\r\n",
    "length a superscript": REQUEST + b"Content-Length: \xb2\r\n\r\n",
    "negative length": REQUEST + b"Content-Length: -5\r\n\r\n",
    "length beyond belief": REQUEST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "bad chunk": REQUEST.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n",
    "line feed in a header": REQUEST + b"X: a\nb\r\n\r\n",
    "huge header": REQUEST + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "form that does not parse": b"POST /test HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 4\r\n\r\nabcd",
}


@pytest.fixture(scope="module")
def sturdy_service():
    """A service that must still be there, and have no traceback to show, after all that it was sent."""
    service = Service("--drain-seconds=0")
    yield service
    service.signal()
    status, _, err = service.end()
    service.close()
    assert status == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_http_is_refused_never_a_500(sturdy_service, data):
    with connect(sturdy_service.port) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass
        answer = receive(connection)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert requests.get(f"{sturdy_service.url}/test").text == TEXT


def test_clients_that_stall_are_dropped_after_the_limit(start_service):
    service = start_service(IDLE_SECONDS=0.2, BODY_SECONDS=0.2)
    stalled = {
        "nothing": b"",
        "half a header": REQUEST,
        "half a body": REQUEST.replace(b"GET", b"POST") + b"Content-Length: 100\r\n\r\nhalf",
        "byte by byte": b"G",
    }
    connections = {name: connect(service.port) for name in stalled}
    began = time.monotonic()
    for name, data in stalled.items():
        connections[name].sendall(data)
    slow = connections.pop("byte by byte")
    slow.settimeout(0.05)
    while time.monotonic() < began + 5:
        try:
            slow.sendall(b"G")
            if slow.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    assert 0.15 < time.monotonic() - began < 5
    for connection in connections.values():
        assert receive(connection) == b""  # closed, without an answer
        connection.close()
    slow.close()
    assert time.monotonic() - began < 5


@pytest.fixture
def open_files():
    """Sets how many files this process, or a child that it starts, may have open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_two_thousand_idle_connections_leave_it_answering(start_service, open_files):
    open_files(1024)  # what most systems give
    service = start_service()
    open_files(4096)
    with contextlib.ExitStack() as idle:
        for _ in range(2000):
            idle.enter_context(connect(service.port))
        assert requests.get(f"{service.url}/test", timeout=5).text == TEXT
