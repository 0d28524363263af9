"""An hour of training with a random kill every two minutes: checks steps, memory and orphans. Not part of CI.

    python tests/faults/soak.py [--minutes 60] [--steps 6000] [--every 120] [--seed 0]

If a run ends before the time is over, another one with another seed follows. Prints one JSON line; exit status 1 if a
check fails. Killed processes: the train worker, a process of the data tasks, Ray Train's controller, and the driver. A
killed driver, or a run that the machine was too busy to start, is started again with the same command.
"""

import argparse
import datetime
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.cluster import start
from jobs.tracking import store
from tests.faults.injected import ROOT, Run, title

GROWTH = 0.05
LOG_EVERY = 25
ARGS = (
    f"--segmentation.checkpoint-every 50 --segmentation.log-every {LOG_EVERY} --segmentation.val-samples 4 "
    "--segmentation.batch 4 --compute.max-failures 1000"
)
LOOK_S = 5.0
LONG_LIFE = 120
"""Number of samples (ten minutes) from which the memory of a single process is checked, too."""
ROLES = (
    "RayTrainWorker", "TrainController", "DatasetManager", "SplitCoordinator", "SynchronizationActor",
    "PlacementGroupCleaner", "AutoscalingCoordinator", "DashboardAgent", "RuntimeEnvAgent", "raylet/raylet",
    "gcs_server", "dashboard/dashboard.py", "log_monitor", "monitor.py", "jobs.segmentation",
)  # fmt: skip
TASKS = ("ray::", "default_worker.py")
"""In the titles of workers that run tasks, such as the data tasks."""

Samples = dict[psutil.Process, list[tuple[float, str, float]]]


def role_of(process: psutil.Process) -> str:
    """Role of a process, from its title."""
    name = title(process)
    tasks = "tasks" if any(part in name for part in TASKS) else ""
    return next((role for role in ROLES if role in name), tasks or Path(name.partition(" ")[0]).name)


def measure(run: Run, samples: Samples) -> None:
    """Add (time, role, resident MB) of each process."""
    now = time.monotonic()
    with (run.folder / "memory.jsonl").open("a") as log:  # to find out what grew
        for process in [psutil.Process(run.process.pid), *run.members()]:
            try:
                sample = (now, role_of(process), process.memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                continue
            samples[process].append(sample)
            log.write(json.dumps([process.pid, *sample]) + "\n")


def largest(samples: Samples) -> dict[str, list[float]]:
    """The size of the largest process of each role, at each time."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for now, role, size in (sample for life in samples.values() for sample in life):
        found[role][now] = max(size, found[role].get(now, 0.0))
    return {role: [size for _, size in sorted(sizes.items())] for role, sizes in found.items()}


def long_lives(samples: Samples) -> dict[str, list[float]]:
    """The process of each role that grew most, of those that lived long."""
    found: dict[str, list[float]] = {}
    for life in (life for life in samples.values() if len(life) >= LONG_LIFE):
        role, sizes = life[-1][1], [size for _, _, size in life]
        found[role] = max(found.get(role, sizes), sizes, key=growth)
    return found


def growth(sizes: list[float]) -> float:
    """Relative growth: median of the last quarter / that of the second - 1. The first quarter is warm-up."""
    quarter = len(sizes) // 4
    return round(statistics.median(sizes[-quarter:]) / statistics.median(sizes[quarter : 2 * quarter]) - 1, 3)


def strike(run: Run, rng: random.Random) -> str:
    """Kill -9 a random process; returns which, or "nobody" if no process of its kind runs."""
    victim = rng.choice(("RayTrainWorker", "data", "TrainController", "driver"))
    if victim == "driver":
        run.kill_hard()
        return victim
    found = [p for p in run.members("ray::") if ("IDLE" if victim == "data" else victim) in title(p)]
    if not found:
        return "nobody"
    rng.choice(found).kill()
    return victim


def soak(folder: Path, given: argparse.Namespace) -> tuple[Samples, dict]:
    """Runs with random kills until the time is over, with the sizes of their processes and their results."""
    samples, kills, began, rng = defaultdict(list), defaultdict(int), time.monotonic(), random.Random(given.seed)
    steps, starts, orphans, complete, status = [], 0, [], True, 0

    def look(run: Run) -> None:
        """Measure a run and kill its processes until it ends."""
        strike_at = time.monotonic() + given.every
        while run.process.poll() is None:
            time.sleep(LOOK_S)
            measure(run, samples)
            if time.monotonic() > strike_at:
                victim = strike(run, rng)
                kills[victim] += 1
                print(f"{time.monotonic() - began:.0f} s, step {run.committed()}: {victim}", file=sys.stderr)
                strike_at = time.monotonic() + given.every

    while status == 0 and time.monotonic() < began + 60 * given.minutes:
        own, status = folder / str(len(steps)), None
        own.mkdir()
        args = f"{ARGS} --segmentation.steps {given.steps} --seed {len(steps)}".split()
        while status in (None, -signal.SIGKILL) and starts < 200:
            starts += 1
            with Run(own, *args) as run:
                look(run)
                status = run.process.returncode
                if start.BUSY in run.text():
                    kills["busy"] += 1
                    status = None
                if status not in (None, 0, -signal.SIGKILL):
                    print(run.text()[-3000:], file=sys.stderr)
                time.sleep(20)  # Ray's remaining processes end by themselves
                orphans += [title(p) for p in run.family.values() if alive(p)]
        steps.append(run.committed())
        complete = complete and logged_steps(own) == list(range(LOG_EVERY, given.steps + 1, LOG_EVERY))
    return samples, {
        "minutes": round((time.monotonic() - began) / 60, 1), "steps": steps, "mlflow_complete": complete,
        "status": status, "starts": starts, "kills": dict(kills), "orphans": orphans,
    }  # fmt: skip


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def logged_steps(folder: Path) -> list[int]:
    """Steps of a curve in MLflow."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    client = store.client()
    runs = client.search_runs([store.experiment_id()], "tags.`egic.kind` = 'stage'")
    return sorted(m.step for r in runs for m in client.get_metric_history(r.info.run_id, "train/seg"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="start no new run after this time")
    parser.add_argument("--steps", type=int, default=6000, help="steps of each run")
    parser.add_argument("--every", type=float, default=120.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="egic-soak-"))
    samples, outcome = soak(folder, given)
    whole, lives = {r: s for r, s in largest(samples).items() if len(s) >= LONG_LIFE}, long_lives(samples)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    row = {
        "bench": "soak", "every_s": given.every, "seed": given.seed, "steps_wanted": given.steps, **outcome,
        "memory_growth": {role: growth(sizes) for role, sizes in whole.items()},
        "growth_of_one_process": {role: growth(sizes) for role, sizes in lives.items()},
        "its_life_min": {role: round(len(sizes) * LOOK_S / 60) for role, sizes in lives.items()},
        "largest_mb": {role: round(max(sizes)) for role, sizes in whole.items()},
        "checkpoints_kept": [len(list(p.glob("checkpoint_2*"))) for p in folder.glob("*/outputs/checkpoints/*")],
        "date": str(datetime.date.today()), "commit": commit.strip(), "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ray", "mlflow")}, "machine": platform.machine(),
    }  # fmt: skip
    print(json.dumps(row))
    flat = all(value <= GROWTH for name in ("memory_growth", "growth_of_one_process") for value in row[name].values())
    complete = row["status"] == 0 and set(row["steps"]) == {given.steps} and row["mlflow_complete"]
    return 0 if complete and flat and not row["orphans"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
