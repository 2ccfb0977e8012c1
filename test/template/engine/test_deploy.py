"""scripts/deploy on a real engine, the pipeline's host: states, messages, what is left behind.

That host may have no routing mesh, so here the host itself publishes the releases: one replica, and
a gap at each update. test_mesh.py measures what users notice of a deployment.
"""

import json
import re

import pytest

from support import await_true
from trial import PORT, REPOSITORY, STACK, Trial

pytestmark = pytest.mark.xdist_group("deploy")

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
    yield trial
    trial.remove()


@pytest.fixture
def deployed(trial):
    """An engine on which release 1 answers."""
    first = trial.deploy("1")
    assert first.status == 0, first.output
    return trial


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
        pytest.param("2", {"RELEASE": "7"}, ["says that it is release 2, not 7"], id="is another"),
        pytest.param(
            f"{REPOSITORY}@sha256:{'0' * 64}",
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
    deployed.declare(STACK.replace("memory: 128M", "memory: 8M"))
    failed = deployed.deploy("1")
    assert "non-zero exit (137)" in failed.output and "more memory?" in failed.output, failed.output
    assert deployed.answering() == "1"


def test_a_service_that_is_healthy_while_its_port_is_silent_is_explained(trial):
    if trial.pipeline.host("sh", "-c", "test -e /proc/net/ip_vs && echo yes", check=False):
        pytest.skip("this kernel has IPVS: the port is not silent")
    failed = trial.deploy("1", DEPLOY_PUBLISH_MODE="ingress")
    assert "DEPLOY_PUBLISH_MODE=host" in failed.reason()
    assert trial.services() == []


@pytest.mark.parametrize("effect", ["none", "done"])
def test_calls_that_fail_once_fail_no_deployment(deployed, effect):
    # As when a swarm elects a leader: each call fails the first time, before or after its effect.
    run = '"$docker" "$@" > /dev/null 2>&1' if effect == "done" else ":"
    fake = f"""#!/bin/sh
docker={deployed.pipeline.host("which", "docker").strip()}
[ "$1 $2" != "stack config" ] || exec "$docker" "$@" # which asks no engine
mkdir /tmp/trial/seen/$(echo "$*" | cksum | tr -d " ") 2> /dev/null || exec "$docker" "$@"
{run}
echo "Error response from daemon: rpc error: The swarm does not have a leader." >&2
exit 1
"""
    code = "cd /tmp/trial && mkdir bin seen && cat > bin/docker && chmod +x bin/docker"
    deployed.pipeline.host("sh", "-c", code, input=fake)
    path = "/tmp/trial/bin:" + deployed.pipeline.host("sh", "-c", "echo $PATH").strip()
    update = deployed.deploy("2", PATH=path)
    assert update.status == 0, update.output
    assert (deployed.answering(), deployed.records()) == ("2", ["1", "2"])
    back = deployed.run("--rollback", PATH=path)
    assert back.status == 0, back.output
    assert (deployed.answering(), deployed.records()) == ("1", ["1"])


def test_an_engine_that_stays_away_is_named(deployed):
    host = "tcp://127.0.0.1:9"
    reason = deployed.deploy("2", DEPLOY_HOST=host).reason()
    assert f"the engine at {host}: Cannot connect" in reason, reason


# --- What a deployment says and hands on


def test_the_summary_says_what_runs_where(trial):
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


# --- What is declared is what runs


def test_what_is_declared_reaches_the_service(deployed):
    spec = deployed.spec()
    task, container = spec["TaskTemplate"], spec["TaskTemplate"]["ContainerSpec"]
    assert container["Image"] == deployed.releases["1"]
    assert container["ReadOnly"] and container["CapabilityDrop"] == ["ALL"]
    assert container["StopGracePeriod"] == 15_000_000_000
    assert container["Env"] == ["DRAIN_SECONDS=0"]  # nothing else would answer in mode host
    assert container["Ulimits"] == [{"Name": "nofile", "Hard": 10240, "Soft": 10240}]
    limits = {"NanoCPUs": 1_000_000_000, "MemoryBytes": 128 * 1024 * 1024}
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
    other = other.replace("memory: 128M", "memory: 64M").replace('cpus: "1"', 'cpus: "0.5"')
    other = other.replace("nofile: 10240", "nofile: 2048").replace("max-size: 10m", "max-size: 1m")
    other = other.replace(
        "    stop_grace_period",
        "    healthcheck: {timeout: 7s}\n    networks: [default, more]\n    stop_grace_period",
    )
    other += "networks: {more: {}}\n"
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


def test_each_value_of_a_variable_arrives_as_it_is_and_so_does_its_change(deployed):
    # Lines of a variable of GitLab's, which only look like variables.
    message = "Raise it\n\nAPP_LIMIT=30 is new\nAPP_SECRET_KEY=x\n"
    env = {**VALUES, "APP_URL": "https://app.example.com"}

    def arrived():
        code = "import json, os; print(json.dumps(dict(os.environ)))"
        values = json.loads(deployed.in_service("python", "-c", code))
        return {name: value for name, value in values.items() if name.startswith("APP_")}

    run = deployed.deploy("1", **env, CI_COMMIT_MESSAGE=message)
    assert run.status == 0, run.output
    assert arrived() == env
    assert deployed.secrets() == []

    tasks = deployed.tasks()
    assert deployed.deploy("1", **env, CI_COMMIT_MESSAGE=message).status == 0
    assert deployed.tasks() == tasks  # nothing has changed

    changed = {name: value.replace("old", "new") + "!" for name, value in env.items()}
    assert deployed.deploy("1", **changed).status == 0
    assert arrived() == changed
    back = deployed.run("--rollback")
    assert back.status == 0, back.output
    assert arrived() == env
    assert deployed.deploy("1").status == 0
    assert arrived() == {}


def test_secrets_reach_the_service_and_nothing_else(deployed):
    deployed.pipeline.host("sh", "-c", "printf pa55word > /tmp/password; printf other > /tmp/other")
    env = {"APP_SECRET_DATABASE_PASSWORD": "/tmp/password"}
    run = deployed.deploy("1", **env)
    assert run.status == 0 and "pa55word" not in run.output, run.output
    assert deployed.in_service("cat", "/run/secrets/DATABASE_PASSWORD") == "pa55word"
    read = 'cat "$APP_SECRET_DATABASE_PASSWORD"'  # as code does that runs on a laptop, too
    assert deployed.in_service("sh", "-c", read) == "pa55word"
    assert "pa55word" not in deployed.inspect("{{json .}}")
    assert "pa55word" not in deployed.pipeline.docker("config", "inspect", "trial.2")

    tasks = deployed.tasks()
    assert deployed.deploy("1", **env).status == 0
    assert deployed.tasks() == tasks  # nothing has changed

    env = {"APP_SECRET_DATABASE_PASSWORD": "/tmp/other"}
    assert deployed.deploy("1", **env).status == 0
    assert deployed.in_service("cat", "/run/secrets/DATABASE_PASSWORD") == "other"
    back = deployed.run("--rollback")
    assert back.status == 0, back.output
    assert deployed.in_service("cat", "/run/secrets/DATABASE_PASSWORD") == "pa55word"
    for release in ("2", "3", "4"):  # the last makes that the secret belongs to no kept release
        assert deployed.deploy(release).status == 0
    assert deployed.secrets() == []


def test_what_the_file_says_wrong_is_named_before_anything_changes(deployed):
    for old, new, word in [
        ("replicas: ${DEPLOY_REPLICAS}", "replicas: two", "replicas"),
        ("memory: 128M", "memory: 128Mi", "memory"),
        ("read_only: true", "read_only: perhaps", "read_only"),
        ("stop_grace_period: 15s", "stop_grace_period: 15", "stop_grace_period"),
        ("cap_drop: [ALL]", "cap_drops: [ALL]", "cap_drops"),
        ("cap_drop: [ALL]", "secrets: [PASSWORD]", "PASSWORD"),
    ]:
        before = deployed.spec(), deployed.tasks()
        deployed.declare(STACK.replace(old, new))
        reason = deployed.deploy("2").reason()
        assert word in reason and "--help" not in reason, reason
        assert (deployed.spec(), deployed.tasks()) == before


@pytest.mark.parametrize(
    "env, words",
    [
        ({"DEPLOY_PORT": "0"}, "DEPLOY_PORT cannot be '0'"),
        ({"DEPLOY_PORT": "65536"}, "DEPLOY_PORT cannot be '65536'"),
        ({"DEPLOY_PORT": "080"}, "DEPLOY_PORT cannot be '080'"),
        ({"DEPLOY_PORTS": "20310"}, "DEPLOY_PORTS"),
        ({"DEPLOY_REPLICAS": "0"}, "DEPLOY_REPLICAS cannot be '0'"),
        ({"DEPLOY_REPLICAS": "2\n3"}, "DEPLOY_REPLICAS"),
        ({"DEPLOY_TIMEOUT": "2m"}, "DEPLOY_TIMEOUT cannot be '2m'"),
        ({"DEPLOY_KEEP": "0"}, "DEPLOY_KEEP cannot be '0'"),
        ({"DEPLOY_STRATEGY": "both"}, "DEPLOY_STRATEGY cannot be 'both'"),
        ({"DEPLOY_PUBLISH_MODE": "mesh"}, "DEPLOY_PUBLISH_MODE cannot be 'mesh'"),
        ({"DEPLOY_STACK": "my app"}, "DEPLOY_STACK cannot be 'my app'"),
        ({"DEPLOY_ADDRESS": "app.example.com:80"}, "DEPLOY_ADDRESS"),
        ({"DEPLOY_IMAGE": f"{REPOSITORY}:1"}, "DEPLOY_IMAGE"),
        ({"DEPLOY_IMAGE": ""}, "DEPLOY_IMAGE"),
        ({"APP_SECRET_KEY": "pa55word"}, "APP_SECRET_KEY is not a file"),
        ({"DEPLOY_SSH_KEY": "pa55\nword"}, "DEPLOY_SSH_KEY is not a file"),
        ({"DEPLOY_SSH_KEY": "/etc/hosts"}, "DEPLOY_SSH_KNOWN_HOSTS is not a file"),
    ],
)
def test_a_setting_that_cannot_be_is_named_at_once(trial, env, words):
    reason = trial.run(**{"DEPLOY_IMAGE": trial.releases["1"], **env}).reason()
    assert words in reason and "word" not in reason, reason
    assert trial.services() == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:20300/", "::1", "[::1]"])
def test_the_address_may_be_a_name_an_address_or_a_url(trial, address):
    run = trial.deploy("1", DEPLOY_ADDRESS=address)
    url = "http://[::1]:20300" if "::" in address else "http://127.0.0.1:20300"
    assert run.status == 0 and f"answers at {url}/test\n" in run.output, run.output


# --- Ports, projects


@pytest.mark.parametrize(
    "holder, port",
    [("container", PORT), ("program", PORT), ("program", "80"), ("service", PORT)],
)
def test_a_port_that_another_uses_is_left_to_it(trial, holder, port):
    host = trial.pipeline
    code = (
        "import socket, time\n"
        f"server = socket.create_server(('', {port}))\n"
        "print('listening', flush=True)\n"
        "time.sleep(60)"
    )
    image = trial.releases["1"]
    host.docker("pull", "--quiet", image)
    run = ("run", "--detach", "--user=0", "--name=holder")
    if holder == "container":
        host.docker(*run, f"--publish={port}:8744", image)
    elif holder == "program":
        host.docker(*run, "--network=host", image, "python", "-c", code)
        await_true(lambda: host.docker("logs", "holder"))
    else:
        publish = f"--publish=published={port},target=8744,mode=host"
        host.docker("service", "create", "--quiet", "--name=trial-holder", publish, image)
    try:
        name = "the service trial-holder" if holder == "service" else "a program or container"
        reason = trial.deploy("1", DEPLOY_PORT=port).reason()
        assert f"port {port} is used by {name}" in reason, reason
        assert "trial_server" not in trial.services()
    finally:
        host.docker("rm", "--force", "holder", check=False)


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
    assert "the stack trial is of another project (set DEPLOY_STACK" in trial.deploy("1").reason()
    assert [trial.inspect(service=name) for name in trial.services()] == before


def test_a_change_by_hand_makes_it_no_other_project(deployed):
    other = deployed.pipeline.first_image
    deployed.pipeline.docker("service", "update", "--quiet", f"--image={other}", "trial_server")
    again = deployed.deploy("1")
    assert again.status == 0, again.output
    assert deployed.answering() == "1"


# --- Back, again, at once


def test_rollback_goes_to_the_release_that_was_verified_before(deployed):
    assert (
        "no release of the stack trial was verified before" in deployed.run("--rollback").reason()
    )
    assert deployed.deploy("2").status == 0
    assert deployed.deploy("2").status == 0  # a retried job, a schedule
    assert deployed.deploy("3").status == 0
    assert deployed.deploy("crash").status == 1
    for release in ("2", "1"):
        back = deployed.run("--rollback")
        assert back.status == 0 and f"Going back to release {release}" in back.output, back.output
        assert deployed.answering() == release
    assert (
        "no release of the stack trial was verified before" in deployed.run("--rollback").reason()
    )
    assert deployed.answering() == "1"


def test_rollback_brings_the_file_and_the_variables_back(deployed):
    before = deployed.spec()
    deployed.declare(STACK.replace("memory: 128M", "memory: 64M"))
    assert deployed.deploy("1", APP_GREETING="$HOME", DEPLOY_PORT="20301").status == 0
    back = deployed.run("--rollback")
    assert back.status == 0, back.output
    assert deployed.spec() == before and deployed.answering() == "1"


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
    for release in ("2", "4", "5"):
        assert trial.deploy(release).status == 0
    assert trial.records() == ["2", "4", "5"]
    assert set(trial.images(REPOSITORY)) == {trial.releases[name] for name in ("2", "4", "5")}
    trial.pipeline.docker("pull", "--quiet", trial.releases["6"])
    assert trial.deploy("1").status == 0  # as GitLab's rollback does
    kept = {trial.releases[name] for name in ("1", "4", "5", "6")}  # 6 may be tested just now
    assert kept <= set(trial.images(REPOSITORY))
    assert others <= set(trial.images(""))


def test_beside_each_release_has_its_own_address_and_the_newest_stay(trial):
    addresses = {}
    for release in ("1", "2", "3", "4"):
        run = trial.deploy(release, DEPLOY_STRATEGY="beside")
        assert run.status == 0, run.output
        address = rf"^Release {release} answers at http://127\.0\.0\.1:(\d+)/test$"
        addresses[release] = re.search(address, run.output, re.MULTILINE)[1]
    assert len(set(addresses.values())) == 4
    assert all(20310 <= int(port) <= 20319 for port in addresses.values())
    assert trial.services() == ["trial-2_server", "trial-3_server", "trial-4_server"]
    for release in ("2", "3", "4"):
        assert trial.answering(addresses[release]) == release

    again = trial.deploy("3", DEPLOY_STRATEGY="beside")
    assert again.status == 0 and f":{addresses['3']}/test" in again.output, again.output

    for _ in range(2):  # the second finds nothing to do
        assert trial.run("--stop", DEPLOY_STRATEGY="beside", RELEASE="2").status == 0
    assert trial.services() == ["trial-3_server", "trial-4_server"]
    await_true(lambda: "trial-2" not in trial.pipeline.docker("network", "ls"), seconds=20)
    assert sorted(trial.records()) == ["3", "4"]


def test_a_release_that_fails_beside_others_leaves_them_alone(trial):
    assert trial.deploy("1", DEPLOY_STRATEGY="beside").status == 0
    failed = trial.deploy("crash", DEPLOY_STRATEGY="beside")
    assert "trial-crash did not run before, and does not now" in failed.reason()
    assert trial.services() == ["trial-1_server"]
