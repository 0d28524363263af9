"""Command lines of the pipeline and its stages: PRESET or --config FILE, flags, and an action in place of running."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from egic.errors import UserError
from jobs.config.flags import parse_changes, parse_preset
from jobs.config.presets import PRESETS, extended
from jobs.config.schema import Config
from jobs.config.yaml_file import from_yaml, to_yaml

C = TypeVar("C", bound=Config)

RUN, PRINT, DRY_RUN, STATUS = "run", "--print-config", "--dry-run", "--status"
HELP = {
    PRINT: "print the configuration as YAML",
    DRY_RUN: "print the steps, memory, data and disk space of a run",
    STATUS: "print which stages are finished, and why others are not",
}


@dataclass(frozen=True, kw_only=True)
class Command(Generic[C]):
    """A command line that was read."""

    name: str
    """Name of the preset, or of the configuration file without its suffix."""
    config: C
    action: str
    """RUN, DRY_RUN or STATUS."""


def read(
    kind: type[C], argv: Sequence[str] | None = None, *, prog: str, actions: Sequence[str] = (), note: str = ""
) -> Command[C]:
    """Read `PRESET | --config FILE`, then flags, and at most one of `actions` in place of running.

    `note` is the last sentence above the help's options. `--print-config` prints and ends the process, like `--help`.
    Raises UserError for errors in a file; a wrong flag ends the process with one line and status 2.
    """
    rest = list(sys.argv[1:] if argv is None else argv)
    actions = (PRINT, *actions)
    chosen = [a for a in actions if a in rest]
    rest = [word for word in rest if word not in actions]
    if len(chosen) > 1:
        raise UserError(f"{chosen[0]} and {chosen[1]} were given; choose one")
    rest, file = _without_file(rest)
    instead = "; ".join(f"{name}: {HELP[name]}" for name in actions)
    about = f"--config FILE in place of PRESET reads a file from --print-config. Instead of running: {instead}. "
    about += "'Default:' is the source of the recipe's value, and '(default: ...)' the value used here."
    about = f"{about} {note}".rstrip()
    if file is None:
        presets = {name: extended(make, kind) for name, make in PRESETS.items()}
        config, name = parse_preset(presets, rest, prog=prog, about=about), rest[0]
    else:
        if rest and rest[0] in PRESETS:
            raise UserError(f"the preset {rest[0]} and --config {file} were given; choose one")
        config, name = parse_changes(from_yaml(file, kind), rest, prog=prog, about=about), file.stem
    if chosen == [PRINT]:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return Command(name=name, config=config, action=chosen[0] if chosen else RUN)


def _without_file(words: list[str]) -> tuple[list[str], Path | None]:
    """The words without `--config FILE`, and that file."""
    for i, word in enumerate(words):
        if word.startswith("--config="):
            return words[:i] + words[i + 1 :], Path(word.removeprefix("--config="))
        if word == "--config":
            if i + 1 == len(words):
                raise UserError("--config has no file; give --config FILE, with the output of --print-config")
            return words[:i] + words[i + 2 :], Path(words[i + 1])
    return words, None
