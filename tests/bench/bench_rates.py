"""One codec for every rate against codecs of one rate after equal steps, with the networks of `tiny`: one JSON line,
and a picture of the curves.

    python tests/bench/bench_rates.py PICTURES HELD_BACK FIGURE.svg [--steps 2000] [--batch 4] [--betas 0.016 0.004]

All train on the same random crops. bpp (by the entropy model) and PSNR (rounded to 8 bits) are means over the pictures
of HELD_BACK. `excess`: rate of the codec for every rate over that of the codec trained for one beta, minus one, at the
PSNR of the latter. `dip_db`: the furthest that a quality between two anchors lies below the curve through the anchors.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.interpolate import PchipInterpolator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from egic import artifact  # noqa: E402
from egic.metrics import distortion  # noqa: E402
from egic.networks.codec import Codec  # noqa: E402
from jobs.config.presets import tiny  # noqa: E402
from jobs.config.schema import Config  # noqa: E402
from jobs.training import loop  # noqa: E402
from tests.bench.common import commit, device_name, drawing, picture_files, random_crop  # noqa: E402
from tests.local_session import LocalSession  # noqa: E402

ANCHORS, BETWEEN = 6, 4
"""Anchors, and steps from one to the next in a curve."""


class Crops(LocalSession):
    """Random crops of random pictures, which depend on the step alone."""

    pictures: list[np.ndarray]

    def stream(self, config, first_step, settings):
        for step in range(first_step, settings.steps):
            yield self.batch(config, list(range(step * settings.batch, (step + 1) * settings.batch)))

    def val_batches(self, config, settings):
        yield self.batch(config, list(range(10**8, 10**8 + settings.val_samples)))

    def batch(self, config, positions):
        size, rngs = config.crop.size, [np.random.default_rng(p) for p in positions]
        x = np.stack([random_crop(self.pictures[r.integers(len(self.pictures))], size, r) for r in rngs])
        label = np.zeros(x.shape[:3], np.uint8)  # unused in this stage
        return {"x": x, "label": label, "weight": label, "position": np.array(positions)}


def trained(config: Config, pictures: list[np.ndarray]) -> Codec:
    with tempfile.TemporaryDirectory() as folder:
        session = Crops(Path(folder))
        session.pictures = pictures
        torch.manual_seed(0)
        loop.train("mse-codec", config, {"codec": Codec(config.codec)}, session, {"stage": "mse-codec"})
        return artifact.load(Path(folder, f"step_{config.mse_codec.steps:06d}", "artifact"), "codec")["codec"].eval()


@torch.inference_mode()
def measured(codec: Codec, pictures: list[np.ndarray], q: float | None = None) -> np.ndarray:
    """(pictures, 2): bpp, and PSNR in dB."""
    rows = []
    for picture in pictures:
        x = torch.tensor(picture).permute(2, 0, 1)[None].float()
        coded = codec(x, q=None if q is None else torch.tensor([q]))
        psnr = distortion.psnr_db(distortion.to_uint8(coded.x_hat), distortion.to_uint8(x))
        rows.append((coded.bits.sum().item() / picture[..., 0].size, psnr.item()))
    return np.array(rows)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("pictures", type=Path)
    arguments.add_argument("held_back", type=Path)
    arguments.add_argument("figure", type=Path)
    arguments.add_argument("--steps", type=int, default=2000)
    arguments.add_argument("--batch", type=int, default=4)
    arguments.add_argument("--betas", type=float, nargs="*", default=[0.016, 0.004])
    args = arguments.parse_args()
    torch.set_num_threads(1)
    began, base = time.perf_counter(), tiny()
    pictures = [np.asarray(Image.open(f).convert("RGB")) for f in picture_files(args.pictures)]
    pictures = [x for x in pictures if min(x.shape[:2]) >= base.crop.size]
    held_back = [np.asarray(Image.open(f).convert("RGB")) for f in picture_files(args.held_back)]
    settings = replace(
        base.mse_codec, steps=args.steps, batch=args.batch, schedule="linear", last_steps=0, lr=1e-3, ema=0.999,
        log_every=100, checkpoint_every=args.steps, val_samples=4,
    )  # fmt: skip
    base = replace(base, mse_codec=settings)

    codec = trained(replace(base, codec=replace(base.codec, rates=ANCHORS)), pictures)
    qs = np.linspace(0, ANCHORS - 1, (ANCHORS - 1) * BETWEEN + 1)
    surface = np.stack([measured(codec, held_back, q) for q in qs])  # (q, picture, 2)
    curve, anchors = surface.mean(1), surface.mean(1)[::BETWEEN]
    through = PchipInterpolator(np.log(anchors[:, 0]), anchors[:, 1])
    rate_at = PchipInterpolator(curve[:, 1], np.log(curve[:, 0]))  # fails unless PSNR rises with q

    fixed, scale = {}, 65536 / base.crop.size**2  # beta belongs to 256x256 pixels, the loss of one rate to the crop
    for beta in args.betas:
        one = replace(base, mse_codec=replace(settings, beta=beta * scale))
        fixed[beta] = measured(trained(one, pictures), held_back).mean(0)
    with drawing(args.figure, f"Networks of tiny, {args.steps} steps of {args.batch} crops", (6, 4)) as axes:
        axes.plot(*curve.T, color="#4477aa", marker=".", markersize=4, label="one codec, qualities between anchors")
        axes.plot(*anchors.T, "o", color="#4477aa", label="one codec, anchors")
        for beta, point in fixed.items():
            axes.plot(*point, "x", color="#cc6677", markersize=8, label=f"trained for beta {beta:g} alone")
        axes.set(xlabel="bpp", ylabel="PSNR in dB", xscale="log")
        axes.legend(frameon=False)
    factor = surface[-1, :, 0] / surface[0, :, 0]
    line = {
        "bench": "rates", "steps": args.steps, "batch": args.batch, "pictures": len(held_back),
        "bpp": [round(v, 4) for v in curve[[0, -1], 0]], "psnr_db": [round(v, 3) for v in curve[[0, -1], 1]],
        "factor": {"mean": round(factor.mean(), 2), "least": round(factor.min(), 2)},
        "monotone": int((np.diff(surface[..., 1], axis=0) > 0).all(0).sum()),
        "dip_db": round(float((through(np.log(curve[:, 0])) - curve[:, 1]).max()), 4),
        "excess": {str(b): round(float(np.exp(rate_at(p[1])) / p[0] - 1), 4) for b, p in fixed.items()},
        "fixed": {str(b): [round(float(v), 4) for v in p] for b, p in fixed.items()},
        "took_s": round(time.perf_counter() - began, 1), "device": device_name(torch.device("cpu")),
        "commit": commit(), "date": datetime.date.today().isoformat(), "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
