"""The released image, as it was built, pushed and tested by the pipeline's first push."""

import json
import re
import shlex

import pytest

from support import ROOT, await_true

pytestmark = pytest.mark.docker

# As scripts/deploy runs it.
LOCKED = ("--read-only", "--cap-drop=ALL")


@pytest.fixture(scope="module")
def image(pipeline):
    """Name and digest of the released image."""
    return pipeline.first_image


@pytest.fixture(scope="module")
def config(pipeline, image):
    return json.loads(pipeline.docker("image", "inspect", image))[0]["Config"]


@pytest.fixture
def container(pipeline, image):
    """A container of the release, locked as when deployed, that has become healthy."""
    name = pipeline.docker("run", "--detach", *LOCKED, image).strip()

    def healthy():
        return "healthy" == pipeline.docker("inspect", "--format={{.State.Health.Status}}", name).strip()

    await_true(healthy, seconds=30)
    yield name
    pipeline.docker("rm", "--force", name)


def python(pipeline, image, code):
    """Run Python code in a fresh container, locked; return what it prints."""
    return pipeline.docker("run", "--rm", *LOCKED, image, "python", "-c", code).strip()


def test_it_becomes_healthy_locked_and_answers_with_its_commit(pipeline, container):
    code = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8744/test').headers['X-Release'])"
    answer = pipeline.docker("exec", container, "python", "-c", code).strip()
    assert answer == pipeline.first_commit


def test_the_server_is_process_1_of_a_numbered_user(pipeline, container):
    assert pipeline.docker("exec", container, "cat", "/proc/1/cmdline") == "python\0server.py\0"
    assert pipeline.docker("exec", container, "id", "-u").strip() == "10001"


def test_docker_stop_ends_it_in_time_after_five_seconds_of_drain(pipeline, container):
    # The drain is the server's default.
    pipeline.docker("stop", "--time=15", container)
    state = json.loads(pipeline.docker("inspect", "--format={{json .State}}", container))
    assert state["ExitCode"] == 0
    assert "release" in pipeline.docker("logs", container)


def test_it_turns_unhealthy_when_the_service_no_longer_answers(pipeline, config):
    command = config["Healthcheck"]["Test"]
    assert command[0] == "CMD"  # exec form: no shell between
    assert config["Healthcheck"]["StartInterval"] == 500_000_000


def test_the_health_check_fails_when_nobody_answers(pipeline, image, config):
    check = shlex.join(config["Healthcheck"]["Test"][1:])
    assert pipeline.host(
        "sh", "-c", f"docker run --rm {image} {check} > /dev/null 2>&1; echo $?"
    ).strip() == "1"


def test_it_cannot_write_its_source(pipeline, image):
    listing = pipeline.docker("run", "--rm", image, "stat", "-c", "%u %A %n", "/app", "/app/server.py")
    for line in listing.splitlines():
        owner, mode, name = line.split()
        assert owner == "0" and mode[5] == mode[8] == "-", line


def test_it_holds_no_tests_and_no_build_tools(pipeline, image):
    code = (
        "import importlib.util as u, shutil, os\n"
        "print([m for m in ('pytest', 'pytest_tornado', 'requests', 'coverage') if u.find_spec(m)],\n"
        "      [c for c in ('gcc', 'make', 'git', 'curl', 'vim') if shutil.which(c)], sorted(os.listdir('/app')))"
    )
    assert python(pipeline, image, code) == "[] [] ['requirements.txt', 'server.py']"


def test_all_that_start_up_imports_is_compiled_ahead(pipeline, container):
    code = (
        "import os, sys; sys.argv = ['server.py']; sys.dont_write_bytecode = True; import server, http.client\n"
        "print([m.__file__ for n, m in sys.modules.items() if n != 'server' and getattr(m, '__cached__', None)\n"
        "       and not os.path.exists(m.__cached__)])"
    )
    assert pipeline.docker("exec", container, "python", "-W", "ignore", "-c", code).strip() == "[]"


def test_its_labels_say_where_it_comes_from(pipeline, config):
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert labels["revision"] == pipeline.first_commit
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    assert labels["source"] == "https://gitlab.example.com/group/project"


def test_its_time_zone_is_shanghai(pipeline, image):
    assert pipeline.docker("run", "--rm", image, "date", "+%z").strip() == "+0800"


def test_it_exposes_its_port(config):
    assert config["ExposedPorts"] == {"8744/tcp": {}}


@pytest.fixture(scope="module")
def source(pipeline):
    """The working tree in the pipeline's host, for builds by hand."""
    pipeline.put_source("/tmp/hand")
    return "/tmp/hand"


def test_the_time_zone_is_a_build_argument_and_a_wrong_one_stops_the_build(pipeline, source):
    build = f"cd {source} && TZ=$1 RELEASE=hand scripts/build 2>&1; echo status $?"
    assert "status 0" in pipeline.host("sh", "-c", build, "sh", "Europe/Berlin")
    assert pipeline.docker("run", "--rm", "app:release", "date", "+%Z").strip() in ("CET", "CEST")
    output = pipeline.host("sh", "-c", build, "sh", "Asia/Shangai")
    assert "there is no time zone 'Asia/Shangai' (see TZ)" in output and "status 1" in output


def test_the_debug_image_has_the_tools_and_vim_its_settings(pipeline, source):
    output = pipeline.host("sh", "-c", f"cd {source} && RELEASE=hand scripts/build debug 2>&1; echo status $?", timeout=300)
    assert "status 0" in output, output
    tools = "for tool in vim curl netstat less sz tmux; do command -v $tool || echo no $tool; done"
    assert "no " not in pipeline.docker("run", "--rm", "app:debug", "sh", "-c", tools)
    settings = pipeline.docker("run", "--rm", "app:debug", "cat", "/etc/vim/vimrc.local").splitlines()
    assert settings == [f"set {name}" for name in (
        "number", "fileencoding=utf-8", "tabstop=4", "shiftwidth=4", "autoindent", "smartindent", "cursorline"
    )]
    assert pipeline.docker("run", "--rm", "app:debug", "id", "-u").strip() == "10001"


def test_the_debian_mirror_of_the_debug_image_is_a_setting(pipeline, source):
    output = pipeline.host("sh", "-c", (
        f"cd {source} && DEBIAN_MIRROR=http://127.0.0.1:9/debian RELEASE=hand scripts/build debug 2>&1; echo status $?"
    ), timeout=300)
    assert "status 1" in output
