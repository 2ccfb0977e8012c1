"""What scripts/register-runner decides and says, in process.

GitLab is a small server that answers as it does; Docker answers as it was seen to.
"""

import base64
import contextlib
import http.server
import importlib.machinery
import importlib.util
import ipaddress
import json
import shutil
import signal
import socketserver
import ssl
import subprocess
import threading
import tomllib
import urllib.request

import pytest

import gitlab
from support import ROOT, await_true

loader = importlib.machinery.SourceFileLoader("runner", str(ROOT / "scripts/register-runner"))
runner = importlib.util.module_from_spec(importlib.util.spec_from_loader("runner", loader))
loader.exec_module(runner)

OPTIONS = {"url": "https://gitlab.test", "description": "host", "certificates": ["/certs.d"]}
TOKENS = {"build": "glrt-b", "deploy": "glrt-d"}
INFO = {
    "Name": "host",
    "DockerRootDir": "/",
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "RegistryConfig": {
        "InsecureRegistryCIDRs": ["10.1.0.0/16", "::1/128", "127.0.0.0/8"],
        "IndexConfigs": {
            "docker.io": {"Name": "docker.io", "Mirrors": ["https://m.test/"], "Secure": True},
            "registry.test:5000": {"Name": "registry.test:5000", "Mirrors": [], "Secure": False},
        },
        "Mirrors": ["https://m.test/", "http://n.test:5001/"],
    },
    "Swarm": {"LocalNodeState": "active", "ControlAvailable": True},
}
NODE = {"ID": "n", "Version": {"Index": 9}, "Spec": {"Role": "manager", "Labels": {}}}


class FakeDocker:
    """Answers as Docker was seen to, and notes what changes something."""

    socket = "/var/run/docker.sock"

    def __init__(self, **answers):
        self.answers = {"/info": INFO, "/nodes": [NODE], "/swarm": {"Spec": {}}, **answers}
        self.asked = []

    def ask(self, method, path, body=None):
        if method != "GET":
            self.asked.append((method, path, body))
        answer = self.answers.get(path)
        if isinstance(answer, Exception):
            raise answer
        return answer


def ours(label="ci-runner"):
    return {**NODE, "Spec": {**NODE["Spec"], "Labels": {"register-runner": label}}}


# --- Options and credentials


def test_the_help_has_every_option_and_ends_with_an_example(capsys):
    runner.main(["--help"], {})
    text = capsys.readouterr().out
    assert all(f"\n  --{name} " in text for name in runner.OPTIONS)
    assert text.startswith("Usage: ") and text.splitlines()[-1].startswith("Example: ")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "arguments, env, words",
    [
        ([], {"GITLAB_TOKEN": "a token"}, "GITLAB_TOKEN has characters that no token has"),
        ([], {"GITLAB_TOKEN_FILE": "/no/file"}, "cannot read a token from /no/file (GITLAB_"),
        ([], {"GITLAB_TOKEN_FILE": "/dev/null"}, "cannot read a token from /dev/null (GITLAB_"),
        ([], {"HTTPS_PROXY": r"http://CORP\me:x@proxy"}, "HTTPS_PROXY cannot have"),
        ([], {"no_proxy": "a b"}, "no_proxy cannot have"),
        ([], {"DOCKER_HOST": "tcp://10.0.0.1:2375"}, "run this on the runners' host"),
        ([], {"DOCKER_HOST": "unix:///no/socket"}, "does not answer at /no/socket: "),
        (["--project=group/project"], {}, "--project cannot be 'group/project' (NUMBER: "),
        (["--url", "gitlab"], {}, "--url cannot be 'gitlab'"),
        (["--url=http://a.test?x"], {}, "--url cannot be"),
        (["--name=A"], {}, "--name cannot be 'A'"),
        (["--only=both"], {}, "--only cannot be 'both'"),
        (["--runner-version=latest"], {}, "--runner-version cannot be 'latest'"),
        (["--ca-file=/etc/hosts"], {}, "cannot read a certificate in PEM from /etc/hosts"),
        (["--ca-file=/none"], {}, "cannot read a certificate in PEM from /none"),
        (["--unregister", "--only=build"], {}, "--unregister is for all runners"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, env, words):
    with pytest.raises(runner.Failed) as failed:
        runner.main(arguments, env)
    assert words in str(failed.value) and "\n" not in str(failed.value)


@pytest.mark.parametrize("arguments", [["--mtu=1400"], ["url"], ["--url"], ["--stat"]])
def test_an_option_that_there_is_not_ends_with_the_help(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        runner.main(arguments, {})
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("Usage: ")


def test_an_option_may_be_empty_and_a_proxy_have_either_spelling():
    env = {"HTTP_PROXY": "http://p", "no_proxy": "x", "IMAGE_PREFIX": ""}
    said = runner.parse(["--runner-version=", "--url", "https://g.test/gitlab/"], env)
    assert said == {
        "runner_version": "",
        "url": "https://g.test/gitlab",
        "http_proxy": "http://p",
        "no_proxy": "x",
        "image_prefix": "",
    }


def test_a_file_from_windows_is_read(tmp_path):
    (tmp_path / "token").write_bytes("\ufeffglpat-x\r\n".encode())
    env = {"GITLAB_TOKEN_FILE": str(tmp_path / "token")}
    assert runner.credential(env, "GITLAB_TOKEN") == "glpat-x"
    pem = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"
    (tmp_path / "ca").write_bytes(("\ufeffsubject\n" + pem * 2).replace("\n", "\r\n").encode())
    assert runner.certificates(tmp_path / "ca") == pem * 2


# --- Docker


@contextlib.contextmanager
def engine(tmp_path, **answers):
    """Serve what an engine says, by path; yield the environment that leads to it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.command, self.path, dict(self.headers)))
            status, text = answers.get(self.path.partition("?")[0], (404, '{"message": "no"}'))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_):
            pass

        def address_string(self):
            return "socket"

    asked = []
    answers = {"/version": (200, json.dumps({"Version": "29.7.2"})), **answers}
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "socket"), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield {"DOCKER_HOST": f"unix://{tmp_path}/socket"}, asked
        server.shutdown()


@pytest.mark.parametrize(
    "version, words",
    [
        ({"Version": "24.0.7"}, "Docker 24.0.7 is too old (jobs need 25 or later)"),
        ({"Version": "5.4.2", "Components": [{"Name": "Podman Engine"}]}, "this is Podman"),
    ],
)
def test_an_engine_that_jobs_cannot_use_is_named(tmp_path, version, words):
    with engine(tmp_path, **{"/version": (200, json.dumps(version))}) as (env, _):
        with pytest.raises(runner.Failed, match=words.replace("(", r"\(")[:-1]):
            runner.Docker(env, "ci-runner")


def test_an_error_of_docker_is_told_in_its_words(tmp_path):
    answers = {"/x": (500, '{"message": "disk on fire"}')}
    with engine(tmp_path, **answers) as (env, _):
        docker = runner.Docker(env, "ci-runner")
        assert docker.ask("GET", "/none") is None
        for method, path, words in (("GET", "/x", "disk on fire"), ("POST", "/none", "no")):
            with pytest.raises(runner.Failed, match=words):
                docker.ask(method, path)


def test_a_pull_that_fails_says_why_although_docker_answers_200(tmp_path):
    lines = '{"status": "Pulling"}\n{"errorDetail": {}, "error": "toomanyrequests"}\n'
    with engine(tmp_path, **{"/images/create": (200, lines)}) as (env, asked):
        auths = {"mirror.test": {"auth": base64.b64encode(b"me:pa:ss").decode()}}
        with pytest.raises(runner.Failed, match="cannot pull mirror.test/x:1: toomanyrequests"):
            runner.Docker(env, "ci-runner").pull("mirror.test/x:1", auths)
    login = json.loads(base64.urlsafe_b64decode(asked[-1][2]["X-Registry-Auth"]))
    assert login == {"username": "me", "password": "pa:ss"}


@pytest.mark.parametrize("kind", ["container", "volume"])
def test_what_somebody_else_has_of_that_name_is_refused(kind):
    found = {"container": {"Config": {"Labels": {}}}, "volume": {"Labels": None}}[kind]
    path = {"container": "/containers/ci-runner/json", "volume": "/volumes/ci-runner"}[kind]
    with pytest.raises(runner.Failed, match=f"the {kind} ci-runner is somebody else's"):
        runner.Container(FakeDocker(**{path: found}), "ci-runner")


def test_a_container_that_does_not_start_is_removed_again_and_the_old_one_is_back():
    start = "/containers/ci-runner/start"
    old = {"Id": "old", "HostConfig": {"Binds": []}}
    old["Config"] = {"Image": "i", "Env": [], "Labels": {"register-runner": "x"}}
    for found in (None, old):
        docker = FakeDocker(**{start: runner.Failed("port is allocated")})
        container = runner.Container(docker, "ci-runner")
        container.found = found
        docker.answers["/containers/ci-runner/json"] = {"Id": "new", "State": {}}
        with pytest.raises(runner.Failed, match="cannot start the container ci-runner: port"):
            container.start("image", [])
        del docker.answers[start], docker.asked[:]
        container.put_back(found, {"ci-runner": None}, {})
        asked = [(method, path.partition("?")[0]) for method, path, _ in docker.asked]
        assert asked[0] == ("DELETE", "/containers/ci-runner")
        assert asked[-1] == ("DELETE", "/volumes/ci-runner")
        assert (("POST", start) in asked) == bool(found)


# --- GitLab


@pytest.fixture
def server():
    gitlab.state.update(runners={}, requests=[], legacy=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), gitlab.Handler) as server:
        server.daemon_threads = False  # its end waits for a request that a test has given up
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


def make(url, project="17", access="glpat-create", legacy="", seconds=5):
    it = runner.GitLab(url, "", "r_1", seconds)
    return it.make("build", "host build", project, access, legacy)


@pytest.mark.parametrize(
    "about, words",
    [
        ({"access": "glpat-unknown"}, "GitLab answers 401: .*wrong, or has expired"),
        ({"access": "glpat-without"}, "GitLab answers 403: .*needs the scope create_runner"),
        ({"access": "glpat-guest"}, "GitLab answers 403: .*the role Maintainer"),
        ({"access": "", "legacy": "GR1348941wrong"}, "GitLab answers 403"),
        ({"project": "18"}, "GitLab answers 400: .*is --project the number of a project of"),
        ({"path": "/fault/500"}, "GitLab answers 500: .*the address that the browser shows"),
        ({"path": "/fault/422"}, "GitLab answers 422: "),
        ({"path": "/fault/cut"}, "GitLab answers nothing: Remote end closed"),
        ({"path": "/fault/slow:1", "seconds": 0.2}, "nothing: timed out .*if it timed out: Set"),
        ({"path": "/legacy/off", "access": "", "legacy": "x"}, "410: .*no registration tokens any"),
        ({"url": "http://nowhere.invalid"}, "nothing: .*in DNS?"),
        ({"url": "http://127.0.0.1:9"}, "nothing: .*Connection refused"),
        ({"url": "http://[::1]:9/gitlab"}, "nothing: .*(refused|assign)"),
        ({"scheme": "https"}, "nothing: .*SSL"),
    ],
)
def test_what_gitlab_refuses_is_told_with_its_reason_and_a_remedy(server, about, words):
    about = dict(about)
    if path := about.pop("path", ""):
        put = urllib.request.Request(server.url + path, method="PUT")
        urllib.request.urlopen(put).close()
    url = about.pop("url", server.url.replace("http", about.pop("scheme", "http")))
    with pytest.raises(runner.Failed, match=f"making the build runner: .*{words}") as failed:
        make(url, **about)
    assert "\n" not in str(failed.value)


def test_a_server_that_redirects_is_not_followed_but_named():
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(301)
            self.send_header("Location", f"https://gitlab.test{self.path}")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(runner.Failed, match="answers 301: see https://gitlab.test/api.*--url"):
            make(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def certificate(path, expired=False):
    """Return the context of a server with a certificate of its own, and that certificate."""
    days = "-days 1"
    if expired:  # older versions of openssl take days before today, newer ones dates
        help = subprocess.run(["openssl", "x509", "-help"], capture_output=True, text=True)
        dates = "-not_before 20200101000000Z -not_after 20200102000000Z"
        days = dates if "-not_after" in help.stdout + help.stderr else "-days -1"
    key, asked, made = (path / name for name in ("key", "asked", "made"))
    (path / "names").write_text("subjectAltName=IP:127.0.0.1")
    for command in (
        f"req -newkey rsa:2048 -nodes -subj /CN=gitlab -keyout {key} -out {asked}",
        f"x509 -req -in {asked} -signkey {key} {days} -out {made} -extfile {path}/names",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context, made.read_text()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_a_private_ca_is_trusted_when_it_is_given_and_one_that_has_expired_is_named(
    server, tmp_path
):
    context, ca = certificate(tmp_path)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http", "https")
    with pytest.raises(runner.Failed, match="self-signed certificate.*--ca-file?"):
        make(url)
    it = runner.GitLab(url, ca, "r_1")
    token = it.make("build", "host build", "17", "glpat-create", "")
    assert it.accepts("build", token) and not it.accepts("build", "glrt-other")
    context, ca = certificate(tmp_path, expired=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), gitlab.Handler) as other:
        other.socket = context.wrap_socket(other.socket, server_side=True)
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        expired = runner.GitLab(f"https://127.0.0.1:{other.server_port}", ca, "r_1")
        with pytest.raises(runner.Failed, match="certificate has expired"):
            expired.make("build", "host build", "17", "glpat-create", "")
        other.shutdown()


def test_a_runner_has_the_least_power_that_gitlab_can_give_it(server):
    it = runner.GitLab(server.url, "", "r_1")
    for role in runner.ROLES:
        it.make(role, f"host {role}", "17", "glpat-create", "")
    build, deploy, review = gitlab.state["runners"].values()
    assert (review["run_untagged"], review["tag_list"]) == ("false", "review")
    assert (build["run_untagged"], build["access_level"]) == ("true", "not_protected")
    assert (deploy["run_untagged"], deploy["access_level"]) == ("false", "ref_protected")
    assert deploy["tag_list"] == "deploy" and build["locked"] == deploy["locked"] == "true"


def test_a_runner_that_somebody_else_made_loses_this_machine_only(server, capsys):
    it = runner.GitLab(server.url, "", "r_1")
    tokens = [it.make(role, role, "17", "glpat-create", "") for role in runner.USUAL]
    assert all(it.accepts("a", token) for token in tokens)
    it.delete("build", tokens[0], made=True)
    it.delete("deploy", tokens[1], made=False)
    [left] = gitlab.state["runners"].values()
    assert left["token"] == tokens[1] and left["managers"] == []
    it.delete("build", tokens[0], made=True)  # it is gone already
    assert capsys.readouterr().out == ""
    runner.GitLab("http://127.0.0.1:9", "", "r_1").delete("build", "x", made=True)
    assert (
        "delete the build runner in Settings > CI/CD > Runners (GitLab" in capsys.readouterr().out
    )


# --- What is remembered, and what is written


def configured(options=None, tokens=TOKENS, ca=""):
    text = runner.config({**OPTIONS, **(options or {})}, tokens, "name", "/a.sock", ca)
    config = tomllib.loads(text)
    return config, {it["name"].split()[-1]: it for it in config["runners"]}


def test_each_runner_has_what_its_jobs_need_and_no_more():
    config, runners = configured()
    assert config["concurrent"] > 2 and config["check_interval"] == 1
    build, deploy = runners["build"]["docker"], runners["deploy"]["docker"]
    assert not build["privileged"] and build["services_privileged"]
    assert build["allowed_privileged_services"] == ["**/docker:*-dind"]
    assert "/a.sock" not in str(build) and build["volumes"][-1] == "/certs.d:/etc/docker/certs.d:ro"
    assert not deploy["privileged"] and "services_privileged" not in deploy
    assert deploy["allowed_services"] == ["none"] and deploy["disable_cache"]
    assert deploy["volumes"] == ["/a.sock:/var/run/docker.sock"]
    assert configured(tokens={"review": "glrt-r"})[1]["review"]["docker"] == deploy
    assert all(it["environment"] == [] and "tls-ca-file" not in it for it in runners.values())


def test_mirror_login_proxies_and_ca_reach_both_runners():
    options = {
        "image_prefix": "m.test:5000/hub",
        "runner_version": "18.11.2",
        "https_proxy": "http://me:pass%25@p:3128",
        "no_proxy": ".test",
        "auths": {"m.test:5000": {"auth": "bWU6eA=="}},
        "description": "schöner Host",
    }
    for it in configured(options, ca="PEM")[1].values():
        environment = dict(line.split("=", 1) for line in it["environment"])
        assert environment["https_proxy"] == environment["HTTPS_PROXY"] == options["https_proxy"]
        assert environment["no_proxy"] == ".test,localhost,127.0.0.1,docker,app"
        assert json.loads(environment["DOCKER_AUTH_CONFIG"]) == {"auths": options["auths"]}
        assert "http_proxy" not in environment
        assert it["name"].startswith("schöner Host ")
        assert it["tls-ca-file"] == "/etc/gitlab-runner/certs/ca.crt"
        assert it["docker"]["image"].startswith("m.test:5000/hub/docker:")
        assert it["docker"]["helper_image"].startswith("m.test:5000/hub/gitlab/gitlab-runner-hel")
        assert it["docker"]["helper_image"].endswith("-v18.11.2")


def test_what_is_written_is_what_is_read_again():
    options = {**OPTIONS, "made": ["build"], "project": "17"}
    for tokens in (TOKENS, {"deploy": "t"}, {}):
        files = {
            "options": json.dumps(options),
            "config.toml": runner.config(options, tokens, "name", "/a.sock", ""),
        }
        assert runner.remembered(files) == (options, tokens)
    assert runner.remembered({}) == ({"made": []}, {})


def test_dind_has_the_registries_of_the_host_and_its_mtu_for_every_network():
    assert json.loads(runner.daemon(INFO, 1400)) == {
        "mtu": 1400,
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1400"}},
        "registry-mirrors": ["https://m.test/", "http://n.test:5001/"],
        "insecure-registries": ["registry.test:5000", "10.1.0.0/16", "n.test:5001"],
    }


# --- The host

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
lo\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


def test_the_routes_of_the_kernel_are_read(tmp_path):
    (tmp_path / "route").write_text(ROUTES)
    assert runner.routes(tmp_path / "route") == [
        ("lo", ipaddress.ip_network("0.0.0.0/0")),
        ("eth0", ipaddress.ip_network("10.0.0.0/24")),
        ("docker0", ipaddress.ip_network("172.17.0.0/16")),
    ]


@pytest.mark.parametrize(
    "size, interface, expected", [(None, "lo", 1500), ("1400", "lo", 1400), ("9000", None, 9000)]
)
def test_the_mtu_is_the_lowest_on_the_way_out(monkeypatch, size, interface, expected):
    found = [(interface, ipaddress.ip_network("0.0.0.0/0"))] if interface else []  # lo has 65536
    monkeypatch.setattr(runner, "routes", lambda: found)
    options = {"com.docker.network.driver.mtu": size} if size else {}
    assert runner.mtu_of({"Options": options}) == expected


def initiated(docker):
    return [body for method, path, body in docker.asked if path == "/swarm/init"]


@pytest.mark.parametrize(
    "taken, pool",
    [
        ([], "10.0.0.0/8"),
        (["10.0.0.0/24"], "10.201.0.0/16"),
        (["10.0.0.0/8", "172.16.0.0/12"], "192.168.192.0/18"),
    ],
)
def test_the_networks_of_a_new_swarm_are_none_of_the_host(monkeypatch, taken, pool):
    routes = [("eth0", ipaddress.ip_network(it)) for it in ("0.0.0.0/0", *taken)]
    monkeypatch.setattr(runner, "routes", lambda: routes)
    docker = FakeDocker(**{"/info": {"Swarm": {"LocalNodeState": "inactive"}}})
    assert runner.make_swarm(docker, "ci-runner")
    assert initiated(docker)[0]["DefaultAddrPool"] == [pool]
    assert initiated(docker)[0]["Spec"] == {"Labels": {"register-runner": "ci-runner"}}


def test_a_swarm_that_is_there_or_comes_up_in_between_is_not_ours():
    docker = FakeDocker()
    assert runner.make_swarm(docker, "ci-runner") is False and docker.asked == []
    states = [{"Swarm": {"LocalNodeState": "inactive"}}, INFO]

    class Late(FakeDocker):
        def ask(self, method, path, body=None):
            return states.pop(0) if path == "/info" else super().ask(method, path, body)

    docker = Late(**{"/swarm/init": runner.Failed("This node is already part of a swarm.")})
    assert runner.make_swarm(docker, "ci-runner") is False


@pytest.mark.parametrize(
    "answers, left",
    [
        ({"/nodes": [ours()]}, True),
        ({"/swarm": ours()}, True),
        ({"/swarm": ours("other")}, False),
        ({"/nodes": [ours("other")]}, False),
        ({"/nodes": [NODE]}, False),
        ({"/nodes": [ours(), NODE]}, False),
        *(({"/nodes": [ours()], f"/{kind}": [{}]}, False) for kind in ("services", "configs")),
        ({"/nodes": [ours()], "/secrets": [{}]}, False),
        ({"/nodes": [ours()], "/networks": [{"Scope": "swarm"}] * 2}, False),
        ({"/nodes": [ours()], "/networks": [{"Scope": "swarm"}, {"Scope": "local"}]}, True),
        ({"/info": {"Swarm": {"ControlAvailable": False}}}, False),
    ],
)
def test_only_a_swarm_of_ours_that_is_not_in_use_is_ended(answers, left):
    docker = FakeDocker(**{"/networks": [], **answers})
    runner.leave_swarm(docker, "ci-runner")
    assert bool(docker.asked) == left


# --- The story


def test_what_was_done_is_undone_in_reverse_whatever_fails(capsys):
    done = []

    def fails():
        raise runner.Failed("no")

    with pytest.raises(KeyboardInterrupt), runner.undone_on_failure() as undo:
        undo.append((done.append, 1))
        undo.append((fails,))
        undo.append((done.append, 2))
        raise KeyboardInterrupt
    assert done == [2, 1] and "not undone: no" in capsys.readouterr().out
    with runner.undone_on_failure() as undo:
        undo.append((done.append, 3))
    assert done == [2, 1]


@pytest.fixture(autouse=True)
def signals():
    """Keep the handlers of signals as they are: undoing ignores signals."""
    before = {number: signal.getsignal(number) for number in runner.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_waits_while_gitlab_makes_a_runner():
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append("signal"))
    with runner.uninterrupted():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        seen.append("made")
    assert seen == ["made", "signal"]


def test_the_second_of_two_calls_waits_for_the_first(capsys):
    first, got = runner.one_at_a_time(), []
    second = threading.Thread(target=lambda: got.append(runner.one_at_a_time()))
    second.start()
    await_true(lambda: "Waiting for another call" in capsys.readouterr().out)
    assert got == []
    first.close()
    second.join(5)
    got.pop().close()
