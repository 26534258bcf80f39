"""Checkpoints that are whole or absent: written aside, checksummed, renamed; a damaged one is noticed.

``checkpoints/step_000020/`` holds ``learner/`` (what every rank wrote), ``run.json`` (where the loop stands) and
``manifest.json`` (SHA-256 of every file). On several nodes the run folder must lie on a file system that all share.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from rl.errors import CheckpointError

MANIFEST = "manifest.json"


async def save_checkpoint(
    run_dir: Path, *, step: int, state: Mapping[str, Any], save_learner: Callable[[Path], Awaitable[None]], keep: int
) -> Path:
    """Write the checkpoint after ``step`` training steps and prune all but the newest ``keep`` (0 keeps all).

    One of the same step that is whole already is kept as it is: the same run cannot stand elsewhere after that step.
    Raises CheckpointError, before anything is pruned, where nothing came of the learner.
    """
    final = run_dir / "checkpoints" / f"step_{step:06d}"
    if final.is_dir() and not damage(final):
        return final
    aside = final.with_suffix(".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    await save_learner((aside / "learner").resolve())  # its ranks may run in another folder than this process
    if not any((aside / "learner").glob("*")):
        raise CheckpointError(
            f"the learner's part of a checkpoint did not arrive in {aside / 'learner'}: output_dir must lie on a file "
            f"system that this process and all nodes of the learner share"
        )
    (aside / "run.json").write_text(json.dumps(dict(state), indent=1))
    await asyncio.to_thread(_seal, aside)  # takes a minute for a large policy, and engines may be at work
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    if keep:
        # Later ones are damaged, or the run would have gone on from there: they must not crowd out this one.
        done = [folder for folder in checkpoint_folders(run_dir) if folder <= final]
        for old in done[:-keep]:
            shutil.rmtree(old)
    return final


def latest_checkpoint(
    run_dir: Path, *, warn: Callable[[str], None], before: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint whose checksums hold, and its ``run.json``; with ``before``, the newest before that step.

    Says through ``warn`` which damaged ones were passed over. Raises CheckpointError where none is left.
    """
    folders = checkpoint_folders(run_dir, before=before)
    for folder in reversed(folders):
        if problem := damage(folder):
            warn(f"checkpoint {folder} is damaged ({problem}); taking the one before")
            continue
        return folder, json.loads((folder / "run.json").read_text())
    raise CheckpointError(
        f"{run_dir} has no checkpoint to resume from ({len(folders)} found, none whole). Start afresh in another "
        f"output_dir, or remove the folder"
    )


def checkpoint_folders(run_dir: Path, *, before: int | None = None) -> list[Path]:
    """All finished checkpoints, or those from before a step, oldest first."""
    folders = sorted(path for path in (run_dir / "checkpoints").glob("step_*") if path.suffix != ".partial")
    return [path for path in folders if before is None or int(path.name.removeprefix("step_")) < before]


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty where it is whole."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, checksum in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != checksum:
            return f"the checksum of {name} does not match"
    return ""


def _seal(folder: Path) -> None:
    """Write the checksums of all that is there, and have it on the disk."""
    checksums = {str(path.relative_to(folder)): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MANIFEST).write_text(json.dumps(checksums, indent=1))
    _flush(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Have every file on the disk before the rename makes the checkpoint visible."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
