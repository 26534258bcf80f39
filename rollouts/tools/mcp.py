"""A tool of a Model Context Protocol server, which is started here or listens elsewhere.

    search:  {use: mcp, command: [python, my_server.py], tool: search_guidelines}
    scholar: {use: mcp, url: "http://HOST:8001/mcp", tool: search, token_env: SCHOLAR_TOKEN}

Specification: https://modelcontextprotocol.io/specification.
"""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from mcp.types import CallToolResult, ImageContent, TextContent
from mcp.types import Tool as ListedTool

from rl.errors import ConfigError
from rl.types import EncodedImage
from rollouts.images import read_image
from rollouts.tools.mcp_server import Address, Server
from rollouts.tools.tool import Scene, Tool, ToolRefusal, ToolResult

MAX_IMAGE_PIXELS = 1 << 25

_servers: WeakValueDictionary[Address, Server] = WeakValueDictionary()
_servers_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class McpTool(Tool):
    """The tool that the server calls ``tool``; description and parameters are what the server says of it.

    Exactly one of ``command`` and ``url``. What is an error of the tool by the protocol is told to the policy, which
    can mend its call; a server that fails, or answers what it must not, leaves the trajectory unscored.
    """

    remote: ClassVar[bool] = True

    tool: str
    command: tuple[str, ...] = ()
    """Starts the server, which speaks over standard input and output, in `folder`. It ends with whoever started it."""
    folder: Path = Path()
    forward_env: tuple[str, ...] = ()
    """Environment variables that the server is given, besides PATH, HOME and the like."""
    url: str = ""
    """Where the server listens, for streamable HTTP."""
    token_env: str = ""
    """The environment variable that holds the server's bearer token where the engine runs."""
    timeout_s: float = 30.0
    """For a call, its connection included. ``rollouts.tool_timeout_s`` bounds it as well."""

    _server: Server = field(init=False, repr=False, compare=False)
    _listed: ListedTool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ValueError(f"give one of command and url; got {list(self.command)!r} and {self.url!r}")
        parts = urlsplit(self.url)
        if self.url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query):
            raise ValueError("url must be an address with http:// or https:// and without a password or a query")
        if (self.url and self.forward_env) or (self.command and self.token_env):
            raise ValueError("forward_env goes with command, token_env with url")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0; got {self.timeout_s}")

    def prepare(self) -> None:
        if self.command and not shutil.which(self.command[0]) and not (self.folder / self.command[0]).is_file():
            raise ConfigError(f"there is no program {self.command[0]!r} (command)")
        address = Address(
            command=self.command,
            folder=self.folder.resolve(),
            forward_env=self.forward_env,
            url=self.url,
            token_env=self.token_env,
        )
        with _servers_lock:
            server = _servers.setdefault(address, Server(address))
        object.__setattr__(self, "_server", server)
        object.__setattr__(self, "_listed", server.listed(self.tool, timeout_s=self.timeout_s))

    def declaration(self, name: str) -> dict[str, Any]:
        listed = self._listed
        function = {"name": name, "description": listed.description or "", "parameters": dict(listed.input_schema)}
        return {"type": "function", "function": function}

    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        result = self._server.call(self.tool, dict(arguments), timeout_s=self.timeout_s)
        text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
        if result.is_error:
            raise ToolRefusal(text or "the tool failed and did not say why")
        if other := [part.type for part in result.content if not isinstance(part, TextContent | ImageContent)]:
            raise ToolRefusal(f"the tool answered with {', '.join(other)}; only text and images can be shown")
        return ToolResult(text=text or _structured(result), images=tuple(map(self._image, _images(result))))

    def _image(self, part: ImageContent) -> EncodedImage:
        content = base64.b64decode(part.data, validate=True)
        return read_image(content, source=f"of the tool {self.tool}", max_pixels=MAX_IMAGE_PIXELS)


def _images(result: CallToolResult) -> list[ImageContent]:
    return [part for part in result.content if isinstance(part, ImageContent)]


def _structured(result: CallToolResult) -> str:
    """For a server that gives values without a text of them."""
    return "" if result.structured_content is None else json.dumps(result.structured_content, ensure_ascii=False)
