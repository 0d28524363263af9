"""A run of an archive: list the pictures, code those that are missing on all workers of Ray, and write the index."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from egic import artifact, pictures
from egic.cli.model_refs import folder_of
from egic.errors import UserError
from jobs.archive import index
from jobs.archive.attempts import Attempts
from jobs.archive.coder import Coder, Command, Work
from jobs.archive.index import Index, Totals
from jobs.archive.listing import Picture, chunks, identity, listed, unpacked
from jobs.cluster.resources import check_shared
from jobs.cluster.shutdown import interruptible
from jobs.cluster.start import start_ray
from jobs.storage import lease
from jobs.storage.files import Folder, absolute, check, check_spelling, is_remote, join, list_folder, read, write

log = logging.getLogger(__name__)

SETTINGS = "archive.json"
"""File with the options of the first run: further runs must have the same."""
SUFFIXES = {"compress": (pictures.READ_SUFFIXES, ".egic"), "decompress": ((".egic",), ".png")}
"""Suffixes of the inputs, and of the outputs."""
PROGRESS_S = 5.0
PER_GPU = 4
"""Actors that share a GPU: while some decode PNGs and code symbols on their cores, another one uses the GPU."""
TASKS_PER_WORKER, CHUNKS_PER_TASK = 32, 8
"""A task has one chunk while a run has at most this many tasks per worker, then more, up to this many: a task costs
some milliseconds, and about 10 kB of the driver's memory."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """What is coded, and where."""

    inputs: tuple[str, ...]
    """Folders and files: local paths, s3:// or gs://."""
    work: Work
    model: str | None
    """Reference of the model, as `egic --model` takes it."""
    workers: int
    """Number of actors; 0: one per core, at most PER_GPU per GPU on a cluster with GPUs."""

    def missing(self, done: Index, ignored: Counter[str] | None = None) -> Iterator[Picture]:
        """The pictures that are not in the index. Suffixes of other files are counted in `ignored`."""
        takes, suffix = SUFFIXES[self.work.command]
        ignored = Counter() if ignored is None else ignored
        for picture in listed(self.inputs, takes, suffix, ignored, without=self.work.output):
            if identity(picture) in done.sources:
                continue
            if pictures.printable(picture.target) in done.files:  # of a picture that was removed, or has the same stem
                picture = picture._replace(target=picture.source + suffix)
            yield picture


@dataclass(kw_only=True)
class Progress:
    """Counts of a run, and a line about them every few seconds."""

    num: int
    """Pictures to code."""
    totals: Totals = field(default_factory=Totals)
    began: float = field(default_factory=time.monotonic)
    logged: float = field(default_factory=time.monotonic)
    first: tuple[float, int] | None = None
    """Time of the first rows, and their number: workers take seconds to start, which the rate leaves out."""

    @property
    def done(self) -> int:
        return self.totals.pictures + self.totals.failed

    def add(self, rows: pa.Table) -> None:
        self.totals.add(rows)
        for row in rows.select(["source", "error"]).to_pylist():
            if row["error"]:
                log.warning("%s: %s", row["source"], row["error"])
        now = time.monotonic()
        self.first = self.first or (now, self.done)
        if now - self.logged > PROGRESS_S and self.done > self.first[1]:
            self.logged = now
            per_s = (self.done - self.first[1]) / (now - self.first[0])
            left_s = int((self.num - self.done) / per_s)
            log.info(
                "%d of %d pictures, %.2f pictures/s, %d:%02d:%02d left",
                self.done, self.num, per_s, left_s // 3600, left_s // 60 % 60, left_s % 60,
            )  # fmt: skip


def run(archive: Archive) -> int:
    """Code every picture that is not in the index, and print a summary; returns 2 if pictures failed, else 0.

    Raises UserError for inputs, outputs, models and options that cannot be used.
    """
    output = archive.work.output
    for name, place in [("IN", place) for place in archive.inputs] + [("OUT", output)]:
        check_spelling(name, place)
        if is_remote(place) or name == "OUT":
            check(place, writable=name == "OUT")
    folder = folder_of(archive.model)
    check_options(archive.work, folder)
    with (
        interruptible(after="the same command codes the pictures that are missing"),
        lease.held(Folder(output), "the archive"),
    ):
        check_output(archive.work, folder)
        progress = code_missing(archive, folder)
        totals = index.read(index.place_of(output)).totals
    print(summary(totals, progress))
    if totals.failed:
        print(f"{totals.failed} failed; their rows in {index.place_of(output).place} have the errors")
    return 2 if totals.failed else 0


def check_options(work: Work, folder: Path) -> None:
    """Raise UserError if the model cannot be loaded, or has no use for an option."""
    from egic.cli.coding import check_has_rates
    from egic.model import load

    model = load(folder)
    if work.command == "compress":
        check_has_rates(model, work.options)
    elif work.options:
        model.check_alpha(work.options["alpha"])


def settings(work: Work, folder: Path) -> dict[str, Any]:
    """Content of SETTINGS. folder: of the model."""
    return {"command": work.command, "model": artifact.digest(folder), **work.options}


def check_output(work: Work, folder: Path) -> None:
    """Raise UserError unless the output is a new or empty folder, or an archive with the same options."""
    now = settings(work, folder)
    try:
        before = json.loads(read(join(work.output, SETTINGS)))
    except FileNotFoundError:
        names, folders = list_folder(work.output)
        if folders or any(name != lease.NAME and not name.startswith(".") for name in names):
            raise UserError(f"{work.output} has files, and is no archive; name a new or empty folder as OUT") from None
        return
    if before != now:
        other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        raise UserError(
            f"{work.output} is an archive with another {' and '.join(other)}; repeat the options of its first run, or "
            "name another OUT"
        )


def code_missing(archive: Archive, folder: Path) -> Progress:
    """Code what is missing, and write its rows."""
    place, ignored = index.place_of(archive.work.output), Counter[str]()
    index.forget_failed(place)
    done = index.read(place)
    plan = list(chunks(archive.missing(done, ignored)))
    if left := pictures.left_out(f"_{suffix}" for suffix in ignored.elements()):
        log.warning("left out, because their formats cannot be read: %s", left)
    progress = Progress(num=sum(len(unpacked(chunk)) for chunk in plan))
    log.info("%d pictures, %d of them to code", done.totals.pictures + progress.num, progress.num)
    if plan:
        write(join(archive.work.output, SETTINGS), json.dumps(settings(archive.work, folder)).encode())
        start_ray()
        check_shared(archive.work.output, *archive.inputs)
        progress.began = time.monotonic()
        with index.Writer(place) as writer:
            for rows in coded(archive, folder, plan):
                writer.add(rows)
                progress.add(rows)
    elif not done.totals.pictures:
        raise UserError(f"no {', '.join(SUFFIXES[archive.work.command][0])} files in {', '.join(archive.inputs)}")
    return progress


def coded(archive: Archive, folder: Path, plan: list[bytes]) -> Iterator[pa.Table]:
    """Rows of the pictures in a list of chunks, as they are finished."""
    model = ray.put({p.name: p.read_bytes() for p in folder.iterdir() if p.stem in ("codec", "orp", "config")})
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    resources = ray.cluster_resources()
    workers, num_gpus = shares(archive.workers, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
    workers = min(len(plan), workers)
    num_tasks = min(len(plan), max(TASKS_PER_WORKER * workers, len(plan) // CHUNKS_PER_TASK))
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items([{"chunk": chunk} for chunk in plan], override_num_blocks=num_tasks).map_batches(
        Coder, fn_constructor_args=(model, attempts, archive.work, num_gpus is not None), batch_size=1,
        batch_format="pyarrow", num_cpus=1, num_gpus=num_gpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
    )  # fmt: skip
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def shares(workers: int, cpus: int, gpus: int) -> tuple[int, float | None]:
    """Number of actors, and the part of a GPU that each reserves, or None without GPUs. workers: 0 for all."""
    workers = workers or max(1, min(cpus, PER_GPU * gpus) if gpus else cpus)
    return workers, 1 / -(-workers // gpus) if gpus else None


def summary(totals: Totals, progress: Progress) -> str:
    """The last line of a run: the whole archive, and the speed of this run."""
    time_s = time.monotonic() - progress.began
    return (
        f"{totals.pictures} pictures, {totals.size / 1e6:,.2f} MB -> {totals.bytes / 1e6:,.2f} MB; this run: "
        f"{progress.done} in {time_s:.1f} s, {progress.done / max(time_s, 1e-9):.2f} pictures/s"
    )


def archive_of(command: Command, places: tuple[str, ...], options: dict, model: str | None, workers: int) -> Archive:
    """The archive of a command line: places are the inputs, then the output. Raises UserError."""
    if len(places) < 2:
        raise UserError(f"give at least one IN and OUT: python -m jobs.{command} IN [IN ...] OUT")
    if workers < 0:
        raise UserError(f"--workers must be at least 1, or 0 for all, got {workers}")
    *inputs, output = map(absolute, places)
    return Archive(
        inputs=tuple(inputs), work=Work(command=command, options=options, output=output), model=model, workers=workers
    )
