"""Which outputs belong to which inputs, and outputs that appear whole or not at all."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from egic.errors import UserError

STD = "-"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One input and its output; None stands for stdin and stdout."""

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

    A folder stands for the files below it that end with one of `takes`. Outputs lie beside their inputs with `suffix`
    in place of the input's own, or after it where two inputs differ in their suffixes alone: a.jpg and a.png become
    a.jpg.egic and a.png.egic. `out` names the file for one input, and a folder for several (or when it is one, or ends
    with a slash). Raises UserError for inputs that are missing and for two outputs of one name.
    """
    if inputs.count(STD) > 1:
        raise UserError("stdin (-) can be read only once")
    sources = list(_sources(inputs, takes))
    if not sources:
        raise UserError(f"no {', '.join(takes)} files in {', '.join(inputs)}")
    many = len(sources) > 1 or Path(inputs[0]).is_dir()
    as_folder = out is not None and out != STD and (many or out.endswith(os.sep) or Path(out).is_dir())
    if many and out == STD:
        raise UserError("several pictures do not fit on stdout; name a folder with -o")
    if out is not None and not as_folder:
        target = None if out == STD else Path(out)
        tasks = [Task(source=source, target=target) for source, _ in sources]
    else:
        places = [source if out is None else Path(out) / (below or "stdin") for source, below in sources]
        tasks = [Task(source=s, target=t) for (s, _), t in zip(sources, _targets(places, suffix), strict=True)]
    _check_distinct(tasks)
    return tasks


def _sources(inputs: Iterable[str], takes: tuple[str, ...]) -> Iterator[tuple[Path | None, Path | None]]:
    """(path, path below the folder that was named) of every input file."""
    for name in inputs:
        path = Path(name)
        if name == STD:
            yield None, None
        elif path.is_dir():
            for found in files_below(path):
                if found.suffix.lower() in takes:
                    yield found, found.relative_to(path)
        else:
            yield path, Path(path.name)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder by name, hidden ones left out."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))


def _targets(places: Sequence[Path | None], suffix: str) -> list[Path | None]:
    """The place of each output: the input's place with `suffix`, after its own suffix where that alone tells it from
    another; None for stdin beside nothing."""
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
            raise UserError(f"{task.name} would overwrite itself; name another output with -o")


def read(task: Task) -> bytes:
    """The input's bytes."""
    return sys.stdin.buffer.read() if task.source is None else task.source.read_bytes()


def check_free(task: Task, force: bool) -> None:
    """Raise UserError where the output exists already, before any work is done."""
    if task.target and task.target.is_dir():
        raise UserError(f"{task.target} is a folder")
    if task.target and task.target.is_file() and not force:
        raise UserError(f"{task.target} exists; --force overwrites it")


def check_any_free(tasks: Sequence[Task], force: bool) -> None:
    """Raise UserError where no output may be written, before a model is loaded for them."""
    problems = []
    for task in tasks:
        try:
            check_free(task, force)
        except UserError as problem:
            problems.append(problem)
    if problems and len(problems) == len(tasks):
        raise problems[0]


def check_free_folder(folder: Path, force: bool) -> Path:
    """The folder's absolute path, if a model may be written there: only a model is replaced. Raises UserError."""
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not folder.is_dir() or not (folder / "config.json").is_file():
            raise UserError(f"{folder} exists and is no EGIC model; name a new folder with -o")
        if not force:
            raise UserError(f"{folder} exists; --force overwrites it")
    return folder


def write(task: Task, data: bytes) -> None:
    """Write aside, then rename: the output is whole or absent, and an older one stays until then."""
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
