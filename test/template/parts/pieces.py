"""The pieces of README.md, "Make it yours", done in a copy of the template as they stand there."""

import re

from pipelines import blocks
from support import ROOT

README = (ROOT / "README.md").read_text()
SECTION = README.partition("## Make it yours")[2].partition("\n## ")[0]
BLOCKS = [text for _, text in blocks(SECTION)]
[[_, ON_THE_HOST]] = blocks(README.partition("## On the host")[2].partition("\n## ")[0])
FRAMEWORK = """fastapi==0.165.0
uvicorn==0.54.0
annotated-doc==0.0.7
annotated-types==0.8.0
anyio==4.16.0
click==8.5.1
h11==0.16.0
idna==3.20
opentelemetry-api==1.45.2
pydantic==2.14.4
pydantic_core==2.50.5
starlette==1.10.0
typing-inspection==0.4.5
typing_extensions==4.16.0
"""
WORKER = """import signal
import time

signal.signal(signal.SIGTERM, lambda *_: exit())
while True:
    time.sleep(0.1)
"""
MIGRATE = """import os

import psycopg

password = open("/run/secrets/DATABASE_PASSWORD").read().strip()
with psycopg.connect(
    host=os.environ["APP_DATABASE_HOST"], user="postgres", password=password
) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (id serial, release text)")
    release = os.environ["SERVICE_RELEASE"]
    connection.execute("INSERT INTO migrations (release) VALUES (%s)", [release])
"""
TEST = """import itsdangerous
import requests


def test_the_new_package_is_there(app_url):
    assert itsdangerous.base64_encode(requests.get(app_url + "/orders").content)
"""


def block(start):
    """Return the one block of the section that begins so."""
    [text] = [text for text in BLOCKS if text.startswith(start)]
    return text


def code(name):
    """Return the code in the item of that name, as in "- name (1 file): `code`"."""
    start = rf"^(?:- |\*\*){name}(?:\*\*)? \("
    item = re.search(rf"{start}.*?(?=\n- |\n\n)", SECTION, re.MULTILINE | re.DOTALL)[0]
    return re.findall(r"`([^`]+)`", item)


def counts():
    """Return how many files each piece touches, as the section says, by the piece's name."""
    listed = re.findall(r"^- ([\w ]+) \((\d) files?\)", SECTION, re.MULTILINE)
    named = re.findall(r"^\*\*([\w ,]+)\*\*[^(]{,60} \((\d) file", SECTION, re.MULTILINE)
    return {
        name: int(number) for names, number in listed + named for name in names.lower().split(", ")
    }


def write(fork, name, text):
    (fork.path / name).parent.mkdir(exist_ok=True)
    (fork.path / name).write_text(text)


def first(fork):
    fork.run("sh", "-euc", block("git rm"))
    write(fork, "README.md", "# My service\n")


def branch(fork):
    name, file = code("branch")
    fork.edit(file, f"{name}: mainx", f"{name}: main")


def container_port(fork):
    fork.run("sh", "-euc", code("Container port")[0])


def module(fork):
    write(fork, "store.py", "ORDERS = []\n")


def directory(fork):
    above = "COPY --chmod=644 *.py /app/\n"
    fork.edit("Dockerfile", above, f"{above}{code('directory')[-1]}\n")
    write(fork, "shop/__init__.py", "ORDERS = []\n")


def package(fork):
    fork.append(code("package")[0], "itsdangerous==2.2.0\n")


def test(fork):
    write(fork, "test/test_package.py", TEST)


def endpoint(fork):
    file, route, *_ = code("endpoint")
    above = "# The handlers that you add.\n"
    fork.edit(file, above, f"{above}\n\n{block('class OrdersHandler')}")
    above = "# The routes that you add.\n"
    fork.edit(file, above, f"{above}        {route}\n")


def worker(fork):
    fork.append("scripts/stack.yml", block("  worker:"))
    return {"worker.py": WORKER}


def migration(fork):
    fork.append("scripts/stack.yml", block("  migration:"))
    return {"migrate.py": MIGRATE}


def database(fork):
    fork.append("scripts/stack.yml", block("  database:"))


def https(fork):
    fork.append("scripts/stack.yml", block("  proxy:"))
    ports = re.compile(r"^    ports:\n.*\n", re.MULTILINE)
    path = fork.path / "scripts/stack.yml"
    path.write_text(ports.sub("", path.read_text(), count=1))


def a_database_for_tests(fork):
    path = fork.path / ".gitlab-ci.yml"
    text = path.read_text()
    job = text.index("\ntest:\n")
    begin, end = text.index("  services:\n", job), text.index("  script:\n", job)
    path.write_text(text[:begin] + block("  services:") + text[end:])


def staging(fork):
    fork.append(".gitlab-ci.yml", "\n" + block("staging:"))


def another_framework(fork):
    file, server, *_ = code("Another framework")
    [remove] = [line for line in code("Another framework") if line.startswith("git rm")]
    write(fork, server, (ROOT / file).read_text())
    imports = "http.client, tornado.httpserver, tornado.options, tornado.web"
    fork.edit("Dockerfile", imports, "http.client, fastapi, uvicorn")
    for name, packages, instead in (
        ("requirements.txt", "tornado", FRAMEWORK),
        ("test/requirements.txt", "tornado|pytest-tornado|setuptools", ""),
    ):
        text = (fork.path / name).read_text()
        write(fork, name, re.sub(rf"^({packages})==.*\n", instead, text, flags=re.MULTILINE))
    fork.run("sh", "-euc", remove)


def do(fork, *pieces):
    """Do each piece and commit it; it touches as many files as the section says."""
    for piece in pieces:
        own = piece(fork) or {}
        name = piece.__name__.replace("_", " ")
        if piece is not first:
            fork.run("git", "add", "--all")
            touched = fork.run("git", "diff", "--cached", "--name-only").stdout.split()
            assert len(touched) == counts()[name], (name, touched)
        for file, text in own.items():
            write(fork, file, text)
        commit = fork.commit(name.capitalize())
    return commit


EVERY_ONE = [first, branch, module, directory, package, test, endpoint, worker, migration]
EVERY_ONE += [database, https, a_database_for_tests, staging, container_port]
