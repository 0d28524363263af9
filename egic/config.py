"""Command lines from dataclasses: the only file that imports tyro."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

T = TypeVar("T")


def parse_config(config_type: Callable[..., T], argv: Sequence[str] | None = None, *, prog: str | None = None) -> T:
    """Read a command line into `config_type`: required fields are positional, the others flags with their docstrings.

    `config_type` is a dataclass, a function with annotated arguments, or a union of dataclasses (subcommands). `argv`
    defaults to the process's own. An unknown flag or a wrong type ends the process with one message and status 2.
    """
    return tyro.cli(config_type, args=argv, prog=prog, config=(tyro.conf.PositionalRequiredArgs,))
