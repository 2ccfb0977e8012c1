"""Fixtures of several test files."""

import pytest
import requests

from support import PATH, RUNNING, DoesNotStart, Service, await_true


def answers(url):
    try:
        return requests.get(url, timeout=5)
    except requests.RequestException:
        return None


@pytest.fixture(scope="session", autouse=True)
def first_service():
    """A service as a child process; where there is none to be tested, the run ends at once.

    Its last lines say why.
    """
    try:
        service = Service("--drain-seconds=0")
    except DoesNotStart as error:
        pytest.exit(f"the service does not start: {error}", returncode=1)
    try:
        await_true(lambda: not RUNNING or answers(RUNNING + PATH))
    except AssertionError:
        pytest.exit(f"nobody answers at {RUNNING}: see the log of its container", returncode=1)
    yield service
    service.close()


@pytest.fixture
def start_service():
    """Starts services as child processes; kills those that still run after the test."""
    services = []

    def start(*options, **constants):
        services.append(Service(*options, **constants))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture(scope="session")
def app_url(first_service):
    """Address of the service under test: TEST_SERVICE_URL, or else that of a child process."""
    return RUNNING or first_service.url
