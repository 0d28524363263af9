"""Official splits of label maps and photographs are kept; else an error says how to name them."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egic.training.crops import decode_jpeg
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest, read_index, read_samples
from jobs.data.sources.splits import LISTS, choose, split_of
from tests.own_data import TABLE, classes_of, index_values, picture_of, write_map


def prepared(root: Path, out: Path, **options) -> dict:
    """Samples by name, for each split."""
    found = {}
    for split, path in prepare((root,), out, PrepareConfig(max_bad=0, **options)).items():
        manifest = load_manifest(path)
        names = [name.as_py() for name in read_index(manifest).file_name]
        found[split] = dict(zip(names, read_samples(manifest, range(len(names))), strict=True))
    return found


def write_pair(picture: Path, labels: Path | None, number: int) -> None:
    classes = classes_of(number)
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture_of(classes, number)).save(picture)
    if labels:
        write_map(labels, index_values(classes))


@pytest.mark.parametrize(
    ("name", "alone", "words"),
    [
        ("train2017/a.jpg", "train", "train"), ("a/val2017/b.jpg", "val", "val"), ("val_256/a.jpg", "val", "val"),
        ("Training/x/val/a.jpg", "train", "train"), ("images/validation/a.jpg", "val", "val"),
        ("valid/a.jpg", "val", "val"), ("test-dev2017/a.jpg", "test", "test"), ("valset/a.jpg", "val", "val"),
        ("DIV2K_train_HR/a.jpg", None, "train"), ("images_val/train/a.jpg", "train", "val"),
        ("Training_Set/a.jpg", None, "train"), ("TestImages/a.jpg", None, "test"), ("train_val/a.jpg", None, None),
        ("trainval/a.jpg", None, None), ("trains/a.jpg", None, None), ("valley/a.jpg", None, None),
        ("a/train.jpg", None, None), ("val.jpg", None, None),
    ],
)  # fmt: skip
def test_folder_names_that_mean_a_split(name, alone, words):
    for expected, found in ((alone, split_of(name)), (words, split_of(name, words=True))):
        assert (found and found[0]) == expected


@pytest.mark.parametrize(
    ("train", "val", "left"),
    [
        ("DIV2K_train_HR", "DIV2K_valid_HR", "DIV2K_test_LR"), ("train_images", "val_images", "test_images"),
        ("images_train", "images_val", "images_test"), ("trainset", "valset", "testset"), ("trn", "dev", "tst"),
        ("professional_train_2020", "professional_valid_2020", "other"), ("TrainImages", "ValImages", "TestImages"),
        ("train_a", "validation", "x"), ("train", "val", "train_extra"),
        ("test_project/train", "test_project/val", "x"),
        ("training_data/images_train", "training_data/images_val", "training_data/y"),
    ],
)  # fmt: skip
def test_names_of_official_folders_are_recognised(tmp_path, caplog, train, val, left):
    """No picture is used for training unless its folder says so."""
    every = [f"{train}/1.png", f"{train}/2.png", f"{val}/3.png", f"{left}/4.png"]
    for names in (every, every[:3]):
        assert choose(names, "train", 0.3, tmp_path) == every[:2]
        assert choose(names, "val", 0.3, tmp_path) == [every[2]]
    assert caplog.text.count("1 pictures beside") == 1


@pytest.mark.parametrize("test", ["Test", "images/testing", "a/test_set"])
def test_test_pictures_are_never_used(tmp_path, caplog, test):
    names = [f"Training_Set/{n}.png" for n in range(6)]
    every = [*names, *(f"{test}/{n}.png" for n in range(3))]
    assert sorted(choose(every, "train", 0.3, tmp_path) + choose(every, "val", 0.3, tmp_path)) == names
    assert [text.count(": 3 pictures in") for text in caplog.messages] == [1, 0]
    assert "has pictures in Training_Set/ and none in val/; all are split by --val-share" in caplog.text
    with pytest.raises(ValueError, match=f"has pictures in {test}/ and none in train/; add some"):
        choose(every[6:], "train", 0.3, tmp_path)


@pytest.mark.parametrize(
    "paths",
    [
        ("train.txt", "val.txt"), ("train.txt", "test.txt"), ("splits/train_list.txt", "splits/val_list.txt"),
        ("ImageSets/Main/train.txt", "ImageSets/Main/val.txt"), ("train.csv", "valid.csv"),
    ],
)  # fmt: skip
def test_lists_at_other_places_stop(tmp_path, paths):
    root = tmp_path / "own"
    for number in range(4):
        write_pair(root / f"pictures/{number}.png", root / f"labels/{number}.png", number)
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{number}\n")
    for kind in ("photographs", "label maps"):
        if kind == "label maps":
            (root / "classes.yaml").write_text(TABLE)
        else:
            (root / "labels").rename(tmp_path / "labels")
        with pytest.raises(ValueError, match=r"lists of official splits that are not read there: .*; for label maps"):
            prepared(root, tmp_path / "out")
        if kind == "photographs":
            (tmp_path / "labels").rename(root / "labels")


def test_texts_beside_pictures_are_no_lists(tmp_path):
    names = ["train 1.jpg", "test 1.jpg", "val 1.jpg"]
    for name in names:
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    assert sorted(choose(names, "train", 0.1, tmp_path) + choose(names, "val", 0.1, tmp_path)) == sorted(names)


@pytest.mark.parametrize(
    "folders", [("train2017", "val2017"), ("training", "validation"), ("Train", "Valid"), ("a/train", "a/val")]
)
def test_official_folders_of_label_maps_are_kept(tmp_path, folders):
    root = tmp_path / "own"
    for number in range(8):
        name = f"{folders[number % 4 == 0]}/{number}"
        write_pair(root / f"pictures/{name}.png", root / f"labels/{name}.png", number)
    (root / "classes.yaml").write_text(TABLE)
    found = prepared(root, tmp_path / "out")
    assert sorted(found["val"]) == [f"pictures/{folders[1]}/{n}.png" for n in (0, 4)] and len(found["train"]) == 6


def test_split_folders_in_subfolders_are_kept_for_photographs(tmp_path):
    """As in the layout of YOLO."""
    names = [f"images/train/{n}.jpg" for n in range(20)] + [f"images/val/{n}.jpg" for n in range(5)]
    assert choose(names, "val", 0.1, tmp_path) == sorted(names[20:])
    with pytest.raises(ValueError, match=r"has pictures in images/val/ and none in train/; add some, rename"):
        choose([*names[20:], "images/other/1.jpg"], "train", 0.1, tmp_path)
    assert len(choose([f"trips/train/{n}.jpg" for n in range(20)], "val", 0.1, tmp_path)) == 2  # not a split


def test_the_layout_of_mapillary_is_read(tmp_path, caplog):
    root = tmp_path / "own"
    for number, split in enumerate(["training", "training", "validation", "testing"]):
        labels = root / f"{split}/v1.2/labels/{number}.png"
        write_pair(root / f"{split}/images/{number}.jpg", None if split == "testing" else labels, number)
    (root / "classes.yaml").write_text(f'pictures: "*/images/*"\nlabels: "*/v1.2/labels/*"\n{TABLE}')
    found = prepared(root, tmp_path / "out")
    assert sorted(found["train"]) == ["training/images/0.jpg", "training/images/1.jpg"]
    (name,) = found["val"]
    sample = found["val"][name]
    assert name == "validation/images/2.jpg"
    assert np.array_equal(sample.segment_class[sample.segments], classes_of(2))
    assert "1 pictures beside" in caplog.text


def write_voc(root: Path) -> Path:
    """Pictures 0..5 with labels, 6 and 7 without; 0..2 are listed for training, 3 and 4 for validation."""
    for number in range(8):
        labels = root / f"SegmentationClass/{number}.png" if number < 6 else None
        write_pair(root / f"JPEGImages/{number}.jpg", labels, number)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n"), (lists / "val.txt").write_text("3\n4\n")
    (lists / "trainval.txt").write_text("0\n1\n2\n3\n4\n")
    (root / "classes.yaml").write_text(f"pictures: JPEGImages/*\nlabels: SegmentationClass/*\n{TABLE}")
    return root


def test_lists_of_pascal_voc_are_the_splits_and_pictures_without_a_map_are_void(tmp_path, caplog):
    root = write_voc(tmp_path / "voc")
    with caplog.at_level(logging.INFO):
        found = prepared(root, tmp_path / "out")
    assert sorted(found["val"]) == ["JPEGImages/3.jpg", "JPEGImages/4.jpg"]
    assert sorted(found["train"]) == [f"JPEGImages/{n}.jpg" for n in (0, 1, 2, 6, 7)]
    for name, sample in found["train"].items():
        assert sample.segment_class[sample.segments].any() == (name[11] in "012")
    assert "2 pictures without label map are kept, with all pixels void" in caplog.text
    assert "1 labelled pictures that ImageSets/Segmentation does not list are left out" in caplog.text


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("\ufeff0\r\n1\r\n2\r\n", "3\n4\n"), ("0.jpg\n1.jpg\n2.jpg\n", "./3.jpg\n4.jpg\n\n"),
        ("/JPEGImages/0.jpg /SegmentationClass/0.png\nJPEGImages/1.jpg\n2 x\n", "3  1\n4 -1\n"),
    ],
)  # fmt: skip
def test_lists_are_read_in_every_form(tmp_path, train, val):
    root = write_voc(tmp_path / "voc")
    (root / f"{LISTS}/train.txt").write_text(train, encoding="utf-8"), (root / f"{LISTS}/val.txt").write_text(val)
    found = prepared(root, tmp_path / "out")
    assert sorted(found["val"]) == ["JPEGImages/3.jpg", "JPEGImages/4.jpg"]
    assert sorted(found["train"]) == [f"JPEGImages/{n}.jpg" for n in (0, 1, 2, 6, 7)]


@pytest.mark.parametrize("name", ["test", "private_test", "more"])
def test_pictures_of_other_lists_are_left_out(tmp_path, caplog, name):
    root = write_voc(tmp_path / "voc")
    (root / f"{LISTS}/{name}.txt").write_text("5\n7\n")
    assert sorted(prepared(root, tmp_path / "out")["train"]) == [f"JPEGImages/{n}.jpg" for n in (0, 1, 2, 6)]
    assert "2 pictures that only other lists in ImageSets/Segmentation have" in caplog.text


def test_label_maps_beside_official_splits_count_for_none(tmp_path):
    """As in Cityscapes, if its pictures for testing were not downloaded."""
    root = tmp_path / "own"
    for number, split in enumerate(["train", "train", "val"]):
        write_pair(root / f"pictures/{split}/{number}.png", root / f"labels/{split}/{number}.png", number)
    for place in ("test/3", "extra/4", "5"):
        write_map(root / f"labels/{place}.png", index_values(classes_of(0)))
    (root / "classes.yaml").write_text(TABLE)
    found = prepared(root, tmp_path / "out")
    assert [len(found[split]) for split in ("train", "val")] == [2, 1]


def test_contradicting_lists_are_refused(tmp_path):
    root = write_voc(tmp_path / "voc")
    lists = root / LISTS
    (lists / "train.txt").write_text("0\n3\n")
    with pytest.raises(ValueError, match=r"1 names, such as 3, are in both train.txt and val.txt"):
        prepared(root, tmp_path / "out")
    (lists / "val.txt").write_text("4\n9\n")
    with pytest.raises(ValueError, match=r"9: ImageSets/Segmentation/val.txt lists it, but it has no picture"):
        prepared(root, tmp_path / "out")
    (lists / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"val.txt does not exist; write the official split there"):
        prepared(root, tmp_path / "out")


def test_label_maps_belong_to_the_pixels_as_stored(tmp_path, caplog):
    root = tmp_path / "own"
    for split, number in (("train", 0), ("val", 1)):
        write_pair(root / f"pictures/{split}/{number}.png", root / f"labels/{split}/{number}.png", number)
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    path = root / "pictures/train/0.jpg"
    Image.open(root / "pictures/train/0.png").save(path, quality=95, exif=upside_down)
    (root / "pictures/train/0.png").unlink(), (root / "classes.yaml").write_text(TABLE)
    with caplog.at_level(logging.INFO):
        sample = prepared(root, tmp_path / "out")["train"]["pictures/train/0.jpg"]
    x, sky = decode_jpeg(sample.jpeg), sample.segment_class[sample.segments] == 3
    assert np.abs(x[sky].mean(0) - (90, 150, 220)).max() < 5  # the labelled sky is blue
    assert "keeps its pixels as stored" in caplog.text
