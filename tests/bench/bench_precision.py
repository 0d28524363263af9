"""Loss curves of the MSE codec at full size in float32 and bfloat16: one JSON line, and a picture of the curves.

    python tests/bench/bench_precision.py PICTURES FIGURE.svg [--steps 500] [--batch 8] [--device cuda] [--seeds 2]

Each precision trains on the same random crops once per seed, as the training loop does; the seed changes the weights
to begin with and the order. `gap` is how far the precisions' mean losses lie apart over the second half of the steps,
and `noise` how far the seeds of one precision do (mean absolute difference of smoothed curves), relative to the loss.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from egic.codec import Codec  # noqa: E402
from egic.steps import Batch  # noqa: E402
from jobs import loop, presets  # noqa: E402
from jobs.queued import QueuedSteps  # noqa: E402
from jobs.stage import load_stage  # noqa: E402
from tests.bench.bench_steps import PRECISIONS, device_name  # noqa: E402
from tests.bench.common import commit  # noqa: E402

SIZE, SMOOTHED = 256, 25


def batches(pictures: list[np.ndarray], args: argparse.Namespace, seed: int, device: torch.device):
    """Random crops of random pictures."""
    rng = np.random.default_rng(seed)
    for step in range(args.steps):
        crops = []
        for _ in range(args.batch):
            x = pictures[rng.integers(len(pictures))]
            top, left = (int(rng.integers(0, side - SIZE + 1)) for side in x.shape[:2])
            crops.append(x[top : top + SIZE, left : left + SIZE])
        x = torch.tensor(np.stack(crops)).to(device).permute(0, 3, 1, 2).contiguous().float()
        positions = list(range(step * args.batch, (step + 1) * args.batch))
        label = torch.zeros(args.batch, 1, 1, dtype=torch.int64, device=device)  # nothing that this stage looks at
        yield Batch(x, label, label.float(), positions)


def curve(pictures: list[np.ndarray], args: argparse.Namespace, precision: str, seed: int) -> np.ndarray:
    """The loss of each step."""
    device, stage, config = torch.device(args.device), load_stage("mse-codec"), presets.workstation()
    config = dataclasses.replace(config, precision=precision, seed=seed)
    torch.manual_seed(seed)
    nets = stage.build(config, {"codec": Codec(config.codec)})
    nets.precision = PRECISIONS[precision]
    session = SimpleNamespace(device=device, world_size=1, idle=False)
    optimizers = loop.prepare_training(stage, nets, session, stage.settings(config)).optimizers
    queued = QueuedSteps(stage, nets, optimizers, config, device) if device.type == "cuda" else None
    losses = []
    for step, batch in enumerate(batches(pictures, args, seed, device)):
        found = queued(batch, step) if queued else stage.step(nets, optimizers, batch, config, step)
        losses.append(found["loss"].clone())
    if queued:
        queued.check()
    return torch.stack(losses).cpu().numpy()


def apart(curves: list[np.ndarray]) -> float:
    """Mean distance of smoothed curves over their second half, relative to their mean."""
    smooth = [np.convolve(c, np.ones(SMOOTHED) / SMOOTHED, "valid")[len(c) // 2 :] for c in curves]
    return float(np.mean([np.abs(a - b).mean() for a, b in itertools.combinations(smooth, 2)]) / np.mean(smooth))


def draw(curves: dict[tuple[str, int], np.ndarray], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # words, not outlines
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for (precision, seed), losses in curves.items():
        smooth = np.convolve(losses, np.ones(SMOOTHED) / SMOOTHED, "valid")
        colour = {"float32": "#4477aa", "bfloat16": "#cc6677"}[precision]
        axes.plot(smooth, color=colour, linestyle=("-", "--", ":")[seed % 3], label=f"{precision}, seed {seed}")
    axes.set(xlabel="step", ylabel=f"loss, mean of {SMOOTHED} steps", yscale="log")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("pictures", type=Path)
    arguments.add_argument("figure", type=Path)
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--seeds", type=int, default=2)
    args = arguments.parse_args()
    files = sorted(f for f in args.pictures.rglob("*") if f.suffix.lower() in (".png", ".jpg"))
    pictures = [np.asarray(Image.open(f).convert("RGB")) for f in files]
    pictures = [x for x in pictures if min(x.shape[:2]) >= SIZE]
    began, curves = time.perf_counter(), {}
    for seed in range(args.seeds):
        for precision in PRECISIONS:
            curves[precision, seed] = curve(pictures, args, precision, seed)
    where = device_name(torch.device(args.device))
    draw(curves, f"MSE codec, full size, batch {args.batch}, {where}", args.figure)
    seeds = range(args.seeds)
    line = {
        "bench": "precision", "steps": args.steps, "batch": args.batch, "seeds": args.seeds, "pictures": len(pictures),
        "gap": round(float(np.mean([apart([curves[p, s] for p in PRECISIONS]) for s in seeds])), 4),
        "noise": {p: round(apart([curves[p, s] for s in seeds]), 4) if args.seeds > 1 else None for p in PRECISIONS},
        "last_loss": {f"{p}, seed {s}": round(float(c[-100:].mean()), 1) for (p, s), c in curves.items()},
        "took_s": round(time.perf_counter() - began, 1), "device": where, "commit": commit(),
        "date": datetime.date.today().isoformat(), "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
