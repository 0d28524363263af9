"""Swin blocks and resampling without gradients, strip by strip: less memory, better use of caches, the same arithmetic.

Each group of windows is processed by the whole block and written back to the same feature map. Since windows do not
overlap, there are no seams, and one feature map is in memory instead of a dozen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from egic.networks.swin import SwinBlock, window_kinds

CHUNK = {"cpu": 2**19, "cuda": 2**26}  # elements of a feature map that are worked on at a time


def _chunk(x: Tensor, unit: int) -> int:
    """How many units of `unit` elements are processed at a time on x's device."""
    return max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // unit)


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), if it maps each pair of rows of x (B, H, W, C) independently of the others.

    It is called once with gradients, and in strips without; then the result is contiguous.
    """
    if torch.is_grad_enabled():
        return function(x)
    b, height, width, channels = x.shape
    rows, out = 2 * _chunk(x, 2 * b * width * channels), None
    for top in range(0, height, rows):
        part = function(x[:, top : top + rows])
        if out is None:
            up, down = part.shape[1], min(rows, height)
            out = part.new_empty(b, height * up // down, *part.shape[2:])
        start = top * up // down
        out[:, start : start + part.shape[1]] = part
    assert out is not None  # a picture has rows
    return out


def swin_block_(block: SwinBlock, x: Tensor) -> None:
    """Overwrite x (B, H, W, C), with sides that are multiples of the window, by the block's output."""
    b, height, width, channels = x.shape
    w, shift = block.window, block.shift
    down, across = height // w, width // w
    rows, step = _chunk(x, b * w * width * channels), _chunk(x, w * w * channels)
    biases = block.bias_of(block.attn.position_bias(), torch.arange(4, device=x.device))
    for row in range(0, down, rows):
        n = min(rows, down - row)
        strip = _rows(x, row * w + shift, n * w)
        windows = x.new_empty(b, n, across, w, w, channels)
        for pixels, place in _same_pixels(strip, windows, shift):
            place.copy_(pixels)
        t, kinds = windows.view(-1, w * w, channels), window_kinds(b, down, across, x.device, row, row + n)
        for i in range(0, len(t), step):
            part = slice(i, i + step)
            t[part] = block.on_windows(t[part], biases[kinds[part]] if shift else biases)
        for place, pixels in _same_pixels(strip, windows, shift):
            place.copy_(pixels)
        _put_rows(x, row * w + shift, strip)


def _same_pixels(strip: Tensor, windows: Tensor, shift: int) -> list[tuple[Tensor, Tensor]]:
    """Parts of a strip (B, n w, W, C), and the same pixels in its windows (B, n, W/w, w, w, C), as views.

    With a shift, windows begin that many pixels further right, and the last one of a row continues at its left end.
    """
    _, n, across, w, _, _ = windows.shape
    lines, end = strip.unflatten(1, (n, w)), (across - 1) * w + shift
    if not shift:
        return [(lines.unflatten(3, (across, w)).transpose(2, 3), windows)]
    whole, last = windows[:, :, :-1], windows[:, :, -1]
    return [
        (lines[:, :, :, shift:end].unflatten(3, (across - 1, w)).transpose(2, 3), whole),
        (lines[:, :, :, end:], last[:, :, :, : w - shift]),
        (lines[:, :, :, :shift], last[:, :, :, w - shift :]),
    ]


def _rows(x: Tensor, top: int, number: int) -> Tensor:
    """Rows top..top + number of x, continuing at the top after the last row."""
    below = top + number - x.shape[1]
    return torch.cat([x[:, top:], x[:, :below]], 1) if below > 0 else x[:, top : top + number]


def _put_rows(x: Tensor, top: int, rows: Tensor) -> None:
    """The reverse of `_rows`. Rows that are a view of x, which `_rows` returns if possible, need no copy."""
    inside = x.shape[1] - top
    if inside < rows.shape[1]:
        x[:, top:] = rows[:, :inside]
        x[:, : rows.shape[1] - inside] = rows[:, inside:]
