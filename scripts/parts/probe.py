"""What scripts/deploy asks about a host. It runs this in the host's network, in the new image.

probe.py port FIRST-LAST RELEASE USED NETWORKS   prints a free port, or why there is none
probe.py ask URL RELEASE SECONDS                 prints who answers: "release X", "nobody", ...
"""

import http.client
import ipaddress
import ssl
import sys
import time
import urllib.error
import urllib.request
import zlib

REQUESTS = 10  # that a release must answer in a row
# For Swarm's routing mesh, where its own network is the host's as well.
OTHERS = ("10.255.255.0/24", "192.168.255.0/24", "198.18.255.0/24")


def port(span, release, used, networks):
    """Return a port of FIRST-LAST that is free, or else a sentence that says why there is none.

    `used` has a line "PORT NAME" for each that Docker knows, and `networks` what Swarm's routing
    mesh takes. A release gets the same port of a range each time, if it can.
    """
    if route := overlap(networks.split()):
        other = next((it for it in OTHERS if not overlap([it])), OTHERS[0])
        return (
            f"the network {route} overlaps Swarm's {networks.strip()}: its clients would get no "
            "answer (on the host: docker network rm ingress; sleep 5; "
            f"docker network create --driver overlay --ingress --subnet {other} ingress)"
        )
    first, last = map(int, span.split("-"))
    names = dict(line.split(" ", 1) for line in used.splitlines() if line)
    names = dict.fromkeys(listening(), "a program or container on the host") | names
    size = last - first + 1
    for number in range(size):
        port = first + (zlib.crc32(release.encode()) + number) % size
        if str(port) not in names:
            return port
    if first != last:
        return f"no port of {span} is free (set DEPLOY_PORTS, or stop an old release)"
    return f"port {first} is used by {names[str(first)]}"


def listening():
    """Yield the ports on which programs listen here, as the kernel's tables have them."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for _, address, _, state, *_ in rows(table):
            if state == "0A":
                yield str(int(address.rpartition(":")[2], 16))


def rows(table):
    """Return the fields of each line of a table of the kernel's, but for its head."""
    with open(table) as file:
        return [line.split() for line in file][1:]


def overlap(subnets, table="/proc/net/route"):
    """Return the first route of the kernel's table that overlaps a subnet, or None."""
    for interface, network, _, _, _, _, _, mask, *_ in rows(table):
        number, mask = (int.from_bytes(bytes.fromhex(it), sys.byteorder) for it in (network, mask))
        route = ipaddress.ip_network((number, mask.bit_count()))
        if route.prefixlen and any(route.overlaps(ipaddress.ip_network(it)) for it in subnets):
            return f"{route} of {interface}"


def ask(url, release, seconds):
    """Return who answers: the release as soon as it answers REQUESTS in a row, or after a time."""
    # What is checked is the release, not the certificate of a proxy: that is the browser's part.
    tls = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)
    right, end = 0, time.monotonic() + float(seconds)
    while right < REQUESTS:
        try:
            with opener.open(f"{url}/test", timeout=3) as answer:
                answering = f"release {answer.headers.get('X-Release', 'without a name')}"
        except urllib.error.HTTPError as error:
            with error:
                answering = f"an error {error.code}"
        except (OSError, http.client.HTTPException):
            answering = "nobody"
        if answering == f"release {release}":
            right += 1
        elif time.monotonic() < end:
            right = 0
            time.sleep(0.3)
        else:
            break
    return answering


if __name__ == "__main__":
    print({"port": port, "ask": ask}[sys.argv[1]](*sys.argv[2:]))
