"""Pictures are listed folder by folder, named as `egic compress` names them, and packed into chunks."""

import os
from collections import Counter

import pytest
from pyarrow import fs

from egic.cli import files as cli_files
from egic.errors import UserError
from jobs.archive.listing import chunks, identity, listed, unpacked
from tests.fake_s3 import place_on, s3_server

TAKES = (".png", ".jpg", ".webp")
NAMES = ("b.png", "a.jpg", "a.png", "a.jpg.webp", "deep/er/C.JPG", "deep/c.txt", "deep/.hidden.png", "no suffix")


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(NAMES):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x" * i)
    return tmp_path / "in"


def test_names_are_those_of_egic_compress(folder, tmp_path):
    ignored = Counter()
    found = list(listed([str(folder)], TAKES, ".egic", ignored))
    tasks = cli_files.plan([str(folder)], str(tmp_path / "out"), ".egic", TAKES)
    expected = [
        (t.source.relative_to(folder).as_posix(), t.target.relative_to(tmp_path / "out").as_posix()) for t in tasks
    ]
    assert sorted((p.source, p.target) for p in found) == sorted(expected)
    assert {p.source: p.size for p in found} == {name: NAMES.index(name) for name, _ in expected}
    assert ignored[".txt"] == 1


def test_several_folders_and_files_are_one_archive(folder, tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for name in ("d.png", "deep/e.png"):
        (tmp_path / "more" / name).touch()
    (tmp_path / "single.png").touch()
    inputs = [str(folder), str(tmp_path / "more"), str(tmp_path / "single.png")]
    found = {p.source: p.folder for p in listed(inputs, TAKES, ".egic", Counter())}
    assert len(found) == 8 and found["deep/e.png"] == str(tmp_path / "more") and found["single.png"] == str(tmp_path)


@pytest.mark.parametrize("second", ["more", "b.png"])
def test_two_pictures_of_one_name_are_an_error(folder, tmp_path, second):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.png").touch()
    (tmp_path / "b.png").touch()
    with pytest.raises(UserError, match="both have b.png"):
        list(listed([str(folder), str(tmp_path / second)], TAKES, ".egic", Counter()))


def test_a_missing_input_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(listed([str(tmp_path / "none")], TAKES, ".egic", Counter()))


def test_links_and_devices_are_named(folder, tmp_path, caplog):
    (folder / "linked").symlink_to(tmp_path)
    (folder / "deep" / "gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    assert len(list(listed([str(folder)], TAKES, ".egic", Counter()))) == 5
    for name in ("linked (a link to a folder, ", "deep/gone.png (a broken link)", "pipe.png (no regular file)"):
        assert f"{folder / name}" in caplog.text


def test_chunks_are_limited_and_keep_every_name(tmp_path):
    names = [os.fsdecode(name) for name in (b"caf\xe9.png", b"1.png", b"2.png", b"3.png", b"4.png")]
    for name in names:
        (tmp_path / name).touch()
    os.truncate(tmp_path / "3.png", 20_000_000)  # sparse
    found = list(listed([str(tmp_path)], TAKES, ".egic", Counter()))
    packed = [unpacked(chunk) for chunk in chunks(found)]
    assert [picture for chunk in packed for picture in chunk] == found
    assert [[p.source for p in chunk] for chunk in packed] == [["1.png", "2.png"], ["3.png"], ["4.png", names[0]]]
    assert identity(found[-1]) == "caf\\xe9.png"


def test_object_storage_is_listed_as_folders_are(folder, monkeypatch):
    with s3_server(monkeypatch) as address:
        place = place_on(address, "photos")
        files = fs.S3FileSystem(endpoint_override=address)
        fs.copy_files(
            str(folder), "bucket/photos", source_filesystem=fs.LocalFileSystem(), destination_filesystem=files
        )
        local = list(listed([str(folder)], TAKES, ".egic", Counter()))
        remote = list(listed([place], TAKES, ".egic", Counter()))
        assert [p._replace(folder="") for p in remote] == [p._replace(folder="") for p in local]
        single = list(listed([place_on(address, "photos/b.png")], TAKES, ".egic", Counter()))
        assert [(p.folder, p.source, p.size) for p in single] == [(place, "b.png", 0)]
