"""The build job as a runner gives it its surroundings: a client container and a dind service beside it.

All of it runs in the pipeline's host, against its registry. Slow: each dind makes its keys first.
"""

import re

import pytest

pytestmark = pytest.mark.docker


@pytest.fixture
def build(pipeline):
    """Runs the build job of the commit that is checked out; returns its log."""
    yield pipeline.build_job
    pipeline.clean_build_job()


def test_a_code_only_build_moves_less_than_100_kb_each_way(pipeline, build):
    pipeline.edit("server.py", "A small Tornado", "A tiny Tornado")
    pipeline.commit("Change the code")
    before = pipeline.traffic()
    output = build(CI_COMMIT_REF_PROTECTED="true")
    pushed, sent, fetched = (now - then for now, then in zip(pipeline.traffic(), before))
    assert "status 0" in output, output
    assert pushed < 100_000
    assert sent + fetched < 100_000


def test_an_unprotected_branch_reads_the_cache_and_leaves_it_alone(pipeline, build):
    def cache():
        return pipeline.host("sh", "-c", (
            "docker exec registry sha256sum "
            "/var/lib/registry/docker/registry/v2/repositories/group/project/_manifests/tags/cache/current/link"
        ))

    before = cache()
    output = build(CI_COMMIT_REF_PROTECTED="false", CI_COMMIT_SHA="1" * 40)
    assert "status 0" in output
    assert re.search(r"\[environment \d/\d\] RUN .*\n(.*\n)*?.*CACHED", output)
    assert cache() == before


def test_the_pushed_images_are_plain_manifests(pipeline):
    for name in ("project", "project/test"):
        manifest = pipeline.manifest(name, pipeline.first_commit)
        assert manifest["mediaType"].endswith(("image.manifest.v1+json", "distribution.manifest.v2+json"))
        assert "manifests" not in manifest and "subject" not in manifest


@pytest.mark.parametrize("surroundings, words", [
    pytest.param(
        {"client": ""}, "/certs/client is empty (the runner must mount a volume at /certs/client",
        id="no certificates",
    ),
    pytest.param({"dind": "--volume certs:/certs/client"}, "the runner must start it privileged", id="not privileged"),
    pytest.param({"DOCKER_HOST": "tcp://dokcer:2376"}, "or DOCKER_HOST misnames it", id="wrong host"),
])
def test_an_engine_that_does_not_answer_is_explained_in_one_line(build, surroundings, words):
    output = build(ENGINE_SECONDS="5", **surroundings)
    lines = [line for line in output.splitlines() if line.startswith("build: ")]
    assert len(lines) == 1 and words in lines[0], output
    assert "status 1" in output


def test_the_index_and_its_password_are_used_and_leave_no_trace(pipeline, build):
    # Nobody listens there: what matters is who is asked, and what is told of it.
    pipeline.edit("requirements.txt", "tornado==", "# changed\ntornado==")
    pipeline.commit("Change the requirements")
    output = build(PIP_INDEX_URL="http://reader:pa55word@127.0.0.1:9/simple", CI_COMMIT_SHA="2" * 40)
    pipeline.run("git", "reset", "--hard", "--quiet", "HEAD~")
    assert "status 1" in output
    assert "Looking in indexes: http://reader:****@127.0.0.1:9/simple" in output
    assert "pa55word" not in output
