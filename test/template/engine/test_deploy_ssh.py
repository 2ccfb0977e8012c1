"""scripts/deploy over ssh, with a real sshd on this machine that leads to the pipeline's engine."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines import Deployment
from support import ROOT, await_true, connect, free_port

pytestmark = pytest.mark.lab


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


class Remote:
    """A directory in which scripts/deploy deploys the pipeline's first release, over ssh."""

    def __init__(self, pipeline, sshd, directory):
        keys, host = sshd
        self.pipeline, self.directory = pipeline, directory
        shutil.copytree(ROOT / "scripts", directory / "scripts")
        self.temporary = Path(tempfile.mkdtemp())  # short: it is part of a socket's path
        self.env = {
            **os.environ,
            "HOME": str(directory),
            "TMPDIR": str(self.temporary),
            "DEPLOY_HOST": host,
            "DEPLOY_IMAGE": pipeline.first_image,
            "DEPLOY_STACK": "remote",
            "DEPLOY_PORT": "20400",
            "DEPLOY_PUBLISH_MODE": "host",
            "DEPLOY_ADDRESS": "127.0.0.1",
            "DEPLOY_SSH_KEY": str(keys / "key"),
            "DEPLOY_SSH_KNOWN_HOSTS": str(keys / "known_hosts"),
        }

    command = [sys.executable, "scripts/deploy"]

    def deploy(self, **env):
        return Deployment(self.command, cwd=self.directory, timeout=120, env={**self.env, **env})

    def start(self):
        """Start a deployment, as the leader of a process group; return the process."""
        return subprocess.Popen(
            self.command,
            cwd=self.directory,
            env=self.env,
            start_new_session=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def copies_of_the_key(self):
        return list(self.temporary.glob("*/key"))

    def services(self):
        return self.pipeline.docker("service", "ls", "--quiet", "--filter=name=remote").split()

    def containers(self):
        return self.pipeline.docker("ps", "--quiet", "--filter=name=remote").split()

    def remove(self):
        self.pipeline.docker("stack", "rm", "--detach=false", "remote")
        shutil.rmtree(self.temporary)


@pytest.fixture
def remote(pipeline, sshd, tmp_path):
    remote = Remote(pipeline, sshd, tmp_path)
    yield remote
    remote.remove()


def test_a_release_is_deployed_over_ssh_as_through_the_socket(remote):
    run = remote.deploy()
    assert run.status == 0 and "answers at http://127.0.0.1:20400/test" in run.output, run.output
    assert "remote_server 1/1\n    10 requests checked" in run.output
    assert not list(remote.temporary.iterdir())


def test_a_wrong_key_and_an_unknown_host_end_in_one_line_each(remote, sshd):
    directory, host = sshd
    unwelcome = remote.deploy(DEPLOY_SSH_KEY=str(directory / "stranger")).reason()
    assert unwelcome.startswith(f"deploy: the engine at {host}: ")
    assert "Permission denied" in unwelcome
    (directory / "nobody").write_text("")
    for name in ("other_hosts", "nobody"):
        unknown = remote.deploy(DEPLOY_SSH_KNOWN_HOSTS=str(directory / name)).reason()
        assert unknown.startswith(f"deploy: the engine at {host}: ")
        assert "Host key verification failed" in unknown


@pytest.mark.parametrize("moment", ["it has the key", "the service is there"])
def test_when_it_is_cancelled_no_copy_of_the_key_stays(remote, moment):
    process = remote.start()
    reached = remote.copies_of_the_key if moment == "it has the key" else remote.services
    await_true(reached, seconds=60)
    assert remote.copies_of_the_key()
    os.killpg(process.pid, signal.SIGTERM)  # as a runner does: to every process of the job
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "deploy: cancelled" in output, output
    assert not list(remote.temporary.iterdir())
    assert not remote.services() and not remote.containers()  # so the next one finds its port free
