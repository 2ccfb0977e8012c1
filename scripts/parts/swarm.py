"""A stack in Swarm: what runs, what was verified, and how scripts/deploy changes it."""

import copy
import json
import re
import time
from collections import Counter
from typing import NamedTuple

from parts.engine import STACK, Failed, label, name_of
from parts.records import read_records, write_plan

IMAGE = "com.docker.stack.image"  # Swarm's own label: the image that was declared for a service
REPLICAS = re.compile(r"(\d+)/(\d+)(?: \((\d+)/(\d+) completed\))?")
ENDED = ("Complete", "Failed", "Rejected")
STEADY_SECONDS = 2  # that a new service must run: one that crashes runs for a moment, each time


class Task(NamedTuple):
    id: str
    service: str
    state: str  # such as "Running"
    said: str  # the task's full name, and since when it has that state
    error: str
    current: bool  # made from what its service declares now


class Step(NamedTuple):
    """What is waited for: the sentences that say how it can go wrong."""

    failed: str
    late: str
    failures: int  # of its tasks that are one too many


class Stack:
    """A stack as the last `look` has found it, and as it was before this deployment."""

    def __init__(self, engine, name, project=None, deploy_image=""):
        self.engine, self.name = engine, name
        self.look()
        server = self.services.get("server", {})
        # The image that can deploy this stack: a label names it to the person on the host.
        self.deploy_image = deploy_image or label(server, "deploy_image") or ""
        self.records = self.read_records()
        self.old_deployment = self.deployment
        self.old_services = set(self.services)
        self.old_tasks = {it.id for it in self.tasks}
        # The number of the record that runs, or None.
        self.running = next((n for n, it in enumerate(self.records) if self.runs(it)), None)
        # The project that it is of: `server` says so first, in case the repository was moved.
        said = [label(it, "project") for it in (server, *self.services.values())]
        said += [it.project for it in self.records]
        self.owner = next(filter(None, said), None)
        self.project = project or self.owner

    def read_records(self):
        return read_records(self.engine, f"label={STACK}={self.name}")

    # --- What runs

    def look(self):
        """Ask Swarm for the services, by the names that they have in the file, and their tasks."""
        engine, form = self.engine, "--format={{json .}}"

        def ask():
            listed = engine.ask("service", "ls", f"--filter=label={STACK}={self.name}", form)
            replicas = {it["Name"]: it["Replicas"] for it in listed}
            if not replicas:
                return [], {}, [], []
            found = json.loads(engine.run("service", "inspect", *replicas).stdout)
            ps = ("service", "ps", "--no-trunc", *replicas)
            # docker's own progress bar uses this filter.
            current = engine.run(*ps, "--quiet", "--filter=_up-to-date=true").stdout.split()
            return found, replicas, engine.ask(*ps, form), current

        found, replicas, tasks, current = engine.insist(ask)
        self.services = {
            self.short(name_of(it)): {**it, "Replicas": replicas[name_of(it)]} for it in found
        }
        self.tasks = [
            Task(
                id=it["ID"],
                service=self.short(it["Name"].rpartition(".")[0]),
                state=it["CurrentState"].partition(" ")[0],
                said=f"{it['Name']}: {it['CurrentState']}",
                error=it["Error"],
                current=it["ID"] in current,
            )
            for it in tasks
        ]
        self.deployment = label(self.services.get("server", {}), "deployment")

    def short(self, name):
        return name.removeprefix(f"{self.name}_")

    def image(self, name):
        return self.services[name]["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]

    def ports(self, name):
        """Return the ports on which a service can be reached."""
        ports = self.services.get(name, {}).get("Endpoint", {}).get("Ports") or []
        return [it["PublishedPort"] for it in ports]

    def replicas(self, name):
        """Return how many replicas a converged service has. Swarm also counts those that end."""
        wanted = REPLICAS.match(self.services[name]["Replicas"])[2]
        return f"{wanted}/{wanted}"

    def is_job(self, name):
        return "completed" in self.services[name]["Replicas"]

    def update(self, name):
        """Return the state of the last update of a service. The next update will reset it."""
        return (self.services[name].get("UpdateStatus") or {}).get("State", "")

    def runs(self, record):
        """Say whether this is what runs, with the images that were declared."""
        declared = record.deployment.plan["services"]
        return (
            (record.old or record.deployment.id == self.deployment)
            and declared.keys() <= self.services.keys()
            and all(self.image(name) == it["image"] for name, it in declared.items())
        )

    def converged(self, names):
        """Say whether these services have their replicas, as declared, and each job has ended."""
        running = Counter(it.service for it in self.tasks if it.current and it.state == "Running")
        for name in names:
            if name not in self.services or self.update(name) not in ("", "completed"):
                return False
            said = REPLICAS.match(self.services[name]["Replicas"])
            here, wanted, ended, to_end = (int(number or 0) for number in said.groups())
            if ended < to_end or (not to_end and min(running[name], here) < wanted):
                return False
        return True

    def troubles(self, names):
        """Return the tasks of this deployment that are not as they should be, ended ones first.

        A server that does not become healthy is Complete, since it ends in order. A task may wait
        until its node lets go of the network of a stack that was just removed.
        """
        found = [
            it
            for it in self.tasks
            if it.service in names
            and it.id not in self.old_tasks
            and it.state != ("Complete" if self.is_job(it.service) else "Running")
            and "Pool overlaps with other one" not in it.error
        ]
        return sorted(found, key=lambda it: it.state not in ENDED)

    # --- How it changes

    def apply(self, deployment, plan, *options):
        """Give Swarm a plan of this deployment."""
        for name in plan["services"].keys() & self.services.keys():
            # docker keeps an image that was changed by hand while this label names the declared.
            if label(self.services[name], IMAGE) != self.image(name):
                update = ("service", "update", "--detach", "--quiet", f"--label-rm={IMAGE}")
                self.engine.docker(*update, f"{self.name}_{name}")
        plan = copy.deepcopy(plan)
        if server := plan["services"].get("server"):
            own = {"deployment": deployment.id, "deploy_image": self.deploy_image}
            server["deploy"]["labels"] |= own
        how = ("--detach=true", "--with-registry-auth", "--resolve-image=never", *options)
        deploy = ("stack", "deploy", *how, "--compose-file=-", self.name)
        self.engine.docker(*deploy, input=write_plan(plan), cannot="Swarm refuses the stack")

    def wait(self, step, names, deployment):
        """Wait until these services have converged, and those that are new stay so."""
        steady_since = None
        while True:
            self.look()
            present = [name for name in names if name in self.services]
            if any(self.update(name).startswith(("rollback", "paused")) for name in present):
                raise Failed("the new release fails: Swarm rolls back")
            self.check(deployment)
            if not self.converged(names):
                steady_since = None
            else:
                steady_since = steady_since or time.monotonic()
                new = {name for name in names if not self.is_job(name)} - self.old_services
                if not new or time.monotonic() > steady_since + STEADY_SECONDS:
                    return
            failed = [it for it in self.troubles(present) if it.current and it.state in ENDED]
            if len(failed) >= step.failures:
                raise Failed(step.failed)
            if not self.engine.in_time():
                raise Failed(step.late.format(self.engine.seconds))
            time.sleep(0.5)

    def check(self, deployment):
        if self.deployment != deployment:
            raise Failed("another deployment has come in between")

    def remove(self):
        """Remove the stack, and wait until its containers have freed their ports and networks."""
        self.engine.remove("service", self)
        while self.has_tasks() and self.engine.in_time():
            time.sleep(0.5)
        for kind in ("secret", "network", "config"):  # the records last: they say whose it is
            self.engine.remove(kind, self)

    def has_tasks(self):
        try:
            return bool(self.engine.run("stack", "ps", "--quiet", self.name).stdout)
        except Failed as error:
            return "nothing found" not in str(error)

    # --- Its records

    def remember(self, deployment, beside):
        """Leave a record, as the newest."""
        labels = {STACK: self.name, "project": self.project, "beside": beside}
        options = [f"--label={name}={value}" for name, value in labels.items() if value]

        def create():
            if [it.deployment.id for it in self.read_records()][:1] != [deployment.id]:
                number = max((it.number for it in read_records(self.engine)), default=0) + 1
                config = ("config", "create", *options, f"{self.name}.{number}", "-")
                self.engine.run(*config, input=json.dumps(deployment.kept()._asdict()))

        self.engine.insist(create, "cannot leave a record of the release", tries=4)

    def forget(self, records):
        names = {it.name for it in records}
        if names:
            self.engine.remove("config", self, lambda name: name in names)

    def forget_secrets(self):
        """Remove the secrets that no record names. Swarm keeps one that a container uses."""
        needed = {name for it in self.read_records() for name in it.deployment.secrets()}
        self.engine.remove("secret", self, lambda name: name not in needed, tries=1)
