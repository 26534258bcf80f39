"""The pages over HTTP: to this machine alone unless there is a token, read-only, and nothing of it cached by others.

Whatever a model wrote is escaped as the page is made (`rl.report.markup`). Should that ever fail, the Content-Security-
Policy lets no script run but the two files that lie beside this module, and nothing be loaded or sent elsewhere.
"""

from __future__ import annotations

import re
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from rl.errors import LogError
from rl.listen import is_loopback
from rl.report.frame import SCRIPT, STYLE
from rl.report.markup import element
from rl.view.curves import curves_page, read_curves_query
from rl.view.index import TrajectoryIndex
from rl.view.pages import shell, trajectories_page
from rl.view.query import BadQuery, read_query
from rollouts.log import image_content

TOKEN_VARIABLE = "MEDRL_VIEW_TOKEN"
_COOKIE = "medrl-view"
_TIMEOUT_S = 30.0
_MOST_PARAMETERS = 200
_IMAGE = re.compile(r"(?P<sha256>[0-9a-f]{64})\.(?P<format>png|jpg)")
_IMAGE_TYPES = {"png": "image/png", "jpg": "image/jpeg"}
_ASSETS: Mapping[str, tuple[Path, str]] = {
    path.name: (path, f"text/{kind}; charset=utf-8")
    for path, kind in (
        (STYLE, "css"),
        (Path(__file__).with_name("view.css"), "css"),
        (SCRIPT, "javascript"),
        (Path(__file__).with_name("view.js"), "javascript"),
    )
}
_HTML = "text/html; charset=utf-8"
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered. ``cache`` says how long a browser may keep it."""

    content: bytes = b""
    type: str = _HTML
    status: HTTPStatus = HTTPStatus.OK
    cache: str = "no-store"
    headers: Mapping[str, str] = field(default_factory=dict)


class ViewServer(ThreadingHTTPServer):
    """Serves the index at an address. ``token`` empty lets everyone in who can reach the address."""

    daemon_threads = True

    def __init__(self, index: TrajectoryIndex, *, host: str, port: int, token: str = "") -> None:
        self.index, self.token, self.host = index, token, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where a browser finds the first page, the token with it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/" + (f"?{urlencode({'token': self.token})}" if self.token else "")

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):  # the browser has gone: nothing to mend
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def names_us(self, host: str) -> bool:
        """Whether the Host header is one of this machine's own names. A page from elsewhere whose name was made to
        resolve to this address (DNS rebinding) comes with a name of its own."""
        if not is_loopback(self.host):
            return True  # by whatever name it is reached, the token guards it
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        return is_loopback(name.strip("[]")) and port == str(self.server_port)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S

    def version_string(self) -> str:
        return "medrl"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for every image says nothing to whoever reads the terminal."""

    def do_GET(self) -> None:
        reply = self._reply()
        self.send_response(reply.status)
        for name, value in {**_HEADERS, **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", reply.cache)
        self.send_header("Content-Type", reply.type)
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content)

    do_HEAD = do_GET

    def _reply(self) -> Reply:
        if not self.server.names_us(self.headers.get("Host", "")):
            return _problem(HTTPStatus.MISDIRECTED_REQUEST, "This is not the name of this machine.")
        try:
            url = urlsplit(self.path)
            parameters = parse_qs(url.query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
            return self._refused(url.path, parameters) or _route(self.server.index, url.path, parameters)
        except (BadQuery, ValueError) as error:
            return _problem(HTTPStatus.BAD_REQUEST, str(error))
        except LogError as error:
            return _problem(HTTPStatus.NOT_FOUND, str(error))

    def _refused(self, path: str, parameters: dict[str, list[str]]) -> Reply | None:
        """What whoever lacks the token is answered; whoever brings it in the address gets it as a cookie instead."""
        token = self.server.token
        given = parameters.pop("token", [""])[-1]
        if not token:
            return None
        if _same(given, token):
            cookie = f"{_COOKIE}={quote(token, safe='')}; HttpOnly; SameSite=Strict; Path=/"
            address = f"{_local(path)}?{urlencode(parameters, doseq=True)}"
            return Reply(status=HTTPStatus.SEE_OTHER, headers={"Set-Cookie": cookie, "Location": address})
        kind, _, bearer = self.headers.get("Authorization", "").partition(" ")
        if _same(self._cookie(), token) or (kind.lower() == "bearer" and _same(bearer, token)):
            return None
        return _problem(HTTPStatus.UNAUTHORIZED, f"The token of {TOKEN_VARIABLE} is needed: open /?token=…")

    def _cookie(self) -> str:
        try:
            kept = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            return ""
        return unquote(kept.value) if kept else ""


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _local(path: str) -> str:
    """The path on this server: to a browser ``//elsewhere`` and ``/\\elsewhere`` are another one."""
    return "/" + path.lstrip("/\\")


def _route(index: TrajectoryIndex, path: str, parameters: Mapping[str, list[str]]) -> Reply:
    parts = [unquote(part) for part in path.strip("/").split("/")]
    match parts:
        case [""]:
            return Reply(_encoded(trajectories_page(index, read_query(parameters))))
        case ["curves"]:
            return Reply(_encoded(curves_page(index.runs, read_curves_query(parameters))))
        case ["assets", name] if name in _ASSETS:
            asset, kind = _ASSETS[name]
            return Reply(asset.read_bytes(), kind, cache="no-cache")
        case ["images", run, name] if run in index.runs and (image := _IMAGE.fullmatch(name)):
            content = image_content(index.runs[run], name, sha256=image["sha256"])
            return Reply(content, _IMAGE_TYPES[image["format"]], cache="private, max-age=86400, immutable")
        case ["favicon.ico"]:
            return Reply(status=HTTPStatus.NO_CONTENT)
    return _problem(HTTPStatus.NOT_FOUND, "There is no such page.")


def _problem(status: HTTPStatus, text: str) -> Reply:
    content = element("main", element("h1", status.phrase), element("p", text), element("a", "Trajectories", href="/"))
    return Reply(_encoded(shell(status.phrase, {"/": "Trajectories", "/curves": "Curves"}, content)), status=status)


def _encoded(page: str) -> bytes:
    return page.encode("utf-8", errors="replace")
