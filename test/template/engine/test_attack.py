"""The released image, with the limits of a deployment, attacked from a container beside it.

Slow: each attack is kept up for some seconds.
"""

import json
import re

import pytest

from attack import ATTACKS, UNREAD
from support import ROOT, await_true

STACK = (ROOT / "scripts/stack.yml").read_text()
MEMORY = re.search(r"memory: (\w+)", STACK)[1]
FILES = re.search(r"nofile: (\d+)", STACK)[1]


TARGETS = [*((attack, FILES) for attack in ATTACKS | UNREAD), ("idle connections", "1024")]


@pytest.fixture(params=TARGETS, ids=" ".join)
def attacked(pipeline, request):
    """The pipeline's host, with a fresh container `target`, and the name of the attack."""
    attack, files = request.param
    pipeline.put_source("/tmp/attack")
    options = "--detach --name=target --read-only --cap-drop=ALL --cpus=1".split()
    limits = [f"--memory={MEMORY}", f"--memory-swap={MEMORY}", f"--ulimit=nofile={files}"]
    pipeline.docker("run", *options, *limits, pipeline.first_image)
    await_true(lambda: "listening" in pipeline.docker("logs", "target"))
    yield pipeline, attack
    pipeline.docker("rm", "--force", "target")


def test_an_attack_harms_nobody_else(attacked):
    host, attack = attacked
    options = "--rm --network=container:target --pid=container:target --ulimit=nofile=20000".split()
    program = ["python", "/attack/attack.py", attack, "8744"]
    source = "--volume=/tmp/attack/test/template/parts:/attack:ro"
    result = json.loads(host.docker("run", *options, source, host.first_image, *program))
    print(attack, result)
    state = json.loads(host.docker("inspect", "--format={{json .State}}", "target"))
    assert state["Running"] and not state["OOMKilled"]
    assert not result["failed"], f"{len(result['failed'])} failed: {result['failed'][:3]}"
    assert result["slowest"] < 5 and result["answered"] > 20
    if attack in UNREAD:
        return  # they may have all of the processor, as long as others get their turn
    assert result["processor"] < 0.5
    log = host.docker("logs", "target").splitlines()
    others = [line for line in log if " 200 GET " not in line]
    assert len(others) <= ATTACKS[attack][0] + 10, others[:10]
