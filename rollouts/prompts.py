"""Tasks → chat messages → the text that the engine is given, with one placeholder for each image."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rl.errors import PolicyError, TaskError
from rl.types import Group, Message, Task

ChatMessage = dict[str, Any]
"""Role and content, in the content-list form of Hugging Face chat templates."""
Declaration = dict[str, Any]
"""A tool as chat templates are given it (`rollouts.tools.tool.Tool.declaration`)."""

TRACE_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_ANSWER_FORMS = {
    "yes_no": "yes or no",
    "choice": "the letter of the right option",
    "number": "one number",
    "text": "a few words",
    "labels": "all labels that apply, separated by commas",
    "date": "a date as YYYY-MM-DD",
    "formula": "a formula",
    "box": "a box as [left, top, right, bottom] in pixels of the image",
}


def chat_messages(task: Task) -> list[ChatMessage]:
    """System and user message; images come before the text."""
    return [
        _message("system", task.system or default_system(task)),
        _message("user", question_text(task), images=len(task.images)),
    ]


def _message(role: str, text: str, *, images: int = 0) -> ChatMessage:
    return {"role": role, "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]}


def messages_by_task(groups: Iterable[Group]) -> dict[str, list[ChatMessage]]:
    """The chat that each group's task was put as, by task id."""
    return {group.task.id: chat_messages(group.task) for group in groups}


def default_system(task: Task) -> str:
    """What a task without an instruction of its own asks for: a trace, and an answer in the form that is checked."""
    form = _ANSWER_FORMS.get(str(task.answer.get("type")), "the answer")
    unit = task.answer.get("unit")
    if unit:
        form = f"{form} in {unit}"
    return f"Think step by step inside <think></think>, then give {form} inside <answer></answer>."


def question_text(task: Task) -> str:
    """The question, followed by the options of a choice unless it has them already."""
    options = task.answer.get("options") or {}
    if all(str(text) in task.question for text in options.values()):
        return task.question
    return "\n".join([task.question, *(f"{letter}. {text}" for letter, text in options.items())])


def render_prompt(task: Task, processor: Any, *, tools: Sequence[Declaration] = ()) -> str:
    """The prompt as text, by the policy's own chat template, open for the assistant's turn.

    ``processor`` is a Hugging Face processor, or a tokenizer for a policy without images. Image placeholders are left
    unexpanded. Raises TaskError for text that holds a special token of the policy, which would read as an image or as
    the end of a turn, and for images that the policy cannot take; PolicyError for a policy without a chat template.
    """
    return _render(task, chat_messages(task), processor, tools)


def render_follow_up(task: Task, number: int, processor: Any, *, tools: Sequence[Declaration] = ()) -> str:
    """What stands between a turn of the policy's and its next, by the policy's own chat template: the end of the turn,
    the task's follow-up of that number, and the opening of the next turn.

    Raises TaskError as `render_prompt`, PolicyError where the template does not keep the policy's last turn as it is.
    """
    told = [[_message("user", message.text, images=len(message.images))] for message in task.follow_ups[: number + 1]]
    return _following(task, told, processor, tools)


def render_results(task: Task, results: Sequence[Message], processor: Any, *, tools: Sequence[Declaration]) -> str:
    """The same with what the tools answered in place of a follow-up. Raises as `render_follow_up`."""
    if has_tool_role(processor):
        told = [_message("tool", result.text, images=len(result.images)) for result in results]
    else:
        text = "\n".join(f"<tool_response>\n{result.text}\n</tool_response>" for result in results)
        told = [_message("user", text, images=sum(len(result.images) for result in results))]
    return _following(task, [told], processor, tools)


def _following(task: Task, told: Sequence[Sequence[ChatMessage]], processor: Any, tools: Sequence[Declaration]) -> str:
    """What follows a turn of the policy's, where ``told`` are the messages after each of its turns so far."""
    messages = chat_messages(task)
    # Stands for each of the policy's turns, and in no message: none holds a digest of all of them.
    turn = hashlib.sha256(repr([messages, told]).encode()).hexdigest()
    for each in told:
        messages += [_message("assistant", turn), *each]
    _, kept, following = _render(task, messages, processor, tools).rpartition(turn)
    if not kept:
        raise PolicyError(
            "the policy's chat template leaves out or changes what the assistant wrote last, so that nobody can tell "
            "what follows it; put one that keeps it into the policy's folder (chat_template.jinja)"
        )
    return following


def _render(task: Task, messages: list[ChatMessage], processor: Any, tools: Sequence[Declaration]) -> str:
    _refuse_special_tokens(task, messages, unsayable(processor))
    if tools and not takes_tools(processor):
        messages[0]["content"][-1]["text"] += "\n\n" + tool_instructions(tools)
    has_images = any(part["type"] == "image" for message in messages for part in message["content"])
    if has_images and not hasattr(processor, "tokenizer"):
        raise TaskError(f"task {task.id!r} has images, the policy no image processor")
    return _applied(messages, processor, tools)


def _applied(messages: Sequence[ChatMessage], processor: Any, tools: Sequence[Declaration] = ()) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    if not processor.chat_template:
        raise PolicyError(
            f"policy {tokenizer.name_or_path} has no chat template; add chat_template.jinja to its folder"
        )
    if processor is tokenizer:
        messages = [message | {"content": message["content"][0]["text"]} for message in messages]
    named = {"tools": list(tools)} if tools and takes_tools(processor) else {}
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **named))


def takes_tools(processor: Any) -> bool:
    """Whether the policy's chat template says itself which tools there are; else the system message is made to."""
    return re.search(r"\btools\b", str(processor.chat_template)) is not None


def has_tool_role(processor: Any) -> bool:
    """Whether the policy's chat template has a place for what tools answer, images among it; else the user tells it."""
    from jinja2 import TemplateError

    image = getattr(processor, "image_token", "")
    chat = [
        _message("user", "a question"),
        _message("assistant", "a turn"),
        _message("tool", "7f3a", images=bool(image)),
    ]
    try:
        rendered = _applied(chat, processor)
    except TemplateError:
        return False
    return takes_tools(processor) and "7f3a" in rendered and image in rendered


def tool_instructions(tools: Sequence[Declaration]) -> str:
    """How to call which tools, for a policy whose chat template does not say so."""
    return "\n".join(
        [
            "You may call tools. A call is a JSON object in tags:",
            '<tool_call>{"name": "…", "arguments": {…}}</tool_call>',
            "End your turn after a call; you are then told its result in <tool_response></tool_response>. The tools:",
            *(json.dumps(tool["function"], ensure_ascii=False) for tool in tools),
        ]
    )


def unsayable(processor: Any) -> frozenset[str]:
    """What no text may hold that the policy is given: its special tokens, which would read as an image or as the end of
    a turn. The tags of a trace are meant to be read as such."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return (special_tokens(tokenizer) | {getattr(processor, "image_token", "")}) - {*TRACE_TAGS, ""}


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Those that have a role by name, and those that were added as special without one, as an end of turn often is."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset({*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)})


def _refuse_special_tokens(task: Task, messages: list[ChatMessage], tokens: Collection[str]) -> None:
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    for token in sorted(tokens):
        if any(token in text for text in texts):
            raise TaskError(f"the text of task {task.id!r} holds {token!r}, a special token of the policy; remove it")
