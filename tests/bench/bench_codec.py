"""Time and memory of compress and decompress at full size; one JSON line per precision.

    python tests/bench/bench_codec.py GOLDEN_FOLDER PICTURE [--threads 2] [--repeat 7] [--device cpu]
        [--reference FOLDER --reference-python PYTHON]                      (see reference_steps.py)

Times include everything from array to bytes and back. Precisions, and the reference's networks if given, alternate;
`of_reference` is the ratio of the medians. `matmul_gflops` is the machine's own speed in that precision
(the shape of a block's MLP) in the same run: where bfloat16 is no faster than float32, it gains nothing.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from egic.coding import range_coder  # noqa: E402
from egic.metrics.distortion import psnr_db  # noqa: E402
from egic.model import Model  # noqa: E402
from tests.bench.common import commit, seconds  # noqa: E402
from tests.bench.reference import Reference  # noqa: E402
from tests.codec_models import full_model  # noqa: E402

WAYS = ("compress", "decompress")


def matmul_gflops(precision: str) -> float:
    a, b = (torch.randn(shape).to(getattr(torch, precision)) for shape in ((3072, 128), (128, 512)))
    return 2 * 3072 * 128 * 512 / min(seconds(lambda: a @ b, "cpu") for _ in range(50)) / 1e9


def measure(calls: dict[str, Callable[[], float]], repeat: int) -> dict[str, list[float]]:
    """Seconds of all functions, called alternately after one warm-up call each."""
    for call in calls.values():
        call()
    found = {who: [] for who in calls}
    for _ in range(repeat):
        for who, call in calls.items():
            found[who].append(call())
    return found


class CoderClock:
    """Sums the time spent in calls of the entropy coder."""

    def __init__(self):
        self.seconds = 0.0
        for owner, names in (
            (range_coder.Encoder, ("encode", "bytes")),
            (range_coder.Decoder, ("decode", "__init__")),
        ):
            for name in names:
                setattr(owner, name, self.timed(getattr(owner, name)))

    def timed(self, function: Callable) -> Callable:
        def call(*args):
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += time.perf_counter() - start

        return call

    def during(self, function: Callable[[], object]) -> float:
        self.seconds = 0.0
        function()
        return self.seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("golden", type=Path)
    arguments.add_argument("picture", type=Path)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--repeat", type=int, default=7)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--reference", help="folder with the reference's code")
    arguments.add_argument("--reference-python", help="Python that has TensorFlow")
    arguments.add_argument("--size", type=int, help="tile or crop the picture to a square of this side")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    x = np.asarray(Image.open(args.picture).convert("RGB"))
    if args.size:
        x = np.tile(x, (-(-args.size // x.shape[0]), -(-args.size // x.shape[1]), 1))[: args.size, : args.size]
    base, clock = full_model(args.golden).to(args.device), CoderClock()
    exact = base.decompress(base.compress(x)) if not args.size else None
    reference = Reference(args.reference_python, args.reference, args.threads) if args.reference else None
    models = {precision: Model(base.codec, base.orp, precision) for precision in ("float32", "bfloat16")}
    files = {precision: model.compress(x) for precision, model in models.items()}
    lines = {precision: {"bench": "codec", "precision": precision} for precision in models}
    for way in WAYS:
        given = {precision: x if way == "compress" else files[precision] for precision in models}
        work = {precision: partial(getattr(model, way), given[precision]) for precision, model in models.items()}
        calls = {precision: partial(seconds, function, args.device) for precision, function in work.items()}
        if reference:
            calls["reference"] = lambda way=way: reference.times(way)[0]
        found = measure(calls, args.repeat)
        for precision, line in lines.items():
            median = statistics.median(found[precision])
            line[f"{way}_s"] = round(median, 4)
            line[f"{way}_p10_p90_s"] = [round(v, 4) for v in np.quantile(found[precision], (0.1, 0.9))]
            line[f"{way}_coder_s"] = round(min(clock.during(work[precision]) for _ in range(3)), 4)
            if reference:
                line[f"{way}_reference_s"] = round(statistics.median(found["reference"]), 4)
                line[f"{way}_of_reference"] = round(median / statistics.median(found["reference"]), 3)
    for precision, line in lines.items():
        if exact is not None:
            pictures = (exact, models[precision].decompress(files[precision]), x)
            tensors = [torch.from_numpy(a.copy()).permute(2, 0, 1)[None] for a in pictures]
            line["psnr_loss_db"] = round((psnr_db(tensors[0], tensors[2]) - psnr_db(tensors[1], tensors[2])).item(), 4)
        line |= {
            "height": x.shape[0], "width": x.shape[1], "bytes": len(files[precision]),
            "matmul_gflops": round(matmul_gflops(precision), 1),
            "n": args.repeat, "threads": args.threads, "device": args.device,
            "max_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "date": datetime.date.today().isoformat(), "commit": commit(), "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
