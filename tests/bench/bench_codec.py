"""Time and memory of compress and decompress at full size; one JSON line per precision.

    python tests/bench/bench_codec.py GOLDEN_FOLDER PICTURE [--threads 2] [--repeat 7] [--device cpu]

`matmul_gflops` is the machine's own float32 speed (2 M N K / s, the shape of a block's MLP) in the same run: divide by
it to compare runs on a machine that others use too. Times include everything from array to bytes and back.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from egic import rangecoder  # noqa: E402
from egic.metrics import psnr_db  # noqa: E402
from egic.model import Model  # noqa: E402
from tests.codec_models import full_model  # noqa: E402

REFERENCE_S = {"compress": 1.14, "decompress": 1.04}  # the TensorFlow reference, 512x768, 2 threads, such a machine


def times(function: Callable[[], object], repeat: int) -> list[float]:
    """Seconds of each call, after one to warm up."""
    function()
    out = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        out.append(time.perf_counter() - start)
    return sorted(out)


def matmul_gflops() -> float:
    a, b = torch.randn(3072, 128), torch.randn(128, 512)
    return 2 * 3072 * 128 * 512 / min(times(lambda: a @ b, 50)) / 1e9


class CoderClock:
    """Adds up the time spent in the entropy coder's calls."""

    def __init__(self):
        self.seconds = 0.0
        for owner, names in (
            (rangecoder.Encoder, ("encode", "bytes")),
            (rangecoder.Decoder, ("decode", "__init__")),
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
    arguments.add_argument("--size", type=int, help="tile or crop the picture to a square of this side")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    x = np.asarray(Image.open(args.picture).convert("RGB"))
    if args.size:
        x = np.tile(x, (-(-args.size // x.shape[0]), -(-args.size // x.shape[1]), 1))[: args.size, : args.size]
    base, clock = full_model(args.golden).to(args.device), CoderClock()
    exact = base.decompress(base.compress(x)) if not args.size else None
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    for precision in ("float32", "bfloat16"):
        model = Model(base.codec, base.orp, precision)
        data = model.compress(x)
        line = {"bench": "codec", "precision": precision, "height": x.shape[0], "width": x.shape[1], "bytes": len(data)}
        line["matmul_gflops"] = round(matmul_gflops(), 1)
        for name, function in (("compress", lambda: model.compress(x)), ("decompress", lambda: model.decompress(data))):  # noqa: B023
            seconds = times(function, args.repeat)
            line[f"{name}_s"] = round(statistics.median(seconds), 4)
            line[f"{name}_p10_p90_s"] = [round(v, 4) for v in np.quantile(seconds, (0.1, 0.9))]
            line[f"{name}_coder_s"] = round(min(clock.during(function) for _ in range(3)), 4)
            if x.shape[:2] in ((512, 768), (768, 512)):
                line[f"{name}_of_reference"] = round(line[f"{name}_s"] / REFERENCE_S[name], 3)
        if exact is not None:
            tensors = [torch.from_numpy(a.copy()).permute(2, 0, 1)[None] for a in (exact, model.decompress(data), x)]
            line["psnr_loss_db"] = round((psnr_db(tensors[0], tensors[2]) - psnr_db(tensors[1], tensors[2])).item(), 4)
        line |= {
            "n": args.repeat, "threads": args.threads, "device": args.device,
            "max_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "date": datetime.date.today().isoformat(), "commit": commit.stdout.strip(), "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
