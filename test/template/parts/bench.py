"""Measures each figure beside its rival in the same run, and prints a line a figure:

  server    requests per second, beside a bare Tornado handler with Tornado's own access log
  image     size added to the base image, seconds from docker run to healthy, memory when idle
  deploy    seconds of a deployment, beside docker service update alone
  pipeline  seconds of a first and of a code-only push, and bytes moved; beside the pipeline of
            ../shared/lab/post, where there is one

All four without an argument. The last three need what scripts/pipeline needs, and run in a
container that is removed afterwards. Load goes to 127.0.0.1 only, for a few seconds.
"""

import argparse
import asyncio
import functools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # which has support.py

from pipelines import REGISTRY, Pipeline
from support import PATH, ROOT, await_true, connect, free_port

PARTS = ("server", "image", "deploy", "pipeline")
CONNECTIONS = 16
SECONDS = 2
ROUNDS = 5
REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()

RIVAL = """
import asyncio, sys, tornado.options, tornado.web
class Handler(tornado.web.RequestHandler):
    def get(self):
        self.write("test gitlab_cicd api success")
async def main():
    path, port = sys.argv[1:]
    tornado.options.parse_command_line([])
    tornado.web.Application([(path, Handler)]).listen(int(port), "127.0.0.1")
    await asyncio.Event().wait()
asyncio.run(main())
"""

# Timed in the host of the pipeline, without the way there.
START = """
    began=$(cut -d ' ' -f 1 /proc/uptime)
    id=$(docker run --detach --read-only --cap-drop=ALL "$1")
    until [ "$(docker inspect --format '{{.State.Health.Status}}' "$id")" = healthy ]; do
        sleep 0.02
    done
    echo "$began $(cut -d ' ' -f 1 /proc/uptime)"
    docker stats --no-stream --format '{{.MemUsage}}' "$id"
    docker rm --force "$id" > /dev/null
"""


def show(what, figure):
    print(f"{what:<72} {figure}", flush=True)


def seconds(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def answer_size(port):
    """Return how many bytes an answer has; return None while nobody listens on the port."""
    try:
        connection = connect(port)
    except ConnectionRefusedError:
        return None
    with connection, connection.makefile("rb") as file:
        connection.sendall(REQUEST)
        head = b"".join(iter(file.readline, b"\r\n")) + b"\r\n"
    assert head.startswith(b"HTTP/1.1 200 "), head
    return len(head) + int(re.search(rb"^Content-Length: (\d+)", head, re.MULTILINE)[1])


class Client(asyncio.Protocol):
    """Sends a request, awaits the whole answer, and so on: one connection's worth of load."""

    answers = 0

    def __init__(self, size):
        self.size, self.received = size, 0

    def connection_made(self, transport):
        self.transport = transport
        transport.write(REQUEST)

    def data_received(self, data):
        self.received += len(data)
        if self.received == self.size:
            self.received = 0
            Client.answers += 1
            self.transport.write(REQUEST)


async def load(port, size):
    """Return the answers per second that CONNECTIONS kept connections get in SECONDS."""
    loop = asyncio.get_running_loop()
    client = functools.partial(Client, size)
    transports = [
        (await loop.create_connection(client, "127.0.0.1", port))[0] for _ in range(CONNECTIONS)
    ]
    before, began = Client.answers, time.monotonic()
    await asyncio.sleep(SECONDS)
    rate = (Client.answers - before) / (time.monotonic() - began)
    for transport in transports:
        transport.abort()
    return rate


def server():
    """Compare server.py with a bare handler; both write their access logs to a file."""
    ports = [free_port(), free_port()]
    commands = (
        [sys.executable, "server.py", "--address=127.0.0.1", f"--port={ports[0]}"],
        [sys.executable, "-c", RIVAL, PATH, str(ports[1])],
    )
    with tempfile.TemporaryFile("w") as log:
        servers = [
            subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for command in commands
        ]
        try:
            sizes = {port: await_true(functools.partial(answer_size, port)) for port in ports}
            rates = [
                [asyncio.run(load(port, size)) for port, size in sizes.items()]
                for _ in range(ROUNDS)
            ]
        finally:
            for process in servers:
                process.kill()
                process.wait()
    ours, bare = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(ours / bare for ours, bare in rates)
    what = "requests per second of the service, and of a bare Tornado handler"
    show(what, f"{ours:.0f}, {bare:.0f}")
    show("ratio, median of pairs (at least 1.0)", f"{ratio:.2f}")


def image(pipeline):
    base = "python:3.14-slim"
    pipeline.docker("pull", "--quiet", base)
    in_base = json.loads(
        pipeline.docker("image", "inspect", "--format={{json .RootFS.Layers}}", base)
    )
    layers = pipeline.manifest(pipeline.image)["layers"]
    size = sum(layer["size"] for layer in layers[len(in_base) :])
    show("compressed size added to the base image (under 4 MB)", f"{size / 1e6:.2f} MB")

    waits, memory = [], []
    for _ in range(ROUNDS):
        output = pipeline.host("sh", "-c", START, "sh", pipeline.image)
        times, usage = output.splitlines()[-2:]
        began, healthy = map(float, times.split())
        waits.append(healthy - began)
        memory.append(usage.split(" /")[0])
    show("docker run to healthy, median (under 2 s)", f"{statistics.median(waits):.2f} s")
    show("memory of an idle replica (under 40 MB)", sorted(memory)[len(memory) // 2])


def deployment(pipeline):
    """Compare scripts/deploy with `docker stack deploy --detach=false` alone, of the same stack."""
    images = pipeline.make_releases()
    pipeline.put_source("/tmp/bench")
    env = {
        "DEPLOY_STACK": "bench",
        "DEPLOY_PORT": "20300",
        "DEPLOY_ADDRESS": "127.0.0.1",
        "DEPLOY_PUBLISH_MODE": "host",
    }

    def deploy(release):
        own = {**env, "DEPLOY_IMAGE": images[release]}
        command = pipeline.deployer("/tmp/bench", "python3", "scripts/deploy", env=own)
        return seconds(lambda: subprocess.run(command, check=True))

    def update(release):
        command = "docker stack deploy --detach=false --resolve-image=never -c - bench"
        text = json.dumps(stack).replace(images["1"], images[release]).replace("$", "$$")
        return seconds(lambda: pipeline.host("sh", "-c", command, input=text))

    deploy("1")
    of_bench = "--filter=label=com.docker.stack.namespace=bench"
    [record] = pipeline.docker("config", "ls", "--quiet", of_bench).split()
    record = pipeline.docker("config", "inspect", '--format={{printf "%s" .Spec.Data}}', record)
    stack = json.loads(record)["plan"]
    pairs = [(deploy("2"), update("3")), (deploy("4"), update("5"))]
    pipeline.docker("stack", "rm", "bench")
    ours, bare = (statistics.mean(column) for column in zip(*pairs, strict=True))
    show("deployment of a change, from start to verified (at most 15 s)", f"{ours:.1f} s")
    show("more than docker stack deploy alone (at most 2 s)", f"{ours - bare:.1f} s")


def total(run):
    """Return the seconds that a push has taken."""
    assert run.returncode == 0, run.stdout
    return float(re.search(r"^pipeline +passed.* ([\d.]+) s", run.stdout, re.MULTILINE)[1])


def forget(pipeline):
    """Leave nothing of earlier pushes in the host but the images that any pipeline pulls."""
    pipeline.docker("stack", "rm", "app")
    pipeline.docker("rm", "--force", "registry")
    pipeline.docker("volume", "rm", "registry")
    await_true(lambda: not pipeline.docker("ps", "--quiet"), seconds=30)
    images = set()
    for name in (f"{REGISTRY}/group/*", f"{REGISTRY}/group/project/*"):
        images.update(pipeline.docker("images", "--quiet", f"--filter=reference={name}").split())
    pipeline.docker("rmi", "--force", *images)


def pushes(pipeline):
    """Time a first and a code-only push; count the bytes that a code-only build moves."""
    post = None
    measure = ROOT.parent / "shared/lab/post/measure"
    if measure.exists():
        output = subprocess.run([measure], check=True, capture_output=True, text=True).stdout
        post = float(output.splitlines()[-1].split()[1])
        show("the blog post's pipeline", f"{post:.0f} s")

    def versus(taken):
        return f"{taken:.0f} s" + (f", {taken / post:.2f} of the post's" if post else "")

    forget(pipeline)
    show("first push, nothing cached (at most 0.60)", versus(total(pipeline.push())))
    pipeline.append("server.py", "# changed\n")
    pipeline.commit("Change the code")
    show("code-only push (at most 0.30)", versus(total(pipeline.push())))

    pipeline.append("server.py", "# changed again\n")
    pipeline.commit("Change the code again")
    before = pipeline.traffic()
    assert "status 0" in pipeline.build_job(CI_COMMIT_REF_PROTECTED="true")
    after = pipeline.traffic()
    pipeline.clean_build_job()
    pushed, sent, fetched = (now - then for now, then in zip(after, before, strict=True))
    pulled = sent + fetched
    show("code-only push: bytes pushed (under 100 kB)", f"{pushed / 1000:.0f} kB")
    show("code-only push: bytes pulled by the build (under 100 kB)", f"{pulled / 1000:.0f} kB")


def arguments():
    """Return the parts that the command line asks for."""
    parser = argparse.ArgumentParser(
        usage="test/template/parts/bench.py [-h] [server | image | deploy | pipeline]...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=argparse.SUPPRESS)
    parts = parser.parse_args().parts
    for part in parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}")
    return parts or PARTS


def main(parts):
    if "server" in parts:
        server()
    if {"image", "deploy", "pipeline"} & set(parts):
        with tempfile.TemporaryDirectory() as directory:
            pipeline = Pipeline(Path(directory) / "checkout")
            try:
                total(pipeline.push())  # pulls the images that any pipeline needs
                if "image" in parts:
                    image(pipeline)
                if "deploy" in parts:
                    deployment(pipeline)
                if "pipeline" in parts:
                    pushes(pipeline)
            finally:
                pipeline.down()


if __name__ == "__main__":
    main(arguments())
