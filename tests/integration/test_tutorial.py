"""The tutorial as a script: short, without model, data or network, and with a given model and picture."""

import builtins
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from egic import artifact
from tests.codec_models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "pipelines" / "tutorial.py").read_text()


def test_it_is_short_and_has_cells():
    assert len(SOURCE.splitlines()) <= 110
    cells = re.split(r"^# %%.*\n", SOURCE, flags=re.MULTILINE)
    assert cells[0] == "" and len(cells) == 9
    for cell in SOURCE.split("# %% [markdown]\n")[1:]:
        assert all(not line or line.startswith("#") for line in cell.split("# %%")[0].splitlines())


def check(folder: Path, said: str, width: int, height: int) -> None:
    """Check the output and files of a run with a picture of this size."""
    for stage in ("segmentation", "mse-codec", "gan, warm-up", "gan, adversarial", "orp"):
        assert any(line.startswith(f"{stage}: ") and "nan" not in line for line in said.splitlines()), stage
    made = folder / "outputs" / "tutorial"
    assert (made / "picture.egic").read_bytes()[:4] == b"EGIC"
    assert Image.open(made / "alphas.png").size == (4 + 5 * (width + 4), 4 + max(16, width // 26 + 6) + height + 4)
    assert Image.open(made / "labels.png").size == (4 + 3 * 260, 24 + 256)


@pytest.mark.slow
def test_it_runs_without_model_and_picture(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("EGIC_")} | {"PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "tutorial.py")],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check(tmp_path, done.stdout, 600, 400)


def test_it_runs_with_a_given_model_and_picture(tmp_path, monkeypatch, capsys, one_thread):
    tiny = tiny_model()
    artifact.save(tmp_path / "model", {"codec": tiny.codec, "orp": tiny.orp}, {})
    Image.new("RGB", (100, 80), "teal").save(tmp_path / "own.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EGIC_MODEL", "model")
    monkeypatch.setenv("EGIC_PICTURE", "own.png")
    monkeypatch.setattr(builtins, "display", (shown := []).append, raising=False)  # as in a notebook
    runpy.run_path(str(ROOT / "pipelines" / "tutorial.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert len(shown) == 2
    check(tmp_path, said, 100, 80)
