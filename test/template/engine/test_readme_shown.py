"""What README.md shows of a push is what it prints."""

import re

import pytest

from pipelines import blocks
from support import ROOT

pytestmark = pytest.mark.xdist_group("pipeline")

BLOCKS = blocks((ROOT / "README.md").read_text())


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
    for shown, run in (
        ("job ", pipeline.first),
        ("==> Deploying", pipeline.push_what_does_not_start()),
    ):
        [text] = [text for _, text in BLOCKS if text.startswith(shown)]
        printed = [shape(line) for line in run.stdout.splitlines()]
        assert [line for line in map(shape, text.splitlines()) if line not in printed] == [], (
            run.stdout
        )
