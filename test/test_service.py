"""The contract: what a service must do, whatever its framework, for all else here to work.

- `python server.py` listens on the port of the Dockerfile; it prints "listening on port N (release
  R)".
- Its options are --port (0 takes a free one) and --address.
- It runs as user 10001, writes no file (but below /dev/shm), and needs no more than 512 MB.
- GET and POST /test answer 200 when it can serve.
- Each answer to valid HTTP, 404 and 405 too, has the header X-Release: SERVICE_RELEASE, or "dev" if
  that is empty.
- It reads settings from APP_..., and secrets from the files that APP_SECRET_... name.
- Its log is standard output.
- After SIGTERM it goes on answering for DRAIN_SECONDS (5), with "Connection: close", finishes what
  is in flight within five seconds, and ends with status 0. SIGINT ends it without the wait.

Memory, files, settings and secrets are tried when it is deployed. A service that keeps the contract
needs none of the other tests here, which are of Tornado's handlers, options and limits.
"""

import contextlib
import os
import signal
import time

import pytest
import requests

from load import Load
from support import PATH, RUNNING, Service, await_true


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


@pytest.fixture
def draining():
    """`python server.py`, told by the environment to answer for two seconds after SIGTERM."""
    service = Service(env={"DRAIN_SECONDS": "2", "SERVICE_RELEASE": ""})
    yield service
    service.close()


def test_it_says_where_it_listens_and_what_release_it_is(first_service, draining):
    for service, release in ((first_service, "0123abcd"), (draining, "dev")):
        first_line = service.log().splitlines()[0]
        assert first_line == f"listening on port {service.port} (release {release})"
        assert requests.get(service.url + PATH).headers["X-Release"] == release


def test_after_sigterm_it_answers_for_the_drain_time_and_ends(draining):
    with Load(draining.url + PATH) as load:
        await_true(lambda: load.total() > 20)
        began, answered = time.monotonic(), load.total()
        draining.signal()
        await_true(lambda: requests.get(draining.url + PATH).headers.get("Connection") == "close")
        await_true(lambda: load.total() > answered + 20)  # a load balancer still sends requests
    assert not load.failed, load.losses()
    assert draining.end()[0] == 0
    assert 2 <= time.monotonic() - began < 10


def test_sigint_ends_it_without_the_drain():
    with contextlib.closing(Service(env={"DRAIN_SECONDS": "600"})) as service:
        service.signal(signal.SIGINT)
        assert service.end()[0] == 0
