"""The number of label categories, which comes from the data; checks that stages that learn labels have some."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from egic import artifact
from egic.errors import UserError
from egic.networks.codec import CodecConfig
from egic.networks.discriminator import DiscriminatorConfig
from jobs.config.schema import Config
from jobs.data.datasets import open_data
from jobs.data.shards import Manifest
from jobs.data.sources import class_table
from jobs.data.sources.coco_classes import CATEGORIES
from jobs.data.sources.folders import INSTANCES, LABEL_MAPS, PHOTOGRAPHS, folders_of, kind_of, read_splits
from jobs.storage import files
from jobs.training.encoder import with_encoder
from jobs.training.stage import MODULES, load_stage

C = TypeVar("C", bound=Config)


def open_fitted(config: C, stages: Sequence[str]) -> tuple[C, dict[str, Manifest]]:
    """The configuration `fitted` to the data, with the encoder's digest if a stage trains a discriminator; and the
    manifests of train and val, which are prepared if missing."""
    check_data(config, stages)
    manifests = open_data(config.data, config.output)
    config = fitted(config, manifests, stages)
    return with_encoder(config) if learning_labels(stages) else config, manifests


def check_data(config: Config, stages: Sequence[str]) -> dict[Path, str]:
    """The kind of each data folder, without reading pictures. Raises UserError for a folder that cannot be used."""
    found = kinds(config.data)
    if set(found.values()) == {PHOTOGRAPHS} and (learners := learning_labels(stages)):
        raise UserError(no_labels(config.data, learners))
    return found


def fitted(config: C, manifests: Mapping[str, Manifest], stages: Sequence[str]) -> C:
    """The configuration with the data's number of categories, if one of the stages learns labels.

    Raises UserError when the data has no labels for such a stage, or when the configuration has another number.
    """
    learners = learning_labels(stages)
    if not learners:
        return config
    for manifest in manifests.values():
        if not any(manifest.class_pixels[1:]):
            raise UserError(no_labels(manifest.folder, learners))
    found, given = manifests["train"].num_classes, config.discriminator.num_categories
    if given not in (0, found):
        raise UserError(
            f"{manifests['train'].folder} has {found} categories, discriminator.num_categories is {given}; give {found}"
            ", or 0 for the data's number"
        )
    return with_categories(config, found)


def expected(config: C, manifests: Mapping[str, Manifest], stages: Sequence[str]) -> C:
    """Like `fitted`, but before the data is prepared (no manifests) the number is that of the class table or the
    annotations, else COCO's."""
    if manifests:
        return fitted(config, manifests, stages)
    number = len(CATEGORIES)
    for folder, kind in check_data(config, stages).items():
        if kind == LABEL_MAPS:
            number = len(class_table.read_table(folder / class_table.NAME).categories)
        elif kind == INSTANCES:
            number = len(read_splits([folder], ("train",))[0].categories)
    return config if config.discriminator.num_categories else with_categories(config, number)


def kinds(data: str) -> dict[Path, str]:
    """The kind of each local folder that `--data` names; empty for drawn scenes and for remote data."""
    return {} if not data or files.is_remote(data) else {folder: kind_of(folder) for folder in folders_of(data)}


def with_categories(config: C, number: int) -> C:
    return replace(config, discriminator=replace(config.discriminator, num_categories=number))


def learning_labels(stages: Sequence[str]) -> list[str]:
    """The stages that learn from labels: those that train a discriminator."""
    return [name for name in stages if name in MODULES and "discriminator" in load_stage(name).publishes]


def no_labels(place: str, learners: Sequence[str]) -> str:
    """The message for data without labels."""
    return (
        f"{' and '.join(learners)} learn{'s' if len(learners) == 1 else ''} from labels, and {place} has none; give a "
        "COCO tree (panoptic, instances or stuff), or label maps with a class table (classes.yaml). mse-codec and orp "
        "need no labels"
    )


def check_parent(config: Config, stage: str, ref: str, folder: Path) -> None:
    """Raise UserError when a stage would start from a codec that is not the configuration's, or one that learns labels
    from a discriminator with other categories or another encoder."""
    parts = artifact.read_config(folder)
    codec, found = parts.get("codec"), parts.get("discriminator")
    networks = {*load_stage(stage).takes, *load_stage(stage).publishes}
    if "codec" in networks and isinstance(codec, CodecConfig) and codec != config.codec:
        pairs = ((f.name, getattr(codec, f.name), getattr(config.codec, f.name)) for f in fields(CodecConfig))
        name, theirs, ours = next(pair for pair in pairs if pair[1] != pair[2])
        raise UserError(
            f"the codec of {ref} has codec.{name} {theirs}, this configuration {ours}; use the preset and options that "
            "it was trained with"
        )
    wanted = config.discriminator.num_categories
    if learning_labels((stage,)) and isinstance(found, DiscriminatorConfig) and found.num_categories != wanted:
        raise UserError(
            f"the discriminator of {ref} has {found.num_categories} categories, the data has {wanted}; start from "
            "one that was trained on this data (segmentation)"
        )
    if learning_labels((stage,)) and isinstance(found, DiscriminatorConfig):
        wanted_encoder = config.discriminator.encoder, config.discriminator.encoder_sha256
        if (found.encoder, found.encoder_sha256) != wanted_encoder:
            names = [
                f"{name} {digest[:16]}".strip() or "none"
                for name, digest in ((found.encoder, found.encoder_sha256), wanted_encoder)
            ]
            raise UserError(
                f"the discriminator of {ref} has the encoder {names[0]}, this configuration {names[1]}; give "
                f"--discriminator.encoder '{found.encoder}' with the same weights, or start from another one"
            )
