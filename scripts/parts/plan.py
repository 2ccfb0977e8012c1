"""What scripts/stack.yml declares, filled in, and where the release will answer."""

import hashlib
import json
import re
from pathlib import Path

from parts.engine import Failed
from parts.records import read_plan

FILE = Path(__file__).parent.with_name("stack.yml")
LONGEST_NAME = 64  # that Swarm allows to a secret


def variables(environ, prefix):
    return sorted(name for name in environ if re.fullmatch(f"{prefix}[A-Za-z0-9_]+", name))


def secrets_of(stack):
    """Return the secrets of the variables APP_SECRET_..., as a stack declares them."""
    secrets = {}
    for variable in variables(stack.engine.env, "APP_SECRET_"):
        path, name = Path(stack.engine.env[variable]).resolve(), variable[len("APP_SECRET_") :]
        version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]  # Swarm changes no secret
        full_name = f"{stack.name}-{name}-{version}"
        if len(full_name) > LONGEST_NAME:
            raise Failed(f"{variable} is too long: {full_name} must fit in {LONGEST_NAME} letters")
        secrets[name] = {"name": full_name, "file": str(path)}
    return secrets


def render(stack, settings, work):
    """Return scripts/stack.yml, filled in, with the secrets and labels that deploy needs."""
    engine, secrets = stack.engine, secrets_of(stack)
    host = settings["DEPLOY_PUBLISH_MODE"] == "host"
    paths = {f"APP_SECRET_{name}": f"=/run/secrets/{name}" for name in secrets}
    lines = [f"{name}{paths.get(name, '')}\n" for name in variables(engine.env, "APP_")]
    (work / "variables").write_text("".join(lines))
    fill_in = {
        "DEPLOY_IMAGE": settings["DEPLOY_IMAGE"],
        "DEPLOY_PORT": settings["DEPLOY_PORT"],
        "DEPLOY_PUBLISH_MODE": settings["DEPLOY_PUBLISH_MODE"],
        "DEPLOY_REPLICAS": str(engine.nodes()) if host else settings["DEPLOY_REPLICAS"],
        "UPDATE_ORDER": "stop-first" if host else "start-first",
        "DRAIN_SECONDS": "0" if host else "5",
        "SERVICE_VARIABLES": str(work / "variables"),
    }
    try:
        run = engine.run("stack", "config", f"--compose-file={FILE}", **fill_in)
    except Failed as error:
        raise Failed(f"cannot read scripts/stack.yml: {error}") from None
    print(*(f"    {line}\n" for line in run.stderr.splitlines()), sep="", end="")  # warnings
    plan = read_plan(run.stdout)
    give_secrets(plan, secrets, settings["DEPLOY_IMAGE"])
    label_all(plan, stack.project)
    return plan


def give_secrets(plan, secrets, image):
    """Give the secrets to all services of an image, beside those that they name themselves."""
    plan["secrets"] = {**plan.get("secrets", {}), **secrets}
    for service in plan["services"].values():
        named = service.get("secrets", [])
        if secrets and service["image"] == image:
            names = secrets.keys() - {it["source"] for it in named}
            service["secrets"] = [*named, *({"source": name} for name in sorted(names))]


def label_all(plan, project):
    """Label whatever Swarm makes of a plan with its project: nothing else will be removed."""
    networks, secrets = plan.setdefault("networks", {}), plan["secrets"]
    networks["default"] = networks.get("default") or {}
    deploys = [it.setdefault("deploy", {}) for it in plan["services"].values()]
    for it in (*secrets.values(), *networks.values(), *deploys):
        if not it.get("external"):
            it["labels"] = {**it.get("labels", {}), "project": project}


def check_secrets(plan):
    for name, service in plan["services"].items():
        for source in (it["source"] for it in service.get("secrets", [])):
            if source not in plan["secrets"]:
                raise Failed(f"the service {name} needs APP_SECRET_{source} (of the type File)")


# --- Ports


def replaces(settings):
    """Say whether a stack is deployed to stay, at a port that is set."""
    return settings["DEPLOY_STRATEGY"] == "replace"


def choose_port(stack, settings):
    """Return the port of `server`. A stack beside others keeps the one that it has."""
    if replaces(settings):
        return settings["DEPLOY_PORT"]
    ports = stack.ports("server")
    return str(ports[0]) if ports else free_port(stack, settings, settings["DEPLOY_PORTS"])


def check_ports(stack, settings, plan):
    """Fail if somebody has a port that is new to the stack: Swarm would wait without a word."""
    known = {port for name in stack.services for port in stack.ports(name)}
    if not replaces(settings):
        known.add(int(settings["DEPLOY_PORT"]))  # which has just been found free
    for name, service in plan["services"].items():
        ports = (it for it in service.get("ports", []) if it.get("protocol", "tcp") == "tcp")
        for port in {it["published"] for it in ports if "published" in it} - known:
            remedy = "set DEPLOY_PORT" if name == "server" else f"change the ports of {name}"
            free_port(stack, settings, f"{port}-{port}", f" (stop it, or {remedy})")


def free_port(stack, settings, span, remedy=""):
    """Return a port of a range that no service and no program on the host uses."""
    engine, subnets = stack.engine, []
    used = [
        f"{port['PublishedPort']} the service {service['Spec']['Name']}"
        for service in engine.objects("service")
        for port in service["Endpoint"].get("Ports") or []
    ]
    if settings["DEPLOY_PUBLISH_MODE"] == "ingress":
        mesh = [it["IPAM"]["Config"] for it in engine.objects("network") if it["Ingress"]]
        subnets = [subnet["Subnet"] for config in mesh for subnet in config or []]
    about = (span, settings["RELEASE"], "\n".join(used), " ".join(subnets))
    said = engine.probe(settings["DEPLOY_IMAGE"], "port", *about)
    if not said.isdecimal():
        raise Failed(said + remedy if said.startswith("port ") else said)
    return said


def address(stack, settings):
    """Return the URL that users reach."""
    given = settings["DEPLOY_ADDRESS"].replace("{stack}", stack.name)
    if "://" in given:
        return given.rstrip("/")  # of a proxy, which has ports of its own
    name = given or json.loads(stack.engine.docker("info", "--format={{json .Swarm.NodeAddr}}"))
    if ":" in name:
        name = f"[{name.strip('[]')}]"
    return f"http://{name}:{settings['DEPLOY_PORT']}"
