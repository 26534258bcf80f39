"""The trajectory store: what is written reads back to the bit, whole or not at all, with or without this project."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rl.errors import LogError
from rl.types import (
    EncodedImage,
    Evidence,
    Group,
    Measurement,
    Message,
    Observation,
    Outcome,
    SamplingParams,
    Score,
    ScoredTrajectory,
    ScoreRecord,
    Task,
    ToolCall,
    Trajectory,
    Unscored,
)
from rollouts.log import (
    LoggedStep,
    drop_steps_from,
    iter_rows,
    logged_steps,
    read_step,
    rescore_step,
    schema,
    write_step,
)
from tests.made_up_log import a_step as a_made_up_step
from tests.samples import a_trajectory

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(64))


def same(left: Any, right: Any) -> bool:
    """Equal in type and content, arrays to the bit, mappings in order."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, field.name), getattr(right, field.name)) for field in fields(left)
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) and left != left:
        return right != right
    return left == right


texts = st.text(max_size=12)
floats = st.floats(width=64)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
images = st.builds(
    EncodedImage,
    content=st.binary(max_size=8).flatmap(lambda tail: st.sampled_from([PNG + tail, JPEG + tail])),
    width=st.integers(1, 4096),
    height=st.integers(1, 4096),
    source=texts,
)
messages = st.builds(Message, text=texts, images=st.lists(images, max_size=2).map(tuple))
told = st.builds(replace, messages, role=st.sampled_from(["user", "tool"]))
tasks = st.builds(
    Task,
    id=texts,
    question=texts,
    answer=json_objects,
    images=st.lists(images, max_size=2).map(tuple),
    follow_ups=st.lists(messages, max_size=2).map(tuple),
    system=texts,
    record=st.dictionaries(texts, st.builds(Measurement, value=floats, unit=texts, reading=texts), max_size=3),
    rubric=st.lists(json_objects, max_size=2).map(tuple),
    reference=json_objects,
    stratum=texts,
    extra=json_objects,
)
evidence = st.builds(
    Evidence,
    claim=texts,
    verdict=st.sampled_from(["supported", "refuted", "uncertain", "unsupported"]),
    start=st.integers(-1, 500),
    end=st.integers(-1, 500),
    source=texts,
    note=texts,
)
scores = st.builds(
    Score,
    st.floats(0, 1),
    reason=texts,
    evidence=st.lists(evidence, max_size=2).map(tuple),
    gate_open=st.booleans(),
    metrics=st.dictionaries(texts, floats, max_size=2),
)


@st.composite
def score_mappings(draw: st.DrawFn) -> dict[str, ScoreRecord]:
    records = {}
    for name in draw(st.lists(texts, max_size=2, unique=True)):
        outcome = draw(st.sampled_from(get_args(Outcome)))
        score = draw(scores) if outcome == "scored" else None
        reason, version, inputs, duration_s = draw(texts), draw(texts), draw(texts), draw(floats)
        records[name] = ScoreRecord(
            scorer=name,
            version=version,
            outcome=outcome,
            score=score,
            reason=reason,
            inputs=inputs,
            duration_s=duration_s,
        )
    return records


@st.composite
def trajectories(draw: st.DrawFn, task: Task, name: str) -> Trajectory:
    length = draw(st.integers(0, 5))
    version = draw(st.integers(0, 2**40))
    return Trajectory(
        id=name,
        task=task,
        sample_index=draw(st.integers(0, 63)),
        prompt_token_ids=draw(hnp.arrays(np.int32, st.integers(0, 5))),
        completion_token_ids=draw(hnp.arrays(np.int32, length)),
        completion_mask=draw(hnp.arrays(np.bool_, length)),
        rollout_logprobs=draw(hnp.arrays(np.float32, length)),  # any bit pattern: NaN, -0.0 and infinities included
        text=draw(texts),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        policy_version=version,
        later_versions=tuple((place, version + place) for place in range(1, draw(st.integers(1, max(length, 1))))),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        sampling=draw(
            st.builds(
                SamplingParams,
                temperature=st.floats(0, 2),
                top_p=st.floats(0, 1),
                top_k=st.integers(0, 100),
                max_tokens=st.integers(1, 4096),
                stop=st.lists(texts, max_size=2).map(tuple),
            )
        ),
        tool_calls=draw(
            st.lists(
                st.builds(
                    ToolCall,
                    name=texts,
                    arguments=json_objects,
                    result=texts,
                    ok=st.booleans(),
                    turn=st.integers(-1, 9),
                ),
                max_size=2,
            ).map(tuple)
        ),
        duration_s=draw(st.floats(0, 1e6)),
        observations=draw(
            st.lists(st.builds(Observation, message=told, place=st.integers(0, 500)), max_size=2).map(tuple)
        ),
    )


@st.composite
def logged(draw: st.DrawFn) -> LoggedStep:
    groups = []
    for index in range(draw(st.integers(0, 2))):
        task = replace(draw(tasks), id=f"task-{index}")
        members = [draw(trajectories(task, f"t{index}-{sample}")) for sample in range(draw(st.integers(1, 3)))]
        cut = draw(st.integers(0, len(members)))
        scored = tuple(
            ScoredTrajectory(
                trajectory=member,
                reward=draw(floats),
                scores=draw(score_mappings()),
                correct=draw(st.sampled_from([None, True, False])),
            )
            for member in members[:cut]
        )
        unscored = tuple(
            Unscored(trajectory=member, scores=draw(score_mappings()), reason=draw(texts)) for member in members[cut:]
        )
        groups.append(Group(task=task, scored=scored, unscored=unscored))
    trained = [item.trajectory for group in groups for item in group.scored]
    return LoggedStep(
        step=draw(st.integers(0, 10**7)),
        kind=draw(st.sampled_from(["train", "eval"])),
        groups=groups,
        advantages={trajectory.id: draw(floats) for trajectory in trained},
        learner_logprobs={item.id: draw(hnp.arrays(np.float32, len(item.completion_mask))) for item in trained[1:]},
        micro_batches={item.id: index for index, item in enumerate(trained[1:])},
        update=draw(json_objects),
        drawn_anew=frozenset(range(draw(st.integers(0, len(groups))), len(groups))),
        messages={group.task.id: draw(st.lists(json_objects, max_size=2)) for group in groups[1:]},
    )


def a_group(name: str = "a", *, samples: int = 2, image: bytes = PNG) -> Group:
    task = Task(
        id=name,
        question="Is it malignant?",
        answer={"type": "yes_no", "value": "yes"},
        images=(EncodedImage(content=image, width=8, height=8),),
        record={"radius": Measurement(value=17.99, unit="µm", reading="high")},
    )
    return Group(task=task, scored=tuple(a_scored(task, index) for index in range(samples)))


def a_scored(task: Task, index: int, *, reward: float = 1.0) -> ScoredTrajectory:
    trajectory = Trajectory(
        id=f"{task.id}/{index}",
        task=task,
        sample_index=index,
        prompt_token_ids=np.array([1, 2, 3], np.int32),
        completion_token_ids=np.array([4, 5], np.int32),
        completion_mask=np.array([True, False]),
        rollout_logprobs=np.array([-0.5, np.nan], np.float32),
        text="<think>radius 17.99</think><answer>yes</answer>",
        finish_reason="stop",
        policy_version=3,
        seed=index,
        sampling=SamplingParams(),
    )
    spot = Evidence(claim="radius 17.99", verdict="supported", start=7, end=19, source="record.radius")
    record = ScoreRecord(scorer="facts", version="v1", outcome="scored", score=Score(1.0, evidence=(spot,)))
    return ScoredTrajectory(trajectory=trajectory, reward=reward, scores={"facts": record}, correct=True)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(step=logged())
def test_any_step_reads_back_as_it_was_written_to_the_bit(step: LoggedStep, tmp_path: Path) -> None:
    write_step(tmp_path, step)
    assert same(read_step(tmp_path, step.step, kind=step.kind), step)


def test_a_step_reads_back_as_it_was_written_to_the_bit(tmp_path: Path) -> None:
    group = a_group("größe 🩻")
    lost = Unscored(trajectory=replace(group.scored[0].trajectory, id="lost"), scores={}, reason="judge timed out")
    step = LoggedStep(
        step=12,
        groups=[replace(group, unscored=(lost,)), a_group("b", image=JPEG)],
        advantages={"b/0": -0.5, "b/1": float("nan")},
        learner_logprobs={"b/0": np.array([-0.0, np.nan], np.float32)},
        micro_batches={"b/0": 3},
        update={"stats": {"total": -0.1}, "weights_after": "ab"},
        messages={"b": [{"role": "user", "content": "Is it malignant?"}]},
    )
    write_step(tmp_path, step)
    assert same(read_step(tmp_path, 12), step)


def a_conversation() -> Group:
    """Two samples of a task whose doubt shows a further image; the second ended before it was told, both before the
    last image."""
    doubt, last = (
        Message(text=text, images=(EncodedImage(content=content, width=4, height=4),))
        for text, content in [("Are you sure?\nLook again.", JPEG), ("", PNG + b"last")]
    )
    task = replace(a_group("told").task, follow_ups=(doubt, last))
    told, ended = a_scored(task, 0), a_scored(task, 1)
    spoken = replace(told.trajectory, text="yes\n\nno", observations=(Observation(message=doubt, place=3),))
    return Group(task=task, scored=(replace(told, trajectory=spoken), ended))


def test_what_the_user_says_between_turns_reads_back_with_its_images(tmp_path: Path) -> None:
    step = LoggedStep(step=3, groups=[a_conversation(), a_group("plain")])
    path = write_step(tmp_path, step)
    read = read_step(tmp_path, 3)
    assert same(read, step)
    assert read.groups[0].scored[0].trajectory.turns == ("yes", "no")
    sizes = sorted(each.stat().st_size for each in (tmp_path / "images").iterdir())
    assert sizes == [len(JPEG), len(PNG), len(PNG) + 4]  # the doubt's, which two columns name, is there once
    rows = pq.read_table(path).to_pylist()
    assert [row["follow_ups"] is None for row in rows] == [False, False, True, True]
    assert [row["observations"] is None for row in rows] == [False, True, True, True]


def test_a_conversation_that_is_scored_anew_takes_all_of_its_images_along(tmp_path: Path) -> None:
    step = LoggedStep(step=3, groups=[a_conversation()])
    write_step(tmp_path / "run", step)
    scored = step.groups[0].scored
    assert rescore_step(tmp_path / "run", 3, out=tmp_path / "again", score=lambda _: scored) == 2
    assert same(read_step(tmp_path / "again", 3).groups, step.groups)


def test_a_log_from_before_trajectories_had_several_turns_reads_as_of_one(tmp_path: Path) -> None:
    step = LoggedStep(step=0, groups=[a_group()])
    path = write_step(tmp_path, step)
    pq.write_table(pq.read_table(path).drop_columns(["follow_ups", "observations"]), path)
    assert same(read_step(tmp_path, 0), step)


def without_fields(table: pa.Table, column: str, *names: str) -> pa.Table:
    """As a release wrote it that did not know these fields of the column's entries."""
    kept = [field for field in table.schema.field(column).type.value_type if field.name not in names]
    entries = [
        row and [{field.name: entry[field.name] for field in kept} for entry in row]
        for row in table[column].to_pylist()
    ]
    position = table.schema.get_field_index(column)
    return table.set_column(position, column, pa.array(entries, pa.list_(pa.struct(kept))))


def a_call_and_a_doubt() -> ScoredTrajectory:
    """A tool is called and answers with an image, then the user speaks."""
    zoomed = Message(text="closer", images=(EncodedImage(content=JPEG, width=4, height=4),), role="tool")
    item = a_scored(a_group().task, 0)
    spoken = replace(
        item.trajectory,
        text="look\n\nyes\n\nno",
        observations=(Observation(message=zoomed, place=4), Observation(message=Message(text="Sure?"), place=9)),
        tool_calls=(ToolCall(name="zoom", arguments={"by": 2}, result="closer", turn=0),),
    )
    return replace(item, trajectory=spoken)


def test_what_tools_told_reads_back_as_theirs_with_the_calls_that_asked_for_it(tmp_path: Path) -> None:
    item = a_call_and_a_doubt()
    step = LoggedStep(step=0, groups=[Group(task=item.trajectory.task, scored=(item,))])
    write_step(tmp_path, step)
    assert same(read_step(tmp_path, 0), step)


def test_a_log_from_before_tools_were_called_reads_as_told_by_the_user(tmp_path: Path) -> None:
    item = a_call_and_a_doubt()
    path = write_step(tmp_path, LoggedStep(step=0, groups=[Group(task=item.trajectory.task, scored=(item,))]))
    table = without_fields(pq.read_table(path), "observations", "role")
    pq.write_table(without_fields(table, "tool_calls", "turn"), path)
    trajectory = read_step(tmp_path, 0).groups[0].scored[0].trajectory
    assert [each.message.role for each in trajectory.observations] == ["user", "user"]
    assert [each.message.text for each in trajectory.observations] == ["closer", "Sure?"]
    assert trajectory.tool_calls == (replace(item.trajectory.tool_calls[0], turn=-1),)


def test_a_log_from_before_inputs_were_kept_still_reads(tmp_path: Path) -> None:
    record = ScoreRecord(scorer="s", version="v1", outcome="scored", score=Score(1.0), inputs="abc")
    trajectory = a_trajectory()
    scored = ScoredTrajectory(trajectory=trajectory, reward=1.0, scores={"s": record})
    path = write_step(tmp_path, LoggedStep(step=1, groups=[Group(task=trajectory.task, scored=(scored,))]))
    pq.write_table(without_fields(pq.read_table(path), "scores", "inputs"), path)
    read = read_step(tmp_path, 1).groups[0].scored[0]
    assert read.scores["s"] == replace(record, inputs="")


def test_a_lone_surrogate_is_kept_as_the_replacement_character_so_that_offsets_stay(tmp_path: Path) -> None:
    task = a_group().task
    scored = a_scored(task, 0)
    broken = replace(scored, trajectory=replace(scored.trajectory, text="a\ud800b"))
    write_step(tmp_path, LoggedStep(step=0, groups=[Group(task=task, scored=(broken,))]))
    assert read_step(tmp_path, 0).groups[0].scored[0].trajectory.text == "a\ufffdb"


def test_some_groups_are_read_without_the_others(tmp_path: Path) -> None:
    step = a_made_up_step(1, groups=200)  # 1,600 rows: group 128 begins a second part of the file
    write_step(tmp_path, step)
    part = read_step(tmp_path, 1, groups={199, 3, 128})
    assert same(part.groups, [step.groups[index] for index in (3, 128, 199)])
    assert part.advantages.keys() == {item.trajectory.id for group in part.groups for item in group.scored}
    assert read_step(tmp_path, 1, groups=()).groups == []


def test_each_image_is_stored_once_under_its_hash_and_shared_when_read(tmp_path: Path) -> None:
    write_step(tmp_path, LoggedStep(step=0, groups=[a_group("a"), a_group("b"), a_group("c", image=JPEG)]))
    write_step(tmp_path, LoggedStep(step=1, groups=[a_group("d")]))
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    expected = [EncodedImage(content=content, width=1, height=1).sha256 for content in (PNG, JPEG)]
    assert names == sorted([f"{expected[0]}.png", f"{expected[1]}.jpg"])
    first, second, _ = read_step(tmp_path, 0).groups
    assert first.task.images[0] is second.task.images[0]


def test_steps_are_listed_by_kind_and_a_step_written_again_replaces_the_first(tmp_path: Path) -> None:
    for step in (2, 10, 1):
        write_step(tmp_path, LoggedStep(step=step, groups=[a_group()]))
    write_step(tmp_path, LoggedStep(step=2, groups=[a_group(samples=5)]))
    write_step(tmp_path, LoggedStep(step=0, groups=[a_group()], kind="eval"))
    assert logged_steps(tmp_path) == [1, 2, 10]
    assert logged_steps(tmp_path, kind="eval") == [0]
    assert len(read_step(tmp_path, 2).groups[0].scored) == 5


def test_a_resumed_run_leaves_no_row_from_the_step_that_it_starts_with(tmp_path: Path) -> None:
    for step in range(4):
        write_step(tmp_path, LoggedStep(step=step, groups=[a_group()]))
        write_step(tmp_path, LoggedStep(step=step, groups=[a_group()], kind="eval"))
    (tmp_path / "images").mkdir(exist_ok=True)
    for whole in ("trajectories/step_000004.parquet", "images/0a.png"):
        path = tmp_path / whole
        path.with_name(f".{path.name}.123").touch()  # of a writer that was killed
    drop_steps_from(tmp_path, 2)
    assert logged_steps(tmp_path) == logged_steps(tmp_path, kind="eval") == [0, 1]
    assert not list(tmp_path.glob("*/.*"))


def test_a_row_says_what_training_made_of_its_group(tmp_path: Path) -> None:
    groups = [a_group("a"), a_group("b"), a_group("c")]
    advantages = {"a/0": 0.5, "a/1": -0.5, "b/0": 0.0, "b/1": 0.0}
    write_step(tmp_path, LoggedStep(step=1, groups=groups, advantages=advantages))
    write_step(tmp_path, LoggedStep(step=1, groups=groups, kind="eval"))
    rows = list(iter_rows(tmp_path, columns=["group_outcome"]))
    assert [row["group_outcome"] for row in rows] == ["trained"] * 2 + ["no_signal"] * 2 + ["left_out"] * 2
    assert {row["group_outcome"] for row in iter_rows(tmp_path, kind="eval", columns=["group_outcome"])} == {None}


def test_rows_stream_in_order_with_the_columns_that_were_asked_for(tmp_path: Path) -> None:
    for step in range(3):
        write_step(tmp_path, LoggedStep(step=step, groups=[a_group("a"), a_group("b")], advantages={"a/1": 0.25}))
    rows = list(iter_rows(tmp_path, columns=["step", "trajectory_id", "advantage"], steps=[0, 2]))
    assert [(row["step"], row["trajectory_id"], row["advantage"]) for row in rows] == [
        (step, name, 0.25 if name == "a/1" else None) for step in (0, 2) for name in ("a/0", "a/1", "b/0", "b/1")
    ]
    part = next(iter_rows(tmp_path, columns=["scores.list.element.evidence.list.element.verdict"]))
    assert part == {"scores": [{"evidence": [{"verdict": "supported"}]}]}


def test_pandas_reads_the_store_with_no_code_of_ours(tmp_path: Path) -> None:
    import pandas

    for step in range(2):
        write_step(tmp_path, LoggedStep(step=step, groups=[a_group("a"), a_group("b")]))
    frame = pandas.read_parquet(tmp_path / "trajectories")
    assert len(frame) == 8
    assert frame.groupby("step").reward.mean().to_dict() == {0: 1.0, 1: 1.0}
    assert json.loads(frame.answer[0]) == {"type": "yes_no", "value": "yes"}
    assert frame.scores[0][0]["evidence"][0]["source"] == "record.radius"


def test_duckdb_reads_the_store_with_no_code_of_ours(tmp_path: Path) -> None:
    import duckdb

    write_step(tmp_path, LoggedStep(step=0, groups=[a_group(samples=3)]))
    files = tmp_path / "trajectories" / "*.parquet"
    query = f"select count(*), avg(len(completion_token_ids)), any_value(scores[1].scorer) from '{files}'"
    assert duckdb.sql(query).fetchall() == [(3, 2.0, "facts")]


def test_polars_reads_the_store_with_no_code_of_ours(tmp_path: Path) -> None:
    import polars

    for step in range(2):
        write_step(tmp_path, LoggedStep(step=step, groups=[a_group("a"), a_group("b")]))
    frame = polars.read_parquet(tmp_path / "trajectories" / "*.parquet")
    assert frame.group_by("step").len().sort("step").rows() == [(0, 4), (1, 4)]
    assert frame["scores"][0][0]["evidence"][0]["source"] == "record.radius"
    assert frame["completion_token_ids"].list.len().to_list() == [2] * 8


@pytest.mark.slow
def test_datasets_loads_the_store_with_no_code_of_ours(tmp_path: Path) -> None:
    import datasets

    write_step(tmp_path, LoggedStep(step=0, groups=[a_group(samples=3)]))
    files = str(tmp_path / "trajectories" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert rows[2]["trajectory_id"] == "a/2"
    assert rows[2]["completion_token_ids"] == [4, 5]


def test_every_column_is_documented_in_the_file_itself(tmp_path: Path) -> None:
    path = write_step(tmp_path, LoggedStep(step=0, groups=[a_group()]))
    written = pq.read_schema(path)
    assert written.metadata[b"medrl.schema_version"] == b"2"
    assert written.names == schema().names
    assert all(column.metadata[b"doc"] for column in written)


def test_a_log_from_before_tasks_had_a_reference_reads(tmp_path: Path) -> None:
    step = LoggedStep(step=0, groups=[a_group()])
    path = write_step(tmp_path, step)
    pq.write_table(pq.read_table(path).drop_columns(["reference"]), path)
    assert same(read_step(tmp_path, 0), step)


def test_a_log_from_before_weights_changed_in_flight_reads_as_written_by_one_version(tmp_path: Path) -> None:
    step = LoggedStep(step=0, groups=[a_group()])
    path = write_step(tmp_path, step)
    table = pq.read_table(path).drop_columns(["token_versions"])
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"medrl.schema_version": b"1"}), path)
    assert same(read_step(tmp_path, 0), step)
    assert read_step(tmp_path, 0).groups[0].scored[0].trajectory.token_versions.tolist() == [3, 3]


def test_every_token_is_logged_with_the_version_that_wrote_it(tmp_path: Path) -> None:
    group = a_group(samples=1)
    mixed = replace(group.scored[0].trajectory, later_versions=((1, 5),))
    step = LoggedStep(step=0, groups=[replace(group, scored=(replace(group.scored[0], trajectory=mixed),))])
    path = write_step(tmp_path, step)
    assert pq.read_table(path)["token_versions"].to_pylist() == [[3, 5]]
    assert same(read_step(tmp_path, 0), step)


def test_a_missing_damaged_or_foreign_step_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = write_step(tmp_path, LoggedStep(step=0, groups=[a_group()]))
    with pytest.raises(LogError, match=r"step_000001\.parquet.*there are \['step_000000\.parquet'\]"):
        read_step(tmp_path, 1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LogError, match=r"step_000000\.parquet cannot be read as Parquet"):
        read_step(tmp_path, 0)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(LogError, match="has trajectory schema none; this release reads 1 and 2"):
        read_step(tmp_path, 0)


def test_a_byte_that_is_turned_in_a_page_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    written = LoggedStep(step=0, groups=[a_group()])
    path = write_step(tmp_path, written)
    content = path.read_bytes()
    pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # then the footer and its length
    noticed = 0
    for place in range(4, pages, pages // 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            assert same(read_step(tmp_path, 0), written)
        except LogError:
            noticed += 1
    assert noticed > 20


def test_a_changed_or_missing_image_is_noticed(tmp_path: Path) -> None:
    write_step(tmp_path, LoggedStep(step=0, groups=[a_group()]))
    image = next((tmp_path / "images").iterdir())
    image.write_bytes(PNG + b"!")
    with pytest.raises(LogError, match="is damaged"):
        read_step(tmp_path, 0)
    image.unlink()
    with pytest.raises(LogError, match="is missing"):
        read_step(tmp_path, 0)


def test_what_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="two trajectories of the id 'a/0'"):
        write_step(tmp_path, LoggedStep(step=0, groups=[a_group(), a_group()]))
    with pytest.raises(LogError, match="the group of task 'a' holds no trajectory"):
        write_step(tmp_path, LoggedStep(step=0, groups=[a_group(samples=0)]))
    scored = a_scored(a_group().task, 0)
    renamed = replace(scored, scores={"other": scored.scores["facts"]})
    with pytest.raises(LogError, match="filed under 'other' is by scorer 'facts'"):
        write_step(tmp_path, LoggedStep(step=0, groups=[Group(task=renamed.trajectory.task, scored=(renamed,))]))
    assert logged_steps(tmp_path) == []


def test_a_failed_write_leaves_neither_the_step_nor_a_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_written(_table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1")
        raise OSError("no space left on device")

    write_step(tmp_path, LoggedStep(step=0, groups=[a_group()]))
    monkeypatch.setattr(pq, "write_table", half_written)
    with pytest.raises(OSError, match="no space left"):
        write_step(tmp_path, LoggedStep(step=1, groups=[a_group()]))
    assert [path.name for path in (tmp_path / "trajectories").iterdir()] == ["step_000000.parquet"]


@pytest.mark.slow
def test_after_a_sigkill_at_any_moment_every_step_that_is_there_reads(tmp_path: Path) -> None:
    writer = textwrap.dedent(f"""
        import importlib.util, itertools, pathlib
        spec = importlib.util.spec_from_file_location("made", {str(Path(__file__))!r})
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        run_dir = pathlib.Path({str(tmp_path)!r})
        for step in itertools.count():
            groups = [made.a_group(str(index), samples=8) for index in range(8)]
            made.write_step(run_dir, made.LoggedStep(step=step, groups=groups))
            print(step, flush=True)
    """)
    for moment in range(6):
        child = subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "0"
        time.sleep(0.013 * moment)
        child.send_signal(signal.SIGKILL)
        promised = [0, *map(int, child.communicate()[0].splitlines(keepends=False))]
        assert set(promised) <= set(logged_steps(tmp_path))
        for step in logged_steps(tmp_path):
            assert [len(group.scored) for group in read_step(tmp_path, step).groups] == [8] * 8
