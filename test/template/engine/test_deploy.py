"""scripts/deploy on a real engine, the pipeline's host: states, messages, what is left behind.

That host may have no routing mesh, so here the host itself publishes the releases: one replica, and
a gap at each update. test_mesh.py measures what users notice of a deployment.
"""

import json
import re

import pytest

from gitlab_ci import JOBS
from support import await_true
from trial import PORT, REPOSITORY, STACK, Trial

# Values that a script may take apart or a template language expand.
VALUES = {
    "APP_TWO_LINES": "first: 1\npassword: old",
    "APP_DOLLAR": "good day, $HOME ${HOME} $$ $(id) `id`",
    "APP_LIKE_YAML": "a: b # c\n  - d\n\n",
    "APP_LIKE_LABELS": "        deployment: '@'\n    env_file:\n      - x\n  migration:\n",
    "APP_EMPTY": "",
    "APP_NULL": "null",
    "APP_NUMBER": "007",
    "APP_QUOTES": "'\"\\'\" \\n \\",
    "APP_SPACES": "  \t both ends\r\n ",
    "APP_CHINESE": "测试 ü 🙂",
    "APP_CONTROL": "\x1b[31m\x7f\x01",
}


@pytest.fixture
def trial(pipeline, releases):
    """An engine on which nothing of these tests runs."""
    trial = Trial(pipeline, releases)
    trial.remove()
    yield trial
    trial.remove()


@pytest.fixture(scope="module")
def shared(pipeline, releases):
    trial = Trial(pipeline, releases)
    yield trial
    trial.remove()


@pytest.fixture
def deployed(shared):
    """An engine on which release 1 answers, with the default settings; the tests share it."""
    shared.declare()
    first = shared.deploy("1")
    assert first.status == 0, first.output
    return shared


# --- A release that fails


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
        pytest.param(
            f"{REPOSITORY}@sha256:{'0' * 64}",
            {},
            ["cannot pull", "not found"],
            id="does not exist",
        ),
    ],
)
def test_a_first_deployment_leaves_nothing_behind_when_the_release(trial, release, env, words):
    trial.pipeline.host("sh", "-c", "printf pa55word > /tmp/password")
    failed = trial.deploy(release, APP_SECRET_PASSWORD="/tmp/password", **env)
    assert all(word in failed.output for word in words), failed.output
    assert failed.reason() and failed.seconds < 90
    assert (trial.services(), trial.records(), trial.secrets()) == ([], [], [])
    await_true(lambda: "trial_" not in trial.pipeline.docker("network", "ls"), seconds=20)


def test_the_old_release_answers_again_after_one_that_fails(deployed):
    before = deployed.spec()
    failed = deployed.deploy("crash", APP_GREETING="hello")
    assert "no database" in failed.output
    assert "(release 1 answers at http://127.0.0.1:20300)" in failed.reason()
    assert deployed.answering() == "1"
    assert deployed.spec() == before


def test_a_release_that_needs_more_memory_is_recognised(deployed):
    deployed.declare(STACK.replace("memory: 512M", "memory: 8M"))
    failed = deployed.deploy("1")
    assert "non-zero exit (137)" in failed.output, failed.output
    assert "(memory: 8M in scripts/stack.yml)" in failed.output, failed.output
    assert deployed.answering() == "1"


def test_a_service_that_is_healthy_while_its_port_is_silent_is_explained(trial):
    if trial.pipeline.host("sh", "-c", "test -e /proc/net/ip_vs && echo yes", check=False):
        pytest.skip("this kernel has IPVS: the port is not silent")
    failed = trial.deploy("1", DEPLOY_PUBLISH_MODE="ingress")
    assert "DEPLOY_PUBLISH_MODE=host" in failed.reason()
    assert trial.services() == []


def test_an_engine_that_stays_away_is_named(deployed):
    host = "tcp://127.0.0.1:9"
    reason = deployed.deploy("2", DEPLOY_HOST=host).reason()
    assert f"the engine at {host}: Cannot connect" in reason, reason


# --- What is declared is what runs


def test_what_is_declared_reaches_the_service_and_the_summary_says_what_runs_where(trial):
    run = trial.deploy("1")
    assert re.search(
        r"^Release 1 answers at http://127\.0\.0\.1:20300/test\n"
        r"    trial_server 1/1\n"
        r"    10 requests checked, \d+ s\n\Z",
        run.output,
        re.MULTILINE,
    ), run.output
    handed_on = trial.pipeline.host("cat", "/tmp/trial/deploy.env")
    assert handed_on == "DEPLOY_URL=http://127.0.0.1:20300\n"
    spec = trial.spec()
    task, container = spec["TaskTemplate"], spec["TaskTemplate"]["ContainerSpec"]
    assert container["Image"] == trial.releases["1"]
    assert container["ReadOnly"] and container["CapabilityDrop"] == ["ALL"]
    assert container["StopGracePeriod"] == 15_000_000_000
    assert container["Env"] == ["DRAIN_SECONDS=0"]  # nothing else would answer in mode host
    assert container["Ulimits"] == [{"Name": "nofile", "Hard": 10240, "Soft": 10240}]
    limits = {"NanoCPUs": 1_000_000_000, "MemoryBytes": 512 * 1024 * 1024}
    assert task["Resources"]["Limits"] == limits
    options = {"max-file": "3", "max-size": "10m"}
    assert task["LogDriver"] == {"Name": "json-file", "Options": options}
    assert spec["UpdateConfig"]["FailureAction"] == "rollback"
    assert spec["UpdateConfig"]["Order"] == "stop-first"  # the old one has the port


def test_all_that_was_set_is_gone_when_it_is_taken_out_again(deployed):
    deployed.pipeline.host("sh", "-c", "printf pa55word > /tmp/password")
    before = deployed.spec()
    other = STACK.replace("cap_drop: [ALL]", "cap_drop: [NET_RAW, SYS_CHROOT]")
    other = other.replace("read_only: true", "read_only: false")
    other = other.replace("memory: 512M", "memory: 64M").replace('cpus: "1"', 'cpus: "0.5"')
    other = other.replace("nofile: 10240", "nofile: 2048").replace("max-size: 10m", "max-size: 1m")
    other = other.replace(
        "    stop_grace_period",
        "    healthcheck: {timeout: 7s}\n    networks: [default, more]\n    stop_grace_period",
    )
    other = other.replace("networks: {web:", "networks: {more: {}, web:")
    deployed.declare(other)
    env = {"APP_GREETING": "hello", "APP_SECRET_PASSWORD": "/tmp/password"}
    changed = deployed.deploy("1", DEPLOY_PORT="20301", **env)
    assert changed.status == 0, changed.output
    assert (deployed.answering("20301"), deployed.answering()) == ("1", None)
    spec = deployed.spec()
    task, container = spec["TaskTemplate"], spec["TaskTemplate"]["ContainerSpec"]
    assert container["CapabilityDrop"] == ["CAP_NET_RAW", "CAP_SYS_CHROOT"]
    assert not container.get("ReadOnly")
    assert container["Healthcheck"] == {"Timeout": 7_000_000_000}
    assert container["Ulimits"] == [{"Name": "nofile", "Hard": 2048, "Soft": 2048}]
    limits = {"NanoCPUs": 500_000_000, "MemoryBytes": 64 * 1024 * 1024}
    assert task["Resources"]["Limits"] == limits
    assert len(task["Networks"]) == 2 and len(container["Secrets"]) == 1
    deployed.declare()
    assert deployed.deploy("1").status == 0
    assert deployed.spec() == before


def test_values_and_secrets_arrive_as_they_are_and_so_do_their_changes(deployed):
    deployed.pipeline.host("sh", "-c", "printf pa55word > /tmp/password; printf other > /tmp/other")
    # Lines of a variable of GitLab's, which only look like variables.
    message = "Raise it\n\nAPP_LIMIT=30 is new\nAPP_SECRET_KEY=x\n"
    others = {"CI_COMMIT_MESSAGE": message, "APP_SECRET_123": "/tmp/other"}
    first = {**VALUES, "APP_URL": "https://app.example.com", "APP_SECRET_KEY": "/tmp/password"}
    second = {name: value.replace("old", "new") + "!" for name, value in VALUES.items()}
    second["APP_SECRET_KEY"] = "/tmp/other"

    def check(env):
        """Check what arrived; the variable of a secret has its path, as on a laptop."""
        code = "import json, os; print(json.dumps(dict(os.environ)))"
        values = json.loads(deployed.in_service("python", "-c", code))
        paths = {"APP_SECRET_KEY": "/run/secrets/KEY", "APP_SECRET_123": "/run/secrets/123"}
        assert {name: values[name] for name in values if name.startswith("APP_")} == {
            **env,
            **paths,
        }
        secrets = {"/tmp/password": "pa55word", "/tmp/other": "other"}
        key = deployed.in_service("sh", "-c", 'cat "$APP_SECRET_KEY"')
        assert key == secrets[env["APP_SECRET_KEY"]]

    run = deployed.deploy("1", **first, **others)
    assert run.status == 0 and "pa55word" not in run.output, run.output
    check(first)
    assert "pa55word" not in deployed.inspect("{{json .}}")
    configs = deployed.pipeline.docker("config", "ls", "--quiet").split()
    assert "pa55word" not in deployed.pipeline.docker("config", "inspect", *configs)

    tasks = deployed.tasks()
    assert deployed.deploy("1", **first, **others).status == 0
    assert deployed.tasks() == tasks  # nothing has changed

    changed = deployed.deploy("1", **second, **others)
    assert changed.status == 0, changed.output
    check(second)
    back = deployed.run("--rollback")
    assert back.status == 0, back.output
    check(first)


def test_what_the_file_says_wrong_is_named_before_anything_changes(deployed):
    before = deployed.spec(), deployed.tasks()
    for old, new, word in [
        ("replicas: ${DEPLOY_REPLICAS}", "replicas: two", "replicas"),
        ("memory: 512M", "memory: 512Mi", "memory"),
        ("cap_drop: [ALL]", "cap_drops: [ALL]", "cap_drops"),
        ("cap_drop: [ALL]", "secrets: [PASSWORD]", "needs APP_SECRET_PASSWORD"),
    ]:
        deployed.declare(STACK.replace(old, new))
        reason = deployed.deploy("2").reason()
        assert word in reason and "--help" not in reason, reason
    assert (deployed.spec(), deployed.tasks()) == before


# --- Ports, projects


def test_ports_that_others_use_are_left_to_them(trial):
    host, image = trial.pipeline, trial.releases["1"]
    code = (
        "import socket, time\n"
        "server = socket.create_server(('', 80))\n"
        "print('listening', flush=True)\n"
        "time.sleep(100)"
    )
    host.docker("pull", "--quiet", image)
    run = ("run", "--detach", "--user=0", "--label=holder")
    host.docker(*run, f"--publish={PORT}:8744", image)
    program = host.docker(*run, "--network=host", image, "python", "-c", code).strip()
    publish = "--publish=published=20301,target=8744,mode=host"
    host.docker("service", "create", "--quiet", "--name=trial-holder", publish, image)
    try:
        await_true(lambda: host.docker("logs", program))
        for port, name in (
            (PORT, "a program or container on the host"),
            ("80", "a program or container on the host"),
            ("20301", "the service trial-holder"),
        ):
            reason = trial.deploy("1", DEPLOY_PORT=port).reason()
            assert f"port {port} is used by {name} (stop it, or set DEPLOY_PORT)" in reason
        assert trial.services() == ["trial-holder"]
    finally:
        host.host("sh", "-c", "docker rm --force $(docker ps --quiet --filter=label=holder)")


def test_a_low_port_can_be_deployed_where_only_root_may_bind_it(trial):
    # As on a usual host; inside a dind every user may.
    limit = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    before = trial.pipeline.host("cat", limit)
    trial.pipeline.host("sh", "-c", f"echo 1024 > {limit}")
    try:
        run = trial.deploy("1", DEPLOY_PORT="80")
    finally:
        trial.pipeline.host("sh", "-c", f"echo {before} > {limit}")
    assert run.status == 0, run.output
    assert trial.answering("80") == "1"


def test_the_stack_of_another_project_is_left_alone(trial):
    other = "services: {server: {image: '%s'}, database: {image: '%s'}}"
    image = trial.pipeline.first_image
    command = ("stack", "deploy", "--detach=true", "--compose-file=-", "trial")
    trial.pipeline.docker(*command, input=other % (image, image))
    before = [trial.inspect(service=name) for name in trial.services()]
    assert (
        "scripts/deploy did not make the stack trial (set DEPLOY_STACK"
        in trial.deploy("1").reason()
    )
    assert [trial.inspect(service=name) for name in trial.services()] == before


def test_a_change_by_hand_makes_it_no_other_project(deployed):
    other = deployed.pipeline.first_image
    deployed.pipeline.docker("service", "update", "--quiet", f"--image={other}", "trial_server")
    again = deployed.deploy("1")
    assert again.status == 0, again.output
    assert deployed.answering() == "1"


# --- Back, again, at once


def test_after_a_killed_job_one_goes_back_to_the_newest_verified_release(trial):
    for release in ("1", "2"):
        assert trial.deploy(release).status == 0
    job = trial.start("3")
    await_true(lambda: trial.inspect("{{.Spec.Labels.deployment}}") != trial.newest()["id"])
    trial.kill()
    job.communicate(timeout=60)
    await_true(lambda: trial.answering() == "3", seconds=60)
    back = trial.run("--rollback")
    assert back.status == 0 and "Going back to release 2" in back.output, back.output
    assert (trial.answering(), trial.records()) == ("2", ["1", "2"])


def test_what_was_deployed_in_between_is_left_alone(trial):
    # A first deployment that fails must not take the stack away from one that came later.
    process = trial.start("crash")
    await_true(lambda: trial.services() == ["trial_server"], seconds=30)
    second = trial.deploy("1")
    output = process.communicate(timeout=120)[0]
    assert second.status == 0, second.output
    assert process.returncode == 1 and "another deployment has come in between" in output, output
    assert (trial.answering(), trial.records()) == ("1", ["1"])


# --- What stays


def test_images_of_the_last_releases_stay_and_nothing_else_is_touched(trial):
    others = set(trial.images("")) - set(trial.images(REPOSITORY))
    for release in ("1", "2", "3", "4", "5"):
        # Those of merge requests lie on the host as well.
        trial.pipeline.docker("pull", "--quiet", trial.releases[release])
    for release in ("2", "5"):
        assert trial.deploy(release, DEPLOY_KEEP="2").status == 0
    assert trial.records() == ["2", "5"]
    assert set(trial.images(REPOSITORY)) == {trial.releases[name] for name in ("2", "5")}
    trial.pipeline.docker("pull", "--quiet", trial.releases["6"])
    assert trial.deploy("1", DEPLOY_KEEP="2").status == 0  # as GitLab's rollback does
    kept = {trial.releases[name] for name in ("1", "5", "6")}  # 6 may be tested just now
    assert kept <= set(trial.images(REPOSITORY))
    assert others <= set(trial.images(""))


def test_releases_beside_each_other_have_addresses_of_their_own(trial):
    beside, addresses = {"DEPLOY_STRATEGY": "beside"}, {}
    for release in ("1", "2"):
        run = trial.deploy(release, **beside)
        assert run.status == 0, run.output
        address = rf"^Release {release} answers at http://127\.0\.0\.1:(\d+)/test$"
        addresses[release] = re.search(address, run.output, re.MULTILINE)[1]
    assert len(set(addresses.values())) == 2
    assert all(20310 <= int(port) <= 20319 for port in addresses.values())
    for release, port in addresses.items():
        assert trial.answering(port) == release

    failed = trial.deploy("crash", **beside)
    assert "trial-crash did not run before, and does not now" in failed.reason()
    again = trial.deploy("2", **beside)
    assert again.status == 0 and f":{addresses['2']}/test" in again.output, again.output

    for kind in ("service", "config", "network"):
        filters = ["--filter=label=com.docker.stack.namespace=trial-1"]
        all_of_it = trial.pipeline.docker(kind, "ls", "--quiet", *filters).split()
        ours = f"--filter=label=project={REPOSITORY}"
        assert all_of_it == trial.pipeline.docker(kind, "ls", "--quiet", *filters, ours).split()
    stop = {"RELEASE": "1", "CI_REGISTRY_IMAGE": "registry.test/group/other", **beside}
    reason = trial.run("--stop", **stop).reason()
    assert f"the stack trial-1 is of another project, {REPOSITORY} " in reason
    assert trial.services() == ["trial-1_server", "trial-2_server"]
    for _ in range(2):  # the second finds nothing to do
        assert trial.run("--stop", **{**stop, "CI_REGISTRY_IMAGE": REPOSITORY}).status == 0
    assert trial.services() == ["trial-2_server"]
    await_true(lambda: "trial-1" not in trial.pipeline.docker("network", "ls"), seconds=20)
    assert trial.records() == ["2"]


def test_a_merge_request_has_a_stack_and_a_port_until_it_is_closed(trial):
    def said(job, number):
        """Return what the job says in front of scripts/deploy, for a merge request."""
        line = JOBS[job]["script"][0].replace("$CI_MERGE_REQUEST_IID", number)
        said = dict(re.findall(r"\b(DEPLOY_\w+)=(\S+)", line))
        return {**said, "DEPLOY_STACK": f"trial-{said['DEPLOY_STACK']}"}

    ports = {"17": [], "18": []}
    for number, release in (("17", "1"), ("18", "1"), ("17", "2")):
        run = trial.deploy(release, **said("review", number))
        assert run.status == 0, run.output
        port = re.search(r":(\d+)/test$", run.output, re.MULTILINE)[1]
        assert trial.answering(port) == release
        ports[number].append(port)
    assert len({*ports["17"]}) == 1 and ports["18"][0] not in ports["17"]
    # The job that GitLab stops it with may be that of a release that failed.
    failed = trial.deploy("crash", **said("review", "17"))
    assert "(release 2 answers at " in failed.reason()
    assert trial.services() == ["trial-review-17_server", "trial-review-18_server"]
    closed = {"CI_REGISTRY_IMAGE": REPOSITORY, **said("stop_review", "17")}
    stopped = trial.run("--stop", **closed)
    assert stopped.status == 0, stopped.output
    assert trial.services() == ["trial-review-18_server"]
