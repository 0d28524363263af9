"""Stage: g_s alone, first for distortion and LPIPS (warm-up), then against OASIS-C (EGIC section 4.2)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from egic.metrics import distortion
from egic.report import panels
from egic.training import losses, steps
from egic.training.steps import Batch, GanNets
from jobs.config.schema import Config
from jobs.training import rates
from jobs.training.stage import Components, Stage, means


def build(config: Config, components: Components) -> GanNets:
    return GanNets(codec=components["codec"], discriminator=components["discriminator"], lpips=components["lpips"])


def phases(config: Config) -> dict[str, int]:
    return {"warm-up": config.gan.warmup_steps, "adversarial": config.gan.steps - config.gan.warmup_steps}


def step(nets: GanNets, optimizers: Mapping, batch: Batch, config: Config, step: int) -> dict[str, Tensor]:
    c = config.gan
    if step < c.warmup_steps:
        return steps.warmup_step(nets, optimizers, batch, loss=c.loss, clip_norm=c.clip_norm, seed=config.seed)
    return steps.gan_step(nets, optimizers, batch, loss=c.loss, clip_norm=c.clip_norm, seed=config.seed)


def validate(nets: GanNets, batch: Batch, config: Config) -> dict[str, Tensor]:
    """Distortion, LPIPS, bpp, and the segmentation loss of D on the reconstruction (`seg`)."""
    x, n = distortion.to_uint8(batch.x), len(batch.position)

    def measure(q: Tensor | None) -> dict[str, Tensor]:
        with nets.autocast(x.device):
            coded = nets.codec(batch.x, q=q)
            logits = nets.discriminator(coded.x_hat, coded.y_hat)
            lpips = nets.lpips(coded.x_hat, batch.x)
        return {
            "psnr_db": distortion.psnr_db(distortion.to_uint8(coded.x_hat), x).sum(),
            "lpips": lpips * n,
            "bpp": coded.bits.sum() / (x.shape[2] * x.shape[3]),
            "seg": losses.seg(logits, batch.label, batch.weight) * n,
        }

    return rates.over_anchors(nets.codec, x, measure) | {"count": torch.tensor(n, device=x.device)}


def pictures(nets: GanNets, batch: Batch, config: Config, names: Sequence[str]) -> dict[str, bytes]:
    grid = rates.anchors(nets.codec)
    with nets.autocast(batch.x.device):
        coded = nets.codec(batch.x, q=rates.quality_of(grid[len(grid) // 2], batch.x))
        predicted = nets.discriminator(coded.x_hat, coded.y_hat).argmax(1)
    label = torch.stack((batch.label, predicted)).cpu().numpy()
    rows = [
        [panels.as_image(a), panels.as_image(b), panels.label_colours(c), panels.label_colours(d)]
        for a, b, c, d in zip(batch.x, coded.x_hat, *label, strict=True)
    ]
    titles = ["original", "reconstruction", "labels", "D on reconstruction"]
    return {"reconstruction": panels.png(panels.panel(rows, titles, key=panels.key_of(label, names)))}


STAGE = Stage(
    name="gan",
    parents=("mse-codec", "segmentation"),
    takes=("codec", "discriminator"),
    publishes=("codec", "discriminator"),
    trains={"g_s": ("codec.g_s.",), "discriminator": ("discriminator.",)},
    averages=("codec.g_s.",),
    reads=("gan", "codec", "discriminator", "crop", "seed", "precision", "lpips_net", "lpips_weights"),
    settings=lambda config: config.gan,
    build=build,
    phases=phases,
    step=step,
    validate=validate,
    summarise=means,
    pictures=pictures,
    headline="val/lpips",
    higher_is_better=False,
)

if __name__ == "__main__":
    from jobs.commands.one_stage import main

    main("gan")
