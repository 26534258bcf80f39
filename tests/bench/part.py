"""Measures one part in this process: ``python -m tests.bench.part NAME OUT [--quick]``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

from rl.cluster import PROCESS_ENVIRONMENT
from tests.bench.harness import QUICK_TURNS, TURNS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    # As the actors of a run have it, and before torch is imported.
    cores = str(len(os.sched_getaffinity(0)))
    offline = {
        "OMP_NUM_THREADS": cores,
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ |= PROCESS_ENVIRONMENT | offline
    module = importlib.import_module(f"tests.bench.{asked.name}")
    part = module.measure(turns=QUICK_TURNS if asked.quick else TURNS, quick=asked.quick)
    asked.out.write_text(json.dumps(part.as_json()))


if __name__ == "__main__":
    main()
