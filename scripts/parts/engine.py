"""The Docker engine that scripts/deploy asks.

Engine.run alone runs docker. Engine.remove and remove_images alone remove something, and only what
`removable` has chosen.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

PROBE = Path(__file__).with_name("probe.py")
STACK = "com.docker.stack.namespace"  # Swarm's own label, of all that belongs to a stack


class Failed(Exception):
    """What the user is told: what failed, and what to do."""


class Engine:
    """A Docker engine that manages a swarm. Nothing waits for it longer than `allow` has said."""

    def __init__(self, environ, host, seconds):
        self.env = {**environ, **({"DOCKER_HOST": host} if host else {})}
        self.name = f"the engine at {self.env.get('DOCKER_HOST') or 'the local socket'}"
        self.began, self.seconds = time.monotonic(), seconds  # that a deployment may take
        self.allow(seconds)

    def allow(self, seconds):
        self.end = time.monotonic() + seconds

    def in_time(self):
        return time.monotonic() < self.end

    def run(self, *arguments, input=None, **env):
        """Run docker once. Return the finished process, or fail with its reason."""
        seconds = max(self.end - time.monotonic(), 60)  # what has begun may end
        streams = {"input": input, "capture_output": True, "encoding": "utf-8", "errors": "replace"}
        env = {**self.env, **env}
        try:
            run = subprocess.run(["docker", *arguments], env=env, timeout=seconds, **streams)
        except OSError as error:
            raise Failed(f"cannot run docker: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise Failed(f"docker {arguments[0]} has not ended after {seconds:.0f} s") from None
        if run.returncode:
            raise Failed(last_line(run.stderr) or f"docker {arguments[0]} failed")
        return run

    def ask(self, *arguments):
        """Run docker once. Return what it prints, as data."""
        return [json.loads(line) for line in self.run(*arguments).stdout.splitlines()]

    def insist(self, action, cannot=None, tries=None):
        """Return what an action returns. Calls fail while Swarm elects a leader: try again."""
        for failures in range(1, 9999):
            try:
                return action()
            except Failed as error:
                if failures == tries or not self.in_time():
                    raise Failed(f"{cannot or self.name}: {error}") from None
                time.sleep(min(failures, 3))

    def docker(self, *arguments, cannot=None, tries=4, **options):
        """Run docker, some more times if it fails; `cannot` begins the sentence about that."""
        return self.insist(lambda: self.run(*arguments, **options), cannot, tries).stdout.strip()

    def objects(self, kind, *filters):
        """Return all objects of a kind, such as service, as Docker describes them."""

        def ask():
            ls = (kind, "ls", "--quiet", *(f"--filter={it}" for it in filters))
            ids = self.run(*ls).stdout.split()
            return json.loads(self.run(kind, "inspect", *ids).stdout) if ids else []

        return self.insist(ask)

    def remove(self, kind, stack, which=lambda name: True, tries=None):
        """Remove what a stack has of a kind, if `which` accepts its name."""

        def remove():
            # What an older version made has the label `project` on `server` and records only.
            things = [
                Thing(name_of(it), label(it, "project") or stack.owner, label(it, STACK))
                for it in self.objects(kind, f"label={STACK}={stack.name}")
            ]
            if names := removable(things, stack.project, stack.name, which):
                self.run(kind, "rm", *names)

        self.insist(remove, f"cannot remove the stack {stack.name}", tries)

    def remove_images(self, project, before, needed):
        """Remove the project's images that are older than one and that nobody needs."""
        for repository in (project, f"{project}/test", f"{project}/deploy"):
            form = "--format={{json .}}"
            ls = ("image", "ls", "--digests", f"--filter=before={before}", form, repository)
            found = [
                Thing(f"{it['Repository']}@{it['Digest']}", project, None)
                for it in self.ask(*ls)
                if it["Repository"] == repository and it["Digest"] != "<none>"
            ]
            for name in removable(found, project, None, lambda name: name not in needed):
                try:
                    self.run("image", "rm", name)
                except Failed:
                    pass  # docker itself refuses to remove an image that a container uses

    def probe(self, image, *arguments):
        """Run probe.py in the network of the engine's host. Return the line that it prints."""
        run = ("run", "--rm", "--network=host", "--no-healthcheck", "--entrypoint=python", image)
        code = ("-c", PROBE.read_text(), *arguments)
        return self.docker(*run, *code, cannot=f"cannot run {image} on the host")

    def pull(self, image):
        """Return the release that an image says it is; fetch it, unless it is there."""
        try:
            self.run("image", "inspect", image)
        except Failed:
            self.docker("pull", "--quiet", image, cannot=f"cannot pull {image}")
        [found] = json.loads(self.docker("image", "inspect", image))
        return (found["Config"].get("Labels") or {}).get("org.opencontainers.image.revision", "")

    def log(self, task):
        """Return the last lines of a task."""
        self.allow(10)
        try:
            log = self.run("service", "logs", "--raw", "--tail=20", task)
        except Failed as error:
            return [str(error)]
        return (log.stdout + log.stderr).splitlines()

    def nodes(self):
        """Return how many nodes of its swarm are ready. Fail if it manages none."""
        listed = self.insist(lambda: self.ask("node", "ls", "--format={{json .}}"), tries=4)
        return sum((it["Status"], it["Availability"]) == ("Ready", "Active") for it in listed)

    # --- How it is reached

    def use_key(self, key, known_hosts, work):
        """Give ssh a copy of the key: it refuses a file that others may read, such as GitLab's."""
        (work / "key").touch(mode=0o600)
        (work / "key").write_text(Path(key).read_text().replace("\r", "") + "\n")
        (work / "config").write_text(
            f"IdentityFile {work}/key\n"
            "IdentitiesOnly yes\n"
            "BatchMode yes\n"
            f'UserKnownHostsFile "{known_hosts}"\n'
            "StrictHostKeyChecking yes\n"
            "ControlMaster auto\n"
            f"ControlPath {work}/control\n"
            "ControlPersist 15\n"
        )
        ssh = shutil.which("ssh", path=self.env["PATH"])
        (work / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {work}/config "$@"\n')
        (work / "ssh").chmod(0o755)
        self.env["PATH"] = f"{work}:{self.env['PATH']}"  # docker calls ssh

    def log_in(self, work):
        """Let it pull. A deploy token comes first, since it outlives the job."""
        get = self.env.get
        user = get("CI_DEPLOY_USER") or get("CI_REGISTRY_USER")
        password = get("CI_DEPLOY_PASSWORD") or get("CI_REGISTRY_PASSWORD")
        logins = [(get("CI_REGISTRY"), user, password)]
        proxy = get("CI_DEPENDENCY_PROXY_SERVER")
        if proxy and get("IMAGE_PREFIX", "").startswith(f"{proxy}/"):
            user, password = get("CI_DEPENDENCY_PROXY_USER"), get("CI_DEPENDENCY_PROXY_PASSWORD")
            logins.append((proxy, user, password))
        logins = [it for it in logins if it[0] and it[2]]
        # docker would prefer DOCKER_AUTH_CONFIG to a login, so the login joins it in a file.
        # Credential helpers, which the job may lack, would stop the login.
        if logins and (known := self.env.pop("DOCKER_AUTH_CONFIG", "")) and '"cred' not in known:
            (work / "config.json").write_text(known)
            self.env["DOCKER_CONFIG"] = str(work)
        for server, user, password in logins:
            login = ("login", f"--username={user or ''}", "--password-stdin", server)
            self.docker(*login, input=password, cannot=f"cannot log in to {server} as {user}")


class Thing(NamedTuple):
    """What an engine has, as far as it may be removed."""

    name: str
    project: str | None
    stack: str | None  # an image has none


def removable(things, project, stack, which):
    """Return the names of what may be removed: of this project and this stack, never of others."""
    ours = [it for it in things if it.project == project and it.stack == stack]
    return [it.name for it in ours if project and which(it.name)]


def last_line(text):
    """Return the last line of what docker has said, without its warnings and hints."""
    lines = [line.strip() for line in text.splitlines()]
    hints = ("WARNING", "Usage:", "See ", "Run ")
    return ([line for line in lines if line and not line.startswith(hints)] or [""])[-1]


def name_of(it):
    return it.get("Spec", it)["Name"]


def label(it, name):
    return (it.get("Spec", it).get("Labels") or {}).get(name)
