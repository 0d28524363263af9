"""Configurations as YAML, as `--print-config` prints and `--config` reads them.

A value is parsed by the type of its field, not by YAML's rules: in YAML 1.1, 1e-5 would be text, 1:4 the number 64,
and `no` false.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from egic.errors import UserError
from jobs.config.schema import Config

C = TypeVar("C")

_NULL = ("", "~", "null", "Null", "NULL")
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def to_yaml(config: Config) -> str:
    """All fields of Config in order, each with a comment from its docstring.

    Fields of a subclass of Config, such as `start`, are written only if they differ from the default, so that one file
    can be used for the pipeline and for each of its stages.
    """
    shared = {f.name for f in dataclasses.fields(Config)}
    own = [f for f in dataclasses.fields(config) if f.name not in shared]
    left_out = {f.name for f in own if getattr(config, f.name) == f.default}
    return "".join(line + "\n" for line in _lines(config, left_out))


def _lines(config: Any, left_out: set[str] | frozenset[str] = frozenset()) -> list[str]:
    kind: type = type(config)
    lines, texts, after_section = [], field_texts(kind), False
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in left_out:
            continue
        if dataclasses.is_dataclass(value):
            after_section = True
            lines += ["", f"{field.name}:{_comment(type(value).__doc__)}"]
            lines += ["  " + line for line in _lines(value) if line]
        else:
            lines += [""] if after_section and isinstance(config, Config) else []
            lines.append(f"{field.name}: {_scalar(value)}{_comment(texts.get(field.name))}")
    return lines


def _scalar(value: Any) -> str:
    """A value on one line, as PyYAML writes it, with quotes where YAML needs them."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_scalar, value))}]"
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    line = yaml.safe_dump([value], default_flow_style=True, default_style=style, allow_unicode=True, width=float("inf"))
    return line.strip()[1:-1]  # in a list, since PyYAML quotes commas there, and adds no end mark


def _comment(text: str | None) -> str:
    """The text's first sentence as a comment."""
    first = re.split(r"(?<=[^.]\.)\s+(?=[A-Z])", " ".join((text or "").split()))[0]
    return f"  # {first.removesuffix('.')}" if first else ""


@functools.cache
def field_texts(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, inherited ones included."""
    found: dict[str, str] = {}
    for each in reversed([k for k in kind.__mro__ if dataclasses.is_dataclass(k)]):
        (made,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(made, ast.ClassDef)
        for field, text in zip(made.body, made.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = words
    return found


def from_yaml(path: Path, kind: type[C]) -> C:
    """Read a configuration file; omitted fields have their defaults.

    Raises UserError, one line with file, line, key and fix, for unknown keys, wrong types and impossible values.
    """
    return _dataclass(compose(path, "print a preset with --print-config, and begin with that"), kind, str(path), "")


def compose(path: Path, fix: str) -> yaml.Node:
    """A YAML file's root node. Raises UserError, one line, for an invalid file; `fix` is the advice in its message."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {fix}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a YAML file: it is not UTF-8 ({error.reason})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{place}: invalid YAML ({problem}); correct it") from error
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; {fix}") from None
    if root is None:
        raise UserError(f"{path} is empty; {fix}")
    return root


def _dataclass(node: yaml.Node, kind: Any, file: str, key: str) -> Any:
    """A section of the file as the dataclass `kind`. key: where it is, as in `gan.loss`; empty for the whole file."""
    here = f"{file}, line {node.start_mark.line + 1}"
    fields, hints, values = {f.name: f for f in dataclasses.fields(kind)}, typing.get_type_hints(kind), {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{here}: {key or 'the file'} is not a section; give lines such as {next(iter(fields))}: VALUE")
    for name_node, value in node.value:
        place = f"{file}, line {name_node.start_mark.line + 1}"
        name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "..."
        full = f"{key}.{name}" if key else name
        if name not in fields:
            near = difflib.get_close_matches(name.replace("-", "_"), fields, 1)
            fix = f"did you mean {near[0]}?" if near else "remove it; --help lists the fields"
            raise UserError(f"{place}: {full} is unknown; {fix}")
        if name in values:
            raise UserError(f"{place}: {full} is given twice; remove one of the two")
        values[name] = _value(value, hints[name], file, full)
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            full = f"{key}.{name}" if key else name
            raise UserError(f"{here}: {full} is missing; add it, as --print-config has it")
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{here}: {key + ': ' if key else ''}{error}") from error


def _value(node: yaml.Node, kind: Any, file: str, key: str) -> Any:
    """A field's value of the type `kind`."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(node, kind, file, key)
    place = f"{file}, line {node.start_mark.line + 1}"
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if not isinstance(node, yaml.SequenceNode):
            raise UserError(f"{place}: {key} is not a list; give {_WANTED[inner]} each, in brackets: [..., ...]")
        return tuple(_value(each, inner, file, key) for each in node.value)
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for each in kinds if isinstance(node, yaml.ScalarNode) else ():
        try:
            return _parsed(node.value, each, quoted=bool(node.style))
        except ValueError:
            continue
    shown = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or section"
    raise UserError(f"{place}: {key} is {shown}; give {' or '.join(_WANTED[k] for k in kinds)}")


def _parsed(text: str, kind: type, *, quoted: bool) -> Any:
    """A scalar's text as `kind`. Raises ValueError. Text in quotes is a string, and an empty value is invalid."""
    if kind is str:
        if not quoted and text in _NULL:
            raise ValueError
        return text
    if quoted:
        raise ValueError
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return kind(re.sub(r"\.(?=inf|nan)", "", text.lower()))  # .inf and .nan are YAML's
