"""Sequences of deployments on a real engine, made up by Hypothesis and compared with a model.

The model has, for each stack, the list of the verified deployments that one can go back to; the
last of them runs. After each step the engine must have exactly that, so what a step that fails or
is cancelled has done must be gone. TEST_SEED=2 in the environment makes up other sequences.
"""

import base64
import hashlib
import json
import os
import re
from collections import Counter
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pipelines import REGISTRY, Deployment
from support import ROOT, await_true

SEED = int(os.environ.get("TEST_SEED", "1"))
SEQUENCES = 1
# The steps of a sequence: how often each kind is taken.
STEPS = {
    "refused": 1,
    "deploy": 1,
    "change": 4,
    "again": 1,
    "beside": 2,
    "crash": 1,
    "rollback": 2,
    "cancel": 2,
    "plain": 1,
    "unhealthy": 1,
    "wrong": 1,
    "stop": 1,
}
CHANGES = [["greeting", "memory"], ["password", "port"], [], ["greeting"]]
KEEP = 3
REPOSITORY = f"{REGISTRY}/group/trial"
NUMBERED = ["1", "2", "3", "4", "5", "6"]
PORTS, BESIDE_PORTS = [20330, 20331], range(20340, 20350)
VALUES = {
    "greeting": [None, "hello", "good day"],
    "password": [None, "pa55word", "other"],
    "memory": [128, 96, 64],
    "port": PORTS,
}
VERSIONS = {it: hashlib.sha256(it.encode()).hexdigest()[:12] for it in VALUES["password"][1:]}
PASSWORDS = {version: password for password, version in VERSIONS.items()}
# What scripts/deploy asks docker for at the moment when it is cancelled.
MOMENTS = ["stack deploy", "config create", " ask http", "service ps"]
# What must have happened in the end.
EVENTS = {*STEPS, "cancelled", "gone back"}
EVENTS |= {f"{name} {change}" for name in VALUES for change in ("set", "taken away")}
STACK = (ROOT / "scripts/stack.yml").read_text()
# Stands for docker in a deployment that is to be cancelled.
DOCKER = """#!/bin/sh
case "$*" in
    *"$CANCEL_AT"*)
        [ ! -e /tmp/model/pid ] || kill "$(cat /tmp/model/pid)"
        rm -f /tmp/model/pid
        ;;
esac
PATH=${PATH#*:}
exec docker "$@"
"""


class Declared(NamedTuple):
    """What a deployment declares, or what is found of it."""

    release: str
    greeting: str | None = None
    password: str | None = None
    memory: int = 128
    port: int = PORTS[0]


class Host:
    """Runs scripts/deploy in the pipeline's host, for the stacks `model` and `model-RELEASE`."""

    env = {
        "DEPLOY_STACK": "model",
        "DEPLOY_PORTS": f"{BESIDE_PORTS[0]}-{BESIDE_PORTS[-1]}",
        "DEPLOY_ADDRESS": "127.0.0.1",
        "DEPLOY_PUBLISH_MODE": "host",
        "DEPLOY_KEEP": str(KEEP),
        "DEPLOY_TIMEOUT": "60",
    }

    def __init__(self, pipeline, releases):
        self.pipeline, self.releases, self.events = pipeline, releases, set()
        pipeline.put_source("/tmp/model")
        self.write("bin/docker", DOCKER)

    def name(self, image):
        """Return the name of a release by its image, or None."""
        return {image: name for name, image in self.releases.items()}.get(image)

    def write(self, name, text):
        code = 'cd /tmp/model && mkdir -p bin && cat > "$1" && chmod +x "$1"'
        self.pipeline.host("sh", "-c", code, "sh", name, input=text)

    def deploy(self, declared, memory=None, **env):
        """Run scripts/deploy for what is declared; `memory` is what the file says instead."""
        self.write("scripts/stack.yml", STACK.replace("512M", memory or f"{declared.memory}M"))
        env |= {"DEPLOY_IMAGE": self.releases[declared.release], "DEPLOY_PORT": str(declared.port)}
        if declared.greeting is not None:
            env["APP_GREETING"] = declared.greeting
        if declared.password is not None:
            self.write("password", declared.password)
            env["APP_SECRET_PASSWORD"] = "/tmp/model/password"
        return self.run(**env)

    def run(self, *arguments, **env):
        code = 'echo $$ > pid; exec python3 scripts/deploy "$@"'
        if "CANCEL_AT" in env:
            code = "PATH=/tmp/model/bin:$PATH; " + code
        command = ("sh", "-c", code, "sh", *arguments)
        command = self.pipeline.deployer("/tmp/model", *command, env={**self.env, **env})
        return Deployment(command, timeout=200)

    def remove(self):
        """Remove all that there is of the stacks, and the images that they ran."""
        for stack in Found(self).stacks():
            self.pipeline.docker("stack", "rm", "--detach=false", stack)
        images = f"docker image ls --quiet {REPOSITORY} | sort -u"
        code = f"{images} | xargs -r docker image rm --force"
        # Until this says nothing: `stack rm` waits for the tasks, but not for their containers.
        await_true(lambda: not self.pipeline.host("sh", "-c", code, check=False), seconds=30)


class Found:
    """What a host has, as its engine's API and the ports say."""

    def __init__(self, host):
        self.host = host
        kinds = ["services", "tasks", "configs", "secrets", "networks", "images/json"]
        code = f"""
            for what in {" ".join(kinds)} "containers/json?all=1"; do
                curl -s --unix-socket /var/run/docker.sock "http://docker/$what" && echo
            done | grep .
            for port in {" ".join(map(str, [*PORTS, *BESIDE_PORTS]))}; do
                curl -si -m 5 "http://127.0.0.1:$port/test" | sed -n "s/^X-Release:/$port/p"
            done
        """
        *objects, answers = host.pipeline.host("sh", "-c", code).split("\n", 7)
        objects = map(json.loads, objects)
        self.services, self.tasks, self.configs, self.secrets, self.networks, *others = objects
        self.images, self.containers = others
        self.answers = {int(port): name for port, name in map(str.split, answers.splitlines())}

    def of_stacks(self, objects):
        """Return the objects of our stacks, by stack."""
        found = {}
        for it in objects:
            labels = it.get("Spec", it)["Labels"] or {}
            stack = labels.get("com.docker.stack.namespace", "")
            if stack.partition("-")[0] == "model":
                found.setdefault(stack, []).append(it)
        return found

    def stacks(self):
        """Return the names of the stacks of which there is anything."""
        all_kinds = self.services + self.configs + self.secrets + self.networks
        return sorted(self.of_stacks(all_kinds))

    def names(self, objects):
        return sorted(it.get("Spec", it)["Name"] for it in objects)

    def state(self):
        """Return what the model knows, too."""
        return {
            "answers": self.answers,
            "running": {
                name: self.running(it) for name, [it] in self.of_stacks(self.services).items()
            },
            "records": {
                name: self.records(them) for name, them in self.of_stacks(self.configs).items()
            },
            "secrets": {
                name: self.names(them) for name, them in self.of_stacks(self.secrets).items()
            },
            "networks": {
                name: self.names(them) for name, them in self.of_stacks(self.networks).items()
            },
        }

    def running(self, service):
        """Return what a service is, and the password that its replica has."""
        task = service["Spec"]["TaskTemplate"]
        container = task["ContainerSpec"]
        env = dict(line.split("=", 1) for line in container["Env"])
        password = None
        for secret in container.get("Secrets", []):
            password = self.password(service, secret)
        [port] = service["Spec"]["EndpointSpec"]["Ports"]
        return Declared(
            release=self.host.name(container["Image"]),
            greeting=env.get("APP_GREETING"),
            password=password,
            memory=task["Resources"]["Limits"]["MemoryBytes"] >> 20,
            port=port["PublishedPort"],
        )

    def password(self, service, secret):
        """Return what the replica of a service reads; Swarm's name of the secret must fit."""
        name = service["Spec"]["Name"]
        [replica] = [
            it["Id"]
            for it in self.containers
            if it["Labels"].get("com.docker.swarm.service.name") == name
            and it["State"] == "running"
        ]
        file = f"/run/secrets/{secret['File']['Name']}"
        password = self.host.pipeline.docker("exec", replica, "cat", file)
        assert PASSWORDS[secret["SecretName"].rpartition("-")[2]] == password
        return password

    def records(self, configs):
        """Return what the records of a stack say, the oldest first."""
        configs.sort(key=lambda it: int(it["Spec"]["Name"].rpartition(".")[2]))
        return [self.record(base64.b64decode(it["Spec"]["Data"]).decode()) for it in configs]

    def record(self, text):
        record = json.loads(text)
        server, secrets = (record["plan"][key] for key in ("services", "secrets"))
        server = server["server"]
        [port] = server["ports"]
        secrets = [it["name"].rpartition("-")[2] for it in secrets.values()]
        assert self.host.name(server["image"]) == record["release"]
        return Declared(
            release=record["release"],
            greeting=server["environment"].get("APP_GREETING"),
            password=PASSWORDS[secrets[0]] if secrets else None,
            memory=int(server["deploy"]["resources"]["limits"]["memory"]) >> 20,
            port=int(port["published"]),
        )

    def specs(self):
        """Return each stack's service as Swarm has it, without what is new each time."""
        specs = {}
        for stack, [service] in self.of_stacks(self.services).items():
            text = json.dumps(service["Spec"])
            specs[stack] = re.sub(r'"(deployment|SecretID|Target)": "[\w-]+"', "", text)
        return specs

    def running_tasks(self):
        """Return the tasks of each stack that are to run."""
        stacks = {it["ID"]: name for name, [it] in self.of_stacks(self.services).items()}
        tasks = {name: set() for name in stacks.values()}
        for task in self.tasks:
            if task["ServiceID"] in stacks and task["DesiredState"] == "running":
                tasks[stacks[task["ServiceID"]]].add(task["ID"])
        return tasks

    def releases(self):
        """Return the releases whose images are there, and those that a container uses."""
        digests = {digest for it in self.images for digest in it["RepoDigests"] or []}
        used = {it["Image"] for it in self.containers}
        return tuple({self.host.name(it) for it in these} - {None} for these in (digests, used))


class Deployments(RuleBasedStateMachine):
    """The model, and the steps that a sequence is made of."""

    def __init__(self, host):
        super().__init__()
        self.host = host
        self.stacks = {}  # what was verified, the newest last; so are the stacks
        self.left = Counter(STEPS)
        self.specs = {}  # as Swarm had them, by stack and declaration
        self.found = Found(host)
        self.untouched, self.verified = set(), None
        print(f"--- a sequence of TEST_SEED={SEED}")

    def teardown(self):
        self.host.remove()

    @rule(data=st.data())
    def step(self, data):
        """Take one of the steps that are left.

        In its first sequence Hypothesis takes the first of all choices. They are sorted so that
        this makes a tour: each kind of step before any comes again, with other values then.
        """
        self.data = data
        kinds = list(+self.left)
        kinds.sort(key=lambda kind: self.left[kind] - STEPS[kind], reverse=True)
        self.kind = data.draw(st.sampled_from(kinds))
        self.verified = None  # the release, if this step verifies one
        self.untouched = set(self.stacks)  # the stacks in which it must not start a task
        getattr(self, self.kind)()
        self.left[self.kind] -= 1
        self.host.events.add(self.kind)

    # --- The kinds of steps

    def deploy(self):
        self.succeed(self.newest()._replace(release=self.pick(NUMBERED)))

    def change(self):
        """Set some settings and take the others away, each once in a sequence."""
        names = CHANGES[STEPS["change"] - self.left["change"]]
        values = {name: self.pick(VALUES[name][1:]) for name in names}
        self.succeed(Declared(self.newest().release, **values))

    def plain(self):
        self.succeed(Declared(self.newest().release))

    def again(self):
        self.succeed(self.newest())

    def beside(self):
        stack = f"model-{self.pick(NUMBERED[:4])}"
        self.succeed(self.changed(self.newest(stack)), stack)

    def crash(self):
        self.fail("does not stay up|rolls back")

    def unhealthy(self):
        self.fail("not healthy|become healthy|rolls back", DEPLOY_TIMEOUT="6")

    def wrong(self):
        self.fail("release other answers")

    def refused(self):
        untouched = set(self.untouched)
        run = self.attempt(self.changed(self.newest()), memory="512Mi")
        assert "limits.memory" in run.reason().lower(), run.output
        self.untouched = untouched

    def rollback(self, **env):
        untouched, records = set(self.untouched), self.stacks.get("model", [])
        self.untouched.discard("model")
        run = self.host.run("--rollback", **env)
        self.say("--rollback", env, run)
        if len(records) < 2:
            assert "no release of the stack model was verified before" in run.reason(), run.output
            self.untouched = untouched
        elif not env or run.status == 0:
            assert run.status == 0, run.output
            self.note_changes(*records[-1:-3:-1])
            self.stacks["model"] = records[:-1]
            self.verified = records[-2].release
            self.host.events.add("gone back")
        return run

    def cancel(self):
        moment, action = self.pick(MOMENTS), self.pick(["deploy", "rollback", "beside"])
        untouched = set(self.untouched)
        stack = f"model-{self.pick(NUMBERED)}" if action == "beside" else "model"
        if action == "rollback":
            run = self.rollback(CANCEL_AT=moment.replace("create", "rm"))
            if len(self.stacks.get("model", [])) < 2:
                return
        else:
            declared = self.changed(self.newest(stack))
            run = self.attempt(declared, stack, CANCEL_AT=moment)
            if run.status == 0:
                self.verify(declared, stack, run)
        if run.status:  # otherwise that came too late, or never
            assert "cancelled (" in run.reason(), run.output
            self.host.events.add("cancelled")
        if "(nothing is changed)" in run.output:
            self.untouched = untouched

    def stop(self):
        stacks = [stack for stack in self.stacks if stack != "model"]
        release = self.pick(stacks or ["model-1"]).partition("-")[2]
        run = self.host.run("--stop", DEPLOY_STRATEGY="beside", RELEASE=release)
        self.say("--stop", release, run)
        assert run.status == 0, run.output
        self.stacks.pop(f"model-{release}", None)

    # --- Parts of them

    def pick(self, values, turn=None):
        turn = STEPS[self.kind] - self.left[self.kind] if turn is None else turn
        turn %= len(values)
        return self.data.draw(st.sampled_from([*values[turn:], *values[:turn]]))

    def newest(self, stack="model"):
        default = Declared(stack.partition("-")[2] or "1")
        return self.stacks.get(stack, [default])[-1]

    def changed(self, declared):
        """Change one setting of a deployment."""
        name = self.pick([*VALUES], turn=sum(self.left.values()))
        values = [value for value in VALUES[name] if value != getattr(declared, name)]
        return declared._replace(**{name: self.pick(values)})

    def say(self, *what):
        *what, run = what
        print(f"{self.kind}:", *what, f"-> {run.status}, {run.seconds:.1f} s")

    def attempt(self, declared, stack="model", **env):
        self.untouched.discard(stack)
        strategy = "replace" if stack == "model" else "beside"
        run = self.host.deploy(declared, DEPLOY_STRATEGY=strategy, **env)
        self.say(stack, declared, env, run)
        return run

    def succeed(self, declared, stack="model"):
        run = self.attempt(declared, stack)
        assert run.status == 0, run.output
        self.verify(declared, stack, run)

    def fail(self, reason, **env):
        declared = self.changed(self.newest())._replace(release=self.kind)
        stack = self.pick(["model", "model", f"model-{self.kind}"])
        run = self.attempt(declared, stack, **env)
        assert re.search(reason, run.reason()), run.output

    def verify(self, declared, stack, run):
        """Put a deployment that has succeeded into the model."""
        self.verified = declared.release
        records = self.stacks.get(stack, [])
        if stack != "model":
            port = re.search(r"answers at http://127\.0\.0\.1:(\d+)/test", run.output)[1]
            declared = declared._replace(port=int(port))
            assert declared.port == records[-1].port if records else declared.port in BESIDE_PORTS
        if records and declared == records[-1]:
            self.untouched.add(stack)
            return
        if records:
            self.note_changes(records[-1], declared)
        self.stacks.pop(stack, None)
        self.stacks[stack] = [*records, declared][-KEEP:]
        for old in [name for name in self.stacks if name != "model"][:-KEEP]:
            del self.stacks[old]
            self.host.events.add("the oldest beside others goes")

    def note_changes(self, old, new):
        for name, default in Declared("")._asdict().items():
            if name in VALUES and getattr(old, name) != (value := getattr(new, name)):
                self.host.events.add(f"{name} {'taken away' if value == default else 'set'}")

    # --- What is true after each step

    def look(self):
        """Look at the engine; a stack that was removed has its network until its container ends."""
        self.found = Found(self.host)
        return set(self.found.of_stacks(self.found.networks)) <= set(self.stacks)

    @invariant()
    def the_engine_has_what_the_model_says(self):
        before = self.found
        await_true(self.look, seconds=20)
        newest = {stack: records[-1] for stack, records in self.stacks.items()}
        passwords = {
            stack: {it.password for it in records} - {None}
            for stack, records in self.stacks.items()
        }
        assert self.found.state() == {
            "answers": {declared.port: declared.release for declared in newest.values()},
            "running": newest,
            "records": self.stacks,
            "secrets": {
                stack: sorted(f"{stack}-PASSWORD-{VERSIONS[it]}" for it in those)
                for stack, those in passwords.items()
                if those
            },
            "networks": {stack: [f"{stack}_default"] for stack in self.stacks},
        }
        for stack, spec in self.found.specs().items():
            assert spec == self.specs.setdefault((stack, newest[stack]), spec)
        tasks, tasks_before = self.found.running_tasks(), before.running_tasks()
        for stack in self.untouched & set(self.stacks):
            assert tasks[stack] == tasks_before[stack], stack
        self.check_images(before)

    def check_images(self, before):
        """Check that the records' images stay, and that older ones go which nothing needs."""
        there, used = self.found.releases()
        needed = {declared.release for records in self.stacks.values() for declared in records}
        assert needed <= there
        if self.verified:
            ages = list(self.host.releases)
            older = set(ages[: ages.index(self.verified)])
            assert not older & there - needed - used - before.releases()[1]


def test_after_each_step_the_engine_has_what_the_model_says(
    pipeline, releases, tmp_path, monkeypatch
):
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path))
    host = Host(pipeline, releases)
    run_state_machine_as_test(
        seed(SEED)(lambda: Deployments(host)),
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=sum(STEPS.values()),
            phases=[Phase.generate],  # a smaller example would take many minutes
            report_multiple_bugs=False,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(sorted(host.events))
    assert host.events >= EVENTS
