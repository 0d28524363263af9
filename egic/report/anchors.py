"""Other codecs to hold the model against: JPEG, WebP, AVIF and JPEG XL through Pillow, BPG and VTM where they are.

Pillow's codecs run at their smaller settings, AVIF at libavif's usual speed 6. BPG and VTM are called by compressai's
benchmark classes: 4:4:4, YCbCr, 8 bit, VTM all-intra.
"""

import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from egic.errors import UserError
from egic.report.curves import METRICS


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A picture that went through a codec: the file's bytes, what comes out (uint8 (H, W, 3)), and the seconds."""

    num_bytes: int
    picture: np.ndarray
    encode_s: float
    decode_s: float

    @property
    def bpp(self) -> float:
        return 8 * self.num_bytes / self.picture[..., 0].size


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A codec: its rate rises from quality `low` to quality `high` (for quantisers, `high` is the smaller number)."""

    label: str
    codec: str
    low: int
    high: int
    run: Callable[[np.ndarray, int], Coded]

    def code(self, x: np.ndarray, quality: int) -> Coded:
        """uint8 (H, W, 3) at a quality -> file size and decoded picture.

        Raises UserError for a quality out of range, and for what the codec cannot code.
        """
        if not min(self.low, self.high) <= quality <= max(self.low, self.high):
            raise UserError(f"{self.label} takes qualities {self.low} (smallest files) to {self.high}, got {quality}")
        return self.run(x, quality)


def _pillow(form: str, **options) -> Callable[[np.ndarray, int], Coded]:
    def run(x: np.ndarray, quality: int) -> Coded:
        file, start = io.BytesIO(), time.perf_counter()
        try:
            Image.fromarray(x).save(file, form, quality=quality, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{form} cannot code {x.shape[1]} x {x.shape[0]} pixels ({error})") from error
        encode_s, start = time.perf_counter() - start, time.perf_counter()
        decoded = np.asarray(Image.open(file).convert("RGB"))
        return Coded(
            num_bytes=len(file.getvalue()), picture=decoded,
            encode_s=encode_s, decode_s=time.perf_counter() - start,
        )  # fmt: skip

    return run


def _compressai(name: str, arguments: list[str]) -> Callable[[np.ndarray, int], Coded]:
    """A class of compressai.utils.bench.codecs, which calls binaries.

    Its way to YCbCr and back cuts values off instead of rounding them: a coder that changed nothing had 44.0 dB, so
    that VTM comes out slightly too low, the more the higher the quality.
    """

    def run(x: np.ndarray, quality: int) -> Coded:
        import argparse

        from compressai.utils.bench import codecs  # takes seconds

        parser = argparse.ArgumentParser()
        getattr(codecs, name).setup_args(parser)
        codec = getattr(codecs, name)(parser.parse_args(arguments))
        said = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
            source = Path(folder) / "x.png"
            Image.fromarray(x).save(source)
            try:
                found, decoded = codec.run(str(source), quality, return_rec=True)
            except SystemExit as error:  # its way of saying that the binary failed
                raise UserError(f"{name} failed: {said.getvalue().strip()[-200:] or 'without a word'}") from error
        return Coded(
            num_bytes=round(found["bpp"] * x[..., 0].size / 8), picture=np.asarray(decoded),
            encode_s=found["encoding_time"], decode_s=found["decoding_time"],
        )  # fmt: skip

    return run


def _jpeg() -> Anchor:
    run = _pillow("JPEG", optimize=True, progressive=True)
    return Anchor(label="JPEG", codec="jpeg", low=1, high=100, run=run)


def _webp() -> Anchor:
    return Anchor(label="WebP", codec="webp", low=0, high=100, run=_pillow("WEBP", method=6))


def _avif() -> Anchor:
    from PIL import features

    if not features.check("avif"):
        raise LookupError("this Pillow is built without AVIF")
    return Anchor(label="AVIF", codec="avif", low=0, high=100, run=_pillow("AVIF", speed=6))


def _jxl() -> Anchor:
    try:
        import pillow_jxl  # noqa: F401  (tells Pillow of the format)
    except ImportError as error:
        raise LookupError("the package pillow-jxl-plugin is not installed") from error
    return Anchor(label="JPEG XL", codec="jxl", low=0, high=99, run=_pillow("JXL", effort=7))  # 100 is lossless


def _binary(name: str) -> Path:
    found = shutil.which(name)
    if not found:
        raise LookupError(f"{name} is not on the PATH")
    return Path(found).resolve()


def _bpg() -> Anchor:
    arguments = ["--encoder-path", str(_binary("bpgenc")), "--decoder-path", str(_binary("bpgdec"))]
    return Anchor(label="BPG", codec="bpg", low=51, high=0, run=_compressai("BPG", arguments))


def _vtm() -> Anchor:
    folder = _binary("EncoderAppStatic").parent
    settings = folder.parent / "cfg" / "encoder_intra_vtm.cfg"  # as in VTM's own tree: bin/ beside cfg/
    if not (folder / "DecoderAppStatic").is_file() or not settings.is_file():
        raise LookupError(f"beside EncoderAppStatic there must be DecoderAppStatic and {settings}")
    run = _compressai("VTM", ["--build-dir", str(folder), "--config", str(settings)])
    return Anchor(label="VTM", codec="vtm", low=63, high=0, run=run)


_FIND = {"jpeg": _jpeg, "webp": _webp, "avif": _avif, "jxl": _jxl, "bpg": _bpg, "vtm": _vtm}
NAMES = tuple(_FIND)


def find(names: Sequence[str] = NAMES) -> tuple[list[Anchor], dict[str, str]]:
    """The codecs of these names that this machine has, and of each other one the reason why it is left out.

    Raises UserError for a name that is none of NAMES.
    """
    found, missing = [], {}
    for name in names:
        if name not in _FIND:
            raise UserError(f"no anchor {name!r}; there are {', '.join(NAMES)}")
        try:
            found.append(_FIND[name]())
        except LookupError as error:
            missing[name] = str(error)
    return found, missing


class Matcher:
    """One picture through one codec at wanted rates; what was coded once is not coded again."""

    def __init__(self, anchor: Anchor, x: np.ndarray):
        self.anchor, self.x = anchor, x
        self.coded: dict[int, Coded] = {}

    def at(self, step: int) -> Coded:
        """`step` qualities above the lowest one."""
        quality = self.anchor.low + (step if self.anchor.high > self.anchor.low else -step)
        if quality not in self.coded:
            self.coded[quality] = self.anchor.code(self.x, quality)
        return self.coded[quality]

    def nearest(self, bpp: float) -> Coded:
        """The picture at the quality whose rate is nearest to `bpp`, by bisection.

        A codec whose smallest file is larger than that gives its smallest file.
        """
        below, above = 0, abs(self.anchor.high - self.anchor.low)
        if self.at(below).bpp >= bpp:
            return self.at(below)
        while above - below > 1:
            middle = (below + above) // 2
            if self.at(middle).bpp < bpp:
                below = middle
            else:
                above = middle
        return min(self.at(below), self.at(above), key=lambda coded: abs(coded.bpp - bpp))


def row(
    anchor: Anchor, name: str, x: np.ndarray, coded: Coded, point: str,
    measure: Callable[[np.ndarray, np.ndarray], Mapping[str, float | None]],
) -> dict:  # fmt: skip
    """A row of an evaluation's rows.parquet; `measure(x_hat, x)` gives its metrics, others are null."""
    height, width, _ = x.shape
    return {
        "label": anchor.label, "codec": anchor.codec, "point": point, "name": name, "height": height, "width": width,
        "alpha": None, "bytes": coded.num_bytes, "bpp": coded.bpp,
        **{metric.name: None for metric in METRICS.values() if not metric.of_a_set}, **measure(coded.picture, x),
        "encode_s": coded.encode_s, "decode_s": coded.decode_s, "model_digest": None,
    }  # fmt: skip
