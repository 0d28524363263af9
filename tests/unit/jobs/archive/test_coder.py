"""One picture of an archive: its file, its row, and what is done with files that a killed run has made."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from egic.coding import bitstream
from jobs.archive.attempts import Attempts
from jobs.archive.coder import LOST, NUM_ATTEMPTS, Coder, Work
from jobs.archive.listing import Picture
from tests.codec_models import tiny_model
from tests.fake_s3 import place_on, s3_server

MODEL = tiny_model(rates=3)


class Remote:
    """An object whose methods are called as those of an actor."""

    def __init__(self, value):
        self.value = value

    def __getattr__(self, name):
        return Remote(getattr(self.value, name))

    def remote(self, *args):
        return self.value(*args)


@pytest.fixture
def coder(monkeypatch):
    """A coder without Ray: calls of the counting actor are those of an object."""
    monkeypatch.setattr("ray.get", lambda value: value)

    def make(command: str, output, **options) -> Coder:
        made = object.__new__(Coder)
        made.model, made.attempts = MODEL, Remote(Attempts())
        made.work = Work(command=command, options=options, output=str(output))
        return made

    return make


@pytest.fixture
def photo(tmp_path) -> Picture:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    path = tmp_path / "in" / "deep" / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return Picture(str(tmp_path / "in"), "deep/a.png", "deep/a.egic", path.stat().st_size)


def test_rows_describe_files(coder, photo, tmp_path):
    row = coder("compress", tmp_path / "out", quality=30).row(photo)
    data = (tmp_path / "out" / "deep" / "a.egic").read_bytes()
    image = np.asarray(Image.open(tmp_path / "in" / "deep" / "a.png"))
    assert data == MODEL.compress(image, quality=30)
    assert row.pop("seconds") > 0
    digest, model = hashlib.sha256(data).hexdigest(), bitstream.unpack(data)[0].model_id.hex()
    assert row == {
        "source": "deep/a.png", "file": "deep/a.egic", "height": 40, "width": 50, "size": photo.size,
        "bytes": len(data), "bpp": 8 * len(data) / 2000, "quality": 30, "model": model, "sha256": digest, "notes": None,
    }  # fmt: skip
    egic = Picture(str(tmp_path / "out"), "deep/a.egic", "deep/a.png", len(data))
    row = coder("decompress", tmp_path / "back", alpha=0.5).row(egic)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back" / "deep" / "a.png")), MODEL.decompress(data, 0.5))
    png = (tmp_path / "back" / "deep" / "a.png").read_bytes()
    assert (row["bytes"], row["size"], row["quality"]) == (len(png), len(data), 30)
    assert row["bpp"] == 8 * len(data) / 2000 and row["sha256"] == hashlib.sha256(png).hexdigest()


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_a_finished_file_is_kept_and_a_damaged_one_is_made_again(coder, photo, tmp_path, command):
    first = coder("compress", tmp_path / "out").row(photo)
    work, picture, made = coder("compress", tmp_path / "out"), photo, tmp_path / "out" / "deep" / "a.egic"
    if command == "decompress":
        picture = Picture(str(tmp_path / "out"), "deep/a.egic", "deep/a.png", 1)
        work, made = coder("decompress", tmp_path / "back"), tmp_path / "back" / "deep" / "a.png"
        first = work.row(picture)
    before = made.stat().st_mtime_ns, made.read_bytes()
    assert work.row(picture) == first | {"seconds": None}
    assert made.stat().st_mtime_ns == before[0]
    for content in (b"", before[1][: len(before[1]) // 2]):
        made.write_bytes(content)
        row = work.row(picture)
        assert row.pop("seconds") > 0 and row.items() <= first.items() and made.read_bytes() == before[1]


def test_a_bad_picture_is_a_row_with_the_error(coder, photo, tmp_path, monkeypatch):
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    make = coder("compress", tmp_path / "out")
    row = make.row(photo._replace(source="bad.png", target="bad.egic", size=10))
    assert row["source"] == "bad.png" and "file" not in row and row["error"]
    assert "No such file" in make.row(photo._replace(source="gone.png", target="gone.egic"))["error"]
    assert "at least" in coder("compress", tmp_path / "out", max_bytes=5).row(photo)["error"]
    monkeypatch.setattr(MODEL, "compress", lambda *_, **__: 1 / 0)
    assert make.row(photo)["error"].startswith("ZeroDivisionError: ")
    assert not list((tmp_path / "out").rglob("*.egic"))


def test_a_picture_whose_worker_dies_each_time_fails(coder, photo, tmp_path, monkeypatch):
    """A worker's death is an exception here that leaves the call."""
    make = coder("compress", tmp_path / "out")

    def die(*_, **__):
        raise SystemExit

    monkeypatch.setattr(MODEL, "compress", die)
    for _ in range(NUM_ATTEMPTS):
        with pytest.raises(SystemExit):
            make.row(photo)
    assert make.row(photo) == {"source": "deep/a.png", "size": photo.size, "error": LOST}


def test_a_finished_picture_is_not_counted_as_an_attempt(coder, photo, tmp_path):
    make = coder("compress", tmp_path / "out")
    assert [make.row(photo).get("error") for _ in range(2 * NUM_ATTEMPTS)] == [None] * 2 * NUM_ATTEMPTS


def test_pictures_on_object_storage_are_read_and_written(coder, photo, tmp_path, monkeypatch):
    with s3_server(monkeypatch) as address:
        files = fs.S3FileSystem(endpoint_override=address)
        fs.copy_files(photo.folder, "bucket/in", source_filesystem=fs.LocalFileSystem(), destination_filesystem=files)
        local = coder("compress", tmp_path / "out").row(photo)
        remote = coder("compress", place_on(address, "out")).row(photo._replace(folder=place_on(address, "in")))
        assert remote | {"seconds": 0} == local | {"seconds": 0}
        with files.open_input_stream("bucket/out/deep/a.egic") as file:
            assert hashlib.sha256(file.read()).hexdigest() == remote["sha256"]
