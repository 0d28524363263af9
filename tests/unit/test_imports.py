"""Import rules of the repository, checked on syntax trees, and text that no tracked file may contain."""

import ast
import graphlib
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ["egic", "jobs", "pipelines"]  # each may import itself and those to its left
TRACKING = "jobs/tracking"
ROOMS = {
    "egic": "__main__ cli demo reference report compat pillow __init__ model artifact coding training metrics networks "
    "listing pictures shipped cache file_size errors",
    "jobs": "segmentation mse_codec gan orp evaluate prepare registry serve compress decompress / commands evaluation "
    "training archive data cluster tracking config storage",
}
"""Rooms and single files from the top down: each may import itself and those after it.

Those before a `/` may not import each other: the jobs that a user runs.
"""
COMPUTED = {"jobs/training/stage.py", "egic/cli/extensions.py"}
"""Files that import modules by computed names: a stage by its name, and entry points."""


def imported_modules(source: str) -> set[str]:
    """Dotted names that `source` imports anywhere, function bodies included; relative imports begin with a dot.

    `importlib.import_module` and similar calls count with their argument: the constant beginning of an f-string, or "?"
    for other expressions.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names}
        elif isinstance(node, ast.Call) and _called(node.func) in BY_NAME:
            names.add(_constant(node.args[0] if node.args else node.keywords[0].value))
    return names


BY_NAME = ("import_module", "__import__", "resolve_name", "run_module", "EntryPoint")


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _constant(argument: ast.expr) -> str:
    """The text of a string, or the constant beginning of an f-string or a sum of strings; else "?"."""
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]
    while isinstance(argument, ast.BinOp):
        argument = argument.left
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value.partition(":")[0].rstrip(".")
    return "?"


@cache
def imports(path: Path) -> frozenset[str]:
    return frozenset(imported_modules(path.read_text()))


def imports_of(path: Path) -> set[str]:
    """First components of what `path` imports, e.g. {"torch", "egic"}."""
    return {name.split(".")[0] for name in imports(path)}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_nothing_imports_upward():
    for level, layer in enumerate(LAYERS):
        for path in sources(layer):
            upward = imports_of(path) & {*LAYERS[level + 1 :], "tests"}
            assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_imports_are_absolute():
    """The other tests of this file read absolute names."""
    assert not [path for path in sources(*LAYERS, "tests") if any(name.startswith(".") for name in imports(path))]


def test_no_module_is_imported_by_a_computed_name():
    """Otherwise the tests of this file would miss imports."""
    users = {path.relative_to(ROOT).as_posix() for path in sources(*LAYERS) if "?" in imports_of(path)}
    assert users <= COMPUTED


def modules() -> dict[str, Path]:
    """Files of all modules of the repository by dotted name; a package's file is its __init__.py."""
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in sources(*LAYERS)}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


@cache
def graph() -> dict[str, set[str]]:
    """Module -> the modules of the repository that it imports."""
    known = modules()

    def module(name: str) -> str:
        while name and name not in known:  # a function of a module, or an external package
            name = name.rpartition(".")[0]
        return name

    return {name: {module(other) for other in imports(path)} - {name, ""} for name, path in known.items()}


def order(rooms: str) -> dict[str, int]:
    """Position of each room in ROOMS; those before the `/` share one."""
    before, slash, after = rooms.partition("/")
    own = {name: 0 for name in before.split()} if slash else {}
    return own | {name: i for i, name in enumerate((after if slash else before).split(), 1)}


def room(name: str) -> str:
    """The room of a module, without its layer: "cli" for egic.cli.main, "model" for egic.model."""
    return [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("layer", ROOMS)
def test_rooms_import_downward_only(layer):
    floor, upward = order(ROOMS[layer]), []
    for name, others in graph().items():
        if not name.startswith(layer) or name == "jobs":
            continue
        assert room(name) in floor, f"{name} is in no room that this test knows; write {room(name)} into ROOMS"
        for other in (other for other in others if other.startswith(layer)):
            own, theirs = room(name), room(other)
            if floor[theirs] < floor[own] or (floor[theirs] == floor[own] and theirs != own):
                upward.append(f"{name} imports {other}")
    assert not upward, "these run upward: " + ", ".join(upward)


def test_no_import_cycle():
    try:
        graphlib.TopologicalSorter(graph()).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle: " + " <- ".join(error.args[1]))


def test_egic_imports_neither_ray_nor_mlflow():
    for path in sources("egic"):
        assert not imports_of(path) & {"ray", "mlflow"}, path


def test_only_tracking_imports_mlflow():
    for path in sources(*LAYERS):
        if path.parent != ROOT / TRACKING:
            assert "mlflow" not in imports_of(path), path


def test_only_one_file_imports_tyro():
    users = [path.relative_to(ROOT).as_posix() for path in sources(*LAYERS) if "tyro" in imports_of(path)]
    assert len(users) <= 1, users


@pytest.mark.parametrize(
    "source, names",
    [
        ("import ray.train", {"ray.train"}),
        ("def f():\n    from mlflow import MlflowClient", {"mlflow.MlflowClient"}),
        ("from . import codec", {".codec"}),
        ("import importlib\nimportlib.import_module('jobs.gan')", {"importlib", "jobs.gan"}),
        ("f = lambda name: import_module(f'jobs.{name}.x')", {"jobs"}),
        ("__import__('jobs.' + name)", {"jobs"}),
        ("pkgutil.resolve_name('jobs.evaluate:run')", {"jobs.evaluate"}),
        ("importlib.import_module(name)", {"?"}),
    ],
)
def test_imports_are_found_in_every_form(source, names):
    assert imported_modules(source) == names


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_package_registry():
    """The lock must install from any registry that a machine is configured for."""
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
