"""Which files of a folder are pictures, and how their names are shown."""

import os

import numpy as np
import pytest
from PIL import Image

from egic import pictures
from egic.pictures.formats import _SUFFIXES

PAIRS = [(form, suffix) for form, suffixes in _SUFFIXES.items() for suffix in suffixes]


@pytest.mark.parametrize("form, suffix", PAIRS)
def test_every_suffix_in_read_suffixes_can_be_read(form, suffix, tmp_path):
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    column = np.where(np.arange(64) < 32, 0, 255) if suffix in (".pbm", ".gif") else np.linspace(0, 255, 64)
    smooth = np.broadcast_to(column.astype(np.uint8)[:, None, None], (64, 64, 3))
    image = Image.fromarray(np.ascontiguousarray(smooth)).convert({".pgm": "L", ".pbm": "1"}.get(suffix, "RGB"))
    image.save(tmp_path / f"x{suffix}", form)  # Pillow writes some formats differently by the suffix
    x, notes = pictures.read((tmp_path / f"x{suffix}").read_bytes())
    assert x.shape == smooth.shape and np.abs(x.astype(int) - smooth).mean() < 6 and not notes


def test_suffixes_of_formats_that_are_read_are_taken():
    """As other programs write them: APNG, JPEG, Windows bitmap, JPEG 2000 with boxes and without."""
    assert {".apng", ".jif", ".jfif", ".jpe", ".mpo", ".dib", ".pbm"} <= set(pictures.READ_SUFFIXES)
    assert ".jp2" not in pictures.READ_SUFFIXES or {".jpf", ".j2c", ".jpc"} <= set(pictures.READ_SUFFIXES)


def test_files_of_unsupported_formats_are_counted():
    names = ["a.JPG", "b.cr2", "d/c.CR2", "e.dng", "notes.txt", "f.egic"]
    assert pictures.left_out(names) == "2 .cr2, 1 .dng" and pictures.left_out(["a.png"]) == ""


@pytest.mark.parametrize("suffix", "pam heics xcf eps pdf pcx sgi nrw crw 3fr x3f srf jxs jxl psd svg tga".split())
def test_no_kind_of_picture_is_left_out_without_a_word(suffix):
    assert pictures.left_out([f"x.{suffix.upper()}"]) == f"1 .{suffix}"


def test_names_become_valid_text_on_one_line():
    assert pictures.printable(os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")) == r"caf\xe9 é.jpg"
    assert pictures.printable("new\nline\t\x1b[31m red\x7f\x9b.png") == r"new\x0aline\x09\x1b[31m red\x7f\x9b.png"
    assert pictures.printable("全角\u3000空白 👩\u200d🎨.png") == "全角\u3000空白 👩\u200d🎨.png"
