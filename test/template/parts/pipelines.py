"""Helpers of the template's tests: a checkout, its pipeline, deployments, hosts of the lab."""

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import requests

from support import ROOT, await_true, free_port

# The registry of the pipeline's host.
[REGISTRY] = re.findall('^REGISTRY = "(.*?)"', (ROOT / "scripts/pipeline").read_text(), re.M)
SCRIPTS = ["build", "deploy", "pipeline", "register-runner", "serve", "test", "venv"]
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


def blocks(text):
    """Return the blocks of code of a Markdown text, each with its language."""
    return re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)


class Checkout:
    """A throwaway clone, in which tests may commit; it has the uncommitted changes, too."""

    def __init__(self, path):
        self.path = path
        subprocess.run(["git", "clone", "--quiet", "--no-local", ROOT, path], check=True)
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout.split(b"\0")[:-1]
        for name in (Path(os.fsdecode(name)) for name in names):
            if (ROOT / name).exists():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name)
            else:
                (path / name).unlink(missing_ok=True)
        self.commit("The working tree")

    def append(self, name, text):
        """Add lines to the end of a file."""
        with (self.path / name).open("a") as file:
            file.write(text)

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
            command,
            cwd=self.path,
            env={**os.environ, **env},
            check=check,
            timeout=timeout,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


class Pipeline(Checkout):
    """A checkout and the container in which scripts/pipeline runs its commits."""

    def __init__(self, path):
        super().__init__(path)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/test"
        self.broken_push = self.deploy_image = None

    def push(self, **env):
        """Run the commit that is checked out; return the finished process."""
        run = self.run("scripts/pipeline", f"--port={self.port}", check=False, **env)
        said = dict(re.findall(r"\b((?:BUILT_)?[A-Z]+_IMAGE)=(\S+@sha256:\w+)", run.stdout))
        self.image, self.test_image = said.get("DEPLOY_IMAGE"), said.get("BUILT_TEST_IMAGE")
        self.deploy_image = said.get("BUILT_DEPLOY_IMAGE", self.deploy_image)
        return run

    def push_what_does_not_start(self):
        """Run, the first time, a commit whose release does not start; return the finished process.

        It passes the tests: only a deployed container has a read-only file system.
        """
        if self.broken_push is None:
            start = 'if __name__ == "__main__":\n'
            self.edit("server.py", start, f'{start}    open("/var/tmp/started", "w").close()\n')
            self.commit("Break the start")
            self.broken_push = self.push()
            self.run("git", "reset", "--hard", "--quiet", "HEAD~")
        return self.broken_push

    def container(self):
        """Return the id of the pipeline's host."""
        label = f"label=gitlab-ci-pipeline={self.path}"
        return self.run("docker", "ps", "--quiet", "--filter", label).stdout.strip()

    def host(self, *command, check=True, input=None, timeout=120):
        """Run a command in the pipeline's host; return what it prints."""
        return subprocess.run(
            ["docker", "exec", "--interactive", self.container(), *command],
            check=check,
            input=input,
            timeout=timeout,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout

    def docker(self, *arguments, **options):
        """Run the docker client against the engine of the pipeline's host."""
        return self.host("docker", *arguments, **options)

    def deployer(self, directory, *command, env):
        """Return a command that runs another where deploy jobs run: in the image for them.

        The container stays, since to start one for each deployment would take a second. It has the
        host's /tmp.
        """
        names = [part for name in env for part in ("--env", name)]
        inner = ["docker", "exec", f"--workdir={directory}", *names, "deployer", *command]
        if not self.docker("ps", "--quiet", "--filter=name=^deployer$"):
            run = ("run", "--detach", "--name=deployer", "--restart=always", "--network=host")
            volumes = ("--volume=/var/run/docker.sock:/var/run/docker.sock", "--volume=/tmp:/tmp")
            self.docker(*run, *volumes, self.deploy_image, "sleep", "infinity")
        values = [f"--env={name}={value}" for name, value in env.items()]
        return ["docker", "exec", *values, self.container(), *inner]

    def manifest(self, image):
        """Return what the registry answers when it may answer with any kind of manifest."""
        name, digest = image.removeprefix(f"{REGISTRY}/").split("@")
        code = (
            "import ssl, sys, urllib.request as r\n"
            "request = r.Request(sys.argv[1], headers={'Accept': sys.argv[2]})\n"
            "print(r.urlopen(request, context=ssl._create_unverified_context()).read().decode())"
        )
        url = f"https://{REGISTRY}/v2/{name}/manifests/{digest}"
        fetch = ("python", "-c", code, url, ", ".join(MANIFESTS))
        return json.loads(self.docker("run", "--rm", "--network=host", self.image, *fetch))

    def traffic(self):
        """Return the bytes that the registry received, that it sent, and that the host received."""
        received, sent = (f"/sys/class/net/eth0/statistics/{way}_bytes" for way in ("rx", "tx"))
        registry = self.docker("exec", "registry", "cat", received, sent).split()
        return [int(number) for number in (*registry, self.host("cat", received))]

    def answering(self, port):
        """Return the release that answers on a port of the host, or None."""
        headers = self.host("sh", "-c", f"curl -si -m 5 http://127.0.0.1:{port}/test", check=False)
        return (re.findall(r"^X-Release: (\S+)", headers, re.MULTILINE) or [None])[0]

    def put(self, directory, pack):
        """Put into a directory of the host what a command packs in the checkout."""
        self.host("sh", "-c", f"rm -rf {directory} && mkdir {directory}")
        self.run("sh", "-c", f"{pack} | docker exec -i {self.container()} tar x -C {directory}")

    def put_history(self, directory):
        """Put the commits of the checkout into the host, as a repository to fetch from."""
        self.put(directory, "tar c -C .git .")

    def put_source(self, directory):
        """Put the files of the commit that is checked out into the host."""
        self.put(directory, "git archive HEAD")

    def build_job(
        self,
        dind="--privileged --volume certs:/certs/client",
        client="--volume certs:/certs/client",
        prepare="true",
        **env,
    ):
        """Run the build job as a runner does: a client container, and a dind service beside it.

        `dind` and `client` are what the runner gives to each; `prepare` is shell code that changes
        the checkout. Return the log, with the exit status.
        """
        self.clean_build_job()
        self.put_source("/tmp/source")
        env = {
            "CI": "true",
            "CI_COMMIT_SHA": "0" * 40,
            "CI_REGISTRY": REGISTRY,
            "CI_REGISTRY_IMAGE": f"{REGISTRY}/group/project",
            "DOCKER_HOST": "tcp://docker:2376",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_TLS_CERTDIR": "/certs",
            "DOCKER_CERT_PATH": "/certs/client",
            **env,
        }
        env = shlex.join(f"--env={name}={value}" for name, value in env.items())
        code = f"""
            (cd /tmp/source && {prepare})
            docker network create job > /dev/null
            docker run --detach --quiet --name docker --network job {dind} \\
                --volume /etc/docker:/etc/docker:ro --add-host registry.test:host-gateway \\
                docker:29.7.2-dind > /dev/null
            docker run --rm --network job {client} \\
                --volume /tmp/source:/source --workdir /source {env} \\
                docker:29.7.2-cli scripts/build 2>&1
            echo "status $?"
        """
        return self.host("sh", "-c", code, timeout=180)

    def clean_build_job(self):
        self.docker("rm", "--force", "--volumes", "docker", check=False)
        self.docker("network", "rm", "job", check=False)
        self.docker("volume", "rm", "certs", check=False)

    def down(self):
        self.run("scripts/pipeline", "--down", check=False)

    def make_releases(self, registry=REGISTRY):
        """Push variants of this release to a registry; return the image of each, with its digest.

        A variant that is named by a number answers with that as its release.
        """
        self.put_source("/tmp/variants")
        self.host("sh", "-c", "cd /tmp/variants && RELEASE=0 scripts/build 2>&1")
        often = "--start-period=1s --interval=1s --timeout=3s --retries=2"
        variants = {
            "crash": """CMD ["python", "-c", "raise SystemExit('no database')"]""",
            "wrong": "ENV SERVICE_RELEASE=other",
            "unhealthy": f'HEALTHCHECK {often} CMD ["false"]',
            **{str(number): "" for number in range(1, 7)},
        }
        names, now = {}, int(time.time())
        for age, (variant, line) in enumerate(variants.items()):
            name = f"{registry}/group/trial:{variant}"
            made = f"--build-arg=SOURCE_DATE_EPOCH={now + age}"  # otherwise all in one second
            dockerfile = (
                "FROM app:release\n"
                f"ENV SERVICE_RELEASE={variant}\n"
                f"LABEL org.opencontainers.image.revision={variant}\n"
                f"{line}\n"
            )
            self.docker("build", "--quiet", made, "--tag", name, "-", input=dockerfile)
            self.docker("push", "--quiet", name)
            digest = self.docker("inspect", "--format={{index .RepoDigests 0}}", name)
            names[variant] = digest.strip()
            self.docker("rmi", "--force", name)
        return names


def environment_is_cached(log):
    """True when the builds took all packages from the cache, False when one installed some."""
    assert "==> Building release\n" in log and "==> Building test\n" in log, log
    return not re.search(r"\[\S+ \d/\d\] RUN ", log)  # cached steps are not shown


def result(log, job):
    """What the closing table says of a job."""
    return re.search(rf"^{job} +(passed|failed|not run)", log, re.MULTILINE)[1]


def answering(pipeline):
    """Return the release that answers, or None."""
    try:
        return requests.get(pipeline.url, timeout=10).headers["X-Release"]
    except requests.ConnectionError:
        return None


class Deployment:
    """The end of a run of scripts/deploy."""

    def __init__(self, command, **options):
        began = time.monotonic()
        run = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
        )
        self.seconds = time.monotonic() - began
        self.status, self.output = run.returncode, run.stdout

    def reason(self):
        """Return the one line in which it failed."""
        assert self.status == 1, self.output
        [line] = [line for line in self.output.splitlines() if line.startswith("deploy: ")]
        return line


class Host:
    """A throwaway host with an engine of its own, for Swarm."""

    network = ()  # what puts a command of this machine into the network of the hosts

    def __init__(self, name, address):
        self.name, self.address = name, address
        self.env = {**os.environ, "DOCKER_HOST": f"tcp://{address}:2375"}
        await_true(lambda: self.docker("version", check=False).returncode == 0, seconds=120)

    def run(self, *command, check=True, **options):
        """Run a command of this machine in the network of the hosts, with the host's engine."""
        return subprocess.run(
            [*self.network, *command],
            check=check,
            env={**self.env, **options.pop("env", {})},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )

    def docker(self, *arguments, **options):
        return self.run("docker", *arguments, **options)

    def run_on_it(self, *command):
        """Run a command of the host on the host, as root."""
        root = ("--privileged", "--network=host", "--volume=/:/host", "python:3.14-slim")
        return self.docker("run", "--rm", *root, "chroot", "/host", *command)


class LabHost(Host):
    """A host of the lab, with its own kernel; only such hosts reach its engine."""

    lab = (ROOT.parent / "shared/lab").resolve()  # a host sees this machine's files, /tmp excepted
    network = ("nsenter", "--net=/run/netns/lab")
    interface = "vec0"

    @classmethod
    @contextlib.contextmanager
    def registry_for(cls, pipeline):
        """Let the pipeline push to the lab's registry; the block gets CI's settings for it."""
        show = ["sh", "-c", f". {cls.lab}/settings; set"]
        settings = subprocess.run(show, capture_output=True, text=True).stdout
        settings = dict(re.findall(r"^LAB_(REGISTRY\w*)='?(.*?)'?$", settings, re.MULTILINE))
        registry, user = settings["REGISTRY"], settings["REGISTRY_USER"]
        login = ("login", "--username", user, "--password-stdin", registry)
        pipeline.docker(*login, input=settings["REGISTRY_PASSWORD"])
        yield {f"CI_{name}": value for name, value in settings.items()}

    def __init__(self, number=1, seconds=1500):
        self.number = number
        host = [self.lab / "host", "--id", str(number), "--limit", str(seconds), "--"]
        listen, engine = "TCP-LISTEN:2375,fork,reuseaddr", "UNIX-CONNECT:/var/run/docker.sock"
        self.process = subprocess.Popen(
            [*host, "socat", "-t600", listen, engine], stdout=subprocess.DEVNULL
        )
        super().__init__(f"lab-host{number}", f"10.88.0.{number}")

    def cut_off(self):
        self.run("ip", "link", "set", f"lab-tap{self.number}", "down")

    def end(self):
        self.process.terminate()
        self.process.wait(30)


class DindHost(Host):
    """A host that is a container, beside others on a network of their own."""

    image, bridge = "docker:29.7.2-dind", "gitlab-ci-pipeline-mesh"
    interface = "eth0"

    @staticmethod
    def local(*arguments, **options):
        command = ["docker", *arguments]
        return subprocess.run(command, text=True, stdout=subprocess.PIPE, **options).stdout.strip()

    @classmethod
    @functools.cache
    def routes(cls):
        """Return whether this machine reaches such a host, and its kernel has IPVS."""
        code = "modprobe ip_vs 2> /dev/null; test -e /proc/net/ip_vs && echo yes"
        host = ("run", "--rm", "--privileged", "--entrypoint=sh", cls.image, "-c", code)
        return sys.platform == "linux" and cls.local(*host) == "yes"

    @classmethod
    @contextlib.contextmanager
    def registry_for(cls, pipeline):
        """Let the hosts reach the pipeline's registry; the block gets CI's settings for it."""
        container = pipeline.container()
        cls.certificate = pipeline.host("cat", f"/etc/docker/certs.d/{REGISTRY}/ca.crt")
        # A subnet for tests of networks: no engine in these containers chooses it for its own.
        cls.local("network", "create", "--subnet=198.18.20.0/24", cls.bridge)
        try:
            alias = f"--alias={REGISTRY.partition(':')[0]}"
            cls.local("network", "connect", alias, cls.bridge, container, check=True)
            login = {"CI_REGISTRY_USER": "pipeline", "CI_REGISTRY_PASSWORD": "pipeline"}
            yield {"CI_REGISTRY": REGISTRY, **login}
        finally:
            cls.local("network", "disconnect", "--force", cls.bridge, container)
            cls.local("network", "rm", cls.bridge)

    def __init__(self, number=1):
        name = f"mesh{number}"
        run = ("run", "--detach", "--privileged", "--label=gitlab-ci-pipeline=mesh")
        there = (f"--network={self.bridge}", f"--hostname={name}", "--env=DOCKER_TLS_CERTDIR=")
        # Said outright, since an engine without TLS otherwise waits before it starts.
        self.id = self.local(*run, *there, self.image, "--tls=false", check=True)
        trusted = f"/etc/docker/certs.d/{REGISTRY}"
        trust = ("sh", "-c", f"mkdir -p {trusted} && cat > {trusted}/ca.crt")
        self.local("exec", "--interactive", self.id, *trust, input=self.certificate, check=True)
        address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        super().__init__(name, self.local("inspect", f"--format={address}", self.id))

    def cut_off(self):
        self.local("network", "disconnect", self.bridge, self.id, check=True)

    def end(self):
        self.local("rm", "--force", "--volumes", self.id)
