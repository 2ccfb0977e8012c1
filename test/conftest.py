"""Fixtures of several test files."""

import contextlib

import pytest
import requests

from forkserver import ForkServer
from support import PATH, RUNNING, DoesNotStart, Service, await_true


def answers(url):
    try:
        requests.get(url, timeout=5)
        return True
    except requests.RequestException:
        return False


def end_run(session, what, why):
    """Fail this test and begin no other; pytest.exit() would not tell the cause from a worker."""
    session.shouldfail = f"{what}: {why}"  # the last lines of the run
    raise pytest.fail.Exception(what, pytrace=False) from None


@pytest.fixture(scope="session", autouse=True)
def first_service(request):
    """`python server.py`, release 0123abcd; where there is none to be tested, the run ends at once.

    Its last lines say why.
    """
    try:
        service = Service(env={"SERVICE_RELEASE": "0123abcd"})
    except DoesNotStart as error:
        end_run(request.session, "the service does not start", error)
    with contextlib.closing(service):
        url = RUNNING or service.url
        try:
            await_true(lambda: answers(url + PATH))
        except AssertionError:
            log = "see the log of its container" if RUNNING else f"its log:\n{service.log()}"
            end_run(request.session, f"nobody answers at {url}", log)
        yield service


@pytest.fixture(scope="session")
def fork_server():
    """Launches services in no time."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def start_service(fork_server):
    """Starts services as child processes; kills those that still run after the test."""
    services = []

    def start(*options, **changes):
        services.append(Service(*options, launch=fork_server.launch, **changes))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture(scope="session")
def app_url(first_service):
    """Address of the service under test: TEST_SERVICE_URL, or else that of a child process."""
    return RUNNING or first_service.url
