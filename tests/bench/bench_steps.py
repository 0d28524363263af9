"""Seconds of each training step with full-size networks on 256x256 crops; one JSON line per step and precision.

    python tests/bench/bench_steps.py [mse_codec gan_warmup gan orp segmentation] [--precision float32 bfloat16]
        [--how eager graphs compiled] [--threads 2] [--rounds 7] [--device cpu] [--batch N] [--profile FOLDER]
        [--reference FOLDER --reference-python PYTHON]                      (see reference_steps.py)

Networks, optimizers, allocator and steps are the training loop's; pictures and labels are random. Precisions, and the
reference's step if given, alternate in every round: `of_reference` is the ratio of the medians. `gflop` is
the step's matrix products, convolutions and attention; `flop_share` is their speed over that of large bfloat16 matrix
products in the same run. `how`: eager; graphs (captured, as with compute.cuda_graphs, on GPUs); compiled (blocks, as
with compute.compile, and captured on GPUs). On a shared machine, CPU times (`cpu_of_reference`) are more reliable
than wall times; OMP_WAIT_POLICY=PASSIVE then excludes the time of waiting threads.
"""

import argparse
import dataclasses
import datetime
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from egic.metrics.perceptual import LPIPS  # noqa: E402
from egic.networks.codec import Codec  # noqa: E402
from egic.networks.discriminator import Discriminator  # noqa: E402
from egic.training.steps import Batch  # noqa: E402
from jobs.config import presets  # noqa: E402
from jobs.data.sources.coco_classes import CATEGORIES  # noqa: E402
from jobs.training import loop, train_state  # noqa: E402
from jobs.training.cuda_graphs import WARM_UP, QueuedSteps  # noqa: E402
from jobs.training.num_categories import with_categories  # noqa: E402
from jobs.training.stage import load_stage  # noqa: E402
from jobs.training.worker import keep_freed_memory  # noqa: E402
from tests.bench.common import commit, device_name, drawing, seconds  # noqa: E402
from tests.bench.reference import Reference  # noqa: E402

STEPS = {  # stage, pictures on a CPU (the adversarial step gives half of them to D and half to g_s)
    "mse_codec": ("mse-codec", 2),
    "gan_warmup": ("gan", 1),
    "gan": ("gan", 2),
    "orp": ("orp", 2),
    "segmentation": ("segmentation", 2),
}
SIZE = 256
Step = Callable[[], dict[str, Tensor]]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NoLPIPS(nn.Module):
    """Replaces LPIPS in the warm-up on a CPU, whose goal is without LPIPS."""

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return x.new_zeros(())


def random_batch(num: int, device: torch.device) -> Batch:
    """Noise with labels in tiles of 32 pixels, some of them void, some with weight 3."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(num, 3, SIZE, SIZE, generator=g) * 255
    label = torch.randint(0, 134, (num, SIZE // 32, SIZE // 32), generator=g)
    label = label.repeat_interleave(32, 1).repeat_interleave(32, 2)
    weight = torch.where(label % 5 == 0, 3.0, 1.0)
    return Batch(x.to(device), label.to(device), weight.to(device), list(range(num)))


def step_of(name: str, precision: str, device: torch.device, num: int, how: str = "eager") -> Step:
    """A function that makes one optimizer step as the training loop does, and returns its losses."""
    config, stage = with_categories(presets.workstation(), len(CATEGORIES)), load_stage(STEPS[name][0])
    config = dataclasses.replace(config, precision=precision)
    torch.manual_seed(0)
    without = name == "gan_warmup" and device.type == "cpu"
    makers = {
        "codec": lambda: Codec(config.codec),
        "discriminator": lambda: Discriminator(config.discriminator),
        "lpips": lambda: NoLPIPS() if without else LPIPS(None),
    }
    wanted = (*stage.takes, "lpips") if stage.name == "gan" else stage.takes
    nets = stage.build(config, {part: makers[part]() for part in wanted})
    nets.precision = PRECISIONS[precision]
    if how == "compiled":
        loop.compile_blocks(nets)
    session = SimpleNamespace(device=device, world_size=1, idle=False)
    state = train_state.prepare_training(stage, nets, session, stage.settings(config))
    batch, number = random_batch(num, device), config.gan.warmup_steps if name == "gan" else 0
    if how == "eager" or device.type == "cpu":
        return lambda: stage.step(nets, state.optimizers, batch, config, number)
    queued = QueuedSteps(stage, state, config, device)
    return lambda: queued(dataclasses.replace(batch, drawn={}), number)  # new random numbers, as for another batch


def matmul_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Best speed of a square matrix product, of a size that takes a moment."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(6)) / 1e9


def gflop(step: Callable[[], object]) -> float:
    """Multiplications and additions of one step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def times(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and CPU time of one step."""
    cpu = time.process_time()
    return seconds(step, device), time.process_time() - cpu


def measure(name: str, args: argparse.Namespace, reference: Reference | None) -> list[dict]:
    """One line per precision and way of running: alternating on a CPU, with the reference; one after the other on a
    GPU, to measure the memory of each."""
    device, num = torch.device(args.device), args.batch or STEPS[name][1]
    variants = [(precision, how) for how in args.how for precision in args.precision]
    work = {p: gflop(step_of(name, p, device, num)) for p in args.precision}
    peak, lines = matmul_gflops(device, torch.bfloat16), []
    for group in [variants] if device.type == "cpu" else [[v] for v in variants]:
        found, firsts = rounds(name, group, args, reference)
        median = {who: np.median(pairs, 0) for who, pairs in found.items()}
        for precision, how in group:
            wall, cpu = median[precision, how]
            line = {"bench": "steps", "step": name, "batch": num, "precision": precision, "how": how}
            line |= firsts[precision, how] | {
                "gflop": round(work[precision], 1), "time_s": round(wall, 4),
                "p10_p90_s": np.quantile(found[precision, how], (0.1, 0.9), 0)[:, 0].round(4).tolist(),
                "cpu_s": round(cpu, 3), "n": args.rounds, "images_per_s": round(num / wall, 3),
                "matmul_gflops": round(matmul_gflops(device, PRECISIONS[precision]), 1),
                "flop_share": round(work[precision] / wall / peak, 3),
            }  # fmt: skip
            if reference:
                ratios = median[precision, how] / median["reference"]
                line |= {"of_reference": round(ratios[0], 3), "cpu_of_reference": round(ratios[1], 3)}
                line["reference_s"], line["reference_cpu_s"] = median["reference"].round(4).tolist()
            lines.append(line)
    return lines


def rounds(name: str, group: list, args: argparse.Namespace, reference: Reference | None) -> tuple[dict, dict]:
    """Wall and CPU times of each variant, and results of its first calls."""
    device, num = torch.device(args.device), args.batch or STEPS[name][1]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    steps = {(p, how): step_of(name, p, device, num, how) for p, how in group}
    firsts = {who: first_calls(step, device) for who, step in steps.items()}
    calls = {who: lambda step=step: times(step, device) for who, step in steps.items()}
    if reference:
        reference.times(name)
        calls["reference"] = lambda: reference.times(name)
    found = {who: [] for who in calls}
    for _ in range(args.rounds):
        for who, call in calls.items():
            found[who].append(call())
    return found, firsts


def first_calls(step: Step, device: torch.device) -> dict:
    """Warm up, until a graph is captured; the first call's time, and on a GPU the peak of its memory."""
    line = {"first_s": round(seconds(step, device), 2)}
    for _ in range(WARM_UP if device.type == "cuda" else 1):
        seconds(step, device)
    if device.type == "cuda":
        line["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return line


def profile(name: str, args: argparse.Namespace, folder: Path) -> None:
    """Write the step's operators, slowest first, as a table and a picture per variant."""
    device, num = torch.device(args.device), args.batch or STEPS[name][1]
    for precision, how in [(precision, how) for how in args.how for precision in args.precision]:
        step = step_of(name, precision, device, num, how)
        for _ in range(WARM_UP + 1):
            seconds(step, device)
        with torch.profiler.profile() as found:
            seconds(step, device)
        operators, key = found.key_averages(), f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
        table = operators.table(sort_by=key.replace("device", "cuda"), row_limit=25, max_name_column_width=60)
        stem = f"profile_{name}_{precision}_{how}_{device.type}"
        (folder / f"{stem}.txt").write_text(table)
        on_gpu = device.type == "cuda"  # count kernels, not the calls that start them
        spent = {o.key: getattr(o, key) / 1e3 for o in operators if on_gpu == (o.device_type == DeviceType.CUDA)}
        draw(spent, f"{name}, {num} pictures, {precision}, {how}, {device_name(device)}", folder / f"{stem}.svg")


def draw(spent: dict[str, float], title: str, path: Path, shown: int = 20) -> None:
    """Bars of the names that took the most milliseconds, and one of all others."""
    whole, pairs = sum(spent.values()), sorted(spent.items(), key=lambda pair: -pair[1])
    pairs = [*pairs[:shown], (f"{len(pairs[shown:])} others", sum(ms for _, ms in pairs[shown:]))]
    with drawing(path, f"{title}: {whole:.1f} ms", (10, 6)) as axes:
        bars = axes.barh([name[:70] for name, _ in pairs], [ms for _, ms in pairs], color="#4477aa")
        axes.bar_label(bars, [f"{ms:.1f} ms, {100 * ms / whole:.0f} %" for _, ms in pairs], fontsize=7, padding=2)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("ms of a step")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)}; all without")
    arguments.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch", type=int, help="pictures of a step")
    arguments.add_argument("--how", nargs="+", choices=("eager", "graphs", "compiled"), default=["eager"])
    arguments.add_argument("--profile", type=Path, help="write operators into this folder instead")
    arguments.add_argument("--reference", help="folder with the reference's code")
    arguments.add_argument("--reference-python", help="Python that has TensorFlow")
    args = arguments.parse_args()
    names = args.steps or list(STEPS)
    if unknown := [name for name in names if name not in STEPS]:
        arguments.error(f"{unknown[0]} is not a step; choose from {', '.join(STEPS)}")
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if args.profile:
        for name in names:
            profile(name, args, args.profile)
        return
    reference = Reference(args.reference_python, args.reference, args.threads) if args.reference else None
    for name in names:
        for line in measure(name, args, reference):
            line |= {
                "threads": args.threads, "device": device_name(torch.device(args.device)), "commit": commit(),
                "date": datetime.date.today().isoformat(), "torch": torch.__version__,
                "load": round(os.getloadavg()[0], 1),
                "max_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            }  # fmt: skip
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
