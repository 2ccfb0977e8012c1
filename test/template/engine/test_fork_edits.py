"""What forks do to their copy turns no test red, although they keep the template's tests.

All of it is done in one copy, whose fast tests then run. Slow: they are some 350.
"""

import sys

from ruamel.yaml import YAML

from pipelines import Checkout

EDITS = {}


def edit(function):
    """Note an edit by what its name says."""
    EDITS[function.__name__] = function
    return function


def change_pipeline(fork, change):
    """Let `change` change what .gitlab-ci.yml says."""
    yaml = YAML()
    content = yaml.load(fork.path / ".gitlab-ci.yml")
    change(content)
    yaml.dump(content, fork.path / ".gitlab-ci.yml")


@edit
def another_text_and_docstring(fork):
    for name in ("server.py", "test/test_handlers.py"):
        fork.edit(name, "test gitlab_cicd api success", "good morning")
    fork.edit("server.py", "A small Tornado service: GET and POST /test answer", "Greetings:")


@edit
def a_test_by_another_name(fork):
    fork.edit("test/test_handlers.py", "test_get_and_post_answer_the_text", "test_it_greets")


@edit
def a_start_page_and_a_method_more(fork):
    fork.edit("server.py", "    post = get\n", "    post = head = get\n")
    fork.edit("server.py", '("/test", TextHandler),', '("/test", TextHandler), ("/", TextHandler),')


@edit
def a_second_module_that_a_library_warns_about(fork):
    (fork.path / "store.py").write_text(
        "import warnings\n\n"
        'warnings.warn_explicit("old", DeprecationWarning, "lib.py", 1, module="library")\n'
        "ORDERS = []\n"
    )
    fork.edit(
        "server.py", "\nRELEASE = os", "\nimport store\n\nORDERS = store.ORDERS\nRELEASE = os"
    )


@edit
def packages_with_extras_and_dots(fork):
    fork.append("requirements.txt", "psycopg[binary,pool]==3.3.9\nruamel.yaml==0.19.1\n")


@edit
def a_test_that_leaves_a_socket_open(fork):
    (fork.path / "test/test_a_leak.py").write_text(
        '"""It leaves a socket open."""\n\nimport socket\n\n\n'
        "def test_a_socket_is_made():\n    assert socket.socket()\n"
    )


@edit
def a_stage_more_with_a_job_like_no_other(fork):
    def change(content):
        content["stages"].insert(1, "lint")
        content["lint"] = {
            "stage": "lint",
            "image": "$CI_REGISTRY/tools/lint:2",
            "tags": ["fast"],
            "timeout": "1 hour",
            "rules": [{"if": '$CI_COMMIT_BRANCH =~ /^mainx$/ || $CI_COMMIT_TAG == "v1"'}],
            "script": ['curl --header "JOB-TOKEN: $CI_JOB_TOKEN" --upload-file x "$CI_API_V4_URL"'],
        }
        content["notify"] = {"stage": ".post", "needs": ["deploy"], "script": ["echo done"]}

    change_pipeline(fork, change)


@edit
def another_python_and_time_zone(fork):
    fork.edit("Dockerfile", "python:3.14-slim", "python:3.13.9-slim-trixie")
    fork.edit("Dockerfile", "ARG TZ=Asia/Shanghai", "ARG TZ=Europe/Berlin")


@edit
def a_script_of_its_own(fork):
    script = fork.path / "scripts/migrate"
    script.write_text("#!/usr/bin/env python3\nprint('nothing to migrate')\n")
    script.chmod(0o755)


@edit
def another_branch_and_port(fork):
    fork.run("sh", "-euc", "git grep -l mainx | xargs perl -pi -e 's/mainx/main/g'")
    fork.run("sh", "-euc", "git grep -l 8744 | xargs perl -pi -e 's/8744/9000/g'")


def test_what_forks_do_turns_nothing_red(tmp_path):
    fork = Checkout(tmp_path / "fork")
    ruff = (sys.executable, "-m", "ruff", "format", "--quiet")
    for change in EDITS.values():
        change(fork)
        fork.run(*ruff)
        fork.commit(change.__name__)
    # What no edit can influence is left out.
    others = "--ignore=test/template/fast/test_venv.py"
    run = fork.run("scripts/test", others, check=False, TEST_PYTHON=sys.executable)
    assert run.returncode == 0, run.stdout[-6000:]


def test_a_clone_with_the_line_ends_of_windows_runs_its_scripts(tmp_path):
    fork = Checkout(tmp_path / "fork")
    fork.run("git", "-c", "core.autocrlf=true", "clone", "--quiet", ".", tmp_path / "clone")
    assert fork.run(tmp_path / "clone/scripts/serve", "--help").stdout.startswith("Usage: ")
    assert fork.run("git", "-C", tmp_path / "clone", "status", "--porcelain").stdout == ""
