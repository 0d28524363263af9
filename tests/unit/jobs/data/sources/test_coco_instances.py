"""COCO instances and stuff of labelling tools: order of painting, and unusual exports, which are read or named."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from egic.training.crops import decode_panoptic_png
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest, read_index, read_samples
from jobs.data.sources.folders import INSTANCES, kind_of
from jobs.data.sources.scenes.scenes import SceneConfig, write_scenes

H, W = 40, 60
CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 7, "name": "ball"}]
SKY = {"id": 120, "name": "sky"}


def box(top: int, left: int, bottom: int, right: int) -> list[float]:
    """A polygon around these pixels."""
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(category: int, segmentation, **more) -> dict:
    return {"image_id": 1, "category_id": category, "segmentation": segmentation, **more}


def write_json(path: Path, annotations: list[dict], categories=None, images=None, num: int = 1) -> Path:
    """A JSON of `num` images with the same annotations."""
    listed = images or [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in range(1, num + 1)]
    given = [a | {"image_id": image["id"]} for image in listed for a in copy.deepcopy(annotations)]
    for number, each in enumerate(given):
        each["id"] = number
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": listed, "annotations": given, "categories": categories or CATEGORIES}))
    return path


def write_pictures(folder: Path, names, size=(W, H)) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (9, 99, 9)).save(folder / name, "JPEG" if name.lower().endswith("jpg") else None)


def tree(root: Path, annotations: list[dict], stuff: list[dict] | None = None) -> Path:
    """The official layout with one picture for each split."""
    for split in ("train", "val"):
        write_pictures(root / f"{split}2017", ["1.jpg"])
        write_json(root / f"annotations/instances_{split}2017.json", annotations)
        if stuff is not None:
            write_json(root / f"annotations/stuff_{split}2017.json", stuff, [SKY, {"id": 183, "name": "other"}])
    return root


def prepared(root, out: Path, **options):
    """Names and samples of each split, and the train manifest."""
    options.setdefault("max_bad", 0)
    places = root if isinstance(root, list) else [root]
    found, manifests = {}, {}
    for split, path in prepare(places, out, PrepareConfig(**options)).items():
        manifests[split] = load_manifest(path)
        names = [name.as_py() for name in read_index(manifests[split]).file_name]
        found[split] = dict(zip(names, read_samples(manifests[split], range(len(names))), strict=True))
    return found, manifests["train"]


def only(found: dict) -> np.ndarray:
    """Class map of the one training picture."""
    (sample,) = found["train"].values()
    return sample.segment_class[sample.segments]


def names_of(found, manifest) -> np.ndarray:
    return np.array(["void", *manifest.class_names])[only(found)]


def test_small_things_are_painted_over_large_ones_and_things_over_stuff(tmp_path):
    things = [
        annotation(7, [box(10, 10, 16, 20)]),  # small, listed first
        annotation(3, [box(5, 5, 35, 40)]),
        annotation(7, [box(20, 20, 26, 26), box(20, 30, 26, 36)]),  # one object in two parts
        annotation(3, [box(30, 35, 40, 55)], iscrowd=0),
    ]
    stuff = [annotation(120, [box(0, 0, 30, 60)]), annotation(183, [box(0, 0, 40, 60)])]
    root = tree(tmp_path / "coco", things, stuff)
    assert kind_of(root) == INSTANCES
    found, manifest = prepared(root, tmp_path / "out")
    assert manifest.class_names == ("dog", "ball", "sky")  # `other` is void
    expected = np.full((H, W), "void", dtype="<U4")
    expected[:30] = "sky"
    expected[5:35, 5:40] = expected[30:40, 35:55] = "dog"
    expected[10:16, 10:20] = expected[20:26, 20:26] = expected[20:26, 30:36] = "ball"
    assert (names_of(found, manifest) == expected).all()
    (sample,) = found["train"].values()
    assert sorted(zip(sample.segment_class.tolist(), sample.segment_thing.tolist(), strict=True)) == [
        (0, 0), (1, 1), (1, 1), (2, 1), (2, 1), (3, 0),
    ]  # fmt: skip
    two_parts = sample.segments[[20, 20], [20, 30]]
    assert two_parts[0] == two_parts[1] != sample.segments[10, 10]


def test_crowds_are_void_below_things(tmp_path):
    counts = rle.encode(np.asfortranarray(np.pad(np.ones((20, 30), np.uint8), ((0, 20), (0, 30)))))["counts"].decode()
    crowd = annotation(3, {"size": [H, W], "counts": counts}, iscrowd=1)
    root = tree(tmp_path / "coco", [crowd, annotation(7, [box(5, 5, 10, 10)])], [annotation(120, [box(0, 0, 40, 60)])])
    labels = names_of(*prepared(root, tmp_path / "out"))
    assert (labels[5:10, 5:10] == "ball").all() and (labels[20:] == "sky").all() and (labels[:20, 30:] == "sky").all()
    assert (labels[:20, :30] == "void").sum() == 600 - 25


@pytest.mark.parametrize("name", ["sky", "ground"])
def test_uncovered_pixels_can_be_a_stuff_class(tmp_path, name):
    root = tree(tmp_path / "coco", [annotation(3, [box(0, 0, 10, 10)])], [annotation(120, [box(20, 0, 40, 60)])])
    found, manifest = prepared(root, tmp_path / "out", background=name)
    labels = names_of(found, manifest)
    assert labels[15, 15] == name and labels[30, 30] == "sky" and labels[5, 5] == "dog"
    assert manifest.class_names == (("dog", "ball", "sky") if name == "sky" else ("dog", "ball", "sky", "ground"))
    assert names_of(*prepared(root, tmp_path / "void"))[15, 15] == "void"
    with pytest.raises(ValueError, match="--background dog is a class of things"):
        prepared(root, tmp_path / "thing", background="dog")


def as_list(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE: runs by columns, zeros first."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return np.diff(np.concatenate([[0], ends])).tolist()


MASK = np.pad(np.ones((10, 20), np.uint8), ((5, 25), (10, 30)))
COUNTS = rle.encode(np.asfortranarray(MASK))["counts"]


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [H, W], "counts": COUNTS.decode()},
        {"size": [H, W], "counts": str(COUNTS)},  # bytes written as text by Python
        {"size": [H, W], "counts": as_list(MASK)},
        [box(5, 10, 15, 30)],
        box(5, 10, 15, 30),  # flat
        [[str(v) for v in box(5, 10, 15, 30)]],
        [[10.0, 5.0, 30.0, 5.0, 30.0, 15.0, 10.0, 15.0], [], [1.0, 2.0]],  # empty parts and a valid one
    ],
)
def test_every_form_of_an_outline_is_read(tmp_path, segmentation):
    labels = names_of(*prepared(tree(tmp_path / "coco", [annotation(7, segmentation)]), tmp_path / "out"))
    assert ((labels == "ball") == MASK.astype(bool)).all()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "1 boxes alone"), (None, "1 boxes alone"), ([[]], "polygons with fewer than three corners"),
        ([[1, 2, 3, 4]], "polygons with fewer than three"), ([["a"]], "broken polygons"), ("x", "broken polygons"),
        ([[1, 2, 3, float("nan"), 5, 6]], "polygons with fewer"), ({"counts": "", "size": [H, W]}, "broken RLE"),
        ({"counts": "abc"}, "broken RLE"),
    ],
)  # fmt: skip
def test_annotations_without_an_outline_are_left_out_and_counted(tmp_path, caplog, segmentation, message):
    good = annotation(3, [box(0, 0, 10, 10)])
    labels = names_of(*prepared(tree(tmp_path / "coco", [good, annotation(7, segmentation)]), tmp_path / "out"))
    assert set(np.unique(labels)) == {"dog", "void"} and message in caplog.text
    with pytest.raises(ValueError, match="has only boxes or empty outlines; export polygons or masks"):
        prepared(tree(tmp_path / "none", [annotation(7, segmentation)]), tmp_path / "out2")


@pytest.mark.parametrize(
    "segmentation",
    [{"size": [H, W + 1], "counts": COUNTS.decode()}, {"size": [H, W], "counts": [5, 5]}],
)
def test_an_rle_of_another_size_is_an_error_of_that_picture(tmp_path, segmentation):
    with pytest.raises(ValueError, match="1.jpg: an RLE says .* or has other counts, the picture is 60x40"):
        prepared(tree(tmp_path / "coco", [annotation(7, segmentation)]), tmp_path / "out")


def test_different_sizes_are_an_error_of_that_picture(tmp_path):
    root = tree(tmp_path / "coco", [annotation(7, [box(0, 0, 9, 9)])])
    write_pictures(root / "train2017", ["1.jpg"], size=(W, H + 8))
    with pytest.raises(ValueError, match="1.jpg: the annotation file says 60x40, the picture is 60x48"):
        prepared(root, tmp_path / "out")


def test_text_ids_missing_sizes_and_a_byte_order_mark_are_accepted(tmp_path):
    root = tmp_path / "own"
    write_pictures(root / "images", [f"{i}.jpg" for i in range(10)])
    images = [{"id": f"img-{i}", "file_name": f"{i}.jpg"} for i in range(10)]
    categories = [{"id": "dog", "name": "dog"}, {"id": "9", "name": "ball"}]
    given = [annotation("dog", [box(0, 0, 9, 9)]), annotation(9, [box(20, 20, 30, 30)])]
    path = write_json(root / "result.json", given, categories, images)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found, manifest = prepared(root, tmp_path / "out", val_share=0.2)
    assert {split: len(samples) for split, samples in found.items()} == {"train": 8, "val": 2}
    assert manifest.class_names == ("dog", "ball") and manifest.class_pixels[1:] == (8 * 81, 8 * 100)
    assert len(set(read_index(manifest).columns["image_id"].tolist())) == 8


def test_the_layout_of_roboflow_is_read(tmp_path, caplog):
    root = tmp_path / "own"
    given = [annotation(3, [box(0, 0, 9, 9)])]
    for split in ("train", "valid", "test"):  # with equal names, and a class that only groups the others
        write_pictures(root / split, ["1.jpg", "2.jpg"])
        write_json(root / split / "_annotations.coco.json", given, [{"id": 0, "name": "objects"}, *CATEGORIES], num=2)
    found, manifest = prepared(root, tmp_path / "out")
    assert {split: sorted(samples) for split, samples in found.items()} == {
        "train": ["train/1.jpg", "train/2.jpg"], "val": ["valid/1.jpg", "valid/2.jpg"],
    }  # fmt: skip
    assert manifest.class_names == ("objects", "dog", "ball")


@pytest.mark.parametrize(
    ("in_json", "on_disk"),
    [
        ("images/1.jpg", "images/1.jpg"), ("1.jpg", "images/a/1.JPG"), ("images\\1.jpg", "images/1.jpg"),
        ("./images//1.jpg", "images/1.jpg"), ("/data/upload/1.jpg", "images/1.jpg"), ("1.PNG", "images/1.png"),
    ],
)  # fmt: skip
def test_pictures_are_found_by_name(tmp_path, in_json, on_disk):
    root = tmp_path / "own"
    write_pictures(root, [on_disk, "images/2.jpg"])
    images = [{"id": i, "file_name": name, "height": H, "width": W} for i, name in ((1, in_json), (2, "2.jpg"))]
    write_json(root / "annotations/instances_default.json", [annotation(3, [box(0, 0, 9, 9)])], images=images)
    for place, out in ((root, "out"), (root / "annotations/instances_default.json", "out-json")):
        found, _ = prepared(place, tmp_path / out)
        assert {name for samples in found.values() for name in samples} == {on_disk, "images/2.jpg"}


def test_ambiguous_and_missing_pictures_are_named(tmp_path, caplog):
    root = tmp_path / "own"
    write_pictures(root, ["a/1.jpg", "b/1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3, 9)]
    write_json(root / "result.json", [annotation(3, [box(0, 0, 9, 9)])], images=images)
    with caplog.at_level(logging.INFO):
        prepared(root, tmp_path / "out", max_bad=2)
    assert "skipped 1.jpg: 2 pictures have this name: a/1.jpg, b/1.jpg" in caplog.text
    assert "skipped 9.jpg: annotation without picture" in caplog.text
    assert "3 pictures that the annotations do not list are left out" in caplog.text


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"id": 7}, {"id": "07"}, "two images of result.json have the id 7"),
        ({"file_name": "1.jpg"}, {"file_name": "1.jpg"}, "two images of result.json have this file_name"),
        (
            {"file_name": "a/1.jpg"},
            {"file_name": "b/1.jpg"},
            "it is the picture of two images of the JSON, a/1.jpg and",
        ),
    ],
)
def test_outlines_that_may_be_of_two_pictures_are_of_none(tmp_path, caplog, first, second, reason):
    root = tmp_path / "own"
    write_pictures(root, [f"{i}.jpg" for i in range(1, 6)])
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, 6)]
    images[0] |= first
    images[1] |= second
    write_json(root / "result.json", [annotation(3, [box(0, 0, 9, 9)])], images=images)
    found, _ = prepared(root, tmp_path / "out", max_bad=2)
    assert {name for samples in found.values() for name in samples} == {"3.jpg", "4.jpg", "5.jpg"}
    assert f"skipped 1.jpg: {reason}" in caplog.text


@pytest.mark.parametrize("train, val", [("train", "valid"), ("train_images", "val_images")])
def test_outlines_of_one_split_get_no_picture_of_the_other(tmp_path, caplog, train, val):
    root = tmp_path / "own"
    write_pictures(root, [f"{train}/1.jpg", f"{val}/1.jpg", f"{val}/2.jpg"])
    for split in ("train", "val"):
        write_json(root / f"annotations/instances_{split}.json", [annotation(3, [box(0, 0, 9, 9)])], num=2)
    found, _ = prepared(root, tmp_path / "out", max_bad=1)
    assert {split: sorted(samples) for split, samples in found.items()} == {
        "train": [f"{train}/1.jpg"], "val": [f"{val}/1.jpg", f"{val}/2.jpg"],
    }  # fmt: skip
    assert "skipped 2.jpg: annotation without picture" in caplog.text


def test_a_picture_of_both_splits_is_refused(tmp_path):
    root = tmp_path / "own"
    write_pictures(root, [f"images/{i}.jpg" for i in (1, 2, 3)])
    for split, numbers in (("train", (1, 2)), ("val", (2, 3))):
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in numbers]
        write_json(root / f"annotations/instances_{split}.json", [annotation(3, [box(0, 0, 9, 9)])], images=images)
    with pytest.raises(ValueError, match=r"1 pictures, such as images/2.jpg, are in the annotation files of both"):
        prepared(root, tmp_path / "out")


def test_folders_with_more_words_than_their_split_are_kept(tmp_path):
    root = tmp_path / "own"
    for folder in ("images_train", "images_val", "images_test"):
        write_pictures(root / folder, ["1.jpg", "2.jpg"])
        images = [{"id": i, "file_name": f"{folder}/{i}.jpg"} for i in (1, 2)]
        write_json(root / folder / "_annotations.coco.json", [annotation(3, [box(0, 0, 9, 9)])], images=images)
    found, _ = prepared(root, tmp_path / "out")
    assert {split: sorted(names) for split, names in found.items()} == {
        split: [f"images_{split}/{i}.jpg" for i in (1, 2)] for split in ("train", "val")
    }


def test_a_file_of_one_split_needs_the_other(tmp_path):
    root = tree(tmp_path / "coco", [annotation(3, [box(0, 0, 9, 9)])])
    train, val = (root / f"annotations/instances_{split}2017.json" for split in ("train", "val"))
    with pytest.raises(ValueError, match="instances_train2017.json holds nothing for val; give the file for it, too"):
        prepared(train, tmp_path / "out")
    found, _ = prepared([train, val], tmp_path / "both")
    assert sorted(found["val"]) == ["instances_val2017.json/val2017/1.jpg"] and len(found["train"]) == 1
    val.unlink()
    with pytest.raises(ValueError, match="has annotations for train and none for val"):
        prepared(root, tmp_path / "out")


def test_drawn_scenes_exported_as_instances_and_stuff_are_the_same_data(tmp_path):
    scenes = write_scenes(tmp_path / "scenes", SceneConfig(num_train=4, num_val=2, min_side=96, max_side=128))
    panoptic, _ = prepared(scenes, tmp_path / "panoptic")
    for split in ("train", "val"):
        pngs = scenes / f"annotations/panoptic_{split}2017"
        content = json.loads(pngs.with_suffix(".json").read_text())
        isthing = {c["id"]: c["isthing"] for c in content["categories"]}
        given: dict[int, list] = {0: [], 1: []}
        for each in content["annotations"]:
            ids = decode_panoptic_png((pngs / each["file_name"]).read_bytes())
            for segment in each["segments_info"]:
                encoded = rle.encode(np.asfortranarray((ids == segment["id"]).astype(np.uint8)))
                outline = {"size": encoded["size"], "counts": encoded["counts"].decode()}
                given[isthing[segment["category_id"]]].append(
                    {
                        "id": len(given[1]),
                        "image_id": each["image_id"],
                        "category_id": segment["category_id"],
                        "iscrowd": segment.get("iscrowd", 0),
                        "segmentation": outline,
                    }  # fmt: skip
                )
        for name, thing in (("instances", 1), ("stuff", 0)):
            categories = [{"id": c["id"], "name": c["name"]} for c in content["categories"] if c["isthing"] == thing]
            write = {"images": content["images"], "annotations": given[thing], "categories": categories}
            (scenes / f"annotations/{name}_{split}2017.json").write_text(json.dumps(write))
    for path in scenes.glob("annotations/panoptic_*.json"):
        path.rename(tmp_path / path.name)
    for path in list(scenes.glob("annotations/panoptic_*")):
        path.rename(tmp_path / path.name)
    found, manifest = prepared(scenes, tmp_path / "out")
    assert manifest.num_classes == 133
    for split, samples in found.items():
        for name, sample in samples.items():
            other = panoptic[split][name.removeprefix(f"{split}2017/")]
            assert sample.jpeg == other.jpeg
            assert np.array_equal(sample.segment_class[sample.segments], other.segment_class[other.segments])
            things = [(s.segment_thing * (s.segment_class > 0))[s.segments] for s in (sample, other)]
            assert np.array_equal(*things)


def test_a_background_needs_outlines(tmp_path):
    write_pictures(tmp_path / "photos", ["1.jpg", "2.jpg"])
    with pytest.raises(ValueError, match="--background sky is for COCO instances and stuff"):
        prepared(tmp_path / "photos", tmp_path / "out", background="sky")
