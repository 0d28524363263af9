"""Other codecs to compare a model with: JPEG, WebP, AVIF and JPEG XL through Pillow, BPG and VTM if installed.

Pillow's codecs use their settings for the smallest files, AVIF libavif's default speed 6. BPG and VTM run through
compressai's benchmark classes: 4:4:4, YCbCr, 8 bit, VTM all-intra. Learned codecs come from compressai's zoo.
"""

import contextlib
import io
import math
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from egic.errors import UserError, reason
from egic.file_size import bpp


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A picture that was encoded and decoded: bytes of the file, decoded picture (uint8 (H, W, 3)), and seconds."""

    num_bytes: int
    picture: np.ndarray
    encode_s: float
    decode_s: float

    @property
    def bpp(self) -> float:
        return bpp(self.num_bytes, *self.picture.shape[:2])


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An encoded picture that is not decoded yet."""

    num_bytes: int
    encode_s: float
    decode: Callable[[], tuple[np.ndarray, float]]
    """Returns the picture, uint8 (H, W, 3), and the seconds that decoding takes."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A codec: its rate rises from quality `low` to quality `high` (for quantisers, `high` is the smaller number)."""

    codec: str
    low: int
    high: int
    run: Callable[[np.ndarray, int], Encoded]

    @property
    def label(self) -> str:
        """The codec's name in tables and plots."""
        return LABELS[self.codec]

    def encode(self, x: np.ndarray, quality: int) -> Encoded:
        """uint8 (H, W, 3) at a quality -> its file.

        Raises UserError for a quality out of range, and for a picture that the codec cannot code.
        """
        if not min(self.low, self.high) <= quality <= max(self.low, self.high):
            raise UserError(f"{self.label} takes qualities {self.low} (smallest files) to {self.high}, got {quality}")
        return self.run(x, quality)

    def code(self, x: np.ndarray, quality: int) -> Coded:
        """uint8 (H, W, 3) at a quality -> file size and decoded picture. Raises UserError as `encode` does."""
        return _decoded(self.encode(x, quality))


def _decoded(file: Encoded) -> Coded:
    picture, decode_s = file.decode()
    return Coded(num_bytes=file.num_bytes, picture=picture, encode_s=file.encode_s, decode_s=decode_s)


def _pillow(form: str, **options) -> Callable[[np.ndarray, int], Encoded]:
    def run(x: np.ndarray, quality: int) -> Encoded:
        file, start = io.BytesIO(), time.perf_counter()
        try:
            Image.fromarray(x).save(file, form, quality=quality, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{form} cannot code {x.shape[1]} x {x.shape[0]} pixels ({error})") from error
        encode_s = time.perf_counter() - start

        def decode() -> tuple[np.ndarray, float]:
            start = time.perf_counter()
            picture = np.asarray(Image.open(file).convert("RGB"))
            return picture, time.perf_counter() - start

        return Encoded(num_bytes=len(file.getvalue()), encode_s=encode_s, decode=decode)

    return run


def _compressai(name: str, arguments: list[str]) -> Callable[[np.ndarray, int], Encoded]:
    """A codec that the class `name` of compressai.utils.bench.codecs runs as a binary; encoding always decodes as well.

    The class truncates values when it converts to YCbCr and back: even a lossless codec has a PSNR of 44.0 dB, so the
    PSNR of VTM is slightly too low, and more so at higher qualities.
    """

    def run(x: np.ndarray, quality: int) -> Encoded:
        import argparse

        from compressai.utils.bench import codecs  # here, because the import takes seconds

        parser = argparse.ArgumentParser()
        getattr(codecs, name).setup_args(parser)
        codec = getattr(codecs, name)(parser.parse_args(arguments))
        output = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(output):
            source = Path(folder) / "x.png"
            Image.fromarray(x).save(source)
            try:
                found, decoded = codec.run(str(source), quality, return_rec=True)
            except SystemExit as error:  # how compressai reports that the binary failed
                raise UserError(f"{name} failed: {output.getvalue().strip()[-200:] or 'no message'}") from error
        return Encoded(
            num_bytes=round(found["bpp"] * x[..., 0].size / 8), encode_s=found["encoding_time"],
            decode=lambda: (np.asarray(decoded), found["decoding_time"]),
        )  # fmt: skip

    return run


def _jpeg() -> Anchor:
    run = _pillow("JPEG", optimize=True, progressive=True)
    return Anchor(codec="jpeg", low=1, high=100, run=run)


def _webp() -> Anchor:
    return Anchor(codec="webp", low=0, high=100, run=_pillow("WEBP", method=6))


def _avif() -> Anchor:
    from PIL import features

    if not features.check("avif"):
        raise LookupError("this Pillow is built without AVIF")
    return Anchor(codec="avif", low=0, high=100, run=_pillow("AVIF", speed=6))


def _jxl() -> Anchor:
    try:
        import pillow_jxl  # noqa: F401  (registers the format with Pillow)
    except ImportError as error:
        raise LookupError("the package pillow-jxl-plugin is not installed") from error
    return Anchor(codec="jxl", low=0, high=99, run=_pillow("JXL", effort=7))  # 100 is lossless


def _binary(name: str) -> Path:
    found = shutil.which(name)
    if not found:
        raise LookupError(f"{name} is not on the PATH")
    return Path(found).resolve()


def _bpg() -> Anchor:
    arguments = ["--encoder-path", str(_binary("bpgenc")), "--decoder-path", str(_binary("bpgdec"))]
    return Anchor(codec="bpg", low=51, high=0, run=_compressai("BPG", arguments))


def _vtm() -> Anchor:
    folder = _binary("EncoderAppStatic").parent
    settings = folder.parent / "cfg" / "encoder_intra_vtm.cfg"  # VTM's source tree has bin/ beside cfg/
    if not (folder / "DecoderAppStatic").is_file() or not settings.is_file():
        raise LookupError(f"EncoderAppStatic needs DecoderAppStatic in the same folder, and {settings}")
    run = _compressai("VTM", ["--build-dir", str(folder), "--config", str(settings)])
    return Anchor(codec="vtm", low=63, high=0, run=run)


def _learned(name: str) -> Anchor:
    """A learned codec of compressai's zoo, trained for MSE. Weights: files in $EGIC_WEIGHTS, else downloaded."""
    files = _zoo_files(name)
    local = [quality for quality, path in files.items() if path.is_file()]
    low, high = min(files), max(files)
    if local:  # the available qualities up to the first missing one
        low = local[0]
        high = next((q - 1 for q in range(low, max(files) + 1) if q not in local), max(files))
    try:
        _zoo_model(name, low)
    except UserError as error:
        raise LookupError(str(error)) from error
    return Anchor(codec=name, low=low, high=high, run=lambda x, quality: _learned_file(name, x, quality))


def _zoo_files(name: str) -> dict[int, Path]:
    """The path of each quality's weights in $EGIC_WEIGHTS, whether it exists or not; names are compressai's."""
    try:
        from compressai.zoo import image  # here, because the import takes seconds
    except ImportError as error:
        raise LookupError("the package compressai is not installed") from error
    folder = Path(os.environ.get("EGIC_WEIGHTS", ""))
    return {quality: folder / Path(url).name for quality, url in image.model_urls[name]["mse"].items()}


@lru_cache(maxsize=16)
def _zoo_model(name: str, quality: int):
    """The model with its entropy coder's tables, on the CPU. Raises UserError for missing and damaged weights."""
    from compressai.zoo import image, image_models

    path = _zoo_files(name)[quality]
    try:
        if path.is_file():
            state = image.load_pretrained(torch.load(path, map_location="cpu", weights_only=True))
            model = image.model_architectures[name].from_state_dict(state)
        else:
            model = image_models[name](quality=quality, metric="mse", pretrained=True, progress=False)
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        if path.is_file():
            raise UserError(f"{path} does not hold compressai's {name} ({reason(error)}); download it again") from error
        raise UserError(
            f"weights of compressai's {name} could not be downloaded ({reason(error)}); go online, or put {path.name} "
            "into a folder and name it in EGIC_WEIGHTS"
        ) from error
    model.update()
    return model.eval()


@torch.inference_mode()
def _learned_file(name: str, x: np.ndarray, quality: int) -> Encoded:
    """Encode one picture. Sides are padded to multiples of 64 with black, as in compressai's own evaluation."""
    from compressai.ops import compute_padding

    model, start = _zoo_model(name, quality), time.perf_counter()
    border, inside = compute_padding(*x.shape[:2], min_div=64)
    pixels = torch.tensor(x).permute(2, 0, 1)[None] / 255
    coded = model.compress(torch.nn.functional.pad(pixels, border))
    encode_s = time.perf_counter() - start

    @torch.inference_mode()
    def decode() -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        found = torch.nn.functional.pad(model.decompress(**coded)["x_hat"], inside)
        picture = (255 * found[0]).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return picture, time.perf_counter() - start

    return Encoded(num_bytes=sum(len(strings[0]) for strings in coded["strings"]), encode_s=encode_s, decode=decode)


_FIND = {"jpeg": _jpeg, "webp": _webp, "avif": _avif, "jxl": _jxl, "bpg": _bpg, "vtm": _vtm}
NAMES = tuple(_FIND)
LEARNED = ("bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-attn")
LABELS = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL", "bpg": "BPG", "vtm": "VTM"}
LABELS |= {name: name for name in LEARNED}


def find(names: Sequence[str] = NAMES) -> tuple[list[Anchor], dict[str, str]]:
    """(codecs of these names that are installed, by name the reason why each other one is not available).

    A name that is given twice counts once. Raises UserError for a name that is neither in NAMES nor in LEARNED.
    """
    found, missing = [], {}
    for name in dict.fromkeys(names):
        if name not in (*NAMES, *LEARNED):
            raise UserError(f"--anchors has {name!r}, which is not one of {', '.join((*NAMES, *LEARNED))}")
        try:
            found.append(_learned(name) if name in LEARNED else _FIND[name]())
        except LookupError as error:
            missing[name] = str(error)
    return found, missing


class Matcher:
    """Finds the qualities at which a codec's file of one picture matches given sizes. Keeps all results, so that no
    quality is encoded or decoded twice."""

    def __init__(self, anchor: Anchor, x: np.ndarray):
        self.anchor, self.x = anchor, x
        self.files: dict[int, Encoded] = {}
        """By step, the number of qualities above the lowest one."""
        self.decoded: dict[int, Coded] = {}

    def file(self, step: int) -> Encoded:
        """The file `step` qualities above the lowest one."""
        if step not in self.files:
            quality = self.anchor.low + (step if self.anchor.high > self.anchor.low else -step)
            self.files[step] = self.anchor.encode(self.x, quality)
        return self.files[step]

    def step(self, num_bytes: float) -> int:
        """The step whose file size is nearest to `num_bytes`; 0 if even the smallest file is larger. Decodes nothing.

        The search starts from the files of earlier calls and assumes that sizes grow exponentially; every second guess
        halves the interval, so that the search ends for any sizes.
        """
        below, above = 0, abs(self.anchor.high - self.anchor.low)
        if self.file(below).num_bytes >= num_bytes:
            return below
        if self.file(above).num_bytes <= num_bytes:
            return above
        for known in self.files:
            if below < known < above:
                below, above = (known, above) if self.files[known].num_bytes < num_bytes else (below, known)
        halve = False
        while above - below > 1:
            guess = (below + above) // 2 if halve else self._guess(below, above, num_bytes)
            below, above = (guess, above) if self.file(guess).num_bytes < num_bytes else (below, guess)
            halve = not halve
        return min(below, above, key=lambda step: abs(self.files[step].num_bytes - num_bytes))

    def _guess(self, below: int, above: int, num_bytes: float) -> int:
        """A step between two others, by linear interpolation of the logarithm of the size."""
        low, high = (math.log(max(1, self.files[step].num_bytes)) for step in (below, above))
        part = (math.log(max(1, num_bytes)) - low) / (high - low) if high > low else 0.5
        return min(above - 1, max(below + 1, round(below + part * (above - below))))

    def nearest(self, num_bytes: float) -> Coded:
        """The picture at the quality whose file size is nearest to `num_bytes`."""
        step = self.step(num_bytes)
        if step not in self.decoded:
            self.decoded[step] = _decoded(self.file(step))
        return self.decoded[step]
