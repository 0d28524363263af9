"""README and docs name what there is: every room on the map, every departure from the paper in its list."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [path for folder in ("egic", "jobs", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))]


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def anchors(page: Path) -> set[str]:
    """The places of a page that links may name, as GitHub makes them of its titles."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_room_is_on_the_map():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in MODULES} - {"egic", "jobs", "pipelines"}
    assert not [room for room in sorted(rooms) if f"{room}/" not in page]
    named = re.findall(r"(?:egic|jobs|pipelines|tests|infra|docs)/[\w/]*\.?\w+", page)
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_departure_is_listed():
    told = section(README, "Where this differs")
    found = [path for path in MODULES for line in path.read_text().splitlines() if "DIFFERS" in line]
    assert told.count("\n- ") == len(found)
    assert all(f"`{path.relative_to(ROOT)}`" in told for path in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()) + re.findall(r'src="([^"]+)"', page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        where = page.parent / path if path else page
        assert where.exists(), target
        assert not anchor or anchor in anchors(where), target


def test_readme_can_be_read_in_one_sitting():
    assert len(README.splitlines()) <= 300
