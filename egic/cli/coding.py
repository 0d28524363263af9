"""`egic compress` and `egic decompress`: the model, and what is done with one file."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egic import listing
from egic.cli import files, model_refs
from egic.cli.files import Task
from egic.coding import bitstream
from egic.coding.bitstream import MAX_QUALITY
from egic.errors import UserError, out_of_memory, reason, visible
from egic.file_size import bpp, parse_size

if TYPE_CHECKING:
    import numpy as np

    from egic.model import Model

SUFFIX = ".egic"


@dataclass(kw_only=True)
class Result:
    """What was done with one file, as lines to print."""

    notes: list[str] = field(default_factory=list)
    """Warnings about the file."""
    stats: str = ""
    """The line of --stats."""
    line: str = ""
    error: str = ""
    """Why there is no output; empty if there is one."""


def load(args: argparse.Namespace, num_threads: int | None = None) -> "Model":
    """Load the model of --model on the device of --device; num_threads in place of --threads. Raises UserError."""
    check_threads(args.threads)
    folder = model_refs.folder_of(args.model)
    import torch  # takes seconds, so after the checks above

    from egic.model import load

    if num_threads := num_threads or args.threads:
        torch.set_num_threads(num_threads)
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {args.device} cannot be used ({reason}); try --device cpu") from error
    return load(folder, device, args.precision)


def check_threads(num: int | None) -> None:
    """Raise UserError for a wrong value of --threads."""
    if num is not None and num < 1:
        raise UserError(f"--threads must be at least 1, got {num}")


def rate_of(quality: int | None, bpp: float | None, max_bytes: str | None) -> dict[str, Any]:
    """--quality, --bpp or --max-bytes, if given, as keyword argument of `Model.compress`. Raises UserError."""
    if quality is not None and not 0 <= quality <= MAX_QUALITY:
        raise UserError(f"--quality must lie in 0..{MAX_QUALITY} (0 the smallest file), got {quality}")
    if bpp is not None and not 0 < bpp < float("inf"):
        raise UserError(f"--bpp must be a positive number of bits per pixel, got {bpp}")
    given = {"quality": quality, "bpp": bpp, "max_bytes": None if max_bytes is None else parse_size(max_bytes)}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise UserError(f"{' and '.join(map(_option, given))} exclude each other; give one of them")
    return given


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_has_rates(model: "Model", rate: dict[str, Any]) -> None:
    """Raise UserError if a rate was asked of a model of one rate."""
    if rate and not model.has_quality:
        raise UserError(
            f"this model codes at one rate only, so {_option(next(iter(rate)))} has no meaning: leave it out"
        )


def check_alpha(alpha: float | None) -> None:
    """Raise UserError for a wrong value of --alpha, before the model is fetched."""
    if alpha is not None and not 0 <= alpha <= 1:
        raise UserError(f"--alpha must lie in [0, 1] (0 most faithful, 1 most realistic), got {alpha}")


def compress(args: argparse.Namespace) -> int:
    """`egic compress`; returns the exit status."""
    from egic import pictures

    rate_of(args.quality, args.bpp, args.max_bytes)
    if left := pictures.left_out(path.name for path in _below(args.inputs)):
        print(f"warning: left out, because their formats cannot be read: {left}", file=sys.stderr)
    tasks = files.plan(args.inputs, args.output, SUFFIX, pictures.READ_SUFFIXES)
    return _run(args, tasks, pictures.READ_SUFFIXES, _compressor)


def decompress(args: argparse.Namespace) -> int:
    """`egic decompress`; returns the exit status."""
    from egic import pictures

    _below(args.inputs)
    tasks = files.plan(args.inputs, args.output, ".png", (SUFFIX,))
    for task in tasks:
        pictures.check_suffix(task.target.suffix if task.target else ".png")
    check_alpha(args.alpha)
    return _run(args, tasks, (SUFFIX,), _decompressor)


def _below(inputs: Iterable[str]) -> list[Path]:
    """All files in folders among the inputs. Prints a warning about links and others that are left out."""
    found = [listing.below(Path(name)) for name in inputs if Path(name).is_dir()]
    if left := listing.shown([each for _, others in found for each in others]):
        print(f"warning: left out: {left}", file=sys.stderr)
    return [path for paths, _ in found for path in paths]


Work = Callable[[Task, Result], None]
"""Codes one file, and adds to the result what is to be printed. Raises UserError, OSError, MemoryError."""


def _run(args: argparse.Namespace, tasks: list[Task], takes: tuple[str, ...], opener: Callable[..., Work]) -> int:
    """Code all files: one after the other with all cores, or in processes that share the cores; the output is the
    same. `opener` loads the model and returns the work."""
    files.check_any_free(tasks, takes, args.force)
    check_threads(args.threads)
    num = num_processes(args, tasks)
    if num == 1:
        work = opener(args)
        return report(tasks, (attempt(work, task) for task in tasks), args.quiet)
    from joblib import cpu_count

    from egic.cli.processes import in_processes

    args.model = str(model_refs.folder_of(args.model))  # so that one process downloads it
    num_threads = max(1, (args.threads or cpu_count()) // num)
    results = in_processes(partial(_attempts, opener, args, num_threads), tasks, num, died=_died)
    return report(tasks, results, args.quiet)


def num_processes(args: argparse.Namespace, tasks: list[Task]) -> int:
    """Processes for these files: at most one per core or per thread of --threads, and per file; one on a GPU."""
    if len(tasks) == 1 or args.threads == 1 or args.device != "cpu" or any(task.source is None for task in tasks):
        return 1
    from joblib import cpu_count

    return min(len(tasks), args.threads or cpu_count())


def _attempts(opener: Callable[..., Work], args: argparse.Namespace, num_threads: int) -> Callable[[Task], Result]:
    """In a process of its own: load the model, and return the function for one file."""
    return partial(attempt, opener(args, num_threads))


def _died(status: int) -> Result:
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return Result(error=f"its process ended ({how}), perhaps for lack of memory; --threads 1 codes one file at a time")


def attempt(work: Work, task: Task) -> Result:
    """The result of `work`, with what a user can fix as its error. Any other exception is raised."""
    result = Result()
    try:
        work(task, result)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) or (isinstance(error, RuntimeError) and not out_of_memory(error)):
            raise
        result.error = reason(error)
    return result


def report(tasks: Sequence[Task], results: Iterable[Result], quiet: bool = False) -> int:
    """Print the results, in the order of the tasks, and return the exit status: 2 if one failed.

    Statistics are printed on stdout, or on stderr if stdout is the output. Everything else is printed on stderr.
    """
    failed = 0
    for number, (task, result) in enumerate(zip(tasks, results, strict=True), 1):
        place = f"[{number}/{len(tasks)}] " if len(tasks) > 1 else ""
        for note in result.notes:
            print(visible(f"warning: {task.name}: {note}"), file=sys.stderr)
        if result.stats:
            print(visible(f"{task.name}: {result.stats}"), file=sys.stdout if task.target else sys.stderr)
        if result.error:
            failed += 1
            print(visible(f"{place}error: {task.name}: {result.error}"), file=sys.stderr)
        elif result.line and not quiet and not (result.stats and sys.stdout.isatty()):  # there, --stats has a line
            print(visible(f"{place}{task.name} -> {result.line}"), file=sys.stderr)
    if failed and len(tasks) > 1:
        print(f"{failed} of {len(tasks)} failed", file=sys.stderr)
    return 2 if failed else 0


def _compressor(args: argparse.Namespace, num_threads: int | None = None) -> Work:
    from egic import pictures

    model, rate = load(args, num_threads), rate_of(args.quality, args.bpp, args.max_bytes)
    check_has_rates(model, rate)

    def work(task: Task, result: Result) -> None:
        files.check_free(task, args.force)
        content = files.read(task)
        if content.startswith(bitstream.MAGIC):
            raise UserError("an .egic file already; egic decompress makes a picture of it")
        image, notes = pictures.read(content)
        result.notes += notes
        start = time.perf_counter()
        data = model.compress(image, **rate)
        time_s = time.perf_counter() - start
        files.write(task, data)
        if args.stats:
            result.stats = _quality(model, image, data, time_s)
        quality = bitstream.unpack(data)[0].quality
        at = "" if quality is None else f" at quality {quality}"
        rate_bpp = bpp(len(data), *image.shape[:2])
        result.line = f"{task.made}: {len(data)} bytes, {rate_bpp:.4f} bpp{at}, {time_s:.2f} s"

    return work


def _decompressor(args: argparse.Namespace, num_threads: int | None = None) -> Work:
    from egic import pictures

    model = load(args, num_threads)
    if args.alpha is not None:
        model.check_alpha(args.alpha)

    def work(task: Task, result: Result) -> None:
        data = files.read(task)
        bitstream.unpack(data)
        files.check_free(task, args.force)
        start = time.perf_counter()
        image = model.decompress(data, args.alpha)
        time_s = time.perf_counter() - start
        files.write(task, pictures.write(image, task.target.suffix if task.target else ".png"))
        if args.stats:
            result.stats = f"{bpp(len(data), *image.shape[:2]):.4f} bpp, {time_s:.2f} s decompress"
        result.line = f"{task.made}: {image.shape[1]} x {image.shape[0]}, {time_s:.2f} s"

    return work


def _quality(model: "Model", image: "np.ndarray", data: bytes, compress_s: float) -> str:
    """Rate, PSNR, MS-SSIM (for sides of at least 161 pixels) and times of a picture, decoded at the default alpha."""
    from egic.metrics.quality import Quality

    start = time.perf_counter()
    decoded = model.decompress(data)
    decompress_s = time.perf_counter() - start
    found = Quality(("psnr_db", "ms_ssim"), {})(decoded, image)
    quality = f"{found['psnr_db']:.2f} dB PSNR"
    quality += "" if found["ms_ssim"] is None else f", {found['ms_ssim']:.4f} MS-SSIM"
    quality += " at alpha 1" if model.orp else ""
    times = f"{compress_s:.2f} s compress, {decompress_s:.2f} s decompress"
    return f"{bpp(len(data), *image.shape[:2]):.4f} bpp, {quality}, {times}"
