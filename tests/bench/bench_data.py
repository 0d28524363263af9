"""Pictures per second of the Ray Data stream, of its own work on one core, and of a naive torch DataLoader.

    python tests/bench/bench_data.py [pictures per measurement] [rounds]      (EGIC_COCO_ROOT: use its train2017)

Naive: decode all, resize all (picture bilinear, label nearest), then crop, from JPEG and PNG files. The three are
measured in turn in each round, in steady state; prints one JSON line. Beside wall time stands the CPU time per picture
over all processes, which other load on the machine disturbs less.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import PIL
import psutil
import ray
import torch
from PIL import Image

from egic.images import CropConfig, decode_panoptic_png, plan_training_crop
from jobs.coco import read_tree
from jobs.data import TrainingSequence, local_stream, training_stream
from jobs.prepare import PrepareConfig, prepare
from jobs.scenes import SceneConfig, write_scenes
from jobs.shards import load_manifest

BATCH, CORES = 16, 2


class NaiveDataset(torch.utils.data.Dataset):
    """What a first version of such a loader does."""

    def __init__(self, root: Path, num: int, crop: CropConfig) -> None:
        tree = read_tree(root, "train")
        self.entries, self.num, self.crop = tree.entries, num, crop
        self.classes = {category["id"]: c for c, category in enumerate(tree.categories, start=1)}

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        entry, size = self.entries[number % len(self.entries)], self.crop.size
        image = Image.open(entry.picture).convert("RGB")
        ids = decode_panoptic_png(entry.png.read_bytes())
        label = np.zeros(ids.shape, np.uint8)
        for segment in entry.segments:
            if not segment["iscrowd"]:
                label[ids == segment["id"]] = self.classes[segment["category_id"]]
        plan = plan_training_crop(image.height, image.width, self.crop, np.random.default_rng(number))
        x = np.asarray(image.resize((plan.width, plan.height), Image.Resampling.BILINEAR))
        label = np.asarray(Image.fromarray(label).resize((plan.width, plan.height), Image.Resampling.NEAREST))
        pad = [(max(0, size - plan.height),) * 2, (max(0, size - plan.width),) * 2]
        x, label = np.pad(x, [*pad, (0, 0)], constant_values=128), np.pad(label, pad)
        top, left = max(0, plan.top), max(0, plan.left)
        cut = np.s_[top : top + size, left : left + size]
        return np.ascontiguousarray(x[cut]), np.ascontiguousarray(label[cut])


def cpu_s() -> float:
    """CPU time so far of this process and all below it (loader workers, Ray's processes)."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def measure(batches: Iterable, num_warm: int, num: int) -> dict[str, float]:
    """Wall rate and CPU time per picture over `num` pictures, after `num_warm` have passed."""
    iterator: Iterator = iter(batches)
    for _ in range(num_warm // BATCH):
        next(iterator)
    num = num // BATCH * BATCH
    start, cpu = time.perf_counter(), cpu_s()
    for _ in range(num // BATCH):
        next(iterator)
    return {"per_s": num / (time.perf_counter() - start), "cpu_ms": 1e3 * (cpu_s() - cpu) / num}


def main(num: int = 1024, rounds: int = 3) -> None:
    torch.set_num_threads(1)
    crop, warm = CropConfig(), 256
    with tempfile.TemporaryDirectory() as folder:
        given = os.environ.get("EGIC_COCO_ROOT")
        scenes = SceneConfig(num_train=96, num_val=1, min_side=427, max_side=640)
        root = Path(given) if given else write_scenes(Path(folder) / "coco", scenes)
        manifest = load_manifest(
            prepare(PrepareConfig(folder=root, out=str(Path(folder) / "out"), split="train"))["train"]
        )
        total = (warm + 2 * num) // BATCH
        steps = {"seed": 0, "global_batch": BATCH, "first_step": 0, "last_step": total}
        sequence = TrainingSequence(manifest=manifest, crop=crop, **steps)
        naive = torch.utils.data.DataLoader(NaiveDataset(root, total * BATCH, crop), BATCH, num_workers=CORES)
        ray.init(num_cpus=CORES, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
        try:
            rows = []
            for _ in range(rounds):
                own = measure(local_stream(sequence), 64, num // 2)
                loader = measure(naive, warm, num)
                stream = training_stream(manifest, crop, **steps, num_cpus=1, num_tasks_at_once=CORES)
                rows.append({"own_per_core": own, "dataloader": loader, "stream": measure(stream, warm, num)})
                stream.close()
        finally:
            ray.shutdown()
        pixels = float(np.mean([np.prod(Image.open(e.picture).size) for e in read_tree(root, "train").entries]))
    print(json.dumps(summary(rows, num, pixels, "EGIC_COCO_ROOT" if given else "drawn scenes 640")))


def summary(rows: list[dict], num: int, pixels: float, pictures: str) -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()

    def median(key: str) -> dict[str, float]:
        return {name: round(statistics.median(row[name][key] for row in rows), 2) for name in rows[0]}

    def ratio(name: str, cores: int) -> float:
        return round(statistics.median(row["stream"]["per_s"] / (cores * row[name]["per_s"]) for row in rows), 2)

    return {
        "bench": "data",
        "commit": commit,
        "device": f"CPU, {CORES} cores",
        "versions": {"ray": ray.__version__, "torch": torch.__version__, "pillow": PIL.__version__},
        "pictures": pictures,
        "mean_megapixels": round(pixels / 1e6, 3),
        "crop": 256,
        "n": num,
        "rounds": len(rows),
        "images_per_s": median("per_s"),
        "cpu_ms_per_image": median("cpu_ms"),
        "images_per_s_by_round": [{name: round(value["per_s"], 1) for name, value in row.items()} for row in rows],
        "stream_over_dataloader": ratio("dataloader", 1),
        "stream_over_own_work": ratio("own_per_core", CORES),
        "load_average": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
