"""All uses of Ray's private names but those of Ray Train, each with its reason.

`tests/unit/jobs/cluster/test_ray_internals.py` fails with an explanation when Ray changes one of them; `pyproject.toml`
bounds the release. `ray_train_internals.py` has those of Ray Train, which needs packages that archives do not.
"""

import os
import time
from typing import TYPE_CHECKING

import ray
from ray._private import state
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group

if TYPE_CHECKING:
    from ray.data import DataContext


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


def pace_dataset(context: "DataContext", blocks_per_task: int) -> None:
    """Add a pause to a dataset's scheduling loop, and let its tasks end before their blocks are read.

    When the training is slower than the data, the loop polls without a pause and keeps a core busy. The pause is a
    callback, whose base class is private. https://github.com/ray-project/ray/issues/63544
    A task with two unread blocks waits, and keeps its CPU reserved; the private field raises that number of blocks.
    https://github.com/ray-project/ray/issues/42217
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback  # ray.data takes a second to import

    class Pause(ExecutionCallback):
        def on_execution_step(self, executor) -> None:
            time.sleep(0.01)

    context.custom_execution_callback_classes = [Pause]
    context._max_num_blocks_in_streaming_gen_buffer = blocks_per_task
