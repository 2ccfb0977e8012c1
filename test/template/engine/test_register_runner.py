"""scripts/register-runner on bare hosts, with stand-ins for GitLab's API and for gitlab-runner.

Docker is real, and so is the dind that the script tries. The hosts have no Python: the script runs
in a container, as its help says.
"""

import contextlib
import http.server
import ipaddress
import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib

import pytest

import gitlab
from support import ROOT, await_true

URL = "http://10.77.0.1:8080"
RUNNER_IMAGE = "gitlab/gitlab-runner:alpine-v19.4.0"
RUNNER_DOCKERFILE = """\
FROM python:3.14-slim
COPY --chmod=755 gitlab_runner.py /usr/bin/gitlab-runner
STOPSIGNAL SIGQUIT
ENTRYPOINT ["gitlab-runner"]
CMD ["run"]
"""
# What the version in shell left of a registration, as it was seen.
OLD_CONFIG = """\
concurrent = 4
check_interval = 1

[[runners]]
  name = "mine build"
  url = "http://10.77.0.1:8080"
  id = 40
  token = "BUILD"
  executor = "docker"
  request_concurrency = 2
  environment = []
  [runners.docker]
    privileged = false
    services_privileged = true
    volumes = ["/certs", "/cache", "ci-runner-dind:/etc/docker:ro"]
    image = "docker:29.7.2-cli"

[[runners]]
  name = "mine deploy"
  url = "http://10.77.0.1:8080"
  id = 41
  token = "DEPLOY"
  executor = "docker"
"""
OLD_OPTIONS = f"""\
url='{URL}'
project='17'
description='mine'
runner_version=''
registry_mirror='https://mirror.test'
mtu=''
no_proxy=''
made=' build deploy'
script='3c6183638c6ee482be7c5b5d81ac2bf9a224146db038778ab8dc4a19491281a1  -'
"""
OLD_CALL = f"""
    for name in ci-runner ci-runner-dind; do
        docker volume create --label register-runner=docker:29.7.2-cli $name
    done
    docker run --rm --volume ci-runner:/runner --volume /tmp:/mnt python:3.14-slim \\
        sh -c 'cd /runner; cp /mnt/config.toml /mnt/options .; printf r_01ab > .runner_system_id'
    docker run --detach --name ci-runner --label register-runner=f4e82e22305f4bd1 \\
        --restart always --volume /var/run/docker.sock:/var/run/docker.sock \\
        --volume ci-runner:/etc/gitlab-runner --volume ci-runner-dind:/etc/docker:ro {RUNNER_IMAGE}
    docker swarm init --advertise-addr 127.0.0.1
    docker node update --label-add register-runner=ci-runner $(docker node ls -q)
"""
MAKE_CERTIFICATE = """
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=gitlab \\
        -addext subjectAltName=IP:10.77.0.1 \\
        -keyout /tmp/gitlab.key -out /tmp/gitlab.crt 2> /dev/null
"""


class Host:
    """A container that is a host with Docker and nothing else; the stand-ins are on it."""

    def __init__(self):
        label = "--label=gitlab-ci-pipeline=runners"
        self.id = self.local("run", "--detach", "--privileged", label, "docker:29.7.2-dind")
        await_true(lambda: "Server" in self.sh("docker version", check=False), seconds=60)
        self.sh("ip address add 10.77.0.1/32 dev lo")  # one that it and its containers reach
        for name in ("gitlab.py", "gitlab_runner.py"):
            self.write(f"/tmp/{name}", (ROOT / "test/template/parts" / name).read_text())
        self.write("/tmp/register-runner", (ROOT / "scripts/register-runner").read_text())
        self.write("/tmp/Dockerfile", RUNNER_DOCKERFILE)
        self.sh(f"docker build --quiet --tag {RUNNER_IMAGE} /tmp")
        self.sh("docker pull --quiet docker:29.7.2-cli; docker pull --quiet docker:29.7.2-dind")
        self.serve("gitlab", 8080)
        self.as_registered = None

    def serve(self, name, port, *files):
        command = f"python:3.14-slim python /tmp/gitlab.py {port} {' '.join(files)}"
        self.sh(f"docker run --detach --name {name} --network host --volume /tmp:/tmp:ro {command}")
        await_true(lambda: "ready" in self.sh(f"docker logs {name}"), seconds=30)

    @staticmethod
    def local(*arguments, **options):
        command = ["docker", *arguments]
        run = subprocess.run(command, check=True, text=True, capture_output=True, **options)
        return run.stdout.strip()

    def sh(self, code, check=True):
        return subprocess.run(
            ["docker", "exec", self.id, "sh", "-c", code],
            check=check,
            text=True,
            timeout=120,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout

    def write(self, path, text):
        command = ["docker", "exec", "--interactive", self.id, "sh", "-c", f"cat > {path}"]
        subprocess.run(command, input=text, text=True, check=True)

    def command(self, *arguments, **env):
        """Return a command that runs the script in a container, named `script`."""
        names = " ".join(f"--env {name}" for name in env)
        given = [f"--env={name}={value}" for name, value in env.items()]
        code = f"""
            exec docker run --rm --interactive --label script --network host {names} \\
                --volume /tmp:/tmp:ro --volume /root:/root:ro \\
                --volume /var/run/docker.sock:/var/run/docker.sock \\
                python:3.14-slim python - "$@" < /tmp/register-runner"""
        return ["docker", "exec", *given, self.id, "sh", "-c", code, "sh", *arguments]

    def signal(self, name):
        """Send a signal to the script, if it runs."""
        self.sh(f"docker ps -q --filter label=script | xargs -r docker kill --signal {name}")

    def run(self, *arguments, **env):
        began = time.monotonic()
        run = subprocess.run(
            self.command(*arguments, **env),
            text=True,
            timeout=200,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        run.seconds = time.monotonic() - began
        return run

    def register(self, *arguments, **env):
        return self.run(f"--url={URL}", "--project=17", *arguments, **env)

    @contextlib.contextmanager
    def started(self, *arguments):
        """Start to register runners; the block may interrupt that."""
        command = self.command(f"--url={URL}", "--project=17", *arguments, **CREATE)
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, **output) as run:
            yield run

    def gitlab(self, path="/state", method="GET"):
        """Ask the stand-in for GitLab."""
        return json.loads(self.sh(f"curl -s -X {method} {URL}{path}") or "null")

    def runners(self):
        return self.gitlab()["runners"]

    def options(self, name):
        """Return the options of all runners by that name."""
        return [runner[name] for runner in self.runners().values()]

    def text(self):
        return self.sh("docker exec ci-runner cat /etc/gitlab-runner/config.toml")

    def config(self):
        """Return config.toml: the whole, and its runners by the word at the end of their names."""
        config = tomllib.loads(self.text())
        return config, {entry["name"].split()[-1]: entry for entry in config.get("runners", [])}

    def left(self):
        """Return what is on the host that was not there before."""
        names = self.sh("docker ps --all --format '{{.Names}}'").split()
        containers = [name for name in names if "ci-runner" in name]
        names = self.sh("docker volume ls --quiet").split()
        volumes = [name for name in names if "ci-runner" in name]
        swarm = self.sh("docker info --format '{{.Swarm.LocalNodeState}}'").strip()
        return containers, volumes, swarm

    def state(self):
        """Return all that a registration makes, with what others may add to the swarm."""
        show = "docker ps --quiet --no-trunc && docker exec ci-runner cat /etc/gitlab-runner/*.toml"
        text = self.sh(f"{show} && docker secret ls && docker service ls", check=False)
        return text, self.left(), self.runners()

    def clean(self):
        """Make it bare again, and forget all runners."""
        names = "docker ps --all --format '{{.Names}}' | grep ci-runner"
        self.sh(f"{names} | xargs -r docker rm --force --volumes", check=False)
        self.sh(
            "docker volume ls --quiet | grep ci-runner | xargs -r docker volume rm", check=False
        )
        self.sh("docker swarm leave --force", check=False)
        self.gitlab("/reset", "PUT")


BARE = ([], [], "inactive")
CREATE = {"GITLAB_TOKEN": "glpat-create"}


@pytest.fixture(scope="module")
def bare():
    host = Host()
    yield host
    host.local("rm", "--force", "--volumes", host.id)


@pytest.fixture
def host(bare):
    """A host on which nothing is registered."""
    if bare.left() != BARE:
        bare.clean()
    bare.gitlab("/reset", "PUT")
    return bare


@pytest.fixture
def registered(bare):
    """A host with both runners; another test's, if that has left them as they were."""
    if bare.state() != bare.as_registered:
        bare.clean()
        run = bare.register(GITLAB_TOKEN="glpat-manage")
        assert run.returncode == 0, run.stdout
        bare.as_registered = bare.state()
    return bare


# What is not about the runner for builds does without: each call would try a dind, for seconds.
DEPLOY = "--only=deploy"


@pytest.fixture
def deploying(host):
    """A host with the deploy runner alone."""
    run = host.register(DEPLOY, GITLAB_TOKEN="glpat-manage")
    assert run.returncode == 0, run.stdout
    return host


def reason(run):
    """Return the one line in which a run failed."""
    assert run.returncode == 1, run.stdout
    [line] = [line for line in run.stdout.splitlines() if line.startswith("register-runner: ")]
    return line


def test_a_bare_host_becomes_two_verified_runners(host):
    run = host.register(GITLAB_TOKEN="glpat-create")
    print(f"{run.seconds:.1f} s\n{run.stdout}")  # a figure, not a promise
    assert run.returncode == 0, run.stdout
    assert "WRONG" not in run.stdout
    assert host.options("run_untagged") == ["true", "false"]
    assert host.options("access_level") == ["not_protected", "ref_protected"]
    assert host.options("tag_list") == ["", "deploy"]
    assert host.options("locked") == ["true", "true"]
    assert [len(managers) for managers in host.options("managers")] == [1, 1]
    assert host.left()[2] == "active"
    assert "wait until mainx is protected" in run.stdout
    # It runs, from a configuration of which it does not complain.
    assert "WARNING" not in host.sh("docker logs ci-runner 2>&1")
    mode = host.sh("docker exec ci-runner stat -c %a /etc/gitlab-runner/config.toml")
    assert mode.strip() == "600"


def test_each_runner_has_the_power_that_its_jobs_need(registered):
    config, runners = registered.config()
    assert config["concurrent"] > 2
    assert all(entry["request_concurrency"] > 1 for entry in runners.values())
    assert config["check_interval"] == 1  # GitLab Runner's own 3 s would delay each job
    build, deploy = runners["build"]["docker"], runners["deploy"]["docker"]
    assert build["privileged"] is deploy["privileged"] is False
    assert build["services_privileged"]
    assert build["allowed_privileged_services"] == ["**/docker:*-dind"]
    certificates = "/etc/docker/certs.d:/etc/docker/certs.d:ro"
    dind = ["ci-runner-dind:/etc/docker:ro", certificates]
    assert build["volumes"] == ["/certs", "/cache", *dind]
    assert "services_privileged" not in deploy and deploy["allowed_services"] == ["none"]
    assert deploy["volumes"] == ["/var/run/docker.sock:/var/run/docker.sock"]


def test_the_same_call_again_changes_nothing(registered):
    def state():
        containers = registered.sh("docker ps --quiet --no-trunc")
        return registered.text(), registered.runners(), containers

    before = state()
    asked = len(registered.gitlab()["requests"])
    run = registered.run()
    print(f"{run.seconds:.1f} s\n{run.stdout}")  # a figure, not a promise
    assert run.returncode == 0, run.stdout
    assert state() == before
    paths = {(method, path) for method, path, _ in registered.gitlab()["requests"][asked:]}
    assert paths == {("POST", "/api/v4/runners/verify")}


def test_the_runners_of_one_project_are_not_given_to_another(registered):
    run = registered.register("--project=18", GITLAB_TOKEN="glpat-manage")
    assert f"this host's runners are of {URL} 17" in reason(run)
    run = registered.register("--url=http://10.77.0.1:8081")
    assert f"this host's runners are of {URL} 17" in reason(run)


def test_status_says_what_is_there(registered):
    run = registered.run("--status")
    assert run.returncode == 0
    assert "ok: the container ci-runner runs" in run.stdout
    assert run.stdout.count("ok: GitLab accepts the ") == 2
    assert "ok: a privileged dind answers" in run.stdout
    registered.sh("docker stop ci-runner")
    stopped = registered.run("--status")
    assert "WRONG: the container ci-runner runs" in stopped.stdout and reason(stopped)


def test_runners_deleted_in_gitlab_are_registered_again(registered):
    delete = "curl -s -X DELETE -H 'PRIVATE-TOKEN: glpat-manage'"
    for number in registered.runners():
        registered.sh(f"{delete} {URL}/api/v4/runners/{number}")
    assert registered.run("--status").returncode == 1
    run = registered.register(GITLAB_TOKEN="glpat-manage")
    assert run.returncode == 0, run.stdout
    assert "does not accept the build runner of this host any more" in run.stdout
    assert len(registered.runners()) == len(registered.config()[0]["runners"]) == 2


def test_unregister_undoes_all_of_it(registered):
    run = registered.run("--unregister")
    assert run.returncode == 0, run.stdout
    assert registered.runners() == {} and registered.left() == BARE


def daemon(host):
    """Return the daemon.json of dind."""
    command = "docker run --rm --volume ci-runner-dind:/v python:3.14-slim cat /v/daemon.json"
    return json.loads(host.sh(command))


def test_dind_follows_the_docker_of_the_host(host):
    own = json.loads(host.sh("cat /etc/docker/daemon.json"))
    mirrors = ["http://10.99.0.1:5001/", "https://mirror.test/"]
    show = "docker info --format '{{.RegistryConfig.Mirrors}}'"
    certificate = "/etc/docker/certs.d/registry.other/ca.crt"
    host.sh("cp /etc/docker/daemon.json /tmp/daemon.json; ip link set eth0 mtu 1400")
    try:
        assert host.register(GITLAB_TOKEN="glpat-create").returncode == 0
        assert daemon(host)["mtu"] == 1400
        host.write("/etc/docker/daemon.json", json.dumps({**own, "registry-mirrors": mirrors}))
        host.sh("kill -HUP 1; ip link set eth0 mtu 1300")
        await_true(lambda: "https://mirror.test/" in host.sh(show))
        before, text = host.state(), host.text()
        run = host.run()
        assert run.returncode == 0, run.stdout
        assert daemon(host)["mtu"] == 1300 and daemon(host)["registry-mirrors"] == mirrors
        assert "10.99.0.1:5001" in daemon(host)["insecure-registries"]
        assert host.text() == text and host.state()[1:] == before[1:]
        # The certificates of the host are there at once.
        host.sh(f"mkdir -p {certificate.rpartition('/')[0]}; touch {certificate}")
        volumes = host.config()[1]["build"]["docker"]["volumes"]
        options = " ".join(f"--volume {it}" for it in volumes if ":" in it)
        seen = host.sh(f"docker run --rm {options} python:3.14-slim find /etc/docker -type f")
        assert {certificate, "/etc/docker/daemon.json"} <= {*seen.split()}
        # Networks that a build makes have the MTU, too.
        code = (
            "dockerd-entrypoint.sh dockerd > /dev/null 2>&1 & "
            "until docker network create n > /dev/null 2>&1; do sleep 0.3; done; "
            "docker network inspect n"
        )
        dind = f"docker run --rm --privileged {options} --entrypoint sh docker:29.7.2-dind"
        made = host.sh(f"{dind} -c '{code}'")
        assert '"com.docker.network.driver.mtu": "1300"' in made
    finally:
        host.sh("cp /tmp/daemon.json /etc/docker/; kill -HUP 1; ip link set eth0 mtu 1500")


def test_what_the_version_in_shell_has_left_is_taken_over(host):
    tokens = [host.gitlab(f"/runner/{name}")["token"] for name in ("build", "deploy")]
    config = OLD_CONFIG.replace("BUILD", tokens[0]).replace("DEPLOY", tokens[1])
    host.write("/tmp/config.toml", config)
    host.write("/tmp/options", OLD_OPTIONS)
    host.sh(OLD_CALL)
    runners = host.runners().keys()
    run = host.run()
    assert run.returncode == 0, run.stdout
    assert "registry_mirror (https://mirror.test) is no option any more" in run.stdout
    assert host.runners().keys() == runners
    _, entries = host.config()
    assert [entries[name]["token"] for name in ("build", "deploy")] == tokens
    assert entries["build"]["name"] == "mine build"
    text = host.text()
    again = host.run()
    assert again.returncode == 0 and host.text() == text and "no option" not in again.stdout
    assert host.run("--unregister").returncode == 0
    assert host.runners() == {} and host.left() == BARE  # it had made them


def test_another_version_of_gitlab_runner_takes_the_place_of_the_first(deploying):
    deploying.sh(f"docker tag {RUNNER_IMAGE} gitlab/gitlab-runner:alpine-v18.11.2")
    run = deploying.run("--runner-version=18.11.2")
    assert run.returncode == 0, run.stdout
    show = "docker inspect --format '{{.Config.Image}}' ci-runner"
    for _ in range(2):
        assert deploying.sh(show).strip() == "gitlab/gitlab-runner:alpine-v18.11.2"
        assert deploying.run().returncode == 0


def test_tokens_of_runners_made_in_gitlab_are_registered_as_they_are(host):
    tokens = {
        f"{name.upper()}_RUNNER_TOKEN": host.gitlab(f"/runner/{name}")["token"]
        for name in ("build", "deploy")
    }
    run = host.run(f"--url={URL}", RUNNER_TAG_LIST="left over", **tokens)
    assert run.returncode == 0, run.stdout
    _, runners = host.config()
    assert [runners[name]["token"] for name in ("build", "deploy")] == list(tokens.values())
    again = host.run(f"--url={URL}", **tokens)
    assert again.returncode == 0 and len(host.config()[0]["runners"]) == 2
    assert [len(managers) for managers in host.options("managers")] == [1, 1]
    assert host.run("--unregister").returncode == 0 and host.left() == BARE
    # They are somebody's: this host is no more one of their machines, that is all.
    assert [len(managers) for managers in host.options("managers")] == [0, 0]


def test_a_registration_token_of_an_older_server_makes_both(host):
    run = host.run(f"--url={URL}", REGISTRATION_TOKEN="GR1348941legacy")
    assert run.returncode == 0, run.stdout
    again = host.run(REGISTRATION_TOKEN="GR1348941legacy")
    assert again.returncode == 0 and len(host.runners()) == 2, again.stdout
    assert host.options("tag_list") == ["", "deploy"]
    assert host.options("access_level")[1] == "ref_protected"
    assert host.run("--unregister").returncode == 0
    assert host.runners() == {} and host.left() == BARE


@pytest.mark.parametrize(
    "arguments, env, words",
    [
        ([], {"GITLAB_TOKEN": "glpat-unknown"}, "the access token is wrong, or has expired"),
        ([], {"DEPLOY_RUNNER_TOKEN": "glrt-unknown"}, "the deploy runner: is not valid"),
        ([], CREATE | {"IMAGE_PREFIX": "no.invalid"}, "cannot pull no.invalid/docker:29.7.2-cli"),
        (["--runner-version=0.1"], CREATE, "cannot pull gitlab/gitlab-runner:alpine-v0.1"),
        ([], CREATE | {"HTTP_PROXY": "http://nowhere.invalid"}, "making the deploy runner: GitLab"),
    ],
)
def test_wrong_input_ends_in_one_line_and_leaves_nothing(host, arguments, env, words):
    assert words in reason(host.register(DEPLOY, *arguments, **env))
    assert host.left() == BARE and host.runners() == {}


def test_a_server_that_fails_ends_in_one_line_and_a_second_run_heals_it(host):
    faults = {"500": "GitLab answers 500", "422": "GitLab answers 422", "cut": "GitLab answers not"}
    for fault, words in faults.items():
        host.gitlab(f"/fault/{fault}", "PUT")
        assert words in reason(host.register(DEPLOY, GITLAB_TOKEN="glpat-create"))
        assert host.left() == BARE
    assert host.register(DEPLOY, GITLAB_TOKEN="glpat-create").returncode == 0
    assert len(host.runners()) == 1


def test_of_a_runner_that_gitlab_made_too_late_it_says_where_to_look(host):
    host.gitlab("/fault/slow:23", "PUT")  # it waits for 20
    said = reason(host.register(DEPLOY, GITLAB_TOKEN="glpat-create"))
    assert "timed out" in said and "if it timed out: Settings > CI/CD > Runners" in said
    await_true(lambda: len(host.runners()) == 1)
    assert host.left() == BARE


@pytest.mark.parametrize("words", ["the deploy", "swarm"])
def test_an_interrupted_run_makes_no_runner_twice(host, words):
    host.gitlab("/fault/slow:3", "PUT")
    with host.started(DEPLOY) as run:
        for line in run.stdout:
            if words in line:
                host.signal("TERM")
        assert run.wait(60) == 1
    assert host.left() == BARE and host.runners() == {}
    assert host.register(DEPLOY, GITLAB_TOKEN="glpat-create").returncode == 0
    assert len(host.runners()) == 1


@pytest.mark.parametrize("words", ["dind", "swarm", "the build", "the deploy", "Checking"])
def test_killed_at_any_step_and_called_again_it_leaves_no_runner_that_nobody_knows(host, words):
    """Twice: what a killed call has left may be half done, too."""
    said, only = "", () if words in ("dind", "the build") else (DEPLOY,)
    for _ in range(2):
        if "the " in words:  # while GitLab makes it, the worst moment
            host.gitlab("/fault/slow:1", "PUT")
        with host.started(*only) as run:
            for line in run.stdout:
                said += line
                if line.startswith("==>") and words in line:
                    host.signal("KILL")
            run.wait(60)
        await_true(lambda: host.gitlab()["fault"] == "")  # it has heard the call
    last = host.register(*only, GITLAB_TOKEN="glpat-create")
    assert last.returncode == 0, last.stdout
    known = [runner["token"] for runner in host.config()[1].values()]
    unknown = [it["description"] for it in host.runners().values() if it["token"] not in known]
    told = re.findall("was killed while GitLab made the runner '(.*?)'", said + last.stdout)
    assert sorted(unknown) == sorted(told)
    assert host.run("--unregister").returncode == 0 and host.left() == BARE


def test_when_the_disk_is_full_the_runner_in_gitlab_is_deleted_again(host):
    full = "--label register-runner=docker:29.7.2-cli"
    full += " --opt type=tmpfs --opt device=tmpfs --opt o=nr_inodes=1"
    host.sh(f"docker volume create {full} ci-runner")
    said = reason(host.register(DEPLOY, GITLAB_TOKEN="glpat-manage"))
    assert "cannot write into the volume ci-runner: " in said
    assert host.runners() == {}
    host.sh("docker volume rm ci-runner")
    assert host.register(DEPLOY, GITLAB_TOKEN="glpat-manage").returncode == 0


def test_of_several_addresses_the_swarm_takes_the_one_of_the_way_out(host):
    host.sh("ip address add 10.78.0.1/24 dev eth0")
    try:
        run = host.register(DEPLOY, GITLAB_TOKEN="glpat-create")
        assert run.returncode == 0, run.stdout
        address = host.sh("docker info --format '{{.Swarm.NodeAddr}}'").strip()
        assert re.search(r" src (\S+)", host.sh("ip route get 1.1.1.1"))[1] == address
    finally:
        host.sh("ip address del 10.78.0.1/24 dev eth0")


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.7/24"], ["10.1.2.3/8", "172.16.0.1/12"]],
    ids=["Swarm's own choice", "several"],
)
def test_the_networks_of_a_new_swarm_overlap_none_of_the_host(host, addresses):
    for address in addresses:
        host.sh(f"ip address add {address} dev eth0")
    try:
        run = host.register(DEPLOY, GITLAB_TOKEN="glpat-create")
        assert run.returncode == 0, run.stdout
        show = "docker network inspect --format '{{range .IPAM.Config}}{{.Subnet}}{{end}}' ingress"
        subnet = ipaddress.ip_network(await_true(lambda: host.sh(show, check=False).strip()))
        routes = re.findall(r"^(\d[\d./]+) ", host.sh("ip route"), re.MULTILINE)
        assert len(routes) > len(addresses)
        assert not [route for route in routes if subnet.overlaps(ipaddress.ip_network(route))]
    finally:
        for address in addresses:
            host.sh(f"ip address del {address} dev eth0")


def test_a_swarm_that_cannot_be_made_leaves_nothing(host):
    host.serve("taken", 2377)
    try:
        said = reason(host.register(DEPLOY, GITLAB_TOKEN="glpat-create"))
    finally:
        host.sh("docker rm --force taken")
    assert "cannot make a swarm: " in said and "address already in use" in said
    assert host.left() == BARE and host.runners() == {}


def test_unregister_says_what_to_delete_where_gitlab_is_out_of_reach(deploying):
    deploying.sh("docker stop --time 0 gitlab")
    try:
        run = deploying.run("--unregister")
    finally:
        deploying.sh("docker start gitlab")
        state = f"curl -s {URL}/state"
        await_true(lambda: "runners" in deploying.sh(state, check=False), seconds=30)
    told = "delete the deploy runner in Settings > CI/CD > Runners (GitLab answers nothing: "
    assert run.returncode == 0 and told in run.stdout, run.stdout
    assert deploying.left() == BARE


def test_one_runner_only(host):
    run = host.register("--only=build", GITLAB_TOKEN="glpat-create")
    assert run.returncode == 0 and "deploy: no runner here" in run.stdout, run.stdout
    assert len(host.runners()) == 1 and host.left()[2] == "inactive"
    assert host.run().returncode == 0 and set(host.config()[1]) == {"build"}
    assert host.register("--only=deploy", GITLAB_TOKEN="glpat-create").returncode == 0
    assert set(host.config()[1]) == {"build", "deploy"} and len(host.runners()) == 2
    assert "for all runners" in reason(host.run("--unregister", "--only=build"))


def test_a_runner_for_reviews_is_refused_beside_the_runner_deploy(host):
    run = host.register("--only=review", GITLAB_TOKEN="glpat-create")
    assert run.returncode == 0 and host.left()[2] == "active", run.stdout
    assert set(host.config()[1]) == {"review"}
    [made] = host.runners().values()
    assert (made["tag_list"], made["access_level"]) == ("review", "not_protected")
    refused = host.register("--only=deploy", GITLAB_TOKEN="glpat-create")
    assert "review needs another host than deploy" in reason(refused)
    assert len(host.runners()) == 1 and host.run().returncode == 0


def test_another_container_of_that_name_stays_as_it_is(host):
    host.sh("docker run --detach --name ci-runner python:3.14-slim sleep 600")
    run = host.register(GITLAB_TOKEN="glpat-create")
    assert "the container ci-runner is somebody else's" in reason(run)
    assert host.sh("docker inspect --format '{{.State.Running}}' ci-runner").strip() == "true"
    assert host.runners() == {}


@pytest.mark.parametrize("action", [(), ("--unregister",)], ids=["register", "unregister"])
def test_a_volume_of_somebody_else_stays_as_it_is(host, action):
    use = "docker run --rm --volume ci-runner:/v python:3.14-slim"
    host.sh(f"docker volume create ci-runner; {use} touch /v/mine")
    run = host.register(*action, GITLAB_TOKEN="glpat-create")
    assert "the volume ci-runner is somebody else's" in reason(run)
    assert host.sh(f"{use} ls /v") == "mine\n" and host.runners() == {}


def test_a_lost_volume_of_dind_is_made_again(host):
    """Docker makes it anew, empty and without a mark, if a job comes first."""
    assert host.register(GITLAB_TOKEN="glpat-create").returncode == 0
    host.sh("docker rm --force ci-runner; docker volume rm ci-runner-dind")
    for _ in range(2):
        assert host.run().returncode == 0
        assert daemon(host)["mtu"] == 1500
        assert host.left()[2] == "active"
        host.sh("""
            docker rm --force ci-runner; docker volume rm ci-runner-dind
            docker volume create ci-runner-dind
        """)
    assert host.run("--unregister").returncode == 0 and host.left() == BARE


def test_a_swarm_of_somebody_else_stays_as_it_is(host):
    host.sh("docker swarm init --advertise-addr 127.0.0.1")
    assert host.register(DEPLOY, GITLAB_TOKEN="glpat-create").returncode == 0
    assert host.run("--unregister").returncode == 0
    assert host.left() == ([], [], "active")


def test_a_swarm_that_is_in_use_stays(deploying):
    deploying.sh("echo x | docker secret create mine -")
    run = deploying.run("--unregister")
    assert run.returncode == 0 and "the host stays a swarm: it is in use" in run.stdout
    assert deploying.left() == ([], [], "active")


def test_two_calls_at_once_make_no_runner_twice(host):
    command = host.command(f"--url={URL}", "--project=17", GITLAB_TOKEN="glpat-create")
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len(host.runners()) == len(host.config()[0]["runners"]) == 2


def test_two_names_at_once_share_the_host(host):
    names = ("ci-runner", "ci-runner-b")
    options = (f"--url={URL}", "--project=17", DEPLOY)
    runs = [
        subprocess.Popen(
            host.command(*options, f"--name={name}", GITLAB_TOKEN="glpat-create"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    outputs = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len(host.runners()) == 2
    for name in names:
        assert host.run("--unregister", f"--name={name}").returncode == 0
    assert host.left()[:2] == ([], []) and host.runners() == {}


def break_the_container(host):
    """Make the runners' container crash again and again."""
    host.sh("""
        docker exec ci-runner sh -c 'echo "broken [" >> /etc/gitlab-runner/config.toml'
        docker kill ci-runner; docker start ci-runner
    """)
    await_true(lambda: "Restarting" in host.sh("docker ps --format '{{.Status}}'"), seconds=20)


def test_a_container_that_crashes_again_and_again_is_seen_healed_and_unregistered(deploying):
    text, runners = deploying.text(), deploying.runners()
    break_the_container(deploying)
    status = deploying.run("--status")
    assert "WRONG: the container ci-runner runs" in status.stdout, status.stdout
    run = deploying.run()
    assert run.returncode == 0, run.stdout
    assert deploying.text() == text and deploying.runners() == runners
    break_the_container(deploying)
    run = deploying.run("--unregister")
    assert run.returncode == 0 and deploying.left() == BARE, run.stdout


def test_mirror_prefix_and_proxy_reach_the_runners(host):
    for image in (RUNNER_IMAGE, "docker:29.7.2-cli", "docker:29.7.2-dind"):
        host.sh(f"docker tag {image} mirror.test/{image}")
    proxy = {"http_proxy": "http://user:pa55word@127.0.0.1:3128", "NO_PROXY": "10.77.0.1"}
    env = {"GITLAB_TOKEN": "glpat-create", "IMAGE_PREFIX": "mirror.test/", **proxy}
    machine = host.sh("uname -m").strip().replace("aarch64", "arm64")
    helper = f"gitlab-runner-helper:{machine}-v19.4.0"
    assert f"cannot pull mirror.test/gitlab/{helper}" in reason(host.register(**env))
    host.sh(f"docker tag {RUNNER_IMAGE} mirror.test/gitlab/{helper}")
    run = host.register(**env)
    assert run.returncode == 0 and "pa55word" not in run.stdout, run.stdout
    entry = host.config()[1]["build"]
    assert entry["docker"]["helper_image"] == f"mirror.test/gitlab/{helper}"
    environment = dict(pair.split("=", 1) for pair in entry["environment"])
    assert environment["HTTP_PROXY"] == environment["http_proxy"] == proxy["http_proxy"]
    assert set(environment["NO_PROXY"].split(",")) >= {"10.77.0.1", "docker", "app"}
    before = host.text()
    again = host.run()  # as with sudo, which drops the environment
    assert again.returncode == 0 and host.text() == before, again.stdout


def test_a_name_that_only_the_host_knows_is_told(host):
    host.sh("echo 10.77.0.1 gitlab.test >> /etc/hosts")
    run = host.register("--url=http://gitlab.test:8080", GITLAB_TOKEN="glpat-create")
    host.sh("sed '$d' /etc/hosts > /tmp/hosts && cat /tmp/hosts > /etc/hosts")
    said = reason(run)
    assert "the build runner: " in said and "gitlab.test" in said and "DNS?" in said
    assert host.left() == BARE and host.runners() == {}


def test_a_private_ca_is_asked_for_and_then_trusted(host):
    host.sh(MAKE_CERTIFICATE)
    host.serve("gitlab-tls", 8443, "/tmp/gitlab.crt", "/tmp/gitlab.key")

    def register(url, *arguments):
        return host.register(f"--url={url}", DEPLOY, *arguments, GITLAB_TOKEN="glpat-create")

    try:
        unknown = reason(register("https://10.77.0.1:8443"))
        assert "self-signed certificate" in unknown and "--ca-file?" in unknown
        host.sh("ip address add 10.77.0.2/32 dev lo")
        misnamed = reason(register("https://10.77.0.2:8443", "--ca-file=/tmp/gitlab.crt"))
        assert "IP address mismatch" in misnamed and "10.77.0.2" in misnamed
        # As an editor on Windows leaves it.
        host.sh("{ printf '\\357\\273\\277'; sed 's/$/\\r/' /tmp/gitlab.crt; } > /tmp/windows.crt")
        trusted = "--ca-file=/tmp/windows.crt"
        run = register("https://10.77.0.1:8443", trusted)
        assert run.returncode == 0, run.stdout
        assert "ok: GitLab accepts the deploy runner" in run.stdout
        state = host.state()
        for again in ((), (trusted,)):  # it is remembered
            assert host.run(*again).returncode == 0 and host.state() == state
        assert host.run("--unregister").returncode == 0 and host.runners() == {}
    finally:
        host.sh("docker rm --force gitlab-tls; ip address del 10.77.0.2/32 dev lo", check=False)


@pytest.mark.parametrize(
    "env",
    [CREATE, {"GITLAB_TOKEN_FILE": "/tmp/token"}],
    ids=["environment", "file"],
)
def test_no_secret_is_seen_anywhere_but_in_the_configuration(host, env):
    """Watches all processes while it runs; then searches output, containers and files."""
    read = "while [ -e /tmp/watching ]; do cat /proc/[0-9]*/cmdline; done"
    host.write("/tmp/watch", f"{read} 2> /dev/null > /tmp/seen\n")
    host.write("/tmp/token", "\ufeffglpat-create\r\n")  # as from Windows
    host.sh("touch /tmp/watching")
    with subprocess.Popen(["docker", "exec", host.id, "sh", "/tmp/watch"]) as watch:
        run = host.register(**env)
        host.sh("rm /tmp/watching")
        watch.wait(30)
    assert run.returncode == 0, run.stdout
    tokens = [runner["token"] for runner in host.runners().values()] + ["glpat-create"]
    containers = host.sh("docker inspect $(docker ps --all --quiet); docker logs ci-runner 2>&1")
    seen = host.sh("cat /tmp/seen") + run.stdout + containers
    assert "python\0-\0" in seen  # the watcher did see what ran
    assert not [token for token in tokens if token in seen]
    host.sh("rm /tmp/token")
    search = f"grep -rl -e {tokens[0]} -e glpat-create /tmp /root /var/log 2> /dev/null"
    assert host.sh(search, check=False) == "/tmp/gitlab.py\n"


def test_it_runs_on_a_host_with_python_too():
    """The machine of the tests is one. Its own engine makes no swarm, so only the build runner."""
    name = f"ci-runner-{os.getpid()}"
    server = http.server.ThreadingHTTPServer(("", 0), gitlab.Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bridge = Host.local("network", "inspect", "--format={{json .IPAM.Config}}", "bridge")
    url = f"http://{json.loads(bridge)[0]['Gateway']}:{server.server_port}"
    parts, mirror = ROOT / "test/template/parts", f"{name}.invalid/"
    helper = f"gitlab/gitlab-runner-helper:{os.uname().machine.replace('aarch64', 'arm64')}-v19.4.0"
    names = ("docker:29.7.2-cli", "docker:29.7.2-dind", RUNNER_IMAGE, helper)
    ours = [mirror + image for image in names]  # this engine may have the real ones
    for image in names[:2]:
        Host.local("pull", "--quiet", image)
        Host.local("tag", image, mirror + image)
    for image in ours[2:]:
        Host.local("build", "--tag", image, "--file=-", parts, input=RUNNER_DOCKERFILE)
    command = [sys.executable, ROOT / "scripts/register-runner", f"--name={name}"]
    env = {**os.environ, **CREATE, "IMAGE_PREFIX": mirror}
    options = {"env": env, "capture_output": True, "text": True}
    try:
        about = (f"--url={url}", "--project=17", "--only=build")
        first = subprocess.run([*command, *about], **options)
        assert first.returncode == 0, first.stdout + first.stderr
        assert len(gitlab.state["runners"]) == 1
    finally:
        last = subprocess.run([*command, "--unregister"], **options)
        server.shutdown()
        server.server_close()
        Host.local("image", "rm", *ours)
    assert last.returncode == 0 and gitlab.state["runners"] == {}, last.stdout + last.stderr
    assert name not in Host.local("volume", "ls") + Host.local("ps", "--all")
