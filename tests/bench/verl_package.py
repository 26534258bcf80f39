"""verl, whose pins do not fit this stack, in a folder of its own: the package and what its modules import, no more."""

from __future__ import annotations

import subprocess
import sys

from tests.bench.setting import OUT

FOLDER = (OUT / "verl").resolve()
# With --no-deps: its own pins want another transformers, torch and vLLM than ours.
_PACKAGES = (
    *("verl==0.9.1", "tensordict==0.10.0", "codetiming==1.4.0", "hydra-core==1.3.8", "torchdata==0.11.0"),
    *("pylatexenc==2.11", "pyvers==0.2.3", "orjson>=3.11"),
)


def install_verl() -> str:
    """Make `FOLDER` hold verl, where it does not yet; why that failed, empty where it did not."""
    if (FOLDER / "verl").is_dir():
        return ""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER), *_PACKAGES]
    ran = subprocess.run(command, capture_output=True, text=True)
    return "" if ran.returncode == 0 else f"verl cannot be installed here: {ran.stderr.strip().splitlines()[-1]}"
