"""Formats and names of picture files."""

import io
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import PurePath

from PIL import Image, features

from egic.errors import UserError, visible
from egic.pictures import heif, jpeg, jpeg2000, png, tiff

_HEIC = (".heic", ".heif", ".hif")

_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    **({"AVIF": (".avif", ".avifs")} if find_spec("PIL._avif") else {}),
    **({"JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")} if features.check_codec("jpg_2000") else {}),
    **({"HEIF": _HEIC} if find_spec("pillow_heif") else {}),
}
"""File suffixes by Pillow's name of the format, for all formats that can be read.

Pillow may be built without two of them, and reads HEIF through pillow-heif, of the extra `heic`.
"""
READS = tuple(_SUFFIXES)
READ_SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
_OTHERS = (
    ".heic .heif .hif .heics .avif .avifs .jp2 .j2k .j2c .jpc .jpf .jpx .jpm .jxl .jxr .wdp .hdp .jxs .jls .psd "
    ".psb .xcf .kra .ora .ai .eps .ps .pdf .svg .svgz .tga .pcx .sgi .rgb .ras .pam .pfm .xbm .xpm .ico .icns .cur "
    ".dds .exr .hdr .qoi .flif .bpg .mng .jng .wmf .emf .fits .dcm .dng .raw .cr2 .cr3 .crw .nef .nrw .arw .srf "
    ".sr2 .orf .raf .rw2 .rwl .srw .pef .3fr .fff .x3f .erf .mef .mos .mrw .iiq .dcr .kdc .gpr"
).split()
"""Suffixes of pictures in formats that cannot be read, or only with an optional part of Pillow or pillow-heif."""


def open_file(data: bytes, *, upright: bool = True) -> Image.Image:
    """A picture file as a Pillow image whose pixels are not decoded yet. Raises what Pillow's plugins raise.

    Registers pillow-heif with Pillow for a HEIC file. Raises UserError for one if pillow-heif is not installed.
    upright: whether decoding a TIFF applies its orientation. Of other formats, Pillow decodes the pixels as stored.
    """
    if not heif.is_heic(data):
        file = io.BytesIO(tiff.main_page(data, upright=upright))
        return Image.open(file, formats=[form for form in READS if form != "HEIF"])
    try:
        from pillow_heif import register_heif_opener
    except ModuleNotFoundError as error:
        raise UserError("HEIC pictures need the package pillow-heif: pip install 'egic[heic]'") from error
    register_heif_opener()
    return Image.open(io.BytesIO(data), formats=["HEIF"])


_STARTS = {
    "PNG": (png.START,),
    "JPEG": (jpeg.START,),
    "TIFF": tiff.STARTS,
    "BMP": (b"BM",),
    "PPM": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JPEG2000": jpeg2000.STARTS,
}


def format_of(data: bytes) -> str:
    """Pillow's name of the format that the first bytes of a file state; empty for others than those that are read."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if heif.is_heic(data):
        return "HEIF"
    if heif.is_avif(data):
        return "AVIF"
    return next((form for form, starts in _STARTS.items() if data.startswith(starts)), "")


def left_out(names: Iterable[str]) -> str:
    """Counts of picture files in formats that cannot be read: "3 .cr2, 1 .dng"; empty for none.

    If HEIC files are among them, the text ends with the command that installs their reader.
    """
    kinds = Counter(PurePath(name).suffix.lower() for name in names)
    unread = {kind: n for kind, n in kinds.most_common() if kind in _OTHERS and kind not in READ_SUFFIXES}
    counts = ", ".join(f"{n} {kind}" for kind, n in unread.items())
    fix = not unread.keys().isdisjoint(_HEIC) and "HEIF" not in READS
    return f"{counts}; for HEIC: pip install 'egic[heic]'" if fix else counts


def printable(name: str) -> str:
    """A file name as valid Unicode on one line: bytes that are not UTF-8, and control characters, become \\xNN."""
    return visible(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
