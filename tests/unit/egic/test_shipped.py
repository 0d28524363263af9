"""The model in the package codes at every quality, and a file that it once made decodes to the same picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import egic
from egic.coding import bitstream
from egic.metrics.distortion import psnr_db
from egic.shipped import shipped_model

ROOT = Path(__file__).parents[3]
FILES = ROOT / "tests" / "fixtures" / "shipped"


@pytest.fixture(scope="module")
def model():
    return egic.load()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_stored_file_decodes_to_the_stored_picture(model, alpha):
    data = (FILES / "cat.egic").read_bytes()  # decoding compares its symbols with the checksum in the header
    stored = np.asarray(Image.open(FILES / f"cat_alpha_{alpha:g}.png")).astype(int)
    assert np.abs(model.decompress(data, alpha) - stored).max() <= 1


def test_its_quality_is_in_the_file_and_raises_size_and_fidelity(model):
    x = np.asarray(Image.open(ROOT / "egic/demo/photographs/coffee.jpg"))[100:292, 200:392]
    files = [model.compress(x, quality=quality) for quality in (0, 50, 100)]
    assert [bitstream.unpack(file)[0].quality for file in files] == [0, 50, 100]
    sizes = [len(file) for file in files]
    original = torch.from_numpy(x.copy()).permute(2, 0, 1)[None]
    decoded = [torch.from_numpy(model.decompress(file, 0.0)).permute(2, 0, 1)[None] for file in files]
    fidelity = [float(psnr_db(y, original)) for y in decoded]
    assert sizes == sorted(sizes) and sizes[2] > 2 * sizes[0]
    assert fidelity == sorted(fidelity) and fidelity[0] > 15


def test_its_folder_holds_half_precision_weights_provenance_and_a_card():
    folder = shipped_model()
    for name in ("codec", "orp"):
        with safe_open(folder / f"{name}.safetensors", "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}
    assert json.loads((folder / "provenance.json").read_text())["steps"] > 0
    card = (folder / "README.md").read_text()
    for word in ("Data", "licence", "steps", "Limits", "PSNR"):
        assert word in card
