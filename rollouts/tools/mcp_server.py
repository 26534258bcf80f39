"""A Model Context Protocol server as the tools of one process share it: connected to when it is first needed, and anew
after a failure."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import INVALID_PARAMS, CallToolResult
from mcp.types import Tool as ListedTool

from rl.errors import ConfigError
from rollouts.tools import stdio_warden
from rollouts.tools.tool import ToolRefusal

T = TypeVar("T")

MAX_MESSAGE_BYTES = 16 << 20
MAX_PAGES = 100  # of the list of tools
_IDLE_S = 300.0  # how long a stream of a server may be silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is: a ``command`` that is run in ``folder``, or a ``url``. Names of environment variables stand
    for what they hold where the server is spoken with."""

    command: tuple[str, ...] = ()
    folder: Path = Path()
    forward_env: tuple[str, ...] = ()
    url: str = ""
    token_env: str = ""

    def __str__(self) -> str:
        return self.url or f"`{' '.join(self.command)}`"

    def environment(self) -> dict[str, str]:
        """The variables that the address names. Raises ConfigError for one that is not set here."""
        names = [*self.forward_env, *filter(None, [self.token_env])]
        for name in names:
            if not (value := os.environ.get(name, "").strip()) or not (value.isascii() and value.isprintable()):
                state = "holds characters that cannot be sent" if value else "is not set"
                raise ConfigError(f"the environment variable {name} {state} where this runs; {self} is to be given it")
        return {name: os.environ[name].strip() for name in names}


class Server:
    """Speaks with the server at ``address`` from any thread; its connections end with it, and with the process."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connection: Connection | None = None
        self._open: set[Connection] = set()
        weakref.finalize(self, _end, self._open)

    def listed(self, tool: str, *, timeout_s: float) -> ListedTool:
        """What the server says of its tool. Raises ConfigError where there is no such server or tool."""
        listing = asyncio.run_coroutine_threadsafe(self._ask(_list_of, timeout_s=timeout_s), _loop())
        error = _innermost(listing.exception())
        if isinstance(error, ConfigError):
            raise error
        if isinstance(error, Exception):
            reason = str(error) or type(error).__name__
            raise ConfigError(f"there is no MCP server at {self._address}: {reason}") from error
        tools = listing.result()
        if tool not in tools:
            raise ConfigError(
                f"the MCP server at {self._address} has no tool {tool!r}; it has {', '.join(tools) or 'none'}"
            )
        return tools[tool]

    def call(self, tool: str, arguments: dict[str, Any], *, timeout_s: float) -> CallToolResult:
        """What the tool answers. Raises ToolRefusal for arguments that the server refuses, and whatever else came in
        the way, after which the next call connects anew."""

        async def call(connection: Connection, client: Client) -> CallToolResult:
            if tool not in connection.tools:
                raise LookupError(f"the MCP server at {self._address} no longer has the tool {tool!r}")
            try:
                return await client.call_tool(tool, arguments)
            except MCPError as error:
                if error.code == INVALID_PARAMS:
                    raise ToolRefusal(error.message) from error
                raise

        answer = asyncio.run_coroutine_threadsafe(self._ask(call, timeout_s=timeout_s), _loop())
        if isinstance(error := _innermost(answer.exception()), Exception):
            raise error
        return answer.result()

    async def _ask(self, ask: Callable[[Connection, Client], Awaitable[T]], *, timeout_s: float) -> T:
        connection = self._connection
        if connection is None or connection.failed or connection.task.done():
            connection = self._connection = Connection(self._address)
            self._open.add(connection)
            connection.task.add_done_callback(functools.partial(_forget, self._open, connection))
        with connection:
            try:
                async with asyncio.timeout(timeout_s):
                    return await ask(connection, await connection.client())
            except TimeoutError:
                raise TimeoutError(f"the MCP server at {self._address} did not answer within {timeout_s:g} s") from None


class Connection:
    """One connection, held open by a task of its own. Used as a context manager by each call: one that fails leaves it
    to be closed once the others are through."""

    def __init__(self, address: Address) -> None:
        self.failed = False
        self.tools: dict[str, ListedTool] = {}
        self._users = 0
        self._client: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._hold(address))

    async def _hold(self, address: Address) -> None:
        async with _transport(address) as transport, Client(transport, cache=None) as client:
            self.tools = await _all_tools(client)
            self._client.set_result(client)
            await asyncio.Event().wait()

    async def client(self) -> Client:
        """The client once it is connected. Raises whatever keeps it from that."""
        either: set[asyncio.Future[Any]] = {self._client, self.task}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            self.task.result()
        return self._client.result()

    def __enter__(self) -> None:
        self._users += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._users -= 1
        self.failed |= error is not None and not isinstance(error, ToolRefusal)
        if self.failed and not self._users:
            self.task.cancel()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop that all servers of this process are spoken with on."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="mcp", daemon=True).start()
    return loop


def _end(connections: set[Connection]) -> None:
    for connection in list(connections):
        _loop().call_soon_threadsafe(connection.task.cancel)


def _forget(connections: set[Connection], connection: Connection, task: asyncio.Task[None]) -> None:
    connections.discard(connection)
    if not task.cancelled():
        task.exception()  # told to whoever called; asyncio would write it to the log as well


def _innermost(error: BaseException | None) -> BaseException | None:
    """The first cause among those that fell together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _list_of(connection: Connection, client: Client) -> dict[str, ListedTool]:
    return connection.tools


async def _all_tools(client: Client) -> dict[str, ListedTool]:
    tools: dict[str, ListedTool] = {}
    cursor = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools |= {tool.name: tool for tool in page.tools}
        cursor = page.next_cursor
        if cursor is None:
            return tools
    raise ValueError(f"its list of tools has more than {MAX_PAGES} pages")


@asynccontextmanager
async def _transport(address: Address) -> AsyncIterator[Any]:
    """What a client speaks through; messages from the server are bounded. Raises ConfigError."""
    environment = address.environment()
    if address.command:
        warden = [sys.executable, "-I", stdio_warden.__file__, str(MAX_MESSAGE_BYTES)]
        program, *arguments = [*warden, *address.command]
        server = StdioServerParameters(command=program, args=arguments, env=environment, cwd=address.folder)
        yield stdio_client(server, errlog=sys.__stderr__ or sys.stderr)
        return
    token = environment.get(address.token_env)
    async with httpx2.AsyncClient(
        headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {}),
        timeout=httpx2.Timeout(30.0, read=_IDLE_S),
        event_hooks={"response": [_bound]},
        trust_env=urlsplit(address.url).hostname not in ("localhost", "127.0.0.1", "::1"),  # no proxy to oneself
    ) as http:
        yield streamable_http_client(address.url, http_client=http, max_sse_event_size=MAX_MESSAGE_BYTES)


async def _bound(response: httpx2.Response) -> None:
    """A stream of events goes on for as long as the server likes; the transport bounds each event of it."""
    if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
        response.stream = _Bounded(response.stream)  # type: ignore[arg-type]


@dataclass
class _Bounded(httpx2.AsyncByteStream):
    stream: httpx2.AsyncByteStream
    size: int = field(default=0, init=False)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self.stream:
            self.size += len(part)
            if self.size > MAX_MESSAGE_BYTES:
                raise httpx2.StreamError(f"a reply of more than {MAX_MESSAGE_BYTES:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self.stream.aclose()
