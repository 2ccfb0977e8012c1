"""What scripts/pipeline says of a push, from logs that pushes left, shortened."""

import runpy
from types import SimpleNamespace

import pytest

from pipelines import REGISTRY
from support import ROOT

report = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts/parts/report.py")))
IMAGE = f"{REGISTRY}/group/project@sha256:305f6d26"
JOBS = ["build", "test", "deploy"]

GREEN = f"""\
   0.99 parsing and downloads finished in 166 ms.
   3.14 build  starting docker:29.7.2-cli (build)
  15.22 build  pulled docker:29.7.2-cli in 12 s
  31.60 build  > still running...
  37.70 build  started service image: docker:29.7.2-dind with aliases: docker in 472 ms
  43.07 build  service image: docker:29.7.2-dind healthcheck passed in 5.17 s
  44.16 build  $ sh scripts/build
  58.45 build  >     14 s
  70.18 build  finished in 1.12 min
  71.17 build  copied artifacts to cwd in 93 ms
  71.18 test   starting {IMAGE} (test)
  76.10 test   started service image: {IMAGE} with aliases: app, group-project in 336 ms
  76.93 test   service image: {IMAGE} healthcheck passed in 699 ms
  77.61 test   $ sh scripts/test --ignore=test/template
  86.52 test   > ============================== 64 passed in 7.98s ==============================
  87.51 test   finished in 16 s
  88.61 test   copied artifacts to cwd in 36 ms
  88.63 deploy starting docker:29.7.2-cli (deploy)
  90.83 deploy $ DEPLOY_STRATEGY=replace sh scripts/deploy
  99.02 deploy > Release 0d299329 answers at http://127.0.0.1:20200/test
  99.03 deploy >     10 requests checked, 9 s
 100.13 deploy finished in 11 s
 101.20 deploy copied artifacts to cwd in 84 ms
 101.21
 101.21  PASS  build
 101.22 deploy environment: {{ name: production, url: /test }}
 101.23 pipeline finished in 1.68 min
"""
STAGING = """\
  88.63 staging starting docker:29.7.2-cli (deploy)
  90.83 staging $ DEPLOY_STRATEGY=replace DEPLOY_STACK=staging DEPLOY_PORT=20300 sh scripts/deploy
  99.99 staging > Release 0d299329 answers at http://127.0.0.1:20300/test
 100.20 staging finished in 11 s
"""
STAGING_NAMED = " 101.22 staging environment: { name: staging }\n"
FAILED_TEST = f"""\
   3.14 test   starting {IMAGE} (test)
   6.10 test   started service image: {IMAGE} with aliases: app, group-project in 336 ms
   6.20 test   started service image: postgres:18.1 with aliases: database, postgres in 336 ms
   6.93 test   service image: {IMAGE} healthcheck passed in 699 ms
   7.93 test   service image: postgres:18.1 healthcheck passed in 699 ms
   9.61 test   $ sh scripts/test --ignore=test/template
  16.51 test   > E   AssertionError: assert 500 == 200
  16.52 test   > --------- generated xml file: /builds/group/project/reports/junit.xml ----------
  16.52 test   > =========================== short test summary info ============================
  16.52 test   > SKIPPED [1] test/test_orders.py:9: no IPv6
  16.52 test   > FAILED test/test_orders.py::test_orders - AssertionError: assert 500 == 200
  16.52 test   >  +  where 500 = <Response [500]>.status_code
  16.52 test   > ======================== 1 failed, 64 passed in 6.35s =========================
  17.51 test   finished in 16 s  FAIL 1
  18.61 test   copied artifacts to cwd in 36 ms
"""
HANGING_TEST = """\
   9.61 test   $ sh scripts/test --ignore=test/template
  16.51 test   > collected 65 items
  26.51 test   > still running...
  80.52 test   > =========================== short test summary info ============================
  80.52 test   > FAILED test/test_hang.py::test_it - Failed: Timeout (>60.0s) from pytest-timeout.
  80.52 test   > =================== 1 failed, 64 passed in 67.08s (0:01:07) ====================
  81.51 test   finished in 1.2 min  FAIL 1
"""
MISSING_REQUIREMENT = r"""
  14.16 build  $ sh scripts/build
  23.67 build  > #12 ERROR: process "/bin/sh -c set -e; test -f \"$TZ\" || { echo \"there is no time zone '$TZ'\"; exit 1; }; pip install" did not complete successfully: exit code: 1
  23.67 build  > ------
  23.67 build  >  > [environment 4/4] RUN set -e; test -f "$TZ" || { echo "there is no time zone '$TZ'"; exit 1; }; pip install:
  23.67 build  > 3.488 Collecting tornado==6.6.1 (from -r requirements.txt (line 2))
  23.67 build  > 3.588 ERROR: Could not find a version that satisfies the requirement nosuch==1.0 (from versions: none)
  23.67 build  > 3.674 ERROR: No matching distribution found for nosuch==1.0
  23.67 build  > ------
  23.67 build  > Dockerfile:28
  23.67 build  > --------------------
  23.67 build  >   30 | >>>     test -f "$TZ" || { echo "there is no time zone '$TZ'"; exit 1; }; \
  23.67 build  > --------------------
  23.67 build  > ERROR: failed to build: failed to solve: process "/bin/sh -c" did not complete successfully: exit code: 1
  23.68 build  > build: cannot build release (the log above says why)
  23.68 build  finished in 31 s  FAIL 1
"""  # noqa: E501
NO_SERVICE = f"""\
   6.10 test   started service image: {IMAGE} with aliases: app, group-project in 336 ms
   6.20 test   started service image: postgres:18.1 with aliases: database, postgres in 336 ms
   7.93 test   service image: postgres:18.1 healthcheck failed
   9.61 test   $ sh scripts/test --ignore=test/template
  22.52 test   > --------- generated xml file: /builds/group/project/reports/junit.xml ----------
  22.52 test   > ============================ no tests ran in 13.37s ============================
  22.52 test   > ! _pytest.outcomes.Exit: nobody answers at http://app:8744 !
  22.60 test   finished in 41 s  FAIL 1
"""
FAILED_DEPLOY = """\
  70.83 deploy $ DEPLOY_STRATEGY=replace sh scripts/deploy
  78.01 deploy >     |     ~~~~^^^^^^^^^^^^^^^^^^^^^^^^^
  78.01 deploy >     | OSError: [Errno 30] Read-only file system: '/var/tmp/started'
  78.02 deploy > deploy: the new release fails (release 0d299329 answers at http://127.0.0.1:20200)
  78.13 deploy finished in 8 s  FAIL 1
"""
NO_IMAGE = """\
   3.14 test   starting nosuch:1 (test)
   3.94 rp: Command failed with exit code 1: docker pull 'nosuch:1'
   3.94 Error response from daemon: nosuch:1: not found
   3.94     at P_ (file:///tool/dist/index.js:206:2350)
"""
UNSORTED = """\
   9.61 test   $ sh scripts/test --ignore=test/template
   9.70 test   > I001 [*] Import block is un-sorted or un-formatted
   9.70 test   >  --> server.py:7:1
  16.52 test   > ============================== 65 passed in 6.35s ==============================
  16.93 test   > TOTAL          162     10     36      5    92%
  16.99 test   > server.py:7:1: I001 [*] Import block is un-sorted or un-formatted
  17.01 test   > test: ruff has findings, shown above the tests (ruff check --fix; ruff format)
  17.51 test   finished in 16 s  FAIL 1
"""
ERROR_500 = """\
2026-11-29T09:22:17+0800 200 GET /test 8.8ms
[E 261129 09:22:18 web:2108] Uncaught exception GET /orders (172.21.0.4)
    HTTPServerRequest(protocol='http', host='app:8744', method='GET', uri='/orders')
    Traceback (most recent call last):
      File "/app/server.py", line 51, in get
        self.write({"orders": {}["missing"]})
                              ~~^^^^^^^^^^^
    KeyError: 'missing'
2026-11-29T09:22:18+0800 500 GET /orders 8.5ms
"""
ACCESS = "".join(f"2026-11-29T09:22:18+0800 200 GET /test/{number} 1.3ms\n" for number in range(99))


def job(log, name):
    return report.Job(log, name)


@pytest.fixture
def closing(tmp_path):
    """Returns the last lines of a push that left this log, and these logs of services."""

    def closing(log, names=JOBS, ports=(20200,), **services):
        (tmp_path / "log").write_text(log)
        for name, text in services.items():
            report.log_of(tmp_path, "test", name).write_text(text)
        passed = "FAIL" not in log
        return "\n".join(report.closing(tmp_path, names, passed, 103.4, REGISTRY, ports))

    return closing


def test_the_table_has_each_job_and_the_seconds_of_its_sections():
    jobs = [job(GREEN, name) for name in [*JOBS, "by hand"]]
    assert [line.split() for line in report.table(jobs, True, 103.4)] == [
        ["job", "result", "prepare", "script", "artifacts", "total"],
        ["build", "passed", "41.0", "s", "26.0", "s", "1.0", "s", "68.0", "s"],
        ["test", "passed", "6.4", "s", "9.9", "s", "1.1", "s", "17.4", "s"],
        ["deploy", "passed", "2.2", "s", "9.3", "s", "1.1", "s", "12.6", "s"],
        ["by", "hand", "not", "run"],
        ["pipeline", "passed", "103.4", "s"],
    ]


def test_every_job_that_did_not_run_is_named(closing):
    said = closing(MISSING_REQUIREMENT)
    assert "\ntest     not run\ndeploy   not run\npipeline failed " in said


def test_a_push_without_jobs_has_a_table_too(closing):
    assert "\npipeline passed " in closing("   0.31 YAMLException: missed comma\n", names=[])


@pytest.mark.parametrize(
    "line, seconds, shown",
    [
        ("test   > still running...\n", 59, False),
        ("test   > still running...\n", 61, True),
        ("build  copied to docker volumes in 6.78 s\n", 0, False),
        ("test   service image: x healthcheck failed\n", 0, True),
        (" FAIL  test \n", 0, False),
        ("  > 1 failed, 63 passed\n", 0, False),  # by gitlab-ci-local, of which the end says more
        ("    at P_ (file:///tool/dist/index.js:206:2350)\n", 0, False),
        ("test   > 1 failed, 63 passed\n", 0, True),
    ],
)
def test_of_the_tools_own_lines_few_are_shown(line, seconds, shown):
    assert report.shown(line, seconds) == shown


@pytest.mark.parametrize(
    "log, name, cause",
    [
        (
            FAILED_TEST,
            "test",
            [
                "FAILED test/test_orders.py::test_orders - AssertionError: assert 500 == 200",
                "======================== 1 failed, 64 passed in 6.35s =========================",
            ],
        ),
        (
            HANGING_TEST,
            "test",
            [
                "FAILED test/test_hang.py::test_it - Failed: Timeout (>60.0s) from pytest-timeout.",
                "=================== 1 failed, 64 passed in 67.08s (0:01:07) ====================",
            ],
        ),
        (
            MISSING_REQUIREMENT,
            "build",
            [
                "Collecting tornado==6.6.1 (from -r requirements.txt (line 2))",
                "ERROR: Could not find a version that satisfies the requirement nosuch==1.0 "
                "(from versions: none)",
                "ERROR: No matching distribution found for nosuch==1.0",
            ],
        ),
        (
            FAILED_DEPLOY,
            "deploy",
            [
                "    | OSError: [Errno 30] Read-only file system: '/var/tmp/started'",
                "deploy: the new release fails (release 0d299329 answers at http://127.0.0.1:20200)",
            ],
        ),
        (
            UNSORTED,
            "test",
            [
                "server.py:7:1: I001 [*] Import block is un-sorted or un-formatted",
                "test: ruff has findings, shown above the tests (ruff check --fix; ruff format)",
            ],
        ),
        (NO_IMAGE, "test", ["Error response from daemon: nosuch:1: not found"]),
    ],
    ids=["test", "hanging test", "requirement", "deploy", "style", "image"],
)
def test_a_push_that_fails_ends_with_the_cause(closing, log, name, cause):
    assert report.Job(log, name).result() == "failed"
    said = closing(log, app="")
    assert said.endswith(f"\nThe job {name} failed:\n    " + "\n    ".join(cause))


def test_of_many_failures_ten_are_repeated_and_their_number():
    failures = "".join(f"  16.52 test   > FAILED test/test_it.py::test_{n}\n" for n in range(30))
    log = FAILED_TEST.replace("  16.52 test   > FAILED", failures + "  16.52 test   > FAILED")
    cause = job(log, "test").cause()
    assert len(cause) == 12 and "::test_9" in cause[9] and " 1 failed, " in cause[-1]


def test_a_500_ends_with_its_traceback_and_the_test(closing):
    said = closing(FAILED_TEST, app=ERROR_500 + ACCESS, database="ready\n")
    last = said.splitlines()[-22:]
    assert "[E 261129 09:22:18 web:2108] Uncaught exception GET /orders (172.21.0.4)" in last
    assert "    KeyError: 'missing'" in last
    assert "GET /test/" not in said and "ready" not in said


def test_without_a_traceback_the_last_lines_of_the_release_are_shown(closing):
    said = closing(FAILED_TEST, app=ACCESS, database="")
    assert "GET /test/98 " in said and "GET /test/90 " not in said


def test_a_service_that_does_not_listen_is_shown_though_it_is_not_the_projects(closing):
    crash = "Traceback (most recent call last):\n  File \"server.py\"\nKeyError: 'a'\n"
    said = closing(NO_SERVICE, app=crash, database="POSTGRES_PASSWORD is not set\n")
    assert "KeyError: 'a'\n" in said and "POSTGRES_PASSWORD is not set\n" in said
    assert (
        said.splitlines()[-1] == "    ! _pytest.outcomes.Exit: nobody answers at http://app:8744 !"
    )


def test_every_address_is_named_production_first(closing):
    names = ["build", "test", "staging", "deploy"]
    said = closing(STAGING + GREEN + STAGING_NAMED, names)
    assert said.splitlines()[-2:] == [
        "Release 0d299329 answers at http://127.0.0.1:20200/test",
        "Release 0d299329 answers at http://127.0.0.1:20300/test "
        "(staging, only inside the container)",
    ]


@pytest.mark.parametrize(
    "url, port",
    [
        ("http://127.0.0.1:20200/test", 20200),
        ("http://[::1]:20200/test", 20200),
        ("https://app.example.com", 443),
        ("https://app.example.com:8443/test", 8443),
        ("http://app.example.com/test", 80),
    ],
)
def test_the_port_of_an_address(url, port):
    assert report.port_of(url) == port
