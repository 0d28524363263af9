"""The model of scaling.md: step time of data-parallel training, from FLOPs, bytes and link speeds. Prints its table.

    python tests/bench/scaling_model.py

Measured: parameters and FLOPs (pipelines/cost.py, one 256x256 picture, forward, backward and frozen
parts). Assumed: GPU speed and links, below.
"""

from dataclasses import dataclass

PEAK_TFLOPS, USED = 989.0, 0.3
"""Dense bfloat16 speed of an H100 or H200, and the share of it that a step reaches: a goal, not measured."""
BUCKET_MB = 25.0
"""DDP's default: gradients are sent in buckets of this size during the backward pass."""
LATENCY_S = 5e-6
"""Latency of one hop of a ring."""
NODE = 8
LINKS = {
    "400 Gb/s InfiniBand per GPU": 50e9,
    "200 Gb/s InfiniBand per GPU": 25e9,
    "100 Gb/s Ethernet per node": 12.5e9 / NODE,
    "25 Gb/s Ethernet per node": 3.125e9 / NODE,
}
"""Bytes/s per GPU between nodes."""
NVLINK = 450e9
"""Bytes/s per GPU in one direction inside a node."""


@dataclass(frozen=True)
class Stage:
    """parameters: number of those that train. gflop: of a step, per picture. backward: share of the backward pass."""

    name: str
    parameters: int
    gflop: float
    backward: float


STAGES = (
    Stage("MSE codec", 32_556_240, 222.5, 2 / 3),
    Stage("segmentation", 22_265_799, 166.9, 2 / 3),
    Stage("GAN warm-up", 9_139_300, 148.5, 0.5),
    Stage("GAN adversarial", 9_139_300 + 22_450_247, 417.5, 0.5),
    Stage("ORP", 399_892, 100.1, 0.05),
)


def ring_s(num_bytes: float, gpus: int, bytes_per_s: float) -> float:
    """Ring all-reduce: each GPU sends 2 (n - 1) / n of the bytes, in 2 (n - 1) hops."""
    return 2 * (gpus - 1) / gpus * num_bytes / bytes_per_s + 2 * (gpus - 1) * LATENCY_S if gpus > 1 else 0.0


def reduce_s(num_bytes: float, gpus: int, link: float) -> float:
    """First inside each node, then an eighth per GPU between the nodes, as NCCL does with one network card per GPU."""
    inside = ring_s(num_bytes, min(gpus, NODE), NVLINK)
    return inside + ring_s(num_bytes / NODE, gpus // NODE, link) if gpus > NODE else inside


def step_s(stage: Stage, pictures: int, gpus: int, link: float) -> tuple[float, float]:
    """Seconds of computation, and of waiting for gradients, per step with `pictures` per GPU. The last bucket is sent
    after the backward pass; the others are sent during it, as far as it lasts."""
    compute = stage.gflop * pictures / (PEAK_TFLOPS * USED * 1e3)
    num_bytes = 4.0 * stage.parameters
    last = reduce_s(min(num_bytes, BUCKET_MB * 1e6), gpus, link)
    return compute, max(last, reduce_s(num_bytes, gpus, link) - stage.backward * compute)


def main() -> None:
    print(f"| stage | pictures per GPU | step | MB | 8 GPUs | {' | '.join(LINKS)} |")
    print("|---" * (5 + len(LINKS)) + "|")
    for stage in STAGES:
        for pictures in (2, 16):
            cells = []
            for link in LINKS.values():
                times = [step_s(stage, pictures, gpus, link) for gpus in (8, 64, 256)]
                alone, *shares = [f"{100 * c / (c + w):.0f}" for c, w in times]
                cells.append(" / ".join(shares))
            size = f"{4 * stage.parameters / 1e6:.1f}"
            print(
                f"| {stage.name} | {pictures} | {1e3 * times[0][0]:.1f} ms | {size} | {alone} | {' | '.join(cells)} |"
            )


if __name__ == "__main__":
    main()
