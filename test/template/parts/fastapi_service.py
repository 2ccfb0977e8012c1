"""The same service with FastAPI: what it must do stands in test/test_service.py.

It goes on answering after SIGTERM, for DRAIN_SECONDS, as a load balancer still sends requests then;
uvicorn alone stops listening at once.
"""

import argparse
import asyncio
import os
import signal
import sys

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

RELEASE = os.environ.get("SERVICE_RELEASE") or "dev"
CLOSE = (b"connection", b"close")
app = FastAPI()


@app.api_route("/test", methods=["GET", "POST"], response_class=PlainTextResponse)
async def test():
    return "test gitlab_cicd api success"


class Server(uvicorn.Server):
    """Tells where it listens, and drains."""

    async def startup(self, sockets=None):
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if not self.started:  # the application has said why
            return
        port = sockets[0].getsockname()[1]
        print(f"listening on port {port} (release {RELEASE})", flush=True)

    def handle_exit(self, number, frame):
        """Stop when the drain is over; a second signal ends the process."""
        if CLOSE in self.config.encoded_headers:
            os._exit(128 + number)
        # Each answer now asks its client to connect anew, elsewhere.
        self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers.append(CLOSE)  # which uvicorn copies once a second
        drain = float(os.environ.get("DRAIN_SECONDS") or 5) if number == signal.SIGTERM else 0
        stop = (drain, setattr, self, "should_exit", True)
        self.loop.call_soon_threadsafe(self.loop.call_later, *stop)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8744)
    parser.add_argument("--address", default="0.0.0.0")
    arguments = parser.parse_args()
    config = uvicorn.Config(
        app,
        host=arguments.address,
        port=arguments.port,
        headers=[("X-Release", RELEASE)],
        timeout_graceful_shutdown=5,
    )
    server = Server(config)
    server.run(sockets=[config.bind_socket()])
    sys.exit(not server.started)
