"""scripts/stack.yml as docker reads it, and scripts/parts/probe.py; neither needs an engine."""

import os
import re
import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from ruamel.yaml import YAML

from parts import probe
from support import ROOT, free_port

STACK = ROOT / "scripts/stack.yml"
SETTINGS = {
    "DEPLOY_IMAGE": "registry.test/app@sha256:" + 64 * "a",
    "DEPLOY_PORT": "20200",
    "DEPLOY_PUBLISH_MODE": "ingress",
    "DEPLOY_REPLICAS": "2",
    "UPDATE_ORDER": "start-first",
    "DRAIN_SECONDS": "5",
    "SERVICE_VARIABLES": "/dev/null",
}
ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


@pytest.mark.skipif(not shutil.which("docker"), reason="docker is not installed")
def test_docker_reads_the_file_without_a_warning():
    command = ["docker", "stack", "config", "--compose-file", STACK]
    run = subprocess.run(command, env={**os.environ, **SETTINGS}, capture_output=True)
    assert (run.returncode, run.stderr) == (0, b"")
    server = YAML().load(run.stdout)["services"]["server"]
    assert server["image"] == SETTINGS["DEPLOY_IMAGE"]
    assert server["ports"] == [{"mode": "ingress", "target": 8744, "published": 20200}]
    assert server["deploy"]["update_config"]["failure_action"] == "rollback"


def test_scripts_deploy_fills_in_every_variable_of_the_file():
    used = set(re.findall(r"\$\{(\w+)\}", STACK.read_text()))
    render = (ROOT / "scripts/parts/plan.py").read_text().partition("fill_in = {")[2]
    filled_in = re.findall(r'^        "([A-Z_]+)":', render.partition("\n    }")[0], re.MULTILINE)
    assert used == set(SETTINGS) == set(filled_in)


def test_a_port_that_somebody_listens_on_is_not_free():
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((address, 0), family=family) as server:
            port = server.getsockname()[1]
            reason = probe.port(f"{port}-{port}", "1", "", "")
        assert reason == f"port {port} is used by a program or container on the host"


def test_a_range_gives_a_release_the_same_port_again_and_skips_those_in_use():
    first = free_port()
    span = f"{first}-{first + 40}"
    ports = {release: probe.port(span, release, "", "") for release in map(str, range(20))}
    assert len(set(ports.values())) > 10  # an old link seldom leads to another release
    assert probe.port(span, "7", "", "") == ports["7"]
    assert probe.port(span, "7", f"\n{ports['7']} the service x\n", "") != ports["7"]
    used = "".join(f"{first + number} the service x\n" for number in range(41))
    assert probe.port(span, "7", used, "").startswith(f"no port of {span} is free (")
    assert probe.port(f"{first}-{first}", "7", used, "").endswith("is used by the service x")


@pytest.mark.parametrize(
    "subnet, route",
    [
        ("10.0.0.0/24", "10.0.0.0/24 of eth0"),
        ("10.0.0.0/8", "10.0.0.0/24 of eth0"),
        ("172.17.3.0/24", "172.17.0.0/16 of docker0"),
        ("10.0.1.0/24", None),
        ("192.168.0.0/16", None),
    ],
)
def test_a_network_of_swarm_that_overlaps_a_route_is_found(tmp_path, subnet, route):
    (tmp_path / "route").write_text(ROUTES)
    assert probe.overlap(["10.9.0.0/24", subnet], tmp_path / "route") == route
    assert probe.overlap([], tmp_path / "route") is None


def test_who_answers_is_told(start_service):
    url = start_service().url
    assert probe.ask(url, "dev", 5) == "release dev"
    assert probe.ask(url, "7", 0.5) == "release dev"
    assert probe.ask(f"{url}/nowhere", "7", 0) == "an error 404"
    assert probe.ask(f"http://127.0.0.1:{free_port()}", "7", 0) == "nobody"


def test_a_release_that_answers_now_and_then_does_not_pass():
    class Flapping(BaseHTTPRequestHandler):
        count = 0

        def do_GET(self):
            Flapping.count += 1
            self.send_response(503 if Flapping.count % 5 == 0 else 200)
            self.send_header("X-Release", "7")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Flapping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert probe.ask(f"http://127.0.0.1:{server.server_port}", "7", 1) == "an error 503"
        server.shutdown()
