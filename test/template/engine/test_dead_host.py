"""A host that is lost, and another that takes over with what GitLab and the registry have."""

import time

import pytest
from test_register_runner import Host

from pipelines import REGISTRY
from support import await_true

SECONDS = 60  # from the loss to the first answer, at most
GO_ON = {"DEPLOY_PORT": "20200", "DEPLOY_PUBLISH_MODE": "host", "DEPLOY_REPLICAS": "1"}


class DeployHost(Host):
    """A host that trusts the registry of the pipeline, and has the checkout that a job gets."""

    def __init__(self, pipeline):
        super().__init__()
        self.pipeline = pipeline
        show = "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        address = self.local("inspect", show, pipeline.container())
        certificate = pipeline.host("cat", f"/etc/docker/certs.d/{REGISTRY}/ca.crt")
        self.sh(
            f"echo {address} registry.test >> /etc/hosts; mkdir -p /etc/docker/certs.d/{REGISTRY}"
        )
        self.write(f"/etc/docker/certs.d/{REGISTRY}/ca.crt", certificate)
        pack = f"git archive HEAD | docker exec -i {self.id} tar x -C /builds"
        self.sh("mkdir /builds")
        pipeline.run("sh", "-c", pack)

    def take_over(self):
        """Do what the page says: register-runner, then the job `deploy` of the last pipeline."""
        run = self.register("--only=deploy", GITLAB_TOKEN="glpat-create")
        assert run.returncode == 0, run.stdout
        built = {"DEPLOY_IMAGE": self.pipeline.first_image}
        built |= {"BUILT_DEPLOY_IMAGE": self.pipeline.first_deploy_image}
        env = " ".join(f"--env {name}={value}" for name, value in {**built, **GO_ON}.items())
        return self.sh(
            "docker run --rm --volume /var/run/docker.sock:/var/run/docker.sock "
            f"--volume /builds:/builds --workdir /builds {env} "
            f"{self.pipeline.first_deploy_image} python3 scripts/deploy"
        )

    def answers(self):
        answer = self.sh("curl -si -m 1 http://127.0.0.1:20200/test", check=False)
        return f"X-Release: {self.pipeline.first_commit}" in answer


@pytest.fixture
def hosts(pipeline):
    hosts = [DeployHost(pipeline), DeployHost(pipeline)]
    yield hosts
    for host in hosts:
        host.local("rm", "--force", "--volumes", host.id)


def test_another_host_serves_within_a_minute(hosts):
    lost, other = hosts
    lost.take_over()
    assert lost.answers() and not other.answers()
    lost.local("kill", lost.id)
    began = time.monotonic()
    print(other.take_over())
    await_true(other.answers, seconds=5)
    seconds = time.monotonic() - began
    print(f"{seconds:.1f} s from the loss to the first answer")
    assert seconds < SECONDS
