"""`egic demo` in a browser: upload, alpha, divider and downloads, without connections to other machines."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from egic import artifact
from egic.cli import main
from egic.coding import bitstream
from egic.model import load
from tests.codec_models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
MINUTES = 180_000
"""Timeout in ms for a busy machine; a second is usual."""
# logs the network calls of the server's process, one line each
SPIED = """
import sys
def spy(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print(event, args[1] if event == "socket.connect" else args[0], file=spied, flush=True)
spied = open(sys.argv.pop(1), "w")
sys.addaudithook(spy)
from egic.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""


class Server:
    """`egic demo` in a process of its own, one thread."""

    def __init__(self, folder: Path, model: Path):
        pytest.importorskip("gradio")
        self.spied, self.temp = folder / "spied.txt", folder / "temp"
        self.temp.mkdir()
        env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temp)}
        env.pop("GRADIO_ANALYTICS_ENABLED", None)
        options = ["demo", "-m", model, "--port", "0", "--threads", "1", "--max-pixels", str(512 * 512)]
        command = [sys.executable, "-c", SPIED, self.spied, *options]
        self.said = open(folder / "said.txt", "w+")
        self.process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=self.said)
        line = self.process.stdout.readline().decode()
        assert line.startswith("http://127.0.0.1:"), (line, self.errors())
        self.url = line.split()[0]

    def errors(self) -> str:
        self.said.seek(0)
        return self.said.read()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny = tiny_model(rates=6)
    artifact.save(folder, {"codec": tiny.codec, "orp": tiny.orp}, {})
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, model):
    server = Server(tmp_path_factory.mktemp("demo"), model)
    yield server
    server.process.kill()
    server.process.wait()
    server.said.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("EGIC_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium on the PATH, and EGIC_CHROMIUM is not set")
    quiet = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    args = ["--no-sandbox", *(f"--{word}" for word in quiet.split())]  # Chromium has no sandbox as root
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=args)  # Playwright makes a new, empty profile
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server, request):
    width, height = getattr(request, "param", (1280, 900))
    phone = {"has_touch": True, "is_mobile": True} if width < 500 else {}
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **phone)
    context.set_default_timeout(MINUTES)
    page = context.new_page()
    page.asked, page.broken = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.broken.append(str(error)))
    page.goto(server.url)
    page.locator("#drop button").wait_for()
    yield page
    assert [url for url in page.asked if not url.startswith((server.url, "data:", "blob:"))] == []
    assert page.broken == []
    context.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("in") / "stairs & co.png"
    y, x = np.mgrid[:96, :128]
    Image.fromarray(np.stack([2 * x, 2 * y, 255 - x], -1).astype(np.uint8)).save(path)
    return path


def put(page, path: Path) -> None:
    page.locator("#drop input[type=file]").set_input_files(path)


def shown(page, pane: str = "#mine", side: int = 1) -> np.ndarray:
    """The pixels of the picture on the left (0) or right (1) of a pane."""
    url = page.locator(f"{pane} img").nth(side).get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(url).body())).convert("RGB"))


def slide(page, key: str, times: int, expected: str) -> None:
    slider = page.get_by_role("slider", name="alpha")
    slider.focus()
    for _ in range(times):
        page.keyboard.press(key)
    page.locator("#panes .sides p", has_text=expected).wait_for()


def saved(page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as found:
        page.locator(button).click()
    return found.value.suggested_filename, Path(found.value.path()).read_bytes()


def command_line(model: Path, data: bytes, alpha: float, folder: Path) -> np.ndarray:
    """The output of `egic decompress --alpha` for the file."""
    (folder / "x.egic").write_bytes(data)
    line = [
        "decompress",
        folder / "x.egic",
        "-o",
        folder / "x.png",
        "-f",
        "-m",
        model,
        "--alpha",
        alpha,
        "--threads",
        1,
    ]
    assert main.main([str(word) for word in line]) == 0
    return np.asarray(Image.open(folder / "x.png"))


def test_upload_alpha_and_downloads(page, picture, model, server, tmp_path):
    put(page, picture)
    page.locator("#panes .sides p", has_text="alpha 1.00").wait_for()
    name, data = saved(page, "#save-egic")
    header, _ = bitstream.unpack(data)
    assert name == "stairs_co.egic" and (header.height, header.width) == (96, 128)
    caption = page.locator("#panes .caption p").first.inner_text()
    assert f"{len(data):,} bytes" in caption and f"{8 * len(data) / (96 * 128):.3f} bpp" in caption
    original = np.asarray(Image.open(picture))
    assert np.array_equal(shown(page, side=0), original) and np.array_equal(shown(page, "#jpeg", 0), original)
    assert shown(page, "#jpeg").shape == original.shape
    for key, times, alpha in (("ArrowLeft", 0, 1), ("ArrowLeft", 30, 0.7), ("Home", 1, 0), ("ArrowRight", 1, 0.01)):
        slide(page, key, times, f"alpha {alpha:.2f}")
        expected = command_line(model, data, alpha, tmp_path)
        name, png = saved(page, "#save-png")
        assert name == f"stairs_co_alpha_{alpha:.2f}.png"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), expected)
        assert np.array_equal(shown(page), expected)
    assert "Traceback" not in server.errors()


def test_quality_and_size_limit(page, picture, model, tmp_path):
    """Another quality makes another file with its pictures; a size limit is never exceeded."""
    put(page, picture)
    caption = page.locator("#panes .caption p").first
    caption.wait_for()
    x, coder = np.asarray(Image.open(picture)), load(model)

    def coded(**rate) -> bytes:
        data = coder.compress(x, **rate)
        caption.filter(has_text=f"{len(data):,} bytes").filter(has_text="dB").wait_for()
        found = saved(page, "#save-egic")[1]
        assert bitstream.unpack(found)[0].quality == bitstream.unpack(data)[0].quality and len(found) == len(data)
        assert np.array_equal(shown(page), command_line(model, found, 1, tmp_path))
        return data

    largest = len(coded())
    slider = page.get_by_role("slider", name="quality")
    slider.focus()
    page.keyboard.press("Home")
    smallest = len(coded(quality=0))
    field = page.locator("#size input, #size textarea")
    field.fill(f"{(smallest + largest) // 2}")
    field.press("Enter")
    assert smallest <= len(coded(max_bytes=(smallest + largest) // 2)) <= (smallest + largest) // 2
    for text, word in (("5", "takes at least"), ("much", "not a file size")):
        field.fill(text)
        field.press("Enter")
        page.get_by_role("alert").filter(has_text=word).wait_for()


def test_an_egic_file_is_shown_between_alpha_0_and_alpha(page, picture, model, tmp_path):
    assert main.main(["compress", str(picture), "-o", str(tmp_path / "y.egic"), "-m", str(model)]) == 0
    put(page, tmp_path / "y.egic")
    page.locator("#panes .sides p", has_text="alpha 1.00").wait_for()
    assert page.locator("#panes .sides p").first.inner_text().split("\n")[0].startswith("EGIC, alpha 0.00")
    data = (tmp_path / "y.egic").read_bytes()
    assert np.array_equal(shown(page, side=0), command_line(model, data, 0, tmp_path))
    assert np.array_equal(shown(page), command_line(model, data, 1, tmp_path))
    assert page.locator("#jpeg").count() == 0 or not page.locator("#jpeg").is_visible()
    assert "dB" not in page.locator("#panes .caption p").first.inner_text()


def test_bad_input_is_an_error_on_the_page_and_changes_nothing(page, picture, server, tmp_path):
    put(page, picture)
    page.locator("#mine img").first.wait_for()
    before = page.locator("#mine img").nth(1).get_attribute("src")
    (tmp_path / "<b>notes.png").write_text("no picture")
    Image.new("RGB", (600, 600)).save(tmp_path / "large.png")
    (tmp_path / "cut.egic").write_bytes(b"EGIC\x01 and no more")
    for name, word in (("<b>notes.png", "format that is read"), ("large.png", "600 × 600"), ("cut.egic", "checksum")):
        put(page, tmp_path / name)
        alert = page.get_by_role("alert").filter(has_text=word)
        alert.wait_for()
        assert "cannot be opened" in alert.inner_text() and alert.locator("b").count() == 0
    assert page.locator("#mine img").nth(1).get_attribute("src") == before
    assert "Traceback" not in server.errors()


def test_a_url_in_place_of_a_file_is_refused(page, server):
    """The last test checks that the server made no request for it."""
    url = "http://gradio-would-fetch.example.com/x.png"
    assert page.request.get(f"{server.url}gradio_api/file={url}").status == 403
    events = [d["id"] for d in page.evaluate("window.gradio_config.dependencies") if d["targets"]]
    given = {"path": url, "meta": {"_type": "gradio.FileData"}}
    for event in events:  # Gradio accepts a file also in place of the slider's number
        body = {"data": [given] * 3, "fn_index": event, "session_hash": "url"}
        assert page.request.post(f"{server.url}gradio_api/queue/join", data=body).status == 200
    stream = page.request.get(f"{server.url}gradio_api/queue/data?session_hash=url").text()
    assert stream.count("not URLs") == stream.count('"process_completed"') == len(events) == 4


def test_the_divider_moves_and_keeps_its_place_when_alpha_changes(page, picture):
    put(page, picture)
    upper = page.locator("#mine img").nth(1)
    upper.wait_for()

    def cut() -> float:
        return float(re.search(r"([\d.]+)%\)?;?", upper.get_attribute("style").split("clip-path")[1]).group(1))

    box = page.locator("#mine .icon-wrap").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 100, y, steps=4)
    page.mouse.up()
    moved = cut()
    assert moved > 60
    slide(page, "ArrowLeft", 3, "alpha 0.97")
    assert cut() == moved


@pytest.mark.parametrize("page", [(390, 844)], indirect=True, ids=["phone"])
def test_the_page_fits_a_phones_screen(page, picture):
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(fits)
    put(page, picture)
    page.locator("#jpeg img").first.wait_for()
    assert page.evaluate(fits)
    left, right = (page.locator(button).bounding_box() for button in ("#mine", "#jpeg"))
    assert right["y"] > left["y"] + left["height"] and abs(right["x"] - left["x"]) < 1


@pytest.mark.parametrize("page", [(390, 500)], indirect=True, ids=["phone"])
def test_a_finger_on_a_picture_scrolls_the_page(page, picture):
    put(page, picture)
    page.locator("#jpeg img").first.wait_for()
    box, session = page.locator("#mine img").first.bounding_box(), page.context.new_cdp_session(page)
    x, y = box["x"] + 40, box["y"] + box["height"] - 20
    for kind, up in (("Start", 0), *(("Move", 15 * i) for i in range(1, 10)), ("End", None)):
        points = [] if up is None else [{"x": x, "y": y - up}]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    page.wait_for_function("window.scrollY > 50")


def test_it_ends_without_messages_other_connections_or_files(server):
    """Must be last, since it stops the server."""
    assert server.stop() == 0
    assert server.errors().strip() == "stopped"
    asked = server.spied.read_text().splitlines()
    loopback = re.compile(r"socket.connect \('127\.0\.0\.1', \d+\)|socket.getaddrinfo (127\.0\.0\.1|localhost)")
    assert [line for line in asked if not loopback.fullmatch(line)] == []
    for _ in range(50):
        if not (left := [p.name for p in server.temp.iterdir() if p.name.startswith("egic")]):
            break
        time.sleep(0.1)
    assert left == []
