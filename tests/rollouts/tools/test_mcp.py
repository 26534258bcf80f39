"""Tools of real servers of the Model Context Protocol, over standard input and output and over HTTP."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rl.errors import ConfigError, TaskError
from rollouts.tools.config import build_tools
from rollouts.tools.tool import Scene, Tool, ToolRefusal
from rollouts.tools.toolbox import Toolbox, ToolLimits
from tests.samples import a_task

pytestmark = pytest.mark.slow  # a server takes most of a second to start

SERVER = Path(__file__).with_name("guideline_server.py")
STDIO = {"use": "mcp", "command": [sys.executable, str(SERVER)]}
SCENE = Scene(task=a_task(), images=())

Tools = Callable[..., Tool]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    with http_server(port):
        yield f"http://127.0.0.1:{port}/mcp"


@pytest.fixture(scope="module", params=["stdio", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    spec = STDIO if request.param == "stdio" else {"use": "mcp", "url": request.getfixturevalue("url")}
    keeps_it_running = a_tool(spec, "search")
    yield spec
    del keeps_it_running


class http_server:
    """The server as a process that listens at ``port`` once the context is entered."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __enter__(self) -> None:
        self._process = subprocess.Popen([sys.executable, str(SERVER), str(self._port)], stderr=subprocess.DEVNULL)
        until(lambda: listens(self._port))

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def until(holds: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def a_tool(spec: dict[str, Any], tool: str, **parameters: Any) -> Tool:
    return build_tools({"it": {**spec, "tool": tool, **parameters}})["it"]


def asked(tool: Tool, **arguments: Any) -> str:
    return tool.call(arguments, SCENE).text


def pid(tool: Tool) -> int:
    return int(asked(tool, query="x").rpartition(" ")[2])


def test_description_and_parameters_are_what_the_server_says(server: dict[str, Any]) -> None:
    function = a_tool(server, "search").declaration("guidelines")["function"]
    assert (function["name"], function["description"]) == ("guidelines", "Search the guidelines.")
    assert function["parameters"]["required"] == ["query"]


def test_text_parts_are_joined(server: dict[str, Any]) -> None:
    assert re.fullmatch(r"about aspirin:\npid \d+", asked(a_tool(server, "search"), query="aspirin"))


def test_an_image_is_shown(server: dict[str, Any]) -> None:
    result = a_tool(server, "picture").call({"side": 30}, SCENE)
    (image,) = result.images
    assert (result.text, image.width, image.height) == ("a square", 30, 30)
    assert image.decode().getpixel((3, 3)) == (255, 0, 0)


def test_a_damaged_image_is_the_servers_fault(server: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="not an image of a known format"):
        asked(a_tool(server, "damaged"))


def test_an_image_of_too_many_pixels_is_not_decoded(server: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="too large: 6000 x 6000"):
        asked(a_tool(server, "picture"), side=6000)


def test_values_without_a_text_are_told_as_json(server: dict[str, Any]) -> None:
    assert asked(a_tool(server, "bare")) == '{"dose_mg": 100}'


def test_what_is_neither_text_nor_image_is_refused(server: dict[str, Any]) -> None:
    with pytest.raises(ToolRefusal, match="answered with resource_link; only text and images"):
        asked(a_tool(server, "elsewhere"))


def test_an_error_of_the_tool_is_told_to_the_policy(server: dict[str, Any]) -> None:
    with pytest.raises(ToolRefusal, match="nothing is known of dragons"):
        asked(a_tool(server, "refuse"), query="dragons")


def test_a_call_against_the_schema_never_reaches_the_server(server: dict[str, Any]) -> None:
    limits = ToolLimits(calls=3, images=1, image_pixels=100, timeout_s=20.0)
    toolbox = Toolbox(build_tools({"search": {**server, "tool": "search"}}), limits)
    answers = []
    for arguments in ('{"query": 3}', '{"query": "aspirin"}'):
        calls = toolbox.begin(f'<tool_call>{{"name": "search", "arguments": {arguments}}}</tool_call>', SCENE, made=0)
        assert calls is not None
        calls.wait(20.0)
        answers += calls.answers()
    assert [answer.call.result.partition("\n")[0] for answer in answers] == [
        "refused: arguments.query: 3 is not of type 'string'",
        "about aspirin:",
    ]


def test_calls_run_at_the_same_time_on_one_server(server: dict[str, Any]) -> None:
    tools = build_tools({name: {**server, "tool": "search"} for name in ("one", "other")})
    with ThreadPoolExecutor(16) as threads:
        pids = set(threads.map(pid, [*tools.values()] * 16))
    assert len(pids) == 1


def test_an_unknown_tool_is_a_config_error_that_names_those_there_are(server: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"rollouts.tools.it: .* has no tool 'serach'; it has search, picture"):
        a_tool(server, "serach")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"use": "mcp", "command": ["no_such_program"]}, "there is no program 'no_such_program'"),
        ({"use": "mcp", "command": [sys.executable, "-c", "1"]}, "there is no MCP server at `.*`: Connection closed"),
        (
            {"use": "mcp", "command": [sys.executable, "-c", "input(); input()"], "timeout_s": 0.5},
            "did not answer within 0.5 s",
        ),
        ({"use": "mcp", "url": "http://127.0.0.1:1/mcp"}, "no MCP server at http://127.0.0.1:1/mcp: .*connect"),
        ({"use": "mcp"}, "give one of command and url"),
        (STDIO | {"url": "http://127.0.0.1:1/mcp"}, "give one of command and url"),
        ({"use": "mcp", "url": "http://me:secret@host/mcp"}, "without a password"),
        (STDIO | {"token_env": "A_TOKEN"}, "token_env with url"),
        (STDIO | {"forward_env": ["A_TOKEN"]}, "the environment variable A_TOKEN is not set where this runs"),
        (
            {"use": "mcp", "url": "http://127.0.0.1:1/mcp", "token_env": "A_TOKEN"},
            "the environment variable A_TOKEN is not set where this runs",
        ),
    ],
)
def test_a_server_that_cannot_be_asked_is_a_config_error(
    spec: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=f"rollouts.tools.it: .*{said}"):
        a_tool(spec, "search")


def test_a_server_in_the_configs_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SERVER.read_text())
    spec = {"use": "mcp", "command": [sys.executable, "mine.py"], "tool": "search"}
    assert asked(build_tools({"it": spec}, tmp_path)["it"], query="x").startswith("about x")


def test_a_server_has_the_variables_that_are_forwarded_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "sk-forwarded")
    monkeypatch.setenv("ANOTHER_TOKEN", "sk-kept")
    tool = a_tool(STDIO, "variable", forward_env=["A_TOKEN"])
    assert [asked(tool, name=name) for name in ("A_TOKEN", "ANOTHER_TOKEN")] == ["sk-forwarded", "not set"]


def test_a_token_goes_to_the_server_and_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "sk-secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        with ThreadPoolExecutor(1) as threads:
            building = threads.submit(a_tool, {"use": "mcp", "url": address}, "x", token_env="A_TOKEN", timeout_s=5.0)
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(1 << 16)
        error = building.exception()
    assert b"authorization: bearer sk-secret" in request.lower()
    assert isinstance(error, ConfigError) and "sk-secret" not in f"{error!r} {error.__cause__!r}"


def test_a_server_that_dies_fails_the_call_and_is_started_anew_for_the_next() -> None:
    tools = build_tools({name: {**STDIO, "tool": name} for name in ("search", "die")})
    before = pid(tools["search"])
    with pytest.raises(Exception, match="Connection closed"):
        asked(tools["die"])
    after = pid(tools["search"])
    assert before != after and runs(after)
    until(lambda: not runs(before))


def test_a_server_that_listens_again_is_connected_to_anew() -> None:
    port = free_port()
    with http_server(port):
        tool = a_tool({"use": "mcp", "url": f"http://127.0.0.1:{port}/mcp"}, "search")
        before = pid(tool)
    with pytest.raises(Exception, match=r"onnect"):
        asked(tool, query="x")
    with http_server(port):
        assert pid(tool) != before


def test_a_server_that_no_longer_has_the_tool_is_at_fault(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(SERVER.read_text())
    spec = {"use": "mcp", "command": [sys.executable, str(mine)]}
    tools = build_tools({name: {**spec, "tool": name} for name in ("search", "die")})
    mine.write_text(SERVER.read_text().replace("def search(", "def find("))
    with pytest.raises(Exception, match="Connection closed"):
        asked(tools["die"])
    with pytest.raises(LookupError, match="no longer has the tool 'search'"):
        asked(tools["search"], query="x")


def test_a_server_that_hangs_fails_the_call_in_time_and_is_left_for_a_new_one(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    tools = build_tools({name: {**STDIO, "tool": name, "timeout_s": 10.0} for name in ("search", "hang")})
    with pytest.raises(TimeoutError, match="did not answer within 10 s"):
        asked(tools["hang"], pid_file=str(note))
    hung = int(note.read_text())
    assert pid(tools["search"]) != hung
    until(lambda: not runs(hung))


def test_a_reply_that_nobody_should_hold_in_memory_fails_the_call(server: dict[str, Any]) -> None:
    tool = a_tool(server, "long")
    assert len(asked(tool, characters=10**6)) == 10**6
    with pytest.raises(Exception, match=r"Connection closed|more than|event"):
        asked(tool, characters=2 * 10**7)


def test_a_server_ends_with_the_last_tool_that_asks_it() -> None:
    tools = build_tools({name: {**STDIO, "tool": "search", "forward_env": ["HOME"]} for name in ("one", "other")})
    served_by = pid(tools["one"])
    del tools["one"]
    gc.collect()
    assert pid(tools["other"]) == served_by
    tools.clear()
    gc.collect()
    until(lambda: not runs(served_by))


def test_a_server_does_not_outlive_a_process_that_is_killed_though_it_ignores_its_input(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import sys; from rollouts.tools.config import build_tools\n"
        f"tool = build_tools({{'it': {{**{STDIO!r}, 'tool': 'hang'}}}})['it']\n"
        f"tool.call({{'pid_file': {str(note)!r}}}, None)"
    )
    root = Path(__file__).parents[3]
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    until(lambda: note.exists() and note.read_text() != "")
    server = int(note.read_text())
    assert runs(server)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    until(lambda: not runs(server))
