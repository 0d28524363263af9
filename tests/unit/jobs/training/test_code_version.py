"""The code part of a stage's key: it depends on code, not on comments and docstrings, and includes every module."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from jobs.training.code_version import (
    LEARNING,
    MEASURING,
    ROOT,
    TAG,
    changed_files,
    code_digest,
    code_files,
    code_tag,
    source_digest,
)
from jobs.training.stage import EVALUATE, MODULES, sources

SOURCE = '''
"""Docstring of a module."""
import math


class Circle:
    """A circle."""

    radius: float = 1.0
    """Its radius."""

    def area(self) -> float:
        """Area of the circle."""
        return math.pi * self.radius**2  # a comment
'''


@pytest.mark.parametrize(
    "old, new",
    [
        ("# a comment", ""),
        ('"""Docstring of a module."""', "# no docstring"),
        ('"""Area of the circle."""', '"""The area, in square units.\n\n        Two lines."""'),
        ('"""Its radius."""', '"""Its radius in mm."""'),
        ("math.pi * self.radius**2", "(\n            math.pi\n            * self.radius**2)"),
    ],
)
def test_comments_docstrings_and_line_breaks_do_not_change_the_digest(old, new):
    assert old in SOURCE
    assert source_digest(SOURCE.replace(old, new)) == source_digest(SOURCE)


@pytest.mark.parametrize(
    "old, new",
    [
        ("**2", "**3"),
        ("= 1.0", "= 2.0"),
        ("def area", "def size"),
        ('"""Area of the circle."""', 'print("""Area of the circle.""")'),
        ("    radius: float = 1.0", "    radius: int = 1.0"),
    ],
)
def test_a_change_of_code_changes_the_digest(old, new):
    assert old in SOURCE
    assert source_digest(SOURCE.replace(old, new)) != source_digest(SOURCE)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of egic and jobs in another folder."""
    for name in ("egic", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_same_code_in_another_folder_has_the_same_digest(copy):
    assert code_files(*MEASURING, root=copy) == code_files(*MEASURING)


def test_every_file_of_a_folder_counts_also_new_ones(copy):
    before = code_files(*LEARNING, root=copy)
    losses = copy / "egic/training/losses.py"
    losses.write_text(losses.read_text() + "\n# a note\n")
    assert code_files(*LEARNING, root=copy) == before
    losses.write_text(losses.read_text() + "\nFACTOR = 2\n")
    (copy / "egic/networks/new.py").write_text("WIDTH = 3\n")
    after = code_files(*LEARNING, root=copy)
    assert code_digest(after) != code_digest(before)
    tag = code_tag(before)[TAG]
    assert changed_files(tag, after) == ["egic/networks/new.py", "egic/training/losses.py"]
    losses.unlink()
    assert "egic/training/losses.py" in changed_files(tag, code_files(*LEARNING, root=copy))


def test_the_tag_is_below_mlflows_limit():
    for name in (*MODULES, EVALUATE):
        assert len(json.dumps(code_tag(sources(name)))) < 5000  # MLflow's limit of a tag's value


def test_a_stage_includes_its_own_module_and_not_those_of_other_stages():
    for name, module in MODULES.items():
        own = {path for path in sources(name) if path in {m.replace(".", "/") + ".py" for m in MODULES.values()}}
        assert own == {module.replace(".", "/") + ".py"}
    assert {"jobs/evaluate.py", "egic/metrics/distortion.py", "egic/coding/range_coder.py"} <= sources(EVALUATE).keys()


def modules_of(path: Path) -> set[Path]:
    """Files of egic and jobs that `path` imports, also in functions, except for its own command line."""
    found = set()
    tree = ast.parse(path.read_text())
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.unparse(n.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        files = [ROOT / (name.replace(".", "/") + ".py") for name in names if name.startswith(("egic", "jobs"))]
        found |= {file for file in files if file.is_file()}
    return found


def closure(*starts: str) -> set[str]:
    """These files and all that they import, directly or indirectly."""
    found, todo = set(), {ROOT / s for s in starts}
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= modules_of(path) - found
    return {path.relative_to(ROOT).as_posix() for path in found}


OUTSIDE = {
    "jobs/config/flags.py": "reads command lines",
    "egic/errors.py": "says what went wrong",
    "egic/artifact.py": "how weights are stored, not which",
    "egic/metrics/distortion.py": "measures what was learned",
    "egic/report/panels.py": "shows what was learned",
    "egic/metrics/quality.py": "measures what was learned",
    "egic/metrics/fid_kid.py": "measures what was learned",
    "jobs/training/stage.py": "the key itself",
    "jobs/training/code_version.py": "the key itself",
    "jobs/training/meter.py": "counts time, shows losses",
    "jobs/training/rates.py": "measures what was learned",
    "jobs/training/session.py": "describes what surrounds the loop",
    "egic/metrics/pretrained.py": "where weights lie; which ones is in the key",
    "jobs/storage/files.py": "where bytes lie, not which; digests are checked",
    "egic/cache.py": "names the cache",
    "egic/metrics/measures.py": "measures what was learned",
    "jobs/cluster/ray_internals.py": "how Ray runs the data tasks, not what they make",
    "jobs/cluster/task_errors.py": "says what went wrong",
    "egic/listing.py": "which pictures there are; their names and digests are in the key",
    "egic/report/picture_names.py": "which pictures there are; their names and digests are in the key",
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_that_affects_training_is_included(name):
    own = MODULES[name].replace(".", "/") + ".py"
    missed = closure(own, "jobs/training/loop.py", "jobs/data/stream.py") - {*sources(name), *OUTSIDE}
    assert not missed, f"add to code_version.LEARNING, or say here why not: {sorted(missed)}"


def test_every_module_that_affects_evaluated_files_is_included():
    tops = "egic/model.py", "jobs/evaluation/coder.py", "jobs/evaluation/tables.py"
    missed = closure(*tops) - {*sources(EVALUATE), *OUTSIDE}
    assert not missed, f"add to code_version.MEASURING, or say here why not: {sorted(missed)}"
