"""scripts/deploy through Swarm's routing mesh, under load, on throwaway hosts of the lab.

The kernel of these hosts can route. Slow: a host has one slow processor, on which Python takes
seconds to start.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipelines import Deployment, LabHost
from support import ROOT, await_true

pytestmark = [pytest.mark.docker, pytest.mark.lab]

PAUSE = "0.2"  # seconds between the requests of each of four clients


def losses(result):
    """Say how many requests failed, and how the first three did."""
    return f"{len(result['failed'])} requests failed: {result['failed'][:3]}"


class Mesh(LabHost):
    """A lab host to which releases are deployed, and the load on it."""

    def __init__(self, directory, releases):
        super().__init__()
        shutil.copytree(ROOT / "scripts", directory / "scripts")
        self.directory, self.releases = directory, releases
        self.url = f"http://{self.address}:20200/test"
        self.env.update(
            DOCKER_CONFIG=str(directory / "docker"),
            DEPLOY_HEALTH_TIMEOUT="30s",
            DEPLOY_TIMEOUT="120",
            CI_REGISTRY=self.settings["LAB_REGISTRY"],
            CI_REGISTRY_USER=self.settings["LAB_REGISTRY_USER"],
            CI_REGISTRY_PASSWORD=self.settings["LAB_REGISTRY_PASSWORD"],
        )

    def start(self, release, **env):
        """Start scripts/deploy, as the leader of a process group; return the process."""
        return subprocess.Popen(
            [*self.network, "scripts/deploy"],
            cwd=self.directory,
            start_new_session=True,
            text=True,
            env={**self.env, "DEPLOY_IMAGE": self.releases.get(release, release), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def deploy(self, release, **env):
        return Deployment(
            [*self.network, "scripts/deploy"],
            cwd=self.directory,
            timeout=400,
            env={**self.env, "DEPLOY_IMAGE": self.releases.get(release, release), **env},
        )

    @contextlib.contextmanager
    def load(self, url=None):
        """Put load on it from another process; the end of the block fills `result`, see load.py."""
        process = subprocess.Popen(
            [*self.network, sys.executable, ROOT / "test/load.py", url or self.url, PAUSE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        result = {}
        process.stdout.readline()
        try:
            yield result
        finally:
            result.update(json.loads(process.communicate("")[0]))

    def nodes(self):
        """Return the node of each running replica."""
        nodes = '--format={{if eq .DesiredState "Running"}}{{.Node}}{{end}}'
        running = ("service", "ps", "--filter=desired-state=running", nodes, "app")
        return self.docker(*running).stdout.split()

    def update_state(self):
        state = "--format={{with .UpdateStatus}}{{.State}}{{end}}"
        return self.docker("service", "inspect", state, "app").stdout

    def answering(self):
        curl = ("curl", "--silent", "--max-time", "10", "--include", self.url)
        answer = self.run(*curl, check=False).stdout
        return (re.findall(r"^X-Release: (\S+)", answer, re.MULTILINE) or [None])[0]


@pytest.fixture(scope="module")
def releases(pipeline):
    show = ["sh", "-c", f". {LabHost.lab}/settings; set"]
    settings = subprocess.run(show, capture_output=True, text=True).stdout
    Mesh.settings = dict(re.findall(r"^(LAB_\w+)='?(.*?)'?$", settings, re.MULTILINE))
    registry, user = Mesh.settings["LAB_REGISTRY"], Mesh.settings["LAB_REGISTRY_USER"]
    login = ("login", "--username", user, "--password-stdin", registry)
    pipeline.docker(*login, input=Mesh.settings["LAB_REGISTRY_PASSWORD"])
    return pipeline.make_releases(registry)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory, releases):
    """A host on which release 1 has been deployed."""
    mesh = Mesh(tmp_path_factory.mktemp("mesh"), releases)
    mesh.first = mesh.deploy("1")
    yield mesh
    mesh.end()


@pytest.fixture
def loaded(mesh):
    """That host under load; the test fails when a request does."""
    with mesh.load() as result:
        yield mesh
    print(result["answered"])
    assert not result["failed"], losses(result)


def test_a_release_is_deployed_to_two_replicas_behind_the_mesh(mesh):
    assert mesh.first.status == 0, mesh.first.output
    assert "Release 1 answers at http://10.88.0.1:20200/test\n    app: 2 x " in mesh.first.output
    ports = mesh.docker("service", "inspect", "--format={{json .Endpoint.Ports}}", "app").stdout
    [port] = json.loads(ports)
    assert (port["PublishedPort"], port["TargetPort"]) == (20200, 8744)
    assert port["PublishMode"] == "ingress"


def test_five_updates_in_a_row_lose_no_request(loaded):
    for release in ("2", "3", "4", "5", "6"):
        update = loaded.deploy(release)
        assert update.status == 0, update.output
        assert loaded.answering() == release


@pytest.mark.parametrize(
    "release, env, words",
    [
        pytest.param("crash", {}, "no database", id="crashes at start"),
        pytest.param("unhealthy", {"DEPLOY_TIMEOUT": "60"}, "unhealthy", id="never gets healthy"),
        pytest.param(
            "wrong",
            {},
            "release other answers at http://10.88.0.1:20200, not wrong",
            id="answers as another",
        ),
        pytest.param(
            "10.99.0.1:5000/group/trial@sha256:" + "0" * 64, {}, "cannot pull", id="does not exist"
        ),
        pytest.param(
            "10.99.0.1:9/group/trial@sha256:" + "0" * 64,
            {},
            "cannot pull",
            id="is in a registry that is down",
        ),
        pytest.param(
            "1", {"CI_REGISTRY_PASSWORD": "wrong"}, "cannot log in", id="needs other credentials"
        ),
    ],
)
def test_a_release_loses_no_request_that(loaded, release, env, words):
    before = loaded.answering()
    failed = loaded.deploy(release, **env)
    assert words in failed.output
    assert failed.reason()
    assert failed.seconds < 150
    assert loaded.answering() == before


def test_a_cancelled_job_loses_no_request(loaded):
    before = loaded.answering()
    process = loaded.start("2")
    await_true(lambda: "updating" in loaded.update_state(), seconds=60)
    os.killpg(process.pid, signal.SIGTERM)  # as a runner does: to every process of the job
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 1 and "deploy: cancelled" in output, output
    await_true(lambda: "rollback_completed" in loaded.update_state(), seconds=120)
    assert loaded.answering() == before


def test_two_jobs_at_once_end_with_one_of_their_releases(loaded):
    processes = {release: loaded.start(release) for release in ("2", "3")}
    outputs = [process.communicate(timeout=300)[0] for process in processes.values()]
    states = {release: process.returncode for release, process in processes.items()}
    assert set(states.values()) in ({0}, {0, 1}), outputs
    assert states.get(loaded.answering()) == 0


def test_the_same_release_again_changes_nothing(loaded):
    release = loaded.answering()
    before = loaded.docker("service", "ps", "--quiet", "app").stdout
    again = loaded.deploy(release)
    assert again.status == 0, again.output
    assert loaded.docker("service", "ps", "--quiet", "app").stdout == before


def test_scaling_from_two_to_six_replicas_and_back_loses_no_request(loaded):
    release = loaded.answering()
    for replicas in ("6", "2"):
        scaled = loaded.deploy(release, DEPLOY_REPLICAS=replicas)
        assert scaled.status == 0 and f"app: {replicas} x " in scaled.output, scaled.output


def test_rollback_by_hand_loses_no_request(loaded):
    before = loaded.answering()
    assert loaded.deploy("4").status == 0
    back = Deployment(
        [*loaded.network, "scripts/deploy", "--rollback"],
        cwd=loaded.directory,
        env=loaded.env,
        timeout=400,
    )
    assert back.status == 0 and f"Going back to release {before}" in back.output, back.output
    assert loaded.answering() == before


def test_when_one_of_two_hosts_is_cut_off_the_other_goes_on(mesh):
    # Requests that the mesh sends to a lost replica fail until Swarm notices the loss: nothing can
    # prevent that.
    other = LabHost(2)
    try:
        token = mesh.docker("swarm", "join-token", "--quiet", "worker").stdout.strip()
        other.docker("swarm", "join", "--token", token, f"{mesh.address}:2377")
        spread = mesh.deploy(mesh.answering(), DEPLOY_REPLICAS="4")
        assert spread.status == 0, spread.output
        assert "a deploy token named gitlab-deploy-token" in spread.output, spread.output
        assert sorted(mesh.nodes()) == ["lab-host1", "lab-host1", "lab-host2", "lab-host2"]
        with mesh.load() as here, mesh.load(f"http://{other.address}:20200/test") as there:
            time.sleep(5)
        assert not here["failed"], losses(here)
        assert not there["failed"], losses(there)

        with mesh.load() as result:
            time.sleep(2)
            mesh.run("ip", "link", "set", "lab-tap2", "down")
            await_true(lambda: mesh.nodes() == ["lab-host1"] * 4, seconds=120)
            time.sleep(20)  # in which nothing more may fail
    finally:
        other.end()
    lost = [failure[0] for failure in result["failed"]]
    first, last = min(lost, default=0), max(lost, default=0)
    print(
        f"{len(lost)} requests lost, from {first} s to {last} s, of {result['answered']}; "
        f"the slowest answer took {result['slowest']} s"
    )
    assert last < 60, losses(result)
    assert mesh.answering()
