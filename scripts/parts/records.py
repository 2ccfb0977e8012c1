"""What scripts/deploy gives to Swarm, and the record that it leaves there of what was verified."""

import base64
import json
import re
from typing import NamedTuple

from parts.engine import STACK, Failed, label, name_of

LABELS = (STACK, "project", "beside")  # of a record
TEXT = ("timestamp", "value", "merge")  # what YAML has these words for


class Deployment(NamedTuple):
    """What Swarm is given: scripts/stack.yml, filled in, and what must answer then.

    The label `deployment` of the service `server` has the id. A record that is deployed again keeps
    its id, so that this label always says which record runs.
    """

    id: str
    release: str
    image: str
    url: str
    built: list  # the images that its build made for the jobs test and deploy
    plan: dict

    def kept(self):
        """Return it as a record has it: Swarm holds the secrets, and this job's files are gone."""
        secrets = {
            name: {"name": it["name"], "external": True} if "name" in it else it
            for name, it in self.plan.get("secrets", {}).items()
        }
        return self._replace(plan={**self.plan, "secrets": secrets})

    def declares_the_same(self, other):
        return self.kept()._replace(id=other.id, built=other.built) == other

    def memory(self, service):
        """Return the limit of memory of a service, as scripts/stack.yml has it."""
        deploy = self.plan["services"].get(service, {}).get("deploy", {})
        memory = deploy.get("resources", {}).get("limits", {}).get("memory")
        return f"{int(memory) / 2**20:g}M" if memory else "none"

    def images(self):
        return {self.image, *self.built, *(it["image"] for it in self.plan["services"].values())}

    def others(self):
        """Return the services of other images, such as a database."""
        services = self.plan["services"]
        return [name for name in services if services[name]["image"] != self.image]

    def secrets(self):
        return {it.get("name") for it in self.plan.get("secrets", {}).values()}


class Record(NamedTuple):
    """A Swarm config named STACK.NUMBER. The numbers of all stacks are in the order of time."""

    name: str
    stack: str
    project: str
    beside: str | None  # DEPLOY_STACK, where the stack is one beside others
    deployment: Deployment
    old: bool  # from before deployments had an id of their own

    @property
    def number(self):
        return int(self.name.rpartition(".")[2])


def read_records(engine, *filters):
    """Return the records, the newest first; somebody else's config may have the label, too."""
    records = []
    for it in engine.objects("config", "label=project", *filters):
        name, stack, project, beside = name_of(it), *(label(it, key) for key in LABELS)
        if re.fullmatch(rf"{stack}\.[0-9]+", name):
            text = base64.b64decode(it["Spec"]["Data"]).decode()
            old = not text.startswith("{")
            deployment = read_old(name, text) if old else read_deployment(text)
            records.append(Record(name, stack, project, beside, deployment, old))
    return sorted(records, key=lambda it: it.number, reverse=True)


def read_deployment(text):
    said = json.loads(text)
    return Deployment(*(said[field] for field in Deployment._fields))


def read_old(name, text):
    """Return what an old record says: YAML below lines such as `# release 1`."""
    said = dict(re.findall(r"^# (\w+) (.*)$", text, re.MULTILINE))
    return Deployment(name, said["release"], said["image"], said["url"], [], read_plan(text))


def read_plan(text):
    """Return a stack as docker has written it, where a date, = and << are text."""
    try:
        import yaml  # not above: --help needs no package
    except ImportError:
        raise Failed("PyYAML is missing (pip install -r scripts/parts/requirements.txt)") from None

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [it for it in those if it[0].rpartition(":")[2] not in TEXT]
            for first, those in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    plan = yaml.load(text, Loader)
    plan.pop("version", None)  # of the client that wrote it: an older one would refuse it
    for service in plan["services"].values():
        service.pop("env_file", None)  # docker has read that file, which ends with the job
    return plan


def write_plan(plan):
    """Return a stack as docker reads it, each $ for itself. JSON is YAML, but for some letters."""
    text = json.dumps(plan, ensure_ascii=False).replace("$", "$$")
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda it: f"\\u{ord(it[0]):04x}", text
    )


def part(plan, names):
    """Return the stack with these of its services only."""
    return {**plan, "services": {name: plan["services"][name] for name in names}}
