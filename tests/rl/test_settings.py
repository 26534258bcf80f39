"""What engines and learner are built from, where the config says it in fewer words."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.config_schema import RunConfig
from rl.settings import engine_settings, learner_settings


def test_a_folder_is_named_so_that_actors_find_it_and_a_hub_id_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models/seed").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for made in (engine_settings, learner_settings):
        assert made(RunConfig(), "models/seed").policy_path == str(tmp_path / "models/seed")
        assert made(RunConfig(), "Qwen/Qwen2.5-VL-7B-Instruct").policy_path == "Qwen/Qwen2.5-VL-7B-Instruct"
