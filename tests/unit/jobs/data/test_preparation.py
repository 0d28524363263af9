"""COCO tree -> shards: samples are stored exactly, bad ones are skipped by name, unusable input is one line."""

import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from egic.training.crops import decode_jpeg
from jobs.data.datasets import open_data
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import load_manifest, read_index, read_samples
from jobs.data.sources.coco_classes import CATEGORIES

SKY, PERSON, CAT = 187, 1, 17
CLASS = {category.id: c for c, category in enumerate(CATEGORIES, start=1)}


def write_tree(root: Path, num: int = 3, split: str = "train", size=(48, 40)) -> Path:
    """A small, valid COCO tree: sky above two cats (the second a crowd) and a strip of void."""
    height, width = size
    pictures, pngs = root / f"{split}2017", root / "annotations" / f"panoptic_{split}2017"
    pictures.mkdir(parents=True), pngs.mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [category._asdict() for category in CATEGORIES]}
    for number in range(num):
        ids = np.zeros((height, width), np.uint32)
        ids[: height // 2] = 1_000_000 + number
        ids[height // 2 : -4, : width // 2] = 300 + number
        ids[height // 2 : -4, width // 2 :] = 70_000 + number
        rng = np.random.default_rng(number)
        picture = np.full((height, width, 3), rng.integers(0, 255, 3), np.uint8)
        name = f"{number:012d}"
        Image.fromarray(picture).save(pictures / f"{name}.jpg", quality=95)
        Image.fromarray((ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)).save(pngs / f"{name}.png")
        segments = [(1_000_000 + number, SKY, 0), (300 + number, CAT, 0), (70_000 + number, CAT, 1), (9, PERSON, 0)]
        content["images"].append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        content["annotations"].append(
            {
                "image_id": number,
                "file_name": f"{name}.png",
                "segments_info": [{"id": i, "category_id": c, "iscrowd": k} for i, c, k in segments],  # 9 has no pixel
            }
        )
    pngs.with_suffix(".json").write_text(json.dumps(content))
    return root


def edit_json(root: Path, change, split: str = "train") -> None:
    path = root / "annotations" / f"panoptic_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def run(root: Path, out: Path, **options) -> Path:
    return Path(prepare((root,), str(out), PrepareConfig(split="train", **options))["train"])


def test_samples_are_read_back_exactly_in_any_order(tmp_path):
    root = write_tree(tmp_path / "coco", num=7)
    manifest = load_manifest(run(root, tmp_path / "out", samples_per_shard=3), check_shards=True)
    assert (manifest.num_samples, manifest.num_classes, len(manifest.shards)) == (7, 133, 3)
    assert sorted(read_index(manifest).columns["image_id"]) == list(range(7))
    order = [6, 0, 3, 3, 1]
    for index, sample in zip(order, read_samples(manifest, order), strict=True):
        image_id = int(read_index(manifest).columns["image_id"][index])
        assert sample.jpeg == (root / f"train2017/{image_id:012d}.jpg").read_bytes()
        label = sample.segment_class[sample.segments]
        assert (label[:24] == CLASS[SKY]).all() and (label[24:-4, :20] == CLASS[CAT]).all()
        assert not label[24:-4, 20:].any() and not label[-4:].any()  # crowd and void
        assert sample.segment_thing[sample.segments[30, 0]] == 1 and sample.segment_thing[sample.segments[0, 0]] == 0
        assert len(sample.segment_class) == 4  # void and three segments, without the one that has no pixels


def test_manifest_counts_classes(tmp_path):
    manifest = load_manifest(run(write_tree(tmp_path / "coco"), tmp_path / "out"))
    assert manifest.class_pixels[CLASS[SKY]] == 3 * 24 * 40 and manifest.class_images[CLASS[SKY]] == 3
    assert manifest.class_pixels[CLASS[CAT]] == 3 * 20 * 20
    assert sum(manifest.class_pixels) == 3 * 48 * 40 and manifest.class_images[CLASS[PERSON]] == 0
    assert manifest.class_names[0] == "person" and manifest.class_names[132] == "rug-merged"


def test_shards_can_be_read_by_any_parquet_reader(tmp_path):
    path = run(write_tree(tmp_path / "coco"), tmp_path / "out")
    table = pq.read_table(path.parent / "shard-00000.parquet")
    assert table.num_rows == 3 and decode_jpeg(table["jpeg"][0].as_py()).shape == (48, 40, 3)


def test_order_is_shuffled_by_the_seed(tmp_path):
    root = write_tree(tmp_path / "coco", num=12)
    orders = []
    for seed in (0, 1):
        manifest = load_manifest(run(root, tmp_path / f"out{seed}", seed=seed))
        orders.append(read_index(manifest).columns["image_id"].tolist())
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(12)) != orders[0]


def test_digest_depends_only_on_content(tmp_path):
    one = load_manifest(run(write_tree(tmp_path / "a"), tmp_path / "out-a"))
    two = load_manifest(run(write_tree(tmp_path / "b"), tmp_path / "out-b", samples_per_shard=2))
    assert one.digest == two.digest
    other = write_tree(tmp_path / "c")
    edit_json(other, lambda c: c["annotations"][0]["segments_info"][0].update(category_id=PERSON))
    assert load_manifest(run(other, tmp_path / "out-c")).digest != one.digest


def test_unchanged_input_is_reused_and_changed_input_is_not(tmp_path):
    root, out = write_tree(tmp_path / "coco"), tmp_path / "out"
    path = run(root, out)
    before = (path.stat().st_mtime_ns, path.stat().st_ino)
    assert run(root, out) == path and (path.stat().st_mtime_ns, path.stat().st_ino) == before
    shutil.copy(root / "train2017/000000000001.jpg", root / "train2017/000000000002.jpg")
    edit_json(root, lambda c: c["images"].reverse())
    run(root, out)
    assert path.stat().st_ino != before[1]
    shard = path.parent / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])  # damage is detected, and the shard written again
    run(root, out)
    assert load_manifest(path, check_shards=True).num_samples == 3
    assert sorted(p.name for p in out.iterdir()) == ["train"]


def test_samples_that_are_no_longer_listed_are_not_reused(tmp_path):
    """As after an update of the program that splits the same files otherwise."""
    root, out = write_tree(tmp_path / "coco"), tmp_path / "out"
    path = run(root, out)
    source = json.loads(path.read_text())["source"]
    edit_json(root, lambda c: (c["images"].pop(), c["annotations"].pop()))
    (root / "train2017/000000000002.jpg").unlink()
    assert load_manifest(run(root, out)).num_samples == 2
    path.write_text(path.read_text().replace(json.loads(path.read_text())["source"], source))
    write_tree(tmp_path / "same").rename(tmp_path / "again"), shutil.rmtree(root), (tmp_path / "again").rename(root)
    assert load_manifest(run(root, out)).num_samples == 3


def test_more_than_255_segments_are_stored(tmp_path):
    root = write_tree(tmp_path / "coco", num=1)
    ids = np.arange(1, 48 * 40 + 1).reshape(48, 40) % 400 + 1
    png = root / "annotations/panoptic_train2017/000000000000.png"
    Image.fromarray((ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)).save(png)
    info = [{"id": i, "category_id": CATEGORIES[i % 133].id, "iscrowd": 0} for i in range(1, 401)]
    edit_json(root, lambda c: c["annotations"][0].update(segments_info=info))
    (sample,) = read_samples(load_manifest(run(root, tmp_path / "out")), [0])
    assert sample.segments.dtype == np.uint16
    assert np.array_equal(sample.segment_class[sample.segments], ids % 133 + 1)


def test_larger_pictures_are_stored_downscaled_with_their_labels(tmp_path):
    root = write_tree(tmp_path / "coco", num=2, size=(96, 80))
    ids = np.full((96, 80), 5)
    ids[48:] = 7
    ids[0, 0] = 9  # one pixel, which vanishes at half the size
    png = root / "annotations/panoptic_train2017/000000000000.png"
    Image.fromarray((ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)).save(png)
    info = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in ((5, SKY), (7, CAT), (9, PERSON))]
    edit_json(root, lambda c: c["annotations"][0].update(segments_info=info))
    Image.new("RGB", (30, 48), (9, 9, 9)).save(small := root / "train2017/000000000001.jpg")
    Image.new("RGB", (30, 48)).save(root / "annotations/panoptic_train2017/000000000001.png")
    manifest = load_manifest(run(root, tmp_path / "out", max_side=48))
    samples = dict(zip(read_index(manifest).columns["image_id"].tolist(), read_samples(manifest, [0, 1]), strict=True))
    x, labels = decode_jpeg(samples[0].jpeg), samples[0].segment_class[samples[0].segments]
    assert x.shape == (48, 40, 3) and np.ptp(x, axis=(0, 1)).max() < 4
    assert (labels[:24] == CLASS[SKY]).all() and (labels[24:] == CLASS[CAT]).all()
    assert len(samples[0].segment_class) == 3 and samples[0].segment_thing.tolist() == [0, 0, 1]
    assert samples[1].jpeg == small.read_bytes() and samples[1].segments.shape == (48, 30)
    with pytest.raises(ValueError, match="max_side is -1"):
        PrepareConfig(max_side=-1)


def damage(root: Path, what: str) -> None:
    """Damage sample 0 of a valid tree in one way."""
    jpeg = root / "train2017/000000000000.jpg"
    png = root / "annotations/panoptic_train2017/000000000000.png"
    if what == "truncated":
        jpeg.write_bytes(jpeg.read_bytes()[:-12])
    elif what == "no image":
        jpeg.write_text("<html>404</html>")
    elif what == "no picture":
        jpeg.unlink()
    elif what == "no png":
        png.unlink()
    elif what == "no annotation":
        edit_json(root, lambda c: c["annotations"].pop(0))
    elif what == "png size":
        Image.new("RGB", (20, 20)).save(png)
    elif what == "unlisted id":
        edit_json(root, lambda c: c["annotations"][0]["segments_info"].pop(0))
    elif what == "category":
        edit_json(root, lambda c: c["annotations"][0]["segments_info"][1].update(category_id=12))
    elif what == "escape":
        shutil.copy(jpeg, root / "outside.jpg")
        edit_json(root, lambda c: c["images"][0].update(file_name="../outside.jpg"))
        jpeg.unlink()
    elif what == "unlisted image":
        edit_json(root, lambda c: c["annotations"][0].update(image_id=99))
        jpeg.unlink()
    elif what == "twice":
        edit_json(root, lambda c: c["annotations"].append(c["annotations"][1]))
        edit_json(root, lambda c: c["annotations"].pop(0))
        jpeg.unlink()
    elif what == "no segments_info":
        edit_json(root, lambda c: c["annotations"][0].pop("segments_info"))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("truncated", "image file is truncated"),
        ("no image", "not a picture of a format that is read"),
        ("no picture", "annotation without picture"),
        ("no png", "000000000000.png is missing"),
        ("no annotation", "picture without annotation"),
        ("png size", "panoptic PNG is 20x20, the picture 40x48"),
        ("unlisted id", "which the JSON does not list"),
        ("category", "segment 300 has the unknown category 12"),
        ("escape", "is not a path inside its folder"),
        ("unlisted image", "image 99, which the JSON does not list"),
        ("twice", "second annotation of image 1"),
        ("no segments_info", "its annotation has no list `segments_info`"),
    ],
)
def test_a_bad_sample_is_named_and_skipped_up_to_the_limit(tmp_path, caplog, what, reason):
    root = write_tree(tmp_path / "coco")
    damage(root, what)
    with caplog.at_level(logging.WARNING):
        path = run(root, tmp_path / "out")
    assert load_manifest(path).num_samples == 2
    (skipped,) = json.loads(path.read_text())["skipped"]
    assert reason in skipped["reason"] and reason in caplog.text and skipped["name"] in caplog.text
    with pytest.raises(ValueError, match="more than 0 bad samples .*--max-bad"):
        run(root, tmp_path / "strict", max_bad=0)
    assert not (tmp_path / "strict/train").exists()
    with pytest.raises(ValueError, match="more than 0 bad samples"):
        run(root, tmp_path / "out", max_bad=0)  # also if finished results could be reused


def test_unusual_but_valid_pictures_are_kept(tmp_path):
    root = write_tree(tmp_path / "coco", num=4)
    Image.new("L", (40, 48), 90).save(root / "train2017/000000000000.jpg")
    Image.new("CMYK", (40, 48)).save(root / "train2017/000000000001.jpg")
    edit_json(root, lambda c: c["annotations"][2].update(segments_info=[]))
    Image.new("RGB", (40, 48)).save(root / "annotations/panoptic_train2017/000000000002.png")
    path = run(root, tmp_path / "out", max_bad=0)
    assert load_manifest(path).num_samples == 4 and json.loads(path.read_text())["num_all_void"] == 1


def test_photographs_without_labels_are_accepted_only_if_allowed(tmp_path):
    root = tmp_path / "photos"
    (root / "train2017").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(root / f"train2017/{number}.jpg")
    with pytest.raises(ValueError, match="json does not exist; labels are needed"):
        run(root, tmp_path / "out")
    manifest = load_manifest(run(root, tmp_path / "out", allow_unlabelled=True))
    assert (manifest.num_samples, manifest.num_classes, manifest.class_pixels[0]) == (2, 133, 2400)


def test_categories_of_the_user_are_stored(tmp_path):
    root = write_tree(tmp_path / "coco")
    own = [{"id": i, "name": str(i), "isthing": i < 100} for i in (SKY, CAT, PERSON)]
    edit_json(root, lambda c: c.update(categories=own))
    manifest = load_manifest(run(root, tmp_path / "out"))
    assert manifest.class_names == ("1", "17", "187") and manifest.class_images == (3, 0, 3, 3)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: shutil.rmtree(root), "data folder .* does not exist.*--download"),
        (lambda root: shutil.rmtree(root / "train2017"), "train2017 does not exist"),
        (lambda root: (root / "annotations/panoptic_train2017.json").write_text("{"), "not valid JSON"),
        (lambda root: (root / "annotations/panoptic_train2017.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda root: (root / "annotations/panoptic_train2017.json").write_text("[1]"), "no list `images`"),
        (lambda root: edit_json(root, lambda c: c["categories"].append(c["categories"][0])), "share one id"),
        (lambda root: edit_json(root, lambda c: c["categories"][0].pop("isthing")), "lacks id, name or isthing"),
        (lambda root: [p.unlink() for p in root.glob("train2017/*")], "no usable picture .*annotation without picture"),
        (lambda root: [p.write_bytes(b"") for p in root.glob("train2017/*")], "no usable picture .*the file is empty"),
    ],
)
def test_unusable_input_is_one_clear_error(tmp_path, break_it, message):
    root = write_tree(tmp_path / "coco")
    break_it(root)
    with pytest.raises(ValueError, match=message) as error:
        run(root, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_train_and_val_must_agree_on_categories(tmp_path):
    root = write_tree(write_tree(tmp_path / "coco"), split="val")
    edit_json(root, lambda c: c["categories"].pop(), split="val")
    with pytest.raises(ValueError, match="different categories"):
        prepare((root,), str(tmp_path / "out"))


def test_a_folder_with_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="choose another OUT"):
        run(write_tree(tmp_path / "coco"), tmp_path / "out")
    assert (tmp_path / "out/train/thesis.txt").exists()


def test_errors_name_a_damaged_shard(tmp_path):
    path = run(write_tree(tmp_path / "coco"), tmp_path / "out")
    manifest = load_manifest(path)
    shard = path.parent / "shard-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 4])
    with pytest.raises(ValueError, match="shard-00000.parquet is damaged at sample . .the file ends early"):
        list(read_samples(manifest, range(3)))
    with pytest.raises(ValueError, match="shard-00000.parquet is missing or has another size"):
        load_manifest(path)
    shard.write_bytes(whole[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged .sha256"):
        load_manifest(path, check_shards=True)
    (path.parent / "index.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="index.parquet does not match"):
        load_manifest(path)


@pytest.mark.parametrize("name", ["../other/shard_00000.parquet", "/etc/passwd"])
def test_shards_outside_their_folder_are_refused(tmp_path, name):
    root = write_tree(write_tree(tmp_path / "coco"), split="val")
    prepare((root,), tmp_path / "out")
    path = tmp_path / "out" / "train" / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0] |= {"file": name, "bytes": Path("/etc/passwd").stat().st_size}
    if name.startswith(".."):
        (tmp_path / "out" / "other").mkdir()
        (path.parent / content["shards"][0]["file"]).write_bytes(bytes(content["shards"][0]["bytes"]))
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is missing or has another size"):
        open_data(str(tmp_path / "out"), tmp_path / "outputs")


def test_command_line_ends_in_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "jobs.prepare", str(tmp_path / "nowhere"), str(tmp_path / "out")]
    bad = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and bad.stderr.startswith("error: data folder")


def test_official_pictures_keep_every_labelled_pixel(tmp_path, coco_root):
    manifest = load_manifest(prepare((coco_root,), str(tmp_path), PrepareConfig(split="val"))["val"])
    content = json.loads((coco_root / "annotations/panoptic_val2017.json").read_text())
    crowd = void = 0
    for annotation in content["annotations"]:
        png = (coco_root / "annotations/panoptic_val2017" / annotation["file_name"]).read_bytes()
        rgb = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int) @ (1, 256, 65536)
        void += (rgb == 0).sum()
        crowd += sum((rgb == s["id"]).sum() for s in annotation["segments_info"] if s["iscrowd"])
    assert manifest.class_pixels[0] == void + crowd
    assert manifest.num_samples == len(content["images"])
