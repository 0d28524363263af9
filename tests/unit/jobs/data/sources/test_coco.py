"""COCO panoptic trees of other tools: various ids, names and formats, and errors that name the cause."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egic.training.crops import decode_jpeg
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest, read_index, read_samples
from tests.unit.jobs.data.test_preparation import CAT, CLASS, PERSON, SKY, edit_json, write_tree


def prepared(root: Path, out: Path, **options):
    options.setdefault("max_bad", 0)
    return load_manifest(prepare((root,), out, PrepareConfig(split="train", **options))["train"])


def samples(manifest) -> dict:
    names = [name.as_py() for name in read_index(manifest).file_name]
    return dict(zip(names, read_samples(manifest, range(len(names))), strict=True))


def write_png(path: Path, ids: np.ndarray) -> None:
    Image.fromarray((ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)).save(path)


def test_a_picture_in_an_unsupported_format_is_named(tmp_path, caplog):
    root = write_tree(tmp_path / "coco")
    (root / "train2017/000000000001.jpg").rename(root / "train2017/1.cr2")
    edit_json(root, lambda c: c["images"][1].update(file_name="1.cr2"))
    assert prepared(root, tmp_path / "out", max_bad=1).num_samples == 2
    assert "skipped 1.cr2: pictures of the format .cr2 are not read; convert it" in caplog.text


def text_ids(content: dict) -> None:
    for image in content["images"]:
        image["id"] = f"ADE_train_{image['id']:08d}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"ADE_train_{annotation['image_id']:08d}"


def other_numbers(content: dict) -> None:
    """Ids as pandas and JavaScript write them, and segments and categories as text."""
    for image in content["images"]:
        image["id"] = float(image["id"])
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        for segment in annotation["segments_info"]:
            segment |= {"id": str(segment["id"]), "category_id": float(segment["category_id"])}


@pytest.mark.parametrize("change", [text_ids, other_numbers])
def test_ids_may_be_text_or_floats(tmp_path, change):
    plain = prepared(write_tree(tmp_path / "plain"), tmp_path / "out-plain")
    root = write_tree(tmp_path / "coco")
    edit_json(root, change)
    found = prepared(root, tmp_path / "out")
    assert found.class_pixels == plain.class_pixels and found.num_samples == 3
    assert len(set(read_index(found).columns["image_id"].tolist())) == 3
    if change is other_numbers:
        assert found.digest == plain.digest


def rename_pictures(root: Path, how, in_json=None) -> None:
    """Move each picture to how(name), and write that name, or in_json(name), into the JSON."""
    folder = root / "train2017"
    for path in sorted(folder.iterdir()):
        target = folder / how(path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for_json = in_json or how
    edit_json(root, lambda c: [i.update(file_name=for_json(i["file_name"])) for i in c["images"]])


@pytest.mark.parametrize(
    ("how", "in_json"),
    [
        (lambda n: n.replace(".jpg", ".JPG"), lambda n: n),
        (lambda n: n, lambda n: n.replace(".jpg", ".JPG")),
        (lambda n: f"city/{n}", None),
        (lambda n: n, lambda n: f"train2017/{n}"),
        (lambda n: n, lambda n: f"./{n}"),
        (lambda n: f"city/{n}", lambda n: f"city\\{n}"),
        (lambda n: f"city/{n}", lambda n: f"city//{n}"),
    ],
)
def test_pictures_are_found_in_subfolders_and_with_another_case(tmp_path, how, in_json):
    root = write_tree(tmp_path / "coco")
    rename_pictures(root, how, in_json)
    found = prepared(root, tmp_path / "out")
    assert sorted(samples(found)) == sorted(how(f"{n:012d}.jpg") for n in range(3))
    assert found.class_pixels[CLASS[SKY]] == 3 * 24 * 40


def test_png_pictures_are_stored_as_jpeg(tmp_path):
    root = write_tree(tmp_path / "coco")
    for path in list((root / "train2017").iterdir()):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    edit_json(root, lambda c: [i.update(file_name=i["file_name"].replace(".jpg", ".png")) for i in c["images"]])
    found = samples(prepared(root, tmp_path / "out"))
    assert sorted(found) == [f"{n:012d}.png" for n in range(3)]
    for name, sample in found.items():
        x = np.asarray(Image.open(root / "train2017" / name))
        assert np.abs(decode_jpeg(sample.jpeg).astype(int) - x).max() < 4


def test_label_pngs_that_are_not_unpacked_are_one_line(tmp_path, caplog):
    root = write_tree(tmp_path / "coco", num=12)
    shutil.rmtree(root / "annotations/panoptic_train2017")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"panoptic_train2017 holds no label PNGs; unpack panoptic_train2017.zip"):
            prepared(root, tmp_path / "out")
        (root / "annotations/panoptic_train2017").mkdir(exist_ok=True)
    assert "skipped" not in caplog.text


def test_id_0_is_a_segment_only_if_the_json_lists_it(tmp_path):
    root = write_tree(tmp_path / "coco", num=2)
    ids = np.zeros((48, 40), np.uint32)
    ids[24:] = 300
    for number in range(2):
        write_png(root / f"annotations/panoptic_train2017/{number:012d}.png", ids)
    listed = [{"id": 0, "category_id": SKY}, {"id": 300, "category_id": PERSON}]
    edit_json(root, lambda c: c["annotations"][0].update(segments_info=listed))
    edit_json(root, lambda c: c["annotations"][1].update(segments_info=listed[1:]))  # 0 is void
    found = samples(prepared(root, tmp_path / "out"))
    one, two = (found[f"{n:012d}.jpg"] for n in range(2))
    assert (one.segment_class[one.segments[:24]] == CLASS[SKY]).all()
    assert not two.segment_class[two.segments[:24]].any()
    for sample in (one, two):
        assert (sample.segment_class[sample.segments[24:]] == CLASS[PERSON]).all() and sample.segment_class[0] == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a.update(image_id=None), "has the image_id None, which is not a number or text"),
        (lambda a: a.update(segments_info={}), "has no list `segments_info`, as panoptic annotations have"),
        (lambda a: a["segments_info"].append(7), "segments_info has 7, which is not an object"),
        (lambda a: a["segments_info"][0].update(id="sky"), "a segment has the id 'sky', which is not a number"),
        (lambda a: a["segments_info"][0].pop("category_id"), "segment 1000000 has the unknown category None"),
        (lambda a: a.update(file_name="other.png"), "panoptic PNG other.png is missing"),
        (lambda a: a.pop("file_name"), "000000000000.jpg: its annotation has no file_name"),
        (lambda a: a.update(file_name=7), "its annotation has the file_name 7, which is not text"),
        (lambda a: a.update(file_name="../1.png"), "file name '../1.png' is not a path inside its folder"),
        (lambda a: a["segments_info"].append({"id": 300, "category_id": SKY}), "lists segment 300 twice"),
        (lambda a: a["segments_info"].append(a["segments_info"][1] | {"iscrowd": 1}), "lists segment 300 twice"),
    ],
)
def test_errors_name_the_cause(tmp_path, caplog, change, reason):
    root = write_tree(tmp_path / "coco")
    edit_json(root, lambda c: change(c["annotations"][0]))
    prepared(root, tmp_path / "out", max_bad=2)
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["images"][0].pop("file_name"), "000000000000.png: image 0 has no file_name"),
        (
            lambda c: c["images"][0].update(id=[1]),
            "000000000000.jpg: the JSON gives it the id [1], which is not a number",
        ),
    ],
)
def test_errors_of_images_name_the_cause(tmp_path, caplog, change, reason):
    root = write_tree(tmp_path / "coco")
    edit_json(root, change)
    assert prepared(root, tmp_path / "out", max_bad=2).num_samples == 2
    assert reason in caplog.text


def ids_01_and_1(content: dict) -> None:
    for number, key in enumerate(["01", "1"]):
        content["images"][number]["id"] = content["annotations"][number]["image_id"] = key


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["images"][1].update(id=0), "two images of the JSON have the id 0"),
        (ids_01_and_1, "two images of the JSON have the id 1"),
        (lambda c: c["images"][1].update(file_name="000000000000.jpg"), "two images of the JSON have this picture"),
        (lambda c: c["annotations"][1].update(image_id=0), "image 0 has two different annotations"),
        (lambda c: c["annotations"][1].update(file_name="000000000000.png"), "two annotations have the panoptic PNG"),
    ],
)
def test_labels_that_may_be_of_two_pictures_are_of_none(tmp_path, caplog, change, reason):
    root = write_tree(tmp_path / "coco", num=4)
    edit_json(root, change)
    found = samples(prepared(root, tmp_path / "out", max_bad=4))
    assert sorted(found) == [f"{n:012d}.jpg" for n in (2, 3)]
    assert f"skipped 000000000000.jpg: {reason}" in caplog.text


def test_an_image_that_is_listed_twice_alike_is_one(tmp_path):
    root = write_tree(tmp_path / "coco")
    edit_json(root, lambda c: c["images"].append(dict(c["images"][0])))
    assert prepared(root, tmp_path / "out").num_samples == 3


def test_label_pngs_in_another_folder_are_one_line(tmp_path, caplog):
    root = write_tree(tmp_path / "coco", num=12)
    pngs = root / "annotations/panoptic_train2017"
    pngs.rename(root / "moved"), pngs.mkdir(), (root / "moved").rename(pngs / "panoptic_train2017")
    with pytest.raises(
        ValueError, match=r"has none of the label PNGs that panoptic_train2017.json names, such as 0{12}"
    ):
        prepared(root, tmp_path / "out")
    assert not caplog.messages


def test_more_bad_samples_than_the_limit_are_one_line(tmp_path, caplog):
    root = write_tree(tmp_path / "coco", num=12)
    edit_json(root, lambda c: c["annotations"].clear())
    with pytest.raises(ValueError, match=r"more than 10 bad samples \(000000000000.jpg: picture without annotation; "):
        prepared(root, tmp_path / "out", max_bad=None)
    assert not caplog.messages


def test_a_byte_order_mark_is_accepted(tmp_path):
    root = write_tree(tmp_path / "coco")
    path = root / "annotations/panoptic_train2017.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert prepared(root, tmp_path / "out").num_samples == 3


def turned(path: Path, orientation: int) -> bytes:
    """Set the EXIF orientation of a JPEG, without a change of its pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, "JPEG", quality="keep", exif=exif)
    return path.read_bytes()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_labels_belong_to_the_pixels_as_stored(tmp_path, caplog, orientation):
    root = write_tree(tmp_path / "coco", num=1)
    jpeg = turned(root / "train2017/000000000000.jpg", orientation)
    with caplog.at_level(logging.INFO):
        (sample,) = samples(prepared(root, tmp_path / "out")).values()
    assert sample.jpeg == jpeg and decode_jpeg(sample.jpeg).shape == (48, 40, 3)
    assert (sample.segment_class[sample.segments[:24]] == CLASS[SKY]).all()
    assert "keeps its pixels as stored, without EXIF's orientation" in caplog.text


def test_a_picture_is_turned_upright_if_its_labels_have_that_size(tmp_path, caplog):
    root = write_tree(tmp_path / "coco", num=1)
    path = root / "train2017/000000000000.jpg"
    stored = np.zeros((40, 48, 3), np.uint8)
    stored[:, :24] = 200  # a quarter turn to the right moves the left side to the top
    Image.fromarray(stored).save(path, quality=95)
    turned(path, 6)
    with caplog.at_level(logging.INFO):
        (sample,) = samples(prepared(root, tmp_path / "out")).values()  # its labels have 48 rows of 40
    x = decode_jpeg(sample.jpeg)
    assert x.shape == (48, 40, 3) and x[:20].min() > 180 and x[28:].max() < 20
    assert (sample.segment_class[sample.segments[:24]] == CLASS[SKY]).all()
    assert (sample.segment_class[sample.segments[30, :20]] == CLASS[CAT]).all()
    assert "is turned upright as EXIF says, since its labels have that size" in caplog.text
