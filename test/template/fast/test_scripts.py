"""The scripts as an operator runs them, under each of the shells that this machine has.

What a script calls lies in two bin directories, its whole PATH, so that any command can be missing.
docker and its like are stand-ins that write down what they are asked and know no other question.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import SCRIPTS
from support import ROOT

SHELLS = [shell for shell in (("dash",), ("busybox", "sh")) if shutil.which(shell[0])]
TOOLS = (
    "awk basename cat chmod cksum cmp cp cut date dirname env expr grep head id ls mkdir mktemp mv "
    "printenv rm sed sha256sum sleep sort tail tee timeout touch tr uname uniq wc xargs"
).split()
LAPTOP = ["build", "serve", "test", "venv"]  # those that people run on a Mac, too
COMMAND = r"(?:^|[|;&({!]|\b(?:do|else|env|exec|if|then|until|while)\b) *"
# What only GNU's tools know, or understand so, each with an example.
GNU = {
    r"sed .*-[irsz]\b": "sed -i s/a/b/ file",
    r"(sed|grep) .*\\[|+?]": r"grep 'a\|b' file",
    r"grep .*-\w*P": "grep -oP a file",
    r"date [^|;)]*(-d|-I|-r|%N)": "date -d @0",
    r"mktemp (?!-d[ )])": "mktemp -p .",
    r"xargs .*-\w*[rd]": "xargs -r echo",
    r"(head|tail) .*(-c|-n *-)": "head -c 10",
    r"echo -": "echo -n a",
    r"cp .*-\w*[au]": "cp -a here there",
    r"find [^./$\"]": "find -name a",
    r"(cat|cp|cut|date|grep|head|ls|mkdir|mv|rm|sed|sort|tail|tr|wc) [^|;)]*--\w": "rm --force a",
    r"(flock|getent|ip|nproc|readlink|realpath|setsid|shuf|stat|tac)\b": "if stat -c %s file",
    r"(\w+\d+sum|seq|timeout)\b": "echo | sha256sum",
}
PYTHON = ["deploy", "pipeline", "register-runner"]  # the others are sh
PIPELINE_NEEDS = ["docker", "git", "bash", "rsync", "npm"]
PASSWORD = "pa55%40word"

# As buildx writes it.
METADATA = """{
  "containerimage.config.digest": "sha256:cc",
  "containerimage.descriptor": {
    "digest": "sha256:DIGEST"
  },
  "containerimage.digest": "sha256:DIGEST",
  "image.name": "registry.test/app"
}"""
FOUND = """
    while [ $# -gt 0 ]; do
        [ "$1" != --metadata-file ] || echo '{"digest": {
            "sha256": "dd"
        }}' > "$2"
        shift
    done"""
BUILD = f"""
    printf '%s' "${{PIP_CONF-}}" > "$0.pip.conf"
    printenv > "$0.env"
    [ -z "${{DOCKER_CONFIG-}}" ] || cp "$DOCKER_CONFIG/config.json" "$0.config.json"
    case $* in
        *"--target test "*) digest=bb ;;
        *"--target deploy "*) digest=cc ;;
        *) digest=aa ;;
    esac
    while [ $# -gt 0 ]; do
        [ "$1" != --metadata-file ] || echo '{METADATA}' | sed "s/DIGEST/$digest/" > "$2"
        shift
    done"""
DOCKER = {
    "--version": "echo Docker version 29.7.2",
    "buildx version": "",
    "version": "",
    "login --username *": 'cat >> "$0.stdin"',
    "buildx build --output type=cacheonly *": "echo not found >&2; exit 1",
    "buildx build *": BUILD,
}
# As the package podman-docker of Debian says it.
PODMAN = "echo Emulate Docker CLI using podman. >&2; echo podman version 5.4.2"
# As a docker that does not see the directory of the file that it is to write.
SNAP = 'for word; do case $word in *.metadata) echo "open $word: no such file" ;; esac; done'
REGISTRY = {
    "CI_REGISTRY": "registry.test",
    "CI_REGISTRY_USER": "robot",
    "CI_REGISTRY_PASSWORD": PASSWORD,
    "CI_REGISTRY_IMAGE": "registry.test/app",
    "CI": "true",
    "CI_COMMIT_SHA": "c0ffee",
    "CI_JOB_ID": "42",
    "ENGINE_SECONDS": "0",
    "CI_DEPENDENCY_PROXY_SERVER": "gitlab.test:443",
    "CI_DEPENDENCY_PROXY_USER": "reader",
    "CI_DEPENDENCY_PROXY_PASSWORD": PASSWORD,
}


def error(message):
    return f"echo '{message}' >&2; exit 1"


def but(answers):
    """Return what docker answers, but for these."""
    return {**answers, **DOCKER, **answers}  # the first pattern that fits counts


def stand_in(path, answers):
    """Write a command that logs its arguments and answers them, by pattern, with shell code."""
    quoted = {pattern.replace(" ", "\\ "): code for pattern, code in answers.items()}
    cases = "".join(f"{pattern}) {code}\n;;\n" for pattern, code in quoted.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> "$0.log"\ncase "$*" in\n{cases}'
        '*) echo "unexpected: $*" >&2; exit 99 ;;\nesac\n'
    )
    path.chmod(0o755)


class Copy:
    """A copy of the files that the scripts need, which they may write into."""

    def __init__(self, path, shell, **commands):
        self.path, self.bin = path, path / "bin"
        self.shell, self.tools = shell
        (path / "scripts").mkdir()
        (path / "test").mkdir()
        modules = [file.name for file in ROOT.glob("*.py")]
        for name in (*modules, "Dockerfile", "requirements.txt", "test/requirements.txt"):
            shutil.copy(ROOT / name, path / name)
        for name, answers in commands.items():
            stand_in(self.bin / name, answers)

    def start(self, name, *arguments, stdout=subprocess.PIPE, **env):
        for file in {name, "deploy"}:
            shutil.copy(ROOT / "scripts" / file, self.path / "scripts" / file)
        shutil.copytree(ROOT / "scripts/parts", self.path / "scripts/parts", dirs_exist_ok=True)
        return subprocess.Popen(
            [*([sys.executable] if name in PYTHON else self.shell), f"scripts/{name}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=self.path,
            env={"PATH": f"{self.bin}:{self.tools}", **env},
            text=True,
        )

    def run(self, name, *arguments, **env):
        with self.start(name, *arguments, **env) as process:
            try:
                output = process.communicate(timeout=20)
            except BaseException:
                process.kill()
                raise
            return subprocess.CompletedProcess(process.args, process.returncode, *output)

    def read(self, name):
        return (self.path / name).read_text() if (self.path / name).exists() else None

    def calls(self, start=""):
        """Return what docker was asked, as far as it begins with `start`."""
        log = self.read("bin/docker.log") or ""
        return [line for line in log.splitlines() if line.startswith(start)]


def reason(answer):
    """Return the one line in which a run failed."""
    assert answer.returncode in (1, 2) and answer.stderr.count("\n") == 1, answer
    return answer.stderr


@pytest.fixture(scope="module", params=SHELLS, ids=" ".join)
def shell(request, tmp_path_factory):
    """The command of a shell, and a directory with the tools beside it: busybox has its own."""
    tools = tmp_path_factory.mktemp("tools")
    command = [shutil.which(request.param[0]), *request.param[1:]]
    list_applets = [command[0], "--list"] if "sh" in command else ["true"]
    applets = subprocess.run(list_applets, stdout=subprocess.PIPE, text=True).stdout.split()
    for tool in TOOLS:
        if path := command[0] if tool in applets else shutil.which(tool):
            (tools / tool).symlink_to(path)  # a Mac has no timeout
    return command, tools


@pytest.fixture
def copy(tmp_path, shell):
    """Makes the copy, with stand-ins for the commands that are given."""
    return lambda **commands: Copy(tmp_path, shell, **commands)


@pytest.fixture(scope="module")
def pushes(tmp_path_factory, shell):
    """The copies in which three build jobs have run."""
    copies = {}
    for name, env in {
        "protected": {
            "CI_COMMIT_REF_PROTECTED": "true",
            "IMAGE_PREFIX": "gitlab.test:443/group/",
            "TZ": "Asia/Tokyo",
        },
        "unprotected": {"CI_COMMIT_REF_PROTECTED": "false", "IMAGE_PREFIX": "mirror.test/"},
        "refresh": {"CI_COMMIT_REF_PROTECTED": "true", "BUILD_REFRESH": "1"},
    }.items():
        copies[name] = Copy(tmp_path_factory.mktemp(name), shell, docker=DOCKER)
        copies[name].answer = copies[name].run("build", **REGISTRY, **env)
        assert copies[name].answer.returncode == 0, copies[name].answer
    return copies


def lint(name, *arguments):
    """Return what a linter says, which may have come into .venv as a wheel."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [shutil.which(name, path=path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_shellcheck_finds_nothing():
    scripts = [ROOT / "scripts" / name for name in SCRIPTS if name not in PYTHON]
    answer = lint("shellcheck", "--external-sources", *scripts, *ROOT.glob(".ci/run"))
    assert answer.returncode == 0, answer.stdout


def test_hadolint_finds_nothing_in_the_dockerfile():
    # Debian's mirrors keep one version of each package.
    answer = lint("hadolint", "--no-color", "--ignore=DL3008", "Dockerfile")
    assert (answer.returncode, answer.stdout) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_can_be_run_and_begins_alike(name):
    script = ROOT / "scripts" / name
    assert os.access(script, os.X_OK)
    head = rf"#!/bin/sh\n# {name}: .+\n(#.*\n)*set -eu\nCDPATH='' cd \"\$\(dirname"
    if name in PYTHON:
        head = rf'#!/usr/bin/env python3\n"""Usage: scripts/{name}\b'
    assert re.match(head, script.read_text())


@pytest.mark.parametrize("name", LAPTOP)
def test_what_runs_on_a_laptop_asks_only_what_every_tool_knows(name):
    lines = (ROOT / "scripts" / name).read_text().splitlines()
    for pattern, example in GNU.items():
        assert re.search(COMMAND + pattern, example)
        found = [line for line in lines if re.search(COMMAND + pattern, line.strip())]
        assert found == []


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in PYTHON])
def test_a_script_calls_others_without_their_executable_bits(name):
    text = (ROOT / "scripts" / name).read_text()
    usage = re.sub(r"<<USAGE.*?^USAGE$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^ *(exec |if |! )*scripts/", usage, re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_misuse(copy, name):
    # No docker and no Python in reach; and no fact of the machine in the help.
    machine = ("uname", "hostname", "nproc", "getconf", "id")
    copy = copy(**dict.fromkeys(machine, {"*": "echo FACT"}))
    help = copy.run(name, "--help")
    assert (help.returncode, help.stderr) == (0, "")
    assert re.match(rf"Usage: (scripts/)?{name}\b", help.stdout)
    assert "-h, --help" in help.stdout and "FACT" not in help.stdout
    assert max(len(line) for line in help.stdout.splitlines()) <= 110
    short = copy.run(name, "-h", PYTHONSAFEPATH="1")  # which hides what lies beside a program
    assert (short.returncode, short.stderr, short.stdout) == (0, "", help.stdout)
    if name not in ("test", "serve"):  # what they do not know goes to pytest and server.py
        wrong = copy.run(name, "--no-such-option")
        assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", help.stdout)


@pytest.mark.parametrize(
    "commands, env, words",
    [
        ({}, {}, "docker with buildx is needed: "),
        (
            {"docker": {"buildx version": error("docker: unknown command: docker buildx")}},
            {},
            "is needed: docker: unknown command: docker buildx (",
        ),
        (
            {"docker": DOCKER},
            {"IMAGE_PREFIX": "mirror.test"},
            "'mirror.test' must be written out and end with a slash",
        ),
        ({"docker": DOCKER}, {"IMAGE_PREFIX": "$GROUP/"}, "'$GROUP/' must be written out"),
        (
            {"docker": DOCKER},
            {"CI": "true"},
            "no container registry (switch it on: Settings > General",
        ),
        (
            {"docker": {"--version": PODMAN}},
            {},
            "docker is Podman here: install Docker (https://",
        ),
        (
            {"docker": DOCKER},
            {"RELEASE": "\u7248\u672c"},
            "no header can carry RELEASE '\u7248\u672c' (",
        ),
        (
            {
                "docker": DOCKER
                | {"version": error("client version 1.52 is too new. API version 1.41")}
            },
            {"CI": "true", "CI_REGISTRY_IMAGE": "registry.test/app", "ENGINE_SECONDS": "0"},
            "this docker and its engine do not fit: client version 1.52 is too new.",
        ),
        ({"docker": but({"buildx build --target *": SNAP})}, {}, "from snap, it has a /tmp of its"),
    ],
    ids="docker buildx slash variable registry podman release engine snap".split(),
)
def test_build_says_what_is_missing_before_it_builds(copy, commands, env, words):
    copy = copy(**commands)
    assert words in reason(copy.run("build", **env))
    assert len(copy.calls("buildx build --target")) == ("snap" in words)


@pytest.mark.parametrize("name", [None, "DOCKER_HOST", "DOCKER_TLS_CERTDIR", "DOCKER_CERT_PATH"])
def test_build_says_what_to_do_when_no_engine_answers_the_job(copy, name):
    copy = copy(docker=but({"version": error("one line\ndial tcp: connection refused")}))
    shutil.copy(ROOT / ".gitlab-ci.yml", copy.path)
    file = {
        "DOCKER_HOST": "tcp://docker:2376",
        "DOCKER_TLS_CERTDIR": "/certs",
        "DOCKER_CERT_PATH": "/certs/client",
    }
    hint = "the runner must start the dind service privileged, with a volume at /certs/client"
    if name:
        file[name] = ""
        hint = f"remove the CI/CD variable {name}: it overrides .gitlab-ci.yml"
    answer = reason(copy.run("build", **REGISTRY, **file))
    assert answer.startswith("build: no Docker engine answers at ")
    assert answer.endswith(f": dial tcp: connection refused ({hint})\n")
    assert copy.calls("buildx build --target") == []


def test_build_says_that_it_cannot_write_what_it_hands_on_before_it_builds(copy):
    copy = copy(docker=DOCKER)
    (copy.path / "build.env").mkdir()
    answer = reason(copy.run("build", **REGISTRY))
    assert "build.env" in answer and "directory" in answer
    assert copy.calls("buildx build --target") == []


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_build_takes_the_release_from_git_or_ends_with_gits_reason(copy):
    copy = copy(docker=DOCKER)
    (copy.bin / "git").symlink_to(shutil.which("git"))

    def built(**env):
        answer = copy.run("build", GIT_CEILING_DIRECTORIES=str(copy.path.parent), **env)
        return answer.returncode, answer.stdout.splitlines()[-1:], answer.stderr

    assert built() == (0, ["Built app:release of dev"], "")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "--quiet"], cwd=copy.path, check=True)
    commit = [*git, "commit", "--quiet", "--allow-empty", "--message=First"]
    subprocess.run(commit, cwd=copy.path, check=True)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=copy.path, text=True).strip()
    assert built() == (0, [f"Built app:release of {head}"], "")
    status, _, message = built(GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    assert status == 1 and message.count("\n") == 1
    assert message.startswith("build: cannot tell the commit: fatal: detected dubious ownership")
    assert len(copy.calls("buildx build --target")) == 2


@pytest.mark.parametrize(
    "name, value, given",
    [
        ("HTTP_PROXY", f"http://me:{PASSWORD}@proxy.test:3128", True),
        ("https_proxy", f"http://me:{PASSWORD}@proxy.test:3128", True),
        ("no_proxy", "localhost,127.0.0.1", True),
        ("NO_PROXY", "127.0.0.1", True),
        ("HTTP_PROXY", "", False),
        ("http_proxy", "http://127.0.0.1:7890", False),  # where RUN would meet itself
        ("HTTPS_PROXY", "http://me@localhost:7890/", False),
        ("HTTPS_PROXY", "localhost:7890", False),
    ],
)
def test_build_names_a_proxy_and_leaves_its_value_to_the_environment(copy, name, value, given):
    copy = copy(docker=DOCKER)
    answer = copy.run("build", **{name: value})
    [build] = copy.calls("buildx build --target")
    assert re.findall(r" --build-arg (\w+_PROXY)\b", build, re.IGNORECASE) == [name] * given
    assert f"{name}={value}\n" in copy.read("bin/docker.env")
    assert PASSWORD not in build + answer.stdout + answer.stderr


@pytest.mark.parametrize("config", ['{"auths": {"other.test": {"auth": "eDp5"}}}', "{broken"])
def test_build_lets_its_login_join_docker_auth_config(copy, config):
    copy = copy(docker=DOCKER)
    assert copy.run("build", **REGISTRY, DOCKER_AUTH_CONFIG=config).returncode == 0
    assert copy.read("bin/docker.config.json") == config
    assert "DOCKER_AUTH_CONFIG" not in copy.read("bin/docker.env")


def test_credential_helpers_that_the_job_lacks_do_not_stop_its_login(copy):
    copy = copy(docker=DOCKER)
    config = '{"auths": {}, "credHelpers": {"other.test": "ecr-login"}}'
    assert copy.run("build", **REGISTRY, DOCKER_AUTH_CONFIG=config).returncode == 0
    assert "DOCKER_" not in copy.read("bin/docker.env")


def test_build_by_hand_loads_the_target_and_hands_nothing_on(copy):
    copy = copy(docker=DOCKER)
    assert copy.run("build", "debug").returncode == 0
    [build] = copy.calls("buildx build --target")
    assert "--target debug " in build and " --load --tag app:debug " in build
    assert copy.calls("login") == [] and copy.read("build.env") is None


def test_build_gives_the_index_to_buildx_as_a_secret_only(copy):
    copy, url = copy(docker=DOCKER), f"https://reader:{PASSWORD}@index.test/simple"
    answer = copy.run("build", PIP_INDEX_URL=url)
    assert copy.read("bin/docker.pip.conf") == f"[global]\nindex-url = {url}"
    assert " --secret id=pip.conf,env=PIP_CONF " in copy.calls("buildx build --target")[0]
    assert PASSWORD not in copy.read("bin/docker.log") + answer.stdout + answer.stderr


@pytest.mark.parametrize(
    "url", [f"http://reader:{PASSWORD}@index.test:8081/simple", "http://index.test:8081/simple"]
)
def test_an_index_without_tls_is_trusted_by_build_and_venv(copy, url):
    copy = copy(docker=DOCKER, python3={"-c *": ""})
    assert copy.run("build", PIP_INDEX_URL=url).returncode == 0
    settings = f"[global]\nindex-url = {url}\ntrusted-host = index.test:8081"
    assert copy.read("bin/docker.pip.conf") == settings
    pip = {"-c *": "", "-m pip *": 'echo "trusts $PIP_TRUSTED_HOST"'}
    stand_in(copy.path / ".venv/bin/python", pip)
    answer = copy.run("venv", "requirements.txt", PIP_INDEX_URL=url)
    assert "trusts index.test:8081\n" in answer.stdout


@pytest.mark.parametrize(
    "message, words",
    [
        (
            "Get https://registry.test/v2/: tls: x509: certificate signed by unknown authority",
            "unknown authority (dind lacks its CA: see README.md, When it fails)",
        ),
        ("x509: certificate has expired", "as robot: x509: certificate has expired\n"),
        (
            "one line\nunauthorized: incorrect password",
            "as robot: unauthorized: incorrect password",
        ),
    ],
    ids=["private CA", "expired", "password"],
)
def test_build_explains_why_it_cannot_log_in(copy, message, words):
    copy = copy(docker=but({"login *": error(message)}))
    assert words in reason(copy.run("build", **REGISTRY))
    assert copy.calls("buildx build --target") == []


def test_a_protected_ref_writes_the_cache(pushes):
    for build in pushes["protected"].calls("buildx build --target"):
        assert re.search(r"--cache-from type=registry,ref=registry.test/app\S*:cache ", build)
        assert "--cache-to type=inline " in build
        assert re.search(r'"name=\S+:c0ffee-42,\S+:cache[",]', build)


def test_other_refs_only_read_the_cache(pushes):
    for build in pushes["unprotected"].calls("buildx build --target"):
        assert re.search(r"--cache-from type=registry,ref=registry.test/app\S*:cache ", build)
        assert "--cache-to" not in build and re.search(r'"name=[^,]+:c0ffee-42"', build)


def test_refresh_builds_the_environment_once_and_without_the_cache(pushes):
    test, deploy, release = pushes["refresh"].calls("buildx build --target")
    assert "--target test " in test and " --pull --no-cache " in test
    for name, build in (("deploy", deploy), ("release", release)):
        assert f"--target {name} " in build and "--pull" not in build and "--no-cache" not in build
    assert "--cache-from" not in test + deploy + release


@pytest.mark.parametrize(
    "push, logins",
    [
        (
            "protected",
            ["robot --password-stdin registry.test", "reader --password-stdin gitlab.test:443"],
        ),
        ("unprotected", ["robot --password-stdin registry.test"]),
    ],
)
def test_build_logs_in_to_the_dependency_proxy_where_it_is_used(pushes, push, logins):
    assert pushes[push].calls("login") == [f"login --username {login}" for login in logins]
    assert pushes[push].read("bin/docker.stdin") == len(logins) * PASSWORD
    assert PASSWORD not in "".join(pushes[push].calls()) + str(pushes[push].answer)


def test_build_passes_a_time_zone_on_if_there_is_one(pushes):
    builds = pushes["protected"].calls("buildx build --target")
    assert all("--build-arg TZ " in build for build in builds)
    assert "TZ=Asia/Tokyo\n" in pushes["protected"].read("bin/docker.env")
    builds = pushes["unprotected"].calls("buildx build --target")
    assert not any("--build-arg TZ " in build for build in builds)


def test_the_image_deploy_is_named_by_what_it_is_made_from_and_built_when_that_changes(copy):
    found = {"buildx build --output type=cacheonly *": FOUND}

    def run(answers, **env):
        stand_in(copy.bin / "docker", answers)
        assert copy.run("build", **REGISTRY, CI_COMMIT_REF_PROTECTED="true", **env).returncode == 0
        builds = "".join(copy.calls("buildx build --target deploy "))
        (copy.bin / "docker.log").unlink()
        return (re.findall(r":cache,\S+/deploy:(\d+-\d+)\"", builds) or [None])[0]

    copy = copy(docker=DOCKER)
    names = [run(DOCKER)]
    assert run(DOCKER) == names[0]
    assert run(but(found)) is None  # the registry has it
    assert "BUILT_DEPLOY_IMAGE=registry.test/app/deploy@sha256:dd\n" in copy.read("build.env")
    assert run(but(found), CI_PIPELINE_SOURCE="schedule")  # builds everything anew
    (copy.path / "server.py").write_text("# changed\n")
    assert run(DOCKER) == names[0]
    for name in ("Dockerfile", "requirements.txt", "scripts/parts/new.py"):
        (copy.path / name).write_text("# changed\n")
        names.append(run(DOCKER))
    names.append(run(DOCKER, TZ="Asia/Tokyo"))
    names.append(run(DOCKER, DEPLOY_HOST="ssh://root@host"))
    assert len({*names}) == len(names) and None not in names


def test_build_hands_on_its_images_by_digest(pushes):
    assert pushes["unprotected"].read("build.env") == (
        "BUILT_TEST_IMAGE=registry.test/app/test@sha256:bb\n"
        "BUILT_DEPLOY_IMAGE=registry.test/app/deploy@sha256:cc\n"
        "DEPLOY_IMAGE=registry.test/app@sha256:aa\n"
    )


@pytest.mark.parametrize(
    "host, given", [("ssh://root@host", True), ("tcp://host:2376", False), ("", False)]
)
def test_the_image_deploy_gets_ssh_where_it_is_asked_for(copy, host, given):
    copy = copy(docker=DOCKER)
    assert copy.run("build", **REGISTRY, DEPLOY_HOST=host).returncode == 0
    builds = copy.calls("buildx build --target")
    assert all((" --build-arg DEPLOY_SSH " in build) == given for build in builds)


def test_a_build_that_fails_hands_nothing_on_not_even_what_an_earlier_one_left(copy):
    copy = copy(docker=but({"buildx build --target release *": "exit 3"}))
    (copy.path / "build.env").write_text("DEPLOY_IMAGE=earlier\n")
    assert copy.run("build", **REGISTRY).returncode == 1
    assert len(copy.calls("buildx build --target")) == 3 and not copy.read("build.env")


def progress(text, then=BUILD):
    """Return what docker answers when a build prints this, as BuildKit does, and then does that."""
    return but({"buildx build *": f"cat >&2 <<'TEXT'\n{text}\nTEXT\n{then}"})


START = """\
#0 building with "default" instance using docker driver

#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 2.76kB done
#1 DONE 0.0s

#2 [internal] load metadata for docker.io/library/python:3.14-slim
#2 DONE 0.1s

#3 importing cache manifest from registry.test/app:cache
#3 ERROR: failed to configure registry cache importer: registry.test/app:cache: not found

#4 [base 1/3] FROM docker.io/library/python:3.14-slim@sha256:c5c86b8d926d4a1020
#4 resolve docker.io/library/python:3.14-slim@sha256:c5c86b8d926d4a1020 0.0s done
#4 DONE 0.0s

#5 [base 2/3] WORKDIR /app
#5 CACHED

#6 [base 3/3] RUN --mount=type=secret,id=pip.conf     pip install -r requirements.txt
#6 0.512 Collecting tornado
#6 ...

#7 [release 1/1] COPY server.py /app/
#7 DONE 0.1s

#6 [base 3/3] RUN --mount=type=secret,id=pip.conf     pip install -r requirements.txt
#6 1.024 Installing tornado"""
END = """\
#6 DONE 12.3s

#8 exporting to image
#8 exporting layers 0.1s done
#8 DONE 0.2s
------
 > importing cache manifest from registry.test/app:cache:
------"""
FAILURE = """\
#6 ERROR: process "/bin/sh -c pip install" did not complete successfully: exit code: 1
------
 > [base 3/3] RUN pip install -r requirements.txt:
1.024 ERROR: No matching distribution found for tornado
------
Dockerfile:17
--------------------
  17 | >>> RUN pip install -r requirements.txt || echo "there is no package index"
--------------------
ERROR: failed to build: failed to solve: exit code: 1"""


def test_a_build_prints_the_steps_that_are_not_cached(copy):
    answer = copy(docker=progress(f"{START}\n{END}")).run("build")
    assert answer.returncode == 0 and answer.stderr == ""
    assert answer.stdout.splitlines()[1:-2] == [
        "#4 [base 1/3] FROM docker.io/library/python:3.14-slim@sha256:c5c86b8d926d4a1020",
        "#6 [base 3/3] RUN pip install -r requirements.txt",
        "#7 [release 1/1] COPY server.py /app/",
        "#8 exporting to image",
    ]


def test_a_step_of_a_build_is_shown_while_it_runs(copy):
    until_seen = "n=100; until [ -e seen ]; do n=$((n - 1)); [ $n != 0 ] || exit 1; sleep 0.1; done"
    copy = copy(docker=progress(START, until_seen + BUILD))
    if "mawk" in os.path.realpath(copy.tools / "awk"):
        return  # it holds lines back; the job images have busybox's
    with copy.start("build") as process:
        assert any("[base 3/3] RUN" in line for line in process.stdout)
        (copy.path / "seen").touch()
        assert process.wait() == 0


def test_a_build_that_fails_shows_all_that_buildkit_has_printed_and_ends_with_the_cause(copy):
    output = "\n".join(f"#6 2.{number} line {number}" for number in range(100, 200))
    log = f"{START}\n{output}\n{FAILURE}\n"
    answer = copy(docker=progress(log, "exit 3")).run("build")
    assert answer.returncode == 1
    assert answer.stderr == "build: cannot build release (the lines above say why)\n"
    assert log in answer.stdout
    assert answer.stdout.splitlines()[-2:] == [
        " > [base 3/3] RUN pip install -r requirements.txt:",
        "1.024 ERROR: No matching distribution found for tornado",
    ]


def test_a_build_that_fails_before_its_first_step_ends_with_what_buildkit_says(copy):
    log = f"{START}\nERROR: failed to build: failed to solve: python:3.14-slim: not found"
    answer = copy(docker=progress(log, "exit 3")).run("build")
    assert answer.returncode == 1 and answer.stdout.endswith(log + "\n")


@pytest.mark.parametrize("message", ["401 Unauthorized", "tls: x509: unknown authority"])
def test_a_cache_that_cannot_be_read_is_shown(copy, message):
    log = f"{START}\n{END}".replace("app:cache: not found", f"app:cache: {message}")
    answer = copy(docker=progress(log)).run("build")
    assert answer.returncode == 0
    assert f"cache importer: registry.test/app:cache: {message}\n" in answer.stdout


def test_a_login_that_fails_names_server_and_user_only(copy):
    login = {"login *": "cat > /dev/null; " + error("one line\ndenied: no")}
    copy = copy(docker=but(login), sleep={"*": ""})
    answer = copy.run("build", **REGISTRY)
    assert reason(answer) == "build: cannot log in to registry.test as robot: denied: no\n"
    assert PASSWORD not in answer.stdout + "".join(copy.calls())
    assert copy.calls("buildx build --target") == []


@pytest.mark.parametrize(
    "commands, file, words",
    [
        ({}, "nowhere.txt", "there is no file 'nowhere.txt'"),
        ({}, "requirements.txt", "3.11 or later with venv, found none (install python3;"),
        (
            {"python3": {"-c *": "exit 1", "--version": "echo Python 3.9"}},
            "requirements.txt",
            "found Python 3.9 (",
        ),
        (
            {"python3": {"-c *": "", "-m venv *": "echo one line; " + error("no space left")}},
            "requirements.txt",
            "cannot make .venv: no space left",
        ),
    ],
    ids=["file", "python3", "old", "space"],
)
def test_venv_says_what_is_missing(copy, commands, file, words):
    assert words in reason(copy(**commands).run("venv", file))


def test_venv_installs_a_file_again_only_after_a_change(copy):
    copy = copy(python3={"-c *": ""})
    pip = {"-c *": "", "-m pip install *requirements.txt": ""}
    stand_in(copy.path / ".venv/bin/python", pip)
    runs = [copy.run("venv", "test/requirements.txt") for _ in range(2)]
    (copy.path / "requirements.txt").write_text("# changed\n")
    runs.append(copy.run("venv", "test/requirements.txt"))
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert ["Installing" in run.stdout for run in runs] == [True, False, True]
    assert runs[1].stdout == ""
    # The service's come last: its version of a package counts.
    files = [
        call.split()[-1]
        for call in copy.read(".venv/bin/python.log").splitlines()
        if "pip install" in call
    ]
    assert files == 2 * ["test/requirements.txt", "requirements.txt"]


def test_venv_tries_again_after_pip_has_failed(copy):
    copy = copy(python3={"-c *": ""})
    stand_in(copy.path / ".venv/bin/python", {"-c *": "", "-m pip *": "exit 1"})
    assert "set PIP_INDEX_URL to a mirror" in reason(copy.run("venv", "requirements.txt"))
    assert "set PIP_INDEX_URL to a mirror" in reason(copy.run("venv", "requirements.txt"))


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_no_variable_leads_a_script_into_another_directory(shell, tmp_path):
    for directory in ("mine/scripts", "other/scripts"):
        (tmp_path / directory).mkdir(parents=True)
    begins = (ROOT / "scripts/venv").read_text().partition('/.."\n')
    (tmp_path / "mine/scripts/it").write_text("".join(begins[:2]) + "pwd\n")
    env = {**os.environ, "CDPATH": str(tmp_path / "other")}
    options = {"cwd": tmp_path / "mine", "env": env, "capture_output": True, "text": True}
    answer = subprocess.run([*shell, "scripts/it"], **options)
    assert answer.stdout == f"{tmp_path / 'mine'}\n", answer


@pytest.mark.parametrize("missing", PIPELINE_NEEDS)
def test_pipeline_names_the_command_that_is_missing(copy, missing):
    copy = copy(**{name: {} for name in PIPELINE_NEEDS if name != missing})
    assert reason(copy.run("pipeline")).startswith(f"pipeline: {missing} is not installed")


@pytest.mark.parametrize("port", ["http", "-1", ""])
def test_pipeline_refuses_what_is_no_port(copy, port):
    assert reason(copy().run("pipeline", f"--port={port}")) == f"pipeline: '{port}' is no port\n"


@pytest.mark.parametrize("options", [[], ["--down"]])
def test_pipeline_says_that_no_engine_answers(copy, options):
    commands = {name: {} for name in PIPELINE_NEEDS}
    copy = copy(**{**commands, "docker": {"ps --quiet": error("is it running?")}})
    answer = reason(copy.run("pipeline", *options))
    assert answer == "pipeline: docker ps failed: is it running?\n"
    assert copy.calls() == ["ps --quiet"] and not (copy.path / ".pipeline").exists()


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("APP_SECRET_KEY", "nowhere", "No such file or directory: 'nowhere'"),
        ("APP_SECRET_KEY", "", "Is a directory: '.'"),
        ("APP_SECRET_KEY", "latin-1", "'utf-8' codec can't decode byte 0xe4"),
        ("APP_TEXT", "\udce4", "'utf-8' codec can't decode byte 0xe4"),
    ],
)
def test_pipeline_refuses_settings_that_no_variable_can_have(copy, name, value, words):
    copy = copy()
    (copy.path / "latin-1").write_bytes(b"\xe4\n")
    answer = reason(copy.run("pipeline", **{name: value}))
    assert answer.startswith(f"pipeline: {name} cannot be a CI/CD variable: ") and words in answer


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@pytest.mark.parametrize(
    "env, words",
    [
        ({}, "does not have any commits yet"),
        ({"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}, "git config --global --add safe.directory /"),
    ],
    ids=["no commit", "another owner"],
)
def test_pipeline_says_why_git_names_no_commit(copy, env, words):
    commands = {name: {} for name in PIPELINE_NEEDS if name != "git"}
    copy = copy(**{**commands, "docker": {"ps --quiet": ""}})
    (copy.bin / "git").symlink_to(shutil.which("git"))
    subprocess.run(["git", "init", "--quiet", copy.path], check=True)
    answer = reason(copy.run("pipeline", **env))
    assert answer.startswith("pipeline: git log failed: fatal: ") and words in answer
    assert not (copy.path / ".pipeline").exists()
