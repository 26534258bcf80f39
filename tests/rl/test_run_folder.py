"""What a resumed run may find changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.config import load_config
from rl.errors import ConfigError
from rl.run_folder import open_run_folder

CONFIG = "rewards: {scorers: {letters: {use: 'tests.scorers:LetterShare'}}}\n"


def test_a_run_goes_on_where_a_job_that_is_submitted_anew_finds_its_config_in_another_folder(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.yaml").write_text(CONFIG)
    out = f"output_dir={tmp_path / 'run'}"
    open_run_folder(load_config(tmp_path / "first" / "run.yaml", [out]))
    open_run_folder(load_config(tmp_path / "second" / "run.yaml", [out, "resume=true"]))
    changed = load_config(tmp_path / "second" / "run.yaml", [out, "resume=true", "rollouts.max_tool_calls=3"])
    with pytest.raises(ConfigError, match=r"these keys differ .*rollouts\.max_tool_calls"):
        open_run_folder(changed)
