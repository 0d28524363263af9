"""`import egic.pillow` registers .egic files with Pillow.

    import egic.pillow
    from PIL import Image

    Image.open("photo.png").save("photo.egic", quality=40)
    image = Image.open("photo.egic")  # reads the header: size and format
    image.load(alpha=0.5)  # decodes; optional, since Pillow decodes an image when its pixels are needed

The model is the one of `egic.load()`, loaded when the first picture is decoded or saved; `use` selects another.

Options of `save`: quality, bpp or max_bytes as in `egic.Model.compress`, and model, a folder or an `egic.Model`.
alpha (0 most faithful, 1 most realistic, the default) is chosen when decoding; a file does not store it.
"""

import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile, UnidentifiedImageError

import egic
from egic.coding import bitstream
from egic.coding.bitstream import BitstreamError

if TYPE_CHECKING:
    from egic.model import Model

FORMAT = "EGIC"
MIME = "image/x-egic"
_in_use: "str | Path | Model | None" = None


class UnreadableFileError(BitstreamError, UnidentifiedImageError):
    """A damaged .egic file, or one of another model. An OSError, too, which programs expect of Pillow."""


def use(model: "str | Path | Model | None" = None) -> None:
    """Select the model for decoding and saving: an artifact folder, an `egic.Model`, or None for `egic.load()`'s.

    A folder is loaded when the first picture is decoded or saved, on the CPU; for another device, give an `egic.Model`.
    """
    global _in_use
    _in_use = model


def _model() -> "Model":
    """The selected model, loaded at the first call."""
    global _in_use
    _in_use = _loaded(_in_use)
    return _in_use


def _loaded(model: "str | Path | Model | None") -> "Model":
    return egic.load(model) if model is None or isinstance(model, str | Path) else model


class EgicImageFile(ImageFile.ImageFile):
    """An .egic file as a Pillow image. `open` reads and checks the file, `load` decodes it with the model in use."""

    format = FORMAT
    format_description = "EGIC generative image codec"

    def _open(self) -> None:
        assert self.fp is not None  # given by Pillow
        self._data = self.fp.read()
        try:
            header, _ = bitstream.unpack(self._data)
        except BitstreamError as error:
            raise UnreadableFileError(str(error)) from None
        self._size = header.width, header.height
        self._mode = "RGB"
        self._is_decoded = False

    def load(self, alpha: float | None = None) -> Any:
        """Decode the pixels, once. alpha: decode them at this alpha, even if they are decoded already.

        Raises UnreadableFileError for a file of another model, UserError for an alpha that the model cannot use.
        """
        if not self._is_decoded or alpha is not None:
            try:
                x = _model().decompress(self._data, alpha)
            except BitstreamError as error:
                raise UnreadableFileError(str(error)) from None
            self.im = Image.fromarray(x).im
            self._is_decoded = True
            if self.fp is not None and self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    options: dict[str, Any] = image.encoderinfo
    if options.get("alpha") is not None:
        warnings.warn("alpha is not stored in .egic files; give it when decoding: image.load(alpha=...)", stacklevel=3)
    rate = {name: options.get(name) for name in ("quality", "bpp", "max_bytes")}
    model = _loaded(options["model"]) if options.get("model") else _model()
    fp.write(model.compress(image, **rate))


Image.register_open(FORMAT, EgicImageFile, lambda prefix: prefix.startswith(bitstream.MAGIC))
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".egic")
Image.register_mime(FORMAT, MIME)
