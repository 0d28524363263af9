"""Pictures with label maps: values map to classes, instances are separated, bad pairs are skipped by name."""

import json
import logging
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from egic.training.crops import CropConfig, apply_plan, decode_label_png, decode_panoptic_png, plan_center_crop
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest, read_index, read_samples
from jobs.data.sources.coco_classes import CATEGORIES
from jobs.data.sources.folders import LABEL_MAPS, kind_of
from jobs.data.sources.label_maps import regions
from tests.own_data import COLOURS, TABLE, VALUES, classes_of, index_values, picture_of, write_label_maps, write_map


def prepared(folder: Path, out: Path, **options):
    made = prepare((folder,), str(out), PrepareConfig(**options))
    return {split: load_manifest(path) for split, path in made.items()}


def samples(manifest) -> dict:
    """Samples by file name."""
    names = [name.as_py() for name in read_index(manifest).file_name]
    return dict(zip(names, read_samples(manifest, range(len(names))), strict=True))


def test_every_pixel_has_the_class_of_its_value(tmp_path):
    root = write_label_maps(tmp_path / "own")
    assert kind_of(root) == LABEL_MAPS
    found = prepared(root, tmp_path / "out")
    assert {k: (m.num_samples, m.num_classes) for k, m in found.items()} == {"train": (4, 5), "val": (2, 5)}
    assert found["train"].class_names == ("ball", "box", "sky", "grass", "no")
    every = samples(found["train"]) | samples(found["val"])
    for number in range(6):
        sample = every[f"pictures/{'val' if number % 3 == 2 else 'train'}/{number}.png"]
        assert np.array_equal(sample.segment_class[sample.segments], classes_of(number))
    pixels = sum(np.bincount(classes_of(n).ravel(), minlength=6) for n in (0, 1, 3, 4))
    assert found["train"].class_pixels == tuple(pixels) and found["train"].class_images == (4,) * 6


def grey_png(values: np.ndarray, depth: int) -> bytes:
    """A greyscale PNG with fewer than 8 bits per sample, which Pillow reads but does not write."""
    height, width = values.shape
    bits = (values[..., None] >> np.arange(depth)[::-1] & 1).reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row.astype(np.uint8)).tobytes() for row in bits)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in [*chunks, (b"IEND", b"")]:
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_maps_of_every_depth_are_read(tmp_path, depth):
    values = (np.arange(70).reshape(7, 10) * 937 % 2**depth).astype(np.uint16 if depth == 16 else np.uint8)
    path = tmp_path / "map.png"
    write_map(path, values) if depth >= 8 else path.write_bytes(grey_png(values, depth))
    assert np.array_equal(decode_label_png(path.read_bytes(), colours=False), values)


def test_palettes_are_read_as_positions_or_colours_as_in_the_table(tmp_path):
    image = Image.fromarray((np.arange(30).reshape(5, 6) % 3).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 70, 130, 180, 1, 2, 3])
    image.save(tmp_path / "map.png", bits=2)
    png = (tmp_path / "map.png").read_bytes()
    assert np.array_equal(decode_label_png(png, colours=False), np.arange(30).reshape(5, 6) % 3)
    expected = np.array([0, 0x4682B4, 0x010203])[np.arange(30).reshape(5, 6) % 3]
    assert np.array_equal(decode_label_png(png, colours=True), expected)
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "rgba.png")
    rgba = (tmp_path / "rgba.png").read_bytes()
    assert not decode_label_png(rgba, colours=True).any() and not decode_label_png(rgba).any()
    with pytest.raises(ValueError, match="label map has mode RGBA; index values need grey or a palette"):
        decode_label_png(rgba, colours=False)
    Image.new("LA", (4, 4)).save(tmp_path / "la.png")
    with pytest.raises(ValueError, match="label map has mode LA"):
        decode_label_png((tmp_path / "la.png").read_bytes())


def test_colour_maps_in_the_layout_of_cityscapes_are_read(tmp_path):
    """Suffixes and folders per city as in Cityscapes; the splits are the folders of the pictures."""
    root, places = tmp_path / "own", ("train/aachen", "train/bochum", "val/lindau")
    for number, place in enumerate(places):
        name, classes = f"{place}/{place[-3:]}_{number}", classes_of(number)
        write_map(root / f"leftImg8bit/{name}_leftImg8bit.png", picture_of(classes, number))
        write_map(root / f"gtFine/{name}_gtFine_color.png", COLOURS[classes])
        write_map(root / f"gtFine/{name}_gtFine_labelIds.png", np.zeros_like(classes, np.uint8))  # unused
        # as Cityscapes numbers instances: 1000 * class + n, only the class where they are not separated
        instances = np.where(classes == 2, 2000 + (np.arange(128) > 100), classes).astype(np.uint16)
        instances[classes == 1] = 0
        write_map(root / f"gtFine/{name}_gtFine_instanceIds.png", instances)
    c = ["'#{:02x}{:02x}{:02x}'".format(*colour) for colour in COLOURS]
    table = tmp_path / "cities.yaml"
    table.write_text(
        "pictures: leftImg8bit/*_leftImg8bit\nlabels: gtFine/*_gtFine_color\ninstances: gtFine/*_gtFine_instanceIds\n"
        f"things: {{ball: {c[1]}, box: {c[2]}}}\nstuff: {{sky: {c[3]}, grass: {c[4]}}}\n"
    )
    found = prepared(root, tmp_path / "out", classes=table, max_bad=0)
    every = samples(found["train"]) | samples(found["val"])
    assert sorted(every) == [f"leftImg8bit/{p}/{p[-3:]}_{i}_leftImg8bit.png" for i, p in enumerate(places)]
    for number, name in enumerate(sorted(every)):
        sample, classes = every[name], classes_of(number)
        assert np.array_equal(sample.segment_class[sample.segments], np.where(classes == 5, 0, classes))
        things = sorted(zip(sample.segment_class.tolist(), sample.segment_thing.tolist(), strict=True))
        assert things == [(0, 0), (1, 0), (2, 1), (2, 1), (3, 0), (4, 0)]  # two boxes; the ball is not an instance


def test_without_instance_maps_connected_regions_of_things_are_instances(tmp_path):
    root = write_label_maps(tmp_path / "own", 3)
    (sample,) = samples(prepared(root, tmp_path / "out")["val"]).values()
    things = [c for c, thing in zip(sample.segment_class, sample.segment_thing, strict=True) if thing]
    assert sorted(things) == [1, 2, 2]  # the two boxes are separate
    crop = CropConfig(size=96, longer_side=128, small_instance_pixels=300)
    _, label, weight = apply_plan(sample, plan_center_crop(96, 128, crop), crop)
    assert (weight[label == 2] == 3).all() and (weight[label != 2] == 1).all()  # 200 pixels each; the ball has 700
    assert np.count_nonzero(label == 2) > 300  # together they would not be small


def test_regions_may_wind_and_are_connected_at_corners():
    text = """
    1.1.2
    .1.22
    1.1.1
    11111
    .....
    2.1.1
    """
    classes = np.array([[int(c.replace(".", "0")) for c in line] for line in text.split()], np.uint8)
    found = regions(classes)
    assert len(np.unique(found[:4][classes[:4] == 1])) == 1 and len(np.unique(found[classes == 1])) == 3
    assert len(np.unique(found[classes == 2])) == 2 and len(np.unique(found[4])) == 1
    pairs = {(int(c), int(r)) for c, r in zip(classes.ravel(), found.ravel(), strict=True)}
    assert len(pairs) == len({r for _, r in pairs})  # no region has two values
    snake = np.zeros((41, 41), np.uint8)
    snake[::2] = 1
    snake[1::4, -1] = snake[3::4, 0] = 1
    assert len(np.unique(regions(snake)[snake == 1])) == 1
    noise = np.arange(600 * 600).reshape(600, 600) % 7
    with pytest.raises(ValueError, match="connected regions; at most 65535"):
        regions(noise.astype(np.uint8) * (np.arange(600) % 2 == 0)[:, None])


def damage(root: Path, what: str) -> None:
    """Damage one sample of a valid folder in one way."""
    picture, labels = root / "pictures/train/0.png", root / "labels/train/0.png"
    if what == "no map":
        labels.unlink()
    elif what == "no picture":
        picture.unlink()
    elif what == "size":
        write_map(labels, np.zeros((20, 30), np.uint8))
    elif what == "cut":
        labels.write_bytes(labels.read_bytes()[:-30])
    elif what == "no png":
        labels.write_text("nothing")
    elif what == "bomb":
        Image.new("L", (9000, 9000)).save(labels)
    elif what == "colours":
        write_map(labels, np.zeros((96, 128, 3), np.uint8))
    elif what == "picture cut":
        picture.write_bytes(picture.read_bytes()[:-300])
    elif what == "twice":
        Image.new("RGB", (9, 9)).save(picture.with_suffix(".jpg"))
        picture.with_suffix(".jpg").rename(picture.parent / "0.bmp")
    elif what == "tiff map":
        Image.fromarray(index_values(classes_of(0))).save(labels.with_suffix(".TIF"), "TIFF")
        labels.unlink()
    elif what == "map outside":
        labels.rename(root.parent / "labels.png")
        labels.symlink_to(root.parent / "labels.png")


@pytest.mark.parametrize(
    ("what", "name", "reason"),
    [
        ("no map", "pictures/train/0.png", "no label map labels/train/0.png"),
        ("no picture", "labels/train/0.png", "label map without picture"),
        ("size", "pictures/train/0.png", "0.png is 30x20, the picture 128x96"),
        ("cut", "pictures/train/0.png", "0.png: truncated or damaged PNG"),
        ("no png", "pictures/train/0.png", "0.png: not a readable PNG"),
        ("bomb", "pictures/train/0.png", "0.png: 9000x9000 pixels are over"),
        ("colours", "pictures/train/0.png", "0.png: label map has mode RGB; index values need grey"),
        ("picture cut", "pictures/train/0.png", "damaged picture"),
        ("twice", "pictures/train/0.png", "has the same name as pictures/train/0.bmp"),
        ("tiff map", "pictures/train/0.png", "its label map labels/train/0.TIF is not a PNG file; convert it"),
        ("map outside", "labels/train/0.png", "a link to a place outside the folder"),
    ],
)
def test_a_bad_sample_is_named_and_skipped_up_to_the_limit(tmp_path, caplog, what, name, reason):
    root = write_label_maps(tmp_path / "own", 3)
    damage(root, what)
    with caplog.at_level(logging.WARNING):
        found = prepared(root, tmp_path / "out")
    assert f"skipped {name}: {reason}" in caplog.text
    assert found["train"].num_samples == 1 and found["val"].num_skipped == 0
    with pytest.raises(ValueError, match="more than 0 bad samples .*--max-bad"):
        prepared(root, tmp_path / "strict", max_bad=0)


def test_two_pictures_with_one_label_map_are_both_bad(tmp_path, caplog):
    root = write_label_maps(tmp_path / "own", 3)
    shutil.copy(root / "pictures/train/1.png", root / "pictures/train/0.bmp")  # of the same size, but not labelled
    assert prepared(root, tmp_path / "out")["train"].num_samples == 1
    assert "skipped pictures/train/0.bmp: has the same name as pictures/train/0.png" in caplog.text


def test_pictures_without_maps_can_be_kept_as_void(tmp_path):
    root = write_label_maps(tmp_path / "own", 3)
    damage(root, "no map")
    found = prepared(root, tmp_path / "out", allow_unlabelled=True, max_bad=0)
    sample = samples(found["train"])["pictures/train/0.png"]
    assert not sample.segment_class[sample.segments].any() and found["train"].num_classes == 5


def test_edited_labels_and_tables_are_prepared_again(tmp_path):
    root, out = write_label_maps(tmp_path / "own", 3), tmp_path / "out"
    first = prepared(root, out)
    assert prepared(root, out) == first
    (root / "classes.yaml").write_text(TABLE.replace("ball", "globe"))
    second = prepared(root, out)
    assert second["train"].class_names[0] == "globe" and second["train"].digest != first["train"].digest
    write_map(root / "labels/train/0.png", np.where(index_values(classes_of(0)) == 40, 1, 65535).astype(np.uint16))
    assert prepared(root, out)["train"].class_pixels[1] < first["train"].class_pixels[1]


def test_a_table_that_does_not_fit_the_labels_is_detected(tmp_path, caplog):
    root = write_label_maps(tmp_path / "own", 3, TABLE.replace("40", "41"))
    with caplog.at_level(logging.INFO):
        prepared(root, tmp_path / "out")
    assert "train: 4 of 5 classes have pixels; without any: ball" in caplog.text
    assert "names no instance maps; connected regions of things count as instances" in caplog.text
    (root / "classes.yaml").write_text("stuff: {a: 8, b: 9}")
    with pytest.raises(ValueError, match="train: no pixel has one of the 2 classes; check that the labels use them"):
        prepared(root, tmp_path / "other")


def test_folders_in_the_table_must_exist_inside_the_data_folder(tmp_path):
    root = write_label_maps(tmp_path / "own", 3)
    (root / "classes.yaml").write_text(TABLE + "labels: maps/*\n")
    with pytest.raises(ValueError, match="own/maps does not exist; put the labels there, or name their folder"):
        prepared(root, tmp_path / "out")
    (root / "maps").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="own/maps is a link to a place outside"):
        prepared(root, tmp_path / "out")
    with pytest.raises(ValueError, match="mine.yaml does not exist; it lists the classes"):
        prepared(root, tmp_path / "out", classes=tmp_path / "mine.yaml")


def test_the_tests_table_matches_its_constants():
    assert set(np.unique(index_values(classes_of(0)))) == {v for values in VALUES.values() for v in values} | {65535}


def as_label_maps(coco_root: Path, folder: Path) -> Path:
    """The small COCO tree in the layout of ADE20K, with index values, instance maps and a class table."""
    classes = {category.id: c for c, category in enumerate(CATEGORIES, start=1)}
    for split, place in (("train", "training"), ("val", "validation")):
        pngs = coco_root / "annotations" / f"panoptic_{split}2017"
        content = json.loads(pngs.with_suffix(".json").read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            png, name = (pngs / annotation["file_name"]).read_bytes(), Path(names[annotation["image_id"]]).stem
            ids = decode_panoptic_png(png)
            labels, instances = np.zeros(ids.shape, np.uint8), np.zeros(ids.shape, np.uint16)
            for number, segment in enumerate(annotation["segments_info"], start=1):
                if not segment["iscrowd"]:
                    labels[ids == segment["id"]] = classes[segment["category_id"]]
                    instances[ids == segment["id"]] = number
            write_map(folder / f"annotations/{place}/{name}.png", labels)
            write_map(folder / f"instances/{place}/{name}.png", instances)
            (folder / f"images/{place}").mkdir(parents=True, exist_ok=True)
            shutil.copy(coco_root / f"{split}2017/{name}.jpg", folder / f"images/{place}/{name}.jpg")
    sections = {"things": {}, "stuff": {}}
    for category in CATEGORIES:
        sections["things" if category.isthing else "stuff"][category.name] = classes[category.id]
    places = {"pictures": "images/*", "labels": "annotations/*", "instances": "instances/*"}
    (folder / "classes.yaml").write_text(yaml.safe_dump(places | sections, sort_keys=False))
    return folder


def test_the_same_labels_make_the_same_crops_as_a_coco_tree(tmp_path, coco_root):
    one = prepared(as_label_maps(coco_root, tmp_path / "own"), tmp_path / "out", max_bad=0)
    two = prepared(coco_root, tmp_path / "coco", max_bad=0)
    for split in ("train", "val"):
        assert one[split].class_names == two[split].class_names and one[split].class_pixels == two[split].class_pixels
        coco = samples(two[split])
        for name, sample in samples(one[split]).items():
            other = coco[Path(name).name]
            assert sample.jpeg == other.jpeg
            plan = plan_center_crop(*sample.segments.shape, CropConfig())
            mine, theirs = (apply_plan(s, plan, CropConfig()) for s in (sample, other))
            assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))  # pixels, labels, weights
