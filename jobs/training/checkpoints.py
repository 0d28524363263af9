"""A stage's folder in the storage: Ray Train's checkpoints, and small files for messages between driver and workers.

    checkpoint_<time>/                 resume.pt, meta.json, pictures; at the last step also the artifact
    stop-requested                     the driver asks the workers to write a checkpoint and end
    rollback-<n>.json                  a non-finite loss after which training returned to a checkpoint
    undelivered-metrics.json           metrics not yet sent to MLflow (jobs/training/reports.py)
    lease.json                         the lock of the folder (jobs/storage/lease.py)

All access uses pyarrow's filesystems, so the storage may be a disk, NFS or an object store.
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
    """The folder below `output` with the checkpoints of the stage's run `name`."""
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
    """Names of the checkpoints to resume from, best first: the committed one, then older ones.

    They are ordered by step, not by name, which has the time of one node's clock. Checkpoints newer than the committed
    one are ignored: they were not yet reported when training stopped, so their rows may be missing in MLflow.
    """
    steps = steps_of(place)
    limit = steps.get(committed) if committed else None
    others = [n for n, step in steps.items() if n != committed and step is not None and (limit is None or step < limit)]
    others.sort(key=lambda name: (steps[name], name), reverse=True)
    return [committed, *others] if committed else others


def remove_orphans(place: Folder, committed: str, known: Collection[str], kept: int) -> None:
    """Remove uncommitted checkpoints, which Ray Train does not know and would never delete.

    known: names of the committed checkpoints that Ray Train keeps.
    The `kept` newest ones up to the committed one stay, since training may have to resume from them.
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
    """The rollbacks so far, each as {"step": ..., "why": ...}."""
    notes = [place.read(name) for name in place.names() if name.startswith("rollback-")]
    return [json.loads(note) for note in notes if note is not None]


def note_rollback(place: Folder, number: int, step: int, why: str) -> None:
    """Record the `number`-th rollback (from 1), after a non-finite loss. Several workers may record the same one."""
    place.write(f"rollback-{number}.json", json.dumps({"step": step, "why": why}).encode())
