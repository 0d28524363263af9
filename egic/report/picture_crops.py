"""Pictures to compare, cropped and compressed so that they fit into the report's page."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from egic.pictures import read as read_picture
from egic.report.curves import number
from egic.report.evaluation_folder import CODEC, Shown

MAX_PICTURES = 8
STEPS = ((448, None), (384, None), (320, None), (320, 95), (256, 90), (192, 80), (128, 70))
"""Side of a crop in pixels, and quality of its WebP file (None: lossless). The first that fits is used."""


def comparisons(shown: Mapping[str, tuple[Path, list[Shown]]], max_bytes: int) -> tuple[list[dict], str]:
    """(the page's data of each picture, together within `max_bytes`; a text that describes how crops are stored).

    shown: original and decoded pictures by name, as `evaluation_folder.shown` returns them.
    Each picture has `name`, `where` (text), `original` (URI), and `codecs`: label, `groups` (qualities of a model,
    points of another codec), `alphas`, and `frames`, one per group and alpha.
    """
    pictures = [_cut(stem, *files) for stem, files in list(shown.items())[:MAX_PICTURES]]
    for side, quality in STEPS:
        found, total = [], 0
        for stem, where, (top, left), crops in pictures:
            down, right = busiest(crops[0][1], side)
            files = [_webp(p[down : down + side, right : right + side], quality) for _, p in crops]
            total += sum(map(len, files))
            if total > max_bytes:
                break
            height, width = min(side, crops[0][1].shape[0]), min(side, crops[0][1].shape[1])
            words = f"{width} x {height} pixels at {left + right}, {top + down} of {where}"
            found.append(_comparison(stem, words, (height, width), files, [s for s, _ in crops[1:]]))
        if total <= max_bytes:
            break
    return found, "lossless" if quality is None else f"as WebP of quality {quality}"


def _cut(stem: str, original: Path, decoded: list[Shown]) -> tuple[str, str, tuple[int, int], list]:
    """The largest crop of each picture, to save memory; without decoded pictures of another size than the original."""
    side, x = STEPS[0][0], _load(original)
    top, left = busiest(x, side)
    crops: list[tuple[Shown | None, np.ndarray]] = [(None, x[top : top + side, left : left + side].copy())]
    for s in decoded:
        picture = _load(s.file)
        if picture.shape == x.shape:
            crops.append((s, picture[top : top + side, left : left + side].copy()))
    return stem, f"{x.shape[1]} x {x.shape[0]}", (top, left), crops


def _load(path: Path) -> np.ndarray:
    return read_picture(path.read_bytes())[0]  # checked, as the folder may come from an untrusted source


def busiest(x: np.ndarray, side: int, step: int = 32) -> tuple[int, int]:
    """Top left corner of the square with most detail in the picture (H, W, 3), where codecs differ most.

    It depends only on the original, so that it favours no codec.
    """
    grey = x.astype(np.float32).mean(2)
    detail = np.zeros_like(grey)
    detail[1:] += np.abs(np.diff(grey, axis=0))
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    summed = np.pad(np.minimum(detail, 64).cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    height, width = grey.shape
    best, place = -1.0, (0, 0)
    for top in range(0, max(1, height - side + 1), step):
        for left in range(0, max(1, width - side + 1), step):
            bottom, right = min(top + side, height), min(left + side, width)
            value = summed[bottom, right] - summed[top, right] - summed[bottom, left] + summed[top, left]
            if value > best:
                best, place = value, (top, left)
    return place


def _webp(x: np.ndarray, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    options = {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(np.ascontiguousarray(x)).save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _comparison(name: str, where: str, size: tuple[int, int], files: list[bytes], shown: list[Shown]) -> dict:
    uris = ["data:image/webp;base64," + base64.b64encode(data).decode() for data in files]
    codecs: dict[str, list[dict]] = {}
    for uri, s in zip(uris[1:], shown, strict=True):
        psnr_db, bpp, alpha = (number(s.row, column) for column in ("psnr_db", "bpp", "alpha"))
        numbers = ([] if psnr_db is None else [f"{psnr_db:.2f} dB"]) + ([] if bpp is None else [f"{bpp:.4f} bpp"])
        if s.row["codec"] == CODEC:
            quality = s.row.get("quality")
            group, order = "" if quality is None else f"quality {quality}", (quality or 0, alpha or 0.0)
        else:
            group, order = s.row["point"], (bpp or 0.0, 0.0)
        frame = {
            "uri": uri, "name": s.row["point"], "text": ", ".join(numbers), "group": group, "order": order,
            "alpha": "" if alpha is None else f"alpha {alpha:g}", "model": s.row["codec"] == CODEC,
        }  # fmt: skip
        codecs.setdefault(s.row["label"], []).append(frame)
    return {
        "name": name, "where": where, "height": size[0], "width": size[1], "original": uris[0],
        "codecs": [_codec(label, frames) for label, frames in codecs.items()],
    }  # fmt: skip


def _codec(label: str, frames: list[dict]) -> dict:
    """A codec's frames in the order of rate and alpha, and the values of its sliders."""
    frames = sorted(frames, key=lambda frame: frame["order"])
    return {
        "label": label, "frames": frames, "model": frames[0]["model"],
        "groups": list(dict.fromkeys(frame["group"] for frame in frames)),
        "alphas": sorted({frame["alpha"] for frame in frames}, key=lambda alpha: float(alpha[6:] or 0)),
    }  # fmt: skip
