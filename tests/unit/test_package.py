"""The package: attributes of `egic`, contents of the wheel, and that the codec works without any of the extras."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CORE = {"torch", "numpy", "pillow", "safetensors", "tyro", "constriction", "pytorch-msssim", "joblib", "shtab"}
EXTRAS = (  # packages that only extras install; not jinja2, psutil and yaml, which torch uses if they are installed
    "ray", "mlflow", "lpips", "torchvision", "torchmetrics", "torch_fidelity", "matplotlib", "bjontegaard",
    "compressai", "pycocotools", "pyarrow", "gradio", "tensorflow", "scipy", "pandas", "requests", "huggingface_hub",
)  # fmt: skip
ALONE = """
import contextlib, io, json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {extras!r}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Missing())
from egic.cli import main as cli

def run(*argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(argv)
        except SystemExit as end:
            status = end.code
    return [status, out.getvalue(), err.getvalue()]

found = {"file": cli.__file__} | {" ".join(argv): run(*argv) for argv in ([["--version"], ["--help"]])}
found["light"] = [name for name in ("torch", "numpy") if name in sys.modules]

import numpy as np, torch
from pathlib import Path
from PIL import Image
from egic import artifact
from egic.networks.codec import Codec, CodecConfig
config = CodecConfig(
    dims=(32, 32, 32, 32), depths=(1, 1, 1, 1), window=4, hyper_dims=(32, 32), hyper_depths=(1, 1), hyper_window=2,
    num_slices=2,
)
artifact.save(Path("model"), {"codec": Codec(config)}, {})
Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save("a.png")
for line in sys.argv[1:]:
    found[line] = run(*line.split())
found["decoded"] = Image.open("b.png").size
print(json.dumps(found))
"""


def test_public_names_are_imported_on_first_use():
    """`import egic` must stay fast, and torch takes seconds to import."""
    code = """
import sys
import egic
assert not {"torch", "numpy"} & sys.modules.keys()
error, model = egic.BitstreamError, egic.Model
assert error is sys.modules["egic.coding.bitstream"].BitstreamError and model is sys.modules["egic.model"].Model
assert not hasattr(egic, "Codec")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the tree, offline, with the installed setuptools."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("egic", "jobs", "pipelines", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True, timeout=120)
    (made,) = (copy / "dist").glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_has_every_source_file_and_declares_dependencies(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if ".dist-info/" not in name}
        metadata = content.read(next(n for n in content.namelist() if n.endswith("METADATA"))).decode()
        commands = content.read(next(n for n in content.namelist() if n.endswith("entry_points.txt"))).decode()
    sources = {p.relative_to(ROOT).as_posix() for top in ("egic", "jobs", "pipelines") for p in (ROOT / top).rglob("*")}
    assert names == {name for name in sources if (ROOT / name).is_file() and "__pycache__" not in name}
    assert {"egic/py.typed", "egic/demo/page.css", "egic/report/page.html.j2"} <= names
    needed = re.findall(r"^Requires-Dist: ([\w.-]+)(?!.*extra ==)", metadata, re.MULTILINE)
    assert set(needed) == CORE
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == {
        "ray", "train", "cloud", "demo", "hub", "heic", "import-reference", "dev"
    }  # fmt: skip
    assert "egic = egic.cli.main:main" in commands


@pytest.mark.slow
def test_the_codec_works_without_the_extras_and_errors_name_them(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "site")
    works = ["compress a.png -m model --stats", "info a.egic", "decompress a.egic -m model -o b.png", "models ."]
    works += ["export model -o hub"]
    fails = {
        "compress a.png -o new.egic -m models:/egic-orp@best": "egic[train]",
        "report .": "egic[train]",
        "evaluate --model model --images .": "egic[train]", "demo -m model --port 0": "egic[demo]",
        "compress a.png -o new.egic -m hf://owner/name": "egic[hub]",
    }  # fmt: skip
    script = ALONE.replace("{extras!r}", repr(EXTRAS))
    done = subprocess.run(
        [sys.executable, "-c", script, *works, *fails], cwd=tmp_path, capture_output=True, text=True,
        timeout=250, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["file"].startswith(str(tmp_path / "site")) and not found["light"]
    for line in ("--version", "--help", *works):
        assert found[line][0] == 0, (line, found[line])
    assert found["--version"][1].startswith("egic ") and found["decoded"] == [60, 40]
    for line, extra in fails.items():
        status, out, err = found[line]
        assert (status, out, err.count("\n")) == (2, "", 1) and f"pip install '{extra}'" in err, (line, found[line])


def test_issue_forms_and_workflows_are_valid():
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        content = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= content.keys(), form
        assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in content["body"]), form
    flows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    ci, newest = flows["ci"], flows["newest"]
    assert {"push", "pull_request"} <= ci[True].keys() and "schedule" in newest[True]  # YAML 1.1 reads `on` as true
    commands = {name: " ".join(s["run"] for s in job["steps"] if "run" in s) for name, job in ci["jobs"].items()}
    assert commands["lint"] == "make lint" and commands["demo"] == "bash .ci/run demo"
    assert "not ray" in commands["unit"] and '"ray ' in commands["ray"] and "pip wheel" in commands["wheel"]
    for name in ("unit", "ray", "demo"):
        assert ci["jobs"][name]["strategy"]["matrix"]["python"] == ["3.11", "3.14"]
    assert newest["jobs"]["test"]["continue-on-error"] is True
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = re.findall(r"make ([a-z0-9-]+)", " ".join(commands.values()))
    assert set(called) <= targets
    action = yaml.safe_load((ROOT / ".github" / "actions" / "setup" / "action.yml").read_text())
    assert any("requirements.txt" in step["with"].get("key", "") for step in action["runs"]["steps"])


def test_ray_and_mlflow_have_upper_bounds():
    """The weekly job with the newest releases removes them by this pattern."""
    text = (ROOT / "pyproject.toml").read_text()
    for name in ("ray", "mlflow"):
        assert re.search(rf'^  "{name}[^"]*,<[0-9.]+', text, re.MULTILINE)
