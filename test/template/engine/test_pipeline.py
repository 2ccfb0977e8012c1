"""The pipeline as scripts/pipeline runs it: one push after another, in the order of this file.

Slow: each push takes half a minute, like a real one.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from pipelines import answering, environment_is_cached, result

SETTINGS = {
    "APP_CONTROL": "a\x7fb\tc\x01",
    "APP_DOLLAR": "a$HOME b${HOME} c$$d $1 $",
    "APP_EMPTY": "",
    "APP_HOME": "~/x",
    "APP_JSON": '{"a": [1, "b"], "c": null}',
    "APP_LINES": "first\nAPP_FAKE=1\n  indented: yes\r\n\n",
    "APP_NUMBER": "007",
    "APP_PATH": "/var/lib/data",
    "APP_QUOTES": 'it\'s "so" `id` \\n # no comment',
    "APP_SPACES": "  two  ",
    "APP_UNICODE": "ü 中 😀",
}
SECRETS = {
    "APP_SECRET_KEY": b"no line feed " + b"at the end",  # nor does this file have it
    "APP_SECRET_LINES": b"it's 'two' $HOME $$\r\n\n  APP_FAKE=1 \xf0\x9f\x98\x80\n\n",
    "APP_SECRET_SPACES": b"  \n",
}


def test_the_first_push_ends_with_a_release_that_answers(pipeline):
    assert pipeline.first.returncode == 0, pipeline.first.stdout
    assert [result(pipeline.first.stdout, job) for job in ("build", "test", "deploy")] == [
        "passed"
    ] * 3
    assert answering(pipeline) == pipeline.first_commit
    release, hint, logs = pipeline.first.stdout.splitlines()[-3:]
    assert release == f"Release {pipeline.first_commit} answers at {pipeline.url}"
    assert hint.startswith("Next: edit, commit, scripts/pipeline again;")
    shown = pipeline.run("sh", "-c", logs.removeprefix("Logs: ")).stdout
    assert f"(release {pipeline.first_commit})" in shown


def seconds(log, job):
    """The seconds that the closing table has for a job: of its sections, and their sum."""
    row = re.search(rf"^{job} +\w+((?: +[\d.]+ s)+)$", log, re.MULTILINE)[1]
    return [float(number) for number in row.split()[::2]]


def test_the_closing_table_and_the_log_say_where_the_time_went(pipeline):
    totals = []
    for job in ("build", "test", "deploy"):
        *sections, total = seconds(pipeline.first.stdout, job)
        assert len(sections) == 3 and min(sections) > 0
        assert sum(sections) == pytest.approx(total, abs=0.2)
        totals.append(total)
    [whole] = seconds(pipeline.first.stdout, "pipeline")
    assert sum(totals) < whole
    log = (pipeline.path / ".pipeline/log").read_text()
    assert [line for line in log.splitlines() if not re.match(r" *\d+\.\d\d ", line)] == []


def test_the_first_push_which_finds_no_cache_prints_no_error(pipeline):
    assert "ERROR" not in pipeline.first.stdout


def test_results_and_coverage_are_where_the_end_of_the_log_says(pipeline):
    path = re.search(r"^Test results: (\S+);", pipeline.first.stdout, re.MULTILINE)[1]
    junit = (pipeline.path / path).read_text()
    assert (
        'failures="0"' in junit
        and 'skipped="0"' in junit
        and "test_get_and_post_answer_the_text" in junit
    )
    coverage = (pipeline.path / path).with_name("coverage.xml").read_text()
    assert 'branch-rate="' in coverage
    # That of the service, too, which runs as a child of the tests.
    assert float(re.search(r'line-rate="(.*?)"', coverage)[1]) > 0.9


def test_the_log_holds_no_warning_about_passwords(pipeline):
    assert "unencrypted" not in pipeline.first.stdout


def test_a_code_only_push_installs_nothing_and_pulls_no_layer(pipeline):
    pipeline.edit("server.py", "GET and POST /test answer", "GET and POST /test reply")
    commit = pipeline.commit("Change the code")
    (pipeline.path / "README.md").write_text("not committed")
    before = pipeline.traffic()
    run = pipeline.push()
    _, sent, fetched = (now - then for now, then in zip(pipeline.traffic(), before, strict=True))
    lines = len(run.stdout.splitlines())
    print(f"{lines} lines; {sent} bytes from the registry, {fetched} to the host")
    pipeline.run("git", "checkout", "README.md")
    assert run.returncode == 0, run.stdout
    assert lines <= 100, run.stdout
    assert "Uncommitted changes are not part of it\n" in run.stdout
    # The job that tests the template.
    assert not re.search("^template ", run.stdout, re.MULTILINE)
    assert environment_is_cached(run.stdout)
    assert sent < 1_000_000 and fetched < 10_000_000
    # Nor does the next push pull the test image: the deployment leaves it.
    pipeline.docker("image", "inspect", pipeline.test_image)
    assert answering(pipeline) == commit


def test_a_change_of_requirements_rebuilds_the_environment(pipeline):
    with (pipeline.path / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    commit = pipeline.commit("Change the requirements")
    branch = pipeline.run("git", "branch", "--show-current").stdout
    run = pipeline.push(GIT_DIR=f"{pipeline.path}/.git")  # as git's hooks have it
    assert pipeline.run("git", "branch", "--show-current").stdout == branch
    assert run.returncode == 0, run.stdout
    assert not environment_is_cached(run.stdout)
    assert answering(pipeline) == commit


def left_in_tmp():
    """Return the files in which gitlab-ci-local keeps this secret while it runs."""
    return {*Path("/tmp").glob("gitlab-ci-local-file-variables-*/APP_SECRET_SPACES")}


@pytest.fixture(scope="module")
def refreshed(pipeline):
    """A push with settings of all kinds, secrets in files of relative paths, and a plain bash."""
    tools = pipeline.path / ".git/tools"
    tools.mkdir()
    # What is good enough for dash is good enough for the bash of macOS, 3.2.
    (tools / "bash").symlink_to(shutil.which("dash") or shutil.which("bash"))
    (tools / "python3").symlink_to(sys.executable)  # pyenv's is a script for bash
    for name, content in SECRETS.items():
        (tools / name).write_bytes(content)
    secrets = {name: f".git/tools/{name}" for name in SECRETS}
    path = f"{tools}:{os.environ['PATH']}"
    before = left_in_tmp()
    run = pipeline.push(BUILD_REFRESH="1", PATH=path, **SETTINGS, **secrets)
    run.left = left_in_tmp() - before
    return run


def test_refresh_rebuilds_the_environment_of_the_same_commit(refreshed):
    assert refreshed.returncode == 0, refreshed.stdout
    assert not environment_is_cached(refreshed.stdout)


def test_settings_and_secrets_reach_the_service_as_they_are(refreshed, pipeline):
    assert refreshed.returncode == 0, refreshed.stdout
    [container, *_] = pipeline.docker("ps", "--quiet", "--filter=name=app_server").split()
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    found = json.loads(pipeline.docker("exec", container, "python", "-c", code))
    paths = {name: "/run/secrets/" + name.removeprefix("APP_SECRET_") for name in SECRETS}
    found = {name: found[name] for name in found if name.startswith("APP_")}
    assert found == SETTINGS | paths
    for name, content in SECRETS.items():
        code = f"print(open({paths[name]!r}, 'rb').read())"
        assert pipeline.docker("exec", container, "python", "-c", code) == f"{content}\n"


def test_no_file_keeps_a_secret_when_the_push_is_over(refreshed, pipeline):
    kept = [
        *pipeline.path.glob(".pipeline/*"),
        *pipeline.path.glob(".pipeline/source/.gitlab*/**/*"),
    ]
    texts = [file.read_bytes() for file in kept if file.is_file()]
    assert [text for text in texts if SECRETS["APP_SECRET_KEY"] in text] == []
    assert refreshed.left == set()
