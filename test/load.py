"""Clients that send requests to a service for as long as a test lasts.

As a program, for another network namespace: `python test/load.py URL PAUSE` prints a line when it
is under way, sends until its standard input ends, then prints as JSON
{"answered": {release: count}, "slowest": seconds, "failed": [...]}.
"""

import collections
import json
import sys
import threading
import time

import requests

MOST = 50_000  # requests, and
LONGEST = 900  # seconds: it stops by itself
CLIENTS = [(kind, method) for kind in ("kept", "new") for method in ("GET", "POST")]


class Load:
    """Four clients, new connections and kept ones, GET and POST, until the block ends.

    `releases` lists who answered each request; `failed` lists seconds since the start, client, and
    cause of each request that got no answer within 10 s, or another than status 200.
    """

    def __init__(self, url, pause=0):
        self.url, self.pause = url, pause
        self.releases, self.failed, self.slowest = [], [], 0
        self.stopped = threading.Event()
        self.threads = [
            threading.Thread(target=self.send, args=client, daemon=True) for client in CLIENTS
        ]

    def send(self, kind, method):
        client = requests.Session() if kind == "kept" else requests
        while not self.stopped.wait(self.pause) and not self.exhausted():
            sent = round(time.monotonic() - self.began, 1)
            try:
                response = client.request(method, self.url, timeout=10)
                response.raise_for_status()
                self.slowest = max(self.slowest, response.elapsed.total_seconds())
                self.releases.append(response.headers["X-Release"])
            except requests.RequestException as error:
                self.failed.append((sent, kind, method, str(error)))

    def exhausted(self):
        return self.total() >= MOST or time.monotonic() > self.began + LONGEST

    def total(self):
        return len(self.releases) + len(self.failed)

    def losses(self):
        """Say how many requests failed, and how the first three did."""
        return f"{len(self.failed)} of {self.total()} requests failed: {self.failed[:3]}"

    def __enter__(self):
        self.began = time.monotonic()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()


def main():
    with Load(sys.argv[1], float(sys.argv[2])) as load:
        while load.total() < 8:
            time.sleep(0.05)
        print("loaded", flush=True)
        sys.stdin.read()
    answered = collections.Counter(load.releases)
    print(json.dumps({"answered": answered, "slowest": load.slowest, "failed": load.failed}))


if __name__ == "__main__":
    main()
