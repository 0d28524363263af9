"""Which of HEIC and AVIF a file is; its metadata."""

import re

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}


def brands(data: bytes) -> set[bytes]:
    """Brands that a HEIC or AVIF file lists (ISO/IEC 14496-12, box `ftyp`); empty for files of other kinds."""
    if data[4:8] != b"ftyp":
        return set()
    box = data[8 : min(int.from_bytes(data[:4], "big"), 1024)]
    return {box[at : at + 4] for at in range(0, len(box), 4)}


def is_heic(data: bytes) -> bool:
    """Whether a file is HEIC, or another HEIF that is not AVIF: both can have the brand `mif1`."""
    listed = brands(data)
    return bool(listed & _HEIC_BRANDS) and not listed & _AVIF_BRANDS


def is_avif(data: bytes) -> bool:
    """Whether a file is AVIF."""
    return bool(brands(data) & _AVIF_BRANDS)


def without_metadata(data: bytes) -> bytes:
    """The file with its items of EXIF and XMP under a type that decoders ignore.

    Types are in the boxes `infe` (ISO/IEC 14496-12), after version, flags, number of the item and its protection.
    """
    return re.sub(rb"(infe.{4}(?:.{2}|.{4}).{2})(?:Exif|mime)", rb"\1skip", data, flags=re.DOTALL)
