"""Loss curves of the MSE codec at full size in float32 and bfloat16: one JSON line, and a picture of the curves.

    python tests/bench/bench_precision.py PICTURES FIGURE.svg [--steps 500] [--batch 8] [--device cuda] [--seeds 2]

Each precision trains on the same random crops once per seed, as the training loop does; the seed sets the initial
weights and the order. `gap` is the difference of the precisions' mean losses over the second half of the steps, `noise`
the difference between seeds of one precision (mean absolute difference of smoothed curves), relative to the loss.
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

from egic.networks.codec import Codec  # noqa: E402
from egic.training.steps import Batch  # noqa: E402
from jobs.config import presets  # noqa: E402
from jobs.training import train_state
from jobs.training.cuda_graphs import QueuedSteps  # noqa: E402
from jobs.training.stage import load_stage  # noqa: E402
from tests.bench.bench_steps import PRECISIONS  # noqa: E402
from tests.bench.common import commit, device_name, drawing, picture_files, random_crop  # noqa: E402

SIZE, SMOOTHED = 256, 25


def batches(pictures: list[np.ndarray], args: argparse.Namespace, seed: int, device: torch.device):
    """Random crops of random pictures."""
    rng = np.random.default_rng(seed)
    for step in range(args.steps):
        chosen = (pictures[rng.integers(len(pictures))] for _ in range(args.batch))
        crops = [random_crop(x, SIZE, rng) for x in chosen]
        x = torch.tensor(np.stack(crops)).to(device).permute(0, 3, 1, 2).contiguous().float()
        positions = list(range(step * args.batch, (step + 1) * args.batch))
        label = torch.zeros(args.batch, 1, 1, dtype=torch.int64, device=device)  # unused in this stage
        yield Batch(x, label, label.float(), positions)


def curve(pictures: list[np.ndarray], args: argparse.Namespace, precision: str, seed: int) -> np.ndarray:
    """The loss of each step."""
    device, stage, config = torch.device(args.device), load_stage("mse-codec"), presets.workstation()
    config = dataclasses.replace(config, precision=precision, seed=seed)
    torch.manual_seed(seed)
    nets = stage.build(config, {"codec": Codec(config.codec)})
    nets.precision = PRECISIONS[precision]
    session = SimpleNamespace(device=device, world_size=1, idle=False)
    state = train_state.prepare_training(stage, nets, session, stage.settings(config))
    queued = QueuedSteps(stage, state, config, device) if device.type == "cuda" else None
    losses = []
    for step, batch in enumerate(batches(pictures, args, seed, device)):
        found = queued(batch, step) if queued else stage.step(nets, state.optimizers, batch, config, step)
        losses.append(found["loss"].clone())
    if queued:
        queued.check()
    return torch.stack(losses).cpu().numpy()


def smooth(losses: np.ndarray) -> np.ndarray:
    return np.convolve(losses, np.ones(SMOOTHED) / SMOOTHED, "valid")


def apart(curves: list[np.ndarray]) -> float:
    """Mean absolute difference of smoothed curves over their second half, relative to their mean."""
    halves = [smooth(c)[len(c) // 2 :] for c in curves]
    return float(np.mean([np.abs(a - b).mean() for a, b in itertools.combinations(halves, 2)]) / np.mean(halves))


def draw(curves: dict[tuple[str, int], np.ndarray], title: str, path: Path) -> None:
    colours = {"float32": "#4477aa", "bfloat16": "#cc6677"}
    with drawing(path, title, (8, 4.5)) as axes:
        for (precision, seed), losses in curves.items():
            style = {"color": colours[precision], "linestyle": ("-", "--", ":")[seed % 3]}
            axes.plot(smooth(losses), label=f"{precision}, seed {seed}", **style)
        axes.set(xlabel="step", ylabel=f"loss, mean of {SMOOTHED} steps", yscale="log")
        axes.legend(frameon=False)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("pictures", type=Path)
    arguments.add_argument("figure", type=Path)
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--seeds", type=int, default=2)
    args = arguments.parse_args()
    pictures = [np.asarray(Image.open(f).convert("RGB")) for f in picture_files(args.pictures)]
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
