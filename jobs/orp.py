"""Stage: the residual head alone, so that one file decodes at any alpha (EGIC section 3.3)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from egic.metrics import distortion
from egic.networks.orp import ResidualHead, blend
from egic.report import panels
from egic.training import steps
from egic.training.steps import Batch, OrpNets
from jobs.config.schema import Config
from jobs.training import rates
from jobs.training.stage import Components, Stage, means

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def build(config: Config, components: Components) -> OrpNets:
    codec = components["codec"]
    head = components.get("orp")
    if head is None:
        head = ResidualHead(codec.config)
        head.start_from(codec.g_s)
    return OrpNets(codec=codec, orp=head)


def step(nets: OrpNets, optimizers: Mapping, batch: Batch, config: Config, step: int) -> dict[str, Tensor]:
    return steps.orp_step(nets, optimizers, batch, clip_norm=config.orp.clip_norm, seed=config.seed)


def both(nets: OrpNets, x: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor]:
    """x_gan and x_mse of pictures (B, 3, H, W) at quality q, from one pass over all but the last stage."""
    with nets.autocast(x.device):
        h = nets.codec.g_s.last_features(nets.codec.encode(x, q))
        return nets.codec.g_s.last_stage(h).float() * 255, nets.orp(h)


def validate(nets: OrpNets, batch: Batch, config: Config) -> dict[str, Tensor]:
    """PSNR at alpha 0 and 1."""
    x = distortion.to_uint8(batch.x)

    def measure(q: Tensor | None) -> dict[str, Tensor]:
        x_gan, x_mse = both(nets, batch.x, q)
        return {
            "psnr_db": distortion.psnr_db(distortion.to_uint8(x_mse), x).sum(),
            "psnr_db_alpha1": distortion.psnr_db(distortion.to_uint8(x_gan), x).sum(),
        }

    count = torch.tensor(len(batch.position), device=x.device)
    return rates.over_anchors(nets.codec, x, measure) | {"count": count}


def pictures(nets: OrpNets, batch: Batch, config: Config, names: Sequence[str]) -> dict[str, bytes]:
    grid = rates.anchors(nets.codec)
    x_gan, x_mse = both(nets, batch.x, rates.quality_of(grid[len(grid) // 2], batch.x))
    rows = [
        [panels.as_image(x), *(panels.as_image(blend(g, m, alpha)) for alpha in ALPHAS)]
        for x, g, m in zip(batch.x, x_gan, x_mse, strict=True)
    ]
    return {"alpha": panels.png(panels.panel(rows, ["original", *(f"alpha {a:g}" for a in ALPHAS)]))}


STAGE = Stage(
    name="orp",
    parents=("gan",),
    takes=("codec",),
    publishes=("codec", "orp"),
    trains={"orp": ("orp.",)},
    averages=("orp.",),
    reads=("orp", "codec", "crop", "seed", "precision"),
    settings=lambda config: config.orp,
    build=build,
    step=step,
    validate=validate,
    summarise=means,
    pictures=pictures,
    shown_loss="mse255",
    headline="val/psnr_db",
)

if __name__ == "__main__":
    from jobs.commands.one_stage import main

    main("orp")
