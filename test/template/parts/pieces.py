"""The pieces of README.md, "Make it yours", done in a copy of the template as they stand there."""

import re

from pipelines import blocks
from support import ROOT

README = (ROOT / "README.md").read_text()
SECTION = README.partition("## Make it yours")[2].partition("\n## ")[0]
BLOCKS = [text for _, text in blocks(SECTION)]
[[_, ON_THE_HOST]] = blocks(README.partition("## On the host")[2].partition("\n## ")[0])
WORKER = """import signal
import time

signal.signal(signal.SIGTERM, lambda *_: exit())
while True:
    time.sleep(0.1)
"""
MIGRATE = """import os

import psycopg

secret = os.environ.get("APP_SECRET_DATABASE_PASSWORD")
password = open(secret).read().strip() if secret else None
with psycopg.connect(
    host=os.environ["APP_DATABASE_HOST"], user="postgres", password=password
) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (id serial, release text)")
    release = os.environ.get("SERVICE_RELEASE", "dev")
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
    start = rf"^(?:- |\*\*){name}\b"
    item = re.search(rf"{start}.*?(?=\n- |\n\n)", SECTION, re.MULTILINE | re.DOTALL)[0]
    return re.findall(r"`([^`]+)`", item)


def append(fork, name, file):
    """Do what the item of that name says with a file of scripts/pieces."""
    [line] = [line for line in code(name) if line.startswith("cat ")]
    fork.run("sh", "-euc", line.replace("worker.yml", file))


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
    append(fork, "Worker", "worker.yml")
    return {"worker.py": WORKER}


def migration(fork):
    append(fork, "Worker", "migration.yml")
    return {"migrate.py": MIGRATE}


def database(fork):
    append(fork, "Worker", "database.yml")


def https(fork):
    [file] = code("HTTPS")
    then = re.search("^Then add `(.*?)` to `(.*?)` in `(.*?)`", SECTION, re.MULTILINE)
    networks, service, stack = then.groups()
    fork.edit(file, "*.example.com", "*.test.example.org")
    above = f"  {service}: &{service}\n"
    fork.edit(stack, above, f"{above}    {networks}\n")


def database_for_tests(fork):
    path = fork.path / ".gitlab-ci.yml"
    text = path.read_text()
    job = text.index("\ntest:\n")
    begin, end = text.index("  services:\n", job), text.index("  script:\n", job)
    path.write_text(text[:begin] + block("  services:") + text[end:])


def staging(fork):
    append(fork, "Staging", "staging.yml")


def review_apps(fork):
    append(fork, "Review apps", "review.yml")


def another_framework(fork):
    service, packages, there, server, requirements, *_ = code("Another framework")
    [remove] = [line for line in code("Another framework") if line.startswith("git rm")]
    write(fork, server, (ROOT / there / service).read_text())
    own = (fork.path / requirements).read_text().partition("# The packages that you add.\n")[2]
    write(fork, requirements, (ROOT / there / packages).read_text() + own)
    imports = "http.client, tornado.httpserver, tornado.options, tornado.web"
    fork.edit("Dockerfile", imports, "http.client, fastapi, uvicorn")
    name, of_tornado = "test/requirements.txt", r"^(tornado|pytest-tornado|setuptools)==.*\n"
    text = (fork.path / name).read_text()
    write(fork, name, re.sub(of_tornado, "", text, flags=re.MULTILINE))
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
EVERY_ONE += [database, https, database_for_tests, staging, review_apps, container_port]
