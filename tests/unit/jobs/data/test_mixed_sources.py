"""Several folders as one data set: names, splits, classes, and photographs without labels."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.commands.dry_run import num_pictures
from jobs.data.datasets import open_data
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest, read_index, read_samples
from jobs.data.sources.folders import PHOTOGRAPHS, folders_of, kind_of
from tests.own_data import write_label_maps, write_photographs
from tests.unit.jobs.data.test_preparation import CLASS, SKY, write_tree

ROOT = Path(__file__).parents[4]


def coco_tree(folder: Path, train: int = 3, val: int = 2) -> Path:
    return write_tree(write_tree(folder, num=train), num=val, split="val")


def prepared(folders, out: Path, **options) -> dict:
    """Manifests of train and val."""
    made = prepare(tuple(folders), str(out), PrepareConfig(**options))
    return {split: load_manifest(path, check_shards=True) for split, path in made.items()}


def names(manifest) -> list[str]:
    return [name.as_py() for name in read_index(manifest).file_name]


def test_a_coco_tree_and_photographs_become_one_data_set(tmp_path):
    coco, photos = coco_tree(tmp_path / "coco"), write_photographs(tmp_path / "photos", 10)
    found = prepared([photos, coco], tmp_path / "out", val_share=0.2)
    assert {k: (m.num_samples, m.num_classes) for k, m in found.items()} == {"train": (11, 133), "val": (4, 133)}
    every = {split: names(manifest) for split, manifest in found.items()}
    assert all(len(set(names)) == len(names) for names in every.values())
    coco_train = {f"coco/{number:012d}.jpg" for number in range(3)}
    assert {name for name in every["train"] if name.startswith("coco/")} == coco_train  # the official split
    assert {name for name in every["val"] if name.startswith("coco/")} == {f"coco/{n:012d}.jpg" for n in range(2)}
    assert sum(name.startswith("photos/") for name in every["train"]) == 8
    assert found["train"].class_pixels[CLASS[SKY]] == 3 * 24 * 40
    for name, sample in zip(every["train"], read_samples(found["train"], range(11)), strict=True):
        labels = sample.segment_class[sample.segments]
        assert labels.any() == name.startswith("coco/"), name  # all pixels of a photograph are void


def test_the_validation_share_applies_to_each_folder_of_photographs(tmp_path):
    one, two = write_photographs(tmp_path / "one", 10), write_photographs(tmp_path / "two", 10)
    alone = prepared([one], tmp_path / "alone", val_share=0.2)
    both = prepared([one, two], tmp_path / "both", val_share=0.2)
    assert {n for n in names(both["val"]) if n.startswith("one/")} == {f"one/{n}" for n in names(alone["val"])}
    assert both["val"].num_samples == 4 and both["val"].num_classes == 0


def test_pictures_of_folders_with_the_same_name_stay_separate(tmp_path):
    places = [write_photographs(tmp_path / where / "photos", 4) for where in ("home", "work")]
    found = prepared(places, tmp_path / "out")
    every = names(found["train"]) + names(found["val"])
    assert len(set(every)) == 8
    assert {name.rpartition("/photos/")[0] for name in every} == {"home", "work"}


def test_a_single_folder_is_stored_without_a_prefix(tmp_path):
    found = prepared([coco_tree(tmp_path / "coco")], tmp_path / "out")
    assert sorted(names(found["train"])) == [f"{number:012d}.jpg" for number in range(3)]


def test_a_change_in_one_folder_is_detected(tmp_path):
    coco, photos, out = coco_tree(tmp_path / "coco"), write_photographs(tmp_path / "photos", 4), tmp_path / "out"
    first = prepared([coco, photos], out)
    before = (out / "train/manifest.json").stat().st_ino
    assert prepared([coco, photos], out) == first and (out / "train/manifest.json").stat().st_ino == before
    (photos / "0.jpg").write_bytes((photos / "2.jpg").read_bytes())
    assert prepared([coco, photos], out) != first


def test_two_class_tables_are_one_clear_error(tmp_path):
    coco, maps = coco_tree(tmp_path / "coco"), write_label_maps(tmp_path / "maps")
    with pytest.raises(ValueError, match=r"coco has 133 classes and .*maps has 5; one set needs one class table"):
        prepared([coco, maps], tmp_path / "out")
    other = coco_tree(tmp_path / "other")
    for split in ("train", "val"):
        path = other / f"annotations/panoptic_{split}2017.json"
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = "human"
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"person, id 1, is human, id 1, in the second"):
        prepared([coco, other], tmp_path / "out")
    assert not (tmp_path / "out/train").exists()
    again = write_label_maps(tmp_path / "again")
    assert prepared([maps, again], tmp_path / "same")["train"].num_classes == 5


@pytest.mark.parametrize("second, message", [("photos", "is given twice"), ("photos/holidays", "is inside")])
def test_a_folder_may_be_given_once_only(tmp_path, second, message):
    write_photographs(tmp_path / "photos", 4)
    with pytest.raises(ValueError, match=f"{message}.*; give each folder once"):
        prepared([tmp_path / "photos", tmp_path / second], tmp_path / "out")


def test_errors_name_bad_pictures_with_their_folder(tmp_path, caplog):
    coco, photos = coco_tree(tmp_path / "coco"), write_photographs(tmp_path / "photos", 4)
    (photos / "0.jpg").write_text("no picture"), (coco / "train2017/000000000001.jpg").unlink()
    with caplog.at_level(logging.INFO):
        found = prepared([coco, photos], tmp_path / "out")
    assert found["train"].num_skipped + found["val"].num_skipped == 2
    assert "skipped photos/0.jpg: " in caplog.text and "skipped coco/000000000001.jpg: " in caplog.text


def test_the_command_accepts_several_folders(tmp_path):
    coco_tree(tmp_path / "coco"), write_photographs(tmp_path / "photos", 4)
    command = [sys.executable, "-m", "jobs.prepare", "coco", "photos", "out", "--val-share", "0.25"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert "train: 6 samples" in done.stdout and "val: 3 samples" in done.stdout


def test_data_accepts_several_folders(tmp_path):
    coco, photos = coco_tree(tmp_path / "coco"), write_photographs(tmp_path / "photos", 4)
    manifests = open_data(f"{coco},{photos}", tmp_path / "outputs")
    assert manifests["train"].num_samples == 6 and manifests["train"].num_classes == 133
    comma = write_photographs(tmp_path / "red, green", 4)
    assert folders_of(str(comma)) == (comma,) and folders_of(f"{coco}, {photos}") == (coco, photos)
    assert num_pictures(comma, kind_of(comma)) == {"train": 3, "val": 1} and kind_of(comma) == PHOTOGRAPHS


def test_all_void_validation_pictures_do_not_hide_the_labels(tmp_path):
    coco, photos = coco_tree(tmp_path / "coco"), write_photographs(tmp_path / "photos", 4)
    found = prepared([coco, photos], tmp_path / "out")
    content = json.loads((tmp_path / "out/val/manifest.json").read_text())
    assert content["num_all_void"] == 1 and np.sum(found["val"].class_pixels[1:]) > 0


@pytest.mark.parametrize(("one", "two"), [("train", "val"), ("DIV2K_train_HR", "DIV2K_valid_HR"), ("Training", "test")])
def test_folders_of_two_splits_are_not_split_again(tmp_path, one, two):
    folders = [write_photographs(tmp_path / "data" / name, 4) for name in (one, two)]
    with pytest.raises(ValueError, match=rf"{one} and .*{two} are named after two splits, .*such as .*data.$"):
        prepared(folders, tmp_path / "out")
    other = write_photographs(tmp_path / "holidays", 4)
    assert prepared([folders[0], other], tmp_path / "out")["train"].num_samples == 6
    if two != "test":
        assert {n.split("/")[0] for n in names(prepared([tmp_path / "data"], tmp_path / "out2")["train"])} == {one}
