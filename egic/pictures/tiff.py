"""TIFF files: which page is the picture, and kinds that Pillow cannot decode, or decodes to wrong pixels."""

import io
import struct
from contextlib import suppress
from typing import NamedTuple

from PIL import Image, TiffImagePlugin, TiffTags

from egic.errors import UserError

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
"""First bytes of a TIFF: little-endian and big-endian, the same of BigTIFF, with 64-bit offsets, and two wrong
ones that Pillow accepts."""
_USED = {
    256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339,
    347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 34675, 50674,
}  # fmt: skip
"""Tags that decide the pixels and their colours: those of TIFF 6.0 and of JPEG in TIFF, ICC profile, LERC."""
_KIND, _SUB_IFDS, _XMP, _INK_SET = 254, 330, 700, 332
_ORIENTED = {274, _XMP}
"""Tags that may have an orientation, by which Pillow transposes the pixels when it decodes them."""
_REDUCED, _MASK = 1, 4
"""Bits of the tag NewSubfileType: a smaller copy of another picture; a transparency mask."""


class Page(NamedTuple):
    """A directory of a TIFF: its offset, and its entries by tag, as they are stored."""

    at: int
    entries: dict[int, bytes]
    kind: int
    """NewSubfileType, a set of bits."""


def main_page(data: bytes, *, upright: bool = True) -> bytes:
    """A TIFF with its main page only, and of that only the tags that decide its pixels, so that nothing else can be an
    error. Other files are returned unchanged.

    The main page is the first that is neither a thumbnail nor a mask. upright: keep its orientation.
    """
    if not data.startswith(STARTS) or not (found := pages(data)):
        return data
    order, pointer, count, first, size = _layout(data)
    page = found[_main(found)]
    used = _USED if upright else _USED - _ORIENTED
    entries = [entry for tag, entry in page.entries.items() if tag in used]
    xmp = page.entries.get(_XMP)
    if upright and xmp and struct.unpack_from(order + "H", xmp, 2)[0] in (1, 7):  # bytes; Pillow takes no other type
        entries.append(xmp)
    entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry))
    directory = struct.pack(order + count, len(entries)) + b"".join(entries) + struct.pack(order + pointer, 0)
    made = bytearray(data)
    made[page.at : page.at + len(directory)] = directory
    struct.pack_into(order + pointer, made, first, page.at)
    return bytes(made)


def note(data: bytes) -> str:
    """What a user should know about the pages of a TIFF; empty if it has one.

    Raises UserError for a file with only thumbnails, whose picture is where Pillow does not find it.
    """
    found = pages(data)
    main = _main(found)
    if found and found[main].kind & _REDUCED:
        if _SUB_IFDS in found[main].entries:
            raise _not_read("its picture is not a page, only a thumbnail is")
        return "it is marked as a smaller copy of another picture"
    if main:
        return f"it has {len(found)} frames, number {main + 1} is used, since those before it are thumbnails or masks"
    return f"it has {len(found)} frames, only the first is used" if len(found) > 1 else ""


def _main(found: list[Page]) -> int:
    """Index of the main page; of the first one if all are thumbnails or masks."""
    return next((i for i, page in enumerate(found) if not page.kind & (_REDUCED | _MASK)), 0)


def pages(data: bytes) -> list[Page]:
    """The directories of a TIFF, as far as their chain is whole (TIFF 6.0, section 2; BigTIFF)."""
    order, pointer, count, at, size = _layout(data)
    found: dict[int, Page] = {}
    with suppress(struct.error):
        (at,) = struct.unpack_from(order + pointer, data, at)
        while at and at not in found:
            (num,) = struct.unpack_from(order + count, data, at)
            start = at + struct.calcsize(order + count)
            (following,) = struct.unpack_from(order + pointer, data, start + num * size)
            stored = [data[place : place + size] for place in range(start, start + num * size, size)]
            entries = {struct.unpack_from(order + "H", entry)[0]: entry for entry in stored}
            found[at] = Page(at, entries, _number(entries.get(_KIND), order, struct.calcsize(order + pointer)))
            at = following
    return list(found.values())


def _number(entry: bytes | None, order: str, pointer_bytes: int) -> int:
    """The value of an entry that has one SHORT or LONG; 0 without the entry."""
    if entry is None:
        return 0
    (kind,) = struct.unpack_from(order + "H", entry, 2)
    return struct.unpack_from(order + ("H" if kind == 3 else "I"), entry, len(entry) - pointer_bytes)[0]


def _layout(data: bytes) -> tuple[str, str, str, int, int]:
    """How directories are stored: letters of `struct` for byte order, pointers and numbers of entries; the place of the
    pointer to the first directory; the bytes of an entry."""
    order = "<" if data.startswith(b"I") else ">"
    return (order, "Q", "Q", 8, 20) if data[2:4] in (b"+\0", b"\0+") else (order, "I", "H", 4, 12)


_ADVICE = "Convert it to PNG first"


def _not_read(reason: str) -> UserError:
    return UserError(f"this kind of TIFF is not read: {reason}. {_ADVICE}")


def refusal(data: bytes) -> UserError:
    """Why a TIFF that Pillow cannot decode is not read: the reason if it is known, else the kind of its main page."""
    if not pages(data):
        return UserError("damaged TIFF picture")
    if data.startswith(b"MM\0+"):
        return _not_read("it is a big-endian BigTIFF")
    kind = ""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == ord("+") else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        if reason := _reason(tags):
            return _not_read(reason)
        kind = f" ({_description(tags)})"
    except Exception:  # Pillow's reader raises whatever its parts do
        pass
    return UserError(f"this kind of TIFF is not read, or it is damaged{kind}. {_ADVICE}")


def check(tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Raise UserError for TIFFs that Pillow decodes to wrong pixels without an error (tests compare with tifffile)."""
    if reason := _reason(tags):
        raise _not_read(reason)


def with_palette(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    """A decoded TIFF; the palette of some old programs, which has values of 8 bits instead of 16, is corrected.

    libtiff detects it in the same way, Pillow does not.
    """
    palette = image.tag_v2.get(TiffImagePlugin.COLORMAP, ())
    if image.mode not in ("P", "PA") or max(palette, default=256) >= 256:
        return image
    corrected = image.copy()  # the other one may be the caller's
    corrected.putpalette(bytes(palette), "RGB;L")
    return corrected


def _reason(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    bits, forms = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)), tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2 and tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1
    compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    plain = compression == 1
    if set(forms) != {1} or max(bits) > 16:
        return "its samples are signed, floating-point or over 16 bits; supported are unsigned ones of 1 to 16 bits"
    if photometric in (8, 9, 10):
        return "it is in CIE Lab; supported are grey, palette, RGB, CMYK and YCbCr"
    if photometric is None and compression not in (2, 3, 4, 6, 7):  # those of fax are grey, those of JPEG YCbCr
        return "it does not state its colours (no PhotometricInterpretation)"
    if photometric == 6 and plain:
        return "it is uncompressed YCbCr; supported is compressed YCbCr"
    if photometric == 5 and tags.get(_INK_SET, 1) != 1:
        return "its inks are others than CMYK"
    if planar and photometric in (0, 1, 3) and any(tags.get(TiffImagePlugin.EXTRASAMPLES, ())):
        return "its transparency is stored in a separate plane; supported is transparency interleaved with the pixels"
    if planar and max(bits) > 8 and plain:
        return "its 16-bit colours are uncompressed planes; supported are interleaved or compressed ones"
    return ""


def _description(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    """The kind of a TIFF, such as "BlackIsZero, 2 samples of 16, 16 bits, LZW, big-endian"."""

    def named(tag: int) -> str:
        names = {value: name for name, value in TiffTags.lookup(tag).enum.items()}
        return names.get(tags.get(tag, 1), f"{TiffTags.lookup(tag).name} {tags.get(tag)}")

    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    parts = [
        named(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION),
        f"{len(bits)} samples of {max(bits)} bits" if len(bits) > 1 else f"{bits[0]} bits",
        named(TiffImagePlugin.COMPRESSION),
    ]
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2:
        parts.append("in planes")
    if tags.get(TiffImagePlugin.FILLORDER, 1) == 2:
        parts.append("bits in reverse order")
    return ", ".join([*parts, "big-endian" if tags.prefix == b"MM" else "little-endian"])
