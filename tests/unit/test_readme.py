"""The README names what there is: every module in its map, every departure from the paper in its list."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MODULES = [path for folder in ("egic", "jobs", "pipelines") for path in sorted((ROOT / folder).glob("*.py"))]


def section(title: str) -> str:
    return README.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def test_the_file_map_is_complete():
    patterns = {Path(word).name for word in re.findall(r"[\w/*]+\.py", section("Files"))}
    unnamed = [p.name for p in MODULES if not p.stem.startswith("__") and not any(p.match(word) for word in patterns)]
    assert not unnamed
    assert all(any(p.match(word) for p in MODULES) for word in patterns)


def test_every_departure_is_listed():
    listed = section("Where this differs").count("\n- ")
    found = [path for path in MODULES for line in path.read_text().splitlines() if "DIFFERS" in line]
    assert listed == len(found)
    assert all(f"`{path.relative_to(ROOT)}`" in section("Where this differs") for path in found)


def test_every_link_within_the_repository_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
            assert target[1:] in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target
