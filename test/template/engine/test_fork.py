"""What README.md, Make it yours, tells a fork to do, done in a copy.

Four pushes: one service; with others; with HTTPS; with another framework. What fails is deployed in
the host itself. What else forks do: test_fork_edits.py. Slow: the copy has a host of its own, which
begins with nothing.
"""

import contextlib
import json
import re
import socket
import ssl
import subprocess
import sys

import pytest
import requests

import pieces
from pipelines import REGISTRY, Pipeline
from support import await_true
from trial import Trial

HANDLER = """
class DatabaseHandler(Handler):
    async def get(self):
        secret = "/run/secrets/DATABASE_PASSWORD"
        password = open(secret).read().strip() if os.path.exists(secret) else None
        async with await psycopg.AsyncConnection.connect(
            host=os.environ["APP_DATABASE_HOST"], user="postgres", password=password
        ) as connection:
            query = "SELECT current_setting('server_version') FROM migrations"
            cursor = await connection.execute(query)
            self.write((await cursor.fetchone())[0])


class TextHandler("""
DATABASE_TEST = """import runpy

import pytest
import requests


@pytest.fixture(scope="session")
def tables():
    runpy.run_path("migrate.py")


def test_the_database_answers(app_url, tables):
    assert requests.get(app_url + "/database", timeout=9).text.startswith("18.")
"""


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """The copy, with one service, after its first push: see `push`, `commit`, `run`."""
    fork = Pipeline(tmp_path_factory.mktemp("fork") / "checkout")
    fork.first = pieces.do(
        fork,
        *(pieces.first, pieces.branch, pieces.module, pieces.directory, pieces.package),
        *(pieces.test, pieces.endpoint, pieces.staging, pieces.container_port),
    )
    fork.first_push = fork.push()
    fork.first_image = fork.image
    yield fork
    fork.down()


def results(push):
    table = r"^(build|test|template|deploy|staging) +(passed|failed|not run)"
    return dict(re.findall(table, push.stdout, re.MULTILINE))


def test_another_branch_another_port_and_staging_deploy_the_release_twice(fork):
    passed = dict.fromkeys(["build", "test", "deploy", "staging"], "passed")
    assert results(fork.first_push) == passed, fork.first_push.stdout
    assert requests.get(fork.url, timeout=10).headers["X-Release"] == fork.first
    assert fork.answering(20300) == fork.first
    said = f"Release {fork.first} answers at"
    staging = f"{said} http://127.0.0.1:20300/test (staging, only inside the container)\n"
    assert f"\n{said} {fork.url}\n{staging}" in fork.first_push.stdout, fork.first_push.stdout
    assert "as a push to main\n" in fork.first_push.stdout
    port = "--format={{(index .Endpoint.Ports 0).TargetPort}}"
    assert fork.docker("service", "inspect", port, "app_server") == "9000\n"


def test_a_package_and_a_test_that_were_added_are_used(fork):
    junit = (fork.path / ".pipeline/source/reports/junit.xml").read_text()
    assert "test_the_new_package_is_there" in junit
    assert 'failures="0"' in junit
    code = "import itsdangerous, os; print(os.path.exists(itsdangerous.__cached__))"
    compiled = fork.docker("run", "--rm", fork.first_image, "python", "-c", code)
    assert compiled.endswith("True\n")


def test_a_module_a_directory_and_an_endpoint_are_in_the_release(fork):
    code = "import store, shop; print(store.ORDERS + shop.ORDERS)"
    assert fork.docker("run", "--rm", fork.first_image, "python", "-c", code) == "[]\n"
    assert requests.get(fork.url.replace("/test", "/orders"), timeout=10).json() == {"orders": []}


def add_services(fork):
    pieces.do(fork, pieces.worker, pieces.migration, pieces.database, pieces.database_for_tests)
    fork.edit(".gitlab-ci.yml", "8744", "9000")
    fork.append("requirements.txt", "psycopg[binary]==3.3.9\n")
    fork.edit("server.py", "\nclass TextHandler(", HANDLER)
    fork.edit("server.py", "\nfrom tornado.httpserver", "\nimport psycopg\nfrom tornado.httpserver")
    route = '("/test", TextHandler),'
    fork.edit("server.py", route, f'{route} ("/database", DatabaseHandler),')
    (fork.path / "test/test_database.py").write_text(DATABASE_TEST)
    fork.run(sys.executable, "-m", "ruff", "format", "--quiet")


class Stack(Trial):
    """The stack `app` after the second push, with its `first` release; deploys variants of it."""

    def __init__(self, fork, password):
        add_services(fork)
        self.first = fork.commit("Add services")
        self.push = fork.push(
            APP_DATABASE_HOST="database", APP_SECRET_DATABASE_PASSWORD=str(password)
        )
        self.image = fork.image
        fork.host("sh", "-c", "cat > /tmp/password", input=password.read_text())
        mode = "{{(index .Spec.EndpointSpec.Ports 0).PublishMode}}"
        self.env = {
            "DEPLOY_PORT": str(fork.port),
            "DEPLOY_ADDRESS": "127.0.0.1",
            "DEPLOY_PUBLISH_MODE": fork.docker(
                "service", "inspect", "-f", mode, "app_server"
            ).strip(),
            "APP_DATABASE_HOST": "database",
            "APP_SECRET_DATABASE_PASSWORD": "/tmp/password",
        }
        super().__init__(fork, {})

    def variant(self, name, line="", image=None):
        """Push a variant of a release, with a line more in its Dockerfile; return the image."""
        tag = f"{REGISTRY}/group/project:{name}"
        dockerfile = (
            f"FROM {image or self.image}\n"
            f"ENV SERVICE_RELEASE={name}\n"
            f"LABEL org.opencontainers.image.revision={name}\n"
            f"{line}\n"
        )
        self.pipeline.docker("build", "--quiet", "--tag", tag, "-", input=dockerfile)
        self.pipeline.docker("push", "--quiet", tag)
        digest = "--format={{index .RepoDigests 0}}"
        return self.pipeline.docker("inspect", digest, tag).strip()

    def running(self, *names):
        """Return the tasks of services."""
        names = [f"app_{name}" for name in names]
        ps = ("service", "ps", "--quiet", "--no-trunc", "--filter=desired-state=running", *names)
        return sorted(self.pipeline.docker(*ps).split())

    def images(self, *names):
        """Return the images of the tasks of services."""
        names = [f"app_{name}" for name in names]
        ps = ("service", "ps", "--no-trunc", "--filter=desired-state=running", *names)
        return set(self.pipeline.docker(*ps, "--format={{.Image}}").split())

    def migrated(self):
        """Return by which releases the database was migrated, in order."""
        query = "SELECT release FROM migrations ORDER BY id"
        psql = ("psql", "--username=postgres", "-Atc", query)
        return self.in_service(*psql, service="app_database").split()


@pytest.fixture(scope="module")
def stack(fork, tmp_path_factory):
    """The fork after its second push, with a worker, a migration and a database."""
    password = tmp_path_factory.mktemp("secret") / "password"
    password.write_text("pa55word\n")
    return Stack(fork, password)


def database_version(fork):
    return requests.get(fork.url.replace("/test", "/database"), timeout=10)


def test_tests_and_services_reach_a_database(fork, stack):
    assert set(results(stack.push).values()) == {"passed"}, stack.push.stdout
    assert "pa55word" not in stack.push.stdout
    answer = database_version(fork)
    assert (answer.text[:3], answer.headers["X-Release"]) == ("18.", stack.first)
    assert stack.images("server", "worker") == {stack.image}
    assert stack.migrated() == [stack.first]


def test_on_the_desk_one_command_starts_the_database_for_the_tests(fork, stack):
    """Slow: scripts/test installs the packages."""
    [desk] = [text for text in pieces.BLOCKS if text.startswith("docker run")]
    # Another program may have the port at 127.0.0.1.
    start, test = desk.replace("127.0.0.1", "127.0.0.72").replace("\\\n", "").splitlines()
    container = fork.run("sh", "-ec", start).stdout.split()[-1]
    try:
        ready = ("docker", "exec", container, "pg_isready", "--host=localhost")
        await_true(lambda: fork.run(*ready, check=False).returncode == 0, seconds=60)
        tested = fork.run("sh", "-euc", test, check=False)
        assert tested.returncode == 0 and "test_database.py" in tested.stdout, tested.stdout
    finally:
        fork.run("docker", "rm", "--force", "--volumes", container)


def test_an_update_migrates_once_and_leaves_the_database_alone(stack):
    database = stack.running("database")
    image = stack.variant("next")
    update = stack.deploy(image)
    assert update.status == 0, update.output
    assert stack.images("server", "worker") == {image}
    back = stack.run("--rollback")
    assert back.status == 0, back.output
    assert stack.images("server", "worker") == {stack.image}
    assert stack.migrated() == [stack.first, "next"]
    assert stack.running("database") == database


def test_a_worker_that_needs_the_database_survives_its_change_and_the_way_back(fork, stack):
    connect = "import socket\nsocket.create_connection(('database', 5432), timeout=5)\n"
    worker = f"COPY <<PY /app/worker.py\n{connect}{pieces.WORKER}PY"
    text = fork.host("cat", "/tmp/trial/scripts/stack.yml")
    environment = "environment: {POSTGRES_PASSWORD_FILE:"
    assert environment in text
    for number in range(2):
        changed = environment.replace("{", f"{{CHANGED: '{number}', ")
        stack.declare(text.replace(environment, changed))
        deployed = stack.deploy(stack.variant(f"connects{number}", worker))
        assert deployed.status == 0, deployed.output
    for _ in range(2):
        back = stack.run("--rollback")
        assert back.status == 0, back.output
    stack.declare(text)
    assert stack.images("server", "worker") == {stack.image}


def test_a_worker_that_crashes_takes_the_service_back_with_it(stack):
    before = stack.migrated()
    crash = "COPY <<PY /app/worker.py\nraise SystemExit('no work')\nPY"
    failed = stack.deploy(stack.variant("crash", crash))
    assert "| no work\n" in failed.output, failed.output
    assert f"(release {stack.first} answers at " in failed.reason()
    assert stack.images("server", "worker") == {stack.image}
    assert stack.migrated() == [*before, "crash"]


def test_a_migration_that_fails_touches_nothing(stack):
    before = stack.running("server", "worker", "database")
    line = "COPY <<PY /app/migrate.py\nraise KeyError('no such column')\nPY"
    failed = stack.deploy(stack.variant("unmigrated", line))
    assert failed.reason().startswith("deploy: the migration failed (")
    assert "| Traceback" in failed.output and "| KeyError: 'no such column'" in failed.output
    assert f"(release {stack.first} answers at " in failed.reason()
    assert stack.running("server", "worker", "database") == before


def test_a_job_that_is_cancelled_while_it_migrates_touches_nothing(stack):
    before = stack.running("server", "worker", "database")
    line = "COPY <<PY /app/migrate.py\nimport time\ntime.sleep(99)\nPY"
    process = stack.start(stack.variant("slow", line))
    migrating = ("ps", "--quiet", "--filter=name=app_migration")
    await_true(lambda: stack.pipeline.docker(*migrating), seconds=60)
    stack.kill("TERM")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and f"cancelled (release {stack.first} answers" in output, output
    assert stack.running("server", "worker", "database") == before
    await_true(lambda: not stack.pipeline.docker(*migrating), seconds=30)


def on_the_host(fork, words, **options):
    """Run the line of README.md, "On the host", that has these words; without a terminal."""
    lines = pieces.ON_THE_HOST.splitlines()
    [line] = [line for line in lines if words in line]
    [database] = [line for line in lines if line.startswith("db=")]
    code = f"cd /tmp; {database}; {line.replace(' -it ', ' -i ')}"
    return fork.host("sh", "-ec", code, **options)


def test_what_an_operator_does_on_the_host_works_as_the_page_says(fork, stack):
    server = stack.running("server")
    assert "app_server.1" in on_the_host(fork, "service ps")
    assert on_the_host(fork, "exec -it", input="cat server.py\n").startswith('"""')
    line = "timeout 5 docker service logs --follow app_server"
    assert line.partition(" 5 ")[2] in pieces.ON_THE_HOST
    assert "listening on port 9000" in fork.host("sh", "-c", line, check=False)
    on_the_host(fork, "--force")
    assert not set(stack.running("server")) & set(server)
    await_true(lambda: fork.answering(fork.port) == stack.first, seconds=60)

    assert "app_database.1" in on_the_host(fork, "docker stats")

    before = stack.migrated()
    on_the_host(fork, "pg_dump")
    psql = ("psql", "--username=postgres", "-qc", "DROP TABLE migrations")
    stack.in_service(*psql, service="app_database")
    on_the_host(fork, "# restore")
    assert stack.migrated() == before


def test_the_password_of_the_database_is_changed_as_the_page_says(fork, stack):
    psql = ("psql", "--username=postgres", "-qc", "ALTER USER postgres PASSWORD 'other'")
    stack.in_service(*psql, service="app_database")
    fork.host("sh", "-c", "printf other > /tmp/other")
    stack.env["APP_SECRET_DATABASE_PASSWORD"] = "/tmp/other"
    changed = stack.deploy(stack.image)
    assert changed.status == 0, changed.output
    assert database_version(fork).ok


def test_service_data_and_registry_are_back_after_a_restart_of_the_host(fork, stack):
    before = stack.migrated()
    fork.run("docker", "restart", fork.container())

    def answers():
        try:
            return database_version(fork).ok
        except requests.RequestException:
            return False

    await_true(answers, seconds=90)
    assert stack.images("server", "worker") == {stack.image}
    assert stack.migrated() == before
    assert fork.manifest(stack.image)


SECURE = {
    "DEPLOY_STACK": "secure",
    "DEPLOY_PUBLISH_MODE": "ingress",
    "DEPLOY_ADDRESS": "https://{stack}.test.example.org",
    "DEPLOY_PORT": "20301",
    "DEPLOY_PORTS": "20310-20319",
}
OTHER = {**SECURE, "DEPLOY_STACK": "other", "DEPLOY_PORT": "20302"}


@contextlib.contextmanager
def loaded(fork):
    """Put load on `secure`; the end of the block fills `result`, and fails if a request did."""
    run = ("run", "--rm", "--interactive", "--network=host", "--volume=/tmp/trial:/trial:ro")
    load = ("python", "/trial/test/load.py", "https://secure.test.example.org/test", "0.01")
    process = subprocess.Popen(
        ["docker", "exec", "--interactive", fork.container(), "docker", *run]
        + ["--env=REQUESTS_CA_BUNDLE=/trial/root.crt", fork.test_image, *load],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == "loaded\n"
    result = {}
    try:
        yield result
    finally:
        result.update(json.loads(process.communicate(timeout=60)[0]))
    assert result["failed"] == []


class Proxy:
    """The page's proxy, on the fork's host; its `certificate` is that of its authority."""

    def __init__(self, fork):
        self.fork = fork
        network, deploy = pieces.block("docker network create").splitlines()
        if network.rpartition(" ")[2] not in fork.docker("network", "ls"):
            fork.host("sh", "-euc", network)
        text = (fork.path / "scripts/pieces/proxy.yml").read_text()
        fork.host("sh", "-euc", f"cd /tmp; cat > proxy.yml; {deploy}", input=text)
        root = "/data/caddy/pki/authorities/local/root.crt"
        caddy = "docker exec $(docker ps --quiet --filter=name=proxy_caddy)"
        await_true(lambda: fork.host("sh", "-c", f"{caddy} ls {root}", check=False) == f"{root}\n")
        self.certificate = fork.host("sh", "-euc", f"{caddy} cat {root}")

    def ask(self, name, query):
        """Return the address of this client, and the head of the answer."""
        address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        show = ("docker", "inspect", "-f", address, self.fork.container())
        host = self.fork.run(*show).stdout.strip()
        context = ssl.create_default_context(cadata=self.certificate)
        with socket.create_connection((host, 443), timeout=10) as plain:
            client = plain.getsockname()[0]
            with context.wrap_socket(plain, server_hostname=name) as connection:
                ask = f"GET /test?{query} HTTP/1.0\r\nHost: {name}\r\n\r\n"
                connection.sendall(ask.encode())
                return client, connection.recv(9999).decode().lower()

    def logged(self, query):
        """Return the requests with that query, as the proxy logs them."""
        log = self.fork.docker("service", "logs", "--raw", "proxy_caddy").splitlines()
        return [json.loads(line)["request"] for line in log if f"/test?{query}" in line]


def test_one_proxy_has_https_for_all_stacks_loses_no_request_and_knows_the_clients(fork, stack):
    fork.run("git", "checkout", "--quiet", fork.first)
    fork.secure = pieces.do(fork, pieces.https)
    push = fork.push(DEPLOY_ADDRESS=SECURE["DEPLOY_ADDRESS"])
    assert set(results(push).values()) == {"passed"}, push.stdout
    for name in ("app", "staging"):
        assert f" answers at https://{name}.test.example.org/test" in push.stdout, push.stdout
    fork.put_source("/tmp/trial")  # the host is another container now, for its port 443
    fork.host("sh", "-c", "printf other > /tmp/other")
    proxy = Proxy(fork)
    fork.run("git", "checkout", "--quiet", "-")
    beside = f"secure-{stack.first[:8]}"
    names = [f"{name}.test.example.org" for name in ("secure", "other", beside)]
    fork.host("sh", "-c", f"echo 127.0.0.1 {' '.join(names)} >> /etc/hosts")
    for name, image, env in (
        (names[0], fork.first_image, SECURE),
        (names[1], stack.image, OTHER),
        (names[2], stack.image, {**SECURE, "DEPLOY_STRATEGY": "beside"}),
    ):
        deployed = stack.deploy(image, **env)
        said = f"answers at https://{name}/test\n"
        assert deployed.status == 0 and said in deployed.output, deployed.output
        client, answer = proxy.ask(name, name)
        release = {fork.first_image: fork.first, stack.image: stack.first}[image]
        assert f"x-release: {release}" in answer
        [request] = await_true(lambda it=name: proxy.logged(it))
        assert request["client_ip"] == client
    assert "502" in proxy.ask("nobody.test.example.org", "")[1].splitlines()[0]

    fork.host("sh", "-c", "cat > /tmp/trial/root.crt", input=proxy.certificate)
    with loaded(fork) as result:
        for image in (stack.image, fork.first_image):
            update = stack.deploy(image, **SECURE)
            assert update.status == 0, update.output
            assert stack.deploy(image, **OTHER).status == 0
    assert set(result["answered"]) == {fork.first, stack.first}


def test_a_stack_that_is_removed_leaves_its_volumes(fork, stack):
    on_the_host(fork, "stack rm")
    await_true(lambda: not fork.docker("ps", "--quiet", "--filter=name=app_"), seconds=60)
    assert "app_database" in fork.docker("volume", "ls", "--quiet").split()


def test_a_service_with_another_framework_is_deployed_and_loses_no_request(fork, stack):
    """Slow: its environment is another one."""
    fork.run("git", "checkout", "--quiet", fork.secure)
    pieces.do(fork, pieces.another_framework)
    fork.edit("server.py", "8744", "9000")
    commit = fork.commit("Keep the container port")
    push = fork.push(DEPLOY_ADDRESS=SECURE["DEPLOY_ADDRESS"])
    passed = dict.fromkeys(["build", "test", "deploy", "staging"], "passed")
    assert results(push) == passed, push.stdout
    answer = requests.get(fork.url, timeout=10)
    assert (answer.text, answer.headers["X-Release"]) == ("test gitlab_cicd api success", commit)
    assert "Uvicorn running" in fork.docker("service", "logs", "app_server")

    # Behind the proxy, as it was deployed above.
    newer = stack.variant("newer", image=fork.image)
    with loaded(fork) as result:
        for image in (fork.image, newer):
            update = stack.deploy(image, **SECURE)
            assert update.status == 0, update.output
    assert set(result["answered"]) >= {commit, "newer"}
