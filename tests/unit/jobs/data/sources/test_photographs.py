"""Folders of pictures without labels: which files are used, how they are split and stored, and messages."""

import io
import logging
import os

import numpy as np
import pytest
from PIL import Image, ImageCms

from egic.pictures import READ_SUFFIXES
from egic.training.crops import decode_jpeg
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest, read_index, read_samples
from jobs.data.sources import picture_files
from jobs.data.sources.folders import PHOTOGRAPHS, kind_of
from jobs.data.sources.picture_files import read_picture
from jobs.data.sources.splits import choose
from tests.own_data import write_photographs


def prepared(folder, out, **options):
    """Manifests of train and val."""
    made = prepare((folder,), str(out), PrepareConfig(**options))
    return {split: load_manifest(path) for split, path in made.items()}


def names(manifest) -> set[str]:
    return {name.as_py() for name in read_index(manifest).file_name}


def test_every_picture_is_in_one_split_without_a_label(tmp_path):
    root = write_photographs(tmp_path / "mine")
    assert kind_of(root) == PHOTOGRAPHS
    found = prepared(root, tmp_path / "out", val_share=0.2)
    assert {k: (m.num_samples, m.num_classes) for k, m in found.items()} == {"train": (8, 0), "val": (2, 0)}
    every = {path.relative_to(root).as_posix() for path in root.rglob("*.*")}
    assert names(found["train"]) | names(found["val"]) == every and len(every) == 10
    (sample,) = read_samples(found["val"], [0])
    assert sample.segments.shape == (96, 128) and not sample.segment_class[sample.segments].any()
    assert found["train"].class_pixels == (8 * 96 * 128,)


def test_the_split_depends_only_on_names_and_is_stable(tmp_path):
    every = [f"{i}.jpg" for i in range(200)]
    val = set(choose(every, "val", 0.1, tmp_path))
    assert len(val) == 20 and val == set(choose(reversed(every), "val", 0.1, tmp_path / "elsewhere"))
    assert set(choose(every, "train", 0.1, tmp_path)) == set(every) - val
    more = set(choose([*every, "new/1.jpg", "new/2.jpg"], "val", 0.1, tmp_path))
    assert len(val ^ more) <= 2
    assert choose(["a", "b"], "val", 0.01, tmp_path) and choose(["a", "b"], "train", 0.99, tmp_path)


@pytest.mark.parametrize("train, val", [("train", "val"), ("training", "validation"), ("train", "validation")])
def test_folders_named_train_and_val_are_the_splits(tmp_path, caplog, train, val):
    every = [f"{train}/a.jpg", f"{train}/deep/b.jpg", f"{val}/c.jpg", "test/d.jpg"]
    assert choose(every, "train", 0.1, tmp_path) == every[:2] and choose(every, "val", 0.1, tmp_path) == [every[2]]
    assert "1 pictures beside" in caplog.text and f"{train}/ and {val}/" in caplog.text
    with pytest.raises(ValueError, match=f"has pictures in {train}/ and none in val/"):
        choose(every[:2], "train", 0.1, tmp_path)
    with pytest.raises(ValueError, match="has 1 pictures; training and validation need one each"):
        choose(["a.jpg"], "val", 0.1, tmp_path)


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def test_a_plain_jpeg_keeps_its_bytes_and_others_are_turned_upright_and_stored_as_jpeg(tmp_path):
    x = np.zeros((40, 64, 3), np.uint8)
    x[:, :32] = 200, 30, 30
    image, path = Image.fromarray(x), tmp_path / "x"
    for kept in (jpeg(image), jpeg(image.convert("L"))):
        path.write_bytes(kept)
        assert read_picture(path) == (kept, (40, 64))
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn to the right: what was left is on top
    path.write_bytes(jpeg(image, exif=turned))
    stored, shape = read_picture(path)
    upright = decode_jpeg(stored)
    assert shape == upright.shape[:2] == (64, 40)
    assert np.abs(upright[4:28].astype(int) - (200, 30, 30)).max() < 8 and upright[36:].max() < 8
    for form in ("PNG", "WEBP", "TIFF"):
        image.save(path, form)
        assert np.abs(decode_jpeg(read_picture(path)[0]).astype(int) - x).max() < 40  # WebP and JPEG at a hard edge
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    path.write_bytes(jpeg(image, icc_profile=profile.tobytes()))  # it does not fit the mode, so pixels are unchanged
    assert decode_jpeg(read_picture(path)[0]).shape == (40, 64, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_labels_stay_on_the_pixels_that_they_were_made_for(tmp_path, form, orientation):
    """Upright, the picture has the size of its labels, too, so only its pixels show whether it was turned."""
    x = np.zeros((40, 64, 3), np.uint8)
    x[:20, :32] = 255
    turned = Image.Exif()
    turned[0x0112] = orientation
    Image.fromarray(x).save(tmp_path / "x", form, exif=turned)
    stored, shape = read_picture(tmp_path / "x", (40, 64))
    assert shape == (40, 64) and np.abs(decode_jpeg(stored).astype(int) - x).mean() < 4


def test_a_jpeg_that_training_cannot_open_is_encoded_again(tmp_path):
    """Its metadata is damaged; COCO's JPEGs are otherwise kept."""
    plain = jpeg(Image.fromarray(np.full((40, 64, 3), 90, np.uint8)))
    (tmp_path / "x").write_bytes(plain[:2] + b"\xff\xe0\0\x07JFIF\0" + plain[2:])
    stored, shape = read_picture(tmp_path / "x", keep_jpeg=True)
    assert shape == (40, 64) and np.abs(decode_jpeg(stored).astype(int) - 90).max() < 3


def test_bad_files_are_named_and_left_out(tmp_path, caplog, monkeypatch):
    root = write_photographs(tmp_path / "mine", 4)
    (tmp_path / "secret.jpg").write_bytes((root / "0.jpg").read_bytes())
    (root / "cut.jpg").write_bytes((root / "0.jpg").read_bytes()[:-100])
    (root / "text.png").write_text("no picture")
    Image.new("RGB", (9000, 9000)).save(root / "bomb.png")
    (root / "large.tif").write_bytes(bytes(2_000_000))
    monkeypatch.setattr(picture_files, "MAX_BYTES", 1_000_000)
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "gone.jpg").symlink_to(root / "nothing.jpg")
    (root / "inside.jpg").symlink_to(root / "0.jpg")
    (root / "away").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.jpg")
    (root / b"\xff.jpg".decode(errors="surrogateescape")).write_bytes(b"")
    for hidden in (".thumbnails/1.jpg", "._0.jpg"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"")
    (root / "notes.txt").touch(), (root / "film.MP4").touch()
    with caplog.at_level(logging.INFO):
        found = prepared(root, tmp_path / "out", max_bad=9)
    expected = {
        "cut.jpg": "damaged picture", "text.png": "not a picture of a format", "bomb.png": "9000x9000 pixels are over",
        "large.tif": "2000000 bytes are over", "out.jpg": "a link to a place outside", "gone.jpg": "no file",
        "away": "a link to a folder", "pipe.jpg": "no file", "\\xff.jpg": "its name is not UTF-8",
    }  # fmt: skip
    skipped = [line for line in caplog.messages if ": skipped " in line]
    assert len(skipped) == len(expected)
    for name, reason in expected.items():
        assert any(f"skipped {name}: {reason}" in line for line in skipped), name
    assert names(found["train"]) | names(found["val"]) == {"0.jpg", "2.jpg", "inside.jpg", "holidays/2024/1.jpg",
        "holidays/2024/3.jpg"}  # fmt: skip
    assert "2 files of other kinds are left out (1 .mp4, 1 .txt)" in caplog.text
    with pytest.raises(ValueError, match="more than 3 bad samples .*--max-bad"):
        prepared(root, tmp_path / "strict", max_bad=3)


def test_a_changed_picture_is_prepared_again_and_an_unchanged_folder_is_not(tmp_path):
    root, out = write_photographs(tmp_path / "mine", 4), tmp_path / "out"
    first = prepared(root, out)
    before = (out / "train/manifest.json").stat().st_ino
    assert prepared(root, out) == first and (out / "train/manifest.json").stat().st_ino == before
    picture = root / "0.jpg"
    os.utime(picture, ns=(0, 0))  # as if it had been edited, to the same size
    prepared(root, out)
    assert (out / "train/manifest.json").stat().st_ino != before


def test_outputs_of_a_run_are_not_used_as_photographs(tmp_path):
    root = write_photographs(tmp_path / "mine", 4)
    with pytest.raises(ValueError, match="mine/outputs is inside .*mine, so a run.s own pictures .*choose OUT"):
        prepared(root, root / "outputs")
    assert not list((root / "outputs").iterdir())


@pytest.mark.parametrize("name", ["labels", "annotations", "gtFine"])
def test_label_maps_without_a_table_are_not_used_as_photographs(tmp_path, name):
    root = write_photographs(tmp_path / "mine", 2)
    (root / name).mkdir()
    with pytest.raises(ValueError, match=f"has {name}/, but no class table classes.yaml; write one"):
        kind_of(root)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="data folder .*nowhere does not exist; name a COCO tree"):
        kind_of(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds no pictures; name"):
        kind_of(tmp_path)
    (tmp_path / "1.cr2").touch(), (tmp_path / "2.CR2").touch()
    with pytest.raises(ValueError, match=r"holds no pictures that can be read \(2 .cr2\); name"):
        kind_of(tmp_path)


def test_supported_formats_are_used_and_others_counted(tmp_path, caplog):
    root = write_photographs(tmp_path / "mine", 4)
    with Image.open(root / "0.jpg") as image:
        for suffix in (".jpe", ".jfif", ".mpo"):
            image.save(root / f"x{suffix}", "JPEG")
        image.convert("1").save(root / "x.pbm")
        for suffix in (".avif", ".jp2"):
            if suffix in READ_SUFFIXES:  # optional parts of Pillow
                image.save(root / f"x{suffix}")
    for name in ("a.cr2", "b.CR2", "c.dng"):
        (root / name).write_bytes(b"?")
    found = prepared(root, tmp_path / "out", max_bad=0)
    every = names(found["train"]) | names(found["val"])
    expected = [f"x{s}" for s in (".jpe", ".jfif", ".mpo", ".pbm", ".avif", ".jp2") if s in READ_SUFFIXES]
    assert len(expected) >= 4 and set(expected) <= every and len(every) == 4 + len(expected)
    assert "pictures of formats that are not read are left out (2 .cr2, 1 .dng); convert them" in caplog.text
    with pytest.raises(ValueError, match="val_share is 1.0; give a part"):
        PrepareConfig(val_share=1.0)
