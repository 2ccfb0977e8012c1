"""The jobs of .gitlab-ci.yml, with what they include and extend, as GitLab reads them.

Those of scripts/pieces, which a fork may append to it, are among them.
"""

from ruamel.yaml import YAML

from support import ROOT


def read(name):
    return (ROOT / name).read_text()


def load(name):
    return YAML(typ="safe", pure=True).load(read(name))


PIPELINE = load(".gitlab-ci.yml")
[INCLUDED] = [include["local"] for include in PIPELINE["include"] if "template" in include["local"]]
PIPELINE |= load(INCLUDED)
PIECES = load("scripts/pieces/staging.yml") | load("scripts/pieces/review.yml")
PIPELINE = PIECES | PIPELINE
DEFAULT = PIPELINE["default"]
GLOBAL = ("stages", "variables", "workflow", "default", "include")


def merged(base, more):
    """Return both, as `extends` merges them: key by key, a list as a whole."""
    both = {**base, **more}
    for key in base.keys() & more.keys():
        if isinstance(base[key], dict) and isinstance(more[key], dict):
            both[key] = merged(base[key], more[key])
    return both


def extended(job):
    """Return the job with what it takes from the one that it extends."""
    return merged(extended(PIPELINE[job["extends"]]), job) if "extends" in job else job


JOBS = {
    name: extended(job)
    for name, job in PIPELINE.items()
    if name not in GLOBAL and not name.startswith(".")
}
