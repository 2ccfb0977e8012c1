"""A small Tornado service: GET and POST /test answer with one line of text.

Run `python server.py --help` for its options. The environment variable RELEASE names the
commit that the service was built from; every answer carries it in the header X-Release.
"""

import asyncio
import os
import resource
import signal
import sys
import time
import weakref

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.options import Error, define, options
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

RELEASE = os.environ.get("RELEASE") or "dev"
MAX_BODY = 1024 * 1024  # bytes
OPEN_FILES = 10240  # a connection is an open file; the usual soft limit is 1,024
IDLE_SECONDS = 75  # for a whole header, and between requests; nginx keeps its side open as long
BODY_SECONDS = 30  # for a whole body
FINISH_SECONDS = 5  # for what is still in flight when the server no longer listens

define("port", default=8744, type=int, help="port to listen on; 0 takes a free one")
define("address", default="", help="address to listen on (default: every address)")
define("debug", default=False, help="restart when a source file changes; show tracebacks to clients")
define("drain_seconds", default=5.0, help="how long to go on answering new requests after SIGTERM (environment: DRAIN_SECONDS)")

in_flight = weakref.WeakSet()  # requests with a complete header and no complete answer yet


class Handler(RequestHandler):
    """What every answer has: the release in its header, and an end that shutdown waits for."""

    def set_default_headers(self):
        self.set_header("X-Release", RELEASE)

    def compute_etag(self):
        return None  # a hash for each answer, to save sending 28 bytes

    def on_finish(self):
        in_flight.discard(self.request)


class TestHandler(Handler):
    def get(self):
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.write("test gitlab_cicd api success")

    post = get


class NotFoundHandler(Handler):
    def prepare(self):
        raise HTTPError(404)


@stream_request_body  # answers before the body has arrived
class TooLargeHandler(Handler):
    def prepare(self):
        raise HTTPError(413)


class Service(Application):
    def find_handler(self, request, **kwargs):
        # Called when the header is complete. Left to itself Tornado answers a body over the limit
        # with a bare 400; a body without a length (chunked) still gets that.
        in_flight.add(request)
        length = request.headers.get("Content-Length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > MAX_BODY):
            return self.get_handler_delegate(request, TooLargeHandler)
        return super().find_handler(request, **kwargs)


def log_request(handler):
    """Print the access-log line: time, status, method, path, milliseconds.

    print, because the logging module would cost a fifth of the requests per second.
    """
    request = handler.request
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    milliseconds = 1000 * request.request_time()
    print(f"{now} {handler.get_status()} {request.method} {request.path} {milliseconds:.1f}ms", flush=True)


def make_app(debug=False):
    return Service(
        [("/test", TestHandler)],
        default_handler_class=NotFoundHandler,
        log_function=log_request,
        debug=debug,
    )


def make_server(app):
    """Return an HTTPServer with the limits that keep slow, large or idle clients harmless."""
    return HTTPServer(
        app, max_body_size=MAX_BODY, idle_connection_timeout=IDLE_SECONDS, body_timeout=BODY_SECONDS
    )


async def serve():
    """Answer requests until SIGTERM or SIGINT; then drain, finish what is in flight, and return."""
    loop = asyncio.get_running_loop()
    stopping = loop.create_future()

    def stop(number):
        if stopping.done():  # the second signal
            os._exit(128 + number)
        stopping.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)

    server = make_server(make_app(options.debug))
    sockets = bind_sockets(options.port, options.address, backlog=1024)
    server.add_sockets(sockets)
    print(f"release {RELEASE} listens on port {sockets[0].getsockname()[1]}", flush=True)

    if await stopping == signal.SIGTERM:
        # A load balancer goes on sending requests for a moment. Each answer now asks its client to
        # connect anew, elsewhere: Tornado reads this attribute (undocumented) at every request.
        server.conn_params.no_keep_alive = True
        await asyncio.sleep(options.drain_seconds)
    server.stop()
    limit = time.monotonic() + FINISH_SECONDS
    while in_flight and time.monotonic() < limit:
        await asyncio.sleep(0.02)


def main():
    try:
        options.drain_seconds = float(os.environ.get("DRAIN_SECONDS", options.drain_seconds))
        options.parse_command_line()
        if not 0 <= options.port <= 65535:
            raise ValueError(f"there is no port {options.port}")
    except (Error, ValueError) as error:
        sys.exit(f"server.py: {error} (see --help)")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        asyncio.run(serve())
    except OSError as error:
        sys.exit(f"server.py: cannot listen on port {options.port}: {error.strerror}")


if __name__ == "__main__":
    main()
