"""Pillow opens and saves .egic files after `import egic.pillow`, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import egic
from egic import artifact
from tests.codec_models import tiny_model

ROOT = Path(__file__).resolve().parents[3]
X = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8).repeat(10, 0).repeat(10, 1)

SCRIPT = """
import json, sys, warnings
import numpy as np
import egic.pillow
from PIL import Image

said = {}
def error(function, *args, **options):
    try:
        function(*args, **options)
    except Exception as error:
        return [type(error).__name__, isinstance(error, OSError), isinstance(error, ValueError), str(error)]

egic.pillow.use("model")
image = Image.open("old.egic")
said["opened"] = [image.format, image.size, image.mode, image.get_format_mimetype(), "torch" in sys.modules]
image.save("old.png")
for alpha in (0, 0.5, 1):
    image.load(alpha=alpha)
    image.save(f"old-{alpha}.png")
said["alpha"] = error(image.load, alpha=2)
source = Image.open("x.png")
source.save("new.egic", quality=40)
source.save("small.egic", max_bytes=len(open("new.egic", "rb").read()) - 1, model="model")
said["rate"] = error(source.save, "bad.egic", quality=101)
with warnings.catch_warnings(record=True) as caught:
    source.save("alpha.egic", alpha=0.5)
said["alpha when saving"] = [str(warning.message) for warning in caught]
data = open("new.egic", "rb").read()
open("cut.egic", "wb").write(data[:-3])
said["cut"] = error(Image.open, "cut.egic")
egic.pillow.use("other")
foreign = Image.open("new.egic")
said["foreign"] = [foreign.size, error(foreign.load)]
egic.pillow.use("missing")
said["missing"] = error(Image.open("new.egic").load)
Image.MAX_IMAGE_PIXELS = X_PIXELS - 1
with warnings.catch_warnings(record=True) as caught:
    Image.open("new.egic")
said["large"] = [warning.category.__name__ for warning in caught]
Image.MAX_IMAGE_PIXELS = X_PIXELS // 2 - 1
said["bomb"] = error(Image.open, "new.egic")
print(json.dumps(said))
""".replace("X_PIXELS", str(X[..., 0].size))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of two models and some files, after SCRIPT has run in it; said.json has what it printed."""
    folder = tmp_path_factory.mktemp("pillow")
    for name, seed in (("model", 0), ("other", 1)):
        model = tiny_model(seed, rates=4)
        artifact.save(folder / name, {"codec": model.codec, "orp": model.orp}, {})
    (folder / "old.egic").write_bytes(egic.load(folder / "model").compress(X))
    from PIL import Image

    Image.fromarray(X).save(folder / "x.png")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=env, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    (folder / "said.json").write_text(done.stdout)
    return folder


@pytest.fixture
def said(folder) -> dict:
    return json.loads((folder / "said.json").read_text())


def decoded(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path))


def test_open_reads_the_header_without_importing_torch(said):
    assert said["opened"] == ["EGIC", [X.shape[1], X.shape[0]], "RGB", "image/x-egic", False]


def test_pixels_are_those_of_the_model_at_any_alpha(folder):
    model, data = egic.load(folder / "model"), (folder / "old.egic").read_bytes()
    assert np.array_equal(decoded(folder / "old.png"), model.decompress(data))
    for alpha in (0, 0.5, 1):
        assert np.array_equal(decoded(folder / f"old-{alpha}.png"), model.decompress(data, alpha))


def test_files_are_those_of_the_model_at_the_quality_or_size(folder):
    model = egic.load(folder / "model")
    data = (folder / "new.egic").read_bytes()
    assert data == model.compress(X, quality=40)
    assert (folder / "small.egic").read_bytes() == model.compress(X, max_bytes=len(data) - 1)
    assert (folder / "alpha.egic").read_bytes() == model.compress(X)


def test_wrong_options_are_errors_and_leave_no_file(folder, said):
    assert "quality must be" in said["rate"][-1] and said["rate"][2] and not (folder / "bad.egic").exists()
    assert "alpha must lie in [0, 1]" in said["alpha"][-1]
    assert len(said["alpha when saving"]) == 1 and "image.load(alpha=...)" in said["alpha when saving"][0]


def test_unreadable_files_raise_one_line_of_both_kinds_of_error(said):
    """ValueError, as elsewhere in egic, and OSError, as Pillow's own plugins raise."""
    for error, text in ((said["cut"], "damaged or truncated"), (said["foreign"][1], "was made with model")):
        assert error[:3] == ["UnreadableFileError", True, True] and text in error[3] and "\n" not in error[3]
    assert said["foreign"][0] == [X.shape[1], X.shape[0]]
    assert "missing is not an EGIC model" in said["missing"][3]


def test_pillows_limits_against_decompression_bombs_are_respected(said):
    assert said["large"] == ["DecompressionBombWarning"] and said["bomb"][0] == "DecompressionBombError"
