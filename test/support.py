"""Helpers of several test files: the service, raw sockets, waiting, a checkout and its pipeline."""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(text):
    """Return the blocks of code of a Markdown text, each with its language."""
    return re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)


class Service:
    """server.py as a child process on a free port of 127.0.0.1.

    `constants` replaces module constants of server.py, so that no test waits for the real limits.
    """

    def __init__(self, *options, env=None, **constants):
        code = "import server\n"
        code += "".join(f"server.{name} = {value!r}\n" for name, value in constants.items())
        # Files: a pipe that nobody reads may be full after 4 kB, which stops the service.
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code + "server.main()", "--address=127.0.0.1", "--port=0", *options],
            cwd=ROOT, env={**os.environ, **(env or {})}, stdout=self.out, stderr=self.err,
        )
        self.greeting = await_true(lambda: re.match(".*\n", self.read(self.out)), seconds=20)[0].strip()
        self.port = int(self.greeting.split()[-1])
        self.url = f"http://127.0.0.1:{self.port}"

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    @staticmethod
    def read(file):
        # At an offset: reading would move the end at which the service writes.
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()

    def end(self, timeout=15):
        """Wait for the end; return exit status, standard output, and standard error."""
        status = self.process.wait(timeout)
        return status, self.read(self.out), self.read(self.err)

    def close(self):
        """Kill it if it still runs."""
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.err.close()


def connect(port, address="127.0.0.1"):
    return socket.create_connection((address, port), timeout=10)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def receive(connection):
    """Return all that the other side sends until it closes the connection, however it does that."""
    answer = b""
    try:
        while data := connection.recv(65536):
            answer += data
    except ConnectionError:
        pass
    return answer


def await_true(condition, seconds=10):
    """Wait until condition() is true and return what it returned; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not true after {seconds} s: {condition}"
        time.sleep(0.02)
    return result


class Checkout:
    """A throwaway clone of this working tree, what is not committed included, in which tests may commit."""

    def __init__(self, path):
        self.path = path
        subprocess.run(["git", "clone", "--quiet", "--no-local", ROOT, path], check=True)
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True,
        ).stdout.split(b"\0")[:-1]
        for name in (Path(os.fsdecode(name)) for name in names):
            if (ROOT / name).exists():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
            else:
                (path / name).unlink(missing_ok=True)
        self.commit("The working tree")

    def commit(self, message):
        """Commit everything; return the commit's hash."""
        author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        self.run("git", "add", "--all")
        self.run("git", *author, "commit", "--quiet", "--allow-empty", "--message", message)
        return self.run("git", "rev-parse", "HEAD").stdout.strip()

    def edit(self, name, old, new):
        """Replace `old`, which must be there, by `new`."""
        text = (self.path / name).read_text()
        assert old in text
        (self.path / name).write_text(text.replace(old, new))

    def run(self, *command, check=True, timeout=600, **env):
        return subprocess.run(
            command, cwd=self.path, env={**os.environ, **env}, check=check, timeout=timeout,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )


class Pipeline(Checkout):
    """A checkout and the container in which scripts/pipeline runs its commits."""

    def __init__(self, path):
        super().__init__(path)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/test"

    def push(self, **env):
        """Run the commit that is checked out; return the finished process."""
        run = self.run("scripts/pipeline", f"--port={self.port}", check=False, **env)
        self.image = re.search(r"DEPLOY_IMAGE=(\S+)", run.stdout + "DEPLOY_IMAGE=none")[1]
        return run

    @functools.cache
    def push_what_does_not_start(self):
        """Run a commit that passes the tests: only a deployed container has a read-only file system."""
        self.edit("server.py", "def main():\n", 'def main():\n    open("/var/tmp/started", "w").close()\n')
        self.commit("Break the start")
        run = self.push()
        self.run("git", "reset", "--hard", "--quiet", "HEAD~")
        return run

    def container(self):
        """Return the id of the pipeline's host."""
        label = f"label=gitlab-ci-pipeline={self.path}"
        return self.run("docker", "ps", "--quiet", "--filter", label).stdout.strip()

    def host(self, *command, check=True, input=None, timeout=120):
        """Run a command in the pipeline's host; return what it prints."""
        return subprocess.run(
            ["docker", "exec", "--interactive", self.container(), *command], check=check, input=input, timeout=timeout,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ).stdout

    def docker(self, *arguments, **options):
        """Run the docker client against the engine of the pipeline's host."""
        return self.host("docker", *arguments, **options)

    def manifest(self, name, tag):
        """Return what the registry answers when it may answer with any kind of manifest."""
        kinds = [f"application/vnd.{kind}+json" for kind in (
            "oci.image.index.v1", "docker.distribution.manifest.list.v2",
            "oci.image.manifest.v1", "docker.distribution.manifest.v2",
        )]
        code = (
            "import ssl, sys, urllib.request as r\n"
            "request = r.Request(sys.argv[1], headers={'Accept': sys.argv[2]})\n"
            "print(r.urlopen(request, context=ssl._create_unverified_context()).read().decode())"
        )
        url = f"https://127.0.0.1/v2/group/{name}/manifests/{tag}"
        return json.loads(self.docker(
            "run", "--rm", "--network=host", self.image, "python", "-c", code, url, ", ".join(kinds)
        ))

    def traffic(self):
        """Return the bytes that the registry has received, that it has sent, and that came from Docker Hub."""
        counter = "/sys/class/net/eth0/statistics/{}_bytes"
        registry = [self.docker("exec", "registry", "cat", counter.format(way)) for way in ("rx", "tx")]
        return [int(number) for number in (*registry, self.host("cat", counter.format("rx")))]

    def answering(self, port):
        """Return the release that answers on a port of the host, or None."""
        headers = self.host("sh", "-c", f"curl -si -m 5 http://127.0.0.1:{port}/test", check=False)
        return (re.findall(r"^X-Release: (\S+)", headers, re.MULTILINE) or [None])[0]

    def put_source(self, directory):
        """Put the files of the commit that is checked out into the host."""
        self.host("sh", "-c", f"rm -rf {directory} && mkdir {directory}")
        self.run("sh", "-c", f"git archive HEAD | docker exec -i {self.container()} tar x -C {directory}")

    def build_job(self, dind="--privileged --volume certs:/certs/client", client="--volume certs:/certs/client", **env):
        """Run the build job as a runner does: a client container, and a dind service beside it.

        `dind` and `client` are what the runner gives to each; return the log, with the exit status.
        """
        self.clean_build_job()
        self.put_source("/tmp/source")
        env = {
            "CI": "true", "CI_COMMIT_SHA": "0" * 40,
            "CI_REGISTRY": "registry.test", "CI_REGISTRY_IMAGE": "registry.test/group/project",
            "DOCKER_HOST": "tcp://docker:2376", "DOCKER_TLS_VERIFY": "1",
            "DOCKER_TLS_CERTDIR": "/certs", "DOCKER_CERT_PATH": "/certs/client", **env,
        }
        env = " ".join(f"--env {name}={value}" for name, value in env.items())
        return self.host("sh", "-c", f"""
            docker network create job > /dev/null
            docker run --detach --quiet --name docker --network job {dind} --volume /etc/dind:/etc/docker:ro \
                --add-host registry.test:host-gateway docker:29.7.2-dind > /dev/null
            docker run --rm --network job {client} --volume /tmp/source:/source --workdir /source {env} \
                docker:29.7.2-cli scripts/build 2>&1
            echo "status $?"
        """, timeout=180)

    def clean_build_job(self):
        for command in (("rm", "--force", "--volumes", "docker"), ("network", "rm", "job"), ("volume", "rm", "certs")):
            self.docker(*command, check=False)

    def down(self):
        self.run("scripts/pipeline", "--down", check=False)

    def make_releases(self, registry):
        """Push variants of this release to a registry; return their names with digest, by the name of each.

        Those named by a number answer with that as their release.
        """
        self.put_source("/tmp/variants")
        self.host("sh", "-c", "cd /tmp/variants && RELEASE=0 scripts/build 2>&1")
        variants = {
            "crash": """CMD ["python", "-c", "raise SystemExit('no database')"]""",
            "wrong": "ENV RELEASE=other",
            "unhealthy": """HEALTHCHECK --start-period=1s --interval=1s --timeout=3s --retries=2 CMD ["false"]""",
            **{str(number): "" for number in range(1, 7)},
        }
        names, now = {}, int(time.time())
        for age, (variant, line) in enumerate(variants.items()):
            name = f"{registry}/group/trial:{variant}"
            made = f"SOURCE_DATE_EPOCH={now + age}"  # otherwise all in one second
            self.docker("build", "--quiet", "--build-arg", made, "--tag", name, "-", input=(
                f"FROM app:release\nENV RELEASE={variant}\nLABEL org.opencontainers.image.revision={variant}\n{line}\n"
            ))
            self.docker("push", "--quiet", name)
            names[variant] = self.docker("inspect", "--format={{index .RepoDigests 0}}", name).strip()
            self.docker("rmi", "--force", name)
        return names


class Deployment:
    """The end of a run of scripts/deploy."""

    def __init__(self, command, **options):
        began = time.monotonic()
        run = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        self.status, self.output, self.seconds = run.returncode, run.stdout, time.monotonic() - began

    def reason(self):
        """Return the one line in which it failed."""
        assert self.status == 1, self.output
        [line] = [line for line in self.output.splitlines() if line.startswith("deploy: ")]
        return line


class LabHost:
    """A throwaway host of the lab, of its own kernel; its engine listens where only the lab's hosts are."""

    lab = (ROOT.parent / "shared/lab").resolve()  # a host sees this machine's files, /tmp excepted
    network = ("nsenter", "--net=/run/netns/lab")

    def __init__(self, number=1, seconds=1500):
        self.number, self.address = number, f"10.88.0.{number}"
        self.env = {**os.environ, "DOCKER_HOST": f"tcp://{self.address}:2375"}
        self.process = subprocess.Popen([
            self.lab / "host", "--id", str(number), "--limit", str(seconds), "--",
            "socat", "-t600", "TCP-LISTEN:2375,fork,reuseaddr", "UNIX-CONNECT:/var/run/docker.sock",
        ], stdout=subprocess.DEVNULL)
        await_true(lambda: self.docker("version", check=False).returncode == 0, seconds=120)

    def run(self, *command, check=True, **options):
        """Run a command of this machine in the network of the hosts, with the host's engine."""
        return subprocess.run(
            [*self.network, *command], check=check, env={**self.env, **options.pop("env", {})},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )

    def docker(self, *arguments, **options):
        return self.run("docker", *arguments, **options)

    def end(self):
        self.process.terminate()
        self.process.wait(30)
