"""Downloads from a local server: broken transfers are resumed, damaged and hostile archives refused."""

import hashlib
import io
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.data.sources.coco_download import Archive, download_coco, fetch, unpack

PATH = "zips/val2017.zip"


def make_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class Server:
    """Serves `files` with Range. Can interrupt transfers, ignore Range, or answer with an error."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: list[int] = []
        """Bytes after which the next transfers are interrupted, one entry each."""
        self.ranges = True
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.requests.append((self.path, wanted))
                data = server.files.get(self.path.lstrip("/"))
                if data is None:
                    return self.send_error(404)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
                if start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                end = start + server.break_after.pop(0) if server.break_after else len(data)
                self.wfile.write(data[start:end])

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def server():
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def coco(server):
    """Small versions of the three archives, with their descriptions; PNG folders are zips inside a zip, as in COCO."""
    inner = {
        f"annotations/panoptic_{s}2017.zip": make_zip({f"panoptic_{s}2017/1.png": b"png"}) for s in ("train", "val")
    }
    jsons = {f"annotations/panoptic_{s}2017.json": b"{}" for s in ("train", "val")}
    contents = {
        "annotations/panoptic_annotations_trainval2017.zip": make_zip(inner | jsons),
        "zips/train2017.zip": make_zip({"train2017/1.jpg": b"t" * 5000}),
        PATH: make_zip({"val2017/1.jpg": b"v" * 5000}),
    }
    server.files = contents
    targets = {
        "annotations/panoptic_annotations_trainval2017.zip": tuple(jsons) + tuple(name[:-4] for name in inner),
        "zips/train2017.zip": ("train2017",),
        PATH: ("val2017",),
    }
    return [
        Archive(path=path, targets=targets[path], size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in contents.items()
    ]


def download(root: Path, server: Server, archives, **options) -> None:
    download_coco(root, base_url=server.url, archives=archives, wait_s=0.0, num_attempts=3, **options)


def test_the_whole_tree_is_downloaded_once(tmp_path, server, coco):
    download(tmp_path, server, coco)
    assert (tmp_path / "train2017/1.jpg").read_bytes() == b"t" * 5000
    assert (tmp_path / "annotations/panoptic_val2017/1.png").read_bytes() == b"png"
    assert (tmp_path / "annotations/panoptic_train2017.json").exists()
    assert not list(tmp_path.rglob("*.zip")) and len(server.requests) == 3
    download(tmp_path, server, coco)
    assert len(server.requests) == 3


def test_one_split_does_not_download_the_other(tmp_path, server, coco):
    download(tmp_path, server, coco, splits=["val"])
    assert (tmp_path / "val2017").exists() and not (tmp_path / "train2017").exists() and len(server.requests) == 2


def test_an_interrupted_transfer_is_resumed(tmp_path, server, coco, capsys):
    server.break_after = [2000, 1000, 500, 500]  # more interruptions than attempts: progress resets the count
    download(tmp_path, server, coco[2:])
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, "bytes=2000-", "bytes=3000-", "bytes=3500-", "bytes=4000-"]
    assert (tmp_path / "val2017/1.jpg").read_bytes() == b"v" * 5000
    assert "val2017.zip: 0 of 0 MB" in capsys.readouterr().err


def test_an_interrupted_program_resumes_its_download(tmp_path, server, coco):
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download/val2017.zip.part").write_bytes(server.files[PATH][:1234])
    download(tmp_path, server, coco[2:])
    assert server.requests == [(f"/{PATH}", "bytes=1234-")] and (tmp_path / "val2017/1.jpg").exists()


def test_without_range_the_download_starts_again(tmp_path, server, coco):
    server.ranges, server.break_after = False, [2000]
    download(tmp_path, server, coco[2:])
    assert (tmp_path / "val2017/1.jpg").read_bytes() == b"v" * 5000


@pytest.mark.parametrize("have", ["all", "too much"])
def test_a_partial_file_of_full_or_larger_size_ends_as_the_right_file(tmp_path, server, have):
    server.files["a.zip"] = b"abc"
    (tmp_path / "a.zip.part").write_bytes(b"abc" if have == "all" else b"abcdef")
    assert fetch(f"{server.url}/a.zip", tmp_path / "a.zip", size=3, wait_s=0).read_bytes() == b"abc"
    assert fetch(f"{server.url}/a.zip", tmp_path / "a.zip", wait_s=0).read_bytes() == b"abc"  # size unknown: 416


def test_a_corrupted_archive_is_refused_and_downloaded_again(tmp_path, server, coco):
    good = server.files[PATH]
    server.files[PATH] = good.replace(b"vvv", b"vxv", 1)
    with pytest.raises(ValueError, match="val2017.zip is damaged .sha256 is .* run again"):
        download(tmp_path, server, coco[2:])
    assert not (tmp_path / "val2017").exists()
    server.files[PATH] = good
    download(tmp_path, server, coco[2:])
    assert (tmp_path / "val2017/1.jpg").exists()


def test_without_a_pinned_digest_the_crc_is_tested_and_the_digest_recorded(tmp_path, server, coco):
    unpinned = [replace(coco[2], sha256=None, size=None)]
    good = server.files[PATH]
    server.files[PATH] = good.replace(b"vvv", b"vxv", 1)
    with pytest.raises(ValueError, match="val2017.zip is damaged .val2017/1.jpg fails its CRC"):
        download(tmp_path, server, unpinned)
    server.files[PATH] = good
    download(tmp_path, server, unpinned)
    (tmp_path / "val2017").rename(tmp_path / "moved")
    server.files[PATH] = make_zip({"val2017/1.jpg": b"another"})
    with pytest.raises(ValueError, match="val2017.zip is damaged .sha256 is"):
        download(tmp_path, server, unpinned)


def test_wrong_size_and_missing_file_are_clear_errors(tmp_path, server, coco):
    with pytest.raises(ValueError, match="bytes instead of 1; it is not the official archive"):
        download(tmp_path, server, [replace(coco[2], size=1)])
    with pytest.raises(ValueError, match="the server answers 404 .* omit --download"):
        download(tmp_path, server, [replace(coco[2], path="zips/none.zip")])


def test_without_network_the_error_names_the_alternative(tmp_path, server, coco):
    server.http.server_close()
    with pytest.raises(ValueError, match="cannot download .*unpack the COCO 2017 archives into") as error:
        download(tmp_path, server, coco)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt"])
def test_names_outside_the_folder_are_refused(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(make_zip({"good.txt": b"", name: b"evil"}))
    with pytest.raises(ValueError, match="is outside its folder"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="holds a link"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_too_little_disk_space_is_an_error_before_the_transfer(tmp_path, server, coco, monkeypatch):
    monkeypatch.setattr("jobs.data.sources.coco_download.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match="are needed, 0.0 GB are free"):
        download(tmp_path, server, coco[2:])
