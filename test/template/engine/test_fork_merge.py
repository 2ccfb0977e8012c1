"""A fork that did all of README.md, "Make it yours", takes a newer template.

It begins with the oldest version that asks for no step by hand, see the lines `Upgrade:` in the
log. To what is newer than that comes what Renovate does to every version.
"""

import json
import re

import pytest

import pieces
from pipelines import Checkout
from support import ROOT

APPENDED = [str(file.relative_to(ROOT)) for file in ROOT.glob("scripts/pieces/*")]
APPENDED.remove("scripts/pieces/proxy.yml")
URL = "https://gitlab.example.com/GROUP/TEMPLATE.git"


def update_every_version(template):
    """Make every version that Renovate finds another; change, add, move what a fork deletes."""
    managers = json.loads((template.path / ".renovaterc.json").read_text())["customManagers"]
    patterns = [r"==(?P<currentValue>\d+(\.\d+)+)"]
    patterns += [text.replace("(?<", "(?P<") for each in managers for text in each["matchStrings"]]
    for name in template.run("git", "ls-files").stdout.split():
        text = (template.path / name).read_text()
        for pattern in patterns:
            text = re.sub(pattern, lambda match: match[0] + "9", text)
        (template.path / name).write_text(text)
    template.append("test/template/engine/test_fork_merge.py", "# newer\n")
    (template.path / "test/template/fast/test_newer.py").write_text("# new\n")
    template.run(
        "git", "mv", "test/template/engine/test_red.py", "test/template/engine/test_redder.py"
    )
    # The template gets a handler, a route and another limit.
    handler, route = "# The handlers that you add.\n", "        # The routes that you add.\n"
    template.edit("server.py", handler, f"class NewHandler(Handler):\n    pass\n\n\n{handler}")
    template.edit("server.py", route, f'        ("/new", NewHandler),\n{route}')
    template.edit("server.py", "IDLE_SECONDS = 75", "IDLE_SECONDS = 80")
    template.append(".ci/run", "# newer\n")
    template.append("README.md", "Newer.\n")


@pytest.fixture(params=["a clone", "an archive"])
def fork(tmp_path, request):
    """The fork, with all that it changed; its `expected` is the tree that it should arrive at.

    Made from an archive, it lacks the history of the commit `old`.
    """
    fork = Checkout(tmp_path / "fork")
    fork.run("git", "checkout", "--quiet", "-b", "newest")
    update_every_version(fork)
    newest = fork.commit("Update every version")
    fork.run("git", "clone", "--quiet", "--bare", ".", tmp_path / "template.git")
    fork.run("git", "-C", tmp_path / "template.git", "branch", "--force", "main", newest)
    fork.run("git", "config", f"url.{tmp_path}/template.git.insteadOf", URL)
    old = fork.run("git", "log", "-1", "--format=%H", "--grep=^Upgrade:", newest).stdout.strip()
    # A copy without the history has at least what Renovate does.
    fork.old = old or fork.run("git", "rev-parse", f"{newest}~").stdout.strip()
    # What the fork has appended stays as it was then.
    fork.run("git", "checkout", "--quiet", fork.old, "--", *APPENDED)
    fork.commit("Append")
    pieces.do(fork, *pieces.EVERY_ONE)
    fork.run("git", "checkout", "--quiet", newest, "--", *APPENDED)
    fork.commit("Update what was appended")
    fork.expected = fork.run("git", "rev-parse", "HEAD^{tree}").stdout
    fork.run("git", "checkout", "--quiet", "-B", "main", fork.old)
    fork.has_history = request.param == "a clone"
    if not fork.has_history:
        fork.run("git", "checkout", "--quiet", "--orphan", "archive")
        fork.commit("First")
    pieces.do(fork, *pieces.EVERY_ONE)
    return fork


def test_a_newer_template_conflicts_only_with_what_was_deleted(fork):
    author = {
        f"GIT_{who}_{what}": "t@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    fetch, log = pieces.block("git fetch").splitlines()
    merge, remove, commit = pieces.block("git merge").splitlines()
    fork.run("sh", "-c", fetch)
    if not fork.has_history:
        join = re.search(r"`(git merge .*) COMMIT`", pieces.SECTION)[1]
        fork.run("sh", "-c", f"{join} --no-edit {fork.old}", **author)
        fork.run("sh", "-c", fetch)
    if fork.has_history:
        steps = fork.run("git", "log", "--format=%b", "-1", fork.old).stdout
        [step, *_] = [line for line in steps.splitlines() if line.startswith("Upgrade:")]
        assert step not in fork.run("sh", "-c", log).stdout
        before = log.replace(" ..", f" {fork.old}~..")
        assert step in fork.run("sh", "-c", before).stdout
    fork.run("sh", "-c", merge, check=False, **author)
    conflicts = fork.run("git", "diff", "--name-only", "--diff-filter=U").stdout.split()
    deleted = (".ci/", "test/template/")
    names = {next(filter(name.startswith, deleted), name) for name in conflicts}
    assert names == {"README.md", "README.zh-CN.md", *deleted}
    fork.run("sh", "-c", remove)
    fork.run("sh", "-c", commit, **author)
    assert (fork.path / "README.md").read_text() == "# My service\n"
    difference = fork.run("git", "diff", "HEAD", fork.expected.strip()).stdout
    assert difference == ""
