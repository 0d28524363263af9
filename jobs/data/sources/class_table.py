"""The class table of label maps, classes.yaml: the classes, and the paths of pictures and label maps.

    pictures: leftImg8bit/*_leftImg8bit       # these three are the defaults pictures/*, labels/* and no instance maps;
    labels: gtFine/*_gtFine_labelIds          # * is the name that a picture has in common with its maps, folders
    instances: gtFine/*_gtFine_instanceIds    # included; maps are PNG files, pictures of any format;
                                              # "*/images/*" where folders of the splits stand first
    things: {car: 26, person: [24, 25]}       # objects that can be counted: a value or several of the label map
    stuff: {road: 7, sky: 23}                 # or colours, in quotes: sky: "#4682b4"

Values are index values (8 or 16 bit) or colours, not both. What the table does not list is void.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from egic.errors import UserError
from jobs.config.yaml_file import compose
from jobs.data.sources.source import MAX_CLASSES, is_inside

NAME = "classes.yaml"
KEYS = ("pictures", "labels", "instances", "things", "stuff")
FIX = "it lists the classes, as in `things: {car: 26}` and `stuff: {sky: 23}`"
MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A path pattern: FOLDER/*SUFFIX with a name in place of the star, or */FOLDER/*SUFFIX with the split first."""

    text: str

    @property
    def folder(self) -> str:
        """The fixed folder of all files, with a slash at its end; empty for the data's own folder."""
        return self.text.partition("*")[0]

    def name_of(self, file: str, endings: tuple[str, ...]) -> str | None:
        """The name in the path `file` (below the data's folder), or None if it does not match. endings: with a dot."""
        stem, ending = os.path.splitext(file)
        if self.text.lower().endswith(endings):  # the table gives the ending
            stem, ending = file, endings[0]
        *before, last = map(re.escape, self.text.split("*"))
        fits = re.fullmatch("([^/]+)".join(before) + "(.*[^/])" + last, stem, re.DOTALL)
        return "/".join(fits.groups()) if fits and ending.lower() in endings else None

    def map_of(self, name: str) -> str:
        """The path of the map of a name."""
        filled = self.text
        for part in name.split("/", self.text.count("*") - 1):
            filled = filled.replace("*", part, 1)
        return filled if filled.lower().endswith(".png") else f"{filled}.png"


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """The content of classes.yaml."""

    path: Path
    categories: tuple[dict, ...]
    """{id, name, isthing} of classes 1..K: things, then stuff, in the order of the table; ids are the classes."""
    lookup: np.ndarray
    """Value of a label map -> class, uint8: 2^16 index values, or 2^24 colours 65536 R + 256 G + B."""
    pictures: Pattern
    labels: Pattern
    instances: Pattern | None
    sha256: str

    @property
    def coloured(self) -> bool:
        return len(self.lookup) > 1 << 16


def read_table(path: Path) -> ClassTable:
    """Read a class table. Raises UserError, one line with file, line and fix, for any mistake in it."""
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES} bytes; it is not a class table")
    sections = _sections(path)
    rows = [(1, *row) for row in _classes(sections.get("things"), path)]
    rows += [(0, *row) for row in _classes(sections.get("stuff"), path)]
    if not 1 <= len(rows) <= MAX_CLASSES:
        raise UserError(f"{path} has {len(rows)} classes; give 1 to {MAX_CLASSES} under `things` and `stuff`")
    values = [value for _, _, _, found in rows for value in found]
    if len({value.startswith("#") for value in values}) > 1:
        raise UserError(f"{path} has colours and index values; give one kind for all classes")
    lookup = np.zeros(1 << 24 if values[0].startswith("#") else 1 << 16, np.uint8)
    seen: dict[str, str] = {}
    for number, (_, name, place, found) in enumerate(rows, start=1):
        if name in seen:
            raise UserError(f"{place}: class {name} is listed twice; give it one line, with all its values in brackets")
        seen[name] = name
        for value in found:
            place_in_lookup = int(value[1:], 16) if value.startswith("#") else int(value)
            if other := lookup[place_in_lookup]:
                raise UserError(f"{place}: {name} has the value {value} of {rows[other - 1][1]}; values must differ")
            lookup[place_in_lookup] = number
    patterns = {key: _pattern(sections.get(key), key, path) for key in KEYS[:3]}
    return ClassTable(
        path=path,
        categories=tuple({"id": i, "name": row[1], "isthing": row[0]} for i, row in enumerate(rows, start=1)),
        lookup=lookup,
        pictures=patterns["pictures"] or Pattern(text="pictures/*"),
        labels=patterns["labels"] or Pattern(text="labels/*"),
        instances=patterns["instances"],
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _sections(path: Path) -> dict[str, yaml.Node]:
    """The file's top-level keys with their nodes."""
    root, found = compose(path, FIX), {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} is not a class table; {FIX}")
    for key, value in root.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "..."
        if name not in KEYS:
            raise UserError(f"{_line(path, key)}: {name} is unknown; the keys are {', '.join(KEYS)}")
        if name in found:
            raise UserError(f"{_line(path, key)}: {name} is given twice; remove one of the two")
        found[name] = value
    return found


def _classes(section: yaml.Node | None, path: Path) -> list[tuple[str, str, list[str]]]:
    """Name, place in the file, and values (digits, or # and six hexadecimal digits in lower case) of each class."""
    if section is None:
        return []
    if not isinstance(section, yaml.MappingNode):
        raise UserError(f"{_line(path, section)}: expected lines such as `car: 26`")
    found = []
    for key, value in section.value:
        place, name = _line(path, key), key.value if isinstance(key, yaml.ScalarNode) else ""
        if not name.strip():
            raise UserError(f"{place}: a class without a name")
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        texts = [str(node.value).lower() if isinstance(node, yaml.ScalarNode) else "?" for node in nodes]
        for text in texts or [""]:
            is_index = re.fullmatch(r"[0-9]{1,5}", text) and int(text) < 1 << 16
            if not is_index and not re.fullmatch(r"#[0-9a-f]{6}", text):
                what = f"the value {text!r}" if text else "no value"
                raise UserError(f'{place}: {name} has {what}; give 0 to 65535, or a colour in quotes: "#4682b4"')
        found.append((name, place, [text if text.startswith("#") else str(int(text)) for text in texts]))
    return found


def _pattern(node: yaml.Node | None, key: str, path: Path) -> Pattern | None:
    if node is None:
        return None
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    *before, last = text.split("*")
    at_start = all(part.endswith("/") for part in before[1:]) and (before or [""])[0][-1:] in ("", "/")
    if len(before) not in (1, 2) or "/" in last or not at_start or not is_inside(text.replace("*", "x")):
        raise UserError(
            f"{_line(path, node)}: {key} is {text!r}; give FOLDER/*SUFFIX, such as {key}/*, inside the folder, or "
            f'"*/{key}/*" if each split has a folder of its own'
        )
    return Pattern(text=text)


def _line(path: Path, node: yaml.Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"
