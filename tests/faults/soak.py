"""A long run with a random kill every two minutes: right step count, flat memory, no orphans. Outside CI.

    python tests/faults/soak.py [--steps 9000] [--every 120] [--seed 0]

Prints one JSON line; exit status 1 when something was not as it should be. Victims: the train worker, a process of the
data tasks, Ray Train's controller, and the driver, which is then started again with the same command.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs import tracking
from tests.faults.injected import Run, title

GROWTH = 0.05
ROLES = ("RayTrainWorker", "TrainController", "raylet/raylet", "gcs_server", "dashboard.py", "log_monitor", "jobs.segm")


def role_of(process: psutil.Process) -> str:
    name = title(process)
    return next((role for role in ROLES if role in name), "other")


def measure(run: Run, samples: dict[str, list[tuple[float, float]]]) -> None:
    """Add (time, GB) of each role's largest process."""
    now, largest = time.monotonic(), defaultdict(float)
    for process in [psutil.Process(run.process.pid), *run.members()]:
        try:
            role, size = role_of(process), process.memory_info().rss / 1e9
        except psutil.NoSuchProcess:
            continue
        largest[role] = max(largest[role], size)
    for role, size in largest.items():
        samples[role].append((now, size))


def growth(samples: list[tuple[float, float]]) -> float:
    """Median of the last quarter over that of the second, minus one: the first quarter is warm-up."""
    quarter = len(samples) // 4
    early, late = (
        statistics.median(size for _, size in part) for part in (samples[quarter : 2 * quarter], samples[-quarter:])
    )
    return late / early - 1


def strike(run: Run, rng: random.Random, kills: dict[str, int]) -> None:
    """Kill -9 one process."""
    victim = rng.choice(("RayTrainWorker", "data", "TrainController", "driver"))
    if victim == "driver":
        run.kill_hard()
    else:
        found = [
            p for p in run.members("ray::") if (("IDLE" in title(p)) if victim == "data" else (victim in title(p)))
        ]
        if not found:
            return
        rng.choice(found).kill()
    kills[victim] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--every", type=float, default=120.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder, rng = Path(tempfile.mkdtemp(prefix="egic-soak-")), random.Random(given.seed)
    args = (
        f"--segmentation.steps {given.steps} --segmentation.checkpoint-every 50 --segmentation.log-every 25 "
        "--segmentation.val-samples 4 --segmentation.batch 4 --compute.max-failures 1000"
    ).split()
    samples, kills, began = defaultdict(list), defaultdict(int), time.monotonic()
    family: dict[int, psutil.Process] = {}
    status, starts = None, 0
    while status != 0 and starts < 200:
        starts += 1
        with Run(folder, *args) as run:
            strike_at = time.monotonic() + given.every
            while run.process.poll() is None:
                time.sleep(5)
                measure(run, samples)
                if time.monotonic() > strike_at:
                    strike(run, rng, kills)
                    strike_at = time.monotonic() + given.every
            status, last = run.process.returncode, run.committed()
            family |= run.family
            if status not in (0, -9):
                print(run.text()[-3000:], file=sys.stderr)
                break
            time.sleep(20)  # what is left of Ray ends by itself
            orphans = [title(p) for p in run.family.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    took = time.monotonic() - began
    tracking.os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    client = tracking.client()
    runs = client.search_runs([tracking.experiment_id()], "tags.`egic.kind` = 'stage'")
    steps = sorted(m.step for r in runs for m in client.get_metric_history(r.info.run_id, "train/seg"))
    grown = {role: round(growth(s), 3) for role, s in samples.items() if len(s) >= 40 and role != "other"}
    row = {
        "bench": "soak", "minutes": round(took / 60, 1), "steps": last, "kills": dict(kills), "starts": starts,
        "mlflow_complete": steps == list(range(25, given.steps + 1, 25)),
        "memory_growth": grown,
        "largest_gb": {role: round(max(size for _, size in s), 2) for role, s in samples.items()}, "orphans": orphans,
        "checkpoints_kept": len(list(folder.glob("outputs/checkpoints/*/checkpoint_2*"))), "status": status,
    }  # fmt: skip
    print(json.dumps(row))
    good = status == 0 and last == given.steps and row["mlflow_complete"] and not orphans
    return 0 if good and all(value <= GROWTH for value in grown.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
