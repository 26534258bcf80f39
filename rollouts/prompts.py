"""Tasks → chat messages → the text that the engine is given, with one placeholder for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from rl.errors import PolicyError, TaskError
from rl.types import Group, Task

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


def chat_messages(task: Task) -> list[dict[str, Any]]:
    """System and user message in the content-list form of Hugging Face chat templates; images come before the text."""
    return [
        _message("system", task.system or default_system(task)),
        _message("user", question_text(task), images=len(task.images)),
    ]


def _message(role: str, text: str, *, images: int = 0) -> dict[str, Any]:
    return {"role": role, "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]}


def messages_by_task(groups: Iterable[Group]) -> dict[str, list[dict[str, Any]]]:
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


def render_prompt(task: Task, processor: Any) -> str:
    """The prompt as text, by the policy's own chat template, open for the assistant's turn.

    ``processor`` is a Hugging Face processor, or a tokenizer for a policy without images. Image placeholders are left
    unexpanded. Raises TaskError for text that holds a special token of the policy, which would read as an image or as
    the end of a turn, and for images that the policy cannot take; PolicyError for a policy without a chat template.
    """
    return _render(task, chat_messages(task), processor)


def _render(task: Task, messages: list[dict[str, Any]], processor: Any) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    _refuse_special_tokens(task, messages, {*special_tokens(tokenizer), getattr(processor, "image_token", "")})
    if processor is tokenizer:
        if any(part["type"] == "image" for message in messages for part in message["content"]):
            raise TaskError(f"task {task.id!r} has images, the policy no image processor")
        messages = [message | {"content": message["content"][0]["text"]} for message in messages]
    if not processor.chat_template:
        raise PolicyError(
            f"policy {tokenizer.name_or_path} has no chat template; add chat_template.jinja to its folder"
        )
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def render_follow_up(task: Task, number: int, processor: Any) -> str:
    """What stands between a turn of the policy's and its next, by the policy's own chat template: the end of the turn,
    the task's follow-up of that number, and the opening of the next turn.

    Raises TaskError as `render_prompt`, PolicyError where the template does not keep the policy's last turn as it is.
    """
    messages = chat_messages(task)
    # Stands for each of the policy's turns, and in no message: none holds a digest of all of them.
    turn = hashlib.sha256(repr([messages, task.follow_ups]).encode()).hexdigest()
    for message in task.follow_ups[: number + 1]:
        messages += [_message("assistant", turn), _message("user", message.text, images=len(message.images))]
    _, kept, following = _render(task, messages, processor).rpartition(turn)
    if not kept:
        raise PolicyError(
            "the policy's chat template leaves out or changes what the assistant wrote last, so that nobody can tell "
            "what follows it; put one that keeps it into the policy's folder (chat_template.jinja)"
        )
    return following


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Those that have a role by name, and those that were added as special without one, as an end of turn often is."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset({*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)})


def _refuse_special_tokens(task: Task, messages: list[dict[str, Any]], special_tokens: set[str]) -> None:
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    for token in sorted(special_tokens - {*TRACE_TAGS, ""}):
        if any(token in text for text in texts):
            raise TaskError(f"the text of task {task.id!r} holds {token!r}, a special token of the policy; remove it")
