"""Pictures per second of an archive on all cores, against the same work in one process with one thread, and in one
process per core at the same time.

    python tests/bench/bench_archive.py [pictures per core] [rounds]

Crops of 384x256 of photographs (those of EGIC_PHOTOGRAPHS, or the demo's), an untrained model of the shipped one's
size. Start-up is not measured: the first quarter of an archive's pictures is left out. Prints one JSON line.
"""

import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

import joblib
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from egic import artifact  # noqa: E402
from egic.model import load  # noqa: E402
from egic.networks.codec import Codec  # noqa: E402
from jobs.archive import index  # noqa: E402
from jobs.archive.archive import SUFFIXES, archive_of, coded  # noqa: E402
from jobs.archive.listing import chunks, listed  # noqa: E402
from jobs.cluster.start import start_ray  # noqa: E402
from jobs.config.presets import PRESETS  # noqa: E402
from tests.archives import write_pictures  # noqa: E402
from tests.bench.common import commit  # noqa: E402

CORES = joblib.cpu_count()
HEIGHT, WIDTH = 256, 384


def one_process(folder: str, num: int) -> float:
    """Pictures per second of the archive's work on one thread, in this process."""
    torch.set_num_threads(1)
    model, times = load(Path(folder, "model")), []
    with tempfile.TemporaryDirectory() as out:
        work = archive_of("compress", (f"{folder}/in", out), {}, None, 0).work
        found = list(listed([f"{folder}/in"], *SUFFIXES["compress"], Counter()))[: num + 2]
        for picture in found:
            began = time.perf_counter()
            work(model, picture)
            times.append(time.perf_counter() - began)
    return (len(times) - 2) / sum(times[2:])


def at_once(folder: str, num: int) -> float:
    """Pictures per second of such processes, one per core, at the same time."""
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        return sum(pool.starmap(one_process, [(folder, num)] * CORES, chunksize=1))


def all_cores(folder: str) -> float:
    """Pictures per second of an archive on a running Ray."""
    done, times = [], []
    with tempfile.TemporaryDirectory() as out:
        archive = archive_of("compress", (f"{folder}/in", out), {}, None, 0)
        plan = list(chunks(archive.missing(index.read(index.place_of(out)))))
        for rows in coded(archive, Path(folder, "model"), plan):
            assert rows["error"].null_count == len(rows)
            done.append(len(rows))
            times.append(time.perf_counter())
    first = next(i for i in range(len(done)) if sum(done[:i]) >= sum(done) // 4)
    return sum(done[first + 1 :]) / (times[-1] - times[first])


def main(per_core: int = 60, rounds: int = 3) -> None:
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder, "in"), per_core * CORES, (HEIGHT, WIDTH))
        torch.manual_seed(0)
        artifact.save(Path(folder, "model"), {"codec": Codec(PRESETS["small"]().codec)}, {})
        start_ray()
        measured = [
            {"one_process": one_process(folder, per_core // 2), "at_once": at_once(folder, per_core // 2),
             "archive": all_cores(folder)}
            for _ in range(rounds)
        ]  # fmt: skip
    found = {name: statistics.median(each[name] for each in measured) for name in measured[0]}
    ratios = [each["archive"] / (CORES * each["one_process"]) for each in measured]
    together = [each["archive"] / each["at_once"] for each in measured]
    print(json.dumps({
        "bench": "archive", "pictures_per_s": {name: round(value, 2) for name, value in found.items()},
        "of_cores_times_one_process": round(statistics.median(ratios), 3),
        "of_processes_at_once": round(statistics.median(together), 3),
        "ratios": [round(ratio, 3) for ratio in ratios], "height": HEIGHT, "width": WIDTH, "n": per_core * CORES,
        "rounds": rounds, "cores": CORES, "load_before": round(load_before, 1), "device": "cpu",
        "date": date.today().isoformat(), "commit": commit(), "ray": version("ray"), "torch": torch.__version__,
        "machine": platform.machine(),
    }))  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
