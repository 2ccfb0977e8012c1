"""Measurements, for scripts/bench: each figure beside its rival, in one run."""

import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import ROOT, Pipeline, await_true, connect, free_port

CONNECTIONS = 16
SECONDS = 2
ROUNDS = 5
REQUEST = b"GET /test HTTP/1.1\r\nHost: bench\r\n\r\n"

RIVAL = """
import asyncio, sys, tornado.options, tornado.web
class Handler(tornado.web.RequestHandler):
    def get(self):
        self.write("test gitlab_cicd api success")
async def main():
    tornado.options.parse_command_line([])
    tornado.web.Application([("/test", Handler)]).listen(int(sys.argv[1]), "127.0.0.1")
    await asyncio.Event().wait()
asyncio.run(main())
"""


def show(what, figure):
    print(f"{what:<72} {figure}", flush=True)


def answers(port):
    try:
        connect(port).close()
        return True
    except ConnectionRefusedError:
        return False


class Client(asyncio.Protocol):
    """Sends a request, awaits the whole answer, and so on: one connection's worth of load."""

    answers = 0

    def connection_made(self, transport):
        self.transport = transport
        transport.write(REQUEST)

    def data_received(self, data):
        if data.endswith(b"success"):
            Client.answers += 1
            self.transport.write(REQUEST)


async def load(port):
    """Return the answers per second that CONNECTIONS kept connections get in SECONDS."""
    loop = asyncio.get_running_loop()
    transports = [(await loop.create_connection(Client, "127.0.0.1", port))[0] for _ in range(CONNECTIONS)]
    before, began = Client.answers, time.monotonic()
    await asyncio.sleep(SECONDS)
    rate = (Client.answers - before) / (time.monotonic() - began)
    for transport in transports:
        transport.abort()
    return rate


def server():
    """Compare server.py with a bare handler; both write their access logs to a file."""
    commands = (["server.py", "--address=127.0.0.1", "--port={}"], ["-c", RIVAL, "{}"])
    ports = [free_port() for _ in commands]
    with tempfile.TemporaryFile("w") as log:
        servers = [
            subprocess.Popen([sys.executable, *(word.format(port) if word != RIVAL else word for word in command)],
                             cwd=ROOT, stdout=log, stderr=log)
            for command, port in zip(commands, ports)
        ]
        try:
            for port in ports:
                await_true(lambda: answers(port))
            rates = [[asyncio.run(load(port)) for port in ports] for _ in range(ROUNDS)]
        finally:
            for process in servers:
                process.kill()
                process.wait()
    ours, bare = (statistics.median(column) for column in zip(*rates))
    show("requests per second of the service, and of a bare Tornado handler", f"{ours:.0f}, {bare:.0f}")
    show("ratio, median of pairs (at least 1.0)", f"{statistics.median(a / b for a, b in rates):.2f}")


def image(pipeline):
    base = json.loads(pipeline.docker("pull", "--quiet", "python:3.14-slim") and pipeline.docker(
        "image", "inspect", "--format={{json .RootFS.Layers}}", "python:3.14-slim"))
    layers = pipeline.manifest("project", pipeline.run("git", "rev-parse", "HEAD").stdout.strip())["layers"]
    size = sum(layer["size"] for layer in layers[len(base):])
    show("compressed size added to the base image (under 4 MB)", f"{size / 1e6:.2f} MB")

    seconds, memory = [], []
    for _ in range(ROUNDS):
        # Timed in the host, without the way there.
        out = pipeline.host("sh", "-c", f"""
            began=$(cut -d ' ' -f 1 /proc/uptime)
            id=$(docker run --detach --read-only --cap-drop=ALL {pipeline.image})
            until [ "$(docker inspect --format '{{{{.State.Health.Status}}}}' $id)" = healthy ]; do sleep 0.02; done
            echo "$began $(cut -d ' ' -f 1 /proc/uptime)"
            docker stats --no-stream --format '{{{{.MemUsage}}}}' $id
            docker rm --force $id > /dev/null
        """)
        times, usage = out.splitlines()[-2:]
        seconds.append(float(times.split()[1]) - float(times.split()[0]))
        memory.append(usage.split(" /")[0])
    show("docker run to healthy, median (under 2 s)", f"{statistics.median(seconds):.2f} s")
    show("memory of an idle replica (under 40 MB)", sorted(memory)[len(memory) // 2])


def total(run):
    assert run.returncode == 0, run.stdout
    return float(re.search(r"^pipeline +passed +([\d.]+) s", run.stdout, re.MULTILINE)[1])


def forget(pipeline):
    """Leave nothing of earlier pushes in the host but the images that any pipeline pulls."""
    pipeline.docker("service", "rm", "app")
    pipeline.docker("rm", "--force", "registry")
    pipeline.docker("volume", "rm", "registry")
    await_true(lambda: not pipeline.docker("ps", "--quiet"), seconds=30)
    images = pipeline.docker("images", "--quiet", "--filter", "reference=registry.test/group/*").split()
    images += pipeline.docker("images", "--quiet", "--filter", "reference=registry.test/group/project/*").split()
    pipeline.docker("rmi", "--force", *set(images))


def pushes(pipeline):
    post = None
    measure = ROOT.parent / "shared/lab/post/measure"
    if measure.exists():
        lines = subprocess.run([measure], check=True, capture_output=True, text=True).stdout.splitlines()
        post = float(lines[-1].split()[1])
        show("the blog post's pipeline", f"{post:.0f} s")

    def versus(seconds):
        return f"{seconds:.0f} s" + (f", {seconds / post:.2f} of the post's" if post else "")

    forget(pipeline)
    show("first push, nothing cached (at most 0.60)", versus(total(pipeline.push())))
    pipeline.edit("server.py", "A small Tornado", "A tiny Tornado")
    pipeline.commit("Change the code")
    show("code-only push (at most 0.30)", versus(total(pipeline.push())))
    pipeline.edit("server.py", "A tiny Tornado", "A very small Tornado")
    pipeline.commit("Change the code again")
    before = pipeline.traffic()
    assert "status 0" in pipeline.build_job(CI_COMMIT_REF_PROTECTED="true")
    pushed, sent, fetched = (now - then for now, then in zip(pipeline.traffic(), before))
    pipeline.clean_build_job()
    show("code-only push: bytes pushed (under 100 kB)", f"{pushed / 1000:.0f} kB")
    show("code-only push: bytes pulled by the build (under 100 kB)", f"{(sent + fetched) / 1000:.0f} kB")


def deployment(pipeline):
    """Compare scripts/deploy with `docker service update` alone, of the same service."""
    images = pipeline.make_releases("registry.test")
    pipeline.put_source("/tmp/bench")
    env = "DEPLOY_SERVICE=bench DEPLOY_PORT=20300 DEPLOY_ADDRESS=127.0.0.1 DEPLOY_PUBLISH_MODE=host"

    def deploy(release):
        command = f"cd /tmp/bench && {env} DEPLOY_IMAGE={images[release]} scripts/deploy"
        return seconds(lambda: pipeline.host("sh", "-c", command))

    def update(release):
        return seconds(lambda: pipeline.docker("service", "update", "--quiet", "--image", images[release], "bench"))

    deploy("1")
    pairs = [(deploy("2"), update("3")), (deploy("4"), update("5"))]
    pipeline.docker("service", "rm", "bench")
    ours, bare = (statistics.mean(column) for column in zip(*pairs))
    show("deployment of a change, from start to verified (at most 15 s)", f"{ours:.1f} s")
    show("more than docker service update alone (at most 2 s)", f"{ours - bare:.1f} s")


def seconds(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


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
    main(sys.argv[1:] or ["server", "image", "deploy", "pipeline"])
