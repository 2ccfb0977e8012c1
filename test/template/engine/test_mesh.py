"""scripts/deploy through Swarm's routing mesh, under load, on throwaway hosts.

These are containers where the kernel has IPVS, else hosts of the lab, which are slow: each has one
slow processor, on which Python takes seconds to start.
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

from pipelines import Deployment, DindHost, LabHost
from support import ROOT, await_true

pytestmark = pytest.mark.mesh

PAUSE = "0.2"  # seconds between the requests of each of four clients


def losses(result):
    """Say how many requests failed, and how the first three did."""
    return f"{len(result['failed'])} requests failed: {result['failed'][:3]}"


class Mesh:
    """A host to which releases are deployed, and the load on it."""

    def __init__(self, host, directory, releases, registry):
        self.host, self.directory, self.releases = host, directory, releases
        self.docker, self.run = host.docker, host.run
        self.url = self.url_of(host)
        shutil.copytree(ROOT / "scripts", directory / "scripts")
        stack, before = directory / "scripts/stack.yml", "    stop_grace_period"
        head, found, tail = stack.read_text().partition(before)
        assert found
        stack.write_text(f"{head}    healthcheck: {{timeout: 30s}}\n{before}{tail}")
        docker = {"DOCKER_CONFIG": str(directory / "docker")}
        self.env = {**host.env, **docker, "DEPLOY_TIMEOUT": "240", **registry}

    @staticmethod
    def url_of(host):
        return f"http://{host.address}:20200/test"

    def start(self, release, *arguments, **env):
        """Start scripts/deploy, as the leader of a process group; return the process."""
        return subprocess.Popen(
            [*self.host.network, sys.executable, "scripts/deploy", *arguments],
            cwd=self.directory,
            start_new_session=True,
            text=True,
            env={**self.env, "DEPLOY_IMAGE": self.releases.get(release, release), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def deploy(self, release, *arguments, **env):
        return Deployment(
            [*self.host.network, sys.executable, "scripts/deploy", *arguments],
            cwd=self.directory,
            timeout=400,
            env={**self.env, "DEPLOY_IMAGE": self.releases.get(release, release), **env},
        )

    @contextlib.contextmanager
    def load(self, url=None):
        """Put load on it from another process; the end of the block fills `result`, see load.py."""
        process = subprocess.Popen(
            [*self.host.network, sys.executable, ROOT / "test/load.py", url or self.url, PAUSE],
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

    def nodes(self, service="app_server"):
        """Return the node of each running replica."""
        nodes = '--format={{if eq .DesiredState "Running"}}{{.Node}}{{end}}'
        running = ("service", "ps", "--filter=desired-state=running", nodes, service)
        return sorted(self.docker(*running).stdout.split())

    def update_state(self):
        state = "--format={{with .UpdateStatus}}{{.State}}{{end}}"
        return self.docker("service", "inspect", state, "app_server").stdout.strip()

    def answering(self):
        curl = ("curl", "--silent", "--max-time", "10", "--include", self.url)
        answer = self.run(*curl, check=False).stdout
        return (re.findall(r"^X-Release: (\S+)", answer, re.MULTILINE) or [None])[0]


@pytest.fixture(scope="module")
def kind():
    return DindHost if DindHost.routes() else LabHost


@pytest.fixture(scope="module")
def registry(pipeline, kind):
    """CI's settings for a registry that the hosts reach, and the pipeline's host."""
    with kind.registry_for(pipeline) as settings:
        yield settings


@pytest.fixture(scope="module")
def releases(pipeline, registry):
    return pipeline.make_releases(registry["CI_REGISTRY"])


@pytest.fixture(scope="module")
def swarm(tmp_path_factory, kind, releases, registry):
    """A host that is a swarm, and nothing runs on it."""
    host = kind()
    try:
        init = ("swarm", "init", "--advertise-addr", host.address)
        state = ("info", "--format={{.Swarm.LocalNodeState}}")
        # Docker waits 20 s for it, which is little on a slow host.
        host.docker(*init, check=False)
        await_true(lambda: host.docker(*state).stdout == "active\n", seconds=120)
        yield Mesh(host, tmp_path_factory.mktemp("mesh"), releases, registry)
    finally:
        host.end()


@pytest.fixture(scope="module")
def mesh(swarm):
    """A host on which release 1 has been deployed."""
    swarm.first = swarm.deploy("1")
    return swarm


@pytest.fixture(scope="module")
def other(mesh, kind):
    """Another host, which has joined the swarm."""
    other = kind(2)
    try:
        token = mesh.docker("swarm", "join-token", "--quiet", "worker").stdout.strip()
        other.docker("swarm", "join", "--token", token, f"{mesh.host.address}:2377")
        yield other
    finally:
        other.end()


@pytest.fixture
def loaded(mesh):
    """That host under load; the test fails when a request does."""
    with mesh.load() as result:
        yield mesh
    print(result["answered"])
    assert not result["failed"], losses(result)


def test_a_host_in_a_network_that_swarm_takes_for_its_own_is_refused_and_told_how(swarm):
    # Clients of that network would get no answer: it would go to the routing mesh's own network.
    interface = swarm.host.interface
    for address in ("10.0.0.7/24", "10.255.255.7/24"):  # the latter is the first remedy
        swarm.host.run_on_it("ip", "address", "add", address, "dev", interface)

    def state():
        listed = [swarm.docker(kind, "ls").stdout for kind in ("service", "config", "network")]
        return listed, swarm.docker("network", "inspect", "ingress").stdout

    before = state()
    reason = swarm.deploy("1").reason()
    assert f"the network 10.0.0.0/24 of {interface} overlaps Swarm's 10.0.0.0/24" in reason
    assert state() == before
    remedy = re.search(r"\(on the host: (.*)\)$", reason)[1]
    swarm.run("sh", "-ec", remedy, input="y\n")  # docker asks back
    # The addresses stay: after the remedy, such a host is as good as another to the next tests.


def test_a_release_is_deployed_to_two_replicas_behind_the_mesh(mesh):
    assert mesh.first.status == 0, mesh.first.output
    answers = f"Release 1 answers at {mesh.url}\n    app_server 2/2\n    10 requests checked"
    assert answers in mesh.first.output
    ports = mesh.docker("service", "inspect", "--format={{json .Endpoint.Ports}}", "app_server")
    [port] = json.loads(ports.stdout)
    assert (port["PublishedPort"], port["TargetPort"]) == (20200, 8744)
    assert port["PublishMode"] == "ingress"


def test_updates_in_a_row_lose_no_request(loaded):
    for release in ("2", "3", "4"):
        update = loaded.deploy(release)
        assert update.status == 0, update.output
        assert loaded.answering() == release


@pytest.mark.parametrize(
    "release, env, words",
    [
        pytest.param("crash", {}, "no database", id="crashes at start"),
        pytest.param("unhealthy", {"DEPLOY_TIMEOUT": "60"}, "unhealthy", id="never gets healthy"),
        pytest.param("wrong", {}, "release other answers at", id="answers as another"),
    ],
)
def test_a_release_loses_no_request_that(loaded, release, env, words):
    before = loaded.answering()
    failed = loaded.deploy(release, **env)
    assert words in failed.output
    assert failed.reason()
    assert failed.seconds < 300  # twice what a slow processor takes beside other tests
    assert loaded.answering() == before


def test_a_cancelled_job_loses_no_request(loaded):
    before = loaded.answering()
    process = loaded.start("2")
    await_true(lambda: loaded.update_state() == "updating", seconds=60)
    os.killpg(process.pid, signal.SIGTERM)  # as a runner does: to every process of the job
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "deploy: cancelled" in output, output
    await_true(lambda: loaded.update_state() == "completed", seconds=240)
    assert loaded.answering() == before


def test_two_jobs_at_once_end_with_one_of_their_releases(loaded):
    processes = {release: loaded.start(release) for release in ("2", "3")}
    outputs = [process.communicate(timeout=600)[0] for process in processes.values()]
    states = {release: process.returncode for release, process in processes.items()}
    assert set(states.values()) in ({0}, {0, 1}), outputs
    assert states.get(loaded.answering()) == 0


def test_rollback_by_hand_loses_no_request(loaded):
    before = loaded.answering()
    back = loaded.deploy(before, "--rollback")
    release = re.search(r"Going back to release (\d)", back.output)[1]
    assert back.status == 0 and loaded.answering() == release != before, back.output


def test_scaling_from_two_to_six_replicas_and_back_loses_no_request(loaded):
    release = loaded.answering()
    for replicas in ("6", "2"):
        scaled = loaded.deploy(release, DEPLOY_REPLICAS=replicas)
        assert scaled.status == 0, scaled.output
        assert f"app_server {replicas}/{replicas}\n    10 requests checked" in scaled.output


# --- Two hosts

EACH = {"DEPLOY_STACK": "each", "DEPLOY_PORT": "20300", "DEPLOY_PUBLISH_MODE": "host"}


def test_in_mode_host_each_node_that_is_ready_has_a_replica(mesh, other):
    for availability, nodes in (
        ("active", [mesh.host.name, other.name]),
        ("drain", [mesh.host.name]),
    ):
        mesh.docker("node", "update", f"--availability={availability}", other.name)
        try:
            run = mesh.deploy("1", **EACH)
        finally:
            mesh.docker("node", "update", "--availability=active", other.name)
        assert run.status == 0, run.output
        assert f"each_server {len(nodes)}/{len(nodes)}\n    10 requests checked" in run.output
        assert mesh.nodes("each_server") == nodes


def test_when_one_of_two_hosts_is_cut_off_the_other_goes_on(mesh, other):
    # Requests that the mesh sends to a lost replica fail until Swarm notices the loss: nothing can
    # prevent that.
    here, there = mesh.host.name, other.name
    spread = mesh.deploy(mesh.answering(), DEPLOY_REPLICAS="4")
    assert spread.status == 0, spread.output
    assert mesh.nodes() == [here, here, there, there]
    with mesh.load() as result, mesh.load(mesh.url_of(other)) as result_there:
        time.sleep(5)
    assert not result["failed"], losses(result)
    assert not result_there["failed"], losses(result_there)

    with mesh.load() as result:
        time.sleep(2)
        other.cut_off()
        await_true(lambda: mesh.nodes() == [here] * 4, seconds=120)
        time.sleep(20)  # in which nothing more may fail
    lost = [failure[0] for failure in result["failed"]]
    first, last = min(lost, default=0), max(lost, default=0)
    print(
        f"{len(lost)} requests lost, from {first} s to {last} s, of {result['answered']}; "
        f"the slowest answer took {result['slowest']} s"
    )
    assert last < 60, losses(result)
    assert mesh.answering()

    one = mesh.deploy("2", **EACH)
    assert one.status == 0 and "each_server 1/1" in one.output, one.output
    assert mesh.nodes("each_server") == [here]
