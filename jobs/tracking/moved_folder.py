"""Artifacts beside an sqlite store that was moved or copied together with them.

MLflow stores the absolute path of every artifact in its database, and has no function that changes one: after a move,
models can no longer be fetched, and a copy writes into the folder it was copied from. The paths are therefore replaced
in the database itself. PATHS is all that is used of its tables; a test holds it against the MLflow that is installed.
"""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Tables of MLflow's database and their columns that hold the place of artifacts."""
EXPERIMENTS = """
    SELECT artifact_location, max(experiment_tags.key IS NOT NULL) FROM experiments LEFT JOIN experiment_tags
    ON experiment_tags.experiment_id = experiments.experiment_id AND experiment_tags.key = ?
    GROUP BY artifact_location
"""
BESIDE = "egic.artifacts_beside_database"
"""Tag of an experiment that was created with its artifacts beside the sqlite file."""


def artifacts_beside(database: Path) -> Path:
    """Where artifacts of the store in `database` are kept."""
    return database.parent / "mlartifacts"


def local_folder(location: str) -> Path | None:
    """The folder that an artifact location of MLflow names, a path or a file URI; None for other storage."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if os.path.isabs(location) else None


def find_artifacts(database: Path) -> None:
    """Replace the old folder by the one beside `database`, for every experiment that was moved or copied with it.

    Those are the experiments with the tag BESIDE. One without it, created before the tag existed, must have a folder of
    the same name elsewhere, and files of its runs or models beside the database. Nothing is replaced while the old
    folder exists and the new one does not: the database was copied alone.
    """
    here = artifacts_beside(database)
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        known = {table for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not known >= {"experiment_tags", *dict(PATHS)}:  # MLflow is about to create or update them
            return
        for location, tagged in connection.execute(EXPERIMENTS, (BESIDE,)).fetchall():
            there = local_folder(location or "")
            if there is None or _same(there, here) or (there.exists() and not here.exists()):
                continue
            if tagged or (there.name == here.name and _holds(here, connection, location)):
                _replace(connection, location, here.as_uri())
                log.info("MLflow's artifacts are in %s now, no longer in %s", here, there)


def _same(there: Path, here: Path) -> bool:
    return there == here or (there.exists() and here.exists() and there.samefile(here))


def _holds(here: Path, connection: sqlite3.Connection, location: str) -> bool:
    """Whether the folder `here` has a file or folder that the database lists below `location`."""
    for table, column in (PATHS[1], PATHS[2]):
        rows = connection.execute(f"SELECT {column} FROM {table} WHERE {_is_below(column)}", (location,))
        if any((here / path[len(location) + 1 :]).exists() for (path,) in rows):
            return True
    return False


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in PATHS:
        connection.execute(
            f"UPDATE {table} SET {column} = ?2 || substr({column}, length(?1) + 1) "
            f"WHERE {column} = ?1 OR {_is_below(column)}",
            (old, new),
        )


def _is_below(column: str) -> str:
    return f"substr({column}, 1, length(?1) + 1) = ?1 || '/'"
