"""Fixtures of several test files."""

import pytest
import requests

from forkserver import ForkServer
from support import PATH, RUNNING, DoesNotStart, Service, await_true


def answers(url):
    try:
        return requests.get(url, timeout=5)
    except requests.RequestException:
        return None


@pytest.fixture(scope="session", autouse=True)
def first_service():
    """`python server.py`, release 0123abcd; where there is none to be tested, the run ends at once.

    Its last lines say why.
    """
    try:
        service = Service(env={"SERVICE_RELEASE": "0123abcd"})
    except DoesNotStart as error:
        pytest.exit(f"the service does not start: {error}", returncode=1)
    try:
        await_true(lambda: not RUNNING or answers(RUNNING + PATH))
    except AssertionError:
        pytest.exit(f"nobody answers at {RUNNING}: see the log of its container", returncode=1)
    yield service
    service.close()


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
