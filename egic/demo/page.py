"""The page of `egic demo`: upload a picture, see the size of its file and the decoded picture beside the original.

Built with Gradio. The page loads nothing from other hosts: fonts are the system's, analytics are off. The caller must
set Gradio's environment variables before this module is imported (`egic.cli.demo`).
"""

import html
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import safehttpx
from PIL import Image

from egic.demo.session import MAX_BYTES, Opened, UploadCoder
from egic.errors import UserError, reason
from egic.file_size import bpp, parse_size

CSS = Path(__file__).with_suffix(".css")
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")


def theme() -> gr.themes.Base:
    """The colours of the evaluation report, light and dark, and the system's fonts."""
    base = gr.themes.Base(font=FONT, font_mono=("ui-monospace", "monospace"))
    return base.set(
        body_background_fill="#f4f5f6", body_background_fill_dark="#121619",
        body_text_color="#1c2126", body_text_color_dark="#e8eaed",
        body_text_color_subdued="#5d666f", body_text_color_subdued_dark="#98a2ad",
        block_background_fill="#ffffff", block_background_fill_dark="#1b2025",
        border_color_primary="#c9cfd5", border_color_primary_dark="#3c454e",
        color_accent="#0072b2", slider_color="#0072b2", slider_color_dark="#56b4e9",
        button_secondary_background_fill="#ffffff", button_secondary_background_fill_dark="#1b2025",
        button_secondary_border_color="#c9cfd5", button_secondary_border_color_dark="#3c454e",
        button_border_width="1px", block_border_width="0px", block_label_background_fill="transparent",
    )  # fmt: skip


@dataclass(frozen=True)
class StoredUpload:
    """An opened upload, and the folder of the files that the browser downloads."""

    opened: Opened
    folder: Path

    @classmethod
    def of(cls, opened: Opened, below: Path) -> "StoredUpload":
        stored = cls(opened, Path(tempfile.mkdtemp(dir=below)))
        stored.egic.write_bytes(opened.data)
        for name, x in (("original", opened.original), ("jpeg", opened.jpeg.picture if opened.jpeg else None)):
            if x is not None:
                _save(x, stored.folder / f"{name}.png")
        return stored

    @property
    def egic(self) -> Path:
        return self.folder / f"{self.opened.name}.egic"

    def at(self, alpha: float) -> Path:
        """The PNG file of the decoded picture at alpha, made on first use."""
        path = self.folder / f"{self.opened.name}_alpha_{alpha:.2f}.png"
        if not path.exists():
            _save(self.opened.at(alpha), path)
        return path

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _save(x: np.ndarray, path: Path) -> None:
    Image.fromarray(x).save(path, compress_level=1)  # a quarter of the default level's time, 10 % more bytes


def _rate(opened: Opened) -> tuple:
    """(row of quality and size, quality slider, size field); hidden without an original or for a model of one rate."""
    row = gr.Row(visible=opened.quality is not None and opened.original is not None)
    return row, gr.Slider(value=opened.quality or 0), gr.Textbox(value="")


def _mine(stored: StoredUpload, alpha: float) -> tuple:
    """(pictures left and right of the divider, their names, numbers, PNG to download) at alpha."""
    opened, shown = stored.opened, stored.at(alpha)
    has_alpha = opened.x_mse is not None
    right = f"EGIC, alpha {alpha:.2f}" if has_alpha else "EGIC"
    if opened.original is not None:
        left, name = stored.folder / "original.png", "Original"
    elif has_alpha:  # no original to compare with: the most faithful picture takes its place
        left, name = stored.at(0), "EGIC, alpha 0.00"
    else:
        left, name = shown, ""
    height, width = opened.size
    small = f"1/{_times(opened, len(opened.data))} of the raw {width} × {height} pixels · "
    if opened.compress_s is not None:
        small += f"compressed in {opened.compress_s:.1f} s, "
    small += f"decompressed in {opened.decompress_s:.1f} s"
    numbers = _numbers(len(opened.data), opened.bpp, opened.psnr_db(opened.at(alpha)))
    return (left, shown), _sides(name, right), _caption(numbers, small), gr.DownloadButton(value=shown)


def _jpeg(stored: StoredUpload) -> tuple:
    """(column, pictures, names, numbers) of the JPEG of nearest size; hidden without one."""
    opened = stored.opened
    jpeg = opened.jpeg
    if jpeg is None:
        return gr.Column(visible=False), None, "", ""
    more = jpeg.num_bytes / len(opened.data)
    why = f"its smallest file, {more:.1f} times as large" if more > 1.1 else "the quality whose file is nearest in size"
    small = f"1/{_times(opened, jpeg.num_bytes)} of the raw pixels · {why}"
    both = stored.folder / "original.png", stored.folder / "jpeg.png"
    numbers = _numbers(jpeg.num_bytes, jpeg.bpp, opened.psnr_db(jpeg.picture))
    return gr.Column(visible=True), both, _sides("Original", "JPEG"), _caption(numbers, small)


def _times(opened: Opened, num_bytes: int) -> str:
    """Compression factor: bytes of the raw 24-bit pixels / bytes of the file."""
    return f"{3 * opened.size[0] * opened.size[1] / num_bytes:.0f}"


def _numbers(num_bytes: int, bpp: float, psnr_db: float | None) -> list[str]:
    return [f"{num_bytes:,} bytes", f"{bpp:.3f} bpp"] + ([] if psnr_db is None else [f"{psnr_db:.2f} dB PSNR"])


def _sides(left: str, right: str) -> str:
    return f"<p><span>{left}</span><span>{right}</span></p>"


def _caption(numbers: list[str], small: str) -> str:
    return f"<p>{' · '.join(numbers)}<small>{small}</small></p>"


def _message(kind: str, text: str) -> str:
    return f'<p class="{kind}" role="{"alert" if kind == "error" else "status"}">{html.escape(text)}</p>'


NO_LONGER_STORED = _message("error", "this picture is no longer stored on the server: open the file again")


def build(coder: UploadCoder, model: str, folder: Path, at_once: int = 1) -> gr.Blocks:
    """Build the page. model: name to show. folder: for its files. at_once: uploads that are coded in parallel."""
    with gr.Blocks(title="EGIC", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        state = gr.State(None, time_to_live=3600, delete_callback=lambda stored: stored and stored.clear())
        gr.HTML(f"<h1>EGIC</h1><p>Generative image codec, <span>{html.escape(model)}</span></p>", elem_id="head")
        upload = gr.File(show_label=False, container=False, elem_id="drop")
        message = gr.HTML(elem_id="message")
        with gr.Row(visible=False, elem_id="panes") as panes:
            with gr.Column(min_width=300):
                sides, pane = gr.HTML(elem_classes="sides"), _pane("mine")
                alpha = gr.Slider(0, 1, 1, step=0.01, label="alpha: most faithful to most realistic", elem_id="alpha")
                with gr.Row(visible=False, elem_id="rate") as rate:
                    quality = gr.Slider(0, 100, 50, step=1, label="quality: smallest file to best", elem_id="quality")
                    size = gr.Textbox(
                        label="largest file", placeholder="20kB", max_lines=1, elem_id="size", min_width=120, scale=0
                    )
                caption = gr.HTML(elem_classes="caption")
                with gr.Row(elem_id="save"):
                    save_egic = gr.DownloadButton("Save .egic", elem_id="save-egic", min_width=120)
                    save_png = gr.DownloadButton("Save PNG", elem_id="save-png", min_width=120)
            with gr.Column(min_width=300) as beside:
                jpeg_sides, jpeg_pane = gr.HTML(elem_classes="sides"), _pane("jpeg")
                jpeg_caption = gr.HTML(elem_classes="caption")

        mine = [pane, sides, caption, save_png]
        rates = [rate, quality, size]
        theirs = [beside, jpeg_pane, jpeg_sides, jpeg_caption]
        changed = [state, save_egic, *rates, *mine, *theirs]

        def open_file(path: str, at: float, before: StoredUpload | None) -> Iterator[dict]:
            name = Path(path).name
            yield {upload: None, message: _message("busy", f"Compressing and decompressing {name}")}
            try:
                opened = coder.open(name, Path(path).read_bytes())
            except (UserError, OSError, MemoryError, RuntimeError) as error:
                yield {message: _message("error", f"{name} cannot be opened: {reason(error)}")}
                return
            stored = StoredUpload.of(opened, folder)
            if before is not None:
                before.clear()
            notes = f"{name}: {'; '.join(opened.notes)}" if opened.notes else ""
            yield {
                panes: gr.Row(visible=True), message: _message("note", notes) if notes else "",
                alpha: gr.Slider(visible=opened.x_mse is not None), **shown(stored, at),
            }  # fmt: skip

        def shown(stored: StoredUpload, at: float) -> dict:
            """Updates of all components that depend on the file."""
            return {
                state: stored, save_egic: gr.DownloadButton(value=stored.egic),
                **dict(zip(rates, _rate(stored.opened), strict=True)),
                **dict(zip(mine, _mine(stored, at), strict=True)), **dict(zip(theirs, _jpeg(stored), strict=True)),
            }  # fmt: skip

        def slide(stored: StoredUpload | None, at: float) -> dict:
            if stored is None:
                return {message: NO_LONGER_STORED}
            return dict(zip(mine, _mine(stored, at), strict=True))

        def code_again(stored: StoredUpload | None, at: float, **asked: int) -> Iterator[dict]:
            """Code the picture again: yields the new file's size, then its pictures. asked: quality or max_bytes."""
            if stored is None or stored.opened.original is None:
                yield {message: NO_LONGER_STORED}
                return
            try:
                file = coder.compress(stored.opened.original, **asked)
                rate = bpp(len(file.data), *stored.opened.size)
                yield {caption: _caption(_numbers(len(file.data), rate, None), "decompressing"), message: ""}
                new = StoredUpload.of(coder.replaced(stored.opened, file), folder)
            except (UserError, OSError, MemoryError, RuntimeError) as error:
                yield {message: _message("error", reason(error))}
                return
            stored.clear()
            yield shown(new, at)

        def at_quality(stored: StoredUpload | None, at: float, chosen: float) -> Iterator[dict]:
            yield from code_again(stored, at, quality=int(chosen))

        def of_size(stored: StoredUpload | None, at: float, text: str) -> Iterator[dict]:
            try:
                max_bytes = parse_size(text)
            except UserError as error:
                yield {message: _message("error", str(error))}
                return
            yield from code_again(stored, at, max_bytes=max_bytes)

        upload.upload(
            open_file, [upload, alpha, state], [upload, panes, alpha, message, *changed],
            show_progress="hidden", concurrency_id="coding", concurrency_limit=at_once,
        )  # fmt: skip
        for event, again, chosen in ((quality.input, at_quality, quality), (size.submit, of_size, size)):
            event(
                again, [state, alpha, chosen], [message, *changed],
                show_progress="hidden", concurrency_id="coding", concurrency_limit=at_once, trigger_mode="always_last",
            )  # fmt: skip
        alpha.input(
            slide, [state, alpha], [message, *mine], show_progress="hidden", queue=False, trigger_mode="always_last"
        )
    return page


def _pane(name: str) -> gr.ImageSlider:
    return gr.ImageSlider(
        show_label=False, container=False, buttons=[], interactive=False, max_height=600, elem_id=name,
        elem_classes="pane", format="png",
    )  # fmt: skip


async def _no_url(*_, **__) -> None:
    """Replaces Gradio's two functions that download a URL named in a request, so that the server makes no requests."""
    raise gr.Error("this page opens only uploaded files, not URLs", print_exception=False)


def start(page: gr.Blocks, host: str, port: int) -> str:
    """Serve the page, and return its address."""
    safehttpx.get = safehttpx.async_validate_url = _no_url
    _, url, _ = page.launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, inbrowser=False,
        max_file_size=MAX_BYTES, footer_links=[], theme=theme(), css_paths=CSS, root_path="", state_session_capacity=8,
        run_history=False, ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False,
    )  # fmt: skip
    return url
