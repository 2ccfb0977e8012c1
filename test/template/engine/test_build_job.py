"""The build job as a runner starts it: a client container, and a dind service beside it.

All of it runs in the pipeline's host, against its registry. Slow: each dind makes its keys first.
"""

import base64
import json
import re

import pytest
from test_pipeline import environment_is_cached

from pipelines import REGISTRY
from support import await_true
from trial import Trial

CACHE = (
    "/var/lib/registry/docker/registry/v2/repositories"
    "/group/project/_manifests/tags/cache/current/link"
)

# A registry and its token service. Of the CA of their certificates only engines are told.
PRIVATE_REGISTRY = """
    mkdir -p /tls /etc/docker/certs.d/registry.test:5443
    cd /tls
    new="openssl req -newkey rsa:2048 -nodes"
    $new -x509 -days 2 -subj "/CN=private CA" -keyout ca.key -out ca.crt
    $new -subj "/CN=registry.test" -keyout server.key -out server.csr
    echo subjectAltName=DNS:registry.test > names
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial \\
        -days 2 -extfile names -out server.crt
    cp ca.crt /etc/docker/certs.d/registry.test:5443/
    docker run --detach --name token --publish 8443:8443 \\
        --volume /tls:/tls:ro --volume /tmp/source/test/template/parts:/test:ro \\
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


def test_a_code_only_build_uploads_less_than_100_kb_and_pulls_no_layer(pipeline, build):
    pipeline.append("server.py", "# changed\n")
    pipeline.commit("Change the code")
    before = pipeline.traffic()
    output = build(CI_COMMIT_REF_PROTECTED="true")
    after = pipeline.traffic()
    pushed, sent, fetched = (now - then for now, then in zip(after, before, strict=True))
    assert "status 0" in output, output
    assert pushed < 100_000
    assert sent + fetched < 200_000  # manifests and configurations; packages have megabytes


def test_an_unprotected_branch_reads_the_cache_and_leaves_it_alone(pipeline, build):
    def cache():
        return pipeline.docker("exec", "registry", "sha256sum", CACHE)

    before = cache()
    output = build(CI_COMMIT_REF_PROTECTED="false", CI_COMMIT_SHA="1" * 40)
    assert "status 0" in output
    assert environment_is_cached(output)
    assert cache() == before


def test_neither_umask_nor_proxy_is_part_of_the_cache_or_of_the_image(pipeline, build):
    # The proxy leads nowhere: nothing needs to be fetched.
    proxy = "http://reader:pa55word@198.18.21.9:9"
    output = build(
        HTTP_PROXY=proxy,
        https_proxy=proxy,
        NO_PROXY="docker,registry.test",
        CI_COMMIT_REF_PROTECTED="false",
        prepare="chmod 777 *.py *.txt test/*.txt",
    )
    assert environment_is_cached(output)
    image = re.search(r"\bDEPLOY_IMAGE=(\S+)", output)[1]
    stat = ("stat", "-c", "%a %n", "server.py", "requirements.txt")
    modes = pipeline.docker("run", "--rm", image, *stat)
    assert modes.endswith("644 server.py\n644 requirements.txt\n")
    everything = pipeline.docker("image", "inspect", image)
    everything += pipeline.docker("history", "--no-trunc", "--format=json", image)
    assert "pa55word" not in everything + output and "_PROXY" not in everything.upper()


def test_a_package_for_the_service_leaves_those_of_the_tests_alone_and_comes_first(pipeline, build):
    # The tests need a newer idna; requests brings it.
    output = build(
        prepare="echo 'idna==3.10' >> requirements.txt",
        CI_COMMIT_REF_PROTECTED="false",
        CI_COMMIT_SHA="6" * 40,
    )
    assert "status 0" in output, output
    assert "[test-packages" not in output and not environment_is_cached(output), output
    image = re.search(r"BUILT_TEST_IMAGE=(\S+)", output)[1]
    pipeline.docker("pull", "--quiet", image)
    code = "import idna, requests; print(idna.__version__, requests.__file__)"
    found = pipeline.docker("run", "--rm", image, "python", "-c", code)
    assert found == "3.10 /test/packages/requests/__init__.py\n"
    assert pipeline.docker("run", "--rm", image, "pytest", "--version").startswith("pytest ")


def test_each_build_of_a_commit_has_a_tag_of_its_own(pipeline, build):
    images = []
    for job in ("1001", "1002"):
        output = build(CI_JOB_ID=job, CI_COMMIT_SHA="4" * 40, CI_COMMIT_REF_PROTECTED="false")
        images.append(re.search(r"\bDEPLOY_IMAGE=(\S+)", output)[1])
    tags = [f"{REGISTRY}/group/project:{'4' * 40}-{job}" for job in ("1001", "1002")]
    digests = "--format={{json .RepoDigests}}"
    for tag in tags:
        pipeline.docker("pull", "--quiet", tag)
    found = [json.loads(pipeline.docker("inspect", digests, tag)) for tag in tags]
    assert images[0] != images[1] and found == [[image] for image in images]


def test_the_pushed_images_are_plain_manifests(pipeline):
    for image in (pipeline.first_image, pipeline.first_test_image):
        manifest = pipeline.manifest(image)
        assert manifest["mediaType"].endswith(
            ("image.manifest.v1+json", "distribution.manifest.v2+json")
        )
        assert "manifests" not in manifest and "subject" not in manifest


@pytest.mark.parametrize(
    "surroundings, words",
    [
        pytest.param(
            {"client": ""},
            "ca.pem: no such file or directory (the runner must start the dind service privileged",
            id="no certificates",
        ),
        pytest.param(
            {"dind": "--volume certs:/certs/client"},
            "(the runner must start the dind service privileged",
            id="not privileged",
        ),
        pytest.param(
            {"DOCKER_HOST": "tcp://dokcer:2376"},
            "no such host (remove the CI/CD variable DOCKER_HOST: it overrides .gitlab-ci.yml",
            id="another host",
        ),
        pytest.param(
            {"DOCKER_TLS_CERTDIR": "", "dind": "--privileged --env DOCKER_TLS_CERTDIR="},
            "(remove the CI/CD variable DOCKER_TLS_CERTDIR: it overrides .gitlab-ci.yml",
            id="no TLS",
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
    # The last lines are pip's own, not the code of the step that failed.
    cause, end, _ = output.splitlines()[-3:]
    assert "ERROR: No matching distribution found for tornado" in cause
    assert end == "build: cannot build test (the lines above say why)"


def test_what_a_build_fetches_comes_through_the_proxy(pipeline, build):
    address = "198.18.21.1"  # one that no engine takes for its networks
    pipeline.host("ip", "address", "replace", f"{address}/32", "dev", "lo")
    run = ("run", "--detach", "--network=host", "--name=proxy", pipeline.first_image)
    pipeline.docker(*run, "python", "-u", "-m", "http.server", "3128")  # its log has the requests
    try:
        output = build(
            HTTP_PROXY=f"http://reader:pa55word@{address}:3128",
            NO_PROXY="docker,registry.test",
            PIP_INDEX_URL="http://index.test/simple",
            prepare="echo '# changed again' >> requirements.txt",
        )
        assert "status 1" in output and "pa55word" not in output
        assert "GET http://index.test/simple/tornado/ " in pipeline.docker("logs", "proxy"), output
    finally:
        pipeline.docker("rm", "--force", "proxy")


@pytest.fixture
def private_registry(pipeline):
    """The name of a registry that takes tokens only, as GitLab's does; jobs do not know its CA."""
    pipeline.put_source("/tmp/source")
    pipeline.host("sh", "-euc", PRIVATE_REGISTRY)
    await_true(lambda: "ready" in pipeline.docker("logs", "token"), seconds=30)
    yield "registry.test:5443"
    pipeline.docker("rm", "--force", "--volumes", "token", "private-registry")
    pipeline.host("rm", "-r", "/etc/docker/certs.d/registry.test:5443", "/tls")


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


# A registry on two ports, to clients two registries. Its only user is robot, with pa55word.
LOCKED_REGISTRY = """
    for port in 5444 5445; do
        cp -r /etc/docker/certs.d/$1 /etc/docker/certs.d/registry.test:$port
    done
    mkdir /locked
    echo 'robot:$2b$04$c/Z7RvtLTC6JRNbJIbV7peec1ffJUzL0nNlVV0w1wiKK5LdelnQpS' > /locked/htpasswd
    docker run --detach --name locked --publish 5444:5000 --publish 5445:5000 \\
        --volume /locked:/locked:ro --volume /var/lib/docker/registry-tls:/tls:ro \\
        --env REGISTRY_HTTP_TLS_CERTIFICATE=/tls/registry.crt \\
        --env REGISTRY_HTTP_TLS_KEY=/tls/registry.key \\
        --env REGISTRY_AUTH=htpasswd --env REGISTRY_AUTH_HTPASSWD_REALM=locked \\
        --env REGISTRY_AUTH_HTPASSWD_PATH=/locked/htpasswd \\
        registry:3.1.1
"""


@pytest.fixture
def locked_registry(pipeline):
    """A registry with a password, as the project's; as another it has the base images."""
    pipeline.host("sh", "-euc", LOCKED_REGISTRY, "sh", REGISTRY)
    own, other = "registry.test:5444", "registry.test:5445"
    login = ("login", "--username=robot", "--password-stdin", own)
    await_true(lambda: "Succeeded" in pipeline.docker(*login, input="pa55word", check=False))
    for image in ("python:3.14-slim", "docker:29.7.2-cli"):
        base, dockerfile = f"{own}/{image}", f"FROM {image}\nLABEL copy=true\n"
        pipeline.docker("build", "--quiet", "--tag", base, "-", input=dockerfile)
        pipeline.docker("push", "--quiet", base)
        pipeline.docker("rmi", base)
    pipeline.docker("logout", own)
    yield own, other
    pipeline.docker("rm", "--force", "--volumes", "locked")
    pipeline.host("sh", "-c", "rm -r /locked /etc/docker/certs.d/registry.test:544[45]")


def test_the_jobs_login_beats_docker_auth_config_which_serves_for_others(
    pipeline, build, locked_registry
):
    own, other = locked_registry
    right, wrong = (
        {"auth": base64.b64encode(f"robot:{password}".encode()).decode()}
        for password in ("pa55word", "wrong")
    )
    login = {
        "CI_REGISTRY": own,
        "CI_REGISTRY_USER": "robot",
        "CI_REGISTRY_PASSWORD": "pa55word",
        "DOCKER_AUTH_CONFIG": json.dumps({"auths": {own: wrong, other: right}}),
    }
    output = build(
        **login,
        IMAGE_PREFIX=f"{other}/",
        CI_REGISTRY_IMAGE=f"{own}/group/project",
        CI_COMMIT_SHA="5" * 40,
    )
    assert "status 0" in output, output

    trial = Trial(pipeline, {})
    deployment = trial.deploy(re.search(r"\bDEPLOY_IMAGE=(\S+)", output)[1], **login)
    trial.remove()
    assert deployment.status == 0, deployment.output
