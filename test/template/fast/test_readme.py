"""README.md says what is so: files, settings, defaults, code, tests, and what commands print."""

import functools
import json
import os
import re
import runpy
import subprocess
import textwrap

import pytest
import requests

from fake_swarm import deploy
from pipelines import SCRIPTS, blocks
from support import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(README)
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))
DEPLOY = "".join(
    file.read_text()
    for file in [
        *(ROOT / "scripts/deploy", ROOT / "scripts/stack.yml"),
        *ROOT.glob("scripts/parts/*.py"),
    ]
)
DEFAULTS = {name: default for name, (default, *_) in deploy.SETTINGS.items() if default}
SCRIPT_FILES = [file for file in (ROOT / "scripts").iterdir() if file.is_file()]
RENOVATE = json.loads((ROOT / ".renovaterc.json").read_text())
FILES = ["server.py", "Dockerfile", ".gitlab-ci.yml", "requirements.txt", "test/requirements.txt"]
FILES += ["LICENSE", "test/", "test/template/", *(f"scripts/{name}" for name in SCRIPTS)]
FILES += ["scripts/stack.yml", "scripts/parts/", "scripts/pieces/"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_explained(name):
    assert f"`{name}`" in README and (ROOT / name).exists()


@functools.cache
def helps(*scripts):
    """Return what the scripts' help says of the environment, by name, with the defaults."""
    text = ""
    for script in scripts:
        command = [ROOT / f"scripts/{script}", "--help"]
        text += subprocess.check_output(command, text=True, env={"PATH": os.environ["PATH"]})
    return text


def test_every_setting_that_is_named_is_one_of_a_script():
    named = set(re.findall(r"\b(?:DEPLOY_[A-Z_]+|TZ|[A-Z]+_PREFIX|PIP_INDEX_URL)\b", README))
    assert {"TZ", "DEPLOY_PORT", "IMAGE_PREFIX"} <= named
    assert named - {"DEPLOY_BRANCH"} <= set(re.findall(r"\b[A-Z_]{2,}\b", helps("build", "deploy")))


def test_the_help_of_deploy_has_every_setting_and_its_default():
    text = helps("deploy")
    for name, default in DEFAULTS.items():
        assert re.search(rf"^  {name} .*\({default}\)$", text, re.MULTILINE)
    used = set(re.findall(r"\b(?:DEPLOY|CI|BUILT)_[A-Z_]+\b", DEPLOY))
    used -= {"DEPLOY_URL", "CI_REGISTRY_IMAGE"}
    assert used <= set(re.findall(r"\b[A-Z_]{3,}\b", text)) | {
        *("CI_DEPENDENCY_PROXY_SERVER", "CI_DEPENDENCY_PROXY_USER", "CI_DEPENDENCY_PROXY_PASSWORD")
    }


def test_scripts_pipeline_hands_on_every_setting_of_its_jobs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    handed_on = runpy.run_path(str(ROOT / "scripts/pipeline"))["SETTINGS"]
    named = set(re.findall(r"^  ([A-Z][A-Z_]+)  ", helps("build", "deploy"), re.MULTILINE))
    named = {name for name in named if not name.startswith("CI_")}  # GitLab's own
    assert {name for name in named if not handed_on.fullmatch(name)} == {
        *("DEPLOY_HOST", "DEPLOY_SSH_KEY", "DEPLOY_SSH_KNOWN_HOSTS"),  # it has its own
        *("DEPLOY_IMAGE", "RELEASE", "BUILT_TEST_IMAGE", "BUILT_DEPLOY_IMAGE"),  # the pipeline's
    }


def test_figures_in_words_are_those_of_the_scripts():
    server = (ROOT / "server.py").read_text()
    finish = int(re.search(r"^FINISH_SECONDS = (\d+)", server, re.MULTILINE)[1])
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    probe = (ROOT / "scripts/parts/probe.py").read_text()
    checks = int(re.search(r"^REQUESTS = (\d+)", probe, re.MULTILINE)[1])
    drain = int(re.search(r'"DRAIN_SECONDS": "0" if host else "(\d)"', DEPLOY)[1])
    keep, replicas = words[int(DEFAULTS["DEPLOY_KEEP"])], words[int(DEFAULTS["DEPLOY_REPLICAS"])]
    for pattern in (
        rf"\b{words[checks]} times",
        rf"images of {keep} releases",
        rf"newest {keep}\b",
        rf"\b{words[drain]} seconds more, then has {words[finish]}\b",
        rf"\b{replicas} replicas",
    ):
        assert re.search(pattern, " ".join(README.split())), pattern


def test_the_clean_up_policy_matches_the_tags_that_are_pushed():
    keep, remove = re.search(r"tag `(.*?)`; it may remove `(.*?)`", README).groups()
    build = (ROOT / "scripts/build").read_text()
    assert "$repository:$RELEASE-${CI_JOB_ID:-" in build
    assert re.fullmatch(remove, "0123456789abcdef0123456789abcdef01234567-4711")
    assert re.search(rf"\$repository:{keep}\b", build) and not re.fullmatch(remove, keep)


VARYING = ("X-Release", "Content-Length", "Date", "Etag")


def test_the_first_answer_is_the_one_shown(start_service):
    [shown] = [text for kind, text in BLOCKS if text.startswith("HTTP/1.1")]
    head = shown.partition("\n\n")[0]  # .ci/run compares the text
    response = requests.get(f"{start_service().url}/test")
    for line in head.splitlines()[1:]:
        name, value = line.split(": ")
        assert name in response.headers
        assert name in VARYING or response.headers[name] == value


def test_commands_are_those_that_tests_and_ci_run():
    fork = README.index("## On the host")  # test_fork.py runs what stands from there on
    commands = {
        line.partition(" #")[0]
        for kind, text in blocks(README[:fork])
        if kind == "sh"
        for line in textwrap.dedent(text).strip().splitlines()
    }
    mirrors = {line for line in commands if line.startswith("export ")}
    assert {"IMAGE_PREFIX", "PIP_INDEX_URL"} <= set(re.findall(r"\w+(?==)", " ".join(mirrors)))
    assert commands - mirrors == {
        "scripts/serve",  # .ci/run
        "curl -i http://127.0.0.1:8744/test",  # .ci/run
        "scripts/test",  # .ci/run
        "scripts/test --docker",  # .ci/run
        "scripts/test --ignore=test/template",  # the pipeline's test job
        "scripts/pipeline",  # test_pipeline.py
        # test_deploy.py
        "image=$(docker service inspect --format '{{.Spec.Labels.deploy_image}}' app_server)",
        "docker run --rm -v /var/run/docker.sock:/var/run/docker.sock "
        '"$image" scripts/deploy --rollback',
        # test_register_runner.py
        "GITLAB_TOKEN_FILE=token python3 register-runner "
        "--url https://gitlab.example.com --project 17",
        "git push https://gitlab.example.com/GROUP/PROJECT.git HEAD:mainx",  # only a real GitLab
    }


def test_every_option_that_is_named_is_one():
    scripts = "".join(file.read_text() for file in SCRIPT_FILES) + (ROOT / "server.py").read_text()
    named = set(
        re.findall(r"`(?:scripts/\S+ )?(--[a-z-]+)", README.replace(SECTIONS["Make it yours"], ""))
    )
    assert {"--only", "--status"} <= named
    assert [
        option
        for option in named
        if not re.search(rf'{option}[ )]|^    "{option[2:]}": \(', scripts, re.MULTILINE)
    ] == []


def test_the_failure_that_is_shown_ends_as_the_scripts_say():
    [failure] = [text for _, text in BLOCKS if "its last lines:" in text]
    shown = re.search(r"^deploy: (.*) \(release \S+ answers at \S+\)$", failure, re.MULTILINE)[1]
    assert f'Failed("{shown}")' in DEPLOY


@pytest.mark.parametrize(
    "name, what",
    [
        ("Dockerfile", "python:"),
        (".gitlab-ci.yml", "docker:"),
        ("scripts/pipeline", "registry:"),
        ("scripts/pipeline", "gitlab-ci-local@"),
        ("scripts/register-runner", 'VERSION = "'),
        ("scripts/register-runner", "docker:"),
        ("README.md", "postgres:"),
        ("scripts/pieces/database.yml", "postgres:"),
        ("scripts/pieces/proxy.yml", "caddy:"),
        ("README.md", "TornadoServer/"),
    ],
)
def test_renovate_finds_the_version(name, what):
    patterns = [
        pattern.replace("(?<", "(?P<")
        for manager in RENOVATE["customManagers"]
        for pattern in manager["matchStrings"]
    ]
    found = [
        match[0]
        for pattern in patterns
        for match in re.finditer(pattern, (ROOT / name).read_text())
    ]
    assert [text for text in found if re.search(rf"{what}\d", text)], found


def test_renovate_keeps_the_odd_pins():
    rules = {
        rule["matchPackageNames"][0]: rule["allowedVersions"] for rule in RENOVATE["packageRules"]
    }
    requirements = (ROOT / "test/requirements.txt").read_text()
    for name, limit in rules.items():
        assert f"{name}==" in requirements
        assert int(re.search(rf"^{name}==(\d+)", requirements, re.MULTILINE)[1]) < int(limit[1:])


def facts(text):
    """Return what a translation must not change, in the order of the page."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    without_comments = [
        (kind, re.sub(r"# .*", "#", block)) for kind, block in blocks(text) if kind != "mermaid"
    ]
    return {
        "headings": re.findall(r"^(#+) ", prose, re.MULTILINE),
        "blocks": without_comments,
        "code": sorted(re.findall(r"`([^`]+)`", prose)),
        "figures": sorted(re.findall(r"\d+", re.sub(r"`[^`]+`", "", prose))),
        "points": len(re.findall(r"^(?:- |\d\. |\*\*)", prose, re.MULTILINE)),
    }


def test_the_chinese_readme_has_the_same_facts():
    chinese = facts((ROOT / "README.zh-CN.md").read_text())
    for kind, fact in facts(README).items():
        assert chinese[kind] == fact, kind


def test_no_line_ends_between_two_chinese_characters():
    # Browsers show such a line end as a space.
    han = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
    text = re.sub(r"```.*?```", "", (ROOT / "README.zh-CN.md").read_text(), flags=re.DOTALL)
    assert re.findall(rf"{han}\n *{han}", text) == []


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_labels_of_the_picture_are_quoted(name):
    [picture] = [text for kind, text in blocks((ROOT / name).read_text()) if kind == "mermaid"]
    # Mermaid takes a comma or a Chinese colon outside quotes for a mistake; GitLab shows that.
    unquoted = re.sub(r'"[^"]*"', "", picture)
    assert unquoted.isascii() and "," not in unquoted
