"""EGIC, a generative image codec.

    import egic
    from PIL import Image

    model = egic.load()  # or egic.load("path/of/an/artifact", device="cuda", precision="bfloat16")
    data = model.compress(Image.open("photo.png"))  # or uint8 (H, W, 3) -> the bytes of an .egic file
    picture = model.decompress(data, alpha=0.5)  # uint8 (H, W, 3); alpha 0 most faithful, 1 most realistic

A picture, file or model that cannot be used raises `egic.errors.UserError`, a ValueError; a bad file raises
`egic.coding.bitstream.BitstreamError`, a UserError.
`egic.model` has the above, `egic.networks` the networks, `egic.training` losses and training steps, `egic.coding` the
file format, `egic.metrics` the measures, `egic.artifact` models on disk.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from egic.model import Model

__version__ = "0.1.0"


def load(folder: str | Path | None = None, device: "str | torch.device" = "cpu", precision: str = "float32") -> "Model":
    """The codec of an artifact folder, with its ORP head where it has one, ready to code pictures.

    folder: None for the model that ships with the package.
    device: "cpu", "cuda", "cuda:1". precision: of the transforms, "float32" or "bfloat16"; files fit either way.
    Raises UserError for a folder that is no model. See `egic.model.Model`.
    """
    from egic.model import load  # not at import: torch takes seconds
    from egic.shipped import shipped_model

    return load(shipped_model() if folder is None else folder, device, precision)
