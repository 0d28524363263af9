"""Stage: the whole codec for rate and distortion (SwinT-ChARM; EGIC section 4.1)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from egic.metrics import distortion
from egic.networks.codec import Codec
from egic.report import panels
from egic.training import steps
from egic.training.steps import Batch, CodecNets
from jobs.config.schema import Config
from jobs.training import rates
from jobs.training.stage import Components, Stage, means


def build(config: Config, components: Components) -> CodecNets:
    return CodecNets(codec=components.get("codec") or Codec(config.codec))


def step(nets: CodecNets, optimizers: Mapping, batch: Batch, config: Config, step: int) -> dict[str, Tensor]:
    c = config.mse_codec
    return steps.mse_codec_step(nets, optimizers, batch, beta=c.beta, clip_norm=c.clip_norm, seed=config.seed)


def validate(nets: CodecNets, batch: Batch, config: Config) -> dict[str, Tensor]:
    """PSNR of 8-bit pictures, estimated bpp, and, as a baseline, the PSNR of each crop's mean colour."""
    x = distortion.to_uint8(batch.x)
    flat = distortion.to_uint8(batch.x.mean((2, 3), keepdim=True).expand_as(batch.x))

    def measure(q: Tensor | None) -> dict[str, Tensor]:
        with nets.autocast(x.device):
            coded = nets.codec(batch.x, q=q)
        return {
            "psnr_db": distortion.psnr_db(distortion.to_uint8(coded.x_hat), x).sum(),
            "bpp": coded.bits.sum() / (x.shape[2] * x.shape[3]),
        }

    return rates.over_anchors(nets.codec, x, measure) | {
        "count": torch.tensor(len(batch.position), device=x.device),
        "mean_colour_psnr_db": distortion.psnr_db(flat, x).sum(),
    }


def pictures(nets: CodecNets, batch: Batch, config: Config, names: Sequence[str]) -> dict[str, bytes]:
    grid = rates.anchors(nets.codec)
    shown = [grid[0], grid[len(grid) // 2], grid[-1]] if len(grid) > 1 else grid
    with nets.autocast(batch.x.device):
        x_hat = [nets.codec(batch.x, q=rates.quality_of(q, batch.x)).x_hat for q in shown]
    rows = [[panels.as_image(picture) for picture in row] for row in zip(batch.x, *x_hat, strict=True)]
    titles = ["original", *("reconstruction" if q is None else f"q = {q:g}" for q in shown)]
    return {"reconstruction": panels.png(panels.panel(rows, titles))}


STAGE = Stage(
    name="mse-codec",
    parents=(),
    publishes=("codec",),
    trains={"codec": ("codec.",)},
    averages=("codec.",),
    reads=("mse_codec", "codec", "crop", "seed", "precision"),
    settings=lambda config: config.mse_codec,
    build=build,
    step=step,
    validate=validate,
    summarise=means,
    pictures=pictures,
    headline="val/psnr_db",
)

if __name__ == "__main__":
    from jobs.commands.one_stage import main

    main("mse-codec")
