"""Fixtures of several test files, and which tests can run on this machine."""

import os
import shutil
import subprocess

import pytest

from support import Pipeline, Service, ROOT


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
def app_url():
    """Address of the service under test: APP_URL, or else that of a child process."""
    if "APP_URL" in os.environ:
        yield os.environ["APP_URL"].rstrip("/")
        return
    service = Service("--drain-seconds=0")
    yield service.url
    service.signal()
    service.end()
    service.close()


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """The pipeline of this working tree after its first push; see its `first...`."""
    pipeline = Pipeline(tmp_path_factory.mktemp("pipeline") / "checkout")
    pipeline.first_commit = pipeline.commit("First")
    pipeline.first = pipeline.push()
    pipeline.first_image = pipeline.image
    yield pipeline
    pipeline.down()


def missing_for_docker():
    """Say what the docker tests lack on this machine, or return None."""
    for command in ("docker", "git", "bash", "rsync", "npm"):
        if not shutil.which(command):
            return f"{command} is not installed"
    if subprocess.run(["docker", "version"], capture_output=True).returncode:
        return "no Docker engine answers"


def missing_for_lab():
    if not (ROOT.parent / "shared/lab/up").exists():
        return "there is no ../shared/lab"
    for command in ("socat", "sshd", "ssh-keygen", "nginx"):
        if not shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin"):
            return f"{command} is not installed"


def pytest_collection_modifyitems(config, items):
    """Deselect what cannot run here, for a reason that the summary gives in a line."""
    config.left_out = []
    for mark, missing in (("docker", missing_for_docker), ("lab", missing_for_lab)):
        left_out = [item for item in items if item.get_closest_marker(mark)]
        if config.getoption("markexpr") or not left_out or not (reason := missing()):
            continue
        config.left_out.append(f"left out {len(left_out)} tests marked {mark}: {reason}")
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter, config):
    for line in config.left_out:
        terminalreporter.write_line(line)
