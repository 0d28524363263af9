"""All uses of Ray Train's private names, each with its reason; the others are in `ray_internals.py`."""

import logging

import ray.train
import ray.train.torch
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from jobs.storage.files import Folder

log = logging.getLogger(__name__)

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a run's committed checkpoints."""


class Trainer(ray.train.torch.TorchTrainer):
    """TorchTrainer without the actor that removes a dead controller's placement groups.

    That actor is one more process per stage, and needs the dashboard, which does not run in a Ray started by our
    commands; `release_reserved` does its work. https://github.com/ray-project/ray/pull/65447
    """

    def _create_default_callbacks(self) -> list:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def put_broken_list_aside(place: Folder) -> None:
    """Rename Ray Train's list of checkpoints when it is damaged, or names a checkpoint that does not exist.

    Ray Train refuses to start with such a list. The function that reads it is public (`Result.from_path`), the name of
    its file is not.
    https://github.com/ray-project/ray/pull/58216
    """
    if not place.exists(SNAPSHOT):
        return
    try:
        ray.train.Result.from_path(place.path, storage_filesystem=place.filesystem)
    except Exception as error:  # of any type: Ray's controller would fail with the same error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("%s/%s cannot be used (%s): using the checkpoint folders instead", place.path, SNAPSHOT, reason)
        place.filesystem.move(f"{place.path}/{SNAPSHOT}", f"{place.path}/{SNAPSHOT}.damaged")
