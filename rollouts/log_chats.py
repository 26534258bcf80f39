"""Chats as other systems log them, in the form of OpenAI's API, → prompt, images, completion and tool calls."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rl.types import TURN_BREAK, EncodedImage, Message, Observation, ToolCall
from rollouts.images import read_image

MAX_IMAGE_PIXELS = 4194304
_SYSTEM = ("system", "developer")

ChatMessage = Mapping[str, Any]

CHAT_SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {
                "type": ["string", "null", "array"],
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {
                        "type": {"enum": ["text", "image_url"]},
                        "text": {"type": "string"},
                        "image_url": {"type": "object", "required": ["url"], "properties": {"url": {"type": "string"}}},
                    },
                    "if": {"properties": {"type": {"const": "text"}}},
                    "then": {"required": ["text"]},
                    "else": {"required": ["image_url"]},
                },
            },
            "reasoning_content": {"type": ["string", "null"]},
            "tool_call_id": {"type": "string"},
            "tool_calls": {
                "type": ["array", "null"],
                "items": {
                    "type": "object",
                    "required": ["function"],
                    "properties": {
                        "id": {"type": "string"},
                        "function": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"}, "arguments": {"type": ["string", "object"]}},
                        },
                    },
                },
            },
        },
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A prompt and what a policy made of it.

    ``messages`` is the prompt, its images named by hash alone; None where the log has it as one text. ``text`` is all
    that the policy wrote, its turns a blank line apart, reasoning that the API returned beside the content in a
    ``<think>`` block before it; ``observations`` are what the user said between them.
    """

    messages: tuple[ChatMessage, ...] | None
    system: str
    question: str
    images: tuple[EncodedImage, ...]
    text: str
    tool_calls: tuple[ToolCall, ...]
    observations: tuple[Observation, ...]


def read_chat(prompt: str | Sequence[ChatMessage], completion: str | Sequence[ChatMessage]) -> Chat:
    """Raises ValueError or TaskError for an image that is not inline, or is none, and for malformed tool arguments."""
    turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    asked = [] if isinstance(prompt, str) else prompt
    images = tuple(_images(asked))
    names = iter([image.sha256 for image in images])
    text, observations = _spoken(turns)
    return Chat(
        messages=tuple({**each, "content": _named_images(each.get("content"), names)} for each in asked) or None,
        system="\n\n".join(_text(each) for each in asked if each["role"] in _SYSTEM),
        question=prompt if isinstance(prompt, str) else _question([m for m in asked if m["role"] not in _SYSTEM]),
        images=images,
        text=text,
        tool_calls=tuple(_tool_calls(turns)),
        observations=observations,
    )


def split_chat(messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], Sequence[ChatMessage]]:
    """Prompt and completion: what follows the last message of the user. Raises ValueError where no answer does."""
    start = max((index + 1 for index, message in enumerate(messages) if message["role"] == "user"), default=0)
    if not any(message["role"] == "assistant" for message in messages[start:]):
        raise ValueError("messages: the last message of the user has no answer by the assistant")
    return messages[:start], messages[start:]


def _question(messages: Sequence[ChatMessage]) -> str:
    """The one message, or the conversation up to the turn that is asked for."""
    if len(messages) == 1:
        return _text(messages[0])
    return "\n\n".join(f"{message['role']}: {_text(message)}" for message in messages)


def _text(message: ChatMessage) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")


def _spoken(messages: Sequence[ChatMessage]) -> tuple[str, tuple[Observation, ...]]:
    """What the policy wrote, and what the user said in between. What it was told last and did not answer is no turn."""
    end = max((index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    text, observations = "", []
    for by_user, part in groupby(messages[:end], lambda message: message["role"] == "user"):
        run = list(part)
        if by_user:
            told = Message(text="\n\n".join(map(_text, run)), images=tuple(_images(run)))
            observations.append(Observation(message=told, place=len(text)))
            text += TURN_BREAK
        else:
            text += "\n\n".join(filter(None, map(_written, run)))
    return text, tuple(observations)


def _written(message: ChatMessage) -> str:
    """What the policy wrote in a turn; nothing in one of another role."""
    if message["role"] != "assistant":
        return ""
    reasoning = message.get("reasoning_content")
    return (f"<think>{reasoning}</think>" if reasoning else "") + _text(message)


def _images(messages: Sequence[ChatMessage]) -> Iterator[EncodedImage]:
    for message in messages:
        for part in message.get("content") or []:
            if isinstance(part, dict) and part["type"] == "image_url":
                yield _inline_image(part["image_url"]["url"])


def _inline_image(url: str) -> EncodedImage:
    header, comma, encoded = url.partition(",")
    if not header.startswith("data:image/") or not header.endswith(";base64") or not comma:
        raise ValueError(f"image_url must be a data: URI in base64, since nothing is fetched; got {url[:60]!r}")
    return read_image(base64.b64decode(encoded, validate=True), source="in the chat", max_pixels=MAX_IMAGE_PIXELS)


def _named_images(content: Any, names: Iterator[str]) -> Any:
    if not isinstance(content, list):
        return content
    return [{"type": "image", "sha256": next(names)} if part["type"] == "image_url" else part for part in content]


def _tool_calls(turns: Sequence[ChatMessage]) -> Iterator[ToolCall]:
    """Calls in order, each with the result that names its id; one without a result is not ok."""
    results = {turn.get("tool_call_id"): _text(turn) for turn in turns if turn["role"] == "tool"}
    for turn in turns:
        for call in turn.get("tool_calls") or []:
            arguments = call["function"].get("arguments") or {}
            if isinstance(arguments, str):
                try:
                    arguments = json.loads(arguments)
                except ValueError as error:
                    raise _malformed(call, f"{error}; got {arguments[:60]!r}") from None
            if not isinstance(arguments, dict):
                raise _malformed(call, f"got {arguments!r:.60}")
            result = results.get(call.get("id"))
            yield ToolCall(
                name=call["function"]["name"], arguments=arguments, result=result or "", ok=result is not None
            )


def _malformed(call: ChatMessage, found: str) -> ValueError:
    return ValueError(f"the arguments of the tool {call['function']['name']!r} must be a JSON object: {found}")
