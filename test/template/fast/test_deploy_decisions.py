"""What scripts/deploy decides and says, in process: an engine that answers as docker does."""

import itertools
import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import yaml

from fake_swarm import HEALTH, MESH, STACK, FakeSwarm, Job, Killed, deploy, image_of
from parts.engine import Failed, Thing, last_line, removable
from parts.plan import address
from parts.records import read_plan, write_plan
from support import ROOT

IMAGE = image_of("a1")
STACK_FILE = (ROOT / "scripts/stack.yml").read_text()
MIGRATION = """
  migration:
    <<: *server
    command: [python, migrate.py]
    ports: []
    healthcheck: {disable: true}
    deploy: {mode: replicated-job, restart_policy: {condition: none}}
"""
DATABASE = """
  database:
    image: postgres:18.1
    secrets: [PASSWORD]
"""
PROXY = """
  proxy:
    image: caddy:2.11.4
    ports: [{target: 443, published: 443, mode: host}]
"""
# As the version before this one left it.
OLD_RECORD = f"""# image {IMAGE}
# release a1
# url http://127.0.0.1:20200
version: "3.13"
services:
  server:
    deploy:
      labels:
        deployment: '@'
        project: registry.test/app
    environment:
      APP_DATE: 2026-13-45
      APP_SIGN: =
      DRAIN_SECONDS: "0"
    env_file:
      - /dev/null
    image: {IMAGE}
    ports:
      - mode: host
        target: 8744
        published: 20200
"""


@pytest.fixture
def swarm():
    return FakeSwarm()


@pytest.fixture
def job(swarm, tmp_path):
    return Job(swarm, tmp_path)


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Writes what scripts/stack.yml is."""

    def write(text):
        (tmp_path / "stack.yml").write_text(text)
        monkeypatch.setattr("parts.plan.FILE", tmp_path / "stack.yml")

    return write


def names(swarm):
    kinds = (swarm.services, swarm.configs, swarm.secrets, swarm.networks)
    return [[*kind] for kind in kinds]


# --- Settings


@pytest.mark.parametrize(
    "name, value",
    [
        ("DEPLOY_PORT", "0"),
        ("DEPLOY_PORT", "080"),
        ("DEPLOY_PORT", "65536"),
        ("DEPLOY_PORTS", "20310"),
        ("DEPLOY_PORTS", "20319-20310"),
        ("DEPLOY_REPLICAS", "0"),
        ("DEPLOY_REPLICAS", "2\n3"),
        ("DEPLOY_TIMEOUT", "2m"),
        ("DEPLOY_TIMEOUT", "60 "),
        ("DEPLOY_KEEP", "0"),
        ("DEPLOY_STRATEGY", "both"),
        ("DEPLOY_PUBLISH_MODE", "mesh"),
        ("DEPLOY_STACK", "my app"),
        ("DEPLOY_STACK", "a" * 31),
        ("DEPLOY_ADDRESS", "app.example.com:80"),
        ("DEPLOY_ADDRESS", "10.0.0.1:80"),
        ("DEPLOY_ADDRESS", "a b"),
        ("DEPLOY_ADDRESS", "https://app.example.com\n"),
        ("DEPLOY_IMAGE", "registry.test/app:1"),
        ("DEPLOY_IMAGE", ""),
        ("BUILT_TEST_IMAGE", "registry.test/app/test:1"),
        ("RELEASE", "версия"),
        ("APP_SECRET_KEY", "pa55\nword"),
        ("APP_SECRET_" + "X" * 50, str(ROOT / "LICENSE")),
        ("APP_TEXT", "\udce4"),
    ],
)
def test_a_setting_that_cannot_be_is_named_before_anything_changes(job, name, value):
    end = job.run(**{"DEPLOY_IMAGE": IMAGE, name: value})
    assert end.reason.startswith(name) and "\n" not in end.reason
    assert not any(names(job.swarm))


@pytest.mark.parametrize("name", ["DEPLOY_SSH_KEY", "DEPLOY_SSH_KNOWN_HOSTS", "APP_SECRET_KEY"])
@pytest.mark.parametrize("value", ["pa55\nword", "/nowhere/pa55word"])
def test_what_is_no_file_is_named_and_never_printed(job, name, value):
    file = str(ROOT / "LICENSE")
    env = {"DEPLOY_SSH_KEY": file, "DEPLOY_SSH_KNOWN_HOSTS": file, name: value}
    end = job.run(DEPLOY_IMAGE=IMAGE, **env)
    assert end.reason == f"{name} is not a file (its type in GitLab must be File)"
    assert "pa55" not in end.reason + end.output


def test_an_empty_setting_is_its_default(job):
    end = job.deploy("a1", DEPLOY_PORT="", DEPLOY_STACK="", DEPLOY_KEEP="")
    assert not end.reason, end.output
    assert [*job.swarm.services] == ["app_server"] and job.swarm.answering(20200) == "a1"


@pytest.mark.parametrize(
    "given, url",
    [
        ("", "http://192.0.2.1:20200"),
        ("app.example.com", "http://app.example.com:20200"),
        ("10.0.0.1", "http://10.0.0.1:20200"),
        ("::1", "http://[::1]:20200"),
        ("[fe80::1]", "http://[fe80::1]:20200"),
        ("http://app.example.com:20200/", "http://app.example.com:20200"),
    ],
)
def test_the_address_may_be_a_name_an_address_or_a_url(job, tmp_path, given, url):
    end = job.deploy("a1", DEPLOY_ADDRESS=given)
    assert f"Release a1 answers at {url}/test\n    app_server 1/1\n" in end.output
    assert (tmp_path / "deploy.env").read_text() == f"DEPLOY_URL={url}\n"


def test_what_cannot_be_handed_on_is_said_before_anything_changes(job, tmp_path):
    (tmp_path / "deploy.env").mkdir()
    assert job.deploy("a1").reason == "cannot write deploy.env: Is a directory"
    assert not any(names(job.swarm))


def test_ssh_that_is_missing_is_named(job):
    end = job.deploy("a1", DEPLOY_HOST="ssh://root@host", PATH="/nowhere")
    assert end.reason.startswith("ssh is not installed here (in the pipeline, DEPLOY_HOST must")


# --- Logins


def logins(job, **env):
    asked = []

    def note(arguments):
        if arguments[0] == "login":
            asked.append((arguments[1].partition("=")[2], arguments[-1]))

    job.swarm.before_call = note
    job.deploy("a1", **env)
    return asked


REGISTRY = {
    "CI_REGISTRY": "registry.test",
    "CI_REGISTRY_USER": "robot",
    "CI_REGISTRY_PASSWORD": "pa55word",
}
TOKEN = {"CI_DEPLOY_USER": "lasting", "CI_DEPLOY_PASSWORD": "t0ken"}
PROXY_LOGIN = {
    "CI_DEPENDENCY_PROXY_SERVER": "gitlab.test:443",
    "CI_DEPENDENCY_PROXY_USER": "reader",
    "CI_DEPENDENCY_PROXY_PASSWORD": "pa55word",
}


@pytest.mark.parametrize(
    "env, expected",
    [
        ({}, []),
        (REGISTRY, [("robot", "registry.test")]),
        ({**REGISTRY, **TOKEN}, [("lasting", "registry.test")]),
        ({**REGISTRY, **PROXY_LOGIN}, [("robot", "registry.test")]),
        (
            {**REGISTRY, **PROXY_LOGIN, "IMAGE_PREFIX": "gitlab.test:443/group/"},
            [("robot", "registry.test"), ("reader", "gitlab.test:443")],
        ),
    ],
)
def test_the_registries_that_are_used_get_a_login(job, env, expected):
    assert logins(job, **env) == expected


@pytest.mark.parametrize(
    "config, joined",
    [('{"auths": {}}', True), ('{"credHelpers": {"other.test": "ecr-login"}}', False)],
)
def test_a_login_joins_docker_auth_config_unless_that_needs_helpers(job, config, joined):
    seen = {}

    def see(arguments):
        seen.clear()
        seen.update(job.swarm.env)

    job.swarm.before_call = see
    job.deploy("a1", **REGISTRY, DOCKER_AUTH_CONFIG=config)
    assert ("DOCKER_CONFIG" in seen, "DOCKER_AUTH_CONFIG" in seen) == (joined, False)


# --- What docker says


@pytest.mark.parametrize(
    "said, reason",
    [
        ("one line\ndenied: no\r\n", "denied: no"),
        ("WARNING! x\nno\n\nSee 'docker pull --help'.\n", "no"),
        ("", ""),
    ],
)
def test_the_reason_is_the_last_line_without_hints(said, reason):
    assert last_line(said) == reason


@pytest.mark.parametrize(
    "call, message, words",
    [
        ("node ls", "Cannot connect to the Docker daemon", "socket: Cannot connect to the Docker"),
        ("node ls", "This node is not a swarm manager.", "(scripts/register-runner prepares a"),
        ("pull", "manifest unknown", f"cannot pull {IMAGE}: manifest unknown"),
        ("login", "denied: no", "cannot log in to registry.test as robot: denied: no"),
        ("stack config", "deploy.replicas must be a number", "cannot read scripts/stack.yml: dep"),
        ("stack deploy", "invalid", "Swarm refuses the stack: invalid (app did not run before"),
        ("run", "no space left", f"cannot run {IMAGE} on the host: no space left"),
    ],
)
def test_a_call_that_keeps_failing_ends_in_a_line_that_says_what(job, call, message, words):
    def fail(arguments):
        if " ".join(arguments).startswith(call):
            raise Failed(message)

    job.swarm.before_call = fail
    end = job.deploy("a1", **REGISTRY)
    assert words in end.reason and "pa55word" not in end.reason + end.output
    assert not any(names(job.swarm))


def test_an_image_of_another_release_is_refused(job):
    assert job.deploy("a2", RELEASE="a7").reason.endswith("says that it is release a2, not a7")
    assert not any(names(job.swarm))


# --- Steps and what they say


@pytest.mark.parametrize(
    "release, words",
    [
        ("unmigrated1", "the migration failed (app did not run before, and does not now)"),
        ("hanging1", "the migration has not ended after 60 s (raise DEPLOY_TIMEOUT)"),
        ("crash1", "the new release does not stay up or become healthy"),
        ("unhealthy1", "the new release does not stay up or become healthy"),
        ("wrong1", "release other answers at http://127.0.0.1:20200, not wrong1"),
    ],
)
def test_a_failure_is_that_of_its_step(job, declare, release, words):
    declare(STACK_FILE + MIGRATION)
    end = job.deploy(release)
    assert end.reason.startswith(words), end.output
    if "migration" in words:
        assert "    app_migration.1: " in end.output and "    | a line of its log" in end.output
    assert not any(names(job.swarm))


def test_what_is_not_of_the_release_changes_before_it(job, declare):
    """While both change, a release that needs the database at its start would not find it."""
    times, start = {"app_database": [], "app_server": []}, job.swarm.start

    def noted(service):
        times[service["name"]].append(job.swarm.now)
        start(service)

    database = "\n  database:\n    image: postgres:18.1\n    environment: {NUMBER: '%s'}\n"
    declare(STACK_FILE + database % 1)
    assert not job.deploy("a1").reason
    job.swarm.start = noted
    declare(STACK_FILE + database % 2)
    assert not job.deploy("a2").reason
    assert not job.run("rollback").reason
    assert "(release a1 answers" in job.deploy("crash3").reason  # which undoes both
    assert len(times["app_database"]) == 4 and len(times["app_server"]) >= 4
    before = [server - database for database, server in itertools.product(*times.values())]
    assert min(it for it in before if it >= 0) >= HEALTH


def test_an_old_state_says_nothing_about_a_new_deployment(job, declare):
    declare(STACK_FILE + MIGRATION)
    job.deploy("a1"), job.deploy("a2")
    job.swarm.back(job.swarm.services["app_server"])  # docker service rollback, by hand
    job.swarm.start(job.swarm.services["app_server"])
    job.swarm.sleep(60)
    assert job.swarm.services["app_server"]["status"] == "rollback_completed"
    assert not job.deploy("a3").reason


def test_the_limit_that_was_met_is_named_with_its_file(job):
    real, job.swarm.service_ps = job.swarm.service_ps, None
    job.swarm.service_ps = lambda *a, **o: real(*a, **o).replace("exit (1)", "exit (137)")
    end = job.deploy("crash1")
    assert "does it need more memory? (memory: 512M in scripts/stack.yml)" in end.output


def test_a_secret_that_nobody_has_set_is_named_as_its_variable(job, declare):
    declare(STACK_FILE + DATABASE)
    reason = job.deploy("a1").reason
    assert reason == "the service database needs APP_SECRET_PASSWORD (of the type File)"
    assert not any(names(job.swarm))


def test_services_of_the_image_have_every_secret_and_others_those_that_they_name(
    job, declare, tmp_path
):
    worker = (
        "\n  worker:\n    <<: *server\n    ports: []\n    secrets: [{source: KEY, mode: 256}]\n"
    )
    declare(STACK_FILE + worker + DATABASE)
    env = {}
    for name in ("KEY", "PASSWORD"):
        (tmp_path / name).write_text(name)
        env[f"APP_SECRET_{name}"] = str(tmp_path / name)
    assert not job.deploy("a1", **env).reason
    given = {name: service["spec"]["secrets"] for name, service in job.swarm.services.items()}
    assert given == {
        "app_server": [{"source": "KEY"}, {"source": "PASSWORD"}],
        "app_worker": [{"source": "KEY", "mode": 256}, {"source": "PASSWORD"}],
        "app_database": [{"source": "PASSWORD"}],
    }


@pytest.mark.parametrize(
    "given, url",
    [
        ("https://{stack}.example.com/", "https://staging.example.com"),
        ("{stack}.example.com", "http://staging.example.com:20300"),
        ("2001:db8::1", "http://[2001:db8::1]:20300"),
    ],
)
def test_the_name_of_the_stack_may_be_part_of_its_address(given, url):
    stack = SimpleNamespace(name="staging")
    assert address(stack, {"DEPLOY_ADDRESS": given, "DEPLOY_PORT": "20300"}) == url


@pytest.mark.parametrize(
    "answering, said, remedy",
    [
        ("nobody", "nobody answers at http://127.0.0.1:20200 (", "set DEPLOY_ADDRESS, or,"),
        ("an error 502", "the proxy at http://127.0.0.1:20200 finds", "`server` in its network?"),
    ],
)
def test_what_answers_instead_is_told_with_what_to_do(job, answering, said, remedy):
    probe = job.swarm.probe
    job.swarm.probe = lambda *asked: f"{answering}\n" if "ask" in asked else probe(*asked)
    reason = job.deploy("a1").reason
    assert reason.startswith(said) and remedy in reason


def test_every_port_that_the_stack_publishes_must_be_free(job, declare):
    declare(STACK_FILE + PROXY)
    assert not job.deploy("a1").reason
    assert not job.deploy("a2").reason  # the ports are its own
    env = {"DEPLOY_STACK": "staging", "DEPLOY_PORT": "20300"}
    reason = job.deploy("a1", **env).reason
    assert reason == (
        "port 443 is used by the service app_proxy (stop it, or change the ports of proxy)"
    )
    declare(STACK_FILE)
    env["DEPLOY_PORT"] = "20200"
    reason = job.deploy("a1", **env).reason
    assert reason == "port 20200 is used by the service app_server (stop it, or set DEPLOY_PORT)"
    assert not job.deploy("a1", DEPLOY_STACK="staging", DEPLOY_PORT="20300").reason


def test_the_network_of_the_routing_mesh_is_compared_with_the_hosts(job):
    job.swarm.networks["ingress"] = {"name": "ingress", "labels": {}}
    asked = []
    job.swarm.before_call = asked.append
    assert not job.deploy("a1", DEPLOY_PUBLISH_MODE="ingress").reason
    [probe] = [it for it in asked if it[0] == "run" and "port" in it]
    assert probe[-5:] == ("port", "20200-20200", "a1", "", MESH)


# --- Whose it is


def test_only_what_is_of_this_project_and_stack_may_be_removed():
    things = [
        Thing("mine", "p", "app"),
        Thing("theirs", "other", "app"),
        Thing("of another stack", "p", "staging"),
        Thing("nobody's", None, "app"),
        Thing("an image", "p", None),
    ]
    assert removable(things, "p", "app", lambda name: True) == ["mine"]
    assert removable(things, "p", "app", lambda name: False) == []
    assert removable(things, "p", None, lambda name: True) == ["an image"]
    assert removable(things, None, "app", lambda name: True) == []


def test_a_stack_that_was_deployed_to_stay_is_never_one_of_a_merge_request(job):
    assert not job.deploy("a1").reason
    review = {"DEPLOY_STRATEGY": "review", "CI_REGISTRY_IMAGE": "registry.test/app"}
    refused = "the stack app was deployed to stay (set DEPLOY_STACK)"
    assert job.deploy("a2", **review).reason == refused
    assert job.run("stop", **review).reason == refused
    own = {**review, "DEPLOY_STACK": "review-17"}
    assert not job.deploy("a2", **own).reason
    assert not job.run("stop", **own).reason
    assert [*job.swarm.services] == ["app_server"] and job.swarm.answering(20200) == "a1"


def test_releases_of_another_project_stay_beside(job):
    env = {"DEPLOY_STRATEGY": "beside", "DEPLOY_KEEP": "2"}
    for release in ("a1", "a2"):
        assert not job.deploy(release, "registry.test/other", **env).reason
    for release in ("a3", "a4", "a5"):
        assert not job.deploy(release, **env).reason
    there = [f"app-{release}_server" for release in ("a1", "a2", "a4", "a5")]
    assert [*job.swarm.services] == there
    stop = {"DEPLOY_STRATEGY": "beside", "RELEASE": "a1", "CI_REGISTRY_IMAGE": "registry.test/app"}
    assert "the stack app-a1 is of another project, registry.test/other" in (
        job.run("stop", **stop).reason
    )
    assert [*job.swarm.services] == there
    assert not job.run("stop", **{**stop, "CI_REGISTRY_IMAGE": "registry.test/other"}).reason
    assert [*job.swarm.services] == there[1:]


def test_a_stack_of_another_project_is_refused(job):
    job.deploy("a1", "registry.test/other")
    before = names(job.swarm)
    assert "is of another project, registry.test/other (set DEPLOY_STACK" in job.deploy("a1").reason
    del job.swarm.services["app_server"]["labels"]["project"]
    job.swarm.configs.clear()
    assert "scripts/deploy did not make the stack app" in job.deploy("a1").reason
    assert names(job.swarm)[0] == before[0]


@pytest.mark.parametrize("moment", ["the migration runs", "it has run"])
def test_a_stack_without_its_server_can_be_deployed_again(job, declare, tmp_path, moment):
    (tmp_path / "password").write_text("pa55word")
    declare(STACK_FILE + MIGRATION + DATABASE)
    env = {"APP_SECRET_PASSWORD": str(tmp_path / "password")}
    if moment == "the migration runs":

        def kill(arguments):
            if "app_migration" in job.swarm.services:
                raise Killed

        job.swarm.before_call = kill
        with pytest.raises(Killed):
            job.deploy("a1", **env)
        job.swarm.before_call = lambda arguments: None
    else:
        job.deploy("a1", **env)
        del job.swarm.services["app_server"]
    assert not job.deploy("a2", **env).reason
    assert job.swarm.answering(20200) == "a2"


# --- Records


def kill_after_apply(job, release):
    def kill(arguments):
        if arguments[:2] == ("stack", "deploy"):
            raise Killed

    job.swarm.after_call = kill
    with pytest.raises(Killed):
        job.deploy(release)
    job.swarm.after_call = lambda arguments: None
    job.swarm.sleep(60)


def test_after_a_killed_job_one_goes_back_to_the_newest_verified_release(job):
    job.deploy("a1"), job.deploy("a2")
    kill_after_apply(job, "a3")
    assert job.swarm.answering(20200) == "a3"
    for release, records in (("a2", ["app.1", "app.2"]), ("a1", ["app.1"])):
        end = job.run("rollback")
        assert not end.reason and f"Going back to release {release}" in end.output
        assert job.swarm.answering(20200) == release and [*job.swarm.configs] == records
    assert "no release of the stack app was verified before" in job.run("rollback").reason


def test_after_a_change_by_hand_one_goes_back_to_what_was_verified(job):
    job.deploy("a1"), job.deploy("a2")
    server = job.swarm.services["app_server"]
    server["spec"] = {**server["spec"], "image": image_of("a9")}
    server["version"] = 99
    job.swarm.start(server)
    assert "Going back to release a2" in job.run("rollback").output
    assert job.swarm.answering(20200) == "a2"


def test_a_deployment_that_came_in_between_is_never_taken_for_ones_own(job, tmp_path):
    job.deploy("a1")

    def come_in_between(arguments):
        if arguments[0] == "run":  # the first has converged, and asks
            job.swarm.before_call = lambda arguments: None
            assert not Job(job.swarm, tmp_path).deploy("a3").reason

    job.swarm.before_call = come_in_between
    end = job.deploy("a2")
    assert end.reason == ("another deployment has come in between (the stack app is left as it is)")
    assert job.swarm.answering(20200) == "a3"
    assert "Going back to release a1" in job.run("rollback").output


@pytest.mark.parametrize("before", [[], ["a1"]])
def test_what_was_verified_while_a_deployment_went_on_is_what_undo_brings_back(
    job, tmp_path, before
):
    for release in before:
        job.deploy(release)

    def come_in_between(arguments):
        if arguments[:2] == ("stack", "deploy"):
            job.swarm.before_call = lambda arguments: None
            assert not Job(job.swarm, tmp_path).deploy("a3").reason

    job.swarm.before_call = come_in_between
    assert "(release a3 answers at http://127.0.0.1:20200)" in job.deploy("wrong1").reason
    assert job.swarm.answering(20200) == "a3"


def test_the_same_again_leaves_no_second_record_and_starts_nothing(job):
    job.deploy("a1")
    before, tasks = names(job.swarm), len(job.swarm.services["app_server"]["tasks"])
    assert not job.deploy("a1").reason
    assert names(job.swarm) == before
    assert len(job.swarm.services["app_server"]["tasks"]) == tasks


def test_what_an_older_version_has_left_is_read_and_kept(job):
    job.deploy("a1")
    [record] = job.swarm.configs.values()
    record["data"] = OLD_RECORD
    server = job.swarm.services["app_server"]
    server["labels"] = {**server["labels"], "deployment": "1764000000-33"}
    for network in job.swarm.networks.values():
        del network["labels"]["project"]
    assert "no release of the stack app was verified before" in job.run("rollback").reason
    assert "(release a1 answers at http://127.0.0.1:20200)" in job.deploy("crash1").reason
    assert not job.deploy("a2").reason
    back = job.run("rollback")
    assert not back.reason and "Going back to release a1" in back.output
    assert job.swarm.answering(20200) == "a1"
    environment = job.swarm.services["app_server"]["spec"]["environment"]
    assert environment == {"APP_DATE": "2026-13-45", "APP_SIGN": "=", "DRAIN_SECONDS": "0"}


def test_what_others_have_left_under_the_same_label_is_no_record(job):
    labels = {STACK: "app", "project": "their own meaning"}
    for name in ("app_settings", "settings.1"):
        job.swarm.configs[name] = {"name": name, "labels": dict(labels), "data": "a: b"}
    assert not job.deploy("a1").reason
    assert [*job.swarm.configs] == ["app_settings", "settings.1", "app.1"]


def test_images_of_the_last_builds_stay(job):
    def built(number):
        made = {
            "BUILT_TEST_IMAGE": f"registry.test/app/test@sha256:{number % 5 * str(number):0>64}",
            "BUILT_DEPLOY_IMAGE": f"registry.test/app/deploy@sha256:{number % 2:0>64}",
        }
        for image in made.values():
            job.swarm.images.setdefault(image, job.swarm.now)
        return made

    job.swarm.images["registry.test/other@sha256:1"] = 0
    for number in (1, 2, 3, 4):
        assert not job.deploy(f"a{number}", DEPLOY_KEEP="2", **built(number)).reason
    kept = {image_of("a3"), image_of("a4"), *built(3).values(), *built(4).values()}
    assert {*job.swarm.images} == {*kept, "registry.test/other@sha256:1"}
    label = job.swarm.services["app_server"]["labels"]["deploy_image"]
    assert label == built(4)["BUILT_DEPLOY_IMAGE"]
    job.run("rollback")
    assert job.swarm.services["app_server"]["labels"]["deploy_image"] == label  # the newest


def test_secrets_that_no_record_names_go(job, tmp_path):
    for number in range(4):
        (tmp_path / "key").write_text(str(number % 2))
        env = {"APP_SECRET_KEY": str(tmp_path / "key")} if number < 2 else {}
        assert not job.deploy(f"a{number}", DEPLOY_KEEP="2", **env).reason
        assert len(job.swarm.secrets) == [1, 2, 1, 0][number]


def test_nothing_is_removed_while_the_records_cannot_be_read(job):
    for release in ("a1", "a2", "a3"):
        job.deploy(release)
    before = names(job.swarm), {*job.swarm.images}
    remembered = []

    def fail(arguments):
        if remembered and arguments[:2] == ("config", "inspect"):
            raise Failed("no leader")
        if arguments[:2] == ("config", "create"):
            remembered.append(arguments)

    job.swarm.before_call = fail
    assert not job.deploy("a4").reason
    assert [name for name in before[0][1] if name not in job.swarm.configs] == []
    assert before[1] <= {*job.swarm.images}


# --- YAML and JSON


TEXTS = [
    "",
    "null",
    "007",
    "0o17",
    "1:20",
    "yes",
    "=",
    "<<",
    "2026-13-45",
    "2026-01-01 10:00:00 +5",
]
TEXTS += ["a: b # c\n  - d\n\n", "'\"\\'\" \\n \\", "  \t both ends\r\n ", "测试 ü 🙂\u2028\ufeff"]
TEXTS += ["\x1b[31m\x7f\x01\x85\x9f\uffff", "$HOME ${HOME} $$ $(id) `id`", "1e5", "~", "!!x", "@"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_value_is_never_yaml_by_accident(text):
    plan = {"services": {"server": {"environment": {"A": text, "123": text}, "image": "x"}}}
    assert yaml.safe_load(write_plan(plan).replace("$$", "$")) == plan


@pytest.mark.skipif(not shutil.which("docker"), reason="docker is not installed")
def test_docker_reads_and_writes_each_value_as_it_is(tmp_path):
    environment = {f"APP_{number}": text for number, text in enumerate(TEXTS)}
    secrets = {it: {"name": f"app-{it}", "external": True} for it in ("123", "NULL", "1E5", "0x1")}
    server = {"image": "x", "environment": environment, "secrets": [*secrets]}
    plan = {"services": {"server": server}, "secrets": secrets}
    for _ in range(2):
        (tmp_path / "file").write_text(write_plan(plan))
        command = ["docker", "stack", "config", f"--compose-file={tmp_path}/file"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        plan = read_plan(run.stdout)
        assert plan["services"]["server"]["environment"] == environment
        assert plan["secrets"].keys() == secrets.keys()
        json.dumps(plan)


def test_the_help_has_every_setting_and_its_default():
    for name, (default, *_) in deploy.SETTINGS.items():
        [line] = [it for it in deploy.usage().splitlines() if it.startswith(f"  {name} ")]
        assert line.endswith(f" ({default})") or not default
