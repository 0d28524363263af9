"""A stage's folder in the storage: Ray Train's checkpoints, and notes that driver and workers leave each other there.

    checkpoint_<time>/                 resume.pt, meta.json, pictures; at the last step the artifact, too
    stop-requested                     the driver asks the workers to write a checkpoint and end
    rollback-<n>.json                  a non-finite loss that training went back from
    undelivered-metrics.json           curves that MLflow was not there to take (jobs/training/reports.py)
    lease.json                         whose turn it is (jobs/storage/lease.py)

Everything goes through pyarrow's filesystems: the storage may be a disk, NFS or an object store.
"""

import json
import logging
from collections.abc import Collection

import pyarrow.fs

from jobs.storage.files import Folder, absolute, join

log = logging.getLogger(__name__)

PREFIX = "checkpoint_"
STOP = "stop-requested"


def place_of(output: str, name: str) -> Folder:
    """Where the stage's run called `name` keeps its checkpoints below `output`."""
    return Folder(absolute(join(output, "checkpoints", name)))


def step_of(place: Folder, checkpoint: str) -> int | None:
    """Step of a checkpoint; None when its meta.json is missing or damaged."""
    try:
        return int(json.loads(place.read(f"{checkpoint}/meta.json") or b"")["step"])
    except (ValueError, KeyError, TypeError):
        return None


def steps_of(place: Folder) -> dict[str, int | None]:
    """The checkpoints in the folder, and their steps."""
    names = [name for name in place.names(pyarrow.fs.FileType.Directory) if name.startswith(PREFIX)]
    return {name: step_of(place, name) for name in names}


def candidates(place: Folder, committed: str | None) -> list[str]:
    """Names of the checkpoints to go on from, best first: the committed one, then those before it.

    By their steps, not by their names, which hold the time of one node's clock. Those that are newer than the committed
    one were not yet reported when training stopped, and do not count: their rows may be missing in MLflow.
    """
    steps = steps_of(place)
    limit = steps.get(committed) if committed else None
    others = [n for n, step in steps.items() if n != committed and step is not None and (limit is None or step < limit)]
    others.sort(key=lambda name: (steps[name], name), reverse=True)
    return [committed, *others] if committed else others


def remove_orphans(place: Folder, committed: str, known: Collection[str], kept: int) -> None:
    """Remove checkpoints that Ray Train does not know and would keep for ever, since they were not committed in time.

    known: names of the committed checkpoints that Ray Train keeps.
    Up to the committed one, the `kept` newest stay: training may have gone on from one, and may have to again.
    """
    steps = steps_of(place)
    if (limit := steps.get(committed)) is None or committed not in known:
        return
    older = sorted((step, name) for name, step in steps.items() if step is not None and step <= limit)
    newest = [name for _, name in older[-kept:]]
    for name in steps:
        if name not in known and name not in newest:
            log.info("removing %s: it was not committed", name)
            place.filesystem.delete_dir(f"{place.path}/{name}")


def ask_to_stop(place: Folder) -> None:
    """Ask the stage's workers to write a checkpoint and end."""
    place.write(STOP, b"")


def rollbacks(place: Folder) -> list[dict]:
    """What training went back from so far: {"step": ..., "why": ...} each."""
    notes = [place.read(name) for name in place.names() if name.startswith("rollback-")]
    return [json.loads(note) for note in notes if note is not None]


def note_rollback(place: Folder, number: int, step: int, why: str) -> None:
    """Note the `number`-th (from 1) non-finite loss. Several workers may say the same."""
    place.write(f"rollback-{number}.json", json.dumps({"step": step, "why": why}).encode())
