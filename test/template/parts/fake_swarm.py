"""A swarm for scripts/deploy in process: it answers as docker does, and has a clock of its own.

It knows what the script asks and nothing else. Releases are named after what becomes of them:
those whose name begins with `crash`, `unhealthy` or `wrong` do that, the others answer.
"""

import base64
import contextlib
import copy
import functools
import importlib.machinery
import importlib.util
import io
import itertools
import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import yaml

from parts import engine, records, swarm
from parts.engine import Failed
from support import ROOT

STACK = engine.STACK
MESH = "10.0.0.0/24"
START, HEALTH, MONITOR, RESTART = 1, 3, 2, 5  # seconds, as Swarm takes them


def load_deploy():
    """Return scripts/deploy as a module."""
    loader = importlib.machinery.SourceFileLoader("deploy", str(ROOT / "scripts/deploy"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("deploy", loader))
    loader.exec_module(module)
    return module


deploy = load_deploy()


class Killed(BaseException):
    """The job ends at once, as by kill -9: nothing catches it."""


def image_of(release, project="registry.test/app"):
    return f"{project}@sha256:{release.encode().hex():0>64}"


def release_of(image):
    return bytes.fromhex(image.rpartition(":")[2]).decode().lstrip("\0")


class FakeSwarm:
    """An engine with one node; `run` stands for Engine.run."""

    def __init__(self):
        self.now, self.ids, self.calls = 1000.0, itertools.count(1), 0
        self.services, self.configs, self.secrets, self.networks = {}, {}, {}, {}
        self.images = {}  # the time at which each was made
        self.before_call = lambda arguments: None  # may change the swarm, fail, or end the job
        self.after_call = lambda arguments: None
        self.log = []

    # --- Time

    def sleep(self, seconds):
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            for service in self.services.values():
                self.advance(service)

    def advance(self, service):
        """Let the tasks of a service become what they will be by now."""
        if service["job"]:
            for task in service["tasks"]:
                if task["state"] == "Running" and self.now >= task["since"] + START:
                    failed = self.kind(task) == "unmigrated"
                    task["state"] = "Failed" if failed else "Complete"
                    if self.kind(task) == "hanging":
                        task["state"] = "Running"
            return
        current = self.current(service)
        for task in service["tasks"]:
            kind, age = self.kind(task), self.now - task["since"]
            if task["state"] == "Starting" and age >= START and kind == "crash":
                task["state"] = "Failed"
            elif task["state"] == "Starting" and age >= HEALTH:
                task["state"] = "Complete" if kind == "unhealthy" else "Running"
                task["since"] = self.now
        alive = [it for it in current if it["state"] in ("Starting", "Running")]
        if service["status"] in ("updating", "rollback_started"):
            ended = [it for it in current if it["state"] in ("Failed", "Complete")]
            if service["status"] == "updating" and ended:
                self.back(service)
                self.start(service)
            elif all(it["state"] == "Running" for it in current) and current:
                if self.now >= max(it["since"] for it in current) + MONITOR:
                    done = {"updating": "completed", "rollback_started": "rollback_completed"}
                    service["status"] = done[service["status"]]
        elif not alive and self.now >= max(it["since"] for it in current) + RESTART:
            self.start(service)

    def back(self, service):
        """Roll a service back, as Swarm does by itself or a person by hand."""
        service.update(service["previous"], status="rollback_started", version=next(self.ids))

    def start(self, service):
        """Replace the tasks by one of the version that is declared now."""
        for task in service["tasks"]:
            if task["state"] in ("Starting", "Running"):
                task["state"] = "Shutdown"
        image = service["spec"]["image"]
        state = "Running" if service["job"] else "Starting"
        task = {"id": f"task{next(self.ids)}", "image": image, "state": state, "since": self.now}
        service["tasks"].append({**task, "version": service["version"]})

    def current(self, service):
        return [it for it in service["tasks"] if it["version"] == service["version"]]

    def kind(self, task):
        return re.match("[a-z]*", release_of(task["image"]) if "@" in task["image"] else "")[0]

    def answering(self, port):
        """Return the release that answers on a port, or None."""
        for service in self.services.values():
            if port in service["ports"]:
                for task in service["tasks"]:
                    if task["state"] == "Running":
                        kind = self.kind(task)
                        return "other" if kind == "wrong" else release_of(task["image"])
        return None

    # --- What docker is asked

    def run(self, *arguments, input=None, **env):
        self.calls += 1
        self.log.append(" ".join(arguments[:2]))
        self.sleep(0.1)
        self.before_call(arguments)
        name = "_".join(it.replace("-", "") for it in arguments[:2] if not it.startswith("-"))
        if arguments[1] in ("ls", "inspect", "rm") and arguments[0] in self.kinds():
            text = getattr(self, arguments[1])(arguments[0], *arguments[2:])
        elif arguments[0] == "run":
            text = self.probe(*arguments[1:])
        elif arguments[0] in ("login", "info", "pull"):
            text = {"login": "", "info": '"192.0.2.1"', "pull": self.pull}[arguments[0]]
            text = text(arguments[-1]) if callable(text) else text
        else:
            text = getattr(self, name)(*arguments[2:], input=input, env=env)
        self.after_call(arguments)
        return SimpleNamespace(stdout=text, stderr="")

    def kinds(self):
        kinds = {"service": self.services, "config": self.configs, "secret": self.secrets}
        return {**kinds, "network": self.networks, "image": self.images, "node": {}}

    def ls(self, kind, *options):
        if kind == "node":
            return json.dumps({"Status": "Ready", "Availability": "Active"})
        if kind == "image":
            repository = options[-1]
            before = next(it for it in options if "before=" in it).partition("before=")[2]
            if before not in self.images:
                raise Failed(f"No such image: {before}")
            rows = [it.split("@") for it in self.images if self.images[it] < self.images[before]]
            rows = [it for it in rows if it[0] == repository]
            return "\n".join(json.dumps({"Repository": a, "Digest": b}) for a, b in rows)
        found = [it for it in self.kinds()[kind].values() if self.fits(it, options)]
        if "--quiet" in options:
            return "".join(f"{it['name']}\n" for it in found)
        return "".join(
            json.dumps({"Name": it["name"], "Replicas": self.replicas(it)}) + "\n" for it in found
        )

    def fits(self, it, options):
        for option in options:
            if match := re.fullmatch(r"--filter=label=([^=]+)(?:=(.*))?", option):
                value = it["labels"].get(match[1])
                if value is None or match[2] not in (None, value):
                    return False
        return True

    def replicas(self, service):
        current = self.current(service)
        if service["job"]:
            done = sum(it["state"] == "Complete" for it in current)
            return f"0/1 ({done}/1 completed)"
        return f"{sum(it['state'] == 'Running' for it in service['tasks'])}/1"

    def inspect(self, kind, *names):
        if kind == "image":
            if names[0] not in self.images:
                raise Failed(f"no such image: {names[0]}")
            revision = {"org.opencontainers.image.revision": release_of(names[0])}
            return json.dumps([{"Config": {"Labels": revision}}])
        found = self.kinds()[kind]
        if missing := [name for name in names if name not in found]:
            raise Failed(f"no such {kind}: {missing[0]}")
        return json.dumps([getattr(self, f"{kind}_data")(found[name]) for name in names])

    def service_data(self, it):
        container = {"Image": it["spec"]["image"]}
        spec = {"Name": it["name"], "Labels": it["labels"]}
        spec["TaskTemplate"] = {"ContainerSpec": container}
        ports = [{"PublishedPort": port, "Protocol": "tcp"} for port in it["ports"]]
        data = {"ID": it["name"], "Spec": spec, "Endpoint": {"Ports": ports}}
        return {**data, "UpdateStatus": {"State": it["status"]}} if it["status"] else data

    def config_data(self, it):
        data = base64.b64encode(it["data"].encode()).decode()
        return {
            "ID": it["name"],
            "Spec": {"Name": it["name"], "Labels": it["labels"], "Data": data},
        }

    def secret_data(self, it):
        return {"ID": it["name"], "Spec": {"Name": it["name"], "Labels": it["labels"]}}

    def network_data(self, it):
        data = {"Id": it["name"], "Name": it["name"], "Labels": it["labels"]}
        mesh = it["name"] == "ingress"
        return {**data, "Ingress": mesh, "IPAM": {"Config": [{"Subnet": MESH}] if mesh else None}}

    def rm(self, kind, *names):
        found = self.kinds()[kind]
        for name in names:
            if name not in found:
                raise Failed(f"{kind} {name} not found")
            if kind == "secret" and any(name in it["secrets"] for it in self.services.values()):
                raise Failed(f"secret '{name}' is in use")
            if kind == "image" and any(
                task["image"] == name and task["state"] in ("Starting", "Running")
                for it in self.services.values()
                for task in it["tasks"]
            ):
                raise Failed("image is in use")
            del found[name]
        return ""

    def pull(self, image):
        if not release_of(image):
            raise Failed("not found")
        self.images.setdefault(image, self.now)
        return ""

    def service_ps(self, *options, **_):
        names = [it for it in options if not it.startswith("-")]
        if missing := [name for name in names if name not in self.services]:
            raise Failed(f"no such service: {missing[0]}")
        filtered = "--filter=_up-to-date=true" in options
        lines = []
        for service in map(self.services.get, names):
            for task in self.current(service) if filtered else service["tasks"]:
                error = "task: non-zero exit (1)" if task["state"] == "Failed" else ""
                said = {"ID": task["id"], "Name": f"{service['name']}.1", "Error": error}
                said["CurrentState"] = f"{task['state']} 1 second ago"
                lines.append(task["id"] if "--quiet" in options else json.dumps(said))
        return "\n".join(lines)

    def service_update(self, *options, **_):
        service = self.services[options[-1]]
        service["labels"].pop(swarm.IMAGE, None)
        return ""

    def service_logs(self, *_, **__):
        return "a line of its log\n"

    def config_create(self, *options, input, **_):
        *options, name, _ = options
        if name in self.configs:
            raise Failed(f"config {name} already exists")
        labels = dict(it.removeprefix("--label=").split("=", 1) for it in options)
        self.configs[name] = {"name": name, "labels": labels, "data": input}
        return ""

    def stack_ps(self, *options, **_):
        if not any(it["labels"][STACK] == options[-1] for it in self.services.values()):
            raise Failed(f"nothing found in stack: {options[-1]}")
        return "task\n"

    def stack_config(self, option, env, **_):
        """Fill in the file, as far as scripts/stack.yml needs it."""
        text = Path(option.partition("=")[2]).read_text()
        text = re.sub(r"\$\{(\w+)(?::-)?\}", lambda it: env.get(it[1], ""), text)
        plan = copy.deepcopy(read_yaml(text.replace("$$", "$")))
        for service in plan["services"].values():
            names = Path(service.pop("env_file", "/dev/null")).read_text().splitlines()
            given = {it.partition("=")[0]: it.partition("=")[2] or self.env.get(it) for it in names}
            service["environment"] = {**service.get("environment", {}), **given}
            secrets = [
                it if isinstance(it, dict) else {"source": it} for it in service.get("secrets", [])
            ]
            service["secrets"] = secrets
            limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
            limits["memory"] = str(int(limits.get("memory", "0M")[:-1]) << 20)
            for port in service.get("ports", []):
                port["published"] = int(port["published"])
        return json.dumps({key: it for key, it in plan.items() if it})  # JSON is YAML, too

    def stack_deploy(self, *options, input, **_):
        stack, plan = options[-1], json.loads(input.replace("$$", "$"))
        used = {name for it in plan["services"].values() for name in it.get("networks", ())}
        for kind in ("secrets", "networks"):
            for short, it in (plan.get(kind) or {}).items():
                if kind == "networks" and short not in {"default", *used}:
                    continue
                name = it.get("name", f"{stack}_{short}")
                found = getattr(self, kind)
                if it.get("external"):
                    if name not in found:
                        raise Failed(f"{name} not found")
                elif name not in found:
                    found[name] = {"name": name, "labels": {STACK: stack, **it.get("labels", {})}}
        for short, it in plan["services"].items():
            self.declare(stack, f"{stack}_{short}", it)
        if "--prune" in options:
            for name, it in [*self.services.items()]:
                short = name.removeprefix(f"{stack}_")
                if it["labels"][STACK] == stack and short not in plan["services"]:
                    del self.services[name]
        return ""

    def declare(self, stack, name, it):
        deploy = it.pop("deploy", {})
        labels = {STACK: stack, swarm.IMAGE: it["image"], **deploy.pop("labels", {})}
        new = {
            "name": name,
            "labels": labels,
            "spec": {**it, "deploy": deploy},
            "ports": [port["published"] for port in it.get("ports", [])],
            "secrets": [secret["source"] for secret in it.get("secrets", [])],
            "job": deploy.get("mode") == "replicated-job",
        }
        new["secrets"] = [self.secret_name(stack, it) for it in new["secrets"]]
        old = self.services.get(name)
        if old is None:
            self.services[name] = {**new, "status": "", "tasks": [], "version": next(self.ids)}
            return self.start(self.services[name])
        changed = old["spec"] != new["spec"]
        previous = {key: old[key] for key in new}
        self.services[name] = {**old, **new, "status": "", "previous": previous}
        if changed:
            self.services[name]["version"] = next(self.ids)
            self.services[name]["status"] = "" if new["job"] else "updating"
            self.start(self.services[name])

    def secret_name(self, stack, source):
        return next((it for it in self.secrets if it.startswith(f"{stack}-{source}-")), source)

    def probe(self, *arguments):
        what, *rest = arguments[arguments.index("-c") + 2 :]
        if what == "port":
            first, last = map(int, rest[0].split("-"))
            used = dict(line.split(" ", 1) for line in rest[2].splitlines())
            free = [it for it in range(first, last + 1) if str(it) not in used]
            if free:
                return f"{free[int(release_hash(rest[1])) % len(free)]}\n"
            return f"port {first} is used by {used[str(first)]}\n" if first == last else "none\n"
        url, release, seconds = rest
        port, end = int(url.rpartition(":")[2]), self.now + float(seconds)
        while self.answering(port) != release and self.now < end:
            self.sleep(0.5)
        self.sleep(1)
        answering = self.answering(port)
        return f"release {answering}\n" if answering else "nobody\n"


def release_hash(text):
    return sum(map(ord, text))


# YAML takes half of the time of a deployment here.
@functools.lru_cache(maxsize=1000)
def plan_of(text):
    return json.dumps(records.read_plan(text))


@functools.lru_cache(maxsize=1000)
def read_yaml(text):
    return yaml.safe_load(text)


class Job:
    """Runs of scripts/deploy on a fake swarm, in a directory."""

    env = {"DEPLOY_ADDRESS": "127.0.0.1", "DEPLOY_PUBLISH_MODE": "host", "DEPLOY_TIMEOUT": "60"}

    def __init__(self, swarm, directory):
        self.swarm, self.directory = swarm, Path(directory)

    def deploy(self, release, project="registry.test/app", **env):
        return self.run(DEPLOY_IMAGE=image_of(release, project), **env)

    def run(self, action="deploy", **env):
        """Return how a run has ended: `status`, `reason` and `output`."""
        fake, self.ended = self.swarm, False
        output = io.StringIO()
        environ = {**self.env, "PATH": "/bin", **env}

        def run(engine, *arguments, input=None, **env):
            fake.env = {**engine.env, **env}
            return fake.run(*arguments, input=input, **fake.env)

        def succeeded():
            self.ended = True  # a signal would do nothing any more

        clock = SimpleNamespace(monotonic=lambda: fake.now, sleep=fake.sleep)
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context
            patch(mock.patch.object(engine.Engine, "run", run))
            patch(mock.patch("parts.plan.read_plan", lambda text: json.loads(plan_of(text))))
            for module in (engine, swarm, deploy):
                patch(mock.patch.object(module, "time", clock))
            patch(mock.patch.object(deploy, "ignore_signals", succeeded))
            patch(contextlib.chdir(self.directory))
            patch(contextlib.redirect_stdout(output))
            patch(contextlib.redirect_stderr(output))
            work = Path(patch(tempfile.TemporaryDirectory()))
            reason = None
            try:
                deploy.main(action, environ, work)
            except Failed as error:
                reason = str(error)
            except deploy.Cancelled:
                reason = "cancelled (nothing is changed)"
        return SimpleNamespace(reason=reason, output=output.getvalue())
