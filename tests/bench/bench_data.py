"""Pictures per second of the Ray Data stream, of its own work, and of a naive torch DataLoader, on the same cores.

    python tests/bench/bench_data.py [pictures per measurement] [rounds]      (EGIC_COCO_ROOT: use its train2017)

Naive: decode all, ids to classes by a table, resize all (picture bilinear with antialiasing, label nearest), then crop,
from JPEG and PNG files, with torchvision's decoder and its vectorised resize, the fastest in the lock. Our own work is
measured alone on one core, and in one process per core at the same time: the machine's limit without coordination.
All are measured alternately in each round, in steady state; prints one JSON line. It has wall time and CPU time per
picture over all processes; other load on the machine disturbs CPU time less.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import psutil
import ray
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode, functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from egic.training.crops import CropConfig, plan_training_crop
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest
from jobs.data.sources.scenes.scenes import SceneConfig, write_scenes
from jobs.data.stream import TrainingSequence, local_stream, training_stream
from tests.bench.common import commit

BATCH, CORES = 16, 2


class NaiveDataset(torch.utils.data.Dataset):
    """A simple loader, with the fastest decoder and resize in the lock."""

    def __init__(self, root: Path, num: int, crop: CropConfig) -> None:
        content = json.loads((root / "annotations/panoptic_train2017.json").read_text())
        names = {image["id"]: root / "train2017" / image["file_name"] for image in content["images"]}
        self.entries = [(names[a["image_id"]], a["file_name"], a["segments_info"]) for a in content["annotations"]]
        self.pngs, self.num, self.crop = root / "annotations/panoptic_train2017", num, crop
        self.class_of = {category["id"]: c for c, category in enumerate(content["categories"], start=1)}
        self.table = np.zeros(1 << 24, np.uint8)
        """Class of each segment id of the current picture."""

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture, png, segments = self.entries[number % len(self.entries)]
        picture = decode_image(str(picture), ImageReadMode.RGB)
        r, g, b = decode_image(str(self.pngs / png), ImageReadMode.RGB).numpy()
        ids = [segment["id"] for segment in segments]
        self.table[ids] = [0 if s["iscrowd"] else self.class_of[s["category_id"]] for s in segments]
        label = torch.from_numpy(self.table[(b.astype(np.uint32) << 8 | g) << 8 | r])[None]
        self.table[ids] = 0
        plan = plan_training_crop(*picture.shape[1:], self.crop, np.random.default_rng(number))
        whole = [plan.height, plan.width]
        window = plan.top, plan.left, self.crop.size, self.crop.size
        picture = functional.crop(functional.resize(picture, whole, antialias=True), *window)  # pads where needed
        label = functional.crop(functional.resize(label, whole, InterpolationMode.NEAREST), *window)
        return picture.contiguous(), label.contiguous()


def cpu_s() -> float:
    """CPU time of this process and all its descendants (loader workers, Ray's processes)."""
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


def own_work(sequence: TrainingSequence, num: int) -> dict[str, float]:
    return measure(local_stream(sequence), 64, num)


def own_work_at_once(sequence: TrainingSequence, num: int) -> dict[str, float]:
    """Our own work in one process per core, all at the same time."""
    with multiprocessing.get_context("fork").Pool(CORES) as pool:
        rows = pool.starmap(own_work, [(sequence, num)] * CORES, chunksize=1)
    return {"per_s": sum(row["per_s"] for row in rows), "cpu_ms": statistics.mean(row["cpu_ms"] for row in rows)}


def main(num: int = 1024, rounds: int = 3) -> None:
    torch.set_num_threads(1)
    crop, warm = CropConfig(), 256
    with tempfile.TemporaryDirectory() as folder:
        given = os.environ.get("EGIC_COCO_ROOT")
        scenes = SceneConfig(num_train=96, num_val=1, min_side=427, max_side=640)
        root = Path(given) if given else write_scenes(Path(folder) / "coco", scenes)
        manifest = load_manifest(prepare((root,), str(Path(folder) / "out"), PrepareConfig(split="train"))["train"])
        total = (warm + 2 * num) // BATCH
        steps = {"seed": 0, "global_batch": BATCH, "first_step": 0, "last_step": total}
        sequence = TrainingSequence(manifest=manifest, crop=crop, **steps)
        naive = torch.utils.data.DataLoader(NaiveDataset(root, total * BATCH, crop), BATCH, num_workers=CORES)
        ray.init(num_cpus=CORES, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
        try:
            rows = []
            for _ in range(rounds):
                own, at_once = own_work(sequence, num // 2), own_work_at_once(sequence, num // 2)
                loader = measure(naive, warm, num)
                stream = training_stream(manifest, crop, **steps, num_cpus=1, num_tasks_at_once=CORES)
                rows.append({"own_one_core": own, "own_all_cores": at_once, "dataloader": loader})
                rows[-1]["stream"] = measure(stream, warm, num)
                stream.close()
        finally:
            ray.shutdown()
        pixels = float(np.mean([np.prod(Image.open(picture).size) for picture in (root / "train2017").iterdir()]))
    print(json.dumps(summary(rows, num, pixels, "EGIC_COCO_ROOT" if given else "drawn scenes 640")))


def summary(rows: list[dict], num: int, pixels: float, pictures: str) -> dict:
    def median(key: str) -> dict[str, float]:
        return {name: round(statistics.median(row[name][key] for row in rows), 2) for name in rows[0]}

    def ratio(name: str, cores: int) -> float:
        return round(statistics.median(row["stream"]["per_s"] / (cores * row[name]["per_s"]) for row in rows), 2)

    return {
        "bench": "data",
        "commit": commit(),
        "device": f"CPU, {CORES} cores",
        "versions": {"ray": version("ray"), "torch": torch.__version__, "pillow": PIL.__version__},
        "pictures": pictures,
        "mean_megapixels": round(pixels / 1e6, 3),
        "crop": 256,
        "n": num,
        "rounds": len(rows),
        "images_per_s": median("per_s"),
        "cpu_ms_per_image": median("cpu_ms"),
        "images_per_s_by_round": [{name: round(value["per_s"], 1) for name, value in row.items()} for row in rows],
        "stream_over_dataloader": ratio("dataloader", 1),
        "stream_over_own_work": ratio("own_one_core", CORES),
        "stream_over_own_on_all_cores": ratio("own_all_cores", 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
