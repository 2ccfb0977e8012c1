"""Fixtures of the template's tests, and which of them can run on this machine."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from pipelines import ROOT, DindHost, Pipeline

HERE = Path(__file__).parent


def pytest_configure(config):
    # Children inherit an ignored Ctrl-C, which `pytest ... &` in a script begins with.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "docker: needs Docker; works only in throwaway containers")
    config.addinivalue_line("markers", "lab: needs ../shared/lab")
    config.addinivalue_line("markers", "mesh: needs a kernel with IPVS, or ../shared/lab")


@pytest.fixture(scope="session", autouse=True)
def first_service():
    """Nothing: these tests need no service that starts on this machine."""


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """The pipeline of this working tree after its first push; see its `first...`."""
    pipeline = Pipeline(tmp_path_factory.mktemp("pipeline") / "checkout")
    pipeline.first_commit = pipeline.commit("First")
    pipeline.first = pipeline.push()
    pipeline.first_image, pipeline.first_test_image = pipeline.image, pipeline.test_image
    yield pipeline
    pipeline.down()


@pytest.fixture(scope="session")
def releases(pipeline):
    """The images of releases in the registry of the pipeline's host, by name."""
    return pipeline.make_releases("registry.test")


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
    for command in ("socat", "sshd", "ssh-keygen"):
        if not shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin"):
            return f"{command} is not installed"


def missing_for_mesh():
    if not DindHost.routes() and (reason := missing_for_lab()):
        return f"the kernel has no IPVS (modprobe ip_vs), and {reason}"


def pytest_collection_modifyitems(config, items):
    """Put the service's tests first; deselect what cannot run here, and let the summary say why."""
    items.sort(key=lambda item: item.path.parent == HERE)
    config.left_out = []
    for mark, missing in (
        ("docker", missing_for_docker),
        ("lab", missing_for_lab),
        ("mesh", missing_for_mesh),
    ):
        left_out = [item for item in items if item.get_closest_marker(mark)]
        if config.getoption("markexpr") or not left_out or not (reason := missing()):
            continue
        config.left_out.append(f"left out {len(left_out)} tests marked {mark}: {reason}")
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter, config):
    for line in config.left_out:
        terminalreporter.write_line(line)
