"""scripts/deploy on a real engine, the pipeline's host: states, messages, what is left behind.

That host may have no routing mesh, so here the host itself publishes the releases: one replica, and
a gap at each update. test_mesh.py measures what users notice of a deployment.
"""

import json
import re

import pytest

from pipelines import Deployment
from support import await_true

pytestmark = pytest.mark.docker

REGISTRY = "registry.test"
PORT = "20300"


class Trial:
    """Runs scripts/deploy in the pipeline's host, for a service of its own."""

    env = {
        "DEPLOY_SERVICE": "trial",
        "DEPLOY_PORT": PORT,
        "DEPLOY_PORTS": "20310-20319",
        "DEPLOY_ADDRESS": "127.0.0.1",
        "DEPLOY_PUBLISH_MODE": "host",
        "DEPLOY_DRAIN_SECONDS": "1",
        "DEPLOY_TIMEOUT": "60",
    }

    def __init__(self, pipeline, releases):
        self.pipeline, self.releases = pipeline, releases
        pipeline.put_source("/tmp/trial")

    def command(self, *arguments, **env):
        settings = [f"--env={name}={value}" for name, value in {**self.env, **env}.items()]
        container = ["docker", "exec", "--workdir=/tmp/trial", *settings, self.pipeline.container()]
        return [*container, "scripts/deploy", *arguments]

    def deploy(self, release, **env):
        """Deploy a release by its name, or an image."""
        return self.run(DEPLOY_IMAGE=self.releases.get(release, release), **env)

    def run(self, *arguments, **env):
        return Deployment(self.command(*arguments, **env), timeout=200)

    def inspect(self, format, service="trial"):
        return self.pipeline.docker(
            "service", "inspect", f"--format={format}", service, check=False
        ).strip()

    def tasks(self):
        return self.pipeline.docker("service", "ps", "--quiet", "trial").split()

    def services(self):
        names = self.pipeline.docker("service", "ls", "--format={{.Name}}").split()
        return sorted(name for name in names if name.startswith("trial"))

    def answering(self, port=PORT):
        """Return the release that answers on a port of the host, or None."""
        return self.pipeline.answering(port)

    def in_service(self, *command, service="trial", check=True):
        """Run a command in a replica; return what it prints."""
        [container] = self.pipeline.docker("ps", "--quiet", f"--filter=name={service}\\.").split()
        return self.pipeline.docker("exec", container, *command, check=check)

    def images(self, repository):
        return self.pipeline.docker(
            "image", "ls", "--digests", "--format={{.Repository}}@{{.Digest}}", repository
        ).split()

    def remove(self):
        for service in self.services():
            self.pipeline.docker("service", "rm", service)

        def gone():
            return not self.pipeline.docker("ps", "--quiet", "--filter=name=trial")

        await_true(gone, seconds=30)


@pytest.fixture(scope="module")
def releases(pipeline):
    return pipeline.make_releases(REGISTRY)


@pytest.fixture
def trial(pipeline, releases):
    """An engine on which nothing of these tests runs."""
    trial = Trial(pipeline, releases)
    yield trial
    trial.remove()


@pytest.fixture
def deployed(trial):
    """An engine on which release 1 answers."""
    first = trial.deploy("1")
    assert first.status == 0, first.output
    return trial


@pytest.mark.parametrize(
    "release, env, words",
    [
        pytest.param("crash", {}, ["no database"], id="crashes at start"),
        pytest.param(
            "unhealthy",
            {"DEPLOY_TIMEOUT": "15"},
            ["not healthy", "(release unhealthy)"],
            id="never gets healthy",
        ),
        pytest.param("wrong", {}, ["release other answers", "not wrong"], id="answers as another"),
        pytest.param("2", {"RELEASE": "7"}, ["says that it is release 2, not 7"], id="is another"),
        pytest.param(
            f"{REGISTRY}/group/trial@sha256:{'0' * 64}",
            {},
            ["cannot pull", "not found"],
            id="does not exist",
        ),
        pytest.param(
            f"127.0.0.1:9/trial@sha256:{'0' * 64}",
            {},
            ["cannot pull", "refused"],
            id="is in a registry that is down",
        ),
    ],
)
def test_a_first_deployment_leaves_nothing_behind_when_the_release(trial, release, env, words):
    failed = trial.deploy(release, **env)
    assert all(word in failed.output for word in words), failed.output
    assert failed.reason() and failed.seconds < 90
    assert trial.services() == []


def test_the_old_release_answers_again_after_one_that_fails(deployed):
    failed = deployed.deploy("crash")
    assert "no database" in failed.output
    assert "(release 1 answers at http://127.0.0.1:20300)" in failed.reason()
    assert deployed.answering() == "1"


def test_the_summary_says_what_runs_where(trial):
    run = trial.deploy("1")
    assert re.search(
        r"^Release 1 answers at http://127\.0\.0\.1:20300/test\n"
        r"    trial: 1 x registry\.test/group/trial@sha256:\w{64}, 10 requests checked, \d+ s\n\Z",
        run.output,
        re.MULTILINE,
    ), run.output
    handed_on = trial.pipeline.host("cat", "/tmp/trial/deploy.env")
    assert handed_on == "DEPLOY_URL=http://127.0.0.1:20300\n"


def test_the_settings_reach_the_service(trial):
    run = trial.deploy(
        "1",
        DEPLOY_CPUS="0.5",
        DEPLOY_MEMORY="64M",
        DEPLOY_LOG_SIZE="1m",
        DEPLOY_HEALTH_TIMEOUT="7s",
    )
    assert run.status == 0, run.output
    spec = json.loads(trial.inspect("{{json .Spec}}"))
    task, container = spec["TaskTemplate"], spec["TaskTemplate"]["ContainerSpec"]
    assert container["ReadOnly"] and container["CapabilityDrop"] == ["ALL"]
    assert container["StopGracePeriod"] == 11_000_000_000 and "DRAIN_SECONDS=1" in container["Env"]
    assert container["Healthcheck"]["Timeout"] == 7_000_000_000
    assert container["Ulimits"] == [{"Name": "nofile", "Hard": 10240, "Soft": 10240}]
    assert task["Resources"]["Limits"] == {"NanoCPUs": 500_000_000, "MemoryBytes": 64 * 1024 * 1024}
    assert task["LogDriver"] == {
        "Name": "json-file",
        "Options": {"max-file": "3", "max-size": "1m"},
    }
    assert spec["UpdateConfig"]["FailureAction"] == "rollback"
    more = trial.deploy(
        "1",
        DEPLOY_READ_ONLY="false",
        DEPLOY_CAP_DROP="NET_RAW",
        DEPLOY_PORT="20301",
        DEPLOY_DRAIN_SECONDS="",
    )
    assert more.status == 0, more.output
    container = json.loads(trial.inspect("{{json .Spec.TaskTemplate.ContainerSpec}}"))
    assert not container.get("ReadOnly")
    assert "DRAIN_SECONDS=0" in container["Env"]  # the default in this mode
    assert (trial.answering("20301"), trial.answering()) == ("1", None)


def test_configuration_and_secrets_reach_the_service_and_nothing_else(deployed):
    deployed.pipeline.host("sh", "-c", "printf pa55word > /tmp/password; printf other > /tmp/other")
    env = {"APP_GREETING": "good day, $HOME", "APP_SECRET_DATABASE_PASSWORD": "/tmp/password"}
    run = deployed.deploy("1", **env)
    assert run.status == 0 and "pa55word" not in run.output, run.output
    assert deployed.in_service("printenv", "APP_GREETING") == "good day, $HOME\n"
    assert deployed.in_service("cat", "/run/secrets/DATABASE_PASSWORD") == "pa55word"
    assert "pa55word" not in deployed.inspect("{{json .}}")

    before = deployed.tasks()
    assert deployed.deploy("1", **env).status == 0
    assert deployed.tasks() == before  # nothing has changed

    assert deployed.deploy("1", **{**env, "APP_SECRET_DATABASE_PASSWORD": "/tmp/other"}).status == 0
    assert deployed.in_service("cat", "/run/secrets/DATABASE_PASSWORD") == "other"
    for _ in range(2):  # the second makes the secret's last user go
        assert deployed.deploy("1").status == 0
    assert "APP_GREETING" not in deployed.in_service("env")
    assert deployed.pipeline.docker("secret", "ls", "--quiet", "--filter=label=service=trial") == ""


def test_on_a_network_the_service_reaches_another_by_its_name(trial):
    trial.pipeline.docker("network", "create", "--driver=overlay", "trial-data")
    placed = ("--name=trial-database", "--network=trial-data", "--endpoint-mode=dnsrr")
    create = ("service", "create", "--detach", "--with-registry-auth", *placed)
    trial.pipeline.docker(*create, trial.releases["2"])
    code = (
        "import urllib.request as r\n"
        "print(r.urlopen('http://trial-database:8744/test').headers['X-Release'])"
    )
    for _ in range(2):
        run = trial.deploy("1", DEPLOY_NETWORK="trial-data")
        assert run.status == 0, run.output
    assert len(trial.tasks()) == 1  # the second changed nothing
    assert "2\n" == await_true(lambda: trial.in_service("python", "-c", code, check=False))

    assert trial.deploy("1").status == 0
    assert trial.inspect("{{.Spec.TaskTemplate.Networks}}") == "[]"
    trial.remove()

    def unused():
        return "in use" not in trial.pipeline.docker("network", "rm", "trial-data", check=False)

    await_true(unused)


def test_a_secret_that_is_no_file_is_named(trial):
    assert "APP_SECRET_KEY is not a file" in trial.deploy("1", APP_SECRET_KEY="pa55word").reason()


@pytest.mark.parametrize("holder", ["container", "program", "service"])
def test_a_port_that_another_uses_is_left_to_it(trial, holder):
    host = trial.pipeline
    code = (
        "import socket, time\n"
        f"server = socket.create_server(('', {PORT}))\n"
        "print('listening', flush=True)\n"
        "time.sleep(60)"
    )
    image = trial.releases["1"]
    host.docker("pull", "--quiet", image)
    run = ("run", "--detach", "--name=holder")
    if holder == "container":
        host.docker(*run, f"--publish={PORT}:8744", image)
    elif holder == "program":
        host.docker(*run, "--network=host", image, "python", "-c", code)
        await_true(lambda: host.docker("logs", "holder"))
    else:
        publish = f"--publish=published={PORT},target=8744,mode=host"
        host.docker("service", "create", "--detach", "--name=trial-holder", publish, image)
    try:
        words = {
            "container": "the container holder",
            "program": "a program on the host",
            "service": "the service trial-holder",
        }
        assert f"port {PORT} is used by {words[holder]} (" in trial.deploy("1").reason()
        assert "trial" not in trial.services()
    finally:
        host.docker("rm", "--force", "holder", check=False)


def test_the_service_of_another_project_is_left_alone(trial):
    image = trial.pipeline.first_image
    trial.pipeline.docker("service", "create", "--detach", "--name=trial", image)
    reason = trial.deploy("1").reason()
    assert "the service trial is of another project (set DEPLOY_SERVICE" in reason
    assert trial.inspect("{{.Spec.TaskTemplate.ContainerSpec.Image}}") == image


def test_rollback_by_hand_goes_to_the_release_before(deployed):
    assert "has no release before" in deployed.run("--rollback").reason()
    assert deployed.deploy("2").status == 0
    for release in ("1", "2"):
        back = deployed.run("--rollback")
        assert back.status == 0 and f"Going back to release {release}" in back.output, back.output
        assert deployed.answering() == release


def test_images_of_the_last_releases_stay_and_nothing_else_is_touched(trial):
    others = set(trial.images("")) - set(trial.images(f"{REGISTRY}/group/trial"))
    for release in ("1", "2", "3", "4", "5"):
        assert trial.deploy(release).status == 0
    assert set(trial.images(f"{REGISTRY}/group/trial")) == {
        trial.releases[name] for name in ("3", "4", "5")
    }
    assert others <= set(trial.images(""))
    assert trial.deploy("1").status == 0  # as GitLab's rollback does
    assert trial.releases["1"] in trial.images(f"{REGISTRY}/group/trial")


def test_beside_each_release_has_its_own_address_and_the_newest_stay(trial):
    addresses = {}
    for release in ("1", "2", "3", "4"):
        run = trial.deploy(release, DEPLOY_STRATEGY="beside")
        assert run.status == 0, run.output
        address = rf"^Release {release} answers at http://127\.0\.0\.1:(\d+)/test$"
        addresses[release] = re.search(address, run.output, re.MULTILINE)[1]
    assert list(addresses.values()) == ["20310", "20311", "20312", "20313"]
    assert trial.services() == ["trial-2", "trial-3", "trial-4"]
    for release in ("2", "3", "4"):
        assert trial.answering(addresses[release]) == release

    again = trial.deploy("3", DEPLOY_STRATEGY="beside")
    assert again.status == 0 and ":20312/test" in again.output, again.output

    for _ in range(2):  # the second finds nothing to do
        assert trial.run("--stop", DEPLOY_STRATEGY="beside", RELEASE="2").status == 0
    assert trial.services() == ["trial-3", "trial-4"]


def test_a_release_that_fails_beside_others_leaves_them_alone(trial):
    assert trial.deploy("1", DEPLOY_STRATEGY="beside").status == 0
    failed = trial.deploy("crash", DEPLOY_STRATEGY="beside")
    assert "trial-crash did not run before, and does not now" in failed.reason()
    assert trial.services() == ["trial-1"] and trial.answering("20310") == "1"


def test_a_service_that_is_healthy_while_its_port_is_silent_is_explained(trial):
    if trial.pipeline.host("sh", "-c", "test -e /proc/net/ip_vs && echo yes", check=False):
        pytest.skip("this kernel has IPVS: the port is not silent")
    failed = trial.deploy("1", DEPLOY_PUBLISH_MODE="ingress")
    assert "set DEPLOY_PUBLISH_MODE=host" in failed.reason()
    assert trial.services() == []
