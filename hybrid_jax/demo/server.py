"""The page, over HTTP, for browsers on this machine.

``GET /`` and the files it names; ``GET /model`` describes all that can be chosen; ``POST /write``
takes a request as JSON (`writer.PageRequest`) and streams events, a JSON object a line. A refusal
comes back as ``{"error": sentence}``.

Any site that somebody visits can make their browser send requests here. So requests must name this
machine as their host (a name that was rebound to its address does not), and a page of another
origin is refused.
"""

import contextlib
import errno
import http.server
import ipaddress
import socket
import socketserver
import sys
import threading
import urllib.parse
from typing import Any

from hybrid_jax.demo.writer import Writer
from hybrid_jax.errors import UserError
from hybrid_jax.generation import player
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.json_text import json_text

PLACES = 4
"""Texts that are written at once; whoever comes then is told to wait."""

_MOST_BYTES = 100_000  # of a request
_PATIENCE = 30.0  # seconds to wait for a client that neither reads nor writes
_FILES = {
    "/": ("hybrid_jax.demo", "page.html", "text/html; charset=utf-8"),
    "/page.css": ("hybrid_jax.demo", "page.css", "text/css; charset=utf-8"),
    "/page.js": ("hybrid_jax.demo", "page.js", "text/javascript; charset=utf-8"),
    "/player.css": ("hybrid_jax.generation", "player.css", "text/css; charset=utf-8"),
    "/player.js": ("hybrid_jax.generation", "player.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free. Raises UserError if it cannot be."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port={port} is outside 0 … 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # A burst of clicks waits, and is not turned away.
        both = address[0] == "::" and socket.has_dualstack_ipv6()  # everywhere means IPv4 too
        return socket.create_server(address[:2], family=family, backlog=64, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} of {host} is taken: choose another --port.") from error
        raise UserError(f"{host} port {port} cannot be listened on: {error}.") from error


def _own_names(family: int) -> list[str]:
    """The names of this machine in a network, and the address that it has there."""
    full = socket.gethostname()
    names = [full, full.partition(".")[0], socket.getfqdn(full), f"{full}.local"]
    elsewhere = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere, 9))  # sends nothing, and chooses the address to send from
        names.append(probe.getsockname()[0])
    return list(dict.fromkeys(name.lower() for name in names))


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves the page of one writer, a thread for each connection."""

    def __init__(self, listener: socket.socket, writer: Writer, *, host: str):
        """`host`: the name or address that `listener` was made for."""
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.host, self.writer = host, writer
        loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        self.names = [] if loopback else _own_names(listener.family)
        self.places = threading.Semaphore(PLACES)
        self.stopping = threading.Event()
        self._connections: set[Any] = set()
        self.files = {
            path: (player.read(name, package).encode("utf-8"), kind)
            for path, (package, name, kind) in _FILES.items()
        }

    @property
    def urls(self) -> list[str]:
        """Addresses of the page; those of them that answer here, where it listens everywhere."""
        address, port = self.socket.getsockname()[:2]
        hosts = [self.host]
        if ipaddress.ip_address(address).is_unspecified:
            known = dict.fromkeys(["localhost", *self.names])
            hosts = [host for host in known if _answers(host, port)]
        bracketed = (f"[{host}]" if ":" in host else host for host in hosts)
        return [f"http://{host}:{port}/" for host in bracketed]

    def is_own(self, host: str | None) -> bool:
        """True if a name in a request means this machine. An address does: only names can be
        rebound to it."""
        host = (host or "").rstrip(".")
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(host))
        return host in {"localhost", self.host.lower(), *self.names}

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def finish(self) -> None:
        """Ends serving and the texts that are being written, and waits until all threads have
        ended: Python must not exit while one of them is inside JAX, which ends in an abort."""
        self.stopping.set()
        self.shutdown()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it may have ended just now
                connection.shutdown(socket.SHUT_RD)  # none waits any longer for a request
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients come and go; everything else is a fault, which is shown with its traceback.
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    server_version = "hybrid_jax"
    sys_version = ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        if not self._welcome():
            return
        if self.path in self.server.files:
            self._answer(200, *self.server.files[self.path])
        elif self.path == "/model":
            self._answer(200, _json(self.server.writer.describe()), "application/json")
        else:
            self._refuse(404, "There is nothing here: the page is at /.")

    def do_POST(self) -> None:
        body = self._body()
        if body is None or not self._welcome():
            return
        if self.path != "/write":
            self._refuse(404, "There is nothing here: texts are asked for at /write.")
            return
        try:
            job = self.server.writer.job(_values(body))
        except UserError as error:
            self._refuse(400, str(error))
            return
        # Not `with`, which would wait for a place.
        if not self.server.places.acquire(blocking=False):
            busy = f"{PLACES} texts are being written already: try again in a moment, or stop one."
            self._refuse(503, busy)
            return
        try:
            self._begin(200, "application/x-ndjson")
            for event in self.server.writer.write(job):
                stopping = self.server.stopping.is_set()
                said = {"error": "The server was stopped."} if stopping else event
                # A client that went away raises ConnectionError here, which ends the generation.
                self.wfile.write(_json(said) + b"\n")
                if stopping:
                    break
        finally:
            self.server.places.release()

    def _body(self) -> bytes | None:
        """Body of the request; None if it was refused."""
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            size = -1
        if size < 0:
            self._refuse(411, "The request does not say how long it is.")
            return None
        # Read even if it is refused: many clients send all before they look at the answer.
        body = self.rfile.read(min(size, 10 * _MOST_BYTES))
        if size > _MOST_BYTES:
            long = f"The request has {size} bytes, of which at most {_MOST_BYTES} are read."
            self._refuse(413, long)
            return None
        return body

    def _welcome(self) -> bool:
        """True if the request may be answered; refuses it if not."""
        host = self.headers.get("Host", "")
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        # Not the port: a tunnel to this machine may have another.
        if not self.server.is_own(name):
            self._refuse(403, "The request is for another host: open an address that was printed.")
            return False
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            self._refuse(403, "The request comes from a page of another site.")
            return False
        # Forms of other sites cannot send this type, in browsers that send no Origin.
        if self.command == "POST" and self.headers.get_content_type() != "application/json":
            self._refuse(415, "The request is not application/json.")
            return False
        return True

    def _refuse(self, status: int, sentence: str) -> None:
        if len(sentence) > 400:  # it repeats something long that was sent
            sentence = f"{sentence[:400]}…"
        self._answer(status, _json({"error": sentence}), "application/json")

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self._begin(status, kind, {"Content-Length": str(len(content))})
        self.wfile.write(content)

    def _begin(self, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **_HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the page shows what came of them."""


def _values(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises UserError if there is none."""
    try:
        values = parse_json(body)
    except ValueError as error:
        raise UserError("The request is not a JSON object that can be read.") from error
    if not isinstance(values, dict):
        raise UserError("The request is not a JSON object.")
    return values


def _json(values: Any) -> bytes:
    return json_text(values).encode("utf-8")
