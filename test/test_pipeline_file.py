"""The rules that .gitlab-ci.yml keeps, jobs that a fork adds included, and the facts that several files share."""

import configparser
import fnmatch
import os
import re
import subprocess

import jsonschema
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from ruamel.yaml import YAML

from support import ROOT


def read(name):
    return (ROOT / name).read_text()


PIPELINE = YAML(typ="safe", pure=True).load(read(".gitlab-ci.yml"))
DEFAULT = PIPELINE["default"]


def extended(job):
    """Return the job with what it takes from the one that it extends."""
    return {**(extended(PIPELINE[job["extends"]]) if "extends" in job else {}), **job}


JOBS = {
    name: extended(value) for name, value in PIPELINE.items()
    if name not in ("stages", "variables", "workflow", "default", "include") and not name.startswith(".")
}
BUILT = ("$TEST_IMAGE", "$DEPLOY_IMAGE")  # by digest: what scripts/build writes to build.env
TLS = {"DOCKER_HOST", "DOCKER_TLS_CERTDIR", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}
FROM = re.findall(r"^FROM (\S+)(?: AS (\S+))?", read("Dockerfile"), re.MULTILINE)
BASES = {image for image, _ in FROM} - {stage for _, stage in FROM}
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


def name_of(image):
    return image["name"] if isinstance(image, dict) else image


def images():
    """Return every image of the pipeline, those of services included."""
    found = []
    for owner in (DEFAULT, *JOBS.values()):
        found += [owner["image"]] if "image" in owner else []
        found += owner.get("services", [])
    return [name_of(image) for image in found]


def dind(job):
    """Return the job's dind service, or None."""
    return next((service for service in job.get("services", []) if "-dind" in name_of(service)), None)


def lines(job):
    return [line for key in ("before_script", "script", "after_script") for line in job.get(key, [])]


def first_match(rules, variables):
    """Return the first rule that holds, as GitLab does, in the only grammar that we use."""
    for rule in rules:
        terms = [re.fullmatch(r'\$(\w+) == "([^"]*)"', term) for term in rule["if"].split(" && ")]
        if all(variables.get(term[1]) == term[2] for term in terms):
            return None if rule.get("when") == "never" else rule


def test_it_follows_the_schema_of_gitlab():
    schema = get_builtin_schema("vendor.gitlab-ci")
    errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(PIPELINE)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_each_stage_has_the_job_of_its_name():
    assert PIPELINE["stages"] == ["build", "test", "deploy"]
    assert [JOBS[stage]["stage"] for stage in PIPELINE["stages"]] == PIPELINE["stages"]
    assert {job["stage"] for job in JOBS.values()} == set(PIPELINE["stages"])


@every_job
def test_a_job_refers_only_to_jobs_of_earlier_stages(job):
    earlier = PIPELINE["stages"][:PIPELINE["stages"].index(job["stage"])]
    needs = [need["job"] if isinstance(need, dict) else need for need in job.get("needs", [])]
    assert {*needs, *job.get("dependencies", [])} <= set(earlier)


@pytest.mark.parametrize("source, branch, jobs, refresh", [
    ("push", "mainx", ["build", "test", "deploy"], None),
    ("schedule", "mainx", ["build", "test", "deploy"], "1"),
    ("merge_request_event", None, ["build", "test"], None),
    ("push", "topic", [], None),
    ("push", None, [], None),  # a tag
    ("schedule", "topic", [], None),
])
def test_what_runs_when(source, branch, jobs, refresh):
    variables = {"CI_PIPELINE_SOURCE": source, "CI_COMMIT_BRANCH": branch}
    rule = first_match(PIPELINE["workflow"]["rules"], variables)
    run = [name for name in PIPELINE["stages"] if "rules" not in JOBS[name] or first_match(JOBS[name]["rules"], variables)]
    assert (run if rule else []) == jobs
    assert (rule or {}).get("variables", {}).get("REFRESH") == refresh


@pytest.mark.parametrize("strategy, environment, ends", [
    (None, "production", "never"),
    ("replace", "production", "never"),
    ("beside", "release/$CI_COMMIT_SHORT_SHA", "1 week"),
])
def test_the_strategy_decides_on_the_environment(strategy, environment, ends):
    variables = {"CI_COMMIT_BRANCH": "mainx", "DEPLOY_STRATEGY": strategy}
    found = {**PIPELINE["variables"], **first_match(JOBS["deploy"]["rules"], variables).get("variables", {})}
    assert (found["ENVIRONMENT"], found["ENVIRONMENT_ENDS_IN"]) == (environment, ends)
    assert JOBS["deploy"]["environment"]["auto_stop_in"] == "$ENVIRONMENT_ENDS_IN"


def test_a_release_beside_others_can_be_stopped_by_hand_and_holds_nothing_up():
    deploy, stop = JOBS["deploy"]["environment"], JOBS["stop"]["environment"]
    assert deploy["on_stop"] == "stop" and stop["action"] == "stop" and deploy["name"] == stop["name"] == "$ENVIRONMENT"
    assert not first_match(JOBS["stop"]["rules"], {"CI_COMMIT_BRANCH": "mainx"})
    rule = first_match(JOBS["stop"]["rules"], {"CI_COMMIT_BRANCH": "mainx", "DEPLOY_STRATEGY": "beside"})
    assert (rule["when"], rule["allow_failure"]) == ("manual", True)
    started = first_match(JOBS["deploy"]["rules"], {"CI_COMMIT_BRANCH": "mainx", "DEPLOY_STRATEGY": "beside"})
    assert rule["variables"]["ENVIRONMENT"] == started["variables"]["ENVIRONMENT"]


def test_only_what_reaches_the_host_carries_a_tag():
    assert all(job.get("tags") == (["deploy"] if job["stage"] == "deploy" else None) for job in JOBS.values())
    assert "tags" not in DEFAULT


@pytest.mark.parametrize("image", sorted(set(images()) - set(BUILT)))
def test_an_image_from_elsewhere_has_a_full_version(image):
    assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)?$", image)


def test_the_tests_run_in_what_was_built_and_ask_what_will_be_deployed():
    service = JOBS["test"]["services"][0]
    assert (JOBS["test"]["image"], service["name"]) == BUILT
    assert JOBS["test"]["variables"]["APP_URL"].startswith(f"http://{service['alias']}:")


@pytest.mark.parametrize("image", sorted({*images(), *BASES} - {*BUILT}))
def test_every_image_of_docker_hub_has_the_prefix(image):
    registry = r"[\w-]+(\.[\w-]+)+(:\d+)?/"
    assert image.startswith("${IMAGE_PREFIX}") or re.match(registry, image)


def test_one_version_of_docker_everywhere():
    files = [ROOT / ".gitlab-ci.yml", *ROOT.glob("scripts/*"), *ROOT.glob("test/*.py"), ROOT / "README.md"]
    found = re.findall(r"docker:([\d.]+)-(cli|dind)", "".join(path.read_text() for path in files))
    assert {kind for version, kind in found} == {"cli", "dind"}
    assert len({version for version, kind in found}) == 1, found


def test_nothing_deprecated():
    assert not PIPELINE.keys() & {"image", "services", "before_script", "after_script", "cache", "types"}
    assert not [name for name, job in JOBS.items() if job.keys() & {"only", "except", "type"}]
    assert "timeout" not in DEFAULT


@every_job
def test_docker_variables_stand_where_dind_is_and_nowhere_else(job):
    assert TLS & job.get("variables", {}).keys() == (TLS if dind(job) else set())
    assert not TLS & PIPELINE["variables"].keys()


def test_docker_variables_fit_the_dind_service():
    variables, service = JOBS["build"]["variables"], dind(JOBS["build"])
    assert variables["DOCKER_HOST"] == f"tcp://{service['alias']}:2376"
    assert variables["DOCKER_CERT_PATH"] == variables["DOCKER_TLS_CERTDIR"] + "/client"
    assert variables["DOCKER_TLS_VERIFY"] == "1"


def test_a_deployment_is_alone_uninterrupted_and_has_the_address_that_it_found():
    deploy = JOBS["deploy"]
    for job in (deploy, JOBS["stop"]):
        assert job["interruptible"] is False and job["resource_group"] == deploy["resource_group"]
    assert deploy["environment"]["url"].startswith("$DEPLOY_URL")
    assert re.search(r"DEPLOY_URL=.*> deploy\.env", read("scripts/deploy"))


def test_an_old_deploy_job_can_always_run_again():
    [needed] = JOBS["deploy"]["dependencies"]
    assert JOBS[needed]["artifacts"]["expire_in"] == "never"


@every_job
def test_a_job_ends_in_time_and_only_a_failing_runner_repeats_it(job):
    assert re.fullmatch(r"\d+ minutes", job["timeout"])
    assert job.get("retry", DEFAULT["retry"])["when"] in ("runner_system_failure", ["runner_system_failure"])


@every_job
def test_a_job_calls_scripts_that_can_be_run(job):
    names = re.findall(r"(?:scripts|\.ci)/[\w-]+", "\n".join(lines(job)))
    assert names
    assert all(os.access(ROOT / name, os.X_OK) for name in names)


@every_job
def test_no_secret_on_a_command_line(job):
    assert not re.search("PASSWORD|TOKEN|KEY|SECRET", "\n".join(lines(job) + lines(DEFAULT)), re.IGNORECASE)


@pytest.mark.parametrize("total, percent", [
    ("TOTAL   92   1   16   1    98%", "98"),
    ("TOTAL          92      0     16      0   100%", "100"),
    ("server.py      92      1     16      1    98%", None),
])
def test_coverage_is_read_from_the_last_line_of_the_report(total, percent):
    found = re.search(JOBS["test"]["coverage"].strip("/"), total)
    assert (found and found[1]) == percent


def test_reports_are_where_scripts_test_writes_them_and_kept_when_tests_fail():
    artifacts, coverage = JOBS["test"]["artifacts"], configparser.ConfigParser()
    coverage.read_string(read(".coveragerc"))
    assert f"--junitxml={artifacts['reports']['junit']} " in read("scripts/test")
    report = {"coverage_format": "cobertura", "path": coverage["xml"]["output"]}
    assert artifacts["reports"]["coverage_report"] == report
    assert artifacts["when"] == "always"


@pytest.mark.parametrize("job", ["build", "deploy"])
def test_what_a_job_hands_on_is_the_file_that_its_script_writes(job):
    assert f"> {JOBS[job]['artifacts']['reports']['dotenv']}\n" in read(f"scripts/{job}")


@pytest.mark.parametrize("name, pattern", [
    ("Dockerfile", r"^EXPOSE (\d+)$"),
    ("Dockerfile", r"^HEALTHCHECK .*\n.*'127\.0\.0\.1', (\d+)\)"),
    ("scripts/deploy", r"^service_port=(\d+)$"),
    ("scripts/serve", r"Serves on port (\d+)"),
    (".gitlab-ci.yml", r"APP_URL: http://app:(\d+)$"),
])
def test_every_file_has_the_port_of_server_py(name, pattern):
    port = re.search(r'^define\("port", default=(\d+)', read("server.py"), re.MULTILINE)[1]
    assert re.findall(pattern, read(name), re.MULTILINE) == [port]


def test_the_one_base_image_is_the_slim_python():
    assert BASES == {"${IMAGE_PREFIX}python:3.14-slim"}


@pytest.mark.parametrize("name", ["requirements.txt", "test/requirements.txt"])
def test_every_requirement_is_pinned(name):
    requirements = [line for line in read(name).splitlines() if line and not line.startswith(("#", "-r "))]
    assert requirements and all(re.match(r"[\w-]+(\[\w+\])?==[\w.]+( |$)", line) for line in requirements)


def test_scripts_pipeline_finds_the_dind_image():
    program = re.search(r"sed -n '(.*)' \.gitlab-ci\.yml", read("scripts/pipeline"))[1]
    found = subprocess.check_output(["sed", "-n", program, ROOT / ".gitlab-ci.yml"], text=True)
    assert "${IMAGE_PREFIX}" + found == name_of(dind(JOBS["build"])) + "\n"


def test_the_build_runner_has_the_images_of_the_pipeline_and_privileges_its_dind():
    script = read("scripts/register-runner")
    for image in {DEFAULT["image"], name_of(dind(JOBS["build"]))}:
        assert image.replace("${IMAGE_PREFIX}", "${prefix}") in script
        pattern = re.search(r'allowed_privileged_services = \["\*\*/(.*?)"\]', script)[1]
        assert fnmatch.fnmatch(image.removeprefix("${IMAGE_PREFIX}"), pattern) == image.endswith("-dind")
