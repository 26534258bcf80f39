"""Checkpoints: whole or absent, damage noticed, old ones pruned."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.checkpoint import checkpoint_folders, latest_checkpoint, save_checkpoint
from rl.errors import CheckpointError


async def a_learner(folder: Path) -> None:
    folder.mkdir()
    (folder / "rank0.pt").write_bytes(b"weights")


async def saved(run_dir: Path, step: int, *, keep: int = 0) -> Path:
    return await save_checkpoint(run_dir, step=step, state={"step": step}, save_learner=a_learner, keep=keep)


async def test_the_newest_checkpoint_comes_back_with_its_state(tmp_path: Path) -> None:
    await saved(tmp_path, 2)
    newest = await saved(tmp_path, 10)
    assert latest_checkpoint(tmp_path, warn=pytest.fail) == (newest, {"step": 10})


async def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        await saved(tmp_path, step, keep=2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_000002", "step_000003"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "learner/rank0.pt").write_bytes(b"weightz"), "checksum of learner/rank0.pt"),
        (lambda folder: (folder / "learner/rank0.pt").unlink(), "learner/rank0.pt is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    ],
)
async def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_taken(tmp_path: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    await saved(tmp_path, 1)
    damage(await saved(tmp_path, 2))
    warnings: list[str] = []
    folder, state = latest_checkpoint(tmp_path, warn=warnings.append)
    assert (folder.name, state) == ("step_000001", {"step": 1})
    assert len(warnings) == 1 and said in warnings[0]


async def test_a_save_that_failed_half_way_leaves_no_checkpoint(tmp_path: Path) -> None:
    async def dies(folder: Path) -> None:
        await a_learner(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await save_checkpoint(tmp_path, step=5, state={}, save_learner=dies, keep=1)
    assert checkpoint_folders(tmp_path) == []
    with pytest.raises(CheckpointError, match="0 found"):
        latest_checkpoint(tmp_path, warn=pytest.fail)
    await saved(tmp_path, 5)  # what the failed one left behind is in nobody's way
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_000005"]


async def test_the_learner_is_given_a_path_that_holds_wherever_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []

    async def remembers(folder: Path) -> None:
        given.append(folder)
        await a_learner(folder)

    monkeypatch.chdir(tmp_path)
    await save_checkpoint(Path("run"), step=3, state={}, save_learner=remembers, keep=0)
    assert given == [tmp_path / "run/checkpoints/step_000003.partial/learner"]


async def test_a_learner_that_writes_elsewhere_is_an_error_and_costs_no_older_checkpoint(tmp_path: Path) -> None:
    async def writes_on_another_node(_: Path) -> None: ...

    await saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"did not arrive in .*step_000002\.partial/learner: output_dir"):
        await save_checkpoint(tmp_path, step=2, state={}, save_learner=writes_on_another_node, keep=1)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_000001"]


async def test_a_damaged_later_checkpoint_does_not_crowd_out_the_one_just_written(tmp_path: Path) -> None:
    (await saved(tmp_path, 5) / "manifest.json").write_text("{")
    await saved(tmp_path, 2)
    await saved(tmp_path, 4, keep=1)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_000004", "step_000005"]
    assert latest_checkpoint(tmp_path, warn=lambda _: None)[1] == {"step": 4}


async def test_the_newest_before_a_step_can_be_asked_for(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        await saved(tmp_path, step)
    assert latest_checkpoint(tmp_path, warn=pytest.fail, before=6)[1] == {"step": 4}
    with pytest.raises(CheckpointError, match="0 found"):
        latest_checkpoint(tmp_path, warn=pytest.fail, before=2)
