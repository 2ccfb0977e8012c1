"""README.md says what is so: files, settings, defaults, code, tests, and what commands print."""

import json
import re
import runpy

import pytest
import requests

from pipelines import SCRIPTS, blocks
from support import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(README)
SETTINGS = {
    name: default.strip("`")
    for name, default in re.findall(r"^\| `([A-Z_]+)` \| (\S*|the [^|]*) ?\|", README, re.MULTILINE)
}
DEPLOY = "".join(
    file.read_text()
    for file in [ROOT / "scripts/deploy", ROOT / "scripts/stack.yml", *ROOT.glob("scripts/*.sh")]
)
SCRIPT_FILES = [file for file in (ROOT / "scripts").iterdir() if file.is_file()]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
RENOVATE = json.loads((ROOT / ".renovaterc.json").read_text())


def read_all():
    files = [
        ROOT / "Dockerfile",
        ROOT / ".gitlab-ci.yml",
        ROOT / "server.py",
        ROOT / "test/support.py",
    ]
    return "".join(file.read_text() for file in [*files, *SCRIPT_FILES])


FILES = ["server.py", "Dockerfile", ".gitlab-ci.yml", "requirements.txt", "test/requirements.txt"]
FILES += ["LICENSE", "test/", "test/template/", *(f"scripts/{name}" for name in SCRIPTS)]
FILES += [f"scripts/{name}" for name in ("docker.sh", "stack.yml", "swarm.sh", "probe.py")]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_explained(name):
    assert f"`{name}`" in README and (ROOT / name).exists()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_one(name):
    assert name in read_all()


def test_scripts_pipeline_hands_on_every_setting_of_its_jobs():
    handed_on = runpy.run_path(str(ROOT / "scripts/pipeline"))["SETTINGS"]
    left_out = {name for name in SETTINGS if not handed_on.fullmatch(name)}
    by_hand = {"TEST_SERVICE_URL", "SERVICE_RELEASE"}
    by_itself = {"DEPLOY_HOST", "DEPLOY_ADDRESS", "DEPLOY_PORT", "DEPLOY_PORTS"}
    assert left_out == {"DEPLOY_SSH_KEY", "DEPLOY_SSH_KNOWN_HOSTS", *by_itself, *by_hand}


def test_every_setting_of_deploy_is_listed_with_its_default():
    defaults = dict(re.findall(r'^: "\$\{(DEPLOY_\w+):=(.*?)\}"$', DEPLOY, re.MULTILINE))
    assert len(defaults) >= 6
    assert {name: SETTINGS.get(name) for name in defaults} == defaults
    assert set(re.findall(r"\bDEPLOY_[A-Z_]+\b", DEPLOY)) - {"DEPLOY_IMAGE", "DEPLOY_URL"} <= set(
        SETTINGS
    )


def test_figures_in_words_are_those_of_the_scripts():
    server = (ROOT / "server.py").read_text()
    finish = int(re.search(r"^FINISH_SECONDS = (\d+)", server, re.MULTILINE)[1])
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    probe = (ROOT / "scripts/probe.py").read_text()
    checks = int(re.search(r"^REQUESTS = (\d+)", probe, re.MULTILINE)[1])
    drain = int(re.search(r"\bDRAIN_SECONDS=([1-9])", DEPLOY)[1])
    for sentence in (
        f"the address has answered {words[checks]} times",
        f"the last {words[int(SETTINGS['DEPLOY_KEEP'])]} releases stay",
        f"newest {words[int(SETTINGS['DEPLOY_KEEP'])]} stay",
        f"answers for {words[drain]} seconds more",
        f"`app`: {words[int(SETTINGS['DEPLOY_REPLICAS'])]} replicas",
        f"then has {words[finish]} more to finish",
        f"run by user {re.search(r'^USER (?!root)([0-9]+)', DOCKERFILE, re.MULTILINE)[1]}.",
        "GitLab ends each after a week",
    ):
        assert sentence in " ".join(README.split())


def test_the_clean_up_policy_matches_the_tags_that_are_pushed():
    keep, remove = re.search(
        r'"keep tags matching" `(.*?)`,\s+"remove tags matching" `(.*?)`', README
    ).groups()
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
    fork = README.index("## Make it yours")  # test_fork.py runs what stands there
    commands = {
        line
        for kind, text in blocks(README[:fork])
        if kind == "sh"
        for line in text.strip().splitlines()
    }
    assert commands == {
        "scripts/serve",  # .ci/run
        "curl -i http://127.0.0.1:8744/test",  # .ci/run
        "scripts/test",  # .ci/run
        "scripts/test --ignore=test/template",  # the pipeline's test job
        "scripts/pipeline",  # test_pipeline.py
        # test_register_runner.py
        "GITLAB_TOKEN_FILE=token ./register-runner --url https://gitlab.example.com --project 17",
    }


def test_every_option_that_is_named_is_one():
    scripts = "".join(file.read_text() for file in SCRIPT_FILES) + (ROOT / "server.py").read_text()
    named = set(re.findall(r"`(?:scripts/\S+ )?(--[a-z-]+)", README))
    assert {"--only", "--rollback", "--status"} <= named
    assert [
        option for option in named if f"{option} " not in scripts and f"{option})" not in scripts
    ] == []


def test_each_answer_names_code_and_tests_that_are_there():
    answers = README[README.index("## Answers") : README.index("## When it fails")]
    proofs = re.findall(r"\(`([^`]+)` in `([^`]+)`;\s((?:\s*`test_\w+`,?)+)\)", answers)
    assert len(proofs) == len(re.findall(r"^\*\*", answers, re.MULTILINE)) == 6
    tests = "".join(file.read_text() for file in (ROOT / "test").rglob("test_*.py"))
    for code, file, names in proofs:
        assert code in (ROOT / file).read_text()
        assert [
            name for name in re.findall(r"test_\w+", names) if f"def {name}(" not in tests
        ] == []


def shape(line):
    """Return a line of output without what differs from run to run."""
    line = re.sub(r"^deploy +> ", "", line)
    for pattern, name in (
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"\b[0-9a-f]{40}\b", "COMMIT"),
        (r"app_server\.\d: (Failed|Complete) .* ago:", "TASK"),
        (r"[\d.]+ (s|min)$", "TIME"),
        (r"^deploy: .* \(", "deploy: REASON ("),
    ):
        line = re.sub(pattern, name, line)
    return " ".join(line.split())


@pytest.mark.docker
def test_what_a_push_prints_is_what_is_shown(pipeline):
    for shown, run in (
        ("job ", pipeline.first),
        ("==> Deploying", pipeline.push_what_does_not_start()),
    ):
        [text] = [text for _, text in BLOCKS if text.startswith(shown)]
        printed = [shape(line) for line in run.stdout.splitlines()]
        assert [line for line in map(shape, text.splitlines()) if line not in printed] == [], (
            run.stdout
        )


def test_the_failure_that_is_shown_ends_as_the_scripts_say():
    [failure] = [text for _, text in BLOCKS if "its last lines:" in text]
    shown = re.search(r"^deploy: (.*) \(release \w+ answers at \S+\)$", failure, re.MULTILINE)[1]
    assert f'fail "{shown}"' in DEPLOY


@pytest.mark.parametrize(
    "name, what",
    [
        ("Dockerfile", "python:"),
        (".gitlab-ci.yml", "docker:"),
        ("scripts/pipeline", "registry:"),
        ("scripts/pipeline", "gitlab-ci-local@"),
        ("scripts/register-runner", "version="),
        ("scripts/register-runner", "curlimages/curl:"),
        ("README.md", "postgres:"),
        ("README.md", "caddy:"),
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
    return {
        "headings": re.findall(r"^(#+) ", prose, re.MULTILINE),
        "blocks": [block for block in blocks(text) if block[0] != "mermaid"],
        "settings": [
            (name, default if default.startswith("`") else "")
            for name, default in re.findall(r"^\| `([A-Z_.]+)` \| (\S*)", text, re.MULTILINE)
        ],
        "code": sorted(re.findall(r"`([^`]+)`", prose)),
        "figures": sorted(re.findall(r"\d+", re.sub(r"`[^`]+`", "", prose))),
        "points": len(re.findall(r"^(?:- |\d\. |\*\*)", prose, re.MULTILINE)),
    }


def test_the_chinese_readme_has_the_same_facts():
    chinese = facts((ROOT / "README.zh-CN.md").read_text())
    for kind, fact in facts(README).items():
        assert chinese[kind] == fact, kind


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_labels_of_the_picture_are_quoted(name):
    [picture] = [text for kind, text in blocks((ROOT / name).read_text()) if kind == "mermaid"]
    # Mermaid takes a comma or a Chinese colon outside quotes for a mistake; GitLab shows that.
    unquoted = re.sub(r'"[^"]*"', "", picture)
    assert unquoted.isascii() and "," not in unquoted
