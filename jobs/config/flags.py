"""Command lines from dataclasses: the only file that imports tyro."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from egic.errors import UserError

T = TypeVar("T")


def one_line(parse: Callable[[], T], prog: str | None) -> T:
    """Run a tyro parser; its multi-line error messages become one line on stderr and exit status 2."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message), _flowing_help():
            return parse()
    except SystemExit as e:
        if e.code in (0, None):
            raise
        print(f"error: {first_paragraph(message.getvalue())} (see {prog or sys.argv[0]} --help)", file=sys.stderr)
        raise SystemExit(2) from None


def first_paragraph(message: str) -> str:
    """The first paragraph of tyro's framed message, without its title, on one line; without a frame, the whole message.

    tyro has no documented access to an error but the text that it prints.
    """
    lines = [re.sub("[\u2500-\u257f]", "", line).strip() for line in message.splitlines()]  # without the frame
    framed = len(lines) > 1 and any("\u2500" <= c <= "\u257f" for c in message)
    first = " ".join(itertools.takewhile(bool, lines[1:])) if framed else " ".join(lines).strip()
    return re.sub(r"^Error parsing \S+: ", "", re.sub(r"__tyro[\w-]*\.", "", first))


def _flowing_help() -> ConstructorRegistry:
    """Join the lines of docstrings in the help: tyro keeps their line ends, and then breaks the lines a second time."""
    registry, asking = ConstructorRegistry(), False

    def flowing(field: StructFieldSpec) -> StructFieldSpec:
        def text() -> str | None:
            found = field.helptext() if callable(field.helptext) else field.helptext
            return " ".join(found.split()) if found else found

        return dataclasses.replace(field, helptext=text)

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking
        if asking or not dataclasses.is_dataclass(info.type):
            return None
        asking = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)  # by tyro's own rule
        finally:
            asking = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(map(flowing, spec.fields)))

    return registry


def parse_config(config_type: Callable[..., T], argv: Sequence[str] | None = None, *, prog: str | None = None) -> T:
    """Read a command line into `config_type`: required fields are positional, the others flags with their docstrings.

    `config_type` is a dataclass, a function with annotated arguments, or a union of dataclasses (subcommands). `argv`
    defaults to the process's own. An unknown flag or a wrong value ends the process with one line and status 2.
    """
    options = (tyro.conf.PositionalRequiredArgs,)
    return one_line(lambda: tyro.cli(config_type, args=argv, prog=prog, config=options), prog)


def parse_preset(
    presets: Mapping[str, Callable[[], T]],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    about: str | None = None,
) -> T:
    """Read `PRESET --field value ...`: the named preset's config with the fields that the flags change.

    Raises UserError for an unknown preset; an unknown flag or an invalid value ends the process with one line and
    status 2. `about` is shown above the list of presets in the help.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] not in presets and not words[0].startswith("-"):
        raise UserError(f"{words[0]!r} is not a preset; presets are {', '.join(presets)}")
    chosen = words[0] if words and words[0] in presets else None  # its help has the fields
    first_lines = {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in presets.items()}
    if chosen and about:
        first_lines[chosen] += f" {about}"
    choices = {name: (first_lines[name], make()) for name, make in presets.items()}
    return one_line(
        lambda: tyro.extras.overridable_config_cli(choices, args=argv, prog=prog, description=about),
        f"{prog} {chosen}" if prog and chosen else prog,
    )


def parse_changes(config: T, argv: Sequence[str], *, prog: str | None = None, about: str | None = None) -> T:
    """Read `--field value ...`: the config with the fields that the flags change. Fails as `parse_preset` does."""
    options = (tyro.conf.AvoidSubcommands,)
    return one_line(
        lambda: tyro.cli(type(config), default=config, args=argv, prog=prog, description=about, config=options), prog
    )


def option_names(config: object) -> list[str]:
    """The flags of a dataclass all of whose fields have defaults, as in "--evaluate.alphas"."""
    names = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            names += [f"--{name}.{option[2:]}" for option in option_names(value)]
        else:
            names += [f"--{name}", f"--no-{name}"] if isinstance(value, bool) else [f"--{name}"]
    return names


def alias(*names: str):
    """Annotation with further names of a field on the command line."""
    return tyro.conf.arg(aliases=names)


def metavar(name: str):
    """Annotation with the placeholder of a field's value in the help."""
    return tyro.conf.arg(metavar=name)


def flag(name: str):
    """Annotation with another name of a field on the command line, for example if it is a Python keyword.

    An empty name removes the prefix from the flags of a nested dataclass.
    """
    return tyro.conf.arg(name=name)
