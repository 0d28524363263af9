"""EGIC, a generative image codec: `egic.load(folder).compress(image)`, `.decompress(data, alpha=)`."""


def load(folder, device="cpu", precision="float32"):
    """The model of an artifact folder, on `device`; see `egic.model.Model`. Raises ValueError."""
    from egic.model import load  # not at import: torch takes seconds

    return load(folder, device, precision)
