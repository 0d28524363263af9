"""The model that ships with the package, the default of `egic.load()` and of the command `egic`."""

from pathlib import Path

from egic.errors import UserError

FOLDER = Path(__file__).with_name("models") / "small"


def shipped_model() -> Path:
    """The artifact folder of the model in this package. Raises UserError where the package was built without one."""
    if not (FOLDER / "config.json").is_file():
        raise UserError(
            "this package was built without a model; name one with --model: a folder, "
            "models:/egic-orp@best, or hf://owner/name"
        )
    return FOLDER
