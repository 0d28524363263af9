"""README and docs agree with the code: rooms, functions, import arrows, links, and the list of departures."""

import ast
import re
from pathlib import Path

import pytest

from tests.unit.test_imports import graph

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAP = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [path for folder in ("egic", "jobs", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_architecture_names_every_room():
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in MODULES} - {"egic", "jobs", "pipelines"}
    assert not [room for room in sorted(rooms) if f"{room}/" not in MAP]
    named = re.findall(r"(?:egic|jobs|pipelines|tests|infra|docs)/[\w/]*\.?\w+", MAP)
    assert not [name for name in named if not (ROOT / name).exists()]


def names_of(source: str) -> set[str]:
    """Functions, classes and constants of a module, and methods as Class.method."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{each.name}" for each in ast.walk(node) if isinstance(each, ast.FunctionDef)}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_functions_that_architecture_names_exist():
    """The page names them as `FILE` (`FUNCTION`, `CLASS.METHOD`)."""
    named = re.findall(r"`([\w/]+\.py)` \((`[^)]*`)\)", MAP)
    assert len(named) > 20
    for file, functions in named:
        missing = set(re.findall(r"`([\w.]+)`", functions)) - names_of((ROOT / file).read_text())
        assert not missing, f"docs/architecture.md names {missing} of {file}; name what took their place"


DRAWN = [(a, b) for a, b in re.findall(r"^ *(\w+)(?:\[.*?\])? --> (\w+)$", MAP, re.MULTILINE)]
LABELS = dict(re.findall(r'^ *(\w+)\["([\w/]+)/', MAP, re.MULTILINE))
"""Node of the diagram -> its folder. The nodes `egic` and `jobs` are the files directly in these folders."""
NOT_DRAWN = {"egic", "egic.errors", "egic.cache", "egic.__main__"}


def drawn_room(module: str) -> str:
    """The node of the diagram that a module belongs to; "" for modules that are not drawn."""
    if module in NOT_DRAWN:
        return ""
    folders = [
        (folder, node) for node, folder in LABELS.items() if f"{module.replace('.', '/')}/".startswith(folder + "/")
    ]
    return max(folders)[1]


def test_arrows_of_the_diagram_are_the_imports():
    """Each arrow is an import, and each import between rooms is an arrow or a path of arrows."""
    real = {(drawn_room(a), drawn_room(b)) for a, others in graph().items() for b in others}
    real = {(a, b) for a, b in real if a and b and a != b}
    assert len(DRAWN) > 20 and not set(DRAWN) - real, "no such import"
    reached = set(DRAWN)
    while more := {(a, d) for a, b in reached for c, d in DRAWN if b == c} - reached:
        reached |= more
    assert not real - reached, "missing in docs/architecture.md"


def test_every_departure_from_the_paper_is_listed():
    listed = section(README, "Where this differs")
    found = [path for path in MODULES for line in path.read_text().splitlines() if "DIFFERS" in line]
    assert listed.count("\n- ") == len(found)
    assert all(f"`{path.relative_to(ROOT)}`" in listed for path in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_are_valid(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()) + re.findall(r'src="([^"]+)"', page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        where = page.parent / path if path else page
        assert where.exists(), target
        assert not anchor or anchor in anchors(where), target


def test_readme_can_be_read_in_one_sitting():
    assert len(README.splitlines()) <= 300
