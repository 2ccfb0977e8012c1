"""Pushes that fail, are cancelled, or run beside others; the last test removes the host.

Slow: each push takes half a minute, like a real one.
"""

import os
import re
import signal
import subprocess
import time

import requests

from pipelines import answering, blocks, environment_is_cached, result
from support import ROOT, await_true

ORDERS = """class OrdersHandler(Handler):
    def get(self):
        self.write({"orders": {}["no such table"]})


def make_app("""
ORDERS_TEST = """import requests


def test_orders(app_url):
    assert requests.get(app_url + "/orders").status_code == 200
"""


def test_a_500_in_a_test_ends_with_its_traceback_and_nothing_is_deployed(pipeline):
    before = answering(pipeline)
    assert before
    pipeline.edit("server.py", "def make_app(", ORDERS)
    pipeline.edit(
        "server.py", "    routes = [\n", '    routes = [\n        ("/orders", OrdersHandler),\n'
    )
    (pipeline.path / "test/test_orders.py").write_text(ORDERS_TEST)
    pipeline.commit("Break the service")
    run = pipeline.push()
    pipeline.run("git", "reset", "--hard", "--quiet", "HEAD~")
    assert run.returncode == 1
    assert [result(run.stdout, job) for job in ("build", "test", "deploy")] == [
        "passed",
        "failed",
        "not run",
    ]
    last = run.stdout.splitlines()[-25:]
    assert "    KeyError: 'no such table'" in last, run.stdout
    assert [line for line in last if "    FAILED test/test_orders.py::test_orders - " in line]
    assert re.fullmatch("    =+ 1 failed, .* =+", last[-1])
    assert answering(pipeline) == before


def test_a_release_that_does_not_start_in_the_test_job_ends_with_the_cause(pipeline):
    (pipeline.path / "helper").mkdir()  # a package, which no COPY of the Dockerfile names
    (pipeline.path / "helper/__init__.py").write_text("")
    pipeline.edit("server.py", "import asyncio\n", "import asyncio\n\nimport helper  # noqa\n")
    pipeline.commit("Leave a module out")
    run = pipeline.push()
    pipeline.run("git", "reset", "--hard", "--quiet", "HEAD~")
    assert (run.returncode, result(run.stdout, "test")) == (1, "failed")
    last = run.stdout.splitlines()[-25:]
    assert "ModuleNotFoundError: No module named 'helper'" in last, run.stdout


def test_after_a_release_that_does_not_start_the_old_one_answers(pipeline):
    before = answering(pipeline)
    assert before
    run = pipeline.push_what_does_not_start()
    assert run.returncode == 1
    assert [result(run.stdout, job) for job in ("build", "test", "deploy")] == [
        "passed",
        "passed",
        "failed",
    ], run.stdout
    assert "Read-only file system: '/var/tmp/started'" in run.stdout, run.stdout
    assert f"release {before} answers" in run.stdout, run.stdout
    assert answering(pipeline) == before


def shape(line):
    """Return a line of output without what differs from run to run."""
    line = re.sub(r"^deploy +> ", "", line)
    for pattern, name in (
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"\b([0-9a-f]{40}\b|[0-9a-f]+\.\.\.)", "COMMIT"),
        (r"app_server\.\d: (Failed|Complete) .* ago:", "TASK"),
        (r"[\d.]+ s( |$)", "TIME "),
        (r"^deploy: .* \(", "deploy: REASON ("),
    ):
        line = re.sub(pattern, name, line)
    return " ".join(line.split())


def test_what_a_push_prints_is_what_is_shown(pipeline):
    shown = blocks((ROOT / "README.md").read_text())
    [text] = [text for _, text in shown if text.startswith("    app_server.1: Failed")]
    run = pipeline.push_what_does_not_start()
    printed = [shape(line) for line in run.stdout.splitlines()]
    assert [line for line in map(shape, text.splitlines()) if line not in printed] == [], run.stdout


def test_ctrl_c_leaves_nothing_of_the_job_that_ran(pipeline):
    def objects():
        lists = (["ps", "--all"], ["volume", "ls"], ["network", "ls"])
        return [pipeline.docker(*command, "--quiet").split() for command in lists]

    before = objects()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = ["scripts/pipeline", f"--port={pipeline.port}"]
    options = {"cwd": pipeline.path, "start_new_session": True}
    with subprocess.Popen(command, **streams, **options) as process:
        assert next(line for line in process.stdout if "==> Building test" in line)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output = process.stdout.read()
    assert process.returncode == 130
    assert output.endswith("\npipeline: cancelled (run scripts/pipeline again)\n")
    assert objects() == before


def test_after_a_restart_of_the_host_the_service_is_back_by_itself(pipeline):
    before = answering(pipeline)
    assert before
    began = time.monotonic()
    pipeline.run("docker", "restart", pipeline.container())
    print(f"restarted after {time.monotonic() - began:.1f} s")
    await_true(lambda: answering(pipeline) == before, seconds=60)
    print(f"the service is back after {time.monotonic() - began:.1f} s")


def test_beside_the_running_release_another_gets_its_own_address_and_environment(pipeline):
    # Makes the host anew, with more ports, from what its volume keeps: the cache above all.
    run = pipeline.push(DEPLOY_STRATEGY="beside", DEPLOY_ADDRESS="app.test")  # which no DNS has
    assert run.returncode == 0, run.stdout
    assert environment_is_cached(run.stdout)
    assert [result(run.stdout, job) for job in ("beside", "deploy", "stop")] == [
        "passed",
        "not run",
        "not run",
    ]
    commit, port = re.search(
        r"^Release (\w+) answers at http://app\.test:(\d+)/test \(release/",
        run.stdout,
        re.MULTILINE,
    ).groups()
    url = f"http://127.0.0.1:{port}/test"
    assert requests.get(url, timeout=10).headers["X-Release"] == commit
    assert f"name: release/{commit[:8]}" in (pipeline.path / ".pipeline/log").read_text()
    assert (
        f"app-{commit[:8]}_server" in pipeline.docker("service", "ls", "--format={{.Name}}").split()
    )


def test_down_removes_all_that_it_made(pipeline):
    pipeline.run("scripts/pipeline", "--down")
    label = f"label=gitlab-ci-pipeline={pipeline.path}"
    assert pipeline.run("docker", "ps", "--all", "--quiet", "--filter", label).stdout == ""
    assert not (pipeline.path / ".pipeline").exists()
    name = re.search(r"volume (\S+),", pipeline.run("scripts/pipeline", "--down").stdout)[1]
    assert name not in pipeline.run("docker", "volume", "ls", "--quiet").stdout.split()
