"""The jobs test and template in the surroundings that GitLab Runner's docker executor gives them.

gitlab-ci-local, which scripts/pipeline uses, differs: in host name, owner and modes of the sources,
depth of the clone, and in the variables with several lines.
"""

import re
import shlex

import pytest

from gitlab_ci import JOBS
from pipelines import REGISTRY
from support import await_true

PROJECT = "/builds/group/project"
HOST_NAME = "runner-phi34wrr3-project-42-concurrent-0"
MESSAGE = "Change the service\n\nAPP_X=1 is what production has.\nAPP_SECRET_X=1\n'quoted' $HOME\n"
# The rest of what GitLab sets; here their values do not matter.
OTHERS = """
API_GRAPHQL_URL API_V4_URL BUILDS_DIR COMMIT_BEFORE_SHA COMMIT_REF_SLUG COMMIT_SHORT_SHA
COMMIT_TIMESTAMP CONCURRENT_PROJECT_ID CONFIG_PATH DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX
DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX DEPENDENCY_PROXY_PASSWORD DEPENDENCY_PROXY_USER
DISPOSABLE_ENVIRONMENT JOB_GROUP_NAME JOB_ID JOB_NAME_SLUG JOB_STARTED_AT JOB_STATUS JOB_TIMEOUT
JOB_URL MERGE_REQUEST_IID MERGE_REQUEST_TITLE NODE_TOTAL OPEN_MERGE_REQUESTS PAGES_DOMAIN
PAGES_HOSTNAME PAGES_URL PIPELINE_CREATED_AT PIPELINE_ID PIPELINE_IID PIPELINE_NAME PIPELINE_URL
PROJECT_CLASSIFICATION_LABEL PROJECT_DESCRIPTION PROJECT_ID PROJECT_NAME PROJECT_NAMESPACE
PROJECT_NAMESPACE_ID PROJECT_NAMESPACE_SLUG PROJECT_PATH PROJECT_PATH_SLUG
PROJECT_REPOSITORY_LANGUAGES PROJECT_ROOT_NAMESPACE PROJECT_TITLE PROJECT_TOPICS PROJECT_VISIBILITY
REPOSITORY_URL RUNNER_EXECUTABLE_ARCH RUNNER_ID RUNNER_REVISION RUNNER_SHORT_TOKEN RUNNER_TAGS
RUNNER_VERSION SERVER SERVER_FQDN SERVER_HOST SERVER_NAME SERVER_PORT SERVER_PROTOCOL
SERVER_REVISION SERVER_SHELL_SSH_HOST SERVER_SHELL_SSH_PORT SERVER_TLS_CERT_FILE
SERVER_TLS_KEY_FILE SERVER_VERSION SERVER_VERSION_MAJOR SERVER_VERSION_MINOR SERVER_VERSION_PATCH
TEMPLATE_REGISTRY_HOST
""".split()
VARIABLES = {
    **{f"CI_{name}": "a value" for name in OTHERS},
    "CI": "true",
    "GITLAB_CI": "true",
    "CI_COMMIT_MESSAGE": MESSAGE,
    "CI_COMMIT_DESCRIPTION": MESSAGE.partition("\n\n")[2],
    "CI_COMMIT_TITLE": "Change the service",
    "CI_COMMIT_AUTHOR": "A Person <person@example.org>",
    "CI_COMMIT_BRANCH": "mainx",
    "CI_COMMIT_REF_NAME": "mainx",
    "CI_COMMIT_REF_PROTECTED": "true",
    "CI_CONCURRENT_ID": "0",
    "CI_DEFAULT_BRANCH": "mainx",
    "CI_DEPENDENCY_PROXY_SERVER": "gitlab.example.com:443",
    "CI_JOB_IMAGE": f"{REGISTRY}/group/project/test",
    "CI_JOB_NAME": "test",
    "CI_JOB_STAGE": "test",
    "CI_JOB_TOKEN": "glcbt-64_notatoken",
    "CI_MERGE_REQUEST_DESCRIPTION": MESSAGE,
    "CI_PIPELINE_SOURCE": "push",
    "CI_PROJECT_DIR": PROJECT,
    "CI_PROJECT_URL": "https://gitlab.example.com/group/project",
    "CI_REGISTRY": REGISTRY,
    "CI_REGISTRY_IMAGE": f"{REGISTRY}/group/project",
    "CI_REGISTRY_PASSWORD": "glcbt-64_notatoken",
    "CI_REGISTRY_USER": "gitlab-ci-token",
    "CI_RUNNER_DESCRIPTION": "host build",
    "CI_SERVER_URL": "https://gitlab.example.com",
    "CI_SERVER_TLS_CA_FILE": f"{PROJECT}.tmp/CI_SERVER_TLS_CA_FILE",
    # What a project may have set for reasons of its own.
    "APP_CONFIG": "first: 1\nsecond: 2\n",
    "ENVIRONMENT": "live",
    "REFRESH": "10",
    "RELEASE": "1.4",
    "PYTHON": "/nowhere/python",
    "APP_URL": "https://app.example.com",
    "PORT": "80",
    "DRAIN_SECONDS": "soon",
}


@pytest.fixture(scope="module")
def runner(pipeline):
    """The pipeline's host, with a checkout as a runner makes it, and the release as `app`."""
    pipeline.put_history("/tmp/repository")
    pipeline.host("sh", "-euc", f"""
        umask 0000
        rm -rf /builds
        git init --quiet {PROJECT}
        cd {PROJECT}
        git fetch --quiet --depth 20 file:///tmp/repository {pipeline.first_commit}
        git checkout --quiet --force --detach FETCH_HEAD
        git clean -ffdx
        docker network create job > /dev/null
        docker run --detach --network job --network-alias app --env-file /dev/stdin \\
            --name release {pipeline.first_image} <<VARIABLES
RELEASE=1.4
PORT=80
VARIABLES
    """)  # fmt: skip
    await_true(lambda: "listening" in pipeline.docker("logs", "release"))
    yield pipeline
    pipeline.docker("rm", "--force", "release")
    pipeline.docker("network", "rm", "job")


@pytest.mark.parametrize("name", ["test", "template"])
def test_a_job_is_green_as_a_runner_runs_it(runner, name):
    job = JOBS[name]
    variables = {**VARIABLES, **job.get("variables", {}), "CI_JOB_NAME": name}
    variables["CI_COMMIT_SHA"] = runner.first_commit
    script = [
        "set -e",
        "umask 0000",
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        f"cd {PROJECT}",
        *job["script"],
        "echo the job has ended well",
    ]
    output = runner.docker(
        *f"run --rm --interactive --network job --hostname {HOST_NAME} --cpuset-cpus 0".split(),
        *("--volume", "/builds:/builds", runner.first_test_image, "sh"),
        input="\n".join(script),
        check=False,
        timeout=300,
    )
    print(re.findall(r"=+ (\d+ passed.*s) =+", output))
    assert output.endswith("the job has ended well\n"), output[-3000:]
