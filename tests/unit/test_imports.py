"""The shape of the repository, read off its syntax trees: who may import whom, and what no file may contain."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ["egic", "jobs", "pipelines"]  # each may import itself and what stands left of it
TRACKING = "jobs/tracking/runs.py"


def imported_modules(source: str) -> set[str]:
    """Dotted names that `source` imports anywhere, function bodies included; relative imports begin with a dot."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def imports_of(path: Path) -> set[str]:
    """First components of what `path` imports, e.g. {"torch", "egic"}; a relative import counts as its own package."""
    own = path.relative_to(ROOT).parts[0]
    return {own if name.startswith(".") else name.split(".")[0] for name in imported_modules(path.read_text())}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_nothing_imports_upward():
    for level, layer in enumerate(LAYERS):
        for path in sources(layer):
            upward = imports_of(path) & {*LAYERS[level + 1 :], "tests"}
            assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_egic_knows_neither_ray_nor_mlflow():
    for path in sources("egic"):
        assert not imports_of(path) & {"ray", "mlflow"}, path


def test_mlflow_is_imported_by_tracking_only():
    for path in sources(*LAYERS):
        if path.relative_to(ROOT).as_posix() != TRACKING:
            assert "mlflow" not in imports_of(path), path


def test_tyro_is_imported_in_one_place():
    users = [path.relative_to(ROOT).as_posix() for path in sources(*LAYERS) if "tyro" in imports_of(path)]
    assert len(users) <= 1, users


@pytest.mark.parametrize(
    "source, names",
    [
        ("import ray.train", {"ray.train"}),
        ("def f():\n    from mlflow import MlflowClient", {"mlflow"}),
        ("from . import codec", {"."}),
    ],
)
def test_walk_sees_every_kind_of_import(source, names):
    assert imported_modules(source) == names


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_package_registry():
    """The lock is installed from whatever registry the machine is set up for; no file may tie it to one."""
    hosts = [host.encode() for host in ("pypi" + ".org", "python" + "hosted.org", "download.py" + "torch.org/whl")]
    options = [b"--index" + b"-url", b"--extra-index" + b"-url", b"--find" + b"-links", b"--trusted" + b"-host"]
    for path in tracked_files():
        content = path.read_bytes()
        assert not [host for host in hosts if host in content], path
        if path.name.startswith("requirements"):
            assert not [option for option in options if option in content], path


def test_every_lock_entry_is_pinned_with_a_hash():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line and not line.startswith((" ", "#"))]
    assert starts
    for begin, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        assert "==" in lines[begin], lines[begin]
        assert any("--hash=sha256:" in line for line in lines[begin:end]), lines[begin]
