"""Weak scaling: one worker on one core, compared with two on two hosts (network namespaces). Needs root.

    python tests/bench/bench_scaling.py [steps] [stage]

A worker is one thread with one 256x256 picture per step on the full-size networks, with the loop's own set-up and step.
Three alternating measurements: one worker; two independent workers, for the machine's own loss with two busy cores; two
that share their gradients over TCP. Prints one JSON line, which is input of the model in scaling.md.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from egic.networks.codec import Codec
from egic.networks.discriminator import Discriminator
from jobs.config.presets import paper
from jobs.data.sources.coco_classes import CATEGORIES
from jobs.training.loop import to_batch
from jobs.training.num_categories import with_categories
from jobs.training.stage import load_stage
from jobs.training.train_state import prepare_training
from jobs.training.worker import keep_freed_memory
from tests.bench.common import commit
from tests.integration import hosts

WARM = 2
PORT = 29411


def work(stage_name: str, rank: int, world_size: int, address: str, steps: int) -> None:
    """One worker: prints seconds of each step and of an all-reduce of all gradients, and their number of values."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group(
        "gloo", f"tcp://{address}:{PORT}", timeout=timedelta(seconds=120), rank=rank, world_size=world_size
    )  # fmt: skip
    config, stage = with_categories(paper(), len(CATEGORIES)), load_stage(stage_name)
    session = SimpleNamespace(world_size=world_size, idle=False, device=torch.device("cpu"), group=None)
    torch.manual_seed(0)
    parts = {"codec": Codec(config.codec), "discriminator": Discriminator(config.discriminator)}
    nets = stage.build(config, {name: parts[name] for name in stage.takes})
    state = prepare_training(stage, nets, session, stage.settings(config))
    generator = torch.Generator().manual_seed(rank)
    raw = {
        "x": torch.randint(256, (1, 256, 256, 3), generator=generator, dtype=torch.uint8).numpy(),
        "label": torch.randint(134, (1, 256, 256), generator=generator, dtype=torch.uint8).numpy(),
        "weight": torch.ones(1, 256, 256, dtype=torch.uint8).numpy(),
        "position": [rank],
    }
    times = []
    for step in range(WARM + steps):
        began = time.perf_counter()
        stage.step(state.nets, state.optimizers, to_batch(raw, session.device), config, step)
        times.append(time.perf_counter() - began)
    num = sum(p.numel() for opt in state.optimizers.values() for group in opt.param_groups for p in group["params"])
    gradients, reduced = torch.zeros(num), []
    for _ in range(WARM + 3):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(gradients)
        reduced.append(time.perf_counter() - began)
    print(json.dumps({"step_s": times[WARM:], "reduce_s": reduced[WARM:], "parameters": num}))
    dist.destroy_process_group()


def measure(made: list[hosts.Host], stage: str, steps: int, *, together: bool) -> list[dict]:
    """Output of the workers of all hosts, each on another core."""
    running = []
    for number, host in enumerate(made):
        rank, size, address = (number, len(made), made[0].address) if together else (0, 1, host.address)
        told = ["work", stage, rank, size, address, steps]
        env = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        command = ["taskset", "-c", number % os.cpu_count(), sys.executable, __file__, *told]
        running.append(host.start(command, stdout=subprocess.PIPE, env=env))
    spoken = [process.communicate()[0] for process in running]
    return [json.loads(text.strip().splitlines()[-1]) for text in spoken]


def main(steps: int = 6, stage: str = "mse-codec") -> None:
    if reason := hosts.why_not():
        print(f"not measured: {reason}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="egic") as folder, hosts.hosts(2, Path(folder)) as made:
        alone = measure(made[:1], stage, steps, together=False)
        apart = measure(made, stage, steps, together=False)
        shared = measure(made, stage, steps, together=True)
    median = {
        name: statistics.median(s for told in result for s in told["step_s"])
        for name, result in (("alone", alone), ("apart", apart), ("shared", shared))
    }
    reduce_s = statistics.median(s for told in shared for s in told["reduce_s"])
    num = shared[0]["parameters"]
    print(json.dumps({
        "bench": "scaling", "stage": stage, "pictures_per_worker": 1, "parameters": num,
        "step_s": {name: round(s, 3) for name, s in median.items()},
        "efficiency": round(median["alone"] / median["shared"], 3),
        "efficiency_of_machine": round(median["alone"] / median["apart"], 3),
        "efficiency_of_communication": round(median["apart"] / median["shared"], 3),
        "all_reduce_s": round(reduce_s, 3), "all_reduce_gb_per_s": round(4 * num / reduce_s / 1e9, 2),
        "n": steps, "threads_per_worker": 1, "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1),
        "device": "cpu", "date": date.today().isoformat(), "commit": commit(), "torch": torch.__version__,
        "machine": platform.machine(),
    }))  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]))
    else:
        main(*(int(sys.argv[1]),) if sys.argv[1:] else (), *sys.argv[2:3])
