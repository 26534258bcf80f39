"""A server of the Model Context Protocol for the tests: over standard input and output, or HTTP at the port given."""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from pathlib import Path

import PIL.Image
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, ResourceLink, TextContent

server = MCPServer("guidelines")


@server.tool(structured_output=False)
def search(query: str) -> list[TextContent]:
    """Search the guidelines."""
    return [TextContent(text=f"about {query}:"), TextContent(text=f"pid {os.getpid()}")]


@server.tool(structured_output=False)
def picture(side: int) -> list[TextContent | ImageContent]:
    """Show a square."""
    encoded = io.BytesIO()
    PIL.Image.new("RGB", (side, side), "red").save(encoded, "PNG")
    content = base64.b64encode(encoded.getvalue()).decode()
    return [TextContent(text="a square"), ImageContent(data=content, mime_type="image/png")]


@server.tool(structured_output=False)
def damaged() -> ImageContent:
    return ImageContent(data="bm8gaW1hZ2U=", mime_type="image/png")


@server.tool(structured_output=False)
def elsewhere() -> ResourceLink:
    return ResourceLink(name="a file", uri="file:///etc/passwd")


@server.tool()
def number() -> dict[str, int]:
    return {"dose_mg": 100}


@server.tool()
def bare() -> CallToolResult:
    return CallToolResult(content=[], structured_content={"dose_mg": 100})


@server.tool()
def refuse(query: str) -> str:
    raise ToolError(f"nothing is known of {query}")


@server.tool()
def variable(name: str) -> str:
    return os.environ.get(name, "not set")


@server.tool(structured_output=False)
def long(characters: int) -> str:
    return "x" * characters


@server.tool()
def die() -> str:
    os._exit(1)


@server.tool()
def hang(pid_file: str) -> str:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(600)
    return "at last"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
