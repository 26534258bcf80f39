"""One trajectory in full: its case with regions drawn, the trace, scores with provenance, conversation and tokens."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rl.report.charts import format_value
from rl.report.input import Item
from rl.report.markup import Markup, element, join
from rl.report.regions import drawn_boxes, picture
from rl.report.trajectory import Draw, case_panel, group_strip, outcome_chip, trace_panel
from rl.types import EncodedImage, Message
from rl.view.index import LoggedFile
from rl.view.runs import box_coordinates_in, roles_in
from rl.view.tokens import spelled, token_section
from rollouts.log import read_row
from rollouts.log_rows import rows_group


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """A trajectory of the same group: its address, reward, and whether it is the one that is shown."""

    address: str
    sample: int
    reward: float | None
    shown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A trajectory as the store has it, and the folder and file of the run that it lies in."""

    file: LoggedFile
    folder: Path
    row: Mapping[str, Any]
    item: Item


def open_trajectory(folder: Path, file: LoggedFile, number: int) -> Opened:
    """The row of that number. Its images are not read: the page asks for them. Raises LogError."""
    row = read_row(folder, file.step, number, kind=file.kind)
    (item,) = rows_group([row], load_image=_unread).items
    return Opened(file=file, folder=folder, row=row, item=item)


def _unread(entry: Mapping[str, Any]) -> EncodedImage:
    return EncodedImage(content=b"", width=entry["width"], height=entry["height"], source=entry["source"])


def trajectory_view(opened: Opened, siblings: Sequence[Sibling]) -> Markup:
    """All that is known of it."""
    folder, item, row, draw = opened.folder, opened.item, opened.row, _drawn(opened)
    panels = case_panel(item.trajectory.task, draw), trace_panel(item, roles_in(folder), draw=draw)
    body = element("div", *panels, class_="card-body")
    texts = spelled(folder, row["completion_token_ids"].tolist()) if row["completion_token_ids"] is not None else None
    written = _tool_calls(item), _conversation(opened), token_section(row, texts)
    return join(_standing(opened, siblings), body, _provenance(item), *written, _background(opened))


def _standing(opened: Opened, siblings: Sequence[Sibling]) -> Markup:
    """How it came out, beside the others of its group."""
    row = opened.row
    told = [f"{row['kind']} step {row['step']:,}", f"group {row['group_index']}", f"sample {row['sample_index'] + 1}"]
    told += [f"group {row['group_outcome'].replace('_', ' ')}"] if row["group_outcome"] else []
    told += ["drawn anew: not in the batch"] if row["drawn_anew"] else []
    told += [f"micro-batch {row['micro_batch']}"] if row["micro_batch"] is not None else []
    rewards = [each.reward for each in siblings if each.reward is not None]
    this = [each.shown for each in siblings if each.reward is not None]
    figures = [
        _figure("reward", "none" if row["reward"] is None else format_value(row["reward"], "reward")),
        _figure("advantage", "none" if row["advantage"] is None else f"{row['advantage']:+.3f}".replace("-", "−")),
        element("div", group_strip(rewards, this.index(True) if True in this else None), class_="in-group"),
    ]
    return element(
        "header",
        element("h1", outcome_chip(opened.item), " ", row["task_id"]),
        element("p", element("b", opened.file.run), f" · {' · '.join(told)}", class_="dim"),
        element("p", row["trajectory_id"], class_="id"),
        element("div", *figures, class_="standing-figures"),
        _group(siblings),
        class_="standing-head",
    )


def _figure(name: str, text: str) -> Markup:
    return element("p", element("span", name, class_="dim"), element("b", text))


def _group(siblings: Sequence[Sibling]) -> Markup:
    if len(siblings) < 2:
        return Markup()
    links = [
        element(
            "a",
            f"{each.sample + 1} · ",
            "unscored" if each.reward is None else format_value(each.reward, "reward"),
            href=each.address,
            aria_current="true" if each.shown else None,
        )
        for each in siblings
    ]
    return element("nav", element("span", "Group", class_="dim"), *links, class_="siblings", aria_label="Group")


def _drawn(opened: Opened) -> Draw:
    """Draws an image by its address here, with the boxes that are in it."""
    row = opened.row
    entries = [*row["images"], *(entry for told in row["observations"] or () for entry in told["images"])]
    boxes = drawn_boxes(opened.item, coordinates=box_coordinates_in(opened.folder))

    def draw(number: int, image: EncodedImage) -> Markup:
        address = f"/images/{quote(opened.file.run, safe='')}/{quote(Path(entries[number]['file']).name)}"
        alt = f"image {number + 1} of case {row['task_id']}"
        return picture(image, address, alt, [box for box in boxes if box.image == number])

    return draw


def _provenance(item: Item) -> Markup:
    """By which version of which scorer every score was given, on which inputs, and how long that took."""
    head = element(
        "tr", *(element("th", title, scope="col") for title in ("Scorer", "Outcome", "Version", "Inputs", "Time"))
    )
    rows = [
        element(
            "tr",
            element("th", record.scorer, scope="row"),
            element("td", record.outcome.replace("_", " ")),
            element("td", element("code", record.version)),
            element("td", element("code", record.inputs or "not kept")),
            element("td", f"{1000 * record.duration_s:,.1f} ms"),
        )
        for record in item.scores.values()
    ]
    return _fold(
        "Provenance",
        f"{len(rows)} scorer{'s' if len(rows) != 1 else ''}",
        element("div", element("table", head, *rows), class_="wide"),
    )


def _tool_calls(item: Item) -> Markup:
    """Those that stand behind no turn of the trace, because the log does not say which turn made them."""
    calls = [call for call in item.trajectory.tool_calls if call.turn < 0]
    if not calls:
        return Markup()
    shown = [
        element(
            "li",
            element("p", element("b", call.name), "" if call.ok else element("span", " failed", class_="failure")),
            element("pre", json.dumps(dict(call.arguments), ensure_ascii=False)),
            element("pre", call.result, class_="result"),
        )
        for call in calls
    ]
    return _fold("Tool calls", f"{len(calls)}", element("ol", *shown, class_="calls"), open="")


def _conversation(opened: Opened) -> Markup:
    """The messages as they were put to the policy, and what it wrote."""
    row, trajectory = opened.row, opened.item.trajectory
    turns = json.loads(row["messages"]) if row["messages"] else []
    turns = turns or [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["question"]}]
    for reply, told in zip_longest(trajectory.turns, trajectory.observations):
        turns.append({"role": "assistant", "content": reply})
        turns += [{"role": told.message.role, "content": _parts(told.message)}] if told else []
    shown = [
        element("li", element("b", str(turn.get("role", ""))), element("pre", _content(turn.get("content"))))
        for turn in turns
        if turn.get("content")
    ]
    return _fold("Conversation", f"{len(shown)} messages", element("ol", *shown, class_="turns"))


def _parts(message: Message) -> list[dict[str, str]]:
    return [*({"type": "image"} for _ in message.images), {"type": "text", "text": message.text}]


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [each if isinstance(each, dict) else {"text": each} for each in content]
    return "\n".join(str(part.get("text", f"[{part.get('type', 'part')}]")) for part in parts)


def _background(opened: Opened) -> Markup:
    """What else the row says: how it was drawn, how long it took, and how to go deeper."""
    row = opened.row
    facts = {
        "finish reason": row["finish_reason"],
        "policy version": row["policy_version"],
        "stratum": row["stratum"],
        "seed": row["seed"],
        "duration": None if row["duration_s"] is None else f"{row['duration_s']:.2f} s",
        "sampling": json.dumps(row["sampling"]) if row["sampling"] else None,
        "source": row["source"],
        "reference": row["reference"] if row["reference"] not in (None, "{}") else None,
        "extra": row["extra"] if row["extra"] != "{}" else None,
    }
    told = [
        element("tr", element("th", name, scope="row"), element("td", str(fact)))
        for name, fact in facts.items()
        if fact not in (None, "")
    ]
    command = ["medrl", "explain", str(opened.folder), "--step", str(row["step"]), "--trajectory", row["trajectory_id"]]
    deeper = (
        element("pre", shlex.join(command)) if row["kind"] == "train" and row["advantage"] is not None else Markup()
    )
    return _fold("Background", row["finish_reason"] or "", element("table", *told), deeper)


def _fold(title: str, lead: str, *content: Markup, **attributes: str) -> Markup:
    summary = element("summary", title, " ", element("span", lead, class_="dim"))
    return element("details", summary, *content, class_="fold", **attributes)
