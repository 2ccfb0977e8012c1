"""The released image, as it was built, pushed and tested by the pipeline's first push."""

import json
import re
import shlex
import time
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from support import ROOT, await_true

# As scripts/deploy runs it.
LOCKED = ("--read-only", "--cap-drop=ALL")


@pytest.fixture(scope="module")
def image(pipeline):
    """Name and digest of the released image."""
    return pipeline.first_image


@pytest.fixture(scope="module")
def config(pipeline, image):
    return json.loads(pipeline.docker("image", "inspect", image))[0]["Config"]


@pytest.fixture(scope="module")
def container(pipeline, image):
    """A container of the release, locked as when deployed, that has become healthy."""
    name = pipeline.docker("run", "--detach", *LOCKED, image).strip()

    def healthy():
        status = pipeline.docker("inspect", "--format={{.State.Health.Status}}", name)
        return status.strip() == "healthy"

    await_true(healthy, seconds=30)
    yield name
    pipeline.docker("rm", "--force", name)


def python(pipeline, image, code):
    """Run Python code in a fresh container, locked; return what it prints."""
    return pipeline.docker("run", "--rm", *LOCKED, image, "python", "-c", code).strip()


def test_it_becomes_healthy_locked_and_answers_with_its_commit(pipeline, container):
    code = (
        "import urllib.request as r\n"
        "print(r.urlopen('http://127.0.0.1:8744/test').headers['X-Release'])"
    )
    answer = pipeline.docker("exec", container, "python", "-c", code).strip()
    assert answer == pipeline.first_commit


def test_the_server_is_process_1_of_a_numbered_user(pipeline, container):
    assert pipeline.docker("exec", container, "cat", "/proc/1/cmdline") == "python\0server.py\0"
    assert pipeline.docker("exec", container, "id", "-u").strip() == "10001"


def test_docker_stop_ends_it_in_time_after_five_seconds_of_drain(pipeline, container):
    # The drain is the server's default.
    began = time.monotonic()
    pipeline.docker("stop", "--time=15", container)
    assert 4.5 < time.monotonic() - began < 12
    state = json.loads(pipeline.docker("inspect", "--format={{json .State}}", container))
    assert state["ExitCode"] == 0
    assert "release" in pipeline.docker("logs", container)


def test_it_turns_unhealthy_when_the_service_no_longer_answers(pipeline, image):
    # The image's own check, but every second.
    often = ("--health-interval=1s", "--health-timeout=1s", "--health-retries=1")
    name = pipeline.docker("run", "--detach", *LOCKED, *often, image).strip()
    state = ("inspect", "--format={{.State.Health.Status}}", name)
    try:
        await_true(lambda: pipeline.docker(*state) == "healthy\n", seconds=30)
        pipeline.docker("kill", "--signal=STOP", name)
        await_true(lambda: pipeline.docker(*state) == "unhealthy\n", seconds=60)
    finally:
        pipeline.docker("rm", "--force", name)


def test_its_health_check_is_frequent_while_it_starts_and_needs_no_shell(config):
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Healthcheck"]["StartInterval"] == 500_000_000


def test_the_health_check_fails_when_nobody_answers(pipeline, image, config):
    check = shlex.join(config["Healthcheck"]["Test"][1:])
    code = f"docker run --rm {image} {check} > /dev/null 2>&1; echo $?"
    assert pipeline.host("sh", "-c", code).strip() == "1"


def test_it_cannot_write_its_source(pipeline, image):
    stat = ("stat", "-c", "%u %A %n", "/app", "/app/server.py")
    for line in pipeline.docker("run", "--rm", image, *stat).splitlines():
        owner, mode, name = line.split()
        assert owner == "0" and mode[5] == mode[8] == "-", line


def test_it_holds_no_tests_and_no_build_tools(pipeline, image):
    code = """if True:
        import importlib.util, os, shutil
        packages = "pytest", "pytest_tornado", "requests", "coverage"
        print([name for name in packages if importlib.util.find_spec(name)])
        print([name for name in ("gcc", "make", "git", "curl", "vim") if shutil.which(name)])
        print([name for name in os.listdir("/app") if name.startswith((".", "test", "scripts"))])
    """
    assert python(pipeline, image, code).splitlines() == ["[]", "[]", "[]"]


def test_the_packages_and_what_they_need_of_python_are_compiled_ahead(pipeline, image):
    code = """if True:
        import os, sys
        sys.dont_write_bytecode = True
        import http.client, tornado.httpserver, tornado.options, tornado.web
        caches = [getattr(module, "__cached__", None) for module in sys.modules.values()]
        import importlib.metadata, importlib.util, re
        names = re.findall(r"^([\\w.-]+)", open("requirements.txt").read(), re.MULTILINE)
        for name in names:
            files = [str(file.locate()) for file in importlib.metadata.files(name)]
            sources = [file for file in files if file.endswith(".py")]
            caches += [importlib.util.cache_from_source(source) for source in sources]
        missing = [cache for cache in caches if cache and not os.path.exists(cache)]
        print(len(names), len(caches) > 100, missing)
    """
    count = len(re.findall(r"^[\w.-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert python(pipeline, image, code) == f"{count} True []"


def test_its_labels_say_where_it_comes_from(pipeline, config):
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert labels["revision"] == pipeline.first_commit
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    assert labels["source"] == "https://gitlab.example.com/group/project"


def test_its_time_zone_is_that_of_the_dockerfile(pipeline, image):
    zone = re.search(r"^ARG TZ=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    offset = datetime.now(ZoneInfo(zone)).strftime("%z")
    assert pipeline.docker("run", "--rm", image, "date", "+%z").strip() == offset


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
    assert "there is no time zone 'Asia/Shangai' (see TZ)" in output
    assert "status 1" in output


def test_the_debug_image_has_the_tools_and_vim_its_settings(pipeline, source):
    build = f"cd {source} && RELEASE=hand scripts/build debug 2>&1; echo status $?"
    output = pipeline.host("sh", "-c", build, timeout=300)
    assert "status 0" in output, output
    tools = "for tool in vim curl netstat less sz tmux; do command -v $tool || echo no $tool; done"
    assert "no " not in pipeline.docker("run", "--rm", "app:debug", "sh", "-c", tools)
    settings = pipeline.docker("run", "--rm", "app:debug", "cat", "/etc/vim/vimrc.local")
    assert settings.splitlines() == [
        "set number",
        "set fileencoding=utf-8",
        "set tabstop=4",
        "set shiftwidth=4",
        "set autoindent",
        "set smartindent",
        "set cursorline",
    ]
    assert pipeline.docker("run", "--rm", "app:debug", "id", "-u").strip() == "10001"


def test_the_debian_mirror_of_the_debug_image_is_a_setting(pipeline, source):
    env = "DEBIAN_MIRROR=http://127.0.0.1:9/debian RELEASE=hand"
    build = f"cd {source} && {env} scripts/build debug 2>&1; echo status $?"
    output = pipeline.host("sh", "-c", build, timeout=300)
    assert "status 1" in output


def test_the_image_for_deployments_has_ssh_where_it_is_asked_for(pipeline, source):
    for host, expected in (("tcp://host:2376", "no ssh"), ("ssh://root@host", "OpenSSH_")):
        env = f"DEPLOY_HOST={host} RELEASE=hand"
        build = f"cd {source} && {env} scripts/build deploy 2>&1; echo status $?"
        output = pipeline.host("sh", "-c", build, timeout=300)
        assert "status 0" in output, output
        tools = "docker --version; command -v pytest; ssh -V 2>&1 || echo no ssh"
        found = pipeline.docker("run", "--rm", "app:deploy", "sh", "-c", tools)
        assert "Docker version" in found and expected in found and "pytest" not in found
