"""Time from `python pipelines/full.py tiny` to the first training step, and overhead between the steps.

    python tests/bench/bench_start.py [options of pipelines/full.py]

One run in a new temporary folder, on drawn scenes. Prints one JSON line: seconds until a stage's
first step, and the shares of wall time, of the pipeline and of each stage, that are neither data, steps nor validation.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.common import commit  # noqa: E402

FIRST_STEP = re.compile(r"(\S+)\s+step 1/")


def run(folder: str, args: list[str]) -> tuple[dict[str, float], dict]:
    """Seconds until the first step of each stage, and the pipeline's summary."""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    env |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "pipelines" / "full.py"), "tiny", *args]
    first, last, began = {}, "", time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if found := FIRST_STEP.search(line):
                first.setdefault(found[1], time.perf_counter() - began)
            print(line, end="", file=sys.stderr)
            last = line.strip() or last
    if process.returncode:
        raise SystemExit(process.returncode)
    return first, json.loads(Path(last).read_text())


def main() -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        first, summary = run(folder, sys.argv[1:])
    shares = {row["stage"]: round(1 - row["busy_s"] / row["wall_s"], 3) for row in summary["stages"]}
    walls = {row["stage"]: round(row["wall_s"], 1) for row in summary["stages"]}
    print(json.dumps({
        "bench": "start", "first_step_s": round(min(first.values()), 1), "pipeline_s": round(summary["time_s"], 1),
        "between_steps": round(summary["between_steps"], 3), "between_steps_of_stage": shares, "stage_s": walls,
        "first_steps_s": {name: round(s, 1) for name, s in first.items()}, "cores": os.cpu_count(),
        "load_before": round(load, 1), "args": sys.argv[1:], "date": date.today().isoformat(),
        "commit": commit(), "ray": version("ray"), "torch": torch.__version__, "machine": platform.machine(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
