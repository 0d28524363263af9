"""Models from the Hugging Face hub, replaced by a local server: downloaded once, then used without a network."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from egic import artifact
from tests.codec_models import tiny_model

pytest.importorskip("huggingface_hub")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
COMMIT = "c0ffee" * 6 + "c0de"


class Hub(BaseHTTPRequestHandler):
    """Answers the hub client's requests for one public repository, someone/model, with the revisions main and v1."""

    def __init__(self, folder: Path, asked: list[str], *arguments):
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        names = sorted(p.name for p in self.folder.iterdir())
        if path in ("/api/models/someone/model", *(f"/api/models/someone/model/revision/{r}" for r in ("main", "v1"))):
            repository = {"id": "someone/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self.send(200, json.dumps(repository).encode(), {"Content-Type": "application/json"})
        elif path == f"/api/models/someone/model/tree/{COMMIT}":
            files = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": ""} for p in self.folder.iterdir()
            ]
            self.send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        elif "/resolve/" in path and path.startswith("/someone/model/") and path.rpartition("/")[2] in names:
            content = (self.folder / path.rpartition("/")[2]).read_bytes()
            self.send(200, content, {"ETag": f'"{len(content)}-{path.rpartition("/")[2]}"', "X-Repo-Commit": COMMIT})
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    tiny, asked = tiny_model(), []
    artifact.save(tmp_path / "repository", {"codec": tiny.codec, "orp": tiny.orp}, {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, tmp_path / "repository", asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked = asked
    yield server
    server.shutdown()
    server.server_close()


def compress(folder: Path, ref: str, server: ThreadingHTTPServer | None) -> subprocess.CompletedProcess:
    address = "http://127.0.0.1:1" if server is None else f"http://127.0.0.1:{server.server_port}"
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {  # other tests set some
        "PYTHONPATH": str(ROOT), "HF_ENDPOINT": address, "EGIC_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hf"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    command = [sys.executable, "-m", "egic", "compress", "a.png", "-f", "--quiet", "-m", ref]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=250)


def test_a_model_is_downloaded_once_and_used_without_a_network(hub, tmp_path):
    for ref in ("hf://someone/model", "hf://someone/model@v1"):
        done = compress(tmp_path, ref, hub)
        assert done.returncode == 0 and done.stderr == "", (done.stderr, hub.asked)
    assert any("/resolve/" in path for path in hub.asked)
    made = (tmp_path / "a.egic").read_bytes()
    done = compress(tmp_path, "hf://someone/model", None)
    assert done.returncode == 0 and (tmp_path / "a.egic").read_bytes() == made, done.stderr


@pytest.mark.parametrize(
    "ref, online, word",
    [
        ("hf://someone/other", True, "is not in the cache and cannot be downloaded"),
        ("hf://someone/model", False, "is not in the cache and cannot be downloaded"),
        ("hf://model", True, "write hf://owner/name"),
        ("hf://a/b/c", True, "write hf://owner/name"),
    ],
)
def test_failed_downloads_are_one_line(ref, online, word, hub, tmp_path):
    done = compress(tmp_path, ref, hub if online else None)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1, done.stderr
