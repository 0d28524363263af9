"""EGIC, a generative image codec.

    import egic
    from PIL import Image

    model = egic.load()  # or egic.load("path/of/an/artifact", device="cuda", precision="bfloat16")
    data = model.compress(Image.open("photo.png"))  # or uint8 (H, W, 3) -> the bytes of an .egic file
    picture = model.decompress(data, alpha=0.5)  # uint8 (H, W, 3); alpha 0 most faithful, 1 most realistic

A picture, file or model that cannot be used raises `egic.errors.UserError`, a ValueError; a damaged .egic file raises
`egic.BitstreamError`, a UserError.
Modules: `egic.model` (`load` and `egic.Model`), `egic.networks`, `egic.training` (losses and training steps),
`egic.coding` (the file format), `egic.metrics`, `egic.artifact` (models on disk).
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from egic.coding.bitstream import BitstreamError
    from egic.model import Model

__version__ = "0.1.0"
__all__ = ["BitstreamError", "Model", "load"]


def __getattr__(name: str) -> object:
    """Import `Model` and `BitstreamError` on first use, since importing torch takes seconds."""
    if name == "Model":
        from egic.model import Model

        return Model
    if name == "BitstreamError":
        from egic.coding.bitstream import BitstreamError

        return BitstreamError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(folder: str | Path | None = None, device: "str | torch.device" = "cpu", precision: str = "float32") -> "Model":
    """Load the model of an artifact folder: its codec and, if stored, its ORP head.

    folder: None for the model that ships with the package.
    device: "cpu", "cuda", "cuda:1". precision: of the transforms, "float32" or "bfloat16"; files decode with either.
    Raises UserError for a folder that is not a model. See `egic.model.Model`.
    """
    from egic.model import load  # not at import: torch takes seconds
    from egic.shipped import shipped_model

    return load(shipped_model() if folder is None else folder, device, precision)
