"""The contract of a tool, and all that its author needs to import.

A tool *is* its config: the fields of the dataclass are the parameters that a config may set.

    @dataclass(frozen=True, kw_only=True)
    class DailyDose(Tool):
        description = "The usual daily dose of a drug."
        parameters = {"type": "object", "properties": {"drug": {"type": "string"}}, "required": ["drug"]}

        table: dict[str, str]

        def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
            if arguments["drug"] not in self.table:
                raise ToolRefusal(f"no drug is called {arguments['drug']!r}")
            return ToolResult(text=self.table[arguments["drug"]])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rl.types import EncodedImage, Task

__all__ = ["EncodedImage", "Scene", "Tool", "ToolRefusal", "ToolResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a call may look at: the task, and every image that the policy was shown so far, in their order."""

    task: Task
    images: tuple[EncodedImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What the policy is told of a call: images, then text."""

    text: str
    images: tuple[EncodedImage, ...] = ()


class ToolRefusal(Exception):
    """Raised by a tool that cannot do what the policy asked. The policy is told why, and goes on."""


@dataclass(frozen=True, kw_only=True)
class Tool(ABC):
    """Something that the policy may call between two of its turns.

    Whatever `call` raises, other than `ToolRefusal`, is the tool's fault and not the policy's: it breaks the trajectory
    off, which is then unscored and never a zero.
    """

    description: ClassVar[str]
    """What the policy is told of it."""
    parameters: ClassVar[Mapping[str, Any]]
    """JSON Schema of its arguments, an object; what does not fit is refused before `call` is asked."""
    remote: ClassVar[bool] = False
    """It waits for something outside of this process. A remote tool is called in a thread with a deadline
    (``rollouts.tool_timeout_s``) while the engine writes on, so that what it answers, and when, is no function of the
    seed. Any other is called between two steps of the engine, which wait for it."""

    @abstractmethod
    def call(self, arguments: Mapping[str, Any], scene: Scene) -> ToolResult:
        """Answer one call. Raises ToolRefusal for what cannot be done."""

    def declaration(self, name: str) -> dict[str, Any]:
        """The tool as chat templates are given it: a function in the form of OpenAI's chat completions."""
        function = {"name": name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def prepare(self) -> None:  # noqa: B027 - a hook: most tools need nothing
        """Load what calls need. Called before the run starts, and once in every process that calls."""
