"""The report in a browser: it opens without errors and requests, and the sliders change the picture."""

import os
import shutil

import pytest

from egic.report.page import write_report
from tests import evaluation_folders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("EGIC_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium on the PATH, and EGIC_CHROMIUM is not set")
    with playwright.sync_playwright() as p:
        # Chromium has no sandbox as root; the page is our own file
        browser = p.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    pictures = {f"{i}.png": evaluation_folders.photograph(i, 96, 128) for i in range(2)}
    folder = tmp_path_factory.mktemp("evaluation")
    evaluation_folders.make(folder, pictures, labels=("EGIC <b>", "other"))
    return write_report(folder)


@pytest.fixture(params=[(1280, 800), (360, 740)], ids=["desktop", "phone"])
def page(browser, page_file, request):
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    page.close()


def test_it_opens_without_errors_or_requests_and_fits_the_screen(page):
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("[...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth > 0)")


def test_the_slider_changes_the_picture_by_keyboard(page):
    figure = page.locator(".decoded").first
    slider, shown = figure.get_by_role("slider"), figure.locator(".stack img.shown")
    assert shown.count() == 1 and "alpha 1" in shown.get_attribute("alt")
    first, text = shown.get_attribute("src"), figure.locator("output").inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert "alpha 0.75" in shown.get_attribute("alt") and shown.get_attribute("src") != first
    assert figure.locator(".at").inner_text() == "alpha 0.75"
    assert figure.locator("output").inner_text() != text and " dB, " in text and text.endswith(" bpp")
    page.keyboard.press("Home")
    assert "alpha 0" in shown.get_attribute("alt") and shown.is_visible()
    assert slider.get_attribute("aria-valuetext").startswith("alpha 0, ")
    other = page.locator(".decoded").nth(1).locator(".stack img.shown")
    assert "alpha 1" in other.get_attribute("alt")  # every picture has its own slider
    assert page.said == []


def test_holding_shows_the_original(page):
    figure = page.locator(".decoded").first
    button, original = figure.get_by_role("button"), figure.locator("img.hold")
    assert not original.is_visible()
    button.focus()
    page.keyboard.down("Space")
    assert original.is_visible() and not figure.locator("img.shown").is_visible()
    page.keyboard.up("Space")
    assert not original.is_visible() and figure.locator("img.shown").is_visible()


def test_a_model_of_any_rate_has_a_quality_slider(browser, tmp_path):
    folder = evaluation_folders.make(
        tmp_path / "e", {"0.png": evaluation_folders.photograph(0, 96, 128)}, alphas=(0.0, 1.0), qualities=(20, 50, 80)
    )
    page = browser.new_page()
    page.goto(write_report(folder).as_uri())
    figure = page.locator(".decoded").first
    quality, alpha = figure.get_by_role("slider").all()
    shown = figure.locator(".stack img.shown")
    assert "quality 80, alpha 1" in shown.get_attribute("alt")
    quality.focus()
    page.keyboard.press("ArrowLeft")
    assert figure.locator(".at").inner_text() == "quality 50, alpha 1"
    alpha.focus()
    page.keyboard.press("Home")
    assert "quality 50, alpha 0" in shown.get_attribute("alt") and shown.count() == 1
    page.close()
