"""scripts/deploy over ssh, with a real sshd on this machine that leads to the pipeline's engine."""

import os
import shutil
import subprocess

import pytest

from pipelines import Deployment
from support import ROOT, await_true, connect, free_port

pytestmark = [pytest.mark.docker, pytest.mark.lab]


@pytest.fixture(scope="module")
def sshd(pipeline, tmp_path_factory):
    """A directory with keys, in front of a server whose only command reaches the engine."""
    directory, port = tmp_path_factory.mktemp("ssh"), free_port()
    for name in ("host", "key", "stranger"):
        generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name]
        subprocess.run(generate, check=True)
    for name, key in (("known_hosts", "host.pub"), ("other_hosts", "stranger.pub")):
        (directory / name).write_text(f"[127.0.0.1]:{port} {(directory / key).read_text()}")
    for name in ("key", "stranger"):  # as GitLab leaves a file that somebody pasted
        text = (directory / name).read_text().rstrip().replace("\n", "\r\n")
        (directory / name).write_text(text)
        (directory / name).chmod(0o666)
    engine = pipeline.run("docker", "port", pipeline.container(), "2376/tcp").stdout.split()[0]
    certificates = f"{pipeline.path}/.pipeline/certs"
    env = f"DOCKER_HOST=tcp://{engine} DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH={certificates}"
    settings = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {directory}/host",
        "PidFile none",
        "UsePAM no",
        f"AuthorizedKeysFile {directory}/key.pub",
        "StrictModes no",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        f"ForceCommand {env} docker system dial-stdio",
    ]
    (directory / "config").write_text("\n".join(settings) + "\n")
    os.makedirs("/run/sshd", exist_ok=True)
    program = shutil.which("sshd", path="/usr/sbin")
    command = [program, "-D", "-e", "-f", directory / "config"]
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(command, stderr=log) as process,
    ):
        await_true(lambda: "Server listening" in (directory / "log").read_text())
        connect(port).close()
        yield directory, f"ssh://root@127.0.0.1:{port}"
        process.terminate()


@pytest.fixture
def deploy(pipeline, sshd, tmp_path):
    """Deploys the pipeline's first release as the service `remote`, over ssh."""
    directory, host = sshd
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")

    def run(**env):
        return Deployment(
            ["scripts/deploy"],
            cwd=tmp_path,
            timeout=120,
            env={
                **os.environ,
                "HOME": str(tmp_path),
                "DEPLOY_HOST": host,
                "DEPLOY_IMAGE": pipeline.first_image,
                "DEPLOY_SERVICE": "remote",
                "DEPLOY_PORT": "20400",
                "DEPLOY_PUBLISH_MODE": "host",
                "DEPLOY_DRAIN_SECONDS": "1",
                "DEPLOY_SSH_KEY": str(directory / "key"),
                "DEPLOY_SSH_KNOWN_HOSTS": str(directory / "known_hosts"),
                **env,
            },
        )

    yield run
    pipeline.docker("service", "rm", "remote", check=False)


def test_a_release_is_deployed_over_ssh_as_through_the_socket(deploy):
    run = deploy(DEPLOY_ADDRESS="127.0.0.1")
    assert run.status == 0 and "answers at http://127.0.0.1:20400/test" in run.output, run.output
    assert "10 requests checked" in run.output


def test_a_wrong_key_and_an_unknown_host_end_in_one_line_each(deploy, sshd):
    directory, host = sshd
    unwelcome = deploy(DEPLOY_SSH_KEY=str(directory / "stranger"))
    assert f"{host} does not accept DEPLOY_SSH_KEY" in unwelcome.reason()
    unknown = deploy(DEPLOY_SSH_KNOWN_HOSTS=str(directory / "other_hosts"))
    assert f"{host} shows a host key that DEPLOY_SSH_KNOWN_HOSTS does not hold" in unknown.reason()
    (directory / "nobody").write_text("")
    unknown = deploy(DEPLOY_SSH_KNOWN_HOSTS=str(directory / "nobody"))
    assert f"{host} shows a host key that DEPLOY_SSH_KNOWN_HOSTS does not hold" in unknown.reason()
