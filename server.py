"""A small Tornado service: GET and POST /test answer with one line of text.

The first half is yours: options, handlers, routes. The second half keeps the service up while it is
updated, stopped or attacked, and depends on nothing in the first but the base of handlers.

Run `python server.py --help` for its options. The environment variable SERVICE_RELEASE names the
commit that the service was built from; its answers carry it in the header X-Release.
"""

import asyncio
import os
import re
import signal
import sys
import time

from tornado.httpserver import HTTPServer
from tornado.log import gen_log
from tornado.netutil import bind_sockets
from tornado.options import Error, define, options
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

RELEASE = os.environ.get("SERVICE_RELEASE") or "dev"

define("port", default=8744, type=int, help="port to listen on; 0 takes a free one")
define("address", default="", help="address to listen on (default: every address)")
define("debug", default=False, help="restart when a source file changes; show tracebacks")
define("drain_seconds", default=5.0, help="seconds to answer after SIGTERM (or DRAIN_SECONDS)")


class Handler(RequestHandler):
    """The base of every handler: its answers name the release; HEAD is answered as GET is."""

    def set_default_headers(self):
        self.set_header("X-Release", RELEASE)

    def head(self, *args, **kwargs):
        return self.get(*args, **kwargs)  # Tornado leaves the body out

    def write_error(self, status_code, **kwargs):
        if status_code == 405:
            methods = {name: getattr(type(self), name.lower()) for name in self.SUPPORTED_METHODS}
            if methods["HEAD"] is Handler.head:
                methods["HEAD"] = methods["GET"]
            own = [name for name in methods if methods[name] is not RequestHandler.get]
            self.set_header("Allow", ", ".join(own))
        super().write_error(status_code, **kwargs)


class TextHandler(Handler):
    def get(self):
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.write("test gitlab_cicd api success")

    post = get


# The handlers that you add.


def make_app(debug=False):
    routes = [
        ("/test", TextHandler),
        # The routes that you add.
    ]
    return Service(routes, default_handler_class=NotFoundHandler, debug=debug)


# The second half: limits, access log, graceful shutdown.

IDLE_SECONDS = 75  # for a whole header, and between requests; nginx keeps its side open as long
BODY_SECONDS = 30  # for a whole body
FINISH_SECONDS = 5  # for requests in flight after the server stops listening
MAX_HEADER, MAX_BODY = 2**14, 2**20  # bytes
MEMORY = 400 * 2**20  # bytes that all connections may occupy, of the 512 MB of a deployment
# A connection occupies up to 128 kB, as Tornado reads 64 kB at once, and an open file. Tornado
# opens up to 128 before the first of them is counted; some 30 remain for the rest.
IDLE = max(2**17, MEMORY // max(16, os.sysconf("SC_OPEN_MAX") - 160))

held, total = {}, 0  # by connection: bytes, over IDLE while a request is in flight; newest request


def hold(connection, size, request=None):
    """Note the bytes that a connection may occupy, and close others to make room for them."""
    global total
    total += size - held.pop(connection, (0, None))[0]
    if size:
        held[connection] = size, request
    while total > MEMORY:
        # Not one that has been received whole and is not answered yet. Tornado's names are private.
        spare = (c for c, (_, r) in held.items() if r._write_finished or not r._read_finished)
        quietest = next(spare)  # the caller's own, if there is no other
        total -= held.pop(quietest)[0]
        quietest.stream.close()


class Server(HTTPServer):
    """Tells hold() of each connection that opens, has got its answer, or closes."""

    def start_request(self, connection, request):
        hold(connection, IDLE, request)  # a new one, or one whose last answer has been sent
        return super().start_request(connection, request)

    def on_close(self, connection):
        super().on_close(connection)
        hold(connection, 0)


class NotFoundHandler(Handler):
    def prepare(self):
        raise HTTPError(404)


@stream_request_body
class RefusalHandler(Handler):
    """Answers at once, then reads the body and drops it: closing would reset, answer and all."""

    def prepare(self):
        self.request.headers.pop("Expect", None)  # or else Tornado asks for the body
        self.request.connection.set_max_body_size(2**63)
        self.set_status(self.request.refused)
        self.set_header("Connection", "close")
        self.set_header("Content-Length", "0")
        self.flush()

    def data_received(self, chunk):
        pass

    def on_finish(self):
        self.request.connection.close()

    def on_connection_close(self):  # the body has not ended in time
        super().on_connection_close()
        if not self._finished:
            self.application.log_request(self)

    get = post = put = patch = delete = options = lambda self: self.finish()


class Service(Application):
    """Refuses what no handler should see; prints a line of access log for each request."""

    def find_handler(self, request, **kwargs):  # called when a request's header is complete
        length = request.headers.get("Content-Length", "0").lstrip("0") or "0"
        known = re.fullmatch("[0-9]{1,18}", length) and "Transfer-Encoding" not in request.headers
        body = int(length) if known else MAX_BODY
        request.refused = 413 if body > MAX_BODY else 0  # Tornado alone answers with a bare 400
        if not request.uri.isascii():
            request.refused = 400  # control characters of Latin-1 must not reach the log
        if request.server_connection in held:
            # Tornado gathers a body, copies it, and takes a form apart.
            size = IDLE + 1 + (0 if request.refused else 3 * body)
            hold(request.server_connection, size, request.connection)
        if request.refused:
            return self.get_handler_delegate(request, RefusalHandler)
        if not request.path.startswith("/"):  # http://HOST/PATH, as a proxy may write it
            request.path = "/" + request.path.partition("//")[2].partition("/")[2]
        return super().find_handler(request, **kwargs)

    def log_request(self, handler):  # called when it is answered
        now, request = time.strftime("%Y-%m-%dT%H:%M:%S%z"), handler.request
        connection, stream = request.server_connection, request.connection.stream
        if connection in held and stream._write_buffer:  # what the client does not read yet
            size = held[connection][0] + len(stream._write_buffer)
            hold(connection, size, request.connection)
        line = f"{now} {handler.get_status()} {request.method} {ascii(request.path[:200])[1:-1]}"
        # print, because the logging module would cost a fifth of the requests per second.
        print(f"{line} {1000 * request.request_time():.1f}ms", flush=True)


def printable(record):
    """Let what Tornado says of a malformed request into the log, without what could harm there."""
    if not record.exc_info:
        record.msg, record.args = ascii(record.getMessage()[:200])[1:-1], ()
    return True


async def serve(sockets):
    """Answer requests until SIGTERM or SIGINT; then drain, finish what is in flight, and return."""
    loop, signals = asyncio.get_running_loop(), asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    sizes = {"max_header_size": MAX_HEADER, "max_body_size": MAX_BODY}
    times = {"idle_connection_timeout": IDLE_SECONDS, "body_timeout": BODY_SECONDS}
    server = Server(make_app(options.debug), **sizes, **times)
    server.add_sockets(sockets)
    print(f"listening on port {sockets[0].getsockname()[1]} (release {RELEASE})", flush=True)

    first = await signals.get()
    for number in (signal.SIGTERM, signal.SIGINT):  # a second signal ends the process
        loop.add_signal_handler(number, os._exit, 128 + number)
    if first == signal.SIGTERM:
        # A load balancer goes on sending requests for a moment. Each answer now asks its client to
        # connect anew, elsewhere: Tornado reads this attribute (undocumented) at every request.
        server.conn_params.no_keep_alive = True
        await asyncio.sleep(options.drain_seconds)
    server.stop()
    limit = time.monotonic() + FINISH_SECONDS
    while any(size > IDLE for size, _ in held.values()) and time.monotonic() < limit:
        await asyncio.sleep(0.02)


def main():
    gen_log.addFilter(printable)
    try:
        options.drain_seconds = float(os.environ.get("DRAIN_SECONDS") or options.drain_seconds)
        options.parse_command_line()
        if not 0 <= options.port <= 65535:
            raise ValueError(f"there is no port {options.port}")
        if not (RELEASE.isascii() and RELEASE.isprintable()):
            raise ValueError(f"no header can carry SERVICE_RELEASE={RELEASE!a}")
    except (Error, ValueError) as error:
        fail(f"{error} (see --help)")
    try:
        sockets = bind_sockets(options.port, options.address, backlog=1024)
    except OSError as error:
        fail(f"cannot listen on port {options.port}: {error.strerror}")
    asyncio.run(serve(sockets))


def fail(reason):
    print(f"server.py: {reason}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
