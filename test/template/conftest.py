"""Fixtures of the template's tests, and which of them can run on this machine."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "parts"), str(HERE.parent.parent / "scripts")]

from pipelines import ROOT, DindHost, Pipeline  # noqa: E402


def pytest_configure(config):
    # Children inherit an ignored Ctrl-C, which `pytest ... &` in a script begins with.
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
    pipeline.first_deploy_image = pipeline.deploy_image
    yield pipeline
    pipeline.down()


@pytest.fixture(scope="session")
def releases(pipeline):
    """The images of releases in the registry of the pipeline's host, by name."""
    return pipeline.make_releases()


def missing_for_engine():
    """Say what the tests in engine/ lack on this machine, or return None."""
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


def in_engine(item):
    return item.path.parent.name == "engine"


# The files that take minutes. A worker that is free takes the next: the longest go first, so that
# all end at about the same time. The last test of test_pipeline_ends removes that host.
LONG = ["test_mesh", "test_fork", "test_register_runner", "test_deploy", "test_deploy_model"]
LAST = ["test_pipeline", "test_pipeline_ends"]


def place(item):
    """Return where a test stands in the order: the service's tests, fast ones, long, others."""
    if not in_engine(item):
        return (HERE in item.path.parents,)
    order = [*LONG, "", *LAST]
    name = item.path.stem if item.path.stem in order else ""
    return (2, order.index(name))


def pytest_collection_modifyitems(config, items):
    """Order the tests; deselect what cannot run here, and let the summary say why."""
    items.sort(key=place)
    config.left_out = []
    for kind, missing, concerns in (
        ("in engine", missing_for_engine, in_engine),
        ("marked lab", missing_for_lab, lambda item: item.get_closest_marker("lab")),
        ("marked mesh", missing_for_mesh, lambda item: item.get_closest_marker("mesh")),
    ):
        left_out = [item for item in items if concerns(item)]
        if not left_out or not (reason := missing()):
            continue
        config.left_out.append(f"left out {len(left_out)} tests {kind}: {reason}")
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        if HERE in item.path.parents:
            # The first in engine/ to need a host makes it, with a push; on a busy machine others
            # may need a minute, too.
            item.add_marker(pytest.mark.timeout(900 if in_engine(item) else 300))


def pytest_terminal_summary(terminalreporter, config):
    for line in getattr(config, "left_out", []):
        terminalreporter.write_line(line)
