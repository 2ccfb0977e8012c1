"""A thousand deployments, made up by Hypothesis, on a swarm in process that fails as real ones do.

Calls fail, before or after their effect, or take long; a job is cancelled or killed; somebody
changes the stack by hand, or deploys to it in between; another project uses the same names. After
each step the swarm must show that the script has told the truth, and has left alone what is not
its own. TEST_SEED=2 in the environment makes up others.
"""

import json
import os
import tempfile
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from fake_swarm import STACK, Failed, FakeSwarm, Job, Killed, deploy, image_of

SEED = int(os.environ.get("TEST_SEED", "1"))
SEQUENCES, STEPS = 250, 14
OURS, THEIRS = "registry.test/app", "registry.test/other"
GOOD = ["a1", "a2", "a3", "a4", "a5"]
BAD = ["crash1", "unhealthy1", "wrong1"]
STACKS = {"app": "20200", "staging": "20300"}
FAULTS = st.dictionaries(
    st.integers(1, 90),
    st.sampled_from(["fails", "fails late", "is slow", "cancels", "kills", "another", "away"]),
    max_size=3,
)
SEEN = Counter()


class Deployments(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.swarm = FakeSwarm()
        self.directory = tempfile.TemporaryDirectory()
        self.job = Job(self.swarm, self.directory.name)

    def teardown(self):
        self.directory.cleanup()

    # --- What is there

    def newest(self, stack):
        """Return what the newest record of a stack says, or None."""
        names = [it for it in self.swarm.configs if it.rpartition(".")[0] == stack]
        names.sort(key=lambda name: int(name.rpartition(".")[2]))
        return json.loads(self.swarm.configs[names[-1]]["data"]) if names else None

    def owner(self, stack):
        """Return the project that a stack is of, or None."""
        everything = [*self.swarm.services.values(), *self.swarm.configs.values()]
        owners = [it["labels"]["project"] for it in everything if it["labels"][STACK] == stack]
        return owners[0] if owners else None

    def runs_a_record(self, stack):
        server = self.swarm.services.get(f"{stack}_server", {"labels": {}, "spec": {}})
        records = [json.loads(it["data"]) for it in self.swarm.configs.values()]
        what = (server["labels"].get("deployment"), server["spec"].get("image"))
        return what in [(it["id"], it["image"]) for it in records]

    def is_verified(self, stack):
        """Say whether the newest record is what runs, as it was declared."""
        server, newest = self.swarm.services.get(f"{stack}_server"), self.newest(stack)
        return bool(
            server
            and newest
            and server["labels"]["deployment"] == newest["id"]
            and server["spec"]["image"] == newest["image"]
            and server["status"] in ("", "completed")
        )

    def of(self, project):
        """Return everything of a project, but for what its tasks become by themselves."""
        kinds = ("services", "configs", "secrets", "networks")
        found = {
            (kind, name): (it["labels"], it.get("spec"), it.get("data"))
            for kind in kinds
            for name, it in getattr(self.swarm, kind).items()
            if it["labels"].get("project") == project
        }
        images = {it for it in self.swarm.images if it.startswith((f"{project}@", f"{project}/"))}
        return found, images

    # --- A run, and what goes wrong in it

    def run(self, stack, project, faults, action="deploy", **env):
        """Run the script; return how it ended, or None if it was killed."""
        swarm, began = self.swarm, self.swarm.calls
        self.disturbed = self.away = False
        waiting = dict(faults)
        before = self.of(THEIRS if project == OURS else OURS)

        def before_call(arguments):
            number = swarm.calls - began
            due = [at for at in waiting if at <= number]
            for at in due:
                fault = waiting[at]
                if fault == "another":
                    # Not within a look: a whole deployment does not fit between two calls.
                    moment = arguments[:2] == ("service", "ls") or arguments[0] == "run"
                    if not moment or self.job.ended:
                        continue
                del waiting[at]
                SEEN[fault] += 1
                if fault == "is slow":
                    swarm.sleep(7)
                elif fault == "fails":
                    raise Failed("rpc error: the swarm does not have a leader")
                elif fault == "fails late":
                    swarm.after_call = fail_late
                elif fault == "cancels" and not self.job.ended:
                    raise deploy.Cancelled
                elif fault == "kills":
                    raise Killed
                elif fault == "another":
                    self.come_in_between(stack, project)
                elif fault == "away":
                    self.away = swarm.now + 200
            if self.away and swarm.now < self.away:
                raise Failed("Cannot connect to the Docker daemon")

        def fail_late(arguments):
            swarm.after_call = lambda arguments: None
            raise Failed("rpc error: the swarm does not have a leader")

        swarm.before_call = before_call
        try:
            env = {"DEPLOY_STACK": stack, "DEPLOY_PORT": STACKS[stack], **env}
            end = self.job.run(action, **env)
        except Killed:
            end = None
        swarm.before_call = swarm.after_call = lambda arguments: None
        swarm.sleep(60)  # whatever was going on ends
        if not self.disturbed:
            assert self.of(THEIRS if project == OURS else OURS) == before
        return end

    def come_in_between(self, stack, project):
        self.disturbed = True
        swarm, hooks = self.swarm, (self.swarm.before_call, self.swarm.after_call)
        swarm.before_call = swarm.after_call = lambda arguments: None
        another = Job(swarm, self.directory.name)
        env = {"DEPLOY_STACK": stack, "DEPLOY_PORT": STACKS[stack]}
        another.deploy("a9", project, **env)
        swarm.before_call, swarm.after_call = hooks

    # --- Steps

    @rule(
        release=st.sampled_from(GOOD + GOOD + BAD),
        stack=st.sampled_from(["app", "app", "app", "staging"]),
        project=st.sampled_from([OURS, OURS, OURS, THEIRS]),
        greeting=st.sampled_from(["", "hello", "good day"]),
        faults=FAULTS,
    )
    def deploy(self, release, stack, project, greeting, faults):
        before, verified = self.swarm.answering(int(STACKS[stack])), self.is_verified(stack)
        newest, owner = self.newest(stack), self.owner(stack)
        image = image_of(release, project)
        env = {"APP_GREETING": greeting} if greeting else {}
        end = self.run(stack, project, faults, DEPLOY_IMAGE=image, **env)
        after = self.swarm.answering(int(STACKS[stack]))
        SEEN["deployments"] += 1
        SEEN["killed" if end is None else "red" if end.reason else "green"] += 1
        if end is None:
            return
        if not end.reason:
            assert after == release and release in GOOD
            assert self.is_verified(stack) and self.newest(stack)["release"] == release
            return
        quiet = not self.disturbed and not self.away
        if quiet and not faults and owner in (None, project):
            assert release in BAD, end.output
        if quiet and verified:
            assert after == before, end.output
            assert self.is_verified(stack) and self.newest(stack) == newest, end.output
        if quiet and not verified and newest:  # otherwise there is nothing to go back to
            assert after != release or after in (before, newest["release"]), end.output

    @rule(stack=st.sampled_from([*STACKS]), faults=FAULTS)
    def roll_back(self, stack, faults):
        before, verified = self.swarm.answering(int(STACKS[stack])), self.is_verified(stack)
        newest, runs_a_record = self.newest(stack), self.runs_a_record(stack)
        project = newest["image"].partition("@")[0] if newest else OURS
        end = self.run(stack, project, faults, "rollback")
        after = self.swarm.answering(int(STACKS[stack]))
        if end and not end.reason:
            SEEN["gone back"] += 1
            assert self.is_verified(stack) and after == self.newest(stack)["release"]
            if not runs_a_record and not self.disturbed:
                SEEN["gone back to the newest"] += 1
                assert self.newest(stack) == newest
        elif end and verified and not self.disturbed and not self.away:
            assert after == before and self.newest(stack) == newest, end.output

    @rule(
        release=st.sampled_from(GOOD + BAD[:1]),
        project=st.sampled_from([OURS, THEIRS]),
        faults=FAULTS.filter(lambda faults: "another" not in faults.values()),
    )
    def deploy_beside(self, release, project, faults):
        image, env = image_of(release, project), {"DEPLOY_STRATEGY": "beside"}
        end = self.run("app", project, faults, DEPLOY_IMAGE=image, **env)
        SEEN["deployments"] += 1
        if end and not end.reason:
            SEEN["beside"] += 1
            [port] = self.swarm.services[f"app-{release}_server"]["ports"]
            assert self.swarm.answering(port) == release

    @precondition(lambda self: any(name.startswith("app-") for name in self.swarm.services))
    @rule(release=st.sampled_from(GOOD), project=st.sampled_from([OURS, THEIRS]), faults=FAULTS)
    def stop(self, release, project, faults):
        faults = {at: it for at, it in faults.items() if it != "another"}
        env = {"DEPLOY_STRATEGY": "beside", "RELEASE": release, "CI_REGISTRY_IMAGE": project}
        end = self.run("app", project, faults, "stop", **env)
        if end and not end.reason:
            SEEN["stopped"] += 1
            kinds = (self.swarm.services, self.swarm.configs, self.swarm.networks)
            left = [it for kind in kinds for it in kind.values()]
            left = [it for it in left if it["labels"].get(STACK) == f"app-{release}"]
            assert not left

    @rule(stack=st.sampled_from([*STACKS]), change=st.sampled_from(["image", "back", "gone"]))
    def change_by_hand(self, stack, change):
        server = self.swarm.services.get(f"{stack}_server")
        if not server:
            return
        SEEN[f"by hand: {change}"] += 1
        if change == "image":
            project = server["labels"]["project"]
            server["spec"] = {**server["spec"], "image": image_of("a8", project)}
            server["version"] = next(self.swarm.ids)
            self.swarm.start(server)
        elif change == "back" and "previous" in server:
            self.swarm.back(server)
            self.swarm.start(server)
        elif change == "gone":
            del self.swarm.services[f"{stack}_server"]
        self.swarm.sleep(60)


@pytest.mark.timeout(600)
def test_what_a_thousand_deployments_say_is_true(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path))
    SEEN.clear()
    run_state_machine_as_test(
        seed(SEED)(Deployments),
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=STEPS,
            phases=[Phase.generate],  # a smaller example would take minutes
            report_multiple_bugs=False,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(SEEN))
    assert SEEN["deployments"] >= 1000
    assert min(SEEN[it] for it in ("green", "red", "killed", "beside", "stopped", "gone back")) > 9
