"""The rules that .gitlab-ci.yml keeps, and the facts that several files share.

What is asked of every job finds what is wrong, not what a fork does otherwise.
"""

import configparser
import fnmatch
import importlib.metadata
import os
import re
import subprocess
import sys

import jsonschema
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gitlab_ci import DEFAULT, INCLUDED, JOBS, PIECES, PIPELINE, extended, load, read
from support import ROOT

OURS = {name: JOBS[name] for name in ("build", "test", "template", "deploy", "beside", "stop")}
# A fork may have made something else of them.
OURS |= {name: extended(job) for name, job in PIECES.items() if not name.startswith(".")}
DEPLOYING = ["deploy", "beside", "staging", "review"]
STOPPING = ["stop", "stop_review"]
# By digest: what scripts/build writes to build.env.
BUILT = ("$BUILT_TEST_IMAGE", "$DEPLOY_IMAGE", "$BUILT_DEPLOY_IMAGE")
TLS = {"DOCKER_HOST", "DOCKER_TLS_CERTDIR", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}
FROM = re.findall(r"^FROM (\S+)(?: AS (\S+))?", read("Dockerfile"), re.MULTILINE)
BASES = {image for image, _ in FROM} - {stage for _, stage in FROM} - {"scratch"}
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
each_of_ours = pytest.mark.parametrize("job", OURS.values(), ids=OURS)


def name_of(image):
    return image["name"] if isinstance(image, dict) else image


def images(*owners):
    """Return the images that these jobs name, those of services included."""
    found = []
    for owner in owners:
        found += [owner["image"]] if "image" in owner else []
        found += owner.get("services", [])
    return {name_of(image) for image in found} - {*BUILT}


def dind(job):
    """Return the job's dind service, or None."""
    services = job.get("services", [])
    return next((service for service in services if "-dind" in name_of(service)), None)


def lines(job):
    return [
        line for key in ("before_script", "script", "after_script") for line in job.get(key, [])
    ]


def holds(rule, variables, changed):
    """Say whether GitLab takes the rule, in the only grammar that our rules use."""
    for term in rule["if"].split(" && ") if "if" in rule else []:
        match = re.fullmatch(r'\$(\w+) == (?:"(.*?)"|\$(\w+))', term)
        name, text, other = match.groups() if match else pytest.skip(f"not ours: {term}")
        if variables.get(name) != (variables.get(other) if other else text):
            return False
    if "changes" in rule and variables.get("CI_PIPELINE_SOURCE") in ("push", MERGE_REQUEST):
        patterns = [re.escape(path) for path in rule["changes"]]
        patterns = [it.replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*") for it in patterns]
        return any(re.fullmatch(pattern, file) for file in changed for pattern in patterns)
    return True  # changes, too: without a push GitLab takes them for given


def started(changed=("server.py",), scope="*", **variables):
    """Return when each of our jobs starts in a pipeline with these variables, as GitLab decides it.

    A fork has those of `scripts/pieces` only if it appended them.

    DEPLOY_STRATEGY has the environment scope `scope`, which GitLab compares with the environment of
    a job before it reads the job's rules.
    """

    def taken(rules, visible):
        return next((rule for rule in rules if holds(rule, visible, changed)), None)

    variables = {**PIPELINE["variables"], **variables}
    if not taken(PIPELINE["workflow"]["rules"], variables):
        return {}
    times = {}
    for name, job in OURS.items():
        visible = dict(variables)
        if not fnmatch.fnmatch(job.get("environment", {}).get("name", ""), scope):
            visible.pop("DEPLOY_STRATEGY", None)
        rule = taken(job.get("rules", [{}]), visible)
        if rule is not None:
            times[name] = rule.get("when", "on_success")
    return times


MERGE_REQUEST = "merge_request_event"
MAINX = {"CI_PIPELINE_SOURCE": "push", "CI_COMMIT_BRANCH": PIPELINE["variables"]["DEPLOY_BRANCH"]}


ALL = ["build", "test", "template", "deploy", "staging"]


def test_it_follows_the_schema_of_gitlab():
    schema = get_builtin_schema("vendor.gitlab-ci")
    errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(PIPELINE)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_the_three_stages_have_the_jobs_of_their_names():
    stages = [stage for stage in PIPELINE["stages"] if stage in ("build", "test", "deploy")]
    assert stages == ["build", "test", "deploy"] == [JOBS[stage]["stage"] for stage in stages]


@every_job
def test_a_job_refers_only_to_stages_and_jobs_that_come_before_it(job):
    stages = [".pre", *PIPELINE["stages"], ".post"]
    here = stages.index(job.get("stage", "test"))
    needs = [need["job"] if isinstance(need, dict) else need for need in job.get("needs", [])]
    for name in [*needs, *job.get("dependencies", [])]:
        there = stages.index(JOBS[name].get("stage", "test"))
        assert there < here or (there == here and name in needs)


@pytest.mark.parametrize(
    "variables, jobs",
    [
        (MAINX, ["build", "test", "deploy", "staging"]),
        ({**MAINX, "CI_PIPELINE_SOURCE": "web"}, ALL),
        ({**MAINX, "CI_PIPELINE_SOURCE": "schedule"}, ALL),
        ({"CI_PIPELINE_SOURCE": MERGE_REQUEST}, ["build", "test", "review", "stop_review"]),
        ({**MAINX, "CI_COMMIT_BRANCH": "topic"}, []),
        ({**MAINX, "DEPLOY_BRANCH": "topic"}, []),  # a CI/CD variable overrides the file's
        ({"CI_PIPELINE_SOURCE": "push"}, []),  # a tag
    ],
)
def test_what_runs_when(variables, jobs):
    assert list(started(**variables)) == jobs


def test_the_tests_of_the_template_are_included_only_where_they_are():
    [include] = [include for include in PIPELINE["include"] if include["local"] == INCLUDED]
    assert include["rules"] == [{"exists": [INCLUDED]}]
    assert list(load(INCLUDED)) == ["template"]


@pytest.mark.parametrize(
    "file", ["scripts/deploy", "test/template/fast/test_readme.py", ".gitlab-ci.yml", ".ci/run"]
)
def test_a_change_of_the_template_runs_its_tests_beside_those_of_the_service(file):
    assert "template" in started(changed=[file], **MAINX)
    assert JOBS["template"]["stage"] == JOBS["test"]["stage"]


@pytest.mark.parametrize(
    "scope, deploy, beside",
    [
        ("*", "manual", "on_success"),
        ("production", "manual", None),  # where it does not apply to the job beside
        ("release/*", "on_success", "on_success"),
    ],
)
def test_a_release_is_deployed_or_waits_for_a_click_whatever_the_scope(scope, deploy, beside):
    times = started(scope=scope, DEPLOY_STRATEGY="beside", **MAINX)
    assert (times["deploy"], times.get("beside")) == (deploy, beside)
    assert ("stop" in times) == ("beside" in times)


def test_a_job_says_itself_how_it_deploys_and_where():
    # A project's variable would beat one of the file.
    strategies = {"deploy": "replace", "staging": "replace"}
    strategies |= {"review": "review", "stop_review": "review"}
    for name in (*DEPLOYING, *STOPPING):
        [line], environment = OURS[name]["script"], OURS[name]["environment"]["name"]
        strategy = strategies.get(name, "beside")
        assert line.startswith(f"DEPLOY_STRATEGY={strategy} ")
        assert re.search(r" python3 (/app/)?scripts/deploy( --stop)?$", line)
        assert ("--stop" in line) == (name in STOPPING)
        variables = re.findall(r"\$(\w+)", environment)
        assert variables in ([], ["CI_COMMIT_SHORT_SHA"], ["CI_MERGE_REQUEST_IID"])
    review = OURS["review"]["script"][0].partition(" python3")[0]
    assert OURS["stop_review"]["script"][0].startswith(f"{review} ")
    assert review.endswith(" DEPLOY_HOST=")  # that of production would come from the project


@every_job
def test_what_stops_an_environment_is_a_job_of_the_same_environment(job):
    if name := (job.get("environment") or {}).get("on_stop"):
        stop = JOBS[name]
        assert stop["environment"]["action"] == "stop"
        assert stop["environment"]["name"] == job["environment"]["name"]
        assert [rule["if"] for rule in stop["rules"]] == [rule["if"] for rule in job["rules"]]
        assert all(rule["when"] == "manual" and rule["allow_failure"] for rule in stop["rules"])


@each_of_ours
def test_no_variable_has_a_name_that_a_project_sets_for_other_reasons(job):
    # A variable of the project or its group beats those of the file and of a dotenv report.
    ours = r"CI_\w+|(DEPLOY|BUILD|BUILT|TEST)_\w+|IMAGE_PREFIX|GIT_STRATEGY"
    names = {*PIPELINE["variables"], *job.get("variables", {})} - TLS
    for text in [*lines(job), *images(job), *re.findall(r"\$\S+", str(job))]:
        names |= set(re.findall(r"\$\{?(\w+)", text)) | set(re.findall(r"\b([A-Z_]+)=", text))
    assert [name for name in names if not re.fullmatch(ours, name)] == []


def test_the_prefix_that_is_documented_works_although_gitlab_does_not_expand_it():
    # The runner expands the name of a service once: a variable in a variable would stay as it is.
    [prefix] = re.findall(r"\S+/dependency_proxy/\S+", read(".gitlab-ci.yml"))
    for image in images(DEFAULT, *OURS.values()):
        assert "$" not in image.replace("${IMAGE_PREFIX}", prefix)


def test_only_what_reaches_the_host_carries_a_tag():
    for name, job in OURS.items():
        # Whatever a merge request can start, it does not start beside production.
        tag = "review" if name in ("review", "stop_review") else "deploy"
        assert job.get("tags") == ([tag] if job["stage"] == "deploy" else None)
    assert "tags" not in DEFAULT


@pytest.mark.parametrize("image", sorted(images(DEFAULT, *JOBS.values()) | BASES))
def test_an_image_from_elsewhere_has_a_version(image):
    assert re.search(r":.*\d[^/]*$", image) and not image.endswith(":latest")


@pytest.mark.parametrize("image", sorted(images(DEFAULT, *OURS.values())))
def test_docker_has_a_full_version(image):
    assert re.search(r":\d+\.\d+\.\d+(-\w+)?$", image)


@pytest.mark.parametrize("image", sorted(images(DEFAULT, *JOBS.values()) | BASES))
def test_every_image_of_docker_hub_has_the_prefix(image):
    registry = r"(\$CI_\w+|[\w-]+(\.[\w-]+)+(:\d+)?)/"
    assert image.startswith("${IMAGE_PREFIX}") or re.match(registry, image)


def test_the_tests_run_in_what_was_built_and_ask_what_will_be_deployed():
    service = JOBS["test"]["services"][0]
    assert (JOBS["test"]["image"], service["name"]) == BUILT[:2]
    url = JOBS["test"]["variables"]["TEST_SERVICE_URL"]
    assert url.startswith(f"http://{service['alias']}:")


def test_the_jobs_tell_the_tests_apart():
    assert JOBS["test"]["script"] == ["sh scripts/test --ignore=test/template"]
    assert JOBS["template"]["script"] == ["TEST_PYTHON= sh scripts/test test/template/fast"]


@every_job
def test_a_job_needs_no_executable_bits_which_a_copy_made_on_windows_has_lost(job):
    for line in lines(job):
        assert not re.search(r"(?<!\bsh )(?<!\bpython3 )(?<!/app/)\bscripts/\w+", line)


def test_one_version_of_docker_everywhere():
    paths = [".gitlab-ci.yml", "Dockerfile", "README.md", "scripts/*", "test/template/*/*.py"]
    files = [file for path in paths for file in ROOT.glob(path) if file.is_file()]
    text = "".join(path.read_text() for path in files)
    found = re.findall(r"docker:([\d.]+)-(cli|dind)", text)
    assert {kind for version, kind in found} == {"cli", "dind"}
    assert len({version for version, kind in found}) == 1, found


def test_nothing_deprecated():
    deprecated = {"image", "services", "before_script", "after_script", "cache", "types"}
    assert not PIPELINE.keys() & deprecated
    assert not [name for name, job in JOBS.items() if job.keys() & {"only", "except", "type"}]
    assert "timeout" not in DEFAULT


@every_job
def test_dind_speaks_tls_and_no_other_job_has_its_variables(job):
    variables, service = job.get("variables", {}), dind(job)
    assert not TLS & PIPELINE["variables"].keys()
    if not service:
        assert not (TLS - {"DOCKER_HOST"}) & variables.keys()
        return
    assert TLS <= variables.keys()
    assert variables["DOCKER_HOST"] == f"tcp://{service['alias']}:2376"
    assert variables["DOCKER_CERT_PATH"] == variables["DOCKER_TLS_CERTDIR"] + "/client"
    assert variables["DOCKER_TLS_VERIFY"] == "1"


def test_a_deployment_is_alone_uninterrupted_and_has_the_address_that_it_found():
    for name in (*DEPLOYING, *STOPPING):
        assert OURS[name]["interruptible"] is False and OURS[name]["resource_group"]
    for name, same in (("beside", "deploy"), ("stop", "deploy"), ("stop_review", "review")):
        assert OURS[name]["resource_group"] == OURS[same]["resource_group"]
    for name in DEPLOYING:
        assert OURS[name]["environment"]["url"].startswith("$DEPLOY_URL")
        assert OURS[name]["artifacts"]["reports"]["dotenv"] == "deploy.env"


@pytest.mark.parametrize("name", [*DEPLOYING, *STOPPING])
def test_an_old_deployment_can_always_run_again_or_be_stopped(name):
    assert OURS[name]["image"] == BUILT[2]
    [needed] = OURS[name]["dependencies"]
    assert JOBS[needed]["artifacts"]["expire_in"] == "never"


@each_of_ours
def test_a_job_ends_in_time_and_only_a_failing_runner_repeats_it(job):
    assert re.fullmatch(r"\d+ minutes", job["timeout"])
    assert job.get("retry", DEFAULT["retry"])["when"] == "runner_system_failure"


@every_job
def test_the_scripts_that_a_job_calls_can_be_run(job):
    names = re.findall(r"(?<!\S)(?:\./)?((?:scripts|\.ci)/[\w-]+)", "\n".join(lines(job)))
    assert [name for name in names if not os.access(ROOT / name, os.X_OK)] == []


@every_job
def test_no_secret_on_a_command_line(job):
    secret = r"(login.* -p|--(password|token|secret)(?!-))[ =]?\S*\$|\bsshpass -p"
    assert not re.search(secret, "\n".join(lines(job) + lines(DEFAULT)), re.IGNORECASE)


@pytest.mark.parametrize(
    "line, percent",
    [
        ("TOTAL   92   1   16   1    98%", "98"),
        ("TOTAL          92      0     16      0   100%", "100"),
        ("TOTAL   92   1   16   1   97.5%", "97.5"),
        ("\x1b[32mTOTAL   92   1   16   1   \x1b[1m97.5%\x1b[0m", "97.5"),
        ("server.py      92      1     16      1    98%", None),
    ],
)
def test_coverage_is_read_from_the_last_line_of_the_report(line, percent):
    found = re.findall(JOBS["test"]["coverage"].strip("/"), line)
    assert found == ([percent] if percent else [])


def test_reports_are_where_scripts_test_writes_them_and_kept_when_tests_fail():
    artifacts, coverage = JOBS["test"]["artifacts"], configparser.ConfigParser()
    reports = artifacts["reports"]
    coverage.read_string(read(".coveragerc"))
    assert f"--junitxml={reports['junit']} " in read("scripts/test")
    assert f"--output-file={reports['codequality']}\n" in read("scripts/test")
    assert reports["coverage_report"]["path"] == coverage["xml"]["output"]
    assert artifacts["when"] == "always"


@pytest.mark.parametrize("job", ["build", "deploy"])
def test_what_a_job_hands_on_is_the_file_that_its_script_writes(job):
    file = re.escape(JOBS[job]["artifacts"]["reports"]["dotenv"])
    assert re.search(rf'> {file}\n|Path\("{file}"\).write_text', read(f"scripts/{job}"))


@pytest.mark.parametrize(
    "name, pattern",
    [
        ("Dockerfile", r"^EXPOSE (\d+)$"),
        ("Dockerfile", r"^HEALTHCHECK .*\n.*127\.0\.0\.1\D*(\d+)"),
        ("scripts/stack.yml", r"target: (\d+),"),
        ("scripts/serve", r"Serves on port (\d+)"),
        (".gitlab-ci.yml", r"TEST_SERVICE_URL: http://app:(\d+)$"),
    ],
)
def test_every_file_has_the_port_of_server_py(name, pattern):
    port = re.search(r'^define\("port", default=(\d+)', read("server.py"), re.MULTILINE)[1]
    assert re.findall(pattern, read(name), re.MULTILINE) == [port]


REQUIREMENTS = [
    *("requirements.txt", "test/requirements.txt", "test/template/requirements.txt"),
    "scripts/parts/requirements.txt",
]
FASTAPI = "test/template/parts/fastapi_requirements.txt"


def requirements(name):
    lines = [line.partition(" #")[0] for line in read(name).splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


@pytest.mark.parametrize("name", [*REQUIREMENTS, FASTAPI])
def test_every_requirement_is_pinned(name):
    for requirement in requirements(name):
        assert [one.operator for one in requirement.specifier] == ["=="]


@pytest.mark.parametrize("name", REQUIREMENTS[1:])  # a fork adds to the first what it likes
def test_what_a_package_needs_is_pinned_too(name):
    """A package that no file names would be installed in the version of the day."""
    others = [
        ROOT / "test" / other for other in re.findall(r"^-r \.\./(\S+)", read(name), re.MULTILINE)
    ]
    pinned = {canonicalize_name(one.name) for file in [name, *others] for one in requirements(file)}
    for requirement in requirements(name):
        for needed in map(Requirement, importlib.metadata.requires(requirement.name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in pinned, (requirement.name, needed.name)


def test_scripts_pipeline_finds_the_dind_image():
    code = "import runpy; print(runpy.run_path('scripts/pipeline', run_name='')['dind_image']())"
    command = [sys.executable, "-c", code]
    env = {**os.environ, "IMAGE_PREFIX": "${IMAGE_PREFIX}", "PYTHONPATH": "scripts"}
    found = subprocess.check_output(command, cwd=ROOT, env=env, text=True)
    assert found.strip() == name_of(dind(JOBS["build"]))


def test_the_build_runner_has_the_images_of_the_pipeline_and_privileges_its_dind():
    script = read("scripts/register-runner")
    pattern = re.search(r'"allowed_privileged_services"\] = \["\*\*/(.*?)"\]', script)[1]
    for image in {DEFAULT["image"], name_of(dind(JOBS["build"]))}:
        assert f'"{image.removeprefix("${IMAGE_PREFIX}")}"' in script
        allowed = fnmatch.fnmatch(image.removeprefix("${IMAGE_PREFIX}"), pattern)
        assert allowed == image.endswith("-dind")
