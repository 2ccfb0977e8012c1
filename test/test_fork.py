"""What README.md, Make it yours, tells a fork to do, done in a copy: two pushes, the second with a database.

Slow: the copy has a host of its own, which begins with nothing.
"""

import re
import shutil
import ssl
import subprocess
import urllib.request

import pytest
import requests
from ruamel.yaml import YAML

from support import Pipeline, ROOT, await_true, blocks, free_port

pytestmark = pytest.mark.docker

# A stand-in for PostgreSQL: tells who connects the password that it was given. A real one is too large to be made here.
DATABASE = """
FROM python:3.14-slim
EXPOSE 5432
CMD ["python", "-c", "import os, socket\\nname = os.environ.get('POSTGRES_PASSWORD_FILE')\\npassword = open(name).read() \
if name else os.environ['POSTGRES_HOST_AUTH_METHOD']\\nserver = socket.create_server(('', 5432))\\n\
while client := server.accept()[0]:\\n  client.sendall(password.encode())\\n  client.close()"]
"""
HANDLER = '''
class DatabaseHandler(Handler):
    async def get(self):
        reader, writer = await asyncio.open_connection(os.environ["APP_DATABASE_HOST"], 5432)
        password = await reader.read()
        writer.close()
        secret = "/run/secrets/DATABASE_PASSWORD"
        if os.path.exists(secret):
            with open(secret, "rb") as file:
                self.write("secret" if file.read() == password else "no")
        else:
            self.write(password)


class TestHandler('''


def block(kind, start):
    """Return the one block of the section that begins so."""
    section = (ROOT / "README.md").read_text().partition("## Make it yours")[2]
    [text] = [text for language, text in blocks(section) if language == kind and text.startswith(start)]
    return text


def change_pipeline(path, change):
    """Let `change` change what .gitlab-ci.yml says."""
    yaml = YAML()
    content = yaml.load(path / ".gitlab-ci.yml")
    change(content)
    yaml.dump(content, path / ".gitlab-ci.yml")


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """The copy, with all but the database, after its first push: see `push`, `commit`, `run`."""
    fork = Pipeline(tmp_path_factory.mktemp("fork") / "checkout")
    for name in ("test/test_readme.py", "test/test_fork.py", "README.zh-CN.md"):
        (fork.path / name).unlink()
    (fork.path / "README.md").write_text("# My service\n")

    def add_staging(content):
        content.update(YAML().load(block("yaml", "staging:")))

    change_pipeline(fork.path, add_staging)
    with (fork.path / "requirements.txt").open("a") as file:
        file.write("itsdangerous==2.2.0\n")
    (fork.path / "test/test_package.py").write_text(
        "import requests\nimport itsdangerous\n\n\ndef test_the_new_package_is_there(app_url):\n"
        "    assert itsdangerous.base64_encode(requests.get(f'{app_url}/test', timeout=9).content)\n"
    )
    fork.commit("Make it ours")
    fork.run("sh", "-euc", block("sh", "git grep"))
    fork.first = fork.commit("Rename")
    fork.first_push = fork.push()
    yield fork
    fork.down()


def results(push):
    return dict(re.findall(r"^(build|test|deploy|staging) +(passed|failed|not run)", push.stdout, re.MULTILINE))


def test_another_branch_another_port_and_staging_deploy_the_release_twice(fork):
    assert results(fork.first_push) == dict.fromkeys(["build", "test", "deploy", "staging"], "passed"), fork.first_push.stdout
    assert requests.get(fork.url, timeout=10).headers["X-Release"] == fork.first == fork.answering(20300)
    assert "as a push to main\n" in fork.first_push.stdout and not fork.run("git", "grep", "mainx", check=False).stdout
    assert fork.docker("service", "inspect", "--format={{(index .Endpoint.Ports 0).TargetPort}}", "app") == "9000\n"


def test_a_package_and_a_test_that_were_added_are_used(fork):
    junit = (fork.path / ".pipeline/source/reports/junit.xml").read_text()
    assert "test_the_new_package_is_there" in junit and 'failures="0"' in junit


def test_tests_and_service_reach_a_database(fork, tmp_path):
    fork.docker("build", "--quiet", "--tag=postgres:18.1", "-", input=DATABASE)
    fork.host("sh", "-euc", "printf pa55word > password.txt\n" + block("sh", "docker network"))

    def add_database(content):
        added = YAML().load(block("yaml", "services:"))
        content["test"]["services"] += added["services"]
        content["test"]["variables"].update(added["variables"])

    change_pipeline(fork.path, add_database)
    fork.edit("server.py", "\nclass TestHandler(", HANDLER)
    fork.edit("server.py", '[("/test", TestHandler)]', '[("/test", TestHandler), ("/database", DatabaseHandler)]')
    (fork.path / "test/test_database.py").write_text(
        "import requests\n\n\ndef test_the_database_answers(app_url):\n"
        "    assert requests.get(f'{app_url}/database', timeout=9).text == 'trust'\n"
    )
    commit = fork.commit("Add a database")
    password = tmp_path / "password"
    password.write_text("pa55word")
    run = fork.push(DEPLOY_NETWORK="data", APP_DATABASE_HOST="database", APP_SECRET_DATABASE_PASSWORD=str(password))
    assert set(results(run).values()) == {"passed"} and "pa55word" not in run.stdout, run.stdout
    answer = requests.get(fork.url.replace("/test", "/database"), timeout=10)
    assert (answer.text, answer.headers["X-Release"]) == ("secret", commit)


@pytest.mark.lab
def test_nginx_serves_it_over_https(tmp_path, start_service):
    service, port = start_service(), free_port()
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=app.example.com -keyout app.key -out app.crt"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    server = block("nginx", "server {").replace("listen 443", f"listen 127.0.0.1:{port}")
    server = server.replace("/etc/nginx/", f"{tmp_path}/").replace("127.0.0.1:20200", f"127.0.0.1:{service.port}")
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{server}}}\n"
    )
    nginx = subprocess.Popen([shutil.which("nginx", path="/usr/sbin:/usr/bin"), "-c", tmp_path / "nginx.conf", "-g", "daemon off;"])
    try:
        context = ssl.create_default_context(cafile=tmp_path / "app.crt")
        context.check_hostname = False

        def ask():
            try:
                return urllib.request.urlopen(f"https://127.0.0.1:{port}/test", context=context, timeout=5)
            except urllib.error.URLError:
                return None

        answer = await_true(ask)
        assert answer.read() == b"test gitlab_cicd api success" and answer.headers["X-Release"] == "dev"
    finally:
        nginx.terminate()
        nginx.wait()
