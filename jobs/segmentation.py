"""Stage: OASIS-C is trained to segment real photographs (EGIC section 4.1)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from egic.metrics import distortion
from egic.networks.discriminator import Discriminator
from egic.report import panels
from egic.training import losses, steps
from egic.training.steps import Batch, SegmentationNets
from jobs.config.schema import Config
from jobs.training.stage import Components, Stage


def build(config: Config, components: Components) -> SegmentationNets:
    fresh = components.get("discriminator") or Discriminator(config.discriminator, components.get("encoder"))
    return SegmentationNets(discriminator=fresh)


def step(nets: SegmentationNets, optimizers: Mapping, batch: Batch, config: Config, step: int) -> dict[str, Tensor]:
    return steps.segmentation_step(nets, optimizers, batch, clip_norm=config.segmentation.clip_norm)


def validate(nets: SegmentationNets, batch: Batch, config: Config) -> dict[str, Tensor]:
    with nets.autocast(batch.x.device):
        logits = nets.discriminator(batch.x).float()
    hit, union = distortion.overlap(logits.argmax(1), batch.label, nets.discriminator.config.num_classes)
    n = len(batch.position)
    seg = losses.seg(logits, batch.label, batch.weight) * n
    return {"count": torch.tensor(n, device=seg.device), "seg": seg, "hit": hit, "union": union}


def summarise(sums: dict[str, Tensor]) -> dict[str, float]:
    """Segmentation loss, mIoU over the classes that occur, and share of labelled pixels that are correct."""
    labelled = sums["union"].sum() + sums["hit"].sum()  # each labelled pixel counts as a row and as a column
    return {
        "seg": (sums["seg"] / sums["count"]).item(),
        "miou": distortion.mean_iou(sums["hit"], sums["union"]),
        "pixel_accuracy": (2 * sums["hit"].sum() / labelled.clamp_min(1)).item(),
    }


def pictures(nets: SegmentationNets, batch: Batch, config: Config, names: Sequence[str]) -> dict[str, bytes]:
    with nets.autocast(batch.x.device):
        predicted = nets.discriminator(batch.x).argmax(1)
    label = torch.stack((batch.label, predicted)).cpu().numpy()
    rows = [
        [panels.as_image(x), panels.label_colours(wanted), panels.label_colours(found)]
        for x, wanted, found in zip(batch.x, *label, strict=True)
    ]
    titles = ["original", "labels", "D's prediction"]
    return {"segmentation": panels.png(panels.panel(rows, titles, key=panels.key_of(label, names)))}


STAGE = Stage(
    name="segmentation",
    parents=(),
    publishes=("discriminator",),
    trains={"discriminator": ("discriminator.down.", "discriminator.up.", "discriminator.out.")},
    averages=("discriminator.down.", "discriminator.up.", "discriminator.out."),
    reads=("segmentation", "discriminator", "crop", "seed", "precision"),
    settings=lambda config: config.segmentation,
    build=build,
    step=step,
    validate=validate,
    summarise=summarise,
    pictures=pictures,
    shown_loss="seg",
    headline="val/miou",
)

if __name__ == "__main__":
    from jobs.commands.one_stage import main

    main("segmentation")
