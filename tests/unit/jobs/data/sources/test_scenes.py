"""Drawn scenes: a valid COCO tree, the same bytes for a seed, with difficulties and statistics of photographs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egic.training.crops import decode_jpeg
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest
from jobs.data.sources.coco_classes import CATEGORIES
from jobs.data.sources.scenes import scenes
from jobs.data.sources.scenes.scenes import SceneConfig, write_scenes

SMALL = SceneConfig(num_train=12, num_val=4, min_side=160, max_side=240)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "coco", SMALL)


def test_it_is_a_valid_coco_tree(tree, tmp_path):
    paths = prepare((tree,), str(tmp_path), PrepareConfig(max_bad=0))
    train, val = (load_manifest(paths[split]) for split in ("train", "val"))
    assert (train.num_samples, val.num_samples, train.num_classes) == (12, 4, 133)
    shown = [name for name, images in zip(train.class_names, train.class_images[1:], strict=True) if images]
    assert 8 <= len(shown) <= 16 and {"person", "sports ball", "grass-merged"} <= set(shown)
    assert 0.002 < train.class_pixels[0] / sum(train.class_pixels) < 0.1  # void: edges, unlisted rocks, crowds


def test_json_agrees_with_the_png(tree):
    content = json.loads((tree / "annotations/panoptic_train2017.json").read_text())
    crowds = 0
    for annotation in content["annotations"]:
        png = Image.open(tree / "annotations/panoptic_train2017" / annotation["file_name"])
        ids = np.asarray(png).astype(int) @ (1, 256, 65536)
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in annotation["segments_info"]}
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            x, y, width, height = segment["bbox"]
            assert segment["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
            crowds += segment["iscrowd"]
    assert crowds > 0
    assert content["categories"] == [category._asdict() for category in CATEGORIES]


def test_the_same_seed_makes_the_same_bytes(tree, tmp_path):
    assert contents(write_scenes(tmp_path / "again", SMALL)) == contents(tree)
    other = SceneConfig(num_train=1, num_val=1, min_side=160, max_side=240, seed=1)
    first = "train2017/000000000001.jpg"
    assert contents(write_scenes(tmp_path / "other", other))[first] != contents(tree)[first]


def test_finished_tree_is_kept_and_another_config_replaces_it(tmp_path):
    one = SceneConfig(num_train=2, num_val=1, min_side=64, max_side=96)
    root = write_scenes(tmp_path / "a", one)
    picture = root / "train2017/000000000002.jpg"
    before = picture.stat().st_mtime_ns
    write_scenes(root, one)
    assert picture.stat().st_mtime_ns == before
    write_scenes(root, SceneConfig(num_train=1, num_val=1, min_side=64, max_side=96))
    assert not picture.exists()


def test_an_incomplete_tree_of_a_killed_run_is_drawn_again(tmp_path, monkeypatch):
    one = SceneConfig(num_train=2, num_val=1, min_side=64, max_side=96)
    whole = contents(write_scenes(tmp_path / "whole", one))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jobs.data.sources.scenes.scenes._write_split", interrupted(scenes._write_split))
        write_scenes(tmp_path / "a", one)
    assert contents(tmp_path / "a").keys() < whole.keys()
    assert contents(write_scenes(tmp_path / "a", one)) == whole


def interrupted(write_split):
    """`_write_split` that stops at the second split."""

    def write(root: Path, split: str, *args) -> None:
        if split == "val":
            raise KeyboardInterrupt
        write_split(root, split, *args)

    return write


def test_a_folder_with_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no drawn scenes"):
        write_scenes(tmp_path, SMALL)


def test_pictures_have_photographic_spectra(tree):
    """Power falls with frequency about as 1/f^2 (slope -1.5 .. -3 as for photographs), down to fine grain."""
    slopes = []
    for path in sorted((tree / "train2017").glob("*.jpg")):
        grey = decode_jpeg(path.read_bytes())[:160, :160].mean(-1)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(np.hanning(160), np.hanning(160)))) ** 2
        f = np.hypot(*np.meshgrid(np.fft.fftfreq(160), np.fft.fftfreq(160)))
        bands = [(low, low * 1.5) for low in (0.03, 0.05, 0.08, 0.13, 0.2)]
        mean = [power[(f >= low) & (f < high)].mean() for low, high in bands]
        slopes.append(np.polyfit(np.log([low for low, _ in bands]), np.log(mean), 1)[0])
    assert -3 < np.median(slopes) < -1.2


@pytest.mark.parametrize("wrong", [{"num_train": 0}, {"min_side": 63}, {"min_side": 500}])
def test_errors_name_the_invalid_field(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        SceneConfig(**wrong)
