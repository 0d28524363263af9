"""The output file of each input file, and outputs that are written completely or not at all."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from egic import listing
from egic.errors import UserError

STD = "-"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One input and its output; None means stdin or stdout."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        return str(self.source) if self.source else "stdin"

    @property
    def made(self) -> str:
        return str(self.target) if self.target else "stdout"


def plan(inputs: list[str], out: str | None, suffix: str, takes: tuple[str, ...]) -> list[Task]:
    """Pair each input with its output.

    inputs: files, "-" for stdin, or folders, which mean all files below them with a suffix in `takes`.
    out: the output file for one input; a folder for several inputs, or if it exists as a folder or ends with a slash;
    None for files beside the inputs. `suffix` replaces the input's own suffix, or follows it where two inputs differ
    only in their suffixes: a.jpg and a.png become a.jpg.egic and a.png.egic.
    Raises UserError for inputs without any such file, and for two outputs of one name.
    """
    if inputs.count(STD) > 1:
        raise UserError("stdin (-) can be read only once")
    sources = list(_sources(inputs, takes))
    if not sources:
        raise UserError(f"no {', '.join(takes)} files in {', '.join(inputs)}")
    many = len(sources) > 1 or Path(inputs[0]).is_dir()
    as_folder = out is not None and out != STD and (many or out.endswith(os.sep) or Path(out).is_dir())
    if many and out == STD:
        raise UserError("only one file can be written to stdout; name a folder with -o")
    if out is not None and not as_folder:
        target = None if out == STD else Path(out)
        tasks = [Task(source=source, target=target) for source, _ in sources]
    else:
        places = [source if out is None else Path(out) / (below or "stdin") for source, below in sources]
        tasks = [Task(source=s, target=t) for (s, _), t in zip(sources, targets(places, suffix), strict=True)]
    _check_distinct(tasks)
    return tasks


def _sources(inputs: Iterable[str], takes: tuple[str, ...]) -> Iterator[tuple[Path | None, Path | None]]:
    """(path, path relative to the given folder) of every input file; (None, None) for stdin."""
    for name in inputs:
        path = Path(name)
        if name == STD:
            yield None, None
        elif path.is_dir():
            for found in listing.below(path)[0]:
                if found.suffix.lower() in takes:
                    yield found, found.relative_to(path)
        else:
            yield path, Path(path.name)


def targets(places: Sequence[Path | None], suffix: str) -> list[Path | None]:
    """The path of each output: the input's path with `suffix`; None for stdin.

    `suffix` follows the input's own suffix where two outputs would otherwise have the same path.
    """
    whole: set[int] = set()
    while True:
        made = [
            place and (place.with_name(place.name + suffix) if i in whole else place.with_suffix(suffix))
            for i, place in enumerate(places)
        ]
        counts = Counter(made)
        same = {i for i, target in enumerate(made) if target and counts[target] > 1} - whole
        if not same:
            return made
        whole |= same


def _check_distinct(tasks: list[Task]) -> None:
    seen: dict[Path, Task] = {}
    for task in tasks:
        if task.target is None:
            continue
        other = seen.setdefault(task.target, task)
        if other is not task:
            raise UserError(f"{other.name} and {task.name} would both become {task.target}; code them separately")
        if task.source and task.target == task.source:
            raise UserError(
                f"{task.name} ends as the output would; decompress makes a picture of an .egic file, compress the "
                "reverse, and -o names another output"
            )


def read(task: Task) -> bytes:
    """The input's bytes. Raises UserError for stdin if it is closed."""
    if task.source is None and sys.stdin is None:
        raise UserError("stdin is closed; name a file")
    return sys.stdin.buffer.read() if task.source is None else task.source.read_bytes()


def check_free(task: Task, force: bool) -> None:
    """Raise UserError if the output exists already, unless `force`, or if it is stdout and that is closed."""
    if task.target is None and sys.__stdout__ is None:
        raise UserError("stdout is closed; name a file with -o")
    if task.target and task.target.is_dir():
        raise UserError(f"{task.target} is a folder")
    if task.target and task.target.is_file() and not force:
        raise UserError(f"{task.target} exists; --force overwrites it")


def check_any_free(tasks: Sequence[Task], takes: tuple[str, ...], force: bool) -> None:
    """Raise UserError if none of the outputs may be written: a check before the model is loaded.

    takes: suffixes of the inputs. If an input has another one, nothing is checked: reading it gives the better error.
    """
    problems = []
    for task in tasks:
        if task.source is not None and task.source.suffix.lower() not in takes:
            return
        try:
            check_free(task, force)
        except UserError as problem:
            problems.append(problem)
    if problems and len(problems) == len(tasks):
        raise problems[0]


def check_free_folder(folder: Path, force: bool) -> Path:
    """The folder's absolute path. Raises UserError if it exists, unless it is a model and `force` is set."""
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not folder.is_dir() or not (folder / "config.json").is_file():
            raise UserError(f"{folder} exists and is not an EGIC model; name a new folder with -o")
        if not force:
            raise UserError(f"{folder} exists; --force overwrites it")
    return folder


def write(task: Task, data: bytes) -> None:
    """Write aside, then rename: the output is complete or absent, and an existing file stays until the rename."""
    if task.target is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if task.target.exists() and not task.target.is_file():  # a device or pipe
        task.target.write_bytes(data)
        return
    task.target.parent.mkdir(parents=True, exist_ok=True)
    aside = task.target.with_name(f".{task.target.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, task.target)
    finally:
        aside.unlink(missing_ok=True)
