"""All uses of Ray's private names, each with its reason. `tests/unit/jobs/cluster/test_ray_internals.py` fails with an
explanation when Ray changes one of them; `pyproject.toml` bounds the release."""

import logging
import os
from threading import Event
from typing import TYPE_CHECKING, Any

import ray
from ray._private import state
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group

from jobs.storage.files import Folder

if TYPE_CHECKING:
    from ray.data import DataContext
    from ray.train.torch import TorchTrainer

log = logging.getLogger(__name__)

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a run's committed checkpoints."""

SHORTEST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 1.0


class BlockTaken(Event):
    """Set by the reader of a dataset after each block. Ray pickles contexts for tasks; a copy there is a new event."""

    def __reduce__(self):
        return BlockTaken, ()


def use_token() -> None:
    """Make this process and its children authenticate with the user's token.

    Ray reads RAY_AUTH_MODE only once, at import, and `ray.init` with an explicit address uses a token only if that
    variable is `token`. https://github.com/ray-project/ray/pull/64755
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    Config.initialize("")


def release_reserved(actor_id: str) -> None:
    """Remove the placement groups that a dead actor created. Ray does so only when the whole job ends.

    The public table of placement groups does not name their creators. Without this, the workers of the next controller
    wait for resources that stay reserved but unused. https://github.com/ray-project/ray/issues/65881
    """
    for content in state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(content)
        if group.creator_actor_id.hex() == actor_id and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def trainer(*args: Any, **settings: Any) -> "TorchTrainer":
    """A TorchTrainer without the actor that removes a dead controller's placement groups.

    That actor is one more process per stage, and needs the dashboard, which does not run in a Ray started by our
    commands; `release_reserved` does its work. https://github.com/ray-project/ray/pull/65447
    """
    from ray.train.torch import TorchTrainer  # Ray Train needs packages that archives do not
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    return Trainer(*args, **settings)


def put_broken_list_aside(place: Folder) -> None:
    """Rename Ray Train's list of checkpoints when it is damaged, or names a checkpoint that does not exist.

    Ray Train refuses to start with such a list. The function that reads it is public (`Result.from_path`), the name of
    its file is not.
    https://github.com/ray-project/ray/pull/58216
    """
    from ray.train import Result  # see `trainer`

    if not place.exists(SNAPSHOT):
        return
    try:
        Result.from_path(place.path, storage_filesystem=place.filesystem)
    except Exception as error:  # of any type: Ray's controller would fail with the same error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("%s/%s cannot be used (%s): using the checkpoint folders instead", place.path, SNAPSHOT, reason)
        place.filesystem.move(f"{place.path}/{SNAPSHOT}", f"{place.path}/{SNAPSHOT}.damaged")


def pace_dataset(context: "DataContext", blocks_per_task: int, block_taken: BlockTaken) -> None:
    """Add a pause to a dataset's scheduling loop, and let its tasks end before their blocks are read.

    When the training is slower than the data, the loop polls without a pause and keeps a core busy, and the training's
    own thread waits for the interpreter lock. The pause is 10 ms after `block_taken` was set, which the reader does for
    each block, and grows to a fifth of the time since then. It is a callback, whose base class is private.
    https://github.com/ray-project/ray/issues/63544
    A task with two unread blocks waits, and keeps its CPU reserved; the private field raises that number of blocks.
    https://github.com/ray-project/ray/issues/42217
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback  # ray.data takes a second to import

    class Pause(ExecutionCallback):
        pause_s = SHORTEST_PAUSE_S

        def on_execution_step(self, executor) -> None:
            if block_taken.wait(self.pause_s):
                block_taken.clear()
                self.pause_s = SHORTEST_PAUSE_S
            else:
                self.pause_s = min(1.25 * self.pause_s, LONGEST_PAUSE_S)

    context.custom_execution_callback_classes = [Pause]
    context._max_num_blocks_in_streaming_gen_buffer = blocks_per_task
