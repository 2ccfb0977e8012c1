"""The build job as a runner starts it: a client container, and a dind service beside it.

All of it runs in the pipeline's host, against its registry. Slow: each dind makes its keys first.
"""

import re

import pytest

from support import await_true

pytestmark = pytest.mark.docker

CACHE = (
    "/var/lib/registry/docker/registry/v2/repositories"
    "/group/project/_manifests/tags/cache/current/link"
)

# A registry and its token service. Of the CA of their certificates only dind is told.
PRIVATE_REGISTRY = """
    mkdir -p /tls /etc/dind/certs.d/registry.test:5443
    cd /tls
    new="openssl req -newkey rsa:2048 -nodes"
    $new -x509 -days 2 -subj "/CN=private CA" -keyout ca.key -out ca.crt
    $new -subj "/CN=registry.test" -keyout server.key -out server.csr
    echo subjectAltName=DNS:registry.test > names
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial \\
        -days 2 -extfile names -out server.crt
    cp ca.crt /etc/dind/certs.d/registry.test:5443/
    docker run --detach --name token --publish 8443:8443 \\
        --volume /tls:/tls:ro --volume /tmp/source/test/template:/test:ro \\
        python:3.14-slim python /test/registry_token.py 8443
    docker run --detach --name private-registry --publish 5443:5000 --volume /tls:/tls:ro \\
        --env REGISTRY_HTTP_TLS_CERTIFICATE=/tls/server.crt \\
        --env REGISTRY_HTTP_TLS_KEY=/tls/server.key \\
        --env REGISTRY_AUTH=token \\
        --env REGISTRY_AUTH_TOKEN_REALM=https://registry.test:8443/ \\
        --env REGISTRY_AUTH_TOKEN_SERVICE=registry \\
        --env REGISTRY_AUTH_TOKEN_ISSUER=gitlab \\
        --env REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE=/tls/ca.crt \\
        registry:3.1.1
"""


@pytest.fixture
def build(pipeline):
    """Runs the build job of the commit that is checked out; returns its log."""
    yield pipeline.build_job
    pipeline.clean_build_job()


def test_a_code_only_build_moves_less_than_100_kb_each_way(pipeline, build):
    pipeline.append("server.py", "# changed\n")
    pipeline.commit("Change the code")
    before = pipeline.traffic()
    output = build(CI_COMMIT_REF_PROTECTED="true")
    after = pipeline.traffic()
    pushed, sent, fetched = (now - then for now, then in zip(after, before, strict=True))
    assert "status 0" in output, output
    assert pushed < 100_000
    assert sent + fetched < 100_000


def test_an_unprotected_branch_reads_the_cache_and_leaves_it_alone(pipeline, build):
    def cache():
        return pipeline.docker("exec", "registry", "sha256sum", CACHE)

    before = cache()
    output = build(CI_COMMIT_REF_PROTECTED="false", CI_COMMIT_SHA="1" * 40)
    assert "status 0" in output
    assert re.search(r"\[environment \d/\d\] RUN .*: cached$", output, re.MULTILINE)
    assert cache() == before


def test_the_pushed_images_are_plain_manifests(pipeline):
    for name in ("project", "project/test"):
        manifest = pipeline.manifest(name, pipeline.first_commit)
        assert manifest["mediaType"].endswith(
            ("image.manifest.v1+json", "distribution.manifest.v2+json")
        )
        assert "manifests" not in manifest and "subject" not in manifest


@pytest.mark.parametrize(
    "surroundings, words",
    [
        pytest.param(
            {"client": ""},
            "/certs/client is empty (the runner must mount a volume at /certs/client",
            id="no certificates",
        ),
        pytest.param(
            {"dind": "--volume certs:/certs/client"},
            "the runner must start it privileged",
            id="not privileged",
        ),
        pytest.param(
            {"DOCKER_HOST": "tcp://dokcer:2376"}, "or DOCKER_HOST misnames it", id="wrong host"
        ),
    ],
)
def test_an_engine_that_does_not_answer_is_explained_in_one_line(build, surroundings, words):
    output = build(ENGINE_SECONDS="5", **surroundings)
    lines = [line for line in output.splitlines() if line.startswith("build: ")]
    assert len(lines) == 1 and words in lines[0], output
    assert "status 1" in output


def test_the_index_and_its_password_are_used_and_leave_no_trace(pipeline, build):
    # Nobody listens there: what matters is who is asked, and what is told of it.
    pipeline.append("requirements.txt", "# changed\n")
    pipeline.commit("Change the requirements")
    output = build(PIP_INDEX_URL="http://reader:pa55word@0.0.0.0:9/simple", CI_COMMIT_SHA="2" * 40)
    pipeline.run("git", "reset", "--hard", "--quiet", "HEAD~")
    assert "status 1" in output
    assert "Looking in indexes: http://reader:****@0.0.0.0:9/simple" in output
    assert "not a trusted" not in output
    assert "pa55word" not in output


@pytest.fixture
def private_registry(pipeline):
    """The name of a registry that takes tokens only, as GitLab's does; dind alone knows its CA."""
    pipeline.put_source("/tmp/source")
    pipeline.host("sh", "-euc", PRIVATE_REGISTRY)
    await_true(lambda: "ready" in pipeline.docker("logs", "token"), seconds=30)
    yield "registry.test:5443"
    pipeline.docker("rm", "--force", "--volumes", "token", "private-registry")
    pipeline.host("rm", "-r", "/etc/dind/certs.d/registry.test:5443", "/tls")


def test_a_private_ca_that_dind_knows_is_enough_to_push(build, private_registry):
    output = build(
        CI_REGISTRY=private_registry,
        CI_REGISTRY_IMAGE=f"{private_registry}/group/project",
        CI_REGISTRY_USER="robot",
        CI_REGISTRY_PASSWORD="pa55word",
        CI_COMMIT_SHA="3" * 40,
    )
    assert "status 0" in output, output
    assert f"DEPLOY_IMAGE={private_registry}/group/project@sha256:" in output, output
