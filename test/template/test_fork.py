"""What README.md, Make it yours, tells a fork to do, done in a copy.

Two pushes, the second with a database. What else forks do: test_fork_edits.py.
Slow: the copy has a host of its own, which begins with nothing.
"""

import re
import shutil
import ssl
import subprocess
import sys
import urllib.request

import pytest
import requests
from ruamel.yaml import YAML

from pipelines import Pipeline, blocks
from support import ROOT, await_true, free_port
from test_fork_edits import change_pipeline

pytestmark = pytest.mark.docker

HANDLER = """
class DatabaseHandler(Handler):
    async def get(self):
        secret = "/run/secrets/DATABASE_PASSWORD"
        password = open(secret).read() if os.path.exists(secret) else None
        async with await psycopg.AsyncConnection.connect(
            host=os.environ["APP_DATABASE_HOST"], user="postgres", password=password
        ) as connection:
            cursor = await connection.execute("SHOW server_version")
            self.write((await cursor.fetchone())[0])


class TextHandler("""
PACKAGE_TEST = """import itsdangerous
import requests


def test_the_new_package_is_there(app_url):
    assert itsdangerous.base64_encode(requests.get(app_url + "/test").content)
"""
DATABASE_TEST = """import requests


def test_the_database_answers(app_url):
    assert requests.get(app_url + "/database", timeout=9).text.startswith("18.")
"""


def block(kind, start):
    """Return the one block of the section that begins so."""
    section = (ROOT / "README.md").read_text().partition("## Make it yours")[2]
    found = [text for language, text in blocks(section) if language == kind]
    [text] = [text for text in found if text.startswith(start)]
    return text


def a_second_module(fork):
    (fork.path / "store.py").write_text("ORDERS = []\n")
    added = "import store\n\nORDERS = store.ORDERS\n"
    fork.edit("server.py", "\nRELEASE = os", f"\n{added}RELEASE = os")
    fork.edit("Dockerfile", "COPY --link server.py /app/", "COPY --link server.py store.py /app/")
    fork.edit("scripts/build", "chmod go=u-w server.py", "chmod go=u-w server.py store.py")


def a_package_and_a_test(fork):
    fork.append("requirements.txt", "itsdangerous==2.2.0\n")
    (fork.path / "test/test_package.py").write_text(PACKAGE_TEST)


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """The copy, with all but the database, after its first push: see `push`, `commit`, `run`."""
    fork = Pipeline(tmp_path_factory.mktemp("fork") / "checkout")
    shutil.rmtree(fork.path / "test/template")
    (fork.path / "README.zh-CN.md").unlink()
    (fork.path / "README.md").write_text("# My service\n")

    def change(content):
        del content["template"]
        content.update(YAML().load(block("yaml", "staging:")))

    change_pipeline(fork, change)
    a_second_module(fork)
    a_package_and_a_test(fork)
    fork.commit("Make it ours")
    fork.run("sh", "-euc", block("sh", "git grep"))
    fork.first = fork.commit("Rename")
    fork.first_push = fork.push()
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
    assert "as a push to main\n" in fork.first_push.stdout
    assert not fork.run("git", "grep", "mainx", check=False).stdout
    port = "--format={{(index .Endpoint.Ports 0).TargetPort}}"
    assert fork.docker("service", "inspect", port, "app") == "9000\n"


def test_a_package_and_a_test_that_were_added_are_used(fork):
    junit = (fork.path / ".pipeline/source/reports/junit.xml").read_text()
    assert "test_the_new_package_is_there" in junit
    assert 'failures="0"' in junit


def test_tests_and_service_reach_a_database(fork, tmp_path):
    fork.host("sh", "-euc", "printf pa55word > password.txt\n" + block("sh", "docker network"))

    def add_database(content):
        added = YAML().load(block("yaml", "services:"))
        content["test"]["services"] += added["services"]
        content["test"]["variables"].update(added["variables"])

    change_pipeline(fork, add_database)
    routes = '[("/test", TextHandler)'
    fork.edit("server.py", "\nclass TextHandler(", HANDLER)
    fork.edit("server.py", "\nfrom tornado.httpserver", "\nimport psycopg\nfrom tornado.httpserver")
    fork.append("requirements.txt", "psycopg[binary]==3.3.9\n")
    fork.edit("server.py", routes, routes + ', ("/database", DatabaseHandler)')
    (fork.path / "test/test_database.py").write_text(DATABASE_TEST)
    fork.run(sys.executable, "-m", "ruff", "format", "--quiet")
    commit = fork.commit("Add a database")
    password = tmp_path / "password"
    password.write_text("pa55word")
    run = fork.push(
        DEPLOY_NETWORK="data",
        APP_DATABASE_HOST="database",
        APP_SECRET_DATABASE_PASSWORD=str(password),
    )
    assert set(results(run).values()) == {"passed"}, run.stdout
    assert "pa55word" not in run.stdout
    url = fork.url.replace("/test", "/database")
    await_true(lambda: requests.get(url, timeout=10).ok, seconds=60)  # the database starts, too
    answer = requests.get(url, timeout=10)
    assert (answer.text[:3], answer.headers["X-Release"]) == ("18.", commit)


CERTIFICATE = "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout app.key -out app.crt".split()
NGINX = """pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
access_log off;
{server}}}
"""


@pytest.mark.lab
def test_nginx_serves_it_over_https(tmp_path, start_service):
    service, port = start_service(), free_port()
    openssl = ["openssl", *CERTIFICATE, "-subj", "/CN=app.example.com"]
    subprocess.run(openssl, cwd=tmp_path, check=True, capture_output=True)
    server = block("nginx", "server {").replace("listen 443", f"listen 127.0.0.1:{port}")
    server = server.replace("/etc/nginx/", f"{tmp_path}/")
    server = server.replace("127.0.0.1:20200", f"127.0.0.1:{service.port}")
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(NGINX.format(directory=tmp_path, server=server))
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    nginx = subprocess.Popen([program, "-c", configuration, "-g", "daemon off;"])
    context = ssl.create_default_context(cafile=tmp_path / "app.crt")
    context.check_hostname = False

    def ask():
        try:
            url = f"https://127.0.0.1:{port}/test"
            return urllib.request.urlopen(url, context=context, timeout=5)
        except urllib.error.URLError:
            return None

    try:
        answer = await_true(ask)
        assert answer.status == 200
        assert answer.headers["X-Release"] == "dev"
    finally:
        nginx.terminate()
        nginx.wait()
