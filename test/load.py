"""Clients that send requests to a service for as long as a test lasts, and what became of each request.

As a program, for another network namespace: `python test/load.py URL PAUSE` prints a line when it is under
way, sends until its standard input ends, then prints {"answered": {release: count}, "slowest": seconds, "failed": [...]}.
"""

import collections
import json
import sys
import threading
import time

import requests

TEXT = "test gitlab_cicd api success"
MOST = 50_000  # requests, and
LONGEST = 900  # seconds: it stops by itself


class Load:
    """Four clients, new connections and kept ones, GET and POST, until the block ends.

    `releases` lists who answered each request; `failed` lists seconds since the start, client, and
    cause of each request that got no answer within 10 s, or another than the service's.
    """

    def __init__(self, url, pause=0):
        self.url, self.pause = url, pause
        self.releases, self.failed, self.slowest = [], [], 0
        self.stopped = threading.Event()
        self.threads = [
            threading.Thread(target=self.send, args=(kind, client(), method), daemon=True)
            for kind, client in (("kept", requests.Session), ("new", lambda: requests)) for method in ("GET", "POST")
        ]

    def send(self, kind, client, method):
        while not self.stopped.wait(self.pause) and self.total() < MOST and time.monotonic() < self.began + LONGEST:
            sent = round(time.monotonic() - self.began, 1)
            try:
                response = client.request(method, self.url, timeout=10)
                self.slowest = max(self.slowest, response.elapsed.total_seconds())
                if response.text == TEXT:
                    self.releases.append(response.headers["X-Release"])
                else:
                    self.failed.append((sent, kind, method, str(response.status_code)))
            except requests.RequestException as error:
                self.failed.append((sent, kind, method, str(error)))

    def total(self):
        return len(self.releases) + len(self.failed)

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
    print(json.dumps({"answered": collections.Counter(load.releases), "slowest": load.slowest, "failed": load.failed}))


if __name__ == "__main__":
    main()
